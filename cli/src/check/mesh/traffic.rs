//! What traffic tells: an endpoint that is slower than the others, calls that were refused, calls that fail.

use std::collections::BTreeMap;

use weft_control_plane::objects::{Object, PodObject};
use weft_core::failure::Reason;

use super::{Denial, Mesh, Sidecar};
use crate::check::{Code, Finding};
use crate::duration::brief;
use crate::edges::Edge;
use crate::histogram::Histogram;

/// Requests that endpoints must have had to be compared with; of one that callers avoid, since it is slow, fewer do.
const ENOUGH: u64 = 10;
const ENOUGH_OF_ONE: u64 = 3;
/// From so many on, nine answers of ten are compared; of fewer, half of them, so that one that was late says nothing.
const MANY: u64 = 20;
/// How many times as long as the others', and how much longer, in microseconds, an answer of a slow endpoint takes.
const TIMES: f64 = 4.0;
const MICROS: f64 = 20_000.0;
/// Denials older than this are history, in seconds.
const RECENT: i64 = 15 * 60;
/// Findings of one kind at most: the first say what is wrong.
const MOST: usize = 20;
/// Reasons that have findings of their own, or are the caller's.
const TOLD_ELSEWHERE: [Reason; 6] = [
    Reason::Denied,
    Reason::NetworkPolicy,
    Reason::MtlsRequired,
    Reason::EgressDenied,
    Reason::DownstreamGone,
    Reason::FaultInjected,
];

pub(super) fn judge(mesh: &Mesh) -> Vec<Finding> {
    let mut findings = slow(mesh);
    findings.extend(denied(mesh));
    findings.extend(failing(mesh));
    findings
}

/// What a sidecar counted of what comes to its pod: of late, or, where that is too little, since it started.
fn inbound(sidecar: &Sidecar) -> Histogram {
    let of = |edges: &[Edge]| {
        let mut all = Histogram::default();
        for edge in edges.iter().filter(|e| e.direction == "inbound" && e.protocol != "tcp") {
            all.add(&edge.latency);
        }
        all
    };
    let (now, before) = (of(&sidecar.edges), of(&sidecar.before));
    let late = now.less(&before);
    if late.count() >= ENOUGH { late } else { now }
}

fn slow(mesh: &Mesh) -> Vec<Finding> {
    let pods = mesh.objects.iter().filter_map(|o| if let Object::Pod(p) = o { Some(&**p) } else { None });
    let pods: Vec<(&PodObject, &Sidecar)> =
        pods.filter_map(|p| Some((p, mesh.sidecars.iter().find(|s| s.pod == p.id.to_string())?))).collect();
    let mut findings: Vec<Finding> = Vec::new();
    let mut compared = 0;
    for service in mesh.objects.iter().filter_map(|o| if let Object::Service(s) = o { Some(&**s) } else { None }) {
        let selected = pods.iter().filter(|(p, _)| {
            p.id.namespace == service.id.namespace && !service.spec.selector.is_empty() && service.spec.selects(&p.labels)
        });
        let called: Vec<(&str, Histogram)> =
            selected.map(|(_, s)| (s.pod.as_str(), inbound(s))).filter(|(_, h)| h.count() >= ENOUGH_OF_ONE).collect();
        for (pod, own) in &called {
            let (share, said) = if own.count() >= MANY { (0.9, "nine of ten") } else { (0.5, "half") };
            let mut others: Vec<f64> =
                called.iter().filter(|(other, h)| other != pod && h.count() >= ENOUGH).map(|(_, h)| h.quantile(share)).collect();
            others.sort_by(f64::total_cmp);
            let Some(usual) = others.get(others.len() / 2) else { continue };
            compared += 1;
            let own = &own.quantile(share);
            if *own >= usual * TIMES && *own >= usual + MICROS && !findings.iter().any(|f| f.subject() == Some(pod)) {
                let what = format!(
                    "{pod} takes up to {} for {said} of its answers, where the other endpoints of {} take {}",
                    millis(*own),
                    service.id,
                    millis(*usual)
                );
                let remedy = format!(
                    "it is the program in the pod: its own sidecar measured it. Look at its CPU, memory, disk and what it calls (weft stat --by pod); outlier ejection by latency or LEAST_REQUEST keeps callers away (weft endpoints {})",
                    service.id
                );
                findings.push(Finding::warning(Code::Slow, what, remedy).of(pod));
            }
        }
    }
    if findings.is_empty() && compared > 0 {
        findings.push(Finding::good(Code::Slow, format!("{compared} endpoints answer about as fast as their siblings")));
    }
    findings
}

