//! A stream of `udp` that waits for its phase after its address was validated, and the working state of its thread
//! during the phase.

use std::io;
use std::net::UdpSocket;
use std::sync::Arc;
use std::time::Duration;

use paramedic_link::admission::SessionKeys;
use paramedic_link::test_spec::TestSpec;

use super::ledger::Counts;
use super::packet::StreamId;
use super::socket;
use crate::phase::{StreamReport, StreamRun};
use crate::session_control::{Registration, SessionControl};

/// A stream that waits for its phase. Its socket is connected to the other end. If the session is cancelled, the socket
/// is shut down.
pub(super) struct ReadyStream {
    pub(super) stream_id: StreamId,
    pub(super) socket: UdpSocket,
    pub(super) keys: Arc<SessionKeys>,
    _registration: Registration,
}

impl ReadyStream {
    /// Makes a ready stream of `socket`, which is connected. Sets the socket's options as requested in the test `ask`.
    pub(super) fn new(
        stream_id: StreamId,
        socket: UdpSocket,
        keys: &Arc<SessionKeys>,
        ask: &TestSpec,
        control: &Arc<SessionControl>,
    ) -> io::Result<Self> {
        socket::prepare(&socket, ask)?;
        let registration = control.register(&socket)?;
        Ok(Self { stream_id, socket, keys: Arc::clone(keys), _registration: registration })
    }
}

pub(super) type UdpRun<'a> = StreamRun<'a, UdpSocket>;
pub(super) type UdpReport = StreamReport<StreamCounts>;

/// The datagrams that a stream's thread has counted: those sent if this end sends, else those received.
#[derive(Default)]
pub(super) struct StreamCounts {
    pub(super) sent: Sent,
    pub(super) received: Received,
    /// When the last datagram was sent or received, in nanoseconds since the start of the phase.
    pub(super) last_ns: u64,
}

/// The counts of the datagrams that a stream's thread has sent.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sent {
    /// The payload bytes of each datagram. If the payload changed, those of the last datagram.
    pub(super) payload: usize,
    pub(super) datagrams: u64,
    /// How many datagrams were too large for the path and did not arrive, before the payload was reduced.
    pub(super) vanished: u64,
    /// Whether the path dropped the datagrams in `vanished` without an ICMP error (a path MTU black hole, RFC 2923).
    pub(super) is_black_hole: bool,
    /// How many datagrams were sent after the search for the highest rate had settled. `None` without a search, or if
    /// the search did not settle.
    pub(super) settled: Option<u64>,
    pub(super) paused: Duration,
}

/// The counts of the datagrams that a stream's thread has received.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Received {
    pub(super) counts: Counts,
    pub(super) jitter_ns: u64,
}
