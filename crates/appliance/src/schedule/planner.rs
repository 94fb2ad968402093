//! Decides which runs of schedules are due: a state machine over all enabled schedules. Only one test runs at a time.
//! If several runs are due, the run that was due first starts first. Runs that were due at the same time start in the
//! order of their names. Pure: no I/O, no clock.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use uuid::Uuid;

use super::admission::SkipReason;
use super::definition::{MissedRunPolicy, Schedule};

/// A run that is late by at most this time counts as being on time.
const LATE_GRACE: SignedDuration = SignedDuration::from_secs(10 * 60);
/// If the system clock moves by more than this relative to the time since boot, all runs are planned anew. A smaller
/// step only makes a run late or early.
const CLOCK_STEP: SignedDuration = LATE_GRACE;
/// For this long after boot, a clock that is not synchronised is not trusted, because a board without a battery first
/// has to get the time from the network.
const SYNCHRONISATION_TIME: Duration = Duration::from_secs(10 * 60);
/// The start of 2025, in seconds since 1970. A clock that shows an earlier time is wrong.
const EARLIEST_SECOND: i64 = 1_735_689_600;
/// The longest time between two calls of [`Planner::poll`]. A step of the clock is noticed within this time.
pub const LONGEST_WAIT: Duration = Duration::from_secs(15);

/// A reading of the device's clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClockReading {
    /// The time of the system clock.
    pub wall: Timestamp,
    /// The time since boot, including the time in suspend (CLOCK_BOOTTIME).
    pub since_boot: Duration,
    /// Whether the kernel reports that the system clock is synchronised.
    pub is_synchronised: bool,
}

impl ClockReading {
    /// Whether the time of the system clock can be trusted.
    pub fn is_trusted(self) -> bool {
        self.wall.as_second() >= EARLIEST_SECOND && (self.is_synchronised || self.since_boot >= SYNCHRONISATION_TIME)
    }
}

/// An enabled schedule, as stored in the database.
#[derive(Clone, Debug, PartialEq)]
pub struct AcceptedSchedule {
    /// The id of the schedule, a UUIDv7.
    pub id: Uuid,
    /// When the schedule was added. Its intervals count from this time.
    pub added_at: Timestamp,
    /// Up to this time, it is decided for every occurrence whether its run starts. This is the time at which the
    /// schedule was added or enabled, or the time of the latest occurrence whose run was started or skipped.
    pub decided_until: Timestamp,
    /// The definition of the schedule.
    pub schedule: Schedule,
}

/// A run of a schedule that is due now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DueRun {
    /// The id of the schedule.
    pub schedule: Uuid,
    /// The name of the schedule.
    pub name: String,
    /// The time of the occurrence, without the random delay.
    pub due: Timestamp,
    /// Whether the user or an alert rule requested the run. Otherwise, an occurrence of the schedule made it due. The
    /// conditions of the schedule, such as its quiet hours, do not apply to a run that the user requested.
    pub is_requested: bool,
}

/// A run of a schedule that does not start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SkippedRun {
    /// The run that does not start.
    pub run: DueRun,
    /// Why the run does not start.
    pub reason: SkipReason,
}

/// The result of [`Planner::poll`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Polled {
    /// The runs that do not start. The caller must store them.
    pub skipped: Vec<SkippedRun>,
    /// How many seconds the system clock was set forward; negative if it was set back. `None` if it was set by at most
    /// 10 minutes, or not at all.
    pub clock_step_s: Option<i64>,
    /// The caller must poll again after this time at the latest.
    pub wait: Duration,
}

/// The state machine of the planner: all enabled schedules, the queue of due runs, and the schedule whose run is
/// active.
#[derive(Debug, Default)]
pub struct Planner {
    entries: BTreeMap<Uuid, PlannerEntry>,
    /// The last reading of the clocks at which the system clock was trusted.
    last: Option<ClockReading>,
    due: Vec<DueRun>,
    running: Option<Uuid>,
}

#[derive(Debug)]
struct PlannerEntry {
    accepted: AcceptedSchedule,
    planned: Option<PlannedRun>,
}

