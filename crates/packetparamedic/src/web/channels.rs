//! The API routes of the channels of alert messages, and of the messages that the channels carry.

use axum::extract::State;
use axum::http::StatusCode;
use axum::{Extension, Json};
use paramedic_appliance::ApplianceError;
use paramedic_appliance::alerts::channel::{ChannelError, NewChannel};
use paramedic_appliance::app::{Appliance, ChannelTest};
use paramedic_appliance::store::{StoredChannel, StoredMessage};

use super::ApiState;
use super::connections::RequestSource;
use super::extract::{ApiBody, ApiPath, encoded};
use super::monitors::MonitorQuery;
use super::problem::Problem;

pub(super) async fn list(State(state): State<ApiState>) -> Result<Json<Vec<StoredChannel>>, Problem> {
    Ok(Json(state.service.appliance().channels().await?))
}

pub(super) async fn show(
    State(state): State<ApiState>,
    ApiPath(name): ApiPath<String>,
) -> Result<Json<StoredChannel>, Problem> {
    Ok(Json(state.service.appliance().channel(&name).await?))
}

pub(super) async fn add(
    State(state): State<ApiState>,
    Extension(source): Extension<RequestSource>,
    ApiBody(new): ApiBody<NewChannel>,
) -> Result<(StatusCode, Json<StoredChannel>), Problem> {
    check_source(new.destination.is_command(), source)?;
    Ok((StatusCode::CREATED, Json(state.service.appliance().add_channel(new).await?)))
}

pub(super) async fn remove(
    State(state): State<ApiState>,
    Extension(source): Extension<RequestSource>,
    ApiPath(name): ApiPath<String>,
) -> Result<Json<StoredChannel>, Problem> {
    Ok(Json(removed(&state, source, &name).await?))
}

pub(super) async fn enable(
    State(state): State<ApiState>,
    Extension(source): Extension<RequestSource>,
    ApiPath(name): ApiPath<String>,
) -> Result<Json<StoredChannel>, Problem> {
    Ok(Json(switched(&state, source, &name, true).await?))
}

pub(super) async fn disable(
    State(state): State<ApiState>,
    Extension(source): Extension<RequestSource>,
    ApiPath(name): ApiPath<String>,
) -> Result<Json<StoredChannel>, Problem> {
    Ok(Json(switched(&state, source, &name, false).await?))
}

/// Sends a test message through a channel at once. If the other end refuses the message, the answer reports this, but
/// the request still succeeds.
pub(super) async fn test(
    State(state): State<ApiState>,
    ApiPath(name): ApiPath<String>,
) -> Result<Json<ChannelTest>, Problem> {
    Ok(Json(state.service.test_channel(&name).await?))
}

pub(super) async fn messages(
    State(state): State<ApiState>,
    query: MonitorQuery,
) -> Result<Json<Vec<StoredMessage>>, Problem> {
    Ok(Json(state.service.appliance().messages(query.before, query.limit).await?))
}

/// Removes the channel with this name, and returns it.
pub(super) async fn removed(state: &ApiState, source: RequestSource, name: &str) -> Result<StoredChannel, Problem> {
    let appliance = state.service.appliance();
    Ok(appliance.remove_channel(changeable(appliance, source, name).await?).await?)
}

/// Enables or disables the channel with this name, and returns it.
pub(super) async fn switched(
    state: &ApiState,
    source: RequestSource,
    name: &str,
    enabled: bool,
) -> Result<StoredChannel, Problem> {
    let appliance = state.service.appliance();
    let stored = appliance.enable_channel(changeable(appliance, source, name).await?, enabled).await?;
    state.service.messages_changed();
    Ok(stored)
}

/// Returns the channel with this name, if the request may change it. The caller must then change the returned channel,
/// and must not look up the name again, because another channel can have the name by then.
async fn changeable(appliance: &Appliance, source: RequestSource, name: &str) -> Result<StoredChannel, ApplianceError> {
    let stored = appliance.channel(name).await?;
    check_source(stored.channel.destination.is_command(), source)?;
    Ok(stored)
}

/// Refuses a change of a command channel through a TCP listener: such a channel runs a program as the service's user.
fn check_source(is_command: bool, source: RequestSource) -> Result<(), ApplianceError> {
    if is_command && !source.is_on_this_host() { Err(ChannelError::CommandRefused.into()) } else { Ok(()) }
}

/// The API route of the channel `name`. `action` is empty, or a suffix such as `/enable`.
pub(crate) fn channel_route(name: &str, action: &str) -> String {
    format!("/channels/{}{action}", encoded(name))
}

/// The API route that lists the latest alert messages, at most `limit` of them.
pub(crate) fn messages_route(limit: u32) -> String {
    format!("/messages?limit={}", limit.clamp(1, 1000))
}
