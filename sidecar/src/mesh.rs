//! What the sidecar knows of the mesh: written by the control thread, read by workers without locks.

use std::net::IpAddr;
use std::sync::atomic::{
    AtomicBool, AtomicI64, AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use ipnet::IpNet;
use rustls::crypto::CryptoProvider;
use rustls_pki_types::UnixTime;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use weft_core::SpiffeId;
use weft_core::authorization::Compiled;
use weft_core::egress::{Egress, Table};
use weft_core::failure::{Failure, Reason};
use weft_core::network_policy::PeerSets;
use weft_core::policy::{Denial, InboundPolicy, OutboundPolicy};
use weft_core::protocol::{AppProtocol, LINK_ALPN, MeshProtocol};
use weft_core::service::{Endpoint, ObjectRef, Workload};
use weft_core::wellknown;
use weft_proto::v1;
use weft_tls::{ClientVerifier, Svid, TrustBundle};

use crate::authorize;
use crate::checkup::Heard;
use crate::jwt::Issuers;
use crate::rates::Rates;
use crate::service::{EndpointState, ServiceState};
use crate::standing::Health;
use crate::workload::Handing;

/// The certificate in use, the bundle, and what follows from them.
pub struct Identity {
    /// Counts renewals and bundle changes: connections that were made under another generation are not reused.
    pub generation: u64,
    pub svid: Svid,
    /// SHA-256 of the anchor that the certificate leads to; empty where the bundle has none such.
    pub anchor: String,
    /// When that anchor ends, in seconds since the Unix epoch; 0 where there is none.
    pub anchor_ends: i64,
    pub bundle: Arc<TrustBundle>,
    pub provider: Arc<CryptoProvider>,
    /// For mesh peers that come in.
    pub server: Arc<rustls::ServerConfig>,
}

impl Identity {
    pub fn new(generation: u64, svid: Svid, bundle: Arc<TrustBundle>) -> Self {
        let provider = weft_tls::provider();
        let verifier = Arc::new(ClientVerifier::mandatory(provider.clone(), bundle.clone()));
        // The link first: the server's order decides.
        let alpn: Vec<&[u8]> = std::iter::once(LINK_ALPN).chain(MeshProtocol::ALL.iter().map(|p| p.alpn())).collect();
        let server = Arc::new(weft_tls::server_config(&provider, verifier, &svid, &alpn));
        let anchor = bundle.vouching(svid.chain(), UnixTime::now()).unwrap_or_default();
        let anchors = bundle.facts(svid.info().id.trust_domain());
        let anchor_ends = anchors.into_iter().find(|(hash, _)| *hash == anchor).map_or(0, |(_, ends)| ends);
        Self { generation, svid, anchor, anchor_ends, bundle, provider, server }
    }
}

/// A workload that is dialled by its own address.
#[derive(Debug)]
pub struct WorkloadState {
    pub workload: Workload,
    /// The workload, for metrics.
    pub name: Arc<str>,
    pub endpoint: EndpointState,
}

/// What an address stands for.
#[derive(Clone, Debug)]
pub enum Target {
    Service(Arc<ServiceState>),
    Workload(Arc<WorkloadState>),
    Unknown,
}

/// An address with what it stands for, and when it was last dialled, in nanoseconds of [`Mesh::now`].
#[derive(Clone, Debug)]
pub struct Address {
    pub target: Target,
    used: Arc<AtomicU64>,
}

impl Address {
    pub fn new(target: Target, now: u64) -> Self {
        Self { target, used: Arc::new(AtomicU64::new(now)) }
    }

    /// The same address, standing for something else now.
    #[must_use]
    pub fn becomes(&self, target: Target) -> Self {
        Self { target, used: self.used.clone() }
    }

    /// When it was last asked for, in nanoseconds of [`Mesh::now`].
    pub fn last_used(&self) -> u64 {
        self.used.load(Relaxed)
    }
}

impl Target {
    pub fn workload(workload: Workload, health: Arc<Health>) -> Self {
        let endpoint = Endpoint {
            address: workload.address,
            workload: Some(workload.id.clone()),
            reach: workload.reach.clone(),
            ready: true,
            zone: "".into(),
            node: "".into(),
            ports: vec![],
        };
        let endpoint = EndpointState { endpoint, health };
        Self::Workload(Arc::new(WorkloadState { name: workload.id.to_string().into(), workload, endpoint }))
    }

    /// What the port is declared to speak.
    pub fn protocol(&self, port: u16) -> AppProtocol {
        match self {
            Self::Service(s) => s.view.load().protocol(port),
            Self::Workload(w) => {
                w.workload.protocols.iter().find(|(p, _)| *p == port).map_or(AppProtocol::Detect, |(_, protocol)| *protocol)
            }
            Self::Unknown => AppProtocol::Opaque,
        }
    }
}

/// A question to the control thread.
pub struct Lookup {
    pub address: IpAddr,
    pub answer: oneshot::Sender<Target>,
}

/// An inbound policy that is in force, with what was made of it: all of it changes at once.
pub struct Governing {
    policy: InboundPolicy,
    /// The rates that it allows; none where it has none.
    pub limits: Option<Rates>,
    /// Who may call what; none where everybody may do everything.
    pub compiled: Option<Arc<Compiled>>,
    /// Whose tokens count.
    pub issuers: Issuers,
}

impl std::ops::Deref for Governing {
    type Target = InboundPolicy;
    fn deref(&self) -> &InboundPolicy {
        &self.policy
    }
}

/// An outbound policy that is in force, with what was made of it: all of it changes at once.
pub struct Outgoing {
    policy: OutboundPolicy,
    /// Why every call is refused; none where calls are looked at one by one.
    pub refused: Option<Denial>,
    /// Where the pod may go outside of the mesh; none where everything is open.
    pub egress: Option<Arc<Table>>,
}

impl Outgoing {
    /// As it was pushed.
    pub fn policy(&self) -> &OutboundPolicy {
        &self.policy
    }
}

impl std::ops::Deref for Outgoing {
    type Target = OutboundPolicy;
    fn deref(&self) -> &OutboundPolicy {
        &self.policy
    }
}

/// Everything that workers read.
pub struct Mesh {
    pub addresses: ArcSwap<imbl::HashMap<IpAddr, Address>>,
    /// Every service that is known: those that are dialled, and the backends of their routes.
    pub services: ArcSwap<imbl::HashMap<ObjectRef, Arc<ServiceState>>>,
    pub inbound: ArcSwapOption<Governing>,
    pub outbound: ArcSwapOption<Outgoing>,
    /// The sets of pods that network policies name.
    pub peers: ArcSwap<PeerSets>,
    /// The identity that the sidecar is to have.
    own: OnceLock<SpiffeId>,
    /// Counts policies, inbound and outbound ones: what a connection knows of one of another generation is asked anew.
    generation: AtomicU64,
    changed: watch::Sender<()>,
    pub ranges: ArcSwapOption<Vec<IpNet>>,
    pub identity: ArcSwapOption<Identity>,
    identity_changed: watch::Sender<()>,
    /// Since when the certificate could not be renewed, in seconds since the Unix epoch; 0 where it can.
    pub renewal_failing_since: AtomicI64,
    /// The generation of the identity that is on disk; the greatest number where nothing is kept there.
    pub saved: watch::Sender<u64>,
    /// Whether a discovery stream is up.
    pub connected: AtomicBool,
    /// When the control plane was heard last, and what its clock said.
    pub heard: Heard,
    /// What is held, for who asks whether it is what the control plane has.
    pub holding: OnceLock<watch::Receiver<Vec<Arc<v1::Resource>>>>,
    /// What the application is given.
    pub handing: Handing,
    lookups: mpsc::Sender<Lookup>,
    started: Instant,
}

/// Lookups that may wait for the control thread; more are shed.
const MAX_LOOKUPS: usize = 1024;

impl Mesh {
    pub fn new() -> (Arc<Self>, mpsc::Receiver<Lookup>) {
        let (lookups, asked) = mpsc::channel(MAX_LOOKUPS);
        let mesh = Self {
            addresses: ArcSwap::default(),
            services: ArcSwap::default(),
            inbound: ArcSwapOption::empty(),
            outbound: ArcSwapOption::empty(),
            peers: ArcSwap::default(),
            own: OnceLock::new(),
            generation: AtomicU64::new(0),
            changed: watch::Sender::new(()),
            ranges: ArcSwapOption::empty(),
            identity: ArcSwapOption::empty(),
            identity_changed: watch::Sender::new(()),
            renewal_failing_since: AtomicI64::new(0),
            saved: watch::Sender::new(u64::MAX),
            connected: AtomicBool::new(false),
            heard: Heard::default(),
            holding: OnceLock::new(),
            handing: Handing::default(),
            lookups,
            started: Instant::now(),
        };
        (Arc::new(mesh), asked)
    }

    /// Nanoseconds of a monotonic clock.
    pub fn now(&self) -> u64 {
        self.started.elapsed().as_nanos() as u64
    }

    /// Certificate, bundle and the first policies are there: no fail-open window before that.
    pub fn is_ready(&self) -> bool {
        self.identity.load().is_some() && self.inbound.load().is_some() && self.outbound.load().is_some()
    }

    /// What keeps it from being ready.
    pub fn missing(&self) -> Vec<&'static str> {
        let mut missing = Vec::new();
        if self.identity.load().is_none() {
            missing.push("certificate and trust bundle");
        }
        if self.inbound.load().is_none() {
            missing.push("first inbound policy");
        }
        if self.outbound.load().is_none() {
            missing.push("first outbound policy");
        }
        missing
    }

    /// Whether an address is inside of the mesh ranges.
    pub fn in_mesh(&self, ip: IpAddr) -> bool {
        // Before the ranges are known, everything is in the mesh.
        self.ranges.load().as_ref().is_none_or(|ranges| ranges.iter().any(|r| r.contains(&ip)))
    }

    /// A service by its name.
    pub fn service(&self, id: &ObjectRef) -> Option<Arc<ServiceState>> {
        self.services.load().get(id).cloned()
    }

    /// Puts an inbound policy in force for the pod whose identity is `own`, with its rates; what callers have used up of a rate that stays is not
    /// given back.
    pub fn govern(&self, policy: InboundPolicy, own: &SpiffeId) {
        let limits = Rates::new(&policy.rates, self.inbound.load().as_ref().and_then(|before| before.limits.as_ref()));
        let compiled = Compiled::new(&policy.authorization, own.clone());
        let compiled = (!compiled.is_open()).then(|| Arc::new(compiled));
        let issuers = Issuers::new(&policy.issuers);
        self.inbound.store(Some(Arc::new(Governing { policy, limits, compiled, issuers })));
        self.policy_changed();
    }

    /// Puts an outbound policy in force.
    pub fn govern_outbound(&self, policy: OutboundPolicy) {
        let refused = policy.decide().err();
        let (refused, egress) = match self.own.get() {
            _ if policy.egress == Egress::default() => (refused, None),
            Some(own) => {
                let before = self.egress();
                (refused, Some(Arc::new(Table::new(&policy.egress, own, before.as_deref()))))
            }
            // Nobody has said whose policies these are.
            None => (refused.or_else(|| Some(Denial::FeatureMissing("an identity of the pod's own".to_owned()))), None),
        };
        self.outbound.store(Some(Arc::new(Outgoing { policy, refused, egress })));
        self.policy_changed();
    }

    /// Puts other sets of pods in force.
    pub fn know_peers(&self, peers: PeerSets) {
        self.peers.store(Arc::new(peers));
        self.policy_changed();
    }

    /// Says whose mesh this is, once: outbound policies are about this identity.
    pub fn is_of(&self, own: SpiffeId) {
        let _ = self.own.set(own);
    }

    /// Where the pod may go outside of the mesh; none where nothing is asked.
    pub fn egress(&self) -> Option<Arc<Table>> {
        self.outbound.load().as_ref()?.egress.clone()
    }

    /// Whether the pod may call anything at all: not before its first outbound policy, nor where that cannot be enforced.
    pub fn may_call(&self) -> Result<(), Failure> {
        match self.outbound.load().as_ref() {
            None => Err(Failure::mesh(Reason::NotReady).detail("there is no outbound policy yet")),
            Some(outgoing) => outgoing.refused.as_ref().map_or(Ok(()), |denial| Err(authorize::denied(denial))),
        }
    }

    /// After everything else: whoever sees the new generation sees the rest.
    fn policy_changed(&self) {
        self.generation.fetch_add(1, Release);
        self.changed.send_replace(());
    }

    /// The generation of the policies in force.
    pub fn generation(&self) -> u64 {
        self.generation.load(Acquire)
    }

    /// Tells of every new generation.
    pub fn generations(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Puts certificate and anchors to use.
    pub fn adopt(&self, identity: Arc<Identity>) {
        self.identity.store(Some(identity));
        self.identity_changed.send_replace(());
    }

    /// Tells of every change of the anchors, and of who is denied.
    pub fn bundles(&self) -> watch::Receiver<()> {
        self.identity_changed.subscribe()
    }

    /// What an address stands for. No answer is an error inside the mesh ranges (Invariant 1), and "unknown" outside.
    pub async fn resolve(&self, ip: IpAddr) -> Result<Target, Failure> {
        if let Some(address) = self.addresses.load().get(&ip) {
            address.used.store(self.now(), Relaxed);
            return Ok(address.target.clone());
        }
        let in_mesh = self.in_mesh(ip);
        if !in_mesh && !self.connected.load(Relaxed) {
            return Ok(Target::Unknown);
        }
        let (answer, answered) = oneshot::channel();
        if self.lookups.try_send(Lookup { address: ip, answer }).is_err() {
            return Err(Failure::mesh(Reason::Overloaded).detail("too many lookups wait for the control plane"));
        }
        match tokio::time::timeout(Duration::from_millis(wellknown::LOOKUP_TIMEOUT_MILLIS), answered).await {
            Ok(Ok(target)) => Ok(target),
            _ if in_mesh => Err(Failure::mesh(Reason::DiscoveryUnavailable).detail(format!("no answer for {ip}"))),
            _ => Ok(Target::Unknown),
        }
    }
}
