//! The documents that scripts rely on: a test's result, an error, the events of a stream. Plain values; what was not
//! measured is absent. How they are printed is the output's business, how they are kept the history's.

mod event;
#[cfg(any(test, feature = "example"))]
#[allow(clippy::unwrap_used, reason = "constants that its tests parse")]
pub mod example;
mod fallback;
mod schema;

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

pub use event::{Event, IntervalReading, LatencyReading, PhaseBegun, Queued, Started};
pub use fallback::{DataModeFallback, FallbackReason};
pub use schema::schema;

/// The name and version of the result document's shape.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ResultSchema {
    /// The first and so far only one.
    #[default]
    #[serde(rename = "packetparamedic.result/1")]
    V1,
}

/// The name and version of the error document's shape.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ErrorSchema {
    /// The first and so far only one.
    #[default]
    #[serde(rename = "packetparamedic.error/1")]
    V1,
}

/// One speed test's result. Rates are in bits per second of payload, fractions from 0 to 1.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ResultDocument {
    /// The shape of this document.
    pub schema: ResultSchema,
    /// This run, a UUIDv7.
    pub id: Uuid,
    /// When the test began, by the appliance's clock (RFC 3339, UTC).
    pub started_at: Timestamp,
    /// When the test was over, by the appliance's clock (RFC 3339, UTC).
    pub finished_at: Timestamp,
    /// Where the test came from.
    pub provider: String,
    /// The engine that made the load.
    #[schemars(with = "String")]
    pub engine: EngineId,
    /// The way the data took; absent where the provider knows no such choice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_mode: Option<DataMode>,
    /// The data mode that was tried before it and could not be used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_mode_fallback: Option<DataModeFallback>,
    /// How the bytes were moved: at the receiving end, or `splice` where the sending end gave them to its kernel by
    /// reference. Each direction has both ends' words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_path: Option<DataPath>,
    /// The limits that the test was asked to keep; absent in documents of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requested: Option<RequestedLimits>,
    /// Who measured.
    pub appliance: ApplianceEnd,
    /// The program that moved the data, where it was another one than ours.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub program: Option<ProgramSaid>,
    /// The other end as the request names it; absent where it names none and there is more or less than one to choose.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<String>,
    /// The reflector it was measured against; absent with a provider that has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reflector: Option<ReflectorEnd>,
    /// The server it was measured against, where it was no reflector.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<ServerEnd>,
    /// Payload towards the appliance, alone on the path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub download: Option<ThroughputResult>,
    /// Payload away from the appliance, alone on the path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upload: Option<ThroughputResult>,
    /// Both directions at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bidir: Option<BidirResult>,
    /// Latency, by what was on the path meanwhile.
    #[serde(default, skip_serializing_if = "ByLoad::is_empty")]
    pub latency: ByLoad<LatencyResult>,
    /// How much the latency rose under load; never has an `idle`.
    #[serde(default, skip_serializing_if = "ByLoad::is_empty")]
    pub bufferbloat: ByLoad<Bufferbloat>,
    /// What was asked for, and whether it was met.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub thresholds: Vec<ThresholdResult>,
    /// Payload bytes of everything: all phases and directions, start-up and latency probes included.
    pub data_used_bytes: u64,
    /// What a reader should know before trusting the numbers.
    pub warnings: Vec<Warning>,
    /// Whether the numbers describe the path; absent in documents of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validity: Option<Validity>,
    /// Whether every phase that was asked for was measured to its end.
    pub complete: bool,
    /// Whether the person at the appliance ended it.
    #[serde(default, skip_serializing_if = "is_false")]
    pub interrupted: bool,
    /// Why it is not complete, if something failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ErrorBody>,
}

impl ResultDocument {
    /// The document as text: what `--json` prints and what the history keeps, to the byte. Ends without a newline.
    pub fn to_text(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string_pretty(self)
    }

