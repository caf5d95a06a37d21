//! What comes: frames, what they mean to their streams, and what a peer may not do.

use std::mem::take;

use super::{Coming, End, FAREWELL, LAST, Leaving, MAX_CONCURRENT, MAX_FAULTS, MAX_FRAGMENTS, Session, Unfinished};
use crate::http::h2::frame::{self, Code, HEADER, Header, MAX_PAYLOAD, MAX_WINDOW, PREFACE, Violation};
use crate::http::h2::hpack::Invalid;
use crate::http::h2::section::{self, Fault, Section};
use crate::http::h2::state::{Broken, State};
use crate::http::head::ResponseHead;
use crate::multiplex::wake;

impl Session {
    /// Takes in what came. An error ends the connection: the peer does what it may not.
    pub fn receive(&mut self, mut bytes: &[u8]) -> Result<(), Violation> {
        while !bytes.is_empty() {
            if self.preface > 0 {
                let n = self.preface.min(bytes.len());
                let at = PREFACE.len() - self.preface;
                if bytes[..n] != PREFACE[at..at + n] {
                    return Err(Violation::protocol("it does not begin as HTTP/2 does"));
                }
                self.preface -= n;
                bytes = &bytes[n..];
            } else if let Some(coming) = self.coming.take() {
                bytes = self.data(coming, bytes)?;
            } else if let (true, Some((header, rest))) = (self.part.is_empty(), bytes.split_first_chunk()) {
                bytes = self.begin_frame(Header::read(header), rest, bytes)?;
            } else {
                bytes = self.collect(bytes)?;
            }
            if self.faults > MAX_FAULTS {
                return Err(Violation::new(Code::ENHANCE_YOUR_CALM, "there is much to do for it, and all of it in vain"));
            }
        }
        Ok(())
    }

    /// A frame of which the header is here, and perhaps the rest, which stands behind it in `bytes`.
    fn begin_frame<'a>(&mut self, header: Header, rest: &'a [u8], bytes: &'a [u8]) -> Result<&'a [u8], Violation> {
        self.may_come(header)?;
        if header.kind == frame::DATA {
            self.begin_data(header)?;
            return Ok(rest);
        }
        let Some((payload, rest)) = rest.split_at_checked(header.length) else {
            self.part.extend_from_slice(bytes);
            return Ok(&[]);
        };
        self.whole(header, payload)?;
        Ok(rest)
    }

