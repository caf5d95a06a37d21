//! NetworkPolicy from the manifest to what real programs see: at the pod that is called, at the pod that calls, and while connections are open.

use std::fs;
use std::path::Path;

use serde_json::Value;
use weft_tests::{World, eventually, require};

const MESH: &str = r#"
mtls: permissive
manifests: ["@WORK@/policies.yaml"]
workloads:
- {name: cart, namespace: shop, command: ["@PYTHON@", "@PEERS@/http_peer.py", "8090"], ports: [{name: http, port: 8090}]}
- {name: cache, namespace: shop, command: [redis-server, --port, "6379", --save, "", --protected-mode, "no"], ports: [{port: 6379, protocol: tcp}]}
- {name: web, namespace: shop, command: [sleep, infinity]}
- {name: job, namespace: batch, command: [sleep, infinity]}
- {name: bare, namespace: outside, sidecar: false, command: [sleep, infinity]}
"#;

const WEB: &str = "shop/web";
const JOB: &str = "batch/job";
const BARE: &str = "outside/bare";
const CART: &str = "http://cart.shop:8090/name";

/// `web` may call the cart, by the name of its port, and the cache; nobody else may.
const INGRESS: &str = r"
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: cart, namespace: shop}
spec:
  podSelector: {matchLabels: {app: cart}}
  ingress: [{from: [{podSelector: {matchLabels: {app: web}}}], ports: [{port: http}]}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: cache, namespace: shop}
spec:
  podSelector: {matchLabels: {app: cache}}
  ingress: [{from: [{podSelector: {matchLabels: {app: web}}}]}]
";

/// `job` may call nothing but the cache.
const EGRESS: &str = r"
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: job, namespace: batch}
spec:
  podSelector: {}
  policyTypes: [Egress]
  egress: [{to: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: shop}}, podSelector: {matchLabels: {app: cache}}}]}]
";

/// Writes the manifests that the world follows, at once.
fn put(work: &Path, text: &str) {
    let (file, temporary) = (work.join("policies.yaml"), work.join(".policies.new"));
    fs::write(&temporary, text).expect("the directory is ours");
    fs::rename(&temporary, &file).expect("the directory is ours");
}

#[test]
fn network_policies_hold_at_both_ends_and_while_connections_last() {
    require(&["curl", "redis-cli", "redis-server"]);
    let world = World::up_with(MESH, |work| put(work, INGRESS));
    ingress(&world);
    egress(&world);
    changed_live(&world);
}

