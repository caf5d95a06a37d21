//! The gRPC API: over TLS with the control plane's own SVID for workloads, on a Unix socket for operators.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use rustls_pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::sync::mpsc;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tokio_util::sync::WaitForCancellationFutureOwned;
use tonic::transport::Server;
use tonic::transport::server::Connected;
use weft_core::backoff::renewal_delay;
use weft_core::wellknown;
use weft_proto::v1;
use weft_tls::{ClientVerifier, Denied, LeafInfo};

use crate::accept::{Gate, Guest, Incoming};
use crate::issue::ca::Ca;

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(3);
/// An issuer that is about to end is no reason to make certificates without a pause.
const SHORTEST_LIFE: Duration = Duration::from_secs(60);

/// Seconds since the Unix epoch.
pub fn unix_now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs() as i64)
}

/// Milliseconds since the Unix epoch, for people who compare clocks.
pub fn unix_millis() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as i64)
}

/// A uniformly distributed number.
pub fn random() -> u64 {
    let mut bytes = [0; 8];
    aws_lc_rs::rand::fill(&mut bytes).expect("the system's random number generator works");
    u64::from_le_bytes(bytes)
}

/// Who is at the other end of a connection.
#[derive(Clone, Debug)]
pub enum Peer {
    /// Nobody that proved anything: may join, and no more.
    Anonymous,
    /// A workload that proved its SVID.
    Workload(Arc<LeafInfo>),
}

impl Peer {
    /// The peer of a request's connection; on the operator socket there is none.
    pub fn of<T>(request: &tonic::Request<T>) -> Self {
        request.extensions().get::<Caller>().map_or(Self::Anonymous, |c| c.peer.clone())
    }
}

/// What is known of a connection: who is at its other end, and where.
#[derive(Clone, Debug)]
pub struct Caller {
    pub peer: Peer,
    /// As the kernel has it; an IPv4 address that came in over an IPv6 socket is written as IPv4.
    pub address: IpAddr,
}

/// A connection whose handshake is done. It ends when it has to give way to another, which with an SVID happens only where there is no room
/// left and its source has most.
pub struct Conn {
    tls: TlsStream<TcpStream>,
    caller: Caller,
    gives_way: Pin<Box<WaitForCancellationFutureOwned>>,
    _guest: Guest,
}

impl Connected for Conn {
    type ConnectInfo = Caller;
    fn connect_info(&self) -> Caller {
        self.caller.clone()
    }
}

impl AsyncRead for Conn {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        if self.gives_way.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(std::io::ErrorKind::ConnectionAborted.into()));
        }
        Pin::new(&mut self.tls).poll_read(cx, buf)
    }
}

impl AsyncWrite for Conn {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.tls).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.tls).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.tls).poll_shutdown(cx)
    }
}

/// Takes the port. Connections wait in the kernel's queue until they are [`accepted`].
pub async fn listen(addr: SocketAddr) -> anyhow::Result<TcpListener> {
    let first = TcpListener::bind(addr).await;
    // On a machine without IPv6, every address is every IPv4 address.
    let listener = match first {
        Err(_) if addr.ip() == Ipv6Addr::UNSPECIFIED => TcpListener::bind((Ipv4Addr::UNSPECIFIED, addr.port())).await,
        other => other,
    };
    listener.map_err(|e| anyhow::anyhow!("cannot listen on {addr}: {e}: another process may have the port"))
}

/// Yields connections whose handshake succeeded.
pub fn accepted(listener: TcpListener, gate: Gate, ca: Arc<Ca>) -> anyhow::Result<ReceiverStream<std::io::Result<Conn>>> {
    let posture = Arc::new(ArcSwap::from_pointee(Posture::new(&ca)?));
    tokio::spawn(renew_own(posture.clone(), ca.clone()));
    let (tx, rx) = mpsc::channel(64);
    tokio::spawn(async move {
        loop {
            let incoming = tokio::select! {
                incoming = gate.next(&listener) => incoming,
                // The server ended: the port is given back.
                () = tx.closed() => return,
            };
            let (acceptor, tx) = (tokio_rustls::TlsAcceptor::from(in_force(&posture, &ca)), tx.clone());
            tokio::spawn(async move {
                if let Some(conn) = handshake(incoming, acceptor).await {
                    let _ = tx.send(Ok(conn)).await;
                }
            });
        }
    });
    Ok(ReceiverStream::new(rx))
}

/// A handshake, in a bounded time.
async fn handshake(incoming: Incoming, acceptor: tokio_rustls::TlsAcceptor) -> Option<Conn> {
    let Incoming { socket, from, guest, gives_way } = incoming;
    let _ = socket.set_nodelay(true);
    let accepted = tokio::select! {
        biased;
        // Counted already; a crowd is no news.
        () = gives_way.cancelled() => return None,
        accepted = tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(socket)) => accepted,
    };
    match accepted {
        Ok(Ok(tls)) => {
            let caller = Caller { peer: peer_of(&tls), address: from };
            if let Peer::Workload(_) = caller.peer {
                guest.is_served();
            }
            Some(Conn { tls, caller, gives_way: Box::pin(gives_way.cancelled_owned()), _guest: guest })
        }
        Ok(Err(e)) => {
            tracing::info!(%from, error = %e, "TLS handshake failed");
            None
        }
        Err(_) => {
            tracing::info!(%from, "TLS handshake timed out");
            None
        }
    }
}

