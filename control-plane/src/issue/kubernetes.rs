//! Who a pod is, by the service-account token that it presents: the API server vouches for the token, and the pod that the token
//! is bound to must be where the call came from. Of a token, nothing but its audiences and its subject is ever logged or told.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout_at};
use tonic::{Code, Status};
use weft_core::admission::source;
use weft_core::service::ObjectRef;
use weft_core::{ServiceAccount, SpiffeId, TrustDomain};

use crate::hub::Hub;
use crate::server::unix_now;
use crate::snapshot::PodFacts;

mod claims;

/// A token is about 1 KiB; what is much longer is not sent on.
const MAX_TOKEN: usize = 16 * 1024;
/// Reviews under way at once: anybody who reaches the port may ask, and the API server is not ours alone.
const MAX_REVIEWS: usize = 64;
/// Reviews of one source that are under way or wait: a pod asks once at a time, and a node's pods may share an IPv6 network.
const MAX_OF_ONE_SOURCE: usize = MAX_REVIEWS / 4;
/// Bytes of tokens that are under way or wait, over all sources: some thousands of ordinary ones.
const MAX_BYTES: usize = 4 << 20;
/// How long a caller is kept waiting: less than the ten seconds that a sidecar waits.
const PATIENCE: Duration = Duration::from_secs(6);
/// A pod that starts has no address for a moment: how often it is looked at again.
const AGAIN: Duration = Duration::from_millis(250);

const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";

/// Why a token is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("what was presented is no service-account token: it is empty, or has more than {MAX_TOKEN} bytes, or is no text")]
    Malformed,
    #[error("what was presented is no service-account token: it is no JSON Web Token as Kubernetes makes them")]
    NoToken,
    #[error("the token has expired {seconds} s ago: the kubelet renews it in its projected volume; read it from there each time")]
    Expired { seconds: i64 },
    #[error("{0} asks for more certificates at once than one source may: ask again")]
    Crowd(IpAddr),
    #[error("more tokens wait to be checked than there is room for: ask again")]
    Full,
    #[error("the API server does not accept the token ({0}): it has expired, or its pod or service account was deleted")]
    NotAuthenticated(String),
    #[error("the token is for the audiences {told:?}, and {wanted:?} is needed: project one with `audience: {wanted}`")]
    Audience { told: Vec<String>, wanted: String },
    #[error("the token is of {0:?}, which is no service account")]
    NotServiceAccount(String),
    #[error("the token is not bound to a pod: mount it as a projected volume, not from a Secret")]
    NotBound,
    #[error("pod {0}, which the token is bound to, is gone or has ended")]
    NoSuchPod(ObjectRef),
    #[error("the token is bound to an earlier pod {0}, and another one has its name now")]
    AnotherPod(ObjectRef),
    #[error("the token is of service account {told}, and pod {pod} runs as {actual:?}")]
    AnotherAccount { pod: ObjectRef, told: ServiceAccount, actual: String },
    #[error("pod {0} is on its host's network, where an address says nothing about a pod: it cannot be in the mesh")]
    HostNetwork(ObjectRef),
    #[error(
        "the token is of pod {pod}, and the call came from {from}, which is none of its addresses: a token is good in its own pod"
    )]
    Elsewhere { pod: ObjectRef, from: IpAddr },
    #[error("{0} is reserved for the control plane and never issued to a workload")]
    Reserved(SpiffeId),
    #[error("pod {0} has no address yet, so that it cannot be told whether the call came from it: ask again")]
    NoAddress(ObjectRef),
    #[error("the token cannot be checked now ({0}): ask again")]
    Unchecked(String),
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        let code = match refusal {
            Refusal::Malformed | Refusal::NoToken => Code::InvalidArgument,
            Refusal::Expired { .. }
            | Refusal::NotAuthenticated(_)
            | Refusal::Audience { .. }
            | Refusal::NotServiceAccount(_)
            | Refusal::NotBound
            | Refusal::AnotherPod(_)
            | Refusal::Elsewhere { .. } => Code::Unauthenticated,
            Refusal::NoSuchPod(_) | Refusal::AnotherAccount { .. } | Refusal::HostNetwork(_) | Refusal::Reserved(_) => {
                Code::PermissionDenied
            }
            Refusal::NoAddress(_) | Refusal::Unchecked(_) | Refusal::Crowd(_) | Refusal::Full => Code::Unavailable,
        };
        Self::new(code, refusal.to_string())
    }
}

