//! Bytes both ways: half-close kept, truncation kept a truncation, bounded memory whatever the peers do.

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::task::Poll;
use std::time::Duration;

use smallvec::SmallVec;
use tokio::io::ReadBuf;

use crate::pool::Buffers;
use crate::stream::{Chunks, Stream};

/// Relays until both halves have ended or one side fails; a failure resets the other side (Invariant 7). `sent` and `received`
/// are told of bytes from `a` to `b` and back.
pub async fn relay(
    a: &Stream,
    b: &Stream,
    buffers: &Buffers,
    stall: Duration,
    sent: impl Fn(u64),
    received: impl Fn(u64),
) -> io::Result<()> {
    let outcome = {
        let mut there = std::pin::pin!(copy(a, b, buffers, stall, &sent));
        let mut back = std::pin::pin!(copy(b, a, buffers, stall, &received));
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
            if there_done && back_done { Poll::Ready(io::Result::Ok(())) } else { Poll::Pending }
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
async fn pass_on(from: &Stream, to: &Stream, stall: Duration, count: &impl Fn(u64)) -> io::Result<bool> {
    loop {
        let mut chunks = Chunks::new();
        match poll_fn(|cx| Poll::Ready(from.chunks(cx, &mut chunks))).await {
            None => return Ok(false),
            Some(gathered) => gathered?,
        }
        if chunks.is_empty() {
            return Ok(from.is_finished());
        }
        let mut slices: SmallVec<[IoSlice<'_>; 8]> = chunks.iter().map(|chunk| IoSlice::new(chunk)).collect();
        to.write_all_vectored(&mut slices, stall).await?;
        count(chunks.iter().map(|chunk| chunk.len() as u64).sum());
    }
}

async fn copy(from: &Stream, to: &Stream, buffers: &Buffers, stall: Duration, count: &impl Fn(u64)) -> io::Result<()> {
    loop {
        // No buffer is held while there is nothing to read.
        from.readable().await?;
        if from.is_linked() && pass_on(from, to, stall, count).await? {
            return tokio::time::timeout(stall, to.shutdown()).await?;
        }
        let mut buffer = buffers.take();
        loop {
            let read = poll_fn(|cx| {
                let mut read = ReadBuf::new(&mut buffer);
                Poll::Ready(match from.poll_read(cx, &mut read) {
                    Poll::Pending => None,
                    Poll::Ready(r) => Some(r.map(|()| read.filled().len())),
                })
            });
            match read.await.transpose()? {
                None => break,
                Some(0) => {
                    return tokio::time::timeout(stall, to.shutdown()).await?;
                }
                Some(n) => {
                    to.write_all(&buffer[..n], stall).await?;
                    count(n as u64);
                }
            }
        }
    }
}
