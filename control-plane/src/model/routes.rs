//! Routes: which of them are attached to which Service (GEP-1426), for whose callers, and what became of each.
//!
//! A route in the Service's own namespace is a producer's, and for all callers. One from another namespace is a consumer's: it is for callers of its
//! own namespace alone, and there it stands in place of the producer's, port by port.

mod rules;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use prost::Message;
use weft_core::Namespace;
use weft_core::service::ObjectRef;
use weft_core::traffic::route::{Route, RouteKind};
use weft_proto::v1::resource::Body;
use weft_proto::{routes_to, v1};

use super::endpoints::tcp_ports;
use super::status::{Outcome, Refusal};
use super::{InNamespace, Model};
use crate::objects::traffic::{BackendRef, ParentRef, ReferenceGrantObject, RouteObject, Rules};
use crate::objects::{ObjectKey, ServiceObject, ServiceType};
use crate::snapshot::{Entry, RoutesEntry, ServiceRoutes};

pub use rules::{ANNOTATION_ANY_METHOD, ANNOTATION_ATTEMPTS, ANNOTATION_GRPC_CODES};

/// The routes of one Service that one caller gets may have so many bytes on the wire: below what gRPC reads in one message.
const MAX_BYTES: usize = 1 << 20;

const NO_PARENT: &str = "NoMatchingParent";

/// A route, and the version of it that is in force.
pub(super) struct Held {
    pub object: Arc<RouteObject>,
    /// Why it cannot be honoured as it stands.
    refusal: Option<Refusal>,
    /// It, or the last one before it that could be honoured.
    in_force: Option<Arc<RouteObject>>,
}

impl Held {
    /// Services that it is attached to, or would be.
    fn parents(&self) -> BTreeSet<ObjectRef> {
        let all = std::iter::once(&self.object).chain(&self.in_force);
        all.flat_map(|o| o.parents.iter().filter_map(|p| p.service(&o.id.namespace))).collect()
    }

    /// Services that its rules refer to.
    fn backends(&self) -> BTreeSet<ObjectRef> {
        self.in_force.iter().flat_map(|o| backend_refs(&o.rules).filter_map(|b| named(b, &o.id.namespace))).collect()
    }
}

/// All routes, by what they touch.
#[derive(Default)]
pub(super) struct Routes {
    objects: BTreeMap<ObjectKey, Held>,
    attached: HashMap<ObjectRef, BTreeSet<ObjectKey>>,
    referring: HashMap<Namespace, BTreeMap<ObjectRef, BTreeSet<ObjectKey>>>,
    grants: InNamespace<ReferenceGrantObject>,
    /// By Service: what became of each reference to it, by route and place among the route's parents.
    outcomes: HashMap<ObjectRef, BTreeMap<(ObjectKey, usize), Outcome>>,
}

impl Routes {
    pub(super) fn held(&self, key: &ObjectKey) -> Option<&Held> {
        self.objects.get(key)
    }

    pub(super) fn in_force(&self, key: &ObjectKey) -> Option<Arc<RouteObject>> {
        self.objects.get(key)?.in_force.clone()
    }

    /// Takes a route in. Where it cannot be honoured, `last` stays in force.
    pub(super) fn insert(&mut self, object: Arc<RouteObject>, last: Option<Arc<RouteObject>>) {
        let anything = |_: &BackendRef| Err(Refusal::new("", "", ""));
        let refusal = rules::read(&object, &anything, &mut vec![]).err();
        let in_force = if refusal.is_none() { Some(object.clone()) } else { last };
        let key = object.key();
        let held = Held { object, refusal, in_force };
        for service in held.parents() {
            self.attached.entry(service).or_default().insert(key.clone());
        }
        for service in held.backends() {
            let in_namespace = self.referring.entry(service.namespace.clone()).or_default();
            in_namespace.entry(service).or_default().insert(key.clone());
        }
        self.objects.insert(key, held);
    }

