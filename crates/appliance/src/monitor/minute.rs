//! The tallies of probes in a minute: what is counted, how tallies merge to hours and days, and when a minute is
//! complete.

use std::collections::BTreeMap;
use std::time::Duration;

use uuid::Uuid;

use super::histogram::LatencyHistogram;

/// A minute, in microseconds.
const MINUTE_US: i64 = 60_000_000;

/// The outcomes of a number of probes. The tallies of minutes merge to tallies of hours, and the tallies of hours to
/// tallies of days.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProbeTally {
    /// The number of probes that were answered or lost.
    pub count: u64,
    /// The number of probes, among `count`, that were lost.
    pub lost: u64,
    /// The number of probes that were answered while a test loaded the reflector. `round_trips` does not include them.
    pub under_load: u64,
    /// The shortest and the longest round trip, in microseconds.
    pub min_max_us: Option<(u64, u64)>,
    /// The histogram of the round trips.
    pub round_trips: LatencyHistogram,
}

/// Whether a probe was answered or lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProbeOutcome {
    /// The probe was answered.
    Answered {
        /// The time from sending the probe to receiving the answer.
        round_trip: Duration,
        /// Whether a test loaded the other end when the probe was answered.
        is_under_load: bool,
    },
    /// No answer to the probe came in time.
    Lost,
}

impl ProbeTally {
    /// Counts one probe with this outcome.
    pub fn note(&mut self, outcome: ProbeOutcome) {
        self.count += 1;
        match outcome {
            ProbeOutcome::Lost => self.lost += 1,
            ProbeOutcome::Answered { is_under_load: true, .. } => self.under_load += 1,
            ProbeOutcome::Answered { round_trip, .. } => {
                let us = u64::try_from(round_trip.as_micros()).unwrap_or(u64::MAX);
                self.round_trips.note(us);
                self.min_max_us = Some(self.min_max_us.map_or((us, us), |(min, max)| (min.min(us), max.max(us))));
            }
        }
    }

    /// Adds the probes of `other` to this tally.
    pub fn merge(&mut self, other: &Self) {
        self.count = self.count.saturating_add(other.count);
        self.lost = self.lost.saturating_add(other.lost);
        self.under_load = self.under_load.saturating_add(other.under_load);
        self.min_max_us = match (self.min_max_us, other.min_max_us) {
            (Some((min, max)), Some((other_min, other_max))) => Some((min.min(other_min), max.max(other_max))),
            (one, other) => one.or(other),
        };
        self.round_trips.merge(&other.round_trips);
    }
}

/// A minute in which every probe is either answered or lost.
#[derive(Clone, Debug, PartialEq)]
pub struct ClosedMinute {
    /// The begin of the minute, in microseconds since boot; negative if the minute began before the boot.
    pub began_us: i64,
    /// The tally of each monitor, by the id of the monitor.
    pub tallies: BTreeMap<Uuid, ProbeTally>,
}

/// The minutes that are not closed yet. All times are since boot, because the system clock may be set while a minute is
/// open.
#[derive(Debug)]
pub struct MinuteBook {
    /// The begin of one minute of the system clock, in microseconds since boot, from which all other minutes are
    /// counted.
    anchor_us: i64,
    /// The minutes that are not closed, by their begin in microseconds since boot.
    open: BTreeMap<i64, BTreeMap<Uuid, ProbeTally>>,
}

impl MinuteBook {
    /// Creates a book whose minutes begin with the minutes of the system clock, which is `wall_us` at `now`.
    pub fn new(now: Duration, wall_us: i64) -> Self {
        Self { anchor_us: anchor_us(now, wall_us), open: BTreeMap::new() }
    }

    /// Records that the system clock was set: later minutes begin with the minutes of the new clock.
    pub fn clock_set(&mut self, now: Duration, wall_us: i64) {
        self.anchor_us = anchor_us(now, wall_us);
    }

    /// Counts a probe that was sent at `sent`.
    pub fn note(&mut self, monitor: Uuid, sent: Duration, outcome: ProbeOutcome) {
        let began_us = (us(sent) - self.anchor_us).div_euclid(MINUTE_US) * MINUTE_US + self.anchor_us;
        self.open.entry(began_us).or_default().entry(monitor).or_default().note(outcome);
    }

    /// Closes and returns the minutes that ended at least `after` ago, oldest first. `after` must be so long that all
    /// probes of these minutes are decided.
    pub fn close(&mut self, now: Duration, after: Duration) -> Vec<ClosedMinute> {
        let is_over = |began_us: &i64| began_us + MINUTE_US + us(after) <= us(now);
        let over = self.open.keys().copied().filter(is_over).collect::<Vec<_>>();
        over.into_iter().filter_map(|began_us| self.take(began_us)).collect()
    }

    /// Closes and returns every minute, even the one that has not ended.
    pub fn close_all(&mut self) -> Vec<ClosedMinute> {
        let all = self.open.keys().copied().collect::<Vec<_>>();
        all.into_iter().filter_map(|began_us| self.take(began_us)).collect()
    }

