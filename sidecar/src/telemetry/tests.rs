use std::net::Ipv4Addr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::trace::v1::{ScopeSpans, Span};
use prost::Message;
use serde_json::Value as Json;
use smallvec::smallvec;
use tokio::time::Instant;
use weft_core::failure::{Failure, Reason, Retryable};
use weft_core::metrics::table;
use weft_core::policy::Caller;
use weft_core::protocol::MeshProtocol;
use weft_core::trace::{Context, SpanId};

use super::config::{AccessLog, Which};
use super::fields::{FIELDS, standard};
use super::record::{Noted, Record, Request, Told, Trace};
use super::tap::{Filter, open};
use super::way::{Bundle, Way};
use super::{Note, Telemetry, Telling, Tracing, WorkerTelemetry, line, span};
use crate::authorize::Guard;
use crate::config::Config;
use crate::connect::Destination;
use crate::http::RequestHead;
use crate::http::caller::HttpCaller;
use crate::http::fields::Fields;
use crate::mesh::Mesh;
use crate::metrics::Direction;
use crate::otlp::Env;
use crate::route::{Route, Tried, Wish};
use crate::worker::{Shared, Worker};

/// The spans of a request, read back. None where it stands in no trace.
pub(super) fn read_back(told: &Told<'_>) -> Vec<Span> {
    let mut out = Vec::new();
    for i in 0..span::count(told.record) {
        span::write(&mut out, told, i, None);
    }
    ScopeSpans::decode(&*out).expect("it is what was written just now").spans
}

fn attempt(noted: &mut Noted, n: u8, status: u16, reason: Option<Reason>) {
    noted.begins(
        Duration::from_millis(n.into()),
        SpanId::random(n.into()),
        "spiffe://td/ns/shop/sa/cart",
        (Ipv4Addr::new(10, 0, 0, n), 8080).into(),
    );
    let last = noted.record.under_way().expect("it began just now");
    (last.took, last.status, last.reason) = (Duration::from_millis(1), status, reason);
}

fn record(direction: Direction) -> Noted {
    let context = Context::root(1, 2, SpanId::random(9));
    let mut noted = Noted::default();
    let request = Request {
        method: noted.text("GET"),
        path: noted.text("/items"),
        query: Some(noted.text("secret=1")),
        host: noted.text("cart.shop:8080"),
        user_agent: Some(noted.text("curl/8")),
        grpc: false,
    };
    let trace = Trace {
        context,
        parent: Some(SpanId::random(8)),
        span: context.span,
        forms: super::propagate::Forms::default(),
        sampled: true,
        state: Some(noted.text("a=b")),
    };
    noted.record = Record {
        direction,
        began: 1_790_000_000_123_456_789,
        took: Duration::from_micros(12_345),
        first: Some(Duration::from_millis(3)),
        client: Ipv4Addr::new(10, 0, 0, 9).into(),
        caller: noted.text("spiffe://td/ns/shop/sa/web"),
        target: noted.text("shop/cart"),
        port: 80,
        protocol: "http/1.1",
        request: Some(request),
        status: 200,
        policy: Some("shop/deny#1".into()),
        received: 5,
        sent: 17,
        trace: Some(trace),
        whole: true,
        fields: Some(vec!["Authorization".into(), "x\u{1b}[2J".into()].into()),
        ..Record::default()
    };
    attempt(&mut noted, 1, 200, None);
    noted
}

fn request(noted: &mut Noted) -> &mut Request {
    noted.record.request.as_mut().expect("HTTP")
}

fn text(span: &Span, name: &str) -> Option<String> {
    match span.attributes.iter().find(|a| a.key == name)?.value.as_ref()?.value.as_ref()? {
        Any::StringValue(text) => Some(text.clone()),
        Any::IntValue(number) => Some(number.to_string()),
        _ => None,
    }
}

