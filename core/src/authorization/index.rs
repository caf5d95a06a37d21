//! Policies, compiled so that a call is compared with those that could be about it, however many there are.
//!
//! Every pair of a peer and an operation of every rule is an [`Entry`]. It stands in one [`Bucket`] for each port that it is about (or in one for all
//! ports) and for each value of the one clause of its peer that says most. Within a bucket, entries with paths are found by path.

use std::collections::hash_map::DefaultHasher;
use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasherDefault, Hash};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use smallvec::SmallVec;

use super::clause::{Connection, Facts, Held};
use super::policy::{Account, Action, Authorization, Operation, PathMatch, Peer, Policy, Posture, PostureFrom, Principal, Rule};
use crate::identity::{Namespace, SpiffeId, TrustDomain};

/// Same on every run: nothing here depends on a hash's order, and keys come from policies.
type FixedMap<K, V> = HashMap<K, V, BuildHasherDefault<DefaultHasher>>;

/// What happens to what an entry matches, and whether it happens.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Lane {
    Deny,
    Allow,
    DryDeny,
    DryAllow,
    Audit,
}

pub(super) const LANES: usize = 5;

impl Lane {
    fn of(policy: &Policy) -> Self {
        match (policy.action, policy.dry_run) {
            (Action::Audit, _) => Self::Audit,
            (Action::Deny, false) => Self::Deny,
            (Action::Deny, true) => Self::DryDeny,
            (Action::Allow, false) => Self::Allow,
            (Action::Allow, true) => Self::DryAllow,
        }
    }

    pub(super) fn action(self) -> Action {
        match self {
            Self::Deny | Self::DryDeny => Action::Deny,
            Self::Allow | Self::DryAllow => Action::Allow,
            Self::Audit => Action::Audit,
        }
    }
}

/// Stands for a `from` or `to` that is empty.
const ANY: u32 = u32::MAX;

/// One peer and one operation of one rule. Ordered as policies and their parts are told.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Entry {
    pub(super) policy: u32,
    pub(super) rule: u32,
    peer: u32,
    operation: u32,
}

impl Entry {
    /// The peer's place in `from`; none where that is empty.
    pub(super) fn peer(self) -> Option<usize> {
        (self.peer != ANY).then_some(self.peer as usize)
    }

    /// The operation's place in `to`; none where that is empty.
    pub(super) fn operation(self) -> Option<usize> {
        (self.operation != ANY).then_some(self.operation as usize)
    }
}

/// The clause by which a peer is found.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
enum Who {
    Anyone,
    AnyIdentity,
    Unauthenticated,
    Principal(SpiffeId),
    Prefix(Arc<str>),
    TrustDomain(TrustDomain),
    Account(Account),
    Namespace(Namespace),
    Net(IpNet),
}

/// Entries that are walked where there are so few: cheaper than to look them up by path. Tests have both ways taken.
const FEW: usize = if cfg!(test) { 2 } else { 8 };

