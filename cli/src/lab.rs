//! The lab: a mesh's network, control plane and replicas, inside its namespaces.
//!
//! `weft up` (host) → `__init` (process 1) → `__lab` (this) → the control plane, and for each replica `__replica`, which holds
//! its namespaces and starts the sidecar, and `__run` → `__pod` (process 1 of the workload's own pid namespace) → `__exec`,
//! which becomes the workload. The lab draws no decision from the mesh's policy; that is the control plane's and the sidecars'.

use std::os::unix::net::UnixStream as StdStream;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use crate::confine::{Identity, Place};
use crate::console::{Console, Event, ServiceLine, Summary, WorkloadLine, millis};
use crate::manifests::{self, ManifestDir};
use crate::mesh_file::{Mesh, Probe};
use crate::plan::Plan;
use crate::wire::Incoming;
use crate::{init, mounts, rundir, wire};

mod control_plane;
pub(crate) mod door;
mod dress;
mod drive;
pub(crate) mod extras;
mod health;
mod lines;
mod net;
pub(crate) mod pod;
pub(crate) mod protocol;
mod registry;
pub(crate) mod replica;
mod sidecar;
mod tools;

use protocol::{LabSpec, PodSpec, ReplicaSpec};
use registry::Registry;

/// Replicas that are started at the same time; more only wait for each other in the kernel.
const STARTING: usize = 8;
/// After this long, what is not ready is named.
const SLOW: Duration = Duration::from_secs(30);
/// How long workloads and sidecars have to end, all together.
const END: Duration = Duration::from_secs(6);
/// How long what is left to say may take to be read.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// A mesh that runs.
struct Lab {
    spec: LabSpec,
    mesh: Mesh,
    plan: Plan,
    /// By the order of [`Plan::replicas`].
    replicas: Vec<ReplicaSpec>,
    ipv6: bool,
    manifests: ManifestDir,
    registry: Registry,
    console: Console,
}

type Tasks = JoinSet<anyhow::Result<()>>;

/// `weft __lab`
pub(crate) fn main() -> anyhow::Result<ExitCode> {
    init::unblock_signals()?;
    let socket = wire::from_stdin()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let outcome = runtime.block_on(run(socket));
    runtime.shutdown_background();
    outcome
}

async fn run(socket: StdStream) -> anyhow::Result<ExitCode> {
    let (mut from_up, _to_up) = wire::open(socket)?;
    let Some(spec) = from_up.next::<LabSpec>().await? else { bail!("the lab was told nothing to run") };
    let (console, printer) = Console::start(spec.style)?;
    let (stop, stopping) = watch::channel(false);
    let (mut replicas, mut helpers) = (Tasks::new(), Tasks::new());

    let outcome = tokio::select! {
        biased;
        asked = asked_to_end(&mut from_up) => asked,
        outcome = live(spec, &console, &mut replicas, &mut helpers, &stopping) => outcome,
    };
    let code = match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            console.say(Event::Error { message: format!("{error:#}") }).await;
            ExitCode::FAILURE
        }
    };

    stop.send_replace(true);
    let ended = timeout(END, async { while replicas.join_next().await.is_some() {} }).await;
    if ended.is_err() {
        console.warn(format!("some workloads have not ended within {} s and are cut off", END.as_secs())).await;
    }
    replicas.shutdown().await;
    helpers.shutdown().await;
    drop(console);
    // A terminal that stands still is not waited for.
    let _ = timeout(LAST_WORDS, tokio::task::spawn_blocking(move || printer.join())).await;
    Ok(code)
}

/// By a signal, or by the end of `weft up`, which closes its end of the socket.
async fn asked_to_end(from_up: &mut Incoming) -> anyhow::Result<()> {
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
        _ = from_up.next::<serde_json::Value>() => {}
    }
    Ok(())
}

