//! Heads and bodies from a stream.

use std::cell::Cell;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::time::Instant;
use weft_core::failure::{Failure, Reason, Retryable, Side};

use super::{Framing, Limits};
use crate::alarm::Alarm;
use crate::http::Chunk;
use crate::http::head::{RequestHead, ResponseHead};
use crate::http::hop;
use crate::link::{Refused, refused};
use crate::stream::{Shared, Stream};

/// Bytes asked for in one read while a head is awaited.
const READ: usize = 8 * 1024;
/// Bytes asked for in one read while a body streams.
const READ_BODY: usize = 64 * 1024;

/// How long the next piece of a request body may take.
const BODY_STALL: Duration = Duration::from_secs(300);
/// Bytes of later requests that are read while an answer is awaited.
const READ_AHEAD: usize = 16 * 1024;
/// How long an answer is waited for by a caller that has ended its half.
const HALF_CLOSED: Duration = Duration::from_secs(60);

/// The receiving half of an HTTP/1 connection.
pub struct Reader {
    stream: Rc<Stream>,
    buf: BytesMut,
    /// How much of `buf` was looked at for the end of a head.
    seen: usize,
    limits: Limits,
    /// Whether it reads what a client sends, or what a server answers.
    side: Side,
    /// How long the next piece of a body may take.
    stall: Option<Duration>,
    /// Looks after how long a client is silent between requests.
    idle: Alarm,
}

impl Reader {
    pub(super) fn new(stream: Rc<Stream>, side: Side) -> Self {
        // An answer may stream with long pauses; a request body that stalls is given up.
        let stall = (side != Side::Upstream).then_some(BODY_STALL);
        Self { stream, buf: BytesMut::new(), seen: 0, limits: Limits::default(), side, stall, idle: Alarm::default() }
    }

    /// Bytes that were read beyond what was asked for.
    pub fn take_rest(&mut self) -> Bytes {
        self.seen = 0;
        std::mem::take(&mut self.buf).freeze()
    }

    pub fn has_rest(&self) -> bool {
        !self.buf.is_empty()
    }

    /// Waits for more bytes; 0 is the end. An idle reader owns no buffer while it waits. Cancel-safe.
    async fn fill(&mut self, want: usize) -> std::io::Result<usize> {
        if self.buf.is_empty() {
            self.buf = self.stream.read_some().await?;
            return Ok(self.buf.len());
        }
        self.buf.reserve(want);
        let (stream, buf) = (&self.stream, &mut self.buf);
        let mut shared = Shared(Rc::clone(stream));
        poll_fn(|cx| tokio_util::io::poll_read_buf(Pin::new(&mut shared), cx, buf)).await
    }

    fn broken(&self, e: &std::io::Error) -> Failure {
        match self.side {
            Side::Upstream => reset(e),
            _ => Failure::downstream(Reason::DownstreamGone).detail(e),
        }
    }

    fn malformed(&self, why: &'static str) -> Failure {
        match self.side {
            Side::Upstream => Failure::upstream(Reason::UpstreamProtocol, Retryable::No).detail(why),
            _ => Failure::downstream(Reason::BadRequest).detail(why),
        }
    }

    /// The next request head; none if the client ends between requests or idles for `idle`.
    pub async fn request(&mut self, idle: Duration, whole: Duration) -> Result<Option<RequestHead>, Failure> {
        if self.buf.is_empty() {
            let mut alarm = std::mem::take(&mut self.idle);
            let filled = alarm.unless(idle, pin!(self.fill(READ))).await;
            self.idle = alarm;
            match filled {
                None | Some(Ok(0)) => return Ok(None),
                Some(Ok(_)) => {}
                Some(Err(e)) => return Err(self.broken(&e)),
            }
        }
        let mut deadline = None;
        loop {
            if let Some(head) = weft_http::h1::request(&mut self.buf, &mut self.seen, &self.limits)? {
                return Ok(Some(head));
            }
            // Most heads come whole, and nobody looks at the clock for them.
            let deadline = *deadline.get_or_insert_with(|| Instant::now() + whole);
            match tokio::time::timeout_at(deadline, self.fill(READ)).await {
                Err(_) => return Err(Failure::downstream(Reason::RequestTimeout)),
                Ok(Ok(0)) if self.buf.is_empty() => return Ok(None),
                Ok(Ok(0)) => return Err(Failure::downstream(Reason::DownstreamGone)),
                Ok(Ok(_)) => {}
                Ok(Err(e)) => return Err(self.broken(&e)),
            }
        }
    }

    /// The next response head. Cancel-safe.
    pub async fn response(&mut self) -> Result<ResponseHead, Failure> {
        loop {
            if let Some(head) = weft_http::h1::response(&mut self.buf, &mut self.seen, &self.limits)? {
                return Ok(head);
            }
            match self.fill(READ).await {
                Ok(0) => return Err(Failure::upstream(Reason::UpstreamReset, Retryable::IfIdempotent)),
                Ok(_) => {}
                Err(e) => return Err(self.broken(&e)),
            }
        }
    }

