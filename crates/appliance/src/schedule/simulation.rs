//! A test that simulates sixty days of a device without a battery for its clock. It covers a change to summer time, a
//! night without power, boots before the clock is synchronised, quiet hours, and a budget that is used up. The test
//! states the expected starts without the help of the planner.

use std::time::Duration;

use jiff::civil::{Date, date};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp, ToSpan};
use uuid::Uuid;

use super::admission::{RunObservations, SkipReason, admit};
use super::budget::{DataBudget, DataUse, day_of, month_of};
use super::definition::tests::schedule;
use super::definition::{MissedRunPolicy, Schedule};
use super::planner::{AcceptedSchedule, ClockReading, Planner};

/// How long each simulated test runs.
const TEST_TIME: Duration = Duration::from_secs(31);
/// How long after boot the clock is synchronised.
const CLOCK_DELAY: Duration = Duration::from_secs(90);
/// The number of bytes that each simulated test uses.
const TEST_BYTES: u64 = 250_000_000;

fn berlin() -> TimeZone {
    TimeZone::get("Europe/Berlin").unwrap()
}

fn local(day: Date, hour: i8, minute: i8) -> Timestamp {
    day.at(hour, minute, 0, 0).to_zoned(berlin()).unwrap().timestamp()
}

/// A decision about a run: the name of the schedule, the time, and why the run did not start (`None` if it started).
type Decision = (String, Timestamp, Option<SkipReason>);

struct Simulation {
    /// The schedules in the simulated database.
    stored: Vec<AcceptedSchedule>,
    started: Vec<(Uuid, Timestamp)>,
    decisions: Vec<Decision>,
}

impl Simulation {
    fn add(&mut self, schedule: Schedule, at: Timestamp) {
        let id = Uuid::from_u128(self.stored.len() as u128);
        self.stored.push(AcceptedSchedule { id, added_at: at, decided_until: at, schedule });
    }

    fn used(&self, schedule: Uuid, now: Timestamp) -> DataUse {
        let within = |period: super::budget::BudgetPeriod| {
            let runs =
                self.started.iter().filter(|(own, at)| *own == schedule && (period.from..period.to).contains(at));
            runs.count() as u64 * TEST_BYTES
        };
        let zone = berlin();
        DataUse { day_bytes: within(day_of(now, &zone).unwrap()), month_bytes: within(month_of(now, &zone).unwrap()) }
    }

    fn decide(&mut self, name: &str, due: Timestamp, at: Timestamp, skipped: Option<SkipReason>) {
        let own = self.stored.iter_mut().find(|own| own.schedule.name == name).unwrap();
        own.decided_until = due;
        if skipped.is_none() {
            self.started.push((own.id, at));
        }
        self.decisions.push((name.to_owned(), at, skipped));
    }

    /// Simulates the device from a boot until it loses power.
    fn power(&mut self, boot: Timestamp, off: Timestamp) {
        let mut planner = Planner::default();
        planner.set_schedules(self.stored.clone());
        let mut now = boot;
        while now < off {
            let since_boot = Duration::try_from(now.duration_since(boot)).unwrap();
            let is_synchronised = since_boot >= CLOCK_DELAY;
            let wall = if is_synchronised { now } else { Timestamp::UNIX_EPOCH + since_boot };
            let polled = planner.poll(ClockReading { wall, since_boot, is_synchronised }, &mut || 0.5);
            assert_eq!(polled.clock_step_s, None, "the first time is no step");
            for skipped in polled.skipped {
                self.decide(&skipped.run.name, skipped.run.due, now, Some(skipped.reason));
            }
            now += polled.wait.max(Duration::from_secs(1));
            while let Some((run, schedule)) = planner.take() {
                let seen = RunObservations {
                    used: self.used(run.schedule, now),
                    expected_bytes: TEST_BYTES,
                    line_share: None,
                    uplink: None,
                };
                let admitted = admit(&schedule, now, &seen);
                self.decide(&run.name, run.due, now, admitted.err());
                if admitted.is_ok() {
                    now += TEST_TIME;
                }
                planner.ended();
            }
        }
    }

