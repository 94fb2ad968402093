//! The monitors of the running service: starts and ends their tasks, collects their probes, and watches this host for
//! changes. The module `records` writes the measurements and outages. Reads the clocks.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, MutexGuard};
use std::time::Duration;

use jiff::Timestamp;
use paramedic_report::quantity;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use uuid::Uuid;

use super::context::{
    LiveMonitors, MonitorActivity, MonitorCondition, MonitorContext, MonitorState, SharedMonitors, StoreTask,
};
use super::records::MonitorRecords;
use super::{MonitorOverview, hosts, reflectors};
use crate::app::Appliance;
use crate::app::clocks::{boot_id, read_clocks, since_boot};
use crate::error::ApplianceError;
use crate::monitor::default_route::DefaultRoute;
use crate::monitor::host_changes::{HostChange, HostReading, HostWatch};
use crate::monitor::open_probes::LOST_AFTER;
use crate::monitor::outage::WatchedTarget;
use crate::monitor::{MonitorTarget, PauseReason, ProbeTotals};
use crate::store::StoredMonitor;

/// How often this host is checked for changes, and complete minutes are written.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// How often the definitions of the monitors are read again, because another process may have paired a reflector.
const RELOAD_INTERVAL: Duration = Duration::from_secs(15);
/// How long after the end of a minute all of its probes are known as answered or lost: [`LOST_AFTER`] and a margin.
const MINUTE_DELAY: Duration = Duration::from_millis(LOST_AFTER.as_millis() as u64 + 500);
/// How long to wait for the next attempt after the store could not be used.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);
/// How long the task of a monitor may take to end before it is aborted.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);

/// The monitors of a running service. Clones share them.
#[derive(Clone)]
pub(in crate::app) struct MonitorBoard {
    state: Arc<BoardState>,
}

struct BoardState {
    shared: Arc<SharedMonitors>,
    records: MonitorRecords,
    /// Whether the service itself adds monitors of the gateway and of the paired reflectors.
    adds_monitors: bool,
    /// Notified when the definitions of the monitors have changed.
    changed: Notify,
}

/// The running task of a monitor.
struct MonitorTask {
    stored: StoredMonitor,
    task: JoinHandle<()>,
    stop: watch::Sender<bool>,
}

impl MonitorBoard {
    /// Creates the board for the monitors of this appliance. [`MonitorBoard::run`] runs them.
    pub(in crate::app) fn new(appliance: Appliance, adds_monitors: bool) -> Self {
        let shared = Arc::new(SharedMonitors::new(appliance));
        let records = MonitorRecords::new(Arc::clone(&shared), boot_id());
        Self { state: Arc::new(BoardState { shared, records, adds_monitors, changed: Notify::new() }) }
    }

    /// Runs the monitors until `stopping` becomes true, then writes what they measured.
    pub(in crate::app) async fn run(&self, mut stopping: watch::Receiver<bool>) {
        let mut tasks = HashMap::new();
        let mut host = HostWatch::default();
        let mut last_look = since_boot();
        let mut reload_at = Duration::ZERO;
        let mut write_at = Duration::ZERO;
        let mut is_prepared = false;
        while !*stopping.borrow_and_update() {
            let now = since_boot();
            self.look_at_host(&mut host, last_look);
            last_look = now;
            if now >= reload_at {
                let reloaded = async {
                    if !is_prepared {
                        self.state.records.prepare().await?;
                        is_prepared = true;
                    }
                    self.reload(&mut tasks).await
                };
                let reloaded = reloaded.await;
                reload_at = now + if reloaded.is_ok() { RELOAD_INTERVAL } else { RETRY_INTERVAL };
                self.note_result(StoreTask::ReadMonitors, reloaded);
            }
            {
                let live = &mut *self.live();
                let closed = live.book.close(now, MINUTE_DELAY);
                live.minutes.extend(closed);
                live.forget_oldest();
            }
            // Writes nothing before `prepare` has succeeded, because an outage of this run could then not be
            // distinguished from one that the previous run left open.
            if is_prepared && now >= write_at {
                let written = self.state.records.write(read_clocks()).await;
                if written.is_err() {
                    write_at = now + RETRY_INTERVAL;
                }
                self.note_result(StoreTask::WriteMinutes, written);
            }
            tokio::select! {
                () = tokio::time::sleep(LOOK_INTERVAL) => {}
                () = self.state.changed.notified() => reload_at = Duration::ZERO,
                () = self.state.shared.outage_changed.notified() => {}
                _ = stopping.wait_for(|wanted| *wanted) => {}
            }
        }
        for (_, running) in tasks.drain() {
            end(running).await;
        }
        {
            let live = &mut *self.live();
            let rest = live.book.close_all();
            live.minutes.extend(rest);
        }
        if let Err(error) = self.state.records.write(read_clocks()).await {
            tracing::error!(%error, "the last minute of the monitors is not stored");
        }
    }

