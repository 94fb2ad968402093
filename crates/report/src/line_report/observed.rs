//! The parts of a report on a line that describe latency, monitors and outages.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use jiff::tz::TimeZone;
use paramedic_link::test_spec::Load;

use super::input::{MonitorHour, OutageExtent, ReportInput, ReportOutage, ReportRun, RunLatency};
use super::median::Median;
use super::names::Names;
use super::rates::{EVENING, NIGHT};
use super::selection::left_out_of_path;
use super::tally;
use crate::document::QueueSide;
use crate::stats::Grade;

/// If a run is suspect for a reason with one of these codes, its latency does not count in the report.
const DOUBTFUL: [&str; 3] = ["probe_late", "probes_skipped", "probes_lost"];

/// The latency of all runs under one load.
#[derive(Clone, Debug, PartialEq)]
pub struct LatencyReport {
    /// The load under which the latency was measured.
    pub load: Load,
    /// The number of runs whose latency under `load` counts.
    pub count: usize,
    /// Each counted run has a median round trip. This is the median of these, in microseconds; absent with too few
    /// runs.
    pub p50_us: Option<Median>,
    /// Each counted run has a 95th percentile of its round trips. This is the median of these, in microseconds; absent
    /// with too few runs.
    pub p95_us: Option<Median>,
    /// In each counted run, the load raised the median round trip by some milliseconds. This is the median of these
    /// increases; absent without load, and with too few runs.
    pub increase_ms: Option<Median>,
    /// The bufferbloat grades of the counted runs, best grade first, each with its number of runs.
    pub grades: Vec<(Grade, usize)>,
    /// The directions in which the load built up a queue, most frequent first, each with its number of runs.
    pub queues: Vec<(QueueSide, usize)>,
    /// The number of runs in which most of the queue was in the appliance.
    pub own_queues: usize,
}

impl LatencyReport {
    pub(super) fn of(load: Load, runs: &[ReportRun], main_uplink: Option<&str>) -> Self {
        let is_sound = |run: &&ReportRun| {
            let is_doubtful = run.suspect.iter().flatten().any(|code| DOUBTFUL.contains(&code.as_str()));
            left_out_of_path(run, main_uplink).is_none() && !is_doubtful
        };
        let measured = runs.iter().filter(is_sound).filter_map(|run| match load {
            Load::Idle => run.idle,
            Load::Download => run.under_download,
            Load::Upload => run.under_upload,
            Load::Bidir | Load::Unknown => None,
        });
        let measured = measured.collect::<Vec<RunLatency>>();
        let mut grades = tally(measured.iter().filter_map(|latency| Some(latency.increase?.1)));
        grades.sort_unstable_by_key(|(grade, _)| *grade);
        let micros = |us: Option<u64>| us.map(|us| us as f64);
        Self {
            load,
            count: measured.len(),
            p50_us: Median::of(measured.iter().filter_map(|latency| micros(latency.p50_us))),
            p95_us: Median::of(measured.iter().filter_map(|latency| micros(latency.p95_us))),
            increase_ms: Median::of(measured.iter().filter_map(|latency| Some(latency.increase?.0))),
            grades,
            queues: tally(measured.iter().filter_map(|latency| latency.queue)),
            own_queues: measured.iter().filter(|latency| latency.is_own_queue).count(),
        }
    }
}

/// The outages of the period.
#[derive(Clone, Debug, PartialEq)]
pub struct OutageReport {
    /// The outages one by one, in order of time.
    pub rows: Vec<ReportedOutage>,
    /// The number and the length of the outages, for each extent (what was unreachable).
    pub sums: Vec<ExtentSum>,
    /// The number of hours of the period in which a target beyond the gateway was probed.
    pub observed_hours: usize,
    /// The length of the period in hours, rounded up.
    pub period_hours: usize,
    /// Whether a monitor probed the gateway in the period.
    pub has_gateway: bool,
}

/// One outage, as a report on a line lists it.
#[derive(Clone, Debug, PartialEq)]
pub struct ReportedOutage {
    /// When the outage began.
    pub began_at: Timestamp,
    /// When the outage ended; absent while the outage lasts.
    pub ended_at: Option<Timestamp>,
    /// Whether the outage ended at `ended_at`. If not, `ended_at` is when the outage was last observed.
    pub is_end_known: bool,
    /// How long the outage lasted within the period, in seconds.
    pub seconds: u64,
    /// What was unreachable during the outage.
    pub extent: OutageExtent,
    /// The names of the monitors whose target was not reachable.
    pub failed: Vec<String>,
    /// The names of the monitors whose target was reachable throughout the outage.
    pub reachable: Vec<String>,
}

/// All outages of one extent, summed up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExtentSum {
    /// What was unreachable during each of the summed outages.
    pub extent: OutageExtent,
    /// The number of outages of the extent `extent`.
    pub count: usize,
    /// The total time that the outages of the extent lasted within the period, in seconds.
    pub seconds: u64,
    /// How long the longest outage of the extent lasted within the period, in seconds.
    pub longest_s: u64,
}

impl OutageExtent {
    /// What was reachable during an outage of this extent, in words.
    pub fn as_words(self) -> &'static str {
        match self {
            Self::BeyondGateway => "the router was reachable, but nothing beyond it",
            Self::Everything => "nothing was reachable, not even the router",
            Self::Target => "other targets beyond the router were reachable",
            Self::Gateway => "the router did not answer, but targets beyond it did",
            Self::Unknown => "nothing else was probed",
        }
    }
}

