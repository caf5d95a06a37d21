use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;
use weft_core::authorization::policy::{
    Account, GrpcMatch, HeaderMatch, HeaderValue, HostMatch, Operation, PathMatch, Peer, Principal,
};
use weft_core::authorization::token::{ClaimMatch, TokenMatch};
use weft_core::jwt::{Algorithm, ClaimPath, Forward, Issuer, Keys, Place};
use weft_core::traffic::route::RouteKind;

use super::*;

fn name<T: std::str::FromStr<Err: std::fmt::Debug> + std::fmt::Debug>() -> impl Strategy<Value = T> {
    "[a-z]{1,5}".prop_map(|text| text.parse().expect("a name"))
}

fn word() -> impl Strategy<Value = Arc<str>> {
    "[a-z]{1,6}".prop_map(Into::into)
}

fn path() -> impl Strategy<Value = Arc<str>> {
    "(/[a-z]{1,4}){1,3}".prop_map(Into::into)
}

fn few<S: Strategy>(of: S) -> impl Strategy<Value = Vec<S::Value>>
where
    S::Value: std::fmt::Debug,
{
    proptest::collection::vec(of, 0..3)
}

fn principal() -> impl Strategy<Value = Principal> {
    prop_oneof![
        Just(Principal::Any),
        name().prop_map(Principal::TrustDomain),
        word().prop_map(|w| Principal::Prefix(format!("spiffe://td/ns/{w}/sa/").into())),
        word().prop_map(|w| Principal::Exact(format!("spiffe://td/ns/{w}/sa/x").parse().expect("an identity"))),
    ]
}

fn account() -> impl Strategy<Value = Account> {
    (name(), name()).prop_map(|(namespace, name)| Account { namespace, name })
}

fn block<T: std::str::FromStr<Err: std::fmt::Debug> + std::fmt::Debug>() -> impl Strategy<Value = Vec<T>> {
    few(select(vec!["10.0.0.0/8", "192.168.7.9/32", "fd00::/7", "0.0.0.0/0"]).prop_map(|text| text.parse().expect("a CIDR")))
}

fn peer() -> impl Strategy<Value = Peer> {
    let identities = (few(principal()), few(principal()), few(name()), few(name()), few(account()), few(account()));
    let tokens = (option::of(token()), option::of(token()));
    (identities, block(), block(), any::<bool>(), tokens).prop_map(
        |(identities, ip_blocks, not_ip_blocks, unauthenticated, tokens)| {
            let (principals, not_principals, namespaces, not_namespaces, service_accounts, not_service_accounts) = identities;
            let identity = Peer {
                principals,
                not_principals,
                namespaces,
                not_namespaces,
                service_accounts,
                not_service_accounts,
                ..Peer::default()
            };
            // Nobody has one and none.
            let unauthenticated = unauthenticated && identity.is_empty();
            let (jwt, not_jwt) = tokens;
            Peer { ip_blocks, not_ip_blocks, unauthenticated, jwt, not_jwt, ..identity }
        },
    )
}

fn token() -> impl Strategy<Value = TokenMatch> {
    let claim = (proptest::collection::vec(word(), 1..4), few(word()))
        .prop_map(|(path, values)| ClaimMatch { path: ClaimPath::new(&path).expect("a path"), values });
    (word(), option::of(word()), few(word()), few(claim)).prop_map(|(issuer, subject, audiences, claims)| TokenMatch {
        issuer,
        subject,
        audiences,
        claims,
    })
}

fn host() -> impl Strategy<Value = HostMatch> {
    prop_oneof![word().prop_map(HostMatch::Exact), word().prop_map(HostMatch::Suffix)]
}

fn path_match() -> impl Strategy<Value = PathMatch> {
    prop_oneof![
        path().prop_map(PathMatch::Exact),
        path().prop_map(PathMatch::Prefix),
        path().prop_map(|p| PathMatch::Template(format!("{p}/{{x}}").into()))
    ]
}

