//! Whether a pod may go to a host outside of the mesh: what its own sidecar is told, judged by the code that it judges by.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use ipnet::IpNet;
use weft_core::authorization::policy::PostureFrom;
use weft_core::authorization::{Connection, Judge, Outcome};
use weft_core::egress::{
    Egress, EgressDefault, ExternalPort, ExternalProtocol, Host, Listed, Origination, Peer, Resolution, Table, forbidden,
};
use weft_core::policy::OutboundPolicy;
use weft_core::service::ObjectRef;
use weft_core::traffic::table::RequestFacts;
use weft_core::{SpiffeId, TrustDomain};
use weft_proto::v1;
use weft_proto::v1::resource::Body;

use super::{Request, Unexplained, caller, considered, from_pod, network, notes, question, reason};
use crate::snapshot::{PodFacts, Snapshot};

/// Answers for a host: each distinct answer once, with the pods of the caller that give it.
pub(super) fn explain(
    snapshot: &Snapshot,
    domain: &TrustDomain,
    ask: &v1::ExplainRequest,
) -> Result<v1::ExplainResponse, Unexplained> {
    let host = Host::read(&ask.to_host).ok_or_else(|| question("the host is neither a name nor an address"))?;
    let port = u16::try_from(ask.port).ok().filter(|p| *p != 0).ok_or_else(|| question("the port is not from 1 to 65535"))?;
    let own = caller(snapshot, domain, ask)?
        .ok_or_else(|| question("who calls out of the mesh is one of its pods: name its service account"))?;
    let pods = pods(snapshot, ask, &own)?;
    let request = ask.call.as_ref().map(|call| Request::new(call, &ask.to_host)).transpose()?;
    let address = match ask.to_address.as_str() {
        "" => None,
        text => Some(text.parse::<IpAddr>().map_err(|_| question("the address is not an IP address"))?.to_canonical()),
    };
    let mut answers: Vec<v1::Explanation> = Vec::new();
    for (pod, facts) in &pods {
        let to = To { host: &host, port, address };
        let answer = answer(snapshot, &own, (pod, facts), &to, request.as_ref());
        match answers.iter_mut().find(|held| v1::Explanation { pods: vec![], ..(*held).clone() } == answer) {
            Some(held) => held.pods.push(pod.to_string()),
            None => answers.push(v1::Explanation { pods: vec![pod.to_string()], ..answer }),
        }
    }
    let source = pods.first().and_then(|(_, facts)| facts.addresses.first()).map(ToString::to_string).unwrap_or_default();
    Ok(v1::ExplainResponse { caller: own.to_string(), source, answers })
}

/// The caller's pods, by name.
fn pods<'a>(
    snapshot: &'a Snapshot,
    ask: &v1::ExplainRequest,
    own: &SpiffeId,
) -> Result<Vec<(ObjectRef, &'a PodFacts)>, Unexplained> {
    if let Some(found) = from_pod(snapshot, ask)? {
        return Ok(vec![found]);
    }
    let is_of = |id: &ObjectRef, facts: &PodFacts| {
        id.namespace == *own.namespace() && facts.service_account == own.service_account().as_str()
    };
    let mut all: Vec<(ObjectRef, &PodFacts)> =
        snapshot.pods.iter().filter(|(id, facts)| is_of(id, facts)).map(|(id, facts)| (id.clone(), &**facts)).collect();
    all.sort_by(|a, b| a.0.cmp(&b.0));
    if all.is_empty() {
        return Err(Unexplained::NotThere(format!("no pod has the identity {own}: it is a pod's own sidecar that lets it out")));
    }
    Ok(all)
}

fn plain(port: u16, verdict: v1::ExplainedVerdict, reason: String) -> v1::Explanation {
    v1::Explanation { port: port.into(), verdict: verdict.into(), reason, ..Default::default() }
}

/// What is called.
struct To<'a> {
    host: &'a Host,
    port: u16,
    /// Where the host leads, where the question says so.
    address: Option<IpAddr>,
}

