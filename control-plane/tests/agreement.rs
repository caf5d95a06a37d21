//! What weft reads of Gateway API, beside what somebody else's types for the same read of it; and what weft writes into a status, read
//! by them. The manifests have every field that those types know, but for the ones that are named here.

use std::collections::BTreeSet;
use std::str::FromStr as _;
use std::time::Duration;

use gateway_api::experimental as theirs;
use kube::CustomResourceExt;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use weft_control_plane::kubernetes::status::merge::{Condition, Entry, List, merged};
use weft_control_plane::objects::Object;
use weft_control_plane::objects::traffic::{
    BackendRef, Filter, GrantFrom, GrantTo, GrpcMatch, HeaderChange, HttpMatch, NoMatch, ParentRef, PathChange, PolicyObject,
    RouteObject, Rule, Rules, Time, ValueMatch,
};
use weft_control_plane::watch::parse::parse;
use weft_core::traffic::route::SessionKind;

const MANIFESTS: &str = include_str!("agreement/routes.yaml");

/// Fields that are not read: a route with a filter of these is refused with a condition, and default gateways are a gateway's affair.
const UNREAD: [&str; 4] = ["cors", "externalAuth", "extensionRef", "useDefaultGateways"];

/// Manifests of a kind: as they are, and as we read them.
fn of(kind: &str) -> (Value, Object) {
    let values: Vec<Value> = serde_saphyr::from_multiple(MANIFESTS).expect("YAML");
    let objects = parse("routes.yaml", MANIFESTS).unwrap_or_else(|problem| panic!("{problem}"));
    let at = values.iter().position(|value| value["kind"] == kind).expect("there is one of each kind");
    (values[at].clone(), objects[at].clone())
}

/// What they make of it; it must be all of it.
fn read_by_them<T: DeserializeOwned + Serialize>(value: &Value) -> Value {
    let theirs: T = serde_json::from_value(value.clone()).unwrap_or_else(|error| panic!("{}: {error}", value["kind"]));
    let spec = serde_json::to_value(theirs).expect("plain JSON")["spec"].take();
    assert_eq!(spec, value["spec"], "{}: a field that Gateway API does not have", value["kind"]);
    normal(spec)
}

/// Times as milliseconds, as they read them; nothing that says nothing.
fn normal(mut value: Value) -> Value {
    const TIMES: [&str; 6] = ["request", "backendRequest", "backoff", "absoluteTimeout", "idleTimeout", "interval"];
    match &mut value {
        Value::Object(fields) => {
            fields.retain(|_, inner| !inner.is_null() && inner.as_array().is_none_or(|all| !all.is_empty()));
            for (name, inner) in fields.iter_mut() {
                let time = inner.as_str().filter(|_| TIMES.contains(&name.as_str()));
                *inner = match time.map(|text| gateway_api::Duration::from_str(text).expect("a duration")) {
                    Some(time) => millis(Duration::from_millis(time.as_millis() as u64)),
                    None => normal(inner.take()),
                };
            }
        }
        Value::Array(all) => all.iter_mut().for_each(|inner| *inner = normal(inner.take())),
        _ => {}
    }
    value
}

fn millis(time: Duration) -> Value {
    json!(time.as_millis() as u64)
}

fn time(time: Option<Time>) -> Value {
    time.map_or(Value::Null, |t| millis(t.0))
}

fn parent(p: &ParentRef) -> Value {
    json!({
        "group": p.group, "kind": p.kind, "namespace": p.namespace, "name": p.name, "sectionName": p.section_name, "port": p.port,
    })
}

fn backend(b: &BackendRef) -> Value {
    json!({
        "group": b.group, "kind": b.kind, "name": b.name, "namespace": b.namespace, "port": b.port, "weight": b.weight,
        "filters": b.filters.iter().map(filter).collect::<Vec<_>>(),
    })
}

fn headers(change: &HeaderChange) -> Value {
    let set: Vec<Value> = change.set.iter().map(|f| json!({ "name": f.name, "value": f.value })).collect();
    let add: Vec<Value> = change.add.iter().map(|f| json!({ "name": f.name, "value": f.value })).collect();
    json!({ "set": set, "add": add, "remove": change.remove })
}

fn path(change: &PathChange) -> Value {
    json!({
        "type": change.kind, "replaceFullPath": change.replace_full_path, "replacePrefixMatch": change.replace_prefix_match,
    })
}

