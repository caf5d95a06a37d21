//! One token: read, and verified against its issuer's keys.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use weft_core::jwt::{Algorithm, Claim, Issuer, Token, TokenFault};

use super::json;
use super::jwks::{Jwks, Key};

/// Keys that one signature is tried with.
const MOST_TRIED: usize = 8;

/// A token that was read. Nothing in it is true yet.
pub struct Unverified<'t> {
    algorithm: Result<Algorithm, TokenFault>,
    key: Option<Box<str>>,
    claims: Claim,
    signed: &'t [u8],
    signature: Vec<u8>,
}

/// A token that was verified.
pub struct Verified {
    /// What it says.
    pub token: Token,
    /// It counts before this time, in seconds since 1970; clocks may differ by what its issuer allows, and that is in it.
    pub until: i64,
}

impl<'t> Unverified<'t> {
    /// Reads the compact form (RFC 7515, section 7.1).
    pub fn read(token: &'t [u8]) -> Result<Self, TokenFault> {
        let malformed = TokenFault::Malformed;
        if token.len() > TokenFault::LONGEST {
            return Err(TokenFault::TooLong);
        }
        let last = token.iter().rposition(|b| *b == b'.').ok_or(malformed("it has no parts"))?;
        let (signed, signature) = (&token[..last], &token[last + 1..]);
        let first = signed.iter().position(|b| *b == b'.').ok_or(malformed("it has two parts"))?;
        let (header, payload) = (&signed[..first], &signed[first + 1..]);
        if payload.contains(&b'.') {
            return Err(malformed("it has more than three parts"));
        }
        let decode = |part| URL_SAFE_NO_PAD.decode(part).map_err(|_| malformed("a part is not canonical base64url"));
        let object = |part| match json::read(&decode(part)?) {
            Ok(object @ Claim::Object(_)) => Ok(object),
            Ok(_) => Err(malformed("a part is no JSON object")),
            Err(why) => Err(malformed(why)),
        };
        let header = object(header)?;
        if header.member("crit").is_some() || header.member("b64").is_some() {
            return Err(TokenFault::Critical);
        }
        let key = match header.member("kid") {
            None => None,
            Some(Claim::Text(id)) => Some(id.clone()),
            Some(_) => return Err(malformed("its `kid` is no text")),
        };
        let algorithm = match header.member("alg") {
            Some(Claim::Text(name)) => name.parse().map_err(|_| TokenFault::Algorithm),
            _ => return Err(malformed("it has no `alg`")),
        };
        Ok(Self { algorithm, key, claims: object(payload)?, signed, signature: decode(signature)? })
    }

    /// Whose token it says it is.
    pub fn issuer(&self) -> Option<&str> {
        self.claims.member("iss").and_then(Claim::as_text)
    }

    /// Verifies it. `issuer` is the one that it names, `now` is in seconds since 1970.
    pub fn verify(self, issuer: &Issuer, keys: &Jwks, now: i64) -> Result<Verified, TokenFault> {
        if self.issuer() != Some(&*issuer.issuer) {
            return Err(TokenFault::UnknownIssuer);
        }
        let algorithm = self.algorithm?;
        if !(issuer.algorithms.is_empty() || issuer.algorithms.contains(&algorithm)) {
            return Err(TokenFault::Algorithm);
        }
        self.signed_by(algorithm, keys)?;
        let skew = i64::from(issuer.clock_skew);
        let expires = self.time("exp", f64::floor)?.ok_or(TokenFault::NoExpiry)?;
        let until = expires.saturating_add(skew);
        if now >= until {
            return Err(TokenFault::Expired(expires));
        }
        if let Some(from) = self.time("nbf", f64::ceil)?
            && now.saturating_add(skew) < from
        {
            return Err(TokenFault::NotYet(from));
        }
        Ok(Verified { token: token(self.claims, issuer)?, until })
    }

    /// What it would say if it were signed, and valid in time: for explanations, never to let anybody in.
    pub fn assume(self, issuer: &Issuer) -> Result<Token, TokenFault> {
        token(self.claims, issuer)
    }

    /// With a `kid`, the keys of that name and those without one are tried; else all that the algorithm fits.
    fn signed_by(&self, algorithm: Algorithm, keys: &Jwks) -> Result<(), TokenFault> {
        let is_named = |key: &&Key| match (&self.key, &key.id) {
            (Some(wanted), Some(id)) => wanted == id,
            _ => true,
        };
        let mut named = keys.keys.iter().filter(is_named).peekable();
        if named.peek().is_none() {
            return Err(TokenFault::UnknownKey);
        }
        let mut fitting = named.filter(|key| key.fits(algorithm)).take(MOST_TRIED).peekable();
        if fitting.peek().is_none() {
            return Err(TokenFault::Algorithm);
        }
        let is_signed = fitting.any(|key| key.verifies(algorithm, self.signed, &self.signature));
        if is_signed { Ok(()) } else { Err(TokenFault::Signature) }
    }

    /// A `NumericDate` (RFC 7519, section 2), of which fractions are rounded so that the token counts for no longer.
    fn time(&self, name: &str, round: fn(f64) -> f64) -> Result<Option<i64>, TokenFault> {
        const EXACT: f64 = (1_i64 << 53) as f64;
        match self.claims.member(name) {
            None => Ok(None),
            Some(Claim::Int(seconds)) if *seconds >= 0 => Ok(Some(*seconds)),
            Some(Claim::Float(seconds)) if (0.0..=EXACT).contains(seconds) => Ok(Some(round(*seconds) as i64)),
            Some(_) => Err(TokenFault::Malformed("a time in it is none")),
        }
    }
}

/// Claims as a token of `issuer`, if they are for one of its audiences.
fn token(claims: Claim, issuer: &Issuer) -> Result<Token, TokenFault> {
    let audiences = audiences(&claims)?;
    if !issuer.audiences.iter().any(|wanted| audiences.iter().any(|a| **a == **wanted)) {
        return Err(TokenFault::Audience);
    }
    let subject = match claims.member("sub") {
        None => None,
        Some(Claim::Text(subject)) => Some(subject.clone()),
        Some(_) => return Err(TokenFault::Malformed("its `sub` is no text")),
    };
    Ok(Token { issuer: issuer.issuer.clone(), subject, audiences, claims })
}

/// Claims as a valid token of `issuer`; without `aud` they are for all of its audiences. For explanations, never to let anybody in.
pub fn assume(claims: Claim, issuer: &Issuer) -> Result<Token, TokenFault> {
    if claims.member("aud").is_some() {
        return token(claims, issuer);
    }
    let subject = claims.member("sub").and_then(Claim::as_text).map(Into::into);
    let audiences = issuer.audiences.iter().map(|a| (&**a).into()).collect();
    Ok(Token { issuer: issuer.issuer.clone(), subject, audiences, claims })
}

/// `aud`: a text, or a list of texts (RFC 7519, section 4.1.3).
fn audiences(claims: &Claim) -> Result<Vec<Box<str>>, TokenFault> {
    let malformed = TokenFault::Malformed("its `aud` is neither a text nor a list of texts");
    match claims.member("aud") {
        None => Ok(vec![]),
        Some(Claim::Text(one)) => Ok(vec![one.clone()]),
        Some(Claim::List(list)) => list.iter().map(|a| a.as_text().map(Into::into).ok_or(malformed)).collect(),
        Some(_) => Err(malformed),
    }
}
