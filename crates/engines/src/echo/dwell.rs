//! A histogram of the dwell times of probes: the time from a probe's arrival at the reflector to its reply. The
//! histogram needs no lock, because the thread that answers probes must not wait.

use std::sync::atomic::{AtomicU64, Ordering};

/// The upper bounds of the histogram's buckets, in microseconds. One more bucket counts longer dwell times.
pub const DWELL_BOUNDS_US: [u64; 19] = [
    1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000, 500_000,
    1_000_000,
];
const BUCKETS: usize = DWELL_BOUNDS_US.len() + 1;

/// A histogram of the dwell times of the probes that a reflector has answered.
#[derive(Debug, Default)]
pub struct DwellTimes {
    buckets: [AtomicU64; BUCKETS],
    sum_ns: AtomicU64,
}

impl DwellTimes {
    /// Counts one probe with this dwell time in nanoseconds.
    pub(super) fn note(&self, dwell_ns: u32) {
        let bucket = DWELL_BOUNDS_US.partition_point(|bound_us| bound_us * 1_000 < u64::from(dwell_ns));
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        self.sum_ns.fetch_add(dwell_ns.into(), Ordering::Relaxed);
    }

    /// The number of probes in each bucket, in the order of [`DWELL_BOUNDS_US`], with the bucket for longer times last;
    /// and the sum of all dwell times in nanoseconds.
    pub fn read(&self) -> ([u64; BUCKETS], u64) {
        let buckets = std::array::from_fn(|at| self.buckets[at].load(Ordering::Relaxed));
        (buckets, self.sum_ns.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_in_the_first_bucket_that_holds_it() {
        let times = DwellTimes::default();
        for dwell_ns in [0, 1_000, 1_001, 500_000_000, 1_000_000_000, 1_000_000_001, u32::MAX] {
            times.note(dwell_ns);
        }
        let (buckets, sum_ns) = times.read();
        let filled = (0..BUCKETS).filter(|at| buckets[*at] > 0).map(|at| (at, buckets[at])).collect::<Vec<_>>();
        assert_eq!(filled, [(0, 2), (1, 1), (17, 1), (18, 1), (19, 2)]);
        assert_eq!(sum_ns, 1_000 + 1_001 + 2_500_000_001 + u64::from(u32::MAX));
    }
}
