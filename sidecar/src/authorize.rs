//! authorize: who may call what, asked for every connection and request that comes in, and again while one lasts.

use std::cell::RefCell;
use std::net::IpAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;

use weft_core::SpiffeId;
use weft_core::authorization::{Challenge, Compiled, Connection, Decision, Judge, Outcome};
use weft_core::egress::Listed;
use weft_core::failure::{Answer, Failure, Reason};
use weft_core::network_policy::{self, End, Proved};
use weft_core::policy::{Caller, Denial};
use weft_core::protocol::MeshProtocol;
use weft_core::service::ObjectRef;
use weft_core::traffic::table::RequestFacts;

use crate::denials::Call;
use crate::egress::Aim;
use crate::flows;
use crate::http::RequestHead;
use crate::isolation::{self, Called};
use crate::jwt;
use crate::metrics::Direction;
use crate::route::Lease;
use crate::stream::Stream;
use crate::worker::Worker;

/// Asks the inbound policy for one connection. What it says of the connection is worked out once for each generation of the policy.
pub struct Guard {
    caller: Caller,
    source: IpAddr,
    port: u16,
    /// The pod that the caller's certificate was issued to.
    pod: Option<ObjectRef>,
    /// A call of the pod's own, which its outbound policy is asked about instead.
    called: Option<Box<Called>>,
    /// It is the pod that calls, outside of the mesh: the outbound policy is asked.
    aim: Option<Box<Aim>>,
    /// The external service by which it does: how it is reached must stay as it was.
    by: Option<Arc<Listed>>,
    standing: RefCell<Option<(u64, Standing)>>,
}

/// How a connection stands with the policy in force.
#[derive(Clone)]
enum Standing {
    /// Nothing more is asked.
    Open,
    /// Each request is asked for, and bytes are.
    Judged(Rc<Judge>),
    /// Nothing comes in, before any policy about who calls what is asked.
    Refused(Rc<Failure>),
    /// Network policies refuse it.
    Isolated(Rc<network_policy::Denied>),
}

impl Guard {
    /// Somebody calls the pod's own `port` from `source`.
    pub fn new(port: u16, caller: Caller, source: IpAddr) -> Self {
        Self { caller, source, port, pod: None, called: None, aim: None, by: None, standing: RefCell::default() }
    }

    /// The same, of a caller whose certificate says which pod it is.
    #[must_use]
    pub fn of_pod(self, pod: Option<ObjectRef>) -> Self {
        Self { pod, ..self }
    }

    /// The pod calls somebody else.
    pub fn outgoing(called: Called) -> Self {
        let (ip, port) = (called.address.ip(), called.address.port());
        Self { called: Some(Box::new(called)), ..Self::new(port, Caller::Plaintext, ip) }
    }

    /// The same, outside of the mesh: what is said of that is asked as well.
    #[must_use]
    pub fn aimed(self, aim: Option<Aim>) -> Self {
        Self { aim: aim.map(Box::new), ..self }
    }

    /// Whoever the pod calls by a lease: itself, or somebody else.
    pub fn of_call(worker: &Worker, lease: &Lease, protocol: MeshProtocol) -> Box<Self> {
        Self::own(worker, lease, protocol).unwrap_or_else(|| {
            let identity = lease.destination.identity().cloned();
            Box::new(Self::outgoing(Called { address: lease.destination.address(), pod: None, identity, is_known: true }))
        })
    }

    /// The pod calls `port` of something outside of the mesh, by an external service or by none.
    pub fn outside(worker: &Worker, port: u16, aim: Aim, by: Option<&Arc<Listed>>, protocol: MeshProtocol) -> Self {
        let identity = worker.mesh().identity.load();
        let caller = identity.as_ref().map_or(Caller::Plaintext, |i| Caller::Mesh(i.svid.info().id.clone(), protocol));
        let source = worker.shared.config.net.pod_ips[0];
        Self { aim: Some(Box::new(aim)), by: by.cloned(), ..Self::new(port, caller, source) }
    }

    /// What is meant outside of the mesh.
    pub fn aim(&self) -> Option<&Aim> {
        self.aim.as_deref()
    }

    /// The pod calls itself, through an endpoint of its own; none where the endpoint is another's. Without a certificate it is as anybody else.
    pub fn own(worker: &Worker, lease: &Lease, protocol: MeshProtocol) -> Option<Box<Self>> {
        lease.own.then(|| {
            let identity = worker.mesh().identity.load();
            let caller = identity.as_ref().map_or(Caller::Plaintext, |i| Caller::Mesh(i.svid.info().id.clone(), protocol));
            Box::new(Self::new(lease.destination.address().port(), caller, worker.shared.config.net.pod_ips[0]))
        })
    }

