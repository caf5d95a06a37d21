//! Decisions as values: what was decided, by which policy, rule and clause, and what would have allowed it.

use std::sync::Arc;

use super::clause::Unclear;
use super::policy::{Policy, Posture, PostureFrom};

mod nearest;
mod told;
mod words;

pub(super) use nearest::{challenge, nearest};

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
    /// Another token could have allowed it.
    pub challenge: Option<Challenge>,
}

/// What a caller is told whose token was what was wanting (RFC 6750, section 3).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Challenge {
    /// It sent none.
    Missing,
    /// It sent one that does not count.
    Invalid,
}

impl Challenge {
    /// The value of `WWW-Authenticate`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Missing => "Bearer",
            Self::Invalid => "Bearer error=\"invalid_token\"",
        }
    }
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

    /// A word for metrics: one of `matched`, `none-allows`, `default`, `not-http`, `path`, `host`, `method`, `token`.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Matched(_) => "matched",
            Self::NoneAllows => "none-allows",
            Self::Posture(..) => "default",
            Self::Unclear(_, Unclear::NotHttp) => "not-http",
            Self::Unclear(_, Unclear::Path(_)) => "path",
            Self::Unclear(_, Unclear::Host) => "host",
            Self::Unclear(_, Unclear::Method) => "method",
            Self::Unclear(_, Unclear::Token(_)) => "token",
        }
    }
}

impl Unclear {
    fn remedy(self, m: &Match) -> String {
        match self {
            Self::NotHttp => format!("HTTP: {} has a clause that only a request can be judged by", m.policy.id),
            Self::Path(_) => "a path that can be read in one way only".to_owned(),
            Self::Host => "a request that names one host".to_owned(),
            Self::Method => "a method in upper case".to_owned(),
            Self::Token(fault) => fault.remedy().to_owned(),
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
