//! Exports tables page by page: the outages, the runs of schedules, and the measurements of a monitor. Returns the
//! lines to the caller, and writes no file itself. Results have their own export: [`Export`].

use std::collections::BTreeSet;

use jiff::Timestamp;
use paramedic_report::table::text_cell;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{ApplianceStore, Export, PageCursor, ScheduleRun, StorageError, StoredOutage, TimeRange};
use crate::monitor::series::{Resolution, SeriesPoint};

/// The number of rows that are read at once.
const PAGE: u32 = 500;

/// A table that can be exported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExportedTable {
    /// The outages, by the time at which they began.
    Outages,
    /// The runs of one schedule, or of all, by the time at which they started or were skipped.
    ScheduleRuns {
        /// The id of the schedule; `None` for the runs of all schedules.
        schedule: Option<Uuid>,
    },
    /// What a monitor measured, in rows of one minute, hour or day.
    Monitor {
        /// The key of the monitor.
        number: i64,
        /// The name of the monitor.
        name: String,
        /// Whether a row is a minute, an hour or a day.
        resolution: Resolution,
    },
}

/// The format of an exported table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TableFormat {
    /// One JSON object per line.
    #[default]
    JsonLines,
    /// A table with a header (RFC 4180, but lines end with a plain newline).
    Csv,
}

/// What a monitor measured in a minute, an hour or a day.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MonitorSpan {
    /// The name of the monitor.
    pub monitor: String,
    /// The begin of the minute, the hour or the day.
    pub at: Timestamp,
    /// The length of the minute, the hour or the day, in seconds.
    pub span_s: i64,
    /// The probes of the monitor in this time.
    #[serde(flatten)]
    pub probes: SeriesPoint,
}

impl TableFormat {
    const ALL: [(Self, &'static str); 2] = [(Self::JsonLines, "jsonl"), (Self::Csv, "csv")];

    /// The name of the format in a request.
    pub fn as_str(self) -> &'static str {
        Self::ALL.iter().find(|(own, _)| *own == self).map_or("", |(_, word)| word)
    }

    /// The format with this name.
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, own)| *own == word).map(|(format, _)| *format)
    }
}

/// An export that is read page by page, so that a slow reader of the export holds no lock on the database.
pub trait ExportLines: Send + 'static {
    /// The next lines of the export, without newlines; `None` at the end.
    fn next_lines(&mut self) -> impl Future<Output = Result<Option<Vec<String>>, StorageError>> + Send;
}

impl ExportLines for Export {
    async fn next_lines(&mut self) -> Result<Option<Vec<String>>, StorageError> {
        Self::next_lines(self).await
    }
}

/// The export of the rows of a table.
#[derive(Debug)]
pub struct TableExport {
    store: ApplianceStore,
    table: ExportedTable,
    range: TimeRange,
    format: TableFormat,
    /// The time and the id of the last row that was read.
    last: Option<PageCursor>,
    is_begun: bool,
}

impl ApplianceStore {
    /// Exports the rows of a table whose time is in `range`, the oldest first. A row that is added during the export
    /// may be included.
    pub fn export_table(&self, table: ExportedTable, range: TimeRange, format: TableFormat) -> TableExport {
        TableExport { store: self.clone(), table, range, format, last: None, is_begun: false }
    }
}

