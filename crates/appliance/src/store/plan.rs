//! Stores the plan: what the contract with the Internet provider promises.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::pool::{on, rows};
use super::{ApplianceStore, StorageError, strange};
use crate::plan::Plan;

/// The plan as stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct StoredPlan {
    /// The definition of the plan.
    #[serde(flatten)]
    pub plan: Plan,
    /// When the plan was set.
    pub set_at: Timestamp,
    /// Whether a configuration file made the plan (`packetparamedic apply`).
    pub from_file: bool,
}

/// The stored columns of a plan.
type PlanRow = (String, bool, i64);

/// The SQL that sets the plan: $1 the Endpoint ID of this device, $2 the definition, $3 whether a configuration file
/// made the plan, $4 the present time.
pub(super) const SET_PLAN: &str = "INSERT INTO plan (number, appliance, definition, from_file, set_at_us) \
     VALUES (1, $1, $2, $3, $4) ON CONFLICT (number) DO UPDATE SET appliance = $1, definition = $2, from_file = $3, \
     set_at_us = $4";

impl ApplianceStore {
    /// The plan, if one is set.
    pub async fn plan(&self) -> Result<Option<StoredPlan>, StorageError> {
        let fault = || self.fault("reading the plan");
        let row = on!(self.pool, |db| {
            sqlx::query_as::<_, PlanRow>("SELECT definition, from_file, set_at_us FROM plan").fetch_optional(db).await
        })
        .map_err(fault())?;
        row.map(stored).transpose().map_err(fault())
    }

    /// Sets the plan. `appliance` is the Endpoint ID of this device.
    pub async fn set_plan(&self, appliance: &str, plan: &Plan, now: Timestamp) -> Result<StoredPlan, StorageError> {
        let definition = serde_json::to_string(plan).map_err(|source| StorageError::Document { source })?;
        on!(self.pool, |db| sqlx::query(SET_PLAN)
            .bind(appliance)
            .bind(definition)
            .bind(false)
            .bind(now.as_microsecond())
            .execute(db)
            .await
            .map(rows))
        .map_err(self.fault("saving the plan"))?;
        let set_at = Timestamp::from_microsecond(now.as_microsecond()).unwrap_or(now);
        Ok(StoredPlan { plan: plan.clone(), set_at, from_file: false })
    }

    /// Removes the plan, and returns it; `None` if no plan was set.
    pub async fn clear_plan(&self) -> Result<Option<StoredPlan>, StorageError> {
        let fault = || self.fault("removing the plan");
        let row = on!(self.pool, |db| {
            sqlx::query_as::<_, PlanRow>("DELETE FROM plan RETURNING definition, from_file, set_at_us")
                .fetch_optional(db)
                .await
        })
        .map_err(fault())?;
        row.map(stored).transpose().map_err(fault())
    }
}

fn stored((definition, from_file, set_at_us): PlanRow) -> Result<StoredPlan, sqlx::Error> {
    Ok(StoredPlan {
        plan: serde_json::from_str(&definition).map_err(strange)?,
        set_at: Timestamp::from_microsecond(set_at_us).map_err(strange)?,
        from_file,
    })
}

#[cfg(test)]
mod tests {
    use super::super::each_engine::on_each_engine;
    use super::*;
    use crate::plan::PromisedRate;

    fn plan(promised_bps: u64) -> Plan {
        let rate = PromisedRate { promised_bps, normal_bps: Some(1), minimum_bps: None };
        Plan { name: Some("Fibre".to_owned()), download: rate, upload: rate }
    }

    #[tokio::test]
    async fn there_is_at_most_one_plan() {
        on_each_engine(async |store| {
            let now = "2026-01-01T00:00:00.000001Z".parse().unwrap();
            assert_eq!(store.plan().await.unwrap(), None);
            let first = store.set_plan("PP", &plan(9), now).await.unwrap();
            assert_eq!(store.plan().await.unwrap(), Some(first));
            let second = store.set_plan("PP", &plan(10), now).await.unwrap();
            assert_eq!(store.plan().await.unwrap(), Some(second.clone()));
            assert_eq!(store.clear_plan().await.unwrap(), Some(second));
            assert_eq!(store.clear_plan().await.unwrap(), None);
        })
        .await;
    }
}
