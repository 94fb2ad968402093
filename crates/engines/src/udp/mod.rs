//! The `udp` engine: sends datagrams at a requested rate, or searches for the highest rate that the path carries. Sends
//! bulk datagrams only to an address that has proved that it receives datagrams, and pauses while no feedback arrives
//! from that address.

mod client;
#[doc(hidden)]
pub mod fuzzing;
mod gate;
mod ledger;
mod packet;
mod ready;
mod receiver;
mod search;
mod sender;
mod server;
mod size;
mod socket;
mod stream;

#[cfg(test)]
mod tests;

use std::io;
use std::time::Duration;

use paramedic_link::test_spec::{DataMode, DataPathWish, Direction, TestSpec};

use crate::engine::{ClientSetup, Engine, EngineClient, EngineServer, ServerSetup, first_refusal};

/// The default payload of a datagram in bytes, if the path MTU allows it.
const DEFAULT_PAYLOAD: usize = 1400;
/// The default loss bound of a search, in millionths.
const DEFAULT_LOSS_PPM: u32 = 10_000;
/// How often a receiver of bulk datagrams sends feedback to their sender.
const FEEDBACK_INTERVAL: Duration = Duration::from_millis(50);
/// A sender that has received no feedback for this time pauses until feedback arrives. A send call that began before
/// the pause may take 100 ms, so no datagram is sent later than 0.7 s after the last feedback.
const PAUSE_AFTER: Duration = Duration::from_millis(590);

/// The engine that loads the path with datagrams.
pub struct Udp;

impl Engine for Udp {
    fn id(&self) -> &'static str {
        "udp"
    }

    fn about(&self) -> &'static str {
        "datagrams at a given rate (-b), or at the highest rate with little loss (-b 0)"
    }

    fn loads(&self) -> bool {
        true
    }

    fn data_modes(&self) -> &'static [DataMode] {
        &[DataMode::Tunneled, DataMode::DirectEphemeral]
    }

    fn unsupported(&self, spec: &TestSpec) -> Option<&'static str> {
        let searches = spec.bitrate_bps == Some(0);
        let fits = |bytes: u32| (packet::HEADER..=packet::LARGEST).contains(&(bytes as usize));
        let asked = [
            (spec.congestion_control.is_some(), "datagrams have no congestion control"),
            (spec.mss_bytes.is_some(), "datagrams have no segment size: set their payload with -l"),
            (
                !matches!(spec.data_path, DataPathWish::Auto | DataPathWish::Plain),
                "the engine udp always copies its datagrams",
            ),
            (spec.verify_payload, "the engine udp cannot verify the payload of datagrams, only their headers"),
            (spec.may_stop, "the engine udp cannot end a phase early"),
            (spec.block_bytes.is_some_and(|bytes| !fits(bytes)), "a datagram's payload (-l) must be 52 to 65507 bytes"),
            (spec.loss_bound_ppm.is_some() && !searches, "a loss bound needs a search for the highest rate (-b 0)"),
        ];
        first_refusal(asked)
    }

    fn server(&self, setup: ServerSetup) -> io::Result<Box<dyn EngineServer>> {
        Ok(Box::new(server::UdpServer::open(setup)?))
    }

    fn client(&self, setup: ClientSetup) -> io::Result<Box<dyn EngineClient>> {
        Ok(Box::new(client::UdpClient::new(setup)))
    }
}

/// The direction opposite to `direction`.
fn opposite(direction: Direction) -> Direction {
    match direction {
        Direction::Download => Direction::Upload,
        Direction::Upload => Direction::Download,
    }
}
