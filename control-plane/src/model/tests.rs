use std::collections::BTreeSet;

use proptest::prelude::*;
use weft_core::policy::{InboundPolicy, MtlsMode};
use weft_core::protocol::AppProtocol;
use weft_core::service::{AddressKind, Endpoint};
use weft_proto::v1;

use super::*;
use crate::snapshot::{ServiceEndpoints, View, Viewer};
use crate::watch::parse;

mod authorization;
mod endpoints;
mod issuers;
mod modes;
mod network_policy;
mod traffic;

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

fn web(m: &Model) -> Option<&Arc<ServiceEndpoints>> {
    m.snapshot().endpoints.get(&"shop/web".parse::<ObjectRef>().expect("valid"))
}

/// The endpoints as they are seen from where nothing is known of.
fn endpoints(m: &Model) -> Vec<Endpoint> {
    web(m).map(|e| e.anywhere.list.clone()).unwrap_or_default()
}

fn address(m: &Model, ip: &str) -> AddressKind {
    let View::Plain(e) = m.snapshot().view(&ResourceName::Address(ip.parse().expect("an address")), &Viewer::default()) else {
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

#[test]
fn a_pod_is_not_more_permissive_than_a_namespace_that_forbids_it() {
    let namespace = |mode: &str, forbid: &str| {
        let annotations = format!("{{weft.dev/mtls: {mode}, weft.dev/forbid: '{forbid}'}}");
        format!("---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: shop, annotations: {annotations}}}\n")
    };
    let eager = pod("web-0", "10.0.0.5", ", annotations: {weft.dev/mtls: permissive, weft.dev/mtls-ports: '80=permissive'}");
    let modes = |namespace: String| {
        let mut m = model();
        m.apply(upserts(&(namespace + &eager)));
        let policy = inbound(&m, "shop/web-0");
        (policy.mode, policy.mode_of(80).0)
    };
    let (strict, permissive) = (MtlsMode::Strict, MtlsMode::Permissive);
    assert_eq!(modes(namespace("strict", "")), (permissive, permissive));
    assert_eq!(modes(namespace("strict", "skip-inbound-ports, permissive")), (strict, strict));
    assert_eq!(modes(namespace("strict", "all")), (strict, strict));
    assert_eq!(modes(namespace("permissive", "all")), (permissive, permissive));
}

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

#[test]
fn a_namespace_is_in_the_mesh_by_its_label_or_by_a_pod_until_it_goes() {
    let mut m = model();
    let ns = |extra: &str| format!("---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: shop{extra}}}\n");
    let meshed = |m: &Model| m.snapshot().meshed.iter().map(ToString::to_string).collect::<Vec<_>>();
    let shop = || Changed::Meshed("shop".parse().expect("valid"));
    m.apply(upserts(&ns("")));
    assert_eq!(meshed(&m), [""; 0]);
    assert!(m.apply(upserts(&ns(", labels: {weft.dev/inject: enabled}"))).contains(&shop()));
    assert_eq!(meshed(&m), ["shop"]);
    // A pod alone is enough, whether it has its sidecar already or asks for one.
    m.apply(upserts(&(ns("") + &pod("web-0", "10.244.0.5", ""))));
    assert_eq!(meshed(&m), ["shop"]);
    let asks = pod("web-0", "10.244.0.5", "").replace("weft-sidecar", "other").replace("app: web", "weft.dev/inject: enabled");
    m.apply(upserts(&asks));
    assert_eq!(meshed(&m), ["shop"]);
    m.apply(upserts(&asks.replace("enabled", "disabled")));
    assert_eq!(meshed(&m), [""; 0]);
    m.apply(upserts(&pod("web-0", "10.244.0.5", "")));
    let going = ns(", labels: {weft.dev/inject: enabled}, deletionTimestamp: '2026-01-01T00:00:00Z'");
    assert!(m.apply(upserts(&going)).contains(&shop()), "nothing can be written to it any more");
    assert_eq!(meshed(&m), [""; 0]);
}

#[test]
fn what_attestation_needs_of_a_pod_is_in_the_snapshot_while_it_lives() {
    let mut m = model();
    let id: ObjectRef = "shop/web-0".parse().expect("valid");
    let changed = m.apply(upserts(&pod("web-0", "10.244.0.5", ", uid: u-1")));
    assert!(changed.contains(&Changed::Inbound(id.clone())));
    let facts = m.snapshot().pods.get(&id).expect("it lives").clone();
    assert_eq!((facts.uid.as_deref(), facts.service_account.as_str()), (Some("u-1"), "web"));
    let changed = m.apply(upserts(&pod("web-0", "10.244.0.5", ", uid: u-2")));
    assert_eq!(changed, BTreeSet::from([Changed::Inbound(id.clone())]), "another pod of the name, and nothing else is another");
    m.apply(upserts(&pod("web-0", "10.244.0.5", "").replace("status: {podIP", "status: {phase: Failed, podIP")));
    assert!(m.snapshot().pods.get(&id).is_none());
}

/// A small random world, as a list of changes: a kind, a number that varies it, a variant of the same object, and whether it
/// stands.
fn changes() -> impl Strategy<Value = Vec<(u8, u8, bool, bool)>> {
    proptest::collection::vec((0u8..12, 0u8..3, any::<bool>(), any::<bool>()), 0..40)
}

fn manifest(kind: u8, n: u8, other: bool) -> String {
    let (node, zone) = (n / 2, if other { "east" } else { "west" });
    match kind {
        0 => {
            let local = if other { ", internalTrafficPolicy: Local" } else { ", trafficDistribution: PreferClose" };
            let web = WEB.replace("name: web,", &format!("name: web{n},")).replace("10.96.0.1", &format!("10.96.0.{}", n / 2));
            web.replace("selector:", &format!("{},  selector:", local.trim_start_matches(", ")))
        }
        1 => {
            let name = if other { "other" } else { "weft-sidecar" };
            let pod = pod(&format!("web-{n}"), &format!("10.244.0.{}", n / 2), "").replace("weft-sidecar", name);
            pod.replace("serviceAccountName", &format!("nodeName: n{node}, serviceAccountName"))
        }
        2 => format!(
            "---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: shop, labels: {{weft.dev/inject: {}}}, annotations: {{weft.dev/mtls: {}}}}}\n",
            if other { "enabled" } else { "disabled" },
            if n > 0 { "strict" } else { "permissive" }
        ),
        3 => format!(
            "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: s{n}, namespace: shop, labels: {{kubernetes.io/service-name: web{n}}}}}\n\
             endpoints: [{{addresses: [10.244.0.{n}], nodeName: n{node}, zone: {zone}, hints: {{forZones: [{{name: {zone}}}]}}}}]\nports: [{{name: http, port: 9090}}]\n"
        ),
        5 => {
            let (namespace, kind) = (if n == 2 { "away" } else { "shop" }, if other { "HTTPRoute" } else { "GRPCRoute" });
            format!(
                "---\napiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\nmetadata: {{name: r{n}, namespace: {namespace}}}\n\
                 spec: {{parentRefs: [{{group: '', kind: Service, name: web{node}, namespace: shop}}], \
                 rules: [{{backendRefs: [{{name: web{n}, namespace: away, port: 80}}, {{name: web{n}, namespace: shop, port: 80}}]}}]}}\n"
            )
        }
        6 => format!(
            "---\napiVersion: gateway.networking.k8s.io/v1\nkind: ReferenceGrant\nmetadata: {{name: g{n}, namespace: away}}\n\
             spec: {{from: [{{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: shop}}], to: [{{group: '', kind: Service, name: web{n}}}]}}\n"
        ),
        7 => format!(
            "---\napiVersion: weft.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {{name: t{n}, namespace: shop}}\n\
             spec: {{targetRef: {{name: web{node}}}, slowStart: {n}1s, rates: [{{name: r, requests: {}}}]}}\n",
            if other { 5 } else { 6 }
        ),
        8 => WEB
            .replace("name: web,", &format!("name: web{n},"))
            .replace("namespace: shop", "namespace: away")
            .replace("10.96.0.1", "10.96.1.1"),
        9 => {
            let target = match n {
                0 => "targetRef: {kind: Service, name: web0}, ",
                1 => "selector: {matchLabels: {app: web}}, ",
                _ => "",
            };
            // One without an action refuses; since what was good before stays in force, it is always the same one that is broken.
            let action = if n == 2 { "rules: []" } else { "action: Allow" };
            format!(
                "---\napiVersion: weft.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {{name: a{n}, namespace: shop}}\n\
                 spec: {{{target}{action}, dryRun: {}}}\n",
                other && n < 2
            )
        }
        11 => {
            let (policies, peer) = match n {
                0 => ("Ingress, Egress", "{podSelector: {matchLabels: {app: web}}}".to_owned()),
                1 => (
                    "Egress",
                    format!(
                        "{{namespaceSelector: {{matchLabels: {{weft.dev/inject: {}}}}}}}",
                        if other { "enabled" } else { "disabled" }
                    ),
                ),
                // One that cannot be read.
                _ => ("Sideways", "{podSelector: {}}".to_owned()),
            };
            let port = if other { "http" } else { "8080" };
            format!(
                "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: n{n}, namespace: shop}}\n\
                 spec: {{podSelector: {{matchLabels: {{app: web}}}}, policyTypes: [{policies}], \
                 ingress: [{{from: [{peer}], ports: [{{port: {port}}}]}}], egress: [{{to: [{peer}], ports: [{{port: {port}}}, {{protocol: UDP}}]}}]}}\n"
            )
        }
        // Another slice of the first service: it names its pod, and differs in port or readiness.
        _ => format!(
            "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: t{n}, namespace: shop, labels: {{kubernetes.io/service-name: web0}}}}\n\
             endpoints: [{{addresses: [10.244.0.{node}], targetRef: {{kind: Pod, name: web-{n}}}, conditions: {{ready: {other}, serving: true, terminating: true}}}}]\n\
             ports: [{{name: http, port: {}}}]\n",
            9090 + u16::from(n)
        ),
    }
}

proptest! {
    /// However a state was reached, the snapshot is that of the state, and of the Services that policies are for and that are gone:
    /// incremental equals from scratch.
    #[test]
    fn incremental_equals_from_scratch(steps in changes()) {
        let mut m = model();
        let mut state: BTreeMap<ObjectKey, Object> = BTreeMap::new();
        for (kind, n, other, present) in steps {
            let object = parse::parse("t", &manifest(kind, n, other)).expect("good").remove(0);
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
        fresh.remember_as(&m);
        fresh.apply(state.into_values().map(Change::Upsert).collect());
        let everything = |s: &Snapshot| {
            let mut all: Vec<(String, String)> = Vec::new();
            all.extend(s.outbound.iter().map(|(k, v)| (format!("outbound {k}"), v.version.to_string())));
            all.extend(s.peers.iter().map(|(k, v)| (format!("peers {k}"), v.version.to_string())));
            all.extend(s.named.iter().map(|(k, v)| (format!("named {k}"), format!("{v:?}"))));
            all.extend(s.networks.iter().map(|(k, v)| (format!("network {k}"), format!("{v:?}"))));
            all.extend(s.inbound.iter().map(|(k, v)| (format!("inbound {k}"), v.version.to_string())));
            all.extend(s.addresses.iter().map(|(k, v)| (format!("address {k}"), v.version.to_string())));
            all.extend(s.services.iter().map(|(k, v)| (format!("service {k}"), v.version.to_string())));
            for (k, v) in &s.endpoints {
                all.extend(v.versions().into_iter().map(|(place, version)| (format!("endpoints {k} {place}"), version.to_string())));
            }
            all.extend(s.dns.iter().map(|(k, v)| (format!("dns {k}"), format!("{v:?}"))));
            all.extend(s.pods.iter().map(|(k, v)| (format!("pod {k}"), format!("{v:?}"))));
            for (k, v) in &s.routes {
                all.extend(v.versions().into_iter().map(|(who, version)| (format!("routes {k} {who:?}"), version.to_string())));
            }
            all.extend(s.policies.iter().map(|(k, v)| (format!("policy {k}"), v.version.to_string())));
            all.extend(s.statuses.iter().map(|(k, v)| (format!("status {k}"), format!("{v:?}"))));
            all.extend(s.authorizations.iter().map(|(k, v)| (format!("authorization {k}"), format!("{v:?}"))));
            all.extend(s.meshed.iter().map(|n| (format!("meshed {n}"), String::new())));
            all.sort();
            all
        };
        prop_assert_eq!(everything(m.snapshot()), everything(fresh.snapshot()));
        prop_assert_eq!(m.problems(), fresh.problems());
    }
}
