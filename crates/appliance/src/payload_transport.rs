//! The protocol that carries the payload of a test.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The protocol that carries the payload of a test.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PayloadTransport {
    /// TCP streams carry the payload.
    #[default]
    Tcp,
    /// UDP datagrams carry the payload.
    Udp,
}
