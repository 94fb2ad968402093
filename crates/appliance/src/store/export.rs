//! Exports runs as JSON lines or CSV, for other programs. Returns the lines to the caller, and writes no file itself.

use paramedic_link::test_spec::Load;
use paramedic_report::document::ResultDocument;
use paramedic_report::summary::RunSummary;
use paramedic_report::table::text_cell;

use super::{ApplianceStore, RunPosition, RunQuery, SavedRun, StorageError};

/// The format of an export of runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ExportFormat {
    /// One result document per line, as JSON.
    #[default]
    JsonLines,
    /// A table of the summaries with a header (RFC 4180, but lines end with a plain newline).
    Csv,
    /// One summary per line, as JSON.
    Summaries,
}

/// The number of documents that are read at once: a few megabytes at most.
const PAGE: u32 = 64;
/// The number of summaries that are read at once.
const SUMMARY_PAGE: u32 = 500;

impl ExportFormat {
    const ALL: [(Self, &'static str); 3] =
        [(Self::JsonLines, "jsonl"), (Self::Csv, "csv"), (Self::Summaries, "summaries")];

    /// The name of the format in a request.
    pub fn as_str(self) -> &'static str {
        Self::ALL.iter().find(|(own, _)| *own == self).map_or("", |(_, word)| word)
    }

    /// The format with this name.
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, own)| *own == word).map(|(format, _)| *format)
    }
}

/// An export of runs. It is read page by page, so that a slow reader of the export holds no lock on the database.
#[derive(Debug)]
pub struct Export {
    store: ApplianceStore,
    query: RunQuery,
    format: ExportFormat,
    last: Option<RunPosition>,
    left: u32,
    is_begun: bool,
}

impl ApplianceStore {
    /// Exports the runs of a query. A run that is saved during the export may be included.
    pub fn export(&self, query: RunQuery, format: ExportFormat) -> Export {
        let left = query.limit.unwrap_or(u32::MAX);
        Export { store: self.clone(), query, format, last: None, left, is_begun: false }
    }
}

impl Export {
    /// The next lines of the export, without newlines; `None` at the end.
    pub async fn next_lines(&mut self) -> Result<Option<Vec<String>>, StorageError> {
        if !std::mem::replace(&mut self.is_begun, true) && self.format == ExportFormat::Csv {
            return Ok(Some(vec![CSV_COLUMNS.map(|(name, _)| name).join(",")]));
        }
        let page = self.next_page().await?;
        let Some((position, _)) = page.last() else { return Ok(None) };
        self.last = Some(position.clone());
        self.left = self.left.saturating_sub(u32::try_from(page.len()).unwrap_or(u32::MAX));
        Ok(Some(page.into_iter().map(|(_, line)| line).collect()))
    }

    /// The lines of the next runs, with the position of each.
    async fn next_page(&self) -> Result<Vec<(RunPosition, String)>, StorageError> {
        let Self { store, query, format, left, .. } = self;
        let last = self.last.as_ref();
        if *format == ExportFormat::Summaries {
            let page = store.runs(query, last, SUMMARY_PAGE.min(*left)).await?;
            let line = |run: &RunSummary| Ok((RunPosition::of(run), serde_json::to_string(run)?));
            let lines = page.iter().map(line).collect::<Result<Vec<_>, _>>();
            return lines.map_err(|source| StorageError::Document { source });
        }
        let page = store.documents(query, last, PAGE.min(*left)).await?;
        let line = |(position, run): (RunPosition, SavedRun)| {
            let text = match format {
                ExportFormat::Csv => csv_row(&run.document()?),
                ExportFormat::JsonLines | ExportFormat::Summaries => one_line(&run.text),
            };
            Ok((position, text))
        };
        page.into_iter().map(line).collect()
    }
}

/// Removes the white space between the tokens of a JSON text. Works on the text, so that all numbers and the order of
/// names are preserved.
fn one_line(json: &str) -> String {
    let mut line = String::with_capacity(json.len());
    let (mut in_string, mut escaped) = (false, false);
    for c in json.chars() {
        if !in_string && matches!(c, ' ' | '\n' | '\r' | '\t') {
            continue;
        }
        if c == '"' && !escaped {
            in_string = !in_string;
        }
        escaped = c == '\\' && !escaped;
        line.push(c);
    }
    line
}

