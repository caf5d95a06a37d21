//! The workload's side of a replica: a pid namespace and a mount namespace of its own, in which neither the sidecar nor
//! anything private of the mesh can be seen.
//!
//! `weft __run` makes the namespaces, and its child `weft __pod` is process 1 in them: it starts the workload, starts it again
//! when it ends, and reaps. It stays while the workload comes and goes, so that `weft exec` has somewhere to go.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use super::protocol::{Failure, PodOrder, PodReport, PodSpec};
use crate::console::millis;
use crate::mesh_file::Restart;
use crate::wire::{self, Mailbox};
use crate::{init, mounts};

/// Before a workload that has ended is started again; doubled each time, up to the second.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// A workload that ran this long begins again with [`FIRST_PAUSE`].
const STEADY: Duration = Duration::from_secs(10);
/// Beyond a check's own time; its asker has given up by then.
const CHECK_SLACK: Duration = Duration::from_millis(250);
/// How long the last reports may take to be taken.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// `weft __run`
pub(crate) fn run_main() -> anyhow::Result<ExitCode> {
    init::unblock_signals()?;
    set_pdeathsig(Signal::SIGKILL).context("the workload cannot be tied to its replica")?;
    let mut socket = wire::from_stdin()?;
    // The pid namespace is for the child: a process stays in its own.
    let started = unshare(CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWNS)
        .map_err(|e| Failure::new("the workload's namespaces were refused (unshare)", e))
        .and_then(|()| {
            init::this_program("__pod")
                .spawn()
                .map_err(|e| Failure::new("the workload's side of the replica could not be started", e))
        });
    match started {
        Ok(mut child) => {
            socket.write_all(&wire::line(&PodReport::Pid { pid: child.id().cast_signed() })?)?;
            let status = child.wait().context("the workload's side of the replica cannot be waited for")?;
            Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        Err(failure) => {
            socket.write_all(&wire::line(&PodReport::Failed(failure))?)?;
            Ok(ExitCode::FAILURE)
        }
    }
}

/// `weft __pod`
pub(crate) fn main() -> anyhow::Result<ExitCode> {
    init::unblock_signals()?;
    set_pdeathsig(Signal::SIGKILL).context("the workload cannot be tied to its replica")?;
    let socket = wire::from_stdin()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let (mut orders, half) = wire::open(socket)?;
        let Some(PodOrder::Begin(spec)) = orders.next().await? else { bail!("the workload's side was not told what to run") };
        let (reports, mailer) = wire::mailbox(half);
        let mut mail = JoinSet::new();
        mail.spawn(mailer);
        let own_proc = match settle(&spec) {
            Ok(own_proc) => own_proc,
            Err(failure) => {
                reports.steer(PodReport::Failed(failure));
                drop(reports);
                let _ = timeout(LAST_WORDS, mail.join_next()).await;
                return Ok(ExitCode::FAILURE);
            }
        };
        if !own_proc {
            reports
                .steer(PodReport::Warning("its own /proc was refused, so that /proc shows it the mesh's processes".to_owned()));
        }
        let mut children = signal(SignalKind::child())?;
        let mut pod = Pod::new(*spec, reports, own_proc);
        pod.start();
        let mut listening = true;
        while !pod.is_done() {
            let deadline = pod.deadline();
            tokio::select! {
                biased;
                _ = children.recv() => pod.reap(),
                order = orders.next(), if listening => match order {
                    Ok(Some(PodOrder::Check)) => pod.begin_check(),
                    Ok(Some(PodOrder::Stop { grace_millis })) => pod.stop(Duration::from_millis(grace_millis)),
                    Ok(Some(PodOrder::Begin(_))) => {}
                    // The replica has gone.
                    Ok(None) | Err(_) => {
                        listening = false;
                        pod.stop(Duration::ZERO);
                    }
                },
                () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => pod.tick(),
            }
        }
        drop(pod);
        let _ = timeout(LAST_WORDS, mail.join_next()).await;
        Ok(ExitCode::SUCCESS)
    })
}

/// Makes the namespaces what they are for; says whether `/proc` is its own.
fn settle(spec: &PodSpec) -> Result<bool, Failure> {
    let covered = match &spec.shown {
        Some(shown) => mounts::cover_but(&spec.cover, shown),
        None => mounts::cover(&spec.cover).map_err(Into::into),
    };
    covered.map_err(|e| Failure::new("the mesh's private directory could not be hidden from the workload", e))?;
    Ok(mounts::fresh_proc().is_ok())
}

struct Pod {
    spec: PodSpec,
    reports: Mailbox<PodReport>,
    own_proc: bool,
    main: Option<(Pid, Instant)>,
    check: Option<(Pid, Instant)>,
    restart_at: Option<Instant>,
    pause: Duration,
    /// Set once it is to end; then it is over, whether the workload is or not.
    stop_at: Option<Instant>,
}

impl Pod {
    fn new(spec: PodSpec, reports: Mailbox<PodReport>, own_proc: bool) -> Self {
        Self { spec, reports, own_proc, main: None, check: None, restart_at: None, pause: FIRST_PAUSE, stop_at: None }
    }

    /// The process group is its own, so that all of it can be told to end.
    fn spawn(mut command: Command) -> std::io::Result<Pid> {
        let child = command.stdin(Stdio::null()).process_group(0).spawn()?;
        // Process 1 waits for every child alike.
        Ok(Pid::from_raw(child.id().cast_signed()))
    }

