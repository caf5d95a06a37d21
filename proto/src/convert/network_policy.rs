//! Network policies, and the sets of pods that they name.

use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;

use weft_core::network_policy::{Isolation, Member, PeerTerm, PeersId, Policy, PortTerm, Rule};

use super::{WireError, address_bytes, address_from};
use crate::v1;
use crate::v1::network_peer::Kind as Peer;
use crate::v1::network_port::Kind as Port;

impl From<&Isolation> for v1::NetworkIsolation {
    fn from(isolation: &Isolation) -> Self {
        Self { policies: isolation.policies.iter().map(|p| (&**p).into()).collect() }
    }
}

impl TryFrom<&v1::NetworkIsolation> for Isolation {
    type Error = WireError;
    fn try_from(wire: &v1::NetworkIsolation) -> Result<Self, WireError> {
        if wire.policies.is_empty() {
            return Err(WireError::Missing("network policy"));
        }
        Ok(Self { policies: wire.policies.iter().map(|p| p.try_into().map(Arc::new)).collect::<Result<_, _>>()? })
    }
}

impl From<&Policy> for v1::NetworkPolicy {
    fn from(policy: &Policy) -> Self {
        Self {
            id: Some((&policy.id).into()),
            rules: policy.rules.iter().map(Into::into).collect(),
            broken: policy.broken.as_deref().unwrap_or_default().to_owned(),
        }
    }
}

impl TryFrom<&v1::NetworkPolicy> for Policy {
    type Error = WireError;
    fn try_from(wire: &v1::NetworkPolicy) -> Result<Self, WireError> {
        Ok(Self {
            id: wire.id.as_ref().ok_or(WireError::Missing("network policy id"))?.try_into()?,
            rules: wire.rules.iter().map(TryInto::try_into).collect::<Result<_, _>>()?,
            broken: (!wire.broken.is_empty()).then(|| wire.broken.as_str().into()),
        })
    }
}

impl From<&Rule> for v1::NetworkRule {
    fn from(rule: &Rule) -> Self {
        let peer = |term: &PeerTerm| match term {
            PeerTerm::Anywhere => Peer::Anywhere(true),
            PeerTerm::Set(id) => Peer::Set(id.to_string()),
            PeerTerm::Block { cidr, except } => {
                Peer::Block(v1::NetworkBlock { cidr: cidr.to_string(), except: except.iter().map(ToString::to_string).collect() })
            }
        };
        let port = |term: &PortTerm| match term {
            PortTerm::All => Port::All(true),
            PortTerm::Range(first, last) => Port::Range(v1::PortRange { first: (*first).into(), last: (*last).into() }),
            PortTerm::Named(id) => Port::Named(id.to_string()),
        };
        Self {
            place: u32::try_from(rule.place).unwrap_or(u32::MAX),
            peers: rule.peers.iter().map(|term| v1::NetworkPeer { kind: Some(peer(term)) }).collect(),
            ports: rule.ports.iter().map(|term| v1::NetworkPort { kind: Some(port(term)) }).collect(),
        }
    }
}

impl TryFrom<&v1::NetworkRule> for Rule {
    type Error = WireError;
    fn try_from(wire: &v1::NetworkRule) -> Result<Self, WireError> {
        Ok(Self {
            place: wire.place as usize,
            peers: wire.peers.iter().map(peer).collect::<Result<_, _>>()?,
            ports: wire.ports.iter().map(port).collect::<Result<_, _>>()?,
        })
    }
}

fn peer(wire: &v1::NetworkPeer) -> Result<PeerTerm, WireError> {
    Ok(match wire.kind.as_ref().ok_or(WireError::Missing("kind of network peer"))? {
        Peer::Anywhere(true) => PeerTerm::Anywhere,
        Peer::Anywhere(false) => return Err(WireError::Missing("kind of network peer")),
        Peer::Set(id) => PeerTerm::Set(set(id)?),
        Peer::Block(block) => {
            PeerTerm::Block { cidr: cidr(&block.cidr)?, except: block.except.iter().map(|c| cidr(c)).collect::<Result<_, _>>()? }
        }
    })
}

fn port(wire: &v1::NetworkPort) -> Result<PortTerm, WireError> {
    let number = |n: u32| super::port(n, "port of a network policy");
    Ok(match wire.kind.as_ref().ok_or(WireError::Missing("kind of network port"))? {
        Port::All(true) => PortTerm::All,
        Port::All(false) => return Err(WireError::Missing("kind of network port")),
        Port::Range(range) if range.first <= range.last => PortTerm::Range(number(range.first)?, number(range.last)?),
        Port::Range(_) => return Err(WireError::Range("port range")),
        Port::Named(id) => PortTerm::Named(set(id)?),
    })
}

fn set(text: &str) -> Result<PeersId, WireError> {
    text.parse().map_err(|_| WireError::Range("set of peers"))
}

fn cidr<T: FromStr>(text: &str) -> Result<T, WireError> {
    text.parse().map_err(|_| WireError::Range("CIDR of a network policy"))
}

/// A member of a set, with its address.
pub fn member_to(address: IpAddr, member: &Member) -> v1::PeerMember {
    v1::PeerMember {
        address: address_bytes(address).into(),
        pod: Some((&member.pod).into()),
        identity: member.identity.as_ref().map(ToString::to_string).unwrap_or_default(),
        port: member.port.unwrap_or(0).into(),
    }
}

/// The same from the wire.
pub fn member_from(wire: &v1::PeerMember) -> Result<(IpAddr, Member), WireError> {
    let member = Member {
        pod: wire.pod.as_ref().ok_or(WireError::Missing("pod of a peer"))?.try_into()?,
        identity: super::reach(&wire.identity)?.identity().cloned(),
        port: if wire.port == 0 { None } else { Some(super::port(wire.port, "port of a peer")?) },
    };
    Ok((address_from(&wire.address)?, member))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_and_members_survive_and_what_is_missing_is_refused() {
        let block =
            PeerTerm::Block { cidr: "10.0.0.0/8".parse().expect("valid"), except: vec!["10.1.0.0/16".parse().expect("valid")] };
        let rule = Rule {
            place: 3,
            peers: vec![PeerTerm::Anywhere, PeerTerm::Set(PeersId(7)), block],
            ports: vec![PortTerm::All, PortTerm::Range(80, 90), PortTerm::Named(PeersId(8))],
        };
        let policy = Policy { id: "shop/p".parse().expect("valid"), rules: vec![rule], broken: Some("spec".into()) };
        let isolation = Isolation { policies: vec![Arc::new(policy)] };
        let wire = v1::NetworkIsolation::from(&isolation);
        assert_eq!(Isolation::try_from(&wire), Ok(isolation));
        assert!(Isolation::try_from(&v1::NetworkIsolation::default()).is_err());

        let mut broken = wire.clone();
        broken.policies[0].rules[0].peers[0].kind = None;
        assert!(Isolation::try_from(&broken).is_err());
        let mut broken = wire.clone();
        broken.policies[0].rules[0].ports[1].kind = Some(Port::Range(v1::PortRange { first: 90, last: 80 }));
        assert!(Isolation::try_from(&broken).is_err());
        let mut broken = wire;
        broken.policies[0].rules[0].peers[1].kind = Some(Peer::Set("7".into()));
        assert!(Isolation::try_from(&broken).is_err());

        let address: IpAddr = "fd00::1".parse().expect("an address");
        let member = Member { pod: "shop/a".parse().expect("valid"), identity: None, port: Some(8080) };
        assert_eq!(member_from(&member_to(address, &member)), Ok((address, member)));
    }
}
