//! Every message of `pp-link/1`: one enum per direction. docs/protocol.md describes the messages, and a test compares
//! that document with this file. `vectors/` holds one recorded frame of each message; every later version must decode
//! these frames.

use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::PeerText;
use crate::admission::SessionId;
use crate::engine_terms::EngineTerms;
use crate::feature::Feature;
use crate::frame::{Bounded, TooMany};
use crate::measurement::{DatagramsSeen, HostFacts, PhaseTally, Sample};
use crate::pairing_code::Proof;
use crate::phase_detail::{MAX_DETAIL_SAMPLES, TcpSample};
use crate::test_spec::{DataMode, Direction, EngineId, TestSpec};

/// The protocol version that this code implements.
pub const PROTOCOL_VERSION: u16 = 1;

/// The maximum number of protocol versions in a `hello` or `pair`.
pub const MAX_VERSIONS: usize = 16;

/// The maximum number of data modes in a `welcome`.
pub const MAX_DATA_MODES: usize = 16;

/// The maximum number of engines in a `welcome`.
pub const MAX_ENGINES: usize = 32;

/// The maximum number of features in a `hello` or `welcome`.
pub const MAX_FEATURES: usize = 32;

/// The maximum number of entries of [`TestSpec::engine_support`] in a `request`. The field is named `login_paddings` on
/// the wire.
pub const MAX_ENGINE_SUPPORT: usize = 8;

/// The maximum number of samples in one [`ToAppliance::Samples`].
pub const MAX_SAMPLES: usize = 64;

/// How often each end of a link sends a message, so that the other end can detect a dead link.
pub const HEARTBEAT: Duration = Duration::from_secs(1);

/// A sender pauses when no connection of its session has received anything for this long.
pub const PAUSE_AFTER_SILENCE: Duration = Duration::from_secs(1);

/// A session ends when none of its connections has received anything for this long.
pub const END_AFTER_SILENCE: Duration = Duration::from_secs(10);

/// How often each end of a link with a monitor session sends a ping. Pings are rare, because the session's probes
/// already show that the path is alive.
pub const MONITOR_PING: Duration = Duration::from_secs(15);

/// A monitor session ends when nothing was received on its link and no probe arrived for this long.
pub const END_MONITOR_AFTER_SILENCE: Duration = Duration::from_secs(45);

/// The maximum number of probes of a monitor session that a reflector answers in a second.
pub const MAX_MONITOR_PROBES_PER_S: u8 = 5;

/// Messages from an appliance to a reflector.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ToReflector {
    /// The first message of a paired appliance.
    Hello {
        /// The protocol versions that the appliance supports, preferred first.
        versions: Vec<u16>,
        /// The version of the appliance's program.
        software: PeerText,
        /// The features that the appliance supports; at most [`MAX_FEATURES`].
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        features: Vec<Feature>,
    },
    /// The first message of an unpaired appliance that requests a pairing. It proves that the appliance knows the
    /// secret of the pairing code.
    Pair {
        /// The protocol versions that the appliance supports, preferred first.
        versions: Vec<u16>,
        /// An HMAC over this connection's TLS exporter value and both ends' keys.
        proof: Proof,
        /// The appliance's name.
        name: PeerText,
    },
    /// Requests a session.
    Request {
        /// The requested test.
        spec: TestSpec,
        /// Whether the reflector may queue the request.
        wait: bool,
    },
    /// Requests a monitor session. Needs the feature `monitor`. The answer is [`ToAppliance::MonitorGranted`] or
    /// [`ToAppliance::Denied`].
    Monitor,
    /// Withdraws a request that is not granted yet, because the user cancelled the wait.
    Withdraw,
    /// Reports that all streams of a phase are connected, so the phase can begin.
    Start {
        /// The index of the phase in [`TestSpec::phases`], from 0.
        phase: u8,
    },
    /// Ends a running phase before its time. Needs the feature `stop_phase` and a session whose spec has `may_stop`.
    /// The answer is [`ToAppliance::PhaseDone`].
    StopPhase {
        /// The index of the phase in [`TestSpec::phases`], from 0.
        phase: u8,
    },
    /// Ends the session.
    Finish,
    /// Requests the facts about the reflector's host. The answer is [`ToAppliance::Facts`].
    Facts,
    /// Asks for the reflector's view of the path. Needs the feature `path_facts`. The answer is
    /// [`ToAppliance::PathFacts`].
    PathFacts,
    /// Asks for a [`ToAppliance::Pong`].
    Ping,
    /// The answer to [`ToAppliance::Ping`].
    Pong,
    /// The appliance closes the link.
    Close {
        /// The reason, for the reflector's log.
        reason: PeerText,
    },
    /// A message that only a newer version defines; ignored.
    #[serde(other)]
    Unknown,
}

