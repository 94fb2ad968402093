//! The JSON documents that scripts rely on: the result of a test, an error, and the events of a stream. In a document,
//! a value that was not measured is absent. This module only defines the values; other modules print and save them.

mod ended;
mod event;
#[cfg(any(test, feature = "example"))]
#[allow(clippy::unwrap_used, reason = "constants that its tests parse")]
pub mod example;
mod fallback;
mod limit;
mod one_way;
mod schema;
mod series;
mod tcp;
mod uplink;

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
pub use uplink::UplinkLabel;

/// The format of the result document: its name and version.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ResultSchema {
    /// Version 1 of the format of the result document.
    #[default]
    #[serde(rename = "packetparamedic.result/1")]
    V1,
}

/// The format of the error document: its name and version.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ErrorSchema {
    /// Version 1 of the format of the error document.
    #[default]
    #[serde(rename = "packetparamedic.error/1")]
    V1,
}

/// The result of one speed test. Rates are in bits per second of payload. Shares are fractions from 0 to 1.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ResultDocument {
    /// The format of the result document.
    pub schema: ResultSchema,
    /// The id of the run, a UUIDv7.
    pub id: Uuid,
    /// When the test began, by the appliance's clock (RFC 3339, UTC).
    pub started_at: Timestamp,
    /// When the test ended, by the appliance's clock (RFC 3339, UTC).
    pub finished_at: Timestamp,
    /// The provider (kind of test server) that ran the test, such as `reflector` or `iperf3`.
    pub provider: String,
    /// The engine that moved the payload, such as `tcp` or `iperf3`.
    #[schemars(with = "String")]
    pub engine: EngineId,
    /// The data mode: direct (unencrypted, through temporary ports) or tunneled (inside TLS, through the control port).
    /// Absent if the provider has no data modes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_mode: Option<DataMode>,
    /// The data mode that the test tried first and could not use; absent if the test used the data mode tried first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_mode_fallback: Option<DataModeFallback>,
    /// How payload moved, in one word: the receiver's method, or `splice` if the sender used zero-copy sending. The
    /// `data_path` of each direction has the methods of both ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_path: Option<DataPath>,
    /// The limits that the request set; absent in documents of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requested: Option<RequestedLimits>,
    /// The appliance that ran the test.
    pub appliance: ApplianceEnd,
    /// The network interface and the IP prefix through which the appliance reaches the Internet; absent if unknown, and
    /// in documents of earlier versions.
    #[serde(default, skip_serializing_if = "UplinkLabel::is_empty")]
    pub uplink: UplinkLabel,
    /// The external program that moved the payload, such as iperf3; absent if a built-in engine moved it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub program: Option<ProgramSaid>,
    /// The name or address of the other end, as the request names it. If the request names no other end, this is the
    /// name of the only paired reflector. Absent if the request names none, and no reflector or several reflectors are
    /// paired.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<String>,
    /// The reflector at the other end; absent if the test used another kind of server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reflector: Option<ReflectorEnd>,
    /// The server at the other end; absent if the other end is a reflector.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<ServerEnd>,
    /// The throughput towards the appliance, measured in a phase without upload.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub download: Option<ThroughputResult>,
    /// The throughput away from the appliance, measured in a phase without download.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upload: Option<ThroughputResult>,
    /// The throughput of both directions, measured in a phase that loads both at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bidir: Option<BidirResult>,
    /// The latency in each phase, by the load on the path.
    #[serde(default, skip_serializing_if = "ByLoad::is_empty")]
    pub latency: ByLoad<LatencyResult>,
    /// How much each load raised the latency. `idle` is always absent, because it is the baseline.
    #[serde(default, skip_serializing_if = "ByLoad::is_empty")]
    pub bufferbloat: ByLoad<Bufferbloat>,
    /// How the clocks of the two ends compare; absent if fewer than 20 latency probes were answered in the idle phase.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clocks: Option<ClockComparison>,
    /// The thresholds that the request set, and whether the result met each of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub thresholds: Vec<ThresholdResult>,
    /// The payload bytes of the whole run, in both directions. Includes all phases, start-up and latency probes.
    pub data_used_bytes: u64,
    /// Facts to know before you trust the numbers of the result.
    pub warnings: Vec<Warning>,
    /// Whether the numbers can be trusted to describe the network path; absent in documents of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validity: Option<Validity>,
    /// Whether every requested phase ran to its end.
    pub complete: bool,
    /// Whether a signal at the appliance (such as Ctrl-C) ended the run.
    #[serde(default, skip_serializing_if = "is_false")]
    pub interrupted: bool,
    /// The error that ended the run; absent if no error ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ErrorBody>,
}

