//! The texts of a policy: read and written, and what of a policy makes no sense.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;

use super::path::{is_variable, normalise};
use super::policy::{
    Account, GrpcMatch, HeaderMatch, HeaderValue, HostMatch, InvalidClause, Operation, PathMatch, Peer, Policy, Principal,
};
use super::token::TokenMatch;
use crate::identity::Namespace;

impl FromStr for Principal {
    type Err = InvalidClause;
    /// Reads `*`, `spiffe://TRUST_DOMAIN/*`, the beginning of an identity with `*` behind it, or an identity.
    fn from_str(s: &str) -> Result<Self, InvalidClause> {
        let invalid = |why| InvalidClause::new("principal", s, why);
        let shape = "it must read spiffe://TRUST_DOMAIN/ns/NAMESPACE/sa/SERVICE_ACCOUNT, may end with '*' behind the trust domain, or be '*'";
        let whole = "a '*' must not stand for a part of a namespace's name, which others could complete: write ns/NAMESPACE/*";
        if s == "*" {
            return Ok(Self::Any);
        }
        let Some(begin) = s.strip_suffix('*') else { return s.parse().map(Self::Exact).map_err(|_| invalid(shape)) };
        if begin.contains('*') {
            return Err(invalid("'*' may stand at its end only"));
        }
        let (domain, path) =
            begin.strip_prefix("spiffe://").and_then(|rest| rest.split_once('/')).ok_or_else(|| invalid(shape))?;
        let domain = domain.parse().map_err(|_| invalid(shape))?;
        // What no identity begins with would match nothing, silently.
        let tag = "ns/";
        match path.strip_prefix(tag).or_else(|| tag.starts_with(path).then_some("")) {
            Some("") => Ok(Self::TrustDomain(domain)),
            Some(rest) => {
                let (namespace, account) = rest.split_once('/').ok_or_else(|| invalid(whole))?;
                let account = account.strip_prefix("sa/").or_else(|| "sa/".starts_with(account).then_some(""));
                let is_name = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.');
                if namespace.parse::<Namespace>().is_ok() && account.is_some_and(|a| a.bytes().all(is_name)) {
                    Ok(Self::Prefix(begin.into()))
                } else {
                    Err(invalid(shape))
                }
            }
            None => Err(invalid(shape)),
        }
    }
}

impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("*"),
            Self::TrustDomain(domain) => write!(f, "spiffe://{domain}/*"),
            Self::Prefix(begin) => write!(f, "{begin}*"),
            Self::Exact(id) => id.fmt(f),
        }
    }
}

impl FromStr for Account {
    type Err = InvalidClause;
    /// Reads `NAMESPACE/NAME`.
    fn from_str(s: &str) -> Result<Self, InvalidClause> {
        let read = || {
            let (namespace, name) = s.split_once('/')?;
            Some(Self { namespace: namespace.parse().ok()?, name: name.parse().ok()? })
        };
        read().ok_or_else(|| InvalidClause::new("service account", s, "it must read NAMESPACE/NAME"))
    }
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl FromStr for HostMatch {
    type Err = InvalidClause;
    /// Reads a host name, an address (IPv6 in brackets or without), or `*.SUFFIX`; in any case.
    fn from_str(s: &str) -> Result<Self, InvalidClause> {
        let invalid = |why| InvalidClause::new("host", s, why);
        let lower = s.to_ascii_lowercase();
        let (wild, name) = lower.strip_prefix("*.").map_or((false, lower.as_str()), |suffix| (true, suffix));
        let name = name.strip_suffix('.').unwrap_or(name);
        let bare = name.strip_prefix('[').and_then(|n| n.strip_suffix(']')).unwrap_or(name);
        if !wild && let Ok(IpAddr::V6(ip)) = bare.parse() {
            return Ok(Self::Exact(ip.to_string().into()));
        }
        if name.contains(':') {
            return Err(invalid("it must not have a port: the operation has ports for that"));
        }
        let label =
            |l: &str| !l.is_empty() && l.len() <= 63 && l.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
        if name.len() > 253 || !name.split('.').all(label) {
            return Err(invalid("it must be a host name, an address, or '*.' before a host name"));
        }
        Ok(if wild { Self::Suffix(name.into()) } else { Self::Exact(name.into()) })
    }
}

impl fmt::Display for HostMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(name) => f.write_str(name),
            Self::Suffix(name) => write!(f, "*.{name}"),
        }
    }
}

impl PathMatch {
    /// This path alone.
    pub fn exact(path: &str) -> Result<Self, InvalidClause> {
        Ok(Self::Exact(plain(path)?.into()))
    }

    /// This path and all below it; a `/` at its end says nothing more.
    pub fn prefix(path: &str) -> Result<Self, InvalidClause> {
        let path = plain(path)?;
        let trimmed = path.trim_end_matches('/');
        Ok(Self::Prefix(if trimmed.is_empty() { "/".into() } else { trimmed.into() }))
    }

