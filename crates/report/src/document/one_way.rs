//! The delay of each direction: its variation, the queue, and what is known of the clocks at both ends. Part of the
//! result document.

use paramedic_link::test_spec::Load;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How the clocks of both ends ran against each other, from the latency probes. Monotonic clocks, which no change of the
/// time of day moves.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ClockComparison {
    /// How much faster the reflector's clock ran, in millionths.
    pub skew_ppm: f64,
    /// How far off `skew_ppm` may be.
    pub skew_uncertainty_ppm: f64,
    /// The reflector's clock minus the appliance's in the idle phase, in microseconds. Both have arbitrary zeros. It assumes
    /// that the shortest round trip takes as long in each direction.
    pub offset_us: i64,
    /// How far off `offset_us` may be: half of the shortest round trip.
    pub offset_uncertainty_us: u64,
    /// The moment from which the clocks no longer fit, if there is one. Later phases have no delays by direction.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jump: Option<ClockJumpSeen>,
}

/// A jump of one end's clock against the other's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ClockJumpSeen {
    /// The phase in which it was; absent between two phases.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<Load>,
    /// How far the reflector's clock moved forward against the appliance's, in microseconds; absent if not measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moved_us: Option<i64>,
}

/// The delay of each direction in a phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct OneWayDelays {
    /// Probes from the appliance to the reflector.
    pub upload: DelayVariation,
    /// Replies from the reflector to the appliance.
    pub download: DelayVariation,
}

/// The delay of one direction above the shortest one while idle (packet delay variation, RFC 5481), in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DelayVariation {
    /// The median.
    pub p50_us: u64,
    /// The 95th percentile; absent below 100 answered probes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p95_us: Option<u64>,
    /// The 99th percentile; absent below 200 answered probes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p99_us: Option<u64>,
    /// The maximum.
    pub max_us: u64,
}

/// The latency probes of a phase that were due in one interval of 100 ms. Intervals without probes are left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LatencyInterval {
    /// The end of the interval, from the start of the phase.
    pub at_ms: u64,
    /// The median round trip of its answered probes, in microseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rtt_us: Option<u64>,
    /// The median delay of the upload direction above the shortest one while idle, in microseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upload_us: Option<u64>,
    /// The same of the download direction.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub download_us: Option<u64>,
    /// Probes sent.
    pub sent: u64,
    /// Probes that were not answered.
    pub lost: u64,
}

/// The queue that a load built: how much the median delay of each direction rose over the idle one.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct QueueByDirection {
    /// The direction in which it stands.
    pub stands: QueueSide,
    /// In the upload direction, in milliseconds; absent if unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upload_ms: Option<f64>,
    /// The part of `upload_ms` that stands in the appliance's own host, before its network interface; absent if its kernel
    /// does not report when packets leave.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub own_ms: Option<f64>,
    /// In the download direction, in milliseconds; absent if unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub download_ms: Option<f64>,
    /// How far off each of them may be, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uncertainty_ms: Option<f64>,
}

impl QueueByDirection {
    /// A queue of which nothing is known.
    pub const UNKNOWN: Self =
        Self { stands: QueueSide::Unknown, upload_ms: None, own_ms: None, download_ms: None, uncertainty_ms: None };

    /// Whether most of a queue in the upload direction stands in the appliance's own host.
    pub fn is_own(&self) -> bool {
        let most = self.upload_ms.zip(self.own_ms).is_some_and(|(upload_ms, own_ms)| own_ms > upload_ms / 2.0);
        self.stands == QueueSide::Upload && most
    }
}

/// The direction in which a queue stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum QueueSide {
    /// From the appliance to the reflector.
    Upload,
    /// From the reflector to the appliance.
    Download,
    /// In each direction at least a quarter of the larger part.
    Both,
    /// No direction became slower by 2 ms.
    None,
    /// The measurement does not show it.
    Unknown,
}

impl QueueSide {
    /// The words for a reader.
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