    /// More of a frame whose beginning came before.
    fn collect<'a>(&mut self, mut bytes: &'a [u8]) -> Result<&'a [u8], Violation> {
        let mut header = None;
        loop {
            let want = header.map_or(HEADER, |h: Header| HEADER + h.length);
            let n = want.saturating_sub(self.part.len()).min(bytes.len());
            self.part.extend_from_slice(&bytes[..n]);
            bytes = &bytes[n..];
            let Some(begun) = self.part.first_chunk().filter(|_| self.part.len() >= want) else { return Ok(bytes) };
            if let Some(header) = header {
                let mut part = take(&mut self.part);
                self.whole(header, &part[HEADER..])?;
                part.clear();
                self.part = part;
                return Ok(bytes);
            }
            let read = Header::read(begun);
            self.may_come(read)?;
            if read.kind == frame::DATA {
                self.part.clear();
                self.begin_data(read)?;
                return Ok(bytes);
            }
            header = Some(read);
        }
    }

    /// Whether a frame may come now, before any of its payload is kept.
    fn may_come(&self, header: Header) -> Result<(), Violation> {
        if header.length > MAX_PAYLOAD {
            return Err(Violation::new(Code::FRAME_SIZE_ERROR, "a frame is longer than it may be"));
        }
        if !self.greeted && (header.kind != frame::SETTINGS || header.has(frame::ACK)) {
            return Err(Violation::protocol("its first frame is not SETTINGS"));
        }
        let goes_on = self.unfinished.as_ref().map(|u| u.stream);
        if goes_on != (header.kind == frame::CONTINUATION).then_some(header.stream) {
            return Err(Violation::protocol("a field section is not continued, or there is none"));
        }
        let is_of_connection = matches!(header.kind, frame::SETTINGS | frame::PING | frame::GOAWAY);
        let is_of_stream =
            matches!(header.kind, frame::DATA | frame::HEADERS | frame::PRIORITY | frame::RST_STREAM | frame::CONTINUATION);
        if is_of_connection && header.stream != 0 || is_of_stream && header.stream == 0 {
            return Err(Violation::protocol("a frame of a stream is the connection's, or the other way round"));
        }
        // Streams that have not begun: only their opener may speak of them, in HEADERS and PRIORITY.
        let is_begun = header.stream <= self.newest && header.stream % 2 == 1;
        let needs_one = matches!(header.kind, frame::DATA | frame::RST_STREAM | frame::WINDOW_UPDATE)
            || header.kind == frame::HEADERS && self.end == End::Asks;
        if needs_one && header.stream != 0 && !is_begun {
            return Err(Violation::protocol("a frame is about a stream that has not begun"));
        }
        Ok(())
    }

    fn begin_data(&mut self, header: Header) -> Result<(), Violation> {
        let length = header.length as u32;
        let flow = |why| Violation::new(Code::FLOW_CONTROL_ERROR, why);
        if !self.window.takes(length) {
            return Err(flow("it sends more than the connection's window"));
        }
        let mut fault = None;
        if let Some(state) = self.streams.get_mut(&header.stream).filter(|state| state.broken.is_none()) {
            if !state.window.takes(length) {
                fault = Some(flow("it sends more than the stream's window"));
            }
            if state.ended {
                fault = Some(Violation::new(Code::STREAM_CLOSED, "data comes after the end"));
            } else if self.end == End::Asks && !state.has_head {
                fault = Some(Violation::protocol("data comes before the head"));
            }
        }
        if let Some(fault) = fault {
            self.refuse(header.stream, fault);
        }
        let (is_padded, ends) = (header.has(frame::PADDED), header.has(frame::END_STREAM));
        if is_padded && header.length == 0 {
            return Err(Violation::new(Code::FRAME_SIZE_ERROR, "the length of the padding is missing"));
        }
        let coming = Coming { stream: header.stream, left: header.length, padding: 0, is_padded, ends };
        if header.length > 0 {
            self.coming = Some(coming);
        } else if ends {
            self.ended(header.stream);
        }
        Ok(())
    }

    /// Data of a frame; gives what stands behind it.
    fn data<'a>(&mut self, mut coming: Coming, mut bytes: &'a [u8]) -> Result<&'a [u8], Violation> {
        if take(&mut coming.is_padded) {
            coming.padding = bytes[0].into();
            coming.left -= 1;
            coming.left =
                coming.left.checked_sub(coming.padding).ok_or(Violation::protocol("the padding is longer than its frame"))?;
            bytes = &bytes[1..];
            // Nobody reads it.
            self.give_back(coming.stream, coming.padding as u32 + 1);
        }
        let n = coming.left.min(bytes.len());
        if n > 0 {
            self.push(coming.stream, &bytes[..n]);
        }
        coming.left -= n;
        bytes = &bytes[n..];
        let n = if coming.left == 0 { coming.padding.min(bytes.len()) } else { 0 };
        coming.padding -= n;
        if coming.left + coming.padding > 0 {
            self.coming = Some(coming);
        } else if coming.ends {
            self.ended(coming.stream);
        }
        Ok(&bytes[n..])
    }

    fn push(&mut self, stream: u32, bytes: &[u8]) {
        let length = bytes.len() as u32;
        let Some(state) = self.streams.get_mut(&stream).filter(|state| state.broken.is_none()) else {
            return self.give_back(stream, length);
        };
        if let Some(expected) = &mut state.expected {
            let Some(left) = expected.checked_sub(length.into()) else {
                self.refuse(stream, Violation::protocol("there is more content than was announced"));
                return self.give_back(stream, length);
            };
            *expected = left;
        }
        state.came.push(bytes);
        wake(&mut state.reader);
    }

    /// The peer has said everything on a stream.
    fn ended(&mut self, stream: u32) {
        let Some(state) = self.streams.get_mut(&stream).filter(|state| state.broken.is_none()) else { return };
        if state.expected.is_some_and(|left| left > 0) {
            return self.refuse(stream, Violation::protocol("there is less content than was announced"));
        }
        state.ended = true;
        wake(&mut state.reader);
        self.settle(stream);
    }

    /// A whole frame that is not data.
    fn whole(&mut self, header: Header, payload: &[u8]) -> Result<(), Violation> {
        let stream = header.stream;
        let size = |why| Violation::new(Code::FRAME_SIZE_ERROR, why);
        match header.kind {
            frame::HEADERS => {
                let octets = fragment(header, payload)?;
                let ends = header.has(frame::END_STREAM);
                if header.has(frame::END_HEADERS) {
                    return self.section(stream, ends, octets);
                }
                self.unfinished = Some(Unfinished { stream, ends, octets: octets.to_vec(), fragments: 1 });
            }
            frame::CONTINUATION => {
                let mut unfinished = self.unfinished.take().ok_or(Violation::protocol("nothing is to be continued"))?;
                unfinished.octets.extend_from_slice(payload);
                unfinished.fragments += 1;
                if header.has(frame::END_HEADERS) {
                    return self.section(stream, unfinished.ends, &unfinished.octets);
                }
                if unfinished.octets.len() > self.longest || unfinished.fragments > MAX_FRAGMENTS {
                    return Err(Violation::new(Code::ENHANCE_YOUR_CALM, "a field section has no end"));
                }
                self.unfinished = Some(unfinished);
            }
            frame::PRIORITY if payload.len() != 5 => return Err(size("PRIORITY is not five octets long")),
            frame::RST_STREAM => {
                let code = Code(frame::number(payload, "RST_STREAM is not four octets long")?);
                self.was_reset(stream, code);
            }
            frame::SETTINGS if header.has(frame::ACK) && !payload.is_empty() => {
                return Err(size("SETTINGS is acknowledged with more"));
            }
            frame::SETTINGS if header.has(frame::ACK) => {}
            frame::SETTINGS if !payload.len().is_multiple_of(6) => return Err(size("SETTINGS is not made of settings")),
            frame::SETTINGS => {
                for (name, value) in frame::settings(payload) {
                    self.set(name, value)?;
                }
                // Each would touch every stream: the last one counts.
                if let Some((_, value)) = frame::settings(payload).filter(|(name, _)| *name == frame::INITIAL_WINDOW_SIZE).last()
                {
                    self.set_initial(value)?;
                }
                let is_first = !std::mem::replace(&mut self.greeted, true);
                self.frame(frame::SETTINGS, frame::ACK, 0, &[]);
                self.give_up_room();
                self.faults += i32::from(!is_first);
            }
            frame::PUSH_PROMISE => return Err(Violation::protocol("it promises what it may not")),
            frame::PING => {
                let said: [u8; 8] = payload.try_into().map_err(|_| size("PING is not eight octets long"))?;
                if !header.has(frame::ACK) {
                    self.frame(frame::PING, frame::ACK, 0, &said);
                } else if said == FAREWELL && self.leaving == Leaving::Announced {
                    self.says_farewell();
                }
            }
            frame::GOAWAY => {
                let last = payload.first_chunk().filter(|_| payload.len() >= 8).ok_or(size("GOAWAY is too short"))?;
                self.left(u32::from_be_bytes(*last) & LAST);
            }
            frame::WINDOW_UPDATE => {
                let more = frame::number(payload, "WINDOW_UPDATE is not four octets long")? & LAST;
                self.credited(stream, more)?;
            }
            // What nobody knows means nothing (RFC 9113, section 5.5); what is known of PRIORITY means nothing any more.
            _ => {}
        }
        Ok(())
    }

    fn was_reset(&mut self, stream: u32, code: Code) {
        let Some(state) = self.streams.get(&stream) else { return };
        self.faults += i32::from(state.handles == 0);
        self.breaks(stream, Broken::Reset(code));
    }

    fn set(&mut self, name: u16, value: u32) -> Result<(), Violation> {
        match name {
            frame::ENABLE_PUSH if value > 1 => return Err(Violation::protocol("ENABLE_PUSH is neither 0 nor 1")),
            frame::MAX_CONCURRENT_STREAMS => self.most = value,
            frame::ENABLE_CONNECT_PROTOCOL => self.is_extended = value == 1,
            frame::INITIAL_WINDOW_SIZE if i64::from(value) > MAX_WINDOW => {
                return Err(Violation::new(Code::FLOW_CONTROL_ERROR, "a window is too large"));
            }
            frame::MAX_FRAME_SIZE if !(MAX_PAYLOAD as u32..1 << 24).contains(&value) => {
                return Err(Violation::protocol("MAX_FRAME_SIZE is out of its range"));
            }
            _ => {}
        }
        Ok(())
    }

    /// What may be sent on streams that begin; those that have begun get, or lose, the difference (RFC 9113, section 6.9.2).
    fn set_initial(&mut self, value: u32) -> Result<(), Violation> {
        let more = i64::from(value) - self.initial;
        self.initial = value.into();
        for state in self.streams.values_mut() {
            state.credit += more;
            if state.credit > MAX_WINDOW {
                return Err(Violation::new(Code::FLOW_CONTROL_ERROR, "a window is too large"));
            }
            wake(&mut state.writer);
        }
        Ok(())
    }

    /// The peer opens, or serves, no streams above `last`.
    fn left(&mut self, last: u32) {
        if self.end == End::Serves {
            return;
        }
        self.leaving = Leaving::Said;
        let unseen: Vec<u32> = self.streams.keys().copied().filter(|stream| *stream > last).collect();
        for stream in unseen {
            self.breaks(stream, Broken::Unseen);
        }
        self.give_up_room();
        self.rouse();
    }

    fn credited(&mut self, stream: u32, more: u32) -> Result<(), Violation> {
        let (zero, flow) = ("WINDOW_UPDATE says nothing", "a window is too large");
        if stream == 0 {
            if more == 0 {
                return Err(Violation::protocol(zero));
            }
            self.credit += i64::from(more);
            if self.credit > MAX_WINDOW {
                return Err(Violation::new(Code::FLOW_CONTROL_ERROR, flow));
            }
            self.give_turns();
            return Ok(());
        }
        let Some(state) = self.streams.get_mut(&stream).filter(|state| state.broken.is_none()) else { return Ok(()) };
        state.credit += i64::from(more);
        wake(&mut state.writer);
        if more == 0 {
            self.refuse(stream, Violation::protocol(zero));
        } else if state.credit > MAX_WINDOW {
            self.refuse(stream, Violation::new(Code::FLOW_CONTROL_ERROR, flow));
        }
        Ok(())
    }

    /// A whole field section.
    fn section(&mut self, stream: u32, ends: bool, octets: &[u8]) -> Result<(), Violation> {
        let is_new = self.end == End::Serves && stream > self.newest;
        let is_full = self.open >= MAX_CONCURRENT || self.streams.len() >= 2 * MAX_CONCURRENT || self.leaving == Leaving::Said;
        let is_wanted = if is_new { !is_full } else { self.streams.contains_key(&stream) };
        let section =
            section::read(&mut self.decoder, octets, &mut self.seen, is_wanted.then_some(self.longest)).map_err(|e| match e {
                Invalid::Large => Violation::new(Code::ENHANCE_YOUR_CALM, "a field section is far too large"),
                _ => Violation::new(Code::COMPRESSION_ERROR, "a field section cannot be read"),
            })?;
        if is_new {
            if stream.is_multiple_of(2) {
                return Err(Violation::protocol("a client opens a stream with a server's number"));
            }
            self.newest = stream;
            if is_full {
                // What we have not finished with is not its fault.
                self.faults += i32::from(self.open >= MAX_CONCURRENT);
                self.reset(stream, Code::REFUSED_STREAM);
                return Ok(());
            }
            self.request(stream, ends, section);
            return Ok(());
        }
        let Some(state) = self.streams.get_mut(&stream).filter(|state| state.broken.is_none()) else { return Ok(()) };
        let checked = if state.ended {
            Err(Violation::new(Code::STREAM_CLOSED, "fields come after the end"))
        } else if state.has_head {
            section_of(section).and_then(|section| trailers(state, section, ends).map_err(Violation::protocol))
        } else {
            section_of(section).and_then(|section| answer(state, section, ends).map_err(Violation::protocol))
        };
        match checked {
            Err(fault) => self.refuse(stream, fault),
            Ok(()) if ends => self.ended(stream),
            Ok(()) => {}
        }
        Ok(())
    }

    /// A request, which is served, or refused and nobody sees it.
    fn request(&mut self, stream: u32, ends: bool, section: Result<Section, Fault>) {
        let length = section.as_ref().ok().and_then(Section::length);
        let head = match section {
            Ok(_) if ends && length.is_some_and(|n| n > 0) => Err(Fault::Malformed("there is less content than was announced")),
            Ok(section) => section.request().map_err(Fault::Malformed),
            Err(fault) => Err(fault),
        };
        match head {
            Ok(_) => self.insert(stream, State { ended: ends, has_head: true, expected: length, ..State::default() }),
            Err(Fault::Malformed(_)) => self.reset(stream, Code::PROTOCOL_ERROR),
            Err(Fault::TooLarge) => {
                // The caller is told, as over HTTP/1.1 (RFC 6585, section 5).
                self.put_section(stream, true, |out| section::put_response(out, &ResponseHead::new(431)));
                if !ends {
                    self.reset(stream, Code::NO_ERROR);
                }
            }
        }
        self.faults += i32::from(head.is_err());
        self.fresh.push((stream, head));
    }

    /// A stream breaks the protocol, and ends.
    fn refuse(&mut self, stream: u32, fault: Violation) {
        if self.breaks(stream, Broken::Ours(fault)) {
            tracing::debug!(stream, "stream ended: {fault}");
        }
        self.faults += 1;
        self.reset(stream, fault.code);
    }
}

