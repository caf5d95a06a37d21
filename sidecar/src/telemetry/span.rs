//! Records as spans and log records, by OpenTelemetry's semantic conventions for HTTP (stable) and RPC (in the version of `conventions::SCHEMA_URL`), with `weft.…` beside them.
//!
//! Inbound: a SERVER span, its attempts as events. Outbound: a CLIENT span for each attempt, as the conventions ask, with `http.request.resend_count`; where there
//! were several, an INTERNAL span above them stands for the request.

use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::logs::v1::{LogRecord, SeverityNumber};
use opentelemetry_proto::tonic::trace::v1::span::{Event, SpanKind};
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use opentelemetry_proto::tonic::trace::v1::{Span, Status};
use weft_core::conventions::{self, METHODS};
use weft_core::trace::SpanId;

use super::fields::{Told, direction, is_grpc, peer};
use super::record::{Attempt, Record, Request, Trace};
use super::resource::attribute;
use crate::denials::Reference;
use crate::metrics::Direction;

/// Attributes in the making.
struct Attributes(Vec<KeyValue>);

impl Attributes {
    fn text(&mut self, name: &str, value: impl Into<String>) {
        self.0.push(attribute(name, Value::StringValue(value.into())));
    }

    fn bytes(&mut self, name: &str, value: &[u8]) {
        self.text(name, String::from_utf8_lossy(value));
    }

    fn number(&mut self, name: &str, value: impl TryInto<i64>) {
        self.0.push(attribute(name, Value::IntValue(value.try_into().unwrap_or(i64::MAX))));
    }
}

/// The spans of a request; none where it stands in no trace.
pub(super) fn spans(told: &Told<'_>) -> Vec<Span> {
    let record = told.record;
    let (Some(trace), Some(request)) = (&record.trace, record.request.as_deref()) else { return vec![] };
    match (record.direction, &record.attempts[..]) {
        (Direction::Inbound, attempts) => {
            let mut span = whole(told, trace, request, SpanKind::Server);
            if attempts.len() > 1 {
                span.events = attempts.iter().enumerate().map(|(i, attempt)| event(record, i, attempt)).collect();
            }
            vec![span]
        }
        (Direction::Outbound, [] | [_]) => vec![whole(told, trace, request, SpanKind::Client)],
        (Direction::Outbound, attempts) => {
            let mut all = vec![whole(told, trace, request, SpanKind::Internal)];
            let last = attempts.len() - 1;
            for (i, attempt) in attempts.iter().enumerate() {
                all.push(one(told, trace, request, (i, attempt), i == last));
            }
            all
        }
    }
}

/// How many spans those are.
pub(super) fn count(record: &Record) -> u64 {
    match (record.direction, record.attempts.len()) {
        (Direction::Inbound, _) | (_, 0 | 1) => 1,
        (Direction::Outbound, attempts) => attempts as u64 + 1,
    }
}

/// The span of a request as a whole.
fn whole(told: &Told<'_>, trace: &Trace, request: &Request, kind: SpanKind) -> Span {
    let record = told.record;
    let mut attributes = of_request(record, request, kind);
    if kind == SpanKind::Client {
        to_endpoint(&mut attributes, record.attempts.first());
    }
    of_outcome(&mut attributes, record, kind);
    of_weft(&mut attributes, told);
    let mut span = blank(trace, name(request).to_owned(), kind);
    span.span_id = trace.span.to_bytes().to_vec();
    span.parent_span_id = trace.parent.map_or_else(Vec::new, |p| p.to_bytes().to_vec());
    span.start_time_unix_nano = record.began;
    span.end_time_unix_nano = record.began + record.took.as_nanos() as u64;
    span.attributes = attributes.0;
    span.status = status(record, kind);
    span
}

/// The span of one attempt of several.
fn one(told: &Told<'_>, trace: &Trace, request: &Request, (i, attempt): (usize, &Attempt), last: bool) -> Span {
    let record = told.record;
    let mut attributes = of_request(record, request, SpanKind::Client);
    to_endpoint(&mut attributes, Some(attempt));
    if i > 0 {
        attributes.number("http.request.resend_count", i as u64);
    }
    attributes.number("weft.attempt", i as u64 + 1);
    let mut span = blank(trace, name(request).to_owned(), SpanKind::Client);
    if last {
        of_outcome(&mut attributes, record, SpanKind::Client);
        span.status = status(record, SpanKind::Client);
    } else {
        if attempt.status != 0 {
            attributes.number("http.response.status_code", attempt.status);
        }
        let error = attempt.reason.map_or_else(|| attempt.status.to_string(), |r| r.as_str().to_owned());
        attributes.text("error.type", error);
        span.status = Some(Status { message: String::new(), code: StatusCode::Error.into() });
    }
    if let Some(reason) = attempt.reason {
        attributes.text("weft.reason", reason.as_str());
    }
    span.flags = (span.flags & !REMOTE_PARENT) | LOCAL_PARENT;
    span.span_id = attempt.span.to_bytes().to_vec();
    span.parent_span_id = trace.span.to_bytes().to_vec();
    span.start_time_unix_nano = record.began + attempt.began.as_nanos() as u64;
    span.end_time_unix_nano = span.start_time_unix_nano + attempt.took.as_nanos() as u64;
    span.attributes = attributes.0;
    span
}

