//! A worker: one thread, its own runtime, listeners, pools and random numbers. Its tasks never leave it.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::task::LocalSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use weft_core::failure::Reason;
use weft_core::retry::Budget;
use weft_core::traffic::policy::RetryBudget;

use crate::admin::AdminDoor;
use crate::admission::{Admission, Admitted, Capacity};
use crate::bell::Bell;
use crate::config::Config;
use crate::connect::Pools;
use crate::denials::Denials;
use crate::detect::ServerFirst;
use crate::dns::Resolver;
use crate::egress::tls::Clients;
use crate::flows::{FlowLog, Flows};
use crate::identity::unix_now;
use crate::io::{Dial, Dialer, Listener, Socket};
use crate::isolation::Opened;
use crate::jwt::{self, KeyStore, TokenCache};
use crate::levels::{Levels, LineLimit};
use crate::mesh::Mesh;
use crate::metrics::scrape::Scrapes;
use crate::metrics::{Registry, WorkerMetrics};
use crate::otlp::Env;
use crate::plaintext::{Plaintext, Seen};
use crate::pool::Buffers;
use crate::serve::Tasks;
use crate::telemetry::{Telemetry, WorkerTelemetry};
use crate::trusted::Trusted;
use crate::{inbound, limits, outbound};

/// Only what was sent on a connection that had just ended is repeated there; whoever called repeats the rest, by a budget of their own, which
/// this one must not multiply.
const BUDGET: RetryBudget = RetryBudget { percent: 10, interval: Duration::from_secs(10), min_per_second: 2 };

/// What all workers share.
pub struct Shared {
    pub config: Config,
    pub mesh: Arc<Mesh>,
    pub metrics: Arc<Registry>,
    pub capacity: Arc<Capacity>,
    pub admin: AdminDoor,
    /// What may be repeated of requests that go to no service: to the pod's own application, or to one workload.
    pub budget: Budget,
    /// Calls that authorization denied.
    pub denials: Denials,
    /// Who still calls in plaintext.
    pub plaintext: Arc<Plaintext>,
    /// Who calls what, while that is asked for.
    pub flows: Arc<Flows>,
    /// What is told of single requests.
    pub telemetry: Arc<Telemetry>,
    /// What is logged.
    pub levels: Levels,
    /// The standard `OTEL_*` variables.
    pub environment: Env,
    /// The last answers of `/metrics`.
    pub scrapes: Scrapes,
    /// Keys of token issuers, as they were fetched.
    pub keys: KeyStore,
    /// Names outside of the mesh.
    pub resolver: Resolver,
    /// First phase of a drain: what can be ended politely, is.
    pub draining: CancellationToken,
    /// Second phase: no more connections.
    pub closing: CancellationToken,
    /// The end: whatever is left is cut.
    pub cut: CancellationToken,
}

impl Shared {
    /// One that tells nothing of single requests, until somebody taps.
    pub fn new(config: Config, mesh: Arc<Mesh>) -> Self {
        Self::telling(config, mesh, Telemetry::off())
    }

    pub fn telling(config: Config, mesh: Arc<Mesh>, telemetry: Telemetry) -> Self {
        Self {
            telemetry: Arc::new(telemetry),
            levels: Levels::fixed(),
            environment: Env::of_process(),
            scrapes: Scrapes::default(),
            capacity: Arc::new(Capacity::new(config.max_connections, config.max_idle, limits::open_files())),
            admin: crate::admin::door(),
            budget: Budget::new(&BUDGET),
            denials: Denials::default(),
            plaintext: Plaintext::new(),
            flows: Flows::new(),
            keys: KeyStore::default(),
            resolver: Resolver::new(config.net.resolv_conf.clone(), config.net.mark, &config.net.pod_ips),
            config,
            mesh,
            metrics: Registry::new(),
            draining: CancellationToken::new(),
            closing: CancellationToken::new(),
            cut: CancellationToken::new(),
        }
    }
}

