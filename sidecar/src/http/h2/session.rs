//! One end of an HTTP/2 connection, without its socket (RFC 9113): frames in, frames out, and what each stream may do. It never waits and reads no clock.
//!
//! - **Credit** goes back when what came is passed on: who reads slowly stops its own stream, and the connection only with what all of its streams may hold.
//! - **Turns**: what is to go out waits in one buffer. Where it is full, or the peer gives no credit, writers queue up ([`Turns`]).
//! - **A stream is forgotten** when its last handle is dropped; what still comes for it is read over.
//! - **Sections are read as they come**, whatever becomes of their streams: those after them rest on the same table.

use std::mem::take;
use std::task::{Context, Waker};

use super::frame::{self, Code, Header, PREFACE, Violation};
use super::hpack::Decoder;
use super::section::{ADDED, Fault, MAX_SIZE, Seen};
use super::state::{Broken, State};
use crate::http::head::RequestHead;
use crate::multiplex::{CHOKED, Extra, Framing, LOW, Outgoing, Streams, Turns, Window, note, wake};

mod handle;
mod receive;

/// The flow-control window of a stream as it begins, in bytes.
pub const STREAM_WINDOW: u32 = 256 * 1024;
/// The flow-control window of a connection with a program, in bytes.
pub const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// Streams that a sidecar has on one connection before it opens another.
pub const USUAL_STREAMS: usize = 100;
/// The most that all streams between two sidecars may be granted beyond [`STREAM_WINDOW`], in bytes.
const EXTRA: u32 = 8 * 1024 * 1024;
/// The windows before anything is said, in bytes (RFC 9113, section 6.9.2).
const FIRST_WINDOW: u32 = 65_535;
/// Streams that a client may have open at once.
pub const MAX_CONCURRENT: usize = 256;
/// Streams that a server is taken to serve at once until it says.
const USUAL_CONCURRENT: u32 = 100;
/// Frames that a field section may come in.
const MAX_FRAGMENTS: usize = 64;
/// How often a peer may do what leads to nothing (end streams as soon as they begin, CVE-2023-44487; have us end them, CVE-2025-8671; set what is set) more than it has streams that come
/// to their end.
const MAX_FAULTS: i32 = 1_000;
/// The last number of a stream.
const LAST: u32 = u32::MAX >> 1;
/// What a ping says whose answer shows that the peer has seen our word that we go.
const FAREWELL: [u8; 8] = *b"farewell";

/// Which of the two ends it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// It opens streams: the client's.
    Asks,
    /// It serves them.
    Serves,
}

/// Who the other end is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum With {
    /// A program, or whoever is outside of the mesh.
    Program,
    /// A peer's sidecar, for many of its programs' callers: none that reads slowly holds up others, and the connection's window is never what stops a stream.
    Sidecar,
}

/// How far an end has gone with its going.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Leaving {
    No,
    /// A server has said so, and serves what crosses its word.
    Announced,
    /// It takes, or opens, no more streams.
    Said,
}

/// Data that is coming.
struct Coming {
    stream: u32,
    left: usize,
    padding: usize,
    /// The next octet says how much of it is padding.
    is_padded: bool,
    ends: bool,
}

/// A field section of which more is to come.
struct Unfinished {
    stream: u32,
    ends: bool,
    octets: Vec<u8>,
    fragments: usize,
}

