//! The events of the audit log: decisions and refusals as plain values. `audit` writes them.

use std::net::IpAddr;

use paramedic_link::message::{DenialReason, EndReason};
use paramedic_link::test_spec::{DataMode, EngineId};
use paramedic_link::{EndpointId, PeerText, SessionId};
use serde::{Deserialize, Serialize};

/// One audit event. Serialised as an object with its name in `event`.
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
        /// Its name at this reflector.
        name: PeerText,
        /// `code`, `hand` or `config`.
        by: String,
    },
    /// A peer was removed.
    PeerRemoved { peer: EndpointId },
    /// A peer has a new name.
    PeerRenamed {
        peer: EndpointId,
        /// Its new name.
        name: PeerText,
    },
    /// A link was opened.
    LinkOpened { peer: EndpointId, from: IpAddr },
    /// A session was granted.
    SessionGranted {
        session: SessionId,
        peer: EndpointId,
        /// The engine that loads the path.
        engine: EngineId,
        /// How its data travels.
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
        /// Its initial place in the queue, from 1.
        place: u32,
    },
    /// A request was not granted.
    SessionDenied {
        peer: EndpointId,
        /// The rule that denied it.
        reason: DenialReason,
    },
    /// A session was taken back before its appliance was answered: a resource could not be claimed, the grant could not
    /// be recorded, or the request was withdrawn. It is not charged.
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
    /// A monitor session was granted.
    MonitorGranted { session: SessionId, peer: EndpointId },
    /// A request for a monitor session was not granted.
    MonitorDenied {
        peer: EndpointId,
        /// The rule that denied it.
        reason: DenialReason,
    },
    /// A monitor session is over.
    MonitorEnded {
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
        /// The peer whose request needed the port.
        peer: EndpointId,
    },
    /// A connection was refused. Above a certain rate, refusals are only counted.
    Refused {
        from: IpAddr,
        reason: RefusalReason,
        /// The key that the client presented, if any.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        peer: Option<EndpointId>,
    },
    /// How many refusals of one reason were only counted in the last minute.
    RefusedMore { reason: RefusalReason, count: u64 },
    /// How many lines of one peer were only counted in the last minute: links, requests that were not
    /// granted, and monitor sessions.
    MoreOfPeer { peer: EndpointId, count: u64 },
    /// Leases that a crash left open were charged: the recorded use, plus the surge.
    LeasesCharged {
        /// The number of these sessions.
        sessions: u64,
        /// The payload bytes that were charged.
        bytes: u64,
    },
    /// The audit log begins here: the lines before this one were moved away.
    LogBegunAnew {
        /// The number of the last line that was acknowledged before this one.
        after: u64,
    },
    /// The unacknowledged tail of a segment was cut after a crash or a failed write.
    TailRepaired {
        segment: String,
        /// Bytes that were cut.
        bytes: u64,
    },
    /// The oldest files of a chain of the audit log were deleted to keep within `audit_max_size`.
    LogTrimmed {
        chain: Chain,
        /// The number of the chain's first remaining line.
        first_line: u64,
        /// The hash of the line before that one.
        hash_before: String,
    },
}

/// The two hash chains of the audit log. Each has its own files, numbers and size limit, so that lines that clients can
/// cause at will never displace the important lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Chain {
    /// Starts and stops, pairings and removals, grants and ends: bounded by the operator and by quotas.
    Main,
    /// Events that an unauthenticated client or a paired peer can cause without limit.
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
            // A device may begin and end them as often as it opens links.
            | AuditEvent::MonitorGranted { .. }
            | AuditEvent::MonitorDenied { .. }
            | AuditEvent::MonitorEnded { .. }
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

/// Declares the reasons with their names in one list.
macro_rules! refusal_reasons {
    ($($(#[$doc:meta])+ $variant:ident => $word:literal),+ $(,)?) => {
        /// Why a connection was refused.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        pub enum RefusalReason {
            $($(#[$doc])+ #[serde(rename = $word)] $variant),+
        }

        impl RefusalReason {
            /// All reasons.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// The name of the reason in the audit log and in `status`.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $word),+
                }
            }
        }
    };
}

refusal_reasons! {
    /// A local user without permission connected to the admin socket.
    AdminUser => "admin_user",
    /// A data connection did not belong to a session of its sender.
    BadPreamble => "bad_preamble",
    /// The host has no descriptor left for a connection.
    Descriptors => "descriptors",
    /// The TLS handshake failed or did not negotiate this protocol.
    Handshake => "handshake",
    /// All places were taken, and it was closed for a newer connection.
    MadeWay => "made_way",
    /// Events that the audit log had no room for, so they were only counted.
    NotNoted => "not_noted",
    /// The client's key is not paired.
    NotPaired => "not_paired",
    /// The proof was right, but the pairing could not be written. The code may be used again.
    NotWritten => "not_written",
    /// The received bytes are not a message of this protocol.
    Protocol => "protocol",
    /// Nothing was received from the connection or link for too long.
    Silent => "silent",
    /// It did not finish its handshake or first message in time.
    Slow => "slow",
    /// The prefix opened too many connections within a second.
    TooFast => "too_fast",
    /// Too many connections of the prefix are not authenticated yet.
    TooMany => "too_many",
    /// The device has too many links.
    TooManyLinks => "too_many_links",
    /// The proof does not fit the pairing code.
    WrongProof => "wrong_proof",
}

impl std::fmt::Display for RefusalReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}
