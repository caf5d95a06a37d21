//! What becomes of one request on its way: decided before the first attempt, asked at every answer.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use weft_core::failure::{Failure, Reason, Retryable};
use weft_core::retry::{self, Ending};
use weft_core::traffic::apply::change_headers;
use weft_core::traffic::route::{HeaderChange, Retry};

use super::body::Body;
use super::fields::{Fields, Known};
use super::head::{RequestHead, ResponseHead};
use super::session::SessionUse;
use crate::identity::unix_now;
use crate::route::{Lease, Route, Wish};
use crate::standing::{Place, Standing};
use crate::worker::Worker;

/// The longest that an answer's `Retry-After` is waited for.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(10);

/// What becomes of one request.
#[derive(Default)]
pub struct Treatment {
    /// Whether the caller wants errors as gRPC has them.
    pub grpc: bool,
    /// The whole exchange must be over by then.
    pub deadline: Option<Instant>,
    /// How long one attempt may take.
    pub per_try: Option<Duration>,
    /// What the route or the service's policy asks for; most requests have nothing of it.
    pub asks: Option<Box<Asks>>,
    /// The route says that there is no deadline.
    pub unbounded: bool,
    /// What counts across all requests to the service that it goes to.
    standing: Option<Arc<Standing>>,
    /// Nothing has to be sent again but the head.
    bodiless: bool,
    /// The body is kept, as long as this is false.
    lost: Option<Rc<Cell<bool>>>,
    /// An answer's head was passed on.
    passed: Cell<bool>,
    attempt: Cell<u32>,
    most: Cell<u32>,
    /// The last answer is asked for again, after so long at the least.
    asked: Cell<Option<Duration>>,
}

/// What a route or a policy asks for.
#[derive(Default)]
pub struct Asks {
    pub retry: Option<Retry>,
    pub idempotent: bool,
    /// Changes to the answer's fields.
    pub response: Vec<HeaderChange>,
    pub session: Option<SessionUse>,
    pub wish: Wish,
}

impl Asks {
    fn facts(&self, grpc: bool) -> retry::RequestFacts {
        retry::RequestFacts { idempotent: self.idempotent, grpc }
    }
}

impl Treatment {
    /// Nothing is asked for yet.
    pub fn new(grpc: bool) -> Self {
        Self { grpc, ..Self::default() }
    }

    /// A request that no route and no policy says anything of.
    pub fn plain(worker: &Worker, route: &Route, head: &RequestHead, body: &mut Body<'_>, began: Instant) -> Self {
        let mut treatment = Self::new(head.is_grpc());
        treatment.serve(worker, route, head, body, began);
        treatment
    }

    /// Notes what follows from the request itself and from whom it goes to.
    pub fn serve(&mut self, worker: &Worker, route: &Route, head: &RequestHead, body: &mut Body<'_>, began: Instant) {
        self.bodiless = body.is_done();
        if let Route::Service { service, .. } = route {
            let standing = service.view.load().standing.clone();
            standing.budget.request(worker.mesh().now());
            self.standing = Some(standing);
            if self.grpc
                && let Some(timeout) = head.fields.first(Known::GrpcTimeout).and_then(grpc_timeout)
            {
                let until = began.checked_add(timeout);
                self.deadline = self.deadline.into_iter().chain(until).min();
            }
            if !self.bodiless && self.may_repeat(head) {
                super::forward::keep_body(body);
            }
        }
        if let Body::Kept(kept) = body {
            self.lost = Some(kept.lost());
        }
    }

    fn retry(&self) -> Option<&Retry> {
        self.asks.as_ref()?.retry.as_ref()
    }

    /// Whether a request that may have been processed may be sent again.
    pub fn may_repeat(&self, head: &RequestHead) -> bool {
        head.is_idempotent() || self.retry().is_some_and(|r| r.any_method)
    }

    /// Whether a request that failed so may be sent again.
    pub fn repeats(&self, head: &RequestHead, failure: &Failure) -> bool {
        let facts = retry::RequestFacts { idempotent: head.is_idempotent(), grpc: self.grpc };
        retry::repeats(self.retry(), facts, Ending::Failed(failure))
    }

    /// How many attempts there may be, if the route says so.
    pub fn attempts(&self) -> Option<u32> {
        self.retry().map(|r| r.attempts.saturating_add(1))
    }

    pub fn begins(&self, attempt: u32, most: u32) {
        self.attempt.set(attempt);
        self.most.set(most);
        self.asked.set(None);
    }

    /// The endpoint that the request would like.
    pub fn wish(&self) -> Wish {
        self.asks.as_ref().map_or_else(Wish::default, |a| a.wish)
    }

    /// When the attempt that begins now must be over.
    pub fn until(&self) -> Option<Instant> {
        let this = self.per_try.and_then(|d| Instant::now().checked_add(d));
        self.deadline.into_iter().chain(this).min()
    }

    /// Whether everything that was sent can be sent again.
    pub fn replayable(&self) -> bool {
        self.bodiless || self.lost.as_ref().is_some_and(|lost| !lost.get())
    }

    /// Takes one repetition out of the service's budget.
    pub fn spend(&self, worker: &Worker) -> bool {
        self.standing.as_ref().is_none_or(|s| s.budget.take(worker.mesh().now()))
    }

    /// A place among the requests that the service's policy allows at once; none if they are all taken.
    pub fn take_place(&self) -> Option<Place> {
        match &self.standing {
            Some(standing) => Place::among_requests(standing),
            None => Some(Place::free()),
        }
    }

