//! What is refused at once: limits, rates, faults; and endpoints that are left alone for a while.

use serde_json::json;
use weft_tests::{World, eventually};

use super::{CLIENT, ask, change, known, put};

const MESH: &str = r#"
manifests: ["@WORK@/traffic.yaml"]
workloads:
- {name: web, namespace: shop, replicas: 3, command: ["@PYTHON@", "@PEERS@/http_peer.py", "8090"], ports: [{port: 8090, protocol: http}]}
- {name: one, namespace: shop, command: ["@PYTHON@", "@PEERS@/http_peer.py", "8090"], ports: [{port: 8090, protocol: http}]}
- {name: client, namespace: front, command: [sleep, infinity]}
- {name: other, namespace: front, command: [sleep, infinity]}
services:
- {name: web, namespace: shop, ports: [{port: 80, targetPort: 8090, protocol: http}]}
- {name: one, namespace: shop, ports: [{port: 80, targetPort: 8090, protocol: http}]}
"#;

fn policy(service: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: weft.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {{name: {service}, namespace: shop}}\n\
         spec:\n  targetRef: {{name: {service}}}\n{spec}"
    )
}

#[test]
fn what_is_too_much_or_broken_is_refused_at_once() {
    let world = World::up_with(MESH, |work| put(work, ""));
    breaker(&world);
    limits(&world);
    rates(&world);
    faults(&world);
}

/// One of three answers with errors: it is left alone, tried by one request, left alone for longer, and taken back when it is well.
fn breaker(world: &World) {
    let sick = world.address("shop/web-1");
    let set = |code: u32| assert_eq!(ask(world, &[&format!("http://{sick}:8090/broken?code={code}")]).0, "200");
    let names = |n: usize| {
        let answers = world.curl(CLIENT, &["-w", "%{http_code}\n", &format!("http://web.shop/name?n=[1-{n}]")]);
        let lines: Vec<String> = answers.lines().map(str::to_owned).collect();
        (lines.iter().filter(|line| *line == "500").count(), lines.iter().filter(|line| *line == "web-1").count())
    };
    let state = || {
        let service = known(world, "shop/web");
        let found = service["endpoints"].as_array()?.iter().find(|e| e["address"] == json!(sick)).cloned()?;
        Some((found["breaker"]["state"].as_str()?.to_owned(), found["ejections"].as_u64()?))
    };
    set(500);
    // Slow enough a balancer's choice does not decide: each endpoint in its turn.
    let spec = "  balancer: {type: RoundRobin}\n  outlier: {consecutiveFailures: 3, failures: Any5xx, baseEjection: 2s, maxEjection: 4s}\n";
    put(&world.work(), &policy("web", spec));
    eventually("the breaker opens", || {
        names(9);
        state().filter(|(state, ejections)| state == "open" && *ejections >= 1)
    });
    assert_eq!(names(60), (0, 0), "nobody is sent to an endpoint that was ejected");
    // Still sick: one request finds out, and no more.
    let again = eventually("it is tried and ejected again", || {
        let (failed, _) = names(3);
        let (now, ejections) = state()?;
        assert!(failed <= 1, "{failed} requests for one probe");
        (now == "open" && ejections >= 2).then_some(ejections)
    });
    set(200);
    eventually("it is well and taken back", || {
        names(3);
        state().filter(|(state, ejections)| state == "closed" && *ejections >= again)
    });
    let (failed, answered) = names(60);
    assert!(failed == 0 && answered > 0, "{failed} failed, {answered} answered by it");
    let text = world.ask(world.sidecar("front/client-0"), "GET", "/metrics").expect("metrics").1;
    assert!(text.contains("eject"), "metrics tell of ejections: {text}");
}