/// What the flags of a span say beside the trace's own (OTLP, `SpanFlags`): it is known whether the parent is remote, and it is, or is not.
const REMOTE_PARENT: u32 = 0x300;
const LOCAL_PARENT: u32 = 0x100;

fn blank(trace: &Trace, name: String, kind: SpanKind) -> Span {
    let flags = u32::from(trace.sampled) | u32::from(trace.context.random) << 1;
    Span {
        trace_id: trace.context.trace.to_bytes().to_vec(),
        trace_state: trace.state.as_deref().unwrap_or_default().to_owned(),
        flags: flags | if trace.parent.is_some() { REMOTE_PARENT } else { LOCAL_PARENT },
        name,
        kind: kind.into(),
        ..Span::default()
    }
}

fn event(record: &Record, i: usize, attempt: &Attempt) -> Event {
    let mut attributes = Attributes(Vec::new());
    attributes.number("weft.attempt", i as u64 + 1);
    if let Some(reason) = attempt.reason {
        attributes.text("weft.reason", reason.as_str());
    }
    Event {
        time_unix_nano: record.began + attempt.began.as_nanos() as u64,
        name: "weft.attempt".to_owned(),
        attributes: attributes.0,
        dropped_attributes_count: 0,
    }
}

fn known_method(request: &Request) -> Option<&'static str> {
    conventions::known_method(&request.method).map(|place| METHODS[place])
}

/// The method, or the gRPC method: what a caller can make up at will is no part of a name.
fn name(request: &Request) -> &str {
    if request.grpc {
        conventions::rpc_method(&request.path).unwrap_or(conventions::OTHER)
    } else {
        known_method(request).unwrap_or("HTTP")
    }
}

/// A host and its port.
fn host_and_port(host: &[u8]) -> (String, Option<u16>) {
    let text = String::from_utf8_lossy(host);
    let (name, port) = match text.rsplit_once(':') {
        Some((name, port)) if !name.ends_with(':') && !port.ends_with(']') => (name, port.parse().ok()),
        _ => (&*text, None),
    };
    (name.trim_start_matches('[').trim_end_matches(']').to_owned(), port)
}

fn of_request(record: &Record, request: &Request, kind: SpanKind) -> Attributes {
    let mut attributes = Attributes(Vec::with_capacity(24));
    if request.grpc {
        attributes.text("rpc.system.name", "grpc");
        attributes.text("rpc.method", name(request));
        if conventions::rpc_method(&request.path).is_none() {
            attributes.bytes("rpc.method_original", request.path.strip_prefix(b"/").unwrap_or(&request.path));
        }
    } else {
        match known_method(request) {
            Some(method) => attributes.text("http.request.method", method),
            None => {
                attributes.text("http.request.method", conventions::OTHER);
                attributes.bytes("http.request.method_original", &request.method);
            }
        }
    }
    let (host, port) = host_and_port(&request.host);
    let host = if host.is_empty() { record.target.to_string() } else { host };
    if kind == SpanKind::Server {
        if !request.grpc {
            attributes.text("url.scheme", "http");
            attributes.bytes("url.path", &request.path);
        }
        attributes.text("client.address", record.client.to_canonical().to_string());
        attributes.text("network.peer.address", record.client.to_canonical().to_string());
        if let Some(agent) = &request.user_agent {
            attributes.bytes("user_agent.original", agent);
        }
    } else if !request.grpc {
        // Without the query, which may hold what is nobody's business.
        let (authority, path) = (String::from_utf8_lossy(&request.host), String::from_utf8_lossy(&request.path));
        attributes.text("url.full", format!("http://{authority}{path}"));
    }
    attributes.text("server.address", host);
    attributes.number("server.port", port.unwrap_or(record.port));
    attributes.text("network.protocol.name", "http");
    attributes.text("network.protocol.version", if record.protocol == "http/2" { "2" } else { "1.1" });
    attributes
}

