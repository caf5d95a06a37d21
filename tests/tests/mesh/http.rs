//! HTTP through two sidecars: every version, framing and switch of protocol that real programs use, and who the caller is.

use std::fs;
use std::path::Path;

use serde_json::Value;
use weft_tests::{World, require, require_modules};

const MESH: &str = r#"
workloads:
- name: web
  namespace: shop
  replicas: 2
  workdir: "@WORK@"
  command: [sh, "@PEERS@/nginx.sh"]
  ports: [{port: 8080}, {port: 8081}]
- name: echo
  namespace: shop
  command: ["@PYTHON@", "@PEERS@/http_peer.py", "8090"]
  ports: [{port: 8090}]
- name: chat
  namespace: shop
  command: ["@PYTHON@", "@PEERS@/websocket_peer.py", serve, "8070"]
  ports: [{port: 8070}]
- name: client
  namespace: shop
  command: [sleep, infinity]
"#;
const CLIENT: &str = "shop/client";
const CLIENT_ID: &str = "spiffe://cluster.local/ns/shop/sa/client";
const LARGE: usize = 8 << 20;

#[test]
fn http_of_every_kind_passes_unchanged_and_the_caller_is_known() {
    require(&["nginx", "curl"]);
    require_modules(&["websockets"]);
    let large: Vec<u8> = (0..LARGE as u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let world = World::up_with(MESH, |work| {
        let files = work.join("files");
        fs::create_dir(&files).expect("a fresh directory takes another");
        fs::write(files.join("large"), &large).expect("written");
    });
    versions(&world);
    statuses_without_a_body(&world);
    large_bodies(&world, &large);
    framings(&world);
    switches(&world);
    callers(&world);
    edges(&world);
}

fn versions(world: &World) {
    let curl = |arguments: &[&str]| world.curl(CLIENT, arguments);
    let name = curl(&["--http1.0", "http://web:8080/name"]);
    assert!(["web-0\n", "web-1\n"].contains(&name.as_str()), "HTTP/1.0: {name:?}");

    let urls = ["http://web:8080/name"; 3];
    let mut keep_alive = vec!["-o", "/dev/null", "-o", "/dev/null", "-o", "/dev/null", "-w", "%{http_code} %{num_connects}\n"];
    keep_alive.extend(urls);
    assert_eq!(curl(&keep_alive), "200 1\n200 0\n200 0\n", "HTTP/1.1 keeps the connection");

    let said = curl(&["--http2-prior-knowledge", "-w", "%{http_version}", "http://web:8081/say?text=hello"]);
    assert_eq!(said, "said hello\n2", "HTTP/2 with prior knowledge");

    let absent = curl(&["-D", "-", "http://echo:9999/name"]);
    assert!(absent.starts_with("HTTP/1.1 502 ") && absent.contains("weft-error: no-such-port"), "{absent}");
}

fn statuses_without_a_body(world: &World) {
    // Each is followed by a GET on the same connection, which would fail if the two ends disagreed about where the answer ends.
    let cases: [(&[&str], &str, &str); 4] = [
        (&["-I"], "http://web:8080/large", "200"),
        (&[], "http://web:8080/empty", "204"),
        (&["-H", "If-None-Match: *"], "http://web:8080/large", "304"),
        (&[], "http://web:8080/absent", "404"),
    ];
    for (flags, url, status) in cases {
        let format = "%{http_code} %{num_connects} ";
        let mut command = vec!["-o", "/dev/null", "-w", format];
        command.extend(flags);
        command.extend([
            url,
            "--next",
            "-sS",
            "--max-time",
            "30",
            "-w",
            "%{http_code} %{num_connects}",
            "http://web:8080/say?text=x",
        ]);
        assert_eq!(world.curl(CLIENT, &command), format!("{status} 1 said x\n200 0"), "{flags:?} {url}");
    }
    let head = world.curl(CLIENT, &["-I", "http://web:8080/large"]).to_ascii_lowercase();
    assert!(head.contains(&format!("content-length: {LARGE}")), "HEAD keeps the length: {head}");
}

fn large_bodies(world: &World, large: &[u8]) {
    let work = world.work();
    let shown = |path: &Path| path.to_string_lossy().into_owned();
    let (sent, back) = (shown(&work.join("files/large")), work.join("back"));
    let into = shown(&back);
    let transfers: [(&str, &[&str]); 4] = [
        ("down by HTTP/1.1", &["http://web:8080/large"]),
        ("down by HTTP/2", &["--http2-prior-knowledge", "http://web:8081/large"]),
        ("up and down with a length", &["-T", sent.as_str(), "http://echo:8090/echo"]),
        ("up in chunks", &["-T", sent.as_str(), "-H", "Transfer-Encoding: chunked", "http://echo:8090/echo"]),
    ];
    for (what, arguments) in transfers {
        let mut command = vec!["--fail", "-o", into.as_str()];
        command.extend(arguments);
        world.curl(CLIENT, &command);
        let came = fs::read(&back).expect("curl wrote it");
        assert!(came == large, "{what}: {} of {} bytes came, or others", came.len(), large.len());
        fs::remove_file(&back).expect("it was there");
    }
}

fn framings(world: &World) {
    let post = &["-v", "-H", "Expect: 100-continue", "--data-binary", "hello", "http://echo:8090/seen"];
    let mut command = vec!["curl", "-sS", "--max-time", "30"];
    command.extend(post);
    let expected = world.exec(CLIENT, &command);
    assert!(expected.stderr.contains("HTTP/1.1 100 Continue"), "the application's own 100 passes: {}", expected.stderr);
    assert_eq!(expected.json()["body"], 5);

    let three = world.peer(CLIENT, &["raw.py", "pipeline", "echo", "8090"]);
    let three = three.as_str().expect("a text");
    let at = |what: &str| three.find(what).unwrap_or_else(|| panic!("{what:?} is missing in {three}"));
    assert!(at("echo-0\n") < at("hello") && at("hello") < at("x-trailer: told"), "pipelined answers keep their order: {three}");
    assert_eq!(three.matches("HTTP/1.1 200 OK").count(), 3, "{three}");
    assert!(!three.contains("weft-error"), "a trailer that claims to be weft's is removed: {three}");

    let seen = world.peer(CLIENT, &["raw.py", "trailers", "echo", "8090"]);
    assert_eq!(seen["body"], 7, "{seen}");
    assert_eq!(seen["trailers"], serde_json::json!([["x-kept", "yes"]]), "honest trailers pass, forged ones do not: {seen}");
}

fn switches(world: &World) {
    let chat = world.spawn_peer(CLIENT, &["websocket_peer.py", "call", "ws://chat:8070/"]);
    assert_eq!(chat.wait(weft_tests::PATIENCE).good(), "ok\n", "WebSocket");

    let tunnel = world.peer(CLIENT, &["raw.py", "connect", "echo", "8090"]);
    assert_eq!(tunnel["status"], "HTTP/1.1 200 OK", "CONNECT is the application's to grant: {tunnel}");
    assert_eq!(tunnel["echo"], "through the tunnel", "{tunnel}");

    let seen = world.exec(CLIENT, &["curl", "-sS", "--http2", "http://echo:8090/seen"]).json();
    for field in ["upgrade", "http2-settings"] {
        assert_eq!(values(&seen, field), [""; 0], "an upgrade to h2c is never forwarded: {seen}");
    }
}

fn callers(world: &World) {
    let forged = [
        "weft-client-id: spiffe://cluster.local/ns/shop/sa/forged",
        "Weft_Client_Id: spiffe://cluster.local/ns/shop/sa/forged",
        "Connection: keep-alive, weft-client-id, x-forwarded-for",
    ];
    let mut command = vec!["curl", "-sS", "--max-time", "30"];
    command.extend(forged.iter().flat_map(|field| ["-H", *field]));
    command.push("http://echo:8090/seen");
    let seen = world.exec(CLIENT, &command).json();
    assert_eq!(values(&seen, "weft-client-id"), [CLIENT_ID], "the proved identity alone: {seen}");
    assert_eq!(values(&seen, "weft_client_id"), [""; 0], "{seen}");
    assert_eq!(values(&seen, "x-forwarded-for"), [world.address("shop/client-0")], "{seen}");
    assert_eq!(seen["peer"], world.address("shop/echo-0"), "the application sees the pod's own address: {seen}");
    assert_eq!(values(&seen, "host"), ["echo:8090"], "{seen}");
}

fn values(seen: &Value, field: &str) -> Vec<String> {
    let fields = seen["headers"].as_array().into_iter().flatten();
    fields.filter(|pair| pair[0] == field).filter_map(|pair| pair[1].as_str()).map(ToOwned::to_owned).collect()
}

fn edges(world: &World) {
    let web = "spiffe://cluster.local/ns/shop/sa/web";
    for protocol in ["http/1.1", "http/2"] {
        let fields = [("direction", "outbound"), ("target", "shop/web"), ("protocol", protocol)];
        world.mutual_tls_edge("shop/client-0", web, &fields);
    }
    let fields = [("direction", "inbound"), ("target", "port 8090"), ("protocol", "http/1.1")];
    let inbound = world.mutual_tls_edge("shop/echo-0", CLIENT_ID, &fields);
    assert!(inbound["requests"].as_u64().is_some_and(|n| n > 5), "{inbound:#}");
    let config = world.config("shop/client-0");
    assert_eq!(config["certificate"]["id"], CLIENT_ID, "{config:#}");
    assert_eq!(config["certificate"]["pod"], "shop/client-0", "{config:#}");
}
