//! `traceparent` and `tracestate` (W3C Trace Context, level 2).

use super::{Context, SpanId, TraceId, hex, write_hex};

/// The bytes of version 00: `00-` 32 digits `-` 16 digits `-` 2 digits.
const LENGTH: usize = 55;
const SAMPLED: u128 = 1;
const RANDOM: u128 = 2;

/// Reads the value of the one `traceparent` (section 3.2). A version that is not known is read as far as version 00 goes; `ff` is none.
pub fn parse_traceparent(value: &[u8]) -> Option<Context> {
    let version = hex(value.get(..2)?, false)?;
    let fits = match version {
        0 => value.len() == LENGTH,
        0xff => false,
        _ => value.len() == LENGTH || (value.len() > LENGTH && value[LENGTH] == b'-'),
    };
    if !fits || [2, 35, 52].iter().any(|at| value[*at] != b'-') {
        return None;
    }
    let flags = hex(&value[53..55], false)?;
    Some(Context {
        trace: TraceId::new(hex(&value[3..35], false)?)?,
        span: SpanId::new(hex(&value[36..52], false)? as u64)?,
        sampled: Some(flags & SAMPLED != 0),
        random: flags & RANDOM != 0,
        short: false,
        debug: false,
    })
}

/// Writes version 00. Flags that nobody has defined are zero (section 3.2.2.5).
pub fn write_traceparent(context: &Context) -> [u8; LENGTH] {
    let mut out = *b"00-00000000000000000000000000000000-0000000000000000-00";
    write_hex(&mut out[3..35], &context.trace.to_bytes());
    write_hex(&mut out[36..52], &context.span.to_bytes());
    let sampled = context.sampled == Some(true);
    write_hex(&mut out[53..55], &[u8::from(sampled) | u8::from(context.random) << 1]);
    out
}

/// The most members of a `tracestate`.
const MEMBERS: usize = 32;
/// The longest `tracestate` that is taken into a span, in bytes: what is longer may be dropped, and is (section 3.3.1.5).
const LONGEST: usize = 512;

/// Whether a `tracestate`, its values joined by commas, is one (section 3.3). What is none is not taken into a span.
pub fn is_tracestate(value: &[u8]) -> bool {
    let members = || value.split(|b| *b == b',').map(trimmed).filter(|m| !m.is_empty());
    value.len() <= LONGEST
        && members().count() <= MEMBERS
        && members().all(|member| {
            let Some(at) = member.iter().position(|b| *b == b'=') else { return false };
            let (key, text) = (&member[..at], &member[at + 1..]);
            is_key(key)
                && !text.is_empty()
                && text.len() <= 256
                && text.iter().all(|b| matches!(b, b' '..=b'~') && !b",=".contains(b))
        })
        && members().enumerate().all(|(i, member)| {
            let key = |m: &[u8]| m.iter().position(|b| *b == b'=').map(|at| m[..at].to_vec());
            members().take(i).all(|earlier| key(earlier) != key(member))
        })
}

/// Without the optional white space around it (RFC 9110, section 5.6.3).
fn trimmed(mut text: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = text {
        text = rest;
    }
    text
}

fn is_key(key: &[u8]) -> bool {
    let first = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    key.len() <= 256 && key.first().is_some_and(first) && key.iter().all(|b| first(b) || b"_-*/@".contains(b))
}
