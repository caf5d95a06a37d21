//! The attempts at one request: an endpoint, an exchange with it, and another one if that failed and may be repeated.

use std::cell::Cell;
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::time::Duration;

use tokio::time::Instant;
use weft_core::failure::{Failure, Reason, Retryable, Side};
use weft_core::protocol::MeshProtocol;
use weft_core::trace::Context;

use super::body::Body;
use super::caller::HttpCaller;
use super::deadline::in_grpc;
use super::exchange::{self, Attempted, Finished};
use super::fields::Known;
use super::forward::{Outcome, own_head, refuse};
use super::head::RequestHead;
use super::sink::ResponseSink;
use super::treatment::Treatment;
use crate::authorize::Guard;
use crate::connect::{Destination, Exchange, Unopened};
use crate::metrics::{Direction, Edge};
use crate::route::{Lease, Route, Tried};
use crate::telemetry::propagate::{self, Forms};
use crate::worker::Worker;

/// Attempts for one request, where no route says otherwise.
const MAX_ATTEMPTS: u32 = 3;

/// One request, as every attempt needs it.
pub struct Request<'a> {
    pub worker: &'a Rc<Worker>,
    pub route: &'a Route,
    pub caller: &'a HttpCaller,
    pub head: &'a RequestHead,
    /// The protocol that it asks to switch to.
    pub upgrade: Option<&'a [u8]>,
    pub treatment: &'a Treatment,
    pub began: Instant,
}

/// An attempt that failed before anything of its answer was passed on.
struct Failed {
    failure: Failure,
    edge: Rc<Edge>,
    address: IpAddr,
    /// On an HTTP/1 connection that was there before: its end may be older than the request.
    reused: bool,
}

/// Sends a request until it is answered, or cannot be repeated any more.
pub async fn run(request: Request<'_>, body: &mut Body<'_>, sink: &mut ResponseSink<'_>) -> Outcome {
    let Request { worker, route, caller, head, treatment, began, .. } = request;
    let version = sink.version();
    let mut most = treatment.attempts().unwrap_or(MAX_ATTEMPTS);
    let mut tried = Tried::new();
    let mut excused = false;
    for attempt in 1.. {
        treatment.begins(attempt, most);
        treatment.shows(sink.noted().is_some_and(|note| note.shows_bodies()));
        if !treatment.is_in_time(Duration::ZERO) {
            // Nobody is asked for what comes too late: it would be done all the same, and no endpoint is at fault.
            let edge = caller.edge(worker, route, &"none".into(), version, ("", ""));
            let failure = Failure::mesh(Reason::UpstreamTimeout).detail("its time was up before it could be sent");
            return Box::pin(refuse(sink, failure, treatment.call(head), body, &edge, began)).await;
        }
        let lease = match route.pick(worker, &tried, treatment.wish(), false) {
            Ok(lease) => lease,
            Err(failure) => {
                let edge = caller.edge(worker, route, &"none".into(), version, ("", ""));
                return Box::pin(refuse(sink, failure, treatment.call(head), body, &edge, began)).await;
            }
        };
        let Failed { failure, edge, address, reused } = match try_once(&request, attempt, body, sink, lease).await {
            Ok(outcome) => {
                if let Some(note) = sink.noted() {
                    note.received(treatment.uploaded(), treatment.shown());
                    if !matches!(outcome, Outcome::Broken) {
                        note.whole();
                    }
                }
                return outcome;
            }
            Err(failed) => failed,
        };
        if let Some(note) = sink.noted() {
            note.received(treatment.uploaded(), treatment.shown());
            note.failed(&failure);
        }
        let asked = treatment.asked();
        let whole = treatment.replayable() || (failure.retryable == Retryable::Unprocessed && body.is_untouched());
        let safe = whole && treatment.repeats(head, &failure);
        let pause = match (asked, &failure.retryable) {
            (Some(asked), _) => asked,
            // Nobody has seen it yet: the next one is asked at once.
            (None, Retryable::Unprocessed) => Duration::ZERO,
            (None, _) if reused => Duration::ZERO,
            (None, _) => treatment.backoff(worker),
        };
        let may = attempt < most && safe && (reused || route.may_retry_elsewhere()) && treatment.is_in_time(pause);
        // The budget is asked last: what is not sent costs nothing.
        let again = asked.is_some() || (may && treatment.spend(worker));
        if !(again && rewind(body)) {
            if worker.lines.may() {
                tracing::info!(target = %route.name(), peer = %address, attempt, side = ?failure.side, "{failure}");
            }
            return Box::pin(refuse(sink, failure, treatment.call(head), body, &edge, began)).await;
        }
        edge.retry();
        if !reused {
            tried.push(address);
        } else if !std::mem::replace(&mut excused, true) {
            // It says nothing about any endpoint: the first such attempt is none.
            most = most.saturating_add(1);
        }
        if !pause.is_zero() && wait(pause, body, sink).await.is_err() {
            return Outcome::Broken;
        }
    }
    unreachable!("the loop ends by returning")
}

