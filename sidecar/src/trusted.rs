//! Connections that rest on a peer's certificate: cut when it is believed no more.

use std::cell::RefCell;
use std::rc::{Rc, Weak};

use weft_core::TrustDomain;
use weft_core::wellknown::CLOCK_SKEW_SECS;
use weft_tls::{LeafInfo, TrustBundle};

use crate::io::Socket;

/// One worker's connections over mutual TLS, both ways.
#[derive(Default)]
pub struct Trusted {
    open: RefCell<Open>,
}

#[derive(Default)]
struct Open {
    all: Vec<Connection>,
    /// When there are more, those that have ended are looked for.
    most: usize,
}

struct Connection {
    peer: LeafInfo,
    socket: Weak<Socket>,
}

/// Fewer than these are not looked through.
const FEW: usize = 64;

impl Trusted {
    /// Notes a connection whose handshake is done.
    pub fn add(&self, peer: LeafInfo, socket: Weak<Socket>) {
        let mut open = self.open.borrow_mut();
        // As many are looked at as were added since: each addition costs the same.
        if open.all.len() >= open.most.max(FEW) {
            open.all.retain(|held| held.socket.strong_count() > 0);
            open.most = open.all.len() * 2;
        }
        open.all.push(Connection { peer, socket });
    }

    /// Cuts the connections of peers whose certificates have ended at `now`, in seconds since the Unix epoch, by any clock that is believed. A sidecar at the
    /// other end has done so already; another server may not.
    pub fn end(&self, now: i64) {
        self.open.borrow_mut().all.retain(|held| {
            let Some(socket) = held.socket.upgrade() else { return false };
            let goes = held.peer.not_after + CLOCK_SKEW_SECS < now;
            if goes {
                tracing::info!(peer = %held.peer.id, address = %socket.peer(), "connection cut: the peer's certificate has expired");
                socket.cut();
            }
            !goes
        });
    }

    /// Cuts the connections of whoever is believed no more, and of those of a foreign domain that has lost an anchor since `before`, since which
    /// of its anchors vouched for them is not known; how many those were. Of the domain `own`, a rotation sees to it that nobody is left behind.
    pub fn cut(&self, bundle: &TrustBundle, before: Option<&TrustBundle>, own: &TrustDomain) -> usize {
        let lost = |domain: &TrustDomain| {
            before.is_some_and(|before| before.hashes(domain).any(|old| bundle.hashes(domain).all(|now| now != old)))
        };
        let lost: Vec<TrustDomain> =
            bundle.domains().map(|(domain, _)| domain).filter(|d| *d != own && lost(d)).cloned().collect();
        let mut cut: Vec<(LeafInfo, Rc<Socket>)> = Vec::new();
        self.open.borrow_mut().all.retain(|held| {
            let Some(socket) = held.socket.upgrade() else { return false };
            let goes = bundle.gave_up(&held.peer) || lost.contains(held.peer.id.trust_domain());
            if goes {
                cut.push((held.peer.clone(), socket));
            }
            !goes
        });
        for (peer, socket) in &cut {
            tracing::info!(peer = %peer.id, serial = %peer.serial, address = %socket.peer(), "connection cut: the peer is denied, or its domain or an anchor of it is trusted no more");
            socket.cut();
        }
        cut.len()
    }
}
