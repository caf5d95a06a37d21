//! Taps: live requests and connections, for whoever may use the admin socket. Names of header fields are told; values and bodies where it is asked for and the workload allows it
//! (`shown.rs`).

use std::io::Write;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::fields::{FIELDS, Named};
use super::line::{json, quoted};
use super::record::{Attempt, Told};
use super::shown::Show;
use super::{TAP, Telemetry};
use crate::http::RequestHead;
use crate::metrics::worker::unix_nanos;
use crate::otlp::env::percent_decoded;

/// Taps of one sidecar at once.
const MOST_TAPS: usize = 8;
/// Events that wait for a slow reader.
const WAITING: usize = 256;
/// The most events a second that a tap may ask for.
const MOST_EVENTS: u32 = 1_000;
/// Events a second unless the tap asks otherwise.
const EVENTS: u32 = 100;
/// So often a tap that is silent says that it is there, so that a reader who is gone is noticed.
const BEAT: Duration = Duration::from_secs(2);

/// What a tap is for. Every part that is given must hold.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// A part of the caller's identity or address.
    pub from: Option<String>,
    /// A part of what was called: the target's name, or the endpoint's identity or address.
    pub to: Option<String>,
    /// The beginning of the path.
    pub path: Option<String>,
    pub method: Option<String>,
    /// A status, or a class as in `5xx`.
    pub status: Option<String>,
    pub errors: bool,
    pub inbound: Option<bool>,
    /// Events a second.
    pub most: Option<u32>,
    /// How much it is shown of each.
    pub show: Show,
}

impl Filter {
    /// Reads the query of `/tap`: `from`, `to`, `path`, `method`, `status`, `errors`, `direction`, `rate` and `show`.
    pub fn read(query: &str) -> Result<Self, String> {
        let mut filter = Self::default();
        for part in query.split('&').filter(|part| !part.is_empty()) {
            let (name, value) = part.split_once('=').ok_or_else(|| format!("{part:?} has no ="))?;
            let value = percent_decoded(value).ok_or_else(|| format!("the value of {name} is not percent-encoded UTF-8"))?;
            match name {
                "from" => filter.from = Some(value),
                "to" => filter.to = Some(value),
                "path" => filter.path = Some(value),
                "method" => filter.method = Some(value),
                "status" if is_status(&value) => filter.status = Some(value),
                "status" => return Err(format!("{value:?} is no status: write 503 or 5xx")),
                "errors" => filter.errors = value == "true",
                "direction" if value == "inbound" || value == "outbound" => filter.inbound = Some(value == "inbound"),
                "direction" => return Err(format!("{value:?} is no direction: write inbound or outbound")),
                "rate" => {
                    let rate = value.parse().ok().filter(|n| (1..=MOST_EVENTS).contains(n));
                    filter.most = Some(rate.ok_or_else(|| format!("rate is from 1 to {MOST_EVENTS} a second"))?);
                }
                "show" => {
                    filter.show = Show::parse(&value)
                        .ok_or_else(|| format!("{value:?} cannot be shown: write names, headers or bodies"))?;
                }
                other => return Err(format!("a tap has no filter {other:?}")),
            }
        }
        Ok(filter)
    }

    fn takes(&self, told: &Told<'_>) -> bool {
        let record = told.record;
        let has = |text: &str, part: &str| text.contains(part);
        let from = |part: &str| has(told.text(record.caller), part) || record.client.to_canonical().to_string() == *part;
        let to = |part: &str| {
            let endpoint = |a: &Attempt| has(told.text(a.peer), part) || a.address.to_string().starts_with(part);
            has(told.text(record.target), part) || record.attempts.iter().any(endpoint)
        };
        let request = record.request.as_ref();
        let status = record.status.to_string();
        let is_status = |s: &str| s.strip_suffix("xx").map_or_else(|| status == *s, |class| status.starts_with(class));
        self.from.as_deref().is_none_or(from)
            && self.to.as_deref().is_none_or(to)
            && self.path.as_deref().is_none_or(|p| request.is_some_and(|r| told.text(r.path).starts_with(p)))
            && self.method.as_deref().is_none_or(|m| request.is_some_and(|r| told.text(r.method).eq_ignore_ascii_case(m)))
            && self.status.as_deref().is_none_or(is_status)
            && (!self.errors || record.is_error())
            && self.inbound.is_none_or(|inbound| inbound == (record.direction == crate::metrics::Direction::Inbound))
    }
}

