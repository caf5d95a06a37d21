//! `TrafficPolicy` (`weft.dev/v1alpha1`) and `XBackendTrafficPolicy`, to the nouns of `weft_core`. What cannot be honoured is refused with its field.

use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use weft_core::service::ObjectRef;
use weft_core::traffic::policy::{
    Abort, Balancer, FailureKind, Fault, HashKey, Limits, Outlier, RateLimit, RateScope, RetryBudget, Tcp, Timeouts,
    TrafficPolicy, ZonePreference,
};
use weft_core::traffic::route::{Pattern, Session, SessionKind, StringMatch, ValueMatch};

use super::Time;
use super::route::{Fraction, SessionPersistence};

/// A policy of either kind, read and checked.
#[derive(Clone, PartialEq, Debug)]
pub struct PolicyObject {
    pub id: ObjectRef,
    /// Seconds since the Unix epoch; 0 where nobody says.
    pub created: i64,
    /// 0 where nobody counts.
    pub generation: i64,
    pub targets: Vec<TargetRef>,
    /// Without what `retry_budget` and `policy.session` of the other kind add.
    pub policy: TrafficPolicy,
    /// Where the policy says something of it.
    pub retry_budget: Option<RetryBudget>,
}

/// A field that cannot be honoured: its path below `spec`, and what is wrong.
pub type Wrong = (String, String);

fn wrong<T>(field: impl Into<String>, message: impl Into<String>) -> Result<T, Wrong> {
    Err((field.into(), message.into()))
}

/// What a policy is for, in its own namespace.
#[derive(Deserialize, Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[serde(deny_unknown_fields)]
pub struct TargetRef {
    /// Default: the core group, written as "".
    #[serde(default)]
    pub group: String,
    /// Default: `Service`.
    #[serde(default = "service")]
    pub kind: String,
    pub name: String,
}

fn service() -> String {
    "Service".into()
}

impl TargetRef {
    /// The Service that it names; none where it is of another kind.
    pub fn service(&self, policy: &ObjectRef) -> Option<ObjectRef> {
        let is_service = self.group.is_empty() && self.kind == "Service";
        let name = self.name.parse().ok().filter(|_| is_service)?;
        Some(ObjectRef { namespace: policy.namespace.clone(), name })
    }
}

/// `spec` of a `TrafficPolicy`. Times are durations of Gateway API (`10s`, `500ms`, `1h30m`). A field that is not known is an error.
#[derive(Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TrafficPolicySpec {
    /// The Service, in the policy's own namespace. Required. Of two policies for one Service the older is in force.
    pub target_ref: TargetRef,
    /// How an endpoint is chosen. Default: `type: P2CEWMA`.
    balancer: Option<BalancerSpec>,
    /// Whether the caller's own zone comes first. Default: no.
    zone: Option<ZoneSpec>,
    /// A time: a new endpoint gets its full share only after so long. Default: at once.
    slow_start: Option<Time>,
    /// When an endpoint is ejected. Default: never.
    outlier: Option<OutlierSpec>,
    /// How much each caller's sidecar gives the service at once. Default: no limits.
    limits: Option<LimitsSpec>,
    /// How many requests each of the service's own sidecars takes, at most 16. Default: none.
    #[serde(default)]
    rates: Vec<RateSpec>,
    /// Faults that callers' sidecars make on purpose, at most 16. Default: none.
    #[serde(default)]
    faults: Vec<FaultSpec>,
    /// How long things may take. Default: the sidecar's own bounds.
    timeouts: Option<TimeoutsSpec>,
    /// How TCP connections to the service are kept. Default: as the machine has it.
    tcp: Option<TcpSpec>,
}

#[derive(Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct BalancerSpec {
    /// Default: `P2CEWMA`.
    #[serde(rename = "type", default)]
    kind: BalancerType,
    /// Required for the type `RingHash`, and only there.
    ring_hash: Option<HashSpec>,
    /// Required for the type `Maglev`, and only there.
    maglev: Option<HashSpec>,
}

#[derive(Deserialize, Clone, Copy, PartialEq, Eq, Debug, Default)]
enum BalancerType {
    #[default]
    #[serde(rename = "P2CEWMA")]
    P2cEwma,
    LeastRequest,
    RoundRobin,
    Random,
    RingHash,
    Maglev,
}

