use super::*;
use crate::failure::{Failure, Reason, Retryable};
use proptest::prelude::*;

const SEC: u64 = 1_000_000_000;

fn policy() -> Outlier {
    Outlier { consecutive_failures: 3, ..Outlier::default() }
}

fn one_of(endpoints: u32) -> (Arc<Ejections>, Breaker) {
    let places = Arc::new(Ejections::new(endpoints));
    let breaker = Breaker::new(&places);
    (places, breaker)
}

// Fails until it is ejected; how long that lasts.
fn eject(breaker: &Breaker, now: u64, policy: &Outlier) -> Duration {
    for _ in 0..policy.consecutive_failures {
        if let Some(Event::Ejected { lasts, .. }) = breaker.outcome(now, policy, Outcome::Failure, 0) {
            return lasts;
        }
    }
    panic!("it was not ejected: {breaker:?}");
}

fn probe(breaker: &Breaker, now: u64) -> Probe {
    match breaker.admits(now) {
        Admit::Probe(probe) => probe,
        other => panic!("{other:?} at {now}: {breaker:?}"),
    }
}

fn is_about(lasts: Duration, seconds: f64) -> bool {
    (0.9 * seconds..=1.1 * seconds).contains(&lasts.as_secs_f64())
}

#[test]
fn it_opens_probes_and_closes() {
    let (policy, (places, b)) = (policy(), one_of(2));
    b.outcome(0, &policy, Outcome::Failure, 0);
    b.outcome(0, &policy, Outcome::Failure, 0);
    b.outcome(0, &policy, Outcome::Success, 0);
    assert_eq!((b.failures(), b.admits(0)), (0, Admit::Yes));
    assert!(is_about(eject(&b, SEC, &policy), 10.0));
    assert_eq!((places.held(), b.ejections(), b.admits(5 * SEC)), (1, 1, Admit::No));
    // What comes late says nothing.
    assert_eq!(b.outcome(5 * SEC, &policy, Outcome::Success, 0), None);
    assert!(matches!(b.state(5 * SEC), State::Open { .. }));
    assert_eq!(b.state(20 * SEC), State::HalfOpen { probing: false });
    let first = probe(&b, 20 * SEC);
    assert_eq!((b.admits(20 * SEC), b.state(20 * SEC)), (Admit::No, State::HalfOpen { probing: true }));
    b.abandon(first);
    let second = probe(&b, 20 * SEC);
    let again = b.probed(second, 20 * SEC, &policy, Outcome::Failure, u64::MAX);
    assert!(matches!(again, Some(Event::Ejected { lasts, why: Why::Probe }) if is_about(lasts, 20.0)), "{again:?}");
    let third = probe(&b, 50 * SEC);
    assert_eq!(b.probed(third, 50 * SEC, &policy, Outcome::Success, 0), Some(Event::Readmitted));
    assert_eq!((b.state(50 * SEC), places.held(), b.failures()), (State::Closed, 0, 0));
}

#[test]
fn times_double_up_to_the_longest_and_shrink_after_a_good_time() {
    let (policy, (_, b)) = (policy(), one_of(2));
    let mut now = SEC;
    let mut lasts = eject(&b, now, &policy);
    for expected in [10.0, 20.0, 40.0, 80.0, 160.0, 300.0, 300.0] {
        assert!(is_about(lasts, expected) && lasts <= policy.max_ejection, "{lasts:?} is not about {expected} s");
        now += 400 * SEC;
        let probe = probe(&b, now);
        match b.probed(probe, now, &policy, Outcome::Failure, 1 << 63 | 1) {
            Some(Event::Ejected { lasts: next, .. }) => lasts = next,
            other => panic!("{other:?}"),
        }
    }
    // Seven doublings now; back, well for a moment, and ill again: none is forgotten.
    let close = |now| assert_eq!(b.probed(probe(&b, now), now, &policy, Outcome::Success, 0), Some(Event::Readmitted));
    close(now + 400 * SEC);
    assert!(is_about(eject(&b, now + 410 * SEC, &policy), 300.0));
    // Nine now, of which each five minutes forget one.
    close(now + 1000 * SEC);
    assert!(is_about(eject(&b, now + 1000 * SEC + 7 * 300 * SEC + SEC, &policy), 40.0));
    now += 4000 * SEC;
    close(now);
    assert!(is_about(eject(&b, now + 3600 * SEC, &policy), 10.0));
}

