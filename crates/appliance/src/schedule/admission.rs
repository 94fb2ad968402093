//! Decides whether a run that is due may start, and names the reasons why a run does not start. Pure: no I/O, no clock.

use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::budget::DataUse;
use super::definition::Schedule;

/// Why a run did not start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SkipReason {
    /// The device was off or asleep, or the service was not running.
    Missed,
    /// The previous run of the schedule had not ended.
    StillRunning,
    /// The time was within the quiet hours of the schedule.
    QuietHours,
    /// The data budget of the day did not allow another run.
    DayBudget,
    /// The data budget of the month did not allow another run.
    MonthBudget,
    /// Other traffic used more of the line than the schedule allows.
    LineBusy,
    /// The default route did not use one of the interfaces that the schedule allows.
    Uplink,
    /// The service stopped, or the schedule was removed, before the run began.
    Stopped,
}

impl SkipReason {
    const ALL: [(Self, &'static str, &'static str); 8] = [
        (Self::Missed, "missed", "this device was off or asleep, or the service did not run"),
        (Self::StillRunning, "still_running", "the previous run was not over"),
        (Self::QuietHours, "quiet_hours", "the time was within the quiet hours"),
        (Self::DayBudget, "day_budget", "the data budget of the day did not allow another run"),
        (Self::MonthBudget, "month_budget", "the data budget of the month did not allow another run"),
        (Self::LineBusy, "line_busy", "other traffic used too much of the line"),
        (Self::Uplink, "uplink", "the default route did not use an allowed interface"),
        (Self::Stopped, "stopped", "the service was stopped, or the schedule removed, before the run began"),
    ];

    /// The name of the reason, for scripts and for the database.
    pub fn as_str(self) -> &'static str {
        Self::ALL.iter().find(|(reason, ..)| *reason == self).map_or("", |(_, word, _)| word)
    }

    /// The reason with this name; `None` if no reason has it.
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, own, _)| *own == word).map(|(reason, ..)| *reason)
    }
}

impl fmt::Display for SkipReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(Self::ALL.iter().find(|(reason, ..)| reason == self).map_or("", |(.., text)| text))
    }
}

/// What is known about the data use and the line when a run is about to start.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RunObservations {
    /// The data that the schedule has used in the present day and month.
    pub used: DataUse,
    /// The number of bytes that the run is expected to use.
    pub expected_bytes: u64,
    /// The share of the line that other traffic uses: 0 for none, 1 for a full line; absent if it is unknown.
    pub line_share: Option<f64>,
    /// The interface of the default route; absent if there is no default route.
    pub uplink: Option<String>,
}

/// Checks whether a run of `schedule` may start at `now`. The expected data of the run must fit into what is left of
/// the budget.
pub fn admit(schedule: &Schedule, now: Timestamp, seen: &RunObservations) -> Result<(), SkipReason> {
    if schedule.quiet_hours.is_some_and(|hours| hours.contain(now, schedule.zone.rules())) {
        return Err(SkipReason::QuietHours);
    }
    let is_uplink = |uplink: &String| schedule.uplinks.contains(uplink);
    if !schedule.uplinks.is_empty() && !seen.uplink.as_ref().is_some_and(is_uplink) {
        return Err(SkipReason::Uplink);
    }
    let left = schedule.budget.left(seen.used);
    // A run that is expected to use no data still needs some budget left.
    let needed = seen.expected_bytes.max(1);
    if left.day_bytes.is_some_and(|left| left < needed) {
        return Err(SkipReason::DayBudget);
    }
    if left.month_bytes.is_some_and(|left| left < needed) {
        return Err(SkipReason::MonthBudget);
    }
    match (schedule.max_line_share, seen.line_share) {
        (Some(limit), Some(share)) if share > limit => Err(SkipReason::LineBusy),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::budget::DataBudget;
    use super::super::definition::tests::schedule;
    use super::*;

    #[test]
    fn each_condition_keeps_a_run_from_starting() {
        let mut schedule = schedule("a", "30 3 * * *");
        let [night, day] = ["2026-01-10T23:00:00Z", "2026-01-10T12:00:00Z"].map(|text| text.parse().unwrap());
        let busy = RunObservations {
            used: DataUse { day_bytes: 90, month_bytes: 900 },
            expected_bytes: 11,
            line_share: Some(0.3),
            uplink: Some("wwan0".to_owned()),
        };
        assert_eq!(admit(&schedule, night, &busy), Ok(()), "without conditions");
        schedule.max_line_share = Some(0.2);
        assert_eq!(admit(&schedule, night, &busy), Err(SkipReason::LineBusy));
        assert_eq!(
            admit(&schedule, night, &RunObservations { line_share: None, ..busy.clone() }),
            Ok(()),
            "nothing is known"
        );
        schedule.budget = DataBudget { day_bytes: None, month_bytes: Some(910) };
        assert_eq!(admit(&schedule, night, &busy), Err(SkipReason::MonthBudget));
        schedule.budget.day_bytes = Some(100);
        assert_eq!(admit(&schedule, night, &busy), Err(SkipReason::DayBudget));
        schedule.uplinks = vec!["eth0".to_owned(), "wan".to_owned()];
        assert_eq!(admit(&schedule, night, &busy), Err(SkipReason::Uplink));
        let no_route = RunObservations { uplink: None, ..busy.clone() };
        assert_eq!(admit(&schedule, night, &no_route), Err(SkipReason::Uplink));
        schedule.quiet_hours = "22:00-07:00".parse().ok();
        assert_eq!(admit(&schedule, night, &busy), Err(SkipReason::QuietHours));
        let uplink = Some("wan".to_owned());
        let light = RunObservations { expected_bytes: 10, line_share: Some(0.2), uplink, ..busy };
        assert_eq!(admit(&schedule, day, &light), Ok(()));
        let spent = RunObservations { used: DataUse { day_bytes: 100, month_bytes: 0 }, expected_bytes: 0, ..light };
        assert_eq!(admit(&schedule, day, &spent), Err(SkipReason::DayBudget));
    }

    #[test]
    fn every_reason_has_a_word_of_its_own() {
        for (reason, word, text) in SkipReason::ALL {
            assert_eq!(SkipReason::from_word(word), Some(reason));
            assert_eq!((reason.as_str(), reason.to_string().as_str()), (word, text));
            assert_eq!(serde_json::to_value(reason).unwrap(), word);
        }
        assert_eq!(SkipReason::from_word("lazy"), None);
    }
}
