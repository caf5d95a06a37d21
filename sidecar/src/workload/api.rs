//! The calls of the Workload API.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::Value;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::codegen::Bytes;
use tonic::{Request, Response, Status};
use weft_core::SpiffeId;
use weft_proto::spiffe as wire;
use weft_proto::spiffe::spiffe_workload_api_server::SpiffeWorkloadApi;
use weft_proto::spiffe::validate_jwtsvid_response::{Claims, ListValue, Value as ClaimValue, value::Kind};
use weft_proto::v1;
use weft_proto::v1::certificates_client::CertificatesClient;
use weft_tls::{Svid, TrustBundle, jwt};

use super::KeySets;
use super::callers::Caller;
use crate::config::Config;
use crate::control::{self, Trust};
use crate::identity::{Current, unix_now};
use crate::mesh::{Identity, Mesh};

/// How long the control plane may take.
const ISSUE: Duration = Duration::from_secs(10);
/// JWT-SVIDs that are kept, by audiences: an application mostly asks for the same few.
const MAX_KEPT: usize = 64;
/// One that ends sooner is not given out again, in seconds.
const LEFT: i64 = jwt::LIFETIME_SECS / 2;
/// Claims of a token are read so deep.
const MAX_DEPTH: usize = 16;

type Stream<T> = ReceiverStream<Result<T, Status>>;

/// Tokens by their audiences, with when they end. They go when the keys change, since the one that has signed them may be among those that are gone.
#[derive(Default)]
struct Kept {
    keys: KeySets,
    tokens: HashMap<Vec<String>, (String, i64)>,
}

pub(super) struct WorkloadApi {
    config: Config,
    mesh: Arc<Mesh>,
    identity: Current,
    tokens: Mutex<Kept>,
}

impl WorkloadApi {
    pub(super) fn new(config: Config, mesh: Arc<Mesh>, identity: Current) -> Self {
        Self { config, mesh, identity, tokens: Mutex::default() }
    }

    /// Whether a call is one of the standard, and its caller one of ours.
    fn admit<T>(&self, request: &Request<T>) -> Result<(), Status> {
        if request.metadata().get("workload.spiffe.io").is_none_or(|value| value != "true") {
            return Err(Status::invalid_argument("the metadata workload.spiffe.io: true is missing"));
        }
        let caller = request.extensions().get::<Caller>().and_then(|c| c.0.as_ref());
        self.config.workload.workload_api_callers.admit(caller).map_err(|why| {
            tracing::warn!(%why, "a call of the Workload API was refused");
            Status::permission_denied(format!("no identity is issued to the caller: {why}"))
        })
    }

    fn is_own(&self, id: &str) -> bool {
        id.is_empty() || id.parse().is_ok_and(|id: SpiffeId| self.config.identity.is(&id))
    }

