//! The way to the control plane: gRPC over TLS, which only its one identity may answer.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tonic::transport::{Channel, Endpoint};
use weft_core::failure::chain;
use weft_tls::{PinnedAnchor, ServerVerifier, Svid, TrustBundle};

use crate::channel::{self, Opening, Wire};
use crate::config::{Config, HostPort};
use crate::identity::random;
use crate::io::Dialer;

/// What the control plane is checked by, and who asks.
pub enum Trust<'a> {
    /// Before there is a bundle: the anchor's hash, from the join token.
    Pinned(&'a str),
    /// With a bundle and a certificate.
    Bundle(&'a Svid, &'a Arc<TrustBundle>),
    /// With anchors from a file, and another proof than a certificate.
    Anchors(&'a Arc<TrustBundle>),
}

const CONNECT: Duration = Duration::from_secs(5);

/// Connects anew. A new certificate needs a new connection.
pub async fn connect(config: &Config, trust: Trust<'_>) -> anyhow::Result<Channel> {
    let provider = weft_tls::provider();
    let domain = config.identity.trust_domain.clone();
    let tls = match trust {
        Trust::Pinned(hash) => {
            let verifier = Arc::new(PinnedAnchor::new(provider.clone(), hash.to_owned()));
            weft_tls::client_config(&provider, verifier, None, &[b"h2"])
        }
        Trust::Bundle(svid, bundle) => {
            let verifier = Arc::new(ServerVerifier::control_plane(provider.clone(), bundle.clone(), domain));
            weft_tls::client_config(&provider, verifier, Some(svid), &[b"h2"])
        }
        Trust::Anchors(bundle) => {
            let verifier = Arc::new(ServerVerifier::control_plane(provider.clone(), bundle.clone(), domain));
            weft_tls::client_config(&provider, verifier, None, &[b"h2"])
        }
    };
    let place = &config.identity.control_plane;
    let addresses = addresses(place).await?;
    let dialer = Dialer { mark: config.net.mark };
    let connector = tokio_rustls::TlsConnector::from(Arc::new(tls));
    let name = ServerName::try_from("weft-control-plane.weft-system.svc").context("a constant name")?;
    let open = move || -> Opening {
        let (connector, name, addresses) = (connector.clone(), name.clone(), addresses.clone());
        Box::pin(async move {
            let tcp = dial(dialer, &addresses).await?;
            tcp.set_nodelay(true)?;
            Ok(Box::new(connector.connect(name, tcp).await?) as Box<dyn Wire>)
        })
    };
    let endpoint = Endpoint::from_static("http://weft-control-plane")
        .connect_timeout(CONNECT)
        .http2_keep_alive_interval(Duration::from_secs(20))
        .keep_alive_timeout(Duration::from_secs(10))
        .keep_alive_while_idle(true);
    let opened = channel::channel(endpoint, open).await;
    opened.map_err(|e| anyhow::anyhow!("cannot reach the control plane at {place}: {}", chain(&e)))
}

/// What a name stands for now: replicas come and go.
async fn addresses(place: &HostPort) -> anyhow::Result<Vec<SocketAddr>> {
    let looked_up = tokio::time::timeout(CONNECT, tokio::net::lookup_host((place.host.as_str(), place.port))).await;
    let found = looked_up
        .with_context(|| format!("{} cannot be looked up in {} s", place.host, CONNECT.as_secs()))?
        .with_context(|| format!("{} cannot be looked up", place.host))?;
    Ok(found.collect())
}

/// The first address that answers; of several one at random is asked first.
async fn dial(dialer: Dialer, addresses: &[SocketAddr]) -> std::io::Result<TcpStream> {
    let mut error = std::io::Error::new(std::io::ErrorKind::NotFound, "its name stands for no address");
    let first = random() as usize % addresses.len().max(1);
    for address in addresses.iter().cycle().skip(first).take(addresses.len()) {
        match dialer.connect(*address).await {
            Ok(tcp) => return Ok(tcp),
            Err(e) => error = e,
        }
    }
    Err(error)
}