/// Messages from a reflector to an appliance.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ToAppliance {
    /// The answer to [`ToReflector::Hello`].
    Welcome(Welcome),
    /// The answer to every first message of an unpaired client, except a valid [`ToReflector::Pair`].
    NotPaired,
    /// The answer to a valid [`ToReflector::Pair`]. The reflector has already stored the pairing on disk.
    Paired {
        /// The reflector's own HMAC, which proves that the reflector, too, knows the secret of the pairing code.
        proof: Proof,
        /// The reflector's name.
        name: PeerText,
    },
    /// The reflector has queued the request.
    Queued {
        /// The place of the request in the queue, from 1.
        place: u32,
        /// The expected waiting time, in milliseconds.
        expected_wait_ms: u64,
    },
    /// The session is granted.
    Granted(Grant),
    /// The monitor session is granted. Needs the feature `monitor`.
    MonitorGranted(MonitorGrant),
    /// The session is not granted.
    Denied(Denial),
    /// The reflector begins the phase now.
    Started {
        /// The index of the phase in [`TestSpec::phases`], from 0.
        phase: u8,
    },
    /// The payload that the reflector counts while a phase runs; at most [`MAX_SAMPLES`] samples a message.
    Samples {
        /// The index of the phase in [`TestSpec::phases`], from 0.
        phase: u8,
        /// The direction of the counted payload. The samples of an upload count the bytes that the reflector received,
        /// and the result is computed from them. The samples of a download count the bytes that the reflector sent.
        direction: Direction,
        /// The samples, ordered by time.
        samples: Vec<Sample>,
    },
    /// What the reflector's kernel recorded of the streams of a phase that has ended; at most [`MAX_DETAIL_SAMPLES`]
    /// samples a message. Sent before the [`Self::PhaseDone`] of that phase, and only if the request asks for these
    /// samples ([`TestSpec::phase_detail`]).
    PhaseDetail {
        /// The index of the phase in [`TestSpec::phases`], from 0.
        phase: u8,
        /// The direction of the sampled streams.
        direction: Direction,
        /// The samples, ordered by time.
        samples: Vec<TcpSample>,
    },
    /// The phase is over at the reflector.
    PhaseDone {
        /// The index of the phase in [`TestSpec::phases`], from 0.
        phase: u8,
        /// What the reflector counted in the phase.
        tally: Box<PhaseTally>,
    },
    /// The reflector has ended the session.
    Ended {
        /// Why the session ended.
        reason: EndReason,
        /// A sentence for the user that explains `reason`.
        detail: PeerText,
        /// The reflector's counts of the session's datagrams; reflectors of earlier versions do not send them.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        datagrams: Option<DatagramsSeen>,
    },
    /// The facts of the reflector's host.
    Facts(HostFacts),
    /// The answer to [`ToReflector::PathFacts`].
    PathFacts(PathFacts),
    /// Asks for a [`ToReflector::Pong`].
    Ping,
    /// The answer to [`ToReflector::Ping`].
    Pong,
    /// The reflector closes the link.
    Close {
        /// Why the reflector closes the link.
        reason: CloseReason,
        /// A sentence for the user that explains `reason`.
        detail: PeerText,
    },
    /// A message that only a newer version defines; ignored.
    #[serde(other)]
    Unknown,
}

