//! Where requests go by their routes, and what is done to them on the way.

use std::cell::Cell;
use std::time::Duration;

use tokio::time::Instant;
use weft_core::traffic::route::{
    Backend as Share, BackendTarget, Filter, HeaderChange, Match, PathChange, PathMatch, Redirect, Rewrite, RouteKind, Rule,
    StringMatch, Timeouts, ValueMatch,
};

use crate::backend::{Asked, Reply};
use crate::calls::{ask, call};
use crate::lab::{Lab, Setup, rule};
use crate::peers::Random;
use crate::seeds::first_seeds;

fn prefix(path: &str) -> Match {
    Match { path: PathMatch::Prefix(path.into()), ..Match::default() }
}

fn exact(name: &str, value: &str) -> ValueMatch {
    ValueMatch { name: name.into(), value: StringMatch::Exact(value.into()) }
}

fn changes(set: &[(&str, &str)], add: &[(&str, &str)], remove: &[&str]) -> HeaderChange {
    let pairs = |list: &[(&str, &str)]| list.iter().map(|(n, v)| ((*n).into(), (*v).into())).collect();
    HeaderChange { set: pairs(set), add: pairs(add), remove: remove.iter().map(|n| (*n).into()).collect() }
}

fn to(matches: Vec<Match>, service: usize) -> Rule {
    Rule { matches, ..rule(&[(service, 1)]) }
}

/// The last that any backend was asked.
fn last(lab: &Lab) -> Asked {
    let all = lab.backends.iter().flat_map(|b| b.seen.borrow().clone());
    all.max_by_key(|a| a.at).expect("something arrived")
}

#[test]
fn the_most_exact_rule_wins_over_both_versions() {
    first_seeds(8, &async |seed| {
        let lab = Lab::new(Setup::either(seed, &[1, 1, 1, 1]));
        let rules = vec![
            to(vec![prefix("/")], 0),
            to(vec![prefix("/a")], 1),
            to(vec![Match { path: PathMatch::Exact("/a/b".into()), ..Match::default() }], 2),
            to(vec![Match { method: Some("PUT".into()), ..prefix("/a") }], 3),
            to(vec![Match { headers: vec![exact("x-v", "2")], ..prefix("/") }], 2),
            to(vec![Match { query: vec![exact("v", "3")], ..prefix("/") }], 3),
        ];
        lab.route(0, RouteKind::Http, rules);
        let send = lab.http2(0).await;
        let mut client = lab.client(0).await;
        for (line, fields, service) in [
            ("GET /", &[][..], 0),
            ("GET /ab", &[], 0),
            ("GET /a", &[], 1),
            ("GET /a/bc?x=1", &[], 1),
            ("GET /a/b", &[], 2),
            ("GET /a/b?v=3", &[], 2),
            ("PUT /a/c", &[], 3),
            ("PUT /a/b", &[], 2),
            ("GET /z", &[("x-v", "2")], 2),
            ("GET /a", &[("x-v", "2")], 1),
            ("GET /z?v=3", &[], 3),
            ("GET /z?u=1&v=3", &[("x-v", "2")], 2),
            ("GET /z?v=33", &[("x-v", "22")], 0),
        ] {
            for http2 in [false, true] {
                let before = lab.backends[service].count();
                let status = if http2 {
                    call(&send, line, fields, &[]).await.expect("an answer").status
                } else {
                    ask(&mut client, line, fields, None).await.expect("an answer").status()
                };
                assert_eq!((status, lab.backends[service].count() - before), (200, 1), "{line} {fields:?}, HTTP/2: {http2}");
                let asked = last(&lab);
                assert_eq!(format!("{} {}", asked.method, asked.target), line);
            }
        }
        drop((send, client));
        lab.end().await;
    });
}

