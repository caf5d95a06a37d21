//! What workers write and the scraper reads: one writer each.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use weft_core::failure::Reason;
use weft_core::metrics::family::{Exemplar, Exemplars};
use weft_core::metrics::histogram::{Recorder, add};

use super::{Code, Direction, EdgeKey, Heard};

/// Reasons that are counted apart.
pub const REASONS: usize = Reason::ALL.len();

fn zeros<const N: usize>() -> [AtomicU64; N] {
    [const { AtomicU64::new(0) }; N]
}

/// One more of a reason.
pub fn count_reason(slots: &[AtomicU64; REASONS], reason: Reason) {
    if let Some(slot) = slots.get(reason as usize) {
        add(slot, 1);
    }
}

/// One worker's slots of an edge.
#[derive(Debug)]
pub struct EdgeSlots {
    pub key: EdgeKey,
    /// It stands for all that there was no room for.
    pub overflow: bool,
    /// When it was made, in nanoseconds since the Unix epoch.
    pub since: u64,
    /// Its worker has dropped it, after the last thing that it counted.
    pub retired: AtomicBool,
    pub connections: AtomicU64,
    pub closed: AtomicU64,
    pub received: AtomicU64,
    pub sent: AtomicU64,
    pub errors: [AtomicU64; REASONS],
    pub retries: AtomicU64,
}

impl EdgeSlots {
    pub fn new(key: EdgeKey, overflow: bool, since: u64) -> Self {
        let zero = || AtomicU64::new(0);
        Self {
            key,
            overflow,
            since,
            retired: AtomicBool::new(false),
            connections: zero(),
            closed: zero(),
            received: zero(),
            sent: zero(),
            errors: zeros(),
            retries: zero(),
        }
    }
}

/// One worker's slots of the requests of an edge that ended alike.
#[derive(Debug)]
pub struct CallSlots {
    pub edge: Arc<EdgeSlots>,
    pub code: Code,
    /// The route, as KIND NAMESPACE/NAME.
    pub route: Option<Arc<str>>,
    pub since: u64,
    pub retired: AtomicBool,
    pub took: Recorder,
    /// Written for sampled requests alone.
    exemplars: Mutex<Option<Box<Exemplars>>>,
}

impl CallSlots {
    pub fn new(edge: Arc<EdgeSlots>, code: Code, route: Option<Arc<str>>, since: u64) -> Self {
        let (took, exemplars) = (Recorder::default(), Mutex::default());
        Self { edge, code, route, since, retired: AtomicBool::new(false), took, exemplars }
    }

    /// The request that stands for its bucket from now on.
    pub fn exemplify(&self, bucket: usize, exemplar: Exemplar) {
        let mut all = self.exemplars.lock().unwrap_or_else(PoisonError::into_inner);
        all.get_or_insert_default()[bucket] = Some(exemplar);
    }

    pub fn exemplars(&self) -> Option<Box<Exemplars>> {
        self.exemplars.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// What handshakes are told apart by.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct HandshakeKey {
    pub is_client: bool,
    /// Cipher suite and key exchange group; empty where it failed.
    pub tls: (&'static str, &'static str),
    /// Why it failed; empty where it did not.
    pub error: &'static str,
}

#[derive(Debug)]
pub struct HandshakeSlots {
    pub key: HandshakeKey,
    pub took: Recorder,
}

/// What one worker counts of itself.
#[derive(Debug)]
pub struct WorkerSlots {
    pub accepted: AtomicU64,
    pub accept_failures: AtomicU64,
    pub copies_dropped: AtomicU64,
    pub overflows: AtomicU64,
    /// Sets of labels that it keeps now.
    pub series: AtomicU64,
    pub refused: [AtomicU64; REASONS],
    /// By direction, then by what was heard.
    pub detections: [[AtomicU64; Heard::ALL.len()]; 2],
    /// By direction, then allowed and denied.
    pub decisions: [[AtomicU64; 2]; 2],
    pub pool: PoolSlots,
}

impl Default for WorkerSlots {
    fn default() -> Self {
        let zero = || AtomicU64::new(0);
        Self {
            accepted: zero(),
            accept_failures: zero(),
            copies_dropped: zero(),
            overflows: zero(),
            series: zero(),
            refused: zeros(),
            detections: [zeros(), zeros()],
            decisions: [zeros(), zeros()],
            pool: PoolSlots::default(),
        }
    }
}

/// Connections that requests go out on.
#[derive(Debug, Default)]
pub struct PoolSlots {
    /// HTTP/1, idle ones included.
    pub http1: AtomicU64,
    pub http1_idle: AtomicU64,
    /// HTTP/2, as they stood when they were looked at last.
    pub http2: AtomicU64,
    pub http2_idle: AtomicU64,
    /// Links that were opened, and streams on them, as they stood when they were looked at last.
    pub links: AtomicU64,
    pub streams: AtomicU64,
    /// Requests that wait for one.
    pub waiting: AtomicU64,
}

/// One more for as long as this lives.
#[derive(Debug)]
pub struct Held {
    slots: Arc<WorkerSlots>,
    which: fn(&WorkerSlots) -> &AtomicU64,
}

impl Held {
    pub fn new(slots: &Arc<WorkerSlots>, which: fn(&WorkerSlots) -> &AtomicU64) -> Self {
        add(which(slots), 1);
        Self { slots: slots.clone(), which }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        add((self.which)(&self.slots), u64::MAX);
    }
}

/// The place of a direction in [`WorkerSlots`].
pub const fn place(direction: Direction) -> usize {
    match direction {
        Direction::Inbound => 0,
        Direction::Outbound => 1,
    }
}

/// What a slot holds.
pub fn get(slot: &AtomicU64) -> u64 {
    slot.load(Relaxed)
}