impl OutageReport {
    pub(super) fn of(input: &ReportInput, names: &mut Names) -> Self {
        let mut rows = Vec::new();
        for outage in &input.outages {
            let mut shown = |monitors: &BTreeSet<String>| monitors.iter().map(|name| names.monitor(name)).collect();
            rows.push(ReportedOutage {
                began_at: outage.began_at,
                ended_at: outage.ended_at,
                is_end_known: outage.is_end_known,
                seconds: seconds_within(outage, input.since, input.until),
                extent: outage.extent,
                failed: shown(&outage.failed),
                reachable: shown(&outage.reachable),
            });
        }
        let mut sums = BTreeMap::<OutageExtent, ExtentSum>::new();
        for ReportedOutage { extent, seconds, .. } in &rows {
            let empty = ExtentSum { extent: *extent, count: 0, seconds: 0, longest_s: 0 };
            let sum = sums.entry(*extent).or_insert(empty);
            sum.count += 1;
            sum.seconds += seconds;
            sum.longest_s = sum.longest_s.max(*seconds);
        }
        let probed = input.hours.iter().filter(|hour| hour.count > 0);
        let beyond = probed.clone().filter(|hour| !hour.is_gateway).map(|hour| hour.begins_at);
        let period_s = input.until.as_second().saturating_sub(input.since.as_second()).max(0);
        Self {
            rows,
            sums: sums.into_values().collect(),
            observed_hours: beyond.collect::<BTreeSet<_>>().len(),
            period_hours: usize::try_from((period_s + 3_599) / 3_600).unwrap_or(usize::MAX),
            has_gateway: probed.clone().any(|hour| hour.is_gateway),
        }
    }

    /// The sum of the outages of `extent`; `None` if there were no such outages.
    pub fn sum(&self, extent: OutageExtent) -> Option<ExtentSum> {
        self.sums.iter().find(|sum| sum.extent == extent).copied()
    }
}

/// How long an outage lasted within the period from `since` to `until`, in seconds. An outage without an end counts up
/// to the end of the period.
fn seconds_within(outage: &ReportOutage, since: Timestamp, until: Timestamp) -> u64 {
    let (began, ended) = (outage.began_at.max(since), outage.ended_at.unwrap_or(until).min(until));
    u64::try_from(ended.as_second().saturating_sub(began.as_second())).unwrap_or(0)
}

/// What the probes of one monitor show in the period of a report.
#[derive(Clone, Debug, PartialEq)]
pub struct MonitorReport {
    /// The name of the monitor.
    pub name: String,
    /// The target that the monitor probes, as text; absent in a redacted report.
    pub target: Option<String>,
    /// Whether the target is the gateway.
    pub is_gateway: bool,
    /// The probes of the whole period.
    pub all: MonitorPart,
    /// The probes in the evening hours of the period.
    pub evening: MonitorPart,
    /// The probes in the night hours of the period.
    pub night: MonitorPart,
}

/// What the probes of one monitor show, in the whole period or only in its evening or night hours.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MonitorPart {
    /// The number of hours in which probes of the monitor were answered or lost.
    pub hours: usize,
    /// The number of probes that were answered or lost.
    pub probes: u64,
    /// The number of probes that were lost.
    pub lost: u64,
    /// Each hour has a median round trip. This is the median of these, in microseconds; absent with too few hours.
    pub p50_us: Option<Median>,
    /// Each hour has a 95th percentile of its round trips. This is the median of these, in microseconds; absent with
    /// too few hours.
    pub p95_us: Option<Median>,
}

impl MonitorPart {
    fn of<'a>(hours: impl Iterator<Item = &'a MonitorHour> + Clone) -> Self {
        let micros = |us: Option<u64>| us.map(|us| us as f64);
        Self {
            hours: hours.clone().count(),
            probes: hours.clone().map(|hour| hour.count).sum(),
            lost: hours.clone().map(|hour| hour.lost).sum(),
            p50_us: Median::of(hours.clone().filter_map(|hour| micros(hour.p50_us))),
            p95_us: Median::of(hours.filter_map(|hour| micros(hour.p95_us))),
        }
    }

    /// The share of lost probes; `None` without probes.
    pub fn loss(&self) -> Option<f64> {
        (self.probes > 0).then(|| self.lost as f64 / self.probes as f64)
    }
}

/// What the probes of each monitor show, in the order of the monitors' names.
pub(super) fn monitors(hours: &[MonitorHour], zone: &TimeZone, names: &mut Names) -> Vec<MonitorReport> {
    let mut of_monitor = BTreeMap::<&str, Vec<&MonitorHour>>::new();
    for hour in hours.iter().filter(|hour| hour.count > 0) {
        of_monitor.entry(&hour.monitor).or_default().push(hour);
    }
    let is_in =
        |hour: &MonitorHour, part: &std::ops::Range<i8>| part.contains(&zone.to_datetime(hour.begins_at).hour());
    let report = |(name, hours): (&str, Vec<&MonitorHour>)| {
        let all = || hours.iter().copied();
        let first = hours.first()?;
        Some(MonitorReport {
            name: names.monitor(name),
            target: names.detail(&first.target),
            is_gateway: first.is_gateway,
            all: MonitorPart::of(all()),
            evening: MonitorPart::of(all().filter(|hour| is_in(hour, &EVENING))),
            night: MonitorPart::of(all().filter(|hour| is_in(hour, &NIGHT))),
        })
    };
    of_monitor.into_iter().filter_map(report).collect()
}
