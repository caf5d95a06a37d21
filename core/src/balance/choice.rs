//! The ways to choose an endpoint, behind one interface.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use smallvec::SmallVec;

use super::hash::{Maglev, Ring};
use crate::backoff::unit;
use crate::traffic::policy::Balancer;

/// How a candidate stands with its breaker and its failures.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Standing {
    /// Well.
    Well,
    /// It keeps failing, but is not ejected: one request in fifty asks whether it is well again; else it is taken only when nothing is well.
    Suspect,
    /// It was ejected, its time is over, and nobody probes it: it is taken at once. The caller then claims the probe
    /// ([`crate::breaker::Breaker::admits`]), and chooses again if another was first. What must not be a probe (a repetition) says [`Standing::Out`] instead.
    Probe,
    /// Ejected: taken only when every candidate is.
    Out,
}

/// What is asked about the candidates while one is chosen. Candidates are known by their position.
pub trait Candidates {
    /// How many there are.
    fn count(&self) -> usize;
    /// Whether this request has failed there already: taken only when all others are ejected.
    fn avoid(&self, i: usize) -> bool;
    /// How it stands. It may change at any time; each choice copes with that.
    fn standing(&self, i: usize) -> Standing;
    /// The expected cost of one more request ([`super::PeakEwma::load`]); any unit.
    fn load(&self, i: usize) -> f64;
    /// Requests in flight.
    fn in_flight(&self, i: usize) -> u32;
    /// Its share, above 0 up to 1 ([`super::slow_start_weight`]). Loads are divided by it; who is chosen in turn or by chance is passed over accordingly. Hash
    /// balancers give every endpoint its keys at once.
    fn weight(&self, _i: usize) -> f64 {
        1.0
    }
}

/// A way to choose, with what it keeps. Made for one list of candidates; shared by all workers of a sidecar.
#[derive(Debug)]
pub enum Chooser {
    /// Two are drawn, the one with less latency times queue wins.
    P2cEwma,
    /// Two are drawn, the one with fewer requests in flight wins.
    LeastRequest,
    /// Each in turn: whose turn is next.
    RoundRobin(AtomicU32),
    /// Any.
    Random,
    /// The one that a key belongs to.
    Ring(Ring),
    /// The one that a key belongs to.
    Maglev(Maglev),
}

impl Chooser {
    /// What a policy asks for, for these candidates in their order. `random` says where turns begin.
    pub fn new(balancer: &Balancer, candidates: &[SocketAddr], random: u64) -> Self {
        match balancer {
            Balancer::P2cEwma => Self::P2cEwma,
            Balancer::LeastRequest => Self::LeastRequest,
            Balancer::RoundRobin => Self::RoundRobin(AtomicU32::new(random as u32)),
            Balancer::Random => Self::Random,
            Balancer::RingHash(_) => Self::Ring(Ring::new(candidates)),
            Balancer::Maglev(_) => Self::Maglev(Maglev::new(candidates)),
        }
    }

    /// Chooses one; none if there is none. `key` is the hash of what the policy says ([`super::hash64`]), none where the request lacks it: then
    /// any is taken. `random` draws uniformly distributed numbers.
    ///
    /// In this order: well (or on trial, or a probe) and untried; suspect and untried; tried; ejected.
    pub fn choose(&self, among: &impl Candidates, key: Option<u64>, random: impl FnMut() -> u64) -> Option<usize> {
        let count = among.count();
        match (self, key) {
            (Self::P2cEwma, _) => power_of_two(among, random, |i| among.load(i) / among.weight(i)),
            (Self::LeastRequest, _) => power_of_two(among, random, |i| (f64::from(among.in_flight(i)) + 1.0) / among.weight(i)),
            (Self::RoundRobin(turn), _) => {
                let first = turn.fetch_add(1, Relaxed) as usize;
                first_fit(among, (0..count).map(move |n| (first.wrapping_add(n)) % count), random, |i| among.weight(i))
            }
            (Self::Ring(ring), Some(key)) => first_fit(among, then_all(ring.walk(key), count), random, |_| 1.0),
            (Self::Maglev(table), Some(key)) => first_fit(among, then_all(table.walk(key), count), random, |_| 1.0),
            (Self::Random | Self::Ring(_) | Self::Maglev(_), _) => at_random(among, random),
        }
    }
}

/// Every endpoint stands as often in this many steps of a ring or table as is worth while; then they are looked at in turn.
const STEPS: usize = 64;

fn then_all(walk: impl Iterator<Item = usize>, count: usize) -> impl Iterator<Item = usize> {
    walk.take(STEPS).chain(0..count).filter(move |i| *i < count)
}

/// Draws before every candidate is looked at in turn.
const DRAWS: usize = 8;
/// So few candidates are looked at in turn at once.
const FEW: usize = 16;

/// One in fifty asks a suspect whether it is well again.
fn on_trial(random: u64) -> bool {
    random.is_multiple_of(50)
}

/// What becomes of a candidate that is looked at once.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    /// Taken at once: by its load it would lose to any other, and never be well again.
    Now,
    Well,
    Suspect,
    Tried,
    Out,
}

