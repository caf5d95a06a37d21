//! Metrics as people get them: a real Prometheus scrapes real sidecars and answers in PromQL; its own tool reads every text, rule and dashboard.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use weft_core::metrics::table::{self, ALL, LABELS};
use weft_core::metrics::{Family, Format, Kind, Labels, Point, Recorder, Value as Number, expose};
use weft_tests::{Running, World, eventually, require};

const MESH: &str = r#"
manifests: ["@WORK@/mesh"]
workloads:
- name: web
  namespace: shop
  replicas: 2
  command: ["@PYTHON@", "@PEERS@/http_peer.py", "8090"]
  ports: [{port: 8090}]
- {name: client, namespace: shop, command: [sleep, infinity]}
- {name: stranger, namespace: else, command: [sleep, infinity]}
"#;

const POLICY: &str = r"
apiVersion: weft.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: shop-only, namespace: shop}
spec:
  action: Allow
  rules: [{from: [{namespaces: [shop]}]}]
";

const ROUTE: &str = r#"
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: web, namespace: shop}
spec:
  parentRefs: [{group: "", kind: Service, name: web}]
  rules: [{backendRefs: [{name: web, port: 8090}]}]
"#;

const CLIENT: &str = "shop/client";
const GOOD: u32 = 270;
const BAD: u32 = 30;
const DENIED: u32 = 7;

/// Two of them: the native histograms of this version take the place of the classic ones.
const CLASSIC: &str = "127.0.0.1:9090";
const NATIVE: &str = "127.0.0.1:9091";

#[test]
fn prometheus_scrapes_the_mesh_and_answers_what_people_ask() {
    require(&["prometheus", "promtool", "curl"]);
    let world = World::up_with(MESH, |work| {
        let manifests = work.join("mesh");
        fs::create_dir(&manifests).expect("a fresh directory takes another");
        fs::write(manifests.join("policy.yaml"), POLICY).expect("written");
        fs::write(manifests.join("route.yaml"), ROUTE).expect("written");
    });
    let _scrapers = [prometheus(&world, CLASSIC, &[]), prometheus(&world, NATIVE, &["--enable-feature=native-histograms"])];
    load(&world);
    counts_agree(&world);
    quantiles(&world);
    policy(&world);
    sidecars(&world);
}

/// One of its own network and directory, with no other way in.
fn prometheus(world: &World, at: &str, more: &[&str]) -> Running {
    let (dir, replicas) =
        (world.work().join(format!("prometheus-{at}")), ["shop/web-0", "shop/web-1", CLIENT_0, "else/stranger-0"]);
    fs::create_dir(&dir).expect("a fresh directory takes another");
    let targets: Vec<Value> = replicas
        .iter()
        .map(|replica| json!({"targets": [format!("{}:4791", world.address(replica))], "labels": {"replica": replica}}))
        .collect();
    let config = json!({
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [repository().join("deploy/prometheus/weft-rules.yaml")],
        "scrape_configs": [{"job_name": "weft", "static_configs": targets}],
    });
    let file = dir.join("prometheus.yml");
    fs::write(&file, config.to_string()).expect("written");
    let (file, data) =
        (format!("--config.file={}", file.display()), format!("--storage.tsdb.path={}", dir.join("data").display()));
    let listen = format!("--web.listen-address={at}");
    let mut command = vec!["prometheus", &file, &data, &listen, "--log.level=warn"];
    command.extend(more);
    let mut running = world.lab(&command);
    eventually("Prometheus scrapes all sidecars", || {
        assert!(running.ended().is_none(), "Prometheus ended: {}", running.stderr());
        (ask(world, at, "count(up == 1)")? > 3.5).then_some(())
    });
    running
}

const CLIENT_0: &str = "shop/client-0";

/// The one number that a query gives; none before it gives any.
fn ask(world: &World, at: &str, query: &str) -> Option<f64> {
    let url = format!("http://{at}/api/v1/query");
    let output =
        world.lab(&["curl", "-sS", "--max-time", "5", "--data-urlencode", &format!("query={query}"), &url]).wait(PATIENCE);
    let answer: Value = serde_json::from_str(&output.stdout).ok()?;
    assert_eq!(answer["status"], "success", "{query}: {answer}");
    answer["data"]["result"][0]["value"][1].as_str()?.parse().ok()
}