/// Exactly one field.
#[derive(Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(deny_unknown_fields)]
struct HashSpec {
    /// The name of a header field.
    header: Option<String>,
    cookie: Option<CookieSpec>,
    /// The name of a query parameter.
    query: Option<String>,
    /// The caller's address; written as `{}`.
    source: Option<Empty>,
}

#[derive(Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(deny_unknown_fields)]
struct CookieSpec {
    name: String,
    /// A time: where the request has none, the answer sets one that lives so long. Default: it sets none.
    ttl: Option<Time>,
}

#[derive(Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
#[serde(deny_unknown_fields)]
struct Empty {}

#[derive(Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ZoneSpec {
    /// Default: false.
    #[serde(default)]
    prefer: bool,
    /// Percent of the zone's endpoints, 1 to 100. Default: 70.
    spill_below: Option<u32>,
}

#[derive(Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct OutlierSpec {
    /// In a row; 0: not by this. Default: 5.
    consecutive_failures: Option<u32>,
    /// `Gateway` or `Any5xx`. Default: `Gateway`.
    failures: Option<FailuresSpec>,
    /// 1 to 16. Default: 2, 4, 13, 14, 15.
    grpc_codes: Option<Vec<u8>>,
    /// Percent, 0 to 100; 0: not by this. Default: 0.
    success_rate: Option<u32>,
    /// Answers. Default: 20.
    minimum_volume: Option<u32>,
    /// A time. Default: 10s.
    window: Option<Time>,
    /// A time. Default: 10s.
    base_ejection: Option<Time>,
    /// A time. Default: 5m.
    max_ejection: Option<Time>,
    /// Percent of the endpoints, 1 to 100. Default: 50.
    max_ejected: Option<u32>,
}

#[derive(Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
enum FailuresSpec {
    Gateway,
    Any5xx,
}

/// Each at least 1; default none.
#[derive(Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct LimitsSpec {
    /// Opaque connections to the service.
    connections: Option<u32>,
    /// Opaque connections to one endpoint.
    connections_per_endpoint: Option<u32>,
    /// Requests in flight to the service.
    requests: Option<u32>,
    /// Requests in flight to one endpoint.
    requests_per_endpoint: Option<u32>,
    /// Requests that wait for a connection to open.
    pending: Option<u32>,
}

#[derive(Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RateSpec {
    /// For metrics; each once.
    name: String,
    /// `All` or `Caller`: who shares a bucket. Default: `All`.
    by: Option<ByWhom>,
    /// SPIFFE IDs, at most 64. Default: all callers.
    #[serde(default)]
    principals: Vec<String>,
    /// In each `per`; at least 1. Required.
    requests: u32,
    /// A time. Default: 1s.
    per: Option<Time>,
    /// At once; at least 1. Default: as many as `requests`.
    burst: Option<u32>,
    /// All of them, at most 16. Default: any request.
    #[serde(default)]
    headers: Vec<HeaderSpec>,
    /// Ports of the service. Default: all.
    #[serde(default)]
    ports: Vec<u16>,
}

#[derive(Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
enum ByWhom {
    All,
    Caller,
}

#[derive(Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(deny_unknown_fields)]
struct HeaderSpec {
    name: String,
    /// `Exact` or `RegularExpression` (RE2, the whole value). Default: `Exact`.
    #[serde(rename = "type", default)]
    kind: Comparison,
    value: String,
}

#[derive(Deserialize, Clone, Copy, PartialEq, Eq, Debug, Default)]
enum Comparison {
    #[default]
    Exact,
    RegularExpression,
}

/// At least a delay or an abort.
#[derive(Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(deny_unknown_fields)]
struct FaultSpec {
    /// All of them, at most 16. Default: any request.
    #[serde(default)]
    headers: Vec<HeaderSpec>,
    /// The share of the requests; its denominator is 100 where none is said. Default: all.
    fraction: Option<Fraction>,
    /// A time. Default: none.
    delay: Option<Time>,
    /// Default: none.
    abort: Option<AbortSpec>,
}

/// Exactly one field.
#[derive(Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(deny_unknown_fields)]
struct AbortSpec {
    /// 200 to 599.
    http: Option<u16>,
    /// 1 to 16.
    grpc: Option<u8>,
    /// Written as `{}`.
    reset: Option<Empty>,
}

/// Times; default none.
#[derive(Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(deny_unknown_fields)]
struct TimeoutsSpec {
    connect: Option<Time>,
    idle: Option<Time>,
    request: Option<Time>,
}

