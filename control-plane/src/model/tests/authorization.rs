//! Authorization policies: which pods get which, and what becomes of each.

use weft_core::authorization::policy::PostureFrom;
use weft_core::authorization::{Action, Authorization, Posture};
use weft_core::policy::FEATURE_AUTHORIZATION;

use super::*;

fn policy(id: &str, spec: &str) -> String {
    let (namespace, name) = id.split_once('/').expect("namespace and name");
    format!(
        "---\napiVersion: weft.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, namespace: {namespace}, generation: 1}}\nspec: {spec}\n"
    )
}

fn pod(id: &str, ip: &str, labels: &str) -> String {
    let (namespace, name) = id.split_once('/').expect("namespace and name");
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: {namespace}, labels: {{{labels}}}}}\n\
         spec: {{containers: [{{name: app, ports: [{{name: http, containerPort: 8080}}]}}, {{name: weft-sidecar}}]}}\nstatus: {{podIP: {ip}}}\n"
    )
}

fn service(id: &str, ip: &str, app: &str, ports: &str) -> String {
    let (namespace, name) = id.split_once('/').expect("namespace and name");
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
         spec: {{clusterIP: {ip}, selector: {{app: {app}}}, ports: [{ports}]}}\n"
    )
}

fn namespace(name: &str, posture: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}, annotations: {{weft.dev/default-policy: {posture}}}}}\n"
    )
}

fn world() -> Model {
    let mut m = model();
    m.apply(upserts(
        &(pod("shop/web", "10.0.0.1", "app: web, tier: a")
            + &pod("shop/db", "10.0.0.2", "app: db, tier: a")
            + &pod("away/web", "10.0.0.3", "app: web, tier: b")
            + &service("shop/web", "10.96.0.1", "web", "{name: a, port: 80, targetPort: http}, {name: b, port: 81}")
            + &service("shop/alias", "10.96.0.2", "web", "{port: 90, targetPort: 9090}")),
    ));
    m
}

fn of(m: &Model, pod: &str) -> Authorization {
    let policy = inbound(m, pod);
    let is_default = policy.authorization == Authorization::default();
    assert_eq!(policy.required_features.iter().any(|f| f == FEATURE_AUTHORIZATION), !is_default, "{policy:?}");
    policy.authorization
}

/// A pod's policies, each with the ports that it is bound to.
fn names(m: &Model, pod: &str) -> Vec<String> {
    let show = |p: &Arc<weft_core::authorization::Policy>| match &p.ports {
        None => p.id.to_string(),
        Some(ports) => format!("{}:{ports:?}", p.id),
    };
    of(m, pod).policies.iter().map(show).collect()
}

const PODS: [&str; 3] = ["shop/web", "shop/db", "away/web"];

/// Conditions of a policy as `Type=Reason`, with `!` where it is not so.
fn told(m: &Model, id: &str) -> Vec<String> {
    let key = ObjectKey { kind: Kind::AuthorizationPolicy, id: id.parse().expect("a name") };
    let status = m.statuses().get(&key).expect("it has a status");
    let show =
        |c: &status::Condition| format!("{}{}={}@{}", if c.status { "" } else { "!" }, c.type_, c.reason, c.observed_generation);
    status.entries[0].conditions.iter().map(show).collect()
}

fn inbound_changes(changed: &BTreeSet<Changed>) -> Vec<String> {
    changed.iter().filter_map(|c| if let Changed::Inbound(pod) = c { Some(pod.to_string()) } else { None }).collect()
}

