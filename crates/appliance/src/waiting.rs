//! How long the appliance waits for a reflector's answer, and in a reflector's queue. Pure: the caller passes the
//! present time.

use std::time::{Duration, Instant};

use paramedic_link::message::END_AFTER_SILENCE;

/// How long the reflector may take to answer. Pings, pongs and unknown messages do not count as answers.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);

/// The longest time that a request waits in a reflector's queue while its position does not improve, however long the
/// reflector's tests may be.
const LONGEST_STALL: Duration = Duration::from_secs(60 * 60);
/// A request leaves a reflector's queue if its position has not improved for twice the length of the reflector's
/// longest test plus this time.
const STALL_MARGIN: Duration = Duration::from_secs(60);
/// The longest wait in a reflector's queue if the user sets no limit, even if the position of the request improves.
const LONGEST_QUEUE: Duration = Duration::from_secs(6 * 60 * 60);
/// The longest wait that a user can request. A longer one could overflow an `Instant`.
pub(crate) const LONGEST_REQUEST: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);

/// Why the appliance gives up a request for a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GiveUp {
    /// The reflector did not answer the request in time.
    NoAnswer,
    /// The request was in the reflector's queue, and nothing was received from the reflector for [`END_AFTER_SILENCE`].
    Silence,
    /// The position in the reflector's queue did not improve for this long.
    Stalled(Duration),
    /// The request waited for this long: the limit that the user set, or the appliance's own limit if the user set
    /// none.
    TooLong(Duration),
}

/// The deadlines of one request for a session. An answer must come within [`ANSWER_TIMEOUT`] after the request was
/// sent. In the reflector's queue, the first of three deadlines ends the wait: for the next message, for a better
/// position, and for the whole wait since the request was sent.
#[derive(Clone, Debug)]
pub struct QueueWait {
    stall: Option<Duration>,
    longest: Duration,
    sent: Instant,
    queued: Option<InQueue>,
}

#[derive(Clone, Debug)]
struct InQueue {
    received_at: Instant,
    /// The best position in the queue so far, which the request reached at `improved`.
    best: u32,
    improved: Instant,
}

impl QueueWait {
    /// The deadlines of a request that is sent at `now`, to a reflector whose longest test is `longest_test`.
    /// `requested` is the longest wait that the user allows. If it is set, it replaces the limits for a better position
    /// and for the whole wait.
    pub fn new(longest_test: Duration, requested: Option<Duration>, now: Instant) -> Self {
        let stall = longest_test.saturating_mul(2).saturating_add(STALL_MARGIN).min(LONGEST_STALL);
        match requested {
            Some(requested) => Self { stall: None, longest: requested.min(LONGEST_REQUEST), sent: now, queued: None },
            None => Self { stall: Some(stall), longest: LONGEST_QUEUE, sent: now, queued: None },
        }
    }

    /// Records that a message from the reflector was received at `now`.
    pub fn note_received(&mut self, now: Instant) {
        if let Some(queued) = &mut self.queued {
            queued.received_at = now;
        }
    }

    /// Records that the request has the position `place` in the reflector's queue at `now`.
    pub fn queued_at(&mut self, place: u32, now: Instant) {
        match &mut self.queued {
            Some(queued) => {
                if place < queued.best {
                    (queued.best, queued.improved) = (place, now);
                }
            }
            None => self.queued = Some(InQueue { received_at: now, best: place, improved: now }),
        }
    }

    /// When to give up the request if no message is received until then, and why.
    pub fn deadline(&self) -> (Instant, GiveUp) {
        let Some(queued) = &self.queued else { return (self.sent + ANSWER_TIMEOUT, GiveUp::NoAnswer) };
        let rules = [
            Some((queued.received_at + END_AFTER_SILENCE, GiveUp::Silence)),
            self.stall.map(|stall| (queued.improved + stall, GiveUp::Stalled(stall))),
            Some((self.sent + self.longest, GiveUp::TooLong(self.longest))),
        ];
        let first = rules.into_iter().flatten().min_by_key(|(at, _)| *at);
        first.unwrap_or((self.sent + self.longest, GiveUp::TooLong(self.longest)))
    }

