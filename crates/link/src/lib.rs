//! The words both sides of a link speak, each written once. Pure: no sockets, no clock, no randomness of its own
//! beyond making keys and codes; the disk is touched for the key file and its folder alone.

pub mod admission;
pub mod feature;
pub mod frame;
pub mod framed;
pub mod identity;
pub mod key_file;
pub mod measurement;
pub mod message;
pub mod pairing_code;
pub mod peer_text;
pub mod state_folder;
pub mod test_spec;
pub mod tls;

mod crockford;

pub use admission::SessionId;
pub use identity::{EndpointId, SecretKey};
pub use peer_text::PeerText;

/// The port a reflector listens on, TCP and UDP, when nothing else is said.
pub const DEFAULT_PORT: u16 = 4000;
