//! The clause by which a peer is found.

use std::collections::HashSet;
use std::sync::Arc;

use ipnet::IpNet;

use crate::authorization::policy::{Account, Peer, Principal};
use crate::identity::{Namespace, SpiffeId, TrustDomain};

/// The clause by which a peer is found.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) enum Who {
    Anyone,
    AnyIdentity,
    Unauthenticated,
    Principal(SpiffeId),
    Prefix(Arc<str>),
    TrustDomain(TrustDomain),
    Account(Account),
    Namespace(Namespace),
    Net(IpNet),
}

impl Who {
    /// The clause of a peer that says most, value by value.
    pub(super) fn of(peer: &Peer) -> Vec<Self> {
        let mut whos: Vec<Self> = if !peer.principals.is_empty() {
            peer.principals.iter().map(Self::principal).collect()
        } else if !peer.service_accounts.is_empty() {
            peer.service_accounts.iter().cloned().map(Self::Account).collect()
        } else if !peer.namespaces.is_empty() {
            peer.namespaces.iter().cloned().map(Self::Namespace).collect()
        } else if !peer.ip_blocks.is_empty() {
            peer.ip_blocks.iter().map(|net| Self::Net(net.trunc())).collect()
        } else if peer.unauthenticated {
            vec![Self::Unauthenticated]
        } else if peer.needs_identity() {
            vec![Self::AnyIdentity]
        } else {
            vec![Self::Anyone]
        };
        let mut seen = HashSet::new();
        whos.retain(|who| seen.insert(who.clone()));
        whos
    }

    fn principal(principal: &Principal) -> Self {
        match principal {
            Principal::Any => Self::AnyIdentity,
            Principal::TrustDomain(domain) => Self::TrustDomain(domain.clone()),
            Principal::Prefix(begin) => Self::Prefix(begin.clone()),
            Principal::Exact(id) => Self::Principal(id.clone()),
        }
    }
}
