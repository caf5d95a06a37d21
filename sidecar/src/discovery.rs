//! The discovery stream: asks for what workers dial, applies what is pushed, and notices when it is behind.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use anyhow::Context;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use weft_core::authorization::Authorization;
use weft_core::backoff::Backoff;
use weft_core::network_policy::{PeerSet, PeerSets, PeersId};
use weft_core::policy::{FEATURE_OUTBOUND, FEATURES, InboundPolicy, MtlsMode, OutboundPolicy};
use weft_core::service::{AddressKind, Endpoint, ObjectRef, Service};
use weft_core::traffic::{Route, TrafficPolicy};
use weft_core::version::{SetHash, Version};
use weft_proto::v1::discovery_client::DiscoveryClient;
use weft_proto::v1::resource::Body;
use weft_proto::v1::watch_request::Message as Request;
use weft_proto::v1::watch_response::Message as Response;
use weft_proto::{ResourceName, address_from, endpoint_from, member_from, member_to, v1};
use weft_tls::TrustBundle;

use crate::config::Config;
use crate::control::{self, Trust};
use crate::identity::{Current, Trusted, describe, random, serving};
use crate::isolation::{self, Egress};
use crate::mesh::{Address, Identity, Lookup, Mesh, Target};
use crate::report::Reports;
use crate::service::{Facts, ServiceState, ServiceView};
use crate::standing::Health;
use crate::worker::Shared;

/// An address that nobody dialled for this long is unsubscribed from.
const IDLE: Duration = Duration::from_secs(300);
/// An unknown address that nobody dialled for this long.
const IDLE_UNKNOWN: Duration = Duration::from_secs(30);

/// A stream that ends sooner was not ended in good order, and is not followed by the next one without a wait.
const AT_ONCE: Duration = Duration::from_secs(1);

/// What the sidecar holds, by name: the last good body of each resource and its version.
#[derive(Default)]
pub struct Held {
    resources: BTreeMap<ResourceName, Arc<v1::Resource>>,
    set_hash: SetHash,
}

impl Held {
    fn put(&mut self, name: ResourceName, resource: v1::Resource) {
        self.remove(&name);
        self.set_hash.add(&name.to_string(), Version(resource.version));
        self.resources.insert(name, Arc::new(resource));
    }

    fn remove(&mut self, name: &ResourceName) {
        if let Some(old) = self.resources.remove(name) {
            self.set_hash.remove(&name.to_string(), Version(old.version));
        }
    }

    pub fn resources(&self) -> impl Iterator<Item = &Arc<v1::Resource>> {
        self.resources.values()
    }
}

/// The control thread's side of the mesh state.
pub struct Discovery {
    config: Config,
    mesh: Arc<Mesh>,
    trust: watch::Sender<Option<Trusted>>,
    held: Held,
    services: HashMap<ObjectRef, Service>,
    /// Sorted by address. Endpoints on a host's network may share one: they differ by their ports.
    endpoints: HashMap<ObjectRef, Vec<Endpoint>>,
    routes: HashMap<ObjectRef, Vec<Arc<Route>>>,
    policies: HashMap<ObjectRef, Arc<TrafficPolicy>>,
    /// What a service must have before it is dialled: routes, and a policy.
    awaited: HashMap<ObjectRef, Awaited>,
    states: HashMap<ObjectRef, Arc<ServiceState>>,
    /// Services of which something is another than their states say.
    stale: HashSet<ObjectRef>,
    /// Services whose endpoints are coming in pieces.
    unfinished: HashSet<ObjectRef>,
    /// The sets of pods that network policies name, whole.
    peers: PeerSets,
    /// Sets that are coming in pieces.
    coming: HashMap<PeersId, PeerSet>,
    /// Some set is another than workers see.
    peers_changed: bool,
    kinds: HashMap<IpAddr, AddressKind>,
    waiting: HashMap<IpAddr, Vec<oneshot::Sender<Target>>>,
    /// The control plane did not know a name that was held: an older replica. Only names that every version knows are told to it.
    plain_names: bool,
    /// Where it is known what the workers do, for those who ask by the control plane.
    shared: Option<Arc<Shared>>,
}

/// What the control plane has of a service: it is not dialled before this is held, too.
#[derive(Clone, Copy, Default)]
struct Awaited {
    routes: bool,
    policy: bool,
}

