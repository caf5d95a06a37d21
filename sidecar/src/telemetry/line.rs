//! Records as lines: JSON, or `name=value`. Whatever a caller sends, it stays within its line and within its field.

use std::ops::Range;

use super::fields::{Named, Value};
use super::record::Told;
use weft_http::octets;

/// An object on one line, without the line's end. Fields that hold nothing are left out. `common` is how some of the fields are written, where that is known.
pub(super) fn json(out: &mut Vec<u8>, fields: &[Named], told: &Told<'_>, common: Option<(Range<usize>, &[u8])>) {
    let (stand, begins) = (stand(told.texts.as_bytes()), out.len());
    let (range, written) = common.unwrap_or_default();
    for field in &fields[..range.start] {
        (field.json)(out, told, stand);
    }
    out.extend_from_slice(written);
    for field in &fields[range.end..] {
        (field.json)(out, told, stand);
    }
    // Each field has put a comma before itself.
    match out.get_mut(begins) {
        Some(first) => *first = b'{',
        None => out.push(b'{'),
    }
    out.push(b'}');
}

/// Fields of an object, each with a comma before it.
pub(super) fn common(out: &mut Vec<u8>, fields: &[Named], told: &Told<'_>) {
    for field in fields {
        (field.json)(out, told, false);
    }
}

/// Adds a field to an object of JSON. `name` is what stands before its value: a comma, the name in its quotes, a colon.
#[inline(always)]
#[expect(clippy::inline_always, reason = "see `Value::put`")]
pub(super) fn add(out: &mut Vec<u8>, name: &'static str, value: Value<'_>, stand: bool) {
    out.extend_from_slice(name.as_bytes());
    match value {
        Value::Text(text) if !stand => quoted(out, text),
        Value::Other(text) => quoted(out, text),
        Value::Number(_) | Value::Millis(_) => value.put(out),
        _ => {
            out.push(b'"');
            value.put(out);
            out.push(b'"');
        }
    }
}

/// `name=value`, joined by spaces. Fields that hold nothing are left out.
pub(super) fn text(out: &mut Vec<u8>, fields: &[Named], told: &Told<'_>) {
    let mut first = true;
    for field in fields {
        let Some(value) = (field.value)(told) else { continue };
        if !std::mem::take(&mut first) {
            out.push(b' ');
        }
        out.extend_from_slice(field.name.as_bytes());
        out.push(b'=');
        match value {
            Value::Text(text) | Value::Other(text) if !is_bare(text) => quoted(out, text),
            value => value.put(out),
        }
    }
}

fn is_bare(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| matches!(b, b'!' | b'#'..=b'<' | b'>'..=b'[' | b']'..=b'~'))
}

/// A JSON string in which only printable ASCII stands as it is: nothing of it is read as a line's end, an escape sequence of a terminal, or
/// another direction of writing.
pub(super) fn quoted(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    if stand(text.as_bytes()) {
        out.extend_from_slice(text.as_bytes());
    } else {
        escaped(out, text);
    }
    out.push(b'"');
}

/// Whether all of these stand in a string as they are: printable ASCII but for the quote and the backslash.
fn stand(text: &[u8]) -> bool {
    let odd =
        |word| octets::below(word, b' ') | word | octets::are(word, b'"') | octets::are(word, b'\\') | octets::are(word, 0x7f);
    !octets::any(text, odd)
}

#[cold]
fn escaped(out: &mut Vec<u8>, text: &str) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend([b'\\', c as u8]),
            ' '..='~' => out.push(c as u8),
            _ => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    let digits = [12, 8, 4, 0].map(|shift| DIGITS[usize::from(*unit >> shift & 15)]);
                    out.extend_from_slice(b"\\u");
                    out.extend_from_slice(&digits);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_byte_stands_or_does_not_wherever_it_is() {
        for byte in 0..=255 {
            let stands = matches!(byte, b' ' | b'!' | b'#'..=b'[' | b']'..=b'~');
            for at in 0..20 {
                let mut text = [b'~'; 20];
                text[at] = byte;
                assert_eq!(stand(&text[..]), stands, "{byte} at {at}");
                assert!(stand(&text[..at]));
            }
        }
    }
}
