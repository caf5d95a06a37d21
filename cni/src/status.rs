//! What the agent tells of itself: `/live`, `/ready` and `/metrics`, in plaintext, on a port of their own.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt::Write;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use crate::wire::{Answer, Task};

const AT_ONCE: usize = 16;
const HEAD: Duration = Duration::from_secs(2);
const WHOLE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(50);

/// Readiness and counters.
#[derive(Debug)]
pub struct Status {
    /// Why the agent is not ready; None where it is.
    waiting: Mutex<Option<String>>,
    answers: Mutex<BTreeMap<(&'static str, &'static str), u64>>,
    repairs: Mutex<BTreeMap<&'static str, u64>>,
    unredirected: AtomicU64,
    chain_writes: AtomicU64,
}

impl Default for Status {
    fn default() -> Self {
        Self {
            waiting: Mutex::new(Some("starting".to_owned())),
            answers: Mutex::default(),
            repairs: Mutex::default(),
            unredirected: AtomicU64::new(0),
            chain_writes: AtomicU64::new(0),
        }
    }
}

impl Status {
    /// From now on the agent is ready, or is not for this reason. A change is logged.
    pub fn is_now(&self, waiting: Option<String>) {
        let mut now = locked(&self.waiting);
        if *now != waiting {
            match &waiting {
                None => tracing::info!("ready"),
                Some(why) => tracing::warn!(why, "not ready"),
            }
            *now = waiting;
        }
    }

    /// Why the agent is not ready, if it is not.
    pub fn why_not_ready(&self) -> Option<String> {
        locked(&self.waiting).clone()
    }

    /// A question was answered.
    pub fn answered(&self, task: Task, answer: &Answer) {
        let task = match task {
            Task::Add => "add",
            Task::Check => "check",
        };
        let outcome = match answer {
            Answer::InForce => "in-force",
            Answer::Left { .. } => "left",
            Answer::Later { .. } => "later",
            Answer::Refused { .. } => "refused",
        };
        *locked(&self.answers).entry((task, outcome)).or_default() += 1;
    }

    /// So many pods of this node have no redirect although they should.
    pub fn are_unredirected(&self, count: usize) {
        self.unredirected.store(count as u64, Ordering::Relaxed);
    }

    /// A pod without its redirect was `deleted`, or `told` about.
    pub fn repaired(&self, how: &'static str) {
        *locked(&self.repairs).entry(how).or_default() += 1;
    }

    /// The chain had to be written.
    pub fn chained(&self) {
        self.chain_writes.fetch_add(1, Ordering::Relaxed);
    }

    /// All metrics, in Prometheus' text format.
    pub fn metrics(&self) -> String {
        let mut text = String::new();
        head(&mut text, "weft_cni_answers_total", "counter", "Questions of the plugin that were answered.");
        for ((task, outcome), count) in &*locked(&self.answers) {
            let _ = writeln!(text, "weft_cni_answers_total{{task=\"{task}\",outcome=\"{outcome}\"}} {count}");
        }
        head(
            &mut text,
            "weft_cni_repairs_total",
            "counter",
            "Pods that started without their redirect, by what was done about it.",
        );
        for (how, count) in &*locked(&self.repairs) {
            let _ = writeln!(text, "weft_cni_repairs_total{{action=\"{how}\"}} {count}");
        }
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        for (name, kind, help, value) in [
            (
                "weft_cni_pods_without_redirect",
                "gauge",
                "Pods of this node that wait for want of their redirect.",
                of(&self.unredirected),
            ),
            (
                "weft_cni_chain_writes_total",
                "counter",
                "Times that the plugin's entry had to be written.",
                of(&self.chain_writes),
            ),
            (
                "weft_cni_ready",
                "gauge",
                "Whether the plugin is in the chain and is answered.",
                u64::from(self.why_not_ready().is_none()),
            ),
        ] {
            head(&mut text, name, kind, help);
            let _ = writeln!(text, "{name} {value}");
        }
        text
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn head(text: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

/// Listens on every address, of both IP versions where there are both; port 0 is any that is free.
pub async fn listen(port: u16) -> std::io::Result<TcpListener> {
    match TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).await {
        Ok(listener) => Ok(listener),
        Err(_) => TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await,
    }
}

/// Serves until it is dropped.
pub async fn serve(listener: TcpListener, status: Arc<Status>) {
    let slots = Arc::new(Semaphore::new(AT_ONCE));
    loop {
        // The semaphore is never closed.
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let status = status.clone();
                tokio::spawn(async move {
                    connection(stream, status).await;
                    drop(slot);
                });
            }
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
}

async fn connection(stream: TcpStream, status: Arc<Status>) {
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
    const PLAIN: &str = "text/plain; charset=utf-8";
    match (request.method(), request.uri().path()) {
        (&Method::GET, "/live") => reply(StatusCode::OK, PLAIN, "live\n".to_owned()),
        (&Method::GET, "/ready") => match status.why_not_ready() {
            None => reply(StatusCode::OK, PLAIN, "ready\n".to_owned()),
            Some(why) => reply(StatusCode::SERVICE_UNAVAILABLE, PLAIN, format!("{why}\n")),
        },
        (&Method::GET, "/metrics") => reply(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", status.metrics()),
        _ => reply(StatusCode::NOT_FOUND, PLAIN, "there are GET /live, /ready and /metrics\n".to_owned()),
    }
}

fn reply(status: StatusCode, kind: &'static str, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_happened_is_counted() {
        let status = Status::default();
        assert_eq!(status.why_not_ready().as_deref(), Some("starting"));
        status.is_now(None);
        status.answered(Task::Add, &Answer::InForce);
        status.answered(Task::Add, &Answer::InForce);
        status.answered(Task::Check, &Answer::Refused { why: String::new() });
        status.repaired("deleted");
        status.are_unredirected(3);
        let metrics = status.metrics();
        for line in [
            "weft_cni_answers_total{task=\"add\",outcome=\"in-force\"} 2\n",
            "weft_cni_answers_total{task=\"check\",outcome=\"refused\"} 1\n",
            "weft_cni_repairs_total{action=\"deleted\"} 1\n",
            "weft_cni_pods_without_redirect 3\n",
            "weft_cni_ready 1\n",
        ] {
            assert!(metrics.contains(line), "{line} is not in\n{metrics}");
        }
    }
}
