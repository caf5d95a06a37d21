//! Who may call a pod. A policy is encoded by itself, so that all pods that it applies to share its bytes.

mod clauses;
mod tokens;

use std::sync::Arc;

use prost::Message as _;
use prost::bytes::Bytes;
use weft_core::authorization::policy::{PostureFrom, Rule, Target};
use weft_core::authorization::{Action, Authorization, Policy, Posture};

pub(super) use tokens::issuers_from;
pub use tokens::{MAX_ISSUERS, issuer_bytes};

use super::traffic::{each, route_kind};
use super::{WireError, port};
use crate::v1;

/// The most policies of one pod.
pub const MAX_POLICIES: usize = 1_000;
/// The most bytes that the policies of one pod have together.
pub const MAX_POLICY_BYTES: usize = 1 << 20;

impl From<Posture> for v1::Posture {
    fn from(p: Posture) -> Self {
        match p {
            Posture::AllowAll => Self::AllowAll,
            Posture::AllowAuthenticated => Self::AllowAuthenticated,
            Posture::AllowSameNamespace => Self::AllowSameNamespace,
            Posture::Deny => Self::Deny,
        }
    }
}

fn posture(n: i32) -> Result<Posture, WireError> {
    match v1::Posture::try_from(n) {
        Ok(v1::Posture::AllowAll) => Ok(Posture::AllowAll),
        Ok(v1::Posture::AllowAuthenticated) => Ok(Posture::AllowAuthenticated),
        Ok(v1::Posture::AllowSameNamespace) => Ok(Posture::AllowSameNamespace),
        Ok(v1::Posture::Deny) => Ok(Posture::Deny),
        Ok(v1::Posture::Unspecified) | Err(_) => Err(WireError::Missing("posture")),
    }
}

impl From<Action> for v1::AuthorizationAction {
    fn from(a: Action) -> Self {
        match a {
            Action::Allow => Self::Allow,
            Action::Deny => Self::Deny,
            Action::Audit => Self::Audit,
        }
    }
}

fn action(n: i32) -> Result<Action, WireError> {
    match v1::AuthorizationAction::try_from(n) {
        Ok(v1::AuthorizationAction::Allow) => Ok(Action::Allow),
        Ok(v1::AuthorizationAction::Deny) => Ok(Action::Deny),
        Ok(v1::AuthorizationAction::Audit) => Ok(Action::Audit),
        Ok(v1::AuthorizationAction::Unspecified) | Err(_) => Err(WireError::Missing("action")),
    }
}

/// An authorization without its policies.
pub fn posture_to(posture: Posture, from: &PostureFrom) -> v1::Authorization {
    let posture_namespace = match from {
        PostureFrom::Mesh => String::new(),
        PostureFrom::Namespace(namespace) => namespace.to_string(),
    };
    v1::Authorization { posture: v1::Posture::from(posture).into(), posture_namespace, policies: vec![] }
}

/// A policy, without the ports that it is bound to: they may differ by pod.
pub fn policy_bytes(policy: &Policy) -> Bytes {
    v1::AuthorizationPolicy::from(policy).encode_to_vec().into()
}

/// A policy's bytes, bound to a pod's own ports; none is all of them.
pub fn bound(policy: Bytes, ports: Option<&[u16]>) -> v1::BoundPolicy {
    let ports = ports.map(|list| v1::AuthorizationPorts { ports: numbers(list) });
    v1::BoundPolicy { policy, ports }
}

impl From<&Authorization> for v1::Authorization {
    fn from(a: &Authorization) -> Self {
        let policies = a.policies.iter().map(|p| bound(policy_bytes(p), p.ports.as_deref())).collect();
        Self { policies, ..posture_to(a.posture, &a.posture_from) }
    }
}

impl TryFrom<&v1::Authorization> for Authorization {
    type Error = WireError;
    fn try_from(a: &v1::Authorization) -> Result<Self, WireError> {
        if a.policies.len() > MAX_POLICIES || a.policies.iter().map(|p| p.policy.len()).sum::<usize>() > MAX_POLICY_BYTES {
            return Err(WireError::Range("number or size of authorization policies"));
        }
        let posture_from = match a.posture_namespace.as_str() {
            "" => PostureFrom::Mesh,
            namespace => PostureFrom::Namespace(namespace.parse()?),
        };
        let policies = a.policies.iter().map(|p| Policy::try_from(p).map(Arc::new)).collect::<Result<_, _>>()?;
        let read = Self { posture: posture(a.posture)?, posture_from, policies };
        // A policy is small on the wire and its index is a product of its lists: bounded here, before anybody makes it.
        if read.buckets() > Self::MAX_BUCKETS {
            return Err(WireError::Range("number of callers, ports and paths of authorization policies"));
        }
        Ok(read)
    }
}

