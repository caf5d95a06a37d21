//! What is counted. Names and labels are in `weft_core::metrics::table`.
//!
//! A worker records into slots of its own (`slots.rs`, `worker.rs`): plain relaxed adds, no line shared with another worker. Whoever asks merges
//! (`registry.rs`), into series (`families.rs`) or into a report of edges (`edges.rs`).

use std::sync::Arc;

use serde::Serialize;
use weft_core::conventions::{self, METHODS};
use weft_core::failure::{Failure, Reason};
use weft_core::traffic::Route;

pub mod edges;
pub mod families;
pub mod notices;
pub mod push;
pub mod registry;
pub mod scrape;
pub mod slots;
pub mod tally;
#[cfg(test)]
mod tests;
pub mod worker;

pub use edges::EdgeReport;
pub use registry::Registry;
pub use worker::{Edge, OpenConnection, OpenHttp, WorkerMetrics};

#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    Inbound,
    Outbound,
}

impl Direction {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Inbound => "inbound",
            Self::Outbound => "outbound",
        }
    }
}

/// Who talks to whom, and how: the labels of everything that is counted by traffic. What differs soonest is compared first.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct EdgeKey {
    pub direction: Direction,
    /// The port that was dialled; 0 where none is known.
    pub port: u16,
    /// `http/1.1`, `http/2`, or `tcp`.
    pub protocol: &'static str,
    /// The service or workload that was dialled.
    pub target: Arc<str>,
    /// The other end's proved identity, `plaintext`, or `none`.
    pub peer: Arc<str>,
    /// Cipher suite and key exchange group; empty in the clear.
    pub tls: (&'static str, &'static str),
}

/// A request's method, as far as it is told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Method(u8);

impl Method {
    pub fn of(method: &[u8]) -> Self {
        Self(conventions::known_method(method).unwrap_or(METHODS.len()) as u8)
    }

    pub fn as_str(self) -> &'static str {
        METHODS.get(usize::from(self.0)).copied().unwrap_or(conventions::OTHER)
    }
}

/// How a request ended, as far as it is counted.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    pub method: Method,
    /// The final status; 0 where no answer came, or none was whole.
    pub status: u16,
    /// Whether it was gRPC.
    pub is_grpc: bool,
    /// gRPC's status, where it was said.
    pub grpc: Option<u8>,
    /// Why weft itself refused or failed.
    pub reason: Option<Reason>,
    /// The route that it fell under.
    pub route: Option<&'a Arc<Route>>,
}

impl<'a> Call<'a> {
    /// A request that has not ended yet.
    pub fn new(method: &[u8], is_grpc: bool) -> Self {
        Self { method: Method::of(method), status: 0, is_grpc, grpc: None, reason: None, route: None }
    }

    /// It fell under a route.
    #[must_use]
    pub fn by(mut self, route: Option<&'a Arc<Route>>) -> Self {
        self.route = route;
        self
    }

    /// It was answered.
    #[must_use]
    pub fn answered(mut self, status: u16, grpc: Option<u8>) -> Self {
        (self.status, self.grpc) = (status, grpc);
        self
    }

    /// weft answered it in its own name. A gRPC call is refused by an answer whose HTTP status is 200.
    #[must_use]
    pub fn refused(mut self, failure: &Failure) -> Self {
        self.status = if self.is_grpc { 200 } else { failure.http_status() };
        self.grpc = Some(failure.grpc_status());
        self.broken(failure.reason)
    }

    /// It ended without a whole answer.
    #[must_use]
    pub fn broken(mut self, reason: Reason) -> Self {
        self.reason = Some(reason);
        self
    }

    /// All but the route, in one number: this is compared at every request.
    fn code(&self) -> Code {
        let grpc = if self.is_grpc { self.grpc.map_or(1, |status| status.min(16) + 2) } else { 0 };
        Code { status: self.status, method: self.method.0, grpc, reason: self.reason.map_or(u8::MAX, |reason| reason as u8) }
    }
}

/// What of a call tells it from others on its edge, but the route.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Code {
    status: u16,
    method: u8,
    /// 0: no gRPC; 1: gRPC without a status; else the status and 2; 18: one that gRPC does not have.
    grpc: u8,
    /// The reason's place, or 255.
    reason: u8,
}

/// Stands in the place of a reason for all calls that failed and that there is no room for.
const FAILED: u8 = 254;

impl Code {
    pub fn status(self) -> u16 {
        self.status
    }

    pub fn method(self) -> &'static str {
        Method(self.method).as_str()
    }

    pub fn is_grpc(self) -> bool {
        self.grpc > 0
    }

    /// gRPC's status: what the HTTP status stands for where the answer had none. None where there was no whole answer, and for what is no gRPC.
    pub fn grpc(self) -> Option<u8> {
        match self.grpc {
            0 => None,
            1 => (self.status > 0).then(|| conventions::grpc_of_http(self.status)),
            told => Some(told - 2),
        }
    }

    /// Whether it failed as far as its user sees: by weft's own reason, by an error of the server, of HTTP or of gRPC, or because the answer broke off.
    pub fn is_failure(self) -> bool {
        if self.is_overflow() {
            return self.reason == FAILED;
        }
        self.reason().is_some() || self.status == 0 || self.status >= 500 || self.grpc().is_some_and(conventions::is_grpc_failure)
    }

    pub fn reason(self) -> Option<Reason> {
        Reason::ALL.get(usize::from(self.reason)).copied()
    }

    /// What all calls of an edge are counted under that there is no room for.
    fn as_overflow(self) -> Self {
        let reason = if self.is_failure() { FAILED } else { u8::MAX };
        Self { status: u16::MAX, method: METHODS.len() as u8, grpc: 0, reason }
    }

    /// Whether it stands for others.
    pub fn is_overflow(self) -> bool {
        self.status == u16::MAX
    }

    /// The same request as HTTP sees it. What failed in gRPC alone, with an HTTP status of 200, is still told apart.
    #[must_use]
    pub fn as_http(self) -> Self {
        let tells = self.reason().is_none() && self.grpc().is_some_and(conventions::is_grpc_failure);
        Self { grpc: if tells { self.grpc } else { 0 }, ..self }
    }
}

/// What a connection turned out to speak.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Heard {
    Mesh,
    Http1,
    Http2,
    Tls,
    Opaque,
    ServerFirst,
    Silent,
    Declared,
}

impl Heard {
    pub const ALL: [Self; 8] =
        [Self::Mesh, Self::Http1, Self::Http2, Self::Tls, Self::Opaque, Self::ServerFirst, Self::Silent, Self::Declared];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Mesh => "mesh",
            Self::Http1 => "http/1",
            Self::Http2 => "http/2",
            Self::Tls => "tls",
            Self::Opaque => "opaque",
            Self::ServerFirst => "server-first",
            Self::Silent => "silent",
            Self::Declared => "declared",
        }
    }
}

impl From<&weft_core::detect::Detection> for Heard {
    fn from(what: &weft_core::detect::Detection) -> Self {
        use weft_core::detect::Detection;
        match what {
            Detection::Tls(hello) if hello.is_weft() => Self::Mesh,
            Detection::Http1 => Self::Http1,
            Detection::Http2 => Self::Http2,
            Detection::Tls(_) => Self::Tls,
            Detection::Opaque | Detection::More => Self::Opaque,
        }
    }
}
