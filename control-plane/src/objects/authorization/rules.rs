//! The rules of an `AuthorizationPolicy`: who calls, and what is asked for.

use std::fmt::Display;
use std::str::FromStr;
use std::sync::Arc;

use serde::Deserialize;
use weft_core::Namespace;
use weft_core::authorization::policy::{
    Account, GrpcMatch, HeaderMatch, HeaderValue, InvalidClause, Operation, PathMatch, Peer, Rule,
};

use super::tokens::TokenSpec;
use super::{Wrong, given, wrong};
use crate::objects::traffic::is_token;

/// The most entries of `from` and of `to`.
const MAX_ENTRIES: usize = 32;
/// The most values of one list.
const MAX_VALUES: usize = 256;
/// The longest value, in bytes.
const MAX_TEXT: usize = 2_048;

/// One of `from` and one of `to` must hold; a rule without either matches everything.
#[derive(Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(deny_unknown_fields)]
pub(super) struct RuleSpec {
    /// Who calls, at most 32. Default: anyone.
    #[serde(default, deserialize_with = "given")]
    from: Option<Vec<PeerSpec>>,
    /// What is asked for, at most 32. Default: anything.
    #[serde(default, deserialize_with = "given")]
    to: Option<Vec<OperationSpec>>,
}

/// All that is given must hold; of each list one value, of each `not` list none. At least one field. Each list has from 1 to 256 values.
#[derive(Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PeerSpec {
    /// SPIFFE IDs; `spiffe://DOMAIN/*`, another text that ends in `*`, or `*` for anyone who has one.
    #[serde(default, deserialize_with = "given")]
    principals: Option<Vec<String>>,
    #[serde(default, deserialize_with = "given")]
    not_principals: Option<Vec<String>>,
    #[serde(default, deserialize_with = "given")]
    namespaces: Option<Vec<String>>,
    #[serde(default, deserialize_with = "given")]
    not_namespaces: Option<Vec<String>>,
    /// `NAMESPACE/NAME`; without a namespace it is the policy's own.
    #[serde(default, deserialize_with = "given")]
    service_accounts: Option<Vec<String>>,
    #[serde(default, deserialize_with = "given")]
    not_service_accounts: Option<Vec<String>>,
    /// CIDRs of the connection's source.
    #[serde(default, deserialize_with = "given")]
    ip_blocks: Option<Vec<String>>,
    #[serde(default, deserialize_with = "given")]
    not_ip_blocks: Option<Vec<String>>,
    /// Whoever proves no identity. Default: false.
    #[serde(default)]
    unauthenticated: bool,
    /// A token of the end user's that the request must bear.
    #[serde(default, deserialize_with = "given")]
    jwt: Option<TokenSpec>,
    /// One that it must not bear.
    #[serde(default, deserialize_with = "given")]
    not_jwt: Option<TokenSpec>,
}

/// As [`PeerSpec`]; of `headers` each must hold.
#[derive(Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct OperationSpec {
    /// The pod's own ports, to which a Service's ports lead.
    #[serde(default, deserialize_with = "given")]
    ports: Option<Vec<u16>>,
    #[serde(default, deserialize_with = "given")]
    not_ports: Option<Vec<u16>>,
    /// Without a port; `*.example.com` is any name below example.com.
    #[serde(default, deserialize_with = "given")]
    hosts: Option<Vec<String>>,
    #[serde(default, deserialize_with = "given")]
    not_hosts: Option<Vec<String>>,
    #[serde(default, deserialize_with = "given")]
    methods: Option<Vec<String>>,
    #[serde(default, deserialize_with = "given")]
    not_methods: Option<Vec<String>>,
    /// `/a` is that path; `/a/*` is it and all below it; in `/a/{id}/b` one segment is any.
    #[serde(default, deserialize_with = "given")]
    paths: Option<Vec<String>>,
    #[serde(default, deserialize_with = "given")]
    not_paths: Option<Vec<String>>,
    #[serde(default, deserialize_with = "given")]
    headers: Option<Vec<HeaderSpec>>,
    #[serde(default, deserialize_with = "given")]
    grpc: Option<Vec<GrpcSpec>>,
}

#[derive(Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(deny_unknown_fields)]
struct HeaderSpec {
    name: String,
    /// `Exact`, `Prefix` or `Present`. Default: `Exact`.
    #[serde(rename = "type", default)]
    kind: Comparison,
    /// Required, but for `Present`.
    value: Option<String>,
}

#[derive(Deserialize, Clone, Copy, PartialEq, Eq, Debug, Default)]
enum Comparison {
    #[default]
    Exact,
    Prefix,
    Present,
}

/// At least one field.
#[derive(Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(deny_unknown_fields)]
struct GrpcSpec {
    /// With its package. Default: any.
    #[serde(default, deserialize_with = "given")]
    service: Option<String>,
    /// Default: any.
    #[serde(default, deserialize_with = "given")]
    method: Option<String>,
}

