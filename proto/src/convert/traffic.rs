//! Routes and traffic policies. Times are nanoseconds on the wire.

mod policy;
mod route;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use weft_core::traffic::route::{Pattern, Session, SessionKind, StringMatch, ValueMatch};

use super::WireError;
use crate::v1;

pub(super) use route::route_kind;
pub use route::{routes_from, routes_to};

/// Longer than any time that is meant: 584 years.
fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

fn maybe_nanos(time: Option<Duration>) -> Option<u64> {
    time.map(nanos)
}

fn maybe_time(nanos: Option<u64>) -> Option<Duration> {
    nanos.map(Duration::from_nanos)
}

fn text(maybe: Option<&Arc<str>>) -> String {
    maybe.map(ToString::to_string).unwrap_or_default()
}

fn maybe_text(text: &str) -> Option<Arc<str>> {
    (!text.is_empty()).then(|| text.into())
}

/// A number within bounds.
fn within<T: TryFrom<u32>>(n: u32, range: std::ops::RangeInclusive<u32>, what: &'static str) -> Result<T, WireError> {
    if !range.contains(&n) {
        return Err(WireError::Range(what));
    }
    T::try_from(n).map_err(|_| WireError::Range(what))
}

/// Every one of a list.
pub(super) fn each<'a, W: 'a, N>(list: &'a [W]) -> Result<Vec<N>, WireError>
where
    N: TryFrom<&'a W, Error = WireError>,
{
    list.iter().map(TryInto::try_into).collect()
}

fn some_name(name: &str, what: &'static str) -> Result<Arc<str>, WireError> {
    maybe_text(name).ok_or(WireError::Missing(what))
}

/// The name of a header field: in lower case, as everything that looks for it has it.
pub(super) fn field_name(name: &str) -> Result<Arc<str>, WireError> {
    if name.bytes().any(|b| b.is_ascii_uppercase()) {
        return Err(WireError::Range("the name of a header field (not in lower case)"));
    }
    some_name(name, "the name of a header field")
}

fn header_matches(list: &[v1::ValueMatch]) -> Result<Vec<ValueMatch>, WireError> {
    list.iter().map(|m| field_name(&m.name).and_then(|_| m.try_into())).collect()
}

impl From<&StringMatch> for v1::StringMatch {
    fn from(m: &StringMatch) -> Self {
        use v1::string_match::Kind;
        Self {
            kind: Some(match m {
                StringMatch::Exact(text) => Kind::Exact(text.to_string()),
                StringMatch::Regex(pattern) => Kind::Regex(pattern.as_str().to_owned()),
            }),
        }
    }
}

impl TryFrom<&v1::StringMatch> for StringMatch {
    type Error = WireError;
    fn try_from(m: &v1::StringMatch) -> Result<Self, WireError> {
        use v1::string_match::Kind;
        match &m.kind {
            None => Err(WireError::Missing("kind of match")),
            Some(Kind::Exact(text)) => Ok(Self::Exact(text.as_str().into())),
            Some(Kind::Regex(text)) => Ok(Self::Regex(Pattern::new(text)?)),
        }
    }
}

impl From<&ValueMatch> for v1::ValueMatch {
    fn from(m: &ValueMatch) -> Self {
        Self { name: m.name.to_string(), value: Some((&m.value).into()) }
    }
}

impl TryFrom<&v1::ValueMatch> for ValueMatch {
    type Error = WireError;
    fn try_from(m: &v1::ValueMatch) -> Result<Self, WireError> {
        let value = m.value.as_ref().ok_or(WireError::Missing("value of a match"))?;
        Ok(Self { name: some_name(&m.name, "name of a match")?, value: value.try_into()? })
    }
}

impl From<&Session> for v1::Session {
    fn from(s: &Session) -> Self {
        Self {
            name: s.name.to_string(),
            kind: match s.kind {
                SessionKind::Cookie => v1::SessionKind::Cookie,
                SessionKind::Header => v1::SessionKind::Header,
            }
            .into(),
            absolute_nanos: maybe_nanos(s.absolute),
            idle_nanos: maybe_nanos(s.idle),
            permanent: s.permanent,
        }
    }
}

impl TryFrom<&v1::Session> for Session {
    type Error = WireError;
    fn try_from(s: &v1::Session) -> Result<Self, WireError> {
        let kind = match v1::SessionKind::try_from(s.kind) {
            Ok(v1::SessionKind::Cookie) => SessionKind::Cookie,
            Ok(v1::SessionKind::Header) => SessionKind::Header,
            Ok(v1::SessionKind::Unspecified) | Err(_) => return Err(WireError::Missing("kind of session")),
        };
        Ok(Self {
            name: some_name(&s.name, "name of a session")?,
            kind,
            absolute: maybe_time(s.absolute_nanos),
            idle: maybe_time(s.idle_nanos),
            permanent: s.permanent,
        })
    }
}
