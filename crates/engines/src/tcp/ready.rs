//! A connected stream of `tcp` before its phase begins, and what its thread works with during the phase.

use std::io;
use std::net::TcpStream;
use std::sync::Arc;

use super::unsent_limit::UnsentLimit;
use crate::data_stream::DataStream;
use crate::metered_stream::MeteredStream;
use crate::phase::{StreamRegistry, StreamReport, StreamRun};
use crate::session_control::{Registration, SessionControl};

/// A connected stream that waits for its phase. Cancelling the session ends it.
pub(super) struct ReadyConnection {
    pub(super) stream: MeteredStream,
    _registration: Registration,
}

/// The connected streams of a session.
pub(super) type TcpStreams = StreamRegistry<ReadyConnection>;

/// Adds a connected stream to its phase. If the phase does not expect it, or the session is over, drops the stream,
/// which closes the connection.
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

/// What the watcher of the phase keeps of a stream.
pub(super) struct Watched {
    /// A second handle of the socket.
    pub(super) socket: TcpStream,
    /// `Some` if this end sends.
    pub(super) unsent_limit: Option<UnsentLimit>,
}

impl Watched {
    pub(super) fn new(stream: &DataStream, is_sent: bool) -> io::Result<Self> {
        let socket = stream.socket().try_clone()?;
        let unsent_limit = is_sent.then(|| UnsentLimit::new(&socket));
        Ok(Self { socket, unsent_limit })
    }
}

pub(super) type TcpRun<'a> = StreamRun<'a, Watched>;
/// The report of a TCP stream. Its `own` part says how the bytes were moved.
pub(super) type TcpReport = StreamReport<Option<&'static str>>;