fn millis(micros: f64) -> String {
    format!("{:.1} ms", micros / 1000.0)
}

fn denied(mesh: &Mesh) -> Vec<Finding> {
    // One for each policy, caller and called pod: the last denial of each, and how many.
    let mut groups: BTreeMap<(String, String, String), (&Denial, &Sidecar, u64)> = BTreeMap::new();
    for sidecar in &mesh.sidecars {
        let now = sidecar.told().map_or(0, |t| t.now_millis / 1000);
        for denial in sidecar.denials.iter().filter(|d| d.verdict == "denied" && (now == 0 || now - d.at <= RECENT)) {
            let by = denial.policy.clone().unwrap_or_else(|| denial.cause.clone());
            let group = groups.entry((by, denial.peer.clone(), sidecar.pod.clone())).or_insert((denial, sidecar, 0));
            group.2 += 1;
            if denial.at >= group.0.at {
                group.0 = denial;
            }
        }
    }
    let more = groups.len().saturating_sub(MOST);
    let mut findings: Vec<Finding> = groups
        .into_values()
        .take(MOST)
        .map(|(d, sidecar, times)| {
            let request = [d.method.as_deref(), d.path.as_deref()].into_iter().flatten().collect::<Vec<_>>().join(" ");
            let request = if request.is_empty() { String::new() } else { format!(" ({request})") };
            let (who, where_to) = match (&d.to, &d.called) {
                (Some(host), _) => (sidecar.pod.clone(), format!("port {} of {host}, outside of the mesh", d.port)),
                (None, Some(called)) => (sidecar.pod.clone(), called.clone()),
                (None, None) if d.peer.starts_with("spiffe://") => {
                    (d.peer.clone(), format!("port {} of {}", d.port, sidecar.pod))
                }
                (None, None) => (format!("{} from {}", d.peer, d.source), format!("port {} of {}", d.port, sidecar.pod)),
            };
            let now = sidecar.told().map_or(d.at, |t| t.now_millis / 1000);
            let what = format!(
                "{times} calls of {who} to {where_to}{request} were refused, the last {} ago: {}",
                brief((now - d.at).max(0)),
                d.text
            );
            let allow = d.remedy.as_ref().map_or_else(String::new, |remedy| format!("what would allow it: {remedy}; "));
            Finding::warning(Code::Denied, what, format!("{allow}weft why {} tells all of it", d.reference)).of(&sidecar.pod)
        })
        .collect();
    if more > 0 {
        findings.push(Finding::warning(
            Code::Denied,
            format!("{more} more callers were refused"),
            "weft sidecar NS/POD /denials",
        ));
    }
    if findings.is_empty() && mesh.sidecars.iter().any(|s| s.told.is_ok()) {
        findings.push(Finding::good(Code::Denied, format!("nobody was refused within {}", brief(RECENT))));
    }
    findings
}

