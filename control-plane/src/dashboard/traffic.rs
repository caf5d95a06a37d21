//! What sidecars tell of their traffic, in memory, for the last ten minutes in which somebody looked. Nobody is asked, and nothing is kept, while nobody looks.
//!
//! It is bounded whatever the mesh does: pods are put together by the service that they stand behind, edges by the pair of their ends, and what there is no room
//! for is counted.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use weft_core::SpiffeId;
use weft_core::failure::Reason;
use weft_core::metrics::histogram::{BOUNDS, CLASSIC, quantile};
use weft_core::service::ObjectRef;
use weft_proto::v1;

use super::account::Account;
use crate::hub::Hub;
use crate::snapshot::Snapshot;

/// A piece of the past.
pub const SLOT: Duration = Duration::from_secs(15);
/// So many of them are kept: ten minutes.
pub const SLOTS: usize = 40;
/// Pairs of ends that are kept apart.
const MOST_PAIRS: usize = 2_000;
/// Those of one sidecar among them.
const OF_ONE_SIDECAR: usize = 200;
/// Refusals that are kept.
const MOST_REFUSALS: usize = 500;
/// Characters of a text that a sidecar told.
const LONGEST: usize = 500;
/// Nobody has asked for so long: nobody looks.
const LEASE: Duration = Duration::from_secs(30);
/// How often a sidecar tells where there are few.
const INTERVAL_MILLIS: u32 = 2_000;
/// How long it takes a pod that came to be known by its service.
const PLACES_AGE: Duration = Duration::from_secs(5);

/// An end of an edge.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Node {
    /// A Service: its pods, and whoever calls it.
    Service(ObjectRef),
    /// A workload behind no Service, by NAMESPACE/SERVICEACCOUNT.
    Account(Arc<str>),
    /// Somebody without a sidecar, who called in the clear.
    Plaintext,
    /// A destination that is neither: a host outside of the mesh, or a name that is unknown by now.
    Outside(Arc<str>),
}

/// Who calls whom, and whether on mutual TLS.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Pair {
    pub from: Node,
    pub to: Node,
    pub mutual_tls: bool,
}

/// What was counted of a pair.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Sums {
    pub requests: u64,
    pub failed: u64,
    pub client_errors: u64,
    pub connections: u64,
    pub received: u64,
    pub sent: u64,
    pub retries: u64,
    /// By [`BOUNDS`], then the rest.
    pub latency: [u64; CLASSIC],
    /// What weft itself refused or failed.
    pub errors: BTreeMap<&'static str, u64>,
}

impl Sums {
    /// Those of an edge.
    pub fn of(edge: &v1::ReportedEdge) -> Self {
        let mut latency = [0; CLASSIC];
        for (sum, n) in latency.iter_mut().zip(&edge.latency) {
            *sum = *n;
        }
        let known = |e: &v1::ReportedError| Some((Reason::ALL.iter().find(|r| r.as_str() == e.reason)?.as_str(), e.count));
        Self {
            requests: edge.requests,
            failed: edge.failed,
            client_errors: edge.client_errors,
            connections: edge.connections,
            received: edge.bytes_received,
            sent: edge.bytes_sent,
            retries: edge.retries,
            latency,
            errors: edge.errors.iter().filter_map(known).collect(),
        }
    }

    /// Takes `other` in by `with`. A sidecar may say any number: none may overflow.
    fn merge(&mut self, other: &Self, with: fn(u64, u64) -> u64) {
        let fields = [
            (&mut self.requests, other.requests),
            (&mut self.failed, other.failed),
            (&mut self.client_errors, other.client_errors),
            (&mut self.connections, other.connections),
            (&mut self.received, other.received),
            (&mut self.sent, other.sent),
            (&mut self.retries, other.retries),
        ];
        for (own, other) in fields.into_iter().chain(self.latency.iter_mut().zip(other.latency)) {
            *own = with(*own, other);
        }
        for (reason, n) in &other.errors {
            let own = self.errors.entry(*reason).or_default();
            *own = with(*own, *n);
        }
        self.errors.retain(|_, n| *n > 0);
    }

    /// Adds what another one has.
    pub fn add(&mut self, other: &Self) {
        self.merge(other, u64::saturating_add);
    }

    fn subtract(&mut self, other: &Self) {
        self.merge(other, u64::saturating_sub);
    }

