//! When a schedule is due: a cron expression with five fields in a time zone, or an interval. Pure: no I/O, no clock.

use std::fmt;
use std::time::Duration;

use croner::Cron;
use croner::parser::{CronParser, Seconds, Year};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use paramedic_report::quantity;

/// The shortest allowed time between two runs. It is limited because a test takes about half a minute, and loads the
/// line.
pub const MIN_INTERVAL: Duration = Duration::from_secs(5 * 60);
/// The longest allowed interval of a recurrence.
const MAX_INTERVAL: Duration = Duration::from_secs(366 * 86_400);
/// The number of occurrences that [`Recurrence::shortest_gap`] compares.
const CHECKED_OCCURRENCES: usize = 64;
/// The valid nicknames of cron expressions. The library `croner` would also accept other words with `@`, and nicknames
/// in the middle of a text.
const NICKNAMES: [&str; 6] = ["@hourly", "@daily", "@midnight", "@weekly", "@monthly", "@yearly"];

/// Why a text cannot be used as a recurrence.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecurrenceError {
    /// The text is not a valid cron expression.
    #[error("{text:?} is not a cron expression: {reason}")]
    Cron {
        /// The text that is not a valid cron expression.
        text: String,
        /// Why the text is not a valid cron expression.
        reason: String,
    },
    /// The text is not a valid interval.
    #[error("{text:?} is not an interval: {reason}")]
    Interval {
        /// The text that is not a valid interval.
        text: String,
        /// Why the text is not a valid interval.
        reason: String,
    },
    /// The recurrence never occurs.
    #[error("{text:?} never occurs: no year has such a day")]
    Never {
        /// The recurrence as text.
        text: String,
    },
    /// Two occurrences are closer than [`MIN_INTERVAL`].
    #[error("two runs of {text:?} are only {} apart; valid: at least 5m", quantity::exact_duration(*.gap))]
    TooOften {
        /// The recurrence as text.
        text: String,
        /// The shortest time between two occurrences.
        gap: Duration,
    },
}

/// When a schedule is due: at the times of a cron expression, or at intervals.
#[derive(Clone)]
pub struct Recurrence {
    text: String,
    kind: RecurrenceKind,
}

#[derive(Clone)]
enum RecurrenceKind {
    Cron(Box<Cron>),
    Every(SignedDuration),
}

/// The time zone and the start time on which the occurrences of a recurrence depend.
#[derive(Clone, Debug, PartialEq)]
pub struct TimeFrame {
    /// The time zone in which a cron expression is read.
    pub zone: TimeZone,
    /// The time from which an interval counts: every occurrence is a whole number of intervals away from it.
    pub anchor: Timestamp,
}

impl Recurrence {
    /// Parses `every 6h`, a cron expression with five fields, or a nickname such as `@daily`.
    pub fn parse(text: &str) -> Result<Self, RecurrenceError> {
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        match text.strip_prefix("every ") {
            Some(interval) => Self::every(interval),
            None => Self::cron(&text),
        }
    }

    /// Parses an interval such as `6h`.
    pub fn every(text: &str) -> Result<Self, RecurrenceError> {
        let wrong = |reason: String| RecurrenceError::Interval { text: text.to_owned(), reason };
        let interval = quantity::parse_duration(text).map_err(|error| wrong(error.to_string()))?;
        if interval.subsec_nanos() != 0 || !(MIN_INTERVAL..=MAX_INTERVAL).contains(&interval) {
            return Err(wrong("valid: 5m to 366d, in whole seconds".to_owned()));
        }
        let kind = RecurrenceKind::Every(SignedDuration::try_from(interval).map_err(|error| wrong(error.to_string()))?);
        Ok(Self { text: format!("every {}", quantity::exact_duration(interval)), kind })
    }

