//! A network in memory, for simulation: hosts, what lies between them, and the redirect in front of each pod. Time is tokio's, so
//! that a paused clock governs it; chance follows from one seed.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::{Notify, mpsc};

use super::memory::{Chance, Link, MemorySocket, Shape};

/// The network. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Network(Rc<State>);

#[derive(Debug)]
struct State {
    shape: Shape,
    chance: Rc<Chance>,
    links: RefCell<HashMap<(IpAddr, IpAddr), Rc<Link>>>,
    listeners: RefCell<HashMap<SocketAddr, Vec<mpsc::UnboundedSender<MemorySocket>>>>,
    redirects: RefCell<HashMap<IpAddr, Redirect>>,
    /// The last port that a client was given.
    port: Cell<u16>,
    healed: Notify,
}

/// The ports of the sidecar that a pod's connections are redirected to.
#[derive(Clone, Copy, Debug)]
pub struct Redirect {
    pub inbound: u16,
    pub outbound: u16,
}

impl Network {
    pub fn new(seed: u64, shape: Shape) -> Self {
        Self(Rc::new(State {
            shape,
            chance: Chance::new(seed),
            links: RefCell::default(),
            listeners: RefCell::default(),
            redirects: RefCell::default(),
            port: Cell::new(32_768),
            healed: Notify::new(),
        }))
    }

    /// A place for programs, whose connections the redirect catches where there is one.
    pub fn host(&self, ip: IpAddr) -> Host {
        Host { network: self.clone(), ip, exempt: false }
    }

    /// A place for a sidecar, whose own connections the redirect lets pass.
    pub fn sidecar(&self, ip: IpAddr) -> Host {
        Host { network: self.clone(), ip, exempt: true }
    }

    /// Puts a redirect in front of a pod. It stays there whether anybody listens behind it or not.
    pub fn redirect(&self, ip: IpAddr, redirect: Redirect) {
        self.0.redirects.borrow_mut().insert(ip, redirect);
    }

    fn link(&self, a: IpAddr, b: IpAddr) -> Rc<Link> {
        let mut links = self.0.links.borrow_mut();
        let link = links.entry((a.min(b), a.max(b)));
        Rc::clone(link.or_insert_with(|| Link::new(self.0.shape, Rc::clone(&self.0.chance))))
    }

    /// Sets how long bytes take from one host to the other, in whole milliseconds: tokio's timers know nothing finer.
    pub fn set_latency(&self, a: IpAddr, b: IpAddr, latency: Duration) {
        self.link(a, b).latency.set(latency);
    }

    /// Nothing arrives any more, either way, until [`Self::heal`].
    pub fn partition(&self, a: IpAddr, b: IpAddr) {
        self.link(a, b).partitioned.set(true);
    }

    /// Ends a partition: what was held back arrives.
    pub fn heal(&self, a: IpAddr, b: IpAddr) {
        let link = self.link(a, b);
        link.partitioned.set(false);
        link.wake();
        self.0.healed.notify_waiters();
    }

    /// Resets every connection between two hosts.
    pub fn reset(&self, a: IpAddr, b: IpAddr) {
        self.link(a, b).reset();
    }

    /// Connections of which an end is open, on the whole network.
    pub fn connections(&self) -> usize {
        self.0.links.borrow().values().map(|link| link.connections()).sum()
    }

    /// Those between one host and all others.
    pub fn connections_of(&self, ip: IpAddr) -> usize {
        let links = self.0.links.borrow();
        let of_it = links.iter().filter(|((a, b), _)| a != b && (*a == ip || *b == ip));
        of_it.map(|(_, link)| link.connections()).sum()
    }
}

/// A place in the network that can dial and listen.
#[derive(Clone, Debug)]
pub struct Host {
    network: Network,
    ip: IpAddr,
    exempt: bool,
}

impl Host {
    /// Listens. Several listeners of one address share its connections by chance.
    pub fn listen(&self, port: u16) -> MemoryListener {
        let (sender, sockets) = mpsc::unbounded_channel();
        self.network.0.listeners.borrow_mut().entry(SocketAddr::new(self.ip, port)).or_default().push(sender);
        MemoryListener(sockets)
    }

    /// Where a connection to `to` comes out: the caller's own sidecar, the callee's, or `to` itself.
    fn caught(&self, to: SocketAddr) -> SocketAddr {
        let redirects = self.network.0.redirects.borrow();
        match (redirects.get(&self.ip), redirects.get(&to.ip())) {
            (Some(redirect), _) if !self.exempt => SocketAddr::new(self.ip, redirect.outbound),
            (_, Some(redirect)) if to.ip() != self.ip => SocketAddr::new(to.ip(), redirect.inbound),
            _ => to,
        }
    }

