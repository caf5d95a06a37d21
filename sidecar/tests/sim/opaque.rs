//! Bytes: they arrive exactly, either half may end first, and what broke off never looks like an end (Invariant 7).

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::spawn_local;
use tokio::time::{Instant, sleep, timeout};
use weft_sidecar::stream::Shared as Peer;

use crate::peers::{Random, payload, serve};
use crate::seeds::{each_seed, simulate};
use crate::world::{A, B, BYTES, Plan, World};

const UPLOAD: u64 = 1;
const DOWNLOAD: u64 = 2;

/// Sends `out` and ends its half, reads to the end meanwhile or afterwards; gives what came, if it ended properly.
async fn converse(peer: Peer, out: &[u8], listen_first: bool) -> Option<Vec<u8>> {
    let (mut reader, mut writer) = (peer.clone(), peer);
    let mut heard = Vec::new();
    let write = async {
        writer.write_all(out).await?;
        writer.shutdown().await
    };
    // One half may break while the other is whole.
    let read = if listen_first {
        let read = reader.read_to_end(&mut heard).await;
        let _ = write.await;
        read
    } else {
        tokio::join!(reader.read_to_end(&mut heard), write).0
    };
    read.ok().map(|_| heard)
}

/// What each side heard, if it ended properly.
async fn exchange(world: &World, plan: &Plan, random: &Random) -> [(Option<Vec<u8>>, Vec<u8>); 2] {
    let up = payload(UPLOAD, random.below(plan.amount()));
    let down = payload(DOWNLOAD, random.below(plan.amount()));
    let server_listens_first = random.below(2) == 0;
    let heard = Rc::new(RefCell::new(None));
    let (told, answer) = (Rc::clone(&heard), down.clone());
    serve(&world.network.host(B), BYTES, move |peer| {
        let (told, answer) = (Rc::clone(&told), answer.clone());
        async move {
            let all = converse(peer, &answer, server_listens_first).await;
            *told.borrow_mut() = all;
        }
    });
    let downloaded = converse(world.dial_bytes().await, &up, false).await;
    // The server may hear of the end later: what is under way goes at a kilobyte per latency in the narrowest world.
    sleep(Duration::from_secs(10)).await;
    let uploaded = heard.borrow_mut().take();
    [(uploaded, up), (downloaded, down)]
}

#[test]
fn bytes_arrive_exactly_and_each_half_ends_by_itself() {
    each_seed(&async |seed| {
        let plan = Plan::new(seed);
        let world = World::new(&plan);
        for (heard, sent) in exchange(&world, &plan, &Random::new(seed)).await {
            assert!(heard.as_ref() == Some(&sent), "{:?} bytes of {} arrived", heard.map(|h| h.len()), sent.len());
        }
        world.end().await;
    });
}

#[test]
fn what_breaks_off_is_an_error_for_whoever_still_reads() {
    each_seed(&async |seed| {
        let plan = Plan::new(seed);
        let (world, random) = (World::new(&plan), Random::new(seed));
        let (network, at, link) = (world.network.clone(), random.below(40), random.one_of(&[(A, A), (A, B), (B, B)]));
        spawn_local(async move {
            sleep(Duration::from_millis(at)).await;
            network.reset(link.0, link.1);
        });
        for (heard, sent) in exchange(&world, &plan, &random).await {
            if let Some(heard) = heard {
                assert!(heard == sent, "a proper end after {} of {} bytes", heard.len(), sent.len());
            }
        }
        world.end().await;
    });
}

#[test]
fn a_reader_that_does_not_read_is_given_up() {
    simulate(1, &async |seed| {
        let plan = Plan::smooth(seed);
        let world = World::new(&plan);
        let gave_up = Rc::new(RefCell::new(None));
        let told = Rc::clone(&gave_up);
        serve(&world.network.host(B), BYTES, move |mut peer| {
            let told = Rc::clone(&told);
            async move {
                let began = Instant::now();
                let sent = peer.write_all(&payload(DOWNLOAD, 2_000_000)).await;
                *told.borrow_mut() = Some((sent.is_err(), began.elapsed()));
            }
        });
        let client = world.dial_bytes().await;
        sleep(Duration::from_secs(70)).await;
        let (failed, took) = gave_up.borrow_mut().take().expect("the server still writes");
        let stall = world.caller.shared.config.timeouts.write;
        assert!(failed && took >= stall && took < stall + Duration::from_secs(1), "{failed} after {took:?}");
        let mut rest = Vec::new();
        let end = timeout(Duration::from_secs(1), client.clone().read_to_end(&mut rest)).await.expect("it has ended");
        assert!(end.is_err(), "a proper end after {} bytes", rest.len());
        drop(client);
        world.end().await;
    });
}
