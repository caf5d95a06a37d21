use proptest::option;
use proptest::prelude::*;
use weft_core::policy::{InboundPolicy, MtlsMode};
use weft_core::service::ObjectRef;
use weft_core::traffic::policy::{
    Abort, Balancer, FailureKind, Fault, HashKey, Limits, Outlier, RateLimit, RateScope, RetryBudget, Tcp, Timeouts,
    TrafficPolicy, ZonePreference,
};
use weft_core::traffic::route::{
    Backend, BackendTarget, Filter, HeaderChange, Match, Mirror, PathChange, PathMatch, Redirect, Retry, Rewrite, Route,
    RouteKind, Rule, Timeouts as RouteTimeouts,
};

use super::*;

fn name() -> impl Strategy<Value = Arc<str>> {
    "[a-z][a-z0-9-]{0,9}".prop_map(Into::into)
}

fn words() -> impl Strategy<Value = Arc<str>> {
    "[ -~]{0,12}".prop_map(Into::into)
}

fn path() -> impl Strategy<Value = Arc<str>> {
    prop_oneof![Just("/".into()), "(/[a-z]{1,4}){1,3}".prop_map(Into::into)]
}

fn time() -> impl Strategy<Value = Duration> {
    any::<u64>().prop_map(Duration::from_nanos)
}

fn some_time() -> impl Strategy<Value = Duration> {
    (1..=u64::MAX).prop_map(Duration::from_nanos)
}

fn id() -> impl Strategy<Value = ObjectRef> {
    "[a-z]{1,5}/[a-z]{1,5}".prop_map(|text| text.parse().expect("a name"))
}

fn pattern() -> impl Strategy<Value = Pattern> {
    "[a-z]{1,3}(\\+|\\.\\*)?".prop_map(|text| Pattern::new(&text).expect("an expression"))
}

fn string_match() -> impl Strategy<Value = StringMatch> {
    prop_oneof![words().prop_map(StringMatch::Exact), pattern().prop_map(StringMatch::Regex)]
}

fn value_matches() -> impl Strategy<Value = Vec<ValueMatch>> {
    proptest::collection::vec((name(), string_match()).prop_map(|(name, value)| ValueMatch { name, value }), 0..3)
}

fn session() -> impl Strategy<Value = Session> {
    let kind = prop_oneof![Just(SessionKind::Cookie), Just(SessionKind::Header)];
    (name(), kind, option::of(time()), option::of(time()), any::<bool>())
        .prop_map(|(name, kind, absolute, idle, permanent)| Session { name, kind, absolute, idle, permanent })
}

fn path_match() -> impl Strategy<Value = PathMatch> {
    prop_oneof![
        Just(PathMatch::Any),
        words().prop_map(PathMatch::Exact),
        path().prop_map(PathMatch::Prefix),
        pattern().prop_map(PathMatch::Regex),
        (option::of(string_match()), option::of(string_match()))
            .prop_map(|(service, method)| PathMatch::Grpc { service, method }),
    ]
}

fn target() -> impl Strategy<Value = BackendTarget> {
    prop_oneof![
        (id(), 1..=u16::MAX).prop_map(|(id, port)| BackendTarget::Service { id, port }),
        words().prop_map(BackendTarget::Unresolved)
    ]
}

fn path_change() -> impl Strategy<Value = PathChange> {
    prop_oneof![words().prop_map(PathChange::Full), words().prop_map(PathChange::Prefix)]
}

fn filter() -> impl Strategy<Value = Filter> {
    let fields = || proptest::collection::vec((name(), words()), 0..3);
    let change = move || {
        (fields(), fields(), proptest::collection::vec(name(), 0..3)).prop_map(|(set, add, remove)| HeaderChange {
            set,
            add,
            remove,
        })
    };
    let redirect = (
        option::of(name()),
        option::of(name()),
        option::of(path_change()),
        option::of(1..=u16::MAX),
        proptest::sample::select(vec![301, 302, 303, 307, 308]),
    )
        .prop_map(|(scheme, hostname, path, port, status)| Redirect { scheme, hostname, path, port, status });
    prop_oneof![
        change().prop_map(Filter::RequestHeaders),
        change().prop_map(Filter::ResponseHeaders),
        redirect.prop_map(Filter::Redirect),
        (option::of(name()), option::of(path_change())).prop_map(|(hostname, path)| Filter::Rewrite(Rewrite { hostname, path })),
        (target(), any::<u32>(), 1..=u32::MAX).prop_map(|(target, numerator, denominator)| Filter::Mirror(Mirror {
            target,
            numerator,
            denominator
        })),
    ]
}

