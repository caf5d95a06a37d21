//! The matches of `HTTPRoute`s, by path.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, DefaultHasher};

use super::Entry;
use crate::traffic::route::{Match, PathMatch};

/// A map without random keys: the same table everywhere. Its keys are the routes' own; requests only look up, so that they cannot make it slow.
pub(super) type FixedMap<V> = HashMap<Box<[u8]>, V, BuildHasherDefault<DefaultHasher>>;

/// Every list is in the order of precedence; so are the lists: exact, regular expressions, prefixes from the longest.
#[derive(Debug)]
pub(super) struct PathIndex {
    exact: FixedMap<Vec<Entry>>,
    regex: Vec<Entry>,
    /// A tree of path elements; the first is the root, which stands for `/`.
    nodes: Vec<Node>,
}

/// One prefix, or a part of one.
#[derive(Default, Debug)]
struct Node {
    parent: Option<u32>,
    matches: Vec<Entry>,
    /// By element, sorted.
    children: Vec<(Box<[u8]>, u32)>,
}

impl PathIndex {
    /// `matches` in the order of precedence.
    pub(super) fn new(matches: &[(&Match, Entry)]) -> Self {
        let mut index = Self { exact: FixedMap::default(), regex: Vec::new(), nodes: vec![Node::default()] };
        for (m, entry) in matches {
            match &m.path {
                PathMatch::Exact(path) => index.exact.entry(path.as_bytes().into()).or_default().push(*entry),
                PathMatch::Regex(_) => index.regex.push(*entry),
                PathMatch::Prefix(prefix) => index.insert(prefix.as_bytes(), *entry),
                PathMatch::Any => index.insert(b"/", *entry),
                // No `HTTPRoute` has it; it matches nothing.
                PathMatch::Grpc { .. } => {}
            }
        }
        index
    }

    fn insert(&mut self, prefix: &[u8], entry: Entry) {
        let mut at = 0;
        // A slash at the end is ignored, as Gateway API asks.
        for element in elements(trim_slashes(prefix)) {
            at = match self.nodes[at as usize].find(element) {
                Ok(child) => child,
                Err(place) => {
                    let child = self.nodes.len() as u32;
                    self.nodes.push(Node { parent: Some(at), ..Node::default() });
                    self.nodes[at as usize].children.insert(place, (element.into(), child));
                    child
                }
            };
        }
        self.nodes[at as usize].matches.push(entry);
    }

    /// The first match for the path that `holds` in all else (and in its expression).
    pub(super) fn find(&self, path: &[u8], holds: impl Fn(&Entry) -> bool) -> Option<Entry> {
        let exact = self.exact.get(path).map_or(&[][..], Vec::as_slice);
        exact.iter().chain(&self.regex).chain(self.prefixes(path)).find(|entry| holds(entry)).copied()
    }

    /// The matches of all prefixes of a path, from the longest. A path without a slash at its beginning (`*`) has the root alone.
    fn prefixes(&self, path: &[u8]) -> impl Iterator<Item = &Entry> {
        let mut at = 0;
        for element in elements(path) {
            match self.nodes[at as usize].find(element) {
                Ok(child) => at = child,
                Err(_) => break,
            }
        }
        let up = std::iter::successors(Some(at), |at| self.nodes[*at as usize].parent);
        up.flat_map(|at| &self.nodes[at as usize].matches)
    }
}

impl Node {
    /// The child for an element, or the place where it would stand.
    fn find(&self, element: &[u8]) -> Result<u32, usize> {
        self.children.binary_search_by(|(name, _)| name.as_ref().cmp(element)).map(|place| self.children[place].1)
    }
}

fn trim_slashes(mut prefix: &[u8]) -> &[u8] {
    while let Some(rest) = prefix.strip_suffix(b"/") {
        prefix = rest;
    }
    prefix
}

/// What stands between the slashes of `/a/b`; nothing where there is no slash at the beginning.
fn elements(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.strip_prefix(b"/").into_iter().flat_map(|rest| rest.split(|byte| *byte == b'/'))
}
