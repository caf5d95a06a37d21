//! What is told of single requests and connections: spans, access-log lines, tap events.
//!
//! A worker makes a [`record::Record`] only of what somebody wants: a trace that is sampled, an access log, a tap. Without one of them a request costs a load.
//! When the request is over, it writes of it what is wanted, and the telemetry thread takes that to exporters, standard output and taps (`way.rs`). Where there is no room, records are
//! dropped and counted: traffic never waits.

use std::cell::{Cell, OnceCell, RefCell};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::Notify;
use tokio::time::Instant;
use weft_core::authorization::Decision;
use weft_core::metrics::{Family, table};
use weft_core::trace::Sampler;

use crate::metrics::worker::unix_nanos;

mod alike;
pub mod config;
mod digits;
mod fields;
mod line;
mod note;
pub mod propagate;
pub mod record;
#[cfg(test)]
mod reference;
mod resource;
pub(crate) use resource::{resource, text_of};
pub mod ring;
mod shown;
mod span;
mod stdout;
pub mod tap;
#[cfg(test)]
mod tests;
pub mod thread;
mod way;

use alike::Alike;
use config::AccessLog;
pub use config::{TelemetryConfig, Telling, Tracing};
use note::Making;
pub use note::{Note, connection, malformed, request};
use record::Noted;
pub use shown::{Excerpt, Show};
use way::{MANY, Way};

use crate::metrics::notices::words;
use crate::otlp::batch::Counts;
use ring::Ring;
use tap::{Sought, Taps};

/// Who wants records.
const TRACES: u32 = 1;
const LOG: u32 = 2;
const TAP: u32 = 4;

/// What all workers and the telemetry thread share.
pub struct Telemetry {
    /// Bits of who wants records; 0: nobody.
    wanted: AtomicU32,
    tracing: Option<Tracing>,
    /// What gets a line of the access log, or a log record, and what a line has.
    telling: Telling,
    /// Log records are exported.
    logs_leave: bool,
    /// Records that found no room on their way.
    lost: AtomicU64,
    /// Lines of the access log that standard output did not take in time.
    unwritten: AtomicU64,
    spans: Arc<Counts>,
    logs: Arc<Counts>,
    /// Ways that the thread has not seen yet.
    fresh: Mutex<Vec<Arc<Way>>>,
    taps: Mutex<Taps>,
    /// Requests of which values or bodies are kept for a tap.
    shown: Arc<AtomicUsize>,
    /// What open taps ask for, as far as a request's head tells it.
    sought: ArcSwap<Vec<Sought>>,
    /// The second since 1970 in which every tap has had as many events as it may.
    full: AtomicU64,
    /// Requests that were not even looked at, for no tap takes more in this second.
    unseen: AtomicU64,
    /// The thread looks rarely: whoever has a record for it wakes it.
    asleep: AtomicBool,
    /// The last spans.
    pub ring: Ring,
    /// Something is wanted now that was not before.
    wake: Notify,
}

impl Telemetry {
    /// One by what the variables say. `logs_leave` says whether the access log is exported.
    pub fn new(tracing: Option<Tracing>, telling: Telling, logs_leave: bool) -> Self {
        let logs = logs_leave || telling.form != AccessLog::Off;
        let wanted = if tracing.is_some() { TRACES } else { 0 } | if logs { LOG } else { 0 };
        Self {
            wanted: AtomicU32::new(wanted),
            tracing,
            logs_leave,
            lost: AtomicU64::new(0),
            unwritten: AtomicU64::new(0),
            spans: Arc::default(),
            logs: Arc::default(),
            fresh: Mutex::default(),
            taps: Mutex::default(),
            shown: Arc::default(),
            telling,
            sought: ArcSwap::default(),
            full: AtomicU64::new(0),
            unseen: AtomicU64::new(0),
            asleep: AtomicBool::new(false),
            ring: Ring::default(),
            wake: Notify::new(),
        }
    }

    /// One that nobody wants anything of, until somebody taps.
    pub fn off() -> Self {
        Self::new(None, Telling::default(), false)
    }

    fn taps(&self) -> MutexGuard<'_, Taps> {
        self.taps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fresh(&self) -> MutexGuard<'_, Vec<Arc<Way>>> {
        self.fresh.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_wanted(&self) -> bool {
        self.wanted.load(Relaxed) != 0
    }

    /// As metrics have them.
    pub fn families(&self) -> Vec<Family> {
        let (spans, logs) = (self.spans.fate(), self.logs.fate());
        let mut all = spans.families(Some(&table::SPANS_PROCESSED), &table::SPANS_EXPORTED);
        all.extend(logs.families(Some(&table::LOGS_PROCESSED), &table::LOGS_EXPORTED));
        all.extend([
            Family::count(&table::SPANS_WAITING, spans.waiting),
            Family::count(&table::RECORDS_LOST, self.lost.load(Relaxed)),
            Family::count(&table::LINES_LOST, self.unwritten.load(Relaxed)),
        ]);
        all
    }
}