    /// The time in milliseconds that a share `q` (0 to 1) of the requests stays below, evenly within a bucket, as Prometheus' `histogram_quantile`; none
    /// without requests. Of what is slower than every bound, the last bound.
    pub fn quantile(&self, q: f64) -> Option<f64> {
        let bounds = BOUNDS.iter().copied().map(Some).chain([None]);
        quantile(q, bounds.zip(self.latency)).map(|seconds| seconds * 1e3)
    }
}

/// A refusal, and whose sidecar told it.
#[derive(Clone, PartialEq, Debug)]
pub struct Refusal {
    pub sidecar: String,
    pub told: v1::ReportedRefusal,
}

/// What was counted in [`SLOT`].
#[derive(Default)]
struct Slot {
    /// Its place since the beginning.
    place: u64,
    pairs: HashMap<Pair, Sums>,
}

#[derive(Default)]
struct Kept {
    /// Since when somebody has looked; none while nobody does.
    since: Option<Instant>,
    looked: Option<Instant>,
    /// Counts the times that somebody began to look: what a sidecar told in another one is forgotten.
    round: u64,
    slots: VecDeque<Slot>,
    /// Since each sidecar began, of those that are connected.
    totals: HashMap<Pair, Sums>,
    refusals: VecDeque<Refusal>,
    /// Edges and refusals that there was no room for, here or where they were told.
    left_out: (u64, u64),
    /// Which service a pod stands behind, of which snapshot, and since when that is known.
    places: HashMap<ObjectRef, Node>,
    places_of: Option<(u64, Instant)>,
}

/// What is shown, at one time.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Look {
    /// Of the time that was asked for, how much there is.
    pub covered: Duration,
    pub window: BTreeMap<Pair, Sums>,
    pub totals: BTreeMap<Pair, Sums>,
    /// Requests and failed ones by what was called, one pair of numbers for each slot, the oldest first.
    pub series: BTreeMap<Node, Vec<(u64, u64)>>,
    /// The newest first.
    pub refusals: Vec<Refusal>,
    pub left_out: (u64, u64),
}

/// The traffic of the sidecars that are connected to this replica.
pub struct Traffic {
    hub: Arc<Hub>,
    /// Milliseconds between two reports of a sidecar; 0: none.
    wanted: watch::Sender<u32>,
    kept: Mutex<Kept>,
    started: Instant,
}

