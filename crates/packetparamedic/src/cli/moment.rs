//! A point in time as a user writes it: as a date, as a time, or as a duration before now.

use std::time::Duration;

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use paramedic_report::quantity;

/// A point in time as the user wrote it. [`Moment::resolve`] converts it to a timestamp.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Moment {
    /// A time that was written with its UTC offset.
    At(Timestamp),
    /// A date, or a date and a time, in the time zone of this host.
    Local(DateTime),
    /// A duration before now.
    Ago(Duration),
}

/// Parses a moment: `7d`, `2026-01-31`, `2026-01-31 12:00`, `2026-01-31T12:00:00Z`.
pub(super) fn moment(text: &str) -> Result<Moment, String> {
    let text = text.trim();
    if let Ok(time) = text.parse() {
        return Ok(Moment::At(time));
    }
    if let Ok(time) = text.parse() {
        return Ok(Moment::Local(time));
    }
    let valid = "how long ago, such as 24h or 7d, or a time such as 2026-01-31, \"2026-01-31 12:00\" or \
                 2026-01-31T12:00:00Z";
    quantity::parse_duration(text).map(Moment::Ago).map_err(|_| format!("{text:?} is not a time; valid: {valid}"))
}

impl Moment {
    /// Returns the time of the moment; the earliest possible time if the moment is out of range.
    pub(super) fn resolve(self, now: Timestamp, zone: &TimeZone) -> Timestamp {
        match self {
            Self::At(time) => time,
            Self::Local(time) => time.to_zoned(zone.clone()).map_or(Timestamp::MIN, |zoned| zoned.timestamp()),
            Self::Ago(time) => now.checked_sub(time).unwrap_or(Timestamp::MIN),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_a_time_with_or_without_a_zone_or_how_long_ago() {
        let (now, berlin) = ("2026-02-01T12:00:00Z".parse().unwrap(), TimeZone::get("Europe/Berlin").unwrap());
        let resolved = |text: &str| moment(text).unwrap().resolve(now, &berlin).to_string();
        for (text, expected) in [
            ("7d", "2026-01-25T12:00:00Z"),
            ("90m", "2026-02-01T10:30:00Z"),
            ("2026-01-31", "2026-01-30T23:00:00Z"),
            ("2026-07-31", "2026-07-30T22:00:00Z"),
            (" 2026-01-31 12:30 ", "2026-01-31T11:30:00Z"),
            ("2026-01-31T12:30:15", "2026-01-31T11:30:15Z"),
            ("2026-01-31T12:30:15Z", "2026-01-31T12:30:15Z"),
            ("2026-01-31T12:30:15+05:30", "2026-01-31T07:00:15Z"),
            // A local time that the change to summer time skips.
            ("2026-03-29 02:30", "2026-03-29T01:30:00Z"),
        ] {
            assert_eq!(resolved(text), expected, "{text}");
        }
        assert_eq!(moment("99999999d").unwrap().resolve(now, &berlin), Timestamp::MIN);
        for wrong in ["", "yesterday", "7", "2026-02-30", "2026-1-1", "12:00", "-7d"] {
            assert!(moment(wrong).is_err_and(|error| error.contains("; valid: ")), "{wrong}");
        }
    }
}
