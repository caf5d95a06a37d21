//! What the rules of an authorization policy are made of.

use std::sync::Arc;

use weft_core::authorization::policy::{
    Account, GrpcMatch, HeaderMatch, HeaderValue, HostMatch, Operation, PathMatch, Peer, Principal,
};

use super::{numbers, ports};
use crate::convert::WireError;
use crate::convert::traffic::each;
use crate::v1;

fn texts<T: ToString>(list: &[T]) -> Vec<String> {
    list.iter().map(ToString::to_string).collect()
}

/// Every one of a list of texts.
fn parsed<T: std::str::FromStr>(list: &[String], what: &'static str) -> Result<Vec<T>, WireError> {
    list.iter().map(|text| text.parse().map_err(|_| WireError::Range(what))).collect()
}

fn to_each<'a, N: 'a, W: From<&'a N>>(list: &'a [N]) -> Vec<W> {
    list.iter().map(Into::into).collect()
}

impl From<&Peer> for v1::AuthorizationPeer {
    fn from(p: &Peer) -> Self {
        Self {
            principals: to_each(&p.principals),
            not_principals: to_each(&p.not_principals),
            namespaces: texts(&p.namespaces),
            not_namespaces: texts(&p.not_namespaces),
            service_accounts: to_each(&p.service_accounts),
            not_service_accounts: to_each(&p.not_service_accounts),
            ip_blocks: texts(&p.ip_blocks),
            not_ip_blocks: texts(&p.not_ip_blocks),
            unauthenticated: p.unauthenticated,
            jwt: super::tokens::to(p),
        }
    }
}

impl TryFrom<&v1::AuthorizationPeer> for Peer {
    type Error = WireError;
    fn try_from(p: &v1::AuthorizationPeer) -> Result<Self, WireError> {
        let (jwt, not_jwt) = super::tokens::from(p.jwt.as_ref())?;
        let peer = Self {
            principals: each(&p.principals)?,
            not_principals: each(&p.not_principals)?,
            namespaces: parsed(&p.namespaces, "namespace")?,
            not_namespaces: parsed(&p.not_namespaces, "namespace")?,
            service_accounts: each(&p.service_accounts)?,
            not_service_accounts: each(&p.not_service_accounts)?,
            ip_blocks: parsed(&p.ip_blocks, "CIDR")?,
            not_ip_blocks: parsed(&p.not_ip_blocks, "CIDR")?,
            unauthenticated: p.unauthenticated,
            jwt,
            not_jwt,
        };
        if peer.is_empty() { Err(WireError::Missing("what a peer must be")) } else { Ok(peer) }
    }
}

impl From<&Account> for v1::ObjectRef {
    fn from(a: &Account) -> Self {
        Self { namespace: a.namespace.to_string(), name: a.name.to_string() }
    }
}

impl TryFrom<&v1::ObjectRef> for Account {
    type Error = WireError;
    fn try_from(a: &v1::ObjectRef) -> Result<Self, WireError> {
        Ok(Self { namespace: a.namespace.parse()?, name: a.name.parse()? })
    }
}

impl From<&Principal> for v1::AuthorizationPrincipal {
    fn from(p: &Principal) -> Self {
        use v1::authorization_principal::Kind;
        Self {
            kind: Some(match p {
                Principal::Any => Kind::Any(v1::AnyPrincipal {}),
                Principal::TrustDomain(domain) => Kind::TrustDomain(domain.to_string()),
                Principal::Prefix(prefix) => Kind::Prefix(prefix.to_string()),
                Principal::Exact(id) => Kind::Exact(id.to_string()),
            }),
        }
    }
}

impl TryFrom<&v1::AuthorizationPrincipal> for Principal {
    type Error = WireError;
    fn try_from(p: &v1::AuthorizationPrincipal) -> Result<Self, WireError> {
        use v1::authorization_principal::Kind;
        Ok(match p.kind.as_ref().ok_or(WireError::Missing("kind of principal"))? {
            Kind::Any(v1::AnyPrincipal {}) => Self::Any,
            Kind::TrustDomain(domain) => Self::TrustDomain(domain.parse()?),
            Kind::Prefix(prefix) => match format!("{prefix}*").parse() {
                Ok(read @ Self::Prefix(_)) => read,
                _ => return Err(WireError::Range("prefix of a principal")),
            },
            Kind::Exact(id) => Self::Exact(id.parse()?),
        })
    }
}

fn some(text: &str, what: &'static str) -> Result<Arc<str>, WireError> {
    if text.is_empty() { Err(WireError::Missing(what)) } else { Ok(text.into()) }
}

impl From<&Operation> for v1::AuthorizationOperation {
    fn from(o: &Operation) -> Self {
        Self {
            ports: numbers(&o.ports),
            not_ports: numbers(&o.not_ports),
            hosts: to_each(&o.hosts),
            not_hosts: to_each(&o.not_hosts),
            methods: texts(&o.methods),
            not_methods: texts(&o.not_methods),
            paths: to_each(&o.paths),
            not_paths: to_each(&o.not_paths),
            headers: to_each(&o.headers),
            grpc: to_each(&o.grpc),
        }
    }
}

