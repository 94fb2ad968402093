//! The failures of commands about schedules, and about the service that runs them.

use paramedic_appliance::ApplianceError;
use paramedic_appliance::schedule::{RecurrenceError, ScheduleError};

use super::{CommandFailure, ExitStatus, REPORT_IT};

/// The failure of adding a schedule that is not valid.
pub(super) fn not_accepted(error: &ScheduleError) -> CommandFailure {
    let try_ = match error {
        ScheduleError::Name(_) => "choose a valid name, such as --name nightly",
        ScheduleError::Recurrence(RecurrenceError::TooOften { .. }) => "leave at least 5 minutes between two runs",
        ScheduleError::Recurrence(_) => {
            "use --every 6h, or --cron \"30 3 * * *\" (minute, hour, day, month, day of week)"
        }
        ScheduleError::Zone(_) => {
            "use a name such as Europe/Berlin; if this host knows no such names, install the package tzdata"
        }
        ScheduleError::Spread { .. } => "use a shorter --spread",
        ScheduleError::AlwaysQuiet { .. } => "move the runs with --every or --cron, or change --quiet-hours",
        ScheduleError::NoBudget => "raise --budget-day and --budget-month, or omit them",
        ScheduleError::LineShare(_) => "use --busy-share 20% or --busy-share off",
        ScheduleError::Uplink(_) => "run `ip link` to list the interfaces, and name them with --uplink",
        ScheduleError::DiscardsResult => "omit --no-save",
    };
    CommandFailure::new(ExitStatus::Usage, "bad_schedule", "the schedule is not accepted", error, try_)
}

/// The failure of a request that a disabled schedule, a running schedule or a running service prevents.
pub(super) fn refused(error: &ApplianceError) -> CommandFailure {
    let (exit, code, what, try_) = match error {
        ApplianceError::ScheduleDisabled { name } => (
            ExitStatus::Failed,
            "schedule_disabled",
            "cannot run the schedule",
            format!("run `packetparamedic schedule enable {name}`"),
        ),
        ApplianceError::ScheduleRuns { .. } => (
            ExitStatus::Busy,
            "schedule_runs",
            "cannot run the schedule now",
            "run `packetparamedic status` to see what runs".to_owned(),
        ),
        ApplianceError::ServiceRuns { state_dir } => (
            ExitStatus::Failed,
            "already_running",
            "the service cannot start",
            format!("stop that service, or set a folder other than {} with --state-dir", state_dir.display()),
        ),
        _ => (ExitStatus::Failed, "internal", "the request failed", REPORT_IT.to_owned()),
    };
    CommandFailure::new(exit, code, what, error, try_)
}
