//! The tests themselves, both ends of each in one folder: how load is made, how a path is probed, how counts become
//! measurements. Blocking threads move the bytes; no async runtime stands in their way.

pub mod claim;
pub mod clock;
pub mod data_stream;
pub mod dialer;
pub mod door;
pub mod echo;
pub mod engine;
pub mod host_facts;
pub mod iperf3;
pub mod loopback;
pub mod memory;
pub mod origin;
pub mod quota;
pub mod tether;
pub mod udp_port;

mod phase;
mod socket;
mod sys;
mod tcp;
// Public for its fuzz target alone.
#[doc(hidden)]
pub mod udp;

pub use engine::Engine;
pub use socket::check_congestion_control;

/// Every engine there is. What a reflector offers and what the command line takes and explains is read from this list.
pub const ENGINES: &[&dyn Engine] = &[&tcp::Tcp, &udp::Udp, &iperf3::Iperf3, &echo::Echo];

/// The engine with this id.
pub fn find(id: &str) -> Option<&'static dyn Engine> {
    ENGINES.iter().copied().find(|engine| engine.id() == id)
}
