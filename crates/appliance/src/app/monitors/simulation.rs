//! Simulates sixty days of a device without a battery for its clock, with a real store. Checks the times of outages to
//! the second, and the numbers of probes in hours and days. Covers a change to summer time, slow evenings, lost power
//! and boots without a clock.

use std::time::Duration;

use jiff::civil::{Date, date};
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan};

use super::minute_of;
use crate::app::each_engine::devices;
use crate::monitor::dating::Dating;
use crate::monitor::outage::OutageScope;
use crate::monitor::series::Resolution;
use crate::monitor::simulation::{SimulatedHost, id};
use crate::monitor::{Monitor, MonitorTarget};
use crate::store::MonitorMinute;

/// How long after boot the clock is synchronised, in seconds.
const CLOCK_DELAY: u64 = 90;
/// The time between two probes, in seconds.
const INTERVAL: u64 = 5;
/// The round trip in the evening, in milliseconds; `FAST` is that of the rest of the day.
const SLOW: u64 = 80;
const FAST: u64 = 20;

fn berlin() -> TimeZone {
    TimeZone::get("Europe/Berlin").unwrap()
}

fn local(day: Date, hour: i8, minute: i8) -> Timestamp {
    day.at(hour, minute, 0, 0).to_zoned(berlin()).unwrap().timestamp()
}

/// The time from `from` to `to`, in seconds.
fn seconds(from: Timestamp, to: Timestamp) -> u64 {
    u64::try_from(to.as_second() - from.as_second()).unwrap()
}

/// The times at which the device gets power and loses it.
type Power = (Timestamp, Timestamp);

/// An outage to simulate: its start, its length in minutes, and the indexes of its targets.
type SetOutage = (Timestamp, i64, Vec<usize>);

fn host((boot, off): Power, outages: &[SetOutage]) -> SimulatedHost {
    let down = outages.iter().filter(|(began, ..)| (boot..off).contains(began)).map(|(began, minutes, targets)| {
        let began = seconds(boot, *began);
        (began..began + u64::try_from(minutes * 60).unwrap(), targets.clone())
    });
    let (boot_s, summer_s) = (boot.as_second(), local(date(2026, 3, 29), 3, 0).as_second());
    let round_trip_ms = move |at: u64| {
        let now = boot_s + i64::try_from(at).unwrap();
        let hour = (now + if now < summer_s { 3_600 } else { 7_200 }).div_euclid(3_600).rem_euclid(24);
        if (19..23).contains(&hour) { SLOW } else { FAST }
    };
    SimulatedHost {
        boot_wall_s: 0,
        length: seconds(boot, off),
        interval: INTERVAL,
        down: down.collect(),
        asleep: Vec::new(),
        clock_steps: vec![(CLOCK_DELAY, boot_s)],
        round_trip_ms: Box::new(round_trip_ms),
    }
}

/// The number of seconds from `from` to `to` that are in one of `parts`.
fn covered(from: i64, to: i64, parts: impl Iterator<Item = (i64, i64)>) -> i64 {
    parts.map(|(begin, end)| (end.min(to) - begin.max(from)).max(0)).sum()
}

