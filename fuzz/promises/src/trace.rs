//! Trace context: whatever stands in the headers is a context or none, and what is written of one is read as the same.

use weft_core::trace::{
    Context, Multi, SpanId, is_tracestate, parse_multi, parse_single, parse_traceparent, write_single, write_traceparent,
};

/// The bytes are one header, or, parted by NUL, those of B3's second form.
pub fn trace(bytes: &[u8]) {
    if let Some(context) = parse_traceparent(bytes) {
        assert_eq!(parse_traceparent(&write_traceparent(&context)), Some(context), "it was written as another one");
    }
    if let Some(context) = parse_single(bytes) {
        goes_on(context);
    }
    let mut parts = bytes.split(|b| *b == 0);
    let multi = Multi { trace: parts.next(), span: parts.next(), sampled: parts.next(), flags: parts.next() };
    if let Some(context) = parse_multi(&multi) {
        goes_on(context);
    }
    if is_tracestate(bytes) {
        assert!(bytes.iter().all(|b| matches!(b, b'\t' | b' '..=b'~')), "a tracestate has a byte that no header may have");
    }
}

fn goes_on(context: Context) {
    assert_eq!(parse_single(&write_single(&context)), Some(context), "it was written as another one");
    let next = context.at(SpanId::random(0), true);
    assert_eq!(parse_traceparent(&write_traceparent(&next)).map(|c| (c.trace, c.span)), Some((next.trace, next.span)));
}
