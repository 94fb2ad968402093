//! The errors for schedules that are not accepted.

use std::time::Duration;

use paramedic_report::quantity;

use super::quiet_hours::QuietHours;
use super::recurrence::RecurrenceError;

/// Why a schedule is not accepted.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ScheduleError {
    /// The name of the schedule is not valid.
    #[error("{0:?} is not a valid name; valid: 1 to 60 letters, digits, dots, dashes and underscores")]
    Name(String),
    /// The recurrence is not valid.
    #[error(transparent)]
    Recurrence(#[from] RecurrenceError),
    /// The time zone database of this host does not contain the zone.
    #[error("this host knows no time zone {0:?}")]
    Zone(String),
    /// The spread (the maximum random delay) is more than half of the shortest time between two runs.
    #[error("a spread (maximum random delay) of {} is more than half of the shortest time between two runs ({})",
        quantity::exact_duration(*.spread), quantity::exact_duration(*.gap))]
    Spread {
        /// The spread that was requested.
        spread: Duration,
        /// The shortest time between two runs.
        gap: Duration,
    },
    /// Every run would be within the quiet hours.
    #[error("every run of {when:?} is within the quiet hours {hours}")]
    AlwaysQuiet {
        /// The recurrence, as text.
        when: String,
        /// The quiet hours.
        hours: QuietHours,
    },
    /// The data budget is 0.
    #[error("with a data budget of 0 no test can run")]
    NoBudget,
    /// The share of the line is not in the valid range: above 0, and at most 1.
    #[error("{0} is not a valid share of the line; valid: above 0, at most 1")]
    LineShare(f64),
    /// An interface cannot have this name.
    #[error("no network interface can be called {0:?}")]
    Uplink(String),
    /// The request discards its result, but a schedule must save it.
    #[error("a schedule must save its results")]
    DiscardsResult,
}
