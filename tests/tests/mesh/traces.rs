//! Traces, access log and tap, in a collector that others wrote (rotel): a call of three hops arrives whole, in both forms of OTLP; and a collector
//! that is killed costs no request.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use weft_tests::{Running, World, eventually, require, require_modules};

const MESH: &str = r#"
mtls: strict
telemetry:
  OTEL_EXPORTER_OTLP_ENDPOINT: "http://collector.watch:@PORT@"
  OTEL_EXPORTER_OTLP_PROTOCOL: "@PROTOCOL@"
  OTEL_EXPORTER_OTLP_COMPRESSION: gzip
  OTEL_EXPORTER_OTLP_TIMEOUT: "1500"
  OTEL_TRACES_SAMPLER: parentbased_always_on
  OTEL_BSP_SCHEDULE_DELAY: "100"
  OTEL_BSP_MAX_QUEUE_SIZE: "64"
  OTEL_BSP_MAX_EXPORT_BATCH_SIZE: "32"
  @MORE@
workloads:
- {name: front, namespace: shop, command: [sleep, infinity]}
- {name: web, namespace: shop, tap: bodies, command: ["@PYTHON@", "@PEERS@/hop.py", "8080", "http://api.shop:8080/items"], ports: [{port: 8080}]}
- {name: api, namespace: shop, command: ["@PYTHON@", "@PEERS@/hop.py", "8080", "http://db.shop:8080/rows?secret=1"], ports: [{port: 8080}]}
- {name: db, namespace: shop, command: ["@PYTHON@", "@PEERS@/hop.py", "8080"], ports: [{port: 8080}]}
- {name: collector, namespace: watch, sidecar: false, command: ["@PYTHON@", "@PEERS@/collector.py", "@WORK@", "@SIGNAL@"], ports: [{name: otlp, port: 4317}, {name: otlp-http, port: 4318}], health: {tcp: 4317}}
services:
- {name: web, namespace: shop, ports: [{port: 8080}]}
- {name: api, namespace: shop, ports: [{port: 8080}]}
- {name: db, namespace: shop, ports: [{port: 8080}]}
- {name: collector, namespace: watch, headless: true, ports: [{name: otlp, port: 4317}, {name: otlp-http, port: 4318}]}
"#;

const FRONT: &str = "shop/front";
const WEB: &str = "http://web.shop:8080/start";
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

fn mesh(protocol: &str, signal: &str, more: &str) -> String {
    let port = if protocol == "grpc" { "4317" } else { "4318" };
    MESH.replace("@PORT@", port).replace("@PROTOCOL@", protocol).replace("@SIGNAL@", signal).replace("@MORE@", more)
}

/// A span as the collector has it.
#[derive(Debug, Clone, Default)]
struct Span {
    service: String,
    trace: String,
    id: String,
    parent: String,
    kind: String,
    attributes: BTreeMap<String, String>,
}

/// Every span that the collector wrote.
fn spans(work: &Path) -> Vec<Span> {
    let text = String::from_utf8_lossy(&fs::read(work.join("telemetry")).unwrap_or_default()).into_owned();
    let mut spans: Vec<Span> = Vec::new();
    let (mut service, mut of_resource) = (String::new(), false);
    for line in text.lines() {
        let line = line.trim();
        if line.starts_with("ResourceSpans #") {
            of_resource = true;
        } else if line.starts_with("Span #") {
            of_resource = false;
            spans.push(Span { service: service.clone(), ..Span::default() });
        } else if let Some(pair) = line.strip_prefix("-> ") {
            let (name, value) = pair.split_once(": ").unwrap_or((pair, ""));
            let value = value.split_once('(').map_or(value, |(_, v)| v.trim_end_matches(')')).to_owned();
            match spans.last_mut() {
                _ if of_resource && name == "service.name" => service = value,
                Some(span) if !of_resource => drop(span.attributes.insert(name.to_owned(), value)),
                _ => {}
            }
        } else if let (Some((name, value)), Some(span), false) = (line.split_once(':'), spans.last_mut(), of_resource) {
            let value = value.trim().to_owned();
            match name.trim() {
                "Trace ID" => span.trace = value,
                "Parent ID" => span.parent = value,
                "ID" => span.id = value,
                "Kind" => span.kind = value.trim_start_matches("SPAN_KIND_").to_lowercase(),
                _ => {}
            }
        }
    }
    spans
}

