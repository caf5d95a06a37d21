//! What the pod's own programs dial: accept → look up → detect → route.

use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::time::Duration;

use weft_core::detect::Detection;
use weft_core::failure::{Failure, Reason, Retryable};
use weft_core::protocol::{AppProtocol, MeshProtocol};
use weft_core::wellknown;

use crate::authorize::Guard;
use crate::connect::Destination;
use crate::detect::{self, FirstBytes, Hearing, NoBytes, Spoke, first_bytes};
use crate::egress::{self, Aim};
use crate::http::caller::HttpCaller;
use crate::io::Socket;
use crate::isolation::{self, Called};
use crate::metrics::{Direction, EdgeKey, Heard};
use crate::placed::placed;
use crate::route::Route;
use crate::serve::{self, Http, Opening};
use crate::stream::Stream;
use crate::worker::Worker;

const QUIET: Duration = Duration::from_millis(wellknown::QUIET_TIME_MILLIS);

/// Serves one connection.
pub async fn serve(worker: Rc<Worker>, socket: Socket) {
    let destination = socket.original_destination();
    let stream = Stream::plain(socket, worker.buffers.clone());
    let Some(destination) = destination else {
        return serve::refuse(&worker, &stream, None, &Failure::mesh(Reason::NotRedirected));
    };
    if destination.ip().is_loopback() || destination.ip().is_unspecified() {
        return serve::refuse(&worker, &stream, Some(destination), &Failure::mesh(Reason::ForbiddenDestination));
    }
    let port = destination.port();
    let target = match worker.mesh().resolve(destination.ip()).await {
        Ok(target) => target,
        Err(failure) => {
            if worker.lines.may() {
                tracing::info!(to = %destination, "refused: {failure}");
            }
            let route = Route::Refuse { failure, name: destination.to_string().into() };
            return Box::pin(answer_refusal(&worker, stream, destination, route)).await;
        }
    };
    let protocol = target.protocol(port);
    let hearing = Hearing { patience: worker.shared.config.timeouts.handshake, opaque: false };
    let Some(route) = Route::to(target, port, &worker.shared.config.net) else {
        return match worker.mesh().egress() {
            None => Box::pin(pass_through(&worker, &stream, destination)).await,
            Some(table) => Box::pin(egress::serve(&worker, stream, destination, &table)).await,
        };
    };
    match protocol {
        AppProtocol::Opaque => {
            worker.metrics.detected(Direction::Outbound, Heard::Declared);
            bytes(&worker, &stream, &route, destination, Opening::Bytes).await;
        }
        AppProtocol::Http | AppProtocol::Http2 => match first_request(&worker, &stream).await {
            Ok(first) if matches!(first.what, Detection::Http1 | Detection::Http2) => {
                worker.metrics.detected(Direction::Outbound, (&first.what).into());
                http(&worker, stream, first, route, destination).await;
            }
            Ok(first) if first.bytes.is_empty() => {}
            Ok(_) => {
                let failure = Failure::mesh(Reason::ProtocolMismatch).detail(format!("the port is declared as {protocol:?}"));
                serve::refuse(&worker, &stream, Some(destination), &failure);
            }
            Err(_) => {}
        },
        AppProtocol::Detect if worker.server_first.borrow().knows(destination) => {
            Box::pin(race(&worker, stream, route, destination)).await;
        }
        AppProtocol::Detect => match first_bytes(&stream, Some(QUIET), hearing).await {
            Ok(first) => detected(&worker, stream, first, route, destination).await,
            Err(NoBytes::Silent) => Box::pin(race(&worker, stream, route, destination)).await,
            Err(NoBytes::Gone) => {}
        },
    }
}

/// The first bytes on a port that is declared as HTTP: the client may take its time, but not for ever, nor hold up a drain.
async fn first_request(worker: &Worker, stream: &Stream) -> Result<FirstBytes, NoBytes> {
    let timeouts = &worker.shared.config.timeouts;
    let hearing = Hearing { patience: timeouts.handshake, opaque: false };
    let first = pin!(first_bytes(stream, Some(timeouts.idle), hearing));
    serve::unless_closing(worker, first).await.unwrap_or(Err(NoBytes::Gone))
}

/// What serves a connection from here on, and keeps nothing of what it took to know what that is.
type Serving = Pin<Box<dyn Future<Output = ()>>>;

fn detected(worker: &Rc<Worker>, stream: Stream, first: FirstBytes, route: Route, destination: SocketAddr) -> Serving {
    worker.metrics.detected(Direction::Outbound, (&first.what).into());
    if matches!(first.what, Detection::Http1 | Detection::Http2) {
        return http(worker, stream, first, route, destination);
    }
    stream.unread(first.bytes.freeze());
    let (worker, what) = (Rc::clone(worker), first.what);
    placed(|| async move {
        let opening = match &what {
            Detection::Tls(hello) => Opening::Tls(hello.server_name.as_deref()),
            _ => Opening::Bytes,
        };
        bytes(&worker, &stream, &route, destination, opening).await;
    })
}

pub fn http(worker: &Rc<Worker>, stream: Stream, first: FirstBytes, route: Route, destination: SocketAddr) -> Serving {
    let caller = HttpCaller::outbound(stream.peer().ip());
    let http = Rc::new(Http { route, caller, dialled: Some(destination) });
    stream.unread(first.bytes.freeze());
    let (worker, stream) = (Rc::clone(worker), Rc::new(stream));
    match first.what {
        Detection::Http2 => placed(|| async move { serve::http2(&worker, stream, http).await }),
        _ => placed(|| async move { serve::http1(&worker, stream, &http).await }),
    }
}

