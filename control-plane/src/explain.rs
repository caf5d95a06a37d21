//! Whether a call would be let in, and why: what the sidecars of the called service are told, judged by the code that they judge by. It reads a snapshot and
//! nothing else, so that it says the same of manifests as of a mesh.

pub mod flows;
mod network;
mod tokens;

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use weft_core::authorization::policy::Action;
use weft_core::authorization::{Compiled, Connection, Considered, Decision, Judge, Outcome};
use weft_core::policy::{Caller, InboundPolicy};
use weft_core::protocol::{AppProtocol, MeshProtocol};
use weft_core::service::{Endpoint, ObjectRef, Reach};
use weft_core::traffic::table::RequestFacts;
use weft_core::version::Version;
use weft_core::{SpiffeId, TrustDomain};
use weft_proto::v1;
use weft_proto::v1::resource::Body;

use crate::objects::authorization::Scope;
use crate::snapshot::modes::SetBy;
use crate::snapshot::{AuthorizationFacts, PodFacts, Snapshot};
use tokens::{Bearing, Borne};

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unexplained {
    /// The question is not one.
    #[error("{0}")]
    Question(String),
    /// What it is about is not there.
    #[error("{0}")]
    NotThere(String),
}

fn question(why: impl Into<String>) -> Unexplained {
    Unexplained::Question(why.into())
}

/// Answers a question. Each distinct answer comes once, with the pods that give it.
pub fn explain(snapshot: &Snapshot, domain: &TrustDomain, ask: &v1::ExplainRequest) -> Result<v1::ExplainResponse, Unexplained> {
    let to: ObjectRef = required(ask.to.as_ref(), "the Service that is called")?;
    let port = u16::try_from(ask.port).ok().filter(|p| *p != 0).ok_or_else(|| question("the port is not from 1 to 65535"))?;
    let caller = caller(snapshot, domain, ask)?;
    let source = source(snapshot, ask, caller.as_ref())?;
    let pod = calling_pod(snapshot, ask, caller.as_ref())?;
    let service = snapshot.endpoints.get(&to).ok_or_else(|| Unexplained::NotThere(format!("there is no Service {to}")))?;
    let endpoints: Vec<(&Endpoint, u16)> = service.anywhere.list.iter().filter_map(|e| Some((e, e.target_port(port)?))).collect();
    if endpoints.is_empty() {
        let pods = service.anywhere.list.len();
        return Err(Unexplained::NotThere(format!(
            "Service {to} has no pod at port {port} ({pods} at any): name a port that it has, and see that its selector picks pods"
        )));
    }
    let request = ask.call.as_ref().map(|call| Request::new(call, &to)).transpose()?;
    let ground =
        Ground { snapshot, to: &to, caller: caller.as_ref(), pod: pod.as_ref(), source: &source, request: request.as_ref() };
    let mut judged = Judged::default();
    let mut answers: Vec<v1::Explanation> = Vec::new();
    for (endpoint, target) in endpoints {
        let pod = endpoint.workload.as_ref().map_or_else(|| endpoint.address.to_string(), ToString::to_string);
        let mut answer = ground.answer(endpoint, target, &mut judged);
        ground.isolate(endpoint, target, &mut answer);
        match answers.iter_mut().find(|held| v1::Explanation { pods: vec![], ..(*held).clone() } == answer) {
            Some(held) => held.pods.push(pod),
            None => {
                answer.pods.push(pod);
                answers.push(answer);
            }
        }
    }
    Ok(v1::ExplainResponse {
        caller: caller.map(|id| id.to_string()).unwrap_or_default(),
        source: source.address().map(|ip| ip.to_string()).unwrap_or_default(),
        answers,
    })
}

fn required(id: Option<&v1::ObjectRef>, what: &str) -> Result<ObjectRef, Unexplained> {
    id.ok_or_else(|| question(format!("{what} is missing")))?.try_into().map_err(|e| question(format!("{what}: {e}")))
}

