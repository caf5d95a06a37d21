//! Bad input from a workload that is not in the mesh. Whatever it does ends in a bounded way, reaches no application that it
//! should not, and leaves the sidecar serving the others in bounded memory.

use std::fs;

use serde_json::Value;
use weft_certs::{Authority, LeafKind, LeafSpec};
use weft_tests::{Running, World, eventually};

const MESH: &str = r#"
workloads:
- {name: app, namespace: open, command: ["@PYTHON@", "@PEERS@/http_peer.py", "8090"], ports: [{port: 8090}]}
- {name: client, namespace: open, command: [sleep, infinity]}
- {name: intruder, namespace: outside, sidecar: false, command: [sleep, infinity]}
"#;
const INTRUDER: &str = "outside/intruder";
/// What a sidecar may have resident under attack, in KiB.
const MEMORY: u64 = 60 * 1024;
/// Types of TLS records (RFC 8446, section 5.1).
const HANDSHAKE: u64 = 22;

struct Lab {
    world: World,
    app: String,
}

impl Lab {
    /// What an attack says of itself, once it is clear that the others are still served.
    #[track_caller]
    fn attack(&self, command: &str) -> Value {
        let outcome = self.world.peer(INTRUDER, &["hostile.py", command, &self.app, "8090"]);
        self.others_are_served(command);
        outcome
    }

    /// Starts an attack that holds what it has.
    #[track_caller]
    fn hold(&self, command: &str, count: &str) -> Running {
        let held = self.world.spawn_peer(INTRUDER, &["hostile.py", command, &self.app, "8090", count]);
        eventually(&format!("{command} holds {count}"), || held.stdout().contains(count).then_some(()));
        held
    }

    #[track_caller]
    fn others_are_served(&self, during: &str) {
        assert_eq!(self.world.status("open/client", "http://app:8090/name"), "200", "others, with {during}");
        let memory = self.world.memory("open/app-0");
        assert!(memory < MEMORY, "the sidecar has {memory} KiB with {during}");
    }

    /// Every path that the application was asked for.
    fn paths(&self) -> Vec<String> {
        let paths = self.world.exec("open/client", &["curl", "-sS", "http://app:8090/paths"]).json();
        paths.as_array().into_iter().flatten().filter_map(Value::as_str).map(ToOwned::to_owned).collect()
    }
}

#[test]
fn whatever_comes_in_ends_in_a_bounded_way_and_the_others_are_served() {
    let world = World::up_with(MESH, |work| certificates(&work.join("certificates")));
    let app = world.address("open/app-0");
    let lab = Lab { world, app };
    first_bytes(&lab);
    ambiguous_requests(&lab);
    too_much(&lab);
    frames(&lab);
    connections(&lab);
    impostors(&lab);
}

fn first_bytes(lab: &Lab) {
    assert_eq!(lab.attack("drip"), "HTTP/1.1 200 OK", "one byte at a time is slow, and nothing else");
    assert_eq!(lab.attack("hello_split"), HANDSHAKE, "a ClientHello in pieces is one");
    assert_eq!(lab.attack("hello_long"), HANDSHAKE, "a ClientHello of more than 16 KiB is one");
    assert_ne!(lab.attack("hello_truncated"), "silent", "half a ClientHello");
    let garbage = lab.attack("garbage");
    let ends: Vec<&Value> = garbage.as_array().into_iter().flatten().collect();
    assert!(ends.len() == 5 && ends.iter().all(|end| **end != "silent"), "garbage: {garbage}");
}

fn ambiguous_requests(lab: &Lab) {
    for command in ["smuggle", "chunks"] {
        let outcome = lab.attack(command);
        let shapes = outcome.as_object().expect("an outcome for each shape");
        let taken: Vec<_> = shapes.iter().filter(|(_, answer)| **answer != serde_json::json!(["400", "bad-request"])).collect();
        assert!(taken.is_empty(), "{command}: not refused as they should be: {taken:?}");
    }
    let smuggled: Vec<String> = lab.paths().into_iter().filter(|path| path.contains("smuggle")).collect();
    assert!(smuggled.is_empty(), "these reached the application: {smuggled:?}");
}

fn too_much(lab: &Lab) {
    let outcome = lab.attack("limits");
    for (what, answer) in
        [("target", ["414", "uri-too-long"]), ("field", ["431", "headers-too-large"]), ("fields", ["431", "headers-too-large"])]
    {
        assert_eq!(outcome[what], serde_json::json!(answer), "{what}: {outcome}");
    }
}

fn frames(lab: &Lab) {
    // Borne or cut off, as the balance of the two sides falls: the others and the memory decide.
    for command in ["rapid_reset", "settings"] {
        let outcome = lab.attack(command);
        assert!(outcome.is_string(), "{command}: {outcome}");
    }
    for command in ["continuations", "window"] {
        let outcome = lab.attack(command);
        assert!(outcome != "open", "{command}: the connection goes on");
    }
}

fn connections(lab: &Lab) {
    let mut idle = lab.hold("idle", "300");
    lab.others_are_served("300 connections that say nothing");
    idle.stop();

    let mut slow = lab.hold("slow_read", "16");
    // The first few megabytes may take a moment to pile up wherever they can.
    for _ in 0..10 {
        lab.others_are_served("16 clients that asked for 50 MiB each and do not read");
    }
    slow.stop();
    lab.others_are_served("nothing left of all that");
}

/// A leaf of every kind from an authority that calls itself the mesh's.
fn certificates(directory: &std::path::Path) {
    fs::create_dir(directory).expect("a fresh directory takes another");
    let authority = Authority::new("cluster.local");
    for kind in LeafKind::ALL {
        let leaf = authority.leaf(&LeafSpec::new(kind, "spiffe://cluster.local/ns/open/sa/client").with_pod("open/client-0"));
        fs::write(directory.join(format!("{kind}.pem")), leaf.chain_pem()).expect("written");
        fs::write(directory.join(format!("{kind}.key")), leaf.key_pem()).expect("written");
    }
}

fn impostors(lab: &Lab) {
    let directory = lab.world.work().join("certificates");
    let directory = directory.to_string_lossy();
    let outcome = lab.world.peer(INTRUDER, &["hostile.py", "certificates", lab.app.as_str(), "8090", &*directory]);
    let attempts = outcome.as_object().expect("an outcome for each certificate");
    assert_eq!(attempts.len(), LeafKind::ALL.len() + 2, "one of each kind, none at all, and TLS 1.2: {outcome}");
    for (kind, end) in attempts {
        assert_ne!(end, "answered", "{kind} was let in");
    }
    let reached: Vec<String> = lab.paths().into_iter().filter(|path| path.contains("certificate")).collect();
    assert!(reached.is_empty(), "these reached the application: {reached:?}");
    lab.others_are_served("impostors");
}
