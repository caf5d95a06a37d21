//! Records as spans and log records, by OpenTelemetry's semantic conventions for HTTP (stable) and RPC (in the version of `conventions::SCHEMA_URL`), with `weft.…` beside them:
//! as the bytes of OTLP's messages, with no message in between.
//!
//! Inbound: a SERVER span, its attempts as events. Outbound: a CLIENT span for each attempt, as the conventions ask, with `http.request.resend_count`; where there
//! were several, an INTERNAL span above them stands for the request.

use std::net::{IpAddr, SocketAddr};
use std::ops::Range;

use opentelemetry_proto::tonic::logs::v1::SeverityNumber;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use weft_core::conventions::{self, METHODS};

use super::digits;
use super::fields::{direction, is_grpc, peer};
use super::record::{Attempt, Record, Request, Told, Trace};
use crate::denials::Reference;
use crate::metrics::Direction;
use crate::otlp::key;
use crate::otlp::wire::{Key, Wire};

/// The field of a span, of an event and of a log record in which attributes are.
const OF_SPAN: u32 = 9;
const OF_EVENT: u32 = 3;
const OF_LOG: u32 = 6;
/// The field of a scope's message in which its spans or log records are.
const ITEMS: u32 = 2;

/// Where attributes go.
struct Attributes<'a, 'b> {
    wire: &'a mut Wire<'b>,
    field: u32,
}

impl Attributes<'_, '_> {
    #[inline]
    fn text(&mut self, key: &Key, value: &str) {
        self.wire.attribute(self.field, key, value);
    }

    #[inline]
    fn number(&mut self, key: &Key, value: u64) {
        // OTLP's whole numbers have a sign.
        self.wire.amount(self.field, key, value.min(i64::MAX as u64));
    }

    fn ip(&mut self, key: &Key, ip: IpAddr) {
        self.wire.short(self.field, key, |out| digits::ip(out, ip));
    }

    fn address(&mut self, key: &Key, address: SocketAddr) {
        self.wire.short(self.field, key, |out| digits::address(out, address));
    }

    /// A status as a text.
    fn status(&mut self, key: &Key, status: u16) {
        self.wire.short(self.field, key, |out| digits::decimal(out, status.into()));
    }
}

/// How many spans a request has.
pub(super) fn count(record: &Record) -> usize {
    if record.trace.is_none() || record.request.is_none() {
        return 0;
    }
    match (record.direction, record.attempts.len()) {
        (Direction::Inbound, _) | (_, 0 | 1) => 1,
        (Direction::Outbound, attempts) => attempts + 1,
    }
}

/// Writes one of a request's spans: as many as [`count`] says, the one of the request as a whole first. Gives where the attributes of that are: the log record has the same
/// where there is one span. `common` is what [`common`] would write, where that is known.
pub(super) fn write(out: &mut Vec<u8>, told: &Told<'_>, i: usize, common: Option<&[u8]>) -> Range<usize> {
    let record = told.record;
    let (Some(trace), Some(request)) = (&record.trace, &record.request) else { return 0..0 };
    let (mut attributes, mut end) = (0..0, 0);
    Wire::new(out).message(ITEMS, |span| {
        match (i.checked_sub(1), record.direction, &record.attempts[..]) {
            (Some(i), _, attempts) => one(span, told, trace, request, (i, &attempts[i]), i + 1 == attempts.len()),
            (None, Direction::Inbound, attempts) => {
                attributes = whole(span, told, trace, request, SpanKind::Server, common);
                if attempts.len() > 1 {
                    for (i, attempt) in attempts.iter().enumerate() {
                        span.message(11, |event| self::event(event, record, i, attempt));
                    }
                }
            }
            (None, Direction::Outbound, [] | [_]) => attributes = whole(span, told, trace, request, SpanKind::Client, common),
            (None, Direction::Outbound, _) => attributes = whole(span, told, trace, request, SpanKind::Internal, None),
        }
        end = span.len();
    });
    // The length that stands before it may have taken more room than there was for it, or less.
    let moved = |at| at + out.len() - end;
    moved(attributes.start)..moved(attributes.end)
}

/// What the flags of a span say beside the trace's own (OTLP, `SpanFlags`): it is known whether the parent is remote, and it is, or is not.
const REMOTE_PARENT: u32 = 0x300;
const LOCAL_PARENT: u32 = 0x100;

