//! `weft install`, `upgrade` and `uninstall`: the mesh on a Kubernetes cluster.
//!
//! Everything that is installed is rendered here, from the [`Settings`] and the version of Kubernetes, without asking
//! anyone; `apply` brings it to a cluster, and [`chart`] writes it as a Helm chart.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde_json::Value;

use crate::duration;
use crate::output::print;
use object::Part;
use settings::{Flags, Settings};
pub(crate) use version::KubeVersion;

pub(crate) mod access;
#[cfg(feature = "kubernetes")]
pub(crate) mod apply;
mod chart;
#[cfg(feature = "kubernetes")]
pub(crate) mod cluster;
mod cni;
pub(crate) mod crd;
mod deployment;
mod diff;
mod disruption;
pub(crate) mod kinds;
pub(crate) mod namespace;
mod network;
pub(crate) mod object;
mod quota;
pub(crate) mod ready;
pub(crate) mod service;
pub(crate) mod settings;
pub(crate) mod sidecars;
pub(crate) mod uninstall;
mod version;
pub(crate) mod webhook;
pub(crate) mod yaml;

/// This weft's version, which is also that of the programs that it installs.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// What `weft install` is told.
#[derive(Args, Debug)]
#[command(after_help = "\
Without --apply, the manifests are printed and nothing is changed.

Examples:
  weft install --apply
  weft install --cni true --apply
  weft install | kubectl apply --server-side -f -")]
pub(crate) struct InstallArgs {
    #[command(flatten)]
    flags: Flags,

    /// Print what this version of Kubernetes takes; with --apply the server itself is asked
    #[arg(long, value_name = "VERSION", conflicts_with = "apply", default_value_t = KubeVersion::CURRENT)]
    kube_version: KubeVersion,

    #[command(flatten)]
    target: Target,

    /// Write the Helm chart into a directory
    #[arg(long, value_name = "DIR", hide = true, conflicts_with = "apply")]
    helm_chart: Option<PathBuf>,
}

/// What `weft upgrade` is told.
#[derive(Args, Debug)]
#[command(
    after_help = "What no flag says stays as it was chosen before. Without --apply, the differences are shown and nothing is \
                  changed.\n\nExamples:\n  weft upgrade\n  weft upgrade --apply\n  weft upgrade --apply --replicas 3"
)]
#[cfg_attr(not(feature = "kubernetes"), allow(dead_code, reason = "only a client reads them"))]
pub(crate) struct UpgradeArgs {
    #[command(flatten)]
    flags: Flags,

    #[command(flatten)]
    target: Target,
}

/// Which cluster, and how.
#[derive(Args, Debug)]
#[cfg_attr(not(feature = "kubernetes"), allow(dead_code, reason = "only a client reads all of it"))]
pub(crate) struct Target {
    /// Do it, on the cluster of the kubeconfig, and wait until it is done
    #[arg(long)]
    pub(crate) apply: bool,

    /// Change nothing, as without --apply
    #[arg(long, conflicts_with = "apply")]
    dry_run: bool,

    #[arg(long, value_name = "NAME", help = "Context of the kubeconfig [default: its current one]")]
    pub(crate) context: Option<String>,

    /// How long to wait
    #[arg(long, value_name = "DURATION", default_value = "3m", value_parser = duration::parse)]
    pub(crate) timeout: Duration,

    /// Take over what somebody else has changed in weft's objects
    #[arg(long)]
    pub(crate) force: bool,
}

impl Target {
    pub(crate) fn applies(&self) -> bool {
        self.apply && !self.dry_run
    }
}

pub(crate) fn main(args: &InstallArgs) -> anyhow::Result<ExitCode> {
    let settings = Settings::default().with(&args.flags);
    if let Some(directory) = &args.helm_chart {
        chart::write(directory)?;
        return Ok(ExitCode::SUCCESS);
    }
    if args.target.applies() {
        return install(&settings, &args.target);
    }
    print(&yaml::documents(&objects(&settings, args.kube_version)))?;
    Ok(ExitCode::SUCCESS)
}

/// Objects that belong together: a file of the chart.
pub(crate) struct Section {
    pub(crate) name: &'static str,
    /// What a chart's values must say for the section to be there; the settings have been heeded.
    pub(crate) condition: Option<&'static str>,
    pub(crate) objects: Vec<Value>,
}

/// Everything that is installed, in the order in which it is applied.
pub(crate) fn render(settings: &Settings, kube: KubeVersion) -> Vec<Section> {
    let section = |name, objects| Section { name, condition: None, objects };
    let mut sections = vec![
        Section {
            name: "namespace",
            condition: Some(chart::CREATE_NAMESPACE_CONDITION),
            objects: vec![namespace::namespace(settings)],
        },
        section("quota", vec![quota::quota(settings)]),
        section(crd::SECTION, crd::definitions(kube)),
        section("access", access::objects(&Part::PROGRAMS, settings)),
        section("settings", vec![namespace::record(settings)]),
        section("services", service::services(settings)),
        section("network-policies", network::policies(settings)),
        section("disruption-budgets", disruption::budgets(settings, kube)),
    ];
    // On the nodes before the injector relies on it.
    if settings.has_cni_repair() {
        let condition = Some(chart::CNI_REPAIR_CONDITION);
        sections.push(Section { name: "cni-repair", condition, objects: access::repair_objects(settings) });
    }
    if settings.has_cni() {
        sections.push(Section { name: "cni", condition: Some(chart::CNI_CONDITION), objects: cni::objects(settings) });
    }
    sections.push(section("deployments", deployment::deployments(settings)));
    sections.push(section(webhook::SECTION, vec![webhook::configuration(settings, kube)]));
    sections
}

/// The same without its sections.
pub(crate) fn objects(settings: &Settings, kube: KubeVersion) -> Vec<Value> {
    render(settings, kube).into_iter().flat_map(|section| section.objects).collect()
}

#[cfg(feature = "kubernetes")]
fn install(settings: &Settings, target: &Target) -> anyhow::Result<ExitCode> {
    cluster::run(apply::install(settings, target))
}

#[cfg(feature = "kubernetes")]
pub(crate) fn upgrade(args: &UpgradeArgs) -> anyhow::Result<ExitCode> {
    cluster::run(apply::upgrade(&args.flags, &args.target))
}

#[cfg(not(feature = "kubernetes"))]
fn install(_: &Settings, _: &Target) -> anyhow::Result<ExitCode> {
    Err(no_client("pipe what `weft install` prints to `kubectl apply --server-side -f -`"))
}

#[cfg(not(feature = "kubernetes"))]
pub(crate) fn upgrade(_: &UpgradeArgs) -> anyhow::Result<ExitCode> {
    Err(no_client("pipe what `weft install` prints, with the flags of before, to `kubectl apply --server-side -f -`"))
}

/// What a build without the client says, and what else one can do.
#[cfg(not(feature = "kubernetes"))]
pub(crate) fn no_client(instead: &str) -> anyhow::Error {
    anyhow::anyhow!("this build has no Kubernetes client: build it with --features kubernetes, or {instead}")
}

#[cfg(test)]
mod tests;
