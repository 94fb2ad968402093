//! Stores the schedules of this appliance, and the outcomes of their runs.

use jiff::Timestamp;
use paramedic_host::database::is_unique_violation;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::pool::{in_change, on, rows, without_nul};
use super::{ApplianceStore, PageCursor, StorageError, TimeRange, natural, strange, unsigned};
use crate::schedule::Schedule;
use crate::schedule::budget::BudgetPeriod;
use crate::schedule::line_load::LineCapacity;
use crate::schedule::planner::{DueRun, SkippedRun};

/// The number of latest results from which the rates of a line are estimated, and the number of latest runs from which
/// the data of the next run is estimated.
const LATEST_RESULTS: i64 = 5;

/// A schedule as stored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct StoredSchedule {
    /// The id of the schedule, a UUIDv7.
    pub id: Uuid,
    /// Whether the schedule is enabled.
    pub enabled: bool,
    /// Whether a configuration file made the schedule (`packetparamedic apply`). If so, applying a configuration file
    /// again undoes changes that were made to the schedule in another way.
    #[serde(default)]
    pub from_file: bool,
    /// When the schedule was added.
    pub added_at: Timestamp,
    /// The time up to which the occurrences of the schedule are decided: no run starts any more for an occurrence up to
    /// this time.
    pub decided_until: Timestamp,
    /// The definition of the schedule.
    #[serde(flatten)]
    pub schedule: Schedule,
}

/// A run of a schedule, which started or was skipped.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ScheduleRun {
    /// The id of the run, a UUIDv7.
    pub id: Uuid,
    /// The id of the schedule.
    pub schedule_id: Uuid,
    /// The name of the schedule when the run started or was skipped.
    pub schedule: String,
    /// The time at which the run was due, without the random delay.
    pub due_at: Timestamp,
    /// When the run started or was skipped.
    pub decided_at: Timestamp,
    /// When the run ended; absent while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<Timestamp>,
    /// Whether the user or an alert rule asked for the run.
    pub requested: bool,
    /// The outcome of the run.
    pub outcome: ScheduleRunOutcome,
    /// Why the run was skipped, as a word of [`crate::schedule::admission::SkipReason`]. Or why it failed or was
    /// interrupted: the code of the error, or `service_ended` after a crash of the service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The id of the result that the run saved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result_id: Option<Uuid>,
    /// The payload bytes that the run used. While it runs, and after a crash: the bytes that it was expected to use.
    pub data_used_bytes: u64,
}

/// The outcome of a run of a schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ScheduleRunOutcome {
    /// The run has started and not ended.
    Running,
    /// The run measured everything.
    Done,
    /// The run failed.
    Failed,
    /// The run was cancelled, or the service ended during the run.
    Interrupted,
    /// The run did not start.
    Skipped,
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq)]
pub struct RunEnding {
    /// When the run ended.
    pub at: Timestamp,
    /// The outcome of the run, which is never [`ScheduleRunOutcome::Running`].
    pub outcome: ScheduleRunOutcome,
    /// The code of the error with which the run failed or was interrupted; `None` if it measured everything.
    pub reason: Option<String>,
    /// The id of the result that the run saved.
    pub result_id: Option<Uuid>,
    /// The payload bytes that the run used.
    pub data_used_bytes: u64,
}

impl ScheduleRunOutcome {
    /// All outcomes, each with its name in documents.
    pub const ALL: [(Self, &'static str); 5] = [
        (Self::Running, "running"),
        (Self::Done, "done"),
        (Self::Failed, "failed"),
        (Self::Interrupted, "interrupted"),
        (Self::Skipped, "skipped"),
    ];

    /// The name of the outcome in documents.
    pub fn as_str(self) -> &'static str {
        Self::ALL.iter().find(|(own, _)| *own == self).map_or("", |(_, word)| word)
    }
}

/// The stored columns of a schedule.
#[derive(sqlx::FromRow)]
struct ScheduleRow {
    id: String,
    enabled: bool,
    /// Whether a configuration file made the schedule. An older database that is only read, and so not migrated, has no
    /// such column.
    #[sqlx(default)]
    from_file: bool,
    added_at_us: i64,
    decided_until_us: i64,
    definition: String,
}

