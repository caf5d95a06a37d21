//! Copies of requests: whole, in their share, and never felt by the request itself.

use std::cell::Cell;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use weft_core::traffic::TrafficPolicy;
use weft_core::traffic::policy::Limits;
use weft_core::traffic::route::{BackendTarget, Filter, Mirror, RouteKind, Rule};

use crate::backend::{Reply, status};
use crate::calls::{ask, call};
use crate::lab::{Lab, Setup, rule};
use crate::peers::payload;
use crate::seeds::first_seeds;

fn mirrored(numerator: u32, denominator: u32) -> Vec<Rule> {
    let target = BackendTarget::Service { id: "shop/green".parse().expect("a name"), port: 80 };
    vec![Rule { filters: vec![Filter::Mirror(Mirror { target, numerator, denominator })], ..rule(&[(0, 1)]) }]
}

#[test]
fn copies_are_whole_and_their_slowness_and_failures_are_not_felt() {
    first_seeds(16, &async |seed| {
        let lab = Lab::new(Setup::either(seed, &[1, 1]));
        lab.route(0, RouteKind::Http, mirrored(1, 1));
        lab.backends[1].does(move |_| match seed % 4 {
            0 => status(200).after(Duration::from_secs(60)),
            1 => Reply::Reset,
            2 => Reply::Never,
            _ => status(500),
        });
        let (mut client, send) = (lab.client(0).await, lab.http2(0).await);
        for (id, size) in (0u64..).zip([0, 10, 1_000, 65_536, 65_537, 200_000]) {
            let (body, id_text) = (payload(id, size), id.to_string());
            let began = Instant::now();
            if seed % 8 < 4 {
                let answer = ask(&mut client, "POST /", &[("x-id", &id_text)], Some(&body)).await.expect("an answer");
                assert_eq!((answer.status(), answer.body.as_slice()), (200, &b"200"[..]));
            } else {
                let answer = call(&send, "POST /", &[("x-id", &id_text)], &body).await.expect("an answer");
                assert_eq!((answer.status, answer.body.as_slice()), (200, &b"200"[..]));
            }
            assert!(began.elapsed() < Duration::from_millis(60), "{size} bytes: {:?}", began.elapsed());
            sleep(Duration::from_millis(500)).await;
            assert_eq!(lab.backends[0].times(id), 1);
            // A POST that may have been processed is not copied twice.
            assert_eq!(lab.backends[1].times(id), usize::from(size <= 65_536), "{size} bytes");
            for asked in lab.backends[1].seen.borrow().iter().filter(|a| a.id() == id) {
                assert!(asked.body == body, "{} of {size} bytes were copied", asked.body.len());
            }
        }
        drop((client, send));
        lab.end().await;
    });
}

#[test]
fn their_share_is_as_the_route_says_and_limits_hold() {
    let counted = Cell::new((0, 0));
    first_seeds(8, &async |seed| {
        let lab = Lab::plain(seed, &[1, 1]);
        lab.route(0, RouteKind::Http, mirrored(25, 100));
        let mut client = lab.client(0).await;
        for _ in 0..300 {
            assert_eq!(ask(&mut client, "GET /", &[], None).await.expect("an answer").status(), 200);
        }
        sleep(Duration::from_secs(1)).await;
        counted.set((counted.get().0 + lab.backends[1].count(), counted.get().1 + 300));
        // As many as its policy takes, and no more; nothing waits for one that never answers.
        lab.route(0, RouteKind::Http, mirrored(1, 1));
        let limits = Limits { requests: Some(7), ..Limits::default() };
        lab.policy(1, TrafficPolicy { limits, ..TrafficPolicy::default() });
        lab.backends[1].does(|_| Reply::Never);
        let before = lab.backends[1].count();
        for _ in 0..50 {
            assert_eq!(ask(&mut client, "GET /", &[], None).await.expect("an answer").status(), 200);
        }
        assert_eq!(lab.backends[1].count() - before, 7);
        sleep(Duration::from_secs(20)).await;
        assert_eq!(lab.backends[1].deserted.borrow().len(), 7, "a copy is given up in the end");
        drop(client);
        lab.end().await;
    });
    let (copied, of) = counted.get();
    // Five standard deviations of as many draws.
    let (expected, spread) = (f64::from(of) * 0.25, 5.0 * (f64::from(of) * 0.1875).sqrt());
    assert!((copied as f64 - expected).abs() < spread, "{copied} of {of} were copied");
}

#[test]
fn a_copy_under_way_does_not_hold_up_a_drain() {
    first_seeds(4, &async |seed| {
        let mut lab = Lab::plain(seed, &[1, 1]);
        lab.route(0, RouteKind::Http, mirrored(1, 1));
        lab.backends[1].does(|_| Reply::Never);
        assert_eq!(lab.ask(0, "GET /", &[], None).await.expect("an answer").status(), 200);
        sleep(Duration::from_millis(100)).await;
        assert_eq!(lab.backends[1].busy.get(), 1);
        let (took, grace) = (lab.caller.drain().await, lab.caller.shared.config.timeouts.drain_grace);
        assert!(took < grace + Duration::from_secs(2), "{took:?}");
    });
}
