//! Sets of public keys (RFC 7517, RFC 7518 section 6, RFC 8037 section 2).

use aws_lc_rs::signature::{self, EcdsaVerificationAlgorithm, RsaParameters, RsaPublicKeyComponents, UnparsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use weft_core::jwt::{Algorithm, Claim};

use super::json;

/// A set of keys. Of a set those are kept that signatures can be verified with.
#[derive(Clone, Default, Debug)]
pub struct Jwks {
    pub(super) keys: Vec<Key>,
}

/// Why a set of keys cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JwksError {
    /// Too many bytes.
    #[error("it has {0} bytes; at most {max} are taken", max = Jwks::LARGEST)]
    TooLarge(usize),
    /// Not a set.
    #[error("it is no JWK Set: {0}")]
    NotASet(&'static str),
    /// Too many keys.
    #[error("it has {0} keys; at most {max} are taken", max = Jwks::MOST)]
    TooMany(usize),
    /// It has something that must not be known.
    #[error(
        "keys[{0}] has a private or a shared key in it: give the public part alone, and replace the key, which others may have seen"
    )]
    Private(usize),
    /// None can be used.
    #[error("none of its {count} keys can be used to verify signatures{}", first.map(|why| format!(": keys[0] {why}")).unwrap_or_default())]
    NoneUsable {
        /// How many there are.
        count: usize,
        /// What is wrong with the first.
        first: Option<&'static str>,
    },
}

/// A public key.
#[derive(Clone, Debug)]
pub(super) struct Key {
    pub(super) id: Option<Box<str>>,
    /// The one algorithm that it is for, where it says so.
    algorithm: Option<Algorithm>,
    material: Material,
}

#[derive(Clone, Debug)]
enum Material {
    /// Modulus and exponent, without leading zeros.
    Rsa {
        n: Box<[u8]>,
        e: Box<[u8]>,
    },
    /// An uncompressed point.
    P256(Box<[u8]>),
    P384(Box<[u8]>),
    Ed25519(Box<[u8]>),
}

impl Jwks {
    /// The largest set, in bytes.
    pub const LARGEST: usize = 64 << 10;
    /// The most keys of a set.
    pub const MOST: usize = 100;

    /// Reads a set. Keys that are for something else are left out; one that must be secret makes the whole set unusable.
    pub fn read(text: &[u8]) -> Result<Self, JwksError> {
        if text.len() > Self::LARGEST {
            return Err(JwksError::TooLarge(text.len()));
        }
        let set = json::read(text).map_err(JwksError::NotASet)?;
        let Some(Claim::List(list)) = set.member("keys") else { return Err(JwksError::NotASet("it has no list `keys`")) };
        if list.len() > Self::MOST {
            return Err(JwksError::TooMany(list.len()));
        }
        let secret = ["d", "p", "q", "dp", "dq", "qi", "oth", "k"];
        if let Some(at) = list.iter().position(|key| secret.iter().any(|name| key.member(name).is_some())) {
            return Err(JwksError::Private(at));
        }
        let read: Vec<Result<Key, &'static str>> = list.iter().map(Key::read).collect();
        let first = read.first().and_then(|key| key.as_ref().err().copied());
        let keys: Vec<Key> = read.into_iter().flatten().collect();
        if keys.is_empty() { Err(JwksError::NoneUsable { count: list.len(), first }) } else { Ok(Self { keys }) }
    }

    /// How many keys can be used.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether none can be used.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }
}

