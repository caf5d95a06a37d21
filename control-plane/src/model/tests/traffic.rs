//! Routes and policies: what is attached to what, and what became of it.

use weft_core::Namespace;
use weft_core::traffic::TrafficPolicy;
use weft_core::traffic::policy::RetryBudget;
use weft_core::traffic::route::{BackendTarget, Filter, Route};

use super::*;

fn service(id: &str, ip: &str, ports: &str) -> String {
    let (namespace, name) = id.split_once('/').expect("namespace and name");
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
         spec: {{clusterIP: {ip}, selector: {{app: {name}}}, ports: [{ports}]}}\n"
    )
}

/// A route with one parent and these rules.
fn route(kind: &str, id: &str, parent: &str, rules: &str) -> String {
    let (namespace, name) = id.split_once('/').expect("namespace and name");
    let version = if kind == "TCPRoute" || kind == "TLSRoute" { "v1alpha2" } else { "v1" };
    format!(
        "---\napiVersion: gateway.networking.k8s.io/{version}\nkind: {kind}\nmetadata: {{name: {name}, namespace: {namespace}, generation: 1}}\n\
         spec: {{parentRefs: [{{group: '', kind: Service, {parent}}}], rules: {rules}}}\n"
    )
}

const WEB: &str = "name: web";
const TO_API: &str = "[{backendRefs: [{name: api, port: 80}]}]";

fn world() -> Model {
    let mut m = model();
    m.apply(upserts(
        &(service("shop/web", "10.96.0.1", "{name: a, port: 80}, {name: b, port: 81}")
            + &service("shop/api", "10.96.0.2", "{port: 80}")
            + &service("away/db", "10.96.0.3", "{port: 80}")
            + &service("shop/headless", "None", "{port: 80}")),
    ));
    m
}

fn id(text: &str) -> ObjectRef {
    text.parse().expect("a name")
}

/// The routes of shop/web as callers of a namespace see them.
fn seen(m: &Model, namespace: &str) -> Vec<Route> {
    let namespace: Namespace = namespace.parse().expect("a namespace");
    let Some(routes) = m.snapshot().routes.get(&id("shop/web")) else { return vec![] };
    let Body::Routes(body) = &routes.seen_from(&namespace).entry.body else { panic!("another body") };
    weft_proto::routes_from(body).expect("converts")
}

fn names(m: &Model, namespace: &str) -> Vec<(String, Vec<u16>)> {
    seen(m, namespace).into_iter().map(|r| (r.id.name.to_string(), r.ports)).collect()
}

/// The conditions of an object's first reference, as `Type=Reason` with `!` where it is not so.
fn told(m: &Model, kind: Kind, object: &str) -> Vec<String> {
    let status = m.statuses().get(&ObjectKey { kind, id: id(object) });
    let entries = status.map(|s| s.entries.as_slice()).unwrap_or_default();
    let show = |c: &status::Condition| format!("{}{}={}", if c.status { "" } else { "!" }, c.type_, c.reason);
    entries.first().map(|e| e.conditions.iter().map(show).collect()).unwrap_or_default()
}

fn targets(routes: &[Route]) -> Vec<BackendTarget> {
    routes.iter().flat_map(|r| &r.rules).flat_map(|r| &r.backends).map(|b| b.target.clone()).collect()
}

