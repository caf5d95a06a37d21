//! What is over a limit is shed at once, and what is under it goes on.

use std::rc::Rc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use weft_core::traffic::TrafficPolicy;
use weft_core::traffic::policy::{Limits, Timeouts};

use crate::backend::{Reply, grpc, status};
use crate::calls::{ask, grpc_call};
use crate::lab::{Lab, Setup, pod};
use crate::seeds::first_seeds;
use crate::world::A;

const SLOW: Duration = Duration::from_secs(2);

fn lab(seed: u64, limits: Limits) -> Rc<Lab> {
    let setup = Setup::either(seed, &[2]);
    let lab = Lab::new(setup.workers(1 + seed % 3));
    lab.policy(0, TrafficPolicy { limits, ..TrafficPolicy::default() });
    Rc::new(lab)
}

/// How requests that were sent at once ended: served, and shed.
#[derive(PartialEq, Eq, Debug, Default)]
struct Ended {
    served: u32,
    shed: u32,
}

/// Sends twenty requests at once. Those that are shed are shed within `soon`.
async fn twenty(lab: &Rc<Lab>, http2: bool, soon: Duration) -> Ended {
    let mut requests = JoinSet::new();
    for id in 0..20 {
        let lab = Rc::clone(lab);
        requests.spawn_local(async move {
            if http2 {
                let send = lab.http2(0).await;
                let began = Instant::now();
                let called = grpc_call(&send, id, &[]).await.expect("an answer");
                let shed = called.code == Some(14);
                assert!(!shed || called.only && called.field("weft-error") == Some("overloaded"), "{called:?}");
                assert!(shed || called.code == Some(0), "{called:?}");
                (shed, began.elapsed())
            } else {
                let mut client = lab.client(0).await;
                let began = Instant::now();
                let answer = ask(&mut client, "GET /", &[], None).await.expect("an answer");
                let shed = answer.status() == 503;
                assert!(!shed || answer.field("weft-error") == Some("overloaded"), "{}", answer.head);
                if shed {
                    // The connection goes on: what is shed must be cheap.
                    assert_eq!(answer.field("connection"), None, "{}", answer.head);
                }
                (shed, began.elapsed())
            }
        });
    }
    let mut ended = Ended::default();
    while let Some(request) = requests.join_next().await {
        let (shed, took) = request.expect("no panic");
        assert!(!shed || took <= soon, "shed after {took:?}");
        if shed {
            ended.shed += 1;
        } else {
            ended.served += 1;
        }
    }
    ended
}

#[test]
fn requests_beyond_a_limit_are_shed_at_once() {
    let (service, each) =
        (Limits { requests: Some(5), ..Limits::default() }, Limits { requests_per_endpoint: Some(3), ..Limits::default() });
    for (limits, served) in [(service, 5), (each, 6)] {
        first_seeds(8, &async |seed| {
            let (lab, http2) = (lab(seed, limits), seed % 4 >= 2);
            lab.backends.iter().for_each(|b| b.does(move |_| if http2 { grpc(0) } else { status(200) }.after(SLOW)));
            for _ in 0..2 {
                let ended = twenty(&lab, http2, Duration::from_millis(5)).await;
                assert_eq!(ended, Ended { served, shed: 20 - served }, "{limits:?}");
            }
            Rc::into_inner(lab).expect("all ended").end().await;
        });
    }
}

#[test]
fn those_that_wait_for_a_connection_are_bounded() {
    first_seeds(16, &async |seed| {
        let (lab, http2) = (lab(seed, Limits { pending: Some(4), ..Limits::default() }), seed % 4 >= 2);
        lab.backends.iter().for_each(|b| b.does(move |_| if http2 { grpc(0) } else { status(200) }));
        for n in 0..2 {
            lab.network.partition(A, pod(n));
        }
        let network = lab.network.clone();
        tokio::task::spawn_local(async move {
            sleep(Duration::from_secs(1)).await;
            for n in 0..2 {
                network.heal(A, pod(n));
            }
        });
        let ended = twenty(&lab, http2, Duration::from_millis(5)).await;
        assert_eq!(ended, Ended { served: 4, shed: 16 });
        assert_eq!(lab.service(0).view.load().standing.held(), [0; 3]);
        if http2 && lab.caller.workers.len() == 1 {
            // Where a connection is there, nobody waits.
            assert_eq!(twenty(&lab, http2, Duration::ZERO).await, Ended { served: 20, shed: 0 });
        }
        Rc::into_inner(lab).expect("all ended").end().await;
    });
}

