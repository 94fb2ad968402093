//! The routes of the saved results.

use axum::Json;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use paramedic_report::summary::RunSummary;

use super::ApiState;
use super::extract::{ApiPath, ListQuery};
use super::problem::Problem;

pub(super) async fn list(State(state): State<ApiState>, query: ListQuery) -> Result<Json<Vec<RunSummary>>, Problem> {
    Ok(Json(state.service.appliance().results(query.limit).await?))
}

/// A result document, to the byte as it was saved.
pub(super) async fn show(
    State(state): State<ApiState>,
    ApiPath(id): ApiPath<String>,
) -> Result<impl IntoResponse, Problem> {
    let saved = state.service.appliance().result(&id).await?;
    Ok(([(CONTENT_TYPE, "application/json")], saved.text))
}
