//! When a monitor connects again after a failure: later each time, and with jitter, so that many devices do not
//! reconnect at the same time.

use std::time::Duration;

/// The wait after the first failure, without jitter.
const FIRST: Duration = Duration::from_secs(1);
/// The longest wait, without jitter.
const LONGEST: Duration = Duration::from_secs(60);
/// The longest wait while the target is not reachable, without jitter. The end of an outage is noticed within about
/// this time.
const LONGEST_UNREACHABLE: Duration = Duration::from_secs(8);
/// The longest wait after an orderly end of a session, such as a restart of the reflector.
const AFTER_DRAIN: Duration = Duration::from_secs(5);

/// The number of failures since the last success, from which the next wait is computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// Records a success: the next failure counts as the first.
    pub fn succeeded(&mut self) {
        self.failures = 0;
    }

    /// The wait after a failure: 1 s, doubled after each further failure up to 1 min, and multiplied by 0.5 to 1.5 as
    /// jitter; `random` (0 to 1) selects this factor.
    pub fn failed(&mut self, random: f64) -> Duration {
        self.next(LONGEST, random)
    }

    /// The wait after an attempt in which no connection could be made: as [`Backoff::failed`], but at most 12 s.
    pub fn unreachable(&mut self, random: f64) -> Duration {
        self.next(LONGEST_UNREACHABLE, random)
    }

    fn next(&mut self, longest: Duration, random: f64) -> Duration {
        let doubled = FIRST.saturating_mul(1 << self.failures.min(16)).min(longest);
        self.failures = self.failures.saturating_add(1);
        doubled.mul_f64(0.5 + random.clamp(0.0, 1.0))
    }

    /// The wait after the other end refused a session: at least `retry_after`, if the other end asked for such a wait.
    /// A request for more than 10 minutes counts as 10 minutes.
    pub fn refused(&mut self, retry_after: Option<Duration>, random: f64) -> Duration {
        let own = self.failed(random);
        retry_after.map_or(own, |asked| own.max(asked.min(LONGEST * 10).mul_f64(1.0 + random.clamp(0.0, 1.0) / 2.0)))
    }

    /// The wait after the other end announced that it ends the session and restarts: a random time up to 5 s. Resets
    /// the count of failures.
    pub fn drained(&mut self, random: f64) -> Duration {
        self.failures = 0;
        AFTER_DRAIN.mul_f64(random.clamp(0.0, 1.0))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_wait_doubles_up_to_a_minute_and_a_success_resets_it() {
        let mut backoff = Backoff::default();
        let waits = (0..8).map(|_| backoff.failed(0.5).as_secs()).collect::<Vec<_>>();
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60]);
        backoff.succeeded();
        assert_eq!(backoff.failed(0.5), FIRST);
        assert_eq!(backoff.refused(Some(Duration::from_secs(60)), 0.0), Duration::from_secs(60));
        assert_eq!(backoff.drained(0.0), Duration::ZERO);
        let waits = (0..6).map(|_| backoff.unreachable(0.5).as_secs()).collect::<Vec<_>>();
        assert_eq!(waits, [1, 2, 4, 8, 8, 8]);
    }

    #[test]
    fn devices_that_lose_a_reflector_together_do_not_come_back_together() {
        // The waits of 64 devices, whose random numbers are evenly spread.
        let waits = (0..64).map(|n| Backoff::default().drained(f64::from(n) / 63.0)).collect::<Vec<_>>();
        for from in 0..50 {
            let slot = Duration::from_millis(from * 100)..Duration::from_millis(from * 100 + 100);
            assert!(waits.iter().filter(|wait| slot.contains(*wait)).count() <= 2, "{from}");
        }
    }

    proptest! {
        #[test]
        fn every_wait_is_within_its_bounds(failures in 0u32..40, random in -1.0f64..2.0) {
            let mut backoff = Backoff::default();
            for _ in 0..failures {
                backoff.failed(random);
            }
            let wait = backoff.failed(random);
            prop_assert!(wait >= FIRST / 2 && wait <= LONGEST * 3 / 2, "{wait:?}");
        }
    }
}
