//! The appliance as a library: its paired reflectors, the providers (each runs tests against one kind of server), the
//! lock that lets only one heavy test run at a time, and the saved results. The library never prints.

#![forbid(unsafe_code)]
#![warn(clippy::disallowed_methods, clippy::unwrap_used, clippy::expect_used)]
#![warn(clippy::print_stdout, clippy::print_stderr, clippy::exit)]
#![cfg_attr(not(test), warn(clippy::let_underscore_must_use))]

pub mod alerts;
pub mod app;
pub mod error;
pub mod export;
mod handshake;
pub mod line_verdict;
pub mod monitor;
mod object_name;
pub mod payload_transport;
pub mod percent;
pub mod plan;
pub mod providers;
pub mod reflector_client;
pub mod request;
pub mod schedule;
pub mod store;
pub mod targets;
pub mod test_lock;
pub mod waiting;

pub use error::{ApplianceError, LinkFailure};
