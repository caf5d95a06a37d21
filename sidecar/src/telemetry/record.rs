//! What is known of one request, or one opaque connection, when it is over: plain data that leaves the worker whole.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use smallvec::SmallVec;
use weft_core::conventions;
use weft_core::failure::{Failure, Reason, Retryable};
use weft_core::trace::{Context, SpanId};

use super::propagate::Forms;
use super::shown::Shown;
use crate::metrics::Direction;

/// The most bytes that are kept of a path, and of each other text that comes from outside.
pub const LONGEST: usize = 1_024;
pub(super) const LONGEST_OTHER: usize = 256;
/// Attempts that are kept; a request has a few at most.
const MOST_ATTEMPTS: usize = 16;

/// A text of a record: where it stands among its texts.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Piece {
    at: u32,
    len: u32,
}

/// One request or connection. Its texts stand one behind the other beside it, so that a record that leaves its worker has nothing to allocate.
#[derive(Debug)]
pub struct Record {
    pub direction: Direction,
    /// Nanoseconds since 1970.
    pub began: u64,
    pub took: Duration,
    /// Until the head of the answer; none if there was none.
    pub first: Option<Duration>,
    /// Who called: the address.
    pub client: IpAddr,
    /// Inbound: the identity that the caller proved, or `plaintext`.
    pub caller: Piece,
    /// The service, workload or port that was dialled.
    pub target: Piece,
    pub port: u16,
    /// `http/1.1`, `http/2` or `tcp`.
    pub protocol: &'static str,
    /// None for bytes that are not HTTP.
    pub request: Option<Request>,
    /// The status that the caller was given; 0 without one.
    pub status: u16,
    pub grpc_status: Option<u8>,
    pub reason: Option<Reason>,
    /// What exactly, from our own side.
    pub detail: Option<Box<str>>,
    /// What a denial is found by.
    pub reference: Option<u64>,
    /// The policy that denied it, and its rule, as NAMESPACE/NAME#RULE.
    pub policy: Option<Arc<str>>,
    /// What AUDIT policies and dry runs have to say of it.
    pub notice: Option<Arc<str>>,
    /// Bytes of bodies, or of an opaque connection: from the caller, and to it.
    pub received: u64,
    pub sent: u64,
    /// The first of its attempts.
    pub attempts: SmallVec<[Attempt; 1]>,
    /// How many there were.
    pub tried: u32,
    pub trace: Option<Trace>,
    /// It ended as it should.
    pub whole: bool,
    /// The names of the request's fields, while somebody taps.
    pub fields: Option<Box<[Box<str>]>>,
    /// What else it is shown of it.
    pub shown: Option<Box<Shown>>,
}

/// The head of a request, as it came, as far as it is text.
#[derive(Debug)]
pub struct Request {
    pub method: Piece,
    /// Without the query.
    pub path: Piece,
    pub query: Option<Piece>,
    pub host: Piece,
    pub user_agent: Option<Piece>,
    pub grpc: bool,
}

/// One attempt at a request.
#[derive(Debug)]
pub struct Attempt {
    pub span: SpanId,
    /// After the beginning of the request.
    pub began: Duration,
    pub took: Duration,
    /// The endpoint's identity, or what else it is called.
    pub peer: Piece,
    pub address: SocketAddr,
    /// The status of its answer; 0 without one.
    pub status: u16,
    pub reason: Option<Reason>,
}

/// Where a request stands in a trace.
#[derive(Debug)]
pub struct Trace {
    /// At the span that was sent on, or would have been.
    pub context: Context,
    /// The caller's span; none at the beginning of a trace.
    pub parent: Option<SpanId>,
    /// The span of the request as a whole; the same as the first attempt's where there is one attempt.
    pub span: SpanId,
    pub forms: Forms,
    /// Its spans are exported, whatever becomes of it.
    pub sampled: bool,
    /// `tracestate`, where it is one.
    pub state: Option<Piece>,
}

/// One that nothing is known of.
impl Default for Record {
    fn default() -> Self {
        Self {
            direction: Direction::Inbound,
            began: 0,
            took: Duration::ZERO,
            first: None,
            client: Ipv4Addr::UNSPECIFIED.into(),
            caller: Piece::default(),
            target: Piece::default(),
            port: 0,
            protocol: "tcp",
            request: None,
            status: 0,
            grpc_status: None,
            reason: None,
            detail: None,
            reference: None,
            policy: None,
            notice: None,
            received: 0,
            sent: 0,
            attempts: SmallVec::new(),
            tried: 0,
            trace: None,
            whole: false,
            fields: None,
            shown: None,
        }
    }
}

/// A record and its texts.
#[derive(Debug, Default)]
pub struct Noted {
    pub record: Record,
    pub texts: String,
}