/// A trace as its chain of services and kinds, from the one whose parent is no span of it; none while it is not whole.
fn chain(all: &[Span], trace: &str, length: usize) -> Option<Vec<Span>> {
    let of: Vec<&Span> = all.iter().filter(|s| s.trace == trace).collect();
    let root = of.iter().find(|s| of.iter().all(|other| other.id != s.parent))?;
    let mut chain = vec![(*root).clone()];
    while let Some(next) = of.iter().find(|s| s.parent == chain[chain.len() - 1].id) {
        chain.push((*next).clone());
        assert!(chain.len() <= of.len(), "a span is its own ancestor");
    }
    (of.len() == length && chain.len() == length).then_some(chain)
}

/// What each of three hops was sent.
fn hops(world: &World, fields: &[&str]) -> Vec<Value> {
    let mut words = vec![WEB];
    words.extend(fields.iter().flat_map(|field| ["-H", field]));
    let said: Value = serde_json::from_str(&world.curl(FRONT, &words)).expect("the last hop's answer went all the way back");
    said.as_array().expect("a list").clone()
}

const SIX: [(&str, &str); 6] =
    [("front", "client"), ("web", "server"), ("web", "client"), ("api", "server"), ("api", "client"), ("db", "server")];

fn is_whole(chain: &[Span]) {
    let seen: Vec<_> = chain.iter().map(|s| (&*s.service, &*s.kind)).collect();
    assert_eq!(seen, SIX);
}

/// The trace that a request of ours began.
fn begun(said: &[Value]) -> String {
    said[0]["traceparent"].as_str().expect("the sidecar said so")[3..35].to_owned()
}

#[test]
fn a_call_of_three_hops_arrives_whole_and_a_dead_collector_costs_nothing() {
    require(&["curl"]);
    require_modules(&["rotel"]);
    let world = World::up(&mesh("grpc", "traces", ""));
    let work = world.work();
    whole(&world, &work);
    continued(&world, &work);
    tapped(&world);
    levels(&world);
    away(&world, &work);
}

fn whole(world: &World, work: &Path) {
    let said = hops(world, &[]);
    let trace = begun(&said);
    let chain = eventually("the trace arrives whole", || chain(&spans(work), &trace, 6));
    is_whole(&chain);
    let root = &chain[0];
    for (name, value) in [
        ("http.request.method", "GET"),
        ("http.response.status_code", "200"),
        ("url.full", "http://web.shop:8080/start"),
        ("server.address", "web.shop"),
        ("weft.peer.identity", "spiffe://cluster.local/ns/shop/sa/web"),
    ] {
        assert_eq!(root.attributes.get(name).map(String::as_str), Some(value), "{root:#?}");
    }
    let last = &chain[5];
    assert_eq!(last.attributes["weft.peer.identity"], "spiffe://cluster.local/ns/shop/sa/api");
    assert_eq!(last.attributes["url.path"], "/rows");
    assert!(chain.iter().all(|s| s.attributes.values().all(|v| !v.contains("secret"))), "no query is told");
    // The sidecars keep their last spans too.
    let told = world.shell(&format!("weft trace {trace}")).output().expect("weft runs");
    let told = String::from_utf8_lossy(&told.stdout).into_owned();
    assert!(told.contains("          shop/db-0 server GET /rows 200"), "{told}");
}

fn continued(world: &World, work: &Path) {
    // The application's own trace goes on, and its state and baggage are left alone.
    let parent = format!("traceparent: 00-{TRACE}-00f067aa0ba902b7-01");
    let said = hops(world, &[&parent, "tracestate: vendor=x", "baggage: user=anna"]);
    assert!(said.iter().all(|s| s["tracestate"] == "vendor=x" && s["baggage"] == "user=anna"), "{said:?}");
    let whole = eventually("the application's trace arrives whole", || chain(&spans(work), TRACE, 6));
    is_whole(&whole);
    assert_eq!(whole[0].parent, "00f067aa0ba902b7");
    assert_eq!(said[2]["traceparent"], format!("00-{TRACE}-{}-01", whole[5].id), "the last hop sees its own sidecar's span");

    // B3 goes on as B3.
    let b3 = "80f198ee56343ba864fe8b2a57d3eff7";
    let said = hops(world, &[&format!("b3: {b3}-e457b5a2e4d86bd1-1")]);
    assert!(said.iter().all(|s| s["traceparent"].is_null() && s["b3"].as_str().is_some_and(|v| v.starts_with(b3))), "{said:?}");
    is_whole(&eventually("the trace in B3 arrives whole", || chain(&spans(work), b3, 6)));

    // What the application decided against is passed on as it came, and has no spans. The next trace shows that there was time for them.
    let unsampled = "11111111111111111111111111111111";
    let field = format!("traceparent: 00-{unsampled}-00f067aa0ba902b7-00");
    let said = hops(world, &[&field]);
    assert!(said.iter().all(|s| format!("traceparent: {}", s["traceparent"].as_str().unwrap_or_default()) == field), "{said:?}");
    let next = begun(&hops(world, &[]));
    eventually("a later trace arrives whole", || chain(&spans(work), &next, 6));
    assert!(spans(work).iter().all(|s| s.trace != unsampled));
}

