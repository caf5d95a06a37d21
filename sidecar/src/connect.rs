//! The seam: from an endpoint to an exchange or to bytes. Nothing above names a socket or a TLS type; behind it stand links, of which
//! each stream is a connection to whoever uses it, and pooled connections, one exchange each over HTTP/1 and many over HTTP/2.

use std::hash::{Hash, Hasher};
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use rustls_pki_types::ServerName;
use tokio::time::Instant;
use weft_core::SpiffeId;
use weft_core::failure::{Failure, Reason, Retryable, Side};
use weft_core::protocol::{LINK_ALPN, MeshProtocol};
use weft_core::traffic::policy::Tcp;
use weft_tls::{LeafInfo, ServerVerifier, VerifyError, verify_error};

use crate::egress::outside::{self, Outside};
use crate::http::h1;
use crate::http::h2;
use crate::io::Socket;
use crate::isolation::{self, Called};
use crate::limits;
use crate::link::Link;
use crate::metrics::WorkerMetrics;
use crate::metrics::slots::HandshakeKey;
use crate::standing::Place;
use crate::stream::{Stream, as_tls_error, handshake_fault};
use crate::worker::Worker;

mod pools;

pub use pools::{Http1, Pools};
use pools::{Key, SPARED};

/// Where to, and how.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Destination {
    /// A peer's sidecar, which must prove this identity. `name` goes into SNI: a routing hint.
    Mesh { address: SocketAddr, identity: SpiffeId, name: Arc<str>, dial: DialPolicy },
    /// In the clear: an endpoint without a sidecar, or the pod's own application.
    Plain { address: SocketAddr, dial: DialPolicy },
    /// A host outside of the mesh, whose addresses are looked for when it is dialled.
    Outside(Arc<Outside>),
}

/// What the service's policy says of its connections; none where it says nothing.
pub type DialPolicy = Option<Arc<DialOptions>>;

/// How connections are made and kept.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct DialOptions {
    /// The time that opening one may take, instead of the sidecar's own bound.
    pub connect: Option<Duration>,
    /// The kernel's options.
    pub tcp: Tcp,
}

impl Destination {
    pub fn address(&self) -> SocketAddr {
        match self {
            Self::Mesh { address, .. } | Self::Plain { address, .. } => *address,
            Self::Outside(outside) => outside.address(),
        }
    }

    /// How connections to it are made.
    pub fn dial(&self) -> Option<&DialOptions> {
        match self {
            Self::Mesh { dial, .. } | Self::Plain { dial, .. } => dial.as_deref(),
            Self::Outside(_) => None,
        }
    }

    /// The identity that the peer must prove; none in the clear.
    pub fn identity(&self) -> Option<&SpiffeId> {
        match self {
            Self::Mesh { identity, .. } => Some(identity),
            Self::Plain { .. } | Self::Outside(_) => None,
        }
    }
}

impl Hash for Destination {
    // The address is enough to spread them, and cheap as one number: this is done twice for every request.
    fn hash<H: Hasher>(&self, state: &mut H) {
        if let Self::Outside(outside) = self {
            return outside.hash(state);
        }
        let address = self.address();
        let ip = match address.ip() {
            IpAddr::V4(ip) => u64::from(ip.to_bits()),
            IpAddr::V6(ip) => (ip.to_bits() >> 64) as u64 ^ (ip.to_bits() as u64).rotate_left(32),
        };
        state.write_u64(ip ^ u64::from(address.port()) << 48);
    }
}

/// One exchange with an endpoint.
pub enum Exchange {
    /// Over a connection, or a stream of a link, that has no other meanwhile.
    Http1(Box<Http1>),
    /// One of many.
    Http2(h2::Sender),
}

/// No connection could be opened.
pub struct Unopened {
    pub failure: Failure,
    /// It was another request's opening, for which this one only waited: whoever opened it has told of it.
    pub shared: bool,
}

impl From<Failure> for Unopened {
    fn from(failure: Failure) -> Self {
        Self { failure, shared: false }
    }
}

/// A stream that was opened.
enum Opened {
    /// Of a link.
    Linked(Stream),
    /// A connection of its own, where the destination has no links: the one that was opened to find out, or none yet.
    Alone(Option<Stream>),
}

/// A dial that is short of descriptors is tried again so often.
const AGAIN: usize = 3;

/// A handshake that is under way; one that is given up took too long.
pub struct Handshaking<'a> {
    metrics: &'a WorkerMetrics,
    began: Instant,
}

impl<'a> Handshaking<'a> {
    pub fn begin(metrics: &'a WorkerMetrics) -> Self {
        Self { metrics, began: Instant::now() }
    }

