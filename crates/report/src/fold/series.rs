//! Computes the latency of each interval of a phase. Pure: no I/O, no clock.

use std::collections::BTreeMap;
use std::time::Duration;

use paramedic_link::measurement::{INTERVAL_MS, Probe};

use super::ProbeLog;
use super::one_way::KnownClocks;
use super::phase::PhaseRecord;
use crate::document::{LatencyInterval, ResultDocument};
use crate::stats::{self, OneWayDelay};

/// Adds the latency of every interval to each phase of `result` that has a latency.
pub(super) fn add(
    result: &mut ResultDocument,
    phases: &[PhaseRecord],
    probes: &ProbeLog<'_>,
    clocks: Option<&KnownClocks>,
) {
    for phase in phases {
        let (Some(begun), Some(mut latency)) = (phase.begun_at, result.latency.of(phase.load).cloned()) else {
            continue;
        };
        let until = (begun + phase.requested).min(phase.ended_at.unwrap_or(Duration::MAX));
        latency.intervals = Some(intervals((probes.within)(begun, until), begun, clocks));
        result.latency.set(phase.load, latency);
    }
}

fn intervals(
    probes: impl Iterator<Item = Probe>,
    begun: Duration,
    clocks: Option<&KnownClocks>,
) -> Vec<LatencyInterval> {
    let mut by_interval = BTreeMap::<u64, Vec<Probe>>::new();
    for probe in probes {
        let since_ms = u64::try_from(probe.sent_at.saturating_sub(begun).as_millis()).unwrap_or(u64::MAX);
        by_interval.entry(since_ms / INTERVAL_MS).or_default().push(probe);
    }
    by_interval.into_iter().map(|(number, probes)| interval((number + 1) * INTERVAL_MS, &probes, clocks)).collect()
}

fn interval(at_ms: u64, probes: &[Probe], clocks: Option<&KnownClocks>) -> LatencyInterval {
    let round_trips = probes.iter().filter_map(|probe| probe.rtt_us.map(f64::from));
    let of_direction = |at: usize| {
        let clocks = clocks?;
        let known = probes.iter().filter(|probe| probe.sent_at < clocks.until);
        let delays = known.filter_map(OneWayDelay::of).map(|delay| clocks.fit.above_shortest(&delay)[at]);
        median(delays.collect())
    };
    LatencyInterval {
        at_ms,
        rtt_us: median(round_trips.collect()),
        upload_us: of_direction(0),
        download_us: of_direction(1),
        sent: probes.len() as u64,
        lost: probes.iter().filter(|probe| probe.rtt_us.is_none() && !probe.late).count() as u64,
    }
}

fn median(mut values: Vec<f64>) -> Option<u64> {
    values.sort_unstable_by(f64::total_cmp);
    // A cast from f64 saturates.
    stats::percentile(&values, 500).map(|median| median.round() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_interval_has_the_probes_that_were_sent_in_it() {
        let begun = Duration::from_millis(5_000);
        let probe = |ms: u64, rtt_us: Option<u32>| Probe {
            sent_at: begun + Duration::from_millis(ms),
            late_us: 0,
            rtt_us,
            arrived: None,
            turnaround_us: 0,
            upload_us: None,
            own_wait_us: None,
            late: ms == 130,
        };
        let probes = [
            probe(0, Some(900)),
            probe(50, Some(700)),
            probe(99, Some(800)),
            probe(120, None),
            probe(130, None),
            probe(450, None),
        ];
        let of = |at_ms, rtt_us, sent, lost| LatencyInterval {
            at_ms,
            rtt_us,
            upload_us: None,
            download_us: None,
            sent,
            lost,
        };
        let expected = [of(100, Some(800), 3, 0), of(200, None, 2, 1), of(500, None, 1, 1)];
        assert_eq!(intervals(probes.into_iter(), begun, None), expected);
    }
}
