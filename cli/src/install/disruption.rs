//! How many of weft's own pods a node's drain may take away at once.

use serde_json::{Value, json};

use super::KubeVersion;
use super::kinds::{DISRUPTION_BUDGET, OLD_DISRUPTION_BUDGET};
use super::object::Part;
use super::settings::Settings;

pub(super) fn budgets(settings: &Settings, kube: KubeVersion) -> Vec<Value> {
    let kind = if kube >= KubeVersion::POLICY_V1 { DISRUPTION_BUDGET } else { OLD_DISRUPTION_BUDGET };
    let budget = |part: Part| {
        json!({
            "apiVersion": kind.api_version,
            "kind": kind.kind,
            "metadata": part.in_namespace(settings, part.name()),
            // Not `minAvailable`: with one replica that would keep a node from being drained for ever.
            "spec": { "maxUnavailable": 1, "selector": { "matchLabels": part.selector() } },
        })
    };
    Part::PROGRAMS.map(budget).to_vec()
}
