//! The numbers and names that every room agrees on.

/// Where the sidecar takes in redirected connections that come from other pods.
pub const PORT_INBOUND: u16 = 4743;
/// Where the sidecar takes in redirected connections that its own pod opens.
pub const PORT_OUTBOUND: u16 = 4740;
/// Where the sidecar answers DNS, for a redirect that captures it.
pub const PORT_DNS: u16 = 4753;
/// Tap and control (reserved; nothing listens yet).
pub const PORT_CONTROL: u16 = 4790;
/// The sidecar's admin port: `/live`, `/ready` and `/metrics` alone.
pub const PORT_ADMIN: u16 = 4791;
/// The control plane's gRPC port.
pub const PORT_CONTROL_PLANE: u16 = 4700;
/// The injector's webhook port.
pub const PORT_INJECTOR: u16 = 4780;

/// Every port of the pod that belongs to the sidecar; inbound never dials one of them.
pub const SIDECAR_PORTS: [u16; 5] = [PORT_OUTBOUND, PORT_INBOUND, PORT_DNS, PORT_CONTROL, PORT_ADMIN];

/// The user id that the sidecar runs as, where there is more than one; the redirect exempts it.
pub const SIDECAR_UID: u32 = 4747;
/// The socket mark that the redirect exempts where there is only one uid, as in a user namespace.
pub const SIDECAR_MARK: u32 = 0x4747;

/// The container whose presence in a pod says that the pod has a sidecar.
pub const SIDECAR_CONTAINER: &str = "weft-sidecar";
/// Label on a namespace or pod: `enabled` or `disabled`.
pub const LABEL_INJECT: &str = "weft.dev/inject";
/// Annotation on a namespace or pod: `strict` or `permissive`.
pub const ANNOTATION_MTLS: &str = "weft.dev/mtls";
/// Annotation on a pod: `PORT=MODE` pairs joined by commas, each overriding [`ANNOTATION_MTLS`] for one port.
pub const ANNOTATION_MTLS_PORTS: &str = "weft.dev/mtls-ports";
/// Annotation on a namespace: who may call its pods where no policy says so; a posture of [`crate::authorization`].
pub const ANNOTATION_DEFAULT_POLICY: &str = "weft.dev/default-policy";
/// Annotation on a namespace: what becomes of destinations that nobody knows; a word of [`crate::egress::EgressDefault`].
pub const ANNOTATION_EGRESS: &str = "weft.dev/egress";
/// Annotation on a namespace: words joined by commas, each a way round the mesh that its pods' annotations may not take.
pub const ANNOTATION_FORBID: &str = "weft.dev/forbid";
/// The words of [`ANNOTATION_FORBID`] that keep a pod from being more permissive than its namespace.
pub const FORBID_PERMISSIVE: [&str; 2] = ["permissive", "all"];

/// Namespace and service account of the one identity that is the control plane's; attestation never issues it.
pub const CONTROL_PLANE_NAMESPACE: &str = "weft-system";
/// See [`CONTROL_PLANE_NAMESPACE`].
pub const CONTROL_PLANE_SERVICE_ACCOUNT: &str = "weft-control-plane";
/// The trust domain where the user names none.
pub const DEFAULT_TRUST_DOMAIN: &str = "cluster.local";

/// A leaf is backdated by this much, so that a peer whose clock is behind accepts it.
pub const BACKDATE_SECS: i64 = 300;
/// How long a leaf lives.
pub const LEAF_LIFETIME_SECS: i64 = 24 * 3600;
/// Allowance for a peer's clock when its validity is checked.
pub const CLOCK_SKEW_SECS: i64 = 20;
/// A lookup inside the mesh ranges that is not answered within this time fails with `discovery-unavailable`.
pub const LOOKUP_TIMEOUT_MILLIS: u64 = 1_000;
/// How long a silent client is waited for before the upstream is opened as opaque.
pub const QUIET_TIME_MILLIS: u64 = 25;
/// The object identifier of the certificate extension that names the attested pod (UTF-8 `NS/POD`).
/// It lies in the arc that ITU-T X.667 gives to anyone (2.25 followed by a random integer).
pub const OID_ATTESTED_POD: [u64; 3] = [2, 25, 6_814_922_301_547_066_183];

/// A sidecar's words where its calls are being recorded for somebody else.
pub const RECORDED_ALREADY: &str = "its calls are recorded already";
