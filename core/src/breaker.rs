//! Which endpoints are ejected, how long, and how they come back.
//!
//! ```text
//!            too many failures, and a place among the ejected
//!   closed ──────────────────────────────────────────────────▶ open ◀───────────────┐
//!     ▲                                                          │ its time is over   │ it failed: twice as long
//!     │                                                          ▼                  │
//!     └────────────────────── it was well ────────────────── half-open: one probe ─────┘
//! ```

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use crate::backoff::{doubled, unit};
use crate::failure::Side;
use crate::retry::Ending;
use crate::traffic::policy::{FailureKind, Outlier};
use crate::window::{SLOTS, Window};

mod word;
use word::{Phase, Word};

/// How many of a service's endpoints are ejected, by all their breakers.
#[derive(Debug, Default)]
pub struct Ejections {
    endpoints: AtomicU32,
    held: AtomicU32,
}

impl Ejections {
    /// For a service of so many endpoints.
    pub const fn new(endpoints: u32) -> Self {
        Self { endpoints: AtomicU32::new(endpoints), held: AtomicU32::new(0) }
    }

    /// Tells how many endpoints there are now: those that may be chosen at all, ejected ones among them. If fewer than before, those that are ejected stay
    /// so, and nobody else is until enough are back.
    pub fn set_endpoints(&self, endpoints: u32) {
        self.endpoints.store(endpoints, Relaxed);
    }

    /// How many are ejected, or on probation after it.
    pub fn held(&self) -> u32 {
        self.held.load(Relaxed)
    }

    /// How many may be ejected at once. `max_ejected` is percent; below 100, one endpoint at least always stays.
    pub fn ceiling(&self, max_ejected: u8) -> u32 {
        let all = self.endpoints.load(Relaxed);
        match max_ejected {
            100.. => all,
            percent => ((u64::from(all) * u64::from(percent) / 100) as u32).min(all.saturating_sub(1)),
        }
    }

    fn claim(&self, max_ejected: u8) -> bool {
        let ceiling = self.ceiling(max_ejected);
        self.held.fetch_update(Relaxed, Relaxed, |held| (held < ceiling).then(|| held + 1)).is_ok()
    }

    fn give_back(&self) {
        let _ = self.held.fetch_update(Relaxed, Relaxed, |held| held.checked_sub(1));
    }
}

/// What an attempt says about its endpoint.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// It is well.
    Success,
    /// It is not.
    Failure,
}

impl Outcome {
    /// What the end of an attempt says of the endpoint; none if it was not the endpoint that ended it.
    pub fn of(policy: &Outlier, ending: Ending<'_>) -> Option<Self> {
        let failed = match ending {
            Ending::Failed(failure) if failure.side != Side::Upstream => return None,
            Ending::Failed(_) => true,
            Ending::Http(status) => match policy.failures {
                FailureKind::Gateway => matches!(status, 502..=504),
                FailureKind::Any5xx => matches!(status, 500..=599),
            },
            Ending::Grpc { status, .. } => policy.grpc_codes.contains(&status),
        };
        Some(if failed { Self::Failure } else { Self::Success })
    }
}

/// Whether a request may go to an endpoint.
#[derive(PartialEq, Eq, Debug)]
pub enum Admit {
    /// It may.
    Yes,
    /// It may, and what becomes of it decides: the one probe there is.
    Probe(Probe),
    /// The endpoint is ejected, or another request probes it.
    No,
}

/// A probe that has said nothing for so long, in nanoseconds, is not waited for: a request without a deadline may hang for ever, and the
/// endpoint be well.
const PATIENCE: u64 = 10_000_000_000;

/// The right to be the one request that probes an endpoint. It ends in [`Breaker::probed`] or [`Breaker::abandon`]; until then, or until it
/// has said nothing for ten seconds, nobody else gets to the endpoint.
#[derive(PartialEq, Eq, Debug)]
#[must_use = "until it is given back, nobody else gets to the endpoint"]
pub struct Probe(Word);

