//! When endpoints are ejected, for how long, how they come back, and that some always stay.

use std::rc::Rc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use weft_core::traffic::TrafficPolicy;
use weft_core::traffic::policy::{Balancer, Outlier};
use weft_sidecar::admin;

use crate::backend::{Reply, status};
use crate::calls::{ask, grpc_call};
use crate::lab::{Lab, Setup};
use crate::seeds::first_seeds;

fn policy(outlier: Outlier) -> TrafficPolicy {
    // In turn, so that every endpoint has its share, whatever it is like.
    TrafficPolicy { outlier: Some(outlier), balancer: Balancer::RoundRobin, ..TrafficPolicy::default() }
}

fn lab(seed: u64, backends: &'static [u8], outlier: Outlier) -> Lab {
    let setup = Setup::plain(seed, backends).workers(1 + seed % 3);
    let lab = Lab::new(setup);
    lab.policy(0, policy(outlier));
    lab
}

/// Asks a hundred times a second; gives how many answers were 200.
async fn load(lab: &Lab, lasts: Duration) -> u32 {
    let (ends, mut good) = (Instant::now() + lasts, 0);
    let mut clients = Vec::new();
    for _ in 0..4 {
        clients.push(lab.client(0).await);
    }
    for n in (0..clients.len()).cycle() {
        if Instant::now() >= ends {
            break;
        }
        match ask(&mut clients[n], "GET /", &[], None).await {
            Some(answer) => good += u32::from(answer.status() == 200),
            None => clients[n] = lab.client(0).await,
        }
        sleep(Duration::from_millis(8)).await;
    }
    good
}

/// What `/config` says of the breaker of each endpoint.
fn told(lab: &Lab) -> Vec<String> {
    let config = admin::config(&lab.caller.shared);
    let endpoints = config["addresses"]["10.96.0.1"]["endpoints"].as_array().expect("a list").clone();
    endpoints.iter().map(|e| e["breaker"]["state"].as_str().expect("a word").to_owned()).collect()
}

#[test]
fn failures_in_a_row_eject_for_longer_each_time_and_one_probe_asks() {
    first_seeds(8, &async |seed| {
        let lab = lab(seed, &[4], Outlier::default());
        lab.backends[0].does(|_| status(503));
        load(&lab, Duration::from_secs(84)).await;
        let seen: Vec<_> = lab.backends[0].seen.borrow().iter().map(|a| a.at).collect();
        // Five in a row, what was on its way, and then one probe after each ejection.
        let first = seen.windows(2).position(|w| w[1] - w[0] > Duration::from_secs(5)).expect("it was left alone") + 1;
        assert!((5..=8).contains(&first), "{first} before it was ejected");
        let gaps: Vec<_> = seen[first - 1..].windows(2).map(|w| w[1] - w[0]).collect();
        assert_eq!(gaps.len(), 3, "{gaps:?}");
        for (gap, seconds) in gaps.iter().zip([10.0, 20.0, 40.0]) {
            assert!((seconds * 0.9..seconds * 1.1 + 0.1).contains(&gap.as_secs_f64()), "{gaps:?}");
        }
        assert_eq!(told(&lab), ["open", "closed", "closed", "closed"]);
        // It is well again: the next probe brings it back.
        lab.backends[0].does(|_| status(200));
        load(&lab, Duration::from_secs(90)).await;
        assert_eq!(told(&lab), ["closed"; 4]);
        assert!(lab.backends[0].count() > seen.len() + 20, "it gets its share again");
        assert_eq!(lab.service(0).view.load().standing.ejections.held(), 0);
        lab.end().await;
    });
}

#[test]
fn only_one_request_probes_and_whoever_goes_away_leaves_it_to_the_next() {
    first_seeds(8, &async |seed| {
        let lab = Rc::new(lab(seed, &[2], Outlier::default()));
        lab.backends[0].does(|_| status(503));
        load(&lab, Duration::from_secs(2)).await;
        assert_eq!(told(&lab), ["open", "closed"]);
        let before = lab.backends[0].count();
        lab.backends[0].does(|_| Reply::Never);
        sleep(Duration::from_secs(11)).await;
        assert_eq!(told(&lab), ["half-open", "closed"]);
        let mut clients = JoinSet::new();
        for _ in 0..40 {
            let lab = Rc::clone(&lab);
            clients.spawn_local(async move {
                let mut client = lab.client(0).await;
                client.say(b"GET / HTTP/1.1\r\nhost: api\r\n\r\n").await;
                let answer = tokio::time::timeout(Duration::from_secs(5), client.answer()).await;
                client.peer.0.reset();
                answer.is_ok()
            });
        }
        let mut answered = 0;
        while let Some(whole) = clients.join_next().await {
            answered += u32::from(whole.expect("no panic"));
        }
        assert_eq!((lab.backends[0].count() - before, answered), (1, 39), "one probe");
        sleep(Duration::from_secs(1)).await;
        assert_eq!(told(&lab), ["half-open", "closed"], "the probe went away, and said nothing");
        lab.backends[0].does(|_| status(200));
        load(&lab, Duration::from_secs(1)).await;
        assert_eq!(told(&lab), ["closed", "closed"]);
        Rc::into_inner(lab).expect("every client has ended").end().await;
    });
}

