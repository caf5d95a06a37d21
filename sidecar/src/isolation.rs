//! isolation: what `NetworkPolicy` says of a call, at the pod that is called and at the pod that calls.
//!
//! An endpoint that the caller's policies forbid is no candidate: that is worked out when the control thread makes the view of a service, so
//! that no choice pays for it. What is dialled by its own address is asked for when it is dialled.

mod open;

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tokio::time::Instant;
use weft_core::SpiffeId;
use weft_core::failure::{Answer, Failure, Reason};
use weft_core::network_policy::{Denied, End, Isolation, PeerSets, Proved, Verdict};
use weft_core::service::{Endpoint, ObjectRef};

use crate::authorize::Guard;
use crate::denials::Call;
use crate::mesh::Mesh;
use crate::service::{Candidate, ServiceView};
use crate::worker::{Shared, Worker};

pub use open::Opened;

/// How long a mesh peer waits that no set knows yet: a pod may call as soon as it runs.
const PATIENCE: Duration = Duration::from_millis(500);
/// Peers that may wait at one worker; more are refused at once.
pub const MAX_WAITING: usize = 64;

/// The policies that isolate the pod for egress, with the sets that they name.
#[derive(Clone, Copy)]
pub struct Egress<'a> {
    pub network: &'a Isolation,
    pub sets: &'a PeerSets,
}

impl Egress<'_> {
    /// Whether an endpoint may be called at a port of its own.
    pub fn permits(&self, endpoint: &Endpoint, port: u16) -> bool {
        self.judge(endpoint, port).is_allowed()
    }

    fn judge(&self, endpoint: &Endpoint, port: u16) -> Verdict {
        let proved = endpoint.workload.as_ref().map(|pod| Proved { pod: Some(pod), identity: endpoint.reach.identity() });
        self.network.judge(self.sets, &End { address: endpoint.address, proved }, port)
    }
}

/// Who is called by an address of its own: a pod, or nothing that the mesh knows.
#[derive(Clone)]
pub struct Called {
    pub address: SocketAddr,
    pub pod: Option<ObjectRef>,
    pub identity: Option<SpiffeId>,
    /// Discovery knows it: what it says of the pod must agree with the sets.
    pub is_known: bool,
}

impl Called {
    fn end(&self) -> End<'_> {
        let proved = self.is_known.then_some(Proved { pod: self.pod.as_ref(), identity: self.identity.as_ref() });
        End { address: self.address.ip(), proved }
    }
}

/// Why the pod may not call; none where it may. A pod always reaches itself.
pub fn forbids(shared: &Shared, called: &Called) -> Option<Box<Denied>> {
    let mesh = &shared.mesh;
    let outgoing = mesh.outbound.load();
    let network = outgoing.as_ref()?.network.as_ref()?;
    if shared.config.net.pod_ips.contains(&called.address.ip()) {
        return None;
    }
    match network.judge(&mesh.peers.load(), &called.end(), called.address.port()) {
        Verdict::Allowed { .. } => None,
        Verdict::Denied(denied) => Some(denied),
    }
}

/// Whether the pod may call something by its own address, told where it may not.
pub fn may_call(worker: &Worker, called: &Called) -> Result<(), Failure> {
    forbids(&worker.shared, called).map_or(Ok(()), |denied| Err(tell_outgoing(worker, called.address, &denied)))
}

/// What was decided last of one candidate, and at which generation of the policies.
#[derive(Debug, Default)]
pub struct Memory(AtomicU64);

impl Memory {
    /// Whether a pod that is dialled by its own address may be called: worked out once for each generation.
    pub fn may_call(&self, worker: &Worker, candidate: &Candidate, pod: &ObjectRef) -> Result<(), Failure> {
        if !is_isolated(worker.mesh()) || candidate.own {
            return Ok(());
        }
        let generation = worker.mesh().generation();
        if self.0.load(Relaxed) == generation {
            return Ok(());
        }
        let destination = &candidate.destination;
        let called = Called {
            address: destination.address(),
            pod: Some(pod.clone()),
            identity: destination.identity().cloned(),
            is_known: true,
        };
        may_call(worker, &called)?;
        self.0.store(generation, Relaxed);
        Ok(())
    }
}