/// See the module.
#[expect(clippy::struct_excessive_bools, reason = "what each end has said comes by itself")]
pub struct Session {
    end: End,
    streams: Streams<State>,
    /// The highest number that was used.
    newest: u32,
    /// The newest stream when something came last.
    sure: u32,
    /// Streams that are open, as the peer counts.
    open: usize,
    decoder: Decoder,
    seen: Seen,
    /// The most octets of a section.
    longest: usize,
    /// The peer's decoder knows that no table is kept.
    is_tableless: bool,
    /// How much of the preface is still to come.
    preface: usize,
    /// The peer has said its settings.
    greeted: bool,
    /// A frame that is not data, as far as it came.
    part: Vec<u8>,
    coming: Option<Coming>,
    unfinished: Option<Unfinished>,
    /// What the peer may still send, over all streams.
    window: Window,
    /// What may be granted beyond the streams' windows' beginning.
    extra: Extra,
    out: Outgoing,
    /// Where the header of the last frame stands, and whose data it has.
    last: Option<(u32, usize)>,
    /// What we may still send, over all streams.
    credit: i64,
    /// What we may send on a stream that begins.
    initial: i64,
    /// Streams that the peer serves at once.
    most: u32,
    /// Streams whose writers wait for room, or for credit of the connection.
    turns: Turns,
    /// Who waits until another stream may begin.
    rooms: Vec<Waker>,
    /// So many of them are asked whether they still wait.
    many: usize,
    /// Streams that the peer has opened and nobody serves yet, and those that were refused.
    fresh: Vec<(u32, Result<RequestHead, Fault>)>,
    /// What was done in vain, less what was not.
    faults: i32,
    /// The peer takes CONNECT for other protocols (RFC 8441).
    is_extended: bool,
    leaving: Leaving,
    gone: bool,
    /// Whoever reads and writes the connection.
    driver: Option<Waker>,
}

impl Session {
    pub fn new(end: End, with: With) -> Self {
        let (window, extra) = match with {
            With::Program => (CONNECTION_WINDOW, 0),
            // What all streams may be granted, and as much beside it as is given back at a time.
            With::Sidecar => (USUAL_STREAMS as u32 * STREAM_WINDOW + EXTRA + CONNECTION_WINDOW, EXTRA),
        };
        let mut session = Self {
            end,
            streams: Streams::default(),
            newest: 0,
            sure: 0,
            open: 0,
            decoder: Decoder::default(),
            seen: Seen::default(),
            longest: if with == With::Sidecar { MAX_SIZE + ADDED } else { MAX_SIZE },
            is_tableless: false,
            preface: if end == End::Serves { PREFACE.len() } else { 0 },
            greeted: false,
            part: Vec::new(),
            coming: None,
            unfinished: None,
            window: Window::new(window),
            extra: Extra(extra),
            out: Outgoing::default(),
            last: None,
            credit: FIRST_WINDOW.into(),
            initial: FIRST_WINDOW.into(),
            most: USUAL_CONCURRENT,
            turns: Turns::default(),
            rooms: Vec::new(),
            many: 1_024,
            fresh: Vec::new(),
            faults: 0,
            is_extended: false,
            leaving: Leaving::No,
            gone: false,
            driver: None,
        };
        session.greet(window);
        session
    }

    fn greet(&mut self, window: u32) {
        let own = match self.end {
            End::Asks => (frame::ENABLE_PUSH, 0),
            End::Serves => (frame::MAX_CONCURRENT_STREAMS, MAX_CONCURRENT as u32),
        };
        if self.end == End::Asks {
            self.out.octets().extend_from_slice(PREFACE);
        }
        let all = [own, (frame::INITIAL_WINDOW_SIZE, STREAM_WINDOW), (frame::MAX_HEADER_LIST_SIZE, self.longest as u32)];
        let extended = (self.end == End::Serves).then_some((frame::ENABLE_CONNECT_PROTOCOL, 1));
        let mut payload = Vec::new();
        for (name, value) in all.into_iter().chain(extended) {
            payload.extend_from_slice(&name.to_be_bytes());
            payload.extend_from_slice(&value.to_be_bytes());
        }
        self.frame(frame::SETTINGS, 0, 0, &payload);
        self.frame(frame::WINDOW_UPDATE, 0, 0, &(window - FIRST_WINDOW).to_be_bytes());
    }

    /// Takes no more streams, though the peer has not answered our word that we go.
    pub fn close(&mut self) {
        self.says_farewell();
        self.rouse();
    }

    /// Says which streams were looked at, and that no more are, once.
    fn says_farewell(&mut self) {
        if std::mem::replace(&mut self.leaving, Leaving::Said) != Leaving::Said {
            self.goaway(self.looked_at(), Code::NO_ERROR);
        }
    }

