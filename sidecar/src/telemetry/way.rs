//! The way of records from a worker to the telemetry thread.
//!
//! Both share one bundle. The worker adds to it under a lock that nobody else holds, but for the moment in which the thread takes the whole bundle and leaves an empty one:
//! many records change hands for one lock of the thread's, in memory that is used again.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::record::{Noted, Record};

/// Records that one worker may have on their way. The thread looks many times a second.
pub(super) const ON_THE_WAY: usize = 4_096;

/// After so many the thread is woken, that it may take them while they are at hand. With fewer, it looks by itself.
pub(super) const MANY: usize = 256;

/// Bytes of texts that are much.
const MUCH: usize = 256 * 1024;

/// Records, and their texts one behind the other.
#[derive(Default)]
pub(super) struct Bundle {
    records: Vec<(Record, usize)>,
    texts: String,
    /// How far it was told: records, and bytes of texts.
    told: (usize, usize),
}

impl Bundle {
    fn add(&mut self, noted: &mut Noted) {
        self.texts.push_str(&noted.texts);
        self.records.push((std::mem::take(&mut noted.record), noted.texts.len()));
    }

    /// The next record that was not told yet, which may be taken out.
    pub(super) fn next(&mut self) -> Option<(&mut Record, &str)> {
        let (record, len) = self.records.get_mut(self.told.0)?;
        let texts = &self.texts[self.told.1..][..*len];
        self.told = (self.told.0 + 1, self.told.1 + *len);
        Some((record, texts))
    }

    fn clear(&mut self) {
        // What a moment with very many has left is given back.
        let much = self.records.capacity() > 4 * MANY || self.texts.capacity() > MUCH;
        if self.records.len() < MANY && self.texts.len() < MUCH / 4 && much {
            *self = Self::default();
        }
        self.records.clear();
        self.texts.clear();
        self.told = (0, 0);
    }
}

/// See above.
#[derive(Default)]
pub(super) struct Way(Mutex<Bundle>);

impl Way {
    fn bundle(&self) -> MutexGuard<'_, Bundle> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a record, in whose place there is an empty one then; gives how many there are now, or none if there is no room.
    pub(super) fn put(&self, noted: &mut Noted) -> Option<usize> {
        let mut bundle = self.bundle();
        if bundle.records.len() == ON_THE_WAY {
            drop(bundle);
            noted.record = Record::default();
            return None;
        }
        bundle.add(noted);
        Some(bundle.records.len())
    }

    /// Takes all records in exchange for this bundle, whose own were told.
    pub(super) fn take(&self, told: &mut Bundle) {
        told.clear();
        std::mem::swap(&mut *self.bundle(), told);
    }

    /// Whether its worker is gone, and nothing of it is left.
    pub(super) fn is_over(self: &Arc<Self>) -> bool {
        Arc::strong_count(self) == 1 && self.bundle().records.is_empty()
    }
}
