//! Objects to snapshot. One writer applies changes; what a change touches is computed anew, the rest is shared.

mod authorization;
pub(crate) mod endpoints;
mod external;
mod inbound;
mod issuers;
mod modes;
mod network_policy;
mod outbound;
mod places;
mod policies;
mod routes;
pub mod status;
mod trusting;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use weft_core::network_policy::PeersId;
use weft_core::policy::MtlsMode;
use weft_core::service::{AddressKind, ObjectRef, Reach, Workload};
use weft_core::{Namespace, SpiffeId, TrustDomain};
use weft_proto::v1::resource::Body;
use weft_proto::{ResourceName, v1};

use crate::issue::deny::Said;
use crate::objects::traffic::ParentRef;
use crate::objects::{EndpointSliceObject, Kind, NamespaceObject, Object, ObjectKey, PodObject, ServiceObject};
use crate::snapshot::{Entry, PodFacts, Snapshot};
use crate::watch::{Change, Problem};
use authorization::Authorizations;
use external::Externals;
use issuers::Issuers;
use modes::MtlsPolicies;
use network_policy::Networks;
use places::Places;
use policies::Policies;
use routes::Routes;
use status::{ObjectStatus, Outcome, RouteStatus, Statuses};
use trusting::Trusting;

pub use endpoints::target_port;
pub use routes::{ANNOTATION_ANY_METHOD, ANNOTATION_ATTEMPTS, ANNOTATION_GRPC_CODES};

