//! The API routes of monitors and of outages.

use axum::Json;
use axum::extract::{FromRequestParts, RawQuery, State};
use axum::http::StatusCode;
use axum::http::request::Parts;
use jiff::Timestamp;
use paramedic_appliance::ApplianceError;
use paramedic_appliance::app::{MonitorOverview, MonitorSeries, SeriesRange};
use paramedic_appliance::monitor::{Monitor, MonitorError, MonitorTarget};
use paramedic_appliance::store::{StoredMonitor, StoredOutage};
use paramedic_report::quantity;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::ApiState;
use super::extract::{ApiBody, ApiPath, decoded, encoded};
use super::problem::Problem;

/// A request to add a monitor.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct NewMonitor {
    /// The name of the monitor. If absent, the service derives a name from the target.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) name: Option<String>,
    /// What to probe: `gateway`, `reflector:NAME`, `host:ADDRESS`, `dns:RESOLVER/NAME` or an `http` or `https` URL.
    pub(crate) target: String,
    /// The time between two probes, in milliseconds. If absent, the default for this kind of target applies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) interval_ms: Option<u64>,
}

impl NewMonitor {
    /// Converts the request to a monitor. Parses the target, but does not check the name and the interval.
    pub(crate) fn monitor(&self) -> Result<Monitor, MonitorError> {
        let target = self.target.parse::<MonitorTarget>()?;
        let name = self.name.clone().unwrap_or_else(|| target.default_name());
        Ok(Monitor::new(&name, target, self.interval_ms.map(std::time::Duration::from_millis)))
    }
}

pub(super) async fn list(State(state): State<ApiState>) -> Result<Json<Vec<MonitorOverview>>, Problem> {
    Ok(Json(state.service.monitors().await?))
}

pub(super) async fn show(
    State(state): State<ApiState>,
    ApiPath(name): ApiPath<String>,
) -> Result<Json<MonitorOverview>, Problem> {
    Ok(Json(state.service.monitor(&name).await?))
}

pub(super) async fn add(
    State(state): State<ApiState>,
    ApiBody(new): ApiBody<NewMonitor>,
) -> Result<(StatusCode, Json<StoredMonitor>), Problem> {
    let monitor = new.monitor().map_err(ApplianceError::from)?;
    let added = state.service.appliance().add_monitor(monitor).await?;
    state.service.monitors_changed();
    Ok((StatusCode::CREATED, Json(added)))
}

pub(super) async fn remove(
    State(state): State<ApiState>,
    ApiPath(name): ApiPath<String>,
) -> Result<Json<StoredMonitor>, Problem> {
    let removed = state.service.appliance().remove_monitor(&name).await?;
    state.service.monitors_changed();
    Ok(Json(removed))
}

pub(super) async fn enable(
    State(state): State<ApiState>,
    ApiPath(name): ApiPath<String>,
) -> Result<Json<StoredMonitor>, Problem> {
    set_enabled(&state, &name, true).await
}

pub(super) async fn disable(
    State(state): State<ApiState>,
    ApiPath(name): ApiPath<String>,
) -> Result<Json<StoredMonitor>, Problem> {
    set_enabled(&state, &name, false).await
}

async fn set_enabled(state: &ApiState, name: &str, enabled: bool) -> Result<Json<StoredMonitor>, Problem> {
    let stored = state.service.appliance().enable_monitor(name, enabled).await?;
    state.service.monitors_changed();
    Ok(Json(stored))
}

pub(super) async fn series(
    State(state): State<ApiState>,
    ApiPath(name): ApiPath<String>,
    query: MonitorQuery,
) -> Result<Json<MonitorSeries>, Problem> {
    Ok(Json(state.service.appliance().monitor_series(&name, query.range).await?))
}

pub(super) async fn outages(
    State(state): State<ApiState>,
    query: MonitorQuery,
) -> Result<Json<Vec<StoredOutage>>, Problem> {
    Ok(Json(state.service.appliance().outages(query.before, query.limit).await?))
}

/// The API route of the monitor `name`. `action` is empty, or a suffix such as `/enable`.
pub(crate) fn monitor_route(name: &str, action: &str) -> String {
    format!("/monitors/{}{action}", encoded(name))
}

