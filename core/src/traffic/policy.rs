//! The traffic policy of a service (`TrafficPolicy`, `weft.dev/v1alpha1`; `XBackendTrafficPolicy` for what that standard has).
//!
//! Every field has a default, and each default its reason: a service without a policy is treated as [`TrafficPolicy::default`] says.

use std::sync::Arc;
use std::time::Duration;

use super::route::{Session, ValueMatch};
use crate::identity::SpiffeId;

/// How callers treat a service, and how much of them the service takes.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct TrafficPolicy {
    /// How an endpoint is chosen.
    pub balancer: Balancer,
    /// Whether the caller's own zone comes first.
    pub zone: ZonePreference,
    /// An endpoint that is new gets its full share only after so long. Default none: peak EWMA is careful by itself.
    pub slow_start: Option<Duration>,
    /// When an endpoint is ejected. Default none: an endpoint that fails three times in a row is avoided, never ejected.
    pub outlier: Option<Outlier>,
    /// How much a caller's sidecar gives it at once.
    pub limits: Limits,
    /// How much its own sidecar takes, by whom. Default none.
    pub rates: Vec<RateLimit>,
    /// Faults that a caller's sidecar makes on purpose. Default none.
    pub faults: Vec<Fault>,
    /// How long things may take.
    pub timeouts: Timeouts,
    /// How TCP connections to it are kept.
    pub tcp: Tcp,
    /// What may be repeated, of all.
    pub retry_budget: RetryBudget,
    /// Session persistence for every route of the service (`XBackendTrafficPolicy`); a route's own comes first. Default none.
    pub session: Option<Session>,
}

/// How an endpoint is chosen.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum Balancer {
    /// Two are drawn, the one with less latency times queue wins. The default: it finds slow endpoints by itself.
    #[default]
    P2cEwma,
    /// Two are drawn, the one with fewer requests in flight wins.
    LeastRequest,
    /// Each in turn.
    RoundRobin,
    /// Any.
    Random,
    /// A ring of points: a key stays with its endpoint while that one is there.
    RingHash(HashKey),
    /// A table that is filled evenly (Maglev): more even than a ring, moves a few more keys.
    Maglev(HashKey),
}

/// What is hashed. A request without it is sent to any endpoint.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum HashKey {
    /// A header field, by its name in lower case.
    Header(Arc<str>),
    /// A cookie. Where `ttl` is given and the request has none, the answer sets it.
    Cookie {
        /// Its name.
        name: Arc<str>,
        /// How long it lives.
        ttl: Option<Duration>,
    },
    /// A query parameter.
    Query(Arc<str>),
    /// The caller's address.
    Source,
}

/// Whether the caller's own zone comes first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ZonePreference {
    /// Default no: a service whose callers stand unevenly would overload a zone's endpoints.
    pub prefer: bool,
    /// Requests spill over once the zone has less than this share of its endpoints well, in percent, 1 to 100. Default 70: beyond that, what is left
    /// would take half as much again.
    pub spill_below: u8,
}

impl Default for ZonePreference {
    fn default() -> Self {
        Self { prefer: false, spill_below: 70 }
    }
}

/// When an endpoint is ejected.
#[derive(Clone, PartialEq, Debug)]
pub struct Outlier {
    /// Failures in a row. 0: not by this. Default 5: fewer eject on a blip.
    pub consecutive_failures: u32,
    /// What of the answers is a failure.
    pub failures: FailureKind,
    /// gRPC status codes that are failures; default `UNAVAILABLE`, `INTERNAL`, `UNKNOWN`, `DATA_LOSS`, `DEADLINE_EXCEEDED`.
    pub grpc_codes: Vec<u8>,
    /// Ejected below this share of successes, in percent. 0: not by this. Default 0: what a good share is, only the service's owner knows.
    pub success_rate: u8,
    /// Answers within the window before the share counts. Default 20: fewer say little.
    pub minimum_volume: u32,
    /// The window that the share is taken over. Default 10 s.
    pub window: Duration,
    /// The first ejection lasts so long, ± 10 %; each further one doubles. Default 10 s.
    pub base_ejection: Duration,
    /// The longest ejection. Default 5 min.
    pub max_ejection: Duration,
    /// At most this share of the endpoints is ejected at once, in percent, 1 to 100. Default 50; never all unless 100 is asked for.
    pub max_ejected: u8,
}