/// Who calls, as a service account or as a pod; both must agree.
fn caller(snapshot: &Snapshot, domain: &TrustDomain, ask: &v1::ExplainRequest) -> Result<Option<SpiffeId>, Unexplained> {
    if ask.unauthenticated {
        return Ok(None);
    }
    let invalid = |e: weft_core::identity::InvalidName| question(format!("the caller: {e}"));
    let id = |namespace: &str, account: &str| {
        Ok(SpiffeId::new(domain.clone(), namespace.parse().map_err(invalid)?, account.parse().map_err(invalid)?))
    };
    let said = ask.from.as_ref().map(|from| id(&from.namespace, &from.name)).transpose()?;
    let Some((pod, facts)) = from_pod(snapshot, ask)? else {
        let missing =
            || question("the caller is missing: its namespace and service account, its pod, or that it is unauthenticated");
        return said.map(Some).ok_or_else(missing);
    };
    let of_pod = id(pod.namespace.as_str(), &facts.service_account)?;
    match said {
        Some(said) if said != of_pod => Err(question(format!("pod {pod} is {of_pod}, and not {said}"))),
        _ => Ok(Some(of_pod)),
    }
}

/// The caller's pod, where one is named.
fn from_pod<'a>(snapshot: &'a Snapshot, ask: &v1::ExplainRequest) -> Result<Option<(ObjectRef, &'a PodFacts)>, Unexplained> {
    if ask.from_pod.is_none() {
        return Ok(None);
    }
    let pod = required(ask.from_pod.as_ref(), "the caller's pod")?;
    match snapshot.pods.get(&pod) {
        Some(facts) => Ok(Some((pod, facts))),
        None => Err(Unexplained::NotThere(format!("there is no pod {pod}"))),
    }
}

/// Where the call comes from.
enum Source {
    /// The pod that is named.
    Known(Option<IpAddr>),
    /// The first pod that has the caller's service account: another may have another address.
    Assumed(IpAddr),
    Unknown,
}

impl Source {
    fn address(&self) -> Option<IpAddr> {
        match self {
            Self::Known(ip) => *ip,
            Self::Assumed(ip) => Some(*ip),
            Self::Unknown => None,
        }
    }

    /// What is to be said of it where networks matter.
    fn note(&self) -> Option<String> {
        match self {
            Self::Known(Some(_)) => None,
            Self::Assumed(ip) => Some(format!(
                "the source is assumed: ipBlocks are judged by {ip}, the address of one pod of the caller; name the pod that calls"
            )),
            Self::Known(None) | Self::Unknown => Some(format!(
                "the source is assumed: no address of the caller is known, and ipBlocks are judged by {}; name the pod that calls",
                Ipv4Addr::UNSPECIFIED
            )),
        }
    }
}

fn source(snapshot: &Snapshot, ask: &v1::ExplainRequest, caller: Option<&SpiffeId>) -> Result<Source, Unexplained> {
    if let Some((_, facts)) = from_pod(snapshot, ask)? {
        return Ok(Source::Known(facts.addresses.first().copied()));
    }
    let Some(caller) = caller else { return Ok(Source::Unknown) };
    let is_of =
        |id: &ObjectRef, account: &str| id.namespace == *caller.namespace() && account == caller.service_account().as_str();
    let all = snapshot.pods.iter().filter(|(id, facts)| is_of(id, &facts.service_account) && !facts.addresses.is_empty());
    Ok(all.min_by_key(|(id, _)| (*id).clone()).map_or(Source::Unknown, |(_, facts)| Source::Assumed(facts.addresses[0])))
}

