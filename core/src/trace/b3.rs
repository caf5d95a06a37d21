//! B3 propagation, in one header (`b3`) or several (`x-b3-…`), as Zipkin's users know it.

use super::{Context, SpanId, TraceId, hex, write_hex};

/// The values of the headers of the second form, each of which may be missing.
#[derive(Clone, Copy, Default, Debug)]
pub struct Multi<'a> {
    /// `x-b3-traceid`
    pub trace: Option<&'a [u8]>,
    /// `x-b3-spanid`
    pub span: Option<&'a [u8]>,
    /// `x-b3-sampled`
    pub sampled: Option<&'a [u8]>,
    /// `x-b3-flags`: 1 is debug, which is sampled
    pub flags: Option<&'a [u8]>,
}

/// A trace's identifier of 16 or 32 digits, and whether it was the first.
fn trace(digits: &[u8]) -> Option<(TraceId, bool)> {
    let short = match digits.len() {
        16 => true,
        32 => false,
        _ => return None,
    };
    Some((TraceId::new(hex(digits, true)?)?, short))
}

fn span(digits: &[u8]) -> Option<SpanId> {
    if digits.len() == 16 { SpanId::new(hex(digits, true)? as u64) } else { None }
}

/// The decision: none if the word is not known.
fn decision(word: &[u8]) -> Option<bool> {
    match word {
        b"1" | b"true" => Some(true),
        b"0" | b"false" => Some(false),
        _ => None,
    }
}

/// The decision of the form in one header, where `d` is debug, which is sampled.
fn short_decision(word: &[u8]) -> Option<bool> {
    if word == b"d" { Some(true) } else { decision(word) }
}

/// The decision that the value of `b3` is, where it names no trace: `b3: 0` asks that there be none.
pub fn decision_of_single(value: &[u8]) -> Option<bool> {
    short_decision(value)
}

/// The decision of the second form, where it names no trace.
pub fn decision_of_multi(values: &Multi<'_>) -> Option<bool> {
    if values.trace.is_some() || values.span.is_some() {
        return None;
    }
    if values.flags == Some(b"1") { Some(true) } else { decision(values.sampled?) }
}

/// Reads the value of `b3`: TRACE-SPAN, TRACE-SPAN-DECISION or TRACE-SPAN-DECISION-PARENT. A decision alone names no trace ([`decision_of_single`]).
pub fn parse_single(value: &[u8]) -> Option<Context> {
    let mut parts = value.split(|b| *b == b'-');
    let (trace, short) = trace(parts.next()?)?;
    let span_id = span(parts.next()?)?;
    let word = parts.next();
    let sampled = match word {
        None => None,
        Some(word) => Some(short_decision(word)?),
    };
    if let Some(parent) = parts.next() {
        span(parent)?;
    }
    let context = Context { trace, span: span_id, sampled, random: false, short, debug: word == Some(b"d") };
    parts.next().is_none().then_some(context)
}

/// Reads the headers of the second form.
pub fn parse_multi(values: &Multi<'_>) -> Option<Context> {
    let (trace, short) = trace(values.trace?)?;
    let debug = values.flags == Some(b"1");
    let sampled = match values.sampled {
        _ if debug => Some(true),
        None => None,
        Some(word) => Some(decision(word)?),
    };
    Some(Context { trace, span: span(values.span?)?, sampled, random: false, short, debug })
}

/// Writes the value of `b3`, with the parent left out, and the trace as long as it came.
pub fn write_single(context: &Context) -> Vec<u8> {
    let mut out = b3_trace(context);
    out.push(b'-');
    out.extend_from_slice(&span_digits(context.span));
    if let Some(sampled) = context.sampled {
        out.extend_from_slice(match (sampled, context.debug) {
            (true, true) => b"-d",
            (true, false) => b"-1",
            (false, _) => b"-0",
        });
    }
    out
}

/// The value of `x-b3-traceid`: a trace's identifier, as long as it came.
pub fn b3_trace(context: &Context) -> Vec<u8> {
    let mut digits = vec![0; 32];
    write_hex(&mut digits, &context.trace.to_bytes());
    if context.short { digits.split_off(16) } else { digits }
}

fn span_digits(span: SpanId) -> [u8; 16] {
    let mut digits = [0; 16];
    write_hex(&mut digits, &span.to_bytes());
    digits
}
