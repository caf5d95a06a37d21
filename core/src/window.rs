//! A count over a sliding window, in ten slots of time.

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

/// How many slots of time there are.
pub(crate) const SLOTS: u32 = 10;

/// Counts in slots. A slot is one word: the tick that it counts (its lower 32 bits), above the count. A tick is the caller's number of
/// the current slot of time; it grows by one with each.
#[derive(Debug, Default)]
pub(crate) struct Window([AtomicU64; SLOTS as usize]);

const fn unpack(word: u64) -> (u32, u32) {
    ((word >> 32) as u32, word as u32)
}

/// How many ticks ago the slot's was; another worker's clock may be a little ahead. None: not of this window.
fn age(tick: u64, slot: u32) -> Option<u32> {
    let ticks = (tick as u32).wrapping_sub(slot).cast_signed();
    (ticks.unsigned_abs() < SLOTS).then_some(ticks.max(0).cast_unsigned())
}

/// Whether the slot's tick is the current one, or a later one that another worker has begun. One that is far ahead is of another count of ticks.
fn is_not_past(tick: u64, slot: u32) -> bool {
    slot.wrapping_sub(tick as u32) < SLOTS
}

impl Window {
    fn slot(&self, tick: u64) -> &AtomicU64 {
        &self.0[(tick % u64::from(SLOTS)) as usize]
    }

    /// Counts one at `tick`.
    pub(crate) fn add(&self, tick: u64) {
        let slot = self.slot(tick);
        let next = |word| {
            let (of, count) = unpack(word);
            let (of, count) = if is_not_past(tick, of) { (of, count.saturating_add(1)) } else { (tick as u32, 1) };
            Some(u64::from(of) << 32 | u64::from(count))
        };
        // Sequentially consistent, as `sum` is: of two who add and then sum, one at least sees the other.
        let _ = slot.fetch_update(SeqCst, SeqCst, next);
    }

    /// Takes back one that was counted at `tick`; nothing if that is past.
    pub(crate) fn take_back(&self, tick: u64) {
        let back = |word| {
            let (of, count) = unpack(word);
            (is_not_past(tick, of) && count > 0).then(|| word - 1)
        };
        let _ = self.slot(tick).fetch_update(SeqCst, SeqCst, back);
    }

    /// The count of the last `slots` ticks, the current one among them.
    pub(crate) fn sum(&self, tick: u64, slots: u32) -> u64 {
        let counts = self.0.iter().map(|slot| unpack(slot.load(SeqCst)));
        counts.filter(|(of, _)| age(tick, *of).is_some_and(|age| age < slots)).map(|(_, count)| u64::from(count)).sum()
    }

    /// Forgets everything.
    pub(crate) fn clear(&self) {
        self.0.iter().for_each(|slot| slot.store(0, SeqCst));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn it_counts_what_a_list_counts(steps in proptest::collection::vec((0u64..4, 0u8..4), 0..200), start in 0u64..1 << 33) {
            let (window, mut tick, mut list) = (Window::default(), start, Vec::new());
            for (on, what) in steps {
                tick += on;
                match what {
                    0..3 => { window.add(tick); list.push(tick); }
                    _ => if list.last() == Some(&tick) { window.take_back(tick); list.pop(); },
                }
                for slots in [1, 9, 10] {
                    let naive = list.iter().filter(|at| tick - **at < u64::from(slots)).count() as u64;
                    prop_assert_eq!(window.sum(tick, slots), naive);
                }
            }
            window.clear();
            prop_assert_eq!(window.sum(tick, SLOTS), 0);
        }
    }
}
