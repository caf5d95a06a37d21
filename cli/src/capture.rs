//! `weft capture`: the packets between a pod's program and its sidecar, which are not encrypted, by tcpdump.

use std::fs::{OpenOptions, Permissions};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use weft_control_plane::objects::{Object, PodObject};
use weft_core::wellknown::{PORT_OUTBOUND, SIDECAR_PORTS};

use crate::fleet::Fleet;
use crate::rundir::Which;
use crate::{check, duration, init, preflight};

/// What `weft capture` is told.
#[derive(Args, Debug)]
#[command(after_help = "\
It is captured on the loopback of the pod's network: what comes in stands there after the sidecar has decrypted it, at the program's port, and what the program calls before \
the sidecar has encrypted it, at the sidecar's port for what goes out. It ends after --for or --packets, whichever comes first. What is captured has everything that the \
program is told and says: treat it as a secret.

For a mesh on this machine. On a cluster, an ephemeral container does the same:
  kubectl debug -n NS POD -it --profile=netadmin --image=IMAGE-WITH-TCPDUMP -- tcpdump -i lo -w - port 8080

Examples:
  weft capture shop/web-0
  weft capture shop/web-0 --port 8080 --file web.pcap --for 30s
  weft capture shop/web-0 --packets 50 --file - | wireshark -k -i -")]
pub(crate) struct CaptureArgs {
    /// A workload (its first replica) or a replica, as NAMESPACE/NAME
    #[arg(value_name = "NS/POD")]
    pod: String,

    /// The program's port; several may be given [default: those where it listens]
    #[arg(long, value_name = "PORT")]
    port: Vec<u16>,

    /// For how long
    #[arg(long = "for", value_name = "DURATION", value_parser = duration::parse, default_value = "10s")]
    time: Duration,

    /// Packets at most
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    packets: u32,

    /// Write packets to a file (pcap), or with - to standard output; without it they are printed
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,

    #[command(flatten)]
    which: Which,
}

/// The longest capture.
const MOST: Duration = Duration::from_secs(3_600);

pub(crate) fn main(args: &CaptureArgs) -> anyhow::Result<ExitCode> {
    let tcpdump = preflight::tool("tcpdump")
        .context("the program tcpdump is not installed: apt install tcpdump (or your system's package of that name)")?;
    let timeout = preflight::tool("timeout").context("the program timeout is not installed: apt install coreutils")?;
    if args.time > MOST || args.time < Duration::from_secs(1) {
        bail!("--for is from 1s to 1h");
    }
    let run = args.which.find()?;
    if !nix::unistd::geteuid().is_root() {
        bail!("tcpdump gives up its rights in a way that a user namespace refuses: run weft up and weft capture as root (sudo)");
    }
    let mut ports = if args.port.is_empty() { listening(&Fleet::Run(run.clone()), &args.pod) } else { args.port.clone() };
    ports.push(PORT_OUTBOUND);
    ports.sort_unstable();
    ports.dedup();
    let filter: Vec<String> = ports.iter().map(|port| format!("port {port}")).collect();
    let mut command = init::this_program("__exec");
    // In the terminal's own process group, so that Ctrl-C reaches tcpdump. It ends by that signal in any case, and writes what it has.
    command.arg("--").arg(timeout).args(["--foreground", "--signal=INT", "--preserve-status", &args.time.as_secs().to_string()]);
    command.arg(tcpdump).args(["-i", "lo", "-n", "-U", "-Z", "root", "-c", &args.packets.to_string()]);
    match &args.file {
        Some(file) => {
            let mut place = file.clone();
            if file.as_os_str() != "-" {
                place = std::path::absolute(file)?;
                own(&place).with_context(|| format!("{} can't be written", file.display()))?;
            }
            command.arg("-w").arg(place);
        }
        None => {
            command.args(["-A", "-l"]);
        }
    }
    command.arg(filter.join(" or "));
    crate::complain(&format!("{}: {} for {} s or {} packets", args.pod, filter.join(" or "), args.time.as_secs(), args.packets));
    check::in_network(&run, &args.pod, &mut command)
}

/// An empty file that its owner alone may read; tcpdump leaves that so.
fn own(path: &Path) -> std::io::Result<()> {
    let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    // A pipe or a device stays what it is.
    if file.metadata()?.is_file() { file.set_permissions(Permissions::from_mode(0o600)) } else { Ok(()) }
}

/// Ports where the pod's program listens, as its sidecar sees it, or as its manifest says.
fn listening(fleet: &Fleet, pod: &str) -> Vec<u16> {
    let told = fleet.ask_one(pod, "GET", "/check").ok();
    let told: Option<serde_json::Value> = told.and_then(|text| serde_json::from_str(&text).ok());
    let ports: Vec<u16> = told
        .iter()
        .flat_map(|told| told["listening"].as_array().into_iter().flatten())
        .filter_map(|one| u16::try_from(one["port"].as_u64()?).ok())
        .filter(|port| !SIDECAR_PORTS.contains(port))
        .collect();
    if !ports.is_empty() {
        return ports;
    }
    let objects = fleet.objects().unwrap_or_default();
    let found: Option<&PodObject> = objects.iter().find_map(|o| match o {
        Object::Pod(p) if p.id.to_string() == pod => Some(&**p),
        _ => None,
    });
    found.iter().flat_map(|p| &p.spec.containers).flat_map(|c| &c.ports).map(|p| p.container_port).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_captured_is_its_owners_alone() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("web.pcap");
        std::fs::write(&file, "older").expect("written");
        std::fs::set_permissions(&file, Permissions::from_mode(0o644)).expect("set");
        for _ in 0..2 {
            own(&file).expect("it is ours");
            let found = std::fs::metadata(&file).expect("there");
            assert_eq!((found.permissions().mode() & 0o777, found.len()), (0o600, 0));
            std::fs::remove_file(&file).expect("removed");
        }
    }
}
