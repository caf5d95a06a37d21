use std::sync::Arc;

use super::*;
use crate::traffic::route::{Backend, BackendTarget, Pattern, StringMatch, Timeouts, ValueMatch};

mod conformance;
mod naive;

// A request of a test.
#[derive(Clone, Debug, Default)]
pub(super) struct Request {
    method: String,
    path: String,
    query: Option<String>,
    fields: Vec<(String, String)>,
}

impl RequestFacts for Request {
    fn method(&self) -> &[u8] {
        self.method.as_bytes()
    }
    fn path(&self) -> &[u8] {
        self.path.as_bytes()
    }
    fn query(&self) -> Option<&[u8]> {
        self.query.as_deref().map(str::as_bytes)
    }
    fn header_values(&self, name: &str, each: &mut dyn FnMut(&[u8])) {
        for (_, value) in self.fields.iter().filter(|(field, _)| field.eq_ignore_ascii_case(name)) {
            each(value.as_bytes());
        }
    }
    fn fields(&self, each: &mut dyn FnMut(&[u8], &[u8])) {
        self.fields.iter().for_each(|(name, value)| each(name.as_bytes(), value.as_bytes()));
    }
}

// `POST /path?query name:value`, or `@service/method name:value` for gRPC. GET where no method is said.
pub(super) fn request(text: &str) -> Request {
    let mut request = Request { method: "GET".into(), ..Request::default() };
    for word in text.split(' ').filter(|word| !word.is_empty()) {
        if let Some(path) = word.strip_prefix('@') {
            request.method = "POST".into();
            request.path = format!("/{path}");
            request.fields.push(("content-type".into(), "application/grpc+proto".into()));
        } else if word.starts_with('/') || word == "*" {
            let (path, query) = word.split_once('?').map_or((word, None), |(path, query)| (path, Some(query)));
            (request.path, request.query) = (path.into(), query.map(Into::into));
        } else if let Some((name, value)) = word.split_once(':') {
            request.fields.push((name.into(), value.into()));
        } else {
            request.method = word.into();
        }
    }
    request
}

// A text, or `~` and a regular expression.
fn string_match(text: &str) -> StringMatch {
    match text.strip_prefix('~') {
        Some(pattern) => StringMatch::Regex(Pattern::new(pattern).expect("valid")),
        None => StringMatch::Exact(text.into()),
    }
}

// `GET /prefix name:value ?parameter=value`; `=/path` is exact, `~/expression` a regular expression, `@service/method` gRPC. Empty matches all.
pub(super) fn matching(text: &str) -> Match {
    let mut m = Match::default();
    let value = |name: &str, value: &str| ValueMatch { name: name.into(), value: string_match(value) };
    let part = |text: &str| (!text.is_empty()).then(|| string_match(text));
    for word in text.split(' ').filter(|word| !word.is_empty()) {
        match word.as_bytes()[0] {
            b'/' => m.path = PathMatch::Prefix(word.into()),
            b'=' => m.path = PathMatch::Exact(word[1..].into()),
            b'~' => m.path = PathMatch::Regex(Pattern::new(&word[1..]).expect("valid")),
            b'@' => {
                let (service, method) = word[1..].split_once('/').expect("valid");
                m.path = PathMatch::Grpc { service: part(service), method: part(method) };
            }
            b'?' => m.query.extend(word[1..].split_once('=').map(|(n, v)| value(n, v))),
            _ => match word.split_once(':') {
                Some((n, v)) => m.headers.push(value(n, v)),
                None => m.method = Some(word.into()),
            },
        }
    }
    m
}

// A route whose rules are `(matches, backend)`; several matches are parted by `|`.
pub(super) fn route(kind: RouteKind, id: &str, created: i64, rules: &[(&str, &str)]) -> Arc<Route> {
    let rule = |(matches, backend): &(&str, &str)| Rule {
        name: None,
        matches: matches.split('|').map(matching).collect(),
        filters: vec![],
        backends: vec![Backend {
            target: BackendTarget::Service { id: format!("ns/{backend}").parse().expect("valid"), port: 80 },
            weight: 1,
            filters: vec![],
        }],
        timeouts: Timeouts::default(),
        retry: None,
        session: None,
    };
    let rules = rules.iter().map(rule).collect();
    Arc::new(Route { kind, id: id.parse().expect("valid"), created, ports: vec![], hostnames: vec![], rules })
}

