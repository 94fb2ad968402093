//! The API routes that export a table: the outages, the runs of schedules, what a monitor measured.

use axum::extract::{FromRequestParts, RawQuery, State};
use axum::http::StatusCode;
use axum::http::request::Parts;
use jiff::Timestamp;
use paramedic_appliance::ApplianceError;
use paramedic_appliance::app::Appliance;
use paramedic_appliance::monitor::series::Resolution;
use paramedic_appliance::store::{TableExport, TableFormat, TimeRange};

use super::ApiState;
use super::chunks::{self, LinesAnswer};
use super::extract::{ApiPath, decoded, encoded};
use super::problem::Problem;

/// The query parameters that every export has.
const ALWAYS: [&str; 3] = ["format", "since", "until"];

/// The table that a request exports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum RequestedTable {
    /// All outages of the device.
    Outages,
    /// The runs of the schedule with the name `schedule`; of all schedules if `schedule` is `None`.
    ScheduleRuns { schedule: Option<String> },
    /// What the monitor `name` measured. `resolution` is the time that each row covers.
    Monitor { name: String, resolution: Resolution },
}

/// A request for an export: the table, the period of its rows, and the format.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TableRequest {
    pub(crate) table: RequestedTable,
    pub(crate) range: TimeRange,
    pub(crate) format: TableFormat,
}

impl TableRequest {
    /// The API route of this request, for a client of the service.
    pub(crate) fn route(&self) -> String {
        let (path, more) = match &self.table {
            RequestedTable::Outages => ("/outages".to_owned(), String::new()),
            RequestedTable::ScheduleRuns { schedule } => {
                let more = schedule.as_deref().map(|name| format!("&schedule={}", encoded(name)));
                ("/schedule-runs".to_owned(), more.unwrap_or_default())
            }
            RequestedTable::Monitor { name, resolution } => {
                (format!("/monitors/{}", encoded(name)), format!("&resolution={}", resolution.as_str()))
            }
        };
        let time = |name: &str, time: Option<Timestamp>| {
            time.map(|time| format!("&{name}={}", encoded(&time.to_string()))).unwrap_or_default()
        };
        let TimeRange { since, until } = self.range;
        let times = time("since", since) + &time("until", until);
        format!("{path}/export?format={}{more}{times}", self.format.as_str())
    }

    /// Begins the export of the table from the store of `appliance`.
    pub(crate) async fn open(&self, appliance: &Appliance) -> Result<TableExport, ApplianceError> {
        let (range, format) = (self.range, self.format);
        match &self.table {
            RequestedTable::Outages => appliance.export_outages(range, format).await,
            RequestedTable::ScheduleRuns { schedule } => {
                appliance.export_schedule_runs(schedule.as_deref(), range, format).await
            }
            RequestedTable::Monitor { name, resolution } => {
                appliance.export_monitor(name, *resolution, range, format).await
            }
        }
    }

    async fn answer(self, state: &ApiState) -> Result<LinesAnswer, Problem> {
        let export = self.open(state.service.appliance()).await?;
        let kind = if self.format == TableFormat::Csv { "text/csv" } else { "application/x-ndjson" };
        chunks::of_lines(export, kind).await
    }
}

/// The query parameters of a request for an export.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct TableQuery {
    range: TimeRange,
    format: TableFormat,
    schedule: Option<String>,
    resolution: Option<Resolution>,
}

impl<S: Send + Sync> FromRequestParts<S> for TableQuery {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let RawQuery(query) = RawQuery::from_request_parts(parts, state).await.unwrap_or(RawQuery(None));
        let path = parts.uri.path();
        let own: &[&str] = match path {
            _ if path.contains("/monitors/") => &["resolution"],
            _ if path.contains("/schedule-runs/") => &["schedule"],
            _ => &[],
        };
        Self::read(query.as_deref().unwrap_or_default(), own)
            .map_err(|because| Problem::invalid(StatusCode::BAD_REQUEST, &because))
    }
}

