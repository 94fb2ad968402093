//! The API routes of alert rules and of alerts.

use axum::Json;
use axum::extract::{FromRequestParts, RawQuery, State};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::IntoResponse;
use paramedic_appliance::alerts::{AlertRule, RulePreview};
use paramedic_appliance::app::RuleOverview;
use paramedic_appliance::store::{PageCursor, StoredRule};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::ApiState;
use super::extract::{ApiBody, ApiPath, decoded, encoded, next_page};
use super::problem::Problem;

/// The number of alerts in a page, if the request does not set a limit.
const PAGE: u32 = 20;
/// The maximum number of alerts in a page.
const LARGEST_PAGE: u32 = 1000;

/// The preview of a rule: when the rule would have fired, and why it cannot fire at present.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct PreviewAnswer {
    /// What the rule would have done in the past: at most the last 30 days, or the last 14 days for a metric of
    /// monitors.
    #[serde(flatten)]
    pub(crate) preview: RulePreview,
    /// A description of the rule in words.
    pub(crate) words: String,
    /// Why the rule cannot fire at present: nothing measures its metric, or there is no plan to compare with. Absent if
    /// the rule can fire.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) unmeasured: Option<String>,
}

pub(super) async fn list(State(state): State<ApiState>) -> Result<Json<Vec<RuleOverview>>, Problem> {
    Ok(Json(state.service.appliance().rules().await?))
}

pub(super) async fn show(
    State(state): State<ApiState>,
    ApiPath(name): ApiPath<String>,
) -> Result<Json<RuleOverview>, Problem> {
    Ok(Json(state.service.appliance().rule(&name).await?))
}

pub(super) async fn add(
    State(state): State<ApiState>,
    ApiBody(rule): ApiBody<AlertRule>,
) -> Result<(StatusCode, Json<StoredRule>), Problem> {
    let added = state.service.appliance().add_rule(&rule).await?;
    state.service.rules_changed();
    Ok((StatusCode::CREATED, Json(added)))
}

pub(super) async fn remove(
    State(state): State<ApiState>,
    ApiPath(name): ApiPath<String>,
) -> Result<Json<StoredRule>, Problem> {
    let removed = state.service.appliance().remove_rule(&name).await?;
    state.service.rules_changed();
    state.service.messages_changed();
    Ok(Json(removed))
}

pub(super) async fn enable(
    State(state): State<ApiState>,
    ApiPath(name): ApiPath<String>,
) -> Result<Json<StoredRule>, Problem> {
    set_enabled(&state, &name, true).await
}

pub(super) async fn disable(
    State(state): State<ApiState>,
    ApiPath(name): ApiPath<String>,
) -> Result<Json<StoredRule>, Problem> {
    set_enabled(&state, &name, false).await
}

async fn set_enabled(state: &ApiState, name: &str, enabled: bool) -> Result<Json<StoredRule>, Problem> {
    let stored = state.service.appliance().enable_rule(name, enabled).await?;
    state.service.rules_changed();
    state.service.messages_changed();
    Ok(Json(stored))
}

/// Lists the suggested rules that have not been added.
pub(super) async fn suggested(State(state): State<ApiState>) -> Result<Json<Vec<AlertRule>>, Problem> {
    Ok(Json(state.service.appliance().suggested_rules().await?))
}

/// Answers with what a rule would have done in the past; saves nothing.
pub(super) async fn preview(
    State(state): State<ApiState>,
    ApiBody(rule): ApiBody<AlertRule>,
) -> Result<Json<PreviewAnswer>, Problem> {
    let appliance = state.service.appliance();
    let preview = appliance.preview_rule(&rule).await?;
    let unmeasured = appliance.unmeasured(&rule).await?;
    Ok(Json(PreviewAnswer { preview, words: rule.words(), unmeasured }))
}

pub(super) async fn alerts(State(state): State<ApiState>, query: AlertsQuery) -> Result<impl IntoResponse, Problem> {
    let page = state.service.appliance().alerts(query.only_open, query.after, query.limit).await?;
    let last = page.last().map(|alert| PageCursor { at: alert.opened_at, id: alert.id });
    let open = if query.only_open { "&open=true" } else { "" };
    Ok((next_page("/alerts", open, query.limit, page.len(), last), Json(page)))
}

/// The API route of the rule `name`. `action` is empty, or a suffix such as `/enable`.
pub(crate) fn rule_route(name: &str, action: &str) -> String {
    format!("/rules/{}{action}", encoded(name))
}

/// The API route of the latest alerts, or with `only_open` of the latest open alerts; at most `limit` alerts.
pub(crate) fn alerts_route(only_open: bool, limit: u32) -> String {
    format!("/alerts?open={only_open}&limit={}", limit.clamp(1, LARGEST_PAGE))
}

/// The query parameters of a list of alerts: `open`, `limit`, `after`.
#[derive(Debug)]
pub(super) struct AlertsQuery {
    only_open: bool,
    limit: u32,
    after: Option<PageCursor>,
}

impl<S: Send + Sync> FromRequestParts<S> for AlertsQuery {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let RawQuery(query) = RawQuery::from_request_parts(parts, state).await.unwrap_or(RawQuery(None));
        Self::read(query.as_deref().unwrap_or_default())
            .map_err(|because| Problem::invalid(StatusCode::BAD_REQUEST, &because))
    }
}

impl AlertsQuery {
    fn read(query: &str) -> Result<Self, String> {
        let mut read = Self { only_open: false, limit: PAGE, after: None };
        for part in query.split('&').filter(|part| !part.is_empty()) {
            let (key, value) = part.split_once('=').unwrap_or((part, ""));
            let value =
                decoded(value).ok_or_else(|| format!("the value of {key} is not valid percent-encoded UTF-8"))?;
            match key {
                "open" => read.only_open = value.parse().map_err(|_| "open must be true or false")?,
                "after" => read.after = Some(value.parse()?),
                "limit" => {
                    let limit = value.parse().ok().filter(|limit| (1..=LARGEST_PAGE).contains(limit));
                    read.limit = limit.ok_or("limit must be a number from 1 to 1000")?;
                }
                _ => return Err(format!("unknown parameter {key:?}; valid: open, limit, after")),
            }
        }
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_list_of_alerts_is_read_as_its_route_writes_it() {
        let route = alerts_route(true, 7);
        let read = AlertsQuery::read(route.split_once('?').unwrap().1).unwrap();
        assert_eq!((read.only_open, read.limit, read.after), (true, 7, None));
        assert_eq!(rule_route("a b", "/enable"), "/rules/a%20b/enable");
        for wrong in ["open=1", "limit=0", "limit=1001", "after=x", "colour=red", "open=%zz"] {
            assert!(AlertsQuery::read(wrong).is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn no_query_panics(query in "[a-z%0-9&=.]{0,60}") {
            drop(AlertsQuery::read(&query));
        }
    }
}
