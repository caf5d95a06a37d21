//! What was decided, and what came nearest.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use super::{PeersId, Policy};
use crate::service::ObjectRef;

/// What the policies that isolate a pod say of one call.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// A rule allows it.
    Allowed {
        /// The policy that has the rule.
        policy: ObjectRef,
        /// The rule's place in it, from 0.
        rule: usize,
    },
    /// None does.
    Denied(Box<Denied>),
}

/// A denial, with what an operator needs to know.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Denied {
    /// The policies that isolate the pod.
    pub isolating: Vec<ObjectRef>,
    /// What came nearest to allowing it; none where there are no rules.
    pub nearest: Option<Nearest>,
}

/// The rule that came nearest.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Nearest {
    /// The policy that has it.
    pub policy: ObjectRef,
    /// Its place, from 0; none where the policy as a whole cannot be honoured.
    pub rule: Option<usize>,
    /// What it lacked.
    pub miss: Miss,
}

/// What a rule lacked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Miss {
    /// The other end is none of its peers.
    Peer,
    /// Another port is called; the other end is one of its peers.
    Port,
    /// It names a set that is not there.
    NoSet(PeersId),
    /// The other end is not who the set says is at its address.
    Disagrees {
        /// The address.
        address: IpAddr,
        /// Who is there.
        known: Arc<str>,
        /// Who it is by its certificate, or by discovery.
        proved: Arc<str>,
    },
    /// The policy cannot be honoured, and allows nothing until it is mended.
    Broken(Arc<str>),
}

impl Miss {
    /// How near it is; the greatest is told.
    fn nearness(&self) -> u8 {
        match self {
            Self::Peer => 0,
            Self::Port => 1,
            Self::Broken(_) => 2,
            Self::NoSet(_) => 3,
            Self::Disagrees { .. } => 4,
        }
    }

    pub(super) fn more_telling(self, other: Self) -> Self {
        if other.nearness() > self.nearness() { other } else { self }
    }
}

/// Keeps what came nearer.
pub(super) fn nearer(nearest: &mut Option<Nearest>, policy: &Policy, rule: Option<usize>, miss: Miss) {
    if nearest.as_ref().is_none_or(|n| n.miss.nearness() < miss.nearness()) {
        *nearest = Some(Nearest { policy: policy.id.clone(), rule, miss });
    }
}

impl Verdict {
    /// Whether the call may go on.
    pub fn is_allowed(&self) -> bool {
        matches!(self, Self::Allowed { .. })
    }
}

impl Denied {
    /// The policy that is to be looked at first.
    pub fn policy(&self) -> Option<&ObjectRef> {
        self.nearest.as_ref().map(|n| &n.policy).or(self.isolating.first())
    }

    /// What would have allowed it.
    pub fn remedy(&self) -> String {
        match &self.nearest {
            Some(Nearest { policy, rule: Some(rule), miss: Miss::Port }) => format!("name the port in rule {rule} of {policy}"),
            Some(Nearest { policy, rule: Some(rule), miss: Miss::Peer }) => {
                format!("name the other end in rule {rule} of {policy}, or in a rule or policy of its own")
            }
            Some(Nearest { policy, miss: Miss::Broken(_), .. }) => format!("mend {policy}"),
            Some(Nearest { miss: Miss::NoSet(_), .. }) => "wait until the control plane has sent the set of peers".to_owned(),
            Some(Nearest { miss: Miss::Disagrees { .. }, .. }) => {
                "a pod that has just got the address of another is known in a moment; if it stays so, something stands between the pods and changes \
                 addresses"
                    .to_owned()
            }
            _ => "add a rule, or a policy that selects the same pod and has one".to_owned(),
        }
    }
}

impl fmt::Display for Miss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Peer => f.write_str("the other end is none of its peers"),
            Self::Port => f.write_str("it is not for this port"),
            Self::NoSet(id) => write!(f, "its set of peers {id} is not there yet"),
            Self::Disagrees { address, known, proved } => write!(f, "{address} is {known}, and the other end is {proved}"),
            Self::Broken(why) => write!(f, "it cannot be honoured: {why}"),
        }
    }
}

impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let isolating: Vec<String> = self.isolating.iter().map(ToString::to_string).collect();
        write!(f, "no NetworkPolicy allows it; the pod is isolated by {}", isolating.join(", "))?;
        match &self.nearest {
            None => Ok(()),
            Some(Nearest { policy, rule: Some(rule), miss }) => write!(f, "; rule {rule} of {policy} comes nearest: {miss}"),
            Some(Nearest { policy, rule: None, miss }) => write!(f, "; {policy}: {miss}"),
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Allowed { policy, rule } => write!(f, "rule {rule} of NetworkPolicy {policy} allows it"),
            Self::Denied(denied) => denied.fmt(f),
        }
    }
}
