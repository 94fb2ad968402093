//! The API routes of the access tokens: list, add, remove.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use paramedic_appliance::app::NewToken;
use paramedic_appliance::store::{AccessScope, StoredToken};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::ApiState;
use super::extract::{ApiBody, ApiPath};
use super::problem::Problem;

/// A request to add an access token.
#[derive(Serialize, Deserialize, JsonSchema)]
pub(crate) struct TokenRequest {
    /// The name of the token.
    pub(crate) name: String,
    /// Which requests the token allows.
    pub(crate) scope: AccessScope,
}

pub(super) async fn list(State(state): State<ApiState>) -> Result<Json<Vec<StoredToken>>, Problem> {
    Ok(Json(state.service.appliance().tokens().await?))
}

/// Adds a token. Only this answer contains the secret of the token.
pub(super) async fn add(
    State(state): State<ApiState>,
    ApiBody(request): ApiBody<TokenRequest>,
) -> Result<(StatusCode, Json<NewToken>), Problem> {
    let new = state.service.appliance().add_token(&request.name, request.scope).await?;
    Ok((StatusCode::CREATED, Json(new)))
}

pub(super) async fn remove(
    State(state): State<ApiState>,
    ApiPath(name): ApiPath<String>,
) -> Result<Json<StoredToken>, Problem> {
    let removed = state.service.appliance().remove_token(&name).await?;
    state.access.credential_removed();
    Ok(Json(removed))
}
