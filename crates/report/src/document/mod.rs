//! The documents that scripts rely on: a test's result, an error, the events of a stream. Plain values; a value that
//! was not measured is absent. Other modules print and save them.

mod ended;
mod event;
#[cfg(any(test, feature = "example"))]
#[allow(clippy::unwrap_used, reason = "constants that its tests parse")]
pub mod example;
mod fallback;
mod limit;
mod one_way;
mod schema;
mod tcp;

use std::fmt;
use std::time::Duration;

use jiff::Timestamp;
use paramedic_link::measurement::{CpuUse, HostFacts};
use paramedic_link::test_spec::{DataMode, Direction, EngineId, Load};
use paramedic_link::{EndpointId, PeerText};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::stats::{self, Grade, Statement};

pub use ended::EndedBy;
pub use event::{Event, IntervalReading, LatencyReading, PhaseBegun, Queued, Started};
pub use fallback::{DataModeFallback, FallbackReason};
pub use limit::{LimitCause, LimitEvidence, LimitedBy, ObservedEnd};
pub use one_way::{
    ClockComparison, ClockJumpSeen, DelayVariation, LatencyInterval, OneWayDelays, QueueByDirection, QueueSide,
};
pub use schema::{NeverNull, schema};
pub use tcp::TcpOfEnds;

/// The name and version of the result document's format.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ResultSchema {
    /// The first version.
    #[default]
    #[serde(rename = "packetparamedic.result/1")]
    V1,
}

/// The name and version of the error document's format.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ErrorSchema {
    /// The first version.
    #[default]
    #[serde(rename = "packetparamedic.error/1")]
    V1,
}

/// One speed test's result. Rates are in bits per second of payload, fractions from 0 to 1.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ResultDocument {
    /// The format of this document.
    pub schema: ResultSchema,
    /// The id of this run, a UUIDv7.
    pub id: Uuid,
    /// When the test began, by the appliance's clock (RFC 3339, UTC).
    pub started_at: Timestamp,
    /// When the test ended, by the appliance's clock (RFC 3339, UTC).
    pub finished_at: Timestamp,
    /// The provider that ran the test.
    pub provider: String,
    /// The engine that loaded the path.
    #[schemars(with = "String")]
    pub engine: EngineId,
    /// The data mode; absent if the provider has no data modes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_mode: Option<DataMode>,
    /// The data mode that was tried before it and could not be used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_mode_fallback: Option<DataModeFallback>,
    /// How the bytes were moved: at the receiving end, or `splice` where the sending end gave them to its kernel by
    /// reference. Each direction has both ends' words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_path: Option<DataPath>,
    /// The limits that the request sets; absent in documents of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requested: Option<RequestedLimits>,
    /// The appliance that measured.
    pub appliance: ApplianceEnd,
    /// The external program that moved the data, if there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub program: Option<ProgramSaid>,
    /// The other end as the request names it; absent if the request names none and not exactly one reflector is paired.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<String>,
    /// The reflector at the other end; absent if the provider uses none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reflector: Option<ReflectorEnd>,
    /// The server at the other end, if it is not a reflector.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<ServerEnd>,
    /// The payload towards the appliance, measured in a phase of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub download: Option<ThroughputResult>,
    /// The payload away from the appliance, measured in a phase of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upload: Option<ThroughputResult>,
    /// Both directions at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bidir: Option<BidirResult>,
    /// The latency, by the load on the path.
    #[serde(default, skip_serializing_if = "ByLoad::is_empty")]
    pub latency: ByLoad<LatencyResult>,
    /// How much the latency rose under load; `idle` is always absent.
    #[serde(default, skip_serializing_if = "ByLoad::is_empty")]
    pub bufferbloat: ByLoad<Bufferbloat>,
    /// How the clocks of both ends ran against each other; absent without latency probes while idle.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clocks: Option<ClockComparison>,
    /// The requested thresholds, and whether each was met.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub thresholds: Vec<ThresholdResult>,
    /// Payload bytes of the whole run: all phases and directions, start-up and latency probes included.
    pub data_used_bytes: u64,
    /// What a reader should know before trusting the numbers.
    pub warnings: Vec<Warning>,
    /// Whether the numbers describe the path; absent in documents of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validity: Option<Validity>,
    /// Whether every requested phase was measured to its end.
    pub complete: bool,
    /// Whether a signal at the appliance ended the run.
    #[serde(default, skip_serializing_if = "is_false")]
    pub interrupted: bool,
    /// The error that ended the run, if one did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ErrorBody>,
}