/// Starts everything, and then watches over it. Ends only with an error.
async fn live(
    spec: LabSpec,
    console: &Console,
    replicas: &mut Tasks,
    helpers: &mut Tasks,
    stopping: &watch::Receiver<bool>,
) -> anyhow::Result<()> {
    let begun = Instant::now();
    let lab = Arc::new(build(spec, console).await?);
    console.step("namespaces and network", begun.elapsed()).await;

    let started = Instant::now();
    let mut extras = extras::Extras::new(&lab.mesh.manifests, lab.manifests.clone());
    extras.begin()?;
    for manifest in manifests::fixed(&lab.mesh, &lab.plan) {
        lab.manifests.put(&manifest).context("a manifest cannot be written")?;
    }
    for index in 0..lab.replicas.len() {
        lab.publish(index, false)?;
    }
    control_plane::start(&lab, helpers).await?;
    console.step("control plane", started.elapsed()).await;

    door::open(&lab, helpers)?;
    helpers.spawn(extras.follow(console.clone()));
    let slots = Arc::new(Semaphore::new(STARTING));
    for index in 0..lab.replicas.len() {
        replicas.spawn(drive::drive(lab.clone(), index, slots.clone(), stopping.clone()));
    }
    watch_over(&lab, begun, replicas, helpers).await
}

/// Namespaces, network, and what every replica will be told.
async fn build(spec: LabSpec, console: &Console) -> anyhow::Result<Lab> {
    // `weft up` has read the same text.
    let mesh = Mesh::read(&spec.shown, &spec.dir, &spec.text).map_err(|problems| anyhow!("{}", problems[0]))?;
    let plan = Plan::new(&mesh);
    mounts::make_private().context("the mount namespace cannot be made private")?;
    mounts::fresh_proc().context(
        "a fresh /proc was refused, as it is below one that is partly covered: in a container, start that with --privileged \
         (or --security-opt systempaths=unconfined)",
    )?;
    mounts::private_memory(&spec.run.join(rundir::PODS)).context("a directory in memory was refused (mount tmpfs)")?;
    let ipv6 = net::bridge(&spec.programs.ip).await?;
    let replicas = (0..plan.replicas.len()).map(|index| replica_spec(&spec, &mesh, &plan, index, ipv6)).collect();
    let manifests = ManifestDir::new(spec.run.join(rundir::MANIFESTS));
    let registry = Registry::new(plan.replicas.len());
    Ok(Lab { spec, mesh, plan, replicas, ipv6, manifests, registry, console: console.clone() })
}

fn replica_spec(spec: &LabSpec, mesh: &Mesh, plan: &Plan, index: usize, ipv6: bool) -> ReplicaSpec {
    let replica = &plan.replicas[index];
    let workload = &mesh.workloads[replica.workload];
    let mut env = workload.env.clone();
    let own = [
        ("HOSTNAME", replica.pod.clone()),
        ("POD_NAME", replica.pod.clone()),
        ("POD_NAMESPACE", workload.namespace.to_string()),
        ("POD_IP", replica.v4.to_string()),
    ];
    for (name, value) in own {
        env.entry(name.to_owned()).or_insert(value);
    }
    let dir = spec.run.join(rundir::PODS).join(index.to_string());
    let shown = workload.workload_api.then(|| dir.join(sidecar::WORKLOAD_API));
    if shown.is_some() {
        let socket = spec.cover.join(sidecar::WORKLOAD_API).join(sidecar::WORKLOAD_SOCKET);
        env.entry("SPIFFE_ENDPOINT_SOCKET".to_owned()).or_insert_with(|| format!("unix://{}", socket.display()));
    }
    let workload_api = workload.workload_api.then(|| match &spec.identities[replica.workload] {
        Identity::Mapped { .. } => "network".to_owned(),
        // The sidecar's user may not look at another user's processes.
        Identity::User { uid, .. } => uid.to_string(),
    });
    let place = Place {
        identity: spec.identities[replica.workload].clone(),
        workdir: workload.workdir.clone(),
        default_dir: spec.dir.clone(),
        env,
    };
    let check = match &workload.health.probe {
        Probe::Command(words) => Some((words.clone(), workload.health.timeout)),
        Probe::Started | Probe::Tcp(_) | Probe::Http { .. } => None,
    };
    let mut telemetry = mesh.telemetry.clone();
    telemetry.entry("OTEL_SERVICE_NAME".to_owned()).or_insert_with(|| workload.name.to_string());
    if let Some(tap) = &workload.tap {
        telemetry.insert(weft_core::telemetry::TAP.to_owned(), tap.clone());
    }
    ReplicaSpec {
        namespace: workload.namespace.to_string(),
        pod: replica.pod.clone(),
        service_account: workload.service_account.to_string(),
        v4: replica.v4,
        v6: ipv6.then_some(replica.v6),
        meshed: workload.sidecar,
        rootless: spec.rootless,
        dns_capture: mesh.dns_capture,
        telemetry,
        dir,
        programs: spec.programs.clone(),
        health: workload.health.clone(),
        workload_api,
        pod_spec: PodSpec {
            cover: spec.cover.clone(),
            shown,
            place,
            command: workload.command.clone(),
            restart: workload.restart,
            check,
        },
    }
}