const PATIENCE: Duration = Duration::from_secs(10);

/// Waits until a query gives what is right: a scrape is due every second.
#[track_caller]
fn comes_to(world: &World, at: &str, query: &str, right: impl Fn(f64) -> bool) {
    let mut last = None;
    let found = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        eventually(query, || {
            last = ask(world, at, query);
            last.filter(|n| right(*n)).map(|_| ())
        });
    }));
    assert!(found.is_ok(), "{query} came to {last:?}");
}

fn is(n: impl Into<f64>) -> impl Fn(f64) -> bool {
    let n = n.into();
    move |m| (m - n).abs() < 0.5
}

/// So many requests that are answered well, some that are not, and some that may not come in.
fn load(world: &World) {
    send(world, LOAD);
}

fn send(world: &World, load: Load) {
    let many = |path: &str, count: u32| {
        let line =
            format!("for i in $(seq {count}); do printf 'url=http://web:8090{path}\\noutput=/dev/null\\n'; done | curl -sS -K -");
        world.exec(CLIENT, &["sh", "-c", &line]).good();
    };
    many("/name", load.good);
    many("/flaky?key=never&fail=1000000&code=500", load.bad);
    for _ in 0..load.denied {
        assert_eq!(world.status("else/stranger", "http://web.shop:8090/name"), "403 denied");
    }
}

fn counts_agree(world: &World) {
    let client = "http_client_request_duration_seconds_count";
    let server = "http_server_request_duration_seconds_count";
    let of = |metric: &str, labels: &str| format!("sum({metric}{{{labels}}})");
    for at in [CLASSIC, NATIVE] {
        // A native histogram has its count within.
        let of = |metric: &str, labels: &str| match at {
            NATIVE => format!("histogram_count({})", of(metric.trim_end_matches("_count"), labels)),
            _ => of(metric, labels),
        };
        comes_to(
            world,
            at,
            &of(client, "weft_workload=\"client\",weft_service=\"shop/web\",http_response_status_code=\"200\""),
            is(GOOD),
        );
        comes_to(world, at, &of(client, "weft_workload=\"client\",error_type=\"500\""), is(BAD));
        comes_to(
            world,
            at,
            &of(client, "weft_workload=\"client\",weft_route=\"HTTPRoute shop/web\",weft_mtls=\"true\""),
            is(GOOD + BAD),
        );
        comes_to(
            world,
            at,
            &of(server, "weft_workload=\"web\",weft_peer=\"spiffe://cluster.local/ns/shop/sa/client\""),
            is(GOOD + BAD),
        );
        comes_to(
            world,
            at,
            &of(server, "weft_workload=\"web\",error_type=\"denied\",http_response_status_code=\"403\""),
            is(DENIED),
        );
        comes_to(world, at, &of(client, "weft_workload=\"stranger\",http_response_status_code=\"403\""), is(DENIED));
    }
    let good = format!("{client}{{weft_service=\"shop/web\",weft_namespace=\"shop\",error_type=\"\"}}");
    let all = format!("{client}{{weft_service=\"shop/web\",weft_namespace=\"shop\"}}");
    comes_to(world, CLASSIC, &format!("sum({good}) / sum({all})"), |share| (share - 0.9).abs() < 0.001);
    // What `weft edges` counts is the same.
    let edge = world.edge(CLIENT_0, &[("direction", "outbound"), ("target", "shop/web")]);
    assert!(edge["requests"].as_u64() > Some(0) && edge["by_route"]["HTTPRoute shop/web"] == edge["requests"], "{edge:#}");
    let bytes = "sum(weft_network_io_bytes_total{weft_workload=\"client\",network_io_direction=\"receive\"})";
    comes_to(world, CLASSIC, bytes, |n| n >= f64::from(GOOD) * 6.0);
}

