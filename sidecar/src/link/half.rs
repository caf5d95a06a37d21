//! One stream of a link, as either end keeps it.

use std::io;
use std::task::Waker;

use super::frame::Cause;
use crate::multiplex::{Pieces, Window, Written, wake};

/// What may be sent on a stream that has just begun, in bytes.
pub(super) const WINDOW: u32 = 64 * 1024;

/// The other end has not looked at the stream, and never will.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refused {
    #[error("the peer takes no more streams on this connection")]
    Unseen,
    #[error("the peer has as many connections as it takes")]
    Shed,
}

/// One stream.
#[derive(Default)]
pub(super) struct Half {
    /// What came and was not read yet.
    pub(super) came: Pieces,
    /// What the peer may still send.
    pub(super) window: Window,
    /// The peer has said that it sends no more.
    pub(super) ended: bool,
    /// What we may still send.
    pub(super) credit: u32,
    /// We have said that we send no more.
    pub(super) finished: bool,
    /// The peer has said that it reads no more.
    pub(super) stopped: bool,
    pub(super) broken: Option<Cause>,
    pub(super) reader: Option<Waker>,
    pub(super) writer: Option<Waker>,
}

impl Written for Half {
    fn writer(&mut self) -> &mut Option<Waker> {
        &mut self.writer
    }
}

impl Half {
    pub(super) fn new() -> Self {
        Self { window: Window::new(WINDOW), credit: WINDOW, ..Self::default() }
    }

    pub(super) fn wake(&mut self) {
        wake(&mut self.reader);
        wake(&mut self.writer);
    }

    pub(super) fn break_off(&mut self, cause: Cause) {
        if self.broken.is_none() {
            self.broken = Some(cause);
        }
        self.wake();
    }

    pub(super) fn error(cause: Cause) -> io::Error {
        match cause {
            Cause::Reset => io::ErrorKind::ConnectionReset.into(),
            Cause::Refused => io::Error::new(io::ErrorKind::ConnectionReset, Refused::Unseen),
            Cause::Shed => io::Error::new(io::ErrorKind::ConnectionReset, Refused::Shed),
        }
    }

    pub(super) fn may_write(&self) -> io::Result<()> {
        match self.broken {
            Some(cause) => Err(Self::error(cause)),
            None if self.finished || self.stopped => Err(io::ErrorKind::BrokenPipe.into()),
            None => Ok(()),
        }
    }

    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.came.push(bytes);
        wake(&mut self.reader);
    }
}
