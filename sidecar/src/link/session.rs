//! One end of a link, without its socket: frames in, frames out, and what each stream may do. It never waits and reads no clock.
//!
//! - **Credit** is per stream: who reads slowly stops its own stream, and no other. It begins at [`WINDOW`] and grows with what is read; what is
//!   granted beyond the beginning is bounded over the whole link.
//! - **Turns**: bytes that are to go out wait in one buffer. When it is full, writers queue up ([`Turns`]).
//! - **A stream is forgotten** when its [`super::Pipe`] is dropped; what still comes for it is read over. Its number never comes again.

use std::io::{self, IoSlice};
use std::task::{Context, Poll, Waker, ready};

use bytes::buf::Limit;
use bytes::{BufMut, BytesMut};
use weft_core::protocol::MeshProtocol;

use super::frame::{Cause, HEADER, Header, Kind, MAX_CONTROL, MAX_PAYLOAD, Violation, protocol_octet, protocol_of};
use super::half::{Half, WINDOW};
use crate::multiplex::{CHOKED, Extra, Framing, LOW, Outgoing, Streams, Turns, note, wake};

/// The most that all streams of a link may be granted beyond [`WINDOW`], in bytes.
const EXTRA: u32 = 8 * 1024 * 1024;
/// Streams that whoever opens them has open at once; then it opens another link.
pub const MAX_OPEN: usize = 256;
/// Streams that are served at once: more, since the two ends do not forget a stream in the same moment.
const MAX_SERVED: usize = 2 * MAX_OPEN;
/// The last number of a stream. Then the link is full.
const LAST: u32 = u32::MAX - 1;

const HAS_PIPE: &str = "a stream is there for as long as its pipe";

/// Which of the two ends it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// It opens streams.
    Opens,
    /// It serves them.
    Serves,
}

/// See the module.
pub struct Session {
    end: End,
    streams: Streams<Half>,
    /// The highest number that was used.
    newest: u32,
    /// Frames that are to go out.
    out: Outgoing,
    /// A header, or a frame that is not data, as far as it came.
    part: [u8; HEADER + MAX_CONTROL],
    filled: usize,
    /// The stream whose data is coming, and how much of it.
    coming: Option<(u32, usize)>,
    /// Streams whose writers wait for room.
    turns: Turns,
    /// What may be granted beyond the windows' beginning.
    extra: Extra,
    /// Streams that the peer has opened, and nobody serves yet.
    fresh: Vec<(u32, MeshProtocol)>,
    /// No more streams: the peer has said so, or we have.
    leaving: bool,
    closing: bool,
    gone: bool,
    /// The newest stream when something came last.
    sure: u32,
    /// Bytes that may still come for streams that are forgotten.
    over: u64,
    /// Whoever reads and writes the connection.
    driver: Option<Waker>,
}

impl Session {
    pub fn new(end: End) -> Self {
        Self {
            end,
            streams: Streams::default(),
            newest: 0,
            out: Outgoing::default(),
            part: [0; HEADER + MAX_CONTROL],
            filled: 0,
            coming: None,
            turns: Turns::default(),
            extra: Extra(EXTRA),
            fresh: Vec::new(),
            leaving: false,
            closing: false,
            gone: false,
            sure: 0,
            over: 0,
            driver: None,
        }
    }

    /// Streams that are open.
    pub fn open(&self) -> usize {
        self.streams.len()
    }

    /// Whether another stream may begin.
    pub fn has_room(&self) -> bool {
        !self.leaving && !self.gone && self.streams.len() < MAX_OPEN && self.newest < LAST && self.out.waiting() < CHOKED / 2
    }

    /// Whether no stream begins on it any more.
    pub fn is_leaving(&self) -> bool {
        self.leaving || self.gone
    }