    /// The probes of `monitor` in the minutes that are not closed.
    pub fn current(&self, monitor: Uuid) -> ProbeTally {
        let mut tally = ProbeTally::default();
        self.open.values().filter_map(|minute| minute.get(&monitor)).for_each(|of| tally.merge(of));
        tally
    }

    fn take(&mut self, began_us: i64) -> Option<ClosedMinute> {
        self.open.remove(&began_us).map(|tallies| ClosedMinute { began_us, tallies })
    }
}

/// When a minute of the system clock began, in microseconds since boot.
fn anchor_us(now: Duration, wall_us: i64) -> i64 {
    us(now) - wall_us.rem_euclid(MINUTE_US)
}

/// Converts a time since boot to microseconds. The number is always far below the limit of `i64`.
fn us(since_boot: Duration) -> i64 {
    i64::try_from(since_boot.as_micros()).unwrap_or(i64::MAX / 4)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const A: Uuid = Uuid::from_u128(1);
    const B: Uuid = Uuid::from_u128(2);

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn answered(ms: u64) -> ProbeOutcome {
        ProbeOutcome::Answered { round_trip: Duration::from_millis(ms), is_under_load: false }
    }

    #[test]
    fn probes_under_load_count_for_loss_and_not_for_latency() {
        let mut tally = ProbeTally::default();
        tally.note(answered(10));
        tally.note(ProbeOutcome::Answered { round_trip: s(2), is_under_load: true });
        tally.note(ProbeOutcome::Lost);
        tally.note(answered(30));
        assert_eq!((tally.count, tally.lost, tally.under_load), (4, 1, 1));
        assert_eq!((tally.min_max_us, tally.round_trips.count()), (Some((10_000, 30_000)), 2));
    }

    #[test]
    fn a_minute_is_that_of_the_system_clock_and_closes_once_its_probes_are_decided() {
        // 12:00:50 is 5 s after boot, so a minute ends 15 s after boot.
        let mut book = MinuteBook::new(s(5), 50_000_000);
        for at in 5..20 {
            book.note(A, s(at), answered(10));
        }
        book.note(B, s(6), ProbeOutcome::Lost);
        assert_eq!(book.close(s(16), s(2)), []);
        assert_eq!(book.current(A).count, 15);
        let closed = book.close(s(17), s(2));
        assert_eq!(closed.len(), 1);
        assert_eq!((closed[0].tallies[&A].count, closed[0].tallies[&B].lost), (10, 1));
        assert_eq!(book.current(A).count, 5);
        let rest = book.close_all();
        assert_eq!((rest.len(), rest[0].began_us, rest[0].tallies[&A].count), (1, 15_000_000, 5));
        // The clock is set: from now on 10 s after boot begins a minute.
        book.clock_set(s(70), 0);
        book.note(A, s(71), answered(1));
        assert_eq!(book.close_all()[0].began_us, 70_000_000);
    }

    proptest! {
        #[test]
        fn merging_parts_is_counting_all(outcomes in prop::collection::vec((0u64..3, 0u64..3_000), 0..200), cut in 0usize..200) {
            let outcome = |(kind, ms): &(u64, u64)| match kind {
                0 => ProbeOutcome::Lost,
                1 => answered(*ms),
                _ => ProbeOutcome::Answered { round_trip: Duration::from_millis(*ms), is_under_load: true },
            };
            let tally = |outcomes: &[(u64, u64)]| {
                let mut tally = ProbeTally::default();
                outcomes.iter().for_each(|one| tally.note(outcome(one)));
                tally
            };
            let (first, second) = outcomes.split_at(cut.min(outcomes.len()));
            let mut merged = tally(first);
            merged.merge(&tally(second));
            prop_assert_eq!(merged, tally(&outcomes));
        }

        #[test]
        fn every_probe_is_in_the_minute_of_the_system_clock_in_which_it_was_sent(
            boot_us in 0i64..200_000_000, sent in prop::collection::vec(0u64..600_000, 1..50),
        ) {
            // The system clock at boot.
            let wall = |since_boot: Duration| boot_us + i64::try_from(since_boot.as_micros()).unwrap();
            let mut book = MinuteBook::new(s(3), wall(s(3)));
            for ms in &sent {
                book.note(A, Duration::from_millis(*ms), answered(1));
            }
            let mut expected = BTreeMap::<i64, u64>::new();
            for ms in &sent {
                *expected.entry(wall(Duration::from_millis(*ms)).div_euclid(60_000_000)).or_default() += 1;
            }
            let closed = book.close_all();
            let found = closed.iter().map(|minute| {
                let began_us = boot_us + minute.began_us;
                assert_eq!(began_us.rem_euclid(MINUTE_US), 0);
                (began_us.div_euclid(MINUTE_US), minute.tallies[&A].count)
            });
            prop_assert_eq!(found.collect::<BTreeMap<_, _>>(), expected);
        }
    }
}
