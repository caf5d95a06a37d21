//! HTTP/1's heads (RFC 9112): strict in what is taken in, so that two readers can never disagree about where a message ends.

mod framing;
mod parse;
mod put;

use weft_core::failure::Failure;

use crate::head::RequestHead;

pub use framing::{Framing, request_framing, response_framing};
pub use parse::{chunk_size, request, response, trailers};
pub use put::{put_lines, put_request, put_response};

/// Reads a request head from bytes that come in these pieces: for tests and fuzzing; a connection has a buffer.
pub fn read_request(pieces: &[&[u8]]) -> Result<Option<RequestHead>, Failure> {
    let (mut buf, mut seen) = (bytes::BytesMut::new(), 0);
    for piece in pieces {
        buf.extend_from_slice(piece);
        if let Some(head) = parse::request(&mut buf, &mut seen, &Limits::default())? {
            return Ok(Some(head));
        }
    }
    Ok(None)
}

/// Limits of what is read.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of a head.
    pub head: usize,
    /// Fields of a head.
    pub fields: usize,
    /// Bytes of a request target.
    pub target: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { head: 64 * 1024, fields: 100, target: 16 * 1024 }
    }
}
