//! What is known of an endpoint is the sidecar's, not a worker's (Invariant 8).

use std::net::IpAddr;
use std::rc::Rc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::peers::{Conversation, Seen, http1_application, request, serve};
use crate::seeds::simulate;
use crate::world::{B, C, Plan, WEB_TARGET, World};

const WORKERS: [u64; 2] = [1, 8];

/// Two endpoints, of which these have a sidecar and an application.
fn world(plan: Plan, workers: u64, alive: &'static [IpAddr]) -> World {
    let world = World::new(&Plan { workers, endpoints: &[B, C], sidecars: alive, ..plan });
    for ip in alive {
        let seen = Rc::new(Seen::default());
        serve(&world.network.host(*ip), WEB_TARGET, move |peer| http1_application(peer, Rc::clone(&seen)));
    }
    world
}

async fn get(world: &World, line: &str, id: u64) -> Conversation {
    let mut client = Conversation::new(world.dial_web().await);
    client.say(&request(line, id, None, false)).await;
    client
}

/// Every worker has a connection of its own from its first client on.
fn all_work(world: &World) -> bool {
    world.caller.workers.iter().all(|worker| worker.connections.len() > 2)
}

#[test]
fn one_failure_warns_every_worker() {
    for workers in WORKERS {
        simulate(workers, &async |seed| {
            // The second endpoint is dead.
            let world = world(Plan::smooth(seed), workers, &[B]);
            let mut clients = Vec::new();
            for id in 0..64 {
                let mut client = get(&world, "GET /length/10 HTTP/1.1", id).await;
                assert_eq!(client.answer().await.expect("an answer").status(), 200);
                clients.push(client);
            }
            assert!(all_work(&world), "a worker got no client: choose another seed");
            let endpoints = world.service.view.load().endpoints.clone();
            assert!(
                endpoints[1].health.load.failures() <= 1,
                "{} tries by {workers} workers",
                endpoints[1].health.load.failures()
            );
            assert_eq!(endpoints[0].health.load.failures(), 0);
            drop(clients);
            world.end().await;
        });
    }
}

#[test]
fn requests_under_way_count_for_every_worker() {
    for workers in WORKERS {
        simulate(workers, &async |seed| {
            let world = world(Plan::smooth(seed), workers, &[B, C]);
            let mut clients = Vec::new();
            for id in 0..64 {
                clients.push(get(&world, "GET /slow/5000 HTTP/1.1", id).await);
            }
            sleep(Duration::from_secs(1)).await;
            assert!(all_work(&world), "a worker got no client: choose another seed");
            let endpoints = world.service.view.load().endpoints.clone();
            let under_way = [endpoints[0].health.load.in_flight(), endpoints[1].health.load.in_flight()];
            assert_eq!(under_way, [32, 32], "with {workers} workers");
            let mut answers = JoinSet::new();
            for mut client in clients {
                answers.spawn_local(async move { client.answer().await.map(|answer| answer.status()) });
            }
            while let Some(status) = answers.join_next().await {
                assert_eq!(status.expect("no panic"), Some(200));
            }
            world.end().await;
        });
    }
}

#[test]
fn one_limit_holds_for_all_workers_together() {
    for workers in WORKERS {
        simulate(workers, &async |seed| {
            let world = world(Plan { options: &["--max-connections=20"], ..Plan::smooth(seed) }, workers, &[B, C]);
            let mut answers = JoinSet::new();
            for id in 0..40 {
                let mut client = get(&world, "GET /slow/5000 HTTP/1.1", id).await;
                answers.spawn_local(async move { client.answer().await.is_some() });
            }
            let mut answered = 0;
            while let Some(whole) = answers.join_next().await {
                answered += u32::from(whole.expect("no panic"));
            }
            assert_eq!(answered, 20, "with {workers} workers");
            sleep(Duration::from_secs(5)).await;
            assert_eq!(world.caller.shared.capacity.open(), 0);
            world.end().await;
        });
    }
}
