//! The caller's own zone first.

use crate::backoff::unit;
use crate::traffic::policy::ZonePreference;

/// Whether a request is spread over the endpoints of all zones; if not, it stays among those of the caller's own.
///
/// `local_all` endpoints are in the caller's zone, `local_well` of them are well (neither ejected nor suspect); `others` are well in other zones. A
/// caller that knows no zone has none that are local. While the share that is well is `spill_below` or more, nothing spills over; below that the zone keeps
/// the well share divided by `spill_below` of its requests, so that the change is no jump. `random` is any uniformly distributed number.
pub fn spill(local_well: usize, local_all: usize, others: usize, policy: ZonePreference, random: u64) -> bool {
    if !policy.prefer || local_well == 0 {
        return true;
    }
    if others == 0 {
        return false;
    }
    let well = local_well as f64 / local_all.max(local_well) as f64;
    unit(random) * f64::from(policy.spill_below.clamp(1, 100)) >= well * 100.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PREFER: ZonePreference = ZonePreference { prefer: true, spill_below: 70 };

    /// Draws that lie evenly.
    fn share(well: usize, all: usize, others: usize, policy: ZonePreference) -> f64 {
        let spilled = (0..1000u64).filter(|i| spill(well, all, others, policy, i * (u64::MAX / 1000)));
        spilled.count() as f64 / 1000.0
    }

    #[test]
    fn the_zone_keeps_what_it_can_carry() {
        for (well, all, others, spilled) in [
            (10, 10, 20, 0.0),
            (7, 10, 20, 0.0),
            (6, 10, 20, 1.0 / 7.0),
            (35, 100, 20, 0.5),
            (1, 10, 20, 6.0 / 7.0),
            (0, 10, 20, 1.0),
        ] {
            assert!((share(well, all, others, PREFER) - spilled).abs() < 0.01, "{well} of {all}");
        }
    }

    #[test]
    fn without_a_zone_or_a_wish_it_is_everybody_and_without_others_it_is_the_zone() {
        assert!(spill(0, 0, 5, PREFER, 7));
        assert!(spill(5, 5, 5, ZonePreference::default(), 7));
        assert!(spill(0, 5, 0, PREFER, 7));
        assert!(!spill(1, 5, 0, PREFER, u64::MAX));
    }

    proptest! {
        #[test]
        fn fewer_that_are_well_never_spill_less(all in 1usize..50, a in 0usize..50, b in 0usize..50, below in 0u8..=100, r in any::<u64>()) {
            let policy = ZonePreference { prefer: true, spill_below: below };
            let (few, many) = (a.min(b).min(all), a.max(b).min(all));
            prop_assert!(spill(few, all, 9, policy, r) >= spill(many, all, 9, policy, r));
            if many * 100 >= usize::from(below) * all && many > 0 {
                prop_assert!(!spill(many, all, 9, policy, r));
            }
        }
    }
}