/// The API route of the time series that the monitor `name` measured in `range`.
pub(crate) fn series_route(name: &str, range: SeriesRange) -> String {
    let time = |key: &str, time: Option<Timestamp>| time.map(|time| format!("{key}={}", encoded(&time.to_string())));
    let step = range.step_s.map(|seconds| format!("step={seconds}s"));
    let query = [time("from", range.from), time("to", range.to), step];
    let query = query.into_iter().flatten().collect::<Vec<_>>().join("&");
    monitor_route(name, &format!("/series?{query}"))
}

/// The API route that lists the latest outages, at most `limit` of them.
pub(crate) fn outages_route(limit: u32) -> String {
    format!("/outages?limit={}", limit.clamp(1, 1000))
}

/// The query parameters of a time series (`from`, `to`, `step`) and of a list of outages or messages (`limit`,
/// `before`).
#[derive(Debug)]
pub(super) struct MonitorQuery {
    range: SeriesRange,
    pub(super) limit: u32,
    pub(super) before: Option<Timestamp>,
}

impl<S: Send + Sync> FromRequestParts<S> for MonitorQuery {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let RawQuery(query) = RawQuery::from_request_parts(parts, state).await.unwrap_or(RawQuery(None));
        let is_series = parts.uri.path().ends_with("/series");
        let known: &[&str] = if is_series { &["from", "to", "step"] } else { &["limit", "before"] };
        Self::read(query.as_deref().unwrap_or_default(), known)
            .map_err(|because| Problem::invalid(StatusCode::BAD_REQUEST, &because))
    }
}

impl MonitorQuery {
    fn read(query: &str, known: &[&str]) -> Result<Self, String> {
        let mut read = Self { range: SeriesRange::default(), limit: 20, before: None };
        for part in query.split('&').filter(|part| !part.is_empty()) {
            let (key, value) = part.split_once('=').unwrap_or((part, ""));
            if !known.contains(&key) {
                return Err(format!("unknown parameter {key:?}; valid: {}", known.join(", ")));
            }
            let value =
                decoded(value).ok_or_else(|| format!("the value of {key} is not valid percent-encoded UTF-8"))?;
            match key {
                "from" => read.range.from = Some(time(key, &value)?),
                "to" => read.range.to = Some(time(key, &value)?),
                "before" => read.before = Some(time(key, &value)?),
                "step" => read.range.step_s = Some(step(&value)?),
                _ => {
                    let limit = value.parse().ok().filter(|limit| (1..=1000).contains(limit));
                    read.limit = limit.ok_or("limit must be a number from 1 to 1000")?;
                }
            }
        }
        Ok(read)
    }
}

fn time(key: &str, value: &str) -> Result<Timestamp, String> {
    value.parse().map_err(|_| format!("{key} must be a time such as 2026-11-29T16:00:00Z"))
}

fn step(value: &str) -> Result<i64, String> {
    let valid = "step must be a duration from 1 minute to 366 days, such as 5m, 1h or 24h";
    let seconds = quantity::parse_duration(value).map_err(|_| valid)?.as_secs();
    i64::try_from(seconds).ok().filter(|seconds| (60..=366 * 86_400).contains(seconds)).ok_or_else(|| valid.to_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ALL: [&str; 5] = ["from", "to", "step", "limit", "before"];

    #[test]
    fn a_range_is_read_as_its_route_writes_it() {
        let at = |second: i64| Some(Timestamp::from_second(1_800_000_000 + second).unwrap());
        let range = SeriesRange { from: at(0), to: at(7), step_s: Some(3_600) };
        let route = series_route("a b", range);
        let (path, query) = route.split_once('?').unwrap();
        assert_eq!(path, "/monitors/a%20b/series");
        assert_eq!(MonitorQuery::read(query, &ALL).unwrap().range, range);
        for wrong in ["step=59s", "step=x", "from=yesterday", "limit=0", "limit=1001", "colour=red", "from=%zz"] {
            assert!(MonitorQuery::read(wrong, &ALL).is_err(), "{wrong}");
        }
        assert!(MonitorQuery::read("limit=3", &["from"]).is_err(), "a parameter of another route");
    }

    proptest! {
        #[test]
        fn no_query_panics(query in "[a-z%0-9&=:TZ-]{0,60}") {
            drop(MonitorQuery::read(&query, &ALL));
        }
    }
}
