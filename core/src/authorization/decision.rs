//! Decisions as values: what was decided, by which policy, rule and clause, and what would have allowed it.

use std::fmt;
use std::sync::Arc;

use super::clause::{Connection, Facts, Held, Unclear};
use super::policy::{Action, Operation, Peer, Policy, Posture, PostureFrom, Target};
use crate::identity::SpiffeId;

mod words;

/// Whether a call may come in.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Verdict {
    /// It may.
    Allowed,
    /// It may not.
    Denied,
}

/// A decision, with its reasons. It reads well as text.
#[derive(Clone, PartialEq, Debug)]
pub struct Decision {
    /// What was decided.
    pub verdict: Verdict,
    /// Why.
    pub cause: Cause,
    /// AUDIT policies that match, each by its first rule that does.
    pub audited: Vec<Match>,
    /// What would be decided if the policies in dry run were in force, where that is another verdict.
    pub dry_run: Option<Box<(Verdict, Cause)>>,
    /// The ALLOW rule that came nearest to allowing it, where it was denied for want of one.
    pub nearest: Option<Nearest>,
}

/// Why a call is allowed or denied.
#[derive(Clone, PartialEq, Debug)]
pub enum Cause {
    /// This rule matches.
    Matched(Match),
    /// ALLOW policies apply to the port, and none matches.
    NoneAllows,
    /// No ALLOW policy applies to the port: the default holds, and who set it.
    Posture(Posture, PostureFrom),
    /// The verdict depends on this rule, which cannot be judged.
    Unclear(Match, Unclear),
}

/// A rule that matches, and by what of it.
#[derive(Clone, PartialEq, Debug)]
pub struct Match {
    /// The policy.
    pub policy: Arc<Policy>,
    /// The rule's place, from 0.
    pub rule: usize,
    /// The place in the rule's `from`; none where that is empty.
    pub peer: Option<usize>,
    /// The place in the rule's `to`; none where that is empty.
    pub operation: Option<usize>,
}

/// A rule that does not match, and why.
#[derive(Clone, PartialEq, Debug)]
pub struct Nearest {
    /// The policy.
    pub policy: Arc<Policy>,
    /// The rule's place, from 0.
    pub rule: usize,
    /// What would have to be otherwise. Empty only where the rule has a peer or operation with nothing in it, which matches nothing.
    pub failed: Vec<Failed>,
}

/// A clause that does not hold.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Failed {
    /// Its name, as manifests have it.
    pub clause: &'static str,
    /// What it asks for.
    pub wanted: String,
    /// What there was instead. Values of header fields are not told.
    pub found: String,
}

/// One policy, and what became of it.
#[derive(Clone, PartialEq, Debug)]
pub struct Considered {
    /// The policy.
    pub policy: Arc<Policy>,
    /// Whether it is bound to the port.
    pub applies: bool,
    /// The first rule that matches.
    pub matched: Option<Match>,
    /// The first rule that cannot be judged, where none matches.
    pub unclear: Option<(Match, Unclear)>,
    /// The rule that came nearest, where none matches.
    pub nearest: Option<Nearest>,
}

impl Decision {
    /// Whether there is something to tell of it beside the verdict.
    pub fn tells(&self) -> bool {
        !self.audited.is_empty() || self.dry_run.is_some()
    }

    /// Whether it is allowed.
    pub fn is_allowed(&self) -> bool {
        self.verdict == Verdict::Allowed
    }

    /// The policy that decided, where one did.
    pub fn policy(&self) -> Option<&Arc<Policy>> {
        self.cause.matched().map(|m| &m.policy)
    }

    /// What would have allowed it, in a few words; none where it is allowed.
    pub fn remedy(&self) -> Option<String> {
        if self.is_allowed() {
            return None;
        }
        Some(match (&self.cause, &self.nearest) {
            (Cause::Matched(m), _) if m.policy.broken.is_some() => format!("{} mended", m.policy.id),
            (Cause::Matched(m), _) => format!("a call that {} does not match", m.policy.id),
            (Cause::Unclear(m, why), _) => why.remedy(m),
            (_, Some(nearest)) => nearest.to_string(),
            (_, None) => "an ALLOW policy that matches it".to_owned(),
        })
    }
}

