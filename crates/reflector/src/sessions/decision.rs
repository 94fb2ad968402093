//! The inputs and outputs of the session rules. Plain values; the rules are in other modules.

use std::time::Duration;

use paramedic_link::message::{Denial, EndReason};
use paramedic_link::test_spec::{DataMode, EngineId, TestSpec};
use paramedic_link::{EndpointId, SessionId};
use serde::{Deserialize, Serialize};

use super::counts::SessionCounts;
use super::limits::{bytes, span};

/// The number of milliseconds of a UTC day.
const DAY_MS: u64 = 24 * 3600 * 1000;

/// The present time by both clocks. Sessions use the monotonic clock. The hours and days of quotas use the wall clock,
/// because quotas must survive a restart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// The time since an arbitrary start. Never goes back.
    pub mono: Duration,
    /// The time in milliseconds since 1970, UTC. Jumps if the clock is set.
    pub unix_ms: u64,
}

impl Now {
    /// The number of the UTC day; 0 is 1970-01-01.
    pub fn day(self) -> u32 {
        Self::day_of(self.unix_ms)
    }

    /// The number of the UTC day (0 is 1970-01-01) at a time in milliseconds since 1970.
    pub fn day_of(unix_ms: u64) -> u32 {
        u32::try_from(unix_ms / DAY_MS).unwrap_or(u32::MAX)
    }

    /// How long it is until the next UTC day begins.
    pub(super) fn until_tomorrow(self) -> Duration {
        Duration::from_millis(DAY_MS - self.unix_ms % DAY_MS)
    }
}

/// Identifies an open link. The server gives each link its own number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LinkId(pub u64);

/// What peers used before the server started, as read from the database.
#[derive(Clone, Debug, Default)]
pub struct PastUsage {
    /// Each granted test: its peer, and its time in milliseconds since 1970.
    pub tests: Vec<(EndpointId, u64)>,
    /// The charged bytes: each entry has the peer, the UTC day, and the number of bytes.
    pub bytes: Vec<(EndpointId, u32, u64)>,
}

/// What a session is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionPurpose {
    /// A test: it takes a slot.
    Test,
    /// A monitor, which probes for as long as its link exists. It takes no slot and counts as no test.
    Monitor,
}

/// A session for which everything that it needs is reserved, such as a slot, a port, and its place in the limit of
/// tests per hour. [`super::Sessions::opened`] turns the reservation into a grant.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names of some fields need no comment")]
pub struct Reservation {
    pub purpose: SessionPurpose,
    pub session: SessionId,
    /// The link on which the appliance sent the request.
    pub link: LinkId,
    /// The peer that sent the request.
    pub peer: EndpointId,
    /// The requested test.
    pub spec: TestSpec,
    /// The port that the session must open, in direct mode.
    pub port: Option<u16>,
    /// The longest time that the session may last, counted from its reservation.
    pub expires_in: Duration,
    /// Whether the session counts for the limit of tests per hour. It does not if it is the repetition, through the
    /// tunnel, of a direct session that the appliance could not reach.
    pub counts_as_test: bool,
}

/// The answer to a request.
#[expect(clippy::large_enum_variant, reason = "one is made for each request")]
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// Everything that the session needs is reserved. The server must now open the resources, call
    /// [`super::Sessions::opened`], record the grant, then send it. If a step fails, it must call
    /// [`super::Sessions::undo`].
    Reserved(Reservation),
    /// The request is queued. Nothing is reserved for it.
    Queued {
        /// The position of the request in the queue; 1 is next.
        place: u32,
        /// How long the request will probably wait.
        expected_wait: Duration,
    },
    /// The request is denied and not queued.
    Denied(Denial),
}

/// Bytes that a session may move once the lease is on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The number of payload bytes; never 0.
    pub bytes: u64,
    /// The UTC day to which the bytes are charged; 0 is 1970-01-01.
    pub day: u32,
}

