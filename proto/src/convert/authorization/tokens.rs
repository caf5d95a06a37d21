//! Clauses about tokens, and the issuers whose tokens they go by.

use std::sync::Arc;

use prost::Message as _;
use prost::bytes::Bytes;
use weft_core::authorization::policy::Peer;
use weft_core::authorization::token::{ClaimMatch, TokenMatch};
use weft_core::jwt::{Algorithm, ClaimPath, Forward, Issuer, Keys, Place};

use super::super::WireError;
use crate::convert::traffic::each;
use crate::v1;

/// The most issuers of one pod.
pub const MAX_ISSUERS: usize = 16;
/// The longest text of an issuer, but for its keys.
const LONGEST: usize = 2_048;
/// The longest JWK Set.
const LARGEST_KEYS: usize = 64 << 10;

pub(super) fn to(peer: &Peer) -> Option<v1::AuthorizationTokens> {
    let needed = peer.jwt.is_some() || peer.not_jwt.is_some();
    needed.then(|| v1::AuthorizationTokens { is: peer.jwt.as_ref().map(Into::into), not: peer.not_jwt.as_ref().map(Into::into) })
}

pub(super) fn from(wire: Option<&v1::AuthorizationTokens>) -> Result<(Option<TokenMatch>, Option<TokenMatch>), WireError> {
    let Some(wire) = wire else { return Ok((None, None)) };
    if wire.is.is_none() && wire.not.is_none() {
        return Err(WireError::Missing("which token is meant"));
    }
    let read = |token: &Option<v1::AuthorizationToken>| token.as_ref().map(TryInto::try_into).transpose();
    Ok((read(&wire.is)?, read(&wire.not)?))
}

fn texts<'a>(list: impl IntoIterator<Item = &'a Arc<str>>) -> Vec<String> {
    list.into_iter().map(ToString::to_string).collect()
}

fn shared(list: &[String]) -> Vec<Arc<str>> {
    list.iter().map(|text| text.as_str().into()).collect()
}

impl From<&TokenMatch> for v1::AuthorizationToken {
    fn from(t: &TokenMatch) -> Self {
        Self {
            issuer: t.issuer.to_string(),
            subject: t.subject.as_ref().map(ToString::to_string),
            audiences: texts(&t.audiences),
            claims: t.claims.iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<&v1::AuthorizationToken> for TokenMatch {
    type Error = WireError;
    /// What else is wrong with it, the check of its policy finds.
    fn try_from(t: &v1::AuthorizationToken) -> Result<Self, WireError> {
        Ok(Self {
            issuer: t.issuer.as_str().into(),
            subject: t.subject.as_deref().map(Into::into),
            audiences: shared(&t.audiences),
            claims: each(&t.claims)?,
        })
    }
}

impl From<&ClaimMatch> for v1::AuthorizationClaim {
    fn from(c: &ClaimMatch) -> Self {
        Self { path: c.path.names().map(ToOwned::to_owned).collect(), values: texts(&c.values) }
    }
}

impl TryFrom<&v1::AuthorizationClaim> for ClaimMatch {
    type Error = WireError;
    fn try_from(c: &v1::AuthorizationClaim) -> Result<Self, WireError> {
        Ok(Self { path: ClaimPath::new(&c.path)?, values: shared(&c.values) })
    }
}

/// An issuer, as inbound policies carry it.
pub fn issuer_bytes(issuer: &Issuer) -> Bytes {
    v1::JwtIssuer::from(issuer).encode_to_vec().into()
}

/// The issuers of a pod; no two of one name.
pub(in crate::convert) fn issuers_from(list: &[Bytes]) -> Result<Vec<Arc<Issuer>>, WireError> {
    if list.len() > MAX_ISSUERS {
        return Err(WireError::Range("number of JWT issuers"));
    }
    let mut all: Vec<Arc<Issuer>> = Vec::new();
    for bytes in list {
        let wire = v1::JwtIssuer::decode(&bytes[..]).map_err(|_| WireError::Missing("a JWT issuer that can be decoded"))?;
        let issuer = Issuer::try_from(&wire)?;
        if all.iter().any(|other| other.issuer == issuer.issuer) {
            return Err(WireError::Range("JWT issuer, which stands twice,"));
        }
        all.push(Arc::new(issuer));
    }
    Ok(all)
}

impl From<&Issuer> for v1::JwtIssuer {
    fn from(i: &Issuer) -> Self {
        use v1::jwt_issuer::Keys as Wire;
        Self {
            id: Some((&i.id).into()),
            issuer: i.issuer.to_string(),
            audiences: texts(&i.audiences),
            keys: Some(match &i.keys {
                Keys::Inline(set) => Wire::Jwks(set.to_string()),
                Keys::Remote(url) => Wire::JwksUri(url.to_string()),
            }),
            places: i
                .places
                .iter()
                .map(|p| v1::TokenPlace { header: p.header.to_string(), prefix: p.prefix.to_string() })
                .collect(),
            strip: i.forward == Forward::Strip,
            clock_skew_seconds: i.clock_skew,
            algorithms: i.algorithms.iter().map(ToString::to_string).collect(),
        }
    }
}

impl TryFrom<&v1::JwtIssuer> for Issuer {
    type Error = WireError;
    fn try_from(i: &v1::JwtIssuer) -> Result<Self, WireError> {
        use v1::jwt_issuer::Keys as Wire;
        if i.issuer.is_empty() || i.issuer.len() > LONGEST || i.audiences.is_empty() || i.places.is_empty() {
            return Err(WireError::Missing("a JWT issuer's name, audience or place of tokens"));
        }
        let keys = match i.keys.as_ref().ok_or(WireError::Missing("keys of a JWT issuer"))? {
            Wire::Jwks(set) if set.len() <= LARGEST_KEYS => Keys::Inline(set.as_str().into()),
            Wire::JwksUri(url) if url.len() <= LONGEST => Keys::Remote(url.as_str().into()),
            _ => return Err(WireError::Range("size of a JWT issuer's keys")),
        };
        if i.clock_skew_seconds > 300 {
            return Err(WireError::Range("clock skew of a JWT issuer"));
        }
        let algorithm = |text: &String| text.parse().map_err(|_| WireError::Range("algorithm of a JWT issuer"));
        Ok(Self {
            id: i.id.as_ref().ok_or(WireError::Missing("id of a JWT issuer"))?.try_into()?,
            issuer: i.issuer.as_str().into(),
            audiences: shared(&i.audiences),
            keys,
            places: i.places.iter().map(|p| Ok(Place::new(&p.header, &p.prefix)?)).collect::<Result<_, WireError>>()?,
            forward: if i.strip { Forward::Strip } else { Forward::Keep },
            clock_skew: i.clock_skew_seconds,
            algorithms: i.algorithms.iter().map(algorithm).collect::<Result<Vec<Algorithm>, _>>()?,
        })
    }
}
