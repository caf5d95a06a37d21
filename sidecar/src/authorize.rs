//! authorize: who may call what, asked for every connection and request that comes in, and again while one lasts.

use std::cell::RefCell;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;

use weft_core::SpiffeId;
use weft_core::authorization::{Compiled, Connection, Decision, Judge, Outcome};
use weft_core::failure::{Answer, Failure, Reason};
use weft_core::policy::{Caller, Denial};
use weft_core::protocol::MeshProtocol;
use weft_core::traffic::table::RequestFacts;

use crate::denials::Call;
use crate::egress::Aim;
use crate::http::RequestHead;
use crate::route::Lease;
use crate::stream::Stream;
use crate::worker::Worker;

/// Asks the inbound policy for one connection. What it says of the connection is worked out once for each generation of the policy.
pub struct Guard {
    caller: Caller,
    source: IpAddr,
    port: u16,
    /// It is the pod that calls, outside of the mesh: the outbound policy is asked.
    aim: Option<Box<Aim>>,
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
    Refused(Failure),
}

impl Guard {
    /// Somebody calls the pod's own `port` from `source`.
    pub fn new(port: u16, caller: Caller, source: IpAddr) -> Self {
        Self { caller, source, port, aim: None, standing: RefCell::default() }
    }

    /// The pod calls `port` of something outside of the mesh.
    pub fn outside(worker: &Worker, port: u16, aim: Aim, protocol: MeshProtocol) -> Self {
        let identity = worker.mesh().identity.load();
        let caller = identity.as_ref().map_or(Caller::Plaintext, |i| Caller::Mesh(i.svid.info().id.clone(), protocol));
        let source = worker.shared.config.net.pod_ips[0];
        Self { aim: Some(Box::new(aim)), ..Self::new(port, caller, source) }
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
        match self.standing(worker) {
            Standing::Open => Ok(()),
            Standing::Judged(judge) => {
                head.to_origin_form()?;
                self.judged(worker, &judge, Some(head), true)
            }
            Standing::Refused(failure) => Err(failure),
        }
    }

    /// Whether a request may come in, in the form that it has.
    pub fn request_as_is(&self, worker: &Worker, head: &RequestHead) -> Result<(), Failure> {
        self.asked(worker, Some(head), true)
    }

    /// Whether bytes that are not HTTP may come in.
    pub fn bytes(&self, worker: &Worker) -> Result<(), Failure> {
        self.asked(worker, None, true)
    }

    fn asked(&self, worker: &Worker, head: Option<&RequestHead>, first: bool) -> Result<(), Failure> {
        match self.standing(worker) {
            Standing::Open => Ok(()),
            Standing::Judged(judge) => self.judged(worker, &judge, head, first),
            Standing::Refused(failure) => Err(failure),
        }
    }

    /// Whether bytes may come in, without telling anybody: what is to be waited for depends on it.
    pub fn lets_bytes(&self, worker: &Worker) -> bool {
        match self.standing(worker) {
            Standing::Open => true,
            Standing::Judged(judge) => matches!(judge.outcome(), Outcome::Allowed),
            Standing::Refused(_) => false,
        }
    }

    /// Whether HTTP may come in though bytes may not: it depends on the request.
    pub fn waits_for_request(&self, worker: &Worker) -> bool {
        matches!(self.standing(worker), Standing::Judged(judge) if matches!(judge.outcome(), Outcome::PerRequest))
    }

    /// Resolves once a policy is in force that does not let in what is under way: a request, or, with none, bytes. What is in force since before
    /// `seen` (a generation) has been asked.
    pub async fn revoked(&self, worker: &Worker, head: Option<&RequestHead>, mut seen: u64) -> Failure {
        loop {
            // Made before the generation is looked at, so that no change falls between.
            let changed = worker.policy_changed.notified();
            let generation = worker.mesh().generation();
            if generation != seen {
                seen = generation;
                if let Err(failure) = self.asked(worker, head, false) {
                    return failure;
                }
            }
            changed.await;
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
        if let Some(aim) = &self.aim {
            return match aim.compiled(mesh, self.port) {
                Err(failure) => Standing::Refused(failure),
                Ok(None) => Standing::Open,
                Ok(Some(compiled)) => self.stand_by(compiled),
            };
        }
        let Some(policy) = mesh.inbound.load_full() else { return Standing::Refused(Failure::mesh(Reason::NotReady)) };
        if let Err(denial) = policy.decide(self.port, &self.caller) {
            return Standing::Refused(denied(&denial));
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

    fn identity(&self) -> Option<&SpiffeId> {
        match &self.caller {
            Caller::Mesh(id, _) => Some(id),
            Caller::Plaintext => None,
        }
    }

    /// What an AUDIT policy or a dry run has to say of a call is told when it is `first` asked, and not again while it lasts.
    fn judged(&self, worker: &Worker, judge: &Judge, head: Option<&RequestHead>, first: bool) -> Result<(), Failure> {
        match judge.judge(head.map(|h| h as &dyn RequestFacts)) {
            None => Ok(()),
            Some(decision) if decision.is_allowed() && !first => Ok(()),
            Some(decision) => self.tell(worker, judge, head, &decision),
        }
    }

    /// Writes down what is to be told, and makes a failure of a denial.
    fn tell(&self, worker: &Worker, judge: &Judge, head: Option<&RequestHead>, decision: &Decision) -> Result<(), Failure> {
        let connection = judge.connection();
        let to = self.aim.as_ref().map(|aim| aim.to_string());
        let call = Call {
            peer: connection.caller_text(),
            to: to.as_deref(),
            source: connection.source,
            port: connection.port,
            protocol: match (&self.caller, head) {
                (_, None) => "tcp",
                (Caller::Mesh(_, protocol), _) => http_name(*protocol),
                (Caller::Plaintext, Some(head)) if head.authority.is_some() => "http/2",
                (Caller::Plaintext, Some(_)) => "http/1.1",
            },
            request: head.map(|h| (&h.method[..], RequestHead::path(h))),
        };
        let denials = &worker.shared.denials;
        denials.count(decision);
        if decision.is_allowed() {
            if !denials.may_log() {
                return Ok(());
            }
            tracing::info!(peer = call.peer, client = %call.source, port = call.port, "call {decision}");
            return Ok(());
        }
        let reference = denials.add(&call, decision);
        let policy = decision.policy().map(|p| p.id.to_string());
        if denials.may_log() {
            tracing::info!(peer = call.peer, client = %call.source, port = call.port, %reference, policy, "call {decision}");
        }
        let answer = Answer { reference: Some(reference.0), ..Answer::default() };
        Err(Failure::mesh(Reason::Denied).detail(format_args!("reference {reference}")).answered(answer))
    }
}

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
    waiting: impl Future<Output = T>,
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
    tracing::info!(client = %guard.source, port = guard.port, "connection ended, for the policy has changed: {failure}");
}
