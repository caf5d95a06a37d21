//! The parts of Kubernetes objects that the mesh reads, with the API server's own field names. What is not named
//! here is ignored, so that real manifests pass unchanged.

pub mod authorization;
pub mod external;
pub mod jwt;
pub mod mtls;
pub mod network_policy;
pub mod traffic;
pub mod trust;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use weft_core::service::ObjectRef;
use weft_core::traffic::route::RouteKind;
use weft_core::{Name, Namespace};

use authorization::AuthorizationObject;
use external::ExternalObject;
use jwt::IssuerObject;
use mtls::MtlsObject;
use network_policy::NetworkPolicyObject;
use traffic::{PolicyObject, ReferenceGrantObject, RouteObject};
use trust::{DenialObject, FederationObject};

/// An object of a kind that the mesh reads.
#[derive(Clone, PartialEq, Debug)]
pub enum Object {
    Namespace(Arc<NamespaceObject>),
    Service(Arc<ServiceObject>),
    Pod(Arc<PodObject>),
    EndpointSlice(Arc<EndpointSliceObject>),
    Route(Arc<RouteObject>),
    ReferenceGrant(Arc<ReferenceGrantObject>),
    BackendTrafficPolicy(Arc<PolicyObject>),
    TrafficPolicy(Arc<PolicyObject>),
    AuthorizationPolicy(Arc<AuthorizationObject>),
    NetworkPolicy(Arc<NetworkPolicyObject>),
    Federation(Arc<FederationObject>),
    IdentityDenial(Arc<DenialObject>),
    MtlsPolicy(Arc<MtlsObject>),
    JwtIssuer(Arc<IssuerObject>),
    ExternalService(Arc<ExternalObject>),
}

/// What identifies an object. Cluster-scoped kinds stand in their own namespace field.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct ObjectKey {
    pub kind: Kind,
    pub id: ObjectRef,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Kind {
    Namespace,
    Service,
    Pod,
    EndpointSlice,
    HttpRoute,
    GrpcRoute,
    TlsRoute,
    TcpRoute,
    ReferenceGrant,
    BackendTrafficPolicy,
    TrafficPolicy,
    AuthorizationPolicy,
    NetworkPolicy,
    /// `FederatedTrustDomain`.
    Federation,
    IdentityDenial,
    MtlsPolicy,
    JwtIssuer,
    ExternalService,
}

impl Kind {
    /// As manifests spell it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Namespace => "Namespace",
            Self::Service => "Service",
            Self::Pod => "Pod",
            Self::EndpointSlice => "EndpointSlice",
            Self::HttpRoute => RouteKind::Http.as_str(),
            Self::GrpcRoute => RouteKind::Grpc.as_str(),
            Self::TlsRoute => RouteKind::Tls.as_str(),
            Self::TcpRoute => RouteKind::Tcp.as_str(),
            Self::ReferenceGrant => "ReferenceGrant",
            Self::BackendTrafficPolicy => "XBackendTrafficPolicy",
            Self::TrafficPolicy => "TrafficPolicy",
            Self::AuthorizationPolicy => "AuthorizationPolicy",
            Self::NetworkPolicy => "NetworkPolicy",
            Self::Federation => "FederatedTrustDomain",
            Self::IdentityDenial => "IdentityDenial",
            Self::MtlsPolicy => "MtlsPolicy",
            Self::JwtIssuer => "JwtIssuer",
            Self::ExternalService => "ExternalService",
        }
    }

    /// The kind of a route; none for what is no route.
    pub const fn route(self) -> Option<RouteKind> {
        match self {
            Self::HttpRoute => Some(RouteKind::Http),
            Self::GrpcRoute => Some(RouteKind::Grpc),
            Self::TlsRoute => Some(RouteKind::Tls),
            Self::TcpRoute => Some(RouteKind::Tcp),
            _ => None,
        }
    }

    /// Its API group and version, as manifests name it.
    pub const fn api_version(self) -> &'static str {
        match self {
            Self::Namespace | Self::Service | Self::Pod => "v1",
            Self::EndpointSlice => "discovery.k8s.io/v1",
            Self::HttpRoute | Self::GrpcRoute => "gateway.networking.k8s.io/v1",
            Self::TlsRoute | Self::TcpRoute => "gateway.networking.k8s.io/v1alpha2",
            Self::ReferenceGrant => "gateway.networking.k8s.io/v1beta1",
            Self::BackendTrafficPolicy => "gateway.networking.x-k8s.io/v1alpha1",
            Self::TrafficPolicy
            | Self::AuthorizationPolicy
            | Self::MtlsPolicy
            | Self::JwtIssuer
            | Self::ExternalService
            | Self::Federation
            | Self::IdentityDenial => "weft.dev/v1alpha1",
            Self::NetworkPolicy => "networking.k8s.io/v1",
        }
    }
}

