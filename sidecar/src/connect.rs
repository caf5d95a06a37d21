//! The seam: from an endpoint to an exchange or to bytes. Nothing above names a socket or a TLS type; behind it stand links, of which
//! each stream is a connection to whoever uses it, and pooled connections, one exchange each over HTTP/1 and many over HTTP/2.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::hash::{Hash, Hasher};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::Poll;
use std::time::Duration;

use rustls_pki_types::ServerName;
use tokio::sync::Notify;
use tokio::time::Instant;
use weft_core::SpiffeId;
use weft_core::egress::Table;
use weft_core::failure::{Failure, Reason, Retryable, Side};
use weft_core::protocol::{LINK_ALPN, MeshProtocol};
use weft_core::traffic::policy::Tcp;
use weft_tls::{LeafInfo, ServerVerifier, VerifyError, verify_error};

use crate::egress::outside::{self, Outside};
use crate::http::h1::{self, Reader, Writer};
use crate::http::h2;
use crate::io::Socket;
use crate::isolation::{self, Called};
use crate::limits;
use crate::link::Link;
use crate::metrics::WorkerMetrics;
use crate::metrics::slots::{HandshakeKey, Held, PoolSlots};
use crate::standing::Place;
use crate::stream::{Stream, as_tls_error, handshake_fault};
use crate::worker::Worker;

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
    // The address is enough to spread them, and cheap: this is done for every request.
    fn hash<H: Hasher>(&self, state: &mut H) {
        match self {
            Self::Outside(outside) => outside.hash(state),
            _ => self.address().hash(state),
        }
    }
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Key {
    destination: Arc<Destination>,
    protocol: MeshProtocol,
    generation: u64,
}

impl Key {
    /// The one that all links to its destination have.
    fn of_links(&self) -> Self {
        Self { protocol: MeshProtocol::Tcp, ..self.clone() }
    }
}

/// An idle HTTP/1 connection.
pub struct Http1 {
    pub stream: Rc<Stream>,
    pub reader: Reader,
    pub writer: Writer,
    key: Key,
    since: Instant,
    /// It is counted for as long as it is there.
    _counted: Held,
}

impl Http1 {
    /// Whether it is HTTP/2's exchanges that go over it in this form.
    pub fn is_carried(&self) -> bool {
        self.writer.version() == MeshProtocol::Http2
    }

    /// Whether an exchange may begin on it: a server that closed it or spoke out of turn meanwhile shows as readable.
    fn is_quiet(&self) -> bool {
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        self.stream.poll_readable(&mut cx).is_pending() && self.stream.is_answering()
    }
}

/// One exchange with an endpoint.
pub enum Exchange {
    /// Over a connection, or a stream of a link, that has no other meanwhile.
    Http1(Box<Http1>),
    /// One of many.
    Http2(h2::Sender),
}

/// A worker's connections that may be used again.
#[derive(Default)]
pub struct Pools {
    #[expect(clippy::vec_box, reason = "an exchange moves it out and back: a pointer, not the whole")]
    http1: RefCell<HashMap<Key, Vec<Box<Http1>>>>,
    http2: RefCell<HashMap<Key, Vec<h2::Sender>>>,
    /// Connections that are being opened for everybody who asks meanwhile.
    opening: RefCell<HashMap<Key, Rc<Opening>>>,
    /// Where a link may be tried: all that go to one destination share it, whatever they speak.
    links: RefCell<HashMap<Key, Vec<Rc<Link>>>>,
    /// Destinations that have no links, until then.
    linkless: RefCell<HashMap<Key, Instant>>,
    tls: RefCell<HashMap<(SpiffeId, MeshProtocol, bool), Made>>,
    /// As many may idle together, wherever they go: each has a descriptor that an accepted connection cannot have.
    most: usize,
    /// Connections that were opened since it was looked how many idle.
    opened: Cell<usize>,
    /// When descriptors were short last.
    spared: Cell<Option<Instant>>,
}

/// A shared connection that is being opened: whoever needs it waits for the one that began.
#[derive(Default)]
struct Opening {
    ended: Notify,
    failure: RefCell<Option<Failure>>,
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

/// Ends an opening, also where it is abandoned.
struct Opens<'a> {
    pools: &'a Pools,
    key: &'a Key,
    opening: Rc<Opening>,
}

impl Drop for Opens<'_> {
    fn drop(&mut self) {
        self.pools.opening.borrow_mut().remove(self.key);
        self.opening.ended.notify_waiters();
    }
}

