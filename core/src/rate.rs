//! How many requests a caller may send: the generic cell rate algorithm, a token bucket in one word.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

mod callers;
pub use callers::{Buckets, CALLERS, Caller};

/// What fills a bucket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rate {
    requests: u64,
    /// Nanoseconds.
    per: u64,
    /// One request is 2 to this of units of time: a unit is one to two nanoseconds, unless requests are further apart than 2 s.
    shift: u32,
    /// What a full bucket holds, in units.
    full: u64,
}

impl Rate {
    /// `requests` per `per`, of which `burst` may come at once; 0 counts as 1 for each. More than one per nanosecond is no limit. Beyond 584 years, `per` is that.
    pub fn new(requests: u32, per: Duration, burst: u32) -> Self {
        let requests = u64::from(requests.max(1));
        let per = u64::try_from(per.as_nanos()).unwrap_or(u64::MAX);
        let shift = (per / requests).checked_ilog2().unwrap_or(0).min(31);
        Self { requests, per, shift, full: u64::from(burst.max(1)) << shift }
    }

    fn is_no_limit(&self) -> bool {
        self.requests > self.per
    }

    const fn one(&self) -> u64 {
        1 << self.shift
    }

    /// `now` in units, rounded down. It is computed from the beginning of time each time, so that no error adds up. At most 2^63.
    fn units(&self, now: u64) -> u64 {
        let now = u128::from(now.min(i64::MAX.cast_unsigned()));
        (((now * u128::from(self.requests)) << self.shift) / u128::from(self.per)) as u64
    }

    /// The earliest time, in nanoseconds, that is `units`.
    fn nanoseconds(&self, units: u64) -> u64 {
        let time = (u128::from(units) * u128::from(self.per)).div_ceil(u128::from(self.requests) << self.shift);
        time.try_into().unwrap_or(u64::MAX)
    }
}

/// A bucket, full at first. Shared by all workers of a sidecar: it lets by exactly what its rate says, however many ask.
#[derive(Debug, Default)]
pub struct Bucket {
    /// When it is full again, in units of the rate ("theoretical arrival time").
    full_at: AtomicU64,
}

impl Bucket {
    /// A full bucket.
    pub const fn new() -> Self {
        Self { full_at: AtomicU64::new(0) }
    }

    /// Takes one request out. If there is none, says how long until there is. `now` is nanoseconds of any monotonic clock below 2^63; the rate must be
    /// the same in every call: a bucket that was used with another counts as empty or full.
    pub fn take(&self, now: u64, rate: &Rate) -> Result<(), Duration> {
        if rate.is_no_limit() {
            return Ok(());
        }
        // Below 2^63 each, so that nothing overflows.
        let (units, full, one) = (rate.units(now), rate.full, rate.one());
        let top = units + full;
        let mut full_at = self.full_at.load(Relaxed);
        loop {
            let next = full_at.max(units).saturating_add(one);
            if next <= top {
                match self.full_at.compare_exchange_weak(full_at, next, Relaxed, Relaxed) {
                    Ok(_) => return Ok(()),
                    Err(other) => full_at = other,
                }
                continue;
            }
            // Another worker's clock may be a little ahead, not by so much: it was used with another rate.
            let ahead = top.saturating_add(rate.units(1_000_000_000)).saturating_add(rate.units(rate.per));
            if full_at > ahead {
                // Whoever was first, it is no more than empty now.
                let _ = self.full_at.compare_exchange(full_at, top, Relaxed, Relaxed);
                full_at = top;
            }
            let need = full_at.max(units).saturating_add(one) - full;
            return Err(Duration::from_nanos(rate.nanoseconds(need).saturating_sub(now)));
        }
    }

    /// Whether it is full at `units` of time.
    fn is_full(&self, units: u64) -> bool {
        self.full_at.load(Relaxed) <= units
    }
}

#[cfg(test)]
mod tests;
