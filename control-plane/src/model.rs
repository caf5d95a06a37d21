//! Objects to snapshot. One writer applies changes; what a change touches is computed anew, the rest is shared.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use weft_core::policy::{InboundPolicy, MtlsMode};
use weft_core::protocol::AppProtocol;
use weft_core::service::{AddressKind, Endpoint, ObjectRef, Reach, Service, ServicePort, Workload};
use weft_core::{Namespace, SpiffeId, TrustDomain, wellknown};
use weft_proto::ResourceName;
use weft_proto::v1::resource::Body;

use crate::objects::{
    EndpointSliceObject, IntOrString, Kind, NamespaceObject, Object, ObjectKey, PodObject, ServiceObject, ServicePortSpec,
    ServiceType, TrafficPolicy, Transport,
};
use crate::snapshot::{DnsEntry, EndpointsEntry, Entry, Snapshot};
use crate::watch::{Change, Problem};

/// A name whose resource has changed; inbound policies are named by their pod.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Changed {
    Name(ResourceName),
    Inbound(ObjectRef),
}

/// Who claims an address, in the order in which a claim wins.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Claim {
    Service(ObjectRef),
    Pod(ObjectRef),
}

type InNamespace<T> = HashMap<Namespace, BTreeMap<ObjectRef, Arc<T>>>;

/// All objects, and the snapshot that follows from them.
pub struct Model {
    trust_domain: TrustDomain,
    default_mode: MtlsMode,
    namespaces: HashMap<Namespace, Arc<NamespaceObject>>,
    services: InNamespace<ServiceObject>,
    pods: InNamespace<PodObject>,
    slices: InNamespace<EndpointSliceObject>,
    /// Claims to each address; the first in order holds it.
    claims: HashMap<IpAddr, BTreeSet<Claim>>,
    /// Pods by address, across namespaces, for slices.
    pod_at: HashMap<IpAddr, BTreeSet<ObjectRef>>,
    /// Slices by address, across namespaces: a pod that comes or goes changes how their endpoints are reached.
    slices_at: HashMap<IpAddr, BTreeSet<ObjectRef>>,
    problems: BTreeMap<ObjectKey, Vec<Problem>>,
    snapshot: Snapshot,
}

impl Model {
    pub fn new(trust_domain: TrustDomain, default_mode: MtlsMode, trust: Arc<Entry>, mesh: Arc<Entry>) -> Self {
        Self {
            trust_domain,
            default_mode,
            namespaces: HashMap::new(),
            services: HashMap::new(),
            pods: HashMap::new(),
            slices: HashMap::new(),
            claims: HashMap::new(),
            pod_at: HashMap::new(),
            slices_at: HashMap::new(),
            problems: BTreeMap::new(),
            snapshot: Snapshot::new(trust, mesh),
        }
    }

    pub fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// What of the objects cannot be honoured.
    pub fn problems(&self) -> Vec<Problem> {
        self.problems.values().flatten().cloned().collect()
    }

    /// Applies changes and returns what of the snapshot is another now.
    pub fn apply(&mut self, changes: Vec<Change>) -> BTreeSet<Changed> {
        let mut dirty = Dirty::default();
        for change in changes {
            match change {
                Change::Upsert(object) => {
                    let key = object.key();
                    self.mark(&key, &mut dirty);
                    self.forget(&key);
                    self.insert(object);
                    self.mark(&key, &mut dirty);
                }
                Change::Delete(key) => {
                    self.mark(&key, &mut dirty);
                    self.forget(&key);
                }
            }
        }
        let mut changed = BTreeSet::new();
        for id in &dirty.services {
            self.refresh_service(id, &mut changed);
        }
        for id in &dirty.pods {
            self.refresh_pod(id, &mut changed);
        }
        for ip in &dirty.addresses {
            self.refresh_address(*ip, &mut changed);
        }
        if !changed.is_empty() {
            self.snapshot.generation += 1;
        }
        changed
    }