    /// Begins a stream. Ask [`Self::has_room`] first.
    pub fn begin(&mut self, protocol: MeshProtocol) -> u32 {
        self.newest += 1;
        self.streams.insert(self.newest, Half::new());
        self.frame(Kind::Open, self.newest, &[protocol_octet(protocol)]);
        self.newest
    }

    /// The streams that the peer has opened since the last time.
    pub fn opened(&mut self) -> Vec<(u32, MeshProtocol)> {
        std::mem::take(&mut self.fresh)
    }

    /// Says that no more streams are to begin. What is under way goes on, and so does what crosses this word.
    pub fn leave(&mut self) {
        if !std::mem::replace(&mut self.leaving, true) && self.end == End::Serves {
            self.frame(Kind::GoAway, u32::MAX, &[]);
        }
        self.wake();
    }

    /// Has a link that serves end, on which nothing is under way: whoever opens streams had the time to leave.
    pub fn close(&mut self) {
        self.closing = true;
        self.wake();
    }

    fn wake(&mut self) {
        wake(&mut self.driver);
    }

    fn frame(&mut self, kind: Kind, stream: u32, payload: &[u8]) {
        if self.gone {
            return;
        }
        let out = self.out.octets();
        out.extend_from_slice(&Header { kind, stream, length: payload.len() }.octets());
        out.extend_from_slice(payload);
        self.wake();
    }

    /// Has those write who wait longest, as many as there is room for.
    fn give_turns(&mut self) {
        if self.turns.hand_out(&mut self.streams, self.out.waiting(), usize::MAX) {
            self.wake();
        }
    }

    /// A stream does not want to write for now.
    fn give_up_turn(&mut self, stream: u32) {
        if self.turns.give_up(stream) {
            self.give_turns();
        }
    }

    /// Takes in what came. An error ends the link: the peer does what it may not.
    pub fn receive(&mut self, mut bytes: &[u8]) -> Result<(), Violation> {
        while !bytes.is_empty() {
            if let Some((stream, left)) = self.coming {
                let n = left.min(bytes.len());
                self.data(stream, &bytes[..n]);
                bytes = &bytes[n..];
                self.coming = (n < left).then_some((stream, left - n));
                continue;
            }
            let want = if self.filled < HEADER { HEADER } else { HEADER + self.header()?.length };
            let n = (want - self.filled).min(bytes.len());
            self.part[self.filled..self.filled + n].copy_from_slice(&bytes[..n]);
            self.filled += n;
            bytes = &bytes[n..];
            if self.filled < HEADER {
                return Ok(());
            }
            let header = self.header()?;
            if header.kind == Kind::Data {
                self.may_come(header)?;
                self.coming = Some((header.stream, header.length));
                self.filled = 0;
            } else if self.filled == HEADER + header.length {
                let part = self.part;
                self.filled = 0;
                self.control(header, &part[HEADER..HEADER + header.length])?;
            }
        }
        Ok(())
    }

    fn header(&self) -> Result<Header, Violation> {
        let mut octets = [0; HEADER];
        octets.copy_from_slice(&self.part[..HEADER]);
        Header::read(octets)
    }

    /// A frame is about a stream that is or was open.
    fn is_known(&self, header: Header) -> Result<(), Violation> {
        if header.stream <= self.newest { Ok(()) } else { Err(Violation::Stream(header.kind, header.stream)) }
    }

    /// Whether data may come, before any of it is taken in.
    fn may_come(&mut self, header: Header) -> Result<(), Violation> {
        self.is_known(header)?;
        let Some(half) = self.streams.get_mut(&header.stream) else {
            // Read over; nobody may send without end.
            self.over = self.over.checked_sub(header.length as u64).ok_or(Violation::Credit(header.stream))?;
            return Ok(());
        };
        if half.ended {
            return Err(Violation::AfterEnd(header.stream));
        }
        if half.window.takes(header.length as u32) { Ok(()) } else { Err(Violation::Credit(header.stream)) }
    }

