//! Links: what many streams on one connection must not change, and what they save.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, sleep, timeout};
use weft_sidecar::mesh::Identity;
use weft_sidecar::stream::Shared as Peer;

use crate::backend::{Reply, grpc};
use crate::calls::call;
use crate::lab::{Lab, Setup};
use crate::peers::{Conversation, Seen, http1_application, serve};
use crate::seeds::first_seeds;
use crate::world::{A, B, BYTES, Plan, WEB_TARGET, World};

/// An application that says everything again.
fn echo(world: &World) {
    serve(&world.network.host(B), BYTES, |mut peer| async move {
        let mut buffer = vec![0; 4096];
        while let Ok(n @ 1..) = peer.read(&mut buffer).await {
            if peer.write_all(&buffer[..n]).await.is_err() {
                return;
            }
        }
        let _ = peer.shutdown().await;
    });
}

async fn says(peer: &mut Peer, text: &str) {
    peer.write_all(text.as_bytes()).await.expect("it is open");
    let mut heard = vec![0; text.len()];
    peer.read_exact(&mut heard).await.expect("the application says it again");
    assert_eq!(heard, text.as_bytes());
}

/// Connections beside those that programs have open.
fn between(world: &World, programs: usize) -> usize {
    // Each program's own, and the application's.
    world.network.connections() - 2 * programs
}

#[test]
fn what_goes_to_one_place_shares_one_connection() {
    first_seeds(16, &async |seed| {
        let world = World::new(&Plan::smooth(seed));
        echo(&world);
        let mut peers = Vec::new();
        for n in 0..40 {
            let mut peer = world.dial_bytes().await;
            says(&mut peer, &format!("stream {n}")).await;
            peers.push(peer);
        }
        assert_eq!(between(&world, 40), 1);
        // One that ends takes none with it.
        for mut peer in peers.drain(..20) {
            peer.shutdown().await.expect("it is open");
            assert_eq!(peer.read_to_end(&mut Vec::new()).await.expect("a proper end"), 0);
        }
        for peer in &mut peers {
            says(peer, "still there").await;
        }
        drop(peers);
        world.end().await;
    });
}

#[test]
fn with_a_sidecar_that_has_no_links_each_has_a_connection_of_its_own() {
    first_seeds(16, &async |seed| {
        let world = World::new(&Plan::smooth(seed));
        let mesh = &world.callees[0].shared.mesh;
        let now = mesh.identity.load_full().expect("it has one");
        let mut before_links = Identity::new(now.generation, now.svid.clone(), now.bundle.clone());
        Arc::make_mut(&mut before_links.server).alpn_protocols.retain(|id| id != b"weft/link2");
        mesh.identity.store(Some(Arc::new(before_links)));
        echo(&world);
        let seen = Rc::new(Seen::default());
        let told = Rc::clone(&seen);
        serve(&world.network.host(B), WEB_TARGET, move |peer| http1_application(peer, Rc::clone(&told)));
        let mut peers = Vec::new();
        for n in 0..5 {
            let mut peer = world.dial_bytes().await;
            says(&mut peer, &format!("connection {n}")).await;
            peers.push(peer);
        }
        assert_eq!(between(&world, 5), 5);
        drop(peers);
        let mut client = Conversation::new(world.dial_web().await);
        client.say(b"GET / HTTP/1.1\r\nhost: api\r\n\r\n").await;
        assert_eq!(client.answer().await.expect("an answer").status(), 200);
        drop(client);
        world.end().await;
    });
}

#[test]
fn where_links_are_turned_off_there_are_none() {
    first_seeds(8, &async |seed| {
        let world = World::new(&Plan { options: &["--link=false"], ..Plan::smooth(seed) });
        echo(&world);
        let mut peers = Vec::new();
        for n in 0..5 {
            let mut peer = world.dial_bytes().await;
            says(&mut peer, &format!("connection {n}")).await;
            peers.push(peer);
        }
        assert_eq!(between(&world, 5), 5);
        drop(peers);
        world.end().await;
    });
}

