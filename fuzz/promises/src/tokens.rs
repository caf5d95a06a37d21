//! Tokens of end users, and the keys that they are signed with.

use std::sync::OnceLock;

use weft_core::jwt::{Forward, Issuer, Keys, Place};
use weft_tls::tokens::{Jwks, Unverified};

/// RFC 7515, appendix A.3: the seeds have the token that this key has signed.
const KEYS: &str = r#"{"keys":[{"kty":"EC","crv":"P-256","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}]}"#;

/// A token is read or refused. What is verified is of the issuer, counts still, and is for one of its audiences.
pub fn jwt(bytes: &[u8]) {
    static MADE: OnceLock<(Issuer, Jwks)> = OnceLock::new();
    let (issuer, keys) = MADE.get_or_init(|| {
        let issuer = Issuer {
            id: "shop/id".parse().expect("a name"),
            issuer: "joe".into(),
            audiences: vec!["shop".into()],
            keys: Keys::Inline(KEYS.into()),
            places: vec![Place::bearer()],
            forward: Forward::Keep,
            clock_skew: 20,
            algorithms: vec![],
        };
        (issuer, Jwks::read(KEYS.as_bytes()).expect("a set"))
    });
    let now = 1_300_000_000;
    let Ok(token) = Unverified::read(bytes) else { return };
    if let Ok(verified) = token.verify(issuer, keys, now) {
        assert!(verified.until > now && verified.token.issuer == issuer.issuer);
        assert!(verified.token.audiences.iter().any(|audience| &**audience == "shop"));
    }
}

/// A set of keys is read or refused; what is read has a key, and not too many.
pub fn jwks(bytes: &[u8]) {
    if let Ok(set) = Jwks::read(bytes) {
        assert!(!set.is_empty() && set.len() <= Jwks::MOST && bytes.len() <= Jwks::LARGEST);
    }
}
