//! Latency statistics of probes: percentiles, jitter, loss of each direction, bufferbloat grade. Pure: no I/O, no
//! clock.

use std::fmt;
use std::time::Duration;

use paramedic_link::measurement::Probe;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::sufficiency::{Statement, is_enough};

/// The statistics of the probes in one time window.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LatencySummary {
    /// The round-trip times; absent if no probe was answered in time.
    pub rtt: Option<RoundTrips>,
    /// The number of probes that were sent.
    pub sent: u64,
    /// The number of probes that were answered in time.
    pub received: u64,
    /// The number of probes that the prober skipped because it was late.
    pub skipped: u64,
    /// The number of probes that the reflector did not receive.
    pub lost_upload: u64,
    /// The number of probes that the reflector received, but whose reply was lost.
    pub lost_download: u64,
    /// The number of lost probes for which the direction of the loss is unknown, because no later reply shows whether
    /// the reflector received them.
    pub lost_somewhere: u64,
    /// The number of probes whose reply arrived later than [`Probe::LATE_AFTER`]. Such a probe counts neither as
    /// received nor as lost.
    pub late: u64,
    /// The share (0 to 1) of probes that the reflector did not receive, among the probes for which this is known.
    /// Absent if the direction of the loss is unknown for most lost probes.
    pub loss_upload: Option<f64>,
    /// The share (0 to 1) of probes whose reply was lost, among the probes that the reflector received. Absent if the
    /// direction of the loss is unknown for most lost probes.
    pub loss_download: Option<f64>,
    /// The share (0 to 1) of sent probes that were lost in either direction. Late replies do not count as lost.
    pub loss: f64,
    /// How the lost probes are distributed over time; absent if no probe was lost.
    pub loss_pattern: Option<LossPeriods>,
    /// The 99th percentile of how late the prober was, in microseconds, skipped probes included. Round trips do not
    /// include this lateness, because they start when the probe was sent. But a late prober samples busy moments less
    /// often.
    pub probe_late_p99_us: u32,
}

/// How lost probes are distributed over time (RFC 3357). A loss period is a run of lost probes that were sent one after
/// the other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LossPeriods {
    /// The number of loss periods.
    pub periods: u64,
    /// The number of lost probes in the longest loss period.
    pub longest_probes: u64,
    /// The duration of the longest loss period: from its first probe to the next probe that was not lost. If no such
    /// probe follows, to the last probe of the period.
    pub longest: Duration,
}

impl LossPeriods {
    /// Adds a loss period that has `probes` probes and the duration `length`.
    fn add(&mut self, probes: u64, length: Duration) {
        self.periods += 1;
        if probes > self.longest_probes {
            (self.longest_probes, self.longest) = (probes, length);
        }
    }
}

/// Round-trip times in microseconds, without the time that the reflector took to reply. Percentiles are nearest-rank:
/// each of them is a measured round trip. A percentile is absent if there are too few round trips.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RoundTrips {
    /// The shortest round trip, in microseconds.
    pub min_us: u32,
    /// The mean round trip, in microseconds.
    pub mean_us: f64,
    /// The median round trip, in microseconds.
    pub p50_us: Option<u32>,
    /// The 90th percentile of the round trips, in microseconds.
    pub p90_us: Option<u32>,
    /// The 95th percentile of the round trips, in microseconds.
    pub p95_us: Option<u32>,
    /// The 99th percentile of the round trips, in microseconds.
    pub p99_us: Option<u32>,
    /// The 99.9th percentile of the round trips, in microseconds.
    pub p999_us: Option<u32>,
    /// The longest round trip, in microseconds.
    pub max_us: u32,
    /// The mean absolute difference between the round trips of consecutive probes, in microseconds (RFC 3393 pairs
    /// packets in the same way). Two consecutive probes count only if both were answered in time. Absent if there is no
    /// such pair.
    pub jitter_us: Option<f64>,
}

