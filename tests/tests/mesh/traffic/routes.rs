//! Which rule a request falls under, what the rule does to it, and what becomes of routes that cannot be honoured.

use serde_json::{Value, json};
use weft_tests::{World, eventually};

use super::{CLIENT, ask, change, field, put};

const MESH: &str = r#"
manifests: ["@WORK@/traffic.yaml"]
workloads:
- {name: v1, namespace: shop, replicas: 2, command: ["@PYTHON@", "@PEERS@/http_peer.py", "8090"], ports: [{port: 8090, protocol: http}]}
- {name: v2, namespace: shop, command: ["@PYTHON@", "@PEERS@/http_peer.py", "8090"], ports: [{port: 8090, protocol: http}]}
- {name: own, namespace: front, command: ["@PYTHON@", "@PEERS@/http_peer.py", "8090"], ports: [{port: 8090, protocol: http}]}
- {name: client, namespace: front, command: [sleep, infinity]}
- {name: other, namespace: back, command: [sleep, infinity]}
services:
- {name: web, namespace: shop, selector: {app: v1}, ports: [{port: 80, targetPort: 8090, protocol: http}]}
- {name: v1, namespace: shop, ports: [{port: 80, targetPort: 8090, protocol: http}]}
- {name: v2, namespace: shop, ports: [{port: 80, targetPort: 8090, protocol: http}]}
- {name: own, namespace: front, ports: [{port: 80, targetPort: 8090, protocol: http}]}
"#;
const REQUESTS: usize = 300;

/// A route of the shop's own, with `rules`.
fn route(name: &str, rules: &str) -> String {
    format!(
        "---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: {name}, namespace: shop}}\n\
         spec:\n  parentRefs: [{{group: \"\", kind: Service, name: web, port: 80}}]\n  rules:\n{rules}"
    )
}

const RULES: &str = r#"
  - matches: [{path: {type: Exact, value: /moved}}]
    filters: [{type: RequestRedirect, requestRedirect: {path: {type: ReplaceFullPath, replaceFullPath: /name}, statusCode: 301}}]
  - matches: [{headers: [{name: x-canary, value: "yes"}]}]
    filters:
    - {type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-set, value: b}], add: [{name: x-added, value: a}], remove: [x-canary]}}
    - {type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: x-by, value: weft}], remove: [server]}}
    backendRefs: [{name: v2, port: 80}]
  - matches: [{path: {type: PathPrefix, value: /old}, method: GET}]
    filters: [{type: URLRewrite, urlRewrite: {hostname: v2.example, path: {type: ReplacePrefixMatch, replacePrefixMatch: /}}}]
    backendRefs: [{name: v2, port: 80}]
  - matches: [{queryParams: [{name: version, value: "2"}]}]
    backendRefs: [{name: v2, port: 80}]
  - matches: [{path: {type: PathPrefix, value: /nowhere}}]
    backendRefs: [{name: nobody, port: 80}]
"#;

fn weights(one: u32, two: u32) -> String {
    format!("  - backendRefs: [{{name: v1, port: 80, weight: {one}}}, {{name: v2, port: 80, weight: {two}}}]\n")
}

#[test]
fn routes_do_what_they_say() {
    let world = World::up_with(MESH, |work| put(work, &route("web", &format!("{RULES}{}", weights(90, 10)))));
    eventually("the routes are known", || (ask(&world, &["http://web.shop/moved"]).0 == "301").then_some(()));
    each_rule(&world);
    weighted(&world);
    a_bad_route_changes_nothing(&world);
    callers_with_routes_of_their_own(&world);
}

fn each_rule(world: &World) {
    let head = world.curl(CLIENT, &["-i", "http://web.shop/moved"]);
    assert!(head.to_ascii_lowercase().contains("\nlocation: http://web.shop/name\r"), "{head}");

    let answer = world.curl(CLIENT, &["-i", "-H", "X-Canary: yes", "-H", "x-set: a", "http://web.shop/seen"]);
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    assert!(head.contains("x-by: weft") && !head.contains("Server:"), "{head}");
    let seen: Value = serde_json::from_str(body).expect("JSON");
    assert_eq!((&seen["host"], field(&seen, "x-canary")), (&json!("v2-0"), vec![]), "{seen}");
    assert_eq!((field(&seen, "x-added"), field(&seen, "x-set")), (vec!["a".to_owned()], vec!["b".to_owned()]), "{seen}");

    let seen: Value = serde_json::from_str(&ask(world, &["http://web.shop/old/seen?a=b"]).1).expect("JSON");
    assert_eq!((&seen["path"], field(&seen, "host")), (&json!("/seen?a=b"), vec!["v2.example".to_owned()]), "{seen}");
    // Another method, and a path that only begins alike: the rule is not theirs.
    assert_eq!(ask(world, &["-X", "POST", "http://web.shop/old/seen"]).0, "404", "the server's own");
    assert_eq!(ask(world, &["http://web.shop/older/seen"]).0, "404");
    assert_eq!(ask(world, &["http://web.shop/name?a=1&version=2"]).1, "v2-0\n");
    assert_eq!(ask(world, &["http://web.shop/nowhere/name"]).0, "500 no-backend");
}

