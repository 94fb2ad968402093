//! Deletes old data after its retention time: runs, the series of their intervals, the records of scheduled runs, and
//! messages.

use std::time::Duration;

use jiff::Timestamp;
use paramedic_report::document::ResultDocument;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::pool::{in_change, on, rows};
use super::{ApplianceStore, StorageError};

/// How long the records of scheduled runs, and the messages, are kept. The data budgets need the records of a month.
const SCHEDULE_RUNS_KEPT: Duration = Duration::from_secs(400 * 86_400);
/// The maximum number of rows that one transaction deletes, because other writers wait for the transaction.
const BATCH: i64 = 500;
/// The maximum number of documents from which one transaction removes the series.
const SERIES_BATCH: i64 = 16;

/// How long results, and the series of intervals in them, are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// How long results are kept; `None` means for ever.
    pub results: Option<Duration>,
    /// How long the series of intervals in a result are kept; `None` means as long as the result.
    pub series: Option<Duration>,
}

/// How many objects were deleted, or would be deleted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Pruned {
    /// The number of results.
    pub results: u64,
    /// The number of results that lost their series.
    pub series: u64,
    /// The number of records of scheduled runs.
    pub schedule_runs: u64,
}

impl Retention {
    /// Keeps results and their series for ever.
    pub const FOREVER: Self = Self { results: None, series: None };
}

impl Default for Retention {
    fn default() -> Self {
        let days = |days: u64| Some(Duration::from_secs(days * 86_400));
        // More than a year, so that two winters can be compared. The intervals are for an analysis soon after the test.
        Self { results: days(400), series: days(30) }
    }
}

impl ApplianceStore {
    /// Deletes the results, and the series in results, that are older than `retention` allows at `now`. Also deletes
    /// records of scheduled runs and messages that are older than 400 days. With `is_rehearsal`, deletes nothing, and
    /// only counts the results and the series that it would delete.
    pub async fn prune(
        &self,
        retention: &Retention,
        now: Timestamp,
        is_rehearsal: bool,
    ) -> Result<Pruned, StorageError> {
        let before = |kept: Option<Duration>| kept.and_then(|kept| now.checked_sub(kept).ok());
        let mut pruned = Pruned::default();
        if let Some(before) = before(retention.results) {
            pruned.results = self.prune_runs(before, is_rehearsal).await?;
            self.sums().clear();
            if pruned.results > 0 {
                self.latest().forget();
            }
        }
        if let Some(before) = before(retention.series) {
            // A result that is deleted as a whole does not count again here.
            let from = retention.results.and_then(|kept| now.checked_sub(kept).ok());
            pruned.series = self.prune_series(from, before, is_rehearsal).await?;
        }
        if let (Some(before), false) = (before(Some(SCHEDULE_RUNS_KEPT)), is_rehearsal) {
            pruned.schedule_runs = self.prune_schedule_runs(before).await?;
            self.prune_messages(before).await?;
        }
        Ok(pruned)
    }

    /// When the latest run began; `None` if there is no run.
    pub async fn latest_run_start(&self) -> Result<Option<Timestamp>, StorageError> {
        let latest: Option<i64> =
            on!(self.pool, |db| sqlx::query_scalar("SELECT MAX(started_at_us) FROM runs").fetch_one(db).await)
                .map_err(self.fault("reading the runs"))?;
        Ok(latest.and_then(|latest| Timestamp::from_microsecond(latest).ok()))
    }