impl ResultDocument {
    /// The document as text: what `--json` prints and what the history keeps, to the byte. Ends without a newline.
    pub fn to_text(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string_pretty(self)
    }

    /// Whether the run measured something. That no payload arrived is a measurement, too.
    pub fn has_measurements(&self) -> bool {
        self.all_measured().next().is_some()
            || !self.latency.is_empty()
            || self.error.as_ref().is_some_and(|error| error.code == ErrorBody::NOTHING_ARRIVED)
    }

    /// The name of the other end: the reflector's name, else its or the server's address. If the run reached neither,
    /// the name in the request.
    pub fn other_end(&self) -> Option<&str> {
        match (&self.reflector, &self.server) {
            (Some(reflector), _) if !reflector.name.is_empty() => Some(reflector.name.as_str()),
            (Some(reflector), _) => Some(&reflector.address),
            (None, Some(server)) => Some(&server.address),
            (None, None) => self.peer.as_deref(),
        }
    }

    /// The result of `direction` under `load`.
    pub fn measured(&self, load: Load, direction: Direction) -> Option<&ThroughputResult> {
        match (load, direction) {
            (Load::Download, Direction::Download) => self.download.as_ref(),
            (Load::Upload, Direction::Upload) => self.upload.as_ref(),
            (Load::Bidir, Direction::Download) => self.bidir.as_ref()?.download.as_ref(),
            (Load::Bidir, Direction::Upload) => self.bidir.as_ref()?.upload.as_ref(),
            (Load::Download | Load::Upload | Load::Idle | Load::Unknown, _) => None,
        }
    }

    /// Every direction that was measured, in the order of the phases.
    pub fn all_measured(&self) -> impl Iterator<Item = (Load, Direction, &ThroughputResult)> {
        let all = [Load::Download, Load::Upload, Load::Bidir].into_iter();
        let all = all.flat_map(|load| load.directions().iter().map(move |direction| (load, *direction)));
        all.filter_map(move |(load, direction)| Some((load, direction, self.measured(load, direction)?)))
    }

    /// Whether payload moved in every direction of this load.
    pub fn has_load(&self, load: Load) -> bool {
        let directions = load.directions();
        !directions.is_empty() && directions.iter().all(|direction| self.measured(load, *direction).is_some())
    }
}

/// The limits that a request sets. With one of them the measured rate may be that of the request, not of the path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RequestedLimits {
    /// Streams in each direction.
    pub streams: u16,
    /// The rate of each stream, in bits per second of payload; absent without a limit and in a search for the highest
    /// rate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream_bitrate_bps: Option<u64>,
    /// The size of the socket buffers of each stream, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window_bytes: Option<u32>,
    /// The payload after which each direction ends, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub direction_bytes: Option<u64>,
    /// The payload after which the run ends, in bytes; each direction has an equal share, which is `direction_bytes`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget_bytes: Option<u64>,
    /// Whether a direction was to end early once it is stable.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub until_stable: bool,
}

impl RequestedLimits {
    /// The rate of all streams of a direction together.
    pub fn bitrate_bps(&self) -> Option<u64> {
        self.stream_bitrate_bps.map(|bps| bps.saturating_mul(self.streams.into()))
    }
}

/// How both ends moved the payload. An end that does not report it is absent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DataPathOfEnds {
    /// The sender.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sender: Option<DataPath>,
    /// The receiver.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub receiver: Option<DataPath>,
}

impl DataPathOfEnds {
    fn is_empty(&self) -> bool {
        self.sender.is_none() && self.receiver.is_none()
    }

