//! Everything that both ends of a link must agree on: identities, TLS, pairing, admission, messages, frames. Pure: no
//! sockets and no clock. Random numbers are used only for keys and codes, the disk only for the key file and its folder.

#![forbid(unsafe_code)]

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

/// The default port of a reflector, TCP and UDP.
pub const DEFAULT_PORT: u16 = 4000;
