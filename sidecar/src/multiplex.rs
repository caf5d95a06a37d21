//! What a link and an HTTP/2 connection have in common: many streams on one connection, each with its number; what came for one of them; what is to go out for all; and
//! who moves bytes between the two and the connection.

use std::cell::{Cell, RefCell, RefMut};
use std::collections::{HashMap, VecDeque};
use std::future::poll_fn;
use std::hash::{BuildHasherDefault, Hasher};
use std::io::{self, IoSlice};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::{Buf, BytesMut};

use crate::bell::Word;
use crate::stream::Stream;

mod outgoing;
mod presence;
mod turns;
mod window;

pub use outgoing::Outgoing;
use presence::Presence;
pub use turns::{CHOKED, FULL, LOW, QUANTUM, Turns, Written};
pub use window::{Extra, LARGEST, Window};

/// How long the other end may take to end its half of the connection after ours.
const LINGER: Duration = Duration::from_secs(5);
/// Reads in one turn, so that no connection keeps others from theirs.
const READS: usize = 4;
/// Streams that begin with one read, so that no connection keeps others from theirs.
const FRESH: usize = 64;
/// Bytes that may wait in the kernel before they are sent, between two sidecars: what a stream has to say waits behind those of others.
pub const UNSENT: u32 = 128 * 1024;
/// Pieces that are smaller, in bytes, are put together.
const SMALL: usize = 4 * 1024;

/// Streams by their numbers.
pub type Streams<T> = HashMap<u32, T, BuildHasherDefault<Own>>;

/// Stream numbers are their own hashes: whoever opens them counts.
#[derive(Default)]
pub struct Own(u64);

impl Hasher for Own {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, _: &[u8]) {
        unreachable!("the keys are u32")
    }
    fn write_u32(&mut self, n: u32) {
        // The table takes the upper bits for its tags.
        let mixed = u64::from(n).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = mixed ^ (mixed >> 32);
    }
}

/// Has `cx` woken from here.
pub fn note(place: &mut Option<Waker>, cx: &Context<'_>) {
    match place {
        Some(waker) => waker.clone_from(cx.waker()),
        none => *none = Some(cx.waker().clone()),
    }
}

/// Wakes whoever is to be woken from here.
pub fn wake(place: &mut Option<Waker>) {
    if let Some(waker) = place.take() {
        waker.wake();
    }
}

/// What came for a stream and was not read yet.
#[derive(Default)]
pub struct Pieces {
    queue: VecDeque<BytesMut>,
    octets: usize,
}

impl Pieces {
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Bytes that are there.
    pub fn octets(&self) -> usize {
        self.octets
    }

    pub fn push(&mut self, bytes: &[u8]) {
        self.octets += bytes.len();
        match self.queue.back_mut() {
            Some(last) if last.len() + bytes.len() <= SMALL => last.extend_from_slice(bytes),
            _ => self.queue.push_back(BytesMut::from(bytes)),
        }
    }

    /// The next piece, as it lies.
    pub fn pop(&mut self) -> Option<BytesMut> {
        let piece = self.queue.pop_front()?;
        self.took(piece.len());
        Some(piece)
    }

    /// Puts the next bytes into `space`; how many.
    pub fn read(&mut self, space: &mut [u8]) -> usize {
        let mut filled = 0;
        while filled < space.len()
            && let Some(front) = self.queue.front_mut()
        {
            let n = front.len().min(space.len() - filled);
            space[filled..filled + n].copy_from_slice(&front[..n]);
            filled += n;
            if n == front.len() {
                self.queue.pop_front();
            } else {
                front.advance(n);
            }
        }
        self.took(filled);
        filled
    }

    fn took(&mut self, n: usize) {
        self.octets -= n;
        if self.queue.is_empty() {
            self.queue.shrink_to(4);
        }
    }

    pub fn clear(&mut self) {
        *self = Self::default();
    }
}

/// One end of a protocol of many streams, without its connection.
pub trait Framing {
    /// Has the driver woken when there is something to send.
    fn register(&mut self, cx: &Context<'_>);
    /// What is to go out.
    fn outgoing(&self) -> &[u8];
    /// So much went out.
    fn sent(&mut self, n: usize);
    /// Whether nothing more is to be read for now: whoever asks and never listens is not answered without end.
    fn is_choked(&self) -> bool;
    /// Gives back the room that is not needed where no stream is open.
    fn rest(&mut self);
    /// Whether our half of the connection is to end now.
    fn is_over(&self) -> bool;
    /// Nothing is said any more.
    fn hush(&mut self);
    /// The connection has ended: whatever is under way breaks off.
    fn end(&mut self);
    /// Something came: every stream that began before may have been heard of.
    fn hear(&mut self);
    /// Whether a stream began of which the other end may not have heard.
    fn is_unsure(&self) -> bool;
    /// Breaks off the streams that began since something came last: the other end may never have heard of them.
    fn give_up_unsure(&mut self);
    /// Asks the other end to say something.
    fn ping(&mut self);
}

/// A protocol's end on its connection.
pub struct Mover<F> {
    framing: RefCell<F>,
    /// We have ended our half of the connection.
    ending: Word,
    /// Why nothing can be sent any more.
    deaf: RefCell<Option<io::Error>>,
    /// Nothing more comes; what is to go out goes.
    heard_all: Cell<bool>,
    /// Whether the other end is still there.
    presence: Presence,
}

impl<F: Framing> Mover<F> {
    /// One of whose other end it is asked whether it is there where it has said nothing for long; it may take so long to answer. None where it is never asked.
    pub fn new(framing: F, patience: Option<Duration>) -> Self {
        let (framing, presence) = (RefCell::new(framing), Presence::new(patience));
        Self { framing, ending: Word::default(), deaf: RefCell::new(None), heard_all: Cell::new(false), presence }
    }

