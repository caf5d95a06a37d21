//! The lab's side of one replica: its directory and token, its cable, and what becomes of it.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, chown};
use std::os::unix::net::UnixStream as StdStream;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow};
use tokio::io::AsyncReadExt;
use tokio::process::{Child, Command};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};
use weft_core::wellknown::SIDECAR_UID;

use super::lines::{self, Splitter};
use super::protocol::{Failure, Order, Report};
use super::registry::{Entry, Phase};
use super::{Lab, control_plane, net, sidecar};
use crate::console::{Console, Event, Origin, Source};
use crate::init;
use crate::wire::{self, Incoming, Mailbox};

/// Before a sidecar that has died is started again; doubled each time, up to the second.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// A sidecar that was ready this long begins again with [`FIRST_PAUSE`].
const STEADY: Duration = Duration::from_secs(30);

/// Drives replica `index` until `stopping` says true and its processes have ended.
pub(super) async fn drive(
    lab: Arc<Lab>,
    index: usize,
    slots: Arc<Semaphore>,
    mut stopping: watch::Receiver<bool>,
) -> anyhow::Result<()> {
    let slot = tokio::select! {
        biased;
        () = stopped(&mut stopping) => return Ok(()),
        slot = slots.acquire_owned() => slot.context("the lab is ending")?,
    };
    let (mut driver, reports) = Driver::start(lab, index, slot).await?;
    driver.run(reports, stopping).await
}

/// Waits for the word to end. Cancel-safe.
async fn stopped(stopping: &mut watch::Receiver<bool>) {
    // An error means that nobody is left to say it.
    let _ = stopping.wait_for(|stop| *stop).await;
}

struct Driver {
    lab: Arc<Lab>,
    index: usize,
    origin: Origin,
    begun: Instant,
    /// Held while it starts.
    slot: Option<OwnedSemaphorePermit>,
    child: Child,
    orders: Mailbox<Order>,
    /// Sends the orders.
    _mail: JoinSet<()>,
    /// Reads what the replica's process itself says.
    words: JoinSet<()>,
    failure: Option<Failure>,
    sidecar_since: Option<Instant>,
    sidecar_pause: Duration,
    sidecar_restart: Option<Instant>,
}

enum Happening {
    Stop,
    Report(std::io::Result<Option<Report>>),
    RestartSidecar,
}

impl Driver {
    async fn start(lab: Arc<Lab>, index: usize, slot: OwnedSemaphorePermit) -> anyhow::Result<(Self, Incoming)> {
        let begun = Instant::now();
        let spec = &lab.replicas[index];
        let pod = format!("{}/{}", spec.namespace, spec.pod);
        lay_out(&lab, index).await.with_context(|| format!("workload {pod}"))?;

        let (ours, theirs) = StdStream::pair().context("no socket pair")?;
        let mut child = Command::from(init::this_program("__replica"))
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("workload {pod}: its process cannot be started"))?;
        let (reports, half) = wire::open(ours)?;
        let (orders, mailer) = wire::mailbox(half);
        orders.steer(Order::Begin(Box::new(spec.clone())));

