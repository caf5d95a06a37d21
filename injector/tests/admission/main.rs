//! The injector as the API server sees it: JSON in, JSON out.

mod apply;
mod hostile;
mod patches;
mod refusals;

use std::collections::BTreeMap;

use serde_json::{Value, json};
use weft_core::Namespace;
use weft_injector::{InjectorOptions, NamespaceFacts, admit};

fn namespace(name: &str) -> Namespace {
    name.parse().expect("a label")
}

/// Options as an installation has them, with the namespace `shop` enabled and `plain` without a label.
fn options() -> InjectorOptions {
    let plain = NamespaceFacts { inject: None, ..NamespaceFacts::selected(namespace("plain")) };
    InjectorOptions {
        version: "0.1.0".to_owned(),
        sidecar_image: "example.com/weft-sidecar:0.1.0".to_owned(),
        redirect_image: "example.com/weft-redirect:0.1.0".to_owned(),
        control_plane: "weft-control-plane.weft-system.svc:4700".to_owned(),
        trust_bundle: "weft-trust-bundle".to_owned(),
        native_sidecar: true,
        namespaces: BTreeMap::from([
            (namespace("shop"), NamespaceFacts::selected(namespace("shop"))),
            (namespace("plain"), plain),
        ]),
    }
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
fn response(pod: &Value, options: &InjectorOptions) -> Value {
    admit(&review("shop", pod), options)["response"].take()
}

/// The patch in a response that allows.
fn patch_of(response: &Value) -> Value {
    assert_eq!(response["allowed"], true, "{response}");
    assert_eq!(response["patchType"], "JSONPatch", "{response}");
    let text = apply::from_base64(response["patch"].as_str().expect("a patch in base64")).expect("base64");
    serde_json::from_slice(&text).expect("a patch is JSON")
}

/// `pod` as it is created in `shop`.
fn injected(pod: &Value, options: &InjectorOptions) -> Value {
    let patch = patch_of(&response(pod, options));
    let mut pod = pod.clone();
    apply::apply(&mut pod, &patch).expect("the patch fits the pod");
    pod
}

/// Why `pod` is left alone in `namespace`.
fn skip_reason(namespace: &str, pod: &Value) -> String {
    let response = admit(&review(namespace, pod), &options())["response"].take();
    assert_eq!(response["allowed"], true, "{response}");
    assert!(response.get("patch").is_none(), "{response}");
    response["auditAnnotations"]["skipped"].as_str().expect("a reason").to_owned()
}

/// Why `pod` is refused in `shop`.
fn refusal(pod: &Value) -> String {
    refusal_with(pod, &options())
}

fn refusal_with(pod: &Value, options: &InjectorOptions) -> String {
    let response = response(pod, options);
    assert_eq!(response["allowed"], false, "{response}");
    assert!(response.get("patch").is_none(), "{response}");
    assert!(response["status"]["code"].as_u64().is_some_and(|code| (400..500).contains(&code)), "{response}");
    response["status"]["message"].as_str().expect("a message").to_owned()
}
