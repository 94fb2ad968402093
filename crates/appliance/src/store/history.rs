//! Sums over the runs of each time step, for charts. The queries read only an index, and no result document.

use std::sync::{MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use sqlx::{ColumnIndex, Decode, Row, Type};

use super::pool::{on, without_nul};
use super::runs::{CHOSEN, READING, other_end};
use super::{ApplianceStore, RunQuery, StorageError, natural, strange};

/// `run_kinds` lists the other ends (the servers of the tests) and the engines of this many latest runs.
const LATEST: i64 = 2_000;

/// How long the sums of a time step can still change after the step has ended, in microseconds. A run counts in the
/// step in which it began, but is saved only at its end.
const GRACE_US: i64 = 2 * 3_600_000_000;
/// How long computed sums are kept in memory, in microseconds. The time is short, because another process may add or
/// delete runs meanwhile.
const KEPT_US: i64 = 600_000_000;
/// The maximum number of queries whose sums are kept.
const MAX_KEPT: usize = 16;

/// Caches the sums of time steps that can no longer change. Sums over years of runs take a second to compute, and an
/// open page requests them again and again.
#[derive(Debug, Default)]
pub(super) struct SumsCache {
    kept: Vec<KeptSums>,
}

/// The kept sums of one query.
#[derive(Debug)]
struct KeptSums {
    key: SumsKey,
    /// When the sums were computed.
    at_us: i64,
    sums: Vec<RunSums>,
}

/// Identifies kept sums: the period and the step in microseconds, and the other end and the engine of the query.
#[derive(Debug, PartialEq, Eq)]
struct SumsKey {
    since_us: i64,
    closed_us: i64,
    step_us: i64,
    peer: Option<String>,
    engine: Option<String>,
}

impl SumsCache {
    /// The kept sums of `key`; `None` if there are none, or if they are older than [`KEPT_US`] at the time `now_us`.
    fn find(&self, key: &SumsKey, now_us: i64) -> Option<Vec<RunSums>> {
        let is_fresh = |kept: &&KeptSums| (0..KEPT_US).contains(&now_us.saturating_sub(kept.at_us));
        self.kept.iter().filter(is_fresh).find(|kept| kept.key == *key).map(|kept| kept.sums.clone())
    }

    fn add(&mut self, key: SumsKey, at_us: i64, sums: Vec<RunSums>) {
        self.kept.retain(|kept| kept.key != key);
        if self.kept.len() >= MAX_KEPT {
            self.kept.remove(0);
        }
        self.kept.push(KeptSums { key, at_us, sums });
    }

    /// Removes the kept sums that change because a run that began at `started_at_us` is saved.
    pub(super) fn forget(&mut self, started_at_us: i64) {
        self.kept.retain(|kept| kept.key.closed_us <= started_at_us);
    }

    /// Forgets all kept sums.
    pub(super) fn clear(&mut self) {
        self.kept.clear();
    }
}

/// A quarter of an hour, in microseconds. Each full hour of every time zone is also the begin of such a quarter in UTC.
const QUARTER_US: i64 = 900_000_000;

/// The sums over the runs that began in one time step. Rates are in bits per second, round trips in microseconds,
/// losses are shares (0 to 1). A sum is absent if no run of the step measured the value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RunSums {
    /// The begin of the step.
    pub begins_at: Timestamp,
    /// The number of runs.
    pub count: u64,
    /// The download rates of the runs.
    pub download: Option<ValueSum>,
    /// The upload rates of the runs.
    pub upload: Option<ValueSum>,
    /// The median round trips without load, one for each run.
    pub idle: Option<ValueSum>,
    /// Each run has a median round trip in its download and one in its upload. These are the sums over the longer ones.
    pub loaded_p50: Option<ValueSum>,
    /// Each run has a 95th percentile of its round trips in its download and one in its upload. These are the sums over
    /// the longer ones.
    pub loaded_p95: Option<ValueSum>,
    /// The loss without load, one value for each run.
    pub loss_idle: Option<ValueSum>,
    /// Each run has a loss in its download and one in its upload. These are the sums over the higher ones.
    pub loss_loaded: Option<ValueSum>,
}

/// The sum of the values that several runs measured, with their number and range.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ValueSum {
    /// The number of values, at least 1.
    pub count: u64,
    /// The sum of the values.
    pub sum: f64,
    /// The lowest value.
    pub min: f64,
    /// The highest value.
    pub max: f64,
}

