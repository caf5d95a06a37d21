//! What a Service means (Invariant 9), by its slices and by its selector.

use std::slice::from_ref;

use super::*;
use crate::snapshot::{EndpointsEntry, Place};

/// A slice of `shop/web` with one port for `http`.
fn slice(name: &str, port: u16, endpoints: &[&str]) -> String {
    format!(
        "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: {name}, namespace: shop, labels: {{kubernetes.io/service-name: web}}}}\n\
         endpoints: [{}]\nports: [{{name: http, port: {port}}}]\n",
        endpoints.join(", ")
    )
}

fn endpoint(ip: &str, conditions: &str, extra: &str) -> String {
    format!("{{addresses: ['{ip}'], conditions: {{{conditions}}}{extra}}}")
}

const READY: &str = "ready: true, serving: true, terminating: false";
const NOT_READY: &str = "ready: false, serving: false, terminating: false";
const ENDING: &str = "ready: false, serving: true, terminating: true";

/// What is ready for new work, as seen from a place.
fn seen(m: &Model, node: &str, zone: &str) -> Vec<String> {
    let place = Place { node: node.into(), zone: zone.into() };
    let all = &web(m).expect("it is there").seen_from(&place).list;
    all.iter().filter(|e| e.ready).map(|e| e.address.to_string()).collect()
}

fn with(service: &str, manifests: &[String]) -> Model {
    let mut m = model();
    m.apply(upserts(&(service.to_owned() + &manifests.concat())));
    m
}

#[test]
fn what_ends_stands_in_only_while_nothing_is_ready_in_any_slice() {
    let first = slice("a", 80, &[&endpoint("10.0.0.1", ENDING, "")]);
    let m = with(WEB, &[first.clone(), slice("b", 80, &[&endpoint("10.0.0.2", READY, "")])]);
    assert_eq!(seen(&m, "", ""), ["10.0.0.2"]);
    let m = with(WEB, &[first, slice("b", 80, &[&endpoint("10.0.0.2", NOT_READY, "")])]);
    assert_eq!(seen(&m, "", ""), ["10.0.0.1"]);
    // A pod that a selector finds does so, too.
    let deleted = pod("web-0", "10.0.0.1", ", deletionTimestamp: '2026-01-01T00:00:00Z'");
    let m = with(WEB, from_ref(&deleted));
    assert_eq!(seen(&m, "", ""), ["10.0.0.1"]);
    let m = with(WEB, &[deleted, pod("web-1", "10.0.0.2", "")]);
    assert_eq!(seen(&m, "", ""), ["10.0.0.2"]);
}

#[test]
fn each_address_family_stands_by_itself() {
    let both = WEB.replace("clusterIP: 10.96.0.1", "clusterIPs: [10.96.0.1, 'fd00:96::1']");
    let four = slice("four", 80, &[&endpoint("10.0.0.1", READY, ""), &endpoint("10.0.0.2", ENDING, "")]);
    let six = slice("six", 80, &[&endpoint("fd00::1", NOT_READY, ""), &endpoint("fd00::2", ENDING, "")]);
    assert_eq!(seen(&with(&both, &[four, six]), "", ""), ["10.0.0.1", "fd00::2"]);
}

#[test]
fn a_headless_service_has_the_families_that_it_names() {
    let both =
        pod("web-0", "10.0.0.5", "").replace("podIP: 10.0.0.5", "podIP: 10.0.0.5, podIPs: [{ip: 10.0.0.5}, {ip: 'fd00::5'}]");
    let headless = WEB.replace("clusterIP: 10.96.0.1", "clusterIP: None");
    assert_eq!(seen(&with(&headless, from_ref(&both)), "", ""), ["10.0.0.5"]);
    let named = headless.replace("clusterIP: None", "clusterIP: None, ipFamilies: [IPv6, IPv4]");
    assert_eq!(seen(&with(&named, &[both]), "", ""), ["10.0.0.5", "fd00::5"]);
}

