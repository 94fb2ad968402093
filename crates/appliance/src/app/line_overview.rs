//! An overview of the line: the verdict, the last result, the last day of the monitors, the data used in this month.
//! Reads the store and the clock for it.

#![expect(clippy::disallowed_methods, reason = "the shell that reads the clock for the overview")]

use jiff::Timestamp;
use jiff::tz::TimeZone;
use paramedic_link::test_spec::{Direction, Load};
use paramedic_report::document::ResultDocument;
use paramedic_report::summary::RunSummary;

use super::monitors::{MonitorActivity, MonitorOverview, minute_of};
use super::service::Service;
use crate::alerts::AlertMetric;
use crate::error::ApplianceError;
use crate::line_verdict::{
    self, FailedTest, LineObservations, LineVerdict, MeasuredSpeed, MonitorLoss, OpenAlert, OutageSeen, ResultSeen,
};
use crate::monitor::MonitorTarget;
use crate::monitor::series::DAY;
use crate::plan::Plan;
use crate::schedule::budget;
use crate::store::{AlertRecord, ApplianceStore, LossSum, RunQuery, StoredAlert, StoredOutage, StoredPlan};

/// The length of one step of [`MonitorDay::steps`], in minutes.
pub const DAY_STEP: i64 = 15;
/// The number of latest runs that are searched for a run with measurements. An older run says little about the present.
const LATEST_RUNS: u32 = 50;
/// The number of latest outages that are searched for those of the last day.
const LATEST_OUTAGES: u32 = 200;
/// The maximum number of open alerts that the verdict counts.
const MOST_ALERTS: u32 = 50;

/// An overview of the line at one moment.
pub struct LineOverview {
    /// When the overview was made.
    pub at: Timestamp,
    /// The verdict on the present state of the line.
    pub verdict: LineVerdict,
    /// The plan of this appliance, with the rates that the contract promises; `None` if no plan is set.
    pub plan: Option<StoredPlan>,
    /// The latest result with measurements; `None` if none of the latest runs has any.
    pub last: Option<ResultDocument>,
    /// The latest failed run, if it is newer than `last`. Interrupted runs do not count as failed.
    pub failure: Option<RunSummary>,
    /// The enabled monitors, each with its probes of the last day.
    pub monitors: Vec<MonitorDay>,
    /// The outages of the last day, newest first.
    pub outages: Vec<StoredOutage>,
    /// The start of the current calendar month, in the time zone of this host.
    pub month: Timestamp,
    /// The payload bytes of all tests since the time `month`.
    pub month_bytes: u64,
}

/// A monitor, and its probes in the last day.
pub struct MonitorDay {
    /// The monitor with its present state.
    pub overview: MonitorOverview,
    /// The start of the first step, in minutes since 1970.
    pub from: i64,
    /// The probes in steps of [`DAY_STEP`] minutes, oldest first. A step without probes is left out.
    pub steps: Vec<LossSum>,
}

impl Service {
    /// Makes an overview of the line as it is now.
    pub async fn line_overview(&self) -> Result<LineOverview, ApplianceError> {
        let now = Timestamp::now();
        let store = self.appliance().reading_store().await?;
        let plan = store.plan().await?;
        let monitors = days(self.monitors().await?, store, now).await?;
        let (last, failure) = latest(store).await?;
        let since = now.checked_sub(jiff::SignedDuration::from_hours(24)).unwrap_or(now);
        let all = store.outages(None, LATEST_OUTAGES).await?;
        let is_of_day = |outage: &StoredOutage| outage.ended_at.is_none_or(|ended| ended >= since);
        let month = budget::month_of(now, &TimeZone::system()).map_or(now, |month| month.from);
        let open = store.alerts(true, None, MOST_ALERTS).await?;
        let verdict = line_verdict::judge(&LineObservations {
            now,
            monitors: monitors.iter().map(|day| loss_of(&day.overview)).collect(),
            outage: all.first().map(outage_seen),
            result: last.as_ref().map(|document| result_seen(document, plan.as_ref().map(|stored| &stored.plan))),
            failure: failure.as_ref().map(failed_test),
            alerts: open.into_iter().filter_map(open_alert).collect(),
        });
        Ok(LineOverview {
            at: now,
            verdict,
            last,
            failure,
            monitors,
            outages: all.into_iter().filter(is_of_day).collect(),
            month,
            month_bytes: store.data_used_since(month).await?,
            plan,
        })
    }
}

