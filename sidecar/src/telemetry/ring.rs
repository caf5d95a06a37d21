//! The last spans, for the owner of the admin socket: a trace can be looked at without a collector.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use serde_json::{Map, Value as Json, json};
use weft_core::hex::hex;

use super::record::{Noted, Record};
use super::span;

/// Requests whose spans are kept.
const KEPT: usize = 1_000;

/// See above. It has the records, and makes spans of them when it is asked.
#[derive(Default)]
pub struct Ring(Mutex<VecDeque<Noted>>);

impl Ring {
    /// Keeps a record in the place of the oldest, and in its memory.
    pub(super) fn keep(&self, record: Record, texts: &str) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut room = if kept.len() == KEPT { kept.pop_front().unwrap_or_default() } else { Noted::default() };
        room.record = record;
        room.texts.clear();
        room.texts.push_str(texts);
        kept.push_back(room);
    }

    /// Every span that is kept, or those of one trace, given by its digits: the oldest first.
    pub fn spans(&self, trace: Option<&str>) -> Vec<Json> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_asked = |noted: &&Noted| {
            let own = noted.record.trace.as_ref().map(|own| hex(&own.context.trace.to_bytes()));
            trace.is_none_or(|asked| own.is_some_and(|own| own == asked))
        };
        let asked = kept.iter().filter(is_asked);
        asked.flat_map(|noted| span::spans(&noted.told())).map(|span| told(&span)).collect()
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