/// What every span of a trace has in common.
fn head(span: &mut Wire<'_>, told: &Told<'_>, trace: &Trace, request: &Request, kind: SpanKind) {
    span.bytes(1, &trace.context.trace.to_bytes());
    span.text(3, trace.state.map_or("", |state| told.text(state)));
    span.text(5, name(told, request));
    span.number(6, kind as u64);
}

fn flags(trace: &Trace) -> u32 {
    u32::from(trace.sampled) | u32::from(trace.context.random) << 1
}

/// The span of a request as a whole. Gives where its attributes are.
fn whole(
    span: &mut Wire<'_>,
    told: &Told<'_>,
    trace: &Trace,
    request: &Request,
    kind: SpanKind,
    common: Option<&[u8]>,
) -> Range<usize> {
    let record = told.record;
    head(span, told, trace, request, kind);
    span.bytes(2, &trace.span.to_bytes());
    if let Some(parent) = trace.parent {
        span.bytes(4, &parent.to_bytes());
    }
    span.fixed32(16, flags(trace) | if trace.parent.is_some() { REMOTE_PARENT } else { LOCAL_PARENT });
    span.fixed64(7, record.began);
    span.fixed64(8, record.ended());
    let begin = span.len();
    if let Some(common) = common {
        span.written(common);
    }
    let mut attributes = Attributes { wire: span, field: OF_SPAN };
    if common.is_none() {
        of_ends(&mut attributes, told, request, kind, record.attempts.first());
        of_way(&mut attributes, told);
    }
    of_request(&mut attributes, told, request, kind);
    of_outcome(&mut attributes, record, kind);
    of_weft(&mut attributes, told);
    let end = span.len();
    status(span, record, kind);
    begin..end
}

/// The span of one attempt of several.
fn one(span: &mut Wire<'_>, told: &Told<'_>, trace: &Trace, request: &Request, (i, attempt): (usize, &Attempt), last: bool) {
    let record = told.record;
    head(span, told, trace, request, SpanKind::Client);
    span.bytes(2, &attempt.span.to_bytes());
    span.bytes(4, &trace.span.to_bytes());
    span.fixed32(16, flags(trace) | LOCAL_PARENT);
    let began = record.began + attempt.began.as_nanos() as u64;
    span.fixed64(7, began);
    span.fixed64(8, began + attempt.took.as_nanos() as u64);
    let mut attributes = Attributes { wire: span, field: OF_SPAN };
    of_ends(&mut attributes, told, request, SpanKind::Client, Some(attempt));
    of_request(&mut attributes, told, request, SpanKind::Client);
    if i > 0 {
        attributes.number(key!("http.request.resend_count"), i as u64);
    }
    attributes.number(key!("weft.attempt"), i as u64 + 1);
    if last {
        of_outcome(&mut attributes, record, SpanKind::Client);
    } else {
        if attempt.status != 0 {
            attributes.number(key!("http.response.status_code"), attempt.status.into());
        }
        match attempt.reason {
            Some(reason) => attributes.text(key!("error.type"), reason.as_str()),
            None => attributes.status(key!("error.type"), attempt.status),
        }
    }
    if let Some(reason) = attempt.reason {
        attributes.text(key!("weft.reason"), reason.as_str());
    }
    if last {
        status(span, record, SpanKind::Client);
    } else {
        span.message(15, |status| status.number(3, StatusCode::Error as u64));
    }
}

fn event(event: &mut Wire<'_>, record: &Record, i: usize, attempt: &Attempt) {
    event.fixed64(1, record.began + attempt.began.as_nanos() as u64);
    event.text(2, "weft.attempt");
    let mut attributes = Attributes { wire: event, field: OF_EVENT };
    attributes.number(key!("weft.attempt"), i as u64 + 1);
    if let Some(reason) = attempt.reason {
        attributes.text(key!("weft.reason"), reason.as_str());
    }
}

fn known_method(told: &Told<'_>, request: &Request) -> Option<&'static str> {
    conventions::known_method(told.text(request.method).as_bytes()).map(|place| METHODS[place])
}

/// The method, or the gRPC method: what a caller can make up at will is no part of a name.
fn name<'a>(told: &Told<'a>, request: &Request) -> &'a str {
    if request.grpc {
        conventions::rpc_method(told.text(request.path).as_bytes()).unwrap_or(conventions::OTHER)
    } else {
        known_method(told, request).unwrap_or("HTTP")
    }
}