pub(super) fn http(rules: &[(&str, &str)]) -> Arc<Route> {
    route(RouteKind::Http, "ns/http", 0, rules)
}

pub(super) fn grpc(rules: &[(&str, &str)]) -> Arc<Route> {
    route(RouteKind::Grpc, "ns/grpc", 0, rules)
}

// The backend that a verdict leads to, `404`, or `service` where no route is for it.
pub(super) fn said(verdict: Verdict<'_>) -> String {
    match verdict {
        Verdict::Rule { rule, .. } => match &rule.rule().backends[0].target {
            BackendTarget::Service { id, .. } => id.name.to_string(),
            BackendTarget::Unresolved(why) => why.to_string(),
        },
        Verdict::NoRoutes => "service".into(),
        Verdict::NoMatch => "404".into(),
    }
}

// Asks the routes for each request, and compares.
pub(super) fn expect(routes: &[Arc<Route>], cases: &[(&str, &str)]) {
    let table = RouteTable::new(routes, 80);
    for (text, wanted) in cases {
        assert_eq!(said(table.http(&request(text))), *wanted, "{text}");
    }
}

#[test]
fn a_regular_expression_stands_between_exact_paths_and_prefixes() {
    let routes = [http(&[
        ("/", "all"),
        ("/users/seven", "prefix"),
        ("~/users/[a-z]+", "regex"),
        ("~/users/.+", "short"),
        ("=/users/one", "exact"),
    ])];
    expect(
        &routes,
        &[
            ("/users/one", "exact"),
            ("/users/two", "regex"),
            ("/users/seven", "regex"),
            ("/users/7", "short"),
            ("/x/users/two", "all"),
        ],
    );
}

#[test]
fn ties_go_to_the_older_route_then_by_the_alphabet_of_the_whole_name_then_to_the_first_rule() {
    let new = route(RouteKind::Http, "a/new", 20, &[("/", "new")]);
    let first = route(RouteKind::Http, "a-b/x", 10, &[("/", "first"), ("/", "second")]);
    let last = route(RouteKind::Http, "a/x", 10, &[("/", "last")]);
    // `a-b/x` stands before `a/x`: `-` comes before `/`.
    expect(&[new.clone(), last.clone(), first], &[("/", "first")]);
    expect(&[new, last], &[("/", "last")]);
}

#[test]
fn more_of_method_fields_and_parameters_comes_first_in_this_order() {
    let routes =
        [http(&[("?a=1 ?b=2", "parameters"), ("x:1", "field"), ("x:1 ?a=1", "both"), ("x:1 y:2", "fields"), ("GET", "method")])];
    expect(
        &routes,
        &[
            ("/?a=1&b=2 x:1 y:2", "method"),
            ("POST /?a=1&b=2 x:1 y:2", "fields"),
            ("POST /?a=1&b=2 x:1", "both"),
            ("POST /?b=2 x:1", "field"),
            ("POST /?a=1&b=2", "parameters"),
            ("POST /", "404"),
        ],
    );
}

#[test]
fn paths_are_compared_as_sent() {
    let routes = [http(&[("/a", "a"), ("/a/b/", "b"), ("/", "all"), ("=/a/", "slash")])];
    expect(
        &routes,
        &[
            ("/a", "a"),
            ("/a/", "slash"),
            ("/a/b", "b"),
            ("/a/b/", "b"),
            ("/a/bc", "a"),
            ("/a//b", "a"),
            ("/%61", "all"),
            ("/A", "all"),
            ("/x/../a", "all"),
            ("//a", "all"),
            ("*", "all"),
            ("CONNECT", "all"),
        ],
    );
    expect(&[http(&[("/a", "a")])], &[("*", "404"), ("CONNECT", "404")]);
}

