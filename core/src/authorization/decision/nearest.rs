//! What came nearest to matching, and what became of each policy on its own.

use std::sync::Arc;

use super::{Cause, Challenge, Considered, Match, Nearest, words};
use crate::authorization::clause::{Connection, Facts, Held, Unclear};
use crate::authorization::policy::{Action, Operation, Peer, Policy};
use crate::authorization::token::TokenMatch;
use crate::identity::SpiffeId;
use crate::jwt::Bearer;

/// The ALLOW rule that came nearest, where a call was denied for want of one.
pub(in crate::authorization) fn nearest(
    cause: &Cause,
    allows: &[&Arc<Policy>],
    c: &Connection,
    own: &SpiffeId,
    facts: &Facts<'_>,
) -> Option<Nearest> {
    if !matches!(cause, Cause::NoneAllows) {
        return None;
    }
    let mut best = Best::default();
    for policy in allows {
        best.look_at(policy, c, own, facts);
    }
    best.told(c, own, facts)
}

/// What a caller is told that was denied for want of a token, or of another one.
pub(in crate::authorization) fn challenge(
    cause: &Cause,
    allows: &[&Arc<Policy>],
    c: &Connection,
    own: &SpiffeId,
    facts: &Facts<'_>,
) -> Option<Challenge> {
    match cause {
        Cause::Unclear(_, Unclear::Token(_)) => Some(Challenge::Invalid),
        // It denies whoever has no such token.
        Cause::Matched(m) => state(m.policy.rules[m.rule].from.get(m.peer?)?.not_jwt.as_ref()?, facts),
        Cause::NoneAllows => {
            let rules = allows.iter().flat_map(|policy| &policy.rules).take(LOOKED_AT);
            let mut found = rules.filter_map(|rule| {
                let asked = rule.to.is_empty() || rule.to.iter().any(|o| o.holds(Action::Allow, c.port, facts) == Held::Yes);
                let peers = rule.from.iter().filter(|p| asked && p.jwt.is_some() && p.failing(c, own).next().is_none());
                peers.take(LOOKED_AT).find_map(|p| state(p.jwt.as_ref()?, facts))
            });
            found.next()
        }
        Cause::Posture(..) | Cause::Unclear(..) => None,
    }
}

fn state(wanted: &TokenMatch, facts: &Facts<'_>) -> Option<Challenge> {
    match facts.request()?.token(&wanted.issuer) {
        Bearer::Absent => Some(Challenge::Missing),
        Bearer::Other | Bearer::Invalid(_) => Some(Challenge::Invalid),
        Bearer::Valid(_) => None,
    }
}

/// Peers and operations that are looked at for the nearest rule, at the most.
const LOOKED_AT: usize = 1000;

/// The rule that came nearest so far: fewest of its clauses do not hold. Of two that are as near, one that asks for nothing but another token is told: the
/// caller is.
#[derive(Default)]
struct Best<'a> {
    rule: Option<(&'a Arc<Policy>, usize)>,
    /// The places of the peer and the operation that come nearest.
    parts: (Option<usize>, Option<usize>),
    failed: usize,
    /// Nothing but a clause about a token fails.
    by_token: bool,
    looked_at: usize,
}

impl<'a> Best<'a> {
    fn look_at(&mut self, policy: &'a Arc<Policy>, c: &Connection, own: &SpiffeId, facts: &Facts<'_>) {
        for (at, rule) in policy.rules.iter().enumerate() {
            if self.looked_at >= LOOKED_AT {
                return;
            }
            self.looked_at += rule.from.len() + rule.to.len();
            // Nearer than by one clause is none that does not match.
            if self.rule.is_some() && self.failed == 1 && (self.by_token || !rule.from.iter().any(Peer::needs_request)) {
                continue;
            }
            let tokens = |p: &Peer| p.about_tokens(policy.action, facts).filter(|(_, held)| *held != Held::Yes).count();
            let peers = rule.from.iter().map(|p| usize::from(p.is_empty()) + p.failing(c, own).count() + tokens(p));
            let operations = rule.to.iter().map(|o| usize::from(o.is_empty()) + judged(o, policy.action, c, facts).count());
            let (peer, operation) = (fewest(peers), fewest(operations));
            let failed = peer.map_or(0, |(_, n)| n) + operation.map_or(0, |(_, n)| n);
            let by_token = failed == 1 && peer.is_some_and(|(at, _)| tokens(&rule.from[at]) == 1);
            if self.rule.is_none() || (failed, !by_token) < (self.failed, !self.by_token) {
                self.rule = Some((policy, at));
                self.parts = (peer.map(|(at, _)| at), operation.map(|(at, _)| at));
                (self.failed, self.by_token) = (failed, by_token);
            }
        }
    }

