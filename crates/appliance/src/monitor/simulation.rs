//! Simulates a host with three monitors for a day. The tests check that the monitors find the simulated outages to the
//! second, and that they count nearly all simulated probes.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use uuid::Uuid;

use super::host_changes::{HostChange, HostReading, HostWatch};
use super::minute::{ClosedMinute, MinuteBook, ProbeOutcome};
use super::open_probes::{LOST_AFTER, OpenProbes};
use super::outage::{Outage, OutageScope, OutageWatch, WatchedTarget};

pub(crate) const NAMES: [&str; 3] = ["gateway", "attic", "office"];
const DAY: u64 = 86_400;
/// The system clock at boot: 12:00:17 UTC.
const BOOT_WALL_S: i64 = 1_800_014_417;

/// A simulated host from its boot until it loses power. Times are in seconds since boot. Each entry of `down` is a
/// range of times, with the numbers of the targets that do not answer during it.
pub(crate) struct SimulatedHost {
    /// The system clock at boot, in seconds since 1970.
    pub(crate) boot_wall_s: i64,
    /// How long the host runs, in seconds.
    pub(crate) length: u64,
    /// The time between two probes, in seconds.
    pub(crate) interval: u64,
    pub(crate) down: Vec<(Range<u64>, Vec<usize>)>,
    pub(crate) asleep: Vec<Range<u64>>,
    /// When the clock is set, and by how many seconds.
    pub(crate) clock_steps: Vec<(u64, i64)>,
    /// The round trip of a probe that is sent at this time, in milliseconds.
    pub(crate) round_trip_ms: Box<dyn Fn(u64) -> u64>,
}

/// What the monitors of the simulated host found.
#[derive(Default)]
pub(crate) struct Found {
    pub(crate) minutes: Vec<ClosedMinute>,
    pub(crate) outages: BTreeMap<Uuid, Outage>,
}

pub(crate) fn id(target: usize) -> Uuid {
    Uuid::from_u128(target as u128 + 1)
}

impl SimulatedHost {
    /// The system clock at a time, in microseconds since 1970.
    pub(crate) fn wall_us(&self, at: u64) -> i64 {
        let steps = self.clock_steps.iter().filter(|(when, _)| *when <= at).map(|(_, by)| by).sum::<i64>();
        (self.boot_wall_s + i64::try_from(at).unwrap() + steps) * 1_000_000
    }

    pub(crate) fn run(&self) -> Found {
        let interval = Duration::from_secs(self.interval);
        let mut found = Found::default();
        let mut book = MinuteBook::new(Duration::ZERO, self.wall_us(0));
        let (mut watch, mut host) = (OutageWatch::default(), HostWatch::default());
        let target = |number: usize| WatchedTarget {
            name: NAMES[number].to_owned(),
            is_gateway: number == 0,
            needs_connection_check: number == 1,
        };
        let targets = (0..3).map(|number| (id(number), target(number))).collect();
        assert_eq!(watch.set_targets(targets, Duration::ZERO), None);
        let mut open = (0..3).map(|_| OpenProbes::new(interval, Duration::ZERO)).collect::<Vec<_>>();
        let mut last = Duration::ZERO;
        let step = usize::try_from(self.interval).unwrap();
        for at in (0..self.length).step_by(step).filter(|at| !self.asleep.iter().any(|range| range.contains(at))) {
            let now = Duration::from_secs(at);
            let routes = vec![("eth0".to_owned(), "192.0.2.1".to_owned())];
            let mut changed = Vec::new();
            for change in host.look(HostReading { since_boot: now, wall_us: self.wall_us(at), routes }) {
                match change {
                    HostChange::ClockSet(_) => book.clock_set(now, self.wall_us(at)),
                    HostChange::Stopped(_) | HostChange::NetworkChanged => {
                        open.iter_mut().for_each(OpenProbes::forget);
                        changed.extend(watch.host_changed(last));
                    }
                }
            }
            last = now;
            for (number, probes) in open.iter_mut().enumerate() {
                let is_down = self.down.iter().any(|(range, of)| range.contains(&at) && of.contains(&number));
                if let Some(seq) = probes.due(now)
                    && !is_down
                {
                    probes.answered(seq, Duration::from_millis((self.round_trip_ms)(at)), false);
                }
                for probe in probes.decided(now) {
                    book.note(id(number), probe.sent, probe.outcome);
                    changed.extend(match probe.outcome {
                        ProbeOutcome::Answered { .. } => watch.answered(id(number), probe.sent),
                        ProbeOutcome::Lost => watch.lost(id(number), probe.sent),
                    });
                }
                if watch.wants_connection_check(id(number)) {
                    changed.extend(if is_down {
                        watch.unreachable(id(number), now)
                    } else {
                        watch.reached(id(number), now)
                    });
                }
            }
            found.outages.extend(changed.into_iter().map(|outage| (outage.id, outage)));
            found.minutes.extend(book.close(now, LOST_AFTER + Duration::from_secs(1)));
        }
        found.minutes.extend(book.close_all());
        found
    }
}

