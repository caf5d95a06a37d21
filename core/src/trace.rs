//! Trace context: where a request stands in a trace, as its headers say it, and whether its spans are recorded.
//!
//! W3C Trace Context (level 2) and B3, in one header or several. What is ambiguous or malformed counts as absent. Baggage is nobody's business here.

use std::fmt;

use crate::hex::PAIRS;

mod b3;
mod sampler;
#[cfg(test)]
mod tests;
mod w3c;

pub use b3::{Multi, b3_trace, decision_of_multi, decision_of_single, parse_multi, parse_single, write_single};
pub use sampler::{Sampler, SamplerError};
pub use w3c::{is_tracestate, parse_traceparent, write_traceparent};

/// The identifier of a trace: never zero.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TraceId(u128);

impl TraceId {
    /// None for zero, which stands for no trace.
    pub const fn new(id: u128) -> Option<Self> {
        if id == 0 { None } else { Some(Self(id)) }
    }

    /// As it is sent: 16 bytes, the most significant first.
    pub const fn to_bytes(self) -> [u8; 16] {
        self.0.to_be_bytes()
    }

    /// Its last 56 bits, which are random where whoever made it says so (W3C, section 2.2.5).
    const fn randomness(self) -> u64 {
        self.0 as u64 & ((1 << 56) - 1)
    }
}

/// 32 hexadecimal digits.
impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The identifier of a span within its trace: never zero.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SpanId(u64);

impl SpanId {
    /// None for zero, which stands for no span.
    pub const fn new(id: u64) -> Option<Self> {
        if id == 0 { None } else { Some(Self(id)) }
    }

    /// One made of a random number; zero becomes one.
    pub const fn random(random: u64) -> Self {
        Self(if random == 0 { 1 } else { random })
    }

    /// As it is sent: 8 bytes, the most significant first.
    pub const fn to_bytes(self) -> [u8; 8] {
        self.0.to_be_bytes()
    }
}

/// 16 hexadecimal digits.
impl fmt::Display for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Where a caller says that a request stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Context {
    /// The trace.
    pub trace: TraceId,
    /// The caller's span.
    pub span: SpanId,
    /// Whether the caller records; none if it leaves that to us (B3 alone can).
    pub sampled: Option<bool>,
    /// The last 56 bits of the trace's identifier are random (W3C level 2). B3 does not say.
    pub random: bool,
    /// The trace's identifier had 16 digits (B3 alone may).
    pub short: bool,
    /// The caller asks for debugging, which is sampled, too (B3's `d`): who comes after is to know.
    pub debug: bool,
}

impl Context {
    /// The beginning of a trace, of two random numbers.
    pub fn root(high: u64, low: u64, span: SpanId) -> Self {
        let id = (u128::from(high) << 64) | u128::from(low);
        Self { trace: TraceId(if id == 0 { 1 } else { id }), span, sampled: Some(true), random: true, short: false, debug: false }
    }

    /// The same trace, at another span, with a decision.
    #[must_use]
    pub const fn at(self, span: SpanId, sampled: bool) -> Self {
        Self { span, sampled: Some(sampled), debug: self.debug && sampled, ..self }
    }
}

/// Reads lower-case hexadecimal digits, or, where `upper` says so, upper-case ones too.
fn hex(digits: &[u8], upper: bool) -> Option<u128> {
    // Sixteen digits at a time: there is one branch at the end, and none for each digit.
    let read = |digits: &[u8]| {
        let (mut value, mut odd) = (0_u64, 0);
        for digit in digits {
            let known = VALUES[usize::from(*digit)];
            odd |= known;
            value = value << 4 | u64::from(known & 15);
        }
        (odd & NONE == 0 && (upper || odd & UPPER == 0)).then_some(value)
    };
    let (high, low) = digits.split_at(digits.len().saturating_sub(16));
    let (over, high) = high.split_at(high.len().saturating_sub(16));
    if over.iter().any(|digit| *digit != b'0') {
        return None;
    }
    Some(u128::from(read(high)?) << 64 | u128::from(read(low)?))
}

const UPPER: u8 = 0x40;
const NONE: u8 = 0x80;

/// What each byte is worth as a digit; some are marked.
const VALUES: [u8; 256] = {
    let mut all = [NONE; 256];
    let mut n = 0;
    while n < 16 {
        if n < 10 {
            all[b'0' as usize + n] = n as u8;
        } else {
            all[b'a' as usize + n - 10] = n as u8;
            all[b'A' as usize + n - 10] = n as u8 | UPPER;
        }
        n += 1;
    }
    all
};

/// Writes bytes as hexadecimal digits, two each.
fn write_hex(out: &mut [u8], bytes: &[u8]) {
    for (pair, byte) in out.as_chunks_mut::<2>().0.iter_mut().zip(bytes) {
        *pair = PAIRS[usize::from(*byte)];
    }
}
