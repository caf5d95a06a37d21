//! What is refused, and that the message names what, where, and how to mend it.

use serde_json::{Value, json};
use weft_injector::{NamespaceFacts, Redirect};

use crate::{
    admit, bare_pod, injected, mesh, mesh_where_shop_has, patch_of, pod_with_security, refusal, refusal_with, response, review,
};

#[track_caller]
fn assert_says(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "{part:?} is not in: {message}");
    }
}

#[test]
fn the_sidecars_user_is_its_own() {
    let container = pod_with_security(&json!({ "runAsUser": 4747 }));
    assert_says(&refusal(&container), &["4747", "\"app\"", "spec.containers[0]", "namespace shop", "weft.dev/allow-sidecar-uid"]);

    let mut pod = bare_pod();
    pod["spec"]["securityContext"] = json!({ "runAsUser": 4747 });
    assert_says(&refusal(&pod), &["4747", "spec.securityContext.runAsUser", "weft.dev/allow-sidecar-uid"]);

    let mut init = bare_pod();
    init["spec"]["initContainers"] = json!([{ "name": "prepare", "securityContext": { "runAsUser": 4747 } }]);
    assert_says(&refusal(&init), &["\"prepare\"", "spec.initContainers[0]"]);

    let allowing = mesh_where_shop_has(&json!({ "weft.dev/allow-sidecar-uid": "true" }));
    for pod in [&container, &pod, &init] {
        patch_of(&response(pod, &allowing));
    }
    refusal_with(&container, &mesh_where_shop_has(&json!({ "weft.dev/allow-sidecar-uid": "yes" })));
}

#[test]
fn power_over_the_network_is_refused() {
    let powers = [
        (json!({ "privileged": true }), "privileged"),
        (json!({ "capabilities": { "add": ["NET_ADMIN"] } }), "NET_ADMIN"),
        (json!({ "capabilities": { "add": ["CHOWN", "NET_RAW"] } }), "NET_RAW"),
        (json!({ "capabilities": { "add": ["cap_net_admin"] } }), "cap_net_admin"),
        (json!({ "capabilities": { "add": ["ALL"] } }), "ALL"),
    ];
    let allowing = mesh_where_shop_has(&json!({ "weft.dev/allow-net-admin": "true" }));
    for (security, power) in powers {
        let pod = pod_with_security(&security);
        let message = refusal(&pod);
        assert_says(&message, &[power, "\"app\"", "spec.containers[0]", "namespace shop", "weft.dev/allow-net-admin: \"true\""]);
        patch_of(&response(&pod, &allowing));
    }
    let dropped = json!({ "privileged": false, "capabilities": { "drop": ["NET_ADMIN", "NET_RAW"] } });
    patch_of(&response(&pod_with_security(&dropped), &mesh()));
}

#[test]
fn shared_process_namespaces_are_refused() {
    let allowing = mesh_where_shop_has(&json!({ "weft.dev/allow-shared-process-namespace": "true" }));
    for key in ["shareProcessNamespace", "hostPID"] {
        let mut pod = bare_pod();
        pod["spec"][key] = json!(true);
        assert_says(&refusal(&pod), &[key, "namespace shop", "weft.dev/allow-shared-process-namespace"]);
        patch_of(&response(&pod, &allowing));
    }
}

#[test]
fn one_allowance_does_not_stand_for_another() {
    let pod = pod_with_security(&json!({ "privileged": true }));
    refusal_with(&pod, &mesh_where_shop_has(&json!({ "weft.dev/allow-sidecar-uid": "true" })));
}

#[test]
fn what_is_left_alone_may_have_any_power() {
    let mut pod = pod_with_security(&json!({ "privileged": true, "runAsUser": 4747 }));
    pod["metadata"]["labels"] = json!({ "weft.dev/inject": "disabled" });
    assert_eq!(response(&pod, &mesh())["allowed"], true);
}

