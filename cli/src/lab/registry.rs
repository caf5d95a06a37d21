//! How each replica is doing: written by whoever drives it, read by whoever asks.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

/// One replica.
#[derive(Debug, Clone, Default)]
pub(super) struct Entry {
    /// Process 1 of its workload's side, as the lab sees it.
    pub(super) pod: Option<i32>,
    /// Whether its workload was started once.
    pub(super) begun: bool,
    pub(super) phase: Phase,
    /// Whether its sidecar is ready, or it needs none.
    pub(super) meshed: bool,
    /// Whether its health check succeeds.
    pub(super) healthy: bool,
    /// Why it is not ready.
    pub(super) why: String,
}

/// Where its workload is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Phase {
    #[default]
    Starting,
    Running,
    /// It has ended, and is started again unless it is never to be.
    Ended,
    /// It has ended well, and stays so.
    Finished,
}

impl Entry {
    /// Whether it can serve.
    pub(super) fn ready(&self) -> bool {
        self.phase == Phase::Running && self.meshed && self.healthy
    }

    /// Whether there is nothing to wait for.
    pub(super) fn settled(&self) -> bool {
        self.ready() || self.phase == Phase::Finished
    }
}

/// Every replica, by its number in the plan.
#[derive(Debug)]
pub(super) struct Registry {
    entries: Mutex<Vec<Entry>>,
    changed: watch::Sender<()>,
}

impl Registry {
    pub(super) fn new(replicas: usize) -> Self {
        Self { entries: Mutex::new(vec![Entry::default(); replicas]), changed: watch::Sender::new(()) }
    }

    /// Changes one entry, and says whether that replica could serve before and can now.
    pub(super) fn update(&self, index: usize, change: impl FnOnce(&mut Entry)) -> (bool, bool) {
        let outcome = {
            let mut entries = self.lock();
            let entry = &mut entries[index];
            let before = entry.ready();
            change(entry);
            (before, entry.ready())
        };
        self.changed.send_replace(());
        outcome
    }

    pub(super) fn entry(&self, index: usize) -> Entry {
        self.lock()[index].clone()
    }

    pub(super) fn all_entries(&self) -> Vec<Entry> {
        self.lock().clone()
    }

    pub(super) fn all(&self, holds: impl Fn(&Entry) -> bool) -> bool {
        self.lock().iter().all(holds)
    }

    /// Wakes at every change.
    pub(super) fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replica_is_ready_when_all_of_it_is() {
        let registry = Registry::new(2);
        let changes = registry.changes();
        assert_eq!(registry.update(1, |e| e.phase = Phase::Running), (false, false));
        assert_eq!(registry.update(1, |e| e.meshed = true), (false, false));
        assert_eq!(registry.update(1, |e| e.healthy = true), (false, true));
        assert_eq!(registry.update(1, |e| e.phase = Phase::Ended), (true, false));
        assert!(changes.has_changed().expect("the registry lives"));
        registry.update(1, |e| e.phase = Phase::Finished);
        assert!(registry.entry(1).settled() && !registry.all(Entry::settled));
    }
}
