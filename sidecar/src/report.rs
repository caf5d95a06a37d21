//! What the control plane is told of the sidecar's traffic, for who looks at the dashboard. Nothing is worked out, and nothing kept, while nobody asks.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Interval, MissedTickBehavior};
use weft_core::failure::Reason;
use weft_core::metrics::histogram::Reading;
use weft_proto::v1;

use crate::denials::{Denials, Record};
use crate::metrics::registry::{EdgeTotals, Summed as _};
use crate::metrics::{Direction, EdgeKey, Registry};
use crate::worker::Shared;

/// Edges of one report.
const MOST_EDGES: usize = 200;
/// Refusals of one report.
const MOST_REFUSALS: usize = 50;
/// Characters of a text.
const LONGEST: usize = 500;
/// It is not asked more often.
const SHORTEST: Duration = Duration::from_millis(500);

/// Where an edge goes, by what, and whether on mutual TLS.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Key {
    inbound: bool,
    target: Arc<str>,
    protocol: &'static str,
    mutual_tls: bool,
}

impl Key {
    /// None where the other end's sidecar tells of it.
    fn of(edge: &EdgeKey) -> Option<Self> {
        let proved = edge.peer.starts_with("spiffe://");
        let inbound = edge.direction == Direction::Inbound;
        if inbound && proved {
            return None;
        }
        let target = if inbound { "".into() } else { edge.target.clone() };
        Some(Self { inbound, target, protocol: edge.protocol, mutual_tls: proved && !edge.tls.0.is_empty() })
    }
}

/// What an edge has counted.
#[derive(Clone, Default)]
struct Sums {
    edge: EdgeTotals,
    failed: u64,
    client_errors: u64,
    took: Reading,
}

/// The reports of one stream.
pub struct Reports {
    shared: Option<Arc<Shared>>,
    every: Option<Interval>,
    /// What was told before; none where everything is to be told.
    before: Option<BTreeMap<Key, Sums>>,
    /// Refusals that were told.
    refusals: u64,
}

impl Reports {
    /// None are wanted yet.
    pub fn new(shared: Option<Arc<Shared>>) -> Self {
        Self { shared, every: None, before: None, refusals: 0 }
    }

    /// The control plane asks for reports, or for no more.
    pub fn are_wanted(&mut self, wanted: &v1::TelemetryWanted) {
        if wanted.interval_millis == 0 || self.shared.is_none() {
            (self.every, self.before, self.refusals) = (None, None, 0);
            return;
        }
        let mut every = tokio::time::interval(Duration::from_millis(wanted.interval_millis.into()).max(SHORTEST));
        every.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.every = Some(every);
    }

    /// Waits until a report is due; for ever while none is wanted. Cancel-safe.
    pub async fn due(&mut self) {
        match &mut self.every {
            Some(every) => drop(every.tick().await),
            None => std::future::pending().await,
        }
    }

    /// What came since the one before; none where nothing did.
    pub fn report(&mut self) -> Option<v1::TrafficReport> {
        let shared = self.shared.clone()?;
        self.between(&shared.metrics, &shared.denials)
    }

    fn between(&mut self, metrics: &Registry, denials: &Denials) -> Option<v1::TrafficReport> {
        let now = read(metrics);
        let whole = self.before.is_none();
        let before = self.before.take().unwrap_or_default();
        let mut edges: Vec<_> = now.iter().filter_map(|(key, sums)| reported(key, sums, before.get(key))).collect();
        self.before = Some(now);
        edges.sort_by_key(|edge| Reverse(edge.requests + edge.connections));
        let edges_left_out = edges.len().saturating_sub(MOST_EDGES) as u32;
        edges.truncate(MOST_EDGES);
        let (records, ever) = denials.after(self.refusals, MOST_REFUSALS);
        let refusals_left_out = (ever - self.refusals).saturating_sub(records.len() as u64).min(u64::from(u32::MAX)) as u32;
        self.refusals = ever;
        let refusals: Vec<_> = records.iter().map(refusal).collect();
        let says = whole || !edges.is_empty() || !refusals.is_empty() || refusals_left_out > 0;
        says.then_some(v1::TrafficReport { whole, edges, edges_left_out, refusals, refusals_left_out })
    }
}

