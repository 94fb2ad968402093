//! Tests the detection of the start-up on simulated paths with rates from 0.5 Mbit/s to 1 Gbit/s and round trips from 0
//! to 300 ms. The rate after the detected start-up must be the rate of the path.

mod series;

use std::time::Duration;

use paramedic_link::measurement::Sample;
use paramedic_report::stats::{Throughput, throughput};
use series::Random;

const MBIT: [f64; 5] = [0.5, 5.0, 50.0, 300.0, 1000.0];
const RTT_MS: [f64; 5] = [0.0, 5.0, 40.0, 120.0, 300.0];
const SEGMENT: f64 = 1448.0;
/// The bytes that four streams send in their first round trip: Linux begins with a window of ten segments.
const FIRST_WINDOW: f64 = 4.0 * 10.0 * SEGMENT;

/// The samples, one every 100 ms, of a path that carries `bytes_per_ms` (a function of the time in ms) for `ms`
/// milliseconds. Bytes arrive only in whole pieces of `piece` bytes.
fn readings(ms: u32, piece: f64, bytes_per_ms: impl Fn(f64) -> f64) -> Vec<Sample> {
    let (mut arrived, mut counted, mut samples) = (0.0, 0.0, Vec::new());
    for at in 0..ms {
        arrived += bytes_per_ms(f64::from(at));
        if (at + 1) % 100 == 0 {
            let now = (arrived / piece).floor() * piece;
            samples.push(Sample { at_us: u64::from(at + 1) * 1000, bytes: (now - counted) as u64 });
            counted = now;
        }
    }
    samples
}

/// The rate of slow start at the time `ms`, up to the rate `bottleneck`, both in bytes per ms.
fn slow_start(ms: f64, rtt_ms: f64, bottleneck: f64) -> f64 {
    if ms < rtt_ms {
        return 0.0;
    }
    if rtt_ms == 0.0 {
        return bottleneck;
    }
    (FIRST_WINDOW / rtt_ms * 2f64.powf((ms - rtt_ms) / rtt_ms)).min(bottleneck)
}

/// When slow start reaches the bottleneck, in ms.
fn ramp_ms(rtt_ms: f64, bottleneck: f64) -> f64 {
    if rtt_ms == 0.0 { 0.0 } else { rtt_ms * (1.0 + (bottleneck * rtt_ms / FIRST_WINDOW).log2().max(0.0)) }
}

fn measure(samples: &[Sample], ms: u32) -> Throughput {
    throughput(samples, None, Duration::from_millis(ms.into())).unwrap()
}

fn assert_close(measured: &Throughput, mbit: f64, share: f64, what: &str) {
    let off = measured.goodput_bps as f64 / (mbit * 1e6) - 1.0;
    assert!(off.abs() <= share, "{what}: off by {:.2} %: {measured:?}", 100.0 * off);
}

/// Calls `check` for every path: with its rate in Mbit/s, its round trip in ms, and the duration of the run in ms.
fn each_path(mut check: impl FnMut(f64, f64, u32)) {
    for mbit in MBIT {
        for rtt_ms in RTT_MS {
            for ms in [5_000, 10_000] {
                check(mbit, rtt_ms, ms);
            }
        }
    }
}

#[test]
fn slow_start_is_left_out_on_every_path() {
    each_path(|mbit, rtt_ms, ms| {
        let bottleneck = mbit * 125.0;
        let samples = readings(ms, SEGMENT, |at| slow_start(at, rtt_ms, bottleneck));
        let measured = measure(&samples, ms);
        let what = format!("{mbit} Mbit/s, {rtt_ms} ms, {ms} ms");
        let ramp_ms = ramp_ms(rtt_ms, bottleneck);
        if ramp_ms > f64::from(ms) / 2.0 - 100.0 {
            if measured.startup_found {
                assert_close(&measured, mbit, 0.01, &what);
            }
            return;
        }
        assert!(measured.startup_found, "{what}: {measured:?}");
        // Samples are 100 ms apart, so a bound of the steady part cuts a segment.
        assert_close(&measured, mbit, 0.01, &what);
        let startup_ms = measured.startup.as_millis() as f64;
        assert!(startup_ms <= ramp_ms + 500.0, "{what}: {startup_ms} ms for {ramp_ms} ms");
    });
}

#[test]
fn records_of_four_streams_that_arrive_together_have_a_rate() {
    // A TLS record can be read when it is whole, and those of four streams on one path are whole at about the same time.
    each_path(|mbit, rtt_ms, ms| {
        let bottleneck = mbit * 125.0;
        let samples = readings(ms, 4.0 * 16_384.0, |at| slow_start(at, rtt_ms, bottleneck));
        let measured = measure(&samples, ms);
        let what = format!("{mbit} Mbit/s, {rtt_ms} ms, {ms} ms");
        if ramp_ms(rtt_ms, bottleneck) > f64::from(ms) / 2.0 - 100.0 {
            return;
        }
        let clump = 65_536.0 / (bottleneck * 1000.0 * measured.steady.as_secs_f64());
        assert_close(&measured, mbit, 0.01 + clump, &what);
        assert!(measured.p10 > 0 && measured.startup.as_millis() as f64 + 100.0 >= rtt_ms, "{what}: {measured:?}");
    });
}

