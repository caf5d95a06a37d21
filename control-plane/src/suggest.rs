//! The least authorization policies that allow what was seen, and nothing else: from recorded flows, as manifests with reasons.
//!
//! A policy is for the Service that leads to the port that was called, else for the pods by their labels. In each namespace an ALLOW without rules
//! closes what nobody was seen to call.

mod paths;
mod write;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use weft_core::authorization::path::{grpc_call, normalise};
use weft_core::service::ObjectRef;
use weft_core::{Name, Namespace, TrustDomain};

use crate::explain::flows::Flow;
use crate::model::endpoints::{target_port, tcp_ports};
use crate::objects::{Labels, Object, PodObject, ServiceObject};

/// What is suggested.
#[derive(Debug, Default)]
pub struct Suggestion {
    /// Manifests, in YAML; empty where nothing was seen.
    pub manifests: String,
    /// Calls that no policy could be written for, and why; each kind once.
    pub left_out: BTreeMap<String, u64>,
    /// How many calls of how many flows are allowed by it.
    pub calls: u64,
    pub flows: usize,
}

/// How it is suggested.
#[derive(Clone, Copy, Debug)]
pub struct Options<'a> {
    /// Of the mesh: identities of others are named whole.
    pub domain: &'a TrustDomain,
    /// What is called there alone.
    pub namespace: Option<&'a Namespace>,
    /// More distinct paths than this, for one caller, port and method, become a template or a prefix; none: all paths stay as they are.
    pub collapse: Option<usize>,
}

/// What a policy is for.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Target {
    Service(ObjectRef),
    Pods(Namespace, Labels),
}

impl Target {
    fn namespace(&self) -> &Namespace {
        match self {
            Self::Service(id) => &id.namespace,
            Self::Pods(namespace, _) => namespace,
        }
    }
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Caller {
    Account(Namespace, String),
    /// Of another trust domain.
    Principal(String),
    Plaintext(IpAddr),
}

/// How often, and when.
#[derive(Clone, Copy, Debug)]
struct Seen {
    count: u64,
    first: i64,
    last: i64,
}

impl Seen {
    fn add(&mut self, flow: &Flow) {
        self.count = self.count.saturating_add(flow.count);
        self.first = self.first.min(flow.first);
        self.last = self.last.max(flow.last);
    }

    fn of(flow: &Flow) -> Self {
        Self { count: flow.count, first: flow.first, last: flow.last }
    }
}

/// What one caller did at one port.
#[derive(Default, Debug)]
struct Operations {
    /// Bytes that are not HTTP: nothing more can be said of what comes there.
    bytes: bool,
    /// Normalised paths by method.
    requests: BTreeMap<String, BTreeSet<String>>,
    /// Service and method.
    grpc: BTreeSet<(String, String)>,
}

#[derive(Debug)]
struct Rule {
    seen: Seen,
    ports: BTreeMap<u16, Operations>,
}

/// All that is suggested, by what it is for and who calls.
type Plan = BTreeMap<Target, BTreeMap<Caller, Rule>>;

/// Makes policies that allow the flows that were allowed.
pub fn suggest<'a>(flows: &[Flow], objects: impl Iterator<Item = &'a Object>, options: Options<'_>) -> Suggestion {
    let ground = Ground::new(objects);
    let (mut plan, mut suggestion) = (Plan::new(), Suggestion::default());
    let mut left_out = |flow: &Flow, why: &str| *suggestion.left_out.entry(why.to_owned()).or_default() += flow.count;
    for flow in flows.iter().filter(|flow| options.namespace.is_none_or(|n| flow.pod.namespace == *n)) {
        if !flow.allowed {
            left_out(flow, "it was refused when it was recorded");
            continue;
        }
        let Some(target) = ground.target(flow) else {
            left_out(flow, "the pod that was called is not known, nor another of its service account, or has no labels");
            continue;
        };
        let call = match Call::of(flow) {
            Ok(call) => call,
            Err(why) => {
                left_out(flow, why);
                continue;
            }
        };
        let callers = plan.entry(target).or_default();
        let rule = callers
            .entry(caller(flow, options.domain))
            .or_insert_with(|| Rule { seen: Seen { count: 0, ..Seen::of(flow) }, ports: BTreeMap::new() });
        rule.seen.add(flow);
        let operations = rule.ports.entry(flow.port).or_default();
        match call {
            Call::Bytes => operations.bytes = true,
            Call::Request(method, path) => drop(operations.requests.entry(method).or_default().insert(path)),
            Call::Grpc(service, method) => drop(operations.grpc.insert((service, method))),
        }
        suggestion.calls += flow.count;
        suggestion.flows += 1;
    }
    if let Some(most) = options.collapse {
        let rules = plan.values_mut().flat_map(BTreeMap::values_mut);
        for paths in rules.flat_map(|rule| rule.ports.values_mut()).flat_map(|o| o.requests.values_mut()) {
            *paths = paths::collapsed(std::mem::take(paths), most);
        }
    }
    suggestion.manifests = write::manifests(&plan);
    suggestion
}

