//! The specification of `NetworkPolicy`, read literally: a cluster with labels and policies, and whether one address reaches a port of another. It is slow,
//! shares nothing with the compiled form but [`ipnet`], and is there for tests.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

/// Labels of a pod or a namespace.
pub type Labels = BTreeMap<String, String>;

/// A label selector. Empty, it selects everything.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Selector {
    /// Each must be there with this value.
    pub match_labels: Labels,
    /// Each must hold.
    pub match_expressions: Vec<Expression>,
}

/// A requirement on one label.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Expression {
    /// It is there, with one of the values.
    In(String, Vec<String>),
    /// It is not there, or with none of the values.
    NotIn(String, Vec<String>),
    /// It is there.
    Exists(String),
    /// It is not there.
    DoesNotExist(String),
}

/// A namespace.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Namespace {
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: Labels,
}

/// A pod that runs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pod {
    /// Its namespace.
    pub namespace: String,
    /// Its labels.
    pub labels: Labels,
    /// One of each family at most.
    pub addresses: Vec<IpAddr>,
    /// Its TCP ports that have names.
    pub ports: BTreeMap<String, u16>,
    /// It is on the network of its host: no labels match it.
    pub host_network: bool,
}

/// A policy, as its object has it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NetworkPolicy {
    /// Its namespace.
    pub namespace: String,
    /// Pods of its namespace that it is for.
    pub pod_selector: Selector,
    /// `policyTypes`, where they are given: ingress, egress.
    pub types: Option<(bool, bool)>,
    /// None where the field is left out.
    pub ingress: Option<Vec<Rule>>,
    /// None where the field is left out.
    pub egress: Option<Vec<Rule>>,
}

/// A rule of either direction.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Rule {
    /// `from` or `to`; empty, or left out, is everybody.
    pub peers: Vec<Peer>,
    /// Empty, or left out, is every port.
    pub ports: Vec<Port>,
}

/// One of `from` or `to`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Peer {
    /// Pods, by their namespaces' labels and by their own. Without `namespaces`, those of the policy's namespace.
    Pods {
        /// `namespaceSelector`.
        namespaces: Option<Selector>,
        /// `podSelector`.
        pods: Option<Selector>,
    },
    /// `ipBlock`.
    Block {
        /// `cidr`.
        cidr: IpNet,
        /// `except`.
        except: Vec<IpNet>,
    },
}

/// One of `ports`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Port {
    /// TCP, every port.
    Any,
    /// TCP, from the first to the last.
    Numbers(u16, u16),
    /// TCP, by the called pod's name for it.
    Name(String),
    /// Of UDP or SCTP: no TCP port.
    Other,
}

/// Everything that counts.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Cluster {
    /// Every namespace of a pod.
    pub namespaces: Vec<Namespace>,
    /// Every pod.
    pub pods: Vec<Pod>,
    /// Every policy.
    pub policies: Vec<NetworkPolicy>,
}

impl Selector {
    /// Whether it selects what has these labels.
    pub fn selects(&self, labels: &Labels) -> bool {
        for (key, value) in &self.match_labels {
            if labels.get(key) != Some(value) {
                return false;
            }
        }
        for expression in &self.match_expressions {
            let holds = match expression {
                Expression::In(key, values) => labels.get(key).is_some_and(|v| values.contains(v)),
                Expression::NotIn(key, values) => !labels.get(key).is_some_and(|v| values.contains(v)),
                Expression::Exists(key) => labels.contains_key(key),
                Expression::DoesNotExist(key) => !labels.contains_key(key),
            };
            if !holds {
                return false;
            }
        }
        true
    }
}

impl NetworkPolicy {
    /// Whether it isolates for ingress, and for egress: as `policyTypes` says, else ingress always and egress where there is any rule for it.
    pub fn isolates(&self) -> (bool, bool) {
        self.types.unwrap_or((true, self.egress.as_ref().is_some_and(|rules| !rules.is_empty())))
    }

    fn is_for(&self, pod: &Pod) -> bool {
        !pod.host_network && self.namespace == pod.namespace && self.pod_selector.selects(&pod.labels)
    }
}

impl Cluster {
    /// Whether policies let `from` come in to a pod at `address` and `port`.
    pub fn ingress(&self, from: IpAddr, pod: &Pod, port: u16) -> bool {
        let isolating: Vec<_> = self.policies.iter().filter(|p| p.is_for(pod) && p.isolates().0).collect();
        if isolating.is_empty() || pod.addresses.contains(&from) {
            return true;
        }
        let rules = isolating.iter().flat_map(|p| p.ingress.iter().flatten().map(move |rule| (&p.namespace, rule)));
        rules.into_iter().any(|(namespace, rule)| {
            self.is_peer(namespace, rule, from) && calls(rule, |name| pod.ports.get(name) == Some(&port), port)
        })
    }

    /// Whether policies let a pod call `to` at `port`.
    pub fn egress(&self, pod: &Pod, to: IpAddr, port: u16) -> bool {
        let isolating: Vec<_> = self.policies.iter().filter(|p| p.is_for(pod) && p.isolates().1).collect();
        if isolating.is_empty() || pod.addresses.contains(&to) {
            return true;
        }
        let called = self.pods.iter().find(|p| !p.host_network && p.addresses.contains(&to));
        let rules = isolating.iter().flat_map(|p| p.egress.iter().flatten().map(move |rule| (&p.namespace, rule)));
        rules.into_iter().any(|(namespace, rule)| {
            let named = |name: &str| called.is_some_and(|p| p.ports.get(name) == Some(&port));
            self.is_peer(namespace, rule, to) && calls(rule, named, port)
        })
    }

    fn is_peer(&self, own: &str, rule: &Rule, address: IpAddr) -> bool {
        if rule.peers.is_empty() {
            return true;
        }
        let pod = self.pods.iter().find(|p| !p.host_network && p.addresses.contains(&address));
        rule.peers.iter().any(|peer| match peer {
            Peer::Block { cidr, except } => cidr.contains(&address) && !except.iter().any(|e| e.contains(&address)),
            Peer::Pods { namespaces, pods } => {
                let Some(pod) = pod else { return false };
                let in_namespace = match namespaces {
                    None => pod.namespace == own,
                    Some(selector) => {
                        let namespace = self.namespaces.iter().find(|n| n.name == pod.namespace);
                        namespace.is_some_and(|n| selector.selects(&n.labels))
                    }
                };
                in_namespace && pods.as_ref().is_none_or(|selector| selector.selects(&pod.labels))
            }
        })
    }
}

fn calls(rule: &Rule, named: impl Fn(&str) -> bool, port: u16) -> bool {
    rule.ports.is_empty()
        || rule.ports.iter().any(|p| match p {
            Port::Any => true,
            Port::Numbers(first, last) => (*first..=*last).contains(&port),
            Port::Name(name) => named(name),
            Port::Other => false,
        })
}
