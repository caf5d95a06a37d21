//! The shop's topology as text: who called whom, how often, and whether on mutual TLS.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::edges::Edge;
use crate::table;

/// One line for each pair, replicas put together; rates are over `open`, the time that the shop has been open.
pub(super) fn drawn(edges: &[Edge], open: Duration) -> String {
    let mut pairs: BTreeMap<(String, &str), (u64, u64, bool)> = BTreeMap::new();
    for edge in edges.iter().filter(|edge| edge.direction == "outbound") {
        let (requests, connections, secured) = pairs.entry((workload(&edge.from), &edge.target)).or_insert((0, 0, true));
        *requests += edge.requests;
        *connections += if edge.protocol == "tcp" { edge.connections } else { 0 };
        *secured &= edge.is_mutual_tls();
    }
    let seconds = open.as_secs_f64().max(1.0);
    let rows: Vec<Vec<String>> = pairs
        .into_iter()
        .map(|((from, to), (requests, connections, secured))| {
            let much = [(requests, "requests/s"), (connections, "connections/s")];
            let much = much.iter().filter(|(n, _)| *n > 0).map(|(n, of)| format!("{:.1} {of}", *n as f64 / seconds));
            vec![
                from,
                "──▶".to_owned(),
                to.to_owned(),
                if secured { "mutual TLS" } else { "in the clear" }.to_owned(),
                much.collect::<Vec<_>>().join(", "),
            ]
        })
        .collect();
    table::render(&["FROM", "", "TO", "OVER", "TRAFFIC"], &rows)
}

/// A replica is `NAMESPACE/WORKLOAD-NUMBER`.
fn workload(replica: &str) -> String {
    replica.rsplit_once('-').map_or(replica, |(workload, _)| workload).to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn edge(from: &str, target: &str, protocol: &str, secured: bool) -> Edge {
        let (peer, cipher, group) =
            if secured { ("spiffe://td/ns/a/sa/b", "TLS13_AES_128_GCM_SHA256", "X25519MLKEM768") } else { ("plaintext", "", "") };
        let edge = json!({"from": from, "direction": "outbound", "peer": peer, "target": target, "protocol": protocol, "cipher": cipher, "key_exchange": group,
            "connections": 2, "requests": if protocol == "tcp" { 0 } else { 30 }, "by_class": {}, "errors": {}, "retries": 0, "p50_micros": 0, "p99_micros": 0, "latency": []});
        serde_json::from_value(edge).expect("an edge")
    }

    #[test]
    fn replicas_are_put_together_and_one_call_in_the_clear_is_told() {
        let edges = [
            edge("shop/web-0", "shop/catalog", "http/1.1", true),
            edge("shop/web-1", "shop/catalog", "http/1.1", true),
            edge("shop/web-0", "shop/ledger", "tcp", true),
            edge("shop/web-1", "shop/ledger", "tcp", false),
        ];
        let text = drawn(&edges, Duration::from_secs(10));
        let lines: Vec<String> = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        assert_eq!(
            lines,
            [
                "FROM TO OVER TRAFFIC",
                "shop/web ──▶ shop/catalog mutual TLS 6.0 requests/s",
                "shop/web ──▶ shop/ledger in the clear 0.4 connections/s",
            ]
        );
    }
}
