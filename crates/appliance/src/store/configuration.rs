//! Changes that a configuration file makes, as one change of the database, and the marks of what it made.

use std::collections::BTreeSet;

use jiff::Timestamp;
use paramedic_host::database::is_unique_violation;
use paramedic_link::{EndpointId, PeerText};
use uuid::Uuid;

use super::plan::SET_PLAN;
use super::pool::{in_change, on, rows};
use super::{ApplianceStore, StorageError};
use crate::plan::Plan;
use crate::schedule::Schedule;

/// What a configuration file changes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ConfigurationWrite {
    /// New names of reflectors.
    pub renamed: Vec<(EndpointId, PeerText)>,
    /// New and changed schedules.
    pub schedules: Vec<ScheduleWrite>,
    /// Schedules that are in the file as they are stored.
    pub unchanged: Vec<Uuid>,
    /// Schedules that an earlier file made, and that are no longer in it.
    pub removed: Vec<Uuid>,
    /// The plan.
    pub plan: PlanWrite,
}

/// What becomes of the plan.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum PlanWrite {
    /// It stays as it is.
    #[default]
    Keep,
    /// It is set.
    Set(Plan),
    /// It stays, and counts as made by the file.
    Mark,
    /// It is removed.
    Remove,
}

/// A schedule to be written.
#[derive(Clone, Debug, PartialEq)]
pub struct ScheduleWrite {
    /// The stored one that it replaces, with its runs.
    pub replaces: Option<Uuid>,
    /// The schedule.
    pub schedule: Schedule,
    /// Whether it runs.
    pub enabled: bool,
    /// Whether it is due at other times than before: what was due until now was not missed.
    pub is_replanned: bool,
}

impl ApplianceStore {
    /// The schedules that a configuration file made.
    pub async fn schedules_from_file(&self) -> Result<BTreeSet<Uuid>, StorageError> {
        let ids: Vec<String> =
            on!(self.pool, |db| sqlx::query_scalar("SELECT id FROM schedules WHERE from_file").fetch_all(db).await)
                .map_err(self.fault("reading the schedules"))?;
        Ok(ids.iter().filter_map(|id| id.parse().ok()).collect())
    }

    /// Makes all of these changes, or none.
    pub async fn write_configuration(
        &self,
        appliance: &str,
        write: &ConfigurationWrite,
        now: Timestamp,
    ) -> Result<(), StorageError> {
        let fault = || self.fault("saving the configuration");
        let now_us = now.as_microsecond();
        let mut work = self.pool.begin().await.map_err(fault())?;
        // Two reflectors may exchange their names, which are unique: an Endpoint ID is the name of no other one.
        for (id, _) in &write.renamed {
            in_change!(&mut work, |db| sqlx::query("UPDATE reflectors SET name = $1 WHERE endpoint_id = $1")
                .bind(id.to_string())
                .execute(db)
                .await
                .map(rows))
            .map_err(fault())?;
        }
        for (id, name) in &write.renamed {
            let renamed =
                in_change!(&mut work, |db| sqlx::query("UPDATE reflectors SET name = $2 WHERE endpoint_id = $1")
                    .bind(id.to_string())
                    .bind(name.as_str())
                    .execute(db)
                    .await
                    .map(rows));
            renamed.map_err(|error| match is_unique_violation(&error) {
                true => StorageError::NameTaken { name: name.to_string() },
                false => fault()(error),
            })?;
        }
        for id in &write.removed {
            in_change!(&mut work, |db| sqlx::query("DELETE FROM schedules WHERE id = $1")
                .bind(id.to_string())
                .execute(db)
                .await
                .map(rows))
            .map_err(fault())?;
        }
        for id in &write.unchanged {
            in_change!(&mut work, |db| sqlx::query(
                "UPDATE schedules SET from_file = TRUE WHERE id = $1 AND NOT from_file"
            )
            .bind(id.to_string())
            .execute(db)
            .await
            .map(rows))
            .map_err(fault())?;
        }
        for ScheduleWrite { replaces, schedule, enabled, is_replanned } in &write.schedules {
            let definition = serde_json::to_string(schedule).map_err(|source| StorageError::Document { source })?;
            let id = replaces.unwrap_or_else(Uuid::now_v7);
            in_change!(&mut work, |db| sqlx::query(
                "INSERT INTO schedules (id, appliance, name, definition, enabled, added_at_us, decided_until_us, \
                 from_file) VALUES ($1, $2, $3, $4, $5, $6, $6, TRUE) ON CONFLICT (id) DO UPDATE SET name = $3, \
                 definition = $4, enabled = $5, from_file = TRUE, \
                 decided_until_us = CASE WHEN $7 THEN $6 ELSE schedules.decided_until_us END",
            )
            .bind(id.to_string())
            .bind(appliance)
            .bind(&schedule.name)
            .bind(definition)
            .bind(enabled)
            .bind(now_us)
            .bind(is_replanned)
            .execute(db)
            .await
            .map(rows))
            .map_err(fault())?;
        }
        match &write.plan {
            PlanWrite::Keep => {}
            PlanWrite::Set(plan) => {
                let definition = serde_json::to_string(plan).map_err(|source| StorageError::Document { source })?;
                in_change!(&mut work, |db| sqlx::query(SET_PLAN)
                    .bind(appliance)
                    .bind(definition)
                    .bind(true)
                    .bind(now_us)
                    .execute(db)
                    .await
                    .map(rows))
                .map_err(fault())?;
            }
            PlanWrite::Mark => {
                in_change!(&mut work, |db| sqlx::query("UPDATE plan SET from_file = TRUE WHERE NOT from_file")
                    .execute(db)
                    .await
                    .map(rows))
                .map_err(fault())?;
            }
            PlanWrite::Remove => {
                in_change!(&mut work, |db| sqlx::query("DELETE FROM plan").execute(db).await.map(rows))
                    .map_err(fault())?;
            }
        }
        work.commit().await.map_err(fault())
    }
}