/// A stream that was opened.
enum Opened {
    /// Of a link.
    Linked(Stream),
    /// A connection of its own, where the destination has no links: the one that was opened to find out, or none yet.
    Alone(Option<Stream>),
}

/// A client configuration and the generation of the identity that it was made with.
type Made = (u64, Arc<rustls::ClientConfig>);

/// Idle connections that are kept for each endpoint.
const MAX_IDLE: usize = 64;
/// Streams on one HTTP/2 connection before another is opened.
const MAX_STREAMS: usize = 100;
/// What was told to end has had the time to, and more may be told.
const SPARED: Duration = Duration::from_millis(20);
/// A dial that is short of descriptors is tried again so often.
const AGAIN: usize = 3;
/// A destination that has no links is asked again after so long: it may have been replaced by one that has.
const LINKLESS: Duration = Duration::from_secs(60);

impl Pools {
    /// Those of one worker, of which `most` may idle.
    pub fn new(most: usize) -> Self {
        Self { most, ..Self::default() }
    }

    fn take_http1(&self, key: &Key) -> Option<Box<Http1>> {
        let mut pools = self.http1.borrow_mut();
        let idle = pools.get_mut(key)?;
        while let Some(connection) = idle.pop() {
            if connection.is_quiet() {
                return Some(connection);
            }
        }
        None
    }

    fn http2_with_room(&self, key: &Key) -> Option<h2::Sender> {
        let mut pools = self.http2.borrow_mut();
        let list = pools.get_mut(key)?;
        list.retain(|s| !s.is_closed());
        list.iter().find(|s| s.has_room(MAX_STREAMS)).cloned()
    }

    fn link_with_room(&self, key: &Key) -> Option<Rc<Link>> {
        self.links.borrow().get(key)?.iter().find(|link| link.has_room()).cloned()
    }

    fn has_link(&self, key: &Key) -> bool {
        self.links.borrow().get(key).is_some_and(|links| !links.is_empty())
    }

    fn has_no_links(&self, key: &Key) -> bool {
        let linkless = self.linkless.borrow();
        !linkless.is_empty() && linkless.get(key).is_some_and(|until| Instant::now() < *until)
    }

    fn begin_opening<'a>(&'a self, key: &'a Key) -> Opens<'a> {
        let opening = Rc::<Opening>::default();
        self.opening.borrow_mut().insert(key.clone(), Rc::clone(&opening));
        Opens { pools: self, key, opening }
    }

    /// Takes a connection back whose exchange ended cleanly.
    pub fn keep_http1(&self, mut connection: Box<Http1>) {
        if connection.reader.has_rest() || !connection.stream.is_answering() {
            return;
        }
        connection.since = Instant::now();
        let mut pools = self.http1.borrow_mut();
        let idle = pools.entry(connection.key.clone()).or_default();
        if idle.len() < MAX_IDLE {
            idle.push(connection);
        }
    }

    /// Makes room for a connection that is being opened: those that idle longest end where too many do. It is looked once for many, since that goes through all.
    fn make_room(&self) {
        let now_and_then = (self.most / 8).max(1);
        self.opened.set(self.opened.get() + 1);
        if self.opened.get() >= now_and_then {
            self.opened.set(0);
            self.give_way(|_| self.most.saturating_sub(now_and_then));
        }
    }

    /// Descriptors are short: ends an eighth of what idles, unless it has just done so. What speaks TLS is gone when its peer has heard.
    pub fn spare(&self) {
        let now = Instant::now();
        if self.spared.get().is_some_and(|at| now.duration_since(at) < SPARED) {
            return;
        }
        self.spared.set(Some(now));
        self.give_way(|idle| idle - idle.div_ceil(8));
    }

    /// Ends what idles, longest first, until as many are left at the most as `most` says of how many there are.
    fn give_way(&self, most: impl FnOnce(usize) -> usize) {
        let mut idle = self.idle();
        let most = most(idle.len());
        if idle.len() > most {
            let (_, shortest, _) = idle.select_nth_unstable(most);
            self.end(|_| true, *shortest);
        }
    }

    /// For how long each connection that nobody uses has had no use.
    fn idle(&self) -> Vec<Duration> {
        let now = Instant::now();
        let mut idle: Vec<Duration> = Vec::new();
        // What is kept on a link is no connection of its own.
        let http1 = self.http1.borrow();
        idle.extend(http1.values().flatten().filter(|c| !c.stream.is_linked()).map(|c| now.duration_since(c.since)));
        drop(http1);
        let http2 = self.http2.borrow();
        idle.extend(http2.values().flatten().filter(|s| !s.is_closed()).filter_map(h2::Sender::idle));
        for (key, links) in &*self.links.borrow() {
            match self.unused(key, links, now) {
                Some(since) => idle.extend(std::iter::repeat_n(since, links.len())),
                None => idle.extend(links.iter().filter(|link| !link.is_leaving()).filter_map(|link| link.idle())),
            }
        }
        idle
    }

