//! `weft trace`: the last traces that the sidecars keep, put together. For more than a look there are collectors and their stores.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::process::ExitCode;

use anyhow::bail;
use clap::Args;
use serde_json::{Value, json};

use crate::fleet::{Fleet, Heard};
use crate::output::{Output, plain};
use crate::rundir::Which;

/// What `weft trace` is told.
#[derive(Args, Debug)]
#[command(after_help = "\
Each sidecar keeps its last 1,000 spans, of requests that are sampled. Without a collector nothing is, unless OTEL_TRACES_SAMPLER says so: in a file of weft up, under telemetry.

Examples:
  weft trace
  weft trace --last 5
  weft trace 4bf92f3577b34da6a3ce929d0e0e4736")]
pub(crate) struct TraceArgs {
    /// The trace: 32 hexadecimal digits; without it, the last one
    #[arg(value_name = "TRACE-ID", value_parser = trace_id)]
    trace: Option<String>,

    /// So many of the last traces
    #[arg(long, value_name = "N", default_value_t = 1, conflicts_with = "trace")]
    last: usize,

    #[command(flatten)]
    which: Which,

    #[arg(long, value_name = "NAME", help = "Context of the kubeconfig: a mesh on that cluster is meant")]
    context: Option<String>,

    #[command(flatten)]
    output: Output,
}

/// It goes into a path.
fn trace_id(text: &str) -> Result<String, String> {
    if text.len() == 32 && text.bytes().all(|b| b.is_ascii_hexdigit()) {
        Ok(text.to_ascii_lowercase())
    } else {
        Err("a trace has 32 hexadecimal digits, as traceparent and the access log have them".to_owned())
    }
}

/// A span, and whose it is.
struct Span {
    sidecar: String,
    told: Value,
}

impl Span {
    fn text(&self, field: &str) -> &str {
        self.told[field].as_str().unwrap_or_default()
    }

    fn start(&self) -> u64 {
        self.told["start_unix_nano"].as_u64().unwrap_or(0)
    }
}

/// How many spans the sidecars keep of one trace, and all of them as a tree.
pub(crate) fn of(fleet: &Fleet, id: &str) -> anyhow::Result<(usize, String)> {
    let traces = last(heard(fleet, Some(id))?, 1);
    Ok(traces.first().map_or_else(|| (0, String::new()), |spans| (spans.len(), shown(spans))))
}

/// The spans that the sidecars keep: all of them, or those of one trace.
fn heard(fleet: &Fleet, trace: Option<&str>) -> anyhow::Result<Vec<Span>> {
    let path = trace.map_or_else(|| "/traces".to_owned(), |id| format!("/traces?id={id}"));
    let mut spans = Vec::new();
    let heard: Heard<Vec<Value>> = fleet.hear(None, &path)?;
    heard.tell();
    for (sidecar, told) in heard.told {
        spans.extend(told.into_iter().map(|told| Span { sidecar: sidecar.clone(), told }));
    }
    Ok(spans)
}

pub(crate) fn main(args: &TraceArgs) -> anyhow::Result<ExitCode> {
    let fleet = Fleet::find(&args.which, args.context.as_deref())?;
    let traces = last(heard(&fleet, args.trace.as_deref())?, args.last);
    if traces.is_empty() {
        bail!("no sidecar keeps such a trace: is anything sampled? (OTEL_TRACES_SAMPLER)");
    }
    let told = |span: &Span| {
        let mut told = span.told.clone();
        told["sidecar"] = json!(span.sidecar);
        told
    };
    let all: Vec<Vec<Value>> = traces.iter().map(|spans| spans.iter().map(told).collect()).collect();
    args.output.print(|_| traces.iter().map(|spans| shown(spans)).collect::<Vec<_>>().join("\n"), &all)?;
    Ok(ExitCode::SUCCESS)
}

/// The last traces, the oldest first, and the spans of each by their beginning.
fn last(spans: Vec<Span>, most: usize) -> Vec<Vec<Span>> {
    let mut by_trace: BTreeMap<String, Vec<Span>> = BTreeMap::new();
    for span in spans {
        by_trace.entry(span.text("trace_id").to_owned()).or_default().push(span);
    }
    let mut traces: Vec<Vec<Span>> = by_trace.into_values().collect();
    for spans in &mut traces {
        spans.sort_by_key(Span::start);
    }
    traces.sort_by_key(|spans| spans[0].start());
    traces.split_off(traces.len().saturating_sub(most))
}

