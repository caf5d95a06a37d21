//! What may be sent again, and when (OTLP specification, "Failures" and "Throttling").

use std::time::Duration;

/// Whether a gRPC status may go away by itself. `RESOURCE_EXHAUSTED` may if the server says when.
pub(super) fn is_temporary_grpc(status: u8, told_when: bool) -> bool {
    // CANCELLED, DEADLINE_EXCEEDED, ABORTED, OUT_OF_RANGE, UNAVAILABLE, DATA_LOSS; RESOURCE_EXHAUSTED.
    matches!(status, 1 | 4 | 10 | 11 | 14 | 15) || (status == 8 && told_when)
}

/// The same for HTTP.
pub(super) fn is_temporary_http(status: u16) -> bool {
    matches!(status, 429 | 502 | 503 | 504)
}

/// The pause before a repetition: doubled each time, with jitter over its upper half.
pub(super) fn pause(attempt: u32, first: Duration, longest: Duration, random: u64) -> Duration {
    let whole = first.saturating_mul(1 << attempt.min(16)).min(longest);
    let half = whole / 2;
    half + half.mul_f64((random >> 11) as f64 / (1_u64 << 53) as f64)
}
