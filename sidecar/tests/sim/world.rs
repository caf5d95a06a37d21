//! Pods with sidecars on one network in memory, and the clock that they live by.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, spawn_local};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use weft_certs::{Authority, LeafKind, LeafSpec};
use weft_core::authorization::Authorization;
use weft_core::policy::{InboundPolicy, MtlsMode, OutboundPolicy};
use weft_core::protocol::AppProtocol;
use weft_core::service::{Endpoint, Reach, Service, ServicePort};
use weft_core::wellknown::LEAF_LIFETIME_SECS;
use weft_sidecar::config::Config;
use weft_sidecar::io::{Dial, Listener, Network, Redirect, Shape, Socket};
use weft_sidecar::mesh::{Address, Identity, Lookup, Mesh, Target};
use weft_sidecar::pool::Buffers;
use weft_sidecar::service::{Facts, ServiceState, ServiceView};
use weft_sidecar::stream::{Shared as Peer, Stream};
use weft_sidecar::telemetry;
use weft_sidecar::telemetry::thread::Plan as Telling;
use weft_sidecar::worker::{self, Shared, Worker};
use weft_tls::{Svid, TrustBundle};
use zeroize::Zeroizing;

/// The pod that calls.
pub(crate) const A: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
/// The pods that are called.
pub(crate) const B: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 2));
pub(crate) const C: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 3));
/// An address of the mesh's that discovery never answers for.
pub(crate) const UNANSWERED: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 9, 9, 9));
const SERVICE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 96, 0, 1));

/// The service's port that declares nothing, and the endpoints' port behind it.
const WEB: u16 = 80;
pub(crate) const WEB_TARGET: u16 = 8080;
/// The port that is declared as opaque, on both.
pub(crate) const BYTES: u16 = 9000;

pub(crate) const CALLER: &str = "spiffe://cluster.local/ns/shop/sa/web";
pub(crate) const CALLEE: &str = "spiffe://cluster.local/ns/shop/sa/api";

/// The inbound policy of a strict pod.
pub(crate) fn inbound_policy(authorization: Authorization) -> InboundPolicy {
    InboundPolicy {
        mode: MtlsMode::Strict,
        port_modes: vec![],
        protocols: vec![(BYTES, AppProtocol::Opaque)],
        required_features: vec![],
        rates: vec![],
        zone: "".into(),
        authorization,
        issuers: vec![],
        network: None,
    }
}

/// A worker that runs, and what is put around it.
pub(crate) type Running = Pin<Box<dyn Future<Output = ()>>>;
type Around = fn(IpAddr, Running) -> Running;

/// What a world is to be like.
#[derive(Clone, Copy)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) shape: Shape,
    /// Between pods.
    pub(crate) latency: Duration,
    /// Of the caller's sidecar.
    pub(crate) workers: u64,
    pub(crate) options: &'static [&'static str],
    /// Variables of every sidecar's telemetry.
    pub(crate) variables: &'static [(&'static str, &'static str)],
    /// Pods behind the service that discovery says to have a sidecar, and those of them that do.
    pub(crate) endpoints: &'static [IpAddr],
    pub(crate) sidecars: &'static [IpAddr],
    /// The certificate that the callees' sidecars show.
    pub(crate) shown: (LeafKind, &'static str),
    /// How long the certificates of the caller's sidecar and of the callees' are good for, in seconds from now.
    pub(crate) lifetimes: [i64; 2],
    pub(crate) around: Around,
}

impl Plan {
    /// One callee, and nothing wrong. Chunks, capacity and latency follow from the seed: 63 seeds have every combination.
    pub(crate) fn new(seed: u64) -> Self {
        let of = |choices: &[usize], n: u64| choices[(n % choices.len() as u64) as usize];
        let chunk = of(&[1, 2, 7, 64, 1_400, 16_384, usize::MAX], seed);
        let capacity = of(&[1_024, 8_192, 65_536], seed / 7);
        let latency = of(&[1, 0, 10], seed / 21);
        Self {
            seed,
            shape: Shape { capacity, chunk },
            latency: Duration::from_millis(latency as u64),
            workers: 1,
            options: &[],
            variables: &[],
            endpoints: &[B],
            sidecars: &[B],
            shown: (LeafKind::Valid, CALLEE),
            lifetimes: [LEAF_LIFETIME_SECS; 2],
            around: |_, running| running,
        }
    }

    /// The same without short reads and writes, and with a latency of one millisecond: for tests of time.
    pub(crate) fn smooth(seed: u64) -> Self {
        Self { shape: Shape::default(), latency: Duration::from_millis(1), ..Self::new(seed) }
    }

    /// The most bytes to send one way: fewer where they go one by one.
    pub(crate) fn amount(&self) -> u64 {
        self.shape.chunk.clamp(10, 3_000) as u64 * 20
    }
}