fn tapped(world: &World) {
    let line = "weft tap shop/api --direction inbound --path /items --from sa/web --max 2 -o json";
    let mut tap = Running::start(world.shell(line));
    eventually("the tap sees two calls", || {
        hops(world, &["authorization: Bearer s3cret"]);
        tap.ended()
    });
    let said = tap.wait(Duration::from_secs(5)).good();
    let events: Vec<Value> = said.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(events.len(), 2, "{said}");
    assert_eq!(
        (&events[0]["path"], &events[0]["status"], &events[0]["sidecar"]),
        (&"/items".into(), &200.into(), &"shop/api-0".into())
    );
    assert!(!said.contains("s3cret"), "{said}");
    shown(world);
    let refused = world.shell("weft tap shop/nobody").output().expect("weft runs");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("shop/nobody has no sidecar that runs"));
}

/// Values and bodies, where the workload allows it and for who asked for them; what lets somebody in, for nobody.
fn shown(world: &World) {
    let refused = world.shell("weft tap shop/api --headers --max 1").output().expect("weft runs");
    let why = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && why.contains("WEFT_TAP=headers") && why.contains("weft.dev/telemetry"), "{why}");

    let tap =
        |words: &str| Running::start(world.shell(&format!("weft tap shop/web --direction inbound --max 1 -o json {words}")));
    let mut taps = [tap("--bodies"), tap("--headers"), tap("")];
    eventually("each tap sees a call", || {
        hops(world, &["authorization: Bearer s3cret", "cookie: id=s3cret", "x-kind: loom"]);
        taps.iter_mut().all(|tap| tap.ended().is_some()).then_some(())
    });
    let [all, headers, names] = taps.map(|tap| tap.wait(Duration::from_secs(5)).json());
    for told in [&all, &headers] {
        let fields = told["request_headers"].as_array().expect("fields").iter();
        let fields: BTreeMap<&str, &str> = fields.filter_map(|f| Some((f[0].as_str()?, f[1].as_str()?))).collect();
        assert_eq!(fields.get("x-kind"), Some(&"loom"), "{told:#}");
        assert_eq!((fields["authorization"], fields["cookie"]), ("(not shown: 13 bytes)", "(not shown: 9 bytes)"));
        let answer = told["response_headers"].to_string().to_lowercase();
        assert!(answer.contains("[\"content-type\",\"application/json\"]"), "{told:#}");
    }
    let body = &all["response_body"];
    assert!(
        body["begins"].as_str().is_some_and(|begins| begins.starts_with("[{")) && body["bytes"] == all["bytes_sent"],
        "{all:#}"
    );
    assert!(headers["response_body"].is_null() && names["request_headers"].is_null(), "{headers:#} {names:#}");
    assert!(names["headers"].to_string().contains("x-kind") && !names.to_string().contains("loom"), "{names:#}");
    assert!([all, headers, names].iter().all(|told| !told.to_string().contains("s3cret")));
}

fn levels(world: &World) {
    let said = |words: &str| {
        let output = world.shell(&format!("weft sidecar shop/web-0 log {words}")).output().expect("weft runs");
        String::from_utf8_lossy(if output.status.success() { &output.stdout } else { &output.stderr }).into_owned()
    };
    assert_eq!(said(""), "info\n");
    assert_eq!(said("warn,weft_sidecar::serve=debug"), "weft_sidecar::serve=debug,warn\n");
    assert!(said("a=b=c").contains("is no filter"));
    assert_eq!(said("info"), "info\n");
}