fn header() -> impl Strategy<Value = HeaderMatch> {
    let value = prop_oneof![
        word().prop_map(HeaderValue::Exact),
        Just(HeaderValue::Exact("".into())),
        word().prop_map(HeaderValue::Prefix),
        Just(HeaderValue::Present),
    ];
    (word(), value).prop_map(|(name, value)| HeaderMatch { name: format!("x-{name}").into(), value })
}

fn operation() -> impl Strategy<Value = Operation> {
    let port = || few(1..=u16::MAX);
    let grpc = (option::of(word()), word()).prop_map(|(service, method)| GrpcMatch { service, method: Some(method) });
    let http = (few(host()), few(host()), few(word()), few(word()), few(path_match()), few(path_match()));
    (port(), port(), http, few(header()), few(grpc)).prop_map(|(ports, not_ports, http, headers, grpc)| {
        let (hosts, not_hosts, methods, not_methods, paths, not_paths) = http;
        Operation { ports, not_ports, hosts, not_hosts, methods, not_methods, paths, not_paths, headers, grpc }
    })
}

fn id() -> impl Strategy<Value = weft_core::service::ObjectRef> {
    "[a-z]{1,5}/[a-z]{1,5}".prop_map(|text| text.parse().expect("a name"))
}

fn target() -> impl Strategy<Value = Target> {
    prop_oneof![
        Just(Target::Mesh),
        name().prop_map(Target::Namespace),
        (name(), word()).prop_map(|(namespace, selector)| Target::Workloads(namespace, selector)),
        id().prop_map(Target::Service),
        id().prop_map(Target::External),
        (select(vec![RouteKind::Http, RouteKind::Grpc]), id()).prop_map(|(kind, id)| Target::Route(kind, id)),
    ]
}

fn policy() -> impl Strategy<Value = Policy> {
    let peer = peer().prop_filter("nobody", |p| !p.is_empty());
    let operation = operation().prop_filter("nothing", |o| !o.is_empty());
    let rule = (few(peer), few(operation)).prop_map(|(from, to)| Rule { from, to });
    let action = select(vec![Action::Allow, Action::Deny, Action::Audit]);
    (id(), target(), action, any::<bool>(), few(rule), option::of(few(1..=u16::MAX)), option::of(word())).prop_map(
        |(id, target, action, dry_run, rules, ports, broken)| Policy { id, target, action, dry_run, rules, ports, broken },
    )
}

fn authorization() -> impl Strategy<Value = Authorization> {
    let postures = vec![Posture::AllowAll, Posture::AllowAuthenticated, Posture::AllowSameNamespace, Posture::Deny];
    let from = prop_oneof![Just(PostureFrom::Mesh), name().prop_map(PostureFrom::Namespace)];
    (select(postures), from, few(policy().prop_map(Arc::new))).prop_map(|(posture, posture_from, policies)| Authorization {
        posture,
        posture_from,
        policies,
    })
}

proptest! {
    #[test]
    fn what_is_sent_is_what_is_meant(authorization in authorization()) {
        let wire = v1::Authorization::from(&authorization).encode_to_vec();
        let read = v1::Authorization::decode(&wire[..]).expect("it was encoded");
        prop_assert_eq!(Authorization::try_from(&read), Ok(authorization));
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = Policy::try_from(&v1::BoundPolicy { policy: bytes.into(), ports: None });
    }
}

/// A policy of one rule, as a newer or a broken control plane might send it.
fn read(change: &dyn Fn(&mut v1::AuthorizationPolicy)) -> Result<Policy, WireError> {
    let mut policy = v1::AuthorizationPolicy {
        id: Some(v1::ObjectRef { namespace: "a".into(), name: "b".into() }),
        target: Some((&Target::Mesh).into()),
        action: v1::AuthorizationAction::Allow.into(),
        dry_run: false,
        rules: vec![v1::AuthorizationRule {
            from: vec![v1::AuthorizationPeer { unauthenticated: true, ..Default::default() }],
            to: vec![v1::AuthorizationOperation { ports: vec![80], ..Default::default() }],
        }],
        broken: String::new(),
    };
    change(&mut policy);
    Policy::try_from(&bound(policy.encode_to_vec().into(), None))
}