    pub(super) fn remove(&mut self, key: &ObjectKey) {
        let Some(held) = self.objects.remove(key) else { return };
        for service in held.parents() {
            if let Some(set) = self.attached.get_mut(&service) {
                set.remove(key);
                if set.is_empty() {
                    self.attached.remove(&service);
                }
            }
        }
        for service in held.backends() {
            let Some(in_namespace) = self.referring.get_mut(&service.namespace) else { continue };
            if let Some(set) = in_namespace.get_mut(&service) {
                set.remove(key);
                if set.is_empty() {
                    in_namespace.remove(&service);
                }
            }
            if in_namespace.is_empty() {
                self.referring.remove(&service.namespace);
            }
        }
    }

    pub(super) fn insert_grant(&mut self, grant: Arc<ReferenceGrantObject>) {
        self.grants.entry(grant.id.namespace.clone()).or_default().insert(grant.id.clone(), grant);
    }

    pub(super) fn remove_grant(&mut self, id: &ObjectRef) {
        super::remove(&mut self.grants, id);
    }

    /// Services whose routes depend on a route.
    pub(super) fn touched_by_route(&self, key: &ObjectKey) -> BTreeSet<ObjectRef> {
        self.objects.get(key).map(Held::parents).unwrap_or_default()
    }

    /// Services whose routes depend on a Service.
    pub(super) fn touched_by_service(&self, id: &ObjectRef) -> BTreeSet<ObjectRef> {
        let own = self.attached.contains_key(id).then(|| id.clone());
        let referring = self.referring.get(&id.namespace).and_then(|all| all.get(id)).into_iter().flatten();
        own.into_iter().chain(referring.flat_map(|key| self.touched_by_route(key))).collect()
    }

    /// Services whose routes depend on the grants of a namespace.
    pub(super) fn touched_by_grants(&self, namespace: &Namespace) -> BTreeSet<ObjectRef> {
        let keys: BTreeSet<&ObjectKey> = self.referring.get(namespace).into_iter().flat_map(BTreeMap::values).flatten().collect();
        keys.into_iter().filter(|key| key.id.namespace != *namespace).flat_map(|key| self.touched_by_route(key)).collect()
    }

    /// Routes that refer to a Service as a parent.
    pub(super) fn attached_to(&self, service: &ObjectRef) -> BTreeSet<ObjectKey> {
        let before = self.outcomes.get(service).into_iter().flat_map(BTreeMap::keys).map(|(key, _)| key.clone());
        self.attached.get(service).into_iter().flatten().cloned().chain(before).collect()
    }

    /// What became of a reference.
    pub(super) fn outcome(&self, service: &ObjectRef, key: &ObjectKey, index: usize) -> Option<&Outcome> {
        self.outcomes.get(service)?.get(&(key.clone(), index))
    }
}

fn backend_refs(rules: &Rules) -> Box<dyn Iterator<Item = &BackendRef> + '_> {
    fn of<M>(rules: &[crate::objects::traffic::Rule<M>]) -> impl Iterator<Item = &BackendRef> {
        rules.iter().flat_map(|r| {
            let filters = r.filters.iter().chain(r.backend_refs.iter().flat_map(|b| &b.filters));
            let mirrors = filters.filter_map(|f| f.request_mirror.as_ref().map(|m| &m.backend_ref));
            r.backend_refs.iter().chain(mirrors)
        })
    }
    match rules {
        Rules::Http(rules) => Box::new(of(rules)),
        Rules::Grpc(rules) => Box::new(of(rules)),
        Rules::Opaque(rules) => Box::new(of(rules)),
    }
}

