//! Bytes both ways: half-close kept, truncation kept a truncation, bounded memory whatever the peers do.

use std::future::poll_fn;
use std::io;
use std::task::Poll;
use std::time::Duration;

use tokio::io::ReadBuf;
use weft_core::failure::{Failure, Reason, Side};

use crate::placed::placed;
use crate::pool::Buffers;
use crate::stream::{Chunks, Stream};
use crate::within::within;

/// Which end failed, and how.
#[derive(Debug)]
pub struct Broken {
    pub side: Side,
    pub error: io::Error,
}

impl Broken {
    /// What is told of it. `is_cut`: weft itself cut an end, which then failed.
    pub fn failure(&self, is_cut: bool) -> Failure {
        // The kernel's own timeouts, which have a number, are of a peer that is gone.
        let took_nothing = self.error.kind() == io::ErrorKind::TimedOut && self.error.raw_os_error().is_none();
        if is_cut {
            let why = "the connection was cut: whom it rests on is not believed any more, or may not be called";
            return Failure::mesh(Reason::Denied).detail(why);
        }
        let (reason, why) = match self.side {
            Side::Downstream if took_nothing => (Reason::DownstreamGone, "it takes no bytes".to_owned()),
            Side::Downstream => (Reason::DownstreamGone, self.error.to_string()),
            _ if took_nothing => (Reason::UpstreamTimeout, "it takes no bytes".to_owned()),
            _ => (Reason::UpstreamReset, self.error.to_string()),
        };
        Failure { side: self.side, ..Failure::mesh(reason).detail(why) }
    }
}

/// Relays between a caller (`a`) and an endpoint (`b`) until both halves have ended or one side fails; a failure resets the other side (Invariant 7). `sent` and `received`
/// are told of bytes from `a` to `b` and back.
pub async fn relay(
    a: &Stream,
    b: &Stream,
    buffers: &Buffers,
    stall: Duration,
    sent: impl Fn(u64),
    received: impl Fn(u64),
) -> Result<(), Broken> {
    let outcome = {
        let ends = [(a, Side::Downstream), (b, Side::Upstream)];
        let mut there = std::pin::pin!(copy(ends[0], ends[1], buffers, stall, &sent));
        let mut back = std::pin::pin!(copy(ends[1], ends[0], buffers, stall, &received));
        let (mut there_done, mut back_done) = (false, false);
        poll_fn(|cx| {
            if !there_done && let Poll::Ready(r) = there.as_mut().poll(cx) {
                r?;
                there_done = true;
            }
            if !back_done && let Poll::Ready(r) = back.as_mut().poll(cx) {
                r?;
                back_done = true;
            }
            if there_done && back_done { Poll::Ready(Ok(())) } else { Poll::Pending }
        })
        .await
    };
    if outcome.is_err() {
        a.reset();
        b.reset();
    }
    outcome
}

/// Passes on what came on a stream of a link, as it lies; true at its end.
async fn pass_on(
    (from, reads): (&Stream, Side),
    (to, writes): (&Stream, Side),
    stall: Duration,
    count: &impl Fn(u64),
) -> Result<bool, Broken> {
    let of = |side| move |error: io::Error| Broken { side, error };
    loop {
        let mut chunks = Chunks::new();
        match poll_fn(|cx| Poll::Ready(from.chunks(cx, &mut chunks))).await {
            None => return Ok(false),
            Some(gathered) => gathered.map_err(of(reads))?,
        }
        if chunks.is_empty() {
            return Ok(from.is_finished());
        }
        let octets = chunks.iter().map(|chunk| chunk.len() as u64).sum();
        to.write_chunks(&mut chunks, stall).await.map_err(of(writes))?;
        count(octets);
    }
}

/// Reads what is there into what a link is about to send; true at its end.
async fn fill(
    (from, reads): (&Stream, Side),
    (to, writes): (&Stream, Side),
    stall: Duration,
    count: &impl Fn(u64),
) -> Result<bool, Broken> {
    let of = |side| move |error: io::Error| Broken { side, error };
    loop {
        // Who has nothing to say does not stand in anybody's way, and nobody's clock runs for it.
        match poll_fn(|cx| Poll::Ready(from.poll_readable(cx))).await {
            Poll::Pending => return Ok(false),
            Poll::Ready(readable) => readable.map_err(of(reads))?,
        }
        let filled = within(stall, |cx| to.poll_fill(from, cx)).await;
        match filled.flatten().map_err(of(writes))?.transpose().map_err(of(reads))? {
            None => return Ok(false),
            Some(0) => return Ok(true),
            Some(n) => count(n as u64),
        }
    }
}

/// Passes bytes on in one direction until its end.
async fn copy(
    (from, reads): (&Stream, Side),
    (to, writes): (&Stream, Side),
    buffers: &Buffers,
    stall: Duration,
    count: &impl Fn(u64),
) -> Result<(), Broken> {
    loop {
        // No buffer is held while there is nothing to read, nor the room that it takes to move bytes: most connections are silent most of the time.
        from.readable().await.map_err(|error| Broken { side: reads, error })?;
        if placed(|| passes((from, reads), (to, writes), buffers, stall, count)).await? {
            return Ok(());
        }
    }
}

/// Passes on what is there; true once it has ended, and the other end was told so.
async fn passes(
    (from, reads): (&Stream, Side),
    (to, writes): (&Stream, Side),
    buffers: &Buffers,
    stall: Duration,
    count: &impl Fn(u64),
) -> Result<bool, Broken> {
    let of = |side| move |error: io::Error| Broken { side, error };
    let is_over = if from.is_linked() && pass_on((from, reads), (to, writes), stall, count).await? {
        true
    } else if to.is_linked() && !from.is_linked() {
        fill((from, reads), (to, writes), stall, count).await?
    } else {
        let mut buffer = buffers.take();
        loop {
            let read = poll_fn(|cx| {
                let mut read = ReadBuf::new(&mut buffer);
                Poll::Ready(match from.poll_read(cx, &mut read) {
                    Poll::Pending => None,
                    Poll::Ready(r) => Some(r.map(|()| read.filled().len())),
                })
            });
            match read.await.transpose().map_err(of(reads))? {
                None => break false,
                Some(0) => break true,
                Some(n) => {
                    to.write_all(&buffer[..n], stall).await.map_err(of(writes))?;
                    count(n as u64);
                }
            }
        }
    };
    if is_over {
        tokio::time::timeout(stall, to.shutdown()).await.map_err(io::Error::from).flatten().map_err(of(writes))?;
    }
    Ok(is_over)
}
