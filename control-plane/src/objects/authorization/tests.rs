use weft_core::authorization::policy::{HostMatch, PathMatch};

use super::*;
use crate::objects::Object;
use crate::watch::parse;

/// A policy `shop/p` with this `spec`.
fn read(spec: &str) -> Arc<AuthorizationObject> {
    let text = format!(
        "apiVersion: weft.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {{name: p, namespace: shop, generation: 3}}\nspec: {spec}\n"
    );
    let mut objects = parse::parse("test", &text).unwrap_or_else(|problem| panic!("{spec}: {problem}"));
    match objects.remove(0) {
        Object::AuthorizationPolicy(object) => object,
        other => panic!("{other:?}"),
    }
}

fn good(spec: &str) -> Arc<Content> {
    read(spec).content.clone().unwrap_or_else(|why| panic!("{spec}: {}: {}", why.field, why.message))
}

fn bad(spec: &str) -> Unhonoured {
    read(spec).content.clone().expect_err(spec)
}

#[test]
fn every_field_is_read() {
    let content = good(
        "{targetRef: {group: '', kind: Service, name: web}, action: Deny, dryRun: true, rules: [{
          from: [{principals: ['*', 'spiffe://td/*', 'spiffe://td/ns/a/sa/b'], notPrincipals: ['spiffe://td/ns/a/sa/c*'], namespaces: [a],
                  notNamespaces: [b], serviceAccounts: [a/b, own], notServiceAccounts: [c/d], ipBlocks: [10.0.0.0/8], notIpBlocks: ['fd00::/8']},
                 {unauthenticated: true, ipBlocks: [0.0.0.0/0]}],
          to: [{ports: [80], notPorts: [81], hosts: ['*.Example.com', a.b], notHosts: [c.d], methods: [GET], notMethods: [PUT],
                paths: [/a, '/b/*', '/c/{id}/d', '/*'], notPaths: [/z], headers: [{name: X-Tier, value: gold}, {name: x-a, type: Present},
                {name: x-b, type: Prefix, value: q}], grpc: [{service: a.B, method: C}]}]}]}",
    );
    assert_eq!(content.scope, Scope::Service("shop/web".parse().expect("a name")));
    let Policy { action: Action::Deny, dry_run: true, rules, ports: None, .. } = &content.policy else { panic!("{content:?}") };
    let (peer, operation) = (&rules[0].from[0], &rules[0].to[0]);
    assert_eq!(peer.principals.len(), 3);
    assert_eq!(peer.service_accounts[1].to_string(), "shop/own");
    assert!(rules[0].from[1].unauthenticated);
    assert_eq!(operation.hosts[0], HostMatch::Suffix("example.com".into()));
    let paths = ["/a", "/b", "/c/{id}/d", "/"].map(Arc::from);
    let [exact, below, template, all] = paths;
    let expected = [PathMatch::Exact(exact), PathMatch::Prefix(below), PathMatch::Template(template), PathMatch::Prefix(all)];
    assert_eq!(operation.paths, expected);
    assert_eq!(&*operation.headers[0].name, "x-tier");
}

#[test]
fn a_policy_is_for_its_target_its_selector_or_its_namespace() {
    let shop = || "shop".parse::<Namespace>().expect("a name");
    let labels = |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    for (target, scope) in [
        ("", Scope::Namespace(shop())),
        ("targetRef: {kind: Namespace}, ", Scope::Namespace(shop())),
        ("targetRef: {kind: Namespace, name: shop}, ", Scope::Namespace(shop())),
        ("targetRef: {kind: Mesh}, ", Scope::Mesh),
        ("targetRef: {group: weft.dev, kind: Mesh}, ", Scope::Mesh),
        ("targetRef: {kind: Service, name: web}, ", Scope::Service("shop/web".parse().expect("a name"))),
        ("selector: {matchLabels: {app: web, tier: a}}, ", Scope::Workloads(shop(), labels(&[("app", "web"), ("tier", "a")]))),
    ] {
        assert_eq!(good(&format!("{{{target}action: Allow}}")).scope, scope, "{target}");
    }
    let workloads = good("{selector: {matchLabels: {app: web, tier: a}}, action: Allow}");
    assert_eq!(workloads.policy.target, Target::Workloads(shop(), "app=web,tier=a".into()));
}

