//! The service: runs the tests that are due, one at a time, and stores how they ended. Reads the clocks.

#![expect(clippy::disallowed_methods, reason = "the shell that reads the clocks for the planner")]

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use paramedic_engines::host_facts;
use paramedic_report::document::ResultDocument;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, mpsc, watch};
use uuid::Uuid;

use super::alerts::{AlertBoard, RetestWish};
use super::channels::ChannelTest;
use super::clocks::{random, read_clocks};
use super::delivery::DeliveryDesk;
use super::monitors::{MonitorBoard, MonitorOverview, MonitorState};
use super::run_updates::{RunLife, RunReport, RunUpdate, RunUpdates};
use super::schedules::data_used;
use super::{Appliance, TestEnd};
use crate::error::ApplianceError;
use crate::monitor::ProbeTotals;
use crate::providers::default_interface;
use crate::providers::options::OptionValues;
use crate::request::TurnWait;
use crate::schedule::Schedule;
use crate::schedule::admission::{self, RunObservations, SkipReason};
use crate::schedule::line_load::{self, InterfaceCounters};
use crate::schedule::planner::{AcceptedSchedule, DueRun, NotAccepted, Planner, SkippedRun};
use crate::store::{DatabaseLock, Retention, RunEnding, ScheduleRunOutcome, StorageError, StoredSchedule};

/// The file in the state folder that the running service locks.
pub const SERVICE_LOCK: &str = "service.lock";

/// How long a scheduled test waits for other tests, on this device and at the reflector.
const TURN_WAIT: Duration = Duration::from_secs(60 * 60);
/// How long the other traffic on the line is measured before a run of a schedule.
const OBSERVATION: Duration = Duration::from_secs(1);
/// How long a cancelled test may take to end.
const STOP_TIMEOUT: Duration = Duration::from_secs(20);
/// How often the service checks that it still holds the lock of its database, if the database is on a server.
const LOCK_CHECK_INTERVAL: Duration = Duration::from_secs(60);
/// How long no run starts after a failed read or write of the store.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);
/// The maximum number of failed writes that the service keeps in memory until the store can be written.
const MOST_PENDING: usize = 1000;

/// The running service. Clones share its state.
#[derive(Clone)]
pub struct Service {
    state: Arc<ServiceState>,
}

struct ServiceState {
    appliance: Appliance,
    /// The Endpoint ID at the start of the service. It is used if the identity key can no longer be read.
    endpoint_id: String,
    started_at: Timestamp,
    retention: Retention,
    /// The open file [`SERVICE_LOCK`], which is locked while the service runs.
    _lock: File,
    /// The lock of the database, if the database is on a server. `None` if the database is a file, or if the lock was
    /// lost.
    database_lock: tokio::sync::Mutex<Option<DatabaseLock>>,
    planner: Mutex<Planner>,
    /// Notified when a run may be due, or when the schedules have changed.
    wake: Notify,
    /// Counts the completed calls of [`Service::poll`], including those that failed.
    polls: watch::Sender<u64>,
    current: Mutex<Option<CurrentRun>>,
    updates: RunUpdates,
    /// The writes that could not be stored yet, and are repeated.
    pending: Mutex<Vec<PendingWrite>>,
    problem: Mutex<Option<ServiceFault>>,
    is_stopping: watch::Sender<bool>,
    monitors: MonitorBoard,
    deliveries: Arc<DeliveryDesk>,
    alerts: AlertBoard,
    /// The tests that alert rules want repeated.
    retests: tokio::sync::Mutex<mpsc::Receiver<RetestWish>>,
}

/// The current run of a schedule.
struct CurrentRun {
    name: String,
    since: Timestamp,
    cancel: watch::Sender<bool>,
}

/// Why the service is faulted: it cannot read or write the store.
struct ServiceFault {
    text: String,
    /// When the failure last occurred.
    at: Instant,
    /// Whether a failed read is the cause. Otherwise, a failed write is the cause.
    is_of_reading: bool,
}

/// A failed write to the store, which the service repeats until it succeeds.
enum PendingWrite {
    Skipped(SkippedRun, Timestamp),
    Result(Box<ResultDocument>),
    Ended(Uuid, RunEnding),
}

