//! The probes of one monitor: sent on an absolute schedule, answered or lost.

use std::collections::VecDeque;
use std::time::Duration;

use super::minute::ProbeOutcome;

/// A probe without an answer after this time is lost.
pub const LOST_AFTER: Duration = Duration::from_secs(2);

/// The probes of a monitor that are not yet known to be answered or lost, and the schedule of the next probes.
#[derive(Debug)]
pub struct OpenProbes {
    interval: Duration,
    next: Duration,
    next_seq: u32,
    /// The probes that are not yet decided (answered or lost), oldest first.
    open: VecDeque<OpenProbe>,
}

#[derive(Debug)]
struct OpenProbe {
    seq: u32,
    sent: Duration,
    answer: Option<ProbeOutcome>,
}

/// A probe that is known to be answered or lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecidedProbe {
    /// When the probe was sent.
    pub sent: Duration,
    /// Whether the probe was answered or lost.
    pub outcome: ProbeOutcome,
}

impl OpenProbes {
    /// Creates a schedule whose first probe is due at `now`.
    pub fn new(interval: Duration, now: Duration) -> Self {
        Self { interval, next: now, next_seq: 0, open: VecDeque::new() }
    }

    /// The latest time at which [`due`](Self::due) and [`decided`](Self::decided) must be called again.
    pub fn next_deadline(&self) -> Duration {
        let overdue = self.open.front().map(|oldest| oldest.sent.saturating_add(LOST_AFTER));
        overdue.map_or(self.next, |overdue| overdue.min(self.next))
    }

    /// The number of the probe to send now, if a probe is due. Skips probes that were due while this process did not
    /// run, because they would be sent in a burst.
    pub fn due(&mut self, now: Duration) -> Option<u32> {
        if self.next > now {
            return None;
        }
        let late = now.saturating_sub(self.next);
        let missed = u32::try_from(late.as_nanos() / self.interval.as_nanos().max(1)).unwrap_or(u32::MAX);
        self.next = self.next.saturating_add(self.interval.saturating_mul(missed.saturating_add(1)));
        let seq = self.next_seq;
        self.next_seq = self.next_seq.wrapping_add(1);
        self.open.push_back(OpenProbe { seq, sent: now, answer: None });
        Some(seq)
    }

    /// Records an answer to probe number `seq`. Has no effect if that probe is unknown or already answered.
    pub fn answered(&mut self, seq: u32, round_trip: Duration, is_under_load: bool) {
        if let Some(probe) = self.open.iter_mut().find(|probe| probe.seq == seq && probe.answer.is_none()) {
            probe.answer = Some(ProbeOutcome::Answered { round_trip, is_under_load });
        }
    }

    /// Takes the probes that are known to be answered or lost, in the order in which they were sent. An answered probe
    /// is kept back until all earlier ones are decided, so that probes lost in a row are returned in a row.
    pub fn decided(&mut self, now: Duration) -> Vec<DecidedProbe> {
        let mut decided = Vec::new();
        while let Some(OpenProbe { sent, answer, .. }) = self.open.front() {
            let is_overdue = sent.saturating_add(LOST_AFTER) <= now;
            let Some(outcome) = answer.or(is_overdue.then_some(ProbeOutcome::Lost)) else { break };
            decided.push(DecidedProbe { sent: *sent, outcome });
            self.open.pop_front();
        }
        decided
    }

    /// Forgets the probes that are not yet decided, because the host slept or its network changed.
    pub fn forget(&mut self) {
        self.open.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    #[test]
    fn probes_are_sent_on_an_absolute_schedule_and_missed_ones_are_skipped() {
        let mut probes = OpenProbes::new(ms(1_000), ms(500));
        let mut sent = Vec::new();
        for now in [500, 900, 1_510, 2_490, 2_505, 9_700, 9_800, 10_400, 10_500] {
            if let Some(seq) = probes.due(ms(now)) {
                sent.push((seq, now));
            }
        }
        assert_eq!(sent, [(0, 500), (1, 1_510), (2, 2_505), (3, 9_700), (4, 10_500)]);
    }

    #[test]
    fn a_probe_is_answered_once_or_lost_after_two_seconds_and_all_are_decided_in_order() {
        let mut probes = OpenProbes::new(ms(1_000), ms(0));
        for now in 0..3 {
            probes.due(ms(now * 1_000)).unwrap();
        }
        let lost = |sent| DecidedProbe { sent: ms(sent), outcome: ProbeOutcome::Lost };
        probes.answered(1, ms(30), true);
        probes.answered(1, ms(900), false);
        assert_eq!(probes.decided(ms(1_999)), [], "the one before is not decided");
        assert_eq!(probes.next_deadline(), ms(2_000));
        let outcome = ProbeOutcome::Answered { round_trip: ms(30), is_under_load: true };
        assert_eq!(probes.decided(ms(2_000)), [lost(0), DecidedProbe { sent: ms(1_000), outcome }]);
        probes.answered(0, ms(2_100), false);
        assert_eq!(probes.decided(ms(4_000)), [lost(2_000)], "an answer that came too late changes nothing");
        probes.due(ms(4_000)).unwrap();
        probes.forget();
        assert_eq!(probes.decided(ms(60_000)), [], "what was open while the host slept is not lost");
    }
}
