//! The names that injection reads and writes, beyond those of [`weft_core::wellknown`].
//!
//! An option of a pod is an annotation on the pod; without it, the annotation of the same name on its namespace;
//! without that, the default. [`POD_OPTIONS`] has them all.

/// The init container that redirects the pod's traffic to the sidecar.
pub const REDIRECT_CONTAINER: &str = "weft-init";
/// The init container without any privilege that ends well only where the CNI plugin has redirected the pod's traffic, so that
/// no pod starts without. Its arguments behind [`VERIFY_ARGUMENTS`] are the words of [`ANNOTATION_REDIRECT`]: containers, unlike
/// annotations, stay as they were admitted, and so the plugin goes by them.
pub const VERIFY_CONTAINER: &str = "weft-verify";
/// What the arguments of [`VERIFY_CONTAINER`] begin with.
pub const VERIFY_ARGUMENTS: [&str; 2] = ["verify", "--directions=outbound"];

/// Annotation on an injected pod: the version that it was injected with.
pub const ANNOTATION_INJECTED: &str = "weft.dev/injected";
/// Annotation on a pod that has no sidecar although it, or its namespace for all of its pods, asks for one: the reason, as a
/// [`crate::SkipReason`] names it.
pub const ANNOTATION_NOT_INJECTED: &str = "weft.dev/not-injected";
/// Annotation on a pod whose traffic the CNI plugin redirects: what the plugin passes to `weft-redirect apply`, split
/// at blanks; mostly nothing.
pub const ANNOTATION_REDIRECT: &str = "weft.dev/redirect";

/// Option: ports, joined by commas, at which what comes in bypasses the sidecar; none by default.
pub const ANNOTATION_SKIP_INBOUND_PORTS: &str = "weft.dev/skip-inbound-ports";
/// Option: ports, joined by commas, to which the pod connects without the sidecar; none by default.
pub const ANNOTATION_SKIP_OUTBOUND_PORTS: &str = "weft.dev/skip-outbound-ports";
/// Option: subnets, joined by commas, to which the pod connects without the sidecar; none by default.
pub const ANNOTATION_SKIP_SUBNETS: &str = "weft.dev/skip-subnets";
/// Option: `enabled` sends what the pod asks of DNS to the sidecar; `disabled` by default.
pub const ANNOTATION_DNS_CAPTURE: &str = "weft.dev/dns-capture";
/// Option: `false` leaves the probes as they are, for pods whose policy lets the kubelet in; `true` by default.
pub const ANNOTATION_REWRITE_PROBES: &str = "weft.dev/rewrite-probes";
/// Option: how much CPU the sidecar asks for, as a Kubernetes quantity; 10m by default.
pub const ANNOTATION_CPU_REQUEST: &str = "weft.dev/sidecar-cpu-request";
/// Option: how much CPU the sidecar may use at most; no limit by default.
pub const ANNOTATION_CPU_LIMIT: &str = "weft.dev/sidecar-cpu-limit";
/// Option: how much memory the sidecar asks for; 16Mi by default.
pub const ANNOTATION_MEMORY_REQUEST: &str = "weft.dev/sidecar-memory-request";
/// Option: how much memory the sidecar may use at most; 128Mi by default.
pub const ANNOTATION_MEMORY_LIMIT: &str = "weft.dev/sidecar-memory-limit";
/// Option: what the sidecar logs, as levels by target: `info,weft_sidecar=debug`; `info` by default.
pub const ANNOTATION_LOG: &str = "weft.dev/sidecar-log";
/// Option: the sidecar's worker threads, 0 to 256; 0, the default, follows its CPU limit.
pub const ANNOTATION_WORKERS: &str = "weft.dev/sidecar-workers";
/// Option: how long an endpoint may take to accept a connection; 1s by default.
pub const ANNOTATION_CONNECT_TIMEOUT: &str = "weft.dev/connect-timeout";
/// Option: how long a kept-alive connection may idle; 5m by default.
pub const ANNOTATION_IDLE_TIMEOUT: &str = "weft.dev/idle-timeout";
/// Option: how long a sidecar that was told to stop goes on accepting; 2s by default.
pub const ANNOTATION_DRAIN_GRACE: &str = "weft.dev/drain-grace";
/// Option: how long what is under way may then take to end; 20s by default.
pub const ANNOTATION_DRAIN_TIMEOUT: &str = "weft.dev/drain-timeout";
/// Option: `enabled` offers the pod's containers the SPIFFE Workload API; `disabled` by default.
pub const ANNOTATION_WORKLOAD_API: &str = "weft.dev/workload-api";

