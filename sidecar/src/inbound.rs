//! What other pods dial: accept → identify → authorize → detect → the pod's own application.

use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use weft_core::SpiffeId;
use weft_core::detect::Detection;
use weft_core::failure::{Failure, Reason};
use weft_core::policy::{Caller, MtlsMode};
use weft_core::protocol::{AppProtocol, LINK_ALPN, MeshProtocol};
use weft_core::wellknown;
use weft_tls::{LeafInfo, VerifyError, verify_error};

use crate::authorize::{Guard, while_allowed};
use crate::connect::Destination;
use crate::detect::{self, FirstBytes, Hearing, NoBytes, Spoke, first_bytes};
use crate::http::caller::HttpCaller;
use crate::identity::unix_now;
use crate::io::Socket;
use crate::isolation;
use crate::link::Link;
use crate::metrics::slots::HandshakeKey;
use crate::metrics::{Direction, Heard};
use crate::placed::placed;
use crate::route::Route;
use crate::serve::{self, Http, Opening};
use crate::stream::{Stream, as_tls_error, handshake_fault};
use crate::worker::{self, Worker};

/// How long a caller may be silent before it is taken for one that waits for the server to speak. A mesh peer speaks first, but
/// a round trip late.
const QUIET: Duration = Duration::from_millis(100);

/// What is cut may take this long to reset its other end.
const CUT: Duration = Duration::from_millis(500);

/// Serves one connection.
pub async fn serve(worker: Rc<Worker>, socket: Socket) {
    let destination = socket.original_destination();
    let stream = Stream::plain(socket, worker.buffers.clone());
    let Some(destination) = destination else {
        return serve::refuse(&worker, &stream, None, &Failure::mesh(Reason::NotRedirected));
    };
    if let Err(failure) = may_dial(&worker, destination) {
        return serve::refuse(&worker, &stream, Some(destination), &failure);
    }
    let port = destination.port();
    let Some(policy) = worker.mesh().inbound.load_full() else {
        return serve::refuse(&worker, &stream, Some(destination), &Failure::mesh(Reason::NotReady));
    };
    let hearing = hearing(&worker, policy.protocol_of(port));
    // Where plaintext is refused anyway, there is nothing to race for: a mesh peer will speak.
    let races =
        !policy.protocol_of(port).is_http() && Guard::new(port, Caller::Plaintext, stream.peer().ip()).lets_bytes(&worker);
    let quiet = if races { QUIET } else { hearing.patience };
    let first = {
        let mut first = Box::pin(first_bytes(&stream, Some(quiet), hearing));
        serve::unless_closing(&worker, first.as_mut()).await
    };
    match first {
        Some(Ok(first)) => Box::pin(classified(&worker, stream, first, destination)).await,
        Some(Err(NoBytes::Silent)) => Box::pin(silent(&worker, stream, destination)).await,
        Some(Err(NoBytes::Gone)) | None => {}
    }
}

fn hearing(worker: &Worker, declared: AppProtocol) -> Hearing {
    Hearing { patience: worker.shared.config.timeouts.handshake, opaque: declared == AppProtocol::Opaque }
}

/// The pod's own addresses, never loopback, never a port of the sidecar's own (Invariant 3).
fn may_dial(worker: &Worker, destination: SocketAddr) -> Result<(), Failure> {
    let net = &worker.shared.config.net;
    let forbidden = |why: &str| Err(Failure::mesh(Reason::ForbiddenDestination).detail(why));
    if destination.ip().is_loopback() || !net.pod_ips.contains(&destination.ip()) {
        return forbidden("it is not one of the pod's own addresses");
    }
    let own = [net.inbound_port, net.outbound_port, worker.shared.config.admin.admin_port];
    if own.contains(&destination.port()) || wellknown::SIDECAR_PORTS.contains(&destination.port()) {
        return forbidden("it is a port of the sidecar's own");
    }
    Ok(())
}

async fn classified(worker: &Rc<Worker>, stream: Stream, first: FirstBytes, destination: SocketAddr) {
    worker.metrics.detected(Direction::Inbound, (&first.what).into());
    match &first.what {
        Detection::Tls(hello) if hello.is_weft() => {
            stream.unread(first.bytes.freeze());
            mesh_peer(worker, stream, destination).await;
        }
        _ => plaintext(worker, stream, first, destination).await,
    }
}

fn app(destination: SocketAddr) -> Route {
    let name = Arc::from(format!("port {}", destination.port()));
    Route::App { destination: Arc::new(Destination::Plain { address: destination, dial: None }), name }
}

