//! The way from a worker to the telemetry thread of what is told of requests.
//!
//! A worker writes spans, log records and lines as the bytes that leave the process, as soon as a request is over: all that is known of it is in the caches of its core then, and
//! every byte is written once. The thread passes bytes on that it hardly looks at.
//!
//! Both share one bundle. The worker adds to it under a lock that nobody else holds, but for the moment in which the thread takes the whole bundle and leaves an empty one.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::record::Noted;

/// Requests of which one worker may have told and the thread has not taken. It looks many times a second.
pub(super) const ON_THE_WAY: usize = 4_096;
/// The same, in bytes; and of lines, of which all that is passed on at once has to have room on its way to standard output.
const MOST: usize = 8 * 1024 * 1024;
const MOST_LINES: usize = 2 * 1024 * 1024;

/// After so many the thread is woken, that it may take them while there is room. With fewer, it looks by itself.
pub(super) const MANY: usize = 512;

/// Bytes that are much for a buffer that is kept.
const MUCH: usize = 512 * 1024;

/// Spans, log records or lines, one behind the other.
#[derive(Default)]
pub(super) struct Items {
    pub(super) bytes: Vec<u8>,
    pub(super) count: usize,
}

impl Items {
    /// Gives it other memory, in the place of what has left with its items.
    pub(super) fn has_room(&mut self, memory: impl FnOnce() -> Vec<u8>) {
        if self.bytes.capacity() == 0 {
            self.bytes = memory();
        }
    }

    fn clear(&mut self) {
        // What a moment with very many has left is given back.
        if self.bytes.capacity() > MUCH && self.bytes.len() < MUCH / 4 {
            self.bytes = Vec::new();
        }
        self.bytes.clear();
        self.count = 0;
    }
}

/// What was told of some requests.
#[derive(Default)]
pub(super) struct Bundle {
    /// Of so many.
    pub(super) requests: usize,
    pub(super) spans: Items,
    pub(super) logs: Items,
    pub(super) lines: Items,
    /// What taps may take.
    pub(super) tapped: Vec<Noted>,
}

impl Bundle {
    fn is_full(&self) -> bool {
        let bytes = [&self.spans, &self.logs, &self.lines].map(|items| items.bytes.len());
        self.requests == ON_THE_WAY || bytes.iter().sum::<usize>() > MOST || self.lines.bytes.len() > MOST_LINES
    }

    fn clear(&mut self) {
        for items in [&mut self.spans, &mut self.logs, &mut self.lines] {
            items.clear();
        }
        self.requests = 0;
        self.tapped = Vec::new();
    }
}

/// See above.
#[derive(Default)]
pub(super) struct Way(Mutex<Bundle>);

impl Way {
    fn bundle(&self) -> MutexGuard<'_, Bundle> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells of a request, and gives of how many is told now; none, and nothing is written, if there is no room.
    pub(super) fn put(&self, write: impl FnOnce(&mut Bundle)) -> Option<usize> {
        let mut bundle = self.bundle();
        if bundle.is_full() {
            return None;
        }
        write(&mut bundle);
        bundle.requests += 1;
        Some(bundle.requests)
    }

    /// Takes everything in exchange for this bundle, what is left in it is thrown away.
    pub(super) fn take(&self, passed: &mut Bundle) {
        passed.clear();
        std::mem::swap(&mut *self.bundle(), passed);
    }

    /// Whether its worker is gone, and nothing of it is left.
    pub(super) fn is_over(self: &Arc<Self>) -> bool {
        Arc::strong_count(self) == 1 && self.bundle().requests == 0
    }
}