    /// The data path of both ends as one value.
    pub fn in_short(&self) -> Option<DataPath> {
        self.sender.filter(|path| *path == DataPath::Splice).or(self.receiver).or(self.sender)
    }
}

/// How an end moved the payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DataPath {
    /// Copied between the program and its kernel.
    Plain,
    /// Discarded in the receiver's kernel (`MSG_TRUNC`).
    Trunc,
    /// Passed to the sender's kernel by reference (`vmsplice`, `splice`).
    Splice,
    /// Encrypted or decrypted by the program (TLS).
    Tls,
}

impl DataPath {
    /// The data path that a tally names; `None` if this version does not know it.
    pub fn from_word(word: &str) -> Option<Self> {
        [Self::Plain, Self::Trunc, Self::Splice, Self::Tls].into_iter().find(|path| path.as_str() == word)
    }

    /// The name of the data path.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Trunc => "trunc",
            Self::Splice => "splice",
            Self::Tls => "tls",
        }
    }
}

impl fmt::Display for DataPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The appliance that measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ApplianceEnd {
    /// Its key; all zeros if `anonymous`.
    pub endpoint_id: EndpointId,
    /// Whether the test ran without the device's identity.
    #[serde(default, skip_serializing_if = "is_false")]
    pub anonymous: bool,
    /// The program's version.
    pub version: String,
    /// The state of its host before the first phase.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub facts_before: Option<HostFacts>,
    /// The state of its host after the last phase.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub facts_after: Option<HostFacts>,
}

/// An external program that moved the data.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ProgramSaid {
    /// Its name and version on the appliance.
    pub version: String,
    /// Its unchanged output on the appliance, one entry per phase; only with `--raw`. Its names and units are its own.
    #[serde(default, skip_serializing_if = "ByLoad::is_empty")]
    pub raw: ByLoad<serde_json::Value>,
}

/// The reflector at the other end.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ReflectorEnd {
    /// Its Endpoint ID.
    pub endpoint_id: EndpointId,
    /// The name under which this appliance saved it.
    pub name: PeerText,
    /// The address and port to which the appliance connected.
    pub address: String,
    /// The version of its program, as the reflector reports it.
    pub version: PeerText,
    /// The state of its host before the first phase.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub facts_before: Option<HostFacts>,
    /// The state of its host after the last phase.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub facts_after: Option<HostFacts>,
}

/// A server that is not a reflector. Its identity is not verified.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ServerEnd {
    /// The address and port to which the appliance connected.
    pub address: String,
}

/// The result of one direction. All values are those of the steady part, after the start-up, unless stated otherwise.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ThroughputResult {
    /// The rate of the payload at the receiver.
    pub goodput_bps: u64,
    /// The 95 % confidence interval of `goodput_bps`: lower and upper bound. Absent if there are too few intervals.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ci95_bps: Option<[u64; 2]>,
    /// The rates of the first and the last third of the steady part. They are those of the whole phase if the excluded
    /// start-up was long and was no ramp-up, but a burst or a rate that had not settled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub thirds_bps: Option<Thirds>,
    /// The distribution of the receiver's interval rates.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval_bps: Option<IntervalSpread>,
    /// Payload bytes that the receiver counted.
    pub bytes_received: u64,
    /// Payload bytes that the sender counted; absent if it does not count the steady part on its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_sent: Option<u64>,
    /// Payload bytes that the receiver counted in all, start-up included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total_bytes_received: Option<u64>,
    /// Payload bytes that the sender counted in all, start-up included. It exceeds the received bytes by what was in
    /// flight or in the sender's queue when the phase ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total_bytes_sent: Option<u64>,
    /// The length of the steady part.
    pub duration_ms: u64,
    /// The length of the start-up before it. No other value includes the start-up unless stated otherwise.
    pub startup_ms: u64,
    /// How the start-up's length was determined.
    pub omitted: Omitted,
    /// What ended the direction; absent if it did not come to its end, and in documents of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<EndedBy>,
    /// The number of streams that moved data.
    pub streams: u16,
    /// The congestion control that the sender's kernel used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub congestion_control: Option<PeerText>,
    /// Segments that the sender retransmitted, over all streams, start-up included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retransmits: Option<u64>,
    /// The maximum segment size, in bytes of payload.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mss: Option<u32>,
    /// The rate on the wire that corresponds to `goodput_bps`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line_rate_estimate: Option<LineRateEstimate>,
    /// The receiver's reading of each interval, if requested.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub intervals: Option<Vec<Interval>>,
    /// The counts of the datagrams, if the engine sends datagrams.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub udp: Option<UdpResult>,
    /// How both ends moved the payload.
    #[serde(default, skip_serializing_if = "DataPathOfEnds::is_empty")]
    pub data_path: DataPathOfEnds,
    /// The processor use of both ends.
    #[serde(default, skip_serializing_if = "CpuOfEnds::is_empty")]
    pub cpu: CpuOfEnds,
    /// What limited the rate; absent in documents of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limited_by: Option<LimitedBy>,
    /// What the kernels recorded of the streams, if requested.
    #[serde(default, skip_serializing_if = "TcpOfEnds::is_empty")]
    pub tcp: TcpOfEnds,
}

