use super::*;
use crate::identity::SpiffeId;
use proptest::prelude::*;
use std::net::IpAddr;

const SEC: u64 = 1_000_000_000;

fn per_second(requests: u32, burst: u32) -> Rate {
    Rate::new(requests, Duration::from_secs(1), burst)
}

fn address(i: u32) -> Caller {
    Caller::Address(IpAddr::V4(i.into()))
}

fn identity(i: u32) -> Caller {
    let id: SpiffeId = format!("spiffe://mesh/ns/n/sa/a{i}").parse().expect("it is one");
    Caller::Identity(id)
}

#[test]
fn a_burst_and_then_its_rate_without_drift() {
    // A third of a second is no whole number of nanoseconds.
    let (bucket, rate) = (Bucket::new(), per_second(3, 5));
    let mut now = 7;
    assert_eq!((0..9).filter(|_| bucket.take(now, &rate).is_ok()).count(), 5);
    for k in 1..=100_000u64 {
        let wait = bucket.take(now, &rate).expect_err("it is empty");
        now += wait.as_nanos() as u64;
        assert_eq!(bucket.take(now, &rate), Ok(()));
        assert!(now.abs_diff(7 + k * SEC / 3) <= 4, "the {k}th comes at {now}");
    }
}

#[test]
fn two_at_the_turn_of_an_hour_are_still_two_in_an_hour() {
    let (bucket, rate, hour) = (Bucket::new(), Rate::new(1, Duration::from_secs(3600), 1), 3600 * SEC);
    assert!(bucket.take(hour - 1, &rate).is_ok());
    let wait = bucket.take(hour + 1, &rate).expect_err("one an hour");
    assert!(wait > Duration::from_secs(3599) && wait <= Duration::from_secs(3600));
}

#[test]
fn a_bucket_of_another_rate_is_at_worst_empty() {
    let (bucket, fast, slow) = (Bucket::new(), per_second(1000, 10), Rate::new(7, Duration::from_secs(10), 2));
    let day = 86_400 * SEC;
    for (rate, other) in [(&fast, &slow), (&slow, &fast)] {
        while bucket.take(day, rate).is_ok() {}
        let wait = bucket.take(day, other).err().unwrap_or_default();
        assert!(wait <= Duration::from_secs(23), "{wait:?}");
    }
}

proptest! {
    // Against a bucket that is filled in whole numbers: a level in requests × `per`.
    #[test]
    fn it_does_what_a_plain_bucket_does(
        steps in proptest::collection::vec(0u64..5_000_000_000, 1..300), requests in 1u32..2000, per in 1u64..100_000, burst in 1u32..50,
    ) {
        let per = per * 1_000_000;
        let (bucket, rate) = (Bucket::new(), Rate::new(requests, Duration::from_nanos(per), burst));
        let (per, requests) = (i128::from(per), i128::from(requests));
        // Two units of time: what a bucket may be wrong by, now and ever.
        let slack = 2 * requests.max((per >> rate.shift) + 1);
        let (mut now, mut level) = (0, per * i128::from(burst));
        for step in steps {
            // Mostly about as often as it allows.
            let on = step % (3 * per as u64 / requests as u64 + 1);
            now += on;
            level = (level + i128::from(on) * requests).min(per * i128::from(burst));
            let before = Bucket { full_at: AtomicU64::new(bucket.full_at.load(Relaxed)) };
            match bucket.take(now, &rate) {
                Ok(()) => { prop_assert!(level >= per - slack, "{} of {}", level, per); level -= per; }
                Err(wait) => {
                    prop_assert!(level < per + slack, "{} of {}", level, per);
                    let wait = wait.as_nanos() as u64;
                    prop_assert!(wait > 0);
                    prop_assert!(before.take(now + wait - 1, &rate).is_err());
                    prop_assert!(before.take(now + wait, &rate).is_ok());
                }
            }
        }
    }

    #[test]
    fn no_figures_make_it_panic_or_stingy(now in any::<u64>(), requests in any::<u32>(), seconds in any::<u64>(), nanos in 0u32..1_000_000_000, burst in any::<u32>()) {
        for per in [Duration::new(seconds, nanos), Duration::new(0, nanos), Duration::from_nanos(u64::from(nanos) % 3)] {
            let (bucket, rate) = (Bucket::new(), Rate::new(requests, per, burst));
            for _ in 0..burst.clamp(1, 30) {
                prop_assert_eq!(bucket.take(now, &rate), Ok(()));
            }
            bucket.take(now, &rate).err();
            bucket.take(0, &rate).err();
            bucket.take(u64::MAX, &rate).err();
        }
    }

    #[test]
    fn a_crowd_takes_no_more_than_all_its_buckets_hold(callers in proptest::collection::vec(0u32..200, 1..600), capacity in 1usize..40) {
        // Nothing flows in: what passes is what was there.
        let buckets = Buckets::new(Rate::new(1, Duration::from_secs(1 << 40), 2), capacity, 5);
        let passed = callers.iter().filter(|c| buckets.take(address(**c), 1).is_ok()).count();
        prop_assert!(buckets.callers() <= capacity.div_ceil(16) * 16);
        prop_assert!(passed <= 2 * (capacity.div_ceil(16) * 16 + 16));
    }
}

#[test]
fn threads_get_what_one_would() {
    for threads in [1, 8] {
        let (bucket, rate, passed) = (Bucket::new(), per_second(100, 50), AtomicU64::new(0));
        let buckets = Buckets::new(rate, 64, 1);
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    for i in 0..4000 / threads {
                        passed.fetch_add(bucket.take(SEC + i % 2, &rate).is_ok().into(), Relaxed);
                        passed.fetch_add(buckets.take(address(i as u32 % 3), SEC).is_ok().into(), Relaxed);
                    }
                });
            }
        });
        assert_eq!(passed.into_inner(), 50 + 3 * 50);
    }
}

#[test]
fn a_flood_gives_nobody_a_fresh_bucket() {
    let buckets = Buckets::new(per_second(1, 2), 64, 9);
    let drain = |caller: Caller, now| (0..5).filter(|_| buckets.take(caller.clone(), now).is_ok()).count();
    assert_eq!((drain(identity(1), 0), drain(address(1), 0)), (2, 2));
    for i in 2..20_000 {
        let _ = buckets.take(address(i), 1);
    }
    assert!(buckets.callers() <= 65);
    assert_eq!((drain(identity(1), 2), drain(address(1), 2)), (0, 0));
    // An identity that is new has its place, whatever addresses do.
    assert_eq!(drain(identity(2), 2), 2);
    // All are full again: there is room.
    assert_eq!(drain(address(30_000), 10 * SEC), 2);
    assert_eq!(drain(address(1), 10 * SEC), 2);
}

#[test]
fn addresses_of_one_host_are_one_caller() {
    let buckets = Buckets::new(per_second(1, 1), CALLERS, 3);
    let take = |text: &str| buckets.take(Caller::Address(text.parse().expect("an address")), 0).is_ok();
    assert!(take("2001:db8:1:2::1") && !take("2001:db8:1:2:ffff::9") && take("2001:db8:1:3::1"));
    assert!(take("10.0.0.1") && !take("::ffff:10.0.0.1") && take("10.0.0.2"));
}
