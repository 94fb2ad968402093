//! The latest run that measured something, for each target and engine. These runs are kept in memory: the index of all
//! runs is searched once, and after that only for newer runs.

use std::collections::BTreeMap;
use std::sync::{MutexGuard, PoisonError};

use jiff::Timestamp;

use super::pool::on;
use super::runs::READING;
use super::{ApplianceStore, StorageError, natural, strange};

/// The maximum number of pairs of target and engine that are kept. The pairs with the latest runs are kept.
const MOST_KEPT: usize = 100;
/// The maximum number of newer runs that a search adds to the kept runs. If there are this many, the whole index is
/// searched again instead.
const MOST_LATER: i64 = 500;
/// The columns of [`LatestRow`]: each is in the index `runs_of_charts`.
const COLUMNS: &str = "started_at_us, engine, endpoint_id, address, download_bps, upload_bps, rtt_idle_us, rtt_download_us, \
     rtt_upload_us, loss_idle, loss_download, loss_upload";
/// The SQL condition for runs that measured something.
const MEASURED: &str = "(download_bps IS NOT NULL OR upload_bps IS NOT NULL OR rtt_idle_us IS NOT NULL)";

/// A run that measured something. A value that was not measured is absent. Rates are in bits per second. Round trips
/// are medians in microseconds. A loss is the share of lost probes (0 to 1): in the direction that lost more, or of the
/// round trips if the directions are unknown.
#[derive(Clone, Debug, PartialEq)]
pub struct LatestRun {
    /// When the run began.
    pub started_at: Timestamp,
    /// The engine that moved the payload.
    pub engine: String,
    /// The Endpoint ID of the reflector; absent for another kind of server.
    pub endpoint_id: Option<String>,
    /// The address to which the appliance connected.
    pub address: Option<String>,
    /// The download rate.
    pub download_bps: Option<u64>,
    /// The upload rate.
    pub upload_bps: Option<u64>,
    /// The round trip without load.
    pub rtt_idle_us: Option<u64>,
    /// The round trip during the download.
    pub rtt_download_us: Option<u64>,
    /// The round trip during the upload.
    pub rtt_upload_us: Option<u64>,
    /// The loss without load.
    pub loss_idle: Option<f64>,
    /// The loss during the download.
    pub loss_download: Option<f64>,
    /// The loss during the upload.
    pub loss_upload: Option<f64>,
}

/// The stored columns of a run.
#[derive(sqlx::FromRow)]
struct LatestRow {
    started_at_us: i64,
    engine: String,
    endpoint_id: Option<String>,
    address: Option<String>,
    download_bps: Option<i64>,
    upload_bps: Option<i64>,
    rtt_idle_us: Option<i64>,
    rtt_download_us: Option<i64>,
    rtt_upload_us: Option<i64>,
    loss_idle: Option<f64>,
    loss_download: Option<f64>,
    loss_upload: Option<f64>,
}

/// The key of a pair of target and engine: the Endpoint ID or the address of the other end, and the engine.
type TargetKey = (Option<String>, String);

/// The latest runs, as far as they are kept in memory.
#[derive(Debug, Default)]
pub(super) struct LatestRuns {
    /// Counts the events that made `kept` outdated. A search that began before such an event must not store its result
    /// in `kept`.
    changes: u64,
    kept: Option<KeptRuns>,
}

#[derive(Clone, Debug, Default)]
struct KeptRuns {
    /// When the latest of all kept runs began, in microseconds since 1970.
    until_us: i64,
    runs: BTreeMap<TargetKey, LatestRun>,
}

impl LatestRuns {
    /// Records that a run that began at `started_at_us` was saved. If a kept run began later, forgets all kept runs.
    /// Otherwise the next search for newer runs finds the saved run.
    pub(super) fn saved(&mut self, started_at_us: i64) {
        self.changes += 1;
        self.kept.take_if(|kept| started_at_us < kept.until_us);
    }

    /// Forgets all kept runs.
    pub(super) fn forget(&mut self) {
        self.changes += 1;
        self.kept = None;
    }
}