impl Traffic {
    /// Nobody looks yet. `unix` is the time since the Unix epoch: the pieces of all replicas begin together, so that they may be put together.
    pub fn new(hub: Arc<Hub>, unix: Duration) -> Arc<Self> {
        let begun = Duration::from_nanos((unix.as_nanos() % SLOT.as_nanos()) as u64);
        let now = Instant::now();
        let started = now.checked_sub(begun).unwrap_or(now);
        Arc::new(Self { hub, wanted: watch::Sender::new(0), kept: Mutex::default(), started })
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A sidecar's place, by its attested pod and identity.
    pub fn join(self: &Arc<Self>, pod: Option<ObjectRef>, id: &SpiffeId) -> Seat {
        let account = format!("{}/{}", id.namespace(), id.service_account()).into();
        Seat { traffic: self.clone(), wanted: self.wanted.subscribe(), asked: 0, pod, account, round: 0, told: HashMap::new() }
    }

    /// Milliseconds between two reports of a sidecar: the more there are, the longer.
    fn interval(&self) -> u32 {
        INTERVAL_MILLIS + u32::try_from(self.hub.streams()).unwrap_or(u32::MAX / 4) * 2
    }

    /// What is asked of sidecars now, in milliseconds; 0 while nobody looks.
    pub fn asks(&self) -> u32 {
        *self.wanted.borrow()
    }

    /// What this replica knows of the last `window`.
    pub fn account(&self, window: Duration) -> Account {
        Account { look: self.look(window), sidecars: self.hub.statuses() }
    }

    /// Somebody looks, at the last `window` (of which there are at most [`SLOTS`]): from now on, and for a while, sidecars are asked.
    fn look(&self, window: Duration) -> Look {
        let now = Instant::now();
        let mut kept = self.kept();
        kept.looked = Some(now);
        if kept.since.is_none() {
            kept.since = Some(now);
            kept.round += 1;
            self.wanted.send_replace(self.interval());
        }
        let place = self.place(now);
        let since = kept.since.map_or(Duration::ZERO, |since| now - since).min(SLOT * SLOTS as u32);
        let back = window.as_secs().div_ceil(SLOT.as_secs()).clamp(1, SLOTS as u64);
        let first = place.saturating_sub(back - 1);
        let covered = (now - self.started).saturating_sub(SLOT * u32::try_from(first).unwrap_or(u32::MAX)).min(since);
        let mut look = Look { covered, left_out: kept.left_out, ..Look::default() };
        let oldest = (place + 1).saturating_sub(SLOTS as u64);
        for slot in kept.slots.iter().filter(|slot| slot.place >= oldest) {
            for (pair, sums) in &slot.pairs {
                if slot.place >= first {
                    look.window.entry(pair.clone()).or_default().add(sums);
                }
                let series = look.series.entry(pair.to.clone()).or_insert_with(|| vec![(0, 0); (place + 1 - oldest) as usize]);
                let (requests, failed) = &mut series[(slot.place - oldest) as usize];
                *requests = requests.saturating_add(sums.requests);
                *failed = failed.saturating_add(sums.failed);
            }
        }
        look.totals = kept.totals.iter().map(|(pair, sums)| (pair.clone(), sums.clone())).collect();
        look.refusals = kept.refusals.iter().rev().cloned().collect();
        look
    }

    /// Asks for nothing more once nobody looks; runs as long as the control plane.
    pub async fn watch(self: Arc<Self>) {
        let mut wanted = self.wanted.subscribe();
        while wanted.wait_for(|wanted| *wanted > 0).await.is_ok() {
            let mut now = Instant::now();
            loop {
                let looked = self.kept().looked;
                let until = looked.map_or(now, |looked| looked + LEASE);
                if until <= now {
                    break;
                }
                tokio::time::sleep_until(until).await;
                now = Instant::now();
            }
            self.rest();
        }
    }

    /// Forgets everything, and asks for nothing more.
    fn rest(&self) {
        let mut kept = self.kept();
        let round = kept.round;
        *kept = Kept { round, ..Kept::default() };
        self.wanted.send_replace(0);
    }

    fn place(&self, now: Instant) -> u64 {
        (now - self.started).as_secs() / SLOT.as_secs()
    }

    fn take(&self, seat: &mut Seat, report: v1::TrafficReport) {
        let (now, snapshot) = (Instant::now(), self.hub.snapshot());
        let mut kept = self.kept();
        // Nobody asked for it.
        if kept.since.is_none() {
            return;
        }
        if seat.round != kept.round || report.whole {
            if seat.round == kept.round {
                kept.forget(&seat.told);
            }
            (seat.round, seat.told) = (kept.round, HashMap::new());
        }
        kept.places(&snapshot, now);
        let own = seat.pod.as_ref().and_then(|pod| kept.places.get(pod).cloned()).unwrap_or(Node::Account(seat.account.clone()));
        let place = self.place(now);
        let is_past = kept.slots.back().is_none_or(|slot| slot.place != place);
        if is_past {
            kept.slots.push_back(Slot { place, ..Slot::default() });
            if kept.slots.len() > SLOTS {
                kept.slots.pop_front();
            }
        }
        let mut left_out = u64::from(report.edges_left_out);
        for edge in report.edges.iter().take(OF_ONE_SIDECAR) {
            let pair = if edge.inbound {
                Pair { from: Node::Plaintext, to: own.clone(), mutual_tls: false }
            } else {
                Pair { from: own.clone(), to: kept.target(&snapshot, &edge.target), mutual_tls: edge.mutual_tls }
            };
            let sums = Sums::of(edge);
            let room = kept.totals.contains_key(&pair) || kept.totals.len() < MOST_PAIRS;
            if !room || (seat.told.len() >= OF_ONE_SIDECAR && !seat.told.contains_key(&pair)) {
                left_out += 1;
                continue;
            }
            kept.totals.entry(pair.clone()).or_default().add(&sums);
            seat.told.entry(pair.clone()).or_default().add(&sums);
            if !report.whole
                && let Some(slot) = kept.slots.back_mut()
                && (slot.pairs.len() < MOST_PAIRS || slot.pairs.contains_key(&pair))
            {
                slot.pairs.entry(pair).or_default().add(&sums);
            }
        }
        kept.left_out.0 += left_out;
        kept.left_out.1 += u64::from(report.refusals_left_out);
        let sidecar = seat.pod.as_ref().map_or_else(|| seat.account.to_string(), ToString::to_string);
        for told in report.refusals.into_iter().take(MOST_REFUSALS / 10) {
            kept.refuse(Refusal { sidecar: sidecar.clone(), told: cut(told) });
        }
    }
}

impl Kept {
    /// A sidecar is gone, or tells everything anew.
    fn forget(&mut self, told: &HashMap<Pair, Sums>) {
        for (pair, sums) in told {
            if let Some(total) = self.totals.get_mut(pair) {
                total.subtract(sums);
                if *total == Sums::default() {
                    self.totals.remove(pair);
                }
            }
        }
    }

