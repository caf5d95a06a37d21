//! From nothing to a shop whose pods have sidecars.

use serde_json::Value;
use weft_tests::cluster::{Cluster, IMAGE, Installed, Namespace, feed, kubectl, must, weft};

use crate::{APPS, Mesh};

/// Who redirects pods.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Redirect {
    /// An init container in each.
    Init,
    /// The CNI plugin.
    Cni,
}

pub(crate) fn everything(cluster: &Cluster, redirect: Redirect) -> Mesh<'_> {
    let flags: &[&str] = if redirect == Redirect::Cni { &["--cni"] } else { &[] };
    let installed = Installed::from_nothing(cluster, flags);
    if redirect == Redirect::Cni {
        Installed::is_on_every_node();
    }
    let mesh =
        Mesh { cluster, redirect, root: None, installed, shop: Namespace::create("shop"), plain: Namespace::create("plain") };
    must(&["label", "namespace", mesh.shop.name(), "weft.dev/inject=enabled"]);
    for file in ["client.yaml", "echo.yaml", "shop.yaml"] {
        mesh.shop.apply(cluster, file);
    }
    cluster.apply(Some(mesh.shop.name()), &by_hand(&mesh.shop, "health.yaml", redirect));
    for file in ["client.yaml", "echo.yaml"] {
        mesh.plain.apply(cluster, file);
    }

    for app in APPS {
        mesh.shop.is_ready(app);
        for pod in mesh.shop.pods(app) {
            has_sidecar(&mesh.shop.pod(&pod), redirect);
        }
    }
    for app in ["client", "echo"] {
        mesh.plain.is_ready(app);
        for pod in mesh.plain.pods(app) {
            let pod = mesh.plain.pod(&pod);
            assert!(pod["spec"]["initContainers"].is_null(), "a pod outside of the mesh was changed: {pod:#}");
        }
    }
    is_good();
    mesh
}

/// A manifest of the shop as `weft inject` makes it.
pub(crate) fn by_hand(shop: &Namespace, file: &str, redirect: Redirect) -> String {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join(file);
    std::fs::write(&path, Namespace::manifest(file)).expect("a fresh directory takes a file");
    let mut words = vec!["inject", "-n", shop.name()];
    words.extend(IMAGE);
    words.extend(["--redirect", if redirect == Redirect::Cni { "cni" } else { "init" }]);
    let path = path.to_string_lossy();
    words.push(&path);
    weft(&words).good()
}

/// The redirect first, or the proof that the plugin made it, then a sidecar that stays, and that the app waits for.
#[track_caller]
fn has_sidecar(pod: &Value, redirect: Redirect) {
    let init = pod["spec"]["initContainers"].as_array().expect("an injected pod has init containers");
    let names: Vec<&str> = init.iter().filter_map(|container| container["name"].as_str()).collect();
    let first = if redirect == Redirect::Cni { "weft-verify" } else { "weft-init" };
    assert_eq!(names, [first, "weft-sidecar"], "{pod:#}");
    assert_eq!(init[1]["restartPolicy"], "Always", "{pod:#}");
    assert_eq!(init[1].pointer("/startupProbe/httpGet/path"), Some(&Value::from("/ready")), "{pod:#}");
    assert!(pod["metadata"]["annotations"]["weft.dev/injected"].is_string(), "{pod:#}");
    assert_eq!(pod["spec"]["containers"].as_array().map(Vec::len), Some(1), "{pod:#}");
}

/// `weft check` finds nothing to complain of.
#[track_caller]
fn is_good() {
    let findings = weft(&["check", "-o", "json"]).json();
    let all = findings.as_array().expect("findings are a list");
    assert!(!all.is_empty() && all.iter().all(|finding| finding["verdict"] == "good"), "weft check: {findings:#}");
}

/// What the API server would make of a new pod in a namespace, or why it would not. Nothing is created.
pub(crate) fn would_be(namespace: &str, label: &str) -> Result<Value, String> {
    let words = ["-n", namespace, "create", "--dry-run=server", "-o", "json", "-f", "-"];
    let output = feed(visitor("visitor", label).to_string().as_bytes(), &words);
    if output.status.success() { Ok(output.json()) } else { Err(output.stderr) }
}

/// Creates a pod in a namespace.
pub(crate) fn create(namespace: &str, name: &str) -> Result<(), String> {
    let output = feed(visitor(name, "").to_string().as_bytes(), &["-n", namespace, "create", "-f", "-"]);
    if output.status.success() { Ok(()) } else { Err(output.stderr) }
}

/// A pod; `label` is what its own label says about the mesh, empty where it has none.
pub(crate) fn visitor(name: &str, label: &str) -> Value {
    let mut labels = serde_json::json!({});
    if !label.is_empty() {
        labels["weft.dev/inject"] = label.into();
    }
    serde_json::json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": name, "labels": labels },
        "spec": {
            "restartPolicy": "Never",
            "containers": [{
                "name": "app", "image": "weft.local/shop:1", "imagePullPolicy": "Never", "command": ["true"],
            }],
        },
    })
}

/// The logs of the app of something that `kubectl logs` knows.
#[track_caller]
pub(crate) fn logs(namespace: &Namespace, what: &str) -> String {
    kubectl(&["-n", namespace.name(), "logs", what, "-c", "app"]).good()
}
