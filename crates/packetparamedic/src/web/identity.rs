//! The API route by which this device gets a new identity.

use axum::Json;
use axum::extract::State;
use paramedic_appliance::ApplianceError;
use paramedic_appliance::app::Appliance;
use paramedic_link::{EndpointId, PeerText};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::ApiState;
use super::problem::Problem;

/// The API route by which a client requests a new identity for this device.
pub(crate) const ROTATION_ROUTE: &str = "/identity/rotations";

/// The answer to a request for a new identity: the new and the previous Endpoint ID of this device.
#[derive(Serialize, Deserialize, JsonSchema)]
pub(crate) struct RotatedIdentity {
    /// The new Endpoint ID.
    pub(crate) endpoint_id: EndpointId,
    /// The previous Endpoint ID.
    pub(crate) old: EndpointId,
    /// The path of the file on this device that contains the old key.
    pub(crate) kept: String,
    /// The names of the paired reflectors. They know only the old identity, so each must be paired again.
    pub(crate) reflectors: Vec<PeerText>,
}

/// Gives this device a new identity. Every reflector must then be paired again.
pub(crate) async fn rotate(appliance: &Appliance) -> Result<RotatedIdentity, ApplianceError> {
    let rotated = appliance.rotate_identity()?;
    let reflectors = appliance.reflectors().await?.into_iter().map(|reflector| reflector.name).collect();
    let kept = rotated.kept.display().to_string();
    Ok(RotatedIdentity { endpoint_id: rotated.new.id(), old: rotated.old, kept, reflectors })
}

pub(super) async fn rotate_own(State(state): State<ApiState>) -> Result<Json<RotatedIdentity>, Problem> {
    let rotated = rotate(state.service.appliance()).await?;
    tracing::warn!(old = %rotated.old, new = %rotated.endpoint_id, "this device has a new identity");
    state.service.monitors_changed();
    Ok(Json(rotated))
}
