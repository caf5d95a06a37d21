//! Frames of a link from a peer that may say anything.

use std::task::{Context, Poll, Waker};

use weft_core::protocol::MeshProtocol;
use weft_sidecar::link::session::{End, Session};
use weft_sidecar::multiplex::Framing;

/// What one end made of the bytes: what it answers, and what is to be read on each stream.
#[derive(PartialEq)]
struct Made {
    error: Option<String>,
    answer: Vec<u8>,
    streams: Vec<(u32, Vec<u8>)>,
}

fn made(end: End, bytes: &[u8], piece: usize) -> Made {
    let mut session = Session::new(end);
    let mut streams: Vec<u32> =
        if end == End::Opens { (0..4).map(|_| session.begin(MeshProtocol::Tcp)).collect() } else { vec![] };
    let error = bytes.chunks(piece).find_map(|piece| session.receive(piece).err()).map(|e| e.to_string());
    streams.extend(session.opened().into_iter().map(|(stream, _)| stream));
    let answer = session.outgoing().to_vec();
    let cx = Context::from_waker(Waker::noop());
    let mut read = |stream: &u32| {
        let mut all = Vec::new();
        let mut space = [0; 4096];
        while let Poll::Ready(Ok(n @ 1..)) = session.poll_read(*stream, &cx, &mut space) {
            all.extend_from_slice(&space[..n]);
        }
        (*stream, all)
    };
    let streams: Vec<_> = streams.iter().map(&mut read).collect();
    assert!(streams.iter().all(|(_, held)| held.len() <= 64 * 1024), "more is held than was allowed");
    for (stream, _) in &streams {
        session.forget(*stream, None);
    }
    assert_eq!(session.open(), 0, "a stream is there that nobody has");
    Made { error, answer, streams }
}

/// It ends in an error or not, holds no more than it has allowed, and makes the same of the bytes in whatever pieces they come.
///
/// # Panics
/// If one of that does not hold.
pub fn link(bytes: &[u8]) {
    let Some((first, bytes)) = bytes.split_first() else { return };
    let end = if first & 1 == 0 { End::Serves } else { End::Opens };
    let whole = made(end, bytes, usize::MAX);
    let piece = usize::from(first >> 1) % 23 + 1;
    let pieces = made(end, bytes, piece);
    // Not shown: it may be long.
    assert!(whole == pieces, "in pieces of {piece} it is something else: {:?} and {:?}", whole.error, pieces.error);
}