#[test]
fn fields_of_one_name_count_as_one() {
    let routes =
        [http(&[("version:one,two", "joined"), ("version:one", "one"), ("version:~t.*", "regex"), ("cookie:a=1;b=2", "404")])];
    expect(
        &routes,
        &[
            ("/ version:one", "one"),
            ("/ Version:one", "one"),
            ("/ version:one version:two", "joined"),
            ("/ version:two version:one", "regex"),
            ("/ version:ONE", "404"),
            ("/", "404"),
        ],
    );
    let mut cookies = Request { path: "/".into(), ..Request::default() };
    cookies.fields = vec![("cookie".into(), "a=1".into()), ("cookie".into(), "b=2".into())];
    let wanted = ValueMatch { name: "cookie".into(), value: StringMatch::Exact("a=1; b=2".into()) };
    assert!(header_holds(&wanted, &cookies));
    // An expression that matches nothing does not match what is not there.
    assert!(!header_holds(&ValueMatch { name: "x".into(), value: string_match("~.*") }, &cookies));
}

#[test]
fn the_first_parameter_of_a_name_counts_as_sent_or_unescaped() {
    let mut spaced = matching("/");
    spaced.query = vec![ValueMatch { name: "full name".into(), value: StringMatch::Exact("a b".into()) }];
    let route = Route {
        rules: vec![Rule { matches: vec![spaced, matching("?x=1")], ..http(&[("", "ok")]).rules[0].clone() }],
        ..(*http(&[("", "ok")])).clone()
    };
    expect(
        &[Arc::new(route)],
        &[
            ("/?x=1&x=2", "ok"),
            ("/?x=2&x=1", "404"),
            ("/?%78=%31", "ok"),
            ("/?X=1", "404"),
            ("/?xx=1", "404"),
            ("/?x", "404"),
            ("/?", "404"),
            ("/?full+name=a%20b", "ok"),
            ("/?full%20name=a+b&", "ok"),
            ("/?full%20name=a%2", "404"),
            ("/?full%20name=a%zzb%", "404"),
        ],
    );
    assert_eq!(query_value(b"a&b=2=3&b=4", "b"), Some(&b"2=3"[..]));
    assert_eq!(query_value(b"a&b=2", "a"), Some(&b""[..]));
    assert_eq!(query_value(b"a&b=2", "c"), None);
}

#[test]
fn long_values_are_matched_as_short_ones() {
    let long = "v".repeat(2000);
    let routes = [http(&[("x:~v+,v+", "field"), ("?x=~v+", "parameter")])];
    expect(&routes, &[(&format!("/ x:{long} x:{long}"), "field"), (&format!("/?x={}", "%76".repeat(2000)), "parameter")]);
}

#[test]
fn grpc_by_characters_of_service_then_method_then_fields() {
    let routes = [grpc(&[
        ("", "all"),
        ("@/Echo", "method"),
        ("@/~E.*", "methods"),
        ("@~a\\..*/Echo", "services"),
        ("@a.Long/", "service"),
        ("@a.Long/~E.*", "its-methods"),
        ("@a.Long/Echo", "exact"),
        ("@a.Long/Echo x:1", "field"),
    ])];
    expect(
        &routes,
        &[
            ("@a.Long/Echo x:1", "field"),
            ("@a.Long/Echo", "exact"),
            ("@a.Long/Else", "its-methods"),
            ("@a.Long/Other", "service"),
            ("@a.Short/Echo", "services"),
            ("@b/Echo", "method"),
            ("@b/Else", "methods"),
            ("@b/other", "all"),
            ("@no-method", "all"),
            ("@/Echo", "all"),
            // Not gRPC.
            ("POST /a.Long/Echo", "404"),
            ("POST /a.Long/Echo content-type:application/json", "404"),
            ("POST /a.Long/Echo content-type:application/grpc-web", "exact"),
            ("POST /a.Long/Echo content-type:APPLICATION/GRPC", "exact"),
        ],
    );
}