impl ValueSum {
    /// The mean of the values.
    pub fn mean(&self) -> f64 {
        self.sum / self.count.max(1) as f64
    }

    /// Combines this sum with `other`.
    #[must_use]
    pub fn with(self, other: Self) -> Self {
        Self {
            count: self.count + other.count,
            sum: self.sum + other.sum,
            min: self.min.min(other.min),
            max: self.max.max(other.max),
        }
    }
}

impl RunSums {
    /// Adds the runs of another step to this step, whose begin stays the same.
    pub fn add(&mut self, other: &Self) {
        self.count += other.count;
        let merge = |own: &mut Option<ValueSum>, other: Option<ValueSum>| {
            *own = match (*own, other) {
                (Some(own), Some(other)) => Some(own.with(other)),
                (own, other) => own.or(other),
            };
        };
        merge(&mut self.download, other.download);
        merge(&mut self.upload, other.upload);
        merge(&mut self.idle, other.idle);
        merge(&mut self.loaded_p50, other.loaded_p50);
        merge(&mut self.loaded_p95, other.loaded_p95);
        merge(&mut self.loss_idle, other.loss_idle);
        merge(&mut self.loss_loaded, other.loss_loaded);
    }
}

/// The SQL expression for the higher value of two columns. If one of the columns is NULL, this is the value of the
/// other column.
fn higher(one: &str, other: &str) -> String {
    format!("CASE WHEN {other} IS NULL OR {one} >= {other} THEN {one} ELSE {other} END")
}

impl ApplianceStore {
    /// The sums over the runs that `query` selects, for each time step, in order of time. `query.since` is rounded down
    /// to the begin of a step. A step without a run has no row. The order and the limit of the query have no effect.
    pub async fn run_sums(&self, query: &RunQuery, step: Duration) -> Result<Vec<RunSums>, StorageError> {
        let step_us = i64::try_from(step.as_micros()).unwrap_or(i64::MAX).max(1);
        let begin = |us: i64| us.div_euclid(step_us).saturating_mul(step_us);
        let since_us = query.since.map_or(i64::MIN, |since| begin(since.as_microsecond()));
        let until_us = query.until.map_or(i64::MAX, Timestamp::as_microsecond);
        let closed_us = begin(until_us.saturating_sub(GRACE_US));
        if query.until.is_none() || closed_us <= since_us {
            return self.sums_between(query, step_us, since_us, until_us).await;
        }
        let key = SumsKey { since_us, closed_us, step_us, peer: query.peer.clone(), engine: query.engine.clone() };
        let kept = self.sums().find(&key, until_us);
        let mut sums = match kept {
            Some(sums) => sums,
            None => {
                let sums = self.sums_between(query, step_us, since_us, closed_us).await?;
                self.sums().add(key, until_us, sums.clone());
                sums
            }
        };
        sums.extend(self.sums_between(query, step_us, closed_us, until_us).await?);
        Ok(sums)
    }

    /// The locked cache of the sums over runs.
    pub(super) fn sums(&self) -> MutexGuard<'_, SumsCache> {
        self.sums.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn sums_between(
        &self,
        query: &RunQuery,
        step_us: i64,
        since_us: i64,
        until_us: i64,
    ) -> Result<Vec<RunSums>, StorageError> {
        let values = [
            ("download", "download_bps".to_owned()),
            ("upload", "upload_bps".to_owned()),
            ("idle", "rtt_idle_us".to_owned()),
            ("loaded_p50", higher("rtt_download_us", "rtt_upload_us")),
            ("loaded_p95", higher("rtt_download_p95_us", "rtt_upload_p95_us")),
            ("loss_idle", "loss_idle".to_owned()),
            ("loss_loaded", higher("loss_download", "loss_upload")),
        ];
        // The SQL text is built from constants alone.
        let columns = values.map(|(name, value)| {
            let value = format!("CAST({value} AS DOUBLE PRECISION)");
            format!(
                "COUNT({value}) AS {name}_n, SUM({value}) AS {name}_sum, MIN({value}) AS {name}_min, \
                 MAX({value}) AS {name}_max"
            )
        });
        let sql = format!(
            "SELECT started_at_us / $6 * $6 AS step, COUNT(*) AS runs, {} FROM runs WHERE {CHOSEN} GROUP BY 1 ORDER BY 1",
            columns.join(", ")
        );
        let [peer, lower] = other_end(query);
        on!(self.pool, |db| sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(since_us)
            .bind(until_us)
            .bind(peer)
            .bind(query.engine.as_deref().map(without_nul))
            .bind(lower)
            .bind(step_us)
            .fetch_all(db)
            .await
            .and_then(|rows| rows.iter().map(sums).collect::<Result<Vec<_>, _>>()))
        .map_err(self.fault(READING))
    }

