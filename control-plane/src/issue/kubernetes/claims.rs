//! What a token says of itself, read without any trust in it: a token that names itself useless costs the API server no review.
//! Nothing is ever granted by what is read here.

use serde::Deserialize;
use weft_core::wellknown::CLOCK_SKEW_SECS;

use super::Refusal;

/// An issuer is a URL; this is longer than any.
const MAX_ISSUER: usize = 1024;

/// The payload of a JSON Web Token (RFC 7519, section 4.1), with what Kubernetes puts into one.
#[derive(Deserialize)]
struct Claims {
    iss: String,
    sub: String,
    aud: Audiences,
    /// Seconds since the Unix epoch.
    exp: i64,
    #[serde(rename = "kubernetes.io")]
    kubernetes: Option<Bound>,
}

/// One audience, or a list of them.
#[derive(Deserialize)]
#[serde(untagged)]
enum Audiences {
    One(String),
    Many(Vec<String>),
}

#[derive(Deserialize)]
struct Bound {
    namespace: String,
    serviceaccount: Object,
    pod: Option<Object>,
}

#[derive(Deserialize)]
struct Object {
    name: String,
    uid: String,
}

/// Refuses a token that is none of ours by its own words at `now`, in seconds since the Unix epoch.
pub(super) fn check(token: &str, audience: &str, now: i64) -> Result<(), Refusal> {
    let mut parts = token.split('.');
    let (Some(header), Some(payload), Some(signature), None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
        return Err(Refusal::NoToken);
    };
    if header.is_empty() || signature.is_empty() {
        return Err(Refusal::NoToken);
    }
    let bytes = from_base64url(payload).ok_or(Refusal::NoToken)?;
    let claims: Claims = serde_json::from_slice(&bytes).map_err(|_| Refusal::NoToken)?;
    if claims.iss.is_empty() || claims.iss.len() > MAX_ISSUER {
        return Err(Refusal::NoToken);
    }
    let told = match claims.aud {
        Audiences::One(one) => vec![one],
        Audiences::Many(many) => many,
    };
    if !told.iter().any(|a| a == audience) {
        // As little of a stranger's text as a message should repeat.
        let told = told.into_iter().take(4).map(|a| a.chars().take(80).collect()).collect();
        return Err(Refusal::Audience { told, wanted: audience.to_owned() });
    }
    if claims.exp.saturating_add(CLOCK_SKEW_SECS) <= now {
        return Err(Refusal::Expired { seconds: now.saturating_sub(claims.exp) });
    }
    let bound = claims.kubernetes.ok_or_else(|| Refusal::NotServiceAccount(claims.sub.chars().take(80).collect()))?;
    if claims.sub != format!("system:serviceaccount:{}:{}", bound.namespace, bound.serviceaccount.name) {
        return Err(Refusal::NotServiceAccount(claims.sub.chars().take(80).collect()));
    }
    match bound.pod {
        Some(pod) if !pod.name.is_empty() && !pod.uid.is_empty() => Ok(()),
        _ => Err(Refusal::NotBound),
    }
}

