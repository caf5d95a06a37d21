//! Numbers, addresses and times as text, written where they belong: std's formatting takes several times as long as everything else that is written of a request.

use std::cell::Cell;
use std::io::Write;
use std::net::{IpAddr, SocketAddr};

use weft_core::hex::PAIRS;

/// Bytes of a date and a time to the second.
const SECONDS: usize = 19;

/// `000` to `999`.
const THREE: [[u8; 3]; 1_000] = {
    let mut all = [[b'0'; 3]; 1_000];
    let mut n = 0;
    while n < all.len() {
        all[n] = [b'0' + (n / 100) as u8, b'0' + (n / 10 % 10) as u8, b'0' + (n % 10) as u8];
        n += 1;
    }
    all
};

/// A whole number.
#[inline]
pub(super) fn decimal(out: &mut Vec<u8>, number: u64) {
    // Most are small; copies of a fixed length are a single instruction.
    match number {
        0..10 => out.push(b'0' + number as u8),
        10..100 => out.extend_from_slice(&THREE[number as usize][1..]),
        100..1_000 => out.extend_from_slice(&THREE[number as usize]),
        _ => longer(out, number),
    }
}

#[inline(never)]
fn longer(out: &mut Vec<u8>, number: u64) {
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}

/// An address as it is spoken of: one of IPv4 that came over IPv6 is one of IPv4.
pub(super) fn ip(out: &mut Vec<u8>, ip: IpAddr) {
    match ip.to_canonical() {
        IpAddr::V4(ip) => {
            let [a, b, c, d] = ip.octets();
            decimal(out, a.into());
            for octet in [b, c, d] {
                out.push(b'.');
                decimal(out, octet.into());
            }
        }
        IpAddr::V6(ip) => written(out, &ip),
    }
}

/// An address with its port.
pub(super) fn address(out: &mut Vec<u8>, address: SocketAddr) {
    match address {
        SocketAddr::V4(address) => {
            ip(out, (*address.ip()).into());
            out.push(b':');
            decimal(out, address.port().into());
        }
        SocketAddr::V6(address) => written(out, &address),
    }
}

fn written(out: &mut Vec<u8>, what: &impl std::fmt::Display) {
    // A vector has always room.
    let _ = write!(out, "{what}");
}

/// Bytes as hexadecimal digits.
#[inline]
pub(super) fn hex<const N: usize>(out: &mut Vec<u8>, bytes: [u8; N]) {
    let digits = bytes.map(|byte| PAIRS[usize::from(byte)]);
    out.extend_from_slice(digits.as_flattened());
}

/// Microseconds as milliseconds, with three digits behind the point.
#[inline]
pub(super) fn millis(out: &mut Vec<u8>, micros: u64) {
    decimal(out, micros / 1_000);
    out.push(b'.');
    out.extend_from_slice(&THREE[(micros % 1_000) as usize]);
}

/// Nanoseconds since 1970 as RFC 3339 has them, to the microsecond.
pub(super) fn time(out: &mut Vec<u8>, nanos: u64) {
    thread_local!(static LAST: Cell<(u64, [u8; SECONDS])> = const { Cell::new((u64::MAX, [0; SECONDS])) });
    // Most are of the same second as the one before.
    let second = nanos / 1_000_000_000;
    let (mut last, mut text) = LAST.get();
    if last != second {
        (last, text) = (second, self::second(second));
        LAST.set((last, text));
    }
    let micros = (nanos / 1_000 % 1_000_000) as usize;
    out.extend_from_slice(&text);
    out.push(b'.');
    out.extend_from_slice(&THREE[micros / 1_000]);
    out.extend_from_slice(&THREE[micros % 1_000]);
    out.push(b'Z');
}

fn second(seconds: u64) -> [u8; SECONDS] {
    let time = time::OffsetDateTime::from_unix_timestamp(seconds as i64).unwrap_or(time::OffsetDateTime::UNIX_EPOCH);
    let (date, clock) = (time.date(), time.time());
    let two = |number: u8| {
        let [_, tens, ones] = THREE[usize::from(number)];
        [tens, ones]
    };
    let year = u64::from(date.year().unsigned_abs());
    let [year_begins, year_ends] = [(year / 100 % 100) as u8, (year % 100) as u8].map(two);
    let (month, day) = (two(date.month().into()), two(date.day()));
    let [hour, minute, second] = [clock.hour(), clock.minute(), clock.second()].map(two);
    let mut text = *b"0000-00-00T00:00:00";
    for (at, digits) in [(0, year_begins), (2, year_ends), (5, month), (8, day), (11, hour), (14, minute), (17, second)] {
        text[at..at + 2].copy_from_slice(&digits);
    }
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text(write: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut out = b"before ".to_vec();
        write(&mut out);
        let text = String::from_utf8(out).expect("it is ASCII");
        text.strip_prefix("before ").expect("what was there stays").to_owned()
    }

    proptest! {
        #[test]
        fn as_std_has_them(number: u64, of: IpAddr, to: SocketAddr, bytes: [u8; 16], micros in 0..1_u64 << 50) {
            for number in [number, number % 10, number % 100, number % 1_000, number % 10_000] {
                prop_assert_eq!(text(|out| decimal(out, number)), number.to_string());
            }
            prop_assert_eq!(text(|out| ip(out, of)), of.to_canonical().to_string());
            prop_assert_eq!(text(|out| address(out, to)), to.to_string());
            prop_assert_eq!(text(|out| hex(out, bytes)), weft_core::hex::hex(&bytes));
            prop_assert_eq!(text(|out| millis(out, micros)), format!("{:.3}", micros as f64 / 1e3));
        }

        #[test]
        fn a_time_is_what_others_read(nanos: u64) {
            let time = time::OffsetDateTime::from_unix_timestamp_nanos(nanos.into()).expect("in range");
            let (date, clock) = (time.date(), time.time());
            let expected = format!(
                "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:06}Z",
                date.year(), u8::from(date.month()), date.day(), clock.hour(), clock.minute(), clock.second(), clock.microsecond(),
            );
            prop_assert_eq!(text(|out| super::time(out, nanos)), expected);
        }
    }
}
