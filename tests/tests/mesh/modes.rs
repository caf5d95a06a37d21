//! From permissive to strict, and from what was recorded to policies: by real programs behind real redirects.

use std::fs;
use std::path::Path;

use serde_json::Value;
use weft_tests::{World, eventually, require};

const MESH: &str = r#"
mtls: permissive
manifests: ["@WORK@/policies.yaml"]
workloads:
- {name: cart, namespace: shop, command: ["@PYTHON@", "@PEERS@/http_peer.py", "8090"], ports: [{port: 8090}]}
- {name: cache, namespace: shop, command: [redis-server, --port, "6379", --save, "", --protected-mode, "no"], ports: [{port: 6379, protocol: tcp}]}
- {name: web, namespace: shop, command: [sleep, infinity]}
- {name: job, namespace: batch, command: [sleep, infinity]}
- {name: old, namespace: legacy, sidecar: false, command: [sleep, infinity]}
"#;

const WEB: &str = "shop/web";
const OLD: &str = "legacy/old";

/// The namespace is strict, but for one port of the cart.
const STRICT: &str = r"
apiVersion: weft.dev/v1alpha1
kind: MtlsPolicy
metadata: {name: strict, namespace: shop}
spec: {mode: strict}
---
apiVersion: weft.dev/v1alpha1
kind: MtlsPolicy
metadata: {name: cart-stays-open, namespace: shop}
spec:
  selector: {matchExpressions: [{key: app, operator: In, values: [cart]}]}
  ports: [{port: 8090, mode: permissive}]
";

/// Writes the manifests that the world follows, at once.
fn put(work: &Path, text: &str) {
    let (file, temporary) = (work.join("policies.yaml"), work.join(".policies.new"));
    fs::write(&temporary, text).expect("the directory is ours");
    fs::rename(&temporary, &file).expect("the directory is ours");
}

/// What a line of shell prints, and its status.
fn shell(world: &World, line: &str) -> (String, i32) {
    let output = world.shell(line).current_dir(world.work()).output().expect("a shell runs");
    let said = String::from_utf8_lossy(&output.stderr);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    (if text.is_empty() { said.into_owned() } else { text }, output.status.code().unwrap_or(-1))
}

#[test]
fn a_namespace_becomes_strict_when_nobody_calls_it_in_plaintext() {
    require(&["curl", "redis-cli", "redis-server"]);
    let world = World::up_with(MESH, |work| put(work, ""));
    let cart = format!("http://{}:8090/name", world.address("shop/cart-0"));
    let cache = world.address("shop/cache-0");

    let (text, code) = shell(&world, "weft check --strict-ready shop");
    assert_eq!(code, 0, "nobody has called yet: {text}");
    assert!(text.starts_with("3 sidecars of namespace shop have all looked"), "{text}");

    assert_eq!(world.status(OLD, &cart), "200");
    assert_eq!(world.status(WEB, "http://cart.shop:8090/name"), "200", "mesh peers are not plaintext");
    let (text, code) = shell(&world, "weft check --strict-ready shop -o json");
    let found: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!((code, &found["ready"]), (1, &false.into()), "{text}");
    let callers = found["callers"].as_array().expect("a list");
    assert_eq!(callers.len(), 1, "{text}");
    let caller = &callers[0];
    assert_eq!((&caller["service"], &caller["port"]), (&"shop/cart:8090".into(), &8090.into()), "{text}");
    assert_eq!((&caller["caller"], &caller["callerHasSidecar"]), (&"legacy/old-0".into(), &false.into()), "{text}");
    assert_eq!((&caller["connections"], &caller["refused"]), (&1.into(), &0.into()), "{text}");

    // What is open in plaintext ends when the namespace becomes strict.
    let open = world.spawn_peer(OLD, &["raw.py", "wait", &cache, "6379", "PING\r\n"]);
    eventually("the connection is used", || open.stderr().contains("+PONG").then_some(()));
    put(&world.work(), STRICT);
    let ended = open.wait(weft_tests::PATIENCE).json();
    assert_eq!(ended["outcome"], "reset", "it was let in before: {ended}");
    let refused = world.peer(OLD, &["raw.py", "talk", &cache, "6379", "PING\r\n"]);
    assert_eq!(refused["outcome"], "reset", "{refused}");
    assert_eq!(world.status(OLD, &cart), "200", "the port says otherwise");
    assert_eq!(world.exec(WEB, &["redis-cli", "-h", "cache.shop", "ping"]).stdout.trim(), "PONG", "a mesh peer comes in");

    let (text, code) = shell(&world, "weft explain --unauthenticated --to shop/cache:6379");
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("mTLS: strict, set by MtlsPolicy shop/strict, for the namespace"), "{text}");
    let (text, code) = shell(&world, "weft explain --unauthenticated --to shop/cart:8090");
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("permissive at port 8090, set by MtlsPolicy shop/cart-stays-open, which selects the pod"), "{text}");

    // One that makes no sense makes strict what it is for: here the port's exception is meant, of which nothing good is known any more than the last version.
    put(&world.work(), &STRICT.replace("8090, mode: permissive", "8090, mode: open"));
    eventually("the status says what is wrong", || {
        let (text, _) = shell(&world, "weft status");
        text.contains("spec.ports[0].mode").then_some(())
    });
    assert_eq!(world.status(OLD, &cart), "200", "the last good version stays in force");
    put(&world.work(), STRICT.split("---").next().expect("the first of both"));
    eventually("the exception is gone", || (world.status(OLD, &cart) == "403 mtls-required").then_some(()));
}

