//! The sidecar's metrics over OTLP, by the standard variables.

use std::sync::Arc;
use std::thread::JoinHandle;

use tokio_util::sync::CancellationToken;

use super::families::{constant, gather};
use crate::identity::random;
use crate::otlp::Env;
use crate::otlp::push::Push;
use crate::telemetry::resource;
use crate::worker::Shared;

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
    let gathered = move || (gather(&shared), constant(&shared), resource(&shared, &env));
    let started = tokio::runtime::Builder::new_current_thread().enable_all().build().and_then(|runtime| {
        std::thread::Builder::new().name("weft-push".to_owned()).spawn(move || {
            runtime.block_on(push.run(counts, random, gathered, stop.cancelled_owned()));
            // A thread that looks a name up cannot be ended: it is left behind.
            runtime.shutdown_background();
        })
    });
    started.inspect_err(|e| tracing::error!(error = %e, "metrics are not pushed")).ok()
}
