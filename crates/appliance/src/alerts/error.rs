//! Why a rule is not accepted: one variant for each cause.

use super::metric::AlertMetric;

/// The longest name of a rule, in characters.
pub(super) const MAX_NAME_CHARS: usize = 60;
/// The longest subject of a rule (the target or monitor that the rule watches), in characters.
pub(super) const MAX_SUBJECT_CHARS: usize = 200;
/// The maximum number of recent values that a rule looks at.
pub(super) const MAX_VALUES: u32 = 20;
/// The longest window of a rule about a monitor, in minutes.
pub(super) const MAX_WINDOW_MINUTES: u32 = 60;
/// The maximum number of channels of a rule.
pub(super) const MAX_CHANNELS: usize = 16;

/// Why a rule is not accepted.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum RuleError {
    /// The name of the rule is not valid.
    #[error(
        "{0:?} is not a valid name; valid: 1 to {most} letters, digits, dots, dashes and underscores",
        most = MAX_NAME_CHARS
    )]
    Name(String),
    /// The API reserves this name, so a rule cannot have it.
    #[error("a rule cannot be called preview: the API uses that name")]
    Reserved,
    /// The subject of the rule is not valid.
    #[error(
        "the target must be the name of a test's other end or of a monitor, with 1 to {} printable characters",
        MAX_SUBJECT_CHARS
    )]
    Subject,
    /// The metric is about all tests together, so its rule cannot name a subject (a target or a monitor).
    #[error("a rule for {metric} cannot have a target")]
    NoSubject {
        /// The metric of the rule.
        metric: AlertMetric,
    },
    /// The rule has no limit, but its metric needs one.
    #[error("a rule for {metric} needs a limit")]
    NoLimit {
        /// The metric of the rule.
        metric: AlertMetric,
    },
    /// This kind of limit is not valid for the metric.
    #[error("this kind of limit is not valid in a rule for {metric}; valid: {valid}")]
    LimitKind {
        /// The metric of the rule.
        metric: AlertMetric,
        /// The kinds of limits that are valid for the metric.
        valid: &'static str,
    },
    /// The value of the rule's limit is not valid.
    #[error("the limit of a rule for {metric} is not valid; valid: {valid}")]
    LimitValue {
        /// The metric of the rule.
        metric: AlertMetric,
        /// The values that are valid for the metric.
        valid: &'static str,
    },
    /// The text is not a value of the metric.
    #[error("{text:?} is not a valid value of {metric}")]
    LimitText {
        /// The metric of the rule.
        metric: AlertMetric,
        /// The text that was given as the limit.
        text: String,
    },
    /// The number of values that must be bad is not valid.
    #[error("the number of bad values must be N/M (N of the last M), with N at most M and M at most {0}", MAX_VALUES)]
    Count,
    /// A value of this metric is one event, so the rule must open an alert after one bad value.
    #[error("each {metric} is a single event, so the number of bad values must be 1/1")]
    OneEvent {
        /// The metric of the rule.
        metric: AlertMetric,
    },
    /// The window of the rule is too short or too long.
    #[error("a window must be from 1 to {} minutes", MAX_WINDOW_MINUTES)]
    Window,
    /// The metric is not measured by tests, so there is no test to repeat.
    #[error("a retest is not possible: no test measures {metric}")]
    Retest {
        /// The metric of the rule.
        metric: AlertMetric,
    },
    /// The list of channels is too long, or names a channel twice.
    #[error("a rule can name at most {} channels, and each channel only once", MAX_CHANNELS)]
    Channels,
    /// The rule names a channel that does not exist.
    #[error("no channel is called {0:?}")]
    NoSuchChannel(String),
}
