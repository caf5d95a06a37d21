//! Random clusters: what sidecars decide is what the specification says, read literally.

use serde_json::{Value, json};
use weft_core::network_policy::reference::{
    Cluster, Expression, Labels, Namespace as Space, NetworkPolicy, Peer, Pod, Port, Rule, Selector,
};

use super::*;
use crate::watch::parse::from_json;

const CLUSTERS: u64 = 2_000;
/// Questions to each, in each direction.
const QUESTIONS: usize = 60;
const PORTS: [u16; 5] = [80, 443, 5432, 8080, 8443];

/// xorshift64*: the same clusters in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() >> 33) as usize % n
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    fn of<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len())]
    }

    fn labels(&mut self) -> Labels {
        let mut labels = Labels::new();
        for key in ["app", "tier"] {
            if !self.one_in(3) {
                labels.insert(key.into(), (*self.of(&["a", "b", "c"])).into());
            }
        }
        labels
    }

    fn selector(&mut self) -> Selector {
        let mut selector = Selector::default();
        if self.one_in(3) {
            return selector;
        }
        let key = |r: &mut Self| (*r.of(&["app", "tier", "kubernetes.io/metadata.name"])).to_owned();
        let value = |r: &mut Self| (*r.of(&["a", "b", "c", "n0", "n1"])).to_owned();
        if self.one_in(2) {
            let (key, value) = (key(self), value(self));
            selector.match_labels.insert(key, value);
        } else {
            for _ in 0..=self.below(2) {
                let (key, values) = (key(self), vec![value(self), value(self)]);
                selector.match_expressions.push(match self.below(4) {
                    0 => Expression::In(key, values),
                    1 => Expression::NotIn(key, values),
                    2 => Expression::Exists(key),
                    _ => Expression::DoesNotExist(key),
                });
            }
        }
        selector
    }

    fn peer(&mut self) -> Peer {
        match self.below(5) {
            0 => {
                let blocks: [(&str, &[&str]); 6] = [
                    ("10.0.0.0/8", &[]),
                    ("10.0.0.0/24", &["10.0.0.0/29"]),
                    ("0.0.0.0/0", &["10.0.0.0/8"]),
                    ("fd00::/64", &["fd00::2/127", "fd00::6/128"]),
                    ("192.0.2.0/24", &[]),
                    ("::/0", &[]),
                ];
                let (cidr, except) = *self.of(&blocks);
                let except = except.iter().filter(|_| !self.one_in(3)).map(|e| e.parse().expect("a network")).collect();
                Peer::Block { cidr: cidr.parse().expect("a network"), except }
            }
            1 => Peer::Pods { namespaces: Some(self.selector()), pods: None },
            2 => Peer::Pods { namespaces: Some(self.selector()), pods: Some(self.selector()) },
            _ => Peer::Pods { namespaces: None, pods: Some(self.selector()) },
        }
    }

    fn rule(&mut self) -> Rule {
        let peers = (0..self.below(3)).map(|_| self.peer()).collect();
        let port = |r: &mut Self| match r.below(6) {
            0 => Port::Any,
            1 => Port::Other,
            2 | 3 => Port::Name((*r.of(&["http", "db", "none"])).into()),
            4 => Port::Numbers(*r.of(&[80, 8080]), *r.of(&[8080, 8443])),
            _ => {
                let port = *r.of(&PORTS);
                Port::Numbers(port, port)
            }
        };
        let ports = (0..self.below(3)).map(|_| port(self)).collect();
        Rule { peers, ports }
    }

    fn rules(&mut self) -> Option<Vec<Rule>> {
        (!self.one_in(4)).then(|| (0..self.below(3)).map(|_| self.rule()).collect())
    }

    fn policy(&mut self) -> NetworkPolicy {
        let types = [None, None, Some((true, false)), Some((false, true)), Some((true, true))];
        NetworkPolicy {
            namespace: (*self.of(&["n0", "n1", "n2"])).into(),
            pod_selector: self.selector(),
            types: *self.of(&types),
            ingress: self.rules(),
            egress: self.rules(),
        }
    }

    fn cluster(&mut self) -> Cluster {
        let namespaces = ["n0", "n1", "n2"].map(|name| {
            let mut labels = self.labels();
            labels.insert("kubernetes.io/metadata.name".into(), name.into());
            Space { name: name.into(), labels }
        });
        let pods = (0..6 + self.below(3)).map(|i| {
            let host_network = self.one_in(8);
            let last = u8::try_from(i).expect("few");
            let v4 = if host_network { IpAddr::from([10, 9, 0, 1]) } else { IpAddr::from([10, 0, 0, last]) };
            let v6 = IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, u16::from(last)]);
            let addresses = if self.one_in(3) && !host_network { vec![v4, v6] } else { vec![v4] };
            let mut ports = BTreeMap::new();
            if !self.one_in(3) {
                ports.insert("http".to_owned(), *self.of(&[80, 8080]));
            }
            if self.one_in(2) {
                ports.insert("db".to_owned(), 5432);
            }
            Pod { namespace: (*self.of(&["n0", "n1", "n2"])).into(), labels: self.labels(), addresses, ports, host_network }
        });
        let pods = pods.collect();
        Cluster { namespaces: namespaces.to_vec(), pods, policies: (0..self.below(6)).map(|_| self.policy()).collect() }
    }
}

