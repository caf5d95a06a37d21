// The table against the plainest reading of the order: every match of every route in one list, sorted, walked from the front.

use proptest::prelude::*;

use super::*;

// What Gateway API says, told from the strings: bigger comes first, but for age, name and places.
fn reference(routes: &[Arc<Route>], request: &Request) -> Option<(String, usize)> {
    let is_grpc = request.fields.iter().any(|(name, value)| name == "content-type" && value.starts_with("application/grpc"));
    let kinds: &[RouteKind] = if is_grpc { &[RouteKind::Grpc, RouteKind::Http] } else { &[RouteKind::Http] };
    kinds.iter().find_map(|kind| {
        let mut all = Vec::new();
        for route in routes.iter().filter(|route| route.kind == *kind) {
            for (at, rule) in route.rules.iter().enumerate() {
                for (nth, m) in rule.matches.iter().enumerate() {
                    let better = score(*kind, m);
                    all.push(((std::cmp::Reverse(better), route.created, route.id.to_string(), at, nth), m));
                }
            }
        }
        all.sort_by(|(one, _), (other, _)| one.cmp(other));
        all.into_iter().find(|(_, m)| matches(m, request)).map(|((_, _, id, at, _), _)| (id, at))
    })
}

fn score(kind: RouteKind, m: &Match) -> [usize; 7] {
    let part = |text: &Option<StringMatch>| match text {
        Some(StringMatch::Exact(text)) => [2, text.len()],
        Some(StringMatch::Regex(pattern)) => [1, pattern.as_str().len()],
        None => [0, 0],
    };
    let path = match &m.path {
        PathMatch::Exact(_) => [2, 0, 0, 0],
        PathMatch::Regex(pattern) => [1, pattern.as_str().len(), 0, 0],
        PathMatch::Prefix(prefix) => [0, prefix.len(), 0, 0],
        // Of an `HTTPRoute` the prefix `/`, of a `GRPCRoute` no service and no method.
        PathMatch::Any => [0, usize::from(kind == RouteKind::Http), 0, 0],
        PathMatch::Grpc { service, method } => [part(service)[0], part(service)[1], part(method)[0], part(method)[1]],
    };
    [path[0], path[1], path[2], path[3], usize::from(m.method.is_some()), m.headers.len(), m.query.len()]
}

fn matches(m: &Match, request: &Request) -> bool {
    let holds = |wanted: &StringMatch, sent: &str| match wanted {
        StringMatch::Exact(text) => **text == *sent,
        StringMatch::Regex(pattern) => pattern.is_match(sent.as_bytes()),
    };
    let path = match &m.path {
        PathMatch::Any => true,
        PathMatch::Exact(path) => **path == request.path,
        PathMatch::Prefix(prefix) if &**prefix == "/" => true,
        PathMatch::Prefix(prefix) => request.path == **prefix || request.path.starts_with(&format!("{prefix}/")),
        PathMatch::Regex(pattern) => pattern.is_match(request.path.as_bytes()),
        PathMatch::Grpc { service, method } => {
            let sent = request.path[1..].rsplit_once('/').filter(|(s, m)| !s.is_empty() && !m.is_empty());
            let any = service.is_none() && method.is_none();
            any || sent.is_some_and(|(s, m)| {
                service.as_ref().is_none_or(|wanted| holds(wanted, s)) && method.as_ref().is_none_or(|wanted| holds(wanted, m))
            })
        }
    };
    let field = |name: &str| {
        let values: Vec<&str> =
            request.fields.iter().filter(|(field, _)| field == name).map(|(_, value)| value.as_str()).collect();
        (!values.is_empty()).then(|| values.join(","))
    };
    let parameter = |name: &str| {
        let query = request.query.as_deref()?;
        query
            .split('&')
            .filter_map(|pair| pair.split_once('='))
            .find(|(sent, _)| *sent == name)
            .map(|(_, value)| value.to_owned())
    };
    path && m.method.as_ref().is_none_or(|method| **method == request.method)
        && m.headers.iter().all(|header| field(&header.name).is_some_and(|sent| holds(&header.value, &sent)))
        && m.query.iter().all(|wanted| parameter(&wanted.name).is_some_and(|sent| holds(&wanted.value, &sent)))
}

// Few words, so that paths meet.
fn path() -> impl Strategy<Value = String> {
    prop::collection::vec(prop::sample::select(vec!["a", "b", "ab"]), 1..4).prop_map(|words| format!("/{}", words.join("/")))
}

