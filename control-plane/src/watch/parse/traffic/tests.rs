use std::time::Duration;

use weft_core::traffic::policy::{Abort, Balancer, HashKey, RateScope, RetryBudget};
use weft_core::traffic::route::{RouteKind, SessionKind};

use super::super::{from_json, parse};
use super::*;

const ROUTE: &str = "apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata:
  name: web
  namespace: shop
  generation: 7
  creationTimestamp: 2026-01-02T03:04:05Z
  annotations: {weft.dev/retry-any-method: 'true', other: thing}
spec:
  parentRefs:
  - {group: '', kind: Service, name: web, port: 80}
  rules:
  - matches:
    - {path: {type: PathPrefix, value: /a}, newer: {field: 1}}
    timeouts: {request: 1m30s}
    backendRefs:
    - {name: web, port: 80, weight: 9}
";

const POLICY: &str = "apiVersion: weft.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: web, namespace: shop}
spec:
  targetRef: {name: web}
  balancer:
    type: RingHash
    ringHash: {header: X-User}
  outlier: {successRate: 90, baseEjection: 30s}
  rates:
  - {name: all, requests: 100}
  - {name: each, by: Caller, requests: 10, per: 1m, burst: 3, ports: [80], principals: ['spiffe://td/ns/a/sa/b']}
  faults:
  - {fraction: {numerator: 1, denominator: 1000}, delay: 2s, abort: {http: 503}}
  tcp: {keepalive: {idle: 10s}, congestion: bbr}
";

fn route_of(text: &str) -> Arc<RouteObject> {
    match parse("f", text).expect("good").remove(0) {
        Object::Route(route) => route,
        other => panic!("{other:?}"),
    }
}