    /// Whether a request may come in. Where it must be looked at closely, its target is put into the form that goes on.
    pub fn request(&self, worker: &Worker, head: &mut RequestHead) -> Result<(), Failure> {
        let verdict = match self.standing(worker) {
            Standing::Open => Ok(()),
            Standing::Judged(judge) => {
                head.to_origin_form()?;
                self.judged(worker, &judge, Some(head), true)
            }
            Standing::Refused(failure) => Err(self.refused(worker, &failure, Some(head))),
            Standing::Isolated(denied) => Err(self.isolated(worker, &denied, Some(head))),
        };
        self.recorded(worker, Some(head), verdict)
    }

    /// Whether a request may come in, in the form that it has.
    pub fn request_as_is(&self, worker: &Worker, head: &RequestHead) -> Result<(), Failure> {
        self.recorded(worker, Some(head), self.asked(worker, Some(head), true))
    }

    /// Whether bytes that are not HTTP may come in.
    pub fn bytes(&self, worker: &Worker) -> Result<(), Failure> {
        self.recorded(worker, None, self.asked(worker, None, true))
    }

    /// The same of a caller that has said nothing yet: what it is when it speaks is a call of its own, so that only a refusal is one now.
    pub fn silence(&self, worker: &Worker) -> Result<(), Failure> {
        let verdict = self.asked(worker, None, true);
        if verdict.is_err() { self.recorded(worker, None, verdict) } else { verdict }
    }

    /// It turned out to be bytes that are not HTTP, and was let in.
    pub fn spoke_bytes(&self, worker: &Worker) {
        let _ = self.recorded(worker, None, Ok(()));
    }

    /// Counts a call with its verdict, where that is asked for.
    fn recorded(&self, worker: &Worker, head: Option<&RequestHead>, verdict: Result<(), Failure>) -> Result<(), Failure> {
        let out = self.called.is_some() || self.aim.is_some();
        worker.metrics.decided(if out { Direction::Outbound } else { Direction::Inbound }, verdict.is_ok());
        if worker.flows.is_on() && self.called.is_none() && self.aim.is_none() {
            self.record(worker, head, verdict.as_ref().err().map(|failure| failure.reason));
        }
        verdict
    }

    #[cold]
    fn record(&self, worker: &Worker, head: Option<&RequestHead>, refused: Option<Reason>) {
        let caller = self.identity().map(ToString::to_string);
        let mut host = Vec::new();
        if let Some(head) = head {
            head.header_values("host", &mut |value| host = value.to_vec());
        }
        worker.flows.note(&flows::Call {
            caller: caller.as_deref(),
            source: self.source.to_canonical(),
            port: self.port,
            protocol: self.protocol(head),
            request: head.map(|head| flows::Request {
                method: &head.method,
                path: RequestHead::path(head),
                host: &host,
                grpc: RequestFacts::is_grpc(head),
            }),
            refused,
        });
    }

