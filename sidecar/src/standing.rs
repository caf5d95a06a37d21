//! What counts across all requests to a service, and to each endpoint: budget, limits, ejections, load. Shared by all workers.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use weft_core::balance::PeakEwma;
use weft_core::breaker::{Breaker, Ejections};
use weft_core::gate::Gate;
use weft_core::retry::Budget;
use weft_core::traffic::policy::{Limits, TrafficPolicy};

/// What counts across all requests to a service.
#[derive(Debug)]
pub struct Standing {
    pub budget: Budget,
    pub limits: Limits,
    pub ejections: Arc<Ejections>,
    /// Whose turn it is.
    pub turn: AtomicU64,
    gates: Arc<Gates>,
}

#[derive(Debug, Default)]
struct Gates {
    requests: Gate,
    connections: Gate,
    pending: Gate,
}

impl Standing {
    /// That of a service under a policy; what is held and ejected outlives a change of it.
    pub fn new(policy: &TrafficPolicy, before: Option<&Self>) -> Self {
        Self {
            budget: Budget::new(&policy.retry_budget),
            limits: policy.limits,
            ejections: before.map_or_else(Arc::default, |b| b.ejections.clone()),
            turn: AtomicU64::new(0),
            gates: before.map_or_else(Arc::default, |b| b.gates.clone()),
        }
    }

    /// Requests in flight under a limit, connections, and requests that wait for a connection.
    pub fn held(&self) -> [u32; 3] {
        [&self.gates.requests, &self.gates.connections, &self.gates.pending].map(Gate::held)
    }
}

/// A place that was taken, given back when it is dropped.
#[derive(Debug)]
pub struct Place(Option<Held>);

#[derive(Debug)]
enum Held {
    Request(Arc<Gates>),
    Connection(Arc<Gates>),
    Pending(Arc<Gates>),
    AtEndpoint(Arc<Health>),
}

impl Place {
    /// Where nothing is counted.
    pub const fn free() -> Self {
        Self(None)
    }

    fn enter(limit: Option<u32>, gate: &Gate, held: impl FnOnce() -> Held) -> Option<Self> {
        // Without a limit nothing is counted: it would cost every request, and say nothing.
        match limit {
            None => Some(Self(None)),
            Some(_) => gate.try_enter(limit).then(|| Self(Some(held()))),
        }
    }

    /// One more request to the service; none if it has as many as it may.
    pub fn among_requests(s: &Standing) -> Option<Self> {
        Self::enter(s.limits.requests, &s.gates.requests, || Held::Request(s.gates.clone()))
    }

    /// One more opaque connection to the service.
    pub fn among_connections(s: &Standing) -> Option<Self> {
        Self::enter(s.limits.connections, &s.gates.connections, || Held::Connection(s.gates.clone()))
    }

    /// One more request that waits for a connection.
    pub fn among_pending(s: &Standing) -> Option<Self> {
        Self::enter(s.limits.pending, &s.gates.pending, || Held::Pending(s.gates.clone()))
    }

    /// One more request, or connection, to an endpoint.
    pub fn at(health: &Arc<Health>, limit: Option<u32>) -> Option<Self> {
        Self::enter(limit, &health.gate, || Held::AtEndpoint(health.clone()))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        match &self.0 {
            None => {}
            Some(Held::Request(gates)) => gates.requests.leave(),
            Some(Held::Connection(gates)) => gates.connections.leave(),
            Some(Held::Pending(gates)) => gates.pending.leave(),
            Some(Held::AtEndpoint(health)) => health.gate.leave(),
        }
    }
}

/// How an endpoint does, as this sidecar sees it.
#[derive(Debug)]
pub struct Health {
    pub load: PeakEwma,
    pub breaker: Breaker,
    gate: Gate,
    /// When it came, in nanoseconds of [`crate::mesh::Mesh::now`].
    pub since: u64,
}

impl Health {
    /// That of an endpoint that came at `since`.
    pub fn new(now: u64, since: u64, ejections: &Arc<Ejections>) -> Self {
        Self { load: PeakEwma::new(now), breaker: Breaker::new(ejections), gate: Gate::new(), since }
    }

    /// Whether as many requests or connections are there as its limit allows.
    pub fn is_full(&self, limit: Option<u32>) -> bool {
        limit.is_some_and(|limit| self.gate.held() >= limit)
    }
}