#[test]
fn a_policy_reaches_the_pods_that_it_is_for_and_no_others() {
    let table: [(&str, &str, [&[&str]; 3]); 8] = [
        ("weft-system/p", "targetRef: {kind: Mesh}, ", [&["weft-system/p"], &["weft-system/p"], &["weft-system/p"]]),
        ("shop/p", "", [&["shop/p"], &["shop/p"], &[]]),
        ("shop/p", "targetRef: {kind: Namespace}, ", [&["shop/p"], &["shop/p"], &[]]),
        ("shop/p", "selector: {matchLabels: {app: web}}, ", [&["shop/p"], &[], &[]]),
        ("away/p", "selector: {matchLabels: {app: web, tier: b}}, ", [&[], &[], &["away/p"]]),
        ("shop/p", "selector: {matchLabels: {app: web, tier: b}}, ", [&[], &[], &[]]),
        ("shop/p", "targetRef: {kind: Service, name: web}, ", [&["shop/p:[81, 8080]"], &[], &[]]),
        ("shop/p", "targetRef: {kind: Service, name: alias}, ", [&["shop/p:[9090]"], &[], &[]]),
    ];
    for (id, target, expected) in table {
        let mut m = world();
        let before = m.snapshot().clone();
        let changed = m.apply(upserts(&policy(id, &format!("{{{target}action: Allow}}"))));
        for (pod, expected) in PODS.into_iter().zip(expected) {
            assert_eq!(names(&m, pod), expected, "{id} {target} at {pod}");
        }
        let touched: Vec<&str> = PODS.into_iter().zip(expected).filter(|(_, e)| !e.is_empty()).map(|(pod, _)| pod).collect();
        let mut changes = inbound_changes(&changed);
        changes.sort_by_key(|pod| PODS.iter().position(|p| p == pod));
        assert_eq!(changes, touched, "{id} {target}: the others hear nothing");
        assert_eq!(told(&m, id), ["Accepted=Accepted@1"], "{target}");

        // An edit that changes the target moves it; without it, all is as before.
        m.apply(upserts(&policy(id, "{targetRef: {kind: Service, name: nobody}, action: Allow}")));
        assert!(PODS.iter().all(|pod| names(&m, pod).is_empty()), "{target}");
        m.apply(vec![Change::Delete(ObjectKey { kind: Kind::AuthorizationPolicy, id: id.parse().expect("a name") })]);
        for pod in PODS {
            let id: ObjectRef = pod.parse().expect("a name");
            assert_eq!(m.snapshot().inbound[&id].version, before.inbound[&id].version, "{target}");
        }
        assert!(m.snapshot().authorizations.is_empty() && m.statuses().is_empty());
    }
}

#[test]
fn the_order_is_mesh_namespace_selector_service_and_then_by_name() {
    let mut m = world();
    m.apply(upserts(
        &(policy("shop/a-service", "{targetRef: {kind: Service, name: web}, action: Allow}")
            + &policy("shop/b-selector", "{selector: {matchLabels: {app: web}}, action: Allow}")
            + &policy("shop/d", "{action: Deny}")
            + &policy("shop/c", "{action: Audit}")
            + &policy("weft-system/z-mesh", "{targetRef: {kind: Mesh}, action: Deny}")),
    ));
    let expected = ["weft-system/z-mesh", "shop/c", "shop/d", "shop/b-selector", "shop/a-service:[81, 8080]"];
    assert_eq!(names(&m, "shop/web"), expected);
}

#[test]
fn a_pod_or_service_that_changes_gets_other_policies() {
    let mut m = world();
    m.apply(upserts(
        &(policy("shop/selector", "{selector: {matchLabels: {app: db}}, action: Allow}")
            + &policy("shop/service", "{targetRef: {kind: Service, name: late}, action: Allow}")),
    ));
    assert_eq!(names(&m, "shop/web"), [""; 0]);
    assert_eq!(told(&m, "shop/service"), ["!Accepted=TargetNotFound@1"]);
    m.apply(upserts(&pod("shop/web", "10.0.0.1", "app: db")));
    assert_eq!(names(&m, "shop/web"), ["shop/selector"]);
    let changed = m.apply(upserts(&service("shop/late", "10.96.0.9", "db", "{port: 80, targetPort: 7070}")));
    assert_eq!(names(&m, "shop/web"), ["shop/selector", "shop/service:[7070]"]);
    assert_eq!(told(&m, "shop/service"), ["Accepted=Accepted@1"]);
    assert_eq!(inbound_changes(&changed), ["shop/db", "shop/web"]);
}

fn delete(kind: Kind, id: &str) -> Vec<Change> {
    vec![Change::Delete(ObjectKey { kind, id: id.parse().expect("a name") })]
}