#[test]
fn what_is_matched_is_what_goes_on() {
    first_seeds(8, &async |seed| {
        let lab = Lab::new(Setup::either(seed, &[1, 1]));
        let green = vec![Match { headers: vec![exact("host", "green")], ..Match::default() }];
        let path = vec![prefix("/green")];
        lab.route(0, RouteKind::Http, vec![to(green, 1), to(path, 1), rule(&[(0, 1)])]);
        // The absolute form says where to, whatever Host says (RFC 9112, section 3.2.2).
        let mut client = lab.client(0).await;
        for (line, service, host, target) in [
            ("GET http://green/x?y", 1, "green", "/x?y"),
            ("GET http://other", 0, "other", "/"),
            ("GET http://other?q=/green", 0, "other", "/?q=/green"),
            ("GET http://other/green", 1, "other", "/green"),
            ("GET /x", 0, "api", "/x"),
        ] {
            let before = lab.backends[service].count();
            assert_eq!(ask(&mut client, line, &[], None).await.expect("an answer").status(), 200);
            assert_eq!(lab.backends[service].count() - before, 1, "{line}");
            let asked = last(&lab);
            assert_eq!((asked.field("host"), asked.target.as_str()), (Some(host), target), "{line}");
            assert_eq!(asked.fields.iter().filter(|(n, _)| n == "host").count(), 1);
        }
        let answer = ask(&mut client, "GET http://me@green/", &[], None).await.expect("an answer");
        assert_eq!((answer.status(), answer.field("weft-error")), (400, Some("bad-request")));
        // Over HTTP/2 the authority does, whatever Host says.
        let send = lab.http2(0).await;
        assert_eq!(call(&send, "GET /", &[("host", "green")], &[]).await.expect("an answer").status, 200);
        let asked = last(&lab);
        assert_eq!((asked.field(":authority"), asked.field("host")), (Some("api"), None));
        assert_eq!(lab.backends[0].seen.borrow().last().map(|a| a.at), Some(asked.at), "it went by a Host that does not go on");
        drop((send, client));
        lab.end().await;
    });
}

#[test]
fn shares_are_as_the_weights_say() {
    let counted = Cell::new([0u32; 3]);
    first_seeds(8, &async |seed| {
        let lab = Lab::plain(seed, &[1, 1, 1]);
        lab.route(0, RouteKind::Http, vec![rule(&[(0, 70), (1, 30), (2, 0)])]);
        let mut client = lab.client(0).await;
        for _ in 0..400 {
            assert_eq!(ask(&mut client, "GET /", &[], None).await.expect("an answer").status(), 200);
        }
        let [a, b, c] = counted.get();
        let more = [0, 1, 2].map(|n| lab.backends[n].count() as u32);
        counted.set([a + more[0], b + more[1], c + more[2]]);
        drop(client);
        lab.end().await;
    });
    let counts = counted.get();
    let all: u32 = counts.iter().sum();
    // Five standard deviations of as many draws.
    let (expected, spread) = (f64::from(all) * 0.3, 5.0 * (f64::from(all) * 0.21).sqrt());
    assert!((f64::from(counts[1]) - expected).abs() < spread, "{counts:?}");
    assert_eq!(counts[2], 0, "a weight of 0 got something");
}

#[test]
fn filters_change_what_they_say_and_no_more() {
    first_seeds(8, &async |seed| {
        let lab = Lab::new(Setup::either(seed, &[1, 1]));
        let own = ("x-own", "own".to_owned());
        lab.backends[1].does(move |_| Reply::Answer {
            status: 200,
            fields: vec![own.clone(), ("x-gone", "1".into())],
            body: b"body".to_vec(),
            after: Duration::ZERO,
        });
        let mut changed = to(vec![prefix("/old")], 1);
        changed.filters = vec![
            Filter::RequestHeaders(changes(
                &[("x-set", "1"), ("weft-client-id", "forged"), ("content-length", "9")],
                &[("x-more", "2")],
                &["x-out"],
            )),
            Filter::ResponseHeaders(changes(&[("x-own", "theirs")], &[("x-new", "3")], &["x-gone"])),
            Filter::Rewrite(Rewrite { hostname: Some("inner".into()), path: Some(PathChange::Prefix("/new".into())) }),
        ];
        let share = Filter::RequestHeaders(changes(&[("x-share", "4")], &[], &[]));
        changed.backends[0].filters.push(share);
        let mut moved = to(vec![prefix("/moved")], 0);
        let status = 308;
        let path = Some(PathChange::Prefix("/there".into()));
        moved.filters = vec![
            Filter::Redirect(Redirect { scheme: None, hostname: Some("else".into()), path, port: Some(8443), status }),
            Filter::ResponseHeaders(changes(&[("x-why", "5")], &[], &[])),
        ];
        moved.backends.clear();
        lab.route(0, RouteKind::Http, vec![changed, moved]);
        let (send, mut client) = (lab.http2(0).await, lab.client(0).await);
        let fields = [("x-set", "0"), ("x-more", "1"), ("x-out", "0"), ("x-kept", "0")];
        for http2 in [false, true] {
            let field = if http2 {
                let answer = call(&send, "POST /old/a?b=c", &fields, b"12345").await.expect("an answer");
                assert_eq!((answer.status, answer.body.as_slice()), (200, &b"body"[..]));
                ["x-own", "x-new", "x-gone"].map(|name| answer.field(name).map(str::to_owned))
            } else {
                let answer = ask(&mut client, "POST /old/a?b=c", &fields, Some(b"12345")).await.expect("an answer");
                assert_eq!((answer.status(), answer.body.as_slice()), (200, &b"body"[..]));
                ["x-own", "x-new", "x-gone"].map(|name| answer.field(name).map(str::to_owned))
            };
            assert_eq!(field, [Some("theirs".to_owned()), Some("3".to_owned()), None]);
            let asked = last(&lab);
            assert_eq!((asked.target.as_str(), asked.body.as_slice()), ("/new/a?b=c", &b"12345"[..]));
            assert_eq!(asked.field(if http2 { ":authority" } else { "host" }), Some("inner"));
            let all = |name: &str| asked.fields.iter().filter(|(n, _)| n == name).map(|(_, v)| v.clone()).collect::<Vec<_>>();
            assert_eq!(
                (all("x-set"), all("x-more"), all("x-share")),
                (vec!["1".into()], vec!["1".into(), "2".into()], vec!["4".into()])
            );
            assert_eq!((asked.field("x-out"), asked.field("x-kept")), (None, Some("0")));
            assert_ne!(asked.field("weft-client-id"), Some("forged"));
            // A redirect, with a body that nobody wants.
            let location = "http://else:8443/there/x?y=1";
            if http2 {
                let answer = call(&send, "POST /moved/x?y=1", &[], b"12345").await.expect("an answer");
                assert_eq!((answer.status, answer.field("location"), answer.field("x-why")), (308, Some(location), Some("5")));
            } else {
                for body in [None, Some(&b"12345"[..])] {
                    let mut client = lab.client(0).await;
                    let answer = ask(&mut client, "GET /moved/x?y=1", &[], body).await.expect("an answer");
                    assert_eq!((answer.status(), answer.field("location")), (308, Some(location)));
                    let closes = answer.field("connection") == Some("close");
                    assert_eq!(ask(&mut client, "GET /old", &[], None).await.is_some(), !closes, "it says what it does");
                }
            }
        }
        drop((send, client));
        lab.end().await;
    });
}

