//! `weft status`: what the lab runs, or which pods of a cluster have a sidecar, and what the control plane knows of them.

use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;

use clap::Args;
use serde_json::{Value, json};
use weft_control_plane::replicas;
use weft_proto::v1;

use crate::fleet::{self, Fleet};
use crate::install::sidecars;
use crate::lab::door::{self, Listed};
use crate::operator::Way;
use crate::output::{Look, Output};
use crate::rundir::{self, Which};
use crate::{duration, operator, table};

/// What `weft status` is told.
#[derive(Args, Debug)]
#[command(after_help = "\
Of a mesh on this machine, or of a cluster: there, of every pod with a sidecar, and by what all replicas of the control plane know.

Examples:
  weft status
  weft status -o wide
  weft status --context production
  weft status -o json | jq -r '.workloads[] | select(.ready == false) | .pod'")]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    which: Which,

    #[arg(long, value_name = "NAME", help = "Context of the kubeconfig: a mesh on that cluster is meant")]
    context: Option<String>,

    #[command(flatten)]
    output: Output,
}

pub(crate) fn main(args: &StatusArgs) -> anyhow::Result<ExitCode> {
    let (listed, status) = match Fleet::find(&args.which, args.context.as_deref())? {
        Fleet::Run(run) => of_run(&run)?,
        Fleet::Cluster(context) => of_cluster(context.as_deref())?,
    };
    args.output.print(|look| as_text(&listed, &status, duration::now(), look), &as_json(&listed, &status))?;
    Ok(ExitCode::SUCCESS)
}

/// What it prints for programs.
pub(crate) fn json(run: &Path) -> anyhow::Result<Value> {
    let (listed, status) = of_run(run)?;
    Ok(as_json(&listed, &status))
}

fn of_run(run: &Path) -> anyhow::Result<(Vec<Listed>, v1::StatusResponse)> {
    let listed = door::list(run)?;
    let status = operator::ask(&run.join(rundir::OPERATOR_SOCKET), async |mut operator| operator.status().await)?;
    Ok((listed, status))
}

/// Each replica of the control plane knows of the sidecars that are connected to it.
fn of_cluster(context: Option<&str>) -> anyhow::Result<(Vec<Listed>, v1::StatusResponse)> {
    let ways = Way::every(context)?;
    let told = Fleet::each(&ways, |way| operator::ask_by(way.clone(), async |mut operator| operator.status().await));
    let listed = fleet::listed(context, "pods", None)?.iter().filter_map(pod).collect();
    Ok((listed, together(told)?))
}

/// A pod of a cluster that has a sidecar, and is not over.
fn pod(value: &Value) -> Option<Listed> {
    let text = |pointer: &str| value.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
    let phase = text("/status/phase");
    if !sidecars::has_sidecar(value) || matches!(&*phase, "Succeeded" | "Failed") {
        return None;
    }
    let is_ready = sidecars::is_ready(value);
    let said =
        sidecars::conditions(value).filter(|c| c["status"] == "False").find_map(|c| c["message"].as_str()).unwrap_or(&phase);
    Some(Listed {
        namespace: text("/metadata/namespace"),
        pod: text("/metadata/name"),
        service_account: text("/spec/serviceAccountName"),
        address: text("/status/podIP"),
        meshed: true,
        ready: is_ready,
        why: if is_ready { String::new() } else { said.to_owned() },
    })
}

/// What all replicas know; a replica that does not answer is a problem, unless none does.
fn together(told: Vec<anyhow::Result<v1::StatusResponse>>) -> anyhow::Result<v1::StatusResponse> {
    let (mut whole, mut silent) = (None::<v1::StatusResponse>, Vec::new());
    for one in told {
        match (one, &mut whole) {
            (Ok(one), None) => whole = Some(one),
            (Ok(one), Some(whole)) => merge(whole, one),
            (Err(why), _) => silent.push(why),
        }
    }
    let Some(mut whole) = whole else {
        return Err(silent.pop().unwrap_or_else(|| anyhow::anyhow!("the cluster has no control plane that answers")));
    };
    let problem = |why: anyhow::Error| v1::Problem {
        place: "control plane".to_owned(),
        field: String::new(),
        message: format!("a replica does not answer, and its sidecars are missing here: {why:#}"),
    };
    whole.sidecars = replicas::newest(std::mem::take(&mut whole.sidecars));
    whole.problems.extend(silent.into_iter().map(problem));
    Ok(whole)
}

