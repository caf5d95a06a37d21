use serde_json::json;
use weft_proto::v1;

use super::*;
use crate::check::mesh::{Local, millis, unread, without_control_plane};

const DAY: i64 = 86_400;

/// A sidecar that is well, but for what `change` says.
fn sidecar(pod: &str, change: impl FnOnce(&mut Told)) -> Sidecar {
    let now = millis();
    let mut told: Told = serde_json::from_value(json!({
        "version": VERSION, "now_millis": now, "ready": true, "waiting_for": [], "pod_ips": ["10.0.0.1"], "admin_port": 4791,
        "control_plane": {"address": "10.47.0.1:4700", "connected": true, "silent_millis": 2000, "ahead_millis": 0,
                          "lookup": {"host": "10.47.0.1", "is_name": false, "millis": 0, "error": null}},
        "certificate": {"id": "spiffe://cluster.local/ns/shop/sa/web", "serial": "1", "not_before": now / 1000 - 600, "not_after": now / 1000 + DAY,
                        "anchor": "aa", "anchor_ends": now / 1000 + 365 * DAY, "renewal_failing_since": 0},
        "connections": {"held": 1, "limit": 1000}, "conntrack": {"count": 10, "max": 1000}, "listening": [], "name_servers": ["10.47.0.1"],
    }))
    .expect("as a sidecar tells it");
    change(&mut told);
    Sidecar { pod: pod.to_owned(), asked: (now - 100, now + 100), told: Ok(told), edges: vec![], before: vec![], denials: vec![] }
}

fn judged(sidecars: Vec<Sidecar>) -> Vec<String> {
    let findings = judge(&Mesh { sidecars, objects: vec![], local: None });
    findings.iter().map(|f| format!("{} {}", f.code().as_str(), f.shown())).filter(|text| !text.contains('✓')).collect()
}

fn well(pod: &str) -> Sidecar {
    sidecar(pod, |_| {})
}

#[test]
fn a_mesh_that_is_well_has_no_fault() {
    assert_eq!(judged(vec![well("shop/a"), well("shop/b")]), Vec::<String>::new());
}

#[test]
fn the_clock_that_differs_from_the_others_is_named() {
    let found = judged(vec![well("shop/a"), well("shop/b"), sidecar("shop/c", |t| t.now_millis += 2 * DAY * 1000)]);
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(
        found[0].starts_with("WEFT-C020 ✗ the clock of shop/c is 1d23h ahead: by it every certificate of the mesh has expired"),
        "{found:?}"
    );
    let found = judged(vec![well("shop/a"), well("shop/b"), sidecar("shop/c", |t| t.now_millis -= 7_000)]);
    assert!(found[0].starts_with("WEFT-C020 ! the clock of shop/c is 6s behind"), "{found:?}");
    let all = |pod: &str| sidecar(pod, |t| t.now_millis += 3_600_000);
    let found = judged(vec![all("shop/a"), all("shop/b"), all("shop/c")]);
    assert!(found[0].starts_with("WEFT-C020 ! the mesh's clocks are 59m59s ahead of this machine's"), "{found:?}");
    assert_eq!(found.len(), 1);
}

/// With a control plane whose clock was read `before_now` milliseconds ago, and was right then.
fn with_control_plane(before_now: i64) -> Vec<String> {
    let then = millis() - before_now;
    let status = v1::StatusResponse { now_millis: then, version: VERSION.to_owned(), ..Default::default() };
    let local = Local { status: Some((status, (then - 20, then + 20))), listed: vec![] };
    let mesh = Mesh { sidecars: vec![well("shop/a"), well("shop/b")], objects: vec![], local: Some(local) };
    judge(&mesh).iter().map(Finding::shown).filter(|text| !text.contains('✓')).collect()
}

#[test]
fn time_that_passes_after_the_question_is_no_skew() {
    assert_eq!(with_control_plane(0), Vec::<String>::new());
    assert_eq!(with_control_plane(60_000), Vec::<String>::new(), "a window of a minute");
}

