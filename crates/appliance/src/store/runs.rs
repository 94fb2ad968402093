//! The saved runs: each result document exactly as `--json` prints it, with the columns of its summary for lists. A
//! saved run never changes, except that the series of its intervals is removed after a time.

use jiff::Timestamp;
use paramedic_link::test_spec::Load;
use paramedic_report::document::ResultDocument;
use paramedic_report::stats::{Grade, Statement};
use paramedic_report::summary::RunSummary;
use uuid::Uuid;

use super::pool::{in_change, on, rows, without_nul};
use super::{ApplianceStore, PageCursor, StorageError, natural, strange, unsigned};

/// The columns of [`RunRow`].
const SUMMARY_COLUMNS: &str = "id, started_at_us, provider, engine, peer, address, endpoint_id, download_bps, upload_bps, \
     rtt_idle_us, rtt_download_us, rtt_upload_us, bufferbloat_download, bufferbloat_upload, data_used_bytes, complete, \
     error";

/// A query for saved runs: which runs, and in which order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RunQuery {
    /// Only runs that began at this time or later.
    pub since: Option<Timestamp>,
    /// Only runs that began before this time.
    pub until: Option<Timestamp>,
    /// Only runs against this other end: its name (now, or when the run was measured), its address or its Endpoint ID.
    pub peer: Option<String>,
    /// Only runs of this engine.
    pub engine: Option<String>,
    /// The order of the runs.
    pub order: RunOrder,
    /// The maximum number of runs in an export or on a page. [`ApplianceStore::runs`] ignores it and has its own
    /// `count`.
    pub limit: Option<u32>,
}

/// The order of runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RunOrder {
    /// The latest run first.
    #[default]
    NewestFirst,
    /// The earliest run first.
    OldestFirst,
}

/// The place of a run in the order of time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunPosition {
    started_at_us: i64,
    id: String,
}

pub(super) const READING: &str = "reading the runs";

/// The SQL condition for the runs of a query. Parameters: $1 since, $2 until, $3 the other end, $4 the engine, $5 the
/// other end in lower case. Rust computes $5, because the result of lower() depends on the locale of a PostgreSQL
/// database.
pub(super) const CHOSEN: &str = "started_at_us >= $1 AND started_at_us < $2 AND ($3 IS NULL OR lower(peer) = $5 \
     OR address = $3 OR endpoint_id = $3 OR endpoint_id IN \
     (SELECT endpoint_id FROM reflectors WHERE lower(name) = $5)) AND ($4 IS NULL OR engine = $4)";

/// The other end for which a query asks, twice: as it is, and in lower case. Both are `None` if the query asks for no
/// particular other end.
pub(super) fn other_end(query: &RunQuery) -> [Option<String>; 2] {
    let peer = query.peer.as_deref().map(without_nul);
    let lower = peer.as_deref().map(str::to_ascii_lowercase);
    [peer, lower]
}

/// The SQL text for one page of the runs of `query`. Parameters: those of [`CHOSEN`], then $6 and $7 (the time and the
/// id of the run before the page), and $8 (the maximum number of runs). The text consists only of constants.
///
/// If `query` asks for one other end, the SQL searches each column that can identify this end by the index of that
/// column, because most runs may be against other ends.
fn page_of_runs(columns: &str, query: &RunQuery) -> String {
    let (beyond, direction) = match query.order {
        RunOrder::NewestFirst => ("<", "DESC"),
        RunOrder::OldestFirst => (">", "ASC"),
    };
    let page = format!(
        "(started_at_us {beyond} $6 OR id {beyond} $7) ORDER BY started_at_us {direction}, id {direction} LIMIT $8"
    );
    if query.peer.is_none() {
        return format!("SELECT {columns} FROM runs WHERE {CHOSEN} AND {page}");
    }
    let ways = [
        "lower(peer) = $5",
        "address = $3",
        "endpoint_id = $3",
        "endpoint_id = (SELECT endpoint_id FROM reflectors WHERE lower(name) = $5)",
    ];
    let named = ways.iter().enumerate().map(|(number, way)| {
        format!(
            "SELECT id FROM (SELECT id FROM runs WHERE started_at_us >= $1 AND started_at_us < $2 AND {way} \
             AND ($4 IS NULL OR engine = $4) AND {page}) AS way{number}"
        )
    });
    let named = named.collect::<Vec<_>>().join(" UNION ");
    format!("SELECT {columns} FROM runs WHERE id IN ({named}) AND {page}")
}

