//! gRPC through two sidecars, with the client and server that most programs use.

use serde_json::json;
use weft_tests::{PATIENCE, World, require_modules};

const MESH: &str = r#"
workloads:
- name: grpc
  namespace: shop
  command: ["@PYTHON@", "@PEERS@/grpc_server.py", "50051"]
  ports: [{port: 50051}]
- name: client
  namespace: shop
  command: [sleep, infinity]
"#;

#[test]
fn calls_of_every_kind_pass_and_failures_have_grpcs_own_shape() {
    require_modules(&["grpc"]);
    let world = World::up(MESH);
    let calls = world.spawn_peer("shop/client", &["grpc_client.py", "dns:///grpc.shop:50051", "dns:///grpc.shop:50099"]);
    let found = calls.wait(3 * PATIENCE).json();

    assert_eq!(found["unary"], "hello", "unary");
    assert_eq!(found["trailers"]["lab-trailer"], "told", "trailing metadata: {}", found["trailers"]);
    assert_eq!(
        found["trailers"]["lab-caller"], "spiffe://cluster.local/ns/shop/sa/client",
        "the proved identity, not the forged one"
    );
    assert_eq!(found["fail"], json!(["FAILED_PRECONDITION", "as asked: ünicode"]), "an application's own status");
    assert_eq!(found["unimplemented"][0], "UNIMPLEMENTED");
    assert_eq!(found["download"].as_array().map(Vec::len), Some(100), "server streaming: {}", found["download"]);
    assert_eq!(found["download"][99], "99", "server streaming keeps its order");
    assert_eq!(found["upload"], "1000000", "client streaming");
    assert_eq!(found["bidi"], json!(["eno", "owt", "eerht"]), "both streams");
    assert_eq!(found["large"], true, "8 MiB both ways");
    assert_eq!(found["many"], true, "100 calls at once");
    assert_eq!(found["deadline"], "DEADLINE_EXCEEDED");
    assert_eq!(found["cancelled"], "yes", "a cancellation reaches the server");
    assert_eq!(found["absent"], json!(["UNAVAILABLE", "weft: no-such-port"]), "weft's own refusal is a gRPC status");

    let edge = world.mutual_tls_edge(
        "shop/client-0",
        "spiffe://cluster.local/ns/shop/sa/grpc",
        &[("direction", "outbound"), ("target", "shop/grpc"), ("protocol", "http/2")],
    );
    assert!(edge["requests"].as_u64().is_some_and(|n| n > 100), "{edge:#}");
}
