//! Judges measurements by the alert rules while the service runs, and stores which alerts open and close. Reads the
//! clocks.
//!
//! For each rule, the store contains the time until which the rule has judged. That time and the rule's alerts change
//! in one transaction. After a crash, the values since that time are judged again, with the same outcome.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::sync::{Notify, mpsc, watch};
use uuid::Uuid;

use super::observing::{self, TestReadings, UsualCache};
use super::writing;
use crate::alerts::judge::{RuleJudge, SeenValue};
use crate::alerts::lasting::{self, SeenOutage};
use crate::alerts::reading::MainUplink;
use crate::alerts::{AlertAction, MetricSource};
use crate::app::Appliance;
use crate::app::clocks::read_clocks;
use crate::app::delivery::DeliveryDesk;
use crate::app::monitors::MonitorBoard;
use crate::app::run_updates::{RunLife, RunReport, RunUpdateListener, RunUpdates};
use crate::error::ApplianceError;
use crate::plan::Plan;
use crate::store::{AlertWrite, ApplianceStore, RuleWrite, RunQuery, StorageError, StoredAlert, StoredRule};

const DAY: SignedDuration = SignedDuration::from_hours(24);
/// How often the service judges measurements even if no event wakes it. Another process may have stored a result.
const LOOK_INTERVAL: Duration = Duration::from_secs(60);
/// How long to wait after a failed pass before the next one.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);
/// At its start, the service reads at least this many of the latest tests, because a rule may judge by several of the
/// last values.
const RECENT_TESTS: usize = 200;
/// The maximum time between the start and the end of a test, including its wait for other tests.
const LONGEST_TEST: SignedDuration = SignedDuration::from_hours(4);
/// The maximum number of tests that are read in one pass.
const MOST_TESTS: u32 = 2000;
/// The maximum number of open alerts that are read in one pass.
const MOST_OPEN: u32 = 1000;
/// How long after the end of a test a rule can still have the test repeated.
const RETEST_WITHIN: SignedDuration = SignedDuration::from_secs(15 * 60);
/// The minimum time between two repetitions of tests against the same target.
const RETEST_INTERVAL: SignedDuration = SignedDuration::from_hours(1);
/// The maximum number of queued requests to repeat a test.
const MOST_RETESTS: usize = 8;
/// While no alert of a rule opens or closes, the time until which the rule has judged is stored this often. After a
/// restart, the rule judges again from the stored time on.
const PROGRESS_INTERVAL: SignedDuration = SignedDuration::from_hours(1);
/// The maximum time from the start or the end of an outage until that start or end is in the store.
const OUTAGE_DELAY: SignedDuration = SignedDuration::from_secs(600);
/// If a result is dated further than this in the future, the clock was wrong when it was measured.
const CLOCK_ERROR: SignedDuration = SignedDuration::from_secs(60);

/// The alert rules of a running service. Clones share them.
#[derive(Clone)]
pub(in crate::app) struct AlertBoard {
    state: Arc<AlertBoardState>,
}

struct AlertBoardState {
    appliance: Appliance,
    started_at: Timestamp,
    /// Notified when the alert rules have changed.
    changed: Notify,
    retests: mpsc::Sender<RetestWish>,
    problem: Mutex<Option<String>>,
}

/// A request of a rule to repeat a test.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::app) struct RetestWish {
    /// The name of the rule that wants the repetition.
    pub(in crate::app) rule: String,
    /// The name of the reflector or server against which the test is repeated.
    pub(in crate::app) subject: String,
}

/// The data that the service keeps in memory between two passes of judging.
#[derive(Default)]
struct AlertMemory {
    /// The values of the latest tests, in the order in which the tests ended.
    recent: VecDeque<TestReadings>,
    /// The ids of the tests that need not be read again: those in `recent`, and those that the last pass found in the
    /// store.
    known: HashSet<Uuid>,
    is_prepared: bool,
    uplinks: MainUplink,
    usual: UsualCache,
    rules: HashMap<Uuid, LiveRule>,
    retested: HashMap<String, Timestamp>,
}

