//! One worker's side: labels become slots when route and endpoint are known; recording is a plain add.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::atomic::Ordering::Release;
use std::sync::{Arc, mpsc};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;
use weft_core::authorization::Decision;
use weft_core::breaker::Event;
use weft_core::failure::Reason;
use weft_core::metrics::family::Exemplar;
use weft_core::metrics::histogram::{add, bucket_of};
use weft_core::traffic::Route;

use super::notices::Notices;
use super::registry::{Fresh, Registry};
use super::slots::{CallSlots, EdgeSlots, HandshakeKey, HandshakeSlots, Held, WorkerSlots, count_reason, get, place};
use super::{Call, Code, Direction, EdgeKey, Heard};

/// A set of labels that nothing was counted under for so long, and that no open connection has, is dropped.
pub const UNUSED: Duration = Duration::from_secs(15 * 60);

/// Nanoseconds since the Unix epoch.
pub fn unix_nanos() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64)
}

/// One worker's slots.
pub struct WorkerMetrics {
    edges: RefCell<HashMap<EdgeKey, Kept>>,
    /// What stands for all that there is no room for, by direction.
    overflow: [RefCell<Option<Rc<Edge>>>; 2],
    handshakes: RefCell<HashMap<HandshakeKey, Arc<HandshakeSlots>>>,
    notices: Notices,
    registry: Arc<Registry>,
    home: Rc<Home>,
}

/// An edge, and when it was seen to have been used last.
struct Kept {
    edge: Rc<Edge>,
    used: Instant,
}

/// What an edge needs of its worker to make more slots.
#[derive(Debug)]
struct Home {
    slots: Arc<WorkerSlots>,
    tell: mpsc::Sender<Fresh>,
    /// Sets of labels that are kept apart at the most.
    most: usize,
}

impl Home {
    /// Takes room for one more set of labels.
    fn claim(&self) -> bool {
        let room = get(&self.slots.series) < self.most as u64;
        add(if room { &self.slots.series } else { &self.slots.overflows }, 1);
        room
    }

    fn give_back(&self, sets: u64) {
        add(&self.slots.series, sets.wrapping_neg());
    }

    /// The registry lives as long as the process.
    fn tell(&self, fresh: Fresh) {
        let _ = self.tell.send(fresh);
    }
}

/// The slots of one edge in one worker.
#[derive(Debug)]
pub struct Edge {
    slots: Arc<EdgeSlots>,
    calls: RefCell<Vec<Calls>>,
    /// Something was counted since it was last looked at.
    used: Cell<bool>,
    home: Rc<Home>,
}

/// The slots of requests that ended alike.
#[derive(Debug)]
struct Calls {
    code: Code,
    route: Option<Arc<Route>>,
    slots: Arc<CallSlots>,
    used: Cell<bool>,
    since: Cell<Instant>,
}

impl Calls {
    fn is(&self, code: Code, route: Option<&Arc<Route>>) -> bool {
        self.code == code
            && match (&self.route, route) {
                (None, None) => true,
                (Some(own), Some(other)) => Arc::ptr_eq(own, other),
                _ => false,
            }
    }
}

/// Ways to end that one edge keeps apart: methods and routes of a hostile client do not use up the room of all.
const MAX_CALLS: usize = 200;

impl Edge {
    fn new(key: EdgeKey, overflow: bool, home: &Rc<Home>) -> Rc<Self> {
        let slots = Arc::new(EdgeSlots::new(key, overflow, unix_nanos()));
        home.tell(Fresh::Edge(slots.clone()));
        Rc::new(Self { slots, calls: RefCell::default(), used: Cell::new(true), home: Rc::clone(home) })
    }

    /// A request ended after `took`.
    pub fn request(&self, call: &Call<'_>, took: Duration) {
        self.used.set(true);
        let code = call.code();
        if let Some(known) = self.calls.borrow().iter().find(|calls| calls.is(code, call.route)) {
            known.used.set(true);
            known.slots.took.record_alone(took);
            return;
        }
        self.begin(code, call.route).took.record_alone(took);
    }

    /// A request that was told of, and is in a trace that is kept, stands for those of its bucket; `at` is when it ended. For sampled requests alone: it takes a lock, which only
    /// the scraper may hold.
    pub fn exemplar(&self, call: &Call<'_>, took: Duration, (trace, span): ([u8; 16], [u8; 8]), at: u64) {
        let code = call.code();
        if let Some(known) = self.calls.borrow().iter().find(|calls| calls.is(code, call.route)) {
            let exemplar = Exemplar { trace, span, seconds: took.as_secs_f64(), at };
            known.slots.exemplify(bucket_of(took), exemplar);
        }
    }

