//! trust: rotates the root while the mesh runs. What is decided is in [`rotation`], what is known in [`ledger`], what is on disk in [`keep`] and
//! [`journal`]; here evidence becomes steps, and steps are put in force. Each is on disk first. Where replicas share the CA, [`shared`] does the same with what
//! they share, and [`replicas`] sums up what they know.

pub mod journal;
pub mod keep;
pub mod ledger;
pub mod living;
pub mod parts;
pub mod records;
pub mod replicas;
pub mod roots;
pub mod rotation;
pub mod shared;
pub mod telling;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep};
use weft_core::service::ObjectRef;
use weft_proto::v1;
use weft_tls::TrustBundle;

use super::ca::{Ca, CaError};
use crate::server::unix_now;
use ledger::is_good;
use rotation::{Evidence, Missing, Phase, Refusal, State};

/// How certificates without a record are given up.
pub const UNRECORDED: &str = "unrecorded";
/// Of those who are missing so many are told by name.
const MOST_NAMED: usize = 1_000;
/// Evidence that comes in a rush is looked at together.
const GATHER: Duration = Duration::from_millis(100);
/// Certificates expire without anybody saying so.
const LOOK: Duration = Duration::from_secs(1);
/// What has expired is forgotten this often.
const PURGE: Duration = Duration::from_secs(60);

/// Whether a pod lives. While that is not known yet, every pod does.
pub type Lives = Arc<dyn Fn(&ObjectRef) -> bool + Send + Sync>;

/// Why a command is refused.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error("{FIXED}")]
    Fixed,
    #[error("{0:?} is no pod: write NAMESPACE/POD, or {UNRECORDED}")]
    Name(String),
    #[error("nothing was changed: {0}")]
    Ca(#[from] CaError),
    #[error(
        "not yet: {0} is waited for: `weft trust status` says why. A replica of the control plane is not given up: delete its pod"
    )]
    Replicas(String),
    #[error("nothing was changed: {0}")]
    Store(String),
    #[error("nothing was changed: others change the CA all the time: try again")]
    Contended,
}

const FIXED: &str = "the CA is not weft's own to replace: it was given with --ca-chain, or as a Secret that weft has not made. Whoever \
     runs the CA rotates its root by way of the roots that it gives: docs/identity.md says how";

/// What operators may do about the root. Commands take effect, or change nothing.
#[tonic::async_trait]
pub trait Rotates: Send + Sync {
    /// Takes the steps that nobody has to ask for, for ever.
    async fn run(self: Arc<Self>);
    /// Begins a rotation, or gives up who is named in the one that is under way.
    async fn rotate(&self, give_up: &[String]) -> Result<(), TrustError>;
    /// Removes the old anchor.
    async fn finish(&self, give_up: &[String]) -> Result<(), TrustError>;
    /// Has the old root issue again.
    async fn abort(&self, give_up: &[String]) -> Result<(), TrustError>;
    /// Everything about the roots that an operator may want to know.
    async fn status(&self) -> v1::TrustStatusResponse;
    /// What this replica tells another; none where there are no others.
    async fn account(&self) -> Option<Result<replicas::Account, String>>;
}

#[tonic::async_trait]
impl Rotates for Trust {
    async fn run(self: Arc<Self>) {
        self.follow().await;
    }
    async fn rotate(&self, give_up: &[String]) -> Result<(), TrustError> {
        Self::rotate(self, give_up)
    }
    async fn finish(&self, give_up: &[String]) -> Result<(), TrustError> {
        Self::finish(self, give_up)
    }
    async fn abort(&self, give_up: &[String]) -> Result<(), TrustError> {
        Self::abort(self, give_up)
    }
    async fn status(&self) -> v1::TrustStatusResponse {
        Self::status(self)
    }
    async fn account(&self) -> Option<Result<replicas::Account, String>> {
        None
    }
}

/// Rotates the root of a CA.
pub struct Trust {
    ca: Arc<Ca>,
    lives: Lives,
    /// Why the next step could not be taken, though its evidence is there; empty where nothing is at fault.
    problem: Mutex<String>,
}

impl Trust {
    pub fn new(ca: Arc<Ca>, lives: Lives) -> Arc<Self> {
        Arc::new(Self { ca, lives, problem: Mutex::default() })
    }

    /// Takes the steps that nobody has to ask for, for ever.
    async fn follow(&self) {
        let mut purged = Instant::now();
        loop {
            tokio::select! {
                () = self.ca.records().changed.notified() => sleep(GATHER).await,
                () = sleep(LOOK) => {}
            }
            self.ca.records().mend();
            if purged.elapsed() >= PURGE {
                purged = Instant::now();
                self.ca.records().purge(unix_now());
            }
            self.try_step();
        }
    }