/// The next planned run of a schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlannedRun {
    /// The time of the occurrence, without the random delay.
    pub due: Timestamp,
    /// When the run starts: the occurrence plus the random delay.
    pub start: Timestamp,
}

/// Why a run that the user requested is not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAccepted {
    /// No enabled schedule has this id.
    #[error("no enabled schedule has this id")]
    Unknown,
    /// A run of the schedule is already waiting or running.
    #[error("a run of this schedule is already waiting or running")]
    AlreadyDue,
}

impl Planner {
    /// Replaces the planner's schedules by those of the database. A schedule that did not change keeps its planned run.
    pub fn set_schedules(&mut self, accepted: Vec<AcceptedSchedule>) {
        let mut before = std::mem::take(&mut self.entries);
        for accepted in accepted {
            let id = accepted.id;
            let entry = match before.remove(&id) {
                Some(entry) if entry.is_same(&accepted) => entry,
                _ => PlannerEntry { accepted, planned: None },
            };
            self.entries.insert(id, entry);
        }
        self.due.retain(|run| self.entries.contains_key(&run.schedule));
    }

    /// Moves runs that are due into the queue. `random` returns numbers from 0 to 1.
    pub fn poll(&mut self, now: ClockReading, random: &mut dyn FnMut() -> f64) -> Polled {
        let mut polled = Polled { wait: LONGEST_WAIT, ..Polled::default() };
        if !now.is_trusted() {
            return polled;
        }
        polled.clock_step_s = self.last.and_then(|last| step(last, now)).map(|step| step.as_secs());
        self.last = Some(now);
        for entry in self.entries.values_mut() {
            if polled.clock_step_s.is_some() {
                // Times that the step skipped never occurred, and times that it repeated were decided before, so
                // nothing was missed.
                entry.planned = None;
                entry.accepted.decided_until = now.wall;
            }
            let Some((due, is_in_time)) = entry.due_at(now.wall, random) else { continue };
            let accepted = &mut entry.accepted;
            accepted.decided_until = due;
            let (schedule, name) = (accepted.id, accepted.schedule.name.clone());
            let run = DueRun { schedule, name, due, is_requested: false };
            let is_pending = self.running == Some(schedule) || self.due.iter().any(|other| other.schedule == schedule);
            if is_pending {
                polled.skipped.push(SkippedRun { run, reason: SkipReason::StillRunning });
            } else if is_in_time || accepted.schedule.missed == MissedRunPolicy::Once {
                self.due.push(run);
            } else {
                polled.skipped.push(SkippedRun { run, reason: SkipReason::Missed });
            }
            entry.plan_next(now.wall, random);
        }
        let next = self.entries.values().filter_map(|entry| entry.planned).map(|planned| planned.start).min();
        if let Some(next) = next {
            let wait = Duration::try_from(next.duration_since(now.wall)).unwrap_or_default();
            polled.wait = wait.min(LONGEST_WAIT);
        }
        polled
    }

    /// Queues a run that the user requested.
    pub fn request(&mut self, schedule: Uuid, now: Timestamp) -> Result<(), NotAccepted> {
        let entry = self.entries.get(&schedule).ok_or(NotAccepted::Unknown)?;
        if self.running == Some(schedule) || self.due.iter().any(|run| run.schedule == schedule) {
            return Err(NotAccepted::AlreadyDue);
        }
        let name = entry.accepted.schedule.name.clone();
        self.due.push(DueRun { schedule, name, due: now, is_requested: true });
        Ok(())
    }

    /// Takes the next run from the queue, unless a run is active. The taken run is active until [`Planner::ended`].
    pub fn take(&mut self) -> Option<(DueRun, Schedule)> {
        if self.running.is_some() {
            return None;
        }
        let first = (0..self.due.len()).min_by(|a, b| {
            let key = |at: &usize| self.due.get(*at).map(|run| (run.due, &run.name));
            key(a).cmp(&key(b))
        })?;
        let run = self.due.remove(first);
        let schedule = self.entries.get(&run.schedule)?.accepted.schedule.clone();
        self.running = Some(run.schedule);
        Some((run, schedule))
    }

