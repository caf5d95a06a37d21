//! The sidecar's metrics over OTLP, by the standard variables.

use std::sync::Arc;

use super::families::{constant, gather};
use crate::identity::random;
use crate::otlp::push::Push;
use crate::otlp::{Env, SettingError};
use crate::telemetry::resource;
use crate::worker::Shared;

/// Begins to push, where the variables name a collector; ends with the runtime. Says where to.
pub fn begin(shared: &Arc<Shared>, env: &Env) -> Result<Option<String>, SettingError> {
    let Some(push) = Push::new(env, shared.config.net.mark)? else { return Ok(None) };
    let place = push.place().to_owned();
    let counts = shared.metrics.points.clone();
    let (shared, env) = (shared.clone(), env.clone());
    tokio::spawn(push.run(counts, random, move || (gather(&shared), constant(&shared), resource(&shared, &env))));
    Ok(Some(place))
}
