//! Rotates a root that several replicas of the control plane share. What they share is a Secret, which says how far the rotation is and is changed by
//! compare-and-swap; what each of them knows, it tells the others when they ask ([`replicas`](super::replicas)). None leads: any of them takes a step when it has the
//! evidence, the others take it over, and one that ends in the middle leaves nothing undone.
//!
//! A replica that is asked reads the Secret anew before it answers. So an answer says what it has in force at that time, and asking has it catch up.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep};
use weft_core::service::ObjectRef;
use weft_core::wellknown::LEAF_LIFETIME_SECS;
use weft_proto::v1;
use weft_tls::jwt;

use super::super::ca::Ca;
use super::super::given;
use super::ledger::Ledger;
use super::parts::Parts;
use super::replicas::{Account, Effect, Told, Unheard, Watch, put_together};
use super::roots::Roots;
use super::rotation::{Evidence, Missing, State, Why};
use super::{FIXED, PURGE, Rotates, TrustError, phase, told, without};
use crate::server::unix_now;

/// How often the Secret is looked at while nothing is under way.
const LOOK: Duration = Duration::from_secs(20);
/// How often everybody is asked while something is.
const ASK: Duration = Duration::from_secs(2);
/// How often a command is tried while others change the Secret.
const TRIES: usize = 6;
/// For how long JWT-SVIDs that were signed under a root that is gone are good: their own life, and clocks.
const RETIRES: Duration = Duration::from_secs(jwt::LIFETIME_SECS as u64 + 60);

/// The Secret as it was read.
#[derive(Clone)]
pub struct Stored {
    pub parts: Parts,
    /// By which it is noticed that somebody has changed it.
    pub version: String,
    /// Whether weft made it.
    pub ours: bool,
}

/// What replicas share, and who else there is. Errors are for people, and mean that it is tried again.
#[tonic::async_trait]
pub trait Cluster: Send + Sync {
    /// The Secret as it stands now: never an earlier state than one that was read or written before.
    async fn read(&self) -> Result<Stored, String>;
    /// Replaces it, if it is still what was read; what it is then, and none where somebody was faster.
    async fn swap(&self, stored: &Stored) -> Result<Option<Stored>, String>;
    /// Puts the key of a root that was made where its owner finds it.
    async fn keep_root_key(&self, anchor: &str, key: &str) -> Result<(), String>;
    /// The pod of this replica.
    fn me(&self) -> ObjectRef;
    /// Every other replica that may issue, and what it says.
    async fn others(&self) -> Result<Vec<Told>, String>;
    /// Every pod with a sidecar that may hold a certificate, asked of the cluster now.
    async fn pods(&self) -> Result<BTreeSet<ObjectRef>, String>;
    /// The same as far as this replica has heard.
    fn known_pods(&self) -> BTreeSet<ObjectRef>;
    /// What new pods know the control plane by, where it does not have all anchors.
    async fn unspread(&self) -> Result<Vec<ObjectRef>, String>;
}

/// Rotates it.
pub struct Shared {
    ca: Arc<Ca>,
    cluster: Arc<dyn Cluster>,
    /// What is in force. Held from when the Secret is read until it is in force, so that nothing ever goes back.
    held: tokio::sync::Mutex<Option<Held>>,
    seen: Mutex<Seen>,
    problem: Mutex<String>,
    clock: Clock,
}

/// The time since some moment of this process.
type Clock = Arc<dyn Fn() -> Duration + Send + Sync>;

#[derive(Clone)]
struct Held {
    stored: Stored,
    state: State,
    /// The CA is somebody else's.
    fixed: bool,
    /// When keys of a root that is gone check no tokens any more.
    retires: Option<Duration>,
}

#[derive(Default)]
struct Seen {
    watch: Watch,
    /// The phase in which every pod that the cluster has was accounted for.
    whole: Option<Effect>,
}

/// What is known at one time.
struct Look {
    ledger: Ledger,
    /// Who keeps a step from being taken, besides sidecars.
    blocked: Vec<Missing>,
    problem: String,
}

impl Look {
    fn evidence(&self) -> Evidence<'_> {
        // Pods that are gone are not in it.
        Evidence { ledger: &self.ledger, lives: &|_| true, now: unix_now() }
    }
}

impl Shared {
    pub fn new(ca: Arc<Ca>, cluster: Arc<dyn Cluster>) -> Arc<Self> {
        let start = Instant::now();
        Self::by(ca, cluster, Arc::new(move || start.elapsed()))
    }

