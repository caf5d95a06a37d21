//! Network policies by the way that they really go: objects, model, wire, and what a sidecar makes of it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use prost::Message;
use weft_core::SpiffeId;
use weft_core::network_policy::{End, Isolation, PeerSet, PeerSets, PeersId, Proved};
use weft_core::policy::{FEATURE_NETWORK_POLICY, InboundPolicy, OutboundPolicy};
use weft_proto::member_from;

use super::*;

mod conformance;
mod equal;

/// What a sidecar of `pod` has of a set of peers; none where it gets none.
fn set(m: &Model, pod: &ObjectRef, id: PeersId) -> Option<PeerSet> {
    let viewer = Viewer { pod: Some(pod.clone()), namespace: Some(pod.namespace.clone()) };
    let View::Peers(entry) = m.snapshot().view(&ResourceName::Peers(id), &viewer) else { return None };
    let mut members = PeerSet::new();
    for (_, body) in entry.pieces(None) {
        let Body::Peers(all) = body else { panic!("another body: {body:?}") };
        let all = v1::Peers::decode(all.encode_to_vec().as_slice()).expect("what was encoded");
        members.extend(all.members.iter().map(|member| member_from(member).expect("valid")));
    }
    Some(members)
}

/// What one pod's sidecar knows, after the wire.
struct Known {
    ingress: Option<Arc<Isolation>>,
    egress: Option<Arc<Isolation>>,
    sets: PeerSets,
    own: Vec<IpAddr>,
}

impl Known {
    fn of(m: &Model, pod: &ObjectRef) -> Self {
        let snapshot = m.snapshot();
        let Body::Inbound(inbound) = &snapshot.inbound[pod].body else { panic!("another body") };
        let Body::Outbound(outbound) = &snapshot.outbound[pod].body else { panic!("another body") };
        let inbound = v1::InboundPolicy::decode(inbound.encode_to_vec().as_slice()).expect("what was encoded");
        let outbound = v1::OutboundPolicy::decode(outbound.encode_to_vec().as_slice()).expect("what was encoded");
        let inbound = InboundPolicy::try_from(&inbound).expect("valid");
        let outbound = OutboundPolicy::try_from(&outbound).expect("valid");
        for (network, features) in
            [(&inbound.network, &inbound.required_features), (&outbound.network, &outbound.required_features)]
        {
            assert_eq!(network.is_some(), features.iter().any(|f| f == FEATURE_NETWORK_POLICY), "an older version denies");
        }
        let named: BTreeSet<PeersId> =
            [&inbound.network, &outbound.network].into_iter().flatten().flat_map(|n| n.sets().collect::<Vec<_>>()).collect();
        let sets = named.into_iter().map(|id| (id, Arc::new(set(m, pod, id).expect("what is named is there")))).collect();
        Self { ingress: inbound.network, egress: outbound.network, sets, own: snapshot.pods[pod].addresses.clone() }
    }

    fn lets(&self, network: Option<&Arc<Isolation>>, end: &End<'_>, port: u16) -> bool {
        network.is_none_or(|network| self.own.contains(&end.address) || network.judge(&self.sets, end, port).is_allowed())
    }

    /// Whether somebody may come in.
    fn takes(&self, end: &End<'_>, port: u16) -> bool {
        self.lets(self.ingress.as_ref(), end, port)
    }

    /// Whether the pod may call somebody.
    fn calls(&self, end: &End<'_>, port: u16) -> bool {
        self.lets(self.egress.as_ref(), end, port)
    }
}

fn id(text: &str) -> ObjectRef {
    text.parse().expect("valid")
}

fn policy(name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: {name}, namespace: shop}}\nspec: {spec}\n"
    )
}

#[test]
fn a_pod_gets_the_sets_that_its_own_policies_name_and_no_others() {
    let mut m = model();
    m.apply(upserts(&(pod("web-0", "10.0.0.5", "") + &pod("web-1", "10.0.0.6", "").replace("app: web", "app: other"))));
    let changed =
        m.apply(upserts(&policy("p", "{podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: {}}]}]}")));
    let names: Vec<PeersId> = m.snapshot().peers.keys().copied().collect();
    assert_eq!(names.len(), 1, "{names:?}");
    assert!(changed.contains(&Changed::Inbound(id("shop/web-0"))) && !changed.contains(&Changed::Inbound(id("shop/web-1"))));
    assert!(!changed.contains(&Changed::Outbound(id("shop/web-0"))), "it is not isolated for egress");
    assert_eq!(set(&m, &id("shop/web-0"), names[0]).expect("its own").len(), 2);
    assert!(set(&m, &id("shop/web-1"), names[0]).is_none(), "another pod's policies name it");

    // A pod that comes changes the set, and no policy.
    let changed = m.apply(upserts(&pod("web-2", "10.0.0.7", "").replace("app: web", "app: third")));
    assert!(changed.contains(&Changed::Name(ResourceName::Peers(names[0]))));
    assert!(!changed.contains(&Changed::Inbound(id("shop/web-0"))), "{changed:?}");
    let key =
        upserts(&policy("p", "{}")).into_iter().map(|c| if let Change::Upsert(o) = c { Change::Delete(o.key()) } else { c });
    m.apply(key.collect());
    assert!(m.snapshot().peers.is_empty() && m.snapshot().named.is_empty() && m.snapshot().networks.is_empty());
}

#[test]
fn what_cannot_be_honoured_isolates_the_namespace_and_is_told() {
    let mut m = model();
    m.apply(upserts(&(pod("web-0", "10.0.0.5", "") + &policy("p", "{podSelector: {}, ingress: [{frm: []}]}"))));
    let known = Known::of(&m, &id("shop/web-0"));
    let stranger = End { address: "192.0.2.1".parse().expect("an address"), proved: None };
    assert!(!known.takes(&stranger, 80) && !known.calls(&stranger, 80));
    let problems: Vec<String> = m.problems().iter().map(|p| format!("{} {} {}", p.place, p.field, p.message)).collect();
    assert!(problems[0].starts_with("NetworkPolicy shop/p spec") && problems[0].contains("isolated"), "{problems:?}");
}

#[test]
fn what_weft_does_not_enforce_is_noted() {
    let mut m = model();
    let bare = pod("bare", "10.0.0.6", "").replace("weft-sidecar", "other");
    let spec = "{podSelector: {}, policyTypes: [Egress], egress: [{ports: [{protocol: UDP, port: 53}]}]}";
    m.apply(upserts(&(bare + &policy("p", spec))));
    let notes: Vec<String> = m.notes().iter().map(|p| format!("{} {} {}", p.place, p.field, p.message)).collect();
    assert_eq!(notes.len(), 2, "{notes:?}");
    assert!(notes[0].starts_with("NetworkPolicy shop/p spec.egress[0].ports UDP"), "{notes:?}");
    assert!(notes[1].starts_with("NetworkPolicy shop/p spec.podSelector it selects pod bare without a sidecar"), "{notes:?}");
    assert!(m.problems().is_empty());
}

/// The pods of a model by name, with what they prove.
struct Ends(BTreeMap<String, (IpAddr, ObjectRef, Option<SpiffeId>)>);

impl Ends {
    fn end(&self, name: &str) -> End<'_> {
        let (address, pod, identity) = &self.0[name];
        End { address: *address, proved: identity.as_ref().map(|id| Proved { pod: Some(pod), identity: Some(id) }) }
    }
}
