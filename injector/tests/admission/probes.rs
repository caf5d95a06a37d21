//! The kubelet's probes: exchanged for the sidecar's, with nothing lost.

use serde_json::{Value, json};

use crate::{admit, apply, bare_pod, container, injected, mesh, mesh_where_shop_has, patch_of, response, review};

const PROBES: [(&str, &str); 3] = [("livenessProbe", "liveness"), ("readinessProbe", "readiness"), ("startupProbe", "startup")];

/// What the sidecar is told to check, as the kubelet passes it on.
fn checks(pod: &Value) -> Value {
    let environment = container(pod, "weft-sidecar")["env"].as_array().expect("a list");
    let told = environment.iter().find(|entry| entry["name"] == "WEFT_PROBES").and_then(|entry| entry["value"].as_str());
    told.map_or_else(|| json!({}), |text| serde_json::from_str(&text.replace("$$", "$")).expect("the checks are JSON"))
}

fn pod_with_probe(probe: &Value) -> Value {
    let mut pod = bare_pod();
    pod["spec"]["containers"][0]["ports"] = json!([{ "name": "metrics", "containerPort": 9100 }, { "containerPort": 80 }]);
    pod["spec"]["containers"][0]["livenessProbe"] = probe.clone();
    pod
}

/// For every pod that is injected: a probe is as it was, or the sidecar has its check.
pub(crate) fn check_kept(pod: &Value, mesh: &crate::Mesh) {
    let response = admit(&review("shop", pod), mesh)["response"].take();
    if response.get("patch").is_none() || response.get("auditAnnotations").is_some() {
        return;
    }
    let mut after = pod.clone();
    apply::apply(&mut after, &patch_of(&response)).expect("the patch fits the pod");
    let checks = checks(&after);
    for list in ["initContainers", "containers"] {
        let ours = ["weft-init", "weft-sidecar"];
        let kept = after["spec"][list].as_array().into_iter().flatten().filter(|c| ours.iter().all(|name| c["name"] != *name));
        let before = pod["spec"][list].as_array().into_iter().flatten();
        for (before, kept) in before.zip(kept) {
            assert_eq!((&before["name"], &before["lifecycle"]), (&kept["name"], &kept["lifecycle"]));
            for (key, kind) in PROBES {
                let (before, after) = (&before[key], &kept[key]);
                let path = format!("/probe/{}/{kind}", kept["name"].as_str().expect("a name"));
                if before != after {
                    assert_eq!(after["httpGet"], json!({ "path": path, "port": 4791 }));
                    assert_eq!(after["timeoutSeconds"], before["timeoutSeconds"]);
                    assert!(checks[&path["/probe/".len()..]]["port"].as_u64().is_some_and(|port| port > 0), "{checks}");
                } else if before["tcpSocket"]["port"] == json!("http") || before["grpc"].is_object() {
                    panic!("{before} was left as it is");
                }
            }
        }
    }
}

#[test]
fn each_sort_is_turned_over_with_its_port_resolved() {
    for (probe, check) in [
        (json!({ "tcpSocket": { "port": 5432 } }), json!({ "check": "tcp", "port": 5432, "timeout_secs": 1 })),
        (json!({ "tcpSocket": { "port": "metrics" } }), json!({ "check": "tcp", "port": 9100, "timeout_secs": 1 })),
        (json!({ "tcpSocket": { "port": "8080" } }), json!({ "check": "tcp", "port": 8080, "timeout_secs": 1 })),
        (
            json!({ "httpGet": { "path": "/healthz?full=1", "port": 80 }, "timeoutSeconds": 7 }),
            json!({ "check": "http", "path": "/healthz?full=1", "port": 80, "tls": false, "timeout_secs": 7 }),
        ),
        (
            json!({ "httpGet": { "port": 8443, "scheme": "HTTPS", "httpHeaders": [{ "name": "X-A", "value": "$(B)" }] } }),
            json!({
                "check": "http", "path": "", "port": 8443, "tls": true, "headers": [["X-A", "$(B)"]], "timeout_secs": 1,
            }),
        ),
        (
            json!({ "grpc": { "port": 9000, "service": "shop" }, "timeoutSeconds": 2 }),
            json!({ "check": "grpc", "port": 9000, "service": "shop", "timeout_secs": 2 }),
        ),
    ] {
        let pod = injected(&pod_with_probe(&probe), &mesh());
        assert_eq!(checks(&pod), json!({ "app/liveness": check }), "{probe}");
    }
}