/// The range of begin times in which the runs of a page are searched: from the first value (included) to the second
/// (excluded). The position `after` narrows the range, so that the index is read only from there.
fn time_bounds(query: &RunQuery, after: Option<&RunPosition>) -> (i64, i64) {
    let since = query.since.map_or(i64::MIN, Timestamp::as_microsecond);
    let until = query.until.map_or(i64::MAX, Timestamp::as_microsecond);
    match (after, query.order) {
        (None, _) => (since, until),
        (Some(after), RunOrder::NewestFirst) => (since, until.min(after.started_at_us.saturating_add(1))),
        (Some(after), RunOrder::OldestFirst) => (since.max(after.started_at_us), until),
    }
}

/// A saved run, with its result document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedRun {
    /// The run's id.
    pub id: Uuid,
    /// The document exactly as `--json` prints it, without the newline after it.
    pub text: String,
}

impl SavedRun {
    /// Parses the result document of the run.
    pub fn document(&self) -> Result<ResultDocument, StorageError> {
        serde_json::from_str(&self.text).map_err(|source| StorageError::Document { source })
    }
}

/// The stored columns of the summary of a run.
#[derive(sqlx::FromRow)]
struct RunRow {
    id: String,
    started_at_us: i64,
    provider: String,
    engine: String,
    peer: Option<String>,
    address: Option<String>,
    endpoint_id: Option<String>,
    download_bps: Option<i64>,
    upload_bps: Option<i64>,
    rtt_idle_us: Option<i64>,
    rtt_download_us: Option<i64>,
    rtt_upload_us: Option<i64>,
    bufferbloat_download: Option<String>,
    bufferbloat_upload: Option<String>,
    data_used_bytes: i64,
    complete: bool,
    error: Option<String>,
}

impl RunPosition {
    /// The position of a run in the order of time.
    pub(super) fn of(run: &RunSummary) -> Self {
        Self { started_at_us: run.started_at.as_microsecond(), id: run.id.to_string() }
    }
}

impl From<PageCursor> for RunPosition {
    fn from(cursor: PageCursor) -> Self {
        Self { started_at_us: cursor.at.as_microsecond(), id: cursor.id.to_string() }
    }
}

impl RunRow {
    fn summary(self) -> Result<RunSummary, sqlx::Error> {
        Ok(RunSummary {
            id: self.id.parse().map_err(strange)?,
            started_at: Timestamp::from_microsecond(self.started_at_us).map_err(strange)?,
            provider: self.provider,
            engine: self.engine,
            peer: self.peer,
            address: self.address,
            endpoint_id: self.endpoint_id.map(|id| id.parse()).transpose().map_err(strange)?,
            download_bps: self.download_bps.map(natural),
            upload_bps: self.upload_bps.map(natural),
            rtt_idle_us: self.rtt_idle_us.map(natural),
            rtt_download_us: self.rtt_download_us.map(natural),
            rtt_upload_us: self.rtt_upload_us.map(natural),
            bufferbloat_download: self.bufferbloat_download.map(|word| grade(&word)).transpose()?,
            bufferbloat_upload: self.bufferbloat_upload.map(|word| grade(&word)).transpose()?,
            data_used_bytes: natural(self.data_used_bytes),
            complete: self.complete,
            error: self.error.map(|text| serde_json::from_str(&text)).transpose().map_err(strange)?,
        })
    }
}

