//! Who may call what: enforced at the callee's sidecar for requests and bytes, and again while they last.

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::sleep;
use weft_core::authorization::policy::{GrpcMatch, Operation, PathMatch, Peer, Rule, Target};
use weft_core::authorization::{Action, Authorization, Policy, Posture};
use weft_core::metrics::{Format, Labels, expose};
use weft_core::policy::{InboundPolicy, MtlsMode};
use weft_core::traffic::TrafficPolicy;
use weft_core::traffic::policy::Outlier;
use weft_sidecar::io::Socket;
use weft_sidecar::pool::Buffers;
use weft_sidecar::stream::{Shared as Raw, Stream};

use crate::backend::{PORT, Reply, grpc, status};
use crate::calls::{ask, grpc_call};
use crate::lab::{Lab, Setup, endpoint};
use crate::peers::{Conversation, Seen, http1_application, serve};
use crate::seeds::{first_seeds, simulate};
use crate::world::{A, B, BYTES, C, CALLER, Plan, Sidecar, WEB_TARGET, World, inbound_policy};

const OTHER: &str = "spiffe://cluster.local/ns/dev/sa/other";

pub(crate) fn policy(name: &str, action: Action, from: Vec<Peer>, to: Vec<Operation>) -> Arc<Policy> {
    let id = format!("shop/{name}").parse().expect("a name");
    Arc::new(Policy {
        id,
        target: Target::Mesh,
        action,
        dry_run: false,
        rules: vec![Rule { from, to }],
        ports: None,
        broken: None,
    })
}

fn from(principal: &str) -> Peer {
    Peer { principals: vec![principal.parse().expect("a principal")], ..Peer::default() }
}

fn get_below(path: &str) -> Operation {
    Operation { methods: vec!["GET".into()], paths: vec![PathMatch::prefix(path).expect("a path")], ..Operation::default() }
}

pub(crate) fn below(path: &str) -> Operation {
    Operation { methods: vec![], ..get_below(path) }
}

/// Nobody may do anything but what the policies allow.
fn deny_by_default(sidecar: &Sidecar, policies: Vec<Arc<Policy>>) {
    sidecar.govern(inbound_policy(Authorization { posture: Posture::Deny, policies, ..Authorization::default() }));
}

#[test]
fn what_is_allowed_is_served_and_what_is_not_gets_a_reference_and_nothing_else() {
    first_seeds(8, &async |seed| {
        let lab = Lab::new(Setup::mesh(seed, &[1]));
        // One failure would eject the endpoint, if a refusal were one.
        let outlier = Some(Outlier { consecutive_failures: 1, ..Outlier::default() });
        lab.policy(0, TrafficPolicy { outlier, ..TrafficPolicy::default() });
        deny_by_default(&lab.callees[0], vec![policy("web", Action::Allow, vec![from(CALLER)], vec![get_below("/ok")])]);
        let mut client = lab.client(0).await;
        for round in 0..3 {
            let answer = ask(&mut client, "GET /ok/5?x=/no", &[], None).await.expect("an answer");
            assert_eq!((answer.status(), answer.field("weft-ref")), (200, None), "{round}");
            for line in
                ["GET /no", "POST /ok", "GET /okay", "GET /ok/../no", "GET //ok", "GET /ok%2fno", "GET /ok;x", "GET /ok/%252e"]
            {
                let answer = ask(&mut client, line, &[], None).await.expect("the connection goes on");
                assert_eq!((answer.status(), answer.field("weft-error")), (403, Some("denied")), "{line}");
                let reference = answer.field("weft-ref").expect("a reference");
                let text = String::from_utf8_lossy(&answer.body);
                assert!(text.contains(reference) && !text.contains("shop/web") && !answer.head.contains("shop/web"), "{text}");
                let record = lab.callees[0].shared.denials.of(reference).expect("it is kept");
                assert_eq!((record.peer.as_str(), record.port), (CALLER, PORT));
                assert!(record.text.contains("shop/web rule 0"), "{}", record.text);
                assert!(record.remedy.is_some());
            }
        }
        // What is forwarded is what was matched, byte by byte.
        ask(&mut client, "GET /%6fk/a%20b", &[], None).await.expect("an answer");
        let targets: Vec<_> = lab.backends[0].seen.borrow().iter().map(|a| a.target.clone()).collect();
        assert_eq!(targets.last().map(String::as_str), Some("/%6fk/a%20b"));
        // Three and one arrived; none of the refused ones was tried twice.
        drop(client);
        assert_eq!((targets.len(), lab.callees[0].shared.denials.all().len()), (4, 24));
        lab.end().await;
    });
}