    fn data(&mut self, stream: u32, bytes: &[u8]) {
        if let Some(half) = self.streams.get_mut(&stream)
            && half.broken.is_none()
        {
            half.push(bytes);
        }
    }

    fn control(&mut self, header: Header, payload: &[u8]) -> Result<(), Violation> {
        let stream = header.stream;
        match header.kind {
            Kind::Open => return self.accept(stream, payload[0]),
            Kind::GoAway => {
                if self.end == End::Serves || stream > self.newest && stream != u32::MAX {
                    return Err(Violation::Stream(Kind::GoAway, stream));
                }
                self.leaving = true;
                for (_, half) in self.streams.iter_mut().filter(|(number, _)| **number > stream) {
                    half.break_off(Cause::Refused);
                }
                self.wake();
                return Ok(());
            }
            Kind::Ping => {
                self.frame(Kind::Pong, 0, &[]);
                return Ok(());
            }
            Kind::Pong => return Ok(()),
            Kind::Data | Kind::Fin | Kind::Stop | Kind::Reset | Kind::Credit => self.is_known(header)?,
        }
        let Some(half) = self.streams.get_mut(&stream) else { return Ok(()) };
        match header.kind {
            Kind::Fin => {
                if std::mem::replace(&mut half.ended, true) {
                    return Err(Violation::AfterEnd(stream));
                }
                wake(&mut half.reader);
            }
            Kind::Stop => {
                half.stopped = true;
                wake(&mut half.writer);
            }
            Kind::Reset => half.break_off(Cause::of(payload[0])),
            Kind::Credit => {
                let more = u32::from_be_bytes([payload[0], payload[1], payload[2], payload[3]]);
                half.credit = half.credit.checked_add(more).filter(|_| more > 0).ok_or(Violation::Credit(stream))?;
                wake(&mut half.writer);
            }
            _ => {}
        }
        Ok(())
    }

    fn accept(&mut self, stream: u32, protocol: u8) -> Result<(), Violation> {
        if self.end == End::Opens || stream <= self.newest {
            return Err(Violation::Stream(Kind::Open, stream));
        }
        let protocol = protocol_of(protocol)?;
        self.newest = stream;
        if self.closing || self.streams.len() >= MAX_SERVED {
            self.over += u64::from(WINDOW);
            self.frame(Kind::Reset, stream, &[Cause::Refused as u8]);
            return Ok(());
        }
        self.streams.insert(stream, Half::new());
        self.fresh.push((stream, protocol));
        Ok(())
    }

    // What a pipe asks.

    fn half(&mut self, stream: u32) -> &mut Half {
        self.streams.get_mut(&stream).expect(HAS_PIPE)
    }

    /// Ready as soon as a read would give bytes, the end, or an error.
    pub fn poll_readable(&mut self, stream: u32, cx: &Context<'_>) -> Poll<io::Result<()>> {
        let half = self.half(stream);
        if !half.came.is_empty() || half.ended || half.broken.is_some() {
            return Poll::Ready(Ok(()));
        }
        note(&mut half.reader, cx);
        Poll::Pending
    }

    /// Whether everything was read that comes; an error if it broke off before.
    fn poll_ended(&mut self, stream: u32, cx: &Context<'_>) -> Poll<io::Result<()>> {
        let half = self.half(stream);
        if let Some(cause) = half.broken {
            return Poll::Ready(Err(Half::error(cause)));
        }
        if half.ended {
            return Poll::Ready(Ok(()));
        }
        note(&mut half.reader, cx);
        Poll::Pending
    }

    /// Gives the next bytes, as they lie; none at the end.
    pub fn poll_chunk(&mut self, stream: u32, cx: &Context<'_>) -> Poll<io::Result<Option<BytesMut>>> {
        let half = self.half(stream);
        if let Some(chunk) = half.came.pop() {
            self.took(stream, chunk.len());
            return Poll::Ready(Ok(Some(chunk)));
        }
        self.poll_ended(stream, cx).map_ok(|()| None)
    }

