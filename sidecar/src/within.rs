//! Waiting, but not for ever.

use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Sleep, sleep};

/// What `poll` comes to within `most`, or else an error ([`io::ErrorKind::TimedOut`]). The clock is looked at only where there is something to wait for: most
/// writes are done at once.
pub(crate) async fn within<T>(most: Duration, mut poll: impl FnMut(&mut Context<'_>) -> Poll<T>) -> io::Result<T> {
    let mut clock = pin!(None::<Sleep>);
    poll_fn(|cx| {
        if let Poll::Ready(done) = poll(cx) {
            return Poll::Ready(Ok(done));
        }
        if clock.is_none() {
            clock.set(Some(sleep(most)));
        }
        let ended = clock.as_mut().as_pin_mut().map_or(Poll::Pending, |clock| clock.poll(cx));
        ended.map(|()| Err(io::ErrorKind::TimedOut.into()))
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_clock_runs_from_the_first_wait_on() {
        assert_eq!(within(Duration::ZERO, |_| Poll::Ready(1)).await.expect("it is ready"), 1);
        let began = tokio::time::Instant::now();
        let error = within(Duration::from_secs(3), |_| Poll::<()>::Pending).await.expect_err("it is never");
        assert_eq!((error.kind(), began.elapsed().as_secs()), (io::ErrorKind::TimedOut, 3));
        let mut other = pin!(sleep(Duration::from_secs(1)));
        within(Duration::from_secs(2), |cx| other.as_mut().poll(cx)).await.expect("it is in time");
    }
}