    fn appliance(&self) -> &Appliance {
        self.state.shared.appliance()
    }

    fn live(&self) -> MutexGuard<'_, LiveMonitors> {
        self.state.shared.live()
    }

    /// Makes the board read the definitions of the monitors again, because they have changed.
    pub(in crate::app) fn definitions_changed(&self) {
        self.state.changed.notify_one();
    }

    /// Waits until minutes or an outage have been written to the store. Wakes one caller only. Cancel safe.
    pub(in crate::app) async fn written(&self) {
        self.state.shared.written.notified().await;
    }

    /// Why the board cannot use the store at present; `None` if it can.
    pub(in crate::app) fn problem(&self) -> Option<String> {
        self.live().problems.values().next().cloned()
    }

    /// An overview of a monitor with its present state. Includes the probes that are not saved yet.
    pub(in crate::app) async fn overview(&self, stored: StoredMonitor) -> Result<MonitorOverview, ApplianceError> {
        let (id, enabled, since) = (stored.id, stored.enabled, stored.added_at);
        let (unsaved, condition) = {
            let live = self.live();
            let mut unsaved = live.book.current(id);
            let minutes = live.minutes.iter().chain(&live.undated);
            minutes.filter_map(|minute| minute.tallies.get(&id)).for_each(|tally| unsaved.merge(tally));
            (unsaved, live.conditions.get(&id).cloned())
        };
        let mut overview = self.appliance().monitor_overview(stored, unsaved).await?;
        // A task reports its new state a moment after a change, so a state that does not fit the change is replaced.
        let reason = if enabled { PauseReason::Connecting } else { PauseReason::Disabled };
        let is_known = |condition: &MonitorCondition| enabled == (condition.reason != Some(PauseReason::Disabled));
        let paused = MonitorCondition { activity: MonitorActivity::Paused, reason: Some(reason), since };
        overview.condition = Some(condition.filter(is_known).unwrap_or(paused));
        Ok(overview)
    }

    /// The present state of each monitor, sorted by name.
    pub(in crate::app) fn states(&self) -> Vec<MonitorState> {
        let live = self.live();
        let state = |(id, condition): (&Uuid, &MonitorCondition)| {
            Some(MonitorState { monitor: live.names.get(id)?.clone(), condition: condition.clone() })
        };
        let mut states = live.conditions.iter().filter_map(state).collect::<Vec<_>>();
        states.sort_by(|one, other| one.monitor.cmp(&other.monitor));
        states
    }

    /// The totals of the probes of each monitor since the service started.
    pub(in crate::app) fn totals(&self) -> BTreeMap<Uuid, ProbeTotals> {
        self.live().totals.clone()
    }

    /// Whether an outage lasts at present.
    pub(in crate::app) fn has_outage(&self) -> bool {
        self.live().outages.open().is_some()
    }

    /// A receiver of a counter that changes when the state of a monitor changes, and when an outage begins or ends.
    pub(in crate::app) fn changes(&self) -> watch::Receiver<u64> {
        self.state.shared.changes.subscribe()
    }

    fn look_at_host(&self, host: &mut HostWatch, last_look: Duration) {
        let reading = HostReading {
            since_boot: since_boot(),
            wall_us: Timestamp::now().as_microsecond(),
            routes: default_routes(),
        };
        for change in host.look(reading) {
            match change {
                HostChange::Stopped(time) => {
                    tracing::info!(seconds = time.as_secs(), "this host slept, or the service did not run");
                    self.forget_what_is_open(last_look);
                }
                HostChange::NetworkChanged => {
                    tracing::info!("the default route changed: the monitors begin anew");
                    self.forget_what_is_open(last_look);
                }
                HostChange::ClockSet(us) => {
                    tracing::warn!(seconds = us / 1_000_000, "the clock was set");
                    self.live().book.clock_set(since_boot(), Timestamp::now().as_microsecond());
                }
            }
        }
    }

    fn forget_what_is_open(&self, last_look: Duration) {
        let ended = self.live().outages.host_changed(last_look);
        self.state.shared.note_outage(ended);
        self.state.shared.host_changes.send_modify(|changes| *changes += 1);
    }

    /// Reads the definitions of the monitors, and starts and ends their tasks accordingly.
    async fn reload(&self, tasks: &mut HashMap<Uuid, MonitorTask>) -> Result<(), ApplianceError> {
        let added = if self.state.adds_monitors { self.appliance().ensure_monitors().await? } else { Vec::new() };
        for added in added {
            let month = quantity::bytes(added.monitor.bytes_a_month());
            tracing::info!(
                monitor = added.monitor.name,
                target = %added.monitor.target,
                "a monitor runs from now on; it uses about {month} a month"
            );
        }
        let stored = self.appliance().store().await?.monitors().await?;
        if self.live().numbers.is_empty() && !stored.is_empty() {
            let bytes =
                stored.iter().filter(|stored| stored.enabled).map(|stored| stored.monitor.bytes_a_month()).sum();
            let names = stored.iter().filter(|stored| stored.enabled).map(|stored| stored.monitor.name.as_str());
            let names = names.collect::<Vec<_>>().join(", ");
            tracing::info!("monitors: {names}; they use about {} a month", quantity::bytes(bytes));
        }
        let wanted = stored.into_iter().map(|stored| (stored.id, stored)).collect::<HashMap<_, _>>();
        let obsolete = tasks.iter().filter(|(id, running)| {
            let is_wanted =
                wanted.get(*id).is_some_and(|stored| stored.enabled && stored.monitor == running.stored.monitor);
            // A task that has ended unexpectedly is started again.
            !is_wanted || running.task.is_finished()
        });
        let obsolete = obsolete.map(|(id, _)| *id).collect::<Vec<_>>();
        for id in obsolete {
            if let Some(running) = tasks.remove(&id) {
                end(running).await;
            }
        }
        self.watch_targets(&wanted);
        for (id, stored) in wanted {
            if !stored.enabled {
                self.state.shared.pause(id, PauseReason::Disabled);
                continue;
            }
            tasks.entry(id).or_insert_with(|| {
                self.state.shared.pause(id, PauseReason::Connecting);
                self.start(stored)
            });
        }
        Ok(())
    }

    fn watch_targets(&self, wanted: &HashMap<Uuid, StoredMonitor>) {
        let changed = {
            let live = &mut *self.live();
            live.numbers = wanted.iter().map(|(id, stored)| (*id, stored.number)).chain(live.numbers.drain()).collect();
            let names = wanted.iter().map(|(id, stored)| (*id, stored.monitor.name.clone())).collect();
            if std::mem::replace(&mut live.names, names) != live.names {
                self.state.shared.changes.send_modify(|changes| *changes += 1);
            }
            live.conditions.retain(|id, _| wanted.contains_key(id));
            live.totals.retain(|id, _| wanted.contains_key(id));
            let target = |stored: &StoredMonitor| WatchedTarget {
                name: stored.monitor.name.clone(),
                is_gateway: stored.monitor.target == MonitorTarget::Gateway,
                needs_connection_check: matches!(stored.monitor.target, MonitorTarget::Reflector(_)),
            };
            let targets = wanted.iter().filter(|(_, stored)| stored.enabled);
            let targets = targets.map(|(id, stored)| (*id, target(stored))).collect();
            live.outages.set_targets(targets, since_boot())
        };
        self.state.shared.note_outage(changed);
    }

    fn start(&self, stored: StoredMonitor) -> MonitorTask {
        let (stop, stopped) = watch::channel(false);
        let context = MonitorContext { shared: Arc::clone(&self.state.shared), stored: stored.clone() };
        let task = tokio::spawn(async move {
            match context.stored.monitor.target.clone() {
                MonitorTarget::Gateway => hosts::probe_gateway(&context, stopped).await,
                MonitorTarget::Dns { resolver, name } => {
                    hosts::probe_dns(&context, &resolver, &name, stopped).await;
                }
                MonitorTarget::Host(host) => hosts::probe_host(&context, &host, stopped).await,
                MonitorTarget::Http(url) => hosts::probe_http(&context, &url, stopped).await,
                MonitorTarget::Reflector(name) => reflectors::probe(&context, &name, stopped).await,
            }
        });
        MonitorTask { stored, task, stop }
    }

    /// Keeps the reason why this use of the store failed, until the same use succeeds. Logs each change.
    fn note_result(&self, task: StoreTask, result: Result<(), ApplianceError>) {
        let problem = result.err().map(|error| error.to_string());
        let live = &mut *self.live();
        let before = match &problem {
            Some(problem) => live.problems.insert(task, problem.clone()),
            None => live.problems.remove(&task),
        };
        match problem {
            Some(problem) if before.as_ref() != Some(&problem) => {
                tracing::error!(
                    problem,
                    "the monitors cannot use the store; what they measure is kept and stored later"
                );
            }
            None if before.is_some() => tracing::info!("the monitors can use the store again"),
            _ => {}
        }
    }
}

/// Asks the task of a monitor to end, and aborts it after [`STOP_TIMEOUT`].
async fn end(mut running: MonitorTask) {
    running.stop.send_replace(true);
    if tokio::time::timeout(STOP_TIMEOUT, &mut running.task).await.is_err() {
        running.task.abort();
    }
}

/// The default routes of this host, each with its interface and its gateway.
fn default_routes() -> Vec<(String, String)> {
    let gateway = |route: &DefaultRoute| route.gateway.map(|gateway| gateway.to_string()).unwrap_or_default();
    hosts::routes().into_iter().map(|route| (route.interface.clone(), gateway(&route))).collect()
}
