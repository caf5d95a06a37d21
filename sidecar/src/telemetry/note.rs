//! A record in the making, beside the request or connection that it is of. It is handed over when it is dropped, however that comes.

use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tokio::time::Instant;
use weft_core::failure::{Failure, Reason};
use weft_core::protocol::MeshProtocol;
use weft_core::trace::{Context, SpanId};

use super::propagate::{self, Forms, Said};
use super::record::{LONGEST, LONGEST_OTHER, Noted, Record, Request, Trace};
use super::shown::{Excerpt, Show, Shown};
use super::{LOG, TAP, TRACES, WorkerTelemetry};
use crate::http::RequestHead;
use crate::http::caller::HttpCaller;
use crate::http::fields::{Fields, Known};
use crate::identity::unix_now;
use crate::metrics::Direction;
use crate::route::{Lease, Route};
use crate::stream::Stream;
use crate::worker::Worker;

/// See above.
pub struct Note {
    /// None once it was told.
    making: Option<Box<Making>>,
}

/// What is known so far. It is used again and again: see [`WorkerTelemetry::making`].
pub(super) struct Making {
    pub(super) noted: Noted,
    began: Instant,
    /// Who wanted it when it began.
    wanted: u32,
    /// Where it goes; none while it is unused.
    telemetry: Option<Rc<WorkerTelemetry>>,
}

impl Making {
    pub(super) fn new() -> Box<Self> {
        Box::new(Self { noted: Noted::default(), began: Instant::now(), wanted: 0, telemetry: None })
    }
}

impl Drop for Note {
    fn drop(&mut self) {
        let Some(mut making) = self.making.take() else { return };
        let Some(telemetry) = making.telemetry.take() else { return };
        let after = making.began.elapsed();
        let record = &mut making.noted.record;
        record.took = after;
        if !record.whole && record.reason.is_none() && record.request.is_some() {
            // Nobody said how it ended: whoever waited for it is gone, or it was cut.
            record.reason = Some(Reason::DownstreamGone);
        }
        let reason = record.reason;
        if let Some(last) = record.under_way()
            && last.took.is_zero()
        {
            last.took = after.saturating_sub(last.began);
            if last.status == 0 && last.reason.is_none() {
                last.reason = reason;
            }
        }
        telemetry.tell(&mut making.noted, making.wanted);
        making.noted.record = Record::default();
        making.noted.texts.clear();
        telemetry.unmade(making);
    }
}

/// A note of a request that has just come, if anybody wants one. Where its trace is sampled, `head` says from here on that the request
/// stands at our span.
#[inline]
pub fn request(
    worker: &Worker,
    caller: &HttpCaller,
    route: &Route,
    head: &mut RequestHead,
    version: MeshProtocol,
    began: Instant,
) -> Option<Note> {
    let wanted = worker.telemetry.all.wanted.load(Relaxed);
    if wanted == 0 { None } else { of_request(worker, (caller, route), head, version, began, wanted) }
}

#[inline(never)]
fn of_request(
    worker: &Worker,
    (caller, route): (&HttpCaller, &Route),
    head: &mut RequestHead,
    version: MeshProtocol,
    began: Instant,
    wanted: u32,
) -> Option<Note> {
    let show = if wanted & TAP == 0 { None } else { tapped(worker, caller, head) };
    let wanted = if show.is_none() { wanted & !TAP } else { wanted };
    let placed = place(worker, &mut head.fields, wanted);
    let sampled = placed.as_ref().is_some_and(|(trace, _)| trace.sampled);
    let errors = worker.telemetry.all.tracing.as_ref().is_some_and(|t| t.errors);
    if wanted & (LOG | TAP) == 0 && !sampled && !errors {
        return None;
    }
    let mut note = Note::new(worker, began, wanted);
    note.begin(worker, (caller.direction, caller.address), (caller.peer(), route.name()), spoken(version));
    let noted = note.noted();
    let ((path, query), agent) = (head.path_and_query(), head.fields.named("user-agent").next());
    let [method, path, host, query_piece, agent_piece] = noted.all([
        (&head.method, LONGEST_OTHER),
        (path, LONGEST),
        (head.host().unwrap_or_default(), LONGEST_OTHER),
        (query.unwrap_or_default(), LONGEST),
        (agent.unwrap_or_default(), LONGEST_OTHER),
    ]);
    let request = Request {
        method,
        path,
        query: query.map(|_| query_piece),
        host,
        user_agent: agent.map(|_| agent_piece),
        grpc: head.is_grpc(),
    };
    let trace = placed.map(|(trace, state)| Trace { state: state.map(|state| noted.text(&state)), ..trace });
    let record = &mut noted.record;
    record.port = route.port();
    record.request = Some(request);
    record.trace = trace;
    record.fields = (wanted & TAP != 0).then(|| names(&head.fields));
    record.shown = show.and_then(|show| Shown::of(show, worker, head));
    Some(note)
}

