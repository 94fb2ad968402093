//! The plan of this appliance: show, set, remove. Reads the clock to date the plan.

#![expect(clippy::disallowed_methods, reason = "the shell that dates the plan")]

use jiff::Timestamp;

use super::Appliance;
use crate::error::ApplianceError;
use crate::plan::Plan;
use crate::store::StoredPlan;

impl Appliance {
    /// The plan of this appliance; `None` if none is set.
    pub async fn plan(&self) -> Result<Option<StoredPlan>, ApplianceError> {
        Ok(self.reading_store().await?.plan().await?)
    }

    /// Sets the plan of this appliance. Replaces an earlier plan.
    pub async fn set_plan(&self, plan: &Plan) -> Result<StoredPlan, ApplianceError> {
        plan.check()?;
        let own = self.endpoint_id()?.to_string();
        Ok(self.store().await?.set_plan(&own, plan, Timestamp::now()).await?)
    }

    /// Removes the plan of this appliance, and returns it.
    pub async fn clear_plan(&self) -> Result<Option<StoredPlan>, ApplianceError> {
        Ok(self.store().await?.clear_plan().await?)
    }
}