#[test]
fn what_is_added_between_two_calls_is_seen() {
    let mut pod = injected(&bare_pod(), &mesh());
    let late = json!({ "name": "late", "securityContext": { "capabilities": { "add": ["NET_ADMIN"] } } });
    pod["spec"]["containers"].as_array_mut().expect("a list").push(late);
    assert_says(&refusal(&pod), &["\"late\"", "spec.containers[1]"]);

    let mut pod = injected(&bare_pod(), &mesh());
    pod["spec"]["initContainers"][1]["securityContext"]["privileged"] = json!(true);
    assert_says(&refusal(&pod), &["\"weft-sidecar\"", "privileged"]);
}

#[test]
fn what_only_bears_our_names_is_not_taken_for_ours() {
    let forged = |change: &dyn Fn(&mut Value)| {
        let mut pod = injected(&bare_pod(), &mesh());
        change(&mut pod["spec"]);
        refusal(&pod)
    };
    assert_says(&forged(&|s| s["initContainers"][1]["image"] = json!("evil/weft-sidecar:0.1.0")), &["weft-sidecar", "image"]);
    assert_says(&forged(&|s| s["initContainers"][1]["command"] = json!(["sleep"])), &["weft-sidecar", "something else"]);
    assert_says(&forged(&|s| s["initContainers"][1]["securityContext"]["runAsUser"] = json!(1000)), &["user 4747"]);
    let skip = json!(["apply", "--verify=outbound", "--skip-outbound-ports", "1-65535"]);
    assert_says(&forged(&|s| s["initContainers"][0]["args"] = skip.clone()), &["weft-init", "skips"]);
    assert_says(&forged(&|s| s["initContainers"] = json!([s["initContainers"][1]])), &["missing"]);
    for (name, value) in
        [("WEFT_REDIRECT_SKIP_UIDS", "1000"), ("PATH", "/evil"), ("LD_PRELOAD", "/evil/x.so"), ("XTABLES_LIBDIR", "/evil")]
    {
        let env = json!([{ "name": name, "value": value }]);
        assert_says(&forged(&|s| s["initContainers"][0]["env"] = env.clone()), &["weft-init", name]);
    }
    let from = json!([{ "configMapRef": { "name": "skips" } }]);
    assert_says(&forged(&|s| s["initContainers"][0]["envFrom"] = from.clone()), &["weft-init", "envFrom"]);
    let twice = |s: &mut Value| {
        let again = s["initContainers"][1].clone();
        s["containers"].as_array_mut().expect("a list").push(again);
    };
    assert_says(&forged(&twice), &["same name"]);
    let mut pod = bare_pod();
    pod["spec"]["containers"][0]["volumeMounts"] = json!([{ "name": "weft-token", "mountPath": "/x" }]);
    assert_says(&refusal(&pod), &["weft-token", "mounts"]);
}

#[test]
fn with_the_plugin_a_pod_that_claims_to_be_in_the_mesh_proves_its_redirect() {
    let mut mesh = mesh();
    mesh.options.redirect = Redirect::Cni;
    let forged = |change: &dyn Fn(&mut Value)| {
        let mut pod = injected(&bare_pod(), &mesh);
        change(&mut pod);
        refusal_with(&pod, &mesh)
    };
    let skips = "--skip-outbound-ports 1-65535";
    assert_says(
        &forged(&|p| p["metadata"]["annotations"]["weft.dev/redirect"] = json!(skips)),
        &["weft.dev/redirect", "options"],
    );
    assert_says(&forged(&|p| p["metadata"]["annotations"]["weft.dev/redirect"] = Value::Null), &["weft.dev/redirect", "options"]);
    assert_says(&forged(&|p| p["spec"]["initContainers"] = json!([p["spec"]["initContainers"][1]])), &["weft-verify", "missing"]);
    let words = json!(["verify", "--directions=outbound", "--skip-outbound-ports", "1-65535"]);
    assert_says(&forged(&|p| p["spec"]["initContainers"][0]["args"] = words.clone()), &["weft-verify", "skips"]);
    assert_says(&forged(&|p| p["spec"]["initContainers"][0]["args"] = json!(["show"])), &["weft-verify", "something else"]);
    assert_says(&forged(&|p| p["spec"]["initContainers"][0]["image"] = json!("evil/true")), &["weft-verify", "image"]);
    let env = json!([{ "name": "WEFT_REDIRECT_DIRECTIONS", "value": "none" }]);
    assert_says(&forged(&|p| p["spec"]["initContainers"][0]["env"] = env.clone()), &["weft-verify", "WEFT_REDIRECT_DIRECTIONS"]);
    // What a cluster puts into every container is no concern of ours.
    let mut pod = injected(&bare_pod(), &mesh);
    pod["spec"]["initContainers"][0]["env"] = json!([{ "name": "HTTP_PROXY", "value": "http://proxy.example:3128" }]);
    assert_eq!(crate::response(&pod, &mesh)["allowed"], true);
}

