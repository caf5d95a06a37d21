//! Issuers of tokens: whose policies bring which to which pod.

use weft_core::policy::FEATURE_JWT;

use super::*;

const POLICY: &str = "{action: Allow, rules: [{from: [{jwt: {issuer: https://id}}]}]}";

fn object(kind: &str, id: &str, spec: &str) -> String {
    let (namespace, name) = id.split_once('/').expect("namespace and name");
    format!(
        "---\napiVersion: weft.dev/v1alpha1\nkind: {kind}\nmetadata: {{name: {name}, namespace: {namespace}, generation: 1}}\nspec: {spec}\n"
    )
}

fn issuer(id: &str, iss: &str) -> String {
    object("JwtIssuer", id, &format!("{{issuer: {iss}, audiences: [shop], jwksUri: http://keys.shop/}}"))
}

fn world() -> Model {
    let pod = |id: &str, ip: &str| {
        let (namespace, name) = id.split_once('/').expect("namespace and name");
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {{containers: [{{name: weft-sidecar}}]}}\nstatus: {{podIP: {ip}}}\n"
        )
    };
    let mut m = model();
    m.apply(upserts(&(pod("shop/web", "10.0.0.1") + &pod("away/web", "10.0.0.2"))));
    m
}

/// The issuers that a pod has; nothing where it does not need to know of tokens.
fn of(m: &Model, pod: &str) -> Option<Vec<String>> {
    let policy = inbound(m, pod);
    let needs = policy.required_features.iter().any(|f| f == FEATURE_JWT);
    needs.then(|| policy.issuers.iter().map(|issuer| issuer.id.to_string()).collect())
}

fn told(m: &Model, kind: Kind, id: &str) -> Vec<String> {
    let status = m.statuses().get(&ObjectKey { kind, id: id.parse().expect("a name") }).expect("it has a status");
    let show = |c: &status::Condition| format!("{}{}={}", if c.status { "" } else { "!" }, c.type_, c.reason);
    status.entries[0].conditions.iter().map(show).collect()
}

fn delete(kind: Kind, id: &str) -> Vec<Change> {
    vec![Change::Delete(ObjectKey { kind, id: id.parse().expect("a name") })]
}

#[test]
fn a_pod_has_the_issuers_that_its_policies_name() {
    let mut m = world();
    m.apply(upserts(&issuer("shop/id", "https://id")));
    assert_eq!((of(&m, "shop/web"), of(&m, "away/web")), (None, None), "nobody asks for it");
    m.apply(upserts(&object("AuthorizationPolicy", "shop/p", POLICY)));
    assert_eq!((of(&m, "shop/web"), of(&m, "away/web")), (Some(vec!["shop/id".to_owned()]), None));
    assert_eq!(told(&m, Kind::AuthorizationPolicy, "shop/p"), ["Accepted=Accepted"]);

    // One of another namespace does not count there, and none counts that is for another issuer.
    m.apply(upserts(&(object("AuthorizationPolicy", "away/p", POLICY) + &issuer("away/other", "https://other"))));
    assert_eq!(of(&m, "away/web"), Some(vec![]));
    assert_eq!(told(&m, Kind::AuthorizationPolicy, "away/p"), ["Accepted=Accepted", "!ResolvedRefs=IssuerNotFound"]);
    let changed = m.apply(upserts(&issuer("away/other", "https://id")));
    assert!(changed.contains(&Changed::Inbound("away/web".parse().expect("a name"))));
    assert_eq!(of(&m, "away/web"), Some(vec!["away/other".to_owned()]));
    assert_eq!(told(&m, Kind::AuthorizationPolicy, "away/p"), ["Accepted=Accepted"]);
    m.apply(delete(Kind::JwtIssuer, "away/other"));
    assert_eq!(of(&m, "away/web"), Some(vec![]));
    m.apply(delete(Kind::AuthorizationPolicy, "away/p"));
    assert_eq!(of(&m, "away/web"), None);
}

#[test]
fn the_issuer_of_the_mesh_counts_before_a_namespaces_own() {
    let mut m = world();
    m.apply(upserts(
        &(issuer("shop/b", "https://id") + &issuer("shop/a", "https://id") + &object("AuthorizationPolicy", "shop/p", POLICY)),
    ));
    assert_eq!(of(&m, "shop/web"), Some(vec!["shop/a".to_owned()]));
    assert_eq!(told(&m, Kind::JwtIssuer, "shop/a"), ["Accepted=Accepted"]);
    assert_eq!(told(&m, Kind::JwtIssuer, "shop/b"), ["!Accepted=Conflicted"]);
    m.apply(upserts(&issuer("weft-system/id", "https://id")));
    assert_eq!(of(&m, "shop/web"), Some(vec!["weft-system/id".to_owned()]));
    assert_eq!(told(&m, Kind::JwtIssuer, "shop/a"), ["!Accepted=Conflicted"]);
    m.apply(delete(Kind::JwtIssuer, "weft-system/id"));
    assert_eq!(of(&m, "shop/web"), Some(vec!["shop/a".to_owned()]));
    assert_eq!(told(&m, Kind::JwtIssuer, "shop/a"), ["Accepted=Accepted"]);
}

#[test]
fn the_last_good_version_stays_in_force() {
    let mut m = world();
    let broken = object("JwtIssuer", "shop/id", "{issuer: https://id, audiences: [], jwksUri: http://keys.shop/}");
    m.apply(upserts(&(broken.clone() + &object("AuthorizationPolicy", "shop/p", POLICY))));
    assert_eq!(of(&m, "shop/web"), Some(vec![]));
    assert_eq!(told(&m, Kind::JwtIssuer, "shop/id"), ["!Accepted=Invalid"]);
    assert!(m.problems().iter().any(|p| p.field == "spec.audiences"), "{:?}", m.problems());
    m.apply(upserts(&issuer("shop/id", "https://id")));
    m.apply(upserts(&broken));
    assert_eq!(of(&m, "shop/web"), Some(vec!["shop/id".to_owned()]));
    assert_eq!(told(&m, Kind::JwtIssuer, "shop/id"), ["Accepted=Accepted", "PartiallyInvalid=UnsupportedValue"]);
}

#[test]
fn policies_for_services_and_the_mesh_bring_their_issuers_too() {
    let mut m = world();
    let spec = POLICY.replace("{action", "{targetRef: {kind: Mesh}, action");
    m.apply(upserts(&(issuer("weft-system/id", "https://id") + &object("AuthorizationPolicy", "weft-system/p", &spec))));
    for pod in ["shop/web", "away/web"] {
        assert_eq!(of(&m, pod), Some(vec!["weft-system/id".to_owned()]));
    }
    assert_eq!(told(&m, Kind::JwtIssuer, "weft-system/id"), ["Accepted=Accepted"]);
    let many: String = (0..17).map(|i| issuer(&format!("shop/i{i}"), &format!("https://i{i}"))).collect();
    let rules: Vec<String> = (0..17).map(|i| format!("{{jwt: {{issuer: https://i{i}}}}}")).collect();
    m.apply(upserts(
        &(many
            + &object("AuthorizationPolicy", "shop/p", &format!("{{action: Deny, rules: [{{from: [{}]}}]}}", rules.join(", ")))),
    ));
    let policy = inbound(&m, "shop/web");
    assert!(policy.required_features.iter().any(|f| f.starts_with("room for 18")) && policy.issuers.is_empty(), "{policy:?}");
}