#[test]
fn a_small_share_of_successes_ejects_once_there_are_enough_answers() {
    let policy = Outlier { consecutive_failures: 0, success_rate: 80, minimum_volume: 20, ..Outlier::default() };
    let (_, b) = one_of(2);
    // Three of four are well, which is too few; but nineteen are too few to tell.
    let mut events = (0..20u64).map(|i| {
        let outcome = if i % 4 == 3 { Outcome::Failure } else { Outcome::Success };
        b.outcome(i * SEC / 10, &policy, outcome, 0)
    });
    assert!(events.by_ref().take(19).all(|e| e.is_none()));
    assert!(matches!(events.next(), Some(Some(Event::Ejected { why: Why::SuccessRate(75), .. }))));
    // What is out of the window does not count.
    let (_, b) = one_of(2);
    for i in 0..200 {
        assert_eq!(b.outcome(i * SEC, &policy, Outcome::Failure, 0), None);
    }
}

#[test]
fn not_all_are_ejected_and_who_goes_leaves_the_place() {
    let policy = policy();
    let places = Arc::new(Ejections::new(4));
    let mut breakers: Vec<Breaker> = (0..4).map(|_| Breaker::new(&places)).collect();
    eject(&breakers[0], 0, &policy);
    eject(&breakers[1], 0, &policy);
    for _ in 0..3 {
        assert!(matches!(breakers[2].outcome(0, &policy, Outcome::Failure, 0), None | Some(Event::Spared(Why::Failures(3)))));
    }
    assert_eq!((breakers[2].admits(0), places.held()), (Admit::Yes, 2));
    breakers.remove(0);
    assert_eq!(places.held(), 1);
    let again = breakers[1].outcome(0, &policy, Outcome::Failure, 0);
    assert!(matches!(again, Some(Event::Ejected { .. })), "{again:?}");
    for (endpoints, percent, ceiling) in
        [(0, 50, 0), (1, 50, 0), (1, 99, 0), (1, 100, 1), (2, 50, 1), (3, 99, 2), (3, 10, 0), (10, 10, 1), (7, 100, 7)]
    {
        places.set_endpoints(endpoints);
        assert_eq!(places.ceiling(percent), ceiling, "{percent} % of {endpoints}");
    }
}

#[test]
fn what_an_end_says_of_the_endpoint() {
    let gateway = Outlier::default();
    let any = Outlier { failures: FailureKind::Any5xx, ..Outlier::default() };
    let endpoint = Failure::upstream(Reason::UpstreamReset, Retryable::No);
    let (mesh, caller) = (Failure::mesh(Reason::Overloaded), Failure::downstream(Reason::DownstreamGone));
    let (good, bad) = (Some(Outcome::Success), Some(Outcome::Failure));
    for (ending, expected) in [
        (Ending::Failed(&endpoint), [bad, bad]),
        (Ending::Failed(&mesh), [None, None]),
        (Ending::Failed(&caller), [None, None]),
        (Ending::Http(200), [good, good]),
        (Ending::Http(404), [good, good]),
        (Ending::Http(500), [good, bad]),
        (Ending::Http(503), [bad, bad]),
        (Ending::Grpc { status: 0, only: false }, [good, good]),
        (Ending::Grpc { status: 5, only: true }, [good, good]),
        (Ending::Grpc { status: 14, only: false }, [bad, bad]),
    ] {
        assert_eq!([&gateway, &any].map(|p| Outcome::of(p, ending)), expected, "{ending:?}");
    }
}

