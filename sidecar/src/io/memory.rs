//! An in-memory network for simulation: bounded pipes with half-close and reset.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use tokio::io::ReadBuf;

/// Bytes that one direction holds before its writer waits.
const CAPACITY: usize = 64 * 1024;

#[derive(Debug, Default)]
struct Pipe {
    bytes: VecDeque<u8>,
    ended: bool,
    reset: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl Pipe {
    fn wake(&mut self) {
        for waker in [self.reader.take(), self.writer.take()].into_iter().flatten() {
            waker.wake();
        }
    }
}

/// One end of an in-memory connection.
#[derive(Debug)]
pub struct MemorySocket {
    read: Rc<RefCell<Pipe>>,
    write: Rc<RefCell<Pipe>>,
    pub peer: SocketAddr,
    pub original_destination: Option<SocketAddr>,
}

/// Two connected ends: one that sees `a` as its peer, and one that sees `b`.
pub fn pair(a: SocketAddr, b: SocketAddr) -> (MemorySocket, MemorySocket) {
    let (one, two) = (Rc::new(RefCell::default()), Rc::new(RefCell::default()));
    (
        MemorySocket { read: Rc::clone(&one), write: Rc::clone(&two), peer: a, original_destination: None },
        MemorySocket { read: two, write: one, peer: b, original_destination: None },
    )
}

impl MemorySocket {
    pub(super) fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut pipe = self.read.borrow_mut();
        if pipe.bytes.is_empty() && !pipe.ended && !pipe.reset {
            pipe.reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(Ok(()))
    }

    pub(super) fn poll_read(&self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.poll_readable(cx).is_pending() {
            return Poll::Pending;
        }
        let mut pipe = self.read.borrow_mut();
        if pipe.reset {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        let n = pipe.bytes.len().min(buf.remaining());
        for byte in pipe.bytes.drain(..n) {
            buf.put_slice(&[byte]);
        }
        pipe.wake();
        Poll::Ready(Ok(()))
    }

    pub(super) fn poll_write_vectored(&self, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let mut pipe = self.write.borrow_mut();
        if pipe.reset || pipe.ended {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let room = CAPACITY - pipe.bytes.len();
        if room == 0 {
            pipe.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let mut n = 0;
        for buf in bufs {
            let take = buf.len().min(room - n);
            pipe.bytes.extend(&buf[..take]);
            n += take;
        }
        pipe.wake();
        Poll::Ready(Ok(n))
    }

    pub(super) fn shutdown(&self) {
        let mut pipe = self.write.borrow_mut();
        pipe.ended = true;
        pipe.wake();
    }

    pub(super) fn reset(&self) {
        for pipe in [&self.read, &self.write] {
            let mut pipe = pipe.borrow_mut();
            pipe.reset = true;
            pipe.wake();
        }
    }
}

impl Drop for MemorySocket {
    fn drop(&mut self) {
        self.shutdown();
        let mut pipe = self.read.borrow_mut();
        pipe.ended = true;
        pipe.wake();
    }
}