/// An enabled rule with its state in memory.
struct LiveRule {
    /// The rule as it is stored.
    stored: StoredRule,
    judge: RuleJudge,
    /// The time until which the rule had judged when the service loaded the rule. Tests that ended before that time are
    /// not judged again.
    learned_until: Timestamp,
    /// The time until which the rule has judged.
    judged_until: Timestamp,
    /// For each subject, the end of the test or window that gave its latest judged value.
    last_values: BTreeMap<String, Timestamp>,
    /// For each subject with an open alert of the rule: the id of the alert, and when the values of the subject began
    /// to violate the rule.
    open: BTreeMap<String, (Uuid, Timestamp)>,
}

/// The data that all rules share in one pass of judging.
struct AlertPass<'a> {
    store: &'a ApplianceStore,
    now: Timestamp,
    started_at: Timestamp,
    plan: Option<Plan>,
    outages: Vec<SeenOutage>,
    open: Vec<StoredAlert>,
}

impl AlertBoard {
    /// Creates the board for the alert rules of this appliance, and the receiver of the requests to repeat a test.
    /// [`AlertBoard::run`] then judges the measurements.
    pub(in crate::app) fn new(appliance: Appliance, started_at: Timestamp) -> (Self, mpsc::Receiver<RetestWish>) {
        let (retests, wishes) = mpsc::channel(MOST_RETESTS);
        let (changed, problem) = (Notify::new(), Mutex::default());
        (Self { state: Arc::new(AlertBoardState { appliance, started_at, changed, retests, problem }) }, wishes)
    }

    /// Starts a pass of judging, because the rules have changed.
    pub(in crate::app) fn rules_changed(&self) {
        self.state.changed.notify_one();
    }

    /// Why measurements cannot be judged at present; `None` if they can be.
    pub(in crate::app) fn problem(&self) -> Option<String> {
        self.state.problem.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Judges measurements until `stopping` becomes true: after each test, when monitors have written something, when
    /// rules have changed, and once a minute.
    pub(in crate::app) async fn run(
        &self,
        monitors: &MonitorBoard,
        updates: &RunUpdates,
        deliveries: &DeliveryDesk,
        mut stopping: watch::Receiver<bool>,
    ) {
        let mut memory = AlertMemory::default();
        let mut listener = updates.subscribe();
        while !*stopping.borrow_and_update() {
            let clocks = read_clocks();
            let judged = if clocks.is_trusted() { self.pass(&mut memory, clocks.wall).await } else { Ok(false) };
            let wait = if judged.is_ok() { LOOK_INTERVAL } else { RETRY_INTERVAL };
            if judged.is_err() {
                // Forgets everything in memory, because only the store knows what was judged.
                memory = AlertMemory::default();
            }
            if matches!(judged, Ok(true)) {
                deliveries.wake();
            }
            self.note_result(judged.map(drop));
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.state.changed.notified() => {}
                () = monitors.written() => {}
                () = run_ended(&mut listener) => {}
                _ = stopping.wait_for(|wanted| *wanted) => {}
            }
        }
    }

    /// Judges the measurements that are new at `now`, by all enabled rules. Returns whether an alert opened or closed.
    async fn pass(&self, memory: &mut AlertMemory, now: Timestamp) -> Result<bool, ApplianceError> {
        let store = self.state.appliance.store().await?;
        let own = self.state.appliance.endpoint_id()?.to_string();
        let enabled = store.rules().await?.into_iter().filter(|stored| stored.enabled).collect::<Vec<_>>();
        memory.rules.retain(|_, live| enabled.contains(&live.stored));
        if enabled.is_empty() {
            *memory = AlertMemory::default();
            return Ok(false);
        }
        let fresh = match earliest(&enabled, MetricSource::Tests, now) {
            Some(since) => memory.read_tests(store, since, now).await?,
            None => 0,
        };
        let pass = self.shared(store, &enabled, now).await?;
        let mut is_changed = false;
        for stored in enabled {
            let AlertMemory { recent, usual, rules, retested, .. } = &mut *memory;
            let (mut live, tests) = match rules.remove(&stored.id) {
                Some(live) => (live, fresh),
                None => (pass.restored(stored, recent, usual).await?, recent.len()),
            };
            let tests = recent.iter().skip(recent.len() - tests);
            let actions = pass.judge(&mut live, tests, usual).await?;
            is_changed |= actions.iter().any(|action| !matches!(action, AlertAction::Retest { .. }));
            if pass.write(&own, &mut live, actions.clone()).await? {
                self.wish_retests(&live.stored.rule.name, actions, retested, now);
                rules.insert(live.stored.id, live);
            }
        }
        Ok(is_changed)
    }

