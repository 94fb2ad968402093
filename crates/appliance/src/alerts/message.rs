//! The message that a channel carries when an alert opens or closes.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// A message. The same one goes to each channel of a rule; a repeated delivery is identical.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct AlertMessage {
    /// Its id, the same in each delivery (UUIDv7).
    pub id: Uuid,
    /// Why it is sent.
    pub kind: MessageKind,
    /// When it was made.
    pub at: Timestamp,
    /// The one line that a phone shows.
    pub title: String,
    /// What was measured, what was expected, since when, and how sure that is: one sentence in each line.
    pub text: String,
    /// How urgent it is.
    pub urgency: Urgency,
    /// The alert; absent in a test of a channel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alert: Option<AlertFacts>,
}

/// The alert that a message is about, for programs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct AlertFacts {
    /// The alert: the same in the message that opens it and in the one that closes it.
    pub id: Uuid,
    /// The name of its rule.
    pub rule: String,
    /// The target or the monitor that it concerns.
    pub subject: String,
    /// The metric of the rule, as the rule names it.
    pub metric: String,
    /// What was measured, in the unit of the metric; absent if nothing was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measured: Option<f64>,
    /// What was expected, in the unit of the metric.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected: Option<f64>,
    /// The unit: `bit/s`, `ms`, `%` or `s`.
    pub unit: String,
    /// Since when the rule is broken.
    pub since: Timestamp,
    /// When the rule held again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
}

/// Why a message is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum MessageKind {
    /// An alert opened.
    Opened,
    /// An alert closed.
    Closed,
    /// The test of a channel.
    Test,
}

/// How urgent a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Urgency {
    /// Good news, or a test.
    Low,
    /// Slower or less reliable than expected.
    Normal,
    /// Nothing works.
    High,
}

impl MessageKind {
    /// The word in the store and in documents.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Opened => "opened",
            Self::Closed => "closed",
            Self::Test => "test",
        }
    }
}
