//! A histogram of durations: `status` shows its percentiles, and the metrics show all its buckets. Pure: no I/O, no
//! clock.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A histogram of durations: the number of durations in each of its buckets.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DurationCounts {
    /// The buckets in ascending order of their bounds.
    pub buckets: Vec<DurationBucket>,
    /// The number of durations above the last bound.
    pub longer: u64,
    /// The sum of all durations, in microseconds.
    pub sum_us: u64,
}

/// A bucket of a histogram: the number of durations up to its bound and above the bound of the bucket before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DurationBucket {
    /// The upper bound of the bucket, in microseconds.
    pub up_to_us: u64,
    /// The number of durations in the bucket.
    pub count: u64,
}

impl DurationCounts {
    /// An empty histogram. The bounds are in microseconds, in ascending order.
    pub fn with_bounds(bounds_us: &[u64]) -> Self {
        let buckets = bounds_us.iter().map(|up_to_us| DurationBucket { up_to_us: *up_to_us, count: 0 });
        Self { buckets: buckets.collect(), longer: 0, sum_us: 0 }
    }

    /// Adds one duration to the histogram.
    pub fn note(&mut self, duration: Duration) {
        let us = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        self.sum_us = self.sum_us.saturating_add(us);
        let counter = match self.buckets.iter_mut().find(|bucket| us <= bucket.up_to_us) {
            Some(bucket) => &mut bucket.count,
            None => &mut self.longer,
        };
        *counter = counter.saturating_add(1);
    }

    /// The number of all durations in the histogram.
    pub fn count(&self) -> u64 {
        self.buckets.iter().fold(self.longer, |sum, bucket| sum.saturating_add(bucket.count))
    }

    /// The lowest bucket bound, in microseconds, with at least this share of all durations at or below it. `None` if no
    /// duration was counted, or if even the last bound has a smaller share at or below it.
    pub fn quantile_us(&self, share: f64) -> Option<u64> {
        let wanted = share * self.count() as f64;
        let mut below = 0;
        let bucket = self.buckets.iter().find(|bucket| {
            below += bucket.count;
            below > 0 && below as f64 >= wanted
        });
        bucket.map(|bucket| bucket.up_to_us)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_counted_in_the_first_bucket_that_holds_it() {
        let mut counts = DurationCounts::with_bounds(&[0, 10, 1_000]);
        for us in [0, 1, 10, 11, 1_000, 1_001, 5_000] {
            counts.note(Duration::from_micros(us));
        }
        assert_eq!(counts.buckets.iter().map(|bucket| bucket.count).collect::<Vec<_>>(), [1, 2, 2]);
        assert_eq!((counts.longer, counts.count(), counts.sum_us), (2, 7, 7_023));
    }

    #[test]
    fn a_quantile_is_the_bound_that_so_many_durations_are_below() {
        let mut counts = DurationCounts::with_bounds(&[10, 100, 1_000]);
        assert_eq!(counts.quantile_us(0.5), None);
        for us in [5, 5, 5, 50, 50, 50, 50, 50, 500, 5_000] {
            counts.note(Duration::from_micros(us));
        }
        let quantiles = [0.0, 0.3, 0.31, 0.8, 0.9, 0.91].map(|share| counts.quantile_us(share));
        assert_eq!(quantiles, [Some(10), Some(10), Some(100), Some(100), Some(1_000), None]);
    }
}