/// Why a resource could not be applied: the earlier one stays in force.
type Rejection = String;

impl Discovery {
    pub fn new(config: Config, mesh: Arc<Mesh>) -> (Self, watch::Receiver<Option<Trusted>>) {
        let (trust, watched) = watch::channel(None);
        mesh.is_of(config.identity.spiffe_id());
        let discovery = Self {
            config,
            mesh,
            trust,
            held: Held::default(),
            services: HashMap::new(),
            endpoints: HashMap::new(),
            routes: HashMap::new(),
            policies: HashMap::new(),
            awaited: HashMap::new(),
            states: HashMap::new(),
            stale: HashSet::new(),
            unfinished: HashSet::new(),
            peers: PeerSets::new(),
            coming: HashMap::new(),
            peers_changed: false,
            kinds: HashMap::new(),
            waiting: HashMap::new(),
            plain_names: false,
            shared: None,
        };
        (discovery, watched)
    }

    /// Has it tell of traffic, while it is asked to.
    #[must_use]
    pub fn telling(self, shared: &Arc<Shared>) -> Self {
        Self { shared: Some(shared.clone()), ..self }
    }

    /// What is held now, to be kept.
    pub fn held(&self) -> Vec<Arc<v1::Resource>> {
        self.held.resources().cloned().collect()
    }

    /// Takes over what was saved. What does not apply is left out.
    pub fn restore(&mut self, resources: Vec<v1::Resource>) {
        // The anchors were kept with the certificate, and are newer there: discovery brings them again.
        for mut resource in resources.into_iter().filter(|r| r.name != ResourceName::Trust.to_string()) {
            // Another version of this program may have kept it, and have left out what it did not know: it is in force until the control plane
            // sends it again, and so it is not said to be what the control plane has.
            // 0 is the version of what is absent, which is to be told, but of the pod's own policies: those stay.
            let is_own = matches!(&*resource.name, "inbound" | "outbound");
            resource.version = u64::from(!is_own || resource.body.is_none());
            if let Err(reason) = self.apply(resource) {
                tracing::warn!(reason, "a saved resource cannot be used");
            }
        }
        self.publish();
    }