    /// The decisions about the schedule `name`, with their times rounded down to the minute.
    fn of(&self, name: &str) -> Vec<(Timestamp, Option<SkipReason>)> {
        let own = self.decisions.iter().filter(|(own, ..)| own == name);
        let minute = |time: Timestamp| time - SignedDuration::from_secs(time.as_second().rem_euclid(60));
        own.map(|(_, at, reason)| (minute(*at), *reason)).collect()
    }
}

#[test]
fn sixty_days_with_a_change_of_the_clock_lost_power_and_a_spent_budget() {
    let first = date(2026, 3, 1);
    let added = local(first, 0, 0);
    let mut simulation = Simulation { stored: vec![], started: vec![], decisions: vec![] };
    let spread = Duration::from_secs(600);
    let nightly = Schedule { spread, missed: MissedRunPolicy::Once, ..schedule("nightly", "30 2 * * *") };
    simulation.add(nightly, added);
    let budget = DataBudget { day_bytes: None, month_bytes: Some(40 * TEST_BYTES + 1) };
    simulation.add(Schedule { budget, ..schedule("often", "every 6h") }, added);
    let quiet_hours = "12:00-14:00".parse().ok();
    simulation.add(Schedule { quiet_hours, ..schedule("work", "0 9,13 * * MON-FRI") }, added);

    // The device has no power on 10 March from 01:00 to 08:10, and from 28 March 20:00 to 30 March 10:00, during which
    // summer time begins.
    simulation.power(added, local(date(2026, 3, 10), 1, 0));
    simulation.power(local(date(2026, 3, 10), 8, 10), local(date(2026, 3, 28), 20, 0));
    simulation.power(local(date(2026, 3, 30), 10, 0), local(date(2026, 4, 30), 0, 0));

    let days = || (0..60).map(|day| first + day.days());
    let off = |day: Date| [date(2026, 3, 10), date(2026, 3, 29), date(2026, 3, 30)].contains(&day);

    // A run starts at 02:30 plus about half of the spread: 02:35. Missed runs start once, as soon as the clock is
    // known.
    let mut expected = Vec::new();
    for day in days() {
        match (day.month(), day.day()) {
            (3, 10) => expected.push((local(day, 8, 11), None)),
            (3, 30) => expected.push((local(day, 10, 1), None)),
            _ if !off(day) => expected.push((local(day, 2, 35), None)),
            _ => {}
        }
    }
    assert_eq!(simulation.of("nightly"), expected);

    // The runs are due every six hours from the start on, which is 23:00 UTC: in summer at 01:00, 07:00, 13:00 and
    // 19:00. The budget allows forty in a month. All runs that were missed in one pause are recorded as one.
    let mut expected = Vec::new();
    let mut runs = 0;
    let mut at = added;
    while at < local(date(2026, 4, 30), 0, 0) - SignedDuration::from_hours(6) {
        at += SignedDuration::from_hours(6);
        let zoned = at.to_zoned(berlin());
        if (zoned.day(), zoned.hour()) == (1, 1) {
            runs = 0;
        }
        let is_off = |from, to| (from..to).contains(&at);
        if is_off(local(date(2026, 3, 10), 1, 0), local(date(2026, 3, 10), 8, 10)) {
            expected.push((local(date(2026, 3, 10), 8, 11), Some(SkipReason::Missed)));
        } else if is_off(local(date(2026, 3, 28), 20, 0), local(date(2026, 3, 30), 10, 0)) {
            expected.push((local(date(2026, 3, 30), 10, 1), Some(SkipReason::Missed)));
        } else {
            runs += 1;
            expected.push((at, (runs > 40).then_some(SkipReason::MonthBudget)));
        }
    }
    expected.dedup();
    assert_eq!(simulation.of("often"), expected);

    // The runs of workdays start at 09:00; the runs at 13:00 are within the quiet hours. The run of 30 March at 09:00
    // was missed.
    let mut expected = Vec::new();
    for day in days().filter(|day| day.weekday().to_monday_zero_offset() < 5) {
        let nine = if day == date(2026, 3, 30) {
            (local(day, 10, 1), Some(SkipReason::Missed))
        } else {
            (local(day, 9, 0), None)
        };
        expected.extend([nine, (local(day, 13, 0), Some(SkipReason::QuietHours))]);
    }
    assert_eq!(simulation.of("work"), expected);
}
