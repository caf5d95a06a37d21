//! Metrics over OTLP, in a collector that others wrote (rotel): names, units, attributes, temporality and numbers arrive as they were counted, over gRPC and over HTTP. And
//! the configuration that `deploy/` has for an OpenTelemetry Collector.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use serde_json::Value;
use weft_core::metrics::table::{ALL, LABELS};
use weft_core::metrics::{Kind, Metric};
use weft_tests::{World, eventually, require, require_modules};

const MESH: &str = r#"
mtls: strict
telemetry:
  OTEL_EXPORTER_OTLP_ENDPOINT: "http://collector.watch:@PORT@"
  OTEL_EXPORTER_OTLP_PROTOCOL: "@PROTOCOL@"
  OTEL_TRACES_EXPORTER: none
  OTEL_METRIC_EXPORT_INTERVAL: "300"
  OTEL_RESOURCE_ATTRIBUTES: deployment.environment.name=lab
  @MORE@
workloads:
- {name: client, namespace: shop, command: [sleep, infinity]}
- {name: web, namespace: shop, command: ["@PYTHON@", "@PEERS@/http_peer.py", "8090"], ports: [{port: 8090}]}
- {name: collector, namespace: watch, sidecar: false, command: ["@PYTHON@", "@PEERS@/collector.py", "@WORK@", metrics], ports: [{name: otlp, port: 4317}, {name: otlp-http, port: 4318}], health: {tcp: 4317}}
services:
- {name: web, namespace: shop, ports: [{port: 8090}]}
- {name: collector, namespace: watch, headless: true, ports: [{name: otlp, port: 4317}, {name: otlp-http, port: 4318}]}
"#;

const GOOD: u64 = 120;
const BAD: u64 = 15;
const CALLS: &str = "http.client.request.duration";
const SERVED: &str = "http.server.request.duration";

/// A data point as the collector has it.
#[derive(Debug, Clone, Default)]
struct Point {
    resource: BTreeMap<String, String>,
    metric: BTreeMap<String, String>,
    attributes: BTreeMap<String, String>,
    /// Everything else that is said of it.
    said: Vec<(String, String)>,
}

impl Point {
    fn name(&self) -> &str {
        &self.metric["Name"]
    }

    fn service(&self) -> &str {
        self.resource.get("service.name").map_or("", String::as_str)
    }

    fn number(&self, name: &str) -> f64 {
        let found = self.said.iter().find(|(said, _)| said == name).unwrap_or_else(|| panic!("it says no {name}: {self:#?}"));
        found.1.parse().unwrap_or_else(|_| panic!("{found:?} is no number"))
    }

    fn has(&self, name: &str, value: &str) -> bool {
        self.attributes.get(name).is_some_and(|found| found == value)
    }
}

/// Every data point that the collector wrote, in order.
fn points(work: &Path) -> Vec<Point> {
    enum Of {
        Resource,
        Metric,
        Point,
    }
    let text = String::from_utf8_lossy(&fs::read(work.join("telemetry")).unwrap_or_default()).into_owned();
    // What is being written has no end yet.
    let whole = text.rfind("ResourceMetrics #").map_or("", |end| &text[..end]);
    let (mut points, mut next, mut of) = (Vec::<Point>::new(), Point::default(), Of::Resource);
    for line in whole.lines().map(str::trim) {
        if line.starts_with("ResourceMetrics #") {
            (next, of) = (Point::default(), Of::Resource);
        } else if line.starts_with("Metric #") {
            (next.metric, of) = (BTreeMap::new(), Of::Metric);
        } else if line.contains("DataPoints #") {
            points.push(next.clone());
            of = Of::Point;
        } else if let Some((name, value)) = line.strip_prefix("-> ").map(|pair| pair.split_once(": ").unwrap_or((pair, ""))) {
            let value = value.strip_suffix(')').and_then(|v| Some(v.split_once('(')?.1)).unwrap_or(value).to_owned();
            match of {
                Of::Resource => next.resource.insert(name.to_owned(), value),
                Of::Metric => next.metric.insert(name.trim_end_matches(':').to_owned(), value),
                Of::Point => points.last_mut().and_then(|point| point.attributes.insert(name.to_owned(), value)),
            };
        } else if let (Of::Point, Some(point), Some((name, value))) = (&of, points.last_mut(), line.split_once(": ")) {
            point.said.push((name.to_owned(), value.trim().to_owned()));
        }
    }
    points
}

