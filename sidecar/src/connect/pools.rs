//! What a worker keeps for use again: idle HTTP/1 connections, HTTP/2 connections and links, by where they go; and how many of them.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::hash::{Hash, Hasher};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use rustls::ClientConfig;
use tokio::sync::Notify;
use tokio::time::Instant;
use weft_core::SpiffeId;
use weft_core::egress::Table;
use weft_core::failure::Failure;
use weft_core::protocol::MeshProtocol;

use super::{Destination, Unopened};
use crate::http::h1::{Reader, Writer};
use crate::http::h2;
use crate::link::Link;
use crate::metrics::slots::{Held, PoolSlots};
use crate::stream::Stream;

/// Idle connections that are kept for each endpoint.
const MAX_IDLE: usize = 64;
/// What was told to end has had the time to, and more may be told.
pub(super) const SPARED: Duration = Duration::from_millis(20);

/// A destination that has no links is asked again after so long: it may have been replaced by one that has.
const LINKLESS: Duration = Duration::from_secs(60);

/// A client configuration and the generation of the identity that it was made with.
type Made = (u64, Arc<ClientConfig>);

/// Whom a client configuration is for, what is spoken with it, and whether links are.
type Peer = (SpiffeId, MeshProtocol, bool);

/// What connections have in common that serve the same.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Key {
    pub destination: Arc<Destination>,
    pub protocol: MeshProtocol,
    /// Of the identity that they rest on; 0 where they rest on none.
    pub generation: u64,
}

impl Hash for Key {
    // Few generations are in use at once, and one destination is spoken to in few ways.
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.destination.hash(state);
    }
}

impl Key {
    /// The one that all links to its destination have.
    pub(super) fn of_links(&self) -> Self {
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
    pub(super) fn new(stream: Rc<Stream>, (reader, writer): (Reader, Writer), key: Key, counted: Held) -> Self {
        Self { stream, reader, writer, key, since: Instant::now(), _counted: counted }
    }

    /// Whether an exchange may begin on it: a server that closed it or spoke out of turn meanwhile shows as readable.
    fn is_quiet(&self) -> bool {
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        self.stream.poll_readable(&mut cx).is_pending() && self.stream.is_answering()
    }
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
    tls: RefCell<HashMap<Peer, Made>>,
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

/// An opening that is under way; it ends with this, also where it is abandoned.
pub(super) struct Opens<'a> {
    pools: &'a Pools,
    key: &'a Key,
    opening: Rc<Opening>,
}

impl Opens<'_> {
    /// Whoever waits for it is told.
    pub(super) fn failed(&self, why: &Failure) {
        *self.opening.failure.borrow_mut() = Some(why.clone());
    }
}

impl Drop for Opens<'_> {
    fn drop(&mut self) {
        self.pools.opening.borrow_mut().remove(self.key);
        self.opening.ended.notify_waiters();
    }
}

impl Pools {
    /// Those of one worker, of which `most` may idle.
    pub fn new(most: usize) -> Self {
        Self { most, ..Self::default() }
    }

    pub(super) fn take_http1(&self, key: &Key) -> Option<Box<Http1>> {
        let mut pools = self.http1.borrow_mut();
        let idle = pools.get_mut(key)?;
        while let Some(connection) = idle.pop() {
            if connection.is_quiet() {
                return Some(connection);
            }
        }
        None
    }

    pub(super) fn http2_with_room(&self, key: &Key) -> Option<h2::Sender> {
        let mut pools = self.http2.borrow_mut();
        let list = pools.get_mut(key)?;
        list.retain(|s| !s.is_closed());
        // One of which it is known that it is there; all others are asked.
        let mut asked = None;
        for sender in list.iter().filter(|s| s.has_room(h2::USUAL_STREAMS)) {
            if sender.is_here() {
                return Some(sender.clone());
            }
            asked.get_or_insert(sender);
        }
        asked.cloned()
    }

    pub(super) fn link_with_room(&self, key: &Key) -> Option<Rc<Link>> {
        self.links.borrow().get(key)?.iter().find(|link| link.has_room()).cloned()
    }

    pub(super) fn is_linkless(&self, key: &Key) -> bool {
        let linkless = self.linkless.borrow();
        !linkless.is_empty() && linkless.get(key).is_some_and(|until| Instant::now() < *until)
    }

    /// It is noted that a destination has no links.
    pub(super) fn note_linkless(&self, key: &Key) {
        self.linkless.borrow_mut().insert(key.clone(), Instant::now() + LINKLESS);
    }

    /// Begins to open what all share who ask meanwhile. None where another was about to, and has: look again. An error where that one failed.
    pub(super) async fn begin_opening<'a>(&'a self, key: &'a Key) -> Result<Option<Opens<'a>>, Unopened> {
        let under_way = self.opening.borrow().get(key).cloned();
        let Some(opening) = under_way else {
            let opening = Rc::<Opening>::default();
            self.opening.borrow_mut().insert(key.clone(), Rc::clone(&opening));
            return Ok(Some(Opens { pools: self, key, opening }));
        };
        opening.ended.notified().await;
        let failure = opening.failure.borrow().clone();
        failure.map_or(Ok(None), |failure| Err(Unopened { failure, shared: true }))
    }

    pub(super) fn add_http2(&self, key: &Key, sender: h2::Sender) {
        self.http2.borrow_mut().entry(key.clone()).or_default().push(sender);
    }

    pub(super) fn add_link(&self, key: &Key, link: Rc<Link>) {
        self.links.borrow_mut().entry(key.clone()).or_default().push(link);
    }

    /// The client configuration for a peer, of this generation of the identity: the one that was made before, or a new one.
    pub(super) fn client_config(
        &self,
        peer: Peer,
        generation: u64,
        make: impl FnOnce() -> Arc<ClientConfig>,
    ) -> Arc<ClientConfig> {
        let mut made = self.tls.borrow_mut();
        if let Some((of, config)) = made.get(&peer)
            && *of == generation
        {
            return config.clone();
        }
        let config = make();
        made.retain(|_, (of, _)| *of == generation);
        made.insert(peer, (generation, config.clone()));
        config
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
    pub(super) fn make_room(&self) {
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
        let kept = http1.get(&Key { protocol: MeshProtocol::Http1, ..key.clone() });
        let is_here = |link: &Rc<Link>| links.iter().any(|known| Rc::ptr_eq(known, link));
        let kept = || kept.into_iter().flatten().filter(|c| c.stream.link().is_some_and(is_here));
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
        told.http1_idle.store(http1.values().map(Vec::len).sum::<usize>() as u64, Relaxed);
        told.http2.store(http2.values().map(Vec::len).sum::<usize>() as u64, Relaxed);
        told.http2_idle.store(http2.values().flatten().filter(|s| s.idle().is_some()).count() as u64, Relaxed);
    }
}