    /// Puts the next bytes into `space`; how many, 0 at the end.
    pub fn poll_read(&mut self, stream: u32, cx: &Context<'_>, space: &mut [u8]) -> Poll<io::Result<usize>> {
        let filled = self.half(stream).came.read(space);
        if filled > 0 {
            self.took(stream, filled);
            return Poll::Ready(Ok(filled));
        }
        self.poll_ended(stream, cx).map_ok(|()| 0)
    }

    /// So much was read.
    fn took(&mut self, stream: u32, n: usize) {
        if self.half(stream).window.passes(n as u32) {
            self.give_back(stream);
            self.wake();
        }
    }

    /// Gives what was read back as credit, and more of it to who uses it up. It goes out with the next write.
    fn give_back(&mut self, stream: u32) {
        let half = self.streams.get_mut(&stream).expect(HAS_PIPE);
        if half.ended {
            return;
        }
        let credit = half.window.give_back(half.came.octets(), &mut self.extra);
        self.frame(Kind::Credit, stream, &credit.to_be_bytes());
    }

    /// Takes some of the bytes, as far as credit and room allow.
    pub fn poll_write(&mut self, stream: u32, cx: &Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let all: usize = bufs.iter().map(|b| b.len()).sum();
        if all == 0 {
            return Poll::Ready(self.half(stream).may_write().map(|()| 0));
        }
        let n = all.min(ready!(self.poll_room(stream, cx))?);
        self.put(stream, bufs, n);
        self.wrote(stream, n);
        Poll::Ready(Ok(n))
    }

