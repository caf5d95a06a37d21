use super::*;
use crate::failure::Reason;
use proptest::prelude::*;

const MS: u64 = 1_000_000;

fn budget(percent: u8, interval: u64, min_per_second: u32) -> RetryBudget {
    RetryBudget { percent, interval: Duration::from_nanos(interval), min_per_second }
}

#[test]
fn a_fifth_of_the_requests_and_what_is_always_allowed() {
    let b = Budget::new(&RetryBudget::default());
    assert_eq!(b.left(0), 100);
    (0..1000).for_each(|_| b.request(0));
    assert_eq!(b.left(0), 300);
    assert_eq!((0..1000).filter(|_| b.take(5)).count(), 300);
    assert_eq!((b.left(5), b.refused()), (0, 700));
    // All of it is past.
    assert_eq!(b.left(30_000 * MS), 100);
}

#[test]
fn nothing_is_repeated_where_nothing_is_allowed() {
    let b = Budget::new(&budget(0, 1000 * MS, 0));
    b.request(1);
    assert!(!b.take(1));
    // An interval of nothing at all is no division by zero.
    let b = Budget::new(&budget(100, 0, u32::MAX));
    b.request(7);
    assert!(b.take(7) && !b.take(7));
    let b = Budget::new(&RetryBudget { percent: 255, interval: Duration::MAX, min_per_second: u32::MAX });
    assert!(b.take(u64::MAX));
}

proptest! {
    // At every repetition the promise of the budget's own documentation, against a list of everything that happened.
    #[test]
    fn over_any_window_repetitions_stay_within_the_share(
        steps in proptest::collection::vec((0u64..400, any::<bool>()), 1..400), percent in 0u8..=100, min in 0u32..8, interval in 100u64..3000,
    ) {
        let policy = budget(percent, interval * MS, min);
        let b = Budget::new(&policy);
        let (mut now, mut requests, mut repeated) = (0, Vec::new(), Vec::new());
        let least = (f64::from(min) * interval as f64 / 1000.0).ceil();
        for (ms, request) in steps {
            now += ms * MS / 4;
            if request {
                b.request(now);
                requests.push(now);
                continue;
            }
            let within = |list: &[u64]| list.iter().filter(|at| **at + interval * MS > now).count() as f64;
            let left = b.left(now);
            let taken = b.take(now);
            prop_assert_eq!(taken, left > 0);
            if taken {
                repeated.push(now);
                prop_assert!(within(&repeated) <= f64::from(percent) / 100.0 * within(&requests) + least);
            } else {
                // It is not refused without need: not even with the slots that it is short of.
                let ninths = |list: &[u64], n: u64| list.iter().filter(|at| **at + interval * MS / 9 * n > now).count() as f64;
                prop_assert!(ninths(&repeated, 10) + 1.0 > (f64::from(percent) / 100.0 * ninths(&requests, 8)).floor() + least);
            }
        }
    }

    #[test]
    fn pauses_begin_at_the_base_and_end_at_the_cap(attempt in any::<u32>(), base in 0u64..10_000, cap in 0u64..10_000, r in any::<u64>()) {
        let (base, cap) = (Duration::from_millis(base), Duration::from_millis(cap));
        let pause = backoff(attempt, base, cap, r);
        prop_assert!(pause >= base && pause <= cap.max(base) && pause <= base + doubled(base, attempt));
        prop_assert_eq!(backoff(attempt, base, cap, 0), base);
    }

}

#[test]
fn many_threads_get_no_more_than_one() {
    for threads in [1, 8] {
        let b = Budget::new(&budget(20, 1000 * MS, 5));
        let taken = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    for _ in 0..8000 / threads {
                        b.request(3);
                        taken.fetch_add(b.take(3).into(), Relaxed);
                    }
                });
            }
        });
        let taken = taken.into_inner();
        assert!(taken <= 8000 / 5 + 5, "{taken}");
        assert!(threads > 1 || taken == 8000 / 5 + 5);
        assert_eq!(u64::from(b.left(3)), 8000 / 5 + 5 - taken);
    }
}

#[test]
fn what_may_be_repeated() {
    let get = RequestFacts { idempotent: true, grpc: false };
    let post = RequestFacts { idempotent: false, grpc: false };
    let call = RequestFacts { idempotent: false, grpc: true };
    let retry = Retry { codes: vec![503, 500], grpc_codes: vec![14], attempts: 2, backoff: None, any_method: false };
    let any = Retry { any_method: true, ..retry.clone() };
    let none = Retry { attempts: 0, ..any.clone() };
    let failed = |retryable| Failure::upstream(Reason::UpstreamReset, retryable);
    let (unprocessed, perhaps, never) = (failed(Retryable::Unprocessed), failed(Retryable::IfIdempotent), failed(Retryable::No));
    let grpc = |status, only| Ending::Grpc { status, only };
    // Without a retry, with one, with one for any method, with one of no attempts.
    let table: &[(RequestFacts, Ending<'_>, [bool; 4])] = &[
        (post, Ending::Failed(&unprocessed), [true, true, true, true]),
        (call, Ending::Failed(&unprocessed), [true, true, true, true]),
        (get, Ending::Failed(&perhaps), [true, true, true, true]),
        (post, Ending::Failed(&perhaps), [false, false, true, false]),
        (call, Ending::Failed(&perhaps), [false, false, true, false]),
        (get, Ending::Failed(&never), [false, false, false, false]),
        (get, Ending::Http(503), [false, true, true, false]),
        (post, Ending::Http(503), [false, false, true, false]),
        (get, Ending::Http(404), [false, false, false, false]),
        (get, Ending::Http(200), [false, false, false, false]),
        (call, Ending::Http(503), [false, true, true, false]),
        (call, Ending::Http(429), [false, true, true, false]),
        (call, Ending::Http(500), [false, false, true, false]),
        (call, Ending::Http(200), [false, false, false, false]),
        (call, grpc(14, true), [false, true, true, false]),
        (call, grpc(14, false), [false, false, false, false]),
        (call, grpc(0, true), [false, false, false, false]),
        (call, grpc(5, true), [false, false, false, false]),
    ];
    for (request, ending, expected) in table {
        let got = [None, Some(&retry), Some(&any), Some(&none)].map(|r| repeats(r, *request, *ending));
        assert_eq!(got, *expected, "{request:?} {ending:?}");
    }
}