#[test]
fn a_refused_grpc_call_is_told_as_grpc_has_it() {
    first_seeds(4, &async |seed| {
        let lab = Lab::new(Setup::mesh(seed, &[1]));
        lab.backends[0].does(|_| grpc(0));
        let send = lab.http2(0).await;
        for (namespace, code) in [("shop", 0), ("dev", 7)] {
            let peer = Peer { namespaces: vec![namespace.parse().expect("a namespace")], ..Peer::default() };
            deny_by_default(&lab.callees[0], vec![policy("web", Action::Allow, vec![peer], vec![])]);
            let called = grpc_call(&send, 1, &[]).await.expect("an answer");
            assert_eq!((called.status, called.code), (200, Some(code)));
            assert_eq!(called.field("weft-ref").is_some(), code == 7);
        }
        // By service and method: the call is `shop.Api/Get`.
        for (service, method, code) in [
            (Some("shop.Api"), Some("Get"), 0),
            (Some("shop.Api"), None, 0),
            (None, Some("Get"), 0),
            (Some("shop.Api"), Some("Put"), 7),
            (Some("shop.api"), Some("Get"), 7),
            (Some("shop.Ap"), None, 7),
            (Some("Api"), Some("Get"), 7),
        ] {
            let grpc = vec![GrpcMatch { service: service.map(Into::into), method: method.map(Into::into) }];
            let calls = Operation { grpc, ..Operation::default() };
            deny_by_default(&lab.callees[0], vec![policy("web", Action::Allow, vec![from(CALLER)], vec![calls])]);
            let before = lab.count();
            let called = grpc_call(&send, 2, &[]).await.expect("an answer");
            assert_eq!((called.status, called.code), (200, Some(code)), "{service:?} {method:?}");
            assert_eq!(lab.count() - before, usize::from(code == 0), "{service:?} {method:?}");
        }
        drop(send);
        lab.end().await;
    });
}

/// What an application echoes until it is ended, and whether that was by a proper end.
pub(crate) fn echo(world: &World, port: u16) -> Rc<Cell<Option<bool>>> {
    let ended = Rc::new(Cell::new(None));
    let told = Rc::clone(&ended);
    serve(&world.network.host(B), port, move |mut peer| {
        let told = Rc::clone(&told);
        async move {
            let mut buf = [0; 64];
            loop {
                match peer.read(&mut buf).await {
                    Ok(0) => break told.set(Some(true)),
                    Ok(n) => drop(peer.write_all(&buf[..n]).await),
                    Err(_) => break told.set(Some(false)),
                }
            }
        }
    });
    ended
}

pub(crate) async fn echoes(peer: &mut Raw) -> bool {
    let mut back = [0; 4];
    peer.write_all(b"ping").await.is_ok() && peer.read_exact(&mut back).await.is_ok() && &back == b"ping"
}

