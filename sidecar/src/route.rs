//! route and balance: from a target to the next endpoint to try.

use std::cell::{Cell, RefCell};
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use smallvec::SmallVec;
use tokio::time::Instant;
use weft_core::breaker::{self, Event, Probe};
use weft_core::failure::{Failure, Reason, Side};
use weft_core::retry::Ending;
use weft_core::traffic::TrafficPolicy;

use crate::authorize::Guard;
use crate::config::NetConfig;
use crate::connect::Destination;
use crate::egress::Way;
use crate::isolation;
use crate::mesh::{Target, WorkloadState};
pub use crate::service::choice::Wish;
use crate::service::choice::{Asker, Chosen};
use crate::service::{Candidate, ServiceState};
use crate::standing::{Health, Place};
use crate::traffic::ServiceTraffic;
use crate::worker::Worker;

/// Where traffic of one connection goes.
#[derive(Clone)]
pub enum Route {
    /// Out, to one of a service's endpoints.
    Service { service: Arc<ServiceState>, port: u16 },
    /// Out, to one workload.
    Workload { workload: Arc<WorkloadState>, endpoint: Arc<Candidate> },
    /// In, to the pod's own application.
    App { destination: Arc<Destination>, name: Arc<str> },
    /// Out of the mesh: each request says where.
    Unknown { name: Arc<str> },
    /// Out of the mesh, to this.
    Outside(Rc<Way>),
    /// Nowhere: every request gets this answer.
    Refuse { failure: Failure, name: Arc<str> },
}

/// Endpoints that were tried in vain for one request.
pub type Tried = SmallVec<[IpAddr; 4]>;

/// An endpoint that was chosen for one request or connection; it counts as loaded until it is dropped.
pub struct Lease {
    pub destination: Arc<Destination>,
    /// What the peer is called in metrics.
    pub peer: Arc<str>,
    /// One of the pod's own addresses: the inbound path is entered in process.
    pub own: bool,
    /// None for the pod's own application.
    health: Option<Arc<Health>>,
    /// The policy in force, where there is one.
    policy: Option<Arc<TrafficPolicy>>,
    /// It is the one request that finds out whether the endpoint is well again.
    probe: RefCell<Option<Probe>>,
    /// A place at the endpoint, and one at the service.
    _place: Place,
    service_place: Option<Place>,
    began: Cell<Instant>,
    /// The balancer has heard of the answer.
    told: Cell<bool>,
    worker: Rc<Worker>,
}

impl Lease {
    fn new(worker: &Rc<Worker>, chosen: Chosen) -> Self {
        let Chosen { candidate, policy, probe, place } = chosen;
        candidate.health.load.begin();
        Self {
            destination: candidate.destination.clone(),
            peer: candidate.peer.clone(),
            own: candidate.own,
            health: Some(candidate.health.clone()),
            policy,
            probe: RefCell::new(probe),
            _place: place,
            service_place: None,
            began: Cell::new(Instant::now()),
            told: Cell::new(false),
            worker: Rc::clone(worker),
        }
    }

    /// What has no policy and no balancer.
    fn bare(worker: &Rc<Worker>, destination: &Arc<Destination>, peer: &Arc<str>) -> Self {
        Self {
            destination: destination.clone(),
            peer: peer.clone(),
            own: false,
            health: None,
            policy: None,
            probe: RefCell::new(None),
            _place: Place::free(),
            service_place: None,
            began: Cell::new(Instant::now()),
            told: Cell::new(false),
            worker: Rc::clone(worker),
        }
    }

    pub fn address(&self) -> IpAddr {
        self.destination.address().ip()
    }

    /// Since when it is: since a connection for its request was there, once one is.
    pub fn since(&self) -> Instant {
        self.began.get()
    }

    /// A connection for a request is there: what it took to open is not the endpoint's way with requests.
    pub fn opened(&self) {
        self.began.set(Instant::now());
    }

