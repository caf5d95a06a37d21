//! Session persistence (GEP-1619): the mark that keeps a session with its endpoint, and the cookies that carry it.
//!
//! Nothing is remembered: the mark itself says which endpoint, and since when. It holds no secret and is not signed. Whoever changes it can choose
//! another endpoint of the same service, or make the session last longer, and no more: **a mark counts only if its address is one of the endpoints
//! that the rule could have chosen.** It does tell the endpoint's address to whoever holds it.
//!
//! A session outlives the weights: it stays with an endpoint of a backend whose weight has become 0. Where its endpoint is gone, a new session begins.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::route::{PathMatch, Session};
use crate::hex::hex;

/// The first byte of a mark: its form.
const FORM: u8 = 1;
/// A clock may be behind the one that made the mark by so much, in seconds.
const SKEW: u64 = 60;

/// Which endpoint a session is with, and since when. Times are seconds since the Unix epoch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mark {
    /// The endpoint's own address and port.
    pub endpoint: SocketAddr,
    /// When the session began.
    pub began: u64,
    /// When it was last used; only where it ends by being idle.
    pub used: Option<u64>,
}

impl Mark {
    /// The mark of a session that begins `now`.
    pub fn new(endpoint: SocketAddr, session: &Session, now: u64) -> Self {
        Self { endpoint, began: now, used: session.idle.map(|_| now) }
    }

    /// The mark as 32 to 72 hexadecimal digits: form, address, port, began, used.
    pub fn encode(&self) -> String {
        let mut bytes = vec![FORM];
        match self.endpoint.ip() {
            IpAddr::V4(ip) => bytes.extend(std::iter::once(4).chain(ip.octets())),
            IpAddr::V6(ip) => bytes.extend(std::iter::once(6).chain(ip.octets())),
        }
        bytes.extend(self.endpoint.port().to_be_bytes());
        bytes.extend(self.began.to_be_bytes());
        bytes.extend(self.used.iter().flat_map(|used| used.to_be_bytes()));
        hex(&bytes)
    }

    /// Reads a mark; none where the text is not one.
    pub fn decode(text: &[u8]) -> Option<Self> {
        let mut bytes = [0; 36];
        let length = unhex(text, &mut bytes)?;
        let rest = &mut &bytes[..length];
        let (FORM, family) = (take::<1>(rest)?[0], take::<1>(rest)?[0]) else { return None };
        let ip = match family {
            4 => IpAddr::from(take::<4>(rest)?),
            6 => IpAddr::from(take::<16>(rest)?),
            _ => return None,
        };
        let endpoint = SocketAddr::new(ip, u16::from_be_bytes(take(rest)?));
        let began = u64::from_be_bytes(take(rest)?);
        let used = if rest.is_empty() { None } else { Some(u64::from_be_bytes(take(rest)?)) };
        rest.is_empty().then_some(Self { endpoint, began, used })
    }

    /// Whether the session still lasts at `now`. A mark from the future does not, nor one that does not say what its session asks for.
    pub fn lasts(&self, session: &Session, now: u64) -> bool {
        let within =
            |since: u64, bound: Duration| since <= now.saturating_add(SKEW) && now.saturating_sub(since) < seconds(bound);
        session.absolute.is_none_or(|bound| within(self.began, bound))
            && session.idle.is_none_or(|bound| self.used.is_some_and(|used| within(used, bound)))
    }

    /// The mark after one more request: what the answer must say anew. None where the caller's own mark still serves: the session does not end by being
    /// idle, or less than a second has passed.
    pub fn renewed(&self, session: &Session, now: u64) -> Option<Self> {
        let used = session.idle.map(|_| now);
        (used.is_some() && used != self.used).then_some(Self { used, ..*self })
    }

    /// The `Set-Cookie` that gives it to the caller's program. `matched` is what the request's path fell under; none where the session is asked for by
    /// the service's policy and not by a route, which leaves `Path` out. A permanent cookie lives for what is left of `absolute`.
    pub fn set_cookie(&self, session: &Session, matched: Option<&PathMatch>, now: u64) -> String {
        let left = |bound: Duration| Duration::from_secs(seconds(bound).saturating_sub(now.saturating_sub(self.began)));
        let max_age = session.absolute.filter(|_| session.permanent).map(left);
        set_cookie(&session.name, &self.encode(), matched.map(cookie_path), max_age)
    }
}

/// The `Path` of a cookie for requests that fall under a match: the path that it names; of a regular expression, what stands before its first special
/// character, up to a slash.
pub fn cookie_path(matched: &PathMatch) -> &str {
    match matched {
        PathMatch::Exact(path) | PathMatch::Prefix(path) => path,
        PathMatch::Any | PathMatch::Grpc { .. } => "/",
        PathMatch::Regex(pattern) => {
            let text = pattern.as_str();
            let literal =
                text.find(|c: char| !matches!(c, '/' | '-' | '_' | '~') && !c.is_ascii_alphanumeric()).unwrap_or(text.len());
            // `a|b` anywhere makes the beginning one of several.
            let literal = if text.contains('|') { 0 } else { literal };
            match text[..literal].rfind('/') {
                Some(slash) if slash > 0 && text.starts_with('/') => &text[..slash],
                _ => "/",
            }
        }
    }
}

/// A `Set-Cookie` value (RFC 6265, section 4.1). `HttpOnly` and `SameSite=Strict` always; never `Secure`, because the caller's program speaks plaintext to its
/// sidecar and would not send it back. Characters that would end a name, value or path are left out.
pub fn set_cookie(name: &str, value: &str, path: Option<&str>, max_age: Option<Duration>) -> String {
    let clean =
        |text: &str| text.chars().filter(|c| c.is_ascii_graphic() && !matches!(c, ';' | ',' | '"' | '\\')).collect::<String>();
    let mut out = format!("{}={}", clean(name).replace('=', ""), clean(value));
    if let Some(path) = path {
        let _ = write!(out, "; Path={}", clean(path));
    }
    if let Some(age) = max_age {
        let _ = write!(out, "; Max-Age={}", age.as_secs());
    }
    out.push_str("; HttpOnly; SameSite=Strict");
    out
}

/// The value of the first cookie of this name in a `Cookie` header field, without quotes around it.
pub fn cookie_value<'c>(header: &'c [u8], name: &str) -> Option<&'c [u8]> {
    header.split(|byte| *byte == b';').find_map(|pair| {
        let equals = pair.iter().position(|byte| *byte == b'=')?;
        let value = pair[equals + 1..].trim_ascii();
        (pair[..equals].trim_ascii() == name.as_bytes())
            .then(|| value.strip_prefix(b"\"").and_then(|v| v.strip_suffix(b"\"")).unwrap_or(value))
    })
}

/// Whole seconds, a part of one counted as one: no bound is 0.
fn seconds(bound: Duration) -> u64 {
    bound.as_secs() + u64::from(bound.subsec_nanos() > 0)
}

/// Reads hexadecimal digits into `out`; gives how many bytes they were. None for anything else, or too much of it.
fn unhex(text: &[u8], out: &mut [u8]) -> Option<usize> {
    if !text.len().is_multiple_of(2) || text.len() / 2 > out.len() {
        return None;
    }
    for (pair, byte) in text.chunks_exact(2).zip(out) {
        let digit = |d: u8| char::from(d).to_digit(16).map(|d| d as u8);
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(text.len() / 2)
}

/// Takes the first `N` bytes off.
fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (first, after) = rest.split_first_chunk()?;
    *rest = after;
    Some(*first)
}

#[cfg(test)]
mod tests;
