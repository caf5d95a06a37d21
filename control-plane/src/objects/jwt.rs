//! `JwtIssuer` (`weft.dev/v1alpha1`): whose tokens count, to the noun of `weft_core`. One that cannot be honoured is an object all the same: what asks for its
//! tokens refuses.

use std::sync::Arc;

use serde::Deserialize;
use weft_core::jwt::{Forward, Issuer, Keys, KeysUrl, Place};
use weft_core::service::ObjectRef;
use weft_tls::tokens::Jwks;

use super::authorization::{given, wrong};
use super::traffic::Wrong;

/// An issuer as it was read.
#[derive(Clone, PartialEq, Debug)]
pub struct IssuerObject {
    pub id: ObjectRef,
    /// 0 where nobody counts.
    pub generation: i64,
    /// Or the field that is at fault, and why.
    pub content: Result<Arc<Issuer>, Wrong>,
}

/// `spec` of a `JwtIssuer`. A field that is not known is an error.
#[derive(Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct IssuerSpec {
    /// The `iss` of its tokens. Required.
    issuer: String,
    /// Of which a token's `aud` must have one: 1 to 16. Required.
    audiences: Vec<String>,
    /// A JWK Set, as JSON. This or `jwksUri`.
    #[serde(default, deserialize_with = "given")]
    jwks: Option<String>,
    /// Where one is fetched.
    #[serde(default, deserialize_with = "given")]
    jwks_uri: Option<String>,
    /// Where its tokens stand. Default: `Authorization: Bearer`.
    #[serde(default, deserialize_with = "given")]
    from: Option<FromSpec>,
    /// `Keep` or `Strip`. Default: `Keep`.
    #[serde(default)]
    forward: ForwardSpec,
    /// 0 to 300. Default: 20.
    #[serde(default, deserialize_with = "given")]
    clock_skew_seconds: Option<u32>,
    /// Default: all that a key can be used with.
    #[serde(default, deserialize_with = "given")]
    algorithms: Option<Vec<String>>,
}

#[derive(Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(deny_unknown_fields)]
struct FromSpec {
    /// 1 to 4.
    headers: Vec<HeaderSpec>,
}

#[derive(Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(deny_unknown_fields)]
struct HeaderSpec {
    name: String,
    /// What stands before the token. Default: `Bearer ` in Authorization, and nothing in any other field.
    #[serde(default, deserialize_with = "given")]
    prefix: Option<String>,
}

#[derive(Deserialize, Clone, Copy, PartialEq, Eq, Debug, Default)]
enum ForwardSpec {
    #[default]
    Keep,
    Strip,
}

const MAX_AUDIENCES: usize = 16;
const MAX_HEADERS: usize = 4;
/// The longest issuer or audience, in bytes.
const MAX_TEXT: usize = 2_048;
const MAX_SKEW: u32 = 300;
const DEFAULT_SKEW: u32 = 20;

impl IssuerSpec {
    /// What it says, or the first field below `spec` that cannot be honoured.
    pub fn read(&self, id: &ObjectRef) -> Result<Issuer, Wrong> {
        text("issuer", &self.issuer)?;
        if self.audiences.is_empty() || self.audiences.len() > MAX_AUDIENCES {
            let message = format!(
                "{} of them; from 1 to {MAX_AUDIENCES} are taken: without one, tokens for anybody else would count",
                self.audiences.len()
            );
            return wrong("audiences", message);
        }
        for (i, audience) in self.audiences.iter().enumerate() {
            text(&format!("audiences[{i}]"), audience)?;
        }
        let clock_skew = self.clock_skew_seconds.unwrap_or(DEFAULT_SKEW);
        if clock_skew > MAX_SKEW {
            return wrong("clockSkewSeconds", format!("{clock_skew} is not from 0 to {MAX_SKEW}"));
        }
        let algorithm = |(i, name): (usize, &String)| {
            name.parse().map_err(|e: weft_core::jwt::UnknownAlgorithm| (format!("algorithms[{i}]"), e.to_string()))
        };
        if self.algorithms.as_ref().is_some_and(Vec::is_empty) {
            return wrong("algorithms", "is empty: leave it out, and those are taken that the keys can be used with");
        }
        Ok(Issuer {
            id: id.clone(),
            issuer: self.issuer.as_str().into(),
            audiences: self.audiences.iter().map(|a| a.as_str().into()).collect(),
            keys: self.keys()?,
            places: self.places()?,
            forward: match self.forward {
                ForwardSpec::Keep => Forward::Keep,
                ForwardSpec::Strip => Forward::Strip,
            },
            clock_skew,
            algorithms: self.algorithms.iter().flatten().enumerate().map(algorithm).collect::<Result<_, _>>()?,
        })
    }

    fn keys(&self) -> Result<Keys, Wrong> {
        match (&self.jwks, &self.jwks_uri) {
            (Some(_), Some(_)) => wrong("jwksUri", "stands beside jwks: write one of them"),
            (None, None) => wrong("jwksUri", "missing: where the issuer's keys are, or jwks with the keys themselves"),
            (Some(set), None) => {
                Jwks::read(set.as_bytes()).map_err(|e| ("jwks".to_owned(), e.to_string()))?;
                Ok(Keys::Inline(set.as_str().into()))
            }
            (None, Some(url)) => {
                let url: KeysUrl = url
                    .parse()
                    .map_err(|e: weft_core::authorization::policy::InvalidClause| ("jwksUri".to_owned(), e.to_string()))?;
                Ok(Keys::Remote(url.to_string().into()))
            }
        }
    }

    fn places(&self) -> Result<Vec<Place>, Wrong> {
        let Some(from) = &self.from else { return Ok(vec![Place::bearer()]) };
        if from.headers.is_empty() || from.headers.len() > MAX_HEADERS {
            return wrong("from.headers", format!("{} of them; from 1 to {MAX_HEADERS} are taken", from.headers.len()));
        }
        let mut places: Vec<Place> = Vec::new();
        for (i, header) in from.headers.iter().enumerate() {
            let at = format!("from.headers[{i}]");
            let default = if header.name.eq_ignore_ascii_case("authorization") { "Bearer " } else { "" };
            let place =
                Place::new(&header.name, header.prefix.as_deref().unwrap_or(default)).map_err(|e| (at.clone(), e.to_string()))?;
            if places.iter().any(|other| other.header == place.header) {
                return wrong(at, format!("{} stands twice", place.header));
            }
            places.push(place);
        }
        Ok(places)
    }
}

fn text(at: &str, text: &str) -> Result<(), Wrong> {
    if text.is_empty() || text.len() > MAX_TEXT {
        return wrong(at, format!("{} bytes long; from 1 to {MAX_TEXT} are taken", text.len()));
    }
    if text.chars().any(char::is_control) || text.trim() != text {
        return wrong(at, "has a control character, or white space at an end, and would match no token");
    }
    Ok(())
}

#[cfg(test)]
mod tests;