    /// Has `read` put bytes where they go out from, as far as credit and room allow, so that they are copied nowhere; what it came to. Pending: it was not asked yet.
    pub fn poll_fill(
        &mut self,
        stream: u32,
        cx: &mut Context<'_>,
        read: impl FnOnce(&mut Context<'_>, &mut Limit<&mut Vec<u8>>) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<Poll<io::Result<usize>>>> {
        let room = ready!(self.poll_room(stream, cx))?.min(MAX_PAYLOAD);
        let out = self.out.octets();
        let at = out.len();
        out.reserve(HEADER + room);
        out.extend_from_slice(&[0; HEADER]);
        let came = read(cx, &mut out.limit(room));
        let length = out.len() - at - HEADER;
        if length == 0 {
            self.out.truncate(at);
            // A turn that it had is another's: nothing goes out that would have the turns go on.
            self.give_turns();
            return Poll::Ready(Ok(came));
        }
        out[at..at + HEADER].copy_from_slice(&Header { kind: Kind::Data, stream, length }.octets());
        self.wrote(stream, length);
        Poll::Ready(Ok(came))
    }

    fn wrote(&mut self, stream: u32, n: usize) {
        let half = self.half(stream);
        half.credit -= n as u32;
        if half.window.is_worth_adding() {
            // On the way anyway: who asks and answers never writes for the credit's sake.
            self.give_back(stream);
        }
        self.wake();
    }

    /// How much may be written now: something, as soon as credit and turn allow.
    fn poll_room(&mut self, stream: u32, cx: &Context<'_>) -> Poll<io::Result<usize>> {
        let half = self.streams.get_mut(&stream).expect(HAS_PIPE);
        if let Err(e) = half.may_write() {
            self.give_up_turn(stream);
            return Poll::Ready(Err(e));
        }
        if half.credit == 0 {
            note(&mut half.writer, cx);
            self.give_up_turn(stream);
            return Poll::Pending;
        }
        match self.turns.ask(stream, self.out.waiting(), usize::MAX) {
            Some(room) => Poll::Ready(Ok(room.min(half.credit as usize))),
            None => {
                note(&mut half.writer, cx);
                Poll::Pending
            }
        }
    }

    /// Puts the first `n` bytes into frames.
    fn put(&mut self, stream: u32, bufs: &[IoSlice<'_>], n: usize) {
        let out = self.out.octets();
        let mut left = n;
        let mut in_frame = 0;
        for buf in bufs {
            let mut buf = &buf[..buf.len().min(left)];
            while !buf.is_empty() {
                if in_frame == 0 {
                    in_frame = left.min(MAX_PAYLOAD);
                    out.extend_from_slice(&Header { kind: Kind::Data, stream, length: in_frame }.octets());
                }
                let piece = buf.len().min(in_frame);
                out.extend_from_slice(&buf[..piece]);
                buf = &buf[piece..];
                in_frame -= piece;
                left -= piece;
            }
        }
    }

    /// Says that no more bytes follow.
    pub fn finish(&mut self, stream: u32) -> io::Result<()> {
        let half = self.half(stream);
        if let Some(cause) = half.broken {
            return Err(Half::error(cause));
        }
        if !std::mem::replace(&mut half.finished, true) {
            self.frame(Kind::Fin, stream, &[]);
            self.give_up_turn(stream);
        }
        Ok(())
    }

    /// Breaks a stream off while others use it: they see an error, and the peer a reset.
    pub fn cut(&mut self, stream: u32) {
        let half = self.half(stream);
        if half.broken.is_none() {
            half.break_off(Cause::Reset);
            half.came.clear();
            self.frame(Kind::Reset, stream, &[Cause::Reset as u8]);
            self.give_up_turn(stream);
        }
    }

    /// Forgets a stream whose pipe is gone. The peer sees a reset, with its `cause`, unless all was said: what was not ended properly is cut short
    /// (Invariant 7).
    pub fn forget(&mut self, stream: u32, cause: Option<Cause>) {
        let Some(half) = self.streams.remove(&stream) else { return };
        self.give_up_turn(stream);
        half.window.ends(WINDOW, &mut self.extra);
        self.over += u64::from(half.window.allowed());
        if half.broken.is_none() {
            match cause {
                None if half.finished && half.ended => {}
                None if half.finished => self.frame(Kind::Stop, stream, &[]),
                _ => self.frame(Kind::Reset, stream, &[cause.unwrap_or(Cause::Reset) as u8]),
            }
        }
        if self.leaving && self.streams.is_empty() {
            self.wake();
        }
    }
}

impl Framing for Session {
    fn register(&mut self, cx: &Context<'_>) {
        note(&mut self.driver, cx);
        if self.turns.pass(self.out.waiting()) {
            self.give_turns();
        }
    }

    fn outgoing(&self) -> &[u8] {
        self.out.rest()
    }

    fn sent(&mut self, n: usize) {
        self.out.sent(n);
        if self.out.waiting() < LOW {
            self.give_turns();
        }
    }

    fn is_choked(&self) -> bool {
        self.out.waiting() > CHOKED
    }

    fn rest(&mut self) {
        if self.streams.is_empty() {
            self.streams.shrink_to(8);
        }
    }

    fn is_over(&self) -> bool {
        self.streams.is_empty() && (self.closing || self.leaving && self.end == End::Opens)
    }

    fn hush(&mut self) {
        self.gone = true;
    }

    fn hear(&mut self) {
        self.sure = self.newest;
    }

    fn is_unsure(&self) -> bool {
        self.newest > self.sure && self.streams.keys().any(|stream| *stream > self.sure)
    }

    fn ping(&mut self) {
        self.frame(Kind::Ping, 0, &[]);
    }

    fn end(&mut self) {
        self.gone = true;
        // What was ended both ways by then is whole.
        for half in self.streams.values_mut().filter(|half| !(half.ended && (half.finished || half.stopped))) {
            half.break_off(Cause::Reset);
        }
        self.out = Outgoing::default();
    }

    fn give_up_unsure(&mut self) {
        let unsure: Vec<u32> = self.streams.keys().copied().filter(|stream| *stream > self.sure).collect();
        for stream in unsure {
            self.cut(stream);
        }
    }
}

#[cfg(test)]
mod tests;
