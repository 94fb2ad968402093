//! The events of the audit log, as plain values. `audit` writes them.

use std::net::IpAddr;

use paramedic_link::message::{DenialReason, EndReason};
use paramedic_link::test_spec::{DataMode, EngineId};
use paramedic_link::{EndpointId, PeerText, SessionId};
use serde::{Deserialize, Serialize};

/// One event of the audit log. Serialised as a JSON object; its field `event` contains the name of the event.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[expect(missing_docs, reason = "the names of some fields need no comment")]
pub enum AuditEvent {
    /// The reflector began to serve.
    Started {
        /// The version of the program.
        version: String,
        /// The Endpoint ID of this reflector.
        endpoint_id: EndpointId,
    },
    /// The reflector stopped serving.
    Stopped,
    /// A pairing code was opened. The code itself is never logged.
    CodeOpened {
        /// How long the code is valid, in seconds.
        ttl_s: u64,
    },
    /// A pairing code was closed without use.
    CodeClosed {
        /// Why the code was closed: `expired` or `revoked`.
        why: String,
    },
    /// A peer was paired.
    PeerAdded {
        peer: EndpointId,
        /// The name of the peer at this reflector.
        name: PeerText,
        /// How the peer was added: by `code` (`reflector pair`), or by `hand` (`reflector peers add`).
        by: String,
    },
    /// A peer was removed.
    PeerRemoved { peer: EndpointId },
    /// A peer was renamed.
    PeerRenamed {
        peer: EndpointId,
        /// The new name of the peer.
        name: PeerText,
    },
    /// A peer opened a link (a control connection) from this address.
    LinkOpened { peer: EndpointId, from: IpAddr },
    /// A session was granted.
    SessionGranted {
        session: SessionId,
        peer: EndpointId,
        /// The engine that moves the payload.
        engine: EngineId,
        /// The data mode of the session.
        data_mode: DataMode,
        /// The port of the session in direct mode; absent in tunneled mode.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        port: Option<u16>,
        /// The longest time that the session may last, in milliseconds.
        expires_in_ms: u64,
    },
    /// A request was queued.
    SessionQueued {
        peer: EndpointId,
        /// The position of the request in the queue when it was queued; 1 is next.
        place: u32,
    },
    /// A request was denied.
    SessionDenied {
        peer: EndpointId,
        /// The rule that denied the request.
        reason: DenialReason,
    },
    /// A session was cancelled before the appliance got an answer. A resource could not be opened, the grant could not
    /// be recorded, or the appliance withdrew its request. The session is not charged.
    SessionUndone { session: SessionId, peer: EndpointId },
    /// A session ended.
    SessionEnded {
        session: SessionId,
        peer: EndpointId,
        reason: EndReason,
        /// The number of payload bytes that were charged for the session.
        bytes: u64,
        /// How long the session lasted, in milliseconds.
        elapsed_ms: u64,
    },
    /// A monitor session was granted.
    MonitorGranted { session: SessionId, peer: EndpointId },
    /// A request for a monitor session was denied.
    MonitorDenied {
        peer: EndpointId,
        /// The rule that denied the request.
        reason: DenialReason,
    },
    /// A monitor session is over.
    MonitorEnded {
        session: SessionId,
        peer: EndpointId,
        reason: EndReason,
        /// The number of payload bytes that were charged for the session.
        bytes: u64,
        /// How long the session lasted, in milliseconds.
        elapsed_ms: u64,
    },
    /// A port of the data port range was skipped, because another program uses it.
    PortHeld {
        port: u16,
        /// The peer whose request needed a port.
        peer: EndpointId,
    },
    /// A connection was refused. Above a certain rate, refusals are only counted (`refused_more`).
    Refused {
        from: IpAddr,
        reason: RefusalReason,
        /// The key that the client presented, if it presented one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        peer: Option<EndpointId>,
    },
    /// Refusals with this reason that have no line of their own, because too many came within a minute. `count` is
    /// their number. With the reason `not_noted`, it is the number of events that the audit log could not take.
    RefusedMore { reason: RefusalReason, count: u64 },
    /// Events of this peer that have no line of their own, because too many came within a minute: links, requests that
    /// were queued, denied or undone, monitor sessions, and ports that other programs hold. `count` is their number.
    MoreOfPeer { peer: EndpointId, count: u64 },
    /// After a crash, the reflector charged the sessions that the crash ended. The charge is the recorded use of each
    /// session, and the bytes that it may have used after this was recorded.
    LeasesCharged {
        /// The number of sessions that were charged.
        sessions: u64,
        /// The number of payload bytes that were charged.
        bytes: u64,
    },
    /// The audit log begins with this line, because the lines before it were moved away.
    LogBegunAnew {
        /// The number of the last line that was acknowledged before this line.
        after: u64,
    },
    /// The unacknowledged end of a file of the audit log was cut, after a crash or a failed write.
    TailRepaired {
        segment: String,
        /// The number of bytes that were cut.
        bytes: u64,
    },
    /// The oldest files of a chain of the audit log were deleted, to keep its size below `audit_max_size`.
    LogTrimmed {
        chain: Chain,
        /// The number of the first line that remains of the chain.
        first_line: u64,
        /// The hash of the line before `first_line`.
        hash_before: String,
    },
}

