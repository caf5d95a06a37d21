//! The nouns of authorization: what an `AuthorizationPolicy` says, and what applies to one pod.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use ipnet::IpNet;

use super::token::TokenMatch;
use crate::identity::{Namespace, ServiceAccount, SpiffeId, TrustDomain};
use crate::service::ObjectRef;
use crate::traffic::route::RouteKind;

/// Everything that applies to one pod.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Authorization {
    /// What holds on a port where no ALLOW policy applies.
    pub posture: Posture,
    /// Who set the posture, for telling.
    pub posture_from: PostureFrom,
    /// The policies, in any order: the order never changes the verdict. Which policy is told of several is the first by `(namespace, name)`.
    pub policies: Vec<Arc<Policy>>,
}

/// What holds where no ALLOW policy applies.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Posture {
    /// Anyone, plaintext too where the mTLS mode lets it in.
    #[default]
    AllowAll,
    /// Anyone who proved an identity.
    AllowAuthenticated,
    /// Anyone who proved an identity of the pod's own namespace and trust domain.
    AllowSameNamespace,
    /// Nobody.
    Deny,
}

/// Who set the posture.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub enum PostureFrom {
    /// The mesh's default.
    #[default]
    Mesh,
    /// The pod's namespace.
    Namespace(Namespace),
}

/// One policy.
#[derive(Clone, PartialEq, Debug)]
pub struct Policy {
    /// Its own namespace and name; a mesh-wide one is in the namespace of the installation.
    pub id: ObjectRef,
    /// What it is attached to, for telling: whom it applies to was decided before.
    pub target: Target,
    /// What happens to what it matches.
    pub action: Action,
    /// It is judged and told of, and never changes a verdict.
    pub dry_run: bool,
    /// Any of these must match. Without rules it matches nothing: an ALLOW so denies all.
    pub rules: Vec<Rule>,
    /// The pod's own ports that it is bound to (a policy of a Service holds for its target ports alone); none is all of them. `Some` of an empty
    /// list binds it to no port.
    pub ports: Option<Vec<u16>>,
    /// Why it cannot be honoured as it was written: it stands for that one, for telling. Whoever makes it writes a DENY with a rule that matches
    /// everything.
    pub broken: Option<Arc<str>>,
}

/// What a policy is attached to.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Target {
    /// Every workload of the mesh.
    Mesh,
    /// Every workload of a namespace.
    Namespace(Namespace),
    /// The workloads of a namespace that a label selector picks; the selector as text, `app=web,tier!=test`.
    Workloads(Namespace, Arc<str>),
    /// The endpoints of a Service, at its target ports.
    Service(ObjectRef),
    /// What a route sends to the endpoints of its Service.
    Route(RouteKind, ObjectRef),
    /// What an ExternalService stands for: the caller's own sidecar asks.
    External(ObjectRef),
}

/// What happens to what a policy matches.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Action {
    /// It is let in, and what no ALLOW matches is not.
    Allow,
    /// It is refused, whatever else allows it.
    Deny,
    /// It is told of; the verdict is not changed.
    Audit,
}

/// One rule: it holds if one of `from` holds and one of `to` holds. An empty list holds.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Rule {
    /// Who calls.
    pub from: Vec<Peer>,
    /// What is asked for.
    pub to: Vec<Operation>,
}

/// Who calls. All that is given must hold; of each list one must hold, of each `not_` list none. With nothing given at all it matches nobody:
/// parsers refuse it.
///
/// Identity clauses (principals, namespaces, service accounts, and their `not_` forms) never match a caller without an identity.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Peer {
    /// SPIFFE IDs.
    pub principals: Vec<Principal>,
    /// SPIFFE IDs that it must not be.
    pub not_principals: Vec<Principal>,
    /// Namespaces of the pod's own trust domain.
    pub namespaces: Vec<Namespace>,
    /// Namespaces of the pod's own trust domain that it must not be in.
    pub not_namespaces: Vec<Namespace>,
    /// Service accounts of the pod's own trust domain.
    pub service_accounts: Vec<Account>,
    /// Service accounts of the pod's own trust domain that it must not be.
    pub not_service_accounts: Vec<Account>,
    /// Networks of the connection's source address.
    pub ip_blocks: Vec<IpNet>,
    /// Networks that the source address must not be in.
    pub not_ip_blocks: Vec<IpNet>,
    /// It must be without an identity: plaintext.
    pub unauthenticated: bool,
    /// A token that the request must bear, whoever calls.
    pub jwt: Option<TokenMatch>,
    /// A token that it must not bear.
    pub not_jwt: Option<TokenMatch>,
}

/// A set of SPIFFE IDs. As text: `*`, `spiffe://TRUST_DOMAIN/*`, `spiffe://TRUST_DOMAIN/ns/shop/sa/web-*`, or an ID.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Principal {
    /// Any identity.
    Any,
    /// Every identity of a trust domain.
    TrustDomain(TrustDomain),
    /// Every identity whose text begins so: the trust domain and a whole namespace at least, as in `spiffe://TRUST_DOMAIN/ns/shop/`.
    Prefix(Arc<str>),
    /// This identity.
    Exact(SpiffeId),
}

