//! Ends a phase before its requested time: checks whether all directions of the phase are stable, and drops the samples
//! after the end. Pure: no I/O, no clock.

use std::time::Duration;

use paramedic_link::measurement::Sample;

use super::phase::PhaseRecord;
use crate::stats::{self, Unstable};

/// A sample that is at most this much later than the end of a phase still belongs to the phase.
const SAMPLE_SLACK: Duration = Duration::from_millis(50);

impl PhaseRecord {
    /// Whether the receiver of every direction of the phase has reported samples up to the time `at`.
    pub fn is_measured_until(&self, at: Duration) -> bool {
        let directions = self.load.directions();
        let is_measured =
            |samples: &[Sample]| samples.last().is_some_and(|last| Duration::from_micros(last.at_us) >= at);
        !directions.is_empty() && directions.iter().all(|direction| is_measured(&self.received[*direction as usize]))
    }

    /// Checks at the time `look` whether every direction of the phase is stable. `omit` is the length of the start-up
    /// that the request excludes; `None` to detect the start-up. `last` is the median round trip of the last two
    /// seconds in microseconds, and `before` that of the two seconds before them; `None` if unknown.
    pub fn check_stability(
        &self,
        look: Duration,
        omit: Option<Duration>,
        [before, last]: [Option<u32>; 2],
    ) -> Result<(), Unstable> {
        for direction in self.load.directions() {
            let samples = &self.received[*direction as usize];
            let until = samples.partition_point(|sample| is_until(look, sample.at_us));
            stats::check_rate(samples.get(..until).unwrap_or_default(), omit, look)?;
        }
        stats::check_latency(before, last)
    }

    /// Ends the phase at the time `look`. Drops later samples, because they only show how the queues drain.
    pub fn stop(&mut self, look: Duration) {
        self.stopped_at = Some(look);
        for samples in self.received.iter_mut().chain(&mut self.sent) {
            samples.retain(|sample| is_until(look, sample.at_us));
        }
    }

    /// Whether a sample that ends at `at_us` belongs to the phase, which may have been ended early.
    pub(super) fn is_within(&self, at_us: u64) -> bool {
        self.stopped_at.is_none_or(|stopped| is_until(stopped, at_us))
    }
}

fn is_until(look: Duration, at_us: u64) -> bool {
    Duration::from_micros(at_us) <= look + SAMPLE_SLACK
}

#[cfg(test)]
mod tests {
    use paramedic_link::measurement::{Count, DirectionTally, PhaseTally};
    use paramedic_link::test_spec::{DataMode, Direction, EngineId, Load, PhaseSpec, TestSpec};
    use paramedic_link::{EndpointId, PeerText};

    use super::super::phase::DataEnd;
    use super::super::{FoldOptions, ResultBuilder, RunEnd, RunIdentity};
    use super::*;
    use crate::document::{EndedBy, ResultDocument};

    const LOOK: Duration = Duration::from_secs(5);
    const QUIET: [Option<u32>; 2] = [Some(20_000); 2];

    /// A phase with `tenths` samples in each direction of `load`, one every 100 ms. `bytes` takes a direction and the
    /// number of a sample, from 1, and returns the bytes of this sample.
    fn phase(load: Load, tenths: u64, bytes: impl Fn(Direction, u64) -> u64) -> PhaseRecord {
        let mut record = PhaseRecord::new(PhaseSpec { load, duration_ms: 10_000 });
        for at in 1..=tenths {
            for direction in load.directions() {
                let sample = Sample { at_us: at * 100_000 + 300, bytes: bytes(*direction, at) };
                record.note(DataEnd::Receiver, *direction, sample);
            }
        }
        record
    }

    #[test]
    fn a_look_is_due_when_every_direction_is_measured_until_then() {
        assert!(!phase(Load::Upload, 49, |_, _| 1000).is_measured_until(LOOK));
        let mut both = phase(Load::Bidir, 49, |_, _| 1000);
        let last = Sample { at_us: 5_000_100, bytes: 1000 };
        both.note(DataEnd::Receiver, Direction::Upload, last);
        assert!(!both.is_measured_until(LOOK));
        both.note(DataEnd::Receiver, Direction::Download, last);
        assert!(both.is_measured_until(LOOK));
        assert!(!phase(Load::Idle, 50, |_, _| 1000).is_measured_until(LOOK));
    }

