use std::collections::BTreeSet;

use proptest::prelude::*;
use weft_core::policy::{InboundPolicy, MtlsMode};
use weft_core::service::{AddressKind, Endpoint};
use weft_proto::v1;

use super::*;
use crate::watch::parse;

fn model() -> Model {
    let mesh = Entry::new(Body::Mesh(v1::Mesh::default()));
    Model::new("cluster.local".parse().expect("valid"), MtlsMode::Permissive, mesh.clone(), mesh)
}

fn upserts(text: &str) -> Vec<Change> {
    parse::parse("test", text).expect("good manifests").into_iter().map(Change::Upsert).collect()
}

fn pod(name: &str, ip: &str, extra: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop, labels: {{app: web}}{extra}}}\n\
         spec: {{serviceAccountName: web, containers: [{{name: app, ports: [{{name: http, containerPort: 8080}}]}}, {{name: weft-sidecar}}]}}\n\
         status: {{podIP: {ip}}}\n"
    )
}

const WEB: &str = "---\napiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\n\
                   spec: {clusterIP: 10.96.0.1, selector: {app: web}, ports: [{name: http, port: 80, targetPort: http}]}\n";

fn endpoints(m: &Model) -> Vec<Endpoint> {
    m.snapshot()
        .endpoints
        .get(&"shop/web".parse::<ObjectRef>().expect("valid"))
        .map(|e| e.list.values().cloned().collect())
        .unwrap_or_default()
}

fn address(m: &Model, ip: &str) -> AddressKind {
    let View::Plain(e) = m.snapshot().view(&ResourceName::Address(ip.parse().expect("an address")), None) else {
        panic!("no answer")
    };
    let Body::Address(a) = &e.body else { panic!("another body") };
    a.try_into().expect("converts")
}

fn inbound(m: &Model, pod: &str) -> InboundPolicy {
    let Body::Inbound(p) = &m.snapshot().inbound.get(&pod.parse::<ObjectRef>().expect("valid")).expect("there").body else {
        panic!("another body")
    };
    p.try_into().expect("converts")
}

use crate::snapshot::View;

#[test]
fn endpoints_come_from_the_selector_and_named_ports_resolve() {
    let mut m = model();
    let changed = m.apply(upserts(&(WEB.to_owned() + &pod("web-0", "10.244.0.5", ""))));
    assert!(changed.contains(&Changed::Name(ResourceName::Endpoints("shop/web".parse().expect("valid")))));
    let all = endpoints(&m);
    assert_eq!(all.len(), 1);
    assert_eq!(all[0].ports, [(80, 8080)]);
    assert_eq!(all[0].reach, Reach::Mesh("spiffe://cluster.local/ns/shop/sa/web".parse().expect("valid")));
    assert!(all[0].ready);
    assert_eq!(address(&m, "10.96.0.1"), AddressKind::Service("shop/web".parse().expect("valid")));
    assert!(matches!(address(&m, "10.244.0.5"), AddressKind::Workload(w) if w.protocols == [(8080, AppProtocol::Http)]));
    assert_eq!(address(&m, "10.9.9.9"), AddressKind::Unknown);
}

#[test]
fn a_service_of_one_family_has_endpoints_of_that_family() {
    let mut m = model();
    let both = pod("web-0", "10.244.0.5", "")
        .replace("podIP: 10.244.0.5", "podIP: 10.244.0.5, podIPs: [{ip: 10.244.0.5}, {ip: 'fd00::5'}]");
    m.apply(upserts(&(WEB.to_owned() + &both)));
    assert_eq!(endpoints(&m).len(), 1);
    assert!(endpoints(&m)[0].address.is_ipv4());
    m.apply(upserts(&WEB.replace("clusterIP: 10.96.0.1", "clusterIPs: [10.96.0.1, 'fd00::1']")));
    assert_eq!(endpoints(&m).len(), 2);
    m.apply(upserts(&WEB.replace("10.96.0.1", "None")));
    assert_eq!(endpoints(&m).len(), 1);
}

#[test]
fn a_pod_that_is_not_ready_gets_no_new_work_and_one_that_ended_is_gone() {
    let mut m = model();
    let not_ready =
        pod("web-0", "10.244.0.5", "").replace("status: {podIP", "status: {conditions: [{type: Ready, status: 'False'}], podIP");
    m.apply(upserts(&(WEB.to_owned() + &not_ready)));
    assert!(!endpoints(&m)[0].ready);
    m.apply(upserts(&pod("web-0", "10.244.0.5", "").replace("status: {podIP", "status: {phase: Succeeded, podIP")));
    assert_eq!(endpoints(&m), []);
    assert_eq!(address(&m, "10.244.0.5"), AddressKind::Unknown);
}

#[test]
fn slices_win_over_the_selector_and_the_serving_stand_in_for_the_ready() {
    let mut m = model();
    let slice = |conditions: &str| {
        format!(
            "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: web-a, namespace: shop, labels: {{kubernetes.io/service-name: web}}}}\n\
             addressType: IPv4\nendpoints: [{{addresses: [10.244.0.7], conditions: {conditions}, zone: z1}}]\nports: [{{name: http, port: 9090}}]\n"
        )
    };
    m.apply(upserts(&(WEB.to_owned() + &pod("web-0", "10.244.0.5", "") + &slice("{ready: true}"))));
    let all = endpoints(&m);
    assert_eq!((all.len(), all[0].ports.as_slice(), &*all[0].zone), (1, &[(80, 9090)][..], "z1"));
    assert_eq!(all[0].reach, Reach::Plain);
    m.apply(upserts(&slice("{ready: false, serving: true, terminating: true}")));
    assert!(endpoints(&m)[0].ready);
    m.apply(upserts(&slice("{ready: false, serving: false, terminating: true}")));
    assert!(!endpoints(&m)[0].ready);
}