/// What one pod's sidecar says, without the pod's name.
fn answer(
    snapshot: &Snapshot,
    own: &SpiffeId,
    (pod, facts): (&ObjectRef, &PodFacts),
    to: &To<'_>,
    request: Option<&Request>,
) -> v1::Explanation {
    use v1::ExplainedVerdict::{Allowed, ByRequest, Denied};
    let To { host, port, .. } = *to;
    let Some(Body::Outbound(wire)) = snapshot.outbound.get(pod).map(|entry| &entry.body) else {
        return plain(port, Denied, "its sidecar has no policy yet, and lets nothing out until then".into());
    };
    let policy = match OutboundPolicy::try_from(wire) {
        Ok(policy) => policy,
        Err(why) => return plain(port, Denied, format!("its policy cannot be read: {why}")),
    };
    if let Err(denial) = policy.decide() {
        return plain(port, Denied, format!("denied before any policy is asked: {denial}"));
    }
    let table = Table::new(&policy.egress, own, None);
    let Some((listed, at)) = found(&table, host, port) else {
        let mut told = unlisted(&policy.egress, host, port);
        if policy.network.is_some() && told.verdict() == Allowed {
            let named = if let Host::Address(ip) = host { Some(*ip) } else { to.address };
            isolate(snapshot, pod, &named.map(|ip| SocketAddr::new(ip, port)).into_iter().collect::<Vec<_>>(), &mut told);
        }
        return told;
    };
    let mut told = match &listed.compiled {
        None => plain(port, Allowed, format!("ExternalService {} names the host, and no policy is for it", listed.external.id)),
        Some(compiled) => {
            let source = facts.addresses.first().copied().unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
            let judge = Judge::new(compiled.clone(), Connection::new(port, Some(own.clone()), source));
            // Only what is declared as HTTP is read as HTTP.
            let request = request.filter(|_| at.protocol.is_http()).map(|r| r as &dyn RequestFacts);
            let mut told = match (request, judge.outcome()) {
                (None, Outcome::PerRequest) if at.protocol.is_http() => {
                    let rest = judge.decide(None);
                    let remedy = rest.remedy().unwrap_or_default();
                    v1::Explanation { remedy, ..plain(port, ByRequest, "it depends on what is asked for".into()) }
                }
                _ => {
                    let decision = judge.decide(request);
                    v1::Explanation {
                        policy: decision.policy().map(|p| p.id.to_string()).unwrap_or_default(),
                        remedy: decision.remedy().unwrap_or_default(),
                        notes: notes(&decision),
                        ..plain(port, if decision.is_allowed() { Allowed } else { Denied }, reason(&decision))
                    }
                }
            };
            told.considered = judge.consider(request).iter().map(|c| considered(c, snapshot)).collect();
            told
        }
    };
    told.notes.push(way(listed, at));
    if let Some(peer) = listed.external.origination.as_ref().and_then(Origination::peer) {
        vouched(snapshot, peer, &mut told);
    }
    if let (Some(ip), Resolution::Dns) = (to.address, &listed.external.resolution)
        && let Some(why) = forbidden(ip, &facts.addresses, Some(&ranges(snapshot)))
    {
        deny(&mut told, format!("denied: {host} leads to {ip}, which is {why}: only fixed endpoints may lead there"));
    }
    if policy.network.is_some() {
        isolate(snapshot, pod, &addresses(listed, at, to, &mut told), &mut told);
    }
    told
}

fn deny(told: &mut v1::Explanation, reason: String) {
    if told.verdict() != v1::ExplainedVerdict::Denied {
        told.verdict = v1::ExplainedVerdict::Denied.into();
        told.reason = reason;
        told.policy.clear();
        told.remedy.clear();
    }
}

/// Whether the trust bundle has anchors that vouch for a peer, and does not deny it.
fn vouched(snapshot: &Snapshot, peer: &Peer, told: &mut v1::Explanation) {
    let domain = peer.domain();
    let Body::Trust(bundle) = &snapshot.trust.body else {
        told.notes
            .push(format!("whether a FederatedTrustDomain brings the anchors of {domain} is not known from manifests alone"));
        return;
    };
    if !bundle.domains.iter().any(|d| d.trust_domain == domain.as_str()) {
        deny(told, format!("denied: no FederatedTrustDomain brings the anchors of {domain}, which {peer} is of"));
        told.remedy = format!("a FederatedTrustDomain for {domain}, in the namespace of the installation");
        return;
    }
    let denied = bundle.denied.as_ref().map(|d| d.identities.as_slice()).unwrap_or_default();
    let texts = peer.texts();
    let (out, left): (Vec<&String>, Vec<&String>) = texts.iter().partition(|id| denied.contains(id));
    if left.is_empty() {
        deny(told, format!("denied: {peer} is on the mesh's deny list"));
    }
    told.notes.extend(out.into_iter().map(|id| format!("{id} is on the mesh's deny list")));
}

/// The ranges of the mesh.
fn ranges(snapshot: &Snapshot) -> Vec<IpNet> {
    let Body::Mesh(mesh) = &snapshot.mesh.body else { return vec![] };
    mesh.ranges.iter().filter_map(|range| range.parse().ok()).collect()
}

