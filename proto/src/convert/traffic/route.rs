//! Routes.

use std::sync::Arc;
use std::time::Duration;

use weft_core::traffic::route::{
    Backend, BackendTarget, Filter, HeaderChange, Match, Mirror, PathChange, PathMatch, Pattern, Redirect, Retry, Rewrite, Route,
    RouteKind, Rule, Timeouts,
};

use super::{each, field_name, header_matches, maybe_nanos, maybe_text, maybe_time, text, within};
use crate::convert::{WireError, port};
use crate::v1;

/// The message for the routes of one service.
pub fn routes_to<'a>(routes: impl IntoIterator<Item = &'a Route>) -> v1::Routes {
    v1::Routes { routes: routes.into_iter().map(Into::into).collect() }
}

/// The routes that a message describes.
pub fn routes_from(message: &v1::Routes) -> Result<Vec<Route>, WireError> {
    each(&message.routes)
}

impl From<RouteKind> for v1::RouteKind {
    fn from(kind: RouteKind) -> Self {
        match kind {
            RouteKind::Http => Self::Http,
            RouteKind::Grpc => Self::Grpc,
            RouteKind::Tls => Self::Tls,
            RouteKind::Tcp => Self::Tcp,
        }
    }
}

pub(in crate::convert) fn route_kind(n: i32) -> Result<RouteKind, WireError> {
    match v1::RouteKind::try_from(n) {
        Ok(v1::RouteKind::Http) => Ok(RouteKind::Http),
        Ok(v1::RouteKind::Grpc) => Ok(RouteKind::Grpc),
        Ok(v1::RouteKind::Tls) => Ok(RouteKind::Tls),
        Ok(v1::RouteKind::Tcp) => Ok(RouteKind::Tcp),
        Ok(v1::RouteKind::Unspecified) | Err(_) => Err(WireError::Missing("kind of route")),
    }
}

