//! Changes of pods that are there: what is refused, and that all else is let by.

use serde_json::{Value, json};
use weft_injector::{InjectError, Redirect};

use crate::{Mesh, admit, bare_pod, injected, mesh, mesh_where_shop_has, ordinary_pod, review};

fn update(old: &Value, new: &Value, part: &str) -> Value {
    let mut review = review("shop", new);
    review["request"]["operation"] = json!("UPDATE");
    review["request"]["subResource"] = json!(part);
    review["request"]["oldObject"] = old.clone();
    review
}

/// The response to a change of a pod.
fn answered(old: &Value, change: &dyn Fn(&mut Value), mesh: &Mesh) -> Value {
    let mut new = old.clone();
    change(&mut new);
    let part = if new["spec"].get("ephemeralContainers").is_some() { "ephemeralcontainers" } else { "" };
    admit(&update(old, &new, part), mesh)["response"].take()
}

#[track_caller]
fn assert_allowed(response: &Value) {
    assert_eq!(response["allowed"], true, "{response}");
    assert_eq!(response["auditAnnotations"]["skipped"], "update");
    assert!(response.get("patch").is_none(), "{response}");
}

#[track_caller]
fn assert_refused(response: &Value, parts: &[&str]) {
    assert_eq!(response["allowed"], false, "{response}");
    let message = response["status"]["message"].as_str().expect("a message");
    for part in parts {
        assert!(message.contains(part), "{part:?} is not in: {message}");
    }
}

/// Puts an ephemeral container with these members into a pod.
fn ephemeral(members: &Value) -> impl Fn(&mut Value) + use<> {
    let mut container = json!({ "name": "debugger", "image": "example.com/tools:1" });
    for (key, value) in members.as_object().expect("members") {
        container[key] = value.clone();
    }
    move |pod: &mut Value| pod["spec"]["ephemeralContainers"] = json!([container])
}

#[test]
fn what_leaves_the_guarded_fields_as_they_are_is_let_by() {
    let pod = injected(&ordinary_pod(), &mesh());
    let changes: [&dyn Fn(&mut Value); 6] = [
        &|_| {},
        &|pod| pod["metadata"]["labels"]["version"] = json!("2"),
        &|pod| pod["metadata"]["finalizers"] = json!([]),
        &|pod| pod["spec"]["tolerations"] = json!([{ "operator": "Exists" }]),
        &|pod| pod["spec"]["containers"][0]["image"] = json!("elsewhere.example/app:9"),
        &|pod| pod["status"] = json!({ "phase": "Running" }),
    ];
    for change in changes {
        assert_allowed(&answered(&pod, change, &mesh()));
    }
    assert_allowed(&answered(&pod, &ephemeral(&json!({})), &mesh()));
    assert_allowed(&answered(
        &pod,
        &ephemeral(&json!({ "targetContainerName": "app", "securityContext": { "runAsUser": 0 } })),
        &mesh(),
    ));
}

#[test]
fn a_pod_keeps_what_it_was_admitted_with_when_its_namespace_allows_it_no_more() {
    let mut pod = bare_pod();
    pod["spec"]["containers"][0]["securityContext"] = json!({ "capabilities": { "add": ["NET_ADMIN"] } });
    let pod = injected(&pod, &mesh_where_shop_has(&json!({ "weft.dev/allow-net-admin": "true" })));
    assert_allowed(&answered(&pod, &|pod| pod["spec"]["containers"][0]["image"] = json!("example.com/app:2"), &mesh()));
    assert_allowed(&answered(&pod, &|pod| pod["metadata"]["labels"] = json!({ "a": "b" }), &mesh()));
}

#[test]
fn the_namespace_is_looked_at_only_where_that_matters() {
    let pod = injected(&bare_pod(), &mesh());
    let asked = |new: &Value| {
        let review = update(&pod, new, "");
        let unknown = |name: &weft_core::Namespace| {
            Err(InjectError::NamespaceUnknown { namespace: name.clone(), why: "it is away".into() })
        };
        weft_injector::admit(&review, &mesh().options, unknown).review["response"].take()
    };
    let mut labelled = pod.clone();
    labelled["metadata"]["labels"] = json!({ "a": "b" });
    assert_allowed(&asked(&labelled));
    let mut more = pod.clone();
    ephemeral(&json!({}))(&mut more);
    assert_refused(&asked(&more), &["it is away"]);
}

