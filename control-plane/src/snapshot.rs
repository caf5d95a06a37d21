//! The mesh as sidecars may see it: immutable, encoded once, shared by every stream.

pub mod modes;
mod peers;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use weft_core::Namespace;
use weft_core::authorization::Action;
use weft_core::network_policy::PeersId;
use weft_core::service::{AddressKind, Endpoint, ObjectRef};
use weft_core::version::Version;
use weft_proto::v1::resource::Body;
use weft_proto::{ResourceName, v1};

use crate::model::status::Statuses;
use crate::objects::authorization::Scope;
use crate::objects::{ObjectKey, PodObject};
use crate::watch::Problem;
use modes::PodModes;

pub use peers::PeersEntry;

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

/// A list of a service's endpoints.
#[derive(Debug)]
pub struct EndpointsEntry {
    pub version: Version,
    /// Sorted by address. Endpoints on a host's network may share one: they differ by their ports.
    pub list: Vec<Endpoint>,
}

impl EndpointsEntry {
    pub fn new(mut list: Vec<Endpoint>) -> Arc<Self> {
        list.sort_by(|a, b| (a.address, &a.ports).cmp(&(b.address, &b.ports)));
        let body = full(&list);
        let mut bytes = Vec::new();
        body.encode(&mut bytes);
        Arc::new(Self { version: Version::of(&bytes), list })
    }

    /// What brings a sidecar that holds `base`, or nothing, to this version: the change, or everything where that is less. In pieces, each
    /// the base of the next, so that no message grows with a service; the last one has the version of the whole.
    pub fn pieces(&self, base: Option<&Self>) -> Vec<(Version, Body)> {
        let now = self.by_address();
        let changed = |base: &Self| {
            let before = base.by_address();
            let upserted: Vec<&Vec<&Endpoint>> = now.iter().filter(|(a, e)| before.get(*a) != Some(*e)).map(|(_, e)| e).collect();
            let removed: Vec<IpAddr> = before.keys().filter(|a| !now.contains_key(*a)).copied().collect();
            (upserted.len() + removed.len() < now.len()).then_some((base.version, upserted, removed))
        };
        let (mut base, upserted, removed) = match base.and_then(changed) {
            Some((base, upserted, removed)) => (Some(base), upserted, removed),
            None => (None, now.values().collect(), vec![]),
        };
        let count = upserted.len().max(removed.len()).div_ceil(PIECE).max(1);
        (0..count)
            .map(|i| {
                let more = i + 1 < count;
                let version = if more { self.version.step(i) } else { self.version };
                let upserted = piece(&upserted, i).copied().flatten().map(|e| (*e).into()).collect();
                let body = match base.replace(version) {
                    None => Body::Endpoints(v1::Endpoints { endpoints: upserted, more }),
                    Some(base) => {
                        let removed = piece(&removed, i).map(|a| weft_proto::address_bytes(*a).into()).collect();
                        Body::EndpointsDelta(v1::EndpointsDelta { base: base.0, upserted, removed, more })
                    }
                };
                (version, body)
            })
            .collect()
    }

    /// A change names endpoints by address: those that share one go together.
    fn by_address(&self) -> BTreeMap<IpAddr, Vec<&Endpoint>> {
        let mut map: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for e in &self.list {
            map.entry(e.address).or_default().push(e);
        }
        map
    }
}

/// Endpoints in one message at most: some hundred bytes each, far below what gRPC reads by default (4 MiB).
pub const PIECE: usize = 2_500;

fn piece<T>(list: &[T], index: usize) -> impl Iterator<Item = &T> {
    list.iter().skip(index * PIECE).take(PIECE)
}

fn full(list: &[Endpoint]) -> Body {
    Body::Endpoints(v1::Endpoints { endpoints: list.iter().map(Into::into).collect(), more: false })
}

/// Where a pod runs; empty where that is not known.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Place {
    pub node: Arc<str>,
    pub zone: Arc<str>,
}