impl ApplianceStore {
    /// Saves a run as exactly the text that `--json` prints.
    pub async fn save_run(&self, document: &ResultDocument) -> Result<(), StorageError> {
        let text = document.to_text().map_err(|source| StorageError::Document { source })?;
        self.insert_run_document(document, &text).await.map(drop)
    }

    /// Saves a run of another store, byte for byte. Returns `false` if this store already has the run.
    pub async fn import_run(&self, text: &str) -> Result<bool, StorageError> {
        let document = serde_json::from_str(text).map_err(|source| StorageError::Document { source })?;
        self.insert_run_document(&document, text).await
    }

    /// Inserts a run. A run that is already stored is not changed. Returns whether the run is new.
    async fn insert_run_document(&self, document: &ResultDocument, text: &str) -> Result<bool, StorageError> {
        let run = RunSummary::of(document);
        let error = run.error.as_ref().map(serde_json::to_string).transpose();
        let error = error.map_err(|source| StorageError::Document { source })?;
        let p95 = |load| Some(unsigned(document.latency.of(load)?.round_trip_us(Statement::P95)?));
        let loss = |load| document.latency.of(load)?.worst_loss();
        on!(self.pool, |db| sqlx::query(
            "INSERT INTO runs (id, started_at_us, provider, engine, peer, address, endpoint_id, download_bps, \
             upload_bps, rtt_idle_us, rtt_download_us, rtt_upload_us, bufferbloat_download, bufferbloat_upload, \
             data_used_bytes, complete, document, error, appliance, has_series, rtt_idle_p95_us, \
             rtt_download_p95_us, rtt_upload_p95_us, loss_idle, loss_download, loss_upload) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, \
             $22, $23, $24, $25, $26) \
             ON CONFLICT (id) DO NOTHING",
        )
        .bind(run.id.to_string())
        .bind(run.started_at.as_microsecond())
        .bind(without_nul(&run.provider))
        .bind(without_nul(&run.engine))
        .bind(run.peer.as_deref().map(without_nul))
        .bind(run.address.as_deref().map(without_nul))
        .bind(run.endpoint_id.map(|id| id.to_string()))
        .bind(run.download_bps.map(unsigned))
        .bind(run.upload_bps.map(unsigned))
        .bind(run.rtt_idle_us.map(unsigned))
        .bind(run.rtt_download_us.map(unsigned))
        .bind(run.rtt_upload_us.map(unsigned))
        .bind(run.bufferbloat_download.map(|grade| grade.to_string()))
        .bind(run.bufferbloat_upload.map(|grade| grade.to_string()))
        .bind(unsigned(run.data_used_bytes))
        .bind(run.complete)
        .bind(text)
        .bind(error)
        .bind(document.appliance.endpoint_id.to_string())
        .bind(document.has_series())
        .bind(p95(Load::Idle))
        .bind(p95(Load::Download))
        .bind(p95(Load::Upload))
        .bind(loss(Load::Idle))
        .bind(loss(Load::Download))
        .bind(loss(Load::Upload))
        .execute(db)
        .await
        .map(rows))
        .map(|rows| rows > 0)
        .map_err(self.fault("saving the run"))
        .inspect(|_| {
            self.sums().forget(run.started_at.as_microsecond());
            self.latest().saved(run.started_at.as_microsecond());
        })
    }

    /// The runs that `query` selects, in its order, at most `count`. The list begins after the position `after`, or
    /// with the first run if `after` is `None`.
    pub async fn runs(
        &self,
        query: &RunQuery,
        after: Option<&RunPosition>,
        count: u32,
    ) -> Result<Vec<RunSummary>, StorageError> {
        let rows = self.run_rows::<RunRow>(SUMMARY_COLUMNS, query, after, count).await?;
        rows.into_iter().map(|row| row.summary().map_err(self.fault(READING))).collect()
    }

