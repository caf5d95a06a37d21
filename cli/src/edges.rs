//! `weft edges`: who talks to whom, over what, how well and how fast, as the sidecars counted it; of all time, or while a command ran.

use std::collections::{BTreeMap, HashMap};
use std::process::{Command, ExitCode};

use anyhow::Context;
use clap::Args;
use serde::{Deserialize, Serialize};
use weft_core::Namespace;

use crate::fleet::{Fleet, Heard};
use crate::output::{Look, Output};
use crate::rundir::Which;
use crate::table;

/// What `weft edges` is told.
#[derive(Args, Debug)]
#[command(after_help = "\
What a caller's sidecar counted stands in the table; -o json has the other end's as well. OK is the share of the requests that did not fail: by 5xx, by a \
status of gRPC that is the server's fault, or without a whole answer. ERRORS are those of the caller's own sidecar, by reason. Times are upper bounds, and end with an answer's last byte.

Examples:
  weft edges
  weft edges --to shop/web
  weft edges -- weft exec front/client -- curl -s -o /dev/null 'http://web.shop/?n=[1-200]'")]
pub(crate) struct EdgesArgs {
    #[command(flatten)]
    which: Which,

    /// Only what is called: a service, or a workload that is called by its own address
    #[arg(long, value_name = "NS/NAME")]
    to: Option<String>,

    #[arg(long, value_name = "NAME", help = "Context of the kubeconfig: a mesh on that cluster is meant")]
    context: Option<String>,

    #[command(flatten)]
    output: Output,

    /// Runs this, and shows only what it brought about
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// Who talked to whom, as a sidecar counted it.
#[derive(Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub(crate) struct Edge {
    /// The replica whose sidecar counted, as NAMESPACE/NAME; filled in here.
    #[serde(default)]
    pub(crate) from: String,
    pub(crate) direction: String,
    pub(crate) peer: String,
    pub(crate) target: String,
    pub(crate) protocol: String,
    pub(crate) cipher: String,
    pub(crate) key_exchange: String,
    pub(crate) connections: u64,
    pub(crate) requests: u64,
    pub(crate) by_class: BTreeMap<String, u64>,
    /// Those that failed, where the sidecar tells it: by status, by gRPC's status, or without a whole answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) failed: Option<u64>,
    /// By the route that they fell under, where the sidecar tells it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) routes: BTreeMap<String, Route>,
    /// Answered requests by the route that they fell under, where the sidecar tells it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) by_route: BTreeMap<String, u64>,
    pub(crate) errors: BTreeMap<String, u64>,
    pub(crate) retries: u64,
    pub(crate) p50_micros: u64,
    pub(crate) p99_micros: u64,
    /// Requests by how long they took: an upper bound in microseconds, none for what took longer than any, and how many.
    pub(crate) latency: Vec<(Option<u64>, u64)>,
}

/// What fell under one route.
#[derive(Serialize, Deserialize, Debug, Clone, PartialEq, Eq, Default)]
#[serde(default)]
pub(crate) struct Route {
    pub(crate) requests: u64,
    pub(crate) failed: u64,
    pub(crate) latency: Vec<(Option<u64>, u64)>,
}

impl Route {
    fn since(&self, before: Option<&Self>) -> Self {
        let Some(before) = before.filter(|b| b.requests <= self.requests) else { return self.clone() };
        Self {
            requests: self.requests - before.requests,
            failed: self.failed.saturating_sub(before.failed),
            latency: less(&self.latency, &before.latency),
        }
    }
}

/// Buckets with what came since.
fn less(now: &[(Option<u64>, u64)], then: &[(Option<u64>, u64)]) -> Vec<(Option<u64>, u64)> {
    let then = |at: usize| then.get(at).map_or(0, |(_, n)| *n);
    now.iter().enumerate().map(|(at, (bound, n))| (*bound, n.saturating_sub(then(at)))).collect()
}

impl Edge {
    /// What makes it another edge.
    pub(crate) fn key(&self) -> [&str; 7] {
        [&self.from, &self.direction, &self.peer, &self.target, &self.protocol, &self.cipher, &self.key_exchange]
    }

    /// Requests that ended.
    pub(crate) fn ended(&self) -> u64 {
        self.by_class.values().sum()
    }

    /// Those of them that failed; of a sidecar that does not say so, what was answered by 5xx.
    pub(crate) fn failed(&self) -> u64 {
        self.failed.unwrap_or_else(|| self.by_class.get("5xx").copied().unwrap_or(0)).min(self.ended())
    }

