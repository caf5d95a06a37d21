//! Everything that a sidecar tells, as series of the metrics of the table.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use weft_core::breaker::State;
use weft_core::conventions;
use weft_core::failure::Reason;
use weft_core::metrics::family::Distribution;
use weft_core::metrics::{Family, Labels, Metric, Point, Value, table};

use super::registry::{CallKey, CallTotals, EdgeTotals, Registry, Summed, Told};
use super::slots::get;
use super::{Direction, EdgeKey, Heard};
use crate::identity::unix_now;
use crate::telemetry::{resource, text_of as text};
use crate::worker::Shared;

/// Services whose budget and breakers are told.
const MOST_SERVICES: usize = 1_000;

/// Labels that every series of a sidecar has.
pub fn constant(shared: &Shared) -> Labels {
    let own = &shared.config.identity.identity;
    Labels::new().and(table::NAMESPACE, own.namespace.to_string()).and(table::WORKLOAD, own.name.to_string())
}

/// All families of the sidecar, each once, whether it has series or not.
pub fn gather(shared: &Shared) -> Vec<Family> {
    shared.metrics.settle();
    let mut all = vec![target_info(shared)];
    traffic(&shared.metrics, &mut all);
    workers(&shared.metrics, &mut all);
    services(shared, &mut all);
    state(shared, &mut all);
    all.push(shared.denials.family());
    all.push(notices(&shared.metrics));
    all.extend(shared.keys.families());
    all.extend(shared.telemetry.families());
    all.extend(shared.metrics.points.fate().families(None, &table::POINTS_EXPORTED));
    let mut refused = Family::new(&table::ADMIN_REFUSED);
    for (reason, count) in shared.admin.counts().closed() {
        refused.counts(Labels::new().and(table::REASON, reason), count);
    }
    all.push(refused);
    all.push(Family::count(&table::LOG_LOST, shared.levels.lost()));
    all
}

/// What AUDIT policies and dry runs had to say.
pub fn notices(registry: &Registry) -> Family {
    let mut family = Family::new(&table::NOTICES);
    for ((policy, word), n) in registry.notices() {
        family.counts(Labels::new().and(table::POLICY, policy).and(table::NOTICE, word), n);
    }
    family
}

/// The resource of OTLP, so that series and spans are known to be of one service.
fn target_info(shared: &Shared) -> Family {
    let resource = resource(shared, &shared.environment);
    let mut labels = Labels::new();
    for name in [table::SERVICE_NAME, table::SERVICE_NAMESPACE, table::SERVICE_INSTANCE, table::SERVICE_VERSION] {
        if let Some(value) = text(&resource, name) {
            labels.add(name, value.to_owned());
        }
    }
    let mut family = Family::new(&table::TARGET_INFO);
    family.counts(labels, 1);
    family
}

/// The parts that series of edges and calls have in common.
struct Parts {
    direction: &'static str,
    mtls: &'static str,
    port: Option<u16>,
}

impl Parts {
    fn of(key: &EdgeKey) -> Self {
        let mtls = if key.tls.0.is_empty() { "false" } else { "true" };
        Self { direction: key.direction.as_str(), mtls, port: Some(key.port).filter(|port| *port > 0) }
    }
}

fn protocol(key: &EdgeKey, labels: &mut Labels) {
    labels.add(table::PROTOCOL, if key.protocol == "tcp" { "tcp" } else { "http" });
    labels.add(table::VERSION, version(key));
}

fn version(key: &EdgeKey) -> &'static str {
    key.protocol.strip_prefix("http/").unwrap_or_default()
}

fn edge_labels(key: &EdgeKey, overflow: bool) -> Labels {
    if overflow {
        return Labels::overflow();
    }
    let parts = Parts::of(key);
    let mut labels =
        Labels::new().and(table::DIRECTION, parts.direction).and(table::PEER, &key.peer).and(table::SERVICE, &key.target);
    labels.add(table::MTLS, parts.mtls);
    protocol(key, &mut labels);
    if let Some(port) = parts.port {
        labels.add(table::SERVER_PORT, port);
    }
    labels
}

