//! A replica's redirect and sidecar, as the replica's process starts them. It stands in the replica's private directory, so
//! that every path here is short and can be reached whatever the sidecar's user may enter.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use weft_core::wellknown::{PORT_CONTROL_PLANE, PORT_DNS, SIDECAR_MARK, SIDECAR_UID};

use super::lines::{self, LastWords};
use super::protocol::{Failure, ReplicaSpec, Report};
use super::tools;
use crate::console::Source;
use crate::http;
use crate::plan::{GATEWAY, GATEWAY6};
use crate::wire::Mailbox;

/// In the replica's private directory.
pub(super) const STATE: &str = "state";
/// See [`STATE`].
pub(super) const TOKEN: &str = "token";
const SOCKET: &str = "admin.sock";
/// In the replica's private directory: what the workload sees of the sidecar.
pub(crate) const WORKLOAD_API: &str = "workload-api";
/// In there.
pub(crate) const WORKLOAD_SOCKET: &str = "socket";

/// How long a sidecar may take to get its certificate and its first policy.
const START: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(20);
const ASK: Duration = Duration::from_secs(1);
const DOING: &str = "the sidecar could not be started";

/// Puts the packet rules in place. What goes to the control plane and its DNS server is let by.
pub(super) async fn redirect(spec: &ReplicaSpec) -> Result<(), Failure> {
    let skip = format!("--skip-subnets={GATEWAY}/32,{GATEWAY6}/128");
    let mark = format!("--exempt-mark={SIDECAR_MARK}");
    let mut args = vec!["apply", skip.as_str()];
    if spec.rootless {
        args.push(&mark);
    }
    let dns = format!("--dns-port={PORT_DNS}");
    if spec.dns_capture {
        args.push(&dns);
    }
    tools::run(&spec.programs.redirect, &args, "")
        .await
        .map(drop)
        .map_err(|why| Failure::new("the redirect could not be applied", why))
}

/// A sidecar that runs.
pub(super) struct Sidecar {
    child: Child,
    last: LastWords,
}

impl Sidecar {
    /// Starts it; what it logs is reported.
    pub(super) fn start(spec: &ReplicaSpec, reports: &Mailbox<Report>, logs: &mut JoinSet<()>) -> Result<Self, Failure> {
        let ips: Vec<String> = spec.addresses().iter().map(ToString::to_string).collect();
        let program = &spec.programs.sidecar;
        // As root it becomes a user who may not be able to get to the file; through a descriptor the way does not matter.
        let opened = if spec.rootless || is_for_everyone(program) { None } else { Some(File::open(program)) };
        let opened = opened.transpose().map_err(|e| Failure::new(DOING, format!("{}: {e}", program.display())))?;
        let path =
            opened.as_ref().map_or_else(|| program.clone(), |file| PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd())));

        let mut command = Command::new(path);
        command
            .arg0("weft-sidecar")
            .arg(format!("--control-plane={GATEWAY}:{PORT_CONTROL_PLANE}"))
            .arg(format!("--identity={}/{}", spec.namespace, spec.service_account))
            .arg(format!("--pod-ips={}", ips.join(",")))
            .args(["--admin-socket", SOCKET, "--state", STATE, "--join-token-file", TOKEN])
            // When it ends, everything does.
            .args(["--drain-grace=100ms", "--drain-timeout=1s"])
            .envs(&spec.telemetry)
            .env("NO_COLOR", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        if let Some(callers) = &spec.workload_api {
            command
                .arg(format!("--workload-api={WORKLOAD_API}/{WORKLOAD_SOCKET}"))
                .arg(format!("--workload-api-callers={callers}"));
        }
        if spec.dns_capture {
            command.arg(format!("--dns-port={PORT_DNS}"));
        }
        if spec.rootless {
            command.arg(format!("--mark={SIDECAR_MARK}"));
        } else {
            command.uid(SIDECAR_UID).gid(SIDECAR_UID);
        }
        let mut child = command.spawn().map_err(|e| Failure::new(DOING, format!("{}: {e}", program.display())))?;

        let last = LastWords::default();
        if let Some(stdout) = child.stdout.take() {
            logs.spawn(lines::forward(stdout, Source::Sidecar, reports.clone(), last.clone()));
        }
        if let Some(stderr) = child.stderr.take() {
            logs.spawn(lines::forward(stderr, Source::Sidecar, reports.clone(), last.clone()));
        }
        Ok(Self { child, last })
    }

    /// Waits until it is ready for the first time.
    pub(super) async fn ready(&mut self) -> Result<(), Failure> {
        let mut why = String::new();
        let outcome = tokio::select! {
            biased;
            status = self.child.wait() => Err(status),
            ready = timeout(START, until_ready(&mut why)) => Ok(ready),
        };
        match outcome {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(Failure::new(DOING, format!("it is not ready after {} s: {why}", START.as_secs()))
                .remedy("see what it logs: --sidecar-logs")),
            Err(status) => {
                // Its last words may still be on their way.
                sleep(POLL).await;
                let said = self.last.get().map_or_else(String::new, |line| format!(": {line}"));
                Err(Failure::new(DOING, format!("it {}{said}", ended(status))))
            }
        }
    }

    /// Waits for its end, and says how it came and what it said last. Cancel-safe.
    pub(super) async fn ended(&mut self) -> (String, Option<String>) {
        let status = ended(self.child.wait().await);
        (status, self.last.get())
    }

    /// Asks it to end, and leaves it no choice after `grace`.
    pub(super) async fn stop(&mut self, grace: Duration) {
        if let Some(pid) = self.child.id() {
            let _ = kill(Pid::from_raw(pid.cast_signed()), Signal::SIGTERM);
        }
        if timeout(grace, self.child.wait()).await.is_err() {
            let _ = self.child.kill().await;
        }
    }
}

fn ended(status: std::io::Result<ExitStatus>) -> String {
    match status {
        Ok(status) => format!("ended ({status})"),
        Err(error) => format!("cannot be waited for ({error})"),
    }
}

/// Waits until the sidecar in this directory says that it is ready; `why` is what it waits for. Cancel-safe.
pub(super) async fn until_ready(why: &mut String) {
    loop {
        *why = match timeout(ASK, ask()).await {
            Ok(Ok((200, _))) => return,
            Ok(Ok((status, said))) => format!("it says {status} {said}"),
            Ok(Err(error)) => format!("its admin socket does not answer: {error}"),
            Err(_) => "its admin socket does not answer".to_owned(),
        };
        sleep(POLL).await;
    }
}

async fn ask() -> std::io::Result<(u16, String)> {
    http::get(UnixStream::connect(SOCKET).await?, "sidecar", "/ready").await
}

/// Whether every user can get to a program and run it.
fn is_for_everyone(program: &Path) -> bool {
    let mode = |path: &Path| path.metadata().map_or(0, |m| m.permissions().mode());
    mode(program) & 0o005 == 0o005 && program.ancestors().skip(1).all(|dir| mode(dir) & 0o001 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_behind_a_closed_door_is_not_for_everyone() {
        assert!(is_for_everyone(Path::new("/bin/sh")));
        let closed = tempfile::tempdir().expect("a directory");
        let program = closed.path().join("x");
        std::fs::write(&program, "").expect("written");
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).expect("changed");
        std::fs::set_permissions(closed.path(), std::fs::Permissions::from_mode(0o700)).expect("changed");
        assert!(!is_for_everyone(&program));
    }
}
