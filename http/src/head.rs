//! The head of a request or response.

use bytes::Bytes;
use weft_core::failure::{Failure, Reason};
use weft_core::traffic::table::RequestFacts;

use crate::fields::{Fields, Known};

/// A request's head.
#[derive(Clone, Debug)]
pub struct RequestHead {
    pub method: Bytes,
    /// HTTP/1: the request target as it was sent. HTTP/2: `:path`.
    pub target: Bytes,
    /// HTTP/2: `:authority`, and `:scheme`.
    pub authority: Option<Bytes>,
    pub scheme: Option<Bytes>,
    /// Extended CONNECT (RFC 8441): `:protocol`.
    pub protocol: Option<Bytes>,
    /// HTTP/1.0, which has no chunks and keeps no connection by default.
    pub http10: bool,
    pub fields: Fields,
}

impl RequestHead {
    pub fn is_head(&self) -> bool {
        &self.method[..] == b"HEAD"
    }

    pub fn is_connect(&self) -> bool {
        &self.method[..] == b"CONNECT"
    }

    /// Whether it may be sent again (RFC 9110, section 9.2.2).
    pub fn is_idempotent(&self) -> bool {
        matches!(&self.method[..], b"GET" | b"HEAD" | b"OPTIONS" | b"TRACE" | b"PUT" | b"DELETE")
    }

    /// The path, without the query and, in the absolute form, without scheme and authority.
    pub fn path(&self) -> &[u8] {
        self.path_and_query().0
    }

    /// The query, without its `?`.
    pub fn query(&self) -> Option<&[u8]> {
        self.path_and_query().1
    }

    /// Both.
    pub fn path_and_query(&self) -> (&[u8], Option<&[u8]>) {
        let target = self.target_from_path();
        match memchr::memchr(b'?', target) {
            Some(at) => (&target[..at], Some(&target[at + 1..])),
            None => (target, None),
        }
    }

    /// The request target from its path on (RFC 9112, section 3.2).
    fn target_from_path(&self) -> &[u8] {
        let target = &self.target[..];
        // With an authority of its own (HTTP/2) it is no absolute form, whatever stands in it.
        if target.first() == Some(&b'/') || self.authority.is_some() {
            return target;
        }
        let Some(scheme) = target.windows(3).position(|w| w == b"://") else { return target };
        let rest = &target[scheme + 3..];
        match rest.iter().position(|b| matches!(b, b'/' | b'?')) {
            Some(at) => &rest[at..],
            None => b"/",
        }
    }

    /// The authority that the request names: `:authority`, or `Host`.
    pub fn host(&self) -> Option<&[u8]> {
        self.authority.as_deref().or_else(|| self.fields.first(Known::Host))
    }

    /// Names another host, where this version names it.
    pub fn set_host(&mut self, host: &[u8]) {
        self.fields.remove(Known::Host);
        if self.authority.is_some() {
            self.authority = Some(Bytes::copy_from_slice(host));
        } else {
            self.fields.push(b"host", host);
        }
    }

    /// A `Host` that was put beside an authority takes its place: only one of them goes on.
    pub fn settle_host(&mut self) {
        if self.authority.is_some()
            && let Some(host) = self.fields.first(Known::Host).map(<[u8]>::to_vec)
        {
            self.set_host(&host);
        }
    }

    /// Turns the absolute form of a target into the origin form. It names the host itself, and `Host` counts for nothing then (RFC 9112,
    /// section 3.2.2): what is looked at must be what the destination sees. The target of CONNECT is its host (section 3.2.3), and stays as it is; an
    /// error if `Host` names another.
    pub fn to_origin_form(&mut self) -> Result<(), Failure> {
        if self.authority.is_some() {
            return Ok(());
        }
        if self.method.eq_ignore_ascii_case(b"CONNECT") {
            return self.settle_connect();
        }
        if self.target.starts_with(b"/") {
            return Ok(());
        }
        let Some(scheme) = self.target.windows(3).position(|w| w == b"://") else { return Ok(()) };
        let rest = self.target.slice(scheme + 3..);
        let end = rest.iter().position(|b| matches!(b, b'/' | b'?' | b'#')).unwrap_or(rest.len());
        let (host, path) = (&rest[..end], &rest[end..]);
        if host.is_empty() || host.iter().any(|b| matches!(b, b'@' | b',')) {
            return Err(Failure::downstream(Reason::BadRequest).detail("the request target names no host"));
        }
        let slash: &[u8] = if path.starts_with(b"/") { b"" } else { b"/" };
        let target = [slash, path].concat();
        self.set_host(host);
        self.target = target.into();
        Ok(())
    }