impl Cause {
    /// The rule that decided, where one did.
    pub fn matched(&self) -> Option<&Match> {
        match self {
            Self::Matched(m) | Self::Unclear(m, _) => Some(m),
            Self::NoneAllows | Self::Posture(..) => None,
        }
    }

    /// A word for metrics: one of `matched`, `none-allows`, `default`, `not-http`, `path`, `host`.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Matched(_) => "matched",
            Self::NoneAllows => "none-allows",
            Self::Posture(..) => "default",
            Self::Unclear(_, Unclear::NotHttp) => "not-http",
            Self::Unclear(_, Unclear::Path(_)) => "path",
            Self::Unclear(_, Unclear::Host) => "host",
        }
    }
}

impl Unclear {
    fn remedy(self, m: &Match) -> String {
        match self {
            Self::NotHttp => format!("HTTP: {} has a clause that only a request can be judged by", m.policy.id),
            Self::Path(_) => "a path that can be read in one way only".to_owned(),
            Self::Host => "a request that names one host".to_owned(),
        }
    }
}

/// The ALLOW rule that came nearest, where a call was denied for want of one.
pub(super) fn nearest(
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

/// Peers and operations that are looked at for the nearest rule, at the most.
const LOOKED_AT: usize = 1000;

/// The rule that came nearest so far: fewest of its clauses do not hold.
#[derive(Default)]
struct Best<'a> {
    rule: Option<(&'a Arc<Policy>, usize)>,
    /// The places of the peer and the operation that come nearest.
    parts: (Option<usize>, Option<usize>),
    failed: usize,
    looked_at: usize,
}

impl<'a> Best<'a> {
    fn look_at(&mut self, policy: &'a Arc<Policy>, c: &Connection, own: &SpiffeId, facts: &Facts<'_>) {
        for (at, rule) in policy.rules.iter().enumerate() {
            // Nearer than by one clause is none that does not match.
            if self.looked_at >= LOOKED_AT || (self.rule.is_some() && self.failed == 1) {
                return;
            }
            self.looked_at += rule.from.len() + rule.to.len();
            let peers = rule.from.iter().map(|p| usize::from(p.is_empty()) + p.failing(c, own).count());
            let operations = rule.to.iter().map(|o| usize::from(o.is_empty()) + judged(o, policy.action, c, facts).count());
            let (peer, operation) = (fewest(peers), fewest(operations));
            let failed = peer.map_or(0, |(_, n)| n) + operation.map_or(0, |(_, n)| n);
            if self.rule.is_none() || failed < self.failed {
                self.rule = Some((policy, at));
                self.parts = (peer.map(|(at, _)| at), operation.map(|(at, _)| at));
                self.failed = failed;
            }
        }
    }

    fn told(&self, c: &Connection, own: &SpiffeId, facts: &Facts<'_>) -> Option<Nearest> {
        let (policy, at) = self.rule?;
        let rule = &policy.rules[at];
        let from = self.parts.0.map(|at| words::failed_peer(&rule.from[at], c, own));
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
    pub(super) fn new(policy: &Arc<Policy>, c: &Connection, own: &SpiffeId, facts: &Facts<'_>) -> Self {
        let applies = policy.ports.as_ref().is_none_or(|bound| bound.contains(&c.port));
        let mut considered = Self { policy: policy.clone(), applies, matched: None, unclear: None, nearest: None };
        if !applies {
            return considered;
        }
        for (at, rule) in policy.rules.iter().enumerate() {
            let peers = if rule.from.is_empty() { vec![None] } else { places(&rule.from, |p: &Peer| p.holds(c, own)) };
            let operations: Vec<_> = if rule.to.is_empty() { vec![None] } else { (0..rule.to.len()).map(Some).collect() };
            for peer in peers {
                for operation in &operations {
                    let held = operation.map_or(Held::Yes, |o| rule.to[o].holds(policy.action, c.port, facts));
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

fn places<T>(list: &[T], holds: impl Fn(&T) -> bool) -> Vec<Option<usize>> {
    list.iter().enumerate().filter(|(_, item)| holds(item)).map(|(at, _)| Some(at)).collect()
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        tell(f, self.verdict, &self.cause)?;
        if let (Cause::NoneAllows, Some(nearest)) = (&self.cause, &self.nearest) {
            write!(f, ": what comes nearest is {nearest}")?;
        }
        for audited in &self.audited {
            write!(f, "; {audited} matches")?;
        }
        if let Some(dry) = &self.dry_run {
            f.write_str("; with the policies in dry run it would be ")?;
            tell(f, dry.0, &dry.1)?;
        }
        Ok(())
    }
}

fn tell(f: &mut fmt::Formatter<'_>, verdict: Verdict, cause: &Cause) -> fmt::Result {
    match (verdict, cause) {
        (_, Cause::Matched(m)) => write!(f, "{verdict} by {m}{}", words::Clauses(m)),
        (_, Cause::NoneAllows) => write!(f, "{verdict}: no ALLOW policy matches"),
        (Verdict::Allowed, Cause::Posture(posture, from)) => write!(f, "{verdict}: the default of {from} is {posture}"),
        (Verdict::Denied, Cause::Posture(posture, from)) => {
            write!(f, "{verdict}: no ALLOW policy applies, and the default of {from} is {posture}")
        }
        (_, Cause::Unclear(m, why)) => write!(f, "{verdict}: {m} cannot be judged: {why}"),
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Allowed => "allowed",
            Self::Denied => "denied",
        })
    }
}

impl fmt::Display for Match {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} rule {}", self.policy.action, self.policy.id, self.rule)
    }
}

impl fmt::Display for Unclear {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotHttp => f.write_str("the bytes are not HTTP"),
            Self::Path(defect) => write!(f, "the path {defect}"),
            Self::Host => f.write_str("the request does not name one host"),
        }
    }
}