    pub fn ends(self, error: &'static str, tls: (&'static str, &'static str)) {
        self.metrics.handshake(HandshakeKey { is_client: true, tls, error }, self.began.elapsed());
        std::mem::forget(self);
    }
}

impl Drop for Handshaking<'_> {
    fn drop(&mut self) {
        self.metrics.handshake(HandshakeKey { is_client: true, tls: ("", ""), error: "timeout" }, self.began.elapsed());
    }
}

impl Worker {
    /// A socket that is connected. Where descriptors are short, what idles gives some.
    pub async fn connect(&self, to: SocketAddr, options: Option<&Tcp>) -> std::io::Result<Socket> {
        let is_own = to.ip().is_loopback() || self.shared.config.net.pod_ips.contains(&to.ip());
        for _ in 0..AGAIN {
            match self.dialer.connect(to, is_own, options).await {
                Err(e) if limits::is_short(&e) => {
                    self.pools.spare();
                    tokio::time::sleep(SPARED / 2).await;
                }
                other => return other,
            }
        }
        self.dialer.connect(to, is_own, options).await
    }

    /// Opens a connection of its own to a destination.
    pub async fn dial(&self, to: &Destination) -> Result<Stream, Failure> {
        self.open_alone(to, MeshProtocol::Tcp, false).await
    }

    /// Opens bytes to an endpoint.
    pub async fn open_bytes(self: &Rc<Self>, to: &Arc<Destination>) -> Result<Stream, Unopened> {
        self.opened.ask_again(self);
        self.open(to, MeshProtocol::Tcp).await
    }

    /// Opens an exchange, on a connection that is there already where possible. The flag says whether it was. Who has to wait for one
    /// asks `waits` first, and holds what it gives as long.
    pub async fn open_http1(
        self: &Rc<Self>,
        to: &Arc<Destination>,
        waits: impl FnOnce() -> Result<Place, Failure>,
    ) -> Result<(Exchange, bool), Unopened> {
        self.opened.ask_again(self);
        let key = self.key(to, MeshProtocol::Http1);
        if let Some(connection) = self.pools.take_http1(&key) {
            return Ok((Exchange::Http1(connection), true));
        }
        let _waiting = (waits()?, self.metrics.waits());
        let stream = self.open(to, MeshProtocol::Http1).await?;
        Ok((self.exchange_over(stream, key), false))
    }

    fn exchange_over(&self, stream: Stream, key: Key) -> Exchange {
        let stream = Rc::new(stream);
        let (reader, writer) = h1::halves(&stream, Side::Upstream, self.shared.config.timeouts.write);
        Exchange::Http1(Box::new(Http1::new(stream, (reader, writer), key, self.metrics.pooled())))
    }

    /// See [`Self::open_http1`]. Many exchanges share a connection by themselves, and have no use for a link.
    pub async fn open_http2(
        self: &Rc<Self>,
        to: &Arc<Destination>,
        waits: impl FnOnce() -> Result<Place, Failure>,
    ) -> Result<(Exchange, bool), Unopened> {
        self.opened.ask_again(self);
        let key = self.key(to, MeshProtocol::Http2);
        let (mut waits, mut waiting) = (Some(waits), None);
        let opens = loop {
            match self.pools.http2_with_room(&key) {
                Some(sender) if sender.is_here() => return Ok((Exchange::Http2(sender), true)),
                Some(sender) => sender.is_heard().await,
                None => {
                    if let Some(waits) = waits.take() {
                        waiting = Some((waits()?, self.metrics.waits()));
                    }
                    if let Some(opens) = self.pools.begin_opening(&key).await? {
                        break opens;
                    }
                }
            }
        };
        let opened = self.open_new_http2(to).await;
        match &opened {
            Ok(sender) => self.pools.add_http2(&key, sender.clone()),
            Err(failure) => opens.failed(failure),
        }
        drop(waiting);
        Ok((Exchange::Http2(opened?), false))
    }

    async fn open_new_http2(&self, to: &Destination) -> Result<h2::Sender, Failure> {
        let stream = self.open_alone(to, MeshProtocol::Http2, false).await?;
        let answers = matches!(to, Destination::Mesh { .. }).then(|| self.connect_timeout(to));
        let (sender, driver) = h2::connect(stream, self.shared.config.timeouts.handshake, answers);
        // Not tracked: it lives as long as its senders, and a drain does not wait for a pool.
        tokio::task::spawn_local(driver);
        Ok(sender)
    }

    fn key(&self, to: &Arc<Destination>, protocol: MeshProtocol) -> Key {
        let rests_on_identity = match &**to {
            Destination::Mesh { .. } => true,
            Destination::Plain { .. } => false,
            Destination::Outside(outside) => outside.is_mutual(),
        };
        let generation = if rests_on_identity { self.mesh().identity.load().as_ref().map_or(0, |i| i.generation) } else { 0 };
        Key { destination: to.clone(), protocol, generation }
    }