    fn settle_connect(&mut self) -> Result<(), Failure> {
        let bad = |detail: &str| Failure::downstream(Reason::BadRequest).detail(detail);
        let target = self.target.clone();
        if target.is_empty() || target.iter().any(|b| matches!(b, b'/' | b'?' | b'#' | b'@' | b',' | b'\\')) {
            return Err(bad("the target of CONNECT is not HOST:PORT"));
        }
        let colon = target.iter().rposition(|b| *b == b':').unwrap_or(target.len());
        let is_same = |host: &[u8]| host.eq_ignore_ascii_case(&target) || host.eq_ignore_ascii_case(&target[..colon]);
        if !self.fields.all(Known::Host).all(is_same) {
            return Err(bad("CONNECT names one host in its target and another in Host"));
        }
        self.set_host(&target);
        Ok(())
    }

    /// Whether the caller speaks gRPC, and wants errors as it does.
    pub fn is_grpc(&self) -> bool {
        self.fields.first(Known::ContentType).is_some_and(|t| {
            t.len() >= 16
                && t[..16].eq_ignore_ascii_case(b"application/grpc")
                && matches!(t.get(16), None | Some(b'+' | b';' | b' '))
        })
    }

    /// The one protocol that the caller wants to switch to, if it asks properly.
    pub fn wants_upgrade(&self) -> bool {
        self.fields.first(Known::Upgrade).is_some() && crate::hop::connection_has(&self.fields, b"upgrade")
    }
}

/// What routes are chosen by.
impl RequestFacts for RequestHead {
    fn method(&self) -> &[u8] {
        &self.method
    }

    fn path(&self) -> &[u8] {
        RequestHead::path(self)
    }

    fn query(&self) -> Option<&[u8]> {
        RequestHead::query(self)
    }

    fn header_values(&self, name: &str, each: &mut dyn FnMut(&[u8])) {
        let mut none = true;
        for value in self.fields.named(name) {
            none = false;
            each(value);
        }
        // Over HTTP/2 it is the authority that is sent on.
        if let (true, "host", Some(authority)) = (none, name, &self.authority) {
            each(authority);
        }
    }

    fn fields(&self, each: &mut dyn FnMut(&[u8], &[u8])) {
        self.fields.iter().for_each(|(_, name, value)| each(name, value));
    }
}

/// A response's head.
#[derive(Clone, Debug)]
pub struct ResponseHead {
    pub status: u16,
    /// HTTP/1: the reason phrase.
    pub reason: Bytes,
    /// HTTP/1.0, which keeps no connection by default.
    pub http10: bool,
    pub fields: Fields,
}

impl ResponseHead {
    pub fn new(status: u16) -> Self {
        let reason = http::StatusCode::from_u16(status).ok().and_then(|s| s.canonical_reason()).unwrap_or("");
        Self { status, reason: Bytes::from_static(reason.as_bytes()), http10: false, fields: Fields::default() }
    }

    pub fn is_informational(&self) -> bool {
        (100..200).contains(&self.status) && self.status != 101
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connect(method: &'static str, target: &'static str, hosts: &[&str]) -> RequestHead {
        let mut fields = Fields::default();
        for host in hosts {
            fields.push(b"host", host.as_bytes());
        }
        RequestHead {
            method: Bytes::from_static(method.as_bytes()),
            target: Bytes::from_static(target.as_bytes()),
            authority: None,
            scheme: None,
            protocol: None,
            http10: false,
            fields,
        }
    }

    #[test]
    fn the_host_of_connect_is_its_target() {
        for (target, hosts) in [
            ("cart.shop:443", &["cart.shop:443"][..]),
            ("cart.shop:443", &["Cart.Shop:443"]),
            ("cart.shop:443", &["cart.shop"]),
            ("cart.shop:443", &[]),
            ("[fd00::1]:443", &["[fd00::1]"]),
        ] {
            let mut head = connect("CONNECT", target, hosts);
            assert!(head.to_origin_form().is_ok(), "{target} {hosts:?}");
            assert_eq!((head.host(), &head.target[..]), (Some(target.as_bytes()), target.as_bytes()));
        }
        for (target, hosts) in [
            ("evil.shop:443", &["cart.shop:443"][..]),
            ("evil.shop:443", &["cart.shop"]),
            ("cart.shop:22", &["cart.shop:443"]),
            ("cart.shop:443", &["cart.shop:443", "evil.shop:443"]),
            ("http://evil.shop/", &["cart.shop"]),
            ("cart.shop@evil.shop:443", &["cart.shop"]),
            ("/", &["cart.shop"]),
            ("", &["cart.shop"]),
        ] {
            for method in ["CONNECT", "connect"] {
                assert!(connect(method, target, hosts).to_origin_form().is_err(), "{method} {target} {hosts:?}");
            }
        }
    }
}
