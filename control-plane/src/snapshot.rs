//! The mesh as sidecars may see it: immutable, encoded once, shared by every stream.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use weft_core::service::{AddressKind, Endpoint, ObjectRef};
use weft_core::version::Version;
use weft_proto::v1::resource::Body;
use weft_proto::{ResourceName, v1};

/// A resource with its version.
#[derive(Debug)]
pub struct Entry {
    pub version: Version,
    pub body: Body,
}

impl Entry {
    /// Encodes a body once, for its version.
    pub fn new(body: Body) -> Arc<Self> {
        let mut bytes = Vec::new();
        body.encode(&mut bytes);
        Arc::new(Self { version: Version::of(&bytes), body })
    }
}

/// A service's endpoints, by address.
#[derive(Debug)]
pub struct EndpointsEntry {
    pub version: Version,
    pub list: BTreeMap<IpAddr, Endpoint>,
}

impl EndpointsEntry {
    pub fn new(list: BTreeMap<IpAddr, Endpoint>) -> Arc<Self> {
        let body = full(&list);
        let mut bytes = Vec::new();
        body.encode(&mut bytes);
        Arc::new(Self { version: Version::of(&bytes), list })
    }

    /// What brings a sidecar that holds `base`, or nothing, to this version: the change, or everything where that is less. In pieces, each
    /// the base of the next, so that no message grows with a service; the last one has the version of the whole.
    pub fn pieces(&self, base: Option<&Self>) -> Vec<(Version, Body)> {
        let changed = |base: &Self| {
            let upserted: Vec<&Endpoint> =
                self.list.iter().filter(|(a, e)| base.list.get(a) != Some(e)).map(|(_, e)| e).collect();
            let removed: Vec<IpAddr> = base.list.keys().filter(|a| !self.list.contains_key(a)).copied().collect();
            (upserted.len() + removed.len() < self.list.len()).then_some((base.version, upserted, removed))
        };
        let (mut base, upserted, removed) = match base.and_then(changed) {
            Some((base, upserted, removed)) => (Some(base), upserted, removed),
            None => (None, self.list.values().collect(), vec![]),
        };
        let count = upserted.len().max(removed.len()).div_ceil(PIECE).max(1);
        (0..count)
            .map(|i| {
                let version = if i + 1 == count { self.version } else { self.version.step(i) };
                let upserted = piece(&upserted, i).map(|e| (*e).into()).collect();
                let body = match base.replace(version) {
                    None => Body::Endpoints(v1::Endpoints { endpoints: upserted }),
                    Some(base) => {
                        let removed = piece(&removed, i).map(|a| weft_proto::address_bytes(*a).into()).collect();
                        Body::EndpointsDelta(v1::EndpointsDelta { base: base.0, upserted, removed })
                    }
                };
                (version, body)
            })
            .collect()
    }
}

/// Endpoints in one message at most: some hundred bytes each, far below what gRPC reads by default (4 MiB).
pub const PIECE: usize = 2_500;

fn piece<T>(list: &[T], index: usize) -> impl Iterator<Item = &T> {
    list.iter().skip(index * PIECE).take(PIECE)
}

fn full(list: &BTreeMap<IpAddr, Endpoint>) -> Body {
    Body::Endpoints(v1::Endpoints { endpoints: list.values().map(Into::into).collect() })
}

/// One generation of the mesh. Cloning shares structure, so that a change costs what it touches.
#[derive(Clone, Debug)]
pub struct Snapshot {
    pub generation: u64,
    pub trust: Arc<Entry>,
    pub mesh: Arc<Entry>,
    pub inbound: imbl::HashMap<ObjectRef, Arc<Entry>>,
    pub addresses: imbl::HashMap<IpAddr, Arc<Entry>>,
    pub services: imbl::HashMap<ObjectRef, Arc<Entry>>,
    pub endpoints: imbl::HashMap<ObjectRef, Arc<EndpointsEntry>>,
    /// Names that DNS answers for.
    pub dns: imbl::HashMap<ObjectRef, Arc<DnsEntry>>,
    /// The service account of every pod that lives.
    pub accounts: imbl::HashMap<ObjectRef, Arc<String>>,
    unknown: Arc<Entry>,
}

/// What DNS says of a service.
#[derive(Debug, PartialEq, Eq)]
pub enum DnsEntry {
    /// Its cluster IPs.
    Addresses(Vec<IpAddr>),
    /// Headless: its ready endpoints, and each pod by name.
    Endpoints(Vec<(Option<String>, IpAddr)>),
    /// `ExternalName`.
    Alias(String),
}

