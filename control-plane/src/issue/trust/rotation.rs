//! The rotation of the root as a state machine: phases, evidence in, next step out. Pure, and all of it is on disk before it takes effect.
//!
//! ```text
//!             begin            all trust both             finish, once nobody
//!   settled ────────▶ spreading ────────────▶ reissuing ─────────────────────▶ settled
//!                         │                       │      serves the old one    (new root)
//!                         └───────── abort ───────┘
//!                                      ▼
//!                                  returning ── once nobody serves the new one ─▶ settled (old root)
//! ```
//!
//! Anchors are only ever removed when nobody who counts serves a certificate that leads to them, and only a root that all who count have said
//! to trust issues. Who counts: every pod that lives and holds a certificate that has not expired, but those that were given up by name.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};
use weft_core::service::ObjectRef;

use super::ledger::{Anchor, Holder, Ledger, Report, is_good};

/// How far a rotation is.
#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
#[serde(rename_all = "camelCase")]
pub enum Phase {
    /// Both anchors are in the bundle; the old root issues.
    Spreading,
    /// Both anchors are in the bundle; the new root issues.
    Reissuing,
    /// Aborted: both anchors are in the bundle; the old root issues again.
    Returning,
}

/// The root that is to follow, and how far that is.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(rename_all = "camelCase")]
pub struct Next {
    pub anchor: Anchor,
    pub phase: Phase,
    /// When the rotation began, in seconds since the Unix epoch.
    pub began: i64,
    /// When the phase began, in seconds since the Unix epoch.
    pub since: i64,
    /// Sidecars that renew because of the phase do so within this time, in seconds: each at a moment of its own.
    pub spread_seconds: u32,
    /// Who is not waited for, whatever becomes of it, until the rotation is over.
    #[serde(with = "names")]
    pub given_up: BTreeSet<ObjectRef>,
    /// Whether certificates of which there is no record are not waited for.
    pub unrecorded_given_up: bool,
}

/// Pods as text, `NAMESPACE/NAME`.
mod names {
    use std::collections::BTreeSet;

    use serde::{Deserialize, Deserializer, Serializer, de::Error};
    use weft_core::service::ObjectRef;

    pub(super) fn serialize<S: Serializer>(pods: &BTreeSet<ObjectRef>, to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(pods.iter().map(ToString::to_string))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<BTreeSet<ObjectRef>, D::Error> {
        let read = |name: String| name.parse().map_err(|_| D::Error::custom(format!("{name:?} is no pod")));
        Vec::<String>::deserialize(from)?.into_iter().map(read).collect()
    }
}

/// Which roots there are, and what they are for.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(rename_all = "camelCase")]
pub struct State {
    pub current: Anchor,
    pub next: Option<Next>,
}

/// Why a command is refused.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refusal {
    #[error("a rotation is under way already: see `weft trust status`, then `weft trust finish` or `weft trust abort`")]
    UnderWay,
    #[error(
        "the rotation is being aborted: wait until `weft trust status` says that it is settled, or give up by name who is missing"
    )]
    Aborting,
    #[error("no rotation is under way: begin one with `weft trust rotate`")]
    Settled,
    #[error("the new root does not issue yet: {0} have not said that they trust it; wait, or give them up by name")]
    NotIssuing(usize),
    #[error("{0} may still serve a certificate of the old root: wait, or give them up by name")]
    StillServed(usize),
    #[error("{0} is not among those who are missing: `weft trust status` names them")]
    NotMissing(String),
}