    /// Runs until the process ends, over one stream after another.
    pub async fn run(
        mut self,
        mut identity: Current,
        mut lookups: mpsc::Receiver<Lookup>,
        saver: watch::Sender<Vec<Arc<v1::Resource>>>,
    ) {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(10));
        loop {
            let Some(current) = identity.borrow_and_update().clone() else {
                tokio::select! {
                    r = identity.changed() => if r.is_err() { return },
                    Some(lookup) = lookups.recv() => self.ask(lookup),
                }
                continue;
            };
            let began = Instant::now();
            let ended = self.stream(&current, &mut identity, &mut lookups, &saver).await;
            // The next one may be told of everything again: replicas differ while they are upgraded.
            self.plain_names = !self.plain_names && ended.as_ref().is_err_and(knows_too_little);
            self.mesh.connected.store(false, Relaxed);
            match ended {
                Ok(()) => backoff.reset(),
                Err(e) => {
                    if began.elapsed() > Duration::from_secs(30) {
                        backoff.reset();
                    }
                    tracing::warn!("discovery: {e:#}; the last good state stays in force");
                    let wait = tokio::time::sleep(backoff.next_wait(random()).max(Duration::from_millis(20)));
                    tokio::pin!(wait);
                    loop {
                        tokio::select! {
                            () = &mut wait => break,
                            Some(lookup) = lookups.recv() => self.ask(lookup),
                        }
                    }
                }
            }
        }
    }

    /// Notes a question; it is answered when the stream brings the answer.
    fn ask(&mut self, lookup: Lookup) {
        self.waiting.retain(|_, list| {
            list.retain(|w| !w.is_closed());
            !list.is_empty()
        });
        self.waiting.entry(lookup.address).or_default().push(lookup.answer);
    }

    /// One stream, until it breaks or the certificate that it was made with is replaced.
    async fn stream(
        &mut self,
        current: &Arc<Identity>,
        identity: &mut Current,
        lookups: &mut mpsc::Receiver<Lookup>,
        saver: &watch::Sender<Vec<Arc<v1::Resource>>>,
    ) -> anyhow::Result<()> {
        let channel = control::connect(&self.config, Trust::Bundle(&current.svid, &current.bundle)).await?;
        let (tx, rx) = mpsc::channel(64);
        let send = |m: Request| tx.try_send(v1::WatchRequest { message: Some(m) }).context("the control plane does not read");
        let mut saved = self.mesh.saved.subscribe();
        send(self.hello(current))?;
        if !self.waiting.is_empty() {
            send(subscribe(self.waiting.keys().copied()))?;
        }
        let mut client = DiscoveryClient::new(channel).max_decoding_message_size(64 << 20);
        let mut updates = client
            .watch(tokio_stream::wrappers::ReceiverStream::new(rx))
            .await
            .map_err(|s| anyhow::Error::new(s.clone()).context(format!("the control plane refused: {}", describe(&s))))?
            .into_inner();
        self.mesh.connected.store(true, Relaxed);
        self.mesh.heard.streams.fetch_add(1, Relaxed);
        self.mesh.heard.note(self.mesh.now());
        let began = Instant::now();
        let mut silence = Duration::from_secs(30);
        let mut doubts = 0;
        let (mut answered, mut in_use) = (0, current.clone());
        let mut idle = tokio::time::interval(Duration::from_secs(5));
        let mut reports = Reports::new(self.shared.clone());
        let deadline = tokio::time::sleep(silence);
        tokio::pin!(deadline);
        loop {
            tokio::select! {
                biased;
                changed = identity.changed() => {
                    changed.context("the identity ended")?;
                    let now = identity.borrow_and_update().clone();
                    let Some(now) = now.filter(|i| i.svid.info().serial == current.svid.info().serial) else {
                        return Ok(());
                    };
                    // The anchors that are in force are others, or renewal fails: that is told by an answer that was given before.
                    send(Request::Ack(v1::Ack { nonce: answered, rejected: vec![], serving: Some(self.serving(&now)) }))?;
                    in_use = now;
                }
                changed = saved.changed() => {
                    changed.context("nothing is kept any more")?;
                    send(Request::Ack(v1::Ack { nonce: answered, rejected: vec![], serving: Some(self.serving(&in_use)) }))?;
                }
                message = updates.message() => {
                    let Some(message) = message.map_err(|s| anyhow::Error::new(s.clone()).context(format!("stream broken: {}", describe(&s))))? else {
                        // It sends its sidecars to another replica, now and then, or when it stops; the next stream begins with
                        // what is held.
                        anyhow::ensure!(began.elapsed() > AT_ONCE, "the control plane ended the stream at once");
                        tracing::debug!("the control plane ended the stream: connecting anew");
                        return Ok(());
                    };
                    deadline.as_mut().reset(Instant::now() + silence);
                    self.mesh.heard.note(self.mesh.now());
                    match message.message {
                        Some(Response::Update(update)) => {
                            answered = update.nonce;
                            let (ack, resync) = self.update(update, &in_use);
                            self.mesh.heard.rejected.fetch_add(ack.rejected.len() as u64, Relaxed);
                            send(Request::Ack(ack))?;
                            if resync {
                                send(self.hello(&in_use))?;
                            }
                            saver.send_replace(self.held());
                        }
                        Some(Response::Heartbeat(beat)) => {
                            self.mesh.heard.compare(beat.now_millis);
                            silence = Duration::from_millis(u64::from(beat.interval_millis).clamp(100, 300_000) * 3);
                            deadline.as_mut().reset(Instant::now() + silence);
                            doubts = if beat.set_hash == self.set_hash() { 0 } else { doubts + 1 };
                            // An unsubscription may be on its way: only the second time it is a difference.
                            if doubts >= 2 {
                                tracing::warn!("held state differs from the control plane's: asking anew");
                                doubts = 0;
                                send(self.hello(&in_use))?;
                            }
                        }
                        Some(Response::TelemetryWanted(wanted)) => reports.are_wanted(&wanted),
                        None => {}
                    }
                }
                Some(lookup) = lookups.recv() => {
                    // Whatever else was asked meanwhile goes with it.
                    let mut fresh = Vec::new();
                    let mut next = Some(lookup);
                    while let Some(lookup) = next {
                        let address = lookup.address;
                        if let Some(known) = self.mesh.addresses.load().get(&address) {
                            let _ = lookup.answer.send(known.target.clone());
                        } else if !lookup.answer.is_closed() {
                            if !self.waiting.contains_key(&address) {
                                fresh.push(address);
                            }
                            self.ask(lookup);
                        }
                        next = if fresh.len() < 500 { lookups.try_recv().ok() } else { None };
                    }
                    if !fresh.is_empty() {
                        send(subscribe(fresh))?;
                    }
                }
                _ = idle.tick() => {
                    let names = self.expire();
                    if !names.is_empty() {
                        saver.send_replace(self.held());
                        send(Request::Unsubscribe(v1::Unsubscribe { names }))?;
                    }
                }
                () = reports.due() => {
                    // Where it does not get away, the next one says it as well.
                    if tx.capacity() > tx.max_capacity() / 2 && let Some(report) = reports.report() {
                        send(Request::Report(report))?;
                    }
                }
                () = &mut deadline => anyhow::bail!("nothing was heard for {silence:?}"),
            }
        }
    }

    fn hello(&self, current: &Identity) -> Request {
        Request::Hello(v1::Hello {
            version: env!("CARGO_PKG_VERSION").into(),
            features: FEATURES.iter().map(ToString::to_string).collect(),
            held: self.told().map(|(n, r)| v1::Held { name: n.to_string(), version: r.version }).collect(),
            serving: Some(self.serving(current)),
        })
    }

    /// What is held, as far as the control plane can know the names.
    fn told(&self) -> impl Iterator<Item = (&ResourceName, &Arc<v1::Resource>)> {
        self.held.resources.iter().filter(|(name, _)| !self.plain_names || is_plain(name))
    }

    /// The hash that the control plane must have of what it was told, and told.
    fn set_hash(&self) -> u64 {
        let mut hash = self.held.set_hash;
        if self.plain_names {
            for (name, resource) in self.held.resources.iter().filter(|(name, _)| !is_plain(name)) {
                hash.remove(&name.to_string(), Version(resource.version));
            }
        }
        hash.0
    }

    fn serving(&self, identity: &Identity) -> v1::ServedCertificate {
        serving(identity, self.mesh.renewal_failing_since.load(Relaxed), *self.mesh.saved.borrow())
    }

    fn update(&mut self, update: v1::Update, current: &Identity) -> (v1::Ack, bool) {
        let mut rejected = Vec::new();
        let mut resync = false;
        for resource in update.resources {
            let (name, version) = (resource.name.clone(), resource.version);
            if let Err(reason) = self.apply(resource) {
                resync |= reason == MISSING_BASE;
                rejected.push(v1::Rejected { name, version, reason });
            }
        }
        self.publish();
        (v1::Ack { nonce: update.nonce, rejected, serving: Some(self.serving(current)) }, resync)
    }

    /// Applies one resource, or says why not.
    fn apply(&mut self, mut resource: v1::Resource) -> Result<(), Rejection> {
        let name: ResourceName = resource.name.parse().map_err(|e: weft_proto::name::UnknownName| e.to_string())?;
        let result = self.apply_body(&name, &mut resource);
        // What was rejected of these is no base for later changes.
        if result
            .as_ref()
            .is_err_and(|r| r == MISSING_BASE || matches!(name, ResourceName::Endpoints(_) | ResourceName::Peers(_)))
        {
            self.held.remove(&name);
            return result;
        }
        // A set that no policy names any more is dropped at both ends.
        if matches!(name, ResourceName::Peers(_)) && resource.body.is_none() {
            self.held.remove(&name);
            return result;
        }
        // Held even if it was rejected: the version is what the control plane sent, and it was told.
        self.held.put(name, resource);
        result
    }

    fn apply_body(&mut self, name: &ResourceName, resource: &mut v1::Resource) -> Result<(), Rejection> {
        let text = |e: &dyn std::fmt::Display| e.to_string();
        match (name, resource.body.as_ref()) {
            (ResourceName::Trust, Some(Body::Trust(wire))) => {
                let bundle = TrustBundle::try_from(wire).map_err(|e| text(&e))?;
                self.mesh.handing.hear_keys(wire);
                self.trust.send_replace(Some(Trusted { bundle: Arc::new(bundle), issuing: wire.issuing.clone() }));
            }
            (ResourceName::Mesh, Some(Body::Mesh(mesh))) => {
                let ranges = mesh
                    .ranges
                    .iter()
                    .map(|r| r.parse())
                    .collect::<Result<Vec<_>, _>>()
                    .map_err(|e: ipnet::AddrParseError| text(&e))?;
                self.mesh.ranges.store(Some(Arc::new(ranges)));
                // A control plane that knows of no outbound policies sends none: nothing is waited for, and one from before stays in force.
                if !mesh.features.iter().any(|f| f == FEATURE_OUTBOUND) && self.mesh.outbound.load().is_none() {
                    self.mesh.govern_outbound(OutboundPolicy::default());
                }
            }
            (ResourceName::Inbound, Some(Body::Inbound(policy))) => match InboundPolicy::try_from(policy) {
                Ok(policy) => {
                    // Which endpoints are near is another matter now.
                    if self.mesh.inbound.load().as_ref().is_some_and(|before| before.zone != policy.zone) {
                        self.stale.extend(self.services.keys().cloned());
                    }
                    // The sets that it names come before it.
                    self.publish_peers();
                    self.mesh.govern(policy, &self.config.identity.spiffe_id());
                }
                Err(e) => {
                    self.deny(&e);
                    return Err(text(&e));
                }
            },
            // The pod is gone from the model. What was in force stays: dropping it would open nothing, but cut everything.
            (ResourceName::Inbound | ResourceName::Outbound, None) if resource.version == 0 => {}
            (ResourceName::Outbound, Some(Body::Outbound(policy))) => match OutboundPolicy::try_from(policy) {
                Ok(policy) => {
                    self.publish_peers();
                    self.mesh.govern_outbound(policy);
                    // Which endpoints may be called is another matter now.
                    self.stale.extend(self.services.keys().cloned());
                }
                Err(e) => {
                    self.deny_outbound(&e);
                    return Err(text(&e));
                }
            },
            (ResourceName::Address(ip), Some(Body::Address(address))) => {
                let kind = AddressKind::try_from(address).map_err(|e| text(&e))?;
                self.kinds.insert(*ip, kind);
            }
            (ResourceName::Service(id), Some(Body::Service(service))) => {
                let awaited = Awaited { routes: service.has_routes, policy: service.has_policy };
                let service = Service::try_from(service).map_err(|e| text(&e))?;
                self.awaited.insert(id.clone(), awaited);
                self.services.insert(id.clone(), service);
                self.stale.insert(id.clone());
            }
            (ResourceName::Service(id), None) => {
                self.services.remove(id);
                self.states.remove(id);
            }
            (ResourceName::Routes(id), Some(Body::Routes(wire))) => {
                let routes = wire.routes.iter().map(|r| Route::try_from(r).map(Arc::new)).collect::<Result<Vec<_>, _>>();
                self.routes.insert(id.clone(), routes.map_err(|e| text(&e))?);
                self.stale.insert(id.clone());
            }
            (ResourceName::Routes(id), None) => {
                self.routes.remove(id);
                self.stale.insert(id.clone());
            }
            (ResourceName::Policy(id), Some(Body::Policy(wire))) => {
                let policy = TrafficPolicy::try_from(wire).map_err(|e| text(&e))?;
                self.policies.insert(id.clone(), Arc::new(policy));
                self.stale.insert(id.clone());
            }
            (ResourceName::Policy(id), None) => {
                self.policies.remove(id);
                self.stale.insert(id.clone());
            }
            (ResourceName::Endpoints(id), Some(Body::Endpoints(wire))) => {
                let list = wire.endpoints.iter().map(endpoint_from).collect::<Result<Vec<_>, _>>();
                let more = wire.more;
                self.endpoints.insert(id.clone(), sorted(list.map_err(|e| text(&e))?));
                self.refresh(id, more);
            }
            (ResourceName::Endpoints(id), Some(Body::EndpointsDelta(delta))) => {
                let known = self.held.resources.get(name).is_some_and(|r| r.version == delta.base);
                let Some(list) = self.endpoints.get_mut(id).filter(|_| known) else { return Err(MISSING_BASE.into()) };
                let upserted = delta.upserted.iter().map(endpoint_from).collect::<Result<Vec<_>, _>>().map_err(|e| text(&e))?;
                let removed =
                    delta.removed.iter().map(|a| address_from(a)).collect::<Result<Vec<_>, _>>().map_err(|e| text(&e))?;
                // A change names endpoints by address: none that it touches shares its address.
                let touched: HashSet<IpAddr> = removed.into_iter().chain(upserted.iter().map(|e| e.address)).collect();
                list.retain(|e| !touched.contains(&e.address));
                list.extend(upserted);
                *list = sorted(std::mem::take(list));
                // Kept whole, so that saved state stands alone.
                let (more, all) = (delta.more, list.iter().map(Into::into).collect());
                resource.body = Some(Body::Endpoints(v1::Endpoints { endpoints: all, more }));
                self.refresh(id, more);
            }
            (ResourceName::Peers(id), Some(Body::Peers(wire))) => {
                let (members, more) = (wire.members.iter().map(member_from).collect::<Result<_, _>>(), wire.more);
                let members = members.map_err(|e| self.drop_peers(*id, &e))?;
                self.take_peers(*id, members, more);
            }
            (ResourceName::Peers(id), Some(Body::PeersDelta(delta))) => {
                let known = self.held.resources.get(name).is_some_and(|r| r.version == delta.base);
                let base = self.coming.get(id).or_else(|| self.peers.get(id).map(|set| &**set)).filter(|_| known);
                let Some(mut members) = base.cloned() else { return Err(MISSING_BASE.into()) };
                let upserted = delta.upserted.iter().map(member_from).collect::<Result<Vec<_>, _>>();
                let removed = delta.removed.iter().map(|a| address_from(a)).collect::<Result<Vec<_>, _>>();
                let more = delta.more;
                let (upserted, removed) = match (upserted, removed) {
                    (Ok(upserted), Ok(removed)) => (upserted, removed),
                    (Err(e), _) | (_, Err(e)) => return Err(self.drop_peers(*id, &e)),
                };
                members.retain(|address, _| !removed.contains(address));
                members.extend(upserted);
                // Kept whole, so that saved state stands alone.
                let all = members.iter().map(|(a, m)| member_to(*a, m)).collect();
                resource.body = Some(Body::Peers(v1::Peers { members: all, more }));
                self.take_peers(*id, members, more);
            }
            (ResourceName::Peers(id), None) => {
                self.coming.remove(id);
                self.peers_changed |= self.peers.remove(id).is_some();
            }
            (ResourceName::Endpoints(id), None) => {
                self.unfinished.remove(id);
                self.endpoints.remove(id);
            }
            (name, _) => {
                let reason = "the body is missing, or of a kind that does not belong to the name or to this version";
                if *name == ResourceName::Inbound {
                    self.deny(&reason);
                }
                if *name == ResourceName::Outbound {
                    self.deny_outbound(&reason);
                }
                return Err(reason.into());
            }
        }
        Ok(())
    }

    /// A policy that cannot be read denies: the earlier one may have allowed more.
    fn deny(&self, why: &dyn std::fmt::Display) {
        let policy = InboundPolicy {
            mode: MtlsMode::Strict,
            port_modes: vec![],
            protocols: vec![],
            required_features: vec![format!("a policy that can be read ({why})")],
            rates: vec![],
            zone: "".into(),
            authorization: Authorization::default(),
            issuers: vec![],
            network: None,
        };
        self.mesh.govern(policy, &self.config.identity.spiffe_id());
    }

    /// Likewise: nothing is called until it can be read.
    fn deny_outbound(&self, why: &dyn std::fmt::Display) {
        self.mesh.govern_outbound(OutboundPolicy {
            required_features: vec![format!("a policy that can be read ({why})")],
            ..OutboundPolicy::default()
        });
    }

    /// Takes a set of pods in, once all of it is there.
    fn take_peers(&mut self, id: PeersId, members: PeerSet, more: bool) {
        if more {
            self.coming.insert(id, members);
            return;
        }
        self.coming.remove(&id);
        self.peers.insert(id, Arc::new(members));
        self.peers_changed = true;
    }

    /// A set that cannot be read is as one that is not there: nobody is in it.
    fn drop_peers(&mut self, id: PeersId, why: &dyn std::fmt::Display) -> Rejection {
        self.coming.remove(&id);
        self.peers_changed |= self.peers.remove(&id).is_some();
        why.to_string()
    }

    /// Has workers see the sets of pods.
    fn publish_peers(&mut self) {
        if !std::mem::take(&mut self.peers_changed) {
            return;
        }
        self.mesh.know_peers(self.peers.clone());
        if isolation::is_isolated(&self.mesh) {
            self.stale.extend(self.services.keys().cloned());
        }
    }

    /// Gives a service's state its endpoints, once all of them are there.
    fn refresh(&mut self, id: &ObjectRef, more: bool) {
        if more {
            self.unfinished.insert(id.clone());
            return;
        }
        self.unfinished.remove(id);
        let (Some(state), Some(service)) = (self.states.get(id), self.services.get(id)) else { return };
        if let Some(view) = self.view(service, Some(&state.view.load())) {
            state.view.store(Arc::new(view));
        }
    }

    /// A service as workers see it; none while its endpoints are not there.
    fn view(&self, service: &Service, before: Option<&ServiceView>) -> Option<ServiceView> {
        let endpoints = self.endpoints.get(&service.id)?;
        let awaited = self.awaited.get(&service.id).copied().unwrap_or_default();
        let policy = match self.policies.get(&service.id) {
            Some(policy) => policy.clone(),
            None if awaited.policy => return None,
            None => Arc::default(),
        };
        let routes = self.routes.get(&service.id).map(Vec::as_slice).unwrap_or_default();
        let zone = self.mesh.inbound.load().as_ref().map(|p| p.zone.clone()).unwrap_or_default();
        let (outgoing, sets) = (self.mesh.outbound.load(), self.mesh.peers.load());
        let network = outgoing.as_ref().and_then(|o| o.network.as_deref());
        let egress = network.map(|network| Egress { network, sets: &sets });
        let facts = Facts { service, endpoints, routes, policy: &policy, zone: &zone, egress };
        Some(ServiceView::new(facts, before, &self.config.net, self.mesh.now()))
    }

    /// Has workers see what was applied, and answers who waits.
    fn publish(&mut self) {
        let now = self.mesh.now();
        self.publish_peers();
        self.publish_services();
        let current = self.mesh.addresses.load_full();
        let mut next = (*current).clone();
        let kinds: Vec<_> = self.kinds.iter().map(|(ip, kind)| (*ip, kind.clone())).collect();
        for (ip, kind) in kinds {
            let before = current.get(&ip);
            let target = match (kind, before.map(|b| &b.target)) {
                (AddressKind::Unknown, Some(Target::Unknown)) => continue,
                (AddressKind::Unknown, _) => Some(Target::Unknown),
                (AddressKind::Workload(w), Some(Target::Workload(b))) if b.workload == w => continue,
                (AddressKind::Workload(w), before) => {
                    let load = match before {
                        Some(Target::Workload(b)) if b.workload.id == w.id => b.endpoint.health.clone(),
                        _ => Arc::new(Health::new(now, 0, &Arc::default())),
                    };
                    Some(Target::workload(w, load))
                }
                (AddressKind::Service(id), before) => match self.dialled(&id) {
                    Some(state) => match before {
                        Some(Target::Service(b)) if Arc::ptr_eq(b, &state) => continue,
                        _ => Some(Target::Service(state)),
                    },
                    None => None,
                },
            };
            match target {
                Some(target) => {
                    let address = before.map_or_else(|| Address::new(target.clone(), now), |b| b.becomes(target.clone()));
                    next.insert(ip, address);
                }
                None => {
                    next.remove(&ip);
                }
            }
        }
        for ip in current.keys().filter(|ip| !self.kinds.contains_key(ip)) {
            next.remove(ip);
        }
        for (ip, address) in &next {
            for answer in self.waiting.remove(ip).into_iter().flatten() {
                let _ = answer.send(address.target.clone());
            }
        }
        self.mesh.addresses.store(Arc::new(next));
    }

    /// Has workers see every service, those that routes lead to among them.
    fn publish_services(&mut self) {
        let ids: Vec<_> = self.services.keys().cloned().collect();
        let all: imbl::HashMap<_, _> = ids.into_iter().filter_map(|id| Some((id.clone(), self.service_state(&id)?))).collect();
        self.stale.clear();
        let held = self.mesh.services.load();
        if all.len() != held.len() || all.iter().any(|(id, s)| held.get(id).is_none_or(|h| !Arc::ptr_eq(h, s))) {
            self.mesh.services.store(Arc::new(all));
        }
    }

    /// A service that can be dialled: its routes are held, if it has any.
    fn dialled(&self, id: &ObjectRef) -> Option<Arc<ServiceState>> {
        let awaits = self.awaited.get(id).is_some_and(|a| a.routes) && !self.routes.contains_key(id);
        if awaits { None } else { self.states.get(id).cloned() }
    }

    /// A service whose facts, endpoints and policy are there.
    fn service_state(&mut self, id: &ObjectRef) -> Option<Arc<ServiceState>> {
        let service = self.services.get(id)?;
        if let Some(state) = self.states.get(id) {
            let view = state.view.load();
            if self.stale.contains(id)
                && !self.unfinished.contains(id)
                && let Some(view) = self.view(service, Some(&view))
            {
                state.view.store(Arc::new(view));
            }
            return Some(state.clone());
        }
        let state = Arc::new(ServiceState::new(self.view(service, None)?));
        self.states.insert(id.clone(), state.clone());
        Some(state)
    }

    /// Forgets what nobody dials any more; gives the names to unsubscribe from.
    fn expire(&mut self) -> Vec<String> {
        let now = self.mesh.now();
        let mut gone = Vec::new();
        for (ip, address) in self.mesh.addresses.load().iter() {
            let limit = match &address.target {
                Target::Unknown => IDLE_UNKNOWN,
                Target::Workload(_) => IDLE,
                // With the service goes what it remembers of its clients.
                Target::Service(s) => IDLE.max(s.view.load().service.client_ip_affinity.unwrap_or_default()),
            };
            if now.saturating_sub(address.last_used()) > limit.as_nanos() as u64 {
                gone.push(*ip);
            }
        }
        let mut names = Vec::new();
        for ip in gone.into_iter().take(500) {
            self.kinds.remove(&ip);
            names.push(ResourceName::Address(ip));
        }
        for id in self.unneeded() {
            self.services.remove(&id);
            self.endpoints.remove(&id);
            self.routes.remove(&id);
            self.policies.remove(&id);
            self.awaited.remove(&id);
            self.states.remove(&id);
            self.unfinished.remove(&id);
            names.extend(
                [ResourceName::Service, ResourceName::Endpoints, ResourceName::Routes, ResourceName::Policy]
                    .map(|n| n(id.clone())),
            );
        }
        if !names.is_empty() {
            for name in &names {
                self.held.remove(name);
            }
            self.publish();
        }
        names.iter().map(ToString::to_string).collect()
    }
}

