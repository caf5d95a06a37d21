//! `weft-sidecar ask`: see `ask.rs`. `weft-sidecar`: trace → config → bind → workers → identity and discovery → wait for a signal → bounded drain.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use weft_log::Log;
use weft_proto::v1;
use weft_sidecar::config::Config;
use weft_sidecar::discovery::Discovery;
use weft_sidecar::identity::{Current, Keeper, random};
use weft_sidecar::levels::Levels;
use weft_sidecar::mesh::Mesh;
use weft_sidecar::otlp::Env;
use weft_sidecar::saved::Store;
use weft_sidecar::telemetry::thread::{self, Plan};
use weft_sidecar::worker::{Listeners, Shared, Worker};
use weft_sidecar::{admin, ask, metrics, worker, workload};

fn main() -> anyhow::Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if let Some(("ask", rest)) = words.split_first().map(|(first, rest)| (first.as_str(), rest)) {
        return ask::main(rest);
    }
    let config = Config::parse();
    let log = Log::begin(&config.log)?;
    weft_sidecar::limits::raise_open_files();
    if let Err(e) = weft_tls::keep_private() {
        tracing::warn!(error = %e, "core files cannot be forbidden, and would hold private keys");
    }
    let control = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let outcome = control.block_on(run(config, log.levels()));
    // A thread that looks a name up cannot be ended, and holds up nothing.
    control.shutdown_background();
    drop(log);
    outcome
}

async fn run(config: Config, levels: Levels) -> anyhow::Result<()> {
    let (mesh, lookups) = Mesh::new();
    let (plan, telemetry) = Plan::read(Env::of_process(), &config.telemetry, config.net.mark);
    let shared = Arc::new(Shared { levels, ..Shared::telling(config.clone(), mesh.clone(), telemetry) });
    let (told_all, telling) = (CancellationToken::new(), shared.clone());
    let telling = thread::start(telling, plan, told_all.clone())?;
    let workers = start_workers(&shared)?;
    weft_sidecar::dns::serve(&shared)?;
    let asked_to_drain = CancellationToken::new();
    admin::serve(&shared, &asked_to_drain)?;
    let pushing = metrics::push::begin(&shared, &Env::of_process(), told_all.clone());

    let (mut keeper, identity) = Keeper::new(config.clone(), mesh.clone());
    let (discovery, trust) = Discovery::new(config.clone(), mesh.clone());
    let mut discovery = discovery.telling(&shared);
    let (saver, to_save) = watch::channel(Vec::new());
    // It is set once, here.
    let _ = mesh.holding.set(to_save.clone());
    if let Some(dir) = &config.identity.state {
        let store = Store::open(dir)?;
        mesh.saved.send_replace(0);
        match store.load() {
            Ok(Some(saved)) if !config.identity.is(&saved.svid.info().id) => {
                tracing::warn!(saved = %saved.svid.info().id, "saved state is of another identity and is not used");
            }
            Ok(Some(saved)) => {
                tracing::info!(resources = saved.resources.len(), "last good state taken over");
                keeper.adopt(saved.svid, Arc::new(saved.bundle));
                // That is on disk already.
                mesh.saved.send_replace(mesh.identity.load().as_ref().map_or(0, |i| i.generation));
                discovery.restore(saved.resources);
                saver.send_replace(discovery.held());
            }
            Ok(None) => {}
            Err(e) => tracing::warn!("saved state is not used: {e:#}"),
        }
        tokio::spawn(save(store, mesh.clone(), identity.clone(), to_save));
    }
    workload::serve(&config, &mesh, &identity)?;
    let keeping = tokio::spawn(keeper.run(trust));
    let discovering = tokio::spawn(discovery.run(identity, lookups, saver));
    tokio::spawn(tell_when_ready(mesh));

    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
        () = asked_to_drain.cancelled() => {}
        // Neither ends by itself: without one of them the sidecar would grow stale in silence.
        _ = keeping => tracing::error!("the identity task ended: a fault in weft"),
        _ = discovering => tracing::error!("the discovery task ended: a fault in weft"),
    }
    drain(&shared, workers).await;
    told_all.cancel();
    // Both end in a few seconds, whatever a collector does.
    let _ = tokio::task::spawn_blocking(|| (telling.join(), pushing.map(JoinHandle::join))).await;
    tracing::info!("stopped");
    Ok(())
}

/// One thread for each worker. All sockets are bound before the first is served.
fn start_workers(shared: &Arc<Shared>) -> anyhow::Result<watch::Receiver<usize>> {
    let count = weft_sidecar::limits::workers(shared.config.workers);
    let (done, running) = watch::channel(count);
    let done = Arc::new(done);
    for i in 0..count {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let listeners = {
            let _guard = runtime.enter();
            Listeners::bind(&shared.config)?
        };
        let (shared, done) = (shared.clone(), done.clone());
        std::thread::Builder::new().name(format!("weft-worker-{i}")).spawn(move || {
            let worker = Worker::new(shared, random());
            runtime.block_on(worker::run(worker, listeners));
            done.send_modify(|n| *n -= 1);
        })?;
    }
    Ok(running)
}

async fn tell_when_ready(mesh: Arc<Mesh>) {
    while !mesh.is_ready() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    tracing::info!("ready");
}

/// What could not be saved is tried again after this.
const SAVE_AGAIN: Duration = Duration::from_secs(5);

/// Keeps the last good state, at most once a second: after every change of what is held or of the identity.
async fn save(store: Store, mesh: Arc<Mesh>, mut identity: Current, mut to_save: watch::Receiver<Vec<Arc<v1::Resource>>>) {
    let store = Arc::new(store);
    let mut failed = false;
    loop {
        tokio::select! {
            changed = to_save.changed() => if changed.is_err() { return },
            changed = identity.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(SAVE_AGAIN), if failed => {}
        }
        let resources = to_save.borrow_and_update().clone();
        let current = identity.borrow_and_update().clone();
        if let (Some(current), false) = (current, resources.is_empty()) {
            let (store, generation) = (store.clone(), current.generation);
            let saved = tokio::task::spawn_blocking(move || store.save(&current.svid, &current.bundle, &resources)).await;
            if let (Ok(Err(e)), false) = (&saved, failed) {
                tracing::warn!(error = %e, "state cannot be saved; the earlier one stays: make room in the state directory");
            }
            failed = !matches!(saved, Ok(Ok(())));
            if !failed {
                mesh.saved.send_if_modified(|kept| std::mem::replace(kept, generation) != generation);
            }
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// Two phases, both bounded: first still accepting while others learn that the pod goes, then what is under way may end.
async fn drain(shared: &Shared, mut running: watch::Receiver<usize>) {
    let timeouts = shared.config.timeouts;
    tracing::info!("draining");
    shared.draining.cancel();
    tokio::time::sleep(timeouts.drain_grace).await;
    shared.closing.cancel();
    if tokio::time::timeout(timeouts.drain_timeout, running.wait_for(|n| *n == 0)).await.is_err() {
        tracing::info!("cutting what is left");
        shared.cut.cancel();
        let _ = tokio::time::timeout(Duration::from_secs(1), running.wait_for(|n| *n == 0)).await;
    }
}
