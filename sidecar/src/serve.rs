//! Connections whose bytes are known: HTTP/1, HTTP/2, or opaque.

use std::net::{IpAddr, SocketAddr};
use std::ops::ControlFlow;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use weft_core::failure::{Failure, Reason, Side};
use weft_core::protocol::MeshProtocol;
use weft_core::traffic::apply::choose_backend;
use weft_core::traffic::route::BackendTarget;
use weft_core::traffic::table::Verdict;

use crate::authorize::{Guard, bytes_revoked};
use crate::bell::Waiting;
use crate::connect::Unopened;
use crate::egress;
use crate::http::body::Body;
use crate::http::caller::HttpCaller;
use crate::http::forward::{Asked, Outcome, forward};
use crate::http::h1::{self, Reader, Writer, request_framing};
use crate::http::sink::ResponseSink;
use crate::http::{RequestHead, hop};
use crate::metrics::{Direction, EdgeKey, OpenConnection};
use crate::placed::placed;
use crate::relay::relay;
use crate::route::{Lease, Route, Tried, Wish};
use crate::standing::Place;
use crate::stream::Stream;
use crate::telemetry::{self, Note};
use crate::worker::Worker;

mod http2;

pub use http2::{Tasks, http2};

/// Where the requests of a connection go.
pub struct Http {
    pub route: Route,
    pub caller: HttpCaller,
    /// Outbound: what was dialled, looked up anew for each request, so that a long connection follows what it stands for.
    pub dialled: Option<SocketAddr>,
}

impl Http {
    /// The route of the next request.
    async fn route(&self, worker: &Worker, head: &mut RequestHead) -> Route {
        if let (Some(dialled), Route::Unknown { .. }) = (self.dialled, &self.route) {
            return Box::pin(egress::route(worker, dialled, head)).await;
        }
        if let (Some(dialled), false) = (self.dialled, matches!(self.route, Route::Refuse { .. })) {
            let refuse = |failure| Route::Refuse { failure, name: self.route.name().clone() };
            return match worker.mesh().resolve(dialled.ip()).await {
                Ok(target) if self.route.leads_to(&target) => self.route.clone(),
                Ok(target) => Route::to(target, dialled.port(), &worker.shared.config.net).unwrap_or_else(|| {
                    refuse(Failure::mesh(Reason::NoEndpoints).detail("what was dialled is not in the mesh any more"))
                }),
                Err(failure) => refuse(failure),
            };
        }
        self.route.clone()
    }
}

/// Serves HTTP/1 until the client or a drain ends it.
pub async fn http1(worker: &Rc<Worker>, stream: Rc<Stream>, http: &Http) {
    let (mut reader, mut writer) = h1::halves(&stream, Side::Downstream, worker.shared.config.timeouts.write);
    let mut fresh = true;
    let (mut closing, mut cut) = (worker.closing.first(), worker.cut.first());
    let ended = loop {
        // What stands in a pattern, or is lent out, lies in the connection's future as long as it lasts: nothing that is large does across a wait.
        let (head, framing) = match next_request(worker, &mut reader, &mut closing, fresh).await.and_then(|next| match next {
            Next::Request(head) => request_framing(&head).map(|framing| Ok((head, framing))),
            Next::None => Ok(Err(End::Asked(stream.is_finished()))),
            Next::Closing => Ok(Err(End::Asked(false))),
        }) {
            Ok(Ok(next)) => next,
            Ok(Err(end)) => break end,
            Err(failure) => break End::Malformed(failure),
        };
        fresh = false;
        let close = !keeps_alive(&head) || worker.is_draining();
        let http10 = head.http10;
        let (head, route) = {
            let mut head = head;
            let route = http.route(worker, &mut head).await;
            (head, route)
        };
        let (outcome, complete) = {
            let mut body = Body::H1(reader.body(framing));
            let head_only = &*head.method == b"HEAD";
            let sink = ResponseSink::H1 { writer: &mut writer, close, http10, head_only, body: None, note: None };
            // Boxed, so that a connection that idles between requests does not keep the room for one.
            let exchange = placed(|| forward(worker, &route, &http.caller, head, &mut body, sink));
            let outcome = tokio::select! {
                biased;
                outcome = exchange => outcome,
                // An answer that is cut must not look whole.
                () = cut.rung() => Outcome::Broken,
            };
            (outcome, body.is_done())
        };
        match outcome {
            Outcome::Done { keep: true } if complete && !close => {}
            Outcome::Done { .. } => break End::Asked(true),
            Outcome::Broken => {
                stream.reset();
                return;
            }
            Outcome::Tunnel { upstream, rest, lease, asked } => {
                upstream.unread(rest);
                stream.unread(reader.take_rest());
                // What the pod's own program opened is asked about as a call.
                let guard = http.caller.guard().or_else(|| route.guard());
                let call = guard.is_none().then(|| Guard::of_call(worker, &lease, MeshProtocol::Http1));
                let asked = asked.as_deref().zip(guard.or(call.as_deref()));
                Box::pin(tunnel(worker, &stream, &upstream, lease.idle(), asked)).await;
                drop(lease);
                return;
            }
        }
    };
    match ended {
        End::Asked(false) if stream.refuse() => return,
        End::Asked(_) => {}
        End::Malformed(failure) => Box::pin(refuse_malformed(worker, &mut writer, http, &failure)).await,
    }
    Box::pin(linger(&stream)).await;
}