    async fn prune_runs(&self, before: Timestamp, is_rehearsal: bool) -> Result<u64, StorageError> {
        let fault = || self.fault("deleting old runs");
        if is_rehearsal {
            let count: i64 =
                on!(self.pool, |db| sqlx::query_scalar("SELECT COUNT(*) FROM runs WHERE started_at_us < $1")
                    .bind(before.as_microsecond())
                    .fetch_one(db)
                    .await)
                .map_err(fault())?;
            return Ok(count.unsigned_abs());
        }
        let mut pruned = 0;
        loop {
            let deleted = on!(self.pool, |db| sqlx::query(
                "DELETE FROM runs WHERE id IN (SELECT id FROM runs WHERE started_at_us < $1 LIMIT $2)"
            )
            .bind(before.as_microsecond())
            .bind(BATCH)
            .execute(db)
            .await
            .map(rows))
            .map_err(fault())?;
            if deleted == 0 {
                return Ok(pruned);
            }
            pruned += deleted;
        }
    }

    async fn prune_series(
        &self,
        from: Option<Timestamp>,
        before: Timestamp,
        is_rehearsal: bool,
    ) -> Result<u64, StorageError> {
        let fault = || self.fault("shortening old runs");
        let from = from.map_or(i64::MIN, Timestamp::as_microsecond);
        if is_rehearsal {
            let count: i64 = on!(self.pool, |db| sqlx::query_scalar(
                "SELECT COUNT(*) FROM runs WHERE has_series AND started_at_us >= $1 AND started_at_us < $2",
            )
            .bind(from)
            .bind(before.as_microsecond())
            .fetch_one(db)
            .await)
            .map_err(fault())?;
            return Ok(count.unsigned_abs());
        }
        let mut pruned = 0;
        loop {
            let runs = on!(self.pool, |db| sqlx::query_as::<_, (String, String)>(
                "SELECT id, document FROM runs WHERE has_series AND started_at_us < $1 LIMIT $2",
            )
            .bind(before.as_microsecond())
            .bind(SERIES_BATCH)
            .fetch_all(db)
            .await)
            .map_err(fault())?;
            if runs.is_empty() {
                return Ok(pruned);
            }
            let mut work = self.pool.begin().await.map_err(fault())?;
            for (id, text) in &runs {
                // A document that cannot be read stays as it is.
                let short = without_series(text);
                pruned += u64::from(short.is_some());
                in_change!(&mut work, |db| sqlx::query(
                    "UPDATE runs SET has_series = FALSE, document = COALESCE($2, document) WHERE id = $1"
                )
                .bind(id)
                .bind(short)
                .execute(db)
                .await
                .map(rows))
                .map_err(fault())?;
            }
            work.commit().await.map_err(fault())?;
        }
    }
}

/// The document without the series of its intervals; `None` if the document cannot be read or has no series.
fn without_series(text: &str) -> Option<String> {
    let mut document = serde_json::from_str::<ResultDocument>(text).ok()?;
    if !document.has_series() {
        return None;
    }
    document.remove_series();
    document.to_text().ok()
}

#[cfg(test)]
mod tests {
    use paramedic_report::document::example;

    use super::*;
    use crate::store::RunQuery;
    use crate::store::each_engine::{file_pool, on_each_engine};

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[tokio::test]
    async fn what_is_older_than_it_is_kept_is_deleted_and_what_is_younger_stays() {
        on_each_engine(async |store| {
            // These results began 401 days before the time of the deletion.
            let old = |n: u8| ResultDocument {
                id: uuid::Uuid::from_u128(u128::from(n) << 64),
                started_at: at("2025-01-01T00:00:00Z"),
                ..example::bare()
            };
            for n in 0..20 {
                store.save_run(&old(n)).await.unwrap();
            }
            let dated = |n, start: &str| ResultDocument {
                id: uuid::Uuid::from_u128(n),
                started_at: at(start),
                ..example::full()
            };
            let (long_ago, recent) = (dated(1, "2025-12-01T00:00:00Z"), dated(2, "2026-02-01T00:00:00Z"));
            for run in [&long_ago, &recent] {
                assert!(run.has_series());
                store.save_run(run).await.unwrap();
            }
            let (kept, now) = (Retention::default(), at("2026-02-06T00:00:00Z"));
            let expected = Pruned { results: 20, series: 1, schedule_runs: 0 };
            assert_eq!(store.prune(&kept, now, true).await.unwrap(), expected);
            assert_eq!(store.runs(&RunQuery::default(), None, 100).await.unwrap().len(), 22, "nothing is deleted");
            assert_eq!(store.prune(&kept, now, false).await.unwrap(), expected);
            assert_eq!(store.prune(&kept, now, false).await.unwrap(), Pruned::default());
            let read = async |run: &ResultDocument| store.run(&run.id.to_string()).await.unwrap().document().unwrap();
            let mut short = long_ago.clone();
            short.remove_series();
            assert_eq!((read(&long_ago).await, read(&recent).await), (short, recent.clone()));
            assert_eq!(store.runs(&RunQuery::default(), None, 100).await.unwrap().len(), 2);
            assert_eq!(store.latest_run_start().await.unwrap(), Some(recent.started_at));
            assert_eq!(store.prune(&Retention::FOREVER, at("2999-01-01T00:00:00Z"), false).await.unwrap().results, 0);
        })
        .await;
    }