    /// Notes everything whose outcome depends on an object as it stands.
    fn mark(&self, key: &ObjectKey, dirty: &mut Dirty) {
        match key.kind {
            Kind::Namespace => {
                if let Some(pods) = self.pods.get(&key.id.namespace) {
                    dirty.pods.extend(pods.keys().cloned());
                }
            }
            Kind::Service => {
                dirty.services.insert(key.id.clone());
                if let Some(service) = self.service(&key.id) {
                    for ip in service.spec.addresses() {
                        self.mark_address(ip, dirty);
                    }
                    for pod in self.selected(service) {
                        dirty.pods.insert(pod.id.clone());
                        dirty.addresses.extend(pod.addresses());
                    }
                }
            }
            Kind::Pod => {
                dirty.pods.insert(key.id.clone());
                let Some(pod) = self.pod(&key.id) else { return };
                for ip in pod.addresses() {
                    self.mark_address(ip, dirty);
                }
                let in_namespace = self.services.get(&key.id.namespace).into_iter().flat_map(BTreeMap::values);
                dirty.services.extend(in_namespace.filter(|s| s.spec.selects(&pod.labels)).map(|s| s.id.clone()));
            }
            Kind::EndpointSlice => {
                let slice = self.slices.get(&key.id.namespace).and_then(|s| s.get(&key.id));
                dirty.services.extend(slice.and_then(|s| s.owner()));
            }
        }
    }

    /// An address whose claims change: who else claims it, and whose slices list it.
    fn mark_address(&self, ip: IpAddr, dirty: &mut Dirty) {
        dirty.addresses.insert(ip);
        for claim in self.claims.get(&ip).into_iter().flatten() {
            if let Claim::Service(id) = claim {
                dirty.services.insert(id.clone());
            }
        }
        for id in self.slices_at.get(&ip).into_iter().flatten() {
            dirty.services.extend(self.slices.get(&id.namespace).and_then(|s| s.get(id)).and_then(|s| s.owner()));
        }
    }

    fn forget(&mut self, key: &ObjectKey) {
        self.problems.remove(key);
        match key.kind {
            Kind::Namespace => {
                self.namespaces.remove(&key.id.namespace);
            }
            Kind::Service => {
                if let Some(old) = remove(&mut self.services, &key.id) {
                    for ip in old.spec.addresses() {
                        unclaim(&mut self.claims, ip, &Claim::Service(key.id.clone()));
                    }
                }
            }
            Kind::Pod => {
                if let Some(old) = remove(&mut self.pods, &key.id) {
                    for ip in old.addresses() {
                        unclaim(&mut self.claims, ip, &Claim::Pod(key.id.clone()));
                        unclaim(&mut self.pod_at, ip, &key.id);
                    }
                }
            }
            Kind::EndpointSlice => {
                if let Some(old) = remove(&mut self.slices, &key.id) {
                    for ip in old.endpoints.iter().flat_map(|e| &e.addresses) {
                        unclaim(&mut self.slices_at, *ip, &key.id);
                    }
                }
            }
        }
    }

    fn insert(&mut self, object: Object) {
        match object {
            Object::Namespace(o) => {
                self.namespaces.insert(o.name.clone(), o);
            }
            Object::Service(o) => {
                for ip in o.spec.addresses() {
                    self.claims.entry(ip).or_default().insert(Claim::Service(o.id.clone()));
                }
                self.services.entry(o.id.namespace.clone()).or_default().insert(o.id.clone(), o);
            }
            Object::Pod(o) => {
                // A pod on the host's network shares its address with others and has no sidecar: its address is
                // nothing that the mesh can vouch for.
                if !o.ended() && !o.spec.host_network {
                    for ip in o.addresses() {
                        self.claims.entry(ip).or_default().insert(Claim::Pod(o.id.clone()));
                        self.pod_at.entry(ip).or_default().insert(o.id.clone());
                    }
                }
                self.pods.entry(o.id.namespace.clone()).or_default().insert(o.id.clone(), o);
            }
            Object::EndpointSlice(o) => {
                for ip in o.endpoints.iter().flat_map(|e| &e.addresses) {
                    self.slices_at.entry(*ip).or_default().insert(o.id.clone());
                }
                self.slices.entry(o.id.namespace.clone()).or_default().insert(o.id.clone(), o);
            }
        }
    }

    fn service(&self, id: &ObjectRef) -> Option<&Arc<ServiceObject>> {
        self.services.get(&id.namespace)?.get(id)
    }

    fn pod(&self, id: &ObjectRef) -> Option<&Arc<PodObject>> {
        self.pods.get(&id.namespace)?.get(id)
    }

    fn selected<'a>(&'a self, service: &'a ServiceObject) -> impl Iterator<Item = &'a Arc<PodObject>> {
        self.pods
            .get(&service.id.namespace)
            .into_iter()
            .flat_map(BTreeMap::values)
            .filter(|p| !p.ended() && service.spec.selects(&p.labels))
    }

    fn reach(&self, pod: &PodObject) -> Reach {
        match (pod.has_sidecar(), pod.service_account().parse()) {
            (true, Ok(sa)) => Reach::Mesh(SpiffeId::new(self.trust_domain.clone(), pod.id.namespace.clone(), sa)),
            _ => Reach::Plain,
        }
    }

