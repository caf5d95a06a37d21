//! Connections in memory, for simulation: bounded pipes with latency, half-close, reset, and short reads and writes.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use tokio::io::ReadBuf;
use tokio::time::{Instant, Sleep, sleep_until};

/// How bytes move.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Bytes that one direction holds, under way ones included, before its writer waits.
    pub capacity: usize,
    /// Each read and write takes a random number of bytes from 1 to this; [`usize::MAX`] takes whatever there is.
    pub chunk: usize,
}

impl Default for Shape {
    fn default() -> Self {
        Self { capacity: 64 * 1024, chunk: usize::MAX }
    }
}

/// Random numbers that follow from one seed (xorshift64*).
#[derive(Debug)]
pub(super) struct Chance(Cell<u64>);

impl Chance {
    pub(super) fn new(seed: u64) -> Rc<Self> {
        Rc::new(Self(Cell::new(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)))
    }

    /// A number below `n`, which is not 0.
    pub(super) fn below(&self, n: usize) -> usize {
        let mut x = self.0.get();
        x ^= x >> 12;
        x ^= x << 25;
        x ^= x >> 27;
        self.0.set(x);
        (x.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16) as usize % n
    }
}

/// What lies between two hosts. Every connection between them follows a change at once.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) latency: Cell<Duration>,
    /// Nothing arrives, and nothing is lost: it comes when this ends.
    pub(super) partitioned: Cell<bool>,
    shape: Shape,
    chance: Rc<Chance>,
    pipes: RefCell<Vec<Weak<RefCell<Pipe>>>>,
}

impl Link {
    pub(super) fn new(shape: Shape, chance: Rc<Chance>) -> Rc<Self> {
        Rc::new(Self { latency: Cell::default(), partitioned: Cell::default(), shape, chance, pipes: RefCell::default() })
    }

    /// Two connected ends: one that sees `a` as its peer, and one that sees `b`.
    pub(super) fn connect(self: &Rc<Self>, a: SocketAddr, b: SocketAddr) -> (MemorySocket, MemorySocket) {
        let (one, two) = (Pipe::over(self), Pipe::over(self));
        let mut pipes = self.pipes.borrow_mut();
        pipes.retain(|pipe| pipe.strong_count() > 0);
        pipes.extend([Rc::downgrade(&one), Rc::downgrade(&two)]);
        (MemorySocket::new(Rc::clone(&one), Rc::clone(&two), a), MemorySocket::new(two, one, b))
    }

    fn live(&self) -> Vec<Rc<RefCell<Pipe>>> {
        self.pipes.borrow().iter().filter_map(Weak::upgrade).collect()
    }

    /// Connections of which an end is open.
    pub(super) fn connections(&self) -> usize {
        self.live().len() / 2
    }

    /// Has readers look again.
    pub(super) fn wake(&self) {
        for pipe in self.live() {
            pipe.borrow_mut().wake();
        }
    }

    /// Resets every connection, for both its ends.
    pub(super) fn reset(&self) {
        for pipe in self.live() {
            pipe.borrow_mut().finish(End::Reset);
        }
    }

