//! Protobuf's wire format (protobuf.dev/programming-guides/encoding), as far as OTLP's spans and log records need it. Fields are appended to a buffer as they come, without a
//! message in between, and every byte is written once.
//!
//! What is a text here is a `str`, so that no text in a message is anything but UTF-8; whoever writes one into the buffer by themselves ([`Wire::short`]) sees to that.

/// A message in the making, at the end of a buffer.
pub struct Wire<'a> {
    out: &'a mut Vec<u8>,
}

const VARINT: u32 = 0;
const FIXED64: u32 = 1;
const BYTES: u32 = 2;
const FIXED32: u32 = 5;

/// The key of an attribute as it stands in a `KeyValue`, and the tag of the value behind it: made by [`key!`](crate::key).
pub type Key = [u8];

/// See [`Key`]. `N` is the length of the name and three.
pub const fn key<const N: usize>(name: &str) -> [u8; N] {
    let (mut out, name) = ([0; N], name.as_bytes());
    assert!(
        N == name.len() + 3 && name.len() < 100,
        "a name of three bytes less than the key, and not too long for one byte of length"
    );
    (out[0], out[1], out[N - 1]) = (field(1, BYTES), name.len() as u8, field(2, BYTES));
    let mut i = 0;
    while i < name.len() {
        out[i + 2] = name[i];
        i += 1;
    }
    out
}

/// The [`Key`] of a name that is known when weft is built.
#[macro_export]
macro_rules! key {
    ($name:expr) => {{
        const KEY: &[u8; $name.len() + 3] = &$crate::wire::key($name);
        KEY as &$crate::wire::Key
    }};
}

const fn field(number: u32, kind: u32) -> u8 {
    assert!(number < 16, "fields of one byte alone");
    (number << 3 | kind) as u8
}

/// Bytes that a number takes.
pub const fn varint_len(value: u64) -> usize {
    // Seven bits in each.
    (64 - (value | 1).leading_zeros()).div_ceil(7) as usize
}

#[expect(clippy::inline_always, reason = "where a key is known, it is written by a few moves instead of a call")]
#[expect(clippy::len_without_is_empty, reason = "a place in a buffer, and no collection")]
impl<'a> Wire<'a> {
    /// Appends to what is there.
    pub fn new(out: &'a mut Vec<u8>) -> Self {
        Self { out }
    }