#[test]
fn a_peer_that_vanished_takes_no_new_streams_and_keeps_the_old_ones() {
    first_seeds(16, &async |seed| {
        let world = World::new(&Plan::smooth(seed));
        echo(&world);
        let mut old = world.dial_bytes().await;
        says(&mut old, "before").await;
        sleep(Duration::from_secs(5)).await;
        world.network.partition(A, B);
        // The first that is opened asks whether anybody is there; those after it know that nobody answers.
        for _ in 0..3 {
            let began = Instant::now();
            let mut new = world.dial_bytes().await;
            let _ = new.write_all(b"is anybody there?").await;
            let end =
                timeout(Duration::from_secs(10), new.read_to_end(&mut Vec::new())).await.expect("it is not waited for longer");
            assert!(end.is_err(), "a proper end");
            // It is asked for a second whether it is there; then three connections are tried, for a second each.
            assert!(began.elapsed() < Duration::from_millis(4_100), "{:?}", began.elapsed());
        }
        world.network.heal(A, B);
        says(&mut old, "after").await;
        let mut new = world.dial_bytes().await;
        says(&mut new, "again").await;
        drop((old, new));
        world.end().await;
    });
}

#[test]
fn over_http2_too_a_peer_that_vanished_takes_no_new_streams_and_keeps_the_old_ones() {
    first_seeds(16, &async |seed| {
        let lab = Lab::new(Setup::mesh(seed, &[1]));
        lab.backends[0].does(|asked| {
            let after = Duration::from_secs(if asked.target == "/slow" { 60 } else { 0 });
            Reply::Answer { status: 200, fields: vec![], body: vec![], after }
        });
        let send = lab.http2(0).await;
        let slow = tokio::task::spawn_local({
            let send = send.clone();
            async move { call(&send, "GET /slow", &[], b"").await }
        });
        sleep(Duration::from_secs(5)).await;
        let callee = lab.backends[0].ip;
        lab.network.partition(A, callee);
        // The first that is asked finds out whether anybody is there; those after it know that nobody answers.
        for _ in 0..3 {
            let began = Instant::now();
            let answer = call(&send, "GET /new", &[], b"").await.expect("weft answers");
            assert_eq!(answer.field("weft-error"), Some("upstream-connect-timeout"), "{answer:?}");
            assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
        }
        lab.network.heal(A, callee);
        assert_eq!(slow.await.expect("it ends").expect("an answer").status, 200);
        assert_eq!(call(&send, "GET /again", &[], b"").await.expect("an answer").status, 200);
        drop(send);
        lab.end().await;
    });
}

/// More of them than one connection may be granted for together, if each took as much as a stream may.
#[test]
fn over_http2_answers_that_nobody_reads_hold_up_no_other_caller() {
    first_seeds(4, &async |seed| {
        let lab = Lab::new(Setup::mesh(seed, &[1]));
        lab.backends[0].does(|_| Reply::Answer { status: 200, fields: vec![], body: vec![b'x'; 250_000], after: Duration::ZERO });
        let (slow, quick) = (lab.http2(0).await, lab.http2(0).await);
        let mut answers = Vec::new();
        for _ in 0..190 {
            let request = http::Request::get("http://api/").body(()).expect("a valid request");
            let answer = slow.clone().ready().await.expect("open").send_request(request, true).expect("room").0;
            answers.push(answer.await.expect("an answer"));
        }
        let called = timeout(Duration::from_secs(10), call(&quick, "GET /", &[], b"")).await.expect("it waits for nobody");
        assert_eq!(called.expect("an answer").body.len(), 250_000);
        drop((answers, slow, quick));
        lab.end().await;
    });
}

#[test]
fn who_does_not_read_holds_up_nobody_else() {
    first_seeds(16, &async |seed| {
        let world = World::new(&Plan::smooth(seed));
        serve(&world.network.host(B), BYTES, |mut peer| async move {
            let mut first = [0; 1];
            if peer.read_exact(&mut first).await.is_err() {
                return;
            }
            if first[0] == b's' {
                // Long enough for the others, and shorter than a write may stall.
                sleep(Duration::from_secs(20)).await;
            }
            let mut all = Vec::new();
            if peer.read_to_end(&mut all).await.is_ok() {
                let _ = peer.write_all(all.len().to_string().as_bytes()).await;
                let _ = peer.shutdown().await;
            }
        });
        let much = vec![b'x'; 600_000];
        let talk = async |kind: &[u8]| {
            let mut peer = world.dial_bytes().await;
            let (began, mut heard) = (Instant::now(), String::new());
            peer.write_all(kind).await.expect("it is open");
            peer.write_all(&much).await.expect("it is read in the end");
            peer.shutdown().await.expect("it is open");
            peer.read_to_string(&mut heard).await.expect("an answer");
            assert_eq!(heard, "600000");
            began.elapsed()
        };
        let (slow, another, quick) = tokio::join!(talk(b"s"), talk(b"s"), async {
            sleep(Duration::from_secs(1)).await;
            talk(b"q").await
        });
        assert!(slow >= Duration::from_secs(20) && another >= Duration::from_secs(20));
        assert!(quick < Duration::from_secs(2), "{quick:?}");
        world.end().await;
    });
}