impl TryFrom<&v1::AuthorizationOperation> for Operation {
    type Error = WireError;
    fn try_from(o: &v1::AuthorizationOperation) -> Result<Self, WireError> {
        let methods = |list: &[String]| list.iter().map(|m| some(m, "method")).collect::<Result<Vec<_>, _>>();
        let operation = Self {
            ports: ports(&o.ports)?,
            not_ports: ports(&o.not_ports)?,
            hosts: each(&o.hosts)?,
            not_hosts: each(&o.not_hosts)?,
            methods: methods(&o.methods)?,
            not_methods: methods(&o.not_methods)?,
            paths: each(&o.paths)?,
            not_paths: each(&o.not_paths)?,
            headers: each(&o.headers)?,
            grpc: each(&o.grpc)?,
        };
        if operation.is_empty() { Err(WireError::Missing("what an operation must be")) } else { Ok(operation) }
    }
}

impl From<&HostMatch> for v1::AuthorizationHost {
    fn from(h: &HostMatch) -> Self {
        use v1::authorization_host::Kind;
        Self {
            kind: Some(match h {
                HostMatch::Exact(host) => Kind::Exact(host.to_string()),
                HostMatch::Suffix(suffix) => Kind::Suffix(suffix.to_string()),
            }),
        }
    }
}

impl TryFrom<&v1::AuthorizationHost> for HostMatch {
    type Error = WireError;
    fn try_from(h: &v1::AuthorizationHost) -> Result<Self, WireError> {
        use v1::authorization_host::Kind;
        Ok(match h.kind.as_ref().ok_or(WireError::Missing("kind of host"))? {
            Kind::Exact(host) => match host.parse() {
                Ok(read @ Self::Exact(_)) => read,
                _ => return Err(WireError::Range("host")),
            },
            Kind::Suffix(suffix) => format!("*.{suffix}").parse().map_err(|_| WireError::Range("suffix of a host"))?,
        })
    }
}

impl From<&PathMatch> for v1::AuthorizationPath {
    fn from(p: &PathMatch) -> Self {
        use v1::authorization_path::Kind;
        Self {
            kind: Some(match p {
                PathMatch::Exact(path) => Kind::Exact(path.to_string()),
                PathMatch::Prefix(path) => Kind::Prefix(path.to_string()),
                PathMatch::Template(path) => Kind::Template(path.to_string()),
            }),
        }
    }
}

impl TryFrom<&v1::AuthorizationPath> for PathMatch {
    type Error = WireError;
    fn try_from(p: &v1::AuthorizationPath) -> Result<Self, WireError> {
        use v1::authorization_path::Kind;
        let read = match p.kind.as_ref().ok_or(WireError::Missing("kind of path"))? {
            Kind::Exact(path) => Self::exact(path),
            Kind::Prefix(path) => Self::prefix(path),
            Kind::Template(path) => Self::template(path),
        };
        read.map_err(|_| WireError::Range("path"))
    }
}

impl From<&HeaderMatch> for v1::AuthorizationHeader {
    fn from(h: &HeaderMatch) -> Self {
        use v1::authorization_header::Value;
        Self {
            name: h.name.to_string(),
            value: Some(match &h.value {
                HeaderValue::Exact(text) => Value::Exact(text.to_string()),
                HeaderValue::Prefix(text) => Value::Prefix(text.to_string()),
                HeaderValue::Present => Value::Present(v1::AnyValue {}),
            }),
        }
    }
}

impl TryFrom<&v1::AuthorizationHeader> for HeaderMatch {
    type Error = WireError;
    fn try_from(h: &v1::AuthorizationHeader) -> Result<Self, WireError> {
        use v1::authorization_header::Value;
        let value = match h.value.as_ref().ok_or(WireError::Missing("value of a header field"))? {
            Value::Exact(text) => HeaderValue::Exact(text.as_str().into()),
            Value::Prefix(text) => HeaderValue::Prefix(text.as_str().into()),
            Value::Present(v1::AnyValue {}) => HeaderValue::Present,
        };
        Self::new(&h.name, value).map_err(|_| WireError::Range("name of a header field"))
    }
}

impl From<&GrpcMatch> for v1::AuthorizationCall {
    fn from(g: &GrpcMatch) -> Self {
        let text = |maybe: &Option<Arc<str>>| maybe.as_deref().unwrap_or_default().to_owned();
        Self { service: text(&g.service), method: text(&g.method) }
    }
}

impl TryFrom<&v1::AuthorizationCall> for GrpcMatch {
    type Error = WireError;
    fn try_from(g: &v1::AuthorizationCall) -> Result<Self, WireError> {
        let maybe = |text: &str| (!text.is_empty()).then(|| text.into());
        Ok(Self { service: maybe(&g.service), method: maybe(&g.method) })
    }
}
