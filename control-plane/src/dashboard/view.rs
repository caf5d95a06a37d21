//! The dashboard's data, as JSON. Everything in it is a plain value or a text; the page writes texts as such.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::Duration;

use serde::Serialize;
use weft_core::failure::Reason;
use weft_core::service::ObjectRef;
use weft_proto::v1;

use super::Dashboard;
use super::account::{self, Account};
use super::others::Told as Other;
use super::traffic::{Node, Pair, Refusal, SLOT, Sums};
use crate::replicas;
use crate::server::unix_millis;

/// Services and other ends that are shown.
const MOST_NODES: usize = 1_000;
const MOST_REFUSALS: usize = 200;
/// Sidecars that are shown: those first whose certificates end first.
const MOST_SIDECARS: usize = 2_000;
const MOST_PROBLEMS: usize = 200;

/// All that the page shows.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct View {
    /// Which control plane tells this, and what it has asked.
    replica: String,
    others: Vec<Replica>,
    /// Why no other was asked; empty where they were, or where there is none.
    others_unasked: String,
    version: &'static str,
    trust_domain: String,
    /// Milliseconds since the Unix epoch.
    now: i64,
    /// Milliseconds between two reports of a sidecar.
    interval: u32,
    /// Seconds that were asked for, and how many of them were seen.
    window: u64,
    covered: f64,
    slot: u64,
    sidecars: Vec<Sidecar>,
    /// How many are connected, and how many of them are too old to tell of traffic.
    connected: usize,
    silent: usize,
    nodes: Vec<Shown>,
    edges: Vec<Edge>,
    refusals: Vec<Told>,
    errors: Vec<Failed>,
    anchors: Vec<Anchor>,
    problems: Vec<Problem>,
    left_out: LeftOut,
}

/// Another replica, whose sidecars are among those that are told of here, if it was heard.
#[derive(Serialize)]
struct Replica {
    name: String,
    sidecars: usize,
    /// Why it was not heard; empty where it was.
    problem: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct LeftOut {
    nodes: usize,
    edges: u64,
    refusals: u64,
    sidecars: usize,
    problems: usize,
}

/// An end of edges, with its golden signals as those who called it saw them.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Shown {
    id: String,
    kind: &'static str,
    namespace: String,
    name: String,
    #[serde(flatten)]
    signals: Signals,
    /// Requests and failed ones by slot, the oldest first.
    series: Vec<(u64, u64)>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Edge {
    from: String,
    to: String,
    /// `mtls`, `plaintext` or `mixed`.
    secured: &'static str,
    #[serde(flatten)]
    signals: Signals,
}

/// Rates are by second, times in milliseconds.
#[derive(Serialize, Default)]
#[serde(rename_all = "camelCase")]
struct Signals {
    rate: f64,
    requests: u64,
    failed: u64,
    client_errors: u64,
    connections: u64,
    bytes: u64,
    retries: u64,
    p50: Option<f64>,
    p95: Option<f64>,
    p99: Option<f64>,
    /// Since the sidecars began.
    total: Total,
}

#[derive(Serialize, Default)]
#[serde(rename_all = "camelCase")]
struct Total {
    requests: u64,
    failed: u64,
    client_errors: u64,
    connections: u64,
    p50: Option<f64>,
    p95: Option<f64>,
    p99: Option<f64>,
}

impl Signals {
    fn new(Seen { window, total }: &Seen, covered: Duration) -> Self {
        let seconds = covered.as_secs_f64().max(1.0);
        Self {
            rate: window.requests as f64 / seconds,
            requests: window.requests,
            failed: window.failed,
            client_errors: window.client_errors,
            connections: window.connections,
            bytes: window.received.saturating_add(window.sent),
            retries: window.retries,
            p50: window.quantile(0.5),
            p95: window.quantile(0.95),
            p99: window.quantile(0.99),
            total: Total {
                requests: total.requests,
                failed: total.failed,
                client_errors: total.client_errors,
                connections: total.connections,
                p50: total.quantile(0.5),
                p95: total.quantile(0.95),
                p99: total.quantile(0.99),
            },
        }
    }
}

/// A refusal, as `weft why` tells it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Told {
    sidecar: String,
    #[serde(rename = "ref")]
    reference: String,
    at: i64,
    peer: String,
    source: String,
    called: String,
    protocol: String,
    request: String,
    cause: String,
    policy: String,
    rule: String,
    clause: String,
    text: String,
    remedy: String,
}

