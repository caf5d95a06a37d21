//! What is patched and how, and what is left alone.

use serde_json::{Value, json};
use weft_injector::{InjectorOptions, NamespaceFacts, Outcome, SkipReason, admit, patch_pod};

use crate::{bare_pod, injected, namespace, options, ordinary_pod, patch_of, response, review, skip_reason};

fn paths(patch: &Value) -> Vec<&str> {
    patch.as_array().expect("a list").iter().map(|op| op["path"].as_str().expect("a path")).collect()
}

fn names(list: &Value) -> Vec<&str> {
    list.as_array().expect("a list").iter().map(|entry| entry["name"].as_str().expect("a name")).collect()
}

#[test]
fn an_ordinary_pod_becomes_the_golden_one() {
    let golden: Value = serde_json::from_str(include_str!("../data/ordinary-pod.injected.json")).expect("JSON");
    let got = injected(&ordinary_pod(), &options());
    let pretty = |value: &Value| serde_json::to_string_pretty(value).expect("plain JSON");
    assert_eq!(pretty(&got), pretty(&golden));
}

#[test]
fn the_answer_is_a_review_with_the_uid_that_was_asked() {
    let answer = admit(&review("shop", &ordinary_pod()), &options());
    assert_eq!(answer["apiVersion"], "admission.k8s.io/v1");
    assert_eq!(answer["kind"], "AdmissionReview");
    assert_eq!(answer["response"]["uid"], "705ab4f5-6393-11e8-b7cc-42010a800002");
}

#[test]
fn what_is_there_is_added_to_and_what_is_absent_is_made() {
    let patch = patch_of(&response(&ordinary_pod(), &options()));
    assert_eq!(
        paths(&patch),
        [
            "/metadata/annotations/weft.dev~1injected",
            "/spec/volumes/-",
            "/spec/volumes/-",
            "/spec/volumes/-",
            "/spec/initContainers/0",
            "/spec/initContainers/1",
        ]
    );

    let patch = patch_of(&response(&bare_pod(), &options()));
    assert_eq!(paths(&patch), ["/metadata/annotations", "/spec/volumes", "/spec/initContainers"]);

    let mut headless = bare_pod();
    headless.as_object_mut().expect("an object").remove("metadata");
    headless["spec"]["volumes"] = Value::Null;
    headless["spec"]["initContainers"] = json!([]);
    let patch = patch_of(&response(&headless, &options()));
    assert_eq!(paths(&patch), ["/metadata", "/spec/volumes", "/spec/initContainers/0", "/spec/initContainers/1"]);

    let pod = injected(&headless, &options());
    assert_eq!(pod["metadata"]["annotations"]["weft.dev/injected"], "0.1.0");
    assert_eq!(names(&pod["spec"]["initContainers"]), ["weft-redirect", "weft-sidecar"]);
    assert_eq!(names(&pod["spec"]["volumes"]), ["weft-token", "weft-state", "weft-trust-bundle"]);
}

#[test]
fn without_native_sidecars_it_is_the_first_ordinary_container() {
    let options = InjectorOptions { native_sidecar: false, ..options() };
    let pod = injected(&ordinary_pod(), &options);
    assert_eq!(names(&pod["spec"]["initContainers"]), ["weft-redirect", "migrate"]);
    assert_eq!(names(&pod["spec"]["containers"]), ["weft-sidecar", "app"]);

    let sidecar = &pod["spec"]["containers"][0];
    assert_eq!(sidecar["readinessProbe"]["httpGet"], json!({ "path": "/ready", "port": 4791 }));
    for absent in ["restartPolicy", "startupProbe", "lifecycle"] {
        assert!(sidecar.get(absent).is_none(), "{absent}");
    }
}

#[test]
fn only_the_sidecar_sees_the_token() {
    let pod = injected(&ordinary_pod(), &options());
    for list in ["initContainers", "containers"] {
        for container in pod["spec"][list].as_array().expect("a list") {
            let sees = container["volumeMounts"]
                .as_array()
                .is_some_and(|mounts| mounts.iter().any(|mount| mount["name"] == "weft-token"));
            assert_eq!(sees, container["name"] == "weft-sidecar", "{container}");
        }
    }
}

#[test]
fn injecting_again_changes_nothing() {
    for native_sidecar in [true, false] {
        let options = InjectorOptions { native_sidecar, ..options() };
        for pod in [ordinary_pod(), bare_pod()] {
            let once = injected(&pod, &options);
            let again = response(&once, &options);
            assert_eq!(again["allowed"], true);
            assert!(again.get("patch").is_none());
            assert_eq!(again["auditAnnotations"]["skipped"], "already-injected");
        }
    }
}