/// How much is shown of this request, where a tap may take it, by its head, and has had less than it may in this second.
fn tapped(worker: &Worker, caller: &HttpCaller, head: &RequestHead) -> Option<Show> {
    let all = &worker.telemetry.all;
    let inbound = caller.direction == Direction::Inbound;
    let show = all.sought.load().iter().filter(|sought| sought.takes(inbound, head)).map(|sought| sought.show).max()?;
    let full = all.full.load(Relaxed);
    if full == 0 || full != unix_now() as u64 {
        return Some(show);
    }
    all.unseen.fetch_add(1, Relaxed);
    None
}

/// Names of a request's fields that are told, and bytes of them.
const MOST_NAMES: usize = 64;
const LONGEST_NAMES: usize = 2_048;

/// The names of a request's fields, as they came: the first of them.
fn names(fields: &Fields) -> Box<[Box<str>]> {
    let mut bytes = 0;
    let told = fields.iter().filter(|(known, _, _)| *known != Known::Weft).take(MOST_NAMES).take_while(|(_, name, _)| {
        bytes += name.len();
        bytes <= LONGEST_NAMES
    });
    told.map(|(_, name, _)| String::from_utf8_lossy(name).into()).collect()
}

/// Finds where a request stands in a trace, decides, and has it say so. Its `tracestate` is beside it.
fn place(worker: &Worker, fields: &mut Fields, wanted: u32) -> Option<(Trace, Option<Box<str>>)> {
    let Said { context: parent, decided, forms } = propagate::read(fields);
    let untouched =
        |p: Context| (Trace { context: p, parent: Some(p.span), span: p.span, forms, sampled: false, state: None }, None);
    let sampler = worker.telemetry.sampler().filter(|_| wanted & TRACES != 0);
    // The line of the log and the event of the tap still name the trace that the application is in.
    let Some(sampler) = sampler else { return parent.map(untouched) };
    let errors = worker.telemetry.all.tracing.as_ref().is_some_and(|t| t.errors);
    if parent.is_none() && !errors && !sampler.begins_traces(decided) {
        return None;
    }
    let span = SpanId::random(worker.random());
    let at = match parent {
        Some(parent) => parent.at(span, parent.sampled == Some(true)),
        None => Context::root(worker.random(), worker.random(), span),
    };
    let sampled = sampler.samples(decided, at.trace);
    if !sampled && !errors {
        return parent.map(untouched);
    }
    let context = at.at(span, sampled);
    let state = if forms.w3c { propagate::state(fields) } else { None };
    if sampled {
        propagate::write(fields, &context, forms);
    }
    Some((Trace { context, parent: parent.map(|p| p.span), span, forms, sampled, state: None }, state))
}

/// A note of an opaque connection, from when it came, if anybody wants one: access log or tap. Connections have no spans.
#[inline]
pub fn connection(
    worker: &Worker,
    client: &Stream,
    direction: Direction,
    peer_and_target: impl FnOnce() -> (Arc<str>, Arc<str>),
) -> Option<Note> {
    if worker.telemetry.all.wanted.load(Relaxed) & (LOG | TAP) == 0 {
        return None;
    }
    let (peer, target) = peer_and_target();
    let mut note = Note::new(worker, client.opened(), LOG | TAP);
    let caller = if direction == Direction::Inbound { &*peer } else { "" };
    note.begin(worker, (direction, client.peer().ip()), (caller, &target), "tcp");
    Some(note)
}

/// A note of bytes that came as a request and are none, if anybody wants one.
pub fn malformed(worker: &Worker, caller: &HttpCaller, target: &Arc<str>, version: MeshProtocol) -> Option<Note> {
    if worker.telemetry.all.wanted.load(Relaxed) & (LOG | TAP) == 0 {
        return None;
    }
    let mut note = Note::new(worker, Instant::now(), LOG | TAP);
    note.begin(worker, (caller.direction, caller.address), (caller.peer(), target), spoken(version));
    Some(note)
}

fn spoken(version: MeshProtocol) -> &'static str {
    if version == MeshProtocol::Http2 { "http/2" } else { "http/1.1" }
}

impl Note {
    fn new(worker: &Worker, began: Instant, wanted: u32) -> Self {
        let mut making = worker.telemetry.making();
        (making.began, making.wanted, making.telemetry) = (began, wanted, Some(worker.telemetry.clone()));
        Self { making: Some(making) }
    }

    /// What is known at first: which way it goes and from which address, who calls what, and what is spoken.
    fn begin(
        &mut self,
        worker: &Worker,
        (direction, client): (Direction, IpAddr),
        (caller, target): (&str, &str),
        protocol: &'static str,
    ) {
        let began = worker.telemetry.unix(self.making().began);
        let noted = self.noted();
        let (caller, target) = (noted.text(caller), noted.text(target));
        let record = &mut noted.record;
        (record.direction, record.began, record.client) = (direction, began, client);
        (record.caller, record.target, record.protocol) = (caller, target, protocol);
    }

