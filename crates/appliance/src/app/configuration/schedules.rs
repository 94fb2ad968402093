//! Compares the schedules of a configuration with the stored schedules.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::compare::{Compared, ConfigurationChange, ObjectComparison, StoredObject, differences, in_configuration};
use crate::app::Appliance;
use crate::app::schedules::check_target;
use crate::error::ApplianceError;
use crate::schedule::Schedule;
use crate::store::{FileChanges, Reflector, ScheduleWrite, StorageError, StoredSchedule};

/// A schedule of a configuration, and whether it runs. The `expected_bytes` of the schedule is ignored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ConfiguredSchedule {
    /// Whether the schedule runs.
    pub enabled: bool,
    /// The definition of the schedule.
    #[serde(flatten)]
    pub schedule: Schedule,
}

impl From<StoredSchedule> for ConfiguredSchedule {
    fn from(stored: StoredSchedule) -> Self {
        Self { enabled: stored.enabled, schedule: stored.schedule }
    }
}

impl StoredObject for StoredSchedule {
    const KIND: &'static str = "schedule";

    fn id(&self) -> Uuid {
        self.id
    }

    fn name(&self) -> &str {
        &self.schedule.name
    }

    fn is_from_file(&self) -> bool {
        self.from_file
    }
}

/// Compares the schedules of a configuration with the stored schedules. Returns the changes to store, and the
/// differences to show to the user. `reflectors` must already have their new names.
pub(super) async fn compare_schedules(
    device: &Appliance,
    stored: &[StoredSchedule],
    wanted: Vec<ConfiguredSchedule>,
    reflectors: &[Reflector],
    now: Timestamp,
) -> Result<(FileChanges<ScheduleWrite>, Vec<ConfigurationChange>), ApplianceError> {
    let mut comparison = ObjectComparison::new(stored);
    let mut written = Vec::new();
    for mut wanted in wanted {
        let name = wanted.schedule.name.clone();
        let refused = |error: ApplianceError| in_configuration(StoredSchedule::KIND, &name, error);
        if !comparison.is_new_name(&name) {
            return Err(refused(StorageError::ScheduleExists { name: name.clone() }.into()));
        }
        let known = comparison.find(&name);
        check(device, &wanted.schedule, reflectors, now).await.map_err(refused)?;
        let same_test = known.filter(|known| known.schedule.request == wanted.schedule.request);
        wanted.schedule.expected_bytes = match same_test {
            Some(known) => known.schedule.expected_bytes,
            None => device.estimate(&wanted.schedule.request).await?.bytes,
        };
        let Some(known) = known else {
            comparison.added(&name);
            let ConfiguredSchedule { enabled, schedule } = wanted;
            written.push(ScheduleWrite { replaces: None, schedule, enabled, is_replanned: true });
            continue;
        };
        let mut before = ConfiguredSchedule::from(known.clone());
        before.schedule.expected_bytes = wanted.schedule.expected_bytes;
        if comparison.is_changed(known, differences(&before, &wanted)) {
            let ConfiguredSchedule { enabled, schedule } = wanted;
            let is_replanned = known.schedule.when != schedule.when
                || known.schedule.zone != schedule.zone
                || known.enabled != enabled;
            written.push(ScheduleWrite { replaces: Some(known.id), schedule, enabled, is_replanned });
        }
    }
    let Compared { changes, unchanged, removed } = comparison.end();
    Ok((FileChanges { written, unchanged, removed }, changes))
}

/// Checks that this appliance can accept a schedule.
async fn check(
    device: &Appliance,
    schedule: &Schedule,
    reflectors: &[Reflector],
    now: Timestamp,
) -> Result<(), ApplianceError> {
    schedule.check(now)?;
    device.check_request(&schedule.request).await?;
    check_target(&schedule.request, reflectors)
}
