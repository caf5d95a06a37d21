//! The control plane's metrics over OTLP, by the standard `OTEL_*` variables.

use std::sync::Arc;

use tokio::task::JoinHandle;
use weft_core::metrics::Labels;
use weft_otlp::push::{Push, resource};
use weft_otlp::{Env, random};

use crate::probe::{Health, SERVICE};

/// Begins to push, where the variables name a collector; ends after `stop`, with a last push. What cannot be honoured is told, and keeps nothing from starting.
pub fn begin(health: &Arc<Health>, stop: impl Future<Output = ()> + Send + 'static) -> Option<JoinHandle<()>> {
    let env = Env::of_process();
    match Push::new(&env, 0) {
        Ok(None) => None,
        Ok(Some(push)) => {
            tracing::info!(to = push.place(), "metrics are pushed");
            let (health, counts) = (health.clone(), health.pushed.clone());
            let gather = move || {
                (health.families(), Labels::new(), resource(&env, SERVICE, &[("service.version", env!("CARGO_PKG_VERSION"))]))
            };
            Some(tokio::spawn(push.run(counts, random, gather, stop)))
        }
        Err(e) => {
            tracing::error!("metrics are not pushed: {e}");
            None
        }
    }
}
