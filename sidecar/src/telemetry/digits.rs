//! Numbers, addresses and times as text, on the stack: std's formatting takes several times as long as everything else that is written of a request.

use std::cell::Cell;
use std::fmt::{self, Write};
use std::net::{IpAddr, SocketAddr};

/// A text of ASCII. The longest is an IPv6 address with a zone and a port.
pub(super) struct Digits {
    bytes: [u8; 64],
    len: usize,
}

impl fmt::Write for Digits {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = self.bytes.get_mut(self.len..self.len + text.len()).ok_or(fmt::Error)?;
        room.copy_from_slice(text.as_bytes());
        self.len += text.len();
        Ok(())
    }
}

impl std::ops::Deref for Digits {
    type Target = str;
    fn deref(&self) -> &str {
        std::str::from_utf8(&self.bytes[..self.len]).expect("it is ASCII")
    }
}

/// Bytes of a date and a time to the second.
const SECONDS: usize = 19;

const DIGITS: &[u8; 16] = b"0123456789abcdef";

impl Digits {
    const fn new() -> Self {
        Self { bytes: [0; 64], len: 0 }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    #[inline]
    fn push(&mut self, byte: u8) {
        self.bytes[self.len] = byte;
        self.len += 1;
    }

    fn decimal(&mut self, number: u64) {
        let mut buffer = itoa::Buffer::new();
        let digits = buffer.format(number).as_bytes();
        self.bytes[self.len..self.len + digits.len()].copy_from_slice(digits);
        self.len += digits.len();
    }

    /// So many digits, with zeros before them.
    fn padded(&mut self, number: u64, width: usize) {
        let mut rest = number;
        for at in (self.len..self.len + width).rev() {
            self.bytes[at] = b'0' + (rest % 10) as u8;
            rest /= 10;
        }
        self.len += width;
    }

    fn address_of(&mut self, ip: IpAddr) {
        match ip {
            IpAddr::V4(ip) => {
                for (i, octet) in ip.octets().into_iter().enumerate() {
                    if i > 0 {
                        self.push(b'.');
                    }
                    self.decimal(octet.into());
                }
            }
            IpAddr::V6(ip) => write!(self, "{ip}").expect("there is room"),
        }
    }

    pub(super) fn number(number: u64) -> Self {
        let mut out = Self::new();
        out.decimal(number);
        out
    }

    /// An address as it is spoken of: one of IPv4 that came over IPv6 is one of IPv4.
    pub(super) fn ip(ip: IpAddr) -> Self {
        let mut out = Self::new();
        out.address_of(ip.to_canonical());
        out
    }

    pub(super) fn address(address: SocketAddr) -> Self {
        let mut out = Self::new();
        match address {
            SocketAddr::V4(_) => {
                out.address_of(address.ip());
                out.push(b':');
                out.decimal(address.port().into());
            }
            SocketAddr::V6(address) => write!(out, "{address}").expect("there is room"),
        }
        out
    }

    /// At most 16 bytes as hexadecimal digits.
    pub(super) fn hex(bytes: &[u8]) -> Self {
        let mut out = Self::new();
        let (pairs, _) = out.bytes.as_chunks_mut::<2>();
        for (pair, byte) in pairs.iter_mut().zip(bytes) {
            *pair = [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]];
        }
        out.len = 2 * bytes.len();
        out
    }

    /// Microseconds as milliseconds, with three digits behind the point.
    pub(super) fn millis(micros: u64) -> Self {
        let mut out = Self::new();
        out.decimal(micros / 1_000);
        out.push(b'.');
        out.padded(micros % 1_000, 3);
        out
    }

    /// Nanoseconds since 1970 as RFC 3339 has them, to the microsecond.
    pub(super) fn time(nanos: u64) -> Self {
        thread_local!(static LAST: Cell<(u64, [u8; SECONDS])> = const { Cell::new((u64::MAX, [0; SECONDS])) });
        // Most are of the same second as the one before.
        let second = nanos / 1_000_000_000;
        let (mut last, mut text) = LAST.get();
        if last != second {
            (last, text) = (second, Self::second(second));
            LAST.set((last, text));
        }
        let mut out = Self::new();
        out.bytes[..SECONDS].copy_from_slice(&text);
        out.len = SECONDS;
        out.push(b'.');
        out.padded(nanos / 1_000 % 1_000_000, 6);
        out.push(b'Z');
        out
    }

    fn second(seconds: u64) -> [u8; SECONDS] {
        let seconds = seconds as i64;
        let time = time::OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(time::OffsetDateTime::UNIX_EPOCH);
        let (date, clock) = (time.date(), time.time());
        let mut out = Self::new();
        out.padded(u64::from(date.year().unsigned_abs()), 4);
        for (before, number) in [
            (b'-', u8::from(date.month())),
            (b'-', date.day()),
            (b'T', clock.hour()),
            (b':', clock.minute()),
            (b':', clock.second()),
        ] {
            out.push(before);
            out.padded(number.into(), 2);
        }
        let mut text = [0; SECONDS];
        text.copy_from_slice(&out.bytes[..SECONDS]);
        text
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn as_std_has_them(number: u64, ip: IpAddr, address: SocketAddr, bytes: [u8; 16], micros in 0..1_u64 << 50) {
            prop_assert_eq!(&*Digits::number(number), number.to_string());
            prop_assert_eq!(&*Digits::ip(ip), ip.to_canonical().to_string());
            prop_assert_eq!(&*Digits::address(address), address.to_string());
            prop_assert_eq!(&*Digits::hex(&bytes), weft_core::hex::hex(&bytes));
            prop_assert_eq!(&*Digits::millis(micros), format!("{:.3}", micros as f64 / 1e3));
        }

        #[test]
        fn a_time_is_what_others_read(nanos: u64) {
            let time = time::OffsetDateTime::from_unix_timestamp_nanos(nanos.into()).expect("in range");
            let (date, clock) = (time.date(), time.time());
            let expected = format!(
                "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:06}Z",
                date.year(), u8::from(date.month()), date.day(), clock.hour(), clock.minute(), clock.second(), clock.microsecond(),
            );
            prop_assert_eq!(&*Digits::time(nanos), expected);
        }
    }

    #[test]
    fn the_longest_fits() {
        let longest: SocketAddr = std::net::SocketAddrV6::new(std::net::Ipv6Addr::from([0xffff; 8]), 65_535, 0, u32::MAX).into();
        assert_eq!(Digits::address(longest).to_string(), longest.to_string());
    }
}