fn seconds(outage: &Outage) -> (u64, Option<u64>, OutageScope) {
    (outage.began.as_secs(), outage.ended.map(|ended| ended.as_secs()), outage.scope)
}

#[test]
fn a_day_with_outages_sleep_and_clock_steps_is_found_as_it_was() {
    let world = SimulatedHost {
        boot_wall_s: BOOT_WALL_S,
        length: DAY,
        interval: 1,
        round_trip_ms: Box::new(|_| 20),
        down: vec![
            (3_600..3_900, vec![1]),
            (7_200..7_203, vec![2]),
            (7_300..7_302, vec![0, 1, 2]),
            (10_000..17_200, vec![1, 2]),
            (20_000..20_060, vec![0, 1, 2]),
            // This outage begins before the device sleeps, and is over when the device wakes up.
            (30_000..31_000, vec![0, 1, 2]),
            // This outage begins while the device sleeps.
            (41_000..42_100, vec![2]),
            (50_000..50_600, vec![0]),
        ],
        asleep: vec![30_500..36_000, 40_000..42_000],
        clock_steps: vec![(60_000, 31_536_000), (61_000, -31_536_000), (70_000, 17)],
    };
    let found = world.run();
    let mut outages = found.outages.values().map(seconds).collect::<Vec<_>>();
    outages.sort();
    use OutageScope::{BeyondGateway, Everything, Gateway, Target};
    let expected = [
        (3_600, Some(3_900), Target),
        (7_200, Some(7_203), Target),
        (10_000, Some(17_200), BeyondGateway),
        (20_000, Some(20_060), Everything),
        (30_000, Some(30_499), Everything),
        (42_000, Some(42_100), Target),
        (50_000, Some(50_600), Gateway),
    ];
    assert_eq!(outages, expected);

    // In every second in which the device is awake, there is one probe of each target, in the minute of the clock at
    // that time.
    let awake = DAY - world.asleep.iter().map(|range| range.end - range.start).sum::<u64>();
    let down = |number: usize| {
        let is_awake = |at: &u64| !world.asleep.iter().any(|range| range.contains(at));
        let of = world.down.iter().filter(|(_, of)| of.contains(&number));
        of.flat_map(|(range, _)| range.clone()).filter(is_awake).count() as u64
    };
    for number in 0..3 {
        let of = found.minutes.iter().filter_map(|minute| minute.tallies.get(&id(number)));
        let (count, lost) = of.fold((0, 0), |(count, lost), tally| (count + tally.count, lost + tally.lost));
        // Probes that were open when the device fell asleep, or at the end of the day, are not judged.
        assert!(count <= awake && count + 6 >= awake, "{count} of {awake}");
        assert!(lost <= down(number) && lost + 6 >= down(number), "{lost} of {}", down(number));
    }
    let is_full = |minute: &&ClosedMinute| minute.tallies.values().all(|tally| tally.count == 60);
    let full = found.minutes.iter().filter(is_full).count();
    assert!(found.minutes.len() - full <= 12, "{} of {}: only around changes", full, found.minutes.len());
}