#[test]
fn what_came_is_text_by_itself() {
    // Neither half of a letter is one, nor is the letter that they make together anybody's.
    let mut noted = record(Direction::Inbound);
    let before = noted.texts.len();
    let [a, b, c] = noted.all([(b"x\xc3", 9), (b"\xa4y", 9), ("\u{e4}z".as_bytes(), 1)]);
    let told = noted.told();
    assert_eq!([a, b, c].map(|piece| told.text(piece)), ["x\u{fffd}", "\u{fffd}y", "\u{fffd}"]);
    noted.texts.truncate(before);
    let [a, b, c] = noted.all([("\u{e4}".as_bytes(), 9), (b"", 9), (b"long", 3)]);
    let told = noted.told();
    assert_eq!([a, b, c].map(|piece| told.text(piece)), ["\u{e4}", "", "lon"]);
}

#[test]
fn a_line_stays_a_line_and_a_field_a_field_whatever_a_caller_sends() {
    let mut noted = record(Direction::Inbound);
    let path = noted.all([("/a\r\nstatus=200 x\"y\\\u{1b}[31m\u{202e}\u{9b}1".as_bytes(), 1_024)])[0];
    let method = noted.all([(b"\xff\n", 256)])[0];
    (request(&mut noted).path, request(&mut noted).method) = (path, method);
    let told = noted.told();
    for is_json in [true, false] {
        let mut out = Vec::new();
        if is_json {
            line::json(&mut out, FIELDS, &told, None);
        } else {
            line::text(&mut out, FIELDS, &told);
        }
        let out = String::from_utf8(out).expect("text");
        assert!(out.bytes().all(|b| (b' '..=b'~').contains(&b)), "{out}");
        assert!(out.contains("\\u000d\\u000astatus=200 x\\\"y\\\\\\u001b[31m\\u202e\\u009b1"), "{out}");
    }
    let mut out = Vec::new();
    line::json(&mut out, &standard(), &told, None);
    let out = String::from_utf8(out).expect("text");
    let read: Json = serde_json::from_str(&out).expect("it is JSON");
    assert_eq!(read["path"], "/a\r\nstatus=200 x\"y\\\u{1b}[31m\u{202e}\u{9b}1");
    assert_eq!((&read["status"], &read["duration_ms"], &read["policy"]), (&200.into(), &12.345.into(), &"shop/deny#1".into()));
    assert!(!out.contains("secret") && !out.contains("curl"), "neither the query nor the user agent was asked for: {out}");
    assert_eq!(read["time"], "2026-09-21T14:13:20.123456Z");
    let mut out = Vec::new();
    line::text(&mut out, &standard()[1..4], &told);
    assert_eq!(out, b"direction=inbound client=10.0.0.9 peer=spiffe://td/ns/shop/sa/web");
    assert!("what".parse::<super::fields::Named>().is_err_and(|why| why.contains("direction, client")));
}

#[test]
fn one_attempt_is_one_client_span_and_several_stand_below_one() {
    let mut noted = record(Direction::Outbound);
    let spans = read_back(&noted.told());
    assert_eq!(spans.len(), 1);
    assert_eq!((spans[0].kind, &*spans[0].name, &*spans[0].trace_state), (3, "GET", "a=b"));
    assert_eq!(spans[0].parent_span_id, SpanId::random(8).to_bytes());
    for (name, value) in [
        ("http.request.method", "GET"),
        ("http.response.status_code", "200"),
        ("url.full", "http://cart.shop:8080/items"),
        ("server.address", "cart.shop"),
        ("server.port", "8080"),
        ("network.peer.address", "10.0.0.1"),
        ("network.protocol.version", "1.1"),
        ("weft.peer.identity", "spiffe://td/ns/shop/sa/cart"),
    ] {
        assert_eq!(text(&spans[0], name).as_deref(), Some(value), "{name}");
    }
    assert!(spans[0].status.is_none() && text(&spans[0], "error.type").is_none());

    (noted.record.attempts, noted.record.tried) = (smallvec![], 0);
    attempt(&mut noted, 1, 0, Some(Reason::UpstreamConnectRefused));
    attempt(&mut noted, 2, 200, None);
    let whole = SpanId::random(77);
    noted.record.trace.as_mut().expect("traced").span = whole;
    let spans = read_back(&noted.told());
    assert_eq!(spans.iter().map(|s| s.kind).collect::<Vec<_>>(), [1, 3, 3]);
    assert!(spans[1..].iter().all(|s| s.parent_span_id == whole.to_bytes()));
    assert_eq!(spans.iter().map(|s| s.flags & 0x300).collect::<Vec<_>>(), [0x300, 0x100, 0x100], "whose parent is another's");
    assert_eq!(text(&spans[1], "error.type").as_deref(), Some("upstream-connect-refused"));
    assert_eq!([1, 2].map(|i| text(&spans[i], "http.request.resend_count")), [None, Some("1".to_owned())]);
    assert!(spans[1].status.is_some() && spans[2].status.is_none() && spans[0].status.is_none());
    // Nobody can make names up.
    request(&mut noted).method = noted.text("X7");
    assert_eq!(read_back(&noted.told())[0].name, "HTTP");
}