impl ThroughputResult {
    /// Whether the rate was steady, so that the mean describes it.
    pub fn is_steady(&self) -> bool {
        let thirds = self.thirds_bps.map(|thirds| [thirds.first, thirds.last]);
        stats::is_steady(thirds, self.goodput_bps, self.ci95_bps)
    }
}

/// The rates of two parts of a direction, in bits per second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Thirds {
    /// In the first third.
    pub first: u64,
    /// In the last third.
    pub last: u64,
}

/// The counts of the datagrams, over all streams. After a search for the highest rate: those that were sent at the rate
/// found; otherwise all.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct UdpResult {
    /// Datagrams sent.
    pub datagrams: u64,
    /// Datagrams lost.
    pub lost: u64,
    /// The share of the datagrams that were lost.
    pub loss: f64,
    /// Datagrams that arrived more than once, in the whole phase; absent if not reported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duplicates: Option<u64>,
    /// Datagrams that arrived after a later one, in the whole phase; absent if not reported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub out_of_order: Option<u64>,
    /// The receiver's jitter (RFC 3550, section 6.4.1); absent if not reported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jitter_us: Option<u64>,
    /// The payload of one datagram.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payload_bytes: Option<u32>,
    /// The datagrams of the search itself, before it found the rate; absent without a search.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub search: Option<UdpSearch>,
    /// For how long the sender paused because no feedback arrived from the receiver; absent if it did not pause.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paused_ms: Option<u64>,
    /// Further, larger datagrams that did not arrive because they were too large for the path, sent before the sender
    /// reduced their payload; absent if there were none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vanished: Option<u64>,
}

/// The datagrams of a search for the highest rate, before it found the rate. The search overloads the path on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct UdpSearch {
    /// Datagrams sent.
    pub datagrams: u64,
    /// Datagrams lost.
    pub lost: u64,
}

/// The distribution of the interval rates of the steady part, in bits per second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct IntervalSpread {
    /// The 10th percentile.
    pub p10: u64,
    /// The median.
    pub p50: u64,
    /// The 90th percentile.
    pub p90: u64,
}

/// How the length of the start-up was determined.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Omitted {
    /// Detected from the readings: the rate stopped rising.
    Found,
    /// Requested (`-O`).
    Asked,
    /// Not detected: the run is too short, or the rate did not settle in its first half. The first half is excluded.
    NotFound,
    /// Nothing was excluded: the receiver reports only its total.
    Nothing,
}

/// The rate on the wire, with headers and inter-frame gaps: an estimate from the segment size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LineRateEstimate {
    /// The estimated rate on the wire.
    pub rate_bps: u64,
    /// The bytes that the estimate adds to the payload of each segment.
    pub overhead_bytes: u32,
}

/// One interval's reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Interval {
    /// When it ended, since the phase began.
    pub at_ms: u64,
    /// Payload at the receiver.
    pub bps: u64,
}

