//! The kinds of traffic management.

use std::sync::Arc;

use serde::de::{DeserializeOwned, IgnoredAny};
use weft_core::service::ObjectRef;
use weft_core::traffic::policy::TrafficPolicy;

use super::{Document, Fault, Outer, id, ours};
use crate::objects::traffic::{
    BackendTrafficPolicySpec, PolicyObject, ReferenceGrantObject, ReferenceGrantSpec, RouteObject, RouteSpec, Rules,
    TrafficPolicySpec, Wrong,
};
use crate::objects::{Kind, Metadata, Object};

/// The kinds, for people.
pub(super) const KNOWN: &str = "HTTPRoute, GRPCRoute, TLSRoute, TCPRoute and ReferenceGrant of gateway.networking.k8s.io, \
                                gateway.networking.x-k8s.io/v1alpha1/XBackendTrafficPolicy, and TrafficPolicy, AuthorizationPolicy, ExternalService, MtlsPolicy, JwtIssuer, FederatedTrustDomain and IdentityDenial of weft.dev/v1alpha1";

/// The kind that a manifest names. A kind means the same in each of its versions, as far as it is read.
pub(super) fn known(version: &str, kind: &str) -> Option<Kind> {
    let (group, version) = version.split_once('/')?;
    match (group, kind, version) {
        ("gateway.networking.k8s.io", "HTTPRoute", "v1" | "v1beta1") => Some(Kind::HttpRoute),
        ("gateway.networking.k8s.io", "GRPCRoute", "v1" | "v1alpha2") => Some(Kind::GrpcRoute),
        ("gateway.networking.k8s.io", "TLSRoute", "v1" | "v1alpha2" | "v1alpha3") => Some(Kind::TlsRoute),
        ("gateway.networking.k8s.io", "TCPRoute", "v1" | "v1alpha2") => Some(Kind::TcpRoute),
        ("gateway.networking.k8s.io", "ReferenceGrant", "v1" | "v1beta1") => Some(Kind::ReferenceGrant),
        ("gateway.networking.x-k8s.io", "XBackendTrafficPolicy", "v1alpha1") => Some(Kind::BackendTrafficPolicy),
        ("weft.dev", "TrafficPolicy", "v1alpha1") => Some(Kind::TrafficPolicy),
        _ => None,
    }
}

/// Name and spec of an object.
fn read<S: DeserializeOwned>(kind: Kind, document: &impl Document) -> Result<(Metadata, ObjectRef, S), Fault> {
    let m: Outer<S, IgnoredAny> = document.read()?;
    let id = id(&m.metadata)?;
    let spec = m.spec.ok_or_else(|| Fault::new("spec", format!("missing: a {} needs a spec", kind.as_str())))?;
    Ok((m.metadata, id, spec))
}

/// A route of any kind.
pub(super) fn route(kind: Kind, document: &impl Document) -> Result<Object, Fault> {
    fn as_route<M: DeserializeOwned>(
        kind: Kind,
        document: &impl Document,
        rules: impl FnOnce(RouteSpec<M>) -> Rules,
    ) -> Result<RouteObject, Fault> {
        let (metadata, id, mut spec) = read::<RouteSpec<M>>(kind, document)?;
        let Some(route) = kind.route() else { return Err(Fault::new("kind", "no route")) };
        Ok(RouteObject {
            id,
            kind: route,
            created: metadata.creation_timestamp.map_or(0, |t| t.0),
            generation: metadata.generation.unwrap_or(0),
            annotations: ours(metadata.annotations),
            parents: std::mem::take(&mut spec.parent_refs),
            hostnames: std::mem::take(&mut spec.hostnames),
            rules: rules(spec),
        })
    }
    let route = match kind {
        Kind::HttpRoute => as_route(kind, document, |s| Rules::Http(s.rules))?,
        Kind::GrpcRoute => as_route(kind, document, |s| Rules::Grpc(s.rules))?,
        _ => as_route(kind, document, |s| Rules::Opaque(s.rules))?,
    };
    Ok(Object::Route(Arc::new(route)))
}

pub(super) fn grant(document: &impl Document) -> Result<Object, Fault> {
    let (_, id, spec) = read::<ReferenceGrantSpec>(Kind::ReferenceGrant, document)?;
    Ok(Object::ReferenceGrant(Arc::new(ReferenceGrantObject { id, spec })))
}

fn fault((field, message): Wrong) -> Fault {
    Fault::new(format!("spec.{field}"), message)
}

pub(super) fn policy(document: &impl Document) -> Result<Object, Fault> {
    let (metadata, id, spec) = read::<TrafficPolicySpec>(Kind::TrafficPolicy, document)?;
    if spec.target_ref.service(&id).is_none() {
        return Err(Fault::new("spec.targetRef", "a TrafficPolicy is for a Service of its own namespace, whose group is \"\""));
    }
    Ok(Object::TrafficPolicy(Arc::new(PolicyObject {
        id,
        created: metadata.creation_timestamp.map_or(0, |t| t.0),
        generation: metadata.generation.unwrap_or(0),
        policy: spec.read().map_err(fault)?,
        targets: vec![spec.target_ref],
        retry_budget: None,
    })))
}

pub(super) fn backend_policy(document: &impl Document) -> Result<Object, Fault> {
    let (metadata, id, spec) = read::<BackendTrafficPolicySpec>(Kind::BackendTrafficPolicy, document)?;
    let (session, retry_budget) = spec.read().map_err(fault)?;
    Ok(Object::BackendTrafficPolicy(Arc::new(PolicyObject {
        id,
        created: metadata.creation_timestamp.map_or(0, |t| t.0),
        generation: metadata.generation.unwrap_or(0),
        targets: spec.targets(),
        policy: TrafficPolicy { session, ..TrafficPolicy::default() },
        retry_budget,
    })))
}

#[cfg(test)]
mod tests;