impl KeptRuns {
    fn add(&mut self, run: LatestRun) {
        self.until_us = self.until_us.max(run.started_at.as_microsecond());
        let key = (run.endpoint_id.clone().or_else(|| run.address.clone()), run.engine.clone());
        let is_later = self.runs.get(&key).is_none_or(|known| known.started_at <= run.started_at);
        if is_later {
            self.runs.insert(key, run);
        }
        if self.runs.len() > MOST_KEPT
            && let Some(oldest) = self.runs.iter().min_by_key(|(_, run)| run.started_at).map(|(key, _)| key.clone())
        {
            self.runs.remove(&oldest);
        }
    }
}

impl LatestRow {
    fn run(self) -> Result<LatestRun, sqlx::Error> {
        Ok(LatestRun {
            started_at: Timestamp::from_microsecond(self.started_at_us).map_err(strange)?,
            engine: self.engine,
            endpoint_id: self.endpoint_id,
            address: self.address,
            download_bps: self.download_bps.map(natural),
            upload_bps: self.upload_bps.map(natural),
            rtt_idle_us: self.rtt_idle_us.map(natural),
            rtt_download_us: self.rtt_download_us.map(natural),
            rtt_upload_us: self.rtt_upload_us.map(natural),
            loss_idle: self.loss_idle,
            loss_download: self.loss_download,
            loss_upload: self.loss_upload,
        })
    }
}

impl ApplianceStore {
    /// For each pair of target and engine, the latest run that measured something. The newest of these runs comes
    /// first.
    pub async fn latest_runs(&self) -> Result<Vec<LatestRun>, StorageError> {
        let (changes, kept) = {
            let latest = self.latest();
            (latest.changes, latest.kept.clone())
        };
        let kept = match kept {
            Some(kept) => self.with_later(kept).await?,
            None => None,
        };
        let kept = match kept {
            Some(kept) => kept,
            None => self.search().await?,
        };
        {
            let mut latest = self.latest();
            if latest.changes == changes {
                latest.kept = Some(kept.clone());
            }
        }
        let mut runs = kept.runs.into_values().collect::<Vec<_>>();
        runs.sort_by_key(|run| std::cmp::Reverse(run.started_at));
        Ok(runs)
    }

    pub(super) fn latest(&self) -> MutexGuard<'_, LatestRuns> {
        self.latest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds to `kept` the runs that began since the latest run in `kept` began. Returns `None` if there are too many
    /// such runs.
    async fn with_later(&self, mut kept: KeptRuns) -> Result<Option<KeptRuns>, StorageError> {
        let sql = format!("SELECT {COLUMNS} FROM runs WHERE started_at_us >= $1 AND {MEASURED} LIMIT $2");
        let later = self.latest_rows(sql, kept.until_us, MOST_LATER).await?;
        let is_all = i64::try_from(later.len()).is_ok_and(|count| count < MOST_LATER);
        later.into_iter().for_each(|run| kept.add(run));
        Ok(is_all.then_some(kept))
    }

    async fn search(&self) -> Result<KeptRuns, StorageError> {
        // Finds all runs that began at the time of the latest run of a target and engine; `add` keeps the right ones.
        let sql = format!(
            "SELECT {COLUMNS} FROM runs WHERE started_at_us >= $1 AND {MEASURED} AND started_at_us IN \
             (SELECT latest FROM (SELECT MAX(started_at_us) AS latest FROM runs WHERE {MEASURED} \
             GROUP BY COALESCE(endpoint_id, address), engine) AS found ORDER BY latest DESC LIMIT $2)"
        );
        let limit = i64::try_from(MOST_KEPT).unwrap_or(i64::MAX);
        let mut kept = KeptRuns::default();
        self.latest_rows(sql, i64::MIN, limit).await?.into_iter().for_each(|run| kept.add(run));
        Ok(kept)
    }