/// What of the answers is a failure.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum FailureKind {
    /// 502, 503, 504, and what failed without an answer. The default: a 500 is often the request's doing.
    #[default]
    Gateway,
    /// Any 5xx, and what failed without an answer.
    Any5xx,
}

impl Default for Outlier {
    fn default() -> Self {
        Self {
            consecutive_failures: 5,
            failures: FailureKind::default(),
            grpc_codes: vec![2, 4, 13, 14, 15],
            success_rate: 0,
            minimum_volume: 20,
            window: Duration::from_secs(10),
            base_ejection: Duration::from_secs(10),
            max_ejection: Duration::from_secs(300),
            max_ejected: 50,
        }
    }
}

/// How much a caller's sidecar gives a service at once; each none by default: a limit that nobody chose sheds what would have been served.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Limits {
    /// Opaque connections to the service.
    pub connections: Option<u32>,
    /// Opaque connections to one endpoint.
    pub connections_per_endpoint: Option<u32>,
    /// Requests in flight to the service.
    pub requests: Option<u32>,
    /// Requests in flight to one endpoint.
    pub requests_per_endpoint: Option<u32>,
    /// Requests that wait for a connection to open.
    pub pending: Option<u32>,
}

/// How many requests the service's own sidecar takes.
#[derive(Clone, PartialEq, Debug)]
pub struct RateLimit {
    /// Its name, for metrics.
    pub name: Arc<str>,
    /// Of whom.
    pub by: RateScope,
    /// Only of these callers; empty is all. Principals, exactly.
    pub principals: Vec<SpiffeId>,
    /// Requests per `per`. At least 1.
    pub requests: u32,
    /// The time in which they are refilled.
    pub per: Duration,
    /// How many may come at once; at least 1. Default as many as `requests`.
    pub burst: u32,
    /// Only requests that match all of these header fields.
    pub headers: Vec<ValueMatch>,
    /// In a policy ports of the service, in a pod's inbound policy its own; empty is all.
    pub ports: Vec<u16>,
}

/// Who shares one bucket.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum RateScope {
    /// All callers share one. The default.
    #[default]
    All,
    /// Each identity has its own; plaintext callers by address.
    Caller,
}

/// A fault that is made on purpose.
#[derive(Clone, PartialEq, Debug)]
pub struct Fault {
    /// Requests that match all of these header fields; empty is all.
    pub headers: Vec<ValueMatch>,
    /// The share of them, in millionths.
    pub millionths: u32,
    /// They wait so long first.
    pub delay: Option<Duration>,
    /// They are answered so, and go nowhere.
    pub abort: Option<Abort>,
}

/// How a fault answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Abort {
    /// An HTTP status, 200 to 599; gRPC callers get what it stands for.
    Http(u16),
    /// A gRPC status, 1 to 16.
    Grpc(u8),
    /// The connection is reset.
    Reset,
}

/// How long things may take. None: the sidecar's own bounds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Timeouts {
    /// To open a connection to an endpoint.
    pub connect: Option<Duration>,
    /// An opaque connection or WebSocket without a byte either way.
    pub idle: Option<Duration>,
    /// A request that no route bounds, to the end of its answer. Streams are bounded as well: leave it out for services that stream.
    pub request: Option<Duration>,
}

/// How TCP connections to the service are kept; the machine's own where nothing is said.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Tcp {
    /// Keep-alive: silence before the first probe, whole seconds.
    pub keepalive_idle: Option<Duration>,
    /// Between probes, whole seconds.
    pub keepalive_interval: Option<Duration>,
    /// Probes before the connection is dead.
    pub keepalive_count: Option<u32>,
    /// Sent bytes may stay unacknowledged for so long (`TCP_USER_TIMEOUT`, RFC 5482).
    pub user_timeout: Option<Duration>,
    /// Congestion control by its name in the kernel (`cubic`, `bbr`, …).
    pub congestion: Option<Arc<str>>,
}

/// What may be repeated, of all requests to a service (`XBackendTrafficPolicy`, GEP-3388).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RetryBudget {
    /// Repetitions, in percent of the requests, 0 to 100. Default 20: a failing service sees at most a fifth more.
    pub percent: u8,
    /// The time over which requests are counted. Default 10 s.
    pub interval: Duration,
    /// Repetitions that are always allowed, per second. Default 10: a service with little traffic could repeat nothing otherwise.
    pub min_per_second: u32,
}

impl Default for RetryBudget {
    fn default() -> Self {
        Self { percent: 20, interval: Duration::from_secs(10), min_per_second: 10 }
    }
}
