//! Entries of one port, lane and [`super::who::Who`], found by path.

use std::collections::HashMap;
use std::collections::hash_map::DefaultHasher;
use std::hash::BuildHasherDefault;

use crate::authorization::clause::Facts;
use crate::authorization::policy::{Operation, PathMatch, Policy, Rule};

/// Same on every run: nothing here depends on a hash's order, and keys come from policies.
pub(super) type FixedMap<K, V> = HashMap<K, V, BuildHasherDefault<DefaultHasher>>;

/// Stands for a `from` or `to` that is empty.
const ANY: u32 = u32::MAX;

/// One peer and one operation of one rule. Ordered as policies and their parts are told.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(in crate::authorization) struct Entry {
    pub(in crate::authorization) policy: u32,
    pub(in crate::authorization) rule: u32,
    pub(super) peer: u32,
    pub(super) operation: u32,
}

impl Entry {
    /// The peer's place in `from`; none where that is empty.
    pub(in crate::authorization) fn peer(self) -> Option<usize> {
        (self.peer != ANY).then_some(self.peer as usize)
    }

    /// The operation's place in `to`; none where that is empty.
    pub(in crate::authorization) fn operation(self) -> Option<usize> {
        (self.operation != ANY).then_some(self.operation as usize)
    }
}

/// The pairs of a rule's peers and operations.
pub(super) fn pairs(rule: &Rule) -> impl Iterator<Item = (u32, u32)> {
    let places = |n: usize| if n == 0 { vec![ANY] } else { (0..n as u32).collect() };
    let (peers, operations) = (places(rule.from.len()), places(rule.to.len()));
    peers.into_iter().flat_map(move |p| operations.clone().into_iter().map(move |o| (p, o)))
}

/// The ports that an operation of a policy is about; none of them is all.
pub(super) fn ports_of(policy: &Policy, operation: Option<&Operation>) -> Vec<Option<u16>> {
    let asked = operation.map_or(&[][..], |o| &o.ports);
    let mut ports: Vec<_> = match (&policy.ports, asked) {
        (None, []) => return vec![None],
        (None, asked) => asked.iter().copied().map(Some).collect(),
        (Some(bound), []) => bound.iter().copied().map(Some).collect(),
        (Some(bound), asked) => bound.iter().filter(|p| asked.contains(p)).copied().map(Some).collect(),
    };
    ports.sort_unstable();
    ports.dedup();
    ports
}

/// Entries that are walked where there are so few: cheaper than to look them up by path. Tests have both ways taken.
const FEW: usize = if cfg!(test) { 2 } else { 8 };

/// Entries with one port, one lane and one [`Who`]. Each list is sorted.
#[derive(Default, Debug)]
pub(super) struct Bucket {
    all: Vec<Entry>,
    /// Those that a connection alone decides, and the others.
    of_connection: Vec<Entry>,
    of_request: Vec<Entry>,
    /// Those without `paths`, and the others.
    anywhere: Vec<Entry>,
    somewhere: Vec<Entry>,
    exact: FixedMap<Box<[u8]>, Vec<Entry>>,
    /// By prefix, or by what of a template stands before its first variable.
    below: FixedMap<Box<[u8]>, Vec<Entry>>,
}

impl Bucket {
    pub(super) fn insert(&mut self, entry: Entry, operation: Option<&Operation>, needs_request: bool) {
        push(&mut self.all, entry);
        push(if needs_request { &mut self.of_request } else { &mut self.of_connection }, entry);
        let paths = operation.map_or(&[][..], |o| &o.paths);
        push(if paths.is_empty() { &mut self.anywhere } else { &mut self.somewhere }, entry);
        for path in paths {
            match path {
                PathMatch::Exact(text) => push(self.exact.entry(text.as_bytes().into()).or_default(), entry),
                PathMatch::Prefix(text) => {
                    push(self.below.entry(text.trim_end_matches('/').as_bytes().into()).or_default(), entry);
                }
                PathMatch::Template(text) => {
                    let literal = text.find("/{").map_or(&**text, |at| &text[..at]);
                    push(self.below.entry(literal.as_bytes().into()).or_default(), entry);
                }
            }
        }
    }

    /// The lists that have every entry that could hold or be unclear.
    pub(super) fn each(&self, facts: &Facts<'_>, mut visit: impl FnMut(&[Entry], AtBest)) {
        if facts.request().is_none() {
            visit(&self.of_connection, AtBest::Holds);
            return visit(&self.of_request, AtBest::IsUnclear);
        }
        if self.all.len() <= FEW {
            return visit(&self.all, AtBest::Holds);
        }
        visit(&self.anywhere, AtBest::Holds);
        let Ok(path) = facts.path() else { return visit(&self.somewhere, AtBest::IsUnclear) };
        if let Some(list) = self.exact.get(path) {
            visit(list, AtBest::Holds);
        }
        if self.below.is_empty() {
            return;
        }
        let ends = path.iter().enumerate().filter(|(_, b)| **b == b'/').map(|(at, _)| at).chain([path.len()]);
        for end in ends {
            if let Some(list) = self.below.get(&path[..end]) {
                visit(list, AtBest::Holds);
            }
        }
    }
}

/// What the entries of a list can be, as far as that is known beforehand. Of those that are unclear at best the first says it all.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum AtBest {
    Holds,
    IsUnclear,
}

/// Entries come in order; one with two paths of a bucket comes twice.
fn push(list: &mut Vec<Entry>, entry: Entry) {
    if list.last() != Some(&entry) {
        list.push(entry);
    }
}