/// A reference to a parent, the ports that the route is then attached to, and its conditions.
type Attached = (&'static str, Option<Vec<u16>>, &'static [&'static str]);

#[test]
fn a_route_is_attached_where_its_parent_fits() {
    const GOOD: [&str; 2] = ["Accepted=Accepted", "ResolvedRefs=ResolvedRefs"];
    let table: [Attached; 9] = [
        ("name: web", Some(vec![]), &GOOD),
        ("name: web, port: 80", Some(vec![80]), &GOOD),
        ("name: web, sectionName: b", Some(vec![81]), &GOOD),
        ("name: web, sectionName: b, port: 81", Some(vec![81]), &GOOD),
        ("name: web, sectionName: b, port: 80", None, &["!Accepted=NoMatchingParent"]),
        ("name: web, port: 82", None, &["!Accepted=NoMatchingParent"]),
        ("name: nobody", None, &["!Accepted=NoMatchingParent"]),
        ("name: headless", None, &["!Accepted=NoMatchingParent"]),
        ("name: web, namespace: shop", Some(vec![]), &GOOD),
    ];
    for (parent, ports, conditions) in table {
        let mut m = world();
        let changed = m.apply(upserts(&route("HTTPRoute", "shop/r", parent, TO_API)));
        assert_eq!(names(&m, "shop"), ports.map(|p| ("r".to_owned(), p)).into_iter().collect::<Vec<_>>(), "{parent}");
        assert_eq!(told(&m, Kind::HttpRoute, "shop/r"), conditions, "{parent}");
        assert!(changed.contains(&Changed::Status(ObjectKey { kind: Kind::HttpRoute, id: id("shop/r") })));
        assert_eq!(m.problems().is_empty(), conditions == GOOD, "{parent}: {:?}", m.problems());
    }
    // A parent of another kind is another controller's.
    let mut m = world();
    m.apply(upserts(&route("HTTPRoute", "shop/r", WEB, TO_API).replace("group: '', kind: Service, ", "")));
    assert_eq!((names(&m, "shop"), m.statuses().len()), (vec![], 0));
}

#[test]
fn a_service_says_whether_it_has_routes_as_long_as_it_has() {
    let mut m = world();
    let flag = |m: &Model| match &m.snapshot().services.get(&id("shop/web")).expect("there").body {
        Body::Service(s) => s.has_routes,
        other => panic!("{other:?}"),
    };
    assert!(!flag(&m));
    let changed = m.apply(upserts(&route("HTTPRoute", "shop/r", WEB, TO_API)));
    assert!(flag(&m));
    for name in [ResourceName::Routes(id("shop/web")), ResourceName::Service(id("shop/web"))] {
        assert!(changed.contains(&Changed::Name(name)), "{changed:?}");
    }
    assert_eq!(changed.len(), 3, "nothing else is touched: {changed:?}");
    let again = m.apply(upserts(&route("HTTPRoute", "shop/r", WEB, "[{backendRefs: [{name: web, port: 80}]}]")));
    assert_eq!(again, BTreeSet::from([Changed::Name(ResourceName::Routes(id("shop/web")))]), "its status is the same");
    m.apply(vec![Change::Delete(ObjectKey { kind: Kind::HttpRoute, id: id("shop/r") })]);
    assert!(!flag(&m));
    assert_eq!((m.statuses().len(), seen(&m, "shop")), (0, vec![]));
}

#[test]
fn what_a_reference_leads_to() {
    let unresolved = |reason| vec!["Accepted=Accepted".to_owned(), format!("!ResolvedRefs={reason}")];
    let table = [
        ("{name: nobody, port: 80}", "BackendNotFound"),
        ("{name: api, port: 81}", "BackendNotFound"),
        ("{name: api}", "BackendNotFound"),
        ("{name: Api_, port: 80}", "BackendNotFound"),
        ("{name: api, port: 80, kind: Bucket, group: x.example}", "InvalidKind"),
        ("{name: db, namespace: away, port: 80}", "RefNotPermitted"),
        ("{name: nobody, namespace: away, port: 80}", "RefNotPermitted"),
    ];
    for (backend, reason) in table {
        let mut m = world();
        m.apply(upserts(&route("HTTPRoute", "shop/r", WEB, &format!("[{{backendRefs: [{backend}, {{name: api, port: 80}}]}}]"))));
        assert_eq!(told(&m, Kind::HttpRoute, "shop/r"), unresolved(reason), "{backend}");
        let targets = targets(&seen(&m, "shop"));
        assert!(matches!(targets[0], BackendTarget::Unresolved(_)), "{targets:?}");
        assert_eq!(targets[1], BackendTarget::Service { id: id("shop/api"), port: 80 }, "the others go on");
        assert_eq!(m.problems()[0].field, "spec.rules[0].backendRefs[0]");
    }
    // What comes later is found then.
    let mut m = world();
    m.apply(upserts(&route("HTTPRoute", "shop/r", WEB, "[{backendRefs: [{name: late, port: 80}]}]")));
    m.apply(upserts(&service("shop/late", "10.96.0.9", "{port: 80}")));
    assert_eq!(targets(&seen(&m, "shop")), [BackendTarget::Service { id: id("shop/late"), port: 80 }]);
    assert_eq!(m.problems(), []);
}

#[test]
fn a_grant_lets_a_route_refer_to_another_namespace_while_it_stands() {
    let grant = |kind: &str, from: &str, name: &str| {
        format!(
            "---\napiVersion: gateway.networking.k8s.io/v1beta1\nkind: ReferenceGrant\nmetadata: {{name: g, namespace: away}}\n\
             spec: {{from: [{{group: gateway.networking.k8s.io, kind: {kind}, namespace: {from}}}], to: [{{group: '', kind: Service{name}}}]}}\n"
        )
    };
    let mut m = world();
    m.apply(upserts(&route("HTTPRoute", "shop/r", WEB, "[{backendRefs: [{name: db, namespace: away, port: 80}]}]")));
    let table = [
        (grant("HTTPRoute", "shop", ""), true),
        (grant("GRPCRoute", "shop", ""), false),
        (grant("HTTPRoute", "shop", ", name: db"), true),
        (grant("HTTPRoute", "shop", ", name: other"), false),
        (grant("HTTPRoute", "third", ""), false),
        (grant("HTTPRoute", "shop", ""), true),
    ];
    for (grant, lets) in table {
        m.apply(upserts(&grant));
        let resolved = targets(&seen(&m, "shop"))[0] == BackendTarget::Service { id: id("away/db"), port: 80 };
        assert_eq!(resolved, lets, "{grant}");
    }
    m.apply(vec![Change::Delete(ObjectKey { kind: Kind::ReferenceGrant, id: id("away/g") })]);
    assert_eq!(told(&m, Kind::HttpRoute, "shop/r"), ["Accepted=Accepted", "!ResolvedRefs=RefNotPermitted"]);
}

#[test]
fn a_consumers_routes_are_for_its_own_namespace_and_stand_in_place_of_the_producers() {
    let mut m = world();
    let producer = route("HTTPRoute", "shop/p", WEB, TO_API);
    let to = |name: &str| format!("[{{backendRefs: [{{name: {name}, namespace: shop, port: 80}}]}}]");
    let back = &to("web");
    m.apply(upserts(&(producer + &route("HTTPRoute", "away/c", "name: web, namespace: shop, port: 80", &to("api")))));
    assert_eq!(
        told(&m, Kind::HttpRoute, "away/c"),
        ["Accepted=Accepted", "!ResolvedRefs=RefNotPermitted"],
        "elsewhere than it went"
    );
    m.apply(upserts(&route("HTTPRoute", "away/c", "name: web, namespace: shop, port: 80", back)));
    assert_eq!(
        told(&m, Kind::HttpRoute, "away/c"),
        ["Accepted=Accepted", "ResolvedRefs=ResolvedRefs"],
        "no grant is needed back"
    );
    assert_eq!(names(&m, "shop"), [("p".to_owned(), vec![])]);
    assert_eq!(names(&m, "third"), [("p".to_owned(), vec![])]);
    assert_eq!(names(&m, "away"), [("c".to_owned(), vec![80]), ("p".to_owned(), vec![81])], "port by port");
    m.apply(upserts(&route("HTTPRoute", "away/c", "name: web, namespace: shop", back)));
    assert_eq!(names(&m, "away"), [("c".to_owned(), vec![])]);
    m.apply(vec![Change::Delete(ObjectKey { kind: Kind::HttpRoute, id: id("shop/p") })]);
    assert_eq!((names(&m, "third"), names(&m, "away").len()), (vec![], 1));
}

#[test]
fn of_several_kinds_for_one_port_one_counts() {
    let mut m = world();
    m.apply(upserts(
        &(route("TCPRoute", "shop/t", WEB, TO_API)
            + &route("HTTPRoute", "shop/h", "name: web, port: 80", TO_API)
            + &route("GRPCRoute", "shop/g", "name: web, port: 80", TO_API)),
    ));
    assert_eq!(names(&m, "shop"), [("g".to_owned(), vec![80]), ("t".to_owned(), vec![81])]);
    assert_eq!(told(&m, Kind::HttpRoute, "shop/h"), ["!Accepted=Conflicted"]);
    assert_eq!(told(&m, Kind::TcpRoute, "shop/t"), ["Accepted=Accepted", "ResolvedRefs=ResolvedRefs"]);
    m.apply(vec![Change::Delete(ObjectKey { kind: Kind::GrpcRoute, id: id("shop/g") })]);
    assert_eq!(names(&m, "shop"), [("h".to_owned(), vec![80]), ("t".to_owned(), vec![81])]);
}

#[test]
fn a_route_that_cannot_be_honoured_leaves_the_version_before_it_in_force_and_others_alone() {
    let bad = |rules: &str| route("HTTPRoute", "shop/r", WEB, rules).replace("generation: 1", "generation: 2");
    let table = [
        ("[{matches: [{path: {type: Glob, value: /}}]}]", "UnsupportedValue", "spec.rules[0].matches[0].path.type"),
        ("[{matches: [{path: {type: Exact, value: a}}]}]", "UnsupportedValue", "spec.rules[0].matches[0].path.value"),
        (
            "[{matches: [{path: {type: RegularExpression, value: '('}}]}]",
            "UnsupportedValue",
            "spec.rules[0].matches[0].path.value",
        ),
        ("[{matches: [{method: FETCH}]}]", "UnsupportedValue", "spec.rules[0].matches[0].method"),
        ("[{filters: [{type: CORS}]}]", "UnsupportedValue", "spec.rules[0].filters[0].type"),
        ("[{filters: [{type: RequestRedirect}]}]", "UnsupportedValue", "spec.rules[0].filters[0].requestRedirect"),
        (
            "[{filters: [{type: RequestRedirect, requestRedirect: {statusCode: 200}}]}]",
            "UnsupportedValue",
            "spec.rules[0].filters[0].requestRedirect.statusCode",
        ),
        (
            "[{filters: [{type: RequestRedirect, requestRedirect: {}}, {type: URLRewrite, urlRewrite: {}}]}]",
            "IncompatibleFilters",
            "spec.rules[0].filters",
        ),
        (
            "[{filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: 'a b', value: x}]}}]}]",
            "UnsupportedValue",
            "spec.rules[0].filters[0].requestHeaderModifier.set[0].name",
        ),
        (
            "[{filters: [{type: RequestHeaderModifier, requestHeaderModifier: {remove: [Content-Length]}}]}]",
            "UnsupportedValue",
            "spec.rules[0].filters[0].requestHeaderModifier.remove[0]",
        ),
        (
            "[{matches: [{path: {type: Exact, value: /a}}], filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /}}}]}]",
            "UnsupportedValue",
            "spec.rules[0].filters[0].urlRewrite.path.type",
        ),
        ("[{timeouts: {request: 1s, backendRequest: 2s}}]", "UnsupportedValue", "spec.rules[0].timeouts.backendRequest"),
        ("[{retry: {codes: [200]}}]", "UnsupportedValue", "spec.rules[0].retry.codes[0]"),
        ("[{backendRefs: [{name: api, port: 80, weight: 1000001}]}]", "UnsupportedValue", "spec.rules[0].backendRefs[0].weight"),
        ("[{sessionPersistence: {type: Memory}}]", "UnsupportedValue", "spec.rules[0].sessionPersistence.type"),
        ("[]", "UnsupportedValue", "spec.rules"),
    ];
    for (rules, reason, field) in table {
        let mut m = world();
        let other = route("HTTPRoute", "shop/other", WEB, TO_API);
        // Without an earlier version it is refused.
        m.apply(upserts(&(other.clone() + &bad(rules))));
        assert_eq!(told(&m, Kind::HttpRoute, "shop/r"), [format!("!Accepted={reason}")], "{rules}");
        assert_eq!(names(&m, "shop").len(), 1);
        let problems = m.problems();
        assert_eq!((problems[0].place.as_str(), problems[0].field.as_str()), ("HTTPRoute shop/r", field), "{problems:?}");
        // With one, that one stays.
        m.apply(upserts(&route("HTTPRoute", "shop/r", WEB, TO_API)));
        let before = seen(&m, "shop");
        assert_eq!((before.len(), m.problems()), (2, vec![]));
        m.apply(upserts(&bad(rules)));
        assert_eq!(seen(&m, "shop"), before, "{rules}");
        let key = ObjectKey { kind: Kind::HttpRoute, id: id("shop/r") };
        let status = m.statuses().get(&key).expect("told").clone();
        let [accepted, resolved, partial] = &status.entries[0].conditions[..] else { panic!("{status:?}") };
        assert_eq!((accepted.status, accepted.observed_generation, resolved.status), (true, 1, true));
        assert_eq!((partial.type_, partial.reason, partial.observed_generation), ("PartiallyInvalid", "UnsupportedValue", 2));
        assert!(partial.message.starts_with("Fall Back") && partial.message.contains(field), "{}", partial.message);
        assert_eq!((status.generation, m.problems().len()), (2, 1));
        // What it refers to is still followed.
        m.apply(vec![Change::Delete(ObjectKey { kind: Kind::Service, id: id("shop/api") })]);
        assert!(targets(&seen(&m, "shop")).iter().all(|t| matches!(t, BackendTarget::Unresolved(_))));
    }
}

#[test]
fn filters_that_lead_nowhere() {
    let mut m = world();
    let mirror = "[{filters: [{type: RequestMirror, requestMirror: {backendRef: {name: nobody, port: 80}}}, \
                  {type: RequestMirror, requestMirror: {backendRef: {name: api, port: 80}, percent: 5}}], backendRefs: [{name: api, port: 80}]}]";
    m.apply(upserts(&route("HTTPRoute", "shop/r", WEB, mirror)));
    assert_eq!(told(&m, Kind::HttpRoute, "shop/r"), ["Accepted=Accepted", "!ResolvedRefs=BackendNotFound"]);
    let rule = &seen(&m, "shop")[0].rules[0];
    assert!(matches!(&rule.filters[..], [Filter::Mirror(m)] if (m.numerator, m.denominator) == (5, 100)), "{rule:?}");
    let extension =
        "[{filters: [{type: ExtensionRef, extensionRef: {group: x, kind: y, name: z}}], backendRefs: [{name: api, port: 80}]}]";
    m.apply(upserts(&route("HTTPRoute", "shop/r", WEB, extension)));
    assert_eq!(told(&m, Kind::HttpRoute, "shop/r"), ["Accepted=Accepted", "!ResolvedRefs=InvalidKind"]);
    assert!(
        matches!(targets(&seen(&m, "shop"))[..], [BackendTarget::Unresolved(_)]),
        "what the filter would do is not left undone"
    );
}

#[test]
fn the_older_route_comes_first_and_annotations_widen_what_is_repeated() {
    let mut m = world();
    let annotations = "generation: 1, creationTimestamp: '2026-01-01T00:00:00Z', \
                       annotations: {weft.dev/retry-any-method: 'true', weft.dev/retry-grpc-codes: '14, aborted'}";
    let first = route("HTTPRoute", "shop/z", WEB, TO_API);
    let second =
        route("HTTPRoute", "shop/a", WEB, "[{retry: {codes: [503], attempts: 3}}]").replace("generation: 1", annotations);
    m.apply(upserts(&(first + &second)));
    let all = seen(&m, "shop");
    assert_eq!(all.iter().map(|r| r.id.name.as_str()).collect::<Vec<_>>(), ["z", "a"]);
    let retry = all[1].rules[0].retry.as_ref().expect("said");
    assert_eq!((&retry.codes[..], &retry.grpc_codes[..], retry.attempts, retry.any_method), (&[503][..], &[14, 10][..], 3, true));
    m.apply(upserts(&second.replace("aborted", "99")));
    assert_eq!(m.problems()[0].field, "metadata.annotations[\"weft.dev/retry-grpc-codes\"]");
}

fn policy(name: &str, created: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: weft.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {{name: {name}, namespace: shop, creationTimestamp: '{created}'}}\n\
         spec: {{targetRef: {{name: web}}{spec}}}\n"
    )
}

fn in_force(m: &Model) -> Option<TrafficPolicy> {
    let entry = m.snapshot().policies.get(&id("shop/web"))?;
    let Body::Policy(body) = &entry.body else { panic!("another body") };
    Some(body.try_into().expect("converts"))
}

#[test]
fn of_two_policies_for_one_service_the_older_is_in_force() {
    let mut m = world();
    m.apply(upserts(&policy("a", "2026-01-02T00:00:00Z", ", slowStart: 2s")));
    assert_eq!(told(&m, Kind::TrafficPolicy, "shop/a"), ["Accepted=Accepted"]);
    let changed = m.apply(upserts(&policy("b", "2026-01-01T00:00:00Z", ", slowStart: 1s")));
    assert!(changed.contains(&Changed::Status(ObjectKey { kind: Kind::TrafficPolicy, id: id("shop/a") })));
    assert_eq!(told(&m, Kind::TrafficPolicy, "shop/a"), ["!Accepted=Conflicted"]);
    assert_eq!(told(&m, Kind::TrafficPolicy, "shop/b"), ["Accepted=Accepted"]);
    assert_eq!(in_force(&m).and_then(|p| p.slow_start).map(|t| t.as_secs()), Some(1));
    assert_eq!(m.problems()[0].place, "TrafficPolicy shop/a");
    m.apply(vec![Change::Delete(ObjectKey { kind: Kind::TrafficPolicy, id: id("shop/b") })]);
    assert_eq!((in_force(&m).and_then(|p| p.slow_start).map(|t| t.as_secs()), m.problems()), (Some(2), vec![]));
    m.apply(vec![Change::Delete(ObjectKey { kind: Kind::Service, id: id("shop/web") })]);
    assert_eq!((told(&m, Kind::TrafficPolicy, "shop/a"), in_force(&m)), (vec!["!Accepted=TargetNotFound".to_owned()], None));
}

#[test]
fn the_standards_policy_adds_to_ours() {
    let standard = "---\napiVersion: gateway.networking.x-k8s.io/v1alpha1\nkind: XBackendTrafficPolicy\nmetadata: {name: s, namespace: shop}\n\
                    spec: {targetRefs: [{group: '', kind: Service, name: web}, {group: x, kind: Bucket, name: b}], retryConstraint: {budget: {percent: 50}}}\n";
    let mut m = world();
    m.apply(upserts(&(policy("a", "2026-01-02T00:00:00Z", ", slowStart: 2s") + standard)));
    let policy = in_force(&m).expect("there");
    assert_eq!(policy.slow_start.map(|t| t.as_secs()), Some(2));
    assert_eq!(policy.retry_budget, RetryBudget { percent: 50, ..RetryBudget::default() });
    let status = m.statuses().get(&ObjectKey { kind: Kind::BackendTrafficPolicy, id: id("shop/s") }).expect("told").clone();
    let accepted: Vec<bool> = status.entries.iter().map(|e| e.conditions[0].status).collect();
    assert_eq!(accepted, [true], "what is for another kind is others' business: {status:?}");
}

#[test]
fn rate_limits_are_enforced_by_the_pods_and_told_to_nobody_else() {
    let web = "---\napiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\n\
               spec: {clusterIP: 10.96.0.1, selector: {app: web}, ports: [{name: a, port: 80, targetPort: http}, {name: b, port: 81, targetPort: 9000}]}\n";
    let mut m = model();
    m.apply(upserts(&(web.to_owned() + &pod("web-0", "10.0.0.5", ""))));
    assert_eq!((inbound(&m, "shop/web-0").rates, inbound(&m, "shop/web-0").required_features), (vec![], vec![]));
    let rates =
        ", rates: [{name: all, requests: 5}, {name: one, requests: 6, ports: [80]}, {name: none, requests: 7, ports: [99]}]";
    let changed = m.apply(upserts(&policy("a", "2026-01-02T00:00:00Z", rates)));
    assert!(changed.contains(&Changed::Inbound(id("shop/web-0"))));
    let policy = inbound(&m, "shop/web-0");
    let found: Vec<(&str, &[u16])> = policy.rates.iter().map(|r| (&*r.name, &r.ports[..])).collect();
    assert_eq!(found, [("all", &[8080, 9000][..]), ("one", &[8080][..])]);
    assert_eq!(policy.required_features, ["rate-limit/v1"]);
    assert_eq!(
        told(&m, Kind::TrafficPolicy, "shop/a"),
        ["Accepted=Accepted", "!ResolvedRefs=PortNotFound"],
        "one limits nothing"
    );
    assert_eq!(in_force(&m).expect("there").rates, []);
    m.apply(vec![Change::Delete(ObjectKey { kind: Kind::TrafficPolicy, id: id("shop/a") })]);
    assert_eq!(inbound(&m, "shop/web-0").rates, []);
}