/// A service account, with its namespace. As text: `NAMESPACE/NAME`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Account {
    /// The namespace.
    pub namespace: Namespace,
    /// The name in it.
    pub name: ServiceAccount,
}

/// What is asked for. All that is given must hold; of each list one must hold (of `headers` each), of each `not_` list none. With nothing given at
/// all it matches nothing: parsers refuse it.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Operation {
    /// The pod's own ports.
    pub ports: Vec<u16>,
    /// The pod's own ports that it must not be.
    pub not_ports: Vec<u16>,
    /// Hosts, without their port.
    pub hosts: Vec<HostMatch>,
    /// Hosts that it must not be.
    pub not_hosts: Vec<HostMatch>,
    /// Methods, exactly as sent. One that is sent in another case is not judged.
    pub methods: Vec<Arc<str>>,
    /// Methods that it must not be.
    pub not_methods: Vec<Arc<str>>,
    /// Paths, normalised.
    pub paths: Vec<PathMatch>,
    /// Paths that it must not be.
    pub not_paths: Vec<PathMatch>,
    /// Header fields; each must hold.
    pub headers: Vec<HeaderMatch>,
    /// gRPC calls.
    pub grpc: Vec<GrpcMatch>,
}

/// A host. Compared in lower case, without a port and without a dot at the end.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum HostMatch {
    /// This one, in lower case.
    Exact(Arc<str>),
    /// One label or more before this, as in `*.SUFFIX`; lower case, without the `*.`.
    Suffix(Arc<str>),
}

/// A path, without the query. Texts are in normalised form: they begin with `/`, and escapes are undone.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum PathMatch {
    /// This one. `/a/` is not `/a`.
    Exact(Arc<str>),
    /// This one and all below it: `/a` matches `/a`, `/a/` and `/a/b`, not `/ab`. No `/` at its end, unless it is `/`.
    Prefix(Arc<str>),
    /// Segment by segment: `/a/{x}/b` matches `/a/1/b`. A segment `{…}` stands for exactly one that is not empty.
    Template(Arc<str>),
}

/// A header field.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct HeaderMatch {
    /// The name, in lower case. With `_` for `-` it is the same name in a DENY or AUDIT, and in an ALLOW one that must not be there.
    pub name: Arc<str>,
    /// What its value must be. Several fields of one name: any of them in a DENY or AUDIT; all as one, joined by commas, in an ALLOW.
    pub value: HeaderValue,
}

/// What the value of a header field must be.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum HeaderValue {
    /// Exactly this.
    Exact(Arc<str>),
    /// It begins so.
    Prefix(Arc<str>),
    /// Anything, as long as there is one.
    Present,
}

/// A gRPC call, judged by the path `/SERVICE/METHOD`. One of both is given.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct GrpcMatch {
    /// The service, with its package; none is any.
    pub service: Option<Arc<str>>,
    /// The method; none is any.
    pub method: Option<Arc<str>>,
}

impl Peer {
    /// Whether nothing is given.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl Operation {
    /// Whether nothing is given.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether it can be judged by the facts of a request alone, not by those of a connection.
    pub fn needs_http(&self) -> bool {
        let Self { ports: _, not_ports: _, hosts, not_hosts, methods, not_methods, paths, not_paths, headers, grpc } = self;
        !(hosts.is_empty() && not_hosts.is_empty() && methods.is_empty() && not_methods.is_empty())
            || !(paths.is_empty() && not_paths.is_empty() && headers.is_empty() && grpc.is_empty())
    }
}

impl Rule {
    /// Whether a part of it can be judged by the facts of a request alone.
    pub fn needs_http(&self) -> bool {
        self.to.iter().any(Operation::needs_http) || self.from.iter().any(Peer::needs_request)
    }
}

/// Why a text of a policy cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {text:?} is not valid: {why}")]
pub struct InvalidClause {
    what: &'static str,
    text: String,
    why: &'static str,
}

impl InvalidClause {
    pub(crate) fn new(what: &'static str, text: &str, why: &'static str) -> Self {
        Self { what, text: text.chars().take(120).collect(), why }
    }
}

impl FromStr for Posture {
    type Err = InvalidClause;
    /// Reads `allow`, `allow-authenticated`, `allow-same-namespace` or `deny`.
    fn from_str(s: &str) -> Result<Self, InvalidClause> {
        let all = [Self::AllowAll, Self::AllowAuthenticated, Self::AllowSameNamespace, Self::Deny];
        all.into_iter().find(|p| p.as_str() == s).ok_or_else(|| {
            InvalidClause::new("default", s, "it must be allow, allow-authenticated, allow-same-namespace or deny")
        })
    }
}

impl Posture {
    /// The word for it, as an annotation has it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::AllowAll => "allow",
            Self::AllowAuthenticated => "allow-authenticated",
            Self::AllowSameNamespace => "allow-same-namespace",
            Self::Deny => "deny",
        }
    }
}

impl Action {
    /// The word for it, as manifests have it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "ALLOW",
            Self::Deny => "DENY",
            Self::Audit => "AUDIT",
        }
    }
}

impl fmt::Display for Posture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
