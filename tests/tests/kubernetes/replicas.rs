//! Several replicas: each serves all there is, none leads where requests depend on it, and they are rolled under load.

use std::collections::BTreeMap;

use serde_json::Value;
use weft_tests::cluster::{CONTROL_PLANE, HOME, INJECTOR, Installed, kubectl, must, soon, when};

use crate::Mesh;
use crate::attestation::{OK, TOKEN, present};
use crate::outage::Load;

/// The replicas of one of weft's programs that are to stay, with their addresses.
#[track_caller]
pub(crate) fn replicas(program: &str) -> BTreeMap<String, String> {
    let list = kubectl(&["-n", HOME, "get", "pods", "-l", &format!("app.kubernetes.io/name={program}"), "-o", "json"]).json();
    let stays = |pod: &&Value| pod["metadata"]["deletionTimestamp"].is_null() && pod["status"]["podIP"].is_string();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let pods = list["items"].as_array().into_iter().flatten().filter(stays);
    pods.map(|pod| (text(&pod["metadata"]["name"]), text(&pod["status"]["podIP"]))).collect()
}

/// Waits until none of its pods is there any more, not even one that is about to go.
#[track_caller]
pub(crate) fn are_gone(program: &str) {
    soon(&format!("no {program} is there"), || {
        let left = must(&["-n", HOME, "get", "pods", "-l", &format!("app.kubernetes.io/name={program}"), "-o", "name"]);
        when(left.is_empty(), || left.clone())
    });
}

/// One number of each replica's metrics.
#[track_caller]
pub(crate) fn told(mesh: &Mesh<'_>, program: &str, port: u16, metric: &str) -> Result<BTreeMap<String, u64>, String> {
    let stranger = mesh.stranger();
    let number = |(name, address): (String, String)| {
        let url = format!("http://{address}:{port}/metrics");
        let output = mesh.plain.exec(&stranger, &["curl", "-sS", "--max-time", "3", &url]);
        let line = output.stdout.lines().find_map(|line| line.strip_prefix(metric)?.strip_prefix(' ').map(str::to_owned));
        let number = line.and_then(|text| text.trim().parse().ok());
        number.map(|number| (name.clone(), number)).ok_or_else(|| format!("{name} does not tell {metric}: {}", output.stderr))
    };
    replicas(program).into_iter().map(number).collect()
}

/// How many sidecars run in the shop.
#[track_caller]
pub(crate) fn sidecars(mesh: &Mesh<'_>) -> u64 {
    let list = kubectl(&["-n", mesh.shop.name(), "get", "pods", "-o", "json"]).json();
    let runs = |pod: &&Value| {
        pod["metadata"]["deletionTimestamp"].is_null()
            && pod["status"]["phase"] == "Running"
            && pod["metadata"]["annotations"]["weft.dev/injected"].is_string()
    };
    list["items"].as_array().into_iter().flatten().filter(runs).count() as u64
}

/// Waits until every sidecar has a stream, with one of the replicas that are to stay, and one replica holds the Lease.
#[track_caller]
fn are_in_order(mesh: &Mesh<'_>) {
    soon("every sidecar is connected, and one replica leads", || {
        let streams = told(mesh, CONTROL_PLANE, 4701, "weft_control_plane_sidecars")?;
        let leaders = told(mesh, CONTROL_PLANE, 4701, "weft_control_plane_leader")?;
        let (connected, running) = (streams.values().sum::<u64>(), sidecars(mesh));
        let is_so = connected == running && leaders.values().sum::<u64>() == 1;
        when(is_so, || format!("{running} run, connected are {streams:?}, {leaders:?} lead"))
    });
}

pub(crate) fn serve_alike(mesh: &Mesh<'_>) {
    are_in_order(mesh);
    let replicas = replicas(CONTROL_PLANE);
    assert!(replicas.len() >= 2, "there is one replica alone: {replicas:?}");
    let client = mesh.client();
    let token = mesh.shop.exec(&client, &["cat", TOKEN]).good();
    for (replica, address) in replicas {
        let (code, why) = present(mesh, &client, &token, &address);
        assert_eq!(code, OK, "{replica} issues certificates: {why}");
    }
}

pub(crate) fn are_rolled_under_load(mesh: &Mesh<'_>) {
    let before = replicas(CONTROL_PLANE);
    let load = Load::start(mesh);
    load.goes_on();
    for program in [CONTROL_PLANE, INJECTOR] {
        must(&["-n", HOME, "rollout", "restart", &format!("deployment/{program}")]);
    }
    // Meanwhile pods come that need certificates.
    must(&["-n", mesh.shop.name(), "scale", "deployment/echo", "--replicas=3"]);
    for program in [CONTROL_PLANE, INJECTOR] {
        Installed::is_ready(program);
    }
    mesh.shop.is_ready("echo");
    load.goes_on();
    are_in_order(mesh);
    let after = replicas(CONTROL_PLANE);
    assert!(after.keys().all(|name| !before.contains_key(name)), "{after:?} are not new, after {before:?}");
    must(&["-n", mesh.shop.name(), "scale", "deployment/echo", "--replicas=2"]);
    soon("the third pod is gone", || {
        let left = mesh.shop.all_pods("echo").len();
        when(left == 2, || format!("{left} pods are there"))
    });
    load.goes_on();
    load.cost_nothing();
}
