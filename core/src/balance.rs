//! Which endpoint gets the next request: power of two choices over peak-sensitive moving averages.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use smallvec::SmallVec;

/// The load of one endpoint, shared by all workers of a sidecar. Every operation is a plain atomic; a race
/// between two workers loses at most one sample.
#[derive(Debug)]
pub struct PeakEwma {
    /// Moving average of latency in nanoseconds, as the bits of an `f64`; 0 until the first answer.
    average: AtomicU64,
    /// When it was last moved, in nanoseconds of the caller's clock.
    stamp: AtomicU64,
    in_flight: AtomicU32,
    /// Failures in a row.
    failures: AtomicU32,
}

/// The time in which a sample loses about two thirds of its weight.
pub const DECAY: Duration = Duration::from_secs(10);
/// No endpoint counts as faster than this: one that has not answered yet is tried soon, and so is one that was not used for long, but
/// neither looks free however much it has in flight.
const FLOOR: Duration = Duration::from_micros(100);
/// What a failure counts as, so that an endpoint that fails fast does not look fast.
const FAILURE_PENALTY: Duration = Duration::from_secs(5);

impl PeakEwma {
    /// A fresh endpoint. `now` is nanoseconds of any monotonic clock, the same in every call.
    pub fn new(now: u64) -> Self {
        Self { average: AtomicU64::new(0), stamp: AtomicU64::new(now), in_flight: AtomicU32::new(0), failures: AtomicU32::new(0) }
    }

    /// The expected cost of one more request: latency times the queue that it would join.
    pub fn load(&self, now: u64) -> f64 {
        self.decayed(now, 0.0).max(FLOOR.as_nanos() as f64) * (f64::from(self.in_flight.load(Relaxed)) + 1.0)
    }

    fn decayed(&self, now: u64, sample: f64) -> f64 {
        let average = f64::from_bits(self.average.load(Relaxed));
        let age = now.saturating_sub(self.stamp.load(Relaxed)) as f64;
        let weight = (-age / DECAY.as_nanos() as f64).exp();
        average * weight + sample * (1.0 - weight)
    }

    /// A request was sent.
    pub fn begin(&self) {
        self.in_flight.fetch_add(1, Relaxed);
    }

    /// A request that was begun is over, or was abandoned.
    pub fn end(&self) {
        self.in_flight.fetch_sub(1, Relaxed);
    }

    /// The endpoint began to answer after `latency`, or took a connection: what failed before is past.
    pub fn answer(&self, now: u64, latency: Duration) {
        self.failures.store(0, Relaxed);
        self.sample(now, latency.as_nanos() as f64);
    }

    /// A request that was begun failed by the endpoint's fault.
    pub fn fail(&self, now: u64) {
        self.in_flight.fetch_sub(1, Relaxed);
        self.failures.fetch_add(1, Relaxed);
        self.sample(now, FAILURE_PENALTY.as_nanos() as f64);
    }

    /// A peak moves the average at once, anything below it only slowly.
    fn sample(&self, now: u64, sample: f64) {
        let average = f64::from_bits(self.average.load(Relaxed));
        let next = if sample > average { sample } else { self.decayed(now, sample) };
        self.average.store(next.to_bits(), Relaxed);
        self.stamp.store(now, Relaxed);
    }

    /// Requests that were begun and have not ended.
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Relaxed)
    }

    /// Failures since the last success.
    pub fn failures(&self) -> u32 {
        self.failures.load(Relaxed)
    }
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

/// Draws before every candidate is looked at in turn.
const DRAWS: usize = 8;
/// So few candidates are looked at in turn at once.
const FEW: usize = 16;

