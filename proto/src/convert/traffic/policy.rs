//! Traffic policies and rate limits.

use std::time::Duration;

use weft_core::traffic::policy::{
    Abort, Balancer, FailureKind, Fault, HashKey, Limits, Outlier, RateLimit, RateScope, RetryBudget, Tcp, Timeouts,
    TrafficPolicy, ZonePreference,
};

use super::{each, field_name, header_matches, maybe_nanos, maybe_text, maybe_time, nanos, some_name, text, within};
use crate::convert::{WireError, port};
use crate::v1;

impl From<&TrafficPolicy> for v1::TrafficPolicy {
    fn from(p: &TrafficPolicy) -> Self {
        Self {
            balancer: Some((&p.balancer).into()),
            zone: Some(v1::ZonePreference { prefer: p.zone.prefer, spill_below: u32::from(p.zone.spill_below) }),
            slow_start_nanos: maybe_nanos(p.slow_start),
            outlier: p.outlier.as_ref().map(Into::into),
            limits: Some(v1::Limits {
                connections: p.limits.connections,
                connections_per_endpoint: p.limits.connections_per_endpoint,
                requests: p.limits.requests,
                requests_per_endpoint: p.limits.requests_per_endpoint,
                pending: p.limits.pending,
            }),
            faults: p.faults.iter().map(Into::into).collect(),
            timeouts: Some(v1::PolicyTimeouts {
                connect_nanos: maybe_nanos(p.timeouts.connect),
                idle_nanos: maybe_nanos(p.timeouts.idle),
                request_nanos: maybe_nanos(p.timeouts.request),
            }),
            tcp: Some(v1::Tcp {
                keepalive_idle_nanos: maybe_nanos(p.tcp.keepalive_idle),
                keepalive_interval_nanos: maybe_nanos(p.tcp.keepalive_interval),
                keepalive_count: p.tcp.keepalive_count,
                user_timeout_nanos: maybe_nanos(p.tcp.user_timeout),
                congestion: text(p.tcp.congestion.as_ref()),
            }),
            retry_budget: Some(v1::RetryBudget {
                percent: u32::from(p.retry_budget.percent),
                interval_nanos: nanos(p.retry_budget.interval),
                min_per_second: p.retry_budget.min_per_second,
            }),
            session: p.session.as_ref().map(Into::into),
            rates: p.rates.iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<&v1::TrafficPolicy> for TrafficPolicy {
    type Error = WireError;
    fn try_from(p: &v1::TrafficPolicy) -> Result<Self, WireError> {
        let zone = p.zone.as_ref().ok_or(WireError::Missing("zone preference"))?;
        let budget = p.retry_budget.as_ref().ok_or(WireError::Missing("retry budget"))?;
        let limits = p.limits.unwrap_or_default();
        let timeouts = p.timeouts.unwrap_or_default();
        let tcp = p.tcp.clone().unwrap_or_default();
        Ok(Self {
            balancer: p.balancer.as_ref().ok_or(WireError::Missing("balancer"))?.try_into()?,
            zone: ZonePreference {
                prefer: zone.prefer,
                spill_below: within(zone.spill_below, 1..=100, "share of a zone's endpoints")?,
            },
            slow_start: maybe_time(p.slow_start_nanos),
            outlier: p.outlier.as_ref().map(TryInto::try_into).transpose()?,
            limits: Limits {
                connections: limits.connections,
                connections_per_endpoint: limits.connections_per_endpoint,
                requests: limits.requests,
                requests_per_endpoint: limits.requests_per_endpoint,
                pending: limits.pending,
            },
            rates: each(&p.rates)?,
            faults: each(&p.faults)?,
            timeouts: Timeouts {
                connect: maybe_time(timeouts.connect_nanos),
                idle: maybe_time(timeouts.idle_nanos),
                request: maybe_time(timeouts.request_nanos),
            },
            tcp: Tcp {
                keepalive_idle: maybe_time(tcp.keepalive_idle_nanos),
                keepalive_interval: maybe_time(tcp.keepalive_interval_nanos),
                keepalive_count: tcp.keepalive_count,
                user_timeout: maybe_time(tcp.user_timeout_nanos),
                congestion: maybe_text(&tcp.congestion),
            },
            retry_budget: RetryBudget {
                percent: within(budget.percent, 0..=100, "retry budget")?,
                interval: some_time(budget.interval_nanos, "interval of the retry budget")?,
                min_per_second: budget.min_per_second,
            },
            session: p.session.as_ref().map(TryInto::try_into).transpose()?,
        })
    }
}

/// A time that is divided by.
fn some_time(nanos: u64, what: &'static str) -> Result<Duration, WireError> {
    if nanos == 0 { Err(WireError::Range(what)) } else { Ok(Duration::from_nanos(nanos)) }
}

impl From<&Balancer> for v1::Balancer {
    fn from(b: &Balancer) -> Self {
        let (kind, hash) = match b {
            Balancer::P2cEwma => (v1::BalancerKind::P2cEwma, None),
            Balancer::LeastRequest => (v1::BalancerKind::LeastRequest, None),
            Balancer::RoundRobin => (v1::BalancerKind::RoundRobin, None),
            Balancer::Random => (v1::BalancerKind::Random, None),
            Balancer::RingHash(key) => (v1::BalancerKind::RingHash, Some(key)),
            Balancer::Maglev(key) => (v1::BalancerKind::Maglev, Some(key)),
        };
        Self { kind: kind.into(), hash: hash.map(Into::into) }
    }
}

impl TryFrom<&v1::Balancer> for Balancer {
    type Error = WireError;
    fn try_from(b: &v1::Balancer) -> Result<Self, WireError> {
        use v1::BalancerKind as Kind;
        let key = || b.hash.as_ref().ok_or(WireError::Missing("what is hashed"))?.try_into();
        match Kind::try_from(b.kind) {
            Ok(Kind::P2cEwma) => Ok(Self::P2cEwma),
            Ok(Kind::LeastRequest) => Ok(Self::LeastRequest),
            Ok(Kind::RoundRobin) => Ok(Self::RoundRobin),
            Ok(Kind::Random) => Ok(Self::Random),
            Ok(Kind::RingHash) => Ok(Self::RingHash(key()?)),
            Ok(Kind::Maglev) => Ok(Self::Maglev(key()?)),
            Ok(Kind::Unspecified) | Err(_) => Err(WireError::Missing("kind of balancer")),
        }
    }
}

impl From<&HashKey> for v1::HashKey {
    fn from(k: &HashKey) -> Self {
        use v1::hash_key::Kind;
        Self {
            kind: Some(match k {
                HashKey::Header(name) => Kind::Header(name.to_string()),
                HashKey::Cookie { name, ttl } => {
                    Kind::Cookie(v1::CookieKey { name: name.to_string(), ttl_nanos: maybe_nanos(*ttl) })
                }
                HashKey::Query(name) => Kind::Query(name.to_string()),
                HashKey::Source => Kind::Source(v1::SourceKey {}),
            }),
        }
    }
}

impl TryFrom<&v1::HashKey> for HashKey {
    type Error = WireError;
    fn try_from(k: &v1::HashKey) -> Result<Self, WireError> {
        use v1::hash_key::Kind;
        Ok(match &k.kind {
            None => return Err(WireError::Missing("kind of what is hashed")),
            Some(Kind::Header(name)) => Self::Header(field_name(name)?),
            Some(Kind::Cookie(c)) => Self::Cookie { name: some_name(&c.name, "name of a cookie")?, ttl: maybe_time(c.ttl_nanos) },
            Some(Kind::Query(name)) => Self::Query(some_name(name, "name of a query parameter")?),
            Some(Kind::Source(v1::SourceKey {})) => Self::Source,
        })
    }
}

impl From<&Outlier> for v1::Outlier {
    fn from(o: &Outlier) -> Self {
        Self {
            consecutive_failures: o.consecutive_failures,
            failures: match o.failures {
                FailureKind::Gateway => v1::FailureKind::Gateway,
                FailureKind::Any5xx => v1::FailureKind::Any5xx,
            }
            .into(),
            grpc_codes: o.grpc_codes.iter().map(|c| u32::from(*c)).collect(),
            success_rate: u32::from(o.success_rate),
            minimum_volume: o.minimum_volume,
            window_nanos: nanos(o.window),
            base_ejection_nanos: nanos(o.base_ejection),
            max_ejection_nanos: nanos(o.max_ejection),
            max_ejected: u32::from(o.max_ejected),
        }
    }
}

impl TryFrom<&v1::Outlier> for Outlier {
    type Error = WireError;
    fn try_from(o: &v1::Outlier) -> Result<Self, WireError> {
        let failures = match v1::FailureKind::try_from(o.failures) {
            Ok(v1::FailureKind::Gateway) => FailureKind::Gateway,
            Ok(v1::FailureKind::Any5xx) => FailureKind::Any5xx,
            Ok(v1::FailureKind::Unspecified) | Err(_) => return Err(WireError::Missing("kind of failure")),
        };
        Ok(Self {
            consecutive_failures: o.consecutive_failures,
            failures,
            grpc_codes: o.grpc_codes.iter().map(|c| within(*c, 1..=16, "gRPC code")).collect::<Result<_, _>>()?,
            success_rate: within(o.success_rate, 0..=100, "success rate")?,
            minimum_volume: o.minimum_volume,
            window: some_time(o.window_nanos, "window of ejection")?,
            base_ejection: Duration::from_nanos(o.base_ejection_nanos),
            max_ejection: Duration::from_nanos(o.max_ejection_nanos),
            max_ejected: within(o.max_ejected, 1..=100, "share of ejected endpoints")?,
        })
    }
}

impl From<&RateLimit> for v1::RateLimit {
    fn from(r: &RateLimit) -> Self {
        Self {
            name: r.name.to_string(),
            by: match r.by {
                RateScope::All => v1::RateScope::All,
                RateScope::Caller => v1::RateScope::Caller,
            }
            .into(),
            principals: r.principals.iter().map(ToString::to_string).collect(),
            requests: r.requests,
            per_nanos: nanos(r.per),
            burst: r.burst,
            headers: r.headers.iter().map(Into::into).collect(),
            ports: r.ports.iter().map(|p| u32::from(*p)).collect(),
        }
    }
}

impl TryFrom<&v1::RateLimit> for RateLimit {
    type Error = WireError;
    fn try_from(r: &v1::RateLimit) -> Result<Self, WireError> {
        let by = match v1::RateScope::try_from(r.by) {
            Ok(v1::RateScope::All) => RateScope::All,
            Ok(v1::RateScope::Caller) => RateScope::Caller,
            Ok(v1::RateScope::Unspecified) | Err(_) => return Err(WireError::Missing("scope of a rate limit")),
        };
        Ok(Self {
            name: r.name.as_str().into(),
            by,
            principals: r.principals.iter().map(|p| p.parse()).collect::<Result<_, _>>()?,
            requests: within(r.requests, 1..=u32::MAX, "requests of a rate limit")?,
            per: some_time(r.per_nanos, "time of a rate limit")?,
            burst: within(r.burst, 1..=u32::MAX, "burst of a rate limit")?,
            headers: header_matches(&r.headers)?,
            ports: r.ports.iter().map(|p| port(*p, "port of a rate limit")).collect::<Result<_, _>>()?,
        })
    }
}

impl From<&Fault> for v1::Fault {
    fn from(f: &Fault) -> Self {
        use v1::abort::Kind;
        let abort = f.abort.map(|a| match a {
            Abort::Http(status) => Kind::Http(u32::from(status)),
            Abort::Grpc(code) => Kind::Grpc(u32::from(code)),
            Abort::Reset => Kind::Reset(v1::AbortReset {}),
        });
        Self {
            headers: f.headers.iter().map(Into::into).collect(),
            millionths: f.millionths,
            delay_nanos: maybe_nanos(f.delay),
            abort: abort.map(|kind| v1::Abort { kind: Some(kind) }),
        }
    }
}

impl TryFrom<&v1::Fault> for Fault {
    type Error = WireError;
    fn try_from(f: &v1::Fault) -> Result<Self, WireError> {
        Ok(Self {
            headers: header_matches(&f.headers)?,
            millionths: within(f.millionths, 0..=1_000_000, "share of a fault")?,
            delay: maybe_time(f.delay_nanos),
            abort: f.abort.as_ref().map(TryInto::try_into).transpose()?,
        })
    }
}

impl TryFrom<&v1::Abort> for Abort {
    type Error = WireError;
    fn try_from(a: &v1::Abort) -> Result<Self, WireError> {
        use v1::abort::Kind;
        Ok(match a.kind {
            None => return Err(WireError::Missing("kind of abort")),
            Some(Kind::Http(status)) => Self::Http(within(status, 200..=599, "status of an abort")?),
            Some(Kind::Grpc(code)) => Self::Grpc(within(code, 1..=16, "gRPC code of an abort")?),
            Some(Kind::Reset(v1::AbortReset {})) => Self::Reset,
        })
    }
}
