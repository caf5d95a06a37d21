//! A time limit that is used again and again, as that of silence between requests: its timer stays where it is when what was waited for comes, and is moved when it goes off too
//! soon. A timer for each wait would be put in the runtime's wheel and taken out for each.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

/// See the module. It takes memory from the first wait on.
#[derive(Default)]
pub struct Alarm(Option<Pin<Box<Sleep>>>);

impl Alarm {
    /// What `work` comes to, unless it takes as long as `most`. The clock is looked at only where there is something to wait for.
    pub async fn unless<T>(&mut self, most: Duration, mut work: Pin<&mut impl Future<Output = T>>) -> Option<T> {
        let mut deadline = None;
        poll_fn(|cx| {
            if let Poll::Ready(done) = work.as_mut().poll(cx) {
                return Poll::Ready(Some(done));
            }
            let deadline = *deadline.get_or_insert_with(|| Instant::now() + most);
            let timer = self.0.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
            if timer.deadline() > deadline {
                timer.as_mut().reset(deadline);
            }
            while timer.as_mut().poll(cx).is_ready() {
                if timer.deadline() >= deadline {
                    return Poll::Ready(None);
                }
                timer.as_mut().reset(deadline);
            }
            Poll::Pending
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;
    use std::pin::pin;

    use tokio::time::sleep;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn it_goes_off_when_it_should_however_often_it_was_used() {
        let (began, mut alarm) = (Instant::now(), Alarm::default());
        for _ in 0..5 {
            assert_eq!(alarm.unless(3 * SECOND, pin!(sleep(2 * SECOND))).await, Some(()), "in time");
        }
        assert_eq!(began.elapsed(), 10 * SECOND);
        assert_eq!(alarm.unless(3 * SECOND, pin!(pending::<()>())).await, None);
        assert_eq!(began.elapsed(), 13 * SECOND, "from when the wait began, not the timer");
        assert_eq!(alarm.unless(SECOND, pin!(pending::<()>())).await, None, "after it went off");
        assert_eq!(alarm.unless(9 * SECOND, pin!(sleep(SECOND))).await, Some(()));
        assert_eq!(alarm.unless(2 * SECOND, pin!(pending::<()>())).await, None, "a shorter limit than the timer's");
        assert_eq!(began.elapsed(), 17 * SECOND);
    }
}
