//! The schedules of this appliance: add, list, remove, enable, disable. Reads the clock for them.

#![expect(clippy::disallowed_methods, reason = "the shell that reads the clock for the decisions")]

use std::time::Duration;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Appliance;
use crate::error::ApplianceError;
use crate::providers;
use crate::request::TestRequest;
use crate::schedule::Schedule;
use crate::schedule::budget::{self, DataBudget, DataUse};
use crate::schedule::volume::{self, VolumeEstimate};
use crate::store::{ApplianceStore, PageCursor, Reflector, ScheduleRun, StorageError, StoredSchedule, find_reflector};

/// The length of the month for which the data of a schedule is estimated.
const MONTH: Duration = Duration::from_secs(30 * 86_400);

/// A checked schedule that is not saved yet, and the data that it is expected to use.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ScheduleProposal {
    /// The schedule. Its `expected_bytes` is the estimate for one run.
    pub schedule: Schedule,
    /// Whether the estimate assumes a rate for at least one direction, because neither a result nor a rate limit gives
    /// one.
    pub is_assumed: bool,
    /// The number of runs in 30 days.
    pub runs_a_month: u64,
    /// The expected bytes in 30 days, if no budget limits them.
    pub bytes_a_month: u64,
}

/// A schedule with its next run, its last run and its data use.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ScheduleOverview {
    /// The schedule as it is stored.
    #[serde(flatten)]
    pub stored: StoredSchedule,
    /// The time of the next occurrence, without the random delay; absent if the schedule is disabled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_due: Option<Timestamp>,
    /// How the last run of the schedule ended, or why it did not start; absent if no run is recorded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_run: Option<ScheduleRun>,
    /// The bytes that the schedule has used in the current day and month.
    pub used: DataUse,
    /// The bytes that the budget of the schedule still allows in the current day and month.
    pub left: DataBudget,
    /// The expected bytes of the schedule in 30 days, if no budget limits them.
    #[serde(default)]
    pub bytes_a_month: u64,
}

impl Appliance {
    /// Checks a new schedule and estimates its data, without saving it. Ignores the `expected_bytes` of `schedule`.
    pub async fn propose_schedule(&self, schedule: Schedule) -> Result<ScheduleProposal, ApplianceError> {
        let now = Timestamp::now();
        schedule.check(now)?;
        self.check_request(&schedule.request).await?;
        check_target(&schedule.request, &self.reading_store().await?.reflectors().await?)?;
        let is_taken = |stored: &StoredSchedule| stored.schedule.name.to_lowercase() == schedule.name.to_lowercase();
        if self.reading_store().await?.schedules().await?.iter().any(is_taken) {
            return Err(StorageError::ScheduleExists { name: schedule.name }.into());
        }
        let estimate = self.estimate(&schedule.request).await?;
        let runs_a_month = schedule.runs_within(MONTH, now);
        Ok(ScheduleProposal {
            schedule: Schedule { expected_bytes: estimate.bytes, ..schedule },
            is_assumed: estimate.is_assumed,
            runs_a_month,
            bytes_a_month: estimate.bytes.saturating_mul(runs_a_month),
        })
    }

    /// Checks a schedule, and saves it as enabled.
    pub async fn add_schedule(&self, schedule: Schedule) -> Result<StoredSchedule, ApplianceError> {
        let proposal = self.propose_schedule(schedule).await?;
        let own = self.endpoint_id()?.to_string();
        Ok(self.store().await?.add_schedule(&own, &proposal.schedule, Timestamp::now()).await?)
    }

    /// All schedules, sorted by name.
    pub async fn schedules(&self) -> Result<Vec<ScheduleOverview>, ApplianceError> {
        let store = self.reading_store().await?;
        let mut all = Vec::new();
        for stored in store.schedules().await? {
            all.push(overview(store, stored).await?);
        }
        Ok(all)
    }

    /// The schedule with this name.
    pub async fn schedule(&self, name: &str) -> Result<ScheduleOverview, ApplianceError> {
        let store = self.reading_store().await?;
        overview(store, store.schedule(name).await?).await
    }

    /// Removes the schedule with this name. The results of its runs are kept.
    pub async fn remove_schedule(&self, name: &str) -> Result<StoredSchedule, ApplianceError> {
        Ok(self.store().await?.remove_schedule(name).await?)
    }

    /// Enables or disables the schedule with this name.
    pub async fn enable_schedule(&self, name: &str, enabled: bool) -> Result<StoredSchedule, ApplianceError> {
        Ok(self.store().await?.enable_schedule(name, enabled, Timestamp::now()).await?)
    }

    /// At most `limit` runs of the schedule with this name, newest first; `None` for the runs of all schedules.
    /// Includes runs that did not start.
    pub async fn schedule_runs(&self, name: Option<&str>, limit: u32) -> Result<Vec<ScheduleRun>, ApplianceError> {
        self.schedule_runs_page(name, None, limit).await
    }

