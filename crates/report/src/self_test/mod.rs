//! The self-test: which rates a host can carry, measured without a second host. This module contains the document, the
//! verdict, and the rows of the report. The crate `paramedic-host` makes the measurements.

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

/// The format of the self-test document: its name and version.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum SelfTestSchema {
    /// Version 1 of the format of the self-test document.
    #[default]
    #[serde(rename = "packetparamedic.self_test/1")]
    V1,
}

/// The program whose host a self-test or the `doctor` command examines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Role {
    /// The reflector, the test endpoint.
    #[serde(rename = "reflector")]
    Reflector,
    /// The appliance, the device that measures.
    #[serde(rename = "packetparamedic")]
    Appliance,
}

/// The result of a self-test. Rates are in bits per second of payload. A value that could not be read or measured is
/// absent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SelfTest {
    /// The format of the self-test document.
    pub schema: SelfTestSchema,
    /// The program that tested its host: the reflector or the appliance.
    pub program: Role,
    /// The version of the program that tested its host.
    pub version: String,
    /// When the self-test began, by the host's clock (RFC 3339, UTC).
    pub started_at: Timestamp,
    /// When the self-test ended, by the host's clock (RFC 3339, UTC).
    pub finished_at: Timestamp,
    /// The highest line rates that the host can test, as far as the self-test shows.
    pub verdict: Verdict,
    /// What limits the host, or makes its results less accurate.
    pub weak_points: Vec<WeakPoint>,
    /// The rate of each engine over loopback, with its fastest data path. If this path copies no payload, also the rate
    /// with every byte copied. Both ends ran on the same host, so one end alone can carry more. A real interface costs
    /// processor time that loopback does not cost.
    pub rates: Vec<LoopbackRate>,
    /// The rates that were not measured, with the reasons.
    pub not_measured: Vec<NotMeasured>,
    /// The facts about the host that affect its results.
    pub facts: Facts,
}

/// The rates that one engine carried over loopback in one data mode.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LoopbackRate {
    /// The name of the engine.
    pub engine: String,
    /// The data mode: direct or tunneled.
    pub data_mode: DataMode,
    /// The number of parallel streams in each direction.
    pub streams: u16,
    /// The rate from the reflector's end to the appliance's end; absent if not measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub download: Option<DirectionRate>,
    /// The rate from the appliance's end to the reflector's end; absent if not measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upload: Option<DirectionRate>,
}

impl LoopbackRate {
    /// Whether an end moved payload without copying it. On loopback, such a transfer costs less than on any interface.
    pub fn is_by_reference(&self) -> bool {
        const UNTOUCHED: [&str; 2] = ["splice", "trunc"];
        let both = [&self.download, &self.upload].into_iter().flatten();
        let mut paths = both.flat_map(|of| [&of.data_path.sender, &of.data_path.receiver]).flatten();
        paths.any(|path| UNTOUCHED.contains(&path.as_str()))
    }

    /// The rate in `direction`; `None` if the direction was not measured.
    pub fn direction(&self, direction: Direction) -> Option<&DirectionRate> {
        match direction {
            Direction::Download => self.download.as_ref(),
            Direction::Upload => self.upload.as_ref(),
        }
    }
}

/// The rate that one direction carried over loopback.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DirectionRate {
    /// The payload rate at the receiver over the whole measurement, start-up included, in bits per second.
    pub goodput_bps: u64,
    /// The number of payload bytes that the receiver counted.
    pub bytes_received: u64,
    /// How long the receiver received payload, in milliseconds.
    pub duration_ms: u64,
    /// How each end moved the payload.
    #[serde(default, skip_serializing_if = "MovedBy::is_empty")]
    pub data_path: MovedBy,
}

/// How each end moved the payload, by the names that the result document uses. The method is absent for an end that did
/// not report one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MovedBy {
    /// The method by which the sending end moved the payload.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sender: Option<PeerText>,
    /// The method by which the receiving end moved the payload.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub receiver: Option<PeerText>,
}

impl MovedBy {
    fn is_empty(&self) -> bool {
        self.sender.is_none() && self.receiver.is_none()
    }
}

/// A rate that was not measured, with the reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NotMeasured {
    /// The name of the engine.
    pub engine: String,
    /// The data mode that was not measured.
    pub data_mode: DataMode,
    /// The direction that was not measured; absent if neither direction was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub direction: Option<Direction>,
    /// The reason why the rate was not measured.
    pub because: String,
}

/// The name of a data mode, as reports print it.
pub fn mode_word(mode: DataMode) -> &'static str {
    match mode {
        DataMode::Tunneled => "tunneled",
        DataMode::DirectEphemeral => "direct",
        DataMode::Unknown => "unknown",
    }
}
