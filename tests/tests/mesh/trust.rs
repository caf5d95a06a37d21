//! The root is replaced while traffic runs: nothing fails, every step waits for its evidence, says who is missing, survives the control plane's
//! end, and can be undone.

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use weft_tests::{PATIENCE, Running, World, eventually, require_modules};

const MESH: &str = r#"
workloads:
- name: app
  namespace: shop
  replicas: 2
  command: "'@PYTHON@' '@PEERS@/http_peer.py' 8090 & '@PYTHON@' '@PEERS@/tcp_peer.py' echo 7000 & exec '@PYTHON@' '@PEERS@/grpc_server.py' 50051"
  ports: [{port: 8090}, {port: 7000}, {port: 50051}]
  health: {tcp: 50051}
- {name: client, namespace: shop, command: [sleep, infinity]}
- {name: idle, namespace: shop, command: [sleep, infinity]}
"#;
/// Those that traffic goes through.
const BUSY: [&str; 3] = ["shop/app-0", "shop/app-1", "shop/client-0"];
const IDLE: &str = "shop/idle-0";

#[test]
fn the_root_is_replaced_under_load_and_nothing_fails() {
    require_modules(&["grpc"]);
    let world = World::up(MESH);
    let first = only_anchor(&trust(&world, "status"));
    // By its address, since names end with the control plane.
    let traffic = world.spawn_peer("shop/client", &["traffic.py", &world.service("shop/app")]);
    goes_on(&traffic);

    // What fails in a handshake is sent again, so that nobody would see it.
    let before = failed_handshakes(&world);
    let second = rotated(&world, &traffic, &first);
    aborted(&world, &traffic, &second);
    assert_eq!(failed_handshakes(&world), before, "requests were sent again, or refused, while the root was replaced");
    let third = without_one_and_with_a_restart(&world, &traffic, &second);
    assert!(first != second && second != third && first != third);

    let failures = traffic.finish(PATIENCE).json();
    assert_eq!(failures, json!([]), "requests failed while the root was replaced");
}

/// A rotation as a person does it; gives the new anchor.
fn rotated(world: &World, traffic: &Running, old: &str) -> String {
    let status = trust(world, "rotate --wait --timeout 60s");
    assert_eq!((&status["phase"], &status["missingTotal"]), (&json!("reissuing"), &json!(0)), "{status:#}");
    let new = new_anchor(&status);
    let [before, after] = [0, 1].map(|i| status["anchors"][i].clone());
    assert_eq!((&before["hash"], &before["servedBy"], &before["issuing"]), (&json!(old), &json!(0), &json!(false)), "{status:#}");
    assert_eq!((&after["servedBy"], &after["issuing"]), (&json!(4), &json!(true)), "{status:#}");
    for replica in BUSY.into_iter().chain([IDLE]) {
        let config = world.config(replica);
        assert_eq!(config["certificate"]["anchor"], new, "what {replica} says of itself: {config:#}");
        assert_eq!(config["anchors"]["cluster.local"], json!([old, new]), "both are trusted");
    }
    goes_on(traffic);

    assert_eq!(only_anchor(&trust(world, "finish")), new);
    all_trust(world, &new);
    goes_on(traffic);
    let kept = run(world, "ls \"$WEFT_RUN_DIR/state/ca\"").wait(PATIENCE).good();
    assert!(
        kept.contains("trust.json") && !kept.contains(".key") && !kept.contains(".pem"),
        "the old root's keys are gone: {kept}"
    );
    let (refused, again) = (fails(world, "finish"), fails(world, "abort"));
    assert!(refused.contains("no rotation is under way") && again.contains("no rotation is under way"), "{refused}{again}");

    // Certificates of the new root are what a restart of a sidecar begins with.
    let sidecar = world.sidecar(IDLE);
    world.signal(sidecar, Signal::SIGKILL);
    world.next_sidecar(IDLE, sidecar);
    assert_eq!(world.config(IDLE)["certificate"]["anchor"], new);
    new
}

/// A rotation that is undone when every certificate is of the new root already.
fn aborted(world: &World, traffic: &Running, old: &str) {
    let status = trust(world, "rotate --wait --timeout 60s");
    assert_eq!(status["phase"], "reissuing", "{status:#}");
    let refused = fails(world, "rotate");
    assert!(refused.contains("a rotation is under way already"), "{refused}");
    goes_on(traffic);
    let settled = trust(world, "abort --wait --timeout 60s");
    assert_eq!((settled["phase"].as_str(), only_anchor(&settled).as_str()), (Some("settled"), old));
    all_trust(world, old);
    for replica in BUSY {
        assert_eq!(world.config(replica)["certificate"]["anchor"], old);
    }
    goes_on(traffic);
}

