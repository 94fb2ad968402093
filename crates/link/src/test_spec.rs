//! The test that an appliance requests: engine, data mode, phases, streams. These are plain values. The module
//! `sessions` of the reflector decides which requests are granted.

use std::fmt;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::feature::Feature;
use crate::peer_text::PeerText;

/// The direction of payload, seen from the appliance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// Towards the appliance.
    Download,
    /// Away from the appliance.
    Upload,
}

impl Direction {
    /// Both directions, in the order in which reports list them.
    pub const BOTH: [Direction; 2] = [Direction::Download, Direction::Upload];
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Direction::Download => "download",
            Direction::Upload => "upload",
        })
    }
}

/// The load of a phase. Latency is probed throughout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Load {
    /// Only the latency probes.
    Idle,
    /// Payload towards the appliance.
    Download,
    /// Payload away from the appliance.
    Upload,
    /// Both directions at once, each with the requested number of streams.
    Bidir,
    /// A load that only a newer version defines.
    #[serde(other)]
    Unknown,
}

impl Load {
    /// The directions in which this load moves payload.
    pub fn directions(self) -> &'static [Direction] {
        match self {
            Load::Idle | Load::Unknown => &[],
            Load::Download => &[Direction::Download],
            Load::Upload => &[Direction::Upload],
            Load::Bidir => &Direction::BOTH,
        }
    }

    /// Whether this load moves payload in `direction`.
    pub fn moves(self, direction: Direction) -> bool {
        self.directions().contains(&direction)
    }
}

impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Load::Idle => "idle",
            Load::Download => "download",
            Load::Upload => "upload",
            Load::Bidir => "bidir",
            Load::Unknown => "unknown",
        })
    }
}

/// How test data travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DataMode {
    /// Inside TLS, through the control port.
    Tunneled,
    /// Unencrypted, through temporary ports of the reflector's data port range.
    DirectEphemeral,
    /// A mode that only a newer version defines.
    #[serde(other)]
    Unknown,
}

impl fmt::Display for DataMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            DataMode::Tunneled => "tunneled",
            DataMode::DirectEphemeral => "direct_ephemeral",
            DataMode::Unknown => "unknown",
        })
    }
}

/// The id of an engine on the wire: 1 to 16 characters of `a-z`, `0-9`, `_`. Not an enum, so that an older reflector
/// answers a newer engine with "not offered" instead of a decoding error.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct EngineId(String);

/// The error for a text that is not a valid engine id.
#[derive(Debug, thiserror::Error)]
#[error("an engine id must have 1 to 16 characters of a-z, 0-9 and _")]
pub struct InvalidEngineId;

impl EngineId {
    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for EngineId {
    type Error = InvalidEngineId;

    fn try_from(text: String) -> Result<Self, InvalidEngineId> {
        let is_allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
        if text.is_empty() || text.len() > 16 || !text.bytes().all(is_allowed) {
            return Err(InvalidEngineId);
        }
        Ok(Self(text))
    }
}

impl TryFrom<&str> for EngineId {
    type Error = InvalidEngineId;

    fn try_from(text: &str) -> Result<Self, InvalidEngineId> {
        Self::try_from(text.to_owned())
    }
}

impl From<EngineId> for String {
    fn from(id: EngineId) -> String {
        id.0
    }
}

impl fmt::Display for EngineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// One phase of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PhaseSpec {
    /// The traffic of this phase.
    pub load: Load,
    /// How long the sender sends, in milliseconds, start-up included.
    pub duration_ms: u32,
}

impl PhaseSpec {
    /// How long the sender sends, start-up included.
    pub fn duration(&self) -> Duration {
        Duration::from_millis(self.duration_ms.into())
    }
}

/// The requested method of moving payload at each end. An end that does not support the requested method refuses the
/// test; `Auto` is never refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DataPathWish {
    /// The fastest method that this end supports.
    #[default]
    Auto,
    /// Payload is copied between kernel and program at both ends.
    Plain,
    /// The sender copies payload into the kernel; the receiver discards it in the kernel (`MSG_TRUNC`).
    Trunc,
    /// The sender passes payload to the kernel without copying it; the receiver discards it in the kernel.
    Splice,
    /// A method that only a newer version defines.
    #[serde(other)]
    Unknown,
}

impl DataPathWish {
    /// Whether each end may choose how it moves payload.
    pub fn is_auto(&self) -> bool {
        *self == Self::Auto
    }
}