async fn mesh_peer(worker: &Rc<Worker>, stream: Stream, destination: SocketAddr) {
    let client = stream.peer();
    let Some(identity) = worker.mesh().identity.load_full() else {
        return serve::refuse(worker, &stream, Some(destination), &Failure::mesh(Reason::NotReady));
    };
    let patience = worker.shared.config.timeouts.handshake;
    let began = Instant::now();
    let told =
        |error: &'static str, tls| worker.metrics.handshake(HandshakeKey { is_client: false, tls, error }, began.elapsed());
    let handshake = {
        let handshake = pin!(tokio::time::timeout(patience, Box::pin(stream.accept_tls(identity.server.clone()))));
        serve::unless_closing(worker, handshake).await
    };
    let stream = match handshake {
        None => return,
        Some(Ok(Ok(stream))) => stream,
        Some(Ok(Err(e))) => {
            let why = as_tls_error(&e).and_then(verify_error).map_or_else(|| e.to_string(), ToString::to_string);
            if worker.lines.may() {
                tracing::info!(%client, to = %destination, "mesh peer refused: {why}");
            }
            let is_denied = matches!(as_tls_error(&e).and_then(verify_error), Some(VerifyError::Denied { .. }));
            told(handshake_fault(&e), ("", ""));
            return worker.metrics.refused(if is_denied { Reason::Denied } else { Reason::UpstreamTls });
        }
        Some(Err(_)) => {
            told("timeout", ("", ""));
            if worker.lines.may() {
                tracing::info!(%client, to = %destination, "mesh peer refused: the handshake took longer than {patience:?}");
            }
            return worker.metrics.refused(Reason::RequestTimeout);
        }
    };
    told("", stream.tls_names());
    let facts = stream.tls_facts();
    let spoken = facts.as_ref().and_then(|f| f.alpn.as_deref()).and_then(Spoken::from_alpn);
    let leaf = facts.and_then(|f| f.peer).and_then(|der| LeafInfo::read(&der).ok());
    let (Some(spoken), Some(leaf)) = (spoken, leaf) else {
        return serve::refuse(worker, &stream, Some(destination), &Failure::mesh(Reason::ProtocolMismatch));
    };
    if !worker.rests_on(&leaf, &stream) {
        tracing::info!(%client, id = %leaf.id, "mesh peer refused: it was denied meanwhile");
        return worker.metrics.refused(Reason::Denied);
    }
    // A connection ends by the earlier of the two certificates.
    let until = leaf.not_after.min(identity.svid.info().not_after);
    let life = Duration::from_secs((until - unix_now()).max(0) as u64);
    let stream = Rc::new(stream);
    let peer = Rc::new(Peer { leaf, client: client.ip(), destination });
    let served = async {
        match spoken {
            Spoken::Link => Box::pin(linked(worker, &stream, &peer)).await,
            Spoken::One(protocol) => from_peer(worker, Rc::clone(&stream), &peer, protocol).await,
        }
    };
    let mut served = std::pin::pin!(served);
    if tokio::time::timeout(life, served.as_mut()).await.is_err() {
        tracing::info!(%client, id = %peer.leaf.id, "connection ended: a certificate it was made with has expired");
        stream.reset();
        // Whoever serves it sees that it broke, and resets the application's end of it: dropped, that would end as if complete (Invariant 7).
        if let Some(socket) = stream.socket().upgrade() {
            socket.cut();
        }
        let _ = tokio::time::timeout(CUT, served).await;
    }
}

/// What a mesh peer's connection carries.
enum Spoken {
    One(MeshProtocol),
    /// Many streams, of which each says what it carries.
    Link,
}

impl Spoken {
    fn from_alpn(id: &[u8]) -> Option<Self> {
        if id == LINK_ALPN { Some(Self::Link) } else { MeshProtocol::from_alpn(id).map(Self::One) }
    }
}

/// Who calls, as its certificate says, and where to.
struct Peer {
    leaf: LeafInfo,
    client: IpAddr,
    destination: SocketAddr,
}

/// Serves one connection of a mesh peer, or one stream of a link.
async fn from_peer(worker: &Rc<Worker>, stream: Rc<Stream>, peer: &Peer, protocol: MeshProtocol) {
    let Peer { leaf, client, destination } = peer;
    let tls = stream.tls_names();
    let http = |guard| {
        let route = app(*destination);
        let caller = HttpCaller::inbound(Some(&leaf.id), *client, tls, guard).counted(worker, &route, protocol);
        Http { route, caller, dialled: None }
    };
    let guard = Guard::new(destination.port(), Caller::Mesh(leaf.id.clone(), protocol), *client).of_pod(leaf.pod.clone());
    if guard.is_new(worker) {
        Box::pin(isolation::become_known(worker, &guard)).await;
    }
    if protocol == MeshProtocol::Tcp {
        return placed(|| bytes(worker, &stream, *destination, &guard, Some(&leaf.id))).await;
    }
    let http = http(guard);
    if protocol == MeshProtocol::Http2 {
        return placed(|| serve::http2(worker, stream, Rc::new(http))).await;
    }
    placed(|| serve::http1(worker, stream, &http)).await;
}