fn filter(f: &Filter) -> Value {
    json!({
        "type": f.kind,
        "requestHeaderModifier": f.request_header_modifier.as_ref().map(headers),
        "responseHeaderModifier": f.response_header_modifier.as_ref().map(headers),
        "requestRedirect": f.request_redirect.as_ref().map(|r| json!({
            "scheme": r.scheme, "hostname": r.hostname, "path": r.path.as_ref().map(path), "port": r.port, "statusCode": r.status_code,
        })),
        "urlRewrite": f.url_rewrite.as_ref().map(|r| json!({ "hostname": r.hostname, "path": r.path.as_ref().map(path) })),
        "requestMirror": f.request_mirror.as_ref().map(|m| json!({
            "backendRef": backend(&m.backend_ref),
            "percent": m.percent,
            "fraction": m.fraction.map(|f| json!({ "numerator": f.numerator, "denominator": f.denominator })),
        })),
    })
}

fn value(m: &ValueMatch) -> Value {
    json!({ "type": m.kind, "name": m.name, "value": m.value })
}

fn http(m: &HttpMatch) -> Value {
    json!({
        "path": m.path.as_ref().map(|p| json!({ "type": p.kind, "value": p.value })),
        "method": m.method,
        "headers": m.headers.iter().map(value).collect::<Vec<_>>(),
        "queryParams": m.query_params.iter().map(value).collect::<Vec<_>>(),
    })
}

fn grpc(m: &GrpcMatch) -> Value {
    json!({
        "method": m.method.as_ref().map(|g| json!({ "type": g.kind, "service": g.service, "method": g.method })),
        "headers": m.headers.iter().map(value).collect::<Vec<_>>(),
    })
}

fn rule<M>(rule: &Rule<M>, of: impl Fn(&M) -> Value) -> Value {
    json!({
        "name": rule.name,
        "matches": rule.matches.iter().map(of).collect::<Vec<_>>(),
        "filters": rule.filters.iter().map(filter).collect::<Vec<_>>(),
        "backendRefs": rule.backend_refs.iter().map(backend).collect::<Vec<_>>(),
        "timeouts": rule.timeouts.as_ref().map(|t| json!({
            "request": time(t.request), "backendRequest": time(t.backend_request),
        })),
        "retry": rule.retry.as_ref().map(|r| json!({ "codes": r.codes, "attempts": r.attempts, "backoff": time(r.backoff) })),
        "sessionPersistence": rule.session_persistence.as_ref().map(|s| json!({
            "sessionName": s.session_name,
            "type": s.kind,
            "absoluteTimeout": time(s.absolute_timeout),
            "idleTimeout": time(s.idle_timeout),
            "cookieConfig": s.cookie_config.as_ref().map(|c| json!({ "lifetimeType": c.lifetime_type })),
        })),
    })
}

fn route(route: &RouteObject) -> Value {
    let rules: Vec<Value> = match &route.rules {
        Rules::Http(all) => all.iter().map(|r| rule(r, http)).collect(),
        Rules::Grpc(all) => all.iter().map(|r| rule(r, grpc)).collect(),
        Rules::Opaque(all) => all.iter().map(|r| rule(r, |NoMatch {}| json!({}))).collect(),
    };
    normal(json!({
        "parentRefs": route.parents.iter().map(parent).collect::<Vec<_>>(), "hostnames": route.hostnames, "rules": rules,
    }))
}

/// The fields of a value, as paths; the elements of a list are one.
fn fields(path: &str, value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(all) => {
            for (name, inner) in all {
                let path = format!("{path}.{name}");
                fields(&path, inner, found);
                found.insert(path);
            }
        }
        Value::Array(all) => all.iter().for_each(|inner| fields(path, inner, found)),
        _ => {}
    }
}

/// The fields that a schema has, but for those that are not read.
fn known(path: &str, schema: &Value, found: &mut BTreeSet<String>) {
    for (name, inner) in
        schema["properties"].as_object().into_iter().flatten().filter(|(name, _)| !UNREAD.contains(&name.as_str()))
    {
        let path = format!("{path}.{name}");
        known(&path, inner, found);
        found.insert(path);
    }
    if let Some(items) = schema.get("items") {
        known(path, items, found);
    }
}

/// The manifest has every field that they know and we read.
fn is_whole<T: CustomResourceExt>(value: &Value) {
    let definition = serde_json::to_value(T::crd()).expect("plain JSON");
    let schema = &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
    let (mut there, mut should) = (BTreeSet::new(), BTreeSet::new());
    fields("", &value["spec"], &mut there);
    known("", schema, &mut should);
    let missing: Vec<_> = should.difference(&there).collect();
    assert!(!should.is_empty() && missing.is_empty(), "{}: the manifest lacks {missing:#?}", value["kind"]);
}