#[test]
fn bytes_are_let_in_by_identity_and_reset_when_a_policy_no_longer_lets_them() {
    first_seeds(8, &async |seed| {
        let world = World::new(&Plan::smooth(seed));
        let app_ended = echo(&world, BYTES);
        let callee = &world.callees[0];
        deny_by_default(callee, vec![policy("web", Action::Allow, vec![from(CALLER)], vec![])]);
        let mut open = world.dial_bytes().await;
        assert!(echoes(&mut open).await);
        // Another policy that lets it in changes nothing.
        deny_by_default(callee, vec![policy("all", Action::Allow, vec![from("spiffe://cluster.local/*")], vec![])]);
        sleep(Duration::from_secs(1)).await;
        assert!(echoes(&mut open).await && app_ended.get().is_none());
        // One that depends on HTTP does not let bytes in.
        for (policies, cause) in [
            (vec![policy("http", Action::Allow, vec![from(CALLER)], vec![below("/")])], "not-http"),
            (vec![policy("other", Action::Allow, vec![from(OTHER)], vec![])], "none-allows"),
            (vec![], "default"),
        ] {
            deny_by_default(callee, vec![policy("web", Action::Allow, vec![from(CALLER)], vec![])]);
            let mut open = world.dial_bytes().await;
            assert!(echoes(&mut open).await);
            app_ended.set(None);
            deny_by_default(callee, policies);
            sleep(Duration::from_secs(1)).await;
            assert!(open.read(&mut [0]).await.is_err(), "a proper end");
            assert_eq!(app_ended.get(), Some(false), "the application takes it for whole");
            // Nor does it let new ones in.
            let mut refused = world.dial_bytes().await;
            assert!(!echoes(&mut refused).await);
            assert_eq!(callee.shared.denials.all()[0].cause, cause);
        }
        assert!(!echoes(&mut open).await, "the first one is gone, too");
        drop(open);
        world.end().await;
    });
}

#[test]
fn nothing_of_who_was_silent_goes_on_once_the_policy_has_changed() {
    for at_once in [false, true] {
        first_seeds(8, &async |seed| {
            let world = World::new(&Plan::smooth(seed));
            let heard = Rc::new(Cell::new(0));
            let told = Rc::clone(&heard);
            serve(&world.network.host(B), BYTES, move |mut peer| {
                let told = Rc::clone(&told);
                async move {
                    while let Ok(n @ 1..) = peer.read(&mut [0; 64]).await {
                        told.set(told.get() + n);
                    }
                }
            });
            let callee = &world.callees[0];
            deny_by_default(callee, vec![policy("web", Action::Allow, vec![from(CALLER)], vec![])]);
            let mut silent = world.dial_bytes().await;
            sleep(Duration::from_secs(60)).await;
            if at_once {
                // The words come first, and the policy is another before anybody looks at them.
                let _ = silent.write_all(b"FLUSHALL\r\n").await;
                deny_by_default(callee, vec![]);
            } else {
                deny_by_default(callee, vec![]);
                sleep(Duration::from_secs(60)).await;
                let _ = silent.write_all(b"FLUSHALL\r\n").await;
            }
            sleep(Duration::from_secs(60)).await;
            assert_eq!(heard.get(), 0, "the application hears what came too late");
            drop(silent);
            world.end().await;
        });
    }
}

#[test]
fn what_lasts_ends_when_it_would_not_be_let_in_any_more() {
    first_seeds(4, &async |seed| {
        let lab = Lab::new(Setup::mesh(seed, &[1]));
        lab.backends[0].does(|_| Reply::Never);
        let allow = |path: &str| vec![policy("web", Action::Allow, vec![from(CALLER)], vec![below(path)])];
        deny_by_default(&lab.callees[0], allow("/stream"));
        let mut client = lab.client(0).await;
        client.say(b"GET /stream HTTP/1.1\r\nhost: api\r\n\r\n").await;
        sleep(Duration::from_secs(1)).await;
        assert_eq!(lab.backends[0].busy.get(), 1);
        // Still let in.
        deny_by_default(&lab.callees[0], allow("/"));
        sleep(Duration::from_secs(1)).await;
        assert_eq!(lab.backends[0].busy.get(), 1);
        deny_by_default(&lab.callees[0], allow("/other"));
        // It broke off; the caller's sidecar asked once more, as it may for a GET, and was refused.
        let answer = client.answer().await.expect("an answer");
        assert_eq!((answer.status(), answer.field("weft-error")), (403, Some("denied")));
        sleep(Duration::from_secs(1)).await;
        assert_eq!(lab.backends[0].busy.get(), 0);
        drop(client);
        lab.end().await;
    });
}

