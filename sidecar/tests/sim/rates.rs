//! How much a service's own sidecar takes, of whom; and faults that are asked for.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use tokio::time::{Instant, sleep};
use weft_core::authorization::Authorization;
use weft_core::policy::InboundPolicy;
use weft_core::traffic::TrafficPolicy;
use weft_core::traffic::policy::{Abort, Fault, RateLimit, RateScope, Timeouts};
use weft_core::traffic::route::{StringMatch, ValueMatch};

use crate::backend::{PORT, grpc};
use crate::calls::{ask, grpc_call};
use crate::lab::{Lab, Setup};
use crate::peers::Conversation;
use crate::seeds::first_seeds;
use crate::world::{CALLER, inbound_policy};

const OTHER: &str = "spiffe://cluster.local/ns/shop/sa/other";
const OTHER_POD: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 5));

fn limit(by: RateScope) -> RateLimit {
    RateLimit {
        name: "each".into(),
        by,
        principals: vec![],
        requests: 10,
        per: Duration::from_secs(1),
        burst: 10,
        headers: vec![],
        ports: vec![PORT],
    }
}

fn govern(lab: &Lab, rates: Vec<RateLimit>) {
    lab.callees[0].govern(InboundPolicy { protocols: vec![], rates, ..inbound_policy(Authorization::default()) });
}

/// Asks so many times on one connection; gives how often it was served and how often it was over the rate.
async fn many(client: &mut Conversation, count: u32, fields: &[(&str, &str)]) -> (u32, u32) {
    let (mut served, mut over) = (0, 0);
    for _ in 0..count {
        let answer = ask(client, "GET /", fields, None).await.expect("the connection goes on");
        match answer.status() {
            200 => served += 1,
            429 => {
                over += 1;
                assert_eq!((answer.field("weft-error"), answer.field("retry-after")), (Some("rate-limited"), Some("1")));
            }
            other => panic!("{other}"),
        }
    }
    (served, over)
}

#[test]
fn each_identity_has_a_rate_of_its_own() {
    first_seeds(8, &async |seed| {
        let lab = Lab::new(Setup::mesh(seed, &[1]));
        govern(&lab, vec![limit(RateScope::Caller)]);
        let mut another = lab.another(OTHER_POD, OTHER);
        let mut one = lab.client(0).await;
        let mut two = Conversation::new(lab.dial_from(OTHER_POD, 0).await);
        // Each request takes a few milliseconds, in which a little comes back.
        let (served, over) = many(&mut one, 30, &[]).await;
        assert!((10..=12).contains(&served) && served + over == 30, "{served}");
        let (served, _) = many(&mut two, 5, &[]).await;
        assert_eq!(served, 5, "the other's rate is its own");
        sleep(Duration::from_secs(1)).await;
        let (served, _) = many(&mut one, 12, &[]).await;
        assert!((10..=11).contains(&served), "it comes back: {served}");
        // What is used up stays so when the policy comes again.
        govern(&lab, vec![limit(RateScope::Caller)]);
        assert!(many(&mut one, 5, &[]).await.0 <= 1);
        // What is refused costs no connection, on any hop.
        let open = lab.network.connections();
        assert!(many(&mut one, 20, &[]).await.1 >= 19);
        assert_eq!(lab.network.connections(), open);
        drop((one, two));
        another.end_after(Duration::from_secs(1_000)).await;
        lab.end().await;
    });
}

#[test]
fn a_rate_is_of_whom_and_what_it_says() {
    first_seeds(8, &async |seed| {
        let lab = Lab::new(Setup::mesh(seed, &[1]));
        let gold = ValueMatch { name: "x-plan".into(), value: StringMatch::Exact("gold".into()) };
        let (theirs, others) = (CALLER.parse().expect("an identity"), OTHER.parse().expect("an identity"));
        for (limit, fields, limited) in [
            (RateLimit { principals: vec![theirs], ..limit(RateScope::All) }, &[][..], true),
            (RateLimit { principals: vec![others], ..limit(RateScope::All) }, &[], false),
            (RateLimit { ports: vec![PORT + 1], ..limit(RateScope::All) }, &[], false),
            (RateLimit { headers: vec![gold.clone()], ..limit(RateScope::All) }, &[("x-plan", "gold")], true),
            (RateLimit { headers: vec![gold.clone()], ..limit(RateScope::All) }, &[("x-plan", "free")], false),
        ] {
            govern(&lab, vec![limit]);
            let mut client = lab.client(0).await;
            let (_, over) = many(&mut client, 20, fields).await;
            assert_eq!(over > 0, limited, "{fields:?}");
        }
        govern(&lab, vec![limit(RateScope::All)]);
        lab.backends[0].does(|_| grpc(0));
        let send = lab.http2(0).await;
        let mut codes = Vec::new();
        for id in 0..20 {
            let called = grpc_call(&send, id, &[]).await.expect("an answer");
            assert!(called.code == Some(0) || called.only && called.status == 200);
            codes.push(called.code.expect("a code"));
        }
        assert!(codes.iter().all(|c| matches!(c, 0 | 8)), "{codes:?}");
        assert!(codes.contains(&8), "{codes:?}");
        drop(send);
        lab.end().await;
    });
}

