//! `weft stat`: how well calls go and how long they take, by service, route, edge or pod, over a while: two reads of what sidecars count, or Prometheus.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use serde::Serialize;
use weft_core::Namespace;

use crate::edges::{self, Edge};
use crate::fleet::{Fleet, Heard};
use crate::histogram::Histogram;
use crate::output::{Look, Output, Tint};
use crate::rundir::Which;
use crate::{duration, table};

mod prometheus;

/// What `weft stat` is told.
#[derive(Args, Debug)]
#[command(after_help = "\
OK is the share of the requests that did not fail: by 5xx, by a status of gRPC that is the server's fault, or without a whole answer; ERRORS are those of weft \
itself, by reason. Times are those of the caller's sidecar, to the last byte of the answer; with --by pod they are those of the called pod's own sidecar, which has \
nothing of the way. They lie between the bounds of the buckets that sidecars count in. What is no HTTP has connections alone. With --by route, what fell under \
none stands behind –; older sidecars have requests alone by route.

With --prometheus, what a Prometheus has scraped of the sidecars is asked, over --window.

Exit status: 0; 1 where it failed or a sidecar was not heard, which is then in no line; 2 where none was.

Examples:
  weft stat
  weft stat --by edge --to shop/web
  weft stat --by pod --window 30s
  weft stat --since-start -o json
  weft stat --by route --prometheus http://localhost:9090 --window 5m")]
pub(crate) struct StatArgs {
    #[command(flatten)]
    pub(crate) what: What,

    /// Over how long
    #[arg(long, value_name = "DURATION", value_parser = duration::parse, default_value = "5s")]
    window: Duration,

    /// Everything since each sidecar started
    #[arg(long, conflicts_with_all = ["window", "prometheus"])]
    since_start: bool,

    /// Ask this Prometheus instead of the sidecars (http alone)
    #[arg(long, value_name = "URL", env = "WEFT_PROMETHEUS")]
    prometheus: Option<String>,

    #[command(flatten)]
    output: Output,
}

/// Of what.
#[derive(Args, Debug, Clone)]
pub(crate) struct What {
    /// What a line stands for
    #[arg(long, value_enum, value_name = "WHAT", default_value = "service")]
    pub(crate) by: By,

    /// Only what is called: a service, a workload that is called by its own address, or with --by pod a pod
    #[arg(long, value_name = "NS/NAME")]
    pub(crate) to: Option<String>,

    /// Only the sidecars of this namespace
    #[arg(short, long, value_name = "NS")]
    pub(crate) namespace: Option<Namespace>,

    #[command(flatten)]
    pub(crate) which: Which,

    #[arg(long, value_name = "NAME", help = "Context of the kubeconfig: a mesh on that cluster is meant")]
    pub(crate) context: Option<String>,
}

/// What a line stands for.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum By {
    /// What is called, over all callers
    Service,
    /// What is called, by the route that requests fell under
    Route,
    /// Each caller, and what it calls
    Edge,
    /// Each called pod, as its own sidecar measured it
    Pod,
}

/// One line.
#[derive(Serialize, Debug, Clone, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Line {
    /// With --by edge: the calling pod.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) from: String,
    pub(crate) to: String,
    /// With --by route.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) route: String,
    /// Of the answers, 0 to 1; none without any.
    pub(crate) success_rate: Option<f64>,
    pub(crate) requests_per_second: f64,
    pub(crate) requests: u64,
    /// Of what is no HTTP.
    pub(crate) connections: u64,
    /// In milliseconds; none without a request.
    pub(crate) p50: Option<f64>,
    pub(crate) p95: Option<f64>,
    pub(crate) p99: Option<f64>,
    pub(crate) errors: BTreeMap<String, u64>,
    /// Seconds that it is about; none since the start of each sidecar.
    pub(crate) seconds: Option<f64>,
    /// By mutual TLS, every one of them.
    pub(crate) secured: bool,
}

