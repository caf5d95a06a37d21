//! Which keys JWT-SVIDs are signed with, and by which they are checked.

use std::sync::Arc;

use weft_tls::jwt::{self, SigningKey};

/// For so many seconds after an issuer was replaced, tokens are signed with the key before it: sidecars, and other replicas, first learn the new one.
const LEARNING_SECS: i64 = 60;

/// The keys of what holds now.
#[derive(Clone, Debug)]
pub struct TokenKeys {
    own: Arc<SigningKey>,
    /// The key of the issuer before this one, and when that was replaced, in seconds since the Unix epoch.
    before: Option<(Arc<SigningKey>, i64)>,
    /// Of other roots that are trusted.
    others: Vec<Arc<SigningKey>>,
}

impl TokenKeys {
    /// The key of the issuer in use, and those of other roots that are trusted.
    pub fn new(own: Arc<SigningKey>, others: Vec<Arc<SigningKey>>) -> Self {
        Self { own, before: None, others }
    }

    /// The same, where another issuer was in use until `now`.
    #[must_use]
    pub fn after(mut self, before: &Self, now: i64) -> Self {
        self.before = Some((before.signing(now).clone(), now));
        self
    }

    /// The same, where those of `before` are still good for checking tokens.
    #[must_use]
    pub fn retiring(mut self, before: &Self) -> Self {
        let before = std::iter::once(&before.own).chain(before.before.iter().map(|(key, _)| key)).chain(&before.others);
        self.others.extend(before.cloned());
        self
    }

    /// What is signed with at `now`, in seconds since the Unix epoch.
    pub fn signing(&self, now: i64) -> &Arc<SigningKey> {
        match &self.before {
            Some((key, since)) if (0..LEARNING_SECS).contains(&(now - since)) => key,
            _ => &self.own,
        }
    }

    /// All of them, as a JWK set.
    pub fn published(&self) -> Vec<u8> {
        let mut keys: Vec<&SigningKey> = vec![&self.own];
        for key in self.before.iter().map(|(key, _)| key).chain(&self.others) {
            if keys.iter().all(|k| k.id() != key.id()) {
                keys.push(key);
            }
        }
        jwt::set(keys)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(issuer: &str) -> Arc<SigningKey> {
        Arc::new(SigningKey::derive(issuer.as_bytes(), &"weft.local".parse().expect("a name")).expect("a key"))
    }

    fn names(keys: &TokenKeys) -> Vec<String> {
        let set: serde_json::Value = serde_json::from_slice(&keys.published()).expect("JSON");
        set["keys"].as_array().expect("a list").iter().map(|k| k["kid"].as_str().expect("a name").to_owned()).collect()
    }

    #[test]
    fn a_new_key_is_known_before_it_signs() {
        let (a, b) = (key("a"), key("b"));
        let first = TokenKeys::new(a.clone(), vec![]);
        let second = TokenKeys::new(b.clone(), vec![]).after(&first, 1000);
        assert_eq!(names(&second), [b.id(), a.id()]);
        assert_eq!(second.signing(1000).id(), a.id());
        assert_eq!(second.signing(1059).id(), a.id());
        assert_eq!(second.signing(1060).id(), b.id());
        assert_eq!(second.signing(900).id(), b.id(), "the clock was set back");
    }

    #[test]
    fn keys_that_retire_check_and_do_not_sign() {
        let (a, b) = (key("a"), key("b"));
        let both = TokenKeys::new(b.clone(), vec![a.clone()]);
        let after = TokenKeys::new(b.clone(), vec![]).retiring(&both);
        assert_eq!((names(&after), after.signing(0).id()), (vec![b.id().to_owned(), a.id().to_owned()], b.id()));
    }

    #[test]
    fn the_keys_of_all_roots_are_known_once_each() {
        let (a, b) = (key("a"), key("b"));
        assert_eq!(names(&TokenKeys::new(a.clone(), vec![b.clone(), a.clone()])), [a.id(), b.id()]);
    }
}
