//! The link: many streams on one mutual TLS connection between two sidecars (`weft/link2`), so that one handshake serves them all, and one write
//! carries what many of them have to say.
//!
//! A stream is what a connection of its own would be, byte for byte: half-closed, reset, held up by its reader alone, and authorized by itself. A link is
//! between one identity and another, to one address and port; a stream cannot ask for any other. `session.rs` is the protocol, without a
//! socket; `pipe.rs` one stream; [`Link::drive`] moves bytes between the two and the connection.

use std::cell::{Cell, RefMut};
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use tokio::time::Instant;
use weft_core::protocol::MeshProtocol;

pub mod frame;
mod half;
mod pipe;
pub mod session;

pub use half::Refused;
pub use pipe::Pipe;
use session::{End, Session};

use crate::io::Socket;
use crate::multiplex::{Mover, UNSENT};
use crate::stream::Stream;

/// What its streams are asked for and the link alone knows.
pub struct Facts {
    /// The address at the other end.
    pub peer: SocketAddr,
    /// Cipher suite and key exchange group.
    pub tls: (&'static str, &'static str),
}

/// Why a stream broke off that the other end has not looked at, and never will; none where it may have.
pub fn refused(e: &io::Error) -> Option<Refused> {
    e.get_ref()?.downcast_ref().copied()
}

/// One end of a link.
pub struct Link {
    mover: Mover<Session>,
    facts: Facts,
    /// When its last stream ended.
    since: Cell<Instant>,
    /// The connection was ended from here, for what it rests on is not believed any more.
    cut: Cell<bool>,
}

impl Link {
    /// One that opens streams over `stream`. An other end that is asked and says nothing for `answers` is not used any more until it does.
    pub fn opening(stream: &Stream, answers: Duration) -> Rc<Self> {
        Self::new(stream, End::Opens, Some(answers))
    }

    /// One that serves the streams that come over `stream`.
    pub fn serving(stream: &Stream) -> Rc<Self> {
        Self::new(stream, End::Serves, None)
    }

    fn new(stream: &Stream, end: End, patience: Option<Duration>) -> Rc<Self> {
        stream.bound_unsent(UNSENT);
        let facts = Facts { peer: stream.peer(), tls: stream.tls_names() };
        let mover = Mover::new(Session::new(end), patience);
        Rc::new(Self { mover, facts, since: Cell::new(Instant::now()), cut: Cell::new(false) })
    }

    fn session(&self) -> RefMut<'_, Session> {
        self.mover.framing()
    }

    /// Cipher suite and key exchange group.
    pub fn tls_names(&self) -> (&'static str, &'static str) {
        self.facts.tls
    }

    /// Whether a stream may begin on it.
    pub fn has_room(&self) -> bool {
        self.session().has_room() && self.answers()
    }

    /// Whether no stream begins on it any more.
    pub fn is_leaving(&self) -> bool {
        self.session().is_leaving()
    }

    /// Whether the other end has answered in time, if it was asked.
    pub fn answers(&self) -> bool {
        self.mover.answers()
    }

    /// Streams that are open on it.
    pub fn streams(&self) -> usize {
        self.session().open()
    }

    /// How long it has had no stream; none while it has one, or somebody who waits to begin one.
    pub fn idle(&self) -> Option<Duration> {
        (self.streams() == 0 && !self.mover.is_awaited()).then(|| self.since.get().elapsed())
    }

    /// Begins a stream. Ask [`Self::has_room`] first.
    pub fn begin(self: &Rc<Self>, protocol: MeshProtocol) -> Socket {
        self.asks();
        let number = self.session().begin(protocol);
        self.mover.began();
        Socket::Link(Pipe::new(Rc::clone(self), number))
    }

    /// Asks whether the other end is there, where it has been silent for long; false if nothing can begin on it. Ask before a stream begins: what was never said on it can be said
    /// elsewhere.
    pub async fn is_there(&self) -> bool {
        self.mover.is_heard().await;
        self.has_room()
    }

    /// No more streams are to begin on it. Whoever opens them ends it with the last one.
    pub fn leave(&self) {
        self.session().leave();
    }

    /// Ends a link that serves, on which nothing is under way.
    pub fn close(&self) {
        self.session().close();
    }

    /// Something is about to be said: whoever has been silent for long is asked whether it hears.
    fn asks(&self) {
        self.mover.asks();
    }

    fn forget(&self, stream: u32, cause: Option<frame::Cause>) {
        self.session().forget(stream, cause);
        if self.streams() == 0 {
            self.since.set(Instant::now());
        }
    }

    /// Moves bytes between streams and connection until the link ends: properly after [`Self::leave`] or when the other end has
    /// left, or with an error. `opened` is given each stream that the other end opens. Whatever is under way at the end is broken off.
    pub async fn drive(self: &Rc<Self>, stream: &Stream, mut opened: impl FnMut(MeshProtocol, Pipe)) -> io::Result<()> {
        let take = |octets: &[u8]| {
            if octets.is_empty() {
                return if self.streams() == 0 { Ok(0) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
            }
            let received = self.session().receive(octets);
            let fresh = self.session().opened();
            let began = fresh.len();
            for (number, protocol) in fresh {
                opened(protocol, Pipe::new(Rc::clone(self), number));
            }
            received.map_err(|why| io::Error::new(io::ErrorKind::InvalidData, why))?;
            Ok(began)
        };
        let ended = self.mover.drive(stream, take).await;
        // Streams ask for it as soon as they are broken off.
        self.cut.set(stream.is_cut());
        ended
    }
}