impl ResultDocument {
    /// The document as JSON text, exactly as `--json` prints it and the history stores it, but without a final newline.
    pub fn to_text(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string_pretty(self)
    }

    /// Whether the run measured anything. The finding that no payload arrived counts as a measurement.
    pub fn has_measurements(&self) -> bool {
        self.all_measured().next().is_some()
            || !self.latency.is_empty()
            || self.error.as_ref().is_some_and(|error| error.code == ErrorBody::NOTHING_ARRIVED)
    }

    /// What reports call the other end: the reflector's name, the reflector's address if this name is empty, or the
    /// address of the server. If the run reached no other end, this is the name in the request; `None` if the request
    /// has no name.
    pub fn other_end(&self) -> Option<&str> {
        match (&self.reflector, &self.server) {
            (Some(reflector), _) if !reflector.name.is_empty() => Some(reflector.name.as_str()),
            (Some(reflector), _) => Some(&reflector.address),
            (None, Some(server)) => Some(&server.address),
            (None, None) => self.peer.as_deref(),
        }
    }

    /// The result of `direction` in the phase with the given `load`; `None` if the direction was not measured.
    pub fn measured(&self, load: Load, direction: Direction) -> Option<&ThroughputResult> {
        match (load, direction) {
            (Load::Download, Direction::Download) => self.download.as_ref(),
            (Load::Upload, Direction::Upload) => self.upload.as_ref(),
            (Load::Bidir, Direction::Download) => self.bidir.as_ref()?.download.as_ref(),
            (Load::Bidir, Direction::Upload) => self.bidir.as_ref()?.upload.as_ref(),
            (Load::Download | Load::Upload | Load::Idle | Load::Unknown, _) => None,
        }
    }

    /// The result of every measured direction, in the order of the phases.
    pub fn all_measured(&self) -> impl Iterator<Item = (Load, Direction, &ThroughputResult)> {
        let all = [Load::Download, Load::Upload, Load::Bidir].into_iter();
        let all = all.flat_map(|load| load.directions().iter().map(move |direction| (load, *direction)));
        all.filter_map(move |(load, direction)| Some((load, direction, self.measured(load, direction)?)))
    }

    /// Whether every direction that `load` loads was measured. False if `load` loads no direction.
    pub fn has_load(&self, load: Load) -> bool {
        let directions = load.directions();
        !directions.is_empty() && directions.iter().all(|direction| self.measured(load, *direction).is_some())
    }
}

/// The limits that the request set. If a test reaches one of these limits, its rate shows what was requested, not what
/// the path can carry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RequestedLimits {
    /// The number of parallel streams in each direction.
    pub streams: u16,
    /// The rate limit of each stream, in bits per second of payload: the requested rate, or the default rate for
    /// datagrams. Absent if nothing limited the rate, and in a search for the highest rate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream_bitrate_bps: Option<u64>,
    /// The requested socket buffer size of each stream, in bytes; absent if the request set none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window_bytes: Option<u32>,
    /// The number of payload bytes after which each direction ends; absent if the request set none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub direction_bytes: Option<u64>,
    /// The byte budget of the run (`--budget`): the payload bytes that all directions together may move. Each direction
    /// ends after an equal share, which is `direction_bytes`. Absent if the request set none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget_bytes: Option<u64>,
    /// Whether the request allowed a direction to end early once its rate is stable (`--until-stable`).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub until_stable: bool,
}

