//! The report on an Internet line for its provider: what was measured in a period, how the results compare with the
//! contract, and what they do not prove. Every statement names the runs, the monitors or the outages that support it,
//! or says that there were too few. Pure: no I/O, no clock.

mod csv;
mod findings;
mod input;
mod limits;
mod median;
mod method;
mod names;
mod observed;
mod rates;
mod selection;

#[cfg(test)]
mod tests;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use paramedic_link::test_spec::{Direction, Load};

use names::Names;

pub use findings::Finding;
pub use input::{
    Contract, ContractRate, InterfaceSeen, LinkMedium, MonitorHour, OutageExtent, ReportInput, ReportOutage, ReportRun,
    RunLatency, RunRate,
};
pub use median::Median;
pub use method::{InterfaceReport, MeasuredEnd, MethodReport};
pub use observed::{ExtentSum, LatencyReport, MonitorPart, MonitorReport, OutageReport, ReportedOutage};
pub use rates::{
    Comparison, CountedRate, DirectionReport, EVENING, HourRates, LEAST_COMPARED, LEAST_DAYS, LeftOutCount,
    LevelReached, NIGHT, PartOfDay, PlanLevel, TARGET_SHARE,
};
pub use selection::LeftOut;

/// A report on an Internet line over a period of time.
#[derive(Clone, Debug)]
pub struct LineReport {
    /// The start of the period that the report covers.
    pub since: Timestamp,
    /// The end of the period that the report covers.
    pub until: Timestamp,
    /// When the report was made.
    pub made_at: Timestamp,
    /// The time zone of the times, days and hours in the report.
    pub zone: TimeZone,
    /// The rates that the contract of the line promises; absent if no contract is known.
    pub plan: Option<Contract>,
    /// Whether the report leaves out names, addresses and Endpoint IDs.
    pub is_redacted: bool,
    /// What the runs, monitors and outages show, in sentences.
    pub findings: Vec<Finding>,
    /// The rates of the line: one entry for download and one for upload.
    pub directions: Vec<DirectionReport>,
    /// The latency without load, during the download, and during the upload.
    pub latencies: Vec<LatencyReport>,
    /// The outages of the period.
    pub outages: OutageReport,
    /// What each monitor measured in the period.
    pub monitors: Vec<MonitorReport>,
    /// How the runs were measured.
    pub method: MethodReport,
    /// The name of the interface that most runs used as uplink; absent if no run recorded its uplink. Runs over another
    /// uplink do not count.
    pub main_uplink: Option<String>,
    /// The number of saved results of the period that cannot be read.
    pub unreadable: usize,
    /// What the report does not prove.
    pub limits: Vec<String>,
    /// Every run of the period, in order of time.
    pub runs: Vec<ReportRow>,
}

/// One row in the report's table of all runs.
#[derive(Clone, Debug, PartialEq)]
pub struct ReportRow {
    /// The run and its measured values.
    pub run: ReportRun,
    /// The name of the other end of the run, as the report shows it.
    pub other_end: String,
    /// Why the download of the run does not count; absent if the download counts or was not measured.
    pub download_left_out: Option<LeftOut>,
    /// Why the upload of the run does not count; absent if the upload counts or was not measured.
    pub upload_left_out: Option<LeftOut>,
    /// How the network interface that the appliance used for the run was connected; absent if the interface is unknown.
    pub interface: Option<LinkMedium>,
    /// The code of the error that ended the run; absent if no error ended it.
    pub error: Option<String>,
}

impl LineReport {
    /// Makes the report from `input`.
    pub fn of(input: ReportInput) -> Self {
        let mut names = Names::new(input.is_redacted);
        let uplink = selection::main_uplink(&input.runs);
        let main_uplink = uplink.as_deref();
        let method = MethodReport::of(&input.runs, &input.zone, &mut names);
        let directions = Direction::BOTH.map(|direction| {
            let promise = input.plan.and_then(|plan| plan.of(direction));
            DirectionReport::of(direction, promise, &input.runs, main_uplink, &input.zone)
        });
        let latencies = [Load::Idle, Load::Download, Load::Upload];
        let latencies = latencies.map(|load| LatencyReport::of(load, &input.runs, main_uplink));
        let outages = OutageReport::of(&input, &mut names);
        let monitors = observed::monitors(&input.hours, &input.zone, &mut names);
        let is_redacted = input.is_redacted;
        let row = |run: ReportRun| ReportRow {
            other_end: names.other_end(&run),
            download_left_out: selection::left_out(&run, Direction::Download, main_uplink),
            upload_left_out: selection::left_out(&run, Direction::Upload, main_uplink),
            interface: run.interface.as_ref().map(InterfaceSeen::kind),
            error: run.error.as_deref().map(names::code),
            run: if is_redacted { run.without_names() } else { run },
        };
        let runs = input.runs.into_iter().map(row).collect();
        let mut report = Self {
            since: input.since,
            until: input.until,
            made_at: input.made_at,
            zone: input.zone,
            plan: input.plan,
            is_redacted,
            findings: Vec::new(),
            directions: directions.into(),
            latencies: latencies.into(),
            outages,
            monitors,
            method,
            main_uplink: uplink.map(|name| names.interface(&name)),
            unreadable: input.unreadable,
            limits: Vec::new(),
            runs,
        };
        report.findings = findings::all(&report);
        report.limits = limits::all(&report);
        report
    }

    /// The table of all runs as CSV with a header line. Follows RFC 4180, except that lines end with a plain newline.
    pub fn to_csv(&self) -> String {
        csv::table(self)
    }

    /// The time `at` as text in the time zone of the report: `2026-01-31 19:05`.
    pub fn local_time(&self, at: Timestamp) -> String {
        let local = self.zone.to_datetime(at);
        format!("{} {:02}:{:02}", local.date(), local.hour(), local.minute())
    }

    /// Whether the period has no runs, no monitors and no outages.
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty() && self.monitors.is_empty() && self.outages.rows.is_empty()
    }
}

/// Counts how often each value occurs. The most frequent value is first; equally frequent values keep the order of
/// their first occurrence.
fn tally<T: PartialEq>(values: impl IntoIterator<Item = T>) -> Vec<(T, usize)> {
    let mut counts = Vec::<(T, usize)>::new();
    for value in values {
        match counts.iter_mut().find(|(own, _)| *own == value) {
            Some((_, count)) => *count += 1,
            None => counts.push((value, 1)),
        }
    }
    counts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    counts
}
