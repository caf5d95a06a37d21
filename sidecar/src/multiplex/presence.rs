//! Whether the other end of a connection is still there: who has been silent for long is asked before a stream begins, and streams that it may never have heard of are broken off.

use std::cell::Cell;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::{Framing, Mover};
use crate::bell::Word;

/// How long a connection may be silent before whoever uses it asks whether its other end is still there.
const SILENT: Duration = Duration::from_secs(1);
/// The longest that an answer is waited for, whatever a policy says.
const LONGEST: Duration = Duration::from_secs(3_600);

/// What is known of it.
pub(super) struct Presence {
    /// When something came last.
    heard: Cell<Instant>,
    /// When it was asked whether the other end is there, and has not been heard since.
    asked: Cell<Option<Instant>>,
    /// How long an answer may take; none where nobody is asked.
    patience: Option<Duration>,
    /// It is asked just now, or a stream begins.
    asking: Word,
    /// It answers.
    answered: Notify,
}

impl Presence {
    pub(super) fn new(patience: Option<Duration>) -> Self {
        let patience = patience.map(|patience| patience.min(LONGEST));
        let (asking, answered) = (Word::default(), Notify::new());
        Self { heard: Cell::new(Instant::now()), asked: Cell::new(None), patience, asking, answered }
    }

    /// Whoever asked whether the other end is there knows now.
    pub(super) fn knows(&self) {
        if self.asked.take().is_some() {
            self.answered.notify_waiters();
        }
    }

    /// Until when it is to answer; none where it was not asked.
    fn until(&self) -> Option<Instant> {
        Some(self.asked.get()? + self.patience?)
    }
}

impl<F: Framing> Mover<F> {
    /// Whether the other end has answered in time, if it was asked.
    pub fn answers(&self) -> bool {
        self.presence.until().is_none_or(|until| Instant::now() < until)
    }

    /// Somebody waits for its answer, to begin a stream.
    pub fn is_awaited(&self) -> bool {
        self.presence.asked.get().is_some() && self.answers()
    }

    /// Something came.
    pub(super) fn hear(&self) {
        if self.presence.patience.is_some() {
            self.presence.heard.set(Instant::now());
            self.framing().hear();
            self.presence.knows();
        }
    }

    /// Something is about to be said: whoever has been silent for long is asked whether it hears.
    pub fn asks(&self) {
        let Presence { heard, asked, patience, asking, .. } = &self.presence;
        if patience.is_some() && asked.get().is_none() && heard.get().elapsed() >= SILENT {
            asked.set(Some(Instant::now()));
            self.framing().ping();
            asking.say();
        }
    }

    /// A stream has begun, of which the other end is to hear.
    pub fn began(&self) {
        if self.presence.patience.is_some() {
            self.presence.asking.say();
        }
    }

    /// Asks whether the other end is there, where it has been silent for long, and waits for its answer, for as long as that may take. Ask before a stream begins: what was never said on it
    /// can be said elsewhere.
    pub async fn is_heard(&self) {
        self.asks();
        while let Some(until) = self.presence.until() {
            let answered = self.presence.answered.notified();
            if tokio::time::timeout_at(until, answered).await.is_err() {
                return;
            }
        }
    }

    /// Looks after whether the other end hears of streams that begin. Where it says nothing and does not answer when it is asked, those that began since are
    /// broken off. The others go on, for as long as the kernel believes in the connection. Never resolves.
    pub async fn watch(&self) {
        loop {
            self.presence.asking.heard().await;
            loop {
                if let Some(until) = self.presence.until() {
                    tokio::time::sleep_until(until).await;
                    if self.presence.until() == Some(until) {
                        self.framing().give_up_unsure();
                        break;
                    }
                } else if self.framing().is_unsure() {
                    tokio::time::sleep_until(self.presence.heard.get() + SILENT).await;
                    self.asks();
                } else {
                    break;
                }
            }
        }
    }
}