/// Between the sidecars there is one HTTP/2 connection, whatever is said over it.
#[test]
fn over_http2_heads_and_bodies_arrive_as_they_went() {
    first_seeds(16, &async |seed| {
        let lab = Lab::new(Setup::mesh(seed, &[1]));
        let many: Vec<(&'static str, String)> = (0..300).map(|n| ("x-many", n.to_string())).collect();
        let mut told = many.clone();
        told.push(("content-length", "1".to_owned()));
        lab.backends[0].does(move |asked| match &*asked.target {
            "/bare" => grpc(14),
            "/many" => Reply::Answer { status: 200, fields: told.clone(), body: b"x".to_vec(), after: Duration::ZERO },
            "/empty" => Reply::Answer { status: 204, fields: vec![], body: vec![], after: Duration::ZERO },
            _ => Reply::Answer {
                status: 200,
                fields: vec![("content-length", "0".to_owned())],
                body: vec![],
                after: Duration::ZERO,
            },
        });
        let send = lab.http2(0).await;
        let bare = call(&send, "GET /bare", &[("te", "trailers")], b"").await.expect("an answer");
        assert!(bare.only && bare.code == Some(14), "{bare:?}");
        assert!(bare.head.keys().all(|name| *name == "grpc-status"), "nothing was added: {bare:?}");
        let mut fields: Vec<(&str, &str)> = many.iter().map(|(name, value)| (*name, &**value)).collect();
        fields.push(("content-length", "6"));
        let called = call(&send, "POST /many", &fields, b"a body").await.expect("an answer");
        assert_eq!((called.status, &*called.body, called.head.get_all("x-many").iter().count()), (200, &b"x"[..], 300));
        assert_eq!(called.field("content-length"), Some("1"));
        let empty = call(&send, "DELETE /empty", &[], b"").await.expect("an answer");
        assert!(empty.only && empty.status == 204 && empty.head.is_empty(), "{empty:?}");
        let zero = call(&send, "GET /zero", &[], b"").await.expect("an answer");
        assert!(zero.only && zero.field("content-length") == Some("0"), "{zero:?}");
        // Either half may be silent for as long as it likes.
        let request = http::Request::post("http://api/slow").body(()).expect("a valid request");
        let (answer, mut body) = send.clone().ready().await.expect("open").send_request(request, false).expect("room");
        body.send_data("first".into(), false).expect("room");
        sleep(Duration::from_secs(1_000)).await;
        body.send_data("last".into(), true).expect("it is open still");
        assert_eq!(answer.await.expect("an answer").status(), 200);
        // Another scheme, as one has it who took TLS off.
        let request = http::Request::get("https://api/scheme").body(()).expect("a valid request");
        let answer = send.clone().ready().await.expect("open").send_request(request, true).expect("room").0.await;
        assert_eq!(answer.expect("an answer").status(), 200);
        let seen = lab.backends[0].seen.borrow().clone();
        assert_eq!(seen[1].fields.iter().filter(|(name, _)| name == "x-many").count(), 300);
        assert_eq!((&*seen[1].body, seen[1].field("content-length")), (&b"a body"[..], Some("6")));
        assert_eq!(seen[4].body, b"firstlast");
        assert_eq!([0, 5].map(|n| seen[n].field(":scheme")), [Some("http"), Some("https")]);
        let own = |(name, _): &&(String, String)| name.starts_with("weft-") && name != "weft-client-id";
        // The caller's, the one between the sidecars, and the application's.
        assert_eq!(lab.network.connections(), 3);
        assert!(seen.iter().all(|asked| asked.field(":authority") == Some("api") && !asked.fields.iter().any(|f| own(&f))));
        drop(send);
        lab.end().await;
    });
}
