//! Every message of `pp-link/1`: one enum per direction. docs/protocol.md describes them and is checked against this
//! file; `vectors/` holds one recorded frame of each that must decode for ever.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::PeerText;
use crate::admission::{LoginTerms, SessionId};
use crate::feature::Feature;
use crate::frame::{Bounded, TooMany};
use crate::measurement::{HostFacts, PhaseTally, Sample};
use crate::pairing_code::Proof;
use crate::test_spec::{DataMode, Direction, EngineId, TestSpec};

/// The version of the protocol that this code speaks.
pub const PROTOCOL_VERSION: u16 = 1;

/// The most protocol versions one end offers.
pub const MAX_VERSIONS: usize = 16;

/// The most data modes a reflector names.
pub const MAX_DATA_MODES: usize = 16;

/// The most engines a reflector names.
pub const MAX_ENGINES: usize = 32;

/// The most features one end names.
pub const MAX_FEATURES: usize = 32;

/// The most paddings of logins an appliance names.
pub const MAX_LOGIN_PADDINGS: usize = 8;

/// The most samples one [`ToAppliance::Samples`] carries.
pub const MAX_SAMPLES: usize = 64;

/// How often each end of a link says something, so that the other knows that it lives.
pub const HEARTBEAT: Duration = Duration::from_secs(1);

/// After this long with nothing heard on any connection of a session, sending pauses.
pub const PAUSE_AFTER_SILENCE: Duration = Duration::from_secs(1);

/// After this long with nothing heard on any connection of a session, the session is over.
pub const END_AFTER_SILENCE: Duration = Duration::from_secs(10);

/// What an appliance says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ToReflector {
    /// The first message of a paired appliance.
    Hello {
        /// The protocol versions it speaks, most wanted first.
        versions: Vec<u16>,
        /// The program's version.
        software: PeerText,
        /// What it can do beyond the first version of this protocol; at most [`MAX_FEATURES`].
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        features: Vec<Feature>,
    },
    /// The first message of one that wants to be paired: it proves that it knows the code's secret.
    Pair {
        /// The protocol versions it speaks, most wanted first.
        versions: Vec<u16>,
        /// HMAC over this connection's exporter value and both keys.
        proof: Proof,
        /// What it calls itself.
        name: PeerText,
    },
    /// Asks for a session.
    Request {
        /// What it is to do.
        spec: TestSpec,
        /// Whether it would wait its turn.
        wait: bool,
    },
    /// Takes back a request that is not granted yet, because the user cancelled the wait.
    Withdraw,
    /// All streams of a phase stand; let it begin.
    Start {
        /// Which of the spec's phases, from 0.
        phase: u8,
    },
    /// The session is over for the appliance.
    Finish,
    /// Asks how the reflector's host is.
    Facts,
    /// Are you there?
    Ping,
    /// I am.
    Pong,
    /// The appliance says goodbye.
    Close {
        /// Why, for the reflector's log.
        reason: PeerText,
    },
    /// A message that a newer appliance knows and we don't; ignored.
    #[serde(other)]
    Unknown,
}

/// What a reflector says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ToAppliance {
    /// The answer to [`ToReflector::Hello`].
    Welcome(Welcome),
    /// The one answer that a stranger gets, whatever it said.
    NotPaired,
    /// The answer to a right [`ToReflector::Pair`]: the pairing is on disk.
    Paired {
        /// HMAC of the other direction: the reflector knows the secret as well.
        proof: Proof,
        /// What the reflector calls itself.
        name: PeerText,
    },
    /// The request waits its turn.
    Queued {
        /// How many stand before it, plus one.
        place: u32,
        /// How long that may take, in milliseconds.
        expected_wait_ms: u64,
    },
    /// The session is granted.
    Granted(Grant),
    /// The session is not granted.
    Denied(Denial),
    /// The phase begins now.
    Started {
        /// Which of the spec's phases, from 0.
        phase: u8,
    },
    /// What the reflector received of an upload, or sent of a download, as it goes; at most [`MAX_SAMPLES`] a message.
    Samples {
        /// Which of the spec's phases, from 0.
        phase: u8,
        /// Upload: what was received, which is what counts. Download: what was sent, by the sender's own clock.
        direction: Direction,
        /// The readings, in order.
        samples: Vec<Sample>,
    },
    /// A phase is over at the reflector.
    PhaseDone {
        /// Which of the spec's phases, from 0.
        phase: u8,
        /// What the reflector counted.
        tally: PhaseTally,
    },
    /// The session is over for the reflector.
    Ended {
        /// Why.
        reason: EndReason,
        /// In the reflector's words.
        detail: PeerText,
    },
    /// How the reflector's host is.
    Facts(HostFacts),
    /// Are you there?
    Ping,
    /// I am.
    Pong,
    /// The reflector says goodbye and closes the link.
    Close {
        /// Why.
        reason: CloseReason,
        /// In the reflector's words.
        detail: PeerText,
    },
    /// A message that a newer reflector knows and we don't; ignored.
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
            // What is wrong with a spec is told in a denial; here only nothing gets in that no version would ask.
            Self::Request { spec, .. } => {
                at_most("phases", &spec.phases, MAX_PHASES_READ)?;
                at_most("login_paddings", &spec.login_paddings, MAX_LOGIN_PADDINGS)
            }
            Self::Withdraw
            | Self::Start { .. }
            | Self::Finish
            | Self::Facts
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
            Self::NotPaired
            | Self::Paired { .. }
            | Self::Queued { .. }
            | Self::Granted(_)
            | Self::Denied(_)
            | Self::Started { .. }
            | Self::PhaseDone { .. }
            | Self::Ended { .. }
            | Self::Facts(_)
            | Self::Ping
            | Self::Pong
            | Self::Close { .. }
            | Self::Unknown => Ok(()),
        }
    }
}