/// Whom an attempt went to.
fn to_endpoint(attributes: &mut Attributes, attempt: Option<&Attempt>) {
    let Some(attempt) = attempt else { return };
    attributes.text("network.peer.address", attempt.address.ip().to_canonical().to_string());
    attributes.number("network.peer.port", attempt.address.port());
    attributes.text("weft.endpoint", attempt.address.to_string());
    attributes.text("weft.peer.identity", &*attempt.peer);
}

/// Whether the conventions call it an error at this end: what a server answers to a caller's own mistake is the caller's.
fn failed(record: &Record, kind: SpanKind) -> bool {
    let server = kind == SpanKind::Server;
    match record.grpc() {
        Some(status) => !record.whole || conventions::is_grpc_error(status, server),
        None => !record.whole || record.status == 0 || conventions::is_http_error(record.status, server),
    }
}

fn status(record: &Record, kind: SpanKind) -> Option<Status> {
    failed(record, kind).then(|| Status {
        message: record.reason.map_or_else(String::new, |r| r.explain().to_owned()),
        code: StatusCode::Error.into(),
    })
}

fn of_outcome(attributes: &mut Attributes, record: &Record, kind: SpanKind) {
    if let Some(status) = record.grpc() {
        attributes.text("rpc.response.status_code", conventions::grpc_name(status));
    } else if record.status != 0 && !is_grpc(record) {
        attributes.number("http.response.status_code", record.status);
    }
    if failed(record, kind) {
        let error = match (record.reason, record.grpc()) {
            (Some(reason), _) => reason.as_str().to_owned(),
            (None, Some(status)) => conventions::grpc_name(status).to_owned(),
            (None, None) => record.status.to_string(),
        };
        attributes.text("error.type", error);
    }
}

/// What the conventions have no name for.
fn of_weft(attributes: &mut Attributes, told: &Told<'_>) {
    let record = told.record;
    attributes.text("weft.direction", direction(record.direction));
    attributes.text("weft.target", &*record.target);
    if record.direction == Direction::Inbound {
        attributes.text("weft.peer.identity", &*record.caller);
    }
    if record.tried > 1 {
        attributes.number("weft.attempts", record.tried);
    }
    if let Some(reason) = record.reason {
        attributes.text("weft.reason", reason.as_str());
    }
    if let Some(policy) = &record.policy {
        attributes.text("weft.policy", &**policy);
    }
    if let Some(notice) = &record.notice {
        attributes.text("weft.notice", &**notice);
    }
    if let Some(reference) = record.reference {
        attributes.text("weft.ref", Reference(reference).to_string());
    }
}

/// The access log's entry, correlated with the trace.
pub(super) fn log_record(told: &Told<'_>, now: u64) -> LogRecord {
    let record = told.record;
    let mut attributes = match &record.request {
        Some(request) => {
            let kind = if record.direction == Direction::Inbound { SpanKind::Server } else { SpanKind::Client };
            let mut attributes = of_request(record, request, kind);
            if kind == SpanKind::Client {
                to_endpoint(&mut attributes, record.attempts.last());
            }
            of_outcome(&mut attributes, record, kind);
            attributes
        }
        None => {
            let mut attributes = Attributes(Vec::new());
            attributes.text("network.transport", "tcp");
            to_endpoint(&mut attributes, record.attempts.last());
            attributes
        }
    };
    of_weft(&mut attributes, told);
    attributes.number("weft.bytes_received", record.received);
    attributes.number("weft.bytes_sent", record.sent);
    attributes.number("weft.duration_us", record.took.as_micros() as u64);
    let said = match &record.request {
        Some(request) => {
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            format!("{} {} {}", text(&request.method), text(&request.path), record.status)
        }
        None => format!("tcp {} {}", record.target, peer(record)),
    };
    let (severity, word) = if record.is_error() { (SeverityNumber::Warn, "WARN") } else { (SeverityNumber::Info, "INFO") };
    let id = |span: SpanId| span.to_bytes().to_vec();
    LogRecord {
        time_unix_nano: record.began,
        observed_time_unix_nano: now,
        severity_number: severity.into(),
        severity_text: word.to_owned(),
        body: Some(AnyValue { value: Some(Value::StringValue(said)) }),
        attributes: attributes.0,
        flags: record.told_trace().map_or(0, |t| u32::from(t.sampled)),
        trace_id: record.told_trace().map_or_else(Vec::new, |t| t.context.trace.to_bytes().to_vec()),
        span_id: record.told_trace().map_or_else(Vec::new, |t| id(t.span)),
        event_name: "weft.access".to_owned(),
        ..LogRecord::default()
    }
}
