//! Records as lines: JSON, or `name=value`. Whatever a caller sends, it stays within its line and within its field.

use std::fmt::Write;

use super::fields::{Named, Told, Value};

/// An object on one line, without the line's end. Fields that hold nothing are left out.
pub(super) fn json(out: &mut String, fields: &[Named], told: &Told<'_>) {
    out.push('{');
    let mut first = true;
    for field in fields {
        let Some(value) = (field.value)(told) else { continue };
        if !std::mem::take(&mut first) {
            out.push(',');
        }
        let _ = write!(out, "\"{}\":", field.name);
        write_value(out, &value, quoted);
    }
    out.push('}');
}

/// `name=value`, joined by spaces. Fields that hold nothing are left out.
pub(super) fn text(out: &mut String, fields: &[Named], told: &Told<'_>) {
    let mut first = true;
    for field in fields {
        let Some(value) = (field.value)(told) else { continue };
        if !std::mem::take(&mut first) {
            out.push(' ');
        }
        let _ = write!(out, "{}=", field.name);
        write_value(out, &value, |out, text| if is_bare(text) { out.push_str(text) } else { quoted(out, text) });
    }
}

fn write_value(out: &mut String, value: &Value<'_>, string: impl Fn(&mut String, &str)) {
    match value {
        Value::Text(text) => string(out, text),
        Value::Bytes(bytes) => string(out, &String::from_utf8_lossy(bytes)),
        Value::Number(number) => drop(write!(out, "{number}")),
        Value::Millis(millis) => drop(write!(out, "{millis:.3}")),
    }
}

fn is_bare(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| matches!(b, b'!' | b'#'..=b'<' | b'>'..=b'[' | b']'..=b'~'))
}

/// A JSON string in which only printable ASCII stands as it is: nothing of it is read as a line's end, an escape sequence of a terminal, or
/// another direction of writing.
pub(super) fn quoted(out: &mut String, text: &str) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            ' '..='~' => out.push(c),
            _ => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    let _ = write!(out, "\\u{unit:04x}");
                }
            }
        }
    }
    out.push('"');
}