    /// The endpoint began to answer: so long it took.
    pub fn speaks(&self) {
        if let Some(health) = &self.health
            && !self.told.replace(true)
        {
            health.load.answer(self.worker.mesh().now(), self.began.get().elapsed());
        }
    }

    /// The endpoint has begun to answer, and how it went shows in the end only: a stream may last for hours, and a probe does not.
    pub fn begins(&self) {
        self.speaks();
        if self.probe.borrow().is_some() {
            self.ended(Ending::Http(200));
        }
    }

    /// The endpoint took an opaque connection that is used: it is well.
    pub fn took(&self) {
        self.ended(Ending::Http(200));
    }

    /// The endpoint answered with this status, and, where it is known by now, this gRPC status.
    pub fn answered(&self, status: u16, grpc: Option<u8>) {
        self.speaks();
        self.ended(match grpc {
            Some(status) => Ending::Grpc { status, only: false },
            None => Ending::Http(status),
        });
    }

    /// A place at the service that lasts as long as the connection.
    pub fn holds(&mut self, place: Option<Place>) {
        self.service_place = place;
    }

    /// How long its connections may be silent.
    pub fn idle(&self) -> Option<Duration> {
        self.policy.as_ref()?.timeouts.idle
    }

    /// Tells the balancer and the breaker of a failure, if it was the endpoint's.
    pub fn fail(mut self, failure: &Failure) {
        self.ended(Ending::Failed(failure));
        if let (Some(health), Side::Upstream) = (&self.health, failure.side) {
            health.load.fail(self.worker.mesh().now());
            self.health = None;
        }
    }

    /// Tells the breaker how an attempt ended.
    fn ended(&self, ending: Ending<'_>) {
        let (Some(health), Some(policy)) = (&self.health, &self.policy) else { return };
        let Some(outlier) = &policy.outlier else { return };
        let Some(outcome) = breaker::Outcome::of(outlier, ending) else { return };
        let (now, random) = (self.worker.mesh().now(), self.worker.random());
        let event = match self.probe.take() {
            Some(probe) => health.breaker.probed(probe, now, outlier, outcome, random),
            None => health.breaker.outcome(now, outlier, outcome, random),
        };
        if let Some(event) = event {
            self.worker.metrics.ejection(&self.peer, &event);
            match event {
                Event::Ejected { lasts, why } => {
                    tracing::warn!(peer = %self.destination.address(), ?why, "endpoint ejected for {lasts:?}");
                }
                Event::Spared(why) => {
                    tracing::debug!(peer = %self.destination.address(), ?why, "endpoint not ejected: as many as may be are");
                }
                Event::Readmitted => tracing::info!(peer = %self.destination.address(), "endpoint is back"),
            }
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(health) = self.health.take() {
            if let Some(probe) = self.probe.take() {
                health.breaker.abandon(probe);
            }
            health.load.end();
        }
    }
}

impl Route {
    /// What was dialled, for people and metrics.
    pub fn name(&self) -> &Arc<str> {
        match self {
            Self::Service { service, .. } => &service.name,
            Self::Workload { workload, .. } => &workload.name,
            Self::App { name, .. } | Self::Refuse { name, .. } | Self::Unknown { name } => name,
            Self::Outside(way) => &way.name,
        }
    }

    /// The `Host` for a caller that named none.
    pub fn host(&self) -> String {
        match self {
            Self::Service { service, .. } => format!("{}.{}", service.id.name, service.id.namespace),
            Self::Workload { endpoint, .. } => endpoint.destination.address().to_string(),
            Self::App { destination, .. } => destination.address().to_string(),
            Self::Refuse { name, .. } | Self::Unknown { name } => name.to_string(),
            Self::Outside(way) => way.guard.aim().map_or_else(|| way.name.to_string(), ToString::to_string),
        }
    }