#[test]
fn an_error_is_one_where_the_conventions_call_it_so() {
    let mut noted = record(Direction::Inbound);
    let failed = |noted: &Noted| {
        let spans = read_back(&noted.told());
        spans[0].status.is_some().then(|| text(&spans[0], "error.type"))
    };
    noted.record.status = 404;
    assert_eq!(failed(&noted), None);
    noted.record.direction = Direction::Outbound;
    assert_eq!(failed(&noted), Some(Some("404".to_owned())));
    noted.record.direction = Direction::Inbound;
    noted.record.status = 500;
    assert_eq!(failed(&noted), Some(Some("500".to_owned())));
    noted.record.status = 200;
    let path = noted.text("/shop.Cart/Add");
    (request(&mut noted).grpc, request(&mut noted).path) = (true, path);
    for (status, error) in [(0, None), (5, None), (14, Some(Some("UNAVAILABLE".to_owned())))] {
        noted.record.grpc_status = Some(status);
        assert_eq!(failed(&noted), error, "{status}");
    }
    let spans = read_back(&noted.told());
    assert_eq!((&*spans[0].name, text(&spans[0], "rpc.method").as_deref()), ("shop.Cart/Add", Some("shop.Cart/Add")));
    assert_eq!(text(&spans[0], "rpc.response.status_code").as_deref(), Some("UNAVAILABLE"));
}

#[test]
fn a_full_way_drops_and_counts() {
    let tracing = Tracing::read(&env(&ALWAYS), true, false).expect("a sampler");
    let all = Arc::new(Telemetry::new(tracing, Telling::default(), false));
    let worker = WorkerTelemetry::new(all.clone());
    for _ in 0..super::way::ON_THE_WAY + 7 {
        worker.tell(&mut record(Direction::Inbound), u32::MAX);
    }
    assert_eq!(all.lost.load(super::Relaxed), 7);
    // However few they are.
    let way = Way::default();
    let long = |bundle: &mut Bundle| bundle.lines.bytes.resize(9 * 1024 * 1024, b'x');
    assert_eq!((way.put(long), way.put(|_| panic!("there is no room"))), (Some(1), None));
    let families = all.families();
    let lost = families.iter().find(|family| family.metric == &table::RECORDS_LOST).expect("it is told");
    assert_eq!(lost.points[0].value, weft_core::metrics::Value::Count(7));
}