/// A resource as one stream sees it.
pub enum View {
    Plain(Arc<Entry>),
    Endpoints(Arc<EndpointsEntry>),
    Absent,
}

impl View {
    pub fn version(&self) -> Version {
        match self {
            Self::Plain(e) => e.version,
            Self::Endpoints(e) => e.version,
            Self::Absent => Version::default(),
        }
    }
}

impl Snapshot {
    pub fn new(trust: Arc<Entry>, mesh: Arc<Entry>) -> Self {
        Self {
            generation: 0,
            trust,
            mesh,
            inbound: imbl::HashMap::new(),
            addresses: imbl::HashMap::new(),
            services: imbl::HashMap::new(),
            endpoints: imbl::HashMap::new(),
            dns: imbl::HashMap::new(),
            accounts: imbl::HashMap::new(),
            unknown: Entry::new(Body::Address((&AddressKind::Unknown).into())),
        }
    }

    /// Whether a pod of this service account lives under this name: only such a one may renew.
    pub fn has_pod(&self, pod: &ObjectRef, service_account: &str) -> bool {
        self.accounts.get(pod).is_some_and(|a| **a == service_account)
    }

    /// What `name` is for the sidecar of `pod`. Every address has an answer: "unknown" is one.
    pub fn view(&self, name: &ResourceName, pod: Option<&ObjectRef>) -> View {
        let plain = |e: Option<&Arc<Entry>>| e.map_or(View::Absent, |e| View::Plain(e.clone()));
        match name {
            ResourceName::Trust => View::Plain(self.trust.clone()),
            ResourceName::Mesh => View::Plain(self.mesh.clone()),
            ResourceName::Inbound => plain(pod.and_then(|p| self.inbound.get(p))),
            ResourceName::Address(ip) => View::Plain(self.addresses.get(ip).unwrap_or(&self.unknown).clone()),
            ResourceName::Service(id) => plain(self.services.get(id)),
            ResourceName::Endpoints(id) => self.endpoints.get(id).map_or(View::Absent, |e| View::Endpoints(e.clone())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use weft_core::service::Reach;

    fn entry(members: &std::collections::BTreeSet<u16>, port: u16) -> Arc<EndpointsEntry> {
        let endpoint = |i: &u16| {
            let address = IpAddr::from([10, 1, i.to_be_bytes()[0], i.to_be_bytes()[1]]);
            let ports = vec![(80, port)];
            (
                address,
                Endpoint { address, workload: None, reach: Reach::Plain, ready: true, zone: "".into(), node: "".into(), ports },
            )
        };
        EndpointsEntry::new(members.iter().map(endpoint).collect())
    }

    /// What a sidecar does with them.
    fn apply(
        mut held: BTreeMap<IpAddr, Endpoint>,
        mut version: Version,
        pieces: Vec<(Version, Body)>,
    ) -> BTreeMap<IpAddr, Endpoint> {
        let read = |list: &[v1::Endpoint]| {
            assert!(list.len() <= PIECE);
            list.iter().map(|e| weft_proto::endpoint_from(e).map(|e| (e.address, e)).expect("valid")).collect::<BTreeMap<_, _>>()
        };
        for (next, body) in pieces {
            match body {
                Body::Endpoints(all) => held = read(&all.endpoints),
                Body::EndpointsDelta(delta) => {
                    assert_eq!(delta.base, version.0);
                    held.extend(read(&delta.upserted));
                    held.retain(|a, _| !delta.removed.iter().any(|r| **r == *weft_proto::address_bytes(*a)));
                }
                other => panic!("{other:?} is no endpoints"),
            }
            version = next;
        }
        held
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn pieces_lead_from_what_is_held_to_what_is(
            before in proptest::collection::btree_set(0u16..9_000, 0..7_000), after in proptest::collection::btree_set(0u16..9_000, 0..7_000),
            fresh in any::<bool>(), moved in any::<bool>(),
        ) {
            let (before, after) = (entry(&before, 8080), entry(&after, if moved { 9090 } else { 8080 }));
            let (held, base) = if fresh { (BTreeMap::new(), None) } else { (before.list.clone(), Some(&*before)) };
            let pieces = after.pieces(base);
            prop_assert_eq!(pieces.last().map(|(v, _)| *v), Some(after.version));
            prop_assert_eq!(apply(held, before.version, pieces), after.list.clone());
        }
    }
}