    /// The newest of the streams that the peer has opened.
    fn looked_at(&self) -> u32 {
        if self.end == End::Serves { self.newest } else { 0 }
    }

    /// Whether the peer has said what it is.
    pub fn is_greeted(&self) -> bool {
        self.greeted
    }

    /// Streams that are open, as the peer counts.
    pub fn open(&self) -> usize {
        self.open
    }

    /// Streams that somebody reads or writes: what came for one that the peer has ended takes part of the connection's window until it is read.
    pub fn held(&self) -> usize {
        self.streams.len()
    }

    /// Whether nobody reads or writes a stream.
    pub fn is_idle(&self) -> bool {
        self.streams.is_empty()
    }

    /// Whether a stream has ever begun on it.
    pub fn has_begun(&self) -> bool {
        self.newest > 0
    }

    /// Who waits until a stream may begin.
    pub fn waiters(&self) -> usize {
        self.rooms.len()
    }

    /// Whether another stream may begin. Who takes nothing any more is given nothing new.
    pub fn has_room(&self) -> bool {
        !self.is_closed() && self.open < self.most as usize && self.out.waiting() < CHOKED / 2
    }

    /// Whether no stream begins on it any more.
    pub fn is_closed(&self) -> bool {
        self.gone || self.leaving != Leaving::No || self.newest >= LAST - 1
    }

    /// The requests that have come since the last time, and what was wrong with those that nobody serves.
    pub fn fresh(&mut self) -> Vec<(u32, Result<RequestHead, Fault>)> {
        let mut fresh = take(&mut self.fresh);
        fresh.retain(|(stream, head)| {
            let is_wanted = head.is_err() || self.streams.get(stream).is_some_and(|state| state.broken.is_none());
            if !is_wanted {
                self.forget(*stream);
            }
            is_wanted
        });
        fresh
    }

    /// Says that no more streams are to begin. What is under way goes on; a server serves what crosses its word, too.
    pub fn leave(&mut self) {
        match self.end {
            End::Asks => {
                self.says_farewell();
                self.give_up_room();
            }
            End::Serves if self.leaving == Leaving::No => {
                self.leaving = Leaving::Announced;
                self.goaway(LAST, Code::NO_ERROR);
                self.frame(frame::PING, 0, 0, &FAREWELL);
            }
            End::Serves => {}
        }
        self.rouse();
    }

    /// The peer does what it may not: it is told, and the connection ends.
    pub fn accuse(&mut self, violation: Violation) {
        self.goaway(self.looked_at(), violation.code);
        for state in self.streams.values_mut() {
            state.break_off(Broken::Ours(violation));
        }
        self.leaving = Leaving::Said;
    }

    fn rouse(&mut self) {
        wake(&mut self.driver);
    }

    /// Has those look who wait until a stream may begin.
    fn give_up_room(&mut self) {
        for waker in self.rooms.drain(..) {
            waker.wake();
        }
    }

    fn frame(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        if self.gone {
            return;
        }
        self.last = None;
        let out = self.out.octets();
        out.extend_from_slice(&Header { length: payload.len(), kind, flags, stream }.octets());
        out.extend_from_slice(payload);
        self.rouse();
    }

    fn goaway(&mut self, newest: u32, code: Code) {
        self.frame(frame::GOAWAY, 0, 0, &[newest.to_be_bytes(), code.0.to_be_bytes()].concat());
    }

    fn reset(&mut self, stream: u32, code: Code) {
        self.frame(frame::RST_STREAM, 0, stream, &code.0.to_be_bytes());
    }

    fn insert(&mut self, stream: u32, state: State) {
        self.open += 1;
        let state = State { counts: true, window: Window::new(STREAM_WINDOW), credit: self.initial, ..state };
        self.streams.insert(stream, state);
    }

    /// A stream ends before its time; false where it has ended, or is forgotten.
    fn breaks(&mut self, stream: u32, why: Broken) -> bool {
        let Some(state) = self.streams.get_mut(&stream) else { return false };
        let is_new = state.broken.is_none();
        state.break_off(why);
        self.closes(stream);
        self.give_up_turn(stream);
        is_new
    }

