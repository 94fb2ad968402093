//! Decides at fixed times (looks) whether a running phase is stable, so that it may end early. Pure: no I/O, no clock.

use std::time::Duration;

use paramedic_report::fold::PhaseRecord;
use paramedic_report::stats::LOOKS;

/// The length of each of the two periods whose latency is compared.
const LATENCY_PERIOD: Duration = Duration::from_secs(2);

/// Checks one running phase at fixed times (looks). Each look decides whether the phase is stable and may end.
pub(super) struct StabilityLooks {
    /// The start-up time that the request excludes from the measurement.
    omit: Option<Duration>,
    /// The number of looks that have been taken.
    taken: usize,
}

impl StabilityLooks {
    /// The looks at a phase that is about to begin. `omit` is the start-up time that the request excludes.
    pub(super) fn new(omit: Option<Duration>) -> Self {
        Self { omit, taken: 0 }
    }

    /// Takes the next look if all samples up to the time of this look have arrived. Returns that time if the phase is
    /// stable and may end there. `median_rtt` returns the median round trip, in microseconds, of the probes between two
    /// times; `None` if it is not known. These times count from the start of the phase.
    pub(super) fn due(
        &mut self,
        record: &PhaseRecord,
        median_rtt: impl Fn(Duration, Duration) -> Option<u32>,
    ) -> Option<Duration> {
        while let Some(look) = LOOKS.get(self.taken).copied().filter(|look| record.is_measured_until(*look)) {
            self.taken += 1;
            let middle = look.saturating_sub(LATENCY_PERIOD);
            let medians = [median_rtt(middle.saturating_sub(LATENCY_PERIOD), middle), median_rtt(middle, look)];
            let stability = record.check_stability(look, self.omit, medians);
            tracing::debug!(load = ?record.load, ?look, ?stability, "looked whether the phase is stable");
            if stability.is_ok() {
                self.taken = LOOKS.len();
                return Some(look);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use paramedic_link::measurement::Sample;
    use paramedic_link::test_spec::{Direction, Load, PhaseSpec};
    use paramedic_report::fold::{DataEnd, FoldOptions, ResultBuilder, RunIdentity};

    use super::*;

    /// For a download that becomes steady at `steady_from_ms`, the times of the looks at which it may end.
    fn ends(steady_from_ms: u64, median_rtt: impl Fn(Duration, Duration) -> Option<u32> + Copy) -> Vec<Duration> {
        let run = RunIdentity {
            id: uuid::Uuid::nil(),
            provider: String::new(),
            engine: "tcp".try_into().unwrap(),
            peer: None,
            started_at: jiff::Timestamp::UNIX_EPOCH,
            appliance: None,
            version: String::new(),
        };
        let mut result = ResultBuilder::new(run, FoldOptions::default());
        let record = result.begin_phase(PhaseSpec { load: Load::Download, duration_ms: 10_000 });
        let mut early_end = StabilityLooks::new(None);
        let mut found = Vec::new();
        for at_ms in (100..=10_000).step_by(100) {
            let bytes = if at_ms <= steady_from_ms { 10_000 } else { 1_250_000 };
            record.note(DataEnd::Receiver, Direction::Download, Sample { at_us: at_ms * 1000, bytes });
            found.extend(early_end.due(record, median_rtt));
        }
        found
    }

    #[test]
    fn a_phase_ends_at_the_first_look_that_finds_it_stable_and_at_no_other_time() {
        let quiet = |_, _| Some(20_000);
        assert_eq!(ends(500, quiet), [Duration::from_secs(5)]);
        assert_eq!(ends(1_300, quiet), [Duration::from_millis(6_500)]);
        assert_eq!(ends(1_600, quiet), [Duration::from_secs(8)]);
        assert_eq!(ends(2_500, quiet), [], "it may have been a change of the line's rate");
        assert_eq!(ends(500, |_, _| None), []);
    }

    #[test]
    fn the_latency_of_the_last_two_seconds_is_compared_with_that_of_the_two_before() {
        let grows_until = |end_ms: u64| {
            move |from: Duration, _| Some(if from < Duration::from_millis(end_ms) { 20_000 } else { 50_000 })
        };
        assert_eq!(ends(500, grows_until(2_000)), [Duration::from_millis(6_500)]);
        assert_eq!(ends(500, grows_until(3_000)), [Duration::from_secs(8)]);
    }
}