#[test]
fn a_service_that_goes_leaves_its_policies_where_they_were() {
    let allow = policy("shop/p", "{targetRef: {kind: Service, name: web}, action: Allow}");
    let bare = service("shop/web", "10.96.0.1", "web", "{port: 80}").replace("selector: {app: web}, ", "");
    for (gone, reason) in [(delete(Kind::Service, "shop/web"), "TargetNotFound"), (upserts(&bare), "TargetInvalid")] {
        let mut m = world();
        m.apply(upserts(&allow));
        let changed = m.apply(gone.clone());
        assert_eq!(
            (names(&m, "shop/web"), inbound_changes(&changed)),
            (vec!["shop/p:[81, 8080]".to_owned()], vec![]),
            "{reason}"
        );
        assert_eq!(told(&m, "shop/p"), [format!("!Accepted={reason}@1")]);
        assert!(m.problems()[0].message.contains("stays in force for the pods"), "{:?}", m.problems());
        // An edit of the policy, and a pod that comes later, change nothing of that.
        m.apply(upserts(&allow.replace("Allow", "Deny")));
        m.apply(upserts(&pod("shop/web-2", "10.0.0.9", "app: web")));
        assert_eq!(names(&m, "shop/web-2"), ["shop/p:[81, 8080]"], "{reason}");
        // It comes back, and is for others: the pods that had the policy are told.
        let changed = m.apply(upserts(&service("shop/web", "10.96.0.1", "db", "{port: 80}")));
        assert_eq!(names(&m, "shop/db"), ["shop/p:[80]"], "{reason}");
        assert_eq!(names(&m, "shop/web"), [""; 0], "{reason}");
        assert_eq!(inbound_changes(&changed), ["shop/db", "shop/web", "shop/web-2"], "{reason}");
        // Without a policy nothing is remembered.
        m.apply(gone);
        m.apply(delete(Kind::AuthorizationPolicy, "shop/p"));
        m.apply(upserts(&allow));
        assert_eq!((names(&m, "shop/db"), told(&m, "shop/p")), (vec![], vec![format!("!Accepted={reason}@1")]), "{reason}");
        assert!(m.problems()[0].message.contains("nothing is enforced"), "{:?}", m.problems());
    }
}

#[test]
fn a_port_that_is_not_known_closes_all_ports() {
    let ports = "{name: a, port: 80, targetPort: nowhere}, {name: b, port: 81}";
    let rules = "rules: [{from: [{namespaces: [front]}]}]";
    for (action, expected) in [
        // What is allowed is allowed at the port that is known; an Allow without rules stands for the others.
        ("Allow", &[("shop/p:[81]", 1), ("shop/p", 0)][..]),
        ("Deny", &[("shop/p", 1)]),
        ("Audit", &[("shop/p", 1)]),
    ] {
        let mut m = world();
        m.apply(upserts(&service("shop/web", "10.96.0.1", "web", ports)));
        m.apply(upserts(&policy("shop/p", &format!("{{targetRef: {{kind: Service, name: web}}, action: {action}, {rules}}}"))));
        let counts: Vec<usize> = of(&m, "shop/web").policies.iter().map(|p| p.rules.len()).collect();
        let found: Vec<(String, usize)> = names(&m, "shop/web").into_iter().zip(counts).collect();
        let found: Vec<(&str, usize)> = found.iter().map(|(name, rules)| (name.as_str(), *rules)).collect();
        assert_eq!(found, expected, "{action}");
        let problems = m.problems();
        assert!(problems.iter().any(|p| p.place == "Pod shop/web" && p.message.contains("\"nowhere\"")), "{problems:?}");
        m.apply(upserts(&service("shop/web", "10.96.0.1", "web", "{name: b, port: 81}")));
        assert_eq!((names(&m, "shop/web"), m.problems()), (vec!["shop/p:[81]".to_owned()], vec![]), "{action}");
    }
    // A headless Service without ports leads to all of them.
    let mut m = world();
    m.apply(upserts(
        &(service("shop/all", "None", "web", "") + &policy("shop/p", "{targetRef: {kind: Service, name: all}, action: Allow}")),
    ));
    assert_eq!(names(&m, "shop/web"), ["shop/p"]);
}

#[test]
fn a_service_without_a_selector_is_no_target() {
    let mut m = world();
    let bare = service("shop/bare", "10.96.0.8", "web", "{port: 80}").replace("selector: {app: web}, ", "");
    m.apply(upserts(&(bare + &policy("shop/p", "{targetRef: {kind: Service, name: bare}, action: Deny, rules: [{}]}"))));
    assert_eq!(told(&m, "shop/p"), ["!Accepted=TargetInvalid@1"]);
    assert!(m.problems()[0].message.contains("nothing is enforced"), "{:?}", m.problems());
}

#[test]
fn a_default_is_the_nearest_and_a_word_that_is_none_denies() {
    let mut m = world().with_authorization(Posture::AllowAuthenticated, "weft-system".parse().expect("a name"));
    m.apply(upserts(&namespace("shop", "allow-same-namespace")));
    let authorization = of(&m, "shop/web");
    assert_eq!(authorization.posture, Posture::AllowSameNamespace);
    assert_eq!(authorization.posture_from, PostureFrom::Namespace("shop".parse().expect("a name")));
    m.apply(upserts(&namespace("shop", "deny-ish")));
    assert_eq!(of(&m, "shop/web").posture, Posture::Deny);
    let problems = m.problems();
    assert!(problems.iter().any(|p| p.place == "Namespace shop" && p.message.contains("deny is in force")), "{problems:?}");
    m.apply(upserts(&namespace("shop", "allow")));
    assert_eq!((of(&m, "shop/web"), m.problems()), (Authorization::default(), vec![]));
    m.apply(upserts("---\napiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n"));
    let authorization = of(&m, "shop/web");
    assert_eq!((authorization.posture, authorization.posture_from), (Posture::AllowAuthenticated, PostureFrom::Mesh));
}