/// The pod that calls: the one that is named, or the first that has the caller's service account.
fn calling_pod(
    snapshot: &Snapshot,
    ask: &v1::ExplainRequest,
    caller: Option<&SpiffeId>,
) -> Result<Option<ObjectRef>, Unexplained> {
    if let Some((pod, _)) = from_pod(snapshot, ask)? {
        return Ok(Some(pod));
    }
    let Some(caller) = caller else { return Ok(None) };
    let is_of =
        |id: &ObjectRef, account: &str| id.namespace == *caller.namespace() && account == caller.service_account().as_str();
    let all = snapshot.pods.iter().filter(|(id, facts)| is_of(id, &facts.service_account) && !facts.addresses.is_empty());
    Ok(all.map(|(id, _)| id.clone()).min())
}

/// An inbound policy, ready to be asked.
struct Ready {
    policy: InboundPolicy,
    compiled: Arc<Compiled>,
    /// A clause of a policy is about networks.
    asks_source: bool,
}

impl Ready {
    fn new(wire: &v1::InboundPolicy, own: &SpiffeId) -> Result<Self, String> {
        let policy = InboundPolicy::try_from(wire).map_err(|e| format!("its policy cannot be read: {e}"))?;
        let compiled = Arc::new(Compiled::new(&policy.authorization, own.clone()));
        let mut peers = policy.authorization.policies.iter().flat_map(|p| &p.rules).flat_map(|rule| &rule.from);
        let asks_source = peers.any(|peer| !peer.ip_blocks.is_empty() || !peer.not_ip_blocks.is_empty());
        Ok(Self { policy, compiled, asks_source })
    }
}

/// Each distinct inbound policy once, by its version and whose it is: the pods of a service mostly share one.
#[derive(Default)]
struct Judged(HashMap<(Version, SpiffeId), Result<Ready, String>>);

impl Judged {
    fn get(&mut self, version: Version, wire: &v1::InboundPolicy, own: &SpiffeId) -> Result<&Ready, &String> {
        self.0.entry((version, own.clone())).or_insert_with(|| Ready::new(wire, own)).as_ref()
    }
}

/// What is the same of every endpoint.
struct Ground<'a> {
    snapshot: &'a Snapshot,
    to: &'a ObjectRef,
    caller: Option<&'a SpiffeId>,
    /// The pod that is thought to call; none where none is known.
    pod: Option<&'a ObjectRef>,
    source: &'a Source,
    request: Option<&'a Request>,
}

