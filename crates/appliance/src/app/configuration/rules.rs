//! Compares the rules of a configuration with the stored rules. If a rule changes so that it would judge differently, a
//! new rule replaces it, and the open alerts of the old rule close.

use std::collections::BTreeSet;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::compare::{Compared, ConfigurationChange, ObjectComparison, StoredObject, differences, in_configuration};
use crate::alerts::{AlertRule, RuleEnd, RuleError};
use crate::app::alerts::closings;
use crate::error::ApplianceError;
use crate::store::{AlertWrite, FileChanges, RuleFileWrite, StorageError, StoredAlert, StoredRule};

/// A rule of a configuration, and whether it judges measurements.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ConfiguredRule {
    /// Whether the rule judges measurements.
    pub enabled: bool,
    /// The definition of the rule.
    #[serde(flatten)]
    pub rule: AlertRule,
}

impl From<StoredRule> for ConfiguredRule {
    fn from(stored: StoredRule) -> Self {
        Self { enabled: stored.enabled, rule: stored.rule }
    }
}

impl StoredObject for StoredRule {
    const KIND: &'static str = "rule";

    fn id(&self) -> Uuid {
        self.id
    }

    fn name(&self) -> &str {
        &self.rule.name
    }

    fn is_from_file(&self) -> bool {
        self.from_file
    }
}

/// The changes to store: those of the rules, and those of their alerts.
#[derive(Default)]
pub(super) struct RuleChanges {
    pub(super) rules: FileChanges<RuleFileWrite>,
    /// The closings of the open alerts of rules that are removed, disabled or replaced.
    pub(super) closings: Vec<AlertWrite>,
}

/// Compares the rules of a configuration with the stored rules. Returns the changes to store, and the differences to
/// show to the user. `channels` are the names of the channels after the change, in lower case; `open` are the open
/// alerts.
pub(super) fn compare_rules(
    stored: &[StoredRule],
    wanted: Vec<ConfiguredRule>,
    channels: &BTreeSet<String>,
    open: &[StoredAlert],
    now: Timestamp,
) -> Result<(RuleChanges, Vec<ConfigurationChange>), ApplianceError> {
    let mut comparison = ObjectComparison::new(stored);
    let (mut written, mut replaced, mut all_closings) = (Vec::new(), Vec::new(), Vec::new());
    for wanted in wanted {
        let name = wanted.rule.name.clone();
        let refused = |error: ApplianceError| in_configuration(StoredRule::KIND, &name, error);
        if !comparison.is_new_name(&name) {
            return Err(refused(StorageError::RuleExists { name: name.clone() }.into()));
        }
        wanted.rule.check().map_err(|error| refused(error.into()))?;
        let known = comparison.find(&name);
        let is_written = match known {
            Some(known) => comparison.is_changed(known, differences(&ConfiguredRule::from(known.clone()), &wanted)),
            None => {
                comparison.added(&name);
                true
            }
        };
        if !is_written {
            continue;
        }
        if let Some(unknown) = wanted.rule.channels.iter().find(|name| !channels.contains(&name.to_lowercase())) {
            return Err(refused(RuleError::NoSuchChannel(unknown.clone()).into()));
        }
        let ConfiguredRule { enabled, rule } = wanted;
        match known {
            Some(known) if judges_alike(&known.rule, &rule) => {
                if known.enabled && !enabled {
                    all_closings.extend(closings(known, RuleEnd::Disabled, open, now));
                }
                let judges_anew = enabled && !known.enabled;
                written.push(RuleFileWrite { replaces: Some(known.id), rule, enabled, judges_anew });
            }
            known => {
                if let Some(known) = known {
                    all_closings.extend(closings(known, RuleEnd::Changed, open, now));
                    replaced.push(known.id);
                }
                written.push(RuleFileWrite { replaces: None, rule, enabled, judges_anew: true });
            }
        }
    }
    let Compared { changes, unchanged, mut removed } = comparison.end();
    for gone in stored.iter().filter(|stored| removed.contains(&stored.id)) {
        all_closings.extend(closings(gone, RuleEnd::Removed, open, now));
    }
    removed.extend(replaced);
    Ok((RuleChanges { rules: FileChanges { written, unchanged, removed }, closings: all_closings }, changes))
}

/// Whether both rules judge every value alike: only the name, the channels and the quiet hours may differ.
fn judges_alike(one: &AlertRule, other: &AlertRule) -> bool {
    let messages = AlertRule { channels: other.channels.clone(), quiet_hours: other.quiet_hours, ..one.clone() };
    AlertRule { name: other.name.clone(), ..messages } == *other
}
