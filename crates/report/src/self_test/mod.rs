//! The document of the self-test, which measures what a host can carry without a second host. Plain values, the
//! verdict, and the rows of the report. `paramedic-host` makes the measurements.

#[cfg(test)]
pub(crate) mod example;
mod facts;
mod rows;
mod verdict;

use jiff::Timestamp;
use paramedic_link::PeerText;
use paramedic_link::test_spec::{DataMode, Direction};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use facts::{
    Buffers, CongestionControls, Descriptors, Facts, Governor, Interface, InterfaceKind, Processor, Timers, Timestamps,
};
pub use rows::{FactRow, fact_rows, rate_note, rate_rows};
pub use verdict::{Verdict, WeakPoint, judge};

/// The name and version of the self-test document's format.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum SelfTestSchema {
    /// The first version.
    #[default]
    #[serde(rename = "packetparamedic.self_test/1")]
    V1,
}

/// The program that tests its host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Role {
    /// The test endpoint.
    #[serde(rename = "reflector")]
    Reflector,
    /// The device that measures.
    #[serde(rename = "packetparamedic")]
    Appliance,
}

/// The result of a self-test. Rates are in bits per second of payload. A value that could not be read or measured is
/// absent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SelfTest {
    /// The format of this document.
    pub schema: SelfTestSchema,
    /// The program that tested its host.
    pub program: Role,
    /// Its version.
    pub version: String,
    /// When it began, by the host's clock (RFC 3339, UTC).
    pub started_at: Timestamp,
    /// When it ended, by the host's clock (RFC 3339, UTC).
    pub finished_at: Timestamp,
    /// The line rates that the host can test.
    pub verdict: Verdict,
    /// What limits the host or makes its results less accurate.
    pub weak_points: Vec<WeakPoint>,
    /// The rate of each engine over loopback, with its fastest data path; if that copies no byte, measured once more
    /// with every byte copied. Both ends ran on this host: one end alone can carry more, and an interface costs
    /// processor time that loopback does not.
    pub rates: Vec<LoopbackRate>,
    /// What was not measured, and why.
    pub not_measured: Vec<NotMeasured>,
    /// The facts of the host.
    pub facts: Facts,
}

/// The rates of an engine over loopback in one of its data modes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LoopbackRate {
    /// The engine.
    pub engine: String,
    /// The data mode.
    pub data_mode: DataMode,
    /// Streams in each direction.
    pub streams: u16,
    /// From the reflector's end to the appliance's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub download: Option<DirectionRate>,
    /// From the appliance's end to the reflector's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upload: Option<DirectionRate>,
}

impl LoopbackRate {
    /// Whether an end moved payload without copying it, which is cheaper on loopback than on any interface.
    pub fn is_by_reference(&self) -> bool {
        const UNTOUCHED: [&str; 2] = ["splice", "trunc"];
        let both = [&self.download, &self.upload].into_iter().flatten();
        let mut paths = both.flat_map(|of| [&of.data_path.sender, &of.data_path.receiver]).flatten();
        paths.any(|path| UNTOUCHED.contains(&path.as_str()))
    }

    /// The rate in `direction`.
    pub fn direction(&self, direction: Direction) -> Option<&DirectionRate> {
        match direction {
            Direction::Download => self.download.as_ref(),
            Direction::Upload => self.upload.as_ref(),
        }
    }
}

/// The rate in one direction.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DirectionRate {
    /// The rate of the payload at the receiver over the whole time, start-up included.
    pub goodput_bps: u64,
    /// Payload bytes that the receiver counted.
    pub bytes_received: u64,
    /// How long it received.
    pub duration_ms: u64,
    /// How both ends moved the payload.
    #[serde(default, skip_serializing_if = "MovedBy::is_empty")]
    pub data_path: MovedBy,
}

/// How both ends moved the payload, with the names of the result document. An end that does not report it is absent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MovedBy {
    /// The sender.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sender: Option<PeerText>,
    /// The receiver.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub receiver: Option<PeerText>,
}

impl MovedBy {
    fn is_empty(&self) -> bool {
        self.sender.is_none() && self.receiver.is_none()
    }
}

/// What was not measured, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NotMeasured {
    /// The engine.
    pub engine: String,
    /// The data mode that was not measured.
    pub data_mode: DataMode,
    /// The direction; absent if neither was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub direction: Option<Direction>,
    /// Why it was not measured.
    pub because: String,
}

/// The name of a data mode in reports.
pub fn mode_word(mode: DataMode) -> &'static str {
    match mode {
        DataMode::Tunneled => "tunneled",
        DataMode::DirectEphemeral => "direct",
        DataMode::Unknown => "unknown",
    }
}