/// The policies of a pod that refuse everything.
fn refusing(m: &Model, pod: &str) -> Vec<String> {
    let refuses = |p: &&Arc<weft_core::authorization::Policy>| {
        p.broken.is_some()
            && p.action == Action::Deny
            && !p.dry_run
            && p.rules == [weft_core::authorization::policy::Rule::default()]
    };
    of(m, pod).policies.iter().filter(refuses).map(|p| p.id.to_string()).collect()
}

#[test]
fn what_was_never_good_refuses_what_it_is_for() {
    let table: [(&str, &str, [bool; 3]); 8] = [
        ("shop/p", "{targetRef: {kind: Service, name: web}, action: Permit}", [true, false, false]),
        ("shop/p", "{selector: {matchLabels: {app: db}}, action: Allow, more: 1}", [false, true, false]),
        ("shop/p", "{action: Allow, rules: [{from: [{}]}]}", [true, true, false]),
        ("shop/p", "{targetRef: {kind: HTTPRoute, name: r}, action: Deny}", [true, true, false]),
        ("shop/p", "{targetRef: {kind: Mesh}, action: Deny}", [true, true, false]),
        ("weft-system/p", "{targetRef: {kind: Mesh}, action: Deny, more: 1}", [true, true, true]),
        ("shop/p", "{action: Audit, more: 1}", [false; 3]),
        ("shop/p", "{action: Deny, dryRun: true, more: 1}", [false; 3]),
    ];
    for (id, spec, expected) in table {
        let mut m = world();
        m.apply(upserts(&policy(id, spec)));
        assert_eq!(PODS.map(|pod| !refusing(&m, pod).is_empty()), expected, "{spec}");
        assert_eq!(told(&m, id), ["!Accepted=Invalid@1"], "{spec}");
        let problems = m.problems();
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert_eq!(problems[0].place, format!("AuthorizationPolicy {id}"));
        assert_eq!(problems[0].message.contains("nothing gets in"), expected.contains(&true), "{problems:?}");
        m.apply(upserts(&policy(id, "{action: Allow}")));
        assert_eq!((PODS.map(|pod| refusing(&m, pod).len()), m.problems()), ([0; 3], vec![]), "{spec}: mended");
    }
}

#[test]
fn the_last_good_version_stays_in_force_whatever_comes() {
    let mut m = world();
    m.apply(upserts(&policy("shop/p", "{selector: {matchLabels: {app: web}}, action: Allow}")));
    let before = of(&m, "shop/web");
    for (generation, spec) in [(2, "{action: Permit}"), (3, "{targetRef: {kind: Service, name: web}, action: Allow, more: 1}")] {
        let changed = m.apply(upserts(&policy("shop/p", spec).replace("generation: 1", &format!("generation: {generation}"))));
        assert_eq!((of(&m, "shop/web"), of(&m, "shop/db")), (before.clone(), Authorization::default()));
        assert_eq!(inbound_changes(&changed), [""; 0]);
        assert_eq!(
            told(&m, "shop/p"),
            ["Accepted=Accepted@1".to_owned(), format!("PartiallyInvalid=UnsupportedValue@{generation}")]
        );
        assert!(m.problems()[0].message.ends_with("the version before it stays in force"), "{:?}", m.problems());
    }
}

#[test]
fn more_policies_than_a_pod_may_have_refuse_everything() {
    let mut m = world();
    let many: String =
        (0..=1_000).map(|i| policy(&format!("shop/p{i}"), "{selector: {matchLabels: {app: web}}, action: Allow}")).collect();
    m.apply(upserts(&many));
    let policy = inbound(&m, "shop/web");
    assert!(policy.required_features.iter().any(|f| f.starts_with("room for 1001 ")), "{policy:?}");
    assert!(m.problems().iter().any(|p| p.place == "Pod shop/web"), "{:?}", m.problems());
    m.apply(vec![Change::Delete(ObjectKey { kind: Kind::AuthorizationPolicy, id: "shop/p7".parse().expect("a name") })]);
    assert_eq!((names(&m, "shop/web").len(), m.problems()), (1_000, vec![]));
}
