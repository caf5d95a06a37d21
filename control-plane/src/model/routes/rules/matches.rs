//! What a request must be.

use std::sync::Arc;

use weft_core::traffic::route::{Match, PathMatch, Pattern, StringMatch, ValueMatch};

use super::{Refusal, UNSUPPORTED};
use crate::objects::traffic::{self, GrpcMatch, HttpMatch, is_token};

const METHODS: [&str; 9] = ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"];
/// What Gateway API takes of a path or a service's name.
const MAX_PATH: usize = 1_024;

fn refuse<T>(field: impl Into<String>, message: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal::new(UNSUPPORTED, field, message))
}

fn short(text: &str) -> String {
    text.chars().take(60).collect()
}

fn pattern(text: &str, field: &str) -> Result<Pattern, Refusal> {
    Pattern::new(text).map_err(|e| Refusal::new(UNSUPPORTED, field, format!("no regular expression that can be used: {e}")))
}

pub(super) fn http(m: &HttpMatch, field: &str) -> Result<Match, Refusal> {
    let method = match m.method.as_deref() {
        Some(method) if !METHODS.contains(&method) => {
            return refuse(format!("{field}.method"), format!("{:?} is none of {}", short(method), METHODS.join(", ")));
        }
        other => other.map(Arc::from),
    };
    Ok(Match {
        path: path(m.path.as_ref(), &format!("{field}.path"))?,
        method,
        headers: headers(&m.headers, &format!("{field}.headers"))?,
        query: values(&m.query_params, &format!("{field}.queryParams"))?,
    })
}

fn path(spec: Option<&traffic::PathMatch>, field: &str) -> Result<PathMatch, Refusal> {
    let value = spec.and_then(|p| p.value.as_deref()).unwrap_or("/");
    let inner = format!("{field}.value");
    if value.len() > MAX_PATH {
        return refuse(inner, format!("{} bytes; at most {MAX_PATH} are taken", value.len()));
    }
    let absolute = |value: &str| {
        if value.starts_with('/') { Ok(()) } else { refuse(inner.clone(), format!("{:?} does not begin with /", short(value))) }
    };
    match spec.and_then(|p| p.kind.as_deref()).unwrap_or("PathPrefix") {
        "Exact" => absolute(value).map(|()| PathMatch::Exact(value.into())),
        "PathPrefix" => {
            absolute(value)?;
            let bare = value.trim_end_matches('/');
            Ok(PathMatch::Prefix(if bare.is_empty() { "/".into() } else { bare.into() }))
        }
        "RegularExpression" => Ok(PathMatch::Regex(pattern(value, &inner)?)),
        other => {
            refuse(format!("{field}.type"), format!("{:?} is none of Exact, PathPrefix and RegularExpression", short(other)))
        }
    }
}

fn text(kind: Option<&str>, value: &str, field: &str) -> Result<StringMatch, Refusal> {
    match kind.unwrap_or("Exact") {
        "Exact" => Ok(StringMatch::Exact(value.into())),
        "RegularExpression" => Ok(StringMatch::Regex(pattern(value, field)?)),
        other => refuse(field, format!("type {:?} is neither Exact nor RegularExpression", short(other))),
    }
}

/// Of several entries with one name, the first counts.
fn headers(list: &[traffic::ValueMatch], field: &str) -> Result<Vec<ValueMatch>, Refusal> {
    let mut all = values(list, field)?;
    for (i, one) in all.iter_mut().enumerate() {
        if !is_token(&one.name) {
            return refuse(format!("{field}[{i}].name"), format!("{:?} is no name of a header field", short(&one.name)));
        }
        one.name = one.name.to_ascii_lowercase().into();
    }
    Ok(first_of_each(all))
}

fn first_of_each(all: Vec<ValueMatch>) -> Vec<ValueMatch> {
    let mut kept: Vec<ValueMatch> = Vec::with_capacity(all.len());
    for one in all {
        if !kept.iter().any(|k| k.name == one.name) {
            kept.push(one);
        }
    }
    kept
}

fn values(list: &[traffic::ValueMatch], field: &str) -> Result<Vec<ValueMatch>, Refusal> {
    let mut all = Vec::with_capacity(list.len());
    for (i, m) in list.iter().enumerate() {
        if m.name.is_empty() {
            return refuse(format!("{field}[{i}].name"), "missing");
        }
        let value = text(m.kind.as_deref(), &m.value, &format!("{field}[{i}].value"))?;
        all.push(ValueMatch { name: m.name.as_str().into(), value });
    }
    // Names of header fields are compared anew once they are in lower case.
    Ok(first_of_each(all))
}

pub(super) fn grpc(m: &GrpcMatch, field: &str) -> Result<Match, Refusal> {
    let headers = headers(&m.headers, &format!("{field}.headers"))?;
    let Some(method) = &m.method else { return Ok(Match { headers, ..Match::default() }) };
    let inner = format!("{field}.method");
    let some = |value: Option<&String>, name: &str| {
        let value = value.filter(|v| !v.is_empty());
        if value.is_some_and(|v| v.len() > MAX_PATH) {
            return refuse(format!("{inner}.{name}"), format!("more than {MAX_PATH} bytes"));
        }
        value.map(|v| text(method.kind.as_deref(), v, &format!("{inner}.{name}"))).transpose()
    };
    let (service, method) = (some(method.service.as_ref(), "service")?, some(method.method.as_ref(), "method")?);
    if service.is_none() && method.is_none() {
        return refuse(inner, "a service or a method must be said");
    }
    Ok(Match { path: PathMatch::Grpc { service, method }, headers, ..Match::default() })
}

/// A host name in lower case; where `wildcard`, the first label may be `*`.
pub(super) fn hostname(host: &str, wildcard: bool, field: &str) -> Result<(), Refusal> {
    let bare = if wildcard { host.strip_prefix("*.").unwrap_or(host) } else { host };
    let label = |l: &str| {
        !l.is_empty()
            && l.len() <= 63
            && !l.starts_with('-')
            && !l.ends_with('-')
            && l.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
    };
    if bare.len() > 253 || !bare.split('.').all(label) {
        return refuse(field, format!("{:?} is no host name in lower case", short(host)));
    }
    if bare.parse::<std::net::IpAddr>().is_ok() {
        return refuse(field, format!("{:?} is an address, not a host name", short(host)));
    }
    Ok(())
}
