//! The last spans, for the owner of the admin socket: a trace can be looked at without a collector.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::{ScopeSpans, Span};
use prost::Message;
use serde_json::{Map, Value as Json, json};
use weft_core::hex::hex;

/// Spans that are kept, at least, where there were so many.
const KEPT: usize = 1_000;

/// See above. It has them as they leave, in the same memory, and reads them when it is asked.
#[derive(Default)]
pub struct Ring(Mutex<Kept>);

#[derive(Default)]
struct Kept {
    /// Spans one behind the other, and how many.
    pieces: VecDeque<(Bytes, usize)>,
    spans: usize,
}

impl Ring {
    /// Keeps so many spans; gives the memory of older ones, if nobody else has them any more.
    pub(super) fn keep(&self, spans: Bytes, count: usize) -> Option<Vec<u8>> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.pieces.push_back((spans, count));
        kept.spans += count;
        let mut free = None;
        while let Some(&(_, oldest)) = kept.pieces.front()
            && kept.spans - oldest >= KEPT
        {
            kept.spans -= oldest;
            free = kept.pieces.pop_front().map(|(piece, _)| piece).filter(Bytes::is_unique);
        }
        free.map(Vec::from)
    }

    /// Every span that is kept, or those of one trace, given by its digits: the oldest first.
    pub fn spans(&self, trace: Option<&str>) -> Vec<Json> {
        let pieces: Vec<Bytes> = {
            let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            kept.pieces.iter().map(|(piece, _)| piece.clone()).collect()
        };
        let all = pieces.into_iter().flat_map(|piece| ScopeSpans::decode(piece).expect("it is what a worker wrote").spans);
        all.filter(|span| trace.is_none_or(|asked| hex(&span.trace_id) == asked)).map(|span| told(&span)).collect()
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
