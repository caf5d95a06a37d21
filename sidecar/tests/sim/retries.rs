//! What is repeated, where, how often, and what never is.

use std::time::Duration;

use tokio::time::Instant;
use weft_core::traffic::route::{Retry, RouteKind, Rule, Timeouts};

use crate::backend::{Reply, status};
use crate::calls::ask;
use crate::lab::{Lab, Setup, rule};
use crate::peers::{Random, payload};
use crate::seeds::first_seeds;

pub(crate) fn retry(codes: &[u16], grpc_codes: &[u8], attempts: u32) -> Retry {
    let backoff = Some(Duration::from_millis(10));
    Retry { codes: codes.to_vec(), grpc_codes: grpc_codes.to_vec(), attempts, backoff, any_method: false }
}

fn retried(retry: Retry) -> Vec<Rule> {
    vec![Rule { retry: Some(retry), ..rule(&[(0, 1)]) }]
}

/// Of two backends, the first does as it is told, the second answers.
fn lab(seed: u64, first: impl Fn() -> Reply + 'static) -> Lab {
    let lab = Lab::new(Setup::either(seed, &[2]));
    lab.backends[0].does(move |_| first());
    lab
}

#[test]
fn what_was_refused_succeeds_elsewhere_whatever_the_method() {
    first_seeds(32, &async |seed| {
        let lab = lab(seed, || status(200));
        lab.backends[0].down();
        for id in 0..20u64 {
            let (line, body) = if id % 2 == 0 { ("GET /", None) } else { ("POST /", Some(payload(id, 1_000 * id))) };
            let answer = lab.ask(0, line, &[("x-id", &id.to_string())], body.as_deref()).await.expect("an answer");
            assert_eq!(answer.status(), 200, "{}", answer.head);
            assert_eq!(lab.backends[1].times(id), 1);
            let seen = lab.backends[1].seen.borrow();
            assert!(seen.last().expect("it arrived").body == body.unwrap_or_default(), "the body is another");
        }
        lab.end().await;
    });
}

#[test]
fn what_was_reset_is_repeated_elsewhere_only_if_it_is_idempotent() {
    first_seeds(32, &async |seed| {
        let lab = lab(seed, || Reply::Reset);
        for id in 0..30u64 {
            let post = id % 3 == 0;
            let (line, body) = if post { ("POST /", Some(&b"abc"[..])) } else { ("GET /", None) };
            let answer = lab.ask(0, line, &[("x-id", &id.to_string())], body).await.expect("an answer");
            let [first, second] = [&lab.backends[0], &lab.backends[1]].map(|b| b.times(id));
            if post {
                assert_eq!(first + second, 1, "it was posted again");
                assert_eq!(answer.status(), if first == 1 { 502 } else { 200 });
            } else {
                assert_eq!((answer.status(), second), (200, 1), "{}", answer.head);
                assert!(first <= 1, "it went {first} times to the one that had just failed");
            }
        }
        lab.end().await;
    });
}

#[test]
fn a_status_that_the_route_names_is_asked_for_again_elsewhere() {
    first_seeds(32, &async |seed| {
        let lab = lab(seed, || status(503));
        lab.route(0, RouteKind::Http, retried(retry(&[503], &[], 2)));
        let (mut repeated, random) = (0, Random::new(seed));
        // On one connection, so that connections to backends are there already.
        let mut client = lab.client(0).await;
        for id in 0..30u64 {
            let post = random.below(2) == 0;
            let (line, body) = if post { ("POST /", Some(&b"abc"[..])) } else { ("GET /", None) };
            let answer = ask(&mut client, line, &[("x-id", &id.to_string())], body).await.expect("an answer");
            let [first, second] = [&lab.backends[0], &lab.backends[1]].map(|b| b.times(id));
            if post {
                assert_eq!((answer.status(), first + second), (if first == 1 { 503 } else { 200 }, 1));
                assert_eq!(answer.body, answer.status().to_string().into_bytes(), "the backend's own answer");
            } else {
                assert_eq!((answer.status(), second), (200, 1), "{}", answer.head);
                assert!(first <= 1, "it went {first} times to the one that had just failed");
                repeated += first;
            }
        }
        assert!(repeated > 0, "nothing was repeated");
        for asked in lab.backends[1].seen.borrow().iter() {
            let again = lab.backends[0].times(asked.id()) > 0;
            assert_eq!(asked.field("weft-attempt"), again.then_some("2"), "attempts are numbered from the second on");
        }
        drop(client);
        lab.end().await;
    });
}