#[test]
fn a_local_service_is_served_on_the_callers_own_node_or_not_at_all() {
    let local = WEB.replace("clusterIP:", "internalTrafficPolicy: Local, clusterIP:");
    let on = |ip: &str, conditions: &str, node: &str| endpoint(ip, conditions, &format!(", nodeName: {node}"));
    let list = [on("10.0.0.1", READY, "n1"), on("10.0.0.2", ENDING, "n2"), on("10.0.0.3", NOT_READY, "n2")];
    let m = with(&local, &[slice("a", 80, &list.each_ref().map(String::as_str))]);
    assert_eq!(seen(&m, "n1", ""), ["10.0.0.1"]);
    assert_eq!(seen(&m, "n2", ""), ["10.0.0.2"], "ending, and the only one that serves on this node");
    assert_eq!(seen(&m, "n3", ""), [""; 0]);
    // On one machine without nodes, everything is local.
    assert_eq!(seen(&with(&local, &[pod("web-0", "10.0.0.5", "")]), "", ""), ["10.0.0.5"]);
}

#[test]
fn hints_narrow_only_where_every_ready_endpoint_has_one() {
    let hinted =
        |ip: &str, conditions: &str, zone: &str| endpoint(ip, conditions, &format!(", hints: {{forZones: [{{name: {zone}}}]}}"));
    let (a, b) = (hinted("10.0.0.1", READY, "east"), hinted("10.0.0.2", READY, "west"));
    let m = with(WEB, &[slice("a", 80, &[&a, &b])]);
    assert_eq!(seen(&m, "", "east"), ["10.0.0.1"]);
    assert_eq!(seen(&m, "", "west"), ["10.0.0.2"]);
    assert_eq!(seen(&m, "", "north"), ["10.0.0.1", "10.0.0.2"], "nothing is meant for this zone");
    let m = with(WEB, &[slice("a", 80, &[&a, &b, &endpoint("10.0.0.3", READY, "")])]);
    assert_eq!(seen(&m, "", "east"), ["10.0.0.1", "10.0.0.2", "10.0.0.3"], "one has no hint");
    let m = with(WEB, &[slice("a", 80, &[&hinted("10.0.0.1", NOT_READY, "east"), &b])]);
    assert_eq!(seen(&m, "", "east"), ["10.0.0.2"], "what is meant for this zone is not ready");
    let on_node = endpoint("10.0.0.4", READY, ", hints: {forZones: [{name: east}], forNodes: [{name: n1}]}");
    let other = endpoint("10.0.0.5", READY, ", hints: {forZones: [{name: east}], forNodes: [{name: n2}]}");
    let m = with(WEB, &[slice("a", 80, &[&on_node, &other])]);
    assert_eq!(seen(&m, "n1", "east"), ["10.0.0.4"]);
    assert_eq!(seen(&m, "n3", "east"), ["10.0.0.4", "10.0.0.5"]);
}

#[test]
fn traffic_distribution_prefers_what_is_near_where_nobody_gave_hints() {
    let at = |ip: &str, node: &str, zone: &str| endpoint(ip, READY, &format!(", nodeName: {node}, zone: {zone}"));
    let all = slice("a", 80, &[&at("10.0.0.1", "n1", "east"), &at("10.0.0.2", "n2", "east"), &at("10.0.0.3", "n3", "west")]);
    let prefers =
        |word: &str| with(&WEB.replace("clusterIP:", &format!("trafficDistribution: {word}, clusterIP:")), from_ref(&all));
    for word in ["PreferClose", "PreferSameZone"] {
        assert_eq!(seen(&prefers(word), "n1", "east"), ["10.0.0.1", "10.0.0.2"], "{word}");
    }
    let by_node = prefers("PreferSameNode");
    assert_eq!(seen(&by_node, "n1", "east"), ["10.0.0.1"]);
    assert_eq!(seen(&by_node, "n9", "east"), ["10.0.0.1", "10.0.0.2"]);
    assert_eq!(seen(&by_node, "n9", "north").len(), 3);
    assert_eq!(seen(&prefers("PreferSomethingNew"), "n1", "east").len(), 3);
}

#[test]
fn addresses_of_pods_that_are_not_ready_are_published_where_that_is_asked_for() {
    let not_ready =
        pod("web-0", "10.0.0.5", "").replace("status: {podIP", "status: {conditions: [{type: Ready, status: 'False'}], podIP");
    assert_eq!(seen(&with(WEB, from_ref(&not_ready)), "", ""), [""; 0]);
    let published = WEB.replace("clusterIP:", "publishNotReadyAddresses: true, clusterIP:");
    assert_eq!(seen(&with(&published, &[not_ready]), "", ""), ["10.0.0.5"]);
}