/// The Service that a reference names, where it names one.
fn named(reference: &BackendRef, own: &Namespace) -> Option<ObjectRef> {
    let group = reference.group.as_deref().unwrap_or_default();
    if !group.is_empty() || reference.kind.as_deref().is_some_and(|k| k != "Service") {
        return None;
    }
    let namespace = reference.namespace.as_ref().map_or(Some(own.clone()), |n| n.parse().ok())?;
    Some(ObjectRef { namespace, name: reference.name.parse().ok()? })
}

/// Of routes of several kinds for one port, one kind counts (GEP-1426): this order.
const fn rank(kind: RouteKind) -> u8 {
    match kind {
        RouteKind::Grpc => 0,
        RouteKind::Http => 1,
        RouteKind::Tls => 2,
        RouteKind::Tcp => 3,
    }
}

/// A route on its way to one Service.
struct Candidate {
    key: ObjectKey,
    route: Arc<RouteObject>,
    ports: BTreeSet<u16>,
}

impl Model {
    /// Computes the routes of a Service anew, and what became of each. Says whether they are others, and whether there are any now where there were none,
    /// or the other way round.
    pub(super) fn refresh_routes(&mut self, id: &ObjectRef) -> (bool, bool) {
        let service = self.service(id).cloned();
        let all_ports: BTreeSet<u16> = service.iter().flat_map(|s| tcp_ports(s)).map(|p| p.port).collect();
        let mut outcomes: BTreeMap<(ObjectKey, usize), Outcome> = BTreeMap::new();
        let mut groups: BTreeMap<Namespace, Vec<Candidate>> = BTreeMap::new();
        for key in self.routes.attached.get(id).into_iter().flatten() {
            let Some(held) = self.routes.objects.get(key) else { continue };
            let mut ports = BTreeSet::new();
            let mut attach = |object: &RouteObject, parent: &ParentRef| {
                (parent.service(&object.id.namespace).as_ref() == Some(id)).then(|| {
                    let fits = ports_of(parent, service.as_deref());
                    ports.extend(fits.iter().flatten());
                    fits.err()
                })
            };
            // What stays in force of an earlier version is attached as that version said.
            if let Some(before) = held.in_force.as_ref().filter(|before| !Arc::ptr_eq(before, &held.object)) {
                for parent in &before.parents {
                    attach(before, parent);
                }
            }
            for (i, parent) in held.object.parents.iter().enumerate() {
                let refused = match (&held.refusal, &held.in_force) {
                    (None, _) => match attach(&held.object, parent) {
                        Some(refused) => refused.map(|mut r| {
                            r.field = format!("spec.parentRefs[{i}]");
                            r
                        }),
                        None => continue,
                    },
                    _ if parent.service(&held.object.id.namespace).as_ref() != Some(id) => continue,
                    (Some(_), Some(before)) if before.parents.contains(parent) => ports_of(parent, service.as_deref()).err(),
                    (Some(why), _) => Some(why.clone()),
                };
                let fallen_back = match (&held.refusal, &held.in_force, &refused) {
                    (Some(why), Some(before), None) => Some((why.clone(), before.generation)),
                    _ => None,
                };
                outcomes.insert((key.clone(), i), Outcome { refused, fallen_back, ..Outcome::default() });
            }
            if let (Some(route), false) = (&held.in_force, ports.is_empty()) {
                let candidate = Candidate { key: key.clone(), route: route.clone(), ports };
                groups.entry(key.id.namespace.clone()).or_default().push(candidate);
            }
        }
        let mut routed: BTreeMap<Namespace, Vec<(Route, BTreeSet<u16>)>> = BTreeMap::new();
        for (namespace, group) in groups {
            routed.insert(namespace, self.group(id, group, &mut outcomes));
        }
        if outcomes.is_empty() {
            self.routes.outcomes.remove(id);
        } else {
            self.routes.outcomes.insert(id.clone(), outcomes);
        }
        let new = views(id, &all_ports, &routed);
        let (before, now) = (self.snapshot.routes.contains_key(id), new.is_some());
        let changed = super::put(&mut self.snapshot.routes, id, new.map(Arc::new), |a, b| a.versions() == b.versions());
        (changed, before != now)
    }