fn peer_of(tls: &TlsStream<TcpStream>) -> Peer {
    let leaf: Option<&CertificateDer<'_>> = tls.get_ref().1.peer_certificates().and_then(<[_]>::first);
    // The verifier has read it already, so that it reads again.
    leaf.and_then(|der| LeafInfo::read(der).ok()).map_or(Peer::Anonymous, |info| Peer::Workload(Arc::new(info)))
}

/// How connections are taken in, and who is not.
struct Posture {
    config: Arc<rustls::ServerConfig>,
    denied: Arc<Denied>,
}

impl Posture {
    fn new(ca: &Ca) -> anyhow::Result<Self> {
        let provider = weft_tls::provider();
        // Before who is checked by it: what comes between is seen by whoever looks next.
        let denied = ca.denials().now().denied.clone();
        let verifier = Arc::new(ClientVerifier::optional(provider.clone(), ca.checked_by()));
        let config = Arc::new(weft_tls::server_config(&provider, verifier, &ca.own_svid()?, &[b"h2"]));
        Ok(Self { config, denied })
    }
}

/// What holds for a connection that comes now: who has been told that somebody is denied, or is so no more, can rely on it.
fn in_force(posture: &ArcSwap<Posture>, ca: &Ca) -> Arc<rustls::ServerConfig> {
    let known = posture.load();
    if !Arc::ptr_eq(&known.denied, &ca.denials().now().denied) {
        match Posture::new(ca) {
            Ok(fresh) => posture.store(Arc::new(fresh)),
            Err(e) => tracing::error!(error = %e, "who is denied now may connect, and gets nothing"),
        }
    }
    posture.load().config.clone()
}

/// The control plane is its own issuer: a new key and certificate at two thirds of its life, as for everyone, and when the issuer
/// was renewed or the root is rotated: by other anchors others are checked, too. Who is denied is looked at for each connection ([`in_force`]).
async fn renew_own(posture: Arc<ArcSwap<Posture>>, ca: Arc<Ca>) {
    let mut standing = ca.standing();
    loop {
        // A certificate ends with its issuer at the latest.
        let left = standing.borrow_and_update().authority.remaining();
        let life = Duration::from_secs(wellknown::LEAF_LIFETIME_SECS as u64).min(left).max(SHORTEST_LIFE);
        tokio::select! {
            () = tokio::time::sleep(renewal_delay(life, random())) => {}
            changed = standing.changed() => if changed.is_err() { return },
        }
        match Posture::new(&ca) {
            Ok(fresh) => posture.store(Arc::new(fresh)),
            Err(e) => tracing::error!(error = %e, "the control plane's own certificate was not renewed"),
        }
    }
}

/// What the network is served.
pub fn workload_server() -> Server {
    Server::builder()
        .tcp_nodelay(true)
        .http2_keepalive_interval(Some(Duration::from_secs(20)))
        .http2_keepalive_timeout(Some(Duration::from_secs(10)))
        .http2_max_header_list_size(16 * 1024)
        .initial_stream_window_size(64 * 1024)
        .initial_connection_window_size(128 * 1024)
        .max_concurrent_streams(16)
}

/// gRPC reflection for the whole API.
pub fn reflection()
-> anyhow::Result<tonic_reflection::server::v1::ServerReflectionServer<impl tonic_reflection::server::v1::ServerReflection>> {
    Ok(tonic_reflection::server::Builder::configure().register_encoded_file_descriptor_set(weft_proto::DESCRIPTORS).build_v1()?)
}

/// The operator's socket: made anew, owner-only before anyone can connect.
pub fn operator_socket(path: &Path) -> anyhow::Result<UnixListenerStream> {
    use std::os::unix::fs::PermissionsExt;
    if let Some(dir) = path.parent() {
        crate::issue::private_dir(dir).map_err(|e| anyhow::anyhow!("cannot make the state directory {}: {e}", dir.display()))?;
    }
    let _ = std::fs::remove_file(path);
    let listener = UnixListener::bind(path).map_err(|e| {
        anyhow::anyhow!(
            "cannot make the operator socket {}: {e}: use a shorter --state path on a local file system",
            path.display()
        )
    })?;
    // Its directory is 0700 already; this holds even where somebody opened that up.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(UnixListenerStream::new(listener))
}

/// Names of the services whose health is told.
pub const HEALTH_SERVICES: [&str; 2] = ["weft.v1.Certificates", "weft.v1.Discovery"];

/// The generated servers, so that `main` reads as a list.
pub use v1::certificates_server::CertificatesServer;
pub use v1::discovery_server::DiscoveryServer;
pub use v1::operator_server::OperatorServer;
pub use v1::replicas_server::ReplicasServer;
