//! Whoever is slow is waited for a bounded time: a control plane, a peer that opens a connection, a peer that one is opened to. The
//! others do not wait, and nothing goes in the clear meanwhile.

use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::json;
use weft_tests::{PATIENCE, World, contains, eventually, require};

const CLIENT: &str = "shop/client";
const INTRUDER: &str = "outside/intruder";
const MARKER: &str = "weft-marker-slow-51d0";
/// What the unmeshed say, so that the test can fail.
const PLAIN: &str = "weft-marker-plain-51d0";
/// A record of application data (RFC 8446, section 5.1).
const TLS_RECORD: &[u8] = &[0x17, 0x03, 0x03];

/// The status of a GET with weft's own reason behind it, and how long it took.
#[track_caller]
fn timed(world: &World, url: &str) -> (String, Duration) {
    let said = "%{time_total} %{http_code} %header{weft-error}";
    let output = world.exec(CLIENT, &["curl", "-sS", "--max-time", "10", "-o", "/dev/null", "-w", said, url]).good();
    let (seconds, status) = output.split_once(' ').expect("two words at least");
    (status.trim().to_owned(), Duration::from_secs_f64(seconds.parse().expect("curl writes seconds")))
}

/// What becomes of a text that is sent to a port.
fn talk(world: &World, host: &str, port: &str) -> String {
    let answer = world.peer(CLIENT, &["raw.py", "talk", host, port, MARKER]);
    answer["outcome"].as_str().expect("an outcome").to_owned()
}

const RELAYED: &str = r#"
workloads:
- {name: known, namespace: shop, command: ["@PYTHON@", "@PEERS@/http_peer.py", "8090"], ports: [{port: 8090}]}
- {name: new, namespace: shop, command: ["@PYTHON@", "@PEERS@/http_peer.py", "8090"], ports: [{port: 8090}]}
- {name: newer, namespace: shop, command: ["@PYTHON@", "@PEERS@/http_peer.py", "8090"], ports: [{port: 8090}]}
- {name: raw, namespace: shop, command: ["@PYTHON@", "@PEERS@/tcp_peer.py", echo, "7000"], ports: [{port: 7000}]}
- {name: client, namespace: shop, command: [sleep, infinity]}
- {name: intruder, namespace: outside, sidecar: false, command: [sleep, infinity]}
"#;
/// The way to the control plane leads through a relay that delays.
const RELAY: &str = r#"
'@PYTHON@' '@PEERS@/relay.py' 4701 10.47.0.1 4700 '@WORK@/delay' &
for word; do
    shift
    case $word in --control-plane=*) word=--control-plane=127.0.0.1:4701 ;; esac
    set -- "$@" "$word"
done
exec @SIDECAR@ "$@"
"#;

/// Sets how long each piece to or from the control plane takes, in milliseconds.
fn set_delay(work: &Path, millis: u32) {
    fs::write(work.join("delay.new"), millis.to_string()).expect("written");
    fs::rename(work.join("delay.new"), work.join("delay")).expect("renamed");
}

#[test]
fn a_slow_control_plane_holds_up_new_destinations_alone() {
    require(&["curl"]);
    let world = World::up_with_sidecar(RELAYED, RELAY, |work| set_delay(work, 0));
    let (mut capture, file) = world.capture();
    let url = |name: &str| format!("http://{}:8090/seen?{MARKER}", world.service(&format!("shop/{name}")));
    assert_eq!(timed(&world, &url("known")).0, "200");
    let at_once = |round_trip: Duration| {
        let ask = || {
            let (status, took) = timed(&world, &url("known"));
            assert_eq!(status, "200", "what is known needs no control plane");
            took
        };
        let fastest = (0..5).map(|_| ask()).min().expect("five");
        assert!(fastest < round_trip / 2, "what is known waited for the control plane: {fastest:?}");
    };

    set_delay(&world.work(), 300);
    at_once(Duration::from_millis(600));
    let (status, took) = timed(&world, &url("new"));
    assert_eq!(status, "200", "an answer that comes within a second is waited for");
    assert!(took >= Duration::from_millis(590), "it came too soon to be the control plane's: {took:?}");

    set_delay(&world.work(), 700);
    let (status, took) = timed(&world, &url("newer"));
    assert_eq!(status, "503 discovery-unavailable", "what takes longer is not guessed");
    assert!(took >= Duration::from_millis(990), "it was given up too soon: {took:?}");
    assert_eq!(talk(&world, &world.service("shop/raw"), "7000"), "reset", "nor is it over TCP");
    at_once(Duration::from_millis(1400));
    eventually("the answer has come after all", || (timed(&world, &url("newer")).0 == "200").then_some(()));

    // Frames come in order: when the last words are there, everything is.
    let plain = format!("http://{}:8090/seen?{PLAIN}", world.address("shop/known-0"));
    assert_eq!(world.status(INTRUDER, &plain), "200");
    let frames =
        eventually("the capture has the last words", || fs::read(&file).ok().filter(|frames| contains(frames, PLAIN.as_bytes())));
    capture.stop();
    assert!(!contains(&frames, MARKER.as_bytes()), "something was in the clear while the control plane was slow");
    assert!(contains(&frames, TLS_RECORD), "there are no TLS records at all");
}

const PEERS: &str = r#"
namespaces:
  shop: {mtls: strict}
workloads:
- name: app
  namespace: shop
  labels: {app: app, half: "yes"}
  command: ["@PYTHON@", "@PEERS@/http_peer.py", "8090"]
  ports: [{port: 8090}]
- name: mute
  namespace: shop
  sidecar: false
  labels: {app: mute, half: "yes"}
  command: ["@PYTHON@", "@PEERS@/tcp_peer.py", mute, "8090", "@WORK@/mute"]
  ports: [{port: 8090}]
