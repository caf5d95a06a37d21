//! Versions by content, so that any replica of the control plane can resume a stream.

use std::fmt;

/// The version of a resource: a 64-bit hash of its encoded content. Equal content has an equal version on
/// every replica; it orders nothing.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Version(pub u64);

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Version {
    /// Hashes encoded content (FNV-1a 64 with a final avalanche). Not a defence against an adversary: the
    /// channel that carries versions is authenticated, and both ends compute over the same bytes.
    pub fn of(content: &[u8]) -> Self {
        Self(mix(fnv(content)))
    }

    /// The version of what is held after the `index`th step on the way here.
    #[must_use]
    pub fn step(self, index: usize) -> Self {
        Self(mix(self.0 ^ mix(index as u64 + 1)))
    }
}

fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3))
}

fn mix(mut h: u64) -> u64 {
    h ^= h >> 33;
    h = h.wrapping_mul(0xff51_afd7_ed55_8ccd);
    h ^= h >> 33;
    h = h.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    h ^ (h >> 33)
}

/// A hash over a set of named versions, independent of their order and cheap to keep up to date: both ends of a
/// discovery stream compute it, so that staleness is noticed and healed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SetHash(pub u64);

impl SetHash {
    fn term(name: &str, version: Version) -> u64 {
        mix(fnv(name.as_bytes()) ^ mix(version.0))
    }

    /// Adds a resource to the set.
    pub fn add(&mut self, name: &str, version: Version) {
        self.0 = self.0.wrapping_add(Self::term(name, version));
    }

    /// Takes a resource out that was added with the same version.
    pub fn remove(&mut self, name: &str, version: Version) {
        self.0 = self.0.wrapping_sub(Self::term(name, version));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn order_does_not_matter_and_removal_undoes(items in proptest::collection::btree_map("[a-z/]{1,12}", any::<u64>(), 0..20), extra in any::<u64>()) {
            let mut forward = SetHash::default();
            let mut backward = SetHash::default();
            for (n, v) in &items { forward.add(n, Version(*v)); }
            for (n, v) in items.iter().rev() { backward.add(n, Version(*v)); }
            prop_assert_eq!(forward, backward);
            forward.add("extra!", Version(extra));
            prop_assert_ne!(forward, backward);
            forward.remove("extra!", Version(extra));
            prop_assert_eq!(forward, backward);
        }
    }
}
