//! Where keys are fetched from.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

use crate::authorization::policy::InvalidClause;

/// A URL of a JWK Set: `http://` for a service of the mesh, `https://` for anything else.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct KeysUrl {
    /// Whether the connection is TLS of the server's own.
    pub tls: bool,
    /// A name in lower case, or an address (IPv6 without brackets).
    pub host: Box<str>,
    /// 1 to 65535.
    pub port: u16,
    /// Path and query.
    pub target: Box<str>,
}

impl KeysUrl {
    /// Addresses that keys are never fetched from: the machine's own, and those of its link, where clouds answer with credentials.
    pub fn refuses(address: IpAddr) -> bool {
        match address.to_canonical() {
            IpAddr::V4(ip) => {
                ip.is_loopback() || ip.is_link_local() || ip.is_unspecified() || ip.is_multicast() || ip.is_broadcast()
            }
            IpAddr::V6(ip) => ip.is_loopback() || ip.is_unicast_link_local() || ip.is_unspecified() || ip.is_multicast(),
        }
    }

    /// The address that the host is, where it is no name.
    pub fn address(&self) -> Option<IpAddr> {
        self.host.parse().ok()
    }

    /// The value of `Host`.
    pub fn authority(&self) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.to_string() };
        let default = if self.tls { 443 } else { 80 };
        if self.port == default { host } else { format!("{host}:{}", self.port) }
    }
}

impl FromStr for KeysUrl {
    type Err = InvalidClause;
    /// Reads `http://HOST[:PORT][/PATH][?QUERY]`, or the same with `https`. Neither a user nor a fragment.
    fn from_str(s: &str) -> Result<Self, InvalidClause> {
        let invalid = |why| InvalidClause::new("URL", s, why);
        if s.len() > 2_048 || !s.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'\\' | b'"' | b'<' | b'>')) {
            return Err(invalid("it must be at most 2048 visible ASCII characters"));
        }
        let (tls, rest) = match s.split_once("://") {
            Some(("https", rest)) => (true, rest),
            Some(("http", rest)) => (false, rest),
            _ => return Err(invalid("it must begin with http:// or https://")),
        };
        if rest.contains('#') {
            return Err(invalid("it must not have a fragment"));
        }
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, target) = rest.split_at(end);
        if authority.contains('@') {
            return Err(invalid("it must not have a user"));
        }
        let (host, port) = match authority.strip_prefix('[').and_then(|a| a.split_once(']')) {
            Some((host, port)) if host.parse::<Ipv6Addr>().is_ok() => {
                (host, port.strip_prefix(':').map_or((port.is_empty()).then_some(None), |p| Some(Some(p))))
            }
            Some(_) => return Err(invalid("what stands in brackets is no IPv6 address")),
            None => match authority.split_once(':') {
                Some((host, port)) => (host, Some(Some(port))),
                None => (authority, Some(None)),
            },
        };
        let port = match port {
            Some(None) => Some(if tls { 443 } else { 80 }),
            Some(Some(text)) if text.bytes().all(|b| b.is_ascii_digit()) => text.parse().ok().filter(|p| *p != 0),
            _ => None,
        };
        let port = port.ok_or_else(|| invalid("its port is not a number from 1 to 65535"))?;
        let label =
            |l: &str| !l.is_empty() && l.len() <= 63 && l.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
        let name = host.strip_suffix('.').unwrap_or(host);
        if host.parse::<IpAddr>().is_err() && (name.len() > 253 || !name.split('.').all(label)) {
            return Err(invalid("it names no host"));
        }
        if host.parse().is_ok_and(Self::refuses) {
            return Err(invalid("keys are not fetched from addresses of the machine itself or of its link"));
        }
        let slash = if target.starts_with('/') { "" } else { "/" };
        Ok(Self { tls, host: host.to_ascii_lowercase().into(), port, target: format!("{slash}{target}").into() })
    }
}

impl fmt::Display for KeysUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}{}", if self.tls { "https" } else { "http" }, self.authority(), self.target)
    }
}