#[test]
fn grpc_rules_come_before_http_rules_for_grpc_requests_only() {
    let routes = [http(&[("/a.B", "http")]), grpc(&[("@a.B/Echo", "grpc")])];
    expect(
        &routes,
        &[("@a.B/Echo", "grpc"), ("@a.B/Other", "http"), ("@a.C/Echo", "404"), ("POST /a.B/Echo", "http"), ("POST /c", "404")],
    );
}

#[test]
fn a_match_of_the_wrong_kind_matches_nothing() {
    expect(&[http(&[("@a/b", "x")])], &[("@a/b", "404"), ("/a/b", "404")]);
    expect(&[grpc(&[("/a", "x"), ("=/a/b", "x")])], &[("@a/b", "404")]);
}

#[test]
fn ports_and_kinds_decide_what_a_table_has() {
    let mut at_81 = (*http(&[("/", "http")])).clone();
    at_81.ports = vec![81];
    let tcp = route(RouteKind::Tcp, "ns/tcp", 5, &[("", "newer")]);
    let older = route(RouteKind::Tcp, "ns/tcp-z", 4, &[("", "older"), ("", "never")]);
    let routes = [Arc::new(at_81), tcp, older];
    let (here, there) = (RouteTable::new(&routes, 80), RouteTable::new(&routes, 81));
    assert!(!here.needs_requests() && there.needs_requests());
    assert_eq!(said(here.http(&request("/"))), "service");
    assert_eq!(said(there.http(&request("/"))), "http");
    assert_eq!(said(here.tcp()), "older");
    assert_eq!(said(here.tls(Some("a.b"))), "service");
    assert_eq!(said(RouteTable::new(&[], 80).tcp()), "service");
    assert_eq!(there.rules().iter().map(|rule| rule.id).collect::<Vec<_>>(), (0..4).collect::<Vec<_>>());
}

#[test]
fn server_names_are_matched_exactly_then_by_the_longest_wildcard() {
    let tls = |name: &str, created, hosts: &[&str]| {
        let mut route = (*route(RouteKind::Tls, &format!("ns/{name}"), created, &[("", name)])).clone();
        route.hostnames = hosts.iter().map(|host| Arc::from(*host)).collect();
        Arc::new(route)
    };
    let named = [
        tls("exact", 9, &["a.b.example"]),
        tls("wide", 1, &["*.example"]),
        tls("near", 5, &["*.B.example"]),
        tls("late", 7, &["*.b.example"]),
    ];
    let table = RouteTable::new(&named, 80);
    let sni = |table: &RouteTable, name: Option<&str>| said(table.tls(name));
    for (name, wanted) in [
        ("a.b.example", "exact"),
        ("A.B.EXAMPLE.", "exact"),
        ("c.b.example", "near"),
        ("d.c.b.example", "near"),
        ("b.example", "wide"),
        ("example", "404"),
        (".example", "404"),
        ("", "404"),
        ("other", "404"),
    ] {
        assert_eq!(sni(&table, Some(name)), wanted, "{name}");
    }
    assert_eq!(sni(&table, None), "404");
    assert_eq!(sni(&table, Some(&format!("{}.b.example", "a.".repeat(200)))), "404");

    let with_any = [tls("any", 9, &[]), tls("wide", 1, &["*.example"])];
    let table = RouteTable::new(&with_any, 80);
    assert_eq!([sni(&table, None), sni(&table, Some("x")), sni(&table, Some("x.example"))], ["any", "any", "wide"]);
}

#[test]
fn hostile_requests_are_answered() {
    let routes = [http(&[("/a/b", "x"), ("~(a+)+", "x"), ("?a=~.*", "x")]), grpc(&[("@a/~.*", "grpc")])];
    let table = RouteTable::new(&routes, 80);
    for path in ["", "/", "//", "a/b", "///////", "*", &"/".repeat(100_000), &"/a/b".repeat(50_000), "/\u{ff}/%"] {
        for query in [None, Some("&&=&%&+=%4"), Some("=")] {
            let mut asked = Request { path: path.into(), query: query.map(Into::into), ..Request::default() };
            let _ = table.http(&asked);
            asked.fields.push(("content-type".into(), "application/grpc".into()));
            let _ = table.http(&asked);
        }
    }
}
