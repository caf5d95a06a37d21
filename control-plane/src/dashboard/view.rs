//! The dashboard's data, as JSON. Everything in it is a plain value or a text; the page writes texts as such.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::Serialize;
use weft_core::failure::Reason;
use weft_core::service::ObjectRef;
use weft_proto::v1;

use super::Dashboard;
use super::traffic::{Look, Node, Pair, Refusal, SLOT, Sums};
use crate::hub::Hub;
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
    /// Which control plane tells this.
    replica: String,
    /// Others tell of their own sidecars.
    has_others: bool,
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
    fn new(window: &Sums, total: &Sums, covered: Duration) -> Self {
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

/// Both directions of security, put together.
#[derive(Default)]
struct Both {
    secured: bool,
    plain: bool,
    window: Sums,
    total: Sums,
}

impl View {
    pub(super) fn new(of: &Dashboard, hub: &Hub, look: Look, window: Duration, interval: u32) -> Self {
        let snapshot = hub.snapshot();
        let mut edges: BTreeMap<(Node, Node), Both> = BTreeMap::new();
        let mut put = |pair: &Pair, sums: &Sums, total: bool| {
            let both = edges.entry((pair.from.clone(), pair.to.clone())).or_default();
            both.secured |= pair.mutual_tls;
            both.plain |= !pair.mutual_tls;
            if total { both.total.add(sums) } else { both.window.add(sums) }
        };
        look.totals.iter().for_each(|(pair, sums)| put(pair, sums, true));
        look.window.iter().for_each(|(pair, sums)| put(pair, sums, false));
        let (nodes, without) = nodes(&edges, snapshot.services.keys(), &look);
        let (sidecars, connected, silent) = sidecars(hub);
        let refusals: Vec<Told> = look.refusals.into_iter().map(Told::from).collect();
        let problems: Vec<Problem> =
            hub.problems().iter().map(|p| Problem { place: p.place.clone(), message: p.message.clone() }).collect();
        let more = |all: usize, most: usize| all.saturating_sub(most);
        let left_out = LeftOut {
            nodes: without,
            edges: look.left_out.0,
            refusals: look.left_out.1 + more(refusals.len(), MOST_REFUSALS) as u64,
            sidecars: more(sidecars.len(), MOST_SIDECARS),
            problems: more(problems.len(), MOST_PROBLEMS),
        };
        let anchors = of.ca.now().bundle.facts(of.ca.domain());
        Self {
            replica: of.replica.clone(),
            has_others: of.has_others,
            version: env!("CARGO_PKG_VERSION"),
            trust_domain: of.ca.domain().to_string(),
            now: unix_millis(),
            interval,
            window: window.as_secs(),
            covered: look.covered.as_secs_f64(),
            slot: SLOT.as_secs(),
            connected,
            silent,
            errors: errors(&edges),
            edges: shown_edges(&edges, &nodes, look.covered),
            nodes,
            sidecars: sidecars.into_iter().take(MOST_SIDECARS).collect(),
            refusals: refusals.into_iter().take(MOST_REFUSALS).collect(),
            anchors: anchors.into_iter().map(|(hash, not_after)| Anchor { hash, not_after }).collect(),
            problems: problems.into_iter().take(MOST_PROBLEMS).collect(),
            left_out,
        }
    }
}

/// Whoever calls or is called, then services that nobody called; and how many there is no room for.
fn nodes<'a>(
    edges: &BTreeMap<(Node, Node), Both>,
    services: impl Iterator<Item = &'a ObjectRef>,
    look: &Look,
) -> (Vec<Shown>, usize) {
    let mut called: BTreeMap<&Node, (Sums, Sums)> = BTreeMap::new();
    for ((from, to), both) in edges {
        called.entry(from).or_default();
        let (window, total) = called.entry(to).or_default();
        window.add(&both.window);
        total.add(&both.total);
    }
    let idle: BTreeSet<Node> = services.map(|id| Node::Service(id.clone())).filter(|node| !called.contains_key(node)).collect();
    let all = called.len() + idle.len();
    let of = |node: &Node, (window, total): (Sums, Sums)| {
        let (namespace, name) = node.names();
        Shown {
            id: node.id(),
            kind: node.kind(),
            namespace,
            name,
            signals: Signals::new(&window, &total, look.covered),
            series: look.series.get(node).cloned().unwrap_or_default(),
        }
    };
    let idle = idle.iter().map(|node| of(node, Default::default()));
    let shown = called.into_iter().map(|(node, sums)| of(node, sums)).chain(idle).take(MOST_NODES).collect();
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
        signals: Signals::new(&both.window, &both.total, covered),
    });
    shown.filter(|edge| known.contains(&*edge.from) && known.contains(&*edge.to)).collect()
}

/// Those of the window first, then by how often.
fn errors(edges: &BTreeMap<(Node, Node), Both>) -> Vec<Failed> {
    let mut all = Vec::new();
    for ((from, to), both) in edges {
        for (word, total) in &both.total.errors {
            let Some(reason) = Reason::ALL.iter().find(|reason| reason.as_str() == *word) else { continue };
            all.push(Failed {
                from: from.id(),
                to: to.id(),
                reason: reason.as_str(),
                explanation: reason.explain(),
                count: both.window.errors.get(word).copied().unwrap_or(0),
                total: *total,
            });
        }
    }
    all.sort_by_key(|e| std::cmp::Reverse((e.count, e.total)));
    all.truncate(MOST_REFUSALS);
    all
}

/// Those whose certificates end first come first; and how many are connected, and how many of them do not tell of traffic.
fn sidecars(hub: &Hub) -> (Vec<Sidecar>, usize, usize) {
    let statuses = hub.statuses();
    let silent = statuses.iter().filter(|s| !s.tells_traffic).count();
    let mut all: Vec<Sidecar> = statuses.into_iter().map(sidecar).collect();
    all.sort_by(|a, b| (a.not_after, &a.pod).cmp(&(b.not_after, &b.pod)));
    let connected = all.len();
    (all, connected, silent)
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
