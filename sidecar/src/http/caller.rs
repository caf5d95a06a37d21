//! What is known of the caller of a connection, and what its requests are counted as.

use std::cell::RefCell;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;

use smallvec::SmallVec;
use weft_core::SpiffeId;
use weft_core::protocol::MeshProtocol;

use crate::authorize::Guard;
use crate::metrics::{Direction, Edge, EdgeKey, OpenHttp};
use crate::route::Route;
use crate::worker::Worker;

/// Names of the cipher suite and the key exchange group; empty in the clear.
pub type TlsNames = (&'static str, &'static str);

/// The caller of a connection.
pub struct HttpCaller {
    pub address: IpAddr,
    /// The same, as text.
    address_text: Box<str>,
    pub direction: Direction,
    /// Inbound: the connection's TLS, for metrics.
    tls: TlsNames,
    /// Inbound: who is counted as the peer.
    peer: Arc<str>,
    /// Inbound: the identity that it proved.
    identity: Option<SpiffeId>,
    guard: Option<Guard>,
    /// The counters that its last requests went to, so that labels are not looked up for each.
    edges: RefCell<SmallVec<[Recent; 2]>>,
    /// Inbound: it is counted as open.
    open: Option<OpenHttp>,
}

/// Which endpoint over which connection, and the counters of it.
struct Recent {
    peer: Arc<str>,
    target: Arc<str>,
    port: u16,
    tls: TlsNames,
    edge: Rc<Edge>,
}

/// Counters that a connection remembers.
const RECENT: usize = 8;

impl HttpCaller {
    /// The pod's own program.
    pub fn outbound(address: IpAddr) -> Self {
        Self::new(Direction::Outbound, address, "".into(), None, ("", ""), None)
    }

    /// Somebody who came in: a mesh peer with the identity that it proved, or anybody.
    pub fn inbound(identity: Option<&SpiffeId>, address: IpAddr, tls: TlsNames, guard: Guard) -> Self {
        let peer = identity.map_or_else(|| "plaintext".into(), |id| id.to_string().into());
        Self::new(Direction::Inbound, address, peer, identity.cloned(), tls, Some(guard))
    }

    fn new(
        direction: Direction,
        address: IpAddr,
        peer: Arc<str>,
        identity: Option<SpiffeId>,
        tls: TlsNames,
        guard: Option<Guard>,
    ) -> Self {
        let address_text = address.to_string().into();
        Self { address, address_text, direction, tls, peer, identity, guard, edges: RefCell::default(), open: None }
    }

    /// Inbound: counts the connection, to `route` over `version`, for as long as this lives.
    #[must_use]
    pub fn counted(mut self, worker: &Worker, route: &Route, version: MeshProtocol) -> Self {
        self.open = Some(OpenHttp::new(self.edge(worker, route, &self.peer, version, self.tls)));
        self
    }

    /// Inbound: who is asked whether a request may come in.
    pub fn guard(&self) -> Option<&Guard> {
        self.guard.as_ref()
    }

    /// Inbound: the identity that it proved; none for plaintext.
    pub fn proved(&self) -> Option<&str> {
        self.identity.as_ref().map(|_| &*self.peer)
    }

    /// The same, as it is.
    pub fn identity(&self) -> Option<&SpiffeId> {
        self.identity.as_ref()
    }

    /// Inbound: who is counted as the peer. Outbound it is empty.
    pub fn peer(&self) -> &Arc<str> {
        &self.peer
    }

    pub fn address_text(&self) -> &str {
        &self.address_text
    }

    /// The counters of requests to `route`, and, outbound, to `peer` over `tls`.
    pub fn edge(&self, worker: &Worker, route: &Route, peer: &Arc<str>, version: MeshProtocol, tls: TlsNames) -> Rc<Edge> {
        let (target, port) = (route.name(), route.port());
        let (peer, tls) = match self.direction {
            Direction::Outbound => (peer, tls),
            Direction::Inbound => (&self.peer, self.tls),
        };
        let mut edges = self.edges.borrow_mut();
        let same = |r: &&Recent| Arc::ptr_eq(&r.peer, peer) && Arc::ptr_eq(&r.target, target) && r.port == port && r.tls == tls;
        if let Some(recent) = edges.iter().find(same) {
            return Rc::clone(&recent.edge);
        }
        let protocol = if version == MeshProtocol::Http2 { "http/2" } else { "http/1.1" };
        let key = EdgeKey { direction: self.direction, port, protocol, target: target.clone(), peer: peer.clone(), tls };
        let edge = worker.metrics.edge(&key);
        if edges.len() == RECENT {
            edges.remove(0);
        }
        edges.push(Recent { peer: peer.clone(), target: target.clone(), port, tls, edge: Rc::clone(&edge) });
        edge
    }
}