    /// Whether something was measured; that nothing arrived is a measurement, too.
    pub fn has_measurements(&self) -> bool {
        self.all_measured().next().is_some()
            || !self.latency.is_empty()
            || self.error.as_ref().is_some_and(|error| error.code == ErrorBody::NOTHING_ARRIVED)
    }

    /// What the other end is called: the reflector's name, else its or the server's address; of a run that reached
    /// neither, what the request names.
    pub fn other_end(&self) -> Option<&str> {
        match (&self.reflector, &self.server) {
            (Some(reflector), _) if !reflector.name.is_empty() => Some(reflector.name.as_str()),
            (Some(reflector), _) => Some(&reflector.address),
            (None, Some(server)) => Some(&server.address),
            (None, None) => self.peer.as_deref(),
        }
    }

    /// What was measured of `direction` under `load`.
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

/// The limits that a test was asked to keep. With one of them the rate may be that of the request instead of the path's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RequestedLimits {
    /// Streams in each direction.
    pub streams: u16,
    /// The rate of each stream, in bits per second of payload; absent without a limit and in a search for the highest rate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream_bitrate_bps: Option<u64>,
    /// The size of the socket buffers of each stream, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window_bytes: Option<u32>,
    /// The payload after which each direction ends, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub direction_bytes: Option<u64>,
}

impl RequestedLimits {
    /// The rate of all streams of a direction together.
    pub fn bitrate_bps(&self) -> Option<u64> {
        self.stream_bitrate_bps.map(|bps| bps.saturating_mul(self.streams.into()))
    }
}

/// How the bytes were moved at both ends; absent is an end that does not tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DataPathOfEnds {
    /// The end that sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sender: Option<DataPath>,
    /// The end that received.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub receiver: Option<DataPath>,
}

impl DataPathOfEnds {
    fn is_empty(&self) -> bool {
        self.sender.is_none() && self.receiver.is_none()
    }

    /// Both ends' in one word.
    pub fn in_short(&self) -> Option<DataPath> {
        self.sender.filter(|path| *path == DataPath::Splice).or(self.receiver).or(self.sender)
    }
}

/// How the bytes were moved at an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DataPath {
    /// Copied between the program and its kernel.
    Plain,
    /// Thrown away in the receiver's kernel (`MSG_TRUNC`).
    Trunc,
    /// Given to the sender's kernel by reference (`vmsplice`, `splice`).
    Splice,
    /// Through TLS in the program.
    Tls,
}

impl DataPath {
    /// The path that a tally names; `None` for one that we don't know.
    pub fn from_word(word: &str) -> Option<Self> {
        [Self::Plain, Self::Trunc, Self::Splice, Self::Tls].into_iter().find(|path| path.as_str() == word)
    }

    /// The path's word.
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

/// Who measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ApplianceEnd {
    /// Its key; all zeros if `anonymous`.
    pub endpoint_id: EndpointId,
    /// Whether the test ran without the device's identity.
    #[serde(default, skip_serializing_if = "is_false")]
    pub anonymous: bool,
    /// The program's version.
    pub version: String,
    /// How its host was before the first phase.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub facts_before: Option<HostFacts>,
    /// How its host was after the last phase.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub facts_after: Option<HostFacts>,
}

/// A program of others that moved the data.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ProgramSaid {
    /// Its name and version at the appliance.
    pub version: String,
    /// What it printed there, phase by phase, where that was asked for (`--raw`): as it is, in its own words and units.
    #[serde(default, skip_serializing_if = "ByLoad::is_empty")]
    pub raw: ByLoad<serde_json::Value>,
}

/// The reflector it was measured against.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ReflectorEnd {
    /// Its key.
    pub endpoint_id: EndpointId,
    /// The name it is saved under here.
    pub name: PeerText,
    /// The address and port that were dialled.
    pub address: String,
    /// The program's version, as the reflector says it.
    pub version: PeerText,
    /// How its host was before the first phase.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub facts_before: Option<HostFacts>,
    /// How its host was after the last phase.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub facts_after: Option<HostFacts>,
}

