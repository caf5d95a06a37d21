//! How many connections a sidecar takes: within what the machine grants, and no single source can have all of them.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

pub use weft_core::admission::Shed;

/// The connections of a sidecar, counted over all of its workers.
#[derive(Debug)]
pub struct Capacity {
    open: AtomicUsize,
    most: usize,
    /// Those that may idle in pools, and whether somebody has said so.
    idle: usize,
    is_idle_asked: bool,
}

/// Descriptors that are kept for everything but proxied connections: the control plane, admin, telemetry.
const RESERVED: usize = 256;
/// Connections that may idle in the pools of one worker where descriptors are no matter: each has its memory, too.
const MOST_IDLE: usize = 16_384;
/// … and that may where nobody said otherwise, however few there are.
const LEAST_IDLE: usize = 8;

impl Capacity {
    /// `asked` connections, and `idle` that nobody uses in all pools; of what is 0 as many as `descriptors` allow: each connection takes two, and an eighth is
    /// for those that idle.
    pub fn new(asked: usize, idle: usize, descriptors: usize) -> Self {
        let free = descriptors.saturating_sub(RESERVED).max(RESERVED);
        let is_idle_asked = idle > 0;
        let idle = match (asked, idle) {
            (_, idle @ 1..) => idle,
            (0, 0) => free / 8,
            (asked, 0) => (free / 8).min(free.saturating_sub(asked.saturating_mul(2))),
        };
        let most = if asked > 0 { asked } else { (free.saturating_sub(idle) / 2).max(LEAST_IDLE) };
        Self { open: AtomicUsize::new(0), most, idle, is_idle_asked }
    }

    /// Connections that may idle in the pools of each of so many workers.
    pub fn idle(&self, workers: usize) -> usize {
        let each = self.idle / workers.max(1);
        if self.is_idle_asked { each.max(1) } else { each.clamp(LEAST_IDLE, MOST_IDLE) }
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
        // The kernel spreads connections over workers unevenly: a quarter of everything, as if this worker had half more than its share.
        // A pod may have two addresses.
        let most_of_one = (capacity.most * 3 / 8 / workers.max(1)).max(1);
        Rc::new(Self { capacity, by_source: RefCell::default(), most_of_one })
    }

    /// Lets a connection in, or not. `source` is none for the pod's own programs, which cannot crowd each other out of somebody else's
    /// pod.
    pub fn admit(self: &Rc<Self>, source: Option<IpAddr>) -> Result<Admitted, Shed> {
        let source = source.map(weft_core::admission::source);
        if let Some(source) = source {
            let mut by_source = self.by_source.borrow_mut();
            let count = by_source.entry(source).or_default();
            if *count >= self.most_of_one {
                return Err(Shed::Source);
            }
            *count += 1;
        }
        // From here on the drop takes back what was counted.
        let admitted = Admitted { admission: Rc::clone(self), source };
        let before = self.capacity.open.fetch_add(1, Relaxed);
        // What comes in leaves room for what the pod's own programs open.
        let most = if source.is_some() { self.capacity.most.div_ceil(4) * 3 } else { self.capacity.most };
        if before < most { Ok(admitted) } else { Err(Shed::Total) }
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
    fn one_source_leaves_room_for_others_and_all_of_them_for_the_pod() {
        let capacity = Arc::new(Capacity::new(16, 0, 0));
        let workers = [Admission::new(capacity.clone(), 2), Admission::new(capacity.clone(), 2)];
        let source = |i: u8| Some(IpAddr::from([10, 0, 0, i]));
        let mut greedy: Vec<Admitted> = (0..10).filter_map(|_| workers[0].admit(source(1)).ok()).collect();
        assert_eq!((greedy.len(), workers[0].admit(source(1)).err()), (3, Some(Shed::Source)));
        let others: Vec<Admitted> = (2..20).filter_map(|i| workers[1].admit(source(i)).ok()).collect();
        assert_eq!((others.len(), workers[1].admit(source(30)).err()), (9, Some(Shed::Total)));
        let own: Vec<Admitted> = (0..10).filter_map(|_| workers[0].admit(None).ok()).collect();
        assert_eq!((own.len(), capacity.open()), (4, 16));
        drop(own);
        greedy.pop();
        assert!(workers[0].admit(source(1)).is_ok());
        drop((greedy, others));
        assert_eq!(capacity.open(), 0);
        assert!(workers.iter().all(|w| w.by_source.borrow().is_empty()));
    }

    #[test]
    fn a_host_with_many_ipv6_addresses_is_one_source() {
        let door = Admission::new(Arc::new(Capacity::new(16, 0, 0)), 1);
        let from = |i: u16| Some(IpAddr::from([0xfd47, 0, 0, 1, 0, 0, 0, i]));
        assert_eq!((0..20).filter_map(|i| door.admit(from(i)).ok()).collect::<Vec<_>>().len(), 6);
    }

    #[test]
    fn descriptors_set_the_bound_where_nothing_else_does() {
        let idle = |asked, idle, descriptors, workers| Capacity::new(asked, idle, descriptors).idle(workers);
        assert_eq!(Capacity::new(0, 0, 20_000).most(), 8_638);
        assert_eq!(Capacity::new(0, 0, 64).most(), 112);
        assert_eq!(Capacity::new(50, 0, 20_000).most(), 50);
        assert_eq!((idle(0, 0, 20_000, 2), idle(50, 0, 20_000, 2), idle(9_000, 0, 20_000, 2)), (1_234, 1_234, 872));
        // Memory has its bound as well, and whoever asks for more connections than there are descriptors keeps some all the same.
        assert_eq!((idle(0, 0, 1 << 30, 2), idle(100_000, 0, 20_000, 2), idle(0, 500, 20_000, 2)), (MOST_IDLE, LEAST_IDLE, 250));
        assert_eq!((idle(0, 100_000, 20_000, 2), idle(0, 10, 20_000, 16)), (50_000, 1));
        for (descriptors, workers) in [(1_024, 8), (2_048, 1), (20_000, 2), (1 << 20, 64)] {
            let capacity = Capacity::new(0, 0, descriptors);
            assert!(2 * capacity.most() + workers * capacity.idle(workers) + RESERVED <= descriptors);
        }
    }
}