    /// Takes the next step, if the evidence is there; what keeps it from being taken is in the status.
    fn try_step(&self) {
        let problem = self.step().err().map(|e| e.to_string()).unwrap_or_default();
        let mut known = self.problem.lock().unwrap_or_else(PoisonError::into_inner);
        if !problem.is_empty() && known.is_empty() {
            tracing::error!("the next step of the rotation cannot be taken, and is tried again: {problem}");
        }
        *known = problem;
    }

    /// Takes the next step, if the evidence is there.
    fn step(&self) -> Result<(), TrustError> {
        let Some(mut keep) = self.ca.keep() else { return Ok(()) };
        if keep.state().next.is_none() {
            return Ok(());
        }
        match self.with_evidence(|evidence| keep.state().step(evidence)) {
            Some(state) => self.take(&mut keep, state),
            None => Ok(()),
        }
    }

    /// Begins a rotation, or gives up who is named in the one that is under way.
    ///
    /// # Errors
    ///
    /// Where the CA is not ours to replace, a rotation is under way and nobody is named, or the disk is at fault. Then nothing changes.
    pub fn rotate(&self, give_up: &[String]) -> Result<(), TrustError> {
        let mut keep = self.ca.keep().ok_or(TrustError::Fixed)?;
        if keep.state().next.is_some() && !give_up.is_empty() {
            let state = self.without(keep.state(), give_up)?;
            return self.take(&mut keep, state);
        }
        // Before anything is made: nobody trusts a root that is not there, so that all who may be given up are missing now.
        self.without(&keep.state().begin(String::new(), unix_now())?, give_up)?;
        let begun = self.begin(&mut keep, give_up);
        if begun.is_err() {
            keep.discard();
        }
        begun
    }

    fn begin(&self, keep: &mut keep::Keep, give_up: &[String]) -> Result<(), TrustError> {
        let anchor = keep.make(self.ca.domain())?;
        let begun = keep.state().begin(anchor, unix_now())?;
        let state = self.without(&begun, give_up)?;
        self.take(keep, state)
    }

    /// Removes the old anchor.
    ///
    /// # Errors
    ///
    /// Where somebody may still serve a certificate that leads to it, or nothing is under way, or the disk is at fault.
    pub fn finish(&self, give_up: &[String]) -> Result<(), TrustError> {
        let mut keep = self.ca.keep().ok_or(TrustError::Fixed)?;
        let given_up = self.without(keep.state(), give_up)?;
        let finished = self.with_evidence(|evidence| given_up.finish(evidence));
        match finished {
            Ok(state) => self.take(&mut keep, state),
            Err(refusal) => {
                // Who was given up stays so.
                if given_up != *keep.state() {
                    self.take(&mut keep, given_up)?;
                }
                Err(refusal.into())
            }
        }
    }

    /// Has the old root issue again.
    ///
    /// # Errors
    ///
    /// Where nothing is under way, or the disk is at fault.
    pub fn abort(&self, give_up: &[String]) -> Result<(), TrustError> {
        let mut keep = self.ca.keep().ok_or(TrustError::Fixed)?;
        let aborted = self.with_evidence(|evidence| keep.state().abort(evidence))?;
        if aborted != *keep.state() {
            self.take(&mut keep, aborted)?;
        }
        let state = self.without(keep.state(), give_up)?;
        if state == *keep.state() { Ok(()) } else { self.take(&mut keep, state) }
    }

    /// Everything about the roots that an operator may want to know.
    pub fn status(&self) -> v1::TrustStatusResponse {
        let (state, fixed) = match self.ca.keep() {
            Some(keep) => (keep.state().clone(), ""),
            None => (State::settled(self.ca.anchor_hash()), FIXED),
        };
        let problem = self.problem.lock().unwrap_or_else(PoisonError::into_inner).clone();
        self.with_evidence(|evidence| told(&self.ca, &state, evidence, vec![], fixed, problem))
    }