/// A server that is no reflector: nothing vouches for who it is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ServerEnd {
    /// The address and port that were dialled.
    pub address: String,
}

/// Payload in one direction. Everything speaks of the steady part, after start-up, where nothing else is said.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ThroughputResult {
    /// Payload at the receiver.
    pub goodput_bps: u64,
    /// The 95 % confidence interval of `goodput_bps`: lower and upper end. Absent with too few intervals.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ci95_bps: Option<[u64; 2]>,
    /// The rates of the first and the last third of the steady part. They are those of the whole phase if the excluded
    /// start-up was long and was no ramp-up, but a burst or a rate that had not settled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub thirds_bps: Option<Thirds>,
    /// How the receiver's intervals spread.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval_bps: Option<IntervalSpread>,
    /// Payload bytes that the receiver counted.
    pub bytes_received: u64,
    /// Payload bytes that the sender counted; absent where it does not tell them for the steady part alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_sent: Option<u64>,
    /// Payload bytes that the receiver counted in all, start-up included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total_bytes_received: Option<u64>,
    /// Payload bytes that the sender counted in all, start-up included. More than were received: what was on its way,
    /// or in the sender's queue, when the phase ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total_bytes_sent: Option<u64>,
    /// The length of the steady part.
    pub duration_ms: u64,
    /// The length of the start-up before it, which is left out of every other number here.
    pub startup_ms: u64,
    /// How the start-up's length was determined.
    pub omitted: Omitted,
    /// Streams that moved data.
    pub streams: u16,
    /// The congestion control that the sender's kernel really used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub congestion_control: Option<PeerText>,
    /// Segments that the sender sent again, all streams together, start-up included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retransmits: Option<u64>,
    /// The largest segment's payload, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mss: Option<u32>,
    /// What `goodput_bps` makes on the wire.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line_rate_estimate: Option<LineRateEstimate>,
    /// Each interval's reading at the receiver, where it was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub intervals: Option<Vec<Interval>>,
    /// What became of the datagrams, where it was datagrams.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub udp: Option<UdpResult>,
    /// How the bytes were moved.
    #[serde(default, skip_serializing_if = "DataPathOfEnds::is_empty")]
    pub data_path: DataPathOfEnds,
    /// What it cost both ends.
    #[serde(default, skip_serializing_if = "CpuOfEnds::is_empty")]
    pub cpu: CpuOfEnds,
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

/// What became of the datagrams, all streams together: of a search for the highest rate those that were sent once it had
/// found it, else all.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct UdpResult {
    /// Datagrams that were sent.
    pub datagrams: u64,
    /// Those of them that never arrived.
    pub lost: u64,
    /// The same as a share.
    pub loss: f64,
    /// Datagrams that arrived again, in the whole phase; absent where nothing tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duplicates: Option<u64>,
    /// Datagrams that arrived after a later one, in the whole phase; absent where nothing tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub out_of_order: Option<u64>,
    /// The receiver's jitter (RFC 3550, section 6.4.1); absent where nothing tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jitter_us: Option<u64>,
    /// The payload of each.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payload_bytes: Option<u32>,
    /// What the search itself cost, before it had found the rate; absent where none did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub search: Option<UdpSearch>,
    /// For how long the sender held still because nothing was heard of the receiver; absent where it did not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paused_ms: Option<u64>,
    /// Further, larger datagrams that did not arrive because they were too large for the path, sent before the sender
    /// reduced their payload; absent if there were none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vanished: Option<u64>,
}

/// Datagrams of a search for the highest rate, before it had found it: filling the path to the brim is how it finds out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct UdpSearch {
    /// Datagrams that were sent.
    pub datagrams: u64,
    /// Those of them that never arrived.
    pub lost: u64,
}

/// How the intervals of the steady part spread, in bits per second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct IntervalSpread {
    /// A tenth of the intervals were slower.
    pub p10: u64,
    /// Half of the intervals were slower.
    pub p50: u64,
    /// Nine tenths of the intervals were slower.
    pub p90: u64,
}