fn quantiles(world: &World) {
    let labels = "weft_workload=\"client\",weft_service=\"shop/web\"";
    // Since the beginning: rates need a window, which would be time to wait for.
    let classic = format!("histogram_quantile(0.99, sum by (le) (http_client_request_duration_seconds_bucket{{{labels}}}))");
    let native = format!("histogram_quantile(0.99, sum(http_client_request_duration_seconds{{{labels}}}))");
    comes_to(world, CLASSIC, &classic, |n| n > 0.0 && n <= 60.0);
    comes_to(world, NATIVE, &native, |n| n > 0.0 && n <= 60.0);
    let (classic, native) = (ask(world, CLASSIC, &classic), ask(world, NATIVE, &native));
    // Both hold the same requests: the finer one lies within the bucket of the coarser one, or in the next.
    let (classic, native) = (classic.expect("asked before"), native.expect("asked before"));
    assert!(native <= classic * 5.0 && classic <= native * 5.0, "p99 by classic buckets {classic} s, by native ones {native} s");
    let edge = world.edge(CLIENT_0, &[("direction", "outbound"), ("target", "shop/web")]);
    assert!(edge["p50_micros"].as_u64() <= edge["p99_micros"].as_u64(), "{edge:#}");
}

fn policy(world: &World) {
    let denials = "sum(weft_denials_total{weft_workload=\"web\",weft_policy_name=\"none\"})";
    comes_to(world, CLASSIC, denials, is(DENIED));
    let decisions = "sum(weft_policy_decisions_total{weft_workload=\"web\",weft_direction=\"inbound\",weft_verdict=\"denied\"})";
    comes_to(world, CLASSIC, decisions, is(DENIED));
}

