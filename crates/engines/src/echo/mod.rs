//! The `echo` engine: small probes that are answered at once. On its own it puts no load on the path; its two ends,
//! [`Prober`] and [`ProbeResponder`], run beside every other engine and measure latency while that one loads the path.

#[doc(hidden)]
pub mod fuzzing;
mod ledger;
mod line;
mod packet;
mod prober;
mod probes;
mod responder;
#[cfg(test)]
mod tests;

use std::io;

use paramedic_link::admission::Preamble;
use paramedic_link::measurement::PhaseTally;
use paramedic_link::test_spec::{DataMode, TestSpec};

use crate::data_stream::DataStream;
use crate::engine::{ClientEnd, ClientSetup, Engine, PhaseObserver, ServerEnd, ServerSetup};
use crate::phase::run_idle;
use crate::session_control::SessionControl;

pub use packet::LEN as PACKET_LEN;
pub use prober::{ProbeOrder, Prober};
pub use probes::{Probes, Transport};
pub use responder::{ProbeResponder, answer_stream};

/// The engine that puts no load on the path: latency alone.
pub struct Echo;

impl Engine for Echo {
    fn id(&self) -> &'static str {
        "echo"
    }

    fn about(&self) -> &'static str {
        "latency alone, nothing loaded"
    }

    fn loads(&self) -> bool {
        false
    }

    fn data_modes(&self) -> &'static [DataMode] {
        &[DataMode::Tunneled, DataMode::DirectEphemeral]
    }

    fn unsupported(&self, spec: &TestSpec) -> Option<&'static str> {
        let asked = spec.fragments || spec.loss_bound_ppm.is_some();
        asked.then_some("fragments and a bound of loss are for the engine udp")
    }

    fn server(&self, setup: ServerSetup) -> io::Result<Box<dyn ServerEnd>> {
        Ok(Box::new(Quiet { spec: setup.spec, control: setup.control }))
    }

    fn client(&self, setup: ClientSetup) -> io::Result<Box<dyn ClientEnd>> {
        Ok(Box::new(Quiet { spec: setup.spec, control: setup.control }))
    }
}

/// Either end of a session that moves nothing: it lets each phase's time pass.
struct Quiet {
    spec: TestSpec,
    control: std::sync::Arc<SessionControl>,
}

impl Quiet {
    fn wait_out(&self, phase: u8, report: PhaseObserver<'_>) -> PhaseTally {
        run_idle(self.spec.phases.get(usize::from(phase)), &self.control, report)
    }
}

impl ServerEnd for Quiet {
    fn admit(&self, _preamble: Preamble, _stream: DataStream) {
        // No phase of this engine has streams: dropping the connection refuses it.
    }

    fn run(&self, phase: u8, report: PhaseObserver<'_>) -> PhaseTally {
        self.wait_out(phase, report)
    }
}

impl ClientEnd for Quiet {
    fn connect(&self, _phase: u8) -> io::Result<()> {
        Ok(())
    }

    fn run(&self, phase: u8, report: PhaseObserver<'_>) -> PhaseTally {
        self.wait_out(phase, report)
    }
}
