//! One GET, as a health check asks it: HTTP/1.1, no keep-alive, and of the answer the status and the body.

use std::fmt::Write as _;
use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// A part of a URL, percent-encoded: all but what is unreserved (RFC 3986, section 2.3).
pub(crate) fn escaped(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

/// Of an answer, no more than this is read.
const MAX_ANSWER: u64 = 4 << 20;

/// Asks for `path` and gives the status, and the body where the answer says how long it is. The caller sets the time.
pub(crate) async fn get<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, host: &str, path: &str) -> io::Result<(u16, String)> {
    let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: weft\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    let mut limited = stream.take(MAX_ANSWER);
    while !complete(&answer) && limited.read_buf(&mut answer).await? > 0 {}
    read(&answer).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the answer is not HTTP"))
}

/// Whether the head is there, and the body as far as the head says how long it is. The rest nobody waits for.
fn complete(answer: &[u8]) -> bool {
    let Some(end) = head_end(answer) else { return false };
    let head = String::from_utf8_lossy(&answer[..end]).to_ascii_lowercase();
    let length = head.lines().find_map(|l| l.strip_prefix("content-length:")?.trim().parse::<usize>().ok());
    length.is_none_or(|length| answer.len() - end >= length)
}

fn head_end(answer: &[u8]) -> Option<usize> {
    answer.windows(4).position(|window| window == b"\r\n\r\n").map(|at| at + 4)
}

fn read(answer: &[u8]) -> Option<(u16, String)> {
    let first = answer.split(|b| *b == b'\n').next()?;
    let first = std::str::from_utf8(first).ok()?;
    let mut words = first.split_whitespace();
    if !words.next()?.starts_with("HTTP/1.") {
        return None;
    }
    let status = words.next()?.parse().ok()?;
    let body = head_end(answer).map_or(&b""[..], |at| &answer[at..]);
    Some((status, String::from_utf8_lossy(body).trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_a_url_is_escaped() {
        assert_eq!(escaped("a{b=\"c\"}[5s]"), "a%7Bb%3D%22c%22%7D%5B5s%5D");
        assert_eq!(escaped("sa/web &x=é"), "sa%2Fweb%20%26x%3D%C3%A9");
    }

    #[test]
    fn an_answer_is_read_or_refused() {
        assert_eq!(read(b"HTTP/1.1 200 OK\r\nA: b\r\n\r\nfine\n"), Some((200, "fine".to_owned())));
        assert_eq!(read(b"HTTP/1.0 503 Service Unavailable\r\n"), Some((503, String::new())));
        for bad in [&b""[..], b"HTTP/2 200\r\n\r\n", b"SSH-2.0-x\r\n", b"HTTP/1.1 abc\r\n\r\n", b"\xff\xfe"] {
            assert_eq!(read(bad), None);
        }
    }

    #[test]
    fn an_answer_is_complete_when_its_head_says_so() {
        assert!(!complete(b"HTTP/1.1 200 OK\r\n"));
        assert!(complete(b"HTTP/1.1 200 OK\r\n\r\n"));
        assert!(!complete(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nab"));
        assert!(complete(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc"));
    }

    #[tokio::test]
    async fn a_get_gives_status_and_body() {
        let (client, mut server) = tokio::io::duplex(1024);
        let answer = async {
            let mut request = vec![0; 512];
            let n = server.read(&mut request).await.expect("a request");
            server.write_all(b"HTTP/1.1 404 Not Found\r\n\r\nno such thing").await.expect("an answer");
            drop(server);
            String::from_utf8_lossy(&request[..n]).into_owned()
        };
        let (got, request) = tokio::join!(get(client, "10.47.1.1", "/healthz"), answer);
        assert_eq!(got.expect("an answer"), (404, "no such thing".to_owned()));
        assert!(request.starts_with("GET /healthz HTTP/1.1\r\nHost: 10.47.1.1\r\n"), "{request}");
    }
}
