//! Goodput from samples: the end of the start-up, and the confidence interval of the mean over the rest. Pure.

use std::time::Duration;

use paramedic_link::measurement::{INTERVAL_MS, Sample};

use super::latency::percentile;

/// An interval shorter than this is merged with its neighbour, because its rate is mostly rounding.
const SHORTEST_US: u64 = INTERVAL_MS * 1000 / 2;
/// The fewest intervals in which a start-up can be detected.
const INTERVALS_FOR_START_UP: usize = 10;
/// The start-up ends when this many consecutive intervals lie in the band of the rest; a single one may be a spike.
const SETTLED: usize = 2;
/// The number of pieces that an interval should hold if bytes arrive in pieces further apart than samples.
const PIECES: usize = 4;
/// How far the band of the rest is widened on both sides, as a fraction of its median.
const BAND_SLACK: f64 = 0.05;
/// The number of batches into which the steady part is divided for the confidence interval (Schmeiser 1982: more gain
/// little).
const BATCHES: usize = 10;
/// Student's t for 95 %, two-sided, [`BATCHES`] - 1 degrees of freedom.
const T_95: f64 = 2.262;
/// The strongest correlation between neighbouring batches that is used. A stronger one is clamped to this, because the
/// interval would become useless.
const MOST_CORRELATED: f64 = 0.8;

/// The throughput of one direction of a phase, in the steady part only, as the receiver counted it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Throughput {
    /// Payload bits per second: bytes over time, nothing else.
    pub goodput_bps: u64,
    /// The 95 % confidence interval of that mean, in bits per second; absent if the steady part is too short
    /// (below 2 s).
    pub ci95_bps: Option<[u64; 2]>,
    /// The 10th percentile of the intervals' rates, in bits per second.
    pub p10: u64,
    /// The median of the intervals' rates, in bits per second.
    pub p50: u64,
    /// The 90th percentile of the intervals' rates, in bits per second.
    pub p90: u64,
    /// Payload bytes of the steady part.
    pub bytes: u64,
    /// How long the steady part was.
    pub steady: Duration,
    /// How long the excluded start-up was.
    pub startup: Duration,
    /// Whether the end of the start-up was found in the samples. False if it was requested, if the run is too short to
    /// find it, or if the rate had not settled by the middle of the run (then the first half is excluded).
    pub startup_found: bool,
}

/// Computes the throughput of one direction of a phase of length `span` from its samples; `None` if no sample is left.
/// Ignores samples later than one interval after the span.
///
/// The intervals: on a slow line bytes may arrive in pieces that are further apart than two samples (16 KiB of a TLS
/// record, a datagram). Then neighbouring samples are merged until each interval holds several pieces, and each
/// interval ends with a sample that has bytes. The steady part never begins before the first byte.
///
/// The start-up: the second half of the run is assumed to be steady. The 10th to the 90th percentile of its intervals,
/// widened by 5 % of the median on both sides, are the band. The start-up ends at the first of two consecutive
/// intervals inside the band, whether the rate rose into it (slow start) or fell into it (the burst of a token bucket).
/// A later dip is part of the result. With `requested_omit`, nothing is detected: intervals that begin before it are
/// left out.
///
/// The confidence interval: samples 100 ms apart are correlated, so their plain standard error would be too small.
/// Instead, the steady part is divided into ten batches of equal time, whose means are almost uncorrelated. Student's t
/// over these means gives the interval. If neighbouring batches are still correlated by r > 0, the variance is
/// multiplied by (1 + r) / (1 - r).
pub fn throughput(samples: &[Sample], requested_omit: Option<Duration>, span: Duration) -> Option<Throughput> {
    let mut intervals = intervals(samples, span);
    let (first, startup_found) = match requested_omit {
        Some(omit) => {
            let omit_us = omit.as_micros();
            (intervals.iter().position(|interval| u128::from(interval.from_us) >= omit_us)?, false)
        }
        None => {
            intervals = merged_by_arrivals(intervals);
            end_of_start_up(&intervals)
        }
    };
    let steady = intervals.get(first..).filter(|steady| !steady.is_empty())?;
    let mut rates: Vec<u64> = steady.iter().map(ByteInterval::bps).collect();
    rates.sort_unstable();
    let whole = ByteInterval::whole(steady);
    Some(Throughput {
        goodput_bps: whole.bps(),
        ci95_bps: confidence(steady, &whole),
        p10: percentile(&rates, 100)?,
        p50: percentile(&rates, 500)?,
        p90: percentile(&rates, 900)?,
        bytes: u64::try_from(whole.bytes).unwrap_or(u64::MAX),
        steady: Duration::from_micros(whole.length_us()),
        startup: Duration::from_micros(whole.from_us),
        startup_found,
    })
}

