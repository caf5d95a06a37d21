//! Traffic policies: which one is in force for which Service, and what becomes of its rate limits.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use weft_core::service::ObjectRef;
use weft_core::traffic::policy::{RateLimit, TrafficPolicy};
use weft_proto::v1::resource::Body;

use super::Model;
use super::endpoints::{target_port, tcp_ports};
use super::status::{Outcome, Refusal};
use crate::objects::traffic::PolicyObject;
use crate::objects::{Kind, ObjectKey, PodObject, ServiceObject};
use crate::snapshot::Entry;

/// All policies, by what they are for.
#[derive(Default)]
pub(super) struct Policies {
    objects: BTreeMap<ObjectKey, Arc<PolicyObject>>,
    targeting: HashMap<ObjectRef, BTreeSet<ObjectKey>>,
    in_force: HashMap<ObjectRef, Arc<TrafficPolicy>>,
    /// By Service: what became of each reference to it, by policy and place among the policy's targets.
    outcomes: HashMap<ObjectRef, BTreeMap<(ObjectKey, usize), Outcome>>,
}

/// What a refresh changed.
#[derive(Default)]
pub(super) struct PolicyChange {
    /// What callers are told.
    pub told: bool,
    /// Whether there is a policy at all.
    pub presence: bool,
    pub rates: bool,
}

impl Policies {
    pub(super) fn object(&self, key: &ObjectKey) -> Option<&Arc<PolicyObject>> {
        self.objects.get(key)
    }

    pub(super) fn insert(&mut self, key: ObjectKey, object: Arc<PolicyObject>) {
        for service in targets(&object) {
            self.targeting.entry(service).or_default().insert(key.clone());
        }
        self.objects.insert(key, object);
    }

    pub(super) fn remove(&mut self, key: &ObjectKey) {
        let Some(object) = self.objects.remove(key) else { return };
        for service in targets(&object) {
            if let Some(set) = self.targeting.get_mut(&service) {
                set.remove(key);
                if set.is_empty() {
                    self.targeting.remove(&service);
                }
            }
        }
    }

    /// Services that a policy is for.
    pub(super) fn touched_by_policy(&self, key: &ObjectKey) -> BTreeSet<ObjectRef> {
        self.objects.get(key).map(|o| targets(o).collect()).unwrap_or_default()
    }

    pub(super) fn is_targeted(&self, service: &ObjectRef) -> bool {
        self.targeting.contains_key(service)
    }

    /// Policies that are for a Service, or were.
    pub(super) fn attached_to(&self, service: &ObjectRef) -> BTreeSet<ObjectKey> {
        let before = self.outcomes.get(service).into_iter().flat_map(BTreeMap::keys).map(|(key, _)| key.clone());
        self.targeting.get(service).into_iter().flatten().cloned().chain(before).collect()
    }

    pub(super) fn outcome(&self, service: &ObjectRef, key: &ObjectKey, index: usize) -> Option<&Outcome> {
        self.outcomes.get(service)?.get(&(key.clone(), index))
    }

    /// The first of a kind: the oldest, then by name.
    fn first<'a>(&'a self, keys: &'a BTreeSet<ObjectKey>, kind: Kind) -> Option<(&'a ObjectKey, &'a Arc<PolicyObject>)> {
        let of_kind = keys.iter().filter(|k| k.kind == kind).filter_map(|k| Some((k, self.objects.get(k)?)));
        of_kind.min_by_key(|(key, object)| (object.created, &key.id))
    }
}

fn targets(object: &PolicyObject) -> impl Iterator<Item = ObjectRef> {
    object.targets.iter().filter_map(|t| t.service(&object.id))
}

