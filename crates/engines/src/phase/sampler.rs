//! Decides when samples of a phase are due, and computes them. Reads no clock: the time and the totals are arguments.

use std::time::{Duration, Instant};

use paramedic_link::measurement::{INTERVAL_MS, Sample};

use super::micros;

/// The time from one sample of a phase to the next.
pub(crate) const SAMPLE_INTERVAL: Duration = Duration::from_millis(INTERVAL_MS);

/// Computes the samples of one phase at one end. The rules are the same for every engine:
///
/// - Samples are due on an absolute schedule, every [`SAMPLE_INTERVAL`] after the start of the phase. A late sample
///   covers a longer time, as its `at_us` shows. Missed samples are not made up for.
/// - A sample counts if it was due within the phase, even if it was taken a little later.
/// - A direction has no more samples after one of its streams has ended, because the load is incomplete then.
pub(crate) struct Sampler {
    begin: Instant,
    until: Instant,
    due: Instant,
    /// The totals of the download and of the upload at the last sample.
    sampled: [u64; 2],
}

impl Sampler {
    /// A sampler for a phase from `begin` until `until`. The totals of download and upload start at 0.
    pub(crate) fn new(begin: Instant, until: Instant) -> Self {
        Self { begin, until, due: begin + SAMPLE_INTERVAL, sampled: [0; 2] }
    }

    /// When the next sample is due.
    pub(crate) fn due(&self) -> Instant {
        self.due
    }

    /// Sets a new end of the phase, because the appliance may end a phase before its planned end.
    pub(crate) fn end_at(&mut self, until: Instant) {
        self.until = until;
    }

    /// The samples of download and upload at `now`; none before the next sample is due. `totals` are the payload bytes
    /// of download and upload so far. A total is `None` if the phase does not have the direction, or if a stream of the
    /// direction has ended.
    pub(crate) fn look(&mut self, now: Instant, totals: [Option<u64>; 2]) -> [Option<Sample>; 2] {
        if now < self.due {
            return [None, None];
        }
        let since_begin = now - self.begin;
        let is_in_time = self.due <= self.until;
        let looks = since_begin.as_millis() / SAMPLE_INTERVAL.as_millis();
        self.due = self.begin + SAMPLE_INTERVAL * u32::try_from(looks + 1).unwrap_or(u32::MAX);
        let mut samples = [None, None];
        for ((total, sampled), sample) in totals.into_iter().zip(&mut self.sampled).zip(&mut samples) {
            let Some(total) = total else { continue };
            let bytes = total.saturating_sub(*sampled);
            *sampled = total;
            *sample = is_in_time.then(|| Sample { at_us: micros(since_begin), bytes });
        }
        samples
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "tests need some time to begin with")]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn phase_of(phase_ms: u32) -> (Sampler, Instant) {
        let begin = Instant::now();
        (Sampler::new(begin, begin + MS * phase_ms), begin)
    }

    fn sample(at_ms: u64, bytes: u64) -> Option<Sample> {
        Some(Sample { at_us: at_ms * 1000, bytes })
    }

    #[test]
    fn each_sample_holds_the_bytes_since_the_last_one() {
        let (mut sampler, begin) = phase_of(1000);
        assert_eq!(sampler.due(), begin + MS * 100);
        assert_eq!(sampler.look(begin + MS * 99, [Some(5), Some(7)]), [None, None]);
        assert_eq!(sampler.look(begin + MS * 100, [Some(10), Some(20)]), [sample(100, 10), sample(100, 20)]);
        assert_eq!(sampler.due(), begin + MS * 200);
        assert_eq!(sampler.look(begin + MS * 203, [Some(10), Some(50)]), [sample(203, 0), sample(203, 30)]);
        assert_eq!(sampler.due(), begin + MS * 300, "the schedule is absolute");
    }

    #[test]
    fn missed_samples_are_not_made_up_for() {
        let (mut sampler, begin) = phase_of(1000);
        assert_eq!(sampler.look(begin + MS * 570, [Some(10), None]), [sample(570, 10), None]);
        assert_eq!(sampler.due(), begin + MS * 600);
    }

    #[test]
    fn a_sample_that_was_due_in_time_counts_and_none_after_it() {
        let (mut sampler, begin) = phase_of(550);
        let due = (0..).map(|_| {
            let due = sampler.due();
            (due - begin, sampler.look(due, [Some(1), Some(1)]))
        });
        let counted = due.take(9).filter(|(_, samples)| samples[0].is_some()).map(|(due, _)| due).last();
        assert_eq!(counted, Some(MS * 500));
        let (mut sampler, begin) = phase_of(500);
        (1..5).for_each(|tenth| _ = sampler.look(begin + MS * 100 * tenth, [Some(1), None]));
        assert_eq!(sampler.look(begin + MS * 510, [Some(3), None]), [sample(510, 2), None], "due at the very end");
        assert_eq!(sampler.look(begin + MS * 600, [Some(9), None]), [None, None]);
    }

    #[test]
    fn a_phase_that_is_stopped_has_no_sample_after_that() {
        let (mut sampler, begin) = phase_of(1000);
        assert_eq!(sampler.look(begin + MS * 100, [Some(1), None]), [sample(100, 1), None]);
        sampler.end_at(begin + MS * 150);
        assert_eq!(sampler.look(begin + MS * 200, [Some(9), None]), [None, None]);
    }

    #[test]
    fn a_direction_that_lost_a_stream_has_no_sample_and_the_other_has() {
        let (mut sampler, begin) = phase_of(1000);
        assert_eq!(sampler.look(begin + MS * 100, [None, Some(4)]), [None, sample(100, 4)]);
    }

    #[test]
    fn a_decreasing_total_does_not_panic() {
        let (mut sampler, begin) = phase_of(1000);
        sampler.look(begin + MS * 100, [Some(4), None]);
        assert_eq!(sampler.look(begin + MS * 200, [Some(3), None]), [sample(200, 0), None]);
    }
}
