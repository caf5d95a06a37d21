//! What becomes of one request on its way: decided before the first attempt, asked at every answer.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use weft_core::failure::{Failure, Reason, Retryable};
use weft_core::retry::{self, Ending};
use weft_core::traffic::apply::change_headers;
use weft_core::traffic::route::{HeaderChange, Retry, Route as TrafficRoute};

use super::body::{Body, Chunk};
use super::deadline::grpc_timeout;
use super::fields::{Fields, Known};
use super::head::{RequestHead, ResponseHead};
use super::session::SessionUse;
use crate::connect::Destination;
use crate::identity::unix_now;
use crate::metrics::Call;
use crate::route::{Lease, Route, Wish};
use crate::standing::{Place, Standing};
use crate::telemetry::Excerpt;
use crate::worker::Worker;

/// The longest that an answer's `Retry-After` is waited for.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(10);
/// The pause before a repetition grows from here, unless the route says otherwise: what failed just now is not asked at once.
const BACKOFF: Duration = Duration::from_millis(25);
/// The longest pause between attempts.
const MAX_BACKOFF: Duration = Duration::from_secs(5);

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
    /// An answer's head came, for this attempt.
    heard: Cell<bool>,
    /// An answer's head was passed on.
    passed: Cell<bool>,
    /// Bytes of the request's body that went out, in this attempt.
    uploaded: Cell<u64>,
    /// How they began, where somebody is shown that.
    shown: RefCell<Option<Box<Excerpt>>>,
    attempt: Cell<u32>,
    most: Cell<u32>,
    /// The last answer is asked for again, after so long.
    asked: Cell<Option<Duration>>,
    /// gRPC's status, once the answer has said it.
    status: Cell<Option<u8>>,
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
    /// The route that the request fell under.
    pub route: Option<Arc<TrafficRoute>>,
}

impl Asks {
    fn facts(&self, grpc: bool) -> retry::RequestFacts {
        retry::RequestFacts { idempotent: self.idempotent, grpc }
    }
}