/// Option: variables of the sidecar's telemetry, as `NAME=VALUE` on a line each or joined by semicolons: the standard `OTEL_*` ones, and
/// `WEFT_ACCESS_LOG` and its like; none by default.
pub const ANNOTATION_TELEMETRY: &str = "weft.dev/telemetry";

/// The options of a pod, which a namespace may set for all of its pods.
pub const POD_OPTIONS: [&str; 17] = [
    ANNOTATION_SKIP_INBOUND_PORTS,
    ANNOTATION_SKIP_OUTBOUND_PORTS,
    ANNOTATION_SKIP_SUBNETS,
    ANNOTATION_DNS_CAPTURE,
    ANNOTATION_REWRITE_PROBES,
    ANNOTATION_CPU_REQUEST,
    ANNOTATION_CPU_LIMIT,
    ANNOTATION_MEMORY_REQUEST,
    ANNOTATION_MEMORY_LIMIT,
    ANNOTATION_LOG,
    ANNOTATION_WORKERS,
    ANNOTATION_CONNECT_TIMEOUT,
    ANNOTATION_IDLE_TIMEOUT,
    ANNOTATION_DRAIN_GRACE,
    ANNOTATION_DRAIN_TIMEOUT,
    ANNOTATION_WORKLOAD_API,
    ANNOTATION_TELEMETRY,
];

/// Annotation on a namespace: what its pods may not ask for, joined by commas: `skip-inbound-ports`,
/// `skip-outbound-ports`, `skip-subnets`, `permissive`, or `all` of these. The namespace's own annotations may.
pub const ANNOTATION_FORBID: &str = weft_core::wellknown::ANNOTATION_FORBID;
/// Annotation on a namespace: `true` lets its pods run as the sidecar's user.
pub const ANNOTATION_ALLOW_SIDECAR_UID: &str = "weft.dev/allow-sidecar-uid";
/// Annotation on a namespace: `true` lets its pods have containers that are privileged or may change the network.
pub const ANNOTATION_ALLOW_NET_ADMIN: &str = "weft.dev/allow-net-admin";
/// Annotation on a namespace: `true` lets its pods share their process namespace.
pub const ANNOTATION_ALLOW_SHARED_PROCESSES: &str = "weft.dev/allow-shared-process-namespace";

/// The volume with the service-account token that the sidecar shows to the control plane.
pub const VOLUME_TOKEN: &str = "weft-token";
/// The volume in memory for what the sidecar keeps across a restart of its container, and for its admin socket.
pub const VOLUME_STATE: &str = "weft-state";
/// The volume with the anchors by which the sidecar first knows the control plane.
pub const VOLUME_TRUST_BUNDLE: &str = "weft-trust-bundle";
/// The volume with the socket of the Workload API, which the sidecar shares with the pod's other containers, and they with nobody.
pub const VOLUME_WORKLOAD_API: &str = "weft-workload-api";

/// The audience of the sidecar's token; a token for any other is worth nothing to the control plane.
pub const TOKEN_AUDIENCE: &str = "weft";
/// The token's file in [`MOUNT_TOKEN`].
pub const FILE_TOKEN: &str = "token";
/// The key in the trust bundle's config map, and its file in [`MOUNT_TRUST_BUNDLE`].
pub const FILE_ANCHORS: &str = "anchors.pem";
/// Where [`VOLUME_TOKEN`] is mounted in the sidecar.
pub const MOUNT_TOKEN: &str = "/run/weft/token";
/// Where [`VOLUME_STATE`] is mounted in the sidecar.
pub const MOUNT_STATE: &str = "/run/weft/state";
/// Where [`VOLUME_TRUST_BUNDLE`] is mounted in the sidecar.
pub const MOUNT_TRUST_BUNDLE: &str = "/run/weft/trust-bundle";
/// Where [`VOLUME_WORKLOAD_API`] is mounted, in every container.
pub const MOUNT_WORKLOAD_API: &str = "/run/weft/workload-api";
/// The variable by which SPIFFE's libraries find the Workload API (SPIFFE Workload Endpoint, section 4).
pub const ENV_SPIFFE_ENDPOINT_SOCKET: &str = "SPIFFE_ENDPOINT_SOCKET";

/// The sidecar's variable with the checks that it makes for the kubelet: an object of `CONTAINER/PROBE` to
/// `{"check": "tcp"|"http"|"grpc", "port": …, "timeout_secs": …, …}`.
pub const ENV_PROBES: &str = "WEFT_PROBES";
/// Where the sidecar's admin port has them: `/probe/CONTAINER/PROBE`.
pub const PROBE_PATH: &str = "/probe";