/// What of `HEADERS` is the section.
fn fragment(header: Header, mut payload: &[u8]) -> Result<&[u8], Violation> {
    let short = || Violation::new(Code::FRAME_SIZE_ERROR, "HEADERS is too short");
    let mut padding = 0;
    if header.has(frame::PADDED) {
        let (first, rest) = payload.split_first().ok_or_else(short)?;
        (padding, payload) = (usize::from(*first), rest);
    }
    if header.has(frame::PRIORITIZED) {
        payload = payload.get(5..).ok_or_else(short)?;
    }
    let length = payload.len().checked_sub(padding).ok_or(Violation::protocol("the padding is longer than its frame"))?;
    Ok(&payload[..length])
}

fn section_of(section: Result<Section, Fault>) -> Result<Section, Violation> {
    section.map_err(|fault| match fault {
        Fault::Malformed(why) => Violation::protocol(why),
        Fault::TooLarge => Violation::new(Code::ENHANCE_YOUR_CALM, "a field section is too large"),
    })
}

/// An answer's head. Informational ones say nothing that anybody waits for.
fn answer(state: &mut State, section: Section, ends: bool) -> Result<(), &'static str> {
    let length = section.length();
    let head = section.response()?;
    if head.is_informational() {
        return if ends { Err("an informational answer ends the stream") } else { Ok(()) };
    }
    // Where there is no content, what is said of its length is not about this message.
    state.expected = length.filter(|_| !(state.asks_head || matches!(head.status, 204 | 304)));
    if ends && state.expected.is_some_and(|left| left > 0) {
        return Err("there is less content than was announced");
    }
    state.has_head = true;
    state.head = Some(Box::new(head));
    wake(&mut state.reader);
    Ok(())
}

fn trailers(state: &mut State, section: Section, ends: bool) -> Result<(), &'static str> {
    if !ends {
        return Err("fields come after the head, and are no trailers");
    }
    let fields = section.trailers()?;
    state.trailers = (!fields.is_empty()).then(|| Box::new(fields));
    Ok(())
}
