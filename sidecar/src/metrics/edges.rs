//! Who talks to whom, as the admin socket tells it at `/edges`.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Serialize, Serializer};
use weft_core::failure::Reason;
use weft_core::metrics::histogram::{BOUNDS, Reading};

use super::registry::{EdgeTotals, Registry};
use super::{Direction, EdgeKey};

/// An edge, merged over workers, ports, methods and routes.
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
    /// Those that ended.
    pub requests: u64,
    /// Those of them that failed as far as their user sees: by weft's own reason, by a status of 5xx, by a gRPC status that is the server's fault, or because the answer
    /// broke off.
    pub failed: u64,
    /// By class of their HTTP status: `2xx` and so on, `broken` without a whole answer, `other` beyond what is kept apart.
    pub by_class: BTreeMap<String, u64>,
    /// Requests by the route that they fell under.
    pub by_route: BTreeMap<Arc<str>, u64>,
    /// The same, with how they went.
    pub routes: BTreeMap<Arc<str>, RouteReport>,
    pub errors: BTreeMap<&'static str, u64>,
    pub retries: u64,
    pub latency_micros_sum: u64,
    /// Upper bounds that so many percent of the requests stay below, in microseconds.
    pub p50_micros: u64,
    pub p95_micros: u64,
    pub p99_micros: u64,
    /// Requests by how long they took: an upper bound in microseconds, none for what took longer than any, and how many.
    #[serde(rename = "latency", serialize_with = "with_bounds")]
    took: Reading,
}

/// The requests of an edge that fell under one route.
#[derive(Serialize, Clone, Default, Debug)]
pub struct RouteReport {
    pub requests: u64,
    pub failed: u64,
    #[serde(rename = "latency", serialize_with = "with_bounds")]
    took: Reading,
}

fn with_bounds<S: Serializer>(took: &Reading, serializer: S) -> Result<S::Ok, S::Error> {
    let bound = |i: usize| BOUNDS.get(i).map(|seconds| (seconds * 1e6).round() as u64);
    serializer.collect_seq(took.classic.iter().enumerate().map(|(i, n)| (bound(i), n)))
}

impl EdgeReport {
    fn new(key: &EdgeKey) -> Self {
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
            failed: 0,
            by_class: BTreeMap::new(),
            by_route: BTreeMap::new(),
            routes: BTreeMap::new(),
            errors: BTreeMap::new(),
            retries: 0,
            latency_micros_sum: 0,
            p50_micros: 0,
            p95_micros: 0,
            p99_micros: 0,
            took: Reading::default(),
        }
    }

    fn takes_in(&mut self, totals: &EdgeTotals) {
        self.connections += totals.connections;
        self.open += totals.open();
        self.bytes_received += totals.received;
        self.bytes_sent += totals.sent;
        self.retries += totals.retries;
        for (reason, n) in Reason::ALL.iter().zip(totals.errors).filter(|(_, n)| *n > 0) {
            *self.errors.entry(reason.as_str()).or_default() += n;
        }
    }
}

/// The same edge whatever the port.
fn at_any_port(key: &EdgeKey) -> EdgeKey {
    EdgeKey { port: 0, ..key.clone() }
}

impl Registry {
    /// Every edge.
    pub fn edges(&self) -> Vec<EdgeReport> {
        let mut all: BTreeMap<EdgeKey, EdgeReport> = BTreeMap::new();
        for told in self.by_edge() {
            all.entry(at_any_port(&told.key)).or_insert_with_key(EdgeReport::new).takes_in(&told.totals);
        }
        for told in self.by_call() {
            let code = told.key.code;
            let report = all.entry(at_any_port(&told.key.edge)).or_insert_with_key(EdgeReport::new);
            let n = told.totals.took.count();
            let failed = if code.is_failure() { n } else { 0 };
            let class = match code.status() {
                0 => "broken".to_owned(),
                _ if code.is_overflow() => "other".to_owned(),
                status => format!("{}xx", (status / 100).min(5)),
            };
            *report.by_class.entry(class).or_default() += n;
            if let Some(route) = told.key.route {
                *report.by_route.entry(route.clone()).or_default() += n;
                let under = report.routes.entry(route).or_default();
                (under.requests, under.failed) = (under.requests + n, under.failed + failed);
                under.took.merge(&told.totals.took);
            }
            report.requests += n;
            report.failed += failed;
            report.took.merge(&told.totals.took);
        }
        let mut all: Vec<_> = all.into_values().collect();
        for report in &mut all {
            let micros = |q| (report.took.quantile(q) * 1e6).ceil() as u64;
            (report.p50_micros, report.p95_micros, report.p99_micros) = (micros(0.5), micros(0.95), micros(0.99));
            report.latency_micros_sum = report.took.nanos / 1_000;
        }
        all
    }
}