/// The stored columns of a run of a schedule.
#[derive(sqlx::FromRow)]
struct ScheduleRunRow {
    id: String,
    schedule_id: String,
    schedule_name: String,
    due_at_us: i64,
    decided_at_us: i64,
    ended_at_us: Option<i64>,
    requested: bool,
    outcome: String,
    reason: Option<String>,
    result_id: Option<String>,
    data_used_bytes: i64,
}

impl ScheduleRunRow {
    fn run(self) -> Result<ScheduleRun, sqlx::Error> {
        let outcome = ScheduleRunOutcome::ALL.iter().find(|(_, word)| *word == self.outcome);
        Ok(ScheduleRun {
            id: self.id.parse().map_err(strange)?,
            schedule_id: self.schedule_id.parse().map_err(strange)?,
            schedule: self.schedule_name,
            due_at: time(self.due_at_us)?,
            decided_at: time(self.decided_at_us)?,
            ended_at: self.ended_at_us.map(time).transpose()?,
            requested: self.requested,
            outcome: outcome.ok_or_else(|| sqlx::Error::Decode("the stored outcome of a run is unknown".into()))?.0,
            reason: self.reason,
            result_id: self.result_id.map(|id| id.parse()).transpose().map_err(strange)?,
            data_used_bytes: natural(self.data_used_bytes),
        })
    }
}

/// A new row of the table `schedule_runs`.
struct NewRun<'a> {
    run: &'a DueRun,
    at: Timestamp,
    ended_at: Option<Timestamp>,
    outcome: ScheduleRunOutcome,
    reason: Option<&'a str>,
    data_used_bytes: u64,
}

impl ApplianceStore {
    /// Saves a new schedule, which is enabled. `appliance` is the Endpoint ID of this device.
    pub async fn add_schedule(
        &self,
        appliance: &str,
        schedule: &Schedule,
        now: Timestamp,
    ) -> Result<StoredSchedule, StorageError> {
        let definition = serde_json::to_string(schedule).map_err(|source| StorageError::Document { source })?;
        let now = whole_microsecond(now);
        let stored = StoredSchedule {
            id: Uuid::now_v7(),
            enabled: true,
            from_file: false,
            added_at: now,
            decided_until: now,
            schedule: schedule.clone(),
        };
        let added = on!(self.pool, |db| sqlx::query(
            "INSERT INTO schedules (id, appliance, name, definition, enabled, added_at_us, decided_until_us) \
             VALUES ($1, $2, $3, $4, TRUE, $5, $5)",
        )
        .bind(stored.id.to_string())
        .bind(appliance)
        .bind(&schedule.name)
        .bind(definition)
        .bind(now.as_microsecond())
        .execute(db)
        .await
        .map(rows));
        match added {
            Ok(_) => Ok(stored),
            Err(error) if is_unique_violation(&error) => {
                Err(StorageError::ScheduleExists { name: schedule.name.clone() })
            }
            Err(error) => Err(self.fault("saving the schedule")(error)),
        }
    }

    /// Every schedule, sorted by name.
    pub async fn schedules(&self) -> Result<Vec<StoredSchedule>, StorageError> {
        let fault = || self.fault("reading the schedules");
        on!(self.pool, |db| {
            sqlx::query_as::<_, ScheduleRow>("SELECT * FROM schedules ORDER BY lower(name)").fetch_all(db).await
        })
        .map_err(fault())?
        .into_iter()
        .map(|row| stored_schedule(row).map_err(fault()))
        .collect()
    }

    /// The schedule with this name, ignoring case.
    pub async fn schedule(&self, name: &str) -> Result<StoredSchedule, StorageError> {
        let wanted = name.trim().to_lowercase();
        let mut all = self.schedules().await?;
        all.retain(|stored| stored.schedule.name.to_lowercase() == wanted);
        all.pop().ok_or_else(|| StorageError::NoSuchSchedule { wanted: name.to_owned() })
    }