    /// Learns which service each pod stands behind: the first by name, where there are several.
    fn places(&mut self, snapshot: &Snapshot, now: Instant) {
        let fresh = self.places_of.is_some_and(|(of, since)| of == snapshot.generation || now - since < PLACES_AGE);
        if fresh {
            return;
        }
        let mut services: Vec<_> = snapshot.endpoints.iter().collect();
        services.sort_by_key(|(id, _)| *id);
        self.places.clear();
        for (id, endpoints) in services {
            for pod in endpoints.anywhere.list.iter().filter_map(|e| e.workload.clone()) {
                self.places.entry(pod).or_insert_with(|| Node::Service(id.clone()));
            }
        }
        self.places_of = Some((snapshot.generation, now));
    }

    /// What a sidecar means by what it dialled.
    fn target(&self, snapshot: &Snapshot, target: &str) -> Node {
        let known = target.parse::<ObjectRef>().ok().and_then(|id| {
            if snapshot.services.contains_key(&id) {
                return Some(Node::Service(id));
            }
            let facts = snapshot.pods.get(&id)?;
            let account = || format!("{}/{}", id.namespace, facts.service_account).into();
            Some(self.places.get(&id).cloned().unwrap_or_else(|| Node::Account(account())))
        });
        known.unwrap_or_else(|| Node::Outside(short(target).into()))
    }

    /// Keeps a refusal, in order of time; one that is there already stays once.
    fn refuse(&mut self, refusal: Refusal) {
        let same = |r: &Refusal| r.told.reference == refusal.told.reference && r.sidecar == refusal.sidecar;
        if self.refusals.iter().any(same) {
            return;
        }
        let at = self.refusals.partition_point(|r| r.told.at <= refusal.told.at);
        self.refusals.insert(at, refusal);
        if self.refusals.len() > MOST_REFUSALS {
            self.refusals.pop_front();
            self.left_out.1 += 1;
        }
    }
}

/// One sidecar's stream.
pub struct Seat {
    traffic: Arc<Traffic>,
    wanted: watch::Receiver<u32>,
    /// What the sidecar was asked for last.
    asked: u32,
    pod: Option<ObjectRef>,
    account: Arc<str>,
    round: u64,
    /// What it has told since it began: taken back when it goes.
    told: HashMap<Pair, Sums>,
}

impl Seat {
    /// Waits until something else is to be asked of the sidecar, and gives it. Cancel-safe.
    pub async fn asks(&mut self) -> v1::TelemetryWanted {
        loop {
            let wanted = *self.wanted.borrow_and_update();
            if wanted != self.asked {
                self.asked = wanted;
                return v1::TelemetryWanted { interval_millis: wanted };
            }
            if self.wanted.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Takes a report in; gives what it costs, in names of a subscription.
    pub fn take(&mut self, report: v1::TrafficReport) -> usize {
        let cost = 1 + (report.edges.len() + report.refusals.len()) / 8;
        let traffic = self.traffic.clone();
        traffic.take(self, report);
        cost
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut kept = self.traffic.kept();
        if self.round == kept.round {
            kept.forget(&self.told);
        }
    }
}

fn cut(told: v1::ReportedRefusal) -> v1::ReportedRefusal {
    let of = |text: String| if text.len() > LONGEST { short(&text) } else { text };
    v1::ReportedRefusal {
        at: told.at,
        reference: of(told.reference),
        peer: of(told.peer),
        source: of(told.source),
        called: of(told.called),
        protocol: of(told.protocol),
        request: of(told.request),
        cause: of(told.cause),
        policy: of(told.policy),
        rule: of(told.rule),
        clause: of(told.clause),
        text: of(told.text),
        remedy: of(told.remedy),
    }
}

fn short(text: &str) -> String {
    text.chars().take(LONGEST).collect()
}

#[cfg(test)]
mod tests;
