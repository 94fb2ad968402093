//! The saved results: list, show, export, delete, prune. Reads the clock to find the results that are too old.

#![expect(clippy::disallowed_methods, reason = "the shell that reads the clocks for the retention")]

use std::time::{Duration, Instant};

use jiff::Timestamp;
use paramedic_report::summary::RunSummary;
use uuid::Uuid;

use super::Appliance;
use crate::error::ApplianceError;
use crate::store::{Export, ExportFormat, PageCursor, Pruned, Retention, RunPosition, RunQuery, RunSums, SavedRun};

/// The time between two deletions of old results by the service.
const PRUNE_INTERVAL: Duration = Duration::from_secs(86_400);
/// The clock counts as wrong if it is more than this time ahead of the latest result. Then the service computes the age
/// of results from an earlier time, so that a clock that is a year ahead does not delete the results of a year.
const LONGEST_SILENCE: Duration = Duration::from_secs(30 * 86_400);

impl Appliance {
    /// A page of the results that `query` finds: at most `count` results after the position `after`. If `after` is
    /// `None`, the first page.
    pub async fn results(
        &self,
        query: &RunQuery,
        after: Option<PageCursor>,
        count: u32,
    ) -> Result<Vec<RunSummary>, ApplianceError> {
        let after = after.map(RunPosition::from);
        Ok(self.reading_store().await?.runs(query, after.as_ref(), count).await?)
    }

    /// The sums of the results that `query` finds, in time steps of length `step`. `query.order` and `query.limit` have
    /// no effect.
    pub async fn result_sums(&self, query: &RunQuery, step: Duration) -> Result<Vec<RunSums>, ApplianceError> {
        Ok(self.reading_store().await?.run_sums(query, step).await?)
    }

    /// For each quarter of an hour, the download rates of the results that `query` finds: the start of the quarter, the
    /// number of rates, and their sum in bits per second.
    pub async fn download_quarters(&self, query: &RunQuery) -> Result<Vec<(Timestamp, u64, f64)>, ApplianceError> {
        Ok(self.reading_store().await?.download_quarters(query).await?)
    }

    /// Two lists. The first has the names of the paired reflectors, and the names or addresses of the other ends of the
    /// latest results. The second has the ids of the engines of the latest results.
    pub async fn result_kinds(&self) -> Result<(Vec<String>, Vec<String>), ApplianceError> {
        Ok(self.reading_store().await?.run_kinds().await?)
    }

    /// The result whose id equals, begins with or ends with `wanted`.
    pub async fn result(&self, wanted: &str) -> Result<SavedRun, ApplianceError> {
        Ok(self.reading_store().await?.run(wanted).await?)
    }

    /// Exports the results that `query` finds.
    pub async fn export(&self, query: RunQuery, format: ExportFormat) -> Result<Export, ApplianceError> {
        Ok(self.reading_store().await?.export(query, format))
    }

    /// For each text in `wanted`, deletes the result whose id equals, begins with or ends with that text. Returns the
    /// ids of the deleted results. Deletes nothing if a text matches no result or several results.
    pub async fn delete_results(&self, wanted: &[String]) -> Result<Vec<Uuid>, ApplianceError> {
        Ok(self.store().await?.delete_runs(wanted).await?)
    }

    /// Deletes everything that is older than `retention` allows. With `is_rehearsal`, only counts it.
    pub async fn prune(&self, retention: &Retention, is_rehearsal: bool) -> Result<Pruned, ApplianceError> {
        Ok(self.store().await?.prune(retention, Timestamp::now(), is_rehearsal).await?)
    }

    /// Deletes everything that is older than `retention` allows, now and once a day. Never returns.
    pub async fn prune_daily(&self, retention: Retention) {
        let (began, started_at) = (Instant::now(), Timestamp::now());
        loop {
            if let Err(error) = self.prune_cautiously(&retention, began, started_at).await {
                tracing::warn!(%error, "old results are not deleted");
            }
            tokio::time::sleep(PRUNE_INTERVAL).await;
        }
    }

    async fn prune_cautiously(
        &self,
        retention: &Retention,
        began: Instant,
        started_at: Timestamp,
    ) -> Result<(), ApplianceError> {
        let store = self.store().await?;
        let latest = store.latest_run_start().await?;
        let Some(by) = pruning_time(Timestamp::now(), started_at.checked_add(began.elapsed()).ok(), latest) else {
            return Ok(());
        };
        let pruned = store.prune(retention, by, false).await?;
        if pruned != Pruned::default() {
            let Pruned { results, series, schedule_runs } = pruned;
            tracing::info!(results, series, schedule_runs, "old results are deleted");
        }
        Ok(())
    }
}

/// The time that counts as now when the age of results is judged; `None` if there are no results. It is the earliest of
/// three times: the time of the clock, the start of the service plus the time that has passed since then, and 30 days
/// after the latest result.
fn pruning_time(clock: Timestamp, elapsed: Option<Timestamp>, latest: Option<Timestamp>) -> Option<Timestamp> {
    let plausible = latest?.checked_add(LONGEST_SILENCE).ok()?;
    Some(clock.min(plausible).min(elapsed.unwrap_or(clock)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_jumps_ahead_deletes_nothing_early() {
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        let (now, latest) = (at("2026-06-02T00:00:00Z"), at("2026-06-01T23:00:00Z"));
        assert_eq!(pruning_time(now, Some(now), Some(latest)), Some(now));
        let ahead = at("2027-06-02T00:00:00Z");
        // The clock jumped ahead while the service ran; before the service started; and when a result was saved with
        // the wrong time.
        assert_eq!(pruning_time(ahead, Some(now), Some(latest)), Some(now));
        assert_eq!(pruning_time(ahead, Some(ahead), Some(latest)), Some(at("2026-07-01T23:00:00Z")));
        assert_eq!(pruning_time(ahead, Some(now), Some(ahead)), Some(now));
        let behind = at("2025-06-02T00:00:00Z");
        assert_eq!(pruning_time(behind, Some(now), Some(latest)), Some(behind));
        assert_eq!(pruning_time(now, Some(now), None), None);
    }
}