    /// Removes the schedule with this name, and returns it. Keeps its runs.
    pub async fn remove_schedule(&self, name: &str) -> Result<StoredSchedule, StorageError> {
        let stored = self.schedule(name).await?;
        on!(self.pool, |db| sqlx::query("DELETE FROM schedules WHERE id = $1")
            .bind(stored.id.to_string())
            .execute(db)
            .await
            .map(rows))
        .map_err(self.fault("removing the schedule"))?;
        Ok(stored)
    }

    /// Enables or disables the schedule with this name, and returns it. Runs that were due while it was disabled do not
    /// count as missed.
    pub async fn enable_schedule(
        &self,
        name: &str,
        enabled: bool,
        now: Timestamp,
    ) -> Result<StoredSchedule, StorageError> {
        let stored = self.schedule(name).await?;
        if stored.enabled == enabled {
            return Ok(stored);
        }
        let now = whole_microsecond(now);
        on!(self.pool, |db| sqlx::query("UPDATE schedules SET enabled = $2, decided_until_us = $3 WHERE id = $1")
            .bind(stored.id.to_string())
            .bind(enabled)
            .bind(now.as_microsecond())
            .execute(db)
            .await
            .map(rows))
        .map_err(self.fault("saving the schedule"))?;
        Ok(StoredSchedule { enabled, decided_until: now, ..stored })
    }

    /// Records a run that does not take place.
    pub async fn note_skipped_run(
        &self,
        appliance: &str,
        skipped: &SkippedRun,
        now: Timestamp,
    ) -> Result<(), StorageError> {
        let new = NewRun {
            run: &skipped.run,
            at: now,
            ended_at: Some(now),
            outcome: ScheduleRunOutcome::Skipped,
            reason: Some(skipped.reason.as_str()),
            data_used_bytes: 0,
        };
        self.insert_run(appliance, &new).await.map(drop)
    }

    /// Records that a run starts, with the data that the run is expected to use. Returns the id of the run.
    pub async fn begin_run(
        &self,
        appliance: &str,
        run: &DueRun,
        expected_bytes: u64,
        now: Timestamp,
    ) -> Result<Uuid, StorageError> {
        let outcome = ScheduleRunOutcome::Running;
        let new = NewRun { run, at: now, ended_at: None, outcome, reason: None, data_used_bytes: expected_bytes };
        self.insert_run(appliance, &new).await
    }

    /// Saves the run, and in the same transaction the time up to which its schedule is decided, so that a run is
    /// neither lost nor repeated.
    async fn insert_run(&self, appliance: &str, new: &NewRun<'_>) -> Result<Uuid, StorageError> {
        let fault = || self.fault("saving the run of a schedule");
        let id = Uuid::now_v7();
        let mut work = self.pool.begin().await.map_err(fault())?;
        // If the server's answer to an earlier commit was lost, the row of this decision already exists.
        in_change!(&mut work, |db| sqlx::query(
            "DELETE FROM schedule_runs WHERE schedule_id = $1 AND due_at_us = $2 AND (outcome = 'running' \
             OR decided_at_us = $3 AND outcome = $4)",
        )
        .bind(new.run.schedule.to_string())
        .bind(new.run.due.as_microsecond())
        .bind(new.at.as_microsecond())
        .bind(new.outcome.as_str())
        .execute(db)
        .await
        .map(rows))
        .map_err(fault())?;
        in_change!(&mut work, |db| sqlx::query(
            "INSERT INTO schedule_runs (id, schedule_id, appliance, schedule_name, due_at_us, decided_at_us, \
             ended_at_us, requested, outcome, reason, data_used_bytes) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
        )
        .bind(id.to_string())
        .bind(new.run.schedule.to_string())
        .bind(appliance)
        .bind(&new.run.name)
        .bind(new.run.due.as_microsecond())
        .bind(new.at.as_microsecond())
        .bind(new.ended_at.map(Timestamp::as_microsecond))
        .bind(new.run.is_requested)
        .bind(new.outcome.as_str())
        .bind(new.reason)
        .bind(unsigned(new.data_used_bytes))
        .execute(db)
        .await
        .map(rows))
        .map_err(fault())?;
        // A run that the user requested is no occurrence of the schedule.
        if !new.run.is_requested {
            in_change!(&mut work, |db| sqlx::query("UPDATE schedules SET decided_until_us = $2 WHERE id = $1")
                .bind(new.run.schedule.to_string())
                .bind(new.run.due.as_microsecond())
                .execute(db)
                .await
                .map(rows))
            .map_err(fault())?;
        }
        work.commit().await.map_err(fault())?;
        Ok(id)
    }

