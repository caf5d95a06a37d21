//! TLS that the sidecar opens to a host outside of the mesh: to a server that is known by its name, or, mutual, to a SPIFFE peer of a foreign trust domain.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use weft_core::egress::{Listed, Origination, Peer, Server, Table};
use weft_core::failure::{Failure, Reason, Retryable};
use weft_core::protocol::MeshProtocol;
use weft_tls::{LeafInfo, PeerVerifier};

use super::outside::Outside;
use crate::connect::{Handshaking, tls_failure};
use crate::mesh::Identity;
use crate::stream::{Stream, handshake_fault};
use crate::worker::Worker;

/// One worker's client configurations: made once for each version of an external service, and, of mutual TLS, of the identity.
#[derive(Default)]
pub struct Clients(RefCell<HashMap<(usize, MeshProtocol), Made>>);

struct Made {
    /// Held, so that its address stands for no other.
    listed: Arc<Listed>,
    /// Of the identity; 0 where that does not matter.
    generation: u64,
    config: Arc<ClientConfig>,
}

impl Clients {
    fn of(
        &self,
        listed: &Arc<Listed>,
        protocol: MeshProtocol,
        generation: u64,
        make: impl FnOnce() -> Result<ClientConfig, Failure>,
    ) -> Result<Arc<ClientConfig>, Failure> {
        let mut made = self.0.borrow_mut();
        let key = (Arc::as_ptr(listed).addr(), protocol);
        if let Some(held) = made.get(&key)
            && held.generation == generation
        {
            return Ok(held.config.clone());
        }
        let config = Arc::new(make()?);
        made.insert(key, Made { listed: listed.clone(), generation, config: config.clone() });
        Ok(config)
    }

    /// Forgets external services that are not in force any more.
    pub fn sweep(&self, table: Option<&Table>) {
        self.0.borrow_mut().retain(|_, made| table.is_some_and(|table| table.holds(&made.listed)));
    }
}

/// How TLS is opened over one connection.
pub struct Opens {
    config: Arc<ClientConfig>,
    name: Option<ServerName<'static>>,
    /// What is offered; the first where a weft sidecar may be at the other end.
    alpn: &'static [&'static [u8]],
    protocol: MeshProtocol,
    is_mutual: bool,
}

/// A server that knows no ALPN speaks HTTP/1.
const fn plain_alpn(protocol: MeshProtocol) -> &'static [&'static [u8]] {
    match protocol {
        MeshProtocol::Http2 => &[b"h2"],
        MeshProtocol::Http1 | MeshProtocol::Tcp => &[b"http/1.1"],
    }
}

/// A peer may be a workload of another mesh, whose sidecar takes a `ClientHello` for a mesh peer's by weft's own names, or any other server.
const fn peer_alpn(protocol: MeshProtocol) -> &'static [&'static [u8]] {
    const HTTP1: &[&[u8]] = &[MeshProtocol::Http1.alpn(), b"http/1.1"];
    const HTTP2: &[&[u8]] = &[MeshProtocol::Http2.alpn(), b"h2"];
    const TCP: &[&[u8]] = &[MeshProtocol::Tcp.alpn()];
    match protocol {
        MeshProtocol::Http1 => HTTP1,
        MeshProtocol::Http2 => HTTP2,
        MeshProtocol::Tcp => TCP,
    }
}

/// How TLS is opened to a host; none where the application's bytes go out as they are.
///
/// # Errors
///
/// Where it cannot be, whatever the server shows.
pub fn opens(worker: &Worker, outside: &Outside, protocol: MeshProtocol) -> Result<Option<Opens>, Failure> {
    let listed = outside.listed();
    let Some(origination) = &listed.external.origination else { return Ok(None) };
    let (config, alpn, is_mutual) = match &origination.server {
        Server::Peer(peer) => (mutual(worker, listed, peer, protocol)?, peer_alpn(protocol), true),
        Server::System | Server::Anchored(_) => {
            let config = worker.outside.of(listed, protocol, 0, || by_name(origination, protocol))?;
            (config, plain_alpn(protocol), false)
        }
    };
    let host = || outside.host().map(ToString::to_string);
    let name = origination.sni.as_deref().map(str::to_owned).or_else(host);
    let name = name.map(|name| ServerName::try_from(name).map_err(|e| failed(&e))).transpose()?;
    Ok(Some(Opens { config, name, alpn, protocol, is_mutual }))
}

