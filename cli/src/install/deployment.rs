//! The two programs that run: control plane and injector.

use serde_json::{Map, Value, json};
use weft_core::wellknown::{PORT_CONTROL_PLANE, PORT_INJECTOR};

use super::object::{LABEL_NAME, Part};
use super::service::control_plane_address;
use super::settings::Settings;

/// Where the control plane answers `/live`, `/ready` and `/metrics`, in plaintext.
pub(crate) const PORT_CONTROL_PLANE_PROBE: u16 = 4701;
/// The same of the injector.
pub(crate) const PORT_INJECTOR_PROBE: u16 = 4781;

/// Neither root nor the sidecar's user; nothing in the image belongs to it.
const USER: u32 = 65_532;
/// Where the control plane keeps its operator socket: in memory, and gone with the pod. The directory in it is its own.
const STATE: &str = "/run/weft";

pub(super) fn deployments(settings: &Settings) -> Vec<Value> {
    let state = json!({ "name": "state", "emptyDir": { "medium": "Memory", "sizeLimit": "16Mi" } });
    let mut control_plane = Program {
        part: Part::ControlPlane,
        arguments: control_plane_arguments(settings),
        ports: [("grpc", PORT_CONTROL_PLANE), ("probe", PORT_CONTROL_PLANE_PROBE)],
        memory: ["64Mi", "512Mi"],
    }
    .container(settings);
    // Its name as a holder of the lease.
    let name = json!({ "fieldRef": { "apiVersion": "v1", "fieldPath": "metadata.name" } });
    let telemetry = json!({ "name": "WEFT_TELEMETRY", "value": settings.telemetry });
    control_plane["env"] = json!([{ "name": "HOSTNAME", "valueFrom": name }, telemetry]);
    control_plane["volumeMounts"] = json!([{ "name": "state", "mountPath": STATE }]);
    let mut injector = Program {
        part: Part::Injector,
        arguments: injector_arguments(settings),
        ports: [("https", PORT_INJECTOR), ("probe", PORT_INJECTOR_PROBE)],
        memory: ["32Mi", "128Mi"],
    }
    .container(settings);
    injector["env"] = json!([telemetry]);
    vec![deployment(settings, Part::ControlPlane, &control_plane, &[state]), deployment(settings, Part::Injector, &injector, &[])]
}

fn control_plane_arguments(settings: &Settings) -> Vec<String> {
    vec![
        "--kubernetes".to_owned(),
        format!("--state={STATE}/own"),
        format!("--probe=0.0.0.0:{PORT_CONTROL_PLANE_PROBE}"),
        format!("--trust-domain={}", settings.trust_domain),
        format!("--mtls={}", settings.mtls),
        format!("--default-policy={}", settings.default_policy),
        format!("--egress={}", settings.egress),
        format!("--mesh-ranges={}", settings.mesh_ranges),
        format!("--kube-namespace={}", settings.namespace),
        format!("--kube-ca-secret={}", settings.ca_secret),
    ]
}

fn injector_arguments(settings: &Settings) -> Vec<String> {
    vec![
        format!("--namespace={}", settings.namespace),
        format!("--sidecar-image={}", settings.image),
        format!("--image-pull-policy={}", settings.image_pull_policy),
        format!("--control-plane={}", control_plane_address(&settings.namespace)),
        format!("--trust-domain={}", settings.trust_domain),
        format!("--native-sidecars={}", settings.native_sidecars),
        format!("--redirect={}", settings.by_cni("cni", "init")),
    ]
}

/// What differs between the two.
struct Program {
    part: Part,
    arguments: Vec<String>,
    /// What it serves, and where it is probed.
    ports: [(&'static str, u16); 2],
    /// Asked for, and at most.
    memory: [&'static str; 2],
}

impl Program {
    fn container(self, settings: &Settings) -> Value {
        let [request, limit] = self.memory;
        let ports = self.ports.map(|(name, port)| json!({ "name": name, "containerPort": port, "protocol": "TCP" }));
        let probe = |path: &str, period: u32| json!({ "httpGet": { "path": path, "port": "probe" }, "periodSeconds": period });
        let mut live = probe("/live", 10);
        live["initialDelaySeconds"] = 10.into();
        json!({
            "name": self.part.name(),
            "image": settings.image,
            "imagePullPolicy": settings.image_pull_policy,
            "command": [self.part.name()],
            "args": self.arguments,
            "ports": ports,
            "readinessProbe": probe("/ready", 2),
            "livenessProbe": live,
            "resources": { "requests": { "cpu": "20m", "memory": request }, "limits": { "memory": limit } },
            "securityContext": {
                "allowPrivilegeEscalation": false,
                "capabilities": { "drop": ["ALL"] },
                "readOnlyRootFilesystem": true,
                "runAsNonRoot": true,
                "seccompProfile": { "type": "RuntimeDefault" },
            },
            "terminationMessagePolicy": "FallbackToLogsOnError",
        })
    }
}

fn deployment(settings: &Settings, part: Part, container: &Value, volumes: &[Value]) -> Value {
    let only_ours = json!({ "matchLabels": { LABEL_NAME: part.name() } });
    let mut pod = Map::new();
    let mut set = |key: &str, value: Value| pod.insert(key.to_owned(), value);
    set("serviceAccountName", part.name().into());
    set("automountServiceAccountToken", true.into());
    set("enableServiceLinks", false.into());
    set("priorityClassName", super::quota::PRIORITY_CLASS.into());
    set("terminationGracePeriodSeconds", 30.into());
    set(
        "securityContext",
        json!({
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "runAsNonRoot": true,
            "seccompProfile": { "type": "RuntimeDefault" },
        }),
    );
    // Two replicas on one node, in one zone, are better than one that waits: so all of this is a wish.
    set(
        "affinity",
        json!({
            "podAntiAffinity": {
                "preferredDuringSchedulingIgnoredDuringExecution": [{
                    "weight": 100,
                    "podAffinityTerm": { "labelSelector": only_ours, "topologyKey": "kubernetes.io/hostname" },
                }],
            },
        }),
    );
    set(
        "topologySpreadConstraints",
        json!([{
            "labelSelector": only_ours,
            "maxSkew": 1,
            "topologyKey": "topology.kubernetes.io/zone",
            "whenUnsatisfiable": "ScheduleAnyway",
        }]),
    );
    set("containers", json!([container]));
    if !volumes.is_empty() {
        set("volumes", volumes.into());
    }
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": part.in_namespace(settings, part.name()),
        "spec": {
            "replicas": settings.replicas.parse::<u32>().map_or_else(|_| settings.replicas.as_str().into(), Value::from),
            "revisionHistoryLimit": 3,
            "selector": { "matchLabels": part.selector() },
            "strategy": { "type": "RollingUpdate", "rollingUpdate": { "maxSurge": 1, "maxUnavailable": 0 } },
            "template": { "metadata": { "labels": part.labels() }, "spec": pod },
        },
    })
}
