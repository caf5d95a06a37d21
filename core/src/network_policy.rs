//! Kubernetes `NetworkPolicy` (`networking.k8s.io/v1`) for TCP, as one pod's sidecar asks it: whether an address may be talked to, and why not.
//!
//! A pod that no policy isolates in a direction may talk to everybody in that direction. One that policies isolate may talk to whom at least one rule of at
//! least one of them names; their order never matters. Peers that are picked by labels come as named sets of addresses ([`PeerSet`]): a set that is
//! named and not there matches nobody. Where the other end proved which pod it is, a set must say the same of its address.
//!
//! [`reference`] reads the specification literally, over a whole cluster: tests hold the compiled form to it.

mod decision;
mod peers;
pub mod reference;

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::identity::SpiffeId;
use crate::service::ObjectRef;

pub use decision::{Denied, Miss, Nearest, Verdict};
pub use peers::{InvalidPeersId, Member, PeerSet, PeerSets, PeersId};

/// The policies that isolate a pod in one direction: at least one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Isolation {
    /// In any order.
    pub policies: Vec<Arc<Policy>>,
}

/// What one policy allows in one direction.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Policy {
    /// Its namespace and name.
    pub id: ObjectRef,
    /// Any of these allows. Without any, it isolates and allows nothing.
    pub rules: Vec<Rule>,
    /// Why it cannot be honoured as it was written: it has no rules then.
    pub broken: Option<Arc<str>>,
}

/// One rule: one of `peers` and one of `ports` must match. An empty list matches nothing.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Rule {
    /// The place in the policy's list, from 0: rules about no TCP port are left out.
    pub place: usize,
    /// The other end: the caller of an ingress rule, the called one of an egress rule.
    pub peers: Vec<PeerTerm>,
    /// The port that is called.
    pub ports: Vec<PortTerm>,
}

/// Who is at the other end.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PeerTerm {
    /// Everybody, addresses outside of the cluster among them.
    Anywhere,
    /// The pods of a set.
    Set(PeersId),
    /// The addresses of a block, but for those of `except`.
    Block {
        /// The block.
        cidr: IpNet,
        /// Blocks within it that are left out.
        except: Vec<IpNet>,
    },
}

/// Which port is called.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PortTerm {
    /// Every port.
    All,
    /// From the first to the last, both included.
    Range(u16, u16),
    /// The port that the called pod itself has under a name: the set has each pod with that port.
    Named(PeersId),
}

/// The other end of a connection.
#[derive(Clone, Copy, Debug)]
pub struct End<'a> {
    /// The address that it talks from, or is called at.
    pub address: IpAddr,
    /// The pod and the identity that it proved, or that discovery gives for it; none where nothing but the address is known.
    pub proved: Option<Proved<'a>>,
}

/// Who the other end is known to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Proved<'a> {
    /// The attested pod; none where the issuer recorded none.
    pub pod: Option<&'a ObjectRef>,
    /// The identity; none for a pod without a sidecar.
    pub identity: Option<&'a SpiffeId>,
}

impl Isolation {
    /// Whether the pod may talk to `end`, where `port` is called.
    pub fn judge(&self, sets: &PeerSets, end: &End<'_>, port: u16) -> Verdict {
        let end = End { address: end.address.to_canonical(), ..*end };
        let mut nearest: Option<Nearest> = None;
        for policy in &self.policies {
            if let Some(why) = &policy.broken {
                decision::nearer(&mut nearest, policy, None, Miss::Broken(why.clone()));
            }
            for rule in &policy.rules {
                let miss = match (rule.peer(sets, &end), rule.port(sets, &end, port)) {
                    (Ok(()), Ok(())) => return Verdict::Allowed { policy: policy.id.clone(), rule: rule.place },
                    (Err(miss), _) | (Ok(()), Err(miss)) => miss,
                };
                decision::nearer(&mut nearest, policy, Some(rule.place), miss);
            }
        }
        Verdict::Denied(Box::new(Denied { isolating: self.policies.iter().map(|p| p.id.clone()).collect(), nearest }))
    }

    /// Every set that it names.
    pub fn sets(&self) -> impl Iterator<Item = PeersId> {
        self.policies.iter().flat_map(|p| &p.rules).flat_map(Rule::sets)
    }

    /// Whether any set that it names has the address.
    pub fn knows(&self, sets: &PeerSets, address: IpAddr) -> bool {
        self.sets().any(|id| sets.get(&id).is_some_and(|set| set.contains_key(&address.to_canonical())))
    }
}

impl Rule {
    fn sets(&self) -> impl Iterator<Item = PeersId> {
        let peers = self.peers.iter().filter_map(|p| if let PeerTerm::Set(id) = p { Some(*id) } else { None });
        peers.chain(self.ports.iter().filter_map(|p| if let PortTerm::Named(id) = p { Some(*id) } else { None }))
    }

    /// Whether the other end is one of its peers.
    fn peer(&self, sets: &PeerSets, end: &End<'_>) -> Result<(), Miss> {
        let mut miss = Miss::Peer;
        for term in &self.peers {
            let found = match term {
                PeerTerm::Anywhere => Ok(()),
                PeerTerm::Set(id) => member(sets, *id, end).map(|_| ()),
                PeerTerm::Block { cidr, except } => {
                    let within = cidr.contains(&end.address) && !except.iter().any(|e| e.contains(&end.address));
                    if within { Ok(()) } else { Err(Miss::Peer) }
                }
            };
            match found {
                Ok(()) => return Ok(()),
                Err(why) => miss = miss.more_telling(why),
            }
        }
        Err(miss)
    }

    /// Whether one of its ports is called.
    fn port(&self, sets: &PeerSets, end: &End<'_>, port: u16) -> Result<(), Miss> {
        let mut miss = Miss::Port;
        for term in &self.ports {
            let found = match term {
                PortTerm::All => Ok(()),
                PortTerm::Range(first, last) => {
                    if (*first..=*last).contains(&port) {
                        Ok(())
                    } else {
                        Err(Miss::Port)
                    }
                }
                PortTerm::Named(id) => match member(sets, *id, end) {
                    Ok(member) if member.port == Some(port) => Ok(()),
                    Err(why @ (Miss::NoSet(_) | Miss::Disagrees { .. })) => Err(why),
                    _ => Err(Miss::Port),
                },
            };
            match found {
                Ok(()) => return Ok(()),
                Err(why) => miss = miss.more_telling(why),
            }
        }
        Err(miss)
    }
}

/// The member of a set that the other end is.
fn member<'s>(sets: &'s PeerSets, id: PeersId, end: &End<'_>) -> Result<&'s Member, Miss> {
    let set = sets.get(&id).ok_or(Miss::NoSet(id))?;
    let member = set.get(&end.address).ok_or(Miss::Peer)?;
    let Some(proved) = end.proved else { return Ok(member) };
    let agrees = proved.pod.is_none_or(|pod| *pod == member.pod) && proved.identity == member.identity.as_ref();
    if agrees {
        return Ok(member);
    }
    let text = |pod: Option<&ObjectRef>, id: Option<&SpiffeId>| {
        let pod = pod.map_or_else(|| "some pod".to_owned(), |pod| format!("pod {pod}"));
        id.map_or_else(|| format!("{pod} without an identity"), |id| format!("{pod} with {id}")).into()
    };
    Err(Miss::Disagrees {
        address: end.address,
        known: text(Some(&member.pod), member.identity.as_ref()),
        proved: text(proved.pod, proved.identity),
    })
}

#[cfg(test)]
mod tests;