    /// The runs that `query` selects, with their documents and positions, at most `count`. The list begins after the
    /// position `after`, or with the first run if `after` is `None`.
    pub async fn documents(
        &self,
        query: &RunQuery,
        after: Option<&RunPosition>,
        count: u32,
    ) -> Result<Vec<(RunPosition, SavedRun)>, StorageError> {
        let rows = self.run_rows::<(String, i64, String)>("id, started_at_us, document", query, after, count).await?;
        let run = |(id, started_at_us, text): (String, i64, String)| {
            let position = RunPosition { started_at_us, id: id.clone() };
            Ok((position, saved((id, text)).map_err(self.fault(READING))?))
        };
        rows.into_iter().map(run).collect()
    }

    async fn run_rows<R>(
        &self,
        columns: &str,
        query: &RunQuery,
        after: Option<&RunPosition>,
        count: u32,
    ) -> Result<Vec<R>, StorageError>
    where
        R: for<'r> sqlx::FromRow<'r, sqlx::sqlite::SqliteRow>
            + for<'r> sqlx::FromRow<'r, sqlx::postgres::PgRow>
            + Send
            + Unpin,
    {
        let start = match query.order {
            RunOrder::NewestFirst => i64::MAX,
            RunOrder::OldestFirst => i64::MIN,
        };
        let sql = page_of_runs(columns, query);
        let (since, until) = time_bounds(query, after);
        let [peer, lower] = other_end(query);
        on!(self.pool, |db| sqlx::query_as::<_, R>(sqlx::AssertSqlSafe(sql))
            .bind(since)
            .bind(until)
            .bind(peer)
            .bind(query.engine.as_deref().map(without_nul))
            .bind(lower)
            .bind(after.map_or(start, |after| after.started_at_us))
            .bind(after.map_or("", |after| &after.id))
            .bind(i64::from(count))
            .fetch_all(db)
            .await)
        .map_err(self.fault(READING))
    }

    /// Finds the run with this whole id, and returns its position in the order of time.
    pub async fn run_position(&self, id: &str) -> Result<RunPosition, StorageError> {
        let started_at_us = on!(self.pool, |db| sqlx::query_scalar("SELECT started_at_us FROM runs WHERE id = $1")
            .bind(without_nul(id))
            .fetch_optional(db)
            .await)
        .map_err(self.fault(READING))?;
        let started_at_us = started_at_us.ok_or_else(|| StorageError::NoSuchRun { wanted: id.to_owned() })?;
        Ok(RunPosition { started_at_us, id: id.to_owned() })
    }

    /// Deletes the runs that `wanted` lists: each text is the id of a run, or the begin or the end of an id. Deletes
    /// nothing if one of the texts matches no run or several runs. Returns the ids of the deleted runs.
    pub async fn delete_runs(&self, wanted: &[String]) -> Result<Vec<Uuid>, StorageError> {
        let mut ids = Vec::new();
        for wanted in wanted {
            let id = self.run(wanted).await?.id;
            if !ids.contains(&id) {
                ids.push(id);
            }
        }
        let fault = || self.fault("deleting runs");
        let mut work = self.pool.begin().await.map_err(fault())?;
        for id in &ids {
            in_change!(&mut work, |db| sqlx::query("DELETE FROM runs WHERE id = $1")
                .bind(id.to_string())
                .execute(db)
                .await
                .map(rows))
            .map_err(fault())?;
        }
        work.commit().await.map_err(fault())?;
        self.sums().clear();
        self.latest().forget();
        Ok(ids)
    }

    /// The only run whose id equals `wanted`, or begins or ends with it. Ids begin with the time, so runs of the same
    /// minute differ only near the end.
    pub async fn run(&self, wanted: &str) -> Result<SavedRun, StorageError> {
        let fault = || self.fault("reading the run");
        let part = wanted.trim().to_ascii_lowercase();
        // Allows only hexadecimal digits and dashes, which have no special meaning in LIKE.
        if part.is_empty() || !part.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-') {
            return Err(StorageError::NoSuchRun { wanted: wanted.to_owned() });
        }
        // A whole id is looked up directly, without a search through all ids.
        let sql = match part.parse::<Uuid>() {
            Ok(_) if part.len() == 36 => "SELECT id, document FROM runs WHERE id = $1",
            _ => "SELECT id, document FROM runs WHERE id LIKE $1 || '%' OR id LIKE '%' || $1 LIMIT 2",
        };
        let mut found = on!(self.pool, |db| sqlx::query_as::<_, (String, String)>(sql).bind(part).fetch_all(db).await)
            .map_err(fault())?;
        match (found.pop(), found.pop()) {
            (Some(row), None) => saved(row).map_err(fault()),
            (None, _) => Err(StorageError::NoSuchRun { wanted: wanted.to_owned() }),
            (Some(_), Some(_)) => Err(StorageError::AmbiguousRun { wanted: wanted.to_owned() }),
        }
    }
}

