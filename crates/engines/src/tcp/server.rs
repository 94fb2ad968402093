//! The reflector's end of `tcp`: opens the listener, waits for the streams, runs the phases.

use std::io;
use std::sync::Arc;

use paramedic_link::admission::Preamble;
use paramedic_link::measurement::PhaseTally;
use paramedic_link::test_spec::{Direction, TestSpec};

use super::ready::{self, TcpStreams};
use super::{socket_options, with_window};
use crate::data_listener::{DataListener, PreambleAuthenticator};
use crate::data_stream::DataStream;
use crate::engine::{EngineServer, PhaseObserver, ServerSetup};
use crate::metered_stream::MeteredStream;
use crate::phase::{self, CONNECT_TIMEOUT, NO_SUCH_PHASE, nothing_moved};
use crate::session_control::SessionControl;
use crate::socket::SocketOptions;

pub(super) struct TcpServer {
    spec: TestSpec,
    options: SocketOptions,
    control: Arc<SessionControl>,
    streams: Arc<TcpStreams>,
    /// The session's listener in direct mode; `None` in tunneled mode.
    listener: Option<DataListener>,
}

impl TcpServer {
    pub(super) fn open(setup: ServerSetup) -> io::Result<Self> {
        let ServerSetup { spec, keys, claim, peer, control, .. } = setup;
        let options = socket_options(&spec)?;
        let streams = Arc::new(TcpStreams::new(&spec, Arc::clone(&control)));
        let listener = match claim {
            Some(claim) => {
                let (streams, stream_options) = (Arc::clone(&streams), options.clone());
                let authenticator = PreambleAuthenticator::new(keys);
                let session_control = Arc::clone(&control);
                let sink = move |preamble, stream| {
                    let stream = MeteredStream::new(DataStream::Plain(stream), Arc::clone(&session_control));
                    place(&streams, &session_control, &stream_options, preamble, stream);
                };
                Some(DataListener::open(
                    claim,
                    &options,
                    authenticator,
                    peer,
                    spec.streams,
                    Arc::clone(&control),
                    Box::new(sink),
                )?)
            }
            None => None,
        };
        Ok(Self { spec, options, control, streams, listener })
    }

    /// The address of the session's listener; `None` in tunneled mode.
    #[cfg(test)]
    pub(super) fn local_addr(&self) -> Option<std::net::SocketAddr> {
        self.listener.as_ref().map(DataListener::local_addr)
    }

    /// Closes the connected streams of `phase`, as the end of a session does.
    #[cfg(test)]
    pub(super) fn close_streams(&self, phase: u8) {
        drop(self.streams.take(phase));
    }

    /// Whether all streams of `phase` are connected.
    #[cfg(test)]
    pub(super) fn is_complete(&self, phase: u8) -> bool {
        self.streams.is_complete(phase)
    }
}

fn place(
    streams: &TcpStreams,
    control: &Arc<SessionControl>,
    options: &SocketOptions,
    preamble: Preamble,
    stream: MeteredStream,
) {
    // Streams of a later phase would use descriptors and kernel memory until their phase begins.
    if !streams.is_next(preamble.phase) {
        tracing::debug!(phase = preamble.phase, "dropped a data connection of a later phase");
        return;
    }
    match options.apply(stream.inner().socket()) {
        Ok(()) => ready::admit(streams, control, preamble.phase, preamble.stream, stream),
        // Without its options the stream would not run the requested test.
        Err(error) => tracing::debug!(%error, "dropped a data connection: its options were refused"),
    }
}

impl EngineServer for TcpServer {
    fn admit(&self, preamble: Preamble, stream: MeteredStream) {
        place(&self.streams, &self.control, &self.options, preamble, stream);
    }

    fn run(&self, phase: u8, report: PhaseObserver<'_>) -> PhaseTally {
        let tally = self.run_phase(phase, report);
        self.streams.advance(phase);
        tally
    }
}

impl TcpServer {
    fn run_phase(&self, phase: u8, report: PhaseObserver<'_>) -> PhaseTally {
        let Some(spec) = self.spec.phases.get(usize::from(phase)) else {
            return nothing_moved(None, &self.control, NO_SUCH_PHASE);
        };
        match self.streams.await_all(phase) {
            Ok(streams) => {
                let tally = phase::run(&self.spec, spec, Direction::Download, &self.control, streams, report);
                with_window(tally, &self.options)
            }
            // The connected streams were closed, which the appliance detects.
            Err(came) => {
                let refused = self.listener.as_ref().map_or(0, DataListener::refused);
                tracing::debug!(phase, came, refused, "not all streams of a phase connected");
                let timeout = CONNECT_TIMEOUT.as_secs();
                let why = format!("only {came} of the phase's data connections arrived within {timeout} s");
                nothing_moved(Some(spec), &self.control, &why)
            }
        }
    }
}
