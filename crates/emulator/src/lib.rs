//! Emulated links between network namespaces. [`LinkDirection`] decides what happens to each packet, and does no I/O.
//! [`Link`] moves the packets between two TUN devices, and [`LinkRecord`] holds what the link did to them. This crate
//! is for tests and measurements only; it is not shipped.

#![forbid(unsafe_code)]
#![warn(clippy::disallowed_methods)]

pub mod accuracy;
mod delivered;
mod direction;
mod forwarder;
mod impairments;
mod namespace;
mod packet;
mod priority;
mod record;
mod scenario;
mod settings;
mod topology;

pub use delivered::InOrderBytes;
pub use direction::{Counts, Departure, DropReason, Fate, LinkDirection, Way};
pub use forwarder::Link;
pub use namespace::Namespace;
pub use packet::{FlowKey, Headers, Transport};
pub use priority::KeepAwake;
pub use record::{BIN, Bin, FlowRecord, Lateness, LinkRecord, OPENING_BYTES, SeenProbe, WatchRule};
pub use scenario::{Change, Family, Hop, Scenario};
pub use settings::{BurstLoss, DirectionSettings, Policer, Reorder};
pub use topology::Topology;