#[tokio::test(start_paused = true)]
async fn a_tap_tells_what_its_filter_takes_within_its_rate_and_closes_itself() {
    use hyper::body::Body;
    use std::future::poll_fn;
    use std::pin::Pin;

    let all = Arc::new(Telemetry::off());
    let filter = Filter::read("from=sa%2Fweb&path=/it&status=2xx&rate=2&method=get").expect("good");
    let mut events = open(&all, filter).expect("the first");
    assert!(all.is_wanted());
    // It is of what happens from now on.
    let now = crate::metrics::worker::unix_nanos();
    let (fits, mut other) = (record(Direction::Inbound), record(Direction::Inbound));
    other.record.status = 404;
    let mut fits = fits;
    let mut over = record(Direction::Inbound);
    for record in [&mut fits, &mut other] {
        record.record.began = now;
    }
    over.record.began = now - 3_600_000_000_000;
    let tell = |record: &Noted| all.taps().tell(&record.told(), Instant::now());
    for record in [&other, &over, &fits, &fits, &fits, &fits] {
        tell(record);
    }
    tokio::time::advance(Duration::from_secs(3)).await;
    all.taps().beat(Instant::now(), 0);
    let mut lines = Vec::new();
    for _ in 0..3 {
        let frame = poll_fn(|cx| Pin::new(&mut events).poll_frame(cx)).await.expect("an event").expect("infallible");
        lines.push(String::from_utf8(frame.into_data().expect("data").to_vec()).expect("text"));
    }
    assert_eq!(lines[2], "{\"dropped\":2}\n");
    let event: Json = serde_json::from_str(&lines[0]).expect("it is JSON");
    assert_eq!(event["headers"][0], "Authorization");
    assert_eq!(event["attempts"][0]["endpoint"], "10.0.0.1:8080");
    assert!(!lines[0].contains("secret") && !lines[0].contains('\u{1b}'), "{}", lines[0]);
    let others: Vec<_> = std::iter::from_fn(|| open(&all, Filter::default()).ok()).collect();
    assert_eq!(others.len(), 7, "there are eight at once");
    drop((events, others));
    assert!(!all.is_wanted(), "nobody wants anything any more");
    for bad in ["x=y", "from", "status=20", "status=abc", "rate=0", "rate=9999", "from=%zz", "direction=x"] {
        assert!(Filter::read(bad).is_err(), "{bad}");
    }
}

fn worker(pairs: &[(&str, &str)], errors: bool) -> Rc<Worker> {
    let config = Config::parse_from(["weft-sidecar", "--control-plane=127.0.0.1:1", "--identity=shop/web", "--pod-ips=10.0.0.1"]);
    let tracing = Tracing::read(&env(pairs), false, errors).expect("a sampler");
    let (mesh, _lookups) = Mesh::new();
    Worker::new(Arc::new(Shared::telling(config, mesh, Telemetry::new(tracing, Telling::default(), false))), 1)
}

fn env(pairs: &[(&str, &str)]) -> Env {
    pairs.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect()
}

fn head(fields: &[(&str, &str)]) -> RequestHead {
    let mut all = Fields::default();
    for (name, value) in fields {
        all.push(name.as_bytes(), value.as_bytes());
    }
    RequestHead {
        method: "GET".into(),
        target: "/a?b".into(),
        authority: None,
        scheme: None,
        protocol: None,
        http10: false,
        fields: all,
    }
}

fn app() -> Route {
    let address = (Ipv4Addr::new(10, 0, 0, 1), 8080).into();
    Route::App { destination: Arc::new(Destination::Plain { address, dial: None }), name: "port 8080".into() }
}

fn noted(worker: &Worker, caller: &HttpCaller, head: &mut RequestHead) -> Option<Note> {
    super::request(worker, caller, &app(), head, MeshProtocol::Http1, Instant::now())
}

/// What was told since the last time.
fn told(worker: &Worker) -> Bundle {
    let mut bundle = Bundle::default();
    if let Some(way) = worker.shared.telemetry.fresh().first() {
        way.take(&mut bundle);
    }
    bundle
}

/// The spans of it.
fn spans_told(worker: &Worker) -> Vec<Span> {
    ScopeSpans::decode(&*told(worker).spans.bytes).expect("spans").spans
}

const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
const ALWAYS: [(&str, &str); 1] = [("OTEL_TRACES_SAMPLER", "parentbased_always_on")];

#[tokio::test]
async fn each_attempt_is_sent_on_with_the_span_that_it_gets() {
    let worker = worker(&ALWAYS, false);
    let caller = HttpCaller::outbound(Ipv4Addr::LOCALHOST.into());
    let mut head = head(&[("traceparent", PARENT), ("host", "web")]);
    let mut note = noted(&worker, &caller, &mut head).expect("it is sampled");
    let lease = app().pick(&worker, &Tried::new(), Wish::default(), false).expect("there is one");
    assert!(note.attempt(&worker, 1, &lease).is_none(), "its head says so already");
    note.failed(&Failure::upstream(Reason::UpstreamConnectRefused, Retryable::Unprocessed));
    let (context, _) = note.attempt(&worker, 2, &lease).expect("another span");
    note.answered(200);
    note.head(200, &Fields::default());
    note.whole();
    drop(note);
    let spans = spans_told(&worker);
    let sent = head.fields.named("traceparent").next().expect("it says so").to_vec();
    assert_eq!(spans.len(), 3);
    assert_eq!(weft_core::hex::hex(&spans[1].span_id).as_bytes(), &sent[36..52]);
    assert_eq!(spans[2].span_id, context.span.to_bytes());
    assert!(spans[1..].iter().all(|s| s.parent_span_id == spans[0].span_id));
    assert_eq!(weft_core::hex::hex(&spans[0].parent_span_id), "b7ad6b7169203331");
    assert!(spans.iter().all(|s| weft_core::hex::hex(&s.trace_id) == "0af7651916cd43dd8448eb211c80319c"));
}