/// The processor use of both ends. An end that does not report it is absent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CpuOfEnds {
    /// The sender.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sender: Option<CpuCost>,
    /// The receiver.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub receiver: Option<CpuCost>,
}

/// The processor use of an end, start-up included.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CpuCost {
    /// The processor time and load.
    #[serde(flatten)]
    pub used: CpuUse,
    /// User and system time together, in seconds, for each 10^9 bytes of payload that this end counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub s_per_gb: Option<f64>,
}

impl CpuCost {
    /// The cost of `bytes` of payload that took `used`.
    pub fn of(used: CpuUse, bytes: u64) -> Self {
        let s_per_gb = (used.user_s + used.system_s) * 1e9 / bytes as f64;
        // Whole microseconds per gigabyte are precise enough.
        let s_per_gb = s_per_gb.is_finite().then_some((s_per_gb * 1e6).round() / 1e6);
        Self { used, s_per_gb }
    }
}

impl CpuOfEnds {
    fn is_empty(&self) -> bool {
        self.sender.is_none() && self.receiver.is_none()
    }
}

/// Both directions at once.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct BidirResult {
    /// Payload towards the appliance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub download: Option<ThroughputResult>,
    /// Payload away from the appliance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upload: Option<ThroughputResult>,
}

/// One value per load on the path. A load that was not measured is absent.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "{T}ByLoad")]
pub struct ByLoad<T> {
    /// Only the latency probes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle: Option<T>,
    /// Payload towards the appliance.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub download: Option<T>,
    /// Payload away from the appliance.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upload: Option<T>,
    /// Both at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bidir: Option<T>,
}

impl<T> Default for ByLoad<T> {
    fn default() -> Self {
        Self { idle: None, download: None, upload: None, bidir: None }
    }
}

impl<T> ByLoad<T> {
    /// The value measured under `load`.
    pub fn of(&self, load: Load) -> Option<&T> {
        match load {
            Load::Idle => self.idle.as_ref(),
            Load::Download => self.download.as_ref(),
            Load::Upload => self.upload.as_ref(),
            Load::Bidir => self.bidir.as_ref(),
            Load::Unknown => None,
        }
    }

    /// Sets the value measured under `load`. An unknown load is ignored.
    pub fn set(&mut self, load: Load, value: T) {
        match load {
            Load::Idle => self.idle = Some(value),
            Load::Download => self.download = Some(value),
            Load::Upload => self.upload = Some(value),
            Load::Bidir => self.bidir = Some(value),
            Load::Unknown => {}
        }
    }

    /// All measured values, in the order of the phases.
    pub fn iter(&self) -> impl Iterator<Item = (Load, &T)> {
        [Load::Idle, Load::Download, Load::Upload, Load::Bidir]
            .into_iter()
            .filter_map(|load| self.of(load).map(|value| (load, value)))
    }

    /// Whether nothing was measured.
    pub fn is_empty(&self) -> bool {
        self.iter().next().is_none()
    }
}