    /// Records how a run ended.
    pub async fn end_run(&self, id: Uuid, end: &RunEnding) -> Result<(), StorageError> {
        on!(self.pool, |db| sqlx::query(
            "UPDATE schedule_runs SET ended_at_us = $2, outcome = $3, reason = $4, result_id = $5, \
             data_used_bytes = $6 WHERE id = $1",
        )
        .bind(id.to_string())
        .bind(end.at.as_microsecond())
        .bind(end.outcome.as_str())
        .bind(end.reason.as_deref())
        .bind(end.result_id.map(|id| id.to_string()))
        .bind(unsigned(end.data_used_bytes))
        .execute(db)
        .await
        .map(rows))
        .map(drop)
        .map_err(self.fault("saving the run of a schedule"))
    }

    /// Marks the runs that were open when the service crashed as interrupted. The bytes that such a run was expected to
    /// use stay recorded as used. No run ends before it began, even if the clock is not right yet after a boot. Returns
    /// the number of these runs.
    pub async fn interrupt_open_runs(&self, now: Timestamp) -> Result<u64, StorageError> {
        on!(self.pool, |db| sqlx::query(
            "UPDATE schedule_runs SET ended_at_us = CASE WHEN decided_at_us > $1 THEN decided_at_us ELSE $1 END, \
             outcome = 'interrupted', reason = 'service_ended' WHERE outcome = 'running'",
        )
        .bind(now.as_microsecond())
        .execute(db)
        .await
        .map(rows))
        .map_err(self.fault("saving the runs of schedules"))
    }

    /// Deletes the records of runs that started or were skipped before `before`. Returns the number of these records.
    pub async fn prune_schedule_runs(&self, before: Timestamp) -> Result<u64, StorageError> {
        on!(self.pool, |db| sqlx::query("DELETE FROM schedule_runs WHERE decided_at_us < $1")
            .bind(before.as_microsecond())
            .execute(db)
            .await
            .map(rows))
        .map_err(self.fault("deleting old runs of schedules"))
    }

    /// The latest runs of one schedule, or of all schedules if `schedule` is `None`, newest first, at most `limit`.
    pub async fn schedule_runs(&self, schedule: Option<Uuid>, limit: u32) -> Result<Vec<ScheduleRun>, StorageError> {
        self.schedule_runs_page(schedule, None, limit).await
    }

    /// A page of [`ApplianceStore::schedule_runs`], newest first: at most `limit` runs after the position `after`.
    pub async fn schedule_runs_page(
        &self,
        schedule: Option<Uuid>,
        after: Option<PageCursor>,
        limit: u32,
    ) -> Result<Vec<ScheduleRun>, StorageError> {
        let (at_us, id) = PageCursor::bounds(after);
        let fault = || self.fault("reading the runs of schedules");
        on!(self.pool, |db| sqlx::query_as::<_, ScheduleRunRow>(
            "SELECT id, schedule_id, schedule_name, due_at_us, decided_at_us, ended_at_us, requested, outcome, reason, \
             result_id, data_used_bytes FROM schedule_runs WHERE ($1 IS NULL OR schedule_id = $1) \
             AND (decided_at_us, id) < ($3, $4) ORDER BY decided_at_us DESC, id DESC LIMIT $2",
        )
        .bind(schedule.map(|id| id.to_string()))
        .bind(i64::from(limit))
        .bind(at_us)
        .bind(id)
        .fetch_all(db)
        .await)
        .map_err(fault())?
        .into_iter()
        .map(|row| row.run().map_err(fault()))
        .collect()
    }

