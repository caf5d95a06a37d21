//! Which network policies isolate which pod, and the sets of pods that they name.

mod selection;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use weft_core::Namespace;
use weft_core::network_policy::{Isolation, Member, PeerTerm, PeersId, Policy, PortTerm, Rule};
use weft_core::service::ObjectRef;

use super::{Changed, Model, put};
use crate::objects::network_policy::{Content, NetworkPolicyObject, Peer, Port, Rule as RuleObject};
use crate::objects::{Labels, PodObject};
use crate::snapshot::{NetworkFacts, PeersEntry};
use crate::watch::Problem;
use selection::{Namespaces, Selection};
use weft_proto::ResourceName;

/// All policies, and the sets that any of them names.
#[derive(Default)]
pub(super) struct Networks {
    held: HashMap<Namespace, BTreeMap<ObjectRef, Arc<NetworkPolicyObject>>>,
    sets: HashMap<PeersId, Named>,
}

struct Named {
    selection: Selection,
    /// How often policies name it.
    users: usize,
}

/// Which way a call goes, as the pod sees it that a policy is for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Ingress,
    Egress,
}

impl Networks {
    pub(super) fn insert(&mut self, object: Arc<NetworkPolicyObject>) {
        for selection in selections(&object) {
            let named = self.sets.entry(selection.id()).or_insert_with(|| Named { selection, users: 0 });
            named.users += 1;
        }
        self.held.entry(object.id.namespace.clone()).or_default().insert(object.id.clone(), object);
    }

    pub(super) fn remove(&mut self, id: &ObjectRef) {
        let Some(list) = self.held.get_mut(&id.namespace) else { return };
        let old = list.remove(id);
        if list.is_empty() {
            self.held.remove(&id.namespace);
        }
        for selection in old.iter().flat_map(|object| selections(object)) {
            let set = selection.id();
            if let Some(named) = self.sets.get_mut(&set) {
                named.users -= 1;
                if named.users == 0 {
                    self.sets.remove(&set);
                }
            }
        }
    }

    fn get(&self, id: &ObjectRef) -> Option<&Arc<NetworkPolicyObject>> {
        self.held.get(&id.namespace)?.get(id)
    }

    fn for_pod<'a>(&'a self, pod: &'a PodObject) -> impl Iterator<Item = &'a Arc<NetworkPolicyObject>> {
        let of_namespace = self.held.get(&pod.id.namespace).into_iter().flat_map(BTreeMap::values);
        of_namespace.filter(|policy| is_for(policy, pod))
    }
}

/// A pod on its host's network has no network of its own to isolate.
fn is_for(policy: &NetworkPolicyObject, pod: &PodObject) -> bool {
    !pod.spec.host_network && policy.content.as_ref().map_or(true, |content| content.pods.selects(&pod.labels))
}

fn rules(content: &Content, way: Way) -> Option<&[RuleObject]> {
    match way {
        Way::Ingress => content.ingress.as_deref(),
        Way::Egress => content.egress.as_deref(),
    }
}

/// The sets that a policy names, each as often as it does.
fn selections(object: &NetworkPolicyObject) -> Vec<Selection> {
    let Ok(content) = &object.content else { return vec![] };
    let mut all = Vec::new();
    for way in [Way::Ingress, Way::Egress] {
        for rule in rules(content, way).unwrap_or_default() {
            let peers = rule.peers.iter().flatten();
            all.extend(peers.filter_map(|peer| Selection::of(peer, &object.id.namespace)));
            if way == Way::Egress {
                for port in rule.ports.iter().flatten() {
                    if let Port::Name(name) = port {
                        all.extend(by_name(rule, &object.id.namespace, name));
                    }
                }
            }
        }
    }
    all
}

/// The pods that a rule can mean by a port's name: of its own peers, and of all pods where it names addresses, or nobody.
fn by_name<'a>(rule: &'a RuleObject, own: &'a Namespace, name: &'a str) -> impl Iterator<Item = Selection> + 'a {
    let has_blocks = rule.peers.as_ref().is_none_or(|peers| peers.iter().any(|p| matches!(p, Peer::Block { .. })));
    let pods = rule.peers.iter().flatten().filter_map(|peer| Selection::of(peer, own));
    pods.chain(has_blocks.then(Selection::everybody)).map(|selection| selection.with_port(name))
}