/// A run as a row of the CSV table.
struct CsvRow<'a> {
    run: RunSummary,
    document: &'a ResultDocument,
}

/// Computes the text of a run in one column; `None` for an empty cell.
type Cell = fn(&CsvRow<'_>) -> Option<String>;

/// The columns of the CSV table. Scripts rely on their names and order: add new ones at the end.
const CSV_COLUMNS: [(&str, Cell); 28] = [
    ("id", |CsvRow { run, .. }| Some(run.id.to_string())),
    ("started_at", |CsvRow { run, .. }| Some(run.started_at.to_string())),
    ("provider", |CsvRow { run, .. }| Some(text_cell(&run.provider))),
    ("engine", |CsvRow { run, .. }| Some(text_cell(&run.engine))),
    ("peer", |CsvRow { run, .. }| run.peer.as_deref().map(text_cell)),
    ("address", |CsvRow { run, .. }| run.address.as_deref().map(text_cell)),
    ("endpoint_id", |CsvRow { run, .. }| run.endpoint_id.map(|id| id.to_string())),
    ("download_bps", |CsvRow { run, .. }| run.download_bps.map(|bps| bps.to_string())),
    ("upload_bps", |CsvRow { run, .. }| run.upload_bps.map(|bps| bps.to_string())),
    ("rtt_idle_us", |CsvRow { run, .. }| run.rtt_idle_us.map(|us| us.to_string())),
    ("rtt_download_us", |CsvRow { run, .. }| run.rtt_download_us.map(|us| us.to_string())),
    ("rtt_upload_us", |CsvRow { run, .. }| run.rtt_upload_us.map(|us| us.to_string())),
    ("bufferbloat_download", |CsvRow { run, .. }| run.bufferbloat_download.map(|grade| grade.to_string())),
    ("bufferbloat_upload", |CsvRow { run, .. }| run.bufferbloat_upload.map(|grade| grade.to_string())),
    ("data_used_bytes", |CsvRow { run, .. }| Some(run.data_used_bytes.to_string())),
    ("complete", |CsvRow { run, .. }| Some(run.complete.to_string())),
    ("error", |CsvRow { run, .. }| run.error.as_ref().map(|error| text_cell(&error.code))),
    ("error_text", |CsvRow { run, .. }| {
        run.error.as_ref().map(|error| text_cell(&format!("{}: {}", error.what, error.because)))
    }),
    ("loss_idle", |row| row.loss(Load::Idle)),
    ("loss_download", |row| row.loss(Load::Download)),
    ("loss_upload", |row| row.loss(Load::Upload)),
    ("jitter_idle_us", |row| row.jitter(Load::Idle)),
    ("jitter_download_us", |row| row.jitter(Load::Download)),
    ("jitter_upload_us", |row| row.jitter(Load::Upload)),
    ("retransmits_download", |row| row.document.download.as_ref()?.retransmits.map(|count| count.to_string())),
    ("retransmits_upload", |row| row.document.upload.as_ref()?.retransmits.map(|count| count.to_string())),
    ("datagram_loss_download", |row| row.document.download.as_ref()?.udp.map(|udp| udp.loss.to_string())),
    ("datagram_loss_upload", |row| row.document.upload.as_ref()?.udp.map(|udp| udp.loss.to_string())),
];

impl CsvRow<'_> {
    /// The share of probes (0 to 1) that were lost under this load: in the direction that lost more, or of the round
    /// trips if the directions are unknown. `None` if it was not measured.
    fn loss(&self, load: Load) -> Option<String> {
        self.document.latency.of(load)?.worst_loss().map(|share| share.to_string())
    }

    fn jitter(&self, load: Load) -> Option<String> {
        self.document.latency.of(load)?.jitter_us.map(|us| us.to_string())
    }
}