/// Serves the streams of a link, each as a connection of its own, until the peer or a drain ends it.
async fn linked(worker: &Rc<Worker>, stream: &Rc<Stream>, peer: &Rc<Peer>) {
    let link = Link::serving(stream);
    let mut driven = std::pin::pin!(link.drive(stream, |protocol, pipe| {
        let Some(admitted) = worker.admit(stream.peer(), true) else { return pipe.shed() };
        let (serving, peer) = (Rc::clone(worker), Rc::clone(peer));
        let stream = Rc::new(Stream::plain(Socket::Link(pipe), worker.buffers.clone()));
        worker::spawn(worker, async move {
            from_peer(&serving, stream, &peer, protocol).await;
            drop(admitted);
        });
    }));
    // One that comes while a drain has begun already is served until the second phase: whoever opened it could not know.
    let (drain, fresh) = if worker.is_draining() { (&worker.shared.closing, true) } else { (&worker.shared.draining, false) };
    let mut leaving = std::pin::pin!(async {
        tokio::select! {
            () = serve::end_of_waiting(drain.cancelled(), fresh) => {}
            () = serve::idles(|| link.idle(), worker.shared.config.timeouts.idle) => {}
        }
    });
    let ended = tokio::select! {
        biased;
        ended = driven.as_mut() => ended,
        () = leaving.as_mut() => {
            link.leave();
            tokio::select! {
                biased;
                ended = driven.as_mut() => ended,
                () = emptied(&link) => {
                    link.close();
                    driven.await
                }
            }
        }
    };
    if let Err(e) = ended {
        tracing::debug!(client = %stream.peer(), id = %peer.leaf.id, error = %e, "link ended");
        stream.reset();
    }
}

/// Whoever opens streams is given this long to end a link that it was told to leave: what it began meanwhile may be on its way.
const LEAVING: Duration = Duration::from_secs(1);

/// Resolves when a link that is left has had no stream for a moment.
async fn emptied(link: &Link) {
    tokio::time::sleep(LEAVING).await;
    serve::idles(|| link.idle(), LEAVING).await;
}

async fn plaintext(worker: &Rc<Worker>, stream: Stream, first: FirstBytes, destination: SocketAddr) {
    let guard = Guard::new(destination.port(), Caller::Plaintext, stream.peer().ip());
    note(worker, &stream, destination.port());
    match first.what {
        Detection::Http1 | Detection::Http2 => {
            let route = app(destination);
            let version = if first.what == Detection::Http2 { MeshProtocol::Http2 } else { MeshProtocol::Http1 };
            let caller = HttpCaller::inbound(None, stream.peer().ip(), ("", ""), guard).counted(worker, &route, version);
            let http = Http { route, caller, dialled: None };
            stream.unread(first.bytes.freeze());
            if first.what == Detection::Http2 {
                placed(|| serve::http2(worker, Rc::new(stream), Rc::new(http))).await;
            } else {
                placed(|| serve::http1(worker, Rc::new(stream), &http)).await;
            }
        }
        Detection::Tls(_) | Detection::Opaque | Detection::More => {
            stream.unread(first.bytes.freeze());
            bytes(worker, &stream, destination, &guard, None).await;
        }
    }
}

/// Counts a caller that speaks plaintext.
fn note(worker: &Worker, stream: &Stream, port: u16) {
    let policy = worker.mesh().inbound.load();
    let let_in = policy.as_ref().is_some_and(|policy| policy.mode_of(port).0 == MtlsMode::Permissive);
    worker.plaintext.note(stream.peer().ip(), port, let_in);
}

