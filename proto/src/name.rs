//! Names of resources on a discovery stream.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use weft_core::network_policy::PeersId;
use weft_core::service::ObjectRef;

/// A resource's name.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum ResourceName {
    /// The trust bundle.
    Trust,
    /// Facts about the whole mesh.
    Mesh,
    /// The sidecar's own inbound policy.
    Inbound,
    /// What the sidecar's own pod may call.
    Outbound,
    /// What an address stands for.
    Address(IpAddr),
    /// A service.
    Service(ObjectRef),
    /// A service's endpoints.
    Endpoints(ObjectRef),
    /// A service's routes, as the callers of the stream's namespace see them.
    Routes(ObjectRef),
    /// A service's traffic policy.
    Policy(ObjectRef),
    /// Pods that network policies name.
    Peers(PeersId),
}

/// A text that names no resource.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "resource name {0:?} is not known: use trust, mesh, inbound, outbound, address/IP, peers/ID, or one of service, endpoints, routes and policy with /NS/NAME"
)]
pub struct UnknownName(String);

impl FromStr for ResourceName {
    type Err = UnknownName;
    fn from_str(s: &str) -> Result<Self, UnknownName> {
        let bad = || UnknownName(s.chars().take(80).collect());
        match s.split_once('/') {
            None if s == "trust" => Ok(Self::Trust),
            None if s == "mesh" => Ok(Self::Mesh),
            None if s == "inbound" => Ok(Self::Inbound),
            None if s == "outbound" => Ok(Self::Outbound),
            Some(("address", ip)) => ip.parse().map(Self::Address).map_err(|_| bad()),
            Some(("service", id)) => id.parse().map(Self::Service).map_err(|_| bad()),
            Some(("endpoints", id)) => id.parse().map(Self::Endpoints).map_err(|_| bad()),
            Some(("routes", id)) => id.parse().map(Self::Routes).map_err(|_| bad()),
            Some(("policy", id)) => id.parse().map(Self::Policy).map_err(|_| bad()),
            Some(("peers", id)) => id.parse().map(Self::Peers).map_err(|_| bad()),
            _ => Err(bad()),
        }
    }
}

impl fmt::Display for ResourceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Trust => f.write_str("trust"),
            Self::Mesh => f.write_str("mesh"),
            Self::Inbound => f.write_str("inbound"),
            Self::Outbound => f.write_str("outbound"),
            Self::Address(ip) => write!(f, "address/{ip}"),
            Self::Service(id) => write!(f, "service/{id}"),
            Self::Endpoints(id) => write!(f, "endpoints/{id}"),
            Self::Routes(id) => write!(f, "routes/{id}"),
            Self::Policy(id) => write!(f, "policy/{id}"),
            Self::Peers(id) => write!(f, "peers/{id}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_survive_the_round_trip_and_others_are_refused() {
        for name in [
            "trust",
            "mesh",
            "inbound",
            "outbound",
            "address/10.0.0.1",
            "address/fd47::1",
            "service/shop/web",
            "endpoints/shop/web.v2",
            "routes/shop/web",
            "policy/shop/web",
            "peers/00112233445566ff",
        ] {
            assert_eq!(name.parse::<ResourceName>().expect("known").to_string(), name);
        }
        for name in ["", "trust/", "address/", "address/web", "service/shop", "service/shop/Web", "secret/a/b", "service/a/b/c"] {
            assert!(name.parse::<ResourceName>().is_err(), "{name} was accepted");
        }
    }
}
