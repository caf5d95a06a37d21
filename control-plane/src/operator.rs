//! `weft.v1.Operator`, on an owner-only Unix socket: whoever can open the socket is the owner.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tonic::{Request, Response, Status};
use weft_core::authorization::Posture;
use weft_core::policy::MtlsMode;
use weft_core::service::ObjectRef;
use weft_core::wellknown::LEAF_LIFETIME_SECS;
use weft_core::{ServiceAccount, SpiffeId};
use weft_proto::v1::operator_server::Operator;
use weft_proto::{ResourceName, v1};

use crate::dashboard::Dashboard;
use crate::explain::{Unexplained, explain};
use crate::hub::Hub;
use crate::issue::ca::Ca;
use crate::issue::deny::DenyError;
use crate::issue::token::Tokens;
use crate::issue::trust::{Rotates, TrustError};
use crate::server::{unix_millis, unix_now};
use crate::snapshot::Viewer;

pub struct OperatorService {
    pub ca: Arc<Ca>,
    /// None where pods attest by their service-account tokens.
    pub tokens: Option<Arc<Tokens>>,
    pub hub: Arc<Hub>,
    pub trust: Arc<dyn Rotates>,
    pub dashboard: Arc<Dashboard>,
    /// What the mesh has by default.
    pub mtls: MtlsMode,
    pub default_policy: Posture,
    pub egress: weft_core::egress::EgressDefault,
}

/// The most names that one question about a sidecar's view may carry: more than a stream may hold.
const MAX_VIEWED: usize = 50_000;
const DEFAULT_TTL: u32 = 600;
const MAX_TTL: u32 = 86_400;

#[tonic::async_trait]
impl Operator for OperatorService {
    async fn create_token(&self, request: Request<v1::CreateTokenRequest>) -> Result<Response<v1::CreateTokenResponse>, Status> {
        let Some(tokens) = &self.tokens else {
            return Err(Status::failed_precondition(
                "this control plane follows a cluster, where pods present their service-account tokens: no join token is needed",
            ));
        };
        let r = request.into_inner();
        let invalid = |e: weft_core::identity::InvalidName| Status::invalid_argument(e.to_string());
        let pod = ObjectRef { namespace: r.namespace.parse().map_err(invalid)?, name: r.pod.parse().map_err(invalid)? };
        let account: ServiceAccount = r.service_account.parse().map_err(invalid)?;
        let id = SpiffeId::new(self.ca.domain().clone(), pod.namespace.clone(), account.clone());
        if id.is_control_plane() {
            return Err(Status::permission_denied(format!("{id} is reserved for the control plane")));
        }
        let ttl = if r.ttl_seconds == 0 { DEFAULT_TTL } else { r.ttl_seconds };
        if ttl > MAX_TTL {
            return Err(Status::invalid_argument(format!("a token lives at most {MAX_TTL} s, and {ttl} s were asked for")));
        }
        let (token, expires_at) = tokens
            .create(&pod, account.as_str(), &self.ca.anchor_hash(), unix_now(), i64::from(ttl))
            .map_err(|e| Status::failed_precondition(format!("the token cannot be recorded: {e}: mend the state directory")))?;
        Ok(Response::new(v1::CreateTokenResponse { token: token.to_string(), identity: id.to_string(), expires_at }))
    }

    async fn explain(&self, request: Request<v1::ExplainRequest>) -> Result<Response<v1::ExplainResponse>, Status> {
        let (snapshot, domain, ask) = (self.hub.snapshot(), self.ca.domain().clone(), request.into_inner());
        // It takes as long as there are policies and pods, and sidecars are served meanwhile.
        let answer = tokio::task::spawn_blocking(move || explain(&snapshot, &domain, &ask)).await;
        let answer = answer.map_err(|e| Status::internal(format!("the question was given up: {e}")))?;
        answer.map(Response::new).map_err(|e| match e {
            Unexplained::Question(_) => Status::invalid_argument(e.to_string()),
            Unexplained::NotThere(_) => Status::not_found(e.to_string()),
        })
    }