#[test]
fn what_a_newer_version_adds_is_refused_not_left_out() {
    assert!(read(&|_| {}).is_ok());
    let changes: [&dyn Fn(&mut v1::AuthorizationPolicy); 13] = [
        &|p| p.id = None,
        &|p| p.target = None,
        &|p| p.target = Some(v1::AuthorizationTarget { kind: None }),
        &|p| p.action = 0,
        &|p| p.action = 77,
        &|p| p.rules[0].from[0] = v1::AuthorizationPeer::default(),
        &|p| p.rules[0].to[0] = v1::AuthorizationOperation::default(),
        &|p| p.rules[0].from[0].principals.push(v1::AuthorizationPrincipal { kind: None }),
        &|p| p.rules[0].from[0].ip_blocks.push("everything".into()),
        &|p| p.rules[0].to[0].ports.push(0),
        &|p| p.rules[0].to[0].hosts.push(v1::AuthorizationHost { kind: None }),
        &|p| p.rules[0].to[0].paths.push(v1::AuthorizationPath { kind: None }),
        &|p| p.rules[0].to[0].headers.push(v1::AuthorizationHeader { name: "x".into(), value: None }),
    ];
    for (i, change) in changes.into_iter().enumerate() {
        assert!(read(change).is_err(), "change {i}");
    }
}

#[test]
fn a_posture_that_is_none_and_more_than_a_pod_may_have_are_refused() {
    let good = v1::Authorization::from(&Authorization::default());
    assert!(Authorization::try_from(&good).is_ok());
    for posture in [0, 99] {
        assert!(Authorization::try_from(&v1::Authorization { posture, ..good.clone() }).is_err());
    }
    let policy = bound(policy_bytes(&read(&|_| {}).expect("good")), None);
    let with = |count| v1::Authorization { policies: vec![policy.clone(); count], ..good.clone() };
    assert!(Authorization::try_from(&with(MAX_POLICIES)).is_ok());
    assert!(Authorization::try_from(&with(MAX_POLICIES + 1)).is_err());
    let large = v1::BoundPolicy { policy: vec![0; MAX_POLICY_BYTES + 1].into(), ports: None };
    assert!(Authorization::try_from(&v1::Authorization { policies: vec![large], ..good }).is_err());
}

#[test]
fn texts_are_read_as_those_of_a_manifest() {
    use v1::{authorization_host, authorization_path, authorization_principal};
    let operation = |o: v1::AuthorizationOperation| read(&|p| p.rules[0].to[0] = o.clone()).map(|p| p.rules[0].to[0].clone());
    let path = |kind| {
        operation(v1::AuthorizationOperation { paths: vec![v1::AuthorizationPath { kind: Some(kind) }], ..Default::default() })
    };
    let host = |kind| {
        operation(v1::AuthorizationOperation { hosts: vec![v1::AuthorizationHost { kind: Some(kind) }], ..Default::default() })
    };
    let header = |name: &str| {
        let value = Some(v1::authorization_header::Value::Present(v1::AnyValue {}));
        operation(v1::AuthorizationOperation {
            headers: vec![v1::AuthorizationHeader { name: name.into(), value }],
            ..Default::default()
        })
    };
    let principal = |prefix: &str| {
        let kind = Some(authorization_principal::Kind::Prefix(prefix.into()));
        read(&|p| {
            p.rules[0].from[0] = v1::AuthorizationPeer {
                principals: vec![v1::AuthorizationPrincipal { kind: kind.clone() }],
                ..Default::default()
            }
        })
    };
    let prefix = path(authorization_path::Kind::Prefix("/a/".into())).map(|o| o.paths);
    assert_eq!(prefix, Ok(vec![PathMatch::Prefix("/a".into())]));
    for bad in ["", "a", "//a", "/a/../b", "/%61", "/a?b"] {
        use authorization_path::Kind;
        assert!(path(Kind::Exact(bad.into())).is_err() && path(Kind::Prefix(bad.into())).is_err(), "{bad}");
    }
    assert!(path(authorization_path::Kind::Template("/a".into())).is_err());
    let exact = host(authorization_host::Kind::Exact("Cart.Shop.".into())).map(|o| o.hosts);
    assert_eq!(exact, Ok(vec![HostMatch::Exact("cart.shop".into())]));
    for bad in ["", "*.shop", "a:80", "a/b"] {
        use authorization_host::Kind;
        assert!(host(Kind::Exact(bad.into())).is_err() && host(Kind::Suffix(bad.into())).is_err(), "{bad}");
    }
    assert_eq!(header("X-Role").map(|o| o.headers[0].name.clone()), Ok("x-role".into()));
    for bad in ["", "a b", "host", "te", "weft-client-id"] {
        assert!(header(bad).is_err(), "{bad}");
    }
    assert!(principal("spiffe://td/ns/shop/").is_ok());
    for bad in ["", "spiffe://td/", "spiffe://td/ns/shop", "shop"] {
        assert!(principal(bad).is_err(), "{bad}");
    }
}

