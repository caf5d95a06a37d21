//! What the API server has told, and what of it the model has not been told yet. Pure: events and times in, batches out.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use kube::runtime::watcher;
use tokio::time::Instant;

use super::lean::{Lean, Received};
use super::standing::Statuses;
use crate::objects::{Kind, Object, ObjectKey};
use crate::watch::{Batch, Change, Problem};

/// A watch that fails once is tried again within half a minute. One that has not failed for this long works, though nothing came.
const FAILURE_STANDS: Duration = Duration::from_secs(75);

/// A server that starts may not know for a moment that it has a kind. One that was never read counts as absent after this time without
/// another answer; of one that was read, the objects are kept for longer.
const ABSENCE_SHOWS: Duration = Duration::from_secs(2);
const ABSENCE_STANDS: Duration = Duration::from_secs(30);

/// How long a kind that was never read is absent before it counts as such. Where a policy that is not seen would open what it closes, that takes longer.
pub(super) fn absence_shows(kind: Kind) -> Duration {
    if is_guarding(kind) { ABSENCE_STANDS } else { ABSENCE_SHOWS }
}

/// Objects of such a kind are never dropped because the server does not have the kind any more: only because it lists them and they are not there.
fn is_guarding(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::AuthorizationPolicy | Kind::NetworkPolicy | Kind::MtlsPolicy | Kind::IdentityDenial | Kind::ExternalService
    )
}

/// What a watch tells of one kind.
#[derive(Clone, Debug)]
pub(super) enum Event {
    /// A list begins; what is not in it when it ends does not stand any more.
    Listing,
    Listed(Received),
    Complete,
    Put(Received),
    Gone(Received),
    /// It could not be read this time, whether there is anything or not.
    Failed(String),
    /// The server does not have the kind, which a cluster may do without.
    Absent,
}

impl Event {
    /// What happened to an object of a kind.
    pub(super) fn of(kind: Kind, event: watcher::Event<Lean>) -> Self {
        match event {
            watcher::Event::Init => Self::Listing,
            watcher::Event::InitApply(o) => Self::Listed(o.read(kind)),
            watcher::Event::InitDone => Self::Complete,
            watcher::Event::Apply(o) => Self::Put(o.read(kind)),
            watcher::Event::Delete(o) => Self::Gone(o.read(kind)),
        }
    }
}

/// A list that is under way.
#[derive(Default)]
struct Listing {
    keys: BTreeSet<ObjectKey>,
    broken: BTreeSet<String>,
}

/// Everything that stands.
pub(super) struct Known {
    kinds: Vec<Kind>,
    complete: BTreeSet<Kind>,
    listings: BTreeMap<Kind, Listing>,
    /// What the model was told, or is about to be.
    objects: BTreeMap<ObjectKey, Object>,
    /// Objects that cannot be read, by what they are called.
    broken: BTreeMap<(Kind, String), Problem>,
    failures: BTreeMap<Kind, (Problem, Instant)>,
    /// Since when a kind is absent, without any other event.
    absent: BTreeMap<Kind, Instant>,
    /// Where the status of objects is noted.
    statuses: Arc<Statuses>,
    changes: BTreeMap<ObjectKey, Change>,
    /// The problems that were told last, and whether everything had been read.
    told: Option<(Vec<Problem>, bool)>,
}

impl Known {
    pub(super) fn new(kinds: &[Kind], statuses: Arc<Statuses>) -> Self {
        Self {
            kinds: kinds.to_vec(),
            complete: BTreeSet::new(),
            listings: BTreeMap::new(),
            objects: BTreeMap::new(),
            broken: BTreeMap::new(),
            failures: BTreeMap::new(),
            absent: BTreeMap::new(),
            statuses,
            changes: BTreeMap::new(),
            told: None,
        }
    }

    /// Objects whose change the model is to be told, once everything has been read.
    pub(super) fn waiting(&self) -> usize {
        if self.is_complete() { self.changes.len() } else { 0 }
    }

    fn is_complete(&self) -> bool {
        self.kinds.iter().all(|k| self.complete.contains(k))
    }

