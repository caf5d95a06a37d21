//! Which of a service's endpoints a request goes to, as its policy says.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use weft_core::balance::{Candidates, Chooser, Standing as Stands, slow_start_weight, spill};
use weft_core::breaker::{Admit, Probe, State};
use weft_core::failure::{Failure, Reason};
use weft_core::traffic::TrafficPolicy;

use super::{Candidate, PortView, ServiceView};
use crate::standing::Place;

/// An endpoint that has failed this often in a row is only tried when nothing better is there.
const SUSPECT_AFTER: u32 = 3;

/// What a request would like.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Wish {
    /// What a hashing balancer goes by.
    pub key: Option<u64>,
    /// The endpoint that its session is with.
    pub pinned: Option<SocketAddr>,
}

/// Who asks for an endpoint.
pub struct Asker<'a> {
    /// Endpoints that failed for this request.
    pub tried: &'a [IpAddr],
    pub wish: Wish,
    /// The pod's own address, which affinity goes by.
    pub own: IpAddr,
    /// Of [`crate::mesh::Mesh::now`].
    pub now: u64,
    /// Whether it is opaque bytes that want a connection: another limit holds.
    pub opaque: bool,
}

/// An endpoint that was chosen, with what was claimed of it.
pub struct Chosen {
    pub candidate: Arc<Candidate>,
    /// The policy in force, where there is one.
    pub policy: Option<Arc<TrafficPolicy>>,
    /// It is the one request that finds out whether the endpoint is well again.
    pub probe: Option<Probe>,
    pub place: Place,
}

struct Asked<'a> {
    list: &'a [Arc<Candidate>],
    policy: Option<&'a TrafficPolicy>,
    asker: &'a Asker<'a>,
}

impl Asked<'_> {
    /// Whether it may be chosen at all, and has not failed for this request.
    fn takes(&self, i: usize) -> bool {
        !self.avoid(i) && self.standing(i) != Stands::Out
    }

    fn limit(&self) -> Option<u32> {
        limit(self.policy, self.asker.opaque)
    }
}

fn limit(policy: Option<&TrafficPolicy>, opaque: bool) -> Option<u32> {
    let limits = policy?.limits;
    if opaque { limits.connections_per_endpoint } else { limits.requests_per_endpoint }
}

impl Candidates for Asked<'_> {
    fn count(&self) -> usize {
        self.list.len()
    }

    fn avoid(&self, i: usize) -> bool {
        self.asker.tried.contains(&self.list[i].address())
    }

    fn standing(&self, i: usize) -> Stands {
        let health = &self.list[i].health;
        if self.policy.is_some_and(|p| p.outlier.is_some()) {
            match health.breaker.state(self.asker.now) {
                State::Closed => {}
                // A repetition is no probe: it would fail twice by the same endpoint's fault.
                State::HalfOpen { probing: false } if self.asker.tried.is_empty() => return Stands::Probe,
                State::HalfOpen { .. } | State::Open { .. } => return Stands::Out,
            }
        }
        if health.is_full(self.limit()) {
            return Stands::Out;
        }
        // Where failures in a row eject, they must come together: one that is avoided before would neither fail nor be well.
        let ejected_by_failures = self.policy.and_then(|p| p.outlier.as_ref()).is_some_and(|o| o.consecutive_failures > 0);
        if !ejected_by_failures && health.load.failures() >= SUSPECT_AFTER { Stands::Suspect } else { Stands::Well }
    }

    fn load(&self, i: usize) -> f64 {
        self.list[i].health.load.load(self.asker.now)
    }

    fn in_flight(&self, i: usize) -> u32 {
        self.list[i].health.load.in_flight()
    }

    fn weight(&self, i: usize) -> f64 {
        match self.policy.and_then(|p| p.slow_start) {
            None => 1.0,
            Some(duration) => {
                let age = self.asker.now.saturating_sub(self.list[i].health.since);
                slow_start_weight(Duration::from_nanos(age), duration)
            }
        }
    }
}

/// Times that a choice is made anew because another worker was first.
const CHOICES: usize = 4;