/// What an endpoint's breaker looks like from outside.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    /// Requests pass.
    Closed,
    /// Ejected.
    Open {
        /// Until then, in nanoseconds of the caller's clock.
        until: u64,
    },
    /// Its time is over; one request probes it.
    HalfOpen {
        /// That request is on its way.
        probing: bool,
    },
}

/// Why an endpoint is ejected.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Why {
    /// So many failures in a row.
    Failures(u32),
    /// So small a share of successes, in percent.
    SuccessRate(u8),
    /// The probe failed.
    Probe,
}

/// What an outcome led to, for the log and metrics.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    /// The endpoint is ejected.
    Ejected {
        /// For so long.
        lasts: Duration,
        /// Why.
        why: Why,
    },
    /// It should be ejected, and is not: as many as may be are.
    Spared(Why),
    /// It is back.
    Readmitted,
}

/// The breaker of one endpoint, shared by all workers of a sidecar. Every time is nanoseconds of one monotonic clock. While nothing fails, an outcome costs
/// one read; with a success rate, two counts.
#[derive(Debug)]
pub struct Breaker {
    /// The state, in one word.
    word: AtomicU64,
    /// Failures in a row.
    failures: AtomicU32,
    good: Window,
    bad: Window,
    ejections: AtomicU64,
    places: Arc<Ejections>,
}

impl Breaker {
    /// Closed. `places` is shared by all endpoints of the service.
    pub fn new(places: &Arc<Ejections>) -> Self {
        Self {
            word: AtomicU64::new(Word::CLOSED.0),
            failures: AtomicU32::new(0),
            good: Window::default(),
            bad: Window::default(),
            ejections: AtomicU64::new(0),
            places: Arc::clone(places),
        }
    }

    fn load(&self) -> Word {
        Word(self.word.load(Relaxed))
    }

    fn swap(&self, from: Word, to: Word) -> bool {
        self.word.compare_exchange(from.0, to.0, Relaxed, Relaxed).is_ok()
    }

    /// How it stands; claims nothing, so a chooser may ask it of every candidate.
    pub fn state(&self, now: u64) -> State {
        let word = self.load();
        match word.phase() {
            Phase::Closed => State::Closed,
            Phase::Probing => State::HalfOpen { probing: !word.may_be_probed(now) },
            Phase::Open if word.may_be_probed(now) => State::HalfOpen { probing: false },
            Phase::Open => State::Open { until: word.time() },
        }
    }

    /// Whether a request may go to the endpoint that was chosen for it. In half-open, one caller gets the probe.
    pub fn admits(&self, now: u64) -> Admit {
        let word = self.load();
        match word.phase() {
            Phase::Closed => Admit::Yes,
            Phase::Open | Phase::Probing if word.may_be_probed(now) => {
                // With a time of its own: a probe that was given up changes nothing any more.
                let probing = Word::new(Phase::Probing, now, word.level());
                if self.swap(word, probing) { Admit::Probe(Probe(probing)) } else { Admit::No }
            }
            Phase::Open | Phase::Probing => Admit::No,
        }
    }

    /// An attempt that was no probe ended. What was sent before the endpoint was ejected says nothing any more. `random` is any uniformly
    /// distributed number.
    pub fn outcome(&self, now: u64, policy: &Outlier, outcome: Outcome, random: u64) -> Option<Event> {
        let word = self.load();
        if word.phase() != Phase::Closed {
            return None;
        }
        let tick = tick(now, policy);
        match outcome {
            Outcome::Success => {
                if self.failures.load(Relaxed) != 0 {
                    self.failures.store(0, Relaxed);
                }
                if policy.success_rate > 0 {
                    self.good.add(tick);
                }
                None
            }
            Outcome::Failure => {
                let failures = self.failures.fetch_add(1, Relaxed).saturating_add(1);
                if policy.success_rate > 0 {
                    self.bad.add(tick);
                }
                let why = if policy.consecutive_failures > 0 && failures >= policy.consecutive_failures {
                    Why::Failures(failures)
                } else {
                    self.too_few(tick, policy)?
                };
                if !self.places.claim(policy.max_ejected) {
                    return Some(Event::Spared(why));
                }
                let level = word.level_after(now, policy.max_ejection);
                if let Some(lasts) = self.open(word, level, now, policy, random) {
                    return Some(Event::Ejected { lasts, why });
                }
                // Another worker was first.
                self.places.give_back();
                None
            }
        }
    }