#[test]
fn a_small_policy_with_a_large_index_is_refused() {
    let with = |peers: usize, names: usize, ports: u32| {
        let peer = v1::AuthorizationPeer { namespaces: (0..names).map(|i| format!("n{i}")).collect(), ..Default::default() };
        let operation = v1::AuthorizationOperation { ports: (1..=ports).collect(), ..Default::default() };
        let policy = v1::AuthorizationPolicy {
            rules: vec![v1::AuthorizationRule { from: vec![peer; peers], to: vec![operation; peers] }],
            ..v1::AuthorizationPolicy::from(&read(&|_| {}).expect("good"))
        };
        let policies = vec![bound(policy.encode_to_vec().into(), None)];
        Authorization::try_from(&v1::Authorization { policies, ..v1::Authorization::from(&Authorization::default()) })
    };
    assert!(with(1, 400, 500).is_ok());
    assert!(with(1, 400, 501).is_err());
    assert!(with(32, 256, 256).is_err());
}

#[test]
fn issuers_survive_the_round_trip_and_what_they_cannot_be_is_refused() {
    let issuer = |name: &str| Issuer {
        id: "shop/id".parse().expect("a name"),
        issuer: name.into(),
        audiences: vec!["shop".into()],
        keys: Keys::Remote("http://keys.shop/".into()),
        places: vec![Place::bearer()],
        forward: Forward::Strip,
        clock_skew: 7,
        algorithms: vec![Algorithm::EdDsa],
    };
    let inline = Issuer { keys: Keys::Inline("{}".into()), forward: Forward::Keep, ..issuer("b") };
    let all = [issuer("a"), inline];
    let wire: Vec<_> = all.iter().map(issuer_bytes).collect();
    let read = issuers_from(&wire).expect("good ones");
    assert!(read.iter().zip(&all).all(|(read, made)| **read == *made));
    assert!(issuers_from(&[wire[0].clone(), wire[0].clone()]).is_err(), "two of one name");
    assert!(issuers_from(&vec![wire[0].clone(); 17]).is_err() && issuers_from(&[Bytes::from_static(b"\xff")]).is_err());
    let good = v1::JwtIssuer::from(&issuer("a"));
    let spoilt: [fn(&mut v1::JwtIssuer); 8] = [
        |i| i.issuer.clear(),
        |i| i.audiences.clear(),
        |i| i.places.clear(),
        |i| i.keys = None,
        |i| i.id = None,
        |i| i.clock_skew_seconds = 301,
        |i| i.algorithms = vec!["none".into()],
        |i| i.places[0].header = "cookie".into(),
    ];
    for spoil in spoilt {
        let mut wire = good.clone();
        spoil(&mut wire);
        assert!(issuers_from(&[wire.encode_to_vec().into()]).is_err(), "{wire:?}");
    }
    let nothing = v1::AuthorizationPeer { jwt: Some(v1::AuthorizationTokens::default()), ..Default::default() };
    assert!(weft_core::authorization::policy::Peer::try_from(&nothing).is_err());
}
