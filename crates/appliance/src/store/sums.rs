//! Sums over stored rows, for the overview page and for metrics: the bytes that runs used, the probes that each monitor
//! lost, and the number and the length of outages. Each sum is one query, which reads no result document and no
//! histogram.

use jiff::Timestamp;

use super::pool::on;
use super::{ApplianceStore, StorageError, natural, strange};
use crate::monitor::outage::OutageScope;

/// Counts of the probes of one monitor in one time step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LossSum {
    /// The key of the monitor.
    pub number: i64,
    /// The begin of the step, in minutes since 1970.
    pub minute: i64,
    /// The number of probes that were answered or lost.
    pub count: u64,
    /// The number of probes, among `count`, that were lost.
    pub lost: u64,
}

/// The number and the total time of the outages of one scope.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutageSum {
    /// What failed in these outages.
    pub scope: OutageScope,
    /// The number of outages.
    pub count: u64,
    /// The total time of the outages, in microseconds.
    pub total_us: u64,
}

impl ApplianceStore {
    /// The number and the total time of the outages of each scope. An outage that has not ended counts until `now`. A
    /// scope without an outage has no row.
    pub async fn outage_sums(&self, now: Timestamp) -> Result<Vec<OutageSum>, StorageError> {
        let fault = || self.fault("reading the outages");
        let rows = on!(self.pool, |db| sqlx::query_as::<_, (String, i64, i64)>(
            "SELECT scope, COUNT(*), CAST(SUM(CASE WHEN COALESCE(ended_at_us, $1) > began_at_us \
             THEN COALESCE(ended_at_us, $1) - began_at_us ELSE 0 END) AS BIGINT) FROM outages GROUP BY scope ORDER BY scope",
        )
        .bind(now.as_microsecond())
        .fetch_all(db)
        .await)
        .map_err(fault())?;
        let sum = |(scope, count, total_us): (String, i64, i64)| {
            let scope = OutageScope::from_word(&scope).map_err(strange)?;
            Ok(OutageSum { scope, count: natural(count), total_us: natural(total_us) })
        };
        rows.into_iter().map(|row| sum(row).map_err(fault())).collect()
    }

    /// The payload bytes of the runs that began at this time or later.
    pub async fn data_used_since(&self, since: Timestamp) -> Result<u64, StorageError> {
        let sum = on!(self.pool, |db| sqlx::query_scalar::<_, i64>(
            "SELECT CAST(COALESCE(SUM(data_used_bytes), 0) AS BIGINT) FROM runs WHERE started_at_us >= $1",
        )
        .bind(since.as_microsecond())
        .fetch_one(db)
        .await)
        .map_err(self.fault("reading the runs"))?;
        Ok(natural(sum))
    }

    /// The counts of the probes of each monitor from the minute `from` up to `to` (excluded), in steps of `step`
    /// minutes, sorted by monitor and time. A step without probes has no row.
    pub async fn monitor_losses(&self, from: i64, to: i64, step: i64) -> Result<Vec<LossSum>, StorageError> {
        let rows = on!(self.pool, |db| sqlx::query_as::<_, (i64, i64, i64, i64)>(
            "SELECT monitor, minute / $3 * $3 AS step, CAST(SUM(count) AS BIGINT), CAST(SUM(lost) AS BIGINT) \
             FROM monitor_rows WHERE span = 1 AND minute >= $1 AND minute < $2 GROUP BY 1, 2 ORDER BY 1, 2",
        )
        .bind(from)
        .bind(to)
        .bind(step.max(1))
        .fetch_all(db)
        .await)
        .map_err(self.fault("reading what the monitors measured"))?;
        let sum =
            |(number, minute, count, lost)| LossSum { number, minute, count: natural(count), lost: natural(lost) };
        Ok(rows.into_iter().map(sum).collect())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use paramedic_report::document::{ResultDocument, example};
    use uuid::Uuid;

    use super::super::each_engine::on_each_engine;
    use super::*;
    use crate::monitor::ProbeTally;
    use crate::store::{MonitorMinute, StoredOutage};

    #[tokio::test]
    async fn the_data_of_a_time_is_that_of_its_runs() {
        on_each_engine(async |store| {
            let at = |text: &str| text.parse::<Timestamp>().unwrap();
            assert_eq!(store.data_used_since(Timestamp::UNIX_EPOCH).await.unwrap(), 0);
            for (started_at, data_used_bytes) in
                [("2026-01-31T23:59:59Z", 5), ("2026-02-01T00:00:00Z", 7), ("2026-02-02T00:00:00Z", 9)]
            {
                let run = ResultDocument {
                    id: Uuid::now_v7(),
                    started_at: at(started_at),
                    data_used_bytes,
                    ..example::bare()
                };
                store.save_run(&run).await.unwrap();
            }
            assert_eq!(store.data_used_since(at("2026-02-01T00:00:00Z")).await.unwrap(), 16);
        })
        .await;
    }

    #[tokio::test]
    async fn outages_are_summed_by_scope_and_one_that_lasts_counts_until_now() {
        on_each_engine(async |store| {
            let at = |second: i64| Timestamp::from_second(1_769_860_800 + second).unwrap();
            for (scope, began, ended) in [
                (OutageScope::Target, 0, Some(10)),
                (OutageScope::Target, 20, Some(25)),
                (OutageScope::Everything, 50, None),
                (OutageScope::Gateway, 90, None),
            ] {
                let outage = StoredOutage {
                    id: Uuid::now_v7(),
                    began_at: at(began),
                    ended_at: ended.map(at),
                    end_known: true,
                    scope,
                    failed: ["a".to_owned()].into(),
                    reachable: BTreeSet::new(),
                };
                store.save_outage("PP", &outage).await.unwrap();
            }
            let sum = |scope, count, seconds: u64| OutageSum { scope, count, total_us: seconds * 1_000_000 };
            let expected =
                [sum(OutageScope::Everything, 1, 20), sum(OutageScope::Gateway, 1, 0), sum(OutageScope::Target, 2, 15)];
            assert_eq!(store.outage_sums(at(70)).await.unwrap(), expected);
        })
        .await;
    }

    #[tokio::test]
    async fn losses_are_summed_by_monitor_and_step() {
        on_each_engine(async |store| {
            let begin = 29_000_000 / 15 * 15;
            let minute = |number, minute, lost| {
                let tally = ProbeTally { count: 60, lost, ..ProbeTally::default() };
                MonitorMinute { number, minute: begin + minute, tally }
            };
            let minutes = [
                minute(1, -1, 9),
                minute(1, 0, 1),
                minute(1, 14, 2),
                minute(2, 14, 0),
                minute(1, 15, 3),
                minute(1, 30, 9),
            ];
            store.save_minutes(&minutes, begin + 31).await.unwrap();
            let sums = store.monitor_losses(begin, begin + 30, 15).await.unwrap();
            let sum = |number, step, count, lost| LossSum { number, minute: begin + step, count, lost };
            assert_eq!(sums, [sum(1, 0, 120, 3), sum(1, 15, 60, 3), sum(2, 0, 60, 0)]);
        })
        .await;
    }
}
