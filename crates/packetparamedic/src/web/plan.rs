//! The API routes of the plan: show, set, remove.

use axum::Json;
use axum::extract::State;
use paramedic_appliance::plan::Plan;
use paramedic_appliance::store::StoredPlan;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::ApiState;
use super::extract::ApiBody;
use super::problem::Problem;

/// The API route of the plan, which contains the rates of the internet contract.
pub(crate) const ROUTE: &str = "/plan";

/// The answer to a request about the plan.
#[derive(Serialize, Deserialize, JsonSchema)]
pub(crate) struct PlanAnswer {
    /// The plan, or the plan that the request removed; absent if no plan is set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) plan: Option<StoredPlan>,
}

pub(super) async fn show(State(state): State<ApiState>) -> Result<Json<PlanAnswer>, Problem> {
    Ok(Json(PlanAnswer { plan: state.service.appliance().plan().await? }))
}

pub(super) async fn set(
    State(state): State<ApiState>,
    ApiBody(plan): ApiBody<Plan>,
) -> Result<Json<StoredPlan>, Problem> {
    Ok(Json(state.service.appliance().set_plan(&plan).await?))
}

/// Removes the plan. The answer contains the removed plan.
pub(super) async fn clear(State(state): State<ApiState>) -> Result<Json<PlanAnswer>, Problem> {
    Ok(Json(PlanAnswer { plan: state.service.appliance().clear_plan().await? }))
}