/// The same question to the sidecars and to a Prometheus that has scraped them: nobody has to know which of the two was asked.
#[test]
fn stat_says_the_same_by_prometheus_as_by_the_sidecars() {
    require(&["prometheus", "curl"]);
    let world = World::up_with(MESH, |work| {
        let manifests = work.join("mesh");
        fs::create_dir(&manifests).expect("a fresh directory takes another");
        fs::write(manifests.join("policy.yaml"), POLICY).expect("written");
        fs::write(manifests.join("route.yaml"), ROUTE).expect("written");
    });
    let _scraper = prometheus(&world, CLASSIC, &[]);
    let ended = [
        "sum(http_client_request_duration_seconds_count{weft_service=\"shop/web\"})",
        "sum(http_server_request_duration_seconds_count{weft_workload=\"web\"})",
    ];
    let all_ended = |count: u32| {
        for query in ended {
            comes_to(&world, CLASSIC, query, is(count));
        }
    };
    // A series that begins within the window counts from its first sample on: so each is there before what is measured, on both sides, which are not scraped
    // at once.
    send(&world, BEFORE);
    all_ended(BEFORE.all());
    send(&world, LOAD);
    all_ended(BEFORE.all() + LOAD.all());
    // Prometheus extends what it saw by up to a scrape: one among many is little.
    comes_to(&world, CLASSIC, "min(count_over_time(up[120s]))", |scrapes| scrapes > 11.5);

    let own = weft_tests::weft("weft").to_string_lossy().into_owned();
    let stat = |by: &str, words: &[&str]| -> Vec<Value> {
        let command = [&[&*own, "stat", "--by", by, "-o", "json"], words].concat();
        let lines = if words.contains(&"--prometheus") {
            world.lab(&command).wait(PATIENCE).json()
        } else {
            serde_json::from_slice(
                &world
                    .shell(&command[1..].iter().fold("weft".to_owned(), |l, w| l + " " + w))
                    .output()
                    .expect("weft runs")
                    .stdout,
            )
            .expect("JSON")
        };
        lines.as_array().expect("a list").clone()
    };
    let url = format!("http://{CLASSIC}");
    for by in ["service", "edge", "route", "pod"] {
        let (ours, theirs) = (stat(by, &["--since-start"]), stat(by, &["--window", "120s", "--prometheus", &url]));
        let of = |lines: &[Value], wanted: &dyn Fn(&Value) -> bool| -> Value {
            let found: Vec<&Value> = lines.iter().filter(|line| wanted(line)).collect();
            assert_eq!(found.len(), 1, "by {by}: {lines:#?}");
            found[0].clone()
        };
        let number = |line: &Value, field: &str| line[field].as_f64().unwrap_or_else(|| panic!("{field} of {line:#}"));
        // Pods have their address for a name where Prometheus was told of none: both together are what matters.
        let wanted = |line: &Value| match by {
            "edge" => line["to"] == "shop/web" && line["from"].as_str().is_some_and(|from| from.starts_with("shop/client")),
            "route" => line["route"] == "HTTPRoute shop/web",
            _ => line["to"] == "shop/web",
        };
        if by == "pod" {
            let sum = |lines: &[Value]| {
                lines
                    .iter()
                    .filter(|l| l["to"].as_str().is_some_and(|to| to.starts_with("shop/")))
                    .map(|l| number(l, "requests"))
                    .sum::<f64>()
            };
            // Either pod may have its first request of a kind only in what is measured, which Prometheus then lacks.
            let (ours, theirs) = (sum(&ours), sum(&theirs));
            assert!(theirs >= ours * 0.7 && theirs <= ours * 1.25, "{theirs} of Prometheus, {ours} of the sidecars");
            continue;
        }
        let (ours, theirs) = (of(&ours, &wanted), of(&theirs, &wanted));
        assert!(within(number(&theirs, "requests"), number(&ours, "requests")), "by {by}: {theirs:#} {ours:#}");
        let rates = (number(&ours, "successRate"), number(&theirs, "successRate"));
        assert!((rates.0 - rates.1).abs() < 0.01 && rates.0 > 0.8 && rates.0 < 0.95, "by {by}: {rates:?}");
        let seconds = number(&theirs, "seconds");
        assert!((number(&theirs, "requestsPerSecond") * seconds - number(&theirs, "requests")).abs() < 1.0, "{theirs:#}");
        // Both interpolate within one and the same buckets; what was sent first, and took longest, is not in both.
        let (a, b) = (number(&ours, "p50"), number(&theirs, "p50"));
        assert!(a <= b * 2.0 && b <= a * 2.0, "p50 by {by}: {a} ms of the sidecars, {b} ms of Prometheus");
        assert!(number(&theirs, "p95") >= b && number(&theirs, "p99") >= number(&theirs, "p95"), "{theirs:#}");
        // Of the callers' own: what the other side denies is its answer.
        assert_eq!(theirs["errors"], ours["errors"], "by {by}");
    }
    let none = world.lab(&[&own, "stat", "--prometheus", "http://127.0.0.1:1"]).wait(PATIENCE);
    assert!(!none.status.success() && none.stderr.contains("Prometheus at http://127.0.0.1:1"), "{none:?}");
}

/// Requests of one kind each.
#[derive(Clone, Copy)]
struct Load {
    good: u32,
    bad: u32,
    denied: u32,
}

impl Load {
    const fn all(self) -> u32 {
        self.good + self.bad + self.denied
    }
}

const BEFORE: Load = Load { good: 18, bad: 2, denied: 1 };
const LOAD: Load = Load { good: GOOD, bad: BAD, denied: DENIED };

/// What Prometheus has, `theirs`, beside what the sidecars count, `ours`: it lacks at most what was sent before, and extends what it saw to the window's edges.
fn within(theirs: f64, ours: f64) -> bool {
    theirs >= ours - f64::from(BEFORE.all()) - 0.5 && theirs <= ours * 1.25
}