    /// Puts a run that could not start back into the queue, unless its schedule is gone or has another run in the
    /// queue.
    pub fn put_back(&mut self, run: DueRun) {
        if self.entries.contains_key(&run.schedule) && self.due.iter().all(|other| other.schedule != run.schedule) {
            self.due.push(run);
        }
    }

    /// Records that the run which [`Planner::take`] returned has ended, or did not start.
    pub fn ended(&mut self) {
        self.running = None;
    }

    /// Empties the queue. Returns its runs as skipped runs.
    pub fn drain(&mut self) -> Vec<SkippedRun> {
        self.due.drain(..).map(|run| SkippedRun { run, reason: SkipReason::Stopped }).collect()
    }

    /// The planned run of each schedule, with the name of the schedule.
    pub fn planned(&self) -> impl Iterator<Item = (&str, PlannedRun)> {
        self.entries.values().filter_map(|entry| Some((entry.accepted.schedule.name.as_str(), entry.planned?)))
    }

    /// The due runs in the queue, which have not started.
    pub fn queued(&self) -> impl Iterator<Item = &DueRun> {
        self.due.iter()
    }
}

impl PlannerEntry {
    /// Whether `stored` equals the schedule of this entry. `decided_until` is not compared, because the planner itself
    /// changes it.
    fn is_same(&self, stored: &AcceptedSchedule) -> bool {
        let own = &self.accepted;
        own.schedule == stored.schedule && own.added_at == stored.added_at
    }

    /// The time of the occurrence that is due now, and whether its run is on time. If none is due, plans the next one.
    fn due_at(&mut self, now: Timestamp, random: &mut dyn FnMut() -> f64) -> Option<(Timestamp, bool)> {
        if let Some(planned) = self.planned {
            if planned.start > now {
                return None;
            }
            if now.duration_since(planned.start) <= LATE_GRACE {
                return Some((planned.due, true));
            }
            // The device slept, perhaps through several occurrences.
        }
        // A clock that was ahead can have stored a time in the future.
        let decided = self.accepted.decided_until.min(now);
        let frame = self.accepted.schedule.frame(self.accepted.added_at);
        let last = self.accepted.schedule.when.last_until(now, &frame).filter(|last| *last > decided);
        let Some(last) = last else {
            self.plan_next(now, random);
            return None;
        };
        let start = last.checked_add(self.delay(random())).unwrap_or(last);
        if start > now {
            self.planned = Some(PlannedRun { due: last, start });
            return None;
        }
        Some((last, now.duration_since(start) <= LATE_GRACE))
    }

    /// Plans the first occurrence after `now`.
    fn plan_next(&mut self, now: Timestamp, random: &mut dyn FnMut() -> f64) {
        let frame = self.accepted.schedule.frame(self.accepted.added_at);
        self.planned = self.accepted.schedule.when.next_after(now, &frame).map(|due| {
            let start = due.checked_add(self.delay(random())).unwrap_or(due);
            PlannedRun { due, start }
        });
    }

    /// A random delay for a run, of at least a tenth of the spread. Many devices share the time of the occurrence, so
    /// no run starts exactly at that time.
    fn delay(&self, random: f64) -> SignedDuration {
        let spread = self.accepted.schedule.spread.as_secs_f64();
        let delay = spread * (0.1 + 0.9 * random.clamp(0.0, 1.0));
        SignedDuration::try_from_secs_f64(delay).unwrap_or_default()
    }
}