#[test]
fn a_label_decides_and_disabled_wins() {
    let labelled = |value: &str| {
        let mut pod = bare_pod();
        pod["metadata"]["labels"] = json!({ "weft.dev/inject": value });
        pod
    };
    assert_eq!(skip_reason("plain", &bare_pod()), "not-enabled");
    assert_eq!(skip_reason("plain", &labelled("disabled")), "pod-disabled");
    assert_eq!(skip_reason("shop", &labelled("disabled")), "pod-disabled");
    patch_of(&admit(&review("plain", &labelled("enabled")), &options())["response"]);

    let off = json!({ "metadata": { "name": "off", "labels": { "weft.dev/inject": "disabled" } } });
    let off = NamespaceFacts::from_manifest(&off).expect("a namespace");
    let outcome = patch_pod(&labelled("enabled"), &off, &options());
    assert_eq!(outcome, Ok(Outcome::Skip(SkipReason::NamespaceDisabled)));
}

#[test]
fn a_namespace_that_is_not_known_counts_as_enabled() {
    patch_of(&admit(&review("brand-new", &bare_pod()), &options())["response"]);
}

#[test]
fn a_namespace_reads_from_its_manifest() {
    let manifest = json!({
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {
            "name": "shop",
            "labels": { "weft.dev/inject": "enabled" },
            "annotations": { "weft.dev/allow-sidecar-uid": "true", "weft.dev/allow-net-admin": "yes" },
        },
    });
    let facts = NamespaceFacts::from_manifest(&manifest).expect("a namespace");
    assert_eq!(facts, NamespaceFacts { allow_sidecar_uid: true, ..NamespaceFacts::selected(namespace("shop")) });
    for bad in [
        json!({}),
        json!([]),
        json!({ "metadata": { "name": "Not A Label" } }),
        json!({ "metadata": { "name": "shop", "labels": { "weft.dev/inject": "on" } } }),
    ] {
        assert!(NamespaceFacts::from_manifest(&bad).is_err(), "{bad} was accepted");
    }
}

#[test]
fn some_pods_have_no_network_of_their_own_to_redirect() {
    let with = |key: &str, value: Value| {
        let mut pod = bare_pod();
        pod["spec"][key] = value;
        pod
    };
    assert_eq!(skip_reason("shop", &with("hostNetwork", json!(true))), "host-network");
    assert_eq!(skip_reason("shop", &with("os", json!({ "name": "windows" }))), "windows");
    patch_of(&response(&with("os", json!({ "name": "linux" })), &options()));
}

#[test]
fn what_is_no_pod_creation_is_let_by() {
    for (pointer, value) in [
        ("/request/kind/kind", json!("Deployment")),
        ("/request/kind/group", json!("example.com")),
        ("/request/operation", json!("UPDATE")),
    ] {
        let mut review = review("shop", &bare_pod());
        *review.pointer_mut(pointer).expect("it is there") = value;
        let answer = admit(&review, &options());
        assert_eq!(answer["response"]["allowed"], true, "{answer}");
        assert_eq!(answer["response"]["auditAnnotations"]["skipped"], "not-a-pod-creation", "{answer}");
    }
    let mut review = review("shop", &bare_pod());
    review["request"]["subResource"] = json!("ephemeralcontainers");
    assert_eq!(admit(&review, &options())["response"]["auditAnnotations"]["skipped"], "not-a-pod-creation");
}

#[test]
fn resources_have_defaults_that_yield() {
    let resources = |annotations: Value| {
        let mut pod = bare_pod();
        pod["metadata"]["annotations"] = annotations;
        injected(&pod, &options())["spec"]["initContainers"][1]["resources"].take()
    };
    assert_eq!(resources(json!({})), json!({ "requests": { "cpu": "10m", "memory": "16Mi" }, "limits": { "memory": "128Mi" } }));
    assert_eq!(
        resources(json!({ "weft.dev/sidecar-memory-request": "1Gi" })),
        json!({ "requests": { "cpu": "10m", "memory": "1Gi" }, "limits": { "memory": "1Gi" } })
    );
    assert_eq!(
        resources(json!({ "weft.dev/sidecar-memory-limit": "8Mi", "weft.dev/sidecar-cpu-limit": "5m" })),
        json!({ "requests": { "cpu": "5m", "memory": "8Mi" }, "limits": { "cpu": "5m", "memory": "8Mi" } })
    );
    assert_eq!(
        resources(json!({ "weft.dev/sidecar-cpu-request": "0.2", "weft.dev/sidecar-cpu-limit": "200m" })),
        json!({ "requests": { "cpu": "0.2", "memory": "16Mi" }, "limits": { "cpu": "200m", "memory": "128Mi" } })
    );
}

#[test]
fn nothing_is_skipped_unless_asked() {
    let mut pod = bare_pod();
    pod["metadata"]["annotations"] = json!({ "weft.dev/skip-inbound-ports": " " });
    let pod = injected(&pod, &options());
    assert_eq!(pod["spec"]["initContainers"][0]["args"], json!(["apply", "--verify"]));
}
