//! The failures of commands about monitors.

use paramedic_appliance::monitor::MonitorError;

use super::{CommandFailure, ExitStatus};

/// The failure of a command whose monitor is not valid.
pub(super) fn not_accepted(error: &MonitorError) -> CommandFailure {
    let try_ = match error {
        MonitorError::Name(_) => "choose a valid name, such as --name home",
        MonitorError::Target(_) => {
            "use gateway, reflector:NAME, host:ADDRESS, dns:RESOLVER/NAME or an http or https URL"
        }
        MonitorError::Interval { .. } => "use an interval in that range, such as --interval 1m",
    };
    CommandFailure::new(ExitStatus::Usage, "bad_monitor", "the monitor is not accepted", error, try_)
}