fn limits(world: &World) {
    let spec = "  limits: {requests: 2}\n";
    put(&world.work(), &policy("one", spec));
    let held = || ask(world, &["http://one.shop/holding"]).1.parse::<usize>();
    assert_eq!(held(), Ok(0), "a service is known once it is called");
    eventually("the limit is known", || {
        known(world, "shop/one")["traffic"].to_string().contains("requests: Some(2)").then_some(())
    });
    let first = world.spawn(CLIENT, &["curl", "-sS", "--max-time", "20", "http://one.shop/hold"]);
    eventually("one is held", || (held().ok()? == 1).then_some(()));
    let second = world.spawn(CLIENT, &["curl", "-sS", "--max-time", "20", "http://one.shop/hold"]);
    // Not asked of the service itself: that request could have the second one's place.
    let in_flight = || known(world, "shop/one")["requests_connections_pending"][0].as_u64();
    eventually("two are in flight", || (in_flight()? == 2).then_some(()));
    assert_eq!(ask(world, &["http://one.shop/name"]).0, "503 overloaded");
    let direct = format!("http://{}:8090/release", world.address("shop/one-0"));
    assert_eq!(ask(world, &[&direct]).0, "200");
    for held in [first, second] {
        assert_eq!(held.wait(weft_tests::PATIENCE).good(), "one-0 ");
    }
    assert_eq!(ask(world, &["http://one.shop/name"]).0, "200", "there is room again");
}

/// Each identity has a rate of its own.
fn rates(world: &World) {
    let spec = "  rates: [{name: few, by: Caller, requests: 3, per: 1h, burst: 3, headers: [{name: x-rated, value: \"yes\"}]}]\n";
    let config = || world.config("shop/one-0")["inbound"]["required_features"].to_string().contains("rate-limit");
    change(world, &policy("one", spec), config);
    let asked = |place: &str| -> Vec<String> {
        let told = "%{http_code} %header{weft-error} %header{retry-after}";
        let words = ["curl", "-sS", "-o", "/dev/null", "-H", "x-rated: yes", "-w", told, "http://one.shop/name"];
        (0..5).map(|_| world.exec(place, &words).good()).collect()
    };
    for place in [CLIENT, "front/other"] {
        let answers = asked(place);
        assert!(answers[..3].iter().all(|a| a.trim_end() == "200"), "{place}: {answers:?}");
        assert!(answers[3..].iter().all(|a| a.starts_with("429 rate-limited ")), "{place}: {answers:?}");
        let after: u64 = answers[3].rsplit(' ').next().and_then(|n| n.parse().ok()).expect("when to come again");
        assert!((1..=1200).contains(&after), "{answers:?}");
    }
    assert_eq!(ask(world, &["http://one.shop/name"]).0, "200", "what is not meant is not counted");
}

fn faults(world: &World) {
    let spec = "  faults:\n  - {headers: [{name: x-fault, value: abort}], abort: {http: 418}}\n  - {headers: [{name: x-fault, value: reset}], abort: {reset: {}}}\n  \
                - {headers: [{name: x-fault, value: delay}], delay: 300ms}\n  - {headers: [{name: x-fault, value: half}], fraction: {numerator: 50}, abort: {http: 503}}\n";
    let asked = |fault: &str| ask(world, &["-H", &format!("x-fault: {fault}"), "http://one.shop/name"]).0;
    change(world, &policy("one", spec), || asked("abort") == "418 fault-injected");
    let reset = world.exec(CLIENT, &["curl", "-s", "-H", "x-fault: reset", "http://one.shop/name"]);
    assert!(matches!(reset.status.code(), Some(52 | 56)), "the connection ends without an answer: {:?}", reset.status);
    let output =
        world.exec(CLIENT, &["curl", "-sS", "-H", "x-fault: delay", "-w", "%{time_total}", "http://one.shop/name"]).good();
    let seconds: f64 = output.lines().last().and_then(|n| n.parse().ok()).expect("seconds");
    assert!(seconds >= 0.3, "{output}");
    let answers = world
        .exec(
            CLIENT,
            &["curl", "-sS", "-H", "x-fault: half", "-o", "/dev/null", "-w", "%{http_code}\n", "http://one.shop/name?n=[1-200]"],
        )
        .good();
    let failed = answers.lines().filter(|code| *code == "503").count();
    assert!((50..=150).contains(&failed), "{failed} of 200 at a half");
    assert_eq!(asked("none"), "200");
}
