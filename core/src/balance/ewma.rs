//! How loaded an endpoint is: a moving average of its latency that feels peaks, times the queue.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// The load of one endpoint, shared by all workers of a sidecar. Every operation is a plain atomic; a race
/// between two workers loses at most one sample.
#[derive(Debug)]
pub struct PeakEwma {
    /// Moving average of latency in nanoseconds, as the bits of an `f64`; 0 until the first answer.
    average: AtomicU64,
    /// When it was last moved, in nanoseconds of the caller's clock.
    stamp: AtomicU64,
    in_flight: AtomicU32,
    /// Failures in a row.
    failures: AtomicU32,
}

/// The time in which a sample loses about two thirds of its weight.
pub const DECAY: Duration = Duration::from_secs(10);
/// No endpoint counts as faster than this: one that has not answered yet is tried soon, and so is one that was not used for long, but
/// neither looks free however much it has in flight.
const FLOOR: Duration = Duration::from_micros(100);
/// What a failure counts as, so that an endpoint that fails fast does not look fast.
const FAILURE_PENALTY: Duration = Duration::from_secs(5);

impl PeakEwma {
    /// A fresh endpoint. `now` is nanoseconds of any monotonic clock, the same in every call.
    pub fn new(now: u64) -> Self {
        Self { average: AtomicU64::new(0), stamp: AtomicU64::new(now), in_flight: AtomicU32::new(0), failures: AtomicU32::new(0) }
    }

    /// The expected cost of one more request: latency times the queue that it would join.
    pub fn load(&self, now: u64) -> f64 {
        self.decayed(now, 0.0).max(FLOOR.as_nanos() as f64) * (f64::from(self.in_flight.load(Relaxed)) + 1.0)
    }

    fn decayed(&self, now: u64, sample: f64) -> f64 {
        let average = f64::from_bits(self.average.load(Relaxed));
        let age = now.saturating_sub(self.stamp.load(Relaxed)) as f64;
        let weight = (-age / DECAY.as_nanos() as f64).exp();
        average * weight + sample * (1.0 - weight)
    }

    /// A request was sent.
    pub fn begin(&self) {
        self.in_flight.fetch_add(1, Relaxed);
    }

    /// A request that was begun is over, or was abandoned.
    pub fn end(&self) {
        self.in_flight.fetch_sub(1, Relaxed);
    }

    /// The endpoint began to answer after `latency`, or took a connection: what failed before is past.
    pub fn answer(&self, now: u64, latency: Duration) {
        self.failures.store(0, Relaxed);
        self.sample(now, latency.as_nanos() as f64);
    }

    /// A request that was begun failed by the endpoint's fault.
    pub fn fail(&self, now: u64) {
        self.in_flight.fetch_sub(1, Relaxed);
        self.failures.fetch_add(1, Relaxed);
        self.sample(now, FAILURE_PENALTY.as_nanos() as f64);
    }

    /// A peak moves the average at once, anything below it only slowly.
    fn sample(&self, now: u64, sample: f64) {
        let average = f64::from_bits(self.average.load(Relaxed));
        let next = if sample > average { sample } else { self.decayed(now, sample) };
        self.average.store(next.to_bits(), Relaxed);
        self.stamp.store(now, Relaxed);
    }

    /// Requests that were begun and have not ended.
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Relaxed)
    }

    /// Failures since the last success.
    pub fn failures(&self) -> u32 {
        self.failures.load(Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;
    #[test]
    fn a_peak_counts_at_once_and_fades() {
        let e = PeakEwma::new(0);
        e.answer(MS, Duration::from_secs(1));
        let peak = e.load(MS);
        assert!(peak >= 1e9);
        assert!(e.load(MS + 30_000 * MS) < peak / 10.0);
    }

    #[test]
    fn one_that_fails_fast_does_not_look_fast() {
        let (bad, good) = (PeakEwma::new(0), PeakEwma::new(0));
        for i in 1..5 {
            bad.begin();
            bad.fail(i * MS);
            good.answer(i * MS, Duration::from_millis(40));
        }
        assert!(bad.load(5 * MS) > 10.0 * good.load(5 * MS));
        assert_eq!(bad.failures(), 4);
        assert_eq!(bad.in_flight(), 0);
    }

    #[test]
    fn who_never_answered_is_tried_soon_and_nothing_looks_free() {
        let (used, fresh) = (PeakEwma::new(0), PeakEwma::new(0));
        used.answer(MS, Duration::from_millis(2));
        assert!(fresh.load(MS) < used.load(MS));
        fresh.answer(MS, Duration::from_millis(3));
        assert!(fresh.load(MS) > used.load(MS));
        // An hour later its queue still counts.
        let hour = 3_600_000 * MS;
        let idle = used.load(hour);
        used.begin();
        assert!(used.load(hour) > 1.9 * idle && idle > 0.0);
    }
}
