//! Who may come in: strict and permissive, by mesh, namespace and port, changed while it runs; and what nobody may.

use serde_json::{Value, json};
use weft_certs::{Authority, LeafKind, LeafSpec};
use weft_tests::{World, eventually, require};

const MESH: &str = r#"
namespaces:
  shop: {mtls: strict}
workloads:
- {name: app, namespace: shop, command: ["@PYTHON@", "@PEERS@/http_peer.py", "8090"], ports: [{port: 8090}]}
- {name: raw, namespace: shop, command: ["@PYTHON@", "@PEERS@/tcp_peer.py", echo, "7000"], ports: [{port: 7000}]}
- {name: client, namespace: shop, command: [sleep, infinity]}
- {name: app, namespace: open, command: ["@PYTHON@", "@PEERS@/http_peer.py", "8090"], ports: [{port: 8090}]}
- {name: raw, namespace: open, command: ["@PYTHON@", "@PEERS@/tcp_peer.py", banner, "7000"], ports: [{port: 7000}]}
- name: tls
  namespace: open
  workdir: "@WORK@"
  command: [openssl, s_server, -accept, "8443", -cert, server.pem, -key, server.key, -www, -quiet]
  ports: [{port: 8443}]
- name: local
  namespace: open
  command: ["@PYTHON@", "@PEERS@/http_peer.py", "8095", 127.0.0.1]
  ports: [{port: 8095}]
  health: {command: [curl, -sSf, "http://127.0.0.1:8095/name"]}
- {name: intruder, namespace: outside, sidecar: false, command: [sleep, infinity]}
- {name: plain, namespace: outside, sidecar: false, command: ["@PYTHON@", "@PEERS@/http_peer.py", "8090"], ports: [{port: 8090}]}
"#;
const INTRUDER: &str = "outside/intruder";
const CLIENT: &str = "shop/client";

#[test]
fn what_may_come_in_is_as_the_mode_says_and_changes_with_it() {
    require(&["openssl", "curl"]);
    let world = World::up_with(MESH, |work| {
        let leaf = Authority::new("cluster.local").leaf(&LeafSpec::new(LeafKind::Valid, "spiffe://cluster.local/ns/open/sa/tls"));
        std::fs::write(work.join("server.pem"), leaf.chain_pem()).expect("written");
        std::fs::write(work.join("server.key"), leaf.key_pem()).expect("written");
    });
    strict(&world);
    permissive(&world);
    changed_live(&world);
    ports_of_the_sidecars_own(&world);
    oneself(&world);
}

/// What becomes of a text that is sent to a port.
fn talk(world: &World, from: &str, address: &str, port: &str) -> Value {
    world.peer(from, &["raw.py", "talk", address, port, "hello"])
}

fn strict(world: &World) {
    let (app, raw) = (world.address("shop/app-0"), world.address("shop/raw-0"));
    assert_eq!(world.status(INTRUDER, &format!("http://{app}:8090/seen")), "403 mtls-required", "HTTP in the clear");
    assert_eq!(talk(world, INTRUDER, &raw, "7000")["outcome"], "reset", "TCP in the clear");
    let own = world.peer(INTRUDER, &["raw.py", "tls", &raw, "7000"]);
    assert_eq!(own["outcome"], "reset", "TLS of the application's own is plaintext to the mesh: {own}");
    assert_eq!(world.status(CLIENT, "http://app:8090/seen"), "200", "a mesh peer");
    assert_eq!(talk(world, CLIENT, "raw", "7000")["data"], "hello", "a mesh peer");
    assert_eq!(world.status(CLIENT, &format!("http://{app}:8090/seen")), "200", "a mesh peer that dials the pod itself");
    let seen = world.exec(CLIENT, &["curl", "-sS", "http://app.shop.svc.cluster.local:8090/paths"]).json();
    assert_eq!(seen, json!(["/seen", "/seen", "/paths"]), "nothing of what was refused reached the application");
}

