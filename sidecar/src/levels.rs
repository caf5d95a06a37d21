//! What the sidecar logs, changed while it runs.

use std::cell::Cell;
use std::time::Duration;

use tokio::time::Instant;
use tracing_subscriber::{EnvFilter, Registry, reload};

use crate::outlet::Outlet;

/// The filter in force. It is back to what `--log` says when the sidecar starts anew.
pub struct Levels(Option<reload::Handle<EnvFilter, Registry>>, Option<Outlet>);

/// The longest filter that is taken, in bytes.
const LONGEST: usize = 1_024;

impl Levels {
    /// Of a log that is written to `outlet`.
    pub fn new(handle: reload::Handle<EnvFilter, Registry>, outlet: Option<Outlet>) -> Self {
        Self(Some(handle), outlet)
    }

    /// Lines that nobody took in time.
    pub fn lost(&self) -> u64 {
        self.1.as_ref().map_or(0, Outlet::dropped)
    }

    /// Where somebody else decides what is logged, as in tests.
    pub fn fixed() -> Self {
        Self(None, None)
    }

    /// The filter in force.
    pub fn now(&self) -> Option<String> {
        self.0.as_ref()?.with_current(ToString::to_string).ok()
    }

    /// Puts another filter in force: a level, or `TARGET=LEVEL,…` as in `info,weft_sidecar::discovery=debug`. An error says what is wrong with it.
    pub fn set(&self, filter: &str) -> Result<(), String> {
        let wrong = |why: &str| Err(format!("{filter:?} is no filter: {why}: write info, or info,weft_sidecar::discovery=debug"));
        if filter.is_empty() || filter.len() > LONGEST {
            return wrong("it is empty or too long");
        }
        let parsed = match EnvFilter::try_new(filter) {
            Ok(parsed) => parsed,
            Err(e) => return wrong(&e.to_string()),
        };
        let Some(handle) = &self.0 else { return Err("what is logged is fixed here".to_owned()) };
        handle.reload(parsed).map_err(|e| e.to_string())
    }
}

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

    #[test]
    fn a_filter_takes_the_place_of_another_or_says_why_not() {
        let (_layer, handle) = reload::Layer::<_, Registry>::new(EnvFilter::new("info"));
        let levels = Levels::new(handle, None);
        assert!(levels.set("debug,h2=warn").is_ok());
        assert_eq!(levels.now().as_deref(), Some("h2=warn,debug"));
        for bad in ["", "a=b=c", &"x".repeat(LONGEST + 1)] {
            assert!(levels.set(bad).is_err(), "{bad}");
        }
        assert_eq!(levels.now().as_deref(), Some("h2=warn,debug"));
        assert!(Levels::fixed().set("info").is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_worker_logs_so_many_lines_a_second() {
        let limit = LineLimit::default();
        let written = || (0..1_000).filter(|_| limit.may()).count();
        assert_eq!((written(), written()), (20, 0));
        tokio::time::advance(SECOND).await;
        assert_eq!((written(), limit.left_out.get()), (20, 980));
    }
}