    fn by(ca: Arc<Ca>, cluster: Arc<dyn Cluster>, clock: Clock) -> Arc<Self> {
        Arc::new(Self {
            ca,
            cluster,
            held: tokio::sync::Mutex::default(),
            seen: Mutex::default(),
            problem: Mutex::default(),
            clock,
        })
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads the Secret, and puts it in force if it is another.
    async fn sync(&self) -> Result<Held, String> {
        let mut held = self.held.lock().await;
        let stored = self.cluster.read().await?;
        let now = self.put_in_force(held.as_ref(), stored)?;
        *held = Some(now.clone());
        Ok(now)
    }

    /// Puts what was read in force, after what was `held` before.
    fn put_in_force(&self, held: Option<&Held>, stored: Stored) -> Result<Held, String> {
        let retired = |held: &Held| held.retires.is_some_and(|at| at <= (self.clock)());
        if let Some(held) = held
            && held.stored.version == stored.version
            && !retired(held)
            && self.ca.problem().is_empty()
        {
            return Ok(held.clone());
        }
        let taken = self.take(held, stored);
        if let Err(why) = &taken
            && self.ca.note_problem(why.clone())
        {
            tracing::warn!("{why}; what was read before stays in use");
        }
        taken
    }

    fn take(&self, held: Option<&Held>, stored: Stored) -> Result<Held, String> {
        let place = &stored.parts.place;
        let settled = |state: &State| state.next.is_none();
        let roots =
            if stored.ours && stored.parts.is_one_root() { Some(stored.parts.roots().map_err(|e| e.to_string())?) } else { None };
        let rotated = stored.parts.written().map_err(|e| e.to_string())?.is_some();
        match roots {
            Some(roots)
                if rotated && !held.is_some_and(|h| h.state == roots.state && settled(&h.state) && h.retires.is_none()) =>
            {
                let state = roots.state.clone();
                let retires = self.take_roots(held, &roots)?;
                self.ca.note_problem(String::new());
                Ok(Held { stored, state, fixed: false, retires })
            }
            // A CA of somebody else's, or an issuer that somebody has renewed: it is looked at as what is given is.
            roots => {
                let given = stored.parts.given().map_err(|e| e.to_string())?;
                let taken = self.ca.renew(&given);
                let failed = taken.as_ref().err().map(ToString::to_string);
                given::settle(&self.ca, taken, true, place);
                match (roots, failed) {
                    (Some(_), Some(why)) => Err(why),
                    (Some(roots), None) => Ok(Held { state: roots.state, stored, fixed: false, retires: None }),
                    (None, _) => Ok(Held { state: State::settled(self.ca.anchor_hash()), stored, fixed: true, retires: None }),
                }
            }
        }
    }

    /// Puts the roots of a rotation in force; says when the keys of those that are gone check nothing any more.
    fn take_roots(&self, held: Option<&Held>, roots: &Roots) -> Result<Option<Duration>, String> {
        let mut standing = roots.standing(self.ca.domain()).map_err(|e| e.to_string())?;
        let now = self.ca.now();
        let goes = held.is_some_and(|h| h.state.next.is_some()) && roots.state.next.is_none();
        let retires = if goes { Some((self.clock)() + RETIRES) } else { held.and_then(|h| h.retires) };
        let retires = retires.filter(|at| *at > (self.clock)() && roots.state.next.is_none());
        if retires.is_some() {
            standing.tokens = standing.tokens.retiring(&now.tokens);
        }
        let is_same = standing.authority.chain == now.authority.chain
            && standing.bundle == now.bundle
            && standing.issuing == now.issuing
            && standing.tokens.published() == now.tokens.published();
        if !is_same {
            self.ca.take(standing);
            let phase = phase(roots.state.next.as_ref().map(|n| n.phase)).as_str_name();
            let trusted = roots.state.trusted().count();
            tracing::info!(phase, anchor = %self.ca.anchor_hash(), trusted, "the roots are in force as the rotation has them");
        }
        Ok(retires)
    }

    /// What the sidecars say that are connected to this replica.
    fn own(&self, state: State) -> Account {
        let sidecars = self.ca.records().read(|ledger| {
            let there = ledger.holders().iter().filter(|(_, h)| h.streams > 0);
            there.map(|(pod, h)| (pod.clone(), h.report.clone())).collect()
        });
        Account { state, sidecars }
    }

    /// Asks everybody.
    async fn look(&self, held: &Held) -> Look {
        let (me, state) = (self.cluster.me(), &held.state);
        let mut also = Vec::new();
        let mut problems = Vec::new();
        let mut unlisted = |why: String, also: &mut Vec<Missing>| {
            also.push(Missing { pod: Some(me.clone()), why: Why::Unlisted, until: 0 });
            problems.push(why);
        };
        let mut told = self.cluster.others().await.unwrap_or_else(|why| {
            unlisted(why, &mut also);
            Vec::new()
        });
        told.push(Told { replica: me.clone(), said: Ok(self.own(state.clone())) });
        let has_seen = self.seen().watch.has_seen(state);
        if state.next.is_some() && !has_seen {
            match self.cluster.unspread().await {
                Ok(maps) => also.extend(maps.into_iter().map(|map| Missing { pod: Some(map), why: Why::NotSpread, until: 0 })),
                Err(why) => unlisted(why, &mut also),
            }
        }
        let now = unix_now();
        let until = now.saturating_add(LEAF_LIFETIME_SECS);
        let mut must = self.cluster.known_pods();
        let mut ledger = put_together(&told, &must, until);
        let mut blocked = self.seen().watch.look(state, &told, also, &me, ((self.clock)(), now));
        let evidence = Evidence { ledger: &ledger, lives: &|_| true, now };
        let is_whole = self.seen().whole.as_ref() == Some(&Effect::from(state));
        if state.next.is_some() && blocked.is_empty() && !is_whole && state.missing(evidence).is_empty() {
            // This replica may not have heard of a pod yet. Of one that comes later it need not: it gets what this phase gives it.
            match self.cluster.pods().await {
                Ok(pods) => {
                    must.extend(pods);
                    ledger = put_together(&told, &must, until);
                    if state.missing(Evidence { ledger: &ledger, lives: &|_| true, now }).is_empty() {
                        self.seen().whole = Some(Effect::from(state));
                    }
                }
                Err(why) => unlisted(why, &mut blocked),
            }
        }
        for told in &told {
            if let Err(Unheard::Silent(why)) = &told.said {
                problems.push(format!("{}: {why}", told.replica));
            }
        }
        Look { ledger, blocked, problem: problems.join("; ") }
    }

    /// Changes the state, if it is still what was read; false where somebody was faster.
    async fn change(&self, was: &Held, parts: &Parts, state: &State) -> Result<bool, TrustError> {
        let parts = parts.in_state(state)?;
        // As others will read it.
        parts.roots()?;
        let mut held = self.held.lock().await;
        if held.as_ref().is_none_or(|held| held.stored.version != was.stored.version) {
            return Ok(false);
        }
        let wanted = Stored { parts, ..was.stored.clone() };
        let Some(stored) = self.cluster.swap(&wanted).await.map_err(TrustError::Store)? else { return Ok(false) };
        let now = self.put_in_force(held.as_ref(), stored).map_err(TrustError::Store)?;
        *held = Some(now);
        drop(held);
        let of = |state: &State| phase(state.next.as_ref().map(|n| n.phase));
        if of(&was.state) != of(state) {
            tracing::info!(phase = of(state).as_str_name(), anchor = %state.issuing(), "the rotation of the root took a step");
        }
        // Being asked, they look.
        let cluster = self.cluster.clone();
        tokio::spawn(async move { drop(cluster.others().await) });
        Ok(true)
    }

    /// A state in which some are given up.
    fn without(state: &State, names: &[String], look: &Look) -> Result<State, TrustError> {
        let mut of_replicas = look.blocked.iter().filter_map(|m| Some(m.pod.as_ref()?.to_string()));
        if let Some(name) = of_replicas.find(|name| names.contains(name)) {
            return Err(TrustError::Replicas(name));
        }
        without(state, names, look.evidence())
    }

    async fn ready(&self) -> Result<Held, TrustError> {
        let held = self.sync().await.map_err(TrustError::Store)?;
        if held.fixed { Err(TrustError::Fixed) } else { Ok(held) }
    }

    /// Takes the next step, if the evidence is there; says whether a rotation is under way.
    async fn step(&self) -> Result<bool, TrustError> {
        let held = self.sync().await.map_err(TrustError::Store)?;
        if held.fixed || held.state.next.is_none() {
            return Ok(false);
        }
        let look = self.look(&held).await;
        if look.blocked.is_empty()
            && let Some(state) = held.state.step(look.evidence())
        {
            self.change(&held, &held.stored.parts, &state).await?;
        }
        Ok(true)
    }
}

#[tonic::async_trait]
impl Rotates for Shared {
    async fn run(self: Arc<Self>) {
        let mut purged = Instant::now();
        let mut under_way = true;
        loop {
            tokio::select! {
                () = self.ca.records().changed.notified(), if under_way => sleep(ASK / 2).await,
                () = sleep(if under_way { ASK } else { LOOK }) => {}
            }
            if purged.elapsed() >= PURGE {
                purged = Instant::now();
                self.ca.records().purge(unix_now());
            }
            let stepped = self.step().await;
            under_way = *stepped.as_ref().unwrap_or(&under_way);
            let problem = stepped.err().map(|e| e.to_string()).unwrap_or_default();
            let mut known = self.problem.lock().unwrap_or_else(PoisonError::into_inner);
            if !problem.is_empty() && known.is_empty() {
                tracing::debug!("the CA was not looked at, and is again: {problem}");
            }
            *known = problem;
        }
    }

