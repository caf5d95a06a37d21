//! JWT-SVIDs (SPIFFE JWT-SVID 1.0): the key that the control plane signs them with, and what they are checked by.
//!
//! The key is derived from the issuer's, so that every replica that signs certificates with one key signs tokens with one key as well, nothing more has
//! to be kept, and a rotation of the root rotates both. ES256 alone is signed and taken.

use std::fmt;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _, UnparsedPublicKey,
};
use aws_lc_rs::{digest, hkdf};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value, json};
use weft_core::hex::hex;
use weft_core::{SpiffeId, TrustDomain, wellknown};
use zeroize::Zeroizing;

/// How long a token is good for, in seconds.
pub const LIFETIME_SECS: i64 = 300;
/// Audiences of one token at most.
pub const MAX_AUDIENCES: usize = 16;
/// Bytes of an audience at most.
pub const MAX_AUDIENCE: usize = 255;
/// Bytes of a token that is looked at, at most.
const MAX_TOKEN: usize = 8 * 1024;
/// Keys of a set that are looked at, at most.
const MAX_KEYS: usize = 32;

/// Why a key cannot be made or used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// No scalar of the curve came out.
    #[error("no key could be derived from the issuer's")]
    Derive,
    /// It does not sign.
    #[error("the token could not be signed")]
    Sign,
}

/// Why audiences cannot be in a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AudienceError {
    /// There is none.
    #[error("a JWT-SVID needs an audience: who it is shown to")]
    None,
    /// There are too many.
    #[error("{0} audiences are too many: {MAX_AUDIENCES} at most")]
    Many(usize),
    /// One is empty or too long.
    #[error("an audience has {0} bytes: 1 to {MAX_AUDIENCE} are allowed")]
    Length(usize),
}

