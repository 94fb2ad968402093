//! Finds the end of the start-up of a direction: the time at which its rate settles. Pure: no I/O, no clock.

use super::byte_intervals::ByteInterval;
use super::latency::percentile;

/// The end of a start-up can be detected only if there are at least this many intervals.
const FEWEST_INTERVALS: usize = 10;
/// A rate is settled if it is inside a band around the rates of the second half of the run. The band is widened on both
/// sides by this fraction of the median of these rates.
const BAND_SLACK: f64 = 0.05;
/// If the band of settled rates is wider than this fraction of the median rate, it contains almost every rate, even the
/// rates of a ramp-up. Then the band is computed again from longer windows.
const WIDEST_BAND: f64 = 0.25;
/// A window, over which rates are averaged to detect the start-up, has at most this many intervals.
const LONGEST_WINDOW: usize = 8;
/// The second half of the run must have room for at least this many windows.
const FEWEST_WINDOWS: usize = 5;
/// If the rate grows by more than this factor from each quarter of the time to the next, the run is still in its
/// start-up.
const GROWTH: f64 = 1.25;

/// The index of the first interval of the steady part, and whether the end of the start-up was found. If the end was
/// not found, the index is the middle of the run, or 0 with too few intervals.
///
/// The second half of the run is the reference. The band of settled rates goes from the 10th to the 90th percentile of
/// the rates in this half, and is widened by 5 % of their median on both sides. The start-up ends at the first of two
/// consecutive windows inside the band. The rate may have risen into the band (slow start), or fallen into it (the
/// burst of a token bucket). A window is usually one interval. On a bursty line the band of single intervals would
/// contain almost every rate, so windows are longer there, up to 0.8 s.
pub(super) fn end_of_start_up(intervals: &[ByteInterval]) -> (usize, bool) {
    if intervals.len() < FEWEST_INTERVALS {
        return (0, false);
    }
    let half = intervals.len() / 2;
    if is_still_rising(intervals) {
        return (half, false);
    }
    let most = LONGEST_WINDOW.min((intervals.len() - half) / FEWEST_WINDOWS).max(1);
    let (mut window, mut band) = (1, Band::of(&intervals[half..], 1));
    while band.is_wide() && window * 2 <= most {
        window *= 2;
        band = Band::of(&intervals[half..], window);
    }
    let is_inside = |at: usize| band.holds(ByteInterval::whole(&intervals[at..at + window]).rate());
    match (0..half).find(|at| is_inside(*at) && is_inside(*at + window)) {
        Some(first) => (first, true),
        None => (half, false),
    }
}

/// Whether the rate grew throughout the run: on a long path, slow start may last beyond the middle of the run.
fn is_still_rising(intervals: &[ByteInterval]) -> bool {
    let bound = |quarter: usize| quarter * intervals.len() / 4;
    let rates = [0, 1, 2, 3].map(|at| ByteInterval::whole(&intervals[bound(at)..bound(at + 1)]).rate());
    rates.windows(2).all(|pair| pair[1] > GROWTH * pair[0])
}

/// The range of the usual rates in the second half of the run, in bits per second.
struct Band {
    low: f64,
    median: f64,
    high: f64,
}

impl Band {
    /// Computes the band from `rest`: from the mean rate of every window of `window` consecutive intervals. `rest` must
    /// have at least `window` intervals.
    fn of(rest: &[ByteInterval], window: usize) -> Self {
        let mut rates = rest.windows(window).map(|window| ByteInterval::whole(window).rate()).collect::<Vec<_>>();
        rates.sort_unstable_by(f64::total_cmp);
        // `rates` is not empty, so each percentile exists; 0 would only widen the band.
        let of = |per_mille| percentile(&rates, per_mille).unwrap_or(0.0);
        Self { low: of(100), median: of(500), high: of(900) }
    }

    fn is_wide(&self) -> bool {
        self.high - self.low > WIDEST_BAND * self.median
    }

    fn holds(&self, rate: f64) -> bool {
        let slack = BAND_SLACK * self.median;
        (self.low - slack..=self.high + slack).contains(&rate)
    }
}
