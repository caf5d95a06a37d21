//! `HTTPRoute`, `GRPCRoute`, `TLSRoute` and `TCPRoute`, with Gateway API's own field names. Words of a choice are text here: one that nobody
//! knows makes the route one that cannot be honoured, not a file that cannot be read.

use serde::Deserialize;
use weft_core::service::ObjectRef;
use weft_core::traffic::route::RouteKind;

use super::{ParentRef, Time};
use crate::objects::{Kind, Labels, ObjectKey};

/// A route of any kind.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RouteObject {
    pub id: ObjectRef,
    pub kind: RouteKind,
    /// Seconds since the Unix epoch; 0 where nobody says.
    pub created: i64,
    /// 0 where nobody counts.
    pub generation: i64,
    /// Those of weft alone.
    pub annotations: Labels,
    pub parents: Vec<ParentRef>,
    pub hostnames: Vec<String>,
    pub rules: Rules,
}

impl RouteObject {
    pub const fn key_kind(&self) -> Kind {
        match self.kind {
            RouteKind::Http => Kind::HttpRoute,
            RouteKind::Grpc => Kind::GrpcRoute,
            RouteKind::Tls => Kind::TlsRoute,
            RouteKind::Tcp => Kind::TcpRoute,
        }
    }

    pub fn key(&self) -> ObjectKey {
        ObjectKey { kind: self.key_kind(), id: self.id.clone() }
    }
}

/// Rules, by what they can match.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Rules {
    Http(Vec<Rule<HttpMatch>>),
    Grpc(Vec<Rule<GrpcMatch>>),
    /// TLS and TCP.
    Opaque(Vec<Rule<NoMatch>>),
}

#[derive(Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(rename_all = "camelCase")]
pub struct RouteSpec<M> {
    #[serde(default = "Vec::new")]
    pub parent_refs: Vec<ParentRef>,
    #[serde(default)]
    pub hostnames: Vec<String>,
    /// Left out: one rule that matches everything, and leads nowhere.
    #[serde(default = "one_rule")]
    pub rules: Vec<Rule<M>>,
}

fn one_rule<M>() -> Vec<Rule<M>> {
    vec![Rule {
        name: None,
        matches: vec![],
        filters: vec![],
        backend_refs: vec![],
        timeouts: None,
        retry: None,
        session_persistence: None,
    }]
}

#[derive(Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(rename_all = "camelCase")]
pub struct Rule<M> {
    pub name: Option<String>,
    #[serde(default = "Vec::new")]
    pub matches: Vec<M>,
    #[serde(default)]
    pub filters: Vec<Filter>,
    #[serde(default)]
    pub backend_refs: Vec<BackendRef>,
    pub timeouts: Option<Timeouts>,
    pub retry: Option<Retry>,
    pub session_persistence: Option<SessionPersistence>,
}

/// TLS and TCP match nothing further.
#[derive(Deserialize, Clone, PartialEq, Eq, Debug)]
pub struct NoMatch {}

#[derive(Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(rename_all = "camelCase")]
pub struct HttpMatch {
    pub path: Option<PathMatch>,
    #[serde(default)]
    pub headers: Vec<ValueMatch>,
    #[serde(default)]
    pub query_params: Vec<ValueMatch>,
    pub method: Option<String>,
}

#[derive(Deserialize, Clone, PartialEq, Eq, Debug)]
pub struct PathMatch {
    /// `Exact`, `PathPrefix` or `RegularExpression`; left out: `PathPrefix`.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// Left out: `/`.
    pub value: Option<String>,
}

#[derive(Deserialize, Clone, PartialEq, Eq, Debug)]
pub struct ValueMatch {
    /// `Exact` or `RegularExpression`; left out: `Exact`.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    pub name: String,
    pub value: String,
}