/// The test of one session. A speed test is one session with all its phases; latency probes run throughout.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TestSpec {
    /// The engine that generates the load.
    #[schemars(with = "String")]
    pub engine: EngineId,
    /// How test data travels: inside TLS, or through temporary ports.
    pub data_mode: DataMode,
    /// The phases, in order; at most [`TestSpec::MAX_PHASES`].
    pub phases: Vec<PhaseSpec>,
    /// Streams per direction, 1 to [`TestSpec::MAX_STREAMS`].
    pub streams: u16,
    /// The congestion control at both ends; absent: the kernel's default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub congestion_control: Option<String>,
    /// The socket buffer size at both ends, in bytes; absent: the kernel's autotuning.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window_bytes: Option<u32>,
    /// Bytes per write to the kernel; absent: the engine's choice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub block_bytes: Option<u32>,
    /// The maximum segment size at both ends, in bytes; absent: derived from the path MTU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mss_bytes: Option<u16>,
    /// The DSCP (RFC 2474) of payload packets, both ways; absent: unmarked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dscp: Option<u8>,
    /// The rate limit of each stream, in bits per second of payload; 0: the engine searches for the highest rate;
    /// absent: the engine's choice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bitrate_bps: Option<u64>,
    /// The payload after which a direction ends, in bytes of all its streams together. A direction that moves less ends
    /// with the phase. Absent: the payload is not limited. Needs the feature
    /// [`Feature::DIRECTION_BYTES`](crate::feature::Feature).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub direction_bytes: Option<u64>,
    /// Whether the appliance may end a phase before its time. Needs the feature
    /// [`Feature::STOP_PHASE`](crate::feature::Feature).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub may_stop: bool,
    /// How both ends move payload.
    #[serde(default, skip_serializing_if = "DataPathWish::is_auto")]
    pub data_path: DataPathWish,
    /// Whether the receiver compares every byte with the expected pattern.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub verify_payload: bool,
    /// Whether datagrams above the path MTU are allowed (IP fragmentation).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub fragments: bool,
    /// Whether the reflector, after each phase, sends what its kernel recorded of the phase's streams. Needs the
    /// feature [`Feature::PHASE_DETAIL`](crate::feature::Feature).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub phase_detail: bool,
    /// The loss that a search for the highest rate accepts, in millionths of the datagrams; absent: the engine's
    /// choice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss_bound_ppm: Option<u32>,
    /// The features that the appliance's end of the engine supports, named by the engine, preferred first. The field is
    /// named `login_paddings` on the wire because login paddings were its first use.
    #[serde(default, rename = "login_paddings", skip_serializing_if = "Vec::is_empty")]
    pub engine_support: Vec<PeerText>,
    /// The interval between latency probes, in microseconds; 0: no probes.
    pub probe_interval_us: u32,
}

impl TestSpec {
    /// The maximum number of streams per direction.
    pub const MAX_STREAMS: u16 = 64;
    /// The largest socket buffer that can be requested, in bytes. The kernel may grant less.
    pub const MAX_WINDOW_BYTES: u32 = 512 << 20;
    /// The largest block (bytes per write to the kernel), in bytes.
    pub const MAX_BLOCK_BYTES: u32 = 1 << 20;
    /// The smallest maximum segment size that Linux accepts, in bytes.
    pub const MIN_MSS_BYTES: u16 = 88;
    /// The largest maximum segment size that Linux accepts, in bytes.
    pub const MAX_MSS_BYTES: u16 = 32_767;
    /// The lowest rate limit of a stream, in bits per second. At this rate a stream sends one small datagram per
    /// second.
    pub const MIN_BITRATE_BPS: u64 = 1_000;
    /// The default rate of a stream of datagrams, in bits per second: the same default as iperf3's.
    pub const DEFAULT_DATAGRAM_BPS: u64 = 1_000_000;
    /// The maximum number of phases of one session.
    pub const MAX_PHASES: usize = 16;
    /// The shortest interval between latency probes, in microseconds.
    pub const MIN_PROBE_INTERVAL_US: u32 = 1_000;
    /// The longest phase that can be requested. A reflector's limit is usually lower.
    pub const MAX_PHASE: Duration = Duration::from_secs(24 * 3600);