fn saved((id, text): (String, String)) -> Result<SavedRun, sqlx::Error> {
    Ok(SavedRun { id: id.parse().map_err(strange)?, text })
}

fn grade(word: &str) -> Result<Grade, sqlx::Error> {
    serde_json::from_value(word.into()).map_err(strange)
}

#[cfg(test)]
mod tests {
    use paramedic_report::document::example;

    use super::*;
    use crate::store::each_engine::on_each_engine;

    #[tokio::test]
    async fn runs_are_found_by_time_and_by_every_name_of_the_other_end() {
        on_each_engine(async |history| {
            let (full, bare) = (example::full(), example::bare());
            for document in [&full, &bare] {
                history.save_run(document).await.unwrap();
            }
            let found = async |query: RunQuery| {
                let runs = history.runs(&query, None, 10).await.unwrap();
                runs.iter().map(|run| run.id).collect::<Vec<_>>()
            };
            let (first, second) = (full.started_at, bare.started_at);
            assert!(first < second);
            let since = |since| RunQuery { since: Some(since), ..RunQuery::default() };
            let until = |until| RunQuery { until: Some(until), ..RunQuery::default() };
            assert_eq!(
                (found(since(first)).await, found(since(second)).await),
                (vec![bare.id, full.id], vec![bare.id])
            );
            assert_eq!((found(until(first)).await, found(until(second)).await), (vec![], vec![full.id]));
            let oldest = RunQuery { order: RunOrder::OldestFirst, ..RunQuery::default() };
            assert_eq!(found(oldest).await, [full.id, bare.id]);
            let end = full.reflector.as_ref().unwrap();
            let renamed = crate::store::Reflector {
                endpoint_id: end.endpoint_id,
                name: "cellar".into(),
                address: "203.0.113.8".parse().unwrap(),
                paired_at: first,
            };
            history.add_reflector(&renamed).await.unwrap();
            for peer in ["ATTIC", &end.address, &end.endpoint_id.to_string(), "cellar"] {
                let of_peer = RunQuery { peer: Some(peer.to_owned()), ..RunQuery::default() };
                assert!(found(of_peer).await.contains(&full.id), "{peer}");
            }
            let other = RunQuery { peer: Some("elsewhere".to_owned()), ..RunQuery::default() };
            assert!(found(other).await.is_empty());
        })
        .await;
    }

    #[tokio::test]
    async fn runs_are_deleted_all_or_none() {
        on_each_engine(async |history| {
            let (full, bare) = (example::full().id.to_string(), example::bare().id.to_string());
            for document in [example::full(), example::bare()] {
                history.save_run(&document).await.unwrap();
            }
            let refused = history.delete_runs(&[full.clone(), "ffffffff".to_owned()]).await;
            assert!(matches!(refused, Err(StorageError::NoSuchRun { .. })), "{refused:?}");
            assert_eq!(history.runs(&RunQuery::default(), None, 10).await.unwrap().len(), 2);
            let deleted = history.delete_runs(&[bare.clone(), full.clone(), bare[20..].to_owned()]).await.unwrap();
            assert_eq!(deleted.iter().map(ToString::to_string).collect::<Vec<_>>(), [bare, full]);
            assert_eq!(history.runs(&RunQuery::default(), None, 10).await.unwrap(), []);
        })
        .await;
    }