#[test]
fn the_burst_of_a_policer_is_left_out() {
    for mbit in MBIT {
        for (burst_ms, silence_ms, ms) in
            [(200.0, 0.0, 5_000), (1_000.0, 0.0, 5_000), (1_000.0, 500.0, 10_000), (3_000.0, 300.0, 10_000)]
        {
            // What follows the burst is a sawtooth of a tenth around the rate.
            let rate = |at: f64| 1.0 + 0.1 * ((at / 700.0).fract() - 0.5);
            let samples = readings(ms, SEGMENT, |at| {
                let factor = match at {
                    _ if at < burst_ms => 5.0,
                    _ if at < burst_ms + silence_ms => 0.0,
                    _ => rate(at),
                };
                mbit * 125.0 * factor
            });
            let what = format!("{mbit} Mbit/s, burst of {burst_ms} ms, silent for {silence_ms} ms");
            let measured = measure(&samples, ms);
            assert!(measured.startup_found, "{what}: {measured:?}");
            assert_close(&measured, mbit, 0.02, &what);
        }
    }
}

#[test]
fn slow_start_on_a_bursty_line_is_left_out() {
    // A radio that sends every other time, or as much as it can by chance.
    for mbit in [5.0, 50.0, 300.0] {
        for rtt_ms in [5.0, 40.0, 120.0] {
            let bottleneck = mbit * 125.0;
            let on_off = |at: f64| if (at / 200.0).fract() < 0.5 { 2.0 } else { 0.0 };
            let samples = readings(10_000, SEGMENT, |at| slow_start(at, rtt_ms, bottleneck) * on_off(at));
            let what = format!("{mbit} Mbit/s, {rtt_ms} ms");
            assert_close(&measure(&samples, 10_000), mbit, 0.02, &format!("{what}, every other 100 ms"));

            let mut total = 0.0;
            let mut random = Random::new(3);
            const RUNS: u32 = 40;
            for _ in 0..RUNS {
                let by_chance = (0..100).map(|_| random.between(0.2, 1.8)).collect::<Vec<_>>();
                let part = |at: f64| by_chance[at as usize / 100];
                let samples = readings(10_000, SEGMENT, |at| slow_start(at, rtt_ms, bottleneck) * part(at));
                total += measure(&samples, 10_000).goodput_bps as f64 / f64::from(RUNS);
            }
            let off = total / (mbit * 1e6) - 1.0;
            assert!(off.abs() < 0.03, "{what}, by chance: off by {:.2} %", 100.0 * off);
        }
    }
}

#[test]
fn a_slow_start_that_lasts_beyond_the_middle_is_not_called_steady() {
    // 1 Gbit/s at 300 ms in 4 s, and at 400 ms in 5 s.
    for (rtt_ms, ms) in [(300.0, 4_000), (400.0, 5_000)] {
        let samples = readings(ms, SEGMENT, |at| slow_start(at, rtt_ms, 125_000.0));
        let measured = measure(&samples, ms);
        assert!(!measured.startup_found && measured.startup.as_millis() >= u128::from(ms) / 2, "{measured:?}");
    }
}

#[test]
fn bytes_behind_a_lost_packet_do_not_make_silent_intervals() {
    // Tunneled on a slow, long path: the line carries 1 Mbit/s all the time, and each loss holds back half a second.
    for (every_ms, held_ms) in [(2_500, 500), (1_700, 400), (1_200, 300)] {
        let line = |ms: u32| f64::from(ms) * 125.0;
        let arrived = |ms: u32| match ms % every_ms {
            since if ms > 1_000 && since < held_ms => line(ms - since),
            _ => line(ms),
        };
        let mut samples = vec![];
        for at in 1..=100 {
            let bytes = (arrived(at * 100) - arrived((at - 1) * 100)) as u64;
            samples.push(Sample { at_us: u64::from(at) * 100_000, bytes });
        }
        assert!(samples.iter().filter(|sample| sample.bytes == 0).count() >= 10);
        let measured = measure(&samples, 10_000);
        assert!(measured.p10 > 400_000 && measured.p90 < 1_600_000, "{every_ms}: {measured:?}");
        assert_close(&measured, 1.0, 0.06, &format!("a loss each {every_ms} ms"));
        let [low, high] = measured.ci95_bps.unwrap();
        assert!((low..=high).contains(&1_000_000), "{every_ms}: {measured:?}");
        // The same with a fixed start-up.
        let fixed = throughput(&samples, Some(Duration::from_secs(1)), Duration::from_secs(10)).unwrap();
        assert!(fixed.p10 > 400_000, "{every_ms}: {fixed:?}");
    }
}

#[test]
fn a_line_that_stops_and_goes_has_silent_intervals() {
    let samples = readings(10_000, SEGMENT, |at| if (at / 1_000.0).fract() < 0.5 { 12_500.0 } else { 0.0 });
    let measured = measure(&samples, 10_000);
    assert_eq!(measured.p10, 0, "{measured:?}");
}