/// A service's endpoints as they are seen from each place.
#[derive(Debug)]
pub struct ServiceEndpoints {
    pub anywhere: Arc<EndpointsEntry>,
    /// Nodes whose pods see another list than those elsewhere.
    pub from_node: BTreeMap<Arc<str>, Arc<EndpointsEntry>>,
    /// Zones likewise; a node's own list goes before its zone's.
    pub from_zone: BTreeMap<Arc<str>, Arc<EndpointsEntry>>,
}

impl ServiceEndpoints {
    /// What the pods at a place see.
    pub fn seen_from(&self, place: &Place) -> &Arc<EndpointsEntry> {
        self.from_node.get(&place.node).or_else(|| self.from_zone.get(&place.zone)).unwrap_or(&self.anywhere)
    }

    /// The versions of all lists, which tell whether anything is another.
    pub fn versions(&self) -> Vec<(String, Version)> {
        let named = |what: &'static str, name: &str, e: &EndpointsEntry| (format!("{what}{name}"), e.version);
        std::iter::once(named("anywhere", "", &self.anywhere))
            .chain(self.from_node.iter().map(|(n, e)| named("node/", n, e)))
            .chain(self.from_zone.iter().map(|(z, e)| named("zone/", z, e)))
            .collect()
    }
}

/// A service's routes, as the callers of each namespace see them.
#[derive(Debug)]
pub struct ServiceRoutes {
    /// For callers of every other namespace; without any route where there are but consumers'.
    pub producer: Arc<RoutesEntry>,
    pub consumers: BTreeMap<Namespace, Arc<RoutesEntry>>,
}

/// Routes, and where they lead.
#[derive(Debug)]
pub struct RoutesEntry {
    pub entry: Arc<Entry>,
    /// Services, each once.
    pub backends: Vec<ObjectRef>,
}

impl ServiceRoutes {
    pub fn seen_from(&self, namespace: &Namespace) -> &Arc<RoutesEntry> {
        self.consumers.get(namespace).unwrap_or(&self.producer)
    }

    /// The versions of all views, which tell whether anything is another.
    pub fn versions(&self) -> Vec<(Option<&Namespace>, Version)> {
        let consumers = self.consumers.iter().map(|(n, e)| (Some(n), e.entry.version));
        std::iter::once((None, self.producer.entry.version)).chain(consumers).collect()
    }
}

/// A pod that lives: what attestation and routing need to know of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PodFacts {
    /// Given by an API server alone.
    pub uid: Option<String>,
    pub service_account: String,
    pub addresses: Vec<IpAddr>,
    pub host_network: bool,
    pub has_sidecar: bool,
    pub place: Place,
}

impl PodFacts {
    pub fn of(pod: &PodObject, place: Place) -> Self {
        Self {
            uid: pod.uid.clone(),
            service_account: pod.service_account().to_owned(),
            addresses: pod.addresses(),
            host_network: pod.spec.host_network,
            has_sidecar: pod.has_sidecar(),
            place,
        }
    }
}

/// An authorization policy, for explanations: sidecars have it in the inbound policies of the pods that it is for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AuthorizationFacts {
    pub scope: Scope,
    /// None where it cannot be read, and nothing that could be is in force.
    pub action: Option<Action>,
    pub dry_run: bool,
    /// Why it cannot be honoured as it stands.
    pub broken: Option<String>,
    /// Something is in force: it, the last version that could be honoured, or a refusal in its stead.
    pub is_in_force: bool,
    /// A version that could be honoured is: where it is broken, that is the last one.
    pub is_last_good: bool,
}

/// A network policy, for people: sidecars have it in the policies of the pods that it is for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NetworkFacts {
    /// Given by an API server alone.
    pub uid: Option<String>,
    /// Whether it isolates for ingress, and for egress.
    pub isolates: (bool, bool),
    /// What of it weft does not enforce, and where.
    pub notes: Vec<Problem>,
}

