//! Finds a lasting change of the delay in a direction that a phase does not load. Such a change comes from another
//! route or from other traffic. Pure: no I/O, no clock.

use std::time::Duration;

use super::latency::percentile;

/// A change of the delay is reported only if the delays before and after it are at least this far apart, in
/// microseconds.
const LEAST_CHANGE_US: f64 = 5_000.0;
/// A change of the delay is found only if the phase has at least this many parts before the change and as many after
/// it.
const LEAST_PARTS: usize = 3;
/// A change of the delay is found only if the phase lasts at least this long before the change and after it, in
/// microseconds.
const LEAST_LENGTH_US: f64 = 1_000_000.0;
/// A part of a phase has at least this many consecutive delays. The median of these delays represents the part.
const LEAST_IN_PART: usize = 10;
/// A phase is split into at most this many parts, each of which is represented by its median delay.
const MOST_PARTS: usize = 200;
/// A change of the delay is found only if the median delay of every part before it differs from that of every part
/// after it by at least this share of the change. Also, the delay before the change may differ from the idle delay by
/// at most this share of the change.
const SPREAD_SHARE: f64 = 0.5;

/// A lasting change of the delay in one direction.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PathChange {
    /// When the first probe after the change was sent, in time since the prober's start.
    pub at: Duration,
    /// How much longer the delay became, in microseconds; negative if the delay became shorter.
    pub by_us: f64,
}

/// Finds a lasting change in `delays`, which has the send time and the delay of each probe, both in microseconds. The
/// probes are those of one phase, in the order sent. Their delays are those of a direction that the phase does not
/// load, and count from the shortest delay of the idle phase. `None` if there is no lasting change.
///
/// The delays are split into parts. A change counts only if the median delay of every part before it clearly differs
/// from the median of every part after it. Before the change, the delay must be near that of the idle phase: a longer
/// delay since the start of the load would be a queue.
pub(super) fn path_change(delays: &[(f64, f64)]) -> Option<PathChange> {
    let parts = delays.chunks(LEAST_IN_PART.max(delays.len().div_ceil(MOST_PARTS)));
    let parts = parts.filter(|part| part.len() >= LEAST_IN_PART);
    let parts = parts.filter_map(|part| Some((part.first()?.0, median(part.iter().map(|(_, delay)| *delay))?)));
    let parts = parts.collect::<Vec<_>>();
    let end_us = delays.last()?.0;
    let splits = LEAST_PARTS..(parts.len() + 1).saturating_sub(LEAST_PARTS);
    let changes = splits.filter_map(|at| {
        let (before, after) = parts.split_at(at);
        let is_long = after[0].0 - before[0].0 >= LEAST_LENGTH_US && end_us - after[0].0 >= LEAST_LENGTH_US;
        let [old, new] = [before, after].map(|side| Level::of(side.iter().map(|(_, delay)| *delay)));
        let (old, new) = (old.filter(|_| is_long)?, new?);
        let by_us = new.median - old.median;
        let gap_us = if by_us > 0.0 { new.least - old.most } else { old.least - new.most };
        let is_clear = gap_us >= LEAST_CHANGE_US.max(by_us.abs() * SPREAD_SHARE);
        let is_idle_before = old.median.abs() <= by_us.abs() * SPREAD_SHARE;
        let at = Duration::from_secs_f64(after[0].0.max(0.0) / 1e6);
        (is_clear && is_idle_before).then_some((gap_us, PathChange { at, by_us }))
    });
    changes.max_by(|(a, _), (b, _)| a.total_cmp(b)).map(|(_, change)| change)
}

/// Describes the parts on one side of a possible change. Each part has a median delay. The fields are the lowest, the
/// middle and the highest of these delays, in microseconds.
struct Level {
    least: f64,
    median: f64,
    most: f64,
}

impl Level {
    fn of(medians: impl Iterator<Item = f64> + Clone) -> Option<Self> {
        Some(Self {
            least: medians.clone().fold(f64::INFINITY, f64::min),
            most: medians.clone().fold(f64::NEG_INFINITY, f64::max),
            median: median(medians)?,
        })
    }
}

fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut sorted = values.collect::<Vec<_>>();
    sorted.sort_unstable_by(f64::total_cmp);
    percentile(&sorted, 500)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns 50 delays a second for 5 s from second 10 on, with the given base and jitter in milliseconds.
    fn delays(base_ms: impl Fn(f64) -> f64, jitter_ms: f64) -> Vec<(f64, f64)> {
        let delay = |at: u32| {
            let second = f64::from(at) / 50.0;
            (1e7 + second * 1e6, (base_ms(second) + jitter_ms * f64::from(at * 7919 % 97) / 97.0) * 1e3)
        };
        (0..250).map(delay).collect()
    }

    #[test]
    fn a_lasting_step_is_found_with_its_time_and_size() {
        for (by_ms, base_ms) in [(40.0, 0.0), (6.0, 0.0), (-30.0, 0.0)] {
            let change = path_change(&delays(|at| base_ms + if at >= 2.0 { by_ms } else { 0.0 }, 0.5)).unwrap();
            assert!((change.by_us - by_ms * 1e3).abs() < 500.0, "{by_ms}: {change:?}");
            assert!((change.at.as_secs_f64() - 12.0).abs() <= 0.21, "{by_ms}: {change:?}");
        }
        let with_jitter = delays(|at| if at >= 3.0 { 40.0 } else { 0.0 }, 20.0);
        assert!((path_change(&with_jitter).unwrap().by_us - 40e3).abs() < 5e3);
    }

    #[test]
    fn what_is_no_lasting_step_is_no_change() {
        let none = |name: &str, delays: &[(f64, f64)]| assert_eq!(path_change(delays), None, "{name}");
        none("level", &delays(|_| 0.0, 0.5));
        none("jitter", &delays(|_| 0.0, 60.0));
        none("a ramp", &delays(|at| 20.0 * at, 0.5));
        none("a sawtooth", &delays(|at| 40.0 * (at % 1.5), 0.5));
        none("too small", &delays(|at| if at >= 2.0 { 4.0 } else { 0.0 }, 0.1));
        none("a queue of acknowledgements since the load began", &delays(|at| if at >= 0.5 { 40.0 } else { 0.0 }, 0.5));
        none("two levels of such a queue", &delays(|at| if at >= 2.0 { 80.0 } else { 60.0 }, 0.5));
        none("a pause", &delays(|at| if (2.0..3.0).contains(&at) { 40.0 } else { 0.0 }, 0.5));
        none("shortly before the end", &delays(|at| if at >= 4.5 { 40.0 } else { 0.0 }, 0.5));
        none("few", &delays(|at| if at >= 2.0 { 40.0 } else { 0.0 }, 0.5)[95..115]);
        none("nothing", &[]);
    }

    #[test]
    fn a_long_run_is_split_into_few_parts() {
        let all =
            (0..200_000).map(|at| (f64::from(at) * 2e4, if at >= 90_000 { 3e4 } else { 0.0 })).collect::<Vec<_>>();
        let change = path_change(&all).unwrap();
        assert!((change.at.as_secs_f64() - 1_800.0).abs() <= 20.0, "{change:?}");
    }
}
