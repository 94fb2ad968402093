//! The events of the audit log: decisions and refusals as plain values. `audit` writes them.

use std::net::IpAddr;

use paramedic_link::message::{DenialReason, EndReason};
use paramedic_link::test_spec::{DataMode, EngineId};
use paramedic_link::{EndpointId, PeerText, SessionId};
use serde::{Deserialize, Serialize};

/// One audit event. Serialised as an object whose `event` names it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[expect(missing_docs, reason = "the names of some fields need no comment")]
pub enum AuditEvent {
    /// The reflector began to serve.
    Started {
        /// The program's version.
        version: String,
        /// Its own identity.
        endpoint_id: EndpointId,
    },
    /// The reflector stopped serving.
    Stopped,
    /// A pairing code was opened; the code itself is never logged.
    CodeOpened {
        /// How long it is valid, in seconds.
        ttl_s: u64,
    },
    /// A pairing code was closed without use.
    CodeClosed {
        /// `expired` or `revoked`.
        why: String,
    },
    /// A peer was paired.
    PeerAdded {
        peer: EndpointId,
        /// Its name here.
        name: PeerText,
        /// `code`, `hand` or `config`.
        by: String,
    },
    /// A peer was removed.
    PeerRemoved { peer: EndpointId },
    /// A peer has a new name.
    PeerRenamed {
        peer: EndpointId,
        /// Its name from now on.
        name: PeerText,
    },
    /// A link was opened.
    LinkOpened { peer: EndpointId, from: IpAddr },
    /// A session was granted.
    SessionGranted {
        session: SessionId,
        peer: EndpointId,
        /// The engine that makes the load.
        engine: EngineId,
        /// The way its data takes.
        data_mode: DataMode,
        /// Its port, in direct mode.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        port: Option<u16>,
        /// How long it lasts at most, in milliseconds.
        expires_in_ms: u64,
    },
    /// A request is queued.
    SessionQueued {
        peer: EndpointId,
        /// Its place when it came, from 1.
        place: u32,
    },
    /// A request was not granted.
    SessionDenied {
        peer: EndpointId,
        /// The rule that denied it.
        reason: DenialReason,
    },
    /// A session was taken back before its appliance was answered: something could not be claimed or recorded, or the
    /// request was withdrawn. It is not charged.
    SessionUndone { session: SessionId, peer: EndpointId },
    /// A session is over.
    SessionEnded {
        session: SessionId,
        peer: EndpointId,
        reason: EndReason,
        /// Payload bytes charged.
        bytes: u64,
        /// How long it lasted, in milliseconds.
        elapsed_ms: u64,
    },
    /// A port of the range was skipped because another program holds it.
    PortHeld {
        port: u16,
        /// The peer whose request met it.
        peer: EndpointId,
    },
    /// A connection was refused; written in full up to a rate, then counted.
    Refused {
        from: IpAddr,
        reason: RefusalReason,
        /// The key that was shown, where one was.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        peer: Option<EndpointId>,
    },
    /// More refusals of one reason in the minute before than are written in full.
    RefusedMore { reason: RefusalReason, count: u64 },
    /// More lines of one peer in the minute before than are written in full: links, and requests that were not granted.
    MoreOfPeer { peer: EndpointId, count: u64 },
    /// Leases that a crash left open were charged in full.
    LeasesCharged {
        /// How many sessions.
        sessions: u64,
        /// Payload bytes.
        bytes: u64,
    },
    /// The audit log begins here: the lines before this one were moved away.
    LogBegunAnew {
        /// The number of the last line that was acknowledged before.
        after: u64,
    },
    /// The unacknowledged tail of a segment was cut off after a crash, or after a failed write.
    TailRepaired {
        segment: String,
        /// Bytes that were cut.
        bytes: u64,
    },
    /// The oldest files of a chain of the audit log were deleted to keep within `audit_max_size`.
    LogTrimmed {
        chain: Chain,
        /// The number of its first line that is kept.
        first_line: u64,
        /// The hash of the line before that one.
        hash_before: String,
    },
}

/// The two hash chains of the audit log. Each has its own files, numbers and size limit, so that lines that clients
/// cause at will never displace the lines that matter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Chain {
    /// Starts and stops, pairings and removals, grants and ends: bounded by the operator and by quotas.
    Main,
    /// What an unauthenticated client or a paired peer can cause at will.
    Refusals,
}

impl AuditEvent {
    /// The chain that this event's line belongs to.
    pub fn chain(&self) -> Chain {
        match self {
            AuditEvent::LinkOpened { .. }
            | AuditEvent::SessionQueued { .. }
            | AuditEvent::SessionDenied { .. }
            | AuditEvent::SessionUndone { .. }
            | AuditEvent::PortHeld { .. }
            | AuditEvent::Refused { .. }
            | AuditEvent::RefusedMore { .. }
            | AuditEvent::MoreOfPeer { .. } => Chain::Refusals,
            AuditEvent::Started { .. }
            | AuditEvent::Stopped
            | AuditEvent::CodeOpened { .. }
            | AuditEvent::CodeClosed { .. }
            | AuditEvent::PeerAdded { .. }
            | AuditEvent::PeerRemoved { .. }
            | AuditEvent::PeerRenamed { .. }
            | AuditEvent::SessionGranted { .. }
            | AuditEvent::SessionEnded { .. }
            | AuditEvent::LeasesCharged { .. }
            | AuditEvent::LogBegunAnew { .. }
            | AuditEvent::TailRepaired { .. }
            | AuditEvent::LogTrimmed { .. } => Chain::Main,
        }
    }
}

/// Declares the reasons with their words in one list.
macro_rules! refusal_reasons {
    ($($(#[$doc:meta])+ $variant:ident => $word:literal),+ $(,)?) => {
        /// Why a connection was refused.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        pub enum RefusalReason {
            $($(#[$doc])+ #[serde(rename = $word)] $variant),+
        }

        impl RefusalReason {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// The word for it in the audit log and in `status`.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $word),+
                }
            }
        }
    };
}

refusal_reasons! {
    /// A local user who may not use the admin socket.
    AdminUser => "admin_user",
    /// A data connection that belongs to no session of its sender.
    BadPreamble => "bad_preamble",
    /// The host has no descriptor left for a connection.
    Descriptors => "descriptors",
    /// No TLS handshake, or none of this protocol.
    Handshake => "handshake",
    /// All places were taken, and it made way for a newer connection.
    MadeWay => "made_way",
    /// Events that the audit log had no room for; only counted.
    NotNoted => "not_noted",
    /// A key that is not paired.
    NotPaired => "not_paired",
    /// A right proof, and a pairing that could not be written: the code may be used again.
    NotWritten => "not_written",
    /// What came is no message of this protocol.
    Protocol => "protocol",
    /// It connected, or was a link, and fell silent.
    Silent => "silent",
    /// It did not finish its handshake or first message in time.
    Slow => "slow",
    /// Too many connections of its prefix within a second.
    TooFast => "too_fast",
    /// Too many connections of its prefix are not authenticated yet.
    TooMany => "too_many",
    /// Too many links of one device.
    TooManyLinks => "too_many_links",
    /// A proof that does not fit the pairing code.
    WrongProof => "wrong_proof",
}

impl std::fmt::Display for RefusalReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}