pub(crate) struct Sidecar {
    pub(crate) shared: Arc<Shared>,
    pub(crate) workers: Vec<Rc<Worker>>,
    running: Vec<JoinHandle<()>>,
    telling: Option<Telling>,
    /// Nobody answers; closed, lookups would fail in another way.
    _lookups: mpsc::Receiver<Lookup>,
}

/// Who may be believed in a world, and who is who.
pub(crate) struct Certificates {
    authority: Authority,
    bundle: Arc<TrustBundle>,
}

impl Certificates {
    pub(crate) fn new() -> Self {
        let authority = Authority::new("cluster.local");
        let anchors = vec![authority.root_der()];
        let bundle = Arc::new(TrustBundle::new("cluster.local".parse().expect("a domain"), anchors).expect("an anchor"));
        Self { authority, bundle }
    }

    pub(crate) fn identity(&self, kind: LeafKind, id: &str) -> Identity {
        self.lasting(kind, id, LEAF_LIFETIME_SECS)
    }

    fn lasting(&self, kind: LeafKind, id: &str, lifetime: i64) -> Identity {
        let leaf = self.authority.leaf(&LeafSpec::new(kind, id).lasting(lifetime));
        let key = Zeroizing::new(leaf.key_der.secret_der().to_vec());
        Identity::new(1, Svid::new(leaf.chain_der.clone(), key).expect("an SVID"), self.bundle.clone())
    }
}

pub(crate) fn config(ip: IpAddr, workers: u64, options: &[&str]) -> Config {
    let always = format!("weft-sidecar --control-plane=127.0.0.1:1 --identity=shop/any --pod-ips={ip} --workers={workers}");
    Config::parse_from(always.split(' ').chain(options.iter().copied()))
}

impl Sidecar {
    /// Puts an inbound policy in force.
    pub(crate) fn govern(&self, policy: InboundPolicy) {
        self.shared.mesh.govern(policy, &self.shared.config.identity.spiffe_id());
    }

    pub(crate) fn start(
        network: &Network,
        plan: &Plan,
        config: Config,
        identity: Identity,
        known: impl IntoIterator<Item = (IpAddr, Target)>,
    ) -> Self {
        let (ip, count) = (config.net.pod_ips[0], config.workers as u64);
        let (inbound, outbound) = (config.net.inbound_port, config.net.outbound_port);
        network.redirect(ip, Redirect { inbound, outbound });
        let (mesh, lookups) = Mesh::new();
        mesh.identity.store(Some(Arc::new(identity)));
        mesh.govern(inbound_policy(Authorization::default()), &config.identity.spiffe_id());
        mesh.govern_outbound(OutboundPolicy::default());
        mesh.ranges.store(Some(Arc::new(vec!["10.0.0.0/8".parse().expect("a range")])));
        mesh.addresses.store(Arc::new(known.into_iter().map(|(ip, target)| (ip, Address::new(target, 0))).collect()));
        let variables = plan.variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let (telling, telemetry) = Telling::read(variables.collect(), &config.telemetry, 0);
        let shared = Arc::new(Shared::telling(config, mesh, telemetry));
        let host = network.sidecar(ip);
        let workers: Vec<_> = (0..count)
            .map(|i| Worker::dialling_by(Dial::Memory(host.clone()), shared.clone(), plan.seed * 100 + 2 * i + 1))
            .collect();
        let running = workers.iter().map(|worker| {
            let listen = |port| vec![Listener::Memory(host.listen(port))];
            spawn_local((plan.around)(ip, Box::pin(worker::run_on(Rc::clone(worker), listen(inbound), listen(outbound)))))
        });
        Self { shared, running: running.collect(), workers, telling: Some(telling), _lookups: lookups }
    }

    /// The spans of all requests that are over: asked once.
    pub(crate) fn spans(&mut self) -> Vec<serde_json::Value> {
        let over = CancellationToken::new();
        over.cancel();
        self.tells(over).join().expect("it ends");
        self.shared.telemetry.ring.spans(None)
    }

    /// Starts the thread that tells of requests: once.
    pub(crate) fn tells(&mut self, over: CancellationToken) -> std::thread::JoinHandle<()> {
        let telling = self.telling.take().expect("it is asked once");
        telemetry::thread::start(self.shared.clone(), telling, over).expect("a thread")
    }

    /// Ends one once it has nothing to do any more.
    pub(crate) async fn end_after(&mut self, idle: Duration) {
        sleep(idle).await;
        self.end().await;
    }

    /// Ends one that has nothing to do, and checks that nothing of it is left.
    pub(crate) async fn end(&mut self) {
        let listening = if self.running.is_empty() { 0 } else { 2 };
        for worker in &self.workers {
            assert_eq!(worker.connections.len(), listening, "tasks outlive their connections");
        }
        let (took, grace) = (self.drain().await, self.shared.config.timeouts.drain_grace);
        assert!(took < grace + Duration::from_millis(100), "nothing is open, and the drain took {took:?}");
        for worker in &self.workers {
            assert!(worker.connections.is_empty(), "tasks outlive the worker");
            assert_eq!(Rc::strong_count(worker), 1, "something keeps the worker");
        }
    }

