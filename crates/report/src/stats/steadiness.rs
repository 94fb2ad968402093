//! Decides whether the rate of a direction was steady. Only then does the mean describe the rate well. Pure: no I/O, no
//! clock.

use std::time::Duration;

use paramedic_link::measurement::Sample;

/// A rate is not steady if its means in the first and in the last third of the time differ by more than this factor.
const MOST_BETWEEN_THIRDS: f64 = 1.25;
/// A rate is not steady if its confidence interval extends more than this fraction of the mean to either side.
const MOST_DOUBT: f64 = 0.25;
/// An excluded start-up is long if it took at least 1/5 of the phase. [`begin_of_thirds`] may include a long start-up
/// when the steadiness is judged.
const LONG_START_UP: u32 = 5;
/// If the rate in the excluded start-up was higher than afterwards by more than this factor, the start-up was a burst
/// and not a ramp-up. A token bucket causes such a burst, and so does a line that becomes slower.
const FASTER: f64 = 1.2;

/// To judge whether a rate was steady, the first and the last third of a period are compared. Returns when this period
/// begins. Usually it begins at `startup`: there the excluded start-up ends, and the steady part of the duration
/// `steady` begins. After a long start-up, the period begins with the phase in two cases: the start-up was a burst, or
/// its end was not found (`is_found` is false).
pub fn begin_of_thirds(samples: &[Sample], startup: Duration, steady: Duration, is_found: bool) -> Duration {
    let until = startup.saturating_add(steady);
    let is_long = !startup.is_zero() && startup.saturating_mul(LONG_START_UP) >= until;
    let is_burst = || {
        let rate = |from, until| rate_between(samples, from, until).unwrap_or(0.0);
        rate(Duration::ZERO, startup) > FASTER * rate(startup, until)
    };
    if is_long && (!is_found || is_burst()) { Duration::ZERO } else { startup }
}

/// The mean rates in the first and the last third of the period between two times, in bits per second. `None` without
/// samples, or if the period is empty.
pub fn thirds(samples: &[Sample], from: Duration, until: Duration) -> Option<[u64; 2]> {
    let third = until.saturating_sub(from) / 3;
    let first = rate_between(samples, from, from + third)?;
    let last = rate_between(samples, until.saturating_sub(third), until)?;
    // A cast from f64 saturates.
    Some([first.round() as u64, last.round() as u64])
}

/// Whether a rate was steady: its first and last third (`thirds`) are about equal, and its confidence interval
/// (`ci95_bps`) is narrow beside its mean (`goodput_bps`). An absent value is not judged.
pub fn is_steady(thirds: Option<[u64; 2]>, goodput_bps: u64, ci95_bps: Option<[u64; 2]>) -> bool {
    let is_level = thirds.is_none_or(are_level);
    let is_sure =
        ci95_bps.is_none_or(|[low, high]| high.saturating_sub(low) as f64 <= 2.0 * MOST_DOUBT * goodput_bps as f64);
    is_level && is_sure
}

/// Whether the mean rates in the first and in the last third of a period (`first`, `last`) are about equal.
pub fn are_level([first, last]: [u64; 2]) -> bool {
    first.max(last) as f64 <= MOST_BETWEEN_THIRDS * first.min(last) as f64
}

/// The mean rate between two times, in bits per second. Spreads the bytes of a sample evenly over its interval. `None`
/// without samples, or if the second time is not after the first.
fn rate_between(samples: &[Sample], from: Duration, until: Duration) -> Option<f64> {
    let (from, until) = (from.as_micros() as f64, until.as_micros() as f64);
    if samples.is_empty() || until <= from {
        return None;
    }
    let begins = std::iter::once(0).chain(samples.iter().map(|sample| sample.at_us));
    let inside = begins.zip(samples).map(|(begin, sample)| {
        let (begin, end) = (begin as f64, sample.at_us as f64);
        let shared = end.min(until) - begin.max(from);
        if shared > 0.0 { sample.bytes as f64 * shared / (end - begin) } else { 0.0 }
    });
    Some(inside.sum::<f64>() * 8e6 / (until - from))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A sample every 100 ms for `seconds`. `mbit` takes the start of a sample's interval in ms and returns its rate in
    /// Mbit/s.
    fn readings(mbit: impl Fn(u64) -> u64, seconds: u64) -> Vec<Sample> {
        (1..=seconds * 10).map(|at| Sample { at_us: at * 100_000, bytes: mbit((at - 1) * 100) * 12_500 }).collect()
    }

    fn of(samples: &[Sample], startup_ms: u64, is_found: bool) -> [u64; 2] {
        let end = Duration::from_micros(samples.last().unwrap().at_us);
        let startup = Duration::from_millis(startup_ms);
        let from = begin_of_thirds(samples, startup, end - startup, is_found);
        thirds(samples, from, end).unwrap().map(|bps| bps / 1_000_000)
    }

    #[test]
    fn a_line_that_becomes_slower_is_not_steady() {
        let slower = readings(|ms| if ms < 5000 { 50 } else { 10 }, 9);
        assert_eq!(of(&slower, 0, true), [50, 10]);
        assert!(!are_level([50, 10]) && !is_steady(Some([50, 10]), 36, None));
    }

    #[test]
    fn a_burst_that_was_excluded_as_start_up_is_reported() {
        let bucket = readings(|ms| if ms < 3000 { 100 } else { 20 }, 9);
        assert_eq!(of(&bucket, 3000, true), [100, 20]);
        // A ramp-up is not a burst. A short burst does not count: any traffic shaper may allow one.
        let ramp = readings(|ms| if ms < 3000 { 5 } else { 20 }, 9);
        assert_eq!(of(&ramp, 3000, true), [20, 20]);
        let short = readings(|ms| if ms < 1000 { 100 } else { 20 }, 9);
        assert_eq!(of(&short, 1000, true), [20, 20]);
    }

    #[test]
    fn a_rate_that_did_not_settle_has_the_thirds_of_the_whole_time() {
        let rising = readings(|ms| ms / 100, 9);
        assert_eq!(of(&rising, 4500, false), [14, 74]);
    }

    #[test]
    fn a_constant_rate_is_steady_wherever_the_thirds_begin() {
        let constant = readings(|_| 100, 10);
        assert_eq!(of(&constant, 0, true), [100, 100]);
        assert_eq!(of(&constant, 1234, true), [100, 100]);
        assert!(is_steady(Some([100, 100]), 100, Some([98, 102])));
        assert!(is_steady(None, 100, None));
    }

    #[test]
    fn a_wide_interval_is_not_steady_even_with_level_thirds() {
        assert!(is_steady(Some([100, 100]), 100, Some([76, 124])));
        assert!(!is_steady(Some([100, 100]), 100, Some([70, 130])));
        assert!(!is_steady(None, 36, Some([2, 70])));
    }

    #[test]
    fn no_reading_breaks_a_sum() {
        assert_eq!(thirds(&[], Duration::ZERO, Duration::from_secs(1)), None);
        let most = [Sample { at_us: 1, bytes: u64::MAX }, Sample { at_us: u64::MAX, bytes: u64::MAX }];
        assert_eq!(begin_of_thirds(&most, Duration::MAX, Duration::MAX, false), Duration::ZERO);
        assert!(thirds(&most, Duration::ZERO, Duration::MAX).is_some());
        assert_eq!(thirds(&most, Duration::ZERO, Duration::ZERO), None);
        assert!(are_level([0, 0]) && !are_level([0, 1]));
    }
}
