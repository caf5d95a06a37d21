//! Whatever comes in, a review comes out, and a patch that fits.

use k8s_openapi::api::core::v1::Pod;
use proptest::prelude::*;
use proptest::sample::Index;
use serde_json::{Map, Value, json};

use crate::{Mesh, admit, apply, mesh_with, ordinary_pod, patch_of, review};

/// Keys and texts that injection looks for, so that arbitrary JSON gets past the first check.
const WORDS: [&str; 51] = [
    "apiVersion",
    "admission.k8s.io/v1",
    "kind",
    "AdmissionReview",
    "request",
    "uid",
    "namespace",
    "operation",
    "CREATE",
    "UPDATE",
    "oldObject",
    "ephemeralContainers",
    "object",
    "Pod",
    "metadata",
    "name",
    "labels",
    "annotations",
    "weft.dev/inject",
    "enabled",
    "disabled",
    "spec",
    "containers",
    "initContainers",
    "volumes",
    "securityContext",
    "runAsUser",
    "capabilities",
    "add",
    "NET_ADMIN",
    "privileged",
    "hostNetwork",
    "weft-sidecar",
    "weft-init",
    "weft.dev/skip-subnets",
    "weft.dev/rewrite-probes",
    "ports",
    "containerPort",
    "livenessProbe",
    "readinessProbe",
    "timeoutSeconds",
    "httpGet",
    "tcpSocket",
    "grpc",
    "port",
    "host",
    "httpHeaders",
    "lifecycle",
    "postStart",
    "env",
    "WEFT_PROBES",
];

fn word() -> impl Strategy<Value = String> {
    prop_oneof![
        3 => prop::sample::select(WORDS.to_vec()).prop_map(str::to_owned),
        1 => "\\PC{0,8}",
    ]
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        Just(json!(4747)),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        word().prop_map(Value::from),
    ];
    leaf.prop_recursive(6, 48, 5, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            prop::collection::btree_map(word(), inner, 0..6)
                .prop_map(|members| Value::Object(members.into_iter().collect::<Map<_, _>>())),
        ]
    })
}

/// Every place in `value`, as JSON pointers.
fn places(value: &Value, at: &str, found: &mut Vec<String>) {
    found.push(at.to_owned());
    match value {
        Value::Object(members) => {
            for (key, member) in members {
                let token = key.replace('~', "~0").replace('/', "~1");
                places(member, &format!("{at}/{token}"), found);
            }
        }
        Value::Array(entries) => {
            for (index, entry) in entries.iter().enumerate() {
                places(entry, &format!("{at}/{index}"), found);
            }
        }
        _ => {}
    }
}

/// The answer is well formed; where it patches, the patch fits, what was a pod is one still, and a second call has
/// nothing to add.
fn check(asked: &Value, mesh: &Mesh) {
    let answer = admit(asked, mesh);
    assert_eq!(answer["kind"], "AdmissionReview");
    let response = &answer["response"];
    assert!(response["uid"].is_string(), "{answer}");
    let allowed = response["allowed"].as_bool().expect("it is decided");
    assert_eq!(allowed, response.get("status").is_none(), "a refusal has a message, and nothing else has: {answer}");
    if response.get("patch").is_some() {
        let mut patched = asked.clone();
        let pod = &mut patched["request"]["object"];
        let was_pod = serde_json::from_value::<Pod>(pod.clone()).is_ok();
        apply::apply(pod, &patch_of(response)).expect("the patch fits");
        let is_pod = serde_json::from_value::<Pod>(pod.clone());
        assert!(is_pod.is_ok() || !was_pod, "{is_pod:?}: {pod}");
        let again = admit(&patched, mesh);
        assert_eq!(again["response"]["allowed"], true, "{again}");
        assert!(again["response"].get("patch").is_none(), "{again}");
        let reason = response["auditAnnotations"].get("skipped").cloned().unwrap_or_else(|| json!("already-injected"));
        assert_eq!(again["response"]["auditAnnotations"]["skipped"], reason, "{again}");
    }
}