/// Why a token is not believed. Nothing of the token is in it, but its subject where a bundle is missing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// It is no JWS in compact form with a header and claims of JSON, or too long.
    #[error("it is not a JWT in compact form: {0}")]
    Malformed(&'static str),
    /// Another algorithm.
    #[error("it is not signed with ES256")]
    Algorithm,
    /// Its subject is no identity.
    #[error("its subject is not a SPIFFE ID of ours: {0}")]
    Subject(#[from] weft_core::identity::InvalidName),
    /// Its subject is of a domain whose keys are not known.
    #[error("no keys of the trust domain {0} are known")]
    Domain(TrustDomain),
    /// No key of its domain has its name.
    #[error("no key of its trust domain has the name that it gives")]
    Key,
    /// The signature is not that key's.
    #[error("its signature is not good")]
    Signature,
    /// It is for others.
    #[error("it is not for this audience")]
    Audience,
    /// It has expired, or has no end.
    #[error("it is not valid at {now}: it ends at {expires} (seconds since the Unix epoch)")]
    Expired {
        /// When it ends; 0 where it does not say.
        expires: i64,
        /// The clock.
        now: i64,
    },
    /// It is not good yet.
    #[error("it is not valid before {from}, and it is {now} (seconds since the Unix epoch)")]
    Early {
        /// Its `nbf` or `iat`.
        from: i64,
        /// The clock.
        now: i64,
    },
}

/// Checks the audiences of a token that is asked for.
///
/// # Errors
///
/// Where there are none, too many, or one of the wrong length.
pub fn check_audiences(audiences: &[String]) -> Result<(), AudienceError> {
    match audiences.len() {
        0 => return Err(AudienceError::None),
        n if n > MAX_AUDIENCES => return Err(AudienceError::Many(n)),
        _ => {}
    }
    match audiences.iter().find(|a| a.is_empty() || a.len() > MAX_AUDIENCE) {
        Some(bad) => Err(AudienceError::Length(bad.len())),
        None => Ok(()),
    }
}

/// A key that signs JWT-SVIDs. `Debug` shows its name alone.
pub struct SigningKey {
    pair: EcdsaKeyPair,
    id: String,
}

impl SigningKey {
    /// The key that belongs to an issuer's key (PKCS#8, DER) in a trust domain: HKDF-SHA256 (RFC 5869) of it, as a P-256 scalar.
    ///
    /// # Errors
    ///
    /// Where none comes out, which does not happen.
    pub fn derive(issuer: &[u8], domain: &TrustDomain) -> Result<Self, KeyError> {
        // One scalar in 2^32 is none.
        (0..4_u8).find_map(|attempt| Self::attempt(issuer, domain, attempt)).ok_or(KeyError::Derive)
    }

    fn attempt(issuer: &[u8], domain: &TrustDomain, attempt: u8) -> Option<Self> {
        let extracted = hkdf::Salt::new(hkdf::HKDF_SHA256, b"weft JWT-SVID signing key").extract(issuer);
        let info = [domain.as_str().as_bytes(), &[attempt]];
        let mut scalar = Zeroizing::new([0; 32]);
        extracted.expand(&info, hkdf::HKDF_SHA256).ok()?.fill(scalar.as_mut()).ok()?;
        // ECPrivateKey (RFC 5915) of P-256, without the public key.
        let mut der = Zeroizing::new(Vec::with_capacity(51));
        der.extend_from_slice(&[0x30, 0x31, 0x02, 0x01, 0x01, 0x04, 0x20]);
        der.extend_from_slice(scalar.as_ref());
        der.extend_from_slice(&[0xa0, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07]);
        let pair = EcdsaKeyPair::from_private_key_der(&ECDSA_P256_SHA256_FIXED_SIGNING, &der).ok()?;
        let name = digest::digest(&digest::SHA256, pair.public_key().as_ref());
        let id = hex(name.as_ref().get(..16)?);
        Some(Self { pair, id })
    }

    /// Its name in a set: the first half of the SHA-256 of its public key, hexadecimal.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Its public part as a JWK (RFC 7517, RFC 7518 section 6.2).
    pub fn jwk(&self) -> Value {
        // Uncompressed: 4, x, y.
        let point = self.pair.public_key().as_ref();
        let (x, y) = point.get(1..).unwrap_or_default().split_at(32);
        json!({
            "kty": "EC", "use": "jwt-svid", "alg": "ES256", "crv": "P-256", "kid": self.id,
            "x": URL_SAFE_NO_PAD.encode(x), "y": URL_SAFE_NO_PAD.encode(y),
        })
    }

    /// A token for `id`, good from `now` (seconds since the Unix epoch) for [`LIFETIME_SECS`], and when it ends.
    ///
    /// # Errors
    ///
    /// Where the key does not sign.
    pub fn sign(&self, id: &SpiffeId, audiences: &[String], now: i64) -> Result<(String, i64), KeyError> {
        let expires = now + LIFETIME_SECS;
        let header = json!({ "alg": "ES256", "kid": self.id, "typ": "JWT" });
        let claims = json!({ "sub": id.to_string(), "aud": audiences, "iat": now, "exp": expires });
        let mut token = URL_SAFE_NO_PAD.encode(header.to_string());
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(claims.to_string(), &mut token);
        let signature = self.pair.sign(&SystemRandom::new(), token.as_bytes()).map_err(|_| KeyError::Sign)?;
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(signature.as_ref(), &mut token);
        Ok((token, expires))
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SigningKey").field("id", &self.id).finish_non_exhaustive()
    }
}

/// Several keys' public parts as a JWK set.
pub fn set<'a>(keys: impl IntoIterator<Item = &'a SigningKey>) -> Vec<u8> {
    json!({ "keys": keys.into_iter().map(SigningKey::jwk).collect::<Vec<_>>() }).to_string().into_bytes()
}