    /// Drains as the program does on a signal; gives how long it took.
    pub(crate) async fn drain(&mut self) -> Duration {
        let began = Instant::now();
        let timeouts = self.shared.config.timeouts;
        self.shared.draining.cancel();
        sleep(timeouts.drain_grace).await;
        self.shared.closing.cancel();
        let running = std::mem::take(&mut self.running);
        let mut ended = pin!(async {
            for worker in running {
                worker.await.expect("a worker does not panic");
            }
        });
        if timeout(timeouts.drain_timeout, ended.as_mut()).await.is_err() {
            self.shared.cut.cancel();
            timeout(Duration::from_secs(1), ended).await.expect("a worker ends within a second of the cut");
        }
        began.elapsed()
    }
}

/// A calling pod, a service, and the pods behind it.
pub(crate) struct World {
    pub(crate) network: Network,
    pub(crate) caller: Sidecar,
    pub(crate) callees: Vec<Sidecar>,
    /// As the caller's sidecar knows it.
    pub(crate) service: Arc<ServiceState>,
}

impl World {
    pub(crate) fn new(plan: &Plan) -> Self {
        let network = Network::new(plan.seed, plan.shape);
        for ip in plan.endpoints {
            network.set_latency(A, *ip, plan.latency);
        }
        let certificates = Certificates::new();
        let ports = [(WEB, AppProtocol::Detect), (BYTES, AppProtocol::Opaque)];
        let service = Service {
            id: "shop/api".parse().expect("a name"),
            addresses: vec![SERVICE],
            ports: ports.map(|(port, protocol)| ServicePort { port, name: None, protocol }).to_vec(),
            client_ip_affinity: None,
            local_only: false,
        };
        let endpoint = |address: &IpAddr| Endpoint {
            address: *address,
            workload: None,
            reach: Reach::Mesh(CALLEE.parse().expect("an identity")),
            ready: true,
            zone: "".into(),
            node: "".into(),
            ports: vec![(WEB, WEB_TARGET), (BYTES, BYTES)],
        };
        let endpoints: Vec<Endpoint> = plan.endpoints.iter().map(endpoint).collect();
        let callers = config(A, plan.workers, plan.options);
        let policy = Arc::default();
        let facts = Facts { service: &service, endpoints: &endpoints, routes: &[], policy: &policy, zone: "", egress: None };
        let service = Arc::new(ServiceState::new(ServiceView::new(facts, None, &callers.net, 0)));
        let callees = plan.sidecars.iter().map(|ip| {
            let (kind, id) = plan.shown;
            Sidecar::start(&network, plan, config(*ip, 1, &[]), certificates.lasting(kind, id, plan.lifetimes[1]), None)
        });
        let callees = callees.collect();
        let known = [(SERVICE, Target::Service(service.clone()))];
        let caller =
            Sidecar::start(&network, plan, callers, certificates.lasting(LeafKind::Valid, CALLER, plan.lifetimes[0]), known);
        Self { network, caller, callees, service }
    }

    /// A program in the calling pod connects to an address.
    pub(crate) async fn dial_address(&self, to: SocketAddr) -> std::io::Result<Peer> {
        let socket = Socket::Memory(self.network.host(A).connect(to).await?);
        Ok(Peer(Rc::new(Stream::plain(socket, Buffers::default()))))
    }

    /// … to the service's port that declares nothing.
    pub(crate) async fn dial_web(&self) -> Peer {
        self.dial_address(SocketAddr::new(SERVICE, WEB)).await.expect("the sidecar accepts")
    }

    /// … to the service's opaque port.
    pub(crate) async fn dial_bytes(&self) -> Peer {
        self.dial_address(SocketAddr::new(SERVICE, BYTES)).await.expect("the sidecar accepts")
    }

    /// Ends a world whose programs have all ended, and checks that nothing of it is left.
    pub(crate) async fn end(mut self) {
        // Longer than anything may idle.
        sleep(Duration::from_secs(1_000)).await;
        for sidecar in std::iter::once(&mut self.caller).chain(&mut self.callees) {
            sidecar.end().await;
        }
        nothing_is_held(&self.service);
        let network = self.network.clone();
        drop(self);
        sleep(Duration::from_millis(1)).await;
        assert_eq!(network.connections(), 0, "connections are left open");
    }
}

/// Whatever was counted for a request was given back.
pub(crate) fn nothing_is_held(service: &ServiceState) {
    let view = service.view.load();
    assert_eq!(view.standing.held(), [0; 3], "{} holds requests, connections, pending ones", service.id);
    for endpoint in &view.endpoints {
        assert_eq!(endpoint.health.load.in_flight(), 0, "{} counts as loaded", endpoint.endpoint.address);
        assert!(!endpoint.health.is_full(Some(1)), "{} counts as full", endpoint.endpoint.address);
    }
}