/// What of the snapshot is another now.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Changed {
    Name(ResourceName),
    /// A pod's inbound policy, or the facts of the pod itself.
    Inbound(ObjectRef),
    /// What a pod may call.
    Outbound(ObjectRef),
    /// A namespace came into the mesh, or left it.
    Meshed(Namespace),
    /// What became of a route or policy.
    Status(ObjectKey),
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
    places: Places,
    routes: Routes,
    policies: Policies,
    authorizations: Authorizations,
    networks: Networks,
    trusting: Trusting,
    modes: MtlsPolicies,
    issuers: Issuers,
    externals: Externals,
    /// How many pods of each namespace are in the mesh, or ask to be.
    in_mesh: HashMap<Namespace, usize>,
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
            places: Places::default(),
            routes: Routes::default(),
            policies: Policies::default(),
            authorizations: Authorizations::default(),
            networks: Networks::default(),
            trusting: Trusting::default(),
            modes: MtlsPolicies::default(),
            issuers: Issuers::default(),
            externals: Externals::default(),
            in_mesh: HashMap::new(),
            problems: BTreeMap::new(),
            snapshot: Snapshot::new(trust, mesh),
        }
    }

    pub fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// The anchors are others now, or another of them issues; returns what of the snapshot is another.
    pub fn trust(&mut self, trust: Arc<Entry>) -> BTreeSet<Changed> {
        if self.snapshot.trust.version == trust.version {
            return BTreeSet::new();
        }
        self.snapshot.trust = trust;
        self.snapshot.generation += 1;
        BTreeSet::from([Changed::Name(ResourceName::Trust)])
    }

    /// What of the objects cannot be honoured.
    pub fn problems(&self) -> Vec<Problem> {
        let trusting = self.trusting.said(&self.trust_domain, self.authorizations.home()).1;
        self.problems.values().flatten().cloned().chain(trusting).collect()
    }

    /// What manifests say of foreign trust domains, and of who is denied.
    pub fn said(&self) -> Said {
        self.trusting.said(&self.trust_domain, self.authorizations.home()).0
    }

    /// What of network policies is not enforced, and where: no fault of theirs.
    pub fn notes(&self) -> Vec<Problem> {
        let mut all: Vec<Problem> = self.snapshot.networks.values().flat_map(|facts| facts.notes.iter().cloned()).collect();
        all.sort();
        all
    }

    /// What became of each route and policy.
    pub fn statuses(&self) -> &Statuses {
        &self.snapshot.statuses
    }

    /// Applies changes and returns what of the snapshot is another now.
    pub fn apply(&mut self, changes: Vec<Change>) -> BTreeSet<Changed> {
        let mut dirty = Dirty::default();
        for change in changes {
            match change {
                Change::Upsert(object) => {
                    let key = object.key();
                    if let Object::EndpointSlice(slice) = &object {
                        self.places.note(slice, &mut dirty.nodes);
                    }
                    self.mark(&key, &mut dirty);
                    let last = self.routes.in_force(&key);
                    let last_good =
                        (key.kind == Kind::AuthorizationPolicy).then(|| self.authorizations.last_good(&key.id)).flatten();
                    let last_modes = (key.kind == Kind::MtlsPolicy).then(|| self.modes.last_good(&key.id)).flatten();
                    let last_issuer = (key.kind == Kind::JwtIssuer).then(|| self.issuers.last_good(&key.id)).flatten();
                    let last_external = (key.kind == Kind::ExternalService).then(|| self.externals.last_good(&key.id)).flatten();
                    self.forget(&key);
                    match object {
                        Object::JwtIssuer(issuer) => self.issuers.insert(issuer, last_issuer),
                        Object::Route(route) => self.routes.insert(route, last),
                        Object::AuthorizationPolicy(policy) => self.authorizations.insert(policy, last_good),
                        Object::MtlsPolicy(policy) => self.modes.insert(policy, last_modes),
                        Object::ExternalService(external) => self.externals.insert(external, last_external),
                        other => self.insert(other),
                    }
                    self.note_target(&key);
                    self.mark(&key, &mut dirty);
                }
                Change::Delete(key) => {
                    self.mark(&key, &mut dirty);
                    self.forget(&key);
                }
            }
        }
        self.forget_targets();
        for (node, before) in std::mem::take(&mut dirty.nodes) {
            if self.places.zone(&node) != before {
                dirty.pods.extend(self.places.pods_on(&node).cloned());
            }
        }
        let mut changed = BTreeSet::new();
        for namespace in &dirty.namespaces {
            self.refresh_namespace(namespace, &mut changed);
        }
        self.refresh_traffic(&mut dirty, &mut changed);
        for id in &dirty.services {
            self.refresh_service(id, &mut changed);
        }
        for id in &dirty.peers {
            self.refresh_peers(*id, &mut changed);
        }
        for id in &dirty.externals {
            self.refresh_external(id);
        }
        for id in &dirty.pods {
            self.refresh_pod(id, &mut changed);
        }
        for id in &dirty.networks {
            self.refresh_network(id);
        }
        // Known only once the pods are.
        for key in self.take_overruled() {
            self.refresh_status(&key, &mut changed);
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
                dirty.namespaces.insert(key.id.namespace.clone());
                if let Some(pods) = self.pods.get(&key.id.namespace) {
                    dirty.pods.extend(pods.keys().cloned());
                }
                dirty.peers.extend(self.sets_by_labels_of(&key.id.namespace));
            }
            Kind::Service => {
                dirty.services.insert(key.id.clone());
                dirty.routed.extend(self.routes.touched_by_service(&key.id));
                if self.policies.is_targeted(&key.id) {
                    dirty.governed.insert(key.id.clone());
                }
                let authorizing = self.authorizations.of_service(&key.id).cloned();
                dirty.statuses.extend(authorizing.map(|id| ObjectKey { kind: Kind::AuthorizationPolicy, id }));
                dirty.pods.extend(self.targeted(&key.id));
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
                dirty.namespaces.insert(key.id.namespace.clone());
                let Some(pod) = self.pod(&key.id) else { return };
                dirty.peers.extend(self.sets_with(pod));
                dirty.networks.extend(self.networks_for(pod));
                // An address may pass from one pod to another.
                for other in pod.addresses().iter().filter_map(|ip| self.pod_at.get(ip)).flatten().filter(|id| **id != key.id) {
                    dirty.peers.extend(self.pod(other).map(|other| self.sets_with(other)).unwrap_or_default());
                }
                for ip in pod.addresses() {
                    self.mark_address(ip, dirty);
                }
                let in_namespace = self.services.get(&key.id.namespace).into_iter().flat_map(BTreeMap::values);
                dirty.services.extend(in_namespace.filter(|s| s.spec.selects(&pod.labels)).map(|s| s.id.clone()));
            }
            Kind::HttpRoute | Kind::GrpcRoute | Kind::TlsRoute | Kind::TcpRoute => {
                dirty.statuses.insert(key.clone());
                dirty.routed.extend(self.routes.touched_by_route(key));
            }
            Kind::ReferenceGrant => dirty.routed.extend(self.routes.touched_by_grants(&key.id.namespace)),
            Kind::BackendTrafficPolicy | Kind::TrafficPolicy => {
                dirty.statuses.insert(key.clone());
                dirty.governed.extend(self.policies.touched_by_policy(key));
            }
            // Asked for as a whole, by `said`.
            Kind::Federation | Kind::IdentityDenial => {}
            Kind::AuthorizationPolicy => {
                dirty.statuses.insert(key.clone());
                dirty.pods.extend(self.touched_by_authorization(&key.id));
                if let Some(external) = self.authorizations.external_of(&key.id) {
                    dirty.externals.insert(external.clone());
                    dirty.statuses.insert(ObjectKey { kind: Kind::ExternalService, id: external.clone() });
                }
            }
            Kind::ExternalService => {
                dirty.statuses.insert(key.clone());
                let policies = self.authorizations.for_external(&key.id).cloned();
                dirty.statuses.extend(policies.map(|id| ObjectKey { kind: Kind::AuthorizationPolicy, id }));
                dirty.externals.insert(key.id.clone());
                dirty.pods.extend(self.viewers(&key.id));
            }
            Kind::NetworkPolicy => {
                dirty.networks.insert(key.id.clone());
                dirty.peers.extend(self.named_by_network(&key.id));
                dirty.pods.extend(self.touched_by_network(&key.id));
            }
            Kind::MtlsPolicy => {
                dirty.statuses.insert(key.clone());
                dirty.pods.extend(self.touched_by_modes(&key.id));
            }
            Kind::JwtIssuer => {
                let (statuses, pods) = self.touched_by_issuer(key);
                dirty.statuses.extend(statuses);
                dirty.pods.extend(pods);
            }
            Kind::EndpointSlice => {
                if let Some(slice) = self.slices.get(&key.id.namespace).and_then(|s| s.get(&key.id)) {
                    self.places.note(slice, &mut dirty.nodes);
                    dirty.services.extend(slice.owner());
                }
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
                    self.places.forget_pod(&old);
                    if old.in_mesh()
                        && let Some(count) = self.in_mesh.get_mut(&key.id.namespace)
                    {
                        *count -= 1;
                        if *count == 0 {
                            self.in_mesh.remove(&key.id.namespace);
                        }
                    }
                    for ip in old.addresses() {
                        unclaim(&mut self.claims, ip, &Claim::Pod(key.id.clone()));
                        unclaim(&mut self.pod_at, ip, &key.id);
                    }
                }
            }
            Kind::HttpRoute | Kind::GrpcRoute | Kind::TlsRoute | Kind::TcpRoute => self.routes.remove(key),
            Kind::ReferenceGrant => self.routes.remove_grant(&key.id),
            Kind::BackendTrafficPolicy | Kind::TrafficPolicy => self.policies.remove(key),
            Kind::AuthorizationPolicy => self.authorizations.remove(&key.id),
            Kind::NetworkPolicy => self.networks.remove(&key.id),
            Kind::Federation => drop(self.trusting.federations.remove(&key.id)),
            Kind::IdentityDenial => drop(self.trusting.denials.remove(&key.id)),
            Kind::MtlsPolicy => self.modes.remove(&key.id),
            Kind::JwtIssuer => self.issuers.remove(&key.id),
            Kind::ExternalService => self.externals.remove(&key.id),
            Kind::EndpointSlice => {
                if let Some(old) = remove(&mut self.slices, &key.id) {
                    self.places.forget_slice(&old);
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
                self.places.add_pod(&o);
                if o.in_mesh() {
                    *self.in_mesh.entry(o.id.namespace.clone()).or_default() += 1;
                }
                self.pods.entry(o.id.namespace.clone()).or_default().insert(o.id.clone(), o);
            }
            Object::EndpointSlice(o) => {
                self.places.add_slice(&o);
                for ip in o.endpoints.iter().flat_map(|e| &e.addresses) {
                    self.slices_at.entry(*ip).or_default().insert(o.id.clone());
                }
                self.slices.entry(o.id.namespace.clone()).or_default().insert(o.id.clone(), o);
            }
            Object::Route(o) => self.routes.insert(o, None),
            Object::ReferenceGrant(o) => self.routes.insert_grant(o),
            Object::BackendTrafficPolicy(ref o) | Object::TrafficPolicy(ref o) => self.policies.insert(object.key(), o.clone()),
            Object::AuthorizationPolicy(o) => self.authorizations.insert(o, None),
            Object::NetworkPolicy(o) => self.networks.insert(o),
            Object::Federation(o) => drop(self.trusting.federations.insert(o.id.clone(), o)),
            Object::IdentityDenial(o) => self.trusting.deny(o),
            Object::MtlsPolicy(o) => self.modes.insert(o, None),
            Object::JwtIssuer(o) => self.issuers.insert(o, None),
            Object::ExternalService(o) => self.externals.insert(o, None),
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

    /// A namespace is in the mesh by its label, or by a pod that has a sidecar or asks for one. One that is going is not:
    /// nothing can be written to it.
    fn refresh_namespace(&mut self, name: &Namespace, changed: &mut BTreeSet<Changed>) {
        let object = self.namespaces.get(name);
        let going = object.is_some_and(|n| n.terminating);
        let meshed = !going && (object.is_some_and(|n| n.enabled()) || self.in_mesh.contains_key(name));
        if meshed == self.snapshot.meshed.contains(name) {
            return;
        }
        let all = Arc::make_mut(&mut self.snapshot.meshed);
        if meshed {
            all.insert(name.clone());
        } else {
            all.remove(name);
        }
        changed.insert(Changed::Meshed(name.clone()));
    }

    /// Routes and policies come before the services that say whether they have any, and before the pods that enforce rates.
    fn refresh_traffic(&mut self, dirty: &mut Dirty, changed: &mut BTreeSet<Changed>) {
        for id in &dirty.routed {
            dirty.statuses.extend(self.routes.attached_to(id));
            let (routes, presence) = self.refresh_routes(id);
            if routes {
                changed.insert(Changed::Name(ResourceName::Routes(id.clone())));
            }
            if presence {
                dirty.services.insert(id.clone());
            }
        }
        for id in &dirty.governed {
            dirty.statuses.extend(self.policies.attached_to(id));
            let change = self.refresh_policy(id);
            if change.told {
                changed.insert(Changed::Name(ResourceName::Policy(id.clone())));
            }
            if change.presence {
                dirty.services.insert(id.clone());
            }
            if change.rates
                && let Some(service) = self.service(id)
            {
                dirty.pods.extend(self.selected(service).map(|p| p.id.clone()));
            }
        }
        for key in &dirty.statuses {
            self.refresh_status(key, changed);
        }
    }

    fn refresh_status(&mut self, key: &ObjectKey, changed: &mut BTreeSet<Changed>) {
        if key.kind == Kind::AuthorizationPolicy {
            // For explanations, which are asked, not pushed.
            let facts = self.authorizations.facts(&key.id).map(Arc::new);
            put(&mut self.snapshot.authorizations, &key.id, facts, |a, b| a == b);
        }
        let (generation, entries) = self.entries(key);
        let problems: Vec<Problem> = entries.iter().flat_map(|(_, outcome)| outcome.problems(key)).collect();
        let has_refs = key.kind.route().is_some();
        let entries: Vec<RouteStatus> = entries
            .into_iter()
            .map(|(parent, outcome)| RouteStatus {
                route: key.clone(),
                parent,
                conditions: outcome.conditions(generation, has_refs),
            })
            .collect();
        // A route with several parents has the same trouble at each.
        let problems: BTreeSet<Problem> = problems.into_iter().collect();
        if problems.is_empty() {
            self.problems.remove(key);
        } else {
            self.problems.insert(key.clone(), problems.into_iter().collect());
        }
        let status = (!entries.is_empty()).then(|| Arc::new(ObjectStatus { generation, entries }));
        if self.snapshot.statuses.get(key) == status.as_ref() {
            return;
        }
        match status {
            Some(status) => self.snapshot.statuses.insert(key.clone(), status),
            None => self.snapshot.statuses.remove(key),
        };
        changed.insert(Changed::Status(key.clone()));
    }

    /// What became of an object at each Service that it refers to.
    fn entries(&self, key: &ObjectKey) -> (i64, Vec<(ParentRef, Outcome)>) {
        if let Some(held) = self.routes.held(key) {
            let (object, mut all) = (&held.object, Vec::new());
            for (i, parent) in object.parents.iter().enumerate() {
                let Some(service) = parent.service(&object.id.namespace) else { continue };
                all.extend(self.routes.outcome(&service, key, i).map(|o| (parent.clone(), o.clone())));
            }
            return (object.generation, all);
        }
        if key.kind == Kind::AuthorizationPolicy {
            let entry = self.authorization_entry(key);
            return entry.map_or((0, vec![]), |(generation, parent, outcome)| (generation, vec![(parent, outcome)]));
        }
        if key.kind == Kind::MtlsPolicy {
            let entry = self.modes_entry(key);
            return entry.map_or((0, vec![]), |(generation, parent, outcome)| (generation, vec![(parent, outcome)]));
        }
        if key.kind == Kind::JwtIssuer {
            let entry = self.issuer_entry(key);
            return entry.map_or((0, vec![]), |(generation, parent, outcome)| (generation, vec![(parent, outcome)]));
        }
        if key.kind == Kind::ExternalService {
            let entry = self.external_entry(key);
            return entry.map_or((0, vec![]), |(generation, parent, outcome)| (generation, vec![(parent, outcome)]));
        }
        let Some(object) = self.policies.object(key) else { return (0, vec![]) };
        let mut all = Vec::new();
        for (i, target) in object.targets.iter().enumerate() {
            let parent = ParentRef {
                group: Some(target.group.clone()),
                kind: Some(target.kind.clone()),
                namespace: Some(object.id.namespace.to_string()),
                name: target.name.clone(),
                section_name: None,
                port: None,
            };
            // What is for another kind is another implementation's, and no business of weft's.
            let outcome = target.service(&object.id).and_then(|service| self.policies.outcome(&service, key, i).cloned());
            all.extend(outcome.map(|o| (parent, o)));
        }
        (object.generation, all)
    }

    fn refresh_service(&mut self, id: &ObjectRef, changed: &mut BTreeSet<Changed>) {
        let service = self.service(id).cloned();
        let key = ObjectKey { kind: Kind::Service, id: id.clone() };
        self.problems.remove(&key);
        let (body, list, dns) = match &service {
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
                let candidates = self.candidates(s);
                let told = v1::Service {
                    has_routes: self.snapshot.routes.contains_key(id),
                    has_policy: self.snapshot.policies.contains_key(id),
                    ..(&endpoints::service_of(s)).into()
                };
                (
                    Some(Entry::new(Body::Service(told))),
                    Some(Arc::new(endpoints::views(s, &candidates))),
                    Some(Arc::new(endpoints::dns_of(s, &candidates))),
                )
            }
        };
        if put(&mut self.snapshot.services, id, body, |a, b| a.version == b.version) {
            changed.insert(Changed::Name(ResourceName::Service(id.clone())));
        }
        if put(&mut self.snapshot.endpoints, id, list, |a, b| a.versions() == b.versions()) {
            changed.insert(Changed::Name(ResourceName::Endpoints(id.clone())));
        }
        // DNS is asked, not pushed.
        put(&mut self.snapshot.dns, id, dns, |a, b| a == b);
    }

    fn refresh_pod(&mut self, id: &ObjectRef, changed: &mut BTreeSet<Changed>) {
        let key = ObjectKey { kind: Kind::Pod, id: id.clone() };
        self.problems.remove(&key);
        let (mut modes, mut overruled) = (None, BTreeMap::new());
        let entry = self.pod(id).cloned().map(|pod| {
            let mut problems = Vec::new();
            let found = self.modes_of(&pod, &mut problems);
            overruled = found.1;
            let mut policy = (&self.inbound_of(&pod, &found.0)).into();
            modes = Some(Arc::new(found.0));
            self.authorize(&pod, &mut policy, &mut problems);
            self.add_issuers(&pod, &mut policy, &mut problems);
            if !problems.is_empty() {
                self.problems.insert(key, problems);
            }
            Entry::new(Body::Inbound(policy))
        });
        self.note_overruled(id, overruled);
        // For explanations, which are asked, not pushed.
        put(&mut self.snapshot.modes, id, modes, |a, b| a == b);
        let governed = self.pod(id).map(|pod| self.governing(pod)).filter(|all| !all.is_empty()).map(Arc::new);
        put(&mut self.snapshot.governed, id, governed, |a, b| a == b);
        let facts = self.pod(id).filter(|p| !p.ended()).map(|p| Arc::new(PodFacts::of(p, self.places.of(p))));
        if put(&mut self.snapshot.pods, id, facts, |a, b| a == b) {
            changed.insert(Changed::Inbound(id.clone()));
        }
        if put(&mut self.snapshot.inbound, id, entry, |a, b| a.version == b.version) {
            changed.insert(Changed::Inbound(id.clone()));
        }
        let pod = self.pod(id);
        let isolations = pod.map(|pod| [self.network_ingress(pod), self.network_egress(pod)]).into_iter().flatten().flatten();
        let named: BTreeSet<PeersId> = isolations.flat_map(|i| i.sets().collect::<Vec<_>>()).collect();
        let named = (!named.is_empty()).then(|| Arc::new(named));
        let mut problems = Vec::new();
        let outbound = pod.map(|pod| Entry::new(Body::Outbound(self.outbound_of(pod, &mut problems))));
        if !problems.is_empty() {
            self.problems.entry(ObjectKey { kind: Kind::Pod, id: id.clone() }).or_default().extend(problems);
        }
        put(&mut self.snapshot.named, id, named, |a, b| a == b);
        if put(&mut self.snapshot.outbound, id, outbound, |a, b| a.version == b.version) {
            changed.insert(Changed::Outbound(id.clone()));
        }
    }

    /// The policies that a pod's inbound policy is made of.
    fn governing(&self, pod: &PodObject) -> Vec<ObjectKey> {
        let key = |kind| move |id: &ObjectRef| ObjectKey { kind, id: id.clone() };
        let authorizing = self.authorizing(pod).into_iter().map(key(Kind::AuthorizationPolicy));
        authorizing.chain(self.modes.ids_of(pod).map(key(Kind::MtlsPolicy))).collect()
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
    /// Services whose routes are to be computed anew.
    routed: BTreeSet<ObjectRef>,
    /// Services whose policy is.
    governed: BTreeSet<ObjectRef>,
    /// Routes and policies whose status is.
    statuses: BTreeSet<ObjectKey>,
    namespaces: BTreeSet<Namespace>,
    services: BTreeSet<ObjectRef>,
    /// External services that are to be encoded anew.
    externals: BTreeSet<ObjectRef>,
    pods: BTreeSet<ObjectRef>,
    /// Sets of pods that network policies name.
    peers: BTreeSet<PeersId>,
    /// Network policies, for what is told of them.
    networks: BTreeSet<ObjectRef>,
    addresses: BTreeSet<IpAddr>,
    /// Nodes that slices tell the zone of, with the zone that was known before.
    nodes: BTreeMap<Arc<str>, Option<Arc<str>>>,
}

impl EndpointSliceObject {
    fn owner(&self) -> Option<ObjectRef> {
        Some(ObjectRef { namespace: self.id.namespace.clone(), name: self.service.clone()? })
    }
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