/// Whether any policy isolates the pod for egress.
pub fn is_isolated(mesh: &Mesh) -> bool {
    mesh.outbound.load().as_ref().is_some_and(|outgoing| outgoing.network.is_some())
}

/// A service has endpoints, and the pod may call none of them: says why, of the first.
pub fn none_permitted(worker: &Worker, view: &ServiceView, port: u16, failure: Failure) -> Failure {
    let mesh = worker.mesh();
    let (outgoing, sets) = (mesh.outbound.load(), mesh.peers.load());
    let Some(network) = outgoing.as_ref().and_then(|o| o.network.as_deref()) else { return failure };
    let egress = Egress { network, sets: &sets };
    let ready = view.endpoints.iter().map(|e| &e.endpoint).filter(|e| e.ready);
    let denied = ready.filter_map(|e| e.target_port(port).map(|target| (e, target))).find_map(|(e, target)| {
        match egress.judge(e, target) {
            Verdict::Denied(denied) => Some((SocketAddr::new(e.address, target), denied)),
            Verdict::Allowed { .. } => None,
        }
    });
    denied.map_or(failure, |(address, denied)| tell_outgoing(worker, address, &denied))
}

/// Keeps a denial at the caller, and makes a failure of it.
pub fn tell_outgoing(worker: &Worker, address: SocketAddr, denied: &Denied) -> Failure {
    let source = worker.shared.config.net.pod_ips[0];
    let call = Call { peer: "the pod's own program", source, to: None, port: address.port(), protocol: "tcp", request: None };
    tell(worker, &call, Some(address), &format!("egress to {address}: {denied}"), denied)
}

/// Keeps a denial at the called pod, and makes a failure of it.
pub fn tell_incoming(worker: &Worker, call: &Call<'_>, denied: &Denied) -> Failure {
    tell(worker, call, None, &format!("ingress from {}: {denied}", call.source), denied)
}

fn tell(worker: &Worker, call: &Call<'_>, called: Option<SocketAddr>, text: &str, denied: &Denied) -> Failure {
    let denials = &worker.shared.denials;
    let reference = denials.add_isolated(call, called, text, denied);
    if denials.may_log() {
        tracing::info!(peer = call.peer, client = %call.source, port = call.port, %reference, "call denied: {text}");
    }
    let policy = denied.policy().map(|policy| policy.to_string().into());
    let answer = Answer { reference: Some(reference.0), policy, ..Answer::default() };
    Failure::mesh(Reason::NetworkPolicy).detail(format_args!("reference {reference}")).answered(answer)
}

/// Why somebody may not come in; none where they may. A pod always reaches itself.
pub fn refuses(worker: &Worker, network: &Isolation, end: &End<'_>, port: u16) -> Option<Box<Denied>> {
    if worker.shared.config.net.pod_ips.contains(&end.address.to_canonical()) {
        return None;
    }
    match network.judge(&worker.mesh().peers.load(), end, port) {
        Verdict::Allowed { .. } => None,
        Verdict::Denied(denied) => Some(denied),
    }
}

/// Whether a peer that is refused may be one that no set knows yet.
pub fn may_be_new(worker: &Worker, network: &Isolation, source: IpAddr) -> bool {
    !network.knows(&worker.mesh().peers.load(), source)
}

/// Gives the sets of peers a moment to know a mesh peer that has just started.
pub async fn become_known(worker: &Worker, guard: &Guard) {
    let waiting = &worker.waiting_peers;
    if waiting.get() >= MAX_WAITING {
        return;
    }
    waiting.set(waiting.get() + 1);
    let _place = Waiting(waiting);
    let deadline = Instant::now() + PATIENCE;
    loop {
        // Made before the question, so that no change falls between.
        let mut changed = worker.policy_changed.next();
        if !guard.is_new(worker) {
            return;
        }
        tokio::select! {
            biased;
            () = changed.rung() => {}
            () = tokio::time::sleep_until(deadline) => return,
        }
    }
}

/// A place among those that wait, given back when they go.
struct Waiting<'a>(&'a std::cell::Cell<usize>);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}
