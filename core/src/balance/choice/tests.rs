use super::*;
use crate::balance::PeakEwma;
use proptest::prelude::*;
use std::time::Duration;

const MS: u64 = 1_000_000;

// One call after the other, as a small shop has it: nobody is left out.
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

// Candidates as lists.
#[derive(Clone, Debug, Default)]
struct Listed {
    standing: Vec<Standing>,
    tried: Vec<usize>,
    load: Vec<u32>,
    weight: Vec<f64>,
}

impl Listed {
    fn well(count: usize) -> Self {
        Self { standing: vec![Standing::Well; count], load: vec![1; count], weight: vec![1.0; count], tried: Vec::new() }
    }

    fn shares(&self, chooser: &Chooser, key: Option<u64>, rounds: u32) -> Vec<f64> {
        let (mut counts, mut numbers) = (vec![0; self.count()], stream(11));
        for _ in 0..rounds {
            counts[chooser.choose(self, key, &mut numbers).expect("there is one")] += 1;
        }
        counts.iter().map(|n| f64::from(*n) / f64::from(rounds)).collect()
    }
}

impl Candidates for Listed {
    fn count(&self) -> usize {
        self.standing.len()
    }
    fn avoid(&self, i: usize) -> bool {
        self.tried.contains(&i)
    }
    fn standing(&self, i: usize) -> Standing {
        self.standing[i]
    }
    fn load(&self, i: usize) -> f64 {
        self.load[i].into()
    }
    fn in_flight(&self, i: usize) -> u32 {
        self.load[i]
    }
    fn weight(&self, i: usize) -> f64 {
        self.weight[i]
    }
}

fn endpoints(count: usize) -> Vec<SocketAddr> {
    (0..count).map(|i| SocketAddr::from(([10, 1, (i >> 8) as u8, i as u8], 80))).collect()
}

// One of each kind.
fn choosers(count: usize) -> Vec<Chooser> {
    use crate::traffic::policy::HashKey::Source;
    let kinds = [
        Balancer::P2cEwma,
        Balancer::LeastRequest,
        Balancer::RoundRobin,
        Balancer::Random,
        Balancer::RingHash(Source),
        Balancer::Maglev(Source),
    ];
    kinds.iter().map(|kind| Chooser::new(kind, &endpoints(count), 3)).collect()
}

#[test]
fn equals_get_equal_shares() {
    for count in [3, 40] {
        for chooser in choosers(count) {
            let shares = Listed::well(count).shares(&chooser, None, 40_000);
            assert!(shares.iter().all(|s| (0.8..1.2).contains(&(s * count as f64))), "{chooser:?}: {shares:?}");
        }
    }
}

#[test]
fn in_turn_is_exactly_in_turn() {
    let (among, chooser) = (Listed::well(5), Chooser::RoundRobin(AtomicU32::new(0)));
    let chosen: Vec<_> = (0..10).map(|_| chooser.choose(&among, None, || 1)).collect();
    assert_eq!(chosen, (0..10).map(|i| Some(i % 5)).collect::<Vec<_>>());
    let threads = 8;
    let counts: Vec<AtomicU32> = (0..5).map(|_| AtomicU32::new(0)).collect();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                for _ in 0..1000 {
                    let i = chooser.choose(&among, None, || 1).expect("there are five");
                    counts[i].fetch_add(1, Relaxed);
                }
            });
        }
    });
    assert!(counts.into_iter().all(|n| n.into_inner() == threads * 1000 / 5));
}

#[test]
fn fewer_requests_in_flight_win_and_the_new_get_less() {
    let mut among = Listed { load: vec![9, 2, 9], ..Listed::well(3) };
    let shares = among.shares(&Chooser::LeastRequest, None, 9000);
    // It wins whenever it is drawn: two times in three.
    assert!((shares[1] - 2.0 / 3.0).abs() < 0.02, "{shares:?}");
    among = Listed { weight: vec![0.1, 1.0, 1.0, 1.0], ..Listed::well(4) };
    for chooser in [Chooser::RoundRobin(AtomicU32::new(0)), Chooser::Random] {
        let shares = among.shares(&chooser, None, 20_000);
        assert!((0.02..0.05).contains(&shares[0]), "{chooser:?}: {shares:?}");
    }
    for chooser in [Chooser::P2cEwma, Chooser::LeastRequest] {
        assert!(among.shares(&chooser, None, 2000)[0] < 0.01);
    }
}

#[test]
fn a_key_stays_and_comes_back() {
    for chooser in &choosers(20)[4..] {
        let well = Listed::well(20);
        for key in 0..200u64 {
            let key = crate::balance::hash64(&key.to_le_bytes(), 0);
            let at = |among: &Listed| chooser.choose(among, Some(key), || 1).expect("there are twenty");
            let own = at(&well);
            let mut ill = well.clone();
            ill.standing[own] = Standing::Out;
            let second = at(&ill);
            assert!(second != own && at(&ill) == second && at(&well) == own);
            // Who is ill elsewhere does not matter.
            let mut other = well.clone();
            other.standing[(own + 1) % 20] = Standing::Out;
            other.tried = vec![(own + 2) % 20];
            assert_eq!(at(&other), own);
        }
        // What belonged to one goes to several, not to a neighbour alone.
        let mut ill = well.clone();
        ill.standing[7] = Standing::Out;
        let moved: std::collections::BTreeSet<_> = (0..2000u64)
            .map(|k| crate::balance::hash64(&k.to_le_bytes(), 1))
            .filter(|k| chooser.choose(&well, Some(*k), || 1) == Some(7))
            .map(|k| chooser.choose(&ill, Some(k), || 1))
            .collect();
        assert!(moved.len() > 8, "{moved:?}");
    }
}

#[test]
fn a_probe_is_tried_at_once() {
    for chooser in &choosers(4)[..2] {
        let mut among = Listed::well(4);
        among.standing[2] = Standing::Probe;
        assert_eq!(chooser.choose(&among, None, || 1), Some(2));
        among.tried = vec![2];
        assert_ne!(chooser.choose(&among, None, || 1), Some(2));
    }
}

proptest! {
    // Whatever the way of choosing: nobody gets a request while somebody of a better rank is there.
    #[test]
    fn the_best_that_is_there(
        kinds in proptest::collection::vec(0u8..4, 0..60), tried in proptest::collection::vec(0usize..60, 0..40), seed in any::<u64>(), key in any::<Option<u64>>(),
    ) {
        let mut among = Listed::well(kinds.len());
        among.standing = kinds.iter().map(|k| [Standing::Well, Standing::Suspect, Standing::Probe, Standing::Out][usize::from(*k)]).collect();
        among.tried = tried;
        let worth = |i: usize| match (among.standing(i), among.avoid(i)) {
            (Standing::Out, _) | (Standing::Probe, true) => 3,
            (_, true) => 2,
            (Standing::Suspect, false) => 1,
            (Standing::Well | Standing::Probe, false) => 0,
        };
        let best = (0..kinds.len()).map(worth).min();
        for chooser in choosers(kinds.len()) {
            // Never on trial.
            let mut numbers = stream(seed);
            let random = move || { let n = numbers(); if n.is_multiple_of(50) { n + 1 } else { n } };
            prop_assert_eq!(chooser.choose(&among, key, random).map(worth), best, "{:?}", chooser);
        }
    }
}