/// Latency and loss of one phase.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LatencyResult {
    /// Round-trip times, in microseconds; absent if no probe was answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rtt_us: Option<RttSpread>,
    /// The mean difference between one round-trip time and the next; absent without two in a row.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jitter_us: Option<u64>,
    /// Probes sent.
    pub sent: u64,
    /// Probes answered in time.
    pub received: u64,
    /// Probes that were due but not sent, because the appliance did not run in time.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub skipped: u64,
    /// The share of the probes that were not answered, whichever direction lost them; absent over TCP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss: Option<f64>,
    /// Of the probes whose fate is known, the share that did not reach the other end; absent if the fate of most lost
    /// probes is unknown (TCP, no answer at all).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss_upload: Option<f64>,
    /// Of the probes that reached the other end, the share whose answer was lost; absent if unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss_download: Option<f64>,
    /// The distribution of the lost probes over time; absent if none was lost, and over TCP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss_pattern: Option<LossPattern>,
    /// Answers that arrived more than once.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub duplicates: u64,
    /// Answers that arrived after the timeout. `received` excludes them.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub late: u64,
    /// The transport of the probes.
    pub transport: ProbeTransport,
    /// The 99th percentile of how late the appliance sent its probes: the host may have added as much to round trips.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probe_late_us: Option<u64>,
    /// The interval of the probes, in microseconds, constant in the measured window.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval_us: Option<u64>,
    /// Under load: the share of the probes' IP packets in the rate of the slowest loaded direction.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_share: Option<f64>,
    /// Under load: responsiveness, 60,000 ms divided by the median round trip, in round trips per minute. The round trips
    /// are those of the latency probes beside the load, not of requests on the loaded connections.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub responsiveness_rpm: Option<u64>,
    /// The delay of each direction; absent without an idle phase, and from a jump of a clock on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub one_way: Option<OneWayDelays>,
    /// How long probes waited in the appliance's own host, before its network interface; absent if its kernel does not report
    /// when packets leave. Part of the round trip.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub own_wait: Option<DelayVariation>,
    /// Under load: the queue, by direction.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue: Option<QueueByDirection>,
    /// The probes of each interval of the whole phase, if requested.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub intervals: Option<Vec<LatencyInterval>>,
}

impl LatencyResult {
    /// The median round trip, if it describes the phase: what grades, thresholds and sentences compare.
    pub fn median_us(&self) -> Option<u64> {
        self.round_trip_us(Statement::Assessment)
    }

    /// The percentile that `statement` speaks of, if there were enough round trips for it.
    pub fn round_trip_us(&self, statement: Statement) -> Option<u64> {
        let rtt = self.rtt_us.filter(|_| stats::is_enough(statement, self.received, self.sent))?;
        match statement {
            Statement::P50 | Statement::Assessment => rtt.p50,
            Statement::P90 => rtt.p90,
            Statement::P95 => rtt.p95,
            Statement::P99 => rtt.p99,
            Statement::P999 => rtt.p999,
        }
    }

    /// The largest share that was lost: in the worse direction or, if the directions are unknown, of the round trips.
    pub fn worst_loss(&self) -> Option<f64> {
        match (self.loss_upload, self.loss_download) {
            (None, None) => self.loss,
            (up, down) => Some(up.unwrap_or(0.0).max(down.unwrap_or(0.0))),
        }
    }
}

/// The distribution of the lost probes of a phase (RFC 3357). A loss period is a run of consecutive lost probes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LossPattern {
    /// The number of loss periods.
    pub periods: u64,
    /// The lost probes of the longest period.
    pub longest_probes: u64,
    /// The duration of that period: from its first lost probe to the next answered one.
    pub longest_ms: u64,
}

/// Round-trip times, in microseconds. A percentile is absent if too few probes were answered for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RttSpread {
    /// The minimum.
    pub min: u64,
    /// The mean.
    pub mean: u64,
    /// The median; absent below 20 answered probes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p50: Option<u64>,
    /// The 90th percentile; absent below 50 answered probes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p90: Option<u64>,
    /// The 95th percentile; absent below 100 answered probes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p95: Option<u64>,
    /// The 99th percentile; absent below 200 answered probes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p99: Option<u64>,
    /// The 99.9th percentile; absent below 2,000 answered probes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p999: Option<u64>,
    /// The maximum.
    pub max: u64,
}

/// The transport of latency probes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ProbeTransport {
    /// UDP datagrams.
    Udp,
    /// A data connection, because no UDP datagram arrived. A lost packet appears as a late one.
    Tcp,
}

/// How much the latency rose under load.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Bufferbloat {
    /// The increase as a grade.
    pub grade: Grade,
    /// How much the median round-trip time exceeds the idle one.
    pub increase_ms: f64,
}

impl Bufferbloat {
    /// The grade of a median round trip that exceeds the idle one by `increase_ms`. A negative increase is noise and
    /// counts as none.
    pub fn of_increase_ms(increase_ms: f64) -> Self {
        // Not `clamp`, which lets NaN through.
        let bounded = if increase_ms > 0.0 { increase_ms.min(MOST_INCREASE_MS) } else { 0.0 };
        // A tenth of a millisecond is precise enough.
        let increase_ms = (bounded * 10.0).round() / 10.0;
        Self { grade: stats::grade(Duration::from_secs_f64(increase_ms / 1000.0)), increase_ms }
    }
}