/// Checks a token for one audience at `now` (seconds since the Unix epoch), and gives its subject and claims. `keys` has the JWK set of a trust domain.
///
/// # Errors
///
/// Why it is not believed.
pub fn validate<'a>(
    token: &str,
    audience: &str,
    now: i64,
    keys: impl Fn(&TrustDomain) -> Option<&'a [u8]>,
) -> Result<(SpiffeId, Map<String, Value>), TokenError> {
    if token.len() > MAX_TOKEN {
        return Err(TokenError::Malformed("it is too long"));
    }
    let (signed, signature) = token.rsplit_once('.').ok_or(TokenError::Malformed("it has no three parts"))?;
    let (header, claims) = signed.split_once('.').ok_or(TokenError::Malformed("it has no three parts"))?;
    let header = object(header)?;
    if header.get("alg").and_then(Value::as_str) != Some("ES256") || header.contains_key("crit") {
        return Err(TokenError::Algorithm);
    }
    if header.get("typ").is_some_and(|typ| !matches!(typ.as_str(), Some("JWT" | "JOSE"))) {
        return Err(TokenError::Malformed("its type is neither JWT nor JOSE"));
    }
    let claims = object(claims)?;
    let subject: SpiffeId = claims.get("sub").and_then(Value::as_str).unwrap_or_default().parse()?;
    let domain = subject.trust_domain();
    let set = keys(domain).ok_or_else(|| TokenError::Domain(domain.clone()))?;
    let point = point(set, header.get("kid").and_then(Value::as_str).unwrap_or_default()).ok_or(TokenError::Key)?;
    let signature = URL_SAFE_NO_PAD.decode(signature).map_err(|_| TokenError::Signature)?;
    UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, &point)
        .verify(signed.as_bytes(), &signature)
        .map_err(|_| TokenError::Signature)?;
    let is_ours = |aud: &Value| aud.as_str() == Some(audience);
    let for_us = match claims.get("aud") {
        Some(Value::Array(list)) => list.iter().any(is_ours),
        Some(one) => is_ours(one),
        None => false,
    };
    if !for_us {
        return Err(TokenError::Audience);
    }
    let seconds = |name: &str| claims.get(name).and_then(|v| v.as_i64().or_else(|| v.as_f64().map(|f| f as i64)));
    let expires = seconds("exp").unwrap_or(0);
    if expires.saturating_add(wellknown::CLOCK_SKEW_SECS) <= now {
        return Err(TokenError::Expired { expires, now });
    }
    if let Some(from) = ["nbf", "iat"].into_iter().filter_map(seconds).max()
        && from > now.saturating_add(wellknown::CLOCK_SKEW_SECS)
    {
        return Err(TokenError::Early { from, now });
    }
    Ok((subject, claims))
}

fn object(part: &str) -> Result<Map<String, Value>, TokenError> {
    let bytes = URL_SAFE_NO_PAD.decode(part).map_err(|_| TokenError::Malformed("a part is not base64url"))?;
    serde_json::from_slice(&bytes).map_err(|_| TokenError::Malformed("a part is not a JSON object"))
}

