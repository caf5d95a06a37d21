//! The SPIFFE Workload API, by a SPIFFE library that we did not write.

use serde_json::{Value, json};
use weft_tests::{PATIENCE, Running, World, eventually, require_modules};

const MESH: &str = r#"
workloads:
- name: bank
  namespace: shop
  command: ["@PYTHON@", "@PEERS@/spiffe_peer.py", serve, "8443"]
  ports: [{port: 8443}]
  workloadApi: true
- {name: client, namespace: shop, command: [sleep, infinity], workloadApi: true}
- {name: plain, namespace: shop, command: [sleep, infinity]}
"#;
const BANK: &str = "spiffe://cluster.local/ns/shop/sa/bank";
const CLIENT: &str = "spiffe://cluster.local/ns/shop/sa/client";

#[test]
fn an_application_has_certificates_and_tokens_of_its_own_and_a_rotation_of_the_root_reaches_it() {
    require_modules(&["grpc", "spiffe"]);
    let world = World::up(MESH);

    let first = call(&world);
    // Whoever calls and whoever answers has proved it to the other, inside of what the sidecars do.
    assert_eq!((&first["id"], &first["server"]), (&json!(CLIENT), &json!([BANK])), "{first:#}");
    assert_eq!((&first["told"]["caller"], &first["told"]["subject"]), (&json!([CLIENT]), &json!([CLIENT, CLIENT])), "{first:#}");
    assert!(first["others"].as_str().is_some_and(|why| why.contains("audience")), "a token for others: {first:#}");
    for (replica, serial) in [("shop/client-0", &first["serial"]), ("shop/bank-0", &first["told"]["serial"])] {
        let own = world.config(replica)["certificate"]["serial"].clone();
        assert!(own.is_string() && !same(&own, serial), "{replica} handed out its own certificate: {own} {serial}");
    }

    // While the root is replaced, the application is told of both anchors, and then of the new one, with certificates of that.
    let rotated = trust(&world, "rotate --wait --timeout 60s");
    assert_eq!((&rotated["phase"], &rotated["missingTotal"]), (&json!("reissuing"), &json!(0)), "{rotated:#}");
    let second = call(&world);
    assert_eq!((&second["anchors"], &second["told"]["subject"]), (&json!(2), &json!([CLIENT, CLIENT])), "{second:#}");
    assert_ne!(second["told"]["serial"], first["told"]["serial"], "the server has a certificate of the new root");
    trust(&world, "finish");
    let third = eventually("the old anchor is gone from the application", || {
        let told = call(&world);
        (told["anchors"] == 1).then_some(told)
    });
    assert_eq!((&third["server"], &third["told"]["subject"]), (&json!([BANK]), &json!([CLIENT, CLIENT])), "{third:#}");
}

#[test]
fn only_the_pods_own_processes_are_answered_and_only_by_the_standard() {
    require_modules(&["grpc", "spiffe"]);
    let world = World::up(MESH);
    let inside = world.exec("shop/client", &["printenv", "SPIFFE_ENDPOINT_SOCKET"]).good();
    let path = inside.trim().strip_prefix("unix://").expect("a path");
    let bare = |words: &[&str]| world.peer("shop/client", &[&["spiffe_peer.py", "raw", path], words].concat());
    assert_eq!(bare(&["header"])["code"], "OK");
    assert_eq!(bare(&[])["code"], "INVALID_ARGUMENT", "without the metadata that keeps browsers out");

    // From outside of the pod's network the socket can be reached, and nothing is to be had.
    let find = "for p in /proc/[0-9]*; do [ -S $p/cwd/workload-api/socket ] && echo $p; done | head -n 1";
    let sidecar = world.lab(&["sh", "-c", find]).wait(PATIENCE).good();
    let socket = format!("{}/cwd/workload-api/socket", sidecar.trim());
    let outside = world.lab_peer(&["spiffe_peer.py", "raw", &socket, "header"]).wait(PATIENCE).json();
    assert_eq!(outside["code"], "PERMISSION_DENIED", "{outside:#}");

    // It sees the socket of its own sidecar, and nothing else of the mesh's.
    let directory = path.rsplit_once('/').and_then(|(up, _)| up.rsplit_once('/')).expect("two directories").0;
    assert_eq!(world.exec("shop/client", &["ls", directory]).good().trim(), "workload-api");
    assert_eq!(world.exec("shop/client", &["ls", &format!("{directory}/workload-api")]).good().trim(), "socket");
    assert!(!world.exec("shop/plain", &["printenv", "SPIFFE_ENDPOINT_SOCKET"]).status.success(), "it was not asked for");
    assert_eq!(world.exec("shop/plain", &["ls", directory]).good().trim(), "");
}

fn call(world: &World) -> Value {
    world.spawn_peer("shop/client", &["spiffe_peer.py", "call", "bank.shop:8443"]).wait(3 * PATIENCE).json()
}

/// Whether two serial numbers, hexadecimal, are one.
fn same(one: &Value, other: &Value) -> bool {
    let digits = |v: &Value| v.as_str().map(|text| text.trim_start_matches('0').to_owned());
    digits(one) == digits(other)
}

#[track_caller]
fn trust(world: &World, words: &str) -> Value {
    Running::start(world.shell(&format!("weft trust {words} -o json"))).wait(PATIENCE * 4).json()
}
