//! The host that a request or a `ClientHello` names.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

/// A host in the form in which hosts are compared: a name in lower case without a dot at its end, or an address.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Host {
    /// A name of two labels or one, or more.
    Name(Arc<str>),
    /// An address; an IPv4 address that is mapped into IPv6 is that IPv4 address.
    Address(IpAddr),
}

impl Host {
    /// Reads a name or an address, without a port; IPv6 in brackets or without. None for what two readers could take for two hosts: a text whose last
    /// label is a number and which is no address is one for some resolvers (`127.1`, `0x7f000001`).
    pub fn read(text: &str) -> Option<Self> {
        let lower = text.to_ascii_lowercase();
        let name = lower.strip_suffix('.').unwrap_or(&lower);
        let bare = name.strip_prefix('[').and_then(|n| n.strip_suffix(']')).unwrap_or(name);
        if let Ok(ip) = bare.parse::<IpAddr>() {
            return (bare.len() == name.len() || ip.is_ipv6()).then(|| Self::Address(ip.to_canonical()));
        }
        let is_byte = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
        let is_label = |l: &str| (1..=63).contains(&l.len()) && l.bytes().all(is_byte);
        let last = name.rsplit('.').next().unwrap_or(name);
        let is_number = last.bytes().all(|b| b.is_ascii_digit())
            || last.strip_prefix("0x").is_some_and(|n| n.bytes().all(|b| b.is_ascii_hexdigit()));
        (name.len() <= 253 && name.split('.').all(is_label) && !is_number).then(|| Self::Name(name.into()))
    }

    /// The name; none for an address.
    pub fn name(&self) -> Option<&Arc<str>> {
        match self {
            Self::Name(name) => Some(name),
            Self::Address(_) => None,
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Address(ip) => ip.fmt(f),
        }
    }
}

/// The host of `Host` or `:authority`, with the port taken off; none for what is no host (RFC 9110, section 7.2).
pub fn host_of(authority: &[u8]) -> Option<Host> {
    let text = std::str::from_utf8(authority).ok()?;
    let is_port = |p: &str| p.is_empty() || p.bytes().all(|b| b.is_ascii_digit()) && p.parse::<u16>().is_ok();
    if let Some(rest) = text.strip_prefix('[') {
        let (inner, rest) = rest.split_once(']')?;
        inner.parse::<Ipv6Addr>().ok()?;
        return (rest.is_empty() || rest.strip_prefix(':').is_some_and(is_port)).then(|| Host::read(inner)).flatten();
    }
    match text.split_once(':') {
        None => Host::read(text),
        Some((host, port)) => is_port(port).then(|| Host::read(host)).flatten(),
    }
}