/// A policy as a pod's sidecar asks it; none where it does not isolate that way.
fn compiled(object: &NetworkPolicyObject, pod: &PodObject, way: Way) -> Option<Policy> {
    let id = object.id.clone();
    let content = match &object.content {
        Ok(content) => content,
        Err((field, message)) => {
            let why: String = format!("{field}: {message}").chars().take(300).collect();
            return Some(Policy { id, rules: vec![], broken: Some(why.into()) });
        }
    };
    let own = &object.id.namespace;
    let rule = |(place, rule): (usize, &RuleObject)| {
        let peers = match &rule.peers {
            None => vec![PeerTerm::Anywhere],
            Some(peers) => peers.iter().map(|peer| term(peer, own)).collect(),
        };
        let ports = match &rule.ports {
            None => vec![PortTerm::All],
            Some(ports) => ports.iter().flat_map(|port| ports_of(port, rule, own, pod, way)).collect::<Vec<_>>(),
        };
        (!ports.is_empty()).then_some(Rule { place, peers, ports })
    };
    let rules = rules(content, way)?.iter().enumerate().filter_map(rule).collect();
    Some(Policy { id, rules, broken: None })
}

fn term(peer: &Peer, own: &Namespace) -> PeerTerm {
    match (peer, Selection::of(peer, own)) {
        (_, Some(selection)) => PeerTerm::Set(selection.id()),
        (Peer::Block { cidr, except }, None) => PeerTerm::Block { cidr: *cidr, except: except.clone() },
        // What is no block has a selection.
        (Peer::Pods { .. }, None) => PeerTerm::Set(PeersId(0)),
    }
}

fn ports_of(port: &Port, rule: &RuleObject, own: &Namespace, pod: &PodObject, way: Way) -> Vec<PortTerm> {
    match (port, way) {
        (Port::All, _) => vec![PortTerm::All],
        (Port::Range(first, last), _) => vec![PortTerm::Range(*first, *last)],
        (Port::Name(name), Way::Ingress) => pod.port_named(name).map(|p| PortTerm::Range(p, p)).into_iter().collect(),
        (Port::Name(name), Way::Egress) => by_name(rule, own, name).map(|s| PortTerm::Named(s.id())).collect(),
    }
}

impl Model {
    fn isolation(&self, pod: &PodObject, way: Way) -> Option<Arc<Isolation>> {
        let policies: Vec<_> = self.networks.for_pod(pod).filter_map(|p| compiled(p, pod, way)).map(Arc::new).collect();
        (!policies.is_empty()).then(|| Arc::new(Isolation { policies }))
    }

    /// The policies that isolate a pod for ingress.
    pub(super) fn network_ingress(&self, pod: &PodObject) -> Option<Arc<Isolation>> {
        self.isolation(pod, Way::Ingress)
    }

    /// The policies that isolate a pod for egress.
    pub(super) fn network_egress(&self, pod: &PodObject) -> Option<Arc<Isolation>> {
        self.isolation(pod, Way::Egress)
    }

    /// The pods that a policy is for.
    pub(super) fn touched_by_network(&self, id: &ObjectRef) -> Vec<ObjectRef> {
        let Some(policy) = self.networks.get(id) else { return vec![] };
        let pods = self.pods.get(&id.namespace).into_iter().flat_map(BTreeMap::values);
        pods.filter(|pod| is_for(policy, pod)).map(|pod| pod.id.clone()).collect()
    }

    /// The sets that a policy names.
    pub(super) fn named_by_network(&self, id: &ObjectRef) -> Vec<PeersId> {
        self.networks.get(id).map(|p| selections(p).iter().map(Selection::id).collect()).unwrap_or_default()
    }

    /// The policies that are for a pod as it stands.
    pub(super) fn networks_for(&self, pod: &PodObject) -> Vec<ObjectRef> {
        self.networks.for_pod(pod).map(|p| p.id.clone()).collect()
    }

    /// The sets that a pod is in as it stands.
    pub(super) fn sets_with(&self, pod: &PodObject) -> Vec<PeersId> {
        if self.networks.sets.is_empty() || !counts(pod) {
            return vec![];
        }
        let labels = self.labels_of(&pod.id.namespace);
        let holds = |named: &Named| named.selection.is_in(&pod.id.namespace, &labels) && named.selection.picks(pod).is_some();
        self.networks.sets.iter().filter(|(_, named)| holds(named)).map(|(id, _)| *id).collect()
    }

