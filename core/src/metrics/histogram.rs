//! Durations in two histograms at once: classic buckets, whose bounds people write into rules, and exponential ones, of which OTLP and Prometheus'
//! native histograms are made.
//!
//! Exponential buckets have the schema (OTLP: scale) 3: eight to each power of two, so that a quantile is at most 4.4 % off. What is shorter than
//! [`ZERO`] counts as zero, what is longer than the last bucket goes into the last one; the sum stays exact.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Upper bounds of the classic buckets, in seconds. Those from 5 ms to 10 s are the ones that the semantic conventions advise for durations; a mesh
/// is asked about shorter ones, and about time-outs.
pub const BOUNDS: [f64; 19] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 30.0, 60.0];

/// Classic buckets, the one without a bound included.
pub const CLASSIC: usize = BOUNDS.len() + 1;

/// Eight buckets to each power of two: the bounds are powers of 2^(1/8).
pub const SCHEMA: i32 = 3;

/// Up to this, in seconds, a value counts as zero: 2^-14, 61 µs.
pub const ZERO: f64 = 1.0 / 16_384.0;

/// The index of the first exponential bucket, as Prometheus counts: bucket i ends at 2^(i/8), which belongs to it.
pub const FIRST: i32 = -14 * 8 + 1;

/// Exponential buckets: the last one ends at 1,024 s.
pub const SLOTS: usize = 24 * 8;

/// Bounds within one power of two: 2^(i/8 - 1).
const FRACTIONS: [f64; 8] = [
    0.5,
    0.545_253_866_332_628_8,
    0.594_603_557_501_360_5,
    0.648_419_777_325_504_8,
    std::f64::consts::FRAC_1_SQRT_2,
    0.771_105_412_703_970_4,
    0.840_896_415_253_714_6,
    0.917_004_043_204_671_2,
];

/// The exponential bucket of a value in seconds, by its place from [`FIRST`]; none for what counts as zero.
fn slot(seconds: f64) -> Option<usize> {
    if seconds.is_nan() || seconds <= ZERO {
        return None;
    }
    let bits = seconds.to_bits();
    // In [0.5, 1), with the exponent that belongs to it. Nothing here is subnormal.
    let fraction = f64::from_bits(bits & !(0x7ff << 52) | 1022 << 52);
    let exponent = (bits >> 52) as i32 - 1022;
    let within = FRACTIONS.iter().filter(|bound| **bound < fraction).count() as i32;
    let index = within + (exponent - 1) * 8 - FIRST;
    Some(usize::try_from(index).unwrap_or(0).min(SLOTS - 1))
}

/// The classic bucket of a value in seconds.
fn classic(seconds: f64) -> usize {
    BOUNDS.partition_point(|bound| *bound < seconds)
}

/// The classic bucket of a duration, by its place.
pub fn bucket_of(took: Duration) -> usize {
    classic(took.as_secs_f64())
}

/// A histogram that is written by one thread, or by several, and read by another.
#[derive(Debug)]
pub struct Recorder {
    zero: AtomicU64,
    slots: [AtomicU64; SLOTS],
    classic: [AtomicU64; CLASSIC],
    nanos: AtomicU64,
}

impl Default for Recorder {
    fn default() -> Self {
        Self {
            zero: AtomicU64::new(0),
            slots: [const { AtomicU64::new(0) }; SLOTS],
            classic: [const { AtomicU64::new(0) }; CLASSIC],
            nanos: AtomicU64::new(0),
        }
    }
}

/// Adds where there is one writer: a load and a store, not a locked instruction.
pub fn add(slot: &AtomicU64, n: u64) {
    slot.store(slot.load(Relaxed).wrapping_add(n), Relaxed);
}

impl Recorder {
    fn record_by(&self, took: Duration, add: impl Fn(&AtomicU64, u64)) {
        let seconds = took.as_secs_f64();
        add(slot(seconds).map_or(&self.zero, |i| &self.slots[i]), 1);
        add(&self.classic[classic(seconds)], 1);
        add(&self.nanos, took.as_nanos() as u64);
    }

    /// Records a duration. No other thread may record at the same time: what it counts could be lost.
    pub fn record_alone(&self, took: Duration) {
        self.record_by(took, add);
    }

    /// Records a duration, whoever else records.
    pub fn record(&self, took: Duration) {
        self.record_by(took, |slot, n| {
            slot.fetch_add(n, Relaxed);
        });
    }

    /// What was recorded so far.
    pub fn read(&self) -> Reading {
        let get = |slot: &AtomicU64| slot.load(Relaxed);
        Reading {
            zero: get(&self.zero),
            slots: self.slots.each_ref().map(get),
            classic: self.classic.each_ref().map(get),
            nanos: get(&self.nanos),
        }
    }
}

/// What a histogram held at a time. Buckets are not cumulative.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Reading {
    /// Values of at most [`ZERO`].
    pub zero: u64,
    /// Exponential buckets, from [`FIRST`].
    pub slots: [u64; SLOTS],
    /// Classic buckets, by [`BOUNDS`], then the rest.
    pub classic: [u64; CLASSIC],
    /// The sum of all values, in nanoseconds.
    pub nanos: u64,
}

impl Default for Reading {
    fn default() -> Self {
        Self { zero: 0, slots: [0; SLOTS], classic: [0; CLASSIC], nanos: 0 }
    }
}

impl Reading {
    /// How many values there are.
    pub fn count(&self) -> u64 {
        self.classic.iter().sum()
    }