    /// The routes of one namespace for a Service, the older first.
    fn group(
        &self,
        id: &ObjectRef,
        mut group: Vec<Candidate>,
        outcomes: &mut BTreeMap<(ObjectKey, usize), Outcome>,
    ) -> Vec<(Route, BTreeSet<u16>)> {
        let mut best: BTreeMap<u16, u8> = BTreeMap::new();
        for c in &group {
            for port in &c.ports {
                let held = best.entry(*port).or_insert(u8::MAX);
                *held = rank(c.route.kind).min(*held);
            }
        }
        group.sort_by(|a, b| (a.route.created, &a.key.id, a.key.kind).cmp(&(b.route.created, &b.key.id, b.key.kind)));
        let (mut routes, mut bytes) = (Vec::with_capacity(group.len()), 0);
        for Candidate { key, route, mut ports } in group {
            let own = outcomes.range_mut((key.clone(), 0)..=(key.clone(), usize::MAX)).map(|(_, o)| o);
            ports.retain(|port| best.get(port) == Some(&rank(route.kind)));
            if ports.is_empty() {
                let why =
                    "a route of a kind that comes first is attached to the same ports: GRPCRoute, HTTPRoute, TLSRoute, TCPRoute";
                refuse(own, &Refusal::new("Conflicted", "spec.parentRefs", why));
                continue;
            }
            let mut unresolved = Vec::new();
            let resolve = |reference: &BackendRef| self.resolve(&route, id, reference);
            let Ok(rules) = rules::read(&route, &resolve, &mut unresolved) else { continue };
            let hostnames = match route.kind {
                RouteKind::Tls => route.hostnames.iter().map(|h| h.as_str().into()).collect(),
                _ => vec![],
            };
            let made = Route { kind: route.kind, id: route.id.clone(), created: route.created, ports: vec![], hostnames, rules };
            bytes += v1::Route::from(&made).encoded_len();
            if bytes > MAX_BYTES {
                let why =
                    format!("the routes of Service {id} have more than {MAX_BYTES} bytes together: only older ones are in force");
                refuse(own, &Refusal::new("TooManyRoutes", "spec.rules", why));
                continue;
            }
            for outcome in own {
                outcome.unresolved.clone_from(&unresolved);
            }
            routes.push((made, ports));
        }
        routes
    }

    /// What a backendRef of a route that is attached to `parent` names. A Service in another namespace needs a grant there, but for the parent
    /// itself: that is where the requests were going.
    fn resolve(&self, route: &RouteObject, parent: &ObjectRef, reference: &BackendRef) -> Result<(ObjectRef, u16), Refusal> {
        let refuse = |reason, message: String| Err(Refusal::new(reason, "", message));
        let Some(id) = named(reference, &route.id.namespace) else {
            let group = reference.group.as_deref().unwrap_or_default();
            let kind = reference.kind.as_deref().unwrap_or("Service");
            let what: String = format!("{group}/{kind} {}", reference.name).chars().take(200).collect();
            return refuse(rules_reason(reference), format!("{what:?} is no Service that could be a backend"));
        };
        if id.namespace != route.id.namespace && id != *parent {
            let grants = self.routes.grants.get(&id.namespace).into_iter().flat_map(BTreeMap::values);
            let mut lets = grants.map(|g| g.lets(route.kind.as_str(), &route.id.namespace, id.name.as_str()));
            if !lets.any(|lets| lets) {
                let kind = route.kind.as_str();
                let own = &route.id.namespace;
                return refuse(
                    "RefNotPermitted",
                    format!("no ReferenceGrant in namespace {} lets a {kind} of {own} refer to {id}", id.namespace),
                );
            }
        }
        let Some(service) = self.service(&id) else { return refuse("BackendNotFound", format!("there is no Service {id}")) };
        if service.spec.kind == ServiceType::ExternalName {
            return refuse("BackendNotFound", format!("Service {id} is of type ExternalName, which has no endpoints"));
        }
        match reference.port {
            None => refuse("BackendNotFound", format!("a port of Service {id} must be said")),
            Some(port) if !tcp_ports(service).any(|p| p.port == port) => {
                refuse("BackendNotFound", format!("Service {id} has no TCP port {port}"))
            }
            Some(port) => Ok((id, port)),
        }
    }
}

