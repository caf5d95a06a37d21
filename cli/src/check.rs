//! `weft check`: what is wrong with an installation, or with a cluster that is to get one, and how to mend it.

use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde::Serialize;

use weft_core::Namespace;

use crate::fleet::Fleet;
use crate::output::{Look, Output, Tint, plain};
use crate::rundir::Which;
use crate::{duration, strict_ready};

mod codes;
mod judge;
mod mesh;

pub(crate) use codes::Code;
pub(crate) use mesh::{ReachArgs, in_network, reach};

/// What `weft check` is told.
#[derive(Args, Debug)]
#[command(after_help = "\
A mesh on this machine is asked where one runs and no --context is given; else the cluster, by kubectl exec. Sidecars are asked what they see, and look at the \
way to each other; each finding has a code, of which docs/checks.md tells more.

Exit status: 0 where nothing is wrong (warnings are not), 1 where something is. With --strict-ready: 0 where nobody would be refused, 1 where somebody \
would, or not all is known.

Examples:
  weft check
  weft check -n shop -o wide
  weft check -o json | jq -r '.[] | select(.verdict == \"bad\") | .code'
  weft check --pre
  weft check --strict-ready shop
  weft check --strict-ready shop --within 24h -o json")]
pub(crate) struct CheckArgs {
    /// Check whether weft can be installed
    #[arg(long)]
    pre: bool,

    /// List who still calls the pods of a namespace in plaintext, and would be refused if it became strict
    #[arg(long, value_name = "NS", conflicts_with = "pre")]
    strict_ready: Option<Namespace>,

    /// With --strict-ready: leave out callers that were seen last before that [default: none, since the start of each sidecar]
    #[arg(long, value_name = "DURATION", value_parser = duration::parse, requires = "strict_ready")]
    within: Option<Duration>,

    #[command(flatten)]
    which: Which,

    /// Only the sidecars of this namespace
    #[arg(short, long, value_name = "NS", conflicts_with_all = ["pre", "strict_ready"])]
    namespace: Option<Namespace>,

    /// How far apart counters are read twice, for what traffic tells of late
    #[arg(long, value_name = "DURATION", value_parser = duration::parse, default_value = "3s")]
    window: Duration,

    #[arg(long, value_name = "NAME", help = "Context of the kubeconfig [default: its current one]")]
    context: Option<String>,

    #[command(flatten)]
    output: Output,
}

/// Looks at what is asked for.
pub(crate) fn run(args: &CheckArgs) -> anyhow::Result<ExitCode> {
    match &args.strict_ready {
        Some(namespace) => {
            let fleet = Fleet::find(&args.which, args.context.as_deref())?;
            strict_ready::main(&fleet, namespace, args.within, args.output)
        }
        None if args.pre => main(args),
        None => match Fleet::find(&args.which, args.context.as_deref())? {
            fleet @ Fleet::Run(_) => told(args, mesh::look(&fleet, args.namespace.as_ref(), args.window)?),
            Fleet::Cluster(_) => main(args),
        },
    }
}

/// What a mesh that runs tells, for whoever keeps it.
pub(crate) fn findings(fleet: &Fleet, namespace: Option<&Namespace>, window: Duration) -> anyhow::Result<Vec<Finding>> {
    mesh::look(fleet, namespace, window)
}

