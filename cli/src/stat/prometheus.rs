//! What a Prometheus has of the sidecars: its HTTP API, in a few questions.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::Value;
use weft_core::failure::Reason;

use super::{By, Line, What};
use crate::http::escaped;

/// How long one question may take.
const PATIENCE: Duration = Duration::from_secs(20);
/// Of an answer, no more than this is read.
const MAX_ANSWER: u64 = 64 << 20;
/// Names that sidecars tell (docs/metrics.md): of requests that go out, and that come in.
const CLIENT: &str = "http_client_request_duration_seconds";
const SERVER: &str = "http_server_request_duration_seconds";
const ERRORS: &str = "weft_errors_total";

/// Asks for the last `window`.
pub(super) fn lines(url: &str, what: &What, window: Duration) -> anyhow::Result<Vec<Line>> {
    let seconds = window.as_secs().max(1);
    let mut all: BTreeMap<[String; 3], Line> = BTreeMap::new();
    let by = labels(what.by).join(",");
    let family = if what.by == By::Pod { SERVER } else { CLIENT };
    let namespace = what.namespace.as_ref().map_or_else(String::new, |n| format!("weft_namespace=\"{n}\""));
    let mut each = |query: &str, put: &mut dyn FnMut(&mut Line, &Value, f64)| -> anyhow::Result<()> {
        for (metric, value) in ask(url, query)? {
            let key = key(what.by, &metric);
            let line = all.entry(key.clone()).or_insert_with(|| {
                let [from, to, route] = key;
                Line { from, to, route, seconds: Some(seconds as f64), ..Line::default() }
            });
            put(line, &metric, value);
        }
        Ok(())
    };
    each(&format!("sum by ({by}) (increase({family}_count{{{namespace}}}[{seconds}s]))"), &mut |line, _, n| {
        line.requests = n.round() as u64;
        line.requests_per_second = n / seconds as f64;
    })?;
    let failed = format!("{},{namespace}", failures());
    each(&format!("sum by ({by}) (increase({family}_count{{{failed}}}[{seconds}s]))"), &mut |line, _, n| {
        let all = line.requests_per_second * seconds as f64;
        line.success_rate = (all > 0.0).then(|| (1.0 - n / all).clamp(0.0, 1.0));
    })?;
    for (q, field) in [(0.5, 0), (0.95, 1), (0.99, 2)] {
        let query = format!("histogram_quantile({q}, sum by (le,{by}) (rate({family}_bucket{{{namespace}}}[{seconds}s])))");
        each(&query, &mut |line, _, seconds| {
            *[&mut line.p50, &mut line.p95, &mut line.p99][field] = seconds.is_finite().then_some(seconds * 1000.0);
        })?;
    }
    if what.by == By::Service || what.by == By::Edge {
        let of = format!("weft_direction=\"outbound\",{namespace}");
        each(&format!("sum by (error_type,{by}) (increase({ERRORS}{{{of}}}[{seconds}s])) > 0"), &mut |line, metric, n| {
            let reason = metric["error_type"].as_str().unwrap_or_default().to_owned();
            line.errors.insert(reason, n.round() as u64);
        })?;
    }
    let mut lines: Vec<Line> = all.into_values().filter(|l| l.requests > 0 || !l.errors.is_empty()).collect();
    for line in &mut lines {
        if line.success_rate.is_none() && line.requests > 0 {
            line.success_rate = Some(1.0);
        }
    }
    lines.retain(|line| what.to.as_ref().is_none_or(|wanted| *wanted == line.to));
    Ok(lines)
}

/// What picks the requests that failed. Sidecars give them an `error_type`: weft's reason, a status, or gRPC's, whatever the HTTP status. The caller's own faults are
/// none: 4xx, and the reasons that stand for them, by which gRPC calls are refused with an HTTP status of 200.
fn failures() -> String {
    let of_caller = |r: &&Reason| (400..500).contains(&r.http_status()) || **r == Reason::DownstreamGone;
    let reasons: Vec<&str> = Reason::ALL.iter().filter(of_caller).map(|r| r.as_str()).collect();
    format!("error_type!~\"|{}\",http_response_status_code!~\"4..\"", reasons.join("|"))
}

fn labels(by: By) -> &'static [&'static str] {
    match by {
        By::Service => &["weft_service"],
        By::Route => &["weft_service", "weft_route"],
        By::Edge => &["weft_namespace", "weft_workload", "weft_service"],
        By::Pod => &["weft_namespace", "pod", "instance"],
    }
}

/// Who calls, what is called, and the route; a pod by its name where the scrape gives one, else by its address.
fn key(by: By, metric: &Value) -> [String; 3] {
    let text = |name: &str| metric[name].as_str().unwrap_or_default().to_owned();
    let (none, service) = (String::new(), text("weft_service"));
    match by {
        By::Service => [none.clone(), service, none],
        By::Route => [none, service, text("weft_route")],
        By::Edge => [format!("{}/{}", text("weft_namespace"), text("weft_workload")), service, none],
        By::Pod => {
            let name = Some(text("pod")).filter(|pod| !pod.is_empty()).unwrap_or_else(|| text("instance"));
            [none.clone(), format!("{}/{name}", text("weft_namespace")), none]
        }
    }
}