fn caller(flow: &Flow, domain: &TrustDomain) -> Caller {
    match &flow.caller {
        None => Caller::Plaintext(flow.source),
        Some(id) if id.trust_domain() == domain => {
            Caller::Account(id.namespace().clone(), id.service_account().as_str().to_owned())
        }
        Some(id) => Caller::Principal(id.to_string()),
    }
}

enum Call {
    Bytes,
    Request(String, String),
    Grpc(String, String),
}

impl Call {
    fn of(flow: &Flow) -> Result<Self, &'static str> {
        let (Some(method), Some(path)) = (&flow.method, &flow.path) else { return Ok(Self::Bytes) };
        let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
        if method.is_empty() || !method.bytes().all(token) {
            return Err("its method cannot be written in a policy");
        }
        let path = normalise(path.as_bytes()).map_err(|_| "its path could be taken for another one, and is never judged")?;
        let path = std::str::from_utf8(&path).map_err(|_| "its path is not text")?;
        let plain = path.starts_with('/') && !path.contains(['{', '}', '*', '%', '?']) && path.len() <= 2_048;
        if !plain {
            return Err("its path cannot be written in a policy");
        }
        let word = |text: &[u8]| {
            let text = std::str::from_utf8(text).ok()?;
            text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_')).then(|| text.to_owned())
        };
        let call = grpc_call(path.as_bytes()).filter(|_| flow.grpc && method == "POST");
        if let Some((Some(service), Some(method))) = call.map(|(service, method)| (word(service), word(method))) {
            return Ok(Self::Grpc(service, method));
        }
        Ok(Self::Request(method.clone(), path.to_owned()))
    }
}

/// Pods and Services.
struct Ground<'a> {
    pods: BTreeMap<&'a ObjectRef, &'a PodObject>,
    services: BTreeMap<&'a Namespace, Vec<&'a ServiceObject>>,
}

impl<'a> Ground<'a> {
    fn new(objects: impl Iterator<Item = &'a Object>) -> Self {
        let mut ground = Self { pods: BTreeMap::new(), services: BTreeMap::new() };
        for object in objects {
            match object {
                Object::Pod(pod) => drop(ground.pods.insert(&pod.id, Arc::as_ref(pod))),
                Object::Service(service) => ground.services.entry(&service.id.namespace).or_default().push(Arc::as_ref(service)),
                _ => {}
            }
        }
        ground.services.values_mut().for_each(|all| all.sort_by(|a, b| a.id.cmp(&b.id)));
        ground
    }

    fn pod(&self, flow: &Flow) -> Option<&'a PodObject> {
        let like = |pod: &&&PodObject| {
            pod.id.namespace == flow.pod.namespace && pod.service_account() == flow.identity.service_account().as_str()
        };
        self.pods.get(&flow.pod).or_else(|| self.pods.values().find(like)).copied()
    }

    fn target(&self, flow: &Flow) -> Option<Target> {
        let pod = self.pod(flow)?;
        let leads = |service: &&&ServiceObject| {
            service.spec.selects(&pod.labels) && tcp_ports(service).any(|p| target_port(p, pod) == Some(flow.port))
        };
        if let Some(service) = self.services.get(&pod.id.namespace).into_iter().flatten().find(leads) {
            return Some(Target::Service(service.id.clone()));
        }
        let labels: Labels =
            pod.labels.iter().filter(|(name, _)| is_lasting(name)).map(|(n, v)| (n.clone(), v.clone())).collect();
        (!labels.is_empty()).then(|| Target::Pods(pod.id.namespace.clone(), labels))
    }
}

/// Whether a label is the workload's, and not one that a controller gives each of its pods or versions.
fn is_lasting(name: &str) -> bool {
    const CONTROLLERS: [&str; 8] = [
        "pod-template-hash",
        "controller-revision-hash",
        "pod-template-generation",
        "statefulset.kubernetes.io/pod-name",
        "apps.kubernetes.io/pod-index",
        "controller-uid",
        "batch.kubernetes.io/controller-uid",
        "batch.kubernetes.io/job-completion-index",
    ];
    !CONTROLLERS.contains(&name)
}

/// A name that an object can have, made of another one's.
fn named(text: &str) -> Option<Name> {
    text.parse().ok()
}

#[cfg(test)]
mod tests;
