//! What the first bytes of a connection are. Pure: bytes in, an answer or "more" out.

mod client_hello;

pub use client_hello::ClientHello;

/// The client connection preface of HTTP/2 (RFC 9113, section 3.4).
pub const H2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The longest request line that detection waits for, in bytes. A longer one that began like HTTP is HTTP still,
/// and the codec will refuse it by its own limit.
const MAX_REQUEST_LINE: usize = 8 * 1024;
/// Line ends before a request line that detection reads over. More of them are HTTP still, for the codec to refuse: a server that reads
/// over any number would take what follows for a request.
const MAX_EMPTY: usize = 64;
/// The longest method name that is taken for one; registered methods end at 17 (`UPDATEREDIRECTREF`).
const MAX_METHOD: usize = 24;
/// The most bytes of a `ClientHello` that are waited for: one and a half records of the largest size, which covers every
/// post-quantum key share with room to spare.
pub const MAX_CLIENT_HELLO: usize = 24 * 1024;

/// What the first bytes say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Detection {
    /// Not decided: read more.
    More,
    /// HTTP/1.0 or 1.1.
    Http1,
    /// HTTP/2 with prior knowledge.
    Http2,
    /// A TLS `ClientHello`, whole.
    Tls(ClientHello),
    /// None of these.
    Opaque,
}

/// Looks at the first bytes of a connection. Never asks for more than [`MAX_CLIENT_HELLO`] bytes, and for more at all
/// only while the bytes can still become HTTP or TLS.
///
/// An answer is final: what lies beyond a limit is not looked at, so that the pieces in which bytes come decide nothing.
pub fn detect(bytes: &[u8]) -> Detection {
    let bytes = &bytes[..bytes.len().min(MAX_CLIENT_HELLO)];
    match bytes.first() {
        None => Detection::More,
        Some(0x16) => match client_hello::parse(bytes) {
            client_hello::Parsed::More if bytes.len() < MAX_CLIENT_HELLO => Detection::More,
            client_hello::Parsed::Hello(hello) => Detection::Tls(hello),
            client_hello::Parsed::More | client_hello::Parsed::No => Detection::Opaque,
        },
        Some(_) => detect_http(bytes),
    }
}

fn detect_http(bytes: &[u8]) -> Detection {
    if bytes.len() >= H2_PREFACE.len() {
        if bytes.starts_with(H2_PREFACE) {
            return Detection::Http2;
        }
    } else if H2_PREFACE.starts_with(bytes) {
        return Detection::More;
    }
    // RFC 9112, section 2.2: a server should ignore an empty line before the request line, and real ones ignore many, bare line feeds
    // too. What such a server would take for HTTP is HTTP here: else a forged `weft-client-id` would pass as opaque bytes.
    let start = bytes.iter().position(|b| !matches!(b, b'\r' | b'\n')).unwrap_or(bytes.len());
    if start > MAX_EMPTY {
        return Detection::Http1;
    }
    let line = &bytes[start..];
    if line.is_empty() {
        return Detection::More;
    }
    let line = &line[..line.len().min(MAX_REQUEST_LINE + 1)];
    match line.iter().position(|b| !is_method_byte(*b)) {
        None if line.len() <= MAX_METHOD => return Detection::More,
        Some(1..=MAX_METHOD) => {}
        _ => return Detection::Opaque,
    }
    let end = line.iter().position(|b| *b == b'\n');
    let seen = &line[..end.unwrap_or(line.len())];
    let Some(space) = seen.iter().position(|b| *b == b' ') else { return Detection::Opaque };
    if !is_method(&seen[..space]) {
        return Detection::Opaque;
    }
    // The target must not begin with a space, and nothing in the line is a control character.
    let rest = &seen[space + 1..];
    if rest.first() == Some(&b' ') || rest.iter().any(|b| *b < b' ' && *b != b'\r' || *b == 0x7f) {
        return Detection::Opaque;
    }
    match end {
        Some(_) => match rest.strip_suffix(b"\r").unwrap_or(rest).rsplit(|b| *b == b' ').next() {
            Some(b"HTTP/1.1" | b"HTTP/1.0") => Detection::Http1,
            _ => Detection::Opaque,
        },
        None if line.len() > MAX_REQUEST_LINE => Detection::Http1,
        None => Detection::More,
    }
}

fn is_method_byte(b: u8) -> bool {
    b.is_ascii_uppercase() || matches!(b, b'-' | b'_')
}

fn is_method(word: &[u8]) -> bool {
    !word.is_empty() && word.len() <= MAX_METHOD && word[0].is_ascii_uppercase() && word.iter().all(|b| is_method_byte(*b))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn first_bytes_by_table() {
        for (bytes, want) in [
            (&b"GET / HTTP/1.1\r\n"[..], Detection::Http1),
            (b"M-SEARCH * HTTP/1.1\r\nHost", Detection::Http1),
            (b"CONNECT a:443 HTTP/1.0\r\n", Detection::Http1),
            (b"\r\nGET / HTTP/1.1\r\n", Detection::Http1),
            (b"\r\n\r\n\nGET / HTTP/1.1\r\n", Detection::Http1),
            (b"\n", Detection::More),
            (b"GET / HTTP/1.1\n", Detection::Http1),
            (b"G", Detection::More),
            (b"GET /very", Detection::More),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0", Detection::Http2),
            (b"PRI * HTTP/2.0\r\n\r\nSM", Detection::More),
            (b"PING\r\n", Detection::Opaque),
            (b"*1\r\n$4\r\nPING\r\n", Detection::Opaque),
            (b"EHLO example.org\r\n", Detection::Opaque),
            (b"SSH-2.0-OpenSSH\r\n", Detection::Opaque),
            (b"GET /\r\n", Detection::Opaque),
            (b"GET  / HTTP/1.1\r\n", Detection::Opaque),
            (b"GET /\x01 HTTP/1.1\r\n", Detection::Opaque),
            (b"get / HTTP/1.1\r\n", Detection::Opaque),
            (b"\x00\x00\x00\x08\x04\xd2\x16\x2f", Detection::Opaque),
            (b"\x16\x02garbage", Detection::Opaque),
            (b"", Detection::More),
        ] {
            assert_eq!(detect(bytes), want, "{:?}", String::from_utf8_lossy(bytes));
        }
    }

    #[test]
    fn a_request_line_without_end_is_left_to_the_codec() {
        let mut long = b"GET /".to_vec();
        long.resize(MAX_REQUEST_LINE + 1, b'a');
        assert_eq!(detect(&long), Detection::Http1);
        assert_eq!(detect(&[b'A'; 200]), Detection::Opaque);
    }

    proptest! {
        /// One byte at a time gives the answer that all at once gives: an early answer never changes.
        #[test]
        fn an_answer_is_final(bytes in prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..200),
            "[A-Z]{1,9} [ -~]{0,40}\r\n".prop_map(String::into_bytes),
            "(GET|POST|PRI|HELO) [a-z/*]{1,9} HTTP/[12]\\.[01]\r\n[ -~\r\n]{0,20}".prop_map(String::into_bytes),
        ]) {
            let mut decided: Option<Detection> = None;
            for n in 0..=bytes.len() {
                let now = detect(&bytes[..n]);
                match &decided {
                    Some(before) => prop_assert_eq!(&now, before),
                    None if now != Detection::More => decided = Some(now),
                    None => {}
                }
            }
        }
    }
}
