//! Merges stored rows of minutes, hours or days into a series of points with a given time step, for programs that draw
//! charts.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::minute::ProbeTally;

/// The number of minutes in an hour.
pub const HOUR: i64 = 60;
/// The number of minutes in a day.
pub const DAY: i64 = 24 * HOUR;
/// The maximum number of points of a series.
pub const MAX_POINTS: i64 = 2_000;

/// The stored rows from which a step of a series is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Resolution {
    /// One row for each minute.
    Minutes,
    /// One row for each hour.
    Hours,
    /// One row for each day.
    Days,
}

impl Resolution {
    const ALL: [(Self, &'static str); 3] = [(Self::Minutes, "minutes"), (Self::Hours, "hours"), (Self::Days, "days")];

    /// The name of the resolution in documents.
    pub fn as_str(self) -> &'static str {
        Self::ALL.iter().find(|(own, _)| *own == self).map_or("", |(_, word)| word)
    }

    /// The resolution with this name.
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, own)| *own == word).map(|(resolution, _)| *resolution)
    }

    /// The coarsest resolution from which a step of this many minutes can be computed.
    pub fn of_step(step_minutes: i64) -> Self {
        match step_minutes {
            step if step % DAY == 0 => Self::Days,
            step if step % HOUR == 0 => Self::Hours,
            _ => Self::Minutes,
        }
    }

    /// The length of a row, in minutes.
    pub fn minutes(self) -> i64 {
        match self {
            Self::Minutes => 1,
            Self::Hours => HOUR,
            Self::Days => DAY,
        }
    }
}

/// One point of a series: the probes of a monitor in one step of time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SeriesPoint {
    /// The begin of the step, in seconds since 1970.
    pub at_s: i64,
    /// The number of probes that were answered or lost.
    pub count: u64,
    /// The number of probes, among `count`, that were lost.
    pub lost: u64,
    /// The number of probes that were answered while a test loaded the reflector; the round trips exclude them.
    pub under_load: u64,
    /// The shortest round trip, in microseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_us: Option<u64>,
    /// The median round trip, in microseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p50_us: Option<u64>,
    /// The 95th percentile of the round trip, in microseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p95_us: Option<u64>,
    /// The longest round trip, in microseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_us: Option<u64>,
}

impl SeriesPoint {
    /// Creates the point of a step that begins at `at_s` and contains the probes of `tally`. A percentile is limited to
    /// the range from the shortest to the longest round trip, because the histogram is not exact.
    pub fn of(at_s: i64, tally: &ProbeTally) -> Self {
        let percentile = |share| {
            let (min, max) = tally.min_max_us?;
            tally.round_trips.percentile(share).map(|us| us.clamp(min, max))
        };
        Self {
            at_s,
            count: tally.count,
            lost: tally.lost,
            under_load: tally.under_load,
            min_us: tally.min_max_us.map(|(min, _)| min),
            p50_us: percentile(0.5),
            p95_us: percentile(0.95),
            max_us: tally.min_max_us.map(|(_, max)| max),
        }
    }
}

/// Chooses the step, in minutes, of a series from `from` to `to` (minutes since 1970): `wanted`, or a step for about
/// 300 points if `wanted` is `None`. The step is longer if there would otherwise be more than [`MAX_POINTS`] points. A
/// step above 30 minutes is rounded up to whole hours, and one above 12 hours to whole days, because only hours and
/// days are kept for long.
pub fn step_minutes(from: i64, to: i64, wanted: Option<i64>) -> i64 {
    let span = to.saturating_sub(from).max(1);
    let ceil = |whole: i64, part: i64| (whole + part - 1) / part;
    let least = ceil(span, MAX_POINTS);
    // Without a wanted step, about 300 points.
    let step = wanted.unwrap_or_else(|| ceil(span, 300)).max(least).max(1);
    match step {
        step if step > HOUR * 12 => ceil(step, DAY) * DAY,
        step if step > HOUR / 2 => ceil(step, HOUR) * HOUR,
        step => step,
    }
}

/// Merges rows, each with its begin in minutes since 1970, into points of `step` minutes, in order of time. Steps
/// without a row have no point.
pub fn points(rows: impl IntoIterator<Item = (i64, ProbeTally)>, step: i64) -> Vec<SeriesPoint> {
    let mut merged = BTreeMap::<i64, ProbeTally>::new();
    for (minute, tally) in rows {
        merged.entry(minute.div_euclid(step) * step).or_default().merge(&tally);
    }
    merged.iter().map(|(minute, tally)| SeriesPoint::of(minute * 60, tally)).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::super::minute::ProbeOutcome;
    use super::*;

    fn tally(ms: &[u64], lost: u64) -> ProbeTally {
        let mut tally = ProbeTally::default();
        for ms in ms {
            let round_trip = Duration::from_millis(*ms);
            tally.note(ProbeOutcome::Answered { round_trip, is_under_load: false });
        }
        (0..lost).for_each(|_| tally.note(ProbeOutcome::Lost));
        tally
    }

    #[test]
    fn rows_of_a_step_are_merged_and_gaps_stay_gaps() {
        let rows = [(120, tally(&[10, 20], 1)), (121, tally(&[30], 0)), (125, tally(&[], 2))];
        let points = points(rows, 2);
        let expected = (points[0].at_s, points[0].count, points[0].lost, points[0].min_us, points[0].max_us);
        assert_eq!(expected, (7_200, 4, 1, Some(10_000), Some(30_000)));
        assert_eq!(points[0].p50_us.map(|us| us.abs_diff(20_000) < 200), Some(true));
        assert_eq!((points.len(), points[1].at_s, points[1].p50_us), (2, 124 * 60, None));
    }

    proptest! {
        #[test]
        fn a_series_has_few_points_of_rows_that_exist(
            from in 0i64..40_000_000, span in 0i64..2_000_000, wanted in prop::option::of(1i64..3_000),
        ) {
            let step = step_minutes(from, from + span, wanted);
            prop_assert!(step >= wanted.unwrap_or(1) && span / step <= MAX_POINTS, "{step}");
            prop_assert_eq!(step % Resolution::of_step(step).minutes(), 0);
            prop_assert!(step <= HOUR / 2 || step % HOUR == 0, "{step} is made of minutes");
        }
    }
}
