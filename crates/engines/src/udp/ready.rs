//! A stream of `udp` whose address is validated and that waits for its phase, and the working state of its thread
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

/// A stream that waits for its phase. Its socket is connected to the other end. Cancelling the session shuts the socket
/// down.
pub(super) struct ReadyStream {
    pub(super) stream_id: StreamId,
    pub(super) socket: UdpSocket,
    pub(super) keys: Arc<SessionKeys>,
    _registration: Registration,
}

impl ReadyStream {
    /// Makes a ready stream of the connected socket `socket`. Sets its socket options as requested in `ask`.
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

/// What a stream's thread has counted.
#[derive(Default)]
pub(super) struct StreamCounts {
    pub(super) sent: Sent,
    pub(super) received: Received,
    /// When the last datagram was sent or received, in nanoseconds since the start of the phase.
    pub(super) last_ns: u64,
}

/// What a stream sent.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sent {
    /// Payload bytes of each datagram; if the payload was reduced, of the last one.
    pub(super) payload: usize,
    pub(super) datagrams: u64,
    /// How many datagrams were too large for the path and did not arrive, before the payload was reduced.
    pub(super) vanished: u64,
    /// Whether the path dropped those datagrams without an ICMP error (a path MTU black hole, RFC 2923).
    pub(super) is_black_hole: bool,
    /// After a search for the highest rate: the datagrams that were sent after the search had settled.
    pub(super) settled: Option<u64>,
    pub(super) paused: Duration,
}

/// What a stream received.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Received {
    pub(super) counts: Counts,
    pub(super) jitter_ns: u64,
}
