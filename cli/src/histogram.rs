//! Times by buckets, as sidecars count them, and quantiles of them.

use weft_core::metrics::histogram::quantile;

/// How many requests took at most so long: bounds in microseconds, ascending; what took longer than any comes last, without a bound.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Histogram(Vec<(Option<u64>, u64)>);

impl Histogram {
    /// Adds what was counted elsewhere. Buckets of other bounds are merged in order.
    pub(crate) fn add(&mut self, other: &[(Option<u64>, u64)]) {
        for (bound, n) in other {
            let key = |b: Option<u64>| b.unwrap_or(u64::MAX);
            match self.0.binary_search_by_key(&key(*bound), |(b, _)| key(*b)) {
                Ok(at) => self.0[at].1 += n,
                Err(at) => self.0.insert(at, (*bound, *n)),
            }
        }
    }

    /// What came since `before` was read; what began anew meanwhile counts from there.
    pub(crate) fn less(&self, before: &Self) -> Self {
        let then = |bound: Option<u64>| before.0.iter().find(|(b, _)| *b == bound).map_or(0, |(_, n)| *n);
        if self.count() < before.count() {
            return self.clone();
        }
        Self(self.0.iter().map(|(bound, n)| (*bound, n.saturating_sub(then(*bound)))).collect())
    }

    pub(crate) fn count(&self) -> u64 {
        self.0.iter().map(|(_, n)| n).sum()
    }

    /// The time that a share `q` (0 to 1) of the requests stays below, in microseconds ([`quantile`]); 0 where nothing was counted.
    pub(crate) fn quantile(&self, q: f64) -> f64 {
        let buckets = self.0.iter().map(|(bound, n)| (bound.map(|bound| bound as f64), *n));
        quantile(q, buckets).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_lie_between_the_bounds_of_their_bucket() {
        let mut h = Histogram::default();
        assert!(h.quantile(0.5).abs() < 1e-9);
        h.add(&[(Some(100), 50), (Some(200), 40), (None, 10)]);
        let near = |q: f64, expected: f64| assert!((h.quantile(q) - expected).abs() < 1e-6, "{q}: {}", h.quantile(q));
        near(0.5, 100.0);
        near(0.25, 50.0);
        near(0.7, 150.0);
        near(0.99, 200.0);
    }

    #[test]
    fn histograms_are_added_and_subtracted() {
        let (mut a, mut b) = (Histogram::default(), Histogram::default());
        a.add(&[(Some(100), 5), (None, 1)]);
        b.add(&[(Some(50), 1), (Some(100), 7), (None, 1)]);
        assert_eq!((b.less(&a).count(), a.less(&b)), (3, a.clone()), "one that is smaller began anew");
        a.add(&[(Some(50), 2)]);
        assert_eq!((a.count(), a.0[0]), (8, (Some(50), 2)));
    }
}
