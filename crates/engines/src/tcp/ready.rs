//! A connected stream of `tcp` before its phase begins, and what its thread works with during the phase.

use std::io;
use std::net::TcpStream;
use std::sync::Arc;

use super::unsent_limit::UnsentLimit;
use crate::data_stream::DataStream;
use crate::phase::{StreamRegistry, StreamReport, StreamRun};
use crate::session_control::{Registration, SessionControl};

/// A connected stream that waits for its phase. Cancelling the session ends it.
pub(super) struct ReadyConnection {
    pub(super) stream: DataStream,
    _registration: Registration,
}

/// The connected streams of a session.
pub(super) type TcpStreams = StreamRegistry<ReadyConnection>;

/// Gives a connected stream its place. If it has none, or the session is over, the stream is dropped, which refuses it.
pub(super) fn admit(streams: &TcpStreams, control: &Arc<SessionControl>, phase: u8, index: u16, stream: DataStream) {
    match control.register(stream.socket()) {
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
    /// `Some` where this end sends.
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
/// `own` is how the bytes were moved.
pub(super) type TcpReport = StreamReport<Option<&'static str>>;
