//! As much of JSON patch (RFC 6902) and base64 as a test needs to be in the API server's place.

use serde_json::Value;

/// Applies the operations in their order; only `add` and `replace` are known.
pub(crate) fn apply(document: &mut Value, patch: &Value) -> Result<(), String> {
    for operation in patch.as_array().ok_or("a patch is a list")? {
        let text = |key: &str| operation[key].as_str().ok_or_else(|| format!("{operation} has no {key}"));
        let value = operation.get("value").ok_or_else(|| format!("{operation} has no value"))?.clone();
        let path = text("path")?;
        match text("op")? {
            "add" => add(document, path, value)?,
            "replace" => *document.pointer_mut(path).ok_or_else(|| format!("nothing is at {path}"))? = value,
            other => return Err(format!("the operation {other} is not known")),
        }
    }
    Ok(())
}

fn add(document: &mut Value, path: &str, value: Value) -> Result<(), String> {
    let (parent, token) = path.rsplit_once('/').ok_or_else(|| format!("{path} names no member"))?;
    let token = token.replace("~1", "/").replace("~0", "~");
    match document.pointer_mut(parent) {
        Some(Value::Object(object)) => {
            object.insert(token, value);
            Ok(())
        }
        Some(Value::Array(list)) if token == "-" => {
            list.push(value);
            Ok(())
        }
        Some(Value::Array(list)) => {
            let index: usize = token.parse().map_err(|_| format!("{path} is no place in a list"))?;
            if index > list.len() {
                return Err(format!("{path} is beyond the list's end"));
            }
            list.insert(index, value);
            Ok(())
        }
        _ => Err(format!("{path} has no parent")),
    }
}

/// Decodes RFC 4648, section 4, with padding.
pub(crate) fn from_base64(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    if !text.len().is_multiple_of(4) {
        return None;
    }
    for chunk in text.as_bytes().chunks(4) {
        let padding = chunk.iter().rev().take_while(|byte| **byte == b'=').count();
        let mut group = 0_u32;
        for byte in chunk {
            group = (group << 6) | u32::from(sextet(*byte)?);
        }
        bytes.extend_from_slice(&group.to_be_bytes()[1..4 - padding.min(2)]);
    }
    Some(bytes)
}

fn sextet(byte: u8) -> Option<u8> {
    match byte {
        b'A'..=b'Z' => Some(byte - b'A'),
        b'a'..=b'z' => Some(byte - b'a' + 26),
        b'0'..=b'9' => Some(byte - b'0' + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        b'=' => Some(0),
        _ => None,
    }
}
