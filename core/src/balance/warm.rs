//! Slow start.

use std::time::Duration;

/// The least share of a new endpoint: with less, nothing would warm it.
const LEAST: f64 = 0.1;

/// The share that an endpoint of this `age` gets of what one gets that is not new: from 0.1 at first up to 1 after `duration`, evenly. Zero duration: 1 at once.
pub fn slow_start_weight(age: Duration, duration: Duration) -> f64 {
    if age >= duration {
        return 1.0;
    }
    (age.as_secs_f64() / duration.as_secs_f64()).clamp(LEAST, 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn it_grows_evenly_from_a_tenth_to_all() {
        let at = |s| slow_start_weight(Duration::from_secs(s), Duration::from_secs(60));
        for (age, weight) in [(0, 0.1), (6, 0.1), (30, 0.5), (45, 0.75), (60, 1.0), (3600, 1.0)] {
            assert!((at(age) - weight).abs() < 1e-9, "{age} s");
        }
    }

    proptest! {
        #[test]
        fn it_never_falls_and_stays_in_range(a in any::<u64>(), b in any::<u64>(), duration in any::<u64>()) {
            let at = |age| slow_start_weight(Duration::from_nanos(age), Duration::from_nanos(duration));
            let (young, old) = (at(a.min(b)), at(a.max(b)));
            prop_assert!(0.1 <= young && young <= old && old <= 1.0);
        }
    }
}