/// Bytes between two moments of the receiver's clock; never empty.
#[derive(Clone, Copy, Debug)]
struct ByteInterval {
    from_us: u64,
    to_us: u64,
    bytes: u128,
}

impl ByteInterval {
    fn length_us(&self) -> u64 {
        self.to_us - self.from_us
    }

    fn rate(&self) -> f64 {
        self.bytes as f64 * 8e6 / self.length_us() as f64
    }

    /// The rate in whole bits per second, rounded.
    fn bps(&self) -> u64 {
        let length = u128::from(self.length_us());
        u64::try_from((self.bytes.saturating_mul(8_000_000) + length / 2) / length).unwrap_or(u64::MAX)
    }

    /// Merges neighbouring intervals; `parts` is not empty.
    fn whole(parts: &[ByteInterval]) -> ByteInterval {
        ByteInterval {
            from_us: parts[0].from_us,
            to_us: parts[parts.len() - 1].to_us,
            bytes: parts.iter().map(|part| part.bytes).sum(),
        }
    }
}

/// The samples as intervals with their real lengths. Bytes of a sample whose time did not advance go to the interval
/// before it; intervals too short for a rate are merged.
fn intervals(samples: &[Sample], span: Duration) -> Vec<ByteInterval> {
    let last_us = u64::try_from(span.as_micros()).unwrap_or(u64::MAX).saturating_add(INTERVAL_MS * 1000);
    let mut found: Vec<ByteInterval> = Vec::with_capacity(samples.len());
    let mut open = ByteInterval { from_us: 0, to_us: 0, bytes: 0 };
    for sample in samples.iter().filter(|sample| sample.at_us <= last_us) {
        let bytes = u128::from(sample.bytes);
        match found.last_mut() {
            Some(before) if sample.at_us <= open.to_us && open.length_us() == 0 => before.bytes += bytes,
            _ => {
                open.bytes += bytes;
                open.to_us = open.to_us.max(sample.at_us);
            }
        }
        if open.length_us() >= SHORTEST_US {
            found.push(open);
            open = ByteInterval { from_us: open.to_us, to_us: open.to_us, bytes: 0 };
        }
    }
    if open.length_us() > 0 {
        match found.last_mut() {
            Some(before) => *before = ByteInterval::whole(&[*before, open]),
            None => found.push(open),
        }
    }
    found
}

/// The intervals from the first byte on, merged where bytes arrive in pieces that are further apart than samples.
fn merged_by_arrivals(intervals: Vec<ByteInterval>) -> Vec<ByteInterval> {
    let Some(lead) = intervals.iter().position(|interval| interval.bytes > 0) else { return intervals };
    let gap = usual_gap(&intervals);
    // If the first byte did not arrive at the start of its interval, that interval has no valid rate.
    let first = if gap == 1 && lead == 0 { 0 } else { lead + 1 };
    let mut rest = intervals.get(first..).unwrap_or_default();
    if rest.iter().all(|interval| interval.bytes == 0) {
        return intervals[lead..].to_vec();
    }
    if gap == 1 {
        return rest.to_vec();
    }
    // At the end, the next piece may be in flight. A longer silence is part of the result.
    let last = rest.iter().rposition(|interval| interval.bytes > 0).unwrap_or_default();
    if rest.len() - last <= 2 * gap {
        rest = &rest[..=last];
    }
    let most = (rest.len() / INTERVALS_FOR_START_UP).max(gap);
    let least = (PIECES * gap).min(most);
    let (mut merged, mut from) = (Vec::new(), 0);
    for (at, interval) in rest.iter().enumerate() {
        if at + 1 - from >= least && interval.bytes > 0 {
            merged.push(ByteInterval::whole(&rest[from..=at]));
            from = at + 1;
        }
    }
    if let Some(left) = rest.get(from..).filter(|left| !left.is_empty()) {
        let left = ByteInterval::whole(left);
        match merged.last_mut() {
            Some(before) => *before = ByteInterval::whole(&[*before, left]),
            None => merged.push(left),
        }
    }
    merged
}

/// The distance between an interval with bytes and the next one that is not exceeded in nine of ten cases in the second
/// half; 1 if every interval has bytes. A single outage does not count.
fn usual_gap(intervals: &[ByteInterval]) -> usize {
    let half = &intervals[intervals.len() / 2..];
    let with_bytes = half.iter().enumerate().filter(|(_, interval)| interval.bytes > 0).map(|(at, _)| at);
    let with_bytes = with_bytes.collect::<Vec<_>>();
    let mut gaps = with_bytes.windows(2).map(|pair| pair[1] - pair[0]).collect::<Vec<_>>();
    gaps.sort_unstable();
    percentile(&gaps, 900).unwrap_or(1)
}

