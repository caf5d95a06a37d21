use std::rc::Rc;
use std::time::Duration;

use clap::Parser;
use weft_core::failure::{Failure, Reason};
use weft_core::metrics::{Family, Format, Labels, Program, Value, expose, table};

use super::families::{constant, gather};
use super::slots::HandshakeKey;
use super::{Call, Direction, EdgeKey, Heard, OpenConnection, Registry, WorkerMetrics};
use crate::config::Config;
use crate::mesh::Mesh;
use crate::worker::Shared;

const MOST: usize = 50;
const LONG: Duration = Duration::from_secs(900);

fn key(peer: &str) -> EdgeKey {
    EdgeKey {
        direction: Direction::Outbound,
        port: 80,
        peer: peer.into(),
        target: "shop/web".into(),
        protocol: "http/1.1",
        tls: ("", ""),
    }
}

fn get(status: u16) -> Call<'static> {
    Call::new(b"GET", false).answered(status, None)
}

fn shared() -> Shared {
    let args = ["weft-sidecar", "--control-plane=127.0.0.1:1", "--identity=shop/web", "--pod-ips=10.0.0.1"];
    Shared::new(Config::parse_from(args), Mesh::new().0)
}

fn text(shared: &Shared) -> String {
    String::from_utf8(expose(Format::Text, &gather(shared), &constant(shared))).expect("text")
}

/// The values of the series whose lines hold all of these, summed.
fn sum(text: &str, parts: &[&str]) -> f64 {
    let lines = text.lines().filter(|line| !line.starts_with('#') && parts.iter().all(|part| line.contains(part)));
    lines.map(|line| line.rsplit(' ').next().and_then(|n| n.parse::<f64>().ok()).expect("a number")).sum()
}

