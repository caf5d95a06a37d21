//! The names that injection reads and writes, beyond those of [`weft_core::wellknown`].

/// The init container that redirects the pod's traffic to the sidecar.
pub const REDIRECT_CONTAINER: &str = "weft-redirect";

/// Annotation on an injected pod: the version that it was injected with.
pub const ANNOTATION_INJECTED: &str = "weft.dev/injected";

/// Annotation on a pod: ports, joined by commas, at which what comes in bypasses the sidecar.
pub const ANNOTATION_SKIP_INBOUND_PORTS: &str = "weft.dev/skip-inbound-ports";
/// Annotation on a pod: ports, joined by commas, to which the pod connects without the sidecar.
pub const ANNOTATION_SKIP_OUTBOUND_PORTS: &str = "weft.dev/skip-outbound-ports";
/// Annotation on a pod: subnets, joined by commas, to which the pod connects without the sidecar.
pub const ANNOTATION_SKIP_SUBNETS: &str = "weft.dev/skip-subnets";

/// Annotation on a pod: how much CPU the sidecar asks for, as a Kubernetes quantity; 10m without it.
pub const ANNOTATION_CPU_REQUEST: &str = "weft.dev/sidecar-cpu-request";
/// Annotation on a pod: how much CPU the sidecar may use at most; no limit without it.
pub const ANNOTATION_CPU_LIMIT: &str = "weft.dev/sidecar-cpu-limit";
/// Annotation on a pod: how much memory the sidecar asks for; 16Mi without it.
pub const ANNOTATION_MEMORY_REQUEST: &str = "weft.dev/sidecar-memory-request";
/// Annotation on a pod: how much memory the sidecar may use at most; 128Mi without it.
pub const ANNOTATION_MEMORY_LIMIT: &str = "weft.dev/sidecar-memory-limit";

/// Annotation on a namespace: `true` lets its pods run as the sidecar's user.
pub const ANNOTATION_ALLOW_SIDECAR_UID: &str = "weft.dev/allow-sidecar-uid";
/// Annotation on a namespace: `true` lets its pods have containers that are privileged or may change the network.
pub const ANNOTATION_ALLOW_NET_ADMIN: &str = "weft.dev/allow-net-admin";
/// Annotation on a namespace: `true` lets its pods share their process namespace.
pub const ANNOTATION_ALLOW_SHARED_PROCESSES: &str = "weft.dev/allow-shared-process-namespace";

/// The volume with the service-account token that the sidecar shows to the control plane.
pub const VOLUME_TOKEN: &str = "weft-token";
/// The volume in memory for what the sidecar keeps across a restart of its container.
pub const VOLUME_STATE: &str = "weft-state";
/// The volume with the anchors by which the sidecar first knows the control plane.
pub const VOLUME_TRUST_BUNDLE: &str = "weft-trust-bundle";

/// The audience of the sidecar's token; a token for any other is worth nothing to the control plane.
pub const TOKEN_AUDIENCE: &str = "weft";
/// The token's file in [`MOUNT_TOKEN`].
pub const FILE_TOKEN: &str = "token";
/// Where [`VOLUME_TOKEN`] is mounted in the sidecar.
pub const MOUNT_TOKEN: &str = "/run/weft/token";
/// Where [`VOLUME_STATE`] is mounted in the sidecar.
pub const MOUNT_STATE: &str = "/run/weft/state";
/// Where [`VOLUME_TRUST_BUNDLE`] is mounted in the sidecar.
pub const MOUNT_TRUST_BUNDLE: &str = "/run/weft/trust-bundle";
