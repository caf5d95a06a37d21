//! A service's endpoints: from its slices, or where it has none from its selector; and which of them are seen from where.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use weft_core::protocol::AppProtocol;
use weft_core::service::{Endpoint, ObjectRef, Reach, Service, ServicePort};

use super::Model;
use crate::objects::{
    EndpointSliceObject, IntOrString, PodObject, ServiceObject, ServicePortSpec, ServiceType, SliceEndpoint, TrafficPolicy,
    Transport,
};
use crate::snapshot::{DnsEntry, EndpointsEntry, ServiceEndpoints};

/// An endpoint, with what decides for whom it is.
pub(super) struct Candidate {
    endpoint: Endpoint,
    /// It ends, and still serves: better than none (KEP-1669).
    stands_in: bool,
    zones: BTreeSet<Arc<str>>,
    nodes: BTreeSet<Arc<str>>,
}

impl Candidate {
    /// Takes another in that is the same endpoint: one with the same ports, or further ports of the same pod. A host's
    /// address with another port for the same service port is another endpoint.
    fn takes(&mut self, other: &mut Self) -> bool {
        let (held, new) = (&self.endpoint, &other.endpoint);
        if held.ports == new.ports {
            self.stands_in |= other.stands_in;
            if new.ready && !held.ready {
                other.stands_in = self.stands_in;
                std::mem::swap(self, other);
            }
            return true;
        }
        let clash = held.ports.iter().any(|(from, to)| new.ports.iter().any(|(f, t)| f == from && t != to));
        if clash || (held.ready, &held.workload) != (new.ready, &new.workload) {
            return false;
        }
        self.endpoint.ports.append(&mut other.endpoint.ports);
        self.endpoint.ports.sort_unstable();
        self.endpoint.ports.dedup();
        true
    }
}

impl Model {
    pub(super) fn candidates(&self, service: &ServiceObject) -> Vec<Candidate> {
        let slices = self.slices.get(&service.id.namespace).into_iter().flat_map(BTreeMap::values);
        let owned: Vec<_> = slices.filter(|s| s.owner().as_ref() == Some(&service.id)).collect();
        let mut found: BTreeMap<IpAddr, Vec<Candidate>> = BTreeMap::new();
        let mut add = |mut new: Candidate| {
            let here = found.entry(new.endpoint.address).or_default();
            if !here.iter_mut().any(|held| held.takes(&mut new)) {
                here.push(new);
            }
        };
        if owned.is_empty() {
            for pod in self.selected(service) {
                self.of_pod(service, pod, &mut add);
            }
        } else {
            for slice in owned {
                self.of_slice(service, slice, &mut add);
            }
        }
        let mut all: Vec<Candidate> = found.into_values().flatten().collect();
        hint(service, &mut all);
        all
    }

    fn of_pod(&self, service: &ServiceObject, pod: &PodObject, add: &mut impl FnMut(Candidate)) {
        let ports: Vec<(u16, u16)> = tcp_ports(service).filter_map(|p| Some((p.port, target_port(p, pod)?))).collect();
        let fits = |ip: &IpAddr| service.spec.has_family_of(ip, pod.primary_family());
        for address in pod.addresses().into_iter().filter(fits) {
            add(Candidate {
                endpoint: Endpoint {
                    address,
                    workload: Some(pod.id.clone()),
                    reach: self.reach(pod),
                    ready: pod.ready() || service.spec.publish_not_ready_addresses,
                    zone: pod.zone().into(),
                    node: pod.spec.node_name.as_deref().unwrap_or_default().into(),
                    ports: ports.clone(),
                },
                stands_in: pod.terminating && pod.serving(),
                zones: BTreeSet::new(),
                nodes: BTreeSet::new(),
            });
        }
    }

