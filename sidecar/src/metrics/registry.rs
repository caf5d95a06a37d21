//! All workers' slots, merged when somebody asks.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering::Acquire};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};

use weft_core::breaker::Event;
use weft_core::metrics::family::Exemplars;
use weft_core::metrics::histogram::Reading;

use super::notices::NoticeSlots;
use super::slots::{CallSlots, EdgeSlots, HandshakeKey, HandshakeSlots, REASONS, WorkerSlots, get};
use super::tally::{Counted, Tally};
use super::worker::UNUSED;
use super::{Code, Direction, EdgeKey};
use crate::otlp::batch::Counts;

/// Peers whose ejections are counted apart.
const MOST_PEERS: usize = 500;

/// Slots that a worker has made.
pub enum Fresh {
    Worker(Arc<WorkerSlots>),
    Edge(Arc<EdgeSlots>),
    Calls(Arc<CallSlots>),
    Handshake(Arc<HandshakeSlots>),
    Notice(Arc<NoticeSlots>),
}

/// What an edge has counted.
#[derive(Clone, Debug)]
pub struct EdgeTotals {
    pub connections: u64,
    pub closed: u64,
    pub received: u64,
    pub sent: u64,
    pub retries: u64,
    pub errors: [u64; REASONS],
}

impl Default for EdgeTotals {
    fn default() -> Self {
        Self { connections: 0, closed: 0, received: 0, sent: 0, retries: 0, errors: [0; REASONS] }
    }
}

impl EdgeTotals {
    pub fn open(&self) -> u64 {
        // Two slots are read one after the other.
        self.connections.saturating_sub(self.closed)
    }
}

impl Summed for EdgeTotals {
    fn merge(&mut self, other: &Self) {
        self.connections += other.connections;
        self.closed += other.closed;
        self.received += other.received;
        self.sent += other.sent;
        self.retries += other.retries;
        for (sum, n) in self.errors.iter_mut().zip(&other.errors) {
            *sum += n;
        }
    }
}

/// What requests that ended alike have counted.
#[derive(Clone, Debug, Default)]
pub struct CallTotals {
    pub took: Reading,
    pub exemplars: Option<Box<Exemplars>>,
}

impl Summed for CallTotals {
    fn merge(&mut self, other: &Self) {
        self.took.merge(&other.took);
        let Some(others) = &other.exemplars else { return };
        let own = self.exemplars.get_or_insert_default();
        for (own, other) in own.iter_mut().zip(others.iter()) {
            // The latest says most.
            if other.is_some_and(|other| own.is_none_or(|own| own.at < other.at)) {
                *own = *other;
            }
        }
    }
}

/// Sums of what is counted.
pub trait Summed: Default + Clone {
    fn merge(&mut self, other: &Self);
}

/// What of slots the merge needs to know.
pub trait Slots {
    type Totals: Summed;
    fn retired(&self) -> &AtomicBool;
    fn since(&self) -> u64;
    fn add_to(&self, totals: &mut Self::Totals);
}

impl Slots for EdgeSlots {
    type Totals = EdgeTotals;
    fn retired(&self) -> &AtomicBool {
        &self.retired
    }
    fn since(&self) -> u64 {
        self.since
    }
    fn add_to(&self, totals: &mut EdgeTotals) {
        let closed = get(&self.closed);
        totals.merge(&EdgeTotals {
            closed,
            connections: get(&self.connections),
            received: get(&self.received),
            sent: get(&self.sent),
            retries: get(&self.retries),
            errors: self.errors.each_ref().map(get),
        });
    }
}

impl Slots for CallSlots {
    type Totals = CallTotals;
    fn retired(&self) -> &AtomicBool {
        &self.retired
    }
    fn since(&self) -> u64 {
        self.since
    }
    fn add_to(&self, totals: &mut CallTotals) {
        totals.merge(&CallTotals { took: self.took.read(), exemplars: self.exemplars() });
    }
}

/// The slots of one set of labels, over all workers.
struct Merged<S: Slots> {
    live: Vec<Arc<S>>,
    /// What workers counted that have dropped theirs, while others go on: nothing ever goes backwards.
    gone: S::Totals,
    /// Since when it is counted.
    since: u64,
}

impl<S: Slots> Merged<S> {
    fn new(since: u64) -> Self {
        Self { live: Vec::new(), gone: S::Totals::default(), since }
    }

    fn joins(&mut self, slots: Arc<S>) {
        self.since = self.since.min(slots.since());
        self.live.push(slots);
    }

    /// Takes in what retired; false once nobody counts any more.
    fn settle(&mut self) -> bool {
        let gone = &mut self.gone;
        self.live.retain(|slots| {
            let live = !slots.retired().load(Acquire);
            if !live {
                slots.add_to(gone);
            }
            live
        });
        !self.live.is_empty()
    }

    fn totals(&self) -> S::Totals {
        let mut totals = self.gone.clone();
        for slots in &self.live {
            slots.add_to(&mut totals);
        }
        totals
    }
}

