//! The configuration of this appliance that a file can describe: the names of the paired reflectors, the schedules, the
//! monitors, the plan, the channels and the rules. Each kind of object has a module. Reads the clock to date changes.

#![expect(clippy::disallowed_methods, reason = "the shell that reads the clock for the changes")]

mod channels;
mod compare;
mod monitors;
mod plan;
mod reflectors;
mod rules;
mod schedules;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use channels::ConfiguredChannel;
pub use compare::{ChangeAction, ConfigurationChange, ValueChange};
pub use monitors::ConfiguredMonitor;
pub use reflectors::ReflectorName;
pub use rules::ConfiguredRule;
pub use schedules::ConfiguredSchedule;

use super::Appliance;
use super::alerts::MOST_OPEN;
use crate::error::ApplianceError;
use crate::plan::Plan;
use crate::store::{ChannelWrite, ConfigurationWrite, FileChanges};
use channels::KnownChannel;
use reflectors::ReflectorRenames;
use rules::RuleChanges;

/// The part of the appliance's state that a configuration file describes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DeviceConfiguration {
    /// The names of paired reflectors. A paired reflector that is not in the list keeps its name.
    #[serde(default)]
    pub reflectors: Vec<ReflectorName>,
    /// The schedules of tests.
    #[serde(default)]
    pub schedules: Vec<ConfiguredSchedule>,
    /// The monitors, which probe their targets at intervals.
    #[serde(default)]
    pub monitors: Vec<ConfiguredMonitor>,
    /// The plan, with the rates that the contract promises; absent if none is set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<Plan>,
    /// The channels to which messages about alerts are sent.
    #[serde(default)]
    pub channels: Vec<ConfiguredChannel>,
    /// The rules by which alerts open and close.
    #[serde(default)]
    pub rules: Vec<ConfiguredRule>,
}

/// How a configuration is applied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ApplyMode {
    /// Whether to find the differences without changing anything.
    pub is_rehearsal: bool,
    /// Whether channels that run a program on this host may be added, changed and removed.
    pub may_change_commands: bool,
}

impl Appliance {
    /// The stored configuration of this appliance, without secrets.
    pub async fn configuration(&self) -> Result<DeviceConfiguration, ApplianceError> {
        let store = self.reading_store().await?;
        let reflectors = store.reflectors().await?;
        let monitors = monitors::with_names(store.monitors().await?, &reflectors, &reflectors);
        Ok(DeviceConfiguration {
            reflectors: reflectors.iter().map(ReflectorName::from).collect(),
            schedules: store.schedules().await?.into_iter().map(ConfiguredSchedule::from).collect(),
            monitors: monitors.into_iter().map(ConfiguredMonitor::from).collect(),
            plan: store.plan().await?.map(|stored| stored.plan),
            channels: store.channels().await?.into_iter().map(ConfiguredChannel::from).collect(),
            rules: store.rules().await?.into_iter().map(ConfiguredRule::from).collect(),
        })
    }

    /// Changes the store to match the configuration `wanted`, except in a rehearsal. Returns the differences. An object
    /// that is not in `wanted` is removed only if an earlier configuration made it.
    pub async fn apply_configuration(
        &self,
        wanted: DeviceConfiguration,
        ApplyMode { is_rehearsal, may_change_commands }: ApplyMode,
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
        let known = store.channels_with_secrets().await?.into_iter();
        let known = known.map(|(stored, secrets)| KnownChannel { stored, secrets }).collect::<Vec<_>>();
        let sealer = self.command_sealer()?;
        let (channels, of_channels) =
            channels::compare_channels(&known, wanted.channels, may_change_commands, &sealer)?;
        changes.extend(of_channels);
        let names = names_after(&known, &channels);
        let open = store.alerts(true, None, MOST_OPEN).await?;
        let (RuleChanges { rules, closings }, of_rules) =
            rules::compare_rules(&store.rules().await?, wanted.rules, &names, &open, now)?;
        changes.extend(of_rules);
        if !is_rehearsal {
            let own = self.endpoint_id()?.to_string();
            let write = ConfigurationWrite { renamed, schedules, monitors, plan, channels, rules, closings };
            store.write_configuration(&own, &write, now).await?;
            store.give_up_without_channel(now).await?;
        }
        Ok(changes)
    }
}

/// The names of all channels after a change, in lower case.
fn names_after(known: &[KnownChannel], changes: &FileChanges<ChannelWrite>) -> BTreeSet<String> {
    let kept = known.iter().filter(|known| !changes.removed.contains(&known.stored.id));
    let kept = kept.map(|known| &known.stored.channel.name);
    let written = changes.written.iter().map(|write| &write.channel.name);
    kept.chain(written).map(|name| name.to_lowercase()).collect()
}