impl std::fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.kind {
            Kind::Namespace => write!(f, "Namespace {}", self.id.name),
            kind => write!(f, "{} {}", kind.as_str(), self.id),
        }
    }
}

impl Object {
    pub fn key(&self) -> ObjectKey {
        let (kind, id) = match self {
            Self::Namespace(o) => (Kind::Namespace, &o.id),
            Self::Service(o) => (Kind::Service, &o.id),
            Self::Pod(o) => (Kind::Pod, &o.id),
            Self::EndpointSlice(o) => (Kind::EndpointSlice, &o.id),
            Self::Route(o) => (o.key_kind(), &o.id),
            Self::ReferenceGrant(o) => (Kind::ReferenceGrant, &o.id),
            Self::BackendTrafficPolicy(o) => (Kind::BackendTrafficPolicy, &o.id),
            Self::TrafficPolicy(o) => (Kind::TrafficPolicy, &o.id),
            Self::AuthorizationPolicy(o) => (Kind::AuthorizationPolicy, &o.id),
            Self::NetworkPolicy(o) => (Kind::NetworkPolicy, &o.id),
            Self::Federation(o) => (Kind::Federation, &o.id),
            Self::IdentityDenial(o) => (Kind::IdentityDenial, &o.id),
            Self::MtlsPolicy(o) => (Kind::MtlsPolicy, &o.id),
            Self::JwtIssuer(o) => (Kind::JwtIssuer, &o.id),
            Self::ExternalService(o) => (Kind::ExternalService, &o.id),
        };
        ObjectKey { kind, id: id.clone() }
    }
}

pub type Labels = BTreeMap<String, String>;

#[derive(Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(rename_all = "camelCase")]
pub struct Metadata {
    pub name: String,
    pub namespace: Option<String>,
    pub uid: Option<String>,
    #[serde(default)]
    pub labels: Labels,
    #[serde(default)]
    pub annotations: Labels,
    pub deletion_timestamp: Option<String>,
    pub creation_timestamp: Option<Moment>,
    /// How often `spec` was changed; a manifest that a person wrote has none.
    pub generation: Option<i64>,
}

/// A point in time, in seconds since the Unix epoch; written as the API server writes it (RFC 3339, in UTC).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Moment(pub i64);

impl<'de> Deserialize<'de> for Moment {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        moment(&text).map(Self).ok_or_else(|| {
            let text: String = text.chars().take(40).collect();
            serde::de::Error::custom(format!("{text:?} is no time: write it as 2026-01-31T12:00:00Z"))
        })
    }
}

/// Reads `YYYY-MM-DDTHH:MM:SS`, with a fraction or not, and `Z` or `+HH:MM` (RFC 3339).
fn moment(text: &str) -> Option<i64> {
    let (text, east) = match text.strip_suffix('Z') {
        Some(text) => (text, 0),
        None => {
            let (text, zone) = text.split_at_checked(text.len().checked_sub(6)?)?;
            let (hours, minutes) = zone.get(1..)?.split_once(':')?;
            let (hours, minutes): (u8, u8) = (hours.parse().ok()?, minutes.parse().ok()?);
            let seconds = i64::from(hours) * 3_600 + i64::from(minutes) * 60;
            let is_zone = hours < 24 && minutes < 60;
            (
                text,
                if zone.starts_with('+') && is_zone {
                    seconds
                } else if zone.starts_with('-') && is_zone {
                    -seconds
                } else {
                    return None;
                },
            )
        }
    };
    let (date, clock) = text.split_once('T')?;
    let parts = |text: &str, by: char| -> Option<[i64; 3]> {
        let all = text.split(by).map(|part| part.parse::<u16>().ok().map(i64::from)).collect::<Option<Vec<_>>>()?;
        all.try_into().ok()
    };
    let [year, month, day] = parts(date, '-')?;
    let [hour, minute, second] = parts(clock.split('.').next()?, ':')?;
    let month = time::Month::try_from(u8::try_from(month).ok()?).ok()?;
    let date = time::Date::from_calendar_date(i32::try_from(year).ok()?, month, u8::try_from(day).ok()?).ok()?;
    let is_clock = hour < 24 && minute < 60 && second <= 60;
    let days = i64::from(date.to_julian_day()) - 2_440_588;
    is_clock.then_some(days * 86_400 + hour * 3_600 + minute * 60 + second - east)
}

