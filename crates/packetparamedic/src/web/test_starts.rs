//! Limits how many tests clients of the TCP listener begin: each leaves a result, and a test that fails takes milliseconds.
//! Pure.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// How many tests begin in a [`WINDOW`]: one after the other, each in a second.
const MAX_STARTS: usize = 60;
const WINDOW: Duration = Duration::from_secs(60);

/// The tests that began of late, oldest first.
#[derive(Debug, Default)]
pub(super) struct TestStarts {
    begun: VecDeque<Instant>,
}

impl TestStarts {
    /// Whether a test may begin at `now`; otherwise how long to wait.
    pub(super) fn begin(&mut self, now: Instant) -> Result<(), Duration> {
        let age = |begun: &Instant| now.saturating_duration_since(*begun);
        self.begun.retain(|begun| age(begun) < WINDOW);
        match self.begun.front() {
            Some(oldest) if self.begun.len() >= MAX_STARTS => Err(WINDOW.saturating_sub(age(oldest))),
            _ => {
                self.begun.push_back(now);
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_minute_has_more_and_the_given_wait_suffices(gaps_ms in prop::collection::vec(0_u64..3_000, 1..300)) {
            #[expect(clippy::disallowed_methods, reason = "an Instant has no other beginning")]
            let zero = Instant::now();
            let mut starts = TestStarts::default();
            let (mut now, mut begun) = (Duration::ZERO, Vec::new());
            for gap in gaps_ms {
                now += Duration::from_millis(gap);
                if let Err(wait) = starts.begin(zero + now) {
                    prop_assert!(wait <= WINDOW && starts.begin(zero + now).is_err());
                    now += wait;
                    prop_assert_eq!(starts.begin(zero + now), Ok(()));
                }
                begun.push(now);
                let recent = begun.iter().filter(|at| now.saturating_sub(**at) < WINDOW).count();
                prop_assert!(recent <= MAX_STARTS);
            }
        }
    }
}
