//! Why a rule is not accepted: one variant a cause.

use super::metric::AlertMetric;

/// The longest name, in characters.
pub(super) const MAX_NAME_CHARS: usize = 60;
/// The longest subject, in characters.
pub(super) const MAX_SUBJECT_CHARS: usize = 200;
/// The most values of which some must be bad.
pub(super) const MAX_VALUES: u32 = 20;
/// The longest window of a monitor, in minutes.
pub(super) const MAX_WINDOW_MINUTES: u32 = 60;
/// The most channels of a rule.
pub(super) const MAX_CHANNELS: usize = 16;

/// Why a rule is not accepted.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum RuleError {
    /// The name.
    #[error("a name has 1 to {most} letters, digits, dots, dashes and underscores: {0:?}", most = MAX_NAME_CHARS)]
    Name(String),
    /// A name that the API needs.
    #[error("the API needs the name preview")]
    Reserved,
    /// The subject.
    #[error(
        "the target of a rule is the name of a target or of a monitor, of 1 to {} printable characters",
        MAX_SUBJECT_CHARS
    )]
    Subject,
    /// The time without a result is that of all tests.
    #[error("{metric} has no target of its own")]
    NoSubject {
        /// The metric.
        metric: AlertMetric,
    },
    /// The limit is missing.
    #[error("a rule for {metric} needs a limit")]
    NoLimit {
        /// The metric.
        metric: AlertMetric,
    },
    /// The limit is of no use for the metric.
    #[error("a rule for {metric} has no limit of this kind; valid: {valid}")]
    LimitKind {
        /// The metric.
        metric: AlertMetric,
        /// The valid kinds.
        valid: &'static str,
    },
    /// The value of the limit.
    #[error("the limit of a rule for {metric} is {valid}")]
    LimitValue {
        /// The metric.
        metric: AlertMetric,
        /// The valid values.
        valid: &'static str,
    },
    /// A text that is no value of the metric.
    #[error("{text:?} is no value of {metric}")]
    LimitText {
        /// The metric.
        metric: AlertMetric,
        /// The text.
        text: String,
    },
    /// How many values must be bad.
    #[error("so many of the last values: from 1 of 1 to {0} of {0}", MAX_VALUES)]
    Count,
    /// A metric of which one value is enough.
    #[error("{metric} is one event: 1 of 1")]
    OneEvent {
        /// The metric.
        metric: AlertMetric,
    },
    /// The window.
    #[error("a window is from 1 to {} minutes", MAX_WINDOW_MINUTES)]
    Window,
    /// A repetition of something that is no test.
    #[error("{metric} is not measured by a test, which could be repeated")]
    Retest {
        /// The metric.
        metric: AlertMetric,
    },
    /// The channels.
    #[error("a rule names at most {} channels, each once", MAX_CHANNELS)]
    Channels,
    /// A channel that does not exist.
    #[error("no channel is called {0:?}")]
    NoSuchChannel(String),
}