impl From<&Route> for v1::Route {
    fn from(r: &Route) -> Self {
        Self {
            kind: v1::RouteKind::from(r.kind).into(),
            id: Some((&r.id).into()),
            created: r.created,
            ports: r.ports.iter().map(|p| u32::from(*p)).collect(),
            hostnames: r.hostnames.iter().map(ToString::to_string).collect(),
            rules: r.rules.iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<&v1::Route> for Route {
    type Error = WireError;
    fn try_from(r: &v1::Route) -> Result<Self, WireError> {
        let kind = route_kind(r.kind)?;
        if r.rules.is_empty() {
            return Err(WireError::Missing("rules of a route"));
        }
        Ok(Self {
            kind,
            id: r.id.as_ref().ok_or(WireError::Missing("id of a route"))?.try_into()?,
            created: r.created,
            ports: r.ports.iter().map(|p| port(*p, "port of a route")).collect::<Result<_, _>>()?,
            hostnames: r.hostnames.iter().map(|h| h.as_str().into()).collect(),
            rules: each(&r.rules)?,
        })
    }
}

impl From<&Rule> for v1::Rule {
    fn from(r: &Rule) -> Self {
        let bounded = r.timeouts != Timeouts::default();
        Self {
            name: text(r.name.as_ref()),
            matches: r.matches.iter().map(Into::into).collect(),
            filters: r.filters.iter().map(Into::into).collect(),
            backends: r.backends.iter().map(Into::into).collect(),
            timeouts: bounded.then(|| v1::RouteTimeouts {
                request_nanos: maybe_nanos(r.timeouts.request),
                backend_request_nanos: maybe_nanos(r.timeouts.backend_request),
            }),
            retry: r.retry.as_ref().map(Into::into),
            session: r.session.as_ref().map(Into::into),
        }
    }
}

impl TryFrom<&v1::Rule> for Rule {
    type Error = WireError;
    fn try_from(r: &v1::Rule) -> Result<Self, WireError> {
        if r.matches.is_empty() {
            return Err(WireError::Missing("matches of a rule"));
        }
        let bounds = r.timeouts.unwrap_or_default();
        Ok(Self {
            name: maybe_text(&r.name),
            matches: each(&r.matches)?,
            filters: each(&r.filters)?,
            backends: each(&r.backends)?,
            timeouts: Timeouts {
                request: maybe_time(bounds.request_nanos),
                backend_request: maybe_time(bounds.backend_request_nanos),
            },
            retry: r.retry.as_ref().map(TryInto::try_into).transpose()?,
            session: r.session.as_ref().map(TryInto::try_into).transpose()?,
        })
    }
}

impl From<&Match> for v1::Match {
    fn from(m: &Match) -> Self {
        use v1::path_match::Kind;
        let path = match &m.path {
            PathMatch::Any => None,
            PathMatch::Exact(path) => Some(Kind::Exact(path.to_string())),
            PathMatch::Prefix(path) => Some(Kind::Prefix(path.to_string())),
            PathMatch::Regex(pattern) => Some(Kind::Regex(pattern.as_str().to_owned())),
            PathMatch::Grpc { service, method } => Some(Kind::Grpc(v1::GrpcMatch {
                service: service.as_ref().map(Into::into),
                method: method.as_ref().map(Into::into),
            })),
        };
        Self {
            path: path.map(|kind| v1::PathMatch { kind: Some(kind) }),
            method: text(m.method.as_ref()),
            headers: m.headers.iter().map(Into::into).collect(),
            query: m.query.iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<&v1::Match> for Match {
    type Error = WireError;
    fn try_from(m: &v1::Match) -> Result<Self, WireError> {
        Ok(Self {
            path: m.path.as_ref().map_or(Ok(PathMatch::Any), TryInto::try_into)?,
            method: maybe_text(&m.method),
            headers: header_matches(&m.headers)?,
            query: each(&m.query)?,
        })
    }
}

impl TryFrom<&v1::PathMatch> for PathMatch {
    type Error = WireError;
    fn try_from(m: &v1::PathMatch) -> Result<Self, WireError> {
        use v1::path_match::Kind;
        match &m.kind {
            None => Err(WireError::Missing("kind of path match")),
            Some(Kind::Exact(path)) => Ok(Self::Exact(path.as_str().into())),
            Some(Kind::Prefix(path)) if path.starts_with('/') && (path == "/" || !path.ends_with('/')) => {
                Ok(Self::Prefix(path.as_str().into()))
            }
            Some(Kind::Prefix(_)) => Err(WireError::Range("prefix of a path")),
            Some(Kind::Regex(text)) => Ok(Self::Regex(Pattern::new(text)?)),
            Some(Kind::Grpc(m)) => Ok(Self::Grpc {
                service: m.service.as_ref().map(TryInto::try_into).transpose()?,
                method: m.method.as_ref().map(TryInto::try_into).transpose()?,
            }),
        }
    }
}

impl From<&Backend> for v1::Backend {
    fn from(b: &Backend) -> Self {
        Self { target: Some((&b.target).into()), weight: b.weight, filters: b.filters.iter().map(Into::into).collect() }
    }
}

impl TryFrom<&v1::Backend> for Backend {
    type Error = WireError;
    fn try_from(b: &v1::Backend) -> Result<Self, WireError> {
        let target = b.target.as_ref().ok_or(WireError::Missing("target of a backend"))?;
        Ok(Self { target: target.try_into()?, weight: b.weight, filters: each(&b.filters)? })
    }
}

impl From<&BackendTarget> for v1::Target {
    fn from(t: &BackendTarget) -> Self {
        use v1::target::Kind;
        Self {
            kind: Some(match t {
                BackendTarget::Service { id, port } => {
                    Kind::Service(v1::ServiceTarget { id: Some(id.into()), port: u32::from(*port) })
                }
                BackendTarget::Unresolved(why) => Kind::Unresolved(why.to_string()),
            }),
        }
    }
}

impl TryFrom<&v1::Target> for BackendTarget {
    type Error = WireError;
    fn try_from(t: &v1::Target) -> Result<Self, WireError> {
        use v1::target::Kind;
        match &t.kind {
            None => Err(WireError::Missing("kind of target")),
            Some(Kind::Unresolved(why)) => Ok(Self::Unresolved(why.as_str().into())),
            Some(Kind::Service(s)) => Ok(Self::Service {
                id: s.id.as_ref().ok_or(WireError::Missing("service of a target"))?.try_into()?,
                port: port(s.port, "port of a target")?,
            }),
        }
    }
}

impl From<&Filter> for v1::Filter {
    fn from(f: &Filter) -> Self {
        use v1::filter::Kind;
        Self {
            kind: Some(match f {
                Filter::RequestHeaders(change) => Kind::RequestHeaders(change.into()),
                Filter::ResponseHeaders(change) => Kind::ResponseHeaders(change.into()),
                Filter::Redirect(r) => Kind::Redirect(v1::Redirect {
                    scheme: text(r.scheme.as_ref()),
                    hostname: text(r.hostname.as_ref()),
                    path: r.path.as_ref().map(Into::into),
                    port: r.port.map_or(0, u32::from),
                    status: u32::from(r.status),
                }),
                Filter::Rewrite(r) => {
                    Kind::Rewrite(v1::Rewrite { hostname: text(r.hostname.as_ref()), path: r.path.as_ref().map(Into::into) })
                }
                Filter::Mirror(m) => Kind::Mirror(v1::Mirror {
                    target: Some((&m.target).into()),
                    numerator: m.numerator,
                    denominator: m.denominator,
                }),
            }),
        }
    }
}

impl TryFrom<&v1::Filter> for Filter {
    type Error = WireError;
    fn try_from(f: &v1::Filter) -> Result<Self, WireError> {
        use v1::filter::Kind;
        match &f.kind {
            None => Err(WireError::Missing("kind of filter")),
            Some(Kind::RequestHeaders(change)) => Ok(Self::RequestHeaders(change.try_into()?)),
            Some(Kind::ResponseHeaders(change)) => Ok(Self::ResponseHeaders(change.try_into()?)),
            Some(Kind::Redirect(r)) => redirect(r).map(Self::Redirect),
            Some(Kind::Rewrite(r)) => Ok(Self::Rewrite(Rewrite {
                hostname: maybe_text(&r.hostname),
                path: r.path.as_ref().map(TryInto::try_into).transpose()?,
            })),
            Some(Kind::Mirror(m)) => Ok(Self::Mirror(Mirror {
                target: m.target.as_ref().ok_or(WireError::Missing("target of a mirror"))?.try_into()?,
                numerator: m.numerator,
                denominator: within(m.denominator, 1..=u32::MAX, "denominator of a mirror")?,
            })),
        }
    }
}

fn redirect(r: &v1::Redirect) -> Result<Redirect, WireError> {
    Ok(Redirect {
        scheme: maybe_text(&r.scheme),
        hostname: maybe_text(&r.hostname),
        path: r.path.as_ref().map(TryInto::try_into).transpose()?,
        port: if r.port == 0 { None } else { Some(port(r.port, "port of a redirect")?) },
        status: match r.status {
            301 | 302 | 303 | 307 | 308 => r.status as u16,
            _ => return Err(WireError::Range("status of a redirect")),
        },
    })
}

impl From<&PathChange> for v1::PathChange {
    fn from(c: &PathChange) -> Self {
        use v1::path_change::Kind;
        Self {
            kind: Some(match c {
                PathChange::Full(path) => Kind::Full(path.to_string()),
                PathChange::Prefix(path) => Kind::Prefix(path.to_string()),
            }),
        }
    }
}

impl TryFrom<&v1::PathChange> for PathChange {
    type Error = WireError;
    fn try_from(c: &v1::PathChange) -> Result<Self, WireError> {
        use v1::path_change::Kind;
        match &c.kind {
            None => Err(WireError::Missing("kind of path change")),
            Some(Kind::Full(path)) => Ok(Self::Full(path.as_str().into())),
            Some(Kind::Prefix(path)) => Ok(Self::Prefix(path.as_str().into())),
        }
    }
}

impl From<&HeaderChange> for v1::HeaderChange {
    fn from(c: &HeaderChange) -> Self {
        let fields = |list: &[(Arc<str>, Arc<str>)]| {
            list.iter().map(|(n, v)| v1::HeaderField { name: n.to_string(), value: v.to_string() }).collect()
        };
        Self { set: fields(&c.set), add: fields(&c.add), remove: c.remove.iter().map(ToString::to_string).collect() }
    }
}

impl TryFrom<&v1::HeaderChange> for HeaderChange {
    type Error = WireError;
    fn try_from(c: &v1::HeaderChange) -> Result<Self, WireError> {
        let fields = |list: &[v1::HeaderField]| {
            list.iter().map(|f| Ok((field_name(&f.name)?, f.value.as_str().into()))).collect::<Result<_, WireError>>()
        };
        Ok(Self {
            set: fields(&c.set)?,
            add: fields(&c.add)?,
            remove: c.remove.iter().map(|n| field_name(n)).collect::<Result<_, _>>()?,
        })
    }
}

impl From<&Retry> for v1::Retry {
    fn from(r: &Retry) -> Self {
        Self {
            codes: r.codes.iter().map(|c| u32::from(*c)).collect(),
            grpc_codes: r.grpc_codes.iter().map(|c| u32::from(*c)).collect(),
            attempts: r.attempts,
            backoff_nanos: maybe_nanos(r.backoff),
            any_method: r.any_method,
        }
    }
}

impl TryFrom<&v1::Retry> for Retry {
    type Error = WireError;
    fn try_from(r: &v1::Retry) -> Result<Self, WireError> {
        Ok(Self {
            codes: r.codes.iter().map(|c| within(*c, 400..=599, "code to retry")).collect::<Result<_, _>>()?,
            grpc_codes: r.grpc_codes.iter().map(|c| within(*c, 1..=16, "gRPC code to retry")).collect::<Result<_, _>>()?,
            attempts: r.attempts,
            backoff: r.backoff_nanos.map(Duration::from_nanos),
            any_method: r.any_method,
        })
    }
}
