//! Compares the plan of a configuration with the stored plan. An appliance has at most one plan.

use super::compare::{ChangeAction, ConfigurationChange, change, differences, in_configuration};
use crate::error::ApplianceError;
use crate::plan::Plan;
use crate::store::{PlanWrite, StoredPlan};

/// The word for the plan in a [`ConfigurationChange`].
const KIND: &str = "plan";

/// Returns the change of the plan to store, and the difference to show to the user. If the configuration has no plan, a
/// stored plan that no file made is kept.
pub(super) fn compare_plan(
    stored: Option<StoredPlan>,
    wanted: Option<Plan>,
) -> Result<(PlanWrite, Option<ConfigurationChange>), ApplianceError> {
    let name = |plan: &Plan| plan.name.clone().unwrap_or_default();
    if let Some(wanted) = &wanted {
        wanted.check().map_err(|error| in_configuration(KIND, &name(wanted), error.into()))?;
    }
    let change = |plan: &Plan, action, values| Some(change(KIND, &name(plan), action, values));
    Ok(match (stored, wanted) {
        (None, None) => (PlanWrite::Keep, None),
        (Some(stored), None) if !stored.from_file => (PlanWrite::Keep, None),
        (Some(stored), None) => (PlanWrite::Remove, change(&stored.plan, ChangeAction::Removed, Vec::new())),
        (None, Some(wanted)) => {
            let added = change(&wanted, ChangeAction::Added, Vec::new());
            (PlanWrite::Set(wanted), added)
        }
        (Some(stored), Some(wanted)) if stored.plan == wanted => (PlanWrite::Mark, None),
        (Some(stored), Some(wanted)) => {
            let changed = change(&stored.plan, ChangeAction::Changed, differences(&stored.plan, &wanted));
            (PlanWrite::Set(wanted), changed)
        }
    })
}
