use serde_json::json;
use weft_core::wellknown::SIDECAR_CONTAINER;
use weft_injector::ANNOTATION_INJECTED;

use super::*;

fn namespace(name: &str, inject: Option<&str>) -> Value {
    json!({"metadata": {"name": name, "labels": {"kubernetes.io/metadata.name": name, LABEL_INJECT: inject}}})
}

fn pod(namespace: &str, name: &str, sidecar: Option<&str>) -> Value {
    let mut pod = json!({
        "metadata": {"namespace": namespace, "name": name, "labels": {}, "annotations": {}},
        "spec": {"containers": [{"name": "app"}]},
        "status": {"phase": "Running"},
    });
    if let Some(version) = sidecar {
        pod["metadata"]["annotations"][ANNOTATION_INJECTED] = version.into();
        pod["spec"]["initContainers"] = json!([{"name": SIDECAR_CONTAINER}]);
    }
    pod
}

fn with(mut pod: Value, pointer: &str, value: Value) -> Value {
    *pod.pointer_mut(pointer).expect("it is there") = value;
    pod
}

fn shown(findings: &[Finding]) -> String {
    findings.iter().map(Finding::shown).collect()
}

#[test]
fn pods_that_slipped_by_are_found_and_nothing_else() {
    let namespaces = [
        namespace("shop", Some("enabled")),
        namespace("quiet", Some("disabled")),
        namespace("plain", None),
        namespace("weft-system", Some("enabled")),
    ];
    let all = [
        pod("shop", "good", Some("2")),
        pod("shop", "old", Some("1")),
        pod("shop", "slipped", None),
        with(pod("shop", "out", None), "/metadata/labels", json!({LABEL_INJECT: "disabled"})),
        with(pod("shop", "done", None), "/status/phase", json!("Succeeded")),
        with(pod("shop", "host", None), "/spec", json!({"hostNetwork": true, "containers": []})),
        with(pod("shop", "excused", None), "/metadata/annotations", json!({ANNOTATION_NOT_INJECTED: "windows"})),
        with(pod("quiet", "in-vain", None), "/metadata/labels", json!({LABEL_INJECT: "enabled"})),
        with(pod("plain", "wished", None), "/metadata/labels", json!({LABEL_INJECT: "enabled"})),
        pod("plain", "ordinary", None),
        pod("weft-system", "weft-injector-1", None),
    ];
    let text = shown(&pods(&namespaces, &all, "2", &["weft-system"]));
    let expected = "\
✗ a pod without the sidecar that it should have: pod/wished in plain
    delete pod/wished in plain and create it again
✗ a pod without the sidecar that it should have: pod/slipped in shop
    delete pod/slipped in shop and create it again
! pod/excused in shop is in the mesh's namespace but not in the mesh: windows
    label its pods weft.dev/inject=disabled if that is meant
! pod/host in shop is in the mesh's namespace but not in the mesh: it uses the host's network
    label its pods weft.dev/inject=disabled if that is meant
! a pod with the sidecar of another version than 2: pod/old in shop
    delete pod/old in shop and create it again
✓ 2 pods have sidecars; 2 namespaces are meshed
";
    assert_eq!(text, expected);
}

#[test]
fn a_label_that_is_no_word_of_ours_is_told() {
    let all = [namespace("a", Some("enabled")), namespace("b", Some("true")), namespace("c", None)];
    let text = shown(&namespaces(&all));
    assert!(text.starts_with("✗ namespace b has the label weft.dev/inject=true") && text.lines().count() == 2, "{text}");
}

#[test]
fn every_meshed_namespace_needs_its_trust_bundle() {
    let all =
        [namespace("a", Some("enabled")), namespace("b", Some("enabled")), namespace("c", Some("enabled")), namespace("d", None)];
    let bundle = |namespace: &str, anchors: &str| {
        let metadata = json!({"namespace": namespace, "name": TRUST_BUNDLE});
        json!({"metadata": metadata, "data": {FILE_ANCHORS: anchors}})
    };
    let good = [bundle("a", "one"), bundle("b", "one\n"), bundle("c", "one")];
    assert!(bundles(&all, &good, &[]).is_empty());
    let text = shown(&bundles(&all, &[bundle("a", "one"), bundle("b", "two"), bundle("x", "")], &[]));
    assert!(text.starts_with("✗ namespace c has no trust bundle"), "{text}");
    assert!(text.contains("! there are 2 different trust bundles") && !text.contains("namespace d"), "{text}");
}

#[test]
fn a_webhook_that_cannot_be_called_is_told() {
    let hook = |bundle: &str, policy: &str| {
        let hook = json!({"name": "w", "clientConfig": {"caBundle": bundle}, "failurePolicy": policy});
        json!({"webhooks": [hook]})
    };
    for (configuration, ca, begins) in [
        (json!(null), None, "✗ no webhook is registered"),
        (json!({"webhooks": []}), None, "✗ no webhook is registered"),
        (hook("", "Fail"), Some("QQ=="), "✗ the API server can't call the webhook w"),
        (hook("Qg==", "Fail"), Some("QQ=="), "✗ the webhook w has another caBundle"),
        (hook("QQ==", "Ignore"), Some("QQ=="), "! the webhook w lets pods by"),
        (hook("QQ==", "Fail"), Some("QQ=="), "✓ "),
        (hook("QQ==", "Fail"), None, "✓ "),
    ] {
        let text = shown(&webhook(&configuration, ca));
        assert!(text.starts_with(begins), "{text}");
    }
}
