//! The verdict on a connection and on each of its requests.

use std::sync::Arc;

use super::clause::{Connection, Facts, Unclear};
use super::decision::{Cause, Considered, Decision, Match, Verdict, challenge, nearest};
use super::index::{Compiled, Entry, Found, Lane, Selected};
use super::policy::{Action, Posture};
use crate::traffic::table::RequestFacts;

/// What can be said of a connection before any request.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// Whatever is asked for on it is allowed.
    Allowed,
    /// Whatever is asked for on it is denied.
    Denied,
    /// It depends on the request; bytes that are none are denied.
    PerRequest,
}

/// What the policies say of one connection: made once for it, and anew when they change.
#[derive(Debug)]
pub struct Judge {
    compiled: Arc<Compiled>,
    connection: Connection,
    selected: Selected,
    outcome: Outcome,
    /// A policy is told of, though it does not decide: requests must be looked at even if all are allowed.
    tells: bool,
}

/// A verdict without words.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Ruling {
    Allowed(Why),
    Denied(Why),
    Unclear(Entry, Unclear),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Why {
    Matched(Entry),
    NoneAllows,
    Posture,
}

impl Judge {
    /// Finds what could be about a connection.
    pub fn new(compiled: Arc<Compiled>, connection: Connection) -> Self {
        let selected = compiled.select(&connection);
        let tells = [Lane::Audit, Lane::DryAllow, Lane::DryDeny].into_iter().any(|lane| compiled.applies(lane, connection.port));
        let mut judge = Self { compiled, connection, selected, outcome: Outcome::PerRequest, tells };
        judge.outcome = match judge.rule(&Facts::new(None), false) {
            Ruling::Allowed(_) => Outcome::Allowed,
            Ruling::Denied(_) => Outcome::Denied,
            Ruling::Unclear(..) => Outcome::PerRequest,
        };
        judge
    }

    /// What can be said before any request.
    pub fn outcome(&self) -> &Outcome {
        &self.outcome
    }

    /// Whether requests need not be looked at: all are allowed, and there is nothing to tell.
    pub fn is_open(&self) -> bool {
        matches!(self.outcome, Outcome::Allowed) && !self.tells
    }

    /// Whether the verdict on a request may depend on a token that it bears.
    pub fn reads_tokens(&self) -> bool {
        self.compiled.reads_tokens(self.connection.port)
    }

    /// Who calls which port.
    pub fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Judges a request, or, with none, bytes that are not HTTP. None: it is allowed, and there is nothing to tell.
    pub fn judge(&self, request: Option<&dyn RequestFacts>) -> Option<Decision> {
        if self.is_open() {
            return None;
        }
        let facts = Facts::new(request);
        let ruling = self.rule(&facts, false);
        if matches!(ruling, Ruling::Allowed(_)) && !self.tells {
            return None;
        }
        let decision = self.decision(ruling, &facts);
        (decision.verdict == Verdict::Denied || decision.tells()).then_some(decision)
    }

    /// The same, with every word of it: for whoever asks why.
    pub fn decide(&self, request: Option<&dyn RequestFacts>) -> Decision {
        let facts = Facts::new(request);
        self.decision(self.rule(&facts, false), &facts)
    }

    /// Every policy of the pod, and why it matched or did not. Walks them all.
    pub fn consider(&self, request: Option<&dyn RequestFacts>) -> Vec<Considered> {
        let facts = Facts::new(request);
        self.compiled.policies.iter().map(|p| Considered::new(p, &self.connection, &self.compiled.own, &facts)).collect()
    }

