//! Connections that are bytes to the mesh: to whom they go by the name in their TLS, or by weight alone.

use serde_json::json;
use weft_tests::{World, eventually, require};

use super::{CLIENT, known, put};

const MESH: &str = r#"
manifests: ["@WORK@/traffic.yaml"]
workloads:
- {name: red, namespace: shop, command: ["@PYTHON@", "@PEERS@/tcp_named.py", "7001", "@WORK@"], ports: [{port: 7001}, {port: 7443}]}
- {name: blue, namespace: shop, command: ["@PYTHON@", "@PEERS@/tcp_named.py", "7001", "@WORK@"], ports: [{port: 7001}, {port: 7443}]}
- {name: client, namespace: front, command: [sleep, infinity]}
services:
- {name: both, namespace: shop, selector: {app: red}, ports: [{name: tcp, port: 7001, protocol: tcp}, {name: tls, port: 7443, protocol: tls}]}
- {name: red, namespace: shop, ports: [{name: tcp, port: 7001, protocol: tcp}, {name: tls, port: 7443, protocol: tls}]}
- {name: blue, namespace: shop, ports: [{name: tcp, port: 7001, protocol: tcp}, {name: tls, port: 7443, protocol: tls}]}
"#;

const ROUTES: &str = r#"
apiVersion: gateway.networking.k8s.io/v1alpha2
kind: TCPRoute
metadata: {name: both, namespace: shop}
spec:
  parentRefs: [{group: "", kind: Service, name: both, port: 7001}]
  rules: [{backendRefs: [{name: red, port: 7001, weight: 1}, {name: blue, port: 7001, weight: 1}]}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: TLSRoute
metadata: {name: red, namespace: shop}
spec:
  parentRefs: [{group: "", kind: Service, name: both, port: 7443}]
  hostnames: [red.example]
  rules: [{backendRefs: [{name: red, port: 7443}]}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: TLSRoute
metadata: {name: blue, namespace: shop}
spec:
  parentRefs: [{group: "", kind: Service, name: both, port: 7443}]
  hostnames: ["*.blue.example"]
  rules: [{backendRefs: [{name: blue, port: 7443}]}]
---
apiVersion: weft.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: blue, namespace: shop}
spec:
  targetRef: {name: blue}
  limits: {connections: 2}
  tcp: {keepalive: {idle: 30s}, userTimeout: 20s, congestion: reno}
"#;

#[test]
fn connections_are_routed_and_limited() {
    require(&["openssl"]);
    let world = World::up_with(MESH, |work| {
        let file = |name: &str| work.join(name).to_string_lossy().into_owned();
        let made = std::process::Command::new("openssl")
            .args([
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:P-256",
                "-nodes",
                "-days",
                "2",
                "-subj",
                "/CN=lab",
            ])
            .args(["-keyout", &file("key.pem"), "-out", &file("cert.pem")])
            .output()
            .expect("openssl runs");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        put(work, ROUTES);
    });
    let said = |words: &[&str]| world.peer(CLIENT, &[&["tcp_named.py", "ask"], words].concat());
    eventually("the TCP route is in force", || (said(&["both.shop", "7001", "12"])["blue-0"].as_u64()? > 0).then_some(()));
    let counts = said(&["both.shop", "7001", "60"]);
    let of = |name: &str| counts[name].as_u64().unwrap_or(0);
    assert_eq!(of("red-0") + of("blue-0"), 60, "{counts}");
    assert!((10..=50).contains(&of("red-0")), "half of the connections each, about: {counts}");

    let tls = |name: &str| said(&["both.shop", "7443", "3", name]);
    eventually("the TLS routes are in force", || (tls("a.blue.example") == json!({"blue-0": 3})).then_some(()));
    assert_eq!(tls("red.example"), json!({"red-0": 3}), "by the name that the client asks for");
    assert_eq!(tls("other.example"), json!({"": 3}), "a name that no route has leads nowhere");

    // Two connections to it are held; a third is closed at once.
    let held = world.spawn_peer(CLIENT, &["tcp_named.py", "hold", "blue.shop", "7001", "2"]);
    eventually("two are held", || (known(&world, "shop/blue")["requests_connections_pending"][1] == 2).then_some(()));
    assert_eq!(said(&["blue.shop", "7001", "2"]), json!({"": 2}), "what is above the limit is refused");
    drop(held);
    eventually("there is room again", || (said(&["blue.shop", "7001", "1"]) == json!({"blue-0": 1})).then_some(()));
}
