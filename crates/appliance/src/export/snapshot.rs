//! The line and the service at one moment, as plain values: the one source of the metrics and of the messages for Home Assistant.

use jiff::Timestamp;
use paramedic_link::test_spec::Load;

use crate::monitor::ProbeTotals;
use crate::monitor::series::SeriesPoint;
use crate::plan::Plan;
use crate::store::{LatestRun, OutageSum, ScheduleRunOutcome};

/// The states of a monitor, in words.
pub const MONITOR_STATES: [&str; 3] = ["running", "paused", "unreachable"];
/// The states of the service, in words.
pub const SERVICE_STATES: [&str; 3] = ["running", "faulted", "stopping"];

/// The line and the service at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct LineSnapshot {
    /// When.
    pub at: Timestamp,
    /// The program's version.
    pub version: String,
    /// The first digits of its commit.
    pub commit: Option<String>,
    /// This device's Endpoint ID.
    pub endpoint_id: String,
    /// When the service started.
    pub started_at: Timestamp,
    /// One of [`SERVICE_STATES`].
    pub state: String,
    /// Whether the system clock is trusted.
    pub clock_trusted: bool,
    /// The outage that lasts.
    pub has_outage: bool,
    /// Every monitor, by name.
    pub monitors: Vec<MonitorSnapshot>,
    /// What the store has; `None` if it cannot be read.
    pub stored: Option<StoredSnapshot>,
}

/// What the store has.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StoredSnapshot {
    /// The latest result of each target and engine, the latest one first. No two have the same target and engine.
    pub results: Vec<LatestResult>,
    /// What the contract promises.
    pub plan: Option<Plan>,
    /// The outages by scope.
    pub outages: Vec<OutageSum>,
    /// Every schedule, by name.
    pub schedules: Vec<ScheduleSnapshot>,
    /// The payload bytes of the tests of the calendar month.
    pub month_bytes: u64,
    /// The keys of monitors that were removed, the latest one first.
    pub removed_monitors: Vec<i64>,
}

/// The latest result of a target and an engine.
#[derive(Clone, Debug, PartialEq)]
pub struct LatestResult {
    /// The name of the paired reflector, or the address of another server.
    pub target: String,
    /// What was measured.
    pub run: LatestRun,
}

/// A monitor.
#[derive(Clone, Debug, PartialEq)]
pub struct MonitorSnapshot {
    /// Its key.
    pub number: i64,
    /// Its name.
    pub name: String,
    /// One of [`MONITOR_STATES`].
    pub state: String,
    /// Its probes since the service started.
    pub totals: ProbeTotals,
    /// Its probes of the last quarter of an hour.
    pub recent: SeriesPoint,
}

/// A schedule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScheduleSnapshot {
    /// Its name.
    pub name: String,
    /// Whether it runs.
    pub enabled: bool,
    /// The start of the next run.
    pub next_start: Option<Timestamp>,
    /// The outcome of the last run, with the time when that run ended or was skipped. If it is still running, when it
    /// began.
    pub last: Option<(Timestamp, ScheduleRunOutcome)>,
}

impl LatestResult {
    /// The median round trip under a load, in microseconds.
    pub fn round_trip_us(&self, load: Load) -> Option<u64> {
        match load {
            Load::Idle => self.run.rtt_idle_us,
            Load::Download => self.run.rtt_download_us,
            Load::Upload => self.run.rtt_upload_us,
            Load::Bidir | Load::Unknown => None,
        }
    }

    /// The share of lost probes under a load, of the worse direction.
    pub fn loss(&self, load: Load) -> Option<f64> {
        match load {
            Load::Idle => self.run.loss_idle,
            Load::Download => self.run.loss_download,
            Load::Upload => self.run.loss_upload,
            Load::Bidir | Load::Unknown => None,
        }
    }
}

#[cfg(test)]
pub(crate) mod example {
    use std::time::Duration;

    use super::*;
    use crate::monitor::minute::{ProbeOutcome, ProbeTally};
    use crate::monitor::outage::OutageScope;
    use crate::plan::PromisedRate;

    fn monitor(number: i64, name: &str, state: &str) -> MonitorSnapshot {
        let (mut totals, mut tally) = (ProbeTotals::default(), ProbeTally::default());
        let answered = |ms| ProbeOutcome::Answered { round_trip: Duration::from_millis(ms), is_under_load: false };
        for outcome in [answered(2), answered(4), ProbeOutcome::Lost] {
            totals.note(outcome);
            tally.note(outcome);
        }
        let recent = SeriesPoint::of(0, &tally);
        MonitorSnapshot { number, name: name.to_owned(), state: state.to_owned(), totals, recent }
    }

    /// A line of which everything is known.
    pub(crate) fn full() -> LineSnapshot {
        let at = |second: i64| Timestamp::from_second(1_769_860_800 + second).unwrap();
        let run = |engine: &str| LatestRun {
            started_at: at(0),
            engine: engine.to_owned(),
            endpoint_id: Some("PP-attic".to_owned()),
            address: Some("203.0.113.7:4000".to_owned()),
            download_bps: Some(941_000_000),
            upload_bps: Some(94_200_000),
            rtt_idle_us: Some(12_300),
            rtt_download_us: Some(24_600),
            rtt_upload_us: Some(30_100),
            loss_idle: Some(0.0),
            loss_download: Some(0.01),
            loss_upload: Some(0.25),
        };
        let rate = |promised_bps, normal_bps| PromisedRate { promised_bps, normal_bps, minimum_bps: None };
        LineSnapshot {
            at: at(60),
            version: "0.1.0".to_owned(),
            commit: Some("1a2b".to_owned()),
            endpoint_id: "PP-self".to_owned(),
            started_at: at(-60),
            state: "running".to_owned(),
            clock_trusted: true,
            has_outage: true,
            monitors: vec![monitor(1, "gateway", "running"), monitor(2, "a\"b\\c\nd", "unreachable")],
            stored: Some(StoredSnapshot {
                results: ["tcp", "udp"].map(|engine| LatestResult { target: "attic".into(), run: run(engine) }).into(),
                plan: Some(Plan {
                    name: None,
                    download: rate(250_000_000, Some(200_000_000)),
                    upload: rate(40_000_000, None),
                }),
                outages: vec![OutageSum { scope: OutageScope::Everything, count: 2, total_us: 90_000_000 }],
                schedules: vec![ScheduleSnapshot {
                    name: "nightly".to_owned(),
                    enabled: true,
                    next_start: Some(at(3600)),
                    last: Some((at(-3600), ScheduleRunOutcome::Skipped)),
                }],
                month_bytes: 5_000_000_000,
                removed_monitors: vec![7],
            }),
        }
    }
}