/// What was counted until now.
fn read(metrics: &Registry) -> BTreeMap<Key, Sums> {
    let mut all: BTreeMap<Key, Sums> = BTreeMap::new();
    for told in metrics.by_edge() {
        if let Some(key) = Key::of(&told.key) {
            all.entry(key).or_default().edge.merge(&told.totals);
        }
    }
    for told in metrics.by_call() {
        let Some(key) = Key::of(&told.key.edge) else { continue };
        let (sums, code, n) = (all.entry(key).or_default(), told.key.code, told.totals.took.count());
        if code.is_failure() {
            sums.failed += n;
        } else if (400..500).contains(&code.status()) {
            sums.client_errors += n;
        }
        sums.took.merge(&told.totals.took);
    }
    all
}

/// What came since `before`; none where nothing did. What is less than it was had parts that ended: none of it is told again.
fn reported(key: &Key, now: &Sums, before: Option<&Sums>) -> Option<v1::ReportedEdge> {
    let none = Sums::default();
    let before = before.unwrap_or(&none);
    let less = |now: u64, then: u64| now.saturating_sub(then);
    let took = now.took.since(&before.took);
    let counted = Reason::ALL.iter().zip(now.edge.errors.iter().zip(before.edge.errors));
    let errors = counted.filter_map(|(reason, (now, then))| {
        let count = less(*now, then);
        (count > 0).then(|| v1::ReportedError { reason: reason.as_str().to_owned(), count })
    });
    let edge = v1::ReportedEdge {
        inbound: key.inbound,
        target: short(&key.target),
        protocol: key.protocol.to_owned(),
        mutual_tls: key.mutual_tls,
        requests: took.count(),
        failed: less(now.failed, before.failed),
        client_errors: less(now.client_errors, before.client_errors),
        connections: less(now.edge.connections, before.edge.connections),
        bytes_received: less(now.edge.received, before.edge.received),
        bytes_sent: less(now.edge.sent, before.edge.sent),
        retries: less(now.edge.retries, before.edge.retries),
        latency: took.classic.to_vec(),
        errors: errors.collect(),
    };
    let moved = edge.requests + edge.connections + edge.bytes_received + edge.bytes_sent > 0;
    (moved || !edge.errors.is_empty()).then_some(edge)
}

fn refusal(record: &Record) -> v1::ReportedRefusal {
    let called = match (&record.to, &record.called) {
        (Some(host), _) => format!("{host} port {}", record.port),
        (None, Some(address)) => address.clone(),
        (None, None) => format!("port {}", record.port),
    };
    let of = |text: &Option<String>| text.as_deref().map(short).unwrap_or_default();
    let request = [record.method.as_deref(), record.path.as_deref()].into_iter().flatten().collect::<Vec<_>>().join(" ");
    v1::ReportedRefusal {
        reference: record.reference.clone(),
        at: record.at,
        peer: short(&record.peer),
        source: record.source.to_string(),
        called: short(&called),
        protocol: record.protocol.to_owned(),
        request: short(&request),
        cause: record.cause.to_owned(),
        policy: of(&record.policy),
        rule: record.rule.map(|rule| rule.to_string()).unwrap_or_default(),
        clause: of(&record.clause),
        text: short(&record.text),
        remedy: of(&record.remedy),
    }
}

fn short(text: &str) -> String {
    text.chars().take(LONGEST).collect()
}

#[cfg(test)]
mod tests {
    use weft_core::failure::Failure;

    use super::*;
    use crate::denials;
    use crate::metrics::{Call, WorkerMetrics};

    fn key(direction: Direction, target: &str, peer: &str) -> EdgeKey {
        let tls = if peer.starts_with("spiffe://") { ("TLS13_AES_128_GCM_SHA256", "X25519MLKEM768") } else { ("", "") };
        EdgeKey { direction, port: 80, protocol: "http/1.1", target: target.into(), peer: peer.into(), tls }
    }