    /// The sets that a namespace's pods are in by its labels.
    pub(super) fn sets_by_labels_of(&self, namespace: &Namespace) -> Vec<PeersId> {
        if self.networks.sets.is_empty() {
            return vec![];
        }
        let labels = self.labels_of(namespace);
        let holds = |named: &Named| {
            matches!(named.selection.namespaces, Namespaces::With(_)) && named.selection.is_in(namespace, &labels)
        };
        self.networks.sets.iter().filter(|(_, named)| holds(named)).map(|(id, _)| *id).collect()
    }

    /// A namespace that nobody has written an object for has the label that the API server gives.
    fn labels_of(&self, namespace: &Namespace) -> Labels {
        let implied = || Labels::from([(crate::objects::network_policy::LABEL_NAMESPACE_NAME.to_owned(), namespace.to_string())]);
        self.namespaces.get(namespace).map_or_else(implied, |n| n.labels.clone())
    }

    /// Computes a set anew.
    pub(super) fn refresh_peers(&mut self, id: PeersId, changed: &mut BTreeSet<Changed>) {
        let entry = self.networks.sets.get(&id).map(|named| {
            let mut members = BTreeMap::new();
            for (namespace, pods) in &self.pods {
                if !named.selection.is_in(namespace, &self.labels_of(namespace)) {
                    continue;
                }
                for pod in pods.values().filter(|pod| counts(pod)) {
                    let Some(port) = named.selection.picks(pod) else { continue };
                    let identity = self.reach(pod).identity().cloned();
                    for address in pod.addresses() {
                        let member = Member { pod: pod.id.clone(), identity: identity.clone(), port };
                        // Of two pods that claim one address, the same one everywhere has it.
                        if self.pod_at.get(&address).and_then(BTreeSet::first) == Some(&pod.id) {
                            members.insert(address.to_canonical(), member);
                        }
                    }
                }
            }
            PeersEntry::new(members)
        });
        if put(&mut self.snapshot.peers, &id, entry, |a, b| a.version == b.version) {
            changed.insert(Changed::Name(ResourceName::Peers(id)));
        }
    }

    /// What of a policy is not enforced, and for whom it is: for people.
    pub(super) fn refresh_network(&mut self, id: &ObjectRef) {
        let key = crate::objects::ObjectKey { kind: crate::objects::Kind::NetworkPolicy, id: id.clone() };
        self.problems.remove(&key);
        let facts = self.networks.get(id).map(|policy| {
            let mut notes = Vec::new();
            let note = |field: &str, message: String| Problem { place: key.to_string(), field: field.into(), message };
            match &policy.content {
                Err((field, message)) => {
                    let message = format!("{message}; until it is mended, every pod of namespace {} is isolated by it", id.namespace);
                    self.problems.insert(key.clone(), vec![note(field, message)]);
                }
                Ok(content) => {
                    for (way, name) in [(Way::Ingress, "ingress"), (Way::Egress, "egress")] {
                        for (i, _) in rules(content, way).unwrap_or_default().iter().enumerate().filter(|(_, r)| r.leaves_out) {
                            let message = "UDP and SCTP do not pass through weft: what this says of them is for the cluster's network to enforce";
                            notes.push(note(&format!("spec.{name}[{i}].ports"), message.into()));
                        }
                    }
                }
            }
            let of_namespace = self.pods.get(&id.namespace).into_iter().flat_map(BTreeMap::values).filter(|p| !p.ended());
            let selects = |pod: &PodObject| policy.content.as_ref().map_or(true, |c| c.pods.selects(&pod.labels));
            let bare: Vec<String> =
                of_namespace.filter(|p| selects(p) && !p.has_sidecar()).map(|p| p.id.name.to_string()).collect();
            if let Some(first) = bare.first() {
                let more = match bare.len() {
                    1 => String::new(),
                    n => format!(" and {} more", n - 1),
                };
                let message = format!(
                    "it selects pod {first}{more} without a sidecar (on the host's network, or weft.dev/inject is not enabled): nothing of weft \
                     enforces it there"
                );
                notes.push(note("spec.podSelector", message));
            }
            let isolates = match &policy.content {
                Ok(content) => (content.ingress.is_some(), content.egress.is_some()),
                Err(_) => (true, true),
            };
            Arc::new(NetworkFacts { uid: policy.uid.clone(), isolates, notes })
        });
        put(&mut self.snapshot.networks, id, facts, |a, b| a == b);
    }
}

/// Whether a pod's addresses are its own, and in use.
fn counts(pod: &PodObject) -> bool {
    !pod.ended() && !pod.spec.host_network
}