    /// What came since `before`; none where nothing did. A sidecar that was started meanwhile began anew.
    pub(crate) fn since(&self, before: Option<&Self>) -> Option<Self> {
        let Some(before) = before.filter(|b| b.requests <= self.requests && b.connections <= self.connections) else {
            return Some(self.clone());
        };
        let left = |now: &BTreeMap<String, u64>, then: &BTreeMap<String, u64>| {
            let left = now.iter().map(|(key, n)| (key.clone(), n.saturating_sub(then.get(key).copied().unwrap_or(0))));
            left.filter(|(_, n)| *n > 0).collect()
        };
        let mut edge = Self {
            connections: self.connections - before.connections,
            requests: self.requests - before.requests,
            by_class: left(&self.by_class, &before.by_class),
            failed: self.failed.map(|n| n.saturating_sub(before.failed.unwrap_or(0))),
            routes: self.routes.iter().map(|(name, r)| (name.clone(), r.since(before.routes.get(name)))).collect(),
            by_route: left(&self.by_route, &before.by_route),
            errors: left(&self.errors, &before.errors),
            latency: less(&self.latency, &before.latency),
            retries: self.retries.saturating_sub(before.retries),
            ..self.clone()
        };
        edge.routes.retain(|_, route| route.requests > 0);
        (edge.p50_micros, edge.p99_micros) = (edge.quantile(50), edge.quantile(99));
        (edge.requests + edge.connections > 0 || !edge.errors.is_empty()).then_some(edge)
    }

    /// An upper bound that so many percent of the requests stay below; of what took longer than any bound, the last one.
    fn quantile(&self, percent: u64) -> u64 {
        let all: u64 = self.latency.iter().map(|(_, n)| n).sum();
        let (mut seen, mut last) = (0, 0);
        for (bound, n) in &self.latency {
            seen += n;
            last = bound.unwrap_or(last);
            if all > 0 && seen * 100 >= all * percent {
                return last;
            }
        }
        0
    }

    pub(crate) fn is_mutual_tls(&self) -> bool {
        self.cipher.starts_with("TLS13_") && self.key_exchange == "X25519MLKEM768" && self.peer.starts_with("spiffe://")
    }

    fn row(&self) -> Vec<String> {
        let none = || "–".to_owned();
        let is_http = self.protocol != "tcp";
        let time = |micros: u64| {
            if is_http && micros > 0 { format!("≤{} ms", micros as f64 / 1000.0) } else { none() }
        };
        let (failed, ended) = (self.failed(), self.ended());
        let good = if ended > 0 { format!("{:.1}%", (ended - failed) as f64 * 100.0 / ended as f64) } else { none() };
        let class = |name: &str| self.by_class.get(name).copied().unwrap_or(0).to_string();
        let errors: Vec<String> = self.errors.iter().map(|(reason, n)| format!("{reason} {n}")).collect();
        vec![
            self.from.clone(),
            self.target.clone(),
            self.protocol.clone(),
            self.peer.strip_prefix("spiffe://cluster.local/").unwrap_or(&self.peer).to_owned(),
            if self.key_exchange.is_empty() { none() } else { self.key_exchange.clone() },
            if is_http { self.requests } else { self.connections }.to_string(),
            good,
            class("4xx"),
            class("5xx"),
            self.retries.to_string(),
            time(self.p50_micros),
            time(self.p99_micros),
            errors.join(", "),
        ]
    }
}

pub(crate) fn main(args: &EdgesArgs) -> anyhow::Result<ExitCode> {
    let fleet = Fleet::find(&args.which, args.context.as_deref())?;
    let before = if args.command.is_empty() { None } else { Some(read(&fleet, None)?) };
    let mut ran = true;
    if let Some((program, words)) = args.command.split_first() {
        // What it prints is not what is printed here.
        let mut command = Command::new(program);
        command.args(words).stdout(std::io::stderr());
        let status = command.status().with_context(|| format!("{program:?} cannot be run"))?;
        ran = status.success();
        if !ran {
            crate::complain(&format!("the command ended with {status}"));
        }
    }
    let now = read(&fleet, None)?;
    let mut edges = since(before.as_ref(), &now);
    edges.retain(|e| args.to.as_ref().is_none_or(|to| e.target == *to));
    args.output.print(|look| laid_out(&edges, look), &edges)?;
    let heard = now.tell();
    Ok(if ran { heard } else { ExitCode::FAILURE })
}

/// What the sidecars of a mesh have counted, of each its own.
pub(crate) fn read(fleet: &Fleet, namespace: Option<&Namespace>) -> anyhow::Result<Heard<Vec<Edge>>> {
    let mut heard: Heard<Vec<Edge>> = fleet.hear(namespace, "/edges")?;
    for (pod, edges) in &mut heard.told {
        for edge in edges {
            edge.from.clone_from(pod);
        }
    }
    Ok(heard)
}

/// What came between two reads, or until the second where there is no first. Of a sidecar that was not heard the first time nobody knows when it counted.
pub(crate) fn since(before: Option<&Heard<Vec<Edge>>>, after: &Heard<Vec<Edge>>) -> Vec<Edge> {
    let all = after.told.iter().flat_map(|(_, edges)| edges);
    let Some(before) = before else { return all.cloned().collect() };
    let known: HashMap<[&str; 7], &Edge> = before.told.iter().flat_map(|(_, edges)| edges).map(|e| (e.key(), e)).collect();
    all.filter(|e| !before.silent.contains_key(&e.from)).filter_map(|e| e.since(known.get(&e.key()).copied())).collect()
}