/// How a connection ends that may go on.
enum End {
    /// False where it ends for want of a request, and not by the caller: that one may be saying one just now.
    Asked(bool),
    Malformed(Failure),
}

/// What comes next on a connection.
#[expect(clippy::large_enum_variant, reason = "it is looked at where it comes, and requests are what comes most often")]
enum Next {
    Request(RequestHead),
    /// Nothing, for the client has ended it, or has been silent for long.
    None,
    /// Nothing that a drain would wait for.
    Closing,
}

/// Waits for the next request. One that has begun to arrive is waited for, drain or not.
async fn next_request(worker: &Worker, reader: &mut Reader, closing: &mut Waiting<'_>, fresh: bool) -> Result<Next, Failure> {
    let timeouts = &worker.shared.config.timeouts;
    let found = |request: Result<Option<RequestHead>, Failure>| Ok(request?.map_or(Next::None, Next::Request));
    let next = tokio::select! {
        biased;
        request = reader.request(timeouts.idle, timeouts.header) => ControlFlow::Break(found(request)),
        () = end_of_waiting(closing.rung(), fresh) => ControlFlow::Continue(()),
    };
    if let ControlFlow::Break(next) = next {
        return next;
    }
    if !reader.has_rest() {
        return Ok(Next::Closing);
    }
    found(reader.request(timeouts.idle, timeouts.header).await)
}

/// A connection that was just opened has a request on its way: it may take this long after the sidecar takes no more.
const FIRST_REQUEST: Duration = Duration::from_secs(1);

/// Resolves when a drain waits no longer for the next request. Through its first phase requests come and are answered, with the word that
/// it was the last on this connection: the other end sends it in good faith, and may not send it twice.
pub async fn end_of_waiting(phase: impl Future<Output = ()>, fresh: bool) {
    phase.await;
    if fresh {
        tokio::time::sleep(FIRST_REQUEST).await;
    }
}

/// What a connection says before it is known what it is; none if a drain does not wait for it any longer.
pub async fn unless_closing<T>(worker: &Worker, saying: Pin<&mut impl Future<Output = T>>) -> Option<T> {
    let mut closing = worker.closing.first();
    tokio::select! {
        biased;
        said = saying => Some(said),
        () = end_of_waiting(closing.rung(), true) => None,
    }
}

fn keeps_alive(head: &RequestHead) -> bool {
    if head.http10 { hop::connection_has(&head.fields, b"keep-alive") } else { !hop::connection_has(&head.fields, b"close") }
}

/// Tells of a request that is none.
fn told(worker: &Worker, http: &Http, failure: &Failure) {
    worker.metrics.refused(failure.reason);
    if worker.lines.may() {
        tracing::info!(client = %http.caller.address, "request refused: {failure}");
    }
}

async fn refuse_malformed(worker: &Rc<Worker>, writer: &mut Writer, http: &Http, failure: &Failure) {
    if failure.reason == Reason::DownstreamGone {
        return;
    }
    told(worker, http, failure);
    let mut sink = ResponseSink::H1 { writer, close: true, http10: false, head_only: false, body: None, note: None };
    sink.note(telemetry::malformed(worker, &http.caller, http.route.name(), MeshProtocol::Http1));
    let _ = sink.refuse(failure, false).await;
}

/// Bytes that a client may still send after the answer, before it is cut.
const MAX_LINGER: usize = 256 * 1024;

/// Ends a connection so that the answer arrives: our half first, then what the client still sends is read over for a moment
/// (RFC 9112, section 9.6).
async fn linger(stream: &Stream) {
    let _ = tokio::time::timeout(Duration::from_secs(1), async {
        stream.shutdown().await?;
        let mut sink = [0; 4096];
        let mut total = 0;
        while total < MAX_LINGER {
            match stream.read(&mut sink).await? {
                0 => break,
                n => total += n,
            }
        }
        std::io::Result::Ok(())
    })
    .await;
}

