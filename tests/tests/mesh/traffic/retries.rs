//! What is asked again of a service that fails now and then, what is not, and how long anybody waits.

use serde_json::{Value, json};
use weft_tests::{World, eventually};

use super::{CLIENT, ask, change, known, put};

const MESH: &str = r#"
manifests: ["@WORK@/traffic.yaml"]
workloads:
- {name: web, namespace: shop, command: ["@PYTHON@", "@PEERS@/http_peer.py", "8090"], ports: [{port: 8090, protocol: http}]}
- {name: client, namespace: front, command: [sleep, infinity]}
services:
- {name: web, namespace: shop, ports: [{port: 80, targetPort: 8090, protocol: http}]}
"#;

fn route(annotations: &str, rule: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: web, namespace: shop, annotations: {{{annotations}}}}}\n\
         spec:\n  parentRefs: [{{group: \"\", kind: Service, name: web}}]\n  rules:\n  - backendRefs: [{{name: web, port: 80}}]\n{rule}"
    )
}

const RETRY: &str = "    retry: {codes: [503], attempts: 3, backoff: 5ms}\n";

#[test]
fn what_fails_now_and_then_is_asked_again() {
    let world = World::up_with(MESH, |work| put(work, ""));
    assert_eq!(
        ask(&world, &["http://web.shop/flaky?key=none&fail=1"]).0,
        "503",
        "an answer is an answer, unless a route says otherwise"
    );
    let tried = |key: &str| ask(&world, &[&format!("http://web.shop/flaky?key={key}&fail=1")]).1 == "2\n";
    let mut round = 0;
    put(&world.work(), &route("", RETRY));
    eventually("retries are in force", || {
        round += 1;
        tried(&format!("begin-{round}")).then_some(())
    });
    by_code_and_method(&world);
    bodies(&world);
    retry_after(&world);
    timeouts(&world);
    budget(&world);
}

fn by_code_and_method(world: &World) {
    assert_eq!(
        ask(world, &["http://web.shop/flaky?key=a&fail=3"]),
        ("200".to_owned(), "4\n".to_owned()),
        "the server is told the attempt"
    );
    assert_eq!(
        ask(world, &["http://web.shop/flaky?key=b&fail=4"]).0,
        "503",
        "the last answer is the caller's, as the server gave it"
    );
    assert_eq!(ask(world, &["http://web.shop/flaky?key=c&fail=1&code=500"]).0, "500", "nobody asked for this code");
    assert_eq!(ask(world, &["-X", "POST", "http://web.shop/flaky?key=d&fail=1"]).0, "503", "a POST may have done something");
    assert_eq!(ask(world, &["-X", "DELETE", "http://web.shop/flaky?key=e&fail=1"]).0, "200");
    let edge = world.edge("front/client-0", &[("direction", "outbound"), ("target", "shop/web")]);
    assert!(edge["retries"].as_u64().is_some_and(|n| n >= 7), "{edge:#}");

    let post = |key: &str| ask(world, &["-X", "POST", &format!("http://web.shop/flaky?key={key}&fail=1")]).0;
    let mut round = 0;
    put(&world.work(), &route("weft.dev/retry-any-method: \"true\"", RETRY));
    eventually("any method is repeated", || {
        round += 1;
        (post(&format!("any-{round}")) == "200").then_some(())
    });
    put(&world.work(), &route("", RETRY));
    eventually("and then not any more", || {
        round += 1;
        (post(&format!("some-{round}")) == "503").then_some(())
    });
}

/// Up to 64 KiB are sent again, byte by byte; more goes through once.
fn bodies(world: &World) {
    for (name, bytes, status) in [("small", 60_000, "200"), ("large", 200_000, "503")] {
        let file = world.work().join(name);
        let body: Vec<u8> = (0..bytes).map(|i: u32| i.to_le_bytes()[usize::from(i.is_multiple_of(5))]).collect();
        std::fs::write(&file, &body).expect("written");
        let before = sent(world).len();
        let from = format!("@{}", file.display());
        let url = format!("http://web.shop/flaky?key={name}&fail=1");
        assert_eq!(ask(world, &["-X", "PUT", "-H", "expect:", "--data-binary", &from, &url]).0, status, "{name}");
        let all = sent(world).split_off(before);
        assert_eq!(all.len(), if status == "200" { 2 } else { 1 }, "{name}: {all:?}");
        assert!(all.iter().all(|one| one[0] == json!(bytes) && *one == all[0]), "{name}: {all:?}");
    }
}

/// The bodies that the server has had.
fn sent(world: &World) -> Vec<Value> {
    serde_json::from_str(&ask(world, &["http://web.shop/bodies"]).1).expect("JSON")
}

/// A server that says when to come again is heard, unless it would be longer than anybody waits.
fn retry_after(world: &World) {
    let took = |key: &str, after: u32| -> (String, f64) {
        let url = format!("http://web.shop/flaky?key={key}&fail=1&retry-after={after}");
        let written = world.exec(CLIENT, &["curl", "-sS", "-o", "/dev/null", "-w", "%{http_code} %{time_total}", &url]).good();
        let (status, seconds) = written.split_once(' ').expect("two words");
        (status.to_owned(), seconds.trim().parse().expect("seconds"))
    };
    let (status, seconds) = took("after-1", 1);
    assert!(status == "200" && seconds >= 1.0, "{status} after {seconds} s");
    assert_eq!(took("after-long", 3600).0, "503", "nobody waits for an hour");
}

fn timeouts(world: &World) {
    let rule = "    timeouts: {request: 600ms, backendRequest: 200ms}\n    retry: {codes: [504], attempts: 1, backoff: 5ms}\n";
    // Before the route is known, nothing ends it but the client.
    let status = || ask(world, &["--max-time", "3", "http://web.shop/hold"]).0;
    change(world, &route("", rule), || status() == "504 upstream-timeout");
    // Each attempt had its time, and there were two: the first that was held, and what came of it.
    let held = |world: &World| ask(world, &["http://web.shop/holding"]).1.parse::<u32>().expect("a number");
    let before = held(world);
    assert_eq!(status(), "504 upstream-timeout");
    assert_eq!(held(world) - before, 2, "a try that takes too long is repeated once");
    ask(world, &["http://web.shop/release"]);
}

/// To a service that always fails, no more goes than the budget lets.
fn budget(world: &World) {
    let policy = "---\napiVersion: gateway.networking.x-k8s.io/v1alpha1\nkind: XBackendTrafficPolicy\nmetadata: {name: web, namespace: shop}\n\
                  spec:\n  targetRefs: [{group: \"\", kind: Service, name: web}]\n  retryConstraint: {budget: {percent: 10, interval: 10s}, minRetryRate: {count: 1, interval: 10s}}\n";
    let is_small = || known(world, "shop/web")["traffic"].to_string().contains("percent: 10");
    change(world, &format!("{}{policy}", route("", RETRY)), is_small);
    let asked = |world: &World| -> usize {
        let paths: Vec<String> = serde_json::from_str(&ask(world, &["http://web.shop/paths"]).1).expect("JSON");
        paths.iter().filter(|path| path.contains("key=storm")).count()
    };
    ask(world, &["http://web.shop/flaky?key=storm-[1-100]&fail=1000"]);
    let all = asked(world);
    assert!((100..=140).contains(&all), "{all} requests reached the server of 100 that failed, at 10 % and one a second");
}
