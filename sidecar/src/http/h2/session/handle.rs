//! What handles ask: to begin streams, to write and to read them. A stream is there for as long as it has a handle.

use std::mem::take;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use weft_core::failure::{Failure, Reason, Retryable};

use super::Session;
use crate::http::Chunk;
use crate::http::fields::Fields;
use crate::http::h2::frame::{self, Code, HEADER, Header, MAX_PAYLOAD};
use crate::http::h2::hpack;
use crate::http::h2::section;
use crate::http::h2::state::{Broken, State};
use crate::http::head::{RequestHead, ResponseHead};
use crate::multiplex::note;

impl Session {
    fn state(&mut self, stream: u32) -> &mut State {
        self.streams.get_mut(&stream).expect("a stream is there for as long as it has a handle")
    }

    /// Another one reads or writes a stream.
    pub fn holds(&mut self, stream: u32) {
        self.state(stream).handles += 1;
    }

    /// One who read or wrote a stream does so no more. With the last it is forgotten, and its peer sees a reset unless all was said (Invariant 7).
    pub fn lets_go(&mut self, stream: u32) {
        let state = self.state(stream);
        state.handles -= 1;
        if state.handles == 0 {
            self.forget(stream);
        }
    }

    /// Ready as soon as a stream may begin, and it is known what the peer takes where that matters to `head`.
    pub fn poll_room(&mut self, head: &RequestHead, cx: &Context<'_>) -> Poll<Result<(), Broken>> {
        if self.is_closed() {
            return Poll::Ready(Err(Broken::Unseen));
        }
        if self.has_room() && (self.greeted || head.protocol.is_none()) {
            return Poll::Ready(Ok(()));
        }
        if self.rooms.len() >= self.many {
            // Some of them may have given up.
            self.many *= 2;
            self.give_up_room();
        }
        if !self.rooms.iter().any(|waker| waker.will_wake(cx.waker())) {
            self.rooms.push(cx.waker().clone());
        }
        Poll::Pending
    }

    /// Begins a stream with a request. Ask [`Self::poll_room`] first.
    pub fn begin(&mut self, head: &RequestHead, ends: bool) -> Result<u32, Failure> {
        if head.protocol.is_some() && !self.is_extended {
            return Err(Failure::upstream(Reason::UpstreamProtocol, Retryable::No)
                .detail("it takes no CONNECT for other protocols (RFC 8441)"));
        }
        let host = section::host_of(head, &mut self.seen)?;
        let stream = if self.newest == 0 { 1 } else { self.newest + 2 };
        self.put_section(stream, ends, |out| section::put_request(out, head, host));
        self.newest = stream;
        self.insert(stream, State { finished: ends, asks_head: head.is_head(), ..State::default() });
        Ok(stream)
    }

    /// Says an answer's head.
    pub fn respond(&mut self, stream: u32, head: &ResponseHead, ends: bool) -> Result<(), Broken> {
        self.say(stream, ends, |out| section::put_response(out, head))
    }

    /// Says trailers, and with them that all was said.
    pub fn trailers(&mut self, stream: u32, fields: &Fields) -> Result<(), Broken> {
        self.say(stream, true, |out| section::put_fields(out, fields))
    }

    fn say(&mut self, stream: u32, ends: bool, write: impl FnOnce(&mut Vec<u8>)) -> Result<(), Broken> {
        self.may_say(stream)?;
        self.put_section(stream, ends, write);
        if ends {
            self.finished(stream);
        }
        Ok(())
    }

    pub(super) fn may_say(&mut self, stream: u32) -> Result<(), Broken> {
        self.state(stream).broken.map_or(Ok(()), Err)
    }

    /// Writes a field section, in as many frames as it takes.
    pub(super) fn put_section(&mut self, stream: u32, ends: bool, write: impl FnOnce(&mut Vec<u8>)) {
        let out = self.out.octets();
        let at = out.len();
        out.extend_from_slice(&[0; HEADER]);
        if !std::mem::replace(&mut self.is_tableless, true) {
            hpack::put_no_table(out);
        }
        write(out);
        self.last = None;
        let length = out.len() - at - HEADER;
        let flags = if ends { frame::END_STREAM } else { 0 };
        let mut header = Header { length, kind: frame::HEADERS, flags: flags | frame::END_HEADERS, stream };
        if length <= MAX_PAYLOAD {
            out[at..at + HEADER].copy_from_slice(&header.octets());
        } else {
            let section = out.split_off(at + HEADER);
            out.truncate(at);
            header.flags = flags;
            let mut left = section.len();
            for piece in section.chunks(MAX_PAYLOAD) {
                left -= piece.len();
                header.length = piece.len();
                header.flags |= if left == 0 { frame::END_HEADERS } else { 0 };
                out.extend_from_slice(&header.octets());
                out.extend_from_slice(piece);
                (header.kind, header.flags) = (frame::CONTINUATION, 0);
            }
        }
        self.rouse();
    }

