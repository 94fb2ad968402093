//! Writes the table of all runs of a report as CSV.

use paramedic_link::test_spec::Direction;

use super::rates::line_bps;
use super::{LineReport, ReportRow};
use crate::table::text_cell;

/// The names of the CSV columns. Scripts rely on the names and on the order, so add new columns at the end.
const COLUMNS: &str = "id,started_at,local_time,other_end,engine,download_bps,download_line_bps,download_share,\
     download_counts,download_limited_by,upload_bps,upload_line_bps,upload_share,upload_counts,upload_limited_by,\
     rtt_idle_us,rtt_download_us,rtt_upload_us,interface_kind,complete,error";

pub(super) fn table(report: &LineReport) -> String {
    let mut text = format!("{COLUMNS}\n");
    for row in &report.runs {
        text += &cells(report, row).join(",");
        text.push('\n');
    }
    text
}

fn cells(report: &LineReport, row: &ReportRow) -> Vec<String> {
    let run = &row.run;
    let mut cells = vec![
        run.id.to_string(),
        run.started_at.to_string(),
        report.local_time(run.started_at),
        text_cell(&row.other_end),
        super::names::code(&run.engine),
    ];
    for (direction, left_out) in
        [(Direction::Download, row.download_left_out), (Direction::Upload, row.upload_left_out)]
    {
        let Some(rate) = run.rate(direction) else {
            cells.extend(std::iter::repeat_n(String::new(), 5));
            continue;
        };
        let promise = report.plan.and_then(|plan| plan.of(direction));
        let share = promise.map(|promise| line_bps(rate) as f64 / promise.promised_bps as f64);
        cells.push(rate.bps.to_string());
        cells.push(rate.wire_bps.map(|bps| bps.to_string()).unwrap_or_default());
        cells.push(share.map(|share| format!("{share:.4}")).unwrap_or_default());
        cells.push(left_out.map_or("yes", |why| why.as_str()).to_owned());
        cells.push(rate.cause.map(|cause| cause.as_str().to_owned()).unwrap_or_default());
    }
    let median = |latency: Option<super::RunLatency>| {
        latency.and_then(|latency| latency.p50_us).map(|us| us.to_string()).unwrap_or_default()
    };
    cells.extend([run.idle, run.under_download, run.under_upload].map(median));
    let kind = row.interface.map(|kind| kind.as_str().to_owned());
    cells.extend([kind.unwrap_or_default(), run.is_complete.to_string(), row.error.clone().unwrap_or_default()]);
    cells
}
