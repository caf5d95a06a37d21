//! What is counted, and its names, in one file.
//!
//! A worker records into slots of its own: plain relaxed adds, no line shared with another worker. The scraper merges.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::fmt::Write;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;

use serde::{Serialize, Serializer};
use weft_core::breaker::Event;
use weft_core::failure::Reason;

#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    Inbound,
    Outbound,
}

/// Who talks to whom, and how: the labels of everything that is counted by traffic.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct EdgeKey {
    pub direction: Direction,
    /// The other end's proved identity, or `plaintext`.
    pub peer: Arc<str>,
    /// The service or workload that was dialled.
    pub target: Arc<str>,
    /// `http/1.1`, `http/2`, or `tcp`.
    pub protocol: &'static str,
    /// Cipher suite and key exchange group; empty in the clear.
    pub tls: (&'static str, &'static str),
}

/// Upper bounds of the latency buckets, in microseconds.
const BUCKETS: [u64; 14] =
    [250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 5_000_000, 30_000_000];

const REASONS: usize = Reason::ALL.len();

/// The slots of one edge in one worker.
#[derive(Debug)]
pub struct Edge {
    key: EdgeKey,
    connections: AtomicU64,
    closed: AtomicU64,
    received: AtomicU64,
    sent: AtomicU64,
    /// By the first digit of the status.
    requests: [AtomicU64; 6],
    errors: [AtomicU64; REASONS],
    retries: AtomicU64,
    buckets: [AtomicU64; BUCKETS.len() + 1],
    micros: AtomicU64,
}

fn add(slot: &AtomicU64, n: u64) {
    // One writer: a load and a store, not a locked instruction.
    slot.store(slot.load(Relaxed).wrapping_add(n), Relaxed);
}

impl Edge {
    fn new(key: EdgeKey) -> Self {
        let zeros = || std::array::from_fn(|_| AtomicU64::new(0));
        Self {
            key,
            connections: AtomicU64::new(0),
            closed: AtomicU64::new(0),
            received: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            requests: std::array::from_fn(|_| AtomicU64::new(0)),
            errors: std::array::from_fn(|_| AtomicU64::new(0)),
            retries: AtomicU64::new(0),
            buckets: zeros(),
            micros: AtomicU64::new(0),
        }
    }

    /// A request got its final status after `took`.
    pub fn request(&self, status: u16, took: Duration) {
        add(&self.requests[usize::from(status / 100).min(5)], 1);
        let micros = took.as_micros() as u64;
        add(&self.buckets[BUCKETS.iter().position(|b| micros <= *b).unwrap_or(BUCKETS.len())], 1);
        add(&self.micros, micros);
    }

    /// weft refused or failed.
    pub fn error(&self, reason: Reason) {
        if let Some(i) = Reason::ALL.iter().position(|r| *r == reason) {
            add(&self.errors[i], 1);
        }
    }

    pub fn retry(&self) {
        add(&self.retries, 1);
    }

    pub fn open(&self) {
        add(&self.connections, 1);
    }

    pub fn close(&self, received: u64, sent: u64) {
        add(&self.closed, 1);
        add(&self.received, received);
        add(&self.sent, sent);
    }
}

/// Edges that one worker keeps apart; what comes later is counted together.
const MAX_EDGES: usize = 2_000;

/// One worker's slots.
pub struct WorkerMetrics {
    edges: RefCell<HashMap<EdgeKey, Arc<Edge>>>,
    registry: Arc<Registry>,
    tell: mpsc::Sender<Arc<Edge>>,
}

impl WorkerMetrics {
    pub fn new(registry: Arc<Registry>) -> Self {
        Self { edges: RefCell::default(), tell: registry.tell.clone(), registry }
    }

    /// The slots of an edge.
    pub fn edge(&self, key: &EdgeKey) -> Arc<Edge> {
        if let Some(edge) = self.edges.borrow().get(key) {
            return edge.clone();
        }
        let mut edges = self.edges.borrow_mut();
        let key = if edges.len() < MAX_EDGES {
            key.clone()
        } else {
            let other: Arc<str> = "other".into();
            EdgeKey { peer: other.clone(), target: other, tls: ("", ""), ..key.clone() }
        };
        let edge = edges.entry(key.clone()).or_insert_with(|| {
            let edge = Arc::new(Edge::new(key));
            // The registry lives as long as the process.
            let _ = self.tell.send(edge.clone());
            edge
        });
        edge.clone()
    }

