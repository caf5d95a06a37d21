//! A real cluster, driven as people drive it: by `kubectl` and `weft`.
//!
//! Which one it is, the environment says: `tests/cluster/with` sets `KUBECONFIG`, and `WEFT_CLUSTER` to `own` for the cluster of
//! `tests/cluster/`, whose node can be entered, or to `other`.

mod installed;
mod inventory;
mod namespace;
mod wire;

use std::env;
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::NamedTempFile;

use crate::{Output, Running, programs};

pub use installed::{CNI, CONTROL_PLANE, HOME, INJECTOR, Installed};
pub use inventory::Inventory;
pub use namespace::Namespace;
pub use wire::Capture;

/// weft's image, which is on the nodes.
pub const IMAGE: [&str; 4] = ["--image", "weft.local/weft:dev", "--image-pull-policy", "Never"];

/// How long one command may take.
const COMMAND: Duration = Duration::from_secs(240);
/// How long something may take that is bound to happen.
const LIMIT: Duration = Duration::from_secs(120);
/// A command takes a tenth of a second anyway.
const POLL: Duration = Duration::from_millis(200);

/// The cluster.
#[derive(Debug)]
pub struct Cluster {
    own: bool,
    version: String,
}

impl Cluster {
    /// The cluster that `KUBECONFIG` names.
    ///
    /// # Panics
    ///
    /// Where it names none, or that one does not answer: a test that cannot run has failed.
    #[track_caller]
    pub fn connect() -> Self {
        let named = env::var_os("KUBECONFIG").is_some_and(|path| !path.is_empty());
        assert!(named, "KUBECONFIG names no cluster: run `make cluster-test`, with KUBECONFIG for a cluster of your own");
        let own = env::var("WEFT_CLUSTER").is_ok_and(|which| which == "own");
        let told = kubectl(&["get", "--raw", "/version"]).json();
        let part = |key: &str| told[key].as_str().expect("a server tells its version");
        Self { own, version: format!("{}.{}", part("major"), part("minor").trim_end_matches('+')) }
    }

    /// Runs a shell's line on the node, and gives what it prints; None on another cluster than our own, whose nodes cannot be
    /// entered.
    #[track_caller]
    pub fn on_node(&self, line: &str) -> Option<String> {
        if !self.own {
            return None;
        }
        let mut command = Command::new(programs::peers().with_file_name("cluster").join("enter"));
        command.args(["sh", "-c", line]);
        Some(Running::start(command).wait(COMMAND).good())
    }

    /// Applies manifests, piped as a user pipes them; to a namespace, where they name none.
    #[track_caller]
    pub fn apply(&self, namespace: Option<&str>, manifests: &str) {
        let mut words = vec!["apply", "-f", "-"];
        words.extend(namespace.map(|name| ["-n", name]).into_iter().flatten());
        if self.own {
            // Its schema is older than what it is sent.
            words.push("--validate=false");
        }
        feed(manifests.as_bytes(), &words).good();
    }
}

/// Runs `kubectl`.
#[track_caller]
pub fn kubectl(words: &[&str]) -> Output {
    spawn(words).wait(COMMAND)
}

/// Starts `kubectl`.
#[track_caller]
pub fn spawn(words: &[&str]) -> Running {
    let mut command = Command::new("kubectl");
    command.args(words);
    Running::start(command)
}

/// Runs `kubectl` with something on its standard input.
#[track_caller]
pub fn feed(input: &[u8], words: &[&str]) -> Output {
    let mut file = NamedTempFile::new().expect("a temporary file");
    file.write_all(input).expect("a temporary file takes it");
    let mut command = Command::new("sh");
    command.args(["-c", r#"exec kubectl "$@" < "$0""#]).arg(file.path()).args(words);
    Running::start(command).wait(COMMAND)
}

/// Runs `kubectl`, and gives what it prints.
///
/// # Panics
///
/// If it does not end well.
#[track_caller]
pub fn must(words: &[&str]) -> String {
    let output = kubectl(words);
    assert!(output.status.success(), "kubectl {}: {}\n{}{}", words.join(" "), output.status, output.stdout, output.stderr);
    output.stdout
}

/// Runs `weft`, as built beside the tests.
#[track_caller]
pub fn weft(words: &[&str]) -> Output {
    Running::start(weft_command(words)).wait(COMMAND)
}

/// What tells weft which cluster is meant.
pub fn context() -> String {
    format!("--context={}", must(&["config", "current-context"]).trim())
}

/// The same as [`weft`], not started yet.
pub fn weft_command(words: &[&str]) -> Command {
    let mut command = Command::new(programs::weft("weft"));
    programs::without_settings(&mut command);
    command.args(words).env("NO_COLOR", "1");
    command
}

/// Asks until there is an answer; until then, it is said why not.
///
/// # Panics
///
/// If there is none in time; `what` says what was waited for.
#[track_caller]
pub fn soon<T>(what: &str, mut ask: impl FnMut() -> Result<T, String>) -> T {
    let end = Instant::now() + LIMIT;
    loop {
        match ask() {
            Ok(answer) => return answer,
            Err(why) => assert!(Instant::now() < end, "within {LIMIT:?} it did not happen that {what}: {why}"),
        }
        std::thread::sleep(POLL);
    }
}

/// For [`soon`]: whether something is as it should be.
pub fn when(is_so: bool, why_not: impl FnOnce() -> String) -> Result<(), String> {
    if is_so { Ok(()) } else { Err(why_not()) }
}

/// Whether a pod is ready, as the kubelet sees it.
pub fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array();
    conditions.into_iter().flatten().any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
}

/// Runs `kubectl` where nothing may panic, since a test has already; says what goes wrong.
fn quietly(words: &[&str]) -> String {
    let outcome = Command::new("timeout").args(["180", "kubectl"]).args(words).stdin(Stdio::null()).output();
    match outcome {
        Ok(output) => {
            if !output.status.success() {
                eprintln!("kubectl {}: {}: {}", words.join(" "), output.status, String::from_utf8_lossy(&output.stderr));
            }
            String::from_utf8_lossy(&output.stdout).into_owned()
        }
        Err(error) => {
            eprintln!("kubectl cannot be run: {error}");
            String::new()
        }
    }
}