    /// The route to what an address stands for; none if that is nothing of the mesh's.
    pub fn to(target: Target, port: u16, net: &NetConfig) -> Option<Self> {
        match target {
            Target::Service(service) => Some(Self::Service { service, port }),
            Target::Workload(workload) => {
                let endpoint = Arc::new(Candidate::new(&workload.endpoint, port, &workload.workload.id, port, net, &None));
                Some(Self::Workload { workload, endpoint })
            }
            Target::Unknown => None,
        }
    }

    /// Whether it leads to what an address stands for now.
    pub fn leads_to(&self, target: &Target) -> bool {
        match (self, target) {
            (Self::Service { service, .. }, Target::Service(other)) => Arc::ptr_eq(service, other),
            (Self::Workload { workload, .. }, Target::Workload(other)) => Arc::ptr_eq(workload, other),
            _ => false,
        }
    }

    /// Out of the mesh: who is asked whether a request may go there.
    pub fn guard(&self) -> Option<&Guard> {
        match self {
            Self::Outside(way) => Some(&way.guard),
            _ => None,
        }
    }

    /// How many attempts make sense at the most.
    pub fn may_retry_elsewhere(&self) -> bool {
        matches!(self, Self::Service { .. })
    }

    /// The port that was dialled; 0 where nothing was.
    pub fn port(&self) -> u16 {
        match self {
            Self::Service { port, .. } => *port,
            Self::Workload { endpoint, .. } => endpoint.destination.address().port(),
            Self::App { destination, .. } => destination.address().port(),
            Self::Outside(way) => way.destination.address().port(),
            Self::Refuse { .. } | Self::Unknown { .. } => 0,
        }
    }

    /// What the service's routes and policy say; none where there is nothing to say.
    pub fn traffic(&self) -> Option<Arc<ServiceTraffic>> {
        match self {
            Self::Service { service, .. } => service.view.load().traffic.clone(),
            _ => None,
        }
    }

    /// Takes one repetition out of the service's budget.
    pub fn spend(&self, worker: &Worker) -> bool {
        match self {
            Self::Service { service, .. } => service.view.load().standing.budget.take(worker.mesh().now()),
            _ => false,
        }
    }

    /// Whether a session that is with an endpoint can go on there.
    pub fn takes_session(&self, worker: &Worker, endpoint: SocketAddr) -> bool {
        let Self::Service { service, port } = self else { return false };
        let (now, own) = (worker.mesh().now(), worker.shared.config.net.pod_ips[0]);
        let wish = Wish { key: None, pinned: Some(endpoint) };
        service.view.load().takes_session(*port, &Asker { tried: &[], wish, own, now, opaque: false })
    }

    /// Chooses an endpoint that is not among `tried`, unless there is no other.
    pub fn pick(&self, worker: &Rc<Worker>, tried: &Tried, wish: Wish, opaque: bool) -> Result<Lease, Failure> {
        match self {
            Self::Refuse { failure, .. } => Err(failure.clone()),
            Self::App { destination, name } => Ok(Lease::bare(worker, destination, name)),
            Self::Outside(way) => Ok(Lease::bare(worker, &way.destination, &way.name)),
            Self::Unknown { .. } => {
                Err(Failure::mesh(Reason::Internal).detail("a request was sent before it was known where to"))
            }
            Self::Workload { endpoint, workload } => {
                worker.mesh().may_call()?;
                endpoint.memory.may_call(worker, endpoint, &workload.workload.id)?;
                let chosen = Chosen { candidate: endpoint.clone(), policy: None, probe: None, place: Place::free() };
                Ok(Lease::new(worker, chosen))
            }
            Self::Service { service, port } => {
                worker.mesh().may_call()?;
                let (now, own) = (worker.mesh().now(), worker.shared.config.net.pod_ips[0]);
                let asker = Asker { tried, wish, own, now, opaque };
                let view = service.view.load();
                let chosen = view.pick(*port, &asker, || worker.random()).map_err(|failure| match failure.reason {
                    Reason::NetworkPolicy => isolation::none_permitted(worker, &view, *port, failure),
                    _ => failure,
                })?;
                Ok(Lease::new(worker, chosen))
            }
        }
    }
}
