//! The reflector's end of `udp`: validates the streams' addresses, connects a socket for each stream, and runs the
//! phases.

use std::io;
use std::sync::Arc;

use paramedic_link::admission::{Preamble, SessionKeys};
use paramedic_link::measurement::PhaseTally;
use paramedic_link::test_spec::{Direction, PhaseSpec, TestSpec};

use super::gate::{Gate, Proven};
use super::packet::StreamId;
use super::ready::ReadyStream;
use super::socket;
use crate::engine::{EngineServer, PhaseObserver, ServerSetup};
use crate::metered_stream::MeteredStream;
use crate::phase::{self, CONNECT_TIMEOUT, NO_SUCH_PHASE, direction_of, nothing_moved};
use crate::session_control::SessionControl;
use crate::udp_port::DatagramHandler;

pub(super) struct UdpServer {
    spec: TestSpec,
    keys: Arc<SessionKeys>,
    control: Arc<SessionControl>,
    gate: Arc<Gate>,
}

impl UdpServer {
    pub(super) fn open(setup: ServerSetup) -> io::Result<Self> {
        let ServerSetup { spec, keys, control, .. } = setup;
        let gate = Arc::new(Gate::new(&spec, Arc::clone(&keys), Arc::clone(&control))?);
        Ok(Self { spec, keys, control, gate })
    }

    fn connect(&self, spec: &PhaseSpec, stream_id: StreamId, proven: &Proven) -> io::Result<ReadyStream> {
        let socket = proven.port.connect(proven.to, proven.peer)?;
        let stream = ReadyStream::new(stream_id, socket, &self.keys, &self.spec, &self.control)?;
        if direction_of(&self.spec, spec, stream_id.stream.into()) == Some(Direction::Download) {
            // Checks the payload before the phase, so that the tally has the reason why nothing was sent.
            socket::payload(&stream.socket, &self.spec)?;
        }
        Ok(stream)
    }
}

impl EngineServer for UdpServer {
    fn datagram_handler(&self) -> Option<Arc<dyn DatagramHandler>> {
        Some(Arc::clone(&self.gate) as Arc<dyn DatagramHandler>)
    }

    fn admit(&self, _preamble: Preamble, _stream: MeteredStream) {
        // This engine has no data connections: dropping the connection refuses it.
    }

    fn run(&self, phase: u8, report: PhaseObserver<'_>) -> PhaseTally {
        let Some(spec) = self.spec.phases.get(usize::from(phase)) else {
            return nothing_moved(None, &self.control, NO_SUCH_PHASE);
        };
        let proven = match self.gate.proven.await_all(phase) {
            Ok(proven) => proven,
            Err(came) => {
                let timeout = CONNECT_TIMEOUT.as_secs();
                let why = format!("only {came} of the phase's streams were validated over UDP within {timeout} s");
                return nothing_moved(Some(spec), &self.control, &why);
            }
        };
        match proven.iter().map(|(stream_id, proven)| self.connect(spec, *stream_id, proven)).collect() {
            Ok(streams) => phase::run(&self.spec, spec, Direction::Download, &self.control, streams, report),
            Err(error) => nothing_moved(Some(spec), &self.control, &error.to_string()),
        }
    }
}