#[test]
fn what_was_recorded_is_allowed_by_what_is_suggested_and_replayed_over_a_change() {
    require(&["curl", "redis-cli", "redis-server"]);
    let world = World::up_with(MESH, |work| put(work, ""));
    let url = |path: &str| format!("http://cart.shop:8090{path}");
    fs::write(
        world.work().join("calls"),
        format!(
            "weft exec {WEB} -- curl -s -o /dev/null {} {} && weft exec batch/job -- curl -s -o /dev/null {} && \
             weft exec {WEB} -- redis-cli -h cache.shop ping && ! weft record -n shop --for 1s -o second.jsonl",
            url("/name"),
            url("/seen/1"),
            url("/name"),
        ),
    )
    .expect("the directory is ours");
    assert_eq!(world.status(WEB, &url("/paths")), "200", "before anything is recorded");
    let (text, code) = shell(&world, "weft record -n shop -o flows.jsonl -- sh calls");
    assert_eq!(code, 0, "{text}");
    let flows = fs::read_to_string(world.work().join("flows.jsonl")).expect("it was written");
    let lines: Vec<Value> = flows.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(lines[0]["weftFlows"], 1, "{flows}");
    assert_eq!(lines.len(), 5, "three requests and a connection: {flows}");
    assert!(!flows.contains("/paths"), "{flows}");
    assert!(text.contains("its calls are recorded already") && !world.work().join("second.jsonl").exists(), "{text}");

    let (text, code) = shell(
        &world,
        "weft suggest --flows flows.jsonl > suggested.yaml && weft validate suggested.yaml \"$WEFT_RUN_DIR/manifests\" && cat suggested.yaml",
    );
    assert_eq!(code, 0, "{text}");
    for part in [
        r#"serviceAccounts: ["shop/web"]"#,
        r#"serviceAccounts: ["batch/job"]"#,
        r#"paths: ["/name","/seen/1"]"#,
        "ports: [6379]",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let (text, code) = shell(&world, "weft explain --what-if suggested.yaml --flows flows.jsonl");
    assert_eq!((code, text.contains("nothing flips")), (0, true), "{text}");

    let without = fs::read_to_string(world.work().join("suggested.yaml")).expect("written").replace("batch/job", "batch/other");
    fs::write(world.work().join("without.yaml"), without).expect("the directory is ours");
    let (text, code) = shell(&world, "weft explain --what-if without.yaml --flows flows.jsonl");
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("1 call would be refused anew") && text.contains("spiffe://cluster.local/ns/batch/sa/job"), "{text}");

    let suggested = fs::read_to_string(world.work().join("suggested.yaml")).expect("written");
    put(&world.work(), &suggested);
    eventually("it is in force", || (world.status(WEB, &url("/paths")) == "403 denied").then_some(()));
    assert_eq!(world.status(WEB, &url("/name")), "200", "what was seen goes on");
    assert_eq!(world.status("batch/job", &url("/name")), "200");
    assert_eq!(world.status("batch/job", &url("/seen/1")), "403 denied", "it was another caller");
    assert_eq!(world.exec(WEB, &["redis-cli", "-h", "cache.shop", "ping"]).stdout.trim(), "PONG");
}