pub(crate) fn main(args: &StatArgs) -> anyhow::Result<ExitCode> {
    let (lines, code) = if let Some(url) = &args.prometheus {
        (prometheus::lines(url, &args.what, args.window)?, ExitCode::SUCCESS)
    } else {
        let fleet = Fleet::find(&args.what.which, args.what.context.as_deref())?;
        let (begun, before) = (Instant::now(), if args.since_start { None } else { Some(read(&fleet, &args.what)?) });
        if before.is_some() {
            std::thread::sleep(args.window.saturating_sub(begun.elapsed()));
        }
        let mut after = read(&fleet, &args.what)?;
        let took = before.as_ref().map(|_| begun.elapsed());
        let lines = lines(before.as_ref(), &after, &args.what, took);
        after.silent.extend(before.into_iter().flat_map(|before| before.silent));
        (lines, after.tell())
    };
    args.output.print(|look| shown(&lines, args.what.by, look), &lines)?;
    Ok(code)
}

/// What sidecars have counted until now.
pub(crate) fn read(fleet: &Fleet, what: &What) -> anyhow::Result<Heard<Vec<Edge>>> {
    edges::read(fleet, what.namespace.as_ref())
}

#[derive(Default)]
struct Sum {
    latency: Histogram,
    answered: u64,
    failed: u64,
    connections: u64,
    errors: BTreeMap<String, u64>,
    plain: bool,
}

/// Lines of what came between two reads, `took` apart, or until the second where there is no first.
pub(crate) fn lines(
    before: Option<&Heard<Vec<Edge>>>,
    after: &Heard<Vec<Edge>>,
    what: &What,
    took: Option<Duration>,
) -> Vec<Line> {
    let mut sums: BTreeMap<(String, String, String), Sum> = BTreeMap::new();
    let direction = if what.by == By::Pod { "inbound" } else { "outbound" };
    for edge in edges::since(before, after).iter().filter(|e| e.direction == direction) {
        let (from, to) = match what.by {
            By::Service | By::Route => (String::new(), edge.target.clone()),
            By::Edge => (edge.from.clone(), edge.target.clone()),
            By::Pod => (String::new(), edge.from.clone()),
        };
        if what.to.as_ref().is_some_and(|wanted| *wanted != to) {
            continue;
        }
        if what.by != By::Route {
            sums.entry((to, from, String::new())).or_default().takes_in(edge);
            continue;
        }
        for (route, part) in by_route(edge) {
            sums.entry((to.clone(), from.clone(), route)).or_default().takes_in(&part);
        }
    }
    let seconds = took.map(|took| took.as_secs_f64());
    sums.into_iter().map(|((to, from, route), sum)| sum.line(from, to, route, seconds)).collect()
}

/// What stands for no route.
const NO_ROUTE: &str = "–";

/// An edge in parts: one for each route, and the rest of it, with the errors and the connections.
fn by_route(edge: &Edge) -> Vec<(String, Edge)> {
    let mut rest = edge.clone();
    let (mut ended, mut failed) = (edge.ended(), edge.failed());
    let mut parts = Vec::new();
    // A sidecar that tells how routes fare tells it of all of them; an older one counts their requests alone.
    let counted = edge.by_route.iter().filter(|_| edge.routes.is_empty()).map(|(name, n)| (name, (*n, None, &[][..])));
    let known = edge.routes.iter().map(|(name, r)| (name, (r.requests, Some(r.failed), r.latency.as_slice())));
    for (name, (requests, bad, latency)) in known.chain(counted) {
        (ended, failed) = (ended.saturating_sub(requests), failed.saturating_sub(bad.unwrap_or(0)));
        for (bound, n) in latency {
            if let Some((_, left)) = rest.latency.iter_mut().find(|(b, _)| b == bound) {
                *left = left.saturating_sub(*n);
            }
        }
        let part = Edge {
            by_class: BTreeMap::from([("all".to_owned(), requests)]),
            failed: bad,
            latency: latency.to_vec(),
            errors: BTreeMap::new(),
            connections: 0,
            ..edge.clone()
        };
        parts.push((name.clone(), part));
    }
    // Of an older sidecar's routes nobody knows which requests took how long, or failed.
    if !parts.is_empty() && edge.routes.is_empty() {
        rest.latency.clear();
    }
    rest.by_class = BTreeMap::from([("all".to_owned(), ended)]);
    rest.failed = Some(failed);
    if parts.is_empty() || ended + rest.connections > 0 || !rest.errors.is_empty() {
        parts.push((NO_ROUTE.to_owned(), rest));
    }
    parts
}

