//! What goes from pod to pod, as the node's bridge sees it.

use std::fs;
use std::process::Command;

use tempfile::NamedTempFile;

use super::{Cluster, soon, when};
use crate::{Running, programs};

/// The bridge that all pods of the own cluster are on.
const BRIDGE: &str = "cni0";
/// What a capture begins with.
const HEADER: usize = 24;

/// A capture that runs as long as this lives.
#[derive(Debug)]
pub struct Capture {
    file: NamedTempFile,
    _process: Running,
}

impl Capture {
    /// Captures on the node's bridge; None on another cluster than our own, whose nodes cannot be entered.
    #[track_caller]
    pub fn start(cluster: &Cluster) -> Option<Self> {
        if !cluster.own {
            return None;
        }
        let file = NamedTempFile::new().expect("a temporary file");
        let mut command = Command::new(programs::peers().with_file_name("cluster").join("enter"));
        command.arg("--net").arg(programs::python()).arg(programs::peers().join("capture.py")).arg(BRIDGE).arg(file.path());
        let mut process = Running::start(command);
        soon("the capture begins", || {
            assert!(process.ended().is_none(), "the capture ended: {}", process.stderr());
            let length = fs::read(file.path()).map_or(0, |frames| frames.len());
            when(length >= HEADER, || format!("it has {length} bytes"))
        });
        Some(Self { file, _process: process })
    }

    /// Everything that it has seen so far.
    pub fn frames(&self) -> Vec<u8> {
        fs::read(self.file.path()).unwrap_or_default()
    }
}
