//! The configuration that a file can describe: the names of the paired reflectors, the schedules and the plan. The shell
//! that reads the clock for its changes.

#![expect(clippy::disallowed_methods, reason = "the shell that reads the clock for the changes")]

use std::collections::BTreeSet;

use jiff::Timestamp;
use paramedic_link::{EndpointId, PeerText};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Appliance;
use crate::error::ApplianceError;
use crate::plan::Plan;
use crate::schedule::Schedule;
use crate::store::{ConfigurationWrite, PlanWrite, Reflector, ScheduleWrite, StorageError, StoredPlan, StoredSchedule};

/// What a configuration file describes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DeviceConfiguration {
    /// The names of paired reflectors. Others keep theirs.
    #[serde(default)]
    pub reflectors: Vec<ReflectorName>,
    /// The schedules.
    #[serde(default)]
    pub schedules: Vec<ConfiguredSchedule>,
    /// The plan.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<Plan>,
}

/// The name of a paired reflector.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ReflectorName {
    /// The reflector.
    pub endpoint_id: EndpointId,
    /// Its name.
    pub name: PeerText,
}

/// A schedule, and whether it runs. Its expected data is ignored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ConfiguredSchedule {
    /// Whether it runs.
    pub enabled: bool,
    /// The schedule.
    #[serde(flatten)]
    pub schedule: Schedule,
}

/// A difference between a configuration and the store.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ConfigurationChange {
    /// `reflector`, `schedule` or `plan`.
    pub object: String,
    /// Its name; of a renamed reflector the one before.
    pub name: String,
    /// What is done.
    pub action: ChangeAction,
    /// The values that change.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub values: Vec<ValueChange>,
}

/// What is done with an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ChangeAction {
    /// It is new.
    Added,
    /// It has other values.
    Changed,
    /// An earlier file made it, and this one does not have it.
    Removed,
}

/// A value that changes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ValueChange {
    /// The value, as a path of names.
    pub value: String,
    /// The stored one; absent if there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Value>,
    /// The new one; absent if there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<Value>,
}

impl ChangeAction {
    /// The word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Added => "added",
            Self::Changed => "changed",
            Self::Removed => "removed",
        }
    }
}

impl Appliance {
    /// The configuration as it is stored.
    pub async fn configuration(&self) -> Result<DeviceConfiguration, ApplianceError> {
        let store = self.reading_store().await?;
        let name = |reflector: Reflector| ReflectorName { endpoint_id: reflector.endpoint_id, name: reflector.name };
        let schedule =
            |stored: StoredSchedule| ConfiguredSchedule { enabled: stored.enabled, schedule: stored.schedule };
        Ok(DeviceConfiguration {
            reflectors: store.reflectors().await?.into_iter().map(name).collect(),
            schedules: store.schedules().await?.into_iter().map(schedule).collect(),
            plan: store.plan().await?.map(|stored| stored.plan),
        })
    }

    /// Makes the store as the configuration says, or with `is_rehearsal` changes nothing. Returns the differences. A
    /// schedule that is not in the configuration is removed only if an earlier one made it.
    pub async fn apply_configuration(
        &self,
        wanted: DeviceConfiguration,
        is_rehearsal: bool,
    ) -> Result<Vec<ConfigurationChange>, ApplianceError> {
        let now = Timestamp::now();
        let store = self.store().await?;
        let mut reflectors = store.reflectors().await?;
        let stored = store.schedules().await?;
        let from_file = store.schedules_from_file().await?;
        let mut write = ConfigurationWrite::default();
        let mut changes = rename(&mut reflectors, &wanted.reflectors, &mut write)?;
        let mut names = BTreeSet::new();
        for ConfiguredSchedule { enabled, mut schedule } in wanted.schedules {
            let name = schedule.name.clone();
            let refused = |error: ApplianceError| in_configuration("schedule", &name, error);
            if !names.insert(name.to_lowercase()) {
                return Err(refused(StorageError::ScheduleExists { name: name.clone() }.into()));
            }
            schedule.check(now).map_err(ApplianceError::from).map_err(refused)?;
            let refused = |error: ApplianceError| in_configuration("schedule", &name, error);
            self.check_request(&schedule.request).await.map_err(refused)?;
            let refused = |error: ApplianceError| in_configuration("schedule", &name, error);
            super::schedules::check_target(&schedule.request, &reflectors).map_err(refused)?;
            let known = stored.iter().find(|known| known.schedule.name.to_lowercase() == name.to_lowercase());
            let same_test = known.filter(|known| known.schedule.request == schedule.request);
            schedule.expected_bytes = match same_test {
                Some(known) => known.schedule.expected_bytes,
                None => self.estimate(&schedule.request).await?.bytes,
            };
            let Some(known) = known else {
                changes.push(change("schedule", &name, ChangeAction::Added, Vec::new()));
                write.schedules.push(ScheduleWrite { replaces: None, schedule, enabled, is_replanned: true });
                continue;
            };
            let values = differences(known, &schedule, enabled);
            if values.is_empty() {
                write.unchanged.push(known.id);
                continue;
            }
            changes.push(change("schedule", &known.schedule.name, ChangeAction::Changed, values));
            let is_replanned = known.schedule.when != schedule.when
                || known.schedule.zone != schedule.zone
                || known.enabled != enabled;
            write.schedules.push(ScheduleWrite { replaces: Some(known.id), schedule, enabled, is_replanned });
        }
        for gone in stored.iter().filter(|stored| from_file.contains(&stored.id)) {
            if !names.contains(&gone.schedule.name.to_lowercase()) {
                changes.push(change("schedule", &gone.schedule.name, ChangeAction::Removed, Vec::new()));
                write.removed.push(gone.id);
            }
        }
        write.plan = planned(store.plan().await?, wanted.plan, &mut changes)?;
        if !is_rehearsal {
            let own = self.endpoint_id()?.to_string();
            store.write_configuration(&own, &write, now).await?;
        }
        Ok(changes)
    }
}

