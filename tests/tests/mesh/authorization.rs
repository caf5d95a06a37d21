//! A strict shop in which nobody may do anything but what a policy allows: from the manifest to what real programs see.

use std::fs;
use std::path::Path;

use serde_json::Value;
use weft_tests::{World, eventually, require};

const MESH: &str = r#"
mtls: strict
defaultPolicy: deny
manifests: ["@WORK@/policies.yaml"]
workloads:
- {name: cart, namespace: shop, command: ["@PYTHON@", "@PEERS@/http_peer.py", "8090"], ports: [{port: 8090}]}
- {name: cache, namespace: shop, command: [redis-server, --port, "6379", --save, "", --protected-mode, "no"], ports: [{port: 6379, protocol: tcp}]}
- {name: web, namespace: shop, command: [sleep, infinity]}
- {name: job, namespace: batch, command: [sleep, infinity]}
- {name: intruder, namespace: outside, sidecar: false, command: [sleep, infinity]}
"#;

const WEB: &str = "shop/web";
const JOB: &str = "batch/job";

/// `web` may read what is below `/name` and `/seen` of the cart, and use the cache.
const POLICIES: &str = r#"
apiVersion: weft.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: cart, namespace: shop}
spec:
  targetRef: {group: "", kind: Service, name: cart}
  action: Allow
  rules: [{from: [{serviceAccounts: [shop/web]}], to: [{methods: [GET], paths: ["/name", "/seen/*"]}]}]
---
apiVersion: weft.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: cache, namespace: shop}
spec:
  targetRef: {group: "", kind: Service, name: cache}
  action: Allow
  rules: [{from: [{principals: ["spiffe://cluster.local/ns/shop/sa/web"]}]}]
"#;

/// Writes the manifests that the world follows, at once.
fn put(work: &Path, text: &str) {
    let (file, temporary) = (work.join("policies.yaml"), work.join(".policies.new"));
    fs::write(&temporary, text).expect("the directory is ours");
    fs::rename(&temporary, &file).expect("the directory is ours");
}

#[test]
fn a_shop_that_denies_by_default_serves_what_a_policy_allows() {
    require(&["curl", "redis-cli", "redis-server"]);
    let world = World::up_with(MESH, |work| put(work, POLICIES));
    requests(&world);
    reasons(&world);
    bytes(&world);
    changed_live(&world);
}

/// What curl is answered for a path of the cart: status, weft's reason, and the reference.
fn ask(world: &World, from: &str, arguments: &[&str]) -> (String, String) {
    let said = "%{http_code} %header{weft-error}|%header{weft-ref}";
    let mut words = vec!["--path-as-is", "-o", "/dev/null", "-w", said];
    words.extend(arguments);
    let text = world.curl(from, &words);
    let (status, reference) = text.split_once('|').expect("both are written");
    (status.trim_end().to_owned(), reference.to_owned())
}

fn requests(world: &World) {
    let url = |path: &str| format!("http://cart.shop:8090{path}");
    assert_eq!(ask(world, WEB, &[&url("/name")]).0, "200", "what the policy allows");
    // This application compares paths as they come, and has none of this spelling.
    assert_eq!(
        ask(world, WEB, &[&url("/%6eame")]).0,
        "404",
        "the same path written otherwise is let in, and arrives as it was written"
    );
    assert_eq!(ask(world, WEB, &[&url("/seen")]).0, "200", "a prefix is below itself");
    for (what, from, arguments) in [
        ("another caller", JOB, vec![url("/name")]),
        ("another path", WEB, vec![url("/paths")]),
        ("another method", WEB, vec![url("/name"), "-XPOST".to_owned()]),
        ("a path that leads out", WEB, vec![url("/seen/../paths")]),
        ("the same, encoded", WEB, vec![url("/seen/%2e%2e/paths")]),
        ("the same, with an encoded slash", WEB, vec![url("/seen/..%2fpaths")]),
        ("the same, encoded twice", WEB, vec![url("/seen/%252e%252e/paths")]),
        ("parameters", WEB, vec![url("/seen/..;/paths")]),
        ("doubled slashes", WEB, vec![url("/seen//x")]),
    ] {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let (status, reference) = ask(world, from, &arguments);
        assert_eq!(status, "403 denied", "{what}");
        assert!(reference.len() == 16 && reference.bytes().all(|b| b.is_ascii_hexdigit()), "{what}: {reference:?}");
    }
    let plain = format!("http://{}:8090/name", world.address("shop/cart-0"));
    let (status, reference) = ask(world, "outside/intruder", &[&plain]);
    assert_eq!(status, "403 mtls-required", "plaintext is not asked who it is");
    let why = why(world, &reference);
    let intruder = world.address("outside/intruder-0");
    assert_eq!(
        (&why["cause"], &why["peer"], &why["source"]),
        (&"mtls-required".into(), &"plaintext".into(), &intruder.into()),
        "{why:#}"
    );
    assert!(why["remedy"].as_str().is_some_and(|text| text.contains("mutual TLS") && text.contains("MtlsPolicy")), "{why:#}");
}

