//! Decisions as text.

use std::fmt;

use super::{Cause, Decision, Failed, Match, Nearest, Verdict, words};
use crate::authorization::clause::Unclear;
use crate::authorization::policy::{PostureFrom, Target};

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
            Self::Method => f.write_str("the method is a listed one in another case"),
            Self::Token(fault) => write!(f, "the token {fault}"),
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
            Self::External(id) => write!(f, "the ExternalService {id}"),
        }
    }
}