    /// How many values there are by the exponential buckets: a reading while somebody records may have one more or less than [`Self::count`].
    pub fn exponential_count(&self) -> u64 {
        self.zero + self.slots.iter().sum::<u64>()
    }

    /// The sum of all values, in seconds.
    pub fn sum(&self) -> f64 {
        self.nanos as f64 / 1e9
    }

    /// Adds what another one holds.
    pub fn merge(&mut self, other: &Self) {
        self.zero += other.zero;
        self.nanos = self.nanos.wrapping_add(other.nanos);
        for (sum, n) in self.slots.iter_mut().zip(&other.slots) {
            *sum += n;
        }
        for (sum, n) in self.classic.iter_mut().zip(&other.classic) {
            *sum += n;
        }
    }

    /// What came since an earlier reading of the same histogram.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        let less = |now: u64, then: u64| now.saturating_sub(then);
        Self {
            zero: less(self.zero, before.zero),
            slots: std::array::from_fn(|i| less(self.slots[i], before.slots[i])),
            classic: std::array::from_fn(|i| less(self.classic[i], before.classic[i])),
            nanos: less(self.nanos, before.nanos),
        }
    }

    /// The value, in seconds, that a share `q` (0 to 1) of all values does not exceed: the upper bound of its exponential bucket. 0 without values.
    pub fn quantile(&self, q: f64) -> f64 {
        let rank = (self.exponential_count() as f64 * q).ceil() as u64;
        if rank == 0 {
            return 0.0;
        }
        let mut sum = self.zero;
        if sum >= rank {
            return ZERO;
        }
        for (i, n) in self.slots.iter().enumerate() {
            sum += n;
            if sum >= rank {
                return bound(FIRST + i as i32);
            }
        }
        bound(FIRST + SLOTS as i32 - 1)
    }
}

/// Where the exponential bucket of an index ends, in seconds.
pub fn bound(index: i32) -> f64 {
    2f64.powf(f64::from(index) / 8.0)
}

/// Runs of buckets that are not empty: the index of the first, as Prometheus counts, and their counts. Runs that stand close together are one.
pub fn spans(slots: &[u64]) -> Vec<(i32, &[u64])> {
    /// Empty buckets that cost less than a new run.
    const GAP: usize = 2;
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for (i, _) in slots.iter().enumerate().filter(|(_, n)| **n > 0) {
        match runs.last_mut() {
            Some((_, end)) if i - *end <= GAP => *end = i + 1,
            _ => runs.push((i, i + 1)),
        }
    }
    runs.into_iter().map(|(from, to)| (FIRST + from as i32, &slots[from..to])).collect()
}

/// The value that a share `q` (0 to 1) stays below, of buckets by their upper bounds in order, the last of which may have none: evenly within a bucket, as Prometheus'
/// `histogram_quantile`; of what has no bound, the last bound. None where nothing was counted.
pub fn quantile(q: f64, buckets: impl Iterator<Item = (Option<f64>, u64)> + Clone) -> Option<f64> {
    let all: u64 = buckets.clone().map(|(_, n)| n).sum();
    if all == 0 {
        return None;
    }
    let (rank, mut seen, mut low) = (all as f64 * q, 0.0, 0.0);
    for (high, n) in buckets {
        let (Some(high), here) = (high, n as f64) else { break };
        if here > 0.0 && seen + here >= rank {
            return Some(low + (high - low) * ((rank - seen) / here).clamp(0.0, 1.0));
        }
        seen += here;
        low = high;
    }
    Some(low)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_goes_where_both_histograms_say() {
        for (seconds, index) in [
            (1.0, 0),
            (1.000_001, 1),
            (0.5, -8),
            (2.0, 8),
            (1.090_507_732_665_257_5, 1),
            (1.090_6, 2),
            (0.001, (0.001f64.log2() * 8.0).ceil() as i32),
        ] {
            assert_eq!(slot(seconds), Some(usize::try_from(index - FIRST).expect("in range")), "{seconds}");
            assert!(seconds <= bound(index) * 1.000_000_001 && seconds > bound(index - 1), "{seconds}");
        }
        assert_eq!((slot(ZERO), slot(0.0), slot(f64::NAN)), (None, None, None));
        assert_eq!((slot(ZERO * 1.000_001), slot(1e9)), (Some(0), Some(SLOTS - 1)));
        assert_eq!((classic(0.0005), classic(0.000_51), classic(60.0), classic(61.0)), (0, 1, 18, 19));
    }

    #[test]
    fn quantiles_are_close_and_spans_hold_everything() {
        let recorder = Recorder::default();
        for ms in 1..=1000 {
            recorder.record_alone(Duration::from_millis(ms));
        }
        recorder.record(Duration::ZERO);
        let reading = recorder.read();
        assert_eq!((reading.count(), reading.exponential_count(), reading.zero), (1001, 1001, 1));
        assert!((reading.sum() - 500.5).abs() < 1e-6);
        for q in [0.5, 0.9, 0.99] {
            let value = reading.quantile(q);
            assert!(value >= q && value <= q * 1.0906, "{q}: {value}");
        }
        let spans = spans(&reading.slots);
        let held: u64 = spans.iter().flat_map(|(_, counts)| counts.iter()).sum();
        assert_eq!((spans[0].0, held), ((0.001f64.log2() * 8.0).ceil() as i32, 1000));
        let mut twice = reading.clone();
        twice.merge(&reading);
        assert_eq!((twice.count(), twice.since(&reading)), (2002, reading));
        assert_eq!(Reading::default().quantile(0.5).to_bits(), 0);
    }
}