impl Metadata {
    /// Namespace and name, validated; `default` where no namespace is given, as `kubectl` does.
    pub fn id(&self) -> Result<ObjectRef, weft_core::identity::InvalidName> {
        Ok(ObjectRef { namespace: self.namespace.as_deref().unwrap_or("default").parse()?, name: self.name.parse()? })
    }
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NamespaceObject {
    pub id: ObjectRef,
    pub name: Namespace,
    pub labels: Labels,
    pub annotations: Labels,
    pub terminating: bool,
}

impl NamespaceObject {
    /// Whether its pods are to have sidecars.
    pub fn enabled(&self) -> bool {
        is_enabled(&self.labels) && !self.terminating
    }
}

/// Whether the injection label asks for a sidecar.
fn is_enabled(labels: &Labels) -> bool {
    labels.get(weft_core::wellknown::LABEL_INJECT).is_some_and(|v| v == "enabled")
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServiceObject {
    pub id: ObjectRef,
    pub spec: ServiceSpec,
}

#[derive(Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(rename_all = "camelCase")]
pub struct ServiceSpec {
    #[serde(rename = "type", default)]
    pub kind: ServiceType,
    #[serde(rename = "clusterIP")]
    pub cluster_ip: Option<ClusterIp>,
    #[serde(rename = "clusterIPs", default)]
    pub cluster_ips: Vec<ClusterIp>,
    #[serde(default)]
    pub ip_families: Vec<IpFamily>,
    #[serde(default)]
    pub selector: Labels,
    #[serde(default)]
    pub ports: Vec<ServicePortSpec>,
    #[serde(default)]
    pub session_affinity: SessionAffinity,
    #[serde(default)]
    pub session_affinity_config: SessionAffinityConfig,
    #[serde(default)]
    pub internal_traffic_policy: TrafficPolicy,
    /// One of several words; a word that this version does not know changes nothing.
    pub traffic_distribution: Option<String>,
    #[serde(default)]
    pub publish_not_ready_addresses: bool,
    pub external_name: Option<String>,
}

impl ServiceSpec {
    /// The service's own addresses; none for a headless one.
    pub fn addresses(&self) -> Vec<IpAddr> {
        let mut list: Vec<IpAddr> = self.cluster_ips.iter().chain(&self.cluster_ip).filter_map(|c| c.0).collect();
        list.sort_unstable();
        list.dedup();
        list
    }

    /// Whether an endpoint's address is of one of the service's families (KEP-563): those that it names, else those of its
    /// own addresses, else the `primary` one of its pods.
    pub fn has_family_of(&self, address: &IpAddr, primary: Option<IpFamily>) -> bool {
        let family = IpFamily::of(address);
        if !self.ip_families.is_empty() {
            return self.ip_families.contains(&family);
        }
        let own = self.addresses();
        if own.is_empty() { primary == Some(family) } else { own.iter().any(|a| IpFamily::of(a) == family) }
    }

    /// How long a silent client is remembered, where it is at all.
    pub fn client_ip_affinity(&self) -> Option<Duration> {
        let seconds = self.session_affinity_config.client_ip.timeout_seconds;
        (self.session_affinity == SessionAffinity::ClientIP).then(|| Duration::from_secs(seconds.into()))
    }

    pub fn selects(&self, labels: &Labels) -> bool {
        !self.selector.is_empty() && self.selector.iter().all(|(k, v)| labels.get(k) == Some(v))
    }
}

/// A cluster IP; `None` and the empty string are headless or not assigned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ClusterIp(pub Option<IpAddr>);

impl<'de> Deserialize<'de> for ClusterIp {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        match text.as_str() {
            "" | "None" => Ok(Self(None)),
            ip => ip.parse().map(|ip| Self(Some(ip))).map_err(|_| {
                serde::de::Error::custom(format!("{ip:?} is not an IP address (write an address, None for headless, or nothing)"))
            }),
        }
    }
}

#[derive(Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
pub enum IpFamily {
    IPv4,
    IPv6,
}

impl IpFamily {
    pub fn of(address: &IpAddr) -> Self {
        if address.is_ipv4() { Self::IPv4 } else { Self::IPv6 }
    }
}

#[derive(Deserialize, Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum ServiceType {
    #[default]
    ClusterIP,
    NodePort,
    LoadBalancer,
    ExternalName,
}

