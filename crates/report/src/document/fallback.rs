//! The part of the result document that states why a test did not use direct mode.

use std::fmt;

use jiff::Timestamp;
use paramedic_link::test_spec::DataMode;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The data mode that a test tried first and could not use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DataModeFallback {
    /// The data mode that could not be used.
    pub tried: DataMode,
    /// Why the data mode could not be used.
    pub reason: FallbackReason,
    /// The address and port to which no data connection could be opened. Absent if the test did not try to open one,
    /// because an earlier test had found the data mode blocked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// When an earlier test found the data mode blocked (RFC 3339, UTC); absent if the test itself found it blocked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub found_at: Option<Timestamp>,
}

/// Why a test could not use a data mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum FallbackReason {
    /// The reflector's host or a router rejected every attempt to open a data connection.
    Refused,
    /// Every attempt to open a data connection timed out without an answer.
    Silent,
    /// An earlier test had found the data mode blocked, so the test did not try this mode.
    Remembered,
}

impl fmt::Display for DataModeFallback {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = self.address.as_deref().map(|address| format!(" to {address}")).unwrap_or_default();
        match (self.reason, self.found_at) {
            (FallbackReason::Refused, _) => write!(f, "every direct data connection{at} was refused"),
            (FallbackReason::Silent, _) => write!(f, "no direct data connection{at} got an answer"),
            (FallbackReason::Remembered, Some(found_at)) => {
                write!(f, "a test at {found_at:.0} found direct data connections blocked")
            }
            (FallbackReason::Remembered, None) => f.write_str("an earlier test found direct data connections blocked"),
        }
    }
}