    #[tokio::test]
    async fn a_database_of_the_version_before_is_upgraded_in_place_and_nothing_is_lost() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join(crate::store::FILE);
        std::fs::write(&file, include_bytes!("../../tests/before_retention.db")).unwrap();
        let rows = async |store: &ApplianceStore| {
            let mut rows = Vec::new();
            for sql in [
                "SELECT id || started_at_us || provider || engine || peer || data_used_bytes || complete || document \
                 || COALESCE(error, '') FROM runs ORDER BY id",
                "SELECT endpoint_id || name || address || paired_at_us FROM reflectors",
                "SELECT id || appliance || name || definition || enabled || added_at_us || decided_until_us \
                 FROM schedules ORDER BY id",
            ] {
                rows.push(sqlx::query_scalar::<_, String>(sql).fetch_all(file_pool(store)).await.unwrap());
            }
            rows
        };
        let old = ApplianceStore::open_for_reading(folder.path()).await.unwrap();
        let before = rows(&old).await;
        assert_eq!(before.iter().map(Vec::len).collect::<Vec<_>>(), [3, 1, 2]);
        assert_eq!(old.schedules().await.unwrap().len(), 2, "also if it cannot be written");
        old.close().await;
        let store = ApplianceStore::open(folder.path()).await.unwrap();
        assert_eq!(rows(&store).await, before);
        let marks: Vec<(String, bool)> = sqlx::query_as("SELECT appliance, has_series FROM runs ORDER BY id")
            .fetch_all(file_pool(&store))
            .await
            .unwrap();
        let own = store.runs(&RunQuery::default(), None, 1).await.unwrap()[0].id.to_string();
        let own = store.run(&own).await.unwrap().document().unwrap().appliance.endpoint_id.to_string();
        let expected = [(own.clone(), true), (own.clone(), false), (own, false)];
        assert_eq!(marks, expected);
        assert!(store.schedules().await.unwrap().iter().all(|stored| !stored.from_file));
        let kept = Retention { results: None, ..Retention::default() };
        assert_eq!(store.prune(&kept, at("2027-06-01T00:00:00Z"), false).await.unwrap().series, 1);
        assert_eq!(store.check().await.unwrap().problems, [""; 0]);
    }

    #[tokio::test]
    async fn a_document_that_cannot_be_read_stays_as_it_is() {
        on_each_engine(async |store| {
            store.save_run(&example::full()).await.unwrap();
            on!(store.pool, |db| sqlx::query("UPDATE runs SET document = 'no document'").execute(db).await.map(rows))
                .unwrap();
            let far = at("2027-01-01T00:00:00Z");
            let kept = Retention { results: None, ..Retention::default() };
            assert_eq!(store.prune(&kept, far, false).await.unwrap().series, 0);
            assert_eq!(store.run(&example::full().id.to_string()).await.unwrap().text, "no document");
        })
        .await;
    }
}
