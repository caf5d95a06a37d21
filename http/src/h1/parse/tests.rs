use std::fmt::Write;

use proptest::prelude::*;

use super::*;
use crate::h1::{Framing, request_framing};

fn read(text: &[u8]) -> Result<Option<RequestHead>, Failure> {
    let (mut buf, mut seen) = (BytesMut::from(text), 0);
    request(&mut buf, &mut seen, &Limits::default())
}

/// What a smuggler sends, and that every one of them is refused at the head or at its framing.
#[test]
fn smuggling_shapes_are_refused() {
    for (name, text) in [
        ("both lengths", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n"),
        ("two lengths", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\n"),
        ("two equal lengths", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\n"),
        ("a list of lengths", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3, 3\r\n\r\n"),
        ("a signed length", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +3\r\n\r\n"),
        ("a negative length", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -3\r\n\r\n"),
        ("a hexadecimal length", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0x3\r\n\r\n"),
        ("an empty length", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length:\r\n\r\n"),
        ("an endless length", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999999\r\n\r\n"),
        ("chunked twice", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, chunked\r\n\r\n"),
        (
            "chunked in two fields",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
        ),
        ("chunked is not last", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, gzip\r\n\r\n"),
        ("another coding", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n"),
        ("a coding with tab", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\x0b\r\n\r\n"),
        ("identity", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity\r\nContent-Length: 3\r\n\r\n"),
        ("chunks in HTTP/1.0", "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"),
        ("space before the colon", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked\r\n\r\n"),
        ("a folded line", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\r\n chunked\r\n\r\n"),
        ("a bare line feed", "POST / HTTP/1.1\nHost: a\r\n\r\n"),
        ("a bare line feed in fields", "POST / HTTP/1.1\r\nHost: a\nX: y\r\n\r\n"),
        ("a bare carriage return", "POST / HTTP/1.1\r\nHost: a\r\nX: a\rContent-Length: 3\r\n\r\n"),
        ("a NUL", "POST / HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n"),
        ("no host", "GET / HTTP/1.1\r\n\r\n"),
        ("two hosts", "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"),
        ("a list of hosts", "GET / HTTP/1.1\r\nHost: a,b\r\n\r\n"),
        ("a version with two digits", "GET / HTTP/1.10\r\nHost: a\r\n\r\n"),
        ("version 2", "GET / HTTP/2.0\r\nHost: a\r\n\r\n"),
        ("a space in the target", "GET /a b HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("a control character in the target", "GET /\x7f HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("a field without a name", "GET / HTTP/1.1\r\nHost: a\r\n: x\r\n\r\n"),
        ("a field that is no field", "GET / HTTP/1.1\r\nHost: a\r\nnonsense\r\n\r\n"),
    ] {
        let refused = match read(text.as_bytes()) {
            Err(_) => true,
            Ok(None) => panic!("{name}: waits for more"),
            Ok(Some(head)) => request_framing(&head).is_err(),
        };
        assert!(refused, "{name} was accepted");
    }
}

#[test]
fn limits_have_their_own_status() {
    let reason = |text: &[u8]| read(text).expect_err("refused").reason;
    let long_target = format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "a".repeat(20_000));
    assert_eq!(reason(long_target.as_bytes()), Reason::UriTooLong);
    let endless_target = format!("GET /{}", "a".repeat(70_000));
    assert_eq!(reason(endless_target.as_bytes()), Reason::UriTooLong);
    let many = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "x: y\r\n".repeat(120));
    assert_eq!(reason(many.as_bytes()), Reason::HeadersTooLarge);
    let flood = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "x: y\r\n".repeat(5_000));
    assert_eq!(reason(flood.as_bytes()), Reason::HeadersTooLarge);
    let big = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}", "y".repeat(70_000));
    assert_eq!(reason(big.as_bytes()), Reason::HeadersTooLarge);
}

#[test]
fn a_chunk_line_is_a_number_and_perhaps_extensions() {
    let size = |line: &[u8]| chunk_size(&mut BytesMut::from(line));
    assert_eq!(size(b"1aF\r\n"), Ok(Some(0x1af)));
    assert_eq!(size(b"5;name=\"v\"\r\n"), Ok(Some(5)));
    assert_eq!(size(b"5 ;x\r\n"), Ok(Some(5)));
    assert_eq!(size(b"5"), Ok(None));
    for bad in [&b"\r\n"[..], b"-1\r\n", b"0x5\r\n", b"5\n", b"5 5\r\n", b"ffffffffffffffffff\r\n", b"5;a\rb\r\n", &[b'1'; 300]] {
        assert!(size(bad).is_err(), "{:?} was accepted", String::from_utf8_lossy(bad));
    }
}

proptest! {
    /// One byte at a time gives the head that all at once gives.
    #[test]
    fn pieces_do_not_matter(method in "[A-Z]{1,8}", target in "/[a-z0-9/?=%]{0,30}", values in proptest::collection::vec("[!-~][ -~]{0,20}", 0..8)) {
        let mut text = format!("{method} {target} HTTP/1.1\r\nHost: a\r\n");
        for (i, v) in values.iter().enumerate() {
            let _ = write!(text, "X-{i}: {v}\r\n");
        }
        text.push_str("\r\nrest");
        let whole = read(text.as_bytes()).expect("good").expect("complete");
        let (mut buf, mut seen) = (BytesMut::new(), 0);
        let mut found = None;
        for b in text.bytes() {
            buf.extend_from_slice(&[b]);
            if found.is_none() {
                found = request(&mut buf, &mut seen, &Limits::default()).expect("good");
            }
        }
        let found = found.expect("complete");
        prop_assert_eq!(&buf[..], b"rest");
        prop_assert_eq!(found.target, whole.target);
        let list = |f: &Fields| f.iter().map(|(_, n, v)| (n.to_vec(), v.to_vec())).collect::<Vec<_>>();
        prop_assert_eq!(list(&found.fields), list(&whole.fields));
        for (i, v) in values.iter().enumerate() {
            prop_assert_eq!(list(&found.fields)[i + 1].1.clone(), v.trim_ascii().as_bytes().to_vec());
        }
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        if let Ok(Some(head)) = read(&bytes) {
            let _ = request_framing(&head).map(|f| matches!(f, Framing::Chunked));
        }
        let (mut buf, mut seen) = (BytesMut::from(&bytes[..]), 0);
        let _ = response(&mut buf, &mut seen, &Limits::default());
        let _ = trailers(&mut BytesMut::from(&bytes[..]), &mut 0, &Limits::default());
        let _ = chunk_size(&mut BytesMut::from(&bytes[..]));
    }
}