    fn start(&mut self) {
        self.restart_at = None;
        match Self::spawn(self.spec.place.command(&self.spec.command)) {
            Ok(pid) => {
                self.main = Some((pid, Instant::now()));
                self.reports.steer(PodReport::Started);
            }
            Err(error) => self.over(format!("could not be started: {error}"), false, Duration::ZERO),
        }
    }

    /// The workload has ended after `ran`.
    fn over(&mut self, status: String, success: bool, ran: Duration) {
        let mut restart_in = None;
        if self.stop_at.is_none() && self.spec.restart == Restart::Always {
            if ran >= STEADY {
                self.pause = FIRST_PAUSE;
            }
            restart_in = Some(millis(self.pause));
            self.restart_at = Some(Instant::now() + self.pause);
            self.pause = LONGEST_PAUSE.min(self.pause * 2);
        }
        self.reports.steer(PodReport::Exited { status, success, restart_in_millis: restart_in });
    }

    fn begin_check(&mut self) {
        let Some((words, time)) = &self.spec.check else { return };
        if self.check.is_some() {
            // The one before it has been given up and is about to be killed.
            self.reports.steer(PodReport::Checked { wrong: Some("the command of the check before still runs".to_owned()) });
            return;
        }
        let mut command = self.spec.place.command(words);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        match Self::spawn(command) {
            Ok(pid) => self.check = Some((pid, Instant::now() + *time + CHECK_SLACK)),
            Err(error) => {
                self.reports.steer(PodReport::Checked { wrong: Some(format!("the command could not be run: {error}")) });
            }
        }
    }

    fn stop(&mut self, grace: Duration) {
        self.restart_at = None;
        self.stop_at = Some(Instant::now() + grace);
        if let Some((pid, _)) = self.main {
            let _ = killpg(pid, Signal::SIGTERM);
            let _ = killpg(pid, Signal::SIGCONT);
        }
    }

    fn is_done(&self) -> bool {
        self.stop_at.is_some_and(|at| self.main.is_none() || Instant::now() >= at)
    }

    fn deadline(&self) -> Option<Instant> {
        [self.restart_at, self.stop_at, self.check.map(|(_, at)| at)].into_iter().flatten().min()
    }

    fn tick(&mut self) {
        let now = Instant::now();
        if self.restart_at.is_some_and(|at| now >= at) {
            self.start();
        }
        if let Some((pid, at)) = self.check
            && now >= at
        {
            let _ = killpg(pid, Signal::SIGKILL);
            // Its end comes as a signal; until then there is nothing to be done about it again.
            self.check = Some((pid, now + LONGEST_PAUSE));
        }
    }

    fn reap(&mut self) {
        loop {
            let status = match waitpid(None::<Pid>, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => break,
                Ok(status) => status,
                Err(_) => continue,
            };
            let Some(code) = init::exit_code(status) else { continue };
            let pid = status.pid();
            if let Some((main, since)) = self.main
                && pid == Some(main)
            {
                self.main = None;
                // What it started belongs to it.
                let _ = killpg(main, Signal::SIGKILL);
                self.over(how(status), code == 0, since.elapsed());
            } else if let Some((check, _)) = self.check
                && pid == Some(check)
            {
                self.check = None;
                let wrong = (code != 0).then(|| format!("the command of the check {}", how(status)));
                self.reports.steer(PodReport::Checked { wrong });
            }
        }
        if self.main.is_none() {
            self.sweep();
        }
    }

    /// Kills what a workload that has ended left behind: it has come to process 1. Whoever came in by `weft exec` has a parent
    /// outside, and stays.
    fn sweep(&self) {
        if !self.own_proc {
            return;
        }
        for pid in orphans() {
            if self.check.is_none_or(|(check, _)| check != pid) {
                let _ = kill(pid, Signal::SIGKILL);
            }
        }
    }
}

/// Children of process 1, by `/proc/PID/stat` (`proc_pid_stat(5)`): the parent is the second field behind the name's bracket.
fn orphans() -> Vec<Pid> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let child_of_one = |pid: &i32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        parent(&stat) == Some(1)
    };
    pids.filter(|pid| *pid != 1).filter(child_of_one).map(Pid::from_raw).collect()
}

fn parent(stat: &str) -> Option<i32> {
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(1)?.parse().ok()
}

/// How a process ended, to be read after its name.
fn how(status: WaitStatus) -> String {
    match status {
        WaitStatus::Exited(_, code) => format!("ended with status {code}"),
        WaitStatus::Signaled(_, signal, _) => format!("was ended by {signal}"),
        other => format!("ended ({other:?})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parent_is_found_behind_any_name() {
        assert_eq!(parent("7 (nginx) S 1 7 7 0 -1"), Some(1));
        assert_eq!(parent("7 (a) b) (c) R 42 7 7"), Some(42));
        assert_eq!(parent(""), None);
    }

    #[test]
    fn an_end_is_told_in_words() {
        assert_eq!(how(WaitStatus::Exited(Pid::from_raw(7), 3)), "ended with status 3");
        assert_eq!(how(WaitStatus::Signaled(Pid::from_raw(7), Signal::SIGSEGV, true)), "was ended by SIGSEGV");
    }
}
