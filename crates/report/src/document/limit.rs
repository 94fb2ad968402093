//! The part of the result document that states what limited the rate of a direction.

use paramedic_link::test_spec::{Direction, Load};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Quantity, ResultDocument, ThroughputResult};

/// What limited the rate of a direction, with the observations that show the limit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LimitedBy {
    /// The cause that limited the rate of the direction.
    pub cause: LimitCause,
    /// The observations that show the cause. The first observation decided the cause. If the cause is `unknown`, the
    /// list has the known observations instead.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub evidence: Vec<LimitEvidence>,
    /// Why the observations show no cause. Present only if the cause is `unknown`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub because: Vec<String>,
}

/// The cause that limited the rate of a direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LimitCause {
    /// The path between the two ends limited the rate.
    Network,
    /// A processor of the appliance was fully used.
    ApplianceCpu,
    /// A processor of the other end, a reflector or another server, was fully used.
    ReflectorCpu,
    /// The receiver's TCP window, that is its socket buffer, stopped the sender.
    ReceiveWindow,
    /// The sender's socket buffer was too small.
    SendBuffer,
    /// The network interface of one end was full: it carried about as much as its speed and its duplex mode allow.
    LinkRate,
    /// The test reached the requested rate or number of bytes.
    Policy,
    /// Other traffic made up a considerable part of the traffic at the network interface of one end.
    OtherTraffic,
    /// The observations show no cause of the limit.
    Unknown,
}

impl LimitCause {
    /// The name of the cause in the JSON documents.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Network => "network",
            Self::ApplianceCpu => "appliance_cpu",
            Self::ReflectorCpu => "reflector_cpu",
            Self::ReceiveWindow => "receive_window",
            Self::SendBuffer => "send_buffer",
            Self::LinkRate => "link_rate",
            Self::Policy => "policy",
            Self::OtherTraffic => "other_traffic",
            Self::Unknown => "unknown",
        }
    }

    /// The cause in words, for readers.
    pub fn as_words(self) -> &'static str {
        match self {
            Self::Network => "the network",
            Self::ApplianceCpu => "this device's processor",
            Self::ReflectorCpu => "the reflector's processor",
            Self::ReceiveWindow => "the receiver's window",
            Self::SendBuffer => "the sender's socket buffer",
            Self::LinkRate => "the speed of an interface",
            Self::Policy => "the request",
            Self::OtherTraffic => "other traffic",
            Self::Unknown => "not known",
        }
    }
}

/// One observation about what limited a rate: its name, its value, and a text for the reader.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LimitEvidence {
    /// The name of the observation. Its last word is the unit: `share` (0 to 1), `bps`, `ms`, `bytes`, `segments` or
    /// `datagrams`.
    pub name: String,
    /// The end to which the observation belongs. Present only for observations of a processor or a network interface.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<ObservedEnd>,
    /// The observed value, in the unit with which `name` ends.
    pub value: Quantity,
    /// The observation as text for the reader.
    pub text: String,
}

/// One of the two ends of a test.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ObservedEnd {
    /// The appliance, which requested the test.
    Appliance,
    /// The reflector, or the server that the appliance measured against instead.
    Reflector,
}

impl ResultDocument {
    /// Returns a mutable reference to the result of `direction` under `load`; `None` if there is no such result.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_written_as_in_the_documents() {
        for cause in [
            LimitCause::Network,
            LimitCause::ApplianceCpu,
            LimitCause::ReflectorCpu,
            LimitCause::ReceiveWindow,
            LimitCause::SendBuffer,
            LimitCause::LinkRate,
            LimitCause::Policy,
            LimitCause::OtherTraffic,
            LimitCause::Unknown,
        ] {
            assert_eq!(serde_json::to_value(cause).unwrap(), cause.as_str());
        }
    }
}
