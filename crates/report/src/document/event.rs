//! The events of a running test: the lines of `--json-stream`, and the source of the progress display.

use std::time::Duration;

use jiff::Timestamp;
use paramedic_link::test_spec::{DataMode, Direction, EngineId, Load};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{ErrorDocument, ResultDocument, is_false};

/// One line of `--json-stream`; `event` names its kind. The last line is a result or an error.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// The test is in the queue.
    Queued(Queued),
    /// The test was granted and begins.
    Start(Started),
    /// A phase begins.
    Phase(PhaseBegun),
    /// The receiver's reading of an interval.
    Interval(IntervalReading),
    /// The latest round trips of the latency probes.
    Latency(LatencyReading),
    /// The result, as `--json` prints it.
    Result(Box<ResultDocument>),
    /// The error, as `--json` prints it.
    Error(Box<ErrorDocument>),
}

/// The test is in the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Queued {
    /// Its place in the queue, from 1.
    pub place: u32,
    /// The reflector's estimate of the wait.
    pub expected_wait_ms: u64,
}

impl Queued {
    /// A test at this place, with this expected wait.
    pub fn new(place: u32, expected_wait: Duration) -> Self {
        Self { place, expected_wait_ms: u64::try_from(expected_wait.as_millis()).unwrap_or(u64::MAX) }
    }
}

/// The test begins.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Started {
    /// The run's id, the same as in the result.
    pub id: Uuid,
    /// When the test began, by the appliance's clock (RFC 3339, UTC).
    pub started_at: Timestamp,
    /// The provider that runs the test.
    pub provider: String,
    /// The engine that loads the path.
    #[schemars(with = "String")]
    pub engine: EngineId,
    /// The data mode; absent if the provider has no data modes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_mode: Option<DataMode>,
    /// The address and port to which the appliance connected.
    pub address: String,
    /// All phases, in order.
    pub phases: Vec<PhaseBegun>,
}

/// A phase that begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PhaseBegun {
    /// The load of the phase.
    pub phase: Load,
    /// The requested duration.
    pub duration_ms: u64,
}

/// The receiver's reading of one interval, start-up included. If the receiver is an external program that reports only
/// at its end, these are the sender's readings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct IntervalReading {
    /// The phase it belongs to.
    pub phase: Load,
    /// The direction of the payload.
    pub direction: Direction,
    /// When the interval ended, since the phase began.
    pub at_ms: u64,
    /// The rate of the payload at the receiver; at the sender if `by_sender` is set.
    pub bps: u64,
    /// Whether it is the sender's reading, for progress displays. Results use the receiver's readings.
    #[serde(default, skip_serializing_if = "is_false")]
    pub by_sender: bool,
}

/// The latency probes since the last event of this kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LatencyReading {
    /// The phase it belongs to.
    pub phase: Load,
    /// The time since the phase began.
    pub at_ms: u64,
    /// The median of the round-trip times; absent if no probe was answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rtt_us: Option<u64>,
    /// Probes sent.
    pub sent: u64,
    /// Probes answered.
    pub received: u64,
}
