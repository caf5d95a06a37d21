//! `weft log`: what a sidecar, the control plane, the injector or the CNI plugin's agents log, read or changed while it runs.

use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, bail};
use clap::Args;
use serde::Serialize;
use weft_core::wellknown::CONTROL_PLANE_SERVICE_ACCOUNT;

use crate::fleet::{Fleet, kubectl};
use crate::install::object::{LABEL_NAME, Part};
use crate::output::Output;
use crate::rundir::Which;
use crate::{preflight, table};

/// What `weft log` is told.
#[derive(Args, Debug)]
#[command(after_help = "\
A FILTER is a level (error, warn, info, debug, trace), or TARGET=LEVEL joined by commas, where a target is a module of the program. It holds for every replica that is meant, until that \
starts anew; then what --log or WEFT_LOG says is in force again. Who may do this is who owns the mesh, or, on Kubernetes, whoever may exec into the pods.

Examples:
  weft log control-plane
  weft log control-plane info,weft_control_plane::hub=debug
  weft log injector debug
  weft log shop/web info,weft_sidecar::discovery=debug")]
pub(crate) struct LogArgs {
    /// A workload or one of its pods, control-plane, injector, or cni: the CNI plugin's agent on each node
    #[arg(value_name = "NS/NAME|control-plane|injector|cni")]
    of: String,

    /// What is to be logged from now on; left out, it is told what is
    #[arg(value_name = "FILTER", value_parser = filter)]
    filter: Option<String>,

    #[command(flatten)]
    which: Which,

    #[arg(long, value_name = "NAME", help = "Context of the kubeconfig: a mesh on that cluster is meant")]
    context: Option<String>,

    #[command(flatten)]
    output: Output,
}

/// What is no filter at a glance, and would not pass through a URL. Whether it is one, the program says that it is for.
pub(crate) fn filter(text: &str) -> Result<String, String> {
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic() && b != b'#') {
        return Ok(text.to_owned());
    }
    Err(format!("{text:?} is no filter: write debug, or info,weft_sidecar::discovery=debug"))
}

/// What one of them logs.
#[derive(Serialize, Debug)]
struct Line {
    name: String,
    filter: String,
}

pub(crate) fn main(args: &LogArgs) -> anyhow::Result<ExitCode> {
    let fleet = Fleet::find(&args.which, args.context.as_deref())?;
    let filter = args.filter.as_deref();
    let answers: Vec<(String, anyhow::Result<String>)> = match (args.of.as_str(), &fleet) {
        ("control-plane", Fleet::Run(run)) => vec![("control-plane".to_owned(), beside(run, filter))],
        (name @ ("injector" | "cni"), Fleet::Run(_)) => {
            bail!("a mesh on this machine has no {name}: on a cluster, name its context (--context)")
        }
        (name @ ("control-plane" | "injector" | "cni"), Fleet::Cluster(context)) => {
            let part = match name {
                "control-plane" => Part::ControlPlane,
                "injector" => Part::Injector,
                _ => Part::Cni,
            };
            of_pods(context.as_deref(), part, filter)?
        }
        (name, fleet) => {
            let (method, path) = filter.map_or(("GET", "/log".to_owned()), |f| ("POST", format!("/log?filter={f}")));
            let pods: Vec<String> = fleet.reach(name)?.iter().map(crate::fleet::reach::Reached::name).collect();
            let said = Fleet::each(&pods, |pod| fleet.ask_one(pod, method, &path));
            pods.into_iter().zip(said).collect()
        }
    };
    let (mut lines, mut failed) = (Vec::new(), false);
    for (name, said) in answers {
        match said {
            Ok(said) => lines.push(Line { name, filter: said.trim().to_owned() }),
            Err(why) => {
                failed = true;
                crate::complain(&format!("{name}: {why:#}"));
            }
        }
    }
    let shown = |look| {
        let rows: Vec<Vec<String>> = lines.iter().map(|line| vec![line.name.clone(), line.filter.clone()]).collect();
        if rows.is_empty() { String::new() } else { table::dressed(&["OF", "LOGS"], &rows, look) }
    };
    args.output.print(shown, &lines)?;
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// The control plane of a mesh on this machine is asked on the mesh's own network.
fn beside(run: &Path, filter: Option<&str>) -> anyhow::Result<String> {
    let me = std::env::current_exe().context("this program cannot find itself")?;
    let program = preflight::sibling(CONTROL_PLANE_SERVICE_ACCOUNT)
        .with_context(|| format!("{CONTROL_PLANE_SERVICE_ACCOUNT} is neither beside this program nor in PATH"))?;
    let mut command = Command::new(me);
    command.arg("exec").arg("--run-dir").arg(run).args(["--lab", "--"]).arg(program).arg("log").args(filter);
    let output = command.stdin(Stdio::null()).output()?;
    if !output.status.success() {
        bail!("{}", String::from_utf8_lossy(&output.stderr).trim().trim_start_matches("Error: "));
    }
    String::from_utf8(output.stdout).context("the answer is not text")
}

/// Each replica that runs is asked by its own program, in its container.
fn of_pods(context: Option<&str>, part: Part, filter: Option<&str>) -> anyhow::Result<Vec<(String, anyhow::Result<String>)>> {
    let label = format!("{LABEL_NAME}={}", part.name());
    let running = "--field-selector=status.phase=Running";
    let names = "jsonpath={range .items[*]}{.metadata.namespace}/{.metadata.name}{\"\\n\"}{end}";
    let text = kubectl(context, &["get", "pods", "-A", "-l", &label, running, "-o", names])?;
    let pods: Vec<String> = text.lines().map(ToOwned::to_owned).collect();
    if pods.is_empty() {
        bail!("the cluster has no {} that runs: weft check says more", part.name());
    }
    let answers = Fleet::each(&pods, |pod| {
        let (namespace, name) = pod.split_once('/').unwrap_or_default();
        let words = ["exec", "-n", namespace, name, "-c", part.name(), "--", part.name(), "log"];
        kubectl(context, &words.into_iter().chain(filter).collect::<Vec<_>>())
    });
    Ok(pods.into_iter().zip(answers).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_a_filter_is_refused_before_anybody_is_asked() {
        assert_eq!(filter("info,weft_sidecar::discovery=debug").as_deref(), Ok("info,weft_sidecar::discovery=debug"));
        for bad in ["", "a b", "a#b", "é"] {
            assert!(filter(bad).is_err_and(|why| why.contains("is no filter")), "{bad}");
        }
    }
}
