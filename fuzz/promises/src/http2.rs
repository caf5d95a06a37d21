//! Frames of HTTP/2 from a peer that may say anything.

use std::task::{Context, Poll, Waker};

use weft_sidecar::http::h2::frame::{Header, PREFACE, SETTINGS};
use weft_sidecar::http::h2::session::{CONNECTION_WINDOW, End, MAX_CONCURRENT, STREAM_WINDOW, Session, With};
use weft_sidecar::http::{Chunk, Fields, RequestHead};
use weft_sidecar::multiplex::Framing;

/// What one end made of the bytes: what it answers, what it was asked, and what is to be read on each stream.
#[derive(PartialEq)]
struct Made {
    error: Option<String>,
    answer: Vec<u8>,
    asked: Vec<String>,
    streams: Vec<(u32, Vec<u8>)>,
}

fn made(end: End, bytes: &[u8], piece: usize) -> Made {
    let mut session = Session::new(end, With::Program);
    let settings = Header { length: 0, kind: SETTINGS, flags: 0, stream: 0 }.octets();
    let preface: &[u8] = if end == End::Serves { PREFACE } else { &[] };
    session.receive(&[preface, &settings].concat()).expect("a greeting");
    let mut streams: Vec<u32> = Vec::new();
    if end == End::Asks {
        let text = |text: &'static str| text.as_bytes().into();
        let head = RequestHead {
            method: text("GET"),
            target: text("/"),
            authority: Some(text("api")),
            scheme: Some(text("http")),
            protocol: None,
            http10: false,
            fields: Fields::default(),
        };
        streams.extend((0..3).map(|n| session.begin(&head, n > 0).expect("it has an authority")));
    }
    let error = bytes.chunks(piece).find_map(|piece| session.receive(piece).err()).map(|e| e.to_string());
    let fresh = session.fresh();
    let asked = fresh.iter().map(|(_, head)| format!("{head:?}")).collect();
    for head in fresh.iter().filter_map(|(_, head)| head.as_ref().ok()) {
        let is_plain = |part: &[u8]| part.iter().all(u8::is_ascii_graphic);
        assert!(is_plain(&head.method) && is_plain(&head.target), "it would end a line of HTTP/1.1");
        let ends_line =
            |(_, name, value): (_, &[u8], &[u8])| [name, value].concat().iter().any(|b| matches!(b, 0 | b'\r' | b'\n'));
        assert!(!head.fields.iter().any(ends_line), "a field would end its line");
    }
    streams.extend(fresh.into_iter().filter(|(_, head)| head.is_ok()).map(|(stream, _)| stream));
    assert!(streams.len() <= MAX_CONCURRENT, "more is served than was allowed");
    for stream in &streams {
        session.holds(*stream);
    }
    let answer = session.outgoing().to_vec();
    let cx = Context::from_waker(Waker::noop());
    let mut read = |stream: &u32| {
        let mut all = Vec::new();
        while let Poll::Ready(Ok(Some(Chunk::Data(data)))) = session.poll_piece(*stream, &cx) {
            all.extend_from_slice(&data);
        }
        (*stream, all)
    };
    let streams: Vec<_> = streams.iter().map(&mut read).collect();
    assert!(streams.iter().all(|(_, held)| held.len() <= STREAM_WINDOW as usize), "more is held than was allowed");
    let held: usize = streams.iter().map(|(_, held)| held.len()).sum();
    assert!(held <= CONNECTION_WINDOW as usize, "more is held than was allowed over all streams");
    for (stream, _) in &streams {
        session.lets_go(*stream);
    }
    assert!(session.is_idle() && session.open() == 0, "a stream is there that nobody has");
    Made { error, answer, asked, streams }
}

/// It ends in an error or not, holds no more than it has allowed, asks nothing that could not be written as HTTP/1.1, and makes the same of the bytes in whatever pieces they come.
///
/// # Panics
/// If one of that does not hold.
pub fn http2(bytes: &[u8]) {
    let Some((first, bytes)) = bytes.split_first() else { return };
    let end = if first & 1 == 0 { End::Serves } else { End::Asks };
    let whole = made(end, bytes, usize::MAX);
    let piece = usize::from(first >> 1) % 23 + 1;
    let pieces = made(end, bytes, piece);
    // Not shown: it may be long.
    assert!(whole == pieces, "in pieces of {piece} it is something else: {:?} and {:?}", whole.error, pieces.error);
}