/// Why somebody is waited for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Why {
    /// It is connected and has not said so yet.
    NotTrustedYet,
    /// It is connected and has not said so yet.
    NotReplacedYet,
    /// Its version says nothing of anchors.
    DoesNotTell,
    /// It could not write down what it says.
    NotKept,
    /// It is not connected.
    Away,
    /// Nobody knows who it is.
    Unrecorded,
    /// A replica of the control plane that does not answer.
    ReplicaSilent,
    /// A replica that has not taken over the present phase.
    ReplicaBehind,
    /// A replica whose version cannot take part.
    ReplicaOlder,
    /// All replicas have taken over the phase, and what was under way then may come yet.
    Settling,
    /// Which replicas and pods there are is not known.
    Unlisted,
    /// What pods know the control plane by at first is not as it should be in a namespace.
    NotSpread,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotTrustedYet => "it is connected, and has not said yet that it trusts both anchors",
            Self::NotReplacedYet => "it is connected, and still serves a certificate under the anchor that is to go",
            Self::DoesNotTell => "its version does not tell which anchors it trusts: upgrade it, or give it up with --give-up NS/POD",
            Self::NotKept => "it is connected, and has not kept on its disk yet what it has now: is there room?",
            Self::Away => "it is not connected, and its certificate has not expired: bring it back, or give it up with --give-up NS/POD",
            Self::Unrecorded => {
                "certificates that were issued without a record (by an earlier version, or while the disk was full) may be in use: wait, or \
                 give them up with --give-up unrecorded"
            }
            Self::ReplicaSilent => {
                "this replica of the control plane does not answer, and what it knows is missing: mend it, or delete its pod, so that it can issue nothing"
            }
            Self::ReplicaBehind => "this replica of the control plane has not taken over the present phase yet",
            Self::ReplicaOlder => "this replica of the control plane is of a version that cannot take part: upgrade it",
            Self::Settling => "every replica has taken over the present phase; what was under way then may come yet",
            Self::Unlisted => "this replica cannot learn from the API server which replicas and pods there are",
            Self::NotSpread => "new pods of this namespace would not know the control plane: its ConfigMap does not have all anchors yet",
        })
    }
}

/// Somebody who is waited for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Missing {
    /// None: certificates of which there is no record.
    pub pod: Option<ObjectRef>,
    pub why: Why,
    /// When it is not waited for any more in any case, in seconds since the Unix epoch.
    pub until: i64,
}

/// What speaks for the next step.
#[derive(Clone, Copy)]
pub struct Evidence<'a> {
    pub ledger: &'a Ledger,
    /// Whether a pod lives: those that are gone serve nobody.
    pub lives: &'a dyn Fn(&ObjectRef) -> bool,
    /// Seconds since the Unix epoch.
    pub now: i64,
}

impl Evidence<'_> {
    /// Everybody who counts, the given-up ones among them. Who is connected does, whatever the clock says.
    pub fn holders(&self) -> impl Iterator<Item = (&ObjectRef, &Holder)> {
        self.ledger.holders().iter().filter(|(pod, h)| h.streams > 0 || h.holds(self.now) && (self.lives)(pod))
    }
}

/// Certificates that are issued each second while all sidecars renew at once.
const RENEWALS_PER_SECOND: usize = 100;
/// The longest time that sidecars are told to take.
const LONGEST_SPREAD: usize = 3600;

impl State {
    /// One root, and nothing under way.
    pub fn settled(current: Anchor) -> Self {
        Self { current, next: None }
    }

    /// The anchors that are in the bundle.
    pub fn trusted(&self) -> impl Iterator<Item = &Anchor> {
        std::iter::once(&self.current).chain(self.next.iter().map(|n| &n.anchor))
    }

    /// The root under which leaves are issued.
    pub fn issuing(&self) -> &Anchor {
        match &self.next {
            Some(next) if next.phase == Phase::Reissuing => &next.anchor,
            _ => &self.current,
        }
    }

    /// Begins a rotation to a root that was made for it.
    ///
    /// # Errors
    ///
    /// Where one is under way.
    pub fn begin(&self, anchor: Anchor, now: i64) -> Result<Self, Refusal> {
        match &self.next {
            Some(next) if next.phase == Phase::Returning => return Err(Refusal::Aborting),
            Some(_) => return Err(Refusal::UnderWay),
            None => {}
        }
        let next = Next {
            anchor,
            phase: Phase::Spreading,
            began: now,
            since: now,
            spread_seconds: 1,
            given_up: BTreeSet::new(),
            unrecorded_given_up: false,
        };
        Ok(Self { current: self.current.clone(), next: Some(next) })
    }

    /// Gives somebody up; `None` gives up certificates of which there is no record.
    ///
    /// # Errors
    ///
    /// Where nothing is under way, or it is not one who is missing: that would be a misspelt name.
    pub fn give_up(&self, pod: Option<&ObjectRef>, evidence: Evidence<'_>) -> Result<Self, Refusal> {
        let mut state = self.clone();
        let Some(next) = &mut state.next else { return Err(Refusal::Settled) };
        let already = pod.map_or(next.unrecorded_given_up, |pod| next.given_up.contains(pod));
        if !already && !self.missing(evidence).iter().any(|m| m.pod.as_ref() == pod) {
            return Err(Refusal::NotMissing(pod.map_or_else(|| "an unrecorded certificate".to_owned(), ToString::to_string)));
        }
        match pod {
            Some(pod) => drop(next.given_up.insert(pod.clone())),
            None => next.unrecorded_given_up = true,
        }
        Ok(state)
    }