    /// Whether an answer's head was passed on.
    pub fn passed(&self) -> bool {
        self.passed.get()
    }

    /// Whether the last answer is asked for again.
    pub fn is_asked(&self) -> bool {
        self.asked.get().is_some()
    }

    /// How long to wait before the last answer is asked for again; none if it is not.
    pub fn asked(&self) -> Option<Duration> {
        self.asked.take()
    }

    /// The pause before the next attempt.
    pub fn backoff(&self, base: Duration, most: Duration, attempt: u32, random: u64) -> Duration {
        let base = self.retry().and_then(|r| r.backoff).unwrap_or(base);
        retry::backoff(attempt, base, most.max(base), random)
    }

    /// Looks at an answer before it is passed on. An error has the request sent again: the caller does not see the answer.
    pub fn judge(&self, worker: &Worker, head: &ResponseHead, lease: &Lease) -> Result<(), Failure> {
        let status = self.grpc_status(&head.fields);
        if !self.grpc || status.is_some() || head.status != 200 {
            lease.answered(head.status, status);
        } else {
            lease.speaks();
        }
        let ending = match status {
            Some(status) => Ending::Grpc { status, only: true },
            None => Ending::Http(head.status),
        };
        if let Some(asks) = &self.asks
            && let Some(retry) = &asks.retry
            && retry::repeats(Some(retry), asks.facts(self.grpc), ending)
            && self.attempt.get() < self.most.get()
            && self.replayable()
        {
            let after = head.fields.named("retry-after").next();
            let after = after.and_then(|v| retry::retry_after(v, unix_now(), 2 * MAX_RETRY_AFTER));
            let wait = after.unwrap_or_default();
            // To come sooner than it says would be no help to it.
            let in_time = wait <= MAX_RETRY_AFTER && self.deadline.is_none_or(|at| Instant::now() + wait < at);
            if in_time && self.spend(worker) {
                self.asked.set(Some(wait));
                return Err(Failure::upstream(Reason::UpstreamReset, Retryable::IfIdempotent)
                    .detail(format!("it answered with {}, which the route asks to repeat", head.status)));
            }
        }
        Ok(())
    }

    fn grpc_status(&self, fields: &Fields) -> Option<u8> {
        if !self.grpc {
            return None;
        }
        std::str::from_utf8(fields.first(Known::GrpcStatus)?).ok()?.parse().ok()
    }

    /// Looks at an answer's trailers, where gRPC says how it went.
    pub fn trailers(&self, trailers: &Fields, lease: &Lease) {
        if let Some(status) = self.grpc_status(trailers) {
            lease.answered(200, Some(status));
        }
    }

    /// Changes an answer's head as it is passed on.
    pub fn edit(&self, head: &mut ResponseHead, lease: &Lease) {
        self.passed.set(true);
        let Some(asks) = &self.asks else { return };
        for change in &asks.response {
            change_headers(change, &mut head.fields);
        }
        if let Some(session) = &asks.session {
            session.mark(head, lease.destination.address());
        }
    }

    /// The head of a repetition, which says the how manieth it is.
    pub fn numbered(&self, head: &RequestHead, attempt: u32) -> RequestHead {
        let mut head = head.clone();
        head.fields.push(b"weft-attempt", attempt.to_string().as_bytes());
        head
    }

    /// The head with what is left of the deadline, for an endpoint that honours it (gRPC over HTTP/2, `grpc-timeout`).
    pub fn shortened(&self, head: &RequestHead) -> Option<RequestHead> {
        let deadline = self.deadline.filter(|_| self.grpc)?;
        let left = deadline.saturating_duration_since(Instant::now());
        let mut head = head.clone();
        head.fields.remove(Known::GrpcTimeout);
        head.fields.push(b"grpc-timeout", in_grpc(left).as_bytes());
        Some(head)
    }
}

/// Reads `grpc-timeout`: at most eight digits and a unit.
fn grpc_timeout(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let n: u64 = std::str::from_utf8(digits).ok()?.parse().ok()?;
    Some(match unit {
        b'H' => Duration::from_secs(n * 3600),
        b'M' => Duration::from_secs(n * 60),
        b'S' => Duration::from_secs(n),
        b'm' => Duration::from_millis(n),
        b'u' => Duration::from_micros(n),
        b'n' => Duration::from_nanos(n),
        _ => return None,
    })
}

/// Writes `grpc-timeout`, rounded down, in the finest unit that eight digits hold.
fn in_grpc(left: Duration) -> String {
    const MOST: u128 = 99_999_999;
    match (left.as_micros(), left.as_millis(), left.as_secs()) {
        (n, _, _) if n <= MOST => format!("{n}u"),
        (_, n, _) if n <= MOST => format!("{n}m"),
        (_, _, n) => format!("{}S", u128::from(n).min(MOST)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grpc_timeouts_are_read_and_written() {
        for (text, want) in [("1H", 3_600_000), ("2M", 120_000), ("10S", 10_000), ("250m", 250), ("99999999m", 99_999_999)] {
            assert_eq!(grpc_timeout(text.as_bytes()), Some(Duration::from_millis(want)), "{text}");
        }
        for text in ["", "S", "1", "100000000m", "1x", "-1S", "1.5S", "+1S"] {
            assert_eq!(grpc_timeout(text.as_bytes()), None, "{text}");
        }
        for (left, want) in
            [(Duration::from_micros(1500), "1500u"), (Duration::from_secs(200), "200000m"), (Duration::MAX, "99999999S")]
        {
            assert_eq!(in_grpc(left), want);
        }
    }
}
