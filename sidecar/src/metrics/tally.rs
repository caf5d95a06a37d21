//! Counts that all workers share, under keys that come and go: what nothing was counted under for long is dropped, and begins anew if it comes again.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use super::worker::unix_nanos;

/// `N` counts under each key.
#[derive(Debug)]
pub struct Tally<K, const N: usize>(BTreeMap<K, Counted<N>>);

/// What was counted under one.
#[derive(Clone, Copy, Debug)]
pub struct Counted<const N: usize> {
    pub counts: [u64; N],
    /// Nanoseconds since 1970: when it was counted first.
    pub since: u64,
    last: Instant,
}

impl<K: Ord, const N: usize> Default for Tally<K, N> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<K: Ord, const N: usize> Tally<K, N> {
    /// Whether one more would be of a key that is there, or one of the first `most`.
    pub fn has_room(&self, key: &K, most: usize) -> bool {
        self.0.len() < most || self.0.contains_key(key)
    }

    pub fn add(&mut self, key: K, which: usize) {
        let now = Instant::now();
        let counted = self.0.entry(key).or_insert_with(|| Counted { counts: [0; N], since: unix_nanos(), last: now });
        counted.counts[which] += 1;
        counted.last = now;
    }

    /// Makes room where half of `most` are there: drops what nothing was counted under for so long. What is rare stays as long as there is room, for a rate of it
    /// is seen only between two scrapes.
    pub fn sweep(&mut self, most: usize, unused: Duration) {
        if self.0.len() < most / 2 {
            return;
        }
        let now = Instant::now();
        self.0.retain(|_, counted| now.duration_since(counted.last) < unused);
    }

    pub fn iter(&self) -> impl Iterator<Item = (&K, &Counted<N>)> {
        self.0.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_nothing_is_counted_under_is_dropped_and_makes_room() {
        let unused = Duration::from_secs(60);
        let mut tally = Tally::<&str, 2>::default();
        tally.add("a", 0);
        tokio::time::advance(unused / 2).await;
        tally.add("b", 1);
        assert!(tally.has_room(&"a", 2) && !tally.has_room(&"c", 2));
        tokio::time::advance(unused / 2).await;
        tally.sweep(100, unused);
        assert_eq!(tally.iter().count(), 2);
        tally.sweep(2, unused);
        let left: Vec<_> = tally.iter().map(|(key, counted)| (*key, counted.counts)).collect();
        assert_eq!(left, [("b", [0, 1])]);
        assert!(tally.has_room(&"c", 2));
    }
}