#[test]
fn what_cannot_be_honoured_names_its_field() {
    let rule = |rule: &str| format!("{{action: Allow, rules: [{rule}]}}");
    let table = [
        ("{}".to_owned(), "spec", "action"),
        ("{action: Permit}".to_owned(), "spec.action", "Permit"),
        ("{action: Allow, ruels: []}".to_owned(), "spec.ruels", "unknown field"),
        ("{action: Allow, targetRef: {kind: Service}}".to_owned(), "spec.targetRef.name", "missing"),
        ("{action: Allow, targetRef: {kind: HTTPRoute, name: a}}".to_owned(), "spec.targetRef.kind", "by which route it came"),
        ("{action: Allow, targetRef: {kind: Pod, name: a}}".to_owned(), "spec.targetRef.kind", "no target"),
        ("{action: Allow, targetRef: {kind: Namespace, name: other}}".to_owned(), "spec.targetRef.name", "shop"),
        ("{action: Allow, targetRef: {kind: Mesh, name: m}}".to_owned(), "spec.targetRef.name", "no name"),
        ("{action: Allow, selector: {matchLabels: {}}}".to_owned(), "spec.selector.matchLabels", "empty"),
        ("{action: Allow, targetRef: {kind: Mesh}, selector: {matchLabels: {a: b}}}".to_owned(), "spec.selector", "one of them"),
        (rule("{from: []}"), "spec.rules[0].from", "leave it out"),
        (rule("{from: [{}]}"), "spec.rules[0].from[0]", "nobody"),
        (rule("{to: [{}]}"), "spec.rules[0].to[0]", "nothing"),
        (rule("{from: null}"), "spec.rules[0].from", "is null"),
        (rule("{to: null}"), "spec.rules[0].to", "is null"),
        (rule("{from: [{namespaces: [], principals: ['*']}]}"), "spec.rules[0].from[0].namespaces", "leave it out"),
        (rule("{from: [{namespaces: null, principals: ['*']}]}"), "spec.rules[0].from[0].namespaces", "is null"),
        (rule("{from: [{notIpBlocks: [], principals: ['*']}]}"), "spec.rules[0].from[0].notIpBlocks", "leave it out"),
        (rule("{to: [{ports: [80], methods: []}]}"), "spec.rules[0].to[0].methods", "leave it out"),
        (rule("{to: [{ports: [], methods: [GET]}]}"), "spec.rules[0].to[0].ports", "leave it out"),
        (rule("{to: [{ports: null, methods: [GET]}]}"), "spec.rules[0].to[0].ports", "is null"),
        (rule("{to: [{headers: [], methods: [GET]}]}"), "spec.rules[0].to[0].headers", "leave it out"),
        (rule("{to: [{grpc: [], methods: [GET]}]}"), "spec.rules[0].to[0].grpc", "leave it out"),
        (rule("{to: [{grpc: [{service: null, method: Get}]}]}"), "spec.rules[0].to[0].grpc[0].service", "is null"),
        ("{action: Allow, rules: null}".to_owned(), "spec.rules", "is null"),
        ("{action: Allow, targetRef: null}".to_owned(), "spec.targetRef", "is null"),
        ("{action: Allow, selector: null}".to_owned(), "spec.selector", "is null"),
        (rule("{when: []}"), "spec.rules[0].when", "unknown field"),
        (rule("{from: [{principals: ['spiffe://td/x']}]}"), "spec.rules[0].from[0].principals[0]", "not valid"),
        (rule("{from: [{namespaces: [a, B]}]}"), "spec.rules[0].from[0].namespaces[1]", "lower-case"),
        (rule("{from: [{ipBlocks: [10.0.0.0/33]}]}"), "spec.rules[0].from[0].ipBlocks[0]", "CIDR"),
        (rule("{from: [{unauthenticated: true, namespaces: [a]}]}"), "spec.rules[0].from[0].unauthenticated", "two entries"),
        (rule("{to: [{ports: [0]}]}"), "spec.rules[0].to[0].ports[0]", "1 to 65535"),
        (rule("{to: [{methods: [get]}]}"), "spec.rules[0].to[0].methods[0]", "GET"),
        (rule("{to: [{paths: [a]}]}"), "spec.rules[0].to[0].paths[0]", "not valid"),
        (rule("{to: [{paths: ['/a/../b']}]}"), "spec.rules[0].to[0].paths[0]", "not valid"),
        (rule("{to: [{paths: ['/a*']}]}"), "spec.rules[0].to[0].paths[0]", "/a/*"),
        (rule("{to: [{paths: ['/{a}/*']}]}"), "spec.rules[0].to[0].paths[0]", "one of them"),
        (rule("{to: [{headers: [{name: a}]}]}"), "spec.rules[0].to[0].headers[0].value", "missing"),
        (rule("{to: [{headers: [{name: 'a b', value: c}]}]}"), "spec.rules[0].to[0].headers[0].name", "no name"),
        (rule("{to: [{grpc: [{}]}]}"), "spec.rules[0].to[0].grpc[0]", "empty"),
        (format!("{{action: Allow, rules: [{}]}}", "{}, ".repeat(65)), "spec.rules", "at most 64"),
        ("5".to_owned(), "spec", ""),
    ];
    for (spec, field, message) in table {
        let why = bad(&spec);
        assert_eq!(why.field, field, "{spec}: {}", why.message);
        assert!(why.message.contains(message), "{spec}: {}", why.message);
        assert!(!why.is_harmless, "{spec}");
    }
}

