//! The state that the monitor board and the tasks of the monitors share: probes, outages, conditions, and the methods
//! with which the tasks report them. Reads the clocks.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, watch};
use uuid::Uuid;

use super::carriers::ProbeCarrier;
use crate::app::Appliance;
use crate::app::clocks::since_boot;
use crate::monitor::dating::Dating;
use crate::monitor::minute::{ClosedMinute, MinuteBook, ProbeOutcome};
use crate::monitor::open_probes::{DecidedProbe, OpenProbes};
use crate::monitor::outage::{Outage, OutageWatch};
use crate::monitor::{PauseReason, ProbeTally, ProbeTotals};
use crate::store::{StoredMonitor, StoredOutage};

/// The maximum number of minutes in memory that cannot be stored yet, for example because the disk is full. Each minute
/// has the probes of all monitors. Beyond this number, the oldest minutes are dropped.
const MOST_PENDING_MINUTES: usize = 24 * 60;
/// The maximum number of outages in memory that cannot be stored yet. Beyond this number, the oldest are dropped.
const MOST_PENDING_OUTAGES: usize = 1000;

/// The name of a monitor, and its present condition.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct MonitorState {
    /// The name of the monitor.
    pub monitor: String,
    /// The present activity of the monitor, when it began, and the reason for a pause.
    #[serde(flatten)]
    pub condition: MonitorCondition,
}

/// The present activity of a monitor, when it began, and the reason for a pause.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MonitorCondition {
    /// What the monitor does at present.
    pub activity: MonitorActivity,
    /// Why the monitor is paused; absent if it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<PauseReason>,
    /// When this activity began.
    pub since: Timestamp,
}

/// What a monitor does at present.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum MonitorActivity {
    /// The monitor probes its target.
    Running,
    /// The monitor does not probe. The condition has the reason.
    Paused,
    /// The target of the monitor is not reachable.
    Unreachable,
}

impl MonitorActivity {
    /// The word for this activity, as in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Unreachable => "unreachable",
        }
    }
}

/// The state that the monitor board and the tasks of the monitors share.
pub(super) struct SharedMonitors {
    appliance: Appliance,
    live: Mutex<LiveMonitors>,
    /// Notified when an outage is to be written to the store.
    pub(super) outage_changed: Notify,
    /// Notified when minutes or an outage have been written to the store.
    pub(super) written: Notify,
    /// Counts the changes of this host, such as a new default route. After a change, earlier probes can no longer be
    /// judged.
    pub(super) host_changes: watch::Sender<u64>,
    /// Counts how often the condition of a monitor changes, and how often an outage changes.
    pub(super) changes: watch::Sender<u64>,
}

impl SharedMonitors {
    pub(super) fn new(appliance: Appliance) -> Self {
        let live = LiveMonitors {
            book: MinuteBook::new(since_boot(), Timestamp::now().as_microsecond()),
            outages: OutageWatch::default(),
            totals: BTreeMap::new(),
            conditions: BTreeMap::new(),
            minutes: Vec::new(),
            undated: VecDeque::new(),
            is_store_dated: false,
            changed_outages: BTreeMap::new(),
            dated_begins: BTreeMap::new(),
            numbers: HashMap::new(),
            names: HashMap::new(),
            problems: BTreeMap::new(),
        };
        Self {
            appliance,
            live: Mutex::new(live),
            outage_changed: Notify::new(),
            written: Notify::new(),
            host_changes: watch::channel(0).0,
            changes: watch::channel(0).0,
        }
    }

    pub(super) fn appliance(&self) -> &Appliance {
        &self.appliance
    }

    /// Locks the live state. Ignores a poisoned lock, because no change leaves this state half done.
    pub(super) fn live(&self) -> MutexGuard<'_, LiveMonitors> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a changed outage until it is written to the store. Does nothing for `None`.
    pub(super) fn note_outage(&self, changed: Option<Outage>) {
        let Some(outage) = changed else { return };
        let live = &mut *self.live();
        live.changed_outages.insert(outage.id, outage);
        self.outage_changed.notify_one();
        self.changes.send_modify(|changes| *changes += 1);
    }

    pub(super) fn pause(&self, id: Uuid, reason: PauseReason) {
        let condition =
            MonitorCondition { activity: MonitorActivity::Paused, reason: Some(reason), since: Timestamp::now() };
        self.set_condition(id, condition);
    }

