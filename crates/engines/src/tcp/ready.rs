//! A connected stream of `tcp` before its phase begins, and the working state of its thread during the phase.

use std::io;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::unsent_limit::UnsentLimit;
use crate::data_stream::DataStream;
use crate::metered_stream::MeteredStream;
use crate::phase::{StreamRegistry, StreamReport, StreamRun};
use crate::session_control::{Registration, SessionControl};
use crate::socket::{self, LimitedTimes};

/// A connected stream that waits for its phase. If the session is cancelled, the socket of the stream is shut down.
pub(super) struct ReadyConnection {
    pub(super) stream: MeteredStream,
    _registration: Registration,
}

/// The connected streams of a session that wait for their phases.
pub(super) type TcpStreams = StreamRegistry<ReadyConnection>;

/// Adds a connected stream to its phase. If the phase does not expect the stream, or the session is over, drops the
/// stream, which closes its connection.
pub(super) fn admit(streams: &TcpStreams, control: &Arc<SessionControl>, phase: u8, index: u16, stream: MeteredStream) {
    match control.register(stream.inner().socket()) {
        Ok(registration) => {
            if let Err(why) = streams.admit(phase, index, ReadyConnection { stream, _registration: registration }) {
                tracing::debug!(phase, index, ?why, "dropped a data connection that has no place");
            }
        }
        Err(error) => tracing::debug!(phase, index, %error, "dropped a data connection"),
    }
}

/// The part of a stream that the phase's watcher uses, shared with the stream's thread.
pub(super) struct Watched {
    /// A second handle of the stream's socket, to observe and abort the stream.
    pub(super) socket: TcpStream,
    /// The limit on the stream's unsent bytes; `Some` if this end sends.
    pub(super) unsent_limit: Option<UnsentLimit>,
    /// The number of bytes that the other end acknowledged before the phase: those of the preamble and the TLS
    /// handshake.
    acknowledged_before: u64,
    /// The [`LimitedTimes`] that the kernel had recorded before the phase; `None` if the kernel does not record them.
    limits_before: Option<LimitedTimes>,
    /// The bytes that TLS has added to the payload so far. Set by the stream's thread.
    pub(super) framing: AtomicU64,
}

impl Watched {
    pub(super) fn new(stream: &DataStream, is_sent: bool) -> io::Result<Self> {
        let socket = stream.socket().try_clone()?;
        let unsent_limit = is_sent.then(|| UnsentLimit::new(&socket));
        let acknowledged_before = socket::counts(&socket).map_or(0, |(acknowledged, _)| acknowledged);
        let limits_before = socket::limited_times(&socket);
        Ok(Self { socket, unsent_limit, acknowledged_before, limits_before, framing: AtomicU64::new(0) })
    }

    /// The stream's [`LimitedTimes`] since the phase began; `None` if the kernel does not record them.
    pub(super) fn limited_times(&self) -> Option<LimitedTimes> {
        Some(socket::limited_times(&self.socket)?.since(self.limits_before?))
    }

    /// The number of payload bytes that the other end has acknowledged, out of the `total` payload bytes sent so far.
    /// If the kernel does not count acknowledged bytes, returns `total`.
    pub(super) fn acknowledged(&self, total: u64) -> u64 {
        let Some((acknowledged, _)) = socket::counts(&self.socket) else { return total };
        payload_of(
            acknowledged - self.acknowledged_before.min(acknowledged),
            total,
            self.framing.load(Ordering::Relaxed),
        )
    }
}

/// Estimates how many of the first `bytes` bytes of a stream are payload. The stream has sent `total` bytes of payload
/// and `framing` bytes of TLS overhead, which are assumed to be evenly mixed.
fn payload_of(bytes: u64, total: u64, framing: u64) -> u64 {
    let payload = u128::from(bytes) * u128::from(total) / (u128::from(total) + u128::from(framing)).max(1);
    u64::try_from(payload).unwrap_or(u64::MAX)
}

pub(super) type TcpRun<'a> = StreamRun<'a, Watched>;
/// The report of a TCP stream. Its field `own` is the name of the method that moved the bytes (see `data_path`).
pub(super) type TcpReport = StreamReport<Option<&'static str>>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_framing_of_tls_is_no_payload() {
        assert_eq!(payload_of(5000, 6000, 0), 5000);
        assert_eq!(payload_of(16_406, 32_768, 44), 16_384);
        assert_eq!(payload_of(7, 0, 0), 0);
        assert_eq!(payload_of(u64::MAX, u64::MAX, u64::MAX), u64::MAX / 2);
    }
}
