//! `weft-control-plane relay`: see `relay.rs`; `weft-control-plane log`: see `weft_log::door`. `weft-control-plane`: config → CA → source → serve → wait for a signal → bounded drain.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use weft_control_plane::accept::{self, Gate};
use weft_control_plane::config::Config;
use weft_control_plane::dashboard::Dashboard;
use weft_control_plane::dashboard::traffic::Traffic;
use weft_control_plane::discovery::DiscoveryService;
use weft_control_plane::hub::Hub;
use weft_control_plane::issue::ca::Ca;
use weft_control_plane::issue::given;
use weft_control_plane::issue::service::CertificatesService;
use weft_control_plane::issue::trust::Lives;
use weft_control_plane::issue::trust::living::Living;
use weft_control_plane::model::Model;
use weft_control_plane::operator::OperatorService;
use weft_control_plane::probe::{self, Health, Stage};
use weft_control_plane::push;
use weft_control_plane::relay;
use weft_control_plane::replicas::ReplicasService;
use weft_control_plane::server::{self, CertificatesServer, DiscoveryServer, OperatorServer, ReplicasServer};
use weft_control_plane::snapshot::Entry;
use weft_control_plane::source::Source;
use weft_control_plane::watch::{Batch, Problem};
use weft_core::service::ObjectRef;
use weft_log::Levels;
use weft_proto::v1;
use weft_proto::v1::resource::Body;

/// What is under way, and the lease, have this long after a drain.
const LAST: Duration = Duration::from_secs(3);

fn main() -> anyhow::Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.split_first().map(|(first, rest)| (first.as_str(), rest)) {
        Some(("relay", rest)) => return relay::main(rest),
        Some(("log", rest)) => return weft_log::door::main(probe::SERVICE, rest),
        _ => {}
    }
    let config = Config::parse();
    let log = weft_log::Log::begin(&config.log)?;
    weft_log::door::open(probe::SERVICE, log.levels());
    if let Err(e) = weft_tls::keep_private() {
        tracing::warn!(error = %e, "core files cannot be forbidden, and would hold the CA's keys");
    }
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(run(config, log.levels()))
}

async fn run(config: Config, levels: Levels) -> anyhow::Result<()> {
    let stop = stop_on_signal()?;
    let health = Health::new(levels);
    if let Some(address) = config.probe {
        probe::serve(address, health.clone()).await?;
    }
    let over = CancellationToken::new();
    let pushing = push::begin(&health, over.clone().cancelled_owned());
    let outcome = serve(config, stop, health).await;
    over.cancel();
    if let Some(pushing) = pushing {
        // It ends in two seconds, whatever a collector does.
        let _ = pushing.await;
    }
    outcome
}

