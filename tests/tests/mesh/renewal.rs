//! A certificate that cannot be renewed: it stays in use, whoever operates the mesh is told since when, and the next success ends that. And what the
//! kernel is told of processes that hold keys.

use nix::sys::resource::{Resource, getrlimit};
use nix::unistd::Pid;
use serde_json::Value;
use weft_core::wellknown::PORT_CONTROL_PLANE;
use weft_tests::{PATIENCE, Running, World, eventually, require};

const MESH: &str = r#"
workloads:
- {name: app, namespace: shop, command: ["@PYTHON@", "@PEERS@/http_peer.py", "8090"], ports: [{port: 8090}]}
- {name: client, namespace: shop, command: [sleep, infinity]}
"#;
const APP: &str = "shop/app-0";
const CLIENT: &str = "shop/client";
const FAILING: &str = "weft_certificate_renewal_failing_since_seconds";

#[test]
fn a_renewal_that_keeps_failing_is_told_and_stops_nothing() {
    require(&["nft"]);
    let world = World::up(MESH);
    memory_is_private(&world);
    expiries_are_told(&world);
    renewal_fails_and_is_told(&world);
}

fn weft(world: &World, words: &str) -> Running {
    Running::start(world.shell(&format!("weft {words}")))
}

/// Core files: see core(5) for what a limit of one byte does.
fn memory_is_private(world: &World) {
    let limit = |pid: Pid| {
        let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).expect("the process runs");
        let line = limits.lines().find(|line| line.starts_with("Max core file size")).expect("a limit").to_owned();
        line.split_whitespace().skip(4).take(2).map(str::to_owned).collect::<Vec<_>>()
    };
    // A limit of 0 cannot be raised by just anybody.
    let most = getrlimit(Resource::RLIMIT_CORE).expect("a limit").1.min(1).to_string();
    for pid in [world.sidecar(APP), world.control_plane()] {
        assert_eq!(limit(pid), [&*most, &*most], "{pid}");
    }
}

/// The metrics of a sidecar.
fn metrics(world: &World, replica: &str) -> String {
    let (status, text) = world.ask(world.sidecar(replica), "GET", "/metrics").expect("the sidecar answers");
    assert_eq!(status, 200);
    text
}

/// The value of a metric of which there is one series.
fn value(text: &str, name: &str) -> f64 {
    let found = text.lines().filter(|line| line.split(['{', ' ']).next() == Some(name)).find_map(|line| line.rsplit(' ').next());
    found.and_then(|value| value.trim().parse().ok()).unwrap_or_else(|| panic!("there is no {name}: {text}"))
}

/// When certificates end, by metrics.
fn expiries_are_told(world: &World) {
    let text = metrics(world, APP);
    let day = 24.0 * 3600.0;
    assert!((day - 600.0..=day).contains(&value(&text, "weft_certificate_expiry_seconds")), "{text}");
    let ends = world.config(APP)["certificate"]["not_after"].as_i64().expect("a time") as f64;
    assert!((value(&text, "weft_certificate_not_after_seconds") - ends).abs() < 1.0);
    assert!(value(&text, "weft_certificate_anchor_not_after_seconds") > ends);
    assert!(value(&text, FAILING).abs() < 1.0);
}

/// What `weft status` says of a replica.
fn told(world: &World, replica: &str) -> Option<Value> {
    let (namespace, pod) = replica.split_once('/')?;
    let status: Value = serde_json::from_str(&weft(world, "status -o json").wait(PATIENCE).good()).ok()?;
    let found = status["workloads"].as_array()?.iter().find(|w| w["namespace"] == namespace && w["pod"] == pod)?.clone();
    Some(found["sidecar"].clone())
}

/// The root is to be replaced, and so every sidecar is asked for a renewal. One of them gets no new connection to the control plane, and keeps the old.
fn renewal_fails_and_is_told(world: &World) {
    let rules = |words: &str| {
        let all: Vec<&str> = ["nft"].into_iter().chain(words.split(' ')).collect();
        world.lab(&all).wait(PATIENCE).good();
    };
    let certificate = || world.config(APP)["certificate"]["serial"].as_str().expect("a serial number").to_owned();
    let before = certificate();
    rules("add table bridge renewal");
    rules("add chain bridge renewal input { type filter hook input priority 0 ; }");
    let address = world.address(APP);
    rules(&format!("add rule bridge renewal input ip saddr {address} tcp dport {PORT_CONTROL_PLANE} tcp flags == syn drop"));
    weft(world, "trust rotate").wait(PATIENCE).good();

    let since =
        eventually("that renewal fails is told", || told(world, APP)?["renewalFailingSince"].as_i64().filter(|since| *since > 0));
    let failures = || world.log().matches("renewal failed, the certificate stays in use").count();
    let so_far = failures();
    for _ in 0..2 {
        assert_eq!(world.status(CLIENT, "http://app:8090/name"), "200", "the certificate that is there is good");
    }
    // Each attempt takes as long as a connection may.
    eventually("it is tried again", || (failures() > so_far).then_some(()));
    assert_eq!(told(world, APP).expect("it is connected")["renewalFailingSince"].as_i64(), Some(since), "the time of the first");
    assert!((value(&metrics(world, APP), FAILING) - since as f64).abs() < 1.0);
    assert_eq!(certificate(), before);
    let text = weft(world, "status").wait(PATIENCE).good();
    assert!(text.contains(&format!("{APP}: its certificate can't be renewed for ")), "{text}");
    assert_eq!(
        told(world, "shop/client-0").expect("it is connected")["renewalFailingSince"].as_i64(),
        Some(0),
        "another's goes well"
    );

    rules("delete table bridge renewal");
    eventually("it is renewed", || (certificate() != before).then_some(()));
    assert!(value(&metrics(world, APP), FAILING).abs() < 1.0);
    eventually("that it goes well again is told", || {
        (told(world, APP)?["renewalFailingSince"].as_i64() == Some(0)).then_some(())
    });
    assert_eq!(world.status(CLIENT, "http://app:8090/name"), "200");
}
