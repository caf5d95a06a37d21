//! One exchange, from the caller's head to the end of the answer, whatever version either side speaks.

use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use tokio::time::Instant;
use weft_core::failure::{Failure, Reason, Retryable, Side};
use weft_core::protocol::MeshProtocol;

use super::body::Body;
use super::caller::HttpCaller;
use super::exchange::{self, Attempted, Finished};
use super::fields::{Fields, Known};
use super::head::RequestHead;
use super::hop;
use super::sink::ResponseSink;
use crate::connect::{Destination, Exchange};
use crate::metrics::{Direction, Edge};
use crate::route::{Lease, Route, Tried};
use crate::serve::own_allowed;
use crate::stream::Stream;
use crate::worker::Worker;

/// How an exchange ended.
pub enum Outcome {
    /// The answer is complete; an HTTP/1 connection may go on if `keep` says so.
    Done { keep: bool },
    /// The protocol was switched: bytes both ways from here, beginning with those that the upstream had sent already.
    Tunnel { upstream: Rc<Stream>, rest: Bytes, lease: Lease },
    /// The answer broke off: the caller must see a reset, not an end.
    Broken,
}

/// Attempts for one request.
const MAX_ATTEMPTS: usize = 3;

/// Forwards one request and writes its answer.
pub async fn forward(
    worker: &Rc<Worker>,
    route: &Route,
    caller: &HttpCaller,
    mut head: RequestHead,
    body: &mut Body<'_>,
    mut sink: ResponseSink<'_>,
) -> Outcome {
    let began = Instant::now();
    let upgrade = head.wants_upgrade().then(|| head.fields.first(Known::Upgrade).map(<[u8]>::to_vec)).flatten();
    // h2c by Upgrade is never forwarded (Invariant 2): the request goes on as if it had not asked.
    let upgrade = upgrade.filter(|u| !super::fields::list_elements(u).any(|t| t.eq_ignore_ascii_case(b"h2c")));
    hop::strip(&mut head.fields);
    if caller.direction == Direction::Inbound {
        tell_caller(&mut head.fields, caller.proved(), caller.address_text());
    }
    if head.http10 && head.fields.first(Known::Host).is_none() {
        // It goes on as HTTP/1.1, which needs one.
        head.fields.push(b"host", route.host().as_bytes());
    }
    let grpc = head.is_grpc();
    let replayable = body.is_done();
    let version = sink.version();
    let mut tried = Tried::new();
    for attempt in 1.. {
        let lease = match route.pick(worker, &tried) {
            Ok(lease) => lease,
            Err(failure) => {
                let edge = caller.edge(worker, route.name(), &"none".into(), version, ("", ""));
                return refuse(sink, failure, grpc, &edge, began).await;
            }
        };
        let attempt_head = AttemptHead { head: &head, upgrade: upgrade.as_deref() };
        match try_once(worker, route, caller, &attempt_head, body, &mut sink, lease, began).await {
            Ok(outcome) => return outcome,
            Err(Attempt { failure, edge, address, reused }) => {
                let safe = match failure.retryable {
                    Retryable::Unprocessed => replayable || body_untouched(body),
                    Retryable::IfIdempotent => replayable && head.is_idempotent(),
                    Retryable::No => false,
                };
                if attempt < MAX_ATTEMPTS && safe && (route.may_retry_elsewhere() || reused) {
                    edge.retry();
                    if !reused {
                        tried.push(address);
                    }
                    continue;
                }
                tracing::info!(target = %route.name(), peer = %address, attempt, side = ?failure.side, "{failure}");
                return refuse(sink, failure, grpc, &edge, began).await;
            }
        }
    }
    unreachable!("the loop ends by returning")
}

/// Whether nothing of a body was taken yet. A body is only pulled after the upstream has been connected to.
fn body_untouched(body: &Body<'_>) -> bool {
    matches!(body, Body::Empty) || body.is_untouched()
}

/// Sets what only weft may say, after everything from outside was removed.
fn tell_caller(fields: &mut Fields, identity: Option<&str>, address: &str) {
    if let Some(identity) = identity {
        fields.push(b"weft-client-id", identity.as_bytes());
    }
    if fields.first(Known::ForwardedFor).is_none() {
        fields.push(b"x-forwarded-for", address.as_bytes());
        return;
    }
    let mut chain = Vec::new();
    for earlier in fields.all(Known::ForwardedFor) {
        chain.extend_from_slice(earlier);
        chain.extend_from_slice(b", ");
    }
    chain.extend_from_slice(address.as_bytes());
    fields.remove(Known::ForwardedFor);
    fields.push(b"x-forwarded-for", &chain);
}

