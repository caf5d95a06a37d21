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

#[cfg(test)]
mod tests {
    use weft_proto::{address_from, member_from};

    use super::*;

    fn set(numbers: impl Iterator<Item = u16>, port: u16) -> PeerSet {
        let member = || Member { pod: "shop/a".parse().expect("valid"), identity: None, port: Some(port) };
        numbers.map(|i| (IpAddr::from([10, 1, i.to_be_bytes()[0], i.to_be_bytes()[1]]), member())).collect()
    }

    /// What a sidecar does with them.
    fn apply(mut held: PeerSet, mut version: Version, pieces: Vec<(Version, Body)>) -> PeerSet {
        let count = pieces.len();
        for (i, (next, body)) in pieces.into_iter().enumerate() {
            let (members, more) = match body {
                Body::Peers(all) => {
                    held.clear();
                    (all.members, all.more)
                }
                Body::PeersDelta(delta) => {
                    assert_eq!(delta.base, version.0);
                    for address in &delta.removed {
                        held.remove(&address_from(address).expect("valid"));
                    }
                    (delta.upserted, delta.more)
                }
                other => panic!("{other:?} is no set"),
            };
            assert!(members.len() <= PIECE && more == (i + 1 < count));
            held.extend(members.iter().map(|m| member_from(m).expect("valid")));
            version = next;
        }
        held
    }

    #[test]
    fn pieces_lead_from_what_is_held_to_what_is() {
        let sets = [
            set(0..0, 1),
            set(0..10, 1),
            set(5..20, 1),
            set(0..6_000, 1),
            set(0..6_000, 2),
            set((0..9_000).filter(|i| i % 3 != 0), 1),
        ];
        for before in &sets {
            for after in &sets {
                let (before, entry) = (PeersEntry::new(before.clone()), PeersEntry::new(after.clone()));
                for base in [None, Some(&*before)] {
                    let pieces = entry.pieces(base);
                    assert_eq!(pieces.last().map(|(v, _)| *v), Some(entry.version));
                    let held = base.map(|b| (*b.members).clone()).unwrap_or_default();
                    assert_eq!(apply(held, before.version, pieces), *after);
                }
            }
        }
    }
}