#[test]
fn opaque_connections_beyond_a_limit_are_reset() {
    let (service, each) =
        (Limits { connections: Some(3), ..Limits::default() }, Limits { connections_per_endpoint: Some(2), ..Limits::default() });
    for (limits, kept) in [(service, 3), (each, 4)] {
        first_seeds(8, &async |seed| {
            let lab = lab(seed, limits);
            let mut peers = Vec::new();
            for _ in 0..8 {
                let mut peer = lab.dial(0).await;
                peer.write_all(&[1, 2, 3, 4]).await.expect("there is room");
                peers.push(peer);
            }
            sleep(Duration::from_secs(1)).await;
            let mut open = Vec::new();
            for mut peer in peers {
                match timeout(Duration::from_millis(10), peer.read(&mut [0])).await {
                    Err(_) => open.push(peer),
                    Ok(end) => assert!(end.is_err(), "a proper end"),
                }
            }
            assert_eq!(open.len(), kept, "{limits:?}");
            drop(open);
            sleep(Duration::from_secs(1)).await;
            // There is room again.
            let mut peer = lab.dial(0).await;
            peer.write_all(&[1, 2, 3, 4]).await.expect("there is room");
            sleep(Duration::from_secs(1)).await;
            assert!(timeout(Duration::from_millis(10), peer.read(&mut [0])).await.is_err(), "it was reset");
            drop(peer);
            Rc::into_inner(lab).expect("all ended").end().await;
        });
    }
}

#[test]
fn where_a_connection_takes_few_streams_others_are_opened() {
    first_seeds(4, &async |seed| {
        let lab = Rc::new(Lab::plain(seed, &[1]));
        lab.backends[0].streams.set(3);
        lab.backends[0].does(|_| grpc(0).after(SLOW));
        let send = lab.http2(0).await;
        let mut calls = JoinSet::new();
        for id in 0..12 {
            let send = send.clone();
            calls.spawn_local(async move { grpc_call(&send, id, &[]).await.expect("an answer").code });
            // One after the other, so that a new connection has said how many it takes.
            sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(lab.backends[0].busy.get(), 12, "some wait for others");
        while let Some(code) = calls.join_next().await {
            assert_eq!(code.expect("no panic"), Some(0));
        }
        drop(send);
        Rc::into_inner(lab).expect("all ended").end().await;
    });
}

#[test]
fn a_switched_connection_keeps_its_place_until_it_was_silent_for_too_long() {
    first_seeds(8, &async |seed| {
        let lab = Rc::new(Lab::new(Setup::either(seed, &[2]).workers(1 + seed % 3)));
        let timeouts = Timeouts { idle: Some(Duration::from_secs(20)), ..Timeouts::default() };
        lab.policy(
            0,
            TrafficPolicy { limits: Limits { requests: Some(1), ..Limits::default() }, timeouts, ..TrafficPolicy::default() },
        );
        lab.backends.iter().for_each(|b| b.does(|a| if a.target == "/switch" { Reply::Switch } else { status(200) }));
        let mut client = lab.client(0).await;
        client.say(b"GET /switch HTTP/1.1\r\nhost: api\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n").await;
        // It has no body: what follows is another protocol.
        let switched = client.message(false).await.expect("an answer");
        assert_eq!(switched.status(), 101, "{}", switched.head);
        let mut echo = [0; 4];
        for _ in 0..3 {
            sleep(Duration::from_secs(15)).await;
            client.say(b"ping").await;
            client.peer.read_exact(&mut echo).await.expect("it is not silent for too long");
            assert_eq!(&echo, b"ping");
            let other = lab.ask(0, "GET /", &[], None).await.expect("an answer");
            assert_eq!((other.status(), other.field("weft-error")), (503, Some("overloaded")));
        }
        let began = Instant::now();
        let end = timeout(Duration::from_secs(60), client.peer.read(&mut echo)).await.expect("it ends");
        assert!(end.is_err(), "it looks like an end: {end:?}");
        assert!((20..=41).contains(&began.elapsed().as_secs()), "after {:?}", began.elapsed());
        let other = lab.ask(0, "GET /", &[], None).await.expect("an answer");
        assert_eq!(other.status(), 200, "its place is free");
        drop(client);
        Rc::into_inner(lab).expect("every client has ended").end().await;
    });
}