/// The bytes to charge for a session that has ended, and why it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names of some fields need no comment")]
pub struct SessionAccounts {
    pub session: SessionId,
    pub peer: EndpointId,
    /// The payload bytes that are charged to each day, oldest day first. Days without bytes are left out.
    pub bytes_by_day: Vec<(u32, u64)>,
    /// The reason why the session ended. If several causes came together, the first one.
    pub reason: EndReason,
}

/// An action that the server must take, because time has passed or something has changed.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "the names of some fields need no comment")]
pub enum SessionAction {
    /// A queued request has a reservation. Proceed as for [`Answer::Reserved`].
    Reserve(Reservation),
    /// Send a queued request its new position.
    Place {
        /// The link of the queued request.
        link: LinkId,
        /// The position of the request in the queue; 1 is next.
        place: u32,
        /// How long the request will probably wait.
        expected_wait: Duration,
    },
    /// A queued request is denied.
    Deny {
        /// The link of the queued request.
        link: LinkId,
        /// The denial to send.
        denial: Denial,
    },
    /// Tear the session down, then call `ended`. The action is repeated until `ended` is called.
    End { session: SessionId, reason: EndReason },
}

/// The present state of all sessions, for `status`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// The number of tests that may run at once.
    pub slots: u32,
    /// Whether the reflector is shutting down, so that it grants no sessions.
    pub draining: bool,
    /// Whether the audit log or the database cannot be written, so that the reflector grants no sessions.
    pub faulted: bool,
    /// The reserved and the running sessions of tests.
    pub sessions: Vec<SessionStatus>,
    /// The reserved and the running monitor sessions.
    #[serde(default)]
    pub monitors: Vec<MonitorStatus>,
    /// The maximum number of monitor sessions at once.
    #[serde(default)]
    pub max_monitors: usize,
    /// The queued requests, in the order in which they will be served.
    pub queue: Vec<QueueStatus>,
    /// What each peer has used of its quotas. Peers that used nothing are left out.
    pub peers: Vec<PeerStatus>,
    /// The payload bytes that are charged today to all peers together. Includes open leases.
    pub bytes_today: u64,
    /// The ports of the data port range that, within the last minute, another program was found to use.
    pub held_ports: Vec<u16>,
    /// The counts of what happened to sessions since the start of the server.
    #[serde(default)]
    pub counts: SessionCounts,
}

impl Snapshot {
    /// The state for a human reader: rows of a label and a text.
    pub fn rows(&self) -> Vec<(&'static str, String)> {
        let mut rows = vec![("slots", format!("{} of {} in use", self.sessions.len(), self.slots))];
        rows.extend(self.sessions.iter().map(|session| {
            let port = session.port.map(|port| format!(" on port {port}")).unwrap_or_default();
            let left = span(Duration::from_millis(session.expires_in_ms));
            let what = format!("{}, {} {}{port}", session.peer, session.engine, session.data_mode);
            ("session", format!("{what}, {} leased, ends within {left}", bytes(session.leased_bytes)))
        }));
        rows.extend(self.queue.iter().map(|waiting| {
            let wait = span(Duration::from_millis(waiting.expected_wait_ms));
            ("waiting", format!("{}. {}, about {wait}", waiting.place, waiting.peer))
        }));
        if !self.monitors.is_empty() {
            rows.push(("monitors", format!("{} of {}", self.monitors.len(), self.max_monitors)));
        }
        rows.push(("bytes today", bytes(self.bytes_today)));
        rows.extend(self.peers.iter().map(|peer| {
            let tests = peer.tests_this_hour;
            ("used", format!("{}: {tests} tests this hour, {} today", peer.peer, bytes(peer.bytes_today)))
        }));
        if !self.held_ports.is_empty() {
            let ports = self.held_ports.iter().map(ToString::to_string).collect::<Vec<_>>();
            rows.push(("held ports", format!("{} (other programs hold them)", ports.join(", "))));
        }
        rows
    }
}

