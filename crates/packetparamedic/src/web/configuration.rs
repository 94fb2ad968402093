//! The API routes of the configuration: export, apply.

use axum::extract::State;
use axum::{Extension, Json};
use paramedic_appliance::app::{ApplyMode, ConfigurationChange, DeviceConfiguration};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::ApiState;
use super::connections::RequestSource;
use super::extract::ApiBody;
use super::problem::Problem;

/// The maximum length of a configuration in a request, in bytes.
pub(super) const MAX_CONFIGURATION_BYTES: usize = 4 * 1024 * 1024;

/// A request to apply a configuration to the store.
#[derive(Serialize, Deserialize, JsonSchema)]
pub(crate) struct ApplyRequest {
    /// Whether the service only reports the differences, and changes nothing.
    #[serde(default)]
    pub(crate) dry_run: bool,
    /// The configuration to apply.
    #[serde(flatten)]
    pub(crate) configuration: DeviceConfiguration,
}

pub(super) async fn show(State(state): State<ApiState>) -> Result<Json<DeviceConfiguration>, Problem> {
    Ok(Json(state.service.appliance().configuration().await?))
}

pub(super) async fn apply(
    State(state): State<ApiState>,
    Extension(source): Extension<RequestSource>,
    ApiBody(ApplyRequest { dry_run, configuration }): ApiBody<ApplyRequest>,
) -> Result<Json<Vec<ConfigurationChange>>, Problem> {
    let mode = ApplyMode { is_rehearsal: dry_run, may_change_commands: source.is_on_this_host() };
    let changes = state.service.appliance().apply_configuration(configuration, mode).await?;
    state.service.schedules_changed();
    state.service.monitors_changed();
    state.service.rules_changed();
    state.service.messages_changed();
    Ok(Json(changes))
}