    /// Sends what `make` gives, at once and whenever identity, certificate or keys are others; nothing where it gives what it gave last.
    fn updates<T: Clone + PartialEq + Send + 'static>(
        &self,
        make: impl Fn(&Identity, Option<&Svid>, &BTreeMap<String, Bytes>) -> Option<T> + Send + 'static,
    ) -> Stream<T> {
        let (mut identity, handing) = (self.identity.clone(), &self.mesh.handing);
        let (mut svid, mut keys) = (handing.svid.subscribe(), handing.keys.subscribe());
        let (tx, rx) = mpsc::channel(1);
        tokio::spawn(async move {
            let mut last = None;
            loop {
                let now = match identity.borrow_and_update().as_deref() {
                    Some(identity) => make(identity, svid.borrow_and_update().as_ref(), &keys.borrow_and_update()),
                    None => None,
                };
                if let Some(now) = now.filter(|now| last.as_ref() != Some(now)) {
                    last = Some(now.clone());
                    if tx.send(Ok(now)).await.is_err() {
                        return;
                    }
                }
                let changed = tokio::select! {
                    changed = identity.changed() => changed,
                    changed = svid.changed() => changed,
                    changed = keys.changed() => changed,
                    () = tx.closed() => return,
                };
                if changed.is_err() {
                    return;
                }
            }
        });
        ReceiverStream::new(rx)
    }

    /// What is kept by the keys that are known now.
    fn tokens(&self) -> MutexGuard<'_, Kept> {
        let keys = self.mesh.handing.keys.borrow().clone();
        // Nothing that holds the lock can leave it half changed.
        let mut kept = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        if !Arc::ptr_eq(&kept.keys, &keys) {
            *kept = Kept { keys, tokens: HashMap::new() };
        }
        kept
    }

    async fn jwt(&self, mut audience: Vec<String>) -> Result<String, Status> {
        jwt::check_audiences(&audience).map_err(|e| Status::invalid_argument(e.to_string()))?;
        audience.sort_unstable();
        audience.dedup();
        let now = unix_now();
        if let Some((token, _)) = self.tokens().tokens.get(&audience).filter(|(_, expires)| *expires > now + LEFT) {
            return Ok(token.clone());
        }
        let identity = self.identity.borrow().clone().ok_or_else(|| Status::unavailable("the sidecar has no certificate yet"))?;
        let unavailable = |e: anyhow::Error| Status::unavailable(format!("{e:#}"));
        let channel =
            control::connect(&self.config, Trust::Bundle(&identity.svid, &identity.bundle)).await.map_err(unavailable)?;
        let ask = v1::IssueJwtRequest { audience: audience.clone() };
        let answer = tokio::time::timeout(ISSUE, CertificatesClient::new(channel).issue_jwt(ask))
            .await
            .map_err(|_| Status::unavailable(format!("the control plane did not answer in {} s", ISSUE.as_secs())))?
            .map_err(|s| Status::new(s.code(), format!("the control plane refused: {}", s.message())))?
            .into_inner();
        let tokens = &mut self.tokens().tokens;
        tokens.retain(|_, (_, expires)| *expires > now + LEFT);
        // Whoever asks for ever other audiences pushes out what ends first.
        let first = tokens.iter().min_by_key(|(_, (_, expires))| *expires).map(|(audience, _)| audience.clone());
        if let Some(first) = first.filter(|_| tokens.len() >= MAX_KEPT) {
            tokens.remove(&first);
        }
        tokens.insert(audience, (answer.token.clone(), answer.expires));
        Ok(answer.token)
    }
}

/// Certificates, one behind the other.
fn joined<'a>(certificates: impl IntoIterator<Item = &'a rustls_pki_types::CertificateDer<'static>>) -> Bytes {
    certificates.into_iter().flat_map(|der| der.as_ref().iter().copied()).collect::<Vec<u8>>().into()
}

fn bundles(bundle: &TrustBundle) -> impl Iterator<Item = (String, Bytes)> {
    bundle.domains().map(|(domain, anchors)| (format!("spiffe://{domain}"), joined(anchors)))
}

/// The answer with the application's certificate; none before it has one.
fn svids(identity: &Identity, svid: Option<&Svid>) -> Option<wire::X509svidResponse> {
    let svid = svid?;
    let own = format!("spiffe://{}", svid.info().id.trust_domain());
    let mut federated: HashMap<String, Bytes> = bundles(&identity.bundle).collect();
    let bundle = federated.remove(&own).unwrap_or_default();
    let svid = wire::X509svid {
        spiffe_id: svid.info().id.to_string(),
        x509_svid: joined(svid.chain()),
        x509_svid_key: svid.pkcs8().to_vec().into(),
        bundle,
        hint: String::new(),
    };
    Some(wire::X509svidResponse { svids: vec![svid], crl: vec![], federated_bundles: federated })
}

#[tonic::async_trait]
impl SpiffeWorkloadApi for WorkloadApi {
    type FetchX509SVIDStream = Stream<wire::X509svidResponse>;
    type FetchX509BundlesStream = Stream<wire::X509BundlesResponse>;
    type FetchJWTBundlesStream = Stream<wire::JwtBundlesResponse>;

    async fn fetch_x509svid(
        &self,
        request: Request<wire::X509svidRequest>,
    ) -> Result<Response<Self::FetchX509SVIDStream>, Status> {
        self.admit(&request)?;
        self.mesh.handing.ask();
        Ok(Response::new(self.updates(|identity, svid, _| svids(identity, svid))))
    }

