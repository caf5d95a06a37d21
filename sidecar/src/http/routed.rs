//! Requests that a route, or the service's traffic policy, has something to say of: fault, rule, redirect, changes, backend, copies.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use tokio::time::Instant;
use weft_core::failure::{Answer, Failure, Reason};
use weft_core::retry::grpc_status_of;
use weft_core::traffic::apply::{self, RedirectFacts, change_headers};
use weft_core::traffic::policy::{Abort, Fault};
use weft_core::traffic::route::{BackendTarget, Filter, PathMatch, Rule};
use weft_core::traffic::table::{Verdict, any_field_holds};

use super::attempts::{self, Request};
use super::body::Body;
use super::caller::HttpCaller;
use super::forward::{Asked, Outcome, refuse};
use super::head::{RequestHead, ResponseHead};
use super::mirror::Copies;
use super::session::SessionUse;
use super::sink::ResponseSink;
use super::treatment::{Asks, Treatment};
use crate::metrics::{Call, Direction};
use crate::route::{Route, Wish};
use crate::traffic::{ServiceTraffic, hash_text};
use crate::worker::Worker;

/// A request as it came.
pub struct Incoming<'a> {
    pub worker: &'a Rc<Worker>,
    /// What was dialled.
    pub route: &'a Route,
    pub caller: &'a HttpCaller,
    pub upgrade: Option<Vec<u8>>,
    pub began: Instant,
}

/// What a rule makes of a request, or how it ends here.
enum Ruled {
    Goes {
        to: Route,
        copies: Copies,
        treatment: Treatment,
    },
    /// A redirect.
    Answered(ResponseHead),
    Refused(Failure),
}