#[derive(Deserialize, Clone, PartialEq, Eq, Debug)]
pub struct GrpcMatch {
    pub method: Option<GrpcMethod>,
    #[serde(default)]
    pub headers: Vec<ValueMatch>,
}

#[derive(Deserialize, Clone, PartialEq, Eq, Debug)]
pub struct GrpcMethod {
    #[serde(rename = "type")]
    pub kind: Option<String>,
    pub service: Option<String>,
    pub method: Option<String>,
}

#[derive(Deserialize, Clone, PartialEq, Eq, Debug)]
pub struct BackendRef {
    /// Left out: the core group.
    pub group: Option<String>,
    /// Left out: `Service`.
    pub kind: Option<String>,
    pub name: String,
    /// Left out: the route's own.
    pub namespace: Option<String>,
    pub port: Option<u16>,
    /// 0 to 1,000,000; left out: 1.
    pub weight: Option<u32>,
    #[serde(default)]
    pub filters: Vec<Filter>,
}

#[derive(Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(rename_all = "camelCase")]
pub struct Filter {
    #[serde(rename = "type")]
    pub kind: String,
    pub request_header_modifier: Option<HeaderChange>,
    pub response_header_modifier: Option<HeaderChange>,
    pub request_redirect: Option<Redirect>,
    pub url_rewrite: Option<Rewrite>,
    pub request_mirror: Option<Mirror>,
}

#[derive(Deserialize, Clone, PartialEq, Eq, Debug)]
pub struct HeaderChange {
    #[serde(default)]
    pub set: Vec<HeaderField>,
    #[serde(default)]
    pub add: Vec<HeaderField>,
    #[serde(default)]
    pub remove: Vec<String>,
}

#[derive(Deserialize, Clone, PartialEq, Eq, Debug)]
pub struct HeaderField {
    pub name: String,
    pub value: String,
}

#[derive(Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(rename_all = "camelCase")]
pub struct PathChange {
    #[serde(rename = "type")]
    pub kind: String,
    pub replace_full_path: Option<String>,
    pub replace_prefix_match: Option<String>,
}

#[derive(Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(rename_all = "camelCase")]
pub struct Redirect {
    pub scheme: Option<String>,
    pub hostname: Option<String>,
    pub path: Option<PathChange>,
    pub port: Option<u16>,
    /// Left out: 302.
    pub status_code: Option<u16>,
}

#[derive(Deserialize, Clone, PartialEq, Eq, Debug)]
pub struct Rewrite {
    pub hostname: Option<String>,
    pub path: Option<PathChange>,
}

#[derive(Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(rename_all = "camelCase")]
pub struct Mirror {
    pub backend_ref: BackendRef,
    /// 0 to 100.
    pub percent: Option<u32>,
    pub fraction: Option<Fraction>,
}

/// Left out of a mirror or fault: all.
#[derive(Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
#[serde(deny_unknown_fields)]
pub struct Fraction {
    pub numerator: u32,
    /// Left out: 100.
    pub denominator: Option<u32>,
}

#[derive(Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(rename_all = "camelCase")]
pub struct Timeouts {
    pub request: Option<Time>,
    pub backend_request: Option<Time>,
}

#[derive(Deserialize, Clone, PartialEq, Eq, Debug)]
pub struct Retry {
    #[serde(default)]
    pub codes: Vec<u16>,
    pub attempts: Option<u32>,
    pub backoff: Option<Time>,
}

#[derive(Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(rename_all = "camelCase")]
pub struct SessionPersistence {
    /// Left out: a name of weft's own.
    pub session_name: Option<String>,
    /// `Cookie` or `Header`; left out: `Cookie`.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    pub absolute_timeout: Option<Time>,
    pub idle_timeout: Option<Time>,
    pub cookie_config: Option<CookieConfig>,
}

#[derive(Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(rename_all = "camelCase")]
pub struct CookieConfig {
    /// `Session` or `Permanent`; left out: `Session`.
    pub lifetime_type: Option<String>,
}