#[derive(Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct TcpSpec {
    keepalive: Option<KeepaliveSpec>,
    /// A time.
    user_timeout: Option<Time>,
    /// A name of the kernel's.
    congestion: Option<String>,
}

#[derive(Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(deny_unknown_fields)]
struct KeepaliveSpec {
    /// A time of whole seconds, at least 1s.
    idle: Option<Time>,
    /// A time of whole seconds, at least 1s.
    interval: Option<Time>,
    /// Probes, 1 to 127.
    count: Option<u32>,
}

/// `spec` of an `XBackendTrafficPolicy`.
#[derive(Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(rename_all = "camelCase")]
pub struct BackendTrafficPolicySpec {
    /// 1 to 16.
    pub target_refs: Vec<LooseTargetRef>,
    retry_constraint: Option<RetryConstraint>,
    session_persistence: Option<SessionPersistence>,
}

#[derive(Deserialize, Clone, PartialEq, Eq, Debug)]
pub struct LooseTargetRef {
    group: String,
    kind: String,
    name: String,
}

#[derive(Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(rename_all = "camelCase")]
struct RetryConstraint {
    budget: Option<Budget>,
    min_retry_rate: Option<RequestRate>,
}

#[derive(Deserialize, Clone, PartialEq, Eq, Debug)]
struct Budget {
    percent: Option<u32>,
    interval: Option<Time>,
}

#[derive(Deserialize, Clone, PartialEq, Eq, Debug)]
struct RequestRate {
    count: Option<u32>,
    interval: Option<Time>,
}

fn between(value: u32, range: std::ops::RangeInclusive<u32>, field: &str) -> Result<u32, Wrong> {
    if range.contains(&value) {
        return Ok(value);
    }
    wrong(field, format!("{value} is not from {} to {}", range.start(), range.end()))
}

fn percent(value: Option<u32>, least: u32, default: u8, field: &str) -> Result<u8, Wrong> {
    value.map_or(Ok(default), |v| between(v, least..=100, field).map(|v| v as u8))
}

fn positive(time: Option<Time>, default: Duration, field: &str) -> Result<Duration, Wrong> {
    match time {
        None => Ok(default),
        Some(Time(Duration::ZERO)) => wrong(field, "0s is no time: use 1ms or more"),
        Some(Time(time)) => Ok(time),
    }
}

fn some_positive(time: Option<Time>, field: &str) -> Result<Option<Duration>, Wrong> {
    time.map(|t| positive(Some(t), Duration::ZERO, field)).transpose()
}

/// A field name of HTTP or a cookie's (RFC 9110, section 5.6.2).
pub fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
}

fn token(text: &str, field: &str) -> Result<(), Wrong> {
    if is_token(text) { Ok(()) } else { wrong(field, format!("{:?} is no name of a header field or cookie", short(text))) }
}

fn short(text: &str) -> String {
    text.chars().take(60).collect()
}

impl TrafficPolicySpec {
    /// The policy that it describes, or the first field that cannot be honoured.
    pub fn read(&self) -> Result<TrafficPolicy, Wrong> {
        let zone = match &self.zone {
            None => ZonePreference::default(),
            Some(zone) => {
                let spill_below = percent(zone.spill_below, 1, ZonePreference::default().spill_below, "zone.spillBelow")?;
                ZonePreference { prefer: zone.prefer, spill_below }
            }
        };
        for (field, count) in [("rates", self.rates.len()), ("faults", self.faults.len())] {
            if count > 16 {
                return wrong(field, format!("{count} of them; at most 16 are taken"));
            }
        }
        let mut rates = Vec::with_capacity(self.rates.len());
        for (i, rate) in self.rates.iter().enumerate() {
            if self.rates[..i].iter().any(|other| other.name == rate.name) {
                return wrong(format!("rates[{i}].name"), format!("{:?} stands twice", short(&rate.name)));
            }
            rates.push(rate.read(&format!("rates[{i}]"))?);
        }
        let faults = self.faults.iter().enumerate().map(|(i, f)| f.read(&format!("faults[{i}]"))).collect::<Result<_, _>>()?;
        Ok(TrafficPolicy {
            balancer: self.balancer.as_ref().map_or(Ok(Balancer::default()), BalancerSpec::read)?,
            zone,
            slow_start: some_positive(self.slow_start, "slowStart")?,
            outlier: self.outlier.as_ref().map(OutlierSpec::read).transpose()?,
            limits: self.limits.as_ref().map_or(Ok(Limits::default()), LimitsSpec::read)?,
            rates,
            faults,
            timeouts: match &self.timeouts {
                None => Timeouts::default(),
                Some(t) => Timeouts {
                    connect: some_positive(t.connect, "timeouts.connect")?,
                    idle: some_positive(t.idle, "timeouts.idle")?,
                    request: some_positive(t.request, "timeouts.request")?,
                },
            },
            tcp: self.tcp.as_ref().map_or(Ok(Tcp::default()), TcpSpec::read)?,
            retry_budget: RetryBudget::default(),
            session: None,
        })
    }
}

