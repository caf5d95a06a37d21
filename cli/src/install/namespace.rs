//! weft's own namespace, and the record of the settings in it.

use serde_json::{Value, json};
use weft_core::wellknown::LABEL_INJECT;

use super::object::Part;
use super::settings::Settings;

/// The config map that tells a later `weft upgrade` what was chosen.
pub(crate) const RECORD: &str = "weft-settings";

/// The namespace: never injected, and at the strictest Pod Security level, which all that runs in it keeps; but for the CNI
/// plugin's agent, which enters the network namespaces of others and changes what is on the node.
pub(super) fn namespace(settings: &Settings) -> Value {
    let mut labels = Part::Mesh.labels();
    labels.insert(LABEL_INJECT.to_owned(), "disabled".into());
    let level = settings.by_cni("privileged", "restricted");
    for mode in ["enforce", "audit", "warn"] {
        labels.insert(format!("pod-security.kubernetes.io/{mode}"), level.as_str().into());
    }
    json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": settings.namespace, "labels": labels } })
}

pub(super) fn record(settings: &Settings) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": Part::Mesh.in_namespace(settings, RECORD),
        "data": settings.record(),
    })
}
