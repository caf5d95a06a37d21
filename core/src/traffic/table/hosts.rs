//! The `TLSRoute`s, by host name.

use std::sync::Arc;

use smallvec::SmallVec;

use super::Entry;
use super::paths::FixedMap;

/// The longest host name (RFC 1035, section 2.3.4).
const MAX_HOST: usize = 256;

#[derive(Default, Debug)]
pub(super) struct HostIndex {
    exact: FixedMap<Entry>,
    /// What stands behind `*.`.
    wildcard: FixedMap<Entry>,
    any: Option<Entry>,
}

impl HostIndex {
    /// `routes` in the order of precedence: the first of a name keeps it.
    pub(super) fn new(routes: &[(&[Arc<str>], Entry)]) -> Self {
        let mut index = Self::default();
        for (hostnames, entry) in routes {
            if hostnames.is_empty() {
                index.any.get_or_insert(*entry);
            }
            for name in *hostnames {
                let name = name.to_ascii_lowercase();
                match name.strip_prefix("*.") {
                    Some(suffix) => index.wildcard.entry(suffix.as_bytes().into()).or_insert(*entry),
                    None => index.exact.entry(name.as_bytes().into()).or_insert(*entry),
                };
            }
        }
        index
    }

    /// The route of a server name. A connection without one has the routes without host names.
    pub(super) fn find(&self, sni: Option<&str>) -> Option<Entry> {
        sni.filter(|name| name.len() <= MAX_HOST).and_then(|name| self.named(name)).or(self.any)
    }

    fn named(&self, name: &str) -> Option<Entry> {
        let lower: SmallVec<[u8; 256]> = name.strip_suffix('.').unwrap_or(name).bytes().map(|b| b.to_ascii_lowercase()).collect();
        if let Some(entry) = self.exact.get(lower.as_slice()) {
            return Some(*entry);
        }
        // `*.` stands for one label or more: the first dot gives the longest suffix.
        let dots = lower.iter().enumerate().filter(|(_, byte)| **byte == b'.');
        dots.filter(|(at, _)| *at > 0).find_map(|(at, _)| self.wildcard.get(&lower[at + 1..])).copied()
    }
}
