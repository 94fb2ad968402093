//! The `echo` engine: latency probes without load. The two ends of the probes, [`Prober`] and [`ProbeResponder`], also
//! run beside every other engine to measure latency under load. `monitor.rs` has both ends of the probes of a monitor
//! session.

mod dwell;
#[doc(hidden)]
pub mod fuzzing;
mod ledger;
mod monitor;
pub mod pacing;
mod packet;
mod probe_connection;
mod prober;
mod probes;
mod responder;
#[cfg(test)]
mod tests;

use std::io;

use paramedic_link::admission::Preamble;
use paramedic_link::measurement::PhaseTally;
use paramedic_link::test_spec::{DataMode, TestSpec};

use crate::engine::{ClientSetup, Engine, EngineClient, EngineServer, PhaseObserver, ServerSetup};
use crate::metered_stream::MeteredStream;
use crate::phase::run_idle;
use crate::session_control::SessionControl;

pub use dwell::{DWELL_BOUNDS_US, DwellTimes};
pub use monitor::{LoadFlag, LoadGuard, MonitorResponder, MonitorSocket, ProbeAnswer};
pub use packet::LEN as PACKET_LEN;
pub use prober::{Prober, ProberSetup};
pub use probes::{EchoTransport, Probes};
pub use responder::{ProbeResponder, answer_stream};

/// The engine that measures latency without load.
pub struct Echo;

impl Engine for Echo {
    fn id(&self) -> &'static str {
        "echo"
    }

    fn about(&self) -> &'static str {
        "latency without load"
    }

    fn loads(&self) -> bool {
        false
    }

    fn data_modes(&self) -> &'static [DataMode] {
        &[DataMode::Tunneled, DataMode::DirectEphemeral]
    }

    fn unsupported(&self, spec: &TestSpec) -> Option<&'static str> {
        let is_unsupported = spec.fragments || spec.loss_bound_ppm.is_some();
        is_unsupported.then_some("fragments and a loss bound need the engine udp")
    }

    fn server(&self, setup: ServerSetup) -> io::Result<Box<dyn EngineServer>> {
        Ok(Box::new(IdleEnd { spec: setup.spec, control: setup.control }))
    }

    fn client(&self, setup: ClientSetup) -> io::Result<Box<dyn EngineClient>> {
        Ok(Box::new(IdleEnd { spec: setup.spec, control: setup.control }))
    }
}

/// An end of a session without load, at the reflector or at the appliance. In each phase, the end only waits for the
/// duration of the phase.
struct IdleEnd {
    spec: TestSpec,
    control: std::sync::Arc<SessionControl>,
}

impl IdleEnd {
    fn wait_out(&self, phase: u8, report: PhaseObserver<'_>) -> PhaseTally {
        run_idle(self.spec.phases.get(usize::from(phase)), &self.control, report)
    }
}

impl EngineServer for IdleEnd {
    fn admit(&self, _preamble: Preamble, _stream: MeteredStream) {
        // This engine has no streams: dropping the connection refuses it.
    }

    fn run(&self, phase: u8, report: PhaseObserver<'_>) -> PhaseTally {
        self.wait_out(phase, report)
    }
}

impl EngineClient for IdleEnd {
    fn connect(&self, _phase: u8) -> io::Result<()> {
        Ok(())
    }

    fn run(&self, phase: u8, report: PhaseObserver<'_>) -> PhaseTally {
        self.wait_out(phase, report)
    }
}
