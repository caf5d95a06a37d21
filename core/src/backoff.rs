//! Exponential backoff with full jitter.

use std::time::Duration;

/// Doubles from `base` to `max`; each wait is drawn evenly from zero to the current ceiling, so that many
/// clients do not come back at once.
#[derive(Clone, Debug)]
pub struct Backoff {
    base: Duration,
    max: Duration,
    attempt: u32,
}

impl Backoff {
    /// A fresh backoff.
    pub const fn new(base: Duration, max: Duration) -> Self {
        Self { base, max, attempt: 0 }
    }

    /// The next wait. `random` is any uniformly distributed number.
    pub fn next_wait(&mut self, random: u64) -> Duration {
        let ceiling = doubled(self.base, self.attempt).min(self.max);
        self.attempt = self.attempt.saturating_add(1).min(31);
        ceiling.mul_f64(unit(random))
    }

    /// Starts over, after a success.
    pub fn reset(&mut self) {
        self.attempt = 0;
    }
}

/// `base`, doubled so many times; never overflows.
pub(crate) fn doubled(base: Duration, times: u32) -> Duration {
    base.saturating_mul(1_u32.checked_shl(times).unwrap_or(u32::MAX))
}

/// An even draw from 0 to below 1.
pub(crate) fn unit(random: u64) -> f64 {
    (random >> 11) as f64 / (1_u64 << 53) as f64
}

/// How long after issue a certificate is renewed: two thirds of its life, give or take ten per cent of that.
/// `random` is any uniformly distributed number.
pub fn renewal_delay(lifetime: Duration, random: u64) -> Duration {
    let spread = 0.9 + 0.2 * unit(random);
    lifetime.mul_f64(2.0 / 3.0 * spread)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn waits_stay_below_a_ceiling_that_doubles(randoms in proptest::collection::vec(any::<u64>(), 1..60)) {
            let (base, max) = (Duration::from_millis(25), Duration::from_secs(5));
            let mut b = Backoff::new(base, max);
            for (i, r) in randoms.iter().enumerate() {
                let ceiling = base.saturating_mul(2_u32.saturating_pow(i as u32)).min(max);
                let wait = b.next_wait(*r);
                prop_assert!(wait <= ceiling);
                // The whole way up to it, evenly: as far as the number is among all numbers.
                let even = ceiling.mul_f64(*r as f64 / u64::MAX as f64);
                prop_assert!(wait.abs_diff(even) < Duration::from_micros(1), "{wait:?} of {ceiling:?}");
            }
        }

        #[test]
        fn renewal_is_at_two_thirds_give_or_take_a_tenth(r in any::<u64>()) {
            let d = renewal_delay(Duration::from_secs(24 * 3600), r).as_secs_f64() / (16.0 * 3600.0);
            prop_assert!((0.9..=1.1).contains(&d));
        }
    }

    #[test]
    fn jitter_reaches_both_ends() {
        let life = Duration::from_secs(24 * 3600);
        let hours = |random| renewal_delay(life, random).as_secs_f64() / 3600.0;
        assert!((hours(0) - 14.4).abs() < 0.001 && (hours(u64::MAX) - 17.6).abs() < 0.001, "{} {}", hours(0), hours(u64::MAX));
        assert!((hours(u64::MAX / 2) - 16.0).abs() < 0.001, "{}", hours(u64::MAX / 2));
        let wait = |random| Backoff::new(Duration::from_secs(8), Duration::from_secs(8)).next_wait(random);
        assert_eq!(wait(0), Duration::ZERO);
        assert!(wait(u64::MAX) > Duration::from_millis(7_999), "{:?}", wait(u64::MAX));
    }
}
