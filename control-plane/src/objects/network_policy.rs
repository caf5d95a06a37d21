//! `NetworkPolicy` (`networking.k8s.io/v1`). One that cannot be honoured is an object all the same: it isolates every pod of its namespace until it is
//! mended, since what it was to close is not known.

use std::collections::BTreeSet;
use std::sync::Arc;

use ipnet::IpNet;
use serde::Deserialize;
use weft_core::service::ObjectRef;

use super::traffic::Wrong;
use super::{IntOrString, Labels, Transport};

/// Sets of pods that the rules of one policy may make: each is kept up to date for every sidecar that goes by it.
const MAX_SETS: usize = 200;

/// The label with its own name that the API server puts on every namespace.
pub const LABEL_NAMESPACE_NAME: &str = "kubernetes.io/metadata.name";

/// A policy as it was read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NetworkPolicyObject {
    pub id: ObjectRef,
    /// Given by an API server alone.
    pub uid: Option<String>,
    /// Or the field that cannot be honoured, and why.
    pub content: Result<Arc<Content>, Wrong>,
}

/// What a policy says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Content {
    /// The pods of its namespace that it is for.
    pub pods: Selector,
    /// None: it does not isolate for ingress.
    pub ingress: Option<Vec<Rule>>,
    /// None: it does not isolate for egress.
    pub egress: Option<Vec<Rule>>,
}

/// A rule of either direction.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rule {
    /// None: everybody.
    pub peers: Option<Vec<Peer>>,
    /// None: every port. An empty list: no TCP port.
    pub ports: Option<Vec<Port>>,
    /// Ports of UDP or SCTP were left out.
    pub leaves_out: bool,
}

/// One of `from` or `to`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Peer {
    Pods {
        /// None: the policy's own namespace.
        namespaces: Option<Selector>,
        pods: Selector,
    },
    Block {
        cidr: IpNet,
        except: Vec<IpNet>,
    },
}

/// One of `ports`, of TCP.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Port {
    All,
    Range(u16, u16),
    Name(String),
}

/// A label selector. Without anything in it, it picks everything.
#[derive(Deserialize, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Selector {
    #[serde(default)]
    match_labels: Option<Labels>,
    #[serde(default)]
    match_expressions: Option<Vec<Requirement>>,
}

#[derive(Deserialize, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[serde(deny_unknown_fields)]
struct Requirement {
    key: String,
    operator: Operator,
    #[serde(default)]
    values: Option<BTreeSet<String>>,
}

#[derive(Deserialize, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
enum Operator {
    In,
    NotIn,
    Exists,
    DoesNotExist,
}

impl Selector {
    pub fn selects(&self, labels: &Labels) -> bool {
        let holds = |r: &Requirement| {
            let value = labels.get(&r.key);
            let is_listed = || value.is_some_and(|v| r.values.as_ref().is_some_and(|values| values.contains(v)));
            match r.operator {
                Operator::In => is_listed(),
                Operator::NotIn => !is_listed(),
                Operator::Exists => value.is_some(),
                Operator::DoesNotExist => value.is_none(),
            }
        };
        self.match_labels.iter().flatten().all(|(key, value)| labels.get(key) == Some(value))
            && self.match_expressions.iter().flatten().all(holds)
    }