- name: loud
  namespace: shop
  sidecar: false
  command: ["@PYTHON@", "@PEERS@/tcp_peer.py", banner, "8090"]
  ports: [{port: 8090}]
- {name: client, namespace: shop, command: [sleep, infinity]}
- {name: intruder, namespace: outside, sidecar: false, command: [sleep, infinity]}
services:
- {name: app, namespace: shop, ports: [{port: 8090}]}
- {name: mute, namespace: shop, ports: [{port: 8090}]}
- {name: loud, namespace: shop, ports: [{port: 8090}]}
- {name: half, namespace: shop, selector: {half: "yes"}, ports: [{port: 8090}]}
"#;
const SIDECAR: &str = r#"
export WEFT_CONNECT_TIMEOUT=500ms
exec @SIDECAR@ "$@"
"#;
const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);
/// Attempts for one request, each of which may take the connect timeout.
const ATTEMPTS: u32 = 3;
/// What a sidecar gives a peer for its part of a handshake, and some more on a busy machine.
const HANDSHAKE: f64 = 10.0 + 5.0;
/// What a sidecar may have resident with slow peers, in KiB.
const MEMORY: u64 = 60 * 1024;

#[test]
fn a_peer_that_is_slow_in_the_handshake_holds_nobody_else_up() {
    require(&["curl"]);
    let world = World::up_with_sidecar(PEERS, SIDECAR, |_| {});
    peers_that_dial(&world);
    for name in ["mute", "loud"] {
        claim_sidecar(&world, name);
    }
    a_peer_that_says_nothing(&world);
    // Bytes that are no TLS are an answer, and not a reason to speak otherwise.
    assert_eq!(
        world.status(CLIENT, &format!("http://loud:8090/{MARKER}")),
        "502 upstream-tls",
        "a peer that speaks something else"
    );
}

/// Sixty connections that are never done with their handshake are closed in time, and the others are served meanwhile.
fn peers_that_dial(world: &World) {
    let app = world.address("shop/app-0");
    let mut slow = world.spawn_peer(INTRUDER, &["hostile.py", "slow", &app, "8090", "20"]);
    let mut served = 0;
    while slow.ended().is_none() {
        assert_eq!(world.status(CLIENT, "http://app:8090/name"), "200", "others, beside peers that are slow");
        let memory = world.memory("shop/app-0");
        assert!(memory < MEMORY, "the sidecar has {memory} KiB beside peers that are slow");
        served += 1;
    }
    assert!(served > 10, "others were served {served} times only");
    let ends = slow.wait(PATIENCE).json();
    let ends = ends.as_array().expect("an end for each connection");
    assert_eq!(ends.len(), 60);
    for end in ends {
        assert!(end[1] == "reset" || end[1] == "closed", "a connection was not closed: {end}");
        assert!(end[2].as_f64().is_some_and(|seconds| seconds < HANDSHAKE), "a connection was closed too late: {end}");
    }
}

/// Has the control plane say that a workload has a sidecar, which it has not.
fn claim_sidecar(world: &World, name: &str) {
    world.edit_manifest(&format!("pod-shop-{name}-0.json"), |pod| {
        pod["spec"]["containers"].as_array_mut().expect("a pod has containers").push(json!({"name": "weft-sidecar"}));
    });
    let address = world.service(&format!("shop/{name}"));
    // To dial a port that it does not have is to ask for a service, and to say nothing to its endpoints.
    assert_eq!(world.status(CLIENT, &format!("http://{address}:1/")), "502 no-such-port");
    eventually("the client takes it for a mesh peer", || {
        let config = world.config("shop/client-0");
        config["addresses"][&address]["endpoints"][0]["reach"].as_str()?.starts_with("Mesh").then_some(())
    });
}

/// It accepts connections, and never answers in TLS.
fn a_peer_that_says_nothing(world: &World) {
    let (status, took) = timed(world, &format!("http://mute:8090/{MARKER}"));
    assert_eq!(status, "504 upstream-connect-timeout");
    assert!(took >= CONNECT_TIMEOUT && took < ATTEMPTS * CONNECT_TIMEOUT + Duration::from_secs(2), "it took {took:?}");
    let own = format!("http://{}:8090/{MARKER}", world.address("shop/mute-0"));
    assert_eq!(timed(world, &own).0, "504 upstream-connect-timeout", "by its own address");
    let said = "%{http_code} %header{weft-error}";
    let url = format!("http://mute:8090/{MARKER}");
    let http2 = ["--http2-prior-knowledge", "-o", "/dev/null", "-w", said, url.as_str()];
    assert_eq!(world.curl(CLIENT, &http2), "504 upstream-connect-timeout", "over HTTP/2");
    assert_eq!(talk(world, "mute", "8090"), "reset", "over TCP");

    // Where there is another endpoint, nobody notices but by the time that it takes.
    let answers = world.curl(CLIENT, &["--fail", &format!("http://half:8090/name?n=[1-20]&{MARKER}")]);
    assert_eq!(answers, "app-0\n".repeat(20));
    let echoed = world.curl(CLIENT, &["--fail", "--data", MARKER, "http://half:8090/echo?n=[1-4]"]);
    assert_eq!(echoed, MARKER.repeat(4), "a body that was not begun is sent elsewhere");

    let heard = fs::read(world.work().join("mute")).expect("it has heard something");
    assert!(heard.starts_with(&[0x16, 0x03]), "what it heard begins with no TLS handshake: {:x?}", &heard[..heard.len().min(16)]);
    assert!(!contains(&heard, MARKER.as_bytes()), "something was said in the clear to a peer that never answered in TLS");
}