    /// The order of evaluation, as `authorization.rs` describes it.
    fn rule(&self, facts: &Facts<'_>, dry: bool) -> Ruling {
        let find = |lane, dry_lane| {
            let found = self.find(lane, facts);
            if dry { found.or(self.find(dry_lane, facts)) } else { found }
        };
        let port = self.connection.port;
        let denies = find(Lane::Deny, Lane::DryDeny);
        if let Some(entry) = denies.yes {
            return Ruling::Denied(Why::Matched(entry));
        }
        let base = if self.compiled.applies(Lane::Allow, port) || dry && self.compiled.applies(Lane::DryAllow, port) {
            match find(Lane::Allow, Lane::DryAllow) {
                Found { yes: Some(entry), .. } => Ruling::Allowed(Why::Matched(entry)),
                Found { unclear: Some((entry, why)), .. } => Ruling::Unclear(entry, why),
                Found { yes: None, unclear: None } => Ruling::Denied(Why::NoneAllows),
            }
        } else if self.posture_allows() {
            Ruling::Allowed(Why::Posture)
        } else {
            Ruling::Denied(Why::Posture)
        };
        match (base, denies.unclear) {
            (Ruling::Denied(_), _) | (_, None) => base,
            (_, Some((entry, why))) => Ruling::Unclear(entry, why),
        }
    }

    fn find(&self, lane: Lane, facts: &Facts<'_>) -> Found {
        self.compiled.find(lane, &self.connection, &self.selected, facts)
    }

    fn posture_allows(&self) -> bool {
        let own = &self.compiled.own;
        match self.compiled.posture {
            Posture::AllowAll => true,
            Posture::AllowAuthenticated => self.connection.caller().is_some(),
            Posture::AllowSameNamespace => self.connection.local(own).is_some_and(|id| id.namespace() == own.namespace()),
            Posture::Deny => false,
        }
    }

    fn decision(&self, ruling: Ruling, facts: &Facts<'_>) -> Decision {
        let (verdict, cause) = self.told(ruling);
        let audited = self.compiled.find_all(Lane::Audit, &self.connection, &self.selected, facts);
        let dry = [Lane::DryAllow, Lane::DryDeny].into_iter().any(|lane| self.compiled.applies(lane, self.connection.port));
        let dry_run = dry.then(|| self.told(self.rule(facts, true))).filter(|(other, _)| *other != verdict);
        let (c, own) = (&self.connection, &self.compiled.own);
        let allows = if verdict == Verdict::Denied { self.allows() } else { vec![] };
        let nearest = (verdict == Verdict::Denied).then(|| nearest(&cause, &allows, c, own, facts));
        let reads = verdict == Verdict::Denied && self.reads_tokens();
        let challenge = reads.then(|| challenge(&cause, &allows, c, own, facts));
        Decision {
            verdict,
            cause,
            audited: audited.into_iter().map(|entry| self.matched(entry)).collect(),
            dry_run: dry_run.map(Box::new),
            nearest: nearest.flatten(),
            challenge: challenge.flatten(),
        }
    }

    /// Some of the policies that could allow something on this port.
    fn allows(&self) -> Vec<&Arc<super::Policy>> {
        let port = self.connection.port;
        let all = self.compiled.policies.iter();
        let allows =
            all.filter(|p| p.action == Action::Allow && !p.dry_run && p.ports.as_ref().is_none_or(|b| b.contains(&port)));
        allows.take(LOOKED_AT).collect()
    }

    fn told(&self, ruling: Ruling) -> (Verdict, Cause) {
        let cause = |why| match why {
            Why::Matched(entry) => Cause::Matched(self.matched(entry)),
            Why::NoneAllows => Cause::NoneAllows,
            Why::Posture => Cause::Posture(self.compiled.posture, self.compiled.posture_from.clone()),
        };
        match ruling {
            Ruling::Allowed(why) => (Verdict::Allowed, cause(why)),
            Ruling::Denied(why) => (Verdict::Denied, cause(why)),
            Ruling::Unclear(entry, why) => (Verdict::Denied, Cause::Unclear(self.matched(entry), why)),
        }
    }

    fn matched(&self, entry: Entry) -> Match {
        Match {
            policy: self.compiled.policies[entry.policy as usize].clone(),
            rule: entry.rule as usize,
            peer: entry.peer(),
            operation: entry.operation(),
        }
    }
}

/// Policies that are looked at for what would have allowed a call: a denial costs no more, however many there are.
const LOOKED_AT: usize = 100;