impl ExportLines for TableExport {
    async fn next_lines(&mut self) -> Result<Option<Vec<String>>, StorageError> {
        if !std::mem::replace(&mut self.is_begun, true) && self.format == TableFormat::Csv {
            let header = match self.table {
                ExportedTable::Outages => header(&OUTAGE_COLUMNS),
                ExportedTable::ScheduleRuns { .. } => header(&RUN_COLUMNS),
                ExportedTable::Monitor { .. } => header(&MONITOR_COLUMNS),
            };
            return Ok(Some(vec![header]));
        }
        let lines = match &self.table {
            ExportedTable::Outages => {
                let page = self.store.outages_between(self.range, self.last, PAGE).await?;
                self.last = page.last().map(|row| PageCursor { at: row.began_at, id: row.id }).or(self.last);
                self.lines(&page, &OUTAGE_COLUMNS)?
            }
            ExportedTable::ScheduleRuns { schedule } => {
                let page = self.store.schedule_runs_between(*schedule, self.range, self.last, PAGE).await?;
                self.last = page.last().map(|row| PageCursor { at: row.decided_at, id: row.id }).or(self.last);
                self.lines(&page, &RUN_COLUMNS)?
            }
            ExportedTable::Monitor { number, name, resolution } => {
                let page = self.monitor_page(*number, name, *resolution).await?;
                self.last = page.last().map(|row| PageCursor { at: row.at, id: Uuid::nil() }).or(self.last);
                self.lines(&page, &MONITOR_COLUMNS)?
            }
        };
        Ok(Some(lines).filter(|lines| !lines.is_empty()))
    }
}

impl TableExport {
    async fn monitor_page(
        &self,
        number: i64,
        name: &str,
        resolution: Resolution,
    ) -> Result<Vec<MonitorSpan>, StorageError> {
        let (since_us, until_us) = self.range.bounds_us();
        let first = match self.last {
            Some(last) => last.at.as_second().div_euclid(60) + 1,
            None => minute_after(since_us),
        };
        let rows = self.store.monitor_rows_of(number, resolution, first, minute_after(until_us), PAGE).await?;
        let span_s = resolution.minutes() * 60;
        let span = |(minute, tally)| {
            let at_s = i64::saturating_mul(minute, 60);
            let at = Timestamp::from_second(at_s).unwrap_or(Timestamp::MAX);
            MonitorSpan { monitor: name.to_owned(), at, span_s, probes: SeriesPoint::of(at_s, &tally) }
        };
        Ok(rows.into_iter().map(span).collect())
    }

    fn lines<R: Serialize, const N: usize>(
        &self,
        rows: &[R],
        columns: &[(&str, TableCell<R>); N],
    ) -> Result<Vec<String>, StorageError> {
        let line = |row: &R| match self.format {
            TableFormat::JsonLines => serde_json::to_string(row).map_err(|source| StorageError::Document { source }),
            TableFormat::Csv => Ok(columns.each_ref().map(|(_, cell)| cell(row).unwrap_or_default()).join(",")),
        };
        rows.iter().map(line).collect()
    }
}

/// The first minute since 1970 that begins at this time or later.
fn minute_after(us: i64) -> i64 {
    us.div_euclid(60_000_000).saturating_add(i64::from(us.rem_euclid(60_000_000) != 0))
}

/// Computes the text of a row in one column; `None` for an empty cell.
type TableCell<R> = fn(&R) -> Option<String>;

fn header<R, const N: usize>(columns: &[(&str, TableCell<R>); N]) -> String {
    columns.each_ref().map(|(name, _)| *name).join(",")
}

fn names(names: &BTreeSet<String>) -> String {
    text_cell(&names.iter().map(String::as_str).collect::<Vec<_>>().join("; "))
}

/// The columns of the exported outages. Scripts rely on the names and the order of the columns of each table, so add a
/// new column at the end.
const OUTAGE_COLUMNS: [(&str, TableCell<StoredOutage>); 8] = [
    ("id", |row| Some(row.id.to_string())),
    ("began_at", |row| Some(row.began_at.to_string())),
    ("ended_at", |row| row.ended_at.map(|at| at.to_string())),
    ("end_known", |row| Some(row.end_known.to_string())),
    ("duration_s", |row| {
        let us = row.ended_at?.as_microsecond().saturating_sub(row.began_at.as_microsecond());
        Some((us as f64 / 1e6).to_string())
    }),
    ("scope", |row| Some(row.scope.as_str().to_owned())),
    ("failed", |row| Some(names(&row.failed))),
    ("reachable", |row| Some(names(&row.reachable))),
];

