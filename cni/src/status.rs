//! What the agent tells of itself: `/live`, `/ready` and `/metrics`, in plaintext, on a port of their own.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ACCEPT, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use weft_core::admission::Limits;
use weft_core::metrics::{Family, Format, Labels, expose, table};
use weft_injector::listen::{self, Gate, Guest, accept};
use weft_log::Levels;

use crate::wire::{Answer, Task};

/// Connections at once. One source has a quarter of them.
const MAX_CONNECTIONS: usize = 64;
const HEAD: Duration = Duration::from_secs(2);
const WHOLE: Duration = Duration::from_secs(10);

/// Readiness and counters.
#[derive(Debug)]
pub struct Status {
    /// Why the agent is not ready; None where it is.
    waiting: Mutex<Option<String>>,
    answers: Mutex<BTreeMap<(&'static str, &'static str), u64>>,
    repairs: Mutex<BTreeMap<&'static str, u64>>,
    unredirected: AtomicU64,
    chain_writes: AtomicU64,
    gates: Mutex<Vec<Gate>>,
    levels: Levels,
}

impl Status {
    /// Of a process that logs so.
    pub fn new(levels: Levels) -> Self {
        Self {
            waiting: Mutex::new(Some("starting".to_owned())),
            answers: Mutex::default(),
            repairs: Mutex::default(),
            unredirected: AtomicU64::new(0),
            chain_writes: AtomicU64::new(0),
            gates: Mutex::default(),
            levels,
        }
    }

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

    /// All metrics.
    pub fn families(&self) -> Vec<Family> {
        let mut info = Family::new(&table::TARGET_INFO);
        let name =
            Labels::new().and(table::SERVICE_NAME, "weft-cni-agent").and(table::SERVICE_VERSION, env!("CARGO_PKG_VERSION"));
        info.counts(name, 1);
        let mut answers = Family::new(&table::CNI_ANSWERS);
        for ((task, outcome), count) in &*locked(&self.answers) {
            answers.counts(Labels::new().and(table::TASK, *task).and(table::OUTCOME, *outcome), *count);
        }
        let mut repairs = Family::new(&table::CNI_REPAIRS);
        for (how, count) in &*locked(&self.repairs) {
            repairs.counts(Labels::new().and(table::ACTION, *how), *count);
        }
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let mut all = vec![
            info,
            answers,
            repairs,
            Family::count(&table::CNI_WITHOUT_REDIRECT, of(&self.unredirected)),
            Family::count(&table::CNI_CHAIN_WRITES, of(&self.chain_writes)),
            Family::count(&table::CNI_READY, u64::from(self.why_not_ready().is_none())),
            Family::count(&table::LOG_LOST, self.levels.lost()),
        ];
        all.extend(listen::families(&table::CNI_CONNECTIONS, &table::CNI_CONNECTIONS_REFUSED, &locked(&self.gates)));
        all
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Serves until it is dropped. Nobody who is slow keeps the kubelet out, which would end the agent for it.
pub async fn serve(listener: TcpListener, status: Arc<Status>) {
    let gate = Gate::new("status", Limits::quarter(MAX_CONNECTIONS));
    locked(&status.gates).push(gate.clone());
    accept(listener, &gate, &CancellationToken::new(), |stream, guest| connection(stream, guest, status.clone())).await;
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
    const PLAIN: &str = "text/plain; charset=utf-8";
    match (request.method(), request.uri().path()) {
        (&Method::GET, "/live") => reply(StatusCode::OK, PLAIN, "live\n".to_owned()),
        (&Method::GET, "/ready") => match status.why_not_ready() {
            None => reply(StatusCode::OK, PLAIN, "ready\n".to_owned()),
            Some(why) => reply(StatusCode::SERVICE_UNAVAILABLE, PLAIN, format!("{why}\n")),
        },
        (&Method::GET, "/metrics") => {
            let format = Format::of(request.headers().get(ACCEPT).and_then(|value| value.to_str().ok()));
            reply(StatusCode::OK, format.content_type(), expose(format, &status.families(), &Labels::new()))
        }
        _ => reply(StatusCode::NOT_FOUND, PLAIN, "there are GET /live, /ready and /metrics\n".to_owned()),
    }
}

fn reply(status: StatusCode, kind: &'static str, text: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(text.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpSocket;

    use super::*;

    /// A connection from one of loopback's own addresses.
    async fn connect(from: u8, to: SocketAddr) -> std::io::Result<TcpStream> {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.bind(SocketAddr::from(([127, 0, 0, from], 0))).expect("all of 127/8 is loopback");
        socket.connect(to).await
    }

    #[tokio::test]
    async fn a_crowd_that_says_nothing_does_not_keep_the_kubelet_out() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback has a free port");
        let to = listener.local_addr().expect("it listens");
        tokio::spawn(serve(listener, Arc::new(Status::new(Levels::fixed()))));
        let mut crowd = Vec::new();
        for _ in 0..2 * MAX_CONNECTIONS {
            // Most of these are closed at once.
            crowd.extend(connect(2, to).await);
        }
        let mut kubelet = connect(3, to).await.expect("it listens");
        kubelet.write_all(b"GET /live HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("it is let in");
        let mut answer = String::new();
        // To give each of the crowd its time in turn would take longer.
        tokio::time::timeout(WHOLE, kubelet.read_to_string(&mut answer))
            .await
            .expect("it need not wait for them")
            .expect("it is answered");
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("live\n"), "{answer}");
        drop(crowd);
    }

    #[test]
    fn what_happened_is_counted() {
        let status = Status::new(Levels::fixed());
        assert_eq!(status.why_not_ready().as_deref(), Some("starting"));
        status.is_now(None);
        status.answered(Task::Add, &Answer::InForce);
        status.answered(Task::Add, &Answer::InForce);
        status.answered(Task::Check, &Answer::Refused { why: String::new() });
        status.repaired("deleted");
        status.are_unredirected(3);
        let families = status.families();
        assert_eq!(table::disagreements(weft_core::metrics::Program::Cni, &families), [""; 0]);
        let metrics = String::from_utf8(expose(Format::Text, &families, &Labels::new())).expect("text");
        for line in [
            "weft_cni_answers_total{weft_cni_task=\"add\",weft_outcome=\"in-force\"} 2\n",
            "weft_cni_answers_total{weft_cni_task=\"check\",weft_outcome=\"refused\"} 1\n",
            "weft_cni_repairs_total{weft_cni_action=\"deleted\"} 1\n",
            "weft_cni_pods_without_redirect 3\n",
            "weft_cni_ready 1\n",
        ] {
            assert!(metrics.contains(line), "{line} is not in\n{metrics}");
        }
    }
}
