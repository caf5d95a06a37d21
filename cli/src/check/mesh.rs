//! A mesh as it runs, on this machine or on a cluster: every sidecar is asked what it sees, sidecars look at the way to each other, and what all of it means
//! is said here. Nothing is changed by it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::Value;
use weft_control_plane::objects::Object;
use weft_core::Namespace;
use weft_proto::v1;

use super::{Code, Finding};
use crate::edges::Edge;
use crate::fleet::Fleet;
use crate::lab::door::{self, Listed};
use crate::{operator, rundir};

mod paths;
mod ports;
mod sidecars;
mod traffic;

pub(crate) use paths::{ReachArgs, in_network, reach};

/// What a sidecar tells of itself at `/check`; what an older one does not tell is none.
#[derive(Deserialize, Debug, Clone, Default)]
#[serde(default)]
struct Told {
    version: String,
    now_millis: i64,
    ready: bool,
    waiting_for: Vec<String>,
    pod_ips: Vec<IpAddr>,
    admin_port: u16,
    control_plane: ControlPlane,
    certificate: Option<Certificate>,
    connections: Option<Room>,
    conntrack: Option<Conntrack>,
    refused: Option<Refused>,
    listening: Vec<Listening>,
    name_servers: Vec<String>,
}

#[derive(Deserialize, Debug, Clone, Default)]
#[serde(default)]
struct ControlPlane {
    address: String,
    connected: bool,
    silent_millis: Option<u64>,
    ahead_millis: Option<i64>,
    lookup: Option<Lookup>,
}

#[derive(Deserialize, Debug, Clone)]
struct Lookup {
    host: String,
    is_name: bool,
    millis: u64,
    error: Option<String>,
}

#[derive(Deserialize, Debug, Clone)]
struct Certificate {
    id: String,
    not_before: i64,
    not_after: i64,
    anchor: String,
    anchor_ends: i64,
    renewal_failing_since: i64,
}

#[derive(Deserialize, Debug, Clone)]
struct Room {
    held: u64,
    limit: u64,
}

#[derive(Deserialize, Debug, Clone)]
struct Conntrack {
    count: u64,
    max: u64,
}

#[derive(Deserialize, Debug, Clone)]
struct Refused {
    packets: u64,
    accepted: u64,
}

#[derive(Deserialize, Debug, Clone, PartialEq, Eq)]
struct Listening {
    address: IpAddr,
    port: u16,
}

/// A sidecar, and all that it was asked.
struct Sidecar {
    /// NAMESPACE/NAME of its pod.
    pod: String,
    /// This machine's clock before and after the question, in milliseconds.
    asked: (i64, i64),
    told: Result<Told, String>,
    /// What it has counted, now and a moment before.
    edges: Vec<Edge>,
    before: Vec<Edge>,
    denials: Vec<Denial>,
}

/// A denial, as `/denials` tells it.
#[derive(Deserialize, Debug, Clone)]
struct Denial {
    #[serde(rename = "ref")]
    reference: String,
    at: i64,
    peer: String,
    source: IpAddr,
    port: u16,
    called: Option<String>,
    to: Option<String>,
    method: Option<String>,
    path: Option<String>,
    verdict: String,
    cause: String,
    policy: Option<String>,
    text: String,
    remedy: Option<String>,
}

/// Everything that is judged.
struct Mesh {
    sidecars: Vec<Sidecar>,
    objects: Vec<Object>,
    /// Of a mesh on this machine.
    local: Option<Local>,
}

/// What a mesh on this machine tells besides.
struct Local {
    /// The control plane's status, and this machine's clock before and after the question, in milliseconds; none where it did not answer.
    status: Option<(v1::StatusResponse, (i64, i64))>,
    listed: Vec<Listed>,
}

impl Mesh {
    /// What the control plane of a mesh on this machine told.
    fn status(&self) -> Option<&v1::StatusResponse> {
        Some(&self.local.as_ref()?.status.as_ref()?.0)
    }
}

impl Sidecar {
    /// What it told, where it did.
    fn told(&self) -> Option<&Told> {
        self.told.as_ref().ok()
    }
}