    /// A test with these phases, default options and no probes.
    pub fn new(engine: EngineId, data_mode: DataMode, phases: Vec<PhaseSpec>, streams: u16) -> Self {
        Self {
            engine,
            data_mode,
            phases,
            streams,
            congestion_control: None,
            window_bytes: None,
            block_bytes: None,
            mss_bytes: None,
            dscp: None,
            bitrate_bps: None,
            direction_bytes: None,
            may_stop: false,
            data_path: DataPathWish::Auto,
            verify_payload: false,
            fragments: false,
            phase_detail: false,
            loss_bound_ppm: None,
            engine_support: vec![],
            probe_interval_us: 0,
        }
    }

    /// Returns the spec that applies on a link whose ends have `features` in common. A field that needs any other
    /// feature gets its default value.
    #[must_use]
    pub fn with_features(self, features: &[Feature]) -> Self {
        let has = |name| Feature::is_in(name, features);
        Self {
            direction_bytes: self.direction_bytes.filter(|_| has(Feature::DIRECTION_BYTES)),
            may_stop: self.may_stop && has(Feature::STOP_PHASE),
            phase_detail: self.phase_detail && has(Feature::PHASE_DETAIL),
            ..self
        }
    }

    /// The total duration of all phases.
    pub fn duration(&self) -> Duration {
        self.phases.iter().map(PhaseSpec::duration).sum()
    }

    /// Checks the rules that hold at every reflector. A reflector's own limits are not checked here.
    pub fn check(&self) -> Result<(), BadSpec> {
        if self.phases.is_empty() || self.phases.len() > Self::MAX_PHASES {
            return Err(BadSpec::Phases);
        }
        if self.phases.iter().any(|phase| phase.load == Load::Unknown) {
            return Err(BadSpec::Load);
        }
        if self.phases.iter().any(|phase| phase.duration().is_zero() || phase.duration() > Self::MAX_PHASE) {
            return Err(BadSpec::Duration);
        }
        if self.streams == 0 || self.streams > Self::MAX_STREAMS {
            return Err(BadSpec::Streams);
        }
        if self.probe_interval_us != 0 && self.probe_interval_us < Self::MIN_PROBE_INTERVAL_US {
            return Err(BadSpec::ProbeInterval);
        }
        if self.window_bytes.is_some_and(|bytes| !(1024..=Self::MAX_WINDOW_BYTES).contains(&bytes)) {
            return Err(BadSpec::Window);
        }
        if self.block_bytes.is_some_and(|bytes| !(1..=Self::MAX_BLOCK_BYTES).contains(&bytes)) {
            return Err(BadSpec::Block);
        }
        if self.mss_bytes.is_some_and(|bytes| !(Self::MIN_MSS_BYTES..=Self::MAX_MSS_BYTES).contains(&bytes)) {
            return Err(BadSpec::Mss);
        }
        if self.dscp.is_some_and(|code_point| code_point > 63) {
            return Err(BadSpec::Dscp);
        }
        if self.bitrate_bps.is_some_and(|bps| bps != 0 && bps < Self::MIN_BITRATE_BPS) {
            return Err(BadSpec::Bitrate);
        }
        if self.direction_bytes == Some(0) {
            return Err(BadSpec::DirectionBytes);
        }
        if self.data_path == DataPathWish::Unknown {
            return Err(BadSpec::DataPath);
        }
        if self.loss_bound_ppm.is_some_and(|ppm| ppm >= 1_000_000) {
            return Err(BadSpec::LossBound);
        }
        let name_is_sane = |name: &String| {
            !name.is_empty()
                && name.len() < 16
                && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
        };
        if !self.congestion_control.iter().all(name_is_sane) {
            return Err(BadSpec::CongestionControl);
        }
        Ok(())
    }
}

