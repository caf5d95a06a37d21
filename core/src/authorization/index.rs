//! Policies, compiled so that a call is compared with those that could be about it, however many there are.
//!
//! Every pair of a peer and an operation of every rule is an [`Entry`]. It stands in one [`Bucket`] for each port that it is about (or in one for all
//! ports) and for each value of the one clause of its peer that says most. Within a bucket, entries with paths are found by path.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use smallvec::SmallVec;

use super::clause::{Connection, Facts, Held};
use super::policy::{Account, Action, Authorization, Operation, Peer, Policy, Posture, PostureFrom, Rule};
use crate::identity::SpiffeId;

mod bucket;
mod size;
mod who;

pub(super) use bucket::Entry;
use bucket::{AtBest, Bucket, FixedMap, pairs, ports_of};
use who::Who;

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
    /// Policies of a lane: whether one is for all ports, and the ports that others are for, sorted.
    lanes: [(bool, Vec<u16>); LANES],
    /// The same of policies that have a clause about a token.
    tokens: (bool, Vec<u16>),
}

impl Compiled {
    /// Compiles what applies to the pod whose identity is `own`. Takes room for [`Authorization::buckets`]: whoever reads policies bounds that before.
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
            tokens: Default::default(),
        };
        for (at, policy) in policies.iter().enumerate() {
            compiled.insert(at as u32, policy);
        }
        compiled.prefixes.sort_unstable();
        compiled.prefixes.dedup();
        compiled.nets.sort_unstable();
        compiled.nets.dedup();
        for (_, ports) in compiled.lanes.iter_mut().chain([&mut compiled.tokens]) {
            ports.sort_unstable();
            ports.dedup();
        }
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
        if policy.rules.iter().flat_map(|rule| &rule.from).any(Peer::needs_request) {
            let (everywhere, ports) = &mut self.tokens;
            match &policy.ports {
                None => *everywhere = true,
                Some(bound) => ports.extend(bound),
            }
        }
        for (nth, rule) in policy.rules.iter().enumerate() {
            for (peer, operation) in pairs(rule) {
                let entry = Entry { policy: at, rule: nth as u32, peer, operation };
                let (from, operation) = (rule.from.get(peer as usize), rule.to.get(operation as usize));
                let needs_request = from.is_some_and(Peer::needs_request) || operation.is_some_and(Operation::needs_http);
                let whos = from.map_or_else(|| vec![Who::Anyone], Who::of);
                for port in ports_of(policy, operation) {
                    for who in &whos {
                        self.bucket(port, who, lane).insert(entry, operation, needs_request);
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
        *everywhere || ports.binary_search(&port).is_ok()
    }

    /// Whether a policy that applies to a port has a clause about a token.
    pub fn reads_tokens(&self, port: u16) -> bool {
        let (everywhere, ports) = &self.tokens;
        *everywhere || ports.binary_search(&port).is_ok()
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
        let (rule, action) = (self.rule(entry), lane.action());
        let peer = entry.peer().map_or(Held::Yes, |peer| rule.from[peer].holds(action, connection, &self.own, facts));
        if peer == Held::No {
            return Held::No;
        }
        let operation = entry.operation().map(|operation| rule.to[operation].holds(action, connection.port, facts));
        operation.map_or(peer, |operation| peer.and(operation))
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