    /// How long all links to one destination have had no stream, or none but those that are kept for the next exchange; none while they have others.
    fn unused(&self, key: &Key, links: &[Rc<Link>], now: Instant) -> Option<Duration> {
        let http1 = self.http1.borrow();
        let kept = [MeshProtocol::Http1, MeshProtocol::Http2].map(|protocol| http1.get(&Key { protocol, ..key.clone() }));
        let is_here = |link: &Rc<Link>| links.iter().any(|known| Rc::ptr_eq(known, link));
        let kept = || kept.iter().copied().flatten().flatten().filter(|c| c.stream.link().is_some_and(is_here));
        let streams: usize = links.iter().map(|link| link.streams()).sum();
        let since = kept().map(|c| now.duration_since(c.since)).chain(links.iter().filter_map(|link| link.idle()));
        if kept().count() == streams { since.min() } else { None }
    }

    /// Ends what idles for `idle` or longer, has ended at the other end, or is not `current`.
    fn end(&self, current: impl Fn(&Key) -> bool, idle: Duration) {
        let now = Instant::now();
        // Links first: what is kept on one ends with it.
        self.links.borrow_mut().retain(|key, list| {
            let unused = self.unused(key, list, now).is_some_and(|since| since >= idle);
            list.retain(|link| {
                let is_used = !unused && link.idle().is_none_or(|since| since < idle);
                let stays = current(key) && !link.is_leaving() && is_used;
                if !stays {
                    link.leave();
                }
                stays
            });
            !list.is_empty()
        });
        self.http1.borrow_mut().retain(|key, list| {
            list.retain(|c| current(key) && now.duration_since(c.since) < idle && c.is_quiet());
            !list.is_empty()
        });
        self.http2.borrow_mut().retain(|key, list| {
            list.retain(|s| current(key) && !s.is_closed() && s.idle().is_none_or(|since| since < idle));
            !list.is_empty()
        });
    }