#[test]
fn a_tunnel_lasts_as_long_as_its_request_would_be_let_in() {
    first_seeds(4, &async |seed| {
        let world = World::new(&Plan::smooth(seed));
        serve(&world.network.host(B), WEB_TARGET, |peer| async move {
            let mut client = Conversation::new(peer);
            if client.message(false).await.is_err() {
                return;
            }
            client.say(b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: chat\r\n\r\n").await;
            let mut buf = [0; 64];
            while let Ok(n @ 1..) = client.peer.read(&mut buf).await {
                client.say(&buf[..n]).await;
            }
        });
        let allow = |path: &str| vec![policy("web", Action::Allow, vec![from(CALLER)], vec![below(path)])];
        deny_by_default(&world.callees[0], allow("/chat"));
        let mut client = world.dial_web().await;
        client
            .write_all(b"GET /chat/1 HTTP/1.1\r\nhost: api\r\nconnection: upgrade\r\nupgrade: chat\r\n\r\n")
            .await
            .expect("it writes");
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(client.read_u8().await.expect("a head"));
        }
        assert!(head.starts_with(b"HTTP/1.1 101"));
        assert!(echoes(&mut client).await);
        deny_by_default(&world.callees[0], allow("/"));
        sleep(Duration::from_secs(1)).await;
        assert!(echoes(&mut client).await);
        deny_by_default(&world.callees[0], allow("/other"));
        sleep(Duration::from_secs(1)).await;
        assert!(client.read(&mut [0]).await.is_err(), "a proper end");
        drop(client);
        world.end().await;
    });
}

#[test]
fn a_pod_that_calls_itself_is_judged_as_any_other() {
    simulate(1, &async |seed| {
        let lab = Lab::new(Setup::plain(seed, &[1]));
        let seen = Rc::new(Seen::default());
        let app = Rc::clone(&seen);
        serve(&lab.network.host(A), PORT, move |peer| http1_application(peer, Rc::clone(&app)));
        let own = weft_core::service::Endpoint { address: A, ..endpoint(0, true) };
        lab.endpoints(0, vec![own]);
        let allow = |path| vec![policy("self", Action::Allow, vec![from(CALLER)], vec![below(path)])];
        deny_by_default(&lab.caller, allow("/len"));
        let status = async |line| lab.ask(0, line, &[("x-id", "1")], None).await.map(|a| a.status());
        assert_eq!(status("GET /len/3").await, Some(200));
        assert_eq!(status("GET /no/3").await, Some(403));
        deny_by_default(&lab.caller, allow("/slow"));
        let mut slow = lab.client(0).await;
        slow.say(b"GET /slow/100000 HTTP/1.1\r\nhost: api\r\nx-id: 2\r\n\r\n").await;
        sleep(Duration::from_secs(1)).await;
        deny_by_default(&lab.caller, vec![]);
        assert!(slow.answer().await.is_none(), "what lasts ends");
        drop(slow);
        assert_eq!(status("GET /len/3").await, Some(403));
        assert_eq!((seen.times(1), seen.times(2)), (1, 1));
        assert_eq!(lab.caller.shared.denials.all().len(), 3);
        lab.end().await;
    });
}