    fn reports() -> Reports {
        Reports::new(None)
    }

    #[test]
    fn the_first_report_has_everything_and_the_next_what_came_since() {
        let (registry, denials, mut reports) = (Registry::new(), Denials::default(), reports());
        let worker = WorkerMetrics::new(registry.clone(), 100);
        let web = worker.edge(&key(Direction::Outbound, "shop/web", "spiffe://td/ns/shop/sa/web"));
        let told = worker.edge(&key(Direction::Inbound, "shop/own", "spiffe://td/ns/shop/sa/front"));
        let plain = worker.edge(&key(Direction::Inbound, "shop/own", "plaintext"));
        let (took, call) = (Duration::from_millis(3), Call::new(b"GET", false));
        for status in [200, 503, 404] {
            web.request(&call.answered(status, None), took);
        }
        web.request(&call.broken(Reason::Overloaded), took);
        web.error(Reason::Overloaded);
        told.request(&call.answered(200, None), took);
        plain.request(&call.answered(200, None), took);
        let first = reports.between(&registry, &denials).expect("something came");
        assert!(first.whole && first.edges.len() == 2, "{first:?}");
        let edge = &first.edges[0];
        assert_eq!((edge.requests, edge.failed, edge.client_errors, edge.mutual_tls), (4, 2, 1, true));
        assert_eq!((&*edge.errors[0].reason, edge.latency.iter().sum::<u64>()), ("overloaded", 4));
        assert!(first.edges[1].inbound && !first.edges[1].mutual_tls && first.edges[1].target.is_empty());
        assert_eq!(reports.between(&registry, &denials), None, "nothing came since");
        web.request(&call.answered(200, None), took);
        let next = reports.between(&registry, &denials).expect("something came");
        assert_eq!((next.whole, next.edges.len(), next.edges[0].requests, next.edges[0].failed), (false, 1, 1, 0));
    }

    #[test]
    fn reports_are_bounded_and_say_what_they_leave_out() {
        let (registry, denials, mut reports) = (Registry::new(), Denials::default(), reports());
        let worker = WorkerMetrics::new(registry.clone(), 1000);
        for i in 0..MOST_EDGES + 7 {
            let edge = worker.edge(&key(Direction::Outbound, &format!("shop/s{i}"), "spiffe://td/ns/shop/sa/web"));
            edge.request(&Call::new(b"GET", false).answered(200, None), Duration::from_millis(1));
        }
        let source = "10.0.0.9".parse().expect("an address");
        let path = vec![b'x'; 10_000];
        let call =
            denials::Call { peer: "plaintext", source, to: None, port: 80, protocol: "http/1.1", request: Some((b"GET", &path)) };
        for _ in 0..MOST_REFUSALS + 3 {
            denials.add_refused(&call, None, &Failure::mesh(Reason::MtlsRequired));
        }
        let report = reports.between(&registry, &denials).expect("something came");
        assert_eq!((report.edges.len(), report.edges_left_out), (MOST_EDGES, 7));
        assert_eq!((report.refusals.len(), report.refusals_left_out), (MOST_REFUSALS, 3));
        let last = &report.refusals[MOST_REFUSALS - 1];
        assert_eq!((&*last.cause, last.reference == denials.all()[0].reference), ("mtls-required", true));
        assert!(last.request.len() <= LONGEST && last.remedy.contains("mutual TLS"), "{last:?}");
        let more = denials.add_refused(&call, None, &Failure::mesh(Reason::MtlsRequired)).to_string();
        let next = reports.between(&registry, &denials).expect("one more");
        assert_eq!(next.refusals.iter().map(|r| r.reference.clone()).collect::<Vec<_>>(), [more]);
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_due_while_nobody_asks() {
        let mut reports = reports();
        assert!(tokio::time::timeout(Duration::from_secs(3600), reports.due()).await.is_err());
        reports.are_wanted(&v1::TelemetryWanted { interval_millis: 1 });
        assert!(reports.every.is_none(), "there is nothing to tell of");
    }
}