    /// Whether too small a share of the window's outcomes are successes. Looked at when one fails: a success makes nothing worse.
    fn too_few(&self, tick: u64, policy: &Outlier) -> Option<Why> {
        if policy.success_rate == 0 {
            return None;
        }
        let (good, bad) = (self.good.sum(tick, SLOTS), self.bad.sum(tick, SLOTS));
        let all = good + bad;
        let below = all >= u64::from(policy.minimum_volume) && good * 100 < u64::from(policy.success_rate) * all;
        below.then(|| Why::SuccessRate((good * 100 / all.max(1)) as u8))
    }

    /// Ejects it from the state `from`; none if it is in another by now.
    fn open(&self, from: Word, level: u32, now: u64, policy: &Outlier, random: u64) -> Option<Duration> {
        let lasts = ejection(policy, level, random);
        let until = now.saturating_add(lasts.as_nanos().try_into().unwrap_or(u64::MAX));
        self.swap(from, Word::new(Phase::Open, until, level + 1)).then(|| {
            self.ejections.fetch_add(1, Relaxed);
            lasts
        })
    }

    /// The probe ended.
    #[expect(clippy::needless_pass_by_value, reason = "a probe ends once")]
    pub fn probed(&self, probe: Probe, now: u64, policy: &Outlier, outcome: Outcome, random: u64) -> Option<Event> {
        match outcome {
            Outcome::Success => {
                // Before it is closed, so that what comes then is counted.
                self.failures.store(0, Relaxed);
                self.good.clear();
                self.bad.clear();
                self.swap(probe.0, Word::new(Phase::Closed, now, probe.0.level())).then(|| {
                    self.places.give_back();
                    Event::Readmitted
                })
            }
            Outcome::Failure => {
                let lasts = self.open(probe.0, probe.0.level(), now, policy, random)?;
                Some(Event::Ejected { lasts, why: Why::Probe })
            }
        }
    }

    /// The probe ended without a word about the endpoint (the caller went away): the next request probes.
    #[expect(clippy::needless_pass_by_value, reason = "a probe ends once")]
    pub fn abandon(&self, probe: Probe) {
        self.swap(probe.0, probe.0.with(Phase::Open));
    }

    /// How often it was ejected.
    pub fn ejections(&self) -> u64 {
        self.ejections.load(Relaxed)
    }

    /// Failures since the last success, while closed.
    pub fn failures(&self) -> u32 {
        self.failures.load(Relaxed)
    }
}

impl Drop for Breaker {
    /// An endpoint that goes while it is ejected leaves its place.
    fn drop(&mut self) {
        if self.load().phase() != Phase::Closed {
            self.places.give_back();
        }
    }
}

/// The slot of the window that `now` lies in.
fn tick(now: u64, policy: &Outlier) -> u64 {
    let slot = policy.window.as_nanos() / u128::from(SLOTS);
    now / u64::try_from(slot).unwrap_or(u64::MAX).max(1)
}

/// How long an ejection lasts that `before` others came before: the base, doubled so often, ± 10 %; never more than the longest.
fn ejection(policy: &Outlier, before: u32, random: u64) -> Duration {
    let max = policy.max_ejection;
    let lasts = doubled(policy.base_ejection, before.min(31)).min(max);
    let shift = lasts.mul_f64(0.1 * unit(random));
    // At the longest, all of the spread lies below it.
    if random & 1 == 1 && lasts.saturating_add(shift) <= max { lasts + shift } else { lasts.saturating_sub(shift) }
}

#[cfg(test)]
mod tests;
