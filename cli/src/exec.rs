//! `weft exec`: ask the lab for a replica's namespaces → join them → run the command there as its workload's user.

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Args;
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::init::{self, Event, Signals};
use crate::lab::door::{self, Grant, Request};
use crate::rundir::Which;

/// What `weft exec` is told.
#[derive(Args, Debug)]
#[command(after_help = "\
Exit status: that of the command.

Examples:
  weft exec front/client -- curl -s http://web.shop/
  weft exec shop/web-1 -- sh
  weft exec --lab -- ip addr")]
pub(crate) struct ExecArgs {
    /// A workload (its first replica) or a replica, as NAMESPACE/NAME or, where that is enough, NAME
    #[arg(value_name = "NS/WORKLOAD", required_unless_present = "lab")]
    target: Option<String>,

    /// On the mesh's own network, as its root, instead of in a workload's place: for tcpdump on the bridge, or a sidecar's socket
    #[arg(long, conflicts_with = "target")]
    lab: bool,

    #[command(flatten)]
    which: Which,

    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<OsString>,
}

pub(crate) fn main(args: &ExecArgs) -> anyhow::Result<ExitCode> {
    let run = args.which.find()?;
    let (text, namespaces) = door::ask(&run, &args.target.clone().map_or(Request::Lab, Request::Exec))?;
    let grant: Grant = door::understood(&text)?;
    // The terminal sends its signals to the command too, which answers them; the others are passed on.
    let signals = Signals::hold(&[Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM, Signal::SIGHUP])?;
    join(&grant, &namespaces).with_context(|| format!("the place of {} cannot be entered", grant.replica))?;
    let mut command = match &grant.place {
        Some(place) => place.command(&args.command),
        None => {
            let mut command = init::this_program("__exec");
            command.arg("--").args(&args.command);
            command
        }
    };
    let child = command.spawn().with_context(|| format!("{} cannot be started", args.command[0].display()))?;
    let child = Pid::from_raw(child.id().cast_signed());
    loop {
        match signals.next(child)? {
            Event::Ended(code) => return Ok(ExitCode::from(code)),
            Event::Signal(signal @ (Signal::SIGTERM | Signal::SIGHUP)) => {
                let _ = kill(child, signal);
            }
            Event::Signal(_) => {}
        }
    }
}

/// Has this process, which has one thread, go on in a replica's network as the lab's root; all else stays as it is.
pub(crate) fn enter_network(run: &Path, target: &str) -> anyhow::Result<()> {
    let (text, namespaces) = door::ask(run, &Request::Exec(target.to_owned()))?;
    let grant: Grant = door::understood(&text)?;
    let mut files = namespaces.iter();
    if grant.rootless {
        let user = files.next().context("the mesh sends no user namespace: is it another version of weft?")?;
        // The system's own root needs no further right, and keeps those that a user namespace does not give.
        if !nix::unistd::geteuid().is_root() {
            setns(user, CloneFlags::CLONE_NEWUSER).context("the user namespace was refused (setns)")?;
        }
    }
    let network = files.nth(1).context("the mesh sends no network namespace: is it another version of weft?")?;
    setns(network, CloneFlags::CLONE_NEWNET)
        .with_context(|| format!("the network namespace of {} was refused (setns)", grant.replica))
}

/// Joins the namespaces in the order that the lab sends them: the first gives the right to the others. The pid namespace is for
/// the child.
fn join(grant: &Grant, namespaces: &[OwnedFd]) -> anyhow::Result<()> {
    let user = grant.rootless.then_some((CloneFlags::CLONE_NEWUSER, "user"));
    let others = [
        (CloneFlags::CLONE_NEWNS, "mount"),
        (CloneFlags::CLONE_NEWNET, "network"),
        (CloneFlags::CLONE_NEWUTS, "host name"),
        (CloneFlags::CLONE_NEWIPC, "IPC"),
        (CloneFlags::CLONE_NEWPID, "pid"),
    ];
    let kinds: Vec<_> = user.into_iter().chain(others).collect();
    if kinds.len() != namespaces.len() {
        bail!("the mesh sends {} namespaces and {} were expected: is it another version of weft?", namespaces.len(), kinds.len());
    }
    for (namespace, (kind, name)) in namespaces.iter().zip(kinds) {
        setns(namespace, kind).with_context(|| format!("the {name} namespace was refused (setns)"))?;
    }
    Ok(())
}
