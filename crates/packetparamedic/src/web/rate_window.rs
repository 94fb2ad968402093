//! Limits how many events may happen in a minute. Pure: callers pass in the time.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// The length of the time over which events are counted.
const WINDOW: Duration = Duration::from_secs(60);

/// The times of the latest events, oldest first: at most `MAX` in a [`WINDOW`].
#[derive(Debug, Default)]
pub(super) struct RateWindow<const MAX: usize> {
    times: VecDeque<Instant>,
}

/// The times at which clients of the TCP listener began tests. Their number is limited, because each test saves a
/// result, and a client could begin very many tests that fail within milliseconds.
pub(super) type TestStarts = RateWindow<60>;

impl<const MAX: usize> RateWindow<MAX> {
    /// Counts an event if it may happen at `now`. Otherwise fails with the time for which the caller must wait.
    pub(super) fn begin(&mut self, now: Instant) -> Result<(), Duration> {
        let age = |time: &Instant| now.saturating_duration_since(*time);
        self.times.retain(|time| age(time) < WINDOW);
        match self.times.front() {
            Some(oldest) if self.times.len() >= MAX => Err(WINDOW.saturating_sub(age(oldest))),
            _ => {
                self.times.push_back(now);
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
            let mut window = TestStarts::default();
            let (mut now, mut begun) = (Duration::ZERO, Vec::new());
            for gap in gaps_ms {
                now += Duration::from_millis(gap);
                if let Err(wait) = window.begin(zero + now) {
                    prop_assert!(wait <= WINDOW && window.begin(zero + now).is_err());
                    now += wait;
                    prop_assert_eq!(window.begin(zero + now), Ok(()));
                }
                begun.push(now);
                let recent = begun.iter().filter(|at| now.saturating_sub(**at) < WINDOW).count();
                prop_assert!(recent <= 60);
            }
        }
    }
}
