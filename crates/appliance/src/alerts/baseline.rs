//! The usual value of a metric at an hour of the week: the median of the values at that hour in the last eight weeks. A
//! few bad values hardly change a median.

use std::collections::BTreeSet;

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use paramedic_report::line_report::Median;

/// The maximum age of a value that counts for the usual value.
pub const HISTORY: SignedDuration = SignedDuration::from_hours(8 * 7 * 24);
/// The minimum age of a value that counts for the usual value. A newer value may belong to the deviation that is being
/// judged.
const LATEST: SignedDuration = SignedDuration::from_hours(24);
/// The usual value at a time of the week is computed from the values at most this many minutes before or after that
/// time.
const NEAR_MINUTES: i64 = 60;
/// The minimum number of weeks with values, so that one unusual week does not define the usual value.
const LEAST_WEEKS: usize = 3;
/// The maximum number of minutes by which a change to or from summer time moves the local clock.
const LARGEST_SHIFT: i64 = 120;
/// The minutes of a week.
const WEEK_MINUTES: i64 = 7 * 24 * 60;

/// The past values of a metric for one target or monitor.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct UsualValues {
    /// The values with their times, oldest first.
    values: Vec<(Timestamp, f64)>,
}

impl UsualValues {
    /// Creates the set of these values, which can be in any order.
    pub fn new(mut values: Vec<(Timestamp, f64)>) -> Self {
        values.sort_by_key(|(at, _)| *at);
        Self { values }
    }

    /// The usual value at the hour of the week of `time` in the time zone `zone`; `None` without enough values.
    pub fn at(&self, time: Timestamp, zone: &TimeZone) -> Option<f64> {
        let (from, to) = (time.checked_sub(HISTORY).ok()?, time.checked_sub(LATEST).ok()?);
        let first = self.values.partition_point(|(at, _)| *at < from);
        let end = self.values.partition_point(|(at, _)| *at <= to);
        let wanted = minute_of_week(time, zone);
        let is_near = |(at, _): &&(Timestamp, f64)| {
            // Skips most values without a time zone conversion: they are too far away, whatever summer time does.
            let apart = (time.as_second() - at.as_second()).div_euclid(60).rem_euclid(WEEK_MINUTES);
            if apart.min(WEEK_MINUTES - apart) > NEAR_MINUTES + LARGEST_SHIFT {
                return false;
            }
            let apart = (minute_of_week(*at, zone) - wanted).rem_euclid(WEEK_MINUTES);
            apart.min(WEEK_MINUTES - apart) <= NEAR_MINUTES
        };
        let near = self.values.get(first..end)?.iter().filter(is_near).collect::<Vec<_>>();
        // Groups the values by week: those of one week are within about two hours, those of the next one a week later.
        let week = |at: Timestamp| (time.as_second() - at.as_second() + 43_200).div_euclid(WEEK_MINUTES * 60);
        let weeks = near.iter().map(|(at, _)| week(*at)).collect::<BTreeSet<_>>();
        if weeks.len() < LEAST_WEEKS {
            return None;
        }
        Median::of(near.iter().map(|(_, value)| *value)).map(|median| median.value)
    }
}

/// The minutes since Monday, 0:00, by the clock of the time zone.
fn minute_of_week(time: Timestamp, zone: &TimeZone) -> i64 {
    let local = time.to_zoned(zone.clone());
    let day = i64::from(local.weekday().to_monday_zero_offset());
    day * 1_440 + i64::from(local.hour()) * 60 + i64::from(local.minute())
}

#[cfg(test)]
mod tests {
    use jiff::ToSpan;
    use jiff::civil::date;

    use super::*;

    fn berlin() -> TimeZone {
        TimeZone::get("Europe/Berlin").unwrap()
    }

    fn local(days: i64, hour: i8) -> Timestamp {
        let day = date(2026, 3, 2).saturating_add(days.days());
        day.at(hour, 0, 0, 0).to_zoned(berlin()).unwrap().timestamp()
    }

    #[test]
    fn evenings_are_compared_with_evenings_also_after_the_change_to_summer_time() {
        // Two values a day for six weeks, across 29 March: 90 at noon, 40 in the evening, 20 on Sundays' evenings.
        let day = |day: i64| {
            let evening = if day % 7 == 6 { 20.0 } else { 40.0 };
            [(local(day, 12), 90.0), (local(day, 20), evening)]
        };
        let usual = UsualValues::new((0..42).flat_map(day).collect());
        let at = |day, hour| usual.at(local(day, hour), &berlin());
        assert_eq!((at(42, 12), at(42, 20), at(48, 20)), (Some(90.0), Some(40.0), Some(20.0)));
        assert_eq!((at(42, 21), at(42, 23)), (Some(40.0), None), "an hour apart counts, more does not");
        // The last day does not count; two weeks are too few.
        assert_eq!((at(7, 12), at(14, 12), at(34, 12)), (None, None, None));
        assert_eq!(at(35, 12), Some(90.0), "five values of five weeks");
    }

    #[test]
    fn one_week_with_many_values_is_not_what_is_usual() {
        let values = (0..60).map(|minute| (local(0, 20) + i64::from(minute).minutes(), 40.0)).collect::<Vec<_>>();
        assert_eq!(UsualValues::new(values.clone()).at(local(7, 20), &berlin()), None);
        let weeks = [0, 7, 14].into_iter().flat_map(|day| {
            let later = local(day, 20).duration_since(local(0, 20));
            values.iter().map(move |(at, value)| (*at + later, *value)).collect::<Vec<_>>()
        });
        assert_eq!(UsualValues::new(weeks.collect()).at(local(21, 20), &berlin()), Some(40.0));
    }

    #[test]
    fn a_few_bad_values_do_not_become_usual() {
        let value = |week: i64| (local(week * 7, 20), if week < 3 { 5.0 } else { 90.0 });
        let usual = UsualValues::new((0..8).map(value).collect());
        assert_eq!(usual.at(local(56, 20), &berlin()), Some(90.0));
    }
}
