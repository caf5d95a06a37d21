//! A body as the forwarder sees it: pulled piece by piece, with trailers at its end.

use std::cell::Cell;

use bytes::Bytes;
use weft_core::failure::Failure;

use super::fields::Fields;
use super::{h1, h2};

/// A piece of a body.
#[expect(clippy::large_enum_variant, reason = "trailers are rare, and pieces are never kept")]
#[derive(Debug)]
pub enum Chunk {
    Data(Bytes),
    /// The last piece, where there are trailers.
    Trailers(Fields),
}

/// A message body that is being received.
pub enum Body<'a> {
    Empty,
    H1(h1::IncomingBody<'a>),
    H2(h2::IncomingBody),
}

impl Body<'_> {
    /// The next piece, or none at the end. Cancel-safe: a piece is given or it stays.
    pub async fn next(&mut self) -> Result<Option<Chunk>, Failure> {
        match self {
            Self::Empty => Ok(None),
            Self::H1(b) => b.next().await,
            Self::H2(b) => b.next().await,
        }
    }

    /// After the last piece: resolves when the sender has gone away, for ever where that shows otherwise, or if it has only ended its half
    /// while it is `answering`ed. Cancel-safe.
    pub async fn gone(&mut self, answering: &Cell<bool>) -> Failure {
        match self {
            Self::Empty | Self::H2(_) => std::future::pending().await,
            Self::H1(b) => b.gone(answering).await,
        }
    }

    /// Whether nothing is to come: known at once for most requests.
    pub fn is_done(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::H1(b) => b.is_done(),
            Self::H2(b) => b.is_done(),
        }
    }

    /// Whether no piece of it was taken yet.
    pub fn is_untouched(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::H1(b) => b.is_untouched(),
            Self::H2(b) => b.is_untouched(),
        }
    }

    /// The length that the sender announced.
    pub fn length(&self) -> Option<u64> {
        match self {
            Self::Empty => Some(0),
            Self::H1(b) => b.length(),
            Self::H2(b) => b.length(),
        }
    }
}