impl RequestedLimits {
    /// The rate limit of all streams of one direction together, in bits per second; `None` if nothing limited the rate.
    pub fn bitrate_bps(&self) -> Option<u64> {
        self.stream_bitrate_bps.map(|bps| bps.saturating_mul(self.streams.into()))
    }
}

/// How each end moved the payload. A method that an end did not report is absent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DataPathOfEnds {
    /// The method by which the sending end moved the payload.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sender: Option<DataPath>,
    /// The method by which the receiving end moved the payload.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub receiver: Option<DataPath>,
}

impl DataPathOfEnds {
    fn is_empty(&self) -> bool {
        self.sender.is_none() && self.receiver.is_none()
    }

    /// The methods of both ends as one value: `splice` if the sender used it, or else the receiver's method. If the
    /// receiver did not report its method, the sender's method.
    pub fn in_short(&self) -> Option<DataPath> {
        self.sender.filter(|path| *path == DataPath::Splice).or(self.receiver).or(self.sender)
    }
}

/// The method by which an end moved the payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DataPath {
    /// The payload was copied between the program and the kernel.
    Plain,
    /// The receiver's kernel discarded the payload without a copy to the program (`MSG_TRUNC`).
    Trunc,
    /// The payload was passed to the sender's kernel by reference, without a copy (`vmsplice`, `splice`).
    Splice,
    /// The program encrypted or decrypted the payload (TLS).
    Tls,
}

impl DataPath {
    /// Parses the name of a method, as an end reports it; `None` if this version does not know the name.
    pub fn from_word(word: &str) -> Option<Self> {
        [Self::Plain, Self::Trunc, Self::Splice, Self::Tls].into_iter().find(|path| path.as_str() == word)
    }

    /// The name of the method, as in the JSON documents.
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

/// The appliance that ran the test.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ApplianceEnd {
    /// The Endpoint ID of the appliance, which is its public key; all zeros if `anonymous` is set.
    pub endpoint_id: EndpointId,
    /// Whether the test ran without the appliance's identity, because the appliance has no key or cannot read it.
    #[serde(default, skip_serializing_if = "is_false")]
    pub anonymous: bool,
    /// The version of the appliance's program.
    pub version: String,
    /// The state of the appliance's host before the first phase.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub facts_before: Option<HostFacts>,
    /// The state of the appliance's host after the last phase.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub facts_after: Option<HostFacts>,
}

/// The external program that moved the payload.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ProgramSaid {
    /// The name and version of the program that is installed on the appliance.
    pub version: String,
    /// The program's unchanged output for each phase, with the program's own names and units. Present only with
    /// `--raw`.
    #[serde(default, skip_serializing_if = "ByLoad::is_empty")]
    pub raw: ByLoad<serde_json::Value>,
}

/// The reflector at the other end of the test.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ReflectorEnd {
    /// The Endpoint ID of the reflector, which is its public key.
    pub endpoint_id: EndpointId,
    /// The name under which the appliance saved the reflector.
    pub name: PeerText,
    /// The address and port to which the appliance connected.
    pub address: String,
    /// The version of the reflector's program, as the reflector reports it.
    pub version: PeerText,
    /// The state of the reflector's host before the first phase, as the reflector reports it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub facts_before: Option<HostFacts>,
    /// The state of the reflector's host after the last phase, as the reflector reports it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub facts_after: Option<HostFacts>,
}

/// A server at the other end that is not a reflector. Its identity is not verified.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ServerEnd {
    /// The host in the request (a name or an address), and the port to which the appliance connected.
    pub address: String,
}