    /// How much of `n` bytes one read or write takes: at least one, unless there is none.
    fn portion(&self, n: usize) -> usize {
        if n == 0 || self.shape.chunk == usize::MAX { n } else { 1 + self.chance.below(self.shape.chunk.min(n)) }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum End {
    Fin,
    Reset,
}

enum Found {
    Bytes(usize),
    End(End),
}

/// One direction of a connection.
#[derive(Debug)]
struct Pipe {
    bytes: VecDeque<u8>,
    /// From when on how many of the bytes can be read, in order.
    arrivals: VecDeque<(Instant, usize)>,
    /// How the writer ended, and from when on the reader sees it: behind the bytes.
    end: Option<(Instant, End)>,
    /// The reader has gone.
    abandoned: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
    link: Rc<Link>,
}

impl Pipe {
    fn over(link: &Rc<Link>) -> Rc<RefCell<Self>> {
        Rc::new(RefCell::new(Self {
            bytes: VecDeque::new(),
            arrivals: VecDeque::new(),
            end: None,
            abandoned: false,
            reader: None,
            writer: None,
            link: Rc::clone(link),
        }))
    }

    fn wake(&mut self) {
        for waker in [self.reader.take(), self.writer.take()].into_iter().flatten() {
            waker.wake();
        }
    }

    /// What a reader finds; else when there will be something, if that is known.
    fn look(&self, now: Instant) -> Result<Found, Option<Instant>> {
        if self.link.partitioned.get() {
            return Err(None);
        }
        let arrived: usize = self.arrivals.iter().take_while(|(at, _)| *at <= now).map(|(_, n)| n).sum();
        match (self.arrivals.front(), self.end) {
            _ if arrived > 0 => Ok(Found::Bytes(arrived)),
            (Some((at, _)), _) => Err(Some(*at)),
            (None, Some((at, _))) if at > now => Err(Some(at)),
            (None, Some((_, end))) => Ok(Found::End(end)),
            (None, None) => Err(None),
        }
    }

    fn put(&mut self, bufs: &[io::IoSlice<'_>], n: usize) {
        let mut left = n;
        for buf in bufs {
            let take = buf.len().min(left);
            self.bytes.extend(&buf[..take]);
            left -= take;
        }
        let due = Instant::now() + self.link.latency.get();
        match self.arrivals.back_mut() {
            // What was sent later does not arrive earlier.
            Some((at, earlier)) if *at >= due => *earlier += n,
            _ => self.arrivals.push_back((due, n)),
        }
    }

    fn take(&mut self, n: usize, buf: &mut ReadBuf<'_>) {
        let (front, back) = self.bytes.as_slices();
        let first = front.len().min(n);
        buf.put_slice(&front[..first]);
        buf.put_slice(&back[..n - first]);
        self.bytes.drain(..n);
        let mut left = n;
        while left > 0 {
            let (at, arrived) = self.arrivals.pop_front().expect("each byte has its time of arrival");
            if arrived > left {
                self.arrivals.push_front((at, arrived - left));
            }
            left = left.saturating_sub(arrived);
        }
    }

    fn discard(&mut self) {
        self.bytes.clear();
        self.arrivals.clear();
    }

    fn finish(&mut self, end: End) {
        if self.end.is_some_and(|(_, before)| before == End::Reset || before == end) {
            return;
        }
        // A reset may overtake what was not read yet.
        if end == End::Reset && self.link.chance.below(2) == 0 {
            self.discard();
        }
        self.end = Some((Instant::now() + self.link.latency.get(), end));
        self.wake();
    }
}

/// One end of a connection in memory. Boxed, so that it does not make a socket larger than TCP does.
#[derive(Debug)]
pub struct MemorySocket(Box<Inner>);

#[derive(Debug)]
struct Inner {
    read: Rc<RefCell<Pipe>>,
    write: Rc<RefCell<Pipe>>,
    /// Wakes the reader when what is under way arrives.
    alarm: RefCell<Option<Pin<Box<Sleep>>>>,
    reset_on_drop: Cell<bool>,
    cut: Cell<bool>,
    peer: SocketAddr,
    original_destination: Option<SocketAddr>,
}

/// Two connected ends: one that sees `a` as its peer, and one that sees `b`.
pub fn pair(a: SocketAddr, b: SocketAddr) -> (MemorySocket, MemorySocket) {
    Link::new(Shape::default(), Chance::new(1)).connect(a, b)
}

impl MemorySocket {
    fn new(read: Rc<RefCell<Pipe>>, write: Rc<RefCell<Pipe>>, peer: SocketAddr) -> Self {
        let (alarm, reset_on_drop, cut) = (RefCell::default(), Cell::default(), Cell::default());
        Self(Box::new(Inner { read, write, alarm, reset_on_drop, cut, peer, original_destination: None }))
    }

    pub(super) fn redirected_from(mut self, original: Option<SocketAddr>) -> Self {
        self.0.original_destination = original;
        self
    }

    pub(super) fn peer(&self) -> SocketAddr {
        self.0.peer
    }

    pub(super) fn original_destination(&self) -> Option<SocketAddr> {
        self.0.original_destination
    }

    fn poll_found(&self, cx: &mut Context<'_>) -> Poll<Found> {
        let mut now = Instant::now();
        loop {
            let mut pipe = self.0.read.borrow_mut();
            let due = match pipe.look(now) {
                Ok(found) => return Poll::Ready(found),
                Err(due) => due,
            };
            pipe.reader = Some(cx.waker().clone());
            drop(pipe);
            let Some(due) = due else { return Poll::Pending };
            let mut slot = self.0.alarm.borrow_mut();
            let alarm = slot.get_or_insert_with(|| Box::pin(sleep_until(due)));
            if alarm.deadline() != due {
                alarm.as_mut().reset(due);
            }
            ready!(alarm.as_mut().poll(cx));
            now = due.max(Instant::now());
        }
    }

    pub(super) fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_found(cx).map(|_| Ok(()))
    }

    pub(super) fn poll_read(&self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let found = ready!(self.poll_found(cx));
        let mut pipe = self.0.read.borrow_mut();
        match found {
            Found::Bytes(n) => {
                let n = pipe.link.portion(n.min(buf.remaining()));
                pipe.take(n, buf);
                pipe.wake();
            }
            Found::End(End::Fin) => {}
            Found::End(End::Reset) => return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
        }
        Poll::Ready(Ok(()))
    }

    pub(super) fn poll_write_vectored(&self, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let mut pipe = self.0.write.borrow_mut();
        if pipe.end.is_some() || pipe.abandoned {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let offered: usize = bufs.iter().map(|buf| buf.len()).sum();
        let room = pipe.link.shape.capacity.saturating_sub(pipe.bytes.len());
        if room == 0 && offered > 0 {
            pipe.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let n = pipe.link.portion(offered.min(room));
        if n > 0 {
            pipe.put(bufs, n);
            pipe.wake();
        }
        Poll::Ready(Ok(n))
    }

    pub(super) fn shutdown(&self) {
        self.0.write.borrow_mut().finish(End::Fin);
    }

    pub(super) fn is_cut(&self) -> bool {
        self.0.cut.get()
    }

    pub(super) fn cut(&self) {
        self.0.cut.set(true);
        self.0.read.borrow_mut().finish(End::Reset);
        self.0.write.borrow_mut().finish(End::Reset);
    }

    pub(super) fn reset_on_drop(&self) {
        self.0.reset_on_drop.set(true);
    }
}

impl Drop for MemorySocket {
    fn drop(&mut self) {
        let mut read = self.0.read.borrow_mut();
        // As TCP does: bytes that nobody is going to read are answered with a reset.
        let end = if self.0.reset_on_drop.get() || !read.bytes.is_empty() { End::Reset } else { End::Fin };
        read.abandoned = true;
        read.discard();
        read.wake();
        drop(read);
        self.0.write.borrow_mut().finish(end);
    }
}
