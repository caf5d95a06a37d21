//! What a test learns of a world: addresses, what sidecars know and have counted, and their processes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::Path;
use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::World;
use crate::{PATIENCE, POLL, admin, eventually, process};

impl World {
    /// The address of a replica, `NAMESPACE/REPLICA`.
    #[track_caller]
    pub fn address(&self, replica: &str) -> String {
        self.known("workloads", "replica", replica)
    }

    /// The address of a service, `NAMESPACE/NAME`.
    #[track_caller]
    pub fn service(&self, service: &str) -> String {
        self.known("services", "name", service)
    }

    #[track_caller]
    fn known(&self, list: &str, field: &str, id: &str) -> String {
        let (namespace, name) = id.split_once('/').expect("written as NAMESPACE/NAME");
        let found = self.summary[list].as_array().into_iter().flatten().find(|e| e["namespace"] == namespace && e[field] == name);
        match found.and_then(|entry| entry["address"].as_str()) {
            Some(address) => address.to_owned(),
            None => panic!("{id} has no address among the {list}: {}", self.summary),
        }
    }

    /// What a replica's sidecar has counted, by who talked to whom and how.
    #[track_caller]
    pub fn edges(&self, replica: &str) -> Vec<Value> {
        match self.admin(replica, "/edges") {
            Value::Array(edges) => edges,
            other => panic!("edges are a list, and not {other}"),
        }
    }

    /// The edge with these fields, as soon as there is one.
    #[track_caller]
    pub fn edge(&self, replica: &str, fields: &[(&str, &str)]) -> Value {
        let mut seen = Vec::new();
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end {
            seen = self.edges(replica);
            if let Some(edge) = seen.iter().find(|edge| fields.iter().all(|(name, value)| edge[*name] == *value)) {
                return edge.clone();
            }
            std::thread::sleep(POLL);
        }
        panic!("{replica} has no edge with {fields:?}: {seen:#?}")
    }

    /// The edge with these fields, and that it is mutual TLS 1.3 with the identity `peer`, by a hybrid key exchange.
    #[track_caller]
    pub fn mutual_tls_edge(&self, replica: &str, peer: &str, fields: &[(&str, &str)]) -> Value {
        let fields: Vec<(&str, &str)> = fields.iter().copied().chain([("peer", peer)]).collect();
        let edge = self.edge(replica, &fields);
        assert_eq!(edge["key_exchange"], "X25519MLKEM768", "{edge:#}");
        assert!(edge["cipher"].as_str().is_some_and(|cipher| cipher.starts_with("TLS13_")), "{edge:#}");
        edge
    }

    /// What a replica's sidecar knows.
    #[track_caller]
    pub fn config(&self, replica: &str) -> Value {
        self.admin(replica, "/config")
    }

    #[track_caller]
    fn admin(&self, replica: &str, path: &str) -> Value {
        let body = match self.ask(self.sidecar(replica), "GET", path) {
            Ok((200, body)) => body,
            Ok((status, body)) => panic!("{path} of {replica}: {status} {body}"),
            Err(error) => panic!("the sidecar of {replica} cannot be asked for {path}: {error}"),
        };
        match serde_json::from_str(&body) {
            Ok(value) => value,
            Err(error) => panic!("{path} of {replica} is not JSON ({error}): {body}"),
        }
    }

    /// Asks a sidecar on its own socket, which only the lab can see: the sidecar stands in the directory where it lies.
    pub fn ask(&self, sidecar: Pid, method: &str, path: &str) -> io::Result<(u16, String)> {
        admin::ask(Path::new(&format!("/proc/{sidecar}/cwd/admin.sock")), method, path)
    }

    /// Resident memory of a replica's sidecar, in KiB.
    #[track_caller]
    pub fn memory(&self, replica: &str) -> u64 {
        process::memory(self.sidecar(replica), "VmRSS")
    }

    /// The process of a replica's sidecar.
    #[track_caller]
    pub fn sidecar(&self, replica: &str) -> Pid {
        match self.find_sidecar(replica) {
            Some(pid) => pid,
            None => panic!("{replica} has no sidecar that runs"),
        }
    }

    /// The process of the sidecar that a replica got after this one, once it is ready.
    #[track_caller]
    pub fn next_sidecar(&self, replica: &str, before: Pid) -> Pid {
        eventually(&format!("another sidecar of {replica} is ready"), || {
            let next = self.find_sidecar(replica).filter(|pid| *pid != before)?;
            matches!(self.ask(next, "GET", "/ready"), Ok((200, _))).then_some(next)
        })
    }

    #[track_caller]
    fn find_sidecar(&self, replica: &str) -> Option<Pid> {
        let address = self.address(replica);
        let ours = |pid: &Pid| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let ips = line.split(|byte| *byte == 0).find_map(|word| word.strip_prefix(b"--pod-ips="));
            ips.is_some_and(|ips| ips.split(|byte| *byte == b',').any(|ip| ip == address.as_bytes()))
        };
        self.pids("weft-sidecar").into_iter().find(ours)
    }

    /// Whether a process of this world still runs.
    pub fn runs(&self, pid: Pid) -> bool {
        Path::new(&format!("/proc/{pid}")).exists()
    }

    /// The process of the control plane.
    #[track_caller]
    pub fn control_plane(&self) -> Pid {
        eventually("the control plane runs", || self.pids("weft-control-plane").first().copied())
    }

    /// Sends a signal to a process of this world.
    #[track_caller]
    pub fn signal(&self, pid: Pid, signal: Signal) {
        kill(pid, signal).expect("a process of our own can be signalled");
    }

    /// Processes below `weft up` by the name that the kernel has for them, which has at most 15 characters (`proc_pid_stat(5)`).
    fn pids(&self, name: &str) -> Vec<Pid> {
        let (mut names, mut children) = (BTreeMap::new(), BTreeMap::<i32, Vec<i32>>::new());
        let entries = fs::read_dir("/proc").expect("/proc is there").flatten();
        for pid in entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok()) {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            let Some((head, rest)) = stat.rsplit_once(')') else { continue };
            let Some(parent) = rest.split_whitespace().nth(1).and_then(|parent| parent.parse().ok()) else { continue };
            let called = head.split_once('(').map_or("", |(_, called)| called);
            names.insert(pid, called.to_owned());
            children.entry(parent).or_default().push(pid);
        }
        let (mut found, mut next) = (BTreeSet::new(), vec![self.up.id().cast_signed()]);
        while let Some(pid) = next.pop() {
            if found.insert(pid) {
                next.extend(children.get(&pid).into_iter().flatten());
            }
        }
        let short: String = name.chars().take(15).collect();
        found.into_iter().filter(|pid| names.get(pid) == Some(&short)).map(Pid::from_raw).collect()
    }
}
