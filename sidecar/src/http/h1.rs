//! HTTP/1 on the wire (RFC 9112): strict in what it takes in, so that two readers can never disagree about where a message ends.

use std::rc::Rc;
use std::time::Duration;

use weft_core::failure::Side;

use crate::stream::Stream;

mod framing;
mod parse;
mod read;
mod write;

pub use framing::{Framing, request_framing, response_framing};
pub use read::{IncomingBody, Reader};
pub use write::{OutgoingBody, Writer};

/// Both halves of a stream that HTTP/1 is spoken on. `stall` bounds how long a peer may take nothing.
pub fn halves(stream: &Rc<Stream>, side: Side, stall: Duration) -> (Reader, Writer) {
    (Reader::new(Rc::clone(stream), side), Writer::new(Rc::clone(stream), side, stall))
}

/// Reads a request head from bytes that come in these pieces: for tests and fuzzing; a connection has a [`Reader`].
pub fn read_request(pieces: &[&[u8]]) -> Result<Option<super::RequestHead>, weft_core::failure::Failure> {
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
