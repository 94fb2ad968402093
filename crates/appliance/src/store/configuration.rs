//! Changes that a configuration file makes, as one change of the database, and the marks of what it made.

use jiff::Timestamp;
use paramedic_host::database::is_unique_violation;
use paramedic_link::{EndpointId, PeerText};
use uuid::Uuid;

use super::plan::SET_PLAN;
use super::pool::{StoreChange, in_change, rows};
use super::{ApplianceStore, StorageError};
use crate::plan::Plan;
use crate::schedule::Schedule;

/// What a configuration file changes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ConfigurationWrite {
    /// New names of reflectors.
    pub renamed: Vec<(EndpointId, PeerText)>,
    /// The schedules.
    pub schedules: FileChanges<ScheduleWrite>,
    /// The plan.
    pub plan: PlanWrite,
}

/// What a configuration file changes of one kind of object.
#[derive(Clone, Debug, PartialEq)]
pub struct FileChanges<W> {
    /// New and changed objects.
    pub written: Vec<W>,
    /// Objects that are in the file as they are stored. They count as made by the file.
    pub unchanged: Vec<Uuid>,
    /// Objects that are removed.
    pub removed: Vec<Uuid>,
}

impl<W> Default for FileChanges<W> {
    fn default() -> Self {
        Self { written: Vec::new(), unchanged: Vec::new(), removed: Vec::new() }
    }
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
    /// Makes all of these changes, or none. `appliance` is the Endpoint ID of this device.
    pub async fn write_configuration(
        &self,
        appliance: &str,
        write: &ConfigurationWrite,
        now: Timestamp,
    ) -> Result<(), StorageError> {
        let fault = || self.fault("saving the configuration");
        let definition = |schedule: &ScheduleWrite| serde_json::to_string(&schedule.schedule);
        let definitions = write.schedules.written.iter().map(definition).collect::<Result<Vec<_>, _>>();
        let definitions = definitions.map_err(|source| StorageError::Document { source })?;
        let plan = match &write.plan {
            PlanWrite::Set(plan) => serde_json::to_string(plan).map_err(|source| StorageError::Document { source })?,
            PlanWrite::Keep | PlanWrite::Mark | PlanWrite::Remove => String::new(),
        };
        let mut work = self.pool.begin().await.map_err(fault())?;
        self.write_names(&mut work, &write.renamed).await?;
        write_schedules(&mut work, appliance, &write.schedules, definitions, now).await.map_err(fault())?;
        write_plan(&mut work, appliance, &write.plan, plan, now).await.map_err(fault())?;
        work.commit().await.map_err(fault())
    }

    async fn write_names(
        &self,
        work: &mut StoreChange,
        renamed: &[(EndpointId, PeerText)],
    ) -> Result<(), StorageError> {
        let fault = || self.fault("saving the configuration");
        // Two reflectors may exchange their names, which are unique: an Endpoint ID is the name of no other one.
        for (id, _) in renamed {
            in_change!(&mut *work, |db| sqlx::query("UPDATE reflectors SET name = $1 WHERE endpoint_id = $1")
                .bind(id.to_string())
                .execute(db)
                .await
                .map(rows))
            .map_err(fault())?;
        }
        for (id, name) in renamed {
            let renamed =
                in_change!(&mut *work, |db| sqlx::query("UPDATE reflectors SET name = $2 WHERE endpoint_id = $1")
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
        Ok(())
    }
}

async fn write_schedules(
    work: &mut StoreChange,
    appliance: &str,
    changes: &FileChanges<ScheduleWrite>,
    definitions: Vec<String>,
    now: Timestamp,
) -> Result<(), sqlx::Error> {
    let statements = [
        ("DELETE FROM schedules WHERE id = $1", &changes.removed),
        ("UPDATE schedules SET from_file = TRUE WHERE id = $1 AND NOT from_file", &changes.unchanged),
    ];
    for (statement, ids) in statements {
        for id in ids {
            in_change!(&mut *work, |db| sqlx::query(statement).bind(id.to_string()).execute(db).await.map(rows))?;
        }
    }
    for (ScheduleWrite { replaces, schedule, enabled, is_replanned }, definition) in
        changes.written.iter().zip(definitions)
    {
        let id = replaces.unwrap_or_else(Uuid::now_v7);
        in_change!(&mut *work, |db| sqlx::query(
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
        .bind(now.as_microsecond())
        .bind(is_replanned)
        .execute(db)
        .await
        .map(rows))?;
    }
    Ok(())
}

async fn write_plan(
    work: &mut StoreChange,
    appliance: &str,
    plan: &PlanWrite,
    definition: String,
    now: Timestamp,
) -> Result<(), sqlx::Error> {
    let result = match plan {
        PlanWrite::Keep => return Ok(()),
        PlanWrite::Set(_) => in_change!(work, |db| sqlx::query(SET_PLAN)
            .bind(appliance)
            .bind(definition)
            .bind(true)
            .bind(now.as_microsecond())
            .execute(db)
            .await
            .map(rows)),
        PlanWrite::Mark => {
            in_change!(work, |db| sqlx::query("UPDATE plan SET from_file = TRUE WHERE NOT from_file")
                .execute(db)
                .await
                .map(rows))
        }
        PlanWrite::Remove => in_change!(work, |db| sqlx::query("DELETE FROM plan").execute(db).await.map(rows)),
    };
    result.map(drop)
}
