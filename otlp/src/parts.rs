//! A message in two pieces, so that nobody copies the long one to put a head before it.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};

/// A whole message: `head`, then `rest`. Each may be empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parts {
    pub head: Bytes,
    pub rest: Bytes,
}

impl From<Bytes> for Parts {
    fn from(whole: Bytes) -> Self {
        Self { head: Bytes::new(), rest: whole }
    }
}

impl Parts {
    pub fn len(&self) -> usize {
        self.head.len() + self.rest.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Piece by piece.
impl Body for Parts {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let piece = if self.head.is_empty() { std::mem::take(&mut self.rest) } else { std::mem::take(&mut self.head) };
        Poll::Ready(if piece.is_empty() { None } else { Some(Ok(Frame::data(piece))) })
    }

    fn is_end_stream(&self) -> bool {
        self.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.len() as u64)
    }
}