/// The longest increase that is represented: an hour, which fits a `Duration`.
const MOST_INCREASE_MS: f64 = 3_600_000.0;

/// A requested threshold.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ThresholdResult {
    /// Its name, which ends in its unit, as in `min_download_bps`.
    pub name: String,
    /// The requested limit.
    pub limit: Quantity,
    /// The measured value. If it was not measured, it is absent and the threshold is not met.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measured: Option<Quantity>,
    /// Whether it was met.
    pub passed: bool,
    /// Whether the test ran through the tunnel because direct mode was blocked.
    #[serde(default, skip_serializing_if = "is_false")]
    pub through_tunnel: bool,
}

/// A number: an integer of bits per second, or a fraction of milliseconds or of a share.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Quantity {
    /// An integer.
    Whole(u64),
    /// A fraction.
    Fraction(f64),
}

/// What a reader should know before trusting the numbers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Warning {
    /// For scripts: lower case, stays the same when the text changes.
    pub code: String,
    /// For people.
    pub text: String,
}

impl Warning {
    /// A warning.
    pub fn new(code: &'static str, text: impl Into<String>) -> Self {
        Self { code: code.to_owned(), text: text.into() }
    }
}

/// Whether the numbers of a result describe the path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Validity {
    /// The verdict.
    pub verdict: ValidityVerdict,
    /// Why the result is suspect; empty if it is valid.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reasons: Vec<Warning>,
}

/// The verdict on the validity of a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ValidityVerdict {
    /// No reason to doubt the numbers is known.
    Valid,
    /// Something other than the path may have determined them.
    Suspect,
}

impl Validity {
    /// The code of an incomplete run among the reasons.
    pub const INCOMPLETE: &'static str = "incomplete";
    /// The codes of the warnings that make a result suspect. Other warnings explain numbers that are right.
    const SUSPECT: [&'static str; 11] = [
        "appliance_cpu",
        "reflector_cpu",
        "receive_window",
        "send_buffer",
        "other_traffic",
        "not_steady",
        "probe_late",
        "probes_skipped",
        "probes_lost",
        "rate_not_found",
        "sending_paused",
    ];

    /// The validity of a result with these warnings.
    pub fn of(warnings: &[Warning], is_complete: bool) -> Self {
        let suspect = warnings.iter().filter(|warning| Self::SUSPECT.contains(&warning.code.as_str()));
        let mut reasons = suspect.cloned().collect::<Vec<_>>();
        if !is_complete {
            reasons.push(Warning::new(Self::INCOMPLETE, "not every requested phase was measured to its end"));
        }
        let verdict = if reasons.is_empty() { ValidityVerdict::Valid } else { ValidityVerdict::Suspect };
        Self { verdict, reasons }
    }
}

/// An error: what failed, why, and what to try.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ErrorBody {
    /// For scripts: lower case, stays the same when the text changes.
    pub code: String,
    /// What failed.
    pub what: String,
    /// Why it failed.
    pub because: String,
    /// What to try.
    #[serde(rename = "try")]
    pub try_: String,
    /// The time from now after which a retry may succeed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
}

impl ErrorBody {
    /// The code of a run with a direction in which almost no payload arrived.
    pub const NOTHING_ARRIVED: &str = "nothing_arrived";
}

/// The document that JSON mode prints instead of a result.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ErrorDocument {
    /// The format of this document.
    pub schema: ErrorSchema,
    /// The error.
    #[serde(flatten)]
    pub error: ErrorBody,
    /// The measurements before the failure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measured_so_far: Option<Box<ResultDocument>>,
}

// serde's `skip_serializing_if` hands out references.
fn is_false(value: &bool) -> bool {
    !value
}

fn is_zero(value: &u64) -> bool {
    *value == 0
}
