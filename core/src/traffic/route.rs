//! Routes on services, as Gateway API has them (GEP-1324, GEP-1426): what they match, and what happens to what they match.

use std::sync::Arc;
use std::time::Duration;

use crate::service::ObjectRef;

/// Which kind of route.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum RouteKind {
    /// `HTTPRoute`.
    Http,
    /// `GRPCRoute`.
    Grpc,
    /// `TLSRoute`: TLS of the application's own, by SNI.
    Tls,
    /// `TCPRoute`.
    Tcp,
}

impl RouteKind {
    /// The kind, as manifests spell it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Http => "HTTPRoute",
            Self::Grpc => "GRPCRoute",
            Self::Tls => "TLSRoute",
            Self::Tcp => "TCPRoute",
        }
    }
}

/// One route of one service.
#[derive(Clone, PartialEq, Debug)]
pub struct Route {
    /// Which kind.
    pub kind: RouteKind,
    /// The route's own namespace and name.
    pub id: ObjectRef,
    /// When it was made, in seconds since the Unix epoch: the older of two routes that match alike wins. 0 is the oldest.
    pub created: i64,
    /// The service's ports that it is attached to; none is all of them.
    pub ports: Vec<u16>,
    /// Host names: only for `TLSRoute`, whose rules have no other match; ignored by the others, as Gateway API asks of a mesh.
    pub hostnames: Vec<Arc<str>>,
    /// Its rules, in order. Never empty.
    pub rules: Vec<Rule>,
}

impl Route {
    /// The services that it leads to, backends and mirrors; one may come several times.
    pub fn services(&self) -> impl Iterator<Item = &ObjectRef> {
        let backends = self.rules.iter().flat_map(|r| &r.backends);
        let filters = self.rules.iter().flat_map(|r| r.filters.iter().chain(r.backends.iter().flat_map(|b| &b.filters)));
        let mirrors = filters.filter_map(|f| if let Filter::Mirror(m) = f { Some(&m.target) } else { None });
        backends.map(|b| &b.target).chain(mirrors).filter_map(|t| match t {
            BackendTarget::Service { id, .. } => Some(id),
            BackendTarget::Unresolved(_) => None,
        })
    }
}

/// One rule: any of the matches leads to the backends.
#[derive(Clone, PartialEq, Debug)]
pub struct Rule {
    /// Its name, where it has one.
    pub name: Option<Arc<str>>,
    /// Any of these must match. Never empty: a rule without matches has one that matches everything.
    pub matches: Vec<Match>,
    /// What is done to the request and its answer, in order.
    pub filters: Vec<Filter>,
    /// Where it goes, by weight. Empty: only a redirect answers; anything else is a 500 (GRPC: UNAVAILABLE).
    pub backends: Vec<Backend>,
    /// How long it may take.
    pub timeouts: Timeouts,
    /// What is repeated beyond what is always safe.
    pub retry: Option<Retry>,
    /// Requests of one session stay with one endpoint.
    pub session: Option<Session>,
}

/// What a request must be. All that is said must hold.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Match {
    /// The path, without the query.
    pub path: PathMatch,
    /// The method, exactly.
    pub method: Option<Arc<str>>,
    /// Header fields; each must match. Names are in lower case, each once.
    pub headers: Vec<ValueMatch>,
    /// Query parameters; each must match. Names as they are, each once.
    pub query: Vec<ValueMatch>,
}

/// What a path must be.
#[derive(Clone, PartialEq, Debug, Default)]
pub enum PathMatch {
    /// Anything.
    #[default]
    Any,
    /// Exactly this.
    Exact(Arc<str>),
    /// This, element by element: `/a/b` matches `/a/b` and `/a/b/c`, not `/a/bc`. Begins with `/`, has no `/` at its end unless it is `/`.
    Prefix(Arc<str>),
    /// The whole path.
    Regex(Pattern),
    /// gRPC: `/service/method`, each part as said, or any.
    Grpc {
        /// The service, with its package.
        service: Option<StringMatch>,
        /// The method.
        method: Option<StringMatch>,
    },
}

/// What a text must be.
#[derive(Clone, PartialEq, Debug)]
pub enum StringMatch {
    /// Exactly this.
    Exact(Arc<str>),
    /// All of it must match.
    Regex(Pattern),
}

/// What a named value must be.
#[derive(Clone, PartialEq, Debug)]
pub struct ValueMatch {
    /// The name of the header field (lower case) or of the query parameter.
    pub name: Arc<str>,
    /// Its value.
    pub value: StringMatch,
}

/// The longest regular expression that is taken, in bytes.
pub const MAX_PATTERN: usize = 1024;

/// A regular expression that has been checked; it matches a whole text (RE2 syntax, in linear time).
#[derive(Clone)]
pub struct Pattern {
    text: Arc<str>,
    compiled: regex::bytes::Regex,
}

/// A regular expression that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidPattern(String);

