//! A bounded queue of what is to be exported, and the loop that empties it.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;
use weft_core::metrics::telemetry::Fate;

use super::{Env, Exporter, Parts, random};

/// `OTEL_BSP_*` and `OTEL_BLRP_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Items that wait at the most; more are dropped, the newest first.
    pub queue: usize,
    /// Items of one batch.
    pub batch: usize,
    /// How long an item waits for others.
    pub delay: Duration,
}

impl Limits {
    /// Reads `{prefix}_MAX_QUEUE_SIZE`, `{prefix}_MAX_EXPORT_BATCH_SIZE` and `{prefix}_SCHEDULE_DELAY`. `delay` is the default of the last.
    pub fn read(env: &Env, prefix: &str, delay: Duration) -> Self {
        let queue = env.number(&format!("{prefix}_MAX_QUEUE_SIZE"), 2_048).clamp(1, 1_000_000) as usize;
        let batch = env.number(&format!("{prefix}_MAX_EXPORT_BATCH_SIZE"), 512).clamp(1, queue as u64) as usize;
        let delay =
            env.millis(&format!("{prefix}_SCHEDULE_DELAY"), delay).clamp(Duration::from_millis(10), Duration::from_secs(600));
        Self { queue, batch, delay }
    }
}

/// What became of one signal's items.
#[derive(Debug, Default)]
pub struct Counts {
    pub exported: AtomicU64,
    /// There was no room in the queue.
    pub overflowed: AtomicU64,
    /// Nobody took them in time.
    pub failed: AtomicU64,
    /// The collector took the batch and not them.
    pub rejected: AtomicU64,
    /// Items that wait.
    pub waiting: AtomicU64,
    /// The last batch was not taken.
    pub failing: AtomicBool,
}

impl Counts {
    /// As metrics have them.
    pub fn fate(&self) -> Fate {
        let of = |count: &AtomicU64| count.load(Relaxed);
        Fate {
            exported: of(&self.exported),
            overflowed: of(&self.overflowed),
            failed: of(&self.failed),
            rejected: of(&self.rejected),
            waiting: of(&self.waiting),
        }
    }
}

/// Items that wait to be exported, as the bytes that they are sent as. It belongs to one thread.
pub struct Queue {
    waiting: RefCell<Waiting>,
    limits: Limits,
    filled: Notify,
    /// Items of the batch that is being exported.
    leaving: Cell<usize>,
    closing: Cell<bool>,
    pub counts: Arc<Counts>,
}

/// Full batches, and the one that is being filled.
#[derive(Default)]
struct Waiting {
    /// Each with the number of its items.
    full: VecDeque<(Bytes, usize)>,
    filling: Vec<u8>,
    /// In the one that is being filled.
    fresh: usize,
    /// In all of them.
    items: usize,
    /// Room of batches that have left: memory that is new to the process costs more than what is written into it.
    spare: Vec<Vec<u8>>,
}

/// Buffers that are kept, and the largest of them in bytes.
const SPARE: usize = 4;
const LARGEST_SPARE: usize = 4 * 1024 * 1024;

impl Waiting {
    fn full_batch(&mut self) {
        let next = self.spare.pop().unwrap_or_default();
        let items = std::mem::take(&mut self.fresh);
        self.full.push_back((std::mem::replace(&mut self.filling, next).into(), items));
    }

    fn take(&mut self) -> (Bytes, usize) {
        if self.full.is_empty() {
            self.full_batch();
        }
        let batch = self.full.pop_front().unwrap_or_default();
        self.items -= batch.1;
        batch
    }

    fn keep(&mut self, mut bytes: Vec<u8>) {
        if self.spare.len() < SPARE && bytes.capacity() <= LARGEST_SPARE {
            bytes.clear();
            self.spare.push(bytes);
        }
    }
}

/// Where the first `items` of these end: each is a field of one octet's tag, with a length.
fn end_of(bytes: &[u8], items: usize) -> usize {
    let mut at = 0;
    for _ in 0..items {
        let (mut len, mut shift) = (0, 0);
        loop {
            at += 1;
            len |= usize::from(bytes[at] & 0x7f) << shift;
            shift += 7;
            if bytes[at] < 0x80 {
                break;
            }
        }
        at += 1 + len;
    }
    at
}

impl Queue {
    pub fn new(limits: Limits, counts: Arc<Counts>) -> Rc<Self> {
        Rc::new(Self {
            waiting: RefCell::default(),
            limits,
            filled: Notify::new(),
            leaving: Cell::new(0),
            closing: Cell::new(false),
            counts,
        })
    }

    /// Takes at most a batch of so many items, as [`Self::push_all`].
    pub fn push_some(&self, bytes: &mut Bytes, items: &mut usize) {
        let some = (*items).min(self.limits.batch);
        if some > 0 {
            let end = if some == *items { bytes.len() } else { end_of(bytes, some) };
            self.push_all(bytes.split_to(end), some);
            *items -= some;
        }
    }

