//! Policies and requests of few words, so that they meet.

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

use super::super::token::{ClaimMatch, TokenMatch};
use super::*;
use crate::jwt::ClaimPath;

const DOMAINS: &[&str] = &["td", "other"];
const NAMESPACES: &[&str] = &["shop", "dev", "sh"];
const ACCOUNTS: &[&str] = &["cart", "web", "we"];
const PATHS: &[&str] = &["/", "/a", "/a/b", "/a/b/c", "/ab", "/a/", "/pkg.Cart/Add", "/b/1/c"];
/// More than policies may have: what is sent may be anything.
const SENT: &[&str] = &[
    "/",
    "/a",
    "/a/b",
    "/a/b/c",
    "/ab",
    "/a/",
    "/%61",
    "/a/x/c",
    "/b/1/c",
    "/b//c",
    "/a/../b",
    "/a%2fb",
    "/pkg.Cart/Add",
    "/pkg.Cart/Take",
    "*",
    "",
];
const HOSTS: &[&str] = &["cart.shop", "CART.shop.:80", "a.cart.shop", "shop", "x@shop", "cart.shopx"];
const NETS: &[&str] = &["10.0.0.0/8", "10.0.0.9/32", "10.0.0.0/30", "0.0.0.0/0", "fd00::/16", "::/0"];
const SOURCES: &[&str] = &["10.0.0.9", "10.0.0.1", "192.168.0.1", "fd00::1", "::ffff:10.0.0.9"];
const VALUES: &[&str] = &["x", "xy", "y"];

pub(super) fn identity() -> impl Strategy<Value = SpiffeId> {
    (select(DOMAINS), select(NAMESPACES), select(ACCOUNTS)).prop_map(|(d, n, a)| id(&format!("spiffe://{d}/ns/{n}/sa/{a}")))
}

fn principal() -> impl Strategy<Value = Principal> {
    prop_oneof![
        1 => Just("*".to_owned()),
        2 => select(DOMAINS).prop_map(|d| format!("spiffe://{d}/*")),
        2 => (select(DOMAINS), select(NAMESPACES)).prop_map(|(d, n)| format!("spiffe://{d}/ns/{n}/*")),
        2 => (select(DOMAINS), select(NAMESPACES)).prop_map(|(d, n)| format!("spiffe://{d}/ns/{n}/sa/we*")),
        6 => identity().prop_map(|id| id.to_string()),
    ]
    .prop_map(|text| text.parse().expect("a principal"))
}

fn account() -> impl Strategy<Value = Account> {
    (select(NAMESPACES), select(ACCOUNTS)).prop_map(|(n, a)| format!("{n}/{a}").parse().expect("an account"))
}

fn net() -> impl Strategy<Value = ipnet::IpNet> {
    select(NETS).prop_map(|n| n.parse().expect("a network"))
}

/// Mostly nothing.
fn few<T: std::fmt::Debug + Clone + 'static>(item: impl Strategy<Value = T> + 'static) -> impl Strategy<Value = Vec<T>> {
    prop_oneof![4 => Just(vec![]), 1 => vec(item, 1..3)]
}

fn peer() -> impl Strategy<Value = Peer> {
    let namespace = || select(NAMESPACES).prop_map(|n| n.parse().expect("a namespace"));
    let who = (few(principal()), few(principal()), few(namespace()), few(namespace()), few(account()), few(account()));
    let wanted = || option::weighted(0.15, token_match());
    let rest = (few(net()), few(net()), prop::bool::weighted(0.1), wanted(), wanted());
    (who, rest).prop_map(|(who, (ip_blocks, not_ip_blocks, unauthenticated, jwt, not_jwt))| {
        let (principals, not_principals, namespaces, not_namespaces, service_accounts, not_service_accounts) = who;
        Peer {
            principals,
            not_principals,
            namespaces,
            not_namespaces,
            service_accounts,
            not_service_accounts,
            ip_blocks,
            not_ip_blocks,
            unauthenticated,
            jwt,
            not_jwt,
        }
    })
}

const ISSUERS: &[&str] = &["https://a", "https://b"];
const ROLES: &[&str] = &["admin", "guest"];

fn role() -> impl Strategy<Value = &'static str> {
    select(ROLES)
}

fn token_match() -> impl Strategy<Value = TokenMatch> {
    let claim = (select(&["role", "realm.roles", "scope"][..]), few(role())).prop_map(|(path, values)| ClaimMatch {
        path: ClaimPath::dotted(path).expect("a path"),
        values: values.into_iter().map(Into::into).collect(),
    });
    let subject = option::weighted(0.2, select(&["anna", "otto"][..]).prop_map(Arc::from));
    let audience = select(&["shop", "bank"][..]).prop_map(Arc::from);
    (select(ISSUERS), subject, few(audience), few(claim)).prop_map(|(issuer, subject, audiences, claims)| TokenMatch {
        issuer: issuer.into(),
        subject,
        audiences,
        claims,
    })
}