    /// The body that follows a head.
    pub fn body(&mut self, framing: Framing) -> IncomingBody<'_> {
        let state = match framing {
            Framing::None | Framing::Length(0) => State::Done,
            Framing::Length(n) => State::Length(n),
            Framing::Chunked => State::ChunkSize,
            Framing::UntilClose => State::UntilClose,
        };
        let length = match framing {
            Framing::None => Some(0),
            Framing::Length(n) => Some(n),
            Framing::Chunked | Framing::UntilClose => None,
        };
        IncomingBody { reader: self, state, length, touched: false }
    }
}

/// An endpoint broke off before it answered.
pub(super) fn reset(e: &std::io::Error) -> Failure {
    let (reason, retryable) = match refused(e) {
        Some(Refused::Shed) => (Reason::Overloaded, Retryable::Unprocessed),
        Some(Refused::Unseen) => (Reason::UpstreamReset, Retryable::Unprocessed),
        None => (Reason::UpstreamReset, Retryable::IfIdempotent),
    };
    Failure::upstream(reason, retryable).detail(e)
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Done,
    Length(u64),
    ChunkSize,
    ChunkData(u64),
    ChunkEnd,
    Trailers,
    UntilClose,
}

/// A body that is being received.
pub struct IncomingBody<'a> {
    reader: &'a mut Reader,
    state: State,
    length: Option<u64>,
    touched: bool,
}

impl IncomingBody<'_> {
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    pub fn is_untouched(&self) -> bool {
        !self.touched
    }

    pub fn length(&self) -> Option<u64> {
        self.length
    }

    /// After the last piece: resolves when the sender has gone away. What it sends meanwhile is the next request, and is kept up
    /// to a bound. Cancel-safe.
    pub async fn gone(&mut self, answering: &Cell<bool>) -> Failure {
        let r = &mut *self.reader;
        while r.buf.len() < READ_AHEAD {
            match r.fill(READ).await {
                Ok(0) => {
                    // It ended its half, or everything: it may still read an answer, as long as there is one to read.
                    tokio::time::sleep(HALF_CLOSED).await;
                    while answering.replace(false) {
                        tokio::time::sleep(HALF_CLOSED).await;
                    }
                    return Failure::downstream(Reason::DownstreamGone)
                        .detail("it ended its half, and no more of an answer came");
                }
                Ok(_) => {}
                Err(e) => return r.broken(&e),
            }
        }
        std::future::pending().await
    }

    /// The next piece. Cancel-safe.
    pub async fn next(&mut self) -> Result<Option<Chunk>, Failure> {
        loop {
            let r = &mut *self.reader;
            match self.state {
                State::Done => return Ok(None),
                State::Length(left) | State::ChunkData(left) if !r.buf.is_empty() => {
                    let n = left.min(r.buf.len() as u64);
                    let data = r.buf.split_to(n as usize).freeze();
                    self.touched = true;
                    self.state = match (self.state, left - n) {
                        (State::Length(_), 0) => State::Done,
                        (State::Length(_), left) => State::Length(left),
                        (_, 0) => State::ChunkEnd,
                        (_, left) => State::ChunkData(left),
                    };
                    return Ok(Some(Chunk::Data(data)));
                }
                State::UntilClose if !r.buf.is_empty() => return Ok(Some(Chunk::Data(r.buf.split().freeze()))),
                State::ChunkSize => {
                    if let Some(size) = weft_http::h1::chunk_size(&mut r.buf).map_err(|why| r.malformed(why))? {
                        self.state = if size == 0 { State::Trailers } else { State::ChunkData(size) };
                        continue;
                    }
                }
                State::ChunkEnd if r.buf.len() >= 2 => {
                    if r.buf.split_to(2) != b"\r\n"[..] {
                        return Err(r.malformed("a chunk does not end with an empty line"));
                    }
                    self.state = State::ChunkSize;
                    continue;
                }
                State::Trailers => {
                    if let Some(mut fields) =
                        weft_http::h1::trailers(&mut r.buf, &mut r.seen, &r.limits).map_err(|why| r.malformed(why))?
                    {
                        self.state = State::Done;
                        hop::strip_trailers(&mut fields);
                        return Ok((!fields.is_empty()).then(|| Chunk::Trailers(Box::new(fields))));
                    }
                }
                State::Length(_) | State::ChunkData(_) | State::ChunkEnd | State::UntilClose => {}
            }
            r.stream.acknowledge_now();
            let filled = match r.stall {
                None => r.fill(READ_BODY).await,
                Some(stall) => tokio::time::timeout(stall, r.fill(READ_BODY)).await.unwrap_or_else(|e| Err(e.into())),
            };
            match filled {
                Ok(0) if self.state == State::UntilClose => {
                    self.state = State::Done;
                    return Ok(None);
                }
                Ok(0) => {
                    let e = std::io::Error::from(std::io::ErrorKind::UnexpectedEof);
                    return Err(Failure { retryable: Retryable::No, ..r.broken(&e) });
                }
                Ok(_) => {}
                Err(e) => return Err(Failure { retryable: Retryable::No, ..r.broken(&e) }),
            }
        }
    }
}