impl BalancerSpec {
    fn read(&self) -> Result<Balancer, Wrong> {
        let keys = [
            ("balancer.ringHash", &self.ring_hash, BalancerType::RingHash),
            ("balancer.maglev", &self.maglev, BalancerType::Maglev),
        ];
        for (field, key, kind) in keys {
            match (key, self.kind == kind) {
                (None, true) => return wrong(field, "missing: the type needs to know what is hashed"),
                (Some(_), false) => return wrong(field, format!("only for the type {kind:?}")),
                _ => {}
            }
        }
        let key = |key: &Option<HashSpec>, field: &str| match key {
            Some(key) => key.read(field),
            None => wrong(field, "missing: the type needs to know what is hashed"),
        };
        Ok(match self.kind {
            BalancerType::P2cEwma => Balancer::P2cEwma,
            BalancerType::LeastRequest => Balancer::LeastRequest,
            BalancerType::RoundRobin => Balancer::RoundRobin,
            BalancerType::Random => Balancer::Random,
            BalancerType::RingHash => Balancer::RingHash(key(&self.ring_hash, "balancer.ringHash")?),
            BalancerType::Maglev => Balancer::Maglev(key(&self.maglev, "balancer.maglev")?),
        })
    }
}

impl HashSpec {
    fn read(&self, field: &str) -> Result<HashKey, Wrong> {
        match (&self.header, &self.cookie, &self.query, &self.source) {
            (Some(name), None, None, None) => {
                token(name, &format!("{field}.header"))?;
                Ok(HashKey::Header(name.to_ascii_lowercase().into()))
            }
            (None, Some(cookie), None, None) => {
                token(&cookie.name, &format!("{field}.cookie.name"))?;
                Ok(HashKey::Cookie { name: cookie.name.as_str().into(), ttl: cookie.ttl.map(|t| t.0) })
            }
            (None, None, Some(name), None) if !name.is_empty() => Ok(HashKey::Query(name.as_str().into())),
            (None, None, None, Some(Empty {})) => Ok(HashKey::Source),
            _ => wrong(field, "exactly one of header, cookie, query and source must be said"),
        }
    }
}

impl OutlierSpec {
    fn read(&self) -> Result<Outlier, Wrong> {
        let default = Outlier::default();
        let grpc_codes = self.grpc_codes.clone().unwrap_or(default.grpc_codes);
        if let Some(code) = grpc_codes.iter().find(|c| !(1..=16).contains(*c)) {
            return wrong("outlier.grpcCodes", format!("{code} is not from 1 to 16"));
        }
        let base_ejection = positive(self.base_ejection, default.base_ejection, "outlier.baseEjection")?;
        let max_ejection = positive(self.max_ejection, default.max_ejection.max(base_ejection), "outlier.maxEjection")?;
        if max_ejection < base_ejection {
            return wrong("outlier.maxEjection", "less than baseEjection");
        }
        Ok(Outlier {
            consecutive_failures: self.consecutive_failures.unwrap_or(default.consecutive_failures),
            failures: match self.failures {
                None | Some(FailuresSpec::Gateway) => FailureKind::Gateway,
                Some(FailuresSpec::Any5xx) => FailureKind::Any5xx,
            },
            grpc_codes,
            success_rate: percent(self.success_rate, 0, default.success_rate, "outlier.successRate")?,
            minimum_volume: between(
                self.minimum_volume.unwrap_or(default.minimum_volume),
                1..=1_000_000,
                "outlier.minimumVolume",
            )?,
            window: positive(self.window, default.window, "outlier.window")?,
            base_ejection,
            max_ejection,
            max_ejected: percent(self.max_ejected, 1, default.max_ejected, "outlier.maxEjected")?,
        })
    }
}