    /// Reads the data that all rules share in this pass.
    async fn shared<'a>(
        &self,
        store: &'a ApplianceStore,
        enabled: &[StoredRule],
        now: Timestamp,
    ) -> Result<AlertPass<'a>, ApplianceError> {
        // Monitor windows that ended more than a day ago are not judged, even if no later window was judged.
        let day = now.checked_sub(DAY).unwrap_or(now);
        let of_windows = earliest(enabled, MetricSource::Monitors, now).map(|since| since.max(day));
        let of_outages = earliest(enabled, MetricSource::Outages, now);
        let outages = match of_outages.into_iter().chain(of_windows).min() {
            Some(since) => observing::outages(store, since.checked_sub(DAY).unwrap_or(since)).await?,
            None => Vec::new(),
        };
        let plan = store.plan().await?.map(|stored| stored.plan);
        let open = store.alerts(true, None, MOST_OPEN).await?;
        Ok(AlertPass { store, now, started_at: self.state.started_at, plan, outages, open })
    }

    /// Requests a repetition for each [`AlertAction::Retest`] in `actions`. Skips an action if the test to repeat ended
    /// too long ago, or if a repetition for the same subject was requested a short time ago.
    fn wish_retests(
        &self,
        rule: &str,
        actions: Vec<AlertAction>,
        retested: &mut HashMap<String, Timestamp>,
        now: Timestamp,
    ) {
        retested.retain(|_, at| now.duration_since(*at) < RETEST_INTERVAL);
        for action in actions {
            let AlertAction::Retest { subject, at } = action else { continue };
            if now.duration_since(at) > RETEST_WITHIN || retested.contains_key(&subject) {
                continue;
            }
            retested.insert(subject.clone(), now);
            let wish = RetestWish { rule: rule.to_owned(), subject };
            if let Err(error) = self.state.retests.try_send(wish) {
                tracing::warn!(%error, "a test is not repeated; the next test decides about the alert");
            }
        }
    }

    /// Keeps the reason why a pass failed, until a pass succeeds. Logs each change.
    fn note_result(&self, judged: Result<(), ApplianceError>) {
        let problem = judged.err().map(|error| error.to_string());
        let before = {
            let mut kept = self.state.problem.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::replace(&mut *kept, problem.clone())
        };
        match problem {
            Some(problem) if before.as_ref() != Some(&problem) => {
                tracing::error!(problem, "the alert rules cannot judge measurements; they will judge them later");
            }
            None if before.is_some() => tracing::info!("the alert rules can judge measurements again"),
            _ => {}
        }
    }
}

impl AlertMemory {
    /// Reads the tests that were stored since the last pass. The first pass reads the tests since `earliest`. If these
    /// are fewer than [`RECENT_TESTS`], it reads the latest [`RECENT_TESTS`] tests instead. Returns the number of new
    /// tests. These tests are then the last ones in `recent`.
    async fn read_tests(
        &mut self,
        store: &ApplianceStore,
        earliest: Timestamp,
        now: Timestamp,
    ) -> Result<usize, ApplianceError> {
        let since = if self.is_prepared { now } else { earliest };
        let since = since.checked_sub(LONGEST_TEST).unwrap_or(since);
        let mut runs = store.runs(&RunQuery { since: Some(since), ..RunQuery::default() }, None, MOST_TESTS).await?;
        let latest = runs.iter().map(|run| run.id).collect::<HashSet<_>>();
        if !self.is_prepared && runs.len() < RECENT_TESTS {
            let newest = u32::try_from(RECENT_TESTS).unwrap_or(u32::MAX);
            runs = store.runs(&RunQuery::default(), None, newest).await?;
        }
        let (mut fresh, known) = (Vec::new(), store.reflectors().await?);
        for run in runs.iter().rev().filter(|run| !self.known.contains(&run.id)) {
            let document = store.run(&run.id.to_string()).await.and_then(|saved| saved.document());
            match document {
                Ok(document) => {
                    self.uplinks.note(&document);
                    fresh.push(TestReadings::of(&document, &self.uplinks, &known));
                }
                Err(error @ (StorageError::NoSuchRun { .. } | StorageError::Document { .. })) => {
                    tracing::warn!(run = %run.id, %error, "a result is not judged");
                }
                Err(error) => return Err(error.into()),
            }
            tokio::task::yield_now().await;
        }
        // Removes results that were dated while the clock was wrong.
        fresh.retain(|test| test.finished_at.duration_since(now) <= CLOCK_ERROR);
        fresh.sort_by_key(|test| test.finished_at);
        let count = fresh.len();
        self.recent.extend(fresh);
        while self.recent.len() > count.max(RECENT_TESTS) {
            self.recent.pop_front();
        }
        self.known = latest;
        self.known.extend(self.recent.iter().map(|test| test.id));
        self.is_prepared = true;
        Ok(count)
    }
}

