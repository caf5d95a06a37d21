//! Sessions stay with their endpoint while it is there, whatever the weights are.

use std::time::Duration;

use weft_core::traffic::TrafficPolicy;
use weft_core::traffic::policy::{Balancer, HashKey};
use weft_core::traffic::route::{RouteKind, Rule, Session, SessionKind};

use crate::calls::ask;
use crate::lab::{Lab, Setup, endpoint, rule};
use crate::peers::Message;
use crate::seeds::first_seeds;

fn session(kind: SessionKind) -> Session {
    let name = if kind == SessionKind::Cookie { "sid" } else { "x-sid" };
    Session { name: name.into(), kind, absolute: Some(Duration::from_secs(3_600)), idle: None, permanent: false }
}

fn persistent(kind: SessionKind, shares: &[(usize, u32)]) -> Vec<Rule> {
    vec![Rule { session: Some(session(kind)), ..rule(shares) }]
}

/// The mark that an answer has its caller keep.
fn mark(kind: SessionKind, answer: &Message) -> Option<String> {
    match kind {
        SessionKind::Cookie => {
            let cookie = answer.field("set-cookie")?;
            Some(cookie.strip_prefix("sid=")?.split(';').next()?.to_owned())
        }
        SessionKind::Header => Some(answer.field("x-sid")?.to_owned()),
    }
}

/// Asks with a mark, or without; gives which backend was asked, and the mark that came back.
async fn go(lab: &Lab, kind: SessionKind, held: Option<&str>) -> (usize, Option<String>) {
    let before: Vec<_> = lab.backends.iter().map(|b| b.count()).collect();
    let mut client = lab.client(0).await;
    let text = held.map(|held| if kind == SessionKind::Cookie { format!("a=1; sid={held}; b=2") } else { held.to_owned() });
    let name = if kind == SessionKind::Cookie { "cookie" } else { "x-sid" };
    let fields: Vec<_> = text.as_deref().map(|text| (name, text)).into_iter().collect();
    let answer = ask(&mut client, "GET /", &fields, None).await.expect("an answer");
    assert_eq!(answer.status(), 200, "{}", answer.head);
    let asked = (0..before.len()).find(|n| lab.backends[*n].count() > before[*n]).expect("it arrived");
    (asked, mark(kind, &answer))
}

#[test]
fn a_session_stays_through_weights_and_begins_anew_where_its_endpoint_is_gone() {
    for kind in [SessionKind::Cookie, SessionKind::Header] {
        first_seeds(16, &async |seed| {
            let setup = Setup::either(seed, &[3, 3]);
            let mesh = setup.mesh;
            let lab = Lab::new(setup);
            lab.route(0, RouteKind::Http, persistent(kind, &[(0, 50), (1, 50)]));
            let (first, held) = go(&lab, kind, None).await;
            let held = held.expect("a new session is marked");
            for _ in 0..10 {
                assert_eq!(go(&lab, kind, Some(&held)).await, (first, None), "it moved, or was marked again");
            }
            // Its backend gets nothing new, and keeps what it has.
            let shares = if first < 3 { [(0, 0), (1, 100)] } else { [(0, 100), (1, 0)] };
            lab.route(0, RouteKind::Http, persistent(kind, &shares));
            for _ in 0..10 {
                assert_eq!(go(&lab, kind, Some(&held)).await, (first, None), "it moved with the weights");
                assert_ne!(go(&lab, kind, None).await.0 / 3, first / 3, "a new session went to a weight of 0");
            }
            // It goes: another session begins, where the weights say.
            let of = first / 3;
            let left = (0..3).map(|n| (of * 3 + n) as u8).filter(|n| usize::from(*n) != first);
            lab.endpoints(of, left.map(|n| endpoint(n, mesh)).collect());
            let (second, other) = go(&lab, kind, Some(&held)).await;
            assert_ne!(second / 3, of);
            let other = other.expect("a new session is marked");
            assert_eq!(go(&lab, kind, Some(&other)).await, (second, None));
            lab.end().await;
        });
    }
}

#[test]
fn one_whose_endpoint_fails_moves_and_is_told() {
    first_seeds(16, &async |seed| {
        let kind = [SessionKind::Cookie, SessionKind::Header][seed as usize % 2];
        let lab = Lab::plain(seed, &[3]);
        // Asked for by the service's policy, without a route.
        lab.policy(0, TrafficPolicy { session: Some(session(kind)), ..TrafficPolicy::default() });
        let (first, held) = go(&lab, kind, None).await;
        lab.backends[first].down();
        lab.network.reset(crate::world::A, lab.backends[first].ip);
        let (second, other) = go(&lab, kind, held.as_deref()).await;
        assert_ne!(first, second);
        assert_eq!(go(&lab, kind, other.as_deref()).await, (second, None));
        lab.end().await;
    });
}

#[test]
fn a_mark_names_no_endpoint_that_the_rule_does_not_lead_to() {
    first_seeds(8, &async |seed| {
        let lab = Lab::plain(seed, &[2, 2]);
        let kind = SessionKind::Header;
        lab.route(0, RouteKind::Http, persistent(kind, &[(1, 1)]));
        let (_, held) = go(&lab, kind, None).await;
        // Of the other service's, of nobody's, and what is no mark.
        lab.route(0, RouteKind::Http, persistent(kind, &[(0, 1)]));
        let held = held.expect("a mark");
        let forged = format!("{}{}{}", &held[..4], "0a090909", &held[12..]);
        let (long, backwards) = ("f".repeat(4_000), held.chars().rev().collect::<String>());
        for text in [&held, &forged, &held[1..], &long, &backwards, "01", "-"] {
            let (asked, marked) = go(&lab, kind, Some(text)).await;
            assert!(asked < 2 && marked.is_some(), "{text}");
        }
        lab.end().await;
    });
}

#[test]
fn a_hashed_cookie_is_set_once_and_keeps_its_endpoint() {
    first_seeds(8, &async |seed| {
        let lab = Lab::plain(seed, &[5]);
        let key = HashKey::Cookie { name: "sid".into(), ttl: Some(Duration::from_secs(60)) };
        let balancer = if seed % 2 == 0 { Balancer::RingHash(key) } else { Balancer::Maglev(key) };
        lab.policy(0, TrafficPolicy { balancer, ..TrafficPolicy::default() });
        let mut asked = std::collections::BTreeSet::new();
        for _ in 0..20 {
            let (first, held) = go(&lab, SessionKind::Cookie, None).await;
            let held = held.expect("a cookie is set");
            asked.insert(first);
            for _ in 0..3 {
                assert_eq!(go(&lab, SessionKind::Cookie, Some(&held)).await, (first, None));
            }
        }
        assert!(asked.len() > 1, "all went to one");
        lab.end().await;
    });
}