#[tokio::test]
async fn what_is_not_sampled_goes_on_as_it_came_and_is_told_only_if_it_failed() {
    let unsampled = PARENT.replace("-01", "-00");
    let caller = HttpCaller::outbound(Ipv4Addr::LOCALHOST.into());
    let off = worker(&[], false);
    assert!(noted(&off, &caller, &mut head(&[("traceparent", PARENT)])).is_none(), "nobody wants anything");
    let on = worker(&ALWAYS, false);
    let mut asked = head(&[("traceparent", &unsampled)]);
    assert!(noted(&on, &caller, &mut asked).is_none());
    let never = worker(&[("OTEL_TRACES_SAMPLER", "parentbased_always_off")], false);
    let mut bare = head(&[]);
    assert!(noted(&never, &caller, &mut bare).is_none() && bare.fields.is_empty(), "none is forged");

    for no in [("b3", "0"), ("x-b3-sampled", "0")] {
        let mut asked = head(&[no]);
        assert!(noted(&on, &caller, &mut asked).is_none(), "{no:?}");
        assert_eq!(asked.fields.iter().count(), 1, "it goes on as it came");
    }
    let mut yes = head(&[("b3", "1")]);
    assert!(noted(&never, &caller, &mut yes).is_some() && yes.fields.named("traceparent").next().is_none());
    assert!(yes.fields.named("b3").next().is_some_and(|b3| b3.len() == 51 && b3.ends_with(b"-1")));
    // A caller whose sidecar traces nothing has drawn nothing: who is called draws.
    let (id, source) = ("spiffe://td/ns/shop/sa/front".parse().expect("an identity"), Ipv4Addr::LOCALHOST.into());
    let peer = HttpCaller::inbound(Some(&id), source, ("", ""), Guard::new(80, Caller::Plaintext, source));
    assert!(noted(&on, &peer, &mut head(&[])).is_some());

    let errors = worker(&[("OTEL_TRACES_SAMPLER", "parentbased_always_off")], true);
    for (fails, fields) in [(false, &[("traceparent", &*unsampled)][..]), (true, &[("traceparent", &*unsampled)]), (true, &[])] {
        let mut head = head(fields);
        let mut note = noted(&errors, &caller, &mut head).expect("it may fail");
        note.head(if fails { 503 } else { 200 }, &Fields::default());
        note.whole();
        drop(note);
        assert_eq!(head.fields.named("traceparent").next(), fields.first().map(|(_, v)| v.as_bytes()), "it goes on as it came");
        let spans = spans_told(&errors);
        assert_eq!(spans.iter().map(|span| span.flags & 1).collect::<Vec<_>>(), if fails { vec![0] } else { vec![] });
    }
    // Whoever goes away is told of, too.
    let note = noted(&on, &caller, &mut head(&[])).expect("a trace of our own");
    drop(note);
    assert_eq!(text(&spans_told(&on)[0], "weft.reason").as_deref(), Some(Reason::DownstreamGone.as_str()));
}