#[test]
fn answers_that_are_cut_eject_as_errors_do() {
    first_seeds(8, &async |seed| {
        let lab = lab(seed, &[3], Outlier::default());
        lab.backends[0].does(|_| Reply::Cut);
        load(&lab, Duration::from_secs(4)).await;
        assert_eq!(told(&lab), ["open", "closed", "closed"]);
        assert!((5..=8).contains(&lab.backends[0].count()), "{} were cut", lab.backends[0].count());
        lab.end().await;
    });
}

#[test]
fn one_opening_that_fails_is_one_failure_however_many_wait_for_it() {
    first_seeds(8, &async |seed| {
        let lab = Rc::new(Lab::new(Setup::plain(seed, &[2])));
        // All go to the first one, as long as it is there.
        let first = |n| TrafficPolicy {
            outlier: Some(Outlier { consecutive_failures: n, ..Outlier::default() }),
            ..TrafficPolicy::default()
        };
        lab.policy(0, first(100));
        lab.backends.iter().for_each(|b| b.down());
        let mut calls = JoinSet::new();
        let send = lab.http2(0).await;
        for id in 0..20 {
            let send = send.clone();
            calls.spawn_local(async move { grpc_call(&send, id, &[]).await });
        }
        while calls.join_next().await.is_some() {}
        let config = admin::config(&lab.caller.shared);
        let endpoints = config["addresses"]["10.96.0.1"]["endpoints"].as_array().expect("a list").clone();
        let failures: Vec<_> = endpoints.iter().map(|e| e["failures_in_a_row"].as_u64().expect("a number")).collect();
        assert!(failures.iter().all(|n| (1..=6).contains(n)), "{failures:?} for twenty calls of three attempts");
        drop(send);
        Rc::into_inner(lab).expect("every call has ended").end().await;
    });
}

#[test]
fn never_more_than_the_ceiling_are_ejected_and_never_all_unless_asked_for() {
    for (max_ejected, ejected) in [(50, 2), (30, 1), (99, 3), (100, 4), (10, 0)] {
        first_seeds(6, &async |seed| {
            let lab = lab(seed, &[4], Outlier { max_ejected, ..Outlier::default() });
            lab.backends.iter().for_each(|b| b.does(|_| status(503)));
            load(&lab, Duration::from_secs(5)).await;
            assert_eq!(lab.service(0).view.load().standing.ejections.held(), ejected, "{max_ejected} %");
            let answer = lab.ask(0, "GET /", &[], None).await.expect("an answer");
            let reason = (ejected == 4).then_some("endpoints-ejected");
            assert_eq!((answer.status(), answer.field("weft-error")), (503, reason));
            // One that goes while it is ejected leaves its place.
            let fewer: Vec<_> = lab.service(0).view.load().endpoints.iter().skip(3).map(|e| e.endpoint.clone()).collect();
            lab.endpoints(0, fewer);
            assert!(lab.service(0).view.load().standing.ejections.held() <= 1);
            lab.end().await;
        });
    }
}

#[test]
fn a_small_share_of_successes_ejects_once_there_are_enough_answers() {
    first_seeds(8, &async |seed| {
        let outlier = Outlier { consecutive_failures: 0, success_rate: 80, minimum_volume: 20, ..Outlier::default() };
        let lab = lab(seed, &[3], outlier);
        // Two of three fail, never many in a row.
        lab.backends[0].does(|a| status(if a.nth % 3 == 0 { 200 } else { 503 }));
        lab.backends[1].does(|a| status(if a.nth % 10 == 0 { 503 } else { 200 }));
        load(&lab, Duration::from_secs(5)).await;
        assert_eq!(told(&lab), ["open", "closed", "closed"]);
        assert!((20..=24).contains(&lab.backends[0].count()), "{} answers", lab.backends[0].count());
        lab.end().await;
    });
}

#[test]
fn refusals_and_resets_and_slowness_eject_as_bad_answers_do() {
    first_seeds(9, &async |seed| {
        let lab = lab(seed, &[3], Outlier::default());
        match seed % 3 {
            0 => lab.backends[0].down(),
            1 => lab.backends[0].does(|_| Reply::Reset),
            _ => lab.backends[0].does(|_| Reply::Answer { status: 504, fields: vec![], body: vec![], after: Duration::ZERO }),
        }
        load(&lab, Duration::from_secs(3)).await;
        assert_eq!(told(&lab), ["open", "closed", "closed"]);
        lab.end().await;
    });
}