#[test]
fn what_leads_nowhere_says_so_and_what_comes_late_is_followed() {
    first_seeds(8, &async |seed| {
        let lab = Lab::plain(seed, &[1, 1]);
        let said = async |line| {
            let answer = lab.ask(0, line, &[], None).await.expect("an answer");
            (answer.status(), answer.field("weft-error").map(str::to_owned))
        };
        let error = |status: u16, reason: &str| (status, Some(reason.to_owned()));
        let unresolved = Share { target: BackendTarget::Unresolved("no grant".into()), weight: 1, filters: vec![] };
        let rules = vec![
            to(vec![prefix("/late")], 1),
            Rule { matches: vec![prefix("/none")], ..rule(&[]) },
            Rule { matches: vec![prefix("/zero")], ..rule(&[(1, 0)]) },
            Rule { matches: vec![prefix("/wrong")], backends: vec![unresolved], ..rule(&[]) },
        ];
        lab.forget(1);
        // Before the routes come, the service itself answers.
        assert_eq!(said("GET /other").await, (200, None));
        lab.route(0, RouteKind::Http, rules);
        assert_eq!(said("GET /other").await, error(404, "no-route"));
        for line in ["GET /none", "GET /zero", "GET /wrong"] {
            assert_eq!(said(line).await, error(500, "no-backend"), "{line}");
        }
        assert_eq!(said("GET /late").await, error(503, "discovery-unavailable"));
        lab.learn(1);
        assert_eq!(said("GET /late").await, (200, None));
        assert_eq!(lab.backends[1].count(), 1);
        lab.end().await;
    });
}

#[test]
fn a_request_under_way_keeps_the_rule_that_it_began_with() {
    first_seeds(8, &async |seed| {
        let lab = Lab::plain(seed, &[1, 1]);
        let random = Random::new(seed);
        lab.backends.iter().for_each(|b| b.does(|_| crate::backend::status(200).after(Duration::from_secs(2))));
        let timeouts = Timeouts { request: Some(Duration::from_secs(1)), backend_request: None };
        lab.route(0, RouteKind::Http, vec![rule(&[(0, 1)])]);
        let began = Instant::now();
        let mut client = lab.client(0).await;
        client.say(b"GET / HTTP/1.1\r\nhost: api\r\n\r\nGET / HTTP/1.1\r\nhost: api\r\n\r\n").await;
        tokio::time::sleep(Duration::from_millis(100 + random.below(1_000))).await;
        lab.route(0, RouteKind::Http, vec![Rule { timeouts, ..rule(&[(1, 1)]) }]);
        assert_eq!(client.answer().await.expect("an answer").status(), 200);
        assert!(began.elapsed() >= Duration::from_secs(2));
        // The one behind it falls under the new one.
        assert_eq!(client.answer().await.expect("an answer").status(), 504);
        assert_eq!([lab.backends[0].count(), lab.backends[1].count()], [1, 1]);
        drop(client);
        lab.end().await;
    });
}