/// The throughput of one direction. Values cover the steady part, after the start-up, unless stated otherwise.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ThroughputResult {
    /// The mean rate of the payload at the receiver, in bits per second.
    pub goodput_bps: u64,
    /// The lower and the upper bound of the 95 % confidence interval of `goodput_bps`, in bits per second. Absent if
    /// the phase is too short or has too few intervals.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ci95_bps: Option<[u64; 2]>,
    /// The mean rates in the first and the last third of the steady part. After a long start-up that was a burst or
    /// whose end was not found, these are thirds of the whole phase.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub thirds_bps: Option<Thirds>,
    /// The distribution of the rates that the receiver measured in its intervals.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval_bps: Option<IntervalSpread>,
    /// The payload bytes that the receiver counted in the steady part.
    pub bytes_received: u64,
    /// The payload bytes that the sender counted in the steady part; absent if the sender did not report samples.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_sent: Option<u64>,
    /// The payload bytes that the receiver counted in the whole phase, start-up included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total_bytes_received: Option<u64>,
    /// The payload bytes that the sender counted in the whole phase, start-up included. They may exceed
    /// `total_bytes_received`, because data may be in flight or unsent in the sender's buffer when the phase ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total_bytes_sent: Option<u64>,
    /// The duration of the steady part, in milliseconds.
    pub duration_ms: u64,
    /// The duration of the excluded start-up, in milliseconds.
    pub startup_ms: u64,
    /// How the end of the start-up was determined.
    pub omitted: Omitted,
    /// Why the measurement of this direction ended. Absent if one end broke off the measurement or reported no final
    /// counts, and in documents of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<EndedBy>,
    /// The number of streams that carried payload.
    pub streams: u16,
    /// The congestion control algorithm of the sender's kernel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub congestion_control: Option<PeerText>,
    /// The number of TCP segments that the sender retransmitted, in all streams of the whole phase, start-up included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retransmits: Option<u64>,
    /// The TCP maximum segment size, in bytes of payload.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mss: Option<u32>,
    /// The path MTU from the sender to the receiver, in bytes, as the sender's kernel found it (RFC 1191, RFC 8201) or
    /// assumes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_mtu_bytes: Option<u32>,
    /// The estimated rate on the wire that corresponds to `goodput_bps`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line_rate_estimate: Option<LineRateEstimate>,
    /// The rate that the receiver measured in each interval; present only if requested.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub intervals: Option<Vec<Interval>>,
    /// The datagram counts; absent if the engine does not send datagrams.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub udp: Option<UdpResult>,
    /// How each end moved the payload.
    #[serde(default, skip_serializing_if = "DataPathOfEnds::is_empty")]
    pub data_path: DataPathOfEnds,
    /// The processor use of each end.
    #[serde(default, skip_serializing_if = "CpuOfEnds::is_empty")]
    pub cpu: CpuOfEnds,
    /// What limited the rate; absent in documents of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limited_by: Option<LimitedBy>,
    /// What the kernels recorded about the TCP streams; present only if requested.
    #[serde(default, skip_serializing_if = "TcpOfEnds::is_empty")]
    pub tcp: TcpOfEnds,
}

impl ThroughputResult {
    /// Whether the rate was steady. If not, the mean does not describe the rate well.
    pub fn is_steady(&self) -> bool {
        let thirds = self.thirds_bps.map(|thirds| [thirds.first, thirds.last]);
        stats::is_steady(thirds, self.goodput_bps, self.ci95_bps)
    }
}

/// The mean rates of a direction in the first and in the last third of a period, in bits per second. The period is
/// usually the steady part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Thirds {
    /// The mean rate in the first third of the period, in bits per second.
    pub first: u64,
    /// The mean rate in the last third of the period, in bits per second.
    pub last: u64,
}

