//! What a rule does to a request, as values: targets, redirects, header fields, and who gets it.

use super::route::{HeaderChange, PathChange, PathMatch, Redirect, Rule};

/// Header fields that can be changed.
pub trait HeaderEdit {
    /// Replaces every field of the name (lower case) by one.
    fn set(&mut self, name: &str, value: &str);
    /// Adds one more field.
    fn add(&mut self, name: &str, value: &str);
    /// Takes every field of the name out.
    fn remove(&mut self, name: &str);
}

/// Changes header fields: set, add, remove, in this order (GEP-1323).
pub fn change_headers(change: &HeaderChange, headers: &mut impl HeaderEdit) {
    for (name, value) in &change.set {
        headers.set(name, value);
    }
    for (name, value) in &change.add {
        headers.add(name, value);
    }
    for name in &change.remove {
        headers.remove(name);
    }
}

/// The request target after a rewrite of its path. `target` is as sent: `/path?query`, or `http://host/path?query`, whose host stays. Any other form
/// (`*`, `host:port`) has no path and stays as it is. The query always stays. `matched` says what prefix is replaced.
pub fn rewrite_target(target: &[u8], matched: &PathMatch, change: &PathChange) -> Vec<u8> {
    let Some(Target { origin, path, query }) = Target::parse(target) else { return target.to_vec() };
    let mut out = origin.to_vec();
    push_path(&mut out, path, matched, change);
    out.extend_from_slice(query);
    out
}

/// What a redirect needs to know of the request that it answers.
#[derive(Clone, Copy, Debug)]
pub struct RedirectFacts<'r> {
    /// The scheme that the client used: `http` or `https`.
    pub scheme: &'r str,
    /// The `Host` or `:authority`, with its port or without; empty where there is none.
    pub authority: &'r [u8],
    /// The port that the client dialled: the service's, which stands for a gateway's listener.
    pub port: u16,
    /// The request target, as sent.
    pub target: &'r [u8],
    /// What the path fell under.
    pub matched: &'r PathMatch,
}

/// The answer of a redirect.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RedirectAnswer {
    /// The status code, 301, 302, 303, 307 or 308.
    pub status: u16,
    /// The value of `Location`. It holds bytes that the client sent: check it as any header value.
    pub location: Vec<u8>,
}

/// Where a request is redirected to. Without a host of its own or of the request's, `Location` is a path alone.
///
/// The port is the redirect's own; else, where the redirect names a scheme, that scheme's; else the one that the client dialled. The port that its scheme has
/// anyway is left out.
pub fn redirect(redirect: &Redirect, request: &RedirectFacts<'_>) -> RedirectAnswer {
    let scheme = redirect.scheme.as_deref().unwrap_or(request.scheme);
    let named = redirect.scheme.as_deref().and_then(default_port);
    let port = redirect.port.or(named).unwrap_or(request.port);
    let host = redirect.hostname.as_ref().map_or_else(|| host_of(request.authority), |name| name.as_bytes());

    let mut location = Vec::with_capacity(host.len() + request.target.len() + 16);
    if !host.is_empty() {
        location.extend_from_slice(scheme.as_bytes());
        location.extend_from_slice(b"://");
        location.extend_from_slice(host);
        if default_port(scheme) != Some(port) {
            location.extend_from_slice(format!(":{port}").as_bytes());
        }
    }
    let bare = Target { origin: b"", path: b"/", query: b"" };
    let Target { path, query, .. } = Target::parse(request.target).unwrap_or(bare);
    match &redirect.path {
        Some(change) => push_path(&mut location, path, request.matched, change),
        None => location.extend_from_slice(if path.is_empty() { b"/" } else { path }),
    }
    location.extend_from_slice(query);
    RedirectAnswer { status: redirect.status, location }
}

