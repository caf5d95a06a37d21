//! Which pods have a sidecar, and how their owners make new ones.
#![cfg_attr(not(feature = "kubernetes"), allow(dead_code, reason = "only a client sees pods"))]

use std::collections::BTreeMap;

use serde_json::Value;
use weft_core::wellknown::SIDECAR_CONTAINER;
use weft_injector::ANNOTATION_INJECTED;

/// Whether a pod has a sidecar, native or not.
pub(crate) fn has_sidecar(pod: &Value) -> bool {
    ["/spec/initContainers", "/spec/containers"]
        .into_iter()
        .filter_map(|pointer| pod.pointer(pointer)?.as_array())
        .flatten()
        .any(|container| container["name"] == SIDECAR_CONTAINER)
}

/// The version that a pod's sidecar was injected with, where it says one.
pub(crate) fn version(pod: &Value) -> Option<&str> {
    pod.pointer("/metadata/annotations")?.get(ANNOTATION_INJECTED)?.as_str()
}

/// A pod's conditions, as its status says them.
pub(crate) fn conditions(pod: &Value) -> impl Iterator<Item = &Value> {
    pod.pointer("/status/conditions").and_then(Value::as_array).into_iter().flatten()
}

/// Whether all of a pod is ready.
pub(crate) fn is_ready(pod: &Value) -> bool {
    conditions(pod).any(|c| c["type"] == "Ready" && c["status"] == "True")
}

/// Whether a pod has ended, or is about to.
pub(crate) fn has_ended(pod: &Value) -> bool {
    pod.pointer("/metadata/deletionTimestamp").is_some()
        || matches!(pod.pointer("/status/phase").and_then(Value::as_str), Some("Succeeded" | "Failed"))
}

/// Who makes a pod anew: what `kubectl rollout restart` takes, or the pod itself.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Owner {
    pub(crate) namespace: String,
    /// `deployment/web`
    pub(crate) name: String,
    restarts: bool,
}

impl Owner {
    pub(crate) fn of(pod: &Value) -> Self {
        let text = |pointer: &str| pod.pointer(pointer).and_then(Value::as_str);
        let namespace = text("/metadata/namespace").unwrap_or("default").to_owned();
        let pod_name = || format!("pod/{}", text("/metadata/name").unwrap_or("?"));
        let (Some(kind), Some(name)) = (text("/metadata/ownerReferences/0/kind"), text("/metadata/ownerReferences/0/name"))
        else {
            return Self { namespace, name: pod_name(), restarts: false };
        };
        // A Deployment's replica set carries the hash of its template in its name.
        let hash = text("/metadata/labels/pod-template-hash").map(|hash| format!("-{hash}"));
        let deployment = hash.and_then(|hash| name.strip_suffix(hash.as_str()));
        let name = match (kind, deployment) {
            ("ReplicaSet", Some(deployment)) => format!("deployment/{deployment}"),
            _ => format!("{}/{name}", kind.to_lowercase()),
        };
        let restarts = ["deployment/", "statefulset/", "daemonset/"].iter().any(|kind| name.starts_with(kind));
        Self { namespace, name, restarts }
    }

    /// How its pods are made anew.
    pub(crate) fn remedy(&self) -> String {
        if self.restarts {
            format!("kubectl rollout restart {} -n {}", self.name, self.namespace)
        } else {
            format!("delete {} in {} and create it again", self.name, self.namespace)
        }
    }
}

/// How many of `pods` each owner has.
pub(crate) fn by_owner<'a>(pods: impl IntoIterator<Item = &'a Value>) -> BTreeMap<Owner, usize> {
    let mut owners = BTreeMap::new();
    for pod in pods {
        *owners.entry(Owner::of(pod)).or_default() += 1;
    }
    owners
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn sidecars_are_found_native_or_not() {
        assert!(has_sidecar(&json!({"spec": {"containers": [{"name": "app"}, {"name": SIDECAR_CONTAINER}]}})));
        assert!(has_sidecar(&json!({"spec": {"initContainers": [{"name": SIDECAR_CONTAINER}], "containers": []}})));
        assert!(!has_sidecar(&json!({"spec": {"containers": [{"name": "app"}]}})));
        assert_eq!(version(&json!({"metadata": {"annotations": {ANNOTATION_INJECTED: "0.1.0"}}})), Some("0.1.0"));
        assert!(has_ended(&json!({"status": {"phase": "Succeeded"}})) && !has_ended(&json!({"status": {"phase": "Running"}})));
    }

    #[test]
    fn owners_are_named_as_kubectl_takes_them() {
        let pod = |kind: &str, name: &str| {
            json!({"metadata": {
                "namespace": "shop",
                "name": "web-5d4-x",
                "labels": {"pod-template-hash": "5d4"},
                "ownerReferences": [{"kind": kind, "name": name}],
            }})
        };
        for (kind, name, remedy) in [
            ("ReplicaSet", "web-5d4", "kubectl rollout restart deployment/web -n shop"),
            ("ReplicaSet", "alone", "delete replicaset/alone in shop and create it again"),
            ("StatefulSet", "db", "kubectl rollout restart statefulset/db -n shop"),
            ("Job", "once", "delete job/once in shop and create it again"),
        ] {
            assert_eq!(Owner::of(&pod(kind, name)).remedy(), remedy);
        }
        let bare = json!({"metadata": {"name": "p"}});
        assert_eq!(Owner::of(&bare).remedy(), "delete pod/p in default and create it again");
        let pods = [pod("ReplicaSet", "web-5d4"), pod("ReplicaSet", "web-5d4"), bare];
        assert_eq!(by_owner(&pods).into_values().collect::<Vec<_>>(), [1, 2]);
    }
}