impl RuleSpec {
    pub(super) fn read(&self, at: &str, own: &Namespace) -> Result<Rule, Wrong> {
        let from = entries(self.from.as_deref(), &format!("{at}.from"))?;
        let to = entries(self.to.as_deref(), &format!("{at}.to"))?;
        let peer = |(i, peer): (usize, &PeerSpec)| peer.read(&format!("{at}.from[{i}]"), own);
        let operation = |(i, operation): (usize, &OperationSpec)| operation.read(&format!("{at}.to[{i}]"));
        Ok(Rule {
            from: from.iter().enumerate().map(peer).collect::<Result<_, _>>()?,
            to: to.iter().enumerate().map(operation).collect::<Result<_, _>>()?,
        })
    }
}

/// A list that is left out is any; one that is empty is somebody's mistake, and does not mean the same.
fn entries<'a, T>(list: Option<&'a [T]>, at: &str) -> Result<&'a [T], Wrong> {
    match list {
        None => Ok(&[]),
        Some([]) => wrong(at, "is empty: leave it out, and it is any"),
        Some(list) if list.len() > MAX_ENTRIES => wrong(at, format!("{} entries; at most {MAX_ENTRIES} are taken", list.len())),
        Some(list) => Ok(list),
    }
}

/// The values of a list, none where it is left out.
pub(super) fn values<'a, T>(list: Option<&'a [T]>, at: &str) -> Result<&'a [T], Wrong> {
    match list {
        None => Ok(&[]),
        Some([]) => wrong(at, "is empty: leave it out where it does not matter, or write a value"),
        Some(list) if list.len() > MAX_VALUES => wrong(at, format!("{} values; at most {MAX_VALUES} are taken", list.len())),
        Some(list) => Ok(list),
    }
}

/// Every text of a list, as what it stands for.
pub(super) fn each<T, E: Display>(
    list: Option<&[String]>,
    at: &str,
    read: impl Fn(&str) -> Result<T, E>,
) -> Result<Vec<T>, Wrong> {
    let one = |(i, text): (usize, &String)| {
        if text.len() > MAX_TEXT {
            return wrong(format!("{at}[{i}]"), format!("{} bytes long; at most {MAX_TEXT} are taken", text.len()));
        }
        read(text).map_err(|e| (format!("{at}[{i}]"), e.to_string()))
    };
    values(list, at)?.iter().enumerate().map(one).collect()
}

fn parsed<T: FromStr<Err: Display>>(list: Option<&[String]>, at: &str) -> Result<Vec<T>, Wrong> {
    each(list, at, str::parse)
}

fn account(text: &str, own: &Namespace) -> Result<Account, InvalidClause> {
    if text.contains('/') { text.parse() } else { format!("{own}/{text}").parse() }
}

fn block<T: FromStr>(text: &str) -> Result<T, String> {
    let short: String = text.chars().take(60).collect();
    text.parse().map_err(|_| format!("{short:?} is no CIDR: write it as 10.0.0.0/8, and one address as 10.1.2.3/32"))
}

impl PeerSpec {
    fn read(&self, at: &str, own: &Namespace) -> Result<Peer, Wrong> {
        let field = |name: &str| format!("{at}.{name}");
        let accounts = |list: Option<&[String]>, name| each(list, &field(name), |text| account(text, own));
        let peer = Peer {
            principals: parsed(self.principals.as_deref(), &field("principals"))?,
            not_principals: parsed(self.not_principals.as_deref(), &field("notPrincipals"))?,
            namespaces: parsed(self.namespaces.as_deref(), &field("namespaces"))?,
            not_namespaces: parsed(self.not_namespaces.as_deref(), &field("notNamespaces"))?,
            service_accounts: accounts(self.service_accounts.as_deref(), "serviceAccounts")?,
            not_service_accounts: accounts(self.not_service_accounts.as_deref(), "notServiceAccounts")?,
            ip_blocks: each(self.ip_blocks.as_deref(), &field("ipBlocks"), block)?,
            not_ip_blocks: each(self.not_ip_blocks.as_deref(), &field("notIpBlocks"), block)?,
            unauthenticated: self.unauthenticated,
            jwt: self.jwt.as_ref().map(|t| t.read(&field("jwt"))).transpose()?,
            not_jwt: self.not_jwt.as_ref().map(|t| t.read(&field("notJwt"))).transpose()?,
        };
        if peer.is_empty() {
            return wrong(at, "is empty, and would match nobody: leave `from` out for anyone, or write `principals: [\"*\"]`");
        }
        if peer.unauthenticated && peer.needs_identity() {
            return wrong(field("unauthenticated"), "stands beside an identity, which excludes it: make two entries of it");
        }
        Ok(peer)
    }
}

fn ports(list: Option<&[u16]>, at: &str) -> Result<Vec<u16>, Wrong> {
    let list = values(list, at)?;
    match list.iter().position(|port| *port == 0) {
        Some(i) => wrong(format!("{at}[{i}]"), "0 is not a port: use 1 to 65535"),
        None => Ok(list.to_vec()),
    }
}