/// Each sidecar's lines go to a file of its own, by its first address.
const LOGGED: &str = r#"
for word; do case $word in --pod-ips=*) ip=${word#--pod-ips=} ;; esac; done
exec @SIDECAR@ "$@" >> "@WORK@/log-${ip%%,*}"
"#;

#[test]
fn an_access_log_says_the_same_as_a_recording() {
    require(&["curl", "redis-cli", "redis-server"]);
    let mesh = format!("{MESH}telemetry:\n  WEFT_ACCESS_LOG: json\n");
    let world = World::up_with_sidecar(&mesh, LOGGED, |work| put(work, ""));
    let url = |path: &str| format!("http://cart.shop:8090{path}?secret=1");
    let calls = format!(
        "weft exec {WEB} -- curl -s -o /dev/null {} {} && weft exec batch/job -- curl -s -o /dev/null {} && weft exec {WEB} -- redis-cli -h cache.shop ping",
        url("/name"),
        url("/seen/1"),
        url("/name"),
    );
    fs::write(world.work().join("calls"), calls).expect("the directory is ours");
    let (text, code) = shell(&world, "weft record -n shop -o flows.jsonl -- sh calls");
    assert_eq!(code, 0, "{text}");
    let inbound = |replica: &str| {
        let text = fs::read_to_string(world.work().join(format!("log-{}", world.address(replica)))).unwrap_or_default();
        (text.matches(r#""direction":"inbound""#).count(), text)
    };
    let mut options = String::new();
    for (replica, lines) in [("shop/cart-0", 3), ("shop/cache-0", 1)] {
        let text = eventually("the log has every call", || Some(inbound(replica)).filter(|(n, _)| *n == lines)).1;
        let file = format!("{}.log", replica.replace('/', "_"));
        fs::write(world.work().join(&file), text).expect("the directory is ours");
        options.extend([" --flows ", &file]);
    }
    // When it was called, to the second, is told in comments.
    let suggested = |flows: &str| {
        let (text, code) = shell(&world, &format!("weft suggest {flows} > all.yaml && grep -v '^ *#' all.yaml"));
        assert_eq!(code, 0, "{text}");
        text.lines().filter(|line| !line.starts_with("weft: ")).collect::<Vec<_>>().join("\n")
    };
    let (recorded, logged) = (suggested("--flows flows.jsonl"), suggested(&options));
    assert_eq!(recorded, logged);
    assert!(logged.contains(r#"paths: ["/name","/seen/1"]"#) && logged.contains("ports: [6379]"), "{logged}");

    let manifest = recorded.replace("batch/job", "batch/other");
    fs::write(world.work().join("without.yaml"), manifest).expect("the directory is ours");
    let replayed = |flows: &str| -> Value {
        let (text, code) = shell(&world, &format!("weft explain --what-if without.yaml {flows} -o json"));
        assert_eq!(code, 1, "{text}");
        let mut told: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
        for flip in told["flips"].as_array_mut().expect("a list") {
            flip["last"].take();
        }
        told
    };
    let told = replayed(&options);
    assert_eq!(told, replayed("--flows flows.jsonl"));
    assert_eq!((told["calls"].as_u64(), told["flips"].as_array().map(Vec::len)), (Some(4), Some(1)), "{told:#}");
}
