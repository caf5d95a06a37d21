//! Who speaks first decides what a connection is, however its bytes are cut.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, sleep, sleep_until};
use weft_core::wellknown::QUIET_TIME_MILLIS;
use weft_sidecar::stream::Shared as Peer;

use crate::peers::serve;
use crate::seeds::{each_seed, simulate};
use crate::world::{B, CALLER, Plan, WEB_TARGET, World};

const GREETING: &str = "220 ready\r\n";
const GET: &str = "GET / HTTP/1.1\r\nhost: api\r\n\r\n";
const TEXT: &str = "EHLO example\r\n";

struct Case {
    /// What the client says, and when, in milliseconds since it connected.
    says: &'static [(u64, &'static str)],
    /// When the server greets, in milliseconds since it was connected to.
    greets: Option<u64>,
    http: bool,
}

const CASES: [Case; 8] = [
    Case { says: &[(0, GET)], greets: None, http: true },
    Case { says: &[(60, GET)], greets: None, http: true },
    Case { says: &[(10, "GE"), (80, "T / HTTP/1.1\r\nhost: api\r\n\r\n")], greets: None, http: true },
    Case { says: &[(60, "G"), (300, "ET / HTTP/1.1\r\nhost: api\r\n\r\n")], greets: None, http: true },
    Case { says: &[(0, TEXT)], greets: None, http: false },
    Case { says: &[(60, "EH"), (90, "LO example\r\n")], greets: None, http: false },
    Case { says: &[(300, TEXT)], greets: Some(0), http: false },
    Case { says: &[(300, GET)], greets: Some(40), http: false },
];

/// Greets if it is to, answers what ends like a head, and notes what it heard, if it heard anything.
async fn application(mut peer: Peer, greets: Option<u64>, noted: Rc<RefCell<Vec<String>>>) {
    if let Some(after) = greets {
        sleep(Duration::from_millis(after)).await;
        let _ = peer.write_all(GREETING.as_bytes()).await;
    }
    let mut heard = Vec::new();
    while peer.read_buf(&mut heard).await.is_ok_and(|n| n > 0) {
        if heard.ends_with(b"\r\n\r\n") {
            let _ = peer.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
        }
    }
    if !heard.is_empty() {
        noted.borrow_mut().push(String::from_utf8_lossy(&heard).into_owned());
    }
}

#[test]
fn the_first_to_speak_decides_whatever_the_pieces() {
    each_seed(&async |seed| {
        for (n, case) in CASES.iter().enumerate() {
            let world = World::new(&Plan::new(seed));
            let noted: Rc<RefCell<Vec<String>>> = Rc::default();
            let (each, greets) = (Rc::clone(&noted), case.greets);
            serve(&world.network.host(B), WEB_TARGET, move |peer| application(peer, greets, Rc::clone(&each)));
            let mut client = world.dial_web().await;
            let began = Instant::now();
            for (at, text) in case.says {
                sleep_until(began + Duration::from_millis(*at)).await;
                client.write_all(text.as_bytes()).await.expect("it is open");
            }
            client.shutdown().await.expect("it is open");
            let mut answer = String::new();
            client.read_to_string(&mut answer).await.expect("a proper end");
            drop(client);
            assert_eq!(answer.starts_with(GREETING), case.greets.is_some(), "case {n}: {answer:?}");
            // What idles between the sidecar and the application ends.
            sleep(Duration::from_secs(400)).await;
            let said: String = case.says.iter().map(|(_, text)| *text).collect();
            let noted = noted.take();
            let [heard] = &noted[..] else { panic!("case {n}: the application heard {noted:?}") };
            let as_http = heard.contains(&format!("weft-client-id: {CALLER}\r\n"));
            assert!(as_http == case.http && (as_http || *heard == said), "case {n}: the application heard {heard:?}");
            world.end().await;
        }
    });
}

#[test]
fn a_server_that_spoke_first_is_not_waited_for_again() {
    simulate(1, &async |seed| {
        let world = World::new(&Plan::smooth(seed));
        serve(&world.network.host(B), WEB_TARGET, |peer| application(peer, Some(0), Rc::default()));
        // Both find a link: what it takes to open one is not what is measured.
        let mut client = world.dial_web().await;
        client.write_all(b"GET / HTTP/1.1\r\nhost: web\r\n\r\n").await.expect("a request");
        let mut refused = [0; 12];
        client.read_exact(&mut refused).await.expect("an answer");
        assert_eq!(&refused, b"HTTP/1.1 502");
        drop(client);
        let mut took = Vec::new();
        for _ in 0..2 {
            let mut client = world.dial_web().await;
            let began = Instant::now();
            let mut greeting = vec![0; GREETING.len()];
            client.read_exact(&mut greeting).await.expect("a greeting");
            took.push(began.elapsed());
        }
        assert_eq!(took[0], took[1] + Duration::from_millis(QUIET_TIME_MILLIS));
        world.end().await;
    });
}