/// What calls are told apart by.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct CallKey {
    pub code: Code,
    pub edge: EdgeKey,
    pub route: Option<Arc<str>>,
}

impl CallKey {
    /// As the series of HTTP tell it: what no label of theirs tells apart is left out.
    #[must_use]
    pub fn as_http(&self) -> Self {
        Self { code: self.code.as_http(), ..self.as_rpc() }
    }

    /// As the series of gRPC tell it.
    #[must_use]
    pub fn as_rpc(&self) -> Self {
        Self { edge: self.edge.as_told(), ..self.clone() }
    }
}

impl EdgeKey {
    /// As series tell it: the TLS suite is told by handshakes, and what others call has no name here, but a port.
    #[must_use]
    pub fn as_told(&self) -> Self {
        let tls = if self.tls.0.is_empty() { ("", "") } else { ("tls", "") };
        let target = if self.direction == Direction::Inbound { "".into() } else { self.target.clone() };
        Self { target, tls, ..self.clone() }
    }
}

/// Something that is counted, since when, and what.
pub struct Told<K, T> {
    pub key: K,
    pub overflow: bool,
    pub since: u64,
    pub totals: T,
}

#[derive(Default)]
struct Known {
    workers: Vec<Arc<WorkerSlots>>,
    edges: BTreeMap<(bool, EdgeKey), Merged<EdgeSlots>>,
    calls: BTreeMap<(bool, CallKey), Merged<CallSlots>>,
    ended_edges: Ended<EdgeKey, EdgeSlots>,
    ended_calls: Ended<CallKey, CallSlots>,
    ended_rpcs: Ended<CallKey, CallSlots>,
    handshakes: Vec<Arc<HandshakeSlots>>,
    notices: Vec<Arc<NoticeSlots>>,
}

/// All workers' slots.
pub struct Registry {
    tell: mpsc::Sender<Fresh>,
    /// Where it is heard what workers made, and what is known so far.
    known: Mutex<(mpsc::Receiver<Fresh>, Known)>,
    ejections: Mutex<Tally<Arc<str>, 3>>,
    /// What became of data points that were pushed.
    pub points: Arc<Counts>,
}

impl Registry {
    pub fn new() -> Arc<Self> {
        let (tell, told) = mpsc::channel();
        Arc::new(Self { tell, known: Mutex::new((told, Known::default())), ejections: Mutex::default(), points: Arc::default() })
    }

    pub(super) fn teller(&self) -> mpsc::Sender<Fresh> {
        self.tell.clone()
    }

    /// A breaker did something to an endpoint: rare, so that it may take a lock.
    pub(super) fn ejection(&self, peer: &Arc<str>, event: &Event) {
        let mut all = self.ejected();
        let peer = if all.has_room(peer, MOST_PEERS) { peer.clone() } else { "other".into() };
        let which = match event {
            Event::Ejected { .. } => 0,
            Event::Spared(_) => 1,
            Event::Readmitted => 2,
        };
        all.add(peer, which);
    }

    fn ejected(&self) -> MutexGuard<'_, Tally<Arc<str>, 3>> {
        self.ejections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// By peer: ejected, spared, readmitted.
    pub fn ejections(&self) -> Vec<(Arc<str>, Counted<3>)> {
        self.ejected().iter().map(|(peer, counted)| (peer.clone(), *counted)).collect()
    }

    /// Takes in what workers made and dropped, and drops what nothing is counted under any more. Called now and then, whether somebody scrapes or not: else what is dropped
    /// would heap up.
    pub fn settle(&self) {
        self.ejected().sweep(MOST_PEERS, UNUSED);
        drop(self.known());
    }

    fn lock(&self) -> MutexGuard<'_, (mpsc::Receiver<Fresh>, Known)> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn known(&self) -> MutexGuard<'_, (mpsc::Receiver<Fresh>, Known)> {
        let mut guard = self.lock();
        let (told, known) = &mut *guard;
        for fresh in told.try_iter() {
            match fresh {
                Fresh::Worker(slots) => known.workers.push(slots),
                Fresh::Handshake(slots) => known.handshakes.push(slots),
                Fresh::Notice(slots) => known.notices.push(slots),
                Fresh::Edge(slots) => {
                    let key = (slots.overflow, slots.key.clone());
                    known.edges.entry(key).or_insert_with(|| Merged::new(slots.since)).joins(slots);
                }
                Fresh::Calls(slots) => {
                    let (code, edge, route) = (slots.code, slots.edge.key.clone(), slots.route.clone());
                    let overflow = slots.edge.overflow || code.is_overflow();
                    let key = (overflow, CallKey { code, edge, route });
                    known.calls.entry(key).or_insert_with(|| Merged::new(slots.since)).joins(slots);
                }
            }
        }
        let over = settle(&mut known.edges);
        if !over.is_empty() {
            keep(&mut known.ended_edges, &known.edges, over.iter(), EdgeKey::as_told, |key| key.direction);
        }
        let over = settle(&mut known.calls);
        if !over.is_empty() {
            let of_grpc = over.iter().filter(|((_, key), _)| key.code.is_grpc());
            keep(&mut known.ended_calls, &known.calls, over.iter(), CallKey::as_http, |key| key.edge.direction);
            keep(&mut known.ended_rpcs, &known.calls, of_grpc, CallKey::as_rpc, |key| key.edge.direction);
        }
        guard
    }

