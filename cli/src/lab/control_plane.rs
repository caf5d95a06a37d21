//! The control plane of the lab, and the operator API on it.

use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};
use weft_core::wellknown::PORT_CONTROL_PLANE;
use zeroize::Zeroizing;

use super::lines::{self, Splitter};
use super::protocol::Failure;
use super::{Lab, Tasks};
use crate::console::Console;
use crate::operator::Operator;
use crate::plan::{GATEWAY, MESH_RANGES};
use crate::rundir;

/// How long it may take to serve.
const START: Duration = Duration::from_secs(15);
const POLL: Duration = Duration::from_millis(10);
/// Where it died, before it is started again.
const PAUSE: Duration = Duration::from_secs(1);
/// How long a join token may be used: a sidecar that starts uses it at once.
const TOKEN_LIFE: Duration = Duration::from_secs(300);
const DOING: &str = "the control plane could not be started";

/// Starts it, waits until it serves, and keeps it running.
pub(super) async fn start(lab: &Arc<Lab>, helpers: &mut Tasks) -> Result<(), Failure> {
    let mut child = spawn(lab)?;
    let mut last = String::new();
    let serving = tokio::select! {
        biased;
        ended = ended(&mut child, lab, &mut last) => {
            let why = if last.is_empty() { ended } else { format!("{ended}: {last}") };
            return Err(Failure::new(DOING, why));
        }
        serving = timeout(START, serving(lab)) => serving,
    };
    if serving.is_err() {
        return Err(Failure::new(DOING, format!("it does not serve after {} s", START.as_secs()))
            .remedy("see what it logs: --sidecar-logs"));
    }
    helpers.spawn(keep(lab.clone(), child));
    Ok(())
}

fn spawn(lab: &Lab) -> Result<Child, Failure> {
    Command::new(&lab.spec.programs.control_plane)
        .arg("--dir")
        .arg(lab.manifests.path())
        .arg("--state")
        .arg(lab.spec.run.join(rundir::STATE))
        .arg(format!("--listen={GATEWAY}:{PORT_CONTROL_PLANE}"))
        .arg(format!("--dns={GATEWAY}:53"))
        .arg(format!("--mesh-ranges={MESH_RANGES}"))
        .arg(format!("--mtls={}", lab.mesh.mtls))
        .arg(format!("--default-policy={}", lab.mesh.default_policy))
        .arg(format!("--egress={}", lab.mesh.egress))
        .env("NO_COLOR", "1")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|e| Failure::new(DOING, format!("{}: {e}", lab.spec.programs.control_plane.display())))
}

async fn serving(lab: &Lab) {
    let socket = lab.spec.run.join(rundir::OPERATOR_SOCKET);
    while Operator::connect(&socket).await.is_err() {
        sleep(POLL).await;
    }
}

/// Passes on what it logs until it ends, and says how it ended; `last` is what it said last.
async fn ended(child: &mut Child, lab: &Lab, last: &mut String) -> String {
    if let Some(stderr) = &mut child.stderr {
        let mut lines = Splitter::default();
        let mut buffer = vec![0; 4096];
        while let Ok(n @ 1..) = stderr.read(&mut buffer).await {
            for line in lines.feed(&buffer[..n]) {
                pass_on(&lab.console, lab.spec.sidecar_logs, &line).await;
                *last = line;
            }
        }
    }
    match child.wait().await {
        Ok(status) => format!("it ended ({status})"),
        Err(error) => format!("it cannot be waited for: {error}"),
    }
}

async fn pass_on(console: &Console, everything: bool, line: &str) {
    if everything {
        console.say(crate::console::Event::Note { message: format!("control plane | {line}") }).await;
    } else if lines::is_alarming(line) {
        console.warn(format!("the control plane says: {line}")).await;
    }
}

/// A mesh outlives its control plane: sidecars go on with what they know, and meet the next one with the same keys.
async fn keep(lab: Arc<Lab>, mut child: Child) -> anyhow::Result<()> {
    loop {
        let started = Instant::now();
        let why = ended(&mut child, &lab, &mut String::new()).await;
        lab.console.warn(format!("the control plane is gone: {why}; it is started again")).await;
        if started.elapsed() < PAUSE {
            sleep(PAUSE).await;
        }
        child = spawn(&lab)?;
    }
}

/// A join token for one replica. A control plane that has just been started again is waited for.
pub(super) async fn token(lab: &Lab, index: usize) -> anyhow::Result<Zeroizing<String>> {
    let replica = &lab.replicas[index];
    let socket = lab.spec.run.join(rundir::OPERATOR_SOCKET);
    let deadline = Instant::now() + START;
    loop {
        match Operator::connect(&socket).await {
            Ok(mut operator) => {
                return operator.create_token(&replica.namespace, &replica.pod, &replica.service_account, TOKEN_LIFE).await;
            }
            Err(error) if Instant::now() >= deadline => return Err(error),
            Err(_) => sleep(POLL).await,
        }
    }
}