    #[tokio::test]
    async fn a_failed_run_is_listed_with_its_error() {
        on_each_engine(async |history| {
            let error = paramedic_report::document::ErrorBody {
                code: "unreachable".to_owned(),
                what: "cannot reach it".to_owned(),
                because: "connection refused".to_owned(),
                try_: "start it".to_owned(),
                retry_after_ms: None,
            };
            let failed = ResultDocument { complete: false, error: Some(error.clone()), ..example::bare() };
            history.save_run(&failed).await.unwrap();
            assert_eq!(history.runs(&RunQuery::default(), None, 10).await.unwrap()[0].error, Some(error));
        })
        .await;
    }

    #[tokio::test]
    async fn a_saved_run_is_read_back_byte_for_byte() {
        on_each_engine(async |history| {
            for document in [example::full(), example::bare()] {
                history.save_run(&document).await.unwrap();
                let saved = history.run(&document.id.to_string()).await.unwrap();
                assert_eq!(saved.text, document.to_text().unwrap());
                assert_eq!(saved.document().unwrap(), document);
            }
        })
        .await;
    }

    #[tokio::test]
    async fn runs_are_listed_newest_first_up_to_the_limit() {
        on_each_engine(async |history| {
            for document in [example::bare(), example::full()] {
                history.save_run(&document).await.unwrap();
            }
            let runs = history.runs(&RunQuery::default(), None, 10).await.unwrap();
            assert_eq!(runs, [RunSummary::of(&example::bare()), RunSummary::of(&example::full())]);
            assert_eq!(runs[1].bufferbloat_download, Some(Grade::A));
            assert_eq!((runs[0].upload_bps, runs[0].rtt_idle_us), (None, None));
            assert_eq!(history.runs(&RunQuery::default(), None, 1).await.unwrap().len(), 1);
            assert_eq!(serde_json::to_value(&runs[0]).unwrap().get("upload_bps"), None);
        })
        .await;
    }

    #[tokio::test]
    async fn the_pages_of_a_list_have_every_run_once_also_if_runs_come_and_go() {
        on_each_engine(async |history| {
            let mut ids = Vec::new();
            for number in 0..7_u32 {
                // Several runs began in one microsecond.
                let started_at = Timestamp::from_microsecond(i64::from(number / 3)).unwrap();
                let run = ResultDocument { id: Uuid::now_v7(), started_at, ..example::bare() };
                history.save_run(&run).await.unwrap();
                ids.push(run.id);
            }
            ids.reverse();
            let (mut seen, mut after) = (Vec::new(), None);
            loop {
                let page = history.runs(&RunQuery::default(), after.as_ref(), 2).await.unwrap();
                let Some(last) = page.last() else { break };
                after = Some(PageCursor { at: last.started_at, id: last.id }.into());
                seen.extend(page.iter().map(|run| run.id));
                // The row of the cursor is deleted, and a newer one is added.
                let gone = last.id.to_string();
                history.delete_runs(&[gone]).await.unwrap();
                let newer = ResultDocument { id: Uuid::now_v7(), ..example::bare() };
                history.save_run(&newer).await.unwrap();
            }
            assert_eq!(seen, ids);
        })
        .await;
    }

    #[tokio::test]
    async fn a_run_is_found_by_a_part_of_its_id_that_is_unique() {
        on_each_engine(async |history| {
            history.save_run(&example::full()).await.unwrap();
            history.save_run(&example::bare()).await.unwrap();
            let id = example::full().id;
            let text = id.to_string();
            for part in [text.as_str(), &text[..13], &text[28..], &text.to_uppercase()] {
                assert_eq!(history.run(part).await.unwrap().id, id, "{part}");
            }
            assert!(matches!(history.run(&text[..8]).await, Err(StorageError::AmbiguousRun { .. })));
            for unknown in ["", "%", "_", "ffffffff", "attic"] {
                assert!(matches!(history.run(unknown).await, Err(StorageError::NoSuchRun { .. })), "{unknown}");
            }
        })
        .await;
    }
}