    /// The download rates of the runs that `query` selects, summed for each quarter of an hour, in order of time. Each
    /// entry has the begin of the quarter, the number of rates, and their sum in bits per second.
    pub async fn download_quarters(&self, query: &RunQuery) -> Result<Vec<(Timestamp, u64, f64)>, StorageError> {
        let sql = format!(
            "SELECT started_at_us / $6 * $6 AS step, COUNT(download_bps), SUM(CAST(download_bps AS DOUBLE PRECISION)) \
             FROM runs WHERE {CHOSEN} AND download_bps IS NOT NULL GROUP BY 1 ORDER BY 1"
        );
        let fault = || self.fault(READING);
        let [peer, lower] = other_end(query);
        let rows = on!(self.pool, |db| sqlx::query_as::<_, (i64, i64, f64)>(sqlx::AssertSqlSafe(sql))
            .bind(query.since.map_or(i64::MIN, Timestamp::as_microsecond))
            .bind(query.until.map_or(i64::MAX, Timestamp::as_microsecond))
            .bind(peer)
            .bind(query.engine.as_deref().map(without_nul))
            .bind(lower)
            .bind(QUARTER_US)
            .fetch_all(db)
            .await)
        .map_err(fault())?;
        let quarter = |(step, count, sum): (i64, i64, f64)| {
            let begins_at = Timestamp::from_microsecond(step).map_err(strange).map_err(fault())?;
            Ok((begins_at, natural(count), sum))
        };
        rows.into_iter().map(quarter).collect()
    }

    /// Two sorted lists. The first has the names of the paired reflectors, and the names or addresses of the other ends
    /// of the latest runs. The second has the engines of the latest runs.
    pub async fn run_kinds(&self) -> Result<(Vec<String>, Vec<String>), StorageError> {
        let ends = "SELECT DISTINCT name FROM (SELECT COALESCE(peer, address) AS name FROM runs \
             ORDER BY started_at_us DESC LIMIT $1) AS latest WHERE name IS NOT NULL \
             UNION SELECT name FROM reflectors ORDER BY 1";
        let engines = "SELECT DISTINCT engine FROM (SELECT engine FROM runs ORDER BY started_at_us DESC LIMIT $1) \
             AS latest ORDER BY 1";
        let list = async |sql: &'static str| {
            on!(self.pool, |db| sqlx::query_scalar::<_, String>(sql).bind(LATEST).fetch_all(db).await)
                .map_err(self.fault(READING))
        };
        Ok((list(ends).await?, list(engines).await?))
    }
}

fn sums<'r, R: Row>(row: &'r R) -> Result<RunSums, sqlx::Error>
where
    for<'name> &'name str: ColumnIndex<R>,
    i64: Decode<'r, R::Database> + Type<R::Database>,
    f64: Decode<'r, R::Database> + Type<R::Database>,
{
    let value = |name: &str| -> Result<Option<ValueSum>, sqlx::Error> {
        let count = natural(row.try_get::<i64, _>(format!("{name}_n").as_str())?);
        if count == 0 {
            return Ok(None);
        }
        let part = |part: &str| row.try_get::<f64, _>(format!("{name}_{part}").as_str());
        Ok(Some(ValueSum { count, sum: part("sum")?, min: part("min")?, max: part("max")? }))
    };
    Ok(RunSums {
        begins_at: Timestamp::from_microsecond(row.try_get("step")?).map_err(strange)?,
        count: natural(row.try_get::<i64, _>("runs")?),
        download: value("download")?,
        upload: value("upload")?,
        idle: value("idle")?,
        loaded_p50: value("loaded_p50")?,
        loaded_p95: value("loaded_p95")?,
        loss_idle: value("loss_idle")?,
        loss_loaded: value("loss_loaded")?,
    })
}