    fn check(&self, field: &str) -> Result<(), Wrong> {
        for (i, r) in self.match_expressions.iter().flatten().enumerate() {
            let has_values = r.values.as_ref().is_some_and(|v| !v.is_empty());
            let at = format!("{field}.matchExpressions[{i}].values");
            match r.operator {
                Operator::In | Operator::NotIn if !has_values => return Err((at, "missing: In and NotIn need values".into())),
                Operator::Exists | Operator::DoesNotExist if has_values => {
                    return Err((at, "Exists and DoesNotExist take no values".into()));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// The same selection spelt in one way.
    fn plain(&self) -> Self {
        let mut expressions: Vec<Requirement> = self.match_expressions.iter().flatten().cloned().collect();
        for r in &mut expressions {
            r.values = r.values.take().filter(|v| !v.is_empty());
        }
        expressions.sort();
        expressions.dedup();
        Self {
            match_labels: self.match_labels.clone().filter(|l| !l.is_empty()),
            match_expressions: Some(expressions).filter(|e| !e.is_empty()),
        }
    }
}

/// `spec` of a `NetworkPolicy`. A field that is not known is an error: it may close something.
#[derive(Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NetworkPolicySpec {
    #[serde(default)]
    pod_selector: Option<Selector>,
    #[serde(default)]
    policy_types: Option<Vec<PolicyType>>,
    #[serde(default)]
    ingress: Option<Vec<IngressSpec>>,
    #[serde(default)]
    egress: Option<Vec<EgressSpec>>,
}

#[derive(Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
enum PolicyType {
    Ingress,
    Egress,
}

#[derive(Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(deny_unknown_fields)]
struct IngressSpec {
    #[serde(default)]
    from: Option<Vec<PeerSpec>>,
    #[serde(default)]
    ports: Option<Vec<PortSpec>>,
}

#[derive(Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(deny_unknown_fields)]
struct EgressSpec {
    #[serde(default)]
    to: Option<Vec<PeerSpec>>,
    #[serde(default)]
    ports: Option<Vec<PortSpec>>,
}

#[derive(Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PeerSpec {
    #[serde(default)]
    pod_selector: Option<Selector>,
    #[serde(default)]
    namespace_selector: Option<Selector>,
    #[serde(default)]
    ip_block: Option<BlockSpec>,
}

#[derive(Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(deny_unknown_fields)]
struct BlockSpec {
    cidr: String,
    #[serde(default)]
    except: Option<Vec<String>>,
}

#[derive(Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PortSpec {
    #[serde(default)]
    protocol: Option<Transport>,
    #[serde(default)]
    port: Option<IntOrString>,
    #[serde(default)]
    end_port: Option<u16>,
}

impl NetworkPolicySpec {
    /// What it says, or the first field below `spec` that cannot be honoured.
    pub fn read(&self) -> Result<Content, Wrong> {
        let pods = self.pod_selector.clone().unwrap_or_default();
        pods.check("podSelector")?;
        let ingress = self.ingress.as_deref().unwrap_or_default();
        let egress = self.egress.as_deref().unwrap_or_default();
        let (isolates_in, isolates_out) = match self.policy_types.as_deref() {
            Some(types) if !types.is_empty() => (types.contains(&PolicyType::Ingress), types.contains(&PolicyType::Egress)),
            _ => (true, !egress.is_empty()),
        };
        let ingress: Vec<Rule> = ingress
            .iter()
            .enumerate()
            .map(|(i, r)| rule(&format!("ingress[{i}]"), "from", r.from.as_deref(), r.ports.as_deref()))
            .collect::<Result<_, _>>()?;
        let egress: Vec<Rule> = egress
            .iter()
            .enumerate()
            .map(|(i, r)| rule(&format!("egress[{i}]"), "to", r.to.as_deref(), r.ports.as_deref()))
            .collect::<Result<_, _>>()?;
        let sets = ingress.iter().chain(&egress).map(Rule::sets).fold(0, usize::saturating_add);
        if sets > MAX_SETS {
            let why = format!("its rules make {sets} sets of pods, and {MAX_SETS} are read at most: make several policies of it");
            return Err(("spec".into(), why));
        }
        Ok(Content { pods: pods.plain(), ingress: isolates_in.then_some(ingress), egress: isolates_out.then_some(egress) })
    }
}

impl Rule {
    /// How many sets of pods it may make: each peer is one, and one more for each port that is named.
    fn sets(&self) -> usize {
        let named = self.ports.iter().flatten().filter(|port| matches!(port, Port::Name(_))).count();
        self.peers.as_ref().map_or(1, Vec::len).saturating_mul(named + 1)
    }
}

fn rule(field: &str, list: &str, peers: Option<&[PeerSpec]>, ports: Option<&[PortSpec]>) -> Result<Rule, Wrong> {
    let (peers, ports) = (peers.unwrap_or_default(), ports.unwrap_or_default());
    let read = |(i, p): (usize, &PeerSpec)| p.read(&format!("{field}.{list}[{i}]"));
    let peers = if peers.is_empty() { None } else { Some(peers.iter().enumerate().map(read).collect::<Result<_, _>>()?) };
    let mut tcp = Vec::new();
    for (i, p) in ports.iter().enumerate() {
        tcp.extend(p.read(&format!("{field}.ports[{i}]"))?);
    }
    let leaves_out = tcp.len() < ports.len();
    Ok(Rule { peers, ports: (!ports.is_empty()).then_some(tcp), leaves_out })
}

impl PeerSpec {
    fn read(&self, field: &str) -> Result<Peer, Wrong> {
        match (&self.ip_block, &self.namespace_selector, &self.pod_selector) {
            (Some(block), None, None) => block.read(&format!("{field}.ipBlock")),
            (Some(_), ..) => Err((format!("{field}.ipBlock"), "stands beside a selector: put them into two peers".into())),
            (None, None, None) => Err((field.into(), "names nobody: give podSelector, namespaceSelector or ipBlock".into())),
            (None, namespaces, pods) => {
                namespaces.as_ref().map_or(Ok(()), |s| s.check(&format!("{field}.namespaceSelector")))?;
                pods.as_ref().map_or(Ok(()), |s| s.check(&format!("{field}.podSelector")))?;
                let pods = pods.clone().unwrap_or_default().plain();
                Ok(Peer::Pods { namespaces: namespaces.as_ref().map(Selector::plain), pods })
            }
        }
    }
}

impl BlockSpec {
    fn read(&self, field: &str) -> Result<Peer, Wrong> {
        let read = |text: &str, field: String| {
            text.parse::<IpNet>().map_err(|_| (field, format!("{text:?} is no CIDR: write it as 10.0.0.0/8")))
        };
        let cidr = read(&self.cidr, format!("{field}.cidr"))?.trunc();
        let mut except = Vec::new();
        for (i, text) in self.except.iter().flatten().enumerate() {
            let at = format!("{field}.except[{i}]");
            let one = read(text, at.clone())?.trunc();
            if !cidr.contains(&one) || cidr == one {
                return Err((at, format!("{one} is no part of {cidr}")));
            }
            except.push(one);
        }
        Ok(Peer::Block { cidr, except })
    }
}

impl PortSpec {
    /// None for a port of UDP or SCTP.
    fn read(&self, field: &str) -> Result<Option<Port>, Wrong> {
        let wrong = |name: &str, why: String| Err((format!("{field}.{name}"), why));
        let port = match (&self.port, self.end_port) {
            (None, None) => Port::All,
            (None | Some(IntOrString::Name(_)), Some(_)) => {
                return wrong("endPort", "stands without a number in port: a range has two".into());
            }
            (Some(IntOrString::Int(0)), _) => return wrong("port", "0 is not a port: use 1 to 65535".into()),
            (Some(IntOrString::Int(first)), last) => {
                let last = last.unwrap_or(*first);
                if last < *first {
                    return wrong("endPort", format!("{last} is less than port, which is {first}"));
                }
                Port::Range(*first, last)
            }
            (Some(IntOrString::Name(name)), None) if name.is_empty() => return wrong("port", "is empty".into()),
            (Some(IntOrString::Name(name)), None) => Port::Name(name.clone()),
        };
        Ok((self.protocol.unwrap_or_default() == Transport::Tcp).then_some(port))
    }
}

#[cfg(test)]
mod tests {
    use crate::objects::Object;
    use crate::watch::parse;