    /// Drops what idles for `idle` or longer, has ended, was made under another generation of the identity, or for an external service that is not in force
    /// any more; tells what is left.
    pub fn sweep(&self, generation: u64, egress: Option<&Table>, idle: Duration, told: &PoolSlots) {
        let current = |key: &Key| match &*key.destination {
            Destination::Mesh { .. } => key.generation == generation,
            Destination::Plain { .. } => true,
            Destination::Outside(outside) => outside.is_in(egress) && (!outside.is_mutual() || key.generation == generation),
        };
        self.end(current, idle);
        self.give_way(|_| self.most);
        let now = Instant::now();
        self.linkless.borrow_mut().retain(|_, until| now < *until);
        let (http1, http2) = (self.http1.borrow(), self.http2.borrow());
        let links = self.links.borrow();
        told.links.store(links.values().map(Vec::len).sum::<usize>() as u64, Relaxed);
        told.streams.store(links.values().flatten().map(|link| link.streams()).sum::<usize>() as u64, Relaxed);
        // What HTTP/2 goes over in that form are streams of links, and told as such.
        let of_http1 = http1.iter().filter(|(key, _)| key.protocol == MeshProtocol::Http1);
        told.http1_idle.store(of_http1.map(|(_, idle)| idle.len()).sum::<usize>() as u64, Relaxed);
        told.http2.store(http2.values().map(Vec::len).sum::<usize>() as u64, Relaxed);
        told.http2_idle.store(http2.values().flatten().filter(|s| s.idle().is_some()).count() as u64, Relaxed);
    }
}

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
        let (reader, writer) = h1::halves(&stream, Side::Upstream, key.protocol, self.shared.config.timeouts.write);
        Exchange::Http1(Box::new(Http1 { reader, writer, stream, key, since: Instant::now(), _counted: self.metrics.pooled() }))
    }

    /// See [`Self::open_http1`]. `fits` says whether the exchange can be carried over a link.
    pub async fn open_http2(
        self: &Rc<Self>,
        to: &Arc<Destination>,
        fits: bool,
        waits: impl FnOnce() -> Result<Place, Failure>,
    ) -> Result<(Exchange, bool), Unopened> {
        self.opened.ask_again(self);
        let key = self.key(to, MeshProtocol::Http2);
        let fits = fits && self.may_link(to);
        if fits && let Some(connection) = self.pools.take_http1(&key) {
            return Ok((Exchange::Http1(connection), true));
        }
        // One that is there for what does not fit is for that alone; where there are no links, it is for everything.
        if let Some(sender) = self.pools.http2_with_room(&key).filter(|_| !(fits && self.pools.has_link(&key.of_links()))) {
            return Ok((Exchange::Http2(sender), true));
        }
        let _waiting = (waits()?, self.metrics.waits());
        let mut own = None;
        if fits {
            match self.open_stream(to, MeshProtocol::Http2).await? {
                Opened::Linked(stream) => return Ok((self.exchange_over(stream, key), false)),
                Opened::Alone(stream) => own = stream,
            }
        }
        let opens = loop {
            if let Some(sender) = self.pools.http2_with_room(&key) {
                return Ok((Exchange::Http2(sender), true));
            }
            let under_way = self.pools.opening.borrow().get(&key).cloned();
            let Some(opening) = under_way else { break self.pools.begin_opening(&key) };
            opening.ended.notified().await;
            if let Some(failure) = opening.failure.borrow().clone() {
                return Err(Unopened { failure, shared: true });
            }
        };
        let opened = self.open_new_http2(to, own).await;
        match &opened {
            Ok(sender) => self.pools.http2.borrow_mut().entry(key.clone()).or_default().push(sender.clone()),
            Err(failure) => *opens.opening.failure.borrow_mut() = Some(failure.clone()),
        }
        Ok((Exchange::Http2(opened?), false))
    }

    async fn open_new_http2(&self, to: &Destination, own: Option<Stream>) -> Result<h2::Sender, Failure> {
        let stream = match own {
            Some(stream) => stream,
            None => self.open_alone(to, MeshProtocol::Http2, false).await?,
        };
        let (sender, driver) = h2::connect(stream, self.buffers.clone(), self.shared.config.timeouts.handshake);
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
            if self.pools.has_no_links(&key) {
                return Ok(Opened::Alone(None));
            }
            let under_way = self.pools.opening.borrow().get(&key).cloned();
            let Some(opening) = under_way else { break self.pools.begin_opening(&key) };
            opening.ended.notified().await;
            if let Some(failure) = opening.failure.borrow().clone() {
                return Err(Unopened { failure, shared: true });
            }
        };
        let stream = match self.open_alone(to, protocol, true).await {
            Ok(stream) => stream,
            Err(failure) => {
                *opens.opening.failure.borrow_mut() = Some(failure.clone());
                return Err(failure.into());
            }
        };
        if stream.tls_facts().is_none_or(|facts| facts.alpn.as_deref() != Some(LINK_ALPN)) {
            self.pools.linkless.borrow_mut().insert(key.clone(), Instant::now() + LINKLESS);
            return Ok(Opened::Alone(Some(stream)));
        }
        let link = Link::opening(&stream, self.connect_timeout(to));
        let first = link.begin(protocol);
        let driver = (Rc::clone(&link), self.buffers.clone());
        // Not tracked: it lives as long as its streams, and a drain does not wait for a pool.
        tokio::task::spawn_local(async move {
            let (link, buffers) = driver;
            let ended = tokio::select! {
                biased;
                ended = link.drive(&stream, &buffers, |_, _| {}) => ended,
                () = link.watch() => Ok(()),
            };
            if let Err(e) = ended {
                tracing::debug!(peer = %stream.peer(), error = %e, "link ended");
                stream.reset();
            }
        });
        self.pools.links.borrow_mut().entry(key.clone()).or_default().push(link);
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
        let mut cache = self.pools.tls.borrow_mut();
        let key = (identity.clone(), protocol, link);
        if let Some((generation, config)) = cache.get(&key)
            && *generation == own.generation
        {
            return Ok(config.clone());
        }
        let verifier = Arc::new(ServerVerifier::new(own.provider.clone(), own.bundle.clone(), vec![identity.clone()]));
        let (with_link, alone) = ([LINK_ALPN, protocol.alpn()], [protocol.alpn()]);
        let alpn: &[&[u8]] = if link { &with_link } else { &alone };
        let config = Arc::new(weft_tls::client_config(&own.provider, verifier, Some(&own.svid), alpn));
        cache.retain(|_, (generation, _)| *generation == own.generation);
        cache.insert(key, (own.generation, config.clone()));
        Ok(config)
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
