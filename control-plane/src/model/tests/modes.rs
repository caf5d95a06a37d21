//! mTLS modes: who sets that of which pod and port, and what becomes of policies.

use super::*;
use crate::snapshot::modes::SetBy;

const STRICT: MtlsMode = MtlsMode::Strict;
const PERMISSIVE: MtlsMode = MtlsMode::Permissive;

fn policy(id: &str, spec: &str) -> String {
    let (namespace, name) = id.split_once('/').expect("namespace and name");
    format!(
        "---\napiVersion: weft.dev/v1alpha1\nkind: MtlsPolicy\nmetadata: {{name: {name}, namespace: {namespace}, generation: 1}}\nspec: {spec}\n"
    )
}

fn annotated(namespace: &str, mode: &str) -> String {
    format!("---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: {namespace}, annotations: {{weft.dev/mtls: {mode}}}}}\n")
}

fn of(m: &Model, port: u16) -> (MtlsMode, SetBy) {
    let modes = m.snapshot().modes.get(&"shop/web-0".parse::<ObjectRef>().expect("a name")).expect("the pod is there");
    let policy = inbound(m, "shop/web-0");
    let (mode, by) = modes.of(port);
    assert_eq!(policy.mode_of(port).0, mode, "what is told is what is in force");
    (mode, by.clone())
}

fn mode(manifests: &str, port: u16) -> MtlsMode {
    let mut m = model();
    m.apply(upserts(&(pod("web-0", "10.0.0.5", "") + manifests)));
    of(&m, port).0
}

fn told(m: &Model, id: &str) -> Vec<String> {
    let key = ObjectKey { kind: Kind::MtlsPolicy, id: id.parse().expect("a name") };
    let status = m.statuses().get(&key).expect("it has a status");
    let show = |c: &status::Condition| format!("{}{}={}", if c.status { "" } else { "!" }, c.type_, c.reason);
    status.entries[0].conditions.iter().map(show).collect()
}

#[test]
fn the_nearest_word_is_followed() {
    let mesh = |word: &str| policy("weft-system/mesh", &format!("{{mode: {word}}}"));
    let namespace = |word: &str| policy("shop/all", &format!("{{mode: {word}}}"));
    let workload = |word: &str| policy("shop/web", &format!("{{selector: {{matchLabels: {{app: web}}}}, mode: {word}}}"));
    let other = policy("shop/db", "{selector: {matchLabels: {app: db}}, mode: strict}");
    let away = policy("away/all", "{mode: strict}");
    assert_eq!(mode(&(other + &away), 80), PERMISSIVE, "the default: none of these is for the pod");
    assert_eq!(mode(&mesh("strict"), 80), STRICT);
    assert_eq!(mode(&(mesh("strict") + &namespace("permissive")), 80), PERMISSIVE);
    assert_eq!(mode(&(mesh("permissive") + &namespace("permissive") + &workload("strict")), 80), STRICT);
    assert_eq!(mode(&(namespace("strict") + &workload("permissive")), 80), PERMISSIVE);
    // A selector in the namespace of the installation is for the pods of that namespace.
    assert_eq!(mode(&policy("weft-system/x", "{selector: {}, mode: strict}"), 80), PERMISSIVE);
    assert_eq!(mode(&policy("shop/x", "{selector: {}, mode: strict}"), 80), STRICT);
}

#[test]
fn a_port_goes_first_and_the_nearest_word_about_it() {
    let mesh = policy("weft-system/ports", "{ports: [{port: 90, mode: permissive}, {port: 91, mode: permissive}]}");
    let namespace = policy("shop/all", "{mode: strict, ports: [{port: 91, mode: strict}]}");
    let workload = policy("shop/web", "{selector: {matchLabels: {app: web}}, ports: [{port: 92, mode: permissive}]}");
    let all = mesh + &namespace + &workload;
    assert_eq!([80, 90, 91, 92].map(|port| mode(&all, port)), [STRICT, PERMISSIVE, STRICT, PERMISSIVE]);
}

#[test]
fn an_annotation_counts_as_a_word_of_its_level_and_the_stricter_holds() {
    let selected = |word: &str| policy("shop/web", &format!("{{selector: {{matchLabels: {{app: web}}}}, mode: {word}}}"));
    let all = |word: &str| policy("shop/all", &format!("{{mode: {word}}}"));
    let cases = [
        (annotated("shop", "strict") + &all("permissive"), "", STRICT),
        (annotated("shop", "permissive") + &all("strict"), "", STRICT),
        (annotated("shop", "permissive") + &all("permissive"), "", PERMISSIVE),
        (all("strict"), "permissive", PERMISSIVE),
        (selected("strict"), "permissive", STRICT),
        (selected("permissive"), "strict", STRICT),
        (annotated("shop", "strict") + &selected("permissive"), "", PERMISSIVE),
    ];
    for (manifests, own, expected) in cases {
        let annotation = if own.is_empty() { String::new() } else { format!(", annotations: {{weft.dev/mtls: {own}}}") };
        let mut m = model();
        m.apply(upserts(&(pod("web-0", "10.0.0.5", &annotation) + &manifests)));
        assert_eq!(of(&m, 80).0, expected, "{manifests} with {own:?}");
    }
    // What a namespace forbids its pods, its policies forbid them as well.
    let forbids = "---\napiVersion: v1\nkind: Namespace\nmetadata: {name: shop, annotations: {weft.dev/forbid: permissive}}\n";
    let mut m = model();
    let eager = pod("web-0", "10.0.0.5", ", annotations: {weft.dev/mtls: permissive, weft.dev/mtls-ports: '90=permissive'}");
    m.apply(upserts(&(eager + forbids + &all("strict"))));
    assert_eq!((of(&m, 80).0, of(&m, 90).0), (STRICT, STRICT));
    assert!(matches!(of(&m, 80).1, SetBy::Forbidden(_)));
}

