//! Before there is a policy, nobody comes in and nobody gets out.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::sleep;
use weft_core::authorization::Authorization;
use weft_core::metrics::{Format, Labels, expose};
use weft_core::policy::OutboundPolicy;
use weft_sidecar::metrics::families::gather;

use crate::authorization::{echo, echoes};
use crate::calls::call;
use crate::lab::{Lab, Setup};
use crate::peers::Conversation;
use crate::seeds::first_seeds;
use crate::world::{B, BYTES, Plan, WEB_TARGET, World, inbound_policy};

/// What a sidecar tells of itself.
fn metrics(sidecar: &crate::world::Sidecar) -> String {
    String::from_utf8(expose(Format::Text, &gather(&sidecar.shared), &Labels::new())).expect("text")
}

#[test]
fn nobody_comes_in_before_the_first_inbound_policy() {
    first_seeds(8, &async |seed| {
        let lab = Lab::new(Setup::mesh(seed, &[1]));
        let callee = &lab.callees[0];
        callee.shared.mesh.inbound.store(None);
        for _ in 0..3 {
            // Nobody is spoken to, not even in TLS: to the caller's sidecar, the connection is reset.
            let answer = lab.ask(0, "GET /", &[], None).await.expect("weft says why");
            assert_eq!((answer.status(), answer.field("weft-error")), (502, Some("upstream-tls")), "{}", answer.head);
            let send = lab.http2(0).await;
            let called = call(&send, "GET /", &[], &[]).await.expect("weft says why");
            assert_eq!((called.status, called.field("weft-error")), (502, Some("upstream-tls")), "{called:?}");
            drop(send);
            sleep(Duration::from_secs(60)).await;
        }
        let told = metrics(callee);
        assert!(told.contains("weft_refused_total{error_type=\"not-ready\"}"), "{told}");
        assert_eq!(lab.count(), 0, "the application was reached");
        callee.govern(inbound_policy(Authorization::default()));
        assert_eq!(lab.ask(0, "GET /", &[], None).await.map(|a| a.status()), Some(200));
        lab.end().await;
    });
}

#[test]
fn no_bytes_come_in_before_the_first_inbound_policy() {
    first_seeds(8, &async |seed| {
        let world = World::new(&Plan::smooth(seed));
        let (ended, web) = (echo(&world, BYTES), echo(&world, WEB_TARGET));
        let callee = &world.callees[0];
        callee.shared.mesh.inbound.store(None);
        let mut bytes = world.dial_bytes().await;
        assert!(!echoes(&mut bytes).await);
        assert!(bytes.read(&mut [0]).await.is_err(), "a proper end");
        drop(bytes);
        // Nor in the clear, from a pod without a sidecar.
        for port in [BYTES, WEB_TARGET] {
            let socket = world.network.host(crate::world::C).connect((B, port).into()).await.expect("the sidecar accepts");
            let socket = weft_sidecar::io::Socket::Memory(socket);
            let stream = weft_sidecar::stream::Stream::plain(socket, weft_sidecar::pool::Buffers::default());
            let mut plain = weft_sidecar::stream::Shared(std::rc::Rc::new(stream));
            let _ = plain.write_all(b"GET / HTTP/1.1\r\nhost: api\r\n\r\n").await;
            assert!(Conversation::new(plain).answer().await.is_none(), "{port}");
        }
        let told = metrics(callee);
        assert!(told.contains("weft_refused_total{error_type=\"not-ready\"}"), "{told}");
        assert_eq!((ended.get(), web.get()), (None, None), "the application was reached");
        callee.govern(inbound_policy(Authorization::default()));
        let mut bytes = world.dial_bytes().await;
        assert!(echoes(&mut bytes).await);
        drop(bytes);
        world.end().await;
    });
}

#[test]
fn nobody_gets_out_before_the_first_outbound_policy() {
    first_seeds(8, &async |seed| {
        let lab = Lab::new(Setup::either(seed, &[1]));
        lab.caller.shared.mesh.outbound.store(None);
        let answer = lab.ask(0, "GET /", &[], None).await.expect("weft says why");
        assert_eq!((answer.status(), answer.field("weft-error")), (503, Some("not-ready")));
        let send = lab.http2(0).await;
        let called = call(&send, "GET /", &[], &[]).await.expect("weft says why");
        assert_eq!((called.status, called.field("weft-error")), (503, Some("not-ready")));
        drop(send);
        assert_eq!(lab.count(), 0, "the application was reached");
        lab.caller.shared.mesh.govern_outbound(OutboundPolicy::default());
        assert_eq!(lab.ask(0, "GET /", &[], None).await.map(|a| a.status()), Some(200));
        lab.end().await;
    });
}