/// A record that is told.
#[derive(Clone, Copy)]
pub struct Told<'a> {
    pub record: &'a Record,
    pub(super) texts: &'a str,
}

impl<'a> Told<'a> {
    pub(super) fn text(&self, piece: Piece) -> &'a str {
        &self.texts[piece.at as usize..][..piece.len as usize]
    }
}

impl Noted {
    pub fn told(&self) -> Told<'_> {
        Told { record: &self.record, texts: &self.texts }
    }

    /// Keeps a text.
    pub fn text(&mut self, text: &str) -> Piece {
        let at = self.texts.len() as u32;
        self.texts.push_str(text);
        Piece { at, len: text.len() as u32 }
    }

    /// Keeps what came from outside, as text: each with how many bytes of it are kept at most. They are looked over together.
    pub(super) fn all<const N: usize>(&mut self, parts: [(&[u8], usize); N]) -> [Piece; N] {
        let parts = parts.map(|(bytes, longest)| &bytes[..bytes.len().min(longest)]);
        let begins = self.texts.len();
        let mut bytes = std::mem::take(&mut self.texts).into_bytes();
        let mut at = begins as u32;
        let pieces = parts.map(|part| {
            bytes.extend_from_slice(part);
            let piece = Piece { at, len: part.len() as u32 };
            at += piece.len;
            piece
        });
        match String::from_utf8(bytes) {
            Ok(texts) if pieces.iter().all(|piece| texts.is_char_boundary(piece.at as usize)) => {
                self.texts = texts;
                return pieces;
            }
            Ok(mut texts) => {
                texts.truncate(begins);
                self.texts = texts;
            }
            Err(e) => {
                let mut bytes = e.into_bytes();
                bytes.truncate(begins);
                self.texts = String::from_utf8(bytes).expect("it was text before");
            }
        }
        parts.map(|part| self.text(&String::from_utf8_lossy(part)))
    }

    /// An attempt begins, `after` so long, and its span.
    pub(super) fn begins(&mut self, after: Duration, span: SpanId, peer: &str, address: SocketAddr) {
        self.record.tried += 1;
        if self.record.attempts.len() < MOST_ATTEMPTS {
            let peer = self.text(peer);
            let (took, status, reason) = (Duration::ZERO, 0, None);
            self.record.attempts.push(Attempt { span, began: after, took, peer, address, status, reason });
        }
    }
}

impl Record {
    /// gRPC's status: what the HTTP status stands for where the answer had none. None without an answer, and for what is no gRPC.
    pub fn grpc(&self) -> Option<u8> {
        let is_grpc = self.request.as_ref().is_some_and(|r| r.grpc);
        self.grpc_status.or_else(|| (is_grpc && self.status > 0).then(|| conventions::grpc_of_http(self.status)))
    }

    /// Whether it failed as far as its user sees: an error of the server, of HTTP or of gRPC, one of weft, or an answer that broke off.
    pub fn is_error(&self) -> bool {
        let grpc = self.grpc().is_some_and(conventions::is_grpc_failure);
        // An opaque connection may end so without anybody's fault: most do.
        let ends = matches!(self.reason, Some(Reason::DownstreamGone | Reason::IdleTimeout | Reason::Draining));
        let failed = self.reason.is_some() && !(ends && self.request.is_none());
        failed || self.status >= 500 || grpc || (!self.whole && self.request.is_some())
    }

    /// Nanoseconds since 1970.
    pub(super) fn ended(&self) -> u64 {
        self.began.saturating_add(self.took.as_nanos() as u64)
    }

    /// The attempt that is under way; none beyond those that are kept.
    pub(super) fn under_way(&mut self) -> Option<&mut Attempt> {
        if self.tried as usize > self.attempts.len() { None } else { self.attempts.last_mut() }
    }

    /// The trace that a line names: one that somebody can find, since the caller is in it or spans of it are exported.
    pub(super) fn told_trace(&self) -> Option<&Trace> {
        self.trace.as_ref().filter(|trace| trace.sampled || trace.parent.is_some() || self.is_error())
    }

    /// The last attempt is over, and nothing of its answer was passed on.
    pub(super) fn failed(&mut self, after: Duration, failure: &Failure) {
        if let Some(last) = self.under_way() {
            last.took = after.saturating_sub(last.began);
            // Where it answered, its status says why; unless its own sidecar answered in its stead.
            if last.status == 0 || failure.retryable == Retryable::Unprocessed {
                last.reason = Some(failure.reason);
            }
        }
    }

    /// weft itself fails it, or refuses it.
    pub(super) fn fails(&mut self, failure: &Failure) {
        self.reason = Some(failure.reason);
        self.detail.clone_from(&failure.detail);
        self.reference = failure.answer.as_ref().and_then(|a| a.reference);
        self.policy = failure.answer.as_ref().and_then(|a| a.policy.clone());
    }
}