    /// The runs of one schedule, or of all schedules if `schedule` is `None`, that started or were skipped within
    /// `range`. The oldest run comes first. Returns at most `limit` runs after the position `after`.
    pub(super) async fn schedule_runs_between(
        &self,
        schedule: Option<Uuid>,
        range: TimeRange,
        after: Option<PageCursor>,
        limit: u32,
    ) -> Result<Vec<ScheduleRun>, StorageError> {
        let ((since_us, until_us), (at_us, id)) = (range.bounds_us(), PageCursor::lower_bounds(after));
        let fault = || self.fault("reading the runs of schedules");
        on!(self.pool, |db| sqlx::query_as::<_, ScheduleRunRow>(
            "SELECT id, schedule_id, schedule_name, due_at_us, decided_at_us, ended_at_us, requested, outcome, reason, \
             result_id, data_used_bytes FROM schedule_runs WHERE ($1 IS NULL OR schedule_id = $1) \
             AND decided_at_us >= $2 AND decided_at_us < $3 AND (decided_at_us, id) > ($4, $5) \
             ORDER BY decided_at_us, id LIMIT $6",
        )
        .bind(schedule.map(|id| id.to_string()))
        .bind(since_us)
        .bind(until_us)
        .bind(at_us)
        .bind(id)
        .bind(i64::from(limit))
        .fetch_all(db)
        .await)
        .map_err(fault())?
        .into_iter()
        .map(|row| row.run().map_err(fault()))
        .collect()
    }

    /// The bytes that the runs of a schedule used, for the runs that started within a period.
    pub async fn schedule_data_used(&self, schedule: Uuid, period: BudgetPeriod) -> Result<u64, StorageError> {
        let used: i64 = on!(self.pool, |db| sqlx::query_scalar(
            "SELECT CAST(COALESCE(SUM(data_used_bytes), 0) AS BIGINT) FROM schedule_runs \
             WHERE schedule_id = $1 AND decided_at_us >= $2 AND decided_at_us < $3",
        )
        .bind(schedule.to_string())
        .bind(period.from.as_microsecond())
        .bind(period.to.as_microsecond())
        .fetch_one(db)
        .await)
        .map_err(self.fault("reading the used data"))?;
        Ok(natural(used))
    }

    /// Of the latest complete runs of a schedule, the bytes of the run that used the most; `None` if no run was
    /// complete.
    pub async fn schedule_run_bytes(&self, schedule: Uuid) -> Result<Option<u64>, StorageError> {
        let most: Option<i64> = on!(self.pool, |db| sqlx::query_scalar(
            "SELECT MAX(data_used_bytes) FROM (SELECT data_used_bytes FROM schedule_runs \
             WHERE schedule_id = $1 AND outcome = 'done' ORDER BY decided_at_us DESC LIMIT $2) AS latest",
        )
        .bind(schedule.to_string())
        .bind(LATEST_RESULTS)
        .fetch_one(db)
        .await)
        .map_err(self.fault("reading the used data"))?;
        Ok(most.map(natural))
    }

    /// The highest rates in the latest complete results. If `peer` is given, only results against the other end with
    /// this name or address count.
    pub async fn line_capacity(&self, peer: Option<&str>) -> Result<LineCapacity, StorageError> {
        let peer = peer.map(without_nul);
        let lower = peer.as_deref().map(str::to_ascii_lowercase);
        let (down, up): (Option<i64>, Option<i64>) = on!(self.pool, |db| sqlx::query_as(
            "SELECT MAX(download_bps), MAX(upload_bps) FROM (SELECT download_bps, upload_bps FROM runs \
             WHERE complete AND ($1 IS NULL OR lower(peer) = $3 OR address = $1) \
             ORDER BY started_at_us DESC LIMIT $2) AS latest",
        )
        .bind(peer)
        .bind(LATEST_RESULTS)
        .bind(lower)
        .fetch_one(db)
        .await)
        .map_err(self.fault("reading the runs"))?;
        Ok(LineCapacity { download_bps: down.map(natural), upload_bps: up.map(natural) })
    }
}