/// What an operator learns of the refusal that a caller got.
fn why(world: &World, from: &str, url: &str) -> Value {
    let answered = world.curl(from, &["-o", "/dev/null", "-w", "%{http_code} %header{weft-error} %header{weft-ref}", url]);
    let (refusal, reference) = answered.rsplit_once(' ').expect("status, reason and reference");
    assert_eq!(refusal, "403 network-policy", "{from} to {url}");
    let output = world.shell(&format!("weft why -o json {reference}")).output().expect("weft runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

fn ingress(world: &World) {
    assert_eq!(world.status(WEB, CART), "200", "what the policy allows");
    let told = why(world, JOB, CART);
    let text = told["text"].as_str().expect("a sentence");
    assert!(text.starts_with("ingress from ") && text.contains("isolated by shop/cart"), "{told:#}");
    assert_eq!(
        (&told["peer"], &told["policy"]),
        (&"spiffe://cluster.local/ns/batch/sa/job".into(), &"shop/cart".into()),
        "{told:#}"
    );
    assert!(told["remedy"].as_str().is_some_and(|remedy| remedy.contains("rule 0 of shop/cart")), "{told:#}");
    // Without a sidecar the address is all that is known.
    let plain = format!("http://{}:8090/name", world.address("shop/cart-0"));
    assert_eq!(world.status(BARE, &plain), "403 network-policy");
    let bytes = world.peer(JOB, &["raw.py", "talk", "cache.shop", "6379", "PING\r\n"]);
    assert_eq!(bytes["outcome"], "reset", "{bytes}");
    assert_eq!(world.exec(WEB, &["redis-cli", "-h", "cache.shop", "ping"]).stdout.trim(), "PONG");
}

fn egress(world: &World) {
    // The cart takes everybody from here on: what is refused is refused at the caller.
    let open = INGRESS.replace("{podSelector: {matchLabels: {app: web}}}", "{namespaceSelector: {}}");
    put(&world.work(), &open);
    eventually("the job gets through", || (world.status(JOB, CART) == "200").then_some(()));
    put(&world.work(), &(open.clone() + EGRESS));
    eventually("the job is isolated", || (world.status(JOB, CART) == "403 network-policy").then_some(()));
    let told = why(world, JOB, CART);
    let text = told["text"].as_str().expect("a sentence");
    assert!(text.starts_with("egress to ") && text.contains("isolated by batch/job"), "{told:#}");
    let direct = format!("http://{}:8090/name", world.address("shop/cart-0"));
    assert_eq!(why(world, JOB, &direct)["policy"], "batch/job", "a pod's own address");
    assert_eq!(world.exec(JOB, &["redis-cli", "-h", "cache.shop", "ping"]).stdout.trim(), "PONG", "what the policy allows");
    assert_eq!(world.status(WEB, CART), "200", "another pod is not isolated");
    let bare = world.address("outside/bare-0").clone();
    let unmeshed = world.peer(JOB, &["raw.py", "talk", &bare, "9", "x"]);
    assert_eq!(unmeshed["outcome"], "reset", "somebody without a sidecar: {unmeshed}");
    let explained = world.shell("weft explain --from-pod batch/job-0 --to shop/cart:8090 -o json").output().expect("weft runs");
    let explained = String::from_utf8_lossy(&explained.stdout).into_owned();
    assert!(explained.contains("denied at the caller") && explained.contains("batch/job"), "{explained}");
}

/// A policy that comes, or goes, takes with it what is not allowed any more: at the caller, and at the called pod.
fn changed_live(world: &World) {
    let open = INGRESS.replace("{podSelector: {matchLabels: {app: web}}}", "{namespaceSelector: {}}");
    let caller = world.spawn_peer(JOB, &["raw.py", "wait", "cache.shop", "6379", "PING\r\n"]);
    eventually("the connection is used", || caller.stderr().contains("+PONG").then_some(()));
    put(&world.work(), &(open.clone() + &EGRESS.replace("app: cache", "app: cart")));
    let ended = caller.wait(weft_tests::PATIENCE).json();
    assert_eq!(ended["outcome"], "reset", "closed by the caller's policy: {ended}");

    put(&world.work(), &open);
    let ping = || world.exec(JOB, &["redis-cli", "-h", "cache.shop", "ping"]).stdout.trim() == "PONG";
    eventually("the job is free", || ping().then_some(()));
    let called = world.spawn_peer(JOB, &["raw.py", "wait", "cache.shop", "6379", "PING\r\n"]);
    eventually("the connection is used", || called.stderr().contains("+PONG").then_some(()));
    put(&world.work(), INGRESS);
    let ended = called.wait(weft_tests::PATIENCE).json();
    assert_eq!(ended["outcome"], "reset", "closed by the called pod's policy: {ended}");

    // Labels of a namespace count from the moment that they change.
    put(
        &world.work(),
        &INGRESS.replace("{podSelector: {matchLabels: {app: web}}}", "{namespaceSelector: {matchLabels: {team: red}}}"),
    );
    eventually("nobody is of the team", || (world.status(WEB, CART) == "403 network-policy").then_some(()));
    world.edit_manifest("namespace-batch.json", |namespace| namespace["metadata"]["labels"] = serde_json::json!({"team": "red"}));
    eventually("the job is", || (world.status(JOB, CART) == "200").then_some(()));
    assert_eq!(world.status(WEB, CART), "403 network-policy");
}