/// A worker's own things.
pub struct Worker {
    pub shared: Arc<Shared>,
    pub dialer: Dial,
    pub buffers: Buffers,
    pub pools: Pools,
    pub metrics: WorkerMetrics,
    /// Connections that rest on a peer's certificate.
    pub trusted: Trusted,
    /// Connections of the pod's own that network policies are asked about again.
    pub opened: Opened,
    /// How TLS is opened to hosts outside of the mesh.
    pub outside: Clients,
    pub plaintext: Seen,
    pub flows: FlowLog,
    pub telemetry: Rc<WorkerTelemetry>,
    /// How many lines it has logged of single requests.
    pub lines: LineLimit,
    pub server_first: RefCell<ServerFirst>,
    pub connections: TaskTracker,
    /// What serves requests of HTTP/2.
    pub tasks: Tasks,
    /// Held once by each copy of a request that is under way, and once here.
    pub copies: Rc<()>,
    /// Wakes what is under way when another policy is in force.
    pub policy_changed: Bell,
    /// It takes no more connections, and waits for no more requests.
    pub closing: Bell,
    /// Whatever is left is cut.
    pub cut: Bell,
    /// Tokens that were verified.
    pub tokens: RefCell<TokenCache>,
    /// Mesh peers that wait until a set of peers knows them.
    pub waiting_peers: Cell<usize>,
    admission: Rc<Admission>,
    /// When it was told last that something was shed.
    told_shed: Cell<Option<Instant>>,
    random: Cell<u64>,
}

impl Worker {
    pub fn new(shared: Arc<Shared>, seed: u64) -> Rc<Self> {
        let dialer = Dial::Tcp(Dialer { mark: shared.config.net.mark });
        Self::dialling_by(dialer, shared, seed)
    }

    /// A worker on another network than the real one.
    pub fn dialling_by(dialer: Dial, shared: Arc<Shared>, seed: u64) -> Rc<Self> {
        Rc::new(Self {
            dialer,
            buffers: Buffers::default(),
            pools: Pools::new(shared.capacity.idle(limits::workers(shared.config.workers))),
            metrics: WorkerMetrics::new(shared.metrics.clone(), shared.config.metrics_series),
            trusted: Trusted::default(),
            opened: Opened::default(),
            outside: Clients::default(),
            plaintext: Seen::new(shared.plaintext.clone()),
            flows: FlowLog::new(shared.flows.clone()),
            telemetry: Rc::new(WorkerTelemetry::new(shared.telemetry.clone())),
            lines: LineLimit::default(),
            server_first: RefCell::default(),
            connections: TaskTracker::new(),
            tasks: Tasks::default(),
            copies: Rc::default(),
            policy_changed: Bell::default(),
            closing: Bell::default(),
            cut: Bell::default(),
            tokens: RefCell::default(),
            waiting_peers: Cell::new(0),
            admission: Admission::new(shared.capacity.clone(), limits::workers(shared.config.workers)),
            told_shed: Cell::new(None),
            random: Cell::new(seed | 1),
            shared,
        })
    }

    pub fn mesh(&self) -> &Mesh {
        &self.shared.mesh
    }