fn stored_schedule(row: ScheduleRow) -> Result<StoredSchedule, sqlx::Error> {
    Ok(StoredSchedule {
        id: row.id.parse().map_err(strange)?,
        enabled: row.enabled,
        from_file: row.from_file,
        added_at: time(row.added_at_us)?,
        decided_until: time(row.decided_until_us)?,
        schedule: serde_json::from_str(&row.definition).map_err(strange)?,
    })
}

fn time(microseconds: i64) -> Result<Timestamp, sqlx::Error> {
    Timestamp::from_microsecond(microseconds).map_err(strange)
}

/// Cuts a time to the precision of the database, one microsecond.
fn whole_microsecond(time: Timestamp) -> Timestamp {
    Timestamp::from_microsecond(time.as_microsecond()).unwrap_or(time)
}

#[cfg(test)]
mod tests {
    use paramedic_report::document::{ResultDocument, example};

    use super::*;
    use crate::schedule::admission::SkipReason;
    use crate::schedule::example_schedule;
    use crate::store::RunQuery;
    use crate::store::each_engine::on_each_engine;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn due(stored: &StoredSchedule, due: &str) -> DueRun {
        let name = stored.schedule.name.clone();
        DueRun { schedule: stored.id, name, due: at(due), is_requested: false }
    }

    #[tokio::test]
    async fn a_schedule_is_read_back_by_its_name_and_its_name_is_unique() {
        on_each_engine(async |store| {
            let now = at("2026-01-01T12:00:00.123456789Z");
            let nightly = store.add_schedule("PP-A", &example_schedule("nightly"), now).await.unwrap();
            let again = store.add_schedule("PP-A", &example_schedule("Nightly"), now).await;
            assert!(matches!(again, Err(StorageError::ScheduleExists { .. })), "{again:?}");
            assert_eq!(store.schedule(" NIGHTLY ").await.unwrap(), nightly);
            let disabled = store.enable_schedule("nightly", false, at("2026-01-02T00:00:00Z")).await.unwrap();
            assert!(!disabled.enabled && store.schedules().await.unwrap() == [disabled]);
            let enabled = store.enable_schedule("nightly", true, at("2026-01-03T00:00:00Z")).await.unwrap();
            assert_eq!(enabled.decided_until, at("2026-01-03T00:00:00Z"), "what was due meanwhile was not missed");
            store.remove_schedule("nightly").await.unwrap();
            assert!(matches!(store.schedule("nightly").await, Err(StorageError::NoSuchSchedule { .. })));
        })
        .await;
    }

