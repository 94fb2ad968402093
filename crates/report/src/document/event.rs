//! The events of a running test. They are the lines of `--json-stream`, and the progress display shows them.

use std::time::Duration;

use jiff::Timestamp;
use paramedic_link::test_spec::{DataMode, Direction, EngineId, Load};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{ErrorDocument, ResultDocument, is_false};

/// An event of a running test: one line of `--json-stream`. The field `event` names the kind of the event. The last
/// line is a result or an error.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// The test waits in the reflector's queue.
    Queued(Queued),
    /// The test begins.
    Start(Started),
    /// A phase of the test begins.
    Phase(PhaseBegun),
    /// The rate that the receiver measured in one interval.
    Interval(IntervalReading),
    /// The latest round trips of the latency probes.
    Latency(LatencyReading),
    /// The result of the test, as `--json` prints it.
    Result(Box<ResultDocument>),
    /// The error that ended the test, as `--json` prints it.
    Error(Box<ErrorDocument>),
}

/// A test that waits in the reflector's queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Queued {
    /// The position of the test in the reflector's queue. The test at position 1 runs next.
    pub place: u32,
    /// How long the reflector expects the test to wait, in milliseconds.
    pub expected_wait_ms: u64,
}

impl Queued {
    /// The event for a test at position `place` of the queue. The reflector expects that this test waits for
    /// `expected_wait`.
    pub fn new(place: u32, expected_wait: Duration) -> Self {
        Self { place, expected_wait_ms: u64::try_from(expected_wait.as_millis()).unwrap_or(u64::MAX) }
    }
}

/// The event of a test that begins.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Started {
    /// The id of the run, a UUIDv7. The result document has the same id.
    pub id: Uuid,
    /// When the test began, by the appliance's clock (RFC 3339, UTC).
    pub started_at: Timestamp,
    /// The provider (kind of test server) that runs the test, such as `reflector` or `iperf3`.
    pub provider: String,
    /// The engine that moves the payload, such as `tcp` or `iperf3`.
    #[schemars(with = "String")]
    pub engine: EngineId,
    /// The data mode: direct (unencrypted, through temporary ports) or tunneled (inside TLS, through the control port).
    /// Absent if the provider has no data modes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_mode: Option<DataMode>,
    /// The address and port to which the appliance connected.
    pub address: String,
    /// All phases of the test, in the order in which they run.
    pub phases: Vec<PhaseBegun>,
}

/// A phase of a test: its load and its duration. As an event, it states that the phase begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PhaseBegun {
    /// The load on the path in the phase.
    pub phase: Load,
    /// The requested duration of the phase, in milliseconds.
    pub duration_ms: u64,
}

/// The rate that the receiver measured in one interval. Intervals of the start-up are included. If the receiver is an
/// external program that reports only a total, the event has the sender's rate instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct IntervalReading {
    /// The phase to which the interval belongs.
    pub phase: Load,
    /// The direction of the payload.
    pub direction: Direction,
    /// The end of the interval, in milliseconds since the phase began.
    pub at_ms: u64,
    /// The payload rate, in bits per second. Measured at the receiver, or at the sender if `by_sender` is set.
    pub bps: u64,
    /// Whether the sender measured the rate. Such a rate is only for progress displays, because results use the rates
    /// that the receiver measured.
    #[serde(default, skip_serializing_if = "is_false")]
    pub by_sender: bool,
}

/// The event with the latest round trips. It covers the probes that no earlier event covers, except those whose
/// answers may still arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LatencyReading {
    /// The phase in which the probes were sent.
    pub phase: Load,
    /// The time of the event, in milliseconds since the phase began.
    pub at_ms: u64,
    /// The median round trip of the probes since the previous latency event, in microseconds; absent with too few
    /// answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rtt_us: Option<u64>,
    /// The number of probes that the event covers.
    pub sent: u64,
    /// The number of probes that the event covers and that were answered.
    pub received: u64,
}