    /// A page of the list of [`Appliance::schedule_runs`]: at most `limit` runs after the position `after`.
    pub async fn schedule_runs_page(
        &self,
        name: Option<&str>,
        after: Option<PageCursor>,
        limit: u32,
    ) -> Result<Vec<ScheduleRun>, ApplianceError> {
        let store = self.reading_store().await?;
        let schedule = match name {
            Some(name) => Some(store.schedule(name).await?.id),
            None => None,
        };
        Ok(store.schedule_runs_page(schedule, after, limit).await?)
    }

    /// The tests to run, in this order, to repeat a test against `subject`, each with its schedule. The last one is the
    /// test of the first enabled schedule for `subject`. If another reflector is paired, the same test against that
    /// reflector comes first, so that its result is known when the repeated test is judged. Empty if no enabled
    /// schedule tests `subject`.
    pub(super) async fn retests(&self, subject: &str) -> Result<Vec<(StoredSchedule, Schedule)>, ApplianceError> {
        let store = self.reading_store().await?;
        let known = store.reflectors().await?;
        let is_subject = |stored: &StoredSchedule| {
            let request = &stored.schedule.request;
            let target = match &request.peer {
                Some(peer) => {
                    find_reflector(known.clone(), peer).map_or_else(|_| peer.clone(), |own| own.name.to_string())
                }
                None => known.first().filter(|_| known.len() == 1).map(|own| own.name.to_string()).unwrap_or_default(),
            };
            stored.enabled && target == subject
        };
        let Some(stored) = store.schedules().await?.into_iter().find(is_subject) else { return Ok(Vec::new()) };
        let needs_pairing =
            providers::find(&stored.schedule.request.provider).is_some_and(providers::Provider::needs_identity);
        let other = known.iter().find(|own| needs_pairing && own.name.to_string() != subject);
        let against = |name: String| {
            let mut schedule = stored.schedule.clone();
            schedule.request.peer = Some(name);
            (stored.clone(), schedule)
        };
        let other = other.map(|own| against(own.name.to_string()));
        let schedule = stored.schedule.clone();
        Ok(other.into_iter().chain([(stored.clone(), schedule)]).collect())
    }

    pub(super) async fn estimate(&self, request: &TestRequest) -> Result<VolumeEstimate, ApplianceError> {
        let capacity = self.reading_store().await?.line_capacity(request.peer.as_deref()).await?;
        Ok(volume::estimate(&request.spec, capacity))
    }
}

/// Checks the other end of a schedule's request, because a schedule for a reflector that is not paired would always
/// fail.
pub(super) fn check_target(request: &TestRequest, known: &[Reflector]) -> Result<(), ApplianceError> {
    let needs_pairing = providers::find(&request.provider).is_some_and(providers::Provider::needs_identity);
    if !needs_pairing {
        return match &request.peer {
            Some(_) => Ok(()),
            None => Err(ApplianceError::Unsupported(format!(
                "a schedule with the provider {} needs --peer, which names its server",
                request.provider
            ))),
        };
    }
    if let Some(peer) = &request.peer {
        return find_reflector(known.to_vec(), peer).map(drop).map_err(ApplianceError::from);
    }
    match known {
        [] => Err(ApplianceError::NoReflectorPaired),
        [_] => Ok(()),
        several => {
            let names = several.iter().map(|reflector| reflector.name.to_string()).collect();
            Err(ApplianceError::SeveralReflectorsPaired { names })
        }
    }
}

async fn overview(store: &ApplianceStore, stored: StoredSchedule) -> Result<ScheduleOverview, ApplianceError> {
    let now = Timestamp::now();
    let used = data_used(store, &stored, now).await?;
    let frame = stored.schedule.frame(stored.added_at);
    let next_due = stored.enabled.then(|| stored.schedule.when.next_after(now, &frame)).flatten();
    let last_run = store.schedule_runs(Some(stored.id), 1).await?.pop();
    let left = stored.schedule.budget.left(used);
    let bytes_a_month = stored.schedule.expected_bytes.saturating_mul(stored.schedule.runs_within(MONTH, now));
    Ok(ScheduleOverview { stored, next_due, last_run, used, left, bytes_a_month })
}

/// The data that a schedule has used in the day and in the month that contain `now`.
pub(super) async fn data_used(
    store: &ApplianceStore,
    stored: &StoredSchedule,
    now: Timestamp,
) -> Result<DataUse, ApplianceError> {
    let zone = stored.schedule.zone.rules();
    let mut used = DataUse::default();
    if let Some(day) = budget::day_of(now, zone) {
        used.day_bytes = store.schedule_data_used(stored.id, day).await?;
    }
    if let Some(month) = budget::month_of(now, zone) {
        used.month_bytes = store.schedule_data_used(stored.id, month).await?;
    }
    Ok(used)
}