fn selector(s: &Selector) -> Value {
    let expressions: Vec<Value> = s
        .match_expressions
        .iter()
        .map(|e| match e {
            Expression::In(key, values) => json!({"key": key, "operator": "In", "values": values}),
            Expression::NotIn(key, values) => json!({"key": key, "operator": "NotIn", "values": values}),
            Expression::Exists(key) => json!({"key": key, "operator": "Exists"}),
            Expression::DoesNotExist(key) => json!({"key": key, "operator": "DoesNotExist"}),
        })
        .collect();
    let mut value = json!({});
    if !s.match_labels.is_empty() {
        value["matchLabels"] = json!(s.match_labels);
    }
    if !expressions.is_empty() {
        value["matchExpressions"] = json!(expressions);
    }
    value
}

fn rule(r: &Rule, list: &str) -> Value {
    let peer = |p: &Peer| match p {
        Peer::Block { cidr, except } => {
            json!({"ipBlock": {"cidr": cidr.to_string(), "except": except.iter().map(ToString::to_string).collect::<Vec<_>>()}})
        }
        Peer::Pods { namespaces, pods } => {
            let mut value = json!({});
            if let Some(namespaces) = namespaces {
                value["namespaceSelector"] = selector(namespaces);
            }
            if let Some(pods) = pods {
                value["podSelector"] = selector(pods);
            }
            value
        }
    };
    let port = |p: &Port| match p {
        Port::Any => json!({"protocol": "TCP"}),
        Port::Numbers(first, last) if first == last => json!({"port": first}),
        Port::Numbers(first, last) => json!({"protocol": "TCP", "port": first, "endPort": last}),
        Port::Name(name) => json!({"port": name}),
        Port::Other => json!({"protocol": "UDP", "port": 80}),
    };
    json!({list: r.peers.iter().map(peer).collect::<Vec<_>>(), "ports": r.ports.iter().map(port).collect::<Vec<_>>()})
}

fn policy_object(i: usize, p: &NetworkPolicy) -> Value {
    let mut spec = json!({"podSelector": selector(&p.pod_selector)});
    for (field, list, rules) in [("ingress", "from", &p.ingress), ("egress", "to", &p.egress)] {
        if let Some(rules) = rules {
            spec[field] = rules.iter().map(|r| rule(r, list)).collect::<Vec<_>>().into();
        }
    }
    if let Some((ingress, egress)) = p.types {
        let types = [("Ingress", ingress), ("Egress", egress)];
        spec["policyTypes"] = types.iter().filter(|(_, is)| *is).map(|(name, _)| *name).collect::<Vec<_>>().into();
    }
    json!({"metadata": {"name": format!("p{i}"), "namespace": p.namespace}, "spec": spec})
}

