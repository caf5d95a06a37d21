//! A trace in Arize Phoenix, a page that people look at traces with: what went through three hops stands there whole, with the right parents, whether it came over gRPC or
//! HTTP; and a browser shows it. `make phoenix` runs it: Phoenix is too large for `make test`.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use weft_tests::{World, eventually, require, require_modules};

const MESH: &str = r#"
mtls: strict
telemetry:
  OTEL_EXPORTER_OTLP_ENDPOINT: "http://phoenix.watch:@PORT@"
  OTEL_EXPORTER_OTLP_PROTOCOL: "@PROTOCOL@"
  OTEL_EXPORTER_OTLP_COMPRESSION: gzip
  OTEL_TRACES_SAMPLER: parentbased_always_on
  OTEL_METRICS_EXPORTER: none
  OTEL_BSP_SCHEDULE_DELAY: "100"
workloads:
- {name: front, namespace: shop, command: [sleep, infinity]}
- {name: web, namespace: shop, command: ["@PYTHON@", "@PEERS@/hop.py", "8080", "http://api.shop:8080/items"], ports: [{port: 8080}]}
- {name: api, namespace: shop, command: ["@PYTHON@", "@PEERS@/hop.py", "8080", "http://db.shop:8080/rows?secret=1"], ports: [{port: 8080}]}
- {name: db, namespace: shop, command: ["@PYTHON@", "@PEERS@/hop.py", "8080"], ports: [{port: 8080}]}
- name: phoenix
  namespace: watch
  sidecar: false
  command: [env, PHOENIX_WORKING_DIR=@WORK@/phoenix, HOME=@WORK@, PHOENIX_TELEMETRY_ENABLED=false, PHOENIX_ALLOW_EXTERNAL_RESOURCES=false, "@PHOENIX@", serve]
  ports: [{name: otlp, port: 4317}, {name: page, port: 6006}]
services:
- {name: web, namespace: shop, ports: [{port: 8080}]}
- {name: api, namespace: shop, ports: [{port: 8080}]}
- {name: db, namespace: shop, ports: [{port: 8080}]}
- {name: phoenix, namespace: watch, headless: true, ports: [{name: otlp, port: 4317}, {name: page, port: 6006}]}
"#;

/// It migrates a database and imports a thousand modules before it serves.
const START: Duration = Duration::from_secs(300);

/// Name, and what is at the other end of the call, from the first to the last.
const SIX: [(&str, &str); 6] =
    [("client", "web"), ("server", "front"), ("client", "api"), ("server", "web"), ("client", "db"), ("server", "api")];

fn phoenix() -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.cache/phoenix/bin/phoenix");
    assert!(path.is_file(), "Phoenix is not there: `make phoenix` installs it into .cache/phoenix and runs this");
    path.canonicalize().expect("it is there")
}

struct Page<'a> {
    world: &'a World,
    origin: String,
}

impl Page<'_> {
    fn get(&self, path: &str) -> Option<Value> {
        let url = format!("{}{path}", self.origin);
        let output = self.world.lab(&["curl", "-sS", "--max-time", "10", &url]).wait(Duration::from_secs(15));
        serde_json::from_str(&output.stdout).ok()
    }

    /// The spans of a trace, as its API tells them.
    fn spans(&self, trace: &str) -> Vec<Value> {
        let told = self.get(&format!("/v1/projects/default/spans?limit=1000&trace_id={trace}"));
        told.and_then(|told| told["data"].as_array().cloned()).unwrap_or_default()
    }
}

fn text<'a>(span: &'a Value, pointer: &str) -> &'a str {
    span.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// A trace as its chain, each below the one before; none while it is not whole.
fn chain(spans: &[Value]) -> Option<Vec<Value>> {
    let id = |span: &Value| text(span, "/context/span_id").to_owned();
    let parent = |span: &Value| text(span, "/parent_id").to_owned();
    let root = spans.iter().find(|span| spans.iter().all(|other| id(other) != parent(span)))?;
    let mut chain = vec![root.clone()];
    while let Some(next) = spans.iter().find(|span| parent(span) == id(&chain[chain.len() - 1])) {
        chain.push(next.clone());
        assert!(chain.len() <= spans.len(), "a span is its own ancestor");
    }
    (chain.len() == SIX.len() && spans.len() == SIX.len()).then_some(chain)
}

fn arrives_whole(protocol: &str, port: &str) {
    require(&["curl", "chromium"]);
    require_modules(&["websockets"]);
    let mesh = MESH.replace("@PHOENIX@", &phoenix().to_string_lossy()).replace("@PROTOCOL@", protocol).replace("@PORT@", port);
    let world = World::up(&mesh);
    let page = Page { world: &world, origin: format!("http://{}:6006", world.address("watch/phoenix-0")) };
    let end = Instant::now() + START;
    while page.get("/v1/projects").is_none() {
        assert!(Instant::now() < end, "Phoenix does not serve within {START:?}");
        std::thread::sleep(Duration::from_millis(200));
    }

    let trace = eventually("a trace arrives whole", || {
        let said: Value = serde_json::from_str(&world.curl("shop/front", &["http://web.shop:8080/start"])).ok()?;
        let trace = said[0]["traceparent"].as_str()?[3..35].to_owned();
        (0..50).find_map(|_| {
            std::thread::sleep(Duration::from_millis(100));
            chain(&page.spans(&trace)).map(|_| trace.clone())
        })
    });
    let chain = chain(&page.spans(&trace)).expect("it was whole");
    for (span, (kind, other)) in chain.iter().zip(SIX) {
        let peer = format!("spiffe://cluster.local/ns/shop/sa/{other}");
        assert_eq!(text(span, "/attributes/weft.peer.identity"), peer, "{kind}: {span:#}");
        // A client span has the URL, a server span the path.
        assert_eq!(span["attributes"]["url.full"].is_string(), kind == "client", "{span:#}");
        assert_eq!(span["attributes"]["http.response.status_code"], 200, "{span:#}");
        assert!(!span.to_string().contains("secret"), "no query is told: {span:#}");
    }
    shown(&page, &trace);
}

/// What somebody sees who opens the trace in a browser.
fn shown(page: &Page<'_>, trace: &str) {
    let projects = page.get("/v1/projects").expect("it answers");
    let project = projects["data"].as_array().into_iter().flatten().find(|p| p["name"] == "default").expect("there is one");
    let url = format!("{}/projects/{}/traces/{trace}", page.origin, project["id"].as_str().expect("it has an id"));
    // The tree of its spans stands below its name; each is called GET.
    let below = format!("(document.body.innerText.split('{trace}')[1] || '')");
    let steps = json!([{"go": url}, {"until": format!("{below}.split('\\nGET\\n').length > {} && {below}", SIX.len())}]);
    let told = page.world.lab_peer(&["browser.py", &steps.to_string()]).wait(Duration::from_secs(150)).json();
    let seen = told["results"][1].as_str().expect("it shows a text");
    assert_eq!(seen.lines().filter(|line| *line == "GET").count(), SIX.len(), "{seen}");
}

#[test]
fn a_call_of_three_hops_arrives_whole_over_grpc() {
    arrives_whole("grpc", "4317");
}

#[test]
fn a_call_of_three_hops_arrives_whole_over_http() {
    arrives_whole("http/protobuf", "6006");
}