    async fn status(&self, _request: Request<v1::StatusRequest>) -> Result<Response<v1::StatusResponse>, Status> {
        let snapshot = self.hub.snapshot();
        let problem = |p: &crate::watch::Problem| v1::Problem {
            place: p.place.clone(),
            field: p.field.clone(),
            message: p.message.clone(),
        };
        Ok(Response::new(v1::StatusResponse {
            version: env!("CARGO_PKG_VERSION").into(),
            trust_domain: self.ca.domain().to_string(),
            anchors: self.ca.now().bundle.hashes(self.ca.domain()).collect(),
            generation: snapshot.generation,
            sidecars: self.hub.statuses(),
            problems: self.hub.problems().iter().chain(&self.ca_problems()).map(problem).collect(),
            services: snapshot.services.len() as u32,
            workloads: snapshot.inbound.len() as u32,
            mtls: self.mtls.to_string(),
            default_policy: self.default_policy.to_string(),
            egress: self.egress.to_string(),
            now_millis: unix_millis(),
        }))
    }

    async fn view(&self, request: Request<v1::ViewRequest>) -> Result<Response<v1::ViewResponse>, Status> {
        let r = request.into_inner();
        if r.names.len() > MAX_VIEWED {
            return Err(Status::invalid_argument(format!(
                "{} names were asked for, and {MAX_VIEWED} are the most",
                r.names.len()
            )));
        }
        let invalid = |e: weft_core::identity::InvalidName| Status::invalid_argument(e.to_string());
        let pod = ObjectRef { namespace: r.namespace.parse().map_err(invalid)?, name: r.pod.parse().map_err(invalid)? };
        let subscribed = self.hub.names_of(&pod);
        // A name that this version does not know is nothing that it has.
        let asked: BTreeMap<String, ResourceName> =
            r.names.into_iter().filter_map(|name| Some((name.clone(), name.parse().ok()?))).collect();
        let known: BTreeSet<String> = subscribed.iter().flatten().map(ToString::to_string).collect();
        let unsubscribed = asked.keys().filter(|name| !known.contains(*name)).cloned().collect();
        let mut all = asked;
        all.extend(subscribed.iter().flatten().map(|name| (name.to_string(), name.clone())));
        let viewer = Viewer { namespace: Some(pod.namespace.clone()), pod: Some(pod) };
        let snapshot = self.hub.snapshot();
        let viewed =
            all.into_iter().map(|(name, resource)| v1::Viewed { name, version: snapshot.view(&resource, &viewer).version().0 });
        Ok(Response::new(v1::ViewResponse {
            connected: subscribed.is_some(),
            resources: viewed.filter(|v| v.version != 0).collect(),
            unsubscribed,
        }))
    }

    async fn dashboard(&self, request: Request<v1::DashboardRequest>) -> Result<Response<v1::DashboardResponse>, Status> {
        Ok(Response::new(self.dashboard.answer(&request.get_ref().path).await))
    }

    async fn trust_status(&self, _: Request<v1::TrustStatusRequest>) -> Result<Response<v1::TrustStatusResponse>, Status> {
        Ok(Response::new(self.trust.status().await))
    }

    async fn trust_denials(&self, _: Request<v1::TrustDenialsRequest>) -> Result<Response<v1::TrustDenialsResponse>, Status> {
        Ok(Response::new(self.denials()))
    }

    async fn trust_deny(&self, request: Request<v1::TrustDenyRequest>) -> Result<Response<v1::TrustDenialsResponse>, Status> {
        let r = request.into_inner();
        self.ca.denials().deny(&r.subjects, &r.reason, r.until, unix_now()).map_err(|e| undone(&e))?;
        tracing::info!(subjects = ?r.subjects, until = r.until, "denied");
        Ok(Response::new(self.denials()))
    }

    async fn trust_permit(&self, request: Request<v1::TrustPermitRequest>) -> Result<Response<v1::TrustDenialsResponse>, Status> {
        let r = request.into_inner();
        self.ca.denials().permit(&r.subjects).map_err(|e| undone(&e))?;
        tracing::info!(subjects = ?r.subjects, "no longer denied");
        Ok(Response::new(self.denials()))
    }

    async fn trust_rotate(&self, request: Request<v1::TrustRotateRequest>) -> Result<Response<v1::TrustStatusResponse>, Status> {
        self.trust.rotate(&request.into_inner().give_up).await.map_err(|e| refused(&e))?;
        Ok(Response::new(self.trust.status().await))
    }