fn rule() -> impl Strategy<Value = Rule> {
    let one = (path_match(), option::of(name()), value_matches(), value_matches())
        .prop_map(|(path, method, headers, query)| Match { path, method, headers, query });
    let backend = (target(), any::<u32>(), proptest::collection::vec(filter(), 0..2))
        .prop_map(|(target, weight, filters)| Backend { target, weight, filters });
    let retry = (
        proptest::collection::vec(400u16..600, 0..3),
        proptest::collection::vec(1u8..17, 0..3),
        any::<u32>(),
        option::of(time()),
        any::<bool>(),
    )
        .prop_map(|(codes, grpc_codes, attempts, backoff, any_method)| Retry {
            codes,
            grpc_codes,
            attempts,
            backoff,
            any_method,
        });
    (
        option::of(name()),
        proptest::collection::vec(one, 1..3),
        proptest::collection::vec(filter(), 0..3),
        proptest::collection::vec(backend, 0..3),
        (option::of(time()), option::of(time())),
        option::of(retry),
        option::of(session()),
    )
        .prop_map(|(name, matches, filters, backends, (request, backend_request), retry, session)| Rule {
            name,
            matches,
            filters,
            backends,
            timeouts: RouteTimeouts { request, backend_request },
            retry,
            session,
        })
}

fn route() -> impl Strategy<Value = Route> {
    (
        proptest::sample::select(vec![RouteKind::Http, RouteKind::Grpc, RouteKind::Tls, RouteKind::Tcp]),
        id(),
        any::<i64>(),
        proptest::collection::vec(1..=u16::MAX, 0..3),
        proptest::collection::vec(name(), 0..3),
        proptest::collection::vec(rule(), 1..3),
    )
        .prop_map(|(kind, id, created, ports, hostnames, rules)| Route { kind, id, created, ports, hostnames, rules })
}

fn balancer() -> impl Strategy<Value = Balancer> {
    let key = || {
        prop_oneof![
            name().prop_map(HashKey::Header),
            (name(), option::of(time())).prop_map(|(name, ttl)| HashKey::Cookie { name, ttl }),
            name().prop_map(HashKey::Query),
            Just(HashKey::Source),
        ]
    };
    prop_oneof![
        Just(Balancer::P2cEwma),
        Just(Balancer::LeastRequest),
        Just(Balancer::RoundRobin),
        Just(Balancer::Random),
        key().prop_map(Balancer::RingHash),
        key().prop_map(Balancer::Maglev),
    ]
}

fn outlier() -> impl Strategy<Value = Outlier> {
    let failures = prop_oneof![Just(FailureKind::Gateway), Just(FailureKind::Any5xx)];
    (
        (any::<u32>(), failures, proptest::collection::vec(1u8..17, 0..4), 0u8..=100),
        (any::<u32>(), some_time(), time(), time(), 1u8..=100),
    )
        .prop_map(|((consecutive_failures, failures, grpc_codes, success_rate), b)| Outlier {
            consecutive_failures,
            failures,
            grpc_codes,
            success_rate,
            minimum_volume: b.0,
            window: b.1,
            base_ejection: b.2,
            max_ejection: b.3,
            max_ejected: b.4,
        })
}

fn rate() -> impl Strategy<Value = RateLimit> {
    (
        name(),
        prop_oneof![Just(RateScope::All), Just(RateScope::Caller)],
        proptest::collection::vec(Just("spiffe://td/ns/a/sa/b".parse().expect("an identity")), 0..2),
        (1..=u32::MAX, some_time(), 1..=u32::MAX),
        value_matches(),
        proptest::collection::vec(1..=u16::MAX, 0..3),
    )
        .prop_map(|(name, by, principals, (requests, per, burst), headers, ports)| RateLimit {
            name,
            by,
            principals,
            requests,
            per,
            burst,
            headers,
            ports,
        })
}

fn fault() -> impl Strategy<Value = Fault> {
    let abort = prop_oneof![(200u16..600).prop_map(Abort::Http), (1u8..17).prop_map(Abort::Grpc), Just(Abort::Reset)];
    (value_matches(), 0u32..=1_000_000, option::of(time()), option::of(abort))
        .prop_map(|(headers, millionths, delay, abort)| Fault { headers, millionths, delay, abort })
}