#[derive(Deserialize, Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum SessionAffinity {
    #[default]
    None,
    ClientIP,
}

#[derive(Deserialize, Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SessionAffinityConfig {
    #[serde(rename = "clientIP", default)]
    pub client_ip: ClientIpConfig,
}

#[derive(Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
#[serde(rename_all = "camelCase")]
pub struct ClientIpConfig {
    /// Seconds, 1 to 86400; three hours where nothing is said, as the API server has it.
    #[serde(default = "three_hours")]
    pub timeout_seconds: u32,
}

fn three_hours() -> u32 {
    10_800
}

impl Default for ClientIpConfig {
    fn default() -> Self {
        Self { timeout_seconds: three_hours() }
    }
}

#[derive(Deserialize, Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum TrafficPolicy {
    #[default]
    Cluster,
    Local,
}

#[derive(Deserialize, Clone, Copy, PartialEq, Eq, Debug, Default)]
#[serde(rename_all = "UPPERCASE")]
pub enum Transport {
    #[default]
    Tcp,
    Udp,
    Sctp,
}

#[derive(Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(rename_all = "camelCase")]
pub struct ServicePortSpec {
    pub name: Option<String>,
    pub port: u16,
    #[serde(default)]
    pub protocol: Transport,
    pub app_protocol: Option<String>,
    pub target_port: Option<IntOrString>,
}

#[derive(Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(untagged)]
pub enum IntOrString {
    Int(u16),
    Name(String),
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PodObject {
    pub id: ObjectRef,
    /// Given by the API server; a manifest that a person wrote has none.
    pub uid: Option<String>,
    pub labels: Labels,
    pub annotations: Labels,
    pub terminating: bool,
    pub spec: PodSpec,
    pub status: PodStatus,
}

#[derive(Deserialize, Clone, PartialEq, Eq, Debug, Default)]
#[serde(rename_all = "camelCase")]
pub struct PodSpec {
    pub service_account_name: Option<String>,
    pub node_name: Option<String>,
    #[serde(default)]
    pub host_network: bool,
    #[serde(default)]
    pub containers: Vec<Container>,
    #[serde(default)]
    pub init_containers: Vec<Container>,
}

#[derive(Deserialize, Clone, PartialEq, Eq, Debug)]
pub struct Container {
    pub name: String,
    #[serde(default)]
    pub ports: Vec<ContainerPort>,
}

#[derive(Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(rename_all = "camelCase")]
pub struct ContainerPort {
    pub name: Option<String>,
    pub container_port: u16,
    #[serde(default)]
    pub protocol: Transport,
}

#[derive(Deserialize, Clone, PartialEq, Eq, Debug, Default)]
#[serde(rename_all = "camelCase")]
pub struct PodStatus {
    pub phase: Option<Phase>,
    #[serde(rename = "podIP")]
    pub pod_ip: Option<IpAddr>,
    #[serde(rename = "podIPs", default)]
    pub pod_ips: Vec<PodIp>,
    #[serde(default)]
    pub conditions: Vec<Condition>,
}

#[derive(Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    Pending,
    Running,
    Succeeded,
    Failed,
    Unknown,
}

#[derive(Deserialize, Clone, PartialEq, Eq, Debug)]
pub struct PodIp {
    pub ip: IpAddr,
}

#[derive(Deserialize, Clone, PartialEq, Eq, Debug)]
pub struct Condition {
    #[serde(rename = "type")]
    pub kind: String,
    pub status: String,
}

impl PodObject {
    pub fn addresses(&self) -> Vec<IpAddr> {
        let mut list: Vec<IpAddr> = self.status.pod_ips.iter().map(|p| p.ip).chain(self.status.pod_ip).collect();
        list.sort_unstable();
        list.dedup();
        list
    }

    /// Whether it has ended; its address may belong to another pod by now.
    pub fn ended(&self) -> bool {
        matches!(self.status.phase, Some(Phase::Succeeded | Phase::Failed))
    }