/// Computes the statistics of the probes in a time window; `None` without probes. `probes` are in the order sent.
/// `skipped_late_us` contains, for each probe that the prober skipped, how late the prober was, in microseconds.
pub fn latency(
    probes: impl IntoIterator<Item = Probe>,
    skipped_late_us: impl IntoIterator<Item = u32>,
) -> Option<LatencySummary> {
    let (mut round_trips, mut lateness) = (Vec::new(), Vec::new());
    let (mut lost_upload, mut lost_download, mut lost_somewhere, mut late) = (0u64, 0u64, 0u64, 0u64);
    let (mut steps, mut pairs) = (0u64, 0u64);
    let mut before: Option<u32> = None;
    let mut pattern = LossPeriods::default();
    // The current loss period: its number of probes, and when its first and its last probe were sent.
    let mut period: Option<(u64, Duration, Duration)> = None;
    for probe in probes {
        lateness.push(probe.late_us);
        if probe.rtt_us.is_none() && !probe.late {
            let (probes, first, _) = period.unwrap_or((0, probe.sent_at, probe.sent_at));
            period = Some((probes + 1, first, probe.sent_at));
        } else if let Some((probes, first, _)) = period.take() {
            pattern.add(probes, probe.sent_at.saturating_sub(first));
        }
        match (probe.rtt_us, probe.arrived) {
            (Some(rtt), _) => {
                if let Some(before) = before {
                    steps += u64::from(rtt.abs_diff(before));
                    pairs += 1;
                }
                round_trips.push(rtt);
            }
            (None, _) if probe.late => late += 1,
            (None, Some(false)) => lost_upload += 1,
            (None, Some(true)) => lost_download += 1,
            (None, None) => lost_somewhere += 1,
        }
        before = probe.rtt_us;
    }
    if lateness.is_empty() {
        return None;
    }
    if let Some((probes, first, last)) = period {
        pattern.add(probes, last.saturating_sub(first));
    }
    let (sent, received) = (lateness.len() as u64, round_trips.len() as u64);
    lateness.extend(skipped_late_us);
    lateness.sort_unstable();
    round_trips.sort_unstable();
    let known = sent - lost_somewhere;
    let is_told = lost_somewhere <= lost_upload + lost_download;
    Some(LatencySummary {
        rtt: summed(&round_trips, (pairs > 0).then(|| steps as f64 / pairs as f64)),
        sent,
        received,
        skipped: lateness.len() as u64 - sent,
        lost_upload,
        lost_download,
        lost_somewhere,
        late,
        loss_upload: is_told.then(|| fraction(lost_upload, known)),
        loss_download: is_told.then(|| fraction(lost_download, known - lost_upload)),
        loss: fraction(lost_upload + lost_download + lost_somewhere, sent),
        loss_pattern: (pattern.periods > 0).then_some(pattern),
        probe_late_p99_us: percentile(&lateness, 990).unwrap_or(0),
    })
}

fn summed(sorted: &[u32], jitter_us: Option<f64>) -> Option<RoundTrips> {
    let received = sorted.len() as u64;
    let of = |per_mille, statement| percentile(sorted, per_mille).filter(|_| is_enough(statement, received, received));
    Some(RoundTrips {
        min_us: *sorted.first()?,
        mean_us: sorted.iter().map(|rtt| u64::from(*rtt)).sum::<u64>() as f64 / sorted.len() as f64,
        p50_us: of(500, Statement::P50),
        p90_us: of(900, Statement::P90),
        p95_us: of(950, Statement::P95),
        p99_us: of(990, Statement::P99),
        p999_us: of(999, Statement::P999),
        max_us: *sorted.last()?,
        jitter_us,
    })
}

/// The nearest-rank percentile of `sorted`; `None` if `sorted` is empty. `per_mille` is in thousandths, 1 to 1000: 500
/// is the median.
pub fn percentile<T: Copy>(sorted: &[T], per_mille: usize) -> Option<T> {
    let rank = (sorted.len() * per_mille).div_ceil(1000);
    sorted.get(rank.max(1) - 1).copied()
}

