//! Ports as Services declare them, against who listens in the pods.

use std::collections::BTreeSet;

use weft_control_plane::model::target_port;
use weft_control_plane::objects::{Object, PodObject, ServiceObject, Transport};
use weft_core::wellknown::SIDECAR_PORTS;

use super::{Listening, Local, Mesh, Told};
use crate::check::{Code, Finding};

/// Ports that a finding names at most.
const SHOWN: usize = 8;

pub(super) fn judge(mesh: &Mesh) -> Vec<Finding> {
    let pods: Vec<&PodObject> =
        mesh.objects.iter().filter_map(|o| if let Object::Pod(p) = o { Some(&**p) } else { None }).collect();
    let services = mesh.objects.iter().filter_map(|o| if let Object::Service(s) = o { Some(&**s) } else { None });
    let mut findings = unmeshed(mesh, &pods);
    let told = |pod: &PodObject| mesh.sidecars.iter().find(|s| s.pod == pod.id.to_string()).and_then(super::Sidecar::told);
    let mut looked = 0;
    for service in services.filter(|s| !s.spec.selector.is_empty()) {
        let selected: Vec<&PodObject> = pods
            .iter()
            .copied()
            .filter(|p| p.id.namespace == service.id.namespace && !p.ended() && service.spec.selects(&p.labels))
            .collect();
        findings.extend(endpoints(service, &selected));
        for port in service.spec.ports.iter().filter(|p| p.protocol == Transport::Tcp) {
            let known = selected.iter().filter_map(|pod| Some((*pod, told(pod)?))).filter(|(_, told)| !told.listening.is_empty());
            let mut nobody: Vec<(String, u16, BTreeSet<u16>)> = Vec::new();
            for (pod, told) in known {
                let name = pod.id.to_string();
                let Some(target) = target_port(port, pod) else {
                    findings.push(
                        Finding::bad(
                            Code::NobodyListens,
                            format!(
                                "port {} of Service {} leads to a port by a name that {name} does not have",
                                port.port, service.id
                            ),
                            "name the port in the pod's containers, or give targetPort as a number",
                        )
                        .of(&service.id.to_string()),
                    );
                    continue;
                };
                looked += 1;
                match listens(told, target) {
                    Listens::Yes => {}
                    Listens::Loopback => findings.push(
                        Finding::bad(
                            Code::LoopbackOnly,
                            format!("port {} of Service {} leads to port {target} of {name}, where the program listens on loopback alone", port.port, service.id),
                            "have it listen on the pod's address or on every one (0.0.0.0): it is reached at the pod's own address",
                        )
                        .of(&name),
                    ),
                    Listens::No => nobody.push((name, target, open(told))),
                }
            }
            if let Some((first, target, open)) = nobody.first() {
                let rest = if nobody.len() > 1 { format!(" (and {} more pods)", nobody.len() - 1) } else { String::new() };
                let open: Vec<String> = open.iter().take(SHOWN).map(ToString::to_string).collect();
                let (instead, remedy) = if open.is_empty() {
                    ("it listens nowhere".to_owned(), "see whether the program runs".to_owned())
                } else {
                    (
                        format!("it listens on {}", open.join(", ")),
                        format!("give the Service's port {} the targetPort on which the program listens", port.port),
                    )
                };
                findings.push(
                    Finding::bad(
                        Code::NobodyListens,
                        format!(
                            "port {} of Service {} leads to port {target} of {first}{rest}, where nobody listens: {instead}",
                            port.port, service.id
                        ),
                        remedy,
                    )
                    .of(&service.id.to_string()),
                );
            }
        }
    }
    if looked > 0 && findings.iter().all(|f| f.code() != Code::NobodyListens && f.code() != Code::LoopbackOnly) {
        findings.push(Finding::good(Code::NobodyListens, "somebody listens on every port that Services lead to"));
    }
    findings
}