    /// Slots for a way to end that has not been seen yet.
    #[cold]
    fn begin(&self, code: Code, route: Option<&Arc<Route>>) -> Arc<CallSlots> {
        let mut all = self.calls.borrow_mut();
        let name: Option<Arc<str>> = route.map(|route| format!("{} {}", route.kind.as_str(), route.id).into());
        // The same route in another version: it counts on.
        if let Some(known) = all.iter_mut().find(|calls| calls.code == code && name.is_some() && calls.slots.route == name) {
            known.used.set(true);
            known.route = route.cloned();
            return known.slots.clone();
        }
        let full = self.slots.overflow || all.len() >= MAX_CALLS || !self.home.claim();
        let (code, route) = if full { (code.as_overflow(), None) } else { (code, route) };
        // What has no room is counted together: its slots may be there already.
        if let Some(known) = all.iter().find(|calls| calls.is(code, route)) {
            known.used.set(true);
            return known.slots.clone();
        }
        let slots = Arc::new(CallSlots::new(self.slots.clone(), code, name.filter(|_| !full), unix_nanos()));
        self.home.tell(Fresh::Calls(slots.clone()));
        let since = Cell::new(Instant::now());
        all.push(Calls { code, route: route.cloned(), slots: slots.clone(), used: Cell::new(true), since });
        slots
    }

    /// weft refused or failed.
    pub fn error(&self, reason: Reason) {
        self.used.set(true);
        count_reason(&self.slots.errors, reason);
    }

    pub fn retry(&self) {
        self.used.set(true);
        add(&self.slots.retries, 1);
    }

    pub fn open(&self) {
        self.used.set(true);
        add(&self.slots.connections, 1);
    }

    pub fn close(&self) {
        self.used.set(true);
        add(&self.slots.closed, 1);
    }

    /// Bytes went towards who was called: those of a request.
    pub fn forth(&self, n: u64) {
        self.used.set(true);
        add(if self.slots.key.direction == Direction::Outbound { &self.slots.sent } else { &self.slots.received }, n);
    }

    /// Bytes came back: those of an answer.
    pub fn back(&self, n: u64) {
        self.used.set(true);
        add(if self.slots.key.direction == Direction::Outbound { &self.slots.received } else { &self.slots.sent }, n);
    }

    fn has_open(&self) -> bool {
        get(&self.slots.connections) != get(&self.slots.closed)
    }

    /// Drops ways to end that were not seen for long; says how many.
    fn sweep(&self, now: Instant, unused: Duration) {
        let mut dropped = 0;
        self.calls.borrow_mut().retain(|calls| {
            if calls.used.take() {
                calls.since.set(now);
            }
            let keeps = now.duration_since(calls.since.get()) < unused;
            if !keeps {
                calls.slots.retired.store(true, Release);
                dropped += u64::from(!calls.code.is_overflow());
            }
            keeps
        });
        self.home.give_back(dropped);
    }

    fn retire(&self) {
        let mut dropped = 1;
        for calls in self.calls.borrow_mut().drain(..) {
            calls.slots.retired.store(true, Release);
            dropped += u64::from(!calls.code.is_overflow());
        }
        self.slots.retired.store(true, Release);
        self.home.give_back(dropped);
    }
}

impl WorkerMetrics {
    /// Keeps `most` sets of labels apart.
    pub fn new(registry: Arc<Registry>, most: usize) -> Self {
        let home = Rc::new(Home { slots: Arc::default(), tell: registry.teller(), most });
        home.tell(Fresh::Worker(home.slots.clone()));
        Self {
            edges: RefCell::default(),
            overflow: Default::default(),
            handshakes: RefCell::default(),
            notices: Notices::default(),
            registry,
            home,
        }
    }

    /// The slots of an edge.
    pub fn edge(&self, key: &EdgeKey) -> Rc<Edge> {
        if let Some(kept) = self.edges.borrow().get(key) {
            return Rc::clone(&kept.edge);
        }
        if self.home.claim() {
            let edge = Edge::new(key.clone(), false, &self.home);
            let kept = Kept { edge: Rc::clone(&edge), used: Instant::now() };
            self.edges.borrow_mut().insert(key.clone(), kept);
            return edge;
        }
        let mut overflow = self.overflow[place(key.direction)].borrow_mut();
        let edge = overflow.get_or_insert_with(|| {
            let other: Arc<str> = "other".into();
            let (peer, target, direction) = (other.clone(), other, key.direction);
            Edge::new(EdgeKey { direction, port: 0, protocol: "other", target, peer, tls: ("", "") }, true, &self.home)
        });
        Rc::clone(edge)
    }