    fn refresh_service(&mut self, id: &ObjectRef, changed: &mut BTreeSet<Changed>) {
        let service = self.service(id).cloned();
        let key = ObjectKey { kind: Kind::Service, id: id.clone() };
        self.problems.remove(&key);
        let (body, endpoints, dns) = match &service {
            None => (None, None, None),
            Some(s) => {
                let duplicates: Vec<Problem> = s
                    .spec
                    .addresses()
                    .into_iter()
                    .filter_map(|ip| match self.claims.get(&ip).and_then(BTreeSet::first) {
                        Some(Claim::Service(holder)) if holder != id => Some(Problem {
                            place: key.to_string(),
                            field: "spec.clusterIP".into(),
                            message: format!(
                                "{ip} belongs to Service {holder} already, which keeps it: give this one another address"
                            ),
                        }),
                        _ => None,
                    })
                    .collect();
                if !duplicates.is_empty() {
                    self.problems.insert(key, duplicates);
                }
                let endpoints = self.endpoints_of(s);
                let dns = dns_of(s, &endpoints, self);
                (
                    Some(Entry::new(Body::Service((&service_of(s)).into()))),
                    Some(EndpointsEntry::new(endpoints)),
                    Some(Arc::new(dns)),
                )
            }
        };
        if put(&mut self.snapshot.services, id, body, |a, b| a.version == b.version) {
            changed.insert(Changed::Name(ResourceName::Service(id.clone())));
        }
        if put(&mut self.snapshot.endpoints, id, endpoints, |a, b| a.version == b.version) {
            changed.insert(Changed::Name(ResourceName::Endpoints(id.clone())));
        }
        // DNS is asked, not pushed.
        put(&mut self.snapshot.dns, id, dns, |a, b| a == b);
    }

    fn endpoints_of(&self, service: &ServiceObject) -> BTreeMap<IpAddr, Endpoint> {
        let slices = self.slices.get(&service.id.namespace).into_iter().flat_map(BTreeMap::values);
        let owned: Vec<_> = slices.filter(|s| s.owner().as_ref() == Some(&service.id)).collect();
        let mut found = BTreeMap::new();
        if owned.is_empty() {
            for pod in self.selected(service) {
                self.endpoints_of_pod(service, pod, &mut found);
            }
        } else {
            for slice in owned {
                self.endpoints_of_slice(service, slice, &mut found);
            }
        }
        found
    }

    fn endpoints_of_pod(&self, service: &ServiceObject, pod: &PodObject, found: &mut BTreeMap<IpAddr, Endpoint>) {
        let ports: Vec<(u16, u16)> = tcp_ports(service).filter_map(|p| Some((p.port, target_port(p, pod)?))).collect();
        // A service has endpoints of its own families; a headless one, of its pods' primary one (KEP-563).
        let families: Vec<bool> = service.spec.addresses().iter().map(IpAddr::is_ipv4).collect();
        let primary = pod.status.pod_ip.or(pod.status.pod_ips.first().map(|p| p.ip)).map(|ip| ip.is_ipv4());
        let fits =
            |ip: &IpAddr| if families.is_empty() { primary == Some(ip.is_ipv4()) } else { families.contains(&ip.is_ipv4()) };
        for address in pod.addresses().into_iter().filter(fits) {
            found.insert(
                address,
                Endpoint {
                    address,
                    workload: Some(pod.id.clone()),
                    reach: self.reach(pod),
                    ready: pod.ready() || (service.spec.publish_not_ready_addresses && !pod.terminating),
                    zone: "".into(),
                    node: pod.spec.node_name.as_deref().unwrap_or_default().into(),
                    ports: ports.clone(),
                },
            );
        }
    }

