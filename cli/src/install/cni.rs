//! The CNI plugin's agent, on every node.

use serde_json::{Value, json};

use super::object::Part;
use super::settings::Settings;
use super::{access, network, quota};

/// Where the agent answers `/live`, `/ready` and `/metrics`, in plaintext.
const PORT_PROBE: u16 = 4702;
/// Where the agent has the node's directories.
const BIN_DIR: &str = "/host/cni/bin";
const CONF_DIR: &str = "/host/cni/net.d";
/// Where the plugin, which runs on the node itself, finds the agent: one path for both.
const SOCKET_DIR: &str = "/run/weft-cni";

pub(super) fn objects(settings: &Settings) -> Vec<Value> {
    let mut objects = vec![quota::node_quota(settings)];
    objects.extend(access::objects(&[Part::Cni], settings));
    objects.push(network::policy(settings, Part::Cni, &[PORT_PROBE]));
    objects.push(daemon_set(settings));
    objects
}

fn daemon_set(settings: &Settings) -> Value {
    json!({
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": Part::Cni.in_namespace(settings, Part::Cni.name()),
        "spec": {
            "revisionHistoryLimit": 3,
            "selector": { "matchLabels": Part::Cni.selector() },
            // No surge: two agents of one node would share a socket. Pods that are created in between wait.
            "updateStrategy": { "type": "RollingUpdate", "rollingUpdate": { "maxUnavailable": 1 } },
            "template": { "metadata": { "labels": Part::Cni.labels() }, "spec": pod(settings) },
        },
    })
}

fn pod(settings: &Settings) -> Value {
    // Directories of others are not made where they are missing: then they are elsewhere, and the settings are wrong.
    let of_the_node = |name: &str, path: &str, kind: &str| json!({ "name": name, "hostPath": { "path": path, "type": kind } });
    json!({
        "serviceAccountName": Part::Cni.name(),
        "automountServiceAccountToken": true,
        "enableServiceLinks": false,
        // No pod of the mesh starts on a node without it.
        "priorityClassName": quota::NODE_PRIORITY_CLASS,
        "tolerations": [{ "operator": "Exists" }],
        "nodeSelector": { "kubernetes.io/os": "linux" },
        "terminationGracePeriodSeconds": 30,
        "securityContext": { "seccompProfile": { "type": "RuntimeDefault" } },
        "containers": [container(settings)],
        "volumes": [
            of_the_node("cni-bin", &settings.cni_bin_dir, "Directory"),
            of_the_node("cni-conf", &settings.cni_conf_dir, "Directory"),
            of_the_node("socket", SOCKET_DIR, "DirectoryOrCreate"),
        ],
    })
}

fn container(settings: &Settings) -> Value {
    let field = |path: &str| json!({ "fieldRef": { "apiVersion": "v1", "fieldPath": path } });
    let probe = |path: &str, period: u32| json!({ "httpGet": { "path": path, "port": "probe" }, "periodSeconds": period });
    let mut live = probe("/live", 10);
    live["initialDelaySeconds"] = 10.into();
    json!({
        "name": Part::Cni.name(),
        "image": settings.image,
        "imagePullPolicy": settings.image_pull_policy,
        "command": [Part::Cni.name()],
        "args": [
            "install",
            format!("--namespace={}", settings.namespace),
            format!("--daemon-set={}", Part::Cni.name()),
            format!("--bin-dir={BIN_DIR}"),
            format!("--conf-dir={CONF_DIR}"),
            format!("--socket={SOCKET_DIR}/agent.sock"),
            format!("--status-port={PORT_PROBE}"),
            format!("--repair={}", settings.cni_repair),
        ],
        "env": [
            { "name": "NODE_NAME", "valueFrom": field("spec.nodeName") },
            { "name": "POD_NAME", "valueFrom": field("metadata.name") },
        ],
        "ports": [{ "name": "probe", "containerPort": PORT_PROBE, "protocol": "TCP" }],
        "readinessProbe": probe("/ready", 2),
        "livenessProbe": live,
        "resources": { "requests": { "cpu": "10m", "memory": "32Mi" }, "limits": { "memory": "256Mi" } },
        // Root, since the node's directories are root's. SYS_ADMIN enters the network namespace that the plugin hands over, and
        // NET_ADMIN changes the rules in it. It is not privileged: it sees neither the node's processes, network nor devices.
        "securityContext": {
            "runAsUser": 0,
            "runAsGroup": 0,
            "runAsNonRoot": false,
            "readOnlyRootFilesystem": true,
            "capabilities": { "drop": ["ALL"], "add": ["NET_ADMIN", "SYS_ADMIN"] },
        },
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [
            { "name": "cni-bin", "mountPath": BIN_DIR },
            { "name": "cni-conf", "mountPath": CONF_DIR },
            { "name": "socket", "mountPath": SOCKET_DIR },
        ],
    })
}
