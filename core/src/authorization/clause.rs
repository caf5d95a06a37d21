//! Whether a peer and an operation hold: the meaning of every clause, in one place.

use std::borrow::Cow;
use std::cell::OnceCell;
use std::net::IpAddr;
use std::sync::Arc;

use super::path::{self, PathDefect, grpc_call, is_below, is_instance};
use super::policy::{Action, GrpcMatch, HostMatch, Operation, PathMatch, Peer, Principal};
use crate::identity::SpiffeId;
use crate::jwt::TokenFault;
use crate::traffic::table::RequestFacts;

mod fields;

pub use fields::is_alike;

/// What is known of a connection, for as long as it lasts.
#[derive(Clone, Debug)]
pub struct Connection {
    /// The pod's own port.
    pub port: u16,
    /// The source address; an IPv4 address that is mapped into IPv6 is that IPv4 address.
    pub source: IpAddr,
    /// The identity that the caller proved, and its text.
    caller: Option<(SpiffeId, Box<str>)>,
}

impl Connection {
    /// A connection to `port` of a caller that proved `caller`, or nothing.
    pub fn new(port: u16, caller: Option<SpiffeId>, source: IpAddr) -> Self {
        let caller = caller.map(|id| (id.clone(), id.to_string().into()));
        Self { port, source: source.to_canonical(), caller }
    }

    /// The identity that the caller proved.
    pub fn caller(&self) -> Option<&SpiffeId> {
        self.caller.as_ref().map(|(id, _)| id)
    }

    /// The same, as text; `plaintext` where there is none.
    pub fn caller_text(&self) -> &str {
        self.caller.as_ref().map_or("plaintext", |(_, text)| text)
    }
}

/// Why a clause about HTTP cannot be judged.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Unclear {
    /// There is no request: the bytes are not HTTP, or none has come yet.
    NotHttp,
    /// The path could be taken for another one.
    Path(PathDefect),
    /// The host is not one.
    Host,
    /// The method is one that a clause lists, but for upper and lower case: some servers take it for that one.
    Method,
    /// The token does not count, or it is not known whether it does.
    Token(TokenFault),
}

/// Whether a clause holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Held {
    Yes,
    No,
    Unclear(Unclear),
}

impl Held {
    /// Both: what does not hold decides; of two that are unclear the first is told.
    pub(super) fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::No, _) | (_, Self::No) => Self::No,
            (Self::Unclear(_), _) => self,
            (Self::Yes, other) => other,
        }
    }
}

/// A request, of which what is dear to work out is worked out once, and only if it is asked for. Without one, all about HTTP is unclear.
pub(super) struct Facts<'a> {
    request: Option<&'a dyn RequestFacts>,
    path: OnceCell<Result<Cow<'a, [u8]>, PathDefect>>,
    host: OnceCell<Result<Option<Box<str>>, ()>>,
}

impl<'a> Facts<'a> {
    pub(super) fn new(request: Option<&'a dyn RequestFacts>) -> Self {
        Self { request, path: OnceCell::new(), host: OnceCell::new() }
    }

    pub(super) fn request(&self) -> Option<&'a dyn RequestFacts> {
        self.request
    }

    /// The normalised path.
    pub(super) fn path(&self) -> Result<&[u8], Unclear> {
        let request = self.request.ok_or(Unclear::NotHttp)?;
        self.path.get_or_init(|| path::normalise(request.path())).as_deref().map_err(|defect| Unclear::Path(*defect))
    }

    /// The host in lower case, without port and without a dot at its end; none where the request names none.
    pub(super) fn host(&self) -> Result<Option<&str>, Unclear> {
        let request = self.request.ok_or(Unclear::NotHttp)?;
        let host = self.host.get_or_init(|| {
            let mut host = Ok(None);
            let mut count = 0;
            request.header_values("host", &mut |value| {
                count += 1;
                host = if count == 1 { read_host(value).map(Some).ok_or(()) } else { Err(()) };
            });
            host
        });
        host.as_ref().map(Option::as_deref).map_err(|()| Unclear::Host)
    }
}