    /// Adds so many items, encoded as a repeated field with a tag of one octet; drops and counts those for which there is no room, the last of them first. Many are a batch as they lie,
    /// and are not copied.
    pub fn push_all(&self, mut bytes: Bytes, mut items: usize) {
        let mut waiting = self.waiting.borrow_mut();
        let room = self.limits.queue - waiting.items;
        if items > room {
            self.counts.overflowed.fetch_add((items - room) as u64, Relaxed);
            bytes.truncate(end_of(&bytes, room));
            items = room;
        }
        waiting.items += items;
        if items > self.limits.batch / 3 && items <= self.limits.batch {
            if waiting.fresh > 0 {
                waiting.full_batch();
            }
            waiting.full.push_back((bytes, items));
        } else {
            while items > 0 {
                let some = items.min(self.limits.batch - waiting.fresh);
                let end = if some == items { bytes.len() } else { end_of(&bytes, some) };
                waiting.filling.extend_from_slice(&bytes.split_to(end));
                waiting.fresh += some;
                items -= some;
                if waiting.fresh == self.limits.batch {
                    waiting.full_batch();
                }
            }
        }
        self.counts.waiting.store((waiting.items + self.leaving.get()) as u64, Relaxed);
        if !waiting.full.is_empty() {
            self.filled.notify_one();
        }
    }

    /// Memory of a batch that has left, if there is any, for who makes another.
    pub fn empty(&self) -> Vec<u8> {
        self.waiting.borrow_mut().spare.pop().unwrap_or_default()
    }

    /// Whether more wait than one batch, and than half of what may: the exporter should have its turn.
    pub fn presses(&self) -> bool {
        let waiting = self.waiting.borrow().items;
        waiting >= self.limits.batch && waiting > self.limits.queue / 2
    }

    pub fn is_empty(&self) -> bool {
        self.waiting.borrow().items == 0
    }

    /// From now on nothing waits for others.
    pub fn close(&self) {
        self.closing.set(true);
        self.filled.notify_one();
    }

    fn is_full_batch(&self) -> bool {
        !self.waiting.borrow().full.is_empty()
    }

    /// Exports batch after batch: each when it is full, or when its first item has waited for long enough. It ends only when it is dropped. `head`
    /// gives what stands before a batch of so many bytes, so that both are one message.
    pub async fn run(self: Rc<Self>, mut exporter: Exporter, what: &'static str, head: impl Fn(usize) -> Bytes) {
        loop {
            while !(self.is_full_batch() || self.closing.get() && !self.is_empty()) {
                if tokio::time::timeout(self.limits.delay, self.filled.notified()).await.is_err() && !self.is_empty() {
                    break;
                }
            }
            self.export(&mut exporter, what, &head).await;
        }
    }

    /// Exports one batch.
    async fn export(&self, exporter: &mut Exporter, what: &'static str, head: &impl Fn(usize) -> Bytes) {
        let (rest, items) = self.waiting.borrow_mut().take();
        let count = items as u64;
        self.leaving.set(items);
        let outcome = exporter.export(Parts { head: head(rest.len()), rest: rest.clone() }, random).await;
        let counts = &self.counts;
        self.leaving.set(0);
        let mut waiting = self.waiting.borrow_mut();
        if rest.is_unique() {
            waiting.keep(rest.into());
        }
        counts.waiting.store(waiting.items as u64, Relaxed);
        drop(waiting);
        let was_failing = counts.failing.swap(outcome.is_err(), Relaxed);
        match outcome {
            Ok(taken) => {
                counts.rejected.fetch_add(taken.rejected, Relaxed);
                counts.exported.fetch_add(count.saturating_sub(taken.rejected), Relaxed);
                if taken.rejected > 0 {
                    tracing::warn!(
                        to = exporter.place(),
                        "the collector refused {} of {count} {what}: {}",
                        taken.rejected,
                        taken.message
                    );
                } else if !taken.message.is_empty() {
                    tracing::info!(to = exporter.place(), "the collector says of {what}: {}", taken.message);
                }
                if was_failing {
                    let (lost, failed) = (counts.overflowed.load(Relaxed), counts.failed.load(Relaxed));
                    tracing::info!(
                        to = exporter.place(),
                        "{what} are exported again; lost since the sidecar began: {}",
                        lost + failed
                    );
                }
            }
            Err(why) => {
                counts.failed.fetch_add(count, Relaxed);
                // Once for each time that it begins: it may last for hours.
                if !was_failing {
                    tracing::warn!("{what} cannot be exported, and are dropped and counted: {why}");
                }
            }
        }
    }
}