    #[test]
    fn a_phase_ends_early_if_all_its_directions_and_its_latency_are_stable() {
        let both = phase(Load::Bidir, 50, |_, _| 125_000);
        assert_eq!(both.check_stability(LOOK, None, QUIET), Ok(()));
        assert_eq!(both.check_stability(LOOK, None, [Some(20_000), Some(60_000)]), Err(Unstable::Latency));
        let one = phase(Load::Bidir, 50, |direction, at| match direction {
            Direction::Download => 125_000,
            Direction::Upload => 125_000 + at % 2 * 100_000,
        });
        assert!(one.check_stability(LOOK, None, QUIET).is_err());
    }

    #[test]
    fn what_arrives_after_the_end_does_not_count() {
        let mut download = phase(Load::Download, 51, |_, at| if at > 50 { 9 } else { 125_000 });
        assert_eq!(download.check_stability(LOOK, None, QUIET), Ok(()), "a look judges what was before it");
        download.stop(LOOK);
        let late = Sample { at_us: 5_200_000, bytes: 9 };
        assert_eq!(download.note(DataEnd::Receiver, Direction::Download, late), None);
        assert_eq!(download.received[Direction::Download as usize].len(), 50);
    }

    /// A result for a download of 10 s at a constant rate. `may_stop` is whether the test was allowed to end early.
    /// `stopped` is when the download ended early; `None` if it ran to its end.
    fn result(may_stop: bool, stopped: Option<Duration>) -> ResultDocument {
        let run = RunIdentity {
            id: uuid::Uuid::nil(),
            provider: "reflector".to_owned(),
            engine: EngineId::try_from("tcp").unwrap(),
            peer: None,
            started_at: jiff::Timestamp::UNIX_EPOCH,
            appliance: None,
            version: String::new(),
        };
        let mut result = ResultBuilder::new(run, FoldOptions { until_stable: true, ..FoldOptions::default() });
        let phase = PhaseSpec { load: Load::Download, duration_ms: 10_000 };
        let engine = EngineId::try_from("tcp").unwrap();
        let spec = TestSpec { may_stop, ..TestSpec::new(engine, DataMode::Tunneled, vec![phase], 4) };
        let (name, version) = (PeerText::new("attic"), PeerText::new("1"));
        result.set_reflector(EndpointId::NONE, name, version, "192.0.2.1:4000".parse().unwrap(), spec);
        let record = result.begin_phase(phase);
        for at in 1..=100 {
            let sample = Sample { at_us: at * 100_000, bytes: 125_000 };
            record.note(DataEnd::Receiver, Direction::Download, sample);
        }
        if let Some(look) = stopped {
            record.stop(look);
        }
        let count = Count { bytes: 12_500_000, elapsed_us: 10_000_000 };
        let moved = Some(DirectionTally { count, ..DirectionTally::default() });
        let tally = PhaseTally { download: moved, ..PhaseTally::default() };
        record.own = Some(tally.clone());
        record.set_theirs(tally);
        result.finish(jiff::Timestamp::UNIX_EPOCH, RunEnd::Complete, None)
    }

    #[test]
    fn the_document_says_how_a_direction_ended_and_that_a_reflector_is_too_old() {
        let of = |may_stop, stopped| {
            let result = result(may_stop, stopped);
            let measured = result.download.as_ref().unwrap();
            let is_old = result.warnings.iter().any(|warning| warning.code == "full_time");
            (measured.ended, measured.startup_ms + measured.duration_ms, is_old)
        };
        assert_eq!(of(true, Some(LOOK)), (Some(EndedBy::Stable), 5_000, false));
        assert_eq!(of(true, None), (Some(EndedBy::Time), 10_000, false));
        assert_eq!(of(false, None), (Some(EndedBy::Time), 10_000, true));
    }
}