#[tokio::test]
async fn sixty_days_with_lost_power_slow_evenings_and_outages_are_stored_as_they_were() {
    let first = date(2026, 3, 1);
    let powers = [
        (local(first, 0, 0), local(date(2026, 3, 10), 1, 0)),
        (local(date(2026, 3, 10), 8, 10), local(date(2026, 3, 28), 20, 0)),
        (local(date(2026, 3, 30), 10, 0), local(first + 60.days(), 0, 0)),
    ];
    let set: Vec<SetOutage> = vec![
        (local(date(2026, 3, 2), 3, 0), 5, vec![1]),
        (local(date(2026, 3, 9), 20, 0), 120, vec![1, 2]),
        (local(date(2026, 3, 20), 12, 0), 1, vec![0, 1, 2]),
        // The power is lost during this outage.
        (local(date(2026, 3, 28), 19, 58), 30, vec![0, 1, 2]),
        // The clock is not known yet when this outage begins.
        (local(date(2026, 3, 30), 10, 1), 2, vec![0, 1, 2]),
        (local(date(2026, 4, 5), 4, 30), 10, vec![0]),
        (local(date(2026, 4, 12), 1, 59), 2, vec![2]),
    ];

    let (_folder, device) = devices().remove(0);
    let store = device.store().await.unwrap();
    let gateway = Monitor::new("gateway", MonitorTarget::Gateway, None);
    let number = store.add_monitor("PP", &gateway, powers[0].0).await.unwrap().number;
    let mut outages = Vec::new();
    for power in powers {
        let host = host(power, &set);
        let found = host.run();
        let wall = Timestamp::from_microsecond(host.wall_us(host.length)).unwrap();
        let dating = Dating { since_boot: Duration::from_secs(host.length), wall };
        store.roll_up_missing(minute_of(power.0)).await.unwrap();
        // Writes a whole day at a time, where the service writes each minute.
        for minutes in found.minutes.chunks(24 * 60) {
            let rows = minutes.iter().map(|minute| MonitorMinute {
                number,
                minute: dating.minute(minute.began_us),
                tally: minute.tallies[&id(0)].clone(),
            });
            let rows = rows.collect::<Vec<_>>();
            let now = rows.last().unwrap().minute + 1;
            store.save_minutes(&rows, now).await.unwrap();
        }
        for outage in found.outages.values() {
            let ended = outage.ended.map(|ended| dating.wall_at(ended));
            outages.push((dating.wall_at(outage.began), ended, outage.scope));
        }
    }
    store.roll_up_missing(minute_of(powers[2].1)).await.unwrap();

    use OutageScope::{BeyondGateway, Everything, Gateway, Target};
    let scopes = [Target, BeyondGateway, Everything, Everything, Everything, Gateway, Target];
    let expected = set.iter().zip(scopes).map(|((began, length, _), scope)| {
        let end = *began + length.minutes();
        (*began, powers.iter().any(|(boot, off)| (*boot..*off).contains(&end)).then_some(end), scope)
    });
    outages.sort();
    assert_eq!(outages, expected.collect::<Vec<_>>());

    // Each day (UTC) and each hour has the probes that were due while the device had power, and the number of those
    // that were lost. One probe may be open when the power is lost.
    let on = || powers.iter().map(|(boot, off)| (boot.as_second(), off.as_second()));
    let failed = || {
        let of_gateway = set.iter().filter(|(.., targets)| targets.contains(&0));
        of_gateway.map(|(began, minutes, _)| {
            let began = began.as_second();
            let off = on().find(|(boot, off)| (*boot..*off).contains(&began)).unwrap().1;
            (began, (began + minutes * 60).min(off))
        })
    };
    let (begin, end) = (minute_of(powers[0].0), minute_of(powers[2].1));
    for (resolution, expected_rows) in [(Resolution::Days, 59), (Resolution::Hours, 217 + 444 + 734)] {
        let length = resolution.minutes();
        let rows = store.monitor_rows(number, resolution, begin.div_euclid(length) * length, end).await.unwrap();
        let rows = rows.into_iter().filter(|(minute, _)| minute + length <= end).collect::<Vec<_>>();
        assert_eq!(rows.len(), expected_rows);
        for (minute, tally) in rows {
            let (from, to) = (minute * 60, (minute + length) * 60);
            let boundaries = on().filter(|(boot, off)| (from..=to).contains(boot) || (from..=to).contains(off)).count();
            let slack = 2 * boundaries as u64;
            let interval = i64::try_from(INTERVAL).unwrap();
            let due = u64::try_from(covered(from, to, on()) / interval).unwrap();
            let lost = u64::try_from(covered(from, to, failed()) / interval).unwrap();
            assert!(tally.count.abs_diff(due) <= slack, "{from}: {} probes of {due}", tally.count);
            assert!(tally.lost.abs_diff(lost) <= slack, "{from}: {} lost of {lost}", tally.lost);
            if resolution == Resolution::Hours {
                let hour = Timestamp::from_second(from).unwrap().to_zoned(berlin()).hour();
                let us = if (19..23).contains(&hour) { SLOW * 1_000 } else { FAST * 1_000 };
                assert_eq!(tally.min_max_us, Some((us, us)), "{from}");
            }
        }
    }
    // Minutes are kept for 14 days.
    let minutes =
        store.monitor_rows(number, Resolution::Minutes, end - 20 * 24 * 60, end - 15 * 24 * 60).await.unwrap();
    assert_eq!(minutes, []);
}
