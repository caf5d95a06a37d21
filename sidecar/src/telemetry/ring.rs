//! The last spans, for the owner of the admin socket: a trace can be looked at without a collector.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use serde_json::{Map, Value as Json, json};
use weft_core::hex::hex;

use super::fields::Told;
use super::record::Record;
use super::span;

/// Requests whose spans are kept.
const KEPT: usize = 1_000;

/// See above. It has the records, and makes spans of them when it is asked.
#[derive(Default)]
pub struct Ring(Mutex<VecDeque<Box<Record>>>);

impl Ring {
    pub(super) fn keep(&self, record: Box<Record>) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let oldest = if kept.len() == KEPT { kept.pop_front() } else { None };
        kept.push_back(record);
        drop(kept);
        drop(oldest);
    }

    /// Every span that is kept, or those of one trace, given by its digits: the oldest first.
    pub fn spans(&self, trace: Option<&str>) -> Vec<Json> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_asked = |record: &Record| {
            let own = record.trace.as_ref().map(|own| hex(&own.context.trace.to_bytes()));
            trace.is_none_or(|asked| own.is_some_and(|own| own == asked))
        };
        let asked = kept.iter().filter(|record| is_asked(record));
        asked.flat_map(|record| span::spans(&Told { record })).map(|span| told(&span)).collect()
    }
}

fn told(span: &Span) -> Json {
    let attributes: Map<String, Json> = span
        .attributes
        .iter()
        .map(|pair| {
            let value = match pair.value.as_ref().and_then(|v| v.value.as_ref()) {
                Some(Value::StringValue(text)) => json!(text),
                Some(Value::IntValue(number)) => json!(number),
                _ => Json::Null,
            };
            (pair.key.clone(), value)
        })
        .collect();
    let kind = match span.kind {
        2 => "server",
        3 => "client",
        _ => "internal",
    };
    json!({
        "trace_id": hex(&span.trace_id),
        "span_id": hex(&span.span_id),
        "parent_span_id": hex(&span.parent_span_id),
        "name": span.name,
        "kind": kind,
        "start_unix_nano": span.start_time_unix_nano,
        "duration_nano": span.end_time_unix_nano.saturating_sub(span.start_time_unix_nano),
        "error": span.status.as_ref().is_some_and(|s| s.code == 2),
        "attributes": attributes,
    })
}