/// What `weft why` says of a reference; or, with options in its place, of the last refusals.
#[track_caller]
fn why(world: &World, asked: &str) -> Value {
    let output = world.shell(&format!("weft why -o json {asked}")).output().expect("weft runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// An operator finds out by the reference; a caller does not.
fn reasons(world: &World) {
    let (_, reference) = ask(world, WEB, &["-XPOST", "http://cart.shop:8090/name"]);
    let said = world.curl(WEB, &["-XPOST", "http://cart.shop:8090/name"]);
    assert!(said.starts_with("weft: denied: ") && !said.contains("shop/cart") && !said.contains("GET"), "{said}");
    let why = why(world, &reference);
    assert_eq!((&why["peer"], &why["method"]), (&"spiffe://cluster.local/ns/shop/sa/web".into(), &"POST".into()), "{why:#}");
    let remedy = why["remedy"].as_str().expect("what would have allowed it");
    assert!(remedy.contains("ALLOW shop/cart rule 0") && remedy.contains("methods GET"), "{remedy}");
}

fn bytes(world: &World) {
    let ping = |from: &str| world.exec(from, &["redis-cli", "-h", "cache.shop", "ping"]);
    assert_eq!(ping(WEB).stdout.trim(), "PONG", "what the policy allows");
    let refused = world.peer(JOB, &["raw.py", "talk", "cache.shop", "6379", "PING\r\n"]);
    assert_eq!(refused["outcome"], "reset", "another caller: {refused}");
    // A reset carries no reference: the refusal is in the list.
    let told = why(world, "-n shop");
    let last = told["denials"].as_array().and_then(|all| all.iter().find(|one| one["protocol"] == "tcp")).expect("it is listed");
    assert_eq!(
        (&last["sidecar"], &last["port"], &last["cause"]),
        (&"shop/cache-0".into(), &6379.into(), &"none-allows".into()),
        "{told:#}"
    );
    assert_eq!(last["peer"], "spiffe://cluster.local/ns/batch/sa/job", "{told:#}");
    assert_eq!(last["source"], world.address("batch/job-0"), "{told:#}");
    // A clause about HTTP, on a port that carries none.
    put(&world.work(), &POLICIES.replace(r#"sa/web"]}]}]"#, r#"sa/web"]}], to: [{methods: [GET]}]}]"#));
    eventually("bytes that cannot be judged are denied", || {
        let answer = world.peer(WEB, &["raw.py", "talk", "cache.shop", "6379", "PING\r\n"]);
        (answer["outcome"] == "reset").then_some(())
    });
    put(&world.work(), POLICIES);
    eventually("the cache is back", || (ping(WEB).stdout.trim() == "PONG").then_some(()));
}

/// A policy that goes takes what it let in with it.
fn changed_live(world: &World) {
    let open = world.spawn_peer(WEB, &["raw.py", "wait", "cache.shop", "6379", "PING\r\n"]);
    eventually("the connection is used", || open.stderr().contains("+PONG").then_some(()));
    let without = POLICIES.split("---").next().expect("the first of both");
    put(&world.work(), without);
    let ended = open.wait(weft_tests::PATIENCE).json();
    assert_eq!(ended["outcome"], "reset", "a connection that was open: {ended}");
    assert_eq!(ask(world, WEB, &["http://cart.shop:8090/name"]).0, "200", "the other policy is in force as before");
    put(&world.work(), &without.replace("Allow", "Deny"));
    eventually("a DENY comes first", || (ask(world, WEB, &["http://cart.shop:8090/name"]).0 == "403 denied").then_some(()));
}