fn borne() -> impl Strategy<Value = Borne> {
    let text = |t: &str| Claim::Text(t.into());
    let claims = (option::of(role()), vec(role(), 0..3), option::of(select(&["admin guest", "guest", "x"][..])));
    let claims = claims.prop_map(move |(role, roles, scope)| {
        let roles = Claim::Object(vec![("roles".into(), Claim::List(roles.into_iter().map(text).collect()))]);
        let mut members = vec![("realm".into(), roles)];
        members.extend(role.map(|r| ("role".into(), text(r))));
        members.extend(scope.map(|s| ("scope".into(), text(s))));
        Claim::Object(members)
    });
    let audiences = vec(select(&["shop", "bank"][..]).prop_map(Box::from), 1..3);
    let subject = option::of(select(&["anna", "otto"][..]).prop_map(Box::from));
    let token = (claims, audiences, subject)
        .prop_map(|(claims, audiences, subject)| Borne::Valid(Token { issuer: "".into(), subject, audiences, claims }));
    prop_oneof![
        4 => token,
        1 => Just(Borne::Other),
        2 => select(&[TokenFault::Signature, TokenFault::Expired(7), TokenFault::Several][..]).prop_map(Borne::Invalid),
    ]
}

fn path() -> impl Strategy<Value = PathMatch> {
    prop_oneof![
        select(PATHS).prop_map(|p| PathMatch::exact(p).expect("a path")),
        select(PATHS).prop_map(|p| PathMatch::prefix(p).expect("a path")),
        select(&["/a/{x}", "/b/{x}/c", "/{x}/b", "/{x}"][..]).prop_map(|p| PathMatch::template(p).expect("a template")),
    ]
}

fn host() -> impl Strategy<Value = HostMatch> {
    select(&["cart.shop", "*.shop", "*.cart.shop", "shop"][..]).prop_map(|h| h.parse().expect("a host"))
}

fn method() -> impl Strategy<Value = Arc<str>> {
    select(&["GET", "POST"][..]).prop_map(Into::into)
}

fn header() -> impl Strategy<Value = HeaderMatch> {
    let value = prop_oneof![
        select(VALUES).prop_map(|v| HeaderValue::Exact(v.into())),
        select(VALUES).prop_map(|v| HeaderValue::Prefix(v.into())),
        Just(HeaderValue::Exact("x,y".into())),
        Just(HeaderValue::Present),
    ];
    (select(&["x-role", "x-team", "x_team"][..]), value).prop_map(|(name, value)| HeaderMatch::new(name, value).expect("a field"))
}

fn grpc() -> impl Strategy<Value = GrpcMatch> {
    let text = |list: &'static [&'static str]| option::of(select(list).prop_map(Into::into));
    (text(&["pkg.Cart", "a"]), text(&["Add", "b"])).prop_map(|(service, method)| GrpcMatch { service, method })
}

fn port() -> impl Strategy<Value = u16> {
    select(&[80_u16, 81, 90][..])
}

fn operation() -> impl Strategy<Value = Operation> {
    let names = (few(host()), few(host()), few(method()), few(method()));
    let rest = (few(path()), few(path()), few(header()), few(grpc()));
    (few(port()), few(port()), names, rest).prop_map(|(ports, not_ports, names, rest)| {
        let (hosts, not_hosts, methods, not_methods) = names;
        let (paths, not_paths, headers, grpc) = rest;
        Operation { ports, not_ports, hosts, not_hosts, methods, not_methods, paths, not_paths, headers, grpc }
    })
}

fn one_policy() -> impl Strategy<Value = Policy> {
    let action = prop_oneof![3 => Just(Action::Allow), 2 => Just(Action::Deny), 1 => Just(Action::Audit)];
    let rules = vec((vec(peer(), 0..3), vec(operation(), 0..3)).prop_map(|(from, to)| Rule { from, to }), 0..3);
    let ports = prop_oneof![3 => Just(None), 1 => vec(port(), 0..2).prop_map(Some)];
    ("[a-f][a-c]", action, prop::bool::weighted(0.2), rules, ports).prop_map(|(name, action, dry_run, rules, ports)| Policy {
        dry_run,
        ports,
        ..policy(&name, action, rules)
    })
}

pub(super) fn authorization() -> impl Strategy<Value = Authorization> {
    let posture = select(&[Posture::AllowAll, Posture::AllowAuthenticated, Posture::AllowSameNamespace, Posture::Deny][..]);
    (posture, vec(one_policy(), 0..8)).prop_map(|(posture, policies)| {
        let mut policies: Vec<_> = policies.into_iter().map(Arc::new).collect();
        policies.sort_by(|a, b| a.id.cmp(&b.id));
        policies.dedup_by(|a, b| a.id == b.id);
        Authorization { posture, posture_from: PostureFrom::Mesh, policies }
    })
}

pub(super) fn call() -> impl Strategy<Value = (u16, Option<SpiffeId>, std::net::IpAddr)> {
    let source = select(SOURCES).prop_map(|s| s.parse().expect("an address"));
    (port(), option::weighted(0.8, identity()), source)
}

pub(super) fn request() -> impl Strategy<Value = Request> {
    let field = (select(&["x-role", "x-team", "X-Role", "x_role", "X_Team"][..]), select(VALUES))
        .prop_map(|(n, v)| (n.to_owned(), v.to_owned()));
    let hosts = prop_oneof![8 => vec(select(HOSTS), 1..2), 1 => vec(select(HOSTS), 0..3)];
    let tokens = (option::of(borne()), option::weighted(0.2, borne())).prop_map(|(a, b)| {
        let named = a.map(|a| (ISSUERS[0], a)).into_iter().chain(b.map(|b| (ISSUERS[1], b)));
        named.collect::<Vec<_>>()
    });
    let asked = (select(&["GET", "POST", "get"][..]), select(SENT), hosts, vec(field, 0..3), tokens);
    asked.prop_map(|(method, path, hosts, mut headers, tokens)| {
        headers.extend(hosts.into_iter().map(|h| ("host".to_owned(), h.to_owned())));
        Request { method: method.to_owned(), path: path.to_owned(), headers, tokens }
    })
}