#[test]
fn our_names_are_free_or_the_pod_is_refused() {
    let mut pod = bare_pod();
    pod["spec"]["containers"][0]["name"] = json!("weft-init");
    assert_says(&refusal(&pod), &["spec.containers[0]", "weft-init", "rename"]);

    let mut pod = bare_pod();
    pod["spec"]["volumes"] = json!([{ "name": "data" }, { "name": "weft-state" }]);
    assert_says(&refusal(&pod), &["spec.volumes[1]", "weft-state", "rename"]);
}

#[test]
fn annotations_with_bad_values_are_refused() {
    for (name, value, hint) in [
        ("weft.dev/skip-inbound-ports", "80,http", "\"http\""),
        ("weft.dev/skip-inbound-ports", "80,,81", "\"\""),
        ("weft.dev/skip-outbound-ports", "70000", "65535"),
        ("weft.dev/skip-outbound-ports", "3306\" --no-verify", "no port"),
        ("weft.dev/skip-subnets", "10.1.2.3/8", "10.0.0.0/8"),
        ("weft.dev/skip-subnets", "db.example.com", "no subnet"),
        ("weft.dev/sidecar-cpu-request", "lots", "digit"),
        ("weft.dev/sidecar-cpu-limit", "0", "above zero"),
        ("weft.dev/sidecar-memory-request", "64mb", "suffix"),
        ("weft.dev/sidecar-memory-limit", "1e9", "suffix"),
        ("weft.dev/sidecar-log", "loud", "level"),
        ("weft.dev/sidecar-workers", "many", "0 to 256"),
        ("weft.dev/drain-timeout", "20", "5m"),
        ("weft.dev/rewrite-probes", "no", "false"),
    ] {
        let mut pod = bare_pod();
        pod["metadata"]["annotations"] = json!({ name: value });
        assert_says(&refusal(&pod), &[name, hint]);
    }

    let mut pod = bare_pod();
    pod["metadata"]["annotations"] = json!({ "weft.dev/sidecar-cpu-request": "2", "weft.dev/sidecar-cpu-limit": "1500m" });
    assert_says(&refusal(&pod), &["weft.dev/sidecar-cpu-request (2)", "weft.dev/sidecar-cpu-limit (1500m)"]);

    let mut pod = bare_pod();
    pod["metadata"]["annotations"] = json!({ "weft.dev/sidecar-cpu-request": "x".repeat(100_000) });
    assert!(refusal(&pod).len() < 500, "a message repeats no more than an excerpt");
}

#[test]
fn a_namespace_that_forbids_is_obeyed_and_its_own_annotations_hold() {
    let asks = [
        ("weft.dev/skip-inbound-ports", "22", "skip-inbound-ports"),
        ("weft.dev/skip-outbound-ports", "25", "skip-outbound-ports"),
        ("weft.dev/skip-subnets", "10.0.0.0/8", "skip-subnets"),
        ("weft.dev/mtls", "permissive", "permissive"),
        ("weft.dev/mtls-ports", "80=permissive", "permissive"),
    ];
    for (name, value, word) in asks {
        let mut pod = bare_pod();
        pod["metadata"]["annotations"] = json!({ name: value });
        patch_of(&response(&pod, &mesh()));
        for forbid in [word, "all"] {
            let forbidding = mesh_where_shop_has(&json!({ "weft.dev/forbid": forbid }));
            assert_says(&refusal_with(&pod, &forbidding), &[name, "namespace shop", "weft.dev/forbid"]);
        }
        // A pod may always ask for less.
        pod["metadata"]["annotations"] = json!({ name: "" });
        patch_of(&response(&pod, &mesh_where_shop_has(&json!({ "weft.dev/forbid": "all" }))));
    }
    let own = mesh_where_shop_has(&json!({ "weft.dev/forbid": "all", "weft.dev/skip-inbound-ports": "22" }));
    let pod = injected(&bare_pod(), &own);
    assert_eq!(pod["spec"]["initContainers"][0]["args"], json!(["apply", "--verify=outbound", "--skip-inbound-ports", "22"]));
}