    fn cron(text: &str) -> Result<Self, RecurrenceError> {
        let wrong = |reason: &str| RecurrenceError::Cron { text: text.to_owned(), reason: reason.to_owned() };
        let is_nickname = NICKNAMES.contains(&text.to_ascii_lowercase().as_str());
        if text.contains('@') && !is_nickname {
            return Err(wrong(&format!("valid nicknames: {}", NICKNAMES.join(", "))));
        }
        if !is_nickname && text.split(' ').count() != 5 {
            return Err(wrong(
                "valid: five fields (minute, hour, day of month, month, day of week), such as 30 3 * * *",
            ));
        }
        let parser = CronParser::builder().seconds(Seconds::Disallowed).year(Year::Disallowed).build();
        // Replaces a nickname here, because croner would replace it by six fields.
        let five = match text.to_ascii_lowercase().as_str() {
            "@hourly" => "0 * * * *",
            "@daily" | "@midnight" => "0 0 * * *",
            "@weekly" => "0 0 * * 0",
            "@monthly" => "0 0 1 * *",
            "@yearly" => "0 0 1 1 *",
            _ => text,
        };
        let cron = parser.parse(five).map_err(|error| wrong(&error.to_string()))?;
        Ok(Self { text: text.to_owned(), kind: RecurrenceKind::Cron(Box::new(cron)) })
    }

    /// The recurrence as text, which [`Recurrence::parse`] reads back.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Checks that the recurrence occurs after `now`, and never twice within [`MIN_INTERVAL`].
    pub fn check(&self, frame: &TimeFrame, now: Timestamp) -> Result<(), RecurrenceError> {
        let Some(gap) = self.shortest_gap(frame, now) else {
            return Err(RecurrenceError::Never { text: self.text.clone() });
        };
        if gap < MIN_INTERVAL {
            return Err(RecurrenceError::TooOften { text: self.text.clone(), gap });
        }
        Ok(())
    }

    /// The shortest time between two successive occurrences, among the next ones after `now`. `None` if there is no
    /// occurrence; 366 days if there is only one.
    pub fn shortest_gap(&self, frame: &TimeFrame, now: Timestamp) -> Option<Duration> {
        if let RecurrenceKind::Every(interval) = self.kind {
            return Some(interval.unsigned_abs());
        }
        let mut at = self.next_after(now, frame)?;
        let mut shortest = MAX_INTERVAL;
        for _ in 0..CHECKED_OCCURRENCES {
            let Some(next) = self.next_after(at, frame) else { break };
            shortest = shortest.min(next.duration_since(at).unsigned_abs());
            at = next;
        }
        Some(shortest)
    }

    /// The first occurrence after `time`.
    pub fn next_after(&self, time: Timestamp, frame: &TimeFrame) -> Option<Timestamp> {
        match &self.kind {
            RecurrenceKind::Cron(cron) => {
                let found = cron.find_next_occurrence(&whole_second(time)?.to_zoned(frame.zone.clone()), false);
                found.ok().map(|zoned| zoned.timestamp())
            }
            RecurrenceKind::Every(_) => self.interval_at(time, frame, 1),
        }
    }

    /// The last occurrence at or before `time`.
    pub fn last_until(&self, time: Timestamp, frame: &TimeFrame) -> Option<Timestamp> {
        match &self.kind {
            RecurrenceKind::Cron(cron) => {
                let found = cron.find_previous_occurrence(&whole_second(time)?.to_zoned(frame.zone.clone()), true);
                found.ok().map(|zoned| zoned.timestamp())
            }
            RecurrenceKind::Every(_) => self.interval_at(time, frame, 0),
        }
    }

    /// A boundary of the interval that contains `time`: the start of the interval for `offset` 0, its end for 1.
    fn interval_at(&self, time: Timestamp, frame: &TimeFrame, offset: i128) -> Option<Timestamp> {
        let RecurrenceKind::Every(interval) = self.kind else { return None };
        let (time, anchor, length) = (time.as_nanosecond(), frame.anchor.as_nanosecond(), interval.as_nanos());
        let number = (time - anchor).div_euclid(length) + offset;
        Timestamp::from_nanosecond(anchor + number * length).ok()
    }
}

/// Removes the fraction of a second, because croner compares civil times without fractions.
fn whole_second(time: Timestamp) -> Option<Timestamp> {
    Timestamp::from_second(time.as_nanosecond().div_euclid(1_000_000_000).try_into().ok()?).ok()
}

impl fmt::Display for Recurrence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.text)
    }
}

impl fmt::Debug for Recurrence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Recurrence({:?})", self.text)
    }
}

impl PartialEq for Recurrence {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl serde::Serialize for Recurrence {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl<'de> serde::Deserialize<'de> for Recurrence {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn berlin() -> TimeFrame {
        TimeFrame { zone: TimeZone::get("Europe/Berlin").unwrap(), anchor: at("2026-01-01T00:07:11Z") }
    }