/// The most phases that are read at all, so that one too many is a denial and not a broken link.
const MAX_PHASES_READ: usize = 4 * TestSpec::MAX_PHASES;

fn at_most<T>(list: &'static str, entries: &[T], most: usize) -> Result<(), TooMany> {
    if entries.len() > most { Err(TooMany { list, most }) } else { Ok(()) }
}

/// What a paired appliance may know of the reflector.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Welcome {
    /// The protocol version that both will speak.
    pub version: u16,
    /// The program's version.
    pub software: PeerText,
    /// What the reflector calls itself.
    pub name: PeerText,
    /// The data modes it offers.
    pub data_modes: Vec<DataMode>,
    /// The engines it offers.
    pub engines: Vec<EngineId>,
    /// The most streams per direction.
    pub max_streams: u16,
    /// The longest session, all phases together, in milliseconds.
    pub max_duration_ms: u64,
    /// What it can do beyond the first version of this protocol; at most [`MAX_FEATURES`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub features: Vec<Feature>,
}

/// A granted session.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Grant {
    /// Its id; the keys of its data derive from it and the link.
    pub session: SessionId,
    /// How long it lasts at most, in milliseconds from now; never a wall-clock time.
    pub expires_in_ms: u64,
    /// The port that its data goes to, TCP and UDP; absent: the port that was dialled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_port: Option<u16>,
    /// Whether latency probes over UDP are answered there.
    pub udp: bool,
    /// How the session's login has to be encrypted, where the engine has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub login: Option<LoginTerms>,
}

/// A session that is not granted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Denial {
    /// Which rule said no.
    pub reason: DenialReason,
    /// In the reflector's words, with the limit.
    pub detail: PeerText,
    /// When asking again makes sense, in milliseconds from now; absent where it never does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
}

/// Which rule said no.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DenialReason {
    /// The request makes no sense.
    BadRequest,
    /// The engine is not offered here.
    EngineNotOffered,
    /// The data mode is not offered here.
    ModeNotOffered,
    /// Longer than a session may last.
    TooLong,
    /// More streams than a session may have.
    TooManyStreams,
    /// This link already has a session or a request.
    AlreadyAsked,
    /// Every slot is in use, and the request would not wait.
    Busy,
    /// The queue is full.
    QueueFull,
    /// Enough tests for this hour.
    TestsPerHour,
    /// Enough bytes for this day, for this peer or for all.
    BytesPerDay,
    /// Every port of the range is in use.
    NoPort,
    /// The reflector is shutting down.
    Draining,
    /// The reflector can't write its audit log or its state, and grants nothing until it can.
    Faulted,
    /// A reason that a newer reflector knows and we don't.
    #[serde(other)]
    Unknown,
}

impl DenialReason {
    /// Whether the same request may be granted later: exit code 5 and not 4.
    pub fn is_worth_a_retry(self) -> bool {
        use DenialReason::{Busy, BytesPerDay, Draining, Faulted, NoPort, QueueFull, TestsPerHour};
        matches!(self, Busy | QueueFull | TestsPerHour | BytesPerDay | NoPort | Draining | Faulted)
    }
}

/// Why a session is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndReason {
    /// The appliance said that it is done.
    Finished,
    /// Its time was over.
    Deadline,
    /// Nothing was heard of it for too long.
    Silence,
    /// Its first phase did not begin in time.
    NotStarted,
    /// Its link closed.
    LinkClosed,
    /// The day's bytes were used up while it ran.
    BytesPerDay,
    /// Its peer was removed.
    PeerRemoved,
    /// The reflector shut down.
    Shutdown,
    /// Something at the reflector failed.
    Failed,
    /// A reason that a newer reflector knows and we don't.
    #[serde(other)]
    Unknown,
}

/// Why a reflector closes a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CloseReason {
    /// No protocol version in common.
    Version,
    /// What came is no message of this protocol.
    Protocol,
    /// The peer was removed.
    PeerRemoved,
    /// The reflector shuts down.
    Shutdown,
    /// A reason that a newer reflector knows and we don't.
    #[serde(other)]
    Unknown,
}

/// The protocol version to speak with someone who offers `theirs`; `None` where there is none in common.
pub fn common_version(theirs: &[u16]) -> Option<u16> {
    theirs.contains(&PROTOCOL_VERSION).then_some(PROTOCOL_VERSION)
}