impl Model {
    /// Computes a Service's policy anew, and what became of each that is for it.
    pub(super) fn refresh_policy(&mut self, id: &ObjectRef) -> PolicyChange {
        let keys = self.policies.targeting.get(id).cloned().unwrap_or_default();
        let exists = self.service(id).is_some();
        let weft = self.policies.first(&keys, Kind::TrafficPolicy);
        let standard = self.policies.first(&keys, Kind::BackendTrafficPolicy);
        let winners: BTreeMap<Kind, ObjectKey> =
            [weft, standard].into_iter().flatten().map(|(key, _)| (key.kind, key.clone())).collect();
        let policy = (exists && !winners.is_empty()).then(|| {
            let mut policy = weft.map(|(_, o)| o.policy.clone()).unwrap_or_default();
            if let Some((_, other)) = standard {
                policy.session = policy.session.or_else(|| other.policy.session.clone());
                policy.retry_budget = other.retry_budget.unwrap_or(policy.retry_budget);
            }
            Arc::new(policy)
        });
        let mut outcomes = BTreeMap::new();
        for key in &keys {
            let Some(object) = self.policies.objects.get(key) else { continue };
            for (i, target) in object.targets.iter().enumerate() {
                if target.service(&object.id).as_ref() != Some(id) {
                    continue;
                }
                let field =
                    if key.kind == Kind::TrafficPolicy { "spec.targetRef".to_owned() } else { format!("spec.targetRefs[{i}]") };
                let winner = winners.get(&key.kind).filter(|w| *w != key);
                let refused = match winner {
                    _ if !exists => Some(Refusal::new("TargetNotFound", field, format!("there is no Service {id}"))),
                    Some(other) => {
                        Some(Refusal::new("Conflicted", field, format!("{other} is older, and in force for Service {id}")))
                    }
                    None => None,
                };
                let unresolved = if refused.is_none() { self.rates_without_port(id, object) } else { vec![] };
                outcomes.insert((key.clone(), i), Outcome { refused, unresolved, ..Outcome::default() });
            }
        }
        if outcomes.is_empty() {
            self.policies.outcomes.remove(id);
        } else {
            self.policies.outcomes.insert(id.clone(), outcomes);
        }
        // Callers are not told whom the service takes how much of: its own sidecars enforce it.
        let told = policy.as_ref().map(|p| {
            let told = TrafficPolicy { rates: vec![], ..TrafficPolicy::clone(p) };
            Entry::new(Body::Policy((&told).into()))
        });
        let before = match &policy {
            Some(policy) => self.policies.in_force.insert(id.clone(), policy.clone()),
            None => self.policies.in_force.remove(id),
        };
        let rates = |p: &Option<Arc<TrafficPolicy>>| p.as_ref().map(|p| p.rates.clone()).unwrap_or_default();
        PolicyChange {
            presence: before.is_some() != policy.is_some(),
            rates: rates(&before) != rates(&policy),
            told: super::put(&mut self.snapshot.policies, id, told, |a, b| a.version == b.version),
        }
    }

    /// Rate limits of a policy that are for ports that the Service does not have, and so limit less than they seem to.
    fn rates_without_port(&self, id: &ObjectRef, object: &PolicyObject) -> Vec<Refusal> {
        let ports: BTreeSet<u16> = self.service(id).into_iter().flat_map(|s| tcp_ports(s)).map(|p| p.port).collect();
        let rates = object.policy.rates.iter().enumerate();
        let missing = rates.filter_map(|(i, rate)| Some((i, rate.ports.iter().find(|port| !ports.contains(port))?)));
        let told = |(i, port)| {
            Refusal::new("PortNotFound", format!("spec.rates[{i}].ports"), format!("Service {id} has no TCP port {port}"))
        };
        missing.map(told).collect()
    }

    /// The rate limits of the services that select a pod, on the pod's own ports.
    pub(super) fn rates_of(&self, pod: &PodObject) -> Vec<RateLimit> {
        let services = self.services.get(&pod.id.namespace).into_iter().flat_map(BTreeMap::values);
        let mut all = Vec::new();
        for service in services.filter(|s| s.spec.selects(&pod.labels)) {
            let Some(policy) = self.policies.in_force.get(&service.id) else { continue };
            all.extend(policy.rates.iter().filter_map(|rate| on_pod(rate, service, pod)));
        }
        all
    }
}

/// A rate limit as a pod enforces it; none where it is for ports that the pod does not have. It is for the ports of its own Service alone: another
/// Service that selects the pod too has limits of its own.
fn on_pod(rate: &RateLimit, service: &ServiceObject, pod: &PodObject) -> Option<RateLimit> {
    let meant = tcp_ports(service).filter(|p| rate.ports.is_empty() || rate.ports.contains(&p.port));
    let ports: BTreeSet<u16> = meant.filter_map(|p| target_port(p, pod)).collect();
    (!ports.is_empty()).then(|| RateLimit { ports: ports.into_iter().collect(), ..rate.clone() })
}