fn policy_of(text: &str) -> Arc<PolicyObject> {
    match parse("f", text).expect("good").remove(0) {
        Object::TrafficPolicy(policy) | Object::BackendTrafficPolicy(policy) => policy,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_route_is_read_with_what_nobody_knows_left_out() {
    let route = route_of(ROUTE);
    assert_eq!((route.kind, route.created, route.generation), (RouteKind::Http, 1_767_323_045, 7));
    assert_eq!(route.annotations.keys().collect::<Vec<_>>(), ["weft.dev/retry-any-method"]);
    assert_eq!(route.parents[0].service(&route.id.namespace), Some("shop/web".parse().expect("a name")));
    let Rules::Http(rules) = &route.rules else { panic!("{route:?}") };
    assert_eq!(rules[0].backend_refs[0].weight, Some(9));
    assert_eq!(rules[0].timeouts.as_ref().and_then(|t| t.request).map(|t| t.0), Some(Duration::from_secs(90)));
}

#[test]
fn a_parent_is_a_gateway_unless_it_says_otherwise() {
    let route = route_of(&ROUTE.replace("group: '', kind: Service, ", ""));
    assert_eq!(route.parents[0].service(&route.id.namespace), None);
}

#[test]
fn every_kind_has_its_versions() {
    let table = [
        ("gateway.networking.k8s.io/v1beta1", "HTTPRoute", Some(Kind::HttpRoute)),
        ("gateway.networking.k8s.io/v1", "GRPCRoute", Some(Kind::GrpcRoute)),
        ("gateway.networking.k8s.io/v1alpha2", "TCPRoute", Some(Kind::TcpRoute)),
        ("gateway.networking.k8s.io/v1", "TLSRoute", Some(Kind::TlsRoute)),
        ("gateway.networking.k8s.io/v1alpha2", "TLSRoute", Some(Kind::TlsRoute)),
        ("gateway.networking.k8s.io/v1alpha3", "TLSRoute", Some(Kind::TlsRoute)),
        ("gateway.networking.k8s.io/v1beta1", "ReferenceGrant", Some(Kind::ReferenceGrant)),
        ("gateway.networking.k8s.io/v1", "ReferenceGrant", Some(Kind::ReferenceGrant)),
        ("gateway.networking.x-k8s.io/v1alpha1", "XBackendTrafficPolicy", Some(Kind::BackendTrafficPolicy)),
        ("weft.dev/v1alpha1", "TrafficPolicy", Some(Kind::TrafficPolicy)),
        ("weft.dev/v1", "TrafficPolicy", None),
        ("gateway.networking.k8s.io/v1", "Gateway", None),
        ("v1", "HTTPRoute", None),
    ];
    for (version, kind, expected) in table {
        assert_eq!(known(version, kind), expected, "{version}/{kind}");
        if let Some(known) = expected {
            assert_eq!(known.as_str(), kind);
        }
    }
}

#[test]
fn a_policy_is_read_to_its_nouns_with_their_defaults() {
    let policy = &policy_of(POLICY).policy;
    assert_eq!(policy.balancer, Balancer::RingHash(HashKey::Header("x-user".into())));
    let outlier = policy.outlier.as_ref().expect("said");
    assert_eq!((outlier.success_rate, outlier.base_ejection, outlier.consecutive_failures), (90, Duration::from_secs(30), 5));
    let [all, each] = &policy.rates[..] else { panic!("{policy:?}") };
    assert_eq!((all.burst, all.per, all.by), (100, Duration::from_secs(1), RateScope::All));
    assert_eq!((each.burst, each.per, each.by, &each.ports[..]), (3, Duration::from_secs(60), RateScope::Caller, &[80][..]));
    assert_eq!((policy.faults[0].millionths, policy.faults[0].abort), (1_000, Some(Abort::Http(503))));
    assert_eq!(policy.tcp.congestion.as_deref(), Some("bbr"));
    let empty = "apiVersion: weft.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {name: a}\nspec: {targetRef: {name: web}}\n";
    assert_eq!(policy_of(empty).policy, TrafficPolicy::default());
}

#[test]
fn what_the_standard_has_of_policies_is_read() {
    let text = "apiVersion: gateway.networking.x-k8s.io/v1alpha1
kind: XBackendTrafficPolicy
metadata: {name: web, namespace: shop}
spec:
  targetRefs: [{group: '', kind: Service, name: web}]
  retryConstraint:
    budget: {percent: 50, interval: 30s}
    minRetryRate: {count: 30, interval: 10s}
  sessionPersistence: {sessionName: Mine, type: Header, absoluteTimeout: 1h}
";
    let policy = policy_of(text);
    let budget = RetryBudget { percent: 50, interval: Duration::from_secs(30), min_per_second: 3 };
    assert_eq!(policy.retry_budget, Some(budget));
    let session = policy.policy.session.as_ref().expect("said");
    assert_eq!((&*session.name, session.kind, session.absolute), ("mine", SessionKind::Header, Some(Duration::from_secs(3_600))));
    let without = policy_of(&text.replace("retryConstraint", "newer"));
    assert_eq!(without.retry_budget, None);
}

#[test]
fn a_problem_names_file_line_and_field() {
    let table = [
        (ROUTE.replace("port: 80}\n  rules", "port: eighty}\n  rules"), 11, "spec.parentRefs[0].port", "65535"),
        (ROUTE.replace("1m30s", "90"), 15, "spec.rules[0].timeouts.request", "no duration"),
        (ROUTE.replace("2026-01-02T", "yesterday"), 7, "metadata.creationTimestamp", "no time"),
        (ROUTE.replace("weight: 9", "weight: -9"), 17, "spec.rules[0].backendRefs[0].weight", ""),
        (POLICY.replace("successRate: 90", "successRate: 190"), 1, "spec.outlier.successRate", "from 0 to 100"),
        (POLICY.replace("type: RingHash", "type: Fastest"), 7, "spec.balancer.type", "Fastest"),
        (POLICY.replace("type: RingHash", "type: Maglev"), 1, "spec.balancer.ringHash", "only for the type RingHash"),
        (POLICY.replace("{header: X-User}", "{header: X-User, query: q}"), 1, "spec.balancer.ringHash", "exactly one"),
        (POLICY.replace("requests: 10,", "requests: 0,"), 1, "spec.rates[1].requests", "from 1"),
        (POLICY.replace("name: each", "name: all"), 1, "spec.rates[1].name", "twice"),
        (POLICY.replace("spiffe://td", "td"), 1, "spec.rates[1].principals[0]", ""),
        (POLICY.replace("{http: 503}", "{http: 503, grpc: 1}"), 1, "spec.faults[0].abort", "exactly one"),
        (POLICY.replace("idle: 10s", "idle: 1500ms"), 1, "spec.tcp.keepalive.idle", "whole seconds"),
        (POLICY.replace("{name: web}\n", "{name: web, kind: Gateway}\n"), 1, "spec.targetRef", "for a Service"),
    ];
    for (text, line, field, message) in table {
        let p = parse("dir/f.yaml", &text).expect_err(&text);
        assert_eq!((p.place.as_str(), p.field.as_str()), (&*format!("dir/f.yaml:{line}"), field), "{p}");
        assert!(p.message.contains(message), "{p}");
    }
}

#[test]
fn a_field_that_a_policy_does_not_have_is_an_error_that_names_it() {
    let table = [
        (POLICY.replace("  outlier:", "  outliers:"), "outliers"),
        (POLICY.replace("successRate", "successrate"), "successrate"),
        (POLICY.replace("keepalive: {idle", "keepalive: {idel"), "idel"),
        (POLICY.replace("{numerator", "{nominator: 1, numerator"), "nominator"),
    ];
    for (text, name) in table {
        let p = parse("f", &text).expect_err(&text);
        assert!(p.field.starts_with("spec") && p.to_string().contains(name), "{p}");
    }
}

#[test]
fn what_an_api_server_sends_is_read_by_the_same_rules() {
    let route = serde_json::json!({
        "metadata": {"name": "web", "namespace": "shop", "generation": 3, "creationTimestamp": "2026-01-02T03:04:05Z"},
        "spec": {"parentRefs": [{"group": "", "kind": "Service", "name": "web"}], "hostnames": ["a.example"],
                 "rules": [{"backendRefs": [{"name": "web", "port": 443}]}]},
        "status": {"parents": []},
    });
    let Ok(Object::Route(read)) = from_json(Kind::TlsRoute, &route) else { panic!("a good one") };
    assert_eq!((read.kind, read.generation, &read.hostnames[..]), (RouteKind::Tls, 3, &["a.example".to_owned()][..]));
    let grant = serde_json::json!({
        "metadata": {"name": "g", "namespace": "db"},
        "spec": {"from": [{"group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "namespace": "shop"}], "to": [{"group": "", "kind": "Service"}]},
    });
    let Ok(Object::ReferenceGrant(read)) = from_json(Kind::ReferenceGrant, &grant) else { panic!("a good one") };
    let shop = "shop".parse().expect("a namespace");
    assert!(read.lets("HTTPRoute", &shop, "any"));
    assert!(!read.lets("GRPCRoute", &shop, "any"));
    assert!(!read.lets("HTTPRoute", &"other".parse().expect("a namespace"), "any"));
}
