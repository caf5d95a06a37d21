//! `mesh.yaml`: what `weft up` runs. It is read once, here; what comes out is valid, with every default filled in.

use std::collections::BTreeMap;
use std::fmt;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use weft_core::authorization::Posture;
use weft_core::egress::EgressDefault;
use weft_core::policy::MtlsMode;
use weft_core::{Name, Namespace, ServiceAccount};

mod check;
mod raw;

/// The largest file that is read, in bytes.
pub(crate) const MAX_FILE: u64 = 1 << 20;
/// Replicas of one workload.
pub(crate) const MAX_REPLICAS: u16 = 200;
/// Replicas of all workloads: a bridge of the kernel has 1,023 ports.
pub(crate) const MAX_TOTAL: usize = 1000;

/// Labels, selectors and environment variables.
pub(crate) type Pairs = BTreeMap<String, String>;

/// A whole file.
#[derive(Debug)]
pub(crate) struct Mesh {
    pub(crate) name: String,
    pub(crate) mtls: MtlsMode,
    /// Who may call a workload where nothing else says so.
    pub(crate) default_policy: Posture,
    /// What becomes of destinations outside of the mesh that nothing names.
    pub(crate) egress: EgressDefault,
    /// Sidecars answer the questions that workloads ask of DNS.
    pub(crate) dns_capture: bool,
    /// Variables that every sidecar is started with: the standard `OTEL_*` ones, and those of its access log.
    pub(crate) telemetry: Pairs,
    /// Every namespace that something is in.
    pub(crate) namespaces: BTreeMap<Namespace, NamespaceDefaults>,
    pub(crate) workloads: Vec<Workload>,
    pub(crate) services: Vec<Service>,
    /// Files, directories and patterns with `*` in their last part; absolute.
    pub(crate) manifests: Vec<PathBuf>,
}

/// What a namespace has otherwise than the mesh.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct NamespaceDefaults {
    pub(crate) mtls: Option<MtlsMode>,
    pub(crate) default_policy: Option<Posture>,
    pub(crate) egress: Option<EgressDefault>,
}

/// A program, and how often and as whom it runs.
#[derive(Debug)]
pub(crate) struct Workload {
    pub(crate) namespace: Namespace,
    pub(crate) name: Name,
    pub(crate) service_account: ServiceAccount,
    pub(crate) replicas: u16,
    /// Never empty.
    pub(crate) command: Vec<String>,
    /// Absolute; without one it runs where the file is, if its user may enter that, else in `/`.
    pub(crate) workdir: Option<PathBuf>,
    pub(crate) env: Pairs,
    pub(crate) ports: Vec<Port>,
    pub(crate) labels: Pairs,
    pub(crate) mtls: Option<MtlsMode>,
    /// Whether it is in the mesh; without a sidecar it speaks and is spoken to in plaintext.
    pub(crate) sidecar: bool,
    /// Whether it is offered the SPIFFE Workload API.
    pub(crate) workload_api: bool,
    /// What taps may be shown of its requests (`WEFT_TAP`).
    pub(crate) tap: Option<String>,
    pub(crate) health: Health,
    pub(crate) restart: Restart,
    /// Only as root.
    pub(crate) user: Option<String>,
}

/// A port that a workload listens on.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Port {
    pub(crate) name: Option<String>,
    pub(crate) port: u16,
    pub(crate) protocol: Option<String>,
}

/// How a workload is found to be able to serve.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Health {
    pub(crate) probe: Probe,
    pub(crate) interval: Duration,
    pub(crate) timeout: Duration,
}

/// What is asked of a workload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Probe {
    /// That it runs.
    Started,
    /// That it accepts a connection.
    Tcp(u16),
    /// That it answers a GET with a status from 200 to 399.
    Http { port: u16, path: String },
    /// That a command in its place ends with status 0.
    Command(Vec<String>),
}

/// What happens when a workload ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Restart {
    Always,
    Never,
}

/// A name, and an address unless it is headless, for the workloads that it selects.
#[derive(Debug)]
pub(crate) struct Service {
    pub(crate) namespace: Namespace,
    pub(crate) name: Name,
    pub(crate) selector: Pairs,
    pub(crate) ports: Vec<ServicePort>,
    pub(crate) headless: bool,
    /// None is given the next free one.
    pub(crate) address: Option<Ipv4Addr>,
}

/// A port of a service.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ServicePort {
    pub(crate) name: Option<String>,
    pub(crate) port: u16,
    pub(crate) target: TargetPort,
    pub(crate) protocol: Option<String>,
}

/// A workload's port, by number or by its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum TargetPort {
    Number(u16),
    Name(String),
}

/// Something in the file that cannot be meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Problem {
    /// File and line.
    pub(crate) place: String,
    /// The field, as a path; empty where no single one is at fault.
    pub(crate) field: String,
    pub(crate) message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.place)?;
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        f.write_str(&self.message)
    }
}

/// Whether a file is meant as a mesh's, and not as manifests: it has something of a mesh, and no `apiVersion`.
pub(crate) fn is_one(text: &str) -> bool {
    let has = |key: &str| text.lines().any(|line| line.strip_prefix(key).is_some_and(|rest| rest.starts_with(':')));
    !has("apiVersion") && (has("workloads") || has("services"))
}

impl Mesh {
    /// Reads a file's text. `shown` is the name that problems carry; paths in the file are relative to `dir`, which is
    /// absolute. Text that is not of this shape gives the first problem, text that is gives every one.
    pub(crate) fn read(shown: &str, dir: &Path, text: &str) -> Result<Self, Vec<Problem>> {
        let raw = raw::parse(shown, text).map_err(|problem| vec![problem])?;
        check::check(shown, dir, raw)
    }
}

impl Service {
    pub(crate) fn selects(&self, workload: &Workload) -> bool {
        self.namespace == workload.namespace
            && !self.selector.is_empty()
            && self.selector.iter().all(|(key, value)| workload.labels.get(key) == Some(value))
    }
}

impl Workload {
    /// The name of replica `ordinal`, which is also its host name.
    pub(crate) fn pod(&self, ordinal: u16) -> String {
        format!("{}-{ordinal}", self.name)
    }
}

#[cfg(test)]
mod tests;