impl Ground<'_> {
    /// What one endpoint says, without its name.
    fn answer(&self, endpoint: &Endpoint, port: u16, judged: &mut Judged) -> v1::Explanation {
        use v1::ExplainedVerdict::{Allowed, ByRequest, Denied};
        let modes = endpoint.workload.as_ref().filter(|_| matches!(endpoint.reach, Reach::Mesh(_)));
        let modes = modes.and_then(|pod| self.snapshot.modes.get(pod));
        let plain = |verdict: v1::ExplainedVerdict, reason: String| v1::Explanation {
            port: port.into(),
            mtls: modes.map(|m| m.told(port)).unwrap_or_default(),
            mtls_is_default: modes.is_some_and(|m| *m.of(port).1 == SetBy::Default),
            verdict: verdict.into(),
            reason,
            ..Default::default()
        };
        let (Reach::Mesh(own), Some(pod)) = (&endpoint.reach, &endpoint.workload) else {
            return plain(Allowed, "it has no sidecar, so that nobody asks".into());
        };
        let entry = self.snapshot.inbound.get(pod);
        let Some((Body::Inbound(wire), version)) = entry.map(|entry| (&entry.body, entry.version)) else {
            return plain(Denied, "its sidecar has no policy yet, and lets nothing in until then".into());
        };
        let Ready { policy, compiled, asks_source } = match judged.get(version, wire, own) {
            Ok(ready) => ready,
            Err(why) => return plain(Denied, why.clone()),
        };
        // Where no request is thought of, the framing is not what is asked about.
        let framing = if policy.protocol_of(port) == AppProtocol::Http2 { MeshProtocol::Http2 } else { MeshProtocol::Http1 };
        let peer = self.caller.map_or(Caller::Plaintext, |id| Caller::Mesh(id.clone(), framing));
        if let Err(denial) = policy.decide(port, &peer) {
            return plain(Denied, format!("denied before any policy is asked: {denial}"));
        }
        // What is declared to be opaque is never read as HTTP.
        let request = self.request.filter(|_| policy.protocol_of(port) != AppProtocol::Opaque);
        let bearing = request.map(|r| Bearing::new(r, &policy.issuers));
        let request = bearing.as_ref().map(|r| r as &dyn RequestFacts);
        let source = self.source.address().unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        let judge = Judge::new(compiled.clone(), Connection::new(port, self.caller.cloned(), source));
        let mut told = match (request, judge.outcome()) {
            (None, Outcome::PerRequest) => {
                let rest = judge.decide(None);
                v1::Explanation {
                    remedy: rest.remedy().unwrap_or_default(),
                    ..plain(ByRequest, "it depends on what is asked for".into())
                }
            }
            _ => {
                let decision = judge.decide(request);
                let verdict = if decision.is_allowed() { Allowed } else { Denied };
                v1::Explanation {
                    policy: decision.policy().map(|p| p.id.to_string()).unwrap_or_default(),
                    remedy: decision.remedy().unwrap_or_default(),
                    notes: notes(&decision),
                    ..plain(verdict, reason(&decision))
                }
            }
        };
        let assumed = bearing.as_ref().and_then(|b| b.note.clone());
        told.notes.extend(assumed.filter(|_| judge.reads_tokens()));
        told.notes.extend(self.source.note().filter(|_| *asks_source));
        told.considered = judge.consider(request).iter().map(|c| considered(c, self.snapshot)).collect();
        told.considered.extend(others(self.snapshot, self.to, pod, &told.considered));
        told
    }
}

/// The decision without what is told beside it: the remedy has what came nearest.
fn reason(decision: &Decision) -> String {
    Decision { audited: vec![], dry_run: None, nearest: None, ..decision.clone() }.to_string()
}

fn notes(decision: &Decision) -> Vec<String> {
    let audited = decision.audited.iter().map(|m| format!("{m} matches: it would be told of"));
    let dry = decision.dry_run.iter().map(|dry| {
        let in_force =
            Decision { verdict: dry.0, cause: dry.1.clone(), audited: vec![], dry_run: None, nearest: None, challenge: None };
        format!("with the policies in dry run in force it would be {in_force}")
    });
    audited.chain(dry).collect()
}

/// One that the pod has.
fn considered(c: &Considered, snapshot: &Snapshot) -> v1::ConsideredPolicy {
    let policy = &c.policy;
    let facts = snapshot.authorizations.get(&policy.id);
    let why = match (&c.matched, &c.unclear, &c.nearest) {
        _ if !c.applies => "it is for a Service that does not lead to this port".to_owned(),
        (Some(m), ..) => {
            let clause = m.clause();
            let by = if clause.is_empty() { "anything matches".to_owned() } else { clause };
            format!("rule {} matches: {by}", m.rule)
        }
        (None, Some((m, why)), _) => format!("rule {} cannot be judged: {why}", m.rule),
        (None, None, Some(nearest)) => {
            let failed: Vec<String> = nearest.failed.iter().map(ToString::to_string).collect();
            format!("no rule matches; rule {}, which comes nearest, asks for {}", nearest.rule, failed.join(" and for "))
        }
        _ => "it has no rules, and so matches nothing".to_owned(),
    };
    let last_good = facts.and_then(|f| f.broken.as_deref().filter(|_| f.is_last_good));
    let why = match last_good {
        Some(broken) => format!("{why} (the last good version: {broken})"),
        None => why,
    };
    v1::ConsideredPolicy {
        policy: policy.id.to_string(),
        action: policy.action.to_string(),
        dry_run: policy.dry_run,
        target: policy.target.to_string(),
        applies: c.applies,
        matches: c.matched.is_some(),
        why,
    }
}

