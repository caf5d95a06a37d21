//! Counted places with a limit: connections, requests in flight, requests that wait.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// How many are inside. The limit comes with every question, since it may change while the gate is in use: when it falls, nobody is
/// thrown out, and nobody comes in until enough have left.
#[derive(Debug, Default)]
pub struct Gate {
    held: AtomicU32,
}

impl Gate {
    /// An empty gate.
    pub const fn new() -> Self {
        Self { held: AtomicU32::new(0) }
    }

    /// Goes in, unless `limit` or more are inside; none is no limit. Who got `true` calls [`Gate::leave`] once. Those without a
    /// limit are counted too, so that a limit that comes later knows of them.
    pub fn try_enter(&self, limit: Option<u32>) -> bool {
        let limit = limit.unwrap_or(u32::MAX);
        self.held.fetch_update(Relaxed, Relaxed, |held| (held < limit).then(|| held + 1)).is_ok()
    }

    /// Goes out.
    pub fn leave(&self) {
        let left = self.held.fetch_update(Relaxed, Relaxed, |held| held.checked_sub(1));
        debug_assert!(left.is_ok(), "somebody left who was not inside");
    }

    /// How many are inside.
    pub fn held(&self) -> u32 {
        self.held.load(Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_gate_is_a_counter_with_a_ceiling(steps in proptest::collection::vec((any::<bool>(), proptest::option::of(0u32..6)), 0..200)) {
            let (gate, mut held) = (Gate::new(), 0);
            for (enter, limit) in steps {
                if enter {
                    let fits = limit.is_none_or(|l| held < l);
                    prop_assert_eq!(gate.try_enter(limit), fits);
                    held += u32::from(fits);
                } else if held > 0 {
                    gate.leave();
                    held -= 1;
                }
                prop_assert_eq!(gate.held(), held);
            }
        }
    }

    #[test]
    fn many_threads_never_hold_more_than_the_limit() {
        for threads in [1, 8] {
            let (gate, inside, most) = (Gate::new(), AtomicU32::new(0), AtomicU32::new(0));
            std::thread::scope(|scope| {
                for _ in 0..threads {
                    scope.spawn(|| {
                        for _ in 0..5000 {
                            if gate.try_enter(Some(3)) {
                                most.fetch_max(inside.fetch_add(1, Relaxed) + 1, Relaxed);
                                inside.fetch_sub(1, Relaxed);
                                gate.leave();
                            }
                        }
                    });
                }
            });
            assert!((1..=3).contains(&most.into_inner()));
            assert_eq!(gate.held(), 0);
        }
    }
}