/// The state of the service at one moment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ServiceStatus {
    /// `running`, `faulted` or `stopping`.
    pub state: String,
    /// Why the service is faulted; empty if it is not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<String>,
    /// The version of the program that runs the service.
    pub version: String,
    /// This device's Endpoint ID.
    pub endpoint_id: String,
    /// The path of the private state folder.
    pub state_dir: String,
    /// When the service started.
    pub started_at: Timestamp,
    /// Whether the service trusts the system clock. While it does not, no schedule is due.
    pub clock_trusted: bool,
    /// The schedule whose test runs at present; absent if none does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub running: Option<RunningSchedule>,
    /// The names of the schedules whose runs are due and wait for the running test.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub waiting: Vec<String>,
    /// The name and the present activity of each monitor.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub monitors: Vec<MonitorState>,
    /// The planned runs of schedules, the next run first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub planned: Vec<PlannedSchedule>,
}

/// A schedule whose test runs at present.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RunningSchedule {
    /// The name of the schedule.
    pub schedule: String,
    /// When the run of the schedule started.
    pub since: Timestamp,
}

/// The next planned run of a schedule.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PlannedSchedule {
    /// The name of the schedule.
    pub schedule: String,
    /// When the run starts, including the random delay.
    pub start: Timestamp,
}

impl Appliance {
    /// Starts the service of this state folder; [`Service::run`] then does its work. If `adds_monitors` is true, the
    /// service itself adds monitors of the gateway and of each paired reflector. Fails if another service uses this
    /// folder or its database.
    pub async fn start_service(&self, retention: Retention, adds_monitors: bool) -> Result<Service, ApplianceError> {
        let lock = lock_service(self.state_dir())?;
        let endpoint_id = self.endpoint_id()?.to_string();
        self.remove_old_copies();
        let store = self.store().await?;
        let database_lock = store.lock_service().await?;
        store.check_writable().await?;
        let now = Timestamp::now();
        let interrupted = store.interrupt_open_runs(now).await?;
        if interrupted > 0 {
            tracing::warn!(interrupted, "the service ended during a run; the expected bytes of the run count as used");
        }
        let monitors = MonitorBoard::new(self.clone(), adds_monitors);
        let deliveries = Arc::new(DeliveryDesk::new(self.clone()));
        let (alerts, retests) = AlertBoard::new(self.clone(), now);
        Ok(Service {
            state: Arc::new(ServiceState {
                monitors,
                deliveries,
                alerts,
                retests: tokio::sync::Mutex::new(retests),
                appliance: self.clone(),
                endpoint_id,
                started_at: now,
                retention,
                _lock: lock,
                database_lock: tokio::sync::Mutex::new(database_lock),
                planner: Mutex::default(),
                wake: Notify::new(),
                polls: watch::channel(0).0,
                current: Mutex::default(),
                updates: RunUpdates::default(),
                pending: Mutex::default(),
                problem: Mutex::default(),
                is_stopping: watch::channel(false).0,
            }),
        })
    }
}

fn lock_service(state_dir: &Path) -> Result<File, ApplianceError> {
    let failed = |source| ApplianceError::TestFolder { folder: state_dir.to_owned(), source };
    let file = File::options().create(true).truncate(false).write(true).open(state_dir.join(SERVICE_LOCK));
    let file = file.map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(ApplianceError::ServiceRuns { state_dir: state_dir.to_owned() }),
        Err(std::fs::TryLockError::Error(error)) => Err(failed(error)),
    }
}

impl Service {
    /// Runs the schedules and the monitors, judges measurements by the alert rules, and delivers messages, until
    /// [`Service::stop`]. Then cancels the running test and keeps its measurements.
    pub async fn run(&self) {
        let stopping = || self.state.is_stopping.subscribe();
        let ServiceState { monitors, alerts, deliveries, updates, .. } = &*self.state;
        tokio::join!(
            self.run_schedules(),
            monitors.run(stopping()),
            alerts.run(monitors, updates, deliveries, stopping()),
            self.run_retests(),
            deliveries.run(stopping())
        );
    }

