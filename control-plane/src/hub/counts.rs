//! How many of this replica's sidecars have a policy in force: a service's, or one that is for their own pods. Counted from acknowledgements when it is asked for.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde::{Deserialize, Serialize};
use weft_core::service::ObjectRef;
use weft_core::version::Version;
use weft_proto::ResourceName;

use super::{Hub, Subscription, lock};
use crate::objects::{Kind, ObjectKey};

/// How far a policy has come.
#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Count {
    /// Of the policy that is meant: its content, or of one for pods its generation.
    #[serde(rename = "v")]
    pub version: u64,
    /// Sidecars that have asked for it, or that it is for.
    #[serde(rename = "s")]
    pub subscribed: u32,
    /// Those of them that have this version in force.
    #[serde(rename = "a")]
    pub applied: u32,
}

/// By service, and by policy where it is for pods.
pub type Counts = BTreeMap<ObjectKey, Count>;

/// Kinds that are for pods: they are in the inbound policies of those.
const FOR_PODS: [Kind; 2] = [Kind::AuthorizationPolicy, Kind::MtlsPolicy];

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

impl Subscription {
    /// The sidecar has this version of its own inbound policy in force.
    pub fn applied_inbound(&self, version: Version) {
        lock(&self.hub.streams).applied_inbound.insert(self.stream.id, version);
    }
}

impl Hub {
    /// Counts the streams whose pods a policy is for, of `most` policies at most. One that has the present inbound policy of its pod in force has
    /// everything in force that is in it.
    fn pod_policy_counts(&self, most: usize) -> Counts {
        let snapshot = self.snapshot();
        let keys = snapshot.statuses.iter().filter(|(key, _)| FOR_PODS.contains(&key.kind)).take(most);
        let version = |generation: i64| u64::try_from(generation).unwrap_or_default();
        let count = |generation| Count { version: version(generation), ..Count::default() };
        let mut counts: Counts = keys.map(|(key, status)| (key.clone(), count(status.generation))).collect();
        if counts.is_empty() {
            return counts;
        }
        let streams = lock(&self.streams);
        for stream in streams.all.values() {
            let Some(pod) = &stream.pod else { continue };
            let (Some(policies), Some(inbound)) = (snapshot.governed.get(pod), snapshot.inbound.get(pod)) else { continue };
            let has_it = streams.applied_inbound.get(&stream.id) == Some(&inbound.version);
            for key in policies.iter() {
                if let Some(count) = counts.get_mut(key) {
                    count.subscribed += 1;
                    count.applied += u32::from(has_it);
                }
            }
        }
        counts
    }

    /// Counts the streams of every service that has a `TrafficPolicy`, `most` services at most, and of every policy for pods, as many at most. The
    /// streams are held up for one service at a time.
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
            Some((ObjectKey { kind: Kind::Service, id }, Count { version: version.0, subscribed, applied }))
        };
        let of_services = services.into_iter().filter_map(count);
        of_services.chain(self.pod_policy_counts(most)).collect()
    }
}
