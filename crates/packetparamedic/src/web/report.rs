//! The API route of the report on the line, and its query parameters.

use axum::extract::{FromRequestParts, RawQuery, State};
use axum::http::header::{CONTENT_DISPOSITION, CONTENT_TYPE};
use axum::http::request::Parts;
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use paramedic_appliance::app::{Appliance, ReportRequest};
use paramedic_report::line_report::{Contract, ContractRate, LineReport};
use paramedic_report::quantity;
use tokio::sync::Semaphore;

use super::ApiState;
use super::extract::{decoded, encoded};
use super::problem::Problem;
use crate::report_file::{ReportFormat, report_text};

/// The names of the query parameters, for error messages.
const VALID: &str =
    "since, until, zone, format, redact, plan_down, plan_up, normal_down, normal_up, minimum_down, minimum_up";

/// Limits reports to one at a time: each reads many results, and could disturb running measurements.
static REPORTS: Semaphore = Semaphore::const_new(1);

/// The query parameters of a request for a report.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct ReportQuery {
    /// The start of the report's period; `None` for 30 days before its end.
    pub(crate) since: Option<ReportTime>,
    /// The end of the report's period; `None` for now.
    pub(crate) until: Option<ReportTime>,
    /// The name of the time zone for local times, such as `Europe/Berlin`; `None` for the zone of this host.
    pub(crate) zone: Option<String>,
    /// The format of the report.
    pub(crate) format: ReportFormat,
    /// Whether names, addresses and Endpoint IDs are left out of the report.
    pub(crate) is_redacted: bool,
    /// The contract rates to use instead of the stored plan. Without a promised rate, the report uses the stored plan.
    pub(crate) plan: PlanRates,
}

/// The start or the end of a report's period: a point in time, or a day. A period that ends with a day includes that
/// day.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReportTime {
    /// A point in time.
    At(Timestamp),
    /// A day in the time zone of the report.
    Day(Date),
}

/// The rates of a contract, in bits per second. In each pair, the first rate is of the download, the second of the
/// upload.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct PlanRates {
    /// The highest rates that the contract names: the advertised rates.
    pub(crate) promised: [Option<u64>; 2],
    /// The rates that are usually available, according to the contract.
    pub(crate) normal: [Option<u64>; 2],
    /// The rates that the contract guarantees at all times.
    pub(crate) minimum: [Option<u64>; 2],
}

impl PlanRates {
    /// Builds the contract from these rates; `None` if no promised rate is given.
    fn contract(&self) -> Result<Option<Contract>, String> {
        let [download, upload] = [0, 1].map(|at| self.rate(at));
        let contract = Contract { download: download?, upload: upload? };
        Ok((contract != Contract::default()).then_some(contract))
    }

    fn rate(&self, at: usize) -> Result<Option<ContractRate>, String> {
        let of = |rates: [Option<u64>; 2]| rates.get(at).copied().flatten();
        let (promised, normal_bps, minimum_bps) = (of(self.promised), of(self.normal), of(self.minimum));
        let Some(promised_bps) = promised else {
            let is_alone = normal_bps.is_some() || minimum_bps.is_some();
            return if is_alone { Err("a normal or minimum rate needs a promised rate".to_owned()) } else { Ok(None) };
        };
        let normal = normal_bps.unwrap_or(promised_bps);
        if promised_bps == 0 || normal > promised_bps || minimum_bps.is_some_and(|minimum| minimum > normal) {
            return Err("the rates must satisfy: minimum <= normal <= promised, and promised > 0".to_owned());
        }
        Ok(Some(ContractRate { promised_bps, normal_bps, minimum_bps }))
    }
}

impl ReportTime {
    fn read(text: &str) -> Option<Self> {
        text.parse().map(Self::At).or_else(|_| text.parse().map(Self::Day)).ok()
    }

    /// Returns the time at which a period begins, or ends if `is_end` is true. A period that ends with a day includes
    /// that day. Returns `None` if the day is out of range.
    fn resolve(self, zone: &TimeZone, is_end: bool) -> Option<Timestamp> {
        let date = match self {
            Self::At(at) => return Some(at),
            Self::Day(date) if is_end => date.tomorrow().ok()?,
            Self::Day(date) => date,
        };
        zone.to_zoned(date.at(0, 0, 0, 0)).map(|zoned| zoned.timestamp()).ok()
    }
}

