//! What the processes of a mesh tell each other: `weft up` → lab → replica → pod, and back.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::confine::{Identity, Place};
use crate::console::{Source, Style};
use crate::mesh_file::{Health, Pairs, Restart};
use crate::preflight::Programs;

/// Everything that the lab is told, by `weft up`. The file goes as text: whoever has it reads the same mesh out of it.
#[derive(Serialize, Deserialize, Debug)]
pub(crate) struct LabSpec {
    /// The file's name as the user wrote it, its directory, and what is in it.
    pub(crate) shown: String,
    pub(crate) dir: PathBuf,
    pub(crate) text: String,
    pub(crate) run: PathBuf,
    /// What workloads must not see.
    pub(crate) cover: PathBuf,
    pub(crate) programs: Programs,
    pub(crate) rootless: bool,
    /// By the order of the workloads.
    pub(crate) identities: Vec<Identity>,
    pub(crate) style: Style,
    pub(crate) sidecar_logs: bool,
}

/// Everything that a replica is told when it starts.
#[derive(Serialize, Deserialize, Debug, Clone)]
pub(crate) struct ReplicaSpec {
    pub(crate) namespace: String,
    pub(crate) pod: String,
    pub(crate) service_account: String,
    pub(crate) v4: Ipv4Addr,
    pub(crate) v6: Option<Ipv6Addr>,
    pub(crate) meshed: bool,
    pub(crate) rootless: bool,
    /// What the workload asks of DNS goes to the sidecar.
    pub(crate) dns_capture: bool,
    /// Variables of its sidecar.
    pub(crate) telemetry: Pairs,
    /// Its private directory.
    pub(crate) dir: PathBuf,
    pub(crate) programs: Programs,
    pub(crate) health: Health,
    /// Who is answered by the Workload API, as the sidecar takes it; none where it is not offered.
    pub(crate) workload_api: Option<String>,
    pub(crate) pod_spec: PodSpec,
}

impl ReplicaSpec {
    pub(crate) fn addresses(&self) -> Vec<IpAddr> {
        let mut list = vec![IpAddr::V4(self.v4)];
        list.extend(self.v6.map(IpAddr::V6));
        list
    }
}

/// Everything that the workload's side of a replica is told when it starts.
#[derive(Serialize, Deserialize, Debug, Clone)]
pub(crate) struct PodSpec {
    pub(crate) cover: PathBuf,
    /// A directory below `cover` that the workload sees all the same, by its name alone and as it stands.
    pub(crate) shown: Option<PathBuf>,
    pub(crate) place: Place,
    pub(crate) command: Vec<String>,
    pub(crate) restart: Restart,
    /// The command of a health check, and how long it may take.
    pub(crate) check: Option<(Vec<String>, Duration)>,
}

/// From the lab to a replica.
#[derive(Serialize, Deserialize, Debug)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Order {
    /// The first word: what to be.
    Begin(Box<ReplicaSpec>),
    /// One end of a cable is in the replica's network namespace, as `eth0`.
    Wired,
    /// A fresh join token lies in its place: start the sidecar again.
    StartSidecar,
    Stop,
}

/// From a replica to the lab.
#[derive(Serialize, Deserialize, Debug)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Report {
    /// Its namespaces are there: it waits for its cable.
    Namespaces,
    Log {
        source: Source,
        line: String,
    },
    SidecarReady,
    SidecarExited {
        status: String,
        /// Its last words, where it said any.
        why: Option<String>,
    },
    /// The workload's side is there; `pid` is its process 1, as the lab sees it.
    Pod {
        pid: i32,
    },
    Started,
    Exited {
        status: String,
        success: bool,
        restart_in_millis: Option<u64>,
    },
    Health {
        ready: bool,
        why: String,
    },
    Warning(String),
    /// The replica could not be started, and ends.
    Failed(Failure),
}

/// From a replica to its pod.
#[derive(Serialize, Deserialize, Debug)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum PodOrder {
    /// The first word: what to run.
    Begin(Box<PodSpec>),
    /// Run the health check's command once.
    Check,
    /// End the workload within this time.
    Stop { grace_millis: u64 },
}

/// From a pod to its replica.
#[derive(Serialize, Deserialize, Debug)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum PodReport {
    Pid {
        pid: i32,
    },
    Started,
    Exited {
        status: String,
        success: bool,
        restart_in_millis: Option<u64>,
    },
    /// The health check's command has ended; with what is wrong, or with nothing.
    Checked {
        wrong: Option<String>,
    },
    Warning(String),
    Failed(Failure),
}

/// Why something could not be started.
#[derive(Serialize, Deserialize, Debug, Clone)]
pub(crate) struct Failure {
    /// What was tried.
    pub(crate) doing: String,
    pub(crate) why: String,
    /// What to do, where that is known.
    pub(crate) remedy: Option<String>,
}

impl Failure {
    pub(crate) fn new(doing: impl Into<String>, why: impl fmt::Display) -> Self {
        Self { doing: doing.into(), why: why.to_string(), remedy: None }
    }

    pub(crate) fn remedy(self, remedy: impl Into<String>) -> Self {
        Self { remedy: Some(remedy.into()), ..self }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.doing, self.why)?;
        match &self.remedy {
            Some(remedy) => write!(f, ": {remedy}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Failure {}