#[test]
fn schedule_and_thresholds_stay_with_the_kubelet() {
    let probe = json!({
        "httpGet": { "path": "/", "port": 80 },
        "initialDelaySeconds": 3, "periodSeconds": 4, "timeoutSeconds": 5, "successThreshold": 1, "failureThreshold": 6,
        "terminationGracePeriodSeconds": 7,
    });
    let mut expected = probe.clone();
    expected["httpGet"] = json!({ "path": "/probe/app/liveness", "port": 4791 });
    let pod = injected(&pod_with_probe(&probe), &mesh());
    assert_eq!(container(&pod, "app")["livenessProbe"], expected);
}

#[test]
fn what_the_sidecar_cannot_do_better_stays() {
    for probe in [
        json!({ "exec": { "command": ["true"] } }),
        json!({ "httpGet": { "path": "/", "port": 80, "host": "192.0.2.1" } }),
        json!({ "httpGet": { "path": "/ready", "port": 4791 } }),
        json!({ "tcpSocket": { "port": "unheard-of" } }),
        json!({ "periodSeconds": 3 }),
    ] {
        let pod = injected(&pod_with_probe(&probe), &mesh());
        assert_eq!((&container(&pod, "app")["livenessProbe"], checks(&pod)), (&probe, json!({})), "{probe}");
    }
    let unheard = response(&pod_with_probe(&json!({ "tcpSocket": { "port": "unheard-of" } })), &mesh());
    assert!(unheard["warnings"][0].as_str().is_some_and(|text| text.contains("unheard-of")), "{unheard}");
}

#[test]
fn all_stay_where_that_is_asked_for() {
    let pod = pod_with_probe(&json!({ "tcpSocket": { "port": 80 } }));
    let pod = injected(&pod, &mesh_where_shop_has(&json!({ "weft.dev/rewrite-probes": "false" })));
    assert_eq!(container(&pod, "app")["livenessProbe"], json!({ "tcpSocket": { "port": 80 } }));
    assert_eq!(checks(&pod), json!({}));
}

#[test]
fn probes_of_a_container_that_came_later_are_turned_over_too() {
    for known in [true, false] {
        let probe = if known { json!({ "tcpSocket": { "port": 80 } }) } else { json!({ "exec": { "command": ["true"] } }) };
        let mut pod = injected(&pod_with_probe(&probe), &mesh());
        let late = json!({ "name": "late", "readinessProbe": { "grpc": { "port": 9000 } } });
        pod["spec"]["containers"].as_array_mut().expect("a list").push(late);

        let answer = response(&pod, &mesh());
        assert_eq!(answer["auditAnnotations"]["skipped"], "already-injected");
        apply::apply(&mut pod, &patch_of(&answer)).expect("the patch fits the pod");
        let checks = checks(&pod);
        assert_eq!(checks["late/readiness"], json!({ "check": "grpc", "port": 9000, "service": "", "timeout_secs": 1 }));
        assert_eq!(checks.get("app/liveness").is_some(), known);
        assert_eq!(container(&pod, "late")["readinessProbe"]["httpGet"]["path"], "/probe/late/readiness");
        assert!(response(&pod, &mesh()).get("patch").is_none());
    }
}

#[test]
fn a_hook_that_comes_in_plaintext_is_left_and_warned_of() {
    let mut pod = bare_pod();
    let lifecycle =
        json!({ "preStop": { "httpGet": { "path": "/bye", "port": 80 } }, "postStart": { "exec": { "command": ["true"] } } });
    pod["spec"]["containers"][0]["lifecycle"] = lifecycle.clone();
    let warnings = response(&pod, &mesh())["warnings"].take();
    assert_eq!(warnings.as_array().map(Vec::len), Some(1));
    assert!(warnings[0].as_str().is_some_and(|text| text.contains("spec.containers[0].lifecycle.preStop")), "{warnings}");
    assert_eq!(container(&injected(&pod, &mesh()), "app")["lifecycle"], lifecycle);
}

#[test]
fn more_checks_than_a_variable_holds_are_refused() {
    let header = json!({ "name": "X-Long", "value": "x".repeat(130 * 1024) });
    let message = crate::refusal(&pod_with_probe(&json!({ "httpGet": { "port": 80, "httpHeaders": [header] } })));
    assert!(message.contains("weft.dev/rewrite-probes") && message.len() < 500, "{message}");
}
