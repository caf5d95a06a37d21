//! Networks that lose packets, and an endpoint that nobody reaches any more although its connections stand.

use serde_json::json;
use weft_tests::{PATIENCE, World, eventually, require};

use super::{CLIENT, known, put};

const MESH: &str = r#"
manifests: ["@WORK@/traffic.yaml"]
workloads:
- {name: web, namespace: shop, replicas: 3, command: ["@PYTHON@", "@PEERS@/http_peer.py", "8090"], ports: [{port: 8090, protocol: http}]}
- {name: client, namespace: front, command: [sleep, infinity]}
services:
- {name: web, namespace: shop, ports: [{port: 80, targetPort: 8090, protocol: http}]}
"#;
const TRAFFIC: &str = r#"
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: web, namespace: shop}
spec:
  parentRefs: [{group: "", kind: Service, name: web}]
  rules:
  - backendRefs: [{name: web, port: 80}]
    timeouts: {request: 10s, backendRequest: 500ms}
    retry: {codes: [504], attempts: 3, backoff: 5ms}
---
apiVersion: weft.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: web, namespace: shop}
spec:
  targetRef: {name: web}
  balancer: {type: RoundRobin}
  outlier: {consecutiveFailures: 2, baseEjection: 2s, maxEjection: 2s}
"#;

#[test]
fn lost_packets_and_a_partition_fail_no_request() {
    require(&["nft"]);
    let world = World::up_with(MESH, |work| put(work, ""));
    assert_eq!(world.curl(CLIENT, &["http://web.shop/name?n=[1-6]"]).lines().count(), 6);
    let rules = |words: &str| {
        let all: Vec<&str> = ["nft"].into_iter().chain(words.split(' ')).collect();
        world.lab(&all).wait(PATIENCE).good();
    };
    rules("add table bridge lab");
    rules("add chain bridge lab forward { type filter hook forward priority 0 ; }");

    // One frame in twenty is lost, on every hop and in both directions. In turn, not at random: a connection that is tried three times in vain
    // would fail a request, as it should, and a test that fails now and then says nothing.
    rules("add rule bridge lab forward numgen inc mod 20 == 0 drop");
    let url = "http://web.shop/echo?n=[1-60]";
    let body = "b".repeat(5_000);
    let answers = world.exec(CLIENT, &["curl", "-sS", "--fail", "--fail-early", "--max-time", "60", "-d", &body, url]).good();
    assert_eq!(answers.len(), 60 * body.len(), "every body came back whole");
    rules("flush chain bridge lab forward");

    put(&world.work(), TRAFFIC);
    eventually("route and policy are known", || {
        let traffic = known(&world, "shop/web")["traffic"].to_string();
        (traffic.contains("consecutive") && traffic.contains("rule 0")).then_some(())
    });
    // One of three is cut off. Its connections stand, and nobody refuses anything.
    let lost = world.address("shop/web-1");
    rules(&format!("add rule bridge lab forward ip daddr {lost} drop"));
    let answers = world
        .exec(CLIENT, &["curl", "-sS", "--fail", "--fail-early", "--max-time", "60", "http://web.shop/name?n=[1-60]"])
        .good();
    let names: Vec<&str> = answers.lines().collect();
    assert_eq!(names.len(), 60, "{answers}");
    assert!(names.iter().all(|name| *name != "web-1"), "it cannot have answered: {answers}");
    let state = || {
        let service = known(&world, "shop/web");
        let all = service["endpoints"].as_array()?.clone();
        let found = all.iter().find(|e| e["address"] == json!(lost))?;
        Some((found["breaker"]["state"].clone(), found["ejections"].as_u64()?))
    };
    assert!(state().is_some_and(|(_, ejections)| ejections >= 1), "{:?}", state());
    rules("flush chain bridge lab forward");
    eventually("it is one of them again", || {
        let names = world.curl(CLIENT, &["http://web.shop/name?n=[1-6]"]);
        names.lines().any(|name| name == "web-1").then_some(())
    });
}
