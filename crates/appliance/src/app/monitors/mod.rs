//! The monitors of this appliance: add, list, remove, enable, disable, and read what they measured, including outages.

#![expect(clippy::disallowed_methods, reason = "the shell that reads the clock for the decisions")]

mod board;
mod carriers;
mod context;
mod hosts;
mod http;
mod records;
mod reflectors;
#[cfg(test)]
mod simulation;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub(super) use board::MonitorBoard;
pub use context::{MonitorActivity, MonitorCondition, MonitorState};

use super::Appliance;
use crate::error::ApplianceError;
use crate::monitor::series::{self, Resolution, SeriesPoint};
use crate::monitor::{Monitor, MonitorTarget, ProbeTally};
use crate::store::{StorageError, StoredMonitor, StoredOutage};

/// The length of the period that [`MonitorOverview::recent`] covers, in minutes.
const RECENT: i64 = 15;

/// A monitor with its present condition and its latest probes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct MonitorOverview {
    /// The monitor as it is stored.
    #[serde(flatten)]
    pub stored: StoredMonitor,
    /// What the monitor does at present; absent while no service runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub condition: Option<MonitorCondition>,
    /// The probes of the last 15 minutes as one point.
    pub recent: SeriesPoint,
    /// The bytes that the monitor sends and receives over the line in 30 days.
    pub bytes_a_month: u64,
}

/// The measurements of a monitor in a period, as points for steps of equal length.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct MonitorSeries {
    /// The name of the monitor.
    pub monitor: String,
    /// The start of the first step.
    pub from: Timestamp,
    /// The end of the last step.
    pub to: Timestamp,
    /// The length of a step, in seconds.
    pub step_s: i64,
    /// The points, oldest first. A step without probes has no point.
    pub points: Vec<SeriesPoint>,
}

/// The period and the resolution of a [`MonitorSeries`] to return.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SeriesRange {
    /// The start of the period; `None` for one day before its end.
    pub from: Option<Timestamp>,
    /// The end of the period; `None` for now.
    pub to: Option<Timestamp>,
    /// The length of a step, in seconds; `None` for a length that gives about 300 steps.
    pub step_s: Option<i64>,
}

impl Appliance {
    /// Saves a new monitor, which is enabled.
    pub async fn add_monitor(&self, monitor: Monitor) -> Result<StoredMonitor, ApplianceError> {
        monitor.check()?;
        if let MonitorTarget::Reflector(name) = &monitor.target {
            // A monitor of a reflector that is not paired could never probe it.
            self.reading_store().await?.reflector(name).await?;
        }
        let own = self.endpoint_id()?.to_string();
        Ok(self.store().await?.add_monitor(&own, &monitor, Timestamp::now()).await?)
    }

    /// All monitors, sorted by name. Their `condition` is absent, because only a running service knows it.
    pub async fn monitors(&self) -> Result<Vec<MonitorOverview>, ApplianceError> {
        let mut all = Vec::new();
        for stored in self.stored_monitors().await? {
            all.push(self.monitor_overview(stored, ProbeTally::default()).await?);
        }
        Ok(all)
    }

    pub(super) async fn stored_monitors(&self) -> Result<Vec<StoredMonitor>, ApplianceError> {
        Ok(self.reading_store().await?.monitors().await?)
    }

    pub(super) async fn stored_monitor(&self, name: &str) -> Result<StoredMonitor, ApplianceError> {
        Ok(self.reading_store().await?.monitor(name).await?)
    }

    /// An overview of a monitor without its condition. `unsaved` are the probes of the monitor that are not saved yet.
    async fn monitor_overview(
        &self,
        stored: StoredMonitor,
        unsaved: ProbeTally,
    ) -> Result<MonitorOverview, ApplianceError> {
        let now = minute_of(Timestamp::now());
        let rows = self.reading_store().await?.monitor_rows(stored.number, Resolution::Minutes, now - RECENT, now + 1);
        let mut recent = unsaved;
        rows.await?.iter().for_each(|(_, tally)| recent.merge(tally));
        let recent = SeriesPoint::of((now - RECENT) * 60, &recent);
        Ok(MonitorOverview { bytes_a_month: stored.monitor.bytes_a_month(), condition: None, recent, stored })
    }

    /// Removes the monitor with this name.
    pub async fn remove_monitor(&self, name: &str) -> Result<StoredMonitor, ApplianceError> {
        Ok(self.store().await?.remove_monitor(name).await?)
    }

    /// Enables or disables the monitor with this name.
    pub async fn enable_monitor(&self, name: &str, enabled: bool) -> Result<StoredMonitor, ApplianceError> {
        Ok(self.store().await?.enable_monitor(name, enabled).await?)
    }

    /// The measurements of the monitor with this name in the period `range`.
    pub async fn monitor_series(&self, name: &str, range: SeriesRange) -> Result<MonitorSeries, ApplianceError> {
        let store = self.reading_store().await?;
        let stored = store.monitor(name).await?;
        let to = range.to.map_or_else(|| minute_of(Timestamp::now()) + 1, minute_after);
        let from = range.from.map_or(to - series::DAY, minute_of).min(to);
        let step = series::step_minutes(from, to, range.step_s.map(|seconds| seconds.max(60).div_euclid(60)));
        let (from, to) = (from.div_euclid(step) * step, (to + step - 1).div_euclid(step) * step);
        let rows = store.monitor_rows(stored.number, Resolution::of_step(step), from, to).await?;
        let points = series::points(rows, step);
        let monitor = stored.monitor.name;
        Ok(MonitorSeries { monitor, from: begin_of(from), to: begin_of(to), step_s: step * 60, points })
    }

    /// At most `limit` outages, newest first. If `before` is set, only outages that began before that time.
    pub async fn outages(&self, before: Option<Timestamp>, limit: u32) -> Result<Vec<StoredOutage>, ApplianceError> {
        Ok(self.reading_store().await?.outages(before, limit).await?)
    }

    /// Adds a monitor of the gateway and one of each paired reflector, so that the user need not add them. A monitor
    /// that was added before is not added again, even if the user removed it. Returns the added monitors.
    pub(super) async fn ensure_monitors(&self) -> Result<Vec<StoredMonitor>, ApplianceError> {
        let store = self.store().await?;
        let gateway = (Monitor::new("gateway", MonitorTarget::Gateway, None), None);
        let mut wanted = vec![gateway];
        for reflector in store.reflectors().await? {
            let target = MonitorTarget::Reflector(reflector.name.to_string());
            let monitor = Monitor::new(&target.default_name(), target, None);
            wanted.push((monitor, Some(reflector.endpoint_id.to_string())));
        }
        let own = self.endpoint_id()?.to_string();
        Ok(store.ensure_monitors(&own, &wanted, Timestamp::now()).await?)
    }
}

/// The number of the minute since 1970 that contains `time`.
pub(super) fn minute_of(time: Timestamp) -> i64 {
    time.as_second().div_euclid(60)
}

fn minute_after(time: Timestamp) -> i64 {
    (time.as_second() + 59).div_euclid(60)
}

fn begin_of(minute: i64) -> Timestamp {
    Timestamp::from_second(minute.saturating_mul(60)).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// Whether the error means that the reflector of a monitor is not paired.
fn is_gone(error: &ApplianceError) -> bool {
    matches!(error, ApplianceError::Storage(StorageError::NoSuchReflector { .. }))
}