/// A host and its port.
fn host_and_port(host: &str) -> (&str, Option<u16>) {
    let (name, port) = match host.rsplit_once(':') {
        Some((name, port)) if !name.ends_with(':') && !port.ends_with(']') => (name, port.parse().ok()),
        _ => (host, None),
    };
    (name.trim_start_matches('[').trim_end_matches(']'), port)
}

/// What all requests between two ends have in common ([`super::alike`]), as attributes of a span: nothing that is said of one alone stands here.
pub(super) fn common(out: &mut Vec<u8>, told: &Told<'_>, request: &Request) {
    let kind = if told.record.direction == Direction::Inbound { SpanKind::Server } else { SpanKind::Client };
    let mut attributes = Attributes { wire: &mut Wire::new(out), field: OF_SPAN };
    of_ends(&mut attributes, told, request, kind, told.record.attempts.first());
    of_way(&mut attributes, told);
}

/// Method, caller, server and endpoint.
fn of_ends(attributes: &mut Attributes<'_, '_>, told: &Told<'_>, request: &Request, kind: SpanKind, attempt: Option<&Attempt>) {
    let record = told.record;
    match known_method(told, request) {
        _ if request.grpc => attributes.text(key!("rpc.system.name"), "grpc"),
        Some(method) => attributes.text(key!("http.request.method"), method),
        None => {
            attributes.text(key!("http.request.method"), conventions::OTHER);
            attributes.text(key!("http.request.method_original"), told.text(request.method));
        }
    }
    if kind == SpanKind::Server {
        if !request.grpc {
            attributes.text(key!("url.scheme"), "http");
        }
        attributes.ip(key!("client.address"), record.client);
        attributes.ip(key!("network.peer.address"), record.client);
    }
    let (name, port) = host_and_port(told.text(request.host));
    attributes.text(key!("server.address"), if name.is_empty() { told.text(record.target) } else { name });
    attributes.number(key!("server.port"), port.unwrap_or(record.port).into());
    attributes.text(key!("network.protocol.name"), "http");
    attributes.text(key!("network.protocol.version"), if record.protocol == "http/2" { "2" } else { "1.1" });
    if kind == SpanKind::Client {
        to_endpoint(attributes, told, attempt);
    }
}

/// What is asked for.
fn of_request(attributes: &mut Attributes<'_, '_>, told: &Told<'_>, request: &Request, kind: SpanKind) {
    let path = told.text(request.path);
    if request.grpc {
        attributes.text(key!("rpc.method"), name(told, request));
        if conventions::rpc_method(path.as_bytes()).is_none() {
            attributes.text(key!("rpc.method_original"), path.strip_prefix('/').unwrap_or(path));
        }
    }
    if kind == SpanKind::Server {
        if !request.grpc {
            attributes.text(key!("url.path"), path);
        }
        if let Some(agent) = request.user_agent {
            attributes.text(key!("user_agent.original"), told.text(agent));
        }
    } else if !request.grpc {
        // Without the query, which may hold what is nobody's business.
        attributes.wire.joined(attributes.field, key!("url.full"), &["http://", told.text(request.host), path]);
    }
}

/// Whom an attempt went to.
fn to_endpoint(attributes: &mut Attributes<'_, '_>, told: &Told<'_>, attempt: Option<&Attempt>) {
    let Some(attempt) = attempt else { return };
    attributes.ip(key!("network.peer.address"), attempt.address.ip());
    attributes.number(key!("network.peer.port"), attempt.address.port().into());
    attributes.address(key!("weft.endpoint"), attempt.address);
    attributes.text(key!("weft.peer.identity"), told.text(attempt.peer));
}

/// Whether the conventions call it an error at this end: what a server answers to a caller's own mistake is the caller's.
fn failed(record: &Record, kind: SpanKind) -> bool {
    let server = kind == SpanKind::Server;
    match record.grpc() {
        Some(status) => !record.whole || conventions::is_grpc_error(status, server),
        None => !record.whole || record.status == 0 || conventions::is_http_error(record.status, server),
    }
}

