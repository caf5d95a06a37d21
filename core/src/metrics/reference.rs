//! The reference page of the metrics, as `docs/metrics.md` has it.

use std::fmt::Write;

use super::histogram::{BOUNDS, SCHEMA};
use super::table::{self, Kind, LABELS, Metric, Program};

const HEAD: &str = "# Metrics

<!-- Made of core/src/metrics/table.rs: `make docs` writes this page anew. -->

Every program tells its metrics at `/metrics`, in plaintext: the sidecar on port 4791 of each pod, the control plane where `--probe` says (4701 in a
cluster), the injector on 4781, the CNI agent on 4702. A scraper gets what it asks for by `Accept`: Prometheus' text format, OpenMetrics 1.0 (with
exemplars of sampled requests), or protobuf (with native histograms, where Prometheus has them switched on). The sidecar and the control plane also
push them over OTLP, where `OTEL_METRICS_EXPORTER=otlp` says so: the same metrics, by their OpenTelemetry names.

Names are those of OpenTelemetry's semantic conventions where these have one; Prometheus' spelling follows from them by rule: `.` becomes `_`, the
unit comes at the end, and `_total` after a counter. Labels likewise: `weft.peer` is `weft_peer` there.
";

/// The whole page.
pub fn page() -> String {
    let mut out = HEAD.to_owned();
    let bounds: Vec<String> = BOUNDS.iter().map(ToString::to_string).collect();
    let _ = write!(
        out,
        "\n## Histograms\n\nEach is there twice, from one recording: with classic buckets, and with exponential ones (schema {SCHEMA}, eight to a power of two, from 61 µs to 1,024 s).\n\
        The classic ones end at {} s.\n",
        bounds.join(", ")
    );
    out.push_str(CARDINALITY);
    for program in Program::ALL {
        let _ = write!(
            out,
            "\n## Of the {}\n\n| Prometheus | OpenTelemetry | kind | unit | what |\n|---|---|---|---|---|\n",
            program.as_str()
        );
        for metric in table::of(program) {
            row(&mut out, metric);
        }
    }
    out.push_str("\n## Labels\n\n| label | what |\n|---|---|\n");
    for (name, help) in LABELS {
        let _ = writeln!(out, "| `{name}` | {help} |");
    }
    out
}

const CARDINALITY: &str = "
## How many series

A worker of a sidecar keeps 2,000 sets of labels apart (`--metrics-series`). What finds no room is counted in one series with the label
`otel_metric_overflow=\"true\"` and nothing else that tells it from others. A set of labels that nothing was counted under for 15 minutes, and that no
open connection has, is dropped. Of policies, ejected endpoints and URLs 500 each are kept apart; what comes later is `other`.
";

fn row(out: &mut String, metric: &Metric) {
    let kind = if metric.kind == Kind::Info { "gauge, always 1" } else { metric.kind.as_str() };
    let unit = if metric.unit.is_empty() { "" } else { metric.unit };
    let labels: Vec<String> = metric.labels.iter().map(|label| format!("`{label}`")).collect();
    let labels = if labels.is_empty() { String::new() } else { format!(" By {}.", labels.join(", ")) };
    let otel = if metric.kind == Kind::Info { "the resource".to_owned() } else { format!("`{}`", metric.name) };
    let _ = writeln!(out, "| `{}` | {otel} | {kind} | {unit} | {}{labels} |", metric.prometheus_name(), metric.help);
}
