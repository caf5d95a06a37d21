//! External services: which pods see which, with which policies, and what a namespace has by default.

use weft_core::authorization::policy::PostureFrom;
use weft_core::egress::{Egress, EgressDefault, FEATURE_EGRESS, FEATURE_EGRESS_PEER};
use weft_core::policy::OutboundPolicy;

use super::*;

fn pod(id: &str, ip: &str) -> String {
    let (namespace, name) = id.split_once('/').expect("namespace and name");
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {{containers: [{{name: weft-sidecar}}]}}\nstatus: {{podIP: {ip}}}\n"
    )
}

fn external(id: &str, spec: &str) -> String {
    let (namespace, name) = id.split_once('/').expect("namespace and name");
    format!(
        "---\napiVersion: weft.dev/v1alpha1\nkind: ExternalService\nmetadata: {{name: {name}, namespace: {namespace}, generation: 1}}\nspec: {spec}\n"
    )
}

fn policy(id: &str, name: &str) -> String {
    let (namespace, own) = id.split_once('/').expect("namespace and name");
    format!(
        "---\napiVersion: weft.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {{name: {own}, namespace: {namespace}}}\n\
         spec: {{targetRef: {{group: weft.dev, kind: ExternalService, name: {name}}}, action: Allow, rules: [{{from: [{{serviceAccounts: [web]}}]}}]}}\n"
    )
}

const GOOD: &str = "{hosts: [a.example], ports: [{port: 443, protocol: tls}]}";

fn world() -> Model {
    let mut m = model();
    m.apply(upserts(&(pod("shop/web", "10.0.0.1") + &pod("away/web", "10.0.0.2"))));
    m
}

fn egress(m: &Model, pod: &str) -> Egress {
    let entry = m.snapshot().outbound.get(&pod.parse::<ObjectRef>().expect("a name")).expect("every pod has one");
    let Body::Outbound(wire) = &entry.body else { panic!("{entry:?}") };
    let policy = OutboundPolicy::try_from(wire).expect("it can be read");
    assert_eq!(policy.required_features.iter().any(|f| f == FEATURE_EGRESS), policy.egress != Egress::default(), "{policy:?}");
    policy.egress
}

/// The external services that a pod sees, with their policies.
fn seen(m: &Model, pod: &str) -> Vec<(String, Vec<String>)> {
    let names = |x: &weft_core::egress::External| x.authorization.policies.iter().map(|p| p.id.to_string()).collect();
    egress(m, pod).externals.iter().map(|x| (x.id.to_string(), names(x))).collect()
}

fn told(m: &Model, kind: Kind, id: &str) -> Vec<String> {
    let status = m.statuses().get(&ObjectKey { kind, id: id.parse().expect("a name") }).expect("it has a status");
    status.entries[0].conditions.iter().map(|c| format!("{}{}={}", if c.status { "" } else { "!" }, c.type_, c.reason)).collect()
}

#[test]
fn a_namespace_sees_its_own_and_everybody_what_stands_at_home() {
    let mut m = world();
    assert_eq!(egress(&m, "shop/web"), Egress::default());
    m.apply(upserts(&(external("shop/x", GOOD) + &external("weft-system/all", GOOD))));
    let home = ("weft-system/all".to_owned(), vec![]);
    assert_eq!(seen(&m, "shop/web"), [home.clone(), ("shop/x".to_owned(), vec![])]);
    assert_eq!(seen(&m, "away/web"), [home]);
    let all = egress(&m, "shop/web").externals;
    assert_eq!(all.iter().map(|x| x.is_mesh_wide).collect::<Vec<_>>(), [true, false]);
    m.apply(vec![Change::Delete(ObjectKey { kind: Kind::ExternalService, id: "weft-system/all".parse().expect("a name") })]);
    assert_eq!(seen(&m, "away/web"), []);
}

#[test]
fn a_policy_goes_with_what_it_is_for_and_says_where_that_is_not_there() {
    let mut m = world();
    m.apply(upserts(&policy("shop/p", "x")));
    assert_eq!(told(&m, Kind::AuthorizationPolicy, "shop/p"), ["!Accepted=TargetNotFound"]);
    let changed = m.apply(upserts(&external("shop/x", GOOD)));
    assert!(changed.contains(&Changed::Outbound("shop/web".parse().expect("a name"))), "{changed:?}");
    assert!(!changed.contains(&Changed::Outbound("away/web".parse().expect("a name"))), "{changed:?}");
    assert_eq!(seen(&m, "shop/web"), [("shop/x".to_owned(), vec!["shop/p".to_owned()])]);
    assert_eq!(told(&m, Kind::AuthorizationPolicy, "shop/p"), ["Accepted=Accepted"]);
    assert_eq!(told(&m, Kind::ExternalService, "shop/x"), ["Accepted=Accepted"]);
    m.apply(vec![Change::Delete(ObjectKey { kind: Kind::AuthorizationPolicy, id: "shop/p".parse().expect("a name") })]);
    assert_eq!(seen(&m, "shop/web"), [("shop/x".to_owned(), vec![])]);
    // One that cannot be honoured refuses everybody.
    m.apply(upserts(&policy("shop/p", "x").replace("serviceAccounts: [web]", "serviceAccounts: ['?']")));
    let all = egress(&m, "shop/web").externals;
    assert!(all[0].authorization.policies[0].broken.is_some(), "{all:?}");
}

