//! gRPC over routed HTTP/2: what is repeated, how errors look, and deadlines.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, sleep};
use weft_core::traffic::TrafficPolicy;
use weft_core::traffic::policy::Fault;
use weft_core::traffic::route::{Match, PathMatch, RouteKind, Rule, StringMatch};

use crate::backend::{PORT, Reply, grpc};
use crate::calls::{call, grpc_call};
use crate::lab::{Lab, Setup, pod, rule};
use crate::peers::serve;
use crate::retries::retry;
use crate::seeds::first_seeds;

const UNAVAILABLE: u8 = 14;

/// Of two backends, the first does as it is told, the second answers.
fn lab(seed: u64, first: impl Fn() -> Reply + 'static) -> Lab {
    let lab = Lab::new(Setup::either(seed, &[2]));
    lab.backends[0].does(move |_| first());
    lab.backends[1].does(|_| grpc(0));
    lab
}

#[test]
fn a_code_that_the_route_names_is_asked_for_again_where_nothing_else_was_said() {
    first_seeds(16, &async |seed| {
        let with_message = seed % 4 >= 2;
        let lab = lab(seed, move || match grpc(UNAVAILABLE) {
            Reply::Answer { status, fields, after, .. } if with_message => {
                Reply::Answer { status, fields, body: vec![0, 0, 0, 0, 1, 7], after }
            }
            other => other,
        });
        lab.route(0, RouteKind::Grpc, vec![Rule { retry: Some(retry(&[], &[UNAVAILABLE], 2)), ..rule(&[(0, 1)]) }]);
        let send = lab.http2(0).await;
        for id in 0..30 {
            let called = grpc_call(&send, id, &[]).await.expect("an answer");
            let [first, second] = [&lab.backends[0], &lab.backends[1]].map(|b| b.times(id));
            if with_message {
                let expected = if first == 1 { UNAVAILABLE } else { 0 };
                assert_eq!((called.code, first + second), (Some(expected), 1), "{called:?}");
            } else {
                assert_eq!((called.code, second), (Some(0), 1), "{called:?}");
                assert!(first <= 1, "it went {first} times to the one that had just failed");
            }
        }
        assert!(lab.backends[0].count() > 0, "nothing failed");
        drop(send);
        lab.end().await;
    });
}

#[test]
fn refused_streams_go_elsewhere_and_reset_ones_do_not() {
    first_seeds(16, &async |seed| {
        let refuse = seed % 4 < 2;
        let lab = lab(seed, move || if refuse { Reply::Refuse } else { Reply::Reset });
        let send = lab.http2(0).await;
        for id in 0..20 {
            let called = grpc_call(&send, id, &[]).await.expect("an answer");
            let [first, second] = [&lab.backends[0], &lab.backends[1]].map(|b| b.times(id));
            // A mesh peer's own retry of an unprocessed stream is the same endpoint's.
            if refuse {
                assert_eq!((called.code, second), (Some(0), 1), "{called:?}");
            } else {
                assert_eq!(first + second, 1, "it was sent again");
                let expected = if first == 1 { UNAVAILABLE } else { 0 };
                assert_eq!(called.code, Some(expected));
                if first == 1 {
                    assert!(called.only && called.status == 200);
                    assert_eq!(called.field("weft-error"), Some("upstream-reset"));
                }
            }
        }
        // A GET that was reset may be repeated, on a connection that was there before, too.
        for id in 100..120u64 {
            let answer = call(&send, "GET /", &[("x-id", &id.to_string())], &[]).await.expect("an answer");
            assert_eq!((answer.status, lab.backends[1].times(id)), (200, 1));
            assert!(refuse || lab.backends[0].times(id) <= 1);
        }
        drop(send);
        lab.end().await;
    });
}

#[test]
fn what_a_goaway_leaves_out_goes_elsewhere() {
    first_seeds(8, &async |seed| {
        let lab = Lab::plain(seed, &[2]);
        lab.backends[0].down();
        lab.backends[1].does(|_| grpc(0));
        let said = Rc::new(Cell::new(0));
        let count = Rc::clone(&said);
        serve(&lab.network.host(pod(0)), PORT, move |mut peer| {
            let count = Rc::clone(&count);
            async move {
                // An empty SETTINGS; at the first HEADERS a GOAWAY that has processed nothing.
                let _ = peer.read_exact(&mut [0; 24]).await;
                let _ = peer.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await;
                let mut head = [0; 9];
                while peer.read_exact(&mut head).await.is_ok() {
                    let mut rest = vec![0; usize::from(head[1]) << 8 | usize::from(head[2])];
                    let _ = peer.read_exact(&mut rest).await;
                    if head[3] == 1 {
                        count.set(count.get() + 1);
                        let _ = peer.write_all(&[0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]).await;
                        // What comes now is read over, so that no reset overtakes it.
                        let _ = peer.shutdown().await;
                        let _ = peer.read_to_end(&mut Vec::new()).await;
                    }
                }
            }
        });
        let send = lab.http2(0).await;
        for id in 0..20 {
            let called = grpc_call(&send, id, &[]).await.expect("an answer");
            assert_eq!((called.code, lab.backends[1].times(id)), (Some(0), 1), "{called:?}");
        }
        assert!(said.get() > 0, "nobody came");
        drop(send);
        lab.end().await;
    });
}

