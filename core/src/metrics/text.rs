//! Prometheus' text format 0.0.4, and OpenMetrics 1.0.

use std::fmt::Write;

use super::family::{Distribution, Exemplar, Family, Labels, Value, quoted, underscored};
use super::histogram::{BOUNDS, CLASSIC};
use super::table::Kind;
use crate::hex::hex;

pub(super) fn write(families: &[Family], constant: &Labels, open: bool) -> Vec<u8> {
    let points: usize =
        families.iter().map(|f| f.points.len() * if f.metric.kind == Kind::Histogram { CLASSIC + 2 } else { 1 }).sum();
    let mut out = String::with_capacity(families.len() * 200 + points * 300);
    let mut first = String::new();
    labelled(constant, &mut first);
    let bounds: Vec<String> = BOUNDS.iter().map(|b| bound(*b, open)).chain(["+Inf".to_owned()]).collect();
    for family in families {
        let metric = family.metric;
        let name = metric.prometheus_name();
        // OpenMetrics names a family without what its series' names end with.
        let head = if open { &metric.family_name() } else { &name };
        let kind = match metric.kind {
            Kind::Counter => "counter",
            Kind::Gauge | Kind::UpDownCounter => "gauge",
            Kind::Info => {
                if open {
                    "info"
                } else {
                    "gauge"
                }
            }
            Kind::Histogram => "histogram",
        };
        let _ = writeln!(out, "# HELP {head} {}\n# TYPE {head} {kind}", metric.help);
        let unit = metric.unit_word();
        if open && !unit.is_empty() {
            let _ = writeln!(out, "# UNIT {head} {unit}");
        }
        let mut labels = String::new();
        for point in &family.points {
            labels.clear();
            labels.push_str(&first);
            labelled(&point.labels, &mut labels);
            match &point.value {
                Value::Distribution(distribution) => histogram(&mut out, &name, &labels, &bounds, distribution, open),
                Value::Count(n) => {
                    sample(&mut out, &name, "", &labels);
                    let _ = writeln!(out, "{n}");
                }
                Value::Level(level) => {
                    sample(&mut out, &name, "", &labels);
                    number(&mut out, *level);
                    out.push('\n');
                }
            }
        }
    }
    if open {
        out.push_str("# EOF\n");
    }
    out.into_bytes()
}

fn histogram(out: &mut String, name: &str, labels: &str, bounds: &[String], distribution: &Distribution, open: bool) {
    let mut sum = 0;
    let comma = if labels.is_empty() { "" } else { "," };
    for (i, n) in distribution.reading.classic.iter().enumerate() {
        sum += n;
        for part in [name, "_bucket{", labels, comma, "le=\"", &bounds[i], "\"} "] {
            out.push_str(part);
        }
        let _ = write!(out, "{sum}");
        if let (true, Some(exemplars)) = (open, &distribution.exemplars)
            && let Some(exemplar) = &exemplars[i]
        {
            exemplify(out, exemplar);
        }
        out.push('\n');
    }
    sample(out, name, "_sum", labels);
    number(out, distribution.reading.sum());
    out.push('\n');
    sample(out, name, "_count", labels);
    let _ = writeln!(out, "{sum}");
}

fn exemplify(out: &mut String, exemplar: &Exemplar) {
    let (trace, span) = (hex(&exemplar.trace), hex(&exemplar.span));
    let _ = write!(out, " # {{trace_id=\"{trace}\",span_id=\"{span}\"}} {} ", exemplar.seconds);
    let _ = write!(out, "{}.{:03}", exemplar.at / 1_000_000_000, exemplar.at / 1_000_000 % 1_000);
}

/// A series' name and labels, up to its value.
fn sample(out: &mut String, name: &str, suffix: &str, labels: &str) {
    out.push_str(name);
    out.push_str(suffix);
    if !labels.is_empty() {
        out.push('{');
        out.push_str(labels);
        out.push('}');
    }
    out.push(' ');
}

fn labelled(labels: &Labels, out: &mut String) {
    for (name, value) in labels.iter() {
        if !out.is_empty() {
            out.push(',');
        }
        underscored(name, out);
        out.push('=');
        quoted(value, out);
    }
}

fn number(out: &mut String, value: f64) {
    let _ = match value {
        f64::INFINITY => write!(out, "+Inf"),
        f64::NEG_INFINITY => write!(out, "-Inf"),
        value if value.is_nan() => write!(out, "NaN"),
        value => write!(out, "{value}"),
    };
}

/// A bound as the formats spell it: OpenMetrics has a point in every number.
fn bound(bound: f64, open: bool) -> String {
    if open { format!("{bound:?}") } else { format!("{bound}") }
}
