//! `weft check`: what is wrong with an installation, or with a cluster that is to get one, and how to mend it.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde::Serialize;

use weft_core::Namespace;

use crate::fleet::Fleet;
use crate::output::Format;
use crate::rundir::Which;
use crate::{duration, strict_ready};

mod judge;

/// What `weft check` is told.
#[derive(Args, Debug)]
#[command(after_help = "\
With --strict-ready, a mesh on this machine is asked where one runs and no --context is given; else the cluster, by kubectl exec. Exit status then: 0 where \
nobody would be refused, 1 where somebody would, or not all is known.

Examples:
  weft check
  weft check --pre
  weft check --strict-ready shop
  weft check --strict-ready shop --within 24h -o json")]
#[cfg_attr(not(feature = "kubernetes"), allow(dead_code, reason = "only a client has something to check"))]
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

    #[arg(long, value_name = "NAME", help = "Context of the kubeconfig [default: its current one]")]
    context: Option<String>,

    /// How it is printed
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value = "text")]
    output: Format,
}

/// Looks at what is asked for.
pub(crate) fn run(args: &CheckArgs) -> anyhow::Result<ExitCode> {
    match &args.strict_ready {
        Some(namespace) => {
            let fleet = Fleet::find(&args.which, args.context.as_deref())?;
            strict_ready::main(&fleet, namespace, args.within, args.output)
        }
        None => main(args),
    }
}

/// One thing that was looked at.
#[derive(Serialize, Debug, Clone, PartialEq, Eq)]
pub(crate) struct Finding {
    verdict: Verdict,
    what: String,
    /// What to do about it; empty where nothing is to be done.
    #[serde(skip_serializing_if = "String::is_empty")]
    remedy: String,
}

#[derive(Serialize, Debug, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Good,
    Warning,
    Bad,
}

#[cfg_attr(not(feature = "kubernetes"), allow(dead_code, reason = "only a client finds things"))]
impl Finding {
    pub(crate) fn good(what: impl Into<String>) -> Self {
        Self { verdict: Verdict::Good, what: what.into(), remedy: String::new() }
    }

    pub(crate) fn warning(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { verdict: Verdict::Warning, what: what.into(), remedy: remedy.into() }
    }

    pub(crate) fn bad(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { verdict: Verdict::Bad, what: what.into(), remedy: remedy.into() }
    }

    fn shown(&self) -> String {
        let mark = match self.verdict {
            Verdict::Good => '✓',
            Verdict::Warning => '!',
            Verdict::Bad => '✗',
        };
        let remedy = if self.remedy.is_empty() { String::new() } else { format!("    {}\n", self.remedy) };
        format!("{mark} {}\n{remedy}", self.what)
    }
}

#[cfg(not(feature = "kubernetes"))]
pub(crate) fn main(_: &CheckArgs) -> anyhow::Result<ExitCode> {
    Err(crate::install::no_client("look with kubectl: kubectl -n weft-system get all"))
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
    use super::{CheckArgs, ExitCode, Finding, Verdict, after, before};
    use crate::install::apply::say;
    use crate::install::cluster::{self, Cluster};
    use crate::install::settings::Settings;
    use crate::output::{Format, print};

    pub(crate) fn main(args: &CheckArgs) -> anyhow::Result<ExitCode> {
        let findings = cluster::run(async {
            let cluster = Cluster::connect(args.context.as_deref()).await?;
            if args.pre { before(&cluster, &Settings::default()).await } else { after::after(&cluster).await }
        })?;
        let text = match args.output {
            Format::Text => findings.iter().map(Finding::shown).collect::<String>(),
            Format::Json => format!("{}\n", serde_json::to_string_pretty(&findings)?),
        };
        print(&text)?;
        let bad = findings.iter().any(|finding| finding.verdict == Verdict::Bad);
        Ok(if bad { ExitCode::FAILURE } else { ExitCode::SUCCESS })
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
        assert_eq!(Finding::good("all is well").shown(), "✓ all is well\n");
        assert_eq!(Finding::bad("it burns", "put it out").shown(), "✗ it burns\n    put it out\n");
        let json = serde_json::to_value([Finding::warning("smoke", "look"), Finding::good("air")]).expect("plain JSON");
        assert_eq!(json[0], serde_json::json!({"verdict": "warning", "what": "smoke", "remedy": "look"}));
        assert_eq!(json[1].get("remedy"), None);
    }
}