/// The P-256 key of a set that has a name, uncompressed.
fn point(set: &[u8], id: &str) -> Option<Vec<u8>> {
    let set: Value = serde_json::from_slice(set).ok()?;
    let key = set.get("keys")?.as_array()?.iter().take(MAX_KEYS).find(|key| !id.is_empty() && key["kid"] == id)?;
    if key["kty"] != "EC" || key["crv"] != "P-256" {
        return None;
    }
    let mut point = vec![4];
    for coordinate in ["x", "y"] {
        let bytes = URL_SAFE_NO_PAD.decode(key[coordinate].as_str()?).ok()?;
        (bytes.len() == 32).then(|| point.extend_from_slice(&bytes))?;
    }
    Some(point)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_800_000_000;

    fn domain() -> TrustDomain {
        "weft.local".parse().expect("a name")
    }

    fn key(issuer: &[u8]) -> SigningKey {
        SigningKey::derive(issuer, &domain()).expect("a key")
    }

    fn id() -> SpiffeId {
        "spiffe://weft.local/ns/shop/sa/cart".parse().expect("an identity")
    }

    fn read(token: &str, audience: &str, now: i64, set: &[u8]) -> Result<SpiffeId, TokenError> {
        validate(token, audience, now, |d| (*d == domain()).then_some(set)).map(|(id, _)| id)
    }

    #[test]
    fn a_key_follows_from_the_issuers_and_the_domain_and_nothing_else() {
        assert_eq!(key(b"one").jwk(), key(b"one").jwk());
        assert_ne!(key(b"one").id(), key(b"two").id());
        let other = SigningKey::derive(b"one", &"other.local".parse().expect("a name")).expect("a key");
        assert_ne!(key(b"one").id(), other.id());
        assert!(!format!("{:?}", key(b"one")).contains("pair"));
    }

    #[test]
    fn a_token_is_believed_by_its_own_key_for_its_own_audience_in_its_own_time() {
        let (ours, others) = (key(b"one"), key(b"two"));
        let set = set([&others, &ours]);
        let (token, expires) = ours.sign(&id(), &["db".into(), "queue".into()], NOW).expect("it signs");
        assert_eq!(expires, NOW + LIFETIME_SECS);
        assert_eq!(read(&token, "db", NOW, &set), Ok(id()));
        assert_eq!(read(&token, "queue", expires, &set), Ok(id()));
        assert_eq!(read(&token, "d", NOW, &set), Err(TokenError::Audience));
        let late = expires + wellknown::CLOCK_SKEW_SECS;
        assert_eq!(read(&token, "db", late, &set), Err(TokenError::Expired { expires, now: late }));
        let early = NOW - wellknown::CLOCK_SKEW_SECS - 1;
        assert_eq!(read(&token, "db", early, &set), Err(TokenError::Early { from: NOW, now: early }));
        assert_eq!(read(&token, "db", NOW, &super::set([&others])), Err(TokenError::Key));
        assert_eq!(validate(&token, "db", NOW, |_| None).err(), Some(TokenError::Domain(domain())));
    }

    #[test]
    fn what_is_no_token_of_ours_is_refused() {
        let ours = key(b"one");
        let set = set([&ours]);
        let (token, _) = ours.sign(&id(), &["db".into()], NOW).expect("it signs");
        let parts: Vec<&str> = token.split('.').collect();
        let [header, claims, signature] = parts[..] else { panic!("three parts") };
        let text = |json: Value| URL_SAFE_NO_PAD.encode(json.to_string());
        let with_header = |json: Value| format!("{}.{claims}.{signature}", text(json));
        let kid = ours.id();
        assert_eq!(read(&with_header(json!({"alg": "none", "kid": kid})), "db", NOW, &set), Err(TokenError::Algorithm));
        assert_eq!(read(&with_header(json!({"alg": "HS256", "kid": kid})), "db", NOW, &set), Err(TokenError::Algorithm));
        assert_eq!(
            read(&with_header(json!({"alg": "ES256", "kid": kid, "crit": []})), "db", NOW, &set),
            Err(TokenError::Algorithm)
        );
        assert_eq!(read(&with_header(json!({"alg": "ES256"})), "db", NOW, &set), Err(TokenError::Key));
        assert_eq!(read(&with_header(json!({"alg": "ES256", "kid": kid})), "db", NOW, &set), Err(TokenError::Signature));
        let forged = text(json!({"sub": "spiffe://weft.local/ns/shop/sa/bank", "aud": ["db"], "exp": NOW + 10}));
        assert_eq!(read(&format!("{header}.{forged}.{signature}"), "db", NOW, &set), Err(TokenError::Signature));
        for bad in ["", ".", "..", "a.b.c", &token[1..], &format!("{token}="), &format!("{token}.x"), &"a".repeat(9000)] {
            assert!(read(bad, "db", NOW, &set).is_err(), "{bad:?} was believed");
        }
        for bad in [&b""[..], b"{}", b"{\"keys\":[{}]}", b"\xff"] {
            assert_eq!(read(&token, "db", NOW, bad), Err(TokenError::Key));
        }
    }

    #[test]
    fn audiences_are_counted_and_measured() {
        assert_eq!(check_audiences(&[]), Err(AudienceError::None));
        assert_eq!(check_audiences(&vec!["a".to_owned(); 17]), Err(AudienceError::Many(17)));
        assert_eq!(check_audiences(&[String::new()]), Err(AudienceError::Length(0)));
        assert_eq!(check_audiences(&["a".repeat(256)]), Err(AudienceError::Length(256)));
        assert_eq!(check_audiences(&["a".repeat(255)]), Ok(()));
    }
}
