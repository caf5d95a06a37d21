//! Services with routes and policies that change, and endpoints in the clear or with sidecars: a calling pod's whole surroundings.

use std::cell::RefCell;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use tokio::task::spawn_local;
use tokio::time::sleep;
use weft_certs::LeafKind;
use weft_core::protocol::AppProtocol;
use weft_core::service::{Endpoint, ObjectRef, Reach, Service, ServicePort};
use weft_core::traffic::TrafficPolicy;
use weft_core::traffic::route::{Backend as Share, BackendTarget, Match, Route, RouteKind, Rule, Timeouts};
use weft_sidecar::io::{Network, Socket};
use weft_sidecar::isolation::Egress;
use weft_sidecar::mesh::{Address, Target};
use weft_sidecar::pool::Buffers;
use weft_sidecar::service::{Facts, ServiceState, ServiceView};
use weft_sidecar::stream::{Shared as Peer, Stream};

use crate::backend::{Backend, PORT};
use crate::calls::ask;
use crate::peers::{Conversation, Message};
use crate::world::{A, CALLEE, CALLER, Certificates, Plan, Sidecar, config, nothing_is_held};

/// The address of the `n`th backend.
pub(crate) fn pod(n: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(10, 0, 0, 10 + n))
}

fn vip(n: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(10, 96, 0, 1 + n))
}

/// A service as the caller's sidecar was told of it.
struct Told {
    service: Service,
    endpoints: Vec<Endpoint>,
    routes: Vec<Arc<Route>>,
    policy: Arc<TrafficPolicy>,
    state: Arc<ServiceState>,
}

pub(crate) struct Lab {
    pub(crate) network: Network,
    pub(crate) caller: Sidecar,
    pub(crate) callees: Vec<Sidecar>,
    pub(crate) backends: Vec<Rc<Backend>>,
    services: RefCell<Vec<Told>>,
    zone: &'static str,
    plan: Plan,
    certificates: Certificates,
}

/// What a lab is to be like.
#[derive(Clone, Copy)]
pub(crate) struct Setup {
    pub(crate) plan: Plan,
    /// How many backends each service has.
    pub(crate) services: &'static [u8],
    /// Whether they have sidecars.
    pub(crate) mesh: bool,
    /// The zone of the calling pod; the backends' are `a`, `b`, `a`, `b`, …
    pub(crate) zone: &'static str,
}

impl Setup {
    /// Backends in the clear.
    pub(crate) fn plain(seed: u64, services: &'static [u8]) -> Self {
        Self { plan: Plan::smooth(seed), services, mesh: false, zone: "" }
    }

    /// Backends with sidecars.
    pub(crate) fn mesh(seed: u64, services: &'static [u8]) -> Self {
        Self { mesh: true, ..Self::plain(seed, services) }
    }

    /// Half of the seeds with sidecars.
    pub(crate) fn either(seed: u64, services: &'static [u8]) -> Self {
        Self { mesh: seed % 2 == 1, ..Self::plain(seed, services) }
    }

    pub(crate) fn workers(mut self, workers: u64) -> Self {
        self.plan.workers = workers;
        self
    }
}

fn named(n: usize) -> ObjectRef {
    ["shop/api", "shop/green", "shop/mirror", "shop/other"][n].parse().expect("a name")
}

/// An endpoint as it is at first.
pub(crate) fn endpoint(n: u8, mesh: bool) -> Endpoint {
    Endpoint {
        address: pod(n),
        workload: None,
        reach: if mesh { Reach::Mesh(CALLEE.parse().expect("an identity")) } else { Reach::Plain },
        ready: true,
        zone: ["a", "b"][usize::from(n % 2)].into(),
        node: "".into(),
        ports: vec![(80, PORT)],
    }
}

impl Lab {
    pub(crate) fn plain(seed: u64, services: &'static [u8]) -> Self {
        Self::new(Setup::plain(seed, services))
    }

