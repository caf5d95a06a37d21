//! Whether a Deployment or a DaemonSet is where it should be.
#![cfg_attr(not(feature = "kubernetes"), allow(dead_code, reason = "only a client sees a Deployment's status"))]

use serde_json::Value;

/// None where all of its pods are of its present template and available; else what is still missing.
pub(crate) fn missing(deployment: &Value) -> Option<String> {
    let count = |pointer: &str| deployment.pointer(pointer).and_then(Value::as_u64).unwrap_or(0);
    let wanted = deployment.pointer("/spec/replicas").and_then(Value::as_u64).unwrap_or(1);
    if count("/status/observedGeneration") < count("/metadata/generation") {
        return Some("its change has not been seen yet".to_owned());
    }
    let (updated, available) = (count("/status/updatedReplicas"), count("/status/availableReplicas"));
    if updated < wanted {
        return Some(format!("{updated} of {wanted} pods are new"));
    }
    let old = count("/status/replicas").saturating_sub(updated);
    if old > 0 {
        return Some(format!("{old} old pods are still there"));
    }
    (available < wanted).then(|| format!("{available} of {wanted} pods are ready"))
}

/// The same of a DaemonSet, on every node that it is for.
pub(crate) fn missing_on_nodes(daemon_set: &Value) -> Option<String> {
    let count = |pointer: &str| daemon_set.pointer(pointer).and_then(Value::as_u64).unwrap_or(0);
    if daemon_set.is_null() || count("/status/observedGeneration") < count("/metadata/generation") {
        return Some("its change has not been seen yet".to_owned());
    }
    let wanted = count("/status/desiredNumberScheduled");
    let (updated, available) = (count("/status/updatedNumberScheduled"), count("/status/numberAvailable"));
    if updated < wanted {
        return Some(format!("it is new on {updated} of {wanted} nodes"));
    }
    (available < wanted).then(|| format!("it is ready on {available} of {wanted} nodes"))
}

/// Why a pod does not run or is not ready, in the kubelet's or the scheduler's own words.
pub(crate) fn trouble(pod: &Value) -> Option<String> {
    let list = |pointer: &str| pod.pointer(pointer).and_then(Value::as_array).cloned().unwrap_or_default();
    let said = |state: &Value| {
        let reason = state.get("reason").and_then(Value::as_str).unwrap_or("not running");
        match state.get("message").and_then(Value::as_str) {
            Some(message) => format!("{reason}: {}", message.trim()),
            None => reason.to_owned(),
        }
    };
    let containers = [list("/status/initContainerStatuses"), list("/status/containerStatuses")].concat();
    for status in &containers {
        if let Some(waiting) = status.pointer("/state/waiting")
            && waiting.get("reason").and_then(Value::as_str) != Some("PodInitializing")
        {
            // What it was that ended says more than that it is waited for.
            let last = status.pointer("/lastState/terminated").filter(|state| state.get("message").is_some());
            return Some(said(last.unwrap_or(waiting)));
        }
    }
    let conditions = list("/status/conditions");
    let untrue = conditions.iter().filter(|condition| condition["status"] == "False");
    untrue.filter(|condition| condition.get("message").is_some()).map(said).next()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_deployment_is_ready_when_all_of_its_pods_are_new_and_available() {
        let of = |generation: u64, replicas: u64, updated: u64, available: u64| {
            missing(&json!({
                "metadata": {"generation": 2},
                "spec": {"replicas": 2},
                "status": {
                    "observedGeneration": generation,
                    "replicas": replicas,
                    "updatedReplicas": updated,
                    "availableReplicas": available,
                },
            }))
        };
        assert_eq!(of(2, 2, 2, 2), None);
        assert_eq!(of(1, 2, 2, 2).as_deref(), Some("its change has not been seen yet"));
        assert_eq!(of(2, 2, 1, 2).as_deref(), Some("1 of 2 pods are new"));
        assert_eq!(of(2, 3, 2, 2).as_deref(), Some("1 old pods are still there"));
        assert_eq!(of(2, 2, 2, 1).as_deref(), Some("1 of 2 pods are ready"));
        assert!(missing(&json!({})).is_some());
    }

    #[test]
    fn a_daemon_set_is_ready_when_it_is_new_and_available_on_all_nodes() {
        let of = |observed: u64, updated: u64, available: u64| {
            missing_on_nodes(&json!({
                "metadata": {"generation": 2},
                "status": {
                    "observedGeneration": observed,
                    "desiredNumberScheduled": 3,
                    "updatedNumberScheduled": updated,
                    "numberAvailable": available,
                },
            }))
        };
        assert_eq!(of(2, 3, 3), None);
        assert_eq!(of(1, 3, 3).as_deref(), Some("its change has not been seen yet"));
        assert_eq!(of(2, 1, 3).as_deref(), Some("it is new on 1 of 3 nodes"));
        assert_eq!(of(2, 3, 0).as_deref(), Some("it is ready on 0 of 3 nodes"));
        assert!(missing_on_nodes(&Value::Null).is_some());
    }

    #[test]
    fn a_pods_trouble_is_told_in_the_words_of_who_saw_it() {
        let waiting = json!({"status": {"containerStatuses": [
            {"state": {"running": {}}},
            {"state": {"waiting": {"reason": "ImagePullBackOff", "message": "not found\n"}}},
        ]}});
        assert_eq!(trouble(&waiting).as_deref(), Some("ImagePullBackOff: not found"));
        let crashed = json!({"status": {"containerStatuses": [{
            "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s"}},
            "lastState": {"terminated": {"reason": "Error", "message": "--mtls: no mode"}},
        }]}});
        assert_eq!(trouble(&crashed).as_deref(), Some("Error: --mtls: no mode"));
        let unscheduled = json!({"status": {"conditions": [
            {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes"},
        ]}});
        assert_eq!(trouble(&unscheduled).as_deref(), Some("Unschedulable: 0/1 nodes"));
        assert_eq!(trouble(&json!({"status": {}})), None);
    }
}