/// The two hash chains of the audit log. Each has its own files, line numbers and size limit. So lines that any client
/// can cause never displace the lines of the main chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Chain {
    /// Starts and stops of the reflector, pairings and removals of peers, grants and ends of tests. The operator and
    /// the quotas limit the number of these events.
    Main,
    /// Events that an unauthenticated client or a paired peer can cause without limit.
    Refusals,
}

impl AuditEvent {
    /// The chain in which this event is recorded.
    pub fn chain(&self) -> Chain {
        match self {
            AuditEvent::LinkOpened { .. }
            | AuditEvent::SessionQueued { .. }
            | AuditEvent::SessionDenied { .. }
            | AuditEvent::SessionUndone { .. }
            // A device may begin and end monitor sessions as often as it opens links.
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

/// Declares the refusal reasons, with their names, in one list.
macro_rules! refusal_reasons {
    ($($(#[$doc:meta])+ $variant:ident => $word:literal),+ $(,)?) => {
        /// Why a connection was refused.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        pub enum RefusalReason {
            $($(#[$doc])+ #[serde(rename = $word)] $variant),+
        }

        impl RefusalReason {
            /// All refusal reasons, in the order in which they are declared.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// The name of the reason, as in the audit log and in `status`.
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
    /// A data connection did not prove that it belongs to a session of its device.
    BadPreamble => "bad_preamble",
    /// No file descriptor was left for the connection.
    Descriptors => "descriptors",
    /// The TLS handshake failed, or negotiated none of the reflector's protocols.
    Handshake => "handshake",
    /// The connection lost its slot before it was authenticated, usually to a newer connection.
    MadeWay => "made_way",
    /// The audit log could not take further events, so they were only counted.
    NotNoted => "not_noted",
    /// The client's key is not paired.
    NotPaired => "not_paired",
    /// The client's pairing proof was right, but the pairing could not be written to disk. The code can be used again.
    NotWritten => "not_written",
    /// The client sent bytes that are not a message of this protocol.
    Protocol => "protocol",
    /// The client closed the connection before its first message, or its link was silent for too long.
    Silent => "silent",
    /// The client did not finish its handshake or first message in time, or closed a data connection before the first
    /// message.
    Slow => "slow",
    /// Too many connections came from the client's network within one second.
    TooFast => "too_fast",
    /// Too many connections from the client's network are not authenticated yet.
    TooMany => "too_many",
    /// The device has too many links open.
    TooManyLinks => "too_many_links",
    /// The client's proof does not fit the pairing code.
    WrongProof => "wrong_proof",
}

impl std::fmt::Display for RefusalReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}