    fn endpoints_of_slice(&self, service: &ServiceObject, slice: &EndpointSliceObject, found: &mut BTreeMap<IpAddr, Endpoint>) {
        let ports: Vec<(u16, u16)> = tcp_ports(service)
            .filter_map(|p| {
                let named = |n: &Option<String>| n.as_deref().unwrap_or_default() == p.name.as_deref().unwrap_or_default();
                slice.ports.iter().find(|q| q.protocol == Transport::Tcp && named(&q.name)).and_then(|q| Some((p.port, q.port?)))
            })
            .collect();
        for e in &slice.endpoints {
            for address in &e.addresses {
                let pod = self.pod_at.get(address).and_then(BTreeSet::first).and_then(|id| self.pod(id));
                let endpoint = found.entry(*address).or_insert_with(|| Endpoint {
                    address: *address,
                    workload: pod.map(|p| p.id.clone()),
                    reach: pod.map_or(Reach::Plain, |p| self.reach(p)),
                    ready: e.conditions.ready.unwrap_or(true),
                    zone: e.zone.as_deref().unwrap_or_default().into(),
                    node: e.node_name.as_deref().unwrap_or_default().into(),
                    ports: vec![],
                });
                // The same address may stand in several slices, each with other ports.
                endpoint.ports.extend(ports.iter().filter(|p| !endpoint.ports.contains(p)).copied().collect::<Vec<_>>());
            }
        }
        // KEP-1669: while nothing is ready, endpoints that end but still serve are better than none.
        if !found.values().any(|e| e.ready) {
            for e in &slice.endpoints {
                if e.conditions.serving.unwrap_or(false) && e.conditions.terminating.unwrap_or(false) {
                    for address in &e.addresses {
                        found.entry(*address).and_modify(|e| e.ready = true);
                    }
                }
            }
        }
    }

    fn refresh_pod(&mut self, id: &ObjectRef, changed: &mut BTreeSet<Changed>) {
        let key = ObjectKey { kind: Kind::Pod, id: id.clone() };
        self.problems.remove(&key);
        let entry = self.pod(id).cloned().map(|pod| {
            let mut problems = Vec::new();
            let policy = self.inbound_of(&pod, &mut problems);
            if !problems.is_empty() {
                self.problems.insert(key, problems);
            }
            Entry::new(Body::Inbound((&policy).into()))
        });
        let account = self.pod(id).filter(|p| !p.ended()).map(|p| Arc::new(p.service_account().to_owned()));
        put(&mut self.snapshot.accounts, id, account, |a, b| a == b);
        if put(&mut self.snapshot.inbound, id, entry, |a, b| a.version == b.version) {
            changed.insert(Changed::Inbound(id.clone()));
        }
    }

    /// Mode by port, pod, namespace, mesh: the nearest wins. A word that is no mode means strict, and is reported.
    fn inbound_of(&self, pod: &PodObject, problems: &mut Vec<Problem>) -> InboundPolicy {
        let mut mode = |place: String, field: &str, word: &str| {
            word.parse().unwrap_or_else(|e: weft_core::policy::InvalidMode| {
                problems.push(Problem {
                    place,
                    field: format!("metadata.annotations[{field:?}]"),
                    message: format!("{e}; strict is in force until then"),
                });
                MtlsMode::Strict
            })
        };
        let of_namespace =
            self.namespaces.get(&pod.id.namespace).and_then(|n| Some((n, n.annotations.get(wellknown::ANNOTATION_MTLS)?)));
        let pod_place = format!("Pod {}", pod.id);
        let whole = match (pod.annotations.get(wellknown::ANNOTATION_MTLS), of_namespace) {
            (Some(word), _) => mode(pod_place.clone(), wellknown::ANNOTATION_MTLS, word),
            (None, Some((ns, word))) => mode(format!("Namespace {}", ns.name), wellknown::ANNOTATION_MTLS, word),
            (None, None) => self.default_mode,
        };
        let mut port_modes = Vec::new();
        let mut whole_override = None;
        for pair in pod.annotations.get(wellknown::ANNOTATION_MTLS_PORTS).map(String::as_str).unwrap_or_default().split(',') {
            let pair = pair.trim();
            if pair.is_empty() {
                continue;
            }
            let (port, word) = pair.split_once('=').unwrap_or((pair, ""));
            let m = mode(pod_place.clone(), wellknown::ANNOTATION_MTLS_PORTS, word.trim());
            match port.trim().parse::<u16>() {
                Ok(port) if port != 0 => port_modes.push((port, m)),
                // Which port was meant cannot be known: all of them are strict until it is mended.
                _ => whole_override = Some(mode(pod_place.clone(), wellknown::ANNOTATION_MTLS_PORTS, pair)),
            }
        }
        if let Some(strict) = whole_override {
            return InboundPolicy { mode: strict, port_modes: vec![], protocols: self.declared(pod), required_features: vec![] };
        }
        InboundPolicy { mode: whole, port_modes, protocols: self.declared(pod), required_features: vec![] }
    }

    /// What the services that select a pod declare for its ports.
    fn declared(&self, pod: &PodObject) -> Vec<(u16, AppProtocol)> {
        let mut found: BTreeMap<u16, AppProtocol> = BTreeMap::new();
        for service in self.services.get(&pod.id.namespace).into_iter().flat_map(BTreeMap::values) {
            if !service.spec.selects(&pod.labels) {
                continue;
            }
            for p in tcp_ports(service) {
                let protocol = AppProtocol::from_declaration(p.app_protocol.as_deref(), p.name.as_deref());
                if let (Some(target), true) = (target_port(p, pod), protocol != AppProtocol::Detect) {
                    found.entry(target).or_insert(protocol);
                }
            }
        }
        found.into_iter().collect()
    }