#[test]
fn when_all_answer_so_the_last_answer_is_the_callers() {
    first_seeds(16, &async |seed| {
        let lab = lab(seed, || status(503).with("x-own", "1"));
        lab.backends[1].does(|_| status(503).with("x-own", "2"));
        lab.route(0, RouteKind::Http, retried(retry(&[503], &[], 3)));
        let mut client = lab.client(0).await;
        for id in 0..3u64 {
            let answer = ask(&mut client, "GET /", &[("x-id", &id.to_string())], None).await.expect("an answer");
            assert_eq!((answer.status(), answer.body.as_slice()), (503, &b"503"[..]));
            assert!(answer.field("x-own").is_some() && answer.field("weft-error").is_none(), "{}", answer.head);
            assert_eq!(lab.times(id), 4);
            let mut attempts: Vec<_> =
                lab.backends.iter().flat_map(|b| b.seen.borrow().clone()).filter(|a| a.id() == id).collect();
            attempts.sort_by_key(|a| a.at);
            let numbers: Vec<_> = attempts.iter().map(|a| a.field("weft-attempt").unwrap_or("1").to_owned()).collect();
            assert_eq!(numbers, ["1", "2", "3", "4"]);
            // Ten milliseconds at the least before each, and up to as much as it doubles to on top, and the way there and back.
            for (n, pair) in attempts.windows(2).enumerate() {
                let (pause, most) = (pair[1].at - pair[0].at, Duration::from_millis(10 + (10 << n) + 20));
                assert!((Duration::from_millis(10)..most).contains(&pause), "{pause:?} before attempt {}", n + 2);
            }
        }
        drop(client);
        lab.end().await;
    });
}

#[test]
fn a_body_up_to_64_kib_is_repeated_whole_and_a_longer_one_goes_once() {
    const SIZES: [u64; 7] = [0, 1, 1_000, 65_535, 65_536, 65_537, 300_000];
    first_seeds(28, &async |seed| {
        let lab = lab(seed, || Reply::Reset);
        for (id, size) in (0u64..).zip(SIZES) {
            for again in 0..4 {
                let id = id * 10 + again;
                let body = payload(id, size);
                let mut client = lab.client(0).await;
                let fields = format!("PUT / HTTP/1.1\r\nhost: api\r\nx-id: {id}\r\n");
                if again % 2 == 0 {
                    client.say(format!("{fields}content-length: {size}\r\n\r\n").as_bytes()).await;
                    client.say(&body).await;
                } else {
                    client.say(format!("{fields}transfer-encoding: chunked\r\n\r\n").as_bytes()).await;
                    for piece in body.chunks(3_000) {
                        client.say(&[format!("{:x}\r\n", piece.len()).as_bytes(), piece, b"\r\n"].concat()).await;
                    }
                    client.say(b"0\r\n\r\n").await;
                }
                let answer = client.answer().await.expect("an answer");
                let [first, second] = [&lab.backends[0], &lab.backends[1]].map(|b| b.times(id));
                if size <= 65_536 {
                    assert_eq!((answer.status(), second), (200, 1), "{size} bytes: {}", answer.head);
                } else {
                    assert_eq!((answer.status(), second), if first == 1 { (502, 0) } else { (200, 1) }, "{size} bytes");
                }
                for asked in lab.backends.iter().flat_map(|b| b.seen.borrow().clone()).filter(|a| a.id() == id) {
                    assert!(asked.body == body, "{} bytes of {size} arrived", asked.body.len());
                }
            }
        }
        lab.end().await;
    });
}

