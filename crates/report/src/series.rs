//! The rates and round trips of a result over time, thinned to a number of points. Pure.

use paramedic_link::test_spec::{Direction, Load};
use schemars::JsonSchema;
use serde::Serialize;

use crate::document::{Interval, LatencyInterval, ResultDocument};

/// A result over time. Empty if it was measured without `--intervals`.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct ResultSeries {
    /// The rates of each direction, in the order of the phases.
    pub rates: Vec<RateSeries>,
    /// The round trips of each phase.
    pub latencies: Vec<LatencySeries>,
}

/// The rate of a direction over time.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct RateSeries {
    /// The phase.
    pub phase: Load,
    /// The direction of the payload.
    pub direction: Direction,
    /// In the order of time.
    pub points: Vec<RatePoint>,
}

/// The rate in a time of several intervals.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct RatePoint {
    /// The end of that time, since the phase began.
    pub at_ms: u64,
    /// The mean.
    pub bps: u64,
    /// The slowest interval.
    pub min_bps: u64,
    /// The fastest interval.
    pub max_bps: u64,
}

/// The round trips of a phase over time.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct LatencySeries {
    /// The phase.
    pub phase: Load,
    /// In the order of time.
    pub points: Vec<LatencyPoint>,
}

/// The probes in a time of several intervals.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct LatencyPoint {
    /// The end of that time, since the phase began.
    pub at_ms: u64,
    /// The median of the intervals' median round trips, in microseconds; absent if no probe was answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rtt_us: Option<u64>,
    /// The highest of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_rtt_us: Option<u64>,
    /// Probes sent.
    pub sent: u64,
    /// Probes that were not answered.
    pub lost: u64,
}

impl ResultSeries {
    /// The series of a result, each with at most `points` points.
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

/// At most `count` groups of neighbours, all but the last of one size.
fn groups<T>(intervals: &[T], count: usize) -> std::slice::Chunks<'_, T> {
    intervals.chunks(intervals.len().div_ceil(count.max(1)).max(1))
}

/// The mean gives each interval the same weight: all intervals of a phase but the last have the same length.
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