/// Takes the port off; none for what is no host (RFC 9110, section 7.2).
fn read_host(value: &[u8]) -> Option<Box<str>> {
    let text = std::str::from_utf8(value).ok()?.to_ascii_lowercase();
    let is_port = |p: &str| p.is_empty() || p.parse::<u16>().is_ok() && p.bytes().all(|b| b.is_ascii_digit());
    if let Some(rest) = text.strip_prefix('[') {
        let (inner, rest) = rest.split_once(']')?;
        let ip: std::net::Ipv6Addr = inner.parse().ok()?;
        return (rest.is_empty() || rest.strip_prefix(':').is_some_and(is_port)).then(|| ip.to_string().into());
    }
    let name = match text.split_once(':') {
        Some((name, port)) if is_port(port) => name,
        Some(_) => return None,
        None => &text,
    };
    let name = name.strip_suffix('.').unwrap_or(name);
    let label = |l: &str| !l.is_empty() && l.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
    name.split('.').all(label).then(|| name.into())
}

impl Peer {
    /// Whether it can hold of callers with an identity only.
    pub fn needs_identity(&self) -> bool {
        let Self { principals, not_principals, namespaces, not_namespaces, service_accounts, not_service_accounts, .. } = self;
        let lists = [principals.is_empty(), not_principals.is_empty(), namespaces.is_empty(), not_namespaces.is_empty()];
        lists.contains(&false) || !service_accounts.is_empty() || !not_service_accounts.is_empty()
    }

    /// Whether it holds, where `own` is the identity of the pod that is called. A clause that does not hold decides, whatever else is unclear.
    pub(super) fn holds(&self, action: Action, connection: &Connection, own: &SpiffeId, facts: &Facts<'_>) -> Held {
        if self.is_empty() || self.failing(connection, own).next().is_some() {
            return Held::No;
        }
        self.about_tokens(action, facts).fold(Held::Yes, |whole, (_, held)| whole.and(held))
    }

    /// The clauses about the connection that do not hold, by name.
    pub(super) fn failing<'a>(&'a self, c: &'a Connection, own: &'a SpiffeId) -> impl Iterator<Item = &'static str> + 'a {
        let block = |net: &ipnet::IpNet| net.contains(&c.source);
        let clauses: [(&'static str, bool); 9] = [
            ("principals", self.principals.is_empty() || self.principals.iter().any(|p| p.is(c))),
            ("notPrincipals", self.not_principals.is_empty() || not(c, || self.not_principals.iter().any(|p| p.is(c)))),
            ("namespaces", self.namespaces.is_empty() || c.local(own).is_some_and(|id| self.namespaces.contains(id.namespace()))),
            (
                "notNamespaces",
                self.not_namespaces.is_empty()
                    || not(c, || c.local(own).is_some_and(|id| self.not_namespaces.contains(id.namespace()))),
            ),
            ("serviceAccounts", self.service_accounts.is_empty() || self.service_accounts.iter().any(|a| c.is_account(own, a))),
            (
                "notServiceAccounts",
                self.not_service_accounts.is_empty() || not(c, || self.not_service_accounts.iter().any(|a| c.is_account(own, a))),
            ),
            ("ipBlocks", self.ip_blocks.is_empty() || self.ip_blocks.iter().any(block)),
            ("notIpBlocks", !self.not_ip_blocks.iter().any(block)),
            ("unauthenticated", !self.unauthenticated || c.caller.is_none()),
        ];
        clauses.into_iter().filter(|(_, holds)| !holds).map(|(name, _)| name)
    }
}

/// A `not_` clause about identity holds of nobody without one.
fn not(c: &Connection, is: impl Fn() -> bool) -> bool {
    c.caller.is_some() && !is()
}

impl Connection {
    /// The caller, if it is of the pod's own trust domain.
    pub(super) fn local(&self, own: &SpiffeId) -> Option<&SpiffeId> {
        self.caller().filter(|id| id.trust_domain() == own.trust_domain())
    }

    fn is_account(&self, own: &SpiffeId, account: &super::policy::Account) -> bool {
        self.local(own).is_some_and(|id| *id.namespace() == account.namespace && *id.service_account() == account.name)
    }
}

impl Principal {
    fn is(&self, c: &Connection) -> bool {
        c.caller.as_ref().is_some_and(|(id, text)| match self {
            Self::Any => true,
            Self::TrustDomain(domain) => id.trust_domain() == domain,
            Self::Prefix(begin) => text.starts_with(&**begin),
            Self::Exact(exact) => id == exact,
        })
    }
}

impl Operation {
    /// Whether it holds. A clause that does not hold decides, whatever else is unclear.
    pub(super) fn holds(&self, action: Action, port: u16, facts: &Facts<'_>) -> Held {
        if self.is_empty() || !self.port_holds(port) {
            return Held::No;
        }
        if !self.needs_http() {
            return Held::Yes;
        }
        let mut whole = Held::Yes;
        for (_, held) in self.about_http(action, facts) {
            whole = whole.and(held);
            if whole == Held::No {
                break;
            }
        }
        whole
    }

