//! Clauses of an `AuthorizationPolicy` about the end user's token.

use std::convert::Infallible;
use std::sync::Arc;

use serde::Deserialize;
use weft_core::authorization::token::{ClaimMatch, TokenMatch};
use weft_core::jwt::ClaimPath;

use super::rules::{each, values};
use super::{Wrong, given, wrong};

/// All that is given must hold.
#[derive(Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(deny_unknown_fields)]
pub(super) struct TokenSpec {
    /// The `iss`, as a `JwtIssuer` has it. Required.
    issuer: String,
    /// The `sub`. Default: any.
    #[serde(default, deserialize_with = "given")]
    subject: Option<String>,
    /// Of which `aud` must have one. Default: any that the `JwtIssuer` takes.
    #[serde(default, deserialize_with = "given")]
    audiences: Option<Vec<String>>,
    /// Each must hold.
    #[serde(default, deserialize_with = "given")]
    claims: Option<Vec<ClaimSpec>>,
}

/// `name` or `path`, and `values` or `present: true`.
#[derive(Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(deny_unknown_fields)]
struct ClaimSpec {
    /// Names of members, with dots between them.
    #[serde(default, deserialize_with = "given")]
    name: Option<String>,
    /// The same as a list, for names that have dots in them.
    #[serde(default, deserialize_with = "given")]
    path: Option<Vec<String>>,
    /// One of them.
    #[serde(default, deserialize_with = "given")]
    values: Option<Vec<String>>,
    #[serde(default)]
    present: bool,
}

impl TokenSpec {
    pub(super) fn read(&self, at: &str) -> Result<TokenMatch, Wrong> {
        if self.issuer.is_empty() {
            return wrong(format!("{at}.issuer"), "is empty: name the issuer of a JwtIssuer");
        }
        if self.subject.as_ref().is_some_and(|s| s.is_empty() || s.len() > 2_048) {
            return wrong(format!("{at}.subject"), "must have from 1 to 2048 bytes");
        }
        let claims = values(self.claims.as_deref(), &format!("{at}.claims"))?;
        let claim = |(i, claim): (usize, &ClaimSpec)| claim.read(&format!("{at}.claims[{i}]"));
        Ok(TokenMatch {
            issuer: self.issuer.as_str().into(),
            subject: self.subject.as_deref().map(Into::into),
            audiences: texts(self.audiences.as_deref(), &format!("{at}.audiences"))?,
            claims: claims.iter().enumerate().map(claim).collect::<Result<_, _>>()?,
        })
    }
}

impl ClaimSpec {
    fn read(&self, at: &str) -> Result<ClaimMatch, Wrong> {
        let path = match (&self.name, &self.path) {
            (Some(name), None) => ClaimPath::dotted(name).map_err(|e| (format!("{at}.name"), e.to_string()))?,
            (None, Some(path)) => ClaimPath::new(path).map_err(|e| (format!("{at}.path"), e.to_string()))?,
            (Some(_), Some(_)) => return wrong(format!("{at}.path"), "stands beside name: write one of them"),
            (None, None) => return wrong(format!("{at}.name"), "missing: which claim is meant"),
        };
        match (&self.values, self.present) {
            (Some(_), true) => wrong(format!("{at}.present"), "stands beside values: write one of them"),
            (None, false) => wrong(format!("{at}.values"), "missing: what the claim must be, or `present: true`"),
            (list, _) => Ok(ClaimMatch { path, values: texts(list.as_deref(), &format!("{at}.values"))? }),
        }
    }
}

fn texts(list: Option<&[String]>, at: &str) -> Result<Vec<Arc<str>>, Wrong> {
    each(list, at, |text| Ok::<_, Infallible>(text.into()))
}
