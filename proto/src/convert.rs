//! Between wire messages and the nouns of `weft_core`. What does not convert is refused with the field's name.

mod authorization;
mod network_policy;
mod traffic;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use weft_core::authorization::Authorization;
use weft_core::authorization::policy::InvalidClause;
use weft_core::identity::InvalidName;
use weft_core::policy::{
    FEATURE_AUTHORIZATION, FEATURE_NETWORK_POLICY, FEATURE_RATE_LIMIT, InboundPolicy, MtlsMode, OutboundPolicy,
};
use weft_core::protocol::AppProtocol;
use weft_core::service::{AddressKind, Endpoint, ObjectRef, Reach, Service, ServicePort, Workload};
use weft_core::traffic::route::InvalidPattern;

use crate::v1;

pub use authorization::{MAX_ISSUERS, MAX_POLICIES, MAX_POLICY_BYTES, bound, issuer_bytes, policy_bytes, posture_to};
pub use network_policy::{member_from, member_to};
pub use traffic::{routes_from, routes_to};

/// Why a message from the other side cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// A required field, or every arm of a oneof, is absent: perhaps sent by a newer version.
    #[error("{0} is missing, or of a kind that this version does not know")]
    Missing(&'static str),
    /// A field has a value outside its range.
    #[error("{0} is out of range")]
    Range(&'static str),
    /// A name or identity is malformed.
    #[error(transparent)]
    Name(#[from] InvalidName),
    /// A regular expression that cannot be used.
    #[error("regular expression {0}")]
    Pattern(#[from] InvalidPattern),
    /// A clause of a policy that cannot be used.
    #[error(transparent)]
    Clause(#[from] InvalidClause),
}

/// The address in 4 or 16 bytes, as the wire carries it.
pub fn address_bytes(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    }
}

/// The address that 4 or 16 bytes stand for.
pub fn address_from(bytes: &[u8]) -> Result<IpAddr, WireError> {
    if let Ok(b) = <[u8; 4]>::try_from(bytes) {
        Ok(b.into())
    } else if let Ok(b) = <[u8; 16]>::try_from(bytes) {
        Ok(b.into())
    } else {
        Err(WireError::Range("address"))
    }
}

fn port(n: u32, what: &'static str) -> Result<u16, WireError> {
    u16::try_from(n).ok().filter(|p| *p != 0).ok_or(WireError::Range(what))
}

fn reach(identity: &str) -> Result<Reach, WireError> {
    if identity.is_empty() { Ok(Reach::Plain) } else { Ok(Reach::Mesh(identity.parse()?)) }
}

fn identity(reach: &Reach) -> String {
    match reach {
        Reach::Mesh(id) => id.to_string(),
        Reach::Plain => String::new(),
    }
}

impl From<AppProtocol> for v1::AppProtocol {
    fn from(p: AppProtocol) -> Self {
        match p {
            AppProtocol::Detect => Self::Unspecified,
            AppProtocol::Http => Self::Http,
            AppProtocol::Http2 => Self::Http2,
            AppProtocol::Opaque => Self::Opaque,
        }
    }
}

fn protocol(n: i32) -> Result<AppProtocol, WireError> {
    Ok(match v1::AppProtocol::try_from(n).map_err(|_| WireError::Range("app protocol"))? {
        v1::AppProtocol::Unspecified => AppProtocol::Detect,
        v1::AppProtocol::Http => AppProtocol::Http,
        v1::AppProtocol::Http2 => AppProtocol::Http2,
        v1::AppProtocol::Opaque => AppProtocol::Opaque,
    })
}

impl From<MtlsMode> for v1::MtlsMode {
    fn from(m: MtlsMode) -> Self {
        match m {
            MtlsMode::Strict => Self::Strict,
            MtlsMode::Permissive => Self::Permissive,
        }
    }
}

fn mode(n: i32) -> Result<MtlsMode, WireError> {
    match v1::MtlsMode::try_from(n) {
        Ok(v1::MtlsMode::Strict) => Ok(MtlsMode::Strict),
        Ok(v1::MtlsMode::Permissive) => Ok(MtlsMode::Permissive),
        Ok(v1::MtlsMode::Unspecified) | Err(_) => Err(WireError::Missing("mTLS mode")),
    }
}

fn port_protocols(list: &[(u16, AppProtocol)]) -> Vec<v1::PortProtocol> {
    list.iter().map(|(p, a)| v1::PortProtocol { port: u32::from(*p), protocol: v1::AppProtocol::from(*a).into() }).collect()
}

fn port_protocols_from(list: &[v1::PortProtocol]) -> Result<Vec<(u16, AppProtocol)>, WireError> {
    list.iter().map(|p| Ok((port(p.port, "port")?, protocol(p.protocol)?))).collect()
}

impl From<&InboundPolicy> for v1::InboundPolicy {
    fn from(p: &InboundPolicy) -> Self {
        Self {
            mode: v1::MtlsMode::from(p.mode).into(),
            port_modes: p
                .port_modes
                .iter()
                .map(|(port, mode)| v1::PortMode { port: u32::from(*port), mode: v1::MtlsMode::from(*mode).into() })
                .collect(),
            protocols: port_protocols(&p.protocols),
            required_features: p.required_features.clone(),
            rates: p.rates.iter().map(Into::into).collect(),
            zone: p.zone.to_string(),
            authorization: (p.authorization != Authorization::default()).then(|| (&p.authorization).into()),
            jwt_issuers: p.issuers.iter().map(|issuer| issuer_bytes(issuer)).collect(),
            network: p.network.as_deref().map(Into::into),
        }
    }
}

impl TryFrom<&v1::InboundPolicy> for InboundPolicy {
    type Error = WireError;
    fn try_from(p: &v1::InboundPolicy) -> Result<Self, WireError> {
        // What is needed to judge must be there: an older version that kept this policy left out what it did not know.
        let needs = |feature: &str| p.required_features.iter().any(|f| f == feature);
        if needs(FEATURE_AUTHORIZATION) && p.authorization.is_none() {
            return Err(WireError::Missing("authorization"));
        }
        if needs(FEATURE_RATE_LIMIT) && p.rates.is_empty() {
            return Err(WireError::Missing("rates"));
        }
        if needs(FEATURE_NETWORK_POLICY) && p.network.is_none() {
            return Err(WireError::Missing("network"));
        }
        Ok(Self {
            mode: mode(p.mode)?,
            port_modes: p
                .port_modes
                .iter()
                .map(|m| Ok((port(m.port, "port")?, mode(m.mode)?)))
                .collect::<Result<_, WireError>>()?,
            protocols: port_protocols_from(&p.protocols)?,
            required_features: p.required_features.clone(),
            rates: p.rates.iter().map(TryInto::try_into).collect::<Result<_, _>>()?,
            zone: p.zone.as_str().into(),
            authorization: p.authorization.as_ref().map(TryInto::try_into).transpose()?.unwrap_or_default(),
            issuers: authorization::issuers_from(&p.jwt_issuers)?,
            network: p.network.as_ref().map(|n| n.try_into().map(Arc::new)).transpose()?,
        })
    }
}

impl From<&OutboundPolicy> for v1::OutboundPolicy {
    fn from(p: &OutboundPolicy) -> Self {
        Self { required_features: p.required_features.clone(), network: p.network.as_deref().map(Into::into) }
    }
}

impl TryFrom<&v1::OutboundPolicy> for OutboundPolicy {
    type Error = WireError;
    fn try_from(p: &v1::OutboundPolicy) -> Result<Self, WireError> {
        if p.required_features.iter().any(|f| f == FEATURE_NETWORK_POLICY) && p.network.is_none() {
            return Err(WireError::Missing("network"));
        }
        Ok(Self {
            required_features: p.required_features.clone(),
            network: p.network.as_ref().map(|n| n.try_into().map(Arc::new)).transpose()?,
        })
    }
}

impl From<&ObjectRef> for v1::ObjectRef {
    fn from(r: &ObjectRef) -> Self {
        Self { namespace: r.namespace.to_string(), name: r.name.to_string() }
    }
}

impl TryFrom<&v1::ObjectRef> for ObjectRef {
    type Error = WireError;
    fn try_from(r: &v1::ObjectRef) -> Result<Self, WireError> {
        Ok(Self { namespace: r.namespace.parse()?, name: r.name.parse()? })
    }
}

impl From<&AddressKind> for v1::Address {
    fn from(a: &AddressKind) -> Self {
        use v1::address::Kind;
        Self {
            kind: Some(match a {
                AddressKind::Service(id) => Kind::Service(id.into()),
                AddressKind::Workload(w) => Kind::Workload(v1::Workload {
                    pod: Some((&w.id).into()),
                    address: address_bytes(w.address).into(),
                    identity: identity(&w.reach),
                    protocols: port_protocols(&w.protocols),
                }),
                AddressKind::Unknown => Kind::Unknown(v1::Unknown {}),
            }),
        }
    }
}

impl TryFrom<&v1::Address> for AddressKind {
    type Error = WireError;
    fn try_from(a: &v1::Address) -> Result<Self, WireError> {
        use v1::address::Kind;
        match &a.kind {
            None => Err(WireError::Missing("kind of address")),
            Some(Kind::Unknown(v1::Unknown {})) => Ok(Self::Unknown),
            Some(Kind::Service(id)) => Ok(Self::Service(id.try_into()?)),
            Some(Kind::Workload(w)) => Ok(Self::Workload(Workload {
                id: w.pod.as_ref().ok_or(WireError::Missing("pod"))?.try_into()?,
                address: address_from(&w.address)?,
                reach: reach(&w.identity)?,
                protocols: port_protocols_from(&w.protocols)?,
            })),
        }
    }
}

impl From<&Service> for v1::Service {
    fn from(s: &Service) -> Self {
        Self {
            id: Some((&s.id).into()),
            addresses: s.addresses.iter().map(|a| address_bytes(*a).into()).collect(),
            ports: s
                .ports
                .iter()
                .map(|p| v1::ServicePort {
                    port: u32::from(p.port),
                    name: p.name.as_deref().unwrap_or_default().to_owned(),
                    protocol: v1::AppProtocol::from(p.protocol).into(),
                })
                .collect(),
            client_ip_affinity_seconds: s.client_ip_affinity.map_or(0, |t| u32::try_from(t.as_secs()).unwrap_or(u32::MAX)),
            local_only: s.local_only,
            // Who sends it knows.
            has_routes: false,
            has_policy: false,
        }
    }
}

impl TryFrom<&v1::Service> for Service {
    type Error = WireError;
    fn try_from(s: &v1::Service) -> Result<Self, WireError> {
        Ok(Self {
            id: s.id.as_ref().ok_or(WireError::Missing("service id"))?.try_into()?,
            addresses: s.addresses.iter().map(|a| address_from(a)).collect::<Result<_, _>>()?,
            ports: s
                .ports
                .iter()
                .map(|p| {
                    Ok(ServicePort {
                        port: port(p.port, "service port")?,
                        name: (!p.name.is_empty()).then(|| p.name.as_str().into()),
                        protocol: protocol(p.protocol)?,
                    })
                })
                .collect::<Result<_, WireError>>()?,
            client_ip_affinity: (s.client_ip_affinity_seconds > 0)
                .then(|| Duration::from_secs(s.client_ip_affinity_seconds.into())),
            local_only: s.local_only,
        })
    }
}

impl From<&Endpoint> for v1::Endpoint {
    fn from(e: &Endpoint) -> Self {
        Self {
            address: address_bytes(e.address).into(),
            pod: e.workload.as_ref().map(Into::into),
            identity: identity(&e.reach),
            ready: e.ready,
            zone: e.zone.to_string(),
            node: e.node.to_string(),
            ports: e
                .ports
                .iter()
                .map(|(s, t)| v1::PortPair { service_port: u32::from(*s), target_port: u32::from(*t) })
                .collect(),
        }
    }
}

/// The endpoint that a message describes.
pub fn endpoint_from(e: &v1::Endpoint) -> Result<Endpoint, WireError> {
    Ok(Endpoint {
        address: address_from(&e.address)?,
        workload: e.pod.as_ref().map(TryInto::try_into).transpose()?,
        reach: reach(&e.identity)?,
        ready: e.ready,
        zone: e.zone.as_str().into(),
        node: e.node.as_str().into(),
        ports: e
            .ports
            .iter()
            .map(|p| Ok((port(p.service_port, "service port")?, port(p.target_port, "target port")?)))
            .collect::<Result<_, WireError>>()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_oneof_or_mode_is_refused() {
        assert!(AddressKind::try_from(&v1::Address { kind: None }).is_err());
        assert!(InboundPolicy::try_from(&v1::InboundPolicy::default()).is_err());
        let unknown_mode = v1::InboundPolicy { mode: 77, ..Default::default() };
        assert!(InboundPolicy::try_from(&unknown_mode).is_err());
    }

    #[test]
    fn nouns_survive_the_round_trip() {
        let endpoint = Endpoint {
            address: "fd47::5".parse().expect("literal"),
            workload: Some("shop/web-0".parse().expect("literal")),
            reach: Reach::Mesh("spiffe://td/ns/shop/sa/web".parse().expect("literal")),
            ready: true,
            zone: "a".into(),
            node: "n".into(),
            ports: vec![(80, 8080)],
        };
        assert_eq!(endpoint_from(&(&endpoint).into()), Ok(endpoint));
        let policy = InboundPolicy {
            mode: MtlsMode::Strict,
            port_modes: vec![(1, MtlsMode::Permissive)],
            protocols: vec![(8080, AppProtocol::Http2)],
            required_features: vec!["x".into()],
            rates: vec![],
            zone: "".into(),
            authorization: Authorization::default(),
            issuers: vec![],
            network: None,
        };
        assert_eq!(InboundPolicy::try_from(&v1::InboundPolicy::from(&policy)), Ok(policy));
    }
}