impl ReportQuery {
    pub(super) fn read(query: &str) -> Result<Self, String> {
        let mut read = Self::default();
        for part in query.split('&').filter(|part| !part.is_empty()) {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            let text = decoded(&value.replace('+', " "))
                .ok_or_else(|| format!("the value of {name} is not valid percent-encoded UTF-8"))?;
            read.set(name, text.trim())?;
        }
        Ok(read)
    }

    /// Sets a parameter. An empty value, such as that of an empty form field, leaves the parameter unset.
    fn set(&mut self, name: &str, text: &str) -> Result<(), String> {
        let time = || ReportTime::read(text).ok_or_else(|| format!("{name} must be a day or time such as 2026-01-31"));
        let rate = || match quantity::parse_rate(text) {
            Ok(bps) => Ok(Some(bps)),
            Err(error) => Err(format!("{name} must be a rate such as 100M: {error}")),
        };
        match name {
            _ if text.is_empty() => {}
            "since" => self.since = Some(time()?),
            "until" => self.until = Some(time()?),
            "zone" => self.zone = Some(text.to_owned()),
            "format" => {
                self.format = ReportFormat::from_word(text).ok_or("format must be html or csv")?;
            }
            "redact" => self.is_redacted = ["true", "on", "1"].contains(&text),
            "plan_down" => self.plan.promised[0] = rate()?,
            "plan_up" => self.plan.promised[1] = rate()?,
            "normal_down" => self.plan.normal[0] = rate()?,
            "normal_up" => self.plan.normal[1] = rate()?,
            "minimum_down" => self.plan.minimum[0] = rate()?,
            "minimum_up" => self.plan.minimum[1] = rate()?,
            _ => {
                let name = name.chars().take(40).collect::<String>();
                return Err(format!("unknown parameter {name:?}; valid: {VALID}"));
            }
        }
        Ok(())
    }

    /// Formats the query parameters as [`ReportQuery::read`] reads them.
    pub(crate) fn parameters(&self) -> String {
        let time = |time: Option<ReportTime>| {
            time.map(|time| match time {
                ReportTime::At(at) => at.to_string(),
                ReportTime::Day(date) => date.to_string(),
            })
        };
        let rate = |bps: Option<u64>| bps.map(|bps| bps.to_string());
        let PlanRates { promised, normal, minimum } = self.plan;
        let all = [
            ("since", time(self.since)),
            ("until", time(self.until)),
            ("zone", self.zone.clone()),
            ("redact", self.is_redacted.then(|| "true".to_owned())),
            ("plan_down", rate(promised[0])),
            ("plan_up", rate(promised[1])),
            ("normal_down", rate(normal[0])),
            ("normal_up", rate(normal[1])),
            ("minimum_down", rate(minimum[0])),
            ("minimum_up", rate(minimum[1])),
        ];
        let mut parameters = format!("format={}", self.format.as_str());
        for (name, value) in all {
            if let Some(value) = value {
                parameters += &format!("&{name}={}", encoded(&value));
            }
        }
        parameters
    }

    /// Converts the query to the request for a report.
    pub(crate) fn request(&self) -> Result<ReportRequest, String> {
        let zone = match &self.zone {
            Some(name) => TimeZone::get(name).map_err(|_| "zone must be a name such as Europe/Berlin".to_owned())?,
            None => TimeZone::system(),
        };
        let time = |time: Option<ReportTime>, is_end| match time {
            None => Ok(None),
            Some(time) => time.resolve(&zone, is_end).map(Some).ok_or("the day is out of range"),
        };
        Ok(ReportRequest {
            since: time(self.since, false)?,
            until: time(self.until, true)?,
            plan: self.plan.contract()?,
            is_redacted: self.is_redacted,
            zone: Some(zone),
        })
    }
}

/// The API route of the report that `query` requests.
pub(crate) fn report_route(query: &ReportQuery) -> String {
    format!("/report?{}", query.parameters())
}