/// Chooses among `count` candidates by power of two choices; none if there is none.
///
/// `avoid` names those that failed for this request already: they are taken only when nothing else is there. `suspect` names those that
/// keep failing: likewise, but for what `random` lets through on trial. The cost does not grow with `count` while most are well.
pub fn choose(
    count: usize,
    mut random: impl FnMut() -> u64,
    avoid: impl Fn(usize) -> bool,
    suspect: impl Fn(usize) -> bool,
    load: impl Fn(usize) -> f64,
) -> Option<usize> {
    if count > FEW {
        let mut first = None;
        for _ in 0..DRAWS {
            let drawn = (random() % count as u64) as usize;
            if avoid(drawn) || first == Some(drawn) {
                continue;
            }
            if suspect(drawn) {
                // By its load it would lose to any other, and never be well again.
                if on_trial(random()) {
                    return Some(drawn);
                }
                continue;
            }
            match first {
                None => first = Some(drawn),
                Some(first) => return Some(if load(drawn) < load(first) { drawn } else { first }),
            }
        }
    }
    let mut fit: SmallVec<[usize; 16]> = (0..count).filter(|i| !avoid(*i)).collect();
    if fit.is_empty() {
        fit.extend(0..count);
    }
    // Each is asked once: another worker may change the answer at any time.
    let (mut well, mut tried) = (SmallVec::<[usize; 16]>::new(), None);
    for i in &fit {
        match suspect(*i) {
            false => well.push(*i),
            true if on_trial(random()) => tried = Some(*i),
            true => {}
        }
    }
    if !well.is_empty() {
        if tried.is_some() {
            return tried;
        }
        fit = well;
    }
    pick_p2c(&fit, random(), |i| load(*i)).map(|chosen| fit[chosen])
}

/// One in fifty asks a suspect whether it is well again.
fn on_trial(random: u64) -> bool {
    random.is_multiple_of(50)
}

/// The candidate that a client stays with: highest random weight. A client moves only if its own endpoint goes, or one comes that is
/// its new highest. None if there is no candidate.
pub fn rendezvous(client: IpAddr, candidates: impl Iterator<Item = IpAddr>) -> Option<usize> {
    let weight = |endpoint: IpAddr| mix(mix(0x9e37_79b9_7f4a_7c15, client), endpoint);
    candidates.enumerate().max_by_key(|(_, endpoint)| (weight(*endpoint), *endpoint)).map(|(i, _)| i)
}

