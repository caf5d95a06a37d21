//! A connection lasts no longer than the certificates that it was made with.

use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::time::sleep;
use weft_core::wellknown::{CLOCK_SKEW_SECS, LEAF_LIFETIME_SECS};
use weft_sidecar::identity::unix_now;

use crate::authorization::{echo, echoes};
use crate::seeds::first_seeds;
use crate::world::{BYTES, Plan, World};

/// Seconds. Handshakes look at the machine's own clock, which goes on meanwhile.
const LIFE: i64 = 600;

#[test]
fn what_is_open_ends_with_the_earlier_of_the_two_certificates() {
    for lifetimes in [[LIFE, LEAF_LIFETIME_SECS], [LEAF_LIFETIME_SECS, LIFE]] {
        first_seeds(2, &async |seed| {
            let world = World::new(&Plan { lifetimes, ..Plan::smooth(seed) });
            let ended = echo(&world, BYTES);
            let mut open = world.dial_bytes().await;
            assert!(echoes(&mut open).await);
            sleep(Duration::from_secs(LIFE as u64 / 2)).await;
            assert!(echoes(&mut open).await && ended.get().is_none(), "it is good for longer");
            sleep(Duration::from_secs(LIFE as u64 / 2 + 10)).await;
            assert!(open.read(&mut [0]).await.is_err(), "a proper end, or none");
            assert_eq!(ended.get(), Some(false), "the application takes it for whole");
            drop(open);
            world.end().await;
        });
    }
}

/// What is asked every few seconds by the machine's clock: the same at both ends, and where the other end does not do its part.
#[test]
fn a_peer_whose_certificate_has_ended_is_cut_off_beyond_the_skew_and_no_sooner() {
    for caller in [true, false] {
        first_seeds(2, &async |seed| {
            let world = World::new(&Plan { lifetimes: [LIFE; 2], ..Plan::smooth(seed) });
            let ended = echo(&world, BYTES);
            let mut open = world.dial_bytes().await;
            assert!(echoes(&mut open).await);
            let links = if caller { &world.caller.workers[0].trusted } else { &world.callees[0].workers[0].trusted };
            // At the latest, it was made now.
            links.end(unix_now() + LIFE + CLOCK_SKEW_SECS - 300);
            sleep(Duration::from_secs(1)).await;
            assert!(echoes(&mut open).await && ended.get().is_none(), "clocks may differ by so much");
            links.end(unix_now() + LIFE + CLOCK_SKEW_SECS + 10);
            sleep(Duration::from_secs(1)).await;
            assert!(open.read(&mut [0]).await.is_err(), "a proper end, or none");
            assert_eq!(ended.get(), Some(false), "the application takes it for whole");
            drop(open);
            world.end().await;
        });
    }
}