    async fn trust_finish(&self, request: Request<v1::TrustFinishRequest>) -> Result<Response<v1::TrustStatusResponse>, Status> {
        self.trust.finish(&request.into_inner().give_up).await.map_err(|e| refused(&e))?;
        Ok(Response::new(self.trust.status().await))
    }

    async fn trust_abort(&self, request: Request<v1::TrustAbortRequest>) -> Result<Response<v1::TrustStatusResponse>, Status> {
        self.trust.abort(&request.into_inner().give_up).await.map_err(|e| refused(&e))?;
        Ok(Response::new(self.trust.status().await))
    }
}

const HOUR: i64 = 3600;
/// What an issuer must be good for: twice a workload's certificate, which ends no later than its issuer.
const ISSUER_SOON: i64 = 2 * LEAF_LIFETIME_SECS;
/// What a root must be good for: a rotation takes time, and somebody who notices.
const ROOT_SOON: i64 = 30 * 24 * HOUR;

/// What of a CA ends soon: seconds that are left of its issuer, and of its root.
fn ending(issuer: i64, root: i64) -> Vec<String> {
    let left = |seconds: i64| if seconds > 0 { format!("ends in {} h", seconds / HOUR) } else { "has ended".to_owned() };
    let mut told = Vec::new();
    if issuer < ISSUER_SOON {
        told.push(format!(
            "the certificate that others are signed with {}: renew it (an external CA's own tool does, or weft trust rotate)",
            left(issuer)
        ));
    }
    if root < ROOT_SOON {
        told.push(format!("the root {}: replace it with weft trust rotate", left(root)));
    }
    told
}

impl OperatorService {
    /// Why the CA that is given now is not in use, and what of the one in use ends soon.
    fn ca_problems(&self) -> Vec<crate::watch::Problem> {
        let authority = &self.ca.now().authority;
        let ending = ending(authority.remaining().as_secs() as i64, authority.anchor_ends() - unix_now());
        let messages = Some(self.ca.problem()).filter(|message| !message.is_empty()).into_iter().chain(ending);
        messages.map(|message| crate::watch::Problem { place: "CA".into(), field: String::new(), message }).collect()
    }

    fn denials(&self) -> v1::TrustDenialsResponse {
        let effective = self.ca.denials().now();
        let entries = effective.entries.iter().map(|entry| v1::DeniedEntry {
            subject: entry.subject.to_string(),
            reason: entry.term.reason.clone(),
            until: entry.term.expires.unwrap_or_default(),
            source: entry.source.as_ref().map(ToString::to_string).unwrap_or_default(),
        });
        let unaware = self.hub.statuses().into_iter().filter(|s| !s.knows_denials).map(|s| format!("{}/{}", s.namespace, s.pod));
        v1::TrustDenialsResponse { entries: entries.collect(), unaware: unaware.take(1_000).collect() }
    }
}

fn undone(e: &DenyError) -> Status {
    match e {
        DenyError::Subject { .. } | DenyError::Reason | DenyError::Past(_) | DenyError::Many(_) => {
            Status::invalid_argument(e.to_string())
        }
        DenyError::NotThere(_) => Status::not_found(e.to_string()),
        DenyError::NotKept | DenyError::Io { .. } | DenyError::Damaged { .. } => Status::failed_precondition(e.to_string()),
    }
}

fn refused(e: &TrustError) -> Status {
    match e {
        TrustError::Name(_) => Status::invalid_argument(e.to_string()),
        TrustError::Refused(_) | TrustError::Fixed | TrustError::Ca(_) | TrustError::Replicas(_) => {
            Status::failed_precondition(e.to_string())
        }
        TrustError::Store(_) | TrustError::Contended => Status::unavailable(e.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ca_that_ends_soon_is_a_problem() {
        let year = 365 * 24 * HOUR;
        assert_eq!(ending(year, year), Vec::<String>::new());
        let [issuer] = &ending(30 * HOUR, year)[..] else { panic!("one of them ends") };
        assert!(issuer.contains("ends in 30 h"), "{issuer}");
        let both = ending(0, -5);
        assert!(both.len() == 2 && both.iter().all(|text| text.contains("has ended")), "{both:?}");
    }
}