    /// The answer's head, as soon as it is there.
    pub fn poll_head(&mut self, stream: u32, cx: &Context<'_>) -> Poll<Result<ResponseHead, Broken>> {
        let state = self.state(stream);
        if let Some(head) = state.head.take() {
            return Poll::Ready(Ok(*head));
        }
        if let Some(broken) = state.broken {
            return Poll::Ready(Err(broken));
        }
        note(&mut state.reader, cx);
        Poll::Pending
    }

    /// Whether everything that comes was read.
    pub fn is_done(&mut self, stream: u32) -> bool {
        let state = self.state(stream);
        state.ended && state.came.is_empty() && state.trailers.is_none()
    }

    /// The next piece of a body, none at its end. Whoever asks has passed on the one before.
    pub fn poll_piece(&mut self, stream: u32, cx: &Context<'_>) -> Poll<Result<Option<Chunk>, Broken>> {
        let passed = take(&mut self.state(stream).passing);
        if passed > 0 {
            self.give_back(stream, passed);
        }
        let state = self.state(stream);
        if let Some(piece) = state.came.pop() {
            state.passing = piece.len() as u32;
            return Poll::Ready(Ok(Some(Chunk::Data(piece.freeze()))));
        }
        if state.ended {
            return Poll::Ready(Ok(state.trailers.take().map(Chunk::Trailers)));
        }
        if let Some(broken) = state.broken {
            return Poll::Ready(Err(broken));
        }
        note(&mut state.reader, cx);
        Poll::Pending
    }

    /// Takes some of the data off the front, as far as credit and room allow.
    pub fn poll_send(&mut self, stream: u32, cx: &Context<'_>, data: &mut Bytes) -> Poll<Result<(), Broken>> {
        self.may_say(stream)?;
        let (waiting, credit) = (self.out.waiting(), self.credit.max(0) as usize);
        let state = self.state(stream);
        if state.credit <= 0 {
            note(&mut state.writer, cx);
            self.give_up_turn(stream);
            return Poll::Pending;
        }
        let room = self.turns.ask(stream, waiting, credit);
        let state = self.state(stream);
        let Some(room) = room else {
            note(&mut state.writer, cx);
            return Poll::Pending;
        };
        let n = data.len().min(room).min(state.credit as usize);
        state.credit -= n as i64;
        self.credit -= n as i64;
        for piece in data[..n].chunks(MAX_PAYLOAD) {
            let at = self.out.octets().len();
            self.frame(frame::DATA, 0, stream, piece);
            self.last = Some((stream, at));
        }
        data.advance(n);
        Poll::Ready(Ok(()))
    }

    /// Says that all was said: with the last data, where that has not gone yet.
    pub fn finish(&mut self, stream: u32) -> Result<(), Broken> {
        self.may_say(stream)?;
        match self.last.filter(|(of, at)| *of == stream && self.out.is_here(*at)) {
            Some((_, at)) => self.out.octets()[at + 4] |= frame::END_STREAM,
            None => self.frame(frame::DATA, frame::END_STREAM, stream, &[]),
        }
        self.finished(stream);
        Ok(())
    }

    /// Whether the stream is broken off.
    pub fn is_broken(&mut self, stream: u32) -> bool {
        self.state(stream).broken.is_some()
    }

    /// Ready as soon as the connection has ended.
    pub fn poll_gone(&mut self, stream: u32, cx: &Context<'_>) -> Poll<()> {
        if self.gone {
            return Poll::Ready(());
        }
        note(&mut self.state(stream).watcher, cx);
        Poll::Pending
    }

    /// Ready as soon as the stream is broken off.
    pub fn poll_broken(&mut self, stream: u32, cx: &Context<'_>) -> Poll<Broken> {
        let state = self.state(stream);
        match state.broken {
            Some(broken) => Poll::Ready(broken),
            None => {
                note(&mut state.watcher, cx);
                Poll::Pending
            }
        }
    }

    /// Ends a stream of which nothing more is wanted.
    pub fn cut(&mut self, stream: u32, code: Code) {
        if self.breaks(stream, Broken::Reset(code)) {
            self.reset(stream, code);
        }
    }
}