/// The datagram counts of a direction, over all streams. After a search for the highest rate, the counts include only
/// the datagrams that were sent at the rate found.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct UdpResult {
    /// The number of datagrams that the sender sent.
    pub datagrams: u64,
    /// The number of datagrams that did not arrive.
    pub lost: u64,
    /// The share of the sent datagrams that did not arrive, from 0 to 1.
    pub loss: f64,
    /// The number of datagrams that arrived more than once in the whole phase; absent if not reported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duplicates: Option<u64>,
    /// The number of datagrams in the whole phase that arrived after a datagram that was sent later; absent if not
    /// reported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub out_of_order: Option<u64>,
    /// The jitter that the receiver computed (RFC 3550, section 6.4.1), in microseconds; absent if not reported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jitter_us: Option<u64>,
    /// The payload of one datagram, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payload_bytes: Option<u32>,
    /// The datagrams that the sender sent while it searched for the highest rate; absent without a search.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub search: Option<UdpSearch>,
    /// How long the sender paused for lack of feedback from the receiver, in milliseconds; absent if it did not pause.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paused_ms: Option<u64>,
    /// The number of datagrams that exceeded the path MTU and were dropped, before the sender reduced the size. These
    /// datagrams are not part of `datagrams` and `lost`. Absent if there were no such datagrams.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vanished: Option<u64>,
}

/// The datagrams sent during a search for the highest rate, before the rate was found. Loss is expected: the search
/// overloads the path on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct UdpSearch {
    /// The number of datagrams that the sender sent during the search.
    pub datagrams: u64,
    /// The number of datagrams that did not arrive during the search.
    pub lost: u64,
}

/// The distribution of the interval rates in the steady part, in bits per second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct IntervalSpread {
    /// The 10th percentile of the interval rates, in bits per second.
    pub p10: u64,
    /// The median of the interval rates, in bits per second.
    pub p50: u64,
    /// The 90th percentile of the interval rates, in bits per second.
    pub p90: u64,
}

/// How the end of the start-up was determined.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Omitted {
    /// The receiver's samples show when the rate settled, or the receiver reports when a search for the highest rate
    /// settled.
    Found,
    /// The request set the length of the start-up (`-O`).
    Asked,
    /// The end of the start-up was not found. If the rate had not settled by the middle of the phase, the first half is
    /// excluded. If there were too few samples to detect a start-up, nothing is excluded.
    NotFound,
    /// No start-up was determined or excluded: the receiver reports only a total, or had received the requested bytes
    /// before a start-up could be detected.
    Nothing,
}

/// The rate on the wire, including headers and inter-frame gaps, estimated from the segment size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LineRateEstimate {
    /// The estimated rate on the wire, in bits per second.
    pub rate_bps: u64,
    /// The number of bytes that the estimate adds to the payload of each segment.
    pub overhead_bytes: u32,
}

/// The rate that the receiver measured in one interval.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Interval {
    /// The end of the interval, in milliseconds since the phase began.
    pub at_ms: u64,
    /// The payload rate at the receiver in the interval, in bits per second.
    pub bps: u64,
}

/// The processor use of each end. If an end did not report its processor use, the value is absent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CpuOfEnds {
    /// The processor use of the sending end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sender: Option<CpuCost>,
    /// The processor use of the receiving end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub receiver: Option<CpuCost>,
}

/// The processor use of one end in the whole phase, start-up included.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CpuCost {
    /// The processor time and the processor load that the end reports.
    #[serde(flatten)]
    pub used: CpuUse,
    /// User and system time in seconds, for each 10^9 payload bytes that the end counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub s_per_gb: Option<f64>,
}

impl CpuCost {
    /// Returns the processor use `used` of an end that counted `bytes` of payload, and computes `s_per_gb`.
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

/// The throughput of a phase that loads both directions at once.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct BidirResult {
    /// The throughput towards the appliance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub download: Option<ThroughputResult>,
    /// The throughput away from the appliance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upload: Option<ThroughputResult>,
}