/// A malformed name of a Service is one that is not there.
fn rules_reason(reference: &BackendRef) -> &'static str {
    let is_service =
        reference.group.as_deref().unwrap_or_default().is_empty() && reference.kind.as_deref().is_none_or(|k| k == "Service");
    if is_service { "BackendNotFound" } else { rules::INVALID_KIND }
}

fn refuse<'a>(own: impl Iterator<Item = &'a mut Outcome>, why: &Refusal) {
    for outcome in own {
        outcome.refused.get_or_insert_with(|| why.clone());
        outcome.fallen_back = None;
    }
}

/// The ports of a Service that a parentRef means.
fn ports_of(parent: &ParentRef, service: Option<&ServiceObject>) -> Result<Vec<u16>, Refusal> {
    let refuse = |message: String| Err(Refusal::new(NO_PARENT, "", message));
    let Some(service) = service else { return refuse(format!("there is no Service {}", parent.name)) };
    let id = &service.id;
    if service.spec.kind == ServiceType::ExternalName || service.spec.addresses().is_empty() {
        return refuse(format!("Service {id} has no address of its own, by which requests to it could be told"));
    }
    let named = |name: Option<&str>| parent.section_name.as_deref().is_none_or(|wanted| name == Some(wanted));
    let fits = tcp_ports(service).filter(|p| parent.port.is_none_or(|wanted| wanted == p.port) && named(p.name.as_deref()));
    let ports: Vec<u16> = fits.map(|p| p.port).collect();
    if ports.is_empty() {
        return refuse(format!("Service {id} has no TCP port like this"));
    }
    Ok(ports)
}

/// What the callers of each namespace get; none where there is no route at all.
fn views(
    id: &ObjectRef,
    all: &BTreeSet<u16>,
    routed: &BTreeMap<Namespace, Vec<(Route, BTreeSet<u16>)>>,
) -> Option<ServiceRoutes> {
    if routed.values().all(Vec::is_empty) {
        return None;
    }
    let on = |(route, ports): &(Route, BTreeSet<u16>), but: &BTreeSet<u16>| {
        let left: Vec<u16> = ports.difference(but).copied().collect();
        let ports = if left.len() == all.len() { vec![] } else { left.clone() };
        (!left.is_empty()).then(|| Route { ports, ..route.clone() })
    };
    let entry = |routes: Vec<Route>| {
        let backends: BTreeSet<ObjectRef> = routes.iter().flat_map(Route::services).cloned().collect();
        Arc::new(RoutesEntry { entry: Entry::new(Body::Routes(routes_to(&routes))), backends: backends.into_iter().collect() })
    };
    let none = BTreeSet::new();
    let own = routed.get(&id.namespace).map(Vec::as_slice).unwrap_or_default();
    let consumers = routed.iter().filter(|(namespace, routes)| **namespace != id.namespace && !routes.is_empty());
    Some(ServiceRoutes {
        producer: entry(own.iter().filter_map(|r| on(r, &none)).collect()),
        consumers: consumers
            .map(|(namespace, routes)| {
                let covered: BTreeSet<u16> = routes.iter().flat_map(|(_, ports)| ports).copied().collect();
                let theirs = routes.iter().filter_map(|r| on(r, &none));
                (namespace.clone(), entry(theirs.chain(own.iter().filter_map(|r| on(r, &covered))).collect()))
            })
            .collect(),
    })
}
