//! What limited the rate of a direction, in the document.

use paramedic_link::test_spec::{Direction, Load};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Quantity, ResultDocument, ThroughputResult};

/// What limited the rate of a direction, and the observations that show it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LimitedBy {
    /// The cause.
    pub cause: LimitCause,
    /// The observations, the deciding one first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub evidence: Vec<LimitEvidence>,
    /// Why no cause could be named; only with the cause `unknown`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub because: Vec<String>,
}

/// What limited a rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LimitCause {
    /// The path between the two ends.
    Network,
    /// The processor of the appliance.
    ApplianceCpu,
    /// The processor of the other end.
    ReflectorCpu,
    /// The receiver's window: its socket buffer.
    ReceiveWindow,
    /// The sender's socket buffer.
    SendBuffer,
    /// The speed or the duplex mode of an end's network interface.
    LinkRate,
    /// The requested rate or number of bytes.
    Policy,
    /// Other traffic on the interface of an end.
    OtherTraffic,
    /// The observations do not show it.
    Unknown,
}

/// An observation with its number.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LimitEvidence {
    /// Its name, whose last word is the unit: `share` (0 to 1), `bps`, `ms`, `bytes`, `segments` or `datagrams`.
    pub name: String,
    /// The end at which it was observed; absent if it concerns no single end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<ObservedEnd>,
    /// The number.
    pub value: Quantity,
    /// For people.
    pub text: String,
}

/// One of the two ends of a test.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ObservedEnd {
    /// The appliance.
    Appliance,
    /// The reflector, or the server that takes its place.
    Reflector,
}

impl ResultDocument {
    /// The result of `direction` under `load`, to complete it.
    pub(crate) fn measured_mut(&mut self, load: Load, direction: Direction) -> Option<&mut ThroughputResult> {
        match (load, direction) {
            (Load::Download, Direction::Download) => self.download.as_mut(),
            (Load::Upload, Direction::Upload) => self.upload.as_mut(),
            (Load::Bidir, Direction::Download) => self.bidir.as_mut()?.download.as_mut(),
            (Load::Bidir, Direction::Upload) => self.bidir.as_mut()?.upload.as_mut(),
            (Load::Download | Load::Upload | Load::Idle | Load::Unknown, _) => None,
        }
    }
}
