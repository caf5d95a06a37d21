//! What is added to a pod: two containers and three volumes.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};
use weft_core::wellknown::{PORT_ADMIN, PORT_DNS, SIDECAR_CONTAINER, SIDECAR_UID};

use crate::error::InjectError;
use crate::guard::NET_ADMIN;
use crate::manifest::{Container, list_in};
use crate::names::{
    ENV_SPIFFE_ENDPOINT_SOCKET, FILE_ANCHORS, FILE_TOKEN, MOUNT_STATE, MOUNT_TOKEN, MOUNT_TRUST_BUNDLE, MOUNT_WORKLOAD_API,
    REDIRECT_CONTAINER, TOKEN_AUDIENCE, VERIFY_ARGUMENTS, VERIFY_CONTAINER, VOLUME_STATE, VOLUME_TOKEN, VOLUME_TRUST_BUNDLE,
    VOLUME_WORKLOAD_API,
};
use crate::options::InjectorOptions;
use crate::patch::PatchOp;
use crate::probes::literal;
use crate::settings::{Settings, Share, Skips};

/// The token's life in seconds; the kubelet renews it when four fifths have passed.
const TOKEN_LIFETIME_SECS: u32 = 3600;
/// The sidecar keeps a certificate, a key and its last good state there, and nothing else. What is in it counts as the
/// sidecar's memory.
const STATE_SIZE: &str = "16Mi";
/// How often the kubelet may find the sidecar not ready at its start, once a second, before it is started anew:
/// as long as a control plane that is itself restarting may take to issue a certificate.
const STARTUP_ATTEMPTS: u32 = 120;