async fn serve(config: Config, stop: CancellationToken, health: Arc<Health>) -> anyhow::Result<()> {
    // Until it serves, it may be stopped at any time.
    let Some(source) = stop.run_until_cancelled(Source::open(&config.source)).await else { return Ok(()) };
    let source = source?;
    health.is_now(Stage::Waiting("the CA"));
    let Some(ca) = stop.run_until_cancelled(source.ca(&config)).await else { return Ok(()) };
    let ca = Arc::new(ca?);
    source.keep_denials(&config, &ca)?;
    let model = model(&config, &ca);
    let hub = Hub::new(model.snapshot().clone());
    health.follow(hub.clone());
    health.tells_of_ca(ca.clone());
    let (proof, tokens) = source.proof(&config, &hub)?;
    let listener = server::listen(config.listen).await?;
    let address = listener.local_addr()?;
    let socket = server::operator_socket(&config.state.join(relay::SOCKET))?;
    let (complete, mut is_complete) = watch::channel(false);
    let living = Arc::new(Living::default());
    let trust = source.trust(&config, &ca, &hub, lives(&hub, &living))?;
    let traffic = Traffic::new(hub.clone(), Duration::from_millis(server::unix_millis().unsigned_abs()));
    tokio::spawn(traffic.clone().watch());
    let dashboard = Arc::new(Dashboard {
        hub: hub.clone(),
        ca: ca.clone(),
        traffic: traffic.clone(),
        replica: config.cluster.replica.clone(),
        others: source.others(&config, &ca, &hub)?,
    });
    let operators = Server::builder()
        .add_service(OperatorServer::new(OperatorService {
            ca: ca.clone(),
            tokens,
            hub: hub.clone(),
            trust: trust.clone(),
            dashboard,
            mtls: config.mtls,
            default_policy: config.default_policy,
            egress: config.egress,
        }))
        .serve_with_incoming(socket);
    let mut operators = tokio::spawn(operators);

    health.is_now(Stage::Waiting("everything to be read once"));
    let mut writer = tokio::spawn(write(model, source.follow()?, ca.clone(), hub.clone(), complete));
    tokio::select! {
        biased;
        () = stop.cancelled() => return Ok(()),
        read = is_complete.wait_for(|c| *c) => drop(read.context("the source could not be read")?),
        r = &mut operators => r?.context("the operator server ended")?,
    }

    let stopping = CancellationToken::new();
    let drain = source.drain(&config);
    let gate = Gate::new("grpc", accept::workload_limits());
    health.tells_of(&gate);
    let connections = server::accepted(listener, gate, ca.clone())?;
    if let Some(dns) = config.dns {
        weft_control_plane::dns::serve(dns, &config.cluster_domain, hub.clone()).await?;
    }
    let (reporter, health_service) = tonic_health::server::health_reporter();
    for name in server::HEALTH_SERVICES {
        reporter.set_service_status(name, tonic_health::ServingStatus::Serving).await;
    }
    let discovery = DiscoveryService {
        hub: hub.clone(),
        traffic: traffic.clone(),
        records: ca.records().clone(),
        denials: ca.denials().follow(),
        heartbeat: Duration::from_secs(config.heartbeat.into()),
        max_age: Duration::from_secs(config.stream_age.into()),
        stopping: stopping.clone(),
        spread: drain / 3,
    };
    let models = hub.clone();
    let has_pod = Arc::new(move |pod: &ObjectRef, sa: &str| models.snapshot().has_pod(pod, sa));
    let certificates = CertificatesService { ca: ca.clone(), proof, has_pod };
    let mut tasks = source.write(&config, &ca, &hub, &health, &stop);
    let workloads = server::workload_server()
        .add_service(CertificatesServer::new(certificates).max_decoding_message_size(64 * 1024))
        .add_service(DiscoveryServer::new(discovery).max_decoding_message_size(1 << 20))
        .add_service(
            ReplicasServer::new(ReplicasService { trust: trust.clone(), traffic: traffic.clone() })
                .max_decoding_message_size(1024),
        )
        .add_service(health_service)
        .add_service(server::reflection()?)
        .serve_with_incoming_shutdown(connections, drained(stop.clone(), health.clone(), stopping, drain));
    tokio::spawn(look(living, hub.clone()));
    tokio::spawn(expire_denials(ca.clone()));
    if let Some(files) = config.given_ca() {
        tokio::spawn(given::follow(files, ca.clone()));
    }
    let mut rotating = tokio::spawn(trust.run());
    health.is_now(Stage::Serving);
    tracing::info!(%address, anchor = %ca.anchor_hash(), trust_domain = %config.trust_domain, "ready");

    tokio::select! {
        biased;
        // Nobody else could take sidecars over.
        () = stop.cancelled(), if drain.is_zero() => tracing::info!("stopping"),
        r = workloads => r.context("the gRPC server ended")?,
        r = &mut operators => r?.context("the operator server ended")?,
        _ = &mut writer => anyhow::bail!("the source cannot be followed any more"),
        _ = &mut rotating => anyhow::bail!("the rotation of the root is not followed any more"),
        () = async { stop.cancelled().await; sleep(drain + LAST).await } => tracing::info!("cutting what is left"),
    }
    let _ = timeout(LAST, async { while tasks.join_next().await.is_some() {} }).await;
    tracing::info!("stopped");
    Ok(())
}