#[test]
fn of_two_policies_that_differ_the_stricter_holds_and_the_other_says_so() {
    let mut m = model();
    let loose = policy("shop/a", "{selector: {matchLabels: {app: web}}, mode: permissive}");
    let tight = policy("shop/b", "{selector: {}, mode: strict}");
    m.apply(upserts(&(pod("web-0", "10.0.0.5", "") + &pod("web-1", "10.0.0.6", "") + &loose)));
    assert_eq!((of(&m, 80).0, told(&m, "shop/a")), (PERMISSIVE, vec!["Accepted=Accepted".to_owned()]));
    let changed = m.apply(upserts(&tight));
    assert!(changed.contains(&Changed::Status(ObjectKey { kind: Kind::MtlsPolicy, id: "shop/a".parse().expect("a name") })));
    assert_eq!(of(&m, 80).0, STRICT);
    assert_eq!(told(&m, "shop/a"), ["Accepted=Accepted", "Overruled=Conflicted"]);
    assert_eq!(told(&m, "shop/b"), ["Accepted=Accepted"]);
    let problem = m.problems().iter().map(ToString::to_string).collect::<String>();
    assert!(problem.contains("at Pod shop/web-0 and 1 more") && problem.contains("MtlsPolicy shop/b"), "{problem}");
    m.apply(vec![Change::Delete(ObjectKey { kind: Kind::MtlsPolicy, id: "shop/b".parse().expect("a name") })]);
    assert_eq!((of(&m, 80).0, told(&m, "shop/a")), (PERMISSIVE, vec!["Accepted=Accepted".to_owned()]));
    assert!(m.problems().is_empty());
    // With the pods goes the reason.
    m.apply(upserts(&tight));
    for name in ["shop/web-0", "shop/web-1"] {
        m.apply(vec![Change::Delete(ObjectKey { kind: Kind::Pod, id: name.parse().expect("a name") })]);
    }
    assert_eq!(told(&m, "shop/a"), ["Accepted=Accepted"]);
}

#[test]
fn of_a_broken_one_the_last_good_version_stays_else_its_pods_are_strict() {
    let mut m = model();
    let good = policy("shop/a", "{mode: permissive, ports: [{port: 90, mode: strict}]}");
    m.apply(upserts(&(pod("web-0", "10.0.0.5", "") + &annotated("away", "permissive") + &good)));
    m.apply(upserts(&policy("shop/a", "{mode: loose}")));
    assert_eq!((of(&m, 80).0, of(&m, 90).0), (PERMISSIVE, STRICT));
    assert_eq!(told(&m, "shop/a"), ["Accepted=Accepted", "PartiallyInvalid=UnsupportedValue"]);

    let own = ", annotations: {weft.dev/mtls: permissive, weft.dev/mtls-ports: '90=permissive'}";
    let with = |spec: &str| {
        let mut m = model();
        m.apply(upserts(&(pod("web-0", "10.0.0.5", own) + &policy("shop/b", spec))));
        m
    };
    for spec in [
        "{mode: loose}",
        "{selector: {matchLabels: {app: web}}, mode: loose}",
        "{selector: {matchLabels: [a]}, mode: permissive}",
        "{ports: [{port: 90, mode: permissive}, {port: 0, mode: strict}]}",
        "7",
    ] {
        let m = with(spec);
        assert_eq!((of(&m, 80).0, of(&m, 90)), (STRICT, (STRICT, SetBy::Broken("shop/b".parse().expect("a name")))), "{spec}");
        assert_eq!(told(&m, "shop/b"), ["!Accepted=Invalid"], "{spec}");
        assert_eq!(m.problems().len(), 1, "{spec}");
    }
    assert_eq!(of(&with("{selector: {matchLabels: {app: db}}, mode: loose}"), 80).0, PERMISSIVE, "it is for others");
}

#[test]
fn only_the_pods_that_it_is_for_hear_of_a_policy() {
    let mut m = model();
    let db = "---\napiVersion: v1\nkind: Pod\nmetadata: {name: db, namespace: shop, labels: {app: db}}\nspec: {containers: [{name: weft-sidecar}]}\n";
    m.apply(upserts(&(pod("web-0", "10.0.0.5", "") + db)));
    let changed = m.apply(upserts(&policy("shop/db", "{selector: {matchLabels: {app: db}}, mode: strict}")));
    let pods: Vec<String> =
        changed.iter().filter_map(|c| if let Changed::Inbound(id) = c { Some(id.to_string()) } else { None }).collect();
    assert_eq!(pods, ["shop/db"]);
}
