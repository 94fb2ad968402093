//! Gathers the runs, the hours of the monitors and the outages of a period for the report on the line.

#![expect(clippy::disallowed_methods, reason = "the shell that reads the clock for the report")]

use std::time::Duration;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use paramedic_link::test_spec::Direction;
use paramedic_report::line_report::{
    Contract, ContractRate, LineReport, MonitorHour, OutageExtent, ReportInput, ReportOutage, ReportRun,
};

use super::Appliance;
use crate::error::ApplianceError;
use crate::monitor::MonitorTarget;
use crate::monitor::outage::OutageScope;
use crate::monitor::series::{self, HOUR, Resolution};
use crate::plan::{Plan, PromisedRate};
use crate::store::{ApplianceStore, RunOrder, RunPosition, RunQuery, StoredOutage};

/// The maximum number of runs in a report.
const MAX_RUNS: usize = 20_000;
/// The number of result documents that are read at once: a few megabytes at most.
const PAGE: u32 = 64;
/// The number of hourly rows of a monitor that are read at once. It is limited because each row has a large histogram.
const HOURS_AT_ONCE: i64 = 7 * 24;
/// The maximum number of hourly rows of a monitor in a report. The store keeps such rows for 400 days; one more day is
/// a margin.
const KEPT_HOURS: i64 = 401 * 24;
/// The number of outages that are read from the store at once.
const OUTAGE_PAGE: u32 = 500;
/// The length of the reported period if the request names no start.
const USUAL_PERIOD: Duration = Duration::from_secs(30 * 86_400);

/// The parameters of a report on the line.
#[derive(Clone, Debug, Default)]
pub struct ReportRequest {
    /// The start of the reported period; `None` for 30 days before its end.
    pub since: Option<Timestamp>,
    /// The end of the reported period; `None` for now.
    pub until: Option<Timestamp>,
    /// The time zone of the local times in the report; `None` for the zone of this host.
    pub zone: Option<TimeZone>,
    /// The contract to compare the measurements with; `None` for the plan of this appliance.
    pub plan: Option<Contract>,
    /// Whether the report leaves out names, addresses and Endpoint IDs.
    pub is_redacted: bool,
}

impl Appliance {
    /// Makes the report on the line for the requested period.
    pub async fn line_report(&self, request: ReportRequest) -> Result<LineReport, ApplianceError> {
        let made_at = Timestamp::now();
        // Ends the period now at the latest, because the future has not been measured.
        let until = request.until.unwrap_or(made_at).min(made_at);
        let since = request.since.unwrap_or_else(|| until.checked_sub(USUAL_PERIOD).unwrap_or(Timestamp::MIN));
        if since >= until {
            return Err(ApplianceError::EmptyPeriod { since, until });
        }
        let plan = match request.plan {
            Some(contract) => Some(contract),
            None => self.plan().await?.map(|stored| contract(&stored.plan)),
        };
        let store = self.reading_store().await?;
        let (runs, unreadable) = runs(store, since, until).await?;
        let report = ReportInput {
            since,
            until,
            made_at,
            zone: request.zone.unwrap_or_else(TimeZone::system),
            plan,
            runs,
            unreadable,
            hours: hours(store, since, until).await?,
            outages: outages(store, since, until).await?,
            is_redacted: request.is_redacted,
        };
        Ok(LineReport::of(report))
    }
}

fn contract(plan: &Plan) -> Contract {
    let rate = |direction| {
        let PromisedRate { promised_bps, normal_bps, minimum_bps } = plan.of(direction);
        Some(ContractRate { promised_bps, normal_bps, minimum_bps })
    };
    Contract { download: rate(Direction::Download), upload: rate(Direction::Upload) }
}

/// The readable runs of the period, and the number of runs that cannot be read.
async fn runs(
    store: &ApplianceStore,
    since: Timestamp,
    until: Timestamp,
) -> Result<(Vec<ReportRun>, usize), ApplianceError> {
    let order = RunOrder::OldestFirst;
    let query = RunQuery { since: Some(since), until: Some(until), order, ..RunQuery::default() };
    let (mut runs, mut unreadable, mut last) = (Vec::new(), 0, None::<RunPosition>);
    loop {
        let page = store.documents(&query, last.as_ref(), PAGE).await?;
        let Some((position, _)) = page.last() else { return Ok((runs, unreadable)) };
        last = Some(position.clone());
        for (_, saved) in &page {
            match saved.document() {
                Ok(document) => runs.push(ReportRun::of(&document)),
                Err(error) => {
                    tracing::warn!(run = %saved.id, %error, "a saved result cannot be read");
                    unreadable += 1;
                }
            }
        }
        if runs.len() > MAX_RUNS {
            return Err(ApplianceError::PeriodTooLong { most: MAX_RUNS });
        }
        // Lets tests and monitors run between two pages.
        tokio::task::yield_now().await;
    }
}