/// What the API server says of a token (`authentication.k8s.io/v1`, `TokenReview`).
#[derive(Debug, Clone, Default)]
pub struct Review {
    pub authenticated: bool,
    pub audiences: Vec<String>,
    pub username: String,
    pub extra: BTreeMap<String, Vec<String>>,
    pub error: String,
}

/// Who is asked about tokens and pods. The error is why it could not be asked.
#[tonic::async_trait]
pub trait Witness: Send + Sync {
    /// Has a token reviewed for an audience.
    async fn review(&self, token: &str, audience: &str) -> Result<Review, String>;
    /// A pod as it stands now; none if it is gone or has ended.
    async fn pod(&self, pod: &ObjectRef) -> Result<Option<PodFacts>, String>;
}

/// Who a reviewed token is of.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Bound {
    pod: ObjectRef,
    uid: String,
    account: ServiceAccount,
}

/// Reads a review: authenticated, for our audience, of a service account, and bound to one pod.
fn bound(review: &Review, audience: &str) -> Result<Bound, Refusal> {
    if !review.authenticated {
        return Err(Refusal::NotAuthenticated(review.error.clone()));
    }
    // A server that does not know audiences returns none: its word is not enough.
    if !review.audiences.iter().any(|a| a == audience) {
        return Err(Refusal::Audience { told: review.audiences.clone(), wanted: audience.to_owned() });
    }
    let not_account = || Refusal::NotServiceAccount(review.username.chars().take(80).collect());
    let (namespace, account) =
        review.username.strip_prefix("system:serviceaccount:").and_then(|r| r.split_once(':')).ok_or_else(not_account)?;
    let namespace = namespace.parse().map_err(|_| not_account())?;
    let account = account.parse().map_err(|_| not_account())?;
    let one = |name: &str| match review.extra.get(name).map(Vec::as_slice) {
        Some([one]) if !one.is_empty() => Ok(one),
        _ => Err(Refusal::NotBound),
    };
    let (name, uid) = (one(POD_NAME)?, one(POD_UID)?);
    Ok(Bound { pod: ObjectRef { namespace, name: name.parse().map_err(|_| Refusal::NotBound)? }, uid: uid.clone(), account })
}

/// Whether a pod is the one that a token is bound to, and the call came from it.
fn check(bound: &Bound, facts: &PodFacts, from: IpAddr) -> Result<(), Refusal> {
    let pod = || bound.pod.clone();
    if facts.uid.as_deref() != Some(bound.uid.as_str()) {
        return Err(Refusal::AnotherPod(pod()));
    }
    if facts.service_account != bound.account.as_str() {
        return Err(Refusal::AnotherAccount { pod: pod(), told: bound.account.clone(), actual: facts.service_account.clone() });
    }
    if facts.host_network {
        return Err(Refusal::HostNetwork(pod()));
    }
    if facts.addresses.is_empty() {
        return Err(Refusal::NoAddress(pod()));
    }
    if !facts.addresses.contains(&from) {
        return Err(Refusal::Elsewhere { pod: pod(), from });
    }
    Ok(())
}

/// Attests pods by their tokens.
pub struct PodTokens {
    witness: Arc<dyn Witness>,
    hub: Arc<Hub>,
    domain: TrustDomain,
    audience: String,
    reviews: Semaphore,
    /// What waits for a review, or is under one.
    waiting: Mutex<Waiting>,
}