#[test]
fn a_deadline_is_shortened_on_the_way_and_held() {
    first_seeds(16, &async |seed| {
        let lab = lab(seed, || Reply::Never);
        lab.backends[1].does(|_| Reply::Never);
        let delay = Some(Duration::from_millis(200));
        let faults = vec![Fault { headers: vec![], millionths: 1_000_000, delay, abort: None }];
        lab.policy(0, TrafficPolicy { faults, ..TrafficPolicy::default() });
        let send = lab.http2(0).await;
        let began = Instant::now();
        let called = grpc_call(&send, 1, &[("grpc-timeout", "1S")]).await.expect("an answer");
        assert_eq!((called.status, called.code, called.only), (200, Some(4), true), "{called:?}");
        let took = began.elapsed();
        assert!((Duration::from_millis(998)..Duration::from_millis(1_010)).contains(&took), "{took:?}");
        sleep(Duration::from_millis(50)).await;
        let asked: Vec<_> = lab.backends.iter().flat_map(|b| b.seen.borrow().clone()).collect();
        assert_eq!(asked.len(), 1);
        let left = asked[0].field("grpc-timeout").expect("it is told").strip_suffix('u').expect("microseconds");
        assert!((700_000..=800_000).contains(&left.parse::<u32>().expect("a number")), "{left}");
        let deserted: Vec<_> = lab.backends.iter().flat_map(|b| b.deserted.borrow().clone()).collect();
        assert_eq!(deserted.len(), 1, "the call is called off");
        assert!(deserted[0] - began < Duration::from_millis(1_020), "late");
        drop(send);
        lab.end().await;
    });
}

#[test]
fn calls_find_their_routes_and_errors_are_as_grpc_has_them() {
    first_seeds(8, &async |seed| {
        let lab = Lab::plain(seed, &[1, 1]);
        lab.backends.iter().for_each(|b| b.does(|_| grpc(0)));
        let exactly = |service: &str, method: Option<&str>| {
            let exact = |text: &str| StringMatch::Exact(text.into());
            let path = PathMatch::Grpc { service: Some(exact(service)), method: method.map(exact) };
            vec![Match { path, ..Match::default() }]
        };
        let rules = vec![
            Rule { matches: exactly("shop.Api", None), ..rule(&[(0, 1)]) },
            Rule { matches: exactly("shop.Api", Some("Get")), ..rule(&[(1, 1)]) },
            Rule { matches: exactly("shop.Gone", None), ..rule(&[]) },
        ];
        lab.route(0, RouteKind::Grpc, rules);
        let send = lab.http2(0).await;
        let grpc = [("content-type", "application/grpc+proto")];
        for (path, code, reason) in [
            ("/shop.Api/Get", 0, None),
            ("/shop.Api/Put", 0, None),
            ("/shop.Gone/Get", UNAVAILABLE, Some("no-backend")),
            ("/shop.Other/Get", 12, Some("no-route")),
        ] {
            let called = call(&send, &format!("POST {path}"), &grpc, b"12345").await.expect("an answer");
            assert_eq!((called.status, called.code, called.field("weft-error")), (200, Some(code), reason), "{path}");
            assert!(reason.is_none() || called.only && called.body.is_empty(), "{path}: {called:?}");
        }
        assert_eq!([lab.backends[0].count(), lab.backends[1].count()], [1, 1]);
        assert_eq!(lab.backends[1].seen.borrow()[0].target, "/shop.Api/Get");
        // gRPC-Web is gRPC.
        let web = [("content-type", "application/grpc-web+proto")];
        assert_eq!(call(&send, "POST /shop.Api/Put", &web, b"12345").await.expect("an answer").code, Some(0));
        // What is not gRPC does not fall under its routes.
        let answer = call(&send, "POST /shop.Api/Get", &[], b"12345").await.expect("an answer");
        assert_eq!((answer.status, answer.code), (404, None));
        drop(send);
        lab.end().await;
    });
}
