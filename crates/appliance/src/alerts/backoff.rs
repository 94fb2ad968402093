//! Computes when a failed delivery of a message is repeated, and when it is given up. The caller passes the time and
//! the random number.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

/// The wait after the first failure, without jitter.
const FIRST: Duration = Duration::from_secs(5);
/// The longest wait, without jitter.
const LONGEST: Duration = Duration::from_secs(15 * 60);
/// The longest wait that a server can ask for. A longer one is shortened to this.
const LONGEST_ASKED: Duration = Duration::from_secs(60 * 60);
/// The age of a message at which its delivery is no longer repeated.
const GIVE_UP_AFTER: Duration = Duration::from_secs(3 * 86_400);
/// The minimum number of attempts, however old the message is: the device may have been off, or its clock may have been
/// set since the message was made.
const LEAST_ATTEMPTS: u32 = 12;
/// No wait for the next attempt is longer than this. The longest possible wait is 75 minutes: a server can ask for 60
/// minutes, and jitter adds at most a quarter of that.
pub const LONGEST_WAIT: Duration = Duration::from_secs(90 * 60);

/// Whether it can help to repeat a delivery that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetryAdvice {
    /// A repetition cannot help.
    Never,
    /// A repetition can help, but not before `retry_after` if the other end asked for that wait.
    Later {
        /// The wait that the other end asked for; `None` if it asked for none.
        retry_after: Option<Duration>,
    },
}

impl RetryAdvice {
    /// A repetition can help, at any time.
    pub const LATER: Self = Self::Later { retry_after: None };
}

/// What follows a failed attempt to deliver a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NextAttempt {
    /// Another attempt is made at this time.
    At(Timestamp),
    /// No further attempt is made.
    Never,
}

/// What follows the failure of attempt number `attempts` (at least 1) at `now`. The base wait doubles from 5 s to 15
/// min. Jitter multiplies it by 0.5 to 1.5; `random` (0 to 1) selects this factor.
pub fn next_attempt(
    attempts: u32,
    created_at: Timestamp,
    now: Timestamp,
    advice: RetryAdvice,
    random: f64,
) -> NextAttempt {
    let RetryAdvice::Later { retry_after } = advice else { return NextAttempt::Never };
    let random = random.clamp(0.0, 1.0);
    let doubled = FIRST.saturating_mul(1 << attempts.saturating_sub(1).min(16)).min(LONGEST);
    let own = doubled.mul_f64(0.5 + random);
    // Waits somewhat longer than asked, so that many devices do not retry at the same time.
    let asked = retry_after.map(|asked| asked.min(LONGEST_ASKED).mul_f64(1.0 + random / 4.0));
    let wait = asked.map_or(own, |asked| own.max(asked));
    let Ok(next) = now.checked_add(wait) else { return NextAttempt::Never };
    let age = next.duration_since(created_at);
    let is_old = age > SignedDuration::try_from(GIVE_UP_AFTER).unwrap_or(SignedDuration::MAX);
    if is_old && attempts >= LEAST_ATTEMPTS { NextAttempt::Never } else { NextAttempt::At(next) }
}

/// Whether to repeat a delivery that a web server answered with this HTTP status; `None` if the status is a success.
/// `retry_after` is the value of the `Retry-After` header.
pub fn http_failure(status: u16, retry_after: Option<&str>, now: Timestamp) -> Option<RetryAdvice> {
    match status {
        200..=299 => None,
        // A repetition helps only after Request Timeout, Too Early and Too Many Requests.
        400..=499 if ![408, 425, 429].contains(&status) => Some(RetryAdvice::Never),
        _ => Some(RetryAdvice::Later { retry_after: retry_after.and_then(|value| delay(value, now)) }),
    }
}