fn merge(whole: &mut v1::StatusResponse, other: v1::StatusResponse) {
    whole.generation = whole.generation.max(other.generation);
    whole.sidecars.extend(other.sidecars);
    let fresh: Vec<v1::Problem> = other.problems.into_iter().filter(|problem| !whole.problems.contains(problem)).collect();
    whole.problems.extend(fresh);
}

/// What the control plane knows of each sidecar, behind the replica where the lab runs it. Others may have joined by a token.
fn paired<'a>(listed: &'a [Listed], status: &'a v1::StatusResponse) -> Vec<(Option<&'a Listed>, Option<&'a v1::SidecarStatus>)> {
    let same = |l: &Listed, s: &v1::SidecarStatus| l.namespace == s.namespace && l.pod == s.pod;
    let ours = listed.iter().map(|l| (Some(l), status.sidecars.iter().find(|s| same(l, s))));
    let others = status.sidecars.iter().filter(|s| !listed.iter().any(|l| same(l, s))).map(|s| (None, Some(s)));
    ours.chain(others).collect()
}

fn as_text(listed: &[Listed], status: &v1::StatusResponse, now: i64, look: Look) -> String {
    let all = paired(listed, status);
    let mut rows: Vec<Vec<String>> = all.iter().map(|(listed, sidecar)| row(*listed, *sidecar, now)).collect();
    let mut header = vec!["NAMESPACE", "POD", "READY", "IDENTITY", "CERT-EXPIRES", "VERSION", "CONNECTED", "SUBSCRIPTIONS"];
    if look.wide {
        header.extend(["ADDRESS", "SERIAL", "UNACKNOWLEDGED"]);
        for (row, (listed, sidecar)) in rows.iter_mut().zip(&all) {
            let none = || "-".to_owned();
            row.push(listed.map_or_else(none, |l| l.address.clone()));
            row.push(sidecar.map_or_else(none, |s| s.serial.clone()));
            row.push(sidecar.map_or_else(none, |s| s.unacknowledged.to_string()));
        }
    }
    let mut text = table::dressed(&header, &rows, look);
    let _ = writeln!(
        text,
        "\ncontrol plane {} for {}: {} services, {} workloads, generation {}",
        status.version, status.trust_domain, status.services, status.workloads, status.generation
    );
    if !status.egress.is_empty() {
        let _ = writeln!(text, "by default: mTLS {}, callers {}, egress {}", status.mtls, status.default_policy, status.egress);
    }
    let unready =
        listed.iter().filter(|l| !l.ready && !l.why.is_empty()).map(|l| format!("{}/{}: {}", l.namespace, l.pod, l.why));
    let rejected = status
        .sidecars
        .iter()
        .flat_map(|s| s.rejected.iter().map(move |p| format!("{}/{}: it rejects {}", s.namespace, s.pod, problem(p))));
    let ending = status.sidecars.iter().filter_map(|s| Some(format!("{}/{}: {}", s.namespace, s.pod, ending(s, now)?)));
    let problems: Vec<String> = unready.chain(rejected).chain(ending).chain(status.problems.iter().map(problem)).collect();
    if !problems.is_empty() {
        text.push_str("\nPROBLEMS\n");
        for problem in problems {
            let _ = writeln!(text, "{problem}");
        }
    }
    text
}

/// What is left of a certificate when it should have been renewed long since: renewal begins when a third is left.
const SOON: i64 = 4 * 3600;

/// Why a sidecar may be without a certificate soon.
fn ending(s: &v1::SidecarStatus, now: i64) -> Option<String> {
    let left = duration::brief(s.not_after - now);
    match s.renewal_failing_since {
        0 if s.not_after == 0 || s.not_after - now > SOON => None,
        0 => Some(format!("its certificate ends in {left} and has not been renewed")),
        since => Some(format!("its certificate can't be renewed for {}, and ends in {left}", duration::brief(now - since))),
    }
}

