//! HTTP/1 on a stream (RFC 9112). What its heads say, and where a message ends, is `weft_http::h1`'s.

use std::rc::Rc;
use std::time::Duration;

use weft_core::failure::Side;

use crate::stream::Stream;

mod read;
mod write;

pub use read::{IncomingBody, Reader};
pub use weft_http::h1::{Framing, Limits, read_request, request_framing, response_framing};
pub use write::{OutgoingBody, Writer};

/// Both halves of a stream that HTTP/1 is spoken on. `stall` bounds how long a peer may take nothing.
pub fn halves(stream: &Rc<Stream>, side: Side, stall: Duration) -> (Reader, Writer) {
    (Reader::new(Rc::clone(stream), side), Writer::new(Rc::clone(stream), side, stall))
}