fn pod_object(i: usize, p: &Pod) -> Value {
    let ports: Vec<Value> = p.ports.iter().map(|(name, port)| json!({"name": name, "containerPort": port})).collect();
    let sidecar = if i % 4 == 3 { "another" } else { "weft-sidecar" };
    let addresses: Vec<Value> = p.addresses.iter().map(|ip| json!({"ip": ip})).collect();
    json!({
        "metadata": {"name": format!("pod-{i}"), "namespace": p.namespace, "labels": p.labels},
        "spec": {"serviceAccountName": "sa", "hostNetwork": p.host_network, "containers": [{"name": "app", "ports": ports}, {"name": sidecar}]},
        "status": {"podIP": p.addresses[0], "podIPs": addresses, "phase": "Running"},
    })
}

fn objects(cluster: &Cluster) -> Vec<Change> {
    let read = |kind, value: &Value| Change::Upsert(from_json(kind, value).expect("a good object"));
    let spaces = cluster.namespaces.iter().map(|n| {
        // Its own name is the server's to write.
        let labels: Labels = n.labels.iter().filter(|(key, _)| !key.contains('/')).map(|(k, v)| (k.clone(), v.clone())).collect();
        read(Kind::Namespace, &json!({"metadata": {"name": n.name, "labels": labels}}))
    });
    let pods = cluster.pods.iter().enumerate().map(|(i, p)| read(Kind::Pod, &pod_object(i, p)));
    let policies = cluster.policies.iter().enumerate().map(|(i, p)| read(Kind::NetworkPolicy, &policy_object(i, p)));
    spaces.chain(pods).chain(policies).collect()
}

#[test]
fn sidecars_decide_as_the_specification_says() {
    let mut asked = 0;
    let mut refused = 0;
    for seed in 1..=CLUSTERS {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let cluster = random.cluster();
        let mut m = model();
        let mut changes = objects(&cluster);
        // In any order.
        for i in (1..changes.len()).rev() {
            changes.swap(i, random.below(i + 1));
        }
        m.apply(changes);
        assert!(m.problems().is_empty(), "seed {seed}: {:?}", m.problems());
        let ids: Vec<ObjectRef> = cluster.pods.iter().enumerate().map(|(i, p)| id(&format!("{}/pod-{i}", p.namespace))).collect();
        let identity = |i: usize| -> Option<SpiffeId> {
            let meshed = i % 4 != 3 && !cluster.pods[i].host_network;
            meshed.then(|| format!("spiffe://cluster.local/ns/{}/sa/sa", cluster.pods[i].namespace).parse().expect("valid"))
        };
        let identities: Vec<Option<SpiffeId>> = (0..ids.len()).map(identity).collect();
        let known: Vec<Option<Known>> =
            ids.iter().zip(&cluster.pods).map(|(id, p)| (!p.host_network).then(|| Known::of(&m, id))).collect();
        for _ in 0..QUESTIONS {
            let (one, port) = (random.below(ids.len()), *random.of(&PORTS));
            let Some(known) = &known[one] else { continue };
            let other = random.below(ids.len() + 1);
            let end = match cluster.pods.get(other) {
                None => End { address: IpAddr::from([192, 0, 2, 1]), proved: None },
                Some(p) => {
                    let proved = Proved { pod: Some(&ids[other]), identity: identities[other].as_ref() };
                    // Who is in the mesh proves it; of others the address is known, and of a called one what discovery says.
                    let shows = proved.identity.is_some() && !random.one_in(4);
                    End { address: *random.of(&p.addresses), proved: shows.then_some(proved) }
                }
            };
            let pod = &cluster.pods[one];
            let (takes, calls) = (cluster.ingress(end.address, pod, port), cluster.egress(pod, end.address, port));
            assert_eq!(known.takes(&end, port), takes, "seed {seed}: {} from {end:?} at {port} in {cluster:#?}", ids[one]);
            assert_eq!(known.calls(&end, port), calls, "seed {seed}: {} to {end:?} at {port} in {cluster:#?}", ids[one]);
            asked += 2;
            refused += usize::from(!takes) + usize::from(!calls);
        }
    }
    assert!(asked >= 100_000, "{asked} questions");
    assert!(refused * 10 > asked && refused * 10 < asked * 9, "{refused} of {asked} are refused: the clusters say little");
}
