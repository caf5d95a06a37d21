//! What may connect to weft's own pods, where the cluster's network enforces it.

use serde_json::{Value, json};
use weft_core::wellknown::{PORT_CONTROL_PLANE, PORT_INJECTOR};

use super::deployment::{PORT_CONTROL_PLANE_PROBE, PORT_INJECTOR_PROBE};
use super::object::Part;
use super::settings::Settings;

/// Only the ports are narrowed: sidecars are in any namespace, and where the API server and the kubelet connect from
/// is not to be known. What comes in is checked by certificate, by token, or says nothing that is secret.
pub(super) fn policies(settings: &Settings) -> Vec<Value> {
    vec![
        policy(settings, Part::ControlPlane, &[PORT_CONTROL_PLANE, PORT_CONTROL_PLANE_PROBE]),
        policy(settings, Part::Injector, &[PORT_INJECTOR, PORT_INJECTOR_PROBE]),
    ]
}

pub(super) fn policy(settings: &Settings, part: Part, ports: &[u16]) -> Value {
    let ports: Vec<Value> = ports.iter().map(|port| json!({ "port": port, "protocol": "TCP" })).collect();
    json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": part.in_namespace(settings, part.name()),
        "spec": {
            "podSelector": { "matchLabels": part.selector() },
            "policyTypes": ["Ingress"],
            "ingress": [{ "ports": ports }],
        },
    })
}
