//! Lines to standard output, by a thread of their own: whoever reads them may be slow, and then lines are dropped and counted.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::{SyncSender, sync_channel};

use super::Telemetry;

/// Bundles of lines that may wait; each is of one look at the queues.
const WAITING: usize = 64;

/// The way to standard output.
pub(super) struct Lines {
    way: SyncSender<(String, u64)>,
    telemetry: Arc<Telemetry>,
    bundle: String,
    count: u64,
}

impl Lines {
    pub(super) fn new(telemetry: Arc<Telemetry>) -> std::io::Result<Self> {
        let (way, bundles) = sync_channel::<(String, u64)>(WAITING);
        let counts = telemetry.clone();
        std::thread::Builder::new().name("weft-access-log".to_owned()).spawn(move || {
            for (text, count) in bundles {
                if std::io::stdout().write_all(text.as_bytes()).and_then(|()| std::io::stdout().flush()).is_err() {
                    counts.unwritten.fetch_add(count, Relaxed);
                }
            }
        })?;
        Ok(Self { way, telemetry, bundle: String::new(), count: 0 })
    }

    /// Adds a line.
    pub(super) fn line(&mut self, write: impl FnOnce(&mut String)) {
        write(&mut self.bundle);
        self.bundle.push('\n');
        self.count += 1;
    }

    /// Sends what was added.
    pub(super) fn flush(&mut self) {
        let count = std::mem::take(&mut self.count);
        if count > 0 && self.way.try_send((std::mem::take(&mut self.bundle), count)).is_err() {
            self.telemetry.unwritten.fetch_add(count, Relaxed);
        }
    }
}