/// One value for each load on the path. The value for a load that was not measured is absent.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "{T}ByLoad")]
pub struct ByLoad<T> {
    /// The value for the idle path, which carries only latency probes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle: Option<T>,
    /// The value under a download: payload towards the appliance.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub download: Option<T>,
    /// The value under an upload: payload away from the appliance.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upload: Option<T>,
    /// The value under a download and an upload at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bidir: Option<T>,
}

impl<T> Default for ByLoad<T> {
    fn default() -> Self {
        Self { idle: None, download: None, upload: None, bidir: None }
    }
}

impl<T> ByLoad<T> {
    /// The value that was measured under `load`; `None` if there is no such value.
    pub fn of(&self, load: Load) -> Option<&T> {
        match load {
            Load::Idle => self.idle.as_ref(),
            Load::Download => self.download.as_ref(),
            Load::Upload => self.upload.as_ref(),
            Load::Bidir => self.bidir.as_ref(),
            Load::Unknown => None,
        }
    }

    /// Sets the value that was measured under `load`. Ignores an unknown load.
    pub fn set(&mut self, load: Load, value: T) {
        match load {
            Load::Idle => self.idle = Some(value),
            Load::Download => self.download = Some(value),
            Load::Upload => self.upload = Some(value),
            Load::Bidir => self.bidir = Some(value),
            Load::Unknown => {}
        }
    }

    /// All values that were measured, each with its load, in the order of the phases.
    pub fn iter(&self) -> impl Iterator<Item = (Load, &T)> {
        [Load::Idle, Load::Download, Load::Upload, Load::Bidir]
            .into_iter()
            .filter_map(|load| self.of(load).map(|value| (load, value)))
    }

    /// Whether there is no value for any load.
    pub fn is_empty(&self) -> bool {
        self.iter().next().is_none()
    }
}

/// The latency and the loss of the probes in one phase.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LatencyResult {
    /// The distribution of the round-trip times, in microseconds; absent if no probe was answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rtt_us: Option<RttSpread>,
    /// The mean difference between the round-trip times of consecutive probes, in microseconds; absent if no two
    /// consecutive probes were answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jitter_us: Option<u64>,
    /// The number of probes that the appliance sent.
    pub sent: u64,
    /// The number of probes that were answered before the timeout.
    pub received: u64,
    /// The number of probes that were due but not sent, because the appliance ran too late to send them.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub skipped: u64,
    /// The share of the probes that were not answered, from 0 to 1. Absent over TCP, which hides loss.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss: Option<f64>,
    /// The share (0 to 1) of probes that did not reach the other end. Counts only probes for which it is known whether
    /// they did. Absent over TCP, and if the direction of the loss is unknown for most lost probes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss_upload: Option<f64>,
    /// The share of lost answers (0 to 1) among the probes that reached the other end; absent if unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss_download: Option<f64>,
    /// How the lost probes are distributed over time; absent if no probe was lost, and over TCP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss_pattern: Option<LossPattern>,
    /// The number of probes and answers that arrived more than once, in the whole run, not only in the phase.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub duplicates: u64,
    /// The number of answers that arrived after the timeout. `received` does not include late answers.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub late: u64,
    /// The transport protocol of the probes.
    pub transport: ProbeTransport,
    /// The 99th percentile of how late the appliance sent its probes, in microseconds, skipped probes included. Round
    /// trips start when a probe was really sent, but a late prober may miss short latency spikes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probe_late_us: Option<u64>,
    /// The time between two probes, in microseconds, which is constant in the measured part of a phase.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval_us: Option<u64>,
    /// The rate of the probes' IP packets divided by the goodput of the loaded direction, or of the slower direction if
    /// both are loaded. Present only under load.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_share: Option<f64>,
    /// The responsiveness in round trips per minute: 60,000 ms divided by the median round trip. Present only under
    /// load. Measured with latency probes beside the load, not with requests on the loaded connections.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub responsiveness_rpm: Option<u64>,
    /// The delay of each direction. Absent if the run has no idle phase, or if too few probes were answered. Also
    /// absent for the phase in which a clock jumped, and for all later phases.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub one_way: Option<OneWayDelays>,
    /// How long probes waited in the appliance's host before its network interface sent them. This wait is a part of
    /// the round trip. Absent if the kernel does not report send times.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub own_wait: Option<DelayVariation>,
    /// The queue that the load built up in each direction. Present only under load.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue: Option<QueueByDirection>,
    /// The probes in each interval of the whole phase; present only if requested.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub intervals: Option<Vec<LatencyInterval>>,
}

