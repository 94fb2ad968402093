//! A stream of `udp` whose two ends have met and that waits for its phase, and what its thread works with during the
//! phase.

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

/// A stream that waits for its phase: its socket is connected to the other end. Cancelling the session ends it.
pub(super) struct ReadyStream {
    pub(super) stream_id: StreamId,
    pub(super) socket: UdpSocket,
    pub(super) keys: Arc<SessionKeys>,
    _registration: Registration,
}

impl ReadyStream {
    /// Sets the options of `ask` on a connected `socket`.
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
    /// When the last datagram was sent or received, in nanoseconds since the begin of the phase.
    pub(super) last_ns: u64,
}

/// What a stream sent.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sent {
    /// Payload bytes of each datagram, of the last one if it changed.
    pub(super) payload: usize,
    pub(super) datagrams: u64,
    /// How many of them did not arrive because they were too large for the path, before the payload was reduced.
    pub(super) vanished: u64,
    /// Whether no ICMP reported that.
    pub(super) is_black_hole: bool,
    /// In a search for the rate: the datagrams that were sent after the search had settled.
    pub(super) settled: Option<u64>,
    pub(super) paused: Duration,
}

/// What a stream received.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Received {
    pub(super) counts: Counts,
    pub(super) jitter_ns: u64,
}