#[test]
fn endpoints_on_one_host_are_told_apart_by_their_port() {
    let on_host =
        |name: &str| pod(name, "192.168.0.1", "").replace("serviceAccountName", "hostNetwork: true, serviceAccountName");
    let of = |name: &str| format!(", targetRef: {{kind: Pod, name: {name}}}");
    let two = [
        slice("a", 8080, &[&endpoint("192.168.0.1", READY, &of("web-0"))]),
        slice("b", 9090, &[&endpoint("192.168.0.1", NOT_READY, &of("web-1"))]),
    ];
    let mut m = with(WEB, &[two.concat(), on_host("web-0"), on_host("web-1")]);
    let all = endpoints(&m);
    let told: Vec<_> = all.iter().map(|e| (e.ports[0].1, e.ready, e.workload.as_ref().map(|w| w.name.as_str()))).collect();
    assert_eq!(told, [(8080, true, Some("web-0")), (9090, false, Some("web-1"))]);
    assert!(all.iter().all(|e| e.reach == Reach::Plain));
    // A change names them by their address: all that share it go together, and here that is everything.
    let before = web(&m).expect("there").anywhere.clone();
    m.apply(upserts(&slice("b", 9090, &[&endpoint("192.168.0.1", READY, &of("web-1"))])));
    let after: &Arc<EndpointsEntry> = &web(&m).expect("there").anywhere;
    assert!(matches!(&after.pieces(Some(&before))[..], [(_, Body::Endpoints(all))] if all.endpoints.len() == 2));
    // On the same port, one that ends and one that begins are one endpoint, and it is ready.
    let same = slice("a", 8080, &[&endpoint("192.168.0.1", ENDING, &of("web-0")), &endpoint("192.168.0.1", READY, &of("web-1"))]);
    let m = with(WEB, &[same, on_host("web-0"), on_host("web-1")]);
    assert_eq!(endpoints(&m).len(), 1);
    assert!(endpoints(&m)[0].ready);
}

#[test]
fn further_ports_of_one_pod_are_one_endpoint() {
    let ports = WEB.replace("ports: [", "ports: [{name: metrics, port: 90}, ");
    let metrics =
        slice("b", 9090, &[&endpoint("10.0.0.1", READY, "")]).replace("{name: http, port: 9090}", "{name: metrics, port: 9090}");
    let m = with(&ports, &[slice("a", 8080, &[&endpoint("10.0.0.1", READY, "")]), metrics]);
    let all = endpoints(&m);
    assert_eq!((all.len(), all[0].ports.as_slice()), (1, &[(80, 8080), (90, 9090)][..]));
}

#[test]
fn an_endpoint_whose_pod_is_not_known_yet_is_not_used_since_it_might_have_a_sidecar() {
    let named = slice("a", 8080, &[&endpoint("10.0.0.5", READY, ", targetRef: {kind: Pod, name: web-0}")]);
    let mut m = with(WEB, &[named]);
    assert_eq!(endpoints(&m), []);
    m.apply(upserts(&pod("web-0", "10.0.0.6", "")));
    assert_eq!(endpoints(&m), [], "it is at another address");
    m.apply(upserts(&pod("web-0", "10.0.0.5", "")));
    assert_eq!(endpoints(&m)[0].reach, Reach::Mesh("spiffe://cluster.local/ns/shop/sa/web".parse().expect("valid")));
}

#[test]
fn a_pods_zone_is_on_it_or_is_learned_from_slices() {
    let id: ObjectRef = "shop/web-0".parse().expect("valid");
    let on = pod("web-0", "10.0.0.5", "").replace("serviceAccountName", "nodeName: n1, serviceAccountName");
    let place = |m: &Model| m.snapshot().place(Some(&id));
    let mut m = with(WEB, from_ref(&on));
    assert_eq!((&*place(&m).node, &*place(&m).zone), ("n1", ""));
    let told = slice("a", 80, &[&endpoint("10.0.0.9", READY, ", nodeName: n1, zone: east")]);
    assert!(m.apply(upserts(&told)).contains(&Changed::Inbound(id.clone())), "its sidecar looks again");
    assert_eq!(&*place(&m).zone, "east");
    m.apply(upserts(&on.replace("app: web", "app: web, topology.kubernetes.io/zone: west")));
    assert_eq!(&*place(&m).zone, "west");
    m.apply(upserts(&on));
    m.apply(vec![Change::Delete("shop/a".parse().map(|id| ObjectKey { kind: Kind::EndpointSlice, id }).expect("valid"))]);
    assert_eq!(&*place(&m).zone, "");
}
