//! The reflector's end of `udp`: keeps the gate, gives each stream a socket of its own, runs their phases.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use paramedic_link::admission::{Preamble, SessionKeys};
use paramedic_link::measurement::PhaseTally;
use paramedic_link::test_spec::{Direction, PhaseSpec, TestSpec};

use super::gate::Gate;
use super::stream::Standing;
use super::{direction_of, socket};
use crate::data_stream::DataStream;
use crate::echo::Signals;
use crate::engine::{Report, Serve, ServeOrder};
use crate::phase::{self, CONNECT_TIMEOUT, NO_SUCH_PHASE, nothing_moved};
use crate::tether::Tether;

pub(super) struct UdpServe {
    spec: TestSpec,
    keys: Arc<SessionKeys>,
    tether: Arc<Tether>,
    gate: Arc<Gate>,
}

impl UdpServe {
    pub(super) fn open(order: ServeOrder) -> io::Result<Self> {
        let ServeOrder { spec, keys, tether, .. } = order;
        let gate = Arc::new(Gate::new(&spec, Arc::clone(&keys), Arc::clone(&tether))?);
        Ok(Self { spec, keys, tether, gate })
    }

    fn streams(&self, phase: u8, spec: &PhaseSpec) -> io::Result<Vec<Standing>> {
        let stand = |(place, proven): (_, super::gate::Proven)| {
            let socket = proven.port.connect(proven.to, proven.peer)?;
            let standing = Standing::new(place, socket, &self.keys, &self.spec, &self.tether)?;
            if direction_of(&self.spec, spec, place.stream) == Some(Direction::Download) {
                // Now, while there is somebody to tell.
                socket::payload(&standing.socket, &self.spec)?;
            }
            Ok(standing)
        };
        self.gate.take(phase).into_iter().map(stand).collect()
    }
}

impl Serve for UdpServe {
    fn signals(&self) -> Option<Arc<dyn Signals>> {
        Some(Arc::clone(&self.gate) as Arc<dyn Signals>)
    }

    fn admit(&self, _preamble: Preamble, _stream: DataStream) {
        // No stream of this engine is a connection: dropping it refuses it.
    }

    fn run(&self, phase: u8, report: Report<'_>) -> PhaseTally {
        let Some(spec) = self.spec.phases.get(usize::from(phase)) else {
            return nothing_moved(None, &self.tether, NO_SUCH_PHASE);
        };
        if !self.tether.wait_until(Instant::now() + CONNECT_TIMEOUT, || self.gate.is_complete(phase)) {
            let standing = self.gate.standing(phase);
            let why = format!("only {standing} of the phase's streams proved themselves over UDP within 10 s");
            return nothing_moved(Some(spec), &self.tether, &why);
        }
        match self.streams(phase, spec) {
            Ok(streams) => phase::run(&self.spec, spec, Direction::Download, &self.tether, streams, report),
            Err(error) => nothing_moved(Some(spec), &self.tether, &error.to_string()),
        }
    }
}