    /// A uniformly distributed number (xorshift64*). Not for secrets.
    pub fn random(&self) -> u64 {
        let mut x = self.random.get();
        x ^= x >> 12;
        x ^= x << 25;
        x ^= x >> 27;
        self.random.set(x);
        x.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Lets in what comes from `client`, or tells that it cannot. The pod's own programs are one source, and not counted against each other.
    pub fn admit(&self, client: SocketAddr, by_source: bool) -> Option<Admitted> {
        self.metrics.accepted();
        let shed = match self.admission.admit(by_source.then(|| client.ip())) {
            Ok(admitted) => return Some(admitted),
            Err(shed) => shed,
        };
        self.metrics.refused(Reason::Overloaded);
        if self.told_shed.get().is_none_or(|at| at.elapsed() > TELL) {
            self.told_shed.set(Some(Instant::now()));
            let (open, most) = (self.shared.capacity.open(), self.shared.capacity.most());
            tracing::warn!(%client, why = ?shed, open, most, "connection shed: {}", Reason::Overloaded.explain());
        }
        None
    }

    /// Drops pooled connections that idle too long, and those that would not be made any more.
    fn sweep_pools(&self) {
        let generation = self.mesh().identity.load().as_ref().map_or(0, |i| i.generation);
        // A little sooner than a peer with the same setting ends it: a request that crosses with the end cannot always be sent again.
        let idle = self.shared.config.timeouts.idle * 4 / 5;
        self.pools.sweep(generation, self.mesh().egress().as_deref(), idle, &self.metrics.slots().pool);
    }

    pub fn is_draining(&self) -> bool {
        self.shared.draining.is_cancelled()
    }
}

/// The sockets of one worker, bound before anything is announced as ready.
pub struct Listeners {
    inbound: Vec<TcpListener>,
    outbound: Vec<TcpListener>,
}

impl Listeners {
    /// Inbound on every address of the pod, outbound on loopback only (Invariant 3). IPv6 where the machine has it.
    pub fn bind(config: &Config) -> std::io::Result<Self> {
        let (inbound, outbound) = (config.net.inbound_port, config.net.outbound_port);
        let named = |addr: SocketAddr| {
            crate::io::listen(addr).map_err(|e| {
                std::io::Error::new(e.kind(), format!("cannot listen on {addr}: {e}: another process may have the port"))
            })
        };
        let mut listeners = Self {
            inbound: vec![named((Ipv4Addr::UNSPECIFIED, inbound).into())?],
            outbound: vec![named((Ipv4Addr::LOCALHOST, outbound).into())?],
        };
        for (list, addr) in [
            (&mut listeners.inbound, SocketAddr::from((Ipv6Addr::UNSPECIFIED, inbound))),
            (&mut listeners.outbound, SocketAddr::from((Ipv6Addr::LOCALHOST, outbound))),
        ] {
            match named(addr) {
                Ok(listener) => list.push(listener),
                Err(e) if matches!(e.kind(), std::io::ErrorKind::AddrNotAvailable | std::io::ErrorKind::Unsupported) => {}
                Err(e) if e.raw_os_error().is_some() || config.net.pod_ips.iter().any(std::net::IpAddr::is_ipv6) => {
                    return Err(e);
                }
                Err(e) => tracing::info!(error = %e, "no IPv6"),
            }
        }
        Ok(listeners)
    }
}

/// Runs a worker until the drain is over.
pub async fn run(worker: Rc<Worker>, listeners: Listeners) {
    let on = |list: Vec<TcpListener>| list.into_iter().map(Listener::Tcp).collect::<Vec<_>>();
    run_on(worker, on(listeners.inbound), on(listeners.outbound)).await;
}

/// What is cut may take this long to reset its ends: dropped before that, they would end as if complete (Invariant 7).
const CUT: Duration = Duration::from_millis(500);

/// See [`run`]: on listeners of any network.
pub async fn run_on(worker: Rc<Worker>, inbound: Vec<Listener>, outbound: Vec<Listener>) {
    let local = LocalSet::new();
    local
        .run_until(async {
            for listener in inbound {
                let w = Rc::clone(&worker);
                let door = Door { worker: Rc::clone(&worker), by_source: true };
                spawn(&worker, accept(door, listener, move |socket| inbound::serve(Rc::clone(&w), socket)));
            }
            for listener in outbound {
                let w = Rc::clone(&worker);
                let door = Door { worker: Rc::clone(&worker), by_source: false };
                spawn(&worker, accept(door, listener, move |socket| outbound::serve(Rc::clone(&w), socket)));
            }
            let sweeper = tokio::task::spawn_local(sweep(Rc::clone(&worker)));
            let watcher = tokio::task::spawn_local(watch_policy(Rc::clone(&worker)));
            let trusting = tokio::task::spawn_local(watch_trust(Rc::clone(&worker)));
            let keeper = tokio::task::spawn_local(jwt::keep(Rc::clone(&worker)));
            let phases = tokio::task::spawn_local(ring_phases(Rc::clone(&worker)));
            worker.closing.first().rung().await;
            worker.connections.close();
            let mut cut = worker.cut.first();
            tokio::select! {
                biased;
                () = worker.connections.wait() => {}
                () = cut.rung() => {
                    let _ = tokio::time::timeout(CUT, worker.connections.wait()).await;
                }
            }
            sweeper.abort();
            watcher.abort();
            trusting.abort();
            keeper.abort();
            phases.abort();
        })
        .await;
}

/// Spawns a task of this worker's, which ends at the latest when the drain is over.
pub fn spawn(worker: &Rc<Worker>, task: impl Future<Output = ()> + 'static) {
    tokio::task::spawn_local(worker.connections.track_future(task));
}

/// Where connections are let in.
struct Door {
    worker: Rc<Worker>,
    by_source: bool,
}

/// What is shed is told in the log this often at the most.
const TELL: Duration = Duration::from_secs(10);

async fn accept<S, F>(door: Door, mut listener: Listener, serve: S)
where
    S: Fn(Socket) -> F + Clone + 'static,
    F: Future<Output = ()> + 'static,
{
    let worker = door.worker;
    let mut closing = worker.closing.first();
    loop {
        let accepted = tokio::select! {
            biased;
            () = closing.rung() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok(socket) => {
                let Some(admitted) = worker.admit(socket.peer(), door.by_source) else {
                    socket.reset_on_drop();
                    continue;
                };
                let serve = serve.clone();
                spawn(&worker, async move {
                    // Begun here, it lies in its task once: what is handed over and then awaited lies there twice.
                    serve(socket).await;
                    drop(admitted);
                });
            }
            Err(e) => {
                worker.metrics.accept_failed();
                // Others may end meanwhile.
                if limits::is_short(&e) {
                    worker.pools.spare();
                }
                tracing::warn!(error = %e, "accept failed: raise the limit of open files");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }
}

/// Tells the worker's tasks of the phases of a drain.
async fn ring_phases(worker: Rc<Worker>) {
    let ring = async |phase: &CancellationToken, bell: &Bell| {
        phase.cancelled().await;
        bell.ring();
    };
    tokio::join!(ring(&worker.shared.closing, &worker.closing), ring(&worker.shared.cut, &worker.cut));
}

/// Wakes what is under way whenever a policy changes.
async fn watch_policy(worker: Rc<Worker>) {
    let mut generations = worker.mesh().generations();
    while generations.changed().await.is_ok() {
        worker.policy_changed.ring();
        worker.opened.ask_again(&worker);
        worker.outside.sweep(worker.mesh().egress().as_deref());
        worker.sweep_pools();
    }
}

/// Cuts what is open with whoever is believed no more, as soon as that is known.
async fn watch_trust(worker: Rc<Worker>) {
    let mut bundles = worker.mesh().bundles();
    let mut before = None;
    loop {
        if let Some(identity) = &*worker.mesh().identity.load() {
            let own = identity.svid.info().id.trust_domain();
            worker.trusted.cut(&identity.bundle, before.as_deref(), own);
            before = Some(identity.bundle.clone());
        }
        if bundles.changed().await.is_err() {
            return;
        }
    }
}

/// Looks after what ends by time.
async fn sweep(worker: Rc<Worker>) {
    let mut tick = tokio::time::interval(Duration::from_secs(5));
    loop {
        tick.tick().await;
        worker.sweep_pools();
        worker.trusted.end(unix_now());
        worker.metrics.sweep();
        worker.server_first.borrow_mut().sweep();
        worker.flows.sweep();
        for bell in [&worker.closing, &worker.cut, &worker.policy_changed] {
            bell.tidy();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    fn worker() -> Rc<Worker> {
        let config =
            Config::parse_from(["weft-sidecar", "--control-plane=127.0.0.1:1", "--identity=shop/web", "--pod-ips=10.0.0.1"]);
        let (mesh, _lookups) = Mesh::new();
        Worker::new(Arc::new(Shared::new(config, mesh)), 1)
    }

    /// What every connection costs while it waits: pinned, so that growth is a decision.
    #[test]
    fn the_future_of_a_connection_is_small() {
        let worker = worker();
        let address = "10.0.0.2:1".parse().expect("an address");
        let socket = || Socket::Memory(crate::io::pair(address, address).0);
        let outbound = size_of_val(&outbound::serve(Rc::clone(&worker), socket()));
        let inbound = size_of_val(&inbound::serve(Rc::clone(&worker), socket()));
        assert!(outbound <= 2400 && inbound <= 1000, "outbound {outbound}, inbound {inbound} bytes");
    }
}
