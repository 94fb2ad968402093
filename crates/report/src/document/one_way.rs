//! The part of the result document about the delay of each direction: how the delay varies, where a queue is, and how
//! the clocks of both ends compare.

use paramedic_link::test_spec::Load;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How the monotonic clocks of both ends compare, computed from the latency probes. Setting the time of day does not
/// affect these clocks.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ClockComparison {
    /// How much faster the reflector's clock ran than the appliance's, in parts per million.
    pub skew_ppm: f64,
    /// How far the true skew may be above or below `skew_ppm`, in parts per million.
    pub skew_uncertainty_ppm: f64,
    /// The time of the reflector's clock minus the time of the appliance's clock in the idle phase, in microseconds.
    /// The zero of each clock is arbitrary. Assumes that the shortest round trip takes equally long in each direction.
    pub offset_us: i64,
    /// How far the true offset may be above or below `offset_us`, in microseconds: half of the shortest round trip.
    pub offset_uncertainty_us: u64,
    /// When one clock jumped against the other; absent if neither clock jumped. The phase in which a clock jumped and
    /// all later phases have no delays by direction.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jump: Option<ClockJumpSeen>,
}

/// A jump of one end's clock against the other end's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ClockJumpSeen {
    /// The phase in which a clock jumped; absent if the jump was between two phases.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<Load>,
    /// How far the reflector's clock jumped forward against the appliance's, in microseconds; negative if it jumped
    /// back. Absent if not measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moved_us: Option<i64>,
}

/// How far the delays of one phase exceed the shortest delay of the idle phase, for each direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct OneWayDelays {
    /// The delay from the appliance to the reflector, measured with the probes.
    pub upload: DelayVariation,
    /// The delay from the reflector to the appliance, measured with the replies to the probes.
    pub download: DelayVariation,
}

/// The distribution of delays, in microseconds: of the delays of one direction, or of the waits in the appliance's host
/// (`own_wait`). A delay of one direction counts from the shortest delay of the idle phase (packet delay variation, RFC
/// 5481). A wait counts in full.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DelayVariation {
    /// The median of the delays, in microseconds.
    pub p50_us: u64,
    /// The 95th percentile of the delays, in microseconds; absent with fewer than 100 delays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p95_us: Option<u64>,
    /// The 99th percentile of the delays, in microseconds; absent with fewer than 200 delays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p99_us: Option<u64>,
    /// The longest of the delays, in microseconds.
    pub max_us: u64,
}

/// The latency probes that were sent in one interval of 100 ms. An interval without probes is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LatencyInterval {
    /// The end of the interval, in milliseconds since the phase began.
    pub at_ms: u64,
    /// The median round trip of the answered probes, in microseconds; absent if no probe was answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rtt_us: Option<u64>,
    /// How far the upload delay exceeded the shortest upload delay of the idle phase, in microseconds: the median of
    /// the interval's probes. Absent if unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upload_us: Option<u64>,
    /// How far the download delay exceeded the shortest download delay of the idle phase, in microseconds: the median
    /// of the interval's probes. Absent if unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub download_us: Option<u64>,
    /// The number of probes sent in the interval.
    pub sent: u64,
    /// The number of probes sent in the interval that were lost.
    pub lost: u64,
}

/// The queue that a load built up: how far the median delay of each direction rose above its median in the idle phase.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct QueueByDirection {
    /// The direction in which the load built up the queue.
    pub stands: QueueSide,
    /// The rise of the median upload delay under the load, in milliseconds; absent if unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upload_ms: Option<f64>,
    /// The part of `upload_ms` that arose in the appliance's own host, before its network interface, in milliseconds.
    /// Absent if the kernel does not report send times.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub own_ms: Option<f64>,
    /// The rise of the median download delay under the load, in milliseconds; absent if unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub download_ms: Option<f64>,
    /// How far the true values may be above or below `upload_ms` and `download_ms`, in milliseconds; absent if unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uncertainty_ms: Option<f64>,
}

impl QueueByDirection {
    /// The value for a queue that could not be measured.
    pub const UNKNOWN: Self =
        Self { stands: QueueSide::Unknown, upload_ms: None, own_ms: None, download_ms: None, uncertainty_ms: None };

    /// Whether the queue is in the upload direction and more than half of it is in the appliance's own host.
    pub fn is_own(&self) -> bool {
        let most = self.upload_ms.zip(self.own_ms).is_some_and(|(upload_ms, own_ms)| own_ms > upload_ms / 2.0);
        self.stands == QueueSide::Upload && most
    }
}

/// The direction in which a load built up a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum QueueSide {
    /// The queue is in the direction from the appliance to the reflector.
    Upload,
    /// The queue is in the direction from the reflector to the appliance.
    Download,
    /// The queue is in both directions: the smaller rise is at least a quarter of the larger one.
    Both,
    /// There is no queue: in neither direction did the median delay rise by 2 ms or more.
    None,
    /// The measurement does not show where the queue is.
    Unknown,
}

impl QueueSide {
    /// The direction of the queue in words, for reports.
    pub fn as_words(self) -> &'static str {
        match self {
            Self::Upload => "upload",
            Self::Download => "download",
            Self::Both => "both directions",
            Self::None => "none",
            Self::Unknown => "not known",
        }
    }
}
