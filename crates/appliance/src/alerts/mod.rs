//! Alerts: what opens and closes them, the texts of their messages, and the channels that carry the messages. This code
//! uses no sockets, no clock and no SQL.

pub mod backoff;
pub mod baseline;
pub mod channel;
mod error;
pub mod finding;
pub mod judge;
pub mod lasting;
pub mod message;
pub mod metric;
pub mod preview;
pub mod reading;
pub mod rule;
pub mod secret_text;
pub mod wording;

pub use error::RuleError;
pub use finding::{AlertAction, AlertFinding, RuleEnd};
pub use metric::{AlertMetric, MetricSource, MetricUnit, NoSuchMetric};
pub use preview::{PreviewedAlert, RulePreview};
pub use rule::{AlertLimit, AlertRule};
pub use wording::AlertWords;

#[cfg(test)]
mod simulation;
