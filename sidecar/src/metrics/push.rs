//! The sidecar's metrics over OTLP, by the standard variables.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::families::{constant, gather};
use crate::identity::random;
use crate::otlp::Env;
use crate::otlp::push::Push;
use crate::telemetry::resource;
use crate::worker::Shared;

/// A sidecar without a certificate is told of by its address after so long: that it has none is worth knowing.
const NAMELESS: Duration = Duration::from_secs(30);

/// Waits until the pod's name is known. Who stores metrics takes another name for another instance, and adds up what both have counted.
async fn named(shared: &Shared) {
    let mut changes = shared.mesh.bundles();
    let known = async { while shared.mesh.identity.load().is_none() && changes.changed().await.is_ok() {} };
    let _ = tokio::time::timeout(NAMELESS, known).await;
}

/// Begins to push, where the variables name a collector, by a thread of its own: to gather and to compress holds nothing else up. It ends after `stop`, with a last
/// push. What cannot be honoured is told, and keeps nothing from starting.
pub fn begin(shared: &Arc<Shared>, env: &Env, stop: CancellationToken) -> Option<JoinHandle<()>> {
    let push = match Push::new(env, shared.config.net.mark) {
        Ok(push) => push?,
        Err(e) => {
            tracing::error!("metrics are not pushed: {e}");
            return None;
        }
    };
    tracing::info!(to = push.place(), "metrics are pushed");
    let counts = shared.metrics.points.clone();
    let (shared, env) = (shared.clone(), env.clone());
    let whose = shared.clone();
    let gathered = move || (gather(&shared), constant(&shared), resource(&shared, &env));
    let started = tokio::runtime::Builder::new_current_thread().enable_all().build().and_then(|runtime| {
        std::thread::Builder::new().name("weft-push".to_owned()).spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    () = named(&whose) => {}
                    () = stop.cancelled() => {}
                }
                push.run(counts, random, gathered, stop.cancelled_owned()).await;
            });
            // A thread that looks a name up cannot be ended: it is left behind.
            runtime.shutdown_background();
        })
    });
    started.inspect_err(|e| tracing::error!(error = %e, "metrics are not pushed")).ok()
}
