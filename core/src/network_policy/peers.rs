//! Sets of pods, by address.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;

use crate::identity::SpiffeId;
use crate::service::ObjectRef;

/// Names a set by a hash of what picks its pods: the same on every replica.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PeersId(pub u64);

/// A text that names no set.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} names no set of peers: it has 16 hexadecimal digits in lower case")]
pub struct InvalidPeersId(String);

impl fmt::Display for PeersId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for PeersId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for PeersId {
    type Err = InvalidPeersId;
    fn from_str(s: &str) -> Result<Self, InvalidPeersId> {
        let is_hex = s.len() == 16 && s.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        let number = if is_hex { u64::from_str_radix(s, 16).ok() } else { None };
        number.map(Self).ok_or_else(|| InvalidPeersId(s.chars().take(40).collect()))
    }
}

/// A pod at one of its addresses.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Member {
    /// Which pod.
    pub pod: ObjectRef,
    /// What its sidecar proves; none without a sidecar.
    pub identity: Option<SpiffeId>,
    /// Of a set by a port's name: the port that the pod has under it.
    pub port: Option<u16>,
}

/// A set: every address of every pod in it.
pub type PeerSet = BTreeMap<IpAddr, Member>;
/// All sets that a sidecar has.
pub type PeerSets = HashMap<PeersId, Arc<PeerSet>>;