    fn with_evidence<T>(&self, decide: impl FnOnce(Evidence<'_>) -> T) -> T {
        self.ca.records().read(|ledger| decide(Evidence { ledger, lives: &*self.lives, now: unix_now() }))
    }

    /// A state in which some are given up.
    fn without(&self, state: &State, names: &[String]) -> Result<State, TrustError> {
        self.with_evidence(|evidence| without(state, names, evidence))
    }

    /// On disk, then in force.
    fn take(&self, keep: &mut keep::Keep, state: State) -> Result<(), TrustError> {
        let before = keep.state().next.as_ref().map(|n| n.phase);
        keep.commit(state)?;
        self.ca.put_in_force(keep)?;
        let state = keep.state();
        let now = state.next.as_ref().map(|n| n.phase);
        if before != now {
            let (anchor, trusted) = (state.issuing(), state.trusted().count());
            tracing::info!(phase = phase(now).as_str_name(), %anchor, trusted, "the rotation of the root took a step");
        }
        Ok(())
    }
}

/// The status, from what is known; `also` are missing besides.
fn told(
    ca: &Ca,
    state: &State,
    evidence: Evidence<'_>,
    also: Vec<Missing>,
    fixed: &str,
    problem: String,
) -> v1::TrustStatusResponse {
    let now = unix_now();
    let standing = ca.now();
    let anchors = standing.bundle.facts(ca.domain());
    let effective = ca.denials().now();
    let denied = effective.entries.len() as u32;
    let federated = effective.foreign.iter().map(|(domain, anchors)| {
        let facts = TrustBundle::new(domain.clone(), anchors.clone()).map(|b| b.facts(domain)).unwrap_or_default();
        v1::FederatedDomain {
            trust_domain: domain.to_string(),
            not_after: facts.iter().map(|(_, ends)| *ends).min().unwrap_or_default(),
            anchors: facts.into_iter().map(|(hash, _)| hash).collect(),
        }
    });
    let federated: Vec<_> = federated.collect();
    let problem = match ca.problem() {
        given if !given.is_empty() => given,
        _ => problem,
    };
    let mut missing = also;
    missing.extend(state.missing(evidence));
    let missing_total = missing.len() as u32;
    missing.truncate(MOST_NAMED);
    let connected = |pod: &ObjectRef| evidence.ledger.holders().get(pod).is_some_and(|h| h.streams > 0);
    let served_by = |anchor: &str| {
        let serves = |h: &ledger::Holder, r: &ledger::Report| r.anchor == anchor && (h.streams > 0 || is_good(r.until, now));
        evidence.holders().filter(|(_, h)| h.report.as_ref().is_some_and(|r| serves(h, r))).count() as u32
    };
    let trusts_all = |h: &ledger::Holder| h.report.as_ref().is_some_and(|r| state.trusted().all(|a| r.trusted.contains(a)));
    let next = state.next.as_ref();
    v1::TrustStatusResponse {
        phase: phase(next.map(|n| n.phase)).into(),
        phase_since: next.map_or(0, |n| n.since),
        anchors: anchors
            .into_iter()
            .map(|(anchor, not_after)| v1::TrustAnchorStatus {
                not_after,
                issuing: anchor == *state.issuing(),
                served_by: served_by(&anchor),
                new: next.is_some_and(|n| n.anchor == anchor),
                hash: anchor,
            })
            .collect(),
        holders: evidence.holders().count() as u32,
        trusting: evidence.holders().filter(|(_, h)| trusts_all(h)).count() as u32,
        connected: evidence.holders().filter(|(_, h)| h.streams > 0).count() as u32,
        missing: missing
            .into_iter()
            .map(|m| v1::TrustMissing {
                namespace: m.pod.as_ref().map(|p| p.namespace.to_string()).unwrap_or_default(),
                pod: m.pod.as_ref().map(|p| p.name.to_string()).unwrap_or_default(),
                why: m.why.to_string(),
                until: m.until,
                connected: m.pod.as_ref().is_some_and(connected),
            })
            .collect(),
        missing_total,
        given_up: next
            .map(|n| {
                let unrecorded = n.unrecorded_given_up.then(|| UNRECORDED.to_owned());
                n.given_up.iter().map(ToString::to_string).chain(unrecorded).collect()
            })
            .unwrap_or_default(),
        spread_seconds: next.map_or(0, |n| n.spread_seconds),
        fixed: fixed.to_owned(),
        problem,
        federated,
        denied,
    }
}

/// A state in which some are given up.
fn without(state: &State, names: &[String], evidence: Evidence<'_>) -> Result<State, TrustError> {
    let mut state = state.clone();
    for name in names {
        let pod = if name == UNRECORDED {
            None
        } else {
            Some(name.parse::<ObjectRef>().map_err(|_| TrustError::Name(name.chars().take(100).collect()))?)
        };
        state = state.give_up(pod.as_ref(), evidence)?;
    }
    Ok(state)
}

fn phase(phase: Option<Phase>) -> v1::TrustPhase {
    match phase {
        None => v1::TrustPhase::Settled,
        Some(Phase::Spreading) => v1::TrustPhase::Spreading,
        Some(Phase::Reissuing) => v1::TrustPhase::Reissuing,
        Some(Phase::Returning) => v1::TrustPhase::Returning,
    }
}

#[cfg(test)]
mod tests;