fn status(span: &mut Wire<'_>, record: &Record, kind: SpanKind) {
    if failed(record, kind) {
        span.message(15, |status| {
            status.text(2, record.reason.map_or("", |reason| reason.explain()));
            status.number(3, StatusCode::Error as u64);
        });
    }
}

fn of_outcome(attributes: &mut Attributes<'_, '_>, record: &Record, kind: SpanKind) {
    if let Some(status) = record.grpc() {
        attributes.text(key!("rpc.response.status_code"), conventions::grpc_name(status));
    } else if record.status != 0 && !is_grpc(record) {
        attributes.number(key!("http.response.status_code"), record.status.into());
    }
    if failed(record, kind) {
        match (record.reason, record.grpc()) {
            (Some(reason), _) => attributes.text(key!("error.type"), reason.as_str()),
            (None, Some(status)) => attributes.text(key!("error.type"), conventions::grpc_name(status)),
            (None, None) => attributes.status(key!("error.type"), record.status),
        }
    }
}

/// Which way it went, to what, and who called, as weft names them.
fn of_way(attributes: &mut Attributes<'_, '_>, told: &Told<'_>) {
    let record = told.record;
    attributes.text(key!("weft.direction"), direction(record.direction));
    attributes.text(key!("weft.target"), told.text(record.target));
    if record.direction == Direction::Inbound {
        attributes.text(key!("weft.peer.identity"), told.text(record.caller));
    }
}

/// What else the conventions have no name for.
fn of_weft(attributes: &mut Attributes<'_, '_>, told: &Told<'_>) {
    let record = told.record;
    if record.tried > 1 {
        attributes.number(key!("weft.attempts"), record.tried.into());
    }
    if let Some(reason) = record.reason {
        attributes.text(key!("weft.reason"), reason.as_str());
    }
    if let Some(policy) = &record.policy {
        attributes.text(key!("weft.policy"), policy);
    }
    if let Some(notice) = &record.notice {
        attributes.text(key!("weft.notice"), notice);
    }
    if let Some(reference) = record.reference {
        attributes.text(key!("weft.ref"), &Reference(reference).to_string());
    }
}

/// Writes the access log's entry, correlated with the trace. `shared` are the attributes of its one span, if that was written just now.
pub(super) fn write_log(out: &mut Vec<u8>, told: &Told<'_>, shared: Option<&[u8]>) {
    let record = told.record;
    Wire::new(out).message(ITEMS, |log| {
        log.fixed64(1, record.began);
        log.fixed64(11, record.ended());
        let (severity, word) = if record.is_error() { (SeverityNumber::Warn, "WARN") } else { (SeverityNumber::Info, "INFO") };
        log.number(2, severity as u64);
        log.text(3, word);
        log.message(5, |body| match &record.request {
            Some(request) => {
                let mut status = itoa::Buffer::new();
                body.texts(1, &[told.text(request.method), " ", told.text(request.path), " ", status.format(record.status)]);
            }
            None => body.texts(1, &["tcp ", told.text(record.target), " ", peer(told)]),
        });
        if let Some(trace) = record.told_trace() {
            log.fixed32(8, trace.sampled.into());
            log.bytes(9, &trace.context.trace.to_bytes());
            log.bytes(10, &trace.span.to_bytes());
        }
        log.text(12, "weft.access");
        match shared {
            Some(shared) => log.attributes_again(OF_LOG, shared),
            None => of_log(&mut Attributes { wire: log, field: OF_LOG }, told),
        }
        let mut attributes = Attributes { wire: log, field: OF_LOG };
        attributes.number(key!("weft.bytes_received"), record.received);
        attributes.number(key!("weft.bytes_sent"), record.sent);
        attributes.number(key!("weft.duration_us"), record.took.as_micros() as u64);
    });
}

/// What a log record has in common with a span.
fn of_log(attributes: &mut Attributes<'_, '_>, told: &Told<'_>) {
    let record = told.record;
    match &record.request {
        Some(request) => {
            let kind = if record.direction == Direction::Inbound { SpanKind::Server } else { SpanKind::Client };
            of_ends(attributes, told, request, kind, record.attempts.last());
            of_request(attributes, told, request, kind);
            of_outcome(attributes, record, kind);
        }
        None => {
            attributes.text(key!("network.transport"), "tcp");
            to_endpoint(attributes, told, record.attempts.last());
        }
    }
    of_way(attributes, told);
    of_weft(attributes, told);
}
