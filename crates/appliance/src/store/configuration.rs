//! Saves the changes that a configuration file makes in one transaction. Marks the objects that the file describes with
//! `from_file`.

use jiff::Timestamp;
use paramedic_link::{EndpointId, PeerText};
use uuid::Uuid;

use super::alerts::write_alerts;
use super::channels::hidden_column;
use super::monitors::{insert, new_monitor, next_number};
use super::plan::SET_PLAN;
use super::pool::{StoreChange, in_change, rows};
use super::reflector_names::{RenameFault, rename};
use super::{AlertWrite, ApplianceStore, StorageError, StoredMonitor, strange, unsigned};
use crate::alerts::AlertRule;
use crate::alerts::channel::{Channel, ChannelSecrets};
use crate::monitor::Monitor;
use crate::plan::Plan;
use crate::schedule::Schedule;

/// All changes that a configuration file makes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ConfigurationWrite {
    /// The new names of reflectors that the file renames.
    pub renamed: Vec<(EndpointId, PeerText)>,
    /// The changes of schedules.
    pub schedules: FileChanges<ScheduleWrite>,
    /// The changes of monitors.
    pub monitors: FileChanges<MonitorWrite>,
    /// The change of the plan.
    pub plan: PlanWrite,
    /// The changes of channels.
    pub channels: FileChanges<ChannelWrite>,
    /// The changes of rules.
    pub rules: FileChanges<RuleFileWrite>,
    /// The closings of open alerts whose rules the file removes, disables or replaces.
    pub closings: Vec<AlertWrite>,
}

/// The changes of a configuration file to one kind of object, such as the monitors.
#[derive(Clone, Debug, PartialEq)]
pub struct FileChanges<W> {
    /// The new and the changed objects.
    pub written: Vec<W>,
    /// The ids of the objects that are already stored as the file describes them. They only get the mark `from_file`.
    /// Objects that the caller may not change are left out.
    pub unchanged: Vec<Uuid>,
    /// The ids of the objects that are removed.
    pub removed: Vec<Uuid>,
}

impl<W> Default for FileChanges<W> {
    fn default() -> Self {
        Self { written: Vec::new(), unchanged: Vec::new(), removed: Vec::new() }
    }
}

/// What a configuration file does with the stored plan (the rates that the Internet provider promises).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum PlanWrite {
    /// The plan stays as it is.
    #[default]
    Keep,
    /// This plan replaces the stored one.
    Set(Plan),
    /// The stored plan equals the plan of the file: it stays, and is marked as made by a file (`from_file`).
    Mark,
    /// The plan is removed.
    Remove,
}

/// A schedule that a configuration file adds or changes.
#[derive(Clone, Debug, PartialEq)]
pub struct ScheduleWrite {
    /// The stored schedule that is changed; its runs are kept. `None` for a new schedule.
    pub replaces: Option<Uuid>,
    /// The new definition of the schedule.
    pub schedule: Schedule,
    /// Whether the schedule is enabled.
    pub enabled: bool,
    /// Whether the file changes the times at which runs are due. If so, no run that was due before now counts as
    /// missed.
    pub is_replanned: bool,
}

/// A monitor that a configuration file adds or changes.
#[derive(Clone, Debug, PartialEq)]
pub struct MonitorWrite {
    /// The stored monitor that is changed; its measurements are kept. `None` for a new monitor.
    pub replaces: Option<Uuid>,
    /// The new definition of the monitor.
    pub monitor: Monitor,
    /// Whether the monitor probes.
    pub enabled: bool,
    /// The Endpoint ID of the monitored reflector, if the service would add this new monitor for the reflector by
    /// itself. `None` for any other monitor.
    pub peer: Option<String>,
}

/// A channel that a configuration file adds or changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChannelWrite {
    /// The id of the stored channel that is changed, or a new id.
    pub id: Uuid,
    /// The new definition of the channel.
    pub channel: Channel,
    /// Whether the channel gets messages.
    pub enabled: bool,
    /// All secrets of the channel.
    pub secrets: ChannelSecrets,
    /// A tag that proves that this device stored the channel. Only for a channel that runs a command.
    pub seal: Option<String>,
}

/// A rule that a configuration file adds or changes.
#[derive(Clone, Debug, PartialEq)]
pub struct RuleFileWrite {
    /// The stored rule that is changed; its alerts are kept. `None` for a new rule.
    pub replaces: Option<Uuid>,
    /// The new definition of the rule.
    pub rule: AlertRule,
    /// Whether the rule judges measurements.
    pub enabled: bool,
    /// Whether the rule judges only what is measured from now on. If not, it continues after the last measurement that
    /// it judged.
    pub judges_anew: bool,
}

impl ApplianceStore {
    /// Makes all changes of a configuration file, or none. `appliance` is the Endpoint ID of this device.
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
        rename(&mut work, &write.renamed).await.map_err(|fault_of| match fault_of {
            RenameFault::Taken(name) => StorageError::NameTaken { name: name.to_string() },
            RenameFault::Database(error) => fault()(error),
        })?;
        write_schedules(&mut work, appliance, &write.schedules, definitions, now).await.map_err(fault())?;
        write_monitors(&mut work, appliance, &write.monitors, now).await.map_err(fault())?;
        write_plan(&mut work, appliance, &write.plan, plan, now).await.map_err(fault())?;
        write_channels(&mut work, appliance, &write.channels, now).await.map_err(fault())?;
        // The messages about closed alerts go to the channels as they are after the change.
        write_alerts(&mut work, appliance, &write.closings, now).await.map_err(fault())?;
        write_rules(&mut work, appliance, &write.rules, now).await.map_err(fault())?;
        work.commit().await.map_err(fault())
    }
}