/// Bytes both ways, for as long as the request that opened the tunnel would be let in, and no longer than the policy allows silence.
async fn tunnel(worker: &Rc<Worker>, a: &Stream, b: &Stream, idle: Option<Duration>, asked: Option<(&Asked, &Guard)>) {
    let count = std::cell::Cell::new(0);
    let counts = |n: u64| count.set(count.get() + n);
    let mut cut = worker.cut.first();
    let stall = worker.shared.config.timeouts.write;
    let revoked = async {
        let Some((asked, guard)) = asked else { return std::future::pending().await };
        let failure = guard.revoked(worker, Some(&asked.head), asked.generation).await;
        tracing::info!(client = %a.peer(), "tunnel ended, for the policy has changed: {failure}");
    };
    tokio::select! {
        biased;
        () = revoked => {}
        _ = relay(a, b, &worker.buffers, stall, counts, counts) => return,
        () = silence(idle, || count.get()) => {}
        () = cut.rung() => {}
    }
    a.reset();
    b.reset();
}

/// Resolves when what is `idle` for a time, or none while it is not, has been so for long.
pub async fn idles(idle: impl Fn() -> Option<Duration>, most: Duration) {
    loop {
        match idle() {
            Some(since) if since >= most => return,
            Some(since) => tokio::time::sleep(most.saturating_sub(since)).await,
            None => tokio::time::sleep(most).await,
        }
    }
}

/// What is known of an opaque connection before it is routed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Opening<'a> {
    /// TLS of the application's own, and the name that it asks for.
    Tls(Option<&'a str>),
    /// Anything else.
    Bytes,
}

/// Whether the service has TLS routes for who speaks TLS late.
pub fn has_tls_routes(route: &Route, name: Option<&str>) -> bool {
    let Some(traffic) = route.traffic() else { return false };
    traffic.table(route.port()).is_some_and(|table| !matches!(table.tls(name), Verdict::NoRoutes))
}

/// Where an opaque connection goes, by the service's TLS and TCP routes.
fn bytes_route(worker: &Worker, route: &Route, opening: Opening<'_>) -> Result<Route, Failure> {
    let Some(traffic) = route.traffic() else { return Ok(route.clone()) };
    let Some(table) = traffic.table(route.port()) else { return Ok(route.clone()) };
    let by_name = match opening {
        Opening::Tls(name) => table.tls(name),
        Opening::Bytes => Verdict::NoRoutes,
    };
    let verdict = if matches!(by_name, Verdict::NoRoutes) { table.tcp() } else { by_name };
    let rule = match verdict {
        Verdict::NoRoutes => return Ok(route.clone()),
        Verdict::NoMatch => return Err(Failure::mesh(Reason::NoRoute).detail("no TLSRoute is for this server name")),
        Verdict::Rule { rule, .. } => rule.rule(),
    };
    let chosen = choose_backend(rule, worker.random()).map(|i| &rule.backends[i].target);
    match chosen {
        None => Err(Failure::mesh(Reason::NoBackend).detail("the rule has no backend with a weight")),
        Some(BackendTarget::Unresolved(why)) => Err(Failure::mesh(Reason::NoBackend).detail(why)),
        Some(BackendTarget::Service { id, port }) => match worker.mesh().service(id) {
            Some(service) => Ok(Route::Service { service, port: *port }),
            None => Err(Failure::mesh(Reason::DiscoveryUnavailable).detail(format!("the backend {id} is not known yet"))),
        },
    }
}

/// An opaque connection to an endpoint of a route, tried elsewhere if it cannot be opened.
pub async fn open_bytes(
    worker: &Rc<Worker>,
    route: &Route,
    opening: Opening<'_>,
    client: IpAddr,
) -> Result<(Stream, Lease), Failure> {
    let route = &bytes_route(worker, route, opening)?;
    let key = route.traffic().and_then(|t| t.connection_key(client));
    let mut place = None;
    if let Route::Service { service, .. } = route {
        let view = service.view.load();
        place = Some(Place::among_connections(&view.standing).ok_or_else(|| {
            Failure::mesh(Reason::Overloaded).detail(format!("{} has as many connections as its policy allows", service.id))
        })?);
        view.standing.budget.request(worker.mesh().now());
    }
    let mut tried = Tried::new();
    loop {
        let mut lease = route.pick(worker, &tried, Wish { key, pinned: None }, true)?;
        // An endpoint of the pod's own: the inbound policy decides, as if the call had come from outside.
        if let Some(guard) = Guard::own(worker, &lease, MeshProtocol::Tcp) {
            guard.bytes(worker)?;
        }
        match worker.open_bytes(&lease.destination).await {
            Ok(stream) => {
                // So long it took, where one was opened; whether it is well shows when the connection is used.
                if !stream.is_linked() {
                    lease.speaks();
                }
                lease.holds(place);
                return Ok((stream, lease));
            }
            Err(Unopened { failure, shared }) => {
                tried.push(lease.address());
                // One opening that fails is one failure, however many waited for it.
                if shared {
                    drop(lease);
                } else {
                    lease.fail(&failure);
                }
                let again = tried.len() < 3 && route.may_retry_elsewhere();
                if !(again && route.spend(worker)) {
                    return Err(failure);
                }
            }
        }
    }
}

