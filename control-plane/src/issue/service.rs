//! `weft.v1.Certificates`: the attestation decides who asks; the request only proves a key.

use std::sync::Arc;

use rcgen::PublicKeyData;
use tonic::{Code, Request, Response, Status};
use weft_core::SpiffeId;
use weft_core::service::ObjectRef;
use weft_proto::v1;
use weft_proto::v1::certificates_server::Certificates;
use weft_proto::v1::issue_request::Attestation;
use weft_tls::jwt;

use super::ca::{Ca, Whose};
use super::csr;
use super::kubernetes::PodTokens;
use super::token::{TokenError, Tokens};
use crate::server::{Caller, Peer, unix_now};

/// Whether the model has a pod of a service account: asked at renewal.
pub type HasPod = Arc<dyn Fn(&ObjectRef, &str) -> bool + Send + Sync>;

/// How workloads prove who they are: one way for each source of objects, never both.
pub enum Proof {
    /// Without a cluster: a join token first, then the SVID in use.
    Joining { tokens: Arc<Tokens> },
    /// In a cluster: a pod's service-account token, each time.
    Kubernetes(PodTokens),
}

pub struct CertificatesService {
    pub ca: Arc<Ca>,
    pub proof: Proof,
    pub has_pod: HasPod,
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
            (Proof::Joining { tokens }, Attestation::JoinToken(token)) => {
                self.join(tokens, &token, csr.public_key.der_bytes())?
            }
            (Proof::Joining { .. }, Attestation::Renewal(v1::Renewal {})) => self.standing(&peer)?,
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
        self.not_denied(&id, &pod, &peer)?;
        let whose = if message.application { Whose::Application } else { Whose::Sidecar };
        let failed = |e| {
            tracing::error!(error = %e, "signing failed");
            Status::internal("the certificate could not be signed; the control plane's log says why")
        };
        let signed = self.ca.issue(&id, &pod, &csr.public_key, whose).map_err(failed)?;
        let chain = signed.recorded().await.map_err(|e| {
            tracing::error!(error = %e, %id, %pod, "a certificate was signed and is not given out");
            Status::unavailable(e.to_string())
        })?;
        tracing::info!(%id, %pod, ?whose, "certificate issued");
        Ok(Response::new(v1::IssueResponse {
            chain: chain.into_iter().map(|der| der.as_ref().to_vec().into()).collect(),
            trust_bundle: Some(self.ca.told()),
        }))
    }

    async fn issue_jwt(&self, request: Request<v1::IssueJwtRequest>) -> Result<Response<v1::IssueJwtResponse>, Status> {
        let peer = Peer::of(&request);
        let (id, pod) = self.standing(&peer)?;
        self.not_denied(&id, &pod, &peer)?;
        let audience = request.into_inner().audience;
        jwt::check_audiences(&audience).map_err(|e| Status::invalid_argument(e.to_string()))?;
        let now = unix_now();
        let standing = self.ca.now();
        let (token, expires) = standing.tokens.signing(now).sign(&id, &audience, now).map_err(|e| {
            tracing::error!(error = %e, "signing failed");
            Status::internal("the token could not be signed; the control plane's log says why")
        })?;
        tracing::info!(%id, %pod, audiences = audience.len(), "JWT-SVID issued");
        Ok(Response::new(v1::IssueJwtResponse { token, expires }))
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

    /// The connection may be older than the denial.
    fn not_denied(&self, id: &SpiffeId, pod: &ObjectRef, peer: &Peer) -> Result<(), Status> {
        let denied = self.ca.denials().now().denied.clone();
        if denied.has_identity(id) || matches!(peer, Peer::Workload(leaf) if denied.has(leaf)) {
            tracing::warn!(%id, %pod, "a workload that is denied asked for a certificate");
            return Err(Status::permission_denied(format!("{id} is denied: see `weft trust deny list`")));
        }
        Ok(())
    }

    /// Who asks by the SVID of the connection: the pod that was attested first must still be in the model, under the same service account.
    fn standing(&self, peer: &Peer) -> Result<(SpiffeId, ObjectRef), Status> {
        let Peer::Workload(info) = peer else {
            return Err(Status::unauthenticated("this needs the current SVID as the connection's client certificate"));
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
        if !(self.has_pod)(&pod, info.id.service_account().as_str()) {
            return Err(Status::permission_denied(format!(
                "pod {pod} with service account {} is not in the mesh any more, so nothing is issued to it",
                info.id.service_account()
            )));
        }
        Ok((info.id.clone(), pod))
    }
}