fn policy() -> impl Strategy<Value = TrafficPolicy> {
    let count = || option::of(any::<u32>());
    let limits = (count(), count(), count(), count(), count()).prop_map(|l| Limits {
        connections: l.0,
        connections_per_endpoint: l.1,
        requests: l.2,
        requests_per_endpoint: l.3,
        pending: l.4,
    });
    let timeouts = (option::of(time()), option::of(time()), option::of(time())).prop_map(|(connect, idle, request)| Timeouts {
        connect,
        idle,
        request,
    });
    let tcp = (option::of(time()), option::of(time()), count(), option::of(time()), option::of(name())).prop_map(|t| Tcp {
        keepalive_idle: t.0,
        keepalive_interval: t.1,
        keepalive_count: t.2,
        user_timeout: t.3,
        congestion: t.4,
    });
    let budget = (0u8..=100, some_time(), any::<u32>()).prop_map(|(percent, interval, min_per_second)| RetryBudget {
        percent,
        interval,
        min_per_second,
    });
    (
        (balancer(), any::<bool>(), 1u8..=100, option::of(time()), option::of(outlier()), limits),
        (proptest::collection::vec(rate(), 0..3), proptest::collection::vec(fault(), 0..3), timeouts, tcp, budget),
        option::of(session()),
    )
        .prop_map(|(a, (rates, faults, timeouts, tcp, retry_budget), session)| TrafficPolicy {
            balancer: a.0,
            zone: ZonePreference { prefer: a.1, spill_below: a.2 },
            slow_start: a.3,
            outlier: a.4,
            limits: a.5,
            rates,
            faults,
            timeouts,
            tcp,
            retry_budget,
            session,
        })
}

/// Over bytes, as a stream carries it.
fn sent<M: prost::Message + Default>(message: &M) -> M {
    M::decode(&message.encode_to_vec()[..]).expect("what was encoded")
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn routes_survive_the_round_trip(routes in proptest::collection::vec(route(), 0..4)) {
        prop_assert_eq!(routes_from(&sent(&routes_to(&routes))), Ok(routes));
    }

    #[test]
    fn policies_survive_the_round_trip(policy in policy()) {
        prop_assert_eq!(TrafficPolicy::try_from(&sent(&v1::TrafficPolicy::from(&policy))), Ok(policy));
    }

    #[test]
    fn rates_survive_the_round_trip(rates in proptest::collection::vec(rate(), 0..4)) {
        let policy = InboundPolicy { mode: MtlsMode::Strict, port_modes: vec![], protocols: vec![], required_features: vec![], zone: "z".into(), rates, authorization: weft_core::authorization::Authorization::default(), issuers: vec![], network: None };
        prop_assert_eq!(InboundPolicy::try_from(&sent(&v1::InboundPolicy::from(&policy))), Ok(policy));
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(routes) = <v1::Routes as prost::Message>::decode(&bytes[..]) {
            let _ = routes_from(&routes);
        }
        if let Ok(policy) = <v1::TrafficPolicy as prost::Message>::decode(&bytes[..]) {
            let _ = TrafficPolicy::try_from(&policy);
        }
    }
}

#[test]
fn a_default_policy_is_complete_on_the_wire_and_an_empty_message_is_none() {
    let default = TrafficPolicy::default();
    assert_eq!(TrafficPolicy::try_from(&v1::TrafficPolicy::from(&default)), Ok(default));
    assert_eq!(TrafficPolicy::try_from(&v1::TrafficPolicy::default()), Err(WireError::Missing("zone preference")));
}

#[test]
fn what_a_newer_version_adds_is_refused_not_left_out() {
    let good = v1::Route {
        kind: v1::RouteKind::Http.into(),
        id: Some(v1::ObjectRef { namespace: "a".into(), name: "b".into() }),
        rules: vec![v1::Rule { matches: vec![v1::Match::default()], ..Default::default() }],
        ..Default::default()
    };
    let read = |change: &dyn Fn(&mut v1::Route)| {
        let mut route = good.clone();
        change(&mut route);
        Route::try_from(&route)
    };
    assert!(read(&|_| {}).is_ok());
    let changes: [&dyn Fn(&mut v1::Route); 10] = [
        &|r| r.kind = 0,
        &|r| r.kind = 77,
        &|r| r.id = None,
        &|r| r.rules.clear(),
        &|r| r.rules[0].matches.clear(),
        &|r| r.rules[0].matches[0].path = Some(v1::PathMatch { kind: None }),
        &|r| r.rules[0].matches[0].headers.push(v1::ValueMatch { name: "x".into(), value: Some(v1::StringMatch { kind: None }) }),
        &|r| r.rules[0].filters.push(v1::Filter { kind: None }),
        &|r| r.rules[0].backends.push(v1::Backend { target: Some(v1::Target { kind: None }), ..Default::default() }),
        &|r| r.rules[0].session = Some(v1::Session { name: "s".into(), ..Default::default() }),
    ];
    for (i, change) in changes.into_iter().enumerate() {
        assert!(read(change).is_err(), "change {i}");
    }
}
