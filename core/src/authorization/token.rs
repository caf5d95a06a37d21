//! Clauses about the end user's token. They say nothing about which workload calls, and stand beside the clauses that do.

use std::fmt;
use std::sync::Arc;

use super::clause::{Facts, Held, Unclear};
use super::policy::{Action, InvalidClause, Peer};
use crate::jwt::{Bearer, ClaimPath, Token};

/// A token that a request must bear. All that is given must hold.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct TokenMatch {
    /// The `iss`, as a `JwtIssuer` has it.
    pub issuer: Arc<str>,
    /// The `sub`; none is any.
    pub subject: Option<Arc<str>>,
    /// One of these must be in its `aud`; empty: one that the `JwtIssuer` takes is enough.
    pub audiences: Vec<Arc<str>>,
    /// Each must hold.
    pub claims: Vec<ClaimMatch>,
}

/// A claim of a token.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct ClaimMatch {
    /// Where it stands.
    pub path: ClaimPath,
    /// It must be one of these texts, or a list that has one of them. Empty: it must be there, and not be `null`.
    pub values: Vec<Arc<str>>,
}

/// The parts of a [`TokenMatch`] that a valid token may lack.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Lack<'a> {
    Subject,
    Audience,
    Claim(&'a ClaimPath),
}

impl TokenMatch {
    /// The first part that does not hold of a token of the issuer's.
    pub(super) fn lack(&self, token: &Token) -> Option<Lack<'_>> {
        if self.subject.as_deref().is_some_and(|s| token.subject.as_deref() != Some(s)) {
            return Some(Lack::Subject);
        }
        if !self.audiences.is_empty() && !self.audiences.iter().any(|a| token.audiences.iter().any(|t| **t == **a)) {
            return Some(Lack::Audience);
        }
        self.claims.iter().find(|claim| !claim.holds(token)).map(|claim| Lack::Claim(&claim.path))
    }

    /// Refuses what no token can be.
    pub(super) fn check(&self) -> Result<(), InvalidClause> {
        let invalid = |why| Err(InvalidClause::new("issuer of a token", &self.issuer, why));
        if self.issuer.is_empty() || self.issuer.len() > 2_048 {
            return invalid("it must have from 1 to 2048 bytes");
        }
        if self.issuer.chars().any(char::is_control) {
            return invalid("it has a control character");
        }
        Ok(())
    }
}

impl ClaimMatch {
    fn holds(&self, token: &Token) -> bool {
        let Some(claim) = token.claims.at(&self.path) else { return false };
        if self.values.is_empty() {
            return true;
        }
        match claim.as_text() {
            Some(scope) if self.path.is_scope() => scope.split(' ').any(|one| self.values.iter().any(|v| **v == *one)),
            _ => self.values.iter().any(|value| claim.has(value)),
        }
    }
}

impl Peer {
    /// Whether it has clauses that a request alone can be judged by.
    pub fn needs_request(&self) -> bool {
        self.jwt.is_some() || self.not_jwt.is_some()
    }

    /// The clauses about a token that are given, by name. A token that does not count never makes an ALLOW match, and leaves a DENY unclear.
    pub(super) fn about_tokens<'a>(
        &'a self,
        action: Action,
        facts: &'a Facts<'_>,
    ) -> impl Iterator<Item = (&'static str, Held)> + 'a {
        let clauses = [("jwt", &self.jwt, true), ("notJwt", &self.not_jwt, false)];
        clauses.into_iter().filter_map(move |(name, wanted, is)| Some((name, held(wanted.as_ref()?, is, action, facts))))
    }
}

fn held(wanted: &TokenMatch, is: bool, action: Action, facts: &Facts<'_>) -> Held {
    let Some(request) = facts.request() else { return Held::Unclear(Unclear::NotHttp) };
    let found = match request.token(&wanted.issuer) {
        Bearer::Absent | Bearer::Other => false,
        Bearer::Valid(token) => wanted.lack(token).is_none(),
        Bearer::Invalid(_) if action == Action::Allow => return Held::No,
        Bearer::Invalid(fault) => return Held::Unclear(Unclear::Token(fault)),
    };
    if found == is { Held::Yes } else { Held::No }
}

impl fmt::Display for TokenMatch {
    /// The issuer, and what else is asked for by name: values are of people.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "issuer {}", self.issuer)?;
        let subject = self.subject.iter().map(|_| "subject".to_owned());
        let audiences = self.audiences.first().map(|_| "audiences".to_owned());
        let claims =
            self.claims.iter().map(|c| format!("claim {} ({})", c.path, if c.values.is_empty() { "present" } else { "exact" }));
        for (i, part) in subject.chain(audiences).chain(claims).enumerate() {
            write!(f, "{}{part}", if i == 0 { " with " } else { " and " })?;
        }
        Ok(())
    }
}

impl fmt::Display for Lack<'_> {
    /// To be read after "a token".
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Subject => f.write_str("of another subject"),
            Self::Audience => f.write_str("for another audience"),
            Self::Claim(path) => write!(f, "whose claim {path} is missing or another"),
        }
    }
}