/// The value of a metric of one sidecar, by its name and the error that it is counted under; 0 before there is any.
fn metric(world: &World, replica: &str, (name, error): (&str, &str)) -> u64 {
    let output = world.shell(&format!("weft sidecar {replica} /metrics")).output().expect("weft runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains(&format!("# TYPE {name} ")), "{replica} has no {name}: {text}");
    let series = text.lines().filter(|line| line.starts_with(&format!("{name}{{")));
    let found = series.filter(|line| error.is_empty() || line.contains(&format!("error_type=\"{error}\"")));
    found.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
}

const WAITING: (&str, &str) = ("otel_sdk_processor_span_queue_size", "");
const FULL: (&str, &str) = ("otel_sdk_processor_span_processed_total", "queue_full");
const FAILED: (&str, &str) = ("otel_sdk_exporter_span_exported_total", "failed");

fn away(world: &World, work: &Path) {
    let before = world.memory("shop/web-0");
    fs::write(work.join("away"), "").expect("the directory is ours");
    let pid = fs::read_to_string(work.join("collector.pid")).expect("it runs");
    world.exec("watch/collector", &["kill", "-9", pid.trim()]).good();
    let lost = eventually("spans are lost, and requests are not", || {
        let many = "http://web.shop:8080/start?[1-100]";
        let said = world.curl(FRONT, &["-o", "/dev/null", "-w", "%{http_code}\n", many]);
        assert_eq!(said.lines().filter(|line| *line == "200").count(), 100, "{said}");
        assert!(metric(world, "shop/web-0", WAITING) <= 64 + 32, "no more wait than there is room for");
        let lost = metric(world, "shop/web-0", FULL) + metric(world, "shop/web-0", FAILED);
        (metric(world, "shop/web-0", FAILED) > 0 && metric(world, "shop/web-0", FULL) > 0).then_some(lost)
    });
    assert!(lost > 0);
    let grown = world.memory("shop/web-0").saturating_sub(before);
    assert!(grown < 32 * 1024, "its sidecar has grown by {grown} KiB");
    eventually("the log says so", || world.log().contains("spans cannot be exported, and are dropped and counted").then_some(()));

    fs::remove_file(work.join("away")).expect("it is there");
    eventually("traces arrive again", || {
        let trace = begun(&hops(world, &[]));
        (0..20).find_map(|_| {
            std::thread::sleep(Duration::from_millis(100));
            chain(&spans(work), &trace, 6)
        })
    });
}

#[test]
fn the_access_log_goes_out_by_http_and_to_standard_output() {
    require(&["curl"]);
    require_modules(&["rotel"]);
    let more = "OTEL_LOGS_EXPORTER: otlp\n  OTEL_BLRP_SCHEDULE_DELAY: \"100\"\n  WEFT_ACCESS_LOG: json";
    let script = "exec @SIDECAR@ \"$@\" >> @WORK@/lines";
    let world = World::up_with_sidecar(&mesh("http/protobuf", "logs", more), script, |_| {});
    let work = world.work();
    let parent = format!("traceparent: 00-{TRACE}-00f067aa0ba902b7-01");
    hops(&world, &[&parent, "x-evil: 1"]);
    let lines = eventually("each hop has its lines", || {
        let text = fs::read_to_string(work.join("lines")).unwrap_or_default();
        let lines: Vec<Value> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        let of: Vec<Value> = lines.into_iter().filter(|line| line["trace_id"] == TRACE).collect();
        (of.len() == 6).then_some(of)
    });
    let last = lines.iter().find(|l| l["path"] == "/rows" && l["direction"] == "inbound").expect("db's line");
    assert_eq!((&last["status"], &last["peer"]), (&200.into(), &"spiffe://cluster.local/ns/shop/sa/api".into()));
    assert!(lines.iter().all(|l| l.get("query").is_none() && !l.to_string().contains("secret")), "{lines:#?}");
    // Each record stands at the span that its line names, so that a store leads from one to the other.
    let at = |trace: &str, span: &str| format!("Trace ID : {trace}\nSpan ID : {span}\n");
    eventually("the collector has them, each at its span", || {
        let text = fs::read_to_string(work.join("telemetry")).unwrap_or_default();
        let text: String = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ") + "\n").collect();
        let spans = lines.iter().map(|line| line["span_id"].as_str().expect("it has a span"));
        (spans.clone().all(|span| text.contains(&at(TRACE, span))) && text.contains("GET /rows 200")).then_some(())
    });
}