/// Methods are exact; they are upper-case, but for those that somebody made up.
fn method(text: &str) -> Result<Arc<str>, String> {
    let short: String = text.chars().take(60).collect();
    if !is_token(text) {
        return Err(format!("{short:?} is no method: write it as GET"));
    }
    if matches!(text.to_ascii_uppercase().as_str(), "GET" | "HEAD" | "POST" | "PUT" | "DELETE" | "OPTIONS" | "PATCH")
        && text.bytes().any(|b| b.is_ascii_lowercase())
    {
        return Err(format!("{short:?} is another method than {:?}, which is meant", text.to_ascii_uppercase()));
    }
    Ok(text.into())
}

fn path(text: &str) -> Result<PathMatch, String> {
    let (above, is_prefix) = text.strip_suffix("/*").map_or((text, false), |above| (above, true));
    if above.contains('*') {
        let short: String = text.chars().take(60).collect();
        return Err(format!(
            "{short:?} is not clear: * stands for all that is below, as the whole of a last segment, as in /a/*"
        ));
    }
    let is_template = above.contains(['{', '}']);
    let path = match (is_prefix, is_template) {
        (true, true) => {
            return Err(format!(
                "{:?} is a template with * behind it: write one of them",
                text.chars().take(60).collect::<String>()
            ));
        }
        (true, false) if above.is_empty() => PathMatch::prefix("/"),
        (true, false) => PathMatch::prefix(above),
        (false, true) => PathMatch::template(text),
        (false, false) => PathMatch::exact(text),
    };
    path.map_err(|e| e.to_string())
}

impl OperationSpec {
    fn read(&self, at: &str) -> Result<Operation, Wrong> {
        let field = |name: &str| format!("{at}.{name}");
        let headers = values(self.headers.as_deref(), &field("headers"))?;
        let calls = values(self.grpc.as_deref(), &field("grpc"))?;
        let header = |(i, header): (usize, &HeaderSpec)| header.read(&format!("{at}.headers[{i}]"));
        let call = |(i, call): (usize, &GrpcSpec)| call.read(&format!("{at}.grpc[{i}]"));
        let operation = Operation {
            ports: ports(self.ports.as_deref(), &field("ports"))?,
            not_ports: ports(self.not_ports.as_deref(), &field("notPorts"))?,
            hosts: parsed(self.hosts.as_deref(), &field("hosts"))?,
            not_hosts: parsed(self.not_hosts.as_deref(), &field("notHosts"))?,
            methods: each(self.methods.as_deref(), &field("methods"), method)?,
            not_methods: each(self.not_methods.as_deref(), &field("notMethods"), method)?,
            paths: each(self.paths.as_deref(), &field("paths"), path)?,
            not_paths: each(self.not_paths.as_deref(), &field("notPaths"), path)?,
            headers: headers.iter().enumerate().map(header).collect::<Result<_, _>>()?,
            grpc: calls.iter().enumerate().map(call).collect::<Result<_, _>>()?,
        };
        if operation.is_empty() {
            return wrong(at, "is empty, and would match nothing: leave `to` out for anything");
        }
        Ok(operation)
    }
}

impl HeaderSpec {
    fn read(&self, at: &str) -> Result<HeaderMatch, Wrong> {
        let value = match (self.kind, self.value.as_deref()) {
            (_, Some(text)) if text.len() > MAX_TEXT => {
                return wrong(format!("{at}.value"), format!("{} bytes long; at most {MAX_TEXT} are taken", text.len()));
            }
            (Comparison::Exact, Some(text)) => HeaderValue::Exact(text.into()),
            (Comparison::Prefix, Some(text)) => HeaderValue::Prefix(text.into()),
            (Comparison::Present, None) => HeaderValue::Present,
            (Comparison::Present, Some(_)) => {
                return wrong(format!("{at}.value"), "is not for the type Present: leave it out");
            }
            (Comparison::Exact | Comparison::Prefix, None) => {
                return wrong(format!("{at}.value"), "missing: what the field must read, or `type: Present`");
            }
        };
        if !is_token(&self.name) {
            return wrong(format!("{at}.name"), "is no name of a header field");
        }
        HeaderMatch::new(&self.name.to_ascii_lowercase(), value).map_err(|e| (at.to_owned(), e.to_string()))
    }
}

impl GrpcSpec {
    fn read(&self, at: &str) -> Result<GrpcMatch, Wrong> {
        let name = |field: &str, text: &Option<String>| match text.as_deref() {
            None => Ok(None),
            Some(text) if is_call(text) => Ok(Some(Arc::from(text))),
            Some(_) => wrong(format!("{at}.{field}"), "is no name of gRPC's: write letters, digits, _ and dots"),
        };
        let call = GrpcMatch { service: name("service", &self.service)?, method: name("method", &self.method)? };
        if call.service.is_none() && call.method.is_none() {
            return wrong(at, "is empty: write a service, a method, or both");
        }
        Ok(call)
    }
}

fn is_call(text: &str) -> bool {
    !text.is_empty() && text.len() <= MAX_TEXT && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'.')
}