/// Plaintext, where it is permitted, is somebody without an identity at an address.
#[test]
fn plaintext_is_judged_by_its_address() {
    simulate(1, &async |seed| {
        let world = World::new(&Plan::smooth(seed));
        let seen = Rc::new(Seen::default());
        let app = Rc::clone(&seen);
        serve(&world.network.host(B), WEB_TARGET, move |peer| http1_application(peer, Rc::clone(&app)));
        let callee = &world.callees[0];
        let permissive = |authorization| {
            callee.govern(InboundPolicy { mode: MtlsMode::Permissive, ..inbound_policy(authorization) });
        };
        let ask = async || {
            let socket = world.network.host(C).connect(SocketAddr::new(B, WEB_TARGET)).await.expect("the sidecar accepts");
            let mut client = Conversation::new(Raw(Rc::new(Stream::plain(Socket::Memory(socket), Buffers::default()))));
            client.say(b"GET /len/1 HTTP/1.1\r\nhost: api\r\nconnection: close\r\n\r\n").await;
            client.answer().await.expect("an answer").status()
        };
        let here = Peer { ip_blocks: vec!["10.0.0.3/32".parse().expect("a network")], unauthenticated: true, ..Peer::default() };
        let elsewhere = Peer { ip_blocks: vec!["10.1.0.0/16".parse().expect("a network")], ..Peer::default() };
        let not_other = Peer { not_principals: vec![OTHER.parse().expect("a principal")], ..Peer::default() };
        for (posture, policies, status) in [
            (Posture::AllowAll, vec![], 200),
            (Posture::AllowAuthenticated, vec![], 403),
            (Posture::Deny, vec![policy("here", Action::Allow, vec![here], vec![])], 200),
            (Posture::AllowAll, vec![policy("elsewhere", Action::Allow, vec![elsewhere], vec![])], 403),
            // A rule about identity, negated or not, is not about somebody without one.
            (Posture::AllowAll, vec![policy("not", Action::Allow, vec![not_other.clone()], vec![])], 403),
            (Posture::AllowAll, vec![policy("not", Action::Deny, vec![not_other], vec![])], 200),
        ] {
            permissive(Authorization { posture, policies, ..Authorization::default() });
            assert_eq!(ask().await, status);
        }
        // Mesh peers go on as they did.
        permissive(Authorization { posture: Posture::AllowAuthenticated, ..Authorization::default() });
        let mut client = Conversation::new(world.dial_web().await);
        client.say(b"GET /len/1 HTTP/1.1\r\nhost: api\r\nconnection: close\r\n\r\n").await;
        assert_eq!(client.answer().await.expect("an answer").status(), 200);
        drop(client);
        world.end().await;
    });
}

#[test]
fn audit_and_dry_run_are_counted_and_stop_nothing() {
    simulate(1, &async |seed| {
        let lab = Lab::new(Setup::mesh(seed, &[1]));
        lab.backends[0].does(|_| status(200));
        let audit = policy("audit", Action::Audit, vec![from(CALLER)], vec![]);
        let dry = policy("dry", Action::Deny, vec![], vec![below("/x")]);
        let dry = Arc::new(Policy { dry_run: true, ..(*dry).clone() });
        lab.callees[0].govern(inbound_policy(Authorization { policies: vec![audit, dry], ..Authorization::default() }));
        for line in ["GET /x", "GET /y"] {
            assert_eq!(lab.ask(0, line, &[], None).await.map(|a| a.status()), Some(200));
        }
        let notices = weft_sidecar::metrics::families::notices(&lab.callees[0].shared.metrics);
        let text = String::from_utf8(expose(Format::Text, &[notices], &Labels::new())).expect("text");
        let audit = r#"weft_policy_notices_total{weft_policy_name="shop/audit",weft_policy_notice="audit"} 2"#;
        let dry = r#"weft_policy_notices_total{weft_policy_name="shop/dry",weft_policy_notice="would-deny"} 1"#;
        assert!(text.contains(audit) && text.contains(dry), "{text}");
        assert!(lab.callees[0].shared.denials.all().is_empty());
        lab.end().await;
    });
}
