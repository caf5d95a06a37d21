//! Waiting for a child and for signals, without a runtime: for `weft up` and `weft exec`, and for the lab's process 1.

use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use anyhow::Context;
use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, alarm, setsid};

/// A lab that was told to end and has not is cut off after this many seconds.
const PATIENCE_SECS: u32 = 9;

/// This very program, even where its file has been replaced since, to be started as `subcommand`.
pub(crate) fn this_program(subcommand: &str) -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.arg0("weft").arg(subcommand);
    command
}

/// Takes signals as usual, whatever the process that started this one blocked.
pub(crate) fn unblock_signals() -> nix::Result<()> {
    SigSet::empty().thread_set_mask()
}

/// The status that a shell would give.
pub(crate) fn exit_code(status: WaitStatus) -> Option<u8> {
    match status {
        WaitStatus::Exited(_, code) => Some(code as u8),
        WaitStatus::Signaled(_, signal, _) => Some(128_u8.saturating_add(signal as u8)),
        _ => None,
    }
}

/// What happened meanwhile.
#[derive(Debug)]
pub(crate) enum Event {
    Signal(Signal),
    /// The child has ended, with the status that a shell would give.
    Ended(u8),
}

/// Signals of this process that are waited for rather than suffered. Made before the child is started, so that none is lost;
/// a child that inherits the mask begins with [`unblock_signals`].
#[derive(Debug)]
pub(crate) struct Signals(SigSet);

impl Signals {
    pub(crate) fn hold(signals: &[Signal]) -> nix::Result<Self> {
        let mut set = SigSet::empty();
        set.add(Signal::SIGCHLD);
        for signal in signals {
            set.add(*signal);
        }
        set.thread_set_mask()?;
        Ok(Self(set))
    }

    /// Waits for the end of `child` or for a signal. Reaps every other child on the way.
    pub(crate) fn next(&self, child: Pid) -> nix::Result<Event> {
        loop {
            if let Some(code) = reap(child)? {
                return Ok(Event::Ended(code));
            }
            match self.0.wait()? {
                Signal::SIGCHLD => {}
                signal => return Ok(Event::Signal(signal)),
            }
        }
    }
}

fn reap(child: Pid) -> nix::Result<Option<u8>> {
    loop {
        match waitpid(None::<Pid>, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return Ok(None),
            Ok(status) if status.pid() == Some(child) => {
                if let Some(code) = exit_code(status) {
                    return Ok(Some(code));
                }
            }
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error),
        }
    }
}

/// `weft __init`: process 1 of the lab's pid namespace. Starts the lab, reaps orphans, and takes everything with it when it
/// ends: the kernel kills what is left in the namespace.
pub(crate) fn main() -> anyhow::Result<ExitCode> {
    use Signal::{SIGALRM, SIGHUP, SIGINT, SIGTERM};
    let signals = Signals::hold(&[SIGTERM, SIGINT, SIGHUP, SIGALRM]).context("signals cannot be held")?;
    // `weft up` that is killed takes the lab with it.
    set_pdeathsig(SIGTERM).context("the lab cannot be tied to its parent")?;
    // Ctrl-C is for `weft up`, which tells the lab to end in order.
    setsid().context("the lab cannot have a session of its own")?;
    // What the lab mounts goes away with it, and `weft up` never sees it.
    unshare(CloneFlags::CLONE_NEWNS).context("the lab cannot have a mount namespace of its own")?;
    let lab = this_program("__lab").spawn().context("the lab cannot be started")?;
    let lab = Pid::from_raw(lab.id().cast_signed());
    loop {
        match signals.next(lab)? {
            Event::Ended(code) => return Ok(ExitCode::from(code)),
            Event::Signal(SIGALRM) => return Ok(ExitCode::FAILURE),
            Event::Signal(_) => {
                let _ = kill(lab, SIGTERM);
                alarm::set(PATIENCE_SECS);
            }
        }
    }
}