fn failed(why: &dyn std::fmt::Display) -> Failure {
    Failure::upstream(Reason::UpstreamTls, Retryable::No).detail(why)
}

fn by_name(origination: &Origination, protocol: MeshProtocol) -> Result<ClientConfig, Failure> {
    let ca = match &origination.server {
        Server::Anchored(ca) => Some(&**ca),
        Server::System | Server::Peer(_) => None,
    };
    weft_tls::outside_config(ca, plain_alpn(protocol)).map_err(|e| failed(&e))
}

fn mutual(worker: &Worker, listed: &Arc<Listed>, peer: &Peer, protocol: MeshProtocol) -> Result<Arc<ClientConfig>, Failure> {
    let own = worker.mesh().identity.load();
    let Some(own) = own.as_ref() else { return Err(Failure::mesh(Reason::NotReady)) };
    believes(own, listed, peer)?;
    worker.outside.of(listed, protocol, own.generation, || {
        let verifier = Arc::new(PeerVerifier::new(own.provider.clone(), own.bundle.clone(), peer.clone()));
        Ok(weft_tls::client_config(&own.provider, verifier, Some(&own.svid), peer_alpn(protocol)))
    })
}

/// Whether there are anchors that are asked about a peer: those of its foreign domain, and of no other.
fn believes(own: &Identity, listed: &Listed, peer: &Peer) -> Result<(), Failure> {
    let (domain, id) = (peer.domain(), &listed.external.id);
    let untrusted = |detail: String| Err(Failure::mesh(Reason::UpstreamUntrusted).detail(detail));
    if domain == own.svid.info().id.trust_domain() {
        return untrusted(format!(
            "ExternalService {id} expects {peer}, which is of the mesh's own trust domain: call it inside of the mesh"
        ));
    }
    if own.bundle.anchors(domain).next().is_none() {
        return untrusted(format!(
            "ExternalService {id} expects {peer}, and no FederatedTrustDomain brings the anchors of {domain}"
        ));
    }
    Ok(())
}

impl Opens {
    /// Opens it over a connection to `address`.
    pub async fn over(self, worker: &Worker, stream: Stream, address: SocketAddr) -> Result<Stream, Failure> {
        let name = self.name.unwrap_or_else(|| ServerName::IpAddress(address.ip().into()));
        // Handshakes with servers of other kinds are not the mesh's.
        let told = self.is_mutual.then(|| Handshaking::begin(&worker.metrics));
        let stream = match stream.connect_tls(self.config, name).await {
            Ok(stream) => stream,
            Err(e) => {
                if let Some(told) = told {
                    told.ends(handshake_fault(&e), ("", ""));
                }
                return Err(tls_failure(&e, address));
            }
        };
        if let Some(told) = told {
            told.ends("", stream.tls_names());
        }
        let facts = stream.tls_facts();
        if self.is_mutual {
            let leaf = facts.as_ref().and_then(|f| LeafInfo::read(f.peer.as_ref()?).ok());
            let Some(leaf) = leaf else { return Err(failed(&format_args!("{address} showed no certificate that can be read"))) };
            // From now on it is cut when that is believed no more.
            if !worker.rests_on(&leaf, &stream) {
                let failure = Failure::upstream(Reason::UpstreamDenied, Retryable::Unprocessed);
                return Err(failure.detail(format_args!("{address}: {} was denied meanwhile", leaf.id)));
            }
        }
        match facts.and_then(|f| f.alpn) {
            None if self.protocol != MeshProtocol::Http2 => Ok(stream),
            Some(chosen) if self.alpn.contains(&&chosen[..]) => Ok(stream),
            _ => Err(failed(&format_args!("{address} does not speak {}", self.protocol))),
        }
    }
}
