//! Which endpoint gets the next request: power of two choices over peak-sensitive moving averages.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// The load of one endpoint, shared by all workers of a sidecar. Every operation is a plain atomic; a race
/// between two workers loses at most one sample.
#[derive(Debug)]
pub struct PeakEwma {
    /// Moving average of latency in nanoseconds, as the bits of an `f64`.
    average: AtomicU64,
    /// When it was last moved, in nanoseconds of the caller's clock.
    stamp: AtomicU64,
    in_flight: AtomicU32,
    /// Failures in a row.
    failures: AtomicU32,
}

/// Assumed latency of an endpoint that has never answered.
pub const DEFAULT_RTT: Duration = Duration::from_millis(30);
/// The time in which a sample loses about two thirds of its weight.
pub const DECAY: Duration = Duration::from_secs(10);
/// What a failure counts as, so that an endpoint that fails fast does not look fast.
const FAILURE_PENALTY: Duration = Duration::from_secs(5);

impl PeakEwma {
    /// A fresh endpoint. `now` is nanoseconds of any monotonic clock, the same in every call.
    pub fn new(now: u64) -> Self {
        Self {
            average: AtomicU64::new((DEFAULT_RTT.as_nanos() as f64).to_bits()),
            stamp: AtomicU64::new(now),
            in_flight: AtomicU32::new(0),
            failures: AtomicU32::new(0),
        }
    }

    /// The expected cost of one more request: latency times the queue that it would join.
    pub fn load(&self, now: u64) -> f64 {
        self.decayed(now, 0.0) * (f64::from(self.in_flight.load(Relaxed)) + 1.0)
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

    /// A request that was begun was abandoned without an outcome.
    pub fn cancel(&self) {
        self.in_flight.fetch_sub(1, Relaxed);
    }

    /// A request that was begun got its answer after `latency`.
    pub fn succeed(&self, now: u64, latency: Duration) {
        self.in_flight.fetch_sub(1, Relaxed);
        self.failures.store(0, Relaxed);
        self.sample(now, latency.as_nanos() as f64);
    }

    /// It accepted a connection: what failed before is past.
    pub fn recover(&self) {
        self.failures.store(0, Relaxed);
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

/// Draws two of `candidates` with `random` and returns the position of the one with less load; none if there is none.
/// With one candidate there is nothing to draw.
pub fn pick_p2c<T>(candidates: &[T], random: u64, load: impl Fn(&T) -> f64) -> Option<usize> {
    match candidates.len() {
        0 => None,
        1 => Some(0),
        n => {
            let n = n as u64;
            let first = (random >> 32) % n;
            // The second is drawn from the others, so that it is never the first again.
            let second = (first + 1 + (random & 0xffff_ffff) % (n - 1)) % n;
            let (a, b) = (first as usize, second as usize);
            Some(if load(&candidates[b]) < load(&candidates[a]) { b } else { a })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn a_peak_counts_at_once_and_fades() {
        let e = PeakEwma::new(0);
        e.begin();
        e.succeed(MS, Duration::from_secs(1));
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
            good.begin();
            good.succeed(i * MS, Duration::from_millis(40));
        }
        assert!(bad.load(5 * MS) > 10.0 * good.load(5 * MS));
        assert_eq!(bad.failures(), 4);
        assert_eq!(bad.in_flight(), 0);
    }

    #[test]
    fn the_idle_one_of_two_is_taken() {
        let ends = [PeakEwma::new(0), PeakEwma::new(0)];
        ends[0].begin();
        for r in [0, 7, u64::MAX, 0x0123_4567_89ab_cdef] {
            assert_eq!(pick_p2c(&ends, r, |e| e.load(1)), Some(1));
        }
    }

    proptest! {
        #[test]
        fn the_choice_is_in_range_and_never_the_worst_of_all(loads in proptest::collection::vec(0.0f64..1e9, 0..50), r in any::<u64>()) {
            match pick_p2c(&loads, r, |l| *l) {
                None => prop_assert!(loads.is_empty()),
                Some(i) => {
                    prop_assert!(i < loads.len());
                    let worst = loads.iter().copied().fold(f64::MIN, f64::max);
                    let worst_count = loads.iter().filter(|l| **l >= worst).count();
                    prop_assert!(loads.len() == 1 || worst_count > 1 || loads[i] < worst);
                }
            }
        }
    }
}