    async fn fetch_x509_bundles(
        &self,
        request: Request<wire::X509BundlesRequest>,
    ) -> Result<Response<Self::FetchX509BundlesStream>, Status> {
        self.admit(&request)?;
        let make = |identity: &Identity, _: Option<&Svid>, _: &BTreeMap<String, Bytes>| {
            Some(wire::X509BundlesResponse { crl: vec![], bundles: bundles(&identity.bundle).collect() })
        };
        Ok(Response::new(self.updates(make)))
    }

    async fn fetch_jwtsvid(&self, request: Request<wire::JwtsvidRequest>) -> Result<Response<wire::JwtsvidResponse>, Status> {
        self.admit(&request)?;
        let asked = request.into_inner();
        if !self.is_own(&asked.spiffe_id) {
            return Err(Status::permission_denied("the caller does not have the identity that it asks for"));
        }
        let svid = self.jwt(asked.audience).await?;
        let spiffe_id = self.config.identity.spiffe_id().to_string();
        Ok(Response::new(wire::JwtsvidResponse { svids: vec![wire::Jwtsvid { spiffe_id, svid, hint: String::new() }] }))
    }

    async fn fetch_jwt_bundles(
        &self,
        request: Request<wire::JwtBundlesRequest>,
    ) -> Result<Response<Self::FetchJWTBundlesStream>, Status> {
        self.admit(&request)?;
        let make = |_: &Identity, _: Option<&Svid>, keys: &BTreeMap<String, Bytes>| {
            let bundles = keys.iter().map(|(domain, set)| (format!("spiffe://{domain}"), set.clone())).collect();
            (!keys.is_empty()).then_some(wire::JwtBundlesResponse { bundles })
        };
        Ok(Response::new(self.updates(make)))
    }

    async fn validate_jwtsvid(
        &self,
        request: Request<wire::ValidateJwtsvidRequest>,
    ) -> Result<Response<wire::ValidateJwtsvidResponse>, Status> {
        self.admit(&request)?;
        let asked = request.into_inner();
        if asked.audience.is_empty() {
            return Err(Status::invalid_argument("the audience is missing"));
        }
        let sets = self.mesh.handing.keys.borrow().clone();
        let keys = |domain: &weft_core::TrustDomain| sets.get(domain.as_str()).map(AsRef::as_ref);
        let (id, claims) = jwt::validate(&asked.svid, &asked.audience, unix_now(), keys)
            .map_err(|e| Status::invalid_argument(format!("the token is not believed: {e}")))?;
        if self.identity.borrow().as_ref().is_some_and(|identity| identity.bundle.denied().has_identity(&id)) {
            return Err(Status::invalid_argument("the token is of an identity that is denied"));
        }
        let claims = claims.iter().map(|(name, value)| (name.clone(), claim(value, MAX_DEPTH))).collect();
        Ok(Response::new(wire::ValidateJwtsvidResponse { spiffe_id: id.to_string(), claims: Some(Claims { fields: claims }) }))
    }
}

/// A claim as google.protobuf.Value has it; what is nested deeper than `depth` is null.
fn claim(value: &Value, depth: usize) -> ClaimValue {
    let Some(below) = depth.checked_sub(1) else { return ClaimValue { kind: Some(Kind::NullValue(0)) } };
    let kind = match value {
        Value::Null => Kind::NullValue(0),
        Value::Bool(b) => Kind::BoolValue(*b),
        Value::Number(n) => Kind::NumberValue(n.as_f64().unwrap_or_default()),
        Value::String(s) => Kind::StringValue(s.clone()),
        Value::Array(list) => Kind::ListValue(ListValue { values: list.iter().map(|v| claim(v, below)).collect() }),
        Value::Object(map) => {
            Kind::StructValue(Claims { fields: map.iter().map(|(name, v)| (name.clone(), claim(v, below))).collect() })
        }
    };
    ClaimValue { kind: Some(kind) }
}