impl LatencyResult {
    /// The median round trip in microseconds, for grades, thresholds and the sentences of reports. `None` if too few
    /// probes were answered.
    pub fn median_us(&self) -> Option<u64> {
        self.round_trip_us(Statement::Assessment)
    }

    /// The percentile of the round trips that `statement` is about, in microseconds; `None` if too few probes were
    /// answered for `statement`.
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

    /// The loss share of the direction that lost more. If the directions are unknown, the loss share of the round
    /// trips; `None` if that is unknown, too.
    pub fn worst_loss(&self) -> Option<f64> {
        match (self.loss_upload, self.loss_download) {
            (None, None) => self.loss,
            (up, down) => Some(up.unwrap_or(0.0).max(down.unwrap_or(0.0))),
        }
    }
}

/// How the lost probes of a phase are distributed over time (RFC 3357). A loss period is a run of consecutive lost
/// probes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LossPattern {
    /// The number of loss periods.
    pub periods: u64,
    /// The number of lost probes in the longest loss period.
    pub longest_probes: u64,
    /// The duration of the longest loss period, in milliseconds: from its first lost probe to the next probe that was
    /// not lost, or to its last probe if no such probe follows.
    pub longest_ms: u64,
}

/// The distribution of the round-trip times, in microseconds. A percentile is absent if too few probes were answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RttSpread {
    /// The shortest round trip, in microseconds.
    pub min: u64,
    /// The mean round trip, in microseconds.
    pub mean: u64,
    /// The median round trip, in microseconds; absent with fewer than 20 answered probes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p50: Option<u64>,
    /// The 90th percentile of the round trips, in microseconds; absent with fewer than 50 answered probes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p90: Option<u64>,
    /// The 95th percentile of the round trips, in microseconds; absent with fewer than 100 answered probes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p95: Option<u64>,
    /// The 99th percentile of the round trips, in microseconds; absent with fewer than 200 answered probes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p99: Option<u64>,
    /// The 99.9th percentile of the round trips, in microseconds; absent with fewer than 2,000 answered probes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p999: Option<u64>,
    /// The longest round trip, in microseconds.
    pub max: u64,
}

/// The transport protocol of the latency probes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ProbeTransport {
    /// The probes are UDP datagrams.
    Udp,
    /// The probes use a TCP data connection, because UDP did not get through. TCP turns loss into delay.
    Tcp,
}

/// How much a load raised the latency.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Bufferbloat {
    /// The grade of the latency increase, from A+ (best) to F.
    pub grade: Grade,
    /// The latency increase in milliseconds: the median round trip under the load minus the idle median.
    pub increase_ms: f64,
}

impl Bufferbloat {
    /// Grades a median round trip that exceeds the idle median by `increase_ms`. A negative increase counts as zero.
    pub fn of_increase_ms(increase_ms: f64) -> Self {
        // Not `clamp`, which lets NaN through.
        let bounded = if increase_ms > 0.0 { increase_ms.min(MOST_INCREASE_MS) } else { 0.0 };
        // A tenth of a millisecond is precise enough.
        let increase_ms = (bounded * 10.0).round() / 10.0;
        Self { grade: stats::grade(Duration::from_secs_f64(increase_ms / 1000.0)), increase_ms }
    }
}

/// The longest latency increase that a document contains, in milliseconds: one hour. A `Duration` can hold this value.
const MOST_INCREASE_MS: f64 = 3_600_000.0;

