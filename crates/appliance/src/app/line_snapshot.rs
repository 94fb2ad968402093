//! A snapshot of the line and the service, for the metrics and for Home Assistant. Reads the store and the clock for
//! it.

#![expect(clippy::disallowed_methods, reason = "the shell that reads the clock for the snapshot")]

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use paramedic_host::version;

use super::monitors::{MonitorActivity, MonitorOverview};
use super::service::{PlannedSchedule, Service, ServiceStatus};
use crate::error::ApplianceError;
use crate::export::snapshot::{LatestResult, LineSnapshot, MonitorSnapshot, ScheduleSnapshot, StoredSnapshot};
use crate::monitor::ProbeTotals;
use crate::schedule::budget;
use crate::store::{ApplianceStore, LatestRun, Reflector, StoredSchedule};

/// For how long the latest result of a server that is not a reflector is shown, counted from the start of the test.
const SERVER_SHOWN: SignedDuration = SignedDuration::from_hours(30 * 24);
/// The maximum number of removed monitors in a snapshot.
const MOST_REMOVED: u32 = 50;

impl Service {
    /// A snapshot of the line and the service now. If the store cannot be read, the snapshot lacks the values of the
    /// store. Its state is then `stopping` if the service is stopping, and otherwise `faulted`.
    pub async fn line_snapshot(&self) -> LineSnapshot {
        let now = Timestamp::now();
        let status = self.status(version::VERSION);
        let stored = match self.stored_snapshot(now, &status).await {
            Ok(stored) => Some(stored),
            Err(error) => {
                tracing::debug!(%error, "the store cannot be read for an export");
                None
            }
        };
        let (monitors, stored) = match stored {
            Some((monitors, stored)) => (monitors, Some(stored)),
            None => (Vec::new(), None),
        };
        let is_faulted = stored.is_none() && status.state != "stopping";
        LineSnapshot {
            at: now,
            version: status.version,
            commit: version::COMMIT.map(str::to_owned),
            endpoint_id: status.endpoint_id,
            started_at: status.started_at,
            state: if is_faulted { "faulted".to_owned() } else { status.state },
            clock_trusted: status.clock_trusted,
            has_outage: self.has_outage(),
            monitors,
            stored,
        }
    }

    async fn stored_snapshot(
        &self,
        now: Timestamp,
        status: &ServiceStatus,
    ) -> Result<(Vec<MonitorSnapshot>, StoredSnapshot), ApplianceError> {
        let store = self.appliance().reading_store().await?;
        let mut totals = self.monitor_totals();
        let monitors = self.monitors().await?.into_iter();
        let monitors = monitors
            .map(|overview| {
                let totals = totals.remove(&overview.stored.id).unwrap_or_default();
                monitor(overview, totals)
            })
            .collect();
        let month = budget::month_of(now, &TimeZone::system()).map_or(now, |month| month.from);
        let mut schedules = Vec::new();
        for stored in store.schedules().await? {
            schedules.push(schedule(store, stored, &status.planned).await?);
        }
        let stored = StoredSnapshot {
            results: results(store.latest_runs().await?, &store.reflectors().await?, now),
            plan: store.plan().await?.map(|stored| stored.plan),
            outages: store.outage_sums(now).await?,
            schedules,
            month_bytes: store.data_used_since(month).await?,
            removed_monitors: store.removed_monitors(MOST_REMOVED).await?,
        };
        Ok((monitors, stored))
    }
}

/// The latest results of the paired reflectors, and the recent results of servers that are not reflectors. In `runs`,
/// the latest run must be the first.
fn results(runs: Vec<LatestRun>, reflectors: &[Reflector], now: Timestamp) -> Vec<LatestResult> {
    let since = now.checked_sub(SERVER_SHOWN).unwrap_or(now);
    let target = |run: &LatestRun| match &run.endpoint_id {
        Some(id) => {
            let paired = reflectors.iter().find(|reflector| reflector.endpoint_id.to_string() == *id);
            paired.map(|reflector| reflector.name.to_string())
        }
        None => run.address.clone().filter(|_| run.started_at >= since),
    };
    let mut shown = Vec::<LatestResult>::new();
    for run in runs {
        let Some(target) = target(&run) else { continue };
        // Shows one result for each target and engine: the name of a reflector can equal the address of a server.
        if !shown.iter().any(|before| before.target == target && before.run.engine == run.engine) {
            shown.push(LatestResult { target, run });
        }
    }
    shown
}

fn monitor(overview: MonitorOverview, totals: ProbeTotals) -> MonitorSnapshot {
    let activity = overview.condition.map_or(MonitorActivity::Paused, |condition| condition.activity);
    MonitorSnapshot {
        number: overview.stored.number,
        name: overview.stored.monitor.name,
        state: activity.as_str().to_owned(),
        totals,
        recent: overview.recent,
    }
}

async fn schedule(
    store: &ApplianceStore,
    stored: StoredSchedule,
    planned: &[PlannedSchedule],
) -> Result<ScheduleSnapshot, ApplianceError> {
    let last = store.schedule_runs(Some(stored.id), 1).await?.pop();
    let name = stored.schedule.name;
    let next = planned.iter().find(|planned| planned.schedule == name && stored.enabled);
    Ok(ScheduleSnapshot {
        enabled: stored.enabled,
        next_start: next.map(|planned| planned.start),
        last: last.map(|run| (run.ended_at.unwrap_or(run.decided_at), run.outcome)),
        name,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::snapshot::example;

    #[test]
    fn results_of_reflectors_that_are_not_paired_and_old_ones_of_servers_are_left_out() {
        let first = example::full().stored.unwrap().results.remove(0).run;
        let id = paramedic_link::EndpointId::from_bytes([1; 32]);
        let paired = Reflector {
            endpoint_id: id,
            name: "attic".into(),
            address: "203.0.113.7".parse().unwrap(),
            paired_at: first.started_at,
        };
        let of = |endpoint_id: Option<String>, address: &str| LatestRun {
            endpoint_id,
            address: Some(address.to_owned()),
            ..first.clone()
        };
        let runs = vec![
            of(Some(id.to_string()), "203.0.113.9:1"),
            of(Some("PP-other".to_owned()), "203.0.113.8:1"),
            of(None, "192.0.2.1:5201"),
            of(None, "attic"),
        ];
        let names = |now| {
            let shown = results(runs.clone(), std::slice::from_ref(&paired), now);
            shown.into_iter().map(|result| result.target).collect::<Vec<_>>()
        };
        assert_eq!(names(first.started_at), ["attic", "192.0.2.1:5201"]);
        assert_eq!(names(first.started_at + SignedDuration::from_hours(24 * 31)), ["attic"]);
    }
}