/// Why a connection ended that did not end by itself.
fn ends(note: &mut Option<Note>, failure: &Failure) {
    if let Some(note) = note {
        note.fails(failure);
    }
}

/// Relays an opaque connection and counts it.
///
/// After `idle` without a byte either way, both ends are reset; so they are when a policy comes that does not let it in any more. `guarded` is who is
/// asked about that, and the generation of the policy that was asked before.
pub async fn opaque(
    worker: &Rc<Worker>,
    client: &Stream,
    upstream: &Stream,
    key: EdgeKey,
    idle: Option<Duration>,
    guarded: Option<(&Guard, u64)>,
) {
    let open = OpenConnection::new(worker.metrics.edge(&key));
    let stall = worker.shared.config.timeouts.write;
    let mut note = telemetry::connection(worker, client, key.direction, || (key.peer.clone(), key.target.clone()));
    if let Some(note) = &mut note {
        note.goes_to(&key.peer, upstream.peer());
    }
    let mut cut = worker.cut.first();
    tokio::select! {
        biased;
        // First: nothing goes on that came when it was over already.
        () = bytes_revoked(worker, guarded) => {
            ends(&mut note, &Failure::mesh(Reason::Denied).detail("the policy has changed"));
            client.reset();
            upstream.reset();
        }
        result = relay(client, upstream, &worker.buffers, stall, |n| open.forth(n), |n| open.back(n)) => {
            if let Err(broken) = result {
                tracing::debug!(target = %key.target, side = ?broken.side, error = %broken.error, "connection ended by an error");
                ends(&mut note, &broken.failure(client.is_cut() || upstream.is_cut()));
            }
        }
        () = silence(idle, || open.moved()) => {
            tracing::debug!(target = %key.target, "connection ended: nothing was said for as long as the policy allows");
            ends(&mut note, &Failure::mesh(Reason::IdleTimeout));
            client.reset();
            upstream.reset();
        }
        () = cut.rung() => {
            ends(&mut note, &Failure::mesh(Reason::Draining).detail("the connection was cut: it outlasted the drain"));
            client.reset();
            upstream.reset();
        }
    }
    if let Some(note) = &mut note {
        let (forth, back) = open.moved();
        note.carried(forth, back);
    }
}

/// Resolves when what was sent and received has not changed for so long; never where there is no bound.
async fn silence<T: PartialEq>(idle: Option<Duration>, count: impl Fn() -> T) {
    let Some(idle) = idle else { return std::future::pending().await };
    let mut seen = None;
    loop {
        let now = Some(count());
        if now == seen {
            return;
        }
        seen = now;
        tokio::time::sleep(idle).await;
    }
}

/// Refuses a connection before any protocol was spoken: a reset, a log line, a count.
pub fn refuse(worker: &Worker, stream: &Stream, destination: Option<SocketAddr>, failure: &Failure) {
    let to = || destination.map_or_else(|| "nowhere".to_owned(), |d| d.to_string());
    if worker.lines.may() {
        tracing::info!(client = %stream.peer(), to = to(), "connection refused: {failure}");
    }
    worker.metrics.refused(failure.reason);
    let from = stream.peer().ip();
    let own = from.is_loopback() || worker.shared.config.net.pod_ips.contains(&from);
    let direction = if own { Direction::Outbound } else { Direction::Inbound };
    if let Some(mut note) = telemetry::connection(worker, stream, direction, || ("".into(), to().into())) {
        note.fails(failure);
    }
    stream.reset();
}

/// The labels of an opaque connection.
pub fn opaque_key(direction: Direction, peer: Arc<str>, route: &Route, tls: (&'static str, &'static str)) -> EdgeKey {
    EdgeKey { direction, port: route.port(), protocol: "tcp", target: route.name().clone(), peer, tls }
}
