//! push: who must hear of a change. A change costs what its subscribers cost, not what the mesh does.

pub mod counts;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;
use tokio::sync::{Notify, watch};
use weft_core::Namespace;
use weft_core::service::ObjectRef;
use weft_core::version::Version;
use weft_proto::{ResourceName, v1};

use crate::model::Changed;
use crate::model::status::Statuses;
use crate::snapshot::Snapshot;
use crate::watch::Problem;

/// The current snapshot, and the streams that follow it.
pub struct Hub {
    snapshot: ArcSwap<Snapshot>,
    problems: ArcSwap<Vec<Problem>>,
    meshed: watch::Sender<Arc<BTreeSet<Namespace>>>,
    route_statuses: watch::Sender<Statuses>,
    streams: Mutex<Streams>,
    next_id: AtomicU64,
}

#[derive(Default)]
struct Streams {
    all: HashMap<u64, Arc<Stream>>,
    by_name: HashMap<ResourceName, HashSet<u64>>,
    by_pod: HashMap<ObjectRef, HashSet<u64>>,
    applied: counts::Applied,
    /// The version of its own inbound policy that each stream has said to have in force.
    applied_inbound: HashMap<u64, Version>,
}

/// What the hub and one stream's task share.
pub struct Stream {
    id: u64,
    pub pod: Option<ObjectRef>,
    pending: Mutex<HashSet<ResourceName>>,
    wake: Notify,
    pub status: Mutex<v1::SidecarStatus>,
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing that holds one of these locks can leave it half changed.
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Hub {
    pub fn new(snapshot: Snapshot) -> Arc<Self> {
        Arc::new(Self {
            meshed: watch::Sender::new(snapshot.meshed.clone()),
            route_statuses: watch::Sender::new(snapshot.statuses.clone()),
            snapshot: ArcSwap::from_pointee(snapshot),
            problems: ArcSwap::from_pointee(vec![]),
            streams: Mutex::default(),
            next_id: AtomicU64::new(1),
        })
    }

    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshot.load_full()
    }

    pub fn problems(&self) -> Arc<Vec<Problem>> {
        self.problems.load_full()
    }

    pub fn set_problems(&self, problems: Vec<Problem>) {
        self.problems.store(Arc::new(problems));
    }

    /// The namespaces that are in the mesh, as they come and go.
    pub fn meshed(&self) -> watch::Receiver<Arc<BTreeSet<Namespace>>> {
        self.meshed.subscribe()
    }

    /// What became of each route and policy, whenever it is another: `diff` with what was seen before tells which.
    pub fn route_statuses(&self) -> watch::Receiver<Statuses> {
        self.route_statuses.subscribe()
    }

    /// Publishes a snapshot, then wakes whoever subscribes to what changed. A stream that subscribes meanwhile reads
    /// the new snapshot or is woken: never neither.
    pub fn publish(&self, snapshot: Snapshot, changed: &BTreeSet<Changed>) {
        self.meshed.send_if_modified(|meshed| {
            let another = *meshed != snapshot.meshed;
            meshed.clone_from(&snapshot.meshed);
            another
        });
        if changed.iter().any(|c| matches!(c, Changed::Status(_))) {
            self.route_statuses.send_replace(snapshot.statuses.clone());
        }
        self.snapshot.store(Arc::new(snapshot));
        let streams = lock(&self.streams);
        for change in changed {
            let (name, who) = match change {
                Changed::Name(name) => (name.clone(), streams.by_name.get(name)),
                Changed::Inbound(pod) => (ResourceName::Inbound, streams.by_pod.get(pod)),
                // A stream that has not subscribed to it has a sidecar that does not know the name.
                Changed::Outbound(pod) => {
                    for id in streams.by_pod.get(pod).into_iter().flatten() {
                        if streams.by_name.get(&ResourceName::Outbound).is_some_and(|s| s.contains(id))
                            && let Some(stream) = streams.all.get(id)
                        {
                            lock(&stream.pending).insert(ResourceName::Outbound);
                            stream.wake.notify_one();
                        }
                    }
                    continue;
                }
                Changed::Meshed(_) | Changed::Status(_) => continue,
            };
            for stream in who.into_iter().flatten().filter_map(|id| streams.all.get(id)) {
                lock(&stream.pending).insert(name.clone());
                stream.wake.notify_one();
            }
        }
    }

