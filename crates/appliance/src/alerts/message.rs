//! The message that a channel carries when an alert opens or closes.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// A message about an alert, or a test message. Each channel of a rule gets the same message; a repeated delivery is
/// identical.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct AlertMessage {
    /// The id of the message (UUIDv7), the same in each delivery.
    pub id: Uuid,
    /// Why the message is sent.
    pub kind: MessageKind,
    /// When the message was made.
    pub at: Timestamp,
    /// The title: the one line that a phone shows.
    pub title: String,
    /// The text, with one sentence in each line: what was measured, what was expected, since when, and how certain this
    /// is.
    pub text: String,
    /// How urgent the message is.
    pub urgency: Urgency,
    /// The alert that the message is about; absent in a test of a channel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alert: Option<AlertFacts>,
}

/// The alert that a message is about, as data for programs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct AlertFacts {
    /// The id of the alert: the same in the message that opens the alert and in the message that closes it.
    pub id: Uuid,
    /// The name of the alert's rule.
    pub rule: String,
    /// The target or the monitor that the alert concerns.
    pub subject: String,
    /// The name of the rule's metric, such as `download`.
    pub metric: String,
    /// What was measured, in the unit of the metric; absent if nothing was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measured: Option<f64>,
    /// What was expected, in the unit of the metric.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected: Option<f64>,
    /// The unit of the values: `bit/s`, `ms`, `%` or `s`.
    pub unit: String,
    /// When the measured values began to violate the rule.
    pub since: Timestamp,
    /// When the measured values met the rule again; absent while they violate it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
}

/// Why a message is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum MessageKind {
    /// The message reports that an alert opened.
    Opened,
    /// The message reports that an alert closed.
    Closed,
    /// The message is a test of a channel.
    Test,
}

/// How urgent a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Urgency {
    /// An alert closed, or the message is a test of a channel.
    Low,
    /// The line is slower or less reliable than expected.
    Normal,
    /// Nothing beyond the gateway is reachable.
    High,
}

impl MessageKind {
    /// The name of this kind of message in the store and in documents.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Opened => "opened",
            Self::Closed => "closed",
            Self::Test => "test",
        }
    }
}