    async fn rotate(&self, give_up: &[String]) -> Result<(), TrustError> {
        for _ in 0..TRIES {
            let held = self.ready().await?;
            let look = self.look(&held).await;
            if held.state.next.is_some() && !give_up.is_empty() {
                let state = Self::without(&held.state, give_up, &look)?;
                if self.change(&held, &held.stored.parts, &state).await? {
                    return Ok(());
                }
                continue;
            }
            // Before anything is made.
            Self::without(&held.state.begin(String::new(), unix_now())?, give_up, &look)?;
            if look.blocked.iter().any(|m| m.why == Why::Unlisted) {
                return Err(TrustError::Store(look.problem));
            }
            let (parts, anchor, root_key) = held.stored.parts.with_new_root(self.ca.domain())?;
            let state = Self::without(&held.state.begin(anchor.clone(), unix_now())?, give_up, &look)?;
            if self.change(&held, &parts, &state).await? {
                if let Err(why) = self.cluster.keep_root_key(&anchor, &root_key).await {
                    tracing::warn!(
                        "the new root's key could not be kept, and is gone: its issuer can be replaced, not renewed ({why})"
                    );
                }
                return Ok(());
            }
        }
        Err(TrustError::Contended)
    }

    async fn finish(&self, give_up: &[String]) -> Result<(), TrustError> {
        for _ in 0..TRIES {
            let held = self.ready().await?;
            let look = self.look(&held).await;
            let given_up = Self::without(&held.state, give_up, &look)?;
            if given_up != held.state {
                // Who was given up stays so.
                self.change(&held, &held.stored.parts, &given_up).await?;
                continue;
            }
            let finished = held.state.finish(look.evidence())?;
            if !look.blocked.is_empty() {
                let names: BTreeSet<String> = look.blocked.iter().filter_map(|m| Some(m.pod.as_ref()?.to_string())).collect();
                return Err(TrustError::Replicas(names.into_iter().collect::<Vec<_>>().join(", ")));
            }
            if self.change(&held, &held.stored.parts, &finished).await? {
                return Ok(());
            }
        }
        Err(TrustError::Contended)
    }

