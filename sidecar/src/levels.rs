//! What the sidecar logs of single requests, kept to what can be read. What it logs at all, and who changes that: `weft_log`.

use std::cell::Cell;
use std::time::Duration;

use tokio::time::Instant;
pub use weft_log::Levels;

/// Lines of single requests and connections that a worker logs in a second: whoever calls how often, the log stays one that can be read.
const LINES: u32 = 20;
const SECOND: Duration = Duration::from_secs(1);

/// One worker's count of them.
#[derive(Debug, Default)]
pub struct LineLimit {
    /// When the second began that runs.
    began: Cell<Option<Instant>>,
    written: Cell<u32>,
    left_out: Cell<u64>,
}

impl LineLimit {
    /// Whether one more line may be logged; says how many were left out, once there may be.
    pub fn may(&self) -> bool {
        let now = Instant::now();
        if self.began.get().is_none_or(|began| now.duration_since(began) >= SECOND) {
            self.began.set(Some(now));
            self.written.set(0);
            let left_out = self.left_out.take();
            if left_out > 0 {
                tracing::info!(
                    left_out,
                    "there were too many requests to tell of each: all are in the metrics, and in the access log if there is one"
                );
            }
        }
        let may = self.written.get() < LINES;
        if may {
            self.written.set(self.written.get() + 1);
        } else {
            self.left_out.set(self.left_out.get() + 1);
        }
        may
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_worker_logs_so_many_lines_a_second() {
        let limit = LineLimit::default();
        let written = || (0..1_000).filter(|_| limit.may()).count();
        assert_eq!((written(), written()), (20, 0));
        tokio::time::advance(SECOND).await;
        assert_eq!((written(), limit.left_out.get()), (20, 980));
    }
}
