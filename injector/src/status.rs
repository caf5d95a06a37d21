//! What the injector tells of itself: `/live`, `/ready` and `/metrics`, in plaintext, on a port of their own.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::fmt::Write;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use weft_core::admission::Limits;

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
    review_micros: AtomicU64,
    bad_requests: Mutex<BTreeMap<u16, u64>>,
    bad_handshakes: AtomicU64,
    gates: Mutex<Vec<Gate>>,
}

impl Status {
    /// Not ready before each of `missing` is [there](Self::has).
    pub fn new(current: Arc<Current>, missing: impl IntoIterator<Item = &'static str>) -> Self {
        Self {
            current,
            missing: Mutex::new(missing.into_iter().collect()),
            draining: AtomicBool::new(false),
            reviews: Mutex::default(),
            review_micros: AtomicU64::new(0),
            bad_requests: Mutex::default(),
            bad_handshakes: AtomicU64::new(0),
            gates: Mutex::default(),
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
        self.review_micros.fetch_add(took.as_micros() as u64, Ordering::Relaxed);
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

    /// All metrics, in Prometheus' text format.
    pub fn metrics(&self) -> String {
        let mut text = String::new();
        let reviews = self.reviews.lock().unwrap_or_else(PoisonError::into_inner);
        head(&mut text, "weft_injector_reviews_total", "counter", "Admission reviews that were answered.");
        for ((verdict, reason), count) in &*reviews {
            let _ = writeln!(text, "weft_injector_reviews_total{{verdict=\"{verdict}\",reason=\"{reason}\"}} {count}");
        }
        head(&mut text, "weft_injector_review_duration_seconds", "summary", "How long a review took to answer.");
        let seconds = self.review_micros.load(Ordering::Relaxed) as f64 / 1e6;
        let _ = writeln!(text, "weft_injector_review_duration_seconds_sum {seconds}");
        let _ = writeln!(text, "weft_injector_review_duration_seconds_count {}", reviews.values().sum::<u64>());
        drop(reviews);
        head(&mut text, "weft_injector_bad_requests_total", "counter", "Requests that were no admission review.");
        for (status, count) in &*self.bad_requests.lock().unwrap_or_else(PoisonError::into_inner) {
            let _ = writeln!(text, "weft_injector_bad_requests_total{{status=\"{status}\"}} {count}");
        }
        let handshakes = self.bad_handshakes.load(Ordering::Relaxed) as i64;
        let left = self.current.seconds_left(unix_now()).unwrap_or(0);
        let ready = i64::from(self.why_not_ready().is_none());
        for (name, kind, help, value) in [
            ("weft_injector_bad_handshakes_total", "counter", "TLS handshakes that failed.", handshakes),
            ("weft_injector_certificate_expiry_seconds", "gauge", "Seconds until the certificate in use expires.", left),
            ("weft_injector_ready", "gauge", "Whether this replica is ready.", ready),
        ] {
            head(&mut text, name, kind, help);
            let _ = writeln!(text, "{name} {value}");
        }
        text += &listen::metrics("weft_injector", &self.gates.lock().unwrap_or_else(PoisonError::into_inner));
        text
    }
}

fn head(text: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
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
        (&Method::GET, "/metrics") => reply(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", status.metrics()),
        _ => plain(StatusCode::NOT_FOUND, "there are GET /live, /ready and /metrics"),
    }
}

pub(crate) fn plain(status: StatusCode, text: &str) -> Response<Full<Bytes>> {
    reply(status, "text/plain; charset=utf-8", format!("{text}\n"))
}

pub(crate) fn reply(status: StatusCode, kind: &'static str, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response.headers_mut().insert(hyper::header::CONTENT_TYPE, hyper::header::HeaderValue::from_static(kind));
    response
}