/// Errors of the callers' own sidecars, where they are a hundredth of the requests or more.
fn failing(mesh: &Mesh) -> Vec<Finding> {
    let mut groups: BTreeMap<(String, &'static str), (u64, u64, String)> = BTreeMap::new();
    for sidecar in &mesh.sidecars {
        for edge in sidecar.edges.iter().filter(|e| e.direction == "outbound") {
            for reason in Reason::ALL.iter().filter(|r| !TOLD_ELSEWHERE.contains(r)) {
                if let Some(n) = edge.errors.get(reason.as_str()) {
                    let group = groups.entry((edge.target.clone(), reason.as_str())).or_insert((0, 0, sidecar.pod.clone()));
                    group.0 += n;
                }
            }
        }
    }
    for sidecar in &mesh.sidecars {
        for edge in sidecar.edges.iter().filter(|e| e.direction == "outbound") {
            for ((target, _), group) in &mut groups {
                if *target == edge.target {
                    group.1 += edge.requests + edge.connections;
                }
            }
        }
    }
    let mut findings = Vec::new();
    for ((target, reason), (errors, all, from)) in
        groups.into_iter().filter(|(_, (errors, all, _))| errors * 100 >= *all).take(MOST)
    {
        let explain = Reason::ALL.iter().find(|r| r.as_str() == reason).map_or("", |r| r.explain());
        let is_protocol = [Reason::ProtocolMismatch, Reason::UpstreamProtocol].iter().any(|r| r.as_str() == reason);
        let (code, remedy) = if is_protocol {
            (Code::Protocol, "declare what the port speaks by its name (tcp-, http-, grpc-) or by appProtocol; a port without one is looked at, and its bytes decide".to_owned())
        } else {
            (
                Code::Failing,
                format!(
                    "weft stat --by edge shows who is concerned; weft endpoints {target} what callers think of each endpoint"
                ),
            )
        };
        let what =
            format!("{errors} calls to {target} failed since the sidecars started (of {all}), as of {from}: {reason}. {explain}");
        findings.push(Finding::warning(code, what, remedy).of(&target));
    }
    findings
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use weft_control_plane::watch::parse::parse;

    use super::super::Told;
    use super::*;

    fn sidecar(pod: &str, latency: &[(Option<u64>, u64)], errors: &serde_json::Value, denials: serde_json::Value) -> Sidecar {
        let requests: u64 = latency.iter().map(|(_, n)| n).sum();
        let edge = |direction: &str| {
            json!({"direction": direction, "peer": "x", "target": "shop/web", "protocol": "http/1.1", "cipher": "", "key_exchange": "", "connections": 1,
                   "requests": requests, "by_class": {}, "errors": errors, "retries": 0, "p50_micros": 0, "p99_micros": 0, "latency": latency})
        };
        let edges: Vec<Edge> = serde_json::from_value(json!([edge("inbound"), edge("outbound")])).expect("edges");
        Sidecar {
            pod: pod.to_owned(),
            asked: (0, 0),
            told: Ok(Told { now_millis: 1_700_000_100_000, ..Told::default() }),
            before: vec![],
            edges,
            denials: serde_json::from_value(denials).expect("denials"),
        }
    }

    const SHOP: &str = "\
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.0.1, selector: {app: web}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web-0, namespace: shop, labels: {app: web}}
spec: {containers: [{name: app}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web-1, namespace: shop, labels: {app: web}}
spec: {containers: [{name: app}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web-2, namespace: shop, labels: {app: web}}
spec: {containers: [{name: app}]}
";

    #[test]
    fn the_endpoint_that_stands_out_is_named_and_no_other() {
        let (fast, slow) =
            ([(Some(1000), 0), (Some(2500), 40), (Some(500_000), 0)], [(Some(1000), 0), (Some(250_000), 2), (Some(500_000), 40)]);
        let sidecars = vec![
            sidecar("shop/web-0", &fast, &json!({}), json!([])),
            sidecar("shop/web-1", &fast, &json!({}), json!([])),
            sidecar("shop/web-2", &slow, &json!({}), json!([])),
        ];
        let mesh = Mesh { sidecars, objects: parse("test", SHOP).expect("good"), local: None };
        let found = super::slow(&mesh);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].shown().starts_with("! shop/web-2 takes up to 4"), "{}", found[0].shown());
    }

    #[test]
    fn who_was_refused_is_told_with_the_policy_and_what_fails_with_its_reason() {
        let denial = json!({"ref": "8c0f", "at": 1_700_000_090, "peer": "spiffe://cluster.local/ns/front/sa/client", "source": "10.0.0.9", "port": 8080,
            "protocol": "http/1.1", "method": "PUT", "path": "/x", "verdict": "denied", "cause": "matched", "policy": "shop/no-put",
            "text": "denied by DENY shop/no-put rule 0", "remedy": "a call that it does not match"});
        let mut old = denial.clone();
        old["at"] = 1_600_000_000.into();
        let latency = [(Some(1000), 50)];
        let mesh = Mesh {
            sidecars: vec![sidecar(
                "shop/web-0",
                &latency,
                &json!({"upstream-protocol": 20, "denied": 50}),
                json!([denial.clone(), denial, old]),
            )],
            objects: vec![],
            local: None,
        };
        let shown: String = judge(&mesh).iter().map(|f| format!("{} {}", f.code().as_str(), f.shown())).collect();
        assert!(shown.contains("WEFT-C051 ! 2 calls of spiffe://cluster.local/ns/front/sa/client to port 8080 of shop/web-0 (PUT /x) were refused, the last 10s ago: denied by DENY shop/no-put rule 0\n    what would allow it: a call that it does not match; weft why 8c0f tells all of it"), "{shown}");
        assert!(shown.contains("WEFT-C042 ! 20 calls to shop/web failed"), "{shown}");
    }
}
