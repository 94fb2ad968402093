//! Schedules: when a test is due, and whether it may start. Pure: time, randomness and observations are arguments;
//! actions are return values.

pub mod admission;
pub mod budget;
mod definition;
mod error;
pub mod line_load;
pub mod planner;
mod quiet_hours;
mod recurrence;
pub mod volume;

pub use definition::{MissedRunPolicy, Schedule, Zone, default_spread};
pub use error::ScheduleError;
pub use quiet_hours::{NotQuietHours, QuietHours};
pub use recurrence::{MIN_INTERVAL, Recurrence, RecurrenceError, TimeFrame};

#[cfg(test)]
mod simulation;

/// An example schedule with this name, for tests of other modules.
#[cfg(test)]
pub(crate) fn example_schedule(name: &str) -> Schedule {
    definition::tests::schedule(name, "30 3 * * *")
}