impl Pattern {
    /// Compiles it, within bounds: at most [`MAX_PATTERN`] bytes of text and 256 KiB of program.
    pub fn new(text: &str) -> Result<Self, InvalidPattern> {
        if text.len() > MAX_PATTERN {
            return Err(InvalidPattern(format!("the expression has {} bytes, the most is {MAX_PATTERN}", text.len())));
        }
        let compiled = regex::bytes::RegexBuilder::new(&format!("^(?:{text})$"))
            .size_limit(256 * 1024)
            .dfa_size_limit(256 * 1024)
            .build()
            .map_err(|e| InvalidPattern(e.to_string().lines().last().unwrap_or("not a regular expression").trim().to_owned()))?;
        Ok(Self { text: text.into(), compiled })
    }

    /// The expression as it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether all of `text` matches.
    pub fn is_match(&self, text: &[u8]) -> bool {
        self.compiled.is_match(text)
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl std::fmt::Debug for Pattern {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "/{}/", self.text)
    }
}

/// Where a share of the requests goes.
#[derive(Clone, PartialEq, Debug)]
pub struct Backend {
    /// What stands there.
    pub target: BackendTarget,
    /// Its share, of the sum of all weights of the rule; 0 gets nothing.
    pub weight: u32,
    /// What is done to requests that go there, after the rule's own filters.
    pub filters: Vec<Filter>,
}

/// What a backend is.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum BackendTarget {
    /// A port of a service.
    Service {
        /// The service.
        id: ObjectRef,
        /// Its port.
        port: u16,
    },
    /// A reference that cannot be resolved: its share is answered with 500 (gRPC: UNAVAILABLE). Says why.
    Unresolved(Arc<str>),
}

/// Something that is done to a request or its answer.
#[derive(Clone, PartialEq, Debug)]
pub enum Filter {
    /// Changes header fields of the request.
    RequestHeaders(HeaderChange),
    /// Changes header fields of the answer.
    ResponseHeaders(HeaderChange),
    /// Answers with a redirect, and ends there.
    Redirect(Redirect),
    /// Rewrites host and path.
    Rewrite(Rewrite),
    /// Sends a copy elsewhere; the copy's answer is thrown away.
    Mirror(Mirror),
}

/// Changes to header fields, in this order: set, add, remove (GEP-1323). Names are in lower case.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct HeaderChange {
    /// Replaces every field of the name.
    pub set: Vec<(Arc<str>, Arc<str>)>,
    /// Adds one more field.
    pub add: Vec<(Arc<str>, Arc<str>)>,
    /// Takes every field of the name out.
    pub remove: Vec<Arc<str>>,
}

/// What becomes of a path.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PathChange {
    /// The whole path is replaced; the query stays.
    Full(Arc<str>),
    /// The prefix that the match named is replaced.
    Prefix(Arc<str>),
}

/// A redirect.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Redirect {
    /// `http` or `https`; the request's own where nothing is said.
    pub scheme: Option<Arc<str>>,
    /// The host name; the request's own where nothing is said.
    pub hostname: Option<Arc<str>>,
    /// What becomes of the path.
    pub path: Option<PathChange>,
    /// The port; where nothing is said, the scheme's own if there is one, else the request's.
    pub port: Option<u16>,
    /// 301, 302, 303, 307 or 308.
    pub status: u16,
}

/// A rewrite.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Rewrite {
    /// The `Host` that the backend sees.
    pub hostname: Option<Arc<str>>,
    /// What becomes of the path.
    pub path: Option<PathChange>,
}

/// A copy for somebody else.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mirror {
    /// Who gets it.
    pub target: BackendTarget,
    /// The share of requests that are copied: `numerator` of `denominator`.
    pub numerator: u32,
    /// At least 1.
    pub denominator: u32,
}

/// How long things may take. None: no bound of the route's own.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Timeouts {
    /// From the request's head to the end of the answer, all attempts included. `Some(ZERO)`: no bound at all.
    pub request: Option<Duration>,
    /// One attempt. `Some(ZERO)`: no bound at all.
    pub backend_request: Option<Duration>,
}

/// What is repeated (GEP-1731).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Retry {
    /// HTTP status codes, 400 to 599, that are repeated.
    pub codes: Vec<u16>,
    /// gRPC status codes, 1 to 16, that are repeated when the answer has nothing but them (trailers-only).
    pub grpc_codes: Vec<u8>,
    /// How often it may be repeated, beyond the first attempt.
    pub attempts: u32,
    /// The shortest pause before a repetition; it grows with each.
    pub backoff: Option<Duration>,
    /// Whether methods that are not idempotent are repeated as well: asked for by an annotation, never by default.
    pub any_method: bool,
}

/// Where a session's mark is kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SessionKind {
    /// In a cookie, which the caller's program keeps.
    Cookie,
    /// In a header field, which the caller's program sends back.
    Header,
}

/// Session persistence (GEP-1619).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Session {
    /// The name of the cookie or header field.
    pub name: Arc<str>,
    /// Where it is kept.
    pub kind: SessionKind,
    /// A session ends so long after it began.
    pub absolute: Option<Duration>,
    /// A session ends when it was silent for so long.
    pub idle: Option<Duration>,
    /// Whether the cookie outlives the caller's program: it gets `Max-Age` from `absolute`.
    pub permanent: bool,
}
