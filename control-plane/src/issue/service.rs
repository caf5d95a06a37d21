//! `weft.v1.Certificates`: the attestation decides who asks; the request only proves a key.

use std::sync::Arc;

use rcgen::PublicKeyData;
use tonic::{Code, Request, Response, Status};
use weft_core::SpiffeId;
use weft_core::service::ObjectRef;
use weft_proto::v1;
use weft_proto::v1::certificates_server::Certificates;
use weft_proto::v1::issue_request::Attestation;

use super::ca::Ca;
use super::csr;
use super::kubernetes::PodTokens;
use super::token::{TokenError, Tokens};
use crate::server::{Caller, Peer, unix_now};

/// Whether the model has a pod of a service account: asked at renewal.
pub type HasPod = Arc<dyn Fn(&ObjectRef, &str) -> bool + Send + Sync>;

/// How workloads prove who they are: one way for each source of objects, never both.
pub enum Proof {
    /// Without a cluster: a join token first, then the SVID in use.
    Joining { tokens: Arc<Tokens>, has_pod: HasPod },
    /// In a cluster: a pod's service-account token, each time.
    Kubernetes(PodTokens),
}

pub struct CertificatesService {
    pub ca: Arc<Ca>,
    pub proof: Proof,
}

#[tonic::async_trait]
impl Certificates for CertificatesService {
    async fn issue(&self, request: Request<v1::IssueRequest>) -> Result<Response<v1::IssueResponse>, Status> {
        let caller = request.extensions().get::<Caller>().cloned();
        let message = request.into_inner();
        let csr = csr::check(&message.csr).map_err(|e| Status::invalid_argument(e.to_string()))?;
        let Some(attestation) = message.attestation else {
            return Err(Status::invalid_argument("the request carries no attestation that this version knows"));
        };
        let peer = caller.as_ref().map_or(Peer::Anonymous, |c| c.peer.clone());
        let (id, pod) = match (&self.proof, attestation) {
            (Proof::Joining { tokens, .. }, Attestation::JoinToken(token)) => {
                self.join(tokens, &token, csr.public_key.der_bytes())?
            }
            (Proof::Joining { has_pod, .. }, Attestation::Renewal(v1::Renewal {})) => renew(has_pod, &peer)?,
            (Proof::Kubernetes(pods), Attestation::KubernetesToken(token)) => {
                let from = caller.ok_or_else(|| Status::unauthenticated("the call came over no network"))?.address;
                pods.attest(&token, from)
                    .await
                    .inspect_err(|e| tracing::warn!(%from, error = %e, "a service-account token was refused"))?
            }
            (Proof::Joining { .. }, Attestation::KubernetesToken(_)) => {
                return Err(Status::failed_precondition(
                    "this control plane follows no cluster that could vouch for a service-account token: use a join token",
                ));
            }
            (Proof::Kubernetes(_), Attestation::JoinToken(_) | Attestation::Renewal(_)) => {
                return Err(Status::failed_precondition(
                    "this control plane follows a cluster: a pod presents its service-account token, at each renewal too",
                ));
            }
        };
        if csr.id != id {
            tracing::warn!(asked = %csr.id, attested = %id, %pod, "a workload asked for an identity that is not its own");
            return Err(Status::permission_denied(format!("the request asks for {}, and the attestation is for {id}", csr.id)));
        }
        let denied = self.ca.denials().now().denied.clone();
        // The connection may be older than the denial.
        if denied.has_identity(&id) || matches!(&peer, Peer::Workload(leaf) if denied.has(leaf)) {
            tracing::warn!(%id, %pod, "a workload that is denied asked for a certificate");
            return Err(Status::permission_denied(format!("{id} is denied: see `weft trust deny list`")));
        }
        let chain = self.ca.issue(&id, &pod, &csr.public_key).map_err(|e| {
            tracing::error!(error = %e, "signing failed");
            Status::internal("the certificate could not be signed; the control plane's log says why")
        })?;
        tracing::info!(%id, %pod, "certificate issued");
        Ok(Response::new(v1::IssueResponse {
            chain: chain.into_iter().map(|der| der.as_ref().to_vec().into()).collect(),
            trust_bundle: Some(self.ca.told()),
        }))
    }
}

impl CertificatesService {
    fn join(&self, tokens: &Tokens, token: &str, public_key: &[u8]) -> Result<(SpiffeId, ObjectRef), Status> {
        let attested = tokens.redeem(token, public_key, unix_now()).map_err(|e| {
            let code = match e {
                TokenError::Record(_) => Code::FailedPrecondition,
                TokenError::Malformed => Code::InvalidArgument,
                TokenError::Unknown | TokenError::Expired { .. } | TokenError::Used => Code::Unauthenticated,
            };
            tracing::warn!(error = %e, "a join token was refused");
            Status::new(code, e.to_string())
        })?;
        let id = self.identity(&attested.pod, &attested.service_account)?;
        Ok((id, attested.pod))
    }

    fn identity(&self, pod: &ObjectRef, service_account: &str) -> Result<SpiffeId, Status> {
        let sa =
            service_account.parse().map_err(|e: weft_core::identity::InvalidName| Status::invalid_argument(e.to_string()))?;
        let id = SpiffeId::new(self.ca.domain().clone(), pod.namespace.clone(), sa);
        if id.is_control_plane() {
            return Err(Status::permission_denied(format!(
                "{id} is reserved for the control plane and never issued to a workload"
            )));
        }
        Ok(id)
    }
}

/// Renewal by SVID: the pod that was attested first must still be in the model, under the same service account.
fn renew(has_pod: &HasPod, peer: &Peer) -> Result<(SpiffeId, ObjectRef), Status> {
    let Peer::Workload(info) = peer else {
        return Err(Status::unauthenticated("renewal needs the current SVID as the connection's client certificate"));
    };
    // The handshake checked it; the connection may be older than that.
    if info.not_after + weft_core::wellknown::CLOCK_SKEW_SECS < unix_now() {
        return Err(Status::unauthenticated(
            "the SVID that this connection was opened with has expired: join again with a token",
        ));
    }
    let Some(pod) = info.pod.clone() else {
        return Err(Status::unauthenticated("the current SVID names no attested pod: join again with a token"));
    };
    if !has_pod(&pod, info.id.service_account().as_str()) {
        return Err(Status::permission_denied(format!(
            "pod {pod} with service account {} is not in the mesh any more, so its certificate is not renewed",
            info.id.service_account()
        )));
    }
    Ok((info.id.clone(), pod))
}