    fn told(&self, c: &Connection, own: &SpiffeId, facts: &Facts<'_>) -> Option<Nearest> {
        let (policy, at) = self.rule?;
        let rule = &policy.rules[at];
        let from = self.parts.0.map(|at| words::failed_peer(&rule.from[at], policy.action, c, own, facts));
        let to = self.parts.1.map(|at| words::failed_operation(&rule.to[at], policy.action, c, facts));
        let failed = from.into_iter().chain(to).flatten().collect();
        Some(Nearest { policy: policy.clone(), rule: at, failed })
    }
}

/// The place of the first of the fewest, and how many these are.
fn fewest(counts: impl Iterator<Item = usize>) -> Option<(usize, usize)> {
    counts.enumerate().min_by_key(|(_, count)| *count)
}

impl Considered {
    pub(in crate::authorization) fn new(policy: &Arc<Policy>, c: &Connection, own: &SpiffeId, facts: &Facts<'_>) -> Self {
        let applies = policy.ports.as_ref().is_none_or(|bound| bound.contains(&c.port));
        let mut considered = Self { policy: policy.clone(), applies, matched: None, unclear: None, nearest: None };
        if !applies {
            return considered;
        }
        for (at, rule) in policy.rules.iter().enumerate() {
            let all: Vec<_> = if rule.from.is_empty() { vec![None] } else { (0..rule.from.len()).map(Some).collect() };
            let held = |at: Option<usize>| at.map_or(Held::Yes, |at| rule.from[at].holds(policy.action, c, own, facts));
            let peers = all.into_iter().map(|at| (at, held(at))).filter(|(_, held)| *held != Held::No);
            let operations: Vec<_> = if rule.to.is_empty() { vec![None] } else { (0..rule.to.len()).map(Some).collect() };
            for (peer, who) in peers {
                for operation in &operations {
                    let what = operation.map_or(Held::Yes, |o| rule.to[o].holds(policy.action, c.port, facts));
                    let held = who.and(what);
                    let here = || Match { policy: policy.clone(), rule: at, peer, operation: *operation };
                    match held {
                        Held::Yes => {
                            considered.matched = Some(here());
                            considered.unclear = None;
                            return considered;
                        }
                        Held::Unclear(why) if considered.unclear.is_none() => considered.unclear = Some((here(), why)),
                        Held::Unclear(_) | Held::No => {}
                    }
                }
            }
        }
        let mut best = Best::default();
        best.look_at(policy, c, own, facts);
        considered.nearest = best.told(c, own, facts);
        considered
    }
}

/// The clauses of an operation that do not hold, or cannot be judged.
pub(super) fn judged<'a>(
    operation: &'a Operation,
    action: Action,
    c: &Connection,
    facts: &'a Facts<'_>,
) -> impl Iterator<Item = (&'static str, Held)> + 'a {
    let ports = [
        ("ports", operation.ports.is_empty() || operation.ports.contains(&c.port)),
        ("notPorts", !operation.not_ports.contains(&c.port)),
    ];
    let ports = ports.into_iter().filter(|(_, holds)| !holds).map(|(name, _)| (name, Held::No));
    ports.chain(operation.about_http(action, facts).filter(|(_, held)| *held != Held::Yes))
}
