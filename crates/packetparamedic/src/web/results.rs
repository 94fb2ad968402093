//! The routes of the saved results.

use axum::Json;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use paramedic_appliance::ApplianceError;
use paramedic_appliance::store::PageCursor;
use paramedic_report::series::ResultSeries;

use super::ApiState;
use super::extract::{ApiPath, ListQuery, PointsQuery};
use super::problem::Problem;

pub(super) async fn list(State(state): State<ApiState>, query: ListQuery) -> Result<impl IntoResponse, Problem> {
    let page = state.service.appliance().results_page(query.after, query.limit).await?;
    let last = page.last().map(|run| PageCursor { at: run.started_at, id: run.id });
    Ok((query.next("/results", page.len(), last), Json(page)))
}

/// A result document, to the byte as it was saved.
pub(super) async fn show(
    State(state): State<ApiState>,
    ApiPath(id): ApiPath<String>,
) -> Result<impl IntoResponse, Problem> {
    let saved = state.service.appliance().result(&id).await?;
    Ok(([(CONTENT_TYPE, "application/json")], saved.text))
}

/// The series of a result, thinned.
pub(super) async fn series(
    State(state): State<ApiState>,
    ApiPath(id): ApiPath<String>,
    PointsQuery(points): PointsQuery,
) -> Result<Json<ResultSeries>, Problem> {
    let saved = state.service.appliance().result(&id).await?;
    let document = saved.document().map_err(ApplianceError::from)?;
    Ok(Json(ResultSeries::of(&document, points)))
}
