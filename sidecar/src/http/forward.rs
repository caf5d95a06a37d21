//! One exchange, from the caller's head to the end of the answer, whatever version either side speaks.

use std::rc::Rc;

use bytes::Bytes;
use tokio::time::Instant;
use weft_core::failure::{Failure, Reason, Side};

use super::attempts::{self, Request};
use super::body::{Body, Kept};
use super::caller::HttpCaller;
use super::fields::{Fields, Known};
use super::head::RequestHead;
use super::sink::ResponseSink;
use super::treatment::Treatment;
use super::{hop, routed};
use crate::metrics::{Call, Direction, Edge};
use crate::placed::placed;
use crate::route::{Lease, Route};
use crate::stream::Stream;
use crate::telemetry;
use crate::worker::Worker;

/// How an exchange ended.
pub enum Outcome {
    /// The answer is complete; an HTTP/1 connection may go on if `keep` says so.
    Done { keep: bool },
    /// The protocol was switched: bytes both ways from here, beginning with those that the upstream had sent already.
    Tunnel { upstream: Rc<Stream>, rest: Bytes, lease: Lease, asked: Option<Box<Asked>> },
    /// The answer broke off: the caller must see a reset, not an end.
    Broken,
}

/// A request that was let in, and the generation of the policy that let it.
pub struct Asked {
    pub head: RequestHead,
    pub generation: u64,
}

/// Forwards one request and writes its answer.
#[expect(clippy::manual_async_fn, reason = "what an async fn is given by value lies in its future twice")]
pub fn forward(
    worker: &Rc<Worker>,
    route: &Route,
    caller: &HttpCaller,
    mut head: RequestHead,
    body: &mut Body<'_>,
    mut sink: ResponseSink<'_>,
) -> impl Future<Output = Outcome> {
    async move {
        let began = Instant::now();
        let upgrade = head.wants_upgrade().then(|| head.fields.first(Known::Upgrade).map(<[u8]>::to_vec)).flatten();
        // h2c by Upgrade is never forwarded (Invariant 2): the request goes on as if it had not asked.
        let upgrade = upgrade.filter(|u| !super::fields::list_elements(u).any(|t| t.eq_ignore_ascii_case(b"h2c")));
        let attempt =
            (caller.direction == Direction::Inbound && caller.proved().is_some()).then(|| attempt_told(&head.fields)).flatten();
        hop::strip(&mut head.fields);
        sink.note(telemetry::request(worker, caller, route, &mut head, sink.version(), began));
        if caller.direction == Direction::Inbound {
            tell_caller(&mut head.fields, caller.proved(), caller.address_text());
        }
        if let Some(attempt) = attempt {
            head.fields.push(b"weft-attempt", attempt.to_string().as_bytes());
        }
        if head.http10 && head.fields.first(Known::Host).is_none() {
            // It goes on as HTTP/1.1, which needs one.
            head.fields.push(b"host", route.host().as_bytes());
        }
        if let Some(traffic) = route.traffic() {
            let incoming = routed::Incoming { worker, route, caller, upgrade, began };
            return placed(|| routed::forward(incoming, traffic, head, body, &mut sink)).await;
        }
        let generation = worker.mesh().generation();
        let guard = caller.guard().or_else(|| route.guard());
        let mut asks = || guard.map_or(Ok(()), |guard| guard.request(worker, &mut head));
        let allowed = match sink.noted() {
            Some(note) => note.judged(worker, asks),
            None => asks(),
        };
        let allowed = allowed.and_then(|()| routed::within_rate(worker, route, caller, &mut head));
        if let Err(failure) = allowed {
            let edge = caller.edge(worker, route, &"none".into(), sink.version(), ("", ""));
            let call = Call::new(&head.method, head.is_grpc());
            return Box::pin(refuse(&mut sink, failure, call, body, &edge, began)).await;
        }
        let treatment = Treatment::plain(worker, route, &head, body, began);
        let request = Request { worker, route, caller, head: &head, upgrade: upgrade.as_deref(), treatment: &treatment, began };
        let revoked = async {
            let Some(guard) = guard else { return std::future::pending().await };
            guard.revoked(worker, Some(&head), generation).await
        };
        let outcome = tokio::select! {
            biased;
            outcome = attempts::run(request, body, &mut sink) => outcome,
            failure = revoked => {
                if let Some(note) = sink.noted() {
                    note.fails(&failure);
                }
                tracing::info!(client = %caller.address, target = %route.name(), "request ended, for the policy has changed: {failure}");
                return Outcome::Broken;
            }
        };
        match outcome {
            // The request has to be let in for as long as its tunnel lasts.
            Outcome::Tunnel { upstream, rest, lease, .. } => {
                Outcome::Tunnel { upstream, rest, lease, asked: Some(Box::new(Asked { head, generation })) }
            }
            outcome => outcome,
        }
    }
}

/// Keeps what goes out of a body, so that it can be sent again.
pub fn keep_body(body: &mut Body<'_>) {
    if !body.is_done() && !matches!(body, Body::Kept(_)) {
        let whole = std::mem::replace(body, Body::Empty);
        *body = Body::Kept(Box::new(Kept::new(whole)));
    }
}

/// The attempt that a mesh peer's sidecar says this is.
fn attempt_told(fields: &Fields) -> Option<u32> {
    let told = fields.all(Known::Weft).next().is_some().then(|| fields.named("weft-attempt").next()).flatten()?;
    std::str::from_utf8(told).ok()?.parse().ok().filter(|n| (2..=100).contains(n))
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

/// The head for an endpoint of the pod's own, which its own inbound side would have dressed.
pub fn own_head(worker: &Worker, head: &RequestHead) -> RequestHead {
    let mut head = head.clone();
    let identity = worker.mesh().identity.load();
    let identity = identity.as_ref().map(|i| i.svid.info().id.to_string());
    tell_caller(&mut head.fields, identity.as_deref(), &worker.shared.config.net.pod_ips[0].to_string());
    head
}

/// Whether the connection that a request came on goes on after it was refused so. What is shed would cost more than what is served,
/// if its caller had to connect anew each time.
fn goes_on(reason: Reason) -> bool {
    use Reason::{Denied, EgressDenied, EndpointsEjected, FaultInjected, NoBackend, NoRoute, Overloaded, RateLimited};
    matches!(reason, Denied | EgressDenied | EndpointsEjected | FaultInjected | NoBackend | NoRoute | Overloaded | RateLimited)
}

/// Answers a call in weft's own name. `body` is the request's, and says whether there is more of it to come.
pub async fn refuse(
    sink: &mut ResponseSink<'_>,
    failure: Failure,
    call: Call<'_>,
    body: &Body<'_>,
    edge: &Edge,
    began: Instant,
) -> Outcome {
    edge.error(failure.reason);
    if failure.side == Side::Downstream && failure.reason == Reason::DownstreamGone {
        edge.request(&call.broken(failure.reason), began.elapsed());
        if let Some(note) = sink.noted() {
            note.fails(&failure);
        }
        return Outcome::Broken;
    }
    edge.request(&call.refused(&failure), began.elapsed());
    if !(goes_on(failure.reason) && body.is_done()) {
        sink.close();
    }
    match sink.refuse(&failure, call.is_grpc).await {
        Ok(()) => Outcome::Done { keep: sink.keeps() },
        Err(_) => Outcome::Broken,
    }
}
