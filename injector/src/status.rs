//! What the injector tells of itself: `/live`, `/ready` and `/metrics`, in plaintext, on a port of their own.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::ACCEPT;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use weft_core::admission::Limits;
use weft_core::metrics::{Family, Format, Labels, Recorder, expose, table};
use weft_log::Levels;

use crate::Verdict;
use crate::certificate::{Current, unix_now};
use crate::listen::{self, Gate, Guest, accept};

const MAX_CONNECTIONS: usize = 64;
const HEAD: Duration = Duration::from_secs(2);
const WHOLE: Duration = Duration::from_secs(10);

/// Readiness and counters.
#[derive(Debug)]
pub struct Status {
    current: Arc<Current>,
    missing: Mutex<BTreeSet<&'static str>>,
    draining: AtomicBool,
    reviews: Mutex<BTreeMap<(&'static str, &'static str), u64>>,
    review_took: Recorder,
    bad_requests: Mutex<BTreeMap<u16, u64>>,
    bad_handshakes: AtomicU64,
    gates: Mutex<Vec<Gate>>,
    levels: Levels,
}

/// What this program is called.
pub const SERVICE: &str = "weft-injector";

impl Status {
    /// Of a process that logs so. Not ready before each of `missing` is [there](Self::has).
    pub fn new(current: Arc<Current>, levels: Levels, missing: impl IntoIterator<Item = &'static str>) -> Self {
        Self {
            current,
            missing: Mutex::new(missing.into_iter().collect()),
            draining: AtomicBool::new(false),
            reviews: Mutex::default(),
            review_took: Recorder::default(),
            bad_requests: Mutex::default(),
            bad_handshakes: AtomicU64::new(0),
            gates: Mutex::default(),
            levels,
        }
    }

    /// What was waited for is there.
    pub fn has(&self, what: &'static str) {
        if self.missing.lock().unwrap_or_else(PoisonError::into_inner).remove(what) {
            tracing::info!(what, "there");
        }
    }

    /// From now on this replica is not ready, so that others are called.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// Why this replica is not ready, if it is not.
    pub fn why_not_ready(&self) -> Option<String> {
        if self.draining.load(Ordering::Relaxed) {
            return Some("draining".to_owned());
        }
        let missing = self.missing.lock().unwrap_or_else(PoisonError::into_inner);
        if !missing.is_empty() {
            return Some(format!("waiting for: {}", missing.iter().copied().collect::<Vec<_>>().join(", ")));
        }
        match self.current.seconds_left(unix_now()) {
            Some(left) if left > 0 => None,
            _ => Some("the certificate has expired".to_owned()),
        }
    }

    pub(crate) fn reviewed(&self, verdict: &Verdict, took: Duration) {
        let mut reviews = self.reviews.lock().unwrap_or_else(PoisonError::into_inner);
        *reviews.entry(verdict.words()).or_default() += 1;
        self.review_took.record(took);
    }

    pub(crate) fn bad_request(&self, status: StatusCode) {
        *self.bad_requests.lock().unwrap_or_else(PoisonError::into_inner).entry(status.as_u16()).or_default() += 1;
    }

    pub(crate) fn bad_handshake(&self) {
        self.bad_handshakes.fetch_add(1, Ordering::Relaxed);
    }

    /// Has the connections of one more port told.
    pub(crate) fn tells_of(&self, gate: &Gate) {
        self.gates.lock().unwrap_or_else(PoisonError::into_inner).push(gate.clone());
    }

    /// All metrics.
    pub fn families(&self) -> Vec<Family> {
        let locked = |reviews: &Mutex<BTreeMap<_, u64>>| reviews.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut info = Family::new(&table::TARGET_INFO);
        let name = Labels::new().and(table::SERVICE_NAME, SERVICE).and(table::SERVICE_VERSION, env!("CARGO_PKG_VERSION"));
        info.counts(name, 1);
        let mut reviews = Family::new(&table::INJECTOR_REVIEWS);
        for ((verdict, reason), count) in locked(&self.reviews) {
            reviews.counts(Labels::new().and(table::VERDICT, verdict).and(table::REASON, reason), count);
        }
        let mut duration = Family::new(&table::INJECTOR_DURATION);
        duration.distributes(Labels::new(), self.review_took.read());
        let mut bad = Family::new(&table::INJECTOR_BAD_REQUESTS);
        for (status, count) in &*self.bad_requests.lock().unwrap_or_else(PoisonError::into_inner) {
            bad.counts(Labels::new().and(table::STATUS, *status), *count);
        }
        let left = self.current.seconds_left(unix_now()).unwrap_or(0);
        let mut all = vec![
            info,
            reviews,
            duration,
            bad,
            Family::count(&table::INJECTOR_BAD_HANDSHAKES, self.bad_handshakes.load(Ordering::Relaxed)),
            Family::level(&table::INJECTOR_CERTIFICATE_EXPIRY, left as f64),
            Family::count(&table::INJECTOR_READY, u64::from(self.why_not_ready().is_none())),
            Family::count(&table::LOG_LOST, self.levels.lost()),
        ];
        let gates = self.gates.lock().unwrap_or_else(PoisonError::into_inner);
        all.extend(listen::families(&table::INJECTOR_CONNECTIONS, &table::INJECTOR_CONNECTIONS_REFUSED, &gates));
        all
    }
}

/// Serves until `stop`.
pub async fn serve(listener: TcpListener, status: Arc<Status>, stop: CancellationToken) {
    let gate = Gate::new("status", Limits::quarter(MAX_CONNECTIONS));
    status.tells_of(&gate);
    accept(listener, &gate, &stop, |stream, guest| connection(stream, guest, status.clone())).await;
}

async fn connection(stream: TcpStream, _guest: Arc<Guest>, status: Arc<Status>) {
    let service = service_fn(move |request| {
        let response = answer(&request, &status);
        async move { Ok::<_, Infallible>(response) }
    });
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .keep_alive(false)
        .header_read_timeout(HEAD)
        .max_buf_size(16 * 1024)
        .serve_connection(TokioIo::new(stream), service);
    let _ = tokio::time::timeout(WHOLE, serving).await;
}

fn answer(request: &Request<Incoming>, status: &Status) -> Response<Full<Bytes>> {
    match (request.method(), request.uri().path()) {
        (&Method::GET, "/live") => plain(StatusCode::OK, "live"),
        (&Method::GET, "/ready") => match status.why_not_ready() {
            None => plain(StatusCode::OK, "ready"),
            Some(why) => plain(StatusCode::SERVICE_UNAVAILABLE, &why),
        },
        (&Method::GET, "/metrics") => {
            let format = Format::of(request.headers().get(ACCEPT).and_then(|value| value.to_str().ok()));
            reply(StatusCode::OK, format.content_type(), expose(format, &status.families(), &Labels::new()))
        }
        _ => plain(StatusCode::NOT_FOUND, "there are GET /live, /ready and /metrics"),
    }
}

pub(crate) fn plain(status: StatusCode, text: &str) -> Response<Full<Bytes>> {
    reply(status, "text/plain; charset=utf-8", format!("{text}\n"))
}

pub(crate) fn reply(status: StatusCode, kind: &'static str, text: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(text.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(hyper::header::CONTENT_TYPE, hyper::header::HeaderValue::from_static(kind));
    response
}