async fn bytes(worker: &Rc<Worker>, stream: &Stream, route: &Route, destination: SocketAddr, opening: Opening<'_>) {
    match placed(|| serve::open_bytes(worker, route, opening, stream.peer().ip())).await {
        Ok((upstream, lease)) => {
            lease.took();
            let key = serve::opaque_key(Direction::Outbound, lease.peer.clone(), route, upstream.tls_names());
            let guard = Guard::of_call(worker, &lease, MeshProtocol::Tcp);
            placed(|| serve::opaque(worker, stream, &upstream, key, lease.idle(), Some((&guard, 0)))).await;
        }
        Err(failure) => serve::refuse(worker, stream, Some(destination), &failure),
    }
}

/// The client is silent: the upstream is opened as opaque, and whoever speaks first decides.
async fn race(worker: &Rc<Worker>, stream: Stream, route: Route, destination: SocketAddr) {
    let (upstream, lease) = match placed(|| serve::open_bytes(worker, &route, Opening::Bytes, stream.peer().ip())).await {
        Ok(opened) => opened,
        Err(failure) => return serve::refuse(worker, &stream, Some(destination), &failure),
    };
    let hearing = Hearing { patience: worker.shared.config.timeouts.handshake, opaque: false };
    let first = match detect::race(&stream, &upstream, hearing).await {
        Spoke::Server { greeted } => {
            worker.metrics.detected(Direction::Outbound, if greeted { Heard::ServerFirst } else { Heard::Silent });
            if greeted {
                worker.server_first.borrow_mut().learn(destination);
            }
            None
        }
        Spoke::Client(Ok(first)) => Some(first),
        Spoke::Client(Err(_)) => return,
        // It may not want opaque bytes: if the client speaks HTTP after all, it gets that.
        Spoke::UpstreamFailed => match first_bytes(&stream, Some(hearing.patience), hearing).await {
            Ok(first) if matches!(first.what, Detection::Http1 | Detection::Http2) => Some(first),
            _ => {
                let failure =
                    Failure::upstream(Reason::UpstreamReset, Retryable::No).detail("it ended the connection without a word");
                return serve::refuse(worker, &stream, Some(destination), &failure);
            }
        },
    };
    if let Some(first) = first {
        worker.server_first.borrow_mut().forget(destination);
        // What is looked at again is counted there.
        let again = matches!(&first.what, Detection::Tls(hello) if serve::has_tls_routes(&route, hello.server_name.as_deref()));
        if !again {
            worker.metrics.detected(Direction::Outbound, (&first.what).into());
        }
        if matches!(first.what, Detection::Http1 | Detection::Http2) {
            drop((upstream, lease));
            return http(worker, stream, first, route, destination).await;
        }
        if again {
            // The one that is open may be the wrong one.
            drop((upstream, lease));
            return detected(worker, stream, first, route, destination).await;
        }
        stream.unread(first.bytes.freeze());
    }
    // Only now: one that was opened in case, and is not used, says nothing of the endpoint.
    lease.took();
    let key = serve::opaque_key(Direction::Outbound, lease.peer.clone(), &route, upstream.tls_names());
    let guard = Guard::of_call(worker, &lease, MeshProtocol::Tcp);
    placed(|| serve::opaque(worker, &stream, &upstream, key, lease.idle(), Some((&guard, 0)))).await;
}

/// "Unknown" is an answer: the mesh has nothing to do with this address.
pub async fn pass_through(worker: &Rc<Worker>, stream: &Stream, destination: SocketAddr) {
    if let Err(failure) = worker.mesh().may_call() {
        return serve::refuse(worker, stream, Some(destination), &failure);
    }
    let called = Called { address: destination, pod: None, identity: None, is_known: false };
    if let Err(failure) = isolation::may_call(worker, &called) {
        return serve::refuse(worker, stream, Some(destination), &failure);
    }
    match worker.dial(&Destination::Plain { address: destination, dial: None }).await {
        Ok(upstream) => {
            let key = EdgeKey {
                direction: Direction::Outbound,
                port: destination.port(),
                protocol: "tcp",
                target: "unknown".into(),
                peer: "plaintext".into(),
                tls: ("", ""),
            };
            // The pod's own name servers are asked whatever is closed.
            let is_server = destination.port() == 53 && worker.shared.resolver.is_server(destination.ip());
            let guard = Guard::outgoing(called).aimed((!is_server).then(|| Aim::Nameless(destination.ip())));
            placed(|| serve::opaque(worker, stream, &upstream, key, None, Some((&guard, 0)))).await;
        }
        Err(failure) => serve::refuse(worker, stream, Some(destination), &failure),
    }
}

/// Tells an HTTP client why; anything else is reset.
async fn answer_refusal(worker: &Rc<Worker>, stream: Stream, destination: SocketAddr, route: Route) {
    let hearing = Hearing { patience: worker.shared.config.timeouts.handshake, opaque: false };
    match first_bytes(&stream, Some(QUIET), hearing).await {
        Ok(first) if matches!(first.what, Detection::Http1 | Detection::Http2) => {
            http(worker, stream, first, route, destination).await;
        }
        _ => {
            if let Route::Refuse { failure, .. } = &route {
                serve::refuse(worker, &stream, Some(destination), failure);
            }
        }
    }
}