impl ServiceView {
    /// Chooses an endpoint for a port, and claims what the policy limits.
    pub fn pick(&self, port: u16, asker: &Asker<'_>, mut random: impl FnMut() -> u64) -> Result<Chosen, Failure> {
        let view = self.port(port)?;
        let policy = self.traffic.as_ref().map(|t| &t.policy);
        let asked = |list| Asked { list, policy: policy.map(|p| &**p), asker };
        // A session comes first, and what the pod stays with next: unless it is ejected or full.
        let pinned = asker.wish.pinned.and_then(|at| view.find(at));
        let kept = || self.stays_with(port, asker.tried, asker.own, asker.now);
        if let Some(candidate) = pinned.or_else(kept)
            && asked(std::slice::from_ref(candidate)).takes(0)
            && let Some(chosen) = claim(candidate, policy, asker)
        {
            return Ok(chosen);
        }
        for _ in 0..CHOICES {
            let (list, chooser) = reach(view, &asked, &mut random);
            let Some(i) = chooser.choose(&asked(list), asker.wish.key, &mut random) else { break };
            if let Some(chosen) = claim(&list[i], policy, asker) {
                return Ok(chosen);
            }
            if asked(list).standing(i) == Stands::Out {
                break;
            }
        }
        Err(self.none_left(view, policy, asker))
    }

    /// Whether a session that is with an endpoint can go on there: it is one of the port's, and neither ejected nor full.
    pub fn takes_session(&self, port: u16, asker: &Asker<'_>) -> bool {
        let policy = self.traffic.as_ref().map(|t| &*t.policy);
        let candidate = asker.wish.pinned.and_then(|at| self.port(port).ok()?.find(at));
        candidate.is_some_and(|c| Asked { list: std::slice::from_ref(c), policy, asker }.takes(0))
    }

    /// Why nothing could be chosen.
    fn none_left(&self, view: &PortView, policy: Option<&Arc<TrafficPolicy>>, asker: &Asker<'_>) -> Failure {
        let id = &self.service.id;
        let limit = limit(policy.map(|p| &**p), asker.opaque);
        let full = view.candidates.iter().filter(|c| c.health.is_full(limit)).count();
        let all = view.candidates.len();
        if full > 0 {
            let text =
                format!("{full} of {all} endpoints of {id} have as much as the policy allows each, the others are ejected");
            return Failure::mesh(Reason::Overloaded).detail(text);
        }
        Failure::mesh(Reason::EndpointsEjected).detail(format!("all {all} endpoints of {id} are ejected for now"))
    }
}

/// The list to choose from: the pod's own zone, as long as that carries it.
fn reach<'v>(
    view: &'v PortView,
    asked: &impl Fn(&'v [Arc<Candidate>]) -> Asked<'v>,
    random: &mut impl FnMut() -> u64,
) -> (&'v [Arc<Candidate>], &'v Chooser) {
    let everybody = (&*view.candidates, &*view.chooser);
    let Some((local, chooser)) = &view.local else { return everybody };
    let among = asked(local);
    let Some(policy) = among.policy else { return everybody };
    // One that failed last carries nothing: by its load it is hardly asked again, whether or not it is suspect.
    let is_well = |i: &usize| among.standing(*i) == Stands::Well && !among.avoid(*i) && local[*i].health.load.failures() == 0;
    let well = (0..local.len()).filter(is_well).count();
    // Whether the others are well is not asked: one that is not is passed over when its turn comes.
    let others = view.candidates.len() - local.len();
    if spill(well, local.len(), others, policy.zone, random()) { everybody } else { (local, chooser) }
}

/// Takes the endpoint, unless it is ejected, full, or another request probes it.
fn claim(candidate: &Arc<Candidate>, policy: Option<&Arc<TrafficPolicy>>, asker: &Asker<'_>) -> Option<Chosen> {
    let mut probe = None;
    if policy.is_some_and(|p| p.outlier.is_some()) {
        match candidate.health.breaker.admits(asker.now) {
            Admit::Yes => {}
            Admit::Probe(p) => probe = Some(p),
            Admit::No => return None,
        }
    }
    let Some(place) = Place::at(&candidate.health, limit(policy.map(|p| &**p), asker.opaque)) else {
        if let Some(probe) = probe {
            candidate.health.breaker.abandon(probe);
        }
        return None;
    };
    Some(Chosen { candidate: candidate.clone(), policy: policy.cloned(), probe, place })
}