impl fmt::Display for Nearest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} rule {}", self.policy.action, self.policy.id, self.rule)?;
        for (at, failed) in self.failed.iter().enumerate() {
            f.write_str(if at == 0 { ", which asks for " } else { " and for " })?;
            write!(f, "{failed}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} (it is {})", self.clause, self.wanted, self.found)
    }
}

impl fmt::Display for PostureFrom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mesh => f.write_str("the mesh"),
            Self::Namespace(namespace) => write!(f, "the namespace {namespace}"),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mesh => f.write_str("the mesh"),
            Self::Namespace(namespace) => write!(f, "the namespace {namespace}"),
            Self::Workloads(namespace, selector) => write!(f, "workloads {selector} of {namespace}"),
            Self::Service(id) => write!(f, "the Service {id}"),
            Self::Route(kind, id) => write!(f, "the {} {id}", kind.as_str()),
        }
    }
}

/// The given clauses of a match's peer and operation.
fn clauses(m: &Match) -> (Vec<words::Given>, Vec<words::Given>) {
    let rule = &m.policy.rules[m.rule];
    let peer = m.peer.map(|at| words::peer(&rule.from[at])).unwrap_or_default();
    let operation = m.operation.map(|at| words::operation(&rule.to[at])).unwrap_or_default();
    (peer, operation)
}

impl Match {
    /// What it matched by, as `from namespaces dev; to paths /admin/*`; empty where the rule matches anything, and why it does where its policy cannot be
    /// honoured.
    pub fn clause(&self) -> String {
        if let Some(why) = &self.policy.broken {
            return format!("everything, since it cannot be honoured: {why}");
        }
        let (from, to) = clauses(self);
        let say = |word: &str, list: Vec<words::Given>| {
            let list: Vec<_> = list.into_iter().map(|(name, values)| format!("{name} {values}")).collect();
            (!list.is_empty()).then(|| format!("{word} {}", list.join(", ")))
        };
        say("from", from).into_iter().chain(say("to", to)).collect::<Vec<_>>().join("; ")
    }
}

/// The clauses of an operation that do not hold, or cannot be judged.
fn judged<'a>(
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
