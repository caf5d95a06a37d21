//! What one name brings: whoever dials a service needs the service, its endpoints, its policy, and where its routes lead. All of it goes out together, so
//! that nobody uses a service before its routes.

use std::collections::HashSet;

use tonic::Status;
use weft_core::service::ObjectRef;
use weft_proto::v1::address::Kind;
use weft_proto::v1::resource::Body;
use weft_proto::{ResourceName, v1};

use super::{MAX_HELD, Session};
use crate::snapshot::{Snapshot, View};

impl Session {
    /// The names, and all that they bring, which the stream is subscribed to from now on; in the order in which a sidecar needs them.
    pub(super) fn closure(&mut self, snapshot: &Snapshot, names: Vec<ResourceName>) -> Result<Vec<ResourceName>, Status> {
        let mut seen: HashSet<ResourceName> = HashSet::with_capacity(names.len());
        let mut waiting = names;
        let mut all = Vec::with_capacity(waiting.len());
        while let Some(name) = waiting.pop() {
            if !seen.insert(name.clone()) {
                continue;
            }
            for brought in self.brings(snapshot, &name) {
                if self.sub.len() >= MAX_HELD {
                    return Err(Status::resource_exhausted(format!(
                        "the stream holds {MAX_HELD} names with what they bring, and no more are taken: unsubscribe from what is idle"
                    )));
                }
                // Marked as well where it is new, so that a change that came after the snapshot is not missed.
                self.sub.add(brought.clone());
                // A service that is called is looked at again though it was seen as a backend.
                if let ResourceName::Service(id) = &brought
                    && matches!(name, ResourceName::Address(_))
                    && self.fronts.insert(id.clone())
                {
                    seen.remove(&brought);
                }
                waiting.push(brought);
            }
            all.push(name);
        }
        all.sort_by_key(rank);
        all.dedup();
        // A set goes when the policy that named it has gone.
        let (mut all, gone): (Vec<_>, Vec<_>) = all.into_iter().partition(|name| {
            !matches!(name, ResourceName::Peers(_)) || !matches!(snapshot.view(name, &self.viewer), View::Absent)
        });
        all.extend(gone);
        Ok(all)
    }

    fn brings(&self, snapshot: &Snapshot, name: &ResourceName) -> Vec<ResourceName> {
        match name {
            ResourceName::Address(_) => match snapshot.view(name, &self.viewer) {
                View::Plain(entry) => service_at(&entry.body).map(ResourceName::Service).into_iter().collect(),
                _ => vec![],
            },
            ResourceName::Service(id) => {
                let mut brought = vec![ResourceName::Endpoints(id.clone())];
                if self.routes {
                    brought.push(ResourceName::Policy(id.clone()));
                    brought.extend(self.fronts.contains(id).then(|| ResourceName::Routes(id.clone())));
                }
                brought
            }
            // The sets that its policies name, and those that they do not name any more.
            ResourceName::Inbound | ResourceName::Outbound if self.knows_peers => {
                let named = self.viewer.pod.as_ref().and_then(|pod| snapshot.named.get(pod));
                let named = named.into_iter().flat_map(|sets| sets.iter().copied());
                let all: HashSet<_> = named.chain(self.peers.keys().copied()).collect();
                all.into_iter().map(ResourceName::Peers).collect()
            }
            ResourceName::Routes(_) if self.routes => match snapshot.view(name, &self.viewer) {
                View::Routes(routes) => routes.backends.iter().cloned().map(ResourceName::Service).collect(),
                _ => vec![],
            },
            _ => vec![],
        }
    }
}

fn service_at(body: &Body) -> Option<ObjectRef> {
    match body {
        Body::Address(v1::Address { kind: Some(Kind::Service(id)) }) => id.try_into().ok(),
        _ => None,
    }
}

/// What a service is used with comes before it; what is large comes last.
fn rank(name: &ResourceName) -> (u8, ResourceName) {
    let rank = match name {
        ResourceName::Trust | ResourceName::Mesh => 0,
        ResourceName::Peers(_) => 1,
        ResourceName::Inbound | ResourceName::Outbound => 2,
        ResourceName::Address(_) => 3,
        ResourceName::Policy(_) => 4,
        ResourceName::Routes(_) => 5,
        ResourceName::Service(_) => 6,
        ResourceName::Endpoints(_) => 7,
    };
    (rank, name.clone())
}