    async fn latest_rows(&self, sql: String, from_us: i64, limit: i64) -> Result<Vec<LatestRun>, StorageError> {
        // The SQL text is built from constants alone.
        let rows = on!(self.pool, |db| sqlx::query_as::<_, LatestRow>(sqlx::AssertSqlSafe(sql))
            .bind(from_us)
            .bind(limit)
            .fetch_all(db)
            .await);
        let runs = rows.and_then(|rows| rows.into_iter().map(LatestRow::run).collect::<Result<Vec<_>, _>>());
        runs.map_err(self.fault(READING))
    }
}

#[cfg(test)]
mod tests {
    use paramedic_report::document::{ResultDocument, example};
    use uuid::Uuid;

    use super::*;
    use crate::store::each_engine::on_each_engine;

    fn run(second: i64, mbit: u64) -> ResultDocument {
        let started_at = Timestamp::from_second(1_769_860_800 + second).unwrap();
        let mut run = ResultDocument { id: Uuid::now_v7(), started_at, ..example::full() };
        run.download.as_mut().unwrap().goodput_bps = mbit * 1_000_000;
        run
    }

    async fn rates(store: &ApplianceStore) -> Vec<u64> {
        let latest = store.latest_runs().await.unwrap();
        latest.iter().map(|run| run.download_bps.unwrap_or_default() / 1_000_000).collect()
    }

    #[tokio::test]
    async fn the_latest_run_of_each_target_and_engine_is_found_whatever_is_saved_or_deleted() {
        on_each_engine(async |store| {
            assert!(rates(&store).await.is_empty());
            store.save_run(&run(10, 1)).await.unwrap();
            assert_eq!(rates(&store).await, [1]);
            let later = run(20, 2);
            store.save_run(&later).await.unwrap();
            assert_eq!(rates(&store).await, [2], "a later one replaces it");
            store.save_run(&run(15, 3)).await.unwrap();
            assert_eq!(rates(&store).await, [2], "an imported one from before does not");
            let udp = ResultDocument { engine: "udp".try_into().unwrap(), ..run(5, 4) };
            store.save_run(&udp).await.unwrap();
            assert_eq!(rates(&store).await, [2, 4], "another engine from before is found");
            let mut failed = run(30, 5);
            (failed.download, failed.upload, failed.latency) = (None, None, example::bare().latency);
            store.save_run(&failed).await.unwrap();
            assert_eq!(rates(&store).await, [2, 4], "one that measured nothing is none");
            store.delete_runs(&[later.id.to_string()]).await.unwrap();
            assert_eq!(rates(&store).await, [3, 4]);
            let latest = store.latest_runs().await.unwrap();
            assert_eq!(latest[0].rtt_idle_us, Some(12_300));
        })
        .await;
    }

    #[tokio::test]
    async fn runs_of_another_process_are_found() {
        let folder = tempfile::tempdir().unwrap();
        let own = ApplianceStore::open(folder.path()).await.unwrap();
        let other = ApplianceStore::open(folder.path()).await.unwrap();
        own.save_run(&run(0, 1)).await.unwrap();
        assert_eq!(rates(&own).await, [1]);
        for n in 1..10 {
            other.save_run(&run(n, 10 + n.unsigned_abs())).await.unwrap();
        }
        assert_eq!(rates(&own).await, [19]);
    }

    #[test]
    fn at_most_so_many_targets_are_kept_the_latest_ones() {
        let mut kept = KeptRuns::default();
        for n in 0..300 {
            kept.add(LatestRun {
                started_at: Timestamp::from_second(n).unwrap(),
                engine: "iperf3".to_owned(),
                endpoint_id: None,
                address: Some(format!("192.0.2.1:{n}")),
                download_bps: Some(1),
                upload_bps: None,
                rtt_idle_us: None,
                rtt_download_us: None,
                rtt_upload_us: None,
                loss_idle: None,
                loss_download: None,
                loss_upload: None,
            });
        }
        assert_eq!(kept.runs.len(), MOST_KEPT);
        assert!(kept.runs.values().all(|run| run.started_at.as_second() >= 200));
    }
}