fn numbers(list: &[u16]) -> Vec<u32> {
    list.iter().copied().map(u32::from).collect()
}

fn ports(list: &[u32]) -> Result<Vec<u16>, WireError> {
    list.iter().map(|p| port(*p, "port")).collect()
}

impl From<&Policy> for v1::AuthorizationPolicy {
    /// Without the ports.
    fn from(p: &Policy) -> Self {
        Self {
            id: Some((&p.id).into()),
            target: Some((&p.target).into()),
            action: v1::AuthorizationAction::from(p.action).into(),
            dry_run: p.dry_run,
            rules: p.rules.iter().map(Into::into).collect(),
            broken: p.broken.as_deref().unwrap_or_default().to_owned(),
        }
    }
}

impl TryFrom<&v1::BoundPolicy> for Policy {
    type Error = WireError;
    fn try_from(bound: &v1::BoundPolicy) -> Result<Self, WireError> {
        let unreadable = |_| WireError::Missing("an authorization policy that can be decoded");
        let p = v1::AuthorizationPolicy::decode(&bound.policy[..]).map_err(unreadable)?;
        let policy = Self {
            id: p.id.as_ref().ok_or(WireError::Missing("id of a policy"))?.try_into()?,
            target: p.target.as_ref().ok_or(WireError::Missing("target of a policy"))?.try_into()?,
            action: action(p.action)?,
            dry_run: p.dry_run,
            rules: each(&p.rules)?,
            ports: bound.ports.as_ref().map(|list| ports(&list.ports)).transpose()?,
            broken: (!p.broken.is_empty()).then(|| p.broken.as_str().into()),
        };
        policy.check()?;
        Ok(policy)
    }
}

impl From<&Target> for v1::AuthorizationTarget {
    fn from(t: &Target) -> Self {
        use v1::authorization_target::Kind;
        Self {
            kind: Some(match t {
                Target::Mesh => Kind::Mesh(v1::WholeMesh {}),
                Target::Namespace(namespace) => Kind::Namespace(namespace.to_string()),
                Target::Workloads(namespace, selector) => {
                    Kind::Workloads(v1::SelectedWorkloads { namespace: namespace.to_string(), selector: selector.to_string() })
                }
                Target::Service(id) => Kind::Service(id.into()),
                Target::Route(kind, id) => {
                    Kind::Route(v1::AuthorizedRoute { kind: v1::RouteKind::from(*kind).into(), id: Some(id.into()) })
                }
                Target::External(id) => Kind::External(id.into()),
            }),
        }
    }
}

impl TryFrom<&v1::AuthorizationTarget> for Target {
    type Error = WireError;
    fn try_from(t: &v1::AuthorizationTarget) -> Result<Self, WireError> {
        use v1::authorization_target::Kind;
        Ok(match t.kind.as_ref().ok_or(WireError::Missing("kind of target"))? {
            Kind::Mesh(v1::WholeMesh {}) => Self::Mesh,
            Kind::Namespace(namespace) => Self::Namespace(namespace.parse()?),
            Kind::Workloads(w) => Self::Workloads(w.namespace.parse()?, w.selector.as_str().into()),
            Kind::Service(id) => Self::Service(id.try_into()?),
            Kind::External(id) => Self::External(id.try_into()?),
            Kind::Route(r) => {
                Self::Route(route_kind(r.kind)?, r.id.as_ref().ok_or(WireError::Missing("route of a target"))?.try_into()?)
            }
        })
    }
}

impl From<&Rule> for v1::AuthorizationRule {
    fn from(r: &Rule) -> Self {
        Self { from: r.from.iter().map(Into::into).collect(), to: r.to.iter().map(Into::into).collect() }
    }
}

impl TryFrom<&v1::AuthorizationRule> for Rule {
    type Error = WireError;
    fn try_from(r: &v1::AuthorizationRule) -> Result<Self, WireError> {
        Ok(Self { from: each(&r.from)?, to: each(&r.to)? })
    }
}

#[cfg(test)]
mod tests;
