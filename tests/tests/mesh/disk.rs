//! A disk that is full where state is kept: who serves goes on serving, what was kept stays, and nothing is lost or used up.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use tonic::transport::Channel;
use tonic::{Code, Status};
use weft_core::SpiffeId;
use weft_proto::v1;
use weft_proto::v1::issue_request::Attestation;
use weft_tests::{ControlPlane, World, contains, eventually, fill, issue, require};
use weft_tls::PendingKey;

const MESH: &str = r#"
workloads:
- {name: web, namespace: shop, command: ["@PYTHON@", "@PEERS@/http_peer.py", "8090"], ports: [{port: 8090}]}
- {name: late, namespace: shop, command: ["@PYTHON@", "@PEERS@/http_peer.py", "8090"], ports: [{port: 8090}]}
- {name: client, namespace: shop, command: [sleep, infinity]}
"#;
/// A small file system for the state, which outlives the process. The join token that the lab writes for each start is none to renew the certificate for at once, as one is that is newer.
const SIDECAR: &str = r#"
mountpoint -q state || mount -t tmpfs -o size=64k,mode=0700 tmpfs state
touch -d @0 token
exec @SIDECAR@ "$@"
"#;
const CLIENT: &str = "shop/client";
const REPLICA: &str = "shop/client-0";
const WEB: &str = "http://web:8090/name";
const LATE: &str = "http://late:8090/name";

#[test]
fn a_sidecar_that_cannot_keep_its_state_serves_on_and_keeps_it_later() {
    require(&["mount", "mountpoint"]);
    let world = World::up_with_sidecar(MESH, SIDECAR, |_| {});
    let first = world.sidecar(REPLICA);
    assert_eq!(world.status(CLIENT, WEB), "200");
    eventually("what it learned is kept", || knows(&kept(first), "shop/web").then_some(()));
    fill_between_saves(&world, first);
    let before = kept(first);
    assert!(knows(&before, "shop/web") && !knows(&before, "shop/late"));

    learn_in_vain(&world, first, complaints(&world));
    assert!(kept(first) == before, "what was kept before is whole");

    // Full or not, what is there is what a restart begins with: a join would have given it another certificate.
    let serial = || world.config(REPLICA)["certificate"]["serial"].clone();
    let own = serial();
    let said = complaints(&world);
    world.signal(first, Signal::SIGKILL);
    let second = world.next_sidecar(REPLICA, first);
    assert_eq!(serial(), own, "it goes on with the certificate that was kept");
    assert_eq!(world.status(CLIENT, WEB), "200");
    eventually("it has found the control plane", || (world.config(REPLICA)["discovery_connected"] == true).then_some(()));
    // The control plane sends everything again, which cannot be kept either.
    learn_in_vain(&world, second, said);
    assert!(kept(second) == before, "what was kept before is whole");

    fs::remove_file(state(second).join("fill")).expect("it was there");
    eventually("what could not be kept is, once there is room", || knows(&kept(second), "shop/late").then_some(()));
    assert_eq!(world.status(CLIENT, LATE), "200");
}

/// How often the sidecar has said that its state is not kept.
fn complaints(world: &World) -> usize {
    world.log().lines().filter(|line| is_complaint(line)).count()
}

/// Has the sidecar learn of a service that it cannot keep: it serves that too, and says what to do, if it has not since it had complained so often.
fn learn_in_vain(world: &World, sidecar: Pid, before: usize) {
    assert_eq!(world.status(CLIENT, LATE), "200", "what is new is learned, kept or not");
    eventually("it says that its state is not kept, and what to do", || (complaints(world) > before).then_some(()));
    assert_eq!(world.status(CLIENT, WEB), "200", "what is known is served");
    eventually("nothing half-written is left", || (!state(sidecar).join("state.new").exists()).then_some(()));
}

fn is_complaint(line: &str) -> bool {
    line.contains("client-0") && line.contains("WARN") && line.contains("state cannot be saved") && line.contains("make room")
}

/// The directory as the sidecar sees it.
fn state(sidecar: Pid) -> PathBuf {
    PathBuf::from(format!("/proc/{sidecar}/cwd/state"))
}

fn kept(sidecar: Pid) -> Vec<u8> {
    fs::read(state(sidecar).join("state")).unwrap_or_default()
}

/// Names stand in saved state as they are.
fn knows(state: &[u8], service: &str) -> bool {
    contains(state, format!("endpoints/{service}").as_bytes())
}

/// At a moment when nothing is being written, so that nothing gives room back later.
fn fill_between_saves(world: &World, sidecar: Pid) {
    eventually("nothing is being written", || {
        world.signal(sidecar, Signal::SIGSTOP);
        let still = !state(sidecar).join("state.new").exists();
        let full = still.then(|| fill(&state(sidecar)));
        world.signal(sidecar, Signal::SIGCONT);
        full
    });
}

const POD: &str = "apiVersion: v1
kind: Pod
metadata: {name: web-0, namespace: shop}
spec: {serviceAccountName: web, containers: [{name: weft-sidecar}]}
status: {phase: Running, podIP: 10.1.0.1}
";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_control_plane_that_cannot_record_gives_nothing_out_and_uses_nothing_up() {
    let control_plane =
        ControlPlane::start_with_room(256, |manifests| fs::write(manifests.join("pod.yaml"), POD).expect("written"));
    let (token, anchor) = control_plane.token("shop", "web-0", "web", 0).await;
    let channel = control_plane.stranger(&anchor).await.expect("the control plane is reached");
    let key = || PendingKey::generate().expect("a key");
    let tokens = control_plane.state().join("tokens");
    let before = files(&tokens);
    assert_eq!(before.len(), 1, "a token is a file");

    let full = fill(&control_plane.state());
    let request = v1::CreateTokenRequest {
        namespace: "shop".to_owned(),
        pod: "web-0".to_owned(),
        service_account: "web".to_owned(),
        ttl_seconds: 0,
    };
    let refused = control_plane.operator().await.create_token(request).await.expect_err("it cannot be recorded");
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    assert!(refused.message().contains("mend the state directory"), "what to do is said: {refused}");
    let refused = redeem(&channel, &token, &key()).await.expect_err("its use cannot be recorded");
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    assert!(refused.message().contains("not used up"), "what became of the token is said: {refused}");
    assert_eq!(files(&tokens), before, "nothing was changed, and nothing is left");

    fs::remove_file(full).expect("it was there");
    let (used, other) = (key(), key());
    redeem(&channel, &token, &used).await.expect("nobody has used the token");
    let refused = redeem(&channel, &token, &other).await.expect_err("now somebody has");
    assert_eq!(refused.code(), Code::Unauthenticated, "{refused}");
    control_plane.token("shop", "web-0", "web", 0).await;
    assert_eq!(files(&tokens).len(), 2);
}

/// Asks for a certificate by a token.
async fn redeem(channel: &Channel, token: &str, key: &PendingKey) -> Result<v1::IssueResponse, Status> {
    let id: SpiffeId = "spiffe://cluster.local/ns/shop/sa/web".parse().expect("an identity is made of names");
    issue(channel.clone(), key, &id, Some(Attestation::JoinToken(token.to_owned()))).await
}

/// Every file of a directory with its content.
fn files(directory: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let entries = fs::read_dir(directory).expect("it is ours").flatten();
    entries.map(|entry| (entry.path(), fs::read(entry.path()).expect("it is ours"))).collect()
}
