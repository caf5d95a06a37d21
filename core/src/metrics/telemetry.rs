//! What became of the telemetry itself, by the names that OpenTelemetry has for its own SDKs.

use super::table::{self, Metric};
use super::{Family, Labels};

/// What became of one signal's items.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Fate {
    /// A collector took them.
    pub exported: u64,
    /// There was no room in the queue.
    pub overflowed: u64,
    /// Nobody took them in time.
    pub failed: u64,
    /// The collector took the batch and not them.
    pub rejected: u64,
    /// Items that wait.
    pub waiting: u64,
}

impl Fate {
    /// As series: those that were handed to the exporter, where there is a queue before it, and those whose export has ended. A signal that is not in
    /// use has none.
    pub fn families(self, processed: Option<&'static Metric>, exported: &'static Metric) -> Vec<Family> {
        let mut all = Vec::new();
        let told = |family: &mut Family, error: &'static str, n: u64| {
            if n > 0 {
                family.counts(Labels::new().and(table::ERROR, error), n);
            }
        };
        if let Some(metric) = processed {
            let mut family = Family::new(metric);
            told(&mut family, "", self.exported + self.failed + self.rejected + self.waiting);
            told(&mut family, "queue_full", self.overflowed);
            all.push(family);
        }
        let mut family = Family::new(exported);
        for (error, n) in [("", self.exported), ("failed", self.failed), ("rejected", self.rejected)] {
            told(&mut family, error, n);
        }
        all.push(family);
        all
    }
}
