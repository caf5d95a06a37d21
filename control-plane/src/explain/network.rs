//! What network policies say of a call: those that isolate the caller's pod for egress, and those that isolate the called pod for ingress.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use weft_core::network_policy::{Denied, End, Isolation, PeerSets, Proved, Verdict};
use weft_core::policy::{InboundPolicy, OutboundPolicy};
use weft_core::service::{Endpoint, ObjectRef};
use weft_proto::v1;
use weft_proto::v1::resource::Body;

use super::Ground;
use crate::snapshot::Snapshot;

impl Ground<'_> {
    /// Adds to an answer what network policies say; they are asked before any other.
    pub(super) fn isolate(&self, endpoint: &Endpoint, port: u16, told: &mut v1::Explanation) {
        let mut denied = None;
        if let Some(pod) = self.pod {
            let proved = endpoint.workload.as_ref().map(|pod| Proved { pod: Some(pod), identity: endpoint.reach.identity() });
            let end = End { address: endpoint.address, proved };
            let is_own = endpoint.workload.as_ref() == Some(pod);
            denied = look(self.snapshot, pod, egress(self.snapshot, pod), &end, (port, is_own), ("EGRESS", told));
        }
        if let (Some(called), Some(_)) = (&endpoint.workload, endpoint.reach.identity()) {
            let proved = self.caller.map(|identity| Proved { pod: self.pod, identity: Some(identity) });
            let end = End { address: self.source.address().unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)), proved };
            let network = ingress(self.snapshot, called);
            if network.is_some() {
                told.notes.extend(self.source.note().filter(|note| !told.notes.contains(note)));
            }
            let is_own = Some(called) == self.pod;
            let refused = look(self.snapshot, called, network, &end, (port, is_own), ("INGRESS", &mut *told));
            denied = denied.or(refused);
        }
        if let Some((way, denied)) = denied {
            told.verdict = v1::ExplainedVerdict::Denied.into();
            told.reason = format!("denied at {way}: {denied}");
            told.policy = denied.policy().map(ToString::to_string).unwrap_or_default();
            told.remedy = denied.remedy();
        }
    }
}

/// What those of the caller's pod say of an address outside of the mesh; none where they let it go there, or none isolates the pod.
pub(super) fn outside(snapshot: &Snapshot, pod: &ObjectRef, to: SocketAddr, told: &mut v1::Explanation) -> Option<Box<Denied>> {
    let end = End { address: to.ip(), proved: None };
    look(snapshot, pod, egress(snapshot, pod), &end, (to.port(), false), ("EGRESS", told)).map(|(_, denied)| denied)
}

/// Every policy of a pod's namespace, and what those that isolate the pod say together.
fn look(
    snapshot: &Snapshot,
    pod: &ObjectRef,
    network: Option<Arc<Isolation>>,
    end: &End<'_>,
    (port, is_own): (u16, bool),
    (way, told): (&'static str, &mut v1::Explanation),
) -> Option<(&'static str, Box<Denied>)> {
    let sets = sets(snapshot, pod);
    let isolating = network.as_deref().map(|n| n.policies.as_slice()).unwrap_or_default();
    for policy in isolating {
        let alone = Isolation { policies: vec![policy.clone()] };
        let (matches, why) = match alone.judge(&sets, end, port) {
            Verdict::Allowed { rule, .. } => (true, format!("rule {rule} allows it")),
            Verdict::Denied(denied) => (
                false,
                match denied.nearest {
                    None => "it has no rule that could allow it".to_owned(),
                    Some(nearest) => match nearest.rule {
                        Some(rule) => format!("no rule allows it; rule {rule} comes nearest: {}", nearest.miss),
                        None => nearest.miss.to_string(),
                    },
                },
            ),
        };
        told.considered.push(considered(&policy.id, way, pod, (true, matches), why));
    }
    let mut others: Vec<&ObjectRef> = snapshot.networks.keys().filter(|id| id.namespace == pod.namespace).collect();
    others.retain(|id| !isolating.iter().any(|p| p.id == **id));
    others.sort();
    for id in others {
        let isolates = snapshot.networks.get(id).is_some_and(|f| if way == "EGRESS" { f.isolates.1 } else { f.isolates.0 });
        let why = if isolates { "its podSelector does not pick this pod" } else { "it does not isolate this way" };
        told.considered.push(considered(id, way, pod, (false, false), why.to_owned()));
    }
    match network.filter(|_| !is_own)?.judge(&sets, end, port) {
        Verdict::Allowed { .. } => None,
        Verdict::Denied(denied) => Some((if way == "EGRESS" { "the caller" } else { "the called pod" }, denied)),
    }
}

fn considered(id: &ObjectRef, way: &str, pod: &ObjectRef, (applies, matches): (bool, bool), why: String) -> v1::ConsideredPolicy {
    v1::ConsideredPolicy {
        policy: id.to_string(),
        action: way.to_owned(),
        dry_run: false,
        target: format!("pods of namespace {} (NetworkPolicy)", pod.namespace),
        applies,
        matches,
        why,
    }
}

/// The sets of peers that a pod's policies name.
fn sets(snapshot: &Snapshot, pod: &ObjectRef) -> PeerSets {
    let named = snapshot.named.get(pod).into_iter().flat_map(|named| named.iter());
    named.filter_map(|id| Some((*id, snapshot.peers.get(id)?.members.clone()))).collect()
}

/// What cannot be read is told of where authorization is, or denies there.
fn ingress(snapshot: &Snapshot, pod: &ObjectRef) -> Option<Arc<Isolation>> {
    let Body::Inbound(wire) = &snapshot.inbound.get(pod)?.body else { return None };
    InboundPolicy::try_from(wire).ok()?.network
}

fn egress(snapshot: &Snapshot, pod: &ObjectRef) -> Option<Arc<Isolation>> {
    let Body::Outbound(wire) = &snapshot.outbound.get(pod)?.body else { return None };
    OutboundPolicy::try_from(wire).ok()?.network
}