struct AttemptHead<'a> {
    head: &'a RequestHead,
    upgrade: Option<&'a [u8]>,
}

/// An attempt that failed before anything of its answer was passed on.
struct Attempt {
    failure: Failure,
    edge: Arc<Edge>,
    address: IpAddr,
    /// On a connection that was there before: its end may be older than the request.
    reused: bool,
}

#[expect(clippy::too_many_arguments, reason = "the state of one attempt, used once")]
async fn try_once(
    worker: &Rc<Worker>,
    route: &Route,
    caller: &HttpCaller,
    request: &AttemptHead<'_>,
    body: &mut Body<'_>,
    sink: &mut ResponseSink<'_>,
    lease: Lease,
    began: Instant,
) -> Result<Outcome, Attempt> {
    let address = lease.address();
    let version = sink.version();
    let opened = match (own_allowed(worker, &lease, version), version) {
        (Err(failure), _) => Err(failure),
        (Ok(()), MeshProtocol::Http2) => worker.open_http2(&lease.destination).await,
        (Ok(()), MeshProtocol::Http1 | MeshProtocol::Tcp) => worker.open_http1(&lease.destination).await,
    };
    let (exchange, reused) = match opened {
        Ok(opened) => opened,
        Err(failure) => {
            let edge = caller.edge(worker, route.name(), &lease.peer, version, ("", ""));
            lease.fail(&failure);
            return Err(Attempt { failure, edge, address, reused: false });
        }
    };
    lease.opened();
    let tls = match &exchange {
        Exchange::Http1(c) => c.stream.tls_names(),
        Exchange::Http2(s) => s.tls,
    };
    let edge = caller.edge(worker, route.name(), &lease.peer, version, tls);
    let own_head = lease.own.then(|| own_head(worker, request.head));
    let head = own_head.as_ref().unwrap_or(request.head);
    let from_mesh = matches!(*lease.destination, Destination::Mesh { .. });
    let attempted = Attempted { worker, head, upgrade: request.upgrade, from_mesh, edge: &edge, lease: &lease, began };
    match exchange::run(attempted, exchange, body, sink).await {
        Ok(Finished::Done { keep }) => Ok(Outcome::Done { keep }),
        Ok(Finished::Tunnel { upstream, rest }) => Ok(Outcome::Tunnel { upstream, rest, lease }),
        Ok(Finished::Broken(failure)) => {
            tracing::info!(target = %route.name(), peer = %address, side = ?failure.side, "answer broken off: {failure}");
            edge.error(failure.reason);
            lease.fail(&failure);
            Ok(Outcome::Broken)
        }
        Err(mut failure) => {
            let reused = reused && failure.reason == Reason::UpstreamReset && failure.retryable != Retryable::No;
            if reused {
                // A kept-alive connection that the server closed in the moment of use is the pool's own doing, not the endpoint's.
                drop(lease);
            } else {
                lease.fail(&failure);
            }
            if failure.side == Side::Downstream {
                failure.retryable = Retryable::No;
            }
            Err(Attempt { failure, edge, address, reused })
        }
    }
}

fn own_head(worker: &Worker, head: &RequestHead) -> RequestHead {
    let mut head = head.clone();
    let identity = worker.mesh().identity.load();
    let identity = identity.as_ref().map(|i| i.svid.info().id.to_string());
    tell_caller(&mut head.fields, identity.as_deref(), &worker.shared.config.net.pod_ips[0].to_string());
    head
}

/// Answers in weft's own name.
async fn refuse(mut sink: ResponseSink<'_>, failure: Failure, grpc: bool, edge: &Edge, began: Instant) -> Outcome {
    edge.error(failure.reason);
    if failure.side == Side::Downstream && failure.reason == Reason::DownstreamGone {
        return Outcome::Broken;
    }
    edge.request(failure.reason.http_status(), began.elapsed());
    match sink.refuse(&failure, grpc).await {
        Ok(()) => Outcome::Done { keep: false },
        Err(_) => Outcome::Broken,
    }
}