impl AlertPass<'_> {
    /// Restores the state of a rule: the values that it has judged before, and its open alerts.
    async fn restored(
        &self,
        stored: StoredRule,
        recent: &VecDeque<TestReadings>,
        usual: &mut UsualCache,
    ) -> Result<LiveRule, ApplianceError> {
        let rule = &stored.rule;
        // If the stored time is in the future, the clock was ahead when it was stored. The rule must judge
        // nevertheless.
        let judged_until = stored.judged_until.min(self.now);
        let own = self.open.iter().filter(|alert| alert.rule_id == stored.id);
        let open = own.map(|alert| (alert.subject.clone(), (alert.id, alert.opening.finding.since)));
        let open = open.collect::<BTreeMap<_, _>>();
        let closings = self.store.last_closings(stored.id).await?;
        let values = match rule.metric.source() {
            MetricSource::Tests => {
                let before = recent.iter().filter(|test| test.finished_at <= judged_until);
                before.filter_map(|test| test.value(rule.metric).cloned()).collect()
            }
            MetricSource::Monitors => {
                let span = i64::from(rule.of.saturating_mul(rule.window_minutes)).saturating_mul(3 * 60);
                let since = judged_until.checked_sub(SignedDuration::from_secs(span)).unwrap_or(judged_until);
                let mut windows = observing::windows(self.store, rule, &self.outages, since, self.now).await?;
                windows.retain(|seen| seen.at <= judged_until);
                windows
            }
            MetricSource::Outages | MetricSource::Clock => Vec::new(),
        };
        let mut judge = RuleJudge::new(rule.clone());
        let is_counted = |seen: &&SeenValue| {
            seen.at > stored.added_at && closings.get(&seen.subject).is_none_or(|closed| seen.at > *closed)
        };
        for seen in values.iter().filter(is_counted) {
            let references = usual.references(self.store, rule, seen, self.plan.as_ref(), self.now).await?;
            judge.learn(seen, references);
        }
        for (subject, (_, since)) in &open {
            judge.restore_open(subject, *since);
        }
        let last_values = BTreeMap::new();
        Ok(LiveRule { stored, judge, learned_until: judged_until, judged_until, last_values, open })
    }

    /// Judges the measurements that are new for the rule. `tests` are the tests that the rule has not seen yet.
    async fn judge(
        &self,
        live: &mut LiveRule,
        tests: impl Iterator<Item = &TestReadings>,
        usual: &mut UsualCache,
    ) -> Result<Vec<AlertAction>, ApplianceError> {
        let rule = live.stored.rule.clone();
        let open_since = live.open.values().next().map(|(_, since)| *since);
        let values = match rule.metric.source() {
            MetricSource::Tests => {
                let new = tests.filter(|test| test.finished_at > live.learned_until);
                new.filter_map(|test| test.value(rule.metric).cloned()).collect()
            }
            MetricSource::Monitors => self.new_windows(live).await?,
            MetricSource::Outages => {
                let since = open_since.map_or(live.judged_until, |open| open.min(live.judged_until));
                let is_new = |outage: &&SeenOutage| outage.ended.is_none_or(|ended| ended >= since);
                let outages = self.outages.iter().filter(is_new).cloned().collect::<Vec<_>>();
                let actions = lasting::judge_outages(&rule, open_since, &outages, live.judged_until, self.now);
                let stored = self.now.checked_sub(OUTAGE_DELAY).unwrap_or(live.judged_until);
                live.judged_until = actions.last().map_or(live.judged_until.max(stored), found_at);
                return Ok(actions);
            }
            MetricSource::Clock => {
                live.judged_until = self.now;
                let Some(last) = self.store.last_complete_run(self.now).await? else { return Ok(Vec::new()) };
                let started_at = self.started_at.max(live.stored.added_at);
                let action = lasting::judge_silence(&rule, open_since, last, started_at, self.now);
                return Ok(action.into_iter().collect());
            }
        };
        let mut actions = Vec::new();
        for seen in values {
            let references = usual.references(self.store, &rule, &seen, self.plan.as_ref(), self.now).await?;
            match live.judge.judge(&seen, references) {
                Ok(action) => actions.extend(action),
                Err(reason) => {
                    tracing::debug!(rule = rule.name, subject = seen.subject, reason = reason.as_words(), "not judged");
                }
            }
            live.judged_until = live.judged_until.max(seen.at);
            live.last_values.insert(seen.subject, seen.at);
        }
        Ok(actions)
    }

    /// The windows of monitor measurements that the rule has not judged yet.
    async fn new_windows(&self, live: &LiveRule) -> Result<Vec<SeenValue>, ApplianceError> {
        let rule = &live.stored.rule;
        // A window without a probe in its last minute is complete a little later than others, so earlier windows are
        // read again.
        let delay = SignedDuration::from_mins(i64::from(rule.window_minutes) + 2);
        let since = live.judged_until.checked_sub(delay).unwrap_or(live.judged_until).max(live.learned_until);
        // After a long pause, old windows are not worth a message.
        let since = since.max(self.now.checked_sub(DAY).unwrap_or(self.now));
        let mut windows = observing::windows(self.store, rule, &self.outages, since, self.now).await?;
        windows.retain(|seen| live.last_values.get(&seen.subject).is_none_or(|last| seen.at > *last));
        Ok(windows)
    }

    /// Stores which alerts open and close, and the time until which the rule has judged. Returns `false` if the rule
    /// was removed or disabled meanwhile.
    async fn write(&self, own: &str, live: &mut LiveRule, actions: Vec<AlertAction>) -> Result<bool, ApplianceError> {
        let mut writes = Vec::new();
        for action in actions {
            let open = match &action {
                AlertAction::Close { subject, .. } => live.open.remove(subject).map(|(id, _)| id),
                _ => None,
            };
            let write = writing::write_of(&live.stored, action, open, self.now);
            if let Some(AlertWrite::Open(alert, _)) = &write {
                live.open.insert(alert.subject.clone(), (alert.id, alert.opening.finding.since));
            }
            writes.extend(write);
        }
        let progress = live.judged_until.duration_since(live.stored.judged_until.min(self.now));
        if writes.is_empty() && progress < PROGRESS_INTERVAL {
            return Ok(true);
        }
        let change = RuleWrite::JudgedUntil(live.judged_until);
        if !self.store.change_rule(own, &live.stored, change, &writes, self.now).await? {
            return Ok(false);
        }
        let until = live.judged_until.as_microsecond();
        live.stored.judged_until = Timestamp::from_microsecond(until).unwrap_or(live.judged_until);
        for write in &writes {
            match write {
                AlertWrite::Open(alert, say) => {
                    tracing::warn!(
                        rule = alert.rule,
                        subject = alert.subject,
                        title = say.message.title,
                        "an alert opened"
                    );
                }
                AlertWrite::Close { id, say, .. } => {
                    tracing::info!(alert = %id, rule = live.stored.rule.name, title = say.message.title, "an alert closed");
                }
            }
        }
        Ok(true)
    }
}

/// Each rule has judged until some time. This is the earliest such time of the enabled rules whose values come from
/// `source`; `None` if there is no such rule.
fn earliest(enabled: &[StoredRule], source: MetricSource, now: Timestamp) -> Option<Timestamp> {
    let own = enabled.iter().filter(|stored| stored.rule.metric.source() == source);
    own.map(|stored| stored.judged_until.min(now)).min()
}

fn found_at(action: &AlertAction) -> Timestamp {
    match action {
        AlertAction::Open { finding, .. } | AlertAction::Close { finding, .. } => finding.at,
        AlertAction::Retest { at, .. } => *at,
    }
}

/// Waits until a run has ended, or until `listener` has missed updates, which may include the end of a run.
async fn run_ended(listener: &mut RunUpdateListener) {
    while let Some(update) = listener.next().await {
        if matches!(update.report, RunReport::Life(RunLife::Ended { .. })) {
            return;
        }
    }
}

#[cfg(test)]
mod tests;
