//! Recorded calls, judged anew: what the pod that was called would say of each by the policies of a snapshot.

use std::net::IpAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use weft_core::service::{Endpoint, ObjectRef, Reach};
use weft_core::{SpiffeId, TrustDomain};
use weft_proto::v1;
use weft_proto::v1::resource::Body;

use super::tokens::Borne;
use super::{Ground, Judged, Request, Source};
use crate::snapshot::{PodFacts, Snapshot};

/// One distinct call, as `weft record` writes it: a line of JSON.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
pub struct Flow {
    /// The pod that was called, as NAMESPACE/NAME.
    #[serde(with = "text")]
    pub pod: ObjectRef,
    /// The identity that its sidecar had.
    #[serde(with = "text")]
    pub identity: SpiffeId,
    /// The identity that the caller proved; none for plaintext.
    #[serde(with = "text::maybe")]
    pub caller: Option<SpiffeId>,
    pub source: IpAddr,
    /// The pod's own port.
    pub port: u16,
    /// `http/1.1`, `http/2`, or `tcp`.
    pub protocol: String,
    /// These stand together, for a request; a path is as it was sent, without the query.
    pub method: Option<String>,
    pub path: Option<String>,
    pub host: Option<String>,
    #[serde(default)]
    pub grpc: bool,
    pub allowed: bool,
    /// Why it was refused.
    #[serde(default)]
    pub reason: Option<String>,
    pub count: u64,
    /// Seconds since 1970.
    pub first: i64,
    pub last: i64,
}

impl Flow {
    /// For people.
    pub fn told(&self) -> String {
        let caller = self.caller.as_ref().map_or_else(|| format!("plaintext from {}", self.source), ToString::to_string);
        let request = match (&self.method, &self.path) {
            (Some(method), Some(path)) => format!(" {method} {path}"),
            _ => " bytes".to_owned(),
        };
        format!("{caller} → {}:{}{request}", self.pod, self.port)
    }

    fn request(&self) -> Option<Request> {
        let (method, path) = (self.method.clone()?, self.path.clone()?);
        let host = self.host.clone().filter(|host| !host.is_empty()).map(|host| ("host".to_owned(), host));
        let grpc = self.grpc.then(|| ("content-type".to_owned(), "application/grpc".to_owned()));
        Some(Request { method, path, query: None, headers: host.into_iter().chain(grpc).collect(), borne: Borne::Nothing })
    }
}

/// What is said of a flow.
#[derive(Serialize, Clone, PartialEq, Eq, Debug)]
#[serde(rename_all = "camelCase")]
pub struct Ruling {
    pub allowed: bool,
    pub reason: String,
    /// The policy that decided.
    pub policy: Option<String>,
    /// A policy that is about the port asks for header fields or tokens, which are not recorded: it is taken that there were none.
    pub asks_fields: bool,
}

/// Judges flows by one snapshot. What is worked out of a pod's policy is kept for the next flow.
pub struct Replay<'a> {
    snapshot: &'a Snapshot,
    domain: &'a TrustDomain,
    judged: Judged,
}

impl<'a> Replay<'a> {
    pub fn new(snapshot: &'a Snapshot, domain: &'a TrustDomain) -> Self {
        Self { snapshot, domain, judged: Judged::default() }
    }