    fn next(text: &str, after: &str) -> String {
        Recurrence::parse(text).unwrap().next_after(at(after), &berlin()).unwrap().to_string()
    }

    #[test]
    fn five_fields_a_nickname_or_an_interval_and_nothing_else() {
        for text in
            ["30 3 * * *", "*/15 8-18 * * MON-FRI", "@daily", "@Hourly", "every 6h", "every 1h30m", " 0  4 * * 0 "]
        {
            let read = Recurrence::parse(text).unwrap();
            assert_eq!(Recurrence::parse(read.as_str()).unwrap(), read, "{text}");
            assert_eq!(read.check(&berlin(), at("2026-01-01T00:00:00Z")), Ok(()), "{text}");
        }
        for text in [
            "",
            "daily",
            "@reboot",
            "@daily x",
            "* * * * * *",
            "0 0 3 * * * 2027",
            "0 3 * *",
            "60 3 * * *",
            "0 24 * * *",
            "every",
            "every 2s",
            "every 4m",
            "every 400d",
            "every 6",
            "every 5.0001m",
            "every -6h",
            "0 3 * * @daily",
        ] {
            assert!(Recurrence::parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn an_expression_that_never_occurs_and_one_that_occurs_too_often_are_refused() {
        let check = |text: &str| Recurrence::parse(text).unwrap().check(&berlin(), at("2026-01-01T00:00:00Z"));
        for text in ["0 0 30 2 *", "0 0 31 4,6,9,11 *"] {
            assert_eq!(check(text), Err(RecurrenceError::Never { text: text.to_owned() }));
        }
        for text in ["* * * * *", "*/4 * * * *", "0,1 3 * * *", "59,0 * * * *"] {
            assert!(matches!(check(text), Err(RecurrenceError::TooOften { .. })), "{text}");
        }
        // 29 February occurs only in leap years.
        assert_eq!(check("0 3 29 2 *"), Ok(()));
    }

    #[test]
    fn a_time_that_the_clock_skips_or_repeats_occurs_once() {
        // In this time zone, 02:00 becomes 03:00 on 29 March 2026, and 03:00 becomes 02:00 on 25 October 2026.
        assert_eq!(next("30 2 * * *", "2026-03-28T12:00:00Z"), "2026-03-29T01:00:00Z");
        assert_eq!(next("30 2 * * *", "2026-03-29T01:00:00Z"), "2026-03-30T00:30:00Z");
        assert_eq!(next("30 2 * * *", "2026-10-24T12:00:00Z"), "2026-10-25T00:30:00Z");
        assert_eq!(next("30 2 * * *", "2026-10-25T00:30:00Z"), "2026-10-26T01:30:00Z");
        // An interval is not affected by the change to summer time.
        assert_eq!(next("every 1d", "2026-03-28T12:00:00Z"), "2026-03-29T00:07:11Z");
        assert_eq!(next("every 1d", "2026-03-29T12:00:00Z"), "2026-03-30T00:07:11Z");
    }

    proptest! {
        #[test]
        fn the_last_occurrence_until_the_next_one_is_that_one(
            second in 1_600_000_000_i64..2_200_000_000,
            nanosecond in 0..1_000_000_000_i32,
            which in 0..6_usize,
        ) {
            let text = ["every 7h", "30 2 * * *", "*/20 * * * *", "0 4 1 * *", "15 3 * * MON", "every 366d"][which];
            let (recurrence, frame) = (Recurrence::parse(text).unwrap(), berlin());
            let now = Timestamp::new(second, nanosecond).unwrap();
            let next = recurrence.next_after(now, &frame).unwrap();
            let last = recurrence.last_until(now, &frame).unwrap();
            prop_assert!(last <= now && now < next, "{last} {now} {next}");
            prop_assert_eq!(recurrence.last_until(next, &frame), Some(next));
            prop_assert_eq!(recurrence.next_after(last, &frame), Some(next));
        }

        #[test]
        fn no_text_panics(text in "\\PC*", fields in "[0-9*/,LW#@a-z -]{0,24}") {
            for text in [text, fields] {
                if let Ok(recurrence) = Recurrence::parse(&text) {
                    let _ = recurrence.check(&berlin(), at("2026-01-01T00:00:00Z"));
                }
            }
        }
    }
}