/// Gives the reflectors the wanted names.
fn rename(
    reflectors: &mut [Reflector],
    wanted: &[ReflectorName],
    write: &mut ConfigurationWrite,
) -> Result<Vec<ConfigurationChange>, ApplianceError> {
    let mut changes = Vec::new();
    for ReflectorName { endpoint_id, name } in wanted {
        let refused = |error: StorageError| in_configuration("reflector", name.as_str(), error.into());
        if name.is_empty() {
            return Err(refused(StorageError::NoName));
        }
        let known = reflectors.iter_mut().find(|known| known.endpoint_id == *endpoint_id);
        let known = known.ok_or_else(|| {
            let wanted = endpoint_id.to_string();
            in_configuration("reflector", name.as_str(), StorageError::NoSuchReflector { wanted }.into())
        })?;
        if known.name == *name {
            continue;
        }
        let value = ValueChange {
            value: "name".to_owned(),
            from: Some(known.name.as_str().into()),
            to: Some(name.as_str().into()),
        };
        changes.push(change("reflector", known.name.as_str(), ChangeAction::Changed, vec![value]));
        write.renamed.push((*endpoint_id, name.clone()));
        known.name = name.clone();
    }
    let mut names = BTreeSet::new();
    for known in reflectors.iter() {
        if !names.insert(known.name.as_str().to_lowercase()) {
            let taken = StorageError::NameTaken { name: known.name.to_string() };
            return Err(in_configuration("reflector", known.name.as_str(), taken.into()));
        }
    }
    Ok(changes)
}

/// What becomes of the plan. One that no file made stays if the file has none.
fn planned(
    stored: Option<StoredPlan>,
    wanted: Option<Plan>,
    changes: &mut Vec<ConfigurationChange>,
) -> Result<PlanWrite, ApplianceError> {
    let name = |plan: &Plan| plan.name.clone().unwrap_or_default();
    if let Some(wanted) = &wanted {
        wanted.check().map_err(|error| in_configuration("plan", &name(wanted), error.into()))?;
    }
    let of = |plan: &Plan| serde_json::to_value(plan).unwrap_or_default();
    Ok(match (stored, wanted) {
        (None, None) => PlanWrite::Keep,
        (Some(stored), None) if !stored.from_file => PlanWrite::Keep,
        (Some(stored), None) => {
            changes.push(change("plan", &name(&stored.plan), ChangeAction::Removed, Vec::new()));
            PlanWrite::Remove
        }
        (None, Some(wanted)) => {
            changes.push(change("plan", &name(&wanted), ChangeAction::Added, Vec::new()));
            PlanWrite::Set(wanted)
        }
        (Some(stored), Some(wanted)) if stored.plan == wanted => PlanWrite::Mark,
        (Some(stored), Some(wanted)) => {
            let mut values = Vec::new();
            compare("", Some(&of(&stored.plan)), Some(&of(&wanted)), &mut values);
            changes.push(change("plan", &name(&stored.plan), ChangeAction::Changed, values));
            PlanWrite::Set(wanted)
        }
    })
}

