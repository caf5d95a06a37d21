//! The way to another replica: gRPC over mutual TLS, where both are the control plane.

use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tonic::Code;
use tonic::transport::{Endpoint, Uri};
use weft_proto::v1;
use weft_proto::v1::replicas_client::ReplicasClient;
use weft_tls::ServerVerifier;

use super::chain;
use crate::issue::ca::Ca;
use crate::issue::trust::replicas::{Account, Unheard};
use crate::issue::trust::telling::from_wire;

/// One question, the way there included. The other one asks the API server meanwhile.
const PATIENCE: Duration = Duration::from_secs(6);
/// The largest answer that is read, in bytes: a sidecar takes about 80.
const MAX_ANSWER: usize = 64 << 20;

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

/// Asks the replica at an address, in a bounded time.
pub async fn ask(address: SocketAddr, tls: Arc<rustls::ClientConfig>) -> Result<Account, Unheard> {
    let asked = timeout(PATIENCE, call(address, tls)).await;
    asked.unwrap_or_else(|_| Err(Unheard::Silent(format!("it does not answer in {} s", PATIENCE.as_secs()))))
}

async fn call(address: SocketAddr, tls: Arc<rustls::ClientConfig>) -> Result<Account, Unheard> {
    let endpoint = Endpoint::from_static("http://replica.weft");
    let channel = endpoint.connect_with_connector(Way { address, tls }).await;
    let channel = channel.map_err(|e| Unheard::Silent(format!("it cannot be reached at {address}: {}", chain(&e))))?;
    let mut client = ReplicasClient::new(channel).max_decoding_message_size(MAX_ANSWER);
    match client.trust(v1::ReplicaTrustRequest {}).await {
        Ok(answer) => from_wire(answer.get_ref()).map_err(Unheard::Silent),
        Err(status) if status.code() == Code::Unimplemented => Err(Unheard::Older),
        Err(status) => Err(Unheard::Silent(format!("it says: {}", status.message()))),
    }
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
