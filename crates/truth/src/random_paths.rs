//! Creates random paths, checks on each whether the reported direction of the queue is right, and renders the page
//! about them. Pure.

use std::fmt::Write as _;

use emulator::{DirectionSettings, Family, Hop, Scenario, Way};
use fastrand::Rng;

use crate::cells::Cell;
use crate::checks::{self, SIDE};
use crate::reading::Reading;
use crate::record::{OurRecord, commits};

/// The lowest and the highest rate of a path, in Mbit/s.
const RATES: [f64; 2] = [4.0, 200.0];
/// The longest delay of a path in one direction, in milliseconds.
const LONGEST_DELAY_MS: f64 = 80.0;
/// The shortest and the longest queue of a path, as the time that a full queue takes to be sent, in milliseconds.
const QUEUES_MS: [f64; 2] = [30.0, 400.0];

/// Creates the random path of a seed: three hops, one of which is an emulated link. Each direction of the link has its
/// own rate, delay and queue.
pub(crate) fn random_path(seed: u64) -> Cell {
    let mut random = Rng::with_seed(seed);
    let mut direction = || DirectionSettings {
        // Uniform in the logarithm: 4 to 8 Mbit/s is as likely as 100 to 200.
        rate_mbit: Some(rounded(RATES[0] * (RATES[1] / RATES[0]).powf(random.f64()))),
        queue_ms: Some(rounded(QUEUES_MS[0] + (QUEUES_MS[1] - QUEUES_MS[0]) * random.f64())),
        delay_ms: rounded(LONGEST_DELAY_MS * random.f64()),
        ..DirectionSettings::default()
    };
    let link = Hop { up: Some(direction()), down: Some(direction()), mtu: None };
    let mut hops = vec![Hop { up: None, down: None, mtu: None }; 2];
    hops.insert(random.usize(0..3), link);
    let title = format!("a random path of seed {seed}");
    let scenario = Scenario { title, family: Family::Ipv4, hops, udp_mbit: None, streams: None, changes: Vec::new() };
    Cell { name: format!("random-{seed:02}"), scenario }
}

fn rounded(number: f64) -> f64 {
    (number * 10.0).round() / 10.0
}

/// Compares the reported direction of the queue with the true one, in each phase with load.
pub(crate) fn readings(record: &OurRecord, cell: &Cell) -> Vec<Reading> {
    checks::readings_of(SIDE, record, &cell.scenario)
}

/// Renders docs/truth/random-paths.md, the page about the runs on random paths.
pub(crate) fn page(runs: &[(Cell, OurRecord)], accuracy: &str) -> String {
    let counted = runs.iter().map(|(cell, record)| (cell, record, readings(record, cell)));
    let counted = counted.filter(|(.., readings)| !readings.is_empty()).collect::<Vec<_>>();
    let right = counted.iter().filter(|(.., readings)| readings.iter().all(Reading::is_met)).count();
    let all = counted.iter().map(|(.., readings)| readings.len()).sum::<usize>();
    let met = counted.iter().flat_map(|(.., readings)| readings).filter(|reading| reading.is_met()).count();
    let commits = commits(counted.iter().map(|(_, record, _)| &record.circumstances));
    let mut page = format!(
        "# The direction of the queue on random paths\n\n\
         Written by `script/lab --random-paths N`. Each path is three hops, one of them an emulated link. Each of its \
         directions has a random rate from {} to {} Mbit/s, a random delay of up to {LONGEST_DELAY_MS} ms, and a random \
         queue of {} to {} ms; the number of the path is the seed. Each run is `speed-test -t 5`. The truth is how much the \
         link's queue grew in each direction for the very probes of the phase; where it is close to the border between two \
         answers (docs/truth/README.md), a phase is not counted.\n\n\
         **Right in {right} of {} runs** ({met} of {all} phases). Commit: {}. The emulator on this machine: {accuracy}.\n\n\
         | path | up: rate, delay, queue | down: rate, delay, queue | while downloading | while uploading |\n\
         |---|---|---|---|---|\n",
        RATES[0],
        RATES[1],
        QUEUES_MS[0],
        QUEUES_MS[1],
        counted.len(),
        commits,
    );
    for (cell, _, readings) in &counted {
        let link = |way| {
            let direction = cell.scenario.directions(way).next();
            direction.map_or_else(String::new, |link| {
                let (rate, queue) = (link.rate_mbit.unwrap_or_default(), link.queue_ms.unwrap_or_default());
                format!("{rate} Mbit/s, {} ms, {queue} ms", link.delay_ms)
            })
        };
        let said = |load: &str| {
            let of_load = readings.iter().find_map(|reading| Some((reading, reading.what.strip_prefix(load)?)));
            of_load.map_or_else(
                || "not counted".to_owned(),
                |(reading, said)| {
                    format!(
                        "{}: {}",
                        said.trim_start_matches(": "),
                        if reading.is_met() { "right" } else { "**wrong**" }
                    )
                },
            )
        };
        let (up, down) = (link(Way::Up), link(Way::Down));
        let _ = writeln!(page, "| {} | {up} | {down} | {} | {} |", cell.name, said("download"), said("upload"));
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_the_same_for_its_seed_and_valid() {
        for seed in 1..200 {
            let Cell { scenario, .. } = random_path(seed);
            assert_eq!(scenario, random_path(seed).scenario);
            assert_eq!((scenario.hops.len(), scenario.hops.iter().filter(|hop| hop.is_emulated()).count()), (3, 1));
            for way in Way::BOTH {
                let link = scenario.directions(way).next().unwrap();
                assert_eq!(link.check(), Ok(()));
                assert!((RATES[0]..=RATES[1]).contains(&link.rate_mbit.unwrap()), "{link:?}");
            }
        }
    }
}