/// Counts what waits, by source.
#[derive(Default)]
struct Waiting {
    bytes: usize,
    by_source: BTreeMap<IpAddr, usize>,
}

/// A token's place among those that wait, until it is dropped.
struct Queued<'a> {
    waiting: &'a Mutex<Waiting>,
    source: IpAddr,
    bytes: usize,
}

impl<'a> Queued<'a> {
    fn take(waiting: &'a Mutex<Waiting>, from: IpAddr, bytes: usize) -> Result<Self, Refusal> {
        let source = source(from);
        let mut all = waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if all.bytes + bytes > MAX_BYTES {
            return Err(Refusal::Full);
        }
        let of_source = all.by_source.entry(source).or_default();
        if *of_source >= MAX_OF_ONE_SOURCE {
            return Err(Refusal::Crowd(source));
        }
        *of_source += 1;
        all.bytes += bytes;
        Ok(Self { waiting, source, bytes })
    }
}

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        let mut all = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        all.bytes -= self.bytes;
        if let Some(count) = all.by_source.get_mut(&self.source) {
            *count -= 1;
            if *count == 0 {
                all.by_source.remove(&self.source);
            }
        }
    }
}

impl PodTokens {
    pub fn new(witness: Arc<dyn Witness>, hub: Arc<Hub>, domain: TrustDomain, audience: String) -> Self {
        Self { witness, hub, domain, audience, reviews: Semaphore::new(MAX_REVIEWS), waiting: Mutex::default() }
    }

    /// Who presents `token` in a call from `from`, in a bounded time.
    pub async fn attest(&self, token: &str, from: IpAddr) -> Result<(SpiffeId, ObjectRef), Refusal> {
        self.attest_at(token, from, unix_now()).await
    }

    /// The same at `now`, in seconds since the Unix epoch.
    async fn attest_at(&self, token: &str, from: IpAddr, now: i64) -> Result<(SpiffeId, ObjectRef), Refusal> {
        let token = token.trim();
        if token.is_empty() || token.len() > MAX_TOKEN || !token.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(Refusal::Malformed);
        }
        claims::check(token, &self.audience, now)?;
        let deadline = Instant::now() + PATIENCE;
        let late = |_| Refusal::Unchecked("the API server takes too long".into());
        let bound = timeout_at(deadline, self.review(token, from)).await.map_err(late)??;
        let id = SpiffeId::new(self.domain.clone(), bound.pod.namespace.clone(), bound.account.clone());
        if id.is_control_plane() {
            return Err(Refusal::Reserved(id));
        }
        self.find(&bound, from, deadline).await?;
        Ok((id, bound.pod))
    }

    async fn review(&self, token: &str, from: IpAddr) -> Result<Bound, Refusal> {
        let _queued = Queued::take(&self.waiting, from, token.len())?;
        let _slot = self.reviews.acquire().await.map_err(|e| Refusal::Unchecked(e.to_string()))?;
        let review = self.witness.review(token, &self.audience).await.map_err(Refusal::Unchecked)?;
        bound(&review, &self.audience)
    }

    /// Finds the pod: in the model, or where that may be behind, in the API server. One without an address is waited for.
    async fn find(&self, bound: &Bound, from: IpAddr, deadline: Instant) -> Result<(), Refusal> {
        loop {
            if let Some(facts) = self.hub.snapshot().pods.get(&bound.pod)
                && check(bound, facts, from).is_ok()
            {
                return Ok(());
            }
            let asked = timeout_at(deadline, self.witness.pod(&bound.pod)).await;
            let now = asked.map_err(|_| Refusal::Unchecked("the API server takes too long".into()))?;
            let facts = now.map_err(Refusal::Unchecked)?.ok_or_else(|| Refusal::NoSuchPod(bound.pod.clone()))?;
            match check(bound, &facts, from) {
                Err(Refusal::NoAddress(_)) if Instant::now() + AGAIN < deadline => sleep(AGAIN).await,
                outcome => return outcome,
            }
        }
    }
}

#[cfg(test)]
mod tests;
