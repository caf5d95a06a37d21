//! A body as the forwarder sees it: pulled piece by piece, with trailers at its end.

use std::cell::Cell;
use std::rc::Rc;

use bytes::Bytes;
use weft_core::failure::Failure;

use super::fields::Fields;
use super::{h1, h2};

/// A piece of a body.
#[derive(Debug)]
pub enum Chunk {
    Data(Bytes),
    /// The last piece, where there are trailers: rare, so that they are no burden to the others.
    Trailers(Box<Fields>),
}

impl Chunk {
    /// Bytes of the body.
    pub fn octets(&self) -> u64 {
        match self {
            Self::Data(data) => data.len() as u64,
            Self::Trailers(_) => 0,
        }
    }
}

/// A message body that is being received.
pub enum Body<'a> {
    Empty,
    H1(h1::IncomingBody<'a>),
    H2(h2::IncomingBody),
    Kept(Box<Kept<'a>>),
}

/// The most of a body that is kept to be sent again, in bytes.
pub const MAX_KEPT: usize = 64 * 1024;

/// Smaller pieces than this, in bytes, are kept as copies, put together: each of their own would hold on to the whole buffer that it
/// came in, and a body may come byte by byte.
const SMALL: usize = 4 * 1024;

/// A piece that is kept.
#[derive(Debug)]
enum Piece {
    Whole(Bytes),
    Gathered(Vec<u8>),
}

impl Piece {
    fn bytes(&self) -> Bytes {
        match self {
            Self::Whole(bytes) => bytes.clone(),
            Self::Gathered(bytes) => Bytes::copy_from_slice(bytes),
        }
    }
}

/// A body whose pieces are kept as they go out, so that it can be sent again, as long as they are not too many.
pub struct Kept<'a> {
    body: Body<'a>,
    /// Data and, at the end, trailers.
    pieces: Vec<Piece>,
    trailers: Option<Box<Fields>>,
    /// How many pieces went out this time; one more is the trailers.
    sent: usize,
    size: usize,
    /// Too long to keep: what was sent is gone.
    lost: Rc<Cell<bool>>,
}

impl<'a> Kept<'a> {
    pub fn new(body: Body<'a>) -> Self {
        Self { body, pieces: Vec::new(), trailers: None, sent: 0, size: 0, lost: Rc::default() }
    }

    /// Begins anew; false if what was sent is gone.
    pub fn rewind(&mut self) -> bool {
        if !self.lost.get() {
            self.sent = 0;
        }
        !self.lost.get()
    }

    /// Whether what was sent is gone: shows at any time.
    pub fn lost(&self) -> Rc<Cell<bool>> {
        Rc::clone(&self.lost)
    }

    /// Everything, if all of it came and is still there.
    fn copy(&self) -> Option<Whole> {
        (self.body.is_done() && !self.lost.get()).then(|| (self.pieces.iter().map(Piece::bytes).collect(), self.trailers.clone()))
    }

    async fn next(&mut self) -> Result<Option<Chunk>, Failure> {
        if let Some(piece) = self.pieces.get(self.sent) {
            self.sent += 1;
            return Ok(Some(Chunk::Data(piece.bytes())));
        }
        if let (true, Some(trailers)) = (self.sent == self.pieces.len(), &self.trailers) {
            self.sent += 1;
            return Ok(Some(Chunk::Trailers(trailers.clone())));
        }
        let piece = Box::pin(self.body.next()).await?;
        match &piece {
            None => {}
            Some(Chunk::Data(data)) => {
                self.size += data.len();
                if self.size > MAX_KEPT {
                    self.lost.set(true);
                    self.pieces = Vec::new();
                    self.sent = 0;
                } else {
                    self.keep(data);
                }
            }
            Some(Chunk::Trailers(trailers)) if !self.lost.get() => {
                self.trailers = Some(trailers.clone());
                self.sent += 1;
            }
            Some(Chunk::Trailers(_)) => {}
        }
        Ok(piece)
    }

