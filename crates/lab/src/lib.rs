//! Starts both real programs and drives them as a user would, on loopback or on two hosts made of network namespaces. For
//! tests only; not shipped.

#![forbid(unsafe_code)]

mod appliance;
pub mod bad_reflectors;
mod cable;
pub mod changes;
mod device;
mod disks;
pub mod hostile;
mod hosts;
pub mod lane_siege;
pub mod loopback;
mod programs;
mod reflector;
mod repetitions;
mod share;

pub use appliance::{Appliance, event, says_full};
pub use cable::{Cable, CableSpec};
pub use device::Device;
pub use disks::{SlowDisk, fill};
pub use hosts::{Host, RoutedHosts, TwoHosts};
pub use programs::{Outcome, Programs, Running, is_gone};
pub use reflector::{Pairing, Reflector};
pub use repetitions::{limit_repetitions, record_limit};
pub use share::Share;
