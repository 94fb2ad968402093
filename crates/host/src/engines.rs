//! The list of engines, which both programs use.

use paramedic_engines::Engine;
use paramedic_engines::echo::Echo;
use paramedic_engines::tcp::Tcp;
use paramedic_engines::udp::Udp;
use paramedic_iperf3::Iperf3;

/// All engines. The reflector offers engines from this list, and the appliance's command line accepts and explains the
/// same ones.
pub const ENGINES: &[&dyn Engine] = &[&Tcp, &Udp, &Iperf3, &Echo];

/// The engine with the id `id`.
pub fn find(id: &str) -> Option<&'static dyn Engine> {
    ENGINES.iter().copied().find(|engine| engine.id() == id)
}