    fn of_slice(&self, service: &ServiceObject, slice: &EndpointSliceObject, add: &mut impl FnMut(Candidate)) {
        let ports: Vec<(u16, u16)> = tcp_ports(service)
            .filter_map(|p| {
                let named = |n: &Option<String>| n.as_deref().unwrap_or_default() == p.name.as_deref().unwrap_or_default();
                slice.ports.iter().find(|q| q.protocol == Transport::Tcp && named(&q.name)).and_then(|q| Some((p.port, q.port?)))
            })
            .collect();
        let names = |list: Option<&Vec<crate::objects::Named>>| -> BTreeSet<Arc<str>> {
            list.into_iter().flatten().map(|n| n.name.as_str().into()).collect()
        };
        for e in &slice.endpoints {
            for address in &e.addresses {
                let Some((workload, reach)) = self.behind(slice, e, *address) else { continue };
                add(Candidate {
                    endpoint: Endpoint {
                        address: *address,
                        workload,
                        reach,
                        ready: e.conditions.ready.unwrap_or(true),
                        zone: e.zone.as_deref().unwrap_or_default().into(),
                        node: e.node_name.as_deref().unwrap_or_default().into(),
                        ports: ports.clone(),
                    },
                    stands_in: e.conditions.serving.unwrap_or(false) && e.conditions.terminating.unwrap_or(false),
                    zones: names(e.hints.as_ref().map(|h| &h.for_zones)),
                    nodes: names(e.hints.as_ref().map(|h| &h.for_nodes)),
                });
            }
        }
    }

    /// Who is behind an address of a slice. Where the slice names a pod that is not known at this address (yet), that cannot be
    /// said, and the endpoint is not used: it might be reached in plaintext though it has a sidecar.
    fn behind(&self, slice: &EndpointSliceObject, e: &SliceEndpoint, address: IpAddr) -> Option<(Option<ObjectRef>, Reach)> {
        let Some(name) = e.pod() else {
            let pod = self.pod_at.get(&address).and_then(BTreeSet::first).and_then(|id| self.pod(id));
            return Some((pod.map(|p| p.id.clone()), pod.map_or(Reach::Plain, |p| self.reach(p))));
        };
        let id = ObjectRef { namespace: slice.id.namespace.clone(), name: name.parse().ok()? };
        let pod = self.pod(&id).filter(|p| !p.ended() && p.addresses().contains(&address))?;
        Some((Some(id), self.reach(pod)))
    }
}

/// Where nobody gave hints, `trafficDistribution` makes each endpoint's own place one.
fn hint(service: &ServiceObject, all: &mut [Candidate]) {
    let by_node = match service.spec.traffic_distribution.as_deref() {
        Some("PreferSameNode") => true,
        Some("PreferClose" | "PreferSameZone") => false,
        _ => return,
    };
    if all.iter().any(|c| !c.zones.is_empty() || !c.nodes.is_empty()) {
        return;
    }
    for c in all {
        c.zones.extend(Some(c.endpoint.zone.clone()).filter(|z| !z.is_empty()));
        c.nodes.extend(Some(c.endpoint.node.clone()).filter(|n| by_node && !n.is_empty()));
    }
}

/// From where a list is seen.
#[derive(Clone, Copy)]
enum SeenFrom<'a> {
    Anywhere,
    Node(&'a Arc<str>),
    Zone(&'a Arc<str>),
}

/// What is seen from each place.
pub(super) fn views(service: &ServiceObject, all: &[Candidate]) -> ServiceEndpoints {
    if service.spec.internal_traffic_policy == TrafficPolicy::Local {
        let nodes: BTreeSet<&Arc<str>> = all.iter().map(|c| &c.endpoint.node).collect();
        let on = |node: &Arc<str>| list(all.iter().filter(|c| c.endpoint.node == *node), SeenFrom::Anywhere);
        return ServiceEndpoints {
            anywhere: EndpointsEntry::new(vec![]),
            from_node: nodes.into_iter().map(|n| (n.clone(), EndpointsEntry::new(on(n)))).collect(),
            from_zone: BTreeMap::new(),
        };
    }
    let anywhere = EndpointsEntry::new(list(all.iter(), SeenFrom::Anywhere));
    let other = |from: SeenFrom<'_>| {
        let entry = EndpointsEntry::new(list(all.iter(), from));
        (entry.version != anywhere.version).then_some(entry)
    };
    let nodes: BTreeSet<&Arc<str>> = all.iter().flat_map(|c| &c.nodes).collect();
    let zones: BTreeSet<&Arc<str>> = all.iter().flat_map(|c| &c.zones).collect();
    ServiceEndpoints {
        from_node: nodes.into_iter().filter_map(|n| Some((n.clone(), other(SeenFrom::Node(n))?))).collect(),
        from_zone: zones.into_iter().filter_map(|z| Some((z.clone(), other(SeenFrom::Zone(z))?))).collect(),
        anywhere,
    }
}

