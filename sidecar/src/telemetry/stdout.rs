//! Lines to standard output. Whoever reads them may be slow, and then lines are dropped and counted.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use super::Telemetry;
use super::way::Items;
use crate::outlet::Outlet;

/// Bytes of lines that may wait: a reader may stop for a second at 10,000 requests a second.
const MOST: usize = 4 * 1024 * 1024;

/// The way to standard output.
pub(super) struct Lines {
    way: Outlet,
    telemetry: Arc<Telemetry>,
}

impl Lines {
    pub(super) fn new(telemetry: Arc<Telemetry>) -> std::io::Result<Self> {
        let way = Outlet::new("weft-access-log", MOST, false, std::io::stdout())?;
        Ok(Self { way, telemetry })
    }

    /// Sends lines; what is left is empty.
    pub(super) fn send(&self, lines: &mut Items) {
        let count = std::mem::take(&mut lines.count) as u64;
        if count > 0 {
            self.way.send(std::mem::replace(&mut lines.bytes, self.way.empty()), count);
        }
        self.telemetry.unwritten.store(self.way.dropped(), Relaxed);
    }

    /// Waits until all is written, but no longer than this.
    pub(super) fn close(self, within: Duration) {
        self.way.close(within);
    }
}