/// How many of so many requests the second version answers.
fn answered_by_second(world: &World) -> usize {
    let answers = world.curl(CLIENT, &[&format!("http://web.shop/name?n=[1-{REQUESTS}]")]);
    assert_eq!(answers.lines().count(), REQUESTS, "{answers}");
    answers.lines().filter(|name| name.starts_with("v2")).count()
}

fn weighted(world: &World) {
    let second = answered_by_second(world);
    // Of 300 at 10 %: fewer than 5 or more than 70 is less likely than one in a billion.
    assert!((5..=70).contains(&second), "{second} of {REQUESTS} at 10 %");
    // The rules are gone with the change: nothing of what was before is left.
    let is_changed = || ask(world, &["http://web.shop/moved"]).0 == "404";
    change(world, &route("web", &weights(0, 1)), is_changed);
    assert_eq!(answered_by_second(world), REQUESTS, "all of the weight is there");
}

/// The version before it stays, and the other route comes into force although it stands in the same file.
fn a_bad_route_changes_nothing(world: &World) {
    let bad =
        route("web", "  - matches: [{path: {type: RegularExpression, value: \"(\"}}]\n    backendRefs: [{name: v1, port: 80}]\n");
    let other = route(
        "more",
        "  - matches: [{path: {type: Exact, value: /new}}]\n    filters: [{type: RequestRedirect, requestRedirect: {hostname: new.example}}]\n",
    );
    change(world, &format!("{bad}{other}"), || ask(world, &["http://web.shop/new"]).0 == "302");
    assert_eq!(answered_by_second(world), REQUESTS, "the last good version stays in force");
    let unread = "---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: third, namespace: shop}\nspec: {rules: 5}\n";
    let moved = other.replace("new.example", "newer.example");
    let is_moved = || world.curl(CLIENT, &["-i", "http://web.shop/new"]).contains("http://newer.example/new");
    change(world, &format!("{unread}{bad}{moved}"), is_moved);
    assert_eq!(answered_by_second(world), REQUESTS, "and so it does where a third cannot be read");
}

/// A route in the callers' namespace is for them alone, and in place of the service's own. To a backend elsewhere it needs a grant.
fn callers_with_routes_of_their_own(world: &World) {
    let own = |backend: &str| {
        route("own", &format!("  - backendRefs: [{backend}]\n"))
            .replace("namespace: shop}", "namespace: front}")
            .replace("name: web, port: 80}]", "name: web, namespace: shop}]")
    };
    let producer = route("web", &weights(0, 1));
    let name = |world: &World, place: &str| world.curl(place, &["http://web.shop/name"]);
    change(world, &format!("{producer}{}", own("{name: own, port: 80}")), || name(world, CLIENT) == "own-0\n");
    assert_eq!(name(world, "back/other"), "v2-0\n", "others have the service's own routes");

    // From a third namespace: nobody there has said that it may.
    let from_back = format!(
        "{producer}{}",
        own("{name: own, namespace: front, port: 80}").replace("namespace: front}\nspec", "namespace: back}\nspec")
    );
    let status = || world.status("back/other", "http://web.shop/name");
    change(world, &from_back, || status() == "500 no-backend");
    let grant = "---\napiVersion: gateway.networking.k8s.io/v1beta1\nkind: ReferenceGrant\nmetadata: {name: back, namespace: front}\n\
                 spec: {from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: back}], to: [{group: \"\", kind: Service}]}\n";
    change(world, &format!("{from_back}{grant}"), || status() == "200");
    assert_eq!(name(world, "back/other"), "own-0\n");
    change(world, &from_back, || status() == "500 no-backend");
    // Without any route, the service is what it was.
    change(world, "", || name(world, CLIENT).starts_with("v1-"));
}
