//! What is patched and how, and what is left alone.

use serde_json::{Value, json};
use weft_injector::{NamespaceFacts, Redirect, SkipReason, patch_pod};

use crate::{
    admit, apply, bare_pod, container, injected, mesh, mesh_where_shop_has, mesh_with, namespace, ordinary_pod, patch_of,
    response, review, skip_reason,
};

fn paths(patch: &Value) -> Vec<&str> {
    patch.as_array().expect("a list").iter().map(|op| op["path"].as_str().expect("a path")).collect()
}

fn names(list: &Value) -> Vec<&str> {
    list.as_array().expect("a list").iter().map(|entry| entry["name"].as_str().expect("a name")).collect()
}

#[test]
fn an_ordinary_pod_becomes_the_golden_one() {
    let golden: Value = serde_json::from_str(include_str!("../data/ordinary-pod.injected.json")).expect("JSON");
    let got = injected(&ordinary_pod(), &mesh());
    assert_eq!(got, golden, "\n{}", serde_json::to_string_pretty(&got).expect("plain JSON"));
}

#[test]
fn the_answer_is_a_review_with_the_uid_that_was_asked() {
    let answer = admit(&review("shop", &ordinary_pod()), &mesh());
    assert_eq!(answer["apiVersion"], "admission.k8s.io/v1");
    assert_eq!(answer["kind"], "AdmissionReview");
    assert_eq!(answer["response"]["uid"], "705ab4f5-6393-11e8-b7cc-42010a800002");
}

#[test]
fn what_is_there_is_added_to_and_what_is_absent_is_made() {
    let patch = patch_of(&response(&ordinary_pod(), &mesh()));
    assert_eq!(
        paths(&patch),
        [
            "/spec/containers/0/livenessProbe",
            "/spec/containers/0/readinessProbe",
            "/metadata/annotations/weft.dev~1injected",
            "/spec/volumes/-",
            "/spec/volumes/-",
            "/spec/volumes/-",
            "/spec/initContainers/0",
            "/spec/initContainers/1",
        ]
    );

    let patch = patch_of(&response(&bare_pod(), &mesh()));
    assert_eq!(paths(&patch), ["/metadata/annotations", "/spec/volumes", "/spec/initContainers"]);

    let mut headless = bare_pod();
    headless.as_object_mut().expect("an object").remove("metadata");
    headless["spec"]["volumes"] = Value::Null;
    headless["spec"]["initContainers"] = json!([]);
    let patch = patch_of(&response(&headless, &mesh()));
    assert_eq!(paths(&patch), ["/metadata", "/spec/volumes", "/spec/initContainers/0", "/spec/initContainers/1"]);

    let pod = injected(&headless, &mesh());
    assert_eq!(pod["metadata"]["annotations"]["weft.dev/injected"], "0.1.0");
    assert_eq!(names(&pod["spec"]["initContainers"]), ["weft-init", "weft-sidecar"]);
    assert_eq!(names(&pod["spec"]["volumes"]), ["weft-token", "weft-state", "weft-trust-bundle"]);
}

#[test]
fn the_workload_api_is_offered_to_every_container_where_it_is_asked_for() {
    let mut pod = ordinary_pod();
    pod["metadata"]["annotations"]["weft.dev/workload-api"] = json!("enabled");
    pod["spec"]["containers"][0]["env"] = json!([{ "name": "SPIFFE_ENDPOINT_SOCKET", "value": "unix:///its/own" }]);
    let pod = injected(&pod, &mesh());
    let socket = json!({ "name": "SPIFFE_ENDPOINT_SOCKET", "value": "unix:///run/weft/workload-api/socket" });
    let mount = json!({ "name": "weft-workload-api", "mountPath": "/run/weft/workload-api", "readOnly": true });
    let has = |container: &Value, key: &str, entry: &Value| container[key].as_array().is_some_and(|list| list.contains(entry));
    let (migrate, app) = (container(&pod, "migrate"), container(&pod, "app"));
    assert!(has(migrate, "env", &socket) && has(migrate, "volumeMounts", &mount), "{migrate:#}");
    assert!(!has(app, "env", &socket) && has(app, "volumeMounts", &mount), "what a container has is left alone: {app:#}");
    let sidecar = container(&pod, "weft-sidecar");
    assert!(has(sidecar, "volumeMounts", &json!({ "name": "weft-workload-api", "mountPath": "/run/weft/workload-api" })));
    assert!(has(sidecar, "env", &json!({ "name": "WEFT_WORKLOAD_API_CALLERS", "value": "volume" })));
    assert!(!has(container(&pod, "weft-init"), "volumeMounts", &mount));
    assert_eq!(names(&pod["spec"]["volumes"]).last(), Some(&"weft-workload-api"));
    assert_eq!(skip_reason("shop", &pod), "already-injected", "what was injected is taken for genuine");
}