fn mix(seed: u64, ip: IpAddr) -> u64 {
    let bits = match ip {
        IpAddr::V4(v4) => u128::from(v4.to_bits()),
        IpAddr::V6(v6) => v6.to_bits(),
    };
    [bits as u64, (bits >> 64) as u64].into_iter().fold(seed, |state, word| {
        // The finalizer of splitmix64.
        let mut x = state ^ word.wrapping_add(0x9e37_79b9_7f4a_7c15);
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn a_peak_counts_at_once_and_fades() {
        let e = PeakEwma::new(0);
        e.answer(MS, Duration::from_secs(1));
        let peak = e.load(MS);
        assert!(peak >= 1e9);
        assert!(e.load(MS + 30_000 * MS) < peak / 10.0);
    }

    #[test]
    fn one_that_fails_fast_does_not_look_fast() {
        let (bad, good) = (PeakEwma::new(0), PeakEwma::new(0));
        for i in 1..5 {
            bad.begin();
            bad.fail(i * MS);
            good.answer(i * MS, Duration::from_millis(40));
        }
        assert!(bad.load(5 * MS) > 10.0 * good.load(5 * MS));
        assert_eq!(bad.failures(), 4);
        assert_eq!(bad.in_flight(), 0);
    }

    #[test]
    fn who_never_answered_is_tried_soon_and_nothing_looks_free() {
        let (used, fresh) = (PeakEwma::new(0), PeakEwma::new(0));
        used.answer(MS, Duration::from_millis(2));
        assert!(fresh.load(MS) < used.load(MS));
        fresh.answer(MS, Duration::from_millis(3));
        assert!(fresh.load(MS) > used.load(MS));
        // An hour later its queue still counts.
        let hour = 3_600_000 * MS;
        let idle = used.load(hour);
        used.begin();
        assert!(used.load(hour) > 1.9 * idle && idle > 0.0);
    }

    /// One call after the other, as a small shop has it: nobody is left out.
    #[test]
    fn every_endpoint_gets_its_share_of_calls_that_come_one_by_one() {
        let ends: Vec<PeakEwma> = (0..3).map(|_| PeakEwma::new(0)).collect();
        let (mut counts, mut numbers) = ([0; 3], stream(7));
        for i in 0..60u64 {
            let now = i * 5 * MS;
            let chosen = choose(3, &mut numbers, |_| false, |_| false, |i| ends[i].load(now)).expect("there are three");
            ends[chosen].begin();
            ends[chosen].answer(now + MS, Duration::from_micros(900 + 100 * chosen as u64));
            ends[chosen].end();
            counts[chosen] += 1;
        }
        assert!(counts.iter().all(|n| *n > 0), "{counts:?}");
    }

    #[test]
    fn the_idle_one_of_two_is_taken() {
        let ends = [PeakEwma::new(0), PeakEwma::new(0)];
        ends[0].begin();
        for r in [0, 7, u64::MAX, 0x0123_4567_89ab_cdef] {
            assert_eq!(pick_p2c(&ends, r, |e| e.load(1)), Some(1));
        }
    }

    fn stream(seed: u64) -> impl FnMut() -> u64 {
        let mut x = seed | 1;
        move || {
            x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            x ^ (x >> 33)
        }
    }

    #[test]
    fn clients_spread_and_move_only_with_their_endpoint() {
        let endpoint = |i: u8| IpAddr::from([10, 0, 1, i]);
        let at = |c: u16, without: Option<u8>| {
            let list: Vec<u8> = (0..10).filter(|i| Some(*i) != without).collect();
            let [hi, lo] = c.to_be_bytes();
            rendezvous(IpAddr::from([10, 9, hi, lo]), list.iter().map(|i| endpoint(*i))).map(|i| list[i])
        };
        let mut counts = [0; 10];
        for client in 0..1000 {
            let chosen = at(client, None).expect("there are ten");
            counts[usize::from(chosen)] += 1;
            for gone in 0..10 {
                if gone != chosen {
                    assert_eq!(at(client, Some(gone)), Some(chosen));
                }
            }
        }
        assert!(counts.iter().all(|n| (50..=160).contains(n)), "{counts:?}");
        assert_eq!(rendezvous(endpoint(1), std::iter::empty()), None);
    }

    proptest! {
        #[test]
        fn what_failed_is_chosen_only_when_nothing_else_is_there(
            count in 0usize..200, avoided in proptest::collection::btree_set(0usize..200, 0..200),
            ill in proptest::collection::btree_set(0usize..200, 0..200), seed in any::<u64>(),
        ) {
            // Never on trial: numbers that fifty divides are replaced.
            let mut numbers = stream(seed);
            let random = move || { let n = numbers(); if n.is_multiple_of(50) { n + 1 } else { n } };
            let chosen = choose(count, random, |i| avoided.contains(&i), |i| ill.contains(&i), |_| 1.0);
            let any = |f: &dyn Fn(usize) -> bool| (0..count).any(f);
            match chosen {
                None => prop_assert_eq!(count, 0),
                Some(i) => {
                    prop_assert!(i < count);
                    prop_assert!(!avoided.contains(&i) || !any(&|j| !avoided.contains(&j)));
                    if !avoided.contains(&i) && ill.contains(&i) {
                        prop_assert!(!any(&|j| !avoided.contains(&j) && !ill.contains(&j)));
                    }
                }
            }
        }

        #[test]
        fn the_choice_is_in_range_and_never_the_worst_of_all(loads in proptest::collection::vec(0.0f64..1e9, 0..50), r in any::<u64>()) {
            match pick_p2c(&loads, r, |l| *l) {
                None => prop_assert!(loads.is_empty()),
                Some(i) => {
                    prop_assert!(i < loads.len());
                    let worst = loads.iter().copied().fold(f64::MIN, f64::max);
                    let worst_count = loads.iter().filter(|l| **l >= worst).count();
                    prop_assert!(loads.len() == 1 || worst_count > 1 || loads[i] < worst);
                }
            }
        }
    }
}