/// Waits; a caller that goes away ends it.
pub async fn wait(pause: Duration, body: &mut Body<'_>, sink: &mut ResponseSink<'_>) -> Result<(), Failure> {
    tokio::select! {
        biased;
        () = tokio::time::sleep(pause) => Ok(()),
        failure = gone(body, sink) => Err(failure),
    }
}

/// Resolves when the caller has gone away, while nothing is sent either way.
async fn gone(body: &mut Body<'_>, sink: &mut ResponseSink<'_>) -> Failure {
    let answering = Cell::new(false);
    tokio::select! {
        biased;
        failure = body.gone(&answering) => failure,
        () = sink.gone() => Failure::downstream(Reason::DownstreamGone),
    }
}

fn rewind(body: &mut Body<'_>) -> bool {
    match body {
        Body::Kept(kept) => kept.rewind(),
        other => other.is_done() || other.is_untouched(),
    }
}

/// Waits for something until a time; what comes too late is the endpoint's failure.
async fn within<T, E: From<Failure>>(
    at: Option<Instant>,
    mut work: Pin<&mut impl Future<Output = Result<T, E>>>,
) -> Result<T, E> {
    let Some(at) = at else { return work.await };
    tokio::select! {
        biased;
        done = &mut work => done,
        () = tokio::time::sleep_until(at) => {
            Err(Failure::upstream(Reason::UpstreamTimeout, Retryable::IfIdempotent).detail("the time for it was over").into())
        }
    }
}