/// A threshold that the request set, and whether the result met it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ThresholdResult {
    /// The name of the threshold. The name ends in the unit, as in `min_download_bps`.
    pub name: String,
    /// The limit that the request set, in the unit with which `name` ends.
    pub limit: Quantity,
    /// The measured value, in the unit with which `name` ends. Absent if the value was not measured; then the threshold
    /// is not met.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measured: Option<Quantity>,
    /// Whether the result met the threshold.
    pub passed: bool,
    /// Whether the test measured the value through the tunnel because direct mode was blocked.
    #[serde(default, skip_serializing_if = "is_false")]
    pub through_tunnel: bool,
}

/// A number in a document: whole, such as a rate in bits per second, or with a fraction, such as milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Quantity {
    /// A number without a fraction, such as a rate in bits per second.
    Whole(u64),
    /// A number with a fraction, such as milliseconds or a share.
    Fraction(f64),
}

impl Quantity {
    /// The number as a floating-point number; a large whole number loses its last digits.
    pub fn as_f64(self) -> f64 {
        match self {
            Self::Whole(number) => number as f64,
            Self::Fraction(number) => number,
        }
    }
}

/// A fact to know before you trust the numbers of a result.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Warning {
    /// A stable identifier for scripts, in lower case. It stays the same when the text changes.
    pub code: String,
    /// The warning as text for a human reader.
    pub text: String,
}

impl Warning {
    /// A warning with the given code and text.
    pub fn new(code: &'static str, text: impl Into<String>) -> Self {
        Self { code: code.to_owned(), text: text.into() }
    }
}

/// Whether the numbers of a result can be trusted to describe the network path, and if not, why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Validity {
    /// Whether the result is valid or suspect.
    pub verdict: ValidityVerdict,
    /// The warnings that make the result suspect; empty if the result is valid.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reasons: Vec<Warning>,
}

/// Whether the numbers of a result can be trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ValidityVerdict {
    /// There is no known reason to doubt the numbers.
    Valid,
    /// Something other than the path may have determined the numbers.
    Suspect,
}

impl Validity {
    /// The code of the reason that marks an incomplete run as suspect.
    pub const INCOMPLETE: &'static str = "incomplete";
    /// The codes of the warnings that make a result suspect. The other warnings explain numbers that are correct.
    const SUSPECT: [&'static str; 12] = [
        "appliance_cpu",
        "reflector_cpu",
        "receive_window",
        "send_buffer",
        "other_traffic",
        "not_steady",
        "path_changed",
        "probe_late",
        "probes_skipped",
        "probes_lost",
        "rate_not_found",
        "sending_paused",
    ];

    /// Judges a result by its warnings, and by whether the run completed.
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

/// An error in three parts: what failed, why, and what to try.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ErrorBody {
    /// A stable identifier for scripts, in lower case. It stays the same when the text changes.
    pub code: String,
    /// What failed, as text for a human reader.
    pub what: String,
    /// The cause of the error.
    pub because: String,
    /// What the user can try to fix the error.
    #[serde(rename = "try")]
    pub try_: String,
    /// How long to wait before a retry may succeed, in milliseconds; absent if unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
}

impl ErrorBody {
    /// The code of the error that ends a run in which a direction received almost no payload.
    pub const NOTHING_ARRIVED: &str = "nothing_arrived";
}

/// The error document. `--json` prints it instead of a result.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ErrorDocument {
    /// The format of the error document.
    pub schema: ErrorSchema,
    /// The error: what failed, why, and what to try.
    #[serde(flatten)]
    pub error: ErrorBody,
    /// What the test measured before it failed; absent if the test measured nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measured_so_far: Option<Box<ResultDocument>>,
}

// serde's `skip_serializing_if` passes references.
fn is_false(value: &bool) -> bool {
    !value
}

fn is_zero(value: &u64) -> bool {
    *value == 0
}
