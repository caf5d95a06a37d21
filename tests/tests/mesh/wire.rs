//! What is on the wire between namespaces: nothing of what programs said. The same capture shows what the unmeshed say, so
//! that the test can fail.

use std::fs;

use weft_tests::{World, contains, eventually, require};

/// What the two halves of the world say, each in its own words.
const MESHED: &str = "weft-marker-meshed-7c1f";
const PLAIN: &str = "weft-marker-plain-7c1f";
/// A record of application data: its type, and the version that every TLS 1.3 record carries (RFC 8446, section 5.1).
const TLS_RECORD: &[u8] = &[0x17, 0x03, 0x03];

/// The same programs in a namespace, with sidecars or without.
fn half(namespace: &str, sidecar: bool) -> String {
    let common = format!("namespace: {namespace}, sidecar: {sidecar}");
    format!(
        r#"
- {{name: web, {common}, workdir: "@WORK@", command: [sh, "@PEERS@/nginx.sh"], ports: [{{port: 8081}}]}}
- {{name: echo, {common}, command: ["@PYTHON@", "@PEERS@/http_peer.py", "8090"], ports: [{{port: 8090}}]}}
- {{name: tcp, {common}, command: ["@PYTHON@", "@PEERS@/tcp_peer.py", echo, "7000"], ports: [{{port: 7000}}]}}
- {{name: client, {common}, command: [sleep, infinity]}}"#
    )
}

#[test]
fn nothing_of_meshed_traffic_is_in_the_clear() {
    require(&["nginx", "curl"]);
    let mesh = format!("workloads:{}{}\n", half("meshed", true), half("plain", false));
    let world = World::up_with(&mesh, |work| fs::create_dir(work.join("files")).expect("a fresh directory takes another"));
    let (mut capture, file) = world.capture();

    let service = |name: &str| world.service(&format!("meshed/{name}"));
    say("meshed/client", &world, MESHED, &service);
    let replica = |name: &str| world.address(&format!("plain/{name}-0"));
    say("plain/client", &world, PLAIN, &replica);

    // Frames come in order: when the last words are there, everything is.
    let last = format!("tcp {PLAIN}");
    let frames =
        eventually("the capture has the last words", || fs::read(&file).ok().filter(|frames| contains(frames, last.as_bytes())));
    capture.stop();

    for part in ["/seen?path-", "x-marker: header-", "body-", "said ", "tcp "] {
        let words = format!("{part}{PLAIN}");
        assert!(contains(&frames, words.as_bytes()), "the capture should show {words:?} of the unmeshed, and does not");
    }
    assert!(!contains(&frames, MESHED.as_bytes()), "something that a meshed program said was in the clear");
    assert!(contains(&frames, TLS_RECORD), "there are no TLS records at all");
}

/// Says `marker` in path, header and body over HTTP/1.1, in an answer over HTTP/2, and over TCP, and makes sure that it arrived.
fn say(client: &str, world: &World, marker: &str, address: &dyn Fn(&str) -> String) {
    let url = format!("http://{}:8090/seen?path-{marker}", address("echo"));
    let (header, body) = (format!("x-marker: header-{marker}"), format!("body-{marker}"));
    let seen = world.curl(client, &["-H", &header, "--data", &body, &url]);
    assert!(seen.contains(&format!("header-{marker}")), "HTTP/1.1 did not arrive: {seen}");

    let url = format!("http://{}:8081/say?text={marker}", address("web"));
    assert_eq!(world.curl(client, &["--http2-prior-knowledge", &url]), format!("said {marker}\n"), "HTTP/2 did not arrive");

    let words = format!("tcp {marker}");
    let echoed = world.peer(client, &["raw.py", "talk", &address("tcp"), "7000", &words]);
    assert_eq!(echoed["data"], words, "TCP did not arrive: {echoed}");
}