/// Cancelled when the process is told to stop.
fn stop_on_signal() -> anyhow::Result<CancellationToken> {
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let stop = CancellationToken::new();
    let told = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
        told.cancel();
    });
    Ok(stop)
}

fn model(config: &Config, ca: &Ca) -> Model {
    let trust = Entry::new(Body::Trust(ca.told()));
    let mesh = Entry::new(Body::Mesh(v1::Mesh {
        trust_domain: config.trust_domain.to_string(),
        ranges: config.mesh_ranges.iter().map(ToString::to_string).collect(),
        features: vec![weft_core::policy::FEATURE_OUTBOUND.to_owned()],
    }));
    Model::new(config.trust_domain.clone(), config.mtls, trust, mesh)
        .with_authorization(config.default_policy, config.cluster.namespace.clone())
        .with_egress(config.egress)
}

/// Ends when this replica is to accept no more. In thirds: first the cluster learns that it goes, then streams end one after
/// another, then what is under way may end.
async fn drained(stop: CancellationToken, health: Arc<Health>, stopping: CancellationToken, drain: Duration) {
    stop.cancelled().await;
    tracing::info!("stopping");
    health.is_now(Stage::Stopping);
    sleep(drain / 3).await;
    stopping.cancel();
    sleep(drain / 3).await;
}

/// A pod that is gone serves nobody; before all is read, nobody is known to be gone.
fn lives(hub: &Arc<Hub>, living: &Arc<Living>) -> Lives {
    let (hub, living) = (hub.clone(), living.clone());
    Arc::new(move |pod| living.lives(pod, hub.snapshot().pods.contains_key(pod)))
}

/// Has it known who is gone; ends when that can be seen from the model alone.
async fn look(living: Arc<Living>, hub: Arc<Hub>) {
    while !living.look(hub.snapshot().pods.keys(), hub.problems().is_empty(), Instant::now()) {
        sleep(Duration::from_secs(1)).await;
    }
}

/// Has denials fall out whose time is over.
async fn expire_denials(ca: Arc<Ca>) {
    loop {
        sleep(Duration::from_secs(1)).await;
        ca.denials().expire(server::unix_now());
    }
}

/// The model's one writer.
async fn write(mut model: Model, mut batches: mpsc::Receiver<Batch>, ca: Arc<Ca>, hub: Arc<Hub>, complete: watch::Sender<bool>) {
    let mut reported = Vec::new();
    let (mut standing, mut denials) = (ca.standing(), ca.denials().follow());
    // It may be another since the model was made.
    standing.mark_changed();
    loop {
        let batch = tokio::select! {
            biased;
            changed = async { tokio::select! { changed = standing.changed() => changed, changed = denials.changed() => changed } } => {
                if changed.is_err() {
                    return;
                }
                standing.mark_unchanged();
                denials.mark_unchanged();
                let trust = Entry::new(Body::Trust(ca.told()));
                let changed = model.trust(trust);
                hub.publish(model.snapshot().clone(), &changed);
                continue;
            }
            batch = batches.recv() => batch,
        };
        let Some(batch) = batch else { return };
        report(&batch.problems, &mut reported);
        let changed = model.apply(batch.changes);
        // Before anybody is served: who is denied must not slip in meanwhile.
        ca.denials().says(model.said());
        hub.set_problems(batch.problems.into_iter().chain(model.problems()).chain(model.notes()).collect());
        if !changed.is_empty() {
            tracing::debug!(generation = model.snapshot().generation, changed = changed.len(), "published");
            hub.publish(model.snapshot().clone(), &changed);
        }
        if batch.complete {
            complete.send_replace(true);
        }
    }
}

/// Logs what was not logged before.
fn report(problems: &[Problem], reported: &mut Vec<Problem>) {
    for p in problems.iter().filter(|p| !reported.contains(p)) {
        tracing::warn!(place = %p.place, field = %p.field, "{}; the last good version stays in force", p.message);
    }
    *reported = problems.to_vec();
}