impl From<Refusal> for Told {
    fn from(refusal: Refusal) -> Self {
        let told = refusal.told;
        Self {
            sidecar: refusal.sidecar,
            reference: told.reference,
            at: told.at,
            peer: told.peer,
            source: told.source,
            called: told.called,
            protocol: told.protocol,
            request: told.request,
            cause: told.cause,
            policy: told.policy,
            rule: told.rule,
            clause: told.clause,
            text: told.text,
            remedy: told.remedy,
        }
    }
}

/// What weft itself refused or failed on an edge.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Failed {
    from: String,
    to: String,
    reason: &'static str,
    explanation: &'static str,
    count: u64,
    total: u64,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Sidecar {
    pod: String,
    identity: String,
    version: String,
    serial: String,
    /// Seconds since the Unix epoch.
    not_after: i64,
    anchor: String,
    renewal_failing_since: i64,
    connected_at: i64,
    /// What it could not use of what it was sent.
    rejected: usize,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Anchor {
    hash: String,
    not_after: i64,
}

#[derive(Serialize)]
struct Problem {
    place: String,
    message: String,
}

impl Node {
    fn kind(&self) -> &'static str {
        match self {
            Self::Service(_) => "service",
            Self::Account(_) => "workload",
            Self::Plaintext => "plaintext",
            Self::Outside(_) => "outside",
        }
    }

    /// One for each node.
    fn id(&self) -> String {
        match self {
            Self::Service(id) => format!("service {id}"),
            Self::Account(id) => format!("workload {id}"),
            Self::Plaintext => "plaintext".to_owned(),
            Self::Outside(name) => format!("outside {name}"),
        }
    }

    fn names(&self) -> (String, String) {
        match self {
            Self::Service(id) => (id.namespace.to_string(), id.name.to_string()),
            Self::Account(id) => {
                let (namespace, name) = id.split_once('/').unwrap_or(("", id));
                (namespace.to_owned(), name.to_owned())
            }
            Self::Plaintext => (String::new(), "callers in the clear".to_owned()),
            Self::Outside(name) => (String::new(), name.to_string()),
        }
    }
}

/// What was seen of an edge or a node, by all replicas.
#[derive(Default)]
struct Seen {
    window: Sums,
    total: Sums,
}

impl Seen {
    fn add(&mut self, other: &Self) {
        self.window.add(&other.window);
        self.total.add(&other.total);
    }
}

/// Both directions of security, put together.
#[derive(Default)]
struct Both {
    secured: bool,
    plain: bool,
    seen: Seen,
}

/// What all replicas know, put together.
#[derive(Default)]
struct Whole {
    edges: BTreeMap<(Node, Node), Both>,
    /// Of the time that was asked for, how much was seen by whoever has looked for longest: sidecars move from one to another.
    covered: Duration,
    series: BTreeMap<Node, Vec<(u64, u64)>>,
    refusals: Vec<Refusal>,
    left_out: (u64, u64),
    sidecars: Vec<v1::SidecarStatus>,
}

impl Whole {
    fn seen(&mut self, pair: Pair) -> &mut Seen {
        let both = self.edges.entry((pair.from, pair.to)).or_default();
        both.secured |= pair.mutual_tls;
        both.plain |= !pair.mutual_tls;
        &mut both.seen
    }

    fn take(&mut self, Account { look, sidecars }: Account) {
        for (pair, sums) in look.totals {
            self.seen(pair).total.add(&sums);
        }
        for (pair, sums) in look.window {
            self.seen(pair).window.add(&sums);
        }
        for (node, slots) in look.series {
            let own = self.series.entry(node).or_default();
            // They end with the present, and begin when they may.
            let missing = slots.len().saturating_sub(own.len());
            own.splice(0..0, std::iter::repeat_n((0, 0), missing));
            for (own, slot) in own.iter_mut().rev().zip(slots.into_iter().rev()) {
                *own = (own.0.saturating_add(slot.0), own.1.saturating_add(slot.1));
            }
        }
        self.covered = self.covered.max(look.covered);
        self.left_out = (self.left_out.0.saturating_add(look.left_out.0), self.left_out.1.saturating_add(look.left_out.1));
        self.refusals.extend(look.refusals);
        self.sidecars.extend(sidecars);
    }

