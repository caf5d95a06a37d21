//! Flow records: who called what of this pod, each distinct call once with how often and when. Off until the owner of the admin socket asks for it, for a time.
//!
//! While it is off, a call costs one load. A worker counts in slots of its own; whoever asks merges. Of requests, method, host and path are kept as they came,
//! without the query; no field of a header but the host, and whether it is gRPC.

use std::cell::RefCell;
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::Duration;

use serde::Serialize;
use smallvec::SmallVec;
use tokio::time::Instant;
use weft_core::failure::Reason;

use crate::identity::unix_now;

/// Distinct calls that one worker keeps; others are counted as left out.
const MOST: usize = 5_000;
/// Bytes of a path, a host and a method; a call with more is left out, since a part of it is another call.
const LONGEST: [usize; 3] = [1_024, 256, 32];
/// It is recorded for as long at most, without being asked again.
pub const MAX_TIME: Duration = Duration::from_secs(3_600);

/// A call, as it is judged.
#[derive(Clone, Copy, Hash, PartialEq, Eq, Debug)]
pub struct Call<'a> {
    /// The identity that the caller proved; none for plaintext.
    pub caller: Option<&'a str>,
    pub source: IpAddr,
    pub port: u16,
    pub protocol: &'static str,
    /// None for bytes that are not HTTP.
    pub request: Option<Request<'a>>,
    /// None: it was let in.
    pub refused: Option<Reason>,
}

#[derive(Clone, Copy, Hash, PartialEq, Eq, Debug)]
pub struct Request<'a> {
    pub method: &'a [u8],
    /// As it was sent, without the query.
    pub path: &'a [u8],
    pub host: &'a [u8],
    pub grpc: bool,
}

/// One worker's count of one distinct call.
struct Slot {
    epoch: u64,
    flow: Flow,
    count: AtomicU64,
    /// Seconds since 1970.
    first: i64,
    last: AtomicI64,
}

/// A distinct call.
#[derive(Serialize, Clone, PartialEq, Eq, Hash, Debug)]
pub struct Flow {
    pub caller: Option<Box<str>>,
    pub source: IpAddr,
    pub port: u16,
    pub protocol: &'static str,
    pub method: Option<Box<str>>,
    pub path: Option<Box<str>>,
    pub host: Option<Box<str>>,
    pub grpc: bool,
    pub allowed: bool,
    /// Why it was refused.
    pub reason: Option<&'static str>,
}

impl Flow {
    /// None: it is too long, or not text.
    fn of(call: &Call<'_>) -> Option<Self> {
        let text = |bytes: &[u8], most| -> Option<Box<str>> {
            std::str::from_utf8(bytes).ok().filter(|text| text.len() <= most).map(Into::into)
        };
        let [path, host, method] = LONGEST;
        let request = match &call.request {
            Some(r) => Some((text(r.method, method)?, text(r.path, path)?, text(r.host, host)?)),
            None => None,
        };
        let grpc = call.request.is_some_and(|r| r.grpc);
        let (method, path, host) = request.map_or((None, None, None), |(m, p, h)| (Some(m), Some(p), Some(h)));
        Some(Self {
            caller: call.caller.map(Into::into),
            source: call.source,
            port: call.port,
            protocol: call.protocol,
            method,
            path,
            host,
            grpc,
            allowed: call.refused.is_none(),
            reason: call.refused.map(Reason::as_str),
        })
    }

    fn is(&self, call: &Call<'_>) -> bool {
        let same = match &call.request {
            None => self.path.is_none(),
            Some(r) => {
                let text = |text: &Option<Box<str>>, other: &[u8]| text.as_deref().is_some_and(|t| t.as_bytes() == other);
                text(&self.method, r.method) && text(&self.path, r.path) && text(&self.host, r.host) && self.grpc == r.grpc
            }
        };
        same && self.caller.as_deref() == call.caller
            && (self.source, self.port, self.protocol) == (call.source, call.port, call.protocol)
            && self.reason == call.refused.map(Reason::as_str)
    }
}

/// All workers' records.
pub struct Flows {
    /// 0 while nothing is recorded, else another number each time that it begins.
    epoch: AtomicU64,
    left_out: AtomicU64,
    tell: mpsc::Sender<Arc<Slot>>,
    state: Mutex<State>,
}