    /// The address family that it was given first.
    pub fn primary_family(&self) -> Option<IpFamily> {
        let first = self.status.pod_ip.or(self.status.pod_ips.first().map(|p| p.ip));
        first.as_ref().map(IpFamily::of)
    }

    /// Whether new work may go to it.
    pub fn ready(&self) -> bool {
        !self.terminating && self.serving()
    }

    /// The `Ready` condition, which a pod may keep while it ends; a manifest without conditions, as a person writes it, is
    /// taken as ready.
    pub fn serving(&self) -> bool {
        if self.ended() {
            return false;
        }
        match self.status.conditions.iter().find(|c| c.kind == "Ready") {
            Some(c) => c.status == "True",
            None => self.status.conditions.is_empty() && self.status.phase != Some(Phase::Pending),
        }
    }

    pub fn service_account(&self) -> &str {
        self.spec.service_account_name.as_deref().unwrap_or("default")
    }

    pub fn has_sidecar(&self) -> bool {
        !self.spec.host_network
            && self
                .spec
                .containers
                .iter()
                .chain(&self.spec.init_containers)
                .any(|c| c.name == weft_core::wellknown::SIDECAR_CONTAINER)
    }

    /// Whether it has a sidecar, or asks for one.
    pub fn in_mesh(&self) -> bool {
        !self.ended() && !self.spec.host_network && (self.has_sidecar() || is_enabled(&self.labels))
    }

    /// The zone that it runs in, where the API server wrote it on the pod; empty where not.
    pub fn zone(&self) -> &str {
        self.labels.get(LABEL_ZONE).map(String::as_str).unwrap_or_default()
    }

    pub fn port_named(&self, name: &str) -> Option<u16> {
        self.spec
            .containers
            .iter()
            .chain(&self.spec.init_containers)
            .flat_map(|c| &c.ports)
            .find(|p| p.name.as_deref() == Some(name) && p.protocol == Transport::Tcp)
            .map(|p| p.container_port)
    }
}

/// The label by which a slice names its service.
pub const LABEL_SERVICE_NAME: &str = "kubernetes.io/service-name";
/// The label with a node's zone, which newer API servers copy to the pods on it.
pub const LABEL_ZONE: &str = "topology.kubernetes.io/zone";

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EndpointSliceObject {
    pub id: ObjectRef,
    /// The service that it belongs to, from the label.
    pub service: Option<Name>,
    pub endpoints: Vec<SliceEndpoint>,
    pub ports: Vec<SlicePort>,
}

#[derive(Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(rename_all = "camelCase")]
pub struct SliceEndpoint {
    pub addresses: Vec<IpAddr>,
    #[serde(default)]
    pub conditions: SliceConditions,
    pub node_name: Option<String>,
    pub zone: Option<String>,
    pub hints: Option<Hints>,
    pub target_ref: Option<TargetRef>,
}

impl SliceEndpoint {
    /// The pod that it stands for, by name.
    pub fn pod(&self) -> Option<&str> {
        self.target_ref.as_ref().filter(|t| t.kind.as_deref() == Some("Pod"))?.name.as_deref()
    }

    /// The node that it is on and that node's zone, where it tells both.
    pub fn place(&self) -> Option<(&str, &str)> {
        self.node_name.as_deref().zip(self.zone.as_deref())
    }
}

/// For whom an endpoint is meant.
#[derive(Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(rename_all = "camelCase")]
pub struct Hints {
    #[serde(default)]
    pub for_zones: Vec<Named>,
    #[serde(default)]
    pub for_nodes: Vec<Named>,
}

#[derive(Deserialize, Clone, PartialEq, Eq, Debug)]
pub struct Named {
    pub name: String,
}

/// What an endpoint stands for.
#[derive(Deserialize, Clone, PartialEq, Eq, Debug)]
pub struct TargetRef {
    pub kind: Option<String>,
    pub name: Option<String>,
}

#[derive(Deserialize, Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SliceConditions {
    pub ready: Option<bool>,
    pub serving: Option<bool>,
    pub terminating: Option<bool>,
}

#[derive(Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(rename_all = "camelCase")]
pub struct SlicePort {
    pub name: Option<String>,
    pub port: Option<u16>,
    #[serde(default)]
    pub protocol: Transport,
    pub app_protocol: Option<String>,
}