#[test]
fn of_two_services_with_one_address_the_first_keeps_it_and_the_other_is_reported() {
    let mut m = model();
    m.apply(upserts(&(WEB.to_owned() + &WEB.replace("name: web,", "name: zzz,"))));
    assert_eq!(address(&m, "10.96.0.1"), AddressKind::Service("shop/web".parse().expect("valid")));
    let problems = m.problems();
    assert_eq!(problems.len(), 1);
    assert_eq!((problems[0].place.as_str(), problems[0].field.as_str()), ("Service shop/zzz", "spec.clusterIP"));
}

#[test]
fn the_nearest_mode_wins_and_a_word_that_is_none_is_strict() {
    let mut m = model();
    let ns = |mode: &str| {
        format!("---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: shop, annotations: {{weft.dev/mtls: {mode}}}}}\n")
    };
    m.apply(upserts(&pod("web-0", "10.0.0.5", "")));
    assert_eq!(inbound(&m, "shop/web-0").mode, MtlsMode::Permissive);
    let changed = m.apply(upserts(&ns("strict")));
    assert_eq!(changed, BTreeSet::from([Changed::Inbound("shop/web-0".parse().expect("valid"))]));
    assert_eq!(inbound(&m, "shop/web-0").mode, MtlsMode::Strict);
    m.apply(upserts(&pod(
        "web-0",
        "10.0.0.5",
        ", annotations: {weft.dev/mtls: permissive, weft.dev/mtls-ports: '8080=strict, 9090=permissive'}",
    )));
    assert_eq!(inbound(&m, "shop/web-0").mode, MtlsMode::Permissive);
    assert_eq!(inbound(&m, "shop/web-0").port_modes, [(8080, MtlsMode::Strict), (9090, MtlsMode::Permissive)]);
    m.apply(upserts(&pod("web-0", "10.0.0.5", ", annotations: {weft.dev/mtls: on}")));
    assert_eq!(inbound(&m, "shop/web-0").mode, MtlsMode::Strict);
    assert_eq!(m.problems().len(), 1);
    m.apply(upserts(&pod(
        "web-0",
        "10.0.0.5",
        ", annotations: {weft.dev/mtls: permissive, weft.dev/mtls-ports: 'http=permissive'}",
    )));
    assert_eq!(inbound(&m, "shop/web-0").mode, MtlsMode::Strict);
}

#[test]
fn a_change_that_changes_nothing_is_not_pushed() {
    let mut m = model();
    m.apply(upserts(&(WEB.to_owned() + &pod("web-0", "10.244.0.5", ""))));
    let generation = m.snapshot().generation;
    assert_eq!(m.apply(upserts(&pod("web-0", "10.244.0.5", ", annotations: {other: thing}"))), BTreeSet::new());
    assert_eq!(m.snapshot().generation, generation);
}

/// A small random world, as a list of changes.
fn changes() -> impl Strategy<Value = Vec<(u8, u8, bool)>> {
    proptest::collection::vec((0u8..4, 0u8..3, any::<bool>()), 0..40)
}

proptest! {
    /// However a state was reached, the snapshot is that of the state: incremental equals from scratch.
    #[test]
    fn incremental_equals_from_scratch(steps in changes()) {
        let mut m = model();
        let mut state: BTreeMap<ObjectKey, Object> = BTreeMap::new();
        for (kind, n, present) in steps {
            let text = match kind {
                0 => WEB.replace("name: web,", &format!("name: web{n},")).replace("10.96.0.1", &format!("10.96.0.{}", n / 2)),
                1 => pod(&format!("web-{n}"), &format!("10.244.0.{}", n / 2), ""),
                2 => format!("---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: shop, annotations: {{weft.dev/mtls: {}}}}}\n", if n > 0 {"strict"} else {"permissive"}),
                _ => format!("---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: s{n}, namespace: shop, labels: {{kubernetes.io/service-name: web{n}}}}}\nendpoints: [{{addresses: [10.244.0.{n}]}}]\nports: [{{name: http, port: 9090}}]\n"),
            };
            let object = parse::parse("t", &text).expect("good").remove(0);
            let key = object.key();
            if present {
                state.insert(key, object.clone());
                m.apply(vec![Change::Upsert(object)]);
            } else {
                state.remove(&key);
                m.apply(vec![Change::Delete(key)]);
            }
        }
        let mut fresh = model();
        fresh.apply(state.into_values().map(Change::Upsert).collect());
        let versions = |s: &Snapshot| {
            let mut all: Vec<(String, String)> = Vec::new();
            all.extend(s.inbound.iter().map(|(k, v)| (format!("inbound {k}"), v.version.to_string())));
            all.extend(s.addresses.iter().map(|(k, v)| (format!("address {k}"), v.version.to_string())));
            all.extend(s.services.iter().map(|(k, v)| (format!("service {k}"), v.version.to_string())));
            all.extend(s.endpoints.iter().map(|(k, v)| (format!("endpoints {k}"), v.version.to_string())));
            all.extend(s.dns.iter().map(|(k, v)| (format!("dns {k}"), format!("{v:?}"))));
            all.sort();
            all
        };
        prop_assert_eq!(versions(m.snapshot()), versions(fresh.snapshot()));
        prop_assert_eq!(m.problems(), fresh.problems());
    }
}
