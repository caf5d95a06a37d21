//! Join tokens: single use, expiring, bound to one pod and identity.
//!
//! `weft1.ID.SECRET.ANCHOR`: a public id, 256 secret bits and the SHA-256 of the trust anchor, all hexadecimal. Only a
//! hash of the secret is kept. The first use is recorded durably before the answer, with the public key that used it: a
//! sidecar whose answer was lost may ask again with the same key until the token expires; any other key is refused.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use aws_lc_rs::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq;
use weft_core::hex::hex;
use weft_core::service::ObjectRef;
use zeroize::Zeroizing;

use super::{private_dir, write_private};

/// Why a token is refused. To the caller every refusal looks the same but for the remedy; the log says which.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    #[error("the join token is malformed: pass it whole, as `weft token create` printed it")]
    Malformed,
    #[error("the join token is not known here: it was made by another control plane, or it is wrong")]
    Unknown,
    #[error("the join token expired {ago} s ago (by this control plane's clock, {now}): make a new one with `weft token create`")]
    Expired { ago: i64, now: i64 },
    #[error(
        "the join token was used already with another key: make a new one with `weft token create`; if nobody of yours used it, it was stolen"
    )]
    Used,
    #[error("the use of the join token cannot be recorded ({0}): mend the state directory; the token is not used up")]
    Record(std::io::Error),
}

/// SHA-256 of a token's secret, hexadecimal. It has no `==`, so that nothing compares it but [`Self::is_of`].
#[derive(Serialize, Deserialize, Clone)]
struct SecretHash(String);

impl SecretHash {
    fn of(secret: &str) -> Self {
        Self(hex_digest(secret.as_bytes()))
    }

    /// Whether it is this secret's, in a time that says nothing of either.
    fn is_of(&self, secret: &str) -> bool {
        self.0.as_bytes().ct_eq(Self::of(secret).0.as_bytes()).into()
    }
}

#[derive(Serialize, Deserialize, Clone)]
struct Record {
    secret_hash: SecretHash,
    namespace: String,
    pod: String,
    service_account: String,
    expires_at: i64,
    /// SHA-256 of the public key that used it.
    used_by: Option<String>,
}

/// What a good token attests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attested {
    pub pod: ObjectRef,
    pub service_account: String,
}

/// All tokens that have not expired, each in a file of its own.
pub struct Tokens {
    dir: PathBuf,
    records: Mutex<HashMap<String, Record>>,
}

/// A used or unused token is kept this long after its expiry, so that its refusal can say why.
const KEEP_SECS: i64 = 3600;

impl Tokens {
    pub fn open(dir: &Path) -> std::io::Result<Self> {
        private_dir(dir)?;
        let mut records = HashMap::new();
        for entry in std::fs::read_dir(dir)?.flatten() {
            let path = entry.path();
            let name = entry.file_name().to_string_lossy().into_owned();
            let Some(id) = name.strip_suffix(".json").filter(|_| !name.starts_with('.')) else { continue };
            match serde_json::from_slice::<Record>(&std::fs::read(&path)?) {
                Ok(record) => {
                    records.insert(id.to_owned(), record);
                }
                Err(e) => {
                    tracing::warn!(file = %path.display(), error = %e, "a token record cannot be read; the token is refused");
                }
            }
        }
        Ok(Self { dir: dir.to_owned(), records: Mutex::new(records) })
    }

    /// Makes a token. `now` and the result's expiry are Unix seconds.
    pub fn create(
        &self,
        pod: &ObjectRef,
        service_account: &str,
        anchor: &str,
        now: i64,
        ttl: i64,
    ) -> std::io::Result<(Zeroizing<String>, i64)> {
        let (id, secret) = (random_hex::<8>(), Zeroizing::new(random_hex::<32>()));
        let expires_at = now + ttl;
        let record = Record {
            secret_hash: SecretHash::of(secret.as_str()),
            namespace: pod.namespace.to_string(),
            pod: pod.name.to_string(),
            service_account: service_account.to_owned(),
            expires_at,
            used_by: None,
        };
        let mut records = self.records.lock().unwrap_or_else(PoisonError::into_inner);
        self.write(&id, &record)?;
        let old: Vec<String> = records.iter().filter(|(_, r)| r.expires_at + KEEP_SECS < now).map(|(id, _)| id.clone()).collect();
        for id in old {
            records.remove(&id);
            let _ = std::fs::remove_file(self.path(&id));
        }
        let token = Zeroizing::new(format!("weft1.{id}.{}.{anchor}", secret.as_str()));
        records.insert(id, record);
        Ok((token, expires_at))
    }