/// On a connection that goes on, a body that nobody reads would be taken for the next answer.
#[test]
fn what_is_refused_has_no_body_where_none_is_read() {
    first_seeds(4, &async |seed| {
        let lab = Lab::plain(seed, &[1]);
        for (method, status) in [("HEAD", 418), ("GET", 204), ("GET", 304)] {
            let fault = Fault { headers: vec![], millionths: 1_000_000, delay: None, abort: Some(Abort::Http(status)) };
            lab.policy(0, TrafficPolicy { faults: vec![fault], ..TrafficPolicy::default() });
            let mut client = lab.client(0).await;
            let head = format!("{method} / HTTP/1.1\r\nhost: api\r\n");
            client.say(format!("{head}\r\n{head}connection: close\r\n\r\n").as_bytes()).await;
            let all = String::from_utf8(client.rest().await.expect("a proper end")).expect("text");
            let heads: Vec<&str> = all.split_terminator("\r\n\r\n").collect();
            assert!(heads.len() == 2 && heads.iter().all(|h| h.starts_with(&format!("HTTP/1.1 {status} "))), "{all}");
            assert_eq!(all.contains("content-length"), status == 418, "{all}");
        }
        lab.end().await;
    });
}

/// A delay as long as the caller waits: the endpoint is not asked for what nobody wants any more, and is not to blame.
#[test]
fn what_is_late_before_it_is_sent_is_not_sent() {
    first_seeds(4, &async |seed| {
        let lab = Lab::plain(seed, &[1]);
        let fault = Fault { headers: vec![], millionths: 1_000_000, delay: Some(Duration::from_secs(3)), abort: None };
        let timeouts = Timeouts { request: Some(Duration::from_secs(2)), ..Timeouts::default() };
        lab.policy(0, TrafficPolicy { faults: vec![fault], timeouts, ..TrafficPolicy::default() });
        let mut client = lab.client(0).await;
        let answer = ask(&mut client, "POST /", &[], Some(b"once")).await.expect("an answer");
        assert_eq!((answer.status(), answer.field("weft-error")), (504, Some("upstream-timeout")));
        assert_eq!(lab.backends[0].count(), 0);
        drop(client);
        lab.end().await;
    });
}

#[test]
fn faults_strike_their_share_of_those_that_they_are_for() {
    first_seeds(8, &async |seed| {
        let lab = Lab::plain(seed, &[1]);
        let gate = vec![ValueMatch { name: "x-test".into(), value: StringMatch::Exact("yes".into()) }];
        let fault = |millionths, delay, abort| Fault { headers: gate.clone(), millionths, delay, abort };
        let policy = |faults| TrafficPolicy { faults, ..TrafficPolicy::default() };
        let mut client = lab.client(0).await;
        let tested = [("x-test", "yes")];
        // Half of them are aborted.
        lab.policy(0, policy(vec![fault(500_000, None, Some(Abort::Http(418)))]));
        let mut struck = 0;
        for _ in 0..100 {
            let answer = ask(&mut client, "GET /", &tested, None).await.expect("an answer");
            if answer.status() == 418 {
                assert_eq!(answer.field("weft-error"), Some("fault-injected"));
                struck += 1;
            }
            assert_eq!(ask(&mut client, "GET /", &[], None).await.expect("an answer").status(), 200);
        }
        assert!((25..=75).contains(&struck), "{struck} of 100");
        assert_eq!(lab.backends[0].count(), 200 - struck, "what is aborted goes nowhere");
        // All of them are delayed.
        let delay = Duration::from_secs(3);
        lab.policy(0, policy(vec![fault(1_000_000, Some(delay), None)]));
        for (fields, least) in [(&tested[..], delay), (&[], Duration::ZERO)] {
            let began = Instant::now();
            assert_eq!(ask(&mut client, "GET /", fields, None).await.expect("an answer").status(), 200);
            assert!((least..least + Duration::from_millis(20)).contains(&began.elapsed()));
        }
        // As gRPC has it.
        lab.policy(0, policy(vec![fault(1_000_000, None, Some(Abort::Grpc(10)))]));
        let send = lab.http2(0).await;
        let called = grpc_call(&send, 1, &tested).await.expect("an answer");
        assert_eq!((called.status, called.code, called.only), (200, Some(10), true));
        // And reset.
        lab.policy(0, policy(vec![fault(1_000_000, None, Some(Abort::Reset))]));
        assert!(grpc_call(&send, 2, &tested).await.is_err());
        assert!(ask(&mut client, "GET /", &tested, None).await.is_none());
        drop((client, send));
        lab.end().await;
    });
}