    #[inline]
    pub fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.out.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.out.push(value as u8);
    }

    #[inline]
    fn tag(&mut self, number: u32, kind: u32) {
        self.varint((number << 3 | kind).into());
    }

    /// A number or an enumeration; 0 is not written, as proto3 asks.
    #[inline]
    pub fn number(&mut self, number: u32, value: u64) {
        if value != 0 {
            self.tag(number, VARINT);
            self.varint(value);
        }
    }

    #[inline]
    pub fn fixed64(&mut self, number: u32, value: u64) {
        if value != 0 {
            self.tag(number, FIXED64);
            self.out.extend_from_slice(&value.to_le_bytes());
        }
    }

    #[inline]
    pub fn fixed32(&mut self, number: u32, value: u32) {
        if value != 0 {
            self.tag(number, FIXED32);
            self.out.extend_from_slice(&value.to_le_bytes());
        }
    }

    #[inline]
    pub fn bytes(&mut self, number: u32, value: &[u8]) {
        if !value.is_empty() {
            self.tag(number, BYTES);
            self.varint(value.len() as u64);
            self.out.extend_from_slice(value);
        }
    }

    #[inline]
    pub fn text(&mut self, number: u32, value: &str) {
        self.bytes(number, value.as_bytes());
    }

    /// A text made of parts, written even if it is empty: one of several kinds of value that a field may have.
    #[inline]
    pub fn texts(&mut self, number: u32, parts: &[&str]) {
        self.begins(number, parts.iter().map(|part| part.len()).sum());
        for part in parts {
            self.out.extend_from_slice(part.as_bytes());
        }
    }

    /// What stands before a message, or a text, of so many bytes.
    #[inline]
    pub fn begins(&mut self, number: u32, len: usize) {
        self.tag(number, BYTES);
        self.varint(len as u64);
    }

    /// A message within this one, written even if it is empty. Its length is not known before: there is room for one of two bytes, and for others it is moved.
    #[inline]
    pub fn message(&mut self, number: u32, write: impl FnOnce(&mut Wire<'_>)) {
        self.tag(number, BYTES);
        let at = self.out.len();
        self.out.extend_from_slice(&[0; 2]);
        write(&mut Wire { out: self.out });
        let len = self.out.len() - at - 2;
        if (0x80..0x4000).contains(&len) {
            (self.out[at], self.out[at + 1]) = (len as u8 | 0x80, (len >> 7) as u8);
        } else {
            self.moved(at, len);
        }
    }

    #[cold]
    fn moved(&mut self, at: usize, len: usize) {
        let mut told = Vec::new();
        Wire { out: &mut told }.varint(len as u64);
        self.out.splice(at..at + 2, told);
    }

    /// Fields that were written before, as they are.
    #[inline]
    pub fn written(&mut self, fields: &[u8]) {
        self.out.extend_from_slice(fields);
    }

    /// Bytes of the buffer so far.
    pub fn len(&self) -> usize {
        self.out.len()
    }

    /// Attributes that were written for another field of one byte.
    pub fn attributes_again(&mut self, number: u32, attributes: &[u8]) {
        let mut at = self.out.len();
        self.out.extend_from_slice(attributes);
        while at < self.out.len() {
            self.out[at] = field(number, BYTES);
            let (mut len, mut shift) = (0, 0);
            loop {
                at += 1;
                len |= usize::from(self.out[at] & 0x7f) << shift;
                shift += 7;
                if self.out[at] < 0x80 {
                    break;
                }
            }
            at += 1 + len;
        }
    }

    /// An attribute (`KeyValue`) that is a text, as this field.
    #[inline(always)]
    pub fn attribute(&mut self, number: u32, key: &Key, value: &str) {
        self.pair(number, key, value.len(), |out| out.extend_from_slice(value.as_bytes()));
    }

    /// An attribute that is a text made of parts.
    #[inline(always)]
    pub fn joined(&mut self, number: u32, key: &Key, parts: &[&str]) {
        let len = parts.iter().map(|part| part.len()).sum();
        self.pair(number, key, len, |out| {
            for part in parts {
                out.extend_from_slice(part.as_bytes());
            }
        });
    }

    /// An attribute that is a text of which the length is known once it is written. It is meant for short ones; longer ones are moved.
    #[inline(always)]
    pub fn short(&mut self, number: u32, key: &Key, write: impl FnOnce(&mut Vec<u8>)) {
        let begins = self.out.len();
        // As an empty one, of which the three lengths are added to.
        self.pair(number, key, 0, |_| {});
        let text = self.out.len();
        write(self.out);
        let len = self.out.len() - text;
        if key.len() + 3 + len < 0x80 {
            for at in [begins + 1, text - 3, text - 1] {
                self.out[at] += len as u8;
            }
        } else {
            let long = self.out.split_off(text);
            self.out.truncate(begins);
            self.pair(number, key, len, |out| out.extend_from_slice(&long));
        }
    }

    /// An attribute that is a whole number, written even if it is 0.
    #[inline(always)]
    pub fn amount(&mut self, number: u32, key: &Key, value: u64) {
        let any = 1 + varint_len(value);
        self.out.extend_from_slice(&[field(number, BYTES), (key.len() + 1 + any) as u8]);
        self.out.extend_from_slice(key);
        self.out.extend_from_slice(&[any as u8, field(3, VARINT)]);
        self.varint(value);
    }

    #[inline(always)]
    fn pair(&mut self, number: u32, key: &Key, len: usize, write: impl FnOnce(&mut Vec<u8>)) {
        let any = 1 + varint_len(len as u64) + len;
        let pair = key.len() + varint_len(any as u64) + any;
        self.out.reserve(8 + pair);
        if pair < 0x80 {
            self.out.extend_from_slice(&[field(number, BYTES), pair as u8]);
            self.out.extend_from_slice(key);
            self.out.extend_from_slice(&[any as u8, field(1, BYTES), len as u8]);
        } else {
            self.out.push(field(number, BYTES));
            self.varint(pair as u64);
            self.out.extend_from_slice(key);
            self.varint(any as u64);
            self.out.push(field(1, BYTES));
            self.varint(len as u64);
        }
        write(self.out);
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry_proto::tonic::common::v1::any_value::Value;
    use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
    use opentelemetry_proto::tonic::trace::v1::Status;
    use opentelemetry_proto::tonic::trace::v1::span::Event;
    use prost::Message;

    use super::*;

    fn attribute(value: Value) -> KeyValue {
        KeyValue { key: "a.name".to_owned(), value: Some(AnyValue { value: Some(value) }), key_strindex: 0 }
    }

    #[test]
    fn a_text_of_which_the_length_comes_last_is_the_same() {
        for len in 0..400 {
            let (text, mut before, mut last) = ("x".repeat(len), vec![1, 2], vec![1, 2]);
            Wire::new(&mut before).attribute(9, key!("a.name"), &text);
            Wire::new(&mut last).short(9, key!("a.name"), |out| out.extend_from_slice(text.as_bytes()));
            assert_eq!(before, last, "{len}");
        }
    }

    /// Around each length at which another byte is needed.
    #[test]
    fn what_is_written_is_what_others_write() {
        let long = "ä".repeat(10_000);
        let ends = (0..40).chain(100..140).chain(16_300..16_400).map(|len| if len % 2 == 0 { len } else { len + 1 });
        for len in ends {
            let text = &long[..len];
            let event = Event {
                time_unix_nano: len as u64,
                name: text.to_owned(),
                attributes: vec![
                    attribute(Value::StringValue(text.to_owned())),
                    attribute(Value::IntValue(len as i64)),
                    attribute(Value::StringValue(format!("{text}{text}"))),
                ],
                dropped_attributes_count: len as u32,
            };
            let mut out = b"before".to_vec();
            let mut wire = Wire::new(&mut out);
            wire.fixed64(1, event.time_unix_nano);
            wire.text(2, text);
            wire.attribute(3, key!("a.name"), text);
            wire.amount(3, key!("a.name"), len as u64);
            wire.joined(3, key!("a.name"), &[text, "", text]);
            wire.number(4, len as u64);
            assert_eq!(out.strip_prefix(b"before"), Some(&*event.encode_to_vec()), "{len}");

            let status = Status { message: text.to_owned(), code: 2 };
            let (mut out, mut other) = (Vec::new(), Vec::new());
            Wire::new(&mut out).message(15, |status| {
                status.text(2, text);
                status.number(3, 2);
            });
            prost::encoding::message::encode(15, &status, &mut other);
            assert_eq!(out, other, "{len}");
        }
    }

    #[test]
    fn numbers_of_every_length() {
        for value in (0..64).flat_map(|bits| [1 << bits, (1 << bits) - 1]).chain([u64::MAX]) {
            let (mut out, mut other) = (Vec::new(), Vec::new());
            Wire::new(&mut out).varint(value);
            prost::encoding::encode_varint(value, &mut other);
            assert_eq!((out.len(), &out), (varint_len(value), &other));
            let (mut out, mut flags) = (Vec::new(), Vec::new());
            Wire::new(&mut out).amount(9, key!("n"), value);
            let pair = KeyValue { key: "n".to_owned(), ..attribute(Value::IntValue(value as i64)) };
            prost::encoding::message::encode(9, &pair, &mut flags);
            assert_eq!(out, flags);
            let mut out = Vec::new();
            Wire::new(&mut out).fixed32(16, value as u32);
            let mut other = Vec::new();
            if value as u32 != 0 {
                prost::encoding::fixed32::encode(16, &(value as u32), &mut other);
            }
            assert_eq!(out, other);
        }
    }
}
