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
        ResourceName::Trust | ResourceName::Mesh | ResourceName::Inbound | ResourceName::Outbound => 0,
        ResourceName::Address(_) => 1,
        ResourceName::Policy(_) => 2,
        ResourceName::Routes(_) => 3,
        ResourceName::Service(_) => 4,
        ResourceName::Endpoints(_) => 5,
    };
    (rank, name.clone())
}
