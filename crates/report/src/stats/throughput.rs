//! Computes goodput from samples: the mean rate over the steady part, and its confidence interval. Pure: no I/O, no
//! clock.

use std::time::Duration;

use paramedic_link::measurement::Sample;

use super::byte_intervals::{ByteInterval, between_first_and_last_byte, intervals, merged, usual_gap};
use super::latency::percentile;
use super::mean_interval::{Confidence, mean_interval};
use super::startup::end_of_start_up;

/// The throughput of one direction of a phase, as the receiver counted it, in the steady part only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Throughput {
    /// The mean payload rate in bits per second: bytes divided by time, without corrections.
    pub goodput_bps: u64,
    /// The 95 % confidence interval of the mean, in bits per second. Absent if the phase is shorter than 5 s, or if its
    /// steady part is shorter than 4 s or has fewer than two intervals.
    pub ci95_bps: Option<[u64; 2]>,
    /// The 10th percentile of the rates in the single intervals, in bits per second.
    pub p10: u64,
    /// The median of the rates in the single intervals, in bits per second.
    pub p50: u64,
    /// The 90th percentile of the rates in the single intervals, in bits per second.
    pub p90: u64,
    /// The payload bytes that arrived in the steady part.
    pub bytes: u64,
    /// The duration of the steady part.
    pub steady: Duration,
    /// The duration of the excluded start-up.
    pub startup: Duration,
    /// Whether the samples show the end of the start-up. False if the request fixed the length of the start-up, or if
    /// the run is too short. Also false if the rate had not settled by the middle of the run: then the first half is
    /// excluded.
    pub startup_found: bool,
}

/// Computes the throughput of one direction in a phase of the duration `span`. `None` if no sample is left after the
/// start-up is excluded. Ignores samples that are later than one interval after the end of `span`.
///
/// If `requested_omit` is set, the intervals that begin before that time are excluded. Otherwise the start-up is
/// detected, and the steady part never begins before the first byte.
///
/// On some lines bytes arrive in clumps that are further apart than two samples: TLS records of 16 KiB, datagrams, all
/// bytes behind a lost packet. There, samples are merged until each interval holds several clumps. Percentiles and the
/// confidence interval use these intervals.
pub fn throughput(samples: &[Sample], requested_omit: Option<Duration>, span: Duration) -> Option<Throughput> {
    throughput_with(samples, requested_omit, span, Confidence::Single)
}

/// Does the same as [`throughput`], but with a confidence interval of the level `confidence`.
pub fn throughput_with(
    samples: &[Sample],
    requested_omit: Option<Duration>,
    span: Duration,
    confidence: Confidence,
) -> Option<Throughput> {
    let all = intervals(samples, span);
    let gap = usual_gap(&all);
    let (steady, startup_found) = match requested_omit {
        Some(omit) => {
            let omit_us = omit.as_micros();
            let first = all.iter().position(|interval| u128::from(interval.from_us) >= omit_us)?;
            (merged(&all[first..], gap), false)
        }
        None => {
            let mut all = merged(between_first_and_last_byte(&all), gap);
            let (first, is_found) = end_of_start_up(&all);
            all.drain(..first);
            (all, is_found)
        }
    };
    let last = steady.last()?;
    let mut rates: Vec<u64> = steady.iter().map(ByteInterval::bps).collect();
    rates.sort_unstable();
    let whole = ByteInterval::whole(&steady);
    Some(Throughput {
        goodput_bps: whole.bps(),
        ci95_bps: mean_interval(&steady, &whole, Duration::from_micros(last.to_us), confidence),
        p10: percentile(&rates, 100)?,
        p50: percentile(&rates, 500)?,
        p90: percentile(&rates, 900)?,
        bytes: u64::try_from(whole.bytes).unwrap_or(u64::MAX),
        steady: Duration::from_micros(whole.length_us()),
        startup: Duration::from_micros(whole.from_us),
        startup_found,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TEN_SECONDS: Duration = Duration::from_secs(10);

    /// A sample every 100 ms. `bytes` has the byte count of each sample.
    fn samples(bytes: impl IntoIterator<Item = u64>) -> Vec<Sample> {
        bytes.into_iter().enumerate().map(|(i, bytes)| Sample { at_us: (i as u64 + 1) * 100_000, bytes }).collect()
    }

    /// A generator of reproducible noise from -1 to 1.
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

    /// The samples of a phase of `phase_ms`, in which 1 Mbit/s arrives in TLS records of 16 KiB. Nothing is sent before
    /// `lead_ms`.
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
            // Samples are 100 ms apart, so each bound of the steady part is uncertain by 100 ms.
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

    #[test]
    fn below_five_seconds_no_interval_is_claimed() {
        let of = |tenths: u64, omit| {
            let span = Duration::from_millis(tenths * 100);
            throughput(&samples((0..tenths).map(|i| 1_000_000 + i % 3)), omit, span).unwrap().ci95_bps.is_some()
        };
        assert_eq!([20, 49, 50, 100].map(|tenths| of(tenths, None)), [false, false, true, true]);
        let omit = |ms| Some(Duration::from_millis(ms));
        assert!(of(50, omit(1000)) && !of(50, omit(1100)), "4 s must be left");
        assert!(of(100, omit(6000)) && !of(100, omit(7000)));
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
