//! The addresses by which pods find the control plane, and the API server the injector.

use serde_json::{Value, json};
use weft_core::wellknown::{PORT_CONTROL_PLANE, PORT_INJECTOR};

use super::object::Part;
use super::settings::Settings;

/// Where the API server calls the injector.
pub(super) const PORT_WEBHOOK: u16 = 443;

/// The control plane, as a sidecar dials it.
pub(crate) fn control_plane_address(namespace: &str) -> String {
    format!("{}.{namespace}.svc:{PORT_CONTROL_PLANE}", Part::ControlPlane.name())
}

pub(super) fn services(settings: &Settings) -> Vec<Value> {
    vec![
        service(settings, Part::ControlPlane, "tls-grpc", PORT_CONTROL_PLANE, PORT_CONTROL_PLANE),
        service(settings, Part::Injector, "https", PORT_WEBHOOK, PORT_INJECTOR),
    ]
}

fn service(settings: &Settings, part: Part, name: &str, port: u16, target: u16) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": part.in_namespace(settings, part.name()),
        "spec": {
            "type": "ClusterIP",
            "ipFamilyPolicy": "PreferDualStack",
            "selector": part.selector(),
            "ports": [{ "name": name, "port": port, "targetPort": target, "protocol": "TCP" }],
        },
    })
}
