//! The API routes of schedules and of their runs.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::{Extension, Json};
use paramedic_appliance::app::{ScheduleOverview, ScheduleProposal};
use paramedic_appliance::schedule::Schedule;
use paramedic_appliance::store::{PageCursor, StoredSchedule};
use schemars::JsonSchema;
use serde::Serialize;

use super::ApiState;
use super::connections::RequestSource;
use super::extract::{ApiBody, ApiPath, ListQuery};
use super::guard::NothingChanged;
use super::problem::Problem;
use super::test_runs::{self, CancelAnswer};

pub(super) async fn list(State(state): State<ApiState>) -> Result<Json<Vec<ScheduleOverview>>, Problem> {
    Ok(Json(state.service.appliance().schedules().await?))
}

pub(super) async fn show(
    State(state): State<ApiState>,
    ApiPath(name): ApiPath<String>,
) -> Result<Json<ScheduleOverview>, Problem> {
    Ok(Json(state.service.appliance().schedule(&name).await?))
}

/// Checks a schedule and estimates how much data it will use; saves nothing.
pub(super) async fn propose(
    State(state): State<ApiState>,
    ApiBody(schedule): ApiBody<Schedule>,
) -> Result<(Extension<NothingChanged>, Json<ScheduleProposal>), Problem> {
    Ok((Extension(NothingChanged), Json(state.service.appliance().propose_schedule(schedule).await?)))
}

pub(super) async fn add(
    State(state): State<ApiState>,
    ApiBody(schedule): ApiBody<Schedule>,
) -> Result<(StatusCode, Json<StoredSchedule>), Problem> {
    let added = state.service.appliance().add_schedule(schedule).await?;
    state.service.schedules_changed();
    Ok((StatusCode::CREATED, Json(added)))
}

pub(super) async fn remove(
    State(state): State<ApiState>,
    ApiPath(name): ApiPath<String>,
) -> Result<Json<StoredSchedule>, Problem> {
    let removed = state.service.appliance().remove_schedule(&name).await?;
    state.service.schedules_changed();
    Ok(Json(removed))
}

pub(super) async fn enable(
    State(state): State<ApiState>,
    ApiPath(name): ApiPath<String>,
) -> Result<Json<StoredSchedule>, Problem> {
    set_enabled(&state, &name, true).await
}

pub(super) async fn disable(
    State(state): State<ApiState>,
    ApiPath(name): ApiPath<String>,
) -> Result<Json<StoredSchedule>, Problem> {
    set_enabled(&state, &name, false).await
}

async fn set_enabled(state: &ApiState, name: &str, enabled: bool) -> Result<Json<StoredSchedule>, Problem> {
    let stored = state.service.appliance().enable_schedule(name, enabled).await?;
    state.service.schedules_changed();
    Ok(Json(stored))
}

/// The answer to a request to run a schedule.
#[derive(Serialize, JsonSchema)]
pub(super) struct RunRequested {
    /// Always `requested`.
    event: &'static str,
    /// The name of the schedule.
    schedule: String,
}

/// Runs a schedule as soon as no other test runs.
pub(super) async fn run(
    State(state): State<ApiState>,
    Extension(source): Extension<RequestSource>,
    ApiPath(name): ApiPath<String>,
) -> Result<(StatusCode, Json<RunRequested>), Problem> {
    request_run(&state, source, &name).await?;
    Ok((StatusCode::ACCEPTED, Json(RunRequested { event: "requested", schedule: name })))
}

/// Runs a schedule as soon as no other test runs. Fails if clients of the TCP listener began too many tests in the last
/// minute.
pub(super) async fn request_run(state: &ApiState, source: RequestSource, name: &str) -> Result<(), Problem> {
    test_runs::count_start(state, source).map_err(test_runs::too_many)?;
    Ok(state.service.request_run(name).await?)
}

pub(super) async fn runs(State(state): State<ApiState>, query: ListQuery) -> Result<impl IntoResponse, Problem> {
    let of = query.schedule.as_deref();
    let page = state.service.appliance().schedule_runs_page(of, query.after, query.limit).await?;
    let last = page.last().map(|run| PageCursor { at: run.decided_at, id: run.id });
    Ok((query.next("/schedule-runs", page.len(), last), Json(page)))
}

/// Cancels the running test of a schedule.
pub(super) async fn cancel(State(state): State<ApiState>) -> impl IntoResponse {
    CancelAnswer { cancelled: cancel_run(&state) }.answer()
}

/// Cancels the running test of a schedule; `false` if no schedule's test runs.
pub(super) fn cancel_run(state: &ApiState) -> bool {
    state.service.cancel_run()
}