/// A rotation with a sidecar that says nothing, and a control plane that ends in the middle of it.
fn without_one_and_with_a_restart(world: &World, traffic: &Running, old: &str) -> String {
    let silent = world.sidecar(IDLE);
    world.signal(silent, Signal::SIGSTOP);
    let new = new_anchor(&trust(world, "rotate"));
    let only_idle_is_missing = |phase: &str| {
        eventually(&format!("{IDLE} alone is missing while it is {phase}"), || {
            let status = try_trust(world, "status")?;
            let missing = status["missing"].as_array()?;
            (status["phase"] == phase && missing.len() == 1 && missing[0]["name"] == IDLE).then_some(())
        });
    };
    only_idle_is_missing("spreading");
    assert!(fails(world, "finish").contains("the new root does not issue yet"));
    goes_on(traffic);

    let control_plane = world.control_plane();
    world.signal(control_plane, Signal::SIGKILL);
    eventually("another control plane runs", || (!world.runs(control_plane)).then_some(()));
    only_idle_is_missing("spreading");
    let misspelt = fails(world, "rotate --give-up shop/idle-1");
    assert!(misspelt.contains("shop/idle-1 is not among those who are missing"), "{misspelt}");
    let text = run(world, &format!("weft trust rotate --give-up {IDLE} --wait --timeout 60s")).wait(PATIENCE * 4).good();
    assert!(text.contains("phase: reissuing") && text.contains(&format!("given up: {IDLE}")), "{text}");
    goes_on(traffic);
    assert_eq!(only_anchor(&trust(world, "finish --wait")), new);
    all_trust_of(world, &BUSY, &new);
    goes_on(traffic);

    // It knows the old root alone, and so the control plane no more. With a new join token the next one finds its way, whatever it has kept.
    world.signal(silent, Signal::SIGCONT);
    assert_eq!(world.config(IDLE)["certificate"]["anchor"], old);
    let token = run(world, &format!("weft token create {IDLE} --service-account idle")).wait(PATIENCE).good();
    std::fs::write(format!("/proc/{silent}/cwd/token"), token.trim()).expect("the directory is ours");
    world.signal(silent, Signal::SIGKILL);
    world.next_sidecar(IDLE, silent);
    eventually("who was given up has joined anew", || (world.config(IDLE)["certificate"]["anchor"] == new).then_some(()));
    all_trust(world, &new);
    assert_eq!(world.status("shop/idle", "http://app:8090/name"), "200");
    new
}

fn run(world: &World, line: &str) -> Running {
    Running::start(world.shell(line))
}

/// What `weft trust …` says.
#[track_caller]
fn trust(world: &World, words: &str) -> Value {
    run(world, &format!("weft trust {words} -o json")).wait(PATIENCE * 4).json()
}

/// The same, where there may be nobody to ask.
fn try_trust(world: &World, words: &str) -> Option<Value> {
    let output = run(world, &format!("weft trust {words} -o json")).wait(PATIENCE);
    output.status.success().then(|| serde_json::from_str(&output.stdout).ok())?
}

/// What it complains of.
#[track_caller]
fn fails(world: &World, words: &str) -> String {
    let output = run(world, &format!("weft trust {words}")).wait(PATIENCE);
    assert!(!output.status.success(), "weft trust {words} was granted: {}", output.stdout);
    output.stderr
}

fn only_anchor(status: &Value) -> String {
    assert_eq!((&status["phase"], status["anchors"].as_array().map(Vec::len)), (&json!("settled"), Some(1)), "{status:#}");
    hash(&status["anchors"][0])
}

fn new_anchor(status: &Value) -> String {
    let anchors = status["anchors"].as_array().expect("a list");
    hash(anchors.iter().find(|a| a["new"] == true).unwrap_or_else(|| panic!("there is no new anchor: {status:#}")))
}

fn hash(anchor: &Value) -> String {
    anchor["hash"].as_str().expect("a text").to_owned()
}

fn all_trust(world: &World, anchor: &str) {
    all_trust_of(world, &["shop/app-0", "shop/app-1", "shop/client-0", IDLE], anchor);
}

fn all_trust_of(world: &World, replicas: &[&str], anchor: &str) {
    for replica in replicas {
        eventually(&format!("{replica} trusts {anchor} alone"), || {
            (world.config(replica)["anchors"]["cluster.local"] == json!([anchor])).then_some(())
        });
    }
}

/// What the sidecars that traffic goes through have sent again, or refused because of a handshake.
fn failed_handshakes(world: &World) -> Vec<String> {
    let of = |replica: &&str| {
        let text = world.ask(world.sidecar(replica), "GET", "/metrics").expect("metrics").1;
        let counts = |line: &&str| {
            line.starts_with("weft_retries_total{") || line.starts_with("weft_refused_total{") && line.contains("tls")
        };
        let grown = |line: &&str| !line.ends_with(" 0");
        text.lines().filter(counts).filter(grown).map(str::to_owned).collect::<Vec<_>>()
    };
    let mut all: Vec<String> = BUSY.iter().flat_map(of).collect();
    all.sort();
    all
}

/// Waits until traffic of each kind has had some more success.
fn goes_on(traffic: &Running) {
    let successes = || {
        let told = traffic.stderr();
        ["http ", "grpc ", "tcp "].map(|kind| told.lines().filter(|line| line.starts_with(kind)).count())
    };
    let before = successes();
    eventually("traffic of every kind goes on", || {
        let now = successes();
        (0..now.len()).all(|kind| now[kind] >= before[kind] + 20).then_some(())
    });
}