/// What a tap asks for that a worker knows when a request comes: what does not fit is no further looked at.
pub(super) struct Sought {
    inbound: Option<bool>,
    method: Option<String>,
    path: Option<String>,
    pub(super) show: Show,
}

impl Sought {
    pub(super) fn takes(&self, inbound: bool, head: &RequestHead) -> bool {
        self.inbound.is_none_or(|wanted| wanted == inbound)
            && self.method.as_deref().is_none_or(|method| head.method.eq_ignore_ascii_case(method.as_bytes()))
            && self.path.as_deref().is_none_or(|path| head.path().starts_with(path.as_bytes()))
    }
}

fn is_status(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes.len() == 3 && bytes[0].is_ascii_digit() && (&bytes[1..] == b"xx" || bytes[1..].iter().all(u8::is_ascii_digit))
}

struct Tap {
    id: u64,
    filter: Filter,
    way: mpsc::Sender<Bytes>,
    /// Nanoseconds since 1970: what ended before is not live.
    opened: u64,
    /// The second that is running, and events in it.
    second: Instant,
    events: u32,
    /// Events that were not told since the last time that this was said.
    dropped: u64,
    /// Something was said last.
    said: Instant,
}

/// Every tap that is open.
#[derive(Default)]
pub(super) struct Taps {
    open: Vec<Tap>,
    next: u64,
}

impl Taps {
    fn tell_workers(&self, telemetry: &Telemetry) {
        let sought = |Tap { filter, .. }: &Tap| Sought {
            inbound: filter.inbound,
            method: filter.method.clone(),
            path: filter.path.clone(),
            show: filter.show,
        };
        telemetry.sought.store(Arc::new(self.open.iter().map(sought).collect()));
        telemetry.full.store(0, Relaxed);
    }

    /// Tells every tap whose filter takes it.
    pub(super) fn tell(&mut self, told: &Told<'_>, now: Instant) {
        for tap in &mut self.open {
            if now.duration_since(tap.second) >= Duration::from_secs(1) {
                (tap.second, tap.events) = (now, 0);
            }
            let ended = told.record.began.saturating_add(told.record.took.as_nanos() as u64);
            // Of a request that began before, less was kept than it asks for.
            let is_live = if tap.filter.show == Show::Names { ended } else { told.record.began } >= tap.opened;
            if !is_live || !tap.filter.takes(told) {
                continue;
            }
            if tap.events >= tap.filter.most.unwrap_or(EVENTS) {
                tap.dropped += 1;
                continue;
            }
            if tap.way.try_send(event(told, tap.filter.show)).is_err() {
                tap.dropped += 1;
            } else {
                tap.events += 1;
                tap.said = now;
            }
        }
    }

    /// Says how many events were dropped, and that who is silent is there. `unseen` requests came while every tap had had what it may: whether they are what it
    /// asks for is not known, but where it asks for nothing special.
    pub(super) fn beat(&mut self, now: Instant, unseen: u64) {
        for tap in &mut self.open {
            tap.dropped += unseen;
            let silent = now.duration_since(tap.said) >= BEAT;
            let tells = tap.dropped > 0 && now.duration_since(tap.second) >= Duration::from_secs(1);
            if !(silent || tells) {
                continue;
            }
            let text = if tap.dropped > 0 { format!("{{\"dropped\":{}}}\n", tap.dropped) } else { "\n".to_owned() };
            if tap.way.try_send(text.into()).is_ok() {
                (tap.dropped, tap.said) = (0, now);
            }
        }
    }