/// The enabled monitors, each with its probes of the last day.
async fn days(
    monitors: Vec<MonitorOverview>,
    store: &ApplianceStore,
    now: Timestamp,
) -> Result<Vec<MonitorDay>, ApplianceError> {
    let to = (minute_of(now).div_euclid(DAY_STEP) + 1) * DAY_STEP;
    let from = to - DAY;
    let sums = store.monitor_losses(from, to, DAY_STEP).await?;
    let day = |overview: MonitorOverview| {
        let steps = sums.iter().filter(|sum| sum.number == overview.stored.number).copied().collect();
        MonitorDay { overview, from, steps }
    };
    Ok(monitors.into_iter().filter(|overview| overview.stored.enabled).map(day).collect())
}

/// The latest result with measurements, and the latest failed run that is newer than this result. Interrupted runs do
/// not count as failed.
async fn latest(store: &ApplianceStore) -> Result<(Option<ResultDocument>, Option<RunSummary>), ApplianceError> {
    let runs = store.runs(&RunQuery::default(), None, LATEST_RUNS).await?;
    let is_measured =
        |run: &RunSummary| [run.download_bps, run.upload_bps, run.rtt_idle_us].iter().any(Option::is_some);
    let is_failed = |run: &RunSummary| run.error.as_ref().is_some_and(|error| error.code != "interrupted");
    let failure = runs.iter().take_while(|run| !is_measured(run)).find(|run| is_failed(run)).cloned();
    let document = match runs.iter().find(|run| is_measured(run)) {
        Some(run) => Some(store.run(&run.id.to_string()).await?.document()?),
        None => None,
    };
    Ok((document, failure))
}

fn loss_of(overview: &MonitorOverview) -> MonitorLoss {
    let activity = overview.condition.as_ref().map(|condition| condition.activity);
    MonitorLoss {
        name: overview.stored.monitor.name.clone(),
        is_gateway: overview.stored.monitor.target == MonitorTarget::Gateway,
        is_measuring: matches!(activity, Some(MonitorActivity::Running | MonitorActivity::Unreachable)),
        count: overview.recent.count,
        lost: overview.recent.lost,
    }
}

fn outage_seen(stored: &StoredOutage) -> OutageSeen {
    OutageSeen {
        began: stored.began_at,
        ended: stored.ended_at,
        scope: stored.scope,
        failed: stored.failed.iter().cloned().collect(),
    }
}

/// Converts an open alert for the verdict; `None` for an alert about an outage, because the verdict gets outages
/// separately.
fn open_alert(alert: StoredAlert) -> Option<OpenAlert> {
    let AlertRecord { title, finding, .. } = alert.opening;
    (finding.metric != AlertMetric::Outage).then_some(OpenAlert { title, since: finding.since })
}

fn failed_test(run: &RunSummary) -> FailedTest {
    let what = run.error.as_ref().map(|error| error.what.clone()).unwrap_or_default();
    FailedTest { at: run.started_at, what }
}

fn result_seen(document: &ResultDocument, plan: Option<&Plan>) -> ResultSeen {
    let speed = |(load, direction): (Load, Direction)| {
        let measured = document.measured(load, direction)?;
        Some(MeasuredSpeed {
            direction,
            bps: measured.goodput_bps,
            promised: plan.map(|plan| plan.of(direction)),
            limit: measured.limited_by.as_ref().map(|limit| limit.cause),
        })
    };
    let single = [(Load::Download, Direction::Download), (Load::Upload, Direction::Upload)];
    let worst = document.bufferbloat.iter().max_by(|(_, a), (_, b)| a.increase_ms.total_cmp(&b.increase_ms));
    ResultSeen {
        at: document.started_at,
        speeds: single.into_iter().filter_map(speed).collect(),
        worst_load: worst.map(|(load, bloat)| (load, bloat.grade, bloat.increase_ms)),
    }
}