/// One generation of the mesh. Cloning shares structure, so that a change costs what it touches.
#[derive(Clone, Debug)]
pub struct Snapshot {
    pub generation: u64,
    pub trust: Arc<Entry>,
    pub mesh: Arc<Entry>,
    pub inbound: imbl::HashMap<ObjectRef, Arc<Entry>>,
    pub outbound: imbl::HashMap<ObjectRef, Arc<Entry>>,
    pub addresses: imbl::HashMap<IpAddr, Arc<Entry>>,
    pub services: imbl::HashMap<ObjectRef, Arc<Entry>>,
    pub endpoints: imbl::HashMap<ObjectRef, Arc<ServiceEndpoints>>,
    pub routes: imbl::HashMap<ObjectRef, Arc<ServiceRoutes>>,
    pub policies: imbl::HashMap<ObjectRef, Arc<Entry>>,
    pub authorizations: imbl::HashMap<ObjectRef, Arc<AuthorizationFacts>>,
    /// Sets of pods that network policies name.
    pub peers: imbl::HashMap<PeersId, Arc<PeersEntry>>,
    /// Which of them the policies of each pod name, where they name any: nobody else sees them.
    pub named: imbl::HashMap<ObjectRef, Arc<BTreeSet<PeersId>>>,
    pub networks: imbl::HashMap<ObjectRef, Arc<NetworkFacts>>,
    /// By pod: its mTLS modes, and who set them.
    pub modes: imbl::HashMap<ObjectRef, Arc<PodModes>>,
    /// By pod: the policies that its inbound policy is made of; none where there are none.
    pub governed: imbl::HashMap<ObjectRef, Arc<Vec<ObjectKey>>>,
    /// What became of each route and policy.
    pub statuses: Statuses,
    /// Names that DNS answers for.
    pub dns: imbl::HashMap<ObjectRef, Arc<DnsEntry>>,
    /// Every pod that lives.
    pub pods: imbl::HashMap<ObjectRef, Arc<PodFacts>>,
    /// Namespaces with pods in the mesh, or that want them in.
    pub meshed: Arc<BTreeSet<Namespace>>,
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
    Routes(Arc<RoutesEntry>),
    Peers(Arc<PeersEntry>),
    Absent,
}

/// Who looks: resources differ by the pod and the namespace of the sidecar that they are for.
#[derive(Clone, Debug, Default)]
pub struct Viewer {
    pub pod: Option<ObjectRef>,
    /// From its certificate.
    pub namespace: Option<Namespace>,
}

impl View {
    pub fn version(&self) -> Version {
        match self {
            Self::Plain(e) => e.version,
            Self::Endpoints(e) => e.version,
            Self::Routes(e) => e.entry.version,
            Self::Peers(e) => e.version,
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
            outbound: imbl::HashMap::new(),
            addresses: imbl::HashMap::new(),
            services: imbl::HashMap::new(),
            endpoints: imbl::HashMap::new(),
            routes: imbl::HashMap::new(),
            policies: imbl::HashMap::new(),
            authorizations: imbl::HashMap::new(),
            peers: imbl::HashMap::new(),
            named: imbl::HashMap::new(),
            networks: imbl::HashMap::new(),
            modes: imbl::HashMap::new(),
            governed: imbl::HashMap::new(),
            statuses: Statuses::new(),
            dns: imbl::HashMap::new(),
            pods: imbl::HashMap::new(),
            meshed: Arc::default(),
            unknown: Entry::new(Body::Address((&AddressKind::Unknown).into())),
        }
    }

    /// Whether a pod of this service account lives under this name: only such a one may renew.
    pub fn has_pod(&self, pod: &ObjectRef, service_account: &str) -> bool {
        self.pods.get(pod).is_some_and(|p| p.service_account == service_account)
    }

    /// Whether the policies of a pod name a set of peers.
    fn names(&self, pod: Option<&ObjectRef>, set: PeersId) -> bool {
        pod.and_then(|p| self.named.get(p)).is_some_and(|sets| sets.contains(&set))
    }

    /// Where the pod runs that a sidecar is beside.
    pub fn place(&self, pod: Option<&ObjectRef>) -> Place {
        pod.and_then(|p| self.pods.get(p)).map(|p| p.place.clone()).unwrap_or_default()
    }

