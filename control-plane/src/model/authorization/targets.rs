//! Policies for Services: whose pods they are for, and at which ports.
//!
//! A policy does not cease to hold because the Service that it names goes away or loses its selector: the pods keep it by the last selector and ports that
//! the Service had. What was never seen has none, and the policy holds for nobody until it is there.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use weft_core::Namespace;
use weft_core::service::ObjectRef;
use weft_proto::{bound, v1};

use super::{InForce, Scope};
use crate::model::Model;
use crate::model::endpoints::{target_port, tcp_ports};
use crate::model::status::Refusal;
use crate::objects::{IntOrString, Kind, ObjectKey, PodObject, ServiceObject};
use crate::watch::Problem;

/// Services that policies are for, as they were last with a selector.
#[derive(Default, Clone)]
pub(super) struct Targets {
    by_namespace: HashMap<Namespace, BTreeMap<ObjectRef, Arc<ServiceObject>>>,
}

impl Targets {
    fn get(&self, id: &ObjectRef) -> Option<&Arc<ServiceObject>> {
        self.by_namespace.get(&id.namespace)?.get(id)
    }

    fn of(&self, namespace: &Namespace) -> impl Iterator<Item = &Arc<ServiceObject>> {
        self.by_namespace.get(namespace).into_iter().flat_map(BTreeMap::values)
    }

    fn retain(&mut self, keep: impl Fn(&ObjectRef) -> bool) {
        self.by_namespace.retain(|_, services| {
            services.retain(|id, _| keep(id));
            !services.is_empty()
        });
    }
}

impl Model {
    /// Notes the Service that is `key`, or that the policy `key` is for, as it stands.
    pub(in crate::model) fn note_target(&mut self, key: &ObjectKey) {
        let id = match key.kind {
            Kind::Service => &key.id,
            Kind::AuthorizationPolicy => match self.authorizations.held.get(&key.id).and_then(|held| held.in_force.as_ref()) {
                Some(InForce { scope: Scope::Service(service), .. }) => service,
                _ => return,
            },
            _ => return,
        };
        if !self.authorizations.services.contains_key(id) {
            return;
        }
        let Some(service) = self.service(id).filter(|s| !s.spec.selector.is_empty()).cloned() else { return };
        let id = id.clone();
        self.authorizations.targets.by_namespace.entry(id.namespace.clone()).or_default().insert(id, service);
    }

    /// Remembers what another model does: it is the one thing that does not follow from what there is now.
    #[cfg(test)]
    pub(in crate::model) fn remember_as(&mut self, other: &Self) {
        self.authorizations.targets = other.authorizations.targets.clone();
    }

    /// Forgets Services that no policy is for any more.
    pub(in crate::model) fn forget_targets(&mut self) {
        let all = &mut self.authorizations;
        all.targets.retain(|id| all.services.contains_key(id));
    }

    /// The pods that have the policies for a Service.
    pub(in crate::model) fn targeted(&self, service: &ObjectRef) -> Vec<ObjectRef> {
        let target = self.authorizations.targets.get(service);
        target.into_iter().flat_map(|s| self.selected(s)).map(|pod| pod.id.clone()).collect()
    }

    /// A pod's policies for Services.
    pub(super) fn targeting(&self, pod: &PodObject) -> impl Iterator<Item = &ObjectRef> {
        let all = &self.authorizations;
        let services = all.targets.of(&pod.id.namespace).filter(|s| !pod.ended() && s.spec.selects(&pod.labels));
        services.flat_map(|service| all.services.get(&service.id).into_iter().flatten())
    }

    /// Adds a pod's policies for Services, by service and name.
    pub(super) fn add_targeted(&self, pod: &PodObject, found: &mut Vec<v1::BoundPolicy>, problems: &mut Vec<Problem>) {
        let all = &self.authorizations;
        for service in all.targets.of(&pod.id.namespace).filter(|s| !pod.ended() && s.spec.selects(&pod.labels)) {
            let ids = all.services.get(&service.id).into_iter().flatten();
            let in_force = ids.filter_map(|id| all.held.get(id)?.in_force.as_ref());
            let ports = ports_on(service, pod);
            if let Some(name) = &ports.unknown {
                problems.push(Problem {
                    place: format!("Pod {}", pod.id),
                    field: "spec.containers[].ports".into(),
                    message: format!(
                        "no port is named {name:?}, to which Service {} leads; until one is, its authorization policies hold for all ports: name it",
                        service.id
                    ),
                });
            }
            for it in in_force {
                let here = ports.known.as_deref();
                match (&ports.unknown, &it.closing) {
                    (None, _) => found.push(bound(it.bytes.clone(), here)),
                    // What it refuses is refused anywhere.
                    (Some(_), None) => found.push(bound(it.bytes.clone(), None)),
                    // What it allows is allowed where it is known that this was meant, and nowhere else.
                    (Some(_), Some(closing)) => {
                        found.push(bound(it.bytes.clone(), here));
                        found.push(bound(closing.clone(), None));
                    }
                }
            }
        }
    }

    /// Why a policy for a Service does not hold as it says.
    pub(super) fn lost_target(&self, id: &ObjectRef) -> Option<Refusal> {
        let refusal = |reason, message| Some(Refusal::new(reason, "spec.targetRef", message));
        let until = match self.authorizations.targets.get(id) {
            Some(_) => "the policy stays in force for the pods of the last selector that it had",
            None => "nothing is enforced until then",
        };
        match self.service(id) {
            None => refusal("TargetNotFound", format!("there is no Service {id}: {until}")),
            // Nothing but the selector says whose traffic is the Service's.
            Some(service) if service.spec.selector.is_empty() => refusal(
                "TargetInvalid",
                format!(
                    "Service {id} has no selector, which would say whose pods are meant: {until}; or name pods by spec.selector instead"
                ),
            ),
            Some(_) => None,
        }
    }
}

/// The pod's own ports that a Service leads to.
struct Ports {
    /// None: all of them.
    known: Option<Vec<u16>>,
    /// The first name that no port of the pod has.
    unknown: Option<String>,
}

/// A Service without ports, which is headless, leads to all of them.
fn ports_on(service: &ServiceObject, pod: &PodObject) -> Ports {
    if service.spec.ports.is_empty() {
        return Ports { known: None, unknown: None };
    }
    let (mut known, mut unknown) = (BTreeSet::new(), None);
    for port in tcp_ports(service) {
        match (target_port(port, pod), &port.target_port) {
            (None, Some(IntOrString::Name(name))) => unknown = unknown.or(Some(name.clone())),
            (number, _) => known.extend(number),
        }
    }
    Ports { known: Some(known.into_iter().collect()), unknown }
}