fn row(listed: Option<&Listed>, sidecar: Option<&v1::SidecarStatus>, now: i64) -> Vec<String> {
    let none = || "-".to_owned();
    let (namespace, pod) = match (listed, sidecar) {
        (Some(l), _) => (l.namespace.clone(), l.pod.clone()),
        (None, Some(s)) => (s.namespace.clone(), s.pod.clone()),
        (None, None) => (none(), none()),
    };
    let ready = listed.map_or_else(none, |l| if l.ready { "yes".to_owned() } else { "no".to_owned() });
    let mut row = vec![namespace, pod, ready];
    match sidecar {
        Some(s) => row.extend([
            s.identity.clone(),
            if s.not_after == 0 { none() } else { duration::brief(s.not_after - now) },
            s.version.clone(),
            if s.connected_at == 0 { none() } else { duration::brief(now - s.connected_at) },
            s.subscriptions.to_string(),
        ]),
        None => {
            let why = if listed.is_some_and(|l| l.meshed) { "(not connected)" } else { "(no sidecar)" };
            row.extend([why.to_owned(), none(), none(), none(), none()]);
        }
    }
    row
}

fn problem(p: &v1::Problem) -> String {
    let field = if p.field.is_empty() { String::new() } else { format!("{}: ", p.field) };
    format!("{}: {field}{}", p.place, p.message)
}