#[test]
fn one_that_cannot_be_honoured_is_as_it_was_or_shut() {
    let mut m = world();
    let broken = "{hosts: [], ports: [{port: 443, protocol: tls}]}";
    m.apply(upserts(&external("shop/x", broken)));
    assert_eq!(seen(&m, "shop/web"), []);
    assert_eq!(told(&m, Kind::ExternalService, "shop/x"), ["!Accepted=Invalid"]);
    assert!(m.problems().iter().any(|p| p.field == "spec.hosts"), "{:?}", m.problems());
    m.apply(upserts(&external("shop/x", GOOD)));
    m.apply(upserts(&external("shop/x", broken)));
    assert_eq!(seen(&m, "shop/web").len(), 1, "the last good version");
    assert_eq!(told(&m, Kind::ExternalService, "shop/x"), ["Accepted=Accepted", "PartiallyInvalid=UnsupportedValue"]);
    // Of another one that was never good, nobody goes where it may have said more.
    let odd =
        "{hosts: [b.example, 7], ports: [{port: 80, protocol: http}, {port: x}], tls: {mode: originate, minVersion: '1.4'}}";
    m.apply(upserts(&(external("shop/y", odd) + &policy("shop/p", "y"))));
    assert_eq!(told(&m, Kind::ExternalService, "shop/y"), ["!Accepted=Invalid"]);
    assert_eq!(seen(&m, "shop/web")[1], ("shop/y".to_owned(), vec!["shop/y".to_owned()]));
    let shut = &egress(&m, "shop/web").externals[1];
    assert!(shut.authorization.policies[0].broken.as_ref().is_some_and(|why| why.contains("ports[1].port")), "{shut:?}");
    assert_eq!((shut.hosts.len(), shut.ports.len(), &shut.origination), (1, 1, &None));
}

#[test]
fn the_default_is_the_namespaces_or_the_meshs_and_a_word_that_is_none_denies() {
    let namespace = |word: &str| {
        format!("---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: shop, annotations: {{weft.dev/egress: {word}}}}}\n")
    };
    let mut m = world().with_egress(EgressDefault::Deny);
    m.apply(upserts(&(pod("shop/web", "10.0.0.1") + &pod("away/web", "10.0.0.2") + &namespace("allow"))));
    assert_eq!((egress(&m, "away/web").default, egress(&m, "away/web").default_from), (EgressDefault::Deny, PostureFrom::Mesh));
    assert_eq!(egress(&m, "shop/web"), Egress::default());
    m.apply(upserts(&namespace("perhaps")));
    let denied = egress(&m, "shop/web");
    assert_eq!(
        (denied.default, denied.default_from),
        (EgressDefault::Deny, PostureFrom::Namespace("shop".parse().expect("a name")))
    );
    assert!(
        m.problems().iter().any(|p| p.place == "Namespace shop" && p.field.contains("weft.dev/egress")),
        "{:?}",
        m.problems()
    );
}

#[test]
fn peers_are_of_a_foreign_domain_and_need_a_sidecar_that_knows_them() {
    let spec = |domain: &str| {
        format!(
            "{{hosts: [a.example], ports: [{{port: 80, protocol: http}}], tls: {{mode: mutual, identities: ['spiffe://{domain}/*']}}}}"
        )
    };
    let features = |m: &Model, pod: &str| {
        let entry = m.snapshot().outbound.get(&pod.parse::<ObjectRef>().expect("a name")).expect("every pod has one");
        let Body::Outbound(wire) = &entry.body else { panic!("{entry:?}") };
        wire.required_features.iter().any(|f| f == FEATURE_EGRESS_PEER)
    };
    let mut m = world();
    m.apply(upserts(&(external("shop/x", &spec("east.example")) + &external("away/y", GOOD))));
    assert!(features(&m, "shop/web") && !features(&m, "away/web"));
    assert!(egress(&m, "shop/web").externals[0].is_mutual());
    let own = m.trust_domain.to_string();
    m.apply(upserts(&external("shop/x", &spec(&own))));
    assert_eq!(seen(&m, "shop/web"), [("shop/x".to_owned(), vec!["shop/x".to_owned()])], "it refuses everybody");
    assert!(!features(&m, "shop/web"));
    assert_eq!(told(&m, Kind::ExternalService, "shop/x"), ["!Accepted=Invalid"]);
}