    fn making(&mut self) -> &mut Making {
        self.making.as_mut().expect("it is there until the drop")
    }

    fn noted(&mut self) -> &mut Noted {
        &mut self.making().noted
    }

    fn record(&mut self) -> &mut Record {
        &mut self.noted().record
    }

    fn elapsed(&self) -> Duration {
        self.making.as_ref().map_or(Duration::ZERO, |making| making.began.elapsed())
    }

    /// It was judged just now, by `judge`: what policies have to say of it beside the verdict is told with it.
    pub fn judged<T>(&mut self, worker: &Worker, judge: impl FnOnce() -> T) -> T {
        worker.telemetry.notice.take();
        let verdict = judge();
        self.record().notice = worker.telemetry.notice.take();
        verdict
    }

    /// An attempt begins. Of those that go out, later ones than the first have a span of their own: the context that their head is to say, if it
    /// is to say one, is given.
    pub fn attempt(&mut self, worker: &Worker, number: u32, lease: &Lease) -> Option<(Context, Forms)> {
        let after = lease.since().saturating_duration_since(self.making().began);
        let record = self.record();
        let mut goes = None;
        let mut span = SpanId::random(1);
        // Only where the request stands at a span of our own: the log alone has the caller's.
        if let Some(trace) = &mut record.trace
            && trace.parent != Some(trace.span)
        {
            span = trace.context.span;
            if number > 1 && record.direction == Direction::Outbound {
                span = SpanId::random(worker.random());
                goes = trace.sampled.then(|| (trace.context.at(span, true), trace.forms));
                if number == 2 {
                    // The first attempt's span was sent already: the whole gets another.
                    trace.span = SpanId::random(worker.random());
                }
            }
        }
        self.noted().begins(after, span, &lease.peer, lease.destination.address());
        goes
    }

    /// The last attempt failed, and nothing of its answer was passed on.
    pub fn failed(&mut self, failure: &Failure) {
        let after = self.elapsed();
        self.record().failed(after, failure);
    }

    /// An endpoint answered, whether its answer is passed on or not.
    pub fn answered(&mut self, status: u16) {
        if let Some(last) = self.record().under_way() {
            last.status = status;
        }
    }

    /// The head of an answer goes to the caller.
    pub fn head(&mut self, status: u16, fields: &Fields) {
        let after = self.elapsed();
        let record = self.record();
        record.status = status;
        record.first.get_or_insert(after);
        if let Some(shown) = &mut record.shown {
            shown.answered(fields);
        }
        self.trailers(fields);
    }

    /// Fields that may say how a gRPC call ended.
    pub fn trailers(&mut self, fields: &Fields) {
        let record = self.record();
        if record.request.as_ref().is_some_and(|r| r.grpc)
            && let Some(status) = fields.first(Known::GrpcStatus).and_then(|v| std::str::from_utf8(v).ok()?.parse().ok())
        {
            record.grpc_status = Some(status);
        }
    }

    /// A piece of an answer's body goes to the caller.
    pub fn sends(&mut self, piece: &[u8]) {
        let record = self.record();
        record.sent += piece.len() as u64;
        if let Some(shown) = &mut record.shown {
            shown.sends(piece);
        }
    }

    /// Somebody is shown the beginning of bodies.
    pub fn shows_bodies(&self) -> bool {
        self.making.as_ref().and_then(|making| making.noted.record.shown.as_ref()).is_some_and(|shown| shown.bodies())
    }

    /// The request's body had so many bytes, and began so where that is shown.
    pub fn received(&mut self, bytes: u64, began: Option<Excerpt>) {
        let record = self.record();
        record.received = bytes;
        if let (Some(shown), Some(began)) = (&mut record.shown, began) {
            shown.received(began);
        }
    }

    /// An opaque connection carried so many bytes.
    pub fn carried(&mut self, received: u64, sent: u64) {
        let record = self.record();
        (record.received, record.sent) = (received, sent);
    }

    /// An opaque connection goes to this endpoint.
    pub fn goes_to(&mut self, peer: &str, address: std::net::SocketAddr) {
        self.record().port = address.port();
        self.noted().begins(Duration::ZERO, SpanId::random(1), peer, address);
    }

    /// weft fails it, or refuses it.
    pub fn fails(&mut self, failure: &Failure) {
        self.record().fails(failure);
    }

    /// It ended as it should.
    pub fn whole(&mut self) {
        self.record().whole = true;
    }

    /// The trace that it is in, if its spans are recorded, and when it began in nanoseconds since 1970: for exemplars.
    pub fn sampled(&self) -> Option<(Context, u64)> {
        let record = &self.making.as_ref()?.noted.record;
        record.trace.as_ref().filter(|trace| trace.sampled).map(|trace| (trace.context, record.began))
    }
}