    /// Uses a token with a public key. On success the use is on disk.
    pub fn redeem(&self, token: &str, public_key: &[u8], now: i64) -> Result<Attested, TokenError> {
        let mut parts = token.trim().split('.');
        let (Some("weft1"), Some(id), Some(secret), Some(_anchor), None) =
            (parts.next(), parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(TokenError::Malformed);
        };
        let mut records = self.records.lock().unwrap_or_else(PoisonError::into_inner);
        let record = records.get(id).ok_or(TokenError::Unknown)?;
        if !record.secret_hash.is_of(secret) {
            return Err(TokenError::Unknown);
        }
        if now > record.expires_at {
            return Err(TokenError::Expired { ago: now - record.expires_at, now });
        }
        let key = hex_digest(public_key);
        match &record.used_by {
            Some(used_by) if *used_by != key => return Err(TokenError::Used),
            Some(_) => {}
            None => {
                let used = Record { used_by: Some(key), ..record.clone() };
                self.write(id, &used).map_err(TokenError::Record)?;
                records.insert(id.to_owned(), used);
            }
        }
        let record = &records[id];
        let pod = format!("{}/{}", record.namespace, record.pod).parse().map_err(|_| TokenError::Unknown)?;
        Ok(Attested { pod, service_account: record.service_account.clone() })
    }

    fn path(&self, id: &str) -> PathBuf {
        self.dir.join(format!("{id}.json"))
    }

    fn write(&self, id: &str, record: &Record) -> std::io::Result<()> {
        let content = serde_json::to_vec(record).map_err(std::io::Error::other)?;
        write_private(&self.path(id), &content)
    }
}

fn random_hex<const N: usize>() -> String {
    let mut bytes = [0_u8; N];
    aws_lc_rs::rand::fill(&mut bytes).expect("the system's random number generator works");
    hex(&bytes)
}

fn hex_digest(bytes: &[u8]) -> String {
    hex(digest(&SHA256, bytes).as_ref())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn world() -> (tempfile::TempDir, Tokens, Zeroizing<String>) {
        let dir = tempfile::tempdir().expect("temporary directory");
        let tokens = Tokens::open(dir.path()).expect("opens");
        let (token, _) = tokens.create(&"shop/web-0".parse().expect("valid"), "web", "abcd", 1000, 60).expect("written");
        (dir, tokens, token)
    }

    #[test]
    fn one_use_by_one_key_across_restarts() {
        let (dir, tokens, token) = world();
        let attested = tokens.redeem(&token, b"key one", 1010).expect("good");
        assert_eq!((attested.pod.to_string().as_str(), attested.service_account.as_str()), ("shop/web-0", "web"));
        assert!(matches!(tokens.redeem(&token, b"key two", 1011), Err(TokenError::Used)));
        let again = Tokens::open(dir.path()).expect("opens");
        assert!(matches!(again.redeem(&token, b"key two", 1012), Err(TokenError::Used)));
        assert!(again.redeem(&token, b"key one", 1012).is_ok());
        assert!(matches!(again.redeem(&token, b"key one", 1061), Err(TokenError::Expired { ago: 1, .. })));
    }

    #[test]
    fn hostile_tokens_by_table() {
        let (_dir, tokens, token) = world();
        let id = token.split('.').nth(1).expect("four parts");
        for bad in [
            "",
            "weft1",
            "weft1.a.b",
            "weft2.a.b.c",
            "weft1.../../etc/passwd.b.c",
            &format!("weft1.{id}.00.abcd"),
            &format!("{}.x", token.as_str()),
        ] {
            assert!(tokens.redeem(bad, b"key", 1001).is_err(), "{bad} was accepted");
        }
        assert!(tokens.redeem(&token, b"key", 1001).is_ok());
    }

    /// Does not compile once the hash can be compared by `==`, which ends at the first byte that differs: the name below would be ambiguous.
    #[test]
    fn secrets_are_compared_in_constant_time_alone() {
        trait Compared<How> {
            fn is() {}
        }
        struct ByEq;
        impl<T> Compared<()> for T {}
        impl<T: PartialEq> Compared<ByEq> for T {}
        <SecretHash as Compared<_>>::is();

        let secret = "0123456789abcdef".repeat(4);
        let hash = SecretHash::of(&secret);
        assert!(hash.is_of(&secret) && !hash.is_of(&secret[1..]) && !hash.is_of("") && !hash.is_of(&hash.0));
        for i in 0..secret.len() {
            let mut other = secret.clone().into_bytes();
            other[i] ^= 1;
            assert!(!hash.is_of(std::str::from_utf8(&other).expect("ASCII")), "byte {i}");
        }
        // Each byte of the hash counts.
        for i in 0..hash.0.len() {
            let mut other = hash.0.clone().into_bytes();
            other[i] ^= 1;
            assert!(!SecretHash(String::from_utf8(other).expect("ASCII")).is_of(&secret), "byte {i}");
        }
    }

    #[test]
    fn a_use_that_cannot_be_recorded_is_refused_and_not_used_up() {
        let (dir, tokens, token) = world();
        let moved = dir.path().with_extension("away");
        std::fs::rename(dir.path(), &moved).expect("rename");
        assert!(matches!(tokens.redeem(&token, b"key", 1001), Err(TokenError::Record(_))));
        std::fs::rename(&moved, dir.path()).expect("rename");
        assert!(tokens.redeem(&token, b"other key", 1001).is_ok());
    }

    #[test]
    fn no_secret_is_on_disk() {
        let (dir, _tokens, token) = world();
        let secret = token.split('.').nth(2).expect("four parts");
        for file in std::fs::read_dir(dir.path()).expect("there").flatten() {
            assert!(!std::fs::read_to_string(file.path()).expect("text").contains(secret));
        }
    }
}