/// Does what routes and policy say, and forwards what goes on.
pub async fn forward(
    incoming: Incoming<'_>,
    traffic: Arc<ServiceTraffic>,
    mut head: RequestHead,
    body: &mut Body<'_>,
    sink: &mut ResponseSink<'_>,
) -> Outcome {
    let Incoming { worker, route, caller, upgrade, began } = incoming;
    let grpc = head.is_grpc();
    let own_edge = |sink: &ResponseSink<'_>, to: &Route| caller.edge(worker, to, &"none".into(), sink.version(), ("", ""));
    let call = Call::new(&head.method, grpc);
    // The route that it falls under.
    let mut fallen = None;
    if let Err(failure) = head.to_origin_form() {
        let edge = own_edge(sink, route);
        return Box::pin(refuse(sink, failure, call.by(fallen.as_ref()), body, &edge, began)).await;
    }
    if let Some(fault) = traffic.policy.faults.iter().find(|f| strikes(worker, f, &head)) {
        if let Some(delay) = fault.delay
            && attempts::wait(delay, body, sink).await.is_err()
        {
            return Outcome::Broken;
        }
        if let Some(abort) = fault.abort {
            let edge = own_edge(sink, route);
            let Some(failure) = aborted(abort) else {
                edge.error(Reason::FaultInjected);
                edge.request(&call.broken(Reason::FaultInjected), began.elapsed());
                if let Some(note) = sink.noted() {
                    note.fails(&Failure::mesh(Reason::FaultInjected));
                }
                return Outcome::Broken;
            };
            return Box::pin(refuse(sink, failure, call.by(fallen.as_ref()), body, &edge, began)).await;
        }
    }
    let ruled = match traffic.table(route.port()).map(|t| t.http(&head)) {
        None | Some(Verdict::NoRoutes) => {
            Ruled::Goes { to: route.clone(), copies: Copies::default(), treatment: Treatment::new(grpc) }
        }
        Some(Verdict::NoMatch) => Ruled::Refused(Failure::mesh(Reason::NoRoute).detail(describe(&head))),
        Some(Verdict::Rule { rule, matched }) => {
            fallen = Some(rule.route.clone());
            let rule = (rule.rule(), matched);
            apply_rule((worker, route, &traffic), rule, &mut head, began)
        }
    };
    let (to, copies, mut treatment) = match ruled {
        Ruled::Goes { to, copies, treatment } => (to, copies, treatment),
        Ruled::Answered(answer) => {
            let edge = own_edge(sink, route);
            edge.request(&call.by(fallen.as_ref()).answered(answer.status, None), began.elapsed());
            if !body.is_done() {
                sink.close();
            }
            let keep = sink.keeps();
            return if Box::pin(sink.answer(answer, String::new())).await.is_ok() {
                Outcome::Done { keep }
            } else {
                Outcome::Broken
            };
        }
        Ruled::Refused(failure) => {
            if worker.lines.may() {
                tracing::info!(target = %route.name(), "request refused: {failure}");
            }
            let edge = own_edge(sink, route);
            return Box::pin(refuse(sink, failure, call.by(fallen.as_ref()), body, &edge, began)).await;
        }
    };
    // What is chosen among is the backend's; its own policy says how, and no other does.
    let policy = to.traffic();
    let asks = treatment.asks.get_or_insert_default();
    asks.idempotent = head.is_idempotent();
    asks.route = fallen;
    if asks.session.is_none() {
        asks.session = traffic.policy.session.as_ref().map(|s| SessionUse::persistent(s, &head, None));
    }
    let mut key = policy.as_ref().and_then(|p| p.hash_key(&head, caller.address));
    if let (None, None, Some(policy)) = (key, &asks.session, &policy) {
        let value = worker.random();
        asks.session = SessionUse::hashed(&policy.policy.balancer, value);
        key = asks.session.is_some().then(|| hash_text(format!("{value:016x}").as_bytes()));
    }
    asks.wish = Wish { key, pinned: asks.session.as_ref().and_then(SessionUse::pinned) };
    if treatment.deadline.is_none()
        && !treatment.unbounded
        && let Some(timeout) = traffic.policy.timeouts.request
    {
        treatment.deadline = began.checked_add(timeout);
    }
    treatment.serve(worker, &to, &head, body, began);
    let Some(place) = treatment.take_place() else {
        let failure =
            Failure::mesh(Reason::Overloaded).detail(format!("{} has as many requests as its policy allows", to.name()));
        let edge = own_edge(sink, &to);
        return Box::pin(refuse(sink, failure, treatment.call(&head), body, &edge, began)).await;
    };
    let (version, generation) = (sink.version(), worker.mesh().generation());
    let request = Request { worker, route: &to, caller, head: &head, upgrade: upgrade.as_deref(), treatment: &treatment, began };
    let outcome = attempts::run(request, body, sink).await;
    copies.send(worker, version, &head, body);
    match outcome {
        // It counts as long as it lasts.
        Outcome::Tunnel { upstream, rest, mut lease, .. } => {
            lease.holds(Some(place));
            // It is asked about for as long as its tunnel lasts.
            Outcome::Tunnel { upstream, rest, lease, asked: Some(Box::new(Asked { head, generation })) }
        }
        ended => ended,
    }
}