/// Policies that might have been for the pod, and are not.
fn others(snapshot: &Snapshot, to: &ObjectRef, pod: &ObjectRef, had: &[v1::ConsideredPolicy]) -> Vec<v1::ConsideredPolicy> {
    let near = |id: &ObjectRef, facts: &AuthorizationFacts| match &facts.scope {
        Scope::Mesh => true,
        Scope::Namespace(n) | Scope::Workloads(n, _) => *n == pod.namespace,
        Scope::Service(service) => service == to || id.namespace == pod.namespace,
    };
    let mut all: Vec<(&ObjectRef, &Arc<AuthorizationFacts>)> = snapshot.authorizations.iter().collect();
    all.retain(|(id, facts)| near(id, facts) && !had.iter().any(|c| c.policy == id.to_string()));
    all.sort_by_key(|(id, _)| (*id).clone());
    let told = |(id, facts): (&ObjectRef, &Arc<AuthorizationFacts>)| {
        let why = match (&facts.broken, &facts.scope) {
            (Some(why), _) if !facts.is_in_force => format!("it cannot be honoured, and would have changed nothing ({why})"),
            (_, Scope::Workloads(..)) => "its selector does not pick this pod".to_owned(),
            (_, Scope::Service(service)) if !snapshot.services.contains_key(service) => {
                format!("there is no Service {service}, and it holds for nobody until it is there")
            }
            (_, Scope::Service(service)) => format!("Service {service} does not pick this pod"),
            _ => "it is not for this pod".to_owned(),
        };
        v1::ConsideredPolicy {
            policy: id.to_string(),
            action: facts.action.map(|a: Action| a.to_string()).unwrap_or_default(),
            dry_run: facts.dry_run,
            target: facts.scope.target().to_string(),
            applies: false,
            matches: false,
            why,
        }
    };
    all.into_iter().map(told).collect()
}

/// A request that is thought of.
struct Request {
    method: String,
    path: String,
    query: Option<String>,
    /// Names in lower case.
    headers: Vec<(String, String)>,
    borne: Borne,
}

impl Request {
    fn new(call: &v1::ExplainedCall, to: &ObjectRef) -> Result<Self, Unexplained> {
        let or = |text: &str, default: &str| if text.is_empty() { default.to_owned() } else { text.to_owned() };
        let target = or(&call.path, "/");
        let (path, query) = match target.split_once('?') {
            Some((path, query)) => (path.to_owned(), Some(query.to_owned())),
            None => (target, None),
        };
        let mut headers: Vec<(String, String)> =
            call.headers.iter().map(|h| (h.name.to_ascii_lowercase(), h.value.clone())).collect();
        if !headers.iter().any(|(name, _)| name == "host") {
            headers.push(("host".into(), or(&call.host, &format!("{}.{}", to.name, to.namespace))));
        }
        Ok(Self { method: or(&call.method, "GET"), path, query, headers, borne: Borne::of(call)? })
    }
}

impl RequestFacts for Request {
    fn method(&self) -> &[u8] {
        self.method.as_bytes()
    }
    fn path(&self) -> &[u8] {
        self.path.as_bytes()
    }
    fn query(&self) -> Option<&[u8]> {
        self.query.as_deref().map(str::as_bytes)
    }
    fn header_values(&self, name: &str, each: &mut dyn FnMut(&[u8])) {
        self.headers.iter().filter(|(n, _)| n == name).for_each(|(_, value)| each(value.as_bytes()));
    }
    fn fields(&self, each: &mut dyn FnMut(&[u8], &[u8])) {
        self.headers.iter().for_each(|(name, value)| each(name.as_bytes(), value.as_bytes()));
    }
}

#[cfg(test)]
mod tests;
