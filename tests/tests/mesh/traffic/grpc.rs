//! gRPC with an unmodified client: methods that lead to different services, codes that are asked again, deadlines that travel.

use serde_json::{Value, json};
use weft_tests::{PATIENCE, World, eventually, require_modules};

use super::{CLIENT, put};

const MESH: &str = r#"
manifests: ["@WORK@/traffic.yaml"]
workloads:
- {name: v1, namespace: shop, command: ["@PYTHON@", "@PEERS@/grpc_routed.py", serve, "50051"], ports: [{port: 50051}]}
- {name: v2, namespace: shop, command: ["@PYTHON@", "@PEERS@/grpc_routed.py", serve, "50051"], ports: [{port: 50051}]}
- {name: client, namespace: front, command: [sleep, infinity]}
services:
- {name: lab, namespace: shop, selector: {app: v1}, ports: [{port: 50051, protocol: grpc}]}
- {name: v1, namespace: shop, ports: [{port: 50051, protocol: grpc}]}
- {name: v2, namespace: shop, ports: [{port: 50051, protocol: grpc}]}
"#;

const ROUTE: &str = r#"
apiVersion: gateway.networking.k8s.io/v1
kind: GRPCRoute
metadata: {name: lab, namespace: shop, annotations: {weft.dev/retry-grpc-codes: "unavailable", weft.dev/retry-attempts: "2"}}
spec:
  parentRefs: [{group: "", kind: Service, name: lab}]
  rules:
  - matches: [{method: {service: lab.Lab, method: Second}}]
    filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-routed, value: second}]}}]
    backendRefs: [{name: v2, port: 50051}]
  - matches: [{headers: [{name: x-version, value: "2"}], method: {service: lab.Lab}}]
    backendRefs: [{name: v2, port: 50051}]
  - matches: [{method: {service: lab.Lab}}]
    backendRefs: [{name: v1, port: 50051}]
"#;

#[test]
fn grpc_calls_are_routed_and_repeated() {
    require_modules(&["grpc"]);
    let world = World::up_with(MESH, |work| put(work, ROUTE));
    let found: Value = eventually("the routes are in force", || {
        let found = world.spawn_peer(CLIENT, &["grpc_routed.py", "call", "dns:///lab.shop:50051"]).wait(3 * PATIENCE).json();
        (found["second"] == json!(["v2-0", "second"])).then_some(found)
    });
    assert_eq!(found["first"], json!(["v1-0", ""]), "{found}");
    assert_eq!(found["by_header"], json!(["v2-0", ""]), "{found}");
    assert_eq!(found["other_service"], json!(["UNIMPLEMENTED", "weft: no-route"]), "{found}");
    assert_eq!(found["flaky"], json!(["OK", "3"]), "a status that was asked for is repeated, and the server told so: {found}");
    assert_eq!(found["failing"], json!("INTERNAL"), "another is not: {found}");
    let left = found["left"].as_f64().expect("seconds");
    assert!(left > 0.0 && left < 5.5, "the server knows how long the client waits: {found}");
    assert_eq!(found["late"], "DEADLINE_EXCEEDED", "{found}");
}
