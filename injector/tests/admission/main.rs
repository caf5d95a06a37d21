//! The injector as the API server sees it: JSON in, JSON out.

mod apply;
mod hostile;
mod patches;
mod probes;
mod refusals;
mod restricted;
mod updates;

use std::collections::BTreeMap;

use serde_json::{Value, json};
use weft_core::Namespace;
use weft_injector::{InjectorOptions, NamespaceFacts};

fn namespace(name: &str) -> Namespace {
    name.parse().expect("a label")
}

/// What an injector is told, and what it knows of the namespaces.
#[derive(Clone)]
struct Mesh {
    options: InjectorOptions,
    namespaces: BTreeMap<Namespace, NamespaceFacts>,
}

/// An installation, with the namespace `shop` enabled and `plain` without a label. Any other counts as enabled.
fn mesh() -> Mesh {
    let plain = NamespaceFacts { inject: None, ..NamespaceFacts::selected(namespace("plain")) };
    let mut options = InjectorOptions::new("example.com/weft-sidecar:0.1.0", "weft-control-plane.weft-system.svc:4700");
    options.version = "0.1.0".into();
    options.redirect_image = "example.com/weft-redirect:0.1.0".into();
    Mesh { options, namespaces: BTreeMap::from([(namespace("plain"), plain)]) }
}

/// The same in a cluster that has native sidecars or not.
fn mesh_with(native_sidecar: bool) -> Mesh {
    let mut mesh = mesh();
    mesh.options.native_sidecar = native_sidecar;
    mesh
}

/// The same where the namespace `shop` has these annotations.
fn mesh_where_shop_has(annotations: &Value) -> Mesh {
    let manifest =
        json!({ "metadata": { "name": "shop", "labels": { "weft.dev/inject": "enabled" }, "annotations": annotations } });
    let mut mesh = mesh();
    mesh.namespaces.insert(namespace("shop"), NamespaceFacts::from_manifest(&manifest).expect("a namespace"));
    mesh
}

/// The review that answers `review`.
fn admit(review: &Value, mesh: &Mesh) -> Value {
    let find = |name: &Namespace| {
        let known = mesh.namespaces.get(name).cloned();
        Ok(known.unwrap_or_else(|| NamespaceFacts::selected(name.clone())))
    };
    weft_injector::admit(review, &mesh.options, find).review
}

fn ordinary_pod() -> Value {
    serde_json::from_str(include_str!("../data/ordinary-pod.json")).expect("JSON")
}

/// The least that is a pod.
fn bare_pod() -> Value {
    json!({ "metadata": {}, "spec": { "containers": [{ "name": "app", "image": "example.com/app:1" }] } })
}

/// A pod with one container, whose `securityContext` is `security`.
fn pod_with_security(security: &Value) -> Value {
    json!({ "metadata": {}, "spec": { "containers": [{ "name": "app", "securityContext": security }] } })
}

fn review(namespace: &str, pod: &Value) -> Value {
    json!({
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {
            "uid": "705ab4f5-6393-11e8-b7cc-42010a800002",
            "kind": { "group": "", "version": "v1", "kind": "Pod" },
            "resource": { "group": "", "version": "v1", "resource": "pods" },
            "namespace": namespace,
            "operation": "CREATE",
            "object": pod,
        },
    })
}

/// The response to `pod` in `shop`.
fn response(pod: &Value, mesh: &Mesh) -> Value {
    admit(&review("shop", pod), mesh)["response"].take()
}

/// The patch in a response that allows.
fn patch_of(response: &Value) -> Value {
    assert_eq!(response["allowed"], true, "{response}");
    assert_eq!(response["patchType"], "JSONPatch", "{response}");
    let text = apply::from_base64(response["patch"].as_str().expect("a patch in base64")).expect("base64");
    serde_json::from_slice(&text).expect("a patch is JSON")
}

/// `pod` as it is created in `shop`.
fn injected(pod: &Value, mesh: &Mesh) -> Value {
    let patch = patch_of(&response(pod, mesh));
    let mut pod = pod.clone();
    apply::apply(&mut pod, &patch).expect("the patch fits the pod");
    pod
}

/// The container of this name in a pod.
fn container<'a>(pod: &'a Value, name: &str) -> &'a Value {
    let lists = ["initContainers", "containers"].iter().filter_map(|list| pod["spec"][*list].as_array());
    lists.flatten().find(|container| container["name"] == name).expect("the container is there")
}

/// Why `pod` is left alone in `namespace`.
fn skip_reason(namespace: &str, pod: &Value) -> String {
    let response = admit(&review(namespace, pod), &mesh())["response"].take();
    assert_eq!(response["allowed"], true, "{response}");
    assert!(response.get("patch").is_none(), "{response}");
    response["auditAnnotations"]["skipped"].as_str().expect("a reason").to_owned()
}

/// Why `pod` is refused in `shop`.
fn refusal(pod: &Value) -> String {
    refusal_with(pod, &mesh())
}

fn refusal_with(pod: &Value, mesh: &Mesh) -> String {
    let response = response(pod, mesh);
    assert_eq!(response["allowed"], false, "{response}");
    assert!(response.get("patch").is_none(), "{response}");
    assert!(response["status"]["code"].as_u64().is_some_and(|code| (400..500).contains(&code)), "{response}");
    response["status"]["message"].as_str().expect("a message").to_owned()
}