    fn protocol(&self, head: Option<&RequestHead>) -> &'static str {
        match (&self.caller, head) {
            (_, None) => "tcp",
            (Caller::Mesh(_, protocol), _) => http_name(*protocol),
            (Caller::Plaintext, Some(head)) if head.authority.is_some() => "http/2",
            (Caller::Plaintext, Some(_)) => "http/1.1",
        }
    }

    fn asked(&self, worker: &Worker, head: Option<&RequestHead>, first: bool) -> Result<(), Failure> {
        match self.standing(worker) {
            Standing::Open => Ok(()),
            Standing::Judged(judge) => self.judged(worker, &judge, head, first),
            Standing::Refused(failure) => Err(self.refused(worker, &failure, head)),
            Standing::Isolated(denied) => Err(self.isolated(worker, &denied, head)),
        }
    }

    /// Whether bytes may come in, without telling anybody: what is to be waited for depends on it.
    pub fn lets_bytes(&self, worker: &Worker) -> bool {
        match self.standing(worker) {
            Standing::Open => true,
            Standing::Judged(judge) => matches!(judge.outcome(), Outcome::Allowed),
            Standing::Refused(_) | Standing::Isolated(_) => false,
        }
    }

    /// Whether HTTP may come in though bytes may not: it depends on the request.
    pub fn waits_for_request(&self, worker: &Worker) -> bool {
        matches!(self.standing(worker), Standing::Judged(judge) if matches!(judge.outcome(), Outcome::PerRequest))
    }

    /// The head as the application is to see it, where that is without tokens that it bears.
    pub fn stripped(&self, worker: &Worker, head: &RequestHead) -> Option<Box<RequestHead>> {
        let reads = matches!(&*self.standing.borrow(), Some((_, Standing::Judged(judge))) if judge.reads_tokens());
        if reads { jwt::stripped(worker, head) } else { None }
    }

    /// Resolves once a policy is in force that does not let in what is under way: a request, or, with none, bytes. What is in force since before
    /// `seen` (a generation) has been asked.
    pub async fn revoked(&self, worker: &Worker, head: Option<&RequestHead>, mut seen: u64) -> Failure {
        loop {
            // Made before the generation is looked at, so that no change falls between.
            let mut changed = worker.policy_changed.next();
            let generation = worker.mesh().generation();
            if generation != seen {
                seen = generation;
                if let Err(failure) = self.asked(worker, head, false) {
                    return failure;
                }
            }
            changed.rung().await;
        }
    }

    fn standing(&self, worker: &Worker) -> Standing {
        let generation = worker.mesh().generation();
        let mut standing = self.standing.borrow_mut();
        match &*standing {
            Some((at, standing)) if *at == generation => standing.clone(),
            _ => standing.insert((generation, self.stand(worker))).1.clone(),
        }
    }

    fn stand(&self, worker: &Worker) -> Standing {
        let mesh = worker.mesh();
        if let Some(called) = &self.called {
            if let Err(failure) = mesh.may_call() {
                return Standing::Refused(failure.into());
            }
            if let Some(denied) = isolation::forbids(&worker.shared, called) {
                return Standing::Isolated(denied.into());
            }
            if self.aim.is_none() {
                return Standing::Open;
            }
        }
        if let Some(aim) = &self.aim {
            return match aim.compiled(mesh, self.port, self.by.as_ref()) {
                Err(failure) => Standing::Refused(failure.into()),
                Ok(None) => Standing::Open,
                Ok(Some(compiled)) => self.stand_by(compiled),
            };
        }
        let Some(policy) = mesh.inbound.load_full() else {
            return Standing::Refused(Failure::mesh(Reason::NotReady).detail("there is no inbound policy yet").into());
        };
        if let Err(denial) = policy.decide(self.port, &self.caller) {
            return Standing::Refused(denied(&denial).into());
        }
        if let Some(network) = &policy.network
            && let Some(denied) = isolation::refuses(worker, network, &self.end(), self.port)
        {
            return Standing::Isolated(denied.into());
        }
        let Some(compiled) = &policy.compiled else { return Standing::Open };
        self.stand_by(Arc::clone(compiled))
    }

    fn stand_by(&self, compiled: Arc<Compiled>) -> Standing {
        let judge = self.judge(compiled);
        if judge.is_open() { Standing::Open } else { Standing::Judged(Rc::new(judge)) }
    }

    fn judge(&self, compiled: Arc<Compiled>) -> Judge {
        Judge::new(compiled, Connection::new(self.port, self.identity().cloned(), self.source))
    }

    /// Whether network policies refuse a mesh peer that no set of peers knows: it may have just started.
    pub fn is_new(&self, worker: &Worker) -> bool {
        let inbound = worker.mesh().inbound.load();
        let Some(network) = inbound.as_ref().and_then(|policy| policy.network.as_deref()) else { return false };
        matches!(self.caller, Caller::Mesh(..))
            && matches!(self.standing(worker), Standing::Isolated(_))
            && isolation::may_be_new(worker, network, self.source)
    }

    /// The caller, as network policies know it: by its certificate where it showed one, else by its address alone.
    fn end(&self) -> End<'_> {
        let proved = self.identity().map(|id| Proved { pod: self.pod.as_ref(), identity: Some(id) });
        End { address: self.source, proved }
    }

    fn isolated(&self, worker: &Worker, denied: &network_policy::Denied, head: Option<&RequestHead>) -> Failure {
        if let Some(called) = &self.called {
            return isolation::tell_outgoing(worker, called.address, denied);
        }
        let peer = self.peer();
        isolation::tell_incoming(worker, &self.call(&peer, None, head), denied)
    }

    /// Writes down a refusal before any policy about who calls what is asked: its caller gets a reference as well.
    #[cold]
    fn refused(&self, worker: &Worker, failure: &Failure, head: Option<&RequestHead>) -> Failure {
        let (peer, to) = (self.peer(), self.aim.as_ref().map(ToString::to_string));
        let called = self.called.as_ref().map(|called| called.address);
        let denials = &worker.shared.denials;
        let reference = denials.add_refused(&self.call(&peer, to.as_deref(), head), called, failure);
        if denials.may_log() {
            tracing::info!(peer, client = %self.source, port = self.port, %reference, "call refused: {failure}");
        }
        let detail = failure.detail.as_deref().unwrap_or_else(|| failure.reason.explain());
        let answer = Answer { reference: Some(reference.0), ..failure.answer.as_deref().cloned().unwrap_or_default() };
        failure.clone().detail(format_args!("{detail}, reference {reference}")).answered(answer)
    }

    /// The identity that the caller proved, or `plaintext`.
    fn peer(&self) -> String {
        self.identity().map_or_else(|| "plaintext".to_owned(), ToString::to_string)
    }

    fn call<'a>(&self, peer: &'a str, to: Option<&'a str>, head: Option<&'a RequestHead>) -> Call<'a> {
        Call {
            peer,
            to,
            source: self.source,
            port: self.port,
            protocol: self.protocol(head),
            request: head.map(|h| (&h.method[..], RequestHead::path(h))),
        }
    }

    fn identity(&self) -> Option<&SpiffeId> {
        match &self.caller {
            Caller::Mesh(id, _) => Some(id),
            Caller::Plaintext => None,
        }
    }

    /// What an AUDIT policy or a dry run has to say of a call is told when it is `first` asked, and not again while it lasts.
    fn judged(&self, worker: &Worker, judge: &Judge, head: Option<&RequestHead>, first: bool) -> Result<(), Failure> {
        let decision = match head {
            Some(head) if judge.reads_tokens() => jwt::with_tokens(worker, head, |request| judge.judge(Some(request))),
            head => judge.judge(head.map(|h| h as &dyn RequestFacts)),
        };
        match decision {
            None => Ok(()),
            Some(decision) if decision.is_allowed() && !first => Ok(()),
            Some(decision) => self.tell(worker, judge, head, &decision),
        }
    }

    /// Writes down what is to be told, and makes a failure of a denial.
    fn tell(&self, worker: &Worker, judge: &Judge, head: Option<&RequestHead>, decision: &Decision) -> Result<(), Failure> {
        let connection = judge.connection();
        let to = self.aim.as_ref().map(ToString::to_string);
        let call = self.call(connection.caller_text(), to.as_deref(), head);
        let denials = &worker.shared.denials;
        worker.metrics.notices(decision);
        if worker.telemetry.is_wanted() {
            worker.telemetry.notices(decision);
        }
        if decision.is_allowed() {
            if !worker.lines.may() {
                return Ok(());
            }
            tracing::info!(peer = call.peer, client = %call.source, port = call.port, "call {decision}");
            return Ok(());
        }
        denials.count(decision);
        let reference = denials.add(&call, decision);
        let policy = decision.policy().map(|p| p.id.to_string());
        let rule = decision.cause.matched().map(|m| m.rule);
        let told = policy.as_ref().map(|policy| rule.map_or_else(|| policy.clone(), |rule| format!("{policy}#{rule}")).into());
        if denials.may_log() {
            tracing::info!(peer = call.peer, client = %call.source, port = call.port, %reference, policy, "call {decision}");
        }
        let challenge = decision.challenge.filter(|_| head.is_some());
        let answer = Answer {
            http: challenge.map(|_| UNAUTHORIZED),
            grpc: challenge.map(|_| UNAUTHENTICATED),
            reference: Some(reference.0),
            policy: told,
            challenge: challenge.map(Challenge::as_str),
            ..Answer::default()
        };
        Err(Failure::mesh(Reason::Denied).detail(format_args!("reference {reference}")).answered(answer))
    }
}

