//! HTTP/1 on the wire (RFC 9112): strict in what it takes in, so that two readers can never disagree about where a message ends.

mod framing;
mod parse;
mod read;
mod write;

pub use framing::{Framing, request_framing, response_framing};
pub use read::{IncomingBody, Reader};
pub use write::{OutgoingBody, Writer};

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