fn sidecars(world: &World) {
    for (query, right) in [
        ("min(weft_certificate_not_after_seconds - time())", 1.0..90_000.0),
        ("max(weft_discovery_staleness_seconds)", 0.0..60.0),
        ("min(weft_ready)", 1.0..1.1),
        (
            "sum(weft_tls_handshake_duration_seconds_count{weft_tls_role=\"server\",tls_curve=\"X25519MLKEM768\",error_type=\"\"})",
            2.0..100.0,
        ),
        ("sum(weft_detections_total{weft_direction=\"outbound\",weft_outcome=\"http/1\"})", 2.0..100.0),
        ("count(target_info{service_namespace=\"shop\"})", 3.0..3.1),
        ("sum(weft_breaker_endpoints{weft_workload=\"client\",weft_service=\"shop/web\",weft_state=\"closed\"})", 2.0..2.1),
        ("min(weft_retry_budget_remaining{weft_workload=\"client\"})", 1.0..1e6),
        (
            "sum(weft_connections_total{weft_workload=\"web\",weft_direction=\"inbound\",network_protocol_name=\"http\"})",
            2.0..100.0,
        ),
    ] {
        comes_to(world, CLASSIC, query, |n| right.contains(&n));
    }
    // As each format, and read by the tool of its maker.
    for replica in ["shop/web-0", CLIENT_0] {
        let text = world.ask(world.sidecar(replica), "GET", "/metrics").expect("metrics").1;
        promtool(&["check", "metrics"], &text);
    }
}

/// Runs promtool over a text; it must find nothing.
#[track_caller]
fn promtool(words: &[&str], text: &str) {
    let mut command = Command::new("promtool");
    let mut child =
        command.args(words).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
    let mut input = child.stdin.take().expect("piped");
    let writer = std::thread::spawn({
        let text = text.to_owned();
        move || input.write_all(text.as_bytes())
    });
    let output = child.wait_with_output().expect("it ends");
    writer.join().expect("it writes").expect("it reads all");
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "promtool {}: {said}", words.join(" "));
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the package lies in the repository").to_owned()
}

/// Every metric of every program goes out by the same code: one series of each, with all of its labels, is what promtool reads.
#[test]
fn promtool_finds_nothing_in_any_metric() {
    require(&["promtool"]);
    let recorder = Recorder::default();
    recorder.record(Duration::from_millis(3));
    let family = |metric: &'static table::Metric| {
        let mut labels = Labels::new();
        for label in metric.labels {
            labels.add(label, "a \"b\" \\c\nd".to_owned());
        }
        let value = match metric.kind {
            Kind::Histogram => Number::Distribution(Box::new(weft_core::metrics::family::Distribution {
                reading: recorder.read(),
                exemplars: None,
            })),
            Kind::Counter => Number::Count(1),
            _ => Number::Level(1.0),
        };
        Family { metric, points: vec![Point { labels, since: 0, value }] }
    };
    let families: Vec<Family> = ALL.iter().map(|metric| family(metric)).collect();
    let constant = Labels::new().and(table::NAMESPACE, "shop").and(table::WORKLOAD, "web");
    promtool(&["check", "metrics"], &String::from_utf8(expose(Format::Text, &families, &constant)).expect("text"));
}

#[test]
fn rules_are_sound_and_do_what_they_say() {
    require(&["promtool"]);
    let dir = repository().join("deploy/prometheus");
    for words in [["check", "rules", "weft-rules.yaml"], ["test", "rules", "weft-rules-test.yaml"]] {
        let output = Command::new("promtool").args(words).current_dir(&dir).output().expect("it starts");
        let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "promtool {}: {said}", words.join(" "));
    }
    let rules = fs::read_to_string(dir.join("weft-rules.yaml")).expect("it is there");
    only_what_the_table_has(
        "weft-rules.yaml",
        &rules.lines().filter(|line| !line.trim_start().starts_with('#')).collect::<Vec<_>>().join("\n"),
    );
}