fn csv_row(document: &ResultDocument) -> String {
    let row = CsvRow { run: RunSummary::of(document), document };
    CSV_COLUMNS.map(|(_, cell)| cell(&row).unwrap_or_default()).join(",")
}

#[cfg(test)]
mod tests {
    use paramedic_report::document::example;
    use proptest::prelude::*;

    use super::*;
    use crate::store::RunOrder;
    use crate::store::each_engine::{TestPlace, on_each_engine};

    async fn every_line(mut export: Export) -> Vec<String> {
        let mut lines = Vec::new();
        while let Some(more) = export.next_lines().await.unwrap() {
            lines.extend(more);
        }
        lines
    }

    async fn exported(format: ExportFormat) -> Vec<String> {
        let mut of_engines = Vec::new();
        for place in TestPlace::each() {
            let history = place.open().await.unwrap();
            for document in [example::bare(), example::full()] {
                history.save_run(&document).await.unwrap();
            }
            let query = RunQuery { order: RunOrder::OldestFirst, ..RunQuery::default() };
            of_engines.push(every_line(history.export(query, format)).await);
        }
        let lines = of_engines.pop().unwrap();
        assert!(of_engines.iter().all(|others| *others == lines), "the same from each engine: {of_engines:?}");
        lines
    }

    #[tokio::test]
    async fn json_lines_are_the_documents_oldest_first() {
        let lines = Box::pin(exported(ExportFormat::JsonLines)).await;
        let documents = lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect::<Vec<ResultDocument>>();
        assert_eq!(documents, [example::full(), example::bare()]);
        assert_eq!(lines[0], serde_json::to_string(&example::full()).unwrap());
    }

    #[tokio::test]
    async fn csv_has_a_header_and_empty_cells_for_missing_values() {
        let lines = Box::pin(exported(ExportFormat::Csv)).await;
        assert_eq!(lines.len(), 3);
        assert!(lines[0].starts_with("id,started_at,provider,engine,peer,"));
        assert!(lines[1].contains(",attic,203.0.113.7:4000,PP-"), "{}", lines[1]);
        assert!(lines[1].contains(",941000000,94200000,12300,24600,30100,A,A,2410000000,true,,,"), "{}", lines[1]);
        assert!(lines[2].ends_with(",50000000,,,,,,,62500000,true,,,,,,,,,,,,"), "{}", lines[2]);
    }

    #[tokio::test]
    async fn more_runs_than_a_page_are_all_exported() {
        on_each_engine(async |history| {
            for n in 0..=PAGE {
                let id = example::run_id(u8::try_from(n).unwrap());
                history.save_run(&ResultDocument { id, ..example::bare() }).await.unwrap();
            }
            let (newest, oldest) = (example::run_id(u8::try_from(PAGE).unwrap()), example::run_id(0));
            for (order, limit, first, expected) in [
                (RunOrder::NewestFirst, None, newest, PAGE + 1),
                (RunOrder::OldestFirst, None, oldest, PAGE + 1),
                (RunOrder::NewestFirst, Some(PAGE), newest, PAGE),
            ] {
                let query = RunQuery { order, limit, ..RunQuery::default() };
                for format in [ExportFormat::JsonLines, ExportFormat::Summaries] {
                    let lines = every_line(history.export(query.clone(), format)).await;
                    let id = |line: &String| serde_json::from_str::<serde_json::Value>(line).unwrap()["id"].clone();
                    let ids = lines.iter().map(id).collect::<Vec<_>>();
                    let different = ids.iter().map(ToString::to_string).collect::<std::collections::BTreeSet<_>>();
                    assert_eq!((ids.len(), different.len()), (expected as usize, expected as usize), "{query:?}");
                    assert_eq!(ids[0], first.to_string());
                }
            }
        })
        .await;
    }

    proptest! {
        #[test]
        fn one_line_has_the_same_content(text in "\\PC*", number: i64, fraction: f64) {
            let value = serde_json::json!({ &text: [number, fraction, { "a\\\" b": text }], "empty": {} });
            let pretty = serde_json::to_string_pretty(&value).unwrap();
            prop_assert_eq!(one_line(&pretty), serde_json::to_string(&value).unwrap());
        }
    }
}