    pub fn accepted(&self) {
        self.registry.accepted.fetch_add(1, Relaxed);
    }

    pub fn accept_failed(&self) {
        self.registry.accept_failures.fetch_add(1, Relaxed);
    }

    pub fn handshake(&self) {
        self.registry.handshakes.fetch_add(1, Relaxed);
    }

    /// Copies of requests (`RequestMirror`) that were not sent.
    pub fn copies_dropped(&self, n: u64) {
        self.registry.copies_dropped.fetch_add(n, Relaxed);
    }

    /// A breaker did something.
    pub fn ejection(&self, event: &Event) {
        let slot = match event {
            Event::Ejected { .. } => &self.registry.ejected,
            Event::Spared(_) => &self.registry.spared,
            Event::Readmitted => &self.registry.readmitted,
        };
        slot.fetch_add(1, Relaxed);
    }

    /// A connection that was refused before it was known whose it is.
    pub fn refused(&self, reason: Reason) {
        if let Some(i) = Reason::ALL.iter().position(|r| *r == reason) {
            self.registry.refused[i].fetch_add(1, Relaxed);
        }
    }
}

/// Edges that the scraper has heard of, and where it hears of more.
type Known = (mpsc::Receiver<Arc<Edge>>, Vec<Arc<Edge>>);

/// All workers' slots.
pub struct Registry {
    tell: mpsc::Sender<Arc<Edge>>,
    known: Mutex<Known>,
    accepted: AtomicU64,
    accept_failures: AtomicU64,
    handshakes: AtomicU64,
    copies_dropped: AtomicU64,
    ejected: AtomicU64,
    spared: AtomicU64,
    readmitted: AtomicU64,
    refused: [AtomicU64; REASONS],
}

/// An edge, merged over workers.
#[derive(Serialize, Clone, Debug)]
pub struct EdgeReport {
    pub direction: Direction,
    pub peer: Arc<str>,
    pub target: Arc<str>,
    pub protocol: &'static str,
    pub cipher: &'static str,
    pub key_exchange: &'static str,
    pub connections: u64,
    pub open: u64,
    pub bytes_received: u64,
    pub bytes_sent: u64,
    pub requests: u64,
    pub by_class: BTreeMap<String, u64>,
    pub errors: BTreeMap<&'static str, u64>,
    pub retries: u64,
    pub latency_micros_sum: u64,
    /// Upper bounds that half and 99 % of the requests stay below, in microseconds.
    pub p50_micros: u64,
    pub p99_micros: u64,
    /// Requests by how long they took: an upper bound in microseconds, none for what took longer than any, and how many.
    #[serde(rename = "latency", serialize_with = "with_bounds")]
    buckets: [u64; BUCKETS.len() + 1],
}

fn with_bounds<S: Serializer>(buckets: &[u64; BUCKETS.len() + 1], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(buckets.iter().enumerate().map(|(i, n)| (BUCKETS.get(i), n)))
}

impl Registry {
    pub fn new() -> Arc<Self> {
        let (tell, told) = mpsc::channel();
        Arc::new(Self {
            tell,
            known: Mutex::new((told, Vec::new())),
            accepted: AtomicU64::new(0),
            accept_failures: AtomicU64::new(0),
            handshakes: AtomicU64::new(0),
            copies_dropped: AtomicU64::new(0),
            ejected: AtomicU64::new(0),
            spared: AtomicU64::new(0),
            readmitted: AtomicU64::new(0),
            refused: std::array::from_fn(|_| AtomicU64::new(0)),
        })
    }