/// An instant vector: labels with values.
fn ask(url: &str, query: &str) -> anyhow::Result<Vec<(Value, f64)>> {
    let answer = get(url, &format!("/api/v1/query?query={}", escaped(query))).with_context(|| format!("Prometheus at {url}"))?;
    read(&answer).with_context(|| format!("Prometheus at {url}, asked for {query}"))
}

fn read(answer: &str) -> anyhow::Result<Vec<(Value, f64)>> {
    let answer: Value = serde_json::from_str(answer).context("the answer is no JSON: is it a Prometheus?")?;
    if answer["status"] != "success" {
        bail!("it says: {}", answer["error"].as_str().unwrap_or("no success"));
    }
    let mut found = Vec::new();
    for one in answer["data"]["result"].as_array().into_iter().flatten() {
        let value = one["value"][1].as_str().and_then(|text| text.parse::<f64>().ok()).unwrap_or(f64::NAN);
        found.push((one["metric"].clone(), value));
    }
    Ok(found)
}

/// One GET by HTTP/1.0, which has no chunks and ends with the connection.
fn get(url: &str, path: &str) -> anyhow::Result<String> {
    let Some(rest) = url.strip_prefix("http://") else {
        bail!("write it as http://HOST:PORT; for one behind TLS, use a port-forward")
    };
    let (place, base) = rest.split_once('/').map_or((rest, ""), |(place, base)| (place, base.trim_end_matches('/')));
    let with_port = if place.rsplit(':').next().is_some_and(|port| port.parse::<u16>().is_ok()) {
        place.to_owned()
    } else {
        format!("{place}:80")
    };
    let address = with_port.to_socket_addrs()?.next().context("its name stands for no address")?;
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let base = if base.is_empty() { String::new() } else { format!("/{base}") };
    // In one piece: who answers the first of several and ends resets what comes after it.
    let request = format!("GET {base}{path} HTTP/1.0\r\nHost: {place}\r\nUser-Agent: weft\r\nAccept: application/json\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.take(MAX_ANSWER).read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("the answer is no HTTP")?;
    let status = head.lines().next().unwrap_or_default().split_once(' ').map_or("", |(_, status)| status.trim());
    // Prometheus says what is wrong with a query in a body of its own.
    if !status.starts_with("200") && !body.trim_start().starts_with('{') {
        bail!("it answers {status}");
    }
    Ok(body.to_owned())
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn an_answer_is_read() {
        let text = r#"{"status": "success", "data": {"resultType": "vector", "result": [
            {"metric": {"weft_namespace": "shop", "pod": "web-0", "instance": "i", "weft_service": "shop/db"}, "value": [1, "2.5"]}, {"metric": {}, "value": [1, "NaN"]}]}}"#;
        let found = read(text).expect("good");
        assert_eq!((key(By::Pod, &found[0].0)[1].as_str(), found[0].1.to_string().as_str()), ("shop/web-0", "2.5"));
        assert_eq!(key(By::Edge, &found[0].0), ["shop/", "shop/db", ""]);
        assert!(found[1].1.is_nan());
        let said = read(r#"{"status": "error", "error": "bad query"}"#).expect_err("it is one").to_string();
        assert_eq!(said, "it says: bad query");
    }

    #[test]
    fn failures_are_those_of_grpc_and_of_answers_that_broke_off_too() {
        let picked = failures();
        assert!(picked.starts_with("error_type!~\"|") && picked.ends_with(",http_response_status_code!~\"4..\""), "{picked}");
        assert!(picked.contains("|denied|") && picked.contains(Reason::DownstreamGone.as_str()), "{picked}");
        assert!(!picked.contains("upstream") && !picked.contains("overloaded") && !picked.contains("UNAVAILABLE"), "{picked}");
    }

    #[test]
    fn a_server_is_asked_and_no_other_scheme() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let url = format!("http://{}/base/", listener.local_addr().expect("it listens"));
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a question");
            let (mut request, mut byte) = (Vec::new(), [0]);
            while !request.ends_with(b"\r\n\r\n") {
                stream.read_exact(&mut byte).expect("a request");
                request.push(byte[0]);
            }
            stream.write_all(b"HTTP/1.0 200 OK\r\n\r\nbody").expect("an answer");
            String::from_utf8_lossy(&request).into_owned()
        });
        assert_eq!(get(&url, "/x").expect("an answer"), "body");
        assert!(server.join().expect("it ends").starts_with("GET /base/x HTTP/1.0\r\n"));
        assert!(get("https://localhost", "/").is_err());
    }
}