    pub(crate) fn new(setup: Setup) -> Self {
        let Setup { plan, services, mesh, zone } = setup;
        let network = Network::new(plan.seed, plan.shape);
        let certificates = Certificates::new();
        let own = config(A, plan.workers, plan.options);
        let (mut told, mut first) = (Vec::new(), 0);
        for (n, count) in services.iter().enumerate() {
            let service = Service {
                id: named(n),
                addresses: vec![vip(n as u8)],
                ports: vec![ServicePort { port: 80, name: None, protocol: AppProtocol::Detect }],
                client_ip_affinity: None,
                local_only: false,
            };
            let endpoints: Vec<_> = (first..first + count).map(|n| endpoint(n, mesh)).collect();
            first += count;
            let policy = Arc::default();
            let facts = Facts { service: &service, endpoints: &endpoints, routes: &[], policy: &policy, zone, egress: None };
            let state = Arc::new(ServiceState::new(ServiceView::new(facts, None, &own.net, 0)));
            told.push(Told { service, endpoints, routes: vec![], policy, state });
        }
        let callees = (0..first).filter(|_| mesh).map(|n| {
            let identity = certificates.identity(LeafKind::Valid, CALLEE);
            Sidecar::start(&network, &plan, config(pod(n), 1, &[]), identity, None)
        });
        let callees = callees.collect();
        for n in 0..first {
            network.set_latency(A, pod(n), plan.latency);
        }
        let backends = (0..first).map(|n| Backend::new(&network, pod(n))).collect();
        let known = told.iter().enumerate().map(|(n, t)| (vip(n as u8), Target::Service(t.state.clone())));
        let caller = Sidecar::start(&network, &plan, own, certificates.identity(LeafKind::Valid, CALLER), known);
        let services = told.iter().map(|t| (t.service.id.clone(), t.state.clone())).collect();
        caller.shared.mesh.services.store(Arc::new(services));
        Self { network, caller, callees, backends, services: RefCell::new(told), zone, plan, certificates }
    }

    /// Another calling pod, that knows the same services.
    pub(crate) fn another(&self, ip: IpAddr, id: &str) -> Sidecar {
        let services = self.services.borrow();
        let known = services.iter().enumerate().map(|(n, t)| (vip(n as u8), Target::Service(t.state.clone())));
        let identity = self.certificates.identity(LeafKind::Valid, id);
        Sidecar::start(&self.network, &self.plan, config(ip, 1, &[]), identity, known)
    }

    fn tell(&self, n: usize, change: impl FnOnce(&mut Told)) {
        let told = &mut self.services.borrow_mut()[n];
        change(told);
        let mesh = &self.caller.shared.mesh;
        let (outgoing, sets) = (mesh.outbound.load(), mesh.peers.load());
        let network = outgoing.as_ref().and_then(|o| o.network.as_deref());
        let egress = network.map(|network| Egress { network, sets: &sets });
        let facts = Facts {
            service: &told.service,
            endpoints: &told.endpoints,
            routes: &told.routes,
            policy: &told.policy,
            zone: self.zone,
            egress,
        };
        let view = ServiceView::new(facts, Some(&told.state.view.load()), &self.caller.shared.config.net, self.now());
        told.state.view.store(Arc::new(view));
    }

    pub(crate) fn now(&self) -> u64 {
        self.caller.shared.mesh.now()
    }

    pub(crate) fn policy(&self, service: usize, policy: TrafficPolicy) {
        self.tell(service, |told| told.policy = Arc::new(policy));
    }

    pub(crate) fn endpoints(&self, service: usize, endpoints: Vec<Endpoint>) {
        self.tell(service, |told| told.endpoints = endpoints);
    }

    /// One route of a kind for the service.
    pub(crate) fn route(&self, service: usize, kind: RouteKind, rules: Vec<Rule>) {
        let id = "shop/route".parse().expect("a name");
        self.routes(service, vec![Route { kind, id, created: 0, ports: vec![], hostnames: vec![], rules }]);
    }