async fn write_schedules(
    work: &mut StoreChange,
    appliance: &str,
    changes: &FileChanges<ScheduleWrite>,
    definitions: Vec<String>,
    now: Timestamp,
) -> Result<(), sqlx::Error> {
    on_each(work, "DELETE FROM schedules WHERE id = $1", &changes.removed).await?;
    let mark = "UPDATE schedules SET from_file = TRUE WHERE id = $1 AND NOT from_file";
    on_each(work, mark, &changes.unchanged).await?;
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

async fn write_monitors(
    work: &mut StoreChange,
    appliance: &str,
    changes: &FileChanges<MonitorWrite>,
    now: Timestamp,
) -> Result<(), sqlx::Error> {
    // A removed monitor keeps its row, so that the service does not add it again. Its name can be used at once.
    on_each(work, "UPDATE monitors SET removed = TRUE WHERE id = $1", &changes.removed).await?;
    on_each(work, "UPDATE monitors SET from_file = TRUE WHERE id = $1 AND NOT from_file", &changes.unchanged).await?;
    for MonitorWrite { replaces, monitor, enabled, peer } in &changes.written {
        let Some(id) = replaces else {
            let new = new_monitor(next_number(work).await?, monitor.clone(), peer.clone(), now);
            insert(work, appliance, &StoredMonitor { enabled: *enabled, from_file: true, ..new }).await?;
            continue;
        };
        in_change!(&mut *work, |db| sqlx::query(
            "UPDATE monitors SET name = $2, target = $3, interval_ms = $4, enabled = $5, from_file = TRUE \
             WHERE id = $1",
        )
        .bind(id.to_string())
        .bind(&monitor.name)
        .bind(monitor.target.to_string())
        .bind(unsigned(monitor.interval_ms))
        .bind(enabled)
        .execute(db)
        .await
        .map(rows))?;
    }
    Ok(())
}

async fn write_channels(
    work: &mut StoreChange,
    appliance: &str,
    changes: &FileChanges<ChannelWrite>,
    now: Timestamp,
) -> Result<(), sqlx::Error> {
    on_each(work, "DELETE FROM channels WHERE id = $1", &changes.removed).await?;
    on_each(work, "UPDATE channels SET from_file = TRUE WHERE id = $1 AND NOT from_file", &changes.unchanged).await?;
    for ChannelWrite { id, channel, enabled, secrets, seal } in &changes.written {
        let definition = serde_json::to_string(channel).map_err(strange)?;
        let secrets = hidden_column(secrets, seal.as_deref()).map_err(strange)?;
        in_change!(&mut *work, |db| sqlx::query(
            "INSERT INTO channels (id, appliance, name, definition, secrets, enabled, from_file, added_at_us) \
             VALUES ($1, $2, $3, $4, $5, $6, TRUE, $7) ON CONFLICT (id) DO UPDATE SET name = $3, definition = $4, \
             secrets = $5, enabled = $6, from_file = TRUE",
        )
        .bind(id.to_string())
        .bind(appliance)
        .bind(&channel.name)
        .bind(definition)
        .bind(secrets)
        .bind(enabled)
        .bind(now.as_microsecond())
        .execute(db)
        .await
        .map(rows))?;
    }
    Ok(())
}

async fn write_rules(
    work: &mut StoreChange,
    appliance: &str,
    changes: &FileChanges<RuleFileWrite>,
    now: Timestamp,
) -> Result<(), sqlx::Error> {
    on_each(work, "DELETE FROM rules WHERE id = $1", &changes.removed).await?;
    on_each(work, "UPDATE rules SET from_file = TRUE WHERE id = $1 AND NOT from_file", &changes.unchanged).await?;
    for RuleFileWrite { replaces, rule, enabled, judges_anew } in &changes.written {
        let definition = serde_json::to_string(rule).map_err(strange)?;
        in_change!(&mut *work, |db| sqlx::query(
            "INSERT INTO rules (id, appliance, name, definition, enabled, added_at_us, judged_until_us, from_file) \
             VALUES ($1, $2, $3, $4, $5, $6, $6, TRUE) ON CONFLICT (id) DO UPDATE SET name = $3, definition = $4, \
             enabled = $5, from_file = TRUE, \
             judged_until_us = CASE WHEN $7 THEN $6 ELSE rules.judged_until_us END",
        )
        .bind(replaces.unwrap_or_else(Uuid::now_v7).to_string())
        .bind(appliance)
        .bind(&rule.name)
        .bind(definition)
        .bind(enabled)
        .bind(now.as_microsecond())
        .bind(judges_anew)
        .execute(db)
        .await
        .map(rows))?;
    }
    Ok(())
}

/// Runs a statement once for each of these ids, with the id as its only parameter.
async fn on_each(work: &mut StoreChange, statement: &'static str, ids: &[Uuid]) -> Result<(), sqlx::Error> {
    for id in ids {
        in_change!(&mut *work, |db| sqlx::query(statement).bind(id.to_string()).execute(db).await.map(rows))?;
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