impl Key {
    fn read(key: &Claim) -> Result<Self, &'static str> {
        let text = |name| key.member(name).and_then(Claim::as_text);
        if text("use").is_some_and(|u| u != "sig") {
            return Err("is for another use than signatures");
        }
        if key.member("key_ops").is_some_and(|ops| !ops.has("verify")) {
            return Err("is not for verifying");
        }
        let algorithm = match key.member("alg") {
            None => None,
            Some(Claim::Text(alg)) => Some(alg.parse().map_err(|_| "is for an algorithm that is not taken")?),
            Some(_) => return Err("has an `alg` that is no text"),
        };
        let id = match key.member("kid") {
            None => None,
            Some(Claim::Text(id)) => Some(id.clone()),
            Some(_) => return Err("has a `kid` that is no text"),
        };
        let bytes = |name| {
            text(name).and_then(|t| URL_SAFE_NO_PAD.decode(t).ok()).ok_or("lacks a part, or has one that is not base64url")
        };
        let point = |size: usize| {
            let (x, y) = (bytes("x")?, bytes("y")?);
            let is_whole = x.len() == size && y.len() == size;
            if is_whole {
                Ok([&[4][..], &x, &y].concat().into())
            } else {
                Err("has a coordinate of another length than the curve's")
            }
        };
        let material = match (text("kty"), text("crv")) {
            (Some("RSA"), _) => Material::rsa(&bytes("n")?, &bytes("e")?)?,
            (Some("EC"), Some("P-256")) => Material::P256(point(32)?),
            (Some("EC"), Some("P-384")) => Material::P384(point(48)?),
            (Some("OKP"), Some("Ed25519")) => {
                Material::Ed25519(Some(bytes("x")?).filter(|x| x.len() == 32).ok_or("is not 32 bytes long")?.into())
            }
            _ => return Err("is of a kind that is not taken"),
        };
        material.check()?;
        let key = Self { id, algorithm, material };
        if algorithm.is_some_and(|alg| !key.fits(alg)) { Err("is for an algorithm that its kind does not have") } else { Ok(key) }
    }

    /// Whether it may be used with an algorithm: it is the key that says so, never the token.
    pub(super) fn fits(&self, algorithm: Algorithm) -> bool {
        use Algorithm::{EdDsa, Es256, Es384, Ps256, Ps384, Ps512, Rs256, Rs384, Rs512};
        let is_of_kind = match self.material {
            Material::Rsa { .. } => matches!(algorithm, Rs256 | Rs384 | Rs512 | Ps256 | Ps384 | Ps512),
            Material::P256(_) => algorithm == Es256,
            Material::P384(_) => algorithm == Es384,
            Material::Ed25519(_) => algorithm == EdDsa,
        };
        is_of_kind && self.algorithm.is_none_or(|own| own == algorithm)
    }

    /// Whether a signature is this key's. Only for an algorithm that [fits](Self::fits).
    pub(super) fn verifies(&self, algorithm: Algorithm, message: &[u8], signature: &[u8]) -> bool {
        let ec = |scheme: &'static EcdsaVerificationAlgorithm, point: &[u8]| {
            UnparsedPublicKey::new(scheme, point).verify(message, signature).is_ok()
        };
        match (&self.material, algorithm) {
            (Material::Rsa { n, e }, _) => {
                let Some(scheme) = rsa_scheme(algorithm) else { return false };
                RsaPublicKeyComponents { n: &n[..], e: &e[..] }.verify(scheme, message, signature).is_ok()
            }
            (Material::P256(point), Algorithm::Es256) => ec(&signature::ECDSA_P256_SHA256_FIXED, point),
            (Material::P384(point), Algorithm::Es384) => ec(&signature::ECDSA_P384_SHA384_FIXED, point),
            (Material::Ed25519(key), Algorithm::EdDsa) => {
                UnparsedPublicKey::new(&signature::ED25519, &key[..]).verify(message, signature).is_ok()
            }
            _ => false,
        }
    }
}

fn rsa_scheme(algorithm: Algorithm) -> Option<&'static RsaParameters> {
    Some(match algorithm {
        Algorithm::Rs256 => &signature::RSA_PKCS1_2048_8192_SHA256,
        Algorithm::Rs384 => &signature::RSA_PKCS1_2048_8192_SHA384,
        Algorithm::Rs512 => &signature::RSA_PKCS1_2048_8192_SHA512,
        Algorithm::Ps256 => &signature::RSA_PSS_2048_8192_SHA256,
        Algorithm::Ps384 => &signature::RSA_PSS_2048_8192_SHA384,
        Algorithm::Ps512 => &signature::RSA_PSS_2048_8192_SHA512,
        Algorithm::Es256 | Algorithm::Es384 | Algorithm::EdDsa => return None,
    })
}

impl Material {
    /// 2048 to 8192 bits; an odd exponent from 3 to 2^32.
    fn rsa(n: &[u8], e: &[u8]) -> Result<Self, &'static str> {
        let bare = |bytes: &[u8]| Box::<[u8]>::from(&bytes[bytes.iter().position(|b| *b != 0).unwrap_or(bytes.len())..]);
        let (n, e) = (bare(n), bare(e));
        let bits = n.first().map_or(0, |first| n.len() * 8 - first.leading_zeros() as usize);
        if !(2048..=8192).contains(&bits) {
            return Err("is an RSA key of less than 2048 or more than 8192 bits");
        }
        let exponent = e.iter().fold(0_u64, |sum, byte| sum << 8 | u64::from(*byte));
        if e.len() > 4 || exponent < 3 || exponent % 2 == 0 {
            return Err("has an exponent that is not safe");
        }
        Ok(Self::Rsa { n, e })
    }

    /// A point that is not on its curve, and the like.
    fn check(&self) -> Result<(), &'static str> {
        let parsed = match self {
            Self::Rsa { .. } => return Ok(()),
            Self::P256(point) => UnparsedPublicKey::new(&signature::ECDSA_P256_SHA256_FIXED, &point[..]).parse().is_ok(),
            Self::P384(point) => UnparsedPublicKey::new(&signature::ECDSA_P384_SHA384_FIXED, &point[..]).parse().is_ok(),
            Self::Ed25519(key) => UnparsedPublicKey::new(&signature::ED25519, &key[..]).parse().is_ok(),
        };
        if parsed { Ok(()) } else { Err("is no point of its curve") }
    }
}