    /// What the called pod would say. Where there is no pod of its name any more, one of its namespace and service account answers for it; none where there
    /// is none either.
    pub fn ruling(&mut self, flow: &Flow) -> Option<Ruling> {
        let (pod, facts) = self.callee(flow)?;
        let account = facts.service_account.parse().ok()?;
        let own = SpiffeId::new(self.domain.clone(), pod.namespace.clone(), account);
        let asks_fields = self.asks_fields(pod, flow.port);
        let empty = Arc::<str>::from("");
        let endpoint = Endpoint {
            address: facts.addresses.first().copied()?,
            workload: Some(pod.clone()),
            reach: Reach::Mesh(own),
            ready: true,
            zone: empty.clone(),
            node: empty,
            ports: vec![],
        };
        let (request, source) = (flow.request(), Source::Known(Some(flow.source)));
        let (snapshot, caller) = (self.snapshot, flow.caller.as_ref());
        let ground = Ground { snapshot, to: pod, caller, pod: None, source: &source, request: request.as_ref() };
        let mut answer = ground.answer(&endpoint, flow.port, &mut self.judged);
        let calling = caller.and_then(|id| self.calling(id, flow));
        // Where the pod that called is gone, one like it is asked about, at its own address.
        let address = calling.and_then(|(_, facts)| {
            facts.addresses.contains(&flow.source).then_some(flow.source).or(facts.addresses.first().copied())
        });
        let placed = Source::Known(address.or(Some(flow.source)));
        Ground { pod: calling.map(|(id, _)| id), source: &placed, ..ground }.isolate(&endpoint, flow.port, &mut answer);
        let allowed = answer.verdict() == v1::ExplainedVerdict::Allowed;
        // What depends on each request is no for bytes.
        let reason = match answer.verdict() {
            v1::ExplainedVerdict::ByRequest => "the bytes are not HTTP, and the policies are about requests".to_owned(),
            _ => answer.reason,
        };
        let policy = Some(answer.policy).filter(|policy| !policy.is_empty());
        Some(Ruling { allowed, reason, policy, asks_fields: request.is_some() && asks_fields })
    }

    /// The pod that called: the one at the address, or the first of its service account.
    fn calling(&self, caller: &SpiffeId, flow: &Flow) -> Option<(&'a ObjectRef, &'a PodFacts)> {
        let snapshot = self.snapshot;
        let is_of = |(id, facts): &(&ObjectRef, &Arc<PodFacts>)| {
            id.namespace == *caller.namespace()
                && facts.service_account == caller.service_account().as_str()
                && !facts.addresses.is_empty()
        };
        let found = snapshot.pods.iter().filter(is_of);
        let first = found.min_by_key(|(id, facts)| (!facts.addresses.contains(&flow.source), (*id).clone()));
        first.map(|(id, facts)| (id, &**facts))
    }

    fn callee(&self, flow: &Flow) -> Option<(&'a ObjectRef, &'a PodFacts)> {
        let snapshot = self.snapshot;
        if let Some((pod, facts)) = snapshot.pods.get_key_value(&flow.pod) {
            return Some((pod, facts));
        }
        let account = flow.identity.service_account().as_str();
        let like = |(id, facts): &(&ObjectRef, &Arc<PodFacts>)| {
            id.namespace == flow.pod.namespace && facts.service_account == account && snapshot.inbound.contains_key(*id)
        };
        let found = snapshot.pods.iter().filter(like).min_by_key(|(id, _)| (*id).clone());
        found.map(|(id, facts)| (id, &**facts))
    }

    fn asks_fields(&self, pod: &ObjectRef, port: u16) -> bool {
        let Some(Body::Inbound(wire)) = self.snapshot.inbound.get(pod).map(|entry| &entry.body) else { return false };
        let Ok(policy) = weft_core::policy::InboundPolicy::try_from(wire) else { return false };
        let about = policy.authorization.policies.iter().filter(|p| p.ports.as_ref().is_none_or(|ports| ports.contains(&port)));
        about.flat_map(|p| &p.rules).any(|rule| {
            rule.to.iter().any(|to| !to.headers.is_empty())
                || rule.from.iter().any(|from| from.jwt.is_some() || from.not_jwt.is_some())
        })
    }
}

/// What is written as its text.
mod text {
    use std::fmt::Display;
    use std::str::FromStr;

    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<T: Display, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }

    pub(super) fn deserialize<'de, T: FromStr<Err: Display>, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }

    /// The same, where there may be none.
    pub(super) mod maybe {
        use super::{Deserialize, Deserializer, Display, Error, FromStr, Serializer};

        #[expect(clippy::ref_option, reason = "serde calls it so")]
        pub(in super::super) fn serialize<T: Display, S: Serializer>(
            value: &Option<T>,
            serializer: S,
        ) -> Result<S::Ok, S::Error> {
            match value {
                Some(value) => serializer.collect_str(value),
                None => serializer.serialize_none(),
            }
        }

        pub(in super::super) fn deserialize<'de, T: FromStr<Err: Display>, D: Deserializer<'de>>(
            deserializer: D,
        ) -> Result<Option<T>, D::Error> {
            let text = Option::<String>::deserialize(deserializer)?;
            text.map(|text| text.parse().map_err(D::Error::custom)).transpose()
        }
    }
}