async fn hours(store: &ApplianceStore, since: Timestamp, until: Timestamp) -> Result<Vec<MonitorHour>, ApplianceError> {
    let hour_of = |time: Timestamp| time.as_second().div_euclid(60 * HOUR);
    let (first, end) = (hour_of(since).max(0), hour_of(until) + 1);
    let mut hours = Vec::new();
    for stored in store.monitors().await? {
        let mut from = first.max(end - KEPT_HOURS);
        while from < end {
            let to = (from + HOURS_AT_ONCE).min(end);
            let rows = store.monitor_rows(stored.number, Resolution::Hours, from * HOUR, to * HOUR).await?;
            hours.extend(series::points(rows, HOUR).into_iter().map(|point| MonitorHour {
                monitor: stored.monitor.name.clone(),
                target: stored.monitor.target.to_string(),
                is_gateway: stored.monitor.target == MonitorTarget::Gateway,
                begins_at: Timestamp::from_second(point.at_s).unwrap_or(since),
                count: point.count,
                lost: point.lost,
                p50_us: point.p50_us,
                p95_us: point.p95_us,
            }));
            from = to;
        }
    }
    Ok(hours)
}

/// The outages that overlap the period, oldest first. Reading stops at the first outage that ended before the period,
/// because outages never overlap each other.
async fn outages(
    store: &ApplianceStore,
    since: Timestamp,
    until: Timestamp,
) -> Result<Vec<ReportOutage>, ApplianceError> {
    let (mut found, mut before) = (Vec::new(), until);
    loop {
        let page = store.outages(Some(before), OUTAGE_PAGE).await?;
        let is_last = page.len() < OUTAGE_PAGE as usize;
        for outage in page {
            before = before.min(outage.began_at);
            if outage.began_at < since && outage.ended_at.is_some_and(|ended_at| ended_at <= since) {
                found.reverse();
                return Ok(found);
            }
            found.push(reported(outage));
        }
        if is_last {
            found.reverse();
            return Ok(found);
        }
    }
}

fn reported(outage: StoredOutage) -> ReportOutage {
    let extent = match outage.scope {
        OutageScope::Everything => OutageExtent::Everything,
        OutageScope::BeyondGateway => OutageExtent::BeyondGateway,
        OutageScope::Target => OutageExtent::Target,
        OutageScope::Gateway => OutageExtent::Gateway,
        OutageScope::Unknown => OutageExtent::Unknown,
    };
    ReportOutage {
        began_at: outage.began_at,
        ended_at: outage.ended_at,
        is_end_known: outage.end_known,
        extent,
        failed: outage.failed,
        reachable: outage.reachable,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use paramedic_report::document::{ResultDocument, example};
    use uuid::Uuid;

    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[tokio::test]
    async fn a_report_has_the_runs_and_outages_of_its_period() {
        let folder = tempfile::tempdir().unwrap();
        let store = ApplianceStore::open(folder.path()).await.unwrap();
        let (since, until) = (at("2026-01-10T00:00:00Z"), at("2026-01-20T00:00:00Z"));
        for started_at in
            ["2026-01-09T23:59:59Z", "2026-01-10T00:00:00Z", "2026-01-19T12:00:00Z", "2026-01-20T00:00:00Z"]
        {
            let run = ResultDocument { id: Uuid::now_v7(), started_at: at(started_at), ..example::full() };
            store.save_run(&run).await.unwrap();
        }
        let (found, unreadable) = runs(&store, since, until).await.unwrap();
        assert_eq!((found.len(), unreadable, found[0].started_at), (2, 0, since));
        let outage = |began: &str, ended: Option<&str>| StoredOutage {
            id: Uuid::now_v7(),
            began_at: at(began),
            ended_at: ended.map(at),
            end_known: true,
            scope: OutageScope::BeyondGateway,
            failed: BTreeSet::new(),
            reachable: BTreeSet::new(),
        };
        for stored in [
            outage("2026-01-01T00:00:00Z", Some("2026-01-02T00:00:00Z")),
            outage("2026-01-09T00:00:00Z", Some("2026-01-10T01:00:00Z")),
            outage("2026-01-15T00:00:00Z", Some("2026-01-15T01:00:00Z")),
            outage("2026-01-19T00:00:00Z", None),
            outage("2026-01-20T00:00:00Z", None),
        ] {
            store.save_outage("PP", &stored).await.unwrap();
        }
        let found = outages(&store, since, until).await.unwrap();
        let begins = found.iter().map(|outage| outage.began_at.to_string()).collect::<Vec<_>>();
        assert_eq!(begins, ["2026-01-09T00:00:00Z", "2026-01-15T00:00:00Z", "2026-01-19T00:00:00Z"]);
    }

    #[tokio::test]
    async fn a_period_that_is_empty_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let appliance = Appliance::in_folder(folder.path().to_owned(), None, false, |_| unreachable!());
        let day = at("2026-01-10T00:00:00Z");
        let request = ReportRequest { since: Some(day), until: Some(day), ..ReportRequest::default() };
        assert!(matches!(appliance.line_report(request).await, Err(ApplianceError::EmptyPeriod { .. })));
        let report = appliance.line_report(ReportRequest::default()).await.unwrap();
        assert!(report.is_empty());
        assert_eq!(report.until.duration_since(report.since).as_hours(), 720);
    }
}