impl Discovery {
    /// Services that no address stands for, and no route of one that an address stands for leads to.
    fn unneeded(&self) -> Vec<ObjectRef> {
        // A service may have an address of each family.
        let dialled = self.kinds.values().filter_map(|k| if let AddressKind::Service(id) = k { Some(id) } else { None });
        let mut needed: HashSet<&ObjectRef> = dialled.collect();
        let led_to: Vec<&ObjectRef> =
            needed.iter().filter_map(|id| self.routes.get(*id)).flatten().flat_map(|r| r.services()).collect();
        needed.extend(led_to);
        self.services.keys().filter(|id| !needed.contains(id)).cloned().collect()
    }
}

fn sorted(mut list: Vec<Endpoint>) -> Vec<Endpoint> {
    list.sort_by(|a, b| (a.address, &a.ports).cmp(&(b.address, &b.ports)));
    list
}

/// Whether every control plane knows the name.
fn is_plain(name: &ResourceName) -> bool {
    !matches!(name, ResourceName::Outbound | ResourceName::Peers(_))
}

/// Whether a stream ended because the control plane does not know what was said to it.
fn knows_too_little(e: &anyhow::Error) -> bool {
    e.downcast_ref::<tonic::Status>().is_some_and(|s| s.code() == tonic::Code::InvalidArgument)
}

const MISSING_BASE: &str = "what the change builds on is not held";

fn subscribe(addresses: impl IntoIterator<Item = IpAddr>) -> Request {
    Request::Subscribe(v1::Subscribe { names: addresses.into_iter().map(|ip| ResourceName::Address(ip).to_string()).collect() })
}