#[test]
fn our_containers_keep_their_images() {
    let pod = injected(&bare_pod(), &mesh());
    let set =
        |index: usize, image: &'static str| move |pod: &mut Value| pod["spec"]["initContainers"][index]["image"] = json!(image);
    assert_allowed(&answered(&pod, &set(1, "example.com/weft-sidecar:0.1.1"), &mesh()));
    assert_allowed(&answered(&pod, &set(1, "example.com/weft-sidecar@sha256:abcd"), &mesh()));
    assert_refused(&answered(&pod, &set(1, "evil.example/weft-sidecar:0.1.0"), &mesh()), &["weft-sidecar", "image"]);
    assert_refused(&answered(&pod, &set(0, "example.com/busybox"), &mesh()), &["weft-init", "image"]);
    let command = |pod: &mut Value| pod["spec"]["initContainers"][1]["command"] = json!(["sleep"]);
    assert_refused(&answered(&pod, &command, &mesh()), &["weft-sidecar", "more than its image"]);
    // The mesh has moved to another registry: pods of before may still be changed.
    let mut moved = mesh();
    moved.options.sidecar_image = "registry.example/weft:2".into();
    assert_allowed(&answered(&pod, &set(1, "example.com/weft-sidecar:0.1.1"), &moved));
    assert_allowed(&answered(&pod, &set(1, "registry.example/weft:2"), &moved));
    assert_refused(&answered(&pod, &set(1, "evil.example/weft:2"), &moved), &["registry.example/weft"]);
}

#[test]
fn an_ephemeral_container_gets_no_more_than_any_other() {
    let pod = injected(&bare_pod(), &mesh());
    for (members, allowing, parts) in [
        (json!({ "securityContext": { "runAsUser": 4747 } }), "weft.dev/allow-sidecar-uid", ["4747", "debugger"]),
        (
            json!({ "securityContext": { "capabilities": { "add": ["NET_ADMIN"] } } }),
            "weft.dev/allow-net-admin",
            ["NET_ADMIN", "debugger"],
        ),
        (json!({ "securityContext": { "privileged": true } }), "weft.dev/allow-net-admin", ["privileged", "debugger"]),
        (
            json!({ "targetContainerName": "weft-sidecar" }),
            "weft.dev/allow-shared-process-namespace",
            ["targetContainerName", "debugger"],
        ),
    ] {
        let change = ephemeral(&members);
        let refused = answered(&pod, &change, &mesh());
        assert_refused(&refused, &parts);
        assert_refused(&refused, &[allowing, "namespace shop"]);
        assert_eq!(refused["status"]["code"], 403);
        assert_allowed(&answered(&pod, &change, &mesh_where_shop_has(&json!({ allowing: "true" }))));
    }
    let mounts = ephemeral(&json!({ "volumeMounts": [{ "name": "weft-token", "mountPath": "/x" }] }));
    assert_refused(&answered(&pod, &mounts, &mesh()), &["weft-token", "debugger"]);
}

#[test]
fn what_is_put_in_later_is_never_ours() {
    // With the CNI plugin the name of the init container is free.
    let mut cni = mesh();
    cni.options.redirect = Redirect::Cni;
    let pod = injected(&bare_pod(), &cni);
    let named = json!({ "name": "weft-init", "securityContext": { "capabilities": { "add": ["NET_ADMIN"] } } });
    assert_refused(&answered(&pod, &ephemeral(&named), &cni), &["weft-init", "after the pod was made"]);
    assert_refused(&answered(&bare_pod(), &ephemeral(&json!({ "name": "weft-sidecar" })), &mesh()), &["weft-sidecar"]);
    let skip = |pod: &mut Value| pod["metadata"]["annotations"]["weft.dev/redirect"] = json!("--skip-outbound-ports 1-65535");
    assert_refused(&answered(&pod, &skip, &cni), &["weft.dev/redirect", "stays as it was"]);
    let taken =
        |pod: &mut Value| drop(pod["metadata"]["annotations"].as_object_mut().expect("there").remove("weft.dev/redirect"));
    assert_refused(&answered(&pod, &taken, &cni), &["weft.dev/redirect"]);
}

#[test]
fn a_pod_outside_of_the_mesh_is_its_owners_alone() {
    let pod = bare_pod();
    assert_allowed(&answered(
        &pod,
        &ephemeral(&json!({ "securityContext": { "privileged": true, "runAsUser": 4747 } })),
        &mesh(),
    ));
    let protected = {
        let mut review = update(&pod, &pod, "");
        review["request"]["namespace"] = json!("kube-system");
        admit(&review, &mesh())["response"].take()
    };
    assert_eq!(protected["allowed"], true);
}

#[test]
fn a_change_without_what_was_before_is_refused() {
    let pod = injected(&bare_pod(), &mesh());
    for missing in ["object", "oldObject"] {
        let mut review = update(&pod, &pod, "");
        review["request"].as_object_mut().expect("an object").remove(missing);
        assert_refused(&admit(&review, &mesh())["response"], &[missing]);
    }
}