    fn connect_timeout(&self, to: &Destination) -> Duration {
        let usual = self.shared.config.timeouts.connect;
        if let Destination::Outside(_) = to {
            return usual.max(outside::PATIENCE);
        }
        to.dial().and_then(|d| d.connect).unwrap_or(usual)
    }

    /// Opens a stream to a destination: of a link where there can be one, else a connection of its own.
    async fn open(self: &Rc<Self>, to: &Arc<Destination>, protocol: MeshProtocol) -> Result<Stream, Unopened> {
        match self.open_stream(to, protocol).await? {
            Opened::Linked(stream) | Opened::Alone(Some(stream)) => Ok(stream),
            Opened::Alone(None) => Ok(self.open_alone(to, protocol, false).await?),
        }
    }

    fn may_link(&self, to: &Destination) -> bool {
        self.shared.config.link && matches!(to, Destination::Mesh { .. })
    }

    async fn open_stream(self: &Rc<Self>, to: &Arc<Destination>, protocol: MeshProtocol) -> Result<Opened, Unopened> {
        if !self.may_link(to) {
            return Ok(Opened::Alone(None));
        }
        let key = self.key(to, protocol).of_links();
        let opens = loop {
            if let Some(link) = self.pools.link_with_room(&key) {
                if link.is_there().await && link.has_room() {
                    return Ok(Opened::Linked(Stream::plain(link.begin(protocol), self.buffers.clone())));
                }
                continue;
            }
            if self.pools.is_linkless(&key) {
                return Ok(Opened::Alone(None));
            }
            if let Some(opens) = self.pools.begin_opening(&key).await? {
                break opens;
            }
        };
        let stream = match self.open_alone(to, protocol, true).await {
            Ok(stream) => stream,
            Err(failure) => {
                opens.failed(&failure);
                return Err(failure.into());
            }
        };
        if stream.tls_facts().is_none_or(|facts| facts.alpn.as_deref() != Some(LINK_ALPN)) {
            self.pools.note_linkless(&key);
            return Ok(Opened::Alone(Some(stream)));
        }
        let link = Link::opening(&stream, self.connect_timeout(to));
        let first = link.begin(protocol);
        let driven = Rc::clone(&link);
        // Not tracked: it lives as long as its streams, and a drain does not wait for a pool.
        tokio::task::spawn_local(async move {
            if let Err(e) = driven.drive(&stream, |_, _| {}).await {
                tracing::debug!(peer = %stream.peer(), error = %e, "link ended");
                stream.reset();
            }
        });
        self.pools.add_link(&key, link);
        Ok(Opened::Linked(Stream::plain(first, self.buffers.clone())))
    }

    async fn open_alone(&self, to: &Destination, protocol: MeshProtocol, link: bool) -> Result<Stream, Failure> {
        self.pools.make_room();
        let timeout = self.connect_timeout(to);
        match tokio::time::timeout(timeout, Box::pin(self.open_unbounded(to, protocol, link))).await {
            Ok(result) => result,
            Err(_) => Err(Failure::upstream(Reason::UpstreamConnectTimeout, Retryable::Unprocessed)
                .detail(format!("{} took longer than {timeout:?}", to.address()))),
        }
    }

    async fn open_unbounded(&self, to: &Destination, protocol: MeshProtocol, link: bool) -> Result<Stream, Failure> {
        if let Destination::Outside(outside) = to {
            return Box::pin(outside::open(self, outside, protocol)).await;
        }
        let address = to.address();
        // What goes over a link is asked about as HTTP is: with the connection, for all of its streams.
        let called = self.called(to, if link { MeshProtocol::Http1 } else { protocol });
        let asked = self.mesh().generation();
        if let Some(called) = &called {
            isolation::may_call(self, called)?;
        }
        let socket = self.connect(address, to.dial().map(|d| &d.tcp)).await.map_err(|e| connect_failure(&e, address))?;
        let stream = Stream::plain(socket, self.buffers.clone());
        if let Some(called) = called {
            self.opened.note(self, called, &stream, asked)?;
        }
        let Destination::Mesh { identity, name, .. } = to else { return Ok(stream) };
        let config = self.client_config(identity, protocol, link)?;
        let name = ServerName::try_from(name.to_string()).map_err(|e| Failure::mesh(Reason::Internal).detail(e))?;
        let told = Handshaking::begin(&self.metrics);
        let stream = match stream.connect_tls(config, name).await {
            Ok(stream) => stream,
            Err(e) => {
                told.ends(handshake_fault(&e), ("", ""));
                return Err(tls_failure(&e, address));
            }
        };
        told.ends("", stream.tls_names());
        // Without this the peer would read our first byte as something else.
        let facts = stream.tls_facts();
        if let Some(leaf) = facts.as_ref().and_then(|f| LeafInfo::read(f.peer.as_ref()?).ok())
            && !self.rests_on(&leaf, &stream)
        {
            let detail = format!("{address}: {} was denied meanwhile", leaf.id);
            return Err(Failure::upstream(Reason::UpstreamDenied, Retryable::Unprocessed).detail(detail));
        }
        match facts.and_then(|f| f.alpn) {
            Some(alpn) if alpn == protocol.alpn() || link && alpn == LINK_ALPN => Ok(stream),
            other => Err(Failure::upstream(Reason::UpstreamTls, Retryable::Unprocessed)
                .detail(format!("{address} does not speak {protocol}: it chose {other:?}"))),
        }
    }