    fn set_condition(&self, id: Uuid, condition: MonitorCondition) {
        let live = &mut *self.live();
        let is_same = live
            .conditions
            .get(&id)
            .is_some_and(|before| (before.activity, before.reason) == (condition.activity, condition.reason));
        if !is_same {
            let monitor = live.names.get(&id).map(String::as_str).unwrap_or_default();
            match (condition.activity, condition.reason) {
                (MonitorActivity::Running, _) => tracing::info!(monitor, "a monitor probes"),
                (MonitorActivity::Unreachable, _) => {
                    tracing::warn!(monitor, "the target of a monitor is not reachable");
                }
                (MonitorActivity::Paused, reason) => {
                    let reason = reason.map(PauseReason::as_str);
                    tracing::info!(monitor, reason, "a monitor is paused");
                }
            }
            live.conditions.insert(id, condition);
            self.changes.send_modify(|changes| *changes += 1);
        }
    }
}

/// The purposes for which the monitor board uses the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum StoreTask {
    ReadMonitors,
    WriteMinutes,
}

/// The probes, outages and conditions of the running monitors.
pub(super) struct LiveMonitors {
    pub(super) book: MinuteBook,
    pub(super) outages: OutageWatch,
    /// The totals of the probes of each monitor since the service started.
    pub(super) totals: BTreeMap<Uuid, ProbeTotals>,
    pub(super) conditions: BTreeMap<Uuid, MonitorCondition>,
    /// The complete minutes that are not written to the store yet.
    pub(super) minutes: Vec<ClosedMinute>,
    /// The latest minutes that were stored without a date, because the clock was not trusted. The overviews of monitors
    /// include them.
    pub(super) undated: VecDeque<ClosedMinute>,
    /// Whether it is certain that every row in the store has a date.
    pub(super) is_store_dated: bool,
    /// The changed outages that are not written to the store yet, in their latest state.
    pub(super) changed_outages: BTreeMap<Uuid, Outage>,
    /// The stored start of each outage that has not ended. It is kept so that a later step of the clock does not change
    /// it.
    pub(super) dated_begins: BTreeMap<Uuid, Timestamp>,
    /// The key of each monitor in the store, by the monitor's id.
    pub(super) numbers: HashMap<Uuid, i64>,
    pub(super) names: HashMap<Uuid, String>,
    /// For each use of the store whose last attempt failed, why it failed.
    pub(super) problems: BTreeMap<StoreTask, String>,
}

impl LiveMonitors {
    /// The probes of each monitor in a minute, with the key of the monitor in the store.
    pub(super) fn tallies(&self, minute: &ClosedMinute) -> Vec<(i64, ProbeTally)> {
        let row = |(id, tally): (&Uuid, &ProbeTally)| Some((*self.numbers.get(id)?, tally.clone()));
        minute.tallies.iter().filter_map(row).collect()
    }

    pub(super) fn dated(&mut self, outage: &Outage, dating: Dating) -> StoredOutage {
        let began_at = *self.dated_begins.entry(outage.id).or_insert_with(|| dating.wall_at(outage.began));
        let ended_at = outage.ended.map(|ended| dating.wall_at(ended).max(began_at));
        StoredOutage {
            id: outage.id,
            began_at,
            ended_at,
            end_known: true,
            scope: outage.scope,
            failed: outage.failed.clone(),
            reachable: outage.reachable.clone(),
        }
    }

    pub(super) fn forget_oldest(&mut self) {
        let excess = self.minutes.len().saturating_sub(MOST_PENDING_MINUTES);
        self.minutes.drain(..excess);
        while self.changed_outages.len() > MOST_PENDING_OUTAGES {
            // The ids are ordered by time, so the first outage is the oldest.
            self.changed_outages.pop_first();
        }
    }
}

/// The data that the task of a monitor needs.
pub(super) struct MonitorContext {
    pub(super) shared: Arc<SharedMonitors>,
    pub(super) stored: StoredMonitor,
}

impl MonitorContext {
    pub(super) fn appliance(&self) -> &Appliance {
        self.shared.appliance()
    }

    /// Sets the monitor's condition to running: the monitor probes its target.
    pub(super) fn running(&self) {
        let condition = MonitorCondition { activity: MonitorActivity::Running, reason: None, since: Timestamp::now() };
        self.shared.set_condition(self.stored.id, condition);
    }

