//! Who still calls in plaintext: what `weft check --strict-ready` asks before strict is switched on.
//!
//! A worker counts in slots of its own, as in `metrics.rs`; whoever asks merges. It costs a lookup for each plaintext connection, and nothing for others.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError, mpsc};

use serde::Serialize;

use crate::identity::unix_now;

/// Callers that one worker keeps apart; what comes later is counted together.
const MOST: usize = 2_000;

/// One worker's count of one caller at one port.
struct Slot {
    source: IpAddr,
    port: u16,
    let_in: AtomicU64,
    refused: AtomicU64,
    /// Seconds since 1970.
    first: i64,
    last: AtomicI64,
}

type Known = (mpsc::Receiver<Arc<Slot>>, Vec<Arc<Slot>>);

/// All workers' counts.
pub struct Plaintext {
    since: i64,
    tell: mpsc::Sender<Arc<Slot>>,
    known: Mutex<Known>,
    others: AtomicU64,
    others_last: AtomicI64,
}

/// What is known of plaintext callers.
#[derive(Serialize, Debug)]
pub struct Report {
    /// Since when they are counted, in seconds since 1970: the sidecar's start.
    pub since: i64,
    pub callers: Vec<Caller>,
    /// Connections of callers that are too many to be kept apart, and the time of the last one; 0 where there are none.
    pub others: u64,
    pub others_last: i64,
}

/// One caller at one of the pod's own ports.
#[derive(Serialize, Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    pub source: IpAddr,
    pub port: u16,
    /// Connections that the mode let in.
    pub connections: u64,
    /// Those that it did not: the port was strict.
    pub refused: u64,
    pub first: i64,
    pub last: i64,
}

impl Plaintext {
    pub fn new() -> Arc<Self> {
        let (tell, told) = mpsc::channel();
        Arc::new(Self {
            since: unix_now(),
            tell,
            known: Mutex::new((told, Vec::new())),
            others: AtomicU64::new(0),
            others_last: AtomicI64::new(0),
        })
    }

    /// All callers, merged over workers.
    pub fn report(&self) -> Report {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh: Vec<_> = known.0.try_iter().collect();
        known.1.extend(fresh);
        let mut merged: BTreeMap<(u16, IpAddr), Caller> = BTreeMap::new();
        for slot in &known.1 {
            let caller = merged.entry((slot.port, slot.source)).or_insert_with(|| Caller {
                source: slot.source,
                port: slot.port,
                connections: 0,
                refused: 0,
                first: slot.first,
                last: slot.first,
            });
            caller.connections += slot.let_in.load(Relaxed);
            caller.refused += slot.refused.load(Relaxed);
            caller.first = caller.first.min(slot.first);
            caller.last = caller.last.max(slot.last.load(Relaxed));
        }
        Report {
            since: self.since,
            callers: merged.into_values().collect(),
            others: self.others.load(Relaxed),
            others_last: self.others_last.load(Relaxed),
        }
    }
}

/// One worker's own.
pub struct Seen {
    slots: RefCell<HashMap<(IpAddr, u16), Arc<Slot>>>,
    all: Arc<Plaintext>,
}

impl Seen {
    pub fn new(all: Arc<Plaintext>) -> Self {
        Self { slots: RefCell::default(), all }
    }

    /// A plaintext connection to one of the pod's own ports; `let_in` is what the mode says.
    pub fn note(&self, source: IpAddr, port: u16, let_in: bool) {
        let (source, now) = (source.to_canonical(), unix_now());
        let mut slots = self.slots.borrow_mut();
        if slots.len() >= MOST && !slots.contains_key(&(source, port)) {
            self.all.others.fetch_add(1, Relaxed);
            self.all.others_last.store(now, Relaxed);
            return;
        }
        let slot = slots.entry((source, port)).or_insert_with(|| {
            let (let_in, refused, last) = (AtomicU64::new(0), AtomicU64::new(0), AtomicI64::new(now));
            let slot = Arc::new(Slot { source, port, let_in, refused, first: now, last });
            // The other end lives as long as the process.
            let _ = self.all.tell.send(slot.clone());
            slot
        });
        let count = if let_in { &slot.let_in } else { &slot.refused };
        // One writer: a load and a store, not a locked instruction.
        count.store(count.load(Relaxed).wrapping_add(1), Relaxed);
        slot.last.store(now, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn callers_are_kept_apart_as_long_as_there_is_room() {
        let all = Plaintext::new();
        let (a, b) = (Seen::new(all.clone()), Seen::new(all.clone()));
        let source = |n: u32| IpAddr::from(std::net::Ipv4Addr::from_bits(n));
        a.note(source(1), 80, true);
        a.note("::ffff:0.0.0.1".parse().expect("an address"), 80, true);
        b.note(source(1), 80, false);
        b.note(source(1), 81, true);
        let report = all.report();
        let counts: Vec<_> = report.callers.iter().map(|c| (c.port, c.connections, c.refused)).collect();
        assert_eq!(counts, [(80, 2, 1), (81, 1, 0)]);
        assert!(report.callers[0].first <= report.callers[0].last && report.since <= report.callers[0].first);
        for n in 0..2 * MOST as u32 {
            a.note(source(n), 80, true);
        }
        let report = all.report();
        assert_eq!((report.callers.len(), report.others), (MOST + 1, MOST as u64));
    }
}