#[test]
fn the_sidecar_tells_what_the_table_says() {
    let shared = shared();
    assert_eq!(table::LABELS.iter().filter(|(name, _)| name.is_empty()).count(), 0);
    assert_eq!(weft_core::metrics::table::disagreements(Program::Sidecar, &gather(&shared)), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn the_scraper_merges_workers() {
    let shared = shared();
    let [a, b] = [0, 1].map(|_| WorkerMetrics::new(shared.metrics.clone(), MOST));
    let peer = "spiffe://td/ns/shop/sa/\"\n";
    a.edge(&key(peer)).request(&get(200), Duration::from_micros(300));
    b.edge(&key(peer)).request(&get(200), Duration::from_millis(30));
    // Another suite, another port: of one series each, of one edge for people.
    b.edge(&EdgeKey { tls: ("TLS13_AES_128_GCM_SHA256", "X25519MLKEM768"), ..key(peer) }).request(&get(404), LONG);
    let refused = Failure::mesh(Reason::NoEndpoints);
    b.edge(&EdgeKey { port: 81, ..key(peer) }).request(&Call::new(b"BREW", true).refused(&refused), Duration::ZERO);
    b.edge(&EdgeKey { port: 81, ..key(peer) }).error(Reason::NoEndpoints);
    let edges = shared.metrics.edges();
    assert_eq!(edges.iter().map(|e| (e.requests, e.errors.len())).collect::<Vec<_>>(), [(3, 1), (1, 0)]);
    assert!(edges[0].p50_micros >= 300 && edges[0].p50_micros < 330 && edges[0].p99_micros < 33_000, "{edges:?}");
    let text = text(&shared);
    let client = "http_client_request_duration_seconds_count";
    for (parts, n) in [
        (
            vec![
                client,
                "weft_peer=\"spiffe://td/ns/shop/sa/\\\"\\n\"",
                "http_response_status_code=\"200\"",
                "server_port=\"80\"",
            ],
            2.0,
        ),
        (vec![client, "http_response_status_code=\"404\"", "weft_mtls=\"true\"", "error_type=\"404\""], 1.0),
        (vec![client, "http_request_method=\"_OTHER\"", "error_type=\"no-endpoints\"", "server_port=\"81\""], 1.0),
        (
            vec![
                "rpc_client_call_duration_seconds_count",
                "rpc_response_status_code=\"UNAVAILABLE\"",
                "server_address=\"web.shop\"",
            ],
            1.0,
        ),
        // That is what stood on the wire.
        (vec![client, "http_response_status_code=\"200\"", "error_type=\"no-endpoints\""], 1.0),
        (vec!["weft_errors_total", "error_type=\"no-endpoints\""], 1.0),
        (vec![client, "weft_namespace=\"shop\",weft_workload=\"web\""], 4.0),
    ] {
        assert!((sum(&text, &parts) - n).abs() < f64::EPSILON, "{parts:?} is {} in\n{text}", sum(&text, &parts));
    }
}

#[tokio::test(start_paused = true)]
async fn what_finds_no_room_is_counted_together_and_nothing_is_lost() {
    let shared = shared();
    let a = WorkerMetrics::new(shared.metrics.clone(), MOST);
    for i in 0..3 * MOST {
        a.edge(&key(&i.to_string())).request(&get(200), Duration::from_millis(1));
        a.edge(&key("one")).request(&get(100 + i as u16), Duration::from_millis(1));
    }
    let text = text(&shared);
    let count = "http_client_request_duration_seconds_count";
    assert!((sum(&text, &[count]) - 6.0 * MOST as f64).abs() < f64::EPSILON, "{text}");
    assert!(sum(&text, &[count, "otel_metric_overflow=\"true\"}"]) > 0.0, "{text}");
    assert!(text.lines().filter(|line| line.starts_with(count)).count() <= MOST + 2, "{text}");
    assert!((sum(&text, &["weft_metrics_series"]) - MOST as f64).abs() < f64::EPSILON, "{text}");
    assert!(shared.metrics.edges().iter().map(|e| e.requests).sum::<u64>() == 6 * MOST as u64);
}

#[tokio::test(start_paused = true)]
async fn what_is_not_used_goes_and_what_others_count_does_not_go_backwards() {
    let registry = Registry::new();
    let [a, b] = [0, 1].map(|_| WorkerMetrics::new(registry.clone(), MOST));
    let requests = |registry: &Registry| registry.edges().iter().map(|e| e.requests).collect::<Vec<_>>();
    a.edge(&key("x")).request(&get(200), LONG);
    b.edge(&key("x")).request(&get(200), LONG);
    let open = OpenConnection::new(a.edge(&key("open")));
    let kept = a.edge(&key("kept"));
    kept.request(&get(200), LONG);
    assert_eq!(requests(&registry), [1, 0, 2]);
    for _ in 0..3 {
        tokio::time::advance(LONG / 2).await;
        b.edge(&key("x")).request(&get(200), LONG);
        a.sweep();
        b.sweep();
    }
    // One worker has dropped what another still counts; a connection that is open, and one that waits, have kept theirs.
    assert_eq!(requests(&registry), [0, 0, 5]);
    assert_eq!(Rc::strong_count(&kept), 2);
    drop((open, kept));
    tokio::time::advance(2 * LONG).await;
    for _ in 0..2 {
        a.sweep();
        b.sweep();
        tokio::time::advance(LONG).await;
    }
    registry.settle();
    assert_eq!((requests(&registry), registry.sum(|s| super::slots::get(&s.series))), (vec![], 0));
    a.edge(&key("x")).request(&get(200), LONG);
    assert_eq!(requests(&registry), [1]);
}

#[tokio::test(start_paused = true)]
async fn a_series_of_several_outcomes_keeps_what_ended_of_them_and_no_longer_than_others_go_on() {
    let shared = shared();
    let a = WorkerMetrics::new(shared.metrics.clone(), MOST);
    let grpc = |status| Call::new(b"POST", true).answered(200, Some(status));
    let http = ["http_client_request_duration_seconds_count", "http_response_status_code=\"200\""];
    let rpc = ["rpc_client_call_duration_seconds_count", "NOT_FOUND"];
    let counted = |parts: &[&str]| sum(&text(&shared), parts) as u64;
    for status in [0, 5, 5] {
        a.edge(&key("x")).request(&grpc(status), LONG);
    }
    assert_eq!((counted(&http), counted(&rpc)), (3, 2));
    for n in 4..10 {
        tokio::time::advance(LONG / 2).await;
        a.edge(&key("x")).request(&grpc(0), LONG);
        a.sweep();
        assert_eq!(counted(&http), n, "it goes backwards");
    }
    assert_eq!(counted(&rpc), 0);
    for _ in 0..3 {
        tokio::time::advance(2 * LONG).await;
        a.sweep();
    }
    assert_eq!(counted(&http), 0);
    a.edge(&key("x")).request(&grpc(0), LONG);
    assert_eq!(counted(&http), 1);
}

#[tokio::test(start_paused = true)]
async fn exemplars_handshakes_and_detections_are_told() {
    let shared = shared();
    let a = WorkerMetrics::new(shared.metrics.clone(), MOST);
    let (edge, took) = (a.edge(&key("x")), Duration::from_millis(3));
    for trace in [1, 2] {
        edge.request(&get(200), took);
        edge.exemplar(&get(200), took, ([trace; 16], [trace; 8]), 1_790_000_000_000_000_000);
    }
    a.handshake(HandshakeKey { is_client: true, tls: ("TLS13_AES_128_GCM_SHA256", "X25519MLKEM768"), error: "" }, took);
    a.handshake(HandshakeKey { is_client: false, tls: ("", ""), error: "denied" }, took);
    a.detected(Direction::Inbound, Heard::Mesh);
    a.decided(Direction::Inbound, false);
    let families: Vec<Family> = gather(&shared);
    let open = String::from_utf8(expose(Format::OpenMetrics, &families, &Labels::new())).expect("text");
    let of = |n: u8| format!("trace_id=\"{}\"", format!("{n:02x}").repeat(16));
    assert!(open.contains(&of(2)) && !open.contains(&of(1)) && open.ends_with("# EOF\n"), "{open}");
    let handshakes = families.iter().find(|f| f.metric == &table::HANDSHAKES).expect("it is told");
    let labels: Vec<String> = handshakes.points.iter().map(|p| format!("{:?}", p.labels.value(table::ERROR))).collect();
    assert_eq!(labels.len(), 2, "{labels:?}");
    assert!(handshakes.points.iter().all(|p| matches!(&p.value, Value::Distribution(d) if d.reading.count() == 1)));
    assert!(open.contains("weft_detections_total{weft_direction=\"inbound\",weft_outcome=\"mesh\"} 1\n"), "{open}");
    assert!(open.contains("weft_policy_decisions_total{weft_direction=\"inbound\",weft_verdict=\"denied\"} 1\n"), "{open}");
}

#[tokio::test(start_paused = true)]
async fn what_fails_in_grpc_has_failed_and_so_has_what_broke_off() {
    let shared = shared();
    let a = WorkerMetrics::new(shared.metrics.clone(), MOST);
    let grpc = |status| Call::new(b"POST", true).answered(200, status);
    let inbound = EdgeKey { direction: Direction::Inbound, ..key("y") };
    for call in
        [grpc(Some(0)), grpc(Some(5)), grpc(Some(14)), grpc(None), get(404), get(503), get(0).broken(Reason::UpstreamReset)]
    {
        a.edge(&key("x")).request(&call, LONG);
        a.edge(&inbound).request(&call, LONG);
    }
    let edges = shared.metrics.edges();
    assert_eq!(edges.iter().map(|e| (e.requests, e.failed)).collect::<Vec<_>>(), [(7, 4), (7, 4)]);
    assert_eq!(edges[0].by_class.values().sum::<u64>(), 7);
    let text = text(&shared);
    let (client, rpc) = ("http_client_request_duration_seconds_count", "rpc_client_call_duration_seconds_count");
    let server = "rpc_server_call_duration_seconds_count";
    for (parts, n) in [
        (vec![client, "error_type=\"UNAVAILABLE\"", "http_response_status_code=\"200\""], 1.0),
        (vec![client, "error_type=\"UNKNOWN\"", "http_response_status_code=\"200\""], 1.0),
        (vec![client, "error_type=\"NOT_FOUND\""], 0.0),
        (vec![rpc, "error_type=\"NOT_FOUND\"", "rpc_response_status_code=\"NOT_FOUND\""], 1.0),
        (vec![rpc, "error_type=\"UNKNOWN\"", "rpc_response_status_code=\"UNKNOWN\""], 1.0),
        (vec![server, "error_type=\"NOT_FOUND\""], 0.0),
        (vec![server, "error_type=\"UNAVAILABLE\""], 1.0),
    ] {
        assert!((sum(&text, &parts) - n).abs() < f64::EPSILON, "{parts:?} is {} in\n{text}", sum(&text, &parts));
    }
}

/// Of a gRPC call that weft refused, the reason alone says whose fault it is.
#[test]
fn the_rules_know_which_reasons_are_the_callers() {
    let rules = include_str!("../../../deploy/prometheus/weft-rules.yaml");
    let mut callers: Vec<&str> =
        Reason::ALL.iter().filter(|reason| (400..500).contains(&reason.http_status())).map(|reason| reason.as_str()).collect();
    callers.sort_unstable();
    let mut rest = rules;
    let mut found = 0;
    while let Some((_, after)) = rest.split_once("error_type!~\"|") {
        let (listed, after) = after.split_once('"').expect("it ends");
        let mut listed: Vec<&str> = listed.split('|').collect();
        listed.sort_unstable();
        assert_eq!(listed, callers);
        (rest, found) = (after, found + 1);
    }
    assert_eq!(found, 4);
}

/// A progressive delivery changes a route every few seconds: that is still the same route.
#[tokio::test(start_paused = true)]
async fn a_routes_next_version_counts_on_where_the_last_one_did() {
    use weft_core::traffic::Route;
    use weft_core::traffic::route::RouteKind;
    let shared = shared();
    let a = WorkerMetrics::new(shared.metrics.clone(), MOST);
    let id: weft_core::service::ObjectRef = "shop/web".parse().expect("a name");
    for created in 0..300 {
        let version = Route { kind: RouteKind::Http, id: id.clone(), created, ports: vec![], hostnames: vec![], rules: vec![] };
        let route = std::sync::Arc::new(version);
        a.edge(&key("x")).request(&get(200).by(Some(&route)), LONG);
    }
    let text = text(&shared);
    assert!((sum(&text, &["http_client_request_duration_seconds_count", "weft_route="]) - 300.0).abs() < f64::EPSILON, "{text}");
    assert!((sum(&text, &["weft_metrics_series"]) - 2.0).abs() < f64::EPSILON, "{text}");
    let edges = shared.metrics.edges();
    assert_eq!(edges[0].routes.values().map(|r| (r.requests, r.failed)).collect::<Vec<_>>(), [(300, 0)]);
}

#[test]
fn the_service_is_the_one_of_otlp() {
    let shared = Shared { environment: [("OTEL_SERVICE_NAME".to_owned(), "cart".to_owned())].into_iter().collect(), ..shared() };
    let info = text(&shared).lines().find(|line| line.starts_with("target_info{")).expect("it is told").to_owned();
    let resource = crate::telemetry::resource(&shared, &shared.environment);
    for name in ["service.name", "service.namespace", "service.instance.id", "service.version"] {
        let value = crate::telemetry::text_of(&resource, name).expect("it is in the resource");
        assert!(info.contains(&format!("{}=\"{value}\"", name.replace('.', "_"))), "{info}");
    }
    assert!(info.contains("service_name=\"cart\""), "{info}");
}