/// How the length of the start-up was determined.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Omitted {
    /// From the readings: where the rate stops to climb.
    Found,
    /// It was asked for (`-O`).
    Asked,
    /// It was not: the run is too short, or its rate had not settled by the middle; the first half is left out then.
    NotFound,
    /// Nothing was left out: the receiver tells its total alone.
    Nothing,
}

/// What the payload's rate makes on the wire, headers and the gaps between frames included: an estimate, made of the
/// segment size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LineRateEstimate {
    /// The estimated rate on the wire.
    pub rate_bps: u64,
    /// The bytes that were counted beside each segment's payload.
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

/// What moving the data cost each end; absent is an end that does not tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CpuOfEnds {
    /// The end that sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sender: Option<CpuCost>,
    /// The end that received.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub receiver: Option<CpuCost>,
}

/// What moving the data cost an end, start-up included.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CpuCost {
    /// What was used.
    #[serde(flatten)]
    pub used: CpuUse,
    /// User and system time together, in seconds, for each 10^9 bytes of payload that this end counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub s_per_gb: Option<f64>,
}

impl CpuCost {
    /// What `used` is for `bytes` of payload.
    pub fn of(used: CpuUse, bytes: u64) -> Self {
        let s_per_gb = (used.user_s + used.system_s) * 1e9 / bytes as f64;
        // Microseconds a gigabyte are what it is worth.
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

/// One value for each thing that was on the path; absent is what was not measured.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "{T}ByLoad")]
pub struct ByLoad<T> {
    /// Nothing but the latency probes.
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

    /// Puts in what was measured under `load`; an unknown load has no place.
    pub fn set(&mut self, load: Load, value: T) {
        match load {
            Load::Idle => self.idle = Some(value),
            Load::Download => self.download = Some(value),
            Load::Upload => self.upload = Some(value),
            Load::Bidir => self.bidir = Some(value),
            Load::Unknown => {}
        }
    }

    /// What there is, in the order of the phases.
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
    /// Round-trip times, in microseconds; absent where nothing came back.
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
    /// The share of the probes of which nothing came back, whichever way it was lost; absent over TCP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss: Option<f64>,
    /// Of the probes whose way is known, the share that never reached the other end; absent where that is not known of
    /// most that were lost (TCP, no answer at all).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss_upload: Option<f64>,
    /// Of the probes that reached the other end, the share whose answer never came back; absent where nothing tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss_download: Option<f64>,
    /// How the lost probes lie; absent if none was lost, and over TCP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss_pattern: Option<LossPattern>,
    /// Answers that came more than once.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub duplicates: u64,
    /// Answers that came after their time was up; they are not in `received`.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub late: u64,
    /// What the probes travelled in.
    pub transport: ProbeTransport,
    /// How late the appliance itself sent its probes, 99th percentile: what the host, not the path, may have added.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probe_late_us: Option<u64>,
    /// The time between two probes, in microseconds, constant in the measured window.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval_us: Option<u64>,
    /// Under load: the share of the probes' IP packets in the rate of the slowest loaded direction.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_share: Option<f64>,
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

    /// The largest share that was lost: in the worse direction, or, where directions are not told apart, on the whole way.
    pub fn worst_loss(&self) -> Option<f64> {
        match (self.loss_upload, self.loss_download) {
            (None, None) => self.loss,
            (up, down) => Some(up.unwrap_or(0.0).max(down.unwrap_or(0.0))),
        }
    }
}

/// How the lost probes of a phase lie (RFC 3357): a loss period is a run of lost probes without an answered one between.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LossPattern {
    /// Loss periods.
    pub periods: u64,
    /// The probes of the period with the most of them.
    pub longest_probes: u64,
    /// How long that period was: from its first probe to the next answered one.
    pub longest_ms: u64,
}

/// Round-trip times, in microseconds. A percentile is absent if too few probes were answered for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RttSpread {
    /// The lowest.
    pub min: u64,
    /// The mean.
    pub mean: u64,
    /// The median; absent below 20 answered probes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p50: Option<u64>,
    /// Nine tenths were lower; absent below 50 answered probes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p90: Option<u64>,
    /// 95 % were lower; absent below 100 answered probes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p95: Option<u64>,
    /// 99 % were lower; absent below 200 answered probes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p99: Option<u64>,
    /// 99.9 % were lower; absent below 2,000 answered probes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p999: Option<u64>,
    /// The highest.
    pub max: u64,
}