#[test]
fn threads_eject_no_more_than_may_be_and_send_one_probe() {
    for threads in [1, 8] {
        let policy = policy();
        let places = Arc::new(Ejections::new(9));
        let breakers: Vec<Breaker> = (0..9).map(|_| Breaker::new(&places)).collect();
        let (ejected, probes) = (AtomicU32::new(0), AtomicU32::new(0));
        let all = |work: &(dyn Fn(&Breaker) + Sync)| {
            std::thread::scope(|scope| {
                for _ in 0..threads {
                    scope.spawn(|| (0..50).for_each(|_| breakers.iter().for_each(work)));
                }
            });
        };
        all(&|b| {
            if let Some(Event::Ejected { .. }) = b.outcome(SEC, &policy, Outcome::Failure, 7) {
                ejected.fetch_add(1, Relaxed);
            }
        });
        let open = breakers.iter().filter(|b| b.state(SEC) != State::Closed).count() as u32;
        assert_eq!((open, places.held(), ejected.into_inner()), (4, 4, 4));
        let held = std::sync::Mutex::new(Vec::new());
        all(&|b| {
            if let Admit::Probe(probe) = b.admits(100 * SEC) {
                probes.fetch_add(1, Relaxed);
                held.lock().expect("nobody panics").push(probe);
            }
        });
        assert_eq!(probes.into_inner(), 4);
    }
}

#[test]
fn a_probe_that_says_nothing_is_not_waited_for() {
    let (policy, (places, b)) = (policy(), one_of(2));
    eject(&b, 0, &policy);
    let silent = probe(&b, 20 * SEC);
    assert_eq!((b.admits(29 * SEC), b.state(29 * SEC)), (Admit::No, State::HalfOpen { probing: true }));
    assert_eq!(b.state(30 * SEC), State::HalfOpen { probing: false });
    let second = probe(&b, 30 * SEC);
    assert_eq!(b.admits(30 * SEC), Admit::No);
    // What it has to say now is of no interest.
    assert_eq!(b.probed(silent, 31 * SEC, &policy, Outcome::Failure, 0), None);
    assert_eq!((b.state(31 * SEC), places.held()), (State::HalfOpen { probing: true }, 1));
    assert_eq!(b.probed(second, 32 * SEC, &policy, Outcome::Success, 0), Some(Event::Readmitted));
    assert_eq!((b.state(32 * SEC), places.held()), (State::Closed, 0));
    // Of one that nobody followed, it counts however late it comes.
    eject(&b, 40 * SEC, &policy);
    let late = probe(&b, 100 * SEC);
    assert_eq!(b.probed(late, 200 * SEC, &policy, Outcome::Success, 0), Some(Event::Readmitted));
}

// The same, written down plainly.
#[derive(Default)]
struct Naive {
    // Until when it is open.
    open: Option<u64>,
    // Since when somebody probes.
    probing: Option<u64>,
    row: u32,
    level: u32,
    closed: u64,
    outcomes: Vec<(u64, bool)>,
}

impl Naive {
    fn probes(&self, now: u64) -> bool {
        self.probing.is_some_and(|since| now < since + 10 * SEC)
    }

    fn should_eject(&self, now: u64, policy: &Outlier) -> bool {
        let slot = policy.window.as_nanos() as u64 / 10;
        let seen: Vec<bool> = self.outcomes.iter().filter(|(at, _)| now / slot - at / slot < 10).map(|(_, good)| *good).collect();
        let good = seen.iter().filter(|good| **good).count() as u64;
        let low = policy.success_rate > 0
            && seen.len() as u64 >= u64::from(policy.minimum_volume)
            && good * 100 < seen.len() as u64 * u64::from(policy.success_rate);
        low || (policy.consecutive_failures > 0 && self.row >= policy.consecutive_failures)
    }

    fn opens(&mut self, now: u64, lasts: Duration, policy: &Outlier) -> bool {
        let factor = 2.0_f64.powi(self.level.min(31).cast_signed());
        let expected = (policy.base_ejection.as_secs_f64() * factor).min(policy.max_ejection.as_secs_f64());
        self.open = Some((now + lasts.as_nanos() as u64) & !0xff);
        self.probing = None;
        self.level = (self.level + 1).min(63);
        is_about(lasts, expected) && lasts <= policy.max_ejection
    }
}