/// The init container that redirects the pod's traffic. It ends before the app starts.
///
/// It is root, with one capability: a container's capabilities reach no other user unless its programs carry them as
/// file attributes. It proves its rules for outgoing connections alone, since proving the others takes a second
/// network namespace, and so far more power. Nor has it `NET_RAW`, which only iptables' legacy interface asks for.
pub(crate) fn redirect_container(options: &InjectorOptions, settings: &Settings) -> Value {
    let mut arguments = vec!["apply".to_owned(), "--verify=outbound".to_owned()];
    arguments.extend(redirect_arguments(&settings.skips));
    json!({
        "name": REDIRECT_CONTAINER,
        "image": options.redirect_image,
        "imagePullPolicy": options.image_pull_policy,
        "command": ["weft-redirect"],
        "args": arguments,
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

/// Neither root nor the sidecar's user, whose connections are not caught.
const VERIFY_UID: u32 = 65_532;

/// The init container that lets nothing start where the CNI plugin has not redirected the pod's traffic, as when the pod came
/// before the plugin. That outgoing connections are caught shows that incoming ones are, too: the rules of both are applied
/// together or not at all.
pub(crate) fn verify_container(options: &InjectorOptions, settings: &Settings) -> Value {
    let mut arguments: Vec<String> = VERIFY_ARGUMENTS.map(str::to_owned).to_vec();
    arguments.extend(redirect_arguments(&settings.skips));
    json!({
        "name": VERIFY_CONTAINER,
        "image": options.redirect_image,
        "imagePullPolicy": options.image_pull_policy,
        "command": ["weft-redirect"],
        "args": arguments,
        "resources": resources(settings),
        "securityContext": {
            "runAsUser": VERIFY_UID,
            "runAsGroup": VERIFY_UID,
            "runAsNonRoot": true,
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "capabilities": { "drop": ["ALL"] },
            "seccompProfile": { "type": "RuntimeDefault" },
        },
        "terminationMessagePolicy": "FallbackToLogsOnError",
    })
}

/// What the redirect is told of this pod, by whoever applies it.
pub(crate) fn redirect_arguments(skips: &Skips) -> Vec<String> {
    let mut arguments = Vec::new();
    for (flag, list) in [
        ("--skip-inbound-ports", joined(&skips.inbound_ports)),
        ("--skip-outbound-ports", joined(&skips.outbound_ports)),
        ("--skip-subnets", joined(&skips.subnets)),
    ] {
        if !list.is_empty() {
            arguments.extend([flag.to_owned(), list]);
        }
    }
    if skips.dns_capture {
        arguments.extend(["--dns-port".to_owned(), PORT_DNS.to_string()]);
    }
    arguments
}

fn joined<T: ToString>(entries: &BTreeSet<T>) -> String {
    entries.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

/// The sidecar. As an init container that stays (`native_sidecar`) it holds back all that follows until it is
/// ready; as an ordinary container it can only say whether it is. `probes` is its variable with the checks that it
/// makes for the kubelet.
pub(crate) fn sidecar_container(options: &InjectorOptions, settings: &Settings, probes: Option<Value>) -> Value {
    let mut mounts = vec![
        json!({ "name": VOLUME_TOKEN, "mountPath": MOUNT_TOKEN, "readOnly": true }),
        json!({ "name": VOLUME_STATE, "mountPath": MOUNT_STATE }),
        json!({ "name": VOLUME_TRUST_BUNDLE, "mountPath": MOUNT_TRUST_BUNDLE, "readOnly": true }),
    ];
    if settings.workload_api {
        mounts.push(json!({ "name": VOLUME_WORKLOAD_API, "mountPath": MOUNT_WORKLOAD_API }));
    }
    let mut container = json!({
        "name": SIDECAR_CONTAINER,
        "image": options.sidecar_image,
        "imagePullPolicy": options.image_pull_policy,
        "command": ["weft-sidecar"],
        "env": environment(options, settings, probes),
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
        "volumeMounts": mounts,
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

fn environment(options: &InjectorOptions, settings: &Settings, probes: Option<Value>) -> Vec<Value> {
    let is = |name: &str, value: String| json!({ "name": name, "value": value });
    let mut variables = vec![
        from_field("POD_NAME", "metadata.name"),
        from_field("POD_NAMESPACE", "metadata.namespace"),
        from_field("POD_UID", "metadata.uid"),
        from_field("NODE_NAME", "spec.nodeName"),
        from_field("SERVICE_ACCOUNT", "spec.serviceAccountName"),
        from_field("WEFT_POD_IPS", "status.podIPs"),
        // The kubelet puts in what is defined above.
        is("WEFT_IDENTITY", "$(POD_NAMESPACE)/$(SERVICE_ACCOUNT)".to_owned()),
        is("WEFT_TRUST_DOMAIN", options.trust_domain.to_string()),
        is("WEFT_CONTROL_PLANE", literal(&options.control_plane)),
        is("WEFT_TOKEN_FILE", format!("{MOUNT_TOKEN}/{FILE_TOKEN}")),
        is("WEFT_ANCHORS_FILE", format!("{MOUNT_TRUST_BUNDLE}/{FILE_ANCHORS}")),
        // A directory of its own in the volume, since the volume itself is open to every user.
        is("WEFT_STATE", format!("{MOUNT_STATE}/kept")),
        is("WEFT_ADMIN_SOCKET", format!("{MOUNT_STATE}/admin.sock")),
    ];
    if settings.workload_api {
        variables.push(is("WEFT_WORKLOAD_API", workload_socket()));
        // Containers do not see each other's processes: what tells the pod's own is that they have the volume.
        variables.push(is("WEFT_WORKLOAD_API_CALLERS", "volume".to_owned()));
    }
    variables.extend(settings.environment.iter().map(|(name, value)| is(name, literal(value))));
    let telemetry = settings.telemetry.as_ref().unwrap_or(&options.telemetry);
    variables.extend(telemetry.iter().map(|(name, value)| is(name, literal(value))));
    variables.extend(probes);
    variables
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

fn workload_socket() -> String {
    format!("{MOUNT_WORKLOAD_API}/socket")
}

/// What a container of the pod's own gets, so that SPIFFE's libraries find the Workload API. One that has the variable or the place already keeps
/// what it has.
pub(crate) fn offer_workload_api(container: &Container<'_>) -> Result<Vec<PatchOp>, InjectError> {
    let mut ops = Vec::new();
    let mut add = |key: &str, known: &str, mark: &str, value: Value| {
        let list = list_in(container.object, &container.at, key)?;
        let pointer = format!("{}/{key}", container.pointer);
        match list {
            Some(list) if list.iter().any(|entry| entry.get(known).and_then(Value::as_str) == Some(mark)) => {}
            Some(_) => ops.push(PatchOp::add(format!("{pointer}/-"), value)),
            None => ops.push(PatchOp::add(pointer, Value::Array(vec![value]))),
        }
        Ok::<_, InjectError>(())
    };
    let mount = json!({ "name": VOLUME_WORKLOAD_API, "mountPath": MOUNT_WORKLOAD_API, "readOnly": true });
    add("volumeMounts", "mountPath", MOUNT_WORKLOAD_API, mount)?;
    let variable = json!({ "name": ENV_SPIFFE_ENDPOINT_SOCKET, "value": format!("unix://{}", workload_socket()) });
    add("env", "name", ENV_SPIFFE_ENDPOINT_SOCKET, variable)?;
    Ok(ops)
}

/// The volumes; all but that of the Workload API are the sidecar's alone.
pub(crate) fn volumes(options: &InjectorOptions, settings: &Settings) -> Vec<Value> {
    let token = json!({ "audience": TOKEN_AUDIENCE, "expirationSeconds": TOKEN_LIFETIME_SECS, "path": FILE_TOKEN });
    let mut volumes = vec![
        json!({ "name": VOLUME_TOKEN, "projected": { "sources": [{ "serviceAccountToken": token }] } }),
        json!({ "name": VOLUME_STATE, "emptyDir": { "medium": "Memory", "sizeLimit": STATE_SIZE } }),
        json!({
            "name": VOLUME_TRUST_BUNDLE,
            "configMap": { "name": options.trust_bundle, "items": [{ "key": FILE_ANCHORS, "path": FILE_ANCHORS }] },
        }),
    ];
    if settings.workload_api {
        volumes.push(json!({ "name": VOLUME_WORKLOAD_API, "emptyDir": { "medium": "Memory", "sizeLimit": "64Ki" } }));
    }
    volumes
}
