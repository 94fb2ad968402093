//! Computes the confidence interval of the mean rate of a direction. The interval is valid although consecutive samples
//! are correlated. Pure: no I/O, no clock.

use std::f64::consts::PI;
use std::time::Duration;

use super::byte_intervals::ByteInterval;

/// A direction that was measured for less than this time has no confidence interval.
pub const LEAST_MEASURED: Duration = Duration::from_secs(5);
/// A direction whose steady part is shorter than this time has no confidence interval.
pub const LEAST_STEADY: Duration = Duration::from_secs(4);
/// A required duration counts as complete even if the last sample came this much too early.
const SAMPLE_SLACK: Duration = Duration::from_millis(50);
/// The variance of the mean rate is estimated with at most this many cosine waves: the rate is multiplied with each
/// wave.
const WAVES: usize = 4;
/// One cosine wave is used for each group of this many intervals, up to [`WAVES`].
const INTERVALS_PER_WAVE: usize = 2;
/// Student's t for 95 %, two-sided, for 1, 2, … degrees of freedom.
const T_95: [f64; WAVES] = [12.706, 4.303, 3.182, 2.776];
/// Student's t for one of the three times (looks) at which a running test may end early, for 1, 2, … degrees of
/// freedom. Each look has its own confidence interval. In at most 5 % of runs, one or more of the three intervals miss
/// the true rate, because each has a confidence level of 1 - 0.05 / 3 (Bonferroni).
const T_LOOK: [f64; WAVES] = [38.188, 7.649, 4.857, 3.961];
/// The memory of a rate is how long the rate stays correlated. It is estimated from the same samples as the mean, so
/// the confidence interval is widened. A memory as long as the run makes the interval wider by this many times its
/// width; a shorter memory adds proportionally less. With this value, the coverage for autoregressive rates hardly
/// depends on their memory: see `tests/coverage.rs`.
const MEMORY_DOUBT: f64 = 5.5;

/// The confidence level of the interval of a mean rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Confidence {
    /// 95 % for one interval.
    Single,
    /// 95 % for three intervals together, one for each of the three times (looks) at which a running test may end
    /// early. Each single interval is wider.
    OneOfThreeLooks,
}

/// The lower and the upper bound of the confidence interval of the mean rate, in bits per second. `steady` has the
/// intervals of the steady part, and `whole` is the steady part as one interval. `measured` is the time from the start
/// of the phase to its last sample. `None` if the phase or its steady part is too short, or with fewer than two
/// intervals.
///
/// The rate has memory: consecutive intervals are correlated. So the uncertainty of the mean depends on the slow waves
/// of the rate. The method multiplies the rate's deviation from the mean with up to [`WAVES`] slow cosine waves, which
/// have 1 to 4 half periods in the steady part. If the slow waves of the rate are like white noise, each product varies
/// exactly as the mean does, whatever the fast waves do. So the mean square of the products is the variance of the
/// mean. Student's t with one degree of freedom for each product gives the interval (Müller 2007; Lazarus, Lewis,
/// Stock, Watson 2018).
///
/// If the memory is long, even these products vary less than the mean. So the method scales the square of each product
/// by the ratio of the two variances in a model: a first-order autoregressive process with the same correlation of
/// neighbouring intervals (Andrews, Monahan 1992). The method first removes the bias of the estimated correlation
/// (Kendall 1954). The estimate remains uncertain, so the method widens the interval: the longer the memory compared
/// with the run, the more.
pub(super) fn mean_interval(
    steady: &[ByteInterval],
    whole: &ByteInterval,
    measured: Duration,
    confidence: Confidence,
) -> Option<[u64; 2]> {
    let is_long = measured + SAMPLE_SLACK >= LEAST_MEASURED
        && Duration::from_micros(whole.length_us()) + SAMPLE_SLACK >= LEAST_STEADY;
    let waves = WAVES.min(steady.len() / INTERVALS_PER_WAVE);
    if !is_long || waves == 0 {
        return None;
    }
    let reach = reach(steady, whole, waves, confidence);
    // Casts from f64 saturate, and a rate is never below 0.
    Some([(whole.rate() - reach).round().max(0.0) as u64, (whole.rate() + reach).round() as u64])
}

/// Half of the width of the confidence interval, in bits per second.
fn reach(steady: &[ByteInterval], whole: &ByteInterval, waves: usize, confidence: Confidence) -> f64 {
    let (count, length) = (steady.len() as f64, whole.length_us() as f64);
    let mean = whole.rate();
    let memory = Memory::of(steady, mean);
    let squares = (1..=waves).map(|wave| {
        let product = steady.iter().map(|interval| {
            let middle = (interval.from_us - whole.from_us) as f64 + interval.length_us() as f64 / 2.0;
            let weight = (PI * wave as f64 * middle / length).cos() * interval.length_us() as f64;
            weight * (interval.rate() - mean)
        });
        let product = 2f64.sqrt() * product.sum::<f64>() / length;
        product * product * memory.mean_per_wave(PI * wave as f64 / count)
    });
    let variance = squares.sum::<f64>() / waves as f64;
    let student = match confidence {
        Confidence::Single => T_95[waves - 1],
        Confidence::OneOfThreeLooks => T_LOOK[waves - 1],
    };
    student * variance.sqrt() * memory.doubt()
}

/// The correlation between the rates of neighbouring intervals, and factors that follow from this correlation.
struct Memory {
    intervals: f64,
    correlation: f64,
}

impl Memory {
    fn of(steady: &[ByteInterval], mean: f64) -> Self {
        let intervals = steady.len() as f64;
        let off = |interval: &ByteInterval| interval.rate() - mean;
        let squares: f64 = steady.iter().map(|interval| off(interval).powi(2)).sum();
        let neighbours: f64 = steady.windows(2).map(|pair| off(&pair[0]) * off(&pair[1])).sum();
        let estimate = if squares > 0.0 { neighbours / squares } else { 0.0 };
        let unbiased = (estimate + 1.0 / intervals) / (1.0 - 3.0 / intervals).max(0.25);
        // A negative correlation comes from the jitter of the sampling. With a correlation above the upper bound, the
        // memory would be longer than the run.
        Self { intervals, correlation: unbiased.clamp(0.0, 1.0 - 1.0 / intervals) }
    }

    /// The variance of the mean divided by the variance of the product of the rate with one cosine wave. `angle` is how
    /// far the phase of the wave advances in one interval, in radians.
    fn mean_per_wave(&self, angle: f64) -> f64 {
        let (r, n) = (self.correlation, self.intervals);
        let of_mean = ((1.0 + r) / (1.0 - r) - 2.0 * r * (1.0 - r.powf(n)) / (n * (1.0 - r).powi(2))) / (1.0 - r * r);
        of_mean * (1.0 - 2.0 * r * angle.cos() + r * r)
    }

    /// The factor that widens the confidence interval because the estimate of the memory itself is uncertain.
    fn doubt(&self) -> f64 {
        let part_of_run = 1.0 / (self.intervals * (1.0 - self.correlation));
        1.0 + MEMORY_DOUBT * part_of_run
    }
}
