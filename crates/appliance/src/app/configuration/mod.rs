//! The configuration that a file can describe: the names of the paired reflectors, the schedules, the monitors and the plan,
//! each in a file of its own. The shell that reads the clock for its changes.

#![expect(clippy::disallowed_methods, reason = "the shell that reads the clock for the changes")]

mod compare;
mod monitors;
mod plan;
mod reflectors;
mod schedules;
#[cfg(test)]
mod tests;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use compare::{ChangeAction, ConfigurationChange, ValueChange};
pub use monitors::ConfiguredMonitor;
pub use reflectors::ReflectorName;
pub use schedules::ConfiguredSchedule;

use super::Appliance;
use crate::error::ApplianceError;
use crate::plan::Plan;
use crate::store::ConfigurationWrite;
use reflectors::ReflectorRenames;

/// What a configuration file describes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DeviceConfiguration {
    /// The names of paired reflectors. Others keep theirs.
    #[serde(default)]
    pub reflectors: Vec<ReflectorName>,
    /// The schedules.
    #[serde(default)]
    pub schedules: Vec<ConfiguredSchedule>,
    /// The monitors.
    #[serde(default)]
    pub monitors: Vec<ConfiguredMonitor>,
    /// The plan.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<Plan>,
}

impl Appliance {
    /// The configuration as it is stored.
    pub async fn configuration(&self) -> Result<DeviceConfiguration, ApplianceError> {
        let store = self.reading_store().await?;
        let reflectors = store.reflectors().await?;
        let monitors = monitors::with_names(store.monitors().await?, &reflectors, &reflectors);
        Ok(DeviceConfiguration {
            reflectors: reflectors.iter().map(ReflectorName::from).collect(),
            schedules: store.schedules().await?.into_iter().map(ConfiguredSchedule::from).collect(),
            monitors: monitors.into_iter().map(ConfiguredMonitor::from).collect(),
            plan: store.plan().await?.map(|stored| stored.plan),
        })
    }

    /// Makes the store as the configuration says, or with `is_rehearsal` changes nothing. Returns the differences. An
    /// object that is not in the configuration is removed only if an earlier one made it.
    pub async fn apply_configuration(
        &self,
        wanted: DeviceConfiguration,
        is_rehearsal: bool,
    ) -> Result<Vec<ConfigurationChange>, ApplianceError> {
        let now = Timestamp::now();
        let store = self.store().await?;
        let before = store.reflectors().await?;
        let mut reflectors = before.clone();
        let ReflectorRenames { renamed, mut changes } = reflectors::rename(&mut reflectors, &wanted.reflectors)?;
        let stored = store.schedules().await?;
        let (schedules, of_schedules) =
            schedules::compare_schedules(self, &stored, wanted.schedules, &reflectors, now).await?;
        changes.extend(of_schedules);
        let stored = monitors::with_names(store.monitors().await?, &before, &reflectors);
        let (monitors, of_monitors) = monitors::compare_monitors(&stored, wanted.monitors, &reflectors)?;
        changes.extend(of_monitors);
        let (plan, of_plan) = plan::compare_plan(store.plan().await?, wanted.plan)?;
        changes.extend(of_plan);
        if !is_rehearsal {
            let own = self.endpoint_id()?.to_string();
            let write = ConfigurationWrite { renamed, schedules, monitors, plan };
            store.write_configuration(&own, &write, now).await?;
        }
        Ok(changes)
    }
}