    /// Sets the monitor's condition to paused, for `reason`. From now on it is not known whether the target is
    /// reachable, so the monitor counts for no outage.
    pub(super) fn paused(&self, reason: PauseReason) {
        self.shared.pause(self.stored.id, reason);
        let changed = self.shared.live().outages.paused(self.stored.id, since_boot());
        self.shared.note_outage(changed);
    }

    /// Sets the monitor's condition to unreachable. `since` is the time, counted from boot, since which the target has
    /// not been reachable.
    pub(super) fn unreachable(&self, since: Duration) {
        self.set_unreachable();
        let changed = self.shared.live().outages.unreachable(self.stored.id, since);
        self.shared.note_outage(changed);
    }

    fn set_unreachable(&self) {
        let condition =
            MonitorCondition { activity: MonitorActivity::Unreachable, reason: None, since: Timestamp::now() };
        self.shared.set_condition(self.stored.id, condition);
    }

    /// Records that a connection to the monitor's target was opened.
    pub(super) fn reached(&self) {
        let changed = self.shared.live().outages.reached(self.stored.id, since_boot());
        self.shared.note_outage(changed);
    }

    /// Whether a connection to the monitor's target must be tried to find out if the target is reachable.
    pub(super) fn wants_connection_check(&self) -> bool {
        self.shared.live().outages.wants_connection_check(self.stored.id)
    }

    /// Counts a probe that was answered or lost, and updates the outages and the monitor's condition.
    pub(super) fn decided(&self, probe: DecidedProbe) {
        let (id, DecidedProbe { sent, outcome }) = (self.stored.id, probe);
        let (changed, is_down) = {
            let live = &mut *self.shared.live();
            live.book.note(id, sent, outcome);
            live.totals.entry(id).or_default().note(outcome);
            let changed = match outcome {
                ProbeOutcome::Answered { .. } => live.outages.answered(id, sent),
                ProbeOutcome::Lost => live.outages.lost(id, sent),
            };
            (changed, live.outages.is_down(id))
        };
        match outcome {
            ProbeOutcome::Answered { .. } => self.running(),
            ProbeOutcome::Lost if is_down => self.set_unreachable(),
            ProbeOutcome::Lost => {}
        }
        self.shared.note_outage(changed);
    }

    /// For the duration `time`, records a lost probe each time a probe is due. Probes cannot be sent, because the
    /// target is not reachable.
    pub(super) async fn lose_probes(&self, time: Duration) {
        let mut probes = OpenProbes::new(self.stored.monitor.interval(), since_boot());
        let until = since_boot() + time;
        while since_boot() < until {
            let now = since_boot();
            if probes.due(now).is_some() {
                self.decided(DecidedProbe { sent: now, outcome: ProbeOutcome::Lost });
            }
            tokio::time::sleep(self.stored.monitor.interval().min(until.saturating_sub(now))).await;
        }
    }

    /// Sends probes, and calls `when_decided` for each probe that was answered or lost. Ends as soon as `when_decided`
    /// returns `Some`, and returns the value inside. Returns `None` if this host changes before that.
    pub(super) async fn keep_probing<E>(
        &self,
        carrier: &mut impl ProbeCarrier,
        mut when_decided: impl FnMut(&DecidedProbe) -> Option<E> + Send,
    ) -> Option<E> {
        let mut probes = OpenProbes::new(self.stored.monitor.interval(), since_boot());
        let mut changes = self.host_changes();
        loop {
            let now = since_boot();
            if let Some(seq) = probes.due(now) {
                carrier.send(seq);
            }
            let wait = probes.next_deadline().saturating_sub(since_boot());
            tokio::select! {
                // Reads answers before it looks at the timer: after a stall of this process, an answer that has arrived
                // must not count as lost.
                biased;
                _ = changes.changed() => return None,
                answers = carrier.answers() => {
                    for answer in answers {
                        probes.answered(answer.seq, answer.round_trip, answer.is_under_load);
                    }
                }
                () = tokio::time::sleep(wait) => {}
            }
            let decided = probes.decided(since_boot());
            for probe in decided {
                if let Some(end) = when_decided(&probe) {
                    return Some(end);
                }
            }
        }
    }

    /// A receiver that is notified when this host changes. After a change, earlier probes can no longer be judged.
    pub(super) fn host_changes(&self) -> watch::Receiver<u64> {
        let mut changes = self.shared.host_changes.subscribe();
        changes.borrow_and_update();
        changes
    }
}
