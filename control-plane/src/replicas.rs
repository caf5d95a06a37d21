//! What replicas of the control plane ask each other (`weft.v1.Replicas`): gRPC over mutual TLS, where both are the control plane. A replica answers for itself alone.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Request, Response, Status};
use weft_core::failure::chain;
use weft_proto::v1;
use weft_proto::v1::replicas_client::ReplicasClient;
use weft_proto::v1::replicas_server::Replicas;
use weft_tls::ServerVerifier;

use crate::dashboard::account;
use crate::dashboard::traffic::Traffic;
use crate::issue::ca::Ca;
use crate::issue::trust::replicas::Unheard;
use crate::issue::trust::{Rotates, telling};
use crate::server::Peer;

/// The largest answer that is read, in bytes: a sidecar takes about 80 of one about trust, and some 400 of one about traffic.
const MAX_ANSWER: usize = 64 << 20;

/// Answers other replicas.
pub struct ReplicasService {
    pub trust: Arc<dyn Rotates>,
    pub traffic: Arc<Traffic>,
}

/// Whether it is a replica that asks.
fn is_replica<T>(request: &Request<T>) -> Result<(), Status> {
    match Peer::of(request) {
        Peer::Workload(leaf) if leaf.id.is_control_plane() && leaf.pod.is_none() => Ok(()),
        _ => Err(Status::permission_denied("only the control plane's own identity may ask this")),
    }
}

#[tonic::async_trait]
impl Replicas for ReplicasService {
    async fn trust(&self, request: Request<v1::ReplicaTrustRequest>) -> Result<Response<v1::ReplicaTrustResponse>, Status> {
        is_replica(&request)?;
        match self.trust.account().await {
            Some(Ok(account)) => Ok(Response::new(telling::to_wire(&account)?)),
            Some(Err(why)) => Err(Status::unavailable(why)),
            None => Err(Status::failed_precondition("this control plane shares its CA with nobody")),
        }
    }

    async fn traffic(&self, request: Request<v1::ReplicaTrafficRequest>) -> Result<Response<v1::ReplicaTrafficResponse>, Status> {
        is_replica(&request)?;
        let (traffic, window) = (self.traffic.clone(), Duration::from_secs(request.get_ref().window_seconds.into()));
        // It takes as long as there are pairs and sidecars, and those are served meanwhile.
        let account = tokio::task::spawn_blocking(move || account::to_wire(&traffic.account(window))).await;
        account.map(Response::new).map_err(|e| Status::internal(format!("the question was given up: {e}")))
    }
}

/// What replicas know of each sidecar, in the order of their pods: one that has just moved from a replica to another is still known to both, and told of by
/// the one that it came to last.
pub fn newest(told: impl IntoIterator<Item = v1::SidecarStatus>) -> Vec<v1::SidecarStatus> {
    let mut known: BTreeMap<(String, String), v1::SidecarStatus> = BTreeMap::new();
    for status in told {
        let one = known.entry((status.namespace.clone(), status.pod.clone())).or_default();
        if status.connected_at >= one.connected_at {
            *one = status;
        }
    }
    known.into_values().collect()
}

/// What this replica shows to others, and checks them by.
///
/// # Errors
///
/// Where no certificate can be made.
pub fn tls(ca: &Ca) -> Result<Arc<rustls::ClientConfig>, String> {
    let provider = weft_tls::provider();
    let verifier = Arc::new(ServerVerifier::control_plane(provider.clone(), ca.checked_by(), ca.domain().clone()));
    let own = ca.own_svid().map_err(|e| e.to_string())?;
    Ok(Arc::new(weft_tls::client_config(&provider, verifier, Some(&own), &[b"h2"])))
}

/// Asks the replica at an address; `patience` bounds the way there as well.
///
/// # Errors
///
/// Where it does not answer in time, refuses, or is of a version that knows no such question.
pub async fn ask<A, Q, F>(
    address: SocketAddr,
    tls: Arc<rustls::ClientConfig>,
    patience: Duration,
    question: Q,
) -> Result<A, Unheard>
where
    Q: FnOnce(ReplicasClient<Channel>) -> F,
    F: Future<Output = Result<Response<A>, Status>>,
{
    let asked = timeout(patience, async {
        let endpoint = Endpoint::from_static("http://replica.weft");
        let channel = endpoint.connect_with_connector(Way { address, tls }).await;
        let channel = channel.map_err(|e| Unheard::Silent(format!("it cannot be reached at {address}: {}", chain(&e))))?;
        match question(ReplicasClient::new(channel).max_decoding_message_size(MAX_ANSWER)).await {
            Ok(answer) => Ok(answer.into_inner()),
            Err(status) if status.code() == Code::Unimplemented => Err(Unheard::Older),
            Err(status) => Err(Unheard::Silent(format!("it says: {}", status.message()))),
        }
    });
    asked.await.unwrap_or_else(|_| Err(Unheard::Silent(format!("it does not answer in {} s", patience.as_secs()))))
}

/// Connects to one address; the name in a URI is for the protocol alone.
struct Way {
    address: SocketAddr,
    tls: Arc<rustls::ClientConfig>,
}

impl tower_service::Service<Uri> for Way {
    type Response = TokioIo<tokio_rustls::client::TlsStream<TcpStream>>;
    type Error = std::io::Error;
    type Future = std::pin::Pin<Box<dyn Future<Output = std::io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let (address, connector) = (self.address, tokio_rustls::TlsConnector::from(self.tls.clone()));
        Box::pin(async move {
            let name = ServerName::IpAddress(address.ip().into());
            let tcp = TcpStream::connect(address).await?;
            connector.connect(name, tcp).await.map(TokioIo::new)
        })
    }
}
