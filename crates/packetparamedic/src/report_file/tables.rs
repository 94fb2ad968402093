//! The tables of a report, with all cells as text.

use paramedic_link::test_spec::{Direction, Load};
use paramedic_report::document::QueueSide;
use paramedic_report::line_report::{
    DirectionReport, LineReport, LinkMedium, Median, MethodReport, MonitorPart, PartOfDay, PlanLevel, ReportRow,
};
use paramedic_report::quantity;

use super::direction_name;

/// The maximum number of outages that the report's page lists.
const MAX_OUTAGES: usize = 200;
/// The maximum number of runs that the report's page lists.
const MAX_RUNS: usize = 1_000;

/// A table of a report, with all cells as text.
pub(super) struct ReportTable {
    /// The title of the table.
    pub(super) title: String,
    /// The head of each column, and whether the column has numbers.
    pub(super) columns: Vec<(&'static str, bool)>,
    /// The rows of cells. The first cell of each row is the head of the row.
    pub(super) rows: Vec<Vec<String>>,
    /// The text that replaces the rows if the table has no rows.
    pub(super) empty: &'static str,
}

impl ReportTable {
    fn new(title: &str, columns: &[(&'static str, bool)], rows: Vec<Vec<String>>, empty: &'static str) -> Self {
        Self { title: title.to_owned(), columns: columns.to_vec(), rows, empty }
    }

    /// Whether the column with the index `at` has numbers.
    pub(super) fn is_number(&self, at: &usize) -> bool {
        self.columns.get(*at).is_some_and(|(_, is_number)| *is_number)
    }
}

/// The text in place of a value that was not measured, or that too few runs measured.
const NONE: &str = "–";

fn rate(median: Option<Median>) -> String {
    median.map_or_else(|| NONE.to_owned(), |median| quantity::rate(median.value as u64))
}

fn micros(median: Option<Median>) -> String {
    median.map_or_else(|| NONE.to_owned(), |median| quantity::micros(median.value as u64))
}

fn interval(median: Option<Median>) -> String {
    let interval = median.and_then(|median| median.interval);
    interval.map_or_else(
        || NONE.to_owned(),
        |[low, high]| format!("{} to {}", quantity::rate(low as u64), quantity::rate(high as u64)),
    )
}

fn seconds(seconds: u64) -> String {
    quantity::millis(seconds.saturating_mul(1000))
}

fn share(direction: &DirectionReport, median: Option<Median>) -> String {
    let share = direction.promise.zip(median).map(|(promise, median)| median.value / promise.promised_bps as f64);
    share.map_or_else(|| NONE.to_owned(), quantity::share)
}

/// Describes in a sentence how the device was connected to its network.
pub(super) fn connection(method: &MethodReport) -> String {
    let mut parts = Vec::new();
    for (interface, runs) in &method.interfaces {
        let speed = interface.speed_bps.map(|bps| format!(", {}", quantity::rate(bps))).unwrap_or_default();
        let duplex = match interface.is_half_duplex {
            Some(true) => ", half duplex",
            Some(false) => ", full duplex",
            None => "",
        };
        let kind = match interface.kind {
            LinkMedium::Unknown => "wired or not is not known",
            kind => kind.as_words(),
        };
        parts.push(format!("{}: {kind}{speed}{duplex} ({runs} runs)", interface.name));
    }
    if method.without_interface > 0 {
        parts.push(format!("not known ({} runs)", method.without_interface));
    }
    if parts.is_empty() { "no run in this period".to_owned() } else { parts.join("; ") }
}

pub(super) fn contract(report: &LineReport) -> ReportTable {
    let columns = [
        ("", false),
        ("Promised", true),
        ("Runs that count", true),
        ("Median payload", true),
        ("Median, headers included", true),
        ("Its 95 % interval", true),
        ("Share of the promised rate", true),
        ("Runs that reached it", true),
    ];
    let mut rows = Vec::new();
    for direction in &report.directions {
        let promised =
            direction.promise.map_or_else(|| NONE.to_owned(), |promise| quantity::rate(promise.promised_bps));
        let reached = direction.levels.iter().map(|level| {
            let name = if level.level == PlanLevel::Promised {
                String::new()
            } else {
                format!("{}: ", level.level.as_words())
            };
            format!("{name}{} of {}", level.reached, direction.counted.len())
        });
        let reached = reached.collect::<Vec<_>>().join("; ");
        rows.push(vec![
            direction_name(direction.direction).to_owned(),
            promised,
            direction.counted.len().to_string(),
            rate(direction.payload),
            rate(direction.line),
            interval(direction.line),
            share(direction, direction.line),
            if reached.is_empty() { NONE.to_owned() } else { reached },
        ]);
    }
    ReportTable::new("Against the contract", &columns, rows, "")
}

pub(super) fn evening(report: &LineReport) -> ReportTable {
    let columns =
        [("", false), ("Runs", true), ("Days", true), ("Median, headers included", true), ("Its 95 % interval", true)];
    let mut rows = Vec::new();
    for direction in &report.directions {
        for (name, part) in [("evening, 19 to 23 h", &direction.evening), ("night, 1 to 6 h", &direction.night)] {
            let PartOfDay { count, days, line } = part;
            let name = format!("{}, {name}", direction_name(direction.direction));
            rows.push(vec![name, count.to_string(), days.to_string(), rate(*line), interval(*line)]);
        }
    }
    ReportTable::new("Evening against night", &columns, rows, "")
}

pub(super) fn hours(report: &LineReport) -> ReportTable {
    let columns = [
        ("Hour", false),
        ("Download: runs", true),
        ("Median", true),
        ("Share of the promised rate", true),
        ("Upload: runs", true),
        ("Median", true),
        ("Share of the promised rate", true),
    ];
    let row = |hour: usize| {
        let mut row = vec![format!("{hour} h")];
        for direction in &report.directions {
            let of_hour = direction.hours.get(hour)?;
            row.extend([of_hour.count.to_string(), rate(of_hour.line), share(direction, of_hour.line)]);
        }
        Some(row)
    };
    let rows = if report.runs.is_empty() { Vec::new() } else { (0..24).filter_map(row).collect() };
    let title =
        format!("By the hour of the day, headers included ({NONE} where fewer than {} runs count)", Median::LEAST);
    ReportTable::new(&title, &columns, rows, "No run in this period.")
}

pub(super) fn outage_sums(report: &LineReport) -> ReportTable {
    let columns = [("What was still reachable", false), ("Outages", true), ("Together", true), ("Longest", true)];
    let rows = report.outages.sums.iter().map(|sum| {
        vec![sum.extent.as_words().to_owned(), sum.count.to_string(), seconds(sum.seconds), seconds(sum.longest_s)]
    });
    ReportTable::new("Sums", &columns, rows.collect(), "No outage was seen.")
}

pub(super) fn outages(report: &LineReport) -> ReportTable {
    let columns = [
        ("Began", false),
        ("Ended", false),
        ("Within the period", true),
        ("What was still reachable", false),
        ("Not reachable", false),
        ("Reachable all the time", false),
    ];
    let all = &report.outages.rows;
    let rows = all.iter().take(MAX_OUTAGES).map(|outage| {
        let ended = match outage.ended_at {
            None => "lasts".to_owned(),
            Some(at) if outage.is_end_known => report.local_time(at),
            Some(at) => format!("after {}, the service ended", report.local_time(at)),
        };
        vec![
            report.local_time(outage.began_at),
            ended,
            seconds(outage.seconds),
            outage.extent.as_words().to_owned(),
            outage.failed.join(", "),
            outage.reachable.join(", "),
        ]
    });
    let title = match all.len() {
        count if count > MAX_OUTAGES => format!("The first {MAX_OUTAGES} of {count} outages"),
        _ => "Each outage".to_owned(),
    };
    ReportTable::new(&title, &columns, rows.collect(), "No outage was seen.")
}

pub(super) fn latencies(report: &LineReport) -> ReportTable {
    let columns = [
        ("Load", false),
        ("Runs", true),
        ("Median", true),
        ("95th percentile", true),
        ("Rise over idle", true),
        ("Grades", false),
        ("Where the queue stood", false),
    ];
    let rows = report.latencies.iter().map(|latency| {
        let rise = latency.increase_ms.map(|rise| quantity::micros((rise.value.max(0.0) * 1000.0) as u64));
        let grades = latency.grades.iter().map(|(grade, count)| format!("{grade}: {count}")).collect::<Vec<_>>();
        let queues = latency.queues.iter().map(|(side, count)| {
            let side = match side {
                QueueSide::None => "no queue",
                side => side.as_words(),
            };
            format!("{side}: {count}")
        });
        let mut queues = queues.collect::<Vec<_>>();
        if latency.own_queues > 0 {
            queues.push(format!("of these in the device itself: {}", latency.own_queues));
        }
        let or_none = |text: String| if text.is_empty() { NONE.to_owned() } else { text };
        vec![
            latency.load.to_string(),
            latency.count.to_string(),
            micros(latency.p50_us),
            micros(latency.p95_us),
            rise.filter(|_| latency.load != Load::Idle).unwrap_or_else(|| NONE.to_owned()),
            or_none(grades.join(", ")),
            or_none(queues.join(", ")),
        ]
    });
    let title = "Round trips without load, during the download, during the upload";
    ReportTable::new(title, &columns, rows.collect(), "")
}

pub(super) fn monitors(report: &LineReport) -> ReportTable {
    let columns = [
        ("Monitor", false),
        ("Probes", true),
        ("Lost", true),
        ("Median", true),
        ("95th percentile", true),
        ("Evening: lost", true),
        ("Median", true),
        ("Night: lost", true),
        ("Median", true),
    ];
    let loss = |part: &MonitorPart| part.loss().map_or_else(|| NONE.to_owned(), quantity::share);
    let rows = report.monitors.iter().map(|monitor| {
        let target = monitor.target.as_deref().filter(|target| *target != monitor.name);
        vec![
            monitor.name.clone() + &target.map(|target| format!(" ({target})")).unwrap_or_default(),
            monitor.all.probes.to_string(),
            loss(&monitor.all),
            micros(monitor.all.p50_us),
            micros(monitor.all.p95_us),
            loss(&monitor.evening),
            micros(monitor.evening.p50_us),
            loss(&monitor.night),
            micros(monitor.night.p50_us),
        ]
    });
    ReportTable::new("Loss and round trips", &columns, rows.collect(), "No monitor has probed in this period.")
}

pub(super) fn facts(report: &LineReport) -> ReportTable {
    let method = &report.method;
    let list = |values: &[(String, usize)]| {
        values.iter().map(|(name, count)| format!("{name} ({count} runs)")).collect::<Vec<_>>().join(", ")
    };
    let redacted = |list: String, count: usize| match (list.is_empty(), count) {
        (true, 0) => "not known".to_owned(),
        (true, count) => format!("{count}, left out of this report"),
        (false, _) => list,
    };
    let [synchronised, unsynchronised, unknown] = method.clocks;
    let range = |[low, high]: [u64; 2], text: fn(u64) -> String| {
        if low == high { text(low) } else { format!("{} to {}", text(low), text(high)) }
    };
    let streams = method.streams.map(|[low, high]| range([low.into(), high.into()], |count| count.to_string()));
    let steady = method.steady_ms.map(|ends| range(ends, quantity::millis));
    let rows = [
        ("Device", redacted(method.devices.join(", "), method.device_count)),
        ("Its program", method.versions.join(", ")),
        ("Its connection", connection(method)),
        ("Its uplink", if method.uplinks.is_empty() { "not known".to_owned() } else { list(&method.uplinks) }),
        ("Its public address, without the host", redacted(list(&method.prefixes), method.prefix_count)),
        ("Streams of a run", streams.unwrap_or_else(|| NONE.to_owned())),
        ("Counted time of a direction", steady.unwrap_or_else(|| NONE.to_owned())),
        ("Its clock", format!("synchronised in {synchronised} runs, not in {unsynchronised}, not known in {unknown}")),
        (
            "Among the runs that count",
            report
                .directions
                .iter()
                .map(|direction| {
                    let name = direction_name(direction.direction);
                    format!(
                        "{name}: {} not steady, {} whose limit is not known",
                        direction.unsteady, direction.unknown_limit
                    )
                })
                .collect::<Vec<_>>()
                .join("; "),
        ),
    ];
    let rows = rows.into_iter().map(|(name, text)| vec![name.to_owned(), text]).collect();
    ReportTable::new("The device", &[("", false), ("", false)], rows, "")
}

pub(super) fn other_ends(report: &LineReport) -> ReportTable {
    let columns = [("Name", false), ("Address", false), ("Identity", false), ("Engine", false), ("Runs", true)];
    let rows = report.method.other_ends.iter().map(|end| {
        let left_out = || "left out".to_owned();
        let identity = match (&end.endpoint_id, end.is_reflector) {
            (Some(id), _) => id.clone(),
            (None, true) => "proven, left out".to_owned(),
            (None, false) => "not verified".to_owned(),
        };
        vec![
            end.name.clone(),
            end.address.clone().unwrap_or_else(left_out),
            identity,
            end.engine.clone(),
            end.runs.to_string(),
        ]
    });
    ReportTable::new("Measured against", &columns, rows.collect(), "No run reached another end.")
}

pub(super) fn causes(report: &LineReport) -> ReportTable {
    let columns = [("Direction", false), ("What limited the rate (limited_by)", false), ("Runs", true)];
    let mut rows = Vec::new();
    for (direction, causes) in Direction::BOTH.into_iter().zip(&report.method.causes) {
        for (cause, count) in causes {
            let name = direction_name(direction).to_owned();
            rows.push(vec![name, cause.as_words().to_owned(), count.to_string()]);
        }
    }
    ReportTable::new("What limited the rates, of all runs", &columns, rows, "No run says what limited it.")
}

pub(super) fn left_out(report: &LineReport) -> ReportTable {
    let columns = [("Direction", false), ("Why", false), ("Runs", true), ("Of these reached the promised rate", true)];
    let mut rows = Vec::new();
    for direction in &report.directions {
        for reason in &direction.left_out {
            let reached = reason.reached.map_or_else(|| NONE.to_owned(), |reached| reached.to_string());
            let name = direction_name(direction.direction).to_owned();
            rows.push(vec![name, reason.why.as_words().to_owned(), reason.count.to_string(), reached]);
        }
    }
    let title = "Runs that do not count, whatever their rate";
    ReportTable::new(title, &columns, rows, "Every run counts.")
}

pub(super) fn codes(report: &LineReport) -> ReportTable {
    let columns = [("", false), ("Code", false), ("Runs", true)];
    let rows = |kind: &str, codes: &[(String, usize)]| {
        let row = |(code, count): &(String, usize)| vec![kind.to_owned(), code.clone(), count.to_string()];
        codes.iter().map(row).collect::<Vec<_>>()
    };
    let mut all = rows("Error", &report.method.failures);
    all.extend(rows("Warning", &report.method.warnings));
    ReportTable::new("Errors and warnings of all runs", &columns, all, "None.")
}

pub(super) fn runs_note(report: &LineReport) -> String {
    match report.runs.len() {
        count if count > MAX_RUNS => {
            format!("The latest {MAX_RUNS} of {count} runs; the table beside this report (CSV) has all of them.")
        }
        _ => "The table beside this report (CSV) has them for programs.".to_owned(),
    }
}

pub(super) fn runs(report: &LineReport) -> ReportTable {
    let columns = [
        ("Began", false),
        ("Against", false),
        ("Download", true),
        ("Counts", false),
        ("Upload", true),
        ("Counts", false),
        ("Idle", true),
        ("Under download", true),
        ("Under upload", true),
        ("Run", false),
    ];
    let first = report.runs.len().saturating_sub(MAX_RUNS);
    let rows = report.runs.iter().skip(first).map(|row| run_row(report, row)).collect();
    ReportTable::new("Payload, and median round trips", &columns, rows, "No run in this period.")
}

fn run_row(report: &LineReport, row: &ReportRow) -> Vec<String> {
    let run = &row.run;
    let mut cells = vec![report.local_time(run.started_at), row.other_end.clone()];
    for (measured, left_out) in [(run.download, row.download_left_out), (run.upload, row.upload_left_out)] {
        cells.push(measured.map_or_else(|| NONE.to_owned(), |measured| quantity::rate(measured.bps)));
        cells.push(match (measured, left_out, &row.error) {
            (Some(_), None, _) => "yes".to_owned(),
            (_, Some(why), _) => format!("no: {}", why.as_str()),
            (None, None, Some(error)) => format!("not measured: {error}"),
            (None, None, None) => NONE.to_owned(),
        });
    }
    let median = |latency: Option<paramedic_report::line_report::RunLatency>| {
        latency.and_then(|latency| latency.p50_us).map_or_else(|| NONE.to_owned(), quantity::micros)
    };
    cells.extend([run.idle, run.under_download, run.under_upload].map(median));
    let id = run.id.to_string();
    cells.push(id.get(24..).unwrap_or(&id).to_owned());
    cells
}