/// Base64 with the alphabet of RFC 4648, section 5, without padding, as RFC 7515 has it.
fn from_base64url(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3 + 2);
    for chunk in text.as_bytes().chunks(4) {
        let mut bits = 0_u32;
        for digit in chunk {
            let value = match digit {
                b'A'..=b'Z' => digit - b'A',
                b'a'..=b'z' => digit - b'a' + 26,
                b'0'..=b'9' => digit - b'0' + 52,
                b'-' => 62,
                b'_' => 63,
                _ => return None,
            };
            bits = bits << 6 | u32::from(value);
        }
        // A single digit is less than a byte.
        let whole = match chunk.len() {
            1 => return None,
            digits => digits - 1,
        };
        bits <<= 6 * (4 - chunk.len());
        bytes.extend_from_slice(&bits.to_be_bytes()[1..=whole]);
    }
    Some(bytes)
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::{Value, json};

    use super::*;

    pub(in super::super) const NOW: i64 = 1_900_000_000;

    pub(in super::super) fn payload() -> Value {
        json!({
            "iss": "https://kubernetes.default.svc.cluster.local",
            "sub": "system:serviceaccount:shop:web.front",
            "aud": ["weft"],
            "exp": NOW + 3600,
            "iat": NOW,
            "kubernetes.io": {
                "namespace": "shop",
                "serviceaccount": { "name": "web.front", "uid": "s-1" },
                "pod": { "name": "web-0", "uid": "u-1" },
                "node": { "name": "n1" },
            },
        })
    }

    /// A token with this payload, and a signature that is none.
    pub(in super::super) fn token(payload: &Value) -> String {
        let text = payload.to_string();
        let mut encoded = String::new();
        for chunk in text.as_bytes().chunks(3) {
            let bits = chunk.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
            for digit in 0..=chunk.len() {
                let value = (bits >> (18 - 6 * digit)) as usize & 63;
                encoded.push(char::from(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"[value]));
            }
        }
        format!("eyJhbGciOiJub25lIn0.{encoded}.c2lnbmF0dXJl")
    }

    #[test]
    fn what_a_token_says_of_itself_by_table() {
        let with = |pointer: &str, value: Value| {
            let mut payload = payload();
            *payload.pointer_mut(pointer).expect("it is there") = value;
            check(&token(&payload), "weft", NOW)
        };
        assert_eq!(check(&token(&payload()), "weft", NOW), Ok(()));
        assert_eq!(with("/aud", json!("weft")), Ok(()));
        assert_eq!(with("/aud", json!(["other", "weft"])), Ok(()));
        assert_eq!(with("/exp", json!(NOW)), Ok(()), "clocks differ a little");
        assert!(matches!(with("/aud", json!(["vault"])), Err(Refusal::Audience { .. })));
        assert!(matches!(with("/aud", json!([])), Err(Refusal::Audience { .. })));
        assert_eq!(with("/exp", json!(NOW - 60)), Err(Refusal::Expired { seconds: 60 }));
        assert_eq!(with("/exp", json!(i64::MIN)).err(), Some(Refusal::Expired { seconds: i64::MAX }));
        assert_eq!(with("/exp", json!(i64::MAX)), Ok(()));
        assert!(matches!(with("/sub", json!("alice")), Err(Refusal::NotServiceAccount(_))));
        assert!(matches!(with("/sub", json!("system:serviceaccount:shop:admin")), Err(Refusal::NotServiceAccount(_))));
        assert!(matches!(with("/kubernetes.io", Value::Null), Err(Refusal::NotServiceAccount(_))));
        assert_eq!(with("/kubernetes.io/pod", Value::Null), Err(Refusal::NotBound));
        assert_eq!(with("/kubernetes.io/pod/uid", json!("")), Err(Refusal::NotBound));
        for (pointer, value) in
            [("/iss", json!("")), ("/iss", json!("x".repeat(2000))), ("/exp", json!("soon")), ("/sub", json!(1))]
        {
            assert_eq!(with(pointer, value), Err(Refusal::NoToken), "{pointer}");
        }
    }

    #[test]
    fn what_is_no_token_is_refused() {
        let good = token(&payload());
        let middle = good.split('.').nth(1).expect("three parts");
        for bad in [
            "",
            "a",
            "a.b",
            "a.b.c",
            "a.b.c.d",
            "..",
            &format!(".{middle}.c"),
            &format!("a.{middle}."),
            &format!("a.{middle}.c.d"),
        ] {
            assert_eq!(check(bad, "weft", NOW), Err(Refusal::NoToken), "{bad}");
        }
        assert_eq!(check(&format!("a.{middle}=.c"), "weft", NOW), Err(Refusal::NoToken), "there is no padding");
    }

    #[test]
    fn base64_reads_back() {
        let table: [(&str, &[u8]); 6] =
            [("", b""), ("Zg", b"f"), ("Zm8", b"fo"), ("Zm9v", b"foo"), ("Zm9vYg", b"foob"), ("-_-_", b"\xfb\xff\xbf")];
        for (text, bytes) in table {
            assert_eq!(from_base64url(text).as_deref(), Some(bytes));
        }
        for bad in ["Z", "Zg==", "Zm9vY", "Z+", "Z/", "Zé"] {
            assert_eq!(from_base64url(bad), None, "{bad}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "\\PC{0,40}", json in "\\PC{0,40}") {
            let _ = check(&text, "weft", NOW);
            let _ = check(&token(&Value::String(json)), "weft", NOW);
        }
    }
}