/// Opaque bytes to the application, if the policy lets them. `proved` is the caller's identity.
async fn bytes(worker: &Rc<Worker>, stream: &Stream, destination: SocketAddr, guard: &Guard, proved: Option<&SpiffeId>) {
    let Some(policy) = worker.mesh().inbound.load_full() else {
        return serve::refuse(worker, stream, Some(destination), &Failure::mesh(Reason::NotReady));
    };
    let (port, generation) = (destination.port(), worker.mesh().generation());
    // A probe that opened and closed: nothing was asked, so nothing is said.
    if stream.is_finished() && !guard.lets_bytes(worker) {
        return;
    }
    if let Err(failure) = guard.bytes(worker) {
        return serve::refuse(worker, stream, Some(destination), &failure);
    }
    // Plaintext that is not HTTP on a port that is declared as HTTP could carry a forged `weft-client-id` past us.
    if proved.is_none() && policy.protocol_of(port).is_http() {
        let failure = Failure::mesh(Reason::ProtocolMismatch).detail("the port is declared as HTTP, and the bytes are not");
        return serve::refuse(worker, stream, Some(destination), &failure);
    }
    let route = app(destination);
    let (upstream, _lease) = match placed(|| serve::open_bytes(worker, &route, Opening::Bytes, stream.peer().ip())).await {
        Ok(opened) => opened,
        Err(failure) => return serve::refuse(worker, stream, Some(destination), &failure),
    };
    // On an undeclared port, what an application could read as HTTP must come as HTTP: only then is its `weft-client-id` ours.
    if policy.protocol_of(port) == AppProtocol::Detect {
        let spoke = {
            let mut race = Box::pin(detect::race(stream, &upstream, hearing(worker, AppProtocol::Detect)));
            let race = pin!(serve::unless_closing(worker, race.as_mut()));
            // It may be silent for long, and the policy change meanwhile.
            while_allowed(worker, (guard, generation), [stream, &upstream], race).await.flatten()
        };
        match spoke {
            Some(Spoke::Server { .. } | Spoke::UpstreamFailed) => {}
            Some(Spoke::Client(Err(_))) | None => return,
            Some(Spoke::Client(Ok(first))) if matches!(first.what, Detection::Http1 | Detection::Http2 | Detection::More) => {
                let failure =
                    Failure::mesh(Reason::ProtocolMismatch).detail("it comes as opaque bytes, and is or may become HTTP");
                return serve::refuse(worker, stream, Some(destination), &failure);
            }
            Some(Spoke::Client(Ok(first))) => stream.unread(first.bytes.freeze()),
        }
    }
    let peer: Arc<str> = proved.map_or_else(|| "plaintext".into(), |id| id.to_string().into());
    let key = serve::opaque_key(Direction::Inbound, peer, &route, stream.tls_names());
    placed(|| serve::opaque(worker, stream, &upstream, key, None, Some((guard, generation)))).await;
}

/// A caller that says nothing: the server may have to speak first. If the caller speaks after all, it is looked at then.
async fn silent(worker: &Rc<Worker>, stream: Stream, destination: SocketAddr) {
    let port = destination.port();
    let Some(policy) = worker.mesh().inbound.load_full() else {
        return serve::refuse(worker, &stream, Some(destination), &Failure::mesh(Reason::NotReady));
    };
    let (guard, generation) = (Guard::new(port, Caller::Plaintext, stream.peer().ip()), worker.mesh().generation());
    let needs_request = guard.waits_for_request(worker);
    if !needs_request && let Err(failure) = guard.silence(worker) {
        note(worker, &stream, port);
        return serve::refuse(worker, &stream, Some(destination), &failure);
    }
    if needs_request || policy.protocol_of(port).is_http() {
        return serve::refuse(worker, &stream, Some(destination), &Failure::downstream(Reason::RequestTimeout));
    }
    let route = app(destination);
    let (upstream, lease) = match placed(|| serve::open_bytes(worker, &route, Opening::Bytes, stream.peer().ip())).await {
        Ok(opened) => opened,
        Err(failure) => return serve::refuse(worker, &stream, Some(destination), &failure),
    };
    let spoke = {
        let mut race = Box::pin(detect::race(&stream, &upstream, hearing(worker, policy.protocol_of(port))));
        let race = pin!(serve::unless_closing(worker, race.as_mut()));
        while_allowed(worker, (&guard, generation), [&stream, &upstream], race).await.flatten()
    };
    match spoke {
        Some(Spoke::Server { greeted }) => {
            worker.metrics.detected(Direction::Inbound, if greeted { Heard::ServerFirst } else { Heard::Silent });
        }
        Some(Spoke::UpstreamFailed) => worker.metrics.detected(Direction::Inbound, Heard::Silent),
        Some(Spoke::Client(Ok(first))) if first.what == Detection::Opaque => {
            worker.metrics.detected(Direction::Inbound, Heard::Opaque);
            stream.unread(first.bytes.freeze());
        }
        // What it is, and who, is known only now.
        Some(Spoke::Client(Ok(first))) => {
            drop((upstream, lease));
            return Box::pin(classified(worker, stream, first, destination)).await;
        }
        Some(Spoke::Client(Err(_))) | None => return,
    }
    note(worker, &stream, port);
    guard.spoke_bytes(worker);
    let key = serve::opaque_key(Direction::Inbound, "plaintext".into(), &route, ("", ""));
    placed(|| serve::opaque(worker, &stream, &upstream, key, None, Some((&guard, generation)))).await;
}