impl LimitsSpec {
    fn read(&self) -> Result<Limits, Wrong> {
        let some = |limit: Option<u32>, field: &str| match limit {
            Some(0) => wrong(format!("limits.{field}"), "0 would let nothing through: use 1 or more"),
            other => Ok(other),
        };
        Ok(Limits {
            connections: some(self.connections, "connections")?,
            connections_per_endpoint: some(self.connections_per_endpoint, "connectionsPerEndpoint")?,
            requests: some(self.requests, "requests")?,
            requests_per_endpoint: some(self.requests_per_endpoint, "requestsPerEndpoint")?,
            pending: some(self.pending, "pending")?,
        })
    }
}

impl RateSpec {
    fn read(&self, field: &str) -> Result<RateLimit, Wrong> {
        let inner = |name: &str| format!("{field}.{name}");
        if self.name.is_empty() || self.name.len() > 63 {
            return wrong(inner("name"), "a name has 1 to 63 characters");
        }
        if self.principals.len() > 64 {
            return wrong(inner("principals"), format!("{} of them; at most 64 are taken", self.principals.len()));
        }
        let mut principals = Vec::new();
        for (i, text) in self.principals.iter().enumerate() {
            match text.parse() {
                Ok(id) => principals.push(id),
                Err(e) => {
                    let e: weft_core::identity::InvalidName = e;
                    return wrong(inner(&format!("principals[{i}]")), e.to_string());
                }
            }
        }
        if self.ports.contains(&0) {
            return wrong(inner("ports"), "0 is not a port: use 1 to 65535");
        }
        Ok(RateLimit {
            name: self.name.as_str().into(),
            by: match self.by {
                None | Some(ByWhom::All) => RateScope::All,
                Some(ByWhom::Caller) => RateScope::Caller,
            },
            principals,
            requests: between(self.requests, 1..=u32::MAX, &inner("requests"))?,
            per: positive(self.per, Duration::from_secs(1), &inner("per"))?,
            burst: between(self.burst.unwrap_or(self.requests), 1..=u32::MAX, &inner("burst"))?,
            headers: headers(&self.headers, &inner("headers"))?,
            ports: self.ports.clone(),
        })
    }
}

fn headers(list: &[HeaderSpec], field: &str) -> Result<Vec<ValueMatch>, Wrong> {
    if list.len() > 16 {
        return wrong(field, format!("{} of them; at most 16 are taken", list.len()));
    }
    let one = |(i, h): (usize, &HeaderSpec)| {
        token(&h.name, &format!("{field}[{i}].name"))?;
        let value = match h.kind {
            Comparison::Exact => StringMatch::Exact(h.value.as_str().into()),
            Comparison::RegularExpression => {
                StringMatch::Regex(Pattern::new(&h.value).map_err(|e| (format!("{field}[{i}].value"), e.to_string()))?)
            }
        };
        Ok(ValueMatch { name: h.name.to_ascii_lowercase().into(), value })
    };
    list.iter().enumerate().map(one).collect()
}

impl FaultSpec {
    fn read(&self, field: &str) -> Result<Fault, Wrong> {
        if self.delay.is_none() && self.abort.is_none() {
            return wrong(field, "a fault needs a delay or an abort");
        }
        let millionths = match self.fraction {
            None => 1_000_000,
            Some(f) => {
                let of = f.denominator.unwrap_or(100);
                if of == 0 || f.numerator > of {
                    return wrong(
                        format!("{field}.fraction"),
                        "numerator must not be more than denominator, which is at least 1",
                    );
                }
                (u64::from(f.numerator) * 1_000_000 / u64::from(of)) as u32
            }
        };
        let abort = match &self.abort {
            None => None,
            Some(AbortSpec { http: Some(status @ 200..=599), grpc: None, reset: None }) => Some(Abort::Http(*status)),
            Some(AbortSpec { http: None, grpc: Some(code @ 1..=16), reset: None }) => Some(Abort::Grpc(*code)),
            Some(AbortSpec { http: None, grpc: None, reset: Some(Empty {}) }) => Some(Abort::Reset),
            Some(_) => {
                return wrong(
                    format!("{field}.abort"),
                    "exactly one of http (200 to 599), grpc (1 to 16) and reset ({}) must be said",
                );
            }
        };
        let headers = headers(&self.headers, &format!("{field}.headers"))?;
        Ok(Fault { headers, millionths, delay: self.delay.map(|t| t.0), abort })
    }
}