/// How far the system clock was set between two readings; `None` if it was set by at most [`CLOCK_STEP`], or not at
/// all.
fn step(before: ClockReading, now: ClockReading) -> Option<SignedDuration> {
    let passed = SignedDuration::try_from(now.since_boot.saturating_sub(before.since_boot)).ok()?;
    let step = now.wall.duration_since(before.wall).checked_sub(passed)?;
    (step.abs() > CLOCK_STEP).then_some(step)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::definition::tests::schedule;
    use super::*;

    const YEAR: i64 = 365 * 86_400;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn accepted(name: &str, when: &str, added_at: Timestamp) -> AcceptedSchedule {
        let id = Uuid::from_u128(name.bytes().fold(0, |id, byte| id << 8 | u128::from(byte)));
        AcceptedSchedule { id, added_at, decided_until: added_at, schedule: schedule(name, when) }
    }

    /// A device that was booted long ago, with a clock that tests can set.
    struct Device {
        planner: Planner,
        wall: Timestamp,
        since_boot: Duration,
    }

    impl Device {
        fn new(accepted: Vec<AcceptedSchedule>, wall: &str) -> Self {
            let mut planner = Planner::default();
            planner.set_schedules(accepted);
            Self { planner, wall: at(wall), since_boot: Duration::from_secs(86_400) }
        }

        fn poll(&mut self) -> Polled {
            let now = ClockReading { wall: self.wall, since_boot: self.since_boot, is_synchronised: true };
            self.planner.poll(now, &mut || 0.5)
        }

        fn pass(&mut self, seconds: u64) {
            self.wall = self.wall.checked_add(Duration::from_secs(seconds)).unwrap();
            self.since_boot += Duration::from_secs(seconds);
        }

        fn set_clock(&mut self, by_seconds: i64) {
            self.wall = self.wall.checked_add(SignedDuration::from_secs(by_seconds)).unwrap();
        }

        /// The names of the runs that start within `seconds`. Each run ends at once.
        fn starts_within(&mut self, seconds: u64) -> Vec<String> {
            let mut names = Vec::new();
            for _ in 0..=seconds / LONGEST_WAIT.as_secs() {
                self.poll();
                while let Some((run, _)) = self.planner.take() {
                    names.push(run.name);
                    self.planner.ended();
                }
                self.pass(LONGEST_WAIT.as_secs());
            }
            names
        }
    }

    #[test]
    fn two_schedules_of_one_minute_run_one_after_the_other_in_the_order_of_their_names() {
        let added = at("2026-01-01T00:00:00Z");
        let mut later = accepted("a-later", "31 3 * * *", added);
        later.schedule.spread = Duration::ZERO;
        let both = vec![accepted("second", "30 3 * * *", added), accepted("first", "30 3 * * *", added), later];
        let mut device = Device::new(both, "2026-01-01T02:29:50Z");
        device.poll();
        device.pass(90);
        assert_eq!(device.poll().skipped, []);
        let mut order = Vec::new();
        while let Some((run, _)) = device.planner.take() {
            assert!(device.planner.take().is_none(), "one at a time");
            order.push(run.name);
            device.planner.ended();
        }
        assert_eq!(order, ["first", "second", "a-later"]);
    }

    #[test]
    fn a_run_that_is_due_while_the_one_before_waits_or_runs_is_skipped() {
        let mut device =
            Device::new(vec![accepted("a", "every 5m", at("2026-01-01T00:00:00Z"))], "2026-01-01T00:04:59Z");
        device.poll();
        device.pass(301);
        device.poll();
        assert_eq!(device.planner.queued().count(), 1);
        for _ in 0..2 {
            device.pass(300);
            let skipped = device.poll().skipped;
            assert_eq!(skipped.iter().map(|run| run.reason).collect::<Vec<_>>(), [SkipReason::StillRunning]);
            device.planner.take();
        }
        assert_eq!(
            device.planner.request(accepted("a", "every 5m", device.wall).id, device.wall),
            Err(NotAccepted::AlreadyDue)
        );
        assert_eq!(device.planner.request(Uuid::nil(), device.wall), Err(NotAccepted::Unknown));
        device.planner.ended();
        let id = accepted("a", "every 5m", device.wall).id;
        assert_eq!(device.planner.request(id, device.wall), Ok(()));
        assert!(device.planner.take().unwrap().0.is_requested);
    }

    #[test]
    fn a_clock_that_is_set_by_a_year_neither_floods_nor_ends_a_schedule() {
        for by in [YEAR, -YEAR] {
            let added = at("2026-06-01T00:00:00Z");
            let mut both = vec![accepted("cron", "30 3 * * *", added), accepted("interval", "every 6h", added)];
            for accepted in &mut both {
                accepted.schedule.missed = MissedRunPolicy::Once;
            }
            let mut device = Device::new(both.clone(), "2026-06-02T00:10:00Z");
            device.poll();
            device.starts_within(600);
            device.set_clock(by);
            assert_eq!(device.poll().clock_step_s, Some(by));
            let starts = device.starts_within(86_400);
            let count = |name: &str| starts.iter().filter(|own| *own == name).count();
            assert_eq!((count("cron"), count("interval")), (1, 4), "by {by} s: {starts:?}");
            // Sets the clock back after a restart of the planner, which then knows only what was stored.
            for accepted in &mut both {
                accepted.decided_until = device.wall;
            }
            device.planner = Planner::default();
            device.planner.set_schedules(both);
            device.set_clock(-by);
            let starts = device.starts_within(86_400);
            let count = |name: &str| starts.iter().filter(|own| *own == name).count();
            // Occurrences after the stored time may count as missed, once.
            assert!((1..=2).contains(&count("cron")) && (4..=5).contains(&count("interval")), "by {by} s: {starts:?}");
        }
    }

    #[test]
    fn what_was_missed_runs_once_or_not_at_all() {
        for (missed, started, skipped) in [(MissedRunPolicy::Once, 1, 0), (MissedRunPolicy::Skip, 0, 1)] {
            let mut one = accepted("a", "0 3 * * *", at("2026-01-01T00:00:00Z"));
            one.schedule.missed = missed;
            // The device was off for ten days. It is nine hours after the last occurrence.
            let mut device = Device::new(vec![one], "2026-01-10T11:00:00Z");
            let polled = device.poll();
            let due = at("2026-01-10T02:00:00Z");
            assert_eq!((device.planner.queued().count(), polled.skipped.len()), (started, skipped));
            assert!(device.planner.queued().chain(polled.skipped.iter().map(|run| &run.run)).all(|run| run.due == due));
            // The device sleeps over a night.
            device.planner.take();
            device.planner.ended();
            device.pass(86_400);
            let polled = device.poll();
            assert_eq!((device.planner.queued().count(), polled.skipped.len()), (started, skipped));
            assert_eq!(polled.clock_step_s, None, "sleep is no step of the clock");
        }
        // A run that is a few minutes late is on time, also with a new random delay.
        let mut one = accepted("a", "0 3 * * *", at("2026-01-01T00:00:00Z"));
        one.schedule.spread = Duration::from_secs(600);
        let mut device = Device::new(vec![one], "2026-01-10T02:05:00Z");
        assert_eq!((device.poll().skipped.len(), device.planner.queued().count()), (0, 0));
        device.pass(60);
        device.poll();
        assert_eq!(device.planner.queued().count(), 1);
    }

    #[test]
    fn a_clock_is_trusted_once_it_is_synchronised_or_after_a_while_but_never_before_2025() {
        let reading = |wall: &str, boot, is_synchronised| {
            ClockReading { wall: at(wall), since_boot: Duration::from_secs(boot), is_synchronised }.is_trusted()
        };
        assert!(reading("2026-01-01T00:00:00Z", 5, true) && !reading("2026-01-01T00:00:00Z", 5, false));
        assert!(reading("2026-01-01T00:00:00Z", 600, false) && !reading("1970-01-01T00:10:00Z", 600, true));
    }

    #[test]
    fn a_run_starts_after_its_occurrence_by_a_tenth_to_the_whole_of_the_spread() {
        for (random, start) in [(0.0, "2026-01-01T03:01:00Z"), (1.0, "2026-01-01T03:10:00Z"), (f64::NAN, "")] {
            let mut one = accepted("a", "0 4 * * *", at("2026-01-01T00:00:00Z"));
            one.schedule.spread = Duration::from_secs(600);
            let mut planner = Planner::default();
            planner.set_schedules(vec![one]);
            let wall = at("2026-01-01T02:00:00Z");
            planner
                .poll(ClockReading { wall, since_boot: Duration::from_secs(9), is_synchronised: true }, &mut || random);
            let planned = planner.planned().next().unwrap().1;
            assert_eq!(planned.due, at("2026-01-01T03:00:00Z"));
            assert!(start.is_empty() || planned.start == at(start), "{planned:?}");
        }
    }

    #[test]
    fn a_removed_schedule_does_not_run_and_a_changed_one_is_planned_anew() {
        let one = accepted("a", "every 5m", at("2026-01-01T00:00:00Z"));
        let mut device = Device::new(vec![one.clone()], "2026-01-01T00:04:59Z");
        device.poll();
        device.pass(60);
        device.poll();
        device.planner.set_schedules(vec![one.clone()]);
        assert_eq!(device.planner.queued().count(), 1);
        device.planner.set_schedules(vec![]);
        assert!(device.planner.take().is_none());
        let changed = AcceptedSchedule { schedule: schedule("a", "every 1d"), ..one };
        device.planner.set_schedules(vec![changed]);
        device.poll();
        assert_eq!(device.planner.planned().next().unwrap().1.due, at("2026-01-02T00:00:00Z"));
    }

    /// What can happen to a device in a random test.
    #[derive(Clone, Debug)]
    enum Event {
        Pass(u64),
        SetClock(i64),
        Restart,
        RunEnds,
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            4 => (1..40_000_u64).prop_map(Event::Pass),
            1 => (-3 * YEAR..3 * YEAR).prop_map(Event::SetClock),
            1 => Just(Event::Restart),
            4 => Just(Event::RunEnds),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

        #[test]
        fn whatever_the_clock_does_no_schedule_floods_and_none_is_lost(
            events in proptest::collection::vec(event(), 1..60),
            catches_up in any::<bool>(),
        ) {
            let mut stored = vec![
                accepted("cron", "30 2 * * *", at("2300-03-01T00:00:00Z")),
                accepted("interval", "every 1h", at("2300-03-01T00:00:00Z")),
            ];
            for accepted in &mut stored {
                accepted.schedule.spread = Duration::from_secs(600);
                if catches_up {
                    accepted.schedule.missed = MissedRunPolicy::Once;
                }
            }
            let mut device = Device::new(stored.clone(), "2300-03-20T00:00:00Z");
            let (mut runs, mut steps) = (BTreeMap::<Uuid, u64>::new(), 1);
            let began = device.since_boot;
            for event in events {
                match event {
                    Event::Pass(seconds) => device.pass(seconds),
                    Event::SetClock(by) => {
                        device.set_clock(by);
                        steps += 1;
                    }
                    Event::Restart => {
                        device.planner = Planner::default();
                        device.planner.set_schedules(stored.clone());
                        steps += 1;
                    }
                    Event::RunEnds => device.planner.ended(),
                }
                let polled = device.poll();
                prop_assert!(polled.skipped.len() <= 2, "{:?}", polled.skipped);
                let taken = device.planner.take().map(|(run, _)| run);
                for run in polled.skipped.iter().map(|skipped| &skipped.run).chain(&taken) {
                    let own = stored.iter_mut().find(|own| own.id == run.schedule).unwrap();
                    own.decided_until = run.due;
                }
                if let Some(run) = taken {
                    *runs.entry(run.schedule).or_default() += 1;
                }
            }
            let hours = (device.since_boot - began).as_secs() / 3600;
            prop_assert!(runs.values().all(|count| *count <= hours + steps), "{runs:?} in {hours} h, {steps} steps");
            device.planner.ended();
            let starts = device.starts_within(2 * 86_400);
            prop_assert!(starts.iter().filter(|name| *name == "cron").count() >= 1, "{starts:?}");
            // The first run may start up to an hour and its random delay later.
            prop_assert!(starts.iter().filter(|name| *name == "interval").count() >= 46, "{starts:?}");
        }
    }
}
