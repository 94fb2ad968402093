//! The routes of the configuration: export, apply.

use axum::Json;
use axum::extract::State;
use paramedic_appliance::app::{ConfigurationChange, DeviceConfiguration};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::ApiState;
use super::extract::ApiBody;
use super::problem::Problem;

/// The longest configuration, in bytes.
pub(super) const MAX_CONFIGURATION_BYTES: usize = 4 * 1024 * 1024;

/// A request to make the store as a configuration says.
#[derive(Serialize, Deserialize, JsonSchema)]
pub(crate) struct ApplyRequest {
    /// Whether only the differences are computed.
    #[serde(default)]
    pub(crate) dry_run: bool,
    /// The configuration.
    #[serde(flatten)]
    pub(crate) configuration: DeviceConfiguration,
}

pub(super) async fn show(State(state): State<ApiState>) -> Result<Json<DeviceConfiguration>, Problem> {
    Ok(Json(state.service.appliance().configuration().await?))
}

pub(super) async fn apply(
    State(state): State<ApiState>,
    ApiBody(ApplyRequest { dry_run, configuration }): ApiBody<ApplyRequest>,
) -> Result<Json<Vec<ConfigurationChange>>, Problem> {
    let changes = state.service.appliance().apply_configuration(configuration, dry_run).await?;
    state.service.schedules_changed();
    state.service.monitors_changed();
    Ok(Json(changes))
}
