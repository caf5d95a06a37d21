//! Request heads of HTTP/1, and where their bodies end.

use weft_sidecar::http::RequestHead;
use weft_sidecar::http::h1::{Framing, Limits, read_request, request_framing};

/// The pieces in which a request comes do not matter; and one that is accepted ends in the same place for the most
/// careless of other readers.
pub fn http1(bytes: &[u8]) {
    // Beyond the limit, whether that or something else is said to be wrong does depend on the pieces.
    let bytes = &bytes[..bytes.len().min(Limits::default().head)];
    let whole = read_request(&[bytes]);
    let seen = format!("{whole:?}");
    for pieces in [pieces(bytes), bytes.chunks(1).collect()] {
        assert_eq!(format!("{:?}", read_request(&pieces)), seen, "other pieces, another answer");
    }
    if let Ok(Some(head)) = whole {
        ends_in_one_place(bytes, &head);
    }
}

/// Cuts bytes where they themselves say, so that a seed stays readable and the fuzzer has its say.
fn pieces(mut rest: &[u8]) -> Vec<&[u8]> {
    let mut found = Vec::new();
    while let Some(first) = rest.first() {
        let (piece, tail) = rest.split_at(rest.len().min(1 + usize::from(first % 32)));
        found.push(piece);
        rest = tail;
    }
    found
}

fn ends_in_one_place(mut bytes: &[u8], head: &RequestHead) {
    let Ok(framing) = request_framing(head) else { return };
    while let Some(tail) = bytes.strip_prefix(b"\r\n") {
        bytes = tail;
    }
    let end = bytes.windows(4).position(|w| w == b"\r\n\r\n").expect("an accepted head has its end");
    let lengths = carelessly(&bytes[..end], "content-length");
    let codings = carelessly(&bytes[..end], "transfer-encoding");
    let shown = String::from_utf8_lossy(&bytes[..end]);
    match (framing, &lengths[..], &codings[..]) {
        (Framing::None, [], []) => {}
        (Framing::None, [length], []) => assert_eq!(number(length), Some(0), "{shown}"),
        (Framing::Length(n), [length], []) => assert_eq!(number(length), Some(n), "{shown}"),
        (Framing::Chunked, [], [coding]) => {
            assert!(coding.eq_ignore_ascii_case(b"chunked") && !head.http10, "{shown}");
        }
        _ => panic!("{framing:?} with lengths {lengths:?} and codings {codings:?}: {shown}"),
    }
}

/// The values of a field as a reader finds them that takes anything for a line's end, and that overlooks white space around
/// names and before continued lines.
fn carelessly<'a>(head: &'a [u8], name: &str) -> Vec<&'a [u8]> {
    let lines = head.split(|b| matches!(b, b'\r' | b'\n' | 0)).skip(1);
    lines
        .filter_map(|line| {
            let colon = line.iter().position(|b| *b == b':')?;
            line[..colon].trim_ascii().eq_ignore_ascii_case(name.as_bytes()).then(|| line[colon + 1..].trim_ascii())
        })
        .collect()
}

fn number(text: &[u8]) -> Option<u64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}
