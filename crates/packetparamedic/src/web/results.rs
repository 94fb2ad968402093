//! The API routes of the saved results: list, show, export, import, delete, prune.

use std::time::Duration;

use axum::Json;
use axum::extract::{FromRequestParts, RawQuery, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::http::request::Parts;
use axum::response::IntoResponse;
use paramedic_appliance::ApplianceError;
use paramedic_appliance::store::{ExportFormat, PageCursor, Pruned, Retention, RunOrder, RunQuery};
use paramedic_report::series::ResultSeries;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use uuid::Uuid;

use super::ApiState;
use super::chunks;
use super::extract::{ApiBody, ApiPath, ApiText, PointsQuery, decoded, encoded, next_page};
use super::problem::Problem;

/// The maximum length of an imported result document, in bytes. Even a document with all intervals and streams is far
/// smaller.
pub(super) const MAX_RESULT_BYTES: usize = 32 * 1024 * 1024;
/// The maximum number of results in one page of a list.
const LARGEST_PAGE: u32 = 1000;
/// The number of results in a page, if the request does not set a limit.
const PAGE: u32 = 20;

/// The smallest age that a request to delete old results may give, in seconds: a day.
const SHORTEST_AGE_S: u64 = 86_400;

/// A request to delete results.
#[derive(Serialize, Deserialize, JsonSchema)]
pub(crate) struct DeletionRequest {
    /// The ids of the results, or unique beginnings or ends of the ids.
    pub(crate) ids: Vec<String>,
}

/// A request to delete old results.
#[derive(Serialize, Deserialize, JsonSchema)]
pub(crate) struct PruneRequest {
    /// An age in seconds, at least 86400 (a day). The service deletes the results of the tests that began longer ago.
    pub(crate) older_than_s: u64,
    /// Whether the results are only counted, not deleted.
    #[serde(default)]
    pub(crate) dry_run: bool,
}

/// The outcome of the import of a result.
#[derive(Serialize, Deserialize, JsonSchema)]
pub(crate) struct ImportAnswer {
    /// `true` if this request saved the result; `false` if the result was already saved before.
    pub(crate) is_new: bool,
}

/// The query parameters of a list or an export of results: `since` and `until` (RFC 3339), `peer`, `engine`, `order`
/// (newest, oldest), `limit`. A list also has `after`, a cursor; an export also has `format`.
pub(super) struct ResultsQuery {
    query: RunQuery,
    after: Option<PageCursor>,
    format: Option<ExportFormat>,
}

impl<S: Send + Sync> FromRequestParts<S> for ResultsQuery {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let RawQuery(query) = RawQuery::from_request_parts(parts, state).await.unwrap_or(RawQuery(None));
        Self::read(query.as_deref().unwrap_or_default())
            .map_err(|because| Problem::invalid(StatusCode::BAD_REQUEST, &because))
    }
}

impl ResultsQuery {
    fn read(text: &str) -> Result<Self, String> {
        let mut read = Self { query: RunQuery::default(), after: None, format: None };
        for part in text.split('&').filter(|part| !part.is_empty()) {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            let text =
                decoded(value).ok_or_else(|| format!("the value of {name} is not valid percent-encoded UTF-8"))?;
            let time = || text.parse().map_err(|_| format!("{name} must be a time such as 2026-01-31T12:00:00Z"));
            match name {
                "since" => read.query.since = Some(time()?),
                "until" => read.query.until = Some(time()?),
                "peer" => read.query.peer = Some(text),
                "engine" => read.query.engine = Some(text),
                "after" => read.after = Some(text.parse()?),
                "limit" => read.query.limit = Some(text.parse().map_err(|_| "limit must be a number".to_owned())?),
                "order" => {
                    read.query.order = match text.as_str() {
                        "newest" => RunOrder::NewestFirst,
                        "oldest" => RunOrder::OldestFirst,
                        _ => return Err("order must be newest or oldest".to_owned()),
                    }
                }
                "format" => {
                    let format = ExportFormat::from_word(&text);
                    read.format = Some(format.ok_or("format must be jsonl, csv or summaries")?);
                }
                _ => {
                    let valid = "since, until, peer, engine, order, limit, after, format";
                    return Err(format!("unknown parameter {name:?}; valid: {valid}"));
                }
            }
        }
        Ok(read)
    }
}

/// The API route that exports the results that `query` selects.
pub(crate) fn export_route(query: &RunQuery, format: ExportFormat) -> String {
    let limit = query.limit.map(|limit| format!("&limit={limit}")).unwrap_or_default();
    format!("/results/export?format={}{limit}{}", format.as_str(), chosen(query))
}

/// Formats the filters and the order of `query` as query parameters.
fn chosen(query: &RunQuery) -> String {
    let RunQuery { since, until, peer, engine, order, limit: _ } = query;
    let order = match order {
        RunOrder::NewestFirst => "newest",
        RunOrder::OldestFirst => "oldest",
    };
    let mut parameters = format!("&order={order}");
    let optional = [
        ("since", since.map(|time| time.to_string())),
        ("until", until.map(|time| time.to_string())),
        ("peer", peer.clone()),
        ("engine", engine.clone()),
    ];
    for (name, value) in optional {
        if let Some(value) = value {
            parameters += &format!("&{name}={}", encoded(&value));
        }
    }
    parameters
}

