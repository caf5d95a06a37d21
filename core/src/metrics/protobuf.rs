//! `io.prometheus.client.MetricFamily`, each with its length before it: the format in which Prometheus takes native histograms. Written by hand: these
//! are a dozen fields, and `core` has no use for protobuf otherwise. Field numbers are those of `metrics.proto` of `prometheus/client_model`.

use super::family::{Distribution, Exemplar, Family, Labels, Point, Text, Value, underscored};
use super::histogram::{BOUNDS, SCHEMA, ZERO, spans};
use super::table::Kind;
use crate::hex::hex;

pub(super) fn write(families: &[Family], constant: &Labels) -> Vec<u8> {
    let mut out = Vec::with_capacity(64 * 1024);
    let first = labels(constant);
    for family in families.iter().filter(|f| !f.points.is_empty()) {
        let mut message = Message::default();
        message.text(1, &family.metric.prometheus_name());
        message.text(2, family.metric.help);
        message.number(
            3,
            match family.metric.kind {
                Kind::Counter => 0,
                Kind::Gauge | Kind::UpDownCounter | Kind::Info => 1,
                Kind::Histogram => 4,
            },
        );
        for point in &family.points {
            message.message(4, &metric(point, &first));
        }
        varint(&mut out, message.0.len() as u64);
        out.extend_from_slice(&message.0);
    }
    out
}

fn metric(point: &Point, first: &Message) -> Message {
    let mut metric = Message(first.0.clone());
    metric.0.extend_from_slice(&labels(&point.labels).0);
    match &point.value {
        Value::Level(level) => {
            let mut gauge = Message::default();
            gauge.double(1, *level);
            metric.message(2, &gauge);
        }
        Value::Count(n) => {
            let mut counter = Message::default();
            counter.double(1, *n as f64);
            metric.message(3, &counter);
        }
        Value::Distribution(distribution) => metric.message(7, &histogram(distribution)),
    }
    metric
}

/// Each label, as field 1 of a metric.
fn labels(labels: &Labels) -> Message {
    let mut out = Message::default();
    for (name, value) in labels.iter() {
        out.message(1, &pair(name, value));
    }
    out
}

fn pair(name: &str, value: &Text) -> Message {
    let mut key = String::new();
    underscored(name, &mut key);
    let mut pair = Message::default();
    pair.text(1, &key);
    match value {
        Text::Word(text) => pair.text(2, text),
        Text::Name(text) => pair.text(2, text),
        Text::Number(number) => pair.text(2, &number.to_string()),
    }
    pair
}

fn histogram(distribution: &Distribution) -> Message {
    let reading = &distribution.reading;
    let mut out = Message::default();
    // Both kinds of buckets must have this many, though a reading while somebody records may be one off.
    let count = reading.exponential_count();
    out.number(1, count);
    out.double(2, reading.sum());
    let mut sum = 0;
    for (i, n) in reading.classic.iter().enumerate() {
        sum = (sum + n).min(count);
        let mut bucket = Message::default();
        bucket.number(1, if i == BOUNDS.len() { count } else { sum });
        bucket.double(2, BOUNDS.get(i).copied().unwrap_or(f64::INFINITY));
        if let Some(exemplar) = distribution.exemplars.as_ref().and_then(|e| e[i].as_ref()) {
            bucket.message(3, &exemplified(exemplar));
        }
        out.message(3, &bucket);
    }
    out.signed(5, SCHEMA.into());
    out.double(6, ZERO);
    out.number(7, reading.zero);
    // Each span says how far it is from the end of the one before; each count, how it differs from the one before.
    let (mut end, mut before) = (0, 0);
    for (index, counts) in spans(&reading.slots) {
        let mut span = Message::default();
        span.signed(1, i64::from(index - end));
        span.number(2, counts.len() as u64);
        out.message(12, &span);
        end = index + counts.len() as i32;
        for n in counts {
            out.signed(13, *n as i64 - before);
            before = *n as i64;
        }
    }
    out
}

fn exemplified(exemplar: &Exemplar) -> Message {
    let mut out = Message::default();
    out.message(1, &pair("trace_id", &hex(&exemplar.trace).into()));
    out.message(1, &pair("span_id", &hex(&exemplar.span).into()));
    out.double(2, exemplar.seconds);
    let mut at = Message::default();
    at.number(1, exemplar.at / 1_000_000_000);
    at.number(2, exemplar.at % 1_000_000_000);
    out.message(3, &at);
    out
}

/// A protobuf message that is being written.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn key(&mut self, field: u64, wire: u64) {
        varint(&mut self.0, field << 3 | wire);
    }

    fn number(&mut self, field: u64, value: u64) {
        self.key(field, 0);
        varint(&mut self.0, value);
    }

    /// A zigzag number (`sint32`, `sint64`).
    fn signed(&mut self, field: u64, value: i64) {
        self.number(field, (value << 1 ^ value >> 63) as u64);
    }

    fn double(&mut self, field: u64, value: f64) {
        self.key(field, 1);
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    fn bytes(&mut self, field: u64, value: &[u8]) {
        self.key(field, 2);
        varint(&mut self.0, value.len() as u64);
        self.0.extend_from_slice(value);
    }

    fn text(&mut self, field: u64, value: &str) {
        self.bytes(field, value.as_bytes());
    }

    fn message(&mut self, field: u64, value: &Self) {
        self.bytes(field, &value.0);
    }
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}
