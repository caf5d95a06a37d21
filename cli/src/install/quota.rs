//! Leave for weft's own pods to be of the priority class that they ask for: some clusters (GKE among them) admit pods of the
//! system's classes outside of kube-system only where a quota counts them.

use serde_json::{Value, json};

use super::object::Part;
use super::settings::Settings;

/// The class of weft's own pods: without them no meshed pod starts.
pub(super) const PRIORITY_CLASS: &str = "system-cluster-critical";
/// More than an installation ever has, with all replicas and a rollout: the quota is to allow, not to limit.
const PODS: &str = "1000";

pub(super) fn quota(settings: &Settings) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": Part::Mesh.in_namespace(settings, "weft-critical-pods"),
        "spec": {
            "hard": { "pods": PODS },
            "scopeSelector": { "matchExpressions": [
                { "operator": "In", "scopeName": "PriorityClass", "values": [PRIORITY_CLASS] },
            ] },
        },
    })
}
