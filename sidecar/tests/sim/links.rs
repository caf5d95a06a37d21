//! A link that should be mutual TLS and cannot be is an error, never plaintext (Invariant 1).

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, sleep};
use weft_certs::LeafKind;

use crate::peers::{Conversation, Seen, http1_application, serve};
use crate::seeds::{each_seed, simulate};
use crate::world::{B, BYTES, CALLEE, Plan, UNANSWERED, WEB_TARGET, World};

const SECRET: &str = "what nobody else may read";

/// Calls both ports; gives why HTTP was refused. Opaque bytes must end in a reset.
async fn refused(world: &World) -> String {
    let request = format!("GET / HTTP/1.1\r\nhost: api\r\nx-secret: {SECRET}\r\n\r\n");
    let mut client = Conversation::new(world.dial_web().await);
    client.say(request.as_bytes()).await;
    let answer = client.answer().await.expect("weft says why");
    assert!(answer.status() >= 500, "{}", answer.head);
    let mut client = world.dial_bytes().await;
    // It may be reset while we write.
    let _ = client.write_all(request.as_bytes()).await;
    let end = client.read_to_end(&mut Vec::new()).await;
    assert!(end.is_err(), "a proper end");
    answer.field("weft-error").expect("weft's own answer says so").to_owned()
}

#[test]
fn a_peer_that_is_not_who_it_should_be_gets_nothing() {
    let cases = [
        (LeafKind::Valid, "spiffe://cluster.local/ns/shop/sa/impostor", "upstream-identity"),
        (LeafKind::Expired, CALLEE, "upstream-tls"),
        (LeafKind::NotYetValid, CALLEE, "upstream-tls"),
        (LeafKind::WrongTrustDomain, CALLEE, "upstream-untrusted"),
        (LeafKind::WrongExtendedKeyUsage, CALLEE, "upstream-tls"),
        (LeafKind::ForeignRoot, CALLEE, "upstream-tls"),
    ];
    each_seed(&async |seed| {
        let (kind, id, reason) = cases[seed as usize % cases.len()];
        let world = World::new(&Plan { shown: (kind, id), ..Plan::new(seed) });
        let seen = Rc::new(Seen::default());
        for port in [WEB_TARGET, BYTES] {
            let seen = Rc::clone(&seen);
            serve(&world.network.host(B), port, move |peer| http1_application(peer, Rc::clone(&seen)));
        }
        assert_eq!(refused(&world).await, reason, "{kind}");
        assert!(seen.requests.borrow().is_empty(), "{kind}: the application was reached");
        world.end().await;
    });
}

/// What stands where a sidecar should be.
#[derive(Clone, Copy, Debug)]
enum Instead {
    Http,
    Garbage,
    End,
    Reset,
    Silence,
}

#[test]
fn where_a_sidecar_should_be_and_is_not_nothing_is_sent_in_the_clear() {
    const ALL: [Instead; 5] = [Instead::Http, Instead::Garbage, Instead::End, Instead::Reset, Instead::Silence];
    each_seed(&async |seed| {
        let instead = ALL[seed as usize % ALL.len()];
        let world = World::new(&Plan { sidecars: &[], ..Plan::new(seed) });
        let heard: Rc<RefCell<Vec<Vec<u8>>>> = Rc::default();
        for port in [WEB_TARGET, BYTES] {
            let heard = Rc::clone(&heard);
            serve(&world.network.host(B), port, move |mut peer| {
                let heard = Rc::clone(&heard);
                async move {
                    let _ = match instead {
                        Instead::Http => peer.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await,
                        Instead::Garbage => peer.write_all(&[0x16, 3, 3, 0xff, 0xff, 0]).await,
                        Instead::End => peer.shutdown().await,
                        Instead::Reset => return peer.0.reset(),
                        Instead::Silence => Ok(()),
                    };
                    let mut bytes = Vec::new();
                    while peer.read_buf(&mut bytes).await.is_ok_and(|n| n > 0) {}
                    heard.borrow_mut().push(bytes);
                }
            });
        }
        let reason = refused(&world).await;
        let expected = if matches!(instead, Instead::Silence) { "upstream-connect-timeout" } else { "upstream-tls" };
        assert_eq!(reason, expected, "{instead:?}");
        sleep(Duration::from_secs(1)).await;
        for bytes in heard.borrow().iter() {
            assert!(bytes.first().is_none_or(|first| *first == 0x16), "{instead:?}: no TLS record");
            assert!(!bytes.windows(SECRET.len()).any(|w| w == SECRET.as_bytes()), "{instead:?}: in the clear");
        }
        world.end().await;
    });
}

#[test]
fn an_address_of_the_mesh_without_an_answer_is_an_error_after_a_second() {
    simulate(1, &async |seed| {
        let world = World::new(&Plan::smooth(seed));
        let reached = Rc::new(RefCell::new(false));
        let told = Rc::clone(&reached);
        serve(&world.network.host(UNANSWERED), 80, move |_| {
            *told.borrow_mut() = true;
            async {}
        });
        let began = Instant::now();
        let peer = world.dial_address(SocketAddr::new(UNANSWERED, 80)).await.expect("the sidecar accepts");
        let mut client = Conversation::new(peer);
        client.say(b"GET / HTTP/1.1\r\nhost: api\r\n\r\n").await;
        let answer = client.answer().await.expect("weft says why");
        assert_eq!((answer.status(), answer.field("weft-error")), (503, Some("discovery-unavailable")));
        assert_eq!(began.elapsed(), Duration::from_secs(1));
        assert!(!*reached.borrow(), "it was dialled all the same");
        drop(client);
        world.end().await;
    });
}
