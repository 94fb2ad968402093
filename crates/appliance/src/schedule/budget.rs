//! The data budget of a schedule for a day and for a month, in the time zone of the schedule. Pure: no I/O, no clock.

use jiff::tz::TimeZone;
use jiff::{Span, Timestamp, Zoned};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How much data a schedule may use. An absent limit means no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DataBudget {
    /// The number of bytes that the schedule may use in a day.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub day_bytes: Option<u64>,
    /// The number of bytes that the schedule may use in a calendar month.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub month_bytes: Option<u64>,
}

/// The data that was used in the present day and in the present month.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DataUse {
    /// The number of bytes in the present day.
    pub day_bytes: u64,
    /// The number of bytes in the present month.
    pub month_bytes: u64,
}

/// A period of time that includes its start but not its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BudgetPeriod {
    /// The start of the period.
    pub from: Timestamp,
    /// The end of the period, which is not part of the period.
    pub to: Timestamp,
}

impl DataBudget {
    /// What is left of this budget after `used` is subtracted.
    pub fn left(self, used: DataUse) -> Self {
        let left = |limit: Option<u64>, used: u64| limit.map(|limit| limit.saturating_sub(used));
        Self { day_bytes: left(self.day_bytes, used.day_bytes), month_bytes: left(self.month_bytes, used.month_bytes) }
    }
}

/// The day that contains `now` in the time zone `zone`.
pub fn day_of(now: Timestamp, zone: &TimeZone) -> Option<BudgetPeriod> {
    let start = now.to_zoned(zone.clone()).start_of_day().ok()?;
    period(&start, Span::new().days(1))
}

/// The calendar month that contains `now` in the time zone `zone`.
pub fn month_of(now: Timestamp, zone: &TimeZone) -> Option<BudgetPeriod> {
    let start = now.to_zoned(zone.clone()).first_of_month().ok()?.start_of_day().ok()?;
    period(&start, Span::new().months(1))
}

fn period(start: &Zoned, length: Span) -> Option<BudgetPeriod> {
    let end = start.checked_add(length).ok()?.start_of_day().ok()?;
    Some(BudgetPeriod { from: start.timestamp(), to: end.timestamp() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_and_months_are_those_of_the_zone_also_when_the_clock_changes() {
        let berlin = TimeZone::get("Europe/Berlin").unwrap();
        let shown = |period: Option<BudgetPeriod>| {
            let period = period.unwrap();
            [period.from.to_string(), period.to.to_string()]
        };
        // The day of the change in spring has 23 hours.
        let now = "2026-03-29T12:00:00Z".parse().unwrap();
        assert_eq!(shown(day_of(now, &berlin)), ["2026-03-28T23:00:00Z", "2026-03-29T22:00:00Z"]);
        assert_eq!(shown(month_of(now, &berlin)), ["2026-02-28T23:00:00Z", "2026-03-31T22:00:00Z"]);
        let new_year = "2026-12-31T23:30:00Z".parse().unwrap();
        assert_eq!(shown(month_of(new_year, &berlin)), ["2026-12-31T23:00:00Z", "2027-01-31T23:00:00Z"]);
    }

    #[test]
    fn what_is_left_never_falls_below_zero() {
        let budget = DataBudget { day_bytes: Some(10), month_bytes: None };
        let used = DataUse { day_bytes: 12, month_bytes: 12 };
        assert_eq!(budget.left(used), DataBudget { day_bytes: Some(0), month_bytes: None });
    }
}
