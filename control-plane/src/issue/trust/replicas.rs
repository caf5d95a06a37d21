//! Evidence from several replicas of the control plane, put together: each knows of the sidecars that are connected to it, and none of the others. Pure.
//!
//! A step that removes an anchor, or has another root issue, takes three things:
//!
//! 1. **Every replica has the present phase in force** ([`Watch::look`]). What a replica has in force never goes back, and one that starts later reads the
//!    present phase first. So from that moment on, nobody issues as the phase before did.
//! 2. **[`SETTLES`] has gone by since.** Whatever was issued before has come in by then, or was given up: a sidecar waits ten seconds for a certificate, asks for
//!    one at a time, and a stream whose other end is silent ends after thirty. So what sidecars say from then on stays so.
//! 3. **Every pod with a sidecar is connected, and says so** ([`put_together`]), but those that were given up by name. One that is not connected is missing.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use weft_core::service::ObjectRef;

use super::ledger::{Anchor, Ledger, Report};
use super::rotation::{Missing, Phase, State, Why};

/// How long what was under way may take when the last replica takes over a phase.
pub const SETTLES: Duration = Duration::from_secs(45);

/// What a phase has a replica do. Given-up names are no part of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Effect {
    current: Anchor,
    next: Option<(Anchor, Phase)>,
}

impl From<&State> for Effect {
    fn from(state: &State) -> Self {
        Self { current: state.current.clone(), next: state.next.as_ref().map(|n| (n.anchor.clone(), n.phase)) }
    }
}

/// What one replica says of itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Account {
    /// What it has in force.
    pub state: State,
    /// What each sidecar says that is connected to it; none where it has said nothing yet.
    pub sidecars: BTreeMap<ObjectRef, Option<Report>>,
}

/// Why a replica says nothing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Unheard {
    /// It does not answer, or not what was asked.
    Silent(String),
    /// Its version knows nothing of this.
    Older,
}

/// One replica, and what it says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Told {
    /// Its pod.
    pub replica: ObjectRef,
    pub said: Result<Account, Unheard>,
}

/// What all of them know, as a ledger. `must` are pods that count whether anybody has heard of them or not; of those that nobody is connected to, certificates
/// may be good until `until`, in seconds since the Unix epoch.
pub fn put_together(told: &[Told], must: &BTreeSet<ObjectRef>, until: i64) -> Ledger {
    let mut heard: BTreeMap<ObjectRef, Vec<Option<Report>>> = must.iter().map(|pod| (pod.clone(), Vec::new())).collect();
    for account in told.iter().filter_map(|t| t.said.as_ref().ok()) {
        for (pod, report) in &account.sidecars {
            heard.entry(pod.clone()).or_default().push(report.clone());
        }
    }
    Ledger::merged(heard, until)
}

/// Since when all replicas have had the present phase in force.
#[derive(Default)]
pub struct Watch(Option<(Effect, Duration)>);

impl Watch {
    /// Whether all replicas have had the phase in force at some time.
    pub fn has_seen(&self, state: &State) -> bool {
        self.0.as_ref().is_some_and(|(known, _)| *known == Effect::from(state))
    }

    /// The replicas that keep a step from being taken, besides sidecars. `me` is this replica, `now` the time since some moment of this process, and `unix` in seconds
    /// since the Unix epoch. `told` are all replicas that there are, this one among them; `also` is missing besides.
    pub fn look(
        &mut self,
        state: &State,
        told: &[Told],
        also: Vec<Missing>,
        me: &ObjectRef,
        (now, unix): (Duration, i64),
    ) -> Vec<Missing> {
        let effect = Effect::from(state);
        if state.next.is_none() {
            self.0 = None;
            return Vec::new();
        }
        let why = |told: &Told| match &told.said {
            Ok(account) if Effect::from(&account.state) == effect => None,
            Ok(_) => Some(Why::ReplicaBehind),
            Err(Unheard::Silent(_)) => Some(Why::ReplicaSilent),
            Err(Unheard::Older) => Some(Why::ReplicaOlder),
        };
        let missing = |replica: &ObjectRef, why: Why, until: i64| Missing { pod: Some(replica.clone()), why, until };
        let mut all = also;
        all.extend(told.iter().filter_map(|t| Some(missing(&t.replica, why(t)?, 0))));
        if told.iter().all(|t| t.replica != *me) {
            all.push(missing(me, Why::ReplicaSilent, 0));
        }
        let known = self.0.as_ref().filter(|(known, _)| *known == effect).map(|(_, since)| *since);
        let since = match known {
            Some(since) => since,
            None if all.is_empty() => {
                self.0 = Some((effect, now));
                now
            }
            None => {
                self.0 = None;
                return all;
            }
        };
        let left = SETTLES.saturating_sub(now.saturating_sub(since));
        if !left.is_zero() {
            all.push(missing(me, Why::Settling, unix.saturating_add(left.as_secs_f64().ceil() as i64)));
        }
        all
    }
}

#[cfg(test)]
mod tests;