struct State {
    told: mpsc::Receiver<Arc<Slot>>,
    /// Of the last epoch.
    slots: Vec<Arc<Slot>>,
    epoch: u64,
    /// Seconds since 1970; 0: never.
    since: i64,
    until: i64,
    ends: Option<Instant>,
    /// For whom, while it is recorded.
    by: u64,
}

/// What was recorded: of the time that it is recorded now, or was last.
#[derive(Serialize, Debug)]
pub struct Report {
    pub recording: bool,
    /// Seconds since 1970; 0 where nothing ever was.
    pub since: i64,
    pub until: i64,
    /// Calls that are in no flow: there were too many distinct ones, or one was too long.
    pub left_out: u64,
    pub flows: Vec<Counted>,
}

#[derive(Serialize, Clone, Debug)]
pub struct Counted {
    #[serde(flatten)]
    pub flow: Flow,
    pub count: u64,
    /// Seconds since 1970.
    pub first: i64,
    pub last: i64,
}

impl Flows {
    pub fn new() -> Arc<Self> {
        let (tell, told) = mpsc::channel();
        let state = State { told, slots: vec![], epoch: 0, since: 0, until: 0, ends: None, by: 0 };
        Arc::new(Self { epoch: AtomicU64::new(0), left_out: AtomicU64::new(0), tell, state: Mutex::new(state) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records for somebody, for so long or for so much longer. What was recorded before is kept only while it goes on. Somebody calls [`Self::expire`] then.
    ///
    /// # Errors
    ///
    /// Where it is recorded for somebody else: for how much longer. Two would end each other's, and each have calls of the other's time.
    pub fn record_for(&self, by: u64, time: Duration) -> Result<(), Duration> {
        let time = time.min(MAX_TIME);
        let mut state = self.state();
        let left = state.ends.map(|ends| ends.saturating_duration_since(Instant::now())).unwrap_or_default();
        if !left.is_zero() && state.by != by {
            return Err(left);
        }
        state.by = by;
        if left.is_zero() {
            state.epoch += 1;
            state.slots.clear();
            state.since = unix_now();
            self.left_out.store(0, Relaxed);
            self.epoch.store(state.epoch, Relaxed);
        }
        let ends = Instant::now() + time;
        state.ends = Some(state.ends.map_or(ends, |before| before.max(ends)));
        state.until = state.until.max(unix_now() + time.as_secs() as i64);
        Ok(())
    }

    /// Records no more for somebody, or for anybody. What was recorded is kept until it is recorded again.
    pub fn stop(&self, by: Option<u64>) {
        let mut state = self.state();
        if by.is_none_or(|by| by == state.by) && state.ends.take().is_some() {
            state.until = unix_now();
            self.epoch.store(0, Relaxed);
        }
    }

    /// Stops if the time is over.
    pub fn expire(&self) {
        if self.state().ends.is_some_and(|ends| ends <= Instant::now()) {
            self.stop(None);
        }
    }

    /// Each distinct call, merged over workers.
    pub fn report(&self) -> Report {
        let mut state = self.state();
        let fresh: Vec<_> = state.told.try_iter().collect();
        let epoch = state.epoch;
        state.slots.extend(fresh.into_iter().filter(|slot| slot.epoch == epoch));
        let mut merged: HashMap<&Flow, Counted> = HashMap::new();
        let mut order = Vec::new();
        for slot in &state.slots {
            let (count, last) = (slot.count.load(Relaxed), slot.last.load(Relaxed));
            let held = merged.entry(&slot.flow).or_insert_with(|| {
                order.push(&slot.flow);
                Counted { flow: slot.flow.clone(), count: 0, first: slot.first, last }
            });
            held.count += count;
            held.first = held.first.min(slot.first);
            held.last = held.last.max(last);
        }
        Report {
            recording: state.ends.is_some(),
            since: state.since,
            until: state.until,
            left_out: self.left_out.load(Relaxed),
            flows: order.iter().filter_map(|flow| merged.get(flow).cloned()).collect(),
        }
    }
}

/// One worker's own.
pub struct FlowLog {
    all: Arc<Flows>,
    hasher: RandomState,
    kept: RefCell<Kept>,
}

#[derive(Default)]
struct Kept {
    epoch: u64,
    count: usize,
    /// By a hash of the call.
    slots: HashMap<u64, SmallVec<[Arc<Slot>; 1]>>,
}

impl FlowLog {
    pub fn new(all: Arc<Flows>) -> Self {
        Self { all, hasher: RandomState::new(), kept: RefCell::default() }
    }

    /// Whether calls are to be noted.
    pub fn is_on(&self) -> bool {
        self.all.epoch.load(Relaxed) != 0
    }

    /// Counts a call.
    pub fn note(&self, call: &Call<'_>) {
        let epoch = self.all.epoch.load(Relaxed);
        if epoch == 0 {
            return;
        }
        let mut kept = self.kept.borrow_mut();
        if kept.epoch != epoch {
            *kept = Kept { epoch, ..Kept::default() };
        }
        let hash = self.hasher.hash_one(call);
        let now = unix_now();
        if let Some(slot) = kept.slots.get(&hash).and_then(|all| all.iter().find(|slot| slot.flow.is(call))) {
            slot.count.store(slot.count.load(Relaxed).wrapping_add(1), Relaxed);
            slot.last.store(now, Relaxed);
            return;
        }
        let flow = if kept.count < MOST { Flow::of(call) } else { None };
        let Some(flow) = flow else {
            self.all.left_out.fetch_add(1, Relaxed);
            return;
        };
        let slot = Arc::new(Slot { epoch, flow, count: AtomicU64::new(1), last: AtomicI64::new(now), first: now });
        kept.count += 1;
        kept.slots.entry(hash).or_default().push(slot.clone());
        // The other end lives as long as the process.
        let _ = self.all.tell.send(slot);
    }

    /// Gives room back once nothing is recorded.
    pub fn sweep(&self) {
        if !self.is_on() && self.kept.borrow().count > 0 {
            *self.kept.borrow_mut() = Kept::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(path: &[u8], refused: Option<Reason>) -> Call<'_> {
        let request = Request { method: b"GET", path, host: b"web.shop", grpc: false };
        Call {
            caller: Some("spiffe://td/ns/a/sa/b"),
            source: [10, 0, 0, 1].into(),
            port: 80,
            protocol: "http/1.1",
            request: Some(request),
            refused,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_recorded_is_bounded_in_time_and_number() {
        let all = Flows::new();
        let (a, b) = (FlowLog::new(all.clone()), FlowLog::new(all.clone()));
        a.note(&call(b"/before", None));
        assert!(!a.is_on() && all.report().flows.is_empty());
        all.record_for(1, Duration::from_secs(10)).expect("nobody else records");
        for log in [&a, &a, &b] {
            log.note(&call(b"/a", None));
        }
        b.note(&call(b"/a", Some(Reason::Denied)));
        b.note(&Call { request: None, protocol: "tcp", ..call(b"", None) });
        a.note(&call(&[b'/'; 2_000], None));
        a.note(&call(b"/\xff", None));
        let report = all.report();
        let counts: Vec<_> = report.flows.iter().map(|c| (c.flow.path.as_deref(), c.flow.allowed, c.count)).collect();
        assert_eq!(counts, [(Some("/a"), true, 3), (Some("/a"), false, 1), (None, true, 1)]);
        assert_eq!((report.recording, report.left_out), (true, 2));
        for i in 0..2 * MOST {
            a.note(&call(format!("/{i}").as_bytes(), None));
        }
        let report = all.report();
        assert_eq!(report.flows.len(), MOST + 2, "the worker had one already, the other one two");
        assert_eq!(report.left_out, 2 + MOST as u64 + 1);

        all.expire();
        assert!(a.is_on());
        all.record_for(1, Duration::from_secs(5)).expect("its own");
        assert_eq!(all.record_for(2, Duration::from_secs(60)), Err(Duration::from_secs(10)));
        all.stop(Some(2));
        assert!(a.is_on(), "it is not theirs to end");
        tokio::time::advance(Duration::from_secs(9)).await;
        all.expire();
        assert!(a.is_on(), "it was asked for ten seconds");
        tokio::time::advance(Duration::from_secs(1)).await;
        all.expire();
        assert!(!a.is_on());
        a.note(&call(b"/after", None));
        a.sweep();
        let report = all.report();
        assert!(!report.recording && report.flows.len() == MOST + 2);
        all.record_for(2, Duration::from_secs(1)).expect("the other's is over");
        assert!(all.report().flows.is_empty(), "it begins anew");
        all.stop(None);
        assert!(!a.is_on());
    }
}