fn mesh(protocol: &str, more: &str) -> String {
    let port = if protocol == "grpc" { "4317" } else { "4318" };
    MESH.replace("@PORT@", port).replace("@PROTOCOL@", protocol).replace("@MORE@", more)
}

fn load(world: &World) {
    let many = |path: &str, count: u64| {
        let url = format!("http://web.shop:8090{path}#[1-{count}]");
        world.curl("shop/client", &["-o", "/dev/null", &url]);
    };
    many("/name", GOOD);
    many("/flaky?key=never&fail=1000000&code=500", BAD);
}

/// What the table has of it, with the unit that it says.
fn known(point: &Point) -> &'static Metric {
    let metric =
        ALL.iter().find(|metric| metric.name == point.name()).unwrap_or_else(|| panic!("the table has no {}", point.name()));
    assert_eq!(point.metric["Unit"], metric.unit, "{}", metric.name);
    for name in point.attributes.keys() {
        assert!(LABELS.iter().any(|(label, _)| label == name), "{} has {name}", metric.name);
    }
    metric
}

impl Point {
    /// Counts of its buckets, in order.
    fn buckets(&self) -> Vec<f64> {
        let of = self.said.iter().filter(|(name, _)| name.starts_with("Bucket") && name.ends_with("Count"));
        of.map(|(_, n)| n.parse().expect("a count")).collect()
    }

    fn ended_well(&self) -> bool {
        self.has("http.response.status_code", "200") && !self.attributes.contains_key("error.type")
    }

    fn ended_badly(&self) -> bool {
        self.has("http.response.status_code", "500") && self.has("error.type", "500")
    }
}

/// What holds of every data point, whatever it counts.
fn is_sound(point: &Point, cumulative: bool, histogram: &str) {
    let metric = known(point);
    let says = |field: &str| point.metric.get(field).map(String::as_str);
    let temporality = if cumulative { "AGGREGATION_TEMPORALITY_CUMULATIVE" } else { "AGGREGATION_TEMPORALITY_DELTA" };
    let wanted = match metric.kind {
        Kind::Counter => ("Sum", Some("true"), Some(temporality)),
        // What goes up and down has no difference that means anything.
        Kind::UpDownCounter => ("Sum", Some("false"), Some("AGGREGATION_TEMPORALITY_CUMULATIVE")),
        Kind::Histogram => (histogram, None, Some(temporality)),
        Kind::Gauge | Kind::Info => ("Gauge", None, None),
    };
    let told = (says("DataType").unwrap_or_default(), says("IsMonotonic"), says("AggregationTemporality"));
    assert_eq!(told, wanted, "{}", metric.name);
    assert!(point.number("StartTimestamp") <= point.number("Timestamp"), "{point:#?}");
    assert_eq!(point.resource["service.namespace"], "shop");
    assert_eq!(point.resource["deployment.environment.name"], "lab");
    assert_eq!(point.resource["service.instance.id"], format!("shop/{}-0", point.service()));
    if metric.kind == Kind::Histogram {
        assert!(
            (point.buckets().iter().sum::<f64>() - point.number("Count")).abs() < 0.5,
            "its buckets are its count: {point:#?}"
        );
    }
}