proptest! {
    #[test]
    fn it_does_what_the_plain_one_does(
        steps in proptest::collection::vec((0u64..40, 0u8..8, any::<u64>()), 1..300), row in 0u32..5, rate in 0u8..=100, volume in 0u32..8,
    ) {
        let policy = Outlier {
            consecutive_failures: row, success_rate: rate, minimum_volume: volume, base_ejection: Duration::from_secs(1),
            max_ejection: Duration::from_secs(16), ..Outlier::default()
        };
        let ((places, b), mut naive, mut probe, mut now) = (one_of(2), Naive::default(), None, 0);
        for (on, what, random) in steps {
            // Whole multiples of what a word can hold, and now and then a long time.
            now += (on * on * 5_000_000) & !0xff;
            match what {
                0..5 => {
                    let good = what > 2;
                    let outcome = if good { Outcome::Success } else { Outcome::Failure };
                    let event = b.outcome(now, &policy, outcome, random);
                    if naive.open.is_some() {
                        prop_assert_eq!(event, None);
                        continue;
                    }
                    naive.row = if good { 0 } else { naive.row + 1 };
                    naive.outcomes.push((now, good));
                    if !good && naive.should_eject(now, &policy) {
                        naive.level -= naive.level.min(((now - naive.closed) / policy.max_ejection.as_nanos() as u64) as u32);
                        match event {
                            Some(Event::Ejected { lasts, .. }) => prop_assert!(naive.opens(now, lasts, &policy)),
                            other => prop_assert!(false, "{:?}", other),
                        }
                    } else {
                        prop_assert_eq!(event, None);
                    }
                }
                5 => match (b.admits(now), naive.open) {
                    (Admit::Yes, None) => {}
                    (Admit::No, Some(until)) => prop_assert!(now < until || naive.probes(now)),
                    (Admit::Probe(p), Some(until)) => {
                        prop_assert!(now >= until && !naive.probes(now));
                        (naive.probing, probe) = (Some(now), Some(p));
                    }
                    (admit, open) => prop_assert!(false, "{:?} {:?}", admit, open),
                },
                _ => if let Some(p) = probe.take() {
                    match random % 3 {
                        0 => { b.abandon(p); (naive.open, naive.probing) = (naive.probing, None); }
                        1 => match b.probed(p, now, &policy, Outcome::Failure, random) {
                            Some(Event::Ejected { lasts, why: Why::Probe }) => prop_assert!(naive.opens(now, lasts, &policy)),
                            other => prop_assert!(false, "{:?}", other),
                        },
                        _ => {
                            prop_assert_eq!(b.probed(p, now, &policy, Outcome::Success, random), Some(Event::Readmitted));
                            naive = Naive { level: naive.level, closed: now, ..Naive::default() };
                        }
                    }
                },
            }
            let state = match naive.open {
                None => State::Closed,
                Some(until) if naive.probing.is_none() && now < until => State::Open { until },
                Some(_) => State::HalfOpen { probing: naive.probes(now) },
            };
            prop_assert_eq!(b.state(now), state);
            prop_assert_eq!(places.held(), u32::from(naive.open.is_some()));
        }
    }

    #[test]
    fn no_figures_make_it_panic(now in any::<u64>(), base in any::<u64>(), max in any::<u64>(), window in any::<u64>(), random in any::<u64>()) {
        let policy = Outlier {
            base_ejection: Duration::from_secs(base), max_ejection: Duration::from_secs(max), window: Duration::from_nanos(window),
            consecutive_failures: 1, success_rate: 255, minimum_volume: 0, max_ejected: 255, ..Outlier::default()
        };
        let (_, b) = one_of(1);
        let event = b.outcome(now, &policy, Outcome::Failure, random);
        prop_assert!(matches!(event, Some(Event::Ejected { lasts, .. }) if lasts <= policy.max_ejection), "{:?}", event);
    }
}
