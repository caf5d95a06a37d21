//! Keys that were fetched, for all workers.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{
    AtomicBool, AtomicU64,
    Ordering::{AcqRel, Acquire, Release},
};

use arc_swap::ArcSwap;
use tokio::sync::Notify;
use weft_core::jwt::TokenFault;
use weft_core::metrics::{Family, Labels, table};
use weft_tls::tokens::Jwks;

use crate::identity::unix_now;

/// URLs that are told apart in metrics.
const MOST_URLS: usize = 500;
/// The last good keys are gone by for this long, in seconds, while their issuer is away.
const KEPT_SECS: i64 = 24 * 3600;

/// A URL as it is told of: a query may hold what is nobody else's.
pub(super) fn told(url: &str) -> &str {
    url.split('?').next().unwrap_or_default()
}

/// Keys by their URL. Read without locks; one task of one worker writes.
#[derive(Default)]
pub struct KeyStore {
    sets: ArcSwap<HashMap<Arc<str>, Arc<Fetched>>>,
    /// Counts changes of keys: what was verified with others is verified anew.
    generation: AtomicU64,
    claimed: AtomicBool,
}

/// What is known of one URL.
pub(super) struct Fetched {
    set: Option<Jwks>,
    /// The set as it came: one that is the same changes nothing.
    text: Arc<[u8]>,
    /// When it was fetched last; before the first time, since when it has been tried. Seconds since 1970.
    at: i64,
    /// Successes and failures.
    counts: [u64; 2],
    failing: bool,
    /// Somebody has a token that is signed with a key that is not there.
    missed: Arc<Notify>,
}

impl Fetched {
    fn begun(now: i64) -> Self {
        Self { set: None, text: Arc::new([]), at: now, counts: [0; 2], failing: false, missed: Arc::default() }
    }

    /// The same, before it is changed.
    fn copy(&self) -> Self {
        let Self { set, text, at, counts, failing, missed } = self;
        Self { set: set.clone(), text: text.clone(), at: *at, counts: *counts, failing: *failing, missed: missed.clone() }
    }
}

/// Keys that may be gone by.
pub struct Usable(Arc<Fetched>);

impl Usable {
    pub fn set(&self) -> &Jwks {
        self.0.set.as_ref().expect("it is made of those that have one")
    }

    /// A key was not among them: they may have been replaced.
    pub fn miss(&self) {
        self.0.missed.notify_one();
    }
}

impl KeyStore {
    /// The keys of a URL.
    pub fn of(&self, url: &str, now: i64) -> Result<Usable, TokenFault> {
        let sets = self.sets.load();
        let Some(fetched) = sets.get(url) else { return Err(TokenFault::NoKeys(now)) };
        let is_usable = fetched.set.is_some() && now.saturating_sub(fetched.at) <= KEPT_SECS;
        if is_usable { Ok(Usable(fetched.clone())) } else { Err(TokenFault::NoKeys(fetched.at)) }
    }

    pub fn generation(&self) -> u64 {
        self.generation.load(Acquire)
    }

    /// The first who asks fetches for all.
    pub(super) fn claim(&self) -> bool {
        !self.claimed.swap(true, AcqRel)
    }

    fn change(&self, change: impl FnOnce(&mut HashMap<Arc<str>, Arc<Fetched>>)) {
        let mut sets = HashMap::clone(&self.sets.load());
        change(&mut sets);
        self.sets.store(Arc::new(sets));
    }

    /// Begins to keep a URL's keys; what it is told by that there is a key too few.
    pub(super) fn begin(&self, url: &Arc<str>) -> Arc<Notify> {
        let fetched = Arc::new(Fetched::begun(unix_now()));
        let missed = fetched.missed.clone();
        self.change(|sets| {
            sets.insert(url.clone(), fetched);
        });
        missed
    }

    pub(super) fn forget(&self, url: &str) {
        self.change(|sets| {
            sets.remove(url);
        });
        self.generation.fetch_add(1, Release);
    }

    /// Takes in what was fetched.
    pub(super) fn put(&self, url: &Arc<str>, text: &[u8], set: Jwks) {
        let mut is_new = true;
        self.change(|sets| {
            let mut fetched = sets.get(url).map_or_else(|| Fetched::begun(0), |f| f.copy());
            is_new = *fetched.text != *text;
            fetched.at = unix_now();
            fetched.failing = false;
            fetched.counts[0] += 1;
            if is_new {
                (fetched.set, fetched.text) = (Some(set), text.into());
            }
            sets.insert(url.clone(), Arc::new(fetched));
        });
        if is_new {
            // After the keys: whoever sees the new generation sees them.
            self.generation.fetch_add(1, Release);
        }
    }

    /// Notes that it could not be fetched. Gives since when there is nothing newer, and whether it is the first failure in a row.
    pub(super) fn fail(&self, url: &Arc<str>) -> (i64, bool) {
        let mut told = (0, true);
        self.change(|sets| {
            let mut fetched = sets.get(url).map_or_else(|| Fetched::begun(unix_now()), |f| f.copy());
            told = (fetched.at, !std::mem::replace(&mut fetched.failing, true));
            fetched.counts[1] += 1;
            sets.insert(url.clone(), Arc::new(fetched));
        });
        told
    }

    /// As metrics have them.
    pub fn families(&self) -> [Family; 2] {
        let [mut fetches, mut age] = [&table::JWT_FETCHES, &table::JWT_AGE].map(Family::new);
        let sets = self.sets.load();
        // By what is told of them: URLs that differ in their queries alone are one.
        let mut urls: BTreeMap<&str, ([u64; 2], i64)> = BTreeMap::new();
        let now = unix_now();
        for (url, fetched) in sets.iter() {
            let age = if fetched.set.is_some() { now - fetched.at } else { -1 };
            let (counts, oldest) = urls.entry(told(url)).or_insert(([0; 2], age));
            counts.iter_mut().zip(fetched.counts).for_each(|(sum, count)| *sum += count);
            *oldest = if *oldest < 0 || age < 0 { -1 } else { age.max(*oldest) };
        }
        for (url, (counts, oldest)) in urls.into_iter().take(MOST_URLS) {
            let labels = Labels::new().and(table::URL, url.to_owned());
            for (result, count) in ["ok", "failed"].into_iter().zip(counts) {
                fetches.counts(labels.clone().and(table::OUTCOME, result), count);
            }
            age.levels(labels, oldest as f64);
        }
        [fetches, age]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_tell_urls_without_their_queries() {
        let store = KeyStore::default();
        for url in ["http://id.shop/keys?key=secret", "http://id.shop/keys?key=other", "https://id.example.com"] {
            store.fail(&url.into());
        }
        let [fetches, _] = store.families();
        let failed: Vec<_> = fetches.points.iter().filter(|p| p.labels.value(table::OUTCOME) == Some(&"failed".into())).collect();
        let told: Vec<_> =
            failed.iter().map(|p| (p.labels.value(table::URL).map(ToString::to_string), p.value.clone())).collect();
        let of = |url: &str, n| (Some(url.to_owned()), weft_core::metrics::Value::Count(n));
        assert_eq!(told, [of("http://id.shop/keys", 2), of("https://id.example.com", 1)]);
    }
}