/// A trace as a tree: a span below its parent, with how long it took and when it began after the first.
fn shown(spans: &[Span]) -> String {
    let known: BTreeSet<&str> = spans.iter().map(|s| s.text("span_id")).collect();
    let began = spans[0].start();
    let mut out = format!("trace {}\n", spans[0].text("trace_id"));
    let (mut rows, mut placed) = (Vec::new(), vec![false; spans.len()]);
    let is_root = |s: &Span| !known.contains(s.text("parent_span_id"));
    // Spans that are each other's parents have no root: the first of them is one.
    let roots = (0..spans.len()).filter(|&i| is_root(&spans[i])).chain(0..spans.len());
    for root in roots {
        place(root, spans, 0, &mut placed, &mut rows);
    }
    let width = rows.iter().map(|(_, text)| text.chars().count()).max().unwrap_or(0);
    for (span, text) in rows {
        let millis = |nanos: u64| nanos as f64 / 1e6;
        let took = millis(span.told["duration_nano"].as_u64().unwrap_or(0));
        let after = millis(span.start().saturating_sub(began));
        let _ = writeln!(
            out,
            "{text:<width$}  {after:>9.3} ms  +{took:.3} ms{}",
            if span.told["error"] == true { "  error" } else { "" }
        );
    }
    out
}

/// As deep as a trace is drawn.
const DEEPEST: usize = 32;

/// Places a span, by its index, and what is below it, each once.
fn place<'a>(index: usize, all: &'a [Span], depth: usize, placed: &mut [bool], rows: &mut Vec<(&'a Span, String)>) {
    if std::mem::replace(&mut placed[index], true) {
        return;
    }
    let span = &all[index];
    let attribute = |name: &str| match &span.told["attributes"][name] {
        Value::Null => String::new(),
        Value::String(text) => format!(" {}", plain(text)),
        other => format!(" {other}"),
    };
    let path = if span.text("kind") == "server" { attribute("url.path") } else { attribute("url.full") };
    let name = plain(span.text("name"));
    let status = attribute("http.response.status_code") + &attribute("rpc.response.status_code");
    rows.push((span, format!("{:indent$}{} {} {name}{path}{status}", "", span.sidecar, span.text("kind"), indent = 2 * depth)));
    if depth < DEEPEST {
        let id = span.text("span_id");
        for (child, _) in all.iter().enumerate().filter(|(_, s)| s.text("parent_span_id") == id) {
            place(child, all, depth + 1, placed, rows);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(sidecar: &str, kind: &str, (id, parent): (&str, &str), start: u64) -> Span {
        Span {
            sidecar: sidecar.to_owned(),
            told: json!({"trace_id": "t", "span_id": id, "parent_span_id": parent, "name": "GET", "kind": kind, "start_unix_nano": start,
                "duration_nano": 2_000_000, "error": false, "attributes": {"url.path": "/a", "http.response.status_code": 200}}),
        }
    }

    #[test]
    fn a_trace_is_a_tree() {
        let spans = vec![
            span("shop/cart-0", "server", ("c", "b"), 3_000_000),
            span("shop/web-0", "client", ("b", "a"), 2_000_000),
            span("shop/web-0", "server", ("a", "outside"), 1_000_000),
        ];
        let traces = last(spans, 1);
        let expected = "\
trace t
shop/web-0 server GET /a 200           0.000 ms  +2.000 ms
  shop/web-0 client GET 200            1.000 ms  +2.000 ms
    shop/cart-0 server GET /a 200      2.000 ms  +2.000 ms
";
        assert_eq!(shown(&traces[0]), expected);
        // Parents that are their own children, and spans of one identity, are each told once.
        assert_eq!(shown(&[span("x", "server", ("a", "a"), 1)]).lines().count(), 2);
        let circle: Vec<Span> =
            (0..40).map(|i| span("x", "server", if i % 2 == 0 { ("a", "b") } else { ("b", "a") }, 1)).collect();
        assert_eq!(shown(&circle).lines().count(), 41);
        let mut hostile = span("x", "server", ("a", ""), 1);
        hostile.told["name"] = "GET \u{202e}\u{9b}".into();
        assert!(shown(&[hostile]).contains("GET \\u{202e}\\u{9b} /a"));
        assert!(trace_id("x").is_err() && trace_id(&"aB".repeat(16)).is_ok());
    }
}