/// Does what a rule's filters say, and finds where the request goes.
fn apply_rule(
    (worker, route, traffic): (&Rc<Worker>, &Route, &ServiceTraffic),
    (rule, matched): (&Rule, &PathMatch),
    head: &mut RequestHead,
    began: Instant,
) -> Ruled {
    let mut treatment = Treatment::new(head.is_grpc());
    let mut asks = Asks { retry: rule.retry.clone(), ..Asks::default() };
    let mut copies = Copies::default();
    if let Some(redirect) = rule.filters.iter().find_map(|f| if let Filter::Redirect(r) = f { Some(r) } else { None }) {
        let authority = head.host().unwrap_or_default().to_vec();
        let facts = RedirectFacts { scheme: "http", authority: &authority, port: route.port(), target: &head.target, matched };
        let answer = apply::redirect(redirect, &facts);
        let mut response = ResponseHead::new(answer.status);
        response.fields.push(b"location", &answer.location);
        for filter in &rule.filters {
            if let Filter::ResponseHeaders(change) = filter {
                change_headers(change, &mut response.fields);
            }
        }
        return Ruled::Answered(response);
    }
    asks.session = match (&rule.session, &traffic.policy.session) {
        (Some(session), _) => Some(SessionUse::persistent(session, head, Some(matched))),
        (None, Some(session)) => Some(SessionUse::persistent(session, head, None)),
        (None, None) => None,
    };
    let held = asks.session.as_ref().and_then(SessionUse::pinned).and_then(|at| holder(worker, rule, at));
    let Some(chosen) = held.or_else(|| apply::choose_backend(rule, worker.random())) else {
        return Ruled::Refused(Failure::mesh(Reason::NoBackend).detail("the rule has no backend with a weight"));
    };
    let backend = &rule.backends[chosen];
    let to = match &backend.target {
        BackendTarget::Unresolved(why) => return Ruled::Refused(Failure::mesh(Reason::NoBackend).detail(why)),
        BackendTarget::Service { id, port } => match worker.mesh().service(id) {
            Some(service) => Route::Service { service, port: *port },
            None => {
                return Ruled::Refused(
                    Failure::mesh(Reason::DiscoveryUnavailable).detail(format!("the backend {id} is not known yet")),
                );
            }
        },
    };
    for filter in rule.filters.iter().chain(&backend.filters) {
        match filter {
            Filter::RequestHeaders(change) => {
                change_headers(change, &mut head.fields);
                head.settle_host();
            }
            Filter::ResponseHeaders(change) => asks.response.push(change.clone()),
            Filter::Rewrite(rewrite) => {
                if let Some(path) = &rewrite.path {
                    head.target = apply::rewrite_target(&head.target, matched, path).into();
                }
                if let Some(host) = &rewrite.hostname {
                    head.set_host(host.as_bytes());
                }
            }
            Filter::Mirror(mirror) => {
                if apply::mirrors(mirror.numerator, mirror.denominator, worker.random()) {
                    copies.add(&mirror.target);
                }
            }
            Filter::Redirect(_) => {}
        }
    }
    let bound = |d: Option<std::time::Duration>| d.filter(|d| !d.is_zero());
    treatment.deadline = bound(rule.timeouts.request).and_then(|d| began.checked_add(d));
    treatment.unbounded = rule.timeouts.request.is_some_and(|d| d.is_zero());
    treatment.per_try = bound(rule.timeouts.backend_request);
    treatment.asks = Some(Box::new(asks));
    Ruled::Goes { to, copies, treatment }
}

/// The backend that a session is with, whatever its weight; none if its endpoint is gone, ejected or full.
fn holder(worker: &Worker, rule: &Rule, endpoint: SocketAddr) -> Option<usize> {
    rule.backends.iter().position(|backend| {
        let BackendTarget::Service { id, port } = &backend.target else { return false };
        let service = worker.mesh().service(id);
        service.is_some_and(|service| Route::Service { service, port: *port }.takes_session(worker, endpoint))
    })
}

/// Whether a fault is this request's.
fn strikes(worker: &Worker, fault: &Fault, head: &RequestHead) -> bool {
    fault.headers.iter().all(|m| any_field_holds(m, head)) && worker.random() % 1_000_000 < u64::from(fault.millionths)
}

/// How a fault answers; none for a reset.
fn aborted(abort: Abort) -> Option<Failure> {
    let answer = match abort {
        Abort::Reset => return None,
        Abort::Http(status) => {
            Answer { http: Some(status), grpc: (status >= 400).then(|| grpc_status_of(status)), ..Answer::default() }
        }
        Abort::Grpc(status) => Answer { grpc: Some(status), ..Answer::default() },
    };
    Some(Failure::mesh(Reason::FaultInjected).answered(answer))
}

fn describe(head: &RequestHead) -> String {
    let path: String = String::from_utf8_lossy(head.path()).chars().take(100).collect();
    format!("{} {path}", String::from_utf8_lossy(&head.method))
}

/// Inbound: an error if the caller has used up the rate that the service allows it. Where there are rates, the target is put into the form
/// that goes on: what is judged must be what the application sees.
pub fn within_rate(worker: &Worker, route: &Route, caller: &HttpCaller, head: &mut RequestHead) -> Result<(), Failure> {
    if caller.direction != Direction::Inbound {
        return Ok(());
    }
    let policy = worker.mesh().inbound.load();
    let Some(rates) = policy.as_ref().and_then(|p| p.limits.as_ref()) else { return Ok(()) };
    head.to_origin_form()?;
    rates.check(route.port(), caller, head, worker.mesh().now())
}
