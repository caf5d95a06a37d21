//! HTTP/2's exchanges between two sidecars, over streams of a link: one after the other, in HTTP/1.1's form. So neither end keeps HTTP/2's state for the hop between them, whose
//! streams, windows and resets the link has already.
//!
//! A body comes in chunks, whatever the head says of its length, and there is one unless the head says that there is none: status and method have no say in where a message ends.
//! That, and the scheme, stand in fields of weft's own, which never leave the hop. What cannot be read back as it was goes over an HTTP/2 connection.

use std::time::Duration;

use bytes::Bytes;
use weft_core::failure::{Failure, Reason};

use super::fields::{Fields, Known};
use super::h1::{Framing, Limits};
use super::h2;
use super::head::RequestHead;

/// The scheme of a request, where it is not `http`.
const SCHEME: &str = "weft-scheme";
/// The message ends with its head.
pub const BARE: &str = "weft-bare";

/// What of HTTP/2 is carried, within the bounds of its own connections.
pub const LIMITS: Limits = Limits { head: 128 * 1024, fields: 2_000, target: 64 * 1024 };

/// How long a receiver may take nothing, as with HTTP/2's windows.
pub const STALL: Duration = Duration::from_secs(300);

/// Fields that a sidecar adds to a request that it carries, at the most, and more.
const ADDED: usize = 8;

/// Whether a request's head can be written in HTTP/1.1's form and read back as it was.
pub fn fits(head: &RequestHead) -> bool {
    head.fields.len() + ADDED <= LIMITS.fields / 2 && is_plain(head)
}

/// Whether it says nothing that HTTP/1.1's form cannot.
fn is_plain(head: &RequestHead) -> bool {
    let Some(authority) = &head.authority else { return false };
    head.protocol.is_none()
        && !head.is_connect()
        && h2::is_authority(authority)
        && head.fields.first(Known::Host).is_none()
        && (head.target.starts_with(b"/") || &*head.target == b"*")
        && head.target.iter().all(|b| b.is_ascii_graphic() && *b != b'#')
        && head.target.len() <= LIMITS.target
}

/// A request as it is written, where its line and fields do not say everything.
pub fn pack(head: &RequestHead) -> Option<Box<RequestHead>> {
    let scheme = head.scheme.as_ref().filter(|scheme| &***scheme != b"http")?;
    let mut packed = Box::new(head.clone());
    packed.fields.push(SCHEME.as_bytes(), scheme);
    Some(packed)
}

/// A request as it was before it was written, and whether it has a body. An error if no sidecar writes such a one.
pub fn unpack(head: &mut RequestHead) -> Result<Framing, Failure> {
    let framing = framing(&mut head.fields);
    let scheme = head.fields.named(SCHEME).next().map_or_else(|| Bytes::from_static(b"http"), Bytes::copy_from_slice);
    head.authority = head.fields.first(Known::Host).map(Bytes::copy_from_slice);
    head.fields.remove(Known::Host);
    head.scheme = Some(scheme);
    // What else is weft's goes with everything that belongs to the hop.
    let is_own = head.fields.first(Known::TransferEncoding).is_some() || head.http10;
    if is_plain(head) && head.fields.len() <= LIMITS.fields / 2 && !is_own {
        Ok(framing)
    } else {
        Err(Failure::downstream(Reason::BadRequest).detail("no HTTP/2 request is carried so"))
    }
}

/// Where a message ends, which it does not say any more then.
pub fn framing(fields: &mut Fields) -> Framing {
    if fields.named(BARE).next().is_none() {
        return Framing::Chunked;
    }
    fields.remove_named(BARE);
    Framing::None
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use weft_core::failure::Side;
    use weft_core::protocol::MeshProtocol;

    use super::*;
    use crate::http::sink::ResponseSink;
    use crate::http::{Chunk, h1};
    use crate::io::{Socket, pair};
    use crate::pool::Buffers;
    use crate::stream::Stream;

    #[test]
    fn what_no_sidecar_writes_is_refused() {
        let read = |text: &str| h1::read_request(&[text.as_bytes()]).expect("HTTP/1.1").expect("a whole head");
        let mut good = read("POST /a?b HTTP/1.1\r\nHost: api:80\r\nweft-scheme: https\r\nx: y\r\n\r\n");
        assert_eq!(unpack(&mut good).expect("it is carried"), Framing::Chunked);
        assert_eq!((good.authority.as_deref(), good.scheme.as_deref()), (Some(&b"api:80"[..]), Some(&b"https"[..])));
        let mut bare = read("GET * HTTP/1.1\r\nHost: api\r\nweft-bare: yes\r\n\r\n");
        assert_eq!(unpack(&mut bare).expect("it is carried"), Framing::None);
        assert!(bare.fields.is_empty() && bare.scheme.as_deref() == Some(b"http"));
        for text in [
            "GET /a#b HTTP/1.1\r\nHost: api\r\n\r\n",
            "GET http://other/ HTTP/1.1\r\nHost: api\r\n\r\n",
            "CONNECT api:80 HTTP/1.1\r\nHost: api:80\r\n\r\n",
            "GET / HTTP/1.0\r\nHost: api\r\n\r\n",
            "GET / HTTP/1.0\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: api\r\nTransfer-Encoding: chunked\r\n\r\n",
        ] {
            let failure = unpack(&mut read(text)).expect_err(text);
            assert_eq!(failure.reason, Reason::BadRequest, "{text}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_is_framed_as_it_is_read() {
        let [a, b] = ["10.0.0.1:1", "10.0.0.2:2"].map(|address| address.parse().expect("an address"));
        let (ours, theirs) = pair(a, b);
        let [ours, theirs] = [ours, theirs].map(|end| Rc::new(Stream::plain(Socket::Memory(end), Buffers::default())));
        let (_, mut writer) = h1::halves(&ours, Side::Downstream, MeshProtocol::Http2, STALL);
        let (mut reader, _) = h1::halves(&theirs, Side::Upstream, MeshProtocol::Http2, STALL);
        let writer = &mut writer;
        let mut sink = ResponseSink::H1 { writer, close: true, http10: false, head_only: false, body: None, note: None };
        sink.refuse(&Failure::downstream(Reason::BadRequest), false).await.expect("it is open");
        let mut answer = reader.response().await.expect("an answer");
        let framing = framing(&mut answer.fields);
        assert_eq!((answer.status, framing), (400, Framing::Chunked));
        let mut body = reader.body(framing);
        let Some(Chunk::Data(text)) = body.next().await.expect("whole") else { panic!("there is a text") };
        assert!(text.starts_with(b"weft: bad-request"), "{text:?}");
        assert!(body.next().await.expect("whole").is_none());
    }
}