/// On this machine, where there are no labels to ask for sidecars: pods without one in namespaces where others have one.
fn unmeshed(mesh: &Mesh, pods: &[&PodObject]) -> Vec<Finding> {
    let Some(Local { listed, .. }) = &mesh.local else { return Vec::new() };
    let bare = pods.iter().filter(|p| !p.ended() && listed.iter().any(|l| !l.meshed && l.name() == p.id.to_string()));
    let beside = bare.filter(|p| listed.iter().any(|l| l.meshed && l.namespace == p.id.namespace.as_str()));
    beside
        .map(|p| {
            let what = format!("{} has no sidecar, though others in its namespace have: what it says goes in the clear", p.id);
            Finding::warning(Code::Unmeshed, what, "leave out sidecar: false, unless that is meant").of(&p.id.to_string())
        })
        .collect()
}

fn endpoints(service: &ServiceObject, selected: &[&PodObject]) -> Option<Finding> {
    if selected.iter().any(|pod| pod.ready()) || service.spec.publish_not_ready_addresses {
        return None;
    }
    let (what, remedy) = match selected.first() {
        None => ("its selector selects no pod".to_owned(), "compare the Service's selector with the pods' labels"),
        Some(pod) => (
            format!("none of its {} pods is ready ({} is not)", selected.len(), pod.id),
            "see why: weft status, or kubectl describe pod",
        ),
    };
    Some(
        Finding::bad(Code::NoEndpoints, format!("Service {} has no endpoint: {what}", service.id), remedy)
            .of(&service.id.to_string()),
    )
}

#[derive(Debug, PartialEq, Eq)]
enum Listens {
    Yes,
    Loopback,
    No,
}

fn listens(told: &Told, port: u16) -> Listens {
    let at: Vec<&Listening> = told.listening.iter().filter(|l| l.port == port).collect();
    if at.is_empty() {
        Listens::No
    } else if at.iter().all(|l| l.address.is_loopback()) {
        Listens::Loopback
    } else {
        Listens::Yes
    }
}

/// The ports of the pod's own programs that are open to others.
fn open(told: &Told) -> BTreeSet<u16> {
    let others = told
        .listening
        .iter()
        .filter(|l| !l.address.is_loopback() && !SIDECAR_PORTS.contains(&l.port) && l.port != told.admin_port);
    others.map(|l| l.port).collect()
}

#[cfg(test)]
mod tests {
    use weft_control_plane::watch::parse::parse;

    use super::super::Sidecar;
    use super::*;

    const SHOP: &str = "\
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.0.1, selector: {app: web}, ports: [{name: a, port: 80, targetPort: 8081}, {name: b, port: 81, targetPort: 9000}, {name: c, port: 82, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: none, namespace: shop}
spec: {clusterIP: 10.96.0.2, selector: {app: nobody}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web-0, namespace: shop, labels: {app: web}}
spec: {containers: [{name: weft-sidecar}]}
status: {podIP: 10.0.0.1, conditions: [{type: Ready, status: 'True'}]}
";

    #[test]
    fn a_port_where_nobody_listens_is_told_with_those_where_somebody_does() {
        let listening = [("0.0.0.0", 8080), ("127.0.0.1", 9000), ("0.0.0.0", SIDECAR_PORTS[1])]
            .map(|(ip, port)| Listening { address: ip.parse().expect("an address"), port });
        let told = Told { listening: listening.to_vec(), ..Told::default() };
        let sidecar =
            Sidecar { pod: "shop/web-0".into(), asked: (0, 0), told: Ok(told), edges: vec![], before: vec![], denials: vec![] };
        let mesh = Mesh { sidecars: vec![sidecar], objects: parse("test", SHOP).expect("good"), local: None };
        let shown: Vec<String> = judge(&mesh).iter().map(|f| format!("{} {}", f.code().as_str(), f.shown())).collect();
        assert_eq!(shown.len(), 3, "{shown:#?}");
        assert!(
            shown[0].starts_with(
                "WEFT-C041 ✗ port 81 of Service shop/web leads to port 9000 of shop/web-0, where the program listens on loopback"
            ) || shown[1].starts_with("WEFT-C041"),
            "{shown:#?}"
        );
        assert!(shown.iter().any(|s| s.starts_with("WEFT-C040 ✗ port 80 of Service shop/web leads to port 8081 of shop/web-0, where nobody listens: it listens on 8080\n")), "{shown:#?}");
        assert!(
            shown.iter().any(|s| s.starts_with("WEFT-C043 ✗ Service shop/none has no endpoint: its selector selects no pod")),
            "{shown:#?}"
        );
    }
}