    /// Segments, of which `{…}` stand for any one.
    pub fn template(path: &str) -> Result<Self, InvalidClause> {
        let path = plain(path)?;
        if path.split('/').any(|s| s.contains(['{', '}']) && !is_variable(s.as_bytes())) {
            return Err(InvalidClause::new(
                "path template",
                path,
                "a variable must be a whole segment, as in /orders/{id}/items",
            ));
        }
        if !path.split('/').any(|s| is_variable(s.as_bytes())) {
            return Err(InvalidClause::new("path template", path, "it has no variable {…}: use an exact path"));
        }
        Ok(Self::Template(path.into()))
    }

    /// The path as it was written.
    pub fn text(&self) -> &str {
        let (Self::Exact(text) | Self::Prefix(text) | Self::Template(text)) = self;
        text
    }
}

/// A path that a request's normalised path can be.
fn plain(path: &str) -> Result<&str, InvalidClause> {
    let invalid = |why| InvalidClause::new("path", path, why);
    if path.contains('?') {
        return Err(invalid("it must not have a query"));
    }
    if path.len() > 4096 {
        return Err(invalid("it has more than 4096 bytes"));
    }
    // Compared as bytes with what was decoded: an escape here would never match.
    if path.contains('%') {
        return Err(invalid("it must be written without escapes: requests are compared with theirs undone"));
    }
    normalise(path.as_bytes()).map_err(|defect| invalid(defect.as_str()))?;
    Ok(path)
}

impl fmt::Display for PathMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(path) | Self::Template(path) => f.write_str(path),
            Self::Prefix(path) => write!(f, "{}/*", path.trim_end_matches('/')),
        }
    }
}

impl HeaderMatch {
    /// A field by its name, in any case. `weft-…` fields are never there to be compared: refused.
    pub fn new(name: &str, value: HeaderValue) -> Result<Self, InvalidClause> {
        let invalid = |why| InvalidClause::new("header", name, why);
        let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
        if name.is_empty() || name.len() > 256 || !name.bytes().all(token) {
            return Err(invalid("it must be the name of a header field"));
        }
        let name: Arc<str> = name.to_ascii_lowercase().into();
        match &*name {
            "host" => Err(invalid("the operation has hosts for that")),
            "connection" | "te" | "transfer-encoding" | "upgrade" | "keep-alive" | "proxy-connection" | "http2-settings" => {
                Err(invalid("it belongs to one hop and is not compared"))
            }
            n if n.starts_with("weft-") || n.starts_with("weft_") => Err(invalid("weft sets it itself: use principals")),
            _ => Ok(Self { name, value }),
        }
    }
}

impl fmt::Display for HeaderMatch {
    /// The name and the kind. Values may be secrets, and this text comes into logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match &self.value {
            HeaderValue::Exact(_) => "exact",
            HeaderValue::Prefix(_) => "prefix",
            HeaderValue::Present => "present",
        };
        write!(f, "{} ({kind})", self.name)
    }
}

impl fmt::Display for GrpcMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.service.as_deref().unwrap_or("*"), self.method.as_deref().unwrap_or("*"))
    }
}

impl Policy {
    /// Refuses what could only be a mistake: a peer or operation with nothing in it, a peer that nobody can be, a port 0. Whoever reads policies
    /// calls it; a policy that fails it still decides, and what of it is empty matches nothing.
    pub fn check(&self) -> Result<(), InvalidClause> {
        let invalid = |what, why| Err(InvalidClause::new(what, &self.id.to_string(), why));
        if self.ports.iter().flatten().any(|p| *p == 0) {
            return invalid("policy", "there is no port 0");
        }
        for rule in &self.rules {
            if rule.from.iter().any(Peer::is_empty) {
                return invalid(
                    "policy",
                    "an entry of from has nothing in it: leave from out for any caller, or say principals: [\"*\"] for any with an identity",
                );
            }
            if rule.from.iter().any(|p| p.unauthenticated && p.needs_identity()) {
                return invalid("policy", "an entry of from asks for an identity and for none: nobody is both");
            }
            if rule.from.iter().any(|p| p.ip_blocks.iter().chain(&p.not_ip_blocks).any(is_mapped)) {
                return invalid("policy", "an IPv4 network must be written as one, not mapped into IPv6");
            }
            rule.from.iter().flat_map(|p| p.jwt.iter().chain(&p.not_jwt)).try_for_each(TokenMatch::check)?;
            if rule.to.iter().any(Operation::is_empty) {
                return invalid("policy", "an entry of to has nothing in it: leave to out for any operation");
            }
            if rule.to.iter().any(|o| o.ports.iter().chain(&o.not_ports).any(|p| *p == 0)) {
                return invalid("policy", "there is no port 0");
            }
            if rule.to.iter().flat_map(|o| &o.grpc).any(|g| g.service.is_none() && g.method.is_none()) {
                return invalid("policy", "an entry of grpc has neither service nor method");
            }
        }
        Ok(())
    }
}

fn is_mapped(net: &ipnet::IpNet) -> bool {
    matches!(net, ipnet::IpNet::V6(n) if n.prefix_len() >= 96 && n.addr().to_ipv4_mapped().is_some())
}
