//! `weft-control-plane`: config → CA → watch → serve → wait for a signal → stop.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};
use tonic::transport::Server;
use weft_control_plane::config::Config;
use weft_control_plane::discovery::DiscoveryService;
use weft_control_plane::hub::Hub;
use weft_control_plane::issue::ca::{Ca, Source};
use weft_control_plane::issue::service::CertificatesService;
use weft_control_plane::issue::token::Tokens;
use weft_control_plane::model::Model;
use weft_control_plane::operator::OperatorService;
use weft_control_plane::server::{self, CertificatesServer, DiscoveryServer, OperatorServer};
use weft_control_plane::snapshot::Entry;
use weft_control_plane::watch::directory;
use weft_proto::v1;
use weft_proto::v1::resource::Body;

fn main() -> anyhow::Result<()> {
    let config = Config::parse();
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::try_new(&config.log).context("--log")?)
        .with_writer(std::io::stderr)
        .init();
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(run(config))
}

async fn run(config: Config) -> anyhow::Result<()> {
    let ca_dir = config.state.join("ca");
    let source = match (&config.ca_chain, &config.ca_key) {
        (Some(chain), Some(key)) => Source::Given { chain, key },
        _ => Source::Kept(&ca_dir),
    };
    let ca = Arc::new(Ca::open(config.trust_domain.clone(), &source)?);
    let tokens = Arc::new(Tokens::open(&config.state.join("tokens")).context("the state directory's tokens")?);

    let trust = Entry::new(Body::Trust((&**ca.bundle()).into()));
    let mesh = Entry::new(Body::Mesh(v1::Mesh {
        trust_domain: config.trust_domain.to_string(),
        ranges: config.mesh_ranges.iter().map(ToString::to_string).collect(),
    }));
    let mut model = Model::new(config.trust_domain.clone(), config.mtls, trust, mesh);
    let mut batches = directory::follow(&config.dir)?;
    // Nothing is served before the source has been read once.
    let first = batches.recv().await.context("the directory could not be read")?;
    report(&first.problems);
    model.apply(first.changes);
    let hub = Hub::new(model.snapshot().clone());
    hub.set_problems(first.problems.into_iter().chain(model.problems()).collect());
    let writer = tokio::spawn(write(model, batches, hub.clone()));

    let (address, connections) = server::listen(config.listen, ca.clone()).await?;
    if let Some(dns) = config.dns {
        weft_control_plane::dns::serve(dns, &config.cluster_domain, hub.clone()).await?;
    }
    let (health, health_service) = tonic_health::server::health_reporter();
    for name in server::HEALTH_SERVICES {
        health.set_service_status(name, tonic_health::ServingStatus::Serving).await;
    }
    let for_model = hub.clone();
    let certificates = CertificatesService {
        ca: ca.clone(),
        tokens: tokens.clone(),
        has_pod: Arc::new(move |pod, sa| for_model.snapshot().has_pod(pod, sa)),
    };
    let discovery = DiscoveryService { hub: hub.clone(), heartbeat: Duration::from_secs(config.heartbeat.into()) };
    let workloads = server::workload_server()
        .add_service(CertificatesServer::new(certificates).max_decoding_message_size(64 * 1024))
        .add_service(DiscoveryServer::new(discovery).max_decoding_message_size(1 << 20))
        .add_service(health_service)
        .add_service(server::reflection()?)
        .serve_with_incoming(connections);
    let socket = server::operator_socket(&config.state.join("operator.sock"))?;
    let operators = Server::builder()
        .add_service(OperatorServer::new(OperatorService { ca: ca.clone(), tokens, hub }))
        .serve_with_incoming(socket);
    tracing::info!(%address, anchor = %ca.anchor_hash(), trust_domain = %config.trust_domain, "ready");

    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::select! {
        r = workloads => r.context("the gRPC server ended")?,
        r = operators => r.context("the operator server ended")?,
        _ = writer => anyhow::bail!("the directory cannot be followed any more"),
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
    tracing::info!("stopping");
    Ok(())
}

/// The model's one writer.
async fn write(mut model: Model, mut batches: tokio::sync::mpsc::Receiver<directory::Batch>, hub: Arc<Hub>) {
    while let Some(batch) = batches.recv().await {
        report(&batch.problems);
        let changed = model.apply(batch.changes);
        hub.set_problems(batch.problems.into_iter().chain(model.problems()).collect());
        if !changed.is_empty() {
            tracing::debug!(generation = model.snapshot().generation, changed = changed.len(), "published");
            hub.publish(model.snapshot().clone(), &changed);
        }
    }
}

fn report(problems: &[weft_control_plane::watch::Problem]) {
    for p in problems {
        tracing::warn!(place = %p.place, field = %p.field, "{}; the last good version stays in force", p.message);
    }
}