    fn keep(&mut self, data: &Bytes) {
        match self.pieces.last_mut() {
            _ if data.len() >= SMALL => self.pieces.push(Piece::Whole(data.clone())),
            // It went out already, as far as it was there.
            Some(Piece::Gathered(last)) => return last.extend_from_slice(data),
            _ => self.pieces.push(Piece::Gathered(data.to_vec())),
        }
        self.sent += 1;
    }

    fn length(&self) -> Option<u64> {
        let whole = self.body.is_done() && !self.lost.get();
        if whole { self.trailers.is_none().then_some(self.size as u64) } else { self.body.length() }
    }

    fn is_done(&self) -> bool {
        let all = self.pieces.len() + usize::from(self.trailers.is_some());
        self.sent >= all && self.body.is_done()
    }
}

/// A whole body: its pieces, and trailers.
pub type Whole = (Vec<Bytes>, Option<Box<Fields>>);

impl Body<'_> {
    /// A body that is all there.
    pub fn again((pieces, trailers): Whole) -> Self {
        if pieces.is_empty() && trailers.is_none() {
            return Self::Empty;
        }
        let size = pieces.iter().map(Bytes::len).sum();
        let pieces = pieces.into_iter().map(Piece::Whole).collect();
        Self::Kept(Box::new(Kept { pieces, trailers, size, ..Kept::new(Body::Empty) }))
    }

    /// The whole of it, if it was kept, or there is none.
    pub fn copy(&self) -> Option<Whole> {
        match self {
            Self::Kept(kept) => kept.copy(),
            other => (other.is_done() && other.is_untouched()).then(Default::default),
        }
    }

    /// The next piece, or none at the end. Cancel-safe: a piece is given or it stays.
    pub async fn next(&mut self) -> Result<Option<Chunk>, Failure> {
        match self {
            Self::Empty => Ok(None),
            Self::H1(b) => b.next().await,
            Self::H2(b) => b.next().await,
            Self::Kept(b) => b.next().await,
        }
    }

    /// After the last piece: resolves when the sender has gone away, for ever where that shows otherwise, or if it has only ended its half
    /// while it is `answering`ed. Cancel-safe.
    pub async fn gone(&mut self, answering: &Cell<bool>) -> Failure {
        match self {
            Self::Empty | Self::H2(_) => std::future::pending().await,
            Self::H1(b) => b.gone(answering).await,
            Self::Kept(b) => Box::pin(b.body.gone(answering)).await,
        }
    }

    /// Whether nothing is to come: known at once for most requests.
    pub fn is_done(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::H1(b) => b.is_done(),
            Self::H2(b) => b.is_done(),
            Self::Kept(b) => b.is_done(),
        }
    }

    /// Whether no piece of it was taken yet.
    pub fn is_untouched(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::H1(b) => b.is_untouched(),
            Self::H2(b) => b.is_untouched(),
            Self::Kept(b) => b.body.is_untouched(),
        }
    }

    /// The length that the sender announced.
    pub fn length(&self) -> Option<u64> {
        match self {
            Self::Empty => Some(0),
            Self::H1(b) => b.length(),
            Self::H2(b) => b.length(),
            Self::Kept(b) => b.length(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_kept_body_comes_again_until_it_is_too_long() {
        let mut kept = Kept::new(Body::Empty);
        kept.pieces = vec![Piece::Whole(Bytes::from_static(b"a")), Piece::Gathered(b"b".to_vec())];
        let mut trailers = Fields::default();
        trailers.push(b"t", b"1");
        kept.trailers = Some(Box::new(trailers));
        for _ in 0..2 {
            let mut seen = Vec::new();
            assert!(!kept.is_done());
            while let Some(chunk) = kept.next().await.expect("no failure") {
                seen.push(matches!(chunk, Chunk::Trailers(_)));
            }
            assert_eq!(seen, [false, false, true]);
            assert!(kept.is_done() && kept.rewind());
        }
        kept.lost.set(true);
        assert!(!kept.rewind());
    }
}