/// The first interval of the steady part, and whether it was found.
fn end_of_start_up(intervals: &[ByteInterval]) -> (usize, bool) {
    if intervals.len() < INTERVALS_FOR_START_UP {
        return (0, false);
    }
    let half = intervals.len() / 2;
    let mut rest: Vec<f64> = intervals[half..].iter().map(ByteInterval::rate).collect();
    rest.sort_unstable_by(f64::total_cmp);
    // The rest is not empty, so each percentile exists; 0 would only widen the band.
    let of = |per_mille| percentile(&rest, per_mille).unwrap_or(0.0);
    let slack = of(500) * BAND_SLACK;
    let band = of(100) - slack..=of(900) + slack;
    let settled = |at: &usize| intervals[*at..*at + SETTLED].iter().all(|interval| band.contains(&interval.rate()));
    match (0..half).find(settled) {
        Some(first) => (first, true),
        None => (half, false),
    }
}

/// The confidence interval of the mean over `steady` by batch means.
fn confidence(steady: &[ByteInterval], whole: &ByteInterval) -> Option<[u64; 2]> {
    if steady.len() < 2 * BATCHES {
        return None;
    }
    let bounds = |batch: usize| batch * steady.len() / BATCHES;
    let means: [f64; BATCHES] =
        std::array::from_fn(|batch| ByteInterval::whole(&steady[bounds(batch)..bounds(batch + 1)]).rate());
    let centre = means.iter().sum::<f64>() / BATCHES as f64;
    let squares: f64 = means.iter().map(|mean| (mean - centre).powi(2)).sum();
    let neighbours: f64 = means.windows(2).map(|pair| (pair[0] - centre) * (pair[1] - centre)).sum();
    // The estimate of the correlation from so few means is too low by about one part in their number.
    let correlation = if squares > 0.0 { neighbours / squares + 1.0 / BATCHES as f64 } else { 0.0 };
    let correlation = correlation.clamp(0.0, MOST_CORRELATED);
    let variance = squares / (BATCHES - 1) as f64 * (1.0 + correlation) / (1.0 - correlation);
    let reach = T_95 * (variance / BATCHES as f64).sqrt();
    // Casts from f64 saturate, and a rate is never below 0.
    Some([(whole.rate() - reach).round().max(0.0) as u64, (whole.rate() + reach).round() as u64])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TEN_SECONDS: Duration = Duration::from_secs(10);

    /// One sample every 100 ms.
    fn samples(bytes: impl IntoIterator<Item = u64>) -> Vec<Sample> {
        bytes.into_iter().enumerate().map(|(i, bytes)| Sample { at_us: (i as u64 + 1) * 100_000, bytes }).collect()
    }

    /// Reproducible noise in -1..1.
    struct Noise(u64);

    impl Noise {
        fn next(&mut self) -> f64 {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 11) as f64 / (1u64 << 52) as f64 - 1.0
        }
    }

    #[test]
    fn a_constant_rate_is_reported_exactly() {
        let t = throughput(&samples([1_250_000; 100]), None, TEN_SECONDS).unwrap();
        assert_eq!(t.goodput_bps, 100_000_000);
        assert_eq!(t.ci95_bps, Some([100_000_000; 2]));
        assert_eq!((t.p10, t.p50, t.p90), (100_000_000, 100_000_000, 100_000_000));
        assert_eq!((t.bytes, t.steady), (125_000_000, TEN_SECONDS));
        assert_eq!((t.startup, t.startup_found), (Duration::ZERO, true));
    }

    #[test]
    fn a_slow_start_is_found_and_excluded() {
        let mut noise = Noise(7);
        let ramp = |i: u64| (1_000_000u64 << i.min(8)) / 256;
        let noisy = samples((0..100).map(|i| (ramp(i) as f64 * (1.0 + 0.02 * noise.next())) as u64));
        let t = throughput(&noisy, None, TEN_SECONDS).unwrap();
        assert!(t.startup_found);
        assert_eq!(t.startup, Duration::from_millis(800));
        assert!(t.goodput_bps.abs_diff(80_000_000) < 400_000, "{}", t.goodput_bps);
    }

    #[test]
    fn a_burst_before_the_shaper_engages_is_start_up_too() {
        let t = throughput(&samples((0..100).map(|i| if i < 12 { 5_000_000 } else { 1_000_000 })), None, TEN_SECONDS);
        let t = t.unwrap();
        assert_eq!((t.startup, t.goodput_bps), (Duration::from_millis(1200), 80_000_000));
    }

    #[test]
    fn a_dip_in_the_middle_is_part_of_the_result() {
        let dip = samples((0..100).map(|i| if (20..40).contains(&i) { 0 } else { 1_000_000 }));
        let t = throughput(&dip, None, TEN_SECONDS).unwrap();
        assert_eq!((t.startup, t.goodput_bps), (Duration::ZERO, 64_000_000));
        assert_eq!(t.p10, 0);
    }

    #[test]
    fn for_a_rate_that_never_settles_the_first_half_is_excluded() {
        let t = throughput(&samples((0..100).map(|i| (i + 1) * (i + 1) * 100)), None, TEN_SECONDS).unwrap();
        assert_eq!((t.startup, t.startup_found), (Duration::from_secs(5), false));
    }

    /// 1 Mbit/s in TLS records of 16 KiB, the first after `lead_ms`.
    fn in_records(lead_ms: u64, phase_ms: u64) -> Vec<Sample> {
        let arrived = |ms: u64| (ms.saturating_sub(lead_ms) * 125 / 16_384) * 16_384;
        samples((1..=phase_ms / 100).map(|at| arrived(at * 100) - arrived((at - 1) * 100)))
    }

    #[test]
    fn a_slow_line_whose_bytes_arrive_in_pieces_begins_with_its_first_byte() {
        for (lead_ms, phase_ms) in [(0, 10_000), (240, 10_000), (240, 5_000), (1700, 8_000), (360, 3_000)] {
            let samples = in_records(lead_ms, phase_ms);
            let t = throughput(&samples, None, Duration::from_millis(phase_ms)).unwrap();
            let first_us = samples.iter().find(|sample| sample.bytes > 0).unwrap().at_us;
            assert!(t.startup.as_micros() >= u128::from(first_us), "{lead_ms}: {t:?}");
            // Samples are 100 ms apart, so each bound of the steady part is uncertain by as much.
            let off = (t.goodput_bps as f64 / 1e6 - 1.0).abs();
            assert!(off <= 0.11 / t.steady.as_secs_f64() && t.p10 > 0, "{lead_ms}: {t:?}");
        }
    }

    #[test]
    fn a_datagram_each_second_is_a_rate_too() {
        let samples = samples((1..=100).map(|at| if at % 10 == 3 { 1000 } else { 0 }));
        let t = throughput(&samples, None, TEN_SECONDS).unwrap();
        assert_eq!((t.goodput_bps, t.startup, t.p10), (8_000, Duration::from_millis(300), 8_000));
    }

    #[test]
    fn a_path_that_dies_is_not_a_line_in_pieces() {
        let t = throughput(&samples((0..100).map(|i| if i < 80 { 1_000_000 } else { 0 })), None, TEN_SECONDS).unwrap();
        assert_eq!((t.goodput_bps, t.startup, t.p10), (64_000_000, Duration::ZERO, 0));
        let pieces = samples((0..100).map(|i| if i < 70 && i % 3 == 0 { 1_000_000 } else { 0 }));
        let t = throughput(&pieces, None, TEN_SECONDS).unwrap();
        assert_eq!((t.bytes, t.steady), (23_000_000, Duration::from_millis(9_900)), "its silence counts");
    }

    #[test]
    fn nothing_before_the_first_byte_is_steady() {
        let late = samples((0..100).map(|i| if i < 4 { 0 } else { 1_000_000 }));
        let t = throughput(&late, None, TEN_SECONDS).unwrap();
        assert_eq!((t.startup, t.goodput_bps, t.startup_found), (Duration::from_millis(500), 80_000_000, true));
        let once = samples((0..10).map(|i| if i == 9 { 1000 } else { 0 }));
        assert_eq!(throughput(&once, None, Duration::from_secs(1)).unwrap().bytes, 1000);
    }

    #[test]
    fn a_requested_start_up_is_excluded_as_requested() {
        let rising = samples((0..100).map(|i| if i < 50 { 1000 } else { 2000 }));
        let omit = |ms| throughput(&rising, Some(Duration::from_millis(ms)), TEN_SECONDS);
        let t = omit(5000).unwrap();
        assert_eq!((t.goodput_bps, t.startup, t.startup_found), (160_000, Duration::from_secs(5), false));
        assert_eq!(omit(0).unwrap().goodput_bps, 120_000);
        assert_eq!(omit(4950).unwrap().startup, Duration::from_secs(5));
        assert_eq!(omit(10_000), None);
        assert_eq!(throughput(&rising, Some(Duration::MAX), TEN_SECONDS), None);
    }

    #[test]
    fn samples_after_the_span_are_the_drain() {
        let t = throughput(&samples((0..130).map(|i| if i < 100 { 1000 } else { 9 })), None, TEN_SECONDS).unwrap();
        assert!(t.steady <= Duration::from_millis(10_100));
        assert!(t.goodput_bps > 79_000);
    }

    #[test]
    fn a_short_last_interval_counts_with_its_neighbour() {
        let mut uneven = samples([1000; 20]);
        uneven.push(Sample { at_us: 2_000_100, bytes: 1 });
        let t = throughput(&uneven, None, Duration::from_secs(2)).unwrap();
        assert_eq!((t.bytes, t.goodput_bps, t.p50), (20_001, 80_000, 80_000));
    }

    #[test]
    fn a_short_run_has_no_confidence_interval() {
        assert_eq!(throughput(&[], None, TEN_SECONDS), None);
        assert_eq!(throughput(&[Sample { at_us: 0, bytes: 5 }], None, TEN_SECONDS), None);
        let t = throughput(&samples([500]), None, TEN_SECONDS).unwrap();
        assert_eq!((t.goodput_bps, t.ci95_bps, t.startup_found), (40_000, None, false));
    }

    /// How often, in 400 runs, the interval contains the true mean; samples follow `x' = phi x + noise`.
    fn coverage(phi: f64) -> f64 {
        let mut noise = Noise(42);
        let runs = 400;
        let held = (0..runs).filter(|_| {
            let mut state = 0.0;
            let mut reading = || {
                state = phi * state + noise.next();
                (1_000_000.0 + 20_000.0 * state) as u64
            };
            (0..50).for_each(|_| _ = reading());
            let readings = samples((0..100).map(|_| reading()));
            let [low, high] = throughput(&readings, Some(Duration::ZERO), TEN_SECONDS).unwrap().ci95_bps.unwrap();
            (low..=high).contains(&80_000_000)
        });
        held.count() as f64 / f64::from(runs)
    }

    #[test]
    fn the_confidence_interval_contains_the_true_mean_as_often_as_stated() {
        assert!((0.93..=0.995).contains(&coverage(0.0)), "{}", coverage(0.0));
    }

    #[test]
    fn correlated_samples_widen_the_interval() {
        assert!((0.93..=0.97).contains(&coverage(0.5)), "{}", coverage(0.5));
        // If samples are correlated for longer than a second, ten seconds hold too few independent ones.
        assert!(coverage(0.8) >= 0.89, "{}", coverage(0.8));
    }

    proptest! {
        #[test]
        fn twice_the_bytes_are_twice_the_rate(bytes in prop::collection::vec(0u64..1 << 40, 1..150), factor in 2u64..1000) {
            let scaled: Vec<u64> = bytes.iter().map(|b| b * factor).collect();
            let span = Duration::from_secs(20);
            let (one, many) = (throughput(&samples(bytes), None, span), throughput(&samples(scaled), None, span));
            let (one, many) = (one.unwrap(), many.unwrap());
            prop_assert_eq!(one.startup, many.startup);
            prop_assert_eq!(one.bytes * factor, many.bytes);
            // Each side rounds by half a bit per second at most.
            prop_assert!((one.goodput_bps * factor).abs_diff(many.goodput_bps) <= factor);
        }

        #[test]
        fn no_reading_panics(
            readings in prop::collection::vec((prop_oneof![any::<u64>(), 0u64..2_000_000], any::<u64>()), 0..60),
            omit: Option<Duration>,
            span: Duration,
        ) {
            let samples: Vec<Sample> = readings.iter().map(|(at_us, bytes)| Sample { at_us: *at_us, bytes: *bytes }).collect();
            if let Some(t) = throughput(&samples, omit, span) {
                prop_assert!(t.p10 <= t.p50 && t.p50 <= t.p90);
                prop_assert!(t.ci95_bps.is_none_or(|[low, high]| low <= high));
            }
        }

        #[test]
        fn the_intervals_keep_the_sum_of_bytes(mut at in prop::collection::vec(1u64..10_000_000, 1..100), bytes in 0u64..1 << 40) {
            at.sort_unstable();
            let samples: Vec<Sample> = at.iter().map(|at_us| Sample { at_us: *at_us, bytes }).collect();
            let t = throughput(&samples, Some(Duration::ZERO), TEN_SECONDS).unwrap();
            prop_assert_eq!(t.bytes, bytes * at.len() as u64);
            prop_assert_eq!(t.steady.as_micros(), u128::from(*at.last().unwrap()));
        }
    }
}
