//! An HTTP/2 connection, and handles on its streams.

use std::cell::{Cell, RefMut};
use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;
use weft_core::failure::Failure;

use super::frame::Code;
use super::section::Fault;
use super::session::{End, Session, With};
use super::state::Broken;
use crate::http::Chunk;
use crate::http::fields::Fields;
use crate::http::head::{RequestHead, ResponseHead};
use crate::multiplex::{Framing, Mover};
use crate::stream::Stream;

/// One end of a connection.
pub struct Connection {
    mover: Mover<Session>,
    /// When its last stream ended.
    since: Cell<Instant>,
}

impl Connection {
    /// One that opens streams. A peer's sidecar is asked whether it is there where it has said nothing for long, and has `answers` to say so: then no stream begins until it has.
    pub fn asking(answers: Option<Duration>) -> Rc<Self> {
        Self::new(End::Asks, if answers.is_some() { With::Sidecar } else { With::Program }, answers)
    }

    /// One that serves them.
    pub fn serving(with: With) -> Rc<Self> {
        Self::new(End::Serves, with, None)
    }

    fn new(end: End, with: With, answers: Option<Duration>) -> Rc<Self> {
        Rc::new(Self { mover: Mover::new(Session::new(end, with), answers), since: Cell::new(Instant::now()) })
    }

    fn session(&self) -> RefMut<'_, Session> {
        self.mover.framing()
    }

    /// Resolves when the other end has not said what it is for so long.
    pub async fn silent(&self, patience: Duration) {
        tokio::time::sleep(patience).await;
        if self.session().is_greeted() {
            std::future::pending::<()>().await;
        }
    }

    /// Whether a stream has ever begun on it.
    pub fn has_begun(&self) -> bool {
        self.session().has_begun()
    }

    /// Whether another stream may begin, of at most so many, those who wait to begin one among them.
    pub fn has_room(&self, most: usize) -> bool {
        let session = self.session();
        session.has_room() && session.held() + session.waiters() < most && self.mover.answers()
    }

    /// Asks whether the other end is there, where it has been silent for long, and waits until it is known.
    pub async fn is_heard(&self) {
        self.mover.is_heard().await;
    }

    /// Whether it is known that the other end is there, or nobody asks.
    pub fn is_here(&self) -> bool {
        self.mover.asks();
        !self.mover.is_awaited()
    }

    /// Whether no stream begins on it any more.
    pub fn is_closed(&self) -> bool {
        self.session().is_closed()
    }

    /// How long it has had no stream; none while it has one, or something to say.
    pub fn idle(&self) -> Option<Duration> {
        let session = self.session();
        let is_idle = session.is_idle() && session.outgoing().is_empty() && !self.mover.is_awaited();
        is_idle.then(|| self.since.get().elapsed())
    }

    /// Ends a connection that serves, on which nothing is under way and which was told to leave.
    pub fn close(&self) {
        self.session().close();
    }

    /// No more streams are to begin on it, and it ends with the last one.
    pub fn leave(&self) {
        self.session().leave();
    }

    /// Begins a stream with a request's head, as soon as there is room for one. An error means that nothing of it was sent: `Ok` holds why the connection has none, `Err` what the request lacks.
    pub async fn begin(self: &Rc<Self>, head: &RequestHead, ends: bool) -> Result<Result<Handle, Broken>, Failure> {
        if let Err(broken) = poll_fn(|cx| self.session().poll_room(head, cx)).await {
            return Ok(Err(broken));
        }
        let number = self.session().begin(head, ends)?;
        self.mover.began();
        Ok(Ok(Handle::new(self, number)))
    }

    /// Moves bytes between streams and connection until that ends: properly after [`Self::leave`], or with an error. `opened` is given each request that comes, and what is wrong with those that
    /// were refused. Whatever is under way at the end is broken off.
    pub async fn drive(
        self: &Rc<Self>,
        stream: &Stream,
        mut opened: impl FnMut(Result<(RequestHead, Handle), Fault>),
    ) -> io::Result<()> {
        let take = |octets: &[u8]| {
            if octets.is_empty() {
                let is_idle = self.session().is_idle();
                return if is_idle { Ok(0) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
            }
            let received = self.session().receive(octets);
            let fresh = self.session().fresh();
            let began = fresh.len();
            for (number, head) in fresh {
                opened(head.map(|head| (head, Handle::new(self, number))));
            }
            if let Err(violation) = received {
                self.session().accuse(violation);
                return Err(io::Error::new(io::ErrorKind::InvalidData, violation));
            }
            Ok(began)
        };
        self.mover.drive(stream, take).await
    }
}

/// Who reads or writes a stream. With the last one the stream ends: properly if all was said, else as what was cut short.
pub struct Handle {
    connection: Rc<Connection>,
    number: u32,
}

impl Handle {
    fn new(connection: &Rc<Connection>, number: u32) -> Self {
        connection.session().holds(number);
        Self { connection: Rc::clone(connection), number }
    }

    fn session(&self) -> RefMut<'_, Session> {
        self.connection.session()
    }

    /// The answer's head. Cancel-safe.
    pub async fn head(&self) -> Result<ResponseHead, Broken> {
        poll_fn(|cx| self.session().poll_head(self.number, cx)).await
    }

    /// Whether everything that comes was read.
    pub fn is_done(&self) -> bool {
        self.session().is_done(self.number)
    }

    /// See [`Session::poll_piece`].
    pub fn poll_piece(&self, cx: &Context<'_>) -> Poll<Result<Option<Chunk>, Broken>> {
        self.session().poll_piece(self.number, cx)
    }

    /// See [`Session::poll_send`].
    pub fn poll_send(&self, cx: &Context<'_>, data: &mut Bytes) -> Poll<Result<(), Broken>> {
        self.session().poll_send(self.number, cx, data)
    }

    /// Says an answer's head, and whether that is all.
    pub fn respond(&self, head: &ResponseHead, ends: bool) -> Result<(), Broken> {
        self.session().respond(self.number, head, ends)
    }

    /// Says trailers, and with them that all was said.
    pub fn trailers(&self, fields: &Fields) -> Result<(), Broken> {
        self.session().trailers(self.number, fields)
    }

    /// Says that all was said.
    pub fn finish(&self) -> Result<(), Broken> {
        self.session().finish(self.number)
    }

    /// Resolves when the stream is broken off.
    pub async fn broken(&self) -> Broken {
        poll_fn(|cx| self.session().poll_broken(self.number, cx)).await
    }

    /// Whether it is broken off.
    pub fn is_broken(&self) -> bool {
        self.session().is_broken(self.number)
    }

    /// Resolves when the connection has ended.
    pub async fn gone(&self) {
        poll_fn(|cx| self.session().poll_gone(self.number, cx)).await;
    }

    /// Ends the stream, of which nothing more is wanted.
    pub fn cut(&self, code: Code) {
        self.session().cut(self.number, code);
    }
}

impl Clone for Handle {
    fn clone(&self) -> Self {
        Self::new(&self.connection, self.number)
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        let mut session = self.session();
        session.lets_go(self.number);
        if session.is_idle() {
            drop(session);
            self.connection.since.set(Instant::now());
        }
    }
}
