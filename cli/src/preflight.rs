//! What a mesh needs of the machine, asked before anything is started; every lack at once, and what to do about it.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};

use clap::Args;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};

use crate::mesh_file::Mesh;
use crate::plan::Plan;
use crate::{init, rundir, userns};

/// Programs that the lab starts.
#[derive(Serialize, Deserialize, Debug, Clone)]
pub(crate) struct Programs {
    pub(crate) ip: PathBuf,
    pub(crate) control_plane: PathBuf,
    pub(crate) sidecar: PathBuf,
    pub(crate) redirect: PathBuf,
}

/// Besides `PATH`, which an ordinary user's shell often keeps free of them.
const ADMIN_DIRECTORIES: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];
/// `sun_path` of `unix(7)`, less the zero at its end.
const MAX_SOCKET_PATH: usize = 107;
/// File descriptors that the lab has open whatever it runs, and for each replica.
const BASE_FILES: u64 = 128;
const FILES_PER_REPLICA: u64 = 8;

/// Checks everything, or says everything that is lacking.
pub(crate) fn check(mesh: &Mesh, plan: &Plan, rootless: bool, run: &Path) -> Result<Programs, Vec<String>> {
    let mut lacking = Vec::new();
    let ip = tool("ip").unwrap_or_else(|| {
        lacking
            .push("the program `ip` is not installed: apt install iproute2 (or your system's package of that name)".to_owned());
        PathBuf::new()
    });
    if mesh.workloads.iter().any(|w| w.sidecar) && !["iptables-restore", "nft"].iter().any(|name| tool(name).is_some()) {
        lacking.push("neither `iptables-restore` nor `nft` is installed: apt install iptables".to_owned());
    }
    let mut sibling = |name: &str| {
        sibling(name).unwrap_or_else(|| {
            lacking.push(format!(
                "{name} is neither beside this program nor in PATH: put it beside it (cargo build --workspace makes both)"
            ));
            PathBuf::new()
        })
    };
    let (control_plane, sidecar, redirect) = (sibling("weft-control-plane"), sibling("weft-sidecar"), sibling("weft-redirect"));

    // The longest of them: those of the replicas are in directories that are numbered.
    let socket = run.join(rundir::OPERATOR_SOCKET);
    if socket.as_os_str().len() > MAX_SOCKET_PATH {
        lacking.push(format!(
            "{} is longer than {MAX_SOCKET_PATH} characters, the most that a Unix socket's path has: use a shorter --run-dir or `name:`",
            socket.display()
        ));
    }
    if let Err(error) = std::fs::metadata("/etc/resolv.conf") {
        lacking.push(format!(
            "/etc/resolv.conf cannot be read ({error}), and each workload gets one of its own in its place: as root, make it (touch)"
        ));
    }
    lacking.extend(files(plan.replicas.len() as u64));
    lacking.extend(namespaces(rootless, plan.replicas.len()));
    if lacking.is_empty() { Ok(Programs { ip, control_plane, sidecar, redirect }) } else { Err(lacking) }
}

/// A program of the system's.
pub(crate) fn tool(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let directories = std::env::split_paths(&path).chain(ADMIN_DIRECTORIES.into_iter().map(PathBuf::from));
    directories.map(|dir| dir.join(name)).find(|path| is_program(path))
}

/// A program of weft's.
pub(crate) fn sibling(name: &str) -> Option<PathBuf> {
    let beside = std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.join(name)));
    beside.filter(|path| is_program(path)).or_else(|| tool(name))
}

fn is_program(path: &Path) -> bool {
    path.is_absolute() && path.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
}

/// Raises the soft limit on open files as far as the mesh needs it.
fn files(replicas: u64) -> Option<String> {
    let need = BASE_FILES + FILES_PER_REPLICA * replicas;
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).ok()?;
    if soft >= need {
        return None;
    }
    if hard >= need && setrlimit(Resource::RLIMIT_NOFILE, need, hard).is_ok() {
        return None;
    }
    Some(format!("{replicas} replicas need {need} open files, and the limit is {hard}: raise it (ulimit -Hn {need}, as root)"))
}

fn namespaces(rootless: bool, replicas: usize) -> Vec<String> {
    let mut lacking = Vec::new();
    if rootless {
        let allowed: Option<usize> = number("/proc/sys/user/max_user_namespaces");
        let need = replicas + 16;
        if let Some(allowed) = allowed.filter(|allowed| (1..need).contains(allowed)) {
            lacking.push(format!(
                "{replicas} replicas need {need} user namespaces, and {allowed} are allowed: sysctl -w user.max_user_namespaces={need}, as root"
            ));
        }
    }
    let mut probe = init::this_program("__probe");
    if rootless {
        probe.arg("--rootless");
    }
    match probe.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).output() {
        Ok(output) if output.status.success() => {}
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr);
            let said = said.trim().trim_start_matches("weft: ");
            lacking.push(format!("{said}: {}", remedy(rootless)));
        }
        Err(error) => lacking.push(format!("this program cannot be started again ({error}): is /proc mounted?")),
    }
    lacking
}

/// The likeliest reason why namespaces are refused, by what the system says of itself.
fn remedy(rootless: bool) -> String {
    let is = |path: &str, value: u64| number::<u64>(path) == Some(value);
    let as_root = "or run weft as root";
    if !rootless {
        return "root in a container lacks the right: start the container with --privileged, or run weft outside of it"
            .to_owned();
    }
    if is("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", 1) {
        return format!(
            "AppArmor restricts user namespaces: sysctl -w kernel.apparmor_restrict_unprivileged_userns=0, {as_root}"
        );
    }
    if is("/proc/sys/kernel/unprivileged_userns_clone", 0) {
        return format!("user namespaces are for root alone: sysctl -w kernel.unprivileged_userns_clone=1, {as_root}");
    }
    if is("/proc/sys/user/max_user_namespaces", 0) {
        return format!("user namespaces are switched off: sysctl -w user.max_user_namespaces=16384, {as_root}");
    }
    if Path::new("/.dockerenv").exists() || Path::new("/run/.containerenv").exists() {
        return "in a container, start it with --privileged, or run weft outside of it".to_owned();
    }
    format!("the kernel or a security module does not let you have user namespaces, {as_root}")
}

fn number<T: std::str::FromStr>(path: &str) -> Option<T> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// `weft __probe`: goes where the lab would go, and says what is in the way.
#[derive(Args, Debug)]
pub(crate) struct ProbeArgs {
    /// Inside a user namespace
    #[arg(long)]
    rootless: bool,
}

pub(crate) fn probe(args: &ProbeArgs) -> anyhow::Result<ExitCode> {
    userns::enter_lab(args.rootless)?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_found_and_a_file_that_is_none_is_not() {
        assert!(tool("sh").is_some_and(|path| path.is_absolute()));
        assert!(tool("weft-no-such-program").is_none());
        assert!(!is_program(Path::new("/etc/passwd")));
    }
}
