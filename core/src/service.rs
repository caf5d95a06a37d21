//! Services, workloads and endpoints, as a sidecar needs to know them.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::identity::{Name, Namespace, SpiffeId};
use crate::protocol::AppProtocol;

/// Namespace and name of an object.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectRef {
    /// The namespace.
    pub namespace: Namespace,
    /// The name in it.
    pub name: Name,
}

impl std::fmt::Display for ObjectRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl std::fmt::Debug for ObjectRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

impl std::str::FromStr for ObjectRef {
    type Err = crate::identity::InvalidName;
    /// Reads `NAMESPACE/NAME`.
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let (namespace, name) = s.split_once('/').unwrap_or((s, ""));
        Ok(Self { namespace: namespace.parse()?, name: name.parse()? })
    }
}

/// One port of a service.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServicePort {
    /// The port that clients dial on the service's address.
    pub port: u16,
    /// The name, where the service has several.
    pub name: Option<Arc<str>>,
    /// What it is declared to speak.
    pub protocol: AppProtocol,
}

/// A service: addresses that stand for a set of endpoints.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Service {
    /// Which one.
    pub id: ObjectRef,
    /// Its addresses (cluster IPs), one per family.
    pub addresses: Vec<IpAddr>,
    /// Its TCP ports.
    pub ports: Vec<ServicePort>,
    /// `sessionAffinity: ClientIP`: a client stays with its endpoint until it was silent for this long.
    pub client_ip_affinity: Option<Duration>,
    /// `internalTrafficPolicy: Local`: only endpoints of the caller's own node.
    pub local_only: bool,
}

impl Service {
    /// The declaration of one port, or none if the service has no such port.
    pub fn port(&self, port: u16) -> Option<&ServicePort> {
        self.ports.iter().find(|p| p.port == port)
    }
}

/// How an address is reached.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Reach {
    /// It has a sidecar that proves this identity: mutual TLS, and nothing else.
    Mesh(SpiffeId),
    /// It has none: plaintext, and labelled so.
    Plain,
}

impl Reach {
    /// The identity that must be proved there; none where there is no sidecar.
    pub fn identity(&self) -> Option<&SpiffeId> {
        match self {
            Self::Mesh(identity) => Some(identity),
            Self::Plain => None,
        }
    }
}

/// A workload's address, as a sidecar needs to know it to dial it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Workload {
    /// The pod.
    pub id: ObjectRef,
    /// Its address.
    pub address: IpAddr,
    /// How it is reached.
    pub reach: Reach,
    /// Declared protocols by the pod's own port, from the services that select it.
    pub protocols: Vec<(u16, AppProtocol)>,
}

/// One endpoint of a service.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Endpoint {
    /// Where it is.
    pub address: IpAddr,
    /// The pod behind it, where there is one.
    pub workload: Option<ObjectRef>,
    /// How it is reached.
    pub reach: Reach,
    /// Whether new work may go to it: ready, or serving while nothing is ready.
    pub ready: bool,
    /// The topology zone, empty if unknown.
    pub zone: Arc<str>,
    /// The node, empty if unknown.
    pub node: Arc<str>,
    /// `(service port, port of the endpoint)`, for each port that it offers.
    pub ports: Vec<(u16, u16)>,
}

impl Endpoint {
    /// The endpoint's own port behind a port of the service.
    pub fn target_port(&self, service_port: u16) -> Option<u16> {
        self.ports.iter().find(|(from, _)| *from == service_port).map(|(_, to)| *to)
    }
}

/// What an address stands for. "Unknown" is an answer: the control plane looked, and it is nothing of the mesh's.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum AddressKind {
    /// A service's own address.
    Service(ObjectRef),
    /// A workload's own address; never rebalanced.
    Workload(Workload),
    /// Nothing of the mesh's.
    Unknown,
}