impl<S: Send + Sync> FromRequestParts<S> for ReportQuery {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let RawQuery(query) = RawQuery::from_request_parts(parts, state).await.unwrap_or(RawQuery(None));
        Self::read(query.as_deref().unwrap_or_default()).map_err(|because| invalid(&because))
    }
}

/// Answers with the report as a file to download.
pub(super) async fn show(State(state): State<ApiState>, query: ReportQuery) -> Result<Response, Problem> {
    let format = query.format;
    let report = line_report(state.service.appliance(), &query).await?;
    let name = format!("line-report-{}.{}", report.made_at.strftime("%Y-%m-%d"), format.as_str());
    let text = report_text(&report, format).map_err(|error| unmade(&error))?;
    let disposition = HeaderValue::from_str(&format!("attachment; filename=\"{name}\""));
    let disposition = disposition.unwrap_or(HeaderValue::from_static("attachment"));
    let kind = HeaderValue::from_static(format.media_type());
    Ok(([(CONTENT_TYPE, kind), (CONTENT_DISPOSITION, disposition)], text).into_response())
}

/// Makes the report that `query` requests.
pub(super) async fn line_report(appliance: &Appliance, query: &ReportQuery) -> Result<LineReport, Problem> {
    // The semaphore is never closed, so this does not fail.
    let _turn = REPORTS.acquire().await.ok();
    let request = query.request().map_err(|because| invalid(&because))?;
    Ok(appliance.line_report(request).await?)
}

/// Logs that the template of a report cannot be rendered, and returns the problem for the answer.
pub(super) fn unmade(error: &askama::Error) -> Problem {
    tracing::error!(%error, "a report cannot be made");
    Problem::invalid(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string())
}

fn invalid(because: &str) -> Problem {
    Problem::invalid(StatusCode::BAD_REQUEST, because)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn parameters_are_read_as_they_are_written() {
        let query = ReportQuery {
            since: ReportTime::read("2026-01-31"),
            until: ReportTime::read("2026-02-28T12:00:00Z"),
            zone: Some("Europe/Berlin".to_owned()),
            format: ReportFormat::Csv,
            is_redacted: true,
            plan: PlanRates {
                promised: [Some(250_000_000), None],
                normal: [Some(200_000_000), None],
                minimum: [None; 2],
            },
        };
        for query in [query, ReportQuery::default()] {
            assert_eq!(ReportQuery::read(&query.parameters()), Ok(query));
        }
        assert_eq!(ReportQuery::read("since=&until=&zone=&plan_down="), Ok(ReportQuery::default()));
        for wrong in ["since=yesterday", "format=pdf", "plan_down=fast", "colour=red", "zone=%zz"] {
            assert!(ReportQuery::read(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn days_are_those_of_the_zone_and_the_last_one_is_included() {
        let query = ReportQuery::read("since=2026-06-01&until=2026-06-02&zone=Europe/Berlin").unwrap();
        let request = query.request().unwrap();
        assert_eq!(request.since.unwrap().to_string(), "2026-05-31T22:00:00Z");
        assert_eq!(request.until.unwrap().to_string(), "2026-06-02T22:00:00Z");
        assert!(ReportQuery::read("zone=Mars").unwrap().request().is_err());
    }

    #[test]
    fn a_contract_that_contradicts_itself_is_refused() {
        let plan = |text: &str| ReportQuery::read(text).unwrap().request().map(|request| request.plan);
        assert_eq!(plan(""), Ok(None));
        assert_eq!(
            plan("plan_down=100M&normal_down=80M").unwrap().unwrap().download.unwrap().normal_bps,
            Some(80_000_000)
        );
        for wrong in
            ["normal_down=80M", "plan_down=0", "plan_down=1M&normal_down=2M", "plan_up=9M&normal_up=5M&minimum_up=6M"]
        {
            assert!(plan(wrong).is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn no_query_panics(query in "[a-z_%0-9&=:TZ+-]{0,80}") {
            if let Ok(read) = ReportQuery::read(&query) {
                drop(read.request());
            }
        }
    }
}
