//! Attestation's questions to the API server.

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use kube::api::PostParams;
use kube::core::Request;
use kube::{Api, Client, Resource};
use weft_core::service::ObjectRef;

use super::within;
use crate::issue::kubernetes::{Review, Witness};
use crate::objects::{Kind, Object};
use crate::snapshot::{Place, PodFacts};
use crate::watch::kubernetes::lean::{Lean, ReadIn};

/// The cluster that vouches for its pods.
pub struct ApiServer {
    client: Client,
}

impl ApiServer {
    pub fn new(client: Client) -> Self {
        Self { client }
    }
}

#[tonic::async_trait]
impl Witness for ApiServer {
    async fn review(&self, token: &str, audience: &str) -> Result<Review, String> {
        let spec = TokenReviewSpec { audiences: Some(vec![audience.to_owned()]), token: token.to_owned() };
        let question = TokenReview { spec, ..TokenReview::default() };
        let bytes = serde_json::to_vec(&question).map_err(|e| e.to_string())?;
        let request = Request::new(TokenReview::url_path(&(), None));
        let request = request.create(&PostParams::default(), bytes).map_err(|e| e.to_string())?;
        // As text: an answer that cannot be read would be logged by the client, and it repeats the token.
        let text = within(self.client.request_text(request)).await.map_err(|e| e.replace(token, "…"))?;
        let answer: TokenReview = serde_json::from_str(&text).map_err(|_| "its answer is no TokenReview".to_owned())?;
        let status = answer.status.unwrap_or_default();
        let user = status.user.unwrap_or_default();
        Ok(Review {
            authenticated: status.authenticated.unwrap_or(false),
            audiences: status.audiences.unwrap_or_default(),
            username: user.username.unwrap_or_default(),
            extra: user.extra.unwrap_or_default(),
            error: status.error.unwrap_or_default().replace(token, "…").chars().take(200).collect(),
        })
    }

    async fn pod(&self, pod: &ObjectRef) -> Result<Option<PodFacts>, String> {
        let api =
            Api::<Lean>::namespaced_with(self.client.clone(), pod.namespace.as_str(), &ReadIn { kind: Kind::Pod, version: "v1" });
        let Some(found) = within(api.get_opt(pod.name.as_str())).await? else { return Ok(None) };
        match found.read(Kind::Pod).object {
            Ok(Object::Pod(pod)) if pod.ended() => Ok(None),
            Ok(Object::Pod(pod)) => Ok(Some(PodFacts::of(&pod, Place::default()))),
            Ok(_) => Err("its answer is no pod".into()),
            Err(fault) => Err(format!("pod {pod} cannot be read: {}: {}", fault.field, fault.message)),
        }
    }
}