const RUN_COLUMNS: [(&str, TableCell<ScheduleRun>); 11] = [
    ("id", |row| Some(row.id.to_string())),
    ("schedule_id", |row| Some(row.schedule_id.to_string())),
    ("schedule", |row| Some(text_cell(&row.schedule))),
    ("due_at", |row| Some(row.due_at.to_string())),
    ("decided_at", |row| Some(row.decided_at.to_string())),
    ("ended_at", |row| row.ended_at.map(|at| at.to_string())),
    ("requested", |row| Some(row.requested.to_string())),
    ("outcome", |row| Some(row.outcome.as_str().to_owned())),
    ("reason", |row| row.reason.as_deref().map(text_cell)),
    ("result_id", |row| row.result_id.map(|id| id.to_string())),
    ("data_used_bytes", |row| Some(row.data_used_bytes.to_string())),
];

const MONITOR_COLUMNS: [(&str, TableCell<MonitorSpan>); 10] = [
    ("monitor", |row| Some(text_cell(&row.monitor))),
    ("at", |row| Some(row.at.to_string())),
    ("span_s", |row| Some(row.span_s.to_string())),
    ("count", |row| Some(row.probes.count.to_string())),
    ("lost", |row| Some(row.probes.lost.to_string())),
    ("under_load", |row| Some(row.probes.under_load.to_string())),
    ("min_us", |row| row.probes.min_us.map(|us| us.to_string())),
    ("p50_us", |row| row.probes.p50_us.map(|us| us.to_string())),
    ("p95_us", |row| row.probes.p95_us.map(|us| us.to_string())),
    ("max_us", |row| row.probes.max_us.map(|us| us.to_string())),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::monitor::ProbeTally;
    use crate::monitor::outage::OutageScope;
    use crate::schedule::admission::SkipReason;
    use crate::schedule::planner::{DueRun, SkippedRun};
    use crate::store::MonitorMinute;
    use crate::store::each_engine::on_each_engine;

    /// The time `second` seconds after 2026-01-31T12:00:00Z.
    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_769_860_800 + second).unwrap()
    }

    fn between(since: i64, until: i64) -> TimeRange {
        TimeRange { since: Some(at(since)), until: Some(at(until)) }
    }

    async fn every_line(mut export: TableExport) -> Vec<String> {
        let mut lines = Vec::new();
        while let Some(more) = export.next_lines().await.unwrap() {
            assert!(!more.is_empty() && more.len() <= PAGE as usize);
            lines.extend(more);
        }
        lines
    }

    fn outage(second: i64) -> StoredOutage {
        StoredOutage {
            id: Uuid::now_v7(),
            began_at: at(second),
            ended_at: Some(at(second + 2)),
            end_known: true,
            scope: OutageScope::Target,
            failed: ["=evil()".to_owned(), "a,b".to_owned()].into(),
            reachable: ["gateway".to_owned()].into(),
        }
    }

    #[tokio::test]
    async fn the_outages_of_a_time_are_exported_oldest_first_however_many() {
        on_each_engine(async |store| {
            let count = i64::from(PAGE) + 2;
            for second in (0..count).rev() {
                store.save_outage("PP", &outage(second)).await.unwrap();
            }
            let lines =
                every_line(store.export_table(ExportedTable::Outages, TimeRange::default(), TableFormat::JsonLines));
            let lines = lines.await;
            let read = lines.iter().map(|line| serde_json::from_str::<StoredOutage>(line).unwrap().began_at);
            assert_eq!(read.collect::<Vec<_>>(), (0..count).map(at).collect::<Vec<_>>());
            let csv = every_line(store.export_table(ExportedTable::Outages, between(5, 7), TableFormat::Csv)).await;
            assert_eq!(csv.len(), 3);
            assert_eq!(csv[0], "id,began_at,ended_at,end_known,duration_s,scope,failed,reachable");
            let cells = ",2026-01-31T12:00:05Z,2026-01-31T12:00:07Z,true,2,target,\"'=evil(); a,b\",gateway";
            assert!(csv[1].ends_with(cells), "{}", csv[1]);
            let none = every_line(store.export_table(ExportedTable::Outages, between(-9, 0), TableFormat::JsonLines));
            assert_eq!(none.await, Vec::<String>::new());
        })
        .await;
    }

    #[tokio::test]
    async fn the_runs_of_a_schedule_are_exported_and_a_name_is_no_formula() {
        on_each_engine(async |store| {
            let schedules = [Uuid::now_v7(), Uuid::now_v7()];
            for second in 0..4 {
                let run = DueRun {
                    schedule: schedules[usize::try_from(second).unwrap() % 2],
                    name: "@nightly".to_owned(),
                    due: at(second),
                    is_requested: false,
                };
                let skipped = SkippedRun { run, reason: SkipReason::Missed };
                store.note_skipped_run("PP", &skipped, at(second)).await.unwrap();
            }
            let table = ExportedTable::ScheduleRuns { schedule: Some(schedules[1]) };
            let csv = every_line(store.export_table(table, TimeRange::default(), TableFormat::Csv)).await;
            assert_eq!(csv.len(), 3);
            assert!(csv[1].contains(",'@nightly,2026-01-31T12:00:01Z,2026-01-31T12:00:01Z,"), "{}", csv[1]);
            assert!(csv[1].ends_with(",false,skipped,missed,,0"), "{}", csv[1]);
            let all = ExportedTable::ScheduleRuns { schedule: None };
            let lines = every_line(store.export_table(all, between(1, 3), TableFormat::JsonLines)).await;
            let due = lines.iter().map(|line| serde_json::from_str::<ScheduleRun>(line).unwrap().due_at);
            assert_eq!(due.collect::<Vec<_>>(), [at(1), at(2)]);
        })
        .await;
    }

    #[tokio::test]
    async fn the_minutes_and_hours_of_a_monitor_are_exported() {
        on_each_engine(async |store| {
            let begin = at(0).as_second() / 60;
            let minute = |number, minute| {
                let tally = ProbeTally { count: 60, lost: 3, ..ProbeTally::default() };
                MonitorMinute { number, minute: begin + minute, tally }
            };
            let minutes = (0..=60).flat_map(|at| [minute(1, at), minute(2, at)]).collect::<Vec<_>>();
            store.save_minutes(&minutes, begin + 61).await.unwrap();
            let table = |resolution| ExportedTable::Monitor { number: 1, name: "attic".to_owned(), resolution };
            let of_minutes = table(Resolution::Minutes);
            // The minute in which a range begins is not whole.
            let csv = every_line(store.export_table(of_minutes.clone(), between(30, 180), TableFormat::Csv)).await;
            assert_eq!(csv[0], "monitor,at,span_s,count,lost,under_load,min_us,p50_us,p95_us,max_us");
            assert_eq!(
                csv[1..],
                ["attic,2026-01-31T12:01:00Z,60,60,3,0,,,,", "attic,2026-01-31T12:02:00Z,60,60,3,0,,,,"]
            );
            let all = every_line(store.export_table(of_minutes, TimeRange::default(), TableFormat::JsonLines)).await;
            assert_eq!(all.len(), 61);
            let hours = store.export_table(table(Resolution::Hours), TimeRange::default(), TableFormat::JsonLines);
            let hours = every_line(hours).await;
            let hour = serde_json::from_str::<MonitorSpan>(&hours[0]).unwrap();
            assert_eq!((hours.len(), hour.at, hour.span_s, hour.probes.count), (1, at(0), 3600, 3600));
        })
        .await;
    }

    #[test]
    fn a_minute_is_in_a_range_if_it_begins_there() {
        for (us, minute) in [(0, 0), (1, 1), (60_000_000, 1), (-1, 0), (-60_000_000, -1)] {
            assert_eq!(minute_after(us), minute, "{us}");
        }
        assert!(minute_after(i64::MIN) < minute_after(i64::MAX));
    }
}