#[test]
fn of_what_cannot_be_honoured_it_is_known_what_it_was_for() {
    let (whole, web) = ("Namespace shop", "Service shop/web");
    for (spec, scope, is_harmless) in [
        ("{action: Permit, targetRef: {kind: Service, name: web}}", web, false),
        ("{action: Deny, targetRef: {kind: Service, name: web}, more: 1}", web, false),
        ("{action: Deny, targetRef: {kind: Service, name: web, port: 80}}", whole, false),
        ("{action: Audit, targetRef: {kind: Service, name: web}, more: 1}", web, true),
        ("{action: Deny, dryRun: true, more: 1}", whole, true),
        ("{action: Deny, dryRun: perhaps}", whole, false),
        ("{action: Deny, selector: {matchLabels: {app: web}}, more: 1}", "the pods of namespace shop with app=web", false),
        ("{action: Deny, selector: web}", whole, false),
        ("{action: Deny, targetRef: {kind: HTTPRoute, name: a}}", whole, false),
        ("{action: Deny, targetRef: {kind: Mesh}, more: 1}", "the mesh", false),
        ("[]", whole, false),
    ] {
        let why = bad(spec);
        assert_eq!((why.scope.to_string().as_str(), why.is_harmless), (scope, is_harmless), "{spec}");
    }
}

#[test]
fn a_policy_that_would_be_huge_when_it_is_compiled_is_refused() {
    let list = |count: usize, one: &dyn Fn(usize) -> String| (0..count).map(one).collect::<Vec<_>>().join(", ");
    let names = list(200, &|i| format!("n{i}"));
    let ports = |count| list(count, &|i| (i + 1).to_string());
    let rule =
        |count| format!("{{action: Deny, rules: [{{from: [{{namespaces: [{names}]}}], to: [{{ports: [{}]}}]}}]}}", ports(count));
    good(&rule(50));
    let why = bad(&rule(51));
    assert_eq!(why.field, "spec.rules");
    assert!(why.message.starts_with("10200 combinations"), "{}", why.message);
}
