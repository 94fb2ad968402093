//! The definitions that both ends of a link share: identities, TLS, pairing, admission, messages, frames.
//!
//! A link is the TLS connection between an appliance and a reflector. A session is one granted test on a link. A
//! session has phases, a phase has one or two directions, and a direction has streams.
//!
//! The code is pure: it opens no sockets and reads no clock. It uses random numbers only for keys and codes, and the
//! disk only for the key file and its folder.

#![forbid(unsafe_code)]
#![warn(clippy::disallowed_methods, clippy::unwrap_used, clippy::expect_used)]
#![warn(clippy::print_stdout, clippy::print_stderr, clippy::exit)]
#![cfg_attr(not(test), warn(clippy::let_underscore_must_use))]

pub mod admission;
pub mod engine_terms;
pub mod feature;
pub mod frame;
pub mod framed;
pub mod identity;
pub mod key_file;
pub mod measurement;
pub mod message;
pub mod pairing_code;
pub mod peer_text;
pub mod phase_detail;
pub mod state_folder;
pub mod test_spec;
pub mod tls;

mod crockford;

pub use admission::SessionId;
pub use identity::{EndpointId, SecretKey};
pub use peer_text::PeerText;

/// The default port of a reflector, TCP and UDP.
pub const DEFAULT_PORT: u16 = 4000;