#[test]
fn a_prometheus_on_kubernetes_takes_the_scrape_configuration() {
    require(&["promtool"]);
    let text = fs::read_to_string(repository().join("deploy/prometheus/scrape.yaml")).expect("it is there");
    let mut config: Value = serde_saphyr::from_str(&text).expect("YAML");
    for job in config["scrape_configs"].as_array_mut().expect("jobs") {
        // Debian builds Prometheus without Kubernetes' discovery: what it finds stands there, and all else is read as it is.
        let found = job.as_object_mut().expect("a job").remove("kubernetes_sd_configs").expect("pods are looked for");
        assert_eq!(found[0]["role"], "pod");
        job["static_configs"] = json!([{"targets": ["10.0.0.1:4791"]}]);
    }
    let dir = tempfile::tempdir().expect("a directory");
    let (file, rules) = (dir.path().join("scrape.yaml"), "weft-rules.yaml");
    fs::copy(repository().join("deploy/prometheus").join(rules), dir.path().join(rules)).expect("copied");
    fs::write(&file, config.to_string()).expect("written");
    promtool(&["check", "config", &file.to_string_lossy()], "");
    // What it looks for is what the injector writes.
    let container = format!("regex: {};weft-admin", weft_core::wellknown::SIDECAR_CONTAINER);
    assert!(text.contains(&container), "{text}");
}

#[test]
fn dashboards_ask_for_what_there_is() {
    require(&["promtool"]);
    let dir = tempfile::tempdir().expect("a directory");
    for file in ["weft-services", "weft-workloads", "weft-mesh"] {
        let path = repository().join(format!("deploy/grafana/{file}.json"));
        let board: Value = serde_json::from_str(&fs::read_to_string(&path).expect("it is there")).expect("JSON");
        let mut asked = Vec::new();
        expressions(&board, &mut asked);
        assert!(asked.len() > 10, "{file} asks for nothing");
        let rules: Vec<Value> =
            asked.iter().enumerate().map(|(i, expr)| json!({"record": format!("asked:{i}"), "expr": expr})).collect();
        let text = json!({"groups": [{"name": file, "rules": rules}]}).to_string();
        let rules = dir.path().join(format!("{file}.yaml"));
        fs::write(&rules, text).expect("written");
        promtool(&["check", "rules", &rules.to_string_lossy()], "");
        only_what_the_table_has(file, &asked.join("\n"));
    }
}

/// Every expression of a dashboard, with what Grafana fills in.
fn expressions(value: &Value, out: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                match (name.as_str(), value) {
                    ("expr", Value::String(expr)) => out.push(
                        expr.replace("$__rate_interval", "5m")
                            .replace("$__range", "1h")
                            .replace("$namespace", ".*")
                            .replace("$workload", ".*")
                            .replace("$service", ".*"),
                    ),
                    ("definition", Value::String(query)) => {
                        let inner = query.strip_prefix("label_values(").and_then(|q| q.rsplit_once(','));
                        out.extend(inner.map(|(selector, label)| {
                            format!(
                                "group by ({}) ({})",
                                label.trim().trim_end_matches(')'),
                                selector.replace("$namespace", ".*")
                            )
                        }));
                    }
                    (_, value) => expressions(value, out),
                }
            }
        }
        Value::Array(list) => list.iter().for_each(|value| expressions(value, out)),
        _ => {}
    }
}

/// Words that begin like a metric or a label of weft's are one.
#[track_caller]
fn only_what_the_table_has(place: &str, text: &str) {
    let underscored = |name: &str| {
        let mut out = String::new();
        weft_core::metrics::family::underscored(name, &mut out);
        out
    };
    let metrics: BTreeSet<String> = ALL
        .iter()
        .flat_map(|metric| {
            let name = metric.prometheus_name();
            let parts = if metric.kind == Kind::Histogram { vec!["", "_bucket", "_sum", "_count"] } else { vec![""] };
            parts.into_iter().map(move |part| format!("{name}{part}"))
        })
        .collect();
    let labels: BTreeSet<String> = LABELS.iter().map(|(name, _)| underscored(name)).collect();
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    let ours = ["weft_", "http_", "rpc_", "otel_sdk_", "network_", "tls_", "server_"];
    for found in text.split(|c: char| !word(c)).filter(|w| ours.iter().any(|start| w.starts_with(start)) && !w.contains(':')) {
        // The one place where names are matched: `otel_sdk_(processor|…)`.
        let known = metrics.contains(found) || labels.contains(found) || found == "otel_sdk_";
        assert!(known, "{place} asks for {found}, which the table does not have");
    }
}
