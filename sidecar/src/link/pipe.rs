//! One stream of a link, to whoever reads and writes it: as a socket, but for what only a socket of the kernel has.

use std::cell::Cell;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::BytesMut;
use bytes::buf::Limit;
use tokio::io::ReadBuf;

use super::Link;
use super::frame::Cause;

/// See the module. Dropped, it ends as TLS does: properly if it was shut down before, else as what was cut short.
pub struct Pipe {
    link: Rc<Link>,
    number: u32,
    at_end: Cell<Option<Cause>>,
    cut: Cell<bool>,
}

impl Pipe {
    pub(super) fn new(link: Rc<Link>, number: u32) -> Self {
        Self { link, number, at_end: Cell::new(None), cut: Cell::new(false) }
    }

    /// The link that it is a stream of.
    pub fn link(&self) -> &Rc<Link> {
        &self.link
    }

    /// See [`crate::io::Socket::poll_readable`].
    pub fn poll_readable(&self, cx: &Context<'_>) -> Poll<io::Result<()>> {
        self.link.session().poll_readable(self.number, cx)
    }

    /// See [`crate::io::Socket::poll_read`].
    pub fn poll_read(&self, cx: &Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let n = ready!(self.link.session().poll_read(self.number, cx, buf.initialize_unfilled()))?;
        buf.advance(n);
        Poll::Ready(Ok(()))
    }

    /// The next bytes, as they came; none at the end.
    pub fn poll_chunk(&self, cx: &Context<'_>) -> Poll<io::Result<Option<BytesMut>>> {
        self.link.session().poll_chunk(self.number, cx)
    }

    /// See [`crate::io::Socket::poll_write_vectored`]. What is taken goes out with what other streams have to say, when everybody has had a turn.
    pub fn poll_write_vectored(&self, cx: &Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        self.link.asks();
        self.link.session().poll_write(self.number, cx, bufs)
    }

    /// Has `read` put bytes where they go out from; what it came to. Pending: it was not asked yet. It may not use the link.
    pub fn poll_fill(
        &self,
        cx: &mut Context<'_>,
        read: impl FnOnce(&mut Context<'_>, &mut Limit<&mut Vec<u8>>) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<Poll<io::Result<usize>>>> {
        self.link.asks();
        self.link.session().poll_fill(self.number, cx, read)
    }

    /// Ends the writing half.
    pub fn shutdown(&self) -> io::Result<()> {
        self.link.session().finish(self.number)
    }

    /// See [`crate::io::Socket::reset_on_drop`].
    pub fn reset_on_drop(&self) {
        self.at_end.set(Some(Cause::Reset));
    }

    /// Has whoever opened it open it elsewhere: nothing of it was looked at, for there is too much to do.
    pub fn shed(&self) {
        self.at_end.set(Some(Cause::Shed));
    }

    /// Has whoever opened it say elsewhere what it has said and was not looked at.
    pub fn refuse(&self) {
        self.at_end.set(Some(Cause::Refused));
    }

    /// See [`crate::io::Socket::cut`].
    pub fn cut(&self) {
        self.cut.set(true);
        self.link.session().cut(self.number);
    }

    /// Whether it was cut from here, or the link was.
    pub fn is_cut(&self) -> bool {
        self.cut.get() || self.link.cut.get()
    }

    /// The address at the link's other end.
    pub fn peer(&self) -> SocketAddr {
        self.link.facts.peer
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        self.link.forget(self.number, self.at_end.get());
    }
}

impl std::fmt::Debug for Pipe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "stream {} of a link to {}", self.number, self.peer())
    }
}