#[test]
fn without_native_sidecars_it_is_the_first_ordinary_container() {
    let pod = injected(&ordinary_pod(), &mesh_with(false));
    assert_eq!(names(&pod["spec"]["initContainers"]), ["weft-init", "migrate"]);
    assert_eq!(names(&pod["spec"]["containers"]), ["weft-sidecar", "app"]);

    let sidecar = &pod["spec"]["containers"][0];
    assert_eq!(sidecar["readinessProbe"]["httpGet"], json!({ "path": "/ready", "port": 4791 }));
    for absent in ["restartPolicy", "startupProbe", "lifecycle"] {
        assert!(sidecar.get(absent).is_none(), "{absent}");
    }
}

#[test]
fn only_the_sidecar_sees_the_token() {
    let pod = injected(&ordinary_pod(), &mesh());
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
        let mesh = mesh_with(native_sidecar);
        for pod in [ordinary_pod(), bare_pod()] {
            let once = injected(&pod, &mesh);
            let again = response(&once, &mesh);
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
    patch_of(&admit(&review("plain", &labelled("enabled")), &mesh())["response"]);

    let off = json!({ "metadata": { "name": "off", "labels": { "weft.dev/inject": "disabled" } } });
    let off = NamespaceFacts::from_manifest(&off).expect("a namespace");
    let decision = patch_pod(&labelled("enabled"), &off, &mesh().options).expect("it is not refused");
    assert_eq!(decision.skipped, Some(SkipReason::NamespaceDisabled));
    assert!(decision.warnings[0].contains("its namespace"), "{decision:?}");
    assert_eq!(decision.ops.len(), 1, "a pod that asked in vain says why");
    let decision = patch_pod(&bare_pod(), &off, &mesh().options).expect("it is not refused");
    assert!(decision.ops.is_empty() && decision.warnings.is_empty(), "nobody asked: {decision:?}");
}

#[test]
fn a_pod_that_opts_out_of_an_enabled_namespace_says_so() {
    let mut pod = bare_pod();
    pod["metadata"]["labels"] = json!({ "weft.dev/inject": "disabled" });
    let noted = injected(&pod, &mesh());
    assert_eq!(noted["metadata"]["annotations"], json!({ "weft.dev/not-injected": "pod-disabled" }));
    assert_eq!(noted["spec"], pod["spec"]);
    assert_eq!(skip_reason("shop", &noted), "pod-disabled", "once is enough");
    assert!(response(&pod, &mesh()).get("warnings").is_none(), "its author knows");
}

#[test]
fn a_namespace_that_is_not_known_counts_as_enabled() {
    patch_of(&admit(&review("brand-new", &bare_pod()), &mesh())["response"]);
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
fn some_pods_have_no_network_of_their_own_to_redirect_and_say_so() {
    let with = |key: &str, value: Value| {
        let mut pod = bare_pod();
        pod["spec"][key] = value;
        pod
    };
    for (pod, reason, word) in [
        (with("hostNetwork", json!(true)), "host-network", "hostNetwork"),
        (with("os", json!({ "name": "windows" })), "windows", "Windows"),
    ] {
        let response = response(&pod, &mesh());
        assert_eq!(response["auditAnnotations"]["skipped"], reason);
        assert!(response["warnings"][0].as_str().is_some_and(|text| text.contains(word)), "{response}");
        let mut noted = pod;
        apply::apply(&mut noted, &patch_of(&response)).expect("the patch fits the pod");
        assert_eq!(noted["metadata"]["annotations"], json!({ "weft.dev/not-injected": reason }));
        assert_eq!(skip_reason("shop", &noted), reason, "once is enough");
        // Who did not ask is not written to.
        assert_eq!(skip_reason("plain", &noted), "not-enabled");
    }
    patch_of(&response(&with("os", json!({ "name": "linux" })), &mesh()));
}

#[test]
fn the_clusters_own_namespaces_are_never_touched() {
    let mut pod = bare_pod();
    pod["metadata"]["labels"] = json!({ "weft.dev/inject": "enabled" });
    for name in ["kube-system", "kube-public", "kube-node-lease", "weft-system"] {
        assert_eq!(skip_reason(name, &pod), "protected-namespace");
        assert_eq!(skip_reason(name, &json!("no pod at all")), "protected-namespace");
    }
}

#[test]
fn a_namespace_sets_options_and_a_pod_has_the_last_word() {
    let mesh = mesh_where_shop_has(&json!({
        "weft.dev/sidecar-memory-limit": "256Mi",
        "weft.dev/sidecar-log": "debug",
        "weft.dev/drain-timeout": "90s",
        "weft.dev/skip-subnets": "10.9.0.0/16",
    }));
    let mut pod = bare_pod();
    pod["metadata"]["annotations"] = json!({ "weft.dev/sidecar-log": "info,weft_sidecar=trace", "weft.dev/skip-subnets": "" });
    let pod = injected(&pod, &mesh);
    let sidecar = container(&pod, "weft-sidecar");
    let variable = |name: &str| {
        let environment = sidecar["env"].as_array().expect("a list");
        environment.iter().find(|entry| entry["name"] == name).map(|entry| entry["value"].clone())
    };
    assert_eq!(sidecar["resources"]["limits"]["memory"], "256Mi");
    assert_eq!(variable("WEFT_LOG"), Some(json!("info,weft_sidecar=trace")));
    assert_eq!(variable("WEFT_DRAIN_TIMEOUT"), Some(json!("90s")));
    assert_eq!(variable("WEFT_WORKERS"), None, "the sidecar has defaults of its own");
    assert_eq!(container(&pod, "weft-init")["args"], json!(["apply", "--verify=outbound"]));
}

#[test]
fn the_redirect_and_the_sidecar_agree_about_dns() {
    let mut pod = bare_pod();
    pod["metadata"]["annotations"] = json!({ "weft.dev/dns-capture": "enabled" });
    let pod = injected(&pod, &mesh());
    let environment = container(&pod, "weft-sidecar")["env"].clone();
    let port = environment.as_array().expect("a list").iter().find(|entry| entry["name"] == "WEFT_DNS_PORT").cloned();
    assert_eq!(port, Some(json!({ "name": "WEFT_DNS_PORT", "value": "4753" })));
    assert_eq!(container(&pod, "weft-init")["args"], json!(["apply", "--verify=outbound", "--dns-port", "4753"]));
}

/// What a second call for the same pod makes of it.
fn injected_again(pod: &Value, mesh: &crate::Mesh) -> Value {
    let response = response(pod, mesh);
    assert_eq!(response["allowed"], true, "{response}");
    if response.get("patch").is_some() { injected(pod, mesh) } else { pod.clone() }
}

#[test]
fn with_the_cni_plugin_the_pod_has_no_privilege_and_says_what_to_redirect() {
    for native_sidecar in [true, false] {
        let mut mesh = mesh_with(native_sidecar);
        mesh.options.redirect = Redirect::Cni;
        let pod = injected(&ordinary_pod(), &mesh);
        let flags = "--skip-inbound-ports 22,9100 --skip-outbound-ports 3306 --skip-subnets 10.96.0.0/12,169.254.169.254/32";
        assert_eq!(pod["metadata"]["annotations"]["weft.dev/redirect"], flags);
        assert!(!pod.to_string().contains("weft-init") && !pod.to_string().contains("NET_ADMIN"), "{pod}");
        assert_eq!(injected(&bare_pod(), &mesh)["metadata"]["annotations"]["weft.dev/redirect"], "");

        // What proves that the plugin was there comes first, and goes by the same words.
        let first = &pod["spec"]["initContainers"][0];
        assert_eq!((&first["name"], &first["command"]), (&json!("weft-verify"), &json!(["weft-redirect"])));
        let words: Vec<&str> = ["verify", "--directions=outbound"].into_iter().chain(flags.split(' ')).collect();
        assert_eq!(first["args"], json!(words));
        assert_ne!(first["securityContext"]["runAsUser"], 4747, "whose connections prove nothing");
        // The second call for the same pod finds nothing to do.
        assert_eq!(injected_again(&pod, &mesh), pod);
    }
}

#[test]
fn without_native_sidecars_a_pod_that_will_suffer_is_told() {
    let mut pod = ordinary_pod();
    pod["spec"]["restartPolicy"] = json!("Never");
    let said = response(&pod, &mesh_with(false))["warnings"].to_string();
    assert!(said.contains("init containers") && said.contains("end by itself"), "{said}");
    assert!(response(&pod, &mesh()).get("warnings").is_none());
}

#[test]
fn what_is_no_pod_creation_is_let_by() {
    for (pointer, value) in [
        ("/request/kind/kind", json!("Deployment")),
        ("/request/kind/group", json!("example.com")),
        ("/request/operation", json!("DELETE")),
    ] {
        let mut review = review("shop", &bare_pod());
        *review.pointer_mut(pointer).expect("it is there") = value;
        let answer = admit(&review, &mesh());
        assert_eq!(answer["response"]["allowed"], true, "{answer}");
        assert_eq!(answer["response"]["auditAnnotations"]["skipped"], "not-a-pod-creation", "{answer}");
    }
    let mut review = review("shop", &bare_pod());
    for (operation, part) in [("CREATE", "binding"), ("UPDATE", "status"), ("UPDATE", "resize"), ("CONNECT", "exec")] {
        review["request"]["operation"] = json!(operation);
        review["request"]["subResource"] = json!(part);
        assert_eq!(admit(&review, &mesh())["response"]["auditAnnotations"]["skipped"], "not-a-pod-creation", "{part}");
    }
}

#[test]
fn resources_have_defaults_that_yield() {
    let resources = |annotations: Value| {
        let mut pod = bare_pod();
        pod["metadata"]["annotations"] = annotations;
        injected(&pod, &mesh())["spec"]["initContainers"][1]["resources"].take()
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
    let pod = injected(&pod, &mesh());
    assert_eq!(pod["spec"]["initContainers"][0]["args"], json!(["apply", "--verify=outbound"]));
}