/// Families of edges and of requests.
fn traffic(registry: &Registry, all: &mut Vec<Family>) {
    let mut calls: BTreeMap<(bool, CallKey), (u64, CallTotals)> = BTreeMap::new();
    let mut rpcs = calls.clone();
    let add = |map: &mut BTreeMap<_, (u64, CallTotals)>, overflow, key: CallKey, told: &Told<CallKey, CallTotals>| {
        let (since, totals) = map.entry((overflow, key)).or_insert((told.since, CallTotals::default()));
        *since = (*since).min(told.since);
        totals.merge(&told.totals);
    };
    let [live, ended_calls, ended_rpcs] = registry.call_series();
    for told in live {
        add(&mut calls, told.overflow, told.key.as_http(), &told);
        if told.key.code.is_grpc() {
            add(&mut rpcs, told.overflow, told.key.as_rpc(), &told);
        }
    }
    for told in ended_calls {
        add(&mut calls, told.overflow, told.key.clone(), &told);
    }
    for told in ended_rpcs {
        add(&mut rpcs, told.overflow, told.key.clone(), &told);
    }
    all.extend(durations([&table::HTTP_SERVER_DURATION, &table::HTTP_CLIENT_DURATION], calls, http_labels));
    all.extend(durations([&table::RPC_SERVER_DURATION, &table::RPC_CLIENT_DURATION], rpcs, rpc_labels));

    let mut edges: BTreeMap<(bool, EdgeKey), (u64, EdgeTotals)> = BTreeMap::new();
    for told in registry.edge_series() {
        let (since, totals) = edges.entry((told.overflow, told.key.as_told())).or_insert((told.since, EdgeTotals::default()));
        *since = (*since).min(told.since);
        totals.merge(&told.totals);
    }
    by_edge(&edges, all);
}

fn by_edge(edges: &BTreeMap<(bool, EdgeKey), (u64, EdgeTotals)>, all: &mut Vec<Family>) {
    let [mut io, mut retries, mut errors, mut connections] =
        [&table::IO_BYTES, &table::RETRIES, &table::ERRORS, &table::CONNECTIONS].map(Family::new);
    let mut open = Family::new(&table::CONNECTIONS_OPEN);
    // Overflow is one series, whatever the direction.
    let mut rest = EdgeTotals::default();
    for ((overflow, key), (since, totals)) in edges {
        if *overflow {
            rest.merge(totals);
            continue;
        }
        let labels = edge_labels(key, false);
        series(&mut io, &labels, table::IO, "receive", *since, totals.received);
        series(&mut io, &labels, table::IO, "transmit", *since, totals.sent);
        for (reason, n) in Reason::ALL.iter().zip(totals.errors) {
            series(&mut errors, &labels, table::ERROR, reason.as_str(), *since, n);
        }
        let count = |n| Value::Count(n);
        if key.protocol != "tcp" && totals.retries > 0 {
            retries.push(Point { labels: labels.clone(), since: *since, value: count(totals.retries) });
        }
        if totals.connections > 0 {
            connections.push(Point { labels: labels.clone(), since: *since, value: count(totals.connections) });
            open.levels(labels, totals.open() as f64);
        }
    }
    if edges.keys().any(|(overflow, _)| *overflow) {
        let (errors_of_rest, labels) = (rest.errors.iter().sum(), Labels::overflow);
        for (family, n) in [
            (&mut io, rest.received + rest.sent),
            (&mut retries, rest.retries),
            (&mut errors, errors_of_rest),
            (&mut connections, rest.connections),
            (&mut open, rest.open()),
        ] {
            family.counts(labels(), n);
        }
    }
    all.extend([io, retries, errors, connections, open]);
}

/// Adds a counter's series with one more label, if there is anything to tell.
fn series(family: &mut Family, labels: &Labels, name: &'static str, value: &'static str, since: u64, n: u64) {
    if n > 0 {
        family.push(Point { labels: labels.clone().and(name, value), since, value: Value::Count(n) });
    }
}