    /// Whom network policies are asked about before requests go there; none where that is the pod itself. Who opens bytes asks for themselves.
    fn called(&self, to: &Destination, protocol: MeshProtocol) -> Option<Called> {
        let address = to.address();
        let is_own = self.shared.config.net.pod_ips.contains(&address.ip());
        (protocol != MeshProtocol::Tcp && !is_own).then(|| Called {
            address,
            pod: None,
            identity: to.identity().cloned(),
            is_known: true,
        })
    }

    /// Notes that a connection rests on a peer's certificate; false, and the connection is to be reset, where that is believed no more.
    pub fn rests_on(&self, peer: &LeafInfo, stream: &Stream) -> bool {
        let own = self.mesh().identity.load();
        if own.as_ref().is_none_or(|own| own.bundle.gave_up(peer)) {
            stream.reset();
            return false;
        }
        self.trusted.add(peer.clone(), stream.socket());
        true
    }

    fn client_config(
        &self,
        identity: &SpiffeId,
        protocol: MeshProtocol,
        link: bool,
    ) -> Result<Arc<rustls::ClientConfig>, Failure> {
        let own = self.mesh().identity.load();
        let Some(own) = own.as_ref() else { return Err(Failure::mesh(Reason::NotReady)) };
        let made = self.pools.client_config((identity.clone(), protocol, link), own.generation, || {
            let verifier = Arc::new(ServerVerifier::new(own.provider.clone(), own.bundle.clone(), vec![identity.clone()]));
            let (with_link, alone) = ([LINK_ALPN, protocol.alpn()], [protocol.alpn()]);
            let alpn: &[&[u8]] = if link { &with_link } else { &alone };
            Arc::new(weft_tls::client_config(&own.provider, verifier, Some(&own.svid), alpn))
        });
        Ok(made)
    }
}

pub fn connect_failure(e: &std::io::Error, address: SocketAddr) -> Failure {
    use std::io::ErrorKind;
    if limits::is_short(e) {
        // Nobody else is to blame.
        return Failure { retryable: Retryable::Unprocessed, ..Failure::mesh(Reason::Overloaded) }
            .detail(format!("{address}: {e}"));
    }
    let reason = match e.kind() {
        ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset => Reason::UpstreamConnectRefused,
        ErrorKind::TimedOut => Reason::UpstreamConnectTimeout,
        ErrorKind::PermissionDenied => Reason::Internal,
        _ => Reason::UpstreamUnreachable,
    };
    Failure::upstream(reason, Retryable::Unprocessed).detail(format!("{address}: {e}"))
}

pub fn tls_failure(e: &std::io::Error, address: SocketAddr) -> Failure {
    let verify = as_tls_error(e).and_then(verify_error);
    let reason = match verify {
        Some(VerifyError::Identity { .. } | VerifyError::OtherPeer { .. } | VerifyError::OtherDomain { .. }) => {
            Reason::UpstreamIdentity
        }
        Some(VerifyError::ForeignDomain { .. }) => Reason::UpstreamUntrusted,
        Some(VerifyError::Denied { .. }) => Reason::UpstreamDenied,
        _ => Reason::UpstreamTls,
    };
    let text = verify.map_or_else(|| e.to_string(), ToString::to_string);
    Failure::upstream(reason, Retryable::Unprocessed).detail(format!("{address}: {text}"))
}

/// Polls a future once: what is ready at once need not be waited for.
pub async fn now_or_pending<F: Future>(mut future: std::pin::Pin<&mut F>) -> Option<F::Output> {
    std::future::poll_fn(|cx| match future.as_mut().poll(cx) {
        Poll::Ready(v) => Poll::Ready(Some(v)),
        Poll::Pending => Poll::Ready(None),
    })
    .await
}