    async fn abort(&self, give_up: &[String]) -> Result<(), TrustError> {
        for _ in 0..TRIES {
            let held = self.ready().await?;
            let look = self.look(&held).await;
            let aborted = held.state.abort(look.evidence())?;
            if aborted != held.state {
                if self.change(&held, &held.stored.parts, &aborted).await? && give_up.is_empty() {
                    return Ok(());
                }
                continue;
            }
            let given_up = Self::without(&held.state, give_up, &look)?;
            if given_up == held.state || self.change(&held, &held.stored.parts, &given_up).await? {
                return Ok(());
            }
        }
        Err(TrustError::Contended)
    }

    async fn status(&self) -> v1::TrustStatusResponse {
        let synced = self.sync().await;
        let unread = synced.as_ref().err().cloned().unwrap_or_default();
        let known = match synced {
            Ok(held) => Some(held),
            Err(_) => self.held.lock().await.clone(),
        };
        let Some(held) = known else {
            let state = State::settled(self.ca.anchor_hash());
            let evidence = Evidence { ledger: &Ledger::default(), lives: &|_| true, now: unix_now() };
            return told(&self.ca, &state, evidence, vec![], "", unread);
        };
        let look = self.look(&held).await;
        let background = self.problem.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let problem = [unread, background, look.problem.clone()].into_iter().find(|p| !p.is_empty()).unwrap_or_default();
        let fixed = if held.fixed { FIXED } else { "" };
        told(&self.ca, &held.state, look.evidence(), look.blocked.clone(), fixed, problem)
    }

    async fn account(&self) -> Option<Result<Account, String>> {
        Some(self.sync().await.map(|held| self.own(held.state)))
    }
}

#[cfg(test)]
mod tests;