fn fraction(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

/// How many round trips of the duration `round_trip_us` fit into one minute, one after the other.
pub fn round_trips_per_minute(round_trip_us: u64) -> u64 {
    let least = round_trip_us.max(1);
    (60_000_000 + least / 2) / least
}

/// The bufferbloat grade: how much a load raises the latency. The function [`grade`] contains the limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Grade {
    /// The latency hardly rises under load.
    #[serde(rename = "A+")]
    APlus,
    /// The latency under load affects no application.
    A,
    /// The latency under load affects games.
    B,
    /// The latency under load affects calls.
    C,
    /// The latency under load affects every interactive application.
    D,
    /// Interactive applications are unusable under load.
    F,
}

impl fmt::Display for Grade {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Grade::APlus => "A+",
            Grade::A => "A",
            Grade::B => "B",
            Grade::C => "C",
            Grade::D => "D",
            Grade::F => "F",
        })
    }
}

/// Grades a load by the `increase` of the median round trip over the median of the idle path.
pub fn grade(increase: Duration) -> Grade {
    const BELOW_MS: [(u64, Grade); 5] =
        [(5, Grade::APlus), (30, Grade::A), (60, Grade::B), (200, Grade::C), (400, Grade::D)];
    let below = |limit_ms: &u64| increase < Duration::from_millis(*limit_ms);
    BELOW_MS.iter().find(|(limit_ms, _)| below(limit_ms)).map_or(Grade::F, |(_, grade)| *grade)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The statistics of `probes`, with no probe skipped.
    fn of_probes(probes: impl IntoIterator<Item = Probe>) -> Option<LatencySummary> {
        latency(probes, [])
    }

    fn probe(rtt_us: Option<u32>, arrived: Option<bool>) -> Probe {
        Probe {
            sent_at: Duration::ZERO,
            late_us: 3,
            rtt_us,
            arrived,
            turnaround_us: 0,
            upload_us: None,
            own_wait_us: None,
            late: false,
        }
    }

    fn answered(rtt_us: u32) -> Probe {
        probe(Some(rtt_us), Some(true))
    }

    #[test]
    fn percentiles_are_measured_round_trips() {
        let summary = of_probes((1..=200).rev().map(|ms| answered(ms * 1000))).unwrap();
        let rtt = summary.rtt.unwrap();
        assert_eq!((rtt.min_us, rtt.p50_us, rtt.p90_us), (1000, Some(100_000), Some(180_000)));
        assert_eq!((rtt.p95_us, rtt.p99_us, rtt.max_us), (Some(190_000), Some(198_000), 200_000));
        assert_eq!(rtt.mean_us, 100_500.0);
        assert_eq!(rtt.p999_us, None);
        assert_eq!(rtt.jitter_us, Some(1000.0));
        assert_eq!(summary.probe_late_p99_us, 3);
    }

    #[test]
    fn a_percentile_is_absent_without_enough_round_trips() {
        let of = |n: u32| {
            let rtt = of_probes((1..=n).map(answered)).unwrap().rtt.unwrap();
            [rtt.p50_us, rtt.p90_us, rtt.p95_us, rtt.p99_us, rtt.p999_us]
        };
        assert_eq!(of(19), [None; 5]);
        assert_eq!(of(20), [Some(10), None, None, None, None]);
        assert_eq!(of(50), [Some(25), Some(45), None, None, None]);
        assert_eq!(of(199), [Some(100), Some(180), Some(190), None, None]);
        assert_eq!(of(2_000), [Some(1_000), Some(1_800), Some(1_900), Some(1_980), Some(1_998)]);
    }

    #[test]
    fn loss_is_counted_per_direction() {
        let late = Probe { late: true, ..probe(None, Some(true)) };
        let fates = [
            answered(10),
            probe(None, Some(false)),
            answered(30),
            answered(10),
            probe(None, Some(true)),
            probe(None, None),
            late,
            answered(10),
        ];
        let summary = of_probes(fates).unwrap();
        assert_eq!((summary.sent, summary.received, summary.late), (8, 4, 1));
        assert_eq!((summary.lost_upload, summary.lost_download, summary.lost_somewhere), (1, 1, 1));
        assert_eq!((summary.loss_upload, summary.loss_download), (Some(1.0 / 7.0), Some(1.0 / 6.0)));
        assert_eq!(summary.loss, 3.0 / 8.0);
        // Only the probes with 30 and 10 are consecutive and both answered.
        assert_eq!(summary.rtt.unwrap().jitter_us, Some(20.0));
    }

    #[test]
    fn a_prober_that_skipped_probes_was_late() {
        // 58 of 400 skipped: the prober was stopped for 0.6 s.
        let with_skipped = latency([answered(10); 342], (1..=58).map(|at| at * 10_000)).unwrap();
        assert_eq!((with_skipped.sent, with_skipped.skipped, with_skipped.probe_late_p99_us), (342, 58, 540_000));
        let in_time = latency([answered(10); 400], []).unwrap();
        assert_eq!((in_time.skipped, in_time.probe_late_p99_us), (0, 3));
    }

    #[test]
    fn lost_probes_form_periods() {
        let lost = probe(None, Some(false));
        let fates = [lost, answered(10), lost, lost, lost, answered(10), Probe { late: true, ..lost }, lost, lost];
        let sent =
            fates.into_iter().zip(0..).map(|(probe, at)| Probe { sent_at: Duration::from_millis(at * 10), ..probe });
        let pattern = LossPeriods { periods: 3, longest_probes: 3, longest: Duration::from_millis(30) };
        assert_eq!(of_probes(sent.clone()).unwrap().loss_pattern, Some(pattern));
        let at_its_end = of_probes(sent.skip(6)).unwrap().loss_pattern.unwrap();
        assert_eq!((at_its_end.longest_probes, at_its_end.longest), (2, Duration::from_millis(10)));
        assert_eq!(of_probes([answered(10)]).unwrap().loss_pattern, None);
    }

    #[test]
    fn a_dead_path_still_has_a_summary() {
        let summary = of_probes([probe(None, None); 3]).unwrap();
        assert_eq!((summary.rtt, summary.sent, summary.lost_somewhere, summary.loss), (None, 3, 3, 1.0));
        assert_eq!((summary.loss_upload, summary.loss_download), (None, None), "no counter shows the direction");
        let dies = of_probes([answered(10), probe(None, None), probe(None, None)]).unwrap();
        assert_eq!((dies.loss_upload, dies.loss_download, dies.loss), (None, None, 2.0 / 3.0));
        assert_eq!(of_probes([]), None);
    }

    #[test]
    fn round_trips_per_minute_are_rounded() {
        let of = [0, 1, 60_000, 99_950, 1_000_000, 7_000_000].map(round_trips_per_minute);
        assert_eq!(of, [60_000_000, 60_000_000, 1_000, 600, 60, 9]);
        assert!(round_trips_per_minute(u64::MAX) <= 1);
    }

    #[test]
    fn grades_begin_at_their_limits() {
        let of = |us| grade(Duration::from_micros(us)).to_string();
        let grades = [0, 4_999, 5_000, 29_999, 30_000, 60_000, 199_999, 200_000, 399_999, 400_000].map(of);
        assert_eq!(grades, ["A+", "A+", "A", "A", "B", "C", "C", "D", "D", "F"]);
    }

    proptest! {
        #[test]
        fn every_probe_is_counted_once(
            probes in prop::collection::vec((any::<Option<u32>>(), any::<Option<bool>>(), any::<bool>()), 1..300)
        ) {
            let probes = probes.into_iter().map(|(rtt, arrived, late)| Probe { late, ..probe(rtt, arrived) });
            let s = of_probes(probes).unwrap();
            let fates = s.received + s.late + s.lost_upload + s.lost_download + s.lost_somewhere;
            prop_assert_eq!(fates, s.sent);
            for part in [Some(s.loss), s.loss_upload, s.loss_download].into_iter().flatten() {
                prop_assert!((0.0..=1.0).contains(&part));
            }
        }
    }
}
