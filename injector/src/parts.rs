//! What is added to a pod: two containers and three volumes.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};
use weft_core::wellknown::{PORT_ADMIN, SIDECAR_CONTAINER, SIDECAR_UID};

use crate::guard::NET_ADMIN;
use crate::names::{
    FILE_TOKEN, MOUNT_STATE, MOUNT_TOKEN, MOUNT_TRUST_BUNDLE, REDIRECT_CONTAINER, TOKEN_AUDIENCE, VOLUME_STATE, VOLUME_TOKEN,
    VOLUME_TRUST_BUNDLE,
};
use crate::options::InjectorOptions;
use crate::settings::{Settings, Share, Skips};

/// The token's life in seconds; the kubelet renews it when four fifths have passed.
const TOKEN_LIFETIME_SECS: u32 = 3600;
/// The sidecar keeps a certificate, a key and its last good state there, and nothing else.
const STATE_SIZE: &str = "4Mi";
/// How often the kubelet may find the sidecar not ready at its start, once a second, before it is started anew:
/// as long as a control plane that is itself restarting may take to issue a certificate.
const STARTUP_ATTEMPTS: u32 = 120;

/// The init container that redirects the pod's traffic. It is root with one capability, and ends before the app starts.
pub(crate) fn redirect_container(options: &InjectorOptions, settings: &Settings) -> Value {
    json!({
        "name": REDIRECT_CONTAINER,
        "image": options.redirect_image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["weft-redirect"],
        "args": redirect_arguments(&settings.skips),
        "resources": resources(settings),
        "securityContext": {
            "runAsUser": 0,
            "runAsGroup": 0,
            "runAsNonRoot": false,
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "capabilities": { "drop": ["ALL"], "add": [NET_ADMIN] },
            "seccompProfile": { "type": "RuntimeDefault" },
        },
        "terminationMessagePolicy": "FallbackToLogsOnError",
    })
}

fn redirect_arguments(skips: &Skips) -> Vec<String> {
    let mut arguments = vec!["apply".to_owned(), "--verify".to_owned()];
    for (flag, list) in [
        ("--skip-inbound-ports", joined(&skips.inbound_ports)),
        ("--skip-outbound-ports", joined(&skips.outbound_ports)),
        ("--skip-subnets", joined(&skips.subnets)),
    ] {
        if !list.is_empty() {
            arguments.extend([flag.to_owned(), list]);
        }
    }
    arguments
}

fn joined<T: ToString>(entries: &BTreeSet<T>) -> String {
    entries.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

/// The sidecar. As an init container that stays (`native_sidecar`) it holds back all that follows until it is
/// ready; as an ordinary container it can only say whether it is.
pub(crate) fn sidecar_container(options: &InjectorOptions, settings: &Settings) -> Value {
    let mut container = json!({
        "name": SIDECAR_CONTAINER,
        "image": options.sidecar_image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["weft-sidecar"],
        "env": [
            from_field("POD_NAME", "metadata.name"),
            from_field("POD_NAMESPACE", "metadata.namespace"),
            from_field("POD_IPS", "status.podIPs"),
            from_field("SERVICE_ACCOUNT", "spec.serviceAccountName"),
            { "name": "WEFT_CONTROL_PLANE", "value": options.control_plane },
        ],
        "ports": [{ "name": "weft-admin", "containerPort": PORT_ADMIN, "protocol": "TCP" }],
        "resources": resources(settings),
        "securityContext": {
            "runAsUser": SIDECAR_UID,
            "runAsGroup": SIDECAR_UID,
            "runAsNonRoot": true,
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "capabilities": { "drop": ["ALL"] },
            "seccompProfile": { "type": "RuntimeDefault" },
        },
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [
            { "name": VOLUME_TOKEN, "mountPath": MOUNT_TOKEN, "readOnly": true },
            { "name": VOLUME_STATE, "mountPath": MOUNT_STATE },
            { "name": VOLUME_TRUST_BUNDLE, "mountPath": MOUNT_TRUST_BUNDLE, "readOnly": true },
        ],
    });
    let ready = json!({ "path": "/ready", "port": PORT_ADMIN });
    if options.native_sidecar {
        container["restartPolicy"] = json!("Always");
        container["startupProbe"] = json!({ "httpGet": ready, "periodSeconds": 1, "failureThreshold": STARTUP_ATTEMPTS });
    } else {
        container["readinessProbe"] = json!({ "httpGet": ready, "periodSeconds": 2 });
    }
    container
}

fn from_field(name: &str, path: &str) -> Value {
    json!({ "name": name, "valueFrom": { "fieldRef": { "fieldPath": path } } })
}

/// The redirect has the sidecar's share: it runs before the sidecar, so that the pod asks for no more by it.
fn resources(settings: &Settings) -> Value {
    let mut requests = Map::new();
    let mut limits = Map::new();
    for (name, Share { request, limit }) in [("cpu", &settings.cpu), ("memory", &settings.memory)] {
        requests.insert(name.to_owned(), request.as_str().into());
        if let Some(limit) = limit {
            limits.insert(name.to_owned(), limit.as_str().into());
        }
    }
    json!({ "requests": requests, "limits": limits })
}

/// The volumes, all of them for the sidecar alone.
pub(crate) fn volumes(options: &InjectorOptions) -> Vec<Value> {
    let token = json!({ "audience": TOKEN_AUDIENCE, "expirationSeconds": TOKEN_LIFETIME_SECS, "path": FILE_TOKEN });
    vec![
        json!({ "name": VOLUME_TOKEN, "projected": { "sources": [{ "serviceAccountToken": token }] } }),
        json!({ "name": VOLUME_STATE, "emptyDir": { "medium": "Memory", "sizeLimit": STATE_SIZE } }),
        json!({ "name": VOLUME_TRUST_BUNDLE, "configMap": { "name": options.trust_bundle } }),
    ]
}
