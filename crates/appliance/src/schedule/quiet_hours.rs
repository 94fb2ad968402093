//! The hours of the day in which a schedule does not run, in the time zone of the schedule. Pure: no I/O, no clock.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use jiff::civil::Time;
use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};

/// A range of hours of the day that includes its start but not its end. It may span midnight, as `22:00-07:00` does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct QuietHours {
    from: Time,
    to: Time,
}

/// Why a text cannot be parsed as a range of hours.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a range of hours; valid: HH:MM-HH:MM with two different times, such as 22:00-07:00")]
pub struct NotQuietHours {
    text: String,
}

impl QuietHours {
    /// Whether `time` is within these hours, in the time zone `zone`.
    pub fn contain(self, time: Timestamp, zone: &TimeZone) -> bool {
        let time = time.to_zoned(zone.clone()).time();
        if self.from < self.to { (self.from..self.to).contains(&time) } else { time >= self.from || time < self.to }
    }

    /// The end of the quiet hours that contain `time`; `None` if `time` is not within the quiet hours.
    pub fn end_after(self, time: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        if !self.contain(time, zone) {
            return None;
        }
        let local = time.to_zoned(zone.clone());
        let day = if local.time() < self.to { local.date() } else { local.date().tomorrow().ok()? };
        day.to_datetime(self.to).to_zoned(zone.clone()).ok().map(|end| end.timestamp())
    }
}

impl FromStr for QuietHours {
    type Err = NotQuietHours;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let time = |text: &str| {
            let (hour, minute) = text.trim().split_once(':')?;
            let number = |digits: &str| {
                let is_valid = (1..=2).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit());
                is_valid.then(|| digits.parse().ok()).flatten()
            };
            Time::new(number(hour)?, number(minute)?, 0, 0).ok()
        };
        let range = text.split_once('-').and_then(|(from, to)| Some(Self { from: time(from)?, to: time(to)? }));
        range.filter(|range| range.from != range.to).ok_or_else(|| NotQuietHours { text: text.to_owned() })
    }
}

impl TryFrom<String> for QuietHours {
    type Error = NotQuietHours;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<QuietHours> for String {
    fn from(hours: QuietHours) -> Self {
        hours.to_string()
    }
}

impl fmt::Display for QuietHours {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { from, to } = self;
        write!(f, "{:02}:{:02}-{:02}:{:02}", from.hour(), from.minute(), to.hour(), to.minute())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_ends_on_the_same_day_or_on_the_next() {
        let berlin = TimeZone::get("Europe/Berlin").unwrap();
        let end = |hours: &str, time: &str| {
            let end = hours.parse::<QuietHours>().unwrap().end_after(time.parse().unwrap(), &berlin);
            end.map(|end| end.to_string())
        };
        for (hours, time, expected) in [
            ("22:00-07:00", "2026-01-10T21:00:00Z", Some("2026-01-11T06:00:00Z")),
            ("22:00-07:00", "2026-01-11T05:59:59Z", Some("2026-01-11T06:00:00Z")),
            ("22:00-07:00", "2026-01-11T06:00:00Z", None),
            ("09:00-17:00", "2026-01-11T09:00:00Z", Some("2026-01-11T16:00:00Z")),
            // This is the night of the change to summer time.
            ("22:00-07:00", "2026-03-28T21:00:00Z", Some("2026-03-29T05:00:00Z")),
        ] {
            assert_eq!(end(hours, time).as_deref(), expected, "{hours} {time}");
        }
    }

    #[test]
    fn a_range_may_pass_midnight_and_excludes_its_end() {
        let berlin = TimeZone::get("Europe/Berlin").unwrap();
        let is_quiet =
            |hours: &str, time: &str| hours.parse::<QuietHours>().unwrap().contain(time.parse().unwrap(), &berlin);
        // The time zone is one hour ahead of UTC in winter, and two hours in summer.
        for (time, night, day) in [
            ("2026-01-10T20:59:59Z", false, false),
            ("2026-01-10T21:00:00Z", true, false),
            ("2026-01-10T23:30:00Z", true, false),
            ("2026-01-11T05:59:00Z", true, false),
            ("2026-01-11T06:00:00Z", false, false),
            ("2026-01-11T09:00:00Z", false, true),
            ("2026-07-11T05:00:00Z", false, false),
        ] {
            assert_eq!((is_quiet("22:00-07:00", time), is_quiet("9:30-17:00", time)), (night, day), "{time}");
        }
        assert_eq!("9:30-17:00".parse::<QuietHours>().unwrap().to_string(), "09:30-17:00");
        for wrong in [
            "",
            "22-7",
            "22:00",
            "22:00-22:00",
            "24:00-07:00",
            "22:60-07:00",
            "a:b-c:d",
            "+1:00-2:00",
            "22:00-07:00-08:00",
        ] {
            assert!(wrong.parse::<QuietHours>().is_err(), "{wrong:?}");
        }
    }
}
