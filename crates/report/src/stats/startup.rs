//! The end of the start-up of a direction: where its rate settles. Pure.

use super::byte_intervals::ByteInterval;
use super::latency::percentile;

/// The fewest intervals in which a start-up can be detected.
const FEWEST_INTERVALS: usize = 10;
/// How far the band of the rest is widened on both sides, as a fraction of its median.
const BAND_SLACK: f64 = 0.05;
/// A band wider than this fraction of its median would hold a ramp-up, too: then it is that of longer windows.
const WIDEST_BAND: f64 = 0.25;
/// The longest windows, in intervals.
const LONGEST_WINDOW: usize = 8;
/// The fewest windows in the second half, one after the other.
const FEWEST_WINDOWS: usize = 5;
/// A rate that grows by more than this factor from each quarter of the time to the next is still in its start-up.
const GROWTH: f64 = 1.25;

/// The first interval of the steady part, and whether it was found.
///
/// The second half of the run is the reference. The 10th to the 90th percentile of its rates, widened by 5 % of the
/// median on both sides, are the band. The start-up ends at the first of two consecutive windows inside the band,
/// whether the rate rose into it (slow start) or fell into it (the burst of a token bucket). A window is one interval.
/// On a bursty line the band of single intervals would hold everything, so windows are longer there, up to 0.8 s.
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

/// Whether the rate grew through the whole run: a slow start on a long path that was not over by the middle.
fn is_still_rising(intervals: &[ByteInterval]) -> bool {
    let bound = |quarter: usize| quarter * intervals.len() / 4;
    let rates = [0, 1, 2, 3].map(|at| ByteInterval::whole(&intervals[bound(at)..bound(at + 1)]).rate());
    rates.windows(2).all(|pair| pair[1] > GROWTH * pair[0])
}

/// The usual rates of the second half.
struct Band {
    low: f64,
    median: f64,
    high: f64,
}

impl Band {
    /// The band of all windows of this length; `rest` is not shorter.
    fn of(rest: &[ByteInterval], window: usize) -> Self {
        let mut rates = rest.windows(window).map(|window| ByteInterval::whole(window).rate()).collect::<Vec<_>>();
        rates.sort_unstable_by(f64::total_cmp);
        // The rest is not empty, so each percentile exists; 0 would only widen the band.
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
