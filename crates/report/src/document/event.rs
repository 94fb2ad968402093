//! The events of a running test: the lines of `--json-stream`, and what progress on a terminal is drawn from.

use std::time::Duration;

use jiff::Timestamp;
use paramedic_link::test_spec::{DataMode, Direction, EngineId, Load};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{ErrorDocument, ResultDocument, is_false};

/// One line of `--json-stream`, told apart by `event`. The last is a result or an error.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// The test waits its turn.
    Queued(Queued),
    /// The test was granted and begins.
    Start(Started),
    /// A phase begins.
    Phase(PhaseBegun),
    /// A receiver's reading.
    Interval(IntervalReading),
    /// What the latency probes saw lately.
    Latency(LatencyReading),
    /// The result, as `--json` prints it.
    Result(Box<ResultDocument>),
    /// Why there is none, as `--json` prints it.
    Error(Box<ErrorDocument>),
}

/// The test waits its turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Queued {
    /// How many stand before it, plus one.
    pub place: u32,
    /// How long that may take, as the reflector sees it.
    pub expected_wait_ms: u64,
}

impl Queued {
    /// Waiting at this place, about this long.
    pub fn new(place: u32, expected_wait: Duration) -> Self {
        Self { place, expected_wait_ms: u64::try_from(expected_wait.as_millis()).unwrap_or(u64::MAX) }
    }
}

/// The test begins.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Started {
    /// The run's id; the result carries the same.
    pub id: Uuid,
    /// When, by the appliance's clock (RFC 3339, UTC).
    pub started_at: Timestamp,
    /// Where the test comes from.
    pub provider: String,
    /// The engine that makes the load.
    #[schemars(with = "String")]
    pub engine: EngineId,
    /// The way the data takes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_mode: Option<DataMode>,
    /// The address and port that were dialled.
    pub address: String,
    /// The phases to come, in order.
    pub phases: Vec<PhaseBegun>,
}

/// A phase, as it begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PhaseBegun {
    /// What is put on the path.
    pub phase: Load,
    /// How long the phase is asked to last.
    pub duration_ms: u64,
}

/// One interval's reading by the receiver; start-up included. Where the receiver is a program that tells its readings at
/// its end alone, the sender's come in the meantime.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct IntervalReading {
    /// The phase it belongs to.
    pub phase: Load,
    /// The direction it was read in.
    pub direction: Direction,
    /// When the interval ended, since the phase began.
    pub at_ms: u64,
    /// Payload at the receiver; at the sender where `by_sender`.
    pub bps: u64,
    /// Whether it is the sender's reading, for those who watch: what counts is the receiver's.
    #[serde(default, skip_serializing_if = "is_false")]
    pub by_sender: bool,
}

/// What the latency probes saw since the last such event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LatencyReading {
    /// The phase it belongs to.
    pub phase: Load,
    /// When, since the phase began.
    pub at_ms: u64,
    /// The median of the round-trip times; absent where no answer came.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rtt_us: Option<u64>,
    /// Probes sent.
    pub sent: u64,
    /// Probes answered.
    pub received: u64,
}
