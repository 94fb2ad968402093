//! The failures of commands that make a report on the internet line.

use paramedic_appliance::ApplianceError;

use super::{CommandFailure, ExitStatus};

/// The failure of a report because its period is not valid or too long.
pub(super) fn not_made(error: &ApplianceError) -> CommandFailure {
    let try_ = match error {
        ApplianceError::PeriodTooLong { .. } => "choose a shorter period with --since and --until",
        _ => "choose a start that is before the end and before now",
    };
    CommandFailure::new(ExitStatus::Usage, "bad_period", "cannot make the report", error, try_)
}
