//! Lines to standard output. Whoever reads them may be slow, and then lines are dropped and counted.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use super::Telemetry;
use crate::outlet::Outlet;

/// Bytes of lines that may wait: a reader may stop for a second at 10,000 requests a second.
const MOST: usize = 4 * 1024 * 1024;

/// The way to standard output.
pub(super) struct Lines {
    way: Outlet,
    telemetry: Arc<Telemetry>,
    bundle: Vec<u8>,
    count: u64,
}

impl Lines {
    pub(super) fn new(telemetry: Arc<Telemetry>) -> std::io::Result<Self> {
        let way = Outlet::new("weft-access-log", MOST, false, std::io::stdout())?;
        Ok(Self { way, telemetry, bundle: Vec::new(), count: 0 })
    }

    /// Adds a line.
    pub(super) fn line(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        write(&mut self.bundle);
        self.bundle.push(b'\n');
        self.count += 1;
    }

    /// Sends what was added.
    pub(super) fn flush(&mut self) {
        let count = std::mem::take(&mut self.count);
        if count > 0 {
            let next = self.way.empty();
            self.way.send(std::mem::replace(&mut self.bundle, next), count);
        }
        self.telemetry.unwritten.store(self.way.dropped(), Relaxed);
    }

    /// Waits until all is written, but no longer than this.
    pub(super) fn close(mut self, within: Duration) {
        self.flush();
        self.way.close(within);
    }
}