/// Prints what was found; what is wrong comes first. Fails where something is.
fn told(args: &CheckArgs, mut findings: Vec<Finding>) -> anyhow::Result<ExitCode> {
    findings.sort_by_key(|finding| (std::cmp::Reverse(finding.verdict), finding.code));
    args.output.print(|look| laid_out(&findings, look), &findings)?;
    let bad = findings.iter().any(|finding| finding.verdict == Verdict::Bad);
    Ok(if bad { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn laid_out(findings: &[Finding], look: Look) -> String {
    let mut text = String::new();
    for (at, finding) in findings.iter().enumerate() {
        // One remedy for several in a row stands below the last of them.
        let is_said_below = findings.get(at + 1).is_some_and(|next| next.remedy == finding.remedy);
        text += &finding.laid_out(look, is_said_below);
    }
    let count = |verdict: Verdict| findings.iter().filter(|f| f.verdict == verdict).count();
    let _ =
        writeln!(text, "\n{} wrong, {} to look at, {} good", count(Verdict::Bad), count(Verdict::Warning), count(Verdict::Good));
    text
}

/// One thing that was looked at.
#[derive(Serialize, Debug, Clone, PartialEq, Eq)]
pub(crate) struct Finding {
    code: Code,
    verdict: Verdict,
    /// The pod, Service or other thing that it is about, where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    subject: Option<String>,
    what: String,
    /// What to do about it; empty where nothing is to be done.
    #[serde(skip_serializing_if = "String::is_empty")]
    remedy: String,
}

#[derive(Serialize, Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Good,
    Warning,
    Bad,
}

#[cfg_attr(not(feature = "kubernetes"), allow(dead_code, reason = "only a client finds things"))]
impl Finding {
    fn new(code: Code, verdict: Verdict, what: impl Into<String>, remedy: impl Into<String>) -> Self {
        // One line each, whatever is told in them.
        let line = |text: String| text.trim().replace('\n', "; ");
        Self { code, verdict, subject: None, what: line(what.into()), remedy: line(remedy.into()) }
    }

    pub(crate) fn good(code: Code, what: impl Into<String>) -> Self {
        Self::new(code, Verdict::Good, what, "")
    }

    pub(crate) fn warning(code: Code, what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(code, Verdict::Warning, what, remedy)
    }

    pub(crate) fn bad(code: Code, what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(code, Verdict::Bad, what, remedy)
    }

    /// Says what it is about.
    #[must_use]
    fn of(self, subject: &str) -> Self {
        Self { subject: Some(subject.to_owned()), ..self }
    }

    fn code(&self) -> Code {
        self.code
    }

    fn subject(&self) -> Option<&str> {
        self.subject.as_deref()
    }

    /// For people who look at a terminal: with its code, if it is not good or all is wanted.
    fn laid_out(&self, look: Look, without_remedy: bool) -> String {
        let (mark, tint) = match self.verdict {
            Verdict::Good => ("✓", Tint::Good),
            Verdict::Warning => ("!", Tint::Warning),
            Verdict::Bad => ("✗", Tint::Bad),
        };
        let code =
            if self.verdict == Verdict::Good && !look.wide { String::new() } else { format!("  [{}]", self.code.as_str()) };
        let remedy =
            if self.remedy.is_empty() || without_remedy { String::new() } else { format!("    {}\n", plain(&self.remedy)) };
        format!("{} {}{code}\n{remedy}", look.paint(tint, mark), plain(&self.what))
    }

    fn shown(&self) -> String {
        let mark = match self.verdict {
            Verdict::Good => '✓',
            Verdict::Warning => '!',
            Verdict::Bad => '✗',
        };
        let remedy = if self.remedy.is_empty() { String::new() } else { format!("    {}\n", plain(&self.remedy)) };
        format!("{mark} {}\n{remedy}", plain(&self.what))
    }
}

#[cfg(not(feature = "kubernetes"))]
pub(crate) fn main(args: &CheckArgs) -> anyhow::Result<ExitCode> {
    if args.pre {
        return Err(crate::install::no_client("look with kubectl: kubectl -n weft-system get all"));
    }
    told(args, mesh::look(&Fleet::Cluster(args.context.clone()), args.namespace.as_ref(), args.window)?)
}

#[cfg(feature = "kubernetes")]
mod after;
#[cfg(feature = "kubernetes")]
mod before;
#[cfg(feature = "kubernetes")]
mod certificate;
#[cfg(feature = "kubernetes")]
mod gateway;
#[cfg(feature = "kubernetes")]
pub(crate) use before::before;
#[cfg(feature = "kubernetes")]
pub(crate) use client::{main, tell_problems};

#[cfg(feature = "kubernetes")]
mod client {
    use super::{CheckArgs, Code, ExitCode, Finding, Fleet, Verdict, after, before, mesh, told};
    use crate::install::apply::say;
    use crate::install::cluster::{self, Cluster};
    use crate::install::settings::Settings;

    pub(crate) fn main(args: &CheckArgs) -> anyhow::Result<ExitCode> {
        let mut findings = cluster::run(async {
            let cluster = Cluster::connect(args.context.as_deref()).await?;
            if args.pre {
                return before(&cluster, &Settings::default()).await;
            }
            // A right that lacks, or an installation that is half gone, hides nothing of what sidecars tell.
            Ok(after::after(&cluster).await.unwrap_or_else(|why| vec![mesh::unread("the installation", &why)]))
        })?;
        if !args.pre {
            // Without kubectl no sidecar can be asked; what the API server tells is said all the same.
            match mesh::look(&Fleet::Cluster(args.context.clone()), args.namespace.as_ref(), args.window) {
                Ok(more) => findings.extend(more),
                Err(why) => findings.push(Finding::warning(
                    Code::Silent,
                    format!("sidecars can't be asked: {why:#}"),
                    "install kubectl, and have the right to exec into pods",
                )),
            }
        }
        told(args, findings)
    }

    /// Says what is not good, and whether one may go on.
    pub(crate) fn tell_problems(findings: &[Finding]) -> bool {
        for finding in findings.iter().filter(|finding| finding.verdict != Verdict::Good) {
            say(finding.shown().trim_end());
        }
        findings.iter().all(|finding| finding.verdict != Verdict::Bad)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_is_shown_with_its_remedy() {
        assert_eq!(Finding::good(Code::Clock, "all is well").shown(), "✓ all is well\n");
        assert_eq!(Finding::bad(Code::Clock, "it burns", "put it out").shown(), "✗ it burns\n    put it out\n");
        let (smoke, air) = (Finding::warning(Code::Clock, "smoke", "look"), Finding::good(Code::Mtu, "air"));
        let plain = laid_out(&[smoke.clone(), air.clone()], Look { wide: false, colour: false });
        assert_eq!(plain, "! smoke  [WEFT-C020]\n    look\n✓ air\n\n0 wrong, 1 to look at, 1 good\n");
        let hostile = Finding::bad(Code::Denied, "GET /\u{9b}2J\u{202e}", "x\ny");
        assert_eq!(hostile.shown(), "✗ GET /\\u{9b}2J\\u{202e}\n    x; y\n");
        let json = serde_json::to_value([smoke, air]).expect("plain JSON");
        assert_eq!(json[0], serde_json::json!({"code": "WEFT-C020", "verdict": "warning", "what": "smoke", "remedy": "look"}));
        assert_eq!(json[1].get("remedy"), None);
    }
}