#[cfg(test)]
mod tests {
    use paramedic_report::document::{ResultDocument, example};
    use uuid::Uuid;

    use super::super::each_engine::file_pool;
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    async fn store() -> (tempfile::TempDir, ApplianceStore) {
        let folder = tempfile::tempdir().unwrap();
        let store = ApplianceStore::open(folder.path()).await.unwrap();
        (folder, store)
    }

    #[tokio::test]
    async fn runs_are_summed_by_step() {
        let (_folder, store) = store().await;
        for (started_at, mbit) in
            [("2026-02-01T10:00:00Z", 10), ("2026-02-01T10:59:59Z", 30), ("2026-02-01T12:00:00Z", 50)]
        {
            let mut run =
                ResultDocument { id: Uuid::now_v7(), started_at: started_at.parse().unwrap(), ..example::full() };
            run.download.as_mut().unwrap().goodput_bps = mbit * 1_000_000;
            store.save_run(&run).await.unwrap();
        }
        let bare = ResultDocument { started_at: "2026-02-01T12:30:00Z".parse().unwrap(), ..example::bare() };
        store.save_run(&bare).await.unwrap();
        let sums = store.run_sums(&RunQuery::default(), HOUR).await.unwrap();
        let begins = sums.iter().map(|sum| (sum.begins_at.to_string(), sum.count)).collect::<Vec<_>>();
        assert_eq!(begins, [("2026-02-01T10:00:00Z".to_owned(), 2), ("2026-02-01T12:00:00Z".to_owned(), 2)]);
        let first = sums[0];
        assert_eq!(first.download, Some(ValueSum { count: 2, sum: 40e6, min: 10e6, max: 30e6 }));
        assert_eq!(first.download.unwrap().mean(), 20e6);
        // The upload has longer round trips than the download.
        assert_eq!(first.loaded_p50.unwrap().max, 30_100.0);
        assert_eq!((first.loaded_p95.unwrap().max, first.loss_idle.unwrap().mean()), (32_100.0, 0.001));
        // Of the second run of that hour, no latency and no upload was measured.
        assert_eq!((sums[1].upload.unwrap().count, sums[1].idle.unwrap().count), (1, 1));
        let mut both = sums[0];
        both.add(&sums[1]);
        assert_eq!((both.count, both.download.unwrap().count, both.download.unwrap().max), (4, 4, 50e6));
    }

    #[tokio::test]
    async fn kept_sums_are_those_of_the_runs_whatever_becomes_of_them() {
        let (_folder, store) = store().await;
        let at =
            |hour: i64| "2026-02-01T00:30:00Z".parse::<Timestamp>().unwrap() + jiff::SignedDuration::from_hours(hour);
        let run = |hour| ResultDocument { id: Uuid::now_v7(), started_at: at(hour), ..example::full() };
        let (first, second) = (run(0), run(1));
        store.save_run(&first).await.unwrap();
        store.save_run(&second).await.unwrap();
        let count = async |until: Timestamp| {
            let query = RunQuery { since: Some(at(-1)), until: Some(until), ..RunQuery::default() };
            let sums = store.run_sums(&query, HOUR).await.unwrap();
            assert!(sums.is_sorted_by_key(|sums| sums.begins_at), "{sums:?}");
            sums.iter().map(|sums| sums.count).sum::<u64>()
        };
        let kept = || store.sums().kept.len();
        assert_eq!(count(at(10)).await, 2);
        assert_eq!(kept(), 1);
        // Runs are saved in the step that is not over, saved in a step that is over, deleted, and changed by another
        // process.
        store.save_run(&run(9)).await.unwrap();
        assert_eq!((kept(), count(at(10)).await), (1, 3));
        store.save_run(&run(2)).await.unwrap();
        assert_eq!((kept(), count(at(10)).await), (0, 4));
        store.delete_runs(&[first.id.to_string()]).await.unwrap();
        assert_eq!(count(at(10)).await, 3);
        sqlx::query("DELETE FROM runs WHERE id = $1")
            .bind(second.id.to_string())
            .execute(file_pool(&store))
            .await
            .unwrap();
        assert_eq!(count(at(10)).await, 3);
        assert_eq!(count(at(10) + jiff::SignedDuration::from_mins(11)).await, 2);
        for number in 0..2 * MAX_KEPT as i64 {
            count(at(20 + number)).await;
        }
        assert_eq!(kept(), MAX_KEPT);
    }