#[test]
fn a_mistake_of_the_namespace_names_the_namespace() {
    let mistaken = mesh_where_shop_has(&json!({ "weft.dev/sidecar-log": "loud" }));
    assert_says(&refusal_with(&bare_pod(), &mistaken), &["the namespace shop", "weft.dev/sidecar-log"]);
    let namespace = json!({ "metadata": { "name": "shop", "annotations": { "weft.dev/forbid": "everything" } } });
    let error = NamespaceFacts::from_manifest(&namespace).expect_err("no such word").to_string();
    assert_says(&error, &["the namespace shop", "weft.dev/forbid", "skip-inbound-ports"]);
}

#[test]
fn the_sidecars_ports_are_its_own() {
    let mut pod = bare_pod();
    pod["spec"]["containers"][0]["ports"] = json!([{ "containerPort": 80 }, { "containerPort": 4791 }]);
    assert_says(&refusal(&pod), &["4791", "\"app\"", "spec.containers[0]"]);
    pod["spec"]["containers"][0]["ports"] = json!([{ "containerPort": 4791, "protocol": "UDP" }]);
    patch_of(&response(&pod, &mesh()));
}

#[test]
fn a_label_with_another_value_is_refused() {
    let mut pod = bare_pod();
    pod["metadata"]["labels"] = json!({ "weft.dev/inject": "true" });
    assert_says(&refusal(&pod), &["the pod", "weft.dev/inject: \"true\"", "\"enabled\"", "\"disabled\""]);
}

#[test]
fn what_cannot_be_read_is_refused_with_its_place() {
    for (pod, place) in [
        (json!([]), "the pod"),
        (json!({}), "spec"),
        (json!({ "spec": {} }), "spec.containers"),
        (json!({ "spec": { "containers": [7] } }), "spec.containers[0]"),
        (json!({ "spec": { "containers": [{ "securityContext": [] }] } }), "spec.containers[0].securityContext"),
        (json!({ "spec": { "containers": [], "initContainers": {} } }), "spec.initContainers"),
        (json!({ "spec": { "containers": [], "volumes": "none" } }), "spec.volumes"),
        (json!({ "spec": { "containers": [], "hostNetwork": "true" } }), "spec.hostNetwork"),
        (json!({ "metadata": { "annotations": [] }, "spec": { "containers": [] } }), "metadata.annotations"),
        (pod_with_security(&json!({ "runAsUser": "4747" })), "spec.containers[0].securityContext.runAsUser"),
    ] {
        assert_says(&refusal(&pod), &[place]);
    }
}

#[test]
fn what_is_no_review_is_refused() {
    let good = review("shop", &bare_pod());
    for pointer in ["/apiVersion", "/kind", "/request", "/request/uid", "/request/kind", "/request/namespace", "/request/object"]
    {
        let mut review = good.clone();
        *review.pointer_mut(pointer).expect("it is there") = Value::Null;
        let answer = admit(&review, &mesh());
        assert_eq!(answer["response"]["allowed"], false, "{pointer}: {answer}");
        assert!(answer["response"]["uid"].is_string(), "{pointer}: {answer}");
    }
    let mut older = good;
    older["apiVersion"] = json!("admission.k8s.io/v1beta1");
    let answer = admit(&older, &mesh());
    assert_says(answer["response"]["status"]["message"].as_str().expect("a message"), &["admission.k8s.io/v1"]);
}