#[track_caller]
fn agree<T: CustomResourceExt + DeserializeOwned + Serialize>(kind: &str) {
    let (value, object) = of(kind);
    is_whole::<T>(&value);
    let Object::Route(ours) = object else { panic!("{kind} is a route") };
    assert_eq!(route(&ours), read_by_them::<T>(&value), "{kind}");
}

#[test]
fn routes_are_read_as_others_read_them() {
    agree::<theirs::httproutes::HttpRoute>("HTTPRoute");
    agree::<theirs::grpcroutes::GrpcRoute>("GRPCRoute");
    agree::<theirs::tlsroutes::TlsRoute>("TLSRoute");
    agree::<theirs::tcproutes::TcpRoute>("TCPRoute");
}

#[test]
fn grants_are_read_as_others_read_them() {
    type Theirs = theirs::referencegrants::ReferenceGrant;
    let (value, object) = of("ReferenceGrant");
    is_whole::<Theirs>(&value);
    let Object::ReferenceGrant(ours) = object else { panic!("it is a grant") };
    let from = |f: &GrantFrom| json!({"group": f.group, "kind": f.kind, "namespace": f.namespace});
    let to = |t: &GrantTo| json!({"group": t.group, "kind": t.kind, "name": t.name});
    let ours = json!({
        "from": ours.spec.from.iter().map(from).collect::<Vec<_>>(), "to": ours.spec.to.iter().map(to).collect::<Vec<_>>(),
    });
    assert_eq!(normal(ours), read_by_them::<Theirs>(&value));
}

#[test]
fn backend_policies_are_read_as_others_read_them() {
    type Theirs = theirs::xbackendtrafficpolicies::XBackendTrafficPolicy;
    let (value, object) = of("XBackendTrafficPolicy");
    is_whole::<Theirs>(&value);
    let Object::BackendTrafficPolicy(ours) = object else { panic!("it is a policy") };
    let theirs = read_by_them::<Theirs>(&value);
    let PolicyObject { targets, policy, retry_budget, .. } = &*ours;
    let targets: Vec<Value> = targets.iter().map(|t| json!({"group": t.group, "kind": t.kind, "name": t.name})).collect();
    assert_eq!(json!(targets), theirs["targetRefs"]);
    let budget = retry_budget.expect("it says something of it");
    let rate = &theirs["retryConstraint"]["minRetryRate"];
    assert_eq!(json!(budget.percent), theirs["retryConstraint"]["budget"]["percent"]);
    assert_eq!(millis(budget.interval), theirs["retryConstraint"]["budget"]["interval"]);
    let per_second = rate["count"].as_u64().expect("a number") * 1_000 / rate["interval"].as_u64().expect("a time");
    assert_eq!(u64::from(budget.min_per_second), per_second);
    let session = policy.session.as_ref().expect("it has one");
    let persistence = &theirs["sessionPersistence"];
    assert_eq!(*session.name, *persistence["sessionName"].as_str().expect("text"));
    assert_eq!((session.kind == SessionKind::Cookie, session.permanent), (persistence["type"] == "Cookie", true));
    assert_eq!(session.absolute.map(millis), Some(persistence["absoluteTimeout"].clone()));
    assert_eq!(session.idle.map(millis), Some(persistence["idleTimeout"].clone()));
}

#[test]
fn what_is_written_into_a_status_others_can_read() {
    let condition =
        |kind, status| Condition { kind, status, reason: "Accepted".into(), message: "it is in force".into(), generation: 3 };
    let reference = json!({"group": "", "kind": "Service", "name": "web", "port": 80});
    let entries = [Entry { reference, conditions: vec![condition("Accepted", true), condition("ResolvedRefs", false)] }];
    let parents = merged(List::Parents, &Value::Null, &entries, "2026-01-31T12:00:00Z").expect("there was nothing");
    let status: theirs::httproutes::HttpRouteStatus =
        serde_json::from_value(json!({"parents": parents})).expect("a status of a route");
    let parent = &status.parents[0];
    assert_eq!((parent.controller_name.as_str(), parent.parent_ref.port), ("weft.dev/controller", Some(80)));
    let accepted = &parent.conditions[0];
    assert_eq!((accepted.type_.as_str(), accepted.status.as_str(), accepted.observed_generation), ("Accepted", "True", Some(3)));
    assert_eq!(parent.conditions[1].status, "False");

    let ancestors = merged(List::Ancestors, &Value::Null, &entries, "2026-01-31T12:00:00Z").expect("there was nothing");
    let status =
        serde_json::from_value::<theirs::xbackendtrafficpolicies::XBackendTrafficPolicyStatus>(json!({"ancestors": ancestors}));
    assert_eq!(status.expect("a status of a policy").ancestors.len(), 1);
}
