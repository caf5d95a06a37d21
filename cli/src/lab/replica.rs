//! `weft __replica`: holds the namespaces of one replica, and in them starts the redirect, the sidecar and the workload's side.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdStream;
use std::process::{ExitCode, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use nix::sched::{CloneFlags, unshare};
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::health::{self, Ask, Verdict};
use super::lines::{self, LastWords};
use super::protocol::{Failure, Order, PodOrder, PodReport, ReplicaSpec, Report};
use super::sidecar::{self, Sidecar};
use super::{dress, net};
use crate::console::Source;
use crate::init;
use crate::wire::{self, Incoming, Mailbox};

/// How long the workload has to end, then how much longer its side of the replica, then the sidecar.
const WORKLOAD_GRACE: Duration = Duration::from_secs(3);
const POD_GRACE: Duration = Duration::from_millis(500);
const SIDECAR_GRACE: Duration = Duration::from_millis(1500);
/// How long what is left to report may take to be taken.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// `weft __replica`
pub(crate) fn main() -> anyhow::Result<ExitCode> {
    init::unblock_signals()?;
    let socket = wire::from_stdin()?;
    let flags = CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUTS | CloneFlags::CLONE_NEWIPC;
    unshare(flags).context("the replica's namespaces were refused (unshare)")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let outcome = runtime.block_on(run(socket));
    runtime.shutdown_background();
    outcome
}

async fn run(socket: StdStream) -> anyhow::Result<ExitCode> {
    let (mut incoming, half) = wire::open(socket)?;
    let Some(Order::Begin(spec)) = incoming.next().await? else { bail!("the replica was not told what to be") };
    // Every path of the sidecar's begins here, and needs no right on the way.
    std::env::set_current_dir(&spec.dir).with_context(|| format!("{} cannot be entered", spec.dir.display()))?;
    let (reports, mailer) = wire::mailbox(half);
    let mut mail = JoinSet::new();
    mail.spawn(mailer);
    let (stop, stopping) = watch::channel(false);
    let (orders_in, orders) = mpsc::unbounded_channel();
    let mut listener = JoinSet::new();
    listener.spawn(listen(incoming, orders_in, stop));

    let mut replica = Replica::new(*spec, reports, orders);
    let outcome = tokio::select! {
        biased;
        () = stopped(stopping) => Ok(()),
        outcome = replica.live() => outcome,
    };
    let code = if outcome.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    if let Err(failure) = outcome {
        replica.reports.steer(Report::Failed(failure));
    }
    replica.shut_down().await;
    // Every mailbox is gone with it, and the mailer ends when everything is sent.
    drop(replica);
    let _ = timeout(LAST_WORDS, mail.join_next()).await;
    Ok(code)
}

/// Orders as they come. The word to end goes past all others, and the lab's end is that word too.
async fn listen(mut incoming: Incoming, orders: mpsc::UnboundedSender<Order>, stop: watch::Sender<bool>) {
    loop {
        match incoming.next().await {
            Ok(Some(Order::Stop) | None) | Err(_) => {
                stop.send_replace(true);
                return;
            }
            Ok(Some(order)) => {
                let _ = orders.send(order);
            }
        }
    }
}

async fn stopped(mut stopping: watch::Receiver<bool>) {
    let _ = stopping.wait_for(|stop| *stop).await;
}

/// What is there once it is started: the process between the replica and the workload's side, and the way to tell that side.
struct Pod {
    run: Child,
    orders: Mailbox<PodOrder>,
}

struct Replica {
    spec: ReplicaSpec,
    reports: Mailbox<Report>,
    orders: mpsc::UnboundedReceiver<Order>,
    /// Readers of what the sidecar and the workload write, and of the pod's reports.
    readers: JoinSet<()>,
    sidecar: Option<Sidecar>,
    /// Whether a sidecar that was started again is still waited for.
    sidecar_awaited: bool,
    pod: Option<Pod>,
    pod_reports: (mpsc::UnboundedSender<PodReport>, mpsc::UnboundedReceiver<PodReport>),
    /// The health check of the workload that runs; replaced, it ends.
    check: JoinSet<()>,
    /// How often the workload has been started: a verdict about an earlier run is void.
    runs: u64,
    verdicts: (mpsc::UnboundedSender<Verdict>, mpsc::UnboundedReceiver<Verdict>),
    asks: (mpsc::Sender<Ask>, mpsc::Receiver<Ask>),
    asked: Option<Ask>,
}

enum Happening {
    Order(Order),
    SidecarReady,
    SidecarEnded(String, Option<String>),
    PodEnded(std::io::Result<ExitStatus>),
    Pod(Option<PodReport>),
    Verdict(Option<Verdict>),
    Ask(Option<Ask>),
}

impl Replica {
    fn new(spec: ReplicaSpec, reports: Mailbox<Report>, orders: mpsc::UnboundedReceiver<Order>) -> Self {
        Self {
            spec,
            reports,
            orders,
            readers: JoinSet::new(),
            sidecar: None,
            sidecar_awaited: false,
            pod: None,
            pod_reports: mpsc::unbounded_channel(),
            check: JoinSet::new(),
            runs: 0,
            verdicts: mpsc::unbounded_channel(),
            asks: mpsc::channel(1),
            asked: None,
        }
    }

    /// Starts everything, and watches over it until it cannot go on.
    async fn live(&mut self) -> Result<(), Failure> {
        dress::dress(&self.spec)?;
        self.reports.steer(Report::Namespaces);
        self.wired().await;
        net::configure(&self.spec).await?;
        if self.spec.meshed {
            sidecar::redirect(&self.spec).await?;
            let started = Sidecar::start(&self.spec, &self.reports, &mut self.readers)?;
            self.sidecar.insert(started).ready().await?;
            self.reports.steer(Report::SidecarReady);
        }
        self.start_pod()?;
        loop {
            let happening = self.next().await;
            self.handle(happening)?;
        }
    }

    async fn wired(&mut self) {
        loop {
            match self.orders.recv().await {
                Some(Order::Wired) => return,
                Some(_) => {}
                // The word to end has come, and ends this too.
                None => std::future::pending().await,
            }
        }
    }

    fn start_pod(&mut self) -> Result<(), Failure> {
        let failed = |error: std::io::Error| Failure::new("the workload's namespaces could not be made", error);
        let (ours, theirs) = StdStream::pair().map_err(failed)?;
        let mut run = Command::from(init::this_program("__run"))
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(failed)?;
        if let Some(stdout) = run.stdout.take() {
            self.readers.spawn(lines::forward(stdout, Source::Stdout, self.reports.clone(), LastWords::default()));
        }
        if let Some(stderr) = run.stderr.take() {
            self.readers.spawn(lines::forward(stderr, Source::Stderr, self.reports.clone(), LastWords::default()));
        }
        let (incoming, half) = wire::open(ours).map_err(failed)?;
        let (orders, mailer) = wire::mailbox(half);
        orders.steer(PodOrder::Begin(Box::new(self.spec.pod_spec.clone())));
        self.readers.spawn(mailer);
        self.readers.spawn(pass_on(incoming, self.pod_reports.0.clone()));
        self.pod = Some(Pod { run, orders });
        Ok(())
    }

    async fn next(&mut self) -> Happening {
        let mut why = String::new();
        tokio::select! {
            biased;
            Some(order) = self.orders.recv() => Happening::Order(order),
            (status, said) = sidecar_ended(self.sidecar.as_mut()) => Happening::SidecarEnded(status, said),
            report = self.pod_reports.1.recv() => Happening::Pod(report),
            status = pod_ended(self.pod.as_mut()) => Happening::PodEnded(status),
            ask = self.asks.1.recv() => Happening::Ask(ask),
            verdict = self.verdicts.1.recv() => Happening::Verdict(verdict),
            () = sidecar::until_ready(&mut why), if self.sidecar_awaited => Happening::SidecarReady,
        }
    }

    fn handle(&mut self, happening: Happening) -> Result<(), Failure> {
        match happening {
            Happening::Order(Order::StartSidecar) if self.sidecar.is_none() => {
                match Sidecar::start(&self.spec, &self.reports, &mut self.readers) {
                    Ok(started) => {
                        self.sidecar = Some(started);
                        self.sidecar_awaited = true;
                    }
                    Err(failure) => self.reports.steer(Report::SidecarExited { status: failure.to_string(), why: None }),
                }
            }
            Happening::Order(_) => {}
            Happening::SidecarReady => {
                self.sidecar_awaited = false;
                self.reports.steer(Report::SidecarReady);
            }
            Happening::SidecarEnded(status, why) => {
                self.sidecar = None;
                self.sidecar_awaited = false;
                self.reports.steer(Report::SidecarExited { status, why });
            }
            Happening::PodEnded(status) => {
                let how = status.map_or_else(|e| e.to_string(), |s| s.to_string());
                self.pod = None;
                return Err(Failure::new("the workload's side of the replica has ended", how));
            }
            Happening::Pod(Some(report)) => self.pod_report(report)?,
            Happening::Ask(Some(ask)) => {
                self.asked = Some(ask);
                if let Some(pod) = &self.pod {
                    pod.orders.steer(PodOrder::Check);
                }
            }
            Happening::Verdict(Some(Verdict { run, ready, why })) if run == self.runs => {
                self.reports.steer(Report::Health { ready, why });
            }
            // This process has a sender to each of these channels, so that none of them ends.
            Happening::Pod(None) | Happening::Ask(None) | Happening::Verdict(_) => {}
        }
        Ok(())
    }

    fn pod_report(&mut self, report: PodReport) -> Result<(), Failure> {
        match report {
            PodReport::Pid { pid } => self.reports.steer(Report::Pod { pid }),
            PodReport::Started => {
                self.runs += 1;
                self.reports.steer(Report::Started);
                let (asks, verdicts) = (self.asks.0.clone(), self.verdicts.0.clone());
                self.check.spawn(health::watch(self.spec.health.clone(), self.spec.v4.into(), self.runs, asks, verdicts));
            }
            PodReport::Exited { status, success, restart_in_millis } => {
                self.check = JoinSet::new();
                self.runs += 1;
                self.asked = None;
                self.reports.steer(Report::Exited { status, success, restart_in_millis });
            }
            PodReport::Checked { wrong } => {
                if let Some(ask) = self.asked.take() {
                    // The asker may have given up.
                    let _ = ask.send(wrong);
                }
            }
            PodReport::Warning(message) => self.reports.steer(Report::Warning(message)),
            PodReport::Failed(failure) => return Err(failure),
        }
        Ok(())
    }

    /// The workload first, then the sidecar that its last words go through; each in a bounded time.
    async fn shut_down(&mut self) {
        self.check = JoinSet::new();
        if let Some(mut pod) = self.pod.take() {
            pod.orders.steer(PodOrder::Stop { grace_millis: crate::console::millis(WORKLOAD_GRACE) });
            if timeout(WORKLOAD_GRACE + POD_GRACE, pod.run.wait()).await.is_err() {
                // Its child dies with it, and the namespace with that.
                let _ = pod.run.kill().await;
            }
        }
        if let Some(mut sidecar) = self.sidecar.take() {
            sidecar.stop(SIDECAR_GRACE).await;
        }
        // What they wrote last.
        let _ = timeout(LAST_WORDS, async { while self.readers.join_next().await.is_some() {} }).await;
        self.readers.shutdown().await;
    }
}

async fn sidecar_ended(sidecar: Option<&mut Sidecar>) -> (String, Option<String>) {
    match sidecar {
        Some(sidecar) => sidecar.ended().await,
        None => std::future::pending().await,
    }
}

async fn pod_ended(pod: Option<&mut Pod>) -> std::io::Result<ExitStatus> {
    match pod {
        Some(pod) => {
            let status = pod.run.wait().await;
            // Its last report, which says more, may still be on its way.
            sleep(LAST_WORDS).await;
            status
        }
        None => std::future::pending().await,
    }
}

async fn pass_on(mut incoming: Incoming, reports: mpsc::UnboundedSender<PodReport>) {
    while let Ok(Some(report)) = incoming.next().await {
        if reports.send(report).is_err() {
            return;
        }
    }
}