    /// Whether each has had as many events as it may in this second.
    pub(super) fn are_full(&self, now: Instant) -> bool {
        let is_full = |tap: &Tap| {
            tap.events >= tap.filter.most.unwrap_or(EVENTS) && now.duration_since(tap.second) < Duration::from_secs(1)
        };
        self.open.iter().all(is_full)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.open.is_empty()
    }
}

/// A record as a line of JSON: the fields of the access log, the attempts, and the names of the request's header fields.
fn event(told: &Told<'_>, show: Show) -> Bytes {
    let shown: Vec<Named> = FIELDS.iter().filter(|f| !matches!(f.name, "query" | "attempts" | "user_agent")).copied().collect();
    let mut out = Vec::with_capacity(768);
    json(&mut out, &shown, told, None);
    out.pop();
    let record = told.record;
    out.extend_from_slice(b",\"attempts\":[");
    for (i, attempt) in record.attempts.iter().enumerate() {
        let _ = write!(out, "{}{{\"endpoint\":\"{}\",\"peer\":", if i > 0 { "," } else { "" }, attempt.address);
        quoted(&mut out, told.text(attempt.peer));
        let reason = attempt.reason.map_or("null".to_owned(), |r| format!("\"{r}\""));
        let millis = attempt.took.as_micros() as f64 / 1e3;
        let _ = write!(out, ",\"status\":{},\"reason\":{reason},\"duration_ms\":{millis:.3}}}", attempt.status);
    }
    out.extend_from_slice(b"],\"headers\":[");
    for (i, name) in record.fields.iter().flatten().enumerate() {
        if i > 0 {
            out.push(b',');
        }
        quoted(&mut out, name);
    }
    out.push(b']');
    if let Some(shown) = &record.shown {
        shown.json(&mut out, show);
    }
    out.extend_from_slice(
        b"}
",
    );
    out.into()
}

/// Why a tap is not opened.
#[derive(Debug, PartialEq, Eq)]
pub enum Refused {
    /// There are as many as there may be.
    Full,
    /// It asks to be shown more than the workload allows.
    Withheld(String),
}

/// Opens a tap; its events come line by line as the body that is given.
pub fn open(telemetry: &Arc<Telemetry>, filter: Filter) -> Result<Events, Refused> {
    if let Some(why) = telemetry.withholds(filter.show) {
        return Err(Refused::Withheld(why));
    }
    let mut taps = telemetry.taps();
    if taps.open.len() >= MOST_TAPS {
        return Err(Refused::Full);
    }
    let (way, events) = mpsc::channel(WAITING);
    let now = Instant::now();
    taps.next += 1;
    let id = taps.next;
    taps.open.push(Tap { id, filter, way, opened: unix_nanos(), second: now, events: 0, dropped: 0, said: now });
    taps.tell_workers(telemetry);
    telemetry.wanted.fetch_or(TAP, Relaxed);
    if let Some(tap) = taps.open.last_mut() {
        // From here on workers know what it asks for.
        tap.opened = unix_nanos();
    }
    telemetry.wake.notify_one();
    Ok(Events { events, id, telemetry: telemetry.clone() })
}

/// The events of one tap. Dropped, it is closed.
pub struct Events {
    events: mpsc::Receiver<Bytes>,
    id: u64,
    telemetry: Arc<Telemetry>,
}

impl Drop for Events {
    fn drop(&mut self) {
        let mut taps = self.telemetry.taps();
        taps.open.retain(|tap| tap.id != self.id);
        taps.tell_workers(&self.telemetry);
        if taps.is_empty() {
            self.telemetry.wanted.fetch_and(!TAP, Relaxed);
        }
        // What is still on its way is taken now, and not when somebody taps again.
        self.telemetry.wake.notify_one();
    }
}

impl Body for Events {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        self.events.poll_recv(cx).map(|event| event.map(|bytes| Ok(Frame::data(bytes))))
    }
}
