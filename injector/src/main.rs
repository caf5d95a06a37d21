//! `weft-injector log`: see `weft_log::door`. `weft-injector`: trace → config → namespaces, certificate, version → serve → wait for a signal → bounded drain.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use kube::Client;
use tokio::signal::unix::{SignalKind, signal};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use weft_injector::certificate::{Current, Keeper, Serving};
use weft_injector::config::Config;
use weft_injector::listen::listen;
use weft_injector::namespaces::Namespaces;
use weft_injector::status::{self, Status};
use weft_injector::webhook::{self, Limits, Webhook};
use weft_log::Levels;

fn main() -> anyhow::Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if let Some(("log", rest)) = words.split_first().map(|(first, rest)| (first.as_str(), rest)) {
        return weft_log::door::main(status::SERVICE, rest);
    }
    let config = Config::parse();
    let log = weft_log::Log::begin(&config.log)?;
    weft_log::door::open(status::SERVICE, log.levels());
    if let Err(e) = weft_tls::keep_private() {
        tracing::warn!(error = %e, "core files cannot be forbidden, and would hold private keys");
    }
    // The client of the API server takes the process's provider; without one it would guess among those that are built in.
    if rustls::crypto::aws_lc_rs::default_provider().install_default().is_err() {
        anyhow::bail!("a cryptographic provider is in place already: a fault in weft");
    }
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?.block_on(run(config, log.levels()))
}

async fn run(config: Config, levels: Levels) -> anyhow::Result<()> {
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let stop = CancellationToken::new();
    let current = Arc::new(Current::default());
    let status = Arc::new(Status::new(current.clone(), levels, ["certificate", "namespaces", "version"]));
    let drain = Duration::from_secs(config.serve.drain_seconds);
    tokio::spawn(status::serve(listen(config.serve.status_port)?, status.clone(), stop.clone()));

    let serving = serve(config, current, status.clone(), stop.clone());
    let mut serving = std::pin::pin!(serving);
    tokio::select! {
        ended = serving.as_mut() => return ended,
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
    tracing::info!("draining");
    status.drain();
    // API servers learn only by and by that this replica is to be called no more.
    if let Ok(ended) = tokio::time::timeout(drain, serving.as_mut()).await {
        return ended;
    }
    stop.cancel();
    let bound = Limits::default().drain + Duration::from_secs(1);
    if tokio::time::timeout(bound, serving).await.is_err() {
        tracing::info!("cutting what is left");
    }
    tracing::info!("stopped");
    Ok(())
}

/// Prepares, then serves until `stop`.
async fn serve(config: Config, current: Arc<Current>, status: Arc<Status>, stop: CancellationToken) -> anyhow::Result<()> {
    let (namespaces, native_sidecar) = match &config.cluster.dir {
        Some(dir) => {
            current.serve(from_directory(dir)?);
            status.has("certificate");
            // There is no server to ask: as every current one has it.
            (Namespaces::Directory(dir.join("namespaces")), config.inject.native_sidecars.suit("1", "31"))
        }
        None => {
            let client =
                Client::try_default().await.context("no cluster can be found: run in a pod, or set KUBECONFIG, or --dir")?;
            let namespaces = Namespaces::follow(client.clone());
            tokio::spawn(Keeper::new(&client, config.cluster.clone(), current.clone(), status.clone()).run());
            (namespaces, has_native_sidecars(&config, &client).await)
        }
    };
    status.has("version");
    namespaces.wait_until_known().await;
    status.has("namespaces");
    let options = config.inject.options(native_sidecar, &config.cluster.namespace);
    tracing::info!(native_sidecar, port = config.serve.port, "serving");
    let webhook = Arc::new(Webhook { options, namespaces, status, limits: Limits::default() });
    let tls = TlsAcceptor::from(Arc::new(current.tls()));
    webhook::serve(listen(config.serve.port)?, tls, webhook, stop).await;
    Ok(())
}

fn from_directory(dir: &Path) -> anyhow::Result<Serving> {
    let read = |name: &str| std::fs::read(dir.join(name)).with_context(|| format!("{}/{name}", dir.display()));
    Serving::read(&read("tls.crt")?, &zeroize::Zeroizing::new(read("tls.key")?))
        .with_context(|| format!("tls.crt and tls.key in {}", dir.display()))
}

/// Asks the API server for its version until it answers. A cluster that is upgraded later has native sidecars from the
/// injector's next start on; until then its pods are injected as they were.
async fn has_native_sidecars(config: &Config, client: &Client) -> bool {
    loop {
        match client.apiserver_version().await {
            Ok(version) => return config.inject.native_sidecars.suit(&version.major, &version.minor),
            Err(error) => tracing::warn!(%error, "the API server does not tell its version; asking again"),
        }
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
}
