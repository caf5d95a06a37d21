//! The root of the mesh is replaced under load, by two replicas of which one is killed in the middle.

use serde_json::{Value, json};
use weft_tests::Output;
use weft_tests::cluster::{CONTROL_PLANE, HOME, Installed, kubectl, must, soon, when};

use crate::Mesh;
use crate::outage::Load;
use crate::replicas::replicas;

/// Whether what a sidecar serves leads to an anchor, as somebody sees it who knows that one alone.
const BELIEVES: &str = r#"
import socket, ssl, sys
context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
context.check_hostname = False
context.load_verify_locations(cadata=sys.argv[2])
context.set_alpn_protocols(["weft/h1"])
try:
    context.wrap_socket(socket.create_connection((sys.argv[1], 8080), 5))
    print("yes")
except ssl.SSLCertVerificationError:
    print("no")
"#;

/// `weft trust …` in a replica, as a person runs it.
fn trust(replica: &str, words: &[&str]) -> Output {
    let exec = ["-n", HOME, "exec", replica, "--", "weft", "trust"];
    kubectl(&[&exec[..], words, &["--socket", "/run/weft/own/operator.sock"]].concat())
}

#[track_caller]
fn told(replica: &str, words: &[&str]) -> Value {
    trust(replica, &[words, &["-o", "json"]].concat()).json()
}

/// The replicas that there are, by name.
#[track_caller]
fn names() -> Vec<String> {
    replicas(CONTROL_PLANE).into_keys().collect()
}

/// The CA's Secret: the names of its parts, and its roots.
#[track_caller]
fn secret() -> (Vec<String>, String) {
    let data = kubectl(&["-n", HOME, "get", "secret", "weft-ca", "-o", "json"]).json()["data"].clone();
    let parts = data.as_object().expect("it has data").keys().cloned().collect();
    let roots = must(&["-n", HOME, "get", "secret", "weft-ca", "-o", "go-template={{index .data \"ca.crt\" | base64decode}}"]);
    (parts, roots)
}

/// What each sidecar of an app in the shop shows leads to these anchors, or to others.
#[track_caller]
fn lead_to(mesh: &Mesh<'_>, app: &str, anchors: &str) -> Vec<bool> {
    let stranger = mesh.stranger();
    let pods = mesh.shop.pods(app);
    let believed = |pod: &String| {
        let address = mesh.shop.pod(pod)["status"]["podIP"].as_str().expect("it runs").to_owned();
        match mesh.plain.exec(&stranger, &["python3", "-c", BELIEVES, &address, anchors]).good().trim() {
            "yes" => true,
            "no" => false,
            other => panic!("{pod}: {other}"),
        }
    };
    pods.iter().map(believed).collect()
}

pub(crate) fn costs_nothing(mesh: &Mesh<'_>) {
    let before = names();
    assert!(before.len() >= 2, "there is one replica alone: {before:?}");
    let settled = told(&before[0], &["status"]);
    assert_eq!((&settled["phase"], &settled["fixed"]), (&json!("settled"), &json!("")), "{settled:#}");
    let old = settled["anchors"][0]["hash"].clone();
    let (_, old_roots) = secret();
    assert_eq!(lead_to(mesh, "echo", &old_roots), [true, true]);
    let load = Load::start(mesh);
    load.goes_on();

    let begun = told(&before[0], &["rotate"]);
    assert_eq!(begun["phase"], "spreading", "{begun:#}");
    let (parts, both) = secret();
    assert!(parts.contains(&"other.key".to_owned()) && both.starts_with(&old_roots), "{parts:?}\n{both}");
    soon("another replica knows, and none of the sidecars is missing", || {
        let status = told(&before[1], &["status"]);
        let missing = status["missing"].as_array().cloned().unwrap_or_default();
        let only_replicas = missing.iter().all(|m| m["name"].as_str().is_some_and(|name| name.starts_with(HOME)));
        when(status["phase"] != "settled" && only_replicas, || status.to_string())
    });
    // It has no time to say anything, and another one comes in its place.
    must(&["-n", HOME, "delete", "pod", &before[0], "--grace-period=0", "--force"]);
    load.goes_on();
    let ready = told(&before[1], &["rotate", "--wait", "--timeout", "220s"]);
    assert_eq!((&ready["phase"], &ready["missingTotal"]), (&json!("reissuing"), &json!(0)), "{ready:#}");
    let new =
        ready["anchors"].as_array().and_then(|all| all.iter().find(|a| a["new"] == true)).expect("two anchors")["hash"].clone();
    for anchor in ready["anchors"].as_array().expect("a list") {
        let serves = anchor["servedBy"].as_u64().unwrap_or_default();
        assert!(if anchor["hash"] == new { serves > 0 } else { serves == 0 }, "{ready:#}");
    }
    load.goes_on();

    Installed::is_ready(CONTROL_PLANE);
    let done = told(&before[1], &["finish", "--wait", "--timeout", "120s"]);
    assert_eq!((&done["phase"], done["anchors"].as_array().map(Vec::len)), (&json!("settled"), Some(1)), "{done:#}");
    assert!(done["anchors"][0]["hash"] == new && new != old, "{done:#}");
    for replica in names() {
        soon(&format!("{replica} has the new root alone"), || {
            let status = told(&replica, &["status"]);
            let anchors = status["anchors"].as_array().cloned().unwrap_or_default();
            when(anchors.len() == 1 && anchors[0]["hash"] == new, || status.to_string())
        });
    }
    let (parts, roots) = secret();
    assert_eq!(parts, ["ca.crt", "tls.crt", "tls.key", "trust.json"], "the Secret holds the new root alone");
    assert_eq!(roots.matches("BEGIN CERTIFICATE").count(), 1);
    assert!(both.ends_with(&roots) && roots != old_roots, "{roots}");
    for app in ["echo", "web"] {
        let served = lead_to(mesh, app, &roots);
        assert!(served.iter().all(|new| *new), "{app}: {served:?}");
    }
    assert_eq!(lead_to(mesh, "echo", &old_roots), [false, false]);
    soon("new pods know the control plane by the new root", || {
        let anchors =
            must(&["-n", mesh.shop.name(), "get", "configmap", "weft-trust-bundle", "-o", "jsonpath={.data.anchors\\.pem}"]);
        when(anchors == roots, || anchors.clone())
    });
    // A pod that comes now, and one whose renewal is asked for.
    must(&["-n", mesh.shop.name(), "delete", "pod", &mesh.shop.pods("echo")[0], "--timeout=120s"]);
    mesh.shop.is_ready("echo");
    load.goes_on();
    load.cost_nothing();
}