/// Says when everything has been started and when everything is ready, and ends with the first thing that cannot go on.
async fn watch_over(lab: &Arc<Lab>, begun: Instant, replicas: &mut Tasks, helpers: &mut Tasks) -> anyhow::Result<()> {
    let mut changes = lab.registry.changes();
    let (mut started, mut ready, mut slow) = (false, false, false);
    loop {
        if !started && lab.registry.all(|entry| entry.begun) {
            started = true;
            let (mesh, summary) = (lab.mesh.name.clone(), lab.summary());
            lab.console.say(Event::Started { mesh, millis: millis(begun.elapsed()), summary }).await;
        }
        if started && !ready && lab.registry.all(registry::Entry::settled) {
            ready = true;
            lab.write_ready().context("the file `ready` cannot be written")?;
            lab.console.say(Event::Ready { millis: millis(begun.elapsed()) }).await;
        }
        tokio::select! {
            ended = replicas.join_next(), if !replicas.is_empty() => joined(ended)?,
            ended = helpers.join_next(), if !helpers.is_empty() => joined(ended)?,
            changed = changes.changed() => changed.context("the registry is gone")?,
            () = sleep_until(begun + SLOW), if !ready && !slow => {
                slow = true;
                for (replica, entry) in lab.replicas.iter().zip(lab.registry.all_entries()) {
                    if !entry.settled() {
                        let why = if entry.why.is_empty() { "it has not been started yet" } else { entry.why.as_str() };
                        lab.console.warn(format!("{}/{} is not ready after {} s: {why}", replica.namespace, replica.pod, SLOW.as_secs())).await;
                    }
                }
            }
        }
    }
}

/// What a task ended with: an error, since none ends well before it is told to.
fn joined(ended: Option<Result<anyhow::Result<()>, tokio::task::JoinError>>) -> anyhow::Result<()> {
    match ended {
        Some(Ok(outcome)) => outcome,
        Some(Err(panic)) => Err(anyhow!("a task of the lab failed: {panic}")),
        None => Ok(()),
    }
}

impl Lab {
    /// Tells the control plane of a replica, and whether it can serve.
    fn publish(&self, index: usize, ready: bool) -> anyhow::Result<()> {
        let replica = &self.plan.replicas[index];
        let manifest = manifests::pod(&self.mesh.workloads[replica.workload], replica, ready, self.ipv6);
        self.manifests.put(&manifest).with_context(|| format!("the manifest of {} cannot be written", replica.pod))
    }

    /// Everything with its address, as it stands.
    fn summary(&self) -> Summary {
        let entries = self.registry.all_entries();
        let workloads = self
            .replicas
            .iter()
            .zip(&self.plan.replicas)
            .zip(entries)
            .map(|((spec, planned), entry)| WorkloadLine {
                namespace: spec.namespace.clone(),
                name: self.mesh.workloads[planned.workload].name.to_string(),
                replica: spec.pod.clone(),
                address: spec.v4.to_string(),
                meshed: spec.meshed,
                ready: entry.settled(),
            })
            .collect();
        let services = self
            .mesh
            .services
            .iter()
            .zip(&self.plan.services)
            .map(|(service, address)| ServiceLine {
                namespace: service.namespace.to_string(),
                name: service.name.to_string(),
                address: address.map(|a| a.to_string()),
                ports: service.ports.iter().map(|p| p.port).collect(),
            })
            .collect();
        Summary { workloads, services }
    }

    fn write_ready(&self) -> std::io::Result<()> {
        let mut text = serde_json::to_string(&self.summary())?;
        text.push('\n');
        let temporary = self.spec.run.join(".ready.new");
        std::fs::write(&temporary, text)?;
        std::fs::rename(temporary, self.spec.run.join(rundir::READY))
    }
}