    /// Why to give up the request at `now`; `None` if it may wait longer.
    pub fn given_up(&self, now: Instant) -> Option<GiveUp> {
        let (at, why) = self.deadline();
        (now >= at).then_some(why)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const MINUTE: Duration = Duration::from_secs(60);

    #[expect(clippy::disallowed_methods, reason = "only distances from this moment are tested")]
    fn asking(longest_test: Duration, requested: Option<Duration>) -> (QueueWait, Instant) {
        let now = Instant::now();
        (QueueWait::new(longest_test, requested, now), now)
    }

    #[test]
    fn an_answer_is_due_in_fifteen_seconds_despite_other_messages() {
        let (mut wait, start) = asking(MINUTE, Some(MINUTE));
        for second in 1..15 {
            wait.note_received(start + second * SECOND);
            assert_eq!(wait.given_up(start + second * SECOND), None);
        }
        assert_eq!(wait.given_up(start + 15 * SECOND), Some(GiveUp::NoAnswer));
    }

    #[test]
    fn in_the_queue_ten_seconds_without_a_message_are_the_end() {
        let (mut wait, start) = asking(MINUTE, None);
        wait.queued_at(3, start + SECOND);
        assert_eq!(wait.given_up(start + 10 * SECOND), None);
        assert_eq!(wait.given_up(start + 11 * SECOND), Some(GiveUp::Silence));
        wait.note_received(start + 10 * SECOND);
        assert_eq!(wait.given_up(start + 19 * SECOND), None);
        assert_eq!(wait.deadline(), (start + 20 * SECOND, GiveUp::Silence));
    }

    /// Receives a message each second until the request is given up. `place` returns the position in the message of a
    /// second, or `None` for a message without a position. Returns how long the request waited, and why it was given
    /// up.
    fn until_given_up(wait: &mut QueueWait, start: Instant, place: impl Fn(u32) -> Option<u32>) -> (Duration, GiveUp) {
        let seconds = 1..1_000_000;
        for second in seconds {
            let now = start + second * SECOND;
            if let Some(why) = wait.given_up(now) {
                return (now - start, why);
            }
            if let Some(place) = place(second) {
                wait.queued_at(place, now);
            }
            wait.note_received(now);
        }
        panic!("it waits for ever")
    }

    #[test]
    fn a_place_that_does_not_improve_is_the_end_after_two_of_the_longest_tests_and_a_minute() {
        let stall = 3 * MINUTE;
        let (mut wait, start) = asking(MINUTE, None);
        wait.queued_at(3, start);
        assert_eq!(until_given_up(&mut wait, start, |_| None), (stall, GiveUp::Stalled(stall)));
        // Positions that alternate or get worse are no improvement.
        let (mut wait, start) = asking(MINUTE, None);
        wait.queued_at(3, start);
        assert_eq!(until_given_up(&mut wait, start, |at| Some(3 + at % 5)), (stall, GiveUp::Stalled(stall)));
        // Each improvement of the position restarts the time limit.
        let (mut wait, start) = asking(MINUTE, None);
        wait.queued_at(3, start);
        let end = until_given_up(&mut wait, start, |at| (at == 100).then_some(2));
        assert_eq!(end, (stall + 100 * SECOND, GiveUp::Stalled(stall)));
    }

    #[test]
    fn no_queue_may_be_without_progress_for_longer_than_an_hour() {
        for longest_test in [Duration::from_secs(86_400), Duration::from_millis(u64::MAX), Duration::MAX] {
            let (mut wait, start) = asking(longest_test, None);
            wait.queued_at(3, start);
            let end = until_given_up(&mut wait, start, |_| None);
            assert_eq!(end, (LONGEST_STALL, GiveUp::Stalled(LONGEST_STALL)));
        }
    }

    #[test]
    fn the_wait_in_a_moving_queue_ends_after_six_hours() {
        let (mut wait, start) = asking(MINUTE, None);
        wait.queued_at(u32::MAX, start);
        let end = until_given_up(&mut wait, start, |at| Some(u32::MAX - at));
        assert_eq!(end, (LONGEST_QUEUE, GiveUp::TooLong(LONGEST_QUEUE)));
    }

    #[test]
    fn a_requested_limit_replaces_both_rules_but_not_that_of_silence() {
        let requested = Duration::from_secs(8 * 60 * 60);
        let (mut wait, start) = asking(SECOND, Some(requested));
        wait.queued_at(1, start);
        assert_eq!(wait.given_up(start + 10 * SECOND), Some(GiveUp::Silence));
        assert_eq!(until_given_up(&mut wait, start, |_| Some(1)), (requested, GiveUp::TooLong(requested)));
        // A request that is granted before it is queued never waited.
        let (wait, start) = asking(SECOND, Some(Duration::ZERO));
        assert_eq!(wait.given_up(start + SECOND), None);
    }

    proptest! {
        #[test]
        fn no_time_overflows(
            longest_test: Duration,
            requested: Option<Duration>,
            places in prop::collection::vec(any::<u32>(), 0..20),
        ) {
            let (mut wait, now) = asking(longest_test, requested);
            for place in places {
                wait.note_received(now);
                wait.queued_at(place, now);
            }
            prop_assert!(wait.deadline().0 >= now);
        }
    }
}