    /// Every edge, merged over workers.
    pub fn edges(&self) -> Vec<EdgeReport> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh: Vec<_> = known.0.try_iter().collect();
        known.1.extend(fresh);
        let mut merged: BTreeMap<&EdgeKey, EdgeReport> = BTreeMap::new();
        for edge in &known.1 {
            let r = merged.entry(&edge.key).or_insert_with(|| EdgeReport::empty(&edge.key));
            let get = |slot: &AtomicU64| slot.load(Relaxed);
            r.connections += get(&edge.connections);
            r.open = r.open.wrapping_add(get(&edge.connections).wrapping_sub(get(&edge.closed)));
            r.bytes_received += get(&edge.received);
            r.bytes_sent += get(&edge.sent);
            r.retries += get(&edge.retries);
            r.latency_micros_sum += get(&edge.micros);
            for (class, slot) in edge.requests.iter().enumerate().filter(|(_, s)| get(s) > 0) {
                *r.by_class.entry(format!("{class}xx")).or_default() += get(slot);
                r.requests += get(slot);
            }
            for (reason, slot) in Reason::ALL.iter().zip(&edge.errors).filter(|(_, s)| get(s) > 0) {
                *r.errors.entry(reason.as_str()).or_default() += get(slot);
            }
            for (sum, slot) in r.buckets.iter_mut().zip(&edge.buckets) {
                *sum += get(slot);
            }
        }
        let mut all: Vec<_> = merged.into_values().collect();
        for r in &mut all {
            (r.p50_micros, r.p99_micros) = (r.quantile(0.5), r.quantile(0.99));
        }
        all
    }

    /// The Prometheus text format.
    pub fn render(&self, gauges: &[(&str, &str, f64)]) -> String {
        let mut out = String::new();
        for (name, help, value) in [
            ("weft_connections_accepted_total", "Connections that were accepted.", self.accepted.load(Relaxed)),
            ("weft_accept_failures_total", "Times that accepting failed.", self.accept_failures.load(Relaxed)),
            ("weft_ejections_total", "Times that an endpoint was ejected.", self.ejected.load(Relaxed)),
            (
                "weft_ejections_spared_total",
                "Times that an endpoint should have been ejected, and as many as may be were.",
                self.spared.load(Relaxed),
            ),
            ("weft_readmissions_total", "Times that an ejected endpoint came back.", self.readmitted.load(Relaxed)),
            (
                "weft_mirrors_dropped_total",
                "Copies of requests that were not sent: too many under way, or a body too long to keep.",
                self.copies_dropped.load(Relaxed),
            ),
            ("weft_handshakes_total", "TLS handshakes with other sidecars, as a client.", self.handshakes.load(Relaxed)),
        ] {
            let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} counter\n{name} {value}");
        }
        for (name, help, value) in gauges {
            let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} gauge\n{name} {value}");
        }
        head(&mut out, "weft_refused_total", "counter", "Connections that were refused before traffic, by reason.");
        for (reason, slot) in Reason::ALL.iter().zip(&self.refused).filter(|(_, s)| s.load(Relaxed) > 0) {
            let _ = writeln!(out, "weft_refused_total{{reason=\"{reason}\"}} {}", slot.load(Relaxed));
        }
        let edges = self.edges();
        head(&mut out, "weft_connections_total", "counter", "Connections by edge.");
        each(&mut out, &edges, "weft_connections_total", |e| e.connections);
        head(&mut out, "weft_connections_open", "gauge", "Connections that are open, by edge.");
        each(&mut out, &edges, "weft_connections_open", |e| e.open);
        head(&mut out, "weft_bytes_received_total", "counter", "Bytes from the other end, on opaque connections.");
        each(&mut out, &edges, "weft_bytes_received_total", |e| e.bytes_received);
        head(&mut out, "weft_bytes_sent_total", "counter", "Bytes to the other end, on opaque connections.");
        each(&mut out, &edges, "weft_bytes_sent_total", |e| e.bytes_sent);
        head(&mut out, "weft_retries_total", "counter", "Requests that were sent again.");
        each(&mut out, &edges, "weft_retries_total", |e| e.retries);
        head(&mut out, "weft_requests_total", "counter", "Requests by status class.");
        for e in &edges {
            for (class, n) in &e.by_class {
                let _ = writeln!(out, "weft_requests_total{{{},code=\"{class}\"}} {n}", e.labels());
            }
        }
        head(&mut out, "weft_errors_total", "counter", "Refusals and failures of weft's own making, by reason.");
        for e in &edges {
            for (reason, n) in &e.errors {
                let _ = writeln!(out, "weft_errors_total{{{},reason=\"{reason}\"}} {n}", e.labels());
            }
        }
        head(&mut out, "weft_request_duration_seconds", "histogram", "Time from a request's head to the end of its answer.");
        for e in edges.iter().filter(|e| e.requests > 0) {
            let mut sum = 0;
            for (i, n) in e.buckets.iter().enumerate() {
                sum += n;
                let le = BUCKETS.get(i).map_or_else(|| "+Inf".to_owned(), |b| (*b as f64 / 1e6).to_string());
                let _ = writeln!(out, "weft_request_duration_seconds_bucket{{{},le=\"{le}\"}} {sum}", e.labels());
            }
            let _ = writeln!(out, "weft_request_duration_seconds_sum{{{}}} {}", e.labels(), e.latency_micros_sum as f64 / 1e6);
            let _ = writeln!(out, "weft_request_duration_seconds_count{{{}}} {sum}", e.labels());
        }
        out
    }
}