    /// Who keeps the next step from being taken: in order of their names, certificates without a record last.
    pub fn missing(&self, evidence: Evidence<'_>) -> Vec<Missing> {
        let Some(next) = &self.next else { return vec![] };
        let now = evidence.now;
        let why = |h: &Holder| {
            let lacks = match next.phase {
                Phase::Spreading => !h.report.as_ref().is_some_and(|r| !r.unsaved && r.trusted.contains(&next.anchor)),
                Phase::Reissuing => h.may_serve(now, |anchor| *anchor != next.anchor),
                Phase::Returning => h.may_serve(now, |anchor| *anchor != self.current),
            };
            let tells = h.report.as_ref().is_some_and(|r| !r.trusted.is_empty());
            let there = |r: &Report| match next.phase {
                Phase::Spreading => r.trusted.contains(&next.anchor),
                Phase::Reissuing => r.anchor == next.anchor,
                Phase::Returning => r.anchor == self.current,
            };
            lacks.then_some(match next.phase {
                _ if h.streams == 0 => Why::Away,
                _ if h.report.as_ref().is_some_and(|r| r.unsaved && there(r)) => Why::NotKept,
                Phase::Spreading if h.report.is_some() && !tells => Why::DoesNotTell,
                Phase::Spreading => Why::NotTrustedYet,
                Phase::Reissuing | Phase::Returning => Why::NotReplacedYet,
            })
        };
        let counts = |pod: &ObjectRef| !next.given_up.contains(pod);
        let mut missing: Vec<Missing> = evidence
            .holders()
            .filter(|(pod, _)| counts(pod))
            .filter_map(|(pod, h)| Some(Missing { pod: Some(pod.clone()), why: why(h)?, until: h.until() }))
            .collect();
        let gap = evidence.ledger.unrecorded().filter(|gap| is_good(gap.until, now) && !next.unrecorded_given_up);
        // What was issued before the new root was made does not lead to it.
        if let Some(gap) = gap.filter(|gap| next.phase != Phase::Returning || gap.issued >= next.began) {
            missing.push(Missing { pod: None, why: Why::Unrecorded, until: gap.until });
        }
        missing
    }

    /// The step that may be taken without being asked for; none where somebody is missing, or the next step is a person's.
    pub fn step(&self, evidence: Evidence<'_>) -> Option<Self> {
        let next = self.next.as_ref()?;
        if next.phase == Phase::Reissuing || !self.missing(evidence).is_empty() {
            return None;
        }
        match next.phase {
            Phase::Spreading => Some(self.turned(Phase::Reissuing, evidence)),
            Phase::Returning => Some(Self::settled(self.current.clone())),
            Phase::Reissuing => None,
        }
    }

    /// Removes the old anchor.
    ///
    /// # Errors
    ///
    /// Where nothing is under way, or somebody is missing.
    pub fn finish(&self, evidence: Evidence<'_>) -> Result<Self, Refusal> {
        let next = self.next.as_ref().ok_or(Refusal::Settled)?;
        let missing = self.missing(evidence).len();
        match next.phase {
            Phase::Spreading => Err(Refusal::NotIssuing(missing)),
            Phase::Returning => Err(Refusal::Aborting),
            Phase::Reissuing if missing > 0 => Err(Refusal::StillServed(missing)),
            Phase::Reissuing => Ok(Self::settled(next.anchor.clone())),
        }
    }

    /// Has the old root issue again; the new anchor goes once nobody serves a certificate that leads to it.
    ///
    /// # Errors
    ///
    /// Where nothing is under way.
    pub fn abort(&self, evidence: Evidence<'_>) -> Result<Self, Refusal> {
        match &self.next {
            None => Err(Refusal::Settled),
            Some(next) if next.phase == Phase::Returning => Ok(self.clone()),
            Some(_) => Ok(self.turned(Phase::Returning, evidence)),
        }
    }

    fn turned(&self, phase: Phase, evidence: Evidence<'_>) -> Self {
        let mut state = self.clone();
        if let Some(next) = &mut state.next {
            let spread = evidence.holders().count().div_ceil(RENEWALS_PER_SECOND).clamp(1, LONGEST_SPREAD);
            next.phase = phase;
            next.since = evidence.now;
            next.spread_seconds = u32::try_from(spread).unwrap_or(1);
        }
        state
    }
}

#[cfg(test)]
mod tests;
