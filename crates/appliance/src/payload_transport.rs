//! What carries the payload of a test.

use serde::{Deserialize, Serialize};

/// What carries the payload.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PayloadTransport {
    /// TCP streams.
    #[default]
    Tcp,
    /// Datagrams.
    Udp,
}
