//! What is known of one request, or one opaque connection, when it is over: plain data that leaves the worker whole.

use std::net::{IpAddr, SocketAddr};
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
const LONGEST_OTHER: usize = 256;
/// Attempts that are kept; a request has a few at most.
const MOST_ATTEMPTS: usize = 16;

/// One request or connection.
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
    pub caller: Arc<str>,
    /// The service, workload or port that was dialled.
    pub target: Arc<str>,
    pub port: u16,
    /// `http/1.1`, `http/2` or `tcp`.
    pub protocol: &'static str,
    /// None for bytes that are not HTTP.
    pub request: Option<Box<Request>>,
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

/// The head of a request, as it came.
#[derive(Debug)]
pub struct Request {
    pub method: Box<[u8]>,
    /// Without the query.
    pub path: Box<[u8]>,
    pub query: Option<Box<[u8]>>,
    pub host: Box<[u8]>,
    pub user_agent: Option<Box<[u8]>>,
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
    pub peer: Arc<str>,
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
    pub state: Option<Box<str>>,
}

pub(super) fn kept(bytes: &[u8], path: bool) -> Box<[u8]> {
    bytes[..bytes.len().min(if path { LONGEST } else { LONGEST_OTHER })].into()
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
        self.reason.is_some() || self.status >= 500 || grpc || (!self.whole && self.request.is_some())
    }

    /// An attempt begins, `after` so long, and its span.
    pub(super) fn begins(&mut self, after: Duration, span: SpanId, peer: &Arc<str>, address: SocketAddr) {
        self.tried += 1;
        if self.attempts.len() < MOST_ATTEMPTS {
            let (took, status, reason) = (Duration::ZERO, 0, None);
            self.attempts.push(Attempt { span, began: after, took, peer: peer.clone(), address, status, reason });
        }
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