    /// What `name` is for a sidecar. Every address has an answer: "unknown" is one.
    pub fn view(&self, name: &ResourceName, viewer: &Viewer) -> View {
        let pod = viewer.pod.as_ref();
        let plain = |e: Option<&Arc<Entry>>| e.map_or(View::Absent, |e| View::Plain(e.clone()));
        match name {
            ResourceName::Trust => View::Plain(self.trust.clone()),
            ResourceName::Mesh => View::Plain(self.mesh.clone()),
            ResourceName::Inbound => plain(pod.and_then(|p| self.inbound.get(p))),
            ResourceName::Outbound => plain(pod.and_then(|p| self.outbound.get(p))),
            ResourceName::Address(ip) => View::Plain(self.addresses.get(ip).unwrap_or(&self.unknown).clone()),
            ResourceName::Service(id) => plain(self.services.get(id)),
            ResourceName::Endpoints(id) => {
                self.endpoints.get(id).map_or(View::Absent, |e| View::Endpoints(e.seen_from(&self.place(pod)).clone()))
            }
            ResourceName::Routes(id) => self.routes.get(id).map_or(View::Absent, |r| {
                View::Routes(viewer.namespace.as_ref().map_or(&r.producer, |n| r.seen_from(n)).clone())
            }),
            ResourceName::Policy(id) => plain(self.policies.get(id)),
            ResourceName::Peers(id) => match self.peers.get(id).filter(|_| self.names(pod, *id)) {
                Some(set) => View::Peers(set.clone()),
                None => View::Absent,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use weft_core::service::Reach;

    /// Every seventh address has two endpoints, as pods on a host's network do.
    fn entry(members: &std::collections::BTreeSet<u16>, port: u16) -> Arc<EndpointsEntry> {
        let endpoint = |i: u16, port: u16| {
            let address = IpAddr::from([10, 1, i.to_be_bytes()[0], i.to_be_bytes()[1]]);
            let ports = vec![(80, port)];
            Endpoint { address, workload: None, reach: Reach::Plain, ready: true, zone: "".into(), node: "".into(), ports }
        };
        let all = |i: &u16| std::iter::once(endpoint(*i, port)).chain(i.is_multiple_of(7).then(|| endpoint(*i, 1)));
        EndpointsEntry::new(members.iter().flat_map(all).collect())
    }

    /// What a sidecar does with them.
    fn apply(mut held: Vec<Endpoint>, mut version: Version, pieces: Vec<(Version, Body)>) -> Vec<Endpoint> {
        let read = |list: &[v1::Endpoint]| {
            assert!(list.len() <= 2 * PIECE);
            list.iter().map(|e| weft_proto::endpoint_from(e).expect("valid")).collect::<Vec<_>>()
        };
        for (next, body) in pieces {
            match body {
                Body::Endpoints(all) => held = read(&all.endpoints),
                Body::EndpointsDelta(delta) => {
                    assert_eq!(delta.base, version.0);
                    let new = read(&delta.upserted);
                    let mut touched: std::collections::HashSet<IpAddr> = new.iter().map(|e| e.address).collect();
                    touched.extend(delta.removed.iter().map(|a| weft_proto::address_from(a).expect("valid")));
                    held.retain(|e| !touched.contains(&e.address));
                    held.extend(new);
                }
                other => panic!("{other:?} is no endpoints"),
            }
            version = next;
        }
        EndpointsEntry::new(held).list.clone()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn pieces_lead_from_what_is_held_to_what_is(
            before in proptest::collection::btree_set(0u16..9_000, 0..7_000), after in proptest::collection::btree_set(0u16..9_000, 0..7_000),
            fresh in any::<bool>(), moved in any::<bool>(),
        ) {
            let (before, after) = (entry(&before, 8080), entry(&after, if moved { 9090 } else { 8080 }));
            let (held, base) = if fresh { (vec![], None) } else { (before.list.clone(), Some(&*before)) };
            let pieces = after.pieces(base);
            prop_assert_eq!(pieces.last().map(|(v, _)| *v), Some(after.version));
            prop_assert_eq!(apply(held, before.version, pieces), after.list.clone());
        }
    }
}