#[test]
fn what_was_counted_arrives_over_grpc_as_it_stands() {
    require(&["curl"]);
    require_modules(&["rotel"]);
    let world = World::up(&mesh("grpc", "OTEL_EXPORTER_OTLP_COMPRESSION: gzip"));
    load(&world);
    let work = world.work();
    // Each push tells all of it: the last one counts.
    let last = |all: &[Point], service: &str, name: &str, is: &dyn Fn(&Point) -> bool| {
        all.iter().rev().find(|point| point.service() == service && point.name() == name && is(point)).cloned()
    };
    let all = eventually("all requests are told of, on both sides", || {
        let all = points(&work);
        let has = |service: &str, name: &str| {
            let count = |is: &dyn Fn(&Point) -> bool| last(&all, service, name, is).map_or(0.0, |point| point.number("Count"));
            count(&Point::ended_well) as u64 == GOOD && count(&Point::ended_badly) as u64 == BAD
        };
        (has("client", CALLS) && has("web", SERVED)).then_some(all.clone())
    });
    for point in &all {
        is_sound(point, true, "Histogram");
    }
    let call = last(&all, "client", CALLS, &Point::ended_well).expect("it is there");
    for (name, value) in [
        ("weft.service", "shop/web"),
        ("weft.workload", "client"),
        ("weft.peer", "spiffe://cluster.local/ns/shop/sa/web"),
        ("weft.mtls", "true"),
        ("http.request.method", "GET"),
        ("network.protocol.version", "1.1"),
        ("server.address", "web.shop"),
        ("server.port", "8090"),
    ] {
        assert!(call.has(name, value), "{name}={value}: {call:#?}");
    }
    let sum = call.number("Sum");
    assert!(sum > 0.0 && sum / call.number("Count") < 20.0, "seconds, and not thousandths of them: {call:#?}");
    let bounds: Vec<f64> = call
        .said
        .iter()
        .filter(|(name, _)| name.starts_with("ExplicitBounds"))
        .map(|(_, b)| b.parse().expect("a bound"))
        .collect();
    assert!(bounds.is_sorted() && bounds.len() + 1 == call.buckets().len(), "{call:#?}");
    let served = last(&all, "web", SERVED, &Point::ended_well).expect("it is there");
    assert!(served.has("weft.peer", "spiffe://cluster.local/ns/shop/sa/client"), "{served:#?}");
    // Every push of a series begins where the first did.
    let begins: BTreeSet<&str> = all
        .iter()
        .filter(|point| point.name() == CALLS && point.attributes == call.attributes)
        .filter_map(|point| point.said.iter().find(|(name, _)| name == "StartTimestamp").map(|(_, at)| at.as_str()))
        .collect();
    assert_eq!(begins.len(), 1, "{begins:?}");
    let sent = |service: &str| -> BTreeSet<String> {
        all.iter().filter(|point| point.service() == service).map(|point| point.name().to_owned()).collect()
    };
    let wanted = ["weft.certificate.not_after", "weft.discovery.staleness", "weft.tls.handshake.duration", "weft.connections"];
    assert!(wanted.iter().all(|name| sent("web").contains(*name)), "{:?}", sent("web"));
}

#[test]
fn differences_over_http_add_up_to_what_was_counted() {
    require(&["curl"]);
    require_modules(&["rotel"]);
    let more = "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE: delta\n  \
                OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION: base2_exponential_bucket_histogram";
    let world = World::up(&mesh("http/protobuf", more));
    let work = world.work();
    load(&world);
    let of = |all: &[Point], service: &str, name: &str| -> Vec<Point> {
        all.iter().filter(|point| point.service() == service && point.name() == name).cloned().collect()
    };
    let count = |points: &[Point], is: &dyn Fn(&Point) -> bool| -> u64 {
        points.iter().filter(|point| is(point)).map(|point| point.number("Count") as u64).sum()
    };
    let counted = |service: &str, name: &str| {
        let points = of(&points(&work), service, name);
        (count(&points, &Point::ended_well), count(&points, &Point::ended_badly))
    };
    eventually("all requests are told of", || (counted("client", CALLS) == (GOOD, BAD)).then_some(()));
    eventually("on the other side, too", || (counted("web", SERVED) == (GOOD, BAD)).then_some(()));
    // What was told once is not told again: more of them come, and nothing else.
    load(&world);
    eventually("what came later is told once", || (counted("client", CALLS) == (2 * GOOD, 2 * BAD)).then_some(()));
    let all = points(&work);
    for point in &all {
        is_sound(point, false, "ExponentialHistogram");
    }
    let calls: Vec<Point> = of(&all, "client", CALLS).into_iter().filter(Point::ended_well).collect();
    assert!(calls.len() > 1, "there were several pushes");
    for pair in calls.windows(2) {
        let at = |point: &Point, name: &str| point.said.iter().find(|(said, _)| said == name).map(|(_, at)| at.clone());
        assert_eq!(at(&pair[1], "StartTimestamp"), at(&pair[0], "Timestamp"), "each begins where the one before it ended");
    }
}