    /// Connects: after a round trip, or refused, or not before a partition ends.
    pub async fn connect(&self, to: SocketAddr) -> io::Result<MemorySocket> {
        let at = self.caught(to);
        let link = self.network.link(self.ip, at.ip());
        while link.partitioned.get() {
            self.network.0.healed.notified().await;
        }
        let round_trip = link.latency.get() * 2;
        if !round_trip.is_zero() {
            tokio::time::sleep(round_trip).await;
        }
        let state = &self.network.0;
        let mut listeners = state.listeners.borrow_mut();
        let open = listeners.entry(at).or_default();
        open.retain(|listener| !listener.is_closed());
        if open.is_empty() {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        let listener = &open[state.chance.below(open.len())];
        state.port.set(state.port.get().checked_add(1).unwrap_or(32_768));
        let (theirs, ours) = link.connect(SocketAddr::new(self.ip, state.port.get()), to);
        let theirs = theirs.redirected_from((at != to).then_some(to));
        listener.send(theirs).map_err(|_| io::ErrorKind::ConnectionRefused)?;
        Ok(ours)
    }
}

/// Where connections come in.
#[derive(Debug)]
pub struct MemoryListener(mpsc::UnboundedReceiver<MemorySocket>);

impl MemoryListener {
    /// The next connection; none ever, once the network is gone. Cancel-safe.
    pub async fn accept(&mut self) -> MemorySocket {
        match self.0.recv().await {
            Some(socket) => socket,
            None => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Socket, memory::pair};
    use super::*;
    use crate::pool::Buffers;
    use crate::stream::Stream;
    use tokio::time::Instant;

    const ONE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));
    const TWO: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 2));
    const STALL: Duration = Duration::from_secs(1);

    fn stream(socket: MemorySocket) -> Stream {
        Stream::plain(Socket::Memory(socket), Buffers::default())
    }

    async fn connected(network: &Network) -> (Stream, Stream) {
        let mut listener = network.host(TWO).listen(80);
        let client = network.host(ONE).connect(SocketAddr::new(TWO, 80)).await.expect("somebody listens");
        (stream(client), stream(listener.accept().await))
    }

    #[tokio::test(start_paused = true)]
    async fn bytes_arrive_after_the_latency_and_a_partition_holds_them_back() {
        let network = Network::new(1, Shape::default());
        network.set_latency(ONE, TWO, Duration::from_millis(7));
        let began = Instant::now();
        let (client, server) = connected(&network).await;
        client.write_all(b"hello", STALL).await.expect("there is room");
        assert_eq!(&server.read_some().await.expect("open")[..], b"hello");
        assert_eq!(began.elapsed(), Duration::from_millis(21));
        network.partition(ONE, TWO);
        client.write_all(b"again", STALL).await.expect("there is room");
        let mut buf = [0; 8];
        assert!(tokio::time::timeout(STALL, server.read(&mut buf)).await.is_err());
        network.heal(ONE, TWO);
        assert_eq!(server.read(&mut buf).await.expect("healed"), 5);
        client.shutdown().await.expect("open");
        assert_eq!(server.read(&mut buf).await.expect("a proper end"), 0);
        server.write_all(b"half", STALL).await.expect("the other half is open");
        assert_eq!(client.read(&mut buf).await.expect("open"), 4);
        drop((client, server));
        assert_eq!(network.connections(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_full_waits_and_what_is_reset_never_ends_properly() {
        for seed in 0..8 {
            let network = Network::new(seed, Shape { capacity: 100, chunk: 3 });
            let (client, server) = connected(&network).await;
            assert!(client.write_all(&[1; 101], STALL).await.is_err(), "more than the capacity was taken");
            server.reset();
            drop(server);
            assert!(client.read(&mut [0; 8]).await.is_err(), "a reset looks like an end");
            let refused = network.host(ONE).connect(SocketAddr::new(TWO, 81)).await;
            assert_eq!(refused.expect_err("nobody listens").kind(), io::ErrorKind::ConnectionRefused);
        }
        let (a, b) = pair(SocketAddr::new(ONE, 1), SocketAddr::new(TWO, 2));
        drop(b);
        assert_eq!(stream(a).read(&mut [0; 8]).await.expect("an end"), 0);
    }
}
