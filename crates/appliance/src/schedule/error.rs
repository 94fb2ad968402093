//! Why a schedule is not accepted.

use std::time::Duration;

use paramedic_report::quantity;

use super::quiet_hours::QuietHours;
use super::recurrence::RecurrenceError;

/// Why a schedule is not accepted.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ScheduleError {
    /// The name.
    #[error("a name has 1 to 60 letters, digits, dots, dashes and underscores: {0:?}")]
    Name(String),
    /// The recurrence.
    #[error(transparent)]
    Recurrence(#[from] RecurrenceError),
    /// This host does not know the zone.
    #[error("this host knows no time zone {0:?}")]
    Zone(String),
    /// With the delay, a run could start after the next one is due.
    #[error("a spread of {} is more than half of the time between two runs ({})",
        quantity::exact_duration(*.spread), quantity::exact_duration(*.gap))]
    Spread {
        /// The spread.
        spread: Duration,
        /// The shortest time between two runs.
        gap: Duration,
    },
    /// Every run would be within the quiet hours.
    #[error("every run of {when:?} is within the quiet hours {hours}")]
    AlwaysQuiet {
        /// The recurrence.
        when: String,
        /// The quiet hours.
        hours: QuietHours,
    },
    /// A budget of zero.
    #[error("a data budget of 0 lets no test run")]
    NoBudget,
    /// A share that is none.
    #[error("the share of the line is above 0 and at most 1: {0}")]
    LineShare(f64),
    /// No interface can have this name.
    #[error("no network interface can be called {0:?}")]
    Uplink(String),
    /// Its result would not be kept.
    #[error("a schedule keeps its results")]
    DiscardsResult,
}
