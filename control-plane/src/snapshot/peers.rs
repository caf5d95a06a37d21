//! Sets of pods, as they are sent.

use std::net::IpAddr;
use std::sync::Arc;

use weft_core::network_policy::{Member, PeerSet};
use weft_core::version::Version;
use weft_proto::v1::resource::Body;
use weft_proto::{address_bytes, member_to, v1};

use super::PIECE;

/// A set of pods by address.
#[derive(Debug)]
pub struct PeersEntry {
    pub version: Version,
    pub members: Arc<PeerSet>,
}

impl PeersEntry {
    pub fn new(members: PeerSet) -> Arc<Self> {
        let body = Body::Peers(v1::Peers { members: members.iter().map(|(a, m)| member_to(*a, m)).collect(), more: false });
        let mut bytes = Vec::new();
        body.encode(&mut bytes);
        Arc::new(Self { version: Version::of(&bytes), members: Arc::new(members) })
    }

    /// What brings a sidecar that holds `base`, or nothing, to this version, in pieces: as endpoints are sent.
    pub fn pieces(&self, base: Option<&Self>) -> Vec<(Version, Body)> {
        let changed = |base: &Self| {
            let upserted: Vec<(&IpAddr, &Member)> =
                self.members.iter().filter(|(a, m)| base.members.get(*a) != Some(*m)).collect();
            let removed: Vec<IpAddr> = base.members.keys().filter(|a| !self.members.contains_key(*a)).copied().collect();
            (upserted.len() + removed.len() < self.members.len()).then_some((base.version, upserted, removed))
        };
        let (mut base, upserted, removed) = match base.and_then(changed) {
            Some((base, upserted, removed)) => (Some(base), upserted, removed),
            None => (None, self.members.iter().collect(), vec![]),
        };
        let count = upserted.len().max(removed.len()).div_ceil(PIECE).max(1);
        (0..count)
            .map(|i| {
                let more = i + 1 < count;
                let version = if more { self.version.step(i) } else { self.version };
                let members = upserted.iter().skip(i * PIECE).take(PIECE).map(|(a, m)| member_to(**a, m)).collect();
                let body = match base.replace(version) {
                    None => Body::Peers(v1::Peers { members, more }),
                    Some(base) => {
                        let removed = removed.iter().skip(i * PIECE).take(PIECE).map(|a| address_bytes(*a).into()).collect();
                        Body::PeersDelta(v1::PeersDelta { base: base.0, upserted: members, removed, more })
                    }
                };
                (version, body)
            })
            .collect()
    }
}