/// Whether an endpoint's own sidecar refused a request by its policy.
fn is_denied(head: &ResponseHead, lease: &Lease) -> bool {
    matches!(*lease.destination, Destination::Mesh { .. })
        && head
            .fields
            .named("weft-error")
            .next()
            .is_some_and(|said| [Reason::Denied, Reason::NetworkPolicy].iter().any(|reason| said == reason.as_str().as_bytes()))
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
            // Whatever the method: what an endpoint certainly did not process goes to another one.
            super::forward::keep_body(body);
        } else {
            worker.shared.budget.request(worker.mesh().now());
        }
        if let Body::Kept(kept) = body {
            self.lost = Some(kept.lost());
        }
    }

    fn retry(&self) -> Option<&Retry> {
        self.asks.as_ref()?.retry.as_ref()
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
        self.status.set(None);
        self.heard.set(false);
        self.uploaded.set(0);
    }

    /// Whether somebody is shown how the body begins that goes out in this attempt.
    pub fn shows(&self, body: bool) {
        self.shown.replace(body.then(Box::default));
    }

    /// How it began.
    pub fn shown(&self) -> Option<Excerpt> {
        self.shown.take().map(|shown| *shown)
    }

    /// A piece of the request's body goes out.
    pub fn uploads(&self, chunk: &Chunk) {
        if let Chunk::Data(data) = chunk {
            self.uploaded.set(self.uploaded.get() + data.len() as u64);
            if let Some(shown) = self.shown.borrow_mut().as_mut() {
                shown.takes(data);
            }
        }
    }

    /// Bytes of the request's body that went out, in this attempt.
    pub fn uploaded(&self) -> u64 {
        self.uploaded.get()
    }

    /// An answer began to come.
    pub fn hears(&self) {
        self.heard.set(true);
    }

    /// Whether something of an answer came, for this attempt.
    pub fn heard(&self) -> bool {
        self.heard.get()
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

    /// Takes one repetition out of the budget: the service's, or that of all that goes to none.
    pub fn spend(&self, worker: &Worker) -> bool {
        self.standing.as_ref().map_or(&worker.shared.budget, |s| &s.budget).take(worker.mesh().now())
    }

    /// A place among the requests that the service's policy allows at once; none if they are all taken.
    pub fn take_place(&self) -> Option<Place> {
        match &self.standing {
            Some(standing) => Place::among_requests(standing),
            None => Some(Place::free()),
        }
    }

    /// A place among the requests that may wait for a connection at once.
    pub fn take_waiting_place(&self) -> Result<Place, Failure> {
        let place = self.standing.as_ref().map_or_else(|| Some(Place::free()), |s| Place::among_pending(s));
        place.ok_or_else(|| {
            Failure::mesh(Reason::Overloaded).detail("as many requests wait for a connection as the service's policy allows")
        })
    }

    /// Something of an answer is being passed on: if that breaks off, nothing else can follow it.
    pub fn passes(&self, begins: bool) {
        self.passed.set(begins);
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
    pub fn backoff(&self, worker: &Worker) -> Duration {
        let base = self.retry().and_then(|r| r.backoff).unwrap_or(BACKOFF);
        retry::backoff(self.attempt.get().saturating_sub(1), base, MAX_BACKOFF, worker.random())
    }

    /// Whether something that begins after a pause begins before the deadline.
    pub fn is_in_time(&self, pause: Duration) -> bool {
        self.deadline.is_none_or(|at| Instant::now() + pause < at)
    }

    /// Looks at an answer before it is passed on. An error has the request sent again: the caller does not see the answer.
    pub fn judge(&self, worker: &Worker, head: &ResponseHead, lease: &Lease) -> Result<(), Failure> {
        let status = self.grpc_status(&head.fields);
        self.status.set(status);
        if is_denied(head, lease) {
            // Its policy says so, and would say so again: nothing of it is about the endpoint.
            lease.answered(200, None);
            return Ok(());
        }
        // Whether it was well shows in the end: in the trailers of gRPC, else when the body is whole.
        let ends_well = if self.grpc { head.status == 200 } else { head.status < 500 };
        if status.is_some() || !ends_well {
            lease.answered(head.status, status);
        } else {
            lease.begins();
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
            let after = after.and_then(|v| retry::retry_after(v, unix_now(), 2 * MAX_RETRY_AFTER)).unwrap_or_default();
            let wait = after.max(self.backoff(worker));
            // To come sooner than it says would be no help to it; and what would come too late is not begun.
            if after <= MAX_RETRY_AFTER && self.is_in_time(wait) && self.spend(worker) {
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

    /// An answer is whole.
    pub fn ended(&self, status: u16, lease: &Lease) {
        if !self.grpc && status < 500 {
            lease.answered(status, None);
        }
    }

    /// Looks at an answer's trailers, where gRPC says how it went.
    pub fn trailers(&self, trailers: &Fields, lease: &Lease) {
        if let Some(status) = self.grpc_status(trailers) {
            self.status.set(Some(status));
            lease.answered(200, Some(status));
        }
    }

    /// The request, as it is counted; without how it ended.
    pub fn call(&self, head: &RequestHead) -> Call<'_> {
        Call::new(&head.method, self.grpc).by(self.asks.as_ref().and_then(|asks| asks.route.as_ref()))
    }

    /// The same, answered.
    pub fn answered(&self, head: &RequestHead, status: u16) -> Call<'_> {
        self.call(head).answered(status, self.status.get())
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

    /// What is left of the deadline, for an endpoint that honours it (gRPC over HTTP/2, `grpc-timeout`).
    pub fn left(&self) -> Option<Duration> {
        let deadline = self.deadline.filter(|_| self.grpc)?;
        Some(deadline.saturating_duration_since(Instant::now()))
    }
}