    /// Every edge, merged over workers.
    pub fn by_edge(&self) -> Vec<Told<EdgeKey, EdgeTotals>> {
        told(&self.known().1.edges)
    }

    /// Requests, merged over workers.
    pub fn by_call(&self) -> Vec<Told<CallKey, CallTotals>> {
        told(&self.known().1.calls)
    }

    /// Every edge, and what has ended of the series that go on, by what they tell.
    pub fn edge_series(&self) -> Vec<Told<EdgeKey, EdgeTotals>> {
        let guard = self.known();
        let mut all = told(&guard.1.edges);
        all.extend(told(&guard.1.ended_edges));
        all
    }

    /// Requests; and what has ended of the series of HTTP that go on, and of those of gRPC.
    pub fn call_series(&self) -> [Vec<Told<CallKey, CallTotals>>; 3] {
        let guard = self.known();
        [&guard.1.calls, &guard.1.ended_calls, &guard.1.ended_rpcs].map(told)
    }

    /// Handshakes, merged over workers.
    pub fn handshakes(&self) -> BTreeMap<HandshakeKey, Reading> {
        let mut merged: BTreeMap<_, Reading> = BTreeMap::new();
        for slots in &self.known().1.handshakes {
            merged.entry(slots.key).or_default().merge(&slots.took.read());
        }
        merged
    }

    /// Notices of policies, merged over workers: by policy and word.
    pub fn notices(&self) -> BTreeMap<(String, &'static str), u64> {
        let mut merged = BTreeMap::new();
        for slots in &self.known().1.notices {
            let policy = slots.policy.as_ref().map_or_else(|| slots.otherwise.to_owned(), ToString::to_string);
            *merged.entry((policy, slots.word)).or_default() += get(&slots.count);
        }
        merged
    }

    /// A slot of all workers that were taken in ([`Registry::settle`]), summed.
    pub fn sum(&self, slot: impl Fn(&WorkerSlots) -> u64) -> u64 {
        self.lock().1.workers.iter().map(|slots| slot(slots)).fold(0, u64::wrapping_add)
    }
}

/// What was counted under keys that nobody counts under any more, since when, by what a series tells. A series is the sum of several keys: where one of them ends and others
/// go on, it would go backwards.
type Ended<K, S> = BTreeMap<(bool, K), Merged<S>>;

/// Takes in what retired, and takes out what nobody counts under any more.
fn settle<K: Ord + Clone, S: Slots>(live: &mut BTreeMap<(bool, K), Merged<S>>) -> Vec<((bool, K), Merged<S>)> {
    let mut over = Vec::new();
    for (key, merged) in live.iter_mut() {
        if !merged.settle() {
            over.push(key.clone());
        }
    }
    over.iter().filter_map(|key| live.remove_entry(key)).collect()
}

/// Keeps what ended for as long as others of the same series go on.
fn keep<'a, K: Ord + Clone + 'a, S: Slots + 'a>(
    ended: &mut Ended<K, S>,
    live: &BTreeMap<(bool, K), Merged<S>>,
    over: impl Iterator<Item = &'a ((bool, K), Merged<S>)>,
    series: impl Fn(&K) -> K,
    direction: impl Fn(&K) -> Direction,
) {
    for ((overflow, key), merged) in over {
        let series = (*overflow, series(key));
        // What is beyond the bound is one series each way, and has one place.
        let is_same = |(beyond, known): &&(bool, K)| *beyond && direction(known) == direction(key);
        let place = if *overflow { ended.keys().find(is_same).cloned().unwrap_or(series) } else { series };
        let kept = ended.entry(place).or_insert_with(|| Merged::new(merged.since));
        kept.since = kept.since.min(merged.since);
        kept.gone.merge(&merged.gone);
    }
    let needed: BTreeSet<(bool, K)> = live.keys().map(|(overflow, key)| (*overflow, series(key))).collect();
    let overflows = needed.iter().any(|(overflow, _)| *overflow);
    ended.retain(|key, _| if key.0 { overflows } else { needed.contains(key) });
}

fn told<K: Clone, S: Slots>(known: &BTreeMap<(bool, K), Merged<S>>) -> Vec<Told<K, S::Totals>> {
    let each = known.iter();
    each.map(|((overflow, key), merged)| Told {
        key: key.clone(),
        overflow: *overflow,
        since: merged.since,
        totals: merged.totals(),
    })
    .collect()
}