/// Where the host is dialled, as far as that is known: fixed endpoints, or what the question says.
fn addresses(listed: &Listed, at: ExternalPort, to: &To<'_>, told: &mut v1::Explanation) -> Vec<SocketAddr> {
    let Resolution::Static(endpoints) = &listed.external.resolution else {
        return to.address.map(|ip| SocketAddr::new(ip, at.target)).into_iter().collect();
    };
    let named = if let Host::Address(ip) = to.host { Some(*ip) } else { None };
    let is_meant = |ip: IpAddr| [named, to.address].into_iter().flatten().all(|meant| meant == ip.to_canonical());
    let meant = endpoints.iter().filter(|e| is_meant(e.address));
    let found: Vec<SocketAddr> = meant.map(|e| SocketAddr::new(e.address, e.port.unwrap_or(at.target))).collect();
    if let (true, Some(ip)) = (found.is_empty(), to.address) {
        deny(told, format!("denied: {ip} is none of the endpoints of ExternalService {}", listed.external.id));
    }
    found
}

/// What network policies say of the addresses: one that they let the pod go to is enough, since a sidecar tries them one after another.
fn isolate(snapshot: &Snapshot, pod: &ObjectRef, addresses: &[SocketAddr], told: &mut v1::Explanation) {
    if addresses.is_empty() {
        told.notes.push(
            "not judged: NetworkPolicies isolate the pod for egress, and are asked about the address that the host leads to, which only its sidecar's \
             name servers know: say it with --address"
                .into(),
        );
        return;
    }
    let mut refused = Vec::new();
    for to in addresses {
        let mut looked = v1::Explanation::default();
        let denied = network::outside(snapshot, pod, *to, &mut looked);
        if told.considered.iter().all(|c| !looked.considered.contains(c)) {
            told.considered.append(&mut looked.considered);
        }
        refused.extend(denied.map(|denied| (*to, denied)));
    }
    let judged = addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    told.notes.push(format!("NetworkPolicies were asked about {judged}"));
    match refused.first() {
        Some((to, denied)) if refused.len() == addresses.len() => {
            let is_new = told.verdict() != v1::ExplainedVerdict::Denied;
            deny(told, format!("denied at the caller: egress to {to}: {denied}"));
            if is_new {
                told.policy = denied.policy().map(ToString::to_string).unwrap_or_default();
                told.remedy = denied.remedy();
            }
        }
        _ => told.notes.extend(refused.iter().map(|(to, denied)| format!("{to} is not dialled: {denied}"))),
    }
}

/// What counts for a host: by its name, or, for an address, as bytes to it too.
fn found<'t>(table: &'t Table, host: &Host, port: u16) -> Option<(&'t std::sync::Arc<Listed>, ExternalPort)> {
    let by_address = match host {
        Host::Address(ip) => table.find_by_address(*ip, port, &[]),
        Host::Name(_) => None,
    };
    table.find(host, port).or(by_address)
}

fn unlisted(egress: &Egress, host: &Host, port: u16) -> v1::Explanation {
    use v1::ExplainedVerdict::{Allowed, Denied};
    let who = match &egress.default_from {
        PostureFrom::Mesh => "the mesh".to_owned(),
        PostureFrom::Namespace(namespace) => format!("namespace {namespace}"),
    };
    let why = format!("by the egress default of {who}: no ExternalService that the pod sees names {host} at port {port}");
    match egress.default {
        EgressDefault::Allow => plain(port, Allowed, format!("allowed {why}")),
        EgressDefault::Deny => v1::Explanation {
            remedy: format!(
                "an ExternalService with the host {host} and the port {port}, in the pod's namespace or for the mesh"
            ),
            ..plain(port, Denied, format!("denied {why}"))
        },
    }
}

/// How the host is reached.
fn way(listed: &Listed, at: ExternalPort) -> String {
    let external = &listed.external;
    let spoken = match at.protocol {
        ExternalProtocol::Tcp => "bytes, known by their address".to_owned(),
        other => other.as_str().to_owned(),
    };
    let place = match &external.resolution {
        Resolution::Dns => "what the pod's name servers say".to_owned(),
        Resolution::Static(endpoints) => format!("{} fixed endpoints", endpoints.len()),
    };
    let tls = match &external.origination {
        None => String::new(),
        Some(origination) => match origination.peer() {
            None => ", over TLS that the sidecar opens".to_owned(),
            Some(peer) => format!(", over mutual TLS with {peer}"),
        },
    };
    format!("by ExternalService {}: {spoken}, dialled at port {} of {place}{tls}", external.id, at.target)
}
