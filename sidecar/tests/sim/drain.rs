//! A drain is bounded: what can end politely does, and what is cut never looks complete (Invariant 7).

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::spawn_local;
use tokio::time::{Instant, sleep};

use crate::peers::{Conversation, Seen, http1_application, http2_application, http2_call, serve};
use crate::seeds::simulate;
use crate::world::{A, B, BYTES, Plan, WEB_TARGET, World};

fn world(seed: u64) -> World {
    let world = World::new(&Plan::smooth(seed));
    let (seen, host) = (Rc::new(Seen::default()), world.network.host(B));
    serve(&host, WEB_TARGET, move |peer| http1_application(peer, Rc::clone(&seen)));
    // Says what it hears.
    serve(&host, BYTES, |mut peer| async move {
        let mut heard = Vec::new();
        while peer.read_buf(&mut heard).await.is_ok_and(|n| n > 0) {
            let _ = peer.write_all(&std::mem::take(&mut heard)).await;
        }
    });
    world
}

async fn get(world: &World, line: &str) -> Conversation {
    let mut client = Conversation::new(world.dial_web().await);
    client.say(format!("{line}\r\nhost: api\r\n\r\n").as_bytes()).await;
    client
}

#[test]
fn what_is_under_way_ends_and_the_rest_is_cut_in_time() {
    simulate(1, &async |seed| {
        let mut world = world(seed);
        let mut idle = get(&world, "GET /length/10 HTTP/1.1").await;
        assert_eq!(idle.answer().await.expect("an answer").status(), 200);
        let mut slow = get(&world, "GET /slow/5000 HTTP/1.1").await;
        let mut bytes = world.dial_bytes().await;
        bytes.write_all(b"hello").await.expect("it is open");
        bytes.read_exact(&mut [0; 5]).await.expect("the echo");
        let timeouts = world.caller.shared.config.timeouts;
        let (host, service) = (world.network.host(A), world.service.view.load().service.addresses[0]);
        let began = Instant::now();
        let (took, ..) = tokio::join!(
            world.caller.drain(),
            async {
                assert!(idle.rest().await.expect("a proper end").is_empty());
                let took = began.elapsed();
                assert!(took <= timeouts.drain_grace + Duration::from_secs(1), "an idle connection was kept for {took:?}");
            },
            async {
                assert_eq!(slow.answer().await.expect("it is under way, and may end").status(), 200);
                assert!(slow.rest().await.expect("a proper end").is_empty());
            },
            async {
                let mut rest = Vec::new();
                assert!(bytes.read_to_end(&mut rest).await.is_err(), "what was cut ended properly");
                assert!(began.elapsed() >= timeouts.drain_grace + timeouts.drain_timeout);
            },
            async {
                let to = SocketAddr::new(service, 80);
                sleep(timeouts.drain_grace / 2).await;
                assert!(host.connect(to).await.is_ok(), "in its first phase it still accepts");
                sleep(timeouts.drain_grace).await;
                assert!(host.connect(to).await.is_err(), "in its second phase it does not");
            },
        );
        assert!(took <= timeouts.drain_grace + timeouts.drain_timeout + Duration::from_secs(1), "{took:?}");
        drop((idle, slow, bytes));
        world.end().await;
    });
}

#[test]
fn http2_is_told_to_leave_and_what_is_under_way_ends() {
    simulate(1, &async |seed| {
        let mut world = World::new(&Plan::smooth(seed));
        let seen = Rc::new(Seen::default());
        serve(&world.network.host(B), WEB_TARGET, move |peer| http2_application(peer, Rc::clone(&seen)));
        let mut clients = Vec::new();
        for id in 1..3 {
            let (send, connection) = h2::client::handshake(world.dial_web().await).await.expect("the sidecar speaks HTTP/2");
            let ended = spawn_local(async move { (connection.await, Instant::now()) });
            http2_call(send.clone(), id, 10).await.expect("an answer");
            clients.push((send, ended));
        }
        let timeouts = world.caller.shared.config.timeouts;
        // As long as what is silent may be so.
        sleep(timeouts.idle / 2).await;
        let (busy, idle) = (clients.pop().expect("two"), clients.pop().expect("two"));
        let slow = 700 * 3_000;
        let (began, answer, left) = tokio::join!(
            async {
                // What is under way is so by then.
                sleep(Duration::from_millis(200)).await;
                let began = Instant::now();
                world.caller.drain().await;
                began
            },
            http2_call(busy.0.clone(), 3, slow),
            idle.1,
        );
        assert_eq!(answer.expect("it is under way, and may end").2.len(), slow as usize);
        let (ended, at) = left.expect("no panic");
        assert!(ended.is_ok() && at - began <= timeouts.drain_grace + Duration::from_secs(1), "{ended:?} after {:?}", at - began);
        drop((busy, idle.0));
        world.end().await;
    });
}

/// An answer whose end is the connection's: cut by a proper end, it would look whole.
#[test]
fn an_answer_that_is_cut_does_not_look_whole() {
    simulate(1, &async |seed| {
        let mut world = world(seed);
        let mut client = get(&world, "GET /stuck/1000 HTTP/1.0").await;
        sleep(Duration::from_secs(1)).await;
        let (answer, _) = tokio::join!(client.answer(), world.caller.drain());
        assert!(answer.is_none(), "{} bytes of 1000 look whole", answer.map_or(0, |a| a.body.len()));
        drop(client);
        world.end().await;
    });
}

/// The callee's side: its caller sees an error or a whole answer, and other callers are not disturbed.
#[test]
fn a_callee_that_drains_answers_what_is_under_way() {
    simulate(1, &async |seed| {
        let mut world = world(seed);
        let mut slow = get(&world, "GET /slow/5000 HTTP/1.1").await;
        let mut stuck = get(&world, "GET /stuck/1000 HTTP/1.1").await;
        sleep(Duration::from_secs(1)).await;
        let mut callee = world.callees.remove(0);
        let ((), (), took) = tokio::join!(
            async { assert_eq!(slow.answer().await.expect("it is under way, and may end").status(), 200) },
            async { assert!(stuck.answer().await.is_none(), "half an answer looks whole") },
            callee.drain(),
        );
        let timeouts = callee.shared.config.timeouts;
        assert!(took <= timeouts.drain_grace + timeouts.drain_timeout + Duration::from_secs(1), "{took:?}");
        let mut late = get(&world, "GET /length/10 HTTP/1.1").await;
        let answer = late.answer().await.expect("weft says why");
        assert_eq!((answer.status(), answer.field("weft-error")), (503, Some("upstream-connect-refused")));
        drop((slow, stuck, late));
        world.callees.push(callee);
        world.end().await;
    });
}
