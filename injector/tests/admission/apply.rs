//! The API server's part: it decodes a patch from base64, and applies it.

use serde_json::Value;

/// Applies a patch (RFC 6902) as others have implemented it.
pub(crate) fn apply(document: &mut Value, patch: &Value) -> Result<(), String> {
    let patch: json_patch::Patch = serde_json::from_value(patch.clone()).map_err(|error| error.to_string())?;
    json_patch::patch(document, &patch).map_err(|error| error.to_string())
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