impl TableQuery {
    /// Reads the parameters of `query`. `own` are the parameters of the table in addition to [`ALWAYS`].
    fn read(query: &str, own: &[&str]) -> Result<Self, String> {
        let mut read = Self::default();
        for part in query.split('&').filter(|part| !part.is_empty()) {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            if !ALWAYS.contains(&name) && !own.contains(&name) {
                return Err(format!("unknown parameter {name:?}; valid: {}", [&ALWAYS, own].concat().join(", ")));
            }
            let value =
                decoded(value).ok_or_else(|| format!("the value of {name} is not valid percent-encoded UTF-8"))?;
            let time = || value.parse().map_err(|_| format!("{name} must be a time such as 2026-01-31T12:00:00Z"));
            match name {
                "since" => read.range.since = Some(time()?),
                "until" => read.range.until = Some(time()?),
                "format" => read.format = TableFormat::from_word(&value).ok_or("format must be jsonl or csv")?,
                "resolution" => {
                    let resolution =
                        Resolution::from_word(&value).ok_or("resolution must be minutes, hours or days")?;
                    read.resolution = Some(resolution);
                }
                _ => read.schedule = Some(value),
            }
        }
        Ok(read)
    }

    fn of(self, table: RequestedTable) -> TableRequest {
        TableRequest { table, range: self.range, format: self.format }
    }
}

pub(super) async fn outages(State(state): State<ApiState>, query: TableQuery) -> Result<LinesAnswer, Problem> {
    query.of(RequestedTable::Outages).answer(&state).await
}

pub(super) async fn schedule_runs(
    State(state): State<ApiState>,
    mut query: TableQuery,
) -> Result<LinesAnswer, Problem> {
    let schedule = query.schedule.take();
    query.of(RequestedTable::ScheduleRuns { schedule }).answer(&state).await
}

pub(super) async fn monitor(
    State(state): State<ApiState>,
    ApiPath(name): ApiPath<String>,
    query: TableQuery,
) -> Result<LinesAnswer, Problem> {
    let resolution = query.resolution.unwrap_or(Resolution::Minutes);
    query.of(RequestedTable::Monitor { name, resolution }).answer(&state).await
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_route_of_an_export_is_read_back() {
        let range =
            TimeRange { since: "2026-01-31T12:00:00Z".parse().ok(), until: "2026-02-01T00:00:00.123456Z".parse().ok() };
        let schedule_runs =
            |schedule: Option<&str>| RequestedTable::ScheduleRuns { schedule: schedule.map(str::to_owned) };
        let monitor = RequestedTable::Monitor { name: "café & bar".to_owned(), resolution: Resolution::Days };
        for table in [RequestedTable::Outages, schedule_runs(None), schedule_runs(Some("a=b&c")), monitor] {
            for (range, format) in [(range, TableFormat::Csv), (TimeRange::default(), TableFormat::JsonLines)] {
                let request = TableRequest { table: table.clone(), range, format };
                let route = request.route();
                let (path, query) = route.split_once('?').unwrap();
                let read = TableQuery::read(query, &["schedule", "resolution"]).unwrap();
                let table = match path {
                    "/outages/export" => RequestedTable::Outages,
                    "/schedule-runs/export" => RequestedTable::ScheduleRuns { schedule: read.schedule.clone() },
                    _ => {
                        let name = path.strip_prefix("/monitors/").and_then(|path| path.strip_suffix("/export"));
                        let resolution = read.resolution.unwrap();
                        RequestedTable::Monitor { name: decoded(name.unwrap()).unwrap(), resolution }
                    }
                };
                assert_eq!(read.of(table), request, "{route}");
            }
        }
    }

    #[test]
    fn other_parameters_are_refused() {
        for (wrong, own) in [
            ("since=yesterday", &[][..]),
            ("format=xml", &[]),
            ("format=summaries", &[]),
            ("resolution=weeks", &["resolution"]),
            ("resolution=days", &["schedule"]),
            ("schedule=a", &[]),
            ("limit=3", &["schedule"]),
            ("until=%zz", &[]),
        ] {
            assert!(TableQuery::read(wrong, own).is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn no_query_panics(query in "[a-z%0-9&=:TZ-]{0,60}") {
            drop(TableQuery::read(&query, &["schedule", "resolution"]));
        }
    }
}