/// The endpoints as seen from a place, each address family by itself. While nothing is ready, what ends but still serves stands
/// in. A hint narrows only where every ready endpoint has one and one of them is for this place, as kube-proxy has it.
fn list<'a>(all: impl Iterator<Item = &'a Candidate>, from: SeenFrom<'_>) -> Vec<Endpoint> {
    let (four, six): (Vec<&Candidate>, Vec<&Candidate>) = all.partition(|c| c.endpoint.address.is_ipv4());
    let mut seen = Vec::with_capacity(four.len() + six.len());
    for family in [four, six] {
        let is_ready = |c: &&&Candidate| c.endpoint.ready;
        if !family.iter().any(|c| c.endpoint.ready) {
            seen.extend(family.iter().map(|c| Endpoint { ready: c.stands_in, ..c.endpoint.clone() }));
            continue;
        }
        let hints = |c: &&Candidate| match from {
            SeenFrom::Anywhere => None,
            SeenFrom::Node(here) => Some((c.nodes.is_empty(), c.nodes.contains(here))),
            SeenFrom::Zone(here) => Some((c.zones.is_empty(), c.zones.contains(here))),
        };
        let told: Option<Vec<(bool, bool)>> = family.iter().filter(is_ready).map(hints).collect();
        let narrowed = told.is_some_and(|t| !t.iter().any(|(none, _)| *none) && t.iter().any(|(_, here)| *here));
        let kept = |c: &&&Candidate| !narrowed || (c.endpoint.ready && hints(c).is_some_and(|(_, here)| here));
        seen.extend(family.iter().filter(kept).map(|c| c.endpoint.clone()));
    }
    seen
}

pub(crate) fn tcp_ports(service: &ServiceObject) -> impl Iterator<Item = &ServicePortSpec> {
    service.spec.ports.iter().filter(|p| p.protocol == Transport::Tcp)
}

pub fn target_port(port: &ServicePortSpec, pod: &PodObject) -> Option<u16> {
    match &port.target_port {
        None => Some(port.port),
        Some(IntOrString::Int(n)) => Some(*n),
        Some(IntOrString::Name(name)) => match name.parse() {
            Ok(n) => Some(n),
            Err(_) => pod.port_named(name),
        },
    }
}

pub(super) fn service_of(s: &ServiceObject) -> Service {
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

/// DNS knows no places: a headless service's name stands for all that is ready.
pub(super) fn dns_of(s: &ServiceObject, all: &[Candidate]) -> DnsEntry {
    if s.spec.kind == ServiceType::ExternalName {
        return DnsEntry::Alias(s.spec.external_name.clone().unwrap_or_default());
    }
    let addresses = s.spec.addresses();
    if !addresses.is_empty() {
        return DnsEntry::Addresses(addresses);
    }
    let mut ready: Vec<_> = list(all.iter(), SeenFrom::Anywhere)
        .into_iter()
        .filter(|e| e.ready)
        .map(|e| (e.workload.map(|id| id.name.to_string()), e.address))
        .collect();
    ready.sort_by_key(|(_, address)| *address);
    ready.dedup();
    DnsEntry::Endpoints(ready)
}
