//! `weft.v1.Discovery`: one task per sidecar's stream.

mod closure;

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use prost::Message as _;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};
use weft_core::network_policy::PeersId;
use weft_core::policy::{FEATURE_DENY_LIST, FEATURE_NETWORK_POLICY, FEATURE_OUTBOUND, FEATURE_ROUTES, FEATURE_TRAFFIC_REPORT};
use weft_core::service::ObjectRef;
use weft_core::version::{SetHash, Version};
use weft_proto::v1::discovery_server::Discovery;
use weft_proto::v1::resource::Body;
use weft_proto::v1::watch_request::Message;
use weft_proto::{ResourceName, v1};
use weft_tls::LeafInfo;

use crate::dashboard::traffic::{self, Traffic};
use crate::hub::{Hub, Subscription};
use crate::issue::deny::Effective;
use crate::issue::trust::records::{Records, Seat};
use crate::server::{Peer, random, unix_millis, unix_now};
use crate::snapshot::{EndpointsEntry, PIECE, PeersEntry, Place, View, Viewer};

/// The most names that one message may carry.
const MAX_NAMES: usize = 1_000;
/// The most names that one stream may hold, with what its names bring: each address that it asks for may bring four.
const MAX_HELD: usize = 40_000;
/// New subscriptions a second that a stream is served without waiting, after a first burst of [`MAX_NAMES`].
const NAMES_PER_SECOND: u32 = 500;
/// Updates that may be unacknowledged at once.
const WINDOW: u64 = 16;
/// Resources in one update.
const MAX_RESOURCES: usize = 500;

pub struct DiscoveryService {
    pub hub: Arc<Hub>,
    /// Where it is kept what sidecars tell of their traffic, while somebody looks.
    pub traffic: Arc<Traffic>,
    /// Where it is noted what sidecars say that they serve and trust.
    pub records: Arc<Records>,
    /// Who is denied: their streams end.
    pub denials: watch::Receiver<Arc<Effective>>,
    pub heartbeat: Duration,
    /// How old a stream becomes, give or take a fifth: sidecars then connect anew, and so spread over replicas.
    pub max_age: Duration,
    /// Cancelled when this replica goes: streams end within [`Self::spread`], not all at once.
    pub stopping: CancellationToken,
    pub spread: Duration,
}

#[tonic::async_trait]
impl Discovery for DiscoveryService {
    type WatchStream = ReceiverStream<Result<v1::WatchResponse, Status>>;

    async fn watch(&self, request: Request<Streaming<v1::WatchRequest>>) -> Result<Response<Self::WatchStream>, Status> {
        let Peer::Workload(info) = Peer::of(&request) else {
            return Err(Status::unauthenticated("discovery needs an SVID as the connection's client certificate"));
        };
        if info.pod.is_none() {
            return Err(Status::permission_denied(
                "the SVID names no pod: it is an application's, and discovery is for sidecars",
            ));
        }
        let (tx, rx) = mpsc::channel(4);
        let status = v1::SidecarStatus {
            namespace: info.id.namespace().to_string(),
            pod: info.pod.as_ref().map(|p| p.name.to_string()).unwrap_or_default(),
            identity: info.id.to_string(),
            connected_at: unix_now(),
            ..Default::default()
        };
        let session = Session {
            sub: self.hub.join(info.pod.clone(), status),
            seat: self.records.joined(&info),
            traffic: self.traffic.join(info.pod.clone(), &info.id),
            tells_traffic: false,
            out: tx.clone(),
            held: HashMap::new(),
            bases: HashMap::new(),
            peers: HashMap::new(),
            set_hash: SetHash::default(),
            sent: 0,
            acknowledged: 0,
            unconfirmed: VecDeque::new(),
            heartbeat: self.heartbeat,
            place: Place::default(),
            viewer: Viewer { pod: info.pod.clone(), namespace: Some(info.id.namespace().clone()) },
            routes: false,
            knows_peers: false,
            fronts: HashSet::new(),
            budget: Budget { tokens: MAX_NAMES as f64, at: Instant::now() },
        };
        let (inbound, denied) = (request.into_inner(), denied(self.denials.clone(), info.clone()));
        let retired =
            retired(self.max_age.mul_f64(0.8 + 0.4 * fraction()), self.stopping.clone(), self.spread.mul_f64(fraction()));
        // The stream's own life bounds the task: it ends when the sidecar goes, misbehaves, or its certificate expires.
        tokio::spawn(async move {
            if let Err(status) = session.run(inbound, &info, (retired, denied)).await {
                tracing::info!(id = %info.id, reason = status.message(), "discovery stream ended");
                let _ = tx.try_send(Err(status));
            }
        });
        Ok(Response::new(ReceiverStream::new(rx)))
    }
}