    pub(super) fn hear(&mut self, kind: Kind, event: Event, now: Instant) {
        match event {
            // What was read stands. What was never read is waited for, however long it takes: without it, this replica would tell
            // sidecars that what they hold of it is gone, while other replicas, and they themselves, have it still.
            Event::Failed(message) => {
                self.absent.remove(&kind);
                return self.fail(kind, message, now);
            }
            Event::Absent => {
                self.failures.remove(&kind);
                let since = *self.absent.entry(kind).or_insert(now);
                if is_guarding(kind) && self.objects.keys().any(|key| key.kind == kind) {
                    let message = "the API server does not have the kind any more; what was read of it stays in force: install its definition \
                                   again, or restart the control plane if it is to be gone";
                    return self.fail(kind, message.into(), now);
                }
                let enough = if self.complete.contains(&kind) { ABSENCE_STANDS } else { absence_shows(kind) };
                if now.duration_since(since) >= enough {
                    self.listings.remove(&kind);
                    self.listed(kind);
                }
                return;
            }
            Event::Listing => {
                self.listings.insert(kind, Listing::default());
                // It may fail yet: only what it brings shows that it works, or that the kind is there.
                return;
            }
            Event::Listed(received) => {
                let listing = self.listings.entry(kind).or_default();
                listing.keys.extend(received.key.clone());
                if received.object.is_err() {
                    listing.broken.insert(received.place.clone());
                }
                self.put(kind, received);
            }
            Event::Complete => self.listed(kind),
            Event::Put(received) => self.put(kind, received),
            Event::Gone(received) => {
                self.broken.remove(&(kind, received.place));
                if let Some(key) = received.key {
                    self.remove(key);
                }
            }
        }
        self.failures.remove(&kind);
        self.absent.remove(&kind);
    }

    fn fail(&mut self, kind: Kind, message: String, now: Instant) {
        let place = format!("{}/{}", kind.api_version(), kind.as_str());
        self.failures.insert(kind, (Problem { place, field: String::new(), message }, now));
    }

    fn put(&mut self, kind: Kind, received: Received) {
        if let (Some(key), Some(standing)) = (&received.key, received.standing) {
            self.statuses.put(key.clone(), standing);
        }
        match received.object {
            Ok(object) => {
                self.broken.remove(&(kind, received.place));
                let key = object.key();
                if self.objects.get(&key) != Some(&object) {
                    self.objects.insert(key.clone(), object.clone());
                    self.changes.insert(key, Change::Upsert(object));
                }
            }
            // The last good version stands.
            Err(fault) => {
                let problem = Problem { place: received.place.clone(), field: fault.field, message: fault.message };
                self.broken.insert((kind, received.place), problem);
            }
        }
    }

    fn remove(&mut self, key: ObjectKey) {
        self.statuses.remove(&key);
        if self.objects.remove(&key).is_some() {
            self.changes.insert(key.clone(), Change::Delete(key));
        }
    }

    /// A list is complete: what it lacks is gone.
    fn listed(&mut self, kind: Kind) {
        let listing = self.listings.remove(&kind).unwrap_or_default();
        let gone: Vec<_> = self.objects.keys().filter(|k| k.kind == kind && !listing.keys.contains(*k)).cloned().collect();
        for key in gone {
            self.remove(key);
        }
        // Those that could never be read have a status as well.
        for key in self.statuses.keys(kind).into_iter().filter(|k| !listing.keys.contains(k)) {
            self.statuses.remove(&key);
        }
        self.broken.retain(|(of, place), _| *of != kind || listing.broken.contains(place));
        self.complete.insert(kind);
    }

    /// What the model is to be told now, if there is anything. Before everything has been read, that is problems alone.
    pub(super) fn take(&mut self, now: Instant) -> Option<Batch> {
        let complete = &self.complete;
        self.failures.retain(|kind, (_, at)| !complete.contains(kind) || now.duration_since(*at) < FAILURE_STANDS);
        let mut problems: Vec<Problem> = self.failures.values().map(|(p, _)| p).chain(self.broken.values()).cloned().collect();
        problems.sort();
        let complete = self.is_complete();
        let changes: Vec<Change> = if complete { std::mem::take(&mut self.changes).into_values().collect() } else { vec![] };
        let standing = (problems.clone(), complete);
        if changes.is_empty() && self.told.as_ref() == Some(&standing) {
            return None;
        }
        self.told = Some(standing);
        Some(Batch { changes, problems, complete })
    }
}

#[cfg(test)]
mod tests;