fn rank(among: &impl Candidates, i: usize, random: &mut impl FnMut() -> u64) -> Rank {
    match (among.standing(i), among.avoid(i)) {
        (Standing::Out, _) | (Standing::Probe, true) => Rank::Out,
        (_, true) => Rank::Tried,
        (Standing::Probe, false) => Rank::Now,
        (Standing::Suspect, false) if on_trial(random()) => Rank::Now,
        (Standing::Suspect, false) => Rank::Suspect,
        (Standing::Well, false) => Rank::Well,
    }
}

/// The first in `order` that is well; else the first of the best rank there is. Who is well is taken with the probability of
/// its weight, and else passed over.
fn first_fit(
    among: &impl Candidates,
    order: impl Iterator<Item = usize>,
    mut random: impl FnMut() -> u64,
    weight: impl Fn(usize) -> f64,
) -> Option<usize> {
    let mut best: Option<(Rank, usize)> = None;
    for i in order {
        let rank = rank(among, i, &mut random);
        if rank == Rank::Now || rank == Rank::Well && wins(weight(i), &mut random) {
            return Some(i);
        }
        if best.is_none_or(|(other, _)| rank < other) {
            best = Some((rank, i));
        }
    }
    best.map(|(_, i)| i)
}

/// Whether one of this weight is taken when it is met.
fn wins(weight: f64, random: &mut impl FnMut() -> u64) -> bool {
    weight >= 1.0 || unit(random()) < weight
}

/// Any of those of the best rank, by weight.
fn at_random(among: &impl Candidates, mut random: impl FnMut() -> u64) -> Option<usize> {
    let count = among.count();
    for _ in 0..DRAWS.min(count) {
        let drawn = (random() % count as u64) as usize;
        match rank(among, drawn, &mut random) {
            Rank::Now => return Some(drawn),
            Rank::Well if wins(among.weight(drawn), &mut random) => return Some(drawn),
            _ => {}
        }
    }
    power_of_two(among, random, |_| 1.0)
}

/// Draws two of those of the best rank, and takes the one with less load. The cost does not grow with the count while most are well.
fn power_of_two(among: &impl Candidates, mut random: impl FnMut() -> u64, load: impl Fn(usize) -> f64) -> Option<usize> {
    let count = among.count();
    if count > FEW {
        let mut first = None;
        for _ in 0..DRAWS {
            let drawn = (random() % count as u64) as usize;
            if first == Some(drawn) {
                continue;
            }
            match (rank(among, drawn, &mut random), first) {
                (Rank::Now, _) => return Some(drawn),
                (Rank::Well, None) => first = Some(drawn),
                (Rank::Well, Some(first)) => return Some(if load(drawn) < load(first) { drawn } else { first }),
                _ => {}
            }
        }
    }
    // Each is asked once: another worker may change the answer at any time.
    let ranks: SmallVec<[(Rank, usize); FEW]> = (0..count).map(|i| (rank(among, i, &mut random), i)).collect();
    let best = ranks.iter().map(|(rank, _)| *rank).min()?;
    let fit: SmallVec<[usize; FEW]> = ranks.iter().filter(|(rank, _)| *rank == best).map(|(_, i)| *i).collect();
    pick_p2c(&fit, random(), |i| load(*i)).map(|chosen| fit[chosen])
}

/// Draws two of `candidates` with `random` and returns the position of the one with less load; none if there is none.
/// With one candidate there is nothing to draw.
fn pick_p2c<T>(candidates: &[T], random: u64, load: impl Fn(&T) -> f64) -> Option<usize> {
    match candidates.len() {
        0 => None,
        1 => Some(0),
        n => {
            let n = n as u64;
            let first = (random >> 32) % n;
            // The second is drawn from the others, so that it is never the first again.
            let second = (first + 1 + (random & 0xffff_ffff) % (n - 1)) % n;
            let (a, b) = (first as usize, second as usize);
            Some(if load(&candidates[b]) < load(&candidates[a]) { b } else { a })
        }
    }
}

/// Chooses among `count` candidates by power of two choices; none if there is none.
///
/// `avoid` names those that failed for this request already: they are taken only when nothing else is there. `suspect` names those that
/// keep failing: likewise, but for what `random` lets through on trial.
pub fn choose(
    count: usize,
    random: impl FnMut() -> u64,
    avoid: impl Fn(usize) -> bool,
    suspect: impl Fn(usize) -> bool,
    load: impl Fn(usize) -> f64,
) -> Option<usize> {
    Chooser::P2cEwma.choose(&Asked { count, avoid, suspect, load }, None, random)
}

struct Asked<A, S, L> {
    count: usize,
    avoid: A,
    suspect: S,
    load: L,
}

impl<A: Fn(usize) -> bool, S: Fn(usize) -> bool, L: Fn(usize) -> f64> Candidates for Asked<A, S, L> {
    fn count(&self) -> usize {
        self.count
    }

    fn avoid(&self, i: usize) -> bool {
        (self.avoid)(i)
    }

    fn standing(&self, i: usize) -> Standing {
        if (self.suspect)(i) { Standing::Suspect } else { Standing::Well }
    }

    fn load(&self, i: usize) -> f64 {
        (self.load)(i)
    }

    fn in_flight(&self, _i: usize) -> u32 {
        0
    }
}

#[cfg(test)]
mod tests;