    pub fn framing(&self) -> RefMut<'_, F> {
        self.framing.borrow_mut()
    }

    /// Moves bytes until the connection ends, properly or by an error; whatever is under way then is broken off. `take` is given what came, nothing at the end, and says how many streams
    /// began with it.
    pub async fn drive(&self, stream: &Stream, mut take: impl FnMut(&[u8]) -> io::Result<usize>) -> io::Result<()> {
        let _ends = Ends(self);
        tokio::select! {
            biased;
            ended = poll_fn(|cx| self.poll(stream, cx, &mut take)) => ended,
            () = self.lingers() => Ok(()),
            () = self.watch() => Ok(()),
        }
    }

    /// Resolves when the other end has had the time to end its half after ours: what we sent last is lost if it says something to a socket that is closed.
    async fn lingers(&self) {
        self.ending.heard().await;
        tokio::time::sleep(LINGER).await;
    }

    fn poll(
        &self,
        stream: &Stream,
        cx: &mut Context<'_>,
        take: &mut impl FnMut(&[u8]) -> io::Result<usize>,
    ) -> Poll<io::Result<()>> {
        self.framing().register(cx);
        // What came before nothing could be sent any more is read all the same.
        let sent = match self.poll_send(stream, cx) {
            Ok(sent) => sent,
            Err(e) => {
                self.deaf.borrow_mut().get_or_insert(e);
                Poll::Pending
            }
        };
        if self.heard_all.get() {
            return match self.deaf.borrow_mut().take() {
                Some(e) => Poll::Ready(Err(e)),
                None => sent.map(Ok),
            };
        }
        for _ in 0..READS {
            if self.framing().is_choked() && self.deaf.borrow().is_none() {
                // Woken when the socket takes more.
                return Poll::Pending;
            }
            let mut began = 0;
            let read = stream.poll_each(cx, |bytes| {
                if !bytes.is_empty() {
                    self.hear();
                }
                began += take(bytes)?;
                Ok(())
            });
            match read {
                Poll::Pending => {
                    return match self.deaf.borrow_mut().take() {
                        Some(e) => Poll::Ready(Err(e)),
                        None => self.poll_leave(stream, cx, sent),
                    };
                }
                Poll::Ready(Err(e)) => {
                    // What is said about it.
                    let _ = self.poll_send(stream, cx);
                    return Poll::Ready(Err(e));
                }
                Poll::Ready(Ok(false)) => {
                    if sent.is_ready() && self.framing().outgoing().is_empty() {
                        return Poll::Ready(Ok(()));
                    }
                    self.heard_all.set(true);
                    break;
                }
                Poll::Ready(Ok(true)) if began > FRESH => break,
                Poll::Ready(Ok(true)) => {}
            }
        }
        // There may be more; others first.
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Sends what is to go out, as far as the socket takes it.
    fn poll_send(&self, stream: &Stream, cx: &mut Context<'_>) -> io::Result<Poll<()>> {
        loop {
            let mut framing = self.framing();
            if framing.outgoing().is_empty() {
                break;
            }
            match stream.poll_write_vectored(cx, &[IoSlice::new(framing.outgoing())])? {
                Poll::Ready(n) => framing.sent(n),
                Poll::Pending => return Ok(Poll::Pending),
            }
        }
        Ok(stream.poll_flush(cx)?.map(|()| ()))
    }

    /// Ends our half of the connection where no streams are to come and none are left.
    fn poll_leave(&self, stream: &Stream, cx: &mut Context<'_>, sent: Poll<()>) -> Poll<io::Result<()>> {
        let mut framing = self.framing();
        framing.rest();
        // What was just read may have been answered.
        if framing.is_over() && framing.outgoing().is_empty() {
            ready!(sent);
            ready!(stream.poll_shutdown(cx))?;
            framing.hush();
            self.ending.say();
        }
        Poll::Pending
    }
}

/// Whatever becomes of the driver, streams do not outlive it.
struct Ends<'a, F: Framing>(&'a Mover<F>);

impl<F: Framing> Drop for Ends<'_, F> {
    fn drop(&mut self) {
        self.0.framing().end();
        self.0.presence.knows();
    }
}
