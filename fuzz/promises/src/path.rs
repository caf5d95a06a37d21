//! The path that policies are judged by, beside what other readers make of it.

use weft_core::authorization::path::{grpc_call, normalise};
use weft_core::authorization::policy::PathMatch;
use weft_sidecar::http::h1::read_request;

/// Whatever another reader does to a path that is judged, it comes to the path that was judged: undoing escapes once or until none is left,
/// resolving dot segments, merging slashes, taking `\` for `/`, and ending at `;`, `?`, `#` or NUL. And it is what is forwarded.
pub fn path(raw: &[u8]) {
    // The query is no part of what is asked.
    let raw = raw.split(|b| *b == b'?').next().unwrap_or_default();
    let Ok(judged) = normalise(raw) else { return };
    let shown = String::from_utf8_lossy(raw);
    for end_first in [true, false] {
        for times in [1, 8] {
            let mut seen = raw.to_vec();
            if end_first {
                end(&mut seen);
            }
            for _ in 0..times {
                seen = unescape(&seen);
            }
            end(&mut seen);
            let seen = resolve(&seen);
            assert_eq!(
                seen[..],
                judged[..],
                "{shown}: a reader that ends it {} and undoes escapes {times} times",
                if end_first { "first" } else { "last" }
            );
        }
    }
    assert!(std::str::from_utf8(&judged).is_ok(), "{shown}");
    if let Some((service, method)) = grpc_call(&judged) {
        assert_eq!([b"/", service, b"/", method].concat(), *judged);
    }
    // A policy that names it reads it alike.
    let text = String::from_utf8_lossy(&judged);
    if let Ok(exact) = PathMatch::exact(&text) {
        assert_eq!(exact.text(), text);
    }
    if raw.iter().all(u8::is_ascii_graphic) {
        let request = [b"GET ", raw, b" HTTP/1.1\r\nhost: a\r\n\r\n"].concat();
        if let Ok(Some(head)) = read_request(&[&request]) {
            assert_eq!((&head.target[..], head.path()), (raw, raw), "what is forwarded");
        }
    }
}

fn end(path: &mut Vec<u8>) {
    let at = path.iter().position(|b| matches!(b, b';' | b'?' | b'#' | 0));
    path.truncate(at.unwrap_or(path.len()));
}

/// Escapes that are none stay.
fn unescape(path: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut at = 0;
    while let Some(byte) = path.get(at) {
        let digits = path.get(at + 1..at + 3).filter(|two| *byte == b'%' && two.iter().all(u8::is_ascii_hexdigit));
        let value = digits.and_then(|two| u8::from_str_radix(std::str::from_utf8(two).ok()?, 16).ok());
        out.push(value.unwrap_or(*byte));
        at += if value.is_some() { 3 } else { 1 };
    }
    out
}

/// RFC 3986, section 5.2.4, by a reader that merges slashes and knows `\`.
fn resolve(path: &[u8]) -> Vec<u8> {
    if path == b"*" {
        return path.to_vec();
    }
    let is_slash = |b: &u8| matches!(b, b'/' | b'\\');
    let mut kept: Vec<&[u8]> = Vec::new();
    let mut ends_open = false;
    for segment in path.split(is_slash).skip(1) {
        ends_open = matches!(segment, b"" | b"." | b"..");
        match segment {
            b"" | b"." => {}
            b".." => drop(kept.pop()),
            segment => kept.push(segment),
        }
    }
    let mut out = Vec::new();
    for segment in &kept {
        out.push(b'/');
        out.extend_from_slice(segment);
    }
    if ends_open {
        out.push(b'/');
    }
    out
}