/// For people: one line for each that was called.
pub(crate) fn shown(edges: &[Edge]) -> String {
    laid_out(edges, Look { wide: false, colour: false })
}

fn laid_out(edges: &[Edge], look: Look) -> String {
    let mut header = vec![
        "FROM",
        "TO",
        "PROTOCOL",
        "IDENTITY",
        "KEY EXCHANGE",
        "REQUESTS",
        "OK",
        "4XX",
        "5XX",
        "RETRIES",
        "P50",
        "P99",
        "ERRORS",
    ];
    let called: Vec<&Edge> = edges.iter().filter(|e| e.direction == "outbound").collect();
    let mut rows: Vec<Vec<String>> = called.iter().map(|e| e.row()).collect();
    if look.wide {
        header.extend(["SECURED", "CIPHER", "CONNECTIONS"]);
        for (row, edge) in rows.iter_mut().zip(&called) {
            let secured = if edge.is_mutual_tls() { "mutual TLS" } else { "no" };
            row.extend([secured.to_owned(), edge.cipher.clone(), edge.connections.to_string()]);
        }
    }
    table::dressed(&header, &rows, look)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edge(requests: u64, failed: u64, slow: u64) -> Edge {
        Edge {
            from: "front/client-0".into(),
            direction: "outbound".into(),
            peer: "spiffe://cluster.local/ns/shop/sa/web".into(),
            target: "shop/web".into(),
            by_route: BTreeMap::new(),
            routes: BTreeMap::new(),
            failed: None,
            protocol: "http/1.1".into(),
            cipher: "TLS13_AES_128_GCM_SHA256".into(),
            key_exchange: "X25519MLKEM768".into(),
            connections: 0,
            requests,
            by_class: [("2xx".to_owned(), requests - failed), ("5xx".to_owned(), failed)].into(),
            errors: [("overloaded".to_owned(), failed)].into(),
            retries: failed,
            p50_micros: 250,
            p99_micros: 250,
            latency: vec![(Some(250), requests - slow), (Some(5000), slow), (None, 0)],
        }
    }

    #[test]
    fn only_what_a_command_brought_about_is_shown() {
        let (before, now) = (edge(100, 50, 0), edge(300, 60, 100));
        let since = now.since(Some(&before)).expect("something came");
        assert_eq!((since.requests, since.retries, since.p50_micros, since.p99_micros), (200, 10, 250, 5000));
        assert_eq!(since.by_class, [("2xx".to_owned(), 190), ("5xx".to_owned(), 10)].into());
        assert_eq!(now.since(Some(&now)), None, "nothing came");
        assert_eq!(before.since(Some(&now)), Some(before.clone()), "a sidecar that began anew");
        let line = shown(&[since]).lines().nth(1).map(|l| l.split_whitespace().collect::<Vec<_>>().join(" "));
        let expected =
            "front/client-0 shop/web http/1.1 ns/shop/sa/web X25519MLKEM768 200 95.0% 0 10 10 ≤0.25 ms ≤5 ms overloaded 10";
        assert_eq!(line.as_deref(), Some(expected));
    }
    #[test]
    fn what_fails_without_a_5xx_is_told_by_the_sidecar() {
        let route = |requests, failed| Route { requests, failed, latency: vec![(Some(250), requests), (None, 0)] };
        let grpc = |requests, failed| Edge {
            by_class: [("2xx".to_owned(), requests)].into(),
            failed: Some(failed),
            routes: [("GRPCRoute shop/web".to_owned(), route(requests, failed))].into(),
            ..edge(requests, 0, 0)
        };
        let since = grpc(300, 60).since(Some(&grpc(100, 50))).expect("something came");
        assert_eq!((since.ended(), since.failed()), (200, 10));
        assert_eq!(since.routes["GRPCRoute shop/web"], route(200, 10));
        assert!(shown(&[since]).contains(" 95.0% "));
        assert_eq!(edge(10, 3, 0).failed(), 3, "an older sidecar tells nothing of it");
    }

    #[test]
    fn of_a_sidecar_that_was_not_heard_before_nothing_is_known() {
        let heard = |pods: &[(&str, u64)], silent: &[&str]| Heard {
            told: pods
                .iter()
                .map(|(pod, n)| ((*pod).to_owned(), vec![Edge { from: (*pod).to_owned(), ..edge(*n, 0, 0) }]))
                .collect(),
            silent: silent.iter().map(|pod| ((*pod).to_owned(), "gone".to_owned())).collect(),
        };
        let (before, after) = (heard(&[("a/0", 10)], &["a/1"]), heard(&[("a/0", 30), ("a/1", 1_000_000), ("a/2", 7)], &[]));
        let found: Vec<(String, u64)> = since(Some(&before), &after).into_iter().map(|e| (e.from, e.requests)).collect();
        assert_eq!(found, [("a/0".to_owned(), 20), ("a/2".to_owned(), 7)], "a pod that began meanwhile counts from there");
        assert_eq!(since(None, &after).len(), 3);
    }
}
