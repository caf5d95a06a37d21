//! The order of precedence. Smaller keys come first.

use std::cmp::Reverse;

use crate::traffic::route::{Match, PathMatch, Route, StringMatch};

/// The older route first, then by alphabet of `NAMESPACE/NAME`. Of that text, not of its parts: `a-b/x` stands before `a/x`.
pub(super) fn age(route: &Route) -> (i64, String) {
    (route.created, route.id.to_string())
}

/// How a path is matched, of an `HTTPRoute`.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum PathClass {
    Exact,
    Regex,
    Prefix,
}

/// Path, method, header fields, query parameters.
pub(super) fn http(m: &Match) -> (PathClass, Reverse<usize>, Reverse<bool>, Reverse<usize>, Reverse<usize>) {
    let (class, characters) = match &m.path {
        PathMatch::Exact(path) => (PathClass::Exact, path.chars().count()),
        PathMatch::Regex(pattern) => (PathClass::Regex, pattern.as_str().chars().count()),
        PathMatch::Prefix(prefix) => (PathClass::Prefix, prefix.trim_end_matches('/').chars().count().max(1)),
        // No path said is the prefix `/`.
        PathMatch::Any | PathMatch::Grpc { .. } => (PathClass::Prefix, 1),
    };
    (class, Reverse(characters), Reverse(m.method.is_some()), Reverse(m.headers.len()), Reverse(m.query.len()))
}

/// How a part of a gRPC path is matched, and with how many characters.
type Part = (Reverse<u8>, Reverse<usize>);

/// Service, method, header fields.
pub(super) fn grpc(m: &Match) -> (Part, Part, Reverse<usize>) {
    let (service, method) = match &m.path {
        PathMatch::Grpc { service, method } => (service.as_ref(), method.as_ref()),
        _ => (None, None),
    };
    (part(service), part(method), Reverse(m.headers.len()))
}

fn part(text: Option<&StringMatch>) -> Part {
    let (class, characters) = match text {
        Some(StringMatch::Exact(text)) => (2, text.chars().count()),
        Some(StringMatch::Regex(pattern)) => (1, pattern.as_str().chars().count()),
        None => (0, 0),
    };
    (Reverse(class), Reverse(characters))
}