    /// Each refusal once, the newest first, and each sidecar once: both may be known to two replicas, where a sidecar has moved.
    fn settle(&mut self) {
        let mut seen = HashSet::new();
        self.refusals.retain(|r| seen.insert((r.sidecar.clone(), r.told.reference.clone())));
        self.refusals.sort_by_key(|r| std::cmp::Reverse(r.told.at));
        self.sidecars = replicas::newest(std::mem::take(&mut self.sidecars));
    }
}

impl View {
    /// Of what this replica knows, and what others told.
    pub(super) fn new(of: &Dashboard, own: Account, told: Result<Vec<Other>, String>, window: Duration) -> Self {
        let (hub, mut whole, mut others) = (&of.hub, Whole::default(), Vec::new());
        whole.take(own);
        let (told, others_unasked) = match told {
            Ok(told) => (told, String::new()),
            Err(why) => (Vec::new(), why),
        };
        for Other { replica: name, said } in told {
            let (sidecars, problem) = match said.and_then(account::from_wire) {
                Ok(account) => {
                    let sidecars = account.sidecars.len();
                    whole.take(account);
                    (sidecars, String::new())
                }
                Err(problem) => (0, problem),
            };
            others.push(Replica { name, sidecars, problem });
        }
        whole.settle();
        let snapshot = hub.snapshot();
        let (nodes, without) = nodes(&whole, snapshot.services.keys());
        let (connected, silent) = (whole.sidecars.len(), whole.sidecars.iter().filter(|s| !s.tells_traffic).count());
        let refusals: Vec<Told> = std::mem::take(&mut whole.refusals).into_iter().map(Told::from).collect();
        let problems: Vec<Problem> =
            hub.problems().iter().map(|p| Problem { place: p.place.clone(), message: p.message.clone() }).collect();
        let more = |all: usize, most: usize| all.saturating_sub(most);
        let left_out = LeftOut {
            nodes: without,
            edges: whole.left_out.0,
            refusals: whole.left_out.1 + more(refusals.len(), MOST_REFUSALS) as u64,
            sidecars: more(connected, MOST_SIDECARS),
            problems: more(problems.len(), MOST_PROBLEMS),
        };
        let anchors = of.ca.now().bundle.facts(of.ca.domain());
        Self {
            replica: of.replica.clone(),
            others,
            others_unasked,
            version: env!("CARGO_PKG_VERSION"),
            trust_domain: of.ca.domain().to_string(),
            now: unix_millis(),
            interval: of.traffic.asks(),
            window: window.as_secs(),
            covered: whole.covered.as_secs_f64(),
            slot: SLOT.as_secs(),
            connected,
            silent,
            errors: errors(&whole.edges),
            edges: shown_edges(&whole.edges, &nodes, whole.covered),
            nodes,
            sidecars: sidecars(whole.sidecars).into_iter().take(MOST_SIDECARS).collect(),
            refusals: refusals.into_iter().take(MOST_REFUSALS).collect(),
            anchors: anchors.into_iter().map(|(hash, not_after)| Anchor { hash, not_after }).collect(),
            problems: problems.into_iter().take(MOST_PROBLEMS).collect(),
            left_out,
        }
    }
}

/// Whoever calls or is called, then services that nobody called; and how many there is no room for.
fn nodes<'a>(whole: &Whole, services: impl Iterator<Item = &'a ObjectRef>) -> (Vec<Shown>, usize) {
    let mut called: BTreeMap<&Node, Seen> = BTreeMap::new();
    for ((from, to), both) in &whole.edges {
        called.entry(from).or_default();
        called.entry(to).or_default().add(&both.seen);
    }
    let idle: BTreeSet<Node> = services.map(|id| Node::Service(id.clone())).filter(|node| !called.contains_key(node)).collect();
    let all = called.len() + idle.len();
    let of = |node: &Node, seen: &Seen| {
        let (namespace, name) = node.names();
        Shown {
            id: node.id(),
            kind: node.kind(),
            namespace,
            name,
            signals: Signals::new(seen, whole.covered),
            series: whole.series.get(node).cloned().unwrap_or_default(),
        }
    };
    let idle = idle.iter().map(|node| of(node, &Seen::default()));
    let shown = called.iter().map(|(node, seen)| of(node, seen)).chain(idle).take(MOST_NODES).collect();
    (shown, all.saturating_sub(MOST_NODES))
}