    fn refresh_address(&mut self, ip: IpAddr, changed: &mut BTreeSet<Changed>) {
        let kind = match self.claims.get(&ip).and_then(BTreeSet::first) {
            Some(Claim::Service(id)) => Some(AddressKind::Service(id.clone())),
            Some(Claim::Pod(id)) => self.pod(id).map(|pod| {
                AddressKind::Workload(Workload {
                    id: pod.id.clone(),
                    address: ip,
                    reach: self.reach(pod),
                    protocols: self.declared(pod),
                })
            }),
            None => None,
        };
        let entry = kind.map(|k| Entry::new(Body::Address((&k).into())));
        if put(&mut self.snapshot.addresses, &ip, entry, |a, b| a.version == b.version) {
            changed.insert(Changed::Name(ResourceName::Address(ip)));
        }
    }
}

#[derive(Default)]
struct Dirty {
    services: BTreeSet<ObjectRef>,
    pods: BTreeSet<ObjectRef>,
    addresses: BTreeSet<IpAddr>,
}

impl EndpointSliceObject {
    fn owner(&self) -> Option<ObjectRef> {
        Some(ObjectRef { namespace: self.id.namespace.clone(), name: self.service.clone()? })
    }
}

fn tcp_ports(service: &ServiceObject) -> impl Iterator<Item = &ServicePortSpec> {
    service.spec.ports.iter().filter(|p| p.protocol == Transport::Tcp)
}

fn target_port(port: &ServicePortSpec, pod: &PodObject) -> Option<u16> {
    match &port.target_port {
        None => Some(port.port),
        Some(IntOrString::Int(n)) => Some(*n),
        Some(IntOrString::Name(name)) => match name.parse() {
            Ok(n) => Some(n),
            Err(_) => pod.port_named(name),
        },
    }
}

fn service_of(s: &ServiceObject) -> Service {
    Service {
        id: s.id.clone(),
        addresses: s.spec.addresses(),
        ports: tcp_ports(s)
            .map(|p| ServicePort {
                port: p.port,
                name: p.name.as_deref().map(Into::into),
                protocol: AppProtocol::from_declaration(p.app_protocol.as_deref(), p.name.as_deref()),
            })
            .collect(),
        client_ip_affinity: s.spec.client_ip_affinity(),
        local_only: s.spec.internal_traffic_policy == TrafficPolicy::Local,
    }
}

fn dns_of(s: &ServiceObject, endpoints: &BTreeMap<IpAddr, Endpoint>, model: &Model) -> DnsEntry {
    if s.spec.kind == ServiceType::ExternalName {
        return DnsEntry::Alias(s.spec.external_name.clone().unwrap_or_default());
    }
    let addresses = s.spec.addresses();
    if !addresses.is_empty() {
        return DnsEntry::Addresses(addresses);
    }
    let ready = endpoints.values().filter(|e| e.ready);
    DnsEntry::Endpoints(
        ready
            .map(|e| {
                let pod = e.workload.as_ref().and_then(|id| model.pod(id)).map(|p| p.id.name.to_string());
                (pod, e.address)
            })
            .collect(),
    )
}

fn remove<T>(map: &mut InNamespace<T>, id: &ObjectRef) -> Option<Arc<T>> {
    map.get_mut(&id.namespace)?.remove(id)
}

fn unclaim<K: Ord>(map: &mut HashMap<IpAddr, BTreeSet<K>>, ip: IpAddr, who: &K) {
    if let Some(set) = map.get_mut(&ip) {
        set.remove(who);
        if set.is_empty() {
            map.remove(&ip);
        }
    }
}

/// Puts or removes, and says whether anything is another now.
fn put<K, V>(map: &mut imbl::HashMap<K, Arc<V>>, key: &K, value: Option<Arc<V>>, same: impl Fn(&V, &V) -> bool) -> bool
where
    K: std::hash::Hash + Eq + Clone,
{
    match (map.get(key), value) {
        (None, None) => false,
        (Some(old), Some(new)) if same(old, &new) => false,
        (_, Some(new)) => {
            map.insert(key.clone(), new);
            true
        }
        (Some(_), None) => {
            map.remove(key);
            true
        }
    }
}

#[cfg(test)]
mod tests;