/// One worker's end.
pub struct WorkerTelemetry {
    all: Arc<Telemetry>,
    /// Made when it is first used.
    way: OnceCell<Arc<Way>>,
    /// Room for records in the making.
    #[expect(clippy::vec_box, reason = "each moves between here and its note as a pointer")]
    unmade: RefCell<Vec<Box<Making>>>,
    /// What requests have in common.
    alike: RefCell<Alike>,
    /// What policies had to say of the call that was judged last.
    notice: RefCell<Option<Arc<str>>>,
    /// Both clocks at one moment, not long ago: the monotonic one, and nanoseconds since 1970.
    clocks: Cell<(Instant, u64)>,
}

/// As old as the clocks may be: one that was set is followed by then.
const CLOCKS_AGE: Duration = Duration::from_secs(1);

/// Records that are in the making at once have room that is used again, so many of them.
const UNMADE: usize = 64;
/// As long as their texts were no longer than this.
const LONGEST_KEPT: usize = 4 * 1024;

impl WorkerTelemetry {
    pub fn new(all: Arc<Telemetry>) -> Self {
        let clocks = Cell::new((Instant::now(), unix_nanos()));
        let alike = RefCell::new(Alike::new(&all.telling.fields));
        Self { all, way: OnceCell::new(), unmade: RefCell::default(), alike, notice: RefCell::default(), clocks }
    }

    /// When a moment was, in nanoseconds since 1970. One of the two clocks is looked at once a second, and not for each request.
    fn unix(&self, at: Instant) -> u64 {
        let (mut known, mut unix) = self.clocks.get();
        let mut after = at.checked_duration_since(known);
        if after.is_some_and(|after| after >= CLOCKS_AGE) {
            (known, unix) = (Instant::now(), unix_nanos());
            self.clocks.set((known, unix));
            after = at.checked_duration_since(known);
        }
        let nanos = |duration: Duration| duration.as_nanos() as u64;
        match after {
            Some(after) => unix.saturating_add(nanos(after)),
            None => unix.saturating_sub(nanos(known - at)),
        }
    }

    /// Room for a record in the making.
    fn making(&self) -> Box<Making> {
        self.unmade.borrow_mut().pop().unwrap_or_else(Making::new)
    }

    /// Takes it back, empty.
    fn unmade(&self, making: Box<Making>) {
        let mut unmade = self.unmade.borrow_mut();
        if unmade.len() < UNMADE && making.noted.texts.capacity() <= LONGEST_KEPT {
            unmade.push(making);
        }
    }

    /// Tells of a request or connection that is over what is wanted of it, or drops and counts it. `wanted` is who wanted it when it began.
    fn tell(&self, noted: &mut Noted, wanted: u32) {
        let all = &*self.all;
        let wanted = wanted & all.wanted.load(Relaxed);
        let record = &noted.record;
        let failed = record.is_error();
        let is_traced = |tracing: &Tracing| record.trace.as_ref().is_some_and(|t| t.sampled || failed && tracing.errors);
        let is_traced = all.tracing.as_ref().is_some_and(is_traced);
        let is_logged = wanted & LOG != 0 && all.telling.logs(failed);
        let is_tapped = wanted & TAP != 0;
        if !(is_traced || is_logged || is_tapped) {
            return;
        }
        let way = self.way.get_or_init(|| {
            let way = Arc::<Way>::default();
            all.fresh().push(way.clone());
            way
        });
        let there = way.put(|bundle| {
            let told = noted.told();
            let mut spans = 0;
            let mut attributes = 0..0;
            let (mut alike, is_line) = (self.alike.borrow_mut(), is_logged && all.telling.form == AccessLog::Json);
            let range = alike.range();
            let common = if is_traced || is_line { alike.of(&told, &all.telling.fields) } else { None };
            if is_traced {
                spans = span::count(told.record);
                for i in 0..spans {
                    let written = span::write(&mut bundle.spans.bytes, &told, i, common.map(|common| &*common.span));
                    if i == 0 {
                        attributes = written;
                    }
                }
                bundle.spans.count += spans;
            }
            if is_logged && all.logs_leave {
                let shared = (spans == 1).then(|| &bundle.spans.bytes[attributes]);
                span::write_log(&mut bundle.logs.bytes, &told, shared);
                bundle.logs.count += 1;
            }
            if is_logged && all.telling.form != AccessLog::Off {
                let (out, fields) = (&mut bundle.lines.bytes, &all.telling.fields);
                if is_line {
                    line::json(out, fields, &told, common.map(|common| (range, &*common.line)));
                } else {
                    line::text(out, fields, &told);
                }
                out.push(b'\n');
                bundle.lines.count += 1;
            }
            if is_tapped {
                bundle.tapped.push(std::mem::take(noted));
            }
        });
        if there.is_none() {
            all.lost.fetch_add(1, Relaxed);
        }
        if there == Some(MANY) || all.asleep.load(Relaxed) && all.asleep.swap(false, Relaxed) {
            all.wake.notify_one();
        }
    }

    pub fn is_wanted(&self) -> bool {
        self.all.is_wanted()
    }

    /// AUDIT policies or dry runs have something to say of the call that is being judged: [`Note::judged`] takes it.
    pub fn notices(&self, decision: &Decision) {
        *self.notice.borrow_mut() = words(decision);
    }

    fn sampler(&self) -> Option<&Sampler> {
        self.all.tracing.as_ref().map(|t| &t.sampler)
    }
}