    fn content(spec: &str) -> Result<std::sync::Arc<super::Content>, super::Wrong> {
        let text = format!(
            "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: p, namespace: shop}}\nspec: {spec}\n"
        );
        let Object::NetworkPolicy(policy) = parse::parse("t", &text).expect("an object").remove(0) else {
            panic!("another kind")
        };
        policy.content.clone()
    }

    #[test]
    fn policy_types_default_as_the_specification_says() {
        let isolates = |spec: &str| content(spec).map(|c| (c.ingress.is_some(), c.egress.is_some())).expect("good");
        assert_eq!(isolates("{podSelector: {}}"), (true, false));
        assert_eq!(isolates("{podSelector: {}, egress: []}"), (true, false));
        assert_eq!(isolates("{podSelector: {}, egress: [{}]}"), (true, true));
        assert_eq!(isolates("{podSelector: {}, policyTypes: [Egress]}"), (false, true));
        assert_eq!(isolates("{podSelector: {}, policyTypes: [Egress, Ingress], ingress: [{}]}"), (true, true));
        assert_eq!(isolates("{podSelector: {}, policyTypes: []}"), (true, false));
    }

    #[test]
    fn what_cannot_be_honoured_is_named() {
        let table = [
            ("{podSelector: {}, ingress: [{from: [{}]}]}", "spec.ingress[0].from[0]", "names nobody"),
            (
                "{podSelector: {}, ingress: [{from: [{podSelector: {}, ipBlock: {cidr: 10.0.0.0/8}}]}]}",
                "spec.ingress[0].from[0].ipBlock",
                "two peers",
            ),
            ("{podSelector: {}, egress: [{to: [{ipBlock: {cidr: ten}}]}]}", "spec.egress[0].to[0].ipBlock.cidr", "no CIDR"),
            (
                "{podSelector: {}, egress: [{to: [{ipBlock: {cidr: 10.0.0.0/8, except: [11.0.0.0/16]}}]}]}",
                "spec.egress[0].to[0].ipBlock.except[0]",
                "no part of",
            ),
            ("{podSelector: {}, ingress: [{ports: [{port: 80, endPort: 70}]}]}", "spec.ingress[0].ports[0].endPort", "less than"),
            ("{podSelector: {}, ingress: [{ports: [{port: http, endPort: 70}]}]}", "spec.ingress[0].ports[0].endPort", "two"),
            ("{podSelector: {}, ingress: [{ports: [{port: 0}]}]}", "spec.ingress[0].ports[0].port", "0 is not a port"),
            (
                "{podSelector: {matchExpressions: [{key: a, operator: In}]}}",
                "spec.podSelector.matchExpressions[0].values",
                "need values",
            ),
            ("{podSelector: {}, ingres: []}", "spec", "unknown field"),
            ("{podSelector: {}, policyTypes: [Sideways]}", "spec.policyTypes[0]", "Sideways"),
        ];
        for (spec, field, message) in table {
            let (at, why) = content(spec).expect_err(spec);
            assert!(at.starts_with(field), "{spec}: {at}");
            assert!(why.contains(message), "{spec}: {why}");
        }
    }

    #[test]
    fn ports_of_other_protocols_are_left_out_and_leave_no_port_of_tcp() {
        let read = content(
            "{podSelector: {}, ingress: [{ports: [{protocol: UDP, port: 53}]}, {ports: [{port: 80, endPort: 90}, {protocol: SCTP}]}]}",
        );
        let rules = read.expect("good").ingress.clone().expect("it isolates");
        assert_eq!((rules[0].ports.clone(), rules[0].leaves_out), (Some(vec![]), true));
        assert_eq!((rules[1].ports.clone(), rules[1].leaves_out), (Some(vec![super::Port::Range(80, 90)]), true));
    }
}
