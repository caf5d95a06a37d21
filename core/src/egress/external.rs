//! The nouns of egress.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;

use super::origination::Origination;
use crate::authorization::policy::{Authorization, HostMatch, PostureFrom};
use crate::service::ObjectRef;

/// Everything that says where one pod may go outside of the mesh.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Egress {
    /// What becomes of a destination that no external service names.
    pub default: EgressDefault,
    /// Who set the default, for telling.
    pub default_from: PostureFrom,
    /// The external services that the pod may see.
    pub externals: Vec<Arc<External>>,
}

/// What becomes of a destination that nobody knows.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum EgressDefault {
    /// It is dialled, as if there were no mesh.
    #[default]
    Allow,
    /// It is refused.
    Deny,
}

/// A word that is no default.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("egress {0:?} is not valid: it must be \"allow\" or \"deny\"")]
pub struct InvalidEgress(String);

impl FromStr for EgressDefault {
    type Err = InvalidEgress;
    fn from_str(s: &str) -> Result<Self, InvalidEgress> {
        match s {
            "allow" => Ok(Self::Allow),
            "deny" => Ok(Self::Deny),
            _ => Err(InvalidEgress(s.chars().take(40).collect())),
        }
    }
}

impl EgressDefault {
    /// The word for it, as an annotation has it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
        }
    }
}

impl fmt::Display for EgressDefault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One `ExternalService`: hosts outside of the mesh, and how they are reached.
#[derive(Clone, PartialEq, Debug)]
pub struct External {
    /// Its namespace and name.
    pub id: ObjectRef,
    /// It stands in the namespace of the installation, and is for every pod.
    pub is_mesh_wide: bool,
    /// At least one. An address stands here only where `resolution` has it.
    pub hosts: Vec<HostMatch>,
    /// At least one; each port once.
    pub ports: Vec<ExternalPort>,
    /// The sidecar opens TLS; none where the application's bytes go out as they are.
    pub origination: Option<Origination>,
    /// Where the addresses come from.
    pub resolution: Resolution,
    /// Who may go there. Its posture is [`crate::authorization::Posture::AllowAll`].
    pub authorization: Authorization,
}

/// A port of an external service.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ExternalPort {
    /// What the application dials.
    pub port: u16,
    /// What the sidecar dials.
    pub target: u16,
    /// What the application speaks.
    pub protocol: ExternalProtocol,
}

/// What the application speaks at a port.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum ExternalProtocol {
    /// HTTP of any version: each request names its host.
    Http,
    /// HTTP/2 alone.
    Http2,
    /// TLS of the application's own: the `ClientHello` names the host.
    Tls,
    /// Bytes: the address says which host is meant.
    Tcp,
}

impl ExternalProtocol {
    /// The word for it, as manifests have it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Http2 => "http2",
            Self::Tls => "tls",
            Self::Tcp => "tcp",
        }
    }

    /// Whether each request says which host is meant.
    pub const fn is_http(self) -> bool {
        matches!(self, Self::Http | Self::Http2)
    }
}

/// Where the addresses of a host come from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Resolution {
    /// The pod's resolver.
    Dns,
    /// These; at least one.
    Static(Vec<Endpoint>),
}

/// A fixed endpoint.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Endpoint {
    /// Its address.
    pub address: IpAddr,
    /// Its port; none is that of the service's port.
    pub port: Option<u16>,
}

impl External {
    /// What it says of a port that is dialled.
    pub fn port(&self, port: u16) -> Option<&ExternalPort> {
        self.ports.iter().find(|p| p.port == port)
    }

    /// Whether its TLS is mutual, with SPIFFE peers.
    pub fn is_mutual(&self) -> bool {
        self.origination.as_ref().is_some_and(|o| o.peer().is_some())
    }

    /// The fixed endpoints; none where the resolver is asked.
    pub fn endpoints(&self) -> &[Endpoint] {
        match &self.resolution {
            Resolution::Dns => &[],
            Resolution::Static(endpoints) => endpoints,
        }
    }
}
