//! The reflector's end of `tcp`: opens the door, waits for the streams, runs their phases.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use paramedic_link::admission::Preamble;
use paramedic_link::measurement::PhaseTally;
use paramedic_link::test_spec::{Direction, TestSpec};

use super::roster::Roster;
use super::socket_options;
use crate::data_stream::DataStream;
use crate::door::{ByPreamble, Door};
use crate::engine::{Report, Serve, ServeOrder};
use crate::phase::{self, CONNECT_TIMEOUT, NO_SUCH_PHASE, nothing_moved};
use crate::socket::SocketOptions;
use crate::tether::Tether;

pub(super) struct TcpServe {
    spec: TestSpec,
    options: SocketOptions,
    tether: Arc<Tether>,
    roster: Arc<Roster>,
    /// Direct mode's port; held until the session is over.
    door: Option<Door>,
}

impl TcpServe {
    pub(super) fn open(order: ServeOrder) -> io::Result<Self> {
        let ServeOrder { spec, keys, claim, peer, tether, .. } = order;
        let options = socket_options(&spec)?;
        let roster = Arc::new(Roster::new(&spec, Arc::clone(&tether)));
        let door = match claim {
            Some(claim) => {
                let (roster, options) = (Arc::clone(&roster), options.clone());
                let knock = ByPreamble::new(keys);
                let of_streams = options.clone();
                let sink = move |preamble, stream| seat(&roster, &of_streams, preamble, DataStream::Plain(stream));
                Some(Door::open(claim, &options, knock, peer, spec.streams, Arc::clone(&tether), Box::new(sink))?)
            }
            None => None,
        };
        Ok(Self { spec, options, tether, roster, door })
    }

    /// Where direct mode's door listens.
    #[cfg(test)]
    pub(super) fn local_addr(&self) -> Option<std::net::SocketAddr> {
        self.door.as_ref().map(Door::local_addr)
    }

    /// Whether all streams of `phase` have come.
    #[cfg(test)]
    pub(super) fn stands(&self, phase: u8) -> bool {
        self.roster.is_complete(phase)
    }
}

fn seat(roster: &Roster, options: &SocketOptions, preamble: Preamble, stream: DataStream) {
    // The streams of a later phase would cost descriptors and, unread, the kernel's memory for as long as the session
    // lasts.
    if !roster.is_next(preamble.phase) {
        tracing::debug!(phase = preamble.phase, "a data connection of a later phase was dropped");
        return;
    }
    match options.apply(stream.socket()) {
        Ok(()) => roster.admit(preamble.phase, preamble.stream, stream),
        // Such a stream would not carry what was asked for.
        Err(error) => tracing::debug!(%error, "a data connection does not take its options"),
    }
}

impl Serve for TcpServe {
    fn admit(&self, preamble: Preamble, stream: DataStream) {
        seat(&self.roster, &self.options, preamble, stream);
    }

    fn run(&self, phase: u8, report: Report<'_>) -> PhaseTally {
        let tally = self.run_phase(phase, report);
        self.roster.advance(phase);
        tally
    }
}

impl TcpServe {
    fn run_phase(&self, phase: u8, report: Report<'_>) -> PhaseTally {
        let Some(spec) = self.spec.phases.get(usize::from(phase)) else {
            return nothing_moved(None, &self.tether, NO_SUCH_PHASE);
        };
        if !self.tether.wait_until(Instant::now() + CONNECT_TIMEOUT, || self.roster.is_complete(phase)) {
            let standing = self.roster.standing(phase);
            let refused = self.door.as_ref().map_or(0, Door::refused);
            tracing::debug!(phase, standing, refused, "the streams of a phase did not all come");
            // Those that came are of no use: the appliance learns it from their end.
            drop(self.roster.take(phase));
            let why = format!("only {standing} of the phase's data connections came within 10 s");
            return nothing_moved(Some(spec), &self.tether, &why);
        }
        phase::run(&self.spec, spec, Direction::Download, &self.tether, self.roster.take(phase), report)
    }
}