fn shown_edges(edges: &BTreeMap<(Node, Node), Both>, nodes: &[Shown], covered: Duration) -> Vec<Edge> {
    let known: BTreeSet<&str> = nodes.iter().map(|node| &*node.id).collect();
    let shown = edges.iter().map(|((from, to), both)| Edge {
        from: from.id(),
        to: to.id(),
        secured: match (both.secured, both.plain) {
            (true, false) => "mtls",
            (true, true) => "mixed",
            _ => "plaintext",
        },
        signals: Signals::new(&both.seen, covered),
    });
    shown.filter(|edge| known.contains(&*edge.from) && known.contains(&*edge.to)).collect()
}

/// Those of the window first, then by how often.
fn errors(edges: &BTreeMap<(Node, Node), Both>) -> Vec<Failed> {
    let mut all = Vec::new();
    for ((from, to), both) in edges {
        for (word, total) in &both.seen.total.errors {
            let Some(reason) = Reason::ALL.iter().find(|reason| reason.as_str() == *word) else { continue };
            all.push(Failed {
                from: from.id(),
                to: to.id(),
                reason: reason.as_str(),
                explanation: reason.explain(),
                count: both.seen.window.errors.get(word).copied().unwrap_or(0),
                total: *total,
            });
        }
    }
    all.sort_by_key(|e| std::cmp::Reverse((e.count, e.total)));
    all.truncate(MOST_REFUSALS);
    all
}

/// Those whose certificates end first come first.
fn sidecars(statuses: Vec<v1::SidecarStatus>) -> Vec<Sidecar> {
    let mut all: Vec<Sidecar> = statuses.into_iter().map(sidecar).collect();
    all.sort_by(|a, b| (a.not_after, &a.pod).cmp(&(b.not_after, &b.pod)));
    all
}

fn sidecar(status: v1::SidecarStatus) -> Sidecar {
    Sidecar {
        pod: format!("{}/{}", status.namespace, status.pod),
        identity: status.identity,
        version: status.version,
        serial: status.serial,
        not_after: status.not_after,
        anchor: status.anchor,
        renewal_failing_since: status.renewal_failing_since,
        connected_at: status.connected_at,
        rejected: status.rejected.len(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::traffic::Look;
    use super::*;

    #[test]
    fn what_replicas_know_is_put_together() {
        let web = Node::Service("shop/web".parse().expect("a name"));
        let pair = Pair { from: Node::Account("shop/front".into()), to: web.clone(), mutual_tls: true };
        let sums = |requests| Sums { requests, failed: 1, ..Sums::default() };
        let refusal = |reference: &str, at| Refusal {
            sidecar: "shop/web-0".into(),
            told: v1::ReportedRefusal { reference: reference.into(), at, ..Default::default() },
        };
        let account = |requests, covered, series: &[(u64, u64)], refusals, connected_at, version: &str| Account {
            look: Look {
                covered: Duration::from_secs(covered),
                window: [(pair.clone(), sums(requests))].into(),
                totals: [(pair.clone(), sums(10 * requests))].into(),
                series: [(web.clone(), series.to_vec())].into(),
                refusals,
                left_out: (1, 0),
            },
            sidecars: vec![v1::SidecarStatus {
                namespace: "shop".into(),
                pod: "web-0".into(),
                version: version.into(),
                connected_at,
                ..Default::default()
            }],
        };
        let mut whole = Whole::default();
        whole.take(account(60, 60, &[(5, 0)], vec![refusal("b", 7), refusal("a", 3)], 9, "moved here"));
        whole.take(account(20, 10, &[(1, 1), (2, 0), (3, 0)], vec![refusal("c", 5), refusal("a", 3)], 4, "was here"));
        whole.settle();
        let both = &whole.edges[&(pair.from.clone(), pair.to.clone())];
        assert_eq!((both.seen.window.requests, both.seen.total.requests, both.secured, both.plain), (80, 800, true, false));
        assert_eq!(whole.series[&web], [(1, 1), (2, 0), (8, 0)]);
        let order: Vec<&str> = whole.refusals.iter().map(|r| &*r.told.reference).collect();
        assert_eq!((order, whole.left_out), (vec!["b", "c", "a"], (2, 0)));
        assert_eq!(whole.covered, Duration::from_secs(60));
        let [sidecar] = &sidecars(whole.sidecars)[..] else { panic!("it is one") };
        assert_eq!(sidecar.version, "moved here");
    }
}