impl Sum {
    fn takes_in(&mut self, edge: &Edge) {
        if edge.protocol == "tcp" {
            self.connections += edge.connections;
        }
        self.plain |= !edge.peer.starts_with("spiffe://");
        self.latency.add(&edge.latency);
        self.answered += edge.ended();
        self.failed += edge.failed();
        for (reason, n) in &edge.errors {
            *self.errors.entry(reason.clone()).or_default() += n;
        }
    }

    fn line(self, from: String, to: String, route: String, seconds: Option<f64>) -> Line {
        let time = |q: f64| (self.latency.count() > 0).then(|| self.latency.quantile(q) / 1000.0);
        Line {
            success_rate: (self.answered > 0 && self.latency.count() > 0)
                .then(|| (self.answered - self.failed) as f64 / self.answered as f64),
            requests_per_second: seconds.filter(|s| *s > 0.0).map_or(0.0, |s| self.answered as f64 / s),
            requests: self.answered,
            connections: self.connections,
            p50: time(0.5),
            p95: time(0.95),
            p99: time(0.99),
            errors: self.errors,
            seconds,
            secured: !self.plain,
            from,
            to,
            route,
        }
    }
}

/// Headings, as `by` has them.
pub(crate) fn header(by: By, wide: bool) -> Vec<&'static str> {
    let mut header = match by {
        By::Service => vec!["SERVICE"],
        By::Route => vec!["SERVICE", "ROUTE"],
        By::Edge => vec!["FROM", "TO"],
        By::Pod => vec!["POD"],
    };
    header.extend(["OK", "RPS", "P50", "P95", "P99", "REQUESTS", "CONNECTIONS", "ERRORS"]);
    if wide {
        header.extend(["SECURED", "OVER"]);
    }
    header
}

/// A line's cells.
pub(crate) fn cells(line: &Line, by: By, wide: bool) -> Vec<String> {
    let none = || "–".to_owned();
    let time = |millis: Option<f64>| millis.map_or_else(none, |millis| format!("{millis:.1} ms"));
    let mut cells = match by {
        By::Service | By::Pod => vec![line.to.clone()],
        By::Route => vec![line.to.clone(), line.route.clone()],
        By::Edge => vec![line.from.clone(), line.to.clone()],
    };
    let errors: Vec<String> = line.errors.iter().map(|(reason, n)| format!("{reason} {n}")).collect();
    cells.extend([
        line.success_rate.map_or_else(none, |rate| format!("{:.2}%", rate * 100.0)),
        if line.seconds.is_some() { format!("{:.1}", line.requests_per_second) } else { none() },
        time(line.p50),
        time(line.p95),
        time(line.p99),
        line.requests.to_string(),
        line.connections.to_string(),
        errors.join(", "),
    ]);
    if wide {
        cells.push(if line.secured { "mutual TLS" } else { "no" }.to_owned());
        cells.push(line.seconds.map_or_else(|| "all time".to_owned(), |s| format!("{s:.1} s")));
    }
    cells
}