        let origin = lab.origin(index);
        let (mut mail, mut words) = (JoinSet::new(), JoinSet::new());
        mail.spawn(mailer);
        if let Some(stderr) = child.stderr.take() {
            words.spawn(complaints(stderr, pod, lab.console.clone()));
        }
        let driver = Self {
            lab,
            index,
            origin,
            begun,
            slot: Some(slot),
            child,
            orders,
            _mail: mail,
            words,
            failure: None,
            sidecar_since: None,
            sidecar_pause: FIRST_PAUSE,
            sidecar_restart: None,
        };
        Ok((driver, reports))
    }

    async fn run(&mut self, mut reports: Incoming, mut stopping: watch::Receiver<bool>) -> anyhow::Result<()> {
        let mut asked = false;
        loop {
            let restart = self.sidecar_restart;
            let happening = tokio::select! {
                biased;
                () = stopped(&mut stopping), if !asked => Happening::Stop,
                report = reports.next() => Happening::Report(report),
                () = sleep_until(restart.unwrap_or_else(Instant::now)), if restart.is_some() => Happening::RestartSidecar,
            };
            match happening {
                Happening::Stop => {
                    asked = true;
                    self.sidecar_restart = None;
                    self.orders.steer(Order::Stop);
                }
                Happening::Report(Ok(Some(report))) => self.report(report, asked).await?,
                Happening::Report(Ok(None)) => break,
                Happening::Report(Err(error)) => {
                    self.failure = Some(Failure::new("its process cannot be understood", error));
                    break;
                }
                Happening::RestartSidecar => {
                    self.sidecar_restart = None;
                    // The control plane may be away, or its disk full: the workload goes on, and its sidecar is tried again.
                    match write_token(&self.lab, self.index).await {
                        Ok(()) => self.orders.steer(Order::StartSidecar),
                        Err(error) => self.start_sidecar_later(&format!("its sidecar gets no join token: {error:#}")).await,
                    }
                }
            }
        }
        self.slot = None;
        let status = self.child.wait().await.context("a replica cannot be waited for")?;
        // What it said itself is read to the end.
        let _ = timeout(FIRST_PAUSE, self.words.join_next()).await;
        match self.failure.take() {
            _ if asked => Ok(()),
            Some(failure) => Err(anyhow!("workload {}/{}: {failure}", self.origin.namespace, self.origin.replica)),
            None => Err(anyhow!("workload {}/{}: its process ended ({status})", self.origin.namespace, self.origin.replica)),
        }
    }

    async fn report(&mut self, report: Report, asked: bool) -> anyhow::Result<()> {
        match report {
            Report::Namespaces => {
                let pid = self.child.id().context("a replica has ended")?;
                match net::attach(&self.lab.spec.programs.ip, self.index, pid).await {
                    Ok(()) => self.orders.steer(Order::Wired),
                    Err(failure) => {
                        self.failure = Some(failure);
                        self.orders.steer(Order::Stop);
                    }
                }
            }
            Report::Log { source, line } => self.log(source, line).await,
            Report::SidecarReady => {
                self.sidecar_since = Some(Instant::now());
                self.change(asked, |entry| entry.meshed = true)?;
            }
            Report::SidecarExited { status, why } => self.sidecar_gone(&status, why, asked).await?,
            Report::Pod { pid } => {
                let unmeshed = !self.lab.replicas[self.index].meshed;
                self.change(asked, |entry| {
                    entry.pod = Some(pid);
                    entry.meshed |= unmeshed;
                })?;
            }
            Report::Started => {
                if self.slot.take().is_some() {
                    let what = format!("{}/{}", self.origin.namespace, self.origin.replica);
                    self.lab.console.step(&what, self.begun.elapsed()).await;
                }
                self.change(asked, |entry| {
                    entry.begun = true;
                    entry.phase = Phase::Running;
                    "its health check has not succeeded yet".clone_into(&mut entry.why);
                })?;
            }
            Report::Exited { status, success, restart_in_millis } => {
                // It may never have been started at all.
                self.slot = None;
                self.change(asked, |entry| {
                    entry.begun = true;
                    entry.phase = if success && restart_in_millis.is_none() { Phase::Finished } else { Phase::Ended };
                    entry.healthy = false;
                    entry.why = format!("it {status}");
                })?;
                if !asked {
                    self.lab.console.say(Event::Exited { from: self.origin.clone(), status, restart_in_millis }).await;
                }
            }
            Report::Health { ready, why } => {
                self.change(asked, |entry| {
                    entry.healthy = ready;
                    entry.why.clone_from(&why);
                })?;
                if !asked {
                    self.lab.console.say(Event::Health { from: self.origin.clone(), ready, why }).await;
                }
            }
            Report::Warning(message) => {
                self.lab.console.warn(format!("{}/{}: {message}", self.origin.namespace, self.origin.replica)).await;
            }
            Report::Failed(failure) => self.failure = Some(failure),
        }
        Ok(())
    }

    async fn log(&self, source: Source, line: String) {
        if source == Source::Sidecar && !self.lab.spec.sidecar_logs && !lines::is_alarming(&line) {
            return;
        }
        self.lab.console.say(Event::Log { from: self.origin.clone(), source, line }).await;
    }

    async fn sidecar_gone(&mut self, status: &str, why: Option<String>, asked: bool) -> anyhow::Result<()> {
        self.change(asked, |entry| {
            entry.meshed = false;
            entry.why = format!("its sidecar is gone ({status})");
        })?;
        if asked {
            return Ok(());
        }
        if self.sidecar_since.take().is_some_and(|since| since.elapsed() >= STEADY) {
            self.sidecar_pause = FIRST_PAUSE;
        }
        let why = why.map_or_else(String::new, |why| format!(": {why}"));
        self.start_sidecar_later(&format!("its sidecar is gone ({status}){why}")).await;
        Ok(())
    }

    async fn start_sidecar_later(&mut self, why: &str) {
        let message = format!("{}/{}: {why}; it is started again", self.origin.namespace, self.origin.replica);
        self.lab.console.warn(message).await;
        self.sidecar_restart = Some(Instant::now() + self.sidecar_pause);
        self.sidecar_pause = LONGEST_PAUSE.min(self.sidecar_pause * 2);
    }

    /// Changes the registry, and tells the control plane where that changes what others may send here. At the end nobody is told.
    fn change(&self, asked: bool, change: impl FnOnce(&mut Entry)) -> anyhow::Result<()> {
        let (before, now) = self.lab.registry.update(self.index, change);
        if before != now && !asked {
            self.lab.publish(self.index, now)?;
        }
        Ok(())
    }
}

