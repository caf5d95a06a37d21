//! One stream of an HTTP/2 connection, as either end keeps it (RFC 9113, section 5.1).

use std::task::Waker;

use super::frame::{Code, Violation};
use crate::http::fields::Fields;
use crate::http::head::ResponseHead;
use crate::multiplex::{Pieces, Window, Written, wake};

/// Why nothing more comes on a stream, and nothing more goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Broken {
    #[error("the peer ended the stream: {0}")]
    Reset(Code),
    #[error("the peer takes no more streams on this connection")]
    Unseen,
    #[error("the connection was lost")]
    Lost,
    #[error("{0}")]
    Ours(Violation),
}

/// One stream.
#[derive(Default)]
#[expect(clippy::struct_excessive_bools, reason = "each half of a stream ends by itself")]
pub(super) struct State {
    /// The answer's, until somebody takes it.
    pub(super) head: Option<Box<ResponseHead>>,
    /// The answer will have no content, whatever its head says (RFC 9110, section 9.3.2).
    pub(super) asks_head: bool,
    /// The head that is not informational has come.
    pub(super) has_head: bool,
    pub(super) came: Pieces,
    pub(super) trailers: Option<Box<Fields>>,
    /// The peer has said everything.
    pub(super) ended: bool,
    /// How much of the content that was announced has not come yet.
    pub(super) expected: Option<u64>,
    /// What the peer may still send.
    pub(super) window: Window,
    /// Read last, and not passed on yet.
    pub(super) passing: u32,
    /// What we may still send; less than nothing where the peer has taken some back.
    pub(super) credit: i64,
    /// We have said everything.
    pub(super) finished: bool,
    pub(super) broken: Option<Broken>,
    /// It is one of those that are open, as the peer counts.
    pub(super) counts: bool,
    pub(super) handles: u8,
    pub(super) reader: Option<Waker>,
    pub(super) writer: Option<Waker>,
    /// Whoever wants to know when it breaks.
    pub(super) watcher: Option<Waker>,
}

impl Written for State {
    fn writer(&mut self) -> &mut Option<Waker> {
        &mut self.writer
    }
}

impl State {
    pub(super) fn break_off(&mut self, why: Broken) {
        self.broken.get_or_insert(why);
        for waker in [&mut self.reader, &mut self.writer, &mut self.watcher] {
            wake(waker);
        }
    }
}