/// Asks everything and judges it. Counters are read twice, `window` apart.
pub(super) fn look(fleet: &Fleet, namespace: Option<&Namespace>, window: Duration) -> anyhow::Result<Vec<Finding>> {
    let begun = Instant::now();
    let pods = fleet.sidecars(namespace)?;
    let edges = |pod: &String| -> Vec<Edge> {
        fleet.ask_one(pod, "GET", "/edges").ok().and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default()
    };
    let before = Fleet::each(&pods, edges);
    let asked = Fleet::each(&pods, |pod| {
        let start = millis();
        let told = fleet.ask_one(pod, "GET", "/check");
        (start, told, millis())
    });
    let told: Vec<Result<Told, String>> = asked
        .iter()
        .map(|(_, told, _)| match told {
            Ok(text) => {
                serde_json::from_str(text).map_err(|e| format!("its answer can't be read: {e}: is it of another version?"))
            }
            Err(why) => Err(format!("{why:#}")),
        })
        .collect();
    let configs = Fleet::each(&pods, |pod| known_peers(&fleet.ask_one(pod, "GET", "/config").unwrap_or_default()));
    let addresses: BTreeMap<&str, &[IpAddr]> =
        pods.iter().zip(&told).filter_map(|(pod, told)| Some((pod.as_str(), told.as_ref().ok()?.pod_ips.as_slice()))).collect();
    let known: Vec<(&str, &[IpAddr])> = pods.iter().map(String::as_str).zip(configs.iter().map(Vec::as_slice)).collect();
    let pairs = paths::choose(&addresses, &known);
    let looks = paths::look(fleet, &pairs);
    let outbound = match fleet {
        Fleet::Run(run) => Fleet::each(&pods, |pod| paths::outbound(run, pod)),
        Fleet::Cluster(_) => Vec::new(),
    };
    let mut findings = Vec::new();
    let local = match fleet {
        Fleet::Run(run) => {
            let start = millis();
            let status = operator::ask(&run.join(rundir::OPERATOR_SOCKET), async |mut operator| operator.status().await);
            let end = millis();
            let status = status.map_err(|why| findings.push(without_control_plane(&why))).ok();
            let listed = door::list(run).map_err(|why| findings.push(unread("what runs", &why))).unwrap_or_default();
            Some(Local { status: status.map(|status| (status, (start, end))), listed })
        }
        Fleet::Cluster(_) => None,
    };
    let objects = fleet.objects().map_err(|why| findings.push(unread("pods and Services", &why))).unwrap_or_default();
    std::thread::sleep(window.saturating_sub(begun.elapsed()));
    let after = Fleet::each(&pods, edges);
    let denials = Fleet::each(&pods, |pod| -> Vec<Denial> {
        fleet.ask_one(pod, "GET", "/denials").ok().and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default()
    });

    let sidecars: Vec<Sidecar> = pods
        .iter()
        .zip(told)
        .zip(asked)
        .zip(before.into_iter().zip(after))
        .zip(denials)
        .map(|((((pod, told), (start, _, end)), (before, edges)), denials)| Sidecar {
            pod: pod.clone(),
            asked: (start, end),
            told,
            edges,
            before,
            denials,
        })
        .collect();
    let mesh = Mesh { sidecars, objects, local };
    findings.extend(sidecars::judge(&mesh));
    findings.extend(paths::judge(&mesh, &looks, &pods.iter().map(String::as_str).zip(outbound).collect::<Vec<_>>()));
    findings.extend(ports::judge(&mesh));
    findings.extend(traffic::judge(&mesh));
    if mesh.sidecars.is_empty() {
        findings.push(Finding::warning(Code::Silent, "no pod has a sidecar", "enable a namespace, and start its pods anew"));
    }
    Ok(findings)
}

/// The operator's socket says nothing: what sidecars tell is all the more wanted.
fn without_control_plane(why: &anyhow::Error) -> Finding {
    Finding::bad(
        Code::ControlPlane,
        format!("the control plane does not answer: {why:#}"),
        "it has ended or hangs: its log says why (weft up shows it). Sidecars go on with what they know until their certificates end",
    )
}

/// What could not be read, and so is not judged.
pub(super) fn unread(what: &str, why: &anyhow::Error) -> Finding {
    let why = format!("{why:#}");
    if why.to_ascii_lowercase().contains("forbidden") {
        let remedy =
            "ask an administrator for the right to get and list them in all namespaces; what depends on it was not looked at";
        return Finding::warning(Code::Rights, format!("{what} can't be read: {why}"), remedy);
    }
    Finding::warning(
        Code::Silent,
        format!("{what} can't be read: {why}"),
        "what depends on it was not looked at: mend this, and look again",
    )
}

/// Milliseconds since the Unix epoch.
fn millis() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |d| i64::try_from(d.as_millis()).unwrap_or(i64::MAX))
}

/// The addresses of endpoints that a sidecar reaches over the mesh, by what it answers at `/config`.
fn known_peers(config: &str) -> Vec<IpAddr> {
    let config: Value = serde_json::from_str(config).unwrap_or_default();
    let mut found: Vec<IpAddr> = Vec::new();
    for address in config["addresses"].as_object().into_iter().flat_map(|all| all.values()) {
        for endpoint in address["endpoints"].as_array().into_iter().flatten() {
            found.extend(endpoint["address"].as_str().and_then(|ip| ip.parse::<IpAddr>().ok()));
        }
    }
    found.sort();
    found.dedup();
    found
}