/// What latency probes travelled in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ProbeTransport {
    /// Datagrams.
    Udp,
    /// A data connection, because UDP did not get through: a lost packet shows as a late one.
    Tcp,
}

/// How much the latency rose under load.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Bufferbloat {
    /// The increase as a grade.
    pub grade: Grade,
    /// How much the round-trip time rose over the idle one.
    pub increase_ms: f64,
}

impl Bufferbloat {
    /// What lifted the median round trip by `increase_ms` over the idle one; a negative one is noise and counts as
    /// none.
    pub fn of_increase_ms(increase_ms: f64) -> Self {
        // Not `clamp`, which lets NaN through.
        let bounded = if increase_ms > 0.0 { increase_ms.min(MOST_INCREASE_MS) } else { 0.0 };
        // A tenth of a millisecond is what this is worth; more digits only look exact.
        let increase_ms = (bounded * 10.0).round() / 10.0;
        Self { grade: stats::grade(Duration::from_secs_f64(increase_ms / 1000.0)), increase_ms }
    }
}

/// An hour: no round trip takes longer, and it fits a `Duration`.
const MOST_INCREASE_MS: f64 = 3_600_000.0;

/// A threshold that was asked for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ThresholdResult {
    /// Which; its last word is the unit, as in `min_download_bps`.
    pub name: String,
    /// What was asked for.
    pub limit: Quantity,
    /// What was measured; absent where it was not, which does not pass.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measured: Option<Quantity>,
    /// Whether it was met.
    pub passed: bool,
    /// Whether the test ran through the tunnel because direct mode was blocked.
    #[serde(default, skip_serializing_if = "is_false")]
    pub through_tunnel: bool,
}

/// A number that is whole where its unit is (bits per second), and a fraction where it is not (milliseconds, shares).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Quantity {
    /// A whole number.
    Whole(u64),
    /// A number with a fraction.
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
    /// In a word.
    pub verdict: ValidityVerdict,
    /// Why the result is suspect; empty if it is valid.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reasons: Vec<Warning>,
}

/// The validity in a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ValidityVerdict {
    /// Nothing speaks against the numbers.
    Valid,
    /// Something else than the path may have made them.
    Suspect,
}

impl Validity {
    /// The code of an incomplete run among the reasons.
    pub const INCOMPLETE: &'static str = "incomplete";
    /// The codes of the warnings that make a result suspect. Other warnings explain numbers that are right.
    const SUSPECT: [&'static str; 8] = [
        "appliance_cpu",
        "reflector_cpu",
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

/// What an error says: what failed, because of what, what to try.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ErrorBody {
    /// For scripts: lower case, stays the same when the text changes.
    pub code: String,
    /// What failed.
    pub what: String,
    /// Because of what.
    pub because: String,
    /// What to try.
    #[serde(rename = "try")]
    pub try_: String,
    /// When asking again makes sense, from now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
}

impl ErrorBody {
    /// The code of a run with a direction in which next to nothing arrived.
    pub const NOTHING_ARRIVED: &str = "nothing_arrived";
}

/// What stands on stdout in JSON mode instead of a result.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ErrorDocument {
    /// The shape of this document.
    pub schema: ErrorSchema,
    /// What it says.
    #[serde(flatten)]
    pub error: ErrorBody,
    /// What was measured before it failed.
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
