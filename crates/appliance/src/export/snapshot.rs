//! The line and the service at one moment, as plain values: the only source of the metrics and of the messages for Home
//! Assistant.

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

/// The state of the line and of the service at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct LineSnapshot {
    /// The moment of the snapshot.
    pub at: Timestamp,
    /// The version of the program.
    pub version: String,
    /// The first digits of the commit from which the program was built; `None` if the build did not know the commit.
    pub commit: Option<String>,
    /// The Endpoint ID of this device.
    pub endpoint_id: String,
    /// When the service started.
    pub started_at: Timestamp,
    /// The state of the service: one of [`SERVICE_STATES`].
    pub state: String,
    /// Whether the system clock is trusted.
    pub clock_trusted: bool,
    /// Whether an outage lasts at this moment.
    pub has_outage: bool,
    /// Every monitor, sorted by name.
    pub monitors: Vec<MonitorSnapshot>,
    /// What the store contains; `None` if the store cannot be read.
    pub stored: Option<StoredSnapshot>,
}

/// What the store contains at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StoredSnapshot {
    /// The latest result for each pair of target and engine, newest first.
    pub results: Vec<LatestResult>,
    /// The plan: what the contract with the Internet provider promises; `None` if no plan was entered.
    pub plan: Option<Plan>,
    /// The number and the total time of the outages, by scope.
    pub outages: Vec<OutageSum>,
    /// Every schedule, sorted by name.
    pub schedules: Vec<ScheduleSnapshot>,
    /// The payload bytes of the tests of the current calendar month.
    pub month_bytes: u64,
    /// The numbers of monitors that were removed, the highest number first.
    pub removed_monitors: Vec<i64>,
}

/// The latest result for a pair of target and engine.
#[derive(Clone, Debug, PartialEq)]
pub struct LatestResult {
    /// The name of the paired reflector, or the address of another server.
    pub target: String,
    /// What the latest run measured.
    pub run: LatestRun,
}

/// A monitor at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct MonitorSnapshot {
    /// The number that identifies the monitor. It is never reused.
    pub number: i64,
    /// The name of the monitor.
    pub name: String,
    /// The state of the monitor: one of [`MONITOR_STATES`].
    pub state: String,
    /// Counts of the monitor's probes since the service started.
    pub totals: ProbeTotals,
    /// The probes of the monitor in the last quarter of an hour.
    pub recent: SeriesPoint,
}

/// A schedule at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScheduleSnapshot {
    /// The name of the schedule.
    pub name: String,
    /// Whether the schedule is enabled.
    pub enabled: bool,
    /// The start of the next run of the schedule; `None` if no run is planned.
    pub next_start: Option<Timestamp>,
    /// The outcome of the schedule's last run, with the time at which that run ended or was skipped. While that run
    /// lasts, the time is when it began.
    pub last: Option<(Timestamp, ScheduleRunOutcome)>,
}

impl LatestResult {
    /// The median round trip under a load, in microseconds; `None` if it was not measured.
    pub fn round_trip_us(&self, load: Load) -> Option<u64> {
        match load {
            Load::Idle => self.run.rtt_idle_us,
            Load::Download => self.run.rtt_download_us,
            Load::Upload => self.run.rtt_upload_us,
            Load::Bidir | Load::Unknown => None,
        }
    }

    /// The share of lost probes under a load (0 to 1): in the direction with the higher loss, or of the round trips if
    /// the directions are unknown. `None` if it was not measured.
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

    /// A snapshot in which every value is known.
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
