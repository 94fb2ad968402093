//! The rates and round trips of a result over time, reduced to a limited number of points. Pure: no I/O, no clock.

use paramedic_link::test_spec::{Direction, Load};
use schemars::JsonSchema;
use serde::Serialize;

use crate::document::{Interval, LatencyInterval, ResultDocument};

/// The rates and round trips of a result over time. Empty if the result was measured without `--intervals`.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct ResultSeries {
    /// The rates of each direction, in the order of the phases.
    pub rates: Vec<RateSeries>,
    /// The round trips of each phase.
    pub latencies: Vec<LatencySeries>,
}

/// The rate of one direction in one phase of a test, over time.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct RateSeries {
    /// The phase of the test in which the rate was measured.
    pub phase: Load,
    /// The direction of the payload.
    pub direction: Direction,
    /// The points of the series, earliest first.
    pub points: Vec<RatePoint>,
}

/// The rate over several consecutive measurement intervals, merged into one point.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct RatePoint {
    /// The end of the last interval in the point, in milliseconds since the phase began.
    pub at_ms: u64,
    /// The mean rate of the intervals in the point, in bits per second.
    pub bps: u64,
    /// The rate of the slowest interval in the point, in bits per second.
    pub min_bps: u64,
    /// The rate of the fastest interval in the point, in bits per second.
    pub max_bps: u64,
}

/// The round trips of one phase of a test, over time.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct LatencySeries {
    /// The phase of the test in which the probes were sent.
    pub phase: Load,
    /// The points of the series, earliest first.
    pub points: Vec<LatencyPoint>,
}

/// The latency probes of several consecutive measurement intervals, merged into one point.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct LatencyPoint {
    /// The end of the last interval in the point, in milliseconds since the phase began.
    pub at_ms: u64,
    /// Each interval has a median round trip. This is the median of these, in microseconds; absent if no probe was
    /// answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rtt_us: Option<u64>,
    /// Each interval has a median round trip. This is the highest of these, in microseconds; absent if no probe was
    /// answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_rtt_us: Option<u64>,
    /// The number of probes sent in the intervals of the point.
    pub sent: u64,
    /// The number of probes in the intervals of the point that were not answered.
    pub lost: u64,
}

impl ResultSeries {
    /// The series of a result. Each series has at most `points` points.
    pub fn of(document: &ResultDocument, points: usize) -> Self {
        let rates = document.all_measured().filter_map(|(phase, direction, measured)| {
            let intervals = measured.intervals.as_deref()?;
            Some(RateSeries { phase, direction, points: groups(intervals, points).map(rate_point).collect() })
        });
        let latencies = document.latency.iter().filter_map(|(phase, measured)| {
            let intervals = measured.intervals.as_deref()?;
            Some(LatencySeries { phase, points: groups(intervals, points).map(latency_point).collect() })
        });
        Self { rates: rates.collect(), latencies: latencies.collect() }
    }
}

/// Splits `intervals` into at most `count` groups of neighbours. All groups but the last have the same size.
fn groups<T>(intervals: &[T], count: usize) -> std::slice::Chunks<'_, T> {
    intervals.chunks(intervals.len().div_ceil(count.max(1)).max(1))
}

/// Merges the intervals of `group` into one point. Each interval has the same weight in the mean rate, because all
/// intervals of a phase but the last have the same length.
fn rate_point(group: &[Interval]) -> RatePoint {
    let rates = || group.iter().map(|interval| interval.bps);
    let sum = rates().map(u128::from).sum::<u128>();
    let mean = sum.checked_div(group.len() as u128).unwrap_or_default();
    RatePoint {
        at_ms: group.last().map_or(0, |last| last.at_ms),
        bps: u64::try_from(mean).unwrap_or(u64::MAX),
        min_bps: rates().min().unwrap_or_default(),
        max_bps: rates().max().unwrap_or_default(),
    }
}

fn latency_point(group: &[LatencyInterval]) -> LatencyPoint {
    let mut medians = group.iter().filter_map(|interval| interval.rtt_us).collect::<Vec<_>>();
    medians.sort_unstable();
    LatencyPoint {
        at_ms: group.last().map_or(0, |last| last.at_ms),
        rtt_us: medians.get(medians.len().saturating_sub(1) / 2).copied(),
        max_rtt_us: medians.last().copied(),
        sent: group.iter().map(|interval| interval.sent).sum(),
        lost: group.iter().map(|interval| interval.lost).sum(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn intervals(rates: &[u64]) -> Vec<Interval> {
        rates.iter().zip(1..).map(|(bps, number)| Interval { at_ms: number * 100, bps: *bps }).collect()
    }

    #[test]
    fn neighbours_become_one_point_with_their_extremes() {
        let intervals = intervals(&[10, 30, 20, 100, 5]);
        let points = |count| groups(&intervals, count).map(rate_point).collect::<Vec<_>>();
        let point = |at_ms, bps, min_bps, max_bps| RatePoint { at_ms, bps, min_bps, max_bps };
        assert_eq!(points(2), [point(300, 20, 10, 30), point(500, 52, 5, 100)]);
        assert_eq!(points(5).len(), 5);
        assert_eq!(points(1000).len(), 5);
        assert_eq!(points(0), [point(500, 33, 5, 100)]);
        let probe =
            |rtt_us, lost| LatencyInterval { at_ms: 100, rtt_us, upload_us: None, download_us: None, sent: 3, lost };
        let merged = latency_point(&[probe(Some(900), 0), probe(None, 3), probe(Some(100), 1), probe(Some(200), 0)]);
        assert_eq!((merged.rtt_us, merged.max_rtt_us, merged.sent, merged.lost), (Some(200), Some(900), 12, 4));
        assert_eq!(latency_point(&[probe(None, 3)]).rtt_us, None);
    }

    proptest! {
        #[test]
        fn points_are_few_and_lose_no_extreme(rates in proptest::collection::vec(any::<u64>(), 1..300), count in 1..50_usize) {
            let intervals = intervals(&rates);
            let points = groups(&intervals, count).map(rate_point).collect::<Vec<_>>();
            prop_assert!(points.len() <= count);
            prop_assert_eq!(points.iter().map(|point| point.max_bps).max(), rates.iter().max().copied());
            prop_assert_eq!(points.iter().map(|point| point.min_bps).min(), rates.iter().min().copied());
            prop_assert_eq!(points.last().unwrap().at_ms, rates.len() as u64 * 100);
            prop_assert!(points.iter().all(|point| point.min_bps <= point.bps && point.bps <= point.max_bps));
        }
    }
}
