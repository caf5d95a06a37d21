//! What may be repeated, how often of all, and after what pause.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use crate::backoff::{doubled, unit};
use crate::failure::{Failure, Retryable};
use crate::traffic::policy::RetryBudget;
use crate::traffic::route::Retry;
use crate::window::{SLOTS, Window};

mod after;
pub use after::retry_after;

/// How many repetitions there may be, of all requests to a service; shared by all workers of a sidecar.
///
/// At each repetition that goes out at a time `t`: repetitions in the `interval` that ends at `t` ≤ `percent` of the requests in it +
/// `min_per_second` × `interval` (rounded up to one). This holds exactly, however many workers ask; two that ask for the last place at once may both be refused.
/// Time is kept in slots of a ninth of the interval, so a request counts for eight to nine ninths of it, a repetition for nine to ten.
#[derive(Debug)]
pub struct Budget {
    percent: u64,
    /// What is always allowed within the interval.
    least: u64,
    /// Nanoseconds of one slot.
    slot: u64,
    requests: Window,
    repetitions: Window,
    refused: AtomicU64,
}

impl Budget {
    /// A fresh budget. It begins anew when the policy changes.
    pub fn new(policy: &RetryBudget) -> Self {
        let interval = policy.interval.as_nanos();
        let least = (u128::from(policy.min_per_second) * interval).div_ceil(1_000_000_000);
        Self {
            percent: policy.percent.min(100).into(),
            least: least.try_into().unwrap_or(u64::MAX),
            slot: u64::try_from(interval.div_ceil(u128::from(SLOTS - 1))).unwrap_or(u64::MAX).max(1),
            requests: Window::default(),
            repetitions: Window::default(),
            refused: AtomicU64::new(0),
        }
    }

    /// A request came; its repetitions are not counted here. `now` is nanoseconds of any monotonic clock, the same in every call.
    pub fn request(&self, now: u64) {
        self.requests.add(now / self.slot);
    }

    fn allowed(&self, tick: u64) -> u64 {
        (self.requests.sum(tick, SLOTS - 1) * self.percent / 100).saturating_add(self.least)
    }

    /// Whether a repetition may go out; if so, it is counted.
    pub fn take(&self, now: u64) -> bool {
        let tick = now / self.slot;
        // Counted first: of two who ask at once, each sees the other.
        self.repetitions.add(tick);
        let fits = self.repetitions.sum(tick, SLOTS) <= self.allowed(tick);
        if !fits {
            self.repetitions.take_back(tick);
            self.refused.fetch_add(1, Relaxed);
        }
        fits
    }

    /// How many repetitions may go out now.
    pub fn left(&self, now: u64) -> u32 {
        let tick = now / self.slot;
        let left = self.allowed(tick).saturating_sub(self.repetitions.sum(tick, SLOTS));
        left.try_into().unwrap_or(u32::MAX)
    }

    /// How many repetitions were refused since the beginning.
    pub fn refused(&self) -> u64 {
        self.refused.load(Relaxed)
    }
}

/// The pause before a repetition: never less than `base`, and up to as much again as `base` doubled with each `attempt` (0 before the first
/// repetition), drawn evenly so that many callers do not come back at once. Never more than `cap`, unless `base` is.
pub fn backoff(attempt: u32, base: Duration, cap: Duration, random: u64) -> Duration {
    let cap = cap.max(base);
    let spread = doubled(base, attempt.min(31)).min(cap.saturating_sub(base));
    base + spread.mul_f64(unit(random)).min(spread)
}

/// What of a request decides whether it may be repeated.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RequestFacts {
    /// Its method is idempotent (RFC 9110, section 9.2.2).
    pub idempotent: bool,
    /// It is gRPC.
    pub grpc: bool,
}

/// How an attempt ended.
#[derive(Clone, Copy, Debug)]
pub enum Ending<'a> {
    /// With an answer of this HTTP status, and no gRPC status known.
    Http(u16),
    /// With a gRPC answer.
    Grpc {
        /// Its status.
        status: u8,
        /// The answer has nothing else (trailers-only): no part of it was passed on or processed.
        only: bool,
    },
    /// Without an answer.
    Failed(&'a Failure),
}

/// The gRPC status that an answer without one stands for (gRPC, `http-grpc-status-mapping.md`); 0 for 200, which a gRPC answer has.
pub const fn grpc_status_of(http: u16) -> u8 {
    match http {
        200 => 0,
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502 | 503 | 504 => 14,
        _ => 2,
    }
}

/// Whether an attempt that ended so may be repeated. What was certainly not processed always is, and so is an idempotent request
/// that failed without an answer; `retry` adds to that. How often, whether the body can be sent again, and the budget are for the caller to see to.
pub fn repeats(retry: Option<&Retry>, request: RequestFacts, ending: Ending<'_>) -> bool {
    let retry = retry.filter(|r| r.attempts > 0);
    let safe = request.idempotent || retry.is_some_and(|r| r.any_method);
    match ending {
        Ending::Failed(failure) => match failure.retryable {
            Retryable::Unprocessed => true,
            Retryable::IfIdempotent => safe,
            Retryable::No => false,
        },
        Ending::Http(status) => retry.is_some_and(|r| {
            // Every gRPC call is a POST: who lists gRPC codes means them.
            (safe && r.codes.contains(&status)) || (request.grpc && r.grpc_codes.contains(&grpc_status_of(status)))
        }),
        Ending::Grpc { status, only } => only && retry.is_some_and(|r| status != 0 && r.grpc_codes.contains(&status)),
    }
}

#[cfg(test)]
mod tests;