/// For people.
pub(crate) fn shown(lines: &[Line], by: By, look: Look) -> String {
    if lines.is_empty() {
        return look.paint(Tint::Warning, "nothing was called meanwhile: a longer --window, or --since-start\n");
    }
    let rows: Vec<Vec<String>> = lines.iter().map(|line| cells(line, by, look.wide)).collect();
    table::dressed(&header(by, look.wide), &rows, look)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn edge(from: &str, direction: &str, requests: u64, failed: u64) -> Edge {
        let edge: Edge = serde_json::from_value(json!({"direction": direction, "peer": "spiffe://cluster.local/ns/shop/sa/web", "target": "shop/web",
            "protocol": "http/1.1", "cipher": "", "key_exchange": "", "connections": 1, "requests": requests,
            "by_class": {"2xx": requests - failed, "5xx": failed}, "errors": {"overloaded": failed}, "retries": 0, "p50_micros": 0, "p99_micros": 0,
            "latency": [[1000, requests], [null, 0]]})).expect("an edge");
        Edge { from: from.to_owned(), ..edge }
    }

    fn what(by: By) -> What {
        let cli = <crate::Cli as clap::Parser>::try_parse_from(["weft", "stat"]).expect("it is a command");
        let crate::Command::Stat(args) = cli.command else { panic!("another command") };
        What { by, ..args.what }
    }

    fn heard(edges: Vec<Edge>) -> Heard<Vec<Edge>> {
        Heard { told: vec![("x".to_owned(), edges)], silent: BTreeMap::new() }
    }

    #[test]
    fn two_reads_give_rates_and_quantiles() {
        let before = heard(vec![edge("front/a", "outbound", 100, 0), edge("shop/web-0", "inbound", 100, 0)]);
        let after = heard(vec![
            edge("front/a", "outbound", 300, 50),
            edge("front/b", "outbound", 10, 0),
            edge("shop/web-0", "inbound", 310, 0),
        ]);
        let found = lines(Some(&before), &after, &what(By::Service), Some(Duration::from_secs(10)));
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].requests, found[0].requests_per_second, found[0].p50), (210, 21.0, Some(0.5)));
        assert_eq!(found[0].success_rate.map(|rate| (rate * 100.0).round()), Some(76.0));
        let edges = lines(Some(&before), &after, &what(By::Edge), None);
        assert_eq!(edges.iter().map(|l| (l.from.as_str(), l.requests)).collect::<Vec<_>>(), [("front/a", 200), ("front/b", 10)]);
        let pods = lines(Some(&before), &after, &what(By::Pod), None);
        assert_eq!(pods.iter().map(|l| (l.to.as_str(), l.requests)).collect::<Vec<_>>(), [("shop/web-0", 210)]);
        let text = shown(&found, By::Service, Look { wide: true, colour: false });
        let cells: Vec<&str> = text.lines().nth(1).unwrap_or_default().split_whitespace().collect();
        assert_eq!(cells[..4], ["shop/web", "76.19%", "21.0", "0.5"], "{text}");
    }

    #[test]
    fn routes_have_what_their_sidecars_tell_and_the_rest_is_not_lost() {
        let told = |edge: Edge, routes: serde_json::Value, by_route: serde_json::Value| Edge {
            routes: serde_json::from_value(routes).expect("routes"),
            by_route: serde_json::from_value(by_route).expect("numbers"),
            failed: Some(40),
            ..edge
        };
        let newer = told(
            edge("front/a", "outbound", 100, 10),
            json!({"HTTPRoute shop/web": {"requests": 60, "failed": 30, "latency": [[1000, 60], [null, 0]], "more": 1}}),
            json!({"HTTPRoute shop/web": 60}),
        );
        let found = lines(None, &heard(vec![newer]), &what(By::Route), None);
        let seen: Vec<_> =
            found.iter().map(|l| (l.route.as_str(), l.requests, l.success_rate, l.p50.is_some(), l.errors.len())).collect();
        assert_eq!(seen, [("HTTPRoute shop/web", 60, Some(0.5), true, 0), ("–", 40, Some(0.75), true, 1)]);
        let older =
            Edge { failed: None, ..told(edge("front/a", "outbound", 100, 10), json!({}), json!({"HTTPRoute shop/web": 60})) };
        let found = lines(None, &heard(vec![older]), &what(By::Route), None);
        let seen: Vec<_> =
            found.iter().map(|l| (l.route.as_str(), l.requests, l.success_rate, l.p50.is_some(), l.errors.len())).collect();
        assert_eq!(seen, [("HTTPRoute shop/web", 60, None, false, 0), ("–", 40, None, false, 1)]);
    }
}
