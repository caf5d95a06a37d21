//! Nobody whom no policy lets in gets in while parts of the mesh stop, die and come back: asked all the time, over HTTP and in bytes.

use nix::sys::signal::Signal;
use weft_tests::{PATIENCE, Running, World, eventually};

const MESH: &str = r#"
mtls: strict
defaultPolicy: deny
manifests: ["@WORK@/policy.yaml"]
workloads:
- {name: app, namespace: shop, command: ["@PYTHON@", "@PEERS@/http_peer.py", "8090"], ports: [{port: 8090}]}
- {name: raw, namespace: shop, command: ["@PYTHON@", "@PEERS@/tcp_peer.py", echo, "7000"], ports: [{port: 7000, protocol: tcp}]}
- {name: friend, namespace: shop, command: [sleep, infinity]}
- {name: stranger, namespace: shop, command: [sleep, infinity]}
"#;
const POLICY: &str = "
apiVersion: weft.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: friends, namespace: shop}
spec:
  action: Allow
  rules: [{from: [{serviceAccounts: [shop/friend]}]}]
";
const FRIEND: &str = "shop/friend";
const STRANGER: &str = "shop/stranger";

#[test]
fn who_is_refused_stays_refused_whatever_breaks() {
    let world = World::up_with(MESH, |work| std::fs::write(work.join("policy.yaml"), POLICY).expect("the directory is ours"));
    // By address, since names end with the control plane.
    let (app, raw) = (world.service("shop/app"), world.service("shop/raw"));
    let asking = world.spawn_peer(STRANGER, &["refused.py", &app, "8090", &raw, "7000"]);
    let friend = |what: &str| {
        eventually(&format!("who is let in is served {what}"), || {
            let http = world.status(FRIEND, &format!("http://{app}:8090/name")) == "200";
            let echo = world.peer(FRIEND, &["raw.py", "talk", &raw, "7000", "hello"]);
            (http && echo["outcome"] == "data").then_some(())
        });
    };
    let goes_on = |what: &str| {
        let lines = || asking.stdout().lines().count();
        let so_far = lines();
        eventually(&format!("who is refused has asked {what}"), || (lines() > so_far + 20).then_some(()));
    };
    friend("at first");
    goes_on("at first");

    let control_plane = world.control_plane();
    world.signal(control_plane, Signal::SIGSTOP);
    goes_on("while the control plane stands still");
    friend("while the control plane stands still");
    // Another one needs a join token, and so comes back when the control plane does.
    let before = world.sidecar("shop/app-0");
    world.signal(before, Signal::SIGKILL);
    goes_on("while the callee has no sidecar");
    world.signal(control_plane, Signal::SIGKILL);
    goes_on("while the control plane is dead");
    world.next_sidecar("shop/app-0", before);
    friend("by another sidecar");
    goes_on("when both are back");
    for replica in ["shop/app-0", "shop/raw-0", "shop/stranger-0"] {
        let before = world.sidecar(replica);
        world.signal(before, Signal::SIGKILL);
        goes_on("while a sidecar is dead and comes back");
        world.next_sidecar(replica, before);
    }
    friend("in the end");
    goes_on("in the end");
    never_let_in(asking);
}

fn never_let_in(asking: Running) {
    let text = asking.finish(PATIENCE).good();
    let count = |line: &str| text.lines().filter(|l| *l == line).count();
    assert_eq!((count("http 200"), count("bytes data")), (0, 0), "it was let in: {text}");
    assert!(count("http 403") > 50 && count("bytes none") > 50, "it was not always refused by policy: {text}");
}