    async fn run_schedules(&self) {
        let state = &self.state;
        let mut stopping = state.is_stopping.subscribe();
        let mut run = None;
        while !*stopping.borrow_and_update() {
            let wait = self.poll().await;
            state.polls.send_modify(|polls| *polls += 1);
            if run.is_none() && self.may_start() {
                run = self.start_next();
            }
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = state.wake.notified() => {}
                _ = stopping.wait_for(|wanted| *wanted) => {}
                () = ended(&mut run) => {
                    run = None;
                    self.release();
                }
            }
        }
        tracing::info!(is_running = run.is_some(), "stopping; a running test is cancelled");
        if let Some(task) = run {
            self.cancel_run();
            if tokio::time::timeout(STOP_TIMEOUT, task).await.is_err() {
                tracing::error!("the running test did not end in time");
            }
        }
        let drained = lock(&state.planner).drain();
        let now = Timestamp::now();
        lock(&state.pending).extend(drained.into_iter().map(|skipped| PendingWrite::Skipped(skipped, now)));
        if let Err(error) = self.write_pending().await {
            tracing::error!(%error, "the outcome of the last runs is not stored");
        }
    }

    /// Makes [`Service::run`] stop its work and return.
    pub fn stop(&self) {
        self.state.is_stopping.send_replace(true);
    }

    /// Makes the service read the schedules again, because they have changed.
    pub fn schedules_changed(&self) {
        self.state.wake.notify_one();
    }

    /// Makes the service read the monitors again, because they have changed or a reflector was paired.
    pub fn monitors_changed(&self) {
        self.state.monitors.definitions_changed();
    }

    /// Makes the service read the alert rules again, because they have changed.
    pub fn rules_changed(&self) {
        self.state.alerts.rules_changed();
    }

    /// Makes the service look for messages to deliver, because a message was added or the channels have changed.
    pub fn messages_changed(&self) {
        self.state.deliveries.wake();
    }

    /// Does the same as [`Appliance::test_channel`], but first waits until no other message is being sent to that
    /// channel.
    pub async fn test_channel(&self, name: &str) -> Result<ChannelTest, ApplianceError> {
        let channel = self.state.appliance.channel(name).await?.id;
        let _turn = self.state.deliveries.turn(channel).await;
        self.state.appliance.test_channel(name).await
    }

    /// Whether the service is neither faulted nor stopping.
    pub fn is_working(&self) -> bool {
        let ServiceState { problem, monitors, alerts, .. } = &*self.state;
        let is_faulted = lock(problem).is_some() || monitors.problem().is_some() || alerts.problem().is_some();
        !is_faulted && !*self.state.is_stopping.borrow()
    }

    /// All monitors with their present state, sorted by name.
    pub async fn monitors(&self) -> Result<Vec<MonitorOverview>, ApplianceError> {
        let mut all = Vec::new();
        for stored in self.state.appliance.stored_monitors().await? {
            all.push(self.state.monitors.overview(stored).await?);
        }
        Ok(all)
    }

    /// The totals of the probes of each monitor since the service started.
    pub(super) fn monitor_totals(&self) -> BTreeMap<Uuid, ProbeTotals> {
        self.state.monitors.totals()
    }

    /// Whether an outage lasts at present.
    pub(super) fn has_outage(&self) -> bool {
        self.state.monitors.has_outage()
    }

    /// A receiver of a counter that changes when the state of a monitor changes, and when an outage begins or ends.
    pub(super) fn monitor_changes(&self) -> watch::Receiver<u64> {
        self.state.monitors.changes()
    }

    /// A receiver of a flag that becomes true when the service is to stop.
    pub(super) fn stopping(&self) -> watch::Receiver<bool> {
        self.state.is_stopping.subscribe()
    }

    /// The monitor with this name, with its present state.
    pub async fn monitor(&self, name: &str) -> Result<MonitorOverview, ApplianceError> {
        let stored = self.state.appliance.stored_monitor(name).await?;
        self.state.monitors.overview(stored).await
    }

    /// Runs the schedule with this name as soon as no other test runs.
    pub async fn request_run(&self, name: &str) -> Result<(), ApplianceError> {
        let stored = self.state.appliance.store().await?.schedule(name).await?;
        if !stored.enabled {
            return Err(ApplianceError::ScheduleDisabled { name: stored.schedule.name });
        }
        // Loads the schedules first, because the requested one may be new.
        self.load_schedules().await?;
        match lock(&self.state.planner).request(stored.id, Timestamp::now()) {
            Ok(()) => {}
            Err(NotAccepted::AlreadyDue) => {
                return Err(ApplianceError::ScheduleRuns { name: stored.schedule.name });
            }
            Err(NotAccepted::Unknown) => {
                return Err(StorageError::NoSuchSchedule { wanted: name.to_owned() }.into());
            }
        }
        self.state.wake.notify_one();
        Ok(())
    }

    /// Cancels the running test of a schedule. Returns `false` if no such test runs, or if it was cancelled before.
    pub fn cancel_run(&self) -> bool {
        let current = lock(&self.state.current);
        current.as_ref().is_some_and(|current| !current.cancel.send_replace(true))
    }

    /// Waits until the scheduler next completes a poll, even one that fails. A poll uses the store, so the end of the
    /// wait shows that the scheduler and the store respond.
    pub async fn answers(&self) {
        let mut polls = self.state.polls.subscribe();
        polls.borrow_and_update();
        self.state.wake.notify_one();
        if polls.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// This device's Endpoint ID. It can change while the service runs, if an older store is imported.
    fn endpoint_id(&self) -> String {
        self.state.appliance.endpoint_id().map_or_else(|_| self.state.endpoint_id.clone(), |id| id.to_string())
    }

    /// How long the service keeps results and their series.
    pub fn retention(&self) -> Retention {
        self.state.retention
    }

    /// The updates about the running tests. Clients subscribe to them.
    pub fn updates(&self) -> &RunUpdates {
        &self.state.updates
    }

    /// Passes an update about a run to the listeners. `schedule` is the name of the schedule whose run it is; `None`
    /// for a test that a client started.
    pub fn report(&self, run: Uuid, schedule: Option<&str>, report: RunReport) {
        let schedule = schedule.map(str::to_owned);
        self.state.updates.report(RunUpdate { run, schedule, at: Timestamp::now(), report });
    }

    /// Makes the report about the end of a test that a client started.
    pub fn end_of(&self, ended: &Result<Option<TestEnd>, ApplianceError>) -> RunLife {
        let (outcome, reason) = self.outcome(ended);
        let result_id = ended.as_ref().ok().and_then(|end| end.as_ref()?.saved_as);
        RunLife::Ended { outcome, reason, result_id }
    }

    /// The appliance whose service this is.
    pub fn appliance(&self) -> &Appliance {
        &self.state.appliance
    }

    /// The state of the service now. `version` is the version of the program.
    pub fn status(&self, version: &str) -> ServiceStatus {
        let state = &self.state;
        let planner = lock(&state.planner);
        let mut planned = planner
            .planned()
            .map(|(name, planned)| PlannedSchedule { schedule: name.to_owned(), start: planned.start })
            .collect::<Vec<_>>();
        planned.sort_by_key(|planned| planned.start);
        let mut problems = lock(&state.problem).iter().map(|problem| problem.text.clone()).collect::<Vec<_>>();
        for problem in state.monitors.problem().into_iter().chain(state.alerts.problem()) {
            if !problems.contains(&problem) {
                problems.push(problem);
            }
        }
        let word = match (*state.is_stopping.borrow(), problems.is_empty()) {
            (true, _) => "stopping",
            (_, false) => "faulted",
            _ => "running",
        };
        let running = lock(&state.current);
        let running = running.as_ref().map(|run| RunningSchedule { schedule: run.name.clone(), since: run.since });
        ServiceStatus {
            state: word.to_owned(),
            problems,
            version: version.to_owned(),
            endpoint_id: self.endpoint_id(),
            state_dir: state.appliance.state_dir().display().to_string(),
            started_at: state.started_at,
            clock_trusted: read_clocks().is_trusted(),
            running,
            monitors: state.monitors.states(),
            waiting: planner.queued().map(|run| run.name.clone()).collect(),
            planned,
        }
    }

    fn fault(&self, error: &ApplianceError, is_of_reading: bool) {
        let text = error.to_string();
        let problem = ServiceFault { text: text.clone(), at: Instant::now(), is_of_reading };
        let before = lock(&self.state.problem).replace(problem);
        if before.is_none_or(|before| before.text != text) {
            tracing::error!(%error, "the service is faulted: no run starts until the store can be used again");
        }
    }

    /// Whether a run may start: no write waits to be stored, and the store has not failed during the last
    /// [`RETRY_INTERVAL`].
    fn may_start(&self) -> bool {
        let is_tried = lock(&self.state.problem).as_ref().is_none_or(|problem| problem.at.elapsed() >= RETRY_INTERVAL);
        is_tried && lock(&self.state.pending).is_empty()
    }

    fn recovered(&self) {
        if lock(&self.state.problem).take().is_some() {
            tracing::info!("the service can use the store again");
        }
    }

    async fn load_schedules(&self) -> Result<(), ApplianceError> {
        let stored = self.state.appliance.store().await?.schedules().await?;
        let enabled = stored.into_iter().filter(|stored| stored.enabled).map(accepted).collect();
        lock(&self.state.planner).set_schedules(enabled);
        Ok(())
    }

    /// If the database is on a server, makes sure that the service holds the lock of the database. Takes the lock again
    /// if the connection that held it has ended, for example because the server restarted. Without the lock, a second
    /// service could end the runs of this service.
    async fn hold_database(&self) -> Result<(), ApplianceError> {
        let mut lock = self.state.database_lock.lock().await;
        if let Some(held) = lock.as_mut()
            && held.is_held().await
        {
            return Ok(());
        }
        let was_held = lock.take().is_some();
        *lock = self.state.appliance.store().await?.lock_service().await?;
        if was_held {
            tracing::warn!("the database server ended a connection; the service holds its lock again");
        }
        Ok(())
    }

    /// Stores pending writes, reads the schedules and moves due runs into the queue. Returns how long to wait until the
    /// next poll.
    async fn poll(&self) -> Duration {
        if let Err(error) = self.hold_database().await {
            self.fault(&error, true);
            return RETRY_INTERVAL;
        }
        if let Err(error) = self.write_pending().await {
            self.fault(&error, false);
            return RETRY_INTERVAL;
        }
        if let Err(error) = self.load_schedules().await {
            self.fault(&error, true);
            return RETRY_INTERVAL;
        }
        if lock(&self.state.problem).as_ref().is_some_and(|problem| problem.is_of_reading) {
            self.recovered();
        }
        let polled = lock(&self.state.planner).poll(read_clocks(), &mut random);
        if let Some(seconds) = polled.clock_step_s {
            tracing::warn!(seconds, "the clock was set; the schedules are planned anew");
        }
        let now = Timestamp::now();
        for skipped in polled.skipped {
            self.skip(skipped, now).await;
        }
        if lock(&self.state.problem).is_some() {
            return polled.wait.min(RETRY_INTERVAL);
        }
        match *self.state.database_lock.lock().await {
            Some(_) => polled.wait.min(LOCK_CHECK_INTERVAL),
            None => polled.wait,
        }
    }

    /// Records that a run does not start, and why.
    async fn skip(&self, skipped: SkippedRun, now: Timestamp) {
        self.keep(PendingWrite::Skipped(skipped.clone(), now)).await;
        let SkippedRun { run, reason } = skipped;
        tracing::info!(schedule = run.name, due = %run.due, reason = reason.as_str(), "a run is skipped");
    }

    /// Stores a write now, or, if that fails, as soon as it is possible.
    async fn keep(&self, write: PendingWrite) {
        {
            let mut pending = lock(&self.state.pending);
            if pending.len() >= MOST_PENDING {
                // If the limit is reached, drops the oldest skipped run, because its loss matters least.
                let oldest = pending.iter().position(|write| matches!(write, PendingWrite::Skipped(..)));
                pending.remove(oldest.unwrap_or_default());
            }
            pending.push(write);
        }
        if let Err(error) = self.write_pending().await {
            self.fault(&error, false);
        }
    }

    async fn write_pending(&self) -> Result<(), ApplianceError> {
        // Takes all writes at once, so that only one caller stores them. Another caller finds an empty list.
        let mut writes = std::mem::take(&mut *lock(&self.state.pending)).into_iter();
        if writes.len() == 0 {
            return Ok(());
        }
        while let Some(write) = writes.next() {
            if let Err(error) = self.write(&write).await {
                let mut pending = lock(&self.state.pending);
                let later = std::mem::take(&mut *pending);
                pending.push(write);
                pending.extend(writes);
                pending.extend(later);
                return Err(error);
            }
        }
        self.recovered();
        Ok(())
    }

    async fn write(&self, write: &PendingWrite) -> Result<(), ApplianceError> {
        let store = self.state.appliance.store().await?;
        match write {
            PendingWrite::Skipped(skipped, at) => {
                store.note_skipped_run(&self.endpoint_id(), skipped, *at).await?;
            }
            PendingWrite::Result(result) => store.save_run(result).await?,
            PendingWrite::Ended(id, ending) => store.end_run(*id, ending).await?,
        }
        Ok(())
    }

    /// Starts the task of the next run in the queue; `None` if the queue is empty.
    fn start_next(&self) -> Option<tokio::task::JoinHandle<()>> {
        let (run, schedule) = lock(&self.state.planner).take()?;
        let (cancel, cancelled) = watch::channel(false);
        *lock(&self.state.current) = Some(CurrentRun { name: run.name.clone(), since: Timestamp::now(), cancel });
        let service = self.clone();
        Some(tokio::spawn(async move { service.run_due(run, schedule, cancelled).await }))
    }

    async fn run_due(&self, run: DueRun, schedule: Schedule, mut cancelled: watch::Receiver<bool>) {
        let admitted = tokio::select! {
            admitted = self.admit(&run, &schedule) => admitted,
            _ = cancelled.wait_for(|wanted| *wanted) => Ok(Err(SkipReason::Stopped)),
        };
        let expected_bytes = match admitted {
            Ok(Ok(expected_bytes)) => expected_bytes,
            Ok(Err(reason)) => return self.skip(SkippedRun { run, reason }, Timestamp::now()).await,
            Err(error) => return self.postpone(run, &error),
        };
        let store = match self.state.appliance.store().await {
            Ok(store) => store,
            Err(error) => return self.postpone(run, &error),
        };
        let id = match store.begin_run(&self.endpoint_id(), &run, expected_bytes, Timestamp::now()).await {
            Ok(id) => id,
            Err(error) => return self.postpone(run, &error.into()),
        };
        self.recovered();
        tracing::info!(schedule = run.name, due = %run.due, requested = run.is_requested, "a run starts");
        self.report(id, Some(&run.name), RunReport::Life(RunLife::Accepted));
        let ended = self.measure(id, &schedule, cancelled).await;
        let (ending, result) = self.ending(ended);
        if let Some(result) = result {
            self.keep(PendingWrite::Result(result)).await;
        }
        // Releases the schedule first, so that it can be run again as soon as the end is stored.
        self.release();
        self.keep_ending(id, &run.name, ending).await;
    }

    /// Stores and reports how a run ended.
    async fn keep_ending(&self, id: Uuid, schedule: &str, ending: RunEnding) {
        self.keep(PendingWrite::Ended(id, ending.clone())).await;
        tracing::info!(
            schedule,
            outcome = ending.outcome.as_str(),
            reason = ending.reason.as_deref(),
            result = ending.result_id.map(|id| id.to_string()),
            data_used_bytes = ending.data_used_bytes,
            "a run ended"
        );
        let RunEnding { outcome, reason, result_id, .. } = ending;
        self.report(id, Some(schedule), RunReport::Life(RunLife::Ended { outcome, reason, result_id }));
    }

    /// Repeats the tests that alert rules want repeated, one after the other, until the service stops.
    async fn run_retests(&self) {
        let mut stopping = self.state.is_stopping.subscribe();
        let mut wishes = self.state.retests.lock().await;
        loop {
            let wish = tokio::select! {
                wish = wishes.recv() => wish,
                _ = stopping.wait_for(|wanted| *wanted) => None,
            };
            let Some(RetestWish { rule, subject }) = wish else { return };
            match self.state.appliance.retests(&subject).await {
                Ok(tests) if tests.is_empty() => {
                    tracing::info!(
                        rule,
                        target = subject,
                        "no enabled schedule tests this target, so no test is repeated; the next test decides"
                    );
                }
                Ok(tests) => {
                    for (stored, schedule) in tests {
                        self.retest(&rule, &stored, &schedule).await;
                    }
                }
                Err(error) => tracing::warn!(rule, target = subject, %error, "a test is not repeated"),
            }
        }
    }

    /// Runs a test of a schedule again for an alert rule, but only under the conditions of the schedule, such as its
    /// budget, its quiet hours and the share of other traffic.
    async fn retest(&self, rule: &str, stored: &StoredSchedule, schedule: &Schedule) {
        let cancelled = self.state.is_stopping.subscribe();
        let (name, now) = (stored.schedule.name.clone(), Timestamp::now());
        let run = DueRun { schedule: stored.id, name, due: now, is_requested: false };
        let expected_bytes = match self.admit(&run, schedule).await {
            Ok(Ok(expected_bytes)) => expected_bytes,
            Ok(Err(reason)) => {
                tracing::info!(rule, schedule = run.name, reason = reason.as_str(), "a test is not repeated");
                return;
            }
            Err(error) => {
                tracing::warn!(rule, schedule = run.name, %error, "a test is not repeated");
                return;
            }
        };
        // Marks the run as requested, because it is not an occurrence of the schedule. It counts towards the budget
        // nevertheless.
        let run = DueRun { is_requested: true, ..run };
        let begun = match self.state.appliance.store().await {
            Ok(store) => store.begin_run(&self.endpoint_id(), &run, expected_bytes, now).await.map_err(Into::into),
            Err(error) => Err(error),
        };
        let id = match begun {
            Ok(id) => id,
            Err(error) => return self.fault(&error, false),
        };
        tracing::info!(rule, schedule = run.name, target = schedule.request.peer, "a test is repeated");
        self.report(id, Some(&run.name), RunReport::Life(RunLife::Accepted));
        let ended = self.measure(id, schedule, cancelled).await;
        let (ending, result) = self.ending(ended);
        if let Some(result) = result {
            self.keep(PendingWrite::Result(result)).await;
        }
        self.keep_ending(id, &run.name, ending).await;
    }

    /// Records that the run of a schedule is no longer active.
    fn release(&self) {
        lock(&self.state.planner).ended();
        *lock(&self.state.current) = None;
    }

    /// Puts a run whose start could not be stored back into the queue. The run starts once its start can be stored.
    fn postpone(&self, run: DueRun, error: &ApplianceError) {
        self.fault(error, false);
        lock(&self.state.planner).put_back(run);
    }

    /// Decides whether a run may start. Returns the number of bytes that it is expected to use, or why it does not
    /// start.
    async fn admit(&self, run: &DueRun, schedule: &Schedule) -> Result<Result<u64, SkipReason>, ApplianceError> {
        let store = self.state.appliance.store().await?;
        let measured = store.schedule_run_bytes(run.schedule).await?;
        let expected_bytes = measured.unwrap_or(schedule.expected_bytes);
        if run.is_requested {
            return Ok(Ok(expected_bytes));
        }
        let stored = match store.schedule(&run.name).await {
            Ok(stored) => stored,
            Err(StorageError::NoSuchSchedule { .. }) => return Ok(Err(SkipReason::Stopped)),
            Err(error) => return Err(error.into()),
        };
        let line_share = match schedule.max_line_share {
            Some(_) => observe_line(store.line_capacity(schedule.request.peer.as_deref()).await?).await,
            None => None,
        };
        let now = Timestamp::now();
        let used = data_used(store, &stored, now).await?;
        let seen = RunObservations { used, expected_bytes, line_share, uplink: default_interface() };
        Ok(admission::admit(schedule, now, &seen).map(|()| expected_bytes))
    }

    /// Runs the test of a schedule to its end, and reports its events.
    async fn measure(
        &self,
        run: Uuid,
        schedule: &Schedule,
        mut cancelled: watch::Receiver<bool>,
    ) -> Result<Option<TestEnd>, ApplianceError> {
        let mut request = schedule.request.clone();
        if request.turn == TurnWait::ProviderLimit {
            request.turn = TurnWait::AtMost(TURN_WAIT);
        }
        let mut test = tokio::select! {
            test = self.state.appliance.run(request, OptionValues::default()) => test?,
            _ = cancelled.wait_for(|wanted| *wanted) => return Ok(None),
        };
        let mut is_cancelled = false;
        loop {
            tokio::select! {
                event = test.next_event() => match event {
                    Some(event) => self.report(run, Some(&schedule.name), event.into()),
                    None => break,
                },
                _ = cancelled.wait_for(|wanted| *wanted), if !is_cancelled => {
                    is_cancelled = true;
                    test.cancel();
                }
            }
        }
        test.end().await
    }

    /// The outcome of a run to store, and the result of the run if it is not saved yet.
    fn ending(&self, ended: Result<Option<TestEnd>, ApplianceError>) -> (RunEnding, Option<Box<ResultDocument>>) {
        let at = Timestamp::now();
        let (outcome, reason) = self.outcome(&ended);
        let Ok(Some(end)) = ended else {
            return (RunEnding { at, outcome, reason, result_id: None, data_used_bytes: 0 }, None);
        };
        let unsaved = end.measured.filter(|_| end.unsaved.is_some()).map(Box::new);
        let result_id = end.saved_as.or(unsaved.as_ref().map(|result| result.id));
        (RunEnding { at, outcome, reason, result_id, data_used_bytes: end.data_used_bytes }, unsaved)
    }

    /// How a test ended, and the code of its error.
    fn outcome(&self, ended: &Result<Option<TestEnd>, ApplianceError>) -> (ScheduleRunOutcome, Option<String>) {
        let failure = match ended {
            Ok(Some(end)) => end.failure.as_ref(),
            Ok(None) => Some(&ApplianceError::Interrupted),
            Err(error) => Some(error),
        };
        let outcome = match failure {
            None => ScheduleRunOutcome::Done,
            Some(ApplianceError::Interrupted) => ScheduleRunOutcome::Interrupted,
            Some(_) => ScheduleRunOutcome::Failed,
        };
        (outcome, failure.map(|error| (self.state.appliance.state.describe)(error).code))
    }
}