/// Why a [`TestSpec`] is invalid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadSpec {
    /// The test has no phase, or too many phases.
    #[error("a test must have 1 to 16 phases")]
    Phases,
    /// A phase has a load that only a newer version defines.
    #[error("a phase has a load that this version does not support")]
    Load,
    /// A phase without duration, or longer than a day.
    #[error("a phase must last from 1 ms to 24 h")]
    Duration,
    /// The test has no stream, or too many streams.
    #[error("a test must have 1 to 64 streams per direction")]
    Streams,
    /// The test asks for probes less than a millisecond apart.
    #[error("latency probes must be at least 1 ms apart")]
    ProbeInterval,
    /// The requested socket buffer is outside the valid range.
    #[error("the socket buffer (--window) must be 1 KiB to 512 MiB")]
    Window,
    /// The block is empty or too large.
    #[error("the number of bytes per write (--length) must be 1 to 1048576 (1 MiB)")]
    Block,
    /// A segment size that Linux does not accept.
    #[error("the segment size (--set-mss) must be 88 to 32767 bytes")]
    Mss,
    /// The DSCP is not a code point (RFC 2474).
    #[error("a DSCP must be a number from 0 to 63")]
    Dscp,
    /// The rate limit of a stream is too low.
    #[error("the rate limit of a stream must be 0 or at least 1 kbit/s")]
    Bitrate,
    /// `direction_bytes` is 0.
    #[error("a direction must have at least 1 byte to send")]
    DirectionBytes,
    /// The test has a data path that only a newer version defines.
    #[error("the test has a data path that this version does not support")]
    DataPath,
    /// A loss bound of 100 % or more.
    #[error("a loss bound must be below 1 (100 %)")]
    LossBound,
    /// An invalid name of a congestion control.
    #[error("a congestion control's name must have 1 to 15 letters, digits, _ or -")]
    CongestionControl,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain() -> TestSpec {
        let phases = vec![PhaseSpec { load: Load::Download, duration_ms: 10_000 }];
        let spec = TestSpec::new(EngineId::try_from("tcp").unwrap(), DataMode::Tunneled, phases, 4);
        TestSpec { probe_interval_us: 10_000, ..spec }
    }

    #[test]
    fn fields_of_features_that_a_link_lacks_are_absent() {
        let whole = TestSpec { direction_bytes: Some(0), may_stop: true, phase_detail: true, ..plain() };
        assert_eq!(whole.clone().with_features(&Feature::own()), whole);
        assert_eq!(whole.clone().with_features(&[]), plain());
        let only = |name: &str| whole.clone().with_features(&[Feature::try_from(name.to_owned()).unwrap()]);
        assert_eq!(only(Feature::DIRECTION_BYTES), TestSpec { direction_bytes: Some(0), ..plain() });
        assert_eq!(only(Feature::STOP_PHASE), TestSpec { may_stop: true, ..plain() });
        assert_eq!(only(Feature::PHASE_DETAIL), TestSpec { phase_detail: true, ..plain() });
    }

    #[test]
    fn invalid_specs_are_refused_with_their_reason() {
        assert_eq!(plain().check(), Ok(()));
        assert_eq!(TestSpec { phases: vec![], ..plain() }.check(), Err(BadSpec::Phases));
        assert_eq!(TestSpec { streams: 65, ..plain() }.check(), Err(BadSpec::Streams));
        assert_eq!(TestSpec { direction_bytes: Some(0), ..plain() }.check(), Err(BadSpec::DirectionBytes));
        assert_eq!(TestSpec { probe_interval_us: 1, ..plain() }.check(), Err(BadSpec::ProbeInterval));
        assert_eq!(TestSpec { window_bytes: Some(0), ..plain() }.check(), Err(BadSpec::Window));
        assert_eq!(TestSpec { block_bytes: Some(u32::MAX), ..plain() }.check(), Err(BadSpec::Block));
        assert_eq!(TestSpec { mss_bytes: Some(40), ..plain() }.check(), Err(BadSpec::Mss));
        assert_eq!(TestSpec { dscp: Some(64), ..plain() }.check(), Err(BadSpec::Dscp));
        assert_eq!(TestSpec { bitrate_bps: Some(1), ..plain() }.check(), Err(BadSpec::Bitrate));
        assert_eq!(TestSpec { loss_bound_ppm: Some(1_000_000), ..plain() }.check(), Err(BadSpec::LossBound));
        let forged = Some("cubic\u{1b}[2J".to_owned());
        assert_eq!(TestSpec { congestion_control: forged, ..plain() }.check(), Err(BadSpec::CongestionControl));
    }

    #[test]
    fn an_unknown_mode_or_load_is_decoded() {
        let spec: TestSpec = serde_json::from_str(
            r#"{"engine":"warp","data_mode":"wormhole","phases":[{"load":"sideways","duration_ms":1}],"streams":1,"data_path":"teleport","probe_interval_us":0}"#,
        )
        .unwrap();
        let sane = TestSpec { phases: plain().phases, ..spec.clone() };
        assert_eq!(sane.check(), Err(BadSpec::DataPath));
        assert_eq!((spec.data_mode, spec.phases[0].load), (DataMode::Unknown, Load::Unknown));
        assert_eq!(spec.check(), Err(BadSpec::Load));
    }
}
