//! Decides whether a direction may end early. The rate and the latency are checked at three fixed times (looks). Pure:
//! no I/O, no clock.

use std::time::Duration;

use paramedic_link::measurement::Sample;

use super::mean_interval::{Confidence, LEAST_STEADY};
use super::steadiness::thirds;
use super::throughput::throughput_with;

/// The times at which a direction may end early. There are only three, because each further look is another chance to
/// stop at a confidence interval that is narrow by accident. More looks would require wider intervals at each look.
pub const LOOKS: [Duration; 3] = [Duration::from_millis(5_000), Duration::from_millis(6_500), Duration::from_secs(8)];
/// A direction ends early only if the confidence interval of its rate extends at most this fraction of the mean to
/// either side.
const WIDEST_REACH: f64 = 0.02;
/// A direction ends early only if the rates of the first and the last third of its steady part differ by less than this
/// fraction.
const MOST_DRIFT: f64 = 0.02;
/// A direction does not end early if its start-up took more than 1/5 of the time: the line may have changed its rate.
const LONG_START_UP: u32 = 5;
/// If an interval of the start-up is faster than the steady part by more than this factor, the start-up was a burst and
/// not a ramp-up.
const FASTER: f64 = 1.2;
/// The samples of a phase may arrive this much too early or too late.
const SAMPLE_SLACK: Duration = Duration::from_millis(50);
/// The median round trip under load counts as stable if it changes by at most 1/10, or by at most [`LATENCY_CHANGE_US`]
/// if that is more.
const LATENCY_PART: u32 = 10;
/// The median round trip under load always counts as stable if it changes by at most this time, in microseconds.
const LATENCY_CHANGE_US: u32 = 3_000;

/// Why a direction may not end early at a look, one of the times in [`LOOKS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unstable {
    /// The steady part is shorter than 4 s, or too short for a confidence interval.
    Short,
    /// The start-up was not found, took long, or was a burst.
    StartUp,
    /// The confidence interval of the mean rate is too wide.
    Unsure,
    /// The first and the last third of the steady part differ too much.
    Drifts,
    /// The median round trip under load is unknown, or still changes.
    Latency,
}

/// Checks whether the rate of a direction is stable at the time `look`, from the samples up to that time.
/// `requested_omit` is the length of the start-up that the request excludes; `None` to detect the start-up.
pub fn check_rate(samples: &[Sample], requested_omit: Option<Duration>, look: Duration) -> Result<(), Unstable> {
    let confidence = Confidence::OneOfThreeLooks;
    let measured = throughput_with(samples, requested_omit, look, confidence).ok_or(Unstable::Short)?;
    let interval = measured.ci95_bps.filter(|_| measured.goodput_bps > 0);
    if measured.steady + SAMPLE_SLACK < LEAST_STEADY {
        return Err(Unstable::Short);
    }
    let is_ramp = measured.startup_found
        && measured.startup * LONG_START_UP <= look + SAMPLE_SLACK
        && !has_burst(samples, measured.startup, measured.goodput_bps);
    if requested_omit.is_none() && !is_ramp {
        return Err(Unstable::StartUp);
    }
    let [low, high] = interval.ok_or(Unstable::Short)?;
    if high.saturating_sub(low) as f64 > 2.0 * WIDEST_REACH * measured.goodput_bps as f64 {
        return Err(Unstable::Unsure);
    }
    let thirds = thirds(samples, measured.startup, measured.startup + measured.steady);
    let is_level =
        thirds.is_some_and(|[first, last]| (first.abs_diff(last) as f64) < MOST_DRIFT * first.max(last) as f64);
    if is_level { Ok(()) } else { Err(Unstable::Drifts) }
}

/// Checks whether the median round trip has stopped changing. `before` and `last` are the medians, in microseconds, of
/// two adjacent periods of two seconds, of which `last` is the later one. An unknown median counts as unstable.
pub fn check_latency(before: Option<u32>, last: Option<u32>) -> Result<(), Unstable> {
    let (before, last) = before.zip(last).ok_or(Unstable::Latency)?;
    let most = LATENCY_CHANGE_US.max(before / LATENCY_PART);
    if before.abs_diff(last) <= most { Ok(()) } else { Err(Unstable::Latency) }
}