fn pairs(separator: char, most: usize) -> impl Strategy<Value = Vec<String>> {
    let pair = (prop::sample::select(vec!["x", "y"]), prop::sample::select(vec!["1", "2", "~[12]"]));
    prop::collection::btree_map(pair.0, pair.1, 0..=most)
        .prop_map(move |map| map.into_iter().map(|(name, value)| format!("{name}{separator}{value}")).collect())
}

fn a_match(kind: RouteKind) -> impl Strategy<Value = String> {
    let place = match kind {
        RouteKind::Grpc => prop_oneof![
            Just(String::new()),
            (prop::sample::select(vec!["", "a", "ab", "~a.*", "~[ab]"]), prop::sample::select(vec!["", "a", "b", "~.*b"]))
                .prop_map(|(service, method)| format!("@{service}/{method}")),
        ]
        .boxed(),
        _ => prop_oneof![
            1 => Just(String::new()),
            1 => Just("/".to_owned()),
            4 => path(),
            2 => path().prop_map(|path| format!("={path}")),
            1 => prop::sample::select(vec!["~/a.*", "~/[ab]/b", "~.*/ab"]).prop_map(str::to_owned),
        ]
        .boxed(),
    };
    let method = prop::sample::select(vec!["", "", "GET", "POST"]);
    (place, method, pairs(':', 2), pairs('=', 2)).prop_map(move |(place, method, headers, query)| {
        let mut words = vec![place, headers.join(" ")];
        if kind == RouteKind::Http {
            words.push(method.to_owned());
            words.extend(query.iter().map(|pair| format!("?{pair}")));
        }
        words.join(" ")
    })
}

fn a_route(at: usize) -> impl Strategy<Value = Arc<Route>> {
    prop::sample::select(vec![RouteKind::Http, RouteKind::Http, RouteKind::Grpc]).prop_flat_map(move |kind| {
        let rules = prop::collection::vec(prop::collection::vec(a_match(kind), 1..4), 1..5);
        (0..3i64, prop::sample::select(vec!["a", "a-b", "b"]), rules).prop_map(move |(created, namespace, rules)| {
            let rules: Vec<String> = rules.into_iter().map(|matches| matches.join("|")).collect();
            let rules: Vec<(&str, &str)> = rules.iter().map(|matches| (matches.as_str(), "x")).collect();
            route(kind, &format!("{namespace}/r{at}"), created, &rules)
        })
    })
}

fn some_routes() -> impl Strategy<Value = Vec<Arc<Route>>> {
    (a_route(0), a_route(1), a_route(2), a_route(3), 1..=4usize)
        .prop_map(|(a, b, c, d, count)| vec![a, b, c, d][..count].to_vec())
}

fn a_request() -> impl Strategy<Value = Request> {
    let plain = |pairs: Vec<String>| pairs.into_iter().map(|pair| pair.replace("~[12]", "2")).collect::<Vec<_>>();
    let field = (prop::sample::select(vec!["x", "y"]), prop::sample::select(vec!["1", "2"]));
    let fields = prop::collection::vec(field, 0..3);
    (path(), any::<bool>(), any::<bool>(), fields, pairs('=', 2)).prop_map(move |(path, grpc, post, fields, query)| {
        let query = plain(query);
        let mut fields: Vec<(String, String)> = fields.into_iter().map(|(n, v)| (n.to_owned(), v.to_owned())).collect();
        if grpc {
            fields.push(("content-type".into(), "application/grpc".into()));
        }
        Request {
            method: if post { "POST" } else { "GET" }.into(),
            path,
            query: (!query.is_empty()).then(|| query.join("&")),
            fields,
        }
    })
}

proptest! {
    #[test]
    fn the_table_says_what_the_sorted_list_says(routes in some_routes(), requests in prop::collection::vec(a_request(), 1..12)) {
        let table = RouteTable::new(&routes, 80);
        for request in requests {
            let wanted = reference(&routes, &request);
            let found = match table.http(&request) {
                Verdict::Rule { rule, matched } => {
                    prop_assert!(rule.rule().matches.iter().any(|m| m.path == *matched));
                    Some((rule.route.id.to_string(), rule.index))
                }
                Verdict::NoMatch => None,
                Verdict::NoRoutes => panic!("there are routes"),
            };
            prop_assert_eq!(found, wanted, "{:?}", request);
        }
    }
}
