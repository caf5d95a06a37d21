//! route and balance: from a target to the next endpoint to try.

use std::cell::Cell;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;

use smallvec::SmallVec;
use tokio::time::Instant;
use weft_core::balance::{PeakEwma, choose};
use weft_core::failure::{Failure, Side};

use crate::config::NetConfig;
use crate::connect::Destination;
use crate::mesh::{Target, WorkloadState};
use crate::service::{Candidate, ServiceState};
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
    load: Option<Arc<PeakEwma>>,
    began: Cell<Instant>,
    worker: Rc<Worker>,
}

impl Lease {
    fn new(worker: &Rc<Worker>, candidate: &Candidate) -> Self {
        candidate.load.begin();
        Self {
            destination: candidate.destination.clone(),
            peer: candidate.peer.clone(),
            own: candidate.own,
            load: Some(candidate.load.clone()),
            began: Cell::new(Instant::now()),
            worker: Rc::clone(worker),
        }
    }

    pub fn address(&self) -> IpAddr {
        self.destination.address().ip()
    }

    /// A connection for a request is there: what it took to open is not the endpoint's way with requests.
    pub fn opened(&self) {
        self.began.set(Instant::now());
    }

    /// The endpoint began to answer, or took an opaque connection: so long it took, and it is well.
    pub fn answered(&self) {
        if let Some(load) = &self.load {
            load.answer(self.worker.mesh().now(), self.began.get().elapsed());
        }
    }

    /// Tells the balancer of a failure, if it was the endpoint's.
    pub fn fail(mut self, failure: &Failure) {
        if let (Some(load), Side::Upstream) = (&self.load, failure.side) {
            load.fail(self.worker.mesh().now());
            self.load = None;
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(load) = self.load.take() {
            load.end();
        }
    }
}

/// An endpoint that has failed this often in a row is only tried when nothing better is there.
const SUSPECT_AFTER: u32 = 3;

impl Route {
    /// What was dialled, for people and metrics.
    pub fn name(&self) -> &Arc<str> {
        match self {
            Self::Service { service, .. } => &service.name,
            Self::Workload { workload, .. } => &workload.name,
            Self::App { name, .. } | Self::Refuse { name, .. } => name,
        }
    }

    /// The `Host` for a caller that named none.
    pub fn host(&self) -> String {
        match self {
            Self::Service { service, .. } => format!("{}.{}", service.id.name, service.id.namespace),
            Self::Workload { endpoint, .. } => endpoint.destination.address().to_string(),
            Self::App { destination, .. } => destination.address().to_string(),
            Self::Refuse { name, .. } => name.to_string(),
        }
    }

    /// The route to what an address stands for; none if that is nothing of the mesh's.
    pub fn to(target: Target, port: u16, net: &NetConfig) -> Option<Self> {
        match target {
            Target::Service(service) => Some(Self::Service { service, port }),
            Target::Workload(workload) => {
                let endpoint = Arc::new(Candidate::new(&workload.endpoint, port, &workload.workload.id, port, net));
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

    /// How many attempts make sense at the most.
    pub fn may_retry_elsewhere(&self) -> bool {
        matches!(self, Self::Service { .. })
    }

    /// Chooses an endpoint that is not among `tried`, unless there is no other.
    pub fn pick(&self, worker: &Rc<Worker>, tried: &Tried) -> Result<Lease, Failure> {
        match self {
            Self::Refuse { failure, .. } => Err(failure.clone()),
            Self::App { destination, name } => Ok(Lease {
                destination: destination.clone(),
                peer: name.clone(),
                own: false,
                load: None,
                began: Cell::new(Instant::now()),
                worker: Rc::clone(worker),
            }),
            Self::Workload { endpoint, .. } => Ok(Lease::new(worker, endpoint)),
            Self::Service { service, port } => {
                let view = service.view.load();
                let candidates = view.candidates(*port)?;
                let now = worker.mesh().now();
                let own = worker.shared.config.net.pod_ips[0];
                if let Some(kept) = view.stays_with(*port, tried, own, now) {
                    return Ok(Lease::new(worker, kept));
                }
                let chosen = choose(
                    candidates.len(),
                    || worker.random(),
                    |i| tried.contains(&candidates[i].address()),
                    |i| candidates[i].load.failures() >= SUSPECT_AFTER,
                    |i| candidates[i].load.load(now),
                );
                Ok(Lease::new(worker, &candidates[chosen.expect("there is at least one")]))
            }
        }
    }
}
