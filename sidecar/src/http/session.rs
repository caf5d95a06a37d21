//! Sessions of one request: the endpoint that it was with, and the mark that goes back with the answer.

use std::net::SocketAddr;
use std::time::Duration;

use weft_core::traffic::policy::{Balancer, HashKey};
use weft_core::traffic::route::{PathMatch, Session, SessionKind};
use weft_core::traffic::session::{Mark, cookie_value, set_cookie};

use super::fields::Known;
use super::head::{RequestHead, ResponseHead};
use crate::identity::unix_now;

/// What an answer tells the caller's program to keep.
pub enum SessionUse {
    /// Session persistence: which endpoint it was with, if it lasts.
    Persistent { session: Session, held: Option<Mark>, path: Option<PathMatch> },
    /// A cookie that is made to be hashed.
    Hashed { cookie: String },
}

fn now() -> u64 {
    unix_now().max(0) as u64
}

impl SessionUse {
    /// Reads what the request says of a session. `path` is what its path fell under, where a route asks for the session.
    pub fn persistent(session: &Session, head: &RequestHead, path: Option<&PathMatch>) -> Self {
        let text = match session.kind {
            SessionKind::Cookie => head.fields.all(Known::Cookie).find_map(|c| cookie_value(c, &session.name)),
            SessionKind::Header => head.fields.named(&session.name).next(),
        };
        let held = text.and_then(Mark::decode).filter(|m| m.lasts(session, now()));
        Self::Persistent { session: session.clone(), held, path: path.cloned() }
    }

    /// The cookie that a hashing balancer asks for, with the value to hash.
    pub fn hashed(balancer: &Balancer, value: u64) -> Option<Self> {
        let (Balancer::RingHash(HashKey::Cookie { name, ttl: Some(ttl) })
        | Balancer::Maglev(HashKey::Cookie { name, ttl: Some(ttl) })) = balancer
        else {
            return None;
        };
        // No life of its own: it goes with the caller's program.
        let age = Some(*ttl).filter(|ttl| *ttl > Duration::ZERO);
        Some(Self::Hashed { cookie: set_cookie(name, &format!("{value:016x}"), Some("/"), age) })
    }

    /// The endpoint that the session is with.
    pub fn pinned(&self) -> Option<SocketAddr> {
        match self {
            Self::Persistent { held, .. } => held.as_ref().map(|m| m.endpoint),
            Self::Hashed { .. } => None,
        }
    }

    /// Puts the mark into an answer, where the caller does not hold it already.
    pub fn mark(&self, head: &mut ResponseHead, chosen: SocketAddr) {
        let (session, held, path) = match self {
            Self::Hashed { cookie } => return head.fields.push(b"set-cookie", cookie.as_bytes()),
            Self::Persistent { session, held, path } => (session, held, path),
        };
        let now = now();
        let mark = match held.filter(|m| m.endpoint == chosen) {
            Some(held) => match held.renewed(session, now) {
                Some(mark) => mark,
                None => return,
            },
            None => Mark::new(chosen, session, now),
        };
        match session.kind {
            SessionKind::Cookie => head.fields.push(b"set-cookie", mark.set_cookie(session, path.as_ref(), now).as_bytes()),
            SessionKind::Header => {
                // A backend that sends back what it got would have the old mark stay.
                head.fields.remove_named(&session.name.to_ascii_lowercase());
                head.fields.push(session.name.as_bytes(), mark.encode().as_bytes());
            }
        }
    }
}