/// A probe of each sort, by a number or a name, with what may stand beside it.
fn any_probe() -> impl Strategy<Value = Value> {
    let port = prop_oneof![Just(json!(8080)), Just(json!("http")), Just(json!("unheard-of")), any::<u16>().prop_map(Value::from)];
    let path = prop::sample::select(vec!["/", "", "healthz?full=1", "/$(POD_NAME)", "/a b"]);
    let handler = (0..4_u8, port, path, any::<bool>()).prop_map(|(kind, port, path, flag)| match kind {
        0 if flag => json!({ "httpGet": { "path": path, "port": port, "scheme": "HTTPS", "host": "elsewhere" } }),
        0 => json!({ "httpGet": { "path": path, "port": port, "httpHeaders": [{ "name": "Host", "value": "$$shop" }] } }),
        1 => json!({ "tcpSocket": { "port": port } }),
        2 => json!({ "grpc": { "port": 9000, "service": if flag { json!("shop") } else { Value::Null } } }),
        _ => json!({ "exec": { "command": ["true"] } }),
    });
    (handler, prop::option::of(0..20_i32)).prop_map(|(mut probe, timeout)| {
        if let Some(timeout) = timeout {
            probe["timeoutSeconds"] = json!(timeout);
        }
        probe
    })
}

fn any_container() -> impl Strategy<Value = Value> {
    let probes = prop::collection::btree_map(
        prop::sample::select(vec!["livenessProbe", "readinessProbe", "startupProbe"]),
        any_probe(),
        0..3,
    );
    ("[a-z]{1,6}", probes, prop::collection::vec(1..70_000_i32, 0..40), any::<bool>()).prop_map(|(name, probes, ports, hook)| {
        let mut ports: Vec<Value> = ports.into_iter().map(|port| json!({ "containerPort": port })).collect();
        ports.push(json!({ "name": "http", "containerPort": 80, "hostPort": 80 }));
        let mut container = json!({ "name": name, "image": "example.com/app:1", "ports": ports });
        for (key, probe) in probes {
            container[key] = probe;
        }
        if hook {
            container["lifecycle"] = json!({ "preStop": { "httpGet": { "path": "/bye", "port": 80 } } });
        }
        container
    })
}

/// A pod such as people write.
fn likely_pod() -> impl Strategy<Value = Value> {
    let list = || prop::collection::vec(any_container(), 1..4);
    (list(), prop::option::of(list()), any::<bool>(), any::<bool>()).prop_map(|(containers, init, host, job)| {
        let mut pod = json!({ "apiVersion": "v1", "kind": "Pod", "spec": { "containers": containers } });
        if let Some(init) = init {
            pod["spec"]["initContainers"] = init.into();
        }
        if host && job {
            pod["spec"]["hostNetwork"] = json!(true);
        }
        if job {
            pod["metadata"] = json!({ "name": "job", "annotations": null });
            pod["spec"]["restartPolicy"] = json!("Never");
        }
        pod
    })
}

proptest! {
    #[test]
    fn any_json_is_answered(asked in any_json(), native_sidecar in any::<bool>()) {
        check(&asked, &mesh_with(native_sidecar));
    }

    #[test]
    fn any_pod_is_answered(pod in any_json(), native_sidecar in any::<bool>()) {
        check(&review("shop", &pod), &mesh_with(native_sidecar));
    }

    #[test]
    fn a_likely_pod_is_answered_and_its_probes_are_kept(pod in likely_pod(), native_sidecar in any::<bool>()) {
        check(&review("shop", &pod), &mesh_with(native_sidecar));
        crate::probes::check_kept(&pod, &mesh_with(native_sidecar));
    }

    #[test]
    fn a_good_review_with_one_part_exchanged_is_answered(
        part in any_json(),
        place in any::<Index>(),
        native_sidecar in any::<bool>(),
    ) {
        let mut asked = review("shop", &ordinary_pod());
        let mut found = Vec::new();
        places(&asked, "", &mut found);
        *asked.pointer_mut(&place.get(&found[..])[..]).expect("the place was found there") = part;
        check(&asked, &mesh_with(native_sidecar));
    }
}