/// Entries with one port, one lane and one [`Who`]. Each list is sorted.
#[derive(Default, Debug)]
struct Bucket {
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
    fn insert(&mut self, entry: Entry, operation: Option<&Operation>) {
        push(&mut self.all, entry);
        let needs_request = operation.is_some_and(Operation::needs_http);
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
    fn each(&self, facts: &Facts<'_>, mut visit: impl FnMut(&[Entry], AtBest)) {
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
enum AtBest {
    Holds,
    IsUnclear,
}

/// Entries come in order; one with two paths of a bucket comes twice.
fn push(list: &mut Vec<Entry>, entry: Entry) {
    if list.last() != Some(&entry) {
        list.push(entry);
    }
}

/// An [`Authorization`], ready to be asked. Immutable; made anew when a policy changes.
#[derive(Debug)]
pub struct Compiled {
    pub(super) own: SpiffeId,
    pub(super) posture: Posture,
    pub(super) posture_from: PostureFrom,
    /// By `(namespace, name)`.
    pub(super) policies: Vec<Arc<Policy>>,
    places: FixedMap<(Option<u16>, Who), [Option<u32>; LANES]>,
    buckets: Vec<Bucket>,
    /// Lengths of prefixes of principals, in bytes.
    prefixes: Vec<usize>,
    /// `(whether IPv6, prefix length)` of networks.
    nets: Vec<(bool, u8)>,
    /// Policies of a lane: whether one is for all ports, and the ports that others are for.
    lanes: [(bool, Vec<u16>); LANES],
}

impl Compiled {
    /// Compiles what applies to the pod whose identity is `own`.
    pub fn new(authorization: &Authorization, own: SpiffeId) -> Self {
        let mut policies = authorization.policies.clone();
        policies.sort_by(|a, b| a.id.cmp(&b.id));
        let mut compiled = Self {
            own,
            posture: authorization.posture,
            posture_from: authorization.posture_from.clone(),
            policies: Vec::new(),
            places: FixedMap::default(),
            buckets: Vec::new(),
            prefixes: Vec::new(),
            nets: Vec::new(),
            lanes: Default::default(),
        };
        for (at, policy) in policies.iter().enumerate() {
            compiled.insert(at as u32, policy);
        }
        compiled.prefixes.sort_unstable();
        compiled.prefixes.dedup();
        compiled.nets.sort_unstable();
        compiled.nets.dedup();
        compiled.policies = policies;
        compiled
    }

    /// Whether everybody may do everything, and nothing is told of it: nobody needs to ask.
    pub fn is_open(&self) -> bool {
        self.posture == Posture::AllowAll && self.policies.is_empty()
    }

    fn insert(&mut self, at: u32, policy: &Policy) {
        let lane = Lane::of(policy);
        let (everywhere, ports) = &mut self.lanes[lane as usize];
        match &policy.ports {
            None => *everywhere = true,
            Some(bound) => ports.extend(bound),
        }
        for (nth, rule) in policy.rules.iter().enumerate() {
            for (peer, operation) in pairs(rule) {
                let entry = Entry { policy: at, rule: nth as u32, peer, operation };
                let operation = rule.to.get(operation as usize);
                let whos = rule.from.get(peer as usize).map_or_else(|| vec![Who::Anyone], Who::of);
                for port in ports_of(policy, operation) {
                    for who in &whos {
                        self.bucket(port, who, lane).insert(entry, operation);
                    }
                }
            }
        }
    }

    fn bucket(&mut self, port: Option<u16>, who: &Who, lane: Lane) -> &mut Bucket {
        match who {
            Who::Prefix(text) => self.prefixes.push(text.len()),
            Who::Net(net) => self.nets.push((net.network().is_ipv6(), net.prefix_len())),
            _ => {}
        }
        let place = &mut self.places.entry((port, who.clone())).or_default()[lane as usize];
        let at = *place.get_or_insert_with(|| {
            self.buckets.push(Bucket::default());
            self.buckets.len() as u32 - 1
        });
        &mut self.buckets[at as usize]
    }

    /// Whether a policy of a lane applies to a port, whatever its rules say.
    pub(super) fn applies(&self, lane: Lane, port: u16) -> bool {
        let (everywhere, ports) = &self.lanes[lane as usize];
        *everywhere || ports.contains(&port)
    }

    /// The buckets that have every entry that could hold of a connection, by lane.
    pub(super) fn select(&self, connection: &Connection) -> Selected {
        let mut selected = Selected::default();
        if self.buckets.is_empty() {
            return selected;
        }
        for who in self.whos(connection) {
            for port in [None, Some(connection.port)] {
                let Some(places) = self.places.get(&(port, who.clone())) else { continue };
                for (lane, place) in selected.0.iter_mut().zip(places) {
                    lane.extend(*place);
                }
            }
        }
        selected
    }

    /// Every way by which a caller could be found.
    fn whos(&self, connection: &Connection) -> Vec<Who> {
        let mut whos = vec![Who::Anyone];
        match connection.caller() {
            None => whos.push(Who::Unauthenticated),
            Some(id) => {
                whos.push(Who::AnyIdentity);
                whos.push(Who::Principal(id.clone()));
                whos.push(Who::TrustDomain(id.trust_domain().clone()));
                let text = connection.caller_text();
                whos.extend(self.prefixes.iter().filter_map(|len| text.get(..*len)).map(|begin| Who::Prefix(begin.into())));
            }
        }
        if let Some(id) = connection.local(&self.own) {
            whos.push(Who::Namespace(id.namespace().clone()));
            whos.push(Who::Account(Account { namespace: id.namespace().clone(), name: id.service_account().clone() }));
        }
        let of_family = self.nets.iter().filter(|(v6, _)| *v6 == connection.source.is_ipv6());
        whos.extend(of_family.filter_map(|(_, len)| net_of(connection.source, *len)).map(Who::Net));
        whos
    }

    /// The first entry of a lane that holds; if none does, the first that is unclear.
    pub(super) fn find(&self, lane: Lane, connection: &Connection, selected: &Selected, facts: &Facts<'_>) -> Found {
        let mut found = Found::default();
        for bucket in &selected.0[lane as usize] {
            self.buckets[*bucket as usize].each(facts, |list, at_best| {
                for entry in list {
                    if found.yes.is_some_and(|yes| yes <= *entry) {
                        return;
                    }
                    match self.holds(lane, *entry, connection, facts) {
                        Held::Yes => return found.yes = Some(*entry),
                        Held::Unclear(why) => {
                            if found.unclear.is_none_or(|(first, _)| *entry < first) {
                                found.unclear = Some((*entry, why));
                            }
                            if at_best == AtBest::IsUnclear {
                                return;
                            }
                        }
                        Held::No => {}
                    }
                }
            });
        }
        found
    }

    /// Every entry of a lane that holds, the first of each policy, in order.
    pub(super) fn find_all(&self, lane: Lane, connection: &Connection, selected: &Selected, facts: &Facts<'_>) -> Vec<Entry> {
        let mut all: Vec<Entry> = Vec::new();
        for bucket in &selected.0[lane as usize] {
            self.buckets[*bucket as usize].each(facts, |list, at_best| {
                if at_best == AtBest::Holds {
                    all.extend(list.iter().filter(|e| self.holds(lane, **e, connection, facts) == Held::Yes));
                }
            });
        }
        all.sort_unstable();
        all.dedup_by_key(|entry| entry.policy);
        all
    }

    fn holds(&self, lane: Lane, entry: Entry, connection: &Connection, facts: &Facts<'_>) -> Held {
        let rule = self.rule(entry);
        if entry.peer().is_some_and(|peer| !rule.from[peer].holds(connection, &self.own)) {
            return Held::No;
        }
        entry.operation().map_or(Held::Yes, |operation| rule.to[operation].holds(lane.action(), connection.port, facts))
    }

    pub(super) fn rule(&self, entry: Entry) -> &Rule {
        &self.policies[entry.policy as usize].rules[entry.rule as usize]
    }
}

/// The buckets of one connection, by lane.
#[derive(Clone, Default, Debug)]
pub(super) struct Selected([SmallVec<[u32; 4]>; LANES]);

/// What was found in a lane.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Found {
    pub(super) yes: Option<Entry>,
    pub(super) unclear: Option<(Entry, super::clause::Unclear)>,
}

impl Found {
    /// What was found in two lanes together.
    pub(super) fn or(self, other: Self) -> Self {
        let first = |a: Option<Entry>, b: Option<Entry>| a.into_iter().chain(b).min();
        let unclear = self.unclear.into_iter().chain(other.unclear).min_by_key(|(entry, _)| *entry);
        Self { yes: first(self.yes, other.yes), unclear }
    }
}

/// The pairs of a rule's peers and operations.
fn pairs(rule: &Rule) -> impl Iterator<Item = (u32, u32)> {
    let places = |n: usize| if n == 0 { vec![ANY] } else { (0..n as u32).collect() };
    let (peers, operations) = (places(rule.from.len()), places(rule.to.len()));
    peers.into_iter().flat_map(move |p| operations.clone().into_iter().map(move |o| (p, o)))
}

/// The ports that an operation of a policy is about; none of them is all.
fn ports_of(policy: &Policy, operation: Option<&Operation>) -> Vec<Option<u16>> {
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

impl Who {
    /// The clause of a peer that says most, value by value.
    fn of(peer: &Peer) -> Vec<Self> {
        let mut whos: Vec<Self> = if !peer.principals.is_empty() {
            peer.principals.iter().map(Self::principal).collect()
        } else if !peer.service_accounts.is_empty() {
            peer.service_accounts.iter().cloned().map(Self::Account).collect()
        } else if !peer.namespaces.is_empty() {
            peer.namespaces.iter().cloned().map(Self::Namespace).collect()
        } else if !peer.ip_blocks.is_empty() {
            peer.ip_blocks.iter().map(|net| Self::Net(net.trunc())).collect()
        } else if peer.unauthenticated {
            vec![Self::Unauthenticated]
        } else if peer.needs_identity() {
            vec![Self::AnyIdentity]
        } else {
            vec![Self::Anyone]
        };
        let mut seen = HashSet::new();
        whos.retain(|who| seen.insert(who.clone()));
        whos
    }

    fn principal(principal: &Principal) -> Self {
        match principal {
            Principal::Any => Self::AnyIdentity,
            Principal::TrustDomain(domain) => Self::TrustDomain(domain.clone()),
            Principal::Prefix(begin) => Self::Prefix(begin.clone()),
            Principal::Exact(id) => Self::Principal(id.clone()),
        }
    }
}

fn net_of(source: IpAddr, len: u8) -> Option<IpNet> {
    IpNet::new(source, len).ok().map(|net| net.trunc())
}

#[cfg(test)]
impl Compiled {
    /// How many entries a call is compared with, of all lanes.
    pub(super) fn candidates(&self, connection: &Connection, request: Option<&dyn crate::traffic::table::RequestFacts>) -> usize {
        let facts = Facts::new(request);
        let mut count = 0;
        for bucket in self.select(connection).0.iter().flatten() {
            self.buckets[*bucket as usize].each(&facts, |list, _| count += list.len());
        }
        count
    }
}