    pub(crate) fn routes(&self, service: usize, routes: Vec<Route>) {
        self.tell(service, |told| told.routes = routes.into_iter().map(Arc::new).collect());
    }

    /// A service that nobody was told of.
    pub(crate) fn forget(&self, service: usize) {
        let mesh = &self.caller.shared.mesh;
        mesh.services.store(Arc::new(mesh.services.load().without(&named(service))));
    }

    /// … and is now.
    pub(crate) fn learn(&self, service: usize) {
        let (mesh, state) = (&self.caller.shared.mesh, self.service(service));
        mesh.services.store(Arc::new(mesh.services.load().update(named(service), state.clone())));
        mesh.addresses.store(Arc::new(mesh.addresses.load().update(vip(service as u8), Address::new(Target::Service(state), 0))));
    }

    pub(crate) fn service(&self, n: usize) -> Arc<ServiceState> {
        self.services.borrow()[n].state.clone()
    }

    pub(crate) async fn dial(&self, service: usize) -> Peer {
        self.dial_from(A, service).await
    }

    pub(crate) async fn dial_from(&self, from: IpAddr, service: usize) -> Peer {
        let to = SocketAddr::new(vip(service as u8), 80);
        let socket = Socket::Memory(self.network.host(from).connect(to).await.expect("the sidecar accepts"));
        Peer(Rc::new(Stream::plain(socket, Buffers::default())))
    }

    /// A program in the calling pod that speaks HTTP/1.
    pub(crate) async fn client(&self, service: usize) -> Conversation {
        Conversation::new(self.dial(service).await)
    }

    /// … and HTTP/2.
    pub(crate) async fn http2(&self, service: usize) -> SendRequest<Bytes> {
        let (send, connection) = h2::client::handshake(self.dial(service).await).await.expect("the sidecar speaks HTTP/2");
        spawn_local(async move {
            let _ = connection.await;
        });
        send
    }

    /// One request on a connection of its own.
    pub(crate) async fn ask(&self, service: usize, line: &str, fields: &[(&str, &str)], body: Option<&[u8]>) -> Option<Message> {
        let mut client = self.client(service).await;
        ask(&mut client, line, fields, body).await
    }

    /// How often a request arrived, at all backends together.
    pub(crate) fn times(&self, id: u64) -> usize {
        self.backends.iter().map(|b| b.times(id)).sum()
    }

    /// Requests that arrived, at all backends together.
    pub(crate) fn count(&self) -> usize {
        self.backends.iter().map(|b| b.count()).sum()
    }

    /// Ends a lab whose programs have all ended, and checks that nothing of it is left.
    pub(crate) async fn end(mut self) {
        // Longer than anything may idle.
        sleep(Duration::from_secs(1_000)).await;
        for backend in &self.backends {
            assert_eq!(backend.busy.get(), 0, "{} still answers somebody", backend.ip);
            backend.down();
        }
        for sidecar in std::iter::once(&mut self.caller).chain(&mut self.callees) {
            sidecar.end().await;
        }
        for told in self.services.borrow().iter() {
            nothing_is_held(&told.state);
        }
        let network = self.network.clone();
        drop(self);
        sleep(Duration::from_millis(1)).await;
        assert_eq!(network.connections(), 0, "connections are left open");
    }
}

/// A rule that matches everything and leads to shares of services.
pub(crate) fn rule(shares: &[(usize, u32)]) -> Rule {
    let share = |(n, weight): &(usize, u32)| Share {
        target: BackendTarget::Service { id: named(*n), port: 80 },
        weight: *weight,
        filters: vec![],
    };
    Rule {
        name: None,
        matches: vec![Match::default()],
        filters: vec![],
        backends: shares.iter().map(share).collect(),
        timeouts: Timeouts::default(),
        retry: None,
        session: None,
    }
}