/// Waits until an identity or its certificate is denied.
async fn denied(mut denials: watch::Receiver<Arc<Effective>>, leaf: Arc<LeafInfo>) {
    if denials.wait_for(|now| now.denied.has(&leaf)).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Evenly between 0 and 1.
fn fraction() -> f64 {
    (random() >> 11) as f64 / (1_u64 << 53) as f64
}

/// Waits until a stream has reached its age, or for its turn after the replica began to stop.
async fn retired(age: Duration, stopping: CancellationToken, turn: Duration) {
    tokio::select! {
        () = tokio::time::sleep(age) => {}
        () = stopping.cancelled() => tokio::time::sleep(turn).await,
    }
}

struct Budget {
    tokens: f64,
    at: Instant,
}

impl Budget {
    /// Takes `n` and says until when the stream must wait before it is read again.
    fn take(&mut self, n: usize) -> Instant {
        let now = Instant::now();
        let rate = f64::from(NAMES_PER_SECOND);
        self.tokens = (self.tokens + now.duration_since(self.at).as_secs_f64() * rate).min(MAX_NAMES as f64) - n as f64;
        self.at = now;
        now + Duration::from_secs_f64((-self.tokens / rate).max(0.0))
    }
}

struct Session {
    sub: Subscription,
    /// Its place in the records of who holds which certificate; none where its certificate names no pod.
    seat: Option<Seat>,
    traffic: traffic::Seat,
    /// It can be asked for reports.
    tells_traffic: bool,
    out: mpsc::Sender<Result<v1::WatchResponse, Status>>,
    /// What the sidecar holds: names with versions.
    held: HashMap<ResourceName, Version>,
    /// What it holds of endpoint sets, shared with the snapshot that it came from: the base of deltas.
    bases: HashMap<ResourceName, Arc<EndpointsEntry>>,
    /// The same of sets of pods.
    peers: HashMap<PeersId, Arc<PeersEntry>>,
    set_hash: SetHash,
    sent: u64,
    acknowledged: u64,
    /// Policies, of services and the sidecar's own, that were sent and are not acknowledged yet, with the update that they were in.
    unconfirmed: VecDeque<(u64, ResourceName, Version)>,
    heartbeat: Duration,
    /// Where the pod ran when endpoints were looked at last: it decides which of them are seen.
    place: Place,
    viewer: Viewer,
    /// Whether it knows what routes and policies are.
    routes: bool,
    /// The sidecar knows what sets of pods are.
    knows_peers: bool,
    /// Services that its workload calls by their own names or addresses: their routes count. Others are backends of those routes.
    fronts: HashSet<ObjectRef>,
    budget: Budget,
}

impl Session {
    /// Runs until the sidecar goes, or something is wrong, or `retired` says that it is time to go elsewhere: that is a clean end.
    async fn run(
        mut self,
        mut inbound: Streaming<v1::WatchRequest>,
        info: &LeafInfo,
        (retired, denied): (impl Future<Output = ()>, impl Future<Output = ()>),
    ) -> Result<(), Status> {
        tokio::pin!(retired, denied);
        let life = Duration::from_secs((info.not_after - unix_now()).max(0) as u64);
        let expiry = tokio::time::sleep(life);
        tokio::pin!(expiry);
        let mut beat = tokio::time::interval(self.heartbeat);
        beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut read_after = Instant::now();
        loop {
            let window_open = self.sent - self.acknowledged < WINDOW;
            tokio::select! {
                biased;
                () = &mut expiry => return Err(Status::unauthenticated("the certificate that this stream was opened with has expired: connect with the renewed one")),
                () = &mut denied => return Err(Status::permission_denied(format!("{} is denied: see `weft trust deny list`", info.id))),
                () = &mut retired => return Ok(()),
                message = async { tokio::time::sleep_until(read_after).await; inbound.message().await } => match message? {
                    None => return Ok(()),
                    Some(m) => read_after = self.hear(m)?,
                },
                () = self.sub.wait(), if window_open => self.flush().await?,
                wanted = self.traffic.asks(), if self.tells_traffic => self.send(v1::watch_response::Message::TelemetryWanted(wanted)).await?,
                _ = beat.tick() => {
                    let heartbeat = v1::Heartbeat {
                        set_hash: self.set_hash.0,
                        interval_millis: self.heartbeat.as_millis() as u32,
                        now_millis: unix_millis(),
                    };
                    self.send(v1::watch_response::Message::Heartbeat(heartbeat)).await?;
                }
            }
        }
    }

    async fn send(&self, message: v1::watch_response::Message) -> Result<(), Status> {
        self.out
            .send(Ok(v1::WatchResponse { message: Some(message) }))
            .await
            .map_err(|_| Status::cancelled("the sidecar went away"))
    }

    fn hear(&mut self, message: v1::WatchRequest) -> Result<Instant, Status> {
        let mut cost = 0;
        match message.message {
            None => return Err(Status::invalid_argument("the message is empty, or of a kind that this version does not know")),
            Some(Message::Hello(hello)) => {
                cost = hello.held.len();
                self.hello(hello)?;
            }
            Some(Message::Subscribe(s)) => {
                cost = s.names.len();
                self.check_count(cost)?;
                for name in &s.names {
                    let name = parse(name)?;
                    // Sets of pods come with the policies that name them.
                    if matches!(name, ResourceName::Peers(_)) {
                        continue;
                    }
                    if let ResourceName::Service(id) = &name {
                        self.fronts.insert(id.clone());
                    }
                    if !self.sub.add(name.clone()) {
                        // Asked again: answered again, whatever was sent before.
                        self.drop_held(&name);
                        self.sub.mark(name);
                    }
                }
            }
            Some(Message::Unsubscribe(u)) => {
                for name in &u.names {
                    let name = parse(name)?;
                    if let ResourceName::Service(id) | ResourceName::Routes(id) = &name {
                        self.fronts.remove(id);
                    }
                    if self.sub.remove(&name) {
                        self.drop_held(&name);
                    }
                }
            }
            Some(Message::Report(report)) => cost = self.traffic.take(report),
            Some(Message::Ack(ack)) => {
                if ack.nonce > self.sent {
                    return Err(Status::invalid_argument(format!("update {} was never sent", ack.nonce)));
                }
                self.acknowledged = self.acknowledged.max(ack.nonce);
                cost = ack.rejected.len();
                if cost > MAX_HELD {
                    return Err(Status::resource_exhausted(format!(
                        "{cost} rejections in one message; at most {MAX_HELD} are read"
                    )));
                }
                self.confirm(&ack.rejected);
                let short = |text: &str| text.chars().take(300).collect::<String>();
                let mut status = self.sub.status();
                for r in &ack.rejected {
                    let (place, message) = (short(&r.name), short(&r.reason));
                    tracing::warn!(pod = %status.pod, resource = %place, reason = %message, "a sidecar rejected a resource");
                    status.rejected.retain(|p| p.place != place);
                    if status.rejected.len() < 100 {
                        status.rejected.push(v1::Problem { place, field: String::new(), message });
                    }
                }
                drop(status);
                self.serves(ack.serving);
                // The window may have been shut with names waiting.
                self.sub.look_again();
            }
        }
        let mut status = self.sub.status();
        status.subscriptions = self.sub.len() as u32;
        status.unacknowledged = (self.sent - self.acknowledged) as u32;
        drop(status);
        Ok(self.budget.take(cost))
    }

    fn check_count(&self, more: usize) -> Result<(), Status> {
        if more > MAX_NAMES {
            return Err(Status::resource_exhausted(format!("{more} names in one message; at most {MAX_NAMES} are read")));
        }
        if self.sub.len() + more > MAX_HELD {
            return Err(Status::resource_exhausted(format!(
                "the stream holds {} names; at most {MAX_HELD}: unsubscribe from what is idle",
                self.sub.len()
            )));
        }
        Ok(())
    }

    /// The first message of a stream, or another one when the sidecar doubts what it holds.
    fn hello(&mut self, hello: v1::Hello) -> Result<(), Status> {
        if hello.held.len() > MAX_HELD {
            return Err(Status::resource_exhausted(format!("{} held names; at most {MAX_HELD}", hello.held.len())));
        }
        self.sub.status().version = hello.version.chars().take(40).collect();
        self.serves(hello.serving);
        self.sub.status().knows_denials = hello.features.iter().any(|f| f == FEATURE_DENY_LIST);
        self.tells_traffic = hello.features.iter().any(|f| f == FEATURE_TRAFFIC_REPORT);
        self.sub.status().tells_traffic = self.tells_traffic;
        self.routes = hello.features.iter().any(|f| f == FEATURE_ROUTES);
        self.knows_peers = hello.features.iter().any(|f| f == FEATURE_NETWORK_POLICY);
        let known: Vec<_> = self.held.keys().cloned().collect();
        for name in known {
            self.drop_held(&name);
            // Whatever it does not name in this message it does not have: it is sent again.
            self.sub.mark(name);
        }
        for h in hello.held {
            let name = parse(&h.name)?;
            if self.sub.len() >= MAX_HELD {
                return Err(Status::resource_exhausted(format!("the stream holds {MAX_HELD} names, and no more are taken")));
            }
            // Routes are held of what is called; what is called by its address is known by the address.
            if let ResourceName::Routes(id) = &name {
                self.fronts.insert(id.clone());
            }
            self.hold(name.clone(), Version(h.version));
            if !self.sub.add(name.clone()) {
                self.sub.mark(name.clone());
            }
            self.applied(name, Version(h.version));
        }
        for name in [ResourceName::Trust, ResourceName::Mesh, ResourceName::Inbound] {
            self.sub.add(name);
        }
        if hello.features.iter().any(|f| f == FEATURE_OUTBOUND) {
            self.sub.add(ResourceName::Outbound);
        }
        Ok(())
    }

    /// Notes what the sidecar says that it serves.
    fn serves(&mut self, serving: Option<v1::ServedCertificate>) {
        let Some(serving) = serving else { return };
        let mut status = self.sub.status();
        (status.serial, status.not_after) = (serving.serial.chars().take(64).collect(), serving.not_after);
        status.anchor = serving.anchor.chars().take(64).collect();
        status.renewal_failing_since = serving.renewal_failing_since;
        drop(status);
        if let Some(seat) = &mut self.seat {
            seat.says(&serving);
        }
    }

    /// What was acknowledged is in force, unless it was rejected.
    fn confirm(&mut self, rejected: &[v1::Rejected]) {
        while let Some((nonce, _, _)) = self.unconfirmed.front()
            && *nonce <= self.acknowledged
        {
            let Some((_, name, version)) = self.unconfirmed.pop_front() else { return };
            let text = name.to_string();
            if !rejected.iter().any(|r| r.name == text && r.version == version.0) {
                self.applied(name, version);
            }
        }
    }

    /// The sidecar has this version of a policy in force.
    fn applied(&self, name: ResourceName, version: Version) {
        match name {
            ResourceName::Policy(id) => self.sub.applied(id, version),
            ResourceName::Inbound => self.sub.applied_inbound(version),
            _ => {}
        }
    }

    fn hold(&mut self, name: ResourceName, version: Version) {
        let text = name.to_string();
        if let Some(old) = self.held.insert(name, version) {
            self.set_hash.remove(&text, old);
        }
        self.set_hash.add(&text, version);
    }

    fn drop_held(&mut self, name: &ResourceName) {
        self.bases.remove(name);
        if let ResourceName::Peers(id) = name {
            self.peers.remove(id);
        }
        if let Some(old) = self.held.remove(name) {
            self.set_hash.remove(&name.to_string(), old);
        }
    }

    async fn flush(&mut self) -> Result<(), Status> {
        // First the names, then the snapshot: a change that is marked in between is in the snapshot, or marked still.
        let names = self.sub.take(MAX_RESOURCES);
        let snapshot = self.sub.snapshot();
        let place = snapshot.place(self.sub.pod());
        if place != self.place {
            self.place = place;
            for name in self.held.keys().filter(|n| matches!(n, ResourceName::Endpoints(_))) {
                self.sub.mark(name.clone());
            }
        }
        let names = self.closure(&snapshot, names)?;
        let mut resources = Vec::new();
        let mut endpoints = 0;
        for name in names {
            let view = snapshot.view(&name, &self.viewer);
            let version = view.version();
            if self.held.get(&name) == Some(&version) {
                match (view, &name) {
                    (View::Endpoints(entry), _) => {
                        self.bases.insert(name, entry);
                    }
                    (View::Peers(entry), ResourceName::Peers(id)) => {
                        self.peers.insert(*id, entry);
                    }
                    _ => {}
                }
                continue;
            }
            let pieces = match &view {
                // A pod that the model does not have yet has no policy yet: its sidecar waits.
                View::Absent
                    if matches!(name, ResourceName::Inbound | ResourceName::Outbound) && !self.held.contains_key(&name) =>
                {
                    continue;
                }
                // The service says whether it has any.
                View::Absent
                    if matches!(name, ResourceName::Routes(_) | ResourceName::Policy(_)) && !self.held.contains_key(&name) =>
                {
                    continue;
                }
                View::Absent if matches!(name, ResourceName::Peers(_)) && !self.held.contains_key(&name) => {
                    self.sub.remove(&name);
                    continue;
                }
                View::Absent => {
                    self.bases.remove(&name);
                    vec![(version, None)]
                }
                View::Plain(entry) => vec![(version, Some(entry.body.clone()))],
                View::Routes(routes) => vec![(version, Some(routes.entry.body.clone()))],
                View::Peers(entry) => {
                    let base = if let ResourceName::Peers(id) = &name { self.peers.insert(*id, entry.clone()) } else { None };
                    entry.pieces(base.as_deref()).into_iter().map(|(version, body)| (version, Some(body))).collect()
                }
                View::Endpoints(entry) => {
                    let base = self.bases.insert(name.clone(), entry.clone());
                    entry.pieces(base.as_deref()).into_iter().map(|(version, body)| (version, Some(body))).collect()
                }
            };
            for (version, body) in pieces {
                endpoints += body.as_ref().map_or(0, weight);
                resources.push(v1::Resource { name: name.to_string(), version: version.0, body });
                if endpoints >= PIECE {
                    endpoints = 0;
                    self.update(std::mem::take(&mut resources)).await?;
                }
            }
            if matches!((&name, version), (ResourceName::Peers(_), Version(0))) {
                // A set that is not named any more is dropped at both ends.
                self.drop_held(&name);
                self.sub.remove(&name);
                continue;
            }
            self.hold(name, version);
        }
        if resources.is_empty() { Ok(()) } else { self.update(resources).await }
    }

    async fn update(&mut self, resources: Vec<v1::Resource>) -> Result<(), Status> {
        self.sent += 1;
        let names = resources.iter().filter_map(|r| Some((r.name.parse().ok()?, Version(r.version))));
        let policies = names.filter(|(name, _)| matches!(name, ResourceName::Policy(_) | ResourceName::Inbound));
        self.unconfirmed.extend(policies.map(|(name, version)| (self.sent, name, version)));
        self.sub.status().unacknowledged = (self.sent - self.acknowledged) as u32;
        self.send(v1::watch_response::Message::Update(v1::Update { nonce: self.sent, resources })).await
    }
}

/// About what an endpoint has on the wire.
const ENDPOINT_BYTES: usize = 200;

/// What a resource adds to the size of a message, in endpoints.
fn weight(body: &Body) -> usize {
    match body {
        Body::Endpoints(all) => all.endpoints.len(),
        Body::EndpointsDelta(delta) => delta.upserted.len() + delta.removed.len(),
        Body::Peers(all) => all.members.len(),
        Body::PeersDelta(delta) => delta.upserted.len() + delta.removed.len(),
        Body::Routes(routes) => routes.encoded_len() / ENDPOINT_BYTES,
        Body::Policy(policy) => policy.encoded_len() / ENDPOINT_BYTES,
        Body::Inbound(policy) => policy.encoded_len() / ENDPOINT_BYTES,
        Body::Outbound(policy) => policy.encoded_len() / ENDPOINT_BYTES,
        _ => 0,
    }
}

fn parse(name: &str) -> Result<ResourceName, Status> {
    name.parse().map_err(|e: weft_proto::name::UnknownName| Status::invalid_argument(e.to_string()))
}

#[cfg(test)]
mod tests;
