//! Deadlines as gRPC writes them (gRPC over HTTP/2, `Timeout`).

use std::time::Duration;

/// Reads `grpc-timeout`: at most eight digits and a unit.
pub(super) fn grpc_timeout(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let n: u64 = std::str::from_utf8(digits).ok()?.parse().ok()?;
    Some(match unit {
        b'H' => Duration::from_secs(n * 3600),
        b'M' => Duration::from_secs(n * 60),
        b'S' => Duration::from_secs(n),
        b'm' => Duration::from_millis(n),
        b'u' => Duration::from_micros(n),
        b'n' => Duration::from_nanos(n),
        _ => return None,
    })
}

/// Writes `grpc-timeout`, rounded down, in the finest unit that eight digits hold.
pub(super) fn in_grpc(left: Duration) -> String {
    const MOST: u128 = 99_999_999;
    match (left.as_micros(), left.as_millis(), left.as_secs()) {
        (n, _, _) if n <= MOST => format!("{n}u"),
        (_, n, _) if n <= MOST => format!("{n}m"),
        (_, _, n) => format!("{}S", u128::from(n).min(MOST)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grpc_timeouts_are_read_and_written() {
        for (text, want) in [("1H", 3_600_000), ("2M", 120_000), ("10S", 10_000), ("250m", 250), ("99999999m", 99_999_999)] {
            assert_eq!(grpc_timeout(text.as_bytes()), Some(Duration::from_millis(want)), "{text}");
        }
        for text in ["", "S", "1", "100000000m", "1x", "-1S", "1.5S", "+1S"] {
            assert_eq!(grpc_timeout(text.as_bytes()), None, "{text}");
        }
        for (left, want) in
            [(Duration::from_micros(1500), "1500u"), (Duration::from_secs(200), "200000m"), (Duration::MAX, "99999999S")]
        {
            assert_eq!(in_grpc(left), want);
        }
    }
}
