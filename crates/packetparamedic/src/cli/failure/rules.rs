//! The failures of commands about alert rules.

use paramedic_appliance::alerts::RuleError;

use super::{CommandFailure, ExitStatus};

/// The failure of a command whose alert rule is not valid.
pub(super) fn not_accepted(error: &RuleError) -> CommandFailure {
    let try_ = match error {
        RuleError::Name(_) => "choose a valid name, such as --name slow-download",
        RuleError::Reserved => "choose another name, such as --name slow-download",
        RuleError::Subject => {
            "use the name that `packetparamedic history list` or `packetparamedic monitor list` prints"
        }
        RuleError::NoSubject { .. } => "omit --target",
        RuleError::NoLimit { .. } | RuleError::LimitKind { .. } | RuleError::LimitValue { .. } => {
            "use --below 50M, --below-plan 70%, --below-usual 60%, --above 2% or --above-usual 250%, as the metric allows"
        }
        RuleError::LimitText { .. } => "write a rate as 50M, a latency as 80ms, a loss as 2% and a time as 10m",
        RuleError::Count => "use --times 3/4 for 3 of the last 4",
        RuleError::OneEvent { .. } => "omit --times",
        RuleError::Window => "use --window 5",
        RuleError::Retest { .. } => "omit --retest",
        RuleError::Channels => "name at most 16 channels, each only once",
        RuleError::NoSuchChannel(_) => "run `packetparamedic channel list` to see the channels",
    };
    CommandFailure::new(ExitStatus::Usage, "bad_rule", "the rule is not accepted", error, try_)
}
