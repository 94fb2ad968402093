//! The `udp` engine: datagrams at a rate that is asked for, or at the highest that the path carries. Decides who sends
//! what, when; nothing is sent to an address that did not prove that it receives, or that stopped saying so.

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
mod socket;
mod stream;

#[cfg(test)]
mod tests;

use std::io;
use std::time::Duration;

use paramedic_link::test_spec::{DataMode, DataPathWish, Direction, TestSpec};

use crate::engine::{ClientEnd, ClientSetup, Engine, ServerEnd, ServerSetup, first_refusal};

/// The payload when none is asked for, where the path takes it.
const DEFAULT_PAYLOAD: usize = 1400;
/// The loss that a search may have when no bound is asked for, in millionths.
const DEFAULT_LOSS_PPM: u32 = 10_000;
/// How often a receiver says what has come.
const FEEDBACK_EVERY: Duration = Duration::from_millis(50);
/// A sender that has not heard its receiver for this long holds still until it does again.
const HOLD_STILL_AFTER: Duration = Duration::from_millis(600);

/// The engine that sends datagrams.
pub struct Udp;

impl Engine for Udp {
    fn id(&self) -> &'static str {
        "udp"
    }

    fn about(&self) -> &'static str {
        "datagrams at a given rate (-b), or at the highest with little loss (-b 0)"
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
            (spec.congestion_control.is_some(), "datagrams know no congestion control"),
            (spec.mss_bytes.is_some(), "datagrams have no segments: their payload is -l"),
            (!matches!(spec.data_path, DataPathWish::Auto | DataPathWish::Plain), "datagrams are always copied"),
            (spec.verify_payload, "only the header of a datagram is read"),
            (spec.block_bytes.is_some_and(|bytes| !fits(bytes)), "a datagram's payload is 52 to 65507 bytes"),
            (spec.loss_bound_ppm.is_some() && !searches, "a bound of loss is for the search for the rate: -b 0"),
        ];
        first_refusal(asked)
    }

    fn server(&self, setup: ServerSetup) -> io::Result<Box<dyn ServerEnd>> {
        Ok(Box::new(server::UdpServer::open(setup)?))
    }

    fn client(&self, setup: ClientSetup) -> io::Result<Box<dyn ClientEnd>> {
        Ok(Box::new(client::UdpClient::new(setup)))
    }
}

/// The other way.
fn against(direction: Direction) -> Direction {
    match direction {
        Direction::Download => Direction::Upload,
        Direction::Upload => Direction::Download,
    }
}
