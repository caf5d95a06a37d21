//! Leave for weft's own pods to be of the priority class that they ask for: some clusters (GKE among them) admit pods of the
//! system's classes outside of kube-system only where a quota counts them.

use serde_json::{Value, json};

use super::object::Part;
use super::settings::Settings;

/// The class of weft's own programs: without them no meshed pod starts.
pub(super) const PRIORITY_CLASS: &str = "system-cluster-critical";
/// The class of the CNI plugin's agents: without its own, no pod of the mesh starts on a node.
pub(super) const NODE_PRIORITY_CLASS: &str = "system-node-critical";

/// For the programs.
pub(super) fn quota(settings: &Settings) -> Value {
    of_class(settings, Part::Mesh, "weft-critical-pods", PRIORITY_CLASS)
}

/// For the agents, which are of a class of their own. Where there are none, nothing of that class is let in.
pub(super) fn node_quota(settings: &Settings) -> Value {
    of_class(settings, Part::Cni, "weft-node-critical-pods", NODE_PRIORITY_CLASS)
}

fn of_class(settings: &Settings, part: Part, name: &str, class: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": part.in_namespace(settings, name),
        "spec": {
            "hard": { "pods": PODS },
            "scopeSelector": { "matchExpressions": [
                { "operator": "In", "scopeName": "PriorityClass", "values": [class] },
            ] },
        },
    })
}

/// More than an installation ever has, with all replicas, a pod on each node, and a rollout: a quota here is to allow, not to limit.
const PODS: &str = "100000";
