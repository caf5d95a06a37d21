//! Slow endpoints are found, keys stay where they are, the own zone comes first, and new endpoints start slowly.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};
use weft_core::traffic::TrafficPolicy;
use weft_core::traffic::policy::{Balancer, HashKey, ZonePreference};

use crate::backend::status;
use crate::calls::ask;
use crate::lab::{Lab, Setup, endpoint};
use crate::peers::Random;
use crate::seeds::first_seeds;

/// Answers take as long as a random number says, around `mean`.
fn answers(lab: &Lab, n: usize, mean: u64, seed: u64) {
    let random = Random::new(seed * 100 + n as u64);
    lab.backends[n].does(move |_| {
        let mut micros = mean * 700 + random.below(mean * 600);
        if random.below(50) == 0 {
            micros *= 2;
        }
        status(200).after(Duration::from_micros(micros))
    });
}

/// The latency that 99 of 100 requests stay below: 20 clients, each once in 50 ms.
async fn p99(lab: &Rc<Lab>, lasts: Duration) -> Duration {
    let (mut clients, ends) = (JoinSet::new(), Instant::now() + lasts);
    for n in 0..20 {
        let lab = Rc::clone(lab);
        clients.spawn_local(async move {
            sleep(Duration::from_micros(n * 2_500)).await;
            let (mut client, mut took) = (lab.client(0).await, Vec::new());
            while Instant::now() < ends {
                let began = Instant::now();
                assert_eq!(ask(&mut client, "GET /", &[], None).await.expect("an answer").status(), 200);
                took.push(began.elapsed());
                sleep_until(began + Duration::from_millis(50)).await;
            }
            took
        });
    }
    let mut all = Vec::new();
    while let Some(took) = clients.join_next().await {
        all.extend(took.expect("no panic"));
    }
    all.sort();
    all[all.len() * 99 / 100]
}

#[test]
fn an_endpoint_that_is_ten_times_as_slow_is_hardly_felt() {
    first_seeds(4, &async |seed| {
        let mut measured = Vec::new();
        for slow in [false, true] {
            let lab = Rc::new(Lab::new(Setup::plain(seed, &[5]).workers(1 + seed % 2)));
            for n in 0..5 {
                answers(&lab, n, if slow && n == 0 { 100 } else { 10 }, seed);
            }
            measured.push(p99(&lab, Duration::from_secs(15)).await);
            let share = lab.backends[0].count() as f64 / lab.count() as f64;
            assert!(!slow || share < 0.02, "the slow one got {share}");
            assert!(slow || (0.1..0.3).contains(&share), "one of five got {share}");
            Rc::into_inner(lab).expect("all ended").end().await;
        }
        assert!(measured[1] < measured[0] * 2, "{measured:?}");
    });
}

#[test]
fn a_key_moves_only_with_its_endpoint() {
    const KEYS: usize = 60;
    first_seeds(8, &async |seed| {
        let lab = Lab::plain(seed, &[6]);
        let key = HashKey::Header("x-user".into());
        let ring = seed % 2 == 0;
        let balancer = if ring { Balancer::RingHash(key) } else { Balancer::Maglev(key) };
        lab.policy(0, TrafficPolicy { balancer, ..TrafficPolicy::default() });
        let place = async || {
            let (mut places, mut client) = (BTreeMap::new(), lab.client(0).await);
            for key in 0..KEYS {
                for _ in 0..2 {
                    let before: Vec<_> = lab.backends.iter().map(|b| b.count()).collect();
                    let user = key.to_string();
                    assert_eq!(ask(&mut client, "GET /", &[("x-user", &user)], None).await.expect("an answer").status(), 200);
                    let at = (0..6).find(|n| lab.backends[*n].count() > before[*n]).expect("it arrived");
                    assert_eq!(*places.entry(key).or_insert(at), at, "a key is in two places");
                }
            }
            places
        };
        let all = place().await;
        assert!((0..6).all(|n| all.values().any(|at| *at == n)), "an endpoint has no key: {all:?}");
        lab.endpoints(0, (1..6).map(|n| endpoint(n, false)).collect());
        let fewer = place().await;
        let moved = all.iter().filter(|(key, at)| **at != 0 && fewer[*key] != **at).count();
        assert!(moved <= if ring { 0 } else { KEYS / 10 }, "{moved} keys moved that had no need to");
        // A key whose endpoint fails goes elsewhere for that request, and it alone.
        lab.backends[1].down();
        lab.network.reset(crate::world::A, lab.backends[1].ip);
        let failing = place().await;
        assert!(failing.iter().all(|(key, at)| if fewer[key] == 1 { *at != 1 } else { *at == fewer[key] }));
        lab.end().await;
    });
}