    #[tokio::test]
    async fn runs_are_kept_with_their_reason_and_count_against_the_period_they_began_in() {
        on_each_engine(async |store| {
            let schedule =
                store.add_schedule("PP-A", &example_schedule("a"), at("2026-01-01T00:00:00Z")).await.unwrap();
            let run = due(&schedule, "2026-01-01T03:00:00Z");
            let id = store.begin_run("PP-A", &run, 100, at("2026-01-01T03:01:00Z")).await.unwrap();
            let day = BudgetPeriod { from: at("2026-01-01T00:00:00Z"), to: at("2026-01-02T00:00:00Z") };
            assert_eq!(store.schedule_data_used(schedule.id, day).await.unwrap(), 100, "expected, while it runs");
            let ending = RunEnding {
                at: at("2026-01-01T03:02:00Z"),
                outcome: ScheduleRunOutcome::Done,
                reason: None,
                result_id: Some(Uuid::from_u128(7)),
                data_used_bytes: 70,
            };
            store.end_run(id, &ending).await.unwrap();
            assert_eq!(store.schedule_data_used(schedule.id, day).await.unwrap(), 70);
            let skipped = SkippedRun { run: due(&schedule, "2026-01-02T03:00:00Z"), reason: SkipReason::LineBusy };
            store.note_skipped_run("PP-A", &skipped, at("2026-01-02T03:01:00Z")).await.unwrap();
            let requested = DueRun { is_requested: true, ..due(&schedule, "2026-01-02T09:00:00Z") };
            store.begin_run("PP-A", &requested, 500, at("2026-01-02T09:00:00Z")).await.unwrap();
            assert_eq!(store.schedule("a").await.unwrap().decided_until, at("2026-01-02T03:00:00Z"));
            // The service was killed during a run.
            assert_eq!(store.interrupt_open_runs(at("2026-01-02T10:00:00Z")).await.unwrap(), 1);
            assert_eq!(store.interrupt_open_runs(at("2026-01-02T10:00:00Z")).await.unwrap(), 0);
            let runs = store.schedule_runs(Some(schedule.id), 10).await.unwrap();
            let seen = runs.iter().map(|run| (run.outcome, run.reason.as_deref(), run.data_used_bytes));
            assert_eq!(
                seen.collect::<Vec<_>>(),
                [
                    (ScheduleRunOutcome::Interrupted, Some("service_ended"), 500),
                    (ScheduleRunOutcome::Skipped, Some("line_busy"), 0),
                    (ScheduleRunOutcome::Done, None, 70),
                ]
            );
            // The same decisions are saved again, because the answers of the server were lost. This adds no further
            // rows.
            store.note_skipped_run("PP-A", &skipped, at("2026-01-02T03:01:00Z")).await.unwrap();
            assert_eq!(store.schedule_runs(Some(schedule.id), 10).await.unwrap().len(), 3);
            assert_eq!(store.schedule_run_bytes(schedule.id).await.unwrap(), Some(70), "of complete runs");
            let other = BudgetPeriod { from: at("2026-01-02T00:00:00Z"), to: at("2026-01-03T00:00:00Z") };
            assert_eq!(store.schedule_data_used(schedule.id, other).await.unwrap(), 500);
            assert_eq!(store.prune_schedule_runs(at("2026-01-02T00:00:00Z")).await.unwrap(), 1);
            assert_eq!(store.schedule_runs(None, 10).await.unwrap().len(), 2);
        })
        .await;
    }

    #[tokio::test]
    async fn the_capacity_of_a_line_is_that_of_the_latest_complete_results() {
        on_each_engine(async |store| {
            assert_eq!(store.line_capacity(None).await.unwrap(), LineCapacity::default());
            let document = ResultDocument { complete: true, ..example::full() };
            store.save_run(&document).await.unwrap();
            let measured = LineCapacity {
                download_bps: document.download.as_ref().map(|result| result.goodput_bps),
                upload_bps: document.upload.as_ref().map(|result| result.goodput_bps),
            };
            let name = document.other_end().unwrap().to_uppercase();
            assert_eq!(store.line_capacity(None).await.unwrap(), measured);
            assert_eq!(store.line_capacity(Some(&name)).await.unwrap(), measured);
            assert_eq!(store.line_capacity(Some("elsewhere")).await.unwrap(), LineCapacity::default());
        })
        .await;
    }

    #[tokio::test]
    async fn a_database_of_the_version_before_schedules_is_upgraded_in_place() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join(crate::store::FILE);
        std::fs::write(&file, include_bytes!("../../tests/before_schedules.db")).unwrap();
        let store = ApplianceStore::open(folder.path()).await.unwrap();
        assert_eq!(store.reflectors().await.unwrap().len(), 1);
        let runs = store.runs(&RunQuery::default(), None, 10).await.unwrap();
        assert_eq!(runs.len(), 2, "{runs:?}");
        let [complete, failed] =
            [true, false].map(|complete| runs.iter().find(|run| run.complete == complete).unwrap());
        let text = store.run(&complete.id.to_string()).await.unwrap();
        assert_eq!(text.document().unwrap().id, complete.id);
        assert!(failed.error.is_some(), "{failed:?}");
        store.add_schedule("PP-A", &example_schedule("a"), at("2026-01-01T00:00:00Z")).await.unwrap();
        store.close().await;
        let store = ApplianceStore::open(folder.path()).await.unwrap();
        assert_eq!(
            (store.schedules().await.unwrap().len(), store.runs(&RunQuery::default(), None, 10).await.unwrap().len()),
            (1, 2)
        );
    }
}