/// The place of the backend that gets the request, by weight; none where there is no backend, or none has a weight above 0. `random` is uniform over
/// all of `u64`.
pub fn choose_backend(rule: &Rule, random: u64) -> Option<usize> {
    let total: u64 = rule.backends.iter().map(|b| u64::from(b.weight)).sum();
    let mut point = below(total, random)?;
    for (place, backend) in rule.backends.iter().enumerate() {
        match point.checked_sub(u64::from(backend.weight)) {
            Some(rest) => point = rest,
            None => return Some(place),
        }
    }
    None
}

/// Whether a request is one of the `numerator` of `denominator` that are copied. `random` is uniform over all of `u64`. A denominator of 0 copies
/// nothing.
pub fn mirrors(numerator: u32, denominator: u32, random: u64) -> bool {
    below(u64::from(denominator), random).is_some_and(|point| point < u64::from(numerator))
}

/// A number below `bound`, from the high bits of `random`; none where there is no such number.
fn below(bound: u64, random: u64) -> Option<u64> {
    (bound > 0).then(|| ((u128::from(random) * u128::from(bound)) >> 64) as u64)
}

/// A request target with a path (RFC 9112, section 3.2).
struct Target<'t> {
    /// Scheme and host, of the absolute form.
    origin: &'t [u8],
    path: &'t [u8],
    /// With its `?`, or empty.
    query: &'t [u8],
}

impl<'t> Target<'t> {
    fn parse(target: &'t [u8]) -> Option<Self> {
        let host = if target.starts_with(b"/") { 0 } else { target.windows(3).position(|w| w == b"://")? + 3 };
        let after = &target[host..];
        let path = host + after.iter().position(|b| matches!(b, b'/' | b'?')).unwrap_or(after.len());
        let query = path + target[path..].iter().position(|b| *b == b'?').unwrap_or(target.len() - path);
        Some(Self { origin: &target[..path], path: &target[path..query], query: &target[query..] })
    }
}

/// Appends the path after a change.
fn push_path(out: &mut Vec<u8>, path: &[u8], matched: &PathMatch, change: &PathChange) {
    let start = out.len();
    match change {
        PathChange::Full(full) => push_rooted(out, full),
        PathChange::Prefix(prefix) => match behind(path, matched) {
            // One slash between what replaces and what stays, whoever brought it.
            Some(rest) => {
                push_rooted(out, prefix.trim_end_matches('/'));
                out.extend_from_slice(rest);
            }
            None => out.extend_from_slice(path),
        },
    }
    if out.len() == start {
        out.push(b'/');
    }
}

fn push_rooted(out: &mut Vec<u8>, path: &str) {
    if !path.is_empty() && !path.starts_with('/') {
        out.push(b'/');
    }
    out.extend_from_slice(path.as_bytes());
}

/// What of the path stands behind the prefix that was matched: empty, or with a slash at its beginning. None where no prefix was named.
fn behind<'p>(path: &'p [u8], matched: &PathMatch) -> Option<&'p [u8]> {
    let prefix = match matched {
        PathMatch::Any => "",
        PathMatch::Prefix(prefix) => prefix.trim_end_matches('/'),
        PathMatch::Exact(whole) => return (whole.as_bytes() == path).then_some(&[]),
        PathMatch::Regex(_) | PathMatch::Grpc { .. } => return None,
    };
    path.strip_prefix(prefix.as_bytes()).filter(|rest| rest.is_empty() || rest.starts_with(b"/"))
}

/// The port that a scheme has where none is said.
fn default_port(scheme: &str) -> Option<u16> {
    match scheme {
        "http" => Some(80),
        "https" => Some(443),
        _ => None,
    }
}

/// An authority without its port.
fn host_of(authority: &[u8]) -> &[u8] {
    match authority.iter().rposition(|byte| *byte == b':') {
        Some(colon) if authority[colon + 1..].iter().all(u8::is_ascii_digit) => &authority[..colon],
        _ => authority,
    }
}

#[cfg(test)]
mod tests;