impl Bounded for ToReflector {
    fn check(&self) -> Result<(), TooMany> {
        match self {
            Self::Hello { versions, features, .. } => {
                at_most("versions", versions, MAX_VERSIONS)?;
                at_most("features", features, MAX_FEATURES)
            }
            Self::Pair { versions, .. } => at_most("versions", versions, MAX_VERSIONS),
            // An invalid spec is answered with a denial. Only lists that are longer than those of any version are
            // refused here.
            Self::Request { spec, .. } => {
                at_most("phases", &spec.phases, MAX_PHASES_READ)?;
                at_most("login_paddings", &spec.engine_support, MAX_ENGINE_SUPPORT)
            }
            Self::Monitor
            | Self::Withdraw
            | Self::Start { .. }
            | Self::StopPhase { .. }
            | Self::Finish
            | Self::Facts
            | Self::PathFacts
            | Self::Ping
            | Self::Pong
            | Self::Close { .. }
            | Self::Unknown => Ok(()),
        }
    }
}

impl Bounded for ToAppliance {
    fn check(&self) -> Result<(), TooMany> {
        match self {
            Self::Welcome(welcome) => {
                at_most("data_modes", &welcome.data_modes, MAX_DATA_MODES)?;
                at_most("engines", &welcome.engines, MAX_ENGINES)?;
                at_most("features", &welcome.features, MAX_FEATURES)
            }
            Self::Samples { samples, .. } => at_most("samples", samples, MAX_SAMPLES),
            Self::PhaseDetail { samples, .. } => at_most("samples", samples, MAX_DETAIL_SAMPLES),
            Self::NotPaired
            | Self::Paired { .. }
            | Self::Queued { .. }
            | Self::Granted(_)
            | Self::MonitorGranted(_)
            | Self::Denied(_)
            | Self::Started { .. }
            | Self::PhaseDone { .. }
            | Self::Ended { .. }
            | Self::Facts(_)
            | Self::PathFacts(_)
            | Self::Ping
            | Self::Pong
            | Self::Close { .. }
            | Self::Unknown => Ok(()),
        }
    }
}

/// The maximum number of phases in a request that can be decoded. The limit is above `TestSpec::MAX_PHASES`, so that a
/// request with a few phases too many gets a denial. A request above this limit closes the link.
const MAX_PHASES_READ: usize = 4 * TestSpec::MAX_PHASES;

fn at_most<T>(list: &'static str, entries: &[T], most: usize) -> Result<(), TooMany> {
    if entries.len() > most { Err(TooMany { list, most }) } else { Ok(()) }
}

/// The reflector's view of the path of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathFacts {
    /// The source address and port of the link, as the reflector sees them. Behind NAT they differ from the appliance's
    /// own.
    pub observed_address: SocketAddr,
    /// The maximum segment size of the link at the reflector's kernel: the largest TCP payload per packet, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_segment_bytes: Option<u32>,
}

/// The reflector's capabilities, sent to paired appliances only.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Welcome {
    /// The protocol version that both ends use.
    pub version: u16,
    /// The version of the reflector's program.
    pub software: PeerText,
    /// The reflector's name.
    pub name: PeerText,
    /// The data modes that the reflector offers.
    pub data_modes: Vec<DataMode>,
    /// The engines that the reflector offers.
    pub engines: Vec<EngineId>,
    /// The maximum number of streams per direction.
    pub max_streams: u16,
    /// The maximum duration of a session, all phases together, in milliseconds.
    pub max_duration_ms: u64,
    /// The features that the reflector supports; at most [`MAX_FEATURES`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub features: Vec<Feature>,
}

/// A granted session.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Grant {
    /// The id of the session. Both ends derive the keys of the session's data from this id and the TLS exporter of the
    /// link.
    pub session: SessionId,
    /// The longest time that the session can last, in milliseconds from now. The field is a duration, not a time of
    /// day, because the clocks of the two ends may differ.
    pub expires_in_ms: u64,
    /// The port for the session's data, TCP and UDP; absent: the port of the link.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_port: Option<u16>,
    /// Whether the reflector answers latency probes over UDP on the session's data port.
    pub udp: bool,
    /// The engine's own terms; absent if the engine has none. The field is named `login` on the wire because a login
    /// was its first use.
    #[serde(default, rename = "login", skip_serializing_if = "Option::is_none")]
    pub engine_terms: Option<EngineTerms>,
}