    /// Registers a stream for the sidecar of `pod`; it ends when the handle is dropped.
    pub fn join(self: &Arc<Self>, pod: Option<ObjectRef>, status: v1::SidecarStatus) -> Subscription {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let stream =
            Arc::new(Stream { id, pod: pod.clone(), pending: Mutex::default(), wake: Notify::new(), status: Mutex::new(status) });
        let mut streams = lock(&self.streams);
        streams.all.insert(id, stream.clone());
        if let Some(pod) = pod {
            streams.by_pod.entry(pod).or_default().insert(id);
        }
        Subscription { hub: self.clone(), stream, names: HashSet::new() }
    }

    /// How many sidecars are connected.
    pub fn streams(&self) -> usize {
        lock(&self.streams).all.len()
    }

    /// What the stream of a pod's sidecar has subscribed to; none where no stream is up. It looks at every subscription: for operators' questions.
    pub fn names_of(&self, pod: &ObjectRef) -> Option<Vec<ResourceName>> {
        let streams = lock(&self.streams);
        let ids = streams.by_pod.get(pod).filter(|ids| !ids.is_empty())?;
        let of = |ids: &HashSet<u64>, has: &HashSet<u64>| ids.iter().any(|id| has.contains(id));
        Some(streams.by_name.iter().filter(|(_, has)| of(ids, has)).map(|(name, _)| name.clone()).collect())
    }

    pub fn statuses(&self) -> Vec<v1::SidecarStatus> {
        let mut all: Vec<_> = lock(&self.streams).all.values().map(|s| lock(&s.status).clone()).collect();
        all.sort_by(|a, b| (&a.namespace, &a.pod).cmp(&(&b.namespace, &b.pod)));
        all
    }
}

/// One stream's place in the hub.
pub struct Subscription {
    hub: Arc<Hub>,
    stream: Arc<Stream>,
    names: HashSet<ResourceName>,
}

impl Subscription {
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.hub.snapshot()
    }

    pub fn pod(&self) -> Option<&ObjectRef> {
        self.stream.pod.as_ref()
    }

    pub fn len(&self) -> usize {
        self.names.len()
    }

    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// Subscribes to a name and marks it to be looked at; false if it was subscribed before.
    pub fn add(&mut self, name: ResourceName) -> bool {
        if !self.names.insert(name.clone()) {
            return false;
        }
        lock(&self.hub.streams).by_name.entry(name.clone()).or_default().insert(self.stream.id);
        self.mark(name);
        true
    }

    pub fn remove(&mut self, name: &ResourceName) -> bool {
        if !self.names.remove(name) {
            return false;
        }
        leave(&mut lock(&self.hub.streams), name, self.stream.id);
        lock(&self.stream.pending).remove(name);
        true
    }

    /// Has a name looked at anew.
    pub fn mark(&self, name: ResourceName) {
        lock(&self.stream.pending).insert(name);
        self.stream.wake.notify_one();
    }

    /// Has the task look whether anything waits, after its window opened again.
    pub fn look_again(&self) {
        self.stream.wake.notify_one();
    }

    /// Waits until something may have changed. Cancel-safe: what was marked stays marked.
    pub async fn wait(&self) {
        self.stream.wake.notified().await;
    }

    /// Takes up to `limit` names to look at; more wakes again.
    pub fn take(&self, limit: usize) -> Vec<ResourceName> {
        let mut pending = lock(&self.stream.pending);
        if pending.len() <= limit {
            return pending.drain().collect();
        }
        let some: Vec<_> = pending.iter().take(limit).cloned().collect();
        for name in &some {
            pending.remove(name);
        }
        self.stream.wake.notify_one();
        some
    }

    pub fn status(&self) -> MutexGuard<'_, v1::SidecarStatus> {
        lock(&self.stream.status)
    }
}

fn leave(streams: &mut Streams, name: &ResourceName, id: u64) {
    counts::leave(&mut streams.applied, name, id);
    if let Some(set) = streams.by_name.get_mut(name) {
        set.remove(&id);
        if set.is_empty() {
            streams.by_name.remove(name);
        }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut streams = lock(&self.hub.streams);
        streams.all.remove(&self.stream.id);
        streams.applied_inbound.remove(&self.stream.id);
        for name in &self.names {
            leave(&mut streams, name, self.stream.id);
        }
        if let Some(pod) = &self.stream.pod
            && let Some(set) = streams.by_pod.get_mut(pod)
        {
            set.remove(&self.stream.id);
            if set.is_empty() {
                streams.by_pod.remove(pod);
            }
        }
    }
}