    /// We have said everything on a stream.
    fn finished(&mut self, stream: u32) {
        if let Some(state) = self.streams.get_mut(&stream) {
            state.finished = true;
        }
        self.give_up_turn(stream);
        self.settle(stream);
    }

    /// A stream whose two halves have ended is open no more.
    fn settle(&mut self, stream: u32) {
        if self.streams.get(&stream).is_some_and(|state| state.ended && state.finished) {
            // As much is forgiven later.
            self.faults = (self.faults - 1).max(-MAX_FAULTS);
            self.closes(stream);
        }
    }

    fn closes(&mut self, stream: u32) {
        if let Some(state) = self.streams.get_mut(&stream)
            && take(&mut state.counts)
        {
            self.open -= 1;
            self.give_up_room();
        }
    }

    /// Gives back as credit what was passed on, or read over, where it is worth a frame.
    fn give_back(&mut self, stream: u32, n: u32) {
        if self.window.passes(n) {
            let more = self.window.give_back(0, &mut Extra(0));
            self.frame(frame::WINDOW_UPDATE, 0, 0, &more.to_be_bytes());
        }
        let Some(state) = self.streams.get_mut(&stream).filter(|state| !state.ended && state.broken.is_none()) else { return };
        if state.window.passes(n) {
            let more = state.window.give_back(state.came.octets(), &mut self.extra);
            self.frame(frame::WINDOW_UPDATE, 0, stream, &more.to_be_bytes());
        }
    }

    fn forget(&mut self, stream: u32) {
        self.closes(stream);
        self.give_up_turn(stream);
        let Some(state) = self.streams.remove(&stream) else { return };
        state.window.ends(STREAM_WINDOW, &mut self.extra);
        self.give_back(stream, state.came.octets() as u32 + state.passing);
        if state.broken.is_none() {
            match (state.ended, state.finished) {
                (true, true) => {}
                // The answer is whole, and the rest of the request is not wanted (RFC 9113, section 8.1).
                (false, true) if self.end == End::Serves => self.reset(stream, Code::NO_ERROR),
                _ => self.reset(stream, Code::CANCEL),
            }
        }
        if self.streams.is_empty() {
            self.rouse();
        }
    }

    /// Has those write who wait longest, as many as there is room and credit for.
    fn give_turns(&mut self) {
        let credit = self.credit.max(0) as usize;
        if self.turns.hand_out(&mut self.streams, self.out.waiting(), credit) {
            self.rouse();
        }
    }

    /// A stream does not want to write for now.
    fn give_up_turn(&mut self, stream: u32) {
        if self.turns.give_up(stream) {
            self.give_turns();
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
        if self.out.sent(n) {
            self.last = None;
        }
        if self.out.waiting() < LOW {
            self.give_turns();
            self.give_up_room();
        }
    }

    fn is_choked(&self) -> bool {
        self.out.waiting() > CHOKED
    }

    fn rest(&mut self) {
        if self.streams.is_empty() {
            self.decoder.rest();
            self.streams.shrink_to(8);
            self.part.shrink_to(0);
        }
    }

    fn is_over(&self) -> bool {
        self.leaving == Leaving::Said && self.streams.is_empty()
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
        self.frame(frame::PING, 0, 0, &[0; 8]);
    }

    fn end(&mut self) {
        self.gone = true;
        // What was said both ways by then is whole.
        for state in self.streams.values_mut().filter(|state| !(state.ended && state.finished)) {
            state.break_off(Broken::Lost);
        }
        self.give_up_room();
        self.out = Outgoing::default();
        self.last = None;
    }

    fn give_up_unsure(&mut self) {
        let unsure: Vec<u32> = self.streams.keys().copied().filter(|stream| *stream > self.sure).collect();
        for stream in unsure {
            if self.breaks(stream, Broken::Lost) {
                self.reset(stream, Code::CANCEL);
            }
        }
    }
}

#[cfg(test)]
mod tests;
