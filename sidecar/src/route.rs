//! route and balance: from a target to the next endpoint to try.

use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use smallvec::SmallVec;
use weft_core::balance::{PeakEwma, pick_p2c};
use weft_core::failure::{Failure, Reason, Side};
use weft_core::service::Reach;

use crate::connect::Destination;
use crate::mesh::{EndpointState, ServiceState, Target, WorkloadState};
use crate::worker::Worker;

/// Where traffic of one connection goes.
#[derive(Clone)]
pub enum Route {
    /// Out, to one of a service's endpoints.
    Service { service: Arc<ServiceState>, port: u16 },
    /// Out, to one workload.
    Workload { workload: Arc<WorkloadState>, port: u16 },
    /// In, to the pod's own application.
    App { address: SocketAddr, name: Arc<str> },
    /// Nowhere: every request gets this answer.
    Refuse { failure: Failure, name: Arc<str> },
}

/// Endpoints that were tried in vain for one request.
pub type Tried = SmallVec<[IpAddr; 4]>;

/// An endpoint that was chosen for one request or connection; it counts as loaded until the outcome is told or it is dropped.
pub struct Lease {
    pub destination: Destination,
    /// What the peer is called in metrics.
    pub peer: Arc<str>,
    pub address: IpAddr,
    /// One of the pod's own addresses: the inbound path is entered in process.
    pub own: bool,
    load: Option<Arc<PeakEwma>>,
    began: Instant,
    worker: Rc<Worker>,
}

impl Lease {
    pub fn succeed(mut self) {
        if let Some(load) = self.load.take() {
            load.succeed(self.worker.mesh().now(), self.began.elapsed());
        }
    }

    /// An opaque connection was opened: it counts as load until it is dropped, and its endpoint is well.
    pub fn connected(&self) {
        if let Some(load) = &self.load {
            load.recover();
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
            load.cancel();
        }
    }
}

/// An endpoint that has failed this often in a row is only tried when nothing better is there.
const SUSPECT_AFTER: u32 = 3;

impl Route {
    /// What was dialled, for people and metrics.
    pub fn name(&self) -> String {
        match self {
            Self::Service { service, .. } => service.id.to_string(),
            Self::Workload { workload, .. } => workload.workload.id.to_string(),
            Self::App { name, .. } | Self::Refuse { name, .. } => name.to_string(),
        }
    }

    /// The `Host` for a caller that named none.
    pub fn host(&self) -> String {
        match self {
            Self::Service { service, .. } => format!("{}.{}", service.id.name, service.id.namespace),
            Self::Workload { workload, port } => SocketAddr::new(workload.workload.address, *port).to_string(),
            Self::App { address, .. } => address.to_string(),
            Self::Refuse { name, .. } => name.to_string(),
        }
    }

    /// The route to what an address stands for; none if that is nothing of the mesh's.
    pub fn to(target: Target, port: u16) -> Option<Self> {
        match target {
            Target::Service(service) => Some(Self::Service { service, port }),
            Target::Workload(workload) => Some(Self::Workload { workload, port }),
            Target::Unknown(_) => None,
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
            Self::App { address, name } => Ok(Lease {
                destination: Destination::Plain { address: *address },
                peer: name.clone(),
                address: address.ip(),
                own: false,
                load: None,
                began: Instant::now(),
                worker: Rc::clone(worker),
            }),
            Self::Workload { workload, port } => {
                Ok(lease(worker, &workload.endpoint, *port, &workload.workload.id.to_string(), *port))
            }
            Self::Service { service, port } => {
                let facts = service.service.load();
                if facts.port(*port).is_none() {
                    return Err(Failure::mesh(Reason::NoSuchPort).detail(format!("{} has no port {port}", service.id)));
                }
                let endpoints = service.endpoints.load();
                let now = worker.mesh().now();
                let mut fit: SmallVec<[&Arc<EndpointState>; 16]> =
                    endpoints.iter().filter(|e| e.endpoint.ready && e.endpoint.target_port(*port).is_some()).collect();
                if fit.is_empty() {
                    return Err(Failure::mesh(Reason::NoEndpoints).detail(format!(
                        "{} has {} endpoints, none of them ready for port {port}",
                        service.id,
                        endpoints.len()
                    )));
                }
                if fit.iter().any(|e| !tried.contains(&e.endpoint.address)) {
                    fit.retain(|e| !tried.contains(&e.endpoint.address));
                }
                if fit.iter().any(|e| e.load.failures() < SUSPECT_AFTER) {
                    fit.retain(|e| e.load.failures() < SUSPECT_AFTER || probe(worker));
                }
                let chosen = pick_p2c(&fit, worker.random(), |e| e.load.load(now)).expect("checked above that there is one");
                let endpoint = fit[chosen];
                let target = endpoint.endpoint.target_port(*port).expect("filtered above");
                Ok(lease(worker, endpoint, target, &service.id.to_string(), *port))
            }
        }
    }
}

/// One request in fifty asks a suspect whether it is well again.
fn probe(worker: &Worker) -> bool {
    worker.random().is_multiple_of(50)
}

fn lease(worker: &Rc<Worker>, endpoint: &Arc<EndpointState>, port: u16, name: &str, named_port: u16) -> Lease {
    let ip = endpoint.endpoint.address;
    let address = SocketAddr::new(ip, port);
    let own = worker.shared.config.net.pod_ips.contains(&ip);
    endpoint.load.begin();
    let (destination, peer): (_, Arc<str>) = match &endpoint.endpoint.reach {
        Reach::Mesh(identity) if !own => (
            Destination::Mesh { address, identity: identity.clone(), name: server_name(name, named_port) },
            identity.to_string().into(),
        ),
        Reach::Mesh(identity) => (Destination::Plain { address }, identity.to_string().into()),
        Reach::Plain => (Destination::Plain { address }, "plaintext".into()),
    };
    Lease {
        destination,
        peer,
        address: ip,
        own,
        load: Some(endpoint.load.clone()),
        began: Instant::now(),
        worker: Rc::clone(worker),
    }
}

/// The name in SNI: `pPORT.NAME.NAMESPACE.weft`, from `NAMESPACE/NAME`.
fn server_name(id: &str, port: u16) -> Arc<str> {
    let (namespace, name) = id.split_once('/').unwrap_or(("", id));
    // A pod's name may be longer than a label of DNS (63): it is a hint, and shortened.
    let short = |part: &str, n: usize| part.chars().take(n).collect::<String>().trim_end_matches(['-', '.']).to_owned();
    let labels: Vec<String> = name.split('.').take(3).map(|l| short(l, 50)).collect();
    format!("p{port}.{}.{}.weft", labels.join("."), short(namespace, 63)).into()
}