    #[tokio::test]
    async fn a_query_chooses_by_target_engine_and_time() {
        let (_folder, store) = store().await;
        let full = example::full();
        store.save_run(&full).await.unwrap();
        let count = async |query: RunQuery| {
            store.run_sums(&query, HOUR).await.unwrap().iter().map(|sum| sum.count).sum::<u64>()
        };
        let of = |peer: &str, engine: &str| RunQuery {
            peer: Some(peer.to_owned()),
            engine: Some(engine.to_owned()),
            ..RunQuery::default()
        };
        assert_eq!((count(of("ATTIC", "tcp")).await, count(of("attic", "udp")).await), (1, 0));
        assert_eq!(count(of("cellar", "tcp")).await, 0);
        let later = RunQuery { since: full.finished_at.checked_add(HOUR).ok(), ..RunQuery::default() };
        assert_eq!(count(later).await, 0);
        assert_eq!(store.run_kinds().await.unwrap(), (vec!["attic".to_owned()], vec!["tcp".to_owned()]));
    }

    #[tokio::test]
    async fn quarters_have_the_download_rates() {
        let (_folder, store) = store().await;
        store.save_run(&example::full()).await.unwrap();
        let quarters = store.download_quarters(&RunQuery::default()).await.unwrap();
        assert_eq!(quarters, [("2026-01-31T12:00:00Z".parse().unwrap(), 1, 941e6)]);
    }

    #[tokio::test]
    async fn rows_of_an_earlier_version_get_what_new_ones_have() {
        let (_folder, store) = store().await;
        let mut lost = ResultDocument { id: Uuid::now_v7(), ..example::full() };
        let idle = lost.latency.idle.as_mut().unwrap();
        (idle.loss_upload, idle.loss_download, idle.loss) = (None, Some(0.25), Some(0.5));
        let upload = lost.latency.upload.as_mut().unwrap();
        (upload.loss_upload, upload.loss_download, upload.loss) = (None, None, Some(0.5));
        for run in [example::full(), example::bare(), lost] {
            store.save_run(&run).await.unwrap();
        }
        let values = async || {
            sqlx::query_as::<_, (String, Option<i64>, Option<i64>, Option<i64>, Option<f64>, Option<f64>, Option<f64>)>(
                "SELECT id, rtt_idle_p95_us, rtt_download_p95_us, rtt_upload_p95_us, loss_idle, loss_download, \
                 loss_upload FROM runs ORDER BY id",
            )
            .fetch_all(file_pool(&store))
            .await
            .unwrap()
        };
        let written = values().await;
        assert!(written.iter().any(|row| row.4 == Some(0.25) && row.6 == Some(0.5)), "{written:?}");
        let migration = super::super::MIGRATIONS.iter().find(|migration| migration.version == 9).unwrap();
        let sql = migration.sql.as_str();
        let update = &sql[sql.find("UPDATE runs").unwrap()..sql.find("CREATE INDEX").unwrap()];
        sqlx::query("UPDATE runs SET rtt_idle_p95_us = NULL, loss_idle = 9, loss_upload = 9")
            .execute(file_pool(&store))
            .await
            .unwrap();
        sqlx::query(sqlx::AssertSqlSafe(update.split("\n\n--").next().unwrap().to_owned()))
            .execute(file_pool(&store))
            .await
            .unwrap();
        assert_eq!(values().await, written);
    }

    #[tokio::test]
    async fn a_chart_reads_an_index_and_no_document() {
        let (_folder, store) = store().await;
        let plan = sqlx::query(
            "EXPLAIN QUERY PLAN SELECT started_at_us / 5 * 5, COUNT(download_bps), SUM(loss_upload), MIN(rtt_idle_p95_us) \
             FROM runs WHERE started_at_us >= 1 AND started_at_us < 2 AND engine = 'tcp' GROUP BY 1",
        );
        let plan = plan.fetch_all(file_pool(&store)).await.unwrap();
        let plan = plan.iter().map(|row| row.get::<String, _>("detail")).collect::<Vec<_>>().join("; ");
        assert!(plan.contains("COVERING INDEX runs_of_charts"), "{plan}");
    }
}