fn head(out: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

fn each(out: &mut String, edges: &[EdgeReport], name: &str, value: impl Fn(&EdgeReport) -> u64) {
    for e in edges {
        let _ = writeln!(out, "{name}{{{}}} {}", e.labels(), value(e));
    }
}

impl EdgeReport {
    fn empty(key: &EdgeKey) -> Self {
        Self {
            direction: key.direction,
            peer: key.peer.clone(),
            target: key.target.clone(),
            protocol: key.protocol,
            cipher: key.tls.0,
            key_exchange: key.tls.1,
            connections: 0,
            open: 0,
            bytes_received: 0,
            bytes_sent: 0,
            requests: 0,
            by_class: BTreeMap::new(),
            errors: BTreeMap::new(),
            retries: 0,
            latency_micros_sum: 0,
            p50_micros: 0,
            p99_micros: 0,
            buckets: [0; BUCKETS.len() + 1],
        }
    }

    fn labels(&self) -> String {
        let direction = if self.direction == Direction::Inbound { "inbound" } else { "outbound" };
        format!(
            "direction=\"{direction}\",peer=\"{}\",target=\"{}\",protocol=\"{}\",cipher=\"{}\",key_exchange=\"{}\"",
            self.peer, self.target, self.protocol, self.cipher, self.key_exchange
        )
    }

    fn quantile(&self, q: f64) -> u64 {
        let total: u64 = self.buckets.iter().sum();
        let rank = (total as f64 * q).ceil() as u64;
        let mut sum = 0;
        for (i, n) in self.buckets.iter().enumerate() {
            sum += n;
            if sum >= rank {
                return BUCKETS.get(i).copied().unwrap_or(u64::MAX);
            }
        }
        0
    }
}

/// A connection's place in the metrics: counted open until it is dropped.
pub struct OpenConnection {
    edge: Arc<Edge>,
    pub received: Rc<std::cell::Cell<u64>>,
    pub sent: Rc<std::cell::Cell<u64>>,
}

impl OpenConnection {
    pub fn new(edge: Arc<Edge>) -> Self {
        edge.open();
        Self { edge, received: Rc::default(), sent: Rc::default() }
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.edge.close(self.received.get(), self.sent.get());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(peer: &str) -> EdgeKey {
        EdgeKey {
            direction: Direction::Outbound,
            peer: peer.into(),
            target: "shop/web".into(),
            protocol: "http/1.1",
            tls: ("", ""),
        }
    }

    #[test]
    fn the_scraper_merges_workers_and_cardinality_is_bounded() {
        let registry = Registry::new();
        let (a, b) = (WorkerMetrics::new(registry.clone()), WorkerMetrics::new(registry.clone()));
        a.edge(&key("x")).request(200, Duration::from_micros(300));
        b.edge(&key("x")).request(503, Duration::from_millis(30));
        b.edge(&key("x")).error(Reason::NoEndpoints);
        let edges = registry.edges();
        assert_eq!((edges.len(), edges[0].requests, edges[0].p50_micros, edges[0].p99_micros), (1, 2, 500, 50_000));
        let text = registry.render(&[]);
        assert!(text.contains("code=\"5xx\"} 1") && text.contains("reason=\"no-endpoints\"} 1"), "{text}");
        for i in 0..3 * MAX_EDGES {
            a.edge(&key(&i.to_string())).open();
        }
        assert!(registry.edges().len() <= MAX_EDGES + 2);
    }
}
