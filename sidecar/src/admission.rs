//! How many connections a sidecar takes: within what the machine grants, and no single source can have all of them.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// The connections of a sidecar, counted over all of its workers.
#[derive(Debug)]
pub struct Capacity {
    open: AtomicUsize,
    most: usize,
}

/// Descriptors that are kept for everything but proxied connections: pools, the control plane, admin.
const RESERVED: usize = 256;

impl Capacity {
    /// `asked` connections, or, if that is 0, as many as `descriptors` allow: each takes two.
    pub fn new(asked: usize, descriptors: usize) -> Self {
        let granted = descriptors.saturating_sub(RESERVED).max(RESERVED) / 2;
        Self { open: AtomicUsize::new(0), most: if asked > 0 { asked } else { granted } }
    }

    pub fn open(&self) -> usize {
        self.open.load(Relaxed)
    }

    pub fn most(&self) -> usize {
        self.most
    }
}

/// One worker's door.
pub struct Admission {
    capacity: Arc<Capacity>,
    /// Of those, what this worker has from each source.
    by_source: RefCell<HashMap<IpAddr, usize>>,
    /// What one source may have of this worker.
    most_of_one: usize,
}

/// A connection that was let in, until it is dropped.
pub struct Admitted {
    admission: Rc<Admission>,
    source: Option<IpAddr>,
}

impl Admission {
    pub fn new(capacity: Arc<Capacity>, workers: usize) -> Rc<Self> {
        // The kernel spreads connections over workers unevenly: half of everything, as if this worker had half more than its share.
        let most_of_one = (capacity.most * 3 / 4 / workers.max(1)).max(1);
        Rc::new(Self { capacity, by_source: RefCell::default(), most_of_one })
    }

    /// Lets a connection in, or not. `source` is none for the pod's own programs, which cannot crowd each other out of somebody else's
    /// pod.
    pub fn admit(self: &Rc<Self>, source: Option<IpAddr>) -> Option<Admitted> {
        if let Some(source) = source {
            let mut by_source = self.by_source.borrow_mut();
            let count = by_source.entry(source).or_default();
            if *count >= self.most_of_one {
                return None;
            }
            *count += 1;
        }
        // From here on the drop takes back what was counted.
        let admitted = Admitted { admission: Rc::clone(self), source };
        let before = self.capacity.open.fetch_add(1, Relaxed);
        (before < self.capacity.most).then_some(admitted)
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.admission.capacity.open.fetch_sub(1, Relaxed);
        let Some(source) = self.source else { return };
        let mut by_source = self.admission.by_source.borrow_mut();
        if let Some(count) = by_source.get_mut(&source) {
            *count -= 1;
            if *count == 0 {
                by_source.remove(&source);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_source_leaves_room_for_others_and_all_together_for_the_machine() {
        let capacity = Arc::new(Capacity::new(8, 0));
        let workers = [Admission::new(capacity.clone(), 2), Admission::new(capacity.clone(), 2)];
        let source = |i: u8| Some(IpAddr::from([10, 0, 0, i]));
        let mut greedy: Vec<Admitted> = (0..10).filter_map(|_| workers[0].admit(source(1))).collect();
        assert_eq!(greedy.len(), 3);
        let others: Vec<Admitted> = (2..10).filter_map(|i| workers[1].admit(source(i))).collect();
        assert_eq!((others.len(), capacity.open()), (5, 8));
        assert!(workers[0].admit(None).is_none());
        greedy.pop();
        assert!(workers[0].admit(source(1)).is_some());
        drop((greedy, others));
        assert_eq!(capacity.open(), 0);
        assert!(workers.iter().all(|w| w.by_source.borrow().is_empty()));
    }

    #[test]
    fn descriptors_set_the_bound_where_nothing_else_does() {
        assert_eq!(Capacity::new(0, 20_000).most(), 9_872);
        assert_eq!(Capacity::new(0, 64).most(), 128);
        assert_eq!(Capacity::new(50, 20_000).most(), 50);
    }
}