#[tokio::test]
async fn a_tap_costs_only_what_it_asks_for() {
    let worker = worker(&[], false);
    let all = worker.shared.telemetry.clone();
    let caller = HttpCaller::outbound(Ipv4Addr::LOCALHOST.into());
    let taps = ["direction=inbound", "method=POST", "path=/b"].map(|query| open(&all, Filter::read(query).expect("good")).ok());
    assert!(noted(&worker, &caller, &mut head(&[])).is_none(), "none asks for it");
    let many: Vec<(String, String)> = (0..500).map(|i| (format!("x-{i}"), String::new())).collect();
    let many: Vec<(&str, &str)> = many.iter().map(|(n, v)| (&**n, &**v)).collect();
    let other = open(&all, Filter::read("path=/a&rate=1").expect("good")).ok();
    drop(taps);
    drop(noted(&worker, &caller, &mut head(&many)).expect("it is asked for"));
    let record = told(&worker).tapped.pop().expect("a record");
    assert_eq!(record.record.fields.as_ref().map(|names| names.len()), Some(64));
    // Told once, there is no more to be told in this second.
    let now = Instant::now();
    all.taps().tell(&record.told(), now);
    assert!(all.taps().are_full(now));
    let before = all.unseen.load(super::Relaxed);
    let is_full = (0..1_000_000).any(|_| {
        all.full.store(crate::identity::unix_now() as u64, super::Relaxed);
        noted(&worker, &caller, &mut head(&[])).is_none()
    });
    assert!(is_full && all.unseen.load(super::Relaxed) > before);
    drop(other);
}

/// Whoever sets a variable wrong loses what it says, and no sidecar for it.
#[test]
fn a_wrong_value_is_told_and_left_out() {
    let of = |args: &[&str]| {
        let own = ["weft-sidecar", "--control-plane=127.0.0.1:1", "--identity=shop/web", "--pod-ips=10.0.0.1"];
        let config = Config::try_parse_from(own.iter().chain(args)).expect("it starts, whatever is said");
        Telling::read(&config.telemetry)
    };
    let (telling, wrong) = of(&[
        "--access-log=JSON",
        "--access-log-fields=path,what,status",
        "--access-log-sample=10%",
        "--access-log-only=",
        "--trace-errors=yes",
    ]);
    assert_eq!((telling.form, telling.which, telling.errors), (AccessLog::Off, Which::All, false));
    assert_eq!(format!("{:?}", telling.fields), "[path, status]");
    assert!(telling.share.takes(|| u64::MAX));
    assert_eq!(wrong.len(), 4, "{wrong:?}");
    assert!(wrong[0].starts_with("WEFT_ACCESS_LOG takes off, text or json"), "{wrong:?}");
    let (telling, wrong) = of(&["--access-log=text", "--access-log-sample=0", "--access-log-only=errors", "--trace-errors=true"]);
    assert_eq!((telling.form, telling.which, telling.errors, wrong.len()), (AccessLog::Text, Which::Errors, true, 0));
    assert!(!telling.share.takes(|| 0));
}

#[test]
fn a_denial_names_its_policy_in_line_and_span_by_itself() {
    let mut record = record(Direction::Inbound);
    let answer = weft_core::failure::Answer { reference: Some(7), policy: Some("shop/deny#2".into()), ..Default::default() };
    record.record.fails(&Failure::mesh(Reason::Denied).answered(answer));
    record.record.notice = Some("audit shop/watch".into());
    let told = record.told();
    let spans = read_back(&told);
    assert_eq!(text(&spans[0], "weft.policy").as_deref(), Some("shop/deny#2"));
    assert_eq!(text(&spans[0], "weft.notice").as_deref(), Some("audit shop/watch"));
    let mut out = Vec::new();
    line::json(&mut out, &standard(), &told, None);
    let out = String::from_utf8(out).expect("text");
    assert!(out.contains("\"policy\":\"shop/deny#2\"") && out.contains("\"notice\":\"audit shop/watch\""), "{out}");
}

#[test]
fn a_grpc_method_that_is_none_is_no_name() {
    let mut record = record(Direction::Inbound);
    let path = record.text("/made up/by a caller");
    (request(&mut record).grpc, request(&mut record).path) = (true, path);
    let spans = read_back(&record.told());
    assert_eq!((&*spans[0].name, text(&spans[0], "rpc.method").as_deref()), ("_OTHER", Some("_OTHER")));
    assert_eq!(text(&spans[0], "rpc.method_original").as_deref(), Some("made up/by a caller"));
    // Without a gRPC status it is what the HTTP status stands for: UNKNOWN, and an error.
    assert_eq!(text(&spans[0], "error.type").as_deref(), Some("UNKNOWN"));
    assert!(record.record.is_error());
}