async fn try_once(
    request: &Request<'_>,
    attempt: u32,
    body: &mut Body<'_>,
    sink: &mut ResponseSink<'_>,
    lease: Lease,
) -> Result<Outcome, Failed> {
    let Request { worker, route, caller, treatment, began, .. } = *request;
    let address = lease.address();
    let version = sink.version();
    let until = treatment.until();
    let traced = sink.noted().and_then(|note| note.attempt(worker, attempt, &lease));
    // An endpoint of the pod's own: the inbound policy decides, as if the call had come from outside.
    let calls = caller.direction == Direction::Outbound;
    let (guard, generation) = (calls.then(|| Guard::own(worker, &lease, version)).flatten(), worker.mesh().generation());
    let opened = {
        let opening = pin!(async {
            if let Some(guard) = &guard {
                guard.request_as_is(worker, request.head)?;
            }
            let waits = || treatment.take_waiting_place();
            match version {
                MeshProtocol::Http2 => worker.open_http2(&lease.destination, waits).await,
                MeshProtocol::Http1 | MeshProtocol::Tcp => worker.open_http1(&lease.destination, waits).await,
            }
        });
        tokio::select! {
            biased;
            opened = within(until, opening) => opened,
            failure = gone(body, sink) => Err(failure.into()),
        }
    };
    let (exchange, reused) = match opened {
        Ok(opened) => opened,
        Err(Unopened { mut failure, shared }) => {
            if failure.side == Side::Upstream {
                // Nothing was sent yet, whatever took so long.
                failure.retryable = Retryable::Unprocessed;
            }
            let edge = caller.edge(worker, route, &lease.peer, version, ("", ""));
            // One opening that fails is one failure, however many waited for it.
            if shared {
                drop(lease);
            } else {
                lease.fail(&failure);
            }
            return Err(Failed { failure, edge, address, reused: false });
        }
    };
    lease.opened();
    let is_shared = matches!(exchange, Exchange::Http2(_));
    let tls = match &exchange {
        Exchange::Http1(c) => c.stream.tls_names(),
        Exchange::Http2(s) => s.tls,
    };
    let edge = caller.edge(worker, route, &lease.peer, version, tls);
    let asked = if lease.own { guard.as_deref() } else { caller.guard() };
    let own = dressed(request, asked, &lease, attempt, traced);
    let head = own.as_deref().unwrap_or(request.head);
    let from_mesh = matches!(*lease.destination, Destination::Mesh { .. });
    let attempted = Attempted { worker, head, upgrade: request.upgrade, from_mesh, edge: &edge, lease: &lease, began, treatment };
    let ended = {
        let run = pin!(exchange::run(attempted, exchange, body, sink));
        let revoked = async {
            let Some(guard) = &guard else { return std::future::pending().await };
            // Boxed: few requests go to the pod itself.
            Box::pin(guard.revoked(worker, Some(request.head), generation)).await
        };
        tokio::select! {
            biased;
            ended = within(until, run) => ended,
            failure = revoked => Ok(Finished::Broken(failure)),
        }
    };
    match ended {
        Ok(Finished::Done { keep }) => Ok(Outcome::Done { keep }),
        Ok(Finished::Tunnel { upstream, rest }) => Ok(Outcome::Tunnel { upstream, rest, lease, asked: None }),
        Ok(Finished::Broken(failure)) => Ok(broken(request, sink, &edge, lease, &failure)),
        Err(failure) if treatment.passed() => Ok(broken(request, sink, &edge, lease, &failure)),
        Err(mut failure) => {
            let stale = failure.reason == Reason::UpstreamReset && failure.retryable != Retryable::No;
            let reused = reused && !is_shared && stale && !treatment.heard();
            // A kept-alive connection that the server closed in the moment of use is the pool's own doing, not the endpoint's. An answer
            // that is asked for again was told of already.
            if reused || treatment.is_asked() {
                drop(lease);
            } else {
                lease.fail(&failure);
            }
            if failure.side == Side::Downstream {
                failure.retryable = Retryable::No;
            }
            Err(Failed { failure, edge, address, reused })
        }
    }
}

/// The head as this attempt sends it, where that is not as the request came.
fn dressed(
    request: &Request<'_>,
    guard: Option<&Guard>,
    lease: &Lease,
    attempt: u32,
    traced: Option<(Context, Forms)>,
) -> Option<Box<RequestHead>> {
    let Request { worker, treatment, head, .. } = *request;
    let mut own = lease.own.then(|| Box::new(own_head(worker, head)));
    if let Some(guard) = guard
        && let Some(bare) = guard.stripped(worker, own.as_deref().unwrap_or(head))
    {
        own = Some(bare);
    }
    if attempt > 1 {
        let head = own.get_or_insert_with(|| Box::new(head.clone()));
        head.fields.push(b"weft-attempt", attempt.to_string().as_bytes());
        if let Some((context, forms)) = traced {
            propagate::write(&mut head.fields, &context, forms);
        }
    }
    if let Some(left) = treatment.left() {
        let head = own.get_or_insert_with(|| Box::new(head.clone()));
        head.fields.remove(Known::GrpcTimeout);
        head.fields.push(b"grpc-timeout", in_grpc(left).as_bytes());
    }
    own
}

/// An answer that was begun and cannot be ended.
fn broken(request: &Request<'_>, sink: &mut ResponseSink<'_>, edge: &Edge, lease: Lease, failure: &Failure) -> Outcome {
    if let Some(note) = sink.noted() {
        note.fails(failure);
    }
    let address = lease.address();
    if request.worker.lines.may() {
        tracing::info!(target = %request.route.name(), peer = %address, side = ?failure.side, "answer broken off: {failure}");
    }
    edge.error(failure.reason);
    edge.request(&request.treatment.call(request.head).broken(failure.reason), request.began.elapsed());
    lease.fail(failure);
    Outcome::Broken
}