/// What a caller gets in place of 403 whose token was what was wanting: it may come back with another (RFC 6750, section 3.1).
const UNAUTHORIZED: u16 = 401;
/// The same for gRPC (`statuscodes.md`).
const UNAUTHENTICATED: u8 = 16;

fn http_name(protocol: MeshProtocol) -> &'static str {
    match protocol {
        MeshProtocol::Http1 => "http/1.1",
        MeshProtocol::Http2 => "http/2",
        MeshProtocol::Tcp => "tcp",
    }
}

/// The failure that a denial becomes.
pub fn denied(denial: &Denial) -> Failure {
    let reason = match denial {
        Denial::MtlsRequired { .. } => Reason::MtlsRequired,
        Denial::ProtocolMismatch { .. } => Reason::ProtocolMismatch,
        Denial::FeatureMissing(_) => Reason::Denied,
    };
    Failure::mesh(reason).detail(denial)
}

/// Waits for something while bytes may come in; none, and both ends reset, if that ends.
pub async fn while_allowed<T>(
    worker: &Worker,
    guarded: (&Guard, u64),
    ends: [&Stream; 2],
    waiting: Pin<&mut impl Future<Output = T>>,
) -> Option<T> {
    tokio::select! {
        biased;
        () = bytes_revoked(worker, Some(guarded)) => {
            for end in ends {
                end.reset();
            }
            None
        }
        done = waiting => Some(done),
    }
}

/// Resolves when a policy is in force that does not let in bytes that are under way; never where nobody guards them. What was in force at the
/// generation has been asked.
pub async fn bytes_revoked(worker: &Worker, guarded: Option<(&Guard, u64)>) {
    let Some((guard, seen)) = guarded else { return std::future::pending().await };
    let failure = guard.revoked(worker, None, seen).await;
    worker.metrics.refused(failure.reason);
    if worker.lines.may() {
        tracing::info!(client = %guard.source, port = guard.port, "connection ended, for the policy has changed: {failure}");
    }
}