fn accepted(stored: StoredSchedule) -> AcceptedSchedule {
    let StoredSchedule { id, added_at, decided_until, schedule, .. } = stored;
    AcceptedSchedule { id, added_at, decided_until, schedule }
}

/// Completes when the task of the run has ended. Without a task, never completes.
async fn ended(run: &mut Option<tokio::task::JoinHandle<()>>) {
    match run {
        Some(task) => {
            if let Err(error) = task.await {
                tracing::error!(%error, "the task of a run broke off");
            }
        }
        None => std::future::pending().await,
    }
}

/// Measures the share of the line that other traffic uses now; `None` if it cannot be known.
async fn observe_line(capacity: line_load::LineCapacity) -> Option<f64> {
    let interface = default_interface()?;
    let counters = || {
        let counter =
            |name: &str| host_facts::text(format!("/sys/class/net/{interface}/statistics/{name}"))?.trim().parse().ok();
        Some(InterfaceCounters { received: counter("rx_bytes")?, sent: counter("tx_bytes")? })
    };
    let began = Instant::now();
    let before = counters()?;
    tokio::time::sleep(OBSERVATION).await;
    line_load::share_in_use(before, counters()?, began.elapsed(), capacity)
}

/// Locks the mutex. Ignores a poisoned lock, because no change leaves these values half done.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