/// What an OpenTelemetry Collector's components take, by its documentation: of those that the file names. It is not tried with that Collector itself.
const COMPONENTS: [(&str, &str, &[&str]); 6] = [
    ("receivers", "otlp", &["protocols"]),
    (
        "processors",
        "memory_limiter",
        &["check_interval", "limit_mib", "spike_limit_mib", "limit_percentage", "spike_limit_percentage"],
    ),
    (
        "processors",
        "batch",
        &["timeout", "send_batch_size", "send_batch_max_size", "metadata_keys", "metadata_cardinality_limit"],
    ),
    ("exporters", "debug", &["verbosity", "sampling_initial", "sampling_thereafter", "use_internal_logger"]),
    ("exporters", "otlp", &["endpoint", "tls", "compression", "headers", "timeout", "sending_queue", "retry_on_failure"]),
    ("extensions", "health_check", &["endpoint", "path", "tls", "response_body"]),
];

#[test]
fn the_configuration_for_a_collector_is_one_as_far_as_it_can_be_told_without_one() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/otel/collector.yaml");
    let text = fs::read_to_string(path).expect("it is there");
    is_a_configuration(&text);
    // The exporter that people are to fill in is one, too.
    let filled: String = text
        .lines()
        .map(|line| {
            line.strip_prefix("  # ")
                .filter(|rest| rest.starts_with("otlp:") || rest.starts_with("  "))
                .map_or_else(|| line.to_owned(), |rest| format!("  {rest}"))
                + "\n"
        })
        .collect();
    let config = is_a_configuration(&filled);
    assert!(config["exporters"]["otlp"]["endpoint"].is_string(), "{filled}");
}

fn is_a_configuration(text: &str) -> Value {
    let config: Value = serde_saphyr::from_str(text).expect("YAML");
    let names =
        |value: &Value| -> Vec<String> { value.as_object().map(|object| object.keys().cloned().collect()).unwrap_or_default() };
    let listed = |value: &Value| -> Vec<String> {
        value.as_array().into_iter().flatten().filter_map(|v| v.as_str().map(ToOwned::to_owned)).collect()
    };
    let sections = ["exporters", "extensions", "processors", "receivers", "service"];
    let mut found = names(&config);
    found.sort();
    assert_eq!(found, sections);
    for section in &sections[..4] {
        for id in names(&config[section]) {
            let (_, _, fields) = COMPONENTS
                .iter()
                .find(|(s, kind, _)| s == section && id.split('/').next() == Some(kind))
                .unwrap_or_else(|| panic!("no {section} {id} is known"));
            for field in names(&config[section][&id]) {
                assert!(fields.contains(&field.as_str()), "{section} {id} takes no {field}");
            }
        }
    }
    // The ports that docs/tracing.md names, on every address: a pod is called by its own.
    let protocols = &config["receivers"]["otlp"]["protocols"];
    assert_eq!(
        (&protocols["grpc"]["endpoint"], &protocols["http"]["endpoint"]),
        (&"0.0.0.0:4317".into(), &"0.0.0.0:4318".into())
    );
    let limiter = &config["processors"]["memory_limiter"];
    let percent = |field: &str| limiter[field].as_u64().unwrap_or_default();
    assert!(percent("limit_percentage") <= 100 && percent("spike_limit_percentage") < percent("limit_percentage"), "{limiter}");
    assert!(limiter["check_interval"].as_str().is_some_and(|time| time != "0s"), "without it the limiter refuses to start");
    assert!(["basic", "normal", "detailed"].contains(&config["exporters"]["debug"]["verbosity"].as_str().unwrap_or_default()));
    assert_eq!(listed(&config["service"]["extensions"]), names(&config["extensions"]));
    let mut signals = names(&config["service"]["pipelines"]);
    signals.sort();
    assert_eq!(signals, ["logs", "metrics", "traces"], "whatever a sidecar sends is taken");
    for signal in signals {
        let pipeline = &config["service"]["pipelines"][&signal];
        for section in ["receivers", "processors", "exporters"] {
            let used = listed(&pipeline[section]);
            assert!(
                !used.is_empty() && used.iter().all(|id| names(&config[section]).contains(id)),
                "{signal}: {section} {used:?}"
            );
        }
        // What refuses stands before what heaps up.
        assert_eq!(listed(&pipeline["processors"]), ["memory_limiter", "batch"], "{signal}");
    }
    config
}