#[test]
fn retry_after_is_waited_for_within_bounds() {
    // Who is to come again in an hour is not asked again: the answer is the caller's.
    for (said, least, answered) in [("2", 2, 200), ("10", 10, 200), ("3600", 0, 503), ("soon", 0, 200)] {
        first_seeds(8, &async |seed| {
            let lab = Lab::plain(seed, &[1]);
            lab.backends[0].does(move |a| if a.nth == 0 { status(503).with("retry-after", said) } else { status(200) });
            lab.route(0, RouteKind::Http, retried(retry(&[503], &[], 1)));
            let began = Instant::now();
            let answer = lab.ask(0, "GET /", &[], None).await.expect("an answer");
            let (took, least) = (began.elapsed(), Duration::from_secs(least));
            assert_eq!(answer.status(), answered, "{said}");
            assert!((least..least + Duration::from_millis(100)).contains(&took), "{said}: {took:?}");
            lab.end().await;
        });
    }
}

#[test]
fn an_attempt_and_the_whole_end_in_time() {
    first_seeds(16, &async |seed| {
        let lab = lab(seed, || Reply::Never);
        let bounds = |request, each| Timeouts {
            request: Some(Duration::from_millis(request)),
            backend_request: Some(Duration::from_millis(each)),
        };
        let rules = |timeouts| vec![Rule { timeouts, retry: Some(retry(&[], &[], 9)), ..rule(&[(0, 1)]) }];
        lab.route(0, RouteKind::Http, rules(bounds(30_000, 1_000)));
        for _ in 0..6 {
            let began = Instant::now();
            let answer = lab.ask(0, "GET /", &[], None).await.expect("an answer");
            assert_eq!(answer.status(), 200);
            assert!(began.elapsed() < Duration::from_millis(1_100), "{:?}", began.elapsed());
        }
        let deserted = lab.backends[0].deserted.borrow().len();
        assert_eq!(deserted, lab.backends[0].count(), "what came too late is called off");
        // Now nobody answers.
        lab.backends[1].does(|_| Reply::Never);
        lab.route(0, RouteKind::Http, rules(bounds(3_500, 1_000)));
        for line in ["GET /", "POST /"] {
            let began = Instant::now();
            let answer = lab.ask(0, line, &[], Some(b"body")).await.expect("an answer");
            assert_eq!((answer.status(), answer.field("weft-error")), (504, Some("upstream-timeout")));
            let post = line.starts_with("POST");
            let least = Duration::from_millis(if post { 1_000 } else { 3_000 });
            assert!((least..least + Duration::from_millis(600)).contains(&began.elapsed()), "{line}: {:?}", began.elapsed());
        }
        lab.end().await;
    });
}

#[test]
fn an_answer_is_not_given_up_for_a_repetition_that_would_come_too_late() {
    first_seeds(16, &async |seed| {
        let lab = Lab::plain(seed, &[2]);
        let random = Random::new(seed);
        let slow = Duration::from_millis(random.below(95));
        lab.backends.iter().for_each(|b| b.does(move |_| status(503).after(slow)));
        let timeouts = Timeouts { request: Some(Duration::from_millis(100)), backend_request: None };
        let retry = Retry { backoff: Some(Duration::from_millis(60)), ..retry(&[503], &[], 5) };
        lab.route(0, RouteKind::Http, vec![Rule { timeouts, retry: Some(retry), ..rule(&[(0, 1)]) }]);
        let answer = lab.ask(0, "GET /", &[], None).await.expect("an answer");
        if lab.count() == 1 {
            assert_eq!((answer.status(), answer.field("weft-error")), (503, None), "after {slow:?}");
        }
        lab.end().await;
    });
}