fn durations(
    metrics: [&'static Metric; 2],
    calls: BTreeMap<(bool, CallKey), (u64, CallTotals)>,
    labels: fn(&CallKey) -> Labels,
) -> [Family; 2] {
    let mut families = metrics.map(Family::new);
    let mut rest: [Option<(u64, CallTotals)>; 2] = [None, None];
    for ((overflow, key), (since, totals)) in calls {
        let side = usize::from(key.edge.direction == Direction::Outbound);
        if overflow {
            let (first, sum) = rest[side].get_or_insert((since, CallTotals::default()));
            *first = (*first).min(since);
            sum.merge(&totals);
            continue;
        }
        distribute(&mut families[side], labels(&key), since, totals);
    }
    for (family, rest) in families.iter_mut().zip(rest) {
        if let Some((since, totals)) = rest {
            distribute(family, Labels::overflow(), since, totals);
        }
    }
    families
}

fn distribute(family: &mut Family, labels: Labels, since: u64, totals: CallTotals) {
    let distribution = Distribution { reading: totals.took, exemplars: totals.exemplars };
    family.push(Point { labels, since, value: Value::Distribution(Box::new(distribution)) });
}

fn http_labels(key: &CallKey) -> Labels {
    let (mut labels, parts) = called(key);
    labels.add(table::METHOD, key.code.method());
    let status = key.code.status();
    if status > 0 {
        labels.add(table::STATUS, status);
    }
    match (key.code.reason(), key.code.grpc()) {
        (Some(reason), _) => labels.add(table::ERROR, reason.as_str()),
        // Else all that failed in gRPC would have gone well in HTTP.
        (None, Some(grpc)) => labels.add(table::ERROR, conventions::grpc_name(grpc)),
        (None, None) if conventions::is_http_error(status, is_server(key)) => labels.add(table::ERROR, status.to_string()),
        (None, None) => {}
    }
    labels.add(table::VERSION, version(&key.edge));
    at(key, &parts, &mut labels);
    labels.add(table::SCHEME, "http");
    labels
}

fn rpc_labels(key: &CallKey) -> Labels {
    let (mut labels, parts) = called(key);
    labels.add(table::RPC_SYSTEM, "grpc");
    let status = key.code.grpc();
    labels.add(table::GRPC_STATUS, status.map_or("", conventions::grpc_name));
    match (key.code.reason(), status) {
        (Some(reason), _) => labels.add(table::ERROR, reason.as_str()),
        (None, Some(status)) if conventions::is_grpc_error(status, is_server(key)) => {
            labels.add(table::ERROR, conventions::grpc_name(status));
        }
        (None, _) => {}
    }
    at(key, &parts, &mut labels);
    labels
}

fn is_server(key: &CallKey) -> bool {
    key.edge.direction == Direction::Inbound
}

fn called(key: &CallKey) -> (Labels, Parts) {
    let parts = Parts::of(&key.edge);
    let mut labels = Labels::new().and(table::PEER, &key.edge.peer).and(table::SERVICE, &key.edge.target);
    if let Some(route) = &key.route {
        labels.add(table::ROUTE, route);
    }
    labels.add(table::MTLS, parts.mtls);
    (labels, parts)
}

fn at(key: &CallKey, parts: &Parts, labels: &mut Labels) {
    if let Some((namespace, name)) = key.edge.target.split_once('/') {
        labels.add(table::SERVER_ADDRESS, format!("{name}.{namespace}"));
    }
    if let Some(port) = parts.port {
        labels.add(table::SERVER_PORT, port);
    }
}

/// What workers count of themselves.
fn workers(registry: &Registry, all: &mut Vec<Family>) {
    let mut handshakes = Family::new(&table::HANDSHAKES);
    for (key, reading) in registry.handshakes() {
        let labels = Labels::new()
            .and(table::TLS_ROLE, if key.is_client { "client" } else { "server" })
            .and(table::TLS_VERSION, if key.error.is_empty() { "1.3" } else { "" })
            .and(table::TLS_CIPHER, key.tls.0)
            .and(table::TLS_CURVE, key.tls.1)
            .and(table::ERROR, key.error);
        handshakes.distributes(labels, reading);
    }
    let mut refused = Family::new(&table::REFUSED);
    for (i, reason) in Reason::ALL.iter().enumerate() {
        let n = registry.sum(|slots| get(&slots.refused[i]));
        series(&mut refused, &Labels::new(), table::ERROR, reason.as_str(), 0, n);
    }
    let [mut detections, mut decisions] = [&table::DETECTIONS, &table::DECISIONS].map(Family::new);
    for (i, direction) in [Direction::Inbound, Direction::Outbound].iter().enumerate() {
        let labels = Labels::new().and(table::DIRECTION, direction.as_str());
        for (j, heard) in Heard::ALL.iter().enumerate() {
            let n = registry.sum(|slots| get(&slots.detections[i][j]));
            series(&mut detections, &labels, table::OUTCOME, heard.as_str(), 0, n);
        }
        for (j, verdict) in ["allowed", "denied"].into_iter().enumerate() {
            decisions.counts(labels.clone().and(table::VERDICT, verdict), registry.sum(|slots| get(&slots.decisions[i][j])));
        }
    }
    let mut pool = Family::new(&table::POOL_CONNECTIONS);
    for (version, open, idle) in [
        ("1.1", registry.sum(|s| get(&s.pool.http1)), registry.sum(|s| get(&s.pool.http1_idle))),
        ("2", registry.sum(|s| get(&s.pool.http2)), registry.sum(|s| get(&s.pool.http2_idle))),
    ] {
        let idle = idle.min(open);
        for (state, n) in [("active", open - idle), ("idle", idle)] {
            pool.counts(Labels::new().and(table::VERSION, version).and(table::STATE, state), n);
        }
    }
    let [mut ejections, mut spared, mut back] =
        [&table::EJECTIONS, &table::EJECTIONS_SPARED, &table::READMISSIONS].map(Family::new);
    for (peer, counted) in registry.ejections() {
        for (family, n) in [&mut ejections, &mut spared, &mut back].into_iter().zip(counted.counts) {
            family.push(Point { labels: Labels::new().and(table::PEER, &peer), since: counted.since, value: Value::Count(n) });
        }
    }
    all.extend([handshakes, refused, detections, decisions, pool, ejections, spared, back]);
    all.extend([
        Family::count(&table::CONNECTIONS_ACCEPTED, registry.sum(|s| get(&s.accepted))),
        Family::count(&table::ACCEPT_FAILURES, registry.sum(|s| get(&s.accept_failures))),
        Family::count(&table::MIRRORS_DROPPED, registry.sum(|s| get(&s.copies_dropped))),
        Family::count(&table::LINKS, registry.sum(|s| get(&s.pool.links))),
        Family::count(&table::LINK_STREAMS, registry.sum(|s| get(&s.pool.streams))),
        Family::count(&table::POOL_WAITING, registry.sum(|s| get(&s.pool.waiting))),
        Family::count(&table::SERIES, registry.sum(|s| get(&s.series))),
        Family::count(&table::SERIES_OVERFLOWS, registry.sum(|s| get(&s.overflows))),
    ]);
}

/// Budget and breakers of the services that are known.
fn services(shared: &Shared, all: &mut Vec<Family>) {
    let [mut budget, mut breakers] = [&table::RETRY_BUDGET, &table::BREAKER_ENDPOINTS].map(Family::new);
    let now = shared.mesh.now();
    let services = shared.mesh.services.load();
    let mut services: Vec<_> = services.values().collect();
    services.sort_by(|a, b| a.name.cmp(&b.name));
    for service in services.into_iter().take(MOST_SERVICES) {
        let (view, labels) = (service.view.load(), Labels::new().and(table::SERVICE, &service.name));
        budget.levels(labels.clone(), f64::from(view.standing.budget.left(now)));
        let mut states = [0; 3];
        for endpoint in &view.endpoints {
            states[match endpoint.health.breaker.state(now) {
                State::Closed => 0,
                State::Open { .. } => 1,
                State::HalfOpen { .. } => 2,
            }] += 1;
        }
        for (state, n) in ["closed", "open", "half-open"].into_iter().zip(states) {
            breakers.counts(labels.clone().and(table::STATE, state), n);
        }
    }
    all.extend([budget, breakers]);
}

/// How the sidecar stands: certificate, discovery, capacity.
fn state(shared: &Shared, all: &mut Vec<Family>) {
    let mesh = &shared.mesh;
    let identity = mesh.identity.load();
    let of = |read: &dyn Fn(&Arc<crate::mesh::Identity>) -> i64| identity.as_ref().map_or(0.0, |i| read(i) as f64);
    let flag = |b: bool| u64::from(b);
    all.extend([
        Family::level(&table::CERTIFICATE_EXPIRY, of(&|i| i.svid.info().not_after - unix_now())),
        Family::level(&table::CERTIFICATE_NOT_AFTER, of(&|i| i.svid.info().not_after)),
        Family::level(&table::CERTIFICATE_ANCHOR_NOT_AFTER, of(&|i| i.anchor_ends)),
        Family::level(&table::CERTIFICATE_RENEWAL_FAILING, mesh.renewal_failing_since.load(Relaxed) as f64),
        Family::level(&table::IDENTITIES_DENIED, of(&|i| i.bundle.denied().len() as i64)),
        Family::count(&table::CONNECTIONS_HELD, shared.capacity.open() as u64),
        Family::count(&table::CONNECTIONS_LIMIT, shared.capacity.most() as u64),
        Family::count(&table::READY, flag(mesh.is_ready())),
        Family::count(&table::DISCOVERY_CONNECTED, flag(mesh.connected.load(Relaxed))),
        Family::level(&table::DISCOVERY_STALENESS, mesh.heard.staleness(mesh.now())),
        Family::count(&table::DISCOVERY_ADDRESSES, mesh.addresses.load().len() as u64),
        Family::count(&table::DISCOVERY_STREAMS, mesh.heard.streams.load(Relaxed)),
        Family::count(&table::DISCOVERY_REJECTED, mesh.heard.rejected.load(Relaxed)),
    ]);
}
