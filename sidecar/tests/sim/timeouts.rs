//! Every wait is bounded, and by the time that its setting names.

use std::rc::Rc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::peers::{Conversation, Seen, http1_application, serve};
use crate::seeds::simulate;
use crate::world::{A, B, Plan, WEB_TARGET, World};

fn world(seed: u64) -> World {
    let world = World::new(&Plan::smooth(seed));
    let seen = Rc::new(Seen::default());
    serve(&world.network.host(B), WEB_TARGET, move |peer| http1_application(peer, Rc::clone(&seen)));
    world
}

/// `took` is `expected`, or what a few round trips add to it.
fn assert_about(took: Duration, expected: Duration) {
    assert!(took >= expected && took < expected + Duration::from_millis(50), "{took:?} instead of {expected:?}");
}

#[test]
fn a_head_that_does_not_end_is_given_up() {
    simulate(1, &async |seed| {
        let world = world(seed);
        let mut client = Conversation::new(world.dial_web().await);
        let began = Instant::now();
        client.say(b"GET / HTTP/1.1\r\nhost: api\r\n").await;
        let answer = client.answer().await.expect("weft says why");
        assert_eq!((answer.status(), answer.field("weft-error")), (408, Some("request-timeout")));
        assert_about(began.elapsed(), world.caller.shared.config.timeouts.header);
        drop(client);
        world.end().await;
    });
}

#[test]
fn a_connection_that_idles_ends_properly() {
    simulate(1, &async |seed| {
        let world = world(seed);
        let mut client = Conversation::new(world.dial_web().await);
        client.say(b"GET /length/10 HTTP/1.1\r\nhost: api\r\n\r\n").await;
        assert_eq!(client.answer().await.expect("an answer").status(), 200);
        let began = Instant::now();
        assert!(client.rest().await.expect("a proper end").is_empty());
        assert_about(began.elapsed(), world.caller.shared.config.timeouts.idle);
        drop(client);
        world.end().await;
    });
}

#[test]
fn an_endpoint_that_cannot_be_reached_is_tried_three_times() {
    simulate(1, &async |seed| {
        let world = world(seed);
        world.network.partition(A, B);
        let mut client = Conversation::new(world.dial_web().await);
        let began = Instant::now();
        client.say(b"POST /length/10 HTTP/1.1\r\nhost: api\r\ncontent-length: 0\r\n\r\n").await;
        let answer = client.answer().await.expect("weft says why");
        assert_eq!((answer.status(), answer.field("weft-error")), (504, Some("upstream-connect-timeout")));
        assert_about(began.elapsed(), world.caller.shared.config.timeouts.connect * 3);
        world.network.heal(A, B);
        drop(client);
        sleep(Duration::from_secs(1)).await;
        world.end().await;
    });
}

#[test]
fn what_a_short_partition_held_back_is_answered_when_it_ends() {
    simulate(1, &async |seed| {
        let world = world(seed);
        let mut client = Conversation::new(world.dial_web().await);
        client.say(b"GET /length/10 HTTP/1.1\r\nhost: api\r\n\r\n").await;
        assert_eq!(client.answer().await.expect("an answer").status(), 200);
        world.network.partition(A, B);
        let began = Instant::now();
        client.say(b"GET /length/10 HTTP/1.1\r\nhost: api\r\n\r\n").await;
        let (answer, ()) = tokio::join!(client.answer(), async {
            sleep(Duration::from_secs(9)).await;
            world.network.heal(A, B);
        });
        assert_eq!(answer.expect("an answer").status(), 200);
        assert_about(began.elapsed(), Duration::from_secs(9));
        drop(client);
        world.end().await;
    });
}
