//! Tokens that were verified, so that each is verified once.

use std::collections::{HashMap, VecDeque};
use std::rc::Rc;

use aws_lc_rs::digest::{SHA256, digest};
use weft_tls::tokens::Verified;

/// Tokens that a worker remembers: those that count alone, so that nobody can drive them out with others.
const MOST: usize = 256;

/// What a token is remembered by: its SHA-256, and never its own bytes. How long it takes to find one then tells nothing of those that are remembered, since
/// nobody can choose a hash byte by byte.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Id([u8; 32]);

/// Generations of the inbound policy and of the keys.
pub(super) type Generation = (u64, u64);

/// Tokens that were verified under one generation of policy and keys.
#[derive(Default)]
pub struct TokenCache {
    generation: Generation,
    known: HashMap<Id, Rc<Verified>>,
    /// The oldest first.
    order: VecDeque<Id>,
}

/// A token's [`Id`].
pub(super) fn id(token: &[u8]) -> Id {
    Id(digest(&SHA256, token).as_ref().try_into().expect("SHA-256 has 32 bytes"))
}

impl TokenCache {
    /// A token that still counts. `now` is in seconds since 1970.
    pub fn find(&mut self, generation: Generation, id: &Id, now: i64) -> Option<Rc<Verified>> {
        if self.generation != generation {
            *self = Self { generation, ..Self::default() };
            return None;
        }
        self.known.get(id).filter(|verified| now < verified.until).cloned()
    }

    /// Remembers one that was looked for before.
    pub fn keep(&mut self, generation: Generation, id: Id, verified: &Rc<Verified>) {
        if self.generation != generation {
            *self = Self { generation, ..Self::default() };
        }
        if self.known.insert(id, Rc::clone(verified)).is_some() {
            return;
        }
        self.order.push_back(id);
        if self.order.len() > MOST
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
    }

    /// How many are remembered.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.known.len()
    }
}
