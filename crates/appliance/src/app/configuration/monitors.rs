//! Compares the monitors of a configuration with the stored monitors.

use std::collections::BTreeSet;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::compare::{Compared, ConfigurationChange, ObjectComparison, StoredObject, differences, in_configuration};
use crate::error::ApplianceError;
use crate::monitor::{Monitor, MonitorTarget};
use crate::store::{FileChanges, MonitorWrite, Reflector, StorageError, StoredMonitor, find_reflector, target_after};

/// A monitor of a configuration, and whether it probes its target.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ConfiguredMonitor {
    /// Whether the monitor probes its target.
    pub enabled: bool,
    /// The definition of the monitor.
    #[serde(flatten)]
    pub monitor: Monitor,
}

impl From<StoredMonitor> for ConfiguredMonitor {
    fn from(stored: StoredMonitor) -> Self {
        Self { enabled: stored.enabled, monitor: stored.monitor }
    }
}

impl StoredObject for StoredMonitor {
    const KIND: &'static str = "monitor";

    fn id(&self) -> Uuid {
        self.id
    }

    fn name(&self) -> &str {
        &self.monitor.name
    }

    fn is_from_file(&self) -> bool {
        self.from_file
    }
}

/// The stored monitors. A target that names a reflector by its name in `before` gets the name that the reflector has in
/// `after`.
pub(super) fn with_names(stored: Vec<StoredMonitor>, before: &[Reflector], after: &[Reflector]) -> Vec<StoredMonitor> {
    let named = |mut stored: StoredMonitor| {
        stored.monitor.target = target_after(&stored, before, after);
        stored
    };
    stored.into_iter().map(named).collect()
}

/// Compares the monitors of a configuration with the stored monitors. Returns the changes to store, and the differences
/// to show to the user. `reflectors` and the targets of `stored` must already have the new names of the reflectors.
pub(super) fn compare_monitors(
    stored: &[StoredMonitor],
    wanted: Vec<ConfiguredMonitor>,
    reflectors: &[Reflector],
) -> Result<(FileChanges<MonitorWrite>, Vec<ConfigurationChange>), ApplianceError> {
    let mut comparison = ObjectComparison::new(stored);
    let names = wanted.iter().map(|wanted| wanted.monitor.name.to_lowercase()).collect::<BTreeSet<_>>();
    // The stored monitors that an earlier file made and whose name this file does not contain. Each was either renamed
    // or removed.
    let is_unnamed = |stored: &&StoredMonitor| stored.from_file && !names.contains(&stored.monitor.name.to_lowercase());
    let mut unnamed = stored.iter().filter(is_unnamed).collect::<Vec<_>>();
    let (mut written, mut replaced) = (Vec::new(), Vec::new());
    for wanted in wanted {
        let name = wanted.monitor.name.clone();
        let refused = |error: ApplianceError| in_configuration(StoredMonitor::KIND, &name, error);
        if !comparison.is_new_name(&name) {
            return Err(refused(StorageError::MonitorExists { name: name.clone() }.into()));
        }
        wanted.monitor.check().map_err(ApplianceError::from).map_err(refused)?;
        let target = &wanted.monitor.target;
        let known = comparison.find(&name).or_else(|| take_renamed(&mut unnamed, &wanted.monitor, reflectors));
        let has_target = known.is_some_and(|known| is_same_target(&known.monitor.target, target, reflectors));
        if !has_target {
            // A monitor of a reflector that is not paired could never probe it.
            check_target(target, reflectors).map_err(refused)?;
        }
        let ConfiguredMonitor { enabled, monitor } = wanted.clone();
        let Some(known) = known else {
            comparison.added(&name);
            let peer = place_of_default(&monitor, reflectors);
            written.push(MonitorWrite { replaces: None, monitor, enabled, peer });
            continue;
        };
        if !comparison.is_changed(known, differences(&ConfiguredMonitor::from(known.clone()), &wanted)) {
            continue;
        }
        if has_target {
            written.push(MonitorWrite { replaces: Some(known.id), monitor, enabled, peer: None });
        } else {
            // The stored measurements belong to another target, so a new monitor replaces the stored one.
            replaced.push(known.id);
            let peer = place_of_default(&monitor, reflectors);
            written.push(MonitorWrite { replaces: None, monitor, enabled, peer });
        }
    }
    let Compared { changes, unchanged, mut removed } = comparison.end();
    removed.extend(replaced);
    Ok((FileChanges { written, unchanged, removed }, changes))
}

/// Finds the stored monitor that was renamed to `monitor`, and removes it from `unnamed`. It is the monitor with the
/// same target and interval, or else the only monitor with the same target.
fn take_renamed<'a>(
    unnamed: &mut Vec<&'a StoredMonitor>,
    monitor: &Monitor,
    reflectors: &[Reflector],
) -> Option<&'a StoredMonitor> {
    let has_target = |stored: &StoredMonitor| is_same_target(&stored.monitor.target, &monitor.target, reflectors);
    let is_same = |stored: &&StoredMonitor| has_target(stored) && stored.monitor.interval_ms == monitor.interval_ms;
    let at = unnamed.iter().position(is_same).or_else(|| {
        let mut candidates = unnamed.iter().enumerate().filter(|(_, stored)| has_target(stored));
        candidates.next().filter(|_| candidates.next().is_none()).map(|(at, _)| at)
    })?;
    Some(unnamed.remove(at))
}

/// Whether both targets are the same. A target can name a reflector by its name, its address or its Endpoint ID.
fn is_same_target(one: &MonitorTarget, other: &MonitorTarget, reflectors: &[Reflector]) -> bool {
    let id = |target: &MonitorTarget| match target {
        MonitorTarget::Reflector(name) => find_reflector(reflectors.to_vec(), name).ok().map(|found| found.endpoint_id),
        _ => None,
    };
    one == other || id(one).is_some_and(|id_of_one| id(other) == Some(id_of_one))
}

fn check_target(target: &MonitorTarget, reflectors: &[Reflector]) -> Result<(), ApplianceError> {
    match target {
        MonitorTarget::Reflector(name) => Ok(find_reflector(reflectors.to_vec(), name).map(drop)?),
        _ => Ok(()),
    }
}

/// If the service would add this same monitor by itself (same reflector, same name), returns the Endpoint ID of the
/// reflector. Stored with the monitor, the Endpoint ID keeps the service from adding a second one. Otherwise returns
/// `None`.
fn place_of_default(monitor: &Monitor, reflectors: &[Reflector]) -> Option<String> {
    let MonitorTarget::Reflector(wanted) = &monitor.target else { return None };
    let reflector = find_reflector(reflectors.to_vec(), wanted).ok()?;
    let default = MonitorTarget::Reflector(reflector.name.to_string()).default_name();
    (default.to_lowercase() == monitor.name.to_lowercase()).then(|| reflector.endpoint_id.to_string())
}