fn change(object: &str, name: &str, action: ChangeAction, values: Vec<ValueChange>) -> ConfigurationChange {
    ConfigurationChange { object: object.to_owned(), name: name.to_owned(), action, values }
}

fn in_configuration(object: &str, name: &str, source: ApplianceError) -> ApplianceError {
    let object = format!("{object} {name}").trim_end().to_owned();
    ApplianceError::InConfiguration { object, source: Box::new(source) }
}

/// The values of a schedule that change, apart from its expected data.
fn differences(known: &StoredSchedule, wanted: &Schedule, enabled: bool) -> Vec<ValueChange> {
    let same_data = Schedule { expected_bytes: wanted.expected_bytes, ..known.schedule.clone() };
    let of = |schedule: &Schedule| serde_json::to_value(schedule).unwrap_or_default();
    let mut changes = Vec::new();
    if known.enabled != enabled {
        let (from, to) = (Some(known.enabled.into()), Some(enabled.into()));
        changes.push(ValueChange { value: "enabled".to_owned(), from, to });
    }
    compare("", Some(&of(&same_data)), Some(&of(wanted)), &mut changes);
    changes
}

/// Collects the values that differ, by their paths.
fn compare(path: &str, from: Option<&Value>, to: Option<&Value>, changes: &mut Vec<ValueChange>) {
    if from == to {
        return;
    }
    if let (Some(Value::Object(from)), Some(Value::Object(to))) = (from, to) {
        for name in from.keys().chain(to.keys()).collect::<BTreeSet<_>>() {
            let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
            compare(&path, from.get(name), to.get(name), changes);
        }
        return;
    }
    changes.push(ValueChange { value: path.to_owned(), from: from.cloned(), to: to.cloned() });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::each_engine::devices;
    use crate::plan::PromisedRate;
    use crate::schedule::example_schedule;

    fn reflector(key: u8, name: &str) -> Reflector {
        Reflector {
            endpoint_id: EndpointId::from_bytes([key; 32]),
            name: name.into(),
            address: format!("203.0.113.{key}").parse().unwrap(),
            paired_at: "2026-01-31T12:00:00Z".parse().unwrap(),
        }
    }

    fn named(key: u8, name: &str) -> ReflectorName {
        ReflectorName { endpoint_id: EndpointId::from_bytes([key; 32]), name: name.into() }
    }

    fn scheduled(name: &str, peer: &str) -> ConfiguredSchedule {
        let mut schedule = example_schedule(name);
        schedule.request.peer = Some(peer.to_owned());
        ConfiguredSchedule { enabled: true, schedule }
    }

    /// A device with two reflectors for each engine.
    async fn paired_devices() -> Vec<(tempfile::TempDir, Appliance)> {
        let devices = devices();
        for (_, device) in &devices {
            let store = device.store().await.unwrap();
            for reflector in [reflector(1, "attic"), reflector(2, "cellar")] {
                store.add_reflector(&reflector).await.unwrap();
            }
        }
        devices
    }

    #[tokio::test]
    async fn the_store_becomes_as_the_file_says_and_only_its_own_rows_are_removed() {
        for (_folder, device) in paired_devices().await {
            let by_hand = scheduled("by_hand", "attic");
            device.add_schedule(by_hand.schedule.clone()).await.unwrap();
            let file = DeviceConfiguration {
                // The two exchange their names.
                reflectors: vec![named(1, "cellar"), named(2, "attic")],
                schedules: vec![scheduled("nightly", "cellar"), scheduled("Weekly", "attic")],
                plan: None,
            };
            let rehearsed = device.apply_configuration(file.clone(), true).await.unwrap();
            let seen =
                rehearsed.iter().map(|change| (&*change.object, &*change.name, change.action)).collect::<Vec<_>>();
            let expected = [
                ("reflector", "attic", ChangeAction::Changed),
                ("reflector", "cellar", ChangeAction::Changed),
                ("schedule", "nightly", ChangeAction::Added),
                ("schedule", "Weekly", ChangeAction::Added),
            ];
            assert_eq!(seen, expected);
            assert_eq!(device.schedules().await.unwrap().len(), 1, "nothing has changed");
            assert_eq!(device.apply_configuration(file.clone(), false).await.unwrap(), rehearsed);
            assert_eq!(device.apply_configuration(file.clone(), false).await.unwrap(), []);
            let exported = device.configuration().await.unwrap();
            assert_eq!(device.apply_configuration(exported, true).await.unwrap(), []);

            let added = device.schedule("nightly").await.unwrap().stored;
            let mut later = DeviceConfiguration { reflectors: Vec::new(), ..file };
            later.schedules.truncate(1);
            later.schedules[0].schedule.when = crate::schedule::Recurrence::parse("0 5 * * *").unwrap();
            let changes = device.apply_configuration(later.clone(), false).await.unwrap();
            let [changed, removed] = &changes[..] else { panic!("{changes:?}") };
            let value =
                ValueChange { value: "when".to_owned(), from: Some("30 3 * * *".into()), to: Some("0 5 * * *".into()) };
            assert_eq!((&*changed.name, &changed.values), ("nightly", &vec![value]));
            assert_eq!((&*removed.name, removed.action), ("Weekly", ChangeAction::Removed));
            let changed = device.schedule("nightly").await.unwrap().stored;
            assert_eq!((changed.id, changed.added_at), (added.id, added.added_at), "its runs are its own");
            assert!(changed.decided_until >= added.decided_until);
            // A schedule that a user added stays, until a file has it.
            let names = async || device.schedules().await.unwrap().into_iter().map(|all| all.stored.schedule.name);
            assert_eq!(names().await.collect::<Vec<_>>(), ["by_hand", "nightly"]);
            let all = device.configuration().await.unwrap();
            assert_eq!(device.apply_configuration(all, false).await.unwrap(), []);
            let changes = device.apply_configuration(DeviceConfiguration::default(), false).await.unwrap();
            assert_eq!(changes.len(), 2, "{changes:?}");
            assert_eq!(device.schedules().await.unwrap().len(), 0);
        }
    }

    #[tokio::test]
    async fn a_file_sets_its_plan_and_removes_no_other() {
        for (_folder, device) in paired_devices().await {
            let plan = |promised_bps| {
                let rate = PromisedRate { promised_bps, normal_bps: None, minimum_bps: None };
                Plan { name: Some("Fibre".to_owned()), download: rate, upload: rate }
            };
            let file = |plan| DeviceConfiguration { plan, ..DeviceConfiguration::default() };
            let apply = async |plan| device.apply_configuration(file(plan), false).await;
            let from_file = async || device.plan().await.unwrap().map(|stored| stored.from_file);
            device.set_plan(&plan(10)).await.unwrap();
            assert_eq!(apply(None).await.unwrap(), []);
            assert_eq!(from_file().await, Some(false));
            assert_eq!(apply(Some(plan(10))).await.unwrap(), []);
            assert_eq!(from_file().await, Some(true));
            let changed = apply(Some(plan(20))).await.unwrap();
            let values = changed[0].values.iter().map(|value| value.value.as_str()).collect::<Vec<_>>();
            assert_eq!(values, ["download.promised_bps", "upload.promised_bps"]);
            assert_eq!(device.configuration().await.unwrap().plan, Some(plan(20)));
            let refused = apply(Some(plan(0))).await.unwrap_err();
            assert!(refused.to_string().starts_with("plan Fibre: "), "{refused}");
            assert_eq!(apply(None).await.unwrap()[0].action, ChangeAction::Removed);
            assert_eq!(from_file().await, None);
        }
    }

    #[tokio::test]
    async fn a_configuration_that_is_not_possible_changes_nothing() {
        for (_folder, device) in paired_devices().await {
            let with = |reflectors: &[ReflectorName], schedules: &[ConfiguredSchedule]| DeviceConfiguration {
                reflectors: reflectors.to_vec(),
                schedules: schedules.to_vec(),
                plan: None,
            };
            let mut never = scheduled("never", "attic");
            never.schedule.when = crate::schedule::Recurrence::parse("0 0 30 2 *").unwrap();
            let good = scheduled("good", "attic");
            let alone = std::slice::from_ref(&good);
            for (wanted, said) in [
                (with(&[named(9, "garden")], alone), "reflector garden"),
                (with(&[named(1, "Cellar")], alone), "reflector"),
                (with(&[named(1, "garden")], alone), "schedule good"),
                (with(&[], &[good.clone(), never]), "schedule never"),
                (with(&[], &[good.clone(), scheduled("GOOD", "attic")]), "schedule GOOD"),
                (with(&[], &[good.clone(), scheduled("other", "nowhere")]), "schedule other"),
            ] {
                let refused = device.apply_configuration(wanted, false).await.unwrap_err();
                assert!(refused.to_string().starts_with(said), "{refused}");
                assert_eq!(device.schedules().await.unwrap().len(), 0);
                assert_eq!(device.reflectors().await.unwrap()[0].name.as_str(), "attic");
            }
        }
    }
}