fn permissive(world: &World) {
    let address = |name: &str| world.address(&format!("open/{name}-0"));
    let forged = "weft-client-id: spiffe://cluster.local/ns/shop/sa/client";
    let url = format!("http://{}:8090/seen", address("app"));
    let seen = world.exec(INTRUDER, &["curl", "-sS", "-H", forged, "-H", "weft_client_id: x", &url]).json();
    let names: Vec<&str> = seen["headers"].as_array().into_iter().flatten().filter_map(|pair| pair[0].as_str()).collect();
    assert!(!names.iter().any(|name| name.starts_with("weft")), "nobody vouches for plaintext: {seen}");
    assert_eq!(seen["peer"], address("app"), "{seen}");

    let greeted = world.peer(INTRUDER, &["raw.py", "banner", &address("raw"), "7000"]);
    assert_eq!(greeted[0], "220 the server speaks first\r\n", "a server that speaks first, to plaintext");

    let https = format!("https://{}:8443/", address("tls"));
    let insecure = ["-k", "-o", "/dev/null", "-w", "%{http_code}", https.as_str()];
    assert_eq!(world.curl(INTRUDER, &insecure), "200", "TLS of the application's own");
    let service = ["-k", "-o", "/dev/null", "-w", "%{http_code}", "https://tls.open:8443/"];
    assert_eq!(world.curl(CLIENT, &service), "200", "TLS of the application's own inside the mesh's");

    let local = world.status(INTRUDER, &format!("http://{}:8095/name", address("local")));
    assert_eq!(local, "503 upstream-connect-refused", "what listens on loopback alone stays there");
    assert_eq!(world.status(CLIENT, "http://local.open:8095/name"), "503 upstream-connect-refused", "for mesh peers too");

    let plain = world.address("outside/plain-0");
    assert_eq!(world.status(CLIENT, &format!("http://{plain}:8090/name")), "200", "a workload without a sidecar");
    let edge = world.edge("shop/client-0", &[("direction", "outbound"), ("target", "outside/plain-0")]);
    assert_eq!((&edge["peer"], &edge["cipher"]), (&json!("plaintext"), &json!("")), "is labelled so: {edge:#}");
}

/// Manifests are rewritten while connections come; the change takes effect without a restart.
fn changed_live(world: &World) {
    let url = format!("http://{}:8090/name", world.address("shop/app-0"));
    let becomes = |wanted: &str, why: &str| {
        eventually(&format!("{why}: {wanted}"), || (world.status(INTRUDER, &url) == wanted).then_some(()));
    };
    let annotate = |file: &str, name: &str, value: Value| {
        world.edit_manifest(file, |object| object["metadata"]["annotations"][name] = value);
    };
    annotate("pod-shop-app-0.json", "weft.dev/mtls-ports", json!("8090=permissive"));
    becomes("200", "a port that is permissive in a strict namespace");
    annotate("pod-shop-app-0.json", "weft.dev/mtls-ports", json!("1=permissive"));
    becomes("403 mtls-required", "a port that is so no more");

    annotate("namespace-shop.json", "weft.dev/mtls", json!("permissive"));
    becomes("200", "a namespace that became permissive");
    annotate("namespace-shop.json", "weft.dev/mtls", json!("strikt"));
    becomes("403 mtls-required", "a mode that nobody knows is strict");
    annotate("namespace-shop.json", "weft.dev/mtls", json!("strict"));
    let policy = world.config("shop/app-0");
    assert_eq!(policy["inbound"]["mode"], "strict", "{policy:#}");
}

fn ports_of_the_sidecars_own(world: &World) {
    let open = world.address("open/app-0");
    for from in [INTRUDER, CLIENT] {
        for port in ["4740", "4743"] {
            let answer = talk(world, from, &open, port);
            assert!(matches!(answer["outcome"].as_str(), Some("reset" | "closed")), "{from} dials {port}: {answer}");
        }
    }
    let admin = |path: &str| world.status(INTRUDER, &format!("http://{open}:4791{path}"));
    assert_eq!((admin("/live").as_str(), admin("/ready").as_str(), admin("/metrics").as_str()), ("200", "200", "200"));
    for secret in ["/config", "/edges", "/drain", "/"] {
        assert_eq!(admin(secret), "404", "{secret} is not for the network");
    }
    let drain = format!("http://{open}:4791/drain");
    let posted = world.curl(INTRUDER, &["-X", "POST", "-o", "/dev/null", "-w", "%{http_code}", &drain]);
    assert_eq!(posted, "404", "nobody drains from outside");
    assert_eq!(admin("/ready"), "200");
}

/// A pod that calls itself, by its service and by its own address, is in no loop.
fn oneself(world: &World) {
    let seen = world.exec("shop/app", &["curl", "-sS", "--max-time", "10", "http://app:8090/seen"]).json();
    let pair = json!(["weft-client-id", "spiffe://cluster.local/ns/shop/sa/app"]);
    assert!(seen["headers"].as_array().is_some_and(|list| list.contains(&pair)), "its own service: {seen}");
    let own = format!("http://{}:8090/name", world.address("shop/app-0"));
    assert_eq!(world.status("shop/app", &own), "200", "its own address");
    assert_eq!(talk(world, "shop/raw", "raw", "7000")["data"], "hello", "its own service over TCP");
}