/// One session, as `status` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names of some fields need no comment")]
pub struct SessionStatus {
    pub session: SessionId,
    pub peer: EndpointId,
    /// The engine that moves the payload.
    pub engine: EngineId,
    /// The data mode of the session.
    pub data_mode: DataMode,
    /// The port of the session, in direct mode.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// How long ago the session was reserved, in milliseconds.
    pub elapsed_ms: u64,
    /// The longest time that the session may still last, in milliseconds.
    pub expires_in_ms: u64,
    /// The payload bytes that were leased for the session so far.
    pub leased_bytes: u64,
}

/// One monitor session, for `status`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names of some fields need no comment")]
pub struct MonitorStatus {
    pub session: SessionId,
    pub peer: EndpointId,
    /// How long ago the session was reserved, in milliseconds.
    pub elapsed_ms: u64,
    /// The payload bytes that were leased for the session so far.
    pub leased_bytes: u64,
}

/// One queued request, as `status` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names of some fields need no comment")]
pub struct QueueStatus {
    pub peer: EndpointId,
    /// The position of the request in the queue; 1 is next.
    pub place: u32,
    /// How much longer the request will probably wait, in milliseconds.
    pub expected_wait_ms: u64,
    /// How long the request has waited, in milliseconds.
    #[serde(default)]
    pub waited_ms: u64,
}

/// What one peer has used of its quotas, as `status` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names of some fields need no comment")]
pub struct PeerStatus {
    pub peer: EndpointId,
    /// The number of tests that were granted within the last hour.
    pub tests_this_hour: u32,
    /// The payload bytes that are charged to the peer today. Includes open leases.
    pub bytes_today: u64,
}

/// The duration in whole milliseconds; `u64::MAX` if it is longer.
pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_day_begins_at_midnight_utc() {
        let at = |unix_ms| Now { mono: Duration::ZERO, unix_ms };
        assert_eq!((at(DAY_MS - 1).day(), at(DAY_MS).day()), (0, 1));
        assert_eq!(at(DAY_MS - 1).until_tomorrow(), Duration::from_millis(1));
        assert_eq!(at(DAY_MS).until_tomorrow(), Duration::from_millis(DAY_MS));
        assert_eq!(at(u64::MAX).day(), u32::MAX);
    }

    #[test]
    fn status_is_printed_as_labelled_lines() {
        let peer = EndpointId::from_bytes([1; 32]);
        let seen = Snapshot {
            slots: 1,
            draining: false,
            faulted: false,
            sessions: vec![SessionStatus {
                session: SessionId::from_bytes([1; 16]),
                peer,
                engine: EngineId::try_from("tcp").unwrap(),
                data_mode: DataMode::DirectEphemeral,
                port: Some(5201),
                elapsed_ms: 1_000,
                expires_in_ms: 46_000,
                leased_bytes: 16_000_000,
            }],
            monitors: vec![MonitorStatus {
                session: SessionId::from_bytes([2; 16]),
                peer,
                elapsed_ms: 1_000,
                leased_bytes: 1_000_000,
            }],
            max_monitors: 64,
            queue: vec![QueueStatus { peer, place: 1, expected_wait_ms: 22_000, waited_ms: 7_000 }],
            peers: vec![],
            bytes_today: 1_500_000_000,
            held_ports: vec![5202],
            counts: SessionCounts::default(),
        };
        let rows = seen.rows().into_iter().map(|(name, text)| format!("{name}: {text}")).collect::<Vec<_>>();
        let expected = [
            "slots: 1 of 1 in use".to_owned(),
            format!("session: {peer}, tcp direct_ephemeral on port 5201, 16 MB leased, ends within 46 s"),
            format!("waiting: 1. {peer}, about 22 s"),
            "monitors: 1 of 64".to_owned(),
            "bytes today: 1.5 GB".to_owned(),
            "held ports: 5202 (other programs hold them)".to_owned(),
        ];
        assert_eq!(rows, expected);
    }
}
