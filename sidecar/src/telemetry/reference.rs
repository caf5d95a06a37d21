//! Spans and log records as messages, made the long way: what `span.rs` writes is compared with them, of any record.

use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::logs::v1::{LogRecord, SeverityNumber};
use opentelemetry_proto::tonic::trace::v1::span::{Event, SpanKind};
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use opentelemetry_proto::tonic::trace::v1::{Span, Status};
use proptest::collection::vec;
use proptest::option::of;
use proptest::prelude::*;
use prost::Message;
use weft_core::conventions::{self, METHODS};
use weft_core::failure::Reason;
use weft_core::trace::SpanId;

use super::fields::{direction, is_grpc, peer};
use super::record::{Attempt, Noted, Record, Request, Told, Trace};
use super::resource::attribute;
use crate::denials::Reference;
use crate::metrics::Direction;

/// Attributes in the making.
struct Attributes(Vec<KeyValue>);

impl Attributes {
    fn text(&mut self, name: &str, value: impl Into<String>) {
        self.0.push(attribute(name, Value::StringValue(value.into())));
    }

    fn number(&mut self, name: &str, value: impl TryInto<i64>) {
        self.0.push(attribute(name, Value::IntValue(value.try_into().unwrap_or(i64::MAX))));
    }
}

/// The spans of a request; none where it stands in no trace.
pub(super) fn spans(told: &Told<'_>) -> Vec<Span> {
    let record = told.record;
    let (Some(trace), Some(request)) = (&record.trace, &record.request) else { return vec![] };
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

/// The span of a request as a whole.
fn whole(told: &Told<'_>, trace: &Trace, request: &Request, kind: SpanKind) -> Span {
    let record = told.record;
    let mut attributes = of_request(told, request, kind);
    if kind == SpanKind::Client {
        to_endpoint(&mut attributes, told, record.attempts.first());
    }
    of_outcome(&mut attributes, record, kind);
    of_weft(&mut attributes, told);
    let mut span = blank(told, trace, name(told, request).to_owned(), kind);
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
    let mut attributes = of_request(told, request, SpanKind::Client);
    to_endpoint(&mut attributes, told, Some(attempt));
    if i > 0 {
        attributes.number("http.request.resend_count", i as u64);
    }
    attributes.number("weft.attempt", i as u64 + 1);
    let mut span = blank(told, trace, name(told, request).to_owned(), SpanKind::Client);
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

fn blank(told: &Told<'_>, trace: &Trace, name: String, kind: SpanKind) -> Span {
    let flags = u32::from(trace.sampled) | u32::from(trace.context.random) << 1;
    Span {
        trace_id: trace.context.trace.to_bytes().to_vec(),
        trace_state: trace.state.map_or("", |state| told.text(state)).to_owned(),
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
fn host_and_port(text: &str) -> (String, Option<u16>) {
    let (name, port) = match text.rsplit_once(':') {
        Some((name, port)) if !name.ends_with(':') && !port.ends_with(']') => (name, port.parse().ok()),
        _ => (text, None),
    };
    (name.trim_start_matches('[').trim_end_matches(']').to_owned(), port)
}

fn of_request(told: &Told<'_>, request: &Request, kind: SpanKind) -> Attributes {
    let record = told.record;
    let mut attributes = Attributes(Vec::with_capacity(24));
    if request.grpc {
        attributes.text("rpc.system.name", "grpc");
        attributes.text("rpc.method", name(told, request));
        if conventions::rpc_method(told.text(request.path).as_bytes()).is_none() {
            let path = told.text(request.path);
            attributes.text("rpc.method_original", path.strip_prefix('/').unwrap_or(path));
        }
    } else {
        match known_method(told, request) {
            Some(method) => attributes.text("http.request.method", method),
            None => {
                attributes.text("http.request.method", conventions::OTHER);
                attributes.text("http.request.method_original", told.text(request.method));
            }
        }
    }
    let (host, port) = host_and_port(told.text(request.host));
    let host = if host.is_empty() { told.text(record.target).to_owned() } else { host };
    if kind == SpanKind::Server {
        if !request.grpc {
            attributes.text("url.scheme", "http");
            attributes.text("url.path", told.text(request.path));
        }
        attributes.text("client.address", record.client.to_canonical().to_string());
        attributes.text("network.peer.address", record.client.to_canonical().to_string());
        if let Some(agent) = request.user_agent {
            attributes.text("user_agent.original", told.text(agent));
        }
    } else if !request.grpc {
        // Without the query, which may hold what is nobody's business.
        let (authority, path) = (told.text(request.host), told.text(request.path));
        attributes.text("url.full", format!("http://{authority}{path}"));
    }
    attributes.text("server.address", host);
    attributes.number("server.port", port.unwrap_or(record.port));
    attributes.text("network.protocol.name", "http");
    attributes.text("network.protocol.version", if record.protocol == "http/2" { "2" } else { "1.1" });
    attributes
}

/// Whom an attempt went to.
fn to_endpoint(attributes: &mut Attributes, told: &Told<'_>, attempt: Option<&Attempt>) {
    let Some(attempt) = attempt else { return };
    attributes.text("network.peer.address", attempt.address.ip().to_canonical().to_string());
    attributes.number("network.peer.port", attempt.address.port());
    attributes.text("weft.endpoint", attempt.address.to_string());
    attributes.text("weft.peer.identity", told.text(attempt.peer));
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
    attributes.text("weft.target", told.text(record.target));
    if record.direction == Direction::Inbound {
        attributes.text("weft.peer.identity", told.text(record.caller));
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
            let mut attributes = of_request(told, request, kind);
            if kind == SpanKind::Client {
                to_endpoint(&mut attributes, told, record.attempts.last());
            }
            of_outcome(&mut attributes, record, kind);
            attributes
        }
        None => {
            let mut attributes = Attributes(Vec::new());
            attributes.text("network.transport", "tcp");
            to_endpoint(&mut attributes, told, record.attempts.last());
            attributes
        }
    };
    of_weft(&mut attributes, told);
    attributes.number("weft.bytes_received", record.received);
    attributes.number("weft.bytes_sent", record.sent);
    attributes.number("weft.duration_us", record.took.as_micros() as u64);
    let said = match &record.request {
        Some(request) => {
            format!("{} {} {}", told.text(request.method), told.text(request.path), record.status)
        }
        None => format!("tcp {} {}", told.text(record.target), peer(told)),
    };
    let (severity, word) = if record.is_error() { (SeverityNumber::Warn, "WARN") } else { (SeverityNumber::Info, "INFO") };
    let id = |span: SpanId| span.to_bytes().to_vec();
    sort(&mut attributes.0);
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

/// In an order that says nothing.
fn sort(attributes: &mut [KeyValue]) {
    attributes.sort_by(|one, other| one.key.cmp(&other.key));
}

/// Span, when it began and how long it took, status; peer, address, reason.
type Tried = ((u64, [u32; 2], u16), (String, std::net::SocketAddr, Option<usize>));

fn attempts() -> impl Strategy<Value = Vec<Tried>> {
    let times = (any::<u64>(), any::<[u32; 2]>(), 0..600_u16);
    vec((times, (".{0,80}", any::<std::net::SocketAddr>(), of(0..Reason::ALL.len()))), 0..4)
}

/// Method, path, query, host, user agent, as they come.
type Head = (Vec<u8>, Vec<u8>, Option<Vec<u8>>, String, Option<Vec<u8>>);

fn heads() -> impl Strategy<Value = Head> {
    let text = |pattern: &'static str| pattern.prop_map(String::into_bytes);
    let bytes = |most: usize| vec(any::<u8>(), 0..most);
    (
        prop_oneof![Just(b"GET".to_vec()), bytes(300)],
        prop_oneof![text("/shop.Cart/[a-zA-Z]{0,130}"), text("/[a-z/]{0,1100}"), text("\\PC{0,300}"), bytes(1_100)],
        of(bytes(100)),
        prop_oneof!["[a-z.]{0,300}", "[a-z]{1,9}:[0-9]{1,6}", "\\[[0-9a-f:]{2,20}\\]:[0-9]{1,5}", "\\PC{0,90}"],
        of(bytes(300)),
    )
}

prop_compose! {
    fn traces()(ids: (u64, u64, u64), parent in of(any::<u64>()), whole: u64, flags: (bool, bool), state in of("[a-z]{1,9}=[!-+]{1,300}")) -> (Trace, Option<String>) {
        let context = weft_core::trace::Context { random: flags.0, ..weft_core::trace::Context::root(ids.0, ids.1, SpanId::random(ids.2)) };
        let (parent, span, forms) = (parent.map(SpanId::random), SpanId::random(whole), super::propagate::Forms::default());
        (Trace { context, parent, span, forms, sampled: flags.1, state: None }, state)
    }
}

prop_compose! {
    fn records()(
        way in (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>()),
        times in (0..1_u64 << 62, any::<u32>(), of(any::<u32>())),
        client: std::net::IpAddr,
        names in (".{0,200}", ".{0,200}"),
        head in of(heads()),
        statuses in (prop_oneof![Just(0), Just(200), 100..600_u16], of(0..20_u8), any::<u16>()),
        words in (of(0..Reason::ALL.len()), of(any::<u64>()), of(".{0,300}"), of(".{0,300}")),
        bytes: (u64, u64),
        attempts in attempts(),
        trace in of(traces()),
    ) -> Noted {
        let mut noted = Noted::default();
        let nanos = |nanos: u32| std::time::Duration::from_nanos(nanos.into());
        let request = head.map(|(method, path, query, host, agent)| Request {
            method: noted.all([(&method, 256)])[0],
            path: noted.all([(&path, 1_024)])[0],
            query: query.map(|query| noted.all([(&query, 1_024)])[0]),
            host: noted.all([(host.as_bytes(), 256)])[0],
            user_agent: agent.map(|agent| noted.all([(&agent, 256)])[0]),
            grpc: way.3,
        });
        noted.record = Record {
            direction: if way.0 { Direction::Inbound } else { Direction::Outbound },
            began: times.0,
            took: nanos(times.1),
            first: times.2.map(nanos),
            client,
            caller: noted.text(&names.0),
            target: noted.text(&names.1),
            port: statuses.2,
            protocol: if request.is_none() { "tcp" } else if way.1 { "http/2" } else { "http/1.1" },
            request,
            status: statuses.0,
            grpc_status: statuses.1,
            reason: words.0.map(|i| Reason::ALL[i]),
            reference: words.1,
            policy: words.2.map(Into::into),
            notice: words.3.map(Into::into),
            received: bytes.0,
            sent: bytes.1,
            trace: trace.map(|(trace, state)| Trace { state: state.map(|state| noted.text(&state)), ..trace }),
            whole: way.2,
            ..Record::default()
        };
        for ((span, [began, took], status), (peer, address, reason)) in attempts {
            noted.begins(nanos(began), SpanId::random(span), &peer, address);
            let last = noted.record.under_way().expect("it began just now");
            (last.took, last.status, last.reason) = (nanos(took), status, reason.map(|i| Reason::ALL[i]));
        }
        noted
    }
}

proptest! {
    /// Whatever a caller sends, it is a message, and the one that it ought to be.
    #[test]
    fn what_is_written_is_what_a_collector_reads(noted in records()) {
        let (told, record) = (noted.told(), &noted.record);
        let mut spans = spans(&told);
        for span in &mut spans {
            sort(&mut span.attributes);
        }
        prop_assert_eq!(super::span::count(record), spans.len());
        let mut read = super::tests::read_back(&told);
        for span in &mut read {
            sort(&mut span.attributes);
        }
        prop_assert_eq!(read, spans);
        // The attributes of one span are the log record's as well.
        let mut out = Vec::new();
        super::span::write_log(&mut out, &told, None);
        if super::span::count(record) == 1 {
            let mut span = b"before".to_vec();
            let attributes = super::span::write(&mut span, &told, 0, None);
            super::span::write_log(&mut out, &told, Some(&span[attributes]));
        }
        let read = opentelemetry_proto::tonic::logs::v1::ScopeLogs::decode(&*out).expect("it is a message").log_records;
        prop_assert_eq!(read.len(), 1 + usize::from(super::span::count(record) == 1));
        for mut read in read {
            sort(&mut read.attributes);
            prop_assert_eq!(read, log_record(&told, record.ended()));
        }
    }

    /// What was written of one request is copied only into what is written of another that is alike in that.
    #[test]
    fn what_requests_have_in_common_is_written_as_it_would_be_of_each(noted in records(), changes in vec(0..11_u8, 1..4), words in ".{0,9}") {
        let (mut noted, fields) = (noted, super::fields::standard());
        let mut alike = super::alike::Alike::new(&fields);
        for change in std::iter::once(11).chain(changes) {
            // Of the same length, so that only a look at the text itself tells them apart.
            let piece = noted.record.caller;
            let text: String = noted.told().text(piece).chars().map(|c| if c == 'a' { 'b' } else { c }).collect();
            let (other, new) = (noted.text(&text), noted.text(&words));
            let Noted { record, .. } = &mut noted;
            match (change, &mut record.request) {
                (0, _) => record.direction = if record.direction == Direction::Inbound { Direction::Outbound } else { Direction::Inbound },
                (1, _) => record.client = std::net::Ipv4Addr::new(10, 0, 0, 9).into(),
                (2, _) => record.port ^= 1,
                (3, _) => record.protocol = if record.protocol == "http/2" { "http/1.1" } else { "http/2" },
                (4, Some(request)) => request.grpc = !request.grpc,
                (5, _) => record.caller = other,
                (6, _) => record.target = new,
                (7, Some(request)) => request.method = new,
                (8, Some(request)) => request.host = new,
                (9, _) => record.attempts.iter_mut().for_each(|attempt| attempt.peer = new),
                (10, _) => record.attempts.iter_mut().for_each(|attempt| attempt.address.set_port(81)),
                _ => {}
            }
            let (told, range) = (noted.told(), alike.range());
            let common = alike.of(&told, &fields);
            prop_assert_eq!(common.is_some(), told.record.request.is_some() && told.record.attempts.len() < 2);
            let Some(common) = common else { continue };
            let spans = [Some(&*common.span), None].map(|common| {
                let mut out = Vec::new();
                if super::span::count(told.record) == 1 {
                    super::span::write(&mut out, &told, 0, common);
                }
                out
            });
            prop_assert_eq!(&spans[0], &spans[1]);
            let lines = [Some((range, &*common.line)), None].map(|common| {
                let mut out = Vec::new();
                super::line::json(&mut out, &fields, &told, common);
                out
            });
            prop_assert_eq!(&lines[0], &lines[1]);
        }
    }

    /// As lines they are read by others as well, and have nothing in them that is not printed.
    #[test]
    fn a_line_is_json_of_any_record(noted in records()) {
        let (told, record) = (noted.told(), &noted.record);
        let mut out = Vec::new();
        super::line::json(&mut out, super::fields::FIELDS, &told, None);
        prop_assert!(out.iter().all(|b| (b' '..=b'~').contains(b)));
        let line: serde_json::Value = serde_json::from_slice(&out).expect("it is JSON");
        let text = |piece| serde_json::Value::from(told.text(piece));
        let request = record.request.as_ref();
        prop_assert_eq!(line.get("path").cloned(), request.map(|r| text(r.path)));
        prop_assert_eq!(line.get("user_agent").cloned(), request.and_then(|r| r.user_agent).map(text));
        prop_assert_eq!(line.get("policy").and_then(|p| p.as_str()), record.policy.as_deref().filter(|p| !p.is_empty()));
        prop_assert_eq!(line["bytes_sent"].as_u64(), Some(record.sent));
        let mut out = Vec::new();
        super::line::text(&mut out, super::fields::FIELDS, &told);
        prop_assert!(out.iter().all(|b| (b' '..=b'~').contains(b)));
    }
}
