//! The reflector's end of `tcp`: opens the door, waits for the streams, runs their phases.

use std::io;
use std::sync::Arc;

use paramedic_link::admission::Preamble;
use paramedic_link::measurement::PhaseTally;
use paramedic_link::test_spec::{Direction, TestSpec};

use super::ready::{self, TcpStreams};
use super::socket_options;
use crate::data_stream::DataStream;
use crate::door::{ByPreamble, Door};
use crate::engine::{Report, Serve, ServeOrder};
use crate::phase::{self, CONNECT_TIMEOUT, NO_SUCH_PHASE, nothing_moved};
use crate::session_control::SessionControl;
use crate::socket::SocketOptions;

pub(super) struct TcpServe {
    spec: TestSpec,
    options: SocketOptions,
    control: Arc<SessionControl>,
    streams: Arc<TcpStreams>,
    /// Direct mode's port; held until the session is over.
    door: Option<Door>,
}

impl TcpServe {
    pub(super) fn open(order: ServeOrder) -> io::Result<Self> {
        let ServeOrder { spec, keys, claim, peer, control, .. } = order;
        let options = socket_options(&spec)?;
        let streams = Arc::new(TcpStreams::new(&spec, Arc::clone(&control)));
        let door = match claim {
            Some(claim) => {
                let (streams, of_streams) = (Arc::clone(&streams), options.clone());
                let knock = ByPreamble::new(keys);
                let of_session = Arc::clone(&control);
                let sink = move |preamble, stream| {
                    seat(&streams, &of_session, &of_streams, preamble, DataStream::Plain(stream));
                };
                Some(Door::open(claim, &options, knock, peer, spec.streams, Arc::clone(&control), Box::new(sink))?)
            }
            None => None,
        };
        Ok(Self { spec, options, control, streams, door })
    }

    /// Where direct mode's door listens.
    #[cfg(test)]
    pub(super) fn local_addr(&self) -> Option<std::net::SocketAddr> {
        self.door.as_ref().map(Door::local_addr)
    }

    /// Whether all streams of `phase` have come.
    #[cfg(test)]
    pub(super) fn stands(&self, phase: u8) -> bool {
        self.streams.is_complete(phase)
    }
}

fn seat(
    streams: &TcpStreams,
    control: &Arc<SessionControl>,
    options: &SocketOptions,
    preamble: Preamble,
    stream: DataStream,
) {
    // The streams of a later phase would cost descriptors and, unread, the kernel's memory for as long as the session
    // lasts.
    if !streams.is_next(preamble.phase) {
        tracing::debug!(phase = preamble.phase, "a data connection of a later phase was dropped");
        return;
    }
    match options.apply(stream.socket()) {
        Ok(()) => ready::admit(streams, control, preamble.phase, preamble.stream, stream),
        // Such a stream would not carry what was asked for.
        Err(error) => tracing::debug!(%error, "a data connection does not take its options"),
    }
}

impl Serve for TcpServe {
    fn admit(&self, preamble: Preamble, stream: DataStream) {
        seat(&self.streams, &self.control, &self.options, preamble, stream);
    }

    fn run(&self, phase: u8, report: Report<'_>) -> PhaseTally {
        let tally = self.run_phase(phase, report);
        self.streams.advance(phase);
        tally
    }
}

impl TcpServe {
    fn run_phase(&self, phase: u8, report: Report<'_>) -> PhaseTally {
        let Some(spec) = self.spec.phases.get(usize::from(phase)) else {
            return nothing_moved(None, &self.control, NO_SUCH_PHASE);
        };
        match self.streams.await_all(phase) {
            Ok(streams) => phase::run(&self.spec, spec, Direction::Download, &self.control, streams, report),
            // Those that came are closed: the appliance learns it from that.
            Err(came) => {
                let refused = self.door.as_ref().map_or(0, Door::refused);
                tracing::debug!(phase, came, refused, "the streams of a phase did not all come");
                let timeout = CONNECT_TIMEOUT.as_secs();
                let why = format!("only {came} of the phase's data connections came within {timeout} s");
                nothing_moved(Some(spec), &self.control, &why)
            }
        }
    }
}