#[test]
fn what_does_not_answer_or_may_not_be_read_is_a_finding() {
    let gone = without_control_plane(&anyhow::anyhow!("connection refused"));
    assert!(gone.shown().starts_with("✗ the control plane does not answer: connection refused"), "{}", gone.shown());
    let mesh = Mesh { sidecars: vec![well("shop/a")], objects: vec![], local: Some(Local { status: None, listed: vec![] }) };
    assert!(judge(&mesh).iter().any(|f| f.shown().starts_with("✓ clocks are together")), "what sidecars tell is judged");
    let why = anyhow::anyhow!("kubectl get: Error from server (Forbidden): pods is forbidden");
    assert_eq!(unread("pods and Services", &why).code(), Code::Rights);
    assert_eq!(unread("pods and Services", &anyhow::anyhow!("timed out")).code(), Code::Silent);
}

#[test]
fn a_certificate_is_told_with_why_it_is_not_renewed() {
    let expired = |t: &mut Told| {
        let now = duration::now();
        t.control_plane.connected = false;
        let c = t.certificate.as_mut().expect("it has one");
        (c.not_after, c.renewal_failing_since) = (now - 40, now - 600);
    };
    let found = judged(vec![well("shop/a"), sidecar("shop/b", expired)]);
    assert!(found[0].starts_with("WEFT-C021 ✗ the certificate of shop/b (spiffe://cluster.local/ns/shop/sa/web) expired 40s ago, and it can't be renewed for 10m"), "{found:?}");
    assert!(found[0].contains("it is renewed by the control plane at 10.47.0.1:4700, which it does not reach"), "{found:?}");
    assert!(
        found[1].starts_with("WEFT-C023 ✗ shop/b is not connected to its control plane at 10.47.0.1:4700: it heard it 2s ago"),
        "{found:?}"
    );
    let ca = |t: &mut Told| {
        let c = t.certificate.as_mut().expect("it has one");
        c.not_after = duration::now() - 5;
        c.anchor_ends = c.not_after;
    };
    assert!(
        judged(vec![sidecar("shop/b", ca)])[0]
            .contains("the CA ends then, too, as every certificate of the mesh does: replace it")
    );
}

#[test]
fn silence_names_that_are_not_found_and_full_tables_are_told() {
    let found = judged(vec![
        sidecar("shop/a", |t| t.control_plane.silent_millis = Some(95_000)),
        sidecar("shop/b", |t| {
            t.control_plane.lookup = Some(super::super::Lookup {
                host: "cp.example".into(),
                is_name: true,
                millis: 5,
                error: Some("no such host".into()),
            });
        }),
        sidecar("shop/c", |t| t.conntrack = Some(super::super::Conntrack { count: 990, max: 1000 })),
        sidecar("shop/d", |t| t.connections = Some(super::super::Room { held: 800, limit: 1000 })),
        sidecar("shop/h", |t| t.refused = Some(super::super::Refused { packets: 30, accepted: 29_999 })),
        sidecar("shop/i", |t| t.refused = Some(super::super::Refused { packets: 30, accepted: 30_000 })),
        sidecar("shop/j", |t| t.refused = Some(super::super::Refused { packets: 9, accepted: 10 })),
        sidecar("shop/e", |t| (t.ready, t.waiting_for) = (false, vec!["first inbound policy".into()])),
        sidecar("shop/f", |t| t.version = "0.0.9".into()),
        Sidecar { told: Err("it does not answer".into()), ..well("shop/g") },
    ]);
    let codes: Vec<&str> = found.iter().filter_map(|text| text.split(' ').next()).collect();
    assert_eq!(
        codes,
        ["WEFT-C015", "WEFT-C016", "WEFT-C024", "WEFT-C034", "WEFT-C035", "WEFT-C036", "WEFT-C037", "WEFT-C007"],
        "{found:#?}"
    );
}