fn as_json(listed: &[Listed], status: &v1::StatusResponse) -> Value {
    let told = |p: &v1::Problem| json!({"place": p.place, "field": p.field, "message": p.message});
    let workloads: Vec<Value> = paired(listed, status)
        .into_iter()
        .map(|(listed, sidecar)| {
            let sidecar_json = sidecar.map(|s| {
                json!({
                    "identity": s.identity,
                    "version": s.version,
                    "connectedAt": s.connected_at,
                    "subscriptions": s.subscriptions,
                    "unacknowledged": s.unacknowledged,
                    "serial": s.serial,
                    "notAfter": s.not_after,
                    "anchor": s.anchor,
                    "renewalFailingSince": s.renewal_failing_since,
                    "rejected": s.rejected.iter().map(told).collect::<Vec<_>>(),
                })
            });
            json!({
                "namespace": listed.map_or_else(|| sidecar.map(|s| s.namespace.as_str()), |l| Some(l.namespace.as_str())),
                "pod": listed.map_or_else(|| sidecar.map(|s| s.pod.as_str()), |l| Some(l.pod.as_str())),
                "serviceAccount": listed.map(|l| l.service_account.as_str()),
                "address": listed.map(|l| l.address.as_str()),
                "meshed": listed.is_none_or(|l| l.meshed),
                "ready": listed.map(|l| l.ready),
                "why": listed.map(|l| l.why.as_str()),
                "sidecar": sidecar_json,
            })
        })
        .collect();
    json!({
        "version": status.version,
        "trustDomain": status.trust_domain,
        "anchors": status.anchors,
        "generation": status.generation,
        "services": status.services,
        "mtls": status.mtls,
        "defaultPolicy": status.default_policy,
        "egress": status.egress,
        "workloads": workloads,
        "problems": status.problems.iter().map(told).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use weft_core::wellknown::SIDECAR_CONTAINER;

    use super::*;

    fn replica(pod: &str, meshed: bool, why: &str) -> Listed {
        Listed {
            namespace: "shop".to_owned(),
            pod: pod.to_owned(),
            service_account: "web".to_owned(),
            address: "10.47.1.1".to_owned(),
            meshed,
            ready: why.is_empty(),
            why: why.to_owned(),
        }
    }

    fn status() -> v1::StatusResponse {
        v1::StatusResponse {
            version: "0.1.0".to_owned(),
            trust_domain: "cluster.local".to_owned(),
            sidecars: vec![v1::SidecarStatus {
                namespace: "shop".to_owned(),
                pod: "web-0".to_owned(),
                identity: "spiffe://cluster.local/ns/shop/sa/web".to_owned(),
                version: "0.1.0".to_owned(),
                connected_at: 940,
                subscriptions: 5,
                not_after: 1000 + 86_340,
                ..Default::default()
            }],
            problems: vec![v1::Problem {
                place: "extra/a.yaml:3".to_owned(),
                field: "kind".to_owned(),
                message: "is unknown".to_owned(),
            }],
            ..Default::default()
        }
    }

    #[test]
    fn people_see_every_replica_and_every_problem() {
        let listed = [replica("web-0", true, ""), replica("web-1", true, "it is being started"), replica("old-0", false, "")];
        let text = as_text(&listed, &status(), 1000, Look { wide: false, colour: false });
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with("NAMESPACE  POD    READY  IDENTITY"), "{text}");
        assert!(lines[1].ends_with("spiffe://cluster.local/ns/shop/sa/web  23h59m        0.1.0    1m0s       5"), "{text}");
        assert!(lines[2].contains("(not connected)") && lines[3].contains("(no sidecar)"), "{text}");
        assert!(text.ends_with("\nPROBLEMS\nshop/web-1: it is being started\nextra/a.yaml:3: kind: is unknown\n"), "{text}");
    }

    #[test]
    fn replicas_are_put_together_and_pods_of_a_cluster_read() {
        let sidecar = |pod: &str, connected_at, version: &str| v1::SidecarStatus {
            pod: pod.to_owned(),
            connected_at,
            version: version.to_owned(),
            ..Default::default()
        };
        let told = |sidecars, generation| Ok(v1::StatusResponse { sidecars, generation, ..status() });
        let away = || Err(anyhow::anyhow!("it is away"));
        let one = told(vec![sidecar("a", 5, "was here"), sidecar("b", 9, "is here")], 7);
        let other = told(vec![sidecar("a", 6, "is here"), sidecar("b", 3, "was here"), sidecar("c", 1, "is here")], 8);
        let whole = together(vec![away(), one, other]).expect("two answer");
        let known: Vec<(&str, &str)> = whole.sidecars.iter().map(|s| (&*s.pod, &*s.version)).collect();
        assert_eq!((known, whole.generation), (vec![("a", "is here"), ("b", "is here"), ("c", "is here")], 8));
        let [manifest, silent] = &whole.problems[..] else { panic!("{:?}", whole.problems) };
        assert!(manifest.message == "is unknown" && silent.message.contains("it is away"), "{:?}", whole.problems);
        assert!(together(vec![away(), away()]).is_err_and(|why| why.to_string().contains("away")));

        let object = |injected: bool, phase: &str, ready: &str| {
            let containers = if injected { json!([{"name": SIDECAR_CONTAINER}]) } else { json!([]) };
            json!({
                "metadata": {"name": "web-0", "namespace": "shop"},
                "spec": {"serviceAccountName": "web", "initContainers": containers},
                "status": {"phase": phase, "podIP": "10.0.0.1", "conditions": [{"type": "Ready", "status": ready, "message": "not yet"}]},
            })
        };
        let read = pod(&object(true, "Running", "False")).expect("it has a sidecar");
        assert_eq!(
            (read.name(), read.ready, &*read.why, &*read.address),
            ("shop/web-0".to_owned(), false, "not yet", "10.0.0.1")
        );
        assert!(pod(&object(true, "Running", "True")).is_some_and(|pod| pod.ready && pod.why.is_empty()));
        assert!(pod(&object(false, "Running", "True")).is_none() && pod(&object(true, "Succeeded", "False")).is_none());
    }

    #[test]
    fn people_are_warned_before_a_certificate_ends() {
        let sidecar =
            |not_after, renewal_failing_since| v1::SidecarStatus { not_after, renewal_failing_since, ..Default::default() };
        assert_eq!(ending(&sidecar(90_000, 0), 1000), None);
        assert_eq!(ending(&sidecar(0, 0), 1000), None, "it has told nothing yet");
        let table = [
            (sidecar(1000 + 3600, 0), "its certificate ends in 1h0m and has not been renewed"),
            (sidecar(90_000, 940), "its certificate can't be renewed for 1m0s, and ends in 1d0h"),
        ];
        for (sidecar, wanted) in table {
            assert_eq!(ending(&sidecar, 1000).as_deref(), Some(wanted));
        }
    }

    #[test]
    fn programs_see_sidecars_that_joined_from_elsewhere_too() {
        let json = as_json(&[], &status());
        assert_eq!(json["workloads"][0]["pod"], "web-0");
        assert_eq!(json["workloads"][0]["sidecar"]["subscriptions"], 5);
        assert_eq!(json["problems"][0]["place"], "extra/a.yaml:3");
    }
}
