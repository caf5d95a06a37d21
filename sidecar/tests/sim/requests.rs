//! Requests: each is answered exactly once or its caller sees an error, and an answer that broke off never looks whole.

use std::rc::Rc;
use std::time::Duration;

use tokio::task::{JoinSet, spawn_local};
use tokio::time::sleep;

use crate::peers::{
    Conversation, Message, Random, Seen, http1_application, http2_application, http2_call, payload, request, serve,
};
use crate::seeds::each_seed;
use crate::world::{A, B, CALLER, Plan, WEB_TARGET, World};

/// One request, and what it asks for.
struct Order {
    post: bool,
    http10: bool,
    bytes: Vec<u8>,
    /// What the answer's body must be.
    body: Vec<u8>,
}

impl Order {
    fn new(id: u64, plan: &Plan, random: &Random, hows: &[&str]) -> Self {
        let (how, n) = (random.one_of(hows), random.below(plan.amount()));
        let (http10, post) = (random.below(4) == 0, random.below(2) == 0);
        let (method, minor) = (if post { "POST" } else { "GET" }, u8::from(!http10));
        let upload = post.then(|| random.below(plan.amount()));
        let line = format!("{method} /{how}/{n} HTTP/1.{minor}");
        Self { post, http10, bytes: request(&line, id, upload, !http10 && random.below(2) == 0), body: payload(id, n) }
    }
}

/// Sends a request over a connection that is there or a new one, and keeps it where it can go on.
async fn ask(world: &World, kept: &mut Option<Conversation>, order: &Order) -> Option<Message> {
    let mut client = match kept.take() {
        Some(client) => client,
        None => Conversation::new(world.dial_web().await),
    };
    client.say(&order.bytes).await;
    let answer = client.answer().await;
    let goes_on = answer.as_ref().is_some_and(|a| a.field("connection") != Some("close"));
    if goes_on && !order.http10 {
        *kept = Some(client);
    } else if answer.is_some()
        && let Ok(more) = client.rest().await
    {
        assert!(more.is_empty(), "{} bytes behind an answer", more.len());
    }
    answer
}

fn http1(world: &World) -> Rc<Seen> {
    let seen = Rc::new(Seen::default());
    let each = Rc::clone(&seen);
    serve(&world.network.host(B), WEB_TARGET, move |peer| http1_application(peer, Rc::clone(&each)));
    seen
}

/// Breaks something now and then, for two seconds.
fn break_things(world: &World, random: &Random) {
    for _ in 0..3 {
        let network = world.network.clone();
        let (a, b) = random.one_of(&[(A, A), (A, B), (B, B)]);
        let (at, lasts, reset) = (random.below(200), random.below(3_000), random.below(2) == 0);
        spawn_local(async move {
            sleep(Duration::from_millis(at)).await;
            if reset {
                network.reset(a, b);
            } else {
                network.partition(a, b);
                sleep(Duration::from_millis(lasts)).await;
                network.heal(a, b);
            }
        });
    }
}

#[test]
fn with_nothing_broken_each_request_is_answered_once_and_whole() {
    each_seed(&async |seed| {
        let plan = Plan::new(seed);
        let (world, random) = (World::new(&plan), Random::new(seed));
        let seen = http1(&world);
        let mut kept = None;
        for id in 1..8 {
            let order = Order::new(id, &plan, &random, &["length", "chunked", "close"]);
            let answer = ask(&world, &mut kept, &order).await.expect("an answer");
            assert_eq!(answer.status(), 200, "{}", answer.head);
            assert!(answer.body == order.body, "{} bytes of {}", answer.body.len(), order.body.len());
            assert_eq!(seen.times(id), 1);
        }
        // Three at once, answered in their order.
        let mut client = Conversation::new(world.dial_web().await);
        let three: Vec<u8> = (11..14).flat_map(|id| request("GET /length/50 HTTP/1.1", id, None, false)).collect();
        client.say(&three).await;
        for id in 11..14 {
            assert_eq!(client.answer().await.expect("an answer").body, payload(id, 50));
        }
        assert!(seen.callers.borrow().iter().eq([CALLER]), "{:?}", seen.callers.borrow());
        drop((client, kept));
        world.end().await;
    });
}

#[test]
fn whatever_breaks_an_answer_is_whole_or_an_error_and_nothing_is_posted_twice() {
    each_seed(&async |seed| {
        let plan = Plan::new(seed);
        let (world, random) = (World::new(&plan), Random::new(seed));
        let seen = http1(&world);
        break_things(&world, &random);
        let mut kept = None;
        for id in 1..9 {
            let order = Order::new(id, &plan, &random, &["length", "chunked", "close", "reset"]);
            sleep(Duration::from_millis(random.below(30))).await;
            let answer = ask(&world, &mut kept, &order).await;
            match answer {
                Some(answer) if answer.status() == 200 => {
                    assert!(answer.body == order.body, "{} bytes of {} look whole", answer.body.len(), order.body.len());
                    assert!(seen.times(id) > 0, "{id} was answered by nobody");
                }
                Some(answer) => assert!(answer.field("weft-error").is_some(), "{}", answer.head),
                None => {}
            }
            assert!(!order.post || seen.times(id) <= 1, "{id} was posted {} times", seen.times(id));
        }
        // Whatever is still under way arrives. Three attempts of each sidecar are the most.
        sleep(Duration::from_secs(5)).await;
        for (id, times) in seen.requests.borrow().iter() {
            assert!(*times <= 9, "{id} arrived {times} times");
        }
        drop(kept);
        world.end().await;
    });
}

#[test]
fn over_http2_streams_are_whole_or_errors() {
    each_seed(&async |seed| {
        let plan = Plan::new(seed);
        let (world, random) = (World::new(&plan), Random::new(seed));
        let seen = Rc::new(Seen::default());
        let each = Rc::clone(&seen);
        serve(&world.network.host(B), WEB_TARGET, move |peer| http2_application(peer, Rc::clone(&each)));
        let faults = seed % 2 == 1;
        if faults {
            break_things(&world, &random);
        }
        let Ok((send, connection)) = h2::client::handshake(world.dial_web().await).await else {
            assert!(faults, "no handshake");
            sleep(Duration::from_secs(5)).await;
            return world.end().await;
        };
        let driver = spawn_local(connection);
        let mut calls = JoinSet::new();
        for id in 1..9 {
            let (send, n, at) = (send.clone(), random.below(plan.amount()), random.below(100));
            calls.spawn_local(async move {
                sleep(Duration::from_millis(at)).await;
                (id, n, http2_call(send, id, n).await)
            });
        }
        while let Some(call) = calls.join_next().await {
            let (id, n, answer) = call.expect("no panic");
            match answer {
                Ok((200, _, body, trailer)) => {
                    assert!(body == payload(id, n), "{} bytes of {n} look whole", body.len());
                    assert!(trailer, "the trailer is missing, and nothing says so");
                    assert!(seen.times(id) > 0 && (faults || seen.times(id) == 1));
                }
                Ok((status, error, _, _)) => assert!(faults && error.is_some(), "{status} without a reason"),
                Err(e) => assert!(faults, "{e}"),
            }
        }
        drop(send);
        let _ = driver.await;
        sleep(Duration::from_secs(5)).await;
        world.end().await;
    });
}
