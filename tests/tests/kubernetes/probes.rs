//! What the kubelet's probes find through a sidecar, in strict mode: the app as it is, whatever sort of probe, and whatever is wrong.

use std::collections::BTreeMap;

use serde_json::Value;
use tempfile::NamedTempFile;
use weft_certs::{Authority, LeafKind, LeafSpec};
use weft_tests::cluster::{must, soon, when};

use crate::Mesh;
use crate::install::by_hand;

/// The containers of `probed.yaml` with a readiness probe, each named after its sort.
const SORTS: [&str; 4] = ["http", "https", "grpc", "tcp"];
/// What may be wrong with an app, and who finds it ready all the same: a port that takes connections is all that a TCP probe asks for.
const TROUBLES: [(&str, &[&str]); 4] = [("down", &[]), ("hung", &["tcp"]), ("slow", &["tcp"]), ("sick", &["tcp"])];

pub(crate) fn find_what_the_app_is(mesh: &Mesh<'_>) {
    certificate(mesh);
    mesh.cluster.apply(Some(mesh.shop.name()), &by_hand(&mesh.shop, "probed.yaml", mesh.redirect));
    mesh.shop.is_ready("probed");
    let pod = mesh.shop.pods("probed").swap_remove(0);
    for (trouble, unimpressed) in TROUBLES {
        are(mesh, &pod, &SORTS, trouble);
        become_ready(mesh, &pod, trouble, unimpressed);
        are(mesh, &pod, &SORTS, "up");
        become_ready(mesh, &pod, "up", &SORTS);
    }

    // An app that hangs is started again, which puts it right; nothing else of its pod is.
    are(mesh, &pod, &["live"], "hung");
    soon("the hung app is started again", || {
        let restarts = restarts(&mesh.shop.pod(&pod));
        when(restarts["live"] == 1 && readiness(&mesh.shop.pod(&pod))["live"], || format!("{restarts:?}"))
    });
    let others: BTreeMap<String, u64> =
        restarts(&mesh.shop.pod(&pod)).into_iter().filter(|(name, count)| name != "live" && *count > 0).collect();
    assert!(others.is_empty(), "started again, too: {others:?}");
    must(&["-n", mesh.shop.name(), "delete", "deployment", "probed", "--timeout=60s"]);
}

/// For the app that speaks HTTPS; the kubelet believes any.
fn certificate(mesh: &Mesh<'_>) {
    let leaf = Authority::new("cluster.local").leaf(&LeafSpec::new(LeafKind::Valid, mesh.shop.identity("probed")));
    let file = |text: &str| {
        let file = NamedTempFile::new().expect("a temporary file");
        std::fs::write(file.path(), text).expect("a temporary file takes it");
        file
    };
    let (chain, key) = (file(leaf.chain_pem()), file(leaf.key_pem()));
    let flags = [format!("--cert={}", chain.path().display()), format!("--key={}", key.path().display())];
    must(&["-n", mesh.shop.name(), "create", "secret", "tls", "tls", &flags[0], &flags[1]]);
}

/// Has apps be in a mode of `probed.py`.
#[track_caller]
fn are(mesh: &Mesh<'_>, pod: &str, containers: &[&str], mode: &str) {
    for container in containers {
        mesh.shop.exec_in(pod, container, &["sh", "-c", &format!("echo {mode} > /tmp/mode")]).good();
    }
}

/// Waits until those are ready and no others.
#[track_caller]
fn become_ready(mesh: &Mesh<'_>, pod: &str, trouble: &str, ready: &[&str]) {
    soon(&format!("with apps that are {trouble}, {ready:?} are ready"), || {
        let now = readiness(&mesh.shop.pod(pod));
        when(SORTS.iter().all(|sort| now[*sort] == ready.contains(sort)), || format!("{now:?}"))
    });
}

fn statuses(pod: &Value) -> impl Iterator<Item = (String, &Value)> {
    let lists = ["initContainerStatuses", "containerStatuses"].map(|list| pod["status"][list].as_array());
    lists.into_iter().flatten().flatten().map(|status| (status["name"].as_str().unwrap_or_default().to_owned(), status))
}

fn readiness(pod: &Value) -> BTreeMap<String, bool> {
    statuses(pod).map(|(name, status)| (name, status["ready"] == true)).collect()
}

fn restarts(pod: &Value) -> BTreeMap<String, u64> {
    statuses(pod).map(|(name, status)| (name, status["restartCount"].as_u64().unwrap_or_default())).collect()
}
