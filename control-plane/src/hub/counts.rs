//! How many of this replica's sidecars have a service's policy in force. Counted from acknowledgements when it is asked for.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde::{Deserialize, Serialize};
use weft_core::service::ObjectRef;
use weft_core::version::Version;
use weft_proto::ResourceName;

use super::{Hub, Subscription, lock};
use crate::objects::Kind;

/// How far a policy has come.
#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Count {
    /// Of the policy that is meant: its content.
    #[serde(rename = "v")]
    pub version: u64,
    /// Sidecars that have asked for it.
    #[serde(rename = "s")]
    pub subscribed: u32,
    /// Those of them that have this version in force.
    #[serde(rename = "a")]
    pub applied: u32,
}

/// By service.
pub type Counts = BTreeMap<ObjectRef, Count>;

/// The version of each service's policy that each stream has said to have in force.
pub(super) type Applied = HashMap<ObjectRef, HashMap<u64, Version>>;

pub(super) fn leave(applied: &mut Applied, name: &ResourceName, stream: u64) {
    let ResourceName::Policy(id) = name else { return };
    if let Some(streams) = applied.get_mut(id) {
        streams.remove(&stream);
        if streams.is_empty() {
            applied.remove(id);
        }
    }
}

impl Subscription {
    /// The sidecar has this version of a service's policy in force.
    pub fn applied(&self, service: ObjectRef, version: Version) {
        if self.names.contains(&ResourceName::Policy(service.clone())) {
            lock(&self.hub.streams).applied.entry(service).or_default().insert(self.stream.id, version);
        }
    }
}

impl Hub {
    /// Counts the streams of every service that has a `TrafficPolicy`, `most` services at most. The streams are held up for one
    /// service at a time.
    pub fn policy_counts(&self, most: usize) -> Counts {
        let snapshot = self.snapshot();
        let policies = snapshot.statuses.iter().filter(|(key, _)| key.kind == Kind::TrafficPolicy);
        let entries = policies.flat_map(|(key, status)| status.entries.iter().map(move |entry| (key, entry)));
        let services: BTreeSet<ObjectRef> =
            entries.filter_map(|(key, entry)| entry.parent.service(&key.id.namespace)).take(most).collect();
        let count = |id: ObjectRef| {
            let version = snapshot.policies.get(&id)?.version;
            let streams = lock(&self.streams);
            let subscribed = streams.by_name.get(&ResourceName::Policy(id.clone())).map_or(0, |all| all.len() as u32);
            let applied = streams.applied.get(&id).map_or(0, |all| all.values().filter(|v| **v == version).count() as u32);
            Some((id, Count { version: version.0, subscribed, applied }))
        };
        services.into_iter().filter_map(count).collect()
    }
}