    pub(super) fn port_holds(&self, port: u16) -> bool {
        (self.ports.is_empty() || self.ports.contains(&port)) && !self.not_ports.contains(&port)
    }

    /// The clauses about HTTP that are given, by name, from the cheap to the dear. `headers` comes last: it is the one that goes by the action.
    pub(super) fn about_http<'a>(
        &'a self,
        action: Action,
        facts: &'a Facts<'_>,
    ) -> impl Iterator<Item = (&'static str, Held)> + 'a {
        type Clause = fn(&Operation, Action, &Facts<'_>) -> Held;
        let clauses: [(&'static str, bool, Clause); 8] = [
            ("methods", !self.methods.is_empty(), |o, _, f| method(f, &o.methods, true)),
            ("notMethods", !self.not_methods.is_empty(), |o, _, f| method(f, &o.not_methods, false)),
            ("hosts", !self.hosts.is_empty(), |o, _, f| host(f, |h| h.is_some_and(|h| o.hosts.iter().any(|x| x.is(h))))),
            ("notHosts", !self.not_hosts.is_empty(), |o, _, f| {
                host(f, |h| !h.is_some_and(|h| o.not_hosts.iter().any(|x| x.is(h))))
            }),
            ("paths", !self.paths.is_empty(), |o, _, f| path_clause(f, |p| o.paths.iter().any(|x| x.is(p)))),
            ("notPaths", !self.not_paths.is_empty(), |o, _, f| path_clause(f, |p| !o.not_paths.iter().any(|x| x.is(p)))),
            ("grpc", !self.grpc.is_empty(), |o, _, f| path_clause(f, |p| o.grpc.iter().any(|x| x.is(p)))),
            ("headers", !self.headers.is_empty(), |o, a, f| match f.request {
                None => Held::Unclear(Unclear::NotHttp),
                Some(request) => held(o.headers.iter().all(|h| h.holds(a, request))),
            }),
        ];
        clauses.into_iter().filter(|(_, given, _)| *given).map(move |(name, _, clause)| (name, clause(self, action, facts)))
    }
}

fn held(holds: bool) -> Held {
    if holds { Held::Yes } else { Held::No }
}

/// Whether the method is listed, as it should be. Methods are exact (RFC 9110, section 9.1), yet many servers put them in upper case.
fn method(facts: &Facts<'_>, listed: &[Arc<str>], wanted: bool) -> Held {
    let Some(request) = facts.request else { return Held::Unclear(Unclear::NotHttp) };
    let sent = request.method();
    if listed.iter().any(|m| m.as_bytes() == sent) {
        held(wanted)
    } else if listed.iter().any(|m| m.as_bytes().eq_ignore_ascii_case(sent)) {
        Held::Unclear(Unclear::Method)
    } else {
        held(!wanted)
    }
}

fn host(facts: &Facts<'_>, holds: impl Fn(Option<&str>) -> bool) -> Held {
    facts.host().map_or_else(Held::Unclear, |h| held(holds(h)))
}

fn path_clause(facts: &Facts<'_>, holds: impl Fn(&[u8]) -> bool) -> Held {
    facts.path().map_or_else(Held::Unclear, |p| held(holds(p)))
}

impl HostMatch {
    fn is(&self, host: &str) -> bool {
        match self {
            Self::Exact(name) => **name == *host,
            Self::Suffix(suffix) => {
                host.strip_suffix(&**suffix).and_then(|rest| rest.strip_suffix('.')).is_some_and(|labels| !labels.is_empty())
            }
        }
    }
}

impl PathMatch {
    fn is(&self, path: &[u8]) -> bool {
        match self {
            Self::Exact(text) => text.as_bytes() == path,
            Self::Prefix(text) => is_below(path, text.as_bytes()),
            Self::Template(text) => is_instance(path, text.as_bytes()),
        }
    }
}

impl GrpcMatch {
    fn is(&self, path: &[u8]) -> bool {
        (self.service.is_some() || self.method.is_some())
            && grpc_call(path).is_some_and(|(service, method)| {
                self.service.as_ref().is_none_or(|s| s.as_bytes() == service)
                    && self.method.as_ref().is_none_or(|m| m.as_bytes() == method)
            })
    }
}