/// What the replica's own process says on its standard error is about weft, not about the workload.
async fn complaints(mut stderr: tokio::process::ChildStderr, pod: String, console: Console) {
    let mut splitter = Splitter::default();
    let mut buffer = [0; 1024];
    while let Ok(n @ 1..) = stderr.read(&mut buffer).await {
        for line in splitter.feed(&buffer[..n]) {
            console.warn(format!("{pod}: {line}")).await;
        }
    }
}

/// Makes the replica's private directory, with a join token in it where it has a sidecar.
async fn lay_out(lab: &Lab, index: usize) -> anyhow::Result<()> {
    let spec = &lab.replicas[index];
    for dir in [spec.dir.clone(), spec.dir.join(sidecar::STATE)] {
        DirBuilder::new().mode(0o700).create(&dir).with_context(|| format!("{} cannot be made", dir.display()))?;
        give_to_sidecar(lab, &dir)?;
    }
    if spec.workload_api.is_some() {
        let dir = spec.dir.join(sidecar::WORKLOAD_API);
        let made = fs::create_dir(&dir).and_then(|()| fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)));
        made.with_context(|| format!("{} cannot be made", dir.display()))?;
        give_to_sidecar(lab, &dir)?;
    }
    if spec.meshed { write_token(lab, index).await } else { Ok(()) }
}

async fn write_token(lab: &Lab, index: usize) -> anyhow::Result<()> {
    let token = control_plane::token(lab, index).await.context("it got no join token")?;
    let path = lab.replicas[index].dir.join(sidecar::TOKEN);
    let written = fs::remove_file(&path)
        .or_else(|e| if e.kind() == std::io::ErrorKind::NotFound { Ok(()) } else { Err(e) })
        .and_then(|()| {
            let mut file = OpenOptions::new().create_new(true).write(true).mode(0o600).open(&path)?;
            file.write_all(token.as_bytes())
        });
    written.with_context(|| format!("{} cannot be written", path.display()))?;
    give_to_sidecar(lab, &path)
}

/// As root, the sidecar is a user of its own; in a user namespace there is only one.
fn give_to_sidecar(lab: &Lab, path: &Path) -> anyhow::Result<()> {
    if lab.spec.rootless {
        return Ok(());
    }
    chown(path, Some(SIDECAR_UID), Some(SIDECAR_UID))
        .with_context(|| format!("{} cannot be given to the sidecar", path.display()))
}

impl Lab {
    /// How a replica is named in what is said: by its namespace too, where its name alone is not enough.
    fn origin(&self, index: usize) -> Origin {
        let name = |i: usize| {
            let spec = &self.replicas[i];
            let unique = self.replicas.iter().filter(|other| other.pod == spec.pod).count() == 1;
            if unique { spec.pod.clone() } else { format!("{}/{}", spec.namespace, spec.pod) }
        };
        let width = (0..self.replicas.len()).map(|i| self.replicas[i].pod.len()).max().unwrap_or(0);
        let spec = &self.replicas[index];
        Origin {
            namespace: spec.namespace.clone(),
            replica: spec.pod.clone(),
            label: format!("{:<width$}", name(index)),
            tint: self.plan.replicas[index].workload,
        }
    }
}