    /// Drops what was not used for long.
    pub fn sweep(&self) {
        self.sweep_after(UNUSED);
    }

    pub(super) fn sweep_after(&self, unused: Duration) {
        let now = Instant::now();
        self.edges.borrow_mut().retain(|_, kept| {
            if kept.edge.used.take() {
                kept.used = now;
            }
            kept.edge.sweep(now, unused);
            // A connection that waits for its next request has it, too.
            let held = kept.edge.has_open() || Rc::strong_count(&kept.edge) > 1;
            let keeps = held || now.duration_since(kept.used) < unused;
            if !keeps {
                kept.edge.retire();
            }
            keeps
        });
    }

    pub fn slots(&self) -> &Arc<WorkerSlots> {
        &self.home.slots
    }

    pub fn accepted(&self) {
        add(&self.home.slots.accepted, 1);
    }

    pub fn accept_failed(&self) {
        add(&self.home.slots.accept_failures, 1);
    }

    /// A TLS handshake ended after `took`.
    pub fn handshake(&self, key: HandshakeKey, took: Duration) {
        let mut all = self.handshakes.borrow_mut();
        let slots = all.entry(key).or_insert_with(|| {
            let slots = Arc::new(HandshakeSlots { key, took: weft_core::metrics::Recorder::default() });
            self.home.tell(Fresh::Handshake(slots.clone()));
            slots
        });
        slots.took.record_alone(took);
    }

    /// What a connection turned out to speak.
    pub fn detected(&self, direction: Direction, heard: Heard) {
        add(&self.home.slots.detections[place(direction)][heard as usize], 1);
    }

    /// A policy was asked about a call.
    pub fn decided(&self, direction: Direction, allowed: bool) {
        add(&self.home.slots.decisions[place(direction)][usize::from(!allowed)], 1);
    }

    /// What AUDIT policies and dry runs have to say of a call.
    pub fn notices(&self, decision: &Decision) {
        self.notices.count(decision, |slots| self.home.tell(Fresh::Notice(slots)));
    }

    /// Copies of requests (`RequestMirror`) that were not sent.
    pub fn copies_dropped(&self, n: u64) {
        add(&self.home.slots.copies_dropped, n);
    }

    /// A breaker did something to an endpoint of this peer.
    pub fn ejection(&self, peer: &Arc<str>, event: &Event) {
        self.registry.ejection(peer, event);
    }

    /// A connection that was refused before it was known whose it is.
    pub fn refused(&self, reason: Reason) {
        count_reason(&self.home.slots.refused, reason);
    }

    /// A request waits for a connection, for as long as this lives.
    pub fn waits(&self) -> Held {
        Held::new(&self.home.slots, |slots| &slots.pool.waiting)
    }

    /// A connection for HTTP/1 requests is there, for as long as this lives.
    pub fn pooled(&self) -> Held {
        Held::new(&self.home.slots, |slots| &slots.pool.http1)
    }
}

/// An opaque connection's place in the metrics: counted open until it is dropped.
pub struct OpenConnection {
    edge: Rc<Edge>,
    forth: Cell<u64>,
    back: Cell<u64>,
}

impl OpenConnection {
    pub fn new(edge: Rc<Edge>) -> Self {
        edge.open();
        Self { edge, forth: Cell::new(0), back: Cell::new(0) }
    }

    /// Bytes went to who was called.
    pub fn forth(&self, n: u64) {
        self.forth.set(self.forth.get() + n);
        self.edge.forth(n);
    }

    /// Bytes came from who was called.
    pub fn back(&self, n: u64) {
        self.back.set(self.back.get() + n);
        self.edge.back(n);
    }

    /// Bytes that went each way so far.
    pub fn moved(&self) -> (u64, u64) {
        (self.forth.get(), self.back.get())
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.edge.close();
    }
}

/// A connection that HTTP comes in on: counted open until it is dropped.
pub struct OpenHttp(Rc<Edge>);

impl OpenHttp {
    pub fn new(edge: Rc<Edge>) -> Self {
        edge.open();
        Self(edge)
    }
}

impl Drop for OpenHttp {
    fn drop(&mut self) {
        self.0.close();
    }
}
