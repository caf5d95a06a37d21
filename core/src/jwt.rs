//! Tokens of end users (JWT, RFC 7519): who issues them, where they stand in a request, and what is known of one that was looked at.
//!
//! Nothing here verifies: a [`Token`] is one whose signature, times and audience were checked, by whoever has the keys and a clock.

mod claims;
mod fault;
mod url;

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

pub use claims::{Claim, ClaimPath};
pub use fault::TokenFault;
pub use url::KeysUrl;

use crate::authorization::policy::{HeaderMatch, HeaderValue, InvalidClause};
use crate::service::ObjectRef;

/// An issuer whose tokens count, as a `JwtIssuer` says.
#[derive(Clone, PartialEq, Debug)]
pub struct Issuer {
    /// The `JwtIssuer`, for telling.
    pub id: ObjectRef,
    /// The `iss` of its tokens, compared byte by byte.
    pub issuer: Arc<str>,
    /// A token counts if its `aud` has one of these. At least one.
    pub audiences: Vec<Arc<str>>,
    /// What its tokens are signed with.
    pub keys: Keys,
    /// Where its tokens stand. At least one, and no name twice.
    pub places: Vec<Place>,
    /// What the application sees of its tokens.
    pub forward: Forward,
    /// How far clocks may differ, in seconds: 0 to 300.
    pub clock_skew: u32,
    /// Algorithms that are taken; empty: all that a key can be used with.
    pub algorithms: Vec<Algorithm>,
}

/// Where an issuer's keys come from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Keys {
    /// A JWK Set (RFC 7517), as JSON.
    Inline(Arc<str>),
    /// Where one is fetched: `http://` or `https://`.
    Remote(Arc<str>),
}

/// What the application sees of an issuer's tokens.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Forward {
    /// They go on as they came.
    #[default]
    Keep,
    /// The field that bears one is taken out.
    Strip,
}

/// A header field that bears a token.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Place {
    /// The field's name, in lower case.
    pub header: Arc<str>,
    /// What stands before the token; a field without it bears none. Of `authorization` it is the scheme, in any case, with spaces behind it.
    pub prefix: Arc<str>,
}

impl Place {
    /// `Authorization: Bearer TOKEN` (RFC 6750, section 2.1).
    pub fn bearer() -> Self {
        Self { header: "authorization".into(), prefix: "Bearer ".into() }
    }

    /// A field by its name, in any case. Refused are those that clauses about headers cannot name, and cookies, which a browser sends unasked.
    pub fn new(header: &str, prefix: &str) -> Result<Self, InvalidClause> {
        let header = HeaderMatch::new(header, HeaderValue::Present)?.name;
        let invalid = |text: &str, why| Err(InvalidClause::new("place of a token", text, why));
        if matches!(&*header, "cookie" | "set-cookie") {
            return invalid(
                &header,
                "a browser sends cookies unasked: let the application put the token into a field of its own",
            );
        }
        if prefix.len() > 64 || !prefix.bytes().all(|b| matches!(b, b' '..=b'~')) {
            return invalid(prefix, "a prefix is printable ASCII of 64 bytes at most");
        }
        if &*header == "authorization" && prefix.trim_end().bytes().any(|b| !b.is_ascii_alphanumeric() && b != b'-') {
            return invalid(prefix, "before a token in Authorization stands the name of a scheme, such as Bearer");
        }
        Ok(Self { header, prefix: prefix.into() })
    }
}

macro_rules! algorithms {
    ($($variant:ident $text:literal $doc:literal,)*) => {
        /// How a token is signed (RFC 7518, section 3.1; RFC 8037). There is neither `none` nor a shared secret.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        pub enum Algorithm { $(#[doc = $doc] $variant,)* }

        impl Algorithm {
            /// Every one.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// Its name in a token's header.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }
        }
    };
}

algorithms! {
    Rs256 "RS256" "RSASSA-PKCS1-v1_5 with SHA-256.",
    Rs384 "RS384" "RSASSA-PKCS1-v1_5 with SHA-384.",
    Rs512 "RS512" "RSASSA-PKCS1-v1_5 with SHA-512.",
    Ps256 "PS256" "RSASSA-PSS with SHA-256.",
    Ps384 "PS384" "RSASSA-PSS with SHA-384.",
    Ps512 "PS512" "RSASSA-PSS with SHA-512.",
    Es256 "ES256" "ECDSA on P-256 with SHA-256.",
    Es384 "ES384" "ECDSA on P-384 with SHA-384.",
    EdDsa "EdDSA" "Ed25519.",
}

/// A word that is no algorithm, or none that is taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no algorithm that is taken: use one of RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384, EdDSA")]
pub struct UnknownAlgorithm(String);

impl FromStr for Algorithm {
    type Err = UnknownAlgorithm;
    /// Upper and lower case count (RFC 7515, section 4.1.1).
    fn from_str(s: &str) -> Result<Self, UnknownAlgorithm> {
        let found = Self::ALL.iter().find(|a| a.as_str() == s).copied();
        found.ok_or_else(|| UnknownAlgorithm(s.chars().take(20).collect()))
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A token that was verified.
#[derive(Clone, PartialEq)]
pub struct Token {
    /// `iss`.
    pub issuer: Arc<str>,
    /// `sub`.
    pub subject: Option<Box<str>>,
    /// `aud`: one or several.
    pub audiences: Vec<Box<str>>,
    /// All claims, these among them: an object.
    pub claims: Claim,
}

impl fmt::Debug for Token {
    /// Who issued it: the rest is somebody's.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token").field("issuer", &self.issuer).finish_non_exhaustive()
    }
}

/// What a request bears of one issuer's tokens.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Bearer<'a> {
    /// None.
    Absent,
    /// One, of another issuer.
    Other,
    /// One that was verified.
    Valid(&'a Token),
    /// Something that could be one and does not count, or it is not known whether it does.
    Invalid(TokenFault),
}

#[cfg(test)]
mod tests;
