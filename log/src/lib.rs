//! How weft's programs log. What they say goes to standard error by way of an [`Outlet`], so that nobody who serves ever waits for whoever reads it; what
//! is logged can be changed while they run ([`Levels`]): by the sidecar's admin socket, and of the other programs by a [`door`] of their own.

pub mod door;
mod levels;
pub mod outlet;

use std::io::IsTerminal;
use std::time::Duration;

use anyhow::Context;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt;

pub use levels::Levels;
pub use outlet::Outlet;

/// Bytes of the log that may wait for whoever reads standard error.
const WAITING: usize = 1024 * 1024;
/// How long the last lines may take.
const LAST: Duration = Duration::from_secs(1);

/// The log of this process. When it is dropped, what was said last is written, if somebody takes it soon.
#[derive(Debug)]
pub struct Log {
    levels: Levels,
    outlet: Outlet,
}

impl Log {
    /// Begins to log what `filter` lets by. Once in a process: an error says that the filter (`--log`) is none, or that there is a log already.
    pub fn begin(filter: &str) -> anyhow::Result<Self> {
        let (filter, handle) = reload::Layer::new(levels::read(filter).map_err(|why| {
            anyhow::anyhow!("--log: {filter:?} is no filter: {why}: write info, or info,weft_sidecar::discovery=debug")
        })?);
        let outlet = Outlet::new("weft-log", WAITING, true, std::io::stderr()).context("cannot start the log's thread")?;
        let lines = tracing_subscriber::fmt::layer().with_writer(outlet.clone()).with_ansi(std::io::stderr().is_terminal());
        tracing_subscriber::registry().with(filter).with(lines).try_init().context("a log is there already: a fault in weft")?;
        Ok(Self { levels: Levels::new(handle, Some(outlet.clone())), outlet })
    }

    /// What is logged, to be read and changed.
    pub fn levels(&self) -> Levels {
        self.levels.clone()
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.outlet.close(LAST);
    }
}
