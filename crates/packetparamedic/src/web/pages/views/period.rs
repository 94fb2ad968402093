//! The period of a page with charts: a day, a week, a month, a year, or all.

use std::time::Duration;

use jiff::Timestamp;

/// The periods, each with its word in the address (`day`) and its name on the page (`Day`), in the order in which pages
/// offer them.
const ALL: [(ChartPeriod, &str, &str); 5] = [
    (ChartPeriod::Day, "day", "Day"),
    (ChartPeriod::Week, "week", "Week"),
    (ChartPeriod::Month, "month", "Month"),
    (ChartPeriod::Year, "year", "Year"),
    (ChartPeriod::All, "all", "All"),
];
const DAY: Duration = Duration::from_secs(86_400);

/// A period that ends now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum ChartPeriod {
    /// The last 24 hours.
    Day,
    /// The last seven days.
    #[default]
    Week,
    /// The last 30 days.
    Month,
    /// The last 365 days.
    Year,
    /// The time since the first run, or since the monitor was added.
    All,
}

impl ChartPeriod {
    /// Returns the period whose word in the address is `word`; a week if no period has this word.
    pub(super) fn of_word(word: Option<&str>) -> Self {
        ALL.iter().find(|(_, own, _)| Some(*own) == word).map(|(period, ..)| *period).unwrap_or_default()
    }

    /// The word for this period in the address of a page.
    pub(super) fn word(self) -> &'static str {
        ALL.iter().find(|(own, ..)| *own == self).map_or("", |(_, word, _)| word)
    }

    /// Returns every period with its word in the address (`day`) and its name on the page (`Day`).
    pub(super) fn all() -> &'static [(Self, &'static str, &'static str)] {
        &ALL
    }

    /// The start of the period that ends at `now`; `None` for [`Self::All`].
    pub(super) fn since(self, now: Timestamp) -> Option<Timestamp> {
        let length = match self {
            Self::Day => DAY,
            Self::Week => 7 * DAY,
            Self::Month => 30 * DAY,
            Self::Year => 365 * DAY,
            Self::All => return None,
        };
        now.checked_sub(length).ok()
    }

    /// The length of a step in a chart from `since` to `now`: a round length, such that the chart has at most about 400
    /// steps.
    pub(super) fn step(self, since: Timestamp, now: Timestamp) -> Duration {
        match self {
            Self::Day => Duration::from_secs(15 * 60),
            Self::Week => Duration::from_secs(3_600),
            Self::Month => Duration::from_secs(4 * 3_600),
            Self::Year => DAY,
            Self::All => {
                let seconds = u64::try_from(now.as_second().saturating_sub(since.as_second())).unwrap_or(0);
                let hours = (seconds / 300).div_ceil(3_600).max(1);
                // A step of more than half a day is rounded up to whole days.
                Duration::from_secs(3_600 * if hours > 12 { hours.div_ceil(24) * 24 } else { hours })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_period_has_a_few_hundred_steps() {
        let now = "2026-06-15T12:00:00Z".parse::<Timestamp>().unwrap();
        for (period, word, _) in ChartPeriod::all() {
            assert_eq!(ChartPeriod::of_word(Some(word)), *period);
            let decade = "2016-06-15T12:00:00Z".parse().unwrap();
            let since = period.since(now).unwrap_or(decade);
            let length = u64::try_from(now.duration_since(since).as_secs()).unwrap();
            let steps = length / period.step(since, now).as_secs();
            assert!((90..=370).contains(&steps), "{word}: {steps}");
        }
        assert_eq!(ChartPeriod::of_word(Some("decade")), ChartPeriod::Week);
        assert_eq!(ChartPeriod::All.step(now, now), Duration::from_secs(3_600));
    }
}
