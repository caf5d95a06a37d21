//! What the Pod Security level `restricted` asks of a pod, and what an injected pod fails of it: with the CNI plugin
//! nothing, without it what the redirect needs.

use serde_json::{Value, json};
use weft_injector::Redirect;

use crate::{container, injected, mesh_with};

/// A pod that is as `restricted` asks.
fn restricted_pod() -> Value {
    let security = json!({ "allowPrivilegeEscalation": false, "capabilities": { "drop": ["ALL"] } });
    json!({
        "metadata": { "name": "web" },
        "spec": {
            "securityContext": { "runAsNonRoot": true, "seccompProfile": { "type": "RuntimeDefault" } },
            "initContainers": [{ "name": "migrate", "securityContext": security }],
            "containers": [{ "name": "app", "securityContext": security, "ports": [{ "containerPort": 80 }] }],
            "volumes": [{ "name": "cache", "emptyDir": {} }],
        },
    })
}

/// The controls that a container does not meet, each by its field (Pod Security Standards, baseline and restricted).
fn unmet_by(pod: &Value, container: &Value) -> Vec<&'static str> {
    let (own, pods) = (&container["securityContext"], &pod["spec"]["securityContext"]);
    // A container's own word counts before its pod's.
    let either = |field: &str| if own[field].is_null() { &pods[field] } else { &own[field] };
    let capabilities = &own["capabilities"];
    let drops_all = capabilities["drop"].as_array().is_some_and(|list| list.contains(&json!("ALL")));
    let added = capabilities["add"].as_array().cloned().unwrap_or_default();
    let seccomp = either("seccompProfile")["type"].as_str().unwrap_or_default();
    let host_ports = container["ports"].as_array().into_iter().flatten().any(|port| !port["hostPort"].is_null());
    let probe_hosts = ["livenessProbe", "readinessProbe", "startupProbe"]
        .iter()
        .any(|probe| ["httpGet", "tcpSocket"].iter().any(|handler| !container[*probe][*handler]["host"].is_null()));
    let table = [
        ("privileged", own["privileged"] != json!(true)),
        ("allowPrivilegeEscalation", own["allowPrivilegeEscalation"] == json!(false)),
        ("capabilities.drop", drops_all),
        ("capabilities.add", added.iter().all(|capability| capability == "NET_BIND_SERVICE")),
        ("runAsNonRoot", *either("runAsNonRoot") == json!(true)),
        ("runAsUser", *either("runAsUser") != json!(0)),
        ("seccompProfile", ["RuntimeDefault", "Localhost"].contains(&seccomp)),
        ("procMount", own["procMount"].is_null()),
        ("seLinuxOptions", either("seLinuxOptions").is_null()),
        ("appArmorProfile", either("appArmorProfile").is_null()),
        ("windowsOptions", either("windowsOptions").is_null()),
        ("hostPort", !host_ports),
        ("probe host", !probe_hosts),
    ];
    table.into_iter().filter(|(_, met)| !met).map(|(control, _)| control).collect()
}

/// The controls that a pod as a whole does not meet.
fn unmet_by_pod(pod: &Value) -> Vec<String> {
    const VOLUMES: [&str; 8] =
        ["configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"];
    let spec = &pod["spec"];
    let mut unmet: Vec<String> = ["hostNetwork", "hostPID", "hostIPC"]
        .iter()
        .filter(|flag| spec[**flag] == json!(true))
        .map(|flag| (*flag).to_owned())
        .collect();
    for volume in spec["volumes"].as_array().into_iter().flatten() {
        let sources = volume.as_object().expect("an object").keys().filter(|key| *key != "name");
        unmet.extend(sources.filter(|source| !VOLUMES.contains(&source.as_str())).cloned());
    }
    if !spec["securityContext"]["sysctls"].is_null() {
        unmet.push("sysctls".to_owned());
    }
    unmet
}

#[test]
fn with_the_cni_plugin_an_injected_pod_is_restricted() {
    for native_sidecar in [true, false] {
        let mut mesh = mesh_with(native_sidecar);
        mesh.options.redirect = Redirect::Cni;
        let pod = injected(&restricted_pod(), &mesh);
        assert_eq!(unmet_by_pod(&pod), [""; 0]);
        for name in ["weft-verify", "weft-sidecar", "migrate", "app"] {
            assert_eq!(unmet_by(&pod, container(&pod, name)), [""; 0], "{name}");
        }
    }
}

#[test]
fn without_it_the_init_container_alone_has_one_capability_and_the_root_that_it_takes() {
    for native_sidecar in [true, false] {
        let pod = injected(&restricted_pod(), &mesh_with(native_sidecar));
        assert_eq!(unmet_by_pod(&pod), [""; 0]);
        for name in ["weft-sidecar", "migrate", "app"] {
            assert_eq!(unmet_by(&pod, container(&pod, name)), [""; 0], "{name}");
        }
        let init = container(&pod, "weft-init");
        assert_eq!(unmet_by(&pod, init), ["capabilities.add", "runAsNonRoot", "runAsUser"]);
        assert_eq!(init["securityContext"]["capabilities"]["add"], json!(["NET_ADMIN"]));
    }
}

#[test]
fn beyond_restricted_the_roots_are_read_only_and_the_sidecar_is_its_own_user() {
    let pod = injected(&restricted_pod(), &mesh_with(true));
    for name in ["weft-init", "weft-sidecar"] {
        assert_eq!(container(&pod, name)["securityContext"]["readOnlyRootFilesystem"], true, "{name}");
    }
    let sidecar = &container(&pod, "weft-sidecar")["securityContext"];
    assert_eq!((&sidecar["runAsUser"], &sidecar["runAsGroup"]), (&json!(4747), &json!(4747)));
}