#[test]
fn the_own_zone_comes_first_and_spills_over_when_it_is_not_well() {
    first_seeds(8, &async |seed| {
        let lab = Lab::new(Setup { zone: "a", ..Setup::plain(seed, &[6]) });
        let zone = ZonePreference { prefer: true, spill_below: 70 };
        lab.policy(0, TrafficPolicy { zone, ..TrafficPolicy::default() });
        let ask_many = async |count: u32| {
            let before: Vec<_> = lab.backends.iter().map(|b| b.count()).collect();
            let mut client = lab.client(0).await;
            for _ in 0..count {
                let answer = ask(&mut client, "GET /", &[], None).await.expect("an answer");
                assert_eq!(answer.status(), 200, "{}", answer.head);
            }
            lab.backends.iter().zip(before).map(|(b, before)| b.count() - before).collect::<Vec<_>>()
        };
        let counts = ask_many(60).await;
        assert!(counts.iter().skip(1).step_by(2).all(|n| *n == 0), "another zone's got something: {counts:?}");
        // Two of its three are down: it keeps a third of seven tenths, a little less than half, and its share of what spills over.
        for n in [0, 2] {
            lab.backends[n].down();
            lab.network.reset(crate::world::A, lab.backends[n].ip);
        }
        ask_many(60).await;
        let counts = ask_many(200).await;
        let here = counts[4];
        assert!((70..=150).contains(&here) && counts[0] + counts[2] == 0, "{counts:?}");
        // All of them: nobody is left without an answer.
        lab.backends[4].down();
        lab.network.reset(crate::world::A, lab.backends[4].ip);
        let counts = ask_many(60).await;
        assert_eq!(counts.iter().skip(1).step_by(2).sum::<usize>(), 60);
        lab.end().await;
    });
}

#[test]
fn a_new_endpoint_gets_its_share_little_by_little() {
    first_seeds(8, &async |seed| {
        let lab = Lab::plain(seed, &[4]);
        let balancer =
            [Balancer::RoundRobin, Balancer::Random, Balancer::LeastRequest, Balancer::P2cEwma][seed as usize % 4].clone();
        let slow_start = Some(Duration::from_secs(100));
        lab.policy(0, TrafficPolicy { balancer: balancer.clone(), slow_start, ..TrafficPolicy::default() });
        lab.backends.iter().for_each(|b| b.does(|_| status(200).after(Duration::from_millis(5))));
        lab.endpoints(0, (0..3).map(|n| endpoint(n, false)).collect());
        let mut client = lab.client(0).await;
        sleep(Duration::from_secs(200)).await;
        client = {
            drop(client);
            lab.client(0).await
        };
        lab.endpoints(0, (0..4).map(|n| endpoint(n, false)).collect());
        let mut shares = Vec::new();
        for _ in 0..3 {
            let before = lab.backends[3].count();
            for _ in 0..200 {
                assert_eq!(ask(&mut client, "GET /", &[], None).await.expect("an answer").status(), 200);
            }
            shares.push(lab.backends[3].count() - before);
            sleep(Duration::from_secs(49)).await;
        }
        // A tenth of a share at first, half of one after half of the time, and then all of one.
        assert!(shares[0] <= 25, "{balancer:?}: {shares:?}");
        assert!((30..=75).contains(&shares[2]), "{balancer:?}: {shares:?}");
        drop(client);
        lab.end().await;
    });
}
