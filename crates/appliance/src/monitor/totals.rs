//! Counts the probes of a monitor since the service started, for counters that only grow.

use std::time::Duration;

use super::minute::ProbeOutcome;

/// The upper bounds, in microseconds, of the buckets for round trips. They reach from the round trip to a nearby
/// gateway to that over a satellite with a full queue.
pub const ROUND_TRIP_BOUNDS_US: [u64; 14] =
    [500, 1_000, 2_500, 5_000, 10_000, 20_000, 35_000, 50_000, 75_000, 100_000, 200_000, 400_000, 800_000, 1_600_000];

/// Counts of the probes of a monitor since the service started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProbeTotals {
    /// The number of probes that were answered or lost.
    pub count: u64,
    /// The number of probes, among `count`, that were lost.
    pub lost: u64,
    /// For each bound in [`ROUND_TRIP_BOUNDS_US`], the number of round trips up to that bound and above the previous
    /// bound. Round trips during a test are left out.
    pub round_trips: [u64; ROUND_TRIP_BOUNDS_US.len()],
    /// The number of round trips above the last bound.
    pub longer: u64,
    /// The sum of all counted round trips, `longer` ones included, in microseconds.
    pub sum_us: u64,
}

impl ProbeTotals {
    /// Counts one probe with this outcome.
    pub fn note(&mut self, outcome: ProbeOutcome) {
        self.count = self.count.saturating_add(1);
        match outcome {
            ProbeOutcome::Lost => self.lost = self.lost.saturating_add(1),
            ProbeOutcome::Answered { is_under_load: true, .. } => {}
            ProbeOutcome::Answered { round_trip, .. } => self.note_round_trip(round_trip),
        }
    }

    fn note_round_trip(&mut self, round_trip: Duration) {
        let us = u64::try_from(round_trip.as_micros()).unwrap_or(u64::MAX);
        self.sum_us = self.sum_us.saturating_add(us);
        let mut buckets = ROUND_TRIP_BOUNDS_US.iter().zip(&mut self.round_trips);
        let counter = buckets.find(|(bound, _)| us <= **bound).map_or(&mut self.longer, |(_, counter)| counter);
        *counter = counter.saturating_add(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_trip_is_in_the_first_bucket_that_holds_it_unless_a_test_ran() {
        let mut totals = ProbeTotals::default();
        for us in [0, 500, 501, 1_600_000, 1_600_001] {
            let round_trip = Duration::from_micros(us);
            totals.note(ProbeOutcome::Answered { round_trip, is_under_load: false });
            totals.note(ProbeOutcome::Answered { round_trip, is_under_load: true });
        }
        totals.note(ProbeOutcome::Lost);
        assert_eq!((totals.count, totals.lost, totals.sum_us), (11, 1, 3_201_002));
        let [first, second, .., last] = totals.round_trips;
        assert_eq!([first, second, last, totals.longer], [2, 1, 1, 1]);
    }
}
