//! Who is gone. A pod that is not in the model serves nobody, unless the model lacks it for want of a manifest that cannot be read, or is not there
//! yet: a process that has just begun cannot tell. So a pod is gone that this process has seen in the model and that left it; of others only
//! once everything has been read without a problem for a while.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use weft_core::service::ObjectRef;

/// The model must have been whole for so long.
const SETTLES: Duration = Duration::from_secs(60);
/// Names that are remembered beyond twice those of the model. Of a pod that is forgotten it is not said that it is gone.
const SLACK: usize = 10_000;

/// What this process has seen of the model.
#[derive(Default)]
pub struct Living {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    seen: HashSet<ObjectRef>,
    whole_since: Option<Instant>,
    settled: bool,
}

impl Living {
    /// The model has these pods now; `whole` says that nothing keeps it from having all. To be called about once a second after everything was read
    /// once. True once all pods that are not in the model are gone: then there is nothing to be told any more.
    pub fn look<'a>(&self, pods: impl ExactSizeIterator<Item = &'a ObjectRef>, whole: bool, now: Instant) -> bool {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if !whole {
            inner.whole_since = None;
        } else if now.duration_since(*inner.whole_since.get_or_insert(now)) >= SETTLES {
            inner.settled = true;
            inner.seen = HashSet::new();
        }
        if inner.settled {
            return true;
        }
        if inner.seen.len() > 2 * pods.len() + SLACK {
            inner.seen.clear();
        }
        for pod in pods {
            if !inner.seen.contains(pod) {
                inner.seen.insert(pod.clone());
            }
        }
        false
    }

    /// Whether a pod may live that is in the model now, or is not.
    pub fn lives(&self, pod: &ObjectRef, is_in_model: bool) -> bool {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        is_in_model || !inner.settled && !inner.seen.contains(pod)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_is_gone_that_was_seen_to_leave_and_any_other_once_the_model_is_known_to_be_whole() {
        let [a, b]: [ObjectRef; 2] = ["shop/a", "shop/b"].map(|name| name.parse().expect("a name"));
        let living = Living::default();
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        assert!(living.lives(&a, false) && living.lives(&b, false), "nothing was read yet");
        assert!(!living.look([&a].into_iter(), true, start));
        assert!(!living.lives(&a, false), "it left");
        assert!(living.lives(&a, true) && living.lives(&b, false), "its manifest may come yet");
        assert!(!living.look([].into_iter(), true, after(59)));
        assert!(!living.look([].into_iter(), false, after(60)), "a manifest cannot be read");
        assert!(!living.look([].into_iter(), true, after(61)));
        assert!(!living.look([].into_iter(), true, after(120)) && living.lives(&b, false));
        assert!(living.look([].into_iter(), true, after(121)));
        assert!(!living.lives(&a, false) && !living.lives(&b, false) && living.lives(&b, true));
        assert!(living.look([].into_iter(), false, after(122)), "what is read later was there");
        assert!(!living.lives(&b, false));
    }

    #[test]
    fn names_do_not_pile_up() {
        let living = Living::default();
        for i in 0..3 * SLACK {
            let pod: ObjectRef = format!("shop/p{i}").parse().expect("a name");
            living.look([&pod].into_iter(), false, Instant::now());
        }
        assert!(living.inner.lock().expect("whole").seen.len() <= SLACK + 3);
    }
}