/// Parses the value of a header `Retry-After`: seconds, or a date (RFC 9110, section 10.2.3).
fn delay(value: &str, now: Timestamp) -> Option<Duration> {
    let value = value.trim();
    if let Ok(seconds) = value.parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    let at = jiff::fmt::rfc2822::parse(value).ok()?.timestamp();
    Some(Duration::try_from(at.duration_since(now)).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn start() -> Timestamp {
        "2026-01-01T00:00:00Z".parse().unwrap()
    }

    /// The times of all attempts to deliver a message, if each attempt fails in this way.
    fn attempts(failure: RetryAdvice, random: f64) -> Vec<Timestamp> {
        let mut all = vec![start()];
        while let NextAttempt::At(next) =
            next_attempt(u32::try_from(all.len()).unwrap(), start(), *all.last().unwrap(), failure, random)
        {
            all.push(next);
        }
        all
    }

    #[test]
    fn a_server_that_fails_for_an_hour_gets_the_message_soon_after() {
        let all = attempts(RetryAdvice::LATER, 0.5);
        let waits = all.windows(2).map(|pair| pair[1].as_second() - pair[0].as_second()).collect::<Vec<_>>();
        assert_eq!(waits[..9], [5, 10, 20, 40, 80, 160, 320, 640, 900]);
        let hour = start().as_second() + 3600;
        let within = all.iter().filter(|at| at.as_second() <= hour).count();
        assert_eq!(within, 11, "a down server is not flooded");
        let delivered = all.iter().find(|at| at.as_second() > hour).unwrap().as_second();
        assert!(delivered <= hour + 900, "{delivered}");
    }

    #[test]
    fn a_message_is_given_up_after_three_days() {
        for random in [0.0, 0.5, 1.0] {
            let all = attempts(RetryAdvice::LATER, random);
            let last = all.last().unwrap().duration_since(start());
            let (least, most) = (SignedDuration::from_hours(71), SignedDuration::from_hours(72));
            assert!(last >= least && last <= most, "{random}: {last:?} after {} attempts", all.len());
        }
        assert_eq!(attempts(RetryAdvice::Never, 0.5), [start()]);
    }

    #[test]
    fn a_device_that_was_off_or_set_its_clock_still_tries_some_times() {
        let late = "2026-06-01T00:00:00Z".parse().unwrap();
        assert!(matches!(next_attempt(1, start(), late, RetryAdvice::LATER, 0.5), NextAttempt::At(_)));
        assert!(matches!(next_attempt(11, start(), late, RetryAdvice::LATER, 0.5), NextAttempt::At(_)));
        assert_eq!(next_attempt(12, start(), late, RetryAdvice::LATER, 0.5), NextAttempt::Never);
        assert!(
            matches!(next_attempt(400, late, start(), RetryAdvice::LATER, 0.5), NextAttempt::At(_)),
            "a clock set back"
        );
    }

    #[test]
    fn a_status_says_whether_a_repetition_can_help() {
        let of = |status, header| http_failure(status, header, start());
        for status in [200, 201, 202, 204, 299] {
            assert_eq!(of(status, None), None, "{status}");
        }
        for status in [400, 401, 403, 404, 410, 413, 422] {
            assert_eq!(of(status, Some("5")), Some(RetryAdvice::Never), "{status}");
        }
        for status in [100, 301, 302, 307, 408, 425, 429, 500, 502, 503, 599] {
            assert_eq!(of(status, None), Some(RetryAdvice::LATER), "{status}");
        }
        let asked = |header| match of(503, Some(header)) {
            Some(RetryAdvice::Later { retry_after }) => retry_after.map(|asked| asked.as_secs()),
            other => panic!("{other:?}"),
        };
        assert_eq!(asked("120"), Some(120));
        assert_eq!(asked("Thu, 01 Jan 2026 00:02:00 GMT"), Some(120));
        assert_eq!(asked("Wed, 01 Jan 2020 00:02:00 GMT"), Some(0), "a date that is over");
        assert_eq!([asked("soon"), asked("-5"), asked("")], [None; 3]);
    }

    proptest! {
        #[test]
        fn every_wait_is_within_its_bounds(
            attempts in 0u32..1000,
            random in -1.0f64..2.0,
            asked in proptest::option::of(any::<u64>()),
        ) {
            let failure = RetryAdvice::Later { retry_after: asked.map(Duration::from_secs) };
            let next = next_attempt(attempts, start(), start(), failure, random);
            let NextAttempt::At(next) = next else { panic!("{next:?}") };
            let wait = Duration::try_from(next.duration_since(start())).unwrap();
            prop_assert!(wait >= FIRST / 2 && wait <= LONGEST_WAIT, "{wait:?}");
            if let Some(asked) = asked {
                prop_assert!(wait >= Duration::from_secs(asked).min(LONGEST_ASKED), "{wait:?} but {asked} s were asked for");
            }
        }

        #[test]
        fn no_header_panics(status in any::<u16>(), header in "\\PC{0,40}") {
            http_failure(status, Some(&header), start());
        }
    }
}