/// Whether the excluded start-up was faster than the steady part (`goodput_bps`): in total, or clearly in one interval.
fn has_burst(samples: &[Sample], startup: Duration, goodput_bps: u64) -> bool {
    let startup_us = u64::try_from(startup.as_micros()).unwrap_or(u64::MAX);
    let begins = std::iter::once(0).chain(samples.iter().map(|sample| sample.at_us));
    let excluded = begins.zip(samples).filter(|(_, sample)| sample.at_us <= startup_us);
    let (mut is_faster, mut bytes) = (false, 0.0);
    for (begin, sample) in excluded {
        let bits = sample.bytes as f64 * 8e6;
        bytes += bits;
        is_faster |= bits > FASTER * goodput_bps as f64 * sample.at_us.saturating_sub(begin) as f64;
    }
    is_faster || bytes > goodput_bps as f64 * startup_us as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A sample every 100 ms. `kbit` takes the start of a sample's interval in ms and returns its rate in kbit/s.
    fn readings(kbit: impl Fn(u64) -> u64) -> Vec<Sample> {
        (1..=100).map(|at| Sample { at_us: at * 100_000, bytes: kbit((at - 1) * 100) * 25 / 2 }).collect()
    }

    fn looks(samples: &[Sample]) -> [Result<(), Unstable>; 3] {
        LOOKS.map(|look| {
            let until_us = look.as_micros() as u64;
            let so_far = samples.iter().copied().filter(|sample| sample.at_us <= until_us).collect::<Vec<_>>();
            check_rate(&so_far, None, look)
        })
    }

    /// A rate in kbit/s that alternates around 100 Mbit/s by `per_mille` thousandths, from one interval to the next.
    fn noisy(ms: u64, per_mille: u64) -> u64 {
        if (ms / 100).is_multiple_of(2) { 100_000 + 100 * per_mille } else { 100_000 - 100 * per_mille }
    }

    #[test]
    fn each_condition_keeps_a_direction_from_ending() {
        use Unstable::{Drifts, Short, StartUp, Unsure};
        const OK: Result<(), Unstable> = Ok(());
        type Row = (&'static str, fn(u64) -> u64, [Result<(), Unstable>; 3]);
        let table: &[Row] = &[
            ("constant", |_| 100_000, [OK; 3]),
            ("a little noise", |ms| noisy(ms, 10), [OK; 3]),
            ("a short slow start", |ms| if ms < 600 { 10_000 << (ms / 200) } else { 100_000 }, [OK; 3]),
            ("a slow start of 1.2 s", |ms| if ms < 1200 { 10_000 } else { 100_000 }, [Err(Short), OK, OK]),
            (
                "a rate that rose at 2 s",
                |ms| if ms < 2000 { 50_000 } else { 100_000 },
                [Err(Short), Err(StartUp), Err(StartUp)],
            ),
            (
                "a rate that fell at 2 s",
                |ms| if ms < 2000 { 150_000 } else { 100_000 },
                [Err(Short), Err(StartUp), Err(StartUp)],
            ),
            ("a rate that fell at 4.5 s", |ms| if ms < 4500 { 100_000 } else { 80_000 }, [Err(Unsure); 3]),
            ("a burst of 0.5 s", |ms| if ms < 500 { 400_000 } else { 100_000 }, [Err(StartUp); 3]),
            ("a rate that never settles", |ms| 20_000 + ms * 20, [Err(Short), Err(Short), Err(StartUp)]),
            (
                "two states of a second",
                |ms| if (ms / 1000).is_multiple_of(2) { 100_000 } else { 50_000 },
                [Err(Unsure); 3],
            ),
            ("a drift of 1 % a second", |ms| 100_000 + ms, [Err(Drifts); 3]),
            ("nothing", |_| 0, [Err(Short); 3]),
        ];
        for (name, rate, expected) in table {
            let found = looks(&readings(rate));
            for (found, expected) in found.iter().zip(expected) {
                assert_eq!(found.is_ok(), expected.is_ok(), "{name}: {found:?} {expected:?}");
            }
        }
        assert_eq!(looks(&readings(|_| 0))[0], Err(Short));
        assert_eq!(looks(&readings(|ms| if ms < 500 { 400_000 } else { 100_000 }))[0], Err(StartUp));
        assert_eq!(looks(&readings(|ms| if ms < 1200 { 10_000 } else { 100_000 }))[0], Err(Short));
    }

    #[test]
    fn a_requested_start_up_is_not_judged() {
        let burst = readings(|ms| if ms < 500 { 400_000 } else { 100_000 });
        let omit = |ms| Some(Duration::from_millis(ms));
        assert_eq!(check_rate(&burst[..50], omit(1000), LOOKS[0]), Ok(()));
        assert_eq!(check_rate(&burst[..50], omit(1500), LOOKS[0]), Err(Unstable::Short));
    }

    #[test]
    fn the_latency_must_have_settled() {
        let cases = [
            (None, None, false),
            (Some(20_000), None, false),
            (None, Some(20_000), false),
            (Some(20_000), Some(20_000), true),
            (Some(20_000), Some(23_000), true),
            (Some(20_000), Some(23_001), false),
            (Some(20_000), Some(17_000), true),
            (Some(200_000), Some(220_000), true),
            (Some(200_000), Some(220_001), false),
            (Some(200_000), Some(179_999), false),
        ];
        for (before, last, is_settled) in cases {
            assert_eq!(check_latency(before, last).is_ok(), is_settled, "{before:?} {last:?}");
        }
    }

    #[test]
    fn no_reading_breaks_a_look() {
        let most = [Sample { at_us: 1, bytes: u64::MAX }, Sample { at_us: u64::MAX, bytes: u64::MAX }];
        for look in LOOKS {
            assert!(check_rate(&most, None, look).is_err() && check_rate(&[], None, look).is_err());
        }
        check_latency(Some(u32::MAX), Some(0)).unwrap_err();
    }
}