impl TcpSpec {
    fn read(&self) -> Result<Tcp, Wrong> {
        let whole = |time: Option<Time>, field: &str| match time {
            Some(Time(t)) if t.subsec_nanos() != 0 || t.is_zero() || t.as_secs() > 32_767 => {
                wrong(format!("tcp.keepalive.{field}"), "must be of whole seconds, 1s to 32767s")
            }
            other => Ok(other.map(|t| t.0)),
        };
        let keepalive = self.keepalive.as_ref();
        let congestion = self.congestion.as_deref();
        if congestion
            .is_some_and(|c| c.is_empty() || c.len() > 15 || !c.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-".contains(&b)))
        {
            return wrong("tcp.congestion", "no name of a congestion control, as cubic or bbr are");
        }
        Ok(Tcp {
            keepalive_idle: whole(keepalive.and_then(|k| k.idle), "idle")?,
            keepalive_interval: whole(keepalive.and_then(|k| k.interval), "interval")?,
            keepalive_count: keepalive.and_then(|k| k.count).map(|c| between(c, 1..=127, "tcp.keepalive.count")).transpose()?,
            user_timeout: some_positive(self.user_timeout, "tcp.userTimeout")?,
            congestion: congestion.map(Arc::from),
        })
    }
}

impl BackendTrafficPolicySpec {
    /// The Services, and whatever else it is for.
    pub fn targets(&self) -> Vec<TargetRef> {
        let target = |t: &LooseTargetRef| TargetRef { group: t.group.clone(), kind: t.kind.clone(), name: t.name.clone() };
        self.target_refs.iter().map(target).collect()
    }

    /// The session and the retry budget that it describes.
    pub fn read(&self) -> Result<(Option<Session>, Option<RetryBudget>), Wrong> {
        let session = self.session_persistence.as_ref().map(|s| session(s, "sessionPersistence")).transpose()?;
        let Some(retry) = &self.retry_constraint else { return Ok((session, None)) };
        let default = RetryBudget::default();
        let field = "retryConstraint.budget.interval";
        let interval = positive(retry.budget.as_ref().and_then(|b| b.interval), default.interval, field)?;
        if !(1..=3_600).contains(&interval.as_secs()) || interval > Duration::from_secs(3_600) {
            return wrong(field, "must be from 1s to 1h");
        }
        let min_per_second = match &retry.min_retry_rate {
            None => default.min_per_second,
            Some(rate) => {
                let per = positive(rate.interval, Duration::from_secs(1), "retryConstraint.minRetryRate.interval")?;
                // Whole repetitions a second: what was asked for is not rounded away.
                (f64::from(rate.count.unwrap_or(default.min_per_second)) / per.as_secs_f64()).ceil() as u32
            }
        };
        let field = "retryConstraint.budget.percent";
        let percent = percent(retry.budget.as_ref().and_then(|b| b.percent), 0, default.percent, field)?;
        Ok((session, Some(RetryBudget { percent, interval, min_per_second })))
    }
}

/// The name of a session that its author has not named.
const SESSION: &str = "weft-session";

/// Session persistence (GEP-1619).
pub fn session(s: &SessionPersistence, field: &str) -> Result<Session, Wrong> {
    let kind = match s.kind.as_deref() {
        None | Some("Cookie") => SessionKind::Cookie,
        Some("Header") => SessionKind::Header,
        Some(other) => return wrong(format!("{field}.type"), format!("{:?} is neither Cookie nor Header", short(other))),
    };
    let permanent = match s.cookie_config.as_ref().and_then(|c| c.lifetime_type.as_deref()) {
        None | Some("Session") => false,
        Some("Permanent") => true,
        Some(other) => {
            return wrong(
                format!("{field}.cookieConfig.lifetimeType"),
                format!("{:?} is neither Session nor Permanent", short(other)),
            );
        }
    };
    if permanent && s.absolute_timeout.is_none() {
        return wrong(format!("{field}.absoluteTimeout"), "missing: a permanent cookie needs to know how long it lives");
    }
    let name = s.session_name.as_deref().unwrap_or(SESSION);
    token(name, &format!("{field}.sessionName"))?;
    let name = if kind == SessionKind::Header { name.to_ascii_lowercase() } else { name.to_owned() };
    Ok(Session {
        name: name.into(),
        kind,
        absolute: s.absolute_timeout.map(|t| t.0),
        idle: s.idle_timeout.map(|t| t.0),
        permanent,
    })
}
