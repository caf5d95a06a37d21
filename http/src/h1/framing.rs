//! Where a message ends (RFC 9112, section 6). Where two readers could disagree, there is an error.

use weft_core::failure::{Failure, Reason, Retryable};

use crate::fields::{Fields, Known};
use crate::head::{RequestHead, ResponseHead};

/// How the end of a body is known.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Framing {
    /// There is no body.
    None,
    /// So many bytes.
    Length(u64),
    /// Chunks, then trailers.
    Chunked,
    /// Until the sender closes: responses only.
    UntilClose,
}

/// The one length or coding that the fields give.
fn declared(fields: &Fields) -> Result<Option<Framing>, &'static str> {
    let mut codings = fields.all(Known::TransferEncoding);
    let mut lengths = fields.all(Known::ContentLength);
    match (codings.next(), codings.next(), lengths.next(), lengths.next()) {
        (None, _, None, _) => Ok(None),
        (Some(_), _, Some(_), _) => Err("both Content-Length and Transfer-Encoding are given"),
        (Some(coding), None, None, _) if coding.eq_ignore_ascii_case(b"chunked") => Ok(Some(Framing::Chunked)),
        (Some(_), _, None, _) => Err("Transfer-Encoding is not exactly \"chunked\""),
        (None, _, Some(length), None) => match length {
            [b'0'..=b'9', ..] if length.len() <= 18 && length.iter().all(u8::is_ascii_digit) => {
                Ok(Some(Framing::Length(length.iter().fold(0, |n, b| n * 10 + u64::from(b - b'0')))))
            }
            _ => Err("Content-Length is not a number"),
        },
        (None, _, Some(_), Some(_)) => Err("Content-Length is given twice"),
    }
}

/// The framing of a request's body.
pub fn request_framing(head: &RequestHead) -> Result<Framing, Failure> {
    let bad = |why| Failure::downstream(Reason::BadRequest).detail(why);
    match declared(&head.fields).map_err(bad)? {
        Some(Framing::Chunked) if head.http10 => Err(bad("HTTP/1.0 has no chunks")),
        Some(_) if head.is_connect() => Err(bad("CONNECT has no body")),
        None | Some(Framing::Length(0)) => Ok(Framing::None),
        Some(framing) => Ok(framing),
    }
}

/// The framing of a response's body, which depends on what was asked.
pub fn response_framing(head: &ResponseHead, asked: &RequestHead) -> Result<Framing, Failure> {
    let declared =
        declared(&head.fields).map_err(|why| Failure::upstream(Reason::UpstreamProtocol, Retryable::No).detail(why))?;
    let bad = |why| Err(Failure::upstream(Reason::UpstreamProtocol, Retryable::No).detail(why));
    if head.http10 && declared == Some(Framing::Chunked) {
        return bad("HTTP/1.0 has no chunks");
    }
    if asked.is_connect() && (200..300).contains(&head.status) && declared.is_some() {
        // An application that answers CONNECT like any request would read what is tunnelled as requests (RFC 9110, section 9.3.6).
        return bad("it answered CONNECT like a request");
    }
    Ok(match head.status {
        100..200 | 204 | 304 => Framing::None,
        200..300 if asked.is_connect() => Framing::None,
        _ if asked.is_head() => Framing::None,
        _ => declared.unwrap_or(Framing::UntilClose),
    })
}