/// A granted monitor session.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MonitorGrant {
    /// The id of the session. Both ends derive the keys of the session's probes from this id and the TLS exporter of
    /// the link.
    pub session: SessionId,
    /// The maximum number of probes that the reflector answers in a second.
    pub max_probes_per_s: u8,
}

/// A refused request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Denial {
    /// The rule that refused the request.
    pub reason: DenialReason,
    /// A sentence for the user that explains the refusal, for example with the limit that the request exceeds.
    pub detail: PeerText,
    /// When to retry, in milliseconds from now; absent if the same request will always be refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
}

/// The rule that refused a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DenialReason {
    /// The request is invalid.
    BadRequest,
    /// The reflector does not offer the engine.
    EngineNotOffered,
    /// The reflector does not offer the data mode.
    ModeNotOffered,
    /// The session would be longer than the reflector's limit.
    TooLong,
    /// The request has more streams than the reflector's limit.
    TooManyStreams,
    /// The link already has a session or a queued request.
    AlreadyAsked,
    /// Every slot for a session is in use, and the appliance requested not to be queued.
    Busy,
    /// The queue is full.
    QueueFull,
    /// The quota of tests per hour is used up.
    TestsPerHour,
    /// The quota of bytes per day is used up, for this peer or for all peers.
    BytesPerDay,
    /// Every port of the data port range is in use.
    NoPort,
    /// The limit of monitor sessions is reached, for this device or for all devices.
    TooManyMonitors,
    /// The reflector is shutting down.
    Draining,
    /// The reflector cannot write its audit log or its state, and grants no session until it can.
    Faulted,
    /// A reason that only a newer version defines.
    #[serde(other)]
    Unknown,
}

impl DenialReason {
    /// Whether the reflector may grant the same request later (exit code 5). Otherwise the reflector will always refuse
    /// the same request (exit code 4).
    pub fn is_worth_a_retry(self) -> bool {
        use DenialReason::{Busy, BytesPerDay, Draining, Faulted, NoPort, QueueFull, TestsPerHour, TooManyMonitors};
        matches!(self, Busy | QueueFull | TestsPerHour | BytesPerDay | NoPort | TooManyMonitors | Draining | Faulted)
    }
}

/// Why a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndReason {
    /// The appliance sent [`ToReflector::Finish`].
    Finished,
    /// The session reached its deadline.
    Deadline,
    /// Nothing was received from the appliance for [`END_AFTER_SILENCE`], or for [`END_MONITOR_AFTER_SILENCE`] in a
    /// monitor session.
    Silence,
    /// The first phase did not begin in time.
    NotStarted,
    /// The link closed.
    LinkClosed,
    /// The quota of bytes per day was used up during the session.
    BytesPerDay,
    /// The reflector removed its pairing with the appliance.
    PeerRemoved,
    /// The reflector shut down.
    Shutdown,
    /// An error occurred at the reflector.
    Failed,
    /// A reason that only a newer version defines.
    #[serde(other)]
    Unknown,
}

/// Why a reflector closes a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CloseReason {
    /// The two ends have no protocol version in common.
    Version,
    /// The reflector received bytes that are not a message of this protocol.
    Protocol,
    /// The reflector removed its pairing with the appliance.
    PeerRemoved,
    /// The reflector is shutting down.
    Shutdown,
    /// A reason that only a newer version defines.
    #[serde(other)]
    Unknown,
}

/// The protocol version to use with an end that offers `theirs`, or `None` if no version is common to both.
pub fn common_version(theirs: &[u16]) -> Option<u16> {
    theirs.contains(&PROTOCOL_VERSION).then_some(PROTOCOL_VERSION)
}