pub(super) async fn list(
    State(state): State<ApiState>,
    ResultsQuery { query, after, format }: ResultsQuery,
) -> Result<impl IntoResponse, Problem> {
    let limit = query.limit.unwrap_or(PAGE);
    if format.is_some() || !(1..=LARGEST_PAGE).contains(&limit) {
        let because = format!("limit must be from 1 to {LARGEST_PAGE}, and a list has no parameter format");
        return Err(Problem::invalid(StatusCode::BAD_REQUEST, &because));
    }
    let page = state.service.appliance().results(&query, after, limit).await?;
    let last = page.last().map(|run| PageCursor { at: run.started_at, id: run.id });
    let parameters = chosen(&query);
    Ok((next_page("/results", &parameters, limit, page.len(), last), Json(page)))
}

/// Exports results, one in each line. Without a limit in the request, exports all results that the query selects.
pub(super) async fn export(
    State(state): State<ApiState>,
    ResultsQuery { query, after, format }: ResultsQuery,
) -> Result<impl IntoResponse, Problem> {
    if after.is_some() {
        return Err(Problem::invalid(StatusCode::BAD_REQUEST, "an export has no pages: remove the parameter `after`"));
    }
    let format = format.unwrap_or_default();
    let export = state.service.appliance().export(query, format).await?;
    let kind = if format == ExportFormat::Csv { "text/csv" } else { "application/x-ndjson" };
    chunks::of_lines(export, kind).await
}

/// Answers with a result document, byte for byte as it was saved.
pub(super) async fn show(
    State(state): State<ApiState>,
    ApiPath(id): ApiPath<String>,
) -> Result<impl IntoResponse, Problem> {
    let saved = state.service.appliance().result(&id).await?;
    Ok(([(CONTENT_TYPE, "application/json")], saved.text))
}

pub(super) async fn delete(
    State(state): State<ApiState>,
    ApiPath(id): ApiPath<String>,
) -> Result<Json<Value>, Problem> {
    let ids = state.service.appliance().delete_results(&[id]).await?;
    Ok(Json(json!({ "deleted": ids })))
}

/// Saves a result document of another store, byte for byte. The document must contain the id that the path names.
pub(super) async fn import(
    State(state): State<ApiState>,
    ApiPath(id): ApiPath<Uuid>,
    ApiText(text): ApiText,
) -> Result<(StatusCode, Json<ImportAnswer>), Problem> {
    #[derive(Deserialize)]
    struct Identified {
        id: Uuid,
    }
    let named = serde_json::from_str::<Identified>(&text).ok();
    if named.is_none_or(|named| named.id != id) {
        return Err(Problem::invalid(
            StatusCode::BAD_REQUEST,
            "the body is not a result document with the id in the path",
        ));
    }
    let is_new = state.service.appliance().import_result(&text).await?;
    Ok((if is_new { StatusCode::CREATED } else { StatusCode::OK }, Json(ImportAnswer { is_new })))
}

/// Deletes several results: all of them, or none if one is not found.
pub(super) async fn delete_several(
    State(state): State<ApiState>,
    ApiBody(DeletionRequest { ids }): ApiBody<DeletionRequest>,
) -> Result<Json<Value>, Problem> {
    let ids = state.service.appliance().delete_results(&ids).await?;
    Ok(Json(json!({ "deleted": ids })))
}

pub(super) async fn prune(
    State(state): State<ApiState>,
    ApiBody(PruneRequest { older_than_s, dry_run }): ApiBody<PruneRequest>,
) -> Result<Json<Pruned>, Problem> {
    if older_than_s < SHORTEST_AGE_S {
        let because = format!("older_than_s must be at least {SHORTEST_AGE_S} (a day)");
        return Err(Problem::invalid(StatusCode::BAD_REQUEST, &because));
    }
    let retention = Retention { results: Some(Duration::from_secs(older_than_s)), ..Retention::FOREVER };
    Ok(Json(state.service.appliance().prune(&retention, dry_run).await?))
}

/// Answers with the time series of a result, reduced to at most the requested number of points.
pub(super) async fn series(
    State(state): State<ApiState>,
    ApiPath(id): ApiPath<String>,
    PointsQuery(points): PointsQuery,
) -> Result<Json<ResultSeries>, Problem> {
    let saved = state.service.appliance().result(&id).await?;
    let document = saved.document().map_err(ApplianceError::from)?;
    Ok(Json(ResultSeries::of(&document, points)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_route_of_an_export_is_read_back() {
        let query = RunQuery {
            since: "2026-01-31T12:00:00Z".parse().ok(),
            until: "2026-02-01T00:00:00.123456Z".parse().ok(),
            peer: Some("café & bar".to_owned()),
            engine: Some("tcp".to_owned()),
            order: RunOrder::OldestFirst,
            limit: Some(7),
        };
        for query in [query, RunQuery::default()] {
            for format in [ExportFormat::JsonLines, ExportFormat::Csv, ExportFormat::Summaries] {
                let route = export_route(&query, format);
                let read = ResultsQuery::read(route.split_once('?').unwrap().1).unwrap();
                assert_eq!((read.query, read.format), (query.clone(), Some(format)), "{route}");
            }
        }
        for wrong in ["since=yesterday", "limit=-1", "order=up", "format=xml", "offset=3", "peer=%zz"] {
            assert!(ResultsQuery::read(wrong).is_err(), "{wrong}");
        }
    }
}
